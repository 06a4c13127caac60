"""How files come to life: header page, creation, what is refused, locks, settling."""

import errno
import os
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapds import IncompatibleFormat, MappingLost, UnsupportedFilesystem, files
from mmapds._native import kernel
from mmapds._native.kernel import LockFile

KIND = "example"


@pytest.fixture
def path(tmp_path: Path, descriptors: None) -> str:
    return str(tmp_path / "file")


def make(path: str, size: int = 8192, durability: str = "process", **options: object) -> bytes:
    page = files.new_header(KIND, durability=durability, **options)
    files.create(path, page, size, durability=durability)
    return Path(path).read_bytes()


# ---- creating ---------------------------------------------------------------------------------------------------


def test_create_does_not_replace(path: str) -> None:
    Path(path).write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        make(path)
    assert Path(path).read_bytes() == b"mine"
    assert os.listdir(os.path.dirname(path)) == ["file"]


def test_create_in_a_folder_that_is_not_there(path: str) -> None:
    with pytest.raises(FileNotFoundError):
        make(path + "/deeper")
    Path(path).touch()
    with pytest.raises(NotADirectoryError):
        make(path + "/deeper")


@pytest.mark.parametrize("rename", ["renameat2", "link"])
def test_create_where_unnamed_files_are_missing(path: str, monkeypatch: pytest.MonkeyPatch, rename: str) -> None:
    real = os.open

    def no_unnamed(name: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real(name, flags, mode)

    def no_rename(source: str, target: str) -> None:
        raise OSError(errno.EINVAL, "no such flag")

    monkeypatch.setattr(os, "open", no_unnamed)
    if rename == "link":
        monkeypatch.setattr(kernel, "rename_new", no_rename)
    folder = Path(path).parent
    make(path)
    assert os.listdir(folder) == ["file"]
    files.parse_header(Path(path).read_bytes(), path)
    before = Path(path).read_bytes()
    with pytest.raises(FileExistsError):
        make(path)
    with pytest.raises(ZeroDivisionError), files.unnamed(path, 0o600):
        1 / 0  # noqa: B018
    assert (os.listdir(folder), Path(path).read_bytes()) == (["file"], before)
    make(str(folder / ("x" * 255)))


def test_r32_tmpfs_forgets(mount: Callable[..., Path]) -> None:
    path = str(mount("tmpfs", "size=1m") / "file")
    with pytest.raises(UnsupportedFilesystem, match="on tmpfs, which forgets everything") as caught:
        make(path, durability="power")
    assert (caught.value.path, caught.value.errno) == (path, errno.EOPNOTSUPP)
    assert not os.path.exists(path)
    make(path)


# ---- opening ----------------------------------------------------------------------------------------------------


def test_r17_only_regular_files(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, fifo, link, dangling, name = (f"{path}-{what}" for what in ("folder", "fifo", "link", "dangling", "socket"))
    os.mkdir(folder)
    os.mkfifo(fifo)
    make(path)
    os.symlink(path, link)
    os.symlink(path + "-nowhere", dangling)
    monkeypatch.chdir(os.path.dirname(path))  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.basename(name))
        before = Path(path).read_bytes()
        for writable in (True, False):
            for there, message, error in (
                (folder, "is a directory", IsADirectoryError),
                (fifo, "is a FIFO", IncompatibleFormat),
                (link, "is a symbolic link", IncompatibleFormat),
                (dangling, "is a symbolic link", IncompatibleFormat),
                (name, "is a device or socket", IncompatibleFormat),
                ("/dev/null", "is a device or socket", IncompatibleFormat),
                (path + "-nowhere", "No such file", FileNotFoundError),
            ):
                with pytest.raises(error, match=message):
                    files.open_regular(there, writable=writable)
                with pytest.raises(error, match=message):
                    files.OpenFile(there, KIND, writable=writable)
    assert Path(path).read_bytes() == before


def test_an_open_file(path: str) -> None:
    make(path)
    for writable in (True, False):
        file = files.OpenFile(path, KIND, writable=writable)
        assert (file.size, file.header.kind, file.writable) == (8192, KIND, writable)
        assert (file.locks is not None) == writable
        assert not os.get_inheritable(file.fd)
        file.check_path()
        file.close()
        file.close()
    files.OpenFile(path, KIND, writable=True)  # collected: closed


def test_r19_the_path_replaced(path: str) -> None:
    make(path)
    file = files.OpenFile(path, KIND, writable=True)
    os.rename(path, path + "-old")
    with pytest.raises(MappingLost, match="removed or replaced") as caught:
        file.check_path()
    assert (caught.value.errno, caught.value.path) == (errno.ESTALE, path)
    make(path)
    with pytest.raises(MappingLost, match="open the path again"):
        file.check_path()
    os.unlink(path)
    os.mkdir(path)
    with pytest.raises(MappingLost):
        file.check_path()
    os.rmdir(path)
    os.rename(path + "-old", path)
    file.check_path()
    file.close()


# ---- locks ------------------------------------------------------------------------------------------------------


def test_lock_file(path: str) -> None:
    make(path)
    with open(path, "r+b") as file:
        one, two = LockFile(file.fileno(), path), LockFile(file.fileno(), path)
        assert one.try_lock(5)
        assert not two.try_lock(5)
        assert not two.try_lock(0, 0)
        assert two.try_lock(6)
        assert not one.try_lock(1, 0)
        one.unlock(5)
        assert two.try_lock(5)
        two.close()
        assert one.try_lock(1, 0)
        assert one.try_lock((1 << 63) - 2)
        two.close()
        assert not two.usable
        two.unlock(5)
        with pytest.raises(ValueError, match="closed"):
            two.try_lock(5)
        with pytest.raises(ValueError, match="closed"):
            two.lock(5)
        with pytest.raises(OSError, match="Invalid argument"):
            one.try_lock(-5)
        three = LockFile(file.fileno(), path)
        assert not three.try_lock(5, shared=True)
        one.close()
        assert three.try_lock(5, shared=True)
    assert three.usable
    three.close()
    with pytest.raises(OSError, match="No such file"):
        LockFile(-1, path)


def test_a_lock_file_is_of_that_file_even_if_the_path_is_not(path: str) -> None:
    make(path)
    file = files.OpenFile(path, KIND, writable=True)
    os.unlink(path)
    make(path)
    locks = files.open_locks(file.fd, path)
    assert os.fstat(locks.fd).st_ino == os.fstat(file.fd).st_ino != os.stat(path).st_ino
    locks.close()
    file.close()


# ---- settling ---------------------------------------------------------------------------------------------------


class Opener:
    """Opens the file, settles it and counts the recoveries."""

    def __init__(self, path: str) -> None:
        self.file = files.OpenFile(path, KIND, writable=True)
        self.recoveries = 0

    def settle(self) -> int:
        self.file.settle(self.recover)
        return self.recoveries

    def recover(self) -> None:
        self.recoveries += 1


def other_boot(path: str) -> None:
    with open(path, "r+b") as file:
        os.pwrite(file.fileno(), os.urandom(16), kernel.IMMUTABLE)


def test_r24_same_boot(path: str) -> None:
    make(path)
    opener = Opener(path)
    assert opener.settle() == 0
    assert opener.file.same_origin()
    opener.file.close()


def test_r24_another_boot(path: str) -> None:
    make(path)
    other_boot(path)
    opener, second = Opener(path), Opener(path)
    assert not opener.file.same_origin()
    assert opener.settle() == 1
    assert opener.settle() == 1
    assert second.settle() == 0
    opener.file.close()
    second.file.close()


def test_r24_a_copy(path: str) -> None:
    make(path)
    shutil.copyfile(path, path + "-copy")
    opener = Opener(path + "-copy")
    assert opener.settle() == 1
    opener.file.close()
    os.rename(path + "-copy", path)  # the same file under another name
    opener = Opener(path)
    assert opener.settle() == 0
    opener.file.close()


def test_r21_somebody_lives_in_it(path: str) -> None:
    make(path)
    living = files.OpenFile(path, KIND, writable=True)
    assert living.live_locks().try_lock(kernel.LOCK_SLOT + 3)
    other_boot(path)  # a container with its own idea of the boot id
    before = Path(path).read_bytes()
    opener = Opener(path)
    assert opener.settle() == 0
    assert Path(path).read_bytes() == before
    living.close()
    assert opener.settle() == 1
    opener.file.close()


def test_r08_a_recovery_that_fails_is_run_again(path: str) -> None:
    make(path)
    other_boot(path)
    opener = Opener(path)
    for error in (MemoryError, KeyboardInterrupt):

        def fail(error: type[BaseException] = error) -> None:
            raise error

        with pytest.raises(error):
            opener.file.settle(fail)
    assert opener.settle() == 1
    opener.file.close()


def test_growing_excludes(path: str) -> None:
    make(path)
    with open(path, "r+b") as file:
        locks = LockFile(file.fileno(), path)
        with files.growing(file.fileno(), path):
            assert not locks.try_lock(kernel.LOCK_OPEN)
        assert locks.try_lock(kernel.LOCK_OPEN)
        locks.close()


def test_allocate_never_shrinks(path: str) -> None:
    with open(path, "w+b") as file:
        file.write(b"x" * 5000)
        file.flush()
        for length in (0, -1, 4999, 5000):
            kernel.allocate(file.fileno(), length)
            assert os.fstat(file.fileno()).st_size == 5000
        kernel.allocate(file.fileno(), 100_000_001)
        assert os.fstat(file.fileno()).st_size == 100_000_001
        assert os.fstat(file.fileno()).st_blocks * 512 >= 100_000_000
        with pytest.raises(OSError, match="No space left"):
            kernel.allocate(file.fileno(), 1 << 60)
        assert os.fstat(file.fileno()).st_size == 100_000_001
    assert Path(path).read_bytes()[:5001] == b"x" * 5000 + b"\0"
    assert struct.calcsize("<16sQQ32xQQ32s16xQ") == 136  # the mutable half, as layout.h draws it
