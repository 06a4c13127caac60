"""What lies behind a region: the file or memory, its growth, its removal, and who owns the locks in it.

Promises
    A new file gets its name when it has its size, and the blocks for it: nobody opens half a file, and neither a full
    disk nor a kill leaves one behind. Whoever changes a file's size excludes all others who do so through mmapds. A
    file is removed only by the process that opened it, and only if the path still names that file.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal, TypeAlias

from mmapds import files
from mmapds._native import kernel
from mmapds._native.lockword import Owner
from mmapds._native.region import FLAGS, Mapping
from mmapds.errors import UnsupportedFilesystem

Mode: TypeAlias = Literal["shared", "private", "readonly"]
HugePages: TypeAlias = Literal["2MB", "1GB"] | None

_MODES = ("shared", "private", "readonly")
_HUGETLBFS = 0x958458F6
_HUGE_PAGES: dict[HugePages, int] = {None: FLAGS["PAGE"], "2MB": 2 << 20, "1GB": 1 << 30}
_MEMFD = {None: 0, "2MB": os.MFD_HUGETLB | os.MFD_HUGE_2MB, "1GB": os.MFD_HUGETLB | os.MFD_HUGE_1GB}


ADVICE = {
    "normal": mmap.MADV_NORMAL,
    "random": mmap.MADV_RANDOM,
    "sequential": mmap.MADV_SEQUENTIAL,
    "willneed": mmap.MADV_WILLNEED,
    "dontneed": mmap.MADV_DONTNEED,
    "hugepage": mmap.MADV_HUGEPAGE,
    "nohugepage": mmap.MADV_NOHUGEPAGE,
    "dontfork": mmap.MADV_DONTFORK,
    "dofork": mmap.MADV_DOFORK,
    "dontdump": mmap.MADV_DONTDUMP,
    "dodump": mmap.MADV_DODUMP,
    "cold": 20,
    "pageout": 21,
}


def check_mode(mode: str) -> None:
    """ValueError unless `mode` is one of the three."""
    if mode not in _MODES:
        raise ValueError(f"mode {mode!r} is not one of {', '.join(map(repr, _MODES))}")


class Backing:
    """A descriptor, and how it is mapped."""

    __slots__ = ("_owners", "_unlink", "fd", "flags", "lock_memory", "mode", "page", "path", "sparse")

    def __init__(self, path: str | None, mode: Mode, *, flags: int, reserve: bool, lock_memory: bool) -> None:
        self.path = path
        self.mode = mode
        self.flags = flags | (0 if reserve else FLAGS["NORESERVE"])
        self.sparse = not reserve
        self.lock_memory = lock_memory
        self.page = FLAGS["PAGE"]
        self.fd = -1
        self._owners: Owners | None = None
        self._unlink: AutoUnlink | None = None

    def open(
        self,
        size: int | None,
        *,
        create: bool,
        exclusive: bool,
        truncate: bool,
        fit: bool,
        permissions: int,
        huge_pages: HugePages,
    ) -> tuple[int, bool]:
        """Opens the file, or makes it with `size` bytes; returns how many bytes to map, and whether it is new."""
        path = self.name

        def prepare(fd: int) -> None:
            assert size is not None
            files.check_filesystem(fd, path, "process")
            self.page = _page_size(fd, path, huge_pages)
            self._allocate(fd, self.whole(size))

        self.fd, new = _open_or_create(
            path,
            prepare if create and self.mode == "shared" and size is not None else None,
            writable=self.mode == "shared",
            exclusive=exclusive,
            permissions=permissions,
        )
        if new:
            assert size is not None
            return self.whole(size), True
        files.check_filesystem(self.fd, path, "process")
        self.page = _page_size(self.fd, path, huge_pages)
        there = 0 if truncate else self.size
        wanted = self.whole(there if size is None or (fit and there) else size)
        if wanted == 0:
            raise ValueError(f"{path} is empty: give the size to map")
        if wanted > there:
            if self.mode != "shared":
                raise ValueError(
                    f"{path} has {there} bytes, {wanted} were asked for: mode={self.mode!r} does not grow a file"
                )
            with self.growing():
                if truncate:
                    os.ftruncate(self.fd, 0)
                self.allocate(wanted)
        return wanted, False

    def memory(self, size: int, huge_pages: HugePages) -> int:
        """Memory without a file; returns how many bytes to map."""
        self.page = _HUGE_PAGES[huge_pages]
        self.fd = os.memfd_create("mmapds", os.MFD_CLOEXEC | _MEMFD[huge_pages])
        self.allocate(self.whole(size))
        return self.whole(size)

    @property
    def name(self) -> str:
        """For messages."""
        return self.path or "the anonymous region"

    @property
    def size(self) -> int:
        """Of the file, now."""
        return os.fstat(self.fd).st_size

    def whole(self, size: int) -> int:
        """Huge pages come whole."""
        return size if self.page == FLAGS["PAGE"] else -(-size // self.page) * self.page

    def allocate(self, size: int) -> None:
        """Makes the file at least `size` bytes long; unless `sparse`, with blocks behind what is added.

        Memory is not taken before it is touched: OSError(ENOMEM) if the kernel finds that there will not be enough.
        (Huge pages are reserved when they are mapped.)
        """
        self._allocate(self.fd, size)

    def _allocate(self, fd: int, size: int) -> None:
        try:
            if self.path is not None and not self.sparse:
                kernel.allocate(fd, size)
            elif os.fstat(fd).st_size < size:
                if not self.sparse and self.page == FLAGS["PAGE"]:
                    Mapping(-1, size, FLAGS["READ"] | FLAGS["WRITE"], FLAGS["PRIVATE"] | FLAGS["ANONYMOUS"])
                os.ftruncate(fd, size)
        except OSError as error:
            error.filename = self.path
            raise

    def growing(self) -> AbstractContextManager[None]:
        """Excludes all others who change the file's size."""
        return files.growing(self.fd, self.name)

    def map(self, size: int, extra: int = 0, address: int = 0) -> Mapping:
        """Maps the first `size` bytes."""
        protection = FLAGS["READ"] if self.mode == "readonly" else FLAGS["READ"] | FLAGS["WRITE"]
        try:
            mapping = Mapping(self.fd, size, protection, self.flags | extra, self.path, self.page, address)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP and self.flags & FLAGS["SYNC"]:
                raise UnsupportedFilesystem(
                    f"{self.path}: sync=True needs a file on persistent memory (DAX), which this is not", path=self.path
                ) from None
            if error.errno == errno.EEXIST:
                raise FileExistsError(
                    errno.EEXIST, f"the addresses from {address:#x} are taken in this process", self.path
                ) from None
            raise
        if self.lock_memory:
            mapping.lock_memory()
        return mapping

    def owners(self) -> Owners:
        """Who owns the locks of this handle."""
        if self._owners is None:
            self._owners = Owners(self.fd, self.name)
        return self._owners

    def auto_unlink(self) -> None:
        """From here on close() removes the file."""
        self._unlink = AutoUnlink(self.fd, self.name)

    def close(self) -> None:
        """Closes the descriptor. Idempotent. Mappings and locks live on."""
        self._owners = None
        fd, self.fd = self.fd, -1
        unlink, self._unlink = self._unlink, None
        if fd >= 0:
            os.close(fd)
        if unlink is not None:
            unlink()

    def __del__(self) -> None:
        self.close()


def _open_or_create(
    path: str, prepare: Callable[[int], None] | None, *, writable: bool, exclusive: bool, permissions: int
) -> tuple[int, bool]:
    """A descriptor of the file, and whether it is new. `prepare` fills a new one; None: there is to be none."""
    if exclusive and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "exclusive=True, and there is something already", path)
    while True:
        try:
            if not exclusive:
                return files.open_regular(path, writable=writable), False
        except FileNotFoundError:
            if prepare is None:
                raise
        if prepare is None:
            raise ValueError("exclusive=True makes a new file: it needs create=True")
        try:
            with files.unnamed(path, permissions) as (fd, publish):
                prepare(fd)
                ours = os.dup(fd)
                try:
                    publish()
                except BaseException:
                    os.close(ours)
                    raise
                return ours, True
        except FileExistsError:  # somebody was first: theirs
            if exclusive:
                raise


def _page_size(fd: int, path: str, huge_pages: HugePages) -> int:
    """The size of the pages that `fd` is mapped in. UnsupportedFilesystem if that is not what was asked for."""
    huge = kernel.filesystem(fd) == _HUGETLBFS
    found = os.fstatvfs(fd).f_bsize if huge else FLAGS["PAGE"]
    if huge_pages is not None and found != _HUGE_PAGES[huge_pages]:
        where = f"on a hugetlbfs with pages of {found} bytes" if huge else "not on a hugetlbfs"
        raise UnsupportedFilesystem(
            f"{path} is {where}: mount one with pagesize={huge_pages[:-1]}, or leave huge_pages out", path=path
        )
    return found


class Owners:
    """Who owns lock words for one handle: called, it returns the Owner of this process, made anew after a fork.

    Locks hold it, not their region, so that a lock outlives close().
    """

    __slots__ = ("_fd", "_identity", "_owner", "_path")

    def __init__(self, fd: int, path: str) -> None:
        self._fd = os.dup(fd)
        status = os.fstat(self._fd)
        self._identity = (status.st_dev, status.st_ino)
        self._path = path
        self._owner: Owner | None = None

    def __call__(self) -> Owner:
        owner = self._owner
        if owner is None or not owner.locks.usable:
            owner = self._owner = Owner(files.open_locks(self._fd, self._path, self._identity))
        return owner

    def __del__(self) -> None:
        fd = getattr(self, "_fd", -1)
        if fd >= 0:
            os.close(fd)


class AutoUnlink:
    """Removes a file, for the process that asked for it, if the path still names it."""

    __slots__ = ("_epoch", "_file", "_path")

    def __init__(self, fd: int, path: str) -> None:
        status = os.fstat(fd)
        self._file = (status.st_dev, status.st_ino)
        self._path = path
        self._epoch = kernel.fork_count()

    def __call__(self) -> None:
        if self._epoch != kernel.fork_count():
            return
        try:
            status = os.lstat(self._path)
            if (status.st_dev, status.st_ino) == self._file:
                os.unlink(self._path)
        except (FileNotFoundError, NotADirectoryError):
            pass
