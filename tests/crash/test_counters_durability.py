"""Syncs that fail, each by itself: nothing is handed out until a flush has succeeded (row 12)."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import counterfiles
import pytest
from peers import Peer, PeerError
from powerloss import Call, WatchedPeer

from mmapds import Counters, DurabilityFailed


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a disk: durability 'power' is refused on tmpfs."""
    with tempfile.TemporaryDirectory(prefix="mmapds-power-", dir="/var/tmp") as name:
        yield Path(name)


def fill(c: Counters) -> None:
    """No room for another name without growth."""
    found = counterfiles.Snapshot(c.path)
    for n in range(found.names, found.extents[0].entries):
        c[f"n{n}"] = n


FAILING = {
    "reserve": "c.reserve('ids', 10)",
    "bound reserve": "bound.reserve(10)",
    "a new name": "c.fetch_add('new')",
    "reserve from a new name": "c.reserve('new', 10)",
    "grow": "c.update(x=1, y=2)",
    "remove": "c.remove('old')",
    "return": "c.fetch_add('was')",
    "flush": "c.flush()",
}
TRIES = [
    "c.reserve('ids', 1)",
    "bound.reserve(1)",
    "c.reserve(0, 1)",
    "c.fetch_add('another')",
    "c.counter('another')",
    "c.setdefault('another', 5)",
    "c.remove('old 2')",
    "c.fetch_add('was 2')",
]


@pytest.mark.parametrize("failure", [errno.EIO, pytest.param(errno.ENOSPC, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", FAILING)
def test_r12_whichever_sync_fails_nothing_is_handed_out_until_a_flush_has_succeeded(
    folder: Path, what: str, failure: int
) -> None:
    """The first, second, ... sync of an operation fails, and so do all later ones until the disk is well again."""
    first = 0
    while fail_from(str(folder / f"counters{first}"), FAILING[what], failure, first):
        first += 1
        assert first < 300
    assert first >= 1, "this operation makes no sync"


def fail_from(path: str, job: str, failure: int, first: int) -> bool:
    """One operation whose syncs fail from number `first` on; whether it has so many."""
    count = 0

    def fail(call: Call) -> int:
        nonlocal count
        if call.name not in ("msync", "fsync", "fdatasync"):
            return 0
        count += 1
        return failure if count > first else 0

    with Counters(path, 4, durability="power") as c:
        c.update(dict.fromkeys(("ids", "old", "old 2", "was", "was 2"), 0))
        c.remove("was")
        c.remove("was 2")
        if "x" in job:
            fill(c)
    setup = "c = mmapds.Counters(path); bound = c.counter('ids'); bound.reserve(100) and None"
    with WatchedPeer(setup, path=path) as peer, Peer(setup, path=path) as other, Counters(path) as c:
        handed_out = int(c["ids"])
        outcome = attempt(peer, job, fail)
        if not outcome:
            assert count <= first, f"sync {first} failed, and nobody noticed"
            return False
        message = f"sync {first}: {outcome}"
        assert counterfiles.word(path, counterfiles.FAILED), f"nobody else was told; {message}"
        names = set(c)
        for code in TRIES:
            assert attempt(peer, code, fail), f"{code} counted as success on a failing disk; {message}"
            assert other.fails(code)[0] == "DurabilityFailed", f"{code} in another process; {message}"
        with Counters(path) as late, pytest.raises(DurabilityFailed):
            late.reserve("ids", 1)
        assert attempt(peer, "c.flush()", fail), f"a flush that failed counted as success; {message}"
        assert set(c) == names, f"names came or went all the same; {message}"
        # Counting goes on, in memory.
        assert peer.watch("c.add(1), c.add('ids'), c['ids']", fail)[0] == 1
        # The disk is well again, but what it lost must be written first.
        for code in TRIES:
            assert attempt(peer, code, lambda call: 0), f"{code}: mended, and nothing was written anew; {message}"
            assert other.fails(code)[0] == "DurabilityFailed"
        synced: list[tuple[int, int]] = []
        peer.watch("c.flush()", lambda call: synced.append((call.start, call.end)) or 0)
        size = os.path.getsize(path)
        assert covered(synced) >= set(range(0, size, 4096)), f"flush() left out pages of {size} bytes: {synced}"
        assert counterfiles.word(path, counterfiles.FAILED) == 0
        first_free = int(c["ids"])
        assert first_free >= handed_out
        assert other("r = bound.reserve(10); r.start") == first_free
        assert peer.watch("r = c.reserve('ids', 10); r.start", lambda call: 0) == first_free + 10
        assert peer.watch("c.fetch_add('another')", lambda call: 0) == 0
    counterfiles.check(path)
    return True


def covered(ranges: list[tuple[int, int]]) -> set[int]:
    return {page for start, end in ranges for page in range(start & -4096, end, 4096)}


def attempt(peer: WatchedPeer, code: str, on_call: Callable[[Call], int]) -> str:
    """Runs the code; how it failed, or nothing."""
    try:
        peer.watch(f"{code} and None", on_call)
    except PeerError as error:
        assert error.name == "DurabilityFailed", error  # noqa: PT017  of another process
        return str(error)
    return ""
