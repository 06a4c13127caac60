"""Queues whose files are not what was written: damaged, or hostile (rows 15 and 16)."""

from __future__ import annotations

import os
import random
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any, NoReturn

import pytest
import queuefiles
from peers import Peer
from queuedamage import DRAIN, ITEMS, SEGMENT, WHOLE, drain, make

from mmapds import CorruptionError, IncompatibleFormat, Queue

HEAP_AT = 80  # of an entry; with its kind


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "queue")
    make(path)
    return path


def in_order(found: list[bytes]) -> bool:
    """Only what was put, in its order, nothing twice."""
    places = [WHOLE.index(item) for item in found]
    return places == sorted(set(places))


# ---- row 15: flipped bits ------------------------------------------------------------------------------------------


def test_r15_any_bit_of_a_header_that_never_changes(path: str) -> None:
    choose = random.Random(15)
    name = queuefiles.meta(path)
    for bit in choose.sample(range(queuefiles.ORIGIN * 8), 400):
        queuefiles.flip(name, bit)
        for mode in ("shared", "readonly", "private"):
            with pytest.raises((CorruptionError, IncompatibleFormat)):
                Queue(path, mode=mode)  # type: ignore[arg-type]
        queuefiles.flip(name, bit)
    with Queue(path) as q:
        assert drain(q) == (WHOLE, 0)


def test_r15_any_bit_of_a_segments_header(path: str) -> None:
    content = queuefiles.content(path)
    choose = random.Random(15)
    for boot in (False, True):
        for bit in choose.sample(range(queuefiles.ORIGIN * 8), 40):
            queuefiles.restore(path, content, in_place=True)
            queuefiles.flip(queuefiles.segment(path, 2), bit)
            if boot:
                queuefiles.other_boot(path)
            with Queue(path) as q:
                found, errors = drain(q)
                assert in_order(found), (bit, boot, found)
                assert errors or boot, (bit, boot, len(found))
                assert len(found) < len(WHOLE)
                assert found[-2:] == WHOLE[-2:] or found[-1] == WHOLE[-2], "what is behind it must not be blocked"
                assert boot is False or q.stats()["set_aside"] > 0
                q.put(b"more")
                assert q.get() == b"more"


@pytest.mark.parametrize("boot", [False, True])
def test_r15_flipped_bits_in_segments(path: str, boot: bool) -> None:
    """The right value, or an error, and what is behind it."""
    content = queuefiles.content(path)
    choose = random.Random(15)
    last = max(queuefiles.segments(path))
    end = queuefiles.Snapshot(path).words["tail"] - last * SEGMENT
    spoilt = 0
    for _ in range(100):
        queuefiles.restore(path, content, in_place=True)
        number = choose.choice(queuefiles.segments(path))
        byte = choose.randrange(4096, end if number == last else SEGMENT)
        queuefiles.flip(queuefiles.segment(path, number), 8 * byte + choose.randrange(8))
        if boot:
            queuefiles.other_boot(path)
        message = f"byte {byte} of segment {number}"
        with Queue(path, mode="readonly") as q:
            assert set(q) <= set(WHOLE) | (set(ITEMS) if boot else set()), message
        with Queue(path) as q:
            found, errors = drain(q)
            stats = q.stats()
            done = set(ITEMS[:20])
            if boot:  # that an item was done may be what the flipped bit has said
                found = [item for item in found if item not in done]
            assert set(found) <= set(WHOLE), message
            assert len(set(found)) == len(found), f"{message}: something came twice"
            assert boot or in_order(found), message
            assert len(found) >= len(WHOLE) - 1, f"{message}: {len(WHOLE) - len(found)} items are gone; {stats}"
            assert len(found) == len(WHOLE) or stats["set_aside"] + stats["cut"] > 0, f"{message}; {stats}"
            assert errors <= 1, message
            spoilt += len(found) < len(WHOLE)
            q.put(b"more")
            assert q.get() == b"more"
    assert spoilt > 10, spoilt


def test_r15_flipped_bits_in_meta(path: str) -> None:
    """Control words and the index have no checksums: an error, or what was put, and it never hangs or dies."""
    content = queuefiles.content(path)
    choose = random.Random(15)
    used = queuefiles.ENTRIES + queuefiles.ENTRY * queuefiles.Snapshot(path).words["used"]
    bits = [
        *(8 * at + bit for at in queuefiles.WORDS.values() for bit in (0, 1, 5, 13, 33, 62, 63)),
        *(8 * choose.randrange(queuefiles.SLOTS, queuefiles.SLOTS + 128) + choose.randrange(8) for _ in range(40)),
        *(8 * choose.randrange(queuefiles.ENTRIES, used) + choose.randrange(8) for _ in range(150)),
    ]
    check_damaged_meta(path, content, [lambda p, bit=bit: queuefiles.flip(p, bit) for bit in bits], bits)


def check_damaged_meta(
    path: str, content: dict[str, bytes], damages: list[Callable[[str], None]], names: list[Any]
) -> None:
    with Peer(DRAIN, path=path) as peer:
        for damage, name in zip(damages, names, strict=True):
            for boot in (False, True):
                queuefiles.restore(path, content, in_place=True)
                damage(queuefiles.meta(path))
                if boot:
                    queuefiles.other_boot(path)
                try:
                    found, errors = peer("use(path)")
                except Exception as error:
                    raise AssertionError(f"{name}, {boot}: {error}; {peer.stderr()}") from error
                wrong = set(found) - set(ITEMS) - {b"new"}
                assert not wrong, f"{name}: {wrong}"
                twice = len(found) - len(set(found))
                assert not twice or errors, f"{name}: {twice} items came twice, and nobody said anything"
                if boot:  # nothing of it is believed
                    assert len(found) >= len(WHOLE) - 1, f"{name}, on the next boot: {len(found)} items; {errors}"


# ---- row 16: hostile words -----------------------------------------------------------------------------------------

HOSTILE = [
    1,
    2,
    7,
    4095,
    4096,
    8191,
    1 << 20,
    (1 << 31) - 1,
    1 << 32,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 8,
    (1 << 64) - 1,
]


CURSORS = {"head", "tail", "tail_sequence", "used", "capacity", "free", "timed", "ready", "logged", "held", "finished"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in CURSORS))
        for name in queuefiles.WORDS
        if "lock" not in name
    ],
)
def test_r16_hostile_control_words(path: str, name: str) -> None:
    content = queuefiles.content(path)
    at = queuefiles.WORDS[name]
    values = HOSTILE if name in ("head", "tail", "used", "capacity", "free", "logged") else HOSTILE[::4] + HOSTILE[-1:]
    check_damaged_meta(
        path, content, [lambda p, value=value: queuefiles.poke_word(p, at, value) for value in values], values
    )


def test_r16_hostile_entries_and_slots(path: str) -> None:
    """References out of range, to themselves, in circles; positions and sizes that are none."""
    content = queuefiles.content(path)
    live = queuefiles.Snapshot(path).live()
    choose = random.Random(16)
    damages, names = [], []
    for field in range(7):  # 64-bit words
        for value in choose.sample(HOSTILE, 4):
            entry = choose.choice(live).number
            at = queuefiles.ENTRIES + (entry - 1) * queuefiles.ENTRY + 8 * field
            damages.append(lambda p, at=at, value=value: queuefiles.poke_word(p, at, value))
            names.append((entry, field, value))
    for half in range(10):  # 32-bit references
        for value in (0, 1, choose.choice(live).number, 83, 85, 1 << 31, (1 << 32) - 1):
            entry = choose.choice(live).number
            at = queuefiles.ENTRIES + (entry - 1) * queuefiles.ENTRY + 56 + 4 * half
            damages.append(lambda p, at=at, value=value: queuefiles.poke(p, at, struct.pack("<I", value)))
            names.append((entry, f"half {half}", value))
    for field in range(4):
        for value in choose.sample(HOSTILE, 4):
            at = queuefiles.SLOTS + 8 * field
            damages.append(lambda p, at=at, value=value: queuefiles.poke_word(p, at, value))
            names.append(("slot", field, value))
    check_damaged_meta(path, content, damages, names)


def test_r16_a_hostile_undo_log(path: str) -> None:
    """Of an owner that died; it must not write outside of what it may."""
    content = queuefiles.content(path)
    damages, names = [], []
    for offset in (0, 32, 4096, 4099, 4232, 8192, 81912, 1 << 20, (1 << 64) - 8):
        for logged in (1, 256, 257, (1 << 64) - 1):

            def damage(p: str, offset: int = offset, logged: int = logged) -> None:
                queuefiles.poke(p, queuefiles.UNDO, struct.pack("<2Q", offset, 1 << 63) * min(logged, 256))
                queuefiles.poke_word(p, queuefiles.WORDS["logged"], logged)
                queuefiles.poke_word(p, queuefiles.WORDS["take_lock"], 0x123456789ABC0 << 3)

            damages.append(damage)
            names.append((offset, logged))
    check_damaged_meta(path, content, damages, names)


def write_record(path: str, number: int, at: int, words: tuple[int, ...], payload: bytes = b"") -> None:
    """A record with a right check, as a hostile writer would make it; `words`: hash, order, extent, born."""
    key = queuefiles.Snapshot(path).key
    check = queuefiles.item_check(words, number * SEGMENT + at, key)
    state = queuefiles.item_state(1, 0, (0, 0, 0), number * SEGMENT + at, key)
    queuefiles.poke(
        queuefiles.segment(path, number), at, struct.pack("<9Q", check, *words[:4], state, 0, 0, 0) + payload
    )


@pytest.mark.parametrize("size", [4024, 4096, 8192, 1 << 31, (1 << 40) - 1, (1 << 40) - 8])
@pytest.mark.parametrize("boot", [False, True])
def test_r16_hostile_lengths(tmp_path: Path, size: int, boot: bool) -> None:
    path = str(tmp_path / "queue")
    with Queue(path, codec="raw", segment_size=SEGMENT) as q:
        q.put(b"1")
        q.put(b"2")
    write_record(path, 1, 4096, (0, 0 << 8, size | 1 << 40, 5))
    if boot:
        queuefiles.other_boot(path)
    with Queue(path) as q:
        found, errors = drain(q)
        assert found == ([b"2"] if size > 4024 else []), (found, errors)
        assert errors == (0 if boot else 1)


@pytest.mark.parametrize("sequence", [0, 1, 3, (1 << 56) - 1])
def test_r16_hostile_sequences(tmp_path: Path, sequence: int) -> None:
    path = str(tmp_path / "queue")
    with Queue(path, codec="raw", segment_size=SEGMENT) as q:
        for n in range(5):
            q.put(b"%d" % n)
    record = queuefiles.Snapshot(path).record(SEGMENT + 4096 + 2 * 80)
    assert record is not None
    hash_ = struct.unpack("<Q", queuefiles.peek(queuefiles.segment(path, 1), 4096 + 160 + 8))[0]
    write_record(path, 1, 4096 + 160, (hash_, sequence << 8, 1 | 1 << 40, 5), b"2")
    content = queuefiles.content(path)
    for boot in (False, True):
        queuefiles.restore(path, content, in_place=True)
        if boot:
            queuefiles.other_boot(path)
        with Queue(path) as q:
            found, _errors = drain(q)
            assert found[:2] == [b"0", b"1"]
            assert set(found) <= {b"0", b"1", b"2", b"3", b"4"}
            assert len(set(found)) == len(found)
            assert boot or found[-1] == b"4"


# ---- meta that contradicts itself: once endless loops (found by fuzzing) ----------------------------------------


@pytest.fixture
def ends() -> Iterator[None]:
    """A loop without an end is interrupted."""

    def too_long(*_: object) -> NoReturn:
        raise AssertionError("this call does not end")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def damaged_at_the_head(path: str) -> Queue:
    """A handle that has open what is damaged behind its back: the first item that waits."""
    q = Queue(path, codec="raw", segment_size=8192)
    q.put_many([b"%d" % number * 20 for number in range(10)])
    q.get()
    queuefiles.flip(queuefiles.segment(path, 1), 8 * (queuefiles.Snapshot(path).words["head"] - 8192 + 30))
    return q


@pytest.mark.usefixtures("ends")
@pytest.mark.parametrize("tail", [0, 1, 8, 0x2FFF, 8192 + 4096])
def test_r16_a_tail_before_the_head_ends_no_call_in_a_loop(tmp_path: Path, tail: int) -> None:
    path = str(tmp_path / "queue")
    with damaged_at_the_head(path) as q:
        queuefiles.poke_word(queuefiles.meta(path), queuefiles.WORDS["tail"], tail)
        for take in (q.get_nowait, lambda: q.claim(timeout=0), lambda: q.get_many(3, timeout=0)):
            with pytest.raises(CorruptionError, match=f"meta contradicts itself .*tail {tail}"):
                take()
        assert q.purge() == 0


@pytest.mark.usefixtures("ends")
def test_r16_purging_what_cannot_be_set_aside_ends(tmp_path: Path) -> None:
    path = str(tmp_path / "queue")
    with damaged_at_the_head(path) as q:
        queuefiles.flip(queuefiles.segment(path, 1), 8 * 100)  # the header of the file, which it has mapped
        with pytest.raises(CorruptionError, match="the header is damaged"):
            q.purge()


@pytest.mark.usefixtures("ends")
def test_r16_purging_what_cannot_be_given_up_ends(tmp_path: Path) -> None:
    """Its entry says another place in the heap: each try is taken back, and counts."""
    path = str(tmp_path / "queue")
    with Queue(path, codec="raw", segment_size=8192) as q:
        q.put_many([b"%d" % number * 20 for number in range(10)])
        q.claim().nack()
        held = queuefiles.Snapshot(path).entry(1)
        queuefiles.flip(queuefiles.segment(path, 1), 8 * (held.position - 8192 + 30))
        queuefiles.poke_word(queuefiles.meta(path), queuefiles.ENTRIES + HEAP_AT, 2 << 32 | 5)
        for take in (q.purge, q.get_nowait, q.purge):
            with pytest.raises(CorruptionError, match="meta contradicts itself"):
                take()


def test_r16_a_sequence_that_is_too_low_for_a_missing_segment(tmp_path: Path) -> None:
    path = str(tmp_path / "queue")
    damaged_at_the_head(path).close()
    with Queue(path, codec="raw") as q:
        os.unlink(queuefiles.segment(path, 1))
        queuefiles.poke_word(queuefiles.meta(path), queuefiles.WORDS["tail_sequence"], 0)
        with pytest.raises(CorruptionError, match="is missing, and all items that were in it are lost"):
            q.get_nowait()


def test_r15_one_corrupt_item_blocks_nobody(path: str) -> None:
    """Claims, batches and returned items too."""
    content = queuefiles.content(path)
    found = queuefiles.Snapshot(path)
    plain = list(found.plain())
    held = [found.held_record(e) for e in found.live() if queuefiles.KINDS[e.kind] == "waiting"]
    for record in (plain[0], plain[5], plain[-1], held[0], held[-1]):
        for where in (0, 30, 72):  # the check, the extent, the payload
            for take in ("get", "claim", "get_many", "claim_many"):
                queuefiles.restore(path, content, in_place=True)
                number = record.position // SEGMENT
                queuefiles.flip(queuefiles.segment(path, number), 8 * (record.position - number * SEGMENT + where))
                with Queue(path) as q:
                    items, errors = [], 0
                    for _ in range(300):
                        try:
                            if take == "get_many":
                                items += q.get_many(7, timeout=0)
                            elif take == "get":
                                items.append(q.get_nowait())
                            else:
                                for claim in [q.claim(0)] if take == "claim" else q.claim_many(7, timeout=0):
                                    items.append(claim.item)
                                    claim.ack()
                        except Empty:
                            break
                        except CorruptionError:
                            errors += 1
                    message = f"{take}, byte {where} of {record}: {errors} errors"
                    assert items == [item for item in WHOLE if item != record.payload], message
                    assert errors == 1 or take.endswith("many"), message
                    assert q.stats()["set_aside"] == 1, message
                    assert len(os.listdir(Path(path, "quarantine"))) == 1, message
                    assert q.join(0) or take.startswith("get"), message
                queuefiles.check(path)


def test_r15_a_queue_goes_on_behind_a_segment_that_was_removed(tmp_path: Path) -> None:
    """It is said once what is lost; what is put then is in a new segment."""
    path = tmp_path / "queue"
    with Queue(path, codec="raw", segment_size=1 << 16) as q:
        q.put_many([b"lost"] * 3)
    (path / f"{queuefiles.segments(path)[-1]:016x}.segment").unlink()
    with Queue(path) as q:
        with pytest.raises(CorruptionError, match="3 items that were in it are lost"):
            q.put(b"first")
        q.put_many([b"second", b"third"])
        assert [q.get_nowait(), q.get_nowait(), q.qsize()] == [b"second", b"third", 0]
