"""Region: sizes, and the views and words that outlive them."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmapds import Region

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def path(tmp_path: Path, descriptors: None) -> Path:
    return tmp_path / "file"


@pytest.fixture
def region(path: Path) -> Iterator[Region]:
    with Region.open(path, 3 * PAGE + 100) as region:
        yield region


def test_a_view_outlives_close(path: Path) -> None:
    region = Region.open(path, 100)
    view = memoryview(region)
    atomic = region.atomic(8)
    region.close()
    view[0] = 7
    atomic.store(1)
    assert view[8] == 1
    assert path.read_bytes()[:9] == bytes([7]) + bytes(7) + bytes([1])
    view.release()


def test_r30_a_view_outlives_the_block(path: Path) -> None:
    with Region.open(path, 100) as region:
        view = memoryview(region)[10:20]
    view[0] = 1
    assert path.read_bytes()[10] == 1
    view.release()


def test_r30_a_view_outlives_growth(region: Region, path: Path) -> None:
    view, atomic = memoryview(region), region.atomic(0)
    for size in (4 * PAGE, 1 << 20, 64 << 20):
        region.resize(size)
        assert path.stat().st_size == len(region) == size
        region[5] = size % 251
        assert view[5] == size % 251
        view[6] = size % 241
        assert region[6] == size % 241
        region[size - 1] = 1
    atomic.fetch_add(1)
    assert region[0] == 1
    assert len(view) == 3 * PAGE + 100
    view.release()


def test_r30_a_view_keeps_what_shrinking_cuts(region: Region, path: Path) -> None:
    data = os.urandom(len(region))
    region[:] = data
    view = memoryview(region)
    region.resize(PAGE + 10)
    assert path.read_bytes() == data[: PAGE + 10]
    assert view[: PAGE + 10] == data[: PAGE + 10]
    assert view[PAGE + 10 : 2 * PAGE] == bytes(PAGE - 10)  # the kernel zeroes the rest of the last page
    assert view[2 * PAGE :] == data[2 * PAGE :]
    view[3 * PAGE] ^= 1
    view[0] ^= 1
    assert region[0] == data[0] ^ 1
    region.resize(4 * PAGE)
    assert region[PAGE + 10 :] == bytes(3 * PAGE - 10)
    view.release()


def test_shrinking_that_fails_changes_nothing(tmp_path: Path, needs_root: None) -> None:
    path = tmp_path / "file"
    with Region.open(path, 4 * PAGE) as region:
        region[:] = bytes(range(256)) * (4 * PAGE // 256)
        view = memoryview(region)
        if subprocess.run(["chattr", "+a", path], check=False, stderr=subprocess.DEVNULL).returncode:
            pytest.skip("this file system has no append-only files")
        try:
            with pytest.raises(PermissionError):
                region.resize(PAGE)
        finally:
            subprocess.run(["chattr", "-a", path], check=True)
        assert len(region) == path.stat().st_size == 4 * PAGE
        view[3 * PAGE] = 77  # still the file's page, not a copy of it
        assert path.read_bytes()[3 * PAGE] == region[3 * PAGE] == 77
        view.release()


def test_growth_policy(path: Path) -> None:
    with Region.open(path, 1000, growth_limit=4000) as region:
        assert [region.resize() for _ in range(5)] == [2000, 4000, 8000, 12000, 16000]
        assert region.resize(16000) == 16000
        assert path.stat().st_size == 16000


def test_resize_refuses(path: Path) -> None:
    with Region.open(path, 1000, fixed_size=True) as region, pytest.raises(ValueError, match="fixed_size"):
        region.resize()
    with Region.open(path) as region:
        for size in (0, -1):
            with pytest.raises(ValueError, match="at least one byte"):
                region.resize(size)
        with pytest.raises((OSError, OverflowError, ValueError)):
            region.resize(1 << 62)
        with pytest.raises(OverflowError):
            region.resize(1 << 70)
        assert len(region) == path.stat().st_size == 1000


def test_readonly_follows_the_file(path: Path) -> None:
    with Region.open(path, 1000) as shared, Region.open(path, mode="readonly") as region:
        with pytest.raises(ValueError, match="does not grow"):
            region.resize(2000)
        shared.resize(3 * PAGE)
        shared[3 * PAGE - 1] = 9
        assert region.resize() == 3 * PAGE
        assert region[-1] == 9
        shared.resize(100)
        assert region.resize() == 100
        assert path.stat().st_size == 100


def test_private_resize_stays_here(path: Path) -> None:
    content = os.urandom(2 * PAGE)
    path.write_bytes(content)
    with Region.open(path, 1000, mode="private") as region:
        assert region.resize(PAGE + 10) == PAGE + 10
        assert region[:] == content[:1000] + bytes(PAGE - 990)  # grown by zeros, not by the file's bytes
        region[PAGE] = 1
        region.resize(10)
        assert region[:] == content[:10]
        region.resize(2 * PAGE)
        assert region[:] == content[:10] + bytes(2 * PAGE - 10)
        with memoryview(region):
            with pytest.raises(BufferError):
                region.resize(PAGE)
            assert len(region) == 2 * PAGE
        atomic = region.atomic(0)
        with pytest.raises(BufferError):
            region.resize(5)
        del atomic
        assert region.resize(5) == 5
        assert region.resize(1 << 24) == 1 << 24
        assert region[:5] == content[:5]
        assert not any(region[5:])
    assert path.read_bytes() == content


def test_private_growth_moves_if_the_addresses_are_taken(path: Path) -> None:
    path.write_bytes(b"content" * 1000)
    with Region.open(path, mode="private") as region:
        region[0] = 0
        end = region._mapping.address + 2 * PAGE
        try:
            blocker = Region.open(path, mode="readonly", address=end)
        except FileExistsError:
            blocker = None  # something is there already
        with memoryview(region), pytest.raises(BufferError):
            region.resize(20 * PAGE)
        region.resize(20 * PAGE)
        assert region[:8] == b"\0ontentc"
        assert not any(region[7000:])
        if blocker:
            blocker.close()


def test_resize_in_threads(path: Path) -> None:
    with Region.open(path, PAGE) as region:
        stop = threading.Event()
        failures = []

        def resize(sizes: list[int]) -> None:
            try:
                for _ in range(100):
                    for size in sizes:
                        region.resize(size)
            except BaseException as error:
                failures.append(error)
                raise

        def use() -> None:
            while not stop.is_set():
                region.pread(200000, 0)
                region[0] = 1

        threads = [threading.Thread(target=resize, args=([PAGE, 30 * PAGE, 70 * PAGE],)) for _ in range(3)]
        user = threading.Thread(target=use)
        user.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        user.join()
        assert not failures
        assert len(region) == path.stat().st_size
