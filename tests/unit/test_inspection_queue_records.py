"""`verify` of queues whose records are damaged, or whose files are not what they should be."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import queuefiles as raw
from findings import errors, only
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from queueitems import Shared, fill, found_with, place

from mmapds import CorruptionError, Counters, IncompatibleFormat, Queue
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


def test_r15_a_hole_is_named_once_with_what_is_lost(shared):
    every = list(shared.snapshot.plain())
    records = [record for record in every if record.position // 8192 == every[0].position // 8192 + 1]
    assert len(records) > 6
    first, last = records[1], records[4]
    file, offset = place(shared, first.position)
    found = found_with(shared, offset, b"\xff" * (last.position - first.position), file)
    assert len(found) == 1, found
    assert f"the bytes up to {last.position} are not what was written, which were those of 3 items" in found[0].what


def test_r15_what_was_set_aside_is_told_and_not_an_error(tmp_path):
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
def test_r17_segments_that_are_not_what_they_should_be(how, tmp_path):
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


def test_r17_meta_is_gone_or_something_else(tmp_path):
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
def test_r17_meta_was_cut(size, tmp_path):
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
