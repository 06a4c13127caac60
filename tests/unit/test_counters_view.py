"""Counters.view(): all cells without a copy, as memoryview and as array; what it outlives."""

from __future__ import annotations

import ctypes
import gc
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapds import Counters


@pytest.fixture
def path(tmp_path: Path, descriptors: None) -> str:
    return str(tmp_path / "counters")


@pytest.fixture(params=[False, True], ids=["dense", "padded"])
def c(request: pytest.FixtureRequest, path: str) -> Iterator[Counters]:
    with Counters(path, 6, padded=request.param) as counters:
        counters.update(a=10, b=-20)
        counters[1] = 5
        yield counters


@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
def test_a_view_shows_all_cells_in_the_order_of_their_indices(c: Counters, path: str, mode: Any) -> None:
    with Counters(path, mode=mode) as handle:
        view = handle.view()
        assert (view.format, view.itemsize, view.ndim, view.readonly) == ("q", 8, 1, True)
        assert view.shape == (8,)
        assert view.tolist() == [0, 5, 0, 0, 0, 0, 10, -20]
        assert [view[i] for i in range(8)] == [handle[i] for i in range(8)]
        assert view[-1] == -20
        with pytest.raises(TypeError, match="read-only"):
            view[0] = 1
        with pytest.raises(IndexError):
            view[8]
        view.release()


def test_a_view_is_live(c: Counters, path: str) -> None:
    view = c.view()
    c.fetch_add("a", 5)
    assert view[6] == 15
    with Counters(path) as other:
        other[0] = -1
        del other["b"]
    assert view.tolist() == [-1, 5, 0, 0, 0, 0, 15, 0]


def test_a_view_of_a_private_copy_shows_the_copy(c: Counters, path: str) -> None:
    with Counters(path, mode="private") as p:
        view = p.view()
        c["a"] = 1
        assert view[6] == 10
        p["a"] = 2
        assert view[6] == 2


def test_a_view_outlives_growth_and_close(c: Counters, path: str) -> None:
    view = c.view()
    for i in range(3000):
        c.fetch_add(f"n{i}", i)
    assert len(view) == 8, "it shows what there was"
    assert len(c.view()) == 3008
    assert c.view()[3007] == 2999
    c.fetch_add("a")
    assert view[6] == 11
    part = view[6:]
    c.close()
    del c
    gc.collect()
    with Counters(path) as other:
        other.fetch_add("a")
        assert (view[6], part.tolist()) == (12, [12, -20])


def test_nothing_can_be_written_through_what_a_view_is_made_of(c: Counters) -> None:
    view = c.view()
    base = memoryview(view.obj)
    assert base.readonly
    assert base.nbytes == 8 * (64 if c.padded else 8)
    with pytest.raises(TypeError, match="read-only"):
        base[0] = 1
    with pytest.raises((BufferError, TypeError)):
        (ctypes.c_int64 * 8).from_buffer(view)


def test_a_view_has_the_names_that_were_made_elsewhere(c: Counters, path: str) -> None:
    with Counters(path) as other:
        other["made elsewhere"] = 7
    assert c.view().tolist()[-1] == 7


def test_a_view_of_floats(path: str) -> None:
    with Counters(path, 2, dtype="f64") as f:
        f.update(a=0.5, b=-1e300)
        view = f.view()
        assert (view.format, view.tolist()) == ("d", [0.0, 0.0, 0.5, -1e300])
        f.add("a", 0.25)
        assert view[2] == 0.75


def test_a_view_of_nothing(path: str) -> None:
    with Counters(path, 0) as c:
        assert c.view().tolist() == []
        c["a"] = 1
        assert c.view().tolist() == [1]


def test_arrays_of_the_cells(c: Counters) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.asarray(c.view())
    assert (array.dtype, array.shape, array.flags.writeable) == (numpy.int64, (8,), False)
    assert array.tolist() == [0, 5, 0, 0, 0, 0, 10, -20]
    assert not array.flags.owndata
    c.fetch_add("a", 90)
    assert (array[6], array.sum()) == (100, 85)
    assert array.strides == ((64,) if c.padded else (8,))
    if c.padded:
        with pytest.raises((BufferError, ValueError)):
            numpy.frombuffer(c.view(), dtype=numpy.int64)
    else:
        assert numpy.frombuffer(c.view(), dtype=numpy.int64).tolist() == array.tolist()
    c.close()
    assert array[6] == 100, "an array keeps the memory"


def test_arrays_of_floats(path: str) -> None:
    numpy = pytest.importorskip("numpy")
    with Counters(path, 3, dtype="f64") as f:
        f[1] = 0.5
        array = numpy.frombuffer(f.view())
        assert (array.dtype, array.tolist()) == (numpy.float64, [0.0, 0.5, 0.0])
        f[1] = 2.5
        assert array.sum() == 2.5


@pytest.mark.parametrize("padded", [False, True])
def test_padded_cells_lie_on_cache_lines_of_their_own(path: str, padded: bool) -> None:
    numpy = pytest.importorskip("numpy")
    with Counters(path, 3, padded=padded) as c:
        c["a"] = 1
        array = numpy.asarray(c.view())
        addresses = [array[i:].ctypes.data for i in range(4)]
        assert [b - a for a, b in itertools.pairwise(addresses)] == [64 if padded else 8] * 3
        assert addresses[0] % 64 == 0
