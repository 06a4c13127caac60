"""`verify` of queues whose meta is damaged: every word and every entry; and of bytes that mean harm."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
import queuefiles as raw
from findings import errors
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from queueitems import Shared, fill, found_with

from mmapds import CorruptionError, IncompatibleFormat, Queue
from mmapds.inspection import describe, verify

fast = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    path = str(tmp_path_factory.mktemp("damaged") / "jobs")
    with Queue(path, segment_size=8192, max_attempts=3) as q:
        claims = fill(q)
        yield Shared(path, q, claims)


@pytest.fixture
def shared(queue: Shared) -> Iterator[Shared]:
    yield queue
    queue.mend()
    assert verify(queue.path) == []


# ---- meta ----------------------------------------------------------------------------------------------------------


@fast
@given(bit=st.integers(8 * 24, 8 * 2048 - 1))
def test_r15_every_bit_of_the_immutable_half_of_the_header(bit, shared):
    raw.flip(shared.meta, bit)
    try:
        found = verify(shared.path)
        assert [(f.severity, f.where) for f in found] == [("error", "meta")], found
        with pytest.raises(CorruptionError):
            describe(shared.path)
    finally:
        raw.flip(shared.meta, bit)


WRONG = [
    ("tail", 8, "are not what was written"),
    ("tail", -40, ""),
    ("tail", 3, "where no record can be"),
    ("tail", 1 << 62, "where no record can be"),
    ("tail_sequence", 1, "items were put, and its records end with"),
    ("tail_sequence", -2, "items were put, and its records end with"),
    ("head", 8, "head"),
    ("head", 1 << 40, "is behind the tail"),
    ("head", 1, "where no record can be"),
    ("head_sequence", 1, "should be here"),
    ("head_sequence", -1, "should be here"),
    ("epoch", -1, "epoch 0"),
    ("epoch", 1 << 30, "epoch"),
    ("logged", 300, "undo log"),
    ("capacity", 1 << 40, "that cannot be"),
    ("capacity", -84, "that cannot be"),
    ("used", 1, ""),
    ("used", -1, ""),
    ("used", 80, "that cannot be"),
    ("free", 1, "free"),
    ("free", 1000, "leads to entry"),
    ("timed", 1, "heap 'timed'"),
    ("timed", -1, "and not in the heap for that"),
    ("ready", 1, "heap 'ready'"),
    ("ready", 5000, "are in the heap 'ready'"),
    ("leased", 1, "'leased'"),
    ("claimed", -1, "'claimed'"),
    ("waiting_bytes", 8, "'waiting_bytes'"),
    ("held", 1, "begin"),
    ("fences", -20, "without a number of its own"),
    ("stamps", -5, "has a stamp that was not given yet"),
    ("holders", -1, "not among a holder's claims"),
    ("holders", 5000, "that cannot be"),
]


@pytest.mark.parametrize(("name", "more", "what"), WRONG)
def test_r16_words(name, more, what, shared):
    value = (shared.snapshot.words[name] + more) % (1 << 64)
    found = found_with(shared, raw.WORDS[name], struct.pack("<Q", value))
    assert [f for f in found if f.severity == "error" and what in f.what], found


def test_r16_the_segment_that_is_to_be_removed(shared):
    number = shared.snapshot.words["head"] // 8192
    found = found_with(shared, raw.WORDS["finished"], struct.pack("<Q", number))
    assert [f.what for f in found] == [f"says that segment {number} is to be removed, and it has items"]
    assert found_with(shared, raw.WORDS["finished"], struct.pack("<Q", 1 << 40)) == []  # its maker died, or is at it


@pytest.mark.parametrize(
    "field", ["position", "sequence", "size", "place", "fence", "links", "owners", "holder", "heap"]
)
@fast
@given(data=st.data())
def test_r16_every_field_of_an_entry(field, data, shared):
    at, size = {
        "position": (0, 8),
        "sequence": (8, 8),
        "size": (16, 8),
        "place": (32, 8),
        "fence": (48, 8),
        "links": (56, 8),
        "owners": (64, 8),
        "holder": (72, 4),
        "heap": (80, 8),
    }[field]
    held = ("owners", "holder")
    kinds = [e for e in shared.snapshot.live() if field not in held or raw.KINDS[e.kind] in ("claimed", "leased")]
    entry = data.draw(st.sampled_from(kinds))
    offset = raw.ENTRIES + (entry.number - 1) * raw.ENTRY + at
    bit = data.draw(st.integers(0, 8 * size - 1))
    if field == "place" and (entry.place % 2 == 0 or bit == 0):
        return  # behind others, where any even number may be right
    if field == "fence" and bit < 7:
        return  # perhaps one that was given
    if field == "heap" and raw.KINDS[entry.kind] == "claimed" and bit < 32:
        return  # it is in no heap
    value = int.from_bytes(raw.peek(shared.meta, offset, size), "little") ^ 1 << bit
    found = found_with(shared, offset, value.to_bytes(size, "little"))
    assert [f for f in found if f.severity == "error"], (entry, bit, found)


@pytest.mark.parametrize(("heap", "column"), [("timed", 88), ("ready", 92)])
def test_r16_every_cell_of_a_heap(heap, column, shared):
    count = shared.snapshot.words[heap]
    assert count > 2
    for at in range(count):
        for value in (0, 1000, 1 << 31, shared.snapshot.words["used"] + 1):
            offset = raw.ENTRIES + at * raw.ENTRY + column
            found = found_with(shared, offset, struct.pack("<I", value))
            assert [f for f in found if f"cell {at} of the heap {heap!r}" in f.what], found
    first, last = (raw.peek(shared.meta, raw.ENTRIES + at * raw.ENTRY + column, 4) for at in (0, count - 1))
    assert first != last
    found = found_with(shared, raw.ENTRIES + column, last)
    assert [f for f in found if "and in another place too" in f.what], found


def test_r16_a_heap_out_of_order(shared):
    """The times of two entries are exchanged: each says where it is, and the order is wrong."""
    timed = [e for e in shared.snapshot.live() if raw.KINDS[e.kind] in ("delayed", "leased")]
    first = min(timed, key=lambda e: (e.due, e.place))
    offset = raw.ENTRIES + (first.number - 1) * raw.ENTRY + 24
    found = found_with(shared, offset, struct.pack("<Q", max(e.due for e in timed) + 1))
    assert [f for f in found if "is below another in the heap 'timed', and comes before it" in f.what], found


def test_r16_lists_that_are_rings(shared):
    claimed = [e for e in shared.snapshot.live() if e.holder]
    number = shared.snapshot.slots()[0][2]
    last = next(e for e in claimed if not e.own_next)
    offset = raw.ENTRIES + (last.number - 1) * raw.ENTRY + 68
    found = found_with(shared, offset, struct.pack("<I", number))
    assert [f for f in found if "which is among somebody's already" in f.what], found
    free = shared.snapshot.words["free"]
    assert free
    offset = raw.ENTRIES + (free - 1) * raw.ENTRY + 68
    found = found_with(shared, offset, struct.pack("<I", free))
    assert [f for f in found if "comes to entry" in f.what], found


def test_r16_holders(shared):
    token, owing, claims, claimed, pid = shared.snapshot.slots()[0]
    for words, what in (
        ((token, owing, claims, claimed + 1, pid), "claims, and its list has"),
        ((token, owing, 5000, claimed, pid), "lead to entry 5000"),
        ((token, owing, 0, 0, pid), "not among a holder's claims"),
        ((0, owing, claims, claimed, pid), "has gone, and still has claims"),
    ):
        found = found_with(shared, raw.SLOTS, struct.pack("<5Q", *words))
        assert [f for f in found if f.severity == "error" and what in f.what], found


def test_r16_an_undo_log_that_names_other_words(shared):
    for offset in (4104, 4096, 8200, 4233, 1 << 40, 2048):
        raw.poke(shared.meta, raw.UNDO, struct.pack("<2Q", offset, 1))
        raw.poke_word(shared.meta, raw.WORDS["logged"], 1)
        found = verify(shared.path)
        assert [f for f in found if "names words that no transition changes" in f.what], (offset, found)
        shared.mend()


def test_r15_sentinel_and_reserved_bytes(shared):
    assert "no sentinel" in found_with(shared, raw.SENTINEL + 3, b"x")[0].what
    for offset in (2100, 2112, 4144, 4272, 4351, 4448, 4544, 4616, 4808, 4888, 8191, 77824, raw.SENTINEL - 1):
        found = found_with(shared, offset, b"\xaa")
        assert [(f.severity, f.where) for f in found if "it is reserved" in f.what] == [("warning", "meta")], offset
    segment = raw.segment(shared.path, raw.segments(shared.path)[0])
    for offset in (2112, 2303, 2336, 4095):
        found = found_with(shared, offset, b"\xaa", segment)
        assert [(f.severity, f.where) for f in found] == [("warning", os.path.basename(segment))], found


def test_r16_options_that_nobody_can_use(shared):
    for number, value in ((0, 4096), (0, 8191), (0, 1 << 50), (1, 1 << 63), (4, 10), (6, 1)):
        page = bytearray(raw.peek(shared.meta, 0, raw.PAGE))
        struct.pack_into("<Q", page, raw.OPTIONS + 8 * number, value)
        raw.poke(shared.meta, 0, bytes(page))
        raw.seal(shared.meta)
        assert errors(shared.path), (number, value)
        shared.mend()


def test_a_failed_flush(shared):
    found = found_with(shared, raw.FAILED, b"\1")
    assert [(f.severity, f.where) for f in found] == [("warning", "meta")]
    assert "a flush to the disk failed" in found[0].what


# ---- harm ----------------------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@example(data=None)
def test_r16_whatever_the_bytes_are_it_ends_and_says_something(data, shared):
    """Several words, or a stretch, of any of its files: no error but findings, and no crash."""
    if data is None:
        return
    name = data.draw(st.sampled_from(["meta", "meta", *(n for n in shared.files if n != "meta")]))
    file = os.path.join(shared.path, name)
    interesting = st.sampled_from([0, 1, 2, 255, 8192, 1 << 31, 1 << 32, 1 << 40, 1 << 62, 1 << 63, (1 << 64) - 1])
    start = raw.ORIGIN if data.draw(st.booleans()) else 0
    for _ in range(data.draw(st.integers(1, 4))):
        spots = range(start, len(shared.files[name]) - 8, 8)
        if name == "meta":
            areas = (
                (4096, 4928),
                (raw.UNDO, raw.UNDO + 64),
                (raw.SLOTS, raw.SLOTS + 64),
                (raw.ENTRIES, raw.ENTRIES + 5760),
            )
            spots = range(*data.draw(st.sampled_from(areas)), 8)
        value = data.draw(interesting | st.integers(0, 300) | st.integers(0, (1 << 64) - 1))
        raw.poke(file, data.draw(st.sampled_from(spots)), struct.pack("<Q", value))
    if data.draw(st.integers(0, 4)) == 0:
        raw.other_boot(shared.path)
    try:
        for finding in verify(shared.path):
            assert finding.what
        describe(shared.path)
        describe(file)
    except (CorruptionError, IncompatibleFormat):
        pass
    finally:
        shared.mend()
