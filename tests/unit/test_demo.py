"""`mmapds demo`: its checks find what is torn, it runs from end to end, and it leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from mmapds import Counters, Queue, SnapshotMap, cli
from mmapds._snapcommit import Committer
from mmapds.demo import count, lookup, work
from mmapds.demo import run as director
from mmapds.demo.cast import DemoError
from mmapds.demo.names import BLOCK, REVISION, Names, by_code, by_name
from mmapds.demo.table import FIRST, LAST, STAMP, Row, character_table, edition, fault
from mmapds.demo.worker import blocks, changing

COMMAND = [sys.executable, "-W", "error", "-m", "mmapds", "demo"]
WATCHDOG = 120.0


@pytest.fixture(scope="module")
def table() -> list[Row]:
    return [[code, f"NAME {code}", "Lu", code / 2 if code % 3 else None] for code in range(5000)]


# ---- the table and its checks --------------------------------------------------------------------------------------


def test_the_table_is_the_real_one():
    table = character_table()
    assert len(table) > 140_000
    rows = {row[0]: row for row in table}
    assert rows[ord("A")] == [65, "LATIN CAPITAL LETTER A", "Lu", None]
    assert rows[ord("½")] == [0xBD, "VULGAR FRACTION ONE HALF", "No", 0.5]
    assert rows[0] == [0, None, "Cc", None]
    assert not {unicodedata.category(chr(code)) for code in rows} & {"Cn", "Co", "Cs"}
    assert msgpack.unpackb(msgpack.packb(table)) == table


def test_an_edition_is_whole_and_stamped_at_both_ends(table):
    lengths = set()
    for number in (0, 1, 2, 7, 4999, 10**6):
        data = memoryview(edition(table, 3, number))
        assert STAMP.unpack_from(data, FIRST) == STAMP.unpack_from(data, len(data) - LAST) == (3, number)
        assert fault(msgpack.unpackb(data), data, table) == ""
        lengths.add(len(data))
    assert len(lengths) == 1


def torn(table: list[Row], data: bytes) -> str:
    """As a reader sees it: what does not decode is torn too."""
    try:
        value: Any = msgpack.unpackb(data)
        return fault(value, memoryview(data), table)
    except (ValueError, TypeError) as error:
        return str(error) or "not msgpack"


@pytest.mark.parametrize("part", [1, 10, 2000, 4096, 50_000, -2000, -30, -10, -1])
def test_half_of_one_edition_and_half_of_another(table, part):
    one, other = edition(table, 1, 1), edition(table, 1, 2)
    mixed = one[:part] + other[part:]
    assert (torn(table, mixed) != "") == (mixed not in (one, other))


def test_every_kind_of_tearing_has_its_name(table):
    data = edition(table, 1, 5)
    first, rows, checksum, last = msgpack.unpackb(data)
    view = memoryview(data)
    assert "begins as edition (1, 5) and ends as (1, 6)" in fault(
        [first, rows, checksum, STAMP.pack(1, 6)], view, table
    )
    assert "checksum" in fault([first, rows, bytes(8), last], view, table)
    assert "4999 rows instead of 5000" in fault([first, rows[1:], checksum, last], view, table)
    assert "another edition" in fault([first, [*rows[1:], rows[0]], checksum, last], view, table)
    later = bytearray(data)
    later[-LAST:] = STAMP.pack(1, 7)
    assert "changed while" in fault([first, rows, checksum, last], memoryview(later), table)


# ---- the whole ----------------------------------------------------------------------------------------------------


def test_from_end_to_end():
    done = subprocess.run(
        [*COMMAND, "--seconds", "2", "--json"], capture_output=True, text=True, timeout=WATCHDOG, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fine"] is True
    assert found["torn_reads"] == 0
    assert found["faults"] == []
    assert found["takeover_seconds"] > 0
    assert found["versions_seen_after_takeover"] > 0
    assert found["versions_seen"] > found["versions_seen_after_takeover"]
    assert found["versions_published"] >= found["versions_seen"]
    assert found["rows"] == len(character_table())
    assert found["bytes_per_version"] > 20 * found["rows"]
    assert found["readers"] == 3
    assert found["sound"] is True
    counted = found["counters"]
    assert counted["processes"] == 3
    assert counted["lost"] == 0
    assert counted["untold"] in (0, 1)
    assert 0 <= sum(counted["letters"].values()) - counted["said"] <= 1
    assert counted["said"] > 1000
    assert counted["names"] % 100 == 0
    assert counted["sound"] is True
    worked = found["queue"]
    assert worked["processes"] == 3
    assert worked["lost"] == worked["wrong"] == 0
    assert worked["done"] == worked["jobs"] >= 10_000
    assert worked["twice"] in (0, 1)
    assert worked["again"] == worked["held"]
    assert worked["again_seconds"] > 0
    assert worked["sound"] is True
    looked = found["snapshot"]
    assert looked["processes"] == 3
    assert looked["torn"] == looked["wrong"] == looked["lost"] == looked["half"] == 0
    assert looked["faults"] == []
    assert 2 < looked["versions_seen"] <= looked["commits"] + 1
    assert looked["entries"] > 250_000
    assert looked["lookups"] > 1000
    assert looked["walked"] > 1000
    assert looked["takeover_seconds"] > 0
    assert looked["open_seconds"] > 0
    assert looked["sound"] is True
    assert not os.path.exists(found["directory"])
    progress = done.stderr.splitlines()
    assert re.match(r"writer 2 waits for the place of: pid \d+ \(python", progress[1])
    assert any("killed while it held a version" in line for line in progress)
    assert any("killed while it counted" in line for line in progress)
    assert any(f"killed with job {worked['held']} in its hands" in line for line in progress)
    assert any(re.match(r"editor 2 waits for the place of: pid \d+ \(python", line) for line in progress)
    middle = "commit" if looked["killed_in_the_middle_of_a_commit"] else "transaction"
    assert any(line.startswith("editor 1 ") and line.endswith(f" in the middle of a {middle}") for line in progress)
    assert "Traceback" not in done.stderr


def test_in_a_directory_for_people(tmp_path, tmp_path_factory):
    clone = tmp_path_factory.mktemp("clone")  # where `pip install .` was run: the package that lies there was not built
    (clone / "mmapds").mkdir()
    (clone / "mmapds" / "__init__.py").write_text("raise ImportError('not built')")
    done = subprocess.run(
        [COMMAND[0], "-P", *COMMAND[1:], "--seconds", "0.3", "--readers", "2", "--directory", str(tmp_path)],
        cwd=clone,
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tables = [[line.split("  ")[0] for line in part.splitlines()] for part in done.stdout.split("\n\n")]
    assert [table[0] for table in tables] == ["Synchronizer", "Counters", "Queue", "SnapshotMap"]
    assert [table[3:] for table in tables] == [
        [
            "reads per second",
            "versions seen",
            "torn reads",
            "time to take over",
            "rows",
            "bytes per version",
            "files afterwards",
        ],
        [
            "letters per second",
            "letters counted",
            "letters they said",
            "said, not counted",
            "counted, not said",
            "file afterwards",
        ],
        [
            "jobs per second",
            "jobs done",
            "jobs not done",
            "wrong results",
            "jobs done twice",
            "time to pass it on",
            "files afterwards",
        ],
        [
            "lookups per second",
            "time to open",
            "commits",
            "versions seen",
            "torn versions",
            "wrong values",
            "commits lost",
            "half commits seen",
            "time to take over",
            "files afterwards",
        ],
    ]
    assert re.search(r"^torn reads +0 ", done.stdout, re.MULTILINE)
    assert re.search(r"^said, not counted +0 ", done.stdout, re.MULTILINE)
    assert re.search(r"^jobs not done +0 ", done.stdout, re.MULTILINE)
    assert re.search(r"^torn versions +0 ", done.stdout, re.MULTILINE)
    assert re.search(r"^wrong values +0 ", done.stdout, re.MULTILINE)
    assert str(tmp_path) in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("attempt", range(3))
def test_what_was_said_is_counted(tmp_path, attempt):
    said: list[str] = []
    found = count.play(str(tmp_path / "letters"), 0.2, 3, said.append)
    assert found["lost"] == 0
    assert found["untold"] <= found["killed"] == 1
    assert found["sound"], found["findings"]
    assert 0 <= sum(found["letters"].values()) - found["said"] <= 1
    # The language of the names: whoever counted something else would have another order.
    assert found["letters"]["E"] > found["letters"]["Q"]
    with Counters(tmp_path / "letters", mode="readonly") as c:
        assert c.snapshot() == {**found["letters"], "names": found["names"]}


def test_the_comparison_finds_what_is_lost_and_what_nobody_said():
    held = {"A": 5, "B": 9, "C": 4, "names": 300}
    assert count._compared(held, {"A": 6, "B": 7, "C": 4, "names": 200}) == {"said": 17, "lost": 1, "untold": 3}
    assert count._compared(held, held) == {"said": 18, "lost": 0, "untold": 0}


def test_a_counting_process_that_dies_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DemoError, match=r"counter \d ended with status 1"):
        count.play(str(tmp_path / "letters"), 0.2, 2, print)


@pytest.mark.parametrize("attempt", range(3))
def test_every_job_is_done(tmp_path, attempt):
    said: list[str] = []
    found = work.play(str(tmp_path / "jobs"), 0.2, 3, said.append)
    assert found["lost"] == found["wrong"] == 0, found
    assert found["done"] == found["jobs"] > 0
    assert found["twice"] <= found["killed"] == 1
    assert found["again"] == found["held"]
    assert found["sound"], found["findings"]
    with Queue(tmp_path / "jobs", mode="readonly") as jobs:
        stats = jobs.stats()
    assert (stats["items"], stats["claimed"], stats["deaths"], stats["put"]) == (0, 0, 1, found["jobs"])


def test_the_books_find_what_is_wrong_and_what_is_done_twice(tmp_path):
    with Queue(tmp_path / "jobs") as jobs, Queue(tmp_path / "results") as results:
        books = work._Books(jobs, results)
        books.keep()
        assert jobs.get_many(3) == [0, 1, 2]
        assert books.put == jobs.qsize() + 3
        right = [changing(block) for block in blocks()]
        assert len(right) == len(books.right) > 1000
        assert len(set(right)) > 10  # a worker that always says the same is found
        results.put_many([[0, right[0]], [1, right[1] + 1], [0, right[0]], [len(right), right[0]]])
        books.collect()
    assert books.done == {0: 2, 1: 1, len(right): 1}
    assert books.wrong == 1


def test_a_worker_that_dies_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DemoError, match=r"worker \d ended with status 1"):
        work.play(str(tmp_path / "jobs"), 0.2, 2, print)


# ---- the map -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def names() -> Names:
    """A few characters, in three blocks of which the last is not full."""
    names = Names()
    names.rows = names.rows[: 2 * BLOCK + 30]
    names.blocks = 3
    return names


@pytest.fixture
def built(names, tmp_path) -> Iterator[SnapshotMap]:
    SnapshotMap.build(tmp_path / "names", names.items())
    with SnapshotMap(tmp_path / "names") as m:
        yield m
        m.verify()


def compared(m: SnapshotMap, names: Names) -> list[tuple[str, str]]:
    with m.snapshot() as view:
        return [names.compare(view, start) for start in (0, 50, BLOCK, BLOCK + 70, 2 * BLOCK, len(names.rows) - 1)]


def test_the_map_is_the_table_and_its_index(built, names):
    assert built[by_name("LATIN CAPITAL LETTER A")] == [65, "Lu", None, 0]
    assert built[by_code(65)] == ["LATIN CAPITAL LETTER A", 0]
    assert len(built) == 2 * len(names.rows) + 1
    assert [value[0] for _, value in built.prefix("code/")] == [name for _, name, *_ in names.rows]
    assert set(compared(built, names)) == {("", "")}
    whole = Names()
    assert len(whole.rows) > 130_000
    assert whole.blocks == -(-len(whole.rows) // BLOCK)


def test_each_revision_is_whole(built, names):
    for revision in range(1, 9):  # around the table twice, and on
        with built.transaction() as txn:
            txn.update(names.revised(revision))
            txn[REVISION] = [revision, 1]
        assert set(compared(built, names)) == {("", "")}, revision
        assert dict(built) == dict(names.items(revision, 1))


A = by_name("LATIN CAPITAL LETTER A")


@pytest.mark.parametrize(
    ("changes", "torn", "wrong"),
    [
        ({REVISION: [4, 1]}, "the index note revision 1 at", ""),
        (
            {by_code(65): ["LATIN CAPITAL LETTER A", 2]},
            "the index note revision 2 at LATIN CAPITAL LETTER A, not 3",
            "",
        ),
        ({A: [65, "Lu", None, 0]}, "the records note revision 0 at LATIN CAPITAL LETTER A, not 3", ""),
        ({A: [66, "Lu", None, 3]}, "", "names lead to other records"),
        ({A: None}, "", "names lead to other records"),
        ({by_code(65): None}, "", "a walk finds other characters"),
        ({by_code(127): ["DELETE", 0]}, "", "a walk finds other characters"),
    ],
)
def test_what_is_torn_and_what_is_wrong_is_found(built, names, changes, torn, wrong):
    with built.transaction() as txn:
        for revision in (1, 2, 3):
            txn.update(names.revised(revision))
        txn[REVISION] = [3, 1]
    with built.transaction() as txn:
        for key, value in changes.items():
            if value is None:
                del txn[key]
            else:
                txn[key] = value
    found = compared(built, names)
    assert any(torn in one for one, _ in found), found
    assert any(wrong in other for _, other in found), found
    assert all(not one for one, _ in found) or torn, found
    assert all(not other for _, other in found) or wrong, found


@pytest.mark.parametrize("patience", [lookup._PATIENCE, 0.0])
def test_names_are_looked_up_while_an_editor_is_killed(tmp_path, monkeypatch, patience):
    monkeypatch.setattr(lookup, "_PATIENCE", patience)
    said: list[str] = []
    found = lookup.play(str(tmp_path / "names"), 0.3, 2, said.append)
    assert found["torn"] == found["wrong"] == found["lost"] == found["half"] == 0, found
    assert found["sound"], found["findings"]
    assert 0 < found["versions_seen"] <= found["commits"] + 1
    assert any(line.startswith("editor 2 waits for the place of: pid ") for line in said), said
    assert patience or not found["killed_in_the_middle_of_a_commit"]
    with SnapshotMap(tmp_path / "names", mode="readonly") as m:
        assert m[REVISION] == [found["commits"], 2]
        assert len(m) == found["entries"]


def test_the_middle_of_a_commit_is_seen(built, tmp_path, monkeypatch):
    with contextlib.closing(lookup._HalfCommitted(str(tmp_path / "names"))) as watch:
        change(built, "a", [1])
        assert not watch()
        with built.transaction() as txn:
            txn["a"] = [2]
            assert not watch()
        assert not watch()
        with monkeypatch.context() as patch:
            patch.setattr(Committer, "_publish", killed)  # the batch is in the delta by then
            with pytest.raises(RuntimeError, match="killed"):
                change(built, "a", [3])
        assert watch()
        assert built["a"] == [2]
        change(built, "a", [4])
        assert not watch()
        assert built["a"] == [4]


def change(m: SnapshotMap, key: str, value: Any) -> None:
    with m.transaction() as txn:
        txn[key] = value


def killed(*_: Any) -> None:
    raise RuntimeError("killed")


def test_the_commits_that_are_lost_and_those_that_nobody_made():
    assert lookup._compared(5, [1, 2, 3, 4, 5]) == {"commits": 5, "lost": 0, "half": 0}
    assert lookup._compared(5, [1, 2, 3, 5]) == {"commits": 5, "lost": 0, "half": 1}
    assert lookup._compared(5, [1, 2, 3, 3, 4, 5]) == {"commits": 5, "lost": 1, "half": 0}
    assert lookup._compared(5, [1, 2, 3, 4, 5, 6, 7]) == {"commits": 5, "lost": 2, "half": 0}


def test_an_editor_that_dies_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DemoError, match=r"(editor|finder) \d ended with status 1"):
        lookup.play(str(tmp_path / "names"), 0.2, 2, print)


# ---- interrupted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("line", [0, 2])
def test_interrupted_it_leaves_nothing_behind(tmp_path, number, status, line):
    process = subprocess.Popen(
        [*COMMAND, "--seconds", "600", "--directory", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stderr is not None
        assert process.stdout is not None
        try:
            for _ in range(line + 1):
                process.stderr.readline()
            children = started_by(process.pid)
            assert children or line == 0
            os.killpg(process.pid, number)  # as a terminal does
            assert process.wait(WATCHDOG) == status
            assert process.stdout.read() == ""
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == []
    limit = time.monotonic() + 10  # one that was only just started ends when it finds its director gone
    while any(map(alive, children)) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not any(map(alive, children))


def test_a_director_that_was_killed_leaves_no_process_behind(tmp_path):
    with subprocess.Popen(
        [*COMMAND, "--seconds", "600", "--directory", str(tmp_path)], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for _ in range(3):
            process.stderr.readline()
        children = started_by(process.pid)
        assert len(children) == 5
        process.kill()
    limit = time.monotonic() + WATCHDOG
    while any(map(alive, children)):
        assert time.monotonic() < limit
        time.sleep(0.01)


def started_by(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- the command ---------------------------------------------------------------------------------------------------


RESULTS: dict[str, Any] = {
    "unicode": "14.0.0",
    "rows": 100,
    "bytes_per_version": 5000,
    "readers": 3,
    "reads_per_second": 1234567.8,
    "versions_published": 9,
    "versions_seen": 8,
    "versions_seen_after_takeover": 3,
    "torn_reads": 0,
    "faults": [],
    "takeover_seconds": 0.0042,
    "writer_killed_in_the_middle_of_a_write": True,
    "sound": True,
    "findings": [],
    "counters": {
        "processes": 3,
        "killed": 1,
        "seconds": 2.0,
        "letters": {"A": 300, "E": 700, "B": 1, "C": 0},
        "names": 100,
        "said": 1000,
        "lost": 0,
        "untold": 1,
        "sound": True,
        "findings": [],
    },
    "queue": {
        "processes": 3,
        "killed": 1,
        "seconds": 2.0,
        "jobs": 50_000,
        "done": 50_000,
        "lost": 0,
        "twice": 1,
        "wrong": 0,
        "again_seconds": 0.0031,
        "held": "1-77",
        "again": "1-77",
        "sound": True,
        "findings": [],
    },
    "snapshot": {
        "processes": 3,
        "killed": 1,
        "entries": 277_105,
        "seconds": 2.0,
        "open_seconds": 0.0006,
        "lookups": 3_000_000,
        "walked": 300_000,
        "commits": 700,
        "versions_seen": 600,
        "torn": 0,
        "wrong": 0,
        "lost": 0,
        "half": 0,
        "faults": [],
        "takeover_seconds": 0.0521,
        "killed_in_the_middle_of_a_commit": True,
        "sound": True,
        "findings": [],
    },
}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 0),
        ({"torn_reads": 1, "faults": ["the rows do not match the checksum"]}, 1),
        ({"versions_seen_after_takeover": 0}, 1),
        ({"sound": False}, 1),
        ({"counters": {**RESULTS["counters"], "lost": 1}}, 1),
        ({"counters": {**RESULTS["counters"], "untold": 2}}, 1),
        ({"counters": {**RESULTS["counters"], "sound": False}}, 1),
        ({"queue": {**RESULTS["queue"], "lost": 1}}, 1),
        ({"queue": {**RESULTS["queue"], "wrong": 1}}, 1),
        ({"queue": {**RESULTS["queue"], "twice": 2}}, 1),
        ({"queue": {**RESULTS["queue"], "again": "1-78"}}, 1),
        ({"queue": {**RESULTS["queue"], "sound": False}}, 1),
        ({"snapshot": {**RESULTS["snapshot"], "torn": 1, "faults": ["the index notes revision 6"]}}, 1),
        ({"snapshot": {**RESULTS["snapshot"], "wrong": 1}}, 1),
        ({"snapshot": {**RESULTS["snapshot"], "lost": 1}}, 1),
        ({"snapshot": {**RESULTS["snapshot"], "half": 1}}, 1),
        ({"snapshot": {**RESULTS["snapshot"], "sound": False}}, 1),
    ],
)
def test_the_exit_status_says_whether_all_is_well(change, status, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(director, "run", lambda *args: asked.append(args[:3]) or {**RESULTS, **change})
    assert cli.main(["demo", "--seconds", "3", "--readers", "4", "--directory", "d"]) == status
    text = capsys.readouterr().out
    assert "1,234,568" in text
    assert "4.2 ms" in text
    assert re.search(r"jobs per second +25,000 ", text)
    assert "3.1 ms" in text
    assert re.search(r"letters counted +1,001 +most often E, A, B; names: 100", text)
    assert re.search(r"lookups per second +1,500,000 ", text)
    assert re.search(r"half commits seen +[01] +must be 0; one editor killed in the middle of a commit", text)
    assert "52.1 ms" in text
    assert all(fault in text for part in (change, change.get("snapshot", {})) for fault in part.get("faults", []))
    assert cli.main(["demo", "--json"]) == status
    assert json.loads(capsys.readouterr().out)["fine"] is (status == 0)
    assert asked == [(3.0, 4, "d"), (10.0, 3, None)]


@pytest.mark.parametrize(
    "arguments", [["--readers", "1"], ["--seconds", "0"], ["--seconds", "nan"], ["--seconds", "x"]]
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", *arguments])
    assert caught.value.code == 2
    assert "mmapds demo" in capsys.readouterr().err


def test_a_directory_that_is_not_there(tmp_path, capsys):
    assert cli.main(["demo", "--directory", str(tmp_path / "nothing")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_a_process_that_dies_by_itself(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert cli.main(["demo", "--directory", str(tmp_path)]) == 1
    streams = capfd.readouterr()
    assert streams.out == ""
    # Which of the first two is looked at first is up to the machine.
    assert re.fullmatch("mmapds: (writer|reader) 1 ended with status 1; see above", streams.err.splitlines()[-1])
    assert list(tmp_path.iterdir()) == []
