"""`verify` of queues that are damaged: every word of meta and every record, files that are not what they should be, and
bytes that mean harm."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import queuefiles as raw
from findings import errors, only
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from queueitems import fill

from mmapds import Claim, CorruptionError, Counters, IncompatibleFormat, Queue
from mmapds.inspection import Finding, describe, verify

fast = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Shared:
    """A queue in use with something of everything, that tests damage and mend again; and how it is."""

    def __init__(self, path: str, q: Queue, claims: list[Claim]) -> None:
        self.path, self.q, self.claims = path, q, claims
        self.meta = raw.meta(path)
        self.files = raw.content(path)
        self.snapshot = raw.Snapshot(path)

    def mend(self) -> None:
        for name, data in self.files.items():
            file = os.path.join(self.path, name)
            os.truncate(file, len(data))
            raw.poke(file, 0, data)


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


def found_with(shared: Shared, offset: int, data: bytes, file: str | None = None) -> list[Finding]:
    """What is found while these bytes are there."""
    file = file or shared.meta
    before = raw.peek(file, offset, len(data))
    raw.poke(file, offset, data)
    try:
        found = verify(shared.path)
        describe(shared.path)
    finally:
        raw.poke(file, offset, before)
    return found


def place(shared: Shared, position: int) -> tuple[str, int]:
    """The file, and the offset in it, of a position."""
    start, _ = shared.snapshot.find(position) or (0, b"")
    return raw.segment(shared.path, start // 8192), position - start


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
def test_r15_words(name, more, what, shared):
    value = (shared.snapshot.words[name] + more) % (1 << 64)
    found = found_with(shared, raw.WORDS[name], struct.pack("<Q", value))
    assert [f for f in found if f.severity == "error" and what in f.what], found


def test_r15_the_segment_that_is_to_be_removed(shared):
    number = shared.snapshot.words["head"] // 8192
    found = found_with(shared, raw.WORDS["finished"], struct.pack("<Q", number))
    assert [f.what for f in found] == [f"says that segment {number} is to be removed, and it has items"]
    assert found_with(shared, raw.WORDS["finished"], struct.pack("<Q", 1 << 40)) == []  # its maker died, or is at it


@pytest.mark.parametrize(
    "field", ["position", "sequence", "size", "place", "fence", "links", "owners", "holder", "heap"]
)
@fast
@given(data=st.data())
def test_r15_every_field_of_an_entry(field, data, shared):
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
def test_r15_every_cell_of_a_heap(heap, column, shared):
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


def test_r15_a_heap_out_of_order(shared):
    """The times of two entries are exchanged: each says where it is, and the order is wrong."""
    timed = [e for e in shared.snapshot.live() if raw.KINDS[e.kind] in ("delayed", "leased")]
    first = min(timed, key=lambda e: (e.due, e.place))
    offset = raw.ENTRIES + (first.number - 1) * raw.ENTRY + 24
    found = found_with(shared, offset, struct.pack("<Q", max(e.due for e in timed) + 1))
    assert [f for f in found if "is below another in the heap 'timed', and comes before it" in f.what], found


def test_r15_lists_that_are_rings(shared):
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


def test_r15_holders(shared):
    token, owing, claims, claimed, pid = shared.snapshot.slots()[0]
    for words, what in (
        ((token, owing, claims, claimed + 1, pid), "claims, and its list has"),
        ((token, owing, 5000, claimed, pid), "lead to entry 5000"),
        ((token, owing, 0, 0, pid), "not among a holder's claims"),
        ((0, owing, claims, claimed, pid), "has gone, and still has claims"),
    ):
        found = found_with(shared, raw.SLOTS, struct.pack("<5Q", *words))
        assert [f for f in found if f.severity == "error" and what in f.what], found


def test_r15_an_undo_log_that_names_other_words(shared):
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


def test_r15_options_that_nobody_can_use(shared):
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


# ---- records -------------------------------------------------------------------------------------------------------


def waiting(shared: Shared) -> list[raw.Record]:
    held = [shared.snapshot.held_record(entry) for entry in shared.snapshot.live()]
    return [*held, *shared.snapshot.plain()]


@fast
@given(data=st.data())
def test_r15_every_bit_of_an_item_that_is_not_done(data, shared):
    record = data.draw(st.sampled_from(waiting(shared)))
    file, offset = place(shared, record.position)
    head = raw.DELAYED_HEAD if record.flags & raw.DELAYED else raw.HEAD
    bits = [*range(320), *range(8 * 72, 8 * (head + record.size))]
    bit = data.draw(st.sampled_from(bits))
    byte = raw.peek(file, offset + bit // 8, 1)[0] ^ 1 << bit % 8
    found = found_with(shared, offset + bit // 8, bytes([byte]), file)
    assert {f.severity for f in found} == {"error"}, found
    assert [f for f in found if f.where == os.path.basename(file) and f"at {record.position}:" in f.what], found


@fast
@given(data=st.data())
def test_r15_the_state_of_an_item(data, shared):
    record = data.draw(st.sampled_from(waiting(shared)))
    file, offset = place(shared, record.position)
    bit = data.draw(st.integers(320, 8 * 72 - 1))
    byte = raw.peek(file, offset + bit // 8, 1)[0] ^ 1 << bit % 8
    found = found_with(shared, offset + bit // 8, bytes([byte]), file)
    assert [(f.severity, f.where) for f in found] == [("note", os.path.basename(file))], found
    assert "its state is damaged" in found[0].what


def test_r15_an_item_that_waits_and_is_said_to_be_done(shared):
    record = waiting(shared)[-1]
    file, offset = place(shared, record.position)
    state = raw.item_state(4, 0, (0, 0, 0), record.position, shared.snapshot.key)
    found = found_with(shared, offset + 40, struct.pack("<4Q", state, 0, 0, 0), file)
    assert [f.severity for f in found] == ["error"], found
    assert "lost after the next boot" in found[0].what


def test_r15_an_item_that_is_done(shared):
    """Nobody needs it; but recovery would take the bytes for a hole."""
    positions = {record.position for record in waiting(shared)}
    number = raw.segments(shared.path)[0]
    at = number * 8192 + raw.PAGE
    while at in positions:
        record = shared.snapshot.record(at)
        assert record is not None
        at = record.end
    file, offset = place(shared, at)
    found = found_with(shared, offset + 8, b"\xff\xff\xff\xff", file)
    assert [(f.severity, f.where) for f in found] == [("warning", os.path.basename(file))], found
    assert "it was of items that are done" in found[0].what


def test_r15_items_of_another_queue_or_place(shared):
    """A record that was copied whole from elsewhere does not pass."""
    records = [record for record in shared.snapshot.plain() if not record.flags and record.size == 1]
    first, second = records[0], records[1]
    file, offset = place(shared, first.position)
    other, other_offset = place(shared, second.position)
    found = found_with(shared, other_offset, raw.peek(file, offset, first.end - first.position), other)
    assert [f for f in found if f.severity == "error" and f"at {second.position}:" in f.what], found


def test_r16_a_hole_is_named_once_with_what_is_lost(shared):
    every = list(shared.snapshot.plain())
    records = [record for record in every if record.position // 8192 == every[0].position // 8192 + 1]
    assert len(records) > 6
    first, last = records[1], records[4]
    file, offset = place(shared, first.position)
    found = found_with(shared, offset, b"\xff" * (last.position - first.position), file)
    assert len(found) == 1, found
    assert f"the bytes up to {last.position} are not what was written, which were those of 3 items" in found[0].what


def test_r16_what_was_set_aside_is_told_and_not_an_error(tmp_path):
    path = str(tmp_path / "jobs")
    with Queue(path, codec="raw") as q:
        q.put_many([b"a" * 100, b"b" * 100, b"c" * 100])
        raw.poke(raw.segment(path, 1), raw.PAGE, b"\xff" * 8)
        assert [f.severity for f in verify(path)] == ["error"]
        with pytest.raises(CorruptionError):
            q.get()
        assert q.get() == b"b" * 100
        found = verify(path)
        assert [(f.severity, f.where) for f in found] == [("warning", "meta"), ("note", "quarantine")], found
        assert "1 items were damaged and were set aside" in found[0].what


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["removed", "cut", "empty", "header", "other number", "other queue", "link", "folder"])
def test_r14_segments_that_are_not_what_they_should_be(how, tmp_path):
    path = str(tmp_path / "jobs")
    with Queue(path, codec="raw", segment_size=8192) as q, Queue(tmp_path / "other", segment_size=8192) as other:
        other.put(1)
        for _ in range(100):
            q.put(b"x" * 200)
        number = raw.segments(path)[2]
        file = raw.segment(path, number)
        data = Path(file).read_bytes()
        os.rename(file, tmp_path / "kept")
        if how == "cut":
            Path(file).write_bytes(data[:5000])
        elif how == "empty":
            Path(file).write_bytes(b"")
        elif how == "header":
            Path(file).write_bytes(data[:100] + b"\xff" + data[101:])
        elif how == "other number":
            Path(file).write_bytes(Path(raw.segment(path, number + 1)).read_bytes())
        elif how == "other queue":
            Path(file).write_bytes(Path(raw.segment(tmp_path / "other", 1)).read_bytes())
        elif how == "link":
            os.symlink(tmp_path / "kept", file)
        elif how == "folder":
            os.mkdir(file)
        found = errors(path)
        assert [f for f in found if f.where == "meta" and "there is no segment" in f.what], found
        assert how == "removed" or [f for f in found if f.where == os.path.basename(file)], found
        for name in (file, path):
            try:
                describe(name)
            except (CorruptionError, IncompatibleFormat, OSError):
                assert name == file


def test_r14_meta_is_gone_or_something_else(tmp_path):
    path = str(tmp_path / "jobs")
    with Queue(path) as q:
        q.put(1)
    kept = Path(raw.meta(path)).read_bytes()
    os.unlink(raw.meta(path))
    only(path, "error", "meta", "is missing")
    Path(raw.meta(path)).write_bytes(b"nonsense")
    only(path, "error", "meta", "")
    only(raw.meta(path), "error", "meta", "")
    Path(raw.meta(path)).write_bytes(kept[:3000])
    only(path, "error", "meta", "")
    os.unlink(raw.meta(path))
    Counters(raw.meta(path)).close()
    with pytest.raises(IncompatibleFormat):
        verify(path)
    os.unlink(raw.meta(path))
    os.mkfifo(raw.meta(path))
    with pytest.raises(IncompatibleFormat):
        verify(path)


@pytest.mark.parametrize("size", [4096, 4200, 81919, 81920, 82000])
def test_r14_meta_was_cut(size, tmp_path):
    path = str(tmp_path / "jobs")
    with Queue(path) as q:
        q.put_many(range(3))
        held = q.claim()
        kept = Path(raw.meta(path)).read_bytes()
        os.truncate(raw.meta(path), size)
        found = errors(path)
        assert found
        assert all(f.where == "meta" for f in found)
        describe(path)
        os.truncate(raw.meta(path), len(kept))
        raw.poke(raw.meta(path), 0, kept)
        del held


def test_r15_dead_letters(tmp_path):
    path = str(tmp_path / "jobs")
    with Queue(path) as q:
        q.put_many(range(3))
        q.claim().bury("no use")
        assert verify(path) == []
        with Queue(os.path.join(path, "dead")) as dead:
            dead.put(msgpack.packb(["1-0", 1]))
        only(path, "error", "dead/0000000000000001.segment", "item 1-1 is no dead letter")
    raw.poke(os.path.join(path, "dead", "0000000000000001.segment"), raw.PAGE + 80, b"\xff")
    assert [f.where for f in errors(path)] == ["dead/0000000000000001.segment"] * 2
    raw.poke(os.path.join(path, "dead", "meta"), 40, b"\xff")
    only(path, "error", "dead/meta", "the header is damaged")
    os.rename(os.path.join(path, "dead"), tmp_path / "dead")
    os.symlink(path, os.path.join(path, "dead"))
    only(path, "warning", "dead", "is a symbolic link")
    os.unlink(os.path.join(path, "dead"))
    os.mkdir(os.path.join(path, "dead"))  # its maker was killed
    only(path, "note", "dead/meta", "is not there yet")


# ---- harm ----------------------------------------------------------------------------------------------------------


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@example(data=None)
def test_r15_whatever_the_bytes_are_it_ends_and_says_something(data, shared):
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
