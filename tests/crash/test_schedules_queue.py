"""What test_schedules.py does, onto the lock word and the queue (rows 1, 2, 3 and 20)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import failpoints
import pytest
import queuefiles
from failpoints import CALL, Died, FailPeer
from stages import SETUP, Stage

from mmapds import Queue

WHY = failpoints.missing()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))


# ---- the lock word -------------------------------------------------------------------------------------------------


def queue(path: str, *items: bytes, **options: Any) -> None:
    with Queue(path, codec="raw", segment_size=8192, **options) as q:
        for item in items:
            q.put(item)


def test_r20_a_taker_that_saw_a_dead_token_while_another_takes_over(stage: Stage, path: str) -> None:
    """It gets the dead one's byte when the word is another's by now: it must not take it."""
    queue(path, b"0", b"1", b"2")
    dead, one, other = stage["victim"], stage["a"], stage["b"]
    for peer in (dead, one, other):
        peer("q = mmapds.Queue(path); q._tend()", path=path)
    dead.hold("q.get()", "queue_commit")  # has the lock, and has begun
    dead.kill()
    token = queuefiles.Snapshot(path).words["take_lock"]
    assert token
    one.hold("q.get()", "lockword_probe load_seq_cst_u64 word")
    one.go("call lock try_token")  # it has read the token of the dead
    other.hold("q.get()", "queue_pick load_seq_cst_u64 tail")  # it has taken over, and is in the middle of it
    theirs = queuefiles.Snapshot(path).words["take_lock"]
    assert theirs not in (token, 0)
    one.go("lockword_probe compare_exchange_seq_cst_u64 word")
    one.go("call futex_wait")  # it waits for who lives
    assert queuefiles.Snapshot(path).words["take_lock"] & ~(3 << 30) == theirs & ~(3 << 30)
    other.go()
    assert other.receive() == b"0"
    one.go()
    assert one.receive() == b"1"
    assert other("q.get()") == b"2"


def test_r20_a_taker_that_saw_a_dead_token_when_all_is_over(stage: Stage, path: str) -> None:
    """Another has taken over, repaired and released the word before it comes to it: there is nothing to take over."""
    queue(path, b"0", b"1", b"2")
    dead, one, other = stage["victim"], stage["a"], stage["b"]
    for peer in (dead, one, other):
        peer("q = mmapds.Queue(path); q._tend()", path=path)
    dead.hold("q.get()", "queue_set store_relaxed_u64 word", 3)
    dead.kill()
    one.hold("q.get()", "lockword_probe load_seq_cst_u64 word")
    one.go("call lock try_token")
    assert other("q.get()") == b"0"
    one.go("lockword_probe compare_exchange_seq_cst_u64 word")
    assert other("q.get()") == b"1"
    one.go()
    assert one.receive() == b"2"
    queuefiles.check(path)


def test_r20_a_dead_holder_is_looked_after_while_others_come(stage: Stage, path: str) -> None:
    """One has seen that a holder is dead, and has its byte; others register, take and leave before it has the lock."""
    queue(path, b"0", b"1", b"2", b"3")
    dead, one, other, new = stage["victim"], stage["a"], stage["b"], stage["c"]
    dead("q = mmapds.Queue(path); claim = q.claim()", path=path)
    one("q = mmapds.Queue(path)", path=path)
    dead.kill()
    one.hold("q.get()", "call lock try_token it/meta", 1)  # 0: that of its own token, as it registers
    one.go("lockword_try compare_exchange_seq_cst_u64 word")
    assert new("q = mmapds.Queue(path); claim = q.claim(); claim.item", path=path) == b"1"
    assert other("q = mmapds.Queue(path); q.get()", path=path) == b"2"
    other("q.close()")
    assert other("q = mmapds.Queue(path); q.get()", path=path) == b"3"
    one.go()
    assert one.receive() == b"0", "what the dead one had comes back"
    new("claim.nack(0)")
    assert one("q.get()") == b"1", "the claim of the living was taken for the dead one's"
    queuefiles.check(path)


# ---- a queue: takers and putters -----------------------------------------------------------------------------------

# In the middle of a take: before its first store, between two, before and after what makes it count, before the unlock.
TAKES = {
    "the log begins": ("queue_log store_relaxed_u64 logged", 0, b"0"),
    "in the log": ("queue_set store_relaxed_u64 word", 2, b"0"),
    "the commit": ("queue_commit store_release_u64 changes", 0, b"0"),
    "the end of the log": ("queue_commit store_release_u64 logged", 0, b"0"),
    "the record": ("queue_store_state store_relaxed_u64 state", 0, b"1"),
    "the unlock": ("lockword_release exchange_seq_cst_u64 word", 0, b"1"),
}


@pytest.mark.parametrize("where", TAKES)
@pytest.mark.parametrize("lives", [True, False], ids=["alive", "dead"])
def test_r03_r20_a_taker_held_in_the_middle_of_a_take(stage: Stage, path: str, where: str, lives: bool) -> None:
    """Another finds it alive, and waits; or dead, and takes back what did not count."""
    queue(path, b"0", b"1", b"2")
    match, count, expected = TAKES[where]
    one, other = stage["victim"], stage["b"]
    for peer in (one, other):  # both have a slot
        peer("q = mmapds.Queue(path); q.claim().nack(0)", path=path)
    one.hold("q.get()", match, count)
    other.hold("q.get()", "call futex_wait")  # it has looked whether the owner lives
    assert queuefiles.Snapshot(path).words["take_lock"]
    if lives:
        one.go()
        assert one.receive() == b"0"
        expected = b"1"
    else:
        one.kill()
    other.go()
    assert other.receive() == expected, where
    rest = [b"0", b"1", b"2"][int(expected) + 1 :]
    with Queue(path) as q:
        assert list(q) == rest
    queuefiles.check(path)


PUTS = {
    "before the record counts": ("queue_put_one store_relaxed_u64 saved_sequence", []),
    "between": ("queue_put_one store_relaxed_u64 tail_sequence", []),
    "before the tail": ("queue_put_one store_release_u64 tail", []),
    "after it": ("lockword_release exchange_seq_cst_u64 word", [b"new"]),
    "before it wakes": ("queue_wake load_seq_cst_u32 sleepers", [b"new"]),
}


@pytest.mark.parametrize("where", PUTS)
def test_r02_a_putter_killed_while_another_waits_for_its_lock(stage: Stage, path: str, where: str) -> None:
    queue(path, b"0")
    match, left = PUTS[where]
    one, other = stage["victim"], stage["b"]
    for peer in (one, other):
        peer("q = mmapds.Queue(path); q.put(q.get())", path=path)
    one.hold("q.put(b'new')", match)
    if left and "wakes" in where:
        other("q.put(b'other')")
        one.kill()
    else:
        other.hold("q.put(b'other')", "call futex_wait")
        one.kill()
        other.go()
        other.receive()
    with Queue(path) as q:
        assert [q.get() for _ in range(q.qsize())] == [b"0", *left, b"other"]
    queuefiles.check(path)


def test_r02_two_putters_make_the_next_segment_at_once(stage: Stage, path: str) -> None:
    """Held at each call of it, while the other makes it, fills it and goes on to the one after."""
    for count in range(12):
        queue(path, *[bytes(1000)] * 6)
        one, other = stage["a"], stage["b"]
        for peer in (one, other):
            peer("q = mmapds.Queue(path)", path=path)
        try:
            one.hold("q.put(b'new' + bytes(1000))", "", count, CALL)
        except Died:
            one.receive()
            assert count > 5
            break
        # Whatever it is held at, it has no lock but perhaps that for putting: then nobody goes past it.
        if queuefiles.Snapshot(path).words["put_lock"] == 0:
            other("[q.put(b'%d' % n + bytes(1500)) for n in range(12)] and None")
        one.go()
        one.receive()
        found = queuefiles.check(path)
        assert sum(item[:3] == b"new" for item in found.everything()) == 1
        with Queue(path) as q:
            assert len([q.get() for _ in range(q.qsize())]) in (7, 19)
        for peer in (one, other):
            peer("q.close()")
        shutil.rmtree(path)


def test_r03_a_taker_between_its_mark_and_its_sleep(stage: Stage, path: str) -> None:
    """An item comes in between: it must not sleep."""
    queue(path)
    taker, putter = stage["a"], stage["b"]
    for peer in (taker, putter):
        peer("q = mmapds.Queue(path); q.put(b''); q.get() and None", path=path)
    taker.hold("q.get()", "queue_announce store_seq_cst_u32 sleepers")
    taker.go("lockword_try compare_exchange")  # the mark is there; it looks again
    putter("q.put(b'item')")
    with pytest.raises(Died):
        taker.go("call futex_wait")
    assert taker.receive() == b"item"


def test_r03_an_item_between_a_takers_second_look_and_its_sleep(stage: Stage, path: str) -> None:
    """It has seen that there is nothing; then an item comes. The kernel must refuse to let it sleep."""
    queue(path)
    taker, putter = stage["a"], stage["b"]
    for peer in (taker, putter):
        peer("q = mmapds.Queue(path); q.put(b''); q.get() and None", path=path)
    taker.hold("q.get()", "call futex_wait")
    putter("q.put(b'item')")
    with pytest.raises(Died):
        taker.go("call futex_wait")
    assert taker.receive() == b"item"


@pytest.mark.parametrize(
    ("where", "synced"),
    [
        ("QueueView_durable store_relaxed_u64 group", False),
        ("call msync it/N.segment", False),
        ("QueueView_durable store_seq_cst_u64 synced", False),
        ("lockword_release exchange_seq_cst_u64 word", True),
        ("call futex_wake", True),
    ],
)
def test_r02_the_leader_of_a_group_commit_is_killed(stage: Stage, path: str, where: str, synced: bool) -> None:
    """Who waits for its sync takes over, and syncs by itself what nobody has said to be on the disk."""
    queue(path, b"0", durability="power")
    leader, other = stage["victim"], stage["b"]
    for peer in (leader, other):
        peer("q = mmapds.Queue(path); q.put(b'1')", path=path)
    leader.hold("q.put(b'leader')", "call msync it/N.segment")
    other.hold("q.put(b'other')", "call futex_wait it/N.segment")
    if where == "QueueView_durable store_relaxed_u64 group":
        leader.kill()  # as far as others see, the same as before the sync
    else:
        if "msync" not in where:
            leader.go(where)
        leader.kill()
    # The other's item came after the leader had looked which ones its sync is for: it needs one of its own.
    other.go("call msync it/N.segment")
    other.go()
    other.receive()
    with Queue(path) as q:
        assert [q.get() for _ in range(q.qsize())] == [b"0", b"1", b"1", b"leader", b"other"]
    queuefiles.check(path)


def test_r02_who_came_before_the_sync_does_not_sync_again(stage: Stage, path: str) -> None:
    """One sync for both: the second of two has stored its item when the first begins to sync."""
    queue(path, b"0", durability="power")
    leader, other = stage["a"], stage["b"]
    for peer in (leader, other):
        peer("q = mmapds.Queue(path); q.put(b'1')", path=path)
    leader.hold("q.put(b'leader')", "QueueView_durable load_seq_cst_u64 dirtied")
    other.hold("q.put(b'other')", "call futex_wait it/N.segment")
    leader.go("call msync it/N.segment")
    leader.go()
    leader.receive()
    with pytest.raises(Died):
        other.go("call msync it/N.segment")
    other.receive()


# ---- these tests can fail --------------------------------------------------------------------------------------------


def test_a_lock_that_is_taken_from_the_living_is_found(tmp_path: Path) -> None:
    """The lock word is taken over from whoever has it, without a look at its owner's byte."""
    build = failpoints.broken(
        "_native/lockword.h",
        "    if (kernel_lock(fd, F_WRLCK, lockword_byte(dead), 1, 0) != 0)\n        return LOCK_BUSY;",
        "    kernel_lock(fd, F_WRLCK, lockword_byte(dead), 1, 0);",
        "queuetake", "queue", "queueview", "queueput",
    )  # fmt: skip
    path = str(tmp_path / "it")
    queue(path, b"0", b"1")
    with (
        FailPeer(SETUP, folder=tmp_path, path=path) as one,
        FailPeer(SETUP, folder=tmp_path, build=build, path=path) as other,
    ):
        for peer in (one, other):
            peer("q = mmapds.Queue(path); q.claim().nack(0)")
        one.hold("q.get()", "queue_commit store_release_u64 changes")
        with pytest.raises(Died):
            other.hold("q.get()", "call futex_wait")
        first = other.receive()
        one.go()
        assert first == one.receive() == b"0", "one item came twice, as this lock is none"
