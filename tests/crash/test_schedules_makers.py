"""What test_schedules.py does, onto two who make the same structure at once (row 18)."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import failpoints
import pytest
import syncfiles
from failpoints import CALL, STORE, Died
from peers import PeerError
from stages import Stage

from mmapds import Counters, Queue, SnapshotMap, Synchronizer

WHY = failpoints.missing()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))


MAKERS = {
    "Synchronizer": ("s = mmapds.Synchronizer(path, codec='raw')", "s.write_bytes(b'1'); s.close()", "it_sync"),
    "Counters": ("s = mmapds.Counters(path)", "s.add('a', 1); s.close()", "it"),
    "Queue": ("s = mmapds.Queue(path, codec='raw', segment_size=8192)", "s.put(b'1'); s.close()", "it/meta"),
    "SnapshotMap": (
        "s = mmapds.SnapshotMap(path, codec='raw')", "txn = s.transaction()\nwith txn as t: t['a'] = b'1'\ns.close()",
        "it/manifest_sync",
    ),
}  # fmt: skip


def identity(path: str, name: str) -> bytes:
    return syncfiles.peek(str(Path(path).parent / name), syncfiles.IDENTITY, 16)


def make_at_once(stage: Stage, path: str, what: str, first: int, second: int) -> tuple[bool, bool]:
    """One is held at its point number `first` of making it, then the other at `second`; the one that was held last goes
    on first, or last, by turns. Whether they came to these points."""
    make, use, name = MAKERS[what]
    one, other = stage["a"], stage["b"]
    came = []
    for peer, n in ((one, first), (other, second)):
        try:
            peer.hold(make, "", n, STORE | CALL, path=path)
            came.append(True)
        except Died:
            came.append(False)
    again = []
    for peer, was_held in ((one, came[0]), (other, came[1]))[:: 1 if (first + second) % 2 else -1]:
        if was_held:
            peer.go()
        try:
            peer.receive()
        except PeerError as error:
            # Of a map, who makes it is its writer: while he is held the other one is told so, after a while.
            if (what, error.name) != ("SnapshotMap", "WriterBusy"):
                raise
            again.append(peer)
    assert len(again) <= 1
    for peer in again:
        peer(make)
    there = identity(path, name)
    one(use)
    other(use)
    assert identity(path, name) == there
    if what == "Synchronizer":
        with Synchronizer(path) as s:
            assert (s.version, bytes(s.load())) == (2, b"1")
            s.check()
    elif what == "Counters":
        with Counters(path) as c:
            assert c.snapshot() == {"a": 2}
    elif what == "Queue":
        with Queue(path) as q:
            assert [q.get(), q.get(), q.qsize()] == [b"1", b"1", 0]
    else:
        with SnapshotMap(path) as m:
            assert dict(m) == {"a": b"1"}
            assert m.version == 3, "one of them has made it twice"
    folder = Path(path).parent
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return came[0], came[1]


SEED = 20261128


@pytest.mark.parametrize("what", MAKERS)
def test_r18_two_make_it_at_once(stage: Stage, path: str, what: str) -> None:
    choose = random.Random(SEED)
    for _ in range(12):
        pair = choose.randrange(25), choose.randrange(25)
        try:
            make_at_once(stage, path, what, *pair)
        except BaseException as error:
            error.add_note(f"{what}: held at points {pair} (seed {SEED})")
            raise


@pytest.mark.slow
@pytest.mark.parametrize("what", MAKERS)
def test_r18_two_make_it_at_once_at_each_pair_of_points(stage: Stage, path: str, what: str) -> None:
    pairs = 0
    first = 0
    came = True
    while came:
        second, also = 0, True
        while also:
            try:
                came, also = make_at_once(stage, path, what, first, second)
            except BaseException as error:
                error.add_note(f"{what}: held at points {first} and {second}")
                raise
            pairs += 1
            second += 1
        first += 1
    print(f"{what}: {pairs} pairs of points")
    assert pairs > 50
