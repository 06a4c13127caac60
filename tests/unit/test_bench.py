"""The machinery of the benchmarks. Nothing here depends on how fast anything is."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest

from mmapds.bench import (
    counters_peers,
    crate,
    futexes,
    machine,
    measure,
    pairs,
    peers,
    prometheus,
    queue_opens,
    queue_peers,
    queue_teams,
    rows,
    sync_cases,
    sync_peers,
)
from mmapds.bench.measure import Case, Cost

# --- how a time is taken -----------------------------------------------------------------------


def scripted(name, seconds, *, looped=False, calls=None):
    """A case whose clock says what the script says: seconds per call, in turn."""
    script = iter(seconds)

    def clock(count):
        if calls is not None:
            calls.append(name)
        return count * next(script)

    return Case(name, clock, looped=looped)


def test_the_best_and_the_median_are_kept():
    warm_up = [9.0]
    case = scripted("a", [*warm_up, 5e-9, 3e-9, 4e-9])
    figures = measure.take([case], rounds=3, slice_seconds=0)
    assert figures == {"a": Cost(pytest.approx(3), pytest.approx(4))}


def test_cases_take_turns_and_odd_rounds_are_reversed():
    calls = []
    pair = [scripted(name, [1.0] * 9, calls=calls) for name in "ab"]
    measure.take(pair, rounds=2, slice_seconds=0)
    assert "".join(calls[2:]) == "abba"  # the first two are warm-ups


def test_the_first_call_does_not_decide_how_long_a_slice_is():
    counts = []

    def clock(count):
        counts.append(count)
        return 1.0 if len(counts) == 1 else count * 1e-3

    measure.take([Case("a", clock, looped=False)], rounds=1, slice_seconds=0.05)
    assert counts[-1] == pytest.approx(50, abs=20)


def test_the_loop_itself_is_subtracted():
    nothing = measure.statement("nothing", "pass", {}, repeat=1)
    something = measure.statement("something", "f()", {"f": lambda: sum(range(100))}, repeat=1)
    figures = measure.take([nothing, something], rounds=20, slice_seconds=0.0005)
    assert 0 < figures["nothing"].best < figures["something"].best


def test_a_statement_runs_as_often_as_it_is_counted():
    ran = []
    case = measure.statement("a", "ran.append(0)", {"ran": ran}, repeat=3)
    case.clock(7)
    assert len(ran) == 7 * case.each == 21


def test_pinning_ends():
    before = os.sched_getaffinity(0)
    with measure.pinned() as cpu:
        assert cpu is None or os.sched_getaffinity(0) == {cpu}
    assert os.sched_getaffinity(0) == before


def test_pinning_may_be_forbidden(monkeypatch):
    def refuse(pid, cpus):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with measure.pinned() as cpu:
        assert cpu is None


def test_a_ratio_of_rates_is_upside_down_and_medians_are_used_where_they_should_be():
    at_most = rows.Row("x", "x", "y", "x", "y", 2).result(Cost(30, 90), Cost(10, 10))
    assert (at_most["ratio"], at_most["met"], at_most["target"]) == (3.0, False, "<= 2")
    at_least = rows.Row("x", "x", "y", "x", "y", 0.95, True, True).result(Cost(30, 100), Cost(10, 96))
    assert (at_least["ratio"], at_least["met"], at_least["target"]) == (0.96, True, ">= 0.95")
    assert at_least["statistic"] == "median"


# --- what may be missing -----------------------------------------------------------------------


def test_what_was_not_timed_gives_the_reason_of_its_case_or_of_its_program():
    row = rows.Row("x", "x", "y", "a", "crate.b", 2)
    peer = rows.Peer("p", "P", "ours", "a", measured="crate.c", typical=True)
    figures = {"a": Cost(1, 10)}
    assert rows.promises([row], figures, {"crate": "no crate"})[0]["skipped"] == "no crate"
    assert rows.promises([row], {}, {"a": "no a", "crate": "no crate"})[0]["skipped"] == "no a"
    assert rows.peers([peer], figures, {"crate.c": "no c", "crate": "no crate"})[0]["skipped"] == "no c"
    (found,) = rows.peers([peer], figures | {"crate.c": Cost(5, 30)}, {})
    assert (found["ns"], found["ours_ns"], found["ratio"]) == (30, 10, 3.0)


def test_the_crate_is_looked_for(tmp_path, monkeypatch):
    program = tmp_path / "interop"
    program.write_text("")
    assert "not a program" in crate.find(str(program), build=False, progress=print)
    program.chmod(0o700)
    assert crate.find(str(program), build=False, progress=print) == program
    monkeypatch.setenv("CARGO_TARGET_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert crate.find(None, build=True, progress=print) == "cargo is not installed"
    monkeypatch.setattr(crate, "_SOURCE", tmp_path)
    assert "not a checkout" in crate.find(None, build=True, progress=print)


def test_the_crate_says_its_figures_and_ours_are_taken_between(tmp_path):
    program = tmp_path / "interop"
    figures = {name: 2.0 + i for i, name in enumerate(crate.FIGURES)}
    program.write_text(f"#!/bin/sh\necho '{json.dumps({'crate_version': '1.2.3', **figures})}'\n")
    program.chmod(0o700)
    ours = scripted("a", [1e-9] * 99)
    found, version = crate.alternate(program, str(tmp_path), [ours], runs=2, rounds=3, slice_seconds=0)
    assert version == "1.2.3"
    assert found["crate.version_ns"] == Cost(2.0, 2.0)
    assert found["a"].best == pytest.approx(1)


READ_NOTHING = {"kind": (("read", "/nowhere/x"), ("read", "/nowhere/x"))}


def test_two_processes_need_two_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert pairs.both(READ_NOTHING, rounds=1, seconds=0.01) == "needs two processors"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_one_of_two_processes_that_dies_is_reported(capfd):
    with pytest.raises(RuntimeError, match="ended early"):
        pairs.both(READ_NOTHING, rounds=1, seconds=0.01)
    assert "FileNotFoundError" in capfd.readouterr().err


def test_peers_that_are_not_installed_say_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    monkeypatch.setattr(prometheus, "_PACKAGE", "no_such_package")
    with sync_cases.ExitStack() as stack:
        found, reasons = peers.found(stack, str(tmp_path), sync_peers.MAKERS)
        assert {case.name for case in found} == {"shm.read", "shm.write"}
        assert "lmdb cannot be imported" in reasons["lmdb"]
        assert re.search("redis", reasons["redis"])
        found, reasons = peers.found(stack, str(tmp_path), counters_peers.PINNED)
        assert {case.name for case in found} == {"value"}
        assert reasons == {"prometheus": "no_such_package is not installed"}


def test_a_process_beside_us_that_dies_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(prometheus, "_PACKAGE", "json")  # is there
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with sync_cases.ExitStack() as stack:
        (case,) = prometheus.cases(stack, str(tmp_path))
        with pytest.raises(RuntimeError, match="ended early, with status 1"):
            case.clock(1)


# --- queues ------------------------------------------------------------------------------------


class Unmeasured:
    """As much of a run as is needed to say why something was not measured."""

    def __init__(self):
        self.reasons = {}
        self.figures = {}

    def skip(self, reason, *names):
        self.reasons |= dict.fromkeys(names, reason)


def test_other_queues_that_are_not_installed_say_so(monkeypatch, tmp_path):
    for name in ("persistqueue", "litequeue", "diskcache", "faster_fifo"):
        monkeypatch.setitem(sys.modules, name, None)
    with sync_cases.ExitStack() as stack:
        found, reasons = peers.found(stack, str(tmp_path), queue_peers.PINNED)
        assert found == []
        assert reasons.keys() == {"persist_queue", "litequeue", "diskcache"}
        assert all("cannot be imported" in reason for reason in reasons.values())
        run = Unmeasured()
        first, second = queue_teams._pairs(run, stack, str(tmp_path))
        assert first.keys() == second.keys()
        assert "two_fast" not in first
        assert "faster_fifo cannot be imported" in run.reasons["two_fast"]


def test_a_producer_and_a_consumer_need_two_processors(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    run = Unmeasured()
    queue_teams.two(run, str(tmp_path))
    wanted = {name for row in rows.QUEUE for name in (row.measured, row.reference) if re.match("two|wake|sleep", name)}
    assert run.reasons.keys() == wanted | {"two_pipe"}
    assert set(run.reasons.values()) == {"needs two processors"}


def test_a_member_of_a_team_that_dies_is_reported(tmp_path, capfd):
    with (
        queue_teams.Team([{"put": ("put", str(tmp_path / "q"))}, {"get": ("no such case",)}]) as team,
        pytest.raises(RuntimeError, match="ended early, with status 1"),
    ):
        team.ready()
    assert "KeyError: 'no such case'" in capfd.readouterr().err


def test_without_a_compiler_there_is_no_c_program(monkeypatch, tmp_path):
    monkeypatch.setattr(futexes, "_SOURCE", "int main(void) { return }")
    assert re.search("failed: .*error", str(futexes.build(str(tmp_path))))
    monkeypatch.setenv("PATH", "/nowhere")
    assert futexes.build(str(tmp_path)) == "there is no C compiler"


def test_items_that_have_no_room_are_not_stored(tmp_path):
    run = Unmeasured()
    queue_opens.opens(run, str(tmp_path), 1 << 40)
    assert run.figures == {}
    assert "no room" in run.reasons["open"] == run.reasons["scan"]
    assert os.listdir(tmp_path) == []


def test_segments_that_somebody_still_maps_are_counted(tmp_path):
    """Those with a name, and those that only a process has."""
    path = str(tmp_path / "q")
    with queue_teams.Queue(path, codec="raw", segment_size=1 << 16) as q:
        q.put(b"x")
        (name,) = [entry.name for entry in os.scandir(path) if entry.name.endswith(".segment")]
        inode = os.stat(f"{path}/{name}").st_ino
        assert set(queue_teams._segments(path, [])) == {inode}
        os.unlink(f"{path}/{name}")
        assert set(queue_teams._segments(path, [])) == set()
        assert set(queue_teams._segments(path, [os.getpid()])) == {inode}


def test_the_large_value_goes_where_there_is_room(tmp_path):
    assert not sync_cases.has_room(None)
    assert sync_cases.has_room(str(tmp_path)) in (True, False)


def test_file_systems_have_names():
    assert machine.file_system("/proc") == "proc"
    with machine.directories() as (memory, disk):
        assert memory is None or machine.file_system(memory) == "tmpfs"
        assert disk is None or machine.file_system(disk) != "tmpfs"
        there = [directory for directory in (memory, disk) if directory]
        assert all(map(os.path.isdir, there))
    assert not any(map(os.path.exists, there))
