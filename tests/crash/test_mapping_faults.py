"""Region when the disk is full, the file too large, the file system read-only, a signal or MemoryError comes."""

import errno
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmapds import Region, files
from mmapds._native import kernel

KIND = "example"


def left(folder: Path) -> int:
    """Bytes that the file system has left."""
    found = os.statvfs(folder)
    return found.f_bfree * found.f_frsize


def settled(folder: Path) -> int:
    """The same, when what was deleted is really gone."""
    os.sync()
    return left(folder)


# ---- a full disk ------------------------------------------------------------------------------------------------


def test_r10_creating_on_a_full_disk(small_disk: Path) -> None:
    path, before = small_disk / "file", settled(small_disk)
    there = set(os.listdir(small_disk))
    with pytest.raises(OSError, match="No space left") as caught:
        Region.open(path, before + (1 << 20))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    with pytest.raises(OSError, match="No space left"):
        files.create(str(path), files.new_header(KIND), before + (1 << 20), durability="process")
    assert set(os.listdir(small_disk)) == there
    assert settled(small_disk) == before
    with Region.open(path, 1 << 20) as region:
        region[:] = b"x" * (1 << 20)


@pytest.mark.parametrize("views", [False, True])
def test_r10_growing_on_a_full_disk(small_disk: Path, views: bool) -> None:
    path = small_disk / "file"
    with Region.open(path, 1 << 20) as region:
        content = os.urandom(1 << 20)
        region[:] = content
        os.sync()
        view = memoryview(region) if views else None
        status, before = path.stat(), settled(small_disk)
        for size in (None, (1 << 20) + before + (1 << 20), 1 << 40):
            if size is None:
                with open(small_disk / "filler", "wb") as filler:
                    kernel.allocate(filler.fileno(), before - (1 << 18))
                before = settled(small_disk)
            with pytest.raises(OSError, match="No space left") as caught:
                region.resize(size)
            assert caught.value.errno == errno.ENOSPC
            assert len(region) == path.stat().st_size == 1 << 20
            assert path.stat().st_blocks <= status.st_blocks
            assert region[:] == path.read_bytes() == content
            assert settled(small_disk) == before
        region[0] ^= 1
        assert path.read_bytes()[0] == content[0] ^ 1
        (small_disk / "filler").unlink()
        region.resize((1 << 20) + (1 << 19))
        region[1 << 20] = 1
        if view is not None:
            view.release()


def test_r10_opening_larger_on_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "file"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(OSError, match="No space left"):
        Region.open(path, 1 << 26)
    assert path.read_bytes() == b"x" * 1000


# ---- the file too large -----------------------------------------------------------------------------------------

TOO_LARGE = """
import errno, resource
path, how = sys.argv[1:]
with Region.open(path, 100000) as region:
    region[:] = b"x" * 100000
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    blocks = os.stat(path).st_blocks
    for size in ((1 << 20) + 1, 1 << 24):
        try:
            if how == "grow":
                region.resize(size)
            elif how == "open":
                Region.open(path, size)
            elif how == "sparse":
                Region.open(path + "-new", size, reserve=False)
            else:
                Region.open(path + "-new", size)
        except OSError as error:
            say(errno.errorcode[error.errno])
        else:
            say("no error")
        assert len(region) == os.stat(path).st_size == 100000
        assert os.stat(path).st_blocks == blocks
        assert region[:] == b"x" * 100000
    region.resize(1 << 20)
    region[-1] = 1
say(os.listdir(os.path.dirname(path)))
"""


@pytest.mark.parametrize("how", ["grow", "open", "create", "sparse"])
def test_r11_rlimit_fsize(run: Callable[..., str], tmp_path: Path, how: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert run(TOO_LARGE, folder / "file", how).splitlines() == ["EFBIG", "EFBIG", "['file']"]


def test_r11_a_file_system_with_a_limit(small_disk: Path) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - ENOSPC or EFBIG
        Region.open(small_disk / "file", 1 << 62)
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert not (small_disk / "file").exists()


# ---- read-only --------------------------------------------------------------------------------------------------


def test_r13_read_only_file_system(mount: Callable[..., Path]) -> None:
    folder = mount("tmpfs", "size=1m")
    path = folder / "file"
    files.create(str(path), files.new_header(KIND), 8192, durability="process")
    with open(path, "r+b") as file:
        os.pwrite(file.fileno(), os.urandom(16), kernel.IMMUTABLE)  # it was written on another boot
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with Region.open(path, mode="readonly") as region:
        assert region[:] == before[0]
        assert region.atomic(8).load()
        region.populate()
        region.flush()
        assert region.resize() == 8192
    with Region.open(path, mode="private") as region:
        region[:] = bytes(8192)
        region.resize(1 << 20)
    opened = files.OpenFile(str(path), KIND, writable=False)
    assert not opened.same_origin()
    opened.close()
    for size in (None, 10000):
        with pytest.raises(OSError, match="Read-only file system") as caught:
            Region.open(path, size)
        assert caught.value.filename == str(path)
        assert "readonly" in "".join(caught.value.__notes__)
    with pytest.raises(OSError, match="Read-only file system"):
        Region.open(folder / "new", 10)
    with pytest.raises(OSError, match="Read-only file system"):
        files.OpenFile(str(path), KIND, writable=True)
    with pytest.raises(OSError, match="Read-only file system"):
        files.create(str(folder / "new"), files.new_header(KIND), 8192, durability="process")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_r13_no_write_permission(needs_root: None, run: Callable[..., str], open_folder: Path) -> None:
    path = open_folder / "file"
    path.write_bytes(b"x" * 100)
    path.chmod(0o644)
    said = run(
        """
        path = sys.argv[1]
        os.setgid(65534)
        os.setuid(65534)
        with Region.open(path, mode="readonly") as region, Region.open(path, mode="private") as private:
            private[0] = 1
            say(region[:3], private[:3])
        for call in (
            lambda: Region.open(path), lambda: Region.open(path, 200), lambda: Region.open(path + "-new", 10),
            lambda: Region.open(path, 10, truncate=True),
        ):
            try:
                call()
            except PermissionError as error:
                say(os.path.basename(error.filename or ""), bool(getattr(error, "__notes__", None)))
        """,
        path,
    )
    assert said.splitlines() == [
        "b'xxx' b'\\x01xx'",
        "file True",
        "file True",
        f"{open_folder.name} False",
        "file True",
    ]
    assert path.read_bytes() == b"x" * 100
    assert os.listdir(open_folder) == ["file"]


def test_r13_unreadable(needs_root: None, run: Callable[..., str], open_folder: Path) -> None:
    path = open_folder / "file"
    path.write_bytes(b"x")
    path.chmod(0)
    said = run(
        """
        os.setuid(65534)
        for mode in ("readonly", "private", "shared"):
            try:
                Region.open(sys.argv[1], mode=mode)
            except PermissionError as error:
                say(error.filename == sys.argv[1])
        """,
        path,
    )
    assert said.split() == ["True"] * 3
    assert stat.S_IMODE(path.stat().st_mode) == 0
