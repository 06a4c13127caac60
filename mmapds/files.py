"""How every file of mmapds comes to life: create, open, header, locks, recovery after another boot.

Promises
    Nobody ever sees half a file: it gets its name when it is complete, and a process killed before leaves nothing
    behind. A file that is not what it should be is refused and stays as it is, byte for byte. Liveness is a kernel
    lock, never a pid. Whatever another boot left in a file is reset or verified before it is used.

How
    `create` writes an unnamed file (``O_TMPFILE``), allocates all of it (so that a full disk is an `OSError` now and
    not a SIGBUS later) and links it to its name, which fails if somebody was first. `open_regular` takes regular files
    only and never follows a symbolic link at the end of the path. `open_locks` makes the handle's one descriptor for
    locking. `OpenFile.settle` runs recovery, under byte 0, and only when nobody is alive. The header page has a module
    of its own, and is offered here too. Needs /proc.

Prior art
    bbolt (meta pages with a checksum, the path checked against the open file), systemd-journald (boot id in the
    header), iceoryx2 (the last word of initialisation is stored last).

Rejected
    Creating under the final name and marking the header "ready" at the end: every opener must then know how long to
    wait for a creator that may be dead. Pid files: pids are reused, and mean nothing in another namespace.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmapds._header import (
    DURABILITIES,
    FAILED,
    HOLDER,
    MAGIC,
    ORIGIN,
    Header,
    boot_id,
    identity_of,
    new_header,
    parse_header,
    set_origin,
)
from mmapds._native import kernel
from mmapds._native.kernel import LockFile
from mmapds.errors import (
    Closed,
    CorruptionError,
    DurabilityFailed,
    ForkedHandle,
    IncompatibleFormat,
    MappingLost,
    UnsupportedFilesystem,
)

_NOBODY = bytes(32)  # the origin of a file that is being recovered, or whose recoverer died

__all__ = [
    "ANY_FILESYSTEM",
    "DURABILITIES",
    "FAILED",
    "MAGIC",
    "Header",
    "OpenFile",
    "Opened",
    "boot_id",
    "check_filesystem",
    "check_same",
    "create",
    "flock_holder",
    "growing",
    "identity_of",
    "new_header",
    "open_locks",
    "open_regular",
    "parse_header",
    "set_origin",
    "sync_directory",
    "unnamed",
]

ANY_FILESYSTEM = "MMAPDS_ANY_FILESYSTEM"

# Where mappings of one file are not coherent between all who may open it, or locks do not reach all of them.
_UNSUPPORTED = {
    0x794C7630: "overlayfs",
    0x6969: "NFS",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x517B: "SMB",
    0x65735546: "FUSE",
    0x01021997: "9p",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x47504653: "GPFS",
    0x0BD00BD0: "Lustre",
}
_VOLATILE = {0x01021994: "tmpfs", 0x858458F6: "ramfs"}


def check_filesystem(fd: int, path: str, durability: str) -> None:
    """UnsupportedFilesystem where the promises cannot be kept."""
    found = kernel.filesystem(fd)
    if (name := _UNSUPPORTED.get(found)) and not os.environ.get(ANY_FILESYSTEM):
        raise UnsupportedFilesystem(
            f"{path} is on {name}, where processes may see different bytes of one file, or locks may not reach all "
            f"of them. Use a local file system, or set {ANY_FILESYSTEM}=1 in the environment if you know better.",
            path=path,
        )
    if durability == "power" and (name := _VOLATILE.get(found)):
        raise UnsupportedFilesystem(
            f"{path} is on {name}, which forgets everything when the power goes: durability='power' needs a disk",
            path=path,
        )


def sync_directory(path: str) -> None:
    """Makes a new name, or a rename, survive power loss."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(fd, path)
    finally:
        os.close(fd)


def sync(fd: int, path: str) -> None:
    """fsync; DurabilityFailed if the disk did not take it: a repeated fsync that succeeds would prove nothing."""
    try:
        os.fsync(fd)
    except OSError as error:
        raise DurabilityFailed(
            f"{path}: the disk did not take what was written ({error.strerror}). Check the disk, then write again.",
            path=path,
        ) from error


@contextmanager
def unnamed(
    path: str, permissions: int, name: Callable[[int, str | None, str], None] | None = None
) -> Iterator[tuple[int, Callable[[], None]]]:
    """A new file without a name, in the directory of `path`, and a call that gives it the name.

    The call raises FileExistsError if there is one. `name` does it in its own way, with the descriptor, the temporary
    name or None, and the path. Where the file system has no unnamed files, the file has a
    temporary name until then, which a kill leaves behind (".NAME.XXXXXXXX.tmp").
    """
    temporary: str | None = None
    try:
        fd = os.open(os.path.dirname(path) or ".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT) or not os.path.isdir(
            os.path.dirname(path) or "."
        ):
            raise
        base = os.path.basename(path)[:40]  # 255 bytes is the limit
        temporary = os.path.join(os.path.dirname(path), f".{base}.{os.urandom(4).hex()}.tmp")
        fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def publish() -> None:
        nonlocal temporary
        if name is not None:
            name(fd, temporary, path)
            temporary = None
        elif temporary is None:
            kernel.link_fd(fd, path)
        else:
            try:
                kernel.rename_new(temporary, path)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS):  # the file system cannot
                    raise
                os.link(temporary, path)
                os.unlink(temporary)
            temporary = None

    try:
        os.fchmod(fd, permissions)
        yield fd, publish
    finally:
        os.close(fd)
        if temporary is not None:
            os.unlink(temporary)


def create(
    path: str,
    page: bytearray,
    size: int,
    *,
    durability: str,
    permissions: int = 0o600,
    end: bytes = b"",
    name: Callable[[int, str | None, str], None] | None = None,
) -> None:
    """Creates a file of `size` bytes that starts with the header page, is zero behind it, and ends with `end`.

    FileExistsError if somebody was first; OSError(ENOSPC) if there is no room. Whatever goes wrong, and whenever the
    process dies, there is either no file or a complete one. `name`: see `unnamed`.
    """
    with unnamed(path, permissions, name) as (fd, publish):
        check_filesystem(fd, path, durability)
        try:
            kernel.allocate(fd, size)
        except OSError as error:
            error.filename = path
            raise
        set_origin(fd, page)
        os.pwrite(fd, page, 0)
        if end:
            os.pwrite(fd, end, size - len(end))
        if durability == "power":
            sync(fd, path)
        publish()
        if durability == "power":
            sync_directory(path)


def open_regular(path: str, *, writable: bool) -> int:
    """A descriptor of a regular file; anything else is refused before it is touched.

    First without access (``O_PATH``), which neither waits for a FIFO's other end nor makes overlayfs copy the file;
    what is then opened for access is that very file, whatever the path names by then.
    """
    seen = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mode = os.fstat(seen).st_mode
        if not stat.S_ISREG(mode):
            what = {stat.S_IFDIR: "a directory", stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a FIFO"}.get(
                stat.S_IFMT(mode), "a device or socket"
            )
            kind = IsADirectoryError if stat.S_ISDIR(mode) else IncompatibleFormat
            raise kind(f"{path} is {what}; mmapds opens regular files only: give the path of the file itself")
        if writable:
            check_filesystem(seen, path, "process")
        try:
            return os.open(f"/proc/self/fd/{seen}", (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        except OSError as error:
            error.filename = path
            if writable and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                error.add_note("mode='readonly' needs no write permission")
            raise
    finally:
        os.close(seen)


def open_locks(fd: int, path: str, identity: tuple[int, int] | None = None) -> LockFile:
    """A descriptor of the same file for locking alone.

    Through /proc, so that it is that file even if the path has another by now. `identity` is its (st_dev, st_ino) when
    it was opened: a daemon that closes all descriptors after a fork may have another file under the number.
    """
    locks = LockFile(fd, path)
    try:
        if identity is not None:
            _check_identity(locks.fd, path, identity)
    except BaseException:
        locks.close()
        raise
    return locks


def _check_identity(fd: int, path: str, identity: tuple[int, int]) -> None:
    status = os.fstat(fd)
    if identity != (status.st_dev, status.st_ino):
        raise ForkedHandle(
            f"{path}: the descriptor of this handle was closed, as daemons do after a fork, and another file has its "
            "number: open a handle of your own in this process"
        )


@contextmanager
def growing(fd: int, path: str) -> Iterator[None]:
    """Excludes everybody else, in this process and others, who changes the size of the file `fd`."""
    locks = open_locks(fd, path)
    try:
        locks.lock(kernel.LOCK_OPEN)
        yield
    finally:
        locks.close()


def flock_holder(fd: int) -> str | None:
    """Who has the flock on a file, for people: the kernel lists its locks, those of this pid namespace."""
    status = os.fstat(fd)
    where = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if "FLOCK" in fields and "WRITE" in fields and where in fields:
            pid = fields[fields.index(where) - 1]
            try:
                return f"pid {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
            except OSError:
                return f"pid {pid}"
    return None


def check_same(fd: int, path: str) -> None:
    """MappingLost if `path` names another file than `fd` by now, or none."""
    ours = os.fstat(fd)
    try:
        there = os.stat(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        there = None
    if there is None or (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
        raise MappingLost(
            f"{path} was removed or replaced while this handle had it open: what is published there now is not "
            "seen here, and what is written here is not seen there. Close this handle and open the path again.",
            path=path,
            errno=errno.ESTALE,
        )


class Opened:
    """A regular file, open: its descriptor, and what tells it from another."""

    __slots__ = ("fd", "identity", "path", "writable")

    def __init__(self, path: str, *, writable: bool) -> None:
        self.path = path
        self.writable = writable
        self.fd = -1
        self.fd = open_regular(path, writable=writable)
        status = os.fstat(self.fd)
        self.identity = (status.st_dev, status.st_ino)

    @property
    def size(self) -> int:
        """The file's size now."""
        return os.fstat(self.fd).st_size

    def descriptor(self) -> int:
        """The descriptor, when it still is this file's."""
        if self.fd < 0:
            raise Closed(f"{self.path} is closed")
        _check_identity(self.fd, self.path, self.identity)
        return self.fd

    def check_path(self) -> None:
        """MappingLost if the path names another file by now."""
        check_same(self.descriptor(), self.path)

    def close(self, _close: Callable[[int], None] = os.close) -> None:
        """Closes the descriptor. Idempotent."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            _close(fd)

    def __del__(self) -> None:
        self.close()


class OpenFile(Opened):
    """A file of ours, open: its header as it was at open, and its lock descriptor if it may be written."""

    __slots__ = ("header", "locks")

    def __init__(self, path: str, kind: str, *, writable: bool) -> None:
        self.locks: LockFile | None = None
        super().__init__(path, writable=writable)
        try:
            self.header = parse_header(os.pread(self.fd, kernel.PAGE, 0), path, kind)
            check_filesystem(self.fd, path, self.header.durability)
            if writable:
                self.locks = open_locks(self.fd, path, self.identity)
        except BaseException:
            self.close()
            raise

    def live_locks(self) -> LockFile:
        """The lock descriptor of this process: opened anew in the child of a fork."""
        assert self.writable
        if self.fd < 0:
            raise Closed(f"{self.path} is closed")
        if self.locks is None or not self.locks.usable:
            self.locks = open_locks(self.fd, self.path, self.identity)
        return self.locks

    def same_origin(self) -> bool:
        """Whether the volatile words were last valid on this boot, and in this very file, not one it is a copy of."""
        status = os.fstat(self.fd)
        expected = boot_id() + status.st_dev.to_bytes(8, "little") + status.st_ino.to_bytes(8, "little")
        return os.pread(self.fd, 32, ORIGIN.start) == expected

    def settle(self, recover: Callable[[], None]) -> None:
        """Runs `recover` if the file comes from another boot, or is a copy, and nobody is alive in it.

        Under byte 0, which everybody takes to register. The origin is nobody's meanwhile: after a death in the middle
        the next opener runs recovery again, whichever boot id he has. `recover` must come to the same result when it is
        repeated, and raises `CorruptionError` before it changes anything. If somebody is alive, the file is in use on
        this kernel and its words are valid (containers may have boot ids of their own).
        """
        if self.same_origin():  # the usual case: nothing to wait for, even if somebody was stopped while he has byte 0
            return
        locks = self.live_locks()
        with locks.held(kernel.LOCK_OPEN):
            if self.same_origin():
                return
            with locks.held(kernel.LOCK_WRITER, 0, wait=False) as alone:
                if not alone.got:
                    return
                before = os.pread(self.fd, 32, ORIGIN.start)
                os.pwrite(self.fd, _NOBODY, ORIGIN.start)
                try:
                    recover()
                except CorruptionError:
                    os.pwrite(self.fd, before, ORIGIN.start)  # refused, as it is
                    raise
                page = bytearray(os.pread(self.fd, kernel.PAGE, 0))
                set_origin(self.fd, page)
                os.pwrite(self.fd, page[ORIGIN], ORIGIN.start)
                if self.header.durability == "power":
                    sync(self.fd, self.path)

    def settle_and_live(self, recover: Callable[[], None]) -> None:
        """The same, and then we are alive in the file: nobody recovers it before this handle is closed."""
        locks = self.live_locks()
        while True:
            self.settle(recover)
            locks.lock(kernel.LOCK_SLOT, shared=True)
            if os.pread(self.fd, 32, ORIGIN.start) != _NOBODY:
                return
            locks.unlock(kernel.LOCK_SLOT)  # in between, somebody with another boot id began to recover, and died

    def settled(self) -> bool:
        """For those who may not write: whether the volatile words can be trusted as they are.

        They can if this boot wrote them, or if somebody lives in the file who has seen to it. One look tells who lives
        from who recovers, for the recoverer has locked all bytes at once.
        """
        return self.same_origin() or kernel.inhabited(self.fd) or self.same_origin()

    def write_holder(self) -> None:
        """Says, for the messages of others, who has the writer's lock."""
        name = kernel.read_small("/proc/self/comm").strip()[:31]
        os.pwrite(self.fd, struct.pack("<QQ32s", os.getpid(), time.time_ns(), name), HOLDER.start)

    def read_holder(self) -> str:
        """Whom to name in WriterBusy."""
        return parse_header(os.pread(self.fd, kernel.PAGE, 0), self.path).holder

    def close(self, _close: Callable[[int], None] = os.close) -> None:
        """Lets go of the descriptor for locking too, which a slot may still need."""
        self.locks = None
        super().close(_close)
