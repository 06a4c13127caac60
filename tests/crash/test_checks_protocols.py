"""What each check of the native protocols is for (rows 2, 3, 9, 10, 12, 15, 16 and 20): where it alone stands between a
death, a failure, a cut, or hostile bytes, and what is wrong.

Other tests meet most of these checks together with one behind it that would notice too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import counterfiles
import failpoints
import pytest
import queuefiles
import syncfiles
import xxhash
from failpoints import FailPeer
from peers import PeerError
from stages import Stage

from mmapds import CorruptionError, Counters, Queue

WHY = failpoints.missing()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))

NOWHERE = 0x7FFFFFFF  # the number of no entry


def says(peer: FailPeer, code: str | None = None) -> str:
    """The class of what the code raises; or, without one, of what becomes of the code that was held."""
    try:
        peer.receive() if code is None else peer(code)
    except PeerError as error:
        return error.name
    return ""


# ---- the Synchronizer ----------------------------------------------------------------------------------------------


def test_r09_a_pin_that_is_cut_out_of_a_page_is_not_taken_for_none(stage: Stage, path: str) -> None:
    """The slots behind the cut are zeros, and the page with the marks of who is there is whole."""
    first, reader, writer = stage["a"], stage["held"], stage["c"]
    writer("w = mmapds.Synchronizer(path, codec='raw'); w.write_bytes(pattern(1))", path=path)
    first("s = mmapds.Synchronizer(path); s.read().release()", path=path)
    reader("s = mmapds.Synchronizer(path); r = s.read()", path=path)
    (slot,) = syncfiles.pins(path)
    assert slot, "it must not begin a page"
    writer("w.write_bytes(pattern(2))")
    os.truncate(syncfiles.sync(path), syncfiles.SLOTS + slot * syncfiles.SLOT_SIZE)
    assert says(writer, "w.write_bytes(pattern(3), grace=0.0)") == "MappingLost"
    assert reader("number(r.data)") == 1, "it was overwritten under who reads it"
    for name in ("a", "held", "c"):
        stage.drop(name)


# ---- Counters ------------------------------------------------------------------------------------------------------


def held_at_names(stage: Stage, path: str, code: str, **options: Any) -> FailPeer:
    """A process that has looked for a name, and is about to take the lock of the names. `x` is there, and `gone` is not
    any more."""
    with Counters(path, 4, **options) as c:
        c["x"], c["gone"] = 5, 6
        c.remove("gone")
    peer = stage["held"]
    peer("c = mmapds.Counters(path); 'x' in c", path=path)
    peer.hold(code, "call lock")
    return peer


def test_a_value_is_set_although_somebody_else_made_the_name_meanwhile(stage: Stage, path: str) -> None:
    peer = held_at_names(stage, path, "c['new'] = 7")
    with Counters(path) as c:
        c["new"] = 1
        peer.go()
        peer.receive()
        assert c["new"] == 7


def test_r15_no_name_is_made_behind_one_that_is_damaged(stage: Stage, path: str) -> None:
    peer = held_at_names(stage, path, "c['mine'] = 7")
    with Counters(path) as c:
        c["new"] = 1
    entry = counterfiles.Snapshot(path).entry(2)
    assert entry.name == "new"
    counterfiles.flip(path, 8 * (entry.offset + 18))
    peer.go()
    assert says(peer) == "CorruptionError"
    assert counterfiles.Snapshot(path).names == 3


def test_a_name_that_was_removed_after_an_addition_stays_removed(stage: Stage, path: str) -> None:
    """Its value had the addition in it, so there is nothing for which it should come back."""
    with Counters(path, 4) as c:
        c["x"] = 5
    peer = stage["a"]
    peer("c = mmapds.Counters(path); 'x' in c", path=path)
    peer.hold("c.add('x', 3)", "counters_current load_seq_cst_u64", 1)
    with Counters(path) as c:
        assert c.pop("x") == 8
        peer.go()
        assert peer.receive() == 8
        assert "x" not in c


@pytest.mark.parametrize("size", [0, counterfiles.CONTROL])
def test_r09_a_file_that_is_cut_when_a_name_is_about_to_be_made(stage: Stage, path: str, size: int) -> None:
    peer = held_at_names(stage, path, "c['new'] = 7")
    os.truncate(path, size)
    peer.go()
    assert says(peer) == "MappingLost"
    if size:
        content = Path(path).read_bytes()
        names = int.from_bytes(content[counterfiles.NAMES : counterfiles.NAMES + 4], "little")
        assert names == 2, "a name counts whose entry is not in the file"
    stage.drop("held")


def test_r12_a_name_that_cannot_be_synced_does_not_count(stage: Stage, path: str) -> None:
    with Counters(path, 4, durability="power") as c:
        c["x"] = 5
    peer = stage["a"]
    peer("c = mmapds.Counters(path)", path=path)
    peer.hold("c['new'] = 7", "call fdatasync")
    peer.fail(errno.EIO)
    assert says(peer) == "DurabilityFailed"
    with Counters(path) as c:
        assert dict(c.items()) == {"x": 5}
        c.flush()


def full_of_names(path: str) -> None:
    """The next name needs an extent, and who began to make it has died, and left what is not zero."""
    with Counters(path, 4) as c:
        c["x"] = 5
        room = sum(extent.entries for extent in counterfiles.Snapshot(path).extents)
        for n in range(room - 1):
            c[f"name {n}"] = n
    with open(path, "ab") as file:
        file.write(b"\xff" * 3 * counterfiles.PAGE)


def test_an_extent_whose_bytes_cannot_be_made_zeros_is_not_added(stage: Stage, path: str) -> None:
    full_of_names(path)
    before = counterfiles.Snapshot(path)
    peer = stage["a"]
    peer("c = mmapds.Counters(path)", path=path)
    peer.hold("c['new'] = 7", "call pwrite")
    peer.fail(errno.EIO)
    assert says(peer) == "OSError"
    after = counterfiles.Snapshot(path)
    assert (len(after.extents), after.names) == (len(before.extents), before.names)


def test_r10_a_disk_without_room_is_not_asked_for_any(mount: Callable[..., Path]) -> None:
    """Others may need the last blocks, for the moment until they are given back."""
    disk = mount("tmpfs", "size=4m")
    path = str(disk / "it")
    full_of_names(path)
    os.truncate(path, counterfiles.Snapshot(path).extents[-1].end)
    with open(disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with FailPeer("c = mmapds.Counters(path)", folder=disk, path=path) as peer:
        peer("failpoints.arm('record', 0, 7)")
        assert says(peer, "c['new'] = 7") == "OSError"
        peer("failpoints.disarm()")
        assert not [point for point in peer.seen() if "fallocate" in point]


def test_r16_a_name_that_has_gone_without_being_counted_is_not_removed(path: str) -> None:
    with Counters(path, 4) as c:
        c["x"] = 5
        assert c["x"] == 5
        counterfiles.poke(path, counterfiles.Snapshot(path).entry(0).offset, b"removed ")
        with pytest.raises(CorruptionError):
            c.remove("x")
        assert c.view()[4] == 5


# ---- the queue: locks ----------------------------------------------------------------------------------------------

WHILE_LOCKED = {
    "ack": ("c = q.claim()", "c.ack()"),
    "nack": ("c = q.claim()", "c.nack()"),
    "touch": ("c = q.claim()", "c.touch(60)"),
    "task_done": ("q.get()", "q.task_done()"),
    "claim, by a new handle": ("", "c = q.claim()"),
    "close": ("c = q.claim()", "q.close()"),
    "purge of what came back": ("q.claim().nack()", "q.purge()"),
    "giving up a damaged record": ("", "q._skip(head, head, 0)"),
    "giving up a damaged entry": ("", "q._discard(1, 0)"),
}


@pytest.mark.parametrize("job", WHILE_LOCKED)
def test_r20_who_takes_waits_as_long_as_another_is_in_the_middle(stage: Stage, path: str, job: str) -> None:
    """Not only once: nobody has to be done within the time after which it is looked whether he lives."""
    prepare, code = WHILE_LOCKED[job]
    with Queue(path, codec="raw") as q:
        q.put_many([b"first", b"second"])
    owner, waiter = stage["a"], stage["b"]
    owner("q = mmapds.Queue(path); c = q.claim()", path=path)
    waiter(f"q = mmapds.Queue(path)\n{prepare}", path=path)
    waiter("head = where", where=queuefiles.Snapshot(path).words["head"])
    owner.hold("c.touch(60)", "queue_log store_relaxed_u64 logged")
    waiter.hold(code, "call futex_wait")
    for _ in range(2):
        waiter.go("call futex_wait")
    owner.go()
    owner.receive()
    waiter.go()
    waiter.receive()
    queuefiles.check(path)


def test_r20_who_puts_waits_as_long_as_another_is_in_the_middle(stage: Stage, path: str) -> None:
    with Queue(path, codec="raw"):
        pass
    owner, waiter = stage["a"], stage["b"]
    for peer in (owner, waiter):
        peer("q = mmapds.Queue(path)", path=path)
    owner.hold("q.put(b'first')", "queue_put_one store_relaxed_u64 saved_sequence")
    waiter.hold("q.put(b'second')", "call futex_wait")
    for _ in range(2):
        waiter.go("call futex_wait")
    for peer in (owner, waiter):
        peer.go()
        peer.receive()
    assert queuefiles.check(path).waiting() == [b"first", b"second"]


def test_r03_who_looks_for_the_dead_waits_as_long_as_another_is_in_the_middle(stage: Stage, path: str) -> None:
    """Else it has found nobody, and says that the queue is empty."""
    with Queue(path, codec="raw") as q:
        q.put_many([b"first", b"second"])
    owner, victim, waiter = stage["a"], stage["victim"], stage["b"]
    owner("q = mmapds.Queue(path); c = q.claim()", path=path)
    victim("q = mmapds.Queue(path); c = q.claim()", path=path)
    waiter("q = mmapds.Queue(path)", path=path)
    victim.kill()
    owner.hold("c.touch(60)", "queue_log store_relaxed_u64 logged")
    waiter.hold("q._tend()", "call futex_wait")
    for _ in range(2):
        waiter.go("call futex_wait")
    for peer in (owner, waiter):
        peer.go()
        peer.receive()
    assert queuefiles.check(path).waiting() == [b"second"]


def test_two_threads_of_a_handle_that_take_their_first_items_have_one_place(stage: Stage, path: str) -> None:
    with Queue(path, codec="raw") as q:
        q.put_many([b"first", b"second"])
    peer = stage["a"]
    peer(
        """
import os, threading, time
q = mmapds.Queue(path)
mine = []
def other():
    while not os.path.exists(path + ".go"):
        time.sleep(0.001)
    mine.append(q.claim())
    os.unlink(path + ".go")
thread = threading.Thread(target=other)
thread.start()
""",
        path=path,
    )
    peer.hold("c = q.claim()", "lockword_try compare_exchange_seq_cst_u64")
    Path(path + ".go").touch()
    limit = time.monotonic() + 60
    while os.path.exists(path + ".go"):
        assert time.monotonic() < limit, "the other thread has not claimed anything"
        time.sleep(0.001)
    peer.go()
    peer.receive()
    peer("thread.join()")
    assert len([token for token, *_ in queuefiles.check(path).slots() if token]) == 1


def test_r02_a_producer_that_dies_before_its_item_counts_leaves_the_numbers_as_they_were(
    stage: Stage, path: str
) -> None:
    with Queue(path, codec="raw"):
        pass
    victim = stage["victim"]
    victim("q = mmapds.Queue(path); q.put_many([b'first', b'second'])", path=path)
    victim.hold("q.put(b'lost')", "queue_put_one store_release_u64 tail")
    victim.kill()
    with Queue(path) as q:
        q.put(b"third")
        assert queuefiles.check(path).waiting() == [b"first", b"second", b"third"]


# ---- the queue: looks without a lock -------------------------------------------------------------------------------


def test_what_is_looked_at_in_the_middle_of_a_change_is_looked_at_again(stage: Stage, path: str) -> None:
    """For a moment, an item that the head passes is in two places."""
    with Queue(path, codec="raw", maxsize=2) as q:
        q.put(b"first")
        q.put(b"later", delay=60)
    producer, taker = stage["a"], stage["b"]
    for peer in (producer, taker):
        peer("q = mmapds.Queue(path)", path=path)
    taker("q.get()")
    producer.hold("q.put(b'item', block=False)", "queue_tail load_acquire_u64")
    taker.hold("q.get(block=False)", "queue_log store_relaxed_u64 logged", 8)
    words = queuefiles.Snapshot(path).words
    assert (words["timed"], words["tail_sequence"] - words["head_sequence"]) == (1, 1), words
    producer.go("queue_begin_look load_acquire_u64")
    taker.go()
    assert says(taker) == "Empty"
    producer.go()
    producer.receive()
    assert queuefiles.check(path).waiting() == [b"later", b"item"]


def test_a_look_that_nobody_disturbs_is_enough(stage: Stage, path: str) -> None:
    with Queue(path, codec="raw", maxsize=2):
        pass
    peer = stage["a"]
    peer("q = mmapds.Queue(path); q.put(b'first')", path=path)
    peer("failpoints.arm('record', 0, 7)\nq.put(b'item')\nfailpoints.disarm()")
    assert sum("queue_begin_look load_acquire_u64" in point and "changes" in point for point in peer.seen()) == 1


# ---- the queue: what is cut, and what cannot be synced ---------------------------------------------------------------


def segment_of(path: str) -> str:
    (number,) = queuefiles.segments(path)
    return queuefiles.segment(path, number)


@pytest.mark.parametrize(
    ("prepare", "size", "code"),
    [
        ("", 0, "q.put(b'small')"),
        ("", 0, "q.put(bytes(50_000))"),
        ("", 0, "q.put(bytes(100_000))"),
        ("", 0, "q.get(block=False)"),
        ("q.claim().nack()", 0, "q.get(block=False)"),
        ("", 2 * queuefiles.PAGE, "q.get(block=False)"),
    ],
    ids=["put", "put into the next segment", "put of a large item", "get", "get of what came back", "get of its rest"],
)
def test_r09_who_meets_a_segment_that_was_cut_changes_nothing(
    stage: Stage, path: str, prepare: str, size: int, code: str
) -> None:
    with Queue(path, codec="raw", segment_size=1 << 16) as q:
        q.put(b"taken")
        q.put(os.urandom(20_000))
    peer = stage["a"]
    peer(f"q = mmapds.Queue(path); q.get()\n{prepare}", path=path)
    before = queuefiles.Snapshot(path).words
    os.truncate(segment_of(path), size)
    assert says(peer, code) == "MappingLost"
    after = {name: queuefiles.word(queuefiles.meta(path), at) for name, at in queuefiles.WORDS.items()}
    for name in ("head", "head_sequence", "tail", "tail_sequence", "ready", "logged", "take_lock", "put_lock"):
        assert after[name] == before[name], name
    assert queuefiles.word(queuefiles.meta(path), queuefiles.TALLIES + 4 * 8) == 0, "it was set aside"
    stage.drop("a")


@pytest.mark.parametrize(
    ("before", "size"), [(50_000, 50_000), (0, 61_368)], ids=["for the next one", "when it is full"]
)
def test_r12_a_segment_that_cannot_be_synced_is_not_left(stage: Stage, path: str, before: int, size: int) -> None:
    with Queue(path, codec="raw", segment_size=1 << 16, durability="power") as q:
        if before:
            q.put(bytes(before))
    peer = stage["a"]
    peer("q = mmapds.Queue(path)", path=path)
    words = queuefiles.Snapshot(path).words
    peer.hold(f"q.put(bytes({size}))", "call msync segment")
    peer.fail(errno.EIO)
    assert says(peer) == "DurabilityFailed"
    after = queuefiles.Snapshot(path).words
    assert (after["tail"], after["tail_sequence"]) == (words["tail"], words["tail_sequence"])


# ---- the queue: hostile bytes ----------------------------------------------------------------------------------------


def entry_at(number: int, field: str) -> int:
    """Where a field of an entry is in meta."""
    at = {
        "position": 0, "sequence": 8, "size": 16, "due": 24, "fence": 48, "segment_previous": 56, "segment_next": 60,
        "own_previous": 64, "own_next": 68, "heap_at": 80, "kind": 84, "timed_cell": 88, "ready_cell": 92,
    }  # fmt: skip
    return queuefiles.ENTRIES + (number - 1) * queuefiles.ENTRY + at[field]


def poke_half(path: str, number: int, field: str, value: int) -> None:
    queuefiles.poke(queuefiles.meta(path), entry_at(number, field), value.to_bytes(4, "little"))


def poke_word(path: str, name: str, value: int) -> None:
    queuefiles.poke_word(queuefiles.meta(path), queuefiles.WORDS[name], value)


def unchanged(path: str) -> tuple[object, ...]:
    """What a transition that was taken back has left as it was."""
    found = queuefiles.Snapshot(path)
    words = {name: value for name, value in found.words.items() if name not in ("changes", "fences", "looked")}
    return words, found.entries, found.slots()


def refused(stage: Stage, path: str, code: str = "q.get(block=False)") -> None:
    """It is said, and nothing has changed."""
    before = unchanged(path)
    assert says(stage["a"], code) == "CorruptionError"
    assert unchanged(path) == before


def taker(stage: Stage, path: str, code: str = "", items: int = 3) -> FailPeer:
    """A handle that has taken an item before."""
    with Queue(path, codec="raw") as q:
        q.put_many([b"taken", *(b"item %d" % n for n in range(items))])
    peer = stage["a"]
    peer(f"q = mmapds.Queue(path); q.get()\n{code}", path=path)
    return peer


BACK = "claims = [q.claim() for n in range(3)]\nfor c in claims: c.nack()"


def test_r16_a_transition_that_finds_a_list_damaged_is_taken_back(stage: Stage, path: str) -> None:
    taker(stage, path, BACK)
    poke_half(path, 1, "segment_next", NOWHERE)
    refused(stage, path)


def test_r16_a_lease_that_ends_in_a_damaged_list_is_taken_back(stage: Stage, path: str) -> None:
    taker(stage, path, "c = q.claim(lease=0.001); import time; time.sleep(0.01)")
    poke_half(path, 1, "own_next", NOWHERE)
    refused(stage, path)


def test_r16_a_delay_for_which_there_is_no_entry_is_taken_back(stage: Stage, path: str) -> None:
    taker(stage, path, "q.put(b'later', delay=60)", items=0)
    poke_word(path, "free", NOWHERE)
    refused(stage, path)


def test_r16_a_dead_holder_whose_list_is_damaged_is_left_as_it_was(stage: Stage, path: str) -> None:
    taker(stage, path, items=1)
    victim = stage["victim"]
    victim("q = mmapds.Queue(path); c = q.claim()", path=path)
    victim.kill()
    poke_half(path, 1, "own_next", NOWHERE)
    refused(stage, path)


def test_r16_an_entry_that_is_not_where_it_says_in_its_heap(stage: Stage, path: str) -> None:
    taker(stage, path, BACK)
    poke_half(path, 1, "heap_at", 2)
    refused(stage, path)


def test_r16_an_item_that_is_claimed_and_said_to_wait(stage: Stage, path: str) -> None:
    taker(stage, path, items=1)
    holder = stage["b"]
    holder("q = mmapds.Queue(path); c = q.claim()", path=path)
    poke_word(path, "ready", 1)
    poke_half(path, 1, "ready_cell", 1)
    poke_half(path, 1, "heap_at", 1)
    refused(stage, path)


def test_r16_an_item_that_is_in_both_heaps(stage: Stage, path: str) -> None:
    """What is over would be over again, for ever."""
    taker(stage, path, "q.claim().nack()", items=1)
    poke_word(path, "timed", 1)
    poke_half(path, 1, "timed_cell", 1)
    queuefiles.poke_word(queuefiles.meta(path), entry_at(1, "due"), 1)
    refused(stage, path)


def test_r16_a_log_that_is_longer_than_there_is_room(stage: Stage, path: str) -> None:
    """Nothing is logged behind its end, where others' words are."""
    taker(stage, path)
    for length in (queuefiles.SLOTS, 1 << 40):
        poke_word(path, "logged", length)
        poke_word(path, "take_lock", 0)
        for _ in range(2):
            assert says(stage["a"], "q.get(block=False)") == "CorruptionError"


def test_r16_a_log_that_is_longer_than_there_is_room_is_not_taken_back(stage: Stage, path: str) -> None:
    """What would be its next pair is the slot of a holder."""
    with Queue(path, codec="raw") as q:
        q.put(b"item")
    stage["a"]("q = mmapds.Queue(path)", path=path)
    meta, where = queuefiles.meta(path), queuefiles.WORDS["stamps"]
    length = (queuefiles.SLOTS - queuefiles.UNDO) // 16
    queuefiles.poke(meta, queuefiles.UNDO, struct.pack("<2Q", where, 7) * (length + 1))
    poke_word(path, "logged", length + 1)
    poke_word(path, "take_lock", 1 << 30)  # somebody has died
    refused(stage, path)


def test_r16_a_record_at_a_place_where_none_can_be(stage: Stage, path: str) -> None:
    """It is right but for that: made of the bytes of another."""
    with Queue(path, codec="raw") as q:
        q.put(b"taken")
        q.put(bytes(400))
    stage["a"]("q = mmapds.Queue(path); q.get(); q.claim().nack()", path=path)
    found = queuefiles.Snapshot(path)
    position, start = found.entries[0].position + 100, found.entries[0].position // found.segment_size
    payload = b"not put"
    record = (
        xxhash.xxh3_64_intdigest(payload), found.entries[0].sequence << 8, len(payload) | found.words["epoch"] << 40, 0,
    )  # fmt: skip
    check = queuefiles.item_check(record, position, found.key)
    state = queuefiles.item_state(1, 0, (0, 0, 0), position, found.key)
    head = struct.pack("<9Q", check, *record, state, 0, 0, 0)
    queuefiles.poke(segment_of(path), position - start * found.segment_size, head + payload)
    queuefiles.poke_word(queuefiles.meta(path), entry_at(1, "position"), position)
    assert says(stage["a"], "q.get(block=False)") == "CorruptionError"


def test_a_handle_whose_place_is_gone_takes_another_before_it_takes_an_item(stage: Stage, path: str) -> None:
    """What it holds in a place that is nobody's would come back to nobody."""
    taker(stage, path)
    queuefiles.poke_word(queuefiles.meta(path), queuefiles.SLOTS, 0)
    stage["a"]("c = q.claim()")
    queuefiles.check(path)


def test_a_queue_with_a_living_handle_in_each_place(stage: Stage, path: str) -> None:
    with Queue(path, codec="raw") as q:
        q.put_many([b"first", b"second"])
    stage["b"]("q = mmapds.Queue(path); c = q.claim()", path=path)
    stage["a"]("q = mmapds.Queue(path)", path=path)
    places = 1024
    slot = struct.pack("<8Q", queuefiles.Snapshot(path).slots()[0][0], *[0] * 7)
    queuefiles.poke(queuefiles.meta(path), queuefiles.SLOTS + 64, slot * (places - 1))
    poke_word(path, "holders", places)
    before = queuefiles.Snapshot(path).meta
    assert says(stage["a"], "c = q.claim()") == "OverflowError"
    after = queuefiles.Snapshot(path).meta
    assert after[queuefiles.SLOTS :] == before[queuefiles.SLOTS :]
    poke_word(path, "holders", 1)


def test_r16_a_removed_name_whose_entry_is_another_names_now(stage: Stage, path: str) -> None:
    """With a checksum that is right: it is said, and not looked for for ever."""
    with Counters(path, 4) as c:
        c["x"], c["gone"] = 5, 6
        c.remove("gone")
    peer = stage["a"]
    peer("c = mmapds.Counters(path); 'x' in c", path=path)
    entry = counterfiles.Snapshot(path).entry(1)
    other = counterfiles.entry(1, b"other", counterfiles.identity(path), b"removed ")
    counterfiles.poke(path, entry.offset, other)
    peer.send("c['gone'] = 7")
    with pytest.raises(PeerError, match="CorruptionError"):
        peer.receive(watchdog=10)
