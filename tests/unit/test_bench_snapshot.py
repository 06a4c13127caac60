"""The parts of the snapshot map's benchmark: that they do what their figures are said to be of."""

from __future__ import annotations

import gc
import os
import re
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest

from mmapds import SnapshotMap, cli
from mmapds._snapcommit import MOST_KEPT
from mmapds.bench import peers, rows, snapshot, snapshot_cases, snapshot_peers, snapshot_teams
from mmapds.bench.measure import Case, Cost
from mmapds.bench.run import QUICK, Run
from mmapds.bench.snapshot_cases import Data

COUNT = 2000


@pytest.fixture(scope="module")
def data():
    return Data.make(COUNT)


@pytest.fixture
def run(tmp_path):
    return Run(QUICK, None, str(tmp_path), lambda _: None)


# --- the entries -------------------------------------------------------------------------------


def test_every_key_is_there_once_and_shuffled(data):
    keys = list(data.table)
    assert sorted(keys) == [b"%010d" % i for i in range(COUNT)] != keys
    assert {len(value) for value in data.table.values()} == {100}
    assert sorted(data.probes) == sorted(keys)
    assert list(data.probes) != keys


def test_keys_that_are_looked_up_are_equal_and_other_objects(data):
    stored = {id(key) for key in data.table}
    assert not stored & {id(key) for key in data.probes}


def test_entries_made_on_the_fly_are_all_there_and_in_no_order():
    keys = [key for key, _ in snapshot_teams.entries(COUNT)]
    assert sorted(keys) == [b"%010d" % i for i in range(COUNT)] != keys


def test_no_more_than_a_million_is_loaded(data, monkeypatch):
    assert data.million == data.table
    monkeypatch.setattr(snapshot_cases, "MOST", 10)
    few = Data.make(COUNT)
    assert len(few.million) == len(few.probes) == 10
    assert few.million.items() <= few.table.items()


# --- how it is timed ---------------------------------------------------------------------------


def test_each_key_is_looked_up_in_turn_batch_by_batch(data):
    asked = []
    case = snapshot_cases.each("a", "get(key)", {"get": asked.append}, data)
    assert case.each == snapshot_cases.BATCH
    case.clock(3)
    case.clock(COUNT // case.each)
    assert sorted(asked[:COUNT]) == sorted(data.probes)
    assert asked[COUNT:] == asked[: 3 * case.each]


def test_no_case_follows_another_through_the_keys(data):
    asked = {"a": [], "b": []}
    for name, keys in asked.items():
        snapshot_cases.each(name, "get(key)", {"get": keys.append}, data).clock(COUNT // snapshot_cases.BATCH)
    assert sorted(asked["a"]) == sorted(asked["b"])
    assert sum(a == b for a, b in zip(*asked.values(), strict=True)) < COUNT / 10


def test_batches_are_handed_over_whole(data):
    asked = []
    case = snapshot_cases.many("a", "get_many(batch)", {"get_many": asked.append}, data)
    case.clock(COUNT // case.each)
    assert [len(batch) for batch in asked] == [100] * (COUNT // 100)
    assert sorted(key for batch in asked for key in batch) == sorted(data.probes)


def test_a_walk_takes_as_many_entries_as_it_says(data):
    taken = []

    def begin(start):
        for key in sorted(data.table):
            if key >= start:
                taken.append(key)
                yield key

    case = snapshot_cases.scan("a", begin, data)
    case.clock(2)
    assert len(taken) == 2 * case.each
    first = taken[: case.each]
    assert first == sorted(data.table)[int(first[0]) :][: case.each]


def test_what_takes_seconds_takes_turns_and_is_not_warmed_up():
    order = []

    def case(name, *seconds):
        script = iter(seconds)

        def clock(count):
            order.append(name)
            return count * next(script)

        return Case(name, clock, each=10, looped=False)

    found = snapshot_cases.series([case("a", 3e-8, 1e-8, 2e-8), case("b", 1e-8, 1e-8, 1e-8)], 3)
    assert "".join(order) == "abbaab"
    assert found["a"] == Cost(pytest.approx(1), pytest.approx(2))


def test_the_collector_is_stopped_and_started_again():
    assert gc.isenabled()
    with snapshot_cases.quiet():
        assert not gc.isenabled()
        with snapshot_cases.quiet():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


# --- the maps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1000, COUNT, 30_000])
def test_a_map_has_the_most_layers_there_can_be(count, tmp_path):
    data = Data.make(count)
    path = str(tmp_path / "layers")
    assert snapshot_cases.layered(path, data) == MOST_KEPT
    with SnapshotMap(path, mode="readonly") as m:
        records = [layer["records"] for layer in m.stats()["layers"]]
        assert records == sorted(records)
        assert records[-1] == count == len(m)
        assert dict(m) == data.table
        m.check()


def test_layers_that_were_merged_are_no_figure(run, tmp_path, monkeypatch):
    """Should the writer keep fewer, the row says so."""
    monkeypatch.setattr(snapshot_cases, "layered", lambda path, data: SnapshotMap.build(path, data.table) and 5)
    monkeypatch.setattr(snapshot_peers, "MAKERS", {})
    monkeypatch.setattr(snapshot_teams, "workers", lambda *_: None)
    snapshot._measure(run, str(tmp_path), 1000)
    assert "get_layers" not in run.figures
    assert run.reasons["get_layers"] == f"the writer has merged what was to be {MOST_KEPT} layers into 5"
    (row,) = [row for row in rows.SNAPSHOT if row.name == "layers"]
    assert rows.promises([row], run.figures, run.reasons)[0]["skipped"] == run.reasons["get_layers"]


def test_commits_change_what_they_say(data, tmp_path):
    directory = str(tmp_path)
    SnapshotMap.build(f"{directory}/map", data.table, codec="raw")
    with ExitStack() as stack:
        (one,) = snapshot_cases.commits(stack, directory, data)
        (many,) = snapshot_cases.thousands(stack, directory, data, 3)
        assert (one.each, many.each) == (1, 3000)
        one.clock(2)
        many.clock(1)
        with SnapshotMap(f"{directory}/map", mode="readonly") as m:
            assert m.version == 1 + 2 + 3
            assert len(m) == COUNT


# --- other stores ------------------------------------------------------------------------------


def test_stores_that_are_not_installed_say_so(data, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("lmdb", "rocksdict", "diskcache"):
        monkeypatch.setitem(sys.modules, name, None)
    with ExitStack() as stack:
        here, reasons = snapshot_peers.found(stack, str(tmp_path), data, 1, snapshot_peers.MAKERS)
    assert here == []
    assert reasons.keys() == snapshot_peers.MAKERS.keys()
    assert all(f"{name} cannot be imported" in reasons[name] for name in ("lmdb", "rocksdict", "diskcache"))
    assert re.search("redis", reasons["redis"])


@pytest.mark.parametrize("name", list(snapshot_peers.MAKERS))
def test_a_store_has_cases_for_all_its_peers(name, data, tmp_path):
    with ExitStack() as stack:
        made = snapshot_peers.MAKERS[name](stack, str(tmp_path), data, 1)
        if isinstance(made, str):
            pytest.skip(made)
        cases = []
        for make in made.values():
            with ExitStack() as stage:
                for case in make(stage):
                    cases.append(case.name)
                    assert case.clock(1) > 0
    wanted = [peer.case for peer in snapshot_peers.PEERS]
    wanted += [row.reference for row in rows.SNAPSHOT]
    assert sorted(cases) == sorted({case for case in wanted if case.partition(".")[0] == name and "." in case})


def test_every_case_has_a_store_or_is_ours():
    stores = {peer.case.partition(".")[0] for peer in snapshot_peers.PEERS}
    assert stores == snapshot_peers.MAKERS.keys()


def test_redis_loads_what_was_written_for_it(tmp_path):
    table = {b"a": b"", b"b" * 70: b"x" * 100, b"c": b"y" * 20_000, b"\xff\x00": b"\n"}
    snapshot_peers.write_rdb(str(tmp_path / "some.rdb"), table)
    with ExitStack() as stack:
        client = peers.redis(stack, str(tmp_path), "--dbfilename", "some.rdb")
        if isinstance(client, str):
            pytest.skip(client)
        assert {key: client.get(key) for key in client.scan_iter()} == table


# --- other processes ---------------------------------------------------------------------------


def test_a_process_that_dies_is_reported(tmp_path, capfd):
    with (
        pytest.raises(RuntimeError, match="ended early, with status 1"),
        snapshot_teams.Process("touched", tmp_path / "nothing") as process,
    ):
        process.says()
    assert "FileNotFoundError" in capfd.readouterr().err


def test_memory_is_what_the_kernel_says():
    assert snapshot_teams._memory("/proc/self/status")["RssAnon"] > 1 << 20
    assert snapshot_teams._memory("/proc/self/smaps_rollup")["Pss"] > 1 << 20


def test_a_follower_needs_two_processors(run, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    snapshot_teams.follower(run, str(tmp_path), 1)
    assert run.reasons == dict.fromkeys(("seen", "seen_asleep"), "needs two processors")


def test_workers_without_room_are_skipped(run, tmp_path):
    run.effort = replace(QUICK, amount=1e9)
    snapshot_teams.workers(run, str(tmp_path))
    assert "no room" in run.reasons["workers"]
    assert os.listdir(tmp_path) == []


def test_entries_without_room_are_refused(run, tmp_path):
    with pytest.raises(OSError, match=r"1,099,511,627,776 keys take .* MiB here: set TMPDIR"):
        snapshot._measure(run, str(tmp_path), 1 << 40)
    assert os.listdir(tmp_path) == []


# --- the command -------------------------------------------------------------------------------


def test_the_command_takes_a_number_of_keys(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(snapshot, "run", lambda **options: asked.append(options) or {})
    monkeypatch.setattr(snapshot, "tables", lambda results: ())
    assert cli.main(["bench", "snapshot", "--keys", "10000000", "--memory"]) == 0
    assert (asked[0]["keys"], asked[0]["memory"]) == (10_000_000, True)
    for wrong in ("999", "10000000000", "many"):
        with pytest.raises(SystemExit):
            cli.main(["bench", "snapshot", "--keys", wrong])
        assert wrong in capsys.readouterr().err
