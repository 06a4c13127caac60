"""Region: a file, or nothing, mapped into memory, with the mode said explicitly.

Promises
    ``shared``: changes are seen by every process and reach the file. ``private``: copy-on-write, they stay here.
    ``readonly``: nothing is ever written. A full disk is an `OSError` when the file is created or grown, not a signal at
    some later touch. A file truncated by somebody else costs a `MappingLost`, not the process. A live memoryview, or an
    atomic, keeps its bytes valid across ``close()`` and ``resize()``.

Which calls may fault, that is, wait for the disk: every access to bytes not in memory, also through a memoryview.
`pread`, `pwrite` and slices of 64 KiB and more, `populate`, `flush`, `resize` and opening with ``populate=True`` do so
with the GIL released; smaller accesses stop the other threads of the process until the page is there.

Prior art
    emmap's open options, each under the name a Python programmer would look for; Python's own `mmap`, whose method names
    are kept where the meaning is the same.

Rejected
    Growing by writing past the end: a stray offset would fill the disk. Emmap's ``uninitialized``, ``nonblock`` and
    ``nocache``: without effect on Linux as it is built. Emmap's ``direct``: here views are views and `pread` copies.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import warnings
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

from mmapds import files
from mmapds._native import kernel
from mmapds._native.lockword import Lock, Owner
from mmapds._native.region import FLAGS, Mapping, RegionCore
from mmapds.errors import Closed, UnsupportedFilesystem

Mode: TypeAlias = Literal["shared", "private", "readonly"]
MODES = ("shared", "private", "readonly")
StrPath: TypeAlias = str | os.PathLike[str]

_MAP_SHARED_VALIDATE = 0x03
_MAP_NORESERVE = 0x4000
_MAP_SYNC = 0x80000
_HUGETLBFS = 0x958458F6
_HUGE = {None: 4096, "2MB": 2 << 20, "1GB": 1 << 30}
_ADVICE = {
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
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is not one of 'shared', 'private', 'readonly'")


class _Owners:
    """Who owns lock words for one handle: called, it returns the Owner of this process, made anew after a fork.

    Locks hold it, not their region, so that a lock outlives close().
    """

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        self._owner: Owner | None = None

    def __call__(self) -> Owner:
        if self._owner is None or not self._owner.locks.usable:
            self._owner = Owner(files.open_locks(self._fd, self._path))
        return self._owner

    def __del__(self) -> None:
        os.close(self._fd)


class Region(RegionCore):
    """A mapped file or anonymous memory. Open one with :meth:`open` or :meth:`anonymous`.

    Contract: `len(region)` bytes; `region[i]`, `region[a:b]` and the buffer protocol as for `mmap.mmap` (a slice copies,
    ``memoryview(region)`` does not). Thread-safe in that no call can touch unmapped memory; two writers of one byte are
    the user's affair, for which there are :meth:`atomic` and :meth:`lock`. Works in the child of a fork. Everything
    stored in mode ``shared`` survives the death of the process at once, and power loss after :meth:`flush`.

    Errors: `Closed` after close(), `MappingLost` when the file was truncated under the mapping, `ValueError` for offsets
    outside and for writes to a readonly region, `OSError` from the kernel.
    """

    def __init__(self) -> None:
        raise TypeError("use Region.open(path, size) or Region.anonymous(size)")

    path: str | None
    mode: Mode
    fixed_size: bool
    growth_limit: int
    _fd: int
    _flags: int
    _sparse: bool
    _page: int
    _position: int
    _unlink: tuple[str, int, int, int] | None
    _owners: _Owners | None
    _lock_memory: bool
    _warn: bool

    @classmethod
    def open(
        cls,
        path: StrPath,
        size: int | None = None,
        *,
        mode: Mode = "shared",
        create: bool = True,
        exclusive: bool = False,
        truncate: bool = False,
        fit: bool = False,
        fixed_size: bool = False,
        permissions: int | None = None,
        auto_unlink: bool = False,
        populate: bool = False,
        reserve: bool = True,
        huge_pages: Literal["2MB", "1GB"] | None = None,
        validate: bool = False,
        sync: bool = False,
        address: int | None = None,
        lock_memory: bool = False,
        growth_limit: int = 64 << 20,
    ) -> Self:
        """Maps the file at `path`.

        size
            Bytes to map. A new file gets this size; an existing one is grown to it in mode ``shared`` if it is smaller.
            None: as large as the file is.
        create, exclusive, truncate
            Make the file if it is missing (mode ``shared`` and a size only); fail with FileExistsError if it is there;
            empty it first.
        fit
            An existing file keeps its size, and all of it is mapped: `size` is for a new one.
        fixed_size
            :meth:`resize` raises.
        permissions
            Of a new file, set by fchmod whatever the umask (default 0o600).
        auto_unlink
            Remove the file when the region is closed or collected, unless the path names another by then.
        populate
            Fault everything in before open returns.
        reserve
            False: allocate neither disk blocks nor swap; a full disk is then found at the touch, as `MappingLost`.
        huge_pages
            "2MB" or "1GB": the file lies on a hugetlbfs of that page size; sizes are rounded up to whole pages.
        validate, sync
            MAP_SHARED_VALIDATE; and MAP_SYNC, for files on persistent memory (DAX): `UnsupportedFilesystem` elsewhere.
        address
            Map exactly there, or raise FileExistsError if something is there already.
        lock_memory
            Keep all of it in memory (mlock).
        growth_limit
            `resize()` doubles the size up to this many bytes, and grows by this many from there.
        """
        check_mode(mode)
        if size is not None and size <= 0:
            raise ValueError(f"size {size}: a region has at least one byte")
        if growth_limit <= 0:
            raise ValueError(f"growth_limit {growth_limit} is not positive")
        if (truncate or exclusive) and mode != "shared":
            raise ValueError(f"mode={mode!r} changes no file: exclusive and truncate need mode='shared'")
        if sync and not validate:
            raise ValueError("sync=True needs validate=True: an ordinary mapping would silently ignore it")
        if validate and mode != "shared":
            raise ValueError("validate=True needs mode='shared'")
        name = os.path.abspath(os.fspath(path))
        self = cls._new(name, mode)
        self.fixed_size = fixed_size
        self.growth_limit = growth_limit
        self._sparse = not reserve
        self._page = _HUGE[huge_pages]
        self._lock_memory = lock_memory
        try:
            self._fd = self._open_file(name, size, mode, create, exclusive, permissions)
            if self._page != 4096 and kernel.filesystem(self._fd) != _HUGETLBFS:
                raise UnsupportedFilesystem(
                    f"{name} is not on a hugetlbfs: mount one with pagesize={huge_pages}, or leave huge_pages out",
                    path=name,
                )
            status = os.fstat(self._fd)
            if truncate:
                os.ftruncate(self._fd, 0)
            there = 0 if truncate else status.st_size
            wanted = there if size is None or (fit and there) else size
            if wanted == 0:
                raise ValueError(f"{name} is empty: give the size to map")
            wanted = -(-wanted // self._page) * self._page if self._page != 4096 else wanted
            if wanted > there:
                if mode != "shared":
                    raise ValueError(
                        f"{name} has {there} bytes, {wanted} were asked for: mode={mode!r} does not grow a file"
                    )
                self._allocate(wanted)
            if auto_unlink:
                self._unlink = (name, status.st_dev, status.st_ino, os.getpid())
            flags = FLAGS["PRIVATE"] if mode == "private" else FLAGS["SHARED"]
            if validate:
                flags = _MAP_SHARED_VALIDATE | (_MAP_SYNC if sync else 0)
            self._flags = flags | (0 if reserve else _MAP_NORESERVE)
            extra = FLAGS["POPULATE"] if populate else 0
            if address is not None:
                extra |= FLAGS["FIXED_NOREPLACE"]
            self._map(wanted, extra, address or 0)
        except BaseException:
            self.close()
            raise
        return self

    @classmethod
    def anonymous(
        cls,
        size: int,
        *,
        populate: bool = False,
        reserve: bool = True,
        huge_pages: Literal["2MB", "1GB"] | None = None,
        fixed_size: bool = False,
        lock_memory: bool = False,
        growth_limit: int = 64 << 20,
    ) -> Self:
        """Maps `size` zero bytes without a file, shared with the processes forked from this one; gone with the last.

        Huge pages must have been reserved (``/proc/sys/vm/nr_hugepages``), else OSError(ENOMEM).
        """
        if size <= 0:
            raise ValueError(f"size {size}: a region has at least one byte")
        self = cls._new(None, "shared")
        self.fixed_size = fixed_size
        self.growth_limit = growth_limit
        self._page = _HUGE[huge_pages]
        self._sparse = not reserve or huge_pages is not None
        self._lock_memory = lock_memory
        huge = {None: 0, "2MB": os.MFD_HUGETLB | os.MFD_HUGE_2MB, "1GB": os.MFD_HUGETLB | os.MFD_HUGE_1GB}[huge_pages]
        try:
            self._fd = os.memfd_create("mmapds", os.MFD_CLOEXEC | huge)
            size = -(-size // self._page) * self._page if huge else size
            self._allocate(size)
            self._flags = FLAGS["SHARED"] | (0 if reserve else _MAP_NORESERVE)
            self._map(size, FLAGS["POPULATE"] if populate else 0, 0)
        except BaseException:
            self.close()
            raise
        return self

    @classmethod
    def _new(cls, path: str | None, mode: Mode) -> Self:
        self = cls.__new__(cls)
        self.path = path
        self.mode = mode
        self._fd = -1
        self._position = 0
        self._unlink = None
        self._owners = None
        self._warn = False
        return self

    @staticmethod
    def _open_file(
        name: str, size: int | None, mode: Mode, create: bool, exclusive: bool, permissions: int | None
    ) -> int:
        wanted = 0o600 if permissions is None else permissions
        while True:
            if not exclusive:
                try:
                    return files.open_regular(name, writable=mode == "shared")
                except FileNotFoundError:
                    if not create or mode != "shared" or size is None:
                        raise
            if size is None:
                raise ValueError(f"{name}: a new file needs a size")
            try:
                with files.unnamed(name, wanted) as (fd, publish):
                    publish()
                    return os.dup(fd)
            except FileExistsError:
                if exclusive:
                    raise

    def _allocate(self, size: int) -> None:
        if self._sparse:
            if os.fstat(self._fd).st_size < size:
                os.ftruncate(self._fd, size)
        else:
            kernel.allocate(self._fd, size)

    def _map(self, size: int, extra: int, address: int) -> None:
        protection = FLAGS["READ"] if self.mode == "readonly" else FLAGS["READ"] | FLAGS["WRITE"]
        try:
            mapping = Mapping(self._fd, size, protection, self._flags | extra, self.path, self._page, address)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP and self._flags & _MAP_SYNC:
                raise UnsupportedFilesystem(
                    f"{self.path}: sync=True needs a file on persistent memory (DAX), which this is not", path=self.path
                ) from None
            raise
        if self._lock_memory:
            mapping.lock_memory()
        self._use(mapping, self.mode != "private")
        self._warn = True

    # ---- size ---------------------------------------------------------------------------------------------------

    def resize(self, size: int | None = None) -> int:
        """Makes the region, and in mode ``shared`` its file, `size` bytes long; returns the new size.

        Without a size: twice as long up to `growth_limit`, by `growth_limit` from there. Growing keeps the address if it
        can; a view made before stays valid either way, and in mode ``shared`` shows the same bytes. Shrinking cuts the
        file: views made before keep what was there as a copy of their own, other processes that map the part cut off
        get `MappingLost`. A full disk raises OSError(ENOSPC), with nothing changed. A ``readonly`` region can follow
        a file that others have grown; a ``private`` one grows in this process only, and raises BufferError if its bytes
        would have to move while a view or an atomic is alive.
        """
        old = len(self)
        if self.fixed_size:
            raise ValueError(f"{self.path or 'the region'} was opened with fixed_size=True")
        if size is None:
            size = old + min(old, self.growth_limit)
        if size <= 0:
            raise ValueError(f"size {size}: a region has at least one byte")
        if self._page != 4096:
            size = -(-size // self._page) * self._page
        if size == old:
            return old
        mapping: Mapping = self._mapping
        if self.mode == "private":
            return self._resize_private(mapping, old, size)
        if self.mode == "shared":
            if size < old:
                mapping.detach_tail(size)
                os.ftruncate(self._fd, size)
            else:
                self._allocate(size)
        elif size > os.fstat(self._fd).st_size:
            raise ValueError(
                f"{self.path} has {os.fstat(self._fd).st_size} bytes: mode='readonly' does not grow a file"
            )
        if size > old and mapping.grow_in_place(self._fd, size, self._flags):
            self._use(mapping, True)
        else:
            self._map(size, 0, 0)
        return size

    def _resize_private(self, mapping: Mapping, old: int, size: int) -> int:
        if size > old and mapping.grow_in_place(-1, size, FLAGS["PRIVATE"] | FLAGS["ANONYMOUS"]):
            self._use(mapping, False)
            return size
        if mapping.borrows:
            raise BufferError("a private region cannot move while a view or an atomic of it is alive")
        fresh = Mapping(-1, size, FLAGS["READ"] | FLAGS["WRITE"], FLAGS["PRIVATE"] | FLAGS["ANONYMOUS"], self.path)
        common = min(old, size)
        memoryview(fresh)[:common] = memoryview(mapping)[:common]
        self._use(fresh, False)
        return size

    # ---- durability and paging ----------------------------------------------------------------------------------

    def flush(self, offset: int = 0, length: int | None = None, *, wait: bool = True) -> None:
        """Writes a range (default: all) to the disk; with ``wait=False`` only starts it.

        When it returns after waiting, the range survives power loss. If it raises OSError, what the range held may be
        lost *although a repeated flush would succeed*, because the kernel marks the pages clean: write the data again
        before you flush again. Does nothing in modes ``private`` and ``readonly``, which have nothing to write.
        """
        if self.mode != "shared" or self.path is None:
            len(self)
        elif wait:
            self._msync(offset, length)
        else:
            end = len(self) if length is None else offset + length
            if not 0 <= offset <= end <= len(self):
                raise ValueError(f"offset {offset} and length {length} are not within the region's {len(self)} bytes")
            kernel.start_writeback(self._fd, offset, end - offset)

    def advise(self, advice: str, offset: int = 0, length: int | None = None) -> None:
        """Tells the kernel how a range will be used (madvise): "normal", "random", "sequential", "willneed", "dontneed",
        "hugepage", "nohugepage", "dontfork", "dofork", "dontdump", "dodump", "cold", "pageout".

        In mode ``private``, "dontneed" throws the changes of the range away.
        """
        try:
            number = _ADVICE[advice]
        except KeyError:
            raise ValueError(f"advice {advice!r} is not one of {', '.join(map(repr, _ADVICE))}") from None
        self._advise(number, offset, length)

    # ---- locks --------------------------------------------------------------------------------------------------

    def lock(self, offset: int) -> Lock:
        """The lock at `offset` (8 bytes, a multiple of 8, zero at first), for all processes that map the file."""
        if self.mode != "shared":
            raise ValueError(f"mode={self.mode!r}: a lock is shared memory; open the region with mode='shared'")
        len(self)
        if self._owners is None:
            self._owners = _Owners(os.dup(self._fd), self.path or "the anonymous region")
        return Lock(self._mapping, offset, self._owners)

    # ---- the binary file ----------------------------------------------------------------------------------------

    def read(self, n: int | None = -1) -> bytes:
        """Up to n bytes from the position (all that is left by default); b"" at the end."""
        left = max(0, len(self) - self._position)
        data = self.pread(left if n is None or n < 0 else min(n, left), self._position)
        self._position += len(data)
        return data

    def readline(self) -> bytes:
        """From the position through the next newline, or to the end."""
        size = len(self)
        start = position = min(self._position, size)
        while position < size:
            found = self.pread(4096, position).find(b"\n")
            if found >= 0:
                position += found + 1
                break
            position = min(position + 4096, size)
        return self.read(position - start)

    def write(self, data: Any) -> int:
        """Writes at the position, which moves on; raises ValueError, having written nothing, if there is no room."""
        written = self.pwrite(data, self._position)
        self._position += written
        return written

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Sets the position, and returns it: from the start, the position (1) or the end (2)."""
        size = len(self)
        try:
            position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: size}[whence]
        except KeyError:
            raise ValueError(f"whence {whence} is not 0, 1 or 2") from None
        if not 0 <= position <= size:
            raise ValueError(f"position {position} is outside the region's {size} bytes")
        self._position = position
        return position

    def tell(self) -> int:
        """The position."""
        len(self)
        return self._position

    # ---- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Lets go of the mapping; idempotent. It stays mapped as long as a view or an atomic of it is alive."""
        self._use(None, False)
        self._warn = False
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._unlink is not None:
            path, device, inode, pid = self._unlink
            self._unlink = None
            try:
                status = os.lstat(path)
                if pid == os.getpid() and (status.st_dev, status.st_ino) == (device, inode):
                    os.unlink(path)
            except FileNotFoundError:
                pass

    def __enter__(self) -> Self:
        if self.closed:
            raise Closed("this region is closed")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_warn", False):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        if hasattr(self, "_fd"):
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self)} bytes"
        return f"<Region {self.path or 'anonymous'} {self.mode} {state}>"
