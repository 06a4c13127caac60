"""SIGKILL at any moment: every increment that has returned is there, and at most one more for each kill.

Each victim reports every operation that has returned over a pipe, which outlives it; what it reported is compared with
what the file holds. Names that come and go, growth and reservations under the same fire.
"""

from __future__ import annotations

import itertools
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import counterfiles
import pytest
from peers import Peer

from mmapds import Counters


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "counters")


# kill_some(job, count): starts processes that run ``job(report)``, kills all of them at random moments, and returns
# the reports of each, which are fixed-size packed numbers.
ZYGOTE = """
import itertools, random, select, struct, time, victims
def kill_some(job, count, longest, size=8):
    running = []
    for _ in range(count):
        reading, writing = os.pipe()
        os.set_inheritable(writing, True)
        def run():
            job(lambda *words: os.write(writing, struct.pack(f"<{len(words)}q", *words)))
        running.append((victims.spawn(run), reading))
        os.close(writing)
    killed = 0
    reports = []
    end = time.monotonic() + random.random() * longest
    data = {reading: b"" for _, reading in running}
    for reading in data:
        os.set_blocking(reading, False)
    def drain(ended):
        for reading in data:
            try:
                while piece := os.read(reading, 1 << 16):
                    data[reading] += piece
                    if not ended:  # who writes faster than this reads would keep it for ever
                        break
            except BlockingIOError:
                pass
    while (left := end - time.monotonic()) > 0:
        select.select(data, [], [], left)
        drain(False)
    for pid, reading in running:
        killed += victims.end(pid) == -9
    drain(True)
    for _, reading in running:
        os.close(reading)
        assert len(data[reading]) % size == 0
        reports.append(data[reading])
    return killed, reports
"""


@pytest.fixture
def zygote(path: str) -> Iterator[Peer]:
    with Peer(ZYGOTE, path=path) as peer:
        yield peer


COUNT = {
    "by name": "c.fetch_add('hits')",
    "by index": "c.fetch_add(3)",
    "bound": "bound.fetch_add()",
    "checked": "c.add('hits', 1, True)",
    "reserved": "c.reserve('hits', 1)",
}


@pytest.mark.parametrize(
    ("how", "dtype", "kills"),
    [
        ("by name", "i64", 64),
        ("by name", "f64", 64),
        ("bound", "i64", 64),
        ("bound", "f64", 64),
        *(
            pytest.param(how, dtype, 1000, marks=pytest.mark.slow)
            for how in ("by name", "bound")
            for dtype in ("i64", "f64")
        ),
        ("by index", "i64", 48),
        ("checked", "i64", 48),
        ("checked", "f64", 48),
        ("reserved", "i64", 48),
    ],
)
def test_no_increment_that_was_reported_is_missing_and_at_most_one_more_per_kill(
    zygote: Peer, path: str, how: str, dtype: Any, kills: int
) -> None:
    Counters(path, dtype=dtype).close()
    zygote(
        f"""
def job(report):
    c = mmapds.Counters(path)
    bound = c.counter("hits")
    while True:
        {COUNT[how]}
        report(1)
"""
    )
    killed = reported = 0
    while killed < kills:
        some, reports = zygote("kill_some(job, 8, 0.03)")
        assert some == 8, zygote.stderr()
        killed += some
        reported += sum(len(report) for report in reports) // 8
        with Counters(path) as c:
            found = c[3 if how == "by index" else "hits"]
        assert reported <= found <= reported + killed, f"{found} counted, {reported} reported, {killed} kills"
    assert reported > 10 * kills, f"{reported} reported: the victims hardly came to count"


def test_names_come_and_go_and_nothing_that_is_counted_is_lost(zygote: Peer, path: str) -> None:
    """Each victim adds to names by name, and pops them; it reports (what it has added, what it has popped)."""
    Counters(path, 4).close()
    zygote(
        """
def job(report):
    choose = random.Random(os.getpid())
    c = mmapds.Counters(path)
    while True:
        name = choose.randrange(300)
        if choose.random() < 0.3:
            report(name, 0, c.pop(f"name {name}", 0), 0)
        else:
            n = choose.randrange(1, 5)
            c.fetch_add(f"name {name}", n)
            report(name, n, 0, 0)
"""
    )
    killed = 0
    added, popped = [0] * 300, [0] * 300
    for _ in range(20):
        some, reports = zygote("kill_some(job, 4, 0.06, 32)")
        assert some == 4, zygote.stderr()
        killed += some
        for report in reports:
            for name, plus, minus, _ in struct.iter_unpack("<4q", report):
                added[name] += plus
                popped[name] += minus
        found = counterfiles.check(path)
        assert found.names <= 300, f"more cells than names; {found.describe()}"
    with Counters(path) as c:
        c.add("finish")
        values = c.snapshot()
    left = [values.get(f"name {name}", 0) for name in range(300)]
    # A kill may have added up to 4 that nobody reported, or taken a value that nobody got.
    assert sum(added) + 4 * killed >= sum(popped) + sum(left), "more is there than was added"
    lost = [name for name in range(300) if added[name] > popped[name] + left[name]]
    assert len(lost) <= killed, f"{len(lost)} names lack something, after {killed} kills: {lost}"
    assert sum(added) > 1000, sum(added)
    counterfiles.check(path)


def test_blocks_that_were_reserved_never_overlap(zygote: Peer, path: str) -> None:
    for durability in ("process", "power"):
        zygote(
            """
def job(report):
    c = mmapds.Counters(path)
    choose = random.Random(os.getpid())
    bound = c.counter("ids")
    while True:
        n = choose.randrange(1, 1000)
        found = bound.reserve(n) if n % 2 else c.reserve("ids", n)
        report(found.start, found.stop)
"""
        )
        Path(path).unlink(missing_ok=True)
        Counters(path, durability=durability).close()  # type: ignore[arg-type]
        killed = 0
        blocks: list[tuple[int, int]] = []
        for _ in range(20 if durability == "process" else 6):
            some, reports = zygote("kill_some(job, 5, longest, 16)", longest=0.03 if durability == "process" else 0.2)
            killed += some
            for report in reports:
                mine = list(struct.iter_unpack("<2q", report))
                assert mine == sorted(mine), "a process got an earlier block after a later one"
                blocks += mine
        blocks.sort()
        overlaps = [(a, b) for a, b in itertools.pairwise(blocks) if a[1] > b[0]]
        assert not overlaps, overlaps[:5]
        gaps = sum(a[1] != b[0] for a, b in zip([(0, 0), *blocks], blocks, strict=False))
        with Counters(path) as c:
            gaps += c["ids"] != blocks[-1][1]
            assert c["ids"] >= blocks[-1][1]
        assert gaps <= killed, f"{gaps} gaps after {killed} kills"
        assert len(blocks) > 30, blocks


def test_growth_under_fire(zygote: Peer, path: str) -> None:
    """Victims make names as fast as they can; a name that was reported is there, with one cell and its value."""
    Counters(path, 4).close()
    zygote(
        """
def job(report):
    c = mmapds.Counters(path)
    for n in itertools.count():
        c[f"{os.getpid()}/{n}"] = n
        report(os.getpid(), n)
"""
    )
    reported = {}
    with Counters(path) as living:
        bound = living.counter("bound")
        for turn in range(8):
            some, reports = zygote("kill_some(job, 3, 0.06, 16)")
            assert some == 3, zygote.stderr()
            for report in reports:
                reported.update({f"{pid}/{n}": n for pid, n in struct.iter_unpack("<2q", report)})
            assert bound.add() == turn + 1
            found = counterfiles.check(path)
            values = found.values()
            assert values.pop("bound") == turn + 1
            assert reported.items() <= values.items(), "a name that was reported is not there"
            assert len(values) <= len(reported) + 3 * (turn + 1)
            wrong = {name: value for name, value in values.items() if not name.endswith(f"/{value}")}
            assert not wrong, f"names with another's value: {wrong}"
            assert living.snapshot() == values | {"bound": turn + 1}
    assert len(found.extents) >= 4, found.describe()


def test_r20_a_process_that_died_with_the_lock_keeps_nobody_waiting(path: str) -> None:
    """And one that is stopped keeps those waiting who make names, and nobody else."""
    with Counters(path) as c, Peer("import counterfiles; fd = os.open(path, os.O_RDWR)", path=path) as owner:
        c.fetch_add("old")
        owner("counterfiles.lock(fd, counterfiles.LOCK_NAMES)")
        with Peer("c = mmapds.Counters(path)", path=path) as other:
            assert other("c.fetch_add('old'), c.fetch_add(0), c.snapshot()") == (1, 0, {"old": 2})
            other.send("c.fetch_add('new'), c.fetch_add('new')")
            owner.signal(signal.SIGSTOP)
            assert (c.fetch_add("old"), c.reset("old"), c.reserve(0, 5)) == (2, 3, range(1, 6))
            assert "new" not in c
            owner.kill()
            assert other.receive() == (0, 1)
            assert c["new"] == 2
