"""What Region.open and Region.anonymous can be asked for."""

import gc
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapds import Region, UnsupportedFilesystem, files
from mmapds._native import kernel

PAGE = os.sysconf("SC_PAGE_SIZE")
HUGE = 2 << 20


@pytest.fixture
def path(tmp_path: Path, descriptors: None) -> Path:
    return tmp_path / "file"


def opened(path: Path, *arguments: object, **options: object) -> tuple[int, int]:
    """How large the region is, and the file behind it."""
    with Region.open(path, *arguments, **options) as region:
        return len(region), path.stat().st_size


# ---- which file, and how large ----------------------------------------------------------------------------------


def test_create(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Region.open(path)
    with pytest.raises(FileNotFoundError):
        Region.open(path, 100, create=False)
    for mode in ("private", "readonly"):
        with pytest.raises(FileNotFoundError):
            Region.open(path, 100, mode=mode)
    with pytest.raises(FileNotFoundError):
        Region.open(path / "deeper", 100)
    assert not path.exists()
    assert opened(path, 100) == (100, 100)
    assert opened(path, 100, create=False) == opened(path) == (100, 100)


def test_a_new_file_has_its_blocks(path: Path) -> None:
    opened(path, 10 * PAGE + 1)
    assert path.stat().st_blocks * 512 >= 10 * PAGE + 1
    opened(path, 100 * PAGE)
    assert path.stat().st_blocks * 512 >= 100 * PAGE


def test_size_of_a_file_that_is_there(path: Path) -> None:
    path.write_bytes(b"x" * 100)
    assert opened(path, 50) == (50, 100)
    assert opened(path, 200) == (200, 200)
    assert path.read_bytes() == b"x" * 100 + bytes(100)
    assert opened(path, 300, fit=True) == (200, 200)
    assert opened(path, 50, fit=True) == (200, 200)
    assert opened(path, 60, truncate=True) == (60, 60)
    assert path.read_bytes() == bytes(60)
    for mode in ("private", "readonly"):
        assert opened(path, 50, mode=mode) == (50, 60)
        with pytest.raises(ValueError, match="61 were asked for"):
            Region.open(path, 61, mode=mode)
    assert path.stat().st_size == 60


def test_fit_makes_a_new_or_empty_file(path: Path) -> None:
    assert opened(path, 100, fit=True) == (100, 100)
    path.write_bytes(b"")
    assert opened(path, 70, fit=True) == (70, 70)


def test_exclusive(path: Path) -> None:
    assert opened(path, 100, exclusive=True) == (100, 100)
    with pytest.raises(FileExistsError):
        Region.open(path, 200, exclusive=True)
    assert path.stat().st_size == 100
    with pytest.raises(ValueError, match="create=True"):
        Region.open(path.with_name("other"), 200, exclusive=True, create=False)
    assert not path.with_name("other").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "rw"},
        {"size": 0},
        {"size": -5},
        {"size": 100, "mode": "private", "truncate": True},
        {"size": 100, "mode": "readonly", "exclusive": True},
        {"truncate": True},
        {"exclusive": True},
        {"size": 100, "sync": True},
        {"size": 100, "mode": "private", "validate": True},
        {"size": 100, "address": 4097},
        {"size": 100, "address": 0},
        {"size": 100, "growth_limit": 0},
    ],
    ids=str,
)
def test_senseless_options_change_nothing(path: Path, options: dict[str, object]) -> None:
    path.write_bytes(b"x" * 10)
    with pytest.raises(ValueError):  # noqa: PT011 - each its own message
        Region.open(path, **options)
    assert path.read_bytes() == b"x" * 10


def test_empty_file_needs_a_size(path: Path) -> None:
    path.touch()
    for mode in ("shared", "private", "readonly"):
        with pytest.raises(ValueError, match="empty: give the size"):
            Region.open(path, mode=mode)
    assert path.stat().st_size == 0
    assert opened(path, 10) == (10, 10)


def test_permissions(path: Path) -> None:
    before = os.umask(0o077)
    try:
        opened(path, 10)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.unlink()
        opened(path, 10, permissions=0o664)
        assert stat.S_IMODE(path.stat().st_mode) == 0o664
        opened(path, 10, permissions=0o600)  # of new files only
        assert stat.S_IMODE(path.stat().st_mode) == 0o664
    finally:
        os.umask(before)


def test_paths_of_every_kind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    for name in ("a name", b"bytes", path, os.fsdecode(b"\xff\xfe"), "x" * 255):
        with Region.open(name, 10, auto_unlink=True) as region:
            monkeypatch.chdir("/")
            assert region.path == os.path.join(path.parent, os.fsdecode(name))
        monkeypatch.chdir(path.parent)
    assert os.listdir(path.parent) == []


# ---- the end of the file ----------------------------------------------------------------------------------------


def test_auto_unlink_at_close(path: Path) -> None:
    with Region.open(path, 10, auto_unlink=True) as region:
        assert path.exists()
        view = memoryview(region)
    assert not path.exists()
    view[0] = 1
    view.release()


def test_auto_unlink_when_collected(path: Path) -> None:
    regions = [Region.open(path, 10, auto_unlink=True)]
    regions.append(regions)  # type: ignore[arg-type]
    del regions
    with pytest.warns(ResourceWarning):
        gc.collect()
    assert not path.exists()


def test_auto_unlink_leaves_another_file_alone(path: Path) -> None:
    region = Region.open(path, 10, auto_unlink=True)
    path.rename(path.with_name("moved"))
    path.write_bytes(b"another")
    region.close()
    assert path.read_bytes() == b"another"
    region = Region.open(path, auto_unlink=True)
    path.unlink()
    region.close()
    region = Region.open(path, 10, auto_unlink=True)
    path.unlink()
    path.mkdir()
    region.close()
    assert path.is_dir()


def test_auto_unlink_of_an_open_that_failed(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(ValueError, match="does not grow"):
        Region.open(path, 100, mode="readonly", auto_unlink=True)
    with pytest.raises(OSError, match="Cannot allocate"):
        Region.open(path, auto_unlink=True, address=1 << 60)
    assert path.read_bytes() == b"precious"
    new = path.with_name("new")
    with pytest.raises(OSError, match="Cannot allocate"):
        Region.open(new, 10, auto_unlink=True, address=1 << 60)
    assert not new.exists()


def test_auto_unlink_is_the_opener_s(path: Path, run: Callable[..., str]) -> None:
    said = run(
        """
        region = Region.open(sys.argv[1], 10, auto_unlink=True)
        for how in ("close", "collect", "exit"):
            child = os.fork()
            if child == 0:
                if how == "close":
                    region.close()
                elif how == "collect":
                    import warnings
                    warnings.simplefilter("ignore")
                    del region
                    gc.collect()
                os._exit(0) if how != "exit" else sys.exit(0)
            os.waitpid(child, 0)
            say(how, os.path.exists(sys.argv[1]))
        region.close()
        say(os.path.exists(sys.argv[1]))
        """,
        path,
    )
    assert said.splitlines() == ["close True", "collect True", "exit True", "False"]


# ---- where it may lie -------------------------------------------------------------------------------------------


def test_r32_overlayfs_is_refused(mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMAPDS_ANY_FILESYSTEM", raising=False)
    base = mount("tmpfs", "size=1m")
    for name in ("lower", "upper", "work"):
        (base / name).mkdir()
    (base / "lower" / "old").write_bytes(bytes(100))
    folder = mount("overlay", f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work")
    for mode in ("shared", "readonly", "private"):
        with pytest.raises(UnsupportedFilesystem, match="on overlayfs"):
            Region.open(folder / "old", mode=mode)
    with pytest.raises(UnsupportedFilesystem, match=files.ANY_FILESYSTEM):
        Region.open(folder / "new", 100)
    assert os.listdir(base / "upper") == []
    assert os.listdir(folder) == ["old"]
    monkeypatch.setenv(files.ANY_FILESYSTEM, "1")
    with Region.open(folder / "new", 100) as region, region.lock(0):
        region.resize(200)
        region[8] = 1


def test_r32_other_file_systems_by_their_number(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"x")
    for number, name in ((0x6969, "NFS"), (0xFF534D42, "CIFS"), (0x65735546, "FUSE"), (0x01021997, "9p")):
        monkeypatch.setattr(kernel, "filesystem", lambda fd, number=number: number)
        with pytest.raises(UnsupportedFilesystem, match=name):
            Region.open(path)


def test_failing_to_open_leaks_nothing(path: Path, descriptors: None) -> None:
    path.write_bytes(b"x" * 100)
    before = len(os.listdir("/proc/self/fd"))
    for options in (
        {"size": 1000, "mode": "readonly"},
        {"huge_pages": "2MB"},
        {"validate": True, "sync": True},
        {"address": 1 << 60},
        {"exclusive": True, "size": 1},
    ):
        with pytest.raises((OSError, ValueError)):
            Region.open(path, **options)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_descriptor_is_inherited(path: Path) -> None:
    with Region.open(path, 100) as region, region.lock(0):
        listed = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=True)
        assert str(path) not in listed.stdout
