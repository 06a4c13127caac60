"""Checks that are met only if something happens in the middle of an operation, one by one: a process is held at a point
by its name while a file is cut, an item is taken or the disk refuses, and goes on.
"""

from __future__ import annotations

import errno
import glob
import os
import signal
import struct
from pathlib import Path

import counterfiles
import failpoints
import pytest
import syncfiles
from failpoints import Died
from peers import PeerError
from stages import Stage
from victims import pattern

from mmapds import (
    Counters,
    Queue,
    Synchronizer,
)

WHY = failpoints.missing()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))


def cut(path: str | Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(0)


def outcome(stage: Stage, name: str = "held") -> str:
    """What the peer that goes on is told; it has nothing left that could be closed in peace."""
    with pytest.raises(PeerError) as caught:
        stage[name].receive()
    stage.drop(name)
    return str(caught.value.name)


@pytest.mark.parametrize("what", ["c.reserve('name', 3)", "c.counter('name').reserve(3)"])
def test_r09_cells_that_go_before_numbers_are_reserved(stage: Stage, path: str, what: str) -> None:
    """They would be numbers that others have."""
    with Counters(path, 4) as c:
        c["name"] = 5
    stage["held"]("c = mmapds.Counters(path)", path=path)
    stage["held"].hold(what, "compare_exchange")
    cut(path)
    stage["held"].go()
    assert outcome(stage) == "MappingLost"


CRATE = "s = mmapds.Synchronizer(path, codec='raw', protocol='mmap-sync'); s.write_bytes(b'x')"
QUEUE = "q = mmapds.Queue(path, codec='raw'{}); q.put_many([b'0', b'1']); c = q.claim()"
POWER = QUEUE.format(", durability='power'")
IN_THE_MIDDLE = {
    "release": (
        "r = mmapds.Region.open(path, 4096); l = r.lock(0); l.acquire()",
        "l.release()",
        "lockword_release",
        "",
    ),
    "crate": (CRATE, "s.write_bytes(b'y')", "write_locked store_seq_cst_u64", "_state"),
    "put_many": (QUEUE.format(""), "q.put_many([b'x', b'y'])", "queue_put_one store", "/meta"),
    "durable, segment": (POWER, "q.put(b'x')", "call msync", "/*.segment"),
    "durable, meta": (POWER, "q.put(b'x')", "call msync", "/meta"),
    "ack": (QUEUE.format(""), "c.ack()", "queue_commit", "/*.segment"),
    "flush": ("c = mmapds.Counters(path, 4); c['x'] = 1", "c.flush()", "call msync", ""),
    "names": ("c = mmapds.Counters(path, 4); c['x'] = 1", "c.add('new')", "counters_create store", ""),
}


@pytest.mark.parametrize("case", IN_THE_MIDDLE)
def test_r09_an_operation_in_whose_middle_the_file_is_cut(stage: Stage, path: str, case: str) -> None:
    """It is told, not the next one."""
    prepare, job, point, name = IN_THE_MIDDLE[case]
    peer = stage["held"]
    peer(prepare, path=path)
    peer.hold(job, point)
    (file,) = glob.glob(path + name)
    cut(file)
    peer.go()
    assert outcome(stage) == "MappingLost"


@pytest.mark.parametrize("how", ["cut", "changed"])
def test_r09_r16_a_file_that_is_cut_or_changed_while_it_is_recovered(stage: Stage, path: str, how: str) -> None:
    """The sizes of the extents are those that were checked when they were mapped."""
    with Counters(path, 4) as c:
        c["x"] = 5
    counterfiles.other_boot(path)
    peer = stage["held"]
    peer.hold("c = mmapds.Counters(path)", "counters_names load", 3, path=path)
    if how == "cut":
        cut(path)
    else:
        counterfiles.poke_word(path, counterfiles.EXTENTS + 8, 1 << 40)
    peer.go()
    assert outcome(stage) == ("MappingLost" if how == "cut" else "CorruptionError")


@pytest.mark.parametrize("failed", ["this", "another"])
def test_r12_numbers_that_are_not_on_the_disk_are_not_handed_out(stage: Stage, path: str, failed: str) -> None:
    with Counters(path, 4, durability="power") as c:
        c["name"] = 5
    peer = stage["held"]
    peer("c = mmapds.Counters(path)", path=path)
    peer.hold("c.reserve('name', 3)", "call msync")
    if failed == "this":
        peer.fail(errno.EIO)
    else:
        counterfiles.poke_word(path, counterfiles.FAILED, 1)
        peer.go()
    with pytest.raises(PeerError) as caught:
        peer.receive()
    assert caught.value.name == "DurabilityFailed"
    with pytest.raises(PeerError, match="DurabilityFailed"):
        peer("c.reserve('name', 3)")
    with pytest.raises(PeerError, match="DurabilityFailed"):
        peer("c.add('new')")
    with Counters(path) as c:
        assert "new" not in c


def test_r09_a_private_copy_of_cells_that_go(stage: Stage, path: str) -> None:
    with Counters(path, 4) as c:
        c[1] = 5
    peer = stage["held"]
    peer.hold("mmapds.Counters(path, mode='private')[1]", "copy store_relaxed_u64", path=path)
    with open(path, "r+b") as file:
        file.truncate(8192)
    peer.go()
    assert outcome(stage) == "MappingLost"


@pytest.mark.parametrize("how", ["no extent", "more cells"])
def test_r16_extents_that_change_while_a_private_copy_is_made(stage: Stage, path: str, how: str) -> None:
    """They were mapped by what they said before: each point at which their place is looked for."""
    with Counters(path, 4) as c:
        c[1] = 5
    whole = Path(path).read_bytes()
    cells, names = struct.unpack_from("<2Q", whole, counterfiles.EXTENTS)
    check = counterfiles.extent_check(0, 4 * cells, names, counterfiles.identity(path))
    changed = bytes(32) if how == "no extent" else struct.pack("<4Q", 4 * cells, names, 0, check)
    peer, found = stage["held"], []
    for number in range(100):
        try:
            peer.hold("mmapds.Counters(path, mode='private')[1]", "call mmap", number, path=path)
        except Died:
            assert peer.receive() == 5
            break
        syncfiles.poke(path, counterfiles.EXTENTS, changed)
        peer.go()
        try:
            found.append(peer.receive())
        except PeerError as error:
            found.append(f"{error.name}: {error}")
        finally:
            Path(path).write_bytes(whole)
    assert all(each == 5 or each.startswith("CorruptionError") for each in found), found
    assert any("its extents change" in str(each) for each in found), found


def test_a_part_of_the_file_that_cannot_be_mapped(stage: Stage, path: str) -> None:
    with Counters(path, 4) as c:
        c["name"] = 5
    peer = stage["a"]
    for number in range(3):  # the control page, the cells, the entries
        peer.hold("mmapds.Counters(path)['name']", "call mmap", number, path=path)
        assert "Cannot allocate memory" in peer.refused(errno.ENOMEM)[1]
    assert peer("c = mmapds.Counters(path); c['name']") == 5


def test_a_flush_of_a_region_that_the_disk_refuses(stage: Stage, path: str) -> None:
    peer = stage["a"]
    peer("r = mmapds.Region.open(path, 4096); r[0] = 1", path=path)
    peer.hold("r.flush()", "call msync")
    assert "Input/output error" in peer.refused()[1]


def test_a_long_value_that_the_disk_does_not_take(stage: Stage, path: str) -> None:
    with Synchronizer(path, codec="raw", durability="power") as s:
        s.write_bytes(b"x" * 200_000)
    peer = stage["a"]
    peer("w = mmapds.Synchronizer(path)\nfor n in range(3): w.write_bytes(b'y' * 200_000)", path=path)
    peer.hold("w.write_bytes(b'z' * 200_000)", "call pwrite")
    name, message = peer.refused()
    assert (name, "Input/output error" in message) == ("OSError", True)
    with Synchronizer(path) as s:
        assert bytes(s.load()) == b"y" * 200_000


@pytest.mark.parametrize("number", [0, 1], ids=["value", "version"])
def test_r12_a_version_that_the_disk_does_not_take(stage: Stage, path: str, number: int) -> None:
    with Synchronizer(path, codec="raw", durability="power") as s:
        s.write_bytes(b"first")
    peer = stage["a"]
    peer("w = mmapds.Synchronizer(path); w.write_bytes(b'second'); w.write_bytes(b'third')", path=path)
    peer.hold("w.write_bytes(b'fourth')", "call msync", number)
    assert peer.refused()[0] == "DurabilityFailed"
    assert syncfiles.sequence(path) == 3 + number


def test_an_extent_for_which_the_disk_has_no_room(stage: Stage, path: str) -> None:
    with Counters(path, 4) as c:
        c["name"] = 5
    peer = stage["a"]
    peer("c = mmapds.Counters(path)", path=path)
    assert "fallocate" in peer.hold("for n in range(2000): c.add(str(n))", "fallocate")
    assert "Input/output error" in peer.refused()[1]
    assert peer("c.add('name')") == 6


def test_r12_a_segment_that_a_put_of_many_leaves_and_the_disk_does_not_take(stage: Stage, path: str) -> None:
    with Queue(path, codec="raw", segment_size=1 << 16, durability="power") as q:
        q.put(b"first")
    peer = stage["a"]
    peer("q = mmapds.Queue(path)", path=path)
    peer.hold("q.put_many([bytes(50_000)] * 3)", "call msync")
    assert peer.refused()[0] == "DurabilityFailed"


def test_r09_words_whose_page_goes_when_somebody_falls_asleep(stage: Stage, path: str) -> None:
    """The kernel cannot look at the word, and says EFAULT: that is a lost mapping."""
    peer = stage["held"]
    peer("r = mmapds.Region.open(path, 8192); word = r.atomic(4096)", path=path)
    peer.hold("word.wait(0, 5)", "call futex_wait")
    cut(path)
    peer.go()
    assert outcome(stage) == "MappingLost"


def test_r09_a_version_whose_page_goes_when_somebody_falls_asleep(stage: Stage, path: str) -> None:
    with Synchronizer(path, codec="raw") as s:
        s.write_bytes(b"x")
    peer = stage["held"]
    peer("s = mmapds.Synchronizer(path)", path=path)
    peer.hold("s.wait(1, 5)", "call futex_wait")
    cut(syncfiles.sync(path))
    peer.go()
    assert outcome(stage) == "MappingLost"


def test_a_long_item_that_another_consumer_takes_first(stage: Stage, path: str) -> None:
    """It is got by a claim, because its bytes are copied without the lock: somebody may come between."""
    with Queue(path, codec="raw") as q:
        q.put(bytes(1 << 20))
    slow, fast = stage["a"], stage["b"]
    for peer in (slow, fast):
        peer("q = mmapds.Queue(path)", path=path)
    slow.hold("q.get_nowait()", "lockword_try compare_exchange", 4)  # its place, two looks, its size
    assert len(fast("q.get_nowait()")) == 1 << 20
    slow.go()
    with pytest.raises(PeerError, match="Empty"):
        slow.receive()


# ---- the queue -----------------------------------------------------------------------------------------------------


def tired(stage: Stage, path: str) -> None:
    """A queue with one item, which has been tried as often as it may, by one who is dead."""
    with Queue(path, codec="raw", max_attempts=1):
        pass
    stage["a"]("q = mmapds.Queue(path); q.put(b'first'); q.get(); q.put(b'item')", path=path)
    stage["victim"]("q = mmapds.Queue(path); c = q.claim()", path=path)


@pytest.mark.parametrize("take", ["get_nowait()", "get_many(2, False)", "claim(timeout=0)", "claim_many(2, timeout=0)"])
def test_r20_an_item_that_is_tired_is_not_handed_out(stage: Stage, path: str, take: str) -> None:
    tired(stage, path)
    other = stage["a"]
    stage["victim"].kill()
    assert other.fails(f"q.{take}")[0] == "Empty"
    assert other("[q.stats()[name] for name in ('dead', 'claimed', 'items')]") == [1, 0, 0]


@pytest.mark.parametrize("take", ["get(timeout=0.6)", "claim(timeout=0.6)"])
def test_r20_an_item_that_is_tired_is_not_handed_out_to_who_waits(stage: Stage, path: str, take: str) -> None:
    tired(stage, path)
    other = stage["a"]
    other.hold(f"q.{take}", "call futex_wait")
    stage["victim"].kill()
    other.go()
    with pytest.raises(PeerError, match="Empty"):
        other.receive()
    assert other("[q.stats()[name] for name in ('dead', 'claimed', 'items')]") == [1, 0, 0]


def test_a_consumer_that_waits_gets_an_item_that_is_longer_than_it_thought(stage: Stage, path: str) -> None:
    producer, consumer = stage["a"], stage["b"]
    producer("q = mmapds.Queue(path, codec='raw')", path=path)
    consumer("q = mmapds.Queue(path)", path=path)
    consumer.hold("q.get(timeout=5)", "call futex_wait")
    producer("q.put(b'x' * 50_000)")
    consumer.go()
    assert consumer.receive() == b"x" * 50_000


def test_a_segment_that_comes_too_late(stage: Stage, path: str) -> None:
    """Others have made it, filled it, and finished it meanwhile: it must not get the name."""
    with Queue(path, codec="raw", segment_size=1 << 16) as q:
        q.put(bytes(60_000))
    slow, fast = stage["a"], stage["b"]
    for peer in (slow, fast):
        peer("q = mmapds.Queue(path)", path=path)
    slow.hold("q.put(b'late' * 15_000)", "call pwrite")
    fast("for _ in range(2): q.put(bytes(60_000))")
    fast("for _ in range(3): assert q.get_nowait() == bytes(60_000)")
    slow.go()
    slow.receive()
    assert fast("q.get_nowait() == b'late' * 15_000, q.qsize()") == (True, 0)


def test_r28_a_claim_that_a_signal_comes_into_is_not_left_behind(stage: Stage, path: str) -> None:
    """It waits for the lock, and the signal comes when it has it: who is interrupted does not keep the item."""
    with Queue(path, codec="raw") as q:
        q.put_many([b"first", b"item"])
    owner, waiter = stage["a"], stage["b"]
    for peer in (owner, waiter):
        peer("q = mmapds.Queue(path); q.claim().nack()", path=path)
    owner.hold("q.claim().item", "queue_commit")
    waiter.hold("c = q.claim().item", "call futex_wait")
    owner.go()
    owner.receive()
    waiter.go("queue_commit")
    os.kill(waiter.pid, signal.SIGINT)
    waiter.go()
    with pytest.raises(PeerError, match="KeyboardInterrupt"):
        waiter.receive()
    assert waiter("q.stats()['claimed']") == 0


def test_r06_a_value_is_synced_before_its_version_is_published_and_then_that(stage: Stage, path: str) -> None:
    with Synchronizer(path, codec="raw", durability="power") as s:
        s.write_bytes(b"first")
    peer = stage["a"]
    peer("w = mmapds.Synchronizer(path); w.write_bytes(b'second'); w.write_bytes(b'third')", path=path)
    assert "data" in peer.hold("w.write_bytes(b'fourth')", "call msync")
    assert syncfiles.sequence(path) == 3
    assert "sync" in peer.go("call msync").split("call msync")[1]
    assert syncfiles.sequence(path) == 4
    peer.go()
    peer.receive()


def test_r05_a_copying_reader_of_another_boots_file_that_comes_to_life_meanwhile(stage: Stage, path: str) -> None:
    """The V that it looks at is its own copy: it says nothing about who writes into the data that it copies."""
    with Synchronizer(path, codec="raw") as s:
        s.write_bytes(pattern(1))
        s.write_bytes(pattern(2))
    syncfiles.other_boot(syncfiles.sync(path))
    reader, writer = stage["a"], stage["b"]
    reader("s = mmapds.Synchronizer(path, mode='readonly')", path=path)
    reader.hold("number(s.load())", "call mmap data")
    writer("w = mmapds.Synchronizer(path); w.write_bytes(pattern(3)); w.write_bytes(pattern(4))", path=path)
    reader.go()
    assert reader.receive() == 4
