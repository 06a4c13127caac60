"""Who is woken, and who is not (rows 3 and 20): what only costs time when it is missing, or too much.

A sleeper looks again every 50 ms, so that no death between publishing and waking matters. That hides a wake-up that is
left out, from every test that waits for a result. Here the calls themselves are seen.
"""

from __future__ import annotations

import failpoints
import pytest
import queuefiles
import syncfiles
from failpoints import Died, FailPeer
from stages import Stage
from victims import pattern

from mmapds import Synchronizer

WHY = failpoints.missing()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))

WAITERS = 1 << 31


def wakes(peer: FailPeer, code: str) -> bool:
    """Whether somebody is woken by it."""
    try:
        peer.hold(code, "call futex_wake")
    except Died:
        peer.receive()
        return False
    peer.go()
    peer.receive()
    return True


def points(peer: FailPeer, code: str, what: str) -> int:
    """How often it comes by such a point."""
    peer(f"failpoints.arm('record', 0, 7)\n{code}\nfailpoints.disarm()")
    return sum(what in point for point in peer.seen())


def sleeps(peer: FailPeer, code: str, where: str, meanwhile: str, other: FailPeer) -> bool:
    """Whether it goes to sleep although the other did that when it was about to."""
    peer.hold(code, where)
    other(meanwhile)
    try:
        peer.go("call futex_wait")
    except Died:
        return False
    peer.go()
    return True


# ---- the lock word -------------------------------------------------------------------------------------------------


def test_r20_a_release_wakes_who_waits_and_nobody_else(stage: Stage, path: str) -> None:
    owner, waiter = stage["a"], stage["b"]
    owner("r = mmapds.Region.open(path, 4096); lock = r.lock(0)", path=path)
    waiter("r = mmapds.Region.open(path); lock = r.lock(0)", path=path)
    owner("lock.acquire()")
    assert not wakes(owner, "lock.release()")
    owner("lock.acquire()")
    waiter.hold("lock.acquire(), lock.owner_died, lock.release()", "call futex_wait")
    with open(path, "rb") as file:
        word = int.from_bytes(file.read(8), "little")
    assert word & WAITERS, f"{word:#x}: who waits has not said so, and does not sleep"
    assert wakes(owner, "lock.release()")
    waiter.go()
    assert waiter.receive() == (True, False, None)


def test_r20_who_is_about_to_wait_for_a_lock_that_is_free_takes_it(stage: Stage, path: str) -> None:
    """At once, and as one whose owner has left it in order."""
    owner, waiter = stage["a"], stage["b"]
    owner("r = mmapds.Region.open(path, 4096); lock = r.lock(0)", path=path)
    waiter("r = mmapds.Region.open(path); lock = r.lock(0)", path=path)
    for where in ("lockword_probe load_seq_cst_u64", "lockword_sleep load_seq_cst_u64"):
        owner("lock.acquire()")
        assert not sleeps(waiter, "lock.acquire(), lock.owner_died, lock.release()", where, "lock.release()", owner)
        assert waiter.receive() == (True, False, None)


# ---- the Synchronizer ----------------------------------------------------------------------------------------------


def test_a_write_wakes_who_waits_and_nobody_else(stage: Stage, path: str) -> None:
    writer, waiter = stage["a"], stage["b"]
    writer("w = mmapds.Synchronizer(path, codec='raw'); w.write_bytes(pattern(1))", path=path)
    waiter("s = mmapds.Synchronizer(path)", path=path)
    write = "w.write_bytes(pattern(2))"
    assert not wakes(writer, write)
    waiter.hold("s.wait(2, timeout=60)", "call futex_wait")
    assert wakes(writer, write)
    assert not wakes(writer, write), "the mark of who is gone was left"
    waiter.go()
    waiter.receive()


@pytest.mark.parametrize("protocol", ["mmapds", "mmap-sync"])
def test_an_undisturbed_read_is_one_pin(stage: Stage, path: str, protocol: str) -> None:
    with Synchronizer(path, codec="raw", protocol=protocol) as s:  # type: ignore[call-overload]
        s.write_bytes(pattern(1))
    peer = stage["a"]
    peer(f"s = mmapds.Synchronizer(path, codec='raw', protocol={protocol!r}); s.load() and None", path=path)
    pin = "leftright_pin store_seq_cst_u64" if protocol == "mmapds" else "mmapsync_pin fetch_add_seq_cst_u32"
    assert points(peer, "s.read().release()", pin) == 1


def test_r04_the_slot_of_a_dead_reader_is_left_unlocked(stage: Stage, path: str) -> None:
    """Else nobody can have it while the writer that has cleared it lives."""
    reader, writer = stage["victim"], stage["b"]
    writer(
        "w = mmapds.Synchronizer(path, codec='raw'); w.write_bytes(pattern(1)); w.write_bytes(pattern(2))", path=path
    )
    reader("s = mmapds.Synchronizer(path); r = s.read()", path=path)
    (slot,) = syncfiles.pins(path)
    reader.kill()
    for _ in range(3):
        writer("w.write_bytes(pattern(3), grace=0.0)")
    assert syncfiles.pins(path) == {}
    assert not syncfiles.locked(syncfiles.sync(path), syncfiles.LOCK_SLOT + slot)


# ---- the queue -----------------------------------------------------------------------------------------------------


def items_put(path: str) -> bytes:
    """The word that a consumer sleeps on."""
    with open(queuefiles.meta(path), "rb") as file:
        file.seek(queuefiles.EVENTS)
        return file.read(4)


def test_r03_a_put_wakes_a_consumer_and_nobody_else(stage: Stage, path: str) -> None:
    producer, consumer = stage["a"], stage["b"]
    producer("q = mmapds.Queue(path)", path=path)
    consumer("q = mmapds.Queue(path)", path=path)
    assert not wakes(producer, "q.put(1)")
    assert consumer("q.get()") == 1
    consumer.hold("q.get()", "call futex_wait")
    before = items_put(path)
    assert wakes(producer, "q.put(2)")
    assert items_put(path) != before, "a consumer that looked before the put would sleep"
    assert not wakes(producer, "q.put(3)"), "the mark of who is gone was left"
    consumer.go()
    assert consumer.receive() == 2
