"""Region: bytes, views, sizes, the binary file, the end."""

import copy
import gc
import io
import os
import pickle
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmapds import Closed, Region
from mmapds._native.region import RegionCore

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def path(tmp_path: Path, descriptors: None) -> Path:
    return tmp_path / "file"


@pytest.fixture
def region(path: Path) -> Iterator[Region]:
    with Region.open(path, 3 * PAGE + 100) as region:
        yield region


# ---- bytes ------------------------------------------------------------------------------------------------------


def test_pread_and_pwrite(region: Region, path: Path) -> None:
    assert region.pwrite(b"hello", 10) == 5
    assert region.pread(7, 9) == b"\0hello\0"
    assert path.read_bytes()[10:15] == b"hello"
    assert region.pread(1000, len(region) - 3) == bytes(3)
    assert region.pread(1, len(region)) == region.pread(1, 1 << 60) == region.pread(0, 0) == b""
    assert region.pwrite(b"", len(region)) == 0
    with pytest.raises(ValueError, match="neither may be negative"):
        region.pread(-1, 0)
    with pytest.raises(ValueError, match="neither may be negative"):
        region.pread(1, -1)


@pytest.mark.parametrize("data", [b"abc", bytearray(b"abc"), memoryview(b"xabcx")[1:4]])
def test_pwrite_takes_what_is_contiguous(region: Region, data: bytes) -> None:
    assert region.pwrite(data, 0) == 3
    assert region[:4] == b"abc\0"
    with pytest.raises(BufferError):
        region.pwrite(memoryview(b"a_b_c_")[::2], 0)
    with pytest.raises(TypeError):
        region.pwrite("abc", 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "offset"), [(1, -1), (1, 3 * PAGE + 100), (2, 3 * PAGE + 99), (1, 1 << 62), (100000, 0)]
)
def test_pwrite_past_the_end_writes_nothing(region: Region, size: int, offset: int) -> None:
    with pytest.raises(ValueError, match="resize"):
        region.pwrite(b"x" * size, offset)
    assert region[:] == bytes(len(region))


@pytest.mark.parametrize("size", [1000, 200000])
def test_pwrite_of_its_own_bytes_moved(path: Path, size: int) -> None:
    data = bytes(os.urandom(size))
    with Region.open(path, size + 1) as region, memoryview(region) as view:
        region.pwrite(data, 0)
        region.pwrite(view[:size], 1)
        assert region[:] == data[:1] + data
        region.pwrite(view[1:], 0)
        assert region[:size] == data


def test_pwrite_of_an_object_that_closes_the_region(path: Path) -> None:
    region = Region.open(path, 100)

    class Trap(bytearray):
        pass

    region.close()
    with pytest.raises(Closed):
        region.pwrite(Trap(b"x"), 0)


def test_items(region: Region) -> None:
    region[0] = 65
    region[-1] = 90
    assert region[0] == 65
    assert region[-1] == region[len(region) - 1] == 90
    for index in (len(region), -len(region) - 1, 1 << 70, -(1 << 70)):
        with pytest.raises(IndexError):
            region[index]
        with pytest.raises(IndexError):
            region[index] = 1
    for wrong in (256, -1):
        with pytest.raises(ValueError, match=r"range\(0, 256\)"):
            region[0] = wrong
    with pytest.raises(TypeError):
        region[1.5]  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        region["1"]  # type: ignore[call-overload]


def test_slices_are_those_of_a_bytearray(region: Region) -> None:
    reference = bytearray(os.urandom(len(region)))
    region[:] = reference
    for key in (slice(5), slice(-5, None), slice(3, 50, 7), slice(50, 3, -2), slice(50, 3), slice(None, None, -1)):
        assert region[key] == bytes(reference[key])
        new = os.urandom(len(reference[key]))
        reference[key] = new
        region[key] = new
        assert region[:] == bytes(reference)
    for key, value in ((slice(3), b"ab"), (slice(3), b"abcd"), (slice(0, 6, 2), b"ab"), (slice(5, 3), b"a")):
        with pytest.raises(ValueError, match="resize"):
            region[key] = value
    assert region[:] == bytes(reference)
    with pytest.raises(TypeError):
        region[0:2] = [1, 2]  # type: ignore[call-overload]


def test_buffer_protocol(region: Region) -> None:
    with memoryview(region) as view:
        assert (len(view), view.readonly, view.contiguous, view.format) == (len(region), False, True, "B")
        view[5:8] = b"abc"
    assert region[5:8] == b"abc"
    assert io.BytesIO(region).getbuffer() == region[:]
    assert bytes(region) == region[:]


# ---- modes ------------------------------------------------------------------------------------------------------


def test_modes(path: Path) -> None:
    with Region.open(path, 5000) as shared:
        with Region.open(path, mode="private") as private, Region.open(path, mode="readonly") as readonly:
            shared.pwrite(b"one", 0)
            assert readonly[:3] == private[:3] == b"one"
            private.pwrite(b"two", 0)
            assert (shared[:3], readonly[:3], private[:3]) == (b"one", b"one", b"two")
            shared.pwrite(b"six", 0)
            assert (readonly[:3], private[:3]) == (b"six", b"two")
        assert path.read_bytes()[:3] == b"six"


def test_readonly_refuses_every_change(path: Path) -> None:
    path.write_bytes(bytes(100))
    with Region.open(path, mode="readonly") as region, memoryview(region) as view:
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 1
        for change in (
            lambda: region.pwrite(b"x", 0),
            lambda: region.pwrite(b"", 0),
            lambda: region.write(b"x"),
            lambda: region.__setitem__(0, 1),
            lambda: region.__setitem__(slice(0, 1), b"x"),
            lambda: region.__setitem__(slice(0, 4, 2), b"xx"),
            lambda: region.populate(write=True),
            lambda: region.atomic(0).store(1),
        ):
            with pytest.raises(ValueError, match="read-only"):
                change()
        with pytest.raises(ValueError, match="shared"):
            region.lock(0)
        region.flush()
    assert path.read_bytes() == bytes(100)


def test_private_locks_are_refused(path: Path) -> None:
    path.write_bytes(bytes(100))
    with Region.open(path, mode="private") as region, pytest.raises(ValueError, match="shared"):
        region.lock(0)


# ---- the kernel -------------------------------------------------------------------------------------------------


def test_paging(path: Path) -> None:
    with Region.open(path, 64 * PAGE) as region:
        region.flush()
        region.flush(PAGE + 5, 10)
        region.flush(100, 0)
        region.flush(5, wait=False)
        region.flush(5, 0, wait=False)
        region.populate()
        region.populate(3, 5, write=True)
        assert region.resident() == 64 * PAGE
        assert region.resident(PAGE + 1, 1) == PAGE
        assert region.resident(0, 0) == region.resident(len(region)) == 0
        for advice in ("sequential", "random", "normal", "willneed", "dontneed", "dontdump", "dodump", "cold"):
            region.advise(advice)
            region.advise(advice, 5 * PAGE + 1, 3)
        with pytest.raises(ValueError, match="'pageout'"):
            region.advise("sometimes")
        for call in (region.flush, region.populate, region.resident):
            for offset, length in ((-1, 1), (0, -1), (64 * PAGE + 1, None), (1, 64 * PAGE), (1 << 62, 1 << 62)):
                with pytest.raises(ValueError, match="not within"):
                    call(offset, length)
        with pytest.raises(ValueError, match="not within"):
            region.flush(10, 64 * PAGE, wait=False)
        with pytest.raises(ValueError, match="not within"):
            region.advise("normal", 1, 64 * PAGE)


def test_sparse_files_are_not_resident(path: Path) -> None:
    with Region.open(path, 1 << 26, reserve=False) as region:
        assert region.resident() == 0
        region[1 << 25] = 1
        assert 0 < region.resident() < 1 << 26


def test_private_dontneed_takes_whole_pages_only(path: Path) -> None:
    path.write_bytes(b"-" * (4 * PAGE + 100))
    with Region.open(path, mode="private") as region:
        region[:] = b"x" * len(region)
        region.advise("dontneed", 10, 2 * PAGE)
        assert region[:PAGE] == b"x" * PAGE
        assert region[PAGE : 2 * PAGE] == b"-" * PAGE
        assert region[2 * PAGE :] == b"x" * (2 * PAGE + 100)
        region.advise("dontneed", 10, 5)
        region.advise("dontneed", 4 * PAGE)
        assert region[4 * PAGE :] == b"-" * 100
        region.advise("dontneed")
        assert region[:] == path.read_bytes()


# ---- the binary file --------------------------------------------------------------------------------------------


def test_binary_file(path: Path) -> None:
    text = b"first\nsecond\n" + b"x" * 5000 + b"\nlast"
    path.write_bytes(text)
    with Region.open(path) as region:
        reference = io.BytesIO(text)
        for method, arguments in (
            ("readline", ()),
            ("tell", ()),
            ("read", (3,)),
            ("readline", ()),
            ("readline", ()),
            ("readline", ()),
            ("readline", ()),
            ("read", ()),
            ("seek", (3,)),
            ("seek", (4, 1)),
            ("seek", (-5, 2)),
            ("read", (None,)),
            ("seek", (0,)),
            ("read", (-1,)),
            ("seek", (7,)),
            ("write", (b"12",)),
            ("read", (4,)),
        ):
            assert getattr(region, method)(*arguments) == getattr(reference, method)(*arguments)
        for offset, whence in ((-1, 0), (1, 2), (len(text) + 1, 0), (0, 3)):
            with pytest.raises(ValueError, match=r"position|whence"):
                region.seek(offset, whence)
        region.seek(-1, 2)
        with pytest.raises(ValueError, match="resize"):
            region.write(b"ab")
        assert region.tell() == len(text) - 1


def test_position_behind_a_new_end(path: Path) -> None:
    path.write_bytes(b"a\nb\n" * 1000)
    with Region.open(path) as region:
        region.seek(0, 2)
        region.resize(10)
        assert region.read() == region.readline() == b""
        assert region.tell() == 4000
        assert region.seek(0) == 0
        assert region.readline() == b"a\n"


# ---- the end ----------------------------------------------------------------------------------------------------


def test_closed(path: Path) -> None:
    region = Region.open(path, 100)
    assert not region.closed
    region.close()
    region.close()
    assert region.closed
    for call in (
        lambda: len(region),
        lambda: region.pread(1, 0),
        lambda: region.pwrite(b"x", 0),
        lambda: region[0],
        lambda: region[:],
        lambda: region.__setitem__(0, 1),
        lambda: region.__setitem__(slice(0, 1), b"x"),
        lambda: memoryview(region),
        lambda: region.atomic(0),
        lambda: region.lock(0),
        region.populate,
        region.resident,
        region.flush,
        lambda: region.flush(wait=False),
        lambda: region.advise("normal"),
        region.resize,
        region.read,
        region.readline,
        lambda: region.write(b"x"),
        lambda: region.seek(0),
        region.tell,
        region.__enter__,
    ):
        with pytest.raises(Closed):
            call()
    assert "closed" in repr(region)


def test_unclosed_is_a_resource_warning(path: Path) -> None:
    regions = [Region.open(path, 100)]
    with pytest.warns(ResourceWarning, match="unclosed <Region"):
        regions.clear()


def test_a_warning_that_is_an_error_still_closes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    region = Region.open(path, 100, auto_unlink=True)
    fd = region._file.fd
    caught = []
    monkeypatch.setattr(sys, "unraisablehook", lambda info: caught.append(info.exc_type))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del region
        gc.collect()
    assert caught == [ResourceWarning]
    assert not path.exists()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_in_a_cycle(path: Path) -> None:
    region = Region.open(path, 100)
    cycle: list[object] = [region, region.atomic(0), region.lock(8), memoryview(region)]
    cycle.append(cycle)
    del region, cycle
    with pytest.warns(ResourceWarning):
        gc.collect()


def test_cannot_be_made_or_copied_otherwise(region: Region) -> None:
    with pytest.raises(TypeError, match=r"Region\.open"):
        Region()
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            duplicate(region)  # type: ignore[operator]
    with pytest.raises(Closed):
        len(RegionCore())


def test_repr(region: Region, path: Path) -> None:
    assert repr(region) == f"<Region {path} shared {len(region)} bytes>"
