"""What a reader holds stays as it is: after `with`, release, close and growth, until the last view is gone (row 30)."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import syncfiles

from mmapds import Closed, ReadResult, Synchronizer


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "value")


@pytest.fixture
def writer(prefix: str) -> Iterator[Synchronizer]:
    with Synchronizer(prefix, codec="raw") as handle:
        handle.write_bytes(b"first" * 100)
        yield handle


@pytest.fixture
def reader(writer: Synchronizer, prefix: str) -> Iterator[Synchronizer]:
    with Synchronizer(prefix) as handle:
        yield handle


def overwrite(writer: Synchronizer, versions: int = 6, size: int = 500) -> list[bool]:
    """Publishes versions that would reuse both files; returns what `reset` said."""
    return [writer.write_bytes(os.urandom(size), grace=0.0).reset for _ in range(versions)]


def test_r30_a_view_outlives_with_release_and_close(writer: Synchronizer, reader: Synchronizer, prefix: str) -> None:
    with reader.read() as r:
        view = r.data
    r.release()
    reader.close()
    assert syncfiles.pins(prefix) != {}, "the pin lasts as long as the view"
    overwrite(writer)
    assert bytes(view) == b"first" * 100
    view.release()
    assert syncfiles.pins(prefix) == {}, syncfiles.state(prefix)
    assert syncfiles.slots_in_use(prefix) == [], "the slot goes with the last view of a closed handle"


def test_r30_the_pin_goes_with_the_last_of_many_views(writer: Synchronizer, reader: Synchronizer, prefix: str) -> None:
    r = reader.read()
    views = [r.data, r.data[3:10], memoryview(r), r.data.cast("B"), r.data.toreadonly()]
    r.release()
    for view in views:
        assert syncfiles.pins(prefix) != {}
        assert reader._pinned == 1
        view.release()
        del view
    views.clear()
    gc.collect()
    assert syncfiles.pins(prefix) == {}, syncfiles.state(prefix)
    assert reader._pinned == 0


def test_r30_a_view_made_by_slicing_keeps_the_version(writer: Synchronizer, reader: Synchronizer, prefix: str) -> None:
    with reader.read() as r:
        part = r.data[5:10]
    del r
    gc.collect()
    overwrite(writer)
    assert bytes(part) == b"first"
    del part
    gc.collect()
    assert syncfiles.pins(prefix) == {}


def test_r30_an_array_outlives_everything(prefix: str) -> None:
    numpy = pytest.importorskip("numpy")
    with Synchronizer(prefix, codec="numpy:<i8") as writer:
        writer.write(numpy.arange(1000))
        reader = Synchronizer(prefix)
        with reader.read() as r:
            array = r.value
        tail = array[500:]
        del r, array
        reader.close()
        del reader
        gc.collect()
        for n in range(6):
            writer.write(numpy.full(1000, n), grace=0.0)
        assert (tail == numpy.arange(500, 1000)).all()
        assert syncfiles.pins(prefix) != {}
        del tail
        gc.collect()
        assert syncfiles.pins(prefix) == {}
        assert syncfiles.slots_in_use(prefix) == []


def test_r30_values_that_grow_past_the_mapping_leave_views_alone(
    writer: Synchronizer, reader: Synchronizer, prefix: str
) -> None:
    held = [reader.read()]
    expected = [b"first" * 100]
    for n in range(1, 12):
        value = os.urandom(1 << n + 8)
        writer.write_bytes(value, grace=0.0)
        held.append(reader.read())
        expected.append(value)
    for r, value in zip(held, expected, strict=True):
        assert bytes(r.data) == value, f"version {r.version}"
    for r in held:
        r.release()
    assert syncfiles.pins(prefix) == {}
    assert not writer.write_bytes(b"small").reset
    assert bytes(reader.load()) == b"small"


def test_r30_two_results_of_one_handle_hold_two_versions(writer: Synchronizer, reader: Synchronizer) -> None:
    first = reader.read()
    writer.write_bytes(b"second")
    second = reader.read()
    assert overwrite(writer, 4) == [True, True, True, True]
    assert bytes(first.data) == b"first" * 100
    assert bytes(second.data) == b"second"
    assert (first.version, second.version) == (1, 2)
    first.release()
    second.release()
    assert not any(overwrite(writer, 4))


def test_using_a_result_after_release_is_closed(reader: Synchronizer) -> None:
    r = reader.read()
    r.release()
    r.release()
    uses: list[Any] = [lambda: r.data, lambda: r.value, lambda: memoryview(r), lambda: bytes(r)]
    for use in uses:
        with pytest.raises(Closed, match="released"):
            use()
    assert r.version == 1
    with reader.read() as r:
        pass
    for use in uses:
        with pytest.raises(Closed, match="released"):
            use()


def test_a_result_may_be_released_inside_its_with_and_after_the_handle(reader: Synchronizer) -> None:
    with reader.read() as r:
        r.release()
    r = reader.read()
    reader.close()
    assert bytes(r.data) == b"first" * 100, "a result outlives its handle"
    r.release()


def test_a_result_that_is_forgotten_lets_go(writer: Synchronizer, reader: Synchronizer, prefix: str) -> None:
    reader.read()
    assert syncfiles.pins(prefix) == {}
    r = reader.read()
    assert syncfiles.pins(prefix) != {}
    del r
    assert syncfiles.pins(prefix) == {}


def test_a_result_in_a_cycle_lets_go_when_it_is_collected(reader: Synchronizer, prefix: str) -> None:
    r = reader.read()
    cycle: list[Any] = [r, r.data]
    cycle.append(cycle)
    del r, cycle
    gc.collect()
    assert syncfiles.pins(prefix) == {}


def test_a_handle_and_its_results_in_a_cycle_are_collected(writer: Synchronizer, prefix: str) -> None:
    reader = Synchronizer(prefix)
    reader.kept = [reader.read(), reader.read().data]  # type: ignore[attr-defined]
    del reader
    with pytest.warns(ResourceWarning, match="unclosed"):
        gc.collect()
    gc.collect()  # the warning knew the handle
    assert syncfiles.pins(prefix) == {}, syncfiles.state(prefix)
    assert syncfiles.slots_in_use(prefix) == []
    assert not syncfiles.locked(syncfiles.sync(prefix), 64, 0)


def test_many_results_are_counted_and_none_is_lost(reader: Synchronizer, prefix: str) -> None:
    held = [reader.read() for _ in range(1000)]
    assert syncfiles.pins(prefix) == {reader.slot: (0, 1000)}
    assert reader._pinned == 1000
    for r in held[::2]:
        r.release()
    assert syncfiles.pins(prefix) == {reader.slot: (0, 500)}
    del held, r
    gc.collect()
    assert syncfiles.pins(prefix) == {}


def test_load_does_not_move_what_a_result_holds(writer: Synchronizer, reader: Synchronizer) -> None:
    r = reader.read()
    for n in range(6):
        writer.write_bytes(b"%d" % n * 500, grace=0.0)
        assert bytes(reader.load()) == b"%d" % n * 500
        assert bytes(r.data) == b"first" * 100
    r.release()


def test_a_result_of_the_writing_handle_itself_is_kept_too(writer: Synchronizer) -> None:
    r = writer.read()
    assert overwrite(writer, 4) == [False, True, False, True]
    assert bytes(r.data) == b"first" * 100
    r.release()
    assert overwrite(writer, 4) == [False] * 4


def test_the_last_view_of_a_closed_handle_may_be_dropped_by_the_collector(writer: Synchronizer, prefix: str) -> None:
    def hold() -> memoryview:
        with Synchronizer(prefix) as reader, reader.read() as r:
            return r.data

    view = hold()
    assert bytes(view) == b"first" * 100
    assert len(syncfiles.slots_in_use(prefix)) == 1
    cycle: list[Any] = [view]
    cycle.append(cycle)
    del view, cycle
    gc.collect()
    assert syncfiles.slots_in_use(prefix) == []


@pytest.mark.parametrize("mode", ["readonly", "private"])
def test_copies_outlive_everything_too(writer: Synchronizer, prefix: str, mode: Any) -> None:
    reader = Synchronizer(prefix, mode=mode)
    with reader.read() as r:
        assert isinstance(r, ReadResult)
        view = r.data
    reader.close()
    assert not any(overwrite(writer)), "a copy is in nobody's way"
    assert bytes(view) == b"first" * 100
