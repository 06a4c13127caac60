"""Region: how much memory, where, of which kind: sparse, locked, anonymous, huge pages."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapds import Region, UnsupportedFilesystem

PAGE = os.sysconf("SC_PAGE_SIZE")
HUGE = 2 << 20


@pytest.fixture
def path(tmp_path: Path, descriptors: None) -> Path:
    return tmp_path / "file"


def test_populate(path: Path) -> None:
    with Region.open(path, 100 * PAGE, populate=True) as region:
        assert region.resident() == 100 * PAGE
    with Region.anonymous(100 * PAGE, populate=True) as region:
        assert region.resident() == 100 * PAGE


def test_r29_more_than_4_gib(path: Path) -> None:
    size = (5 << 30) + 12345
    with Region.open(path, size, reserve=False) as region:
        assert len(region) == path.stat().st_size == size
        assert path.stat().st_blocks < 1000
        region[-1] = 9
        region[4 << 30] = 8
        word = region.atomic((4 << 30) + 8)
        word.store(-5)
        assert region.pread(10, (4 << 30) + 8) == b"\xfb" + b"\xff" * 7 + bytes(2)
        assert (region[0], region[8], region[1 << 31]) == (0, 0, 0)
        with memoryview(region) as view:
            assert view[size - 1] == 9
        assert region.resident(4 << 30) > 0
        region.flush((4 << 30) + 1, 100)
        region.seek(-1, 2)
        assert region.tell() == size - 1
        assert region.read() == b"\x09"
        assert region.resize(size + (1 << 32)) == size + (1 << 32)
        assert region[size - 1] == 9
        region.resize(1 << 20)
        assert word.load() == -5  # a view of what was cut
    assert path.stat().st_size == 1 << 20


def test_reserve_false_allocates_nothing(path: Path) -> None:
    with Region.open(path, 1 << 40, reserve=False) as region:
        region[1 << 39] = 1
    assert path.stat().st_blocks * 512 < 1 << 20
    with Region.anonymous(1 << 40, reserve=False) as region:
        region[1 << 39] = 1


def test_lock_memory(path: Path) -> None:
    def locked() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmLck:")[1].split()[0]) * 1024

    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit != resource.RLIM_INFINITY and limit < 1 << 20:
        pytest.skip(f"no more than {limit} bytes may be locked here")
    before = locked()
    with Region.open(path, 10 * PAGE, lock_memory=True) as region:
        assert locked() == before + 10 * PAGE
        region.resize(20 * PAGE)
        assert locked() == before + 20 * PAGE
        region.resize(5 * PAGE)
        assert locked() == before + 5 * PAGE
    with Region.open(path, mode="private", lock_memory=True) as region:
        region.resize(20 * PAGE)
        assert locked() == before + 20 * PAGE
    assert locked() == before


def test_growth_that_may_not_be_locked(path: Path, run: Callable[..., str]) -> None:
    """It raises, and all is as before: not larger, and locked."""
    script = """
        import mmapds, resource, sys
        page = 4096
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (25 * page, 25 * page))
        with mmapds.Region.anonymous(100 * page) as room:
            address = room._mapping.address  # where there will be room to grow in place
        with mmapds.Region.open(sys.argv[1], 10 * page, address=address, lock_memory=True) as region:
            region[0] = 1
            try:
                region.resize(30 * page)
            except OSError as error:
                print(error.errno)
            with open("/proc/self/status") as status:
                locked = status.read().split("VmLck:")[1].split()[0]
            print(locked, len(region) // page, region[0])
            region.resize(15 * page)
            print(len(region) // page, region[14 * page], region._mapping.address == address)
        """
    root = ["setpriv", "--bounding-set", "-ipc_lock"] if os.geteuid() == 0 else None  # who may lock what he likes
    assert run(script, path, under=root).split() == [str(errno.ENOMEM), "40", "10", "1", "15", "0", "True"]


def test_address(path: Path) -> None:
    with Region.anonymous(100 * PAGE) as room:
        address = room._mapping.address
        with pytest.raises(FileExistsError, match="taken"):
            Region.open(path, PAGE, address=address)
        with pytest.raises(FileExistsError, match="taken"):
            Region.open(path, PAGE, address=address, validate=True)
    for validate in (False, True):
        with Region.open(path, PAGE, address=address, validate=validate) as region:
            assert region._mapping.address == address
            region[0] = 1


def test_validate_and_sync(path: Path) -> None:
    with Region.open(path, PAGE, validate=True) as region:
        region.resize(10 * PAGE)
        region[9 * PAGE] = 1
        assert path.read_bytes()[9 * PAGE] == 1
    with pytest.raises(UnsupportedFilesystem, match="DAX") as caught:
        Region.open(path, PAGE, validate=True, sync=True)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert caught.value.path == str(path)


# ---- anonymous --------------------------------------------------------------------------------------------------


def test_anonymous(descriptors: None) -> None:
    with Region.anonymous(100) as region:
        assert region.path is None
        assert region[:] == bytes(100)
        region[5] = 1
        with region.lock(8):
            region.resize(1 << 20)
        assert region[5] == 1
        region.flush()
        assert repr(region) == "<Region anonymous shared 1048576 bytes>"
    for size in (0, -1):
        with pytest.raises(ValueError, match="at least one byte"):
            Region.anonymous(size)
    with pytest.raises((OSError, ValueError)):
        Region.anonymous(1 << 62)


def test_anonymous_is_shared_with_a_fork(run: Callable[..., str]) -> None:
    said = run(
        """
        region = Region.anonymous(4096)
        word = region.atomic(0)
        if (child := os.fork()) == 0:
            word.store(41)
            word.wake(1)
            with region.lock(8):
                region[100] = 7
            region.resize(8192)
            region[8000] = 9
            os._exit(0)
        word.wait(0)
        os.waitpid(child, 0)
        region.resize(8192)
        say(word.load(), region[100], region[8000], lock_ends(region.lock(8)))
        region.close()
        """
    )
    assert said == "41 7 9 False"


# ---- huge pages -------------------------------------------------------------------------------------------------


def test_huge_pages_elsewhere(path: Path) -> None:
    with pytest.raises(UnsupportedFilesystem, match="not on a hugetlbfs: mount one"):
        Region.open(path, 10, huge_pages="2MB")
    assert not path.exists()


def test_huge_pages_not_reserved(descriptors: None) -> None:
    if Path("/proc/sys/vm/nr_hugepages").read_text() != "0\n":
        pytest.skip("there are huge pages")
    with pytest.raises(OSError, match="Cannot allocate memory"):
        Region.anonymous(10, huge_pages="2MB")


def test_anonymous_huge_pages(huge_pages: int, descriptors: None) -> None:
    with Region.anonymous(10, huge_pages="2MB") as region:
        assert len(region) == HUGE
        region[HUGE - 1] = 5
        region.resize(HUGE + 1)
        assert len(region) == 2 * HUGE
        assert region[HUGE - 1] == 5
        view = memoryview(region)
        view[HUGE] = 6
        region.populate()
        region.advise("normal", 5, 5)
        region.resize(1)
        assert len(region) == HUGE
        assert (view[HUGE - 1], view[HUGE], region[HUGE - 1]) == (5, 6, 5)
        region.atomic(8).fetch_add(1)
        with region.lock(16):
            pass
        view.release()


@pytest.mark.parametrize("given", ["2MB", None])
def test_hugetlbfs(huge_pages: int, mount: Callable[..., Path], given: str | None) -> None:
    path = mount("hugetlbfs", "pagesize=2M") / "file"
    with pytest.raises(UnsupportedFilesystem, match="pages of 2097152 bytes: mount one with pagesize=1G"):
        Region.open(path, 10, huge_pages="1GB")
    assert not path.exists()
    with Region.open(path, 3 * HUGE, huge_pages=given) as region:
        region[-1] = 1
        with Region.open(path, mode="private", huge_pages=given) as private:
            private[-1] = 2
            private.resize(HUGE)
            assert private.resize(2 * HUGE) == 2 * HUGE
        region.resize(HUGE + 1)
        assert (len(region), path.stat().st_size) == (2 * HUGE, 2 * HUGE)
        region.flush()
        view = memoryview(region)
        os.truncate(path, HUGE)
        assert view[HUGE + 5] == 0
        assert region._mapping.is_lost
        view.release()
    path.unlink()
