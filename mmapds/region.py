"""Region: a file, or nothing, mapped into memory, with the mode said explicitly.

Promises
    ``shared``: changes are seen by every process and reach the file. ``private``: copy-on-write, they stay here.
    ``readonly``: nothing is ever written. A full disk is an `OSError` when the file is created or grown, not a signal
    at some later touch. A file truncated by somebody else costs a `MappingLost`, not the process. A live memoryview, or
    an atomic, keeps its bytes valid across ``close()`` and ``resize()``.

Which calls may fault, that is, wait for the disk: every access to bytes not in memory, also through a memoryview.
`pread`, `pwrite` and slices of 64 KiB and more, `populate`, `flush`, `resize` and opening with ``populate=True`` do so
with the GIL released; smaller accesses stop the other threads of the process until the page is there.

Prior art
    emmap's open options, each under the name a Python programmer would look for; Python's own `mmap`, whose method
    names are kept where the meaning is the same.

Rejected
    Growing by writing past the end: a stray offset would fill the disk. Emmap's ``uninitialized``, ``nonblock`` and
    ``nocache``: without effect on Linux as it is built. Emmap's ``direct``: here views are views and `pread` copies.
"""

from __future__ import annotations

import os
import threading
import warnings
from types import TracebackType
from typing import Self, TypeAlias

from mmapds._backing import ADVICE, Backing, HugePages, Mode, check_mode
from mmapds._native import kernel
from mmapds._native.atomic import AtomicInt64
from mmapds._native.lockword import Lock
from mmapds._native.region import FLAGS, Mapping
from mmapds._stream import Stream

__all__ = ["Mode", "Region", "StrPath", "check_mode"]

StrPath: TypeAlias = str | os.PathLike[str]


class Region(Stream):
    """A mapped file or anonymous memory. Open one with :meth:`open` or :meth:`anonymous`.

    Contract: `len(region)` bytes; `region[i]`, `region[a:b]` and the buffer protocol as for `mmap.mmap` (a slice
    copies, ``memoryview(region)`` does not). Thread-safe in that no call can touch unmapped memory; two writers of one
    byte are the user's affair, for which there are :meth:`atomic` and :meth:`lock`. Works in the child of a fork.
    Everything stored in mode ``shared`` survives the death of the process at once, and power loss after :meth:`flush`.

    Errors: `Closed` after close(), `MappingLost` when the file was truncated under the mapping, and from then on in
    every call; `ValueError` for offsets outside and for writes to a readonly region; `OSError` from the kernel.

    >>> with Region.anonymous(64) as region:
    ...     region.pwrite(b"hello", 8)
    ...     bytes(region[8:13])
    ...     region.atomic(16).fetch_add(5), region.atomic(16).load()
    5
    b'hello'
    (0, 5)
    """

    def __init__(self) -> None:
        raise TypeError("use Region.open(path, size) or Region.anonymous(size)")

    path: str | None
    mode: Mode
    fixed_size: bool
    growth_limit: int
    _file: Backing
    _mutex: threading.RLock
    _resizing: bool
    _older: list[Mapping]
    _epoch: int

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
        huge_pages: HugePages = None,
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
            Remove the file when the region is closed or collected, by the process that opened it, unless the path names
            another by then.
        populate
            Fault everything in before open returns.
        reserve
            False: allocate neither disk blocks nor swap; a full disk is then found at the touch, as `MappingLost`.
        huge_pages
            "2MB" or "1GB": the file must lie on a hugetlbfs of that page size, else `UnsupportedFilesystem`. On a
            hugetlbfs sizes are rounded up to whole pages, whether this is given or not.
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
        if (truncate or exclusive) and mode != "shared":
            raise ValueError(f"mode={mode!r} changes no file: exclusive and truncate need mode='shared'")
        if (truncate or exclusive) and size is None:
            raise ValueError("exclusive and truncate make a new file, which needs a size")
        if sync and not validate:
            raise ValueError("sync=True needs validate=True: an ordinary mapping would silently ignore it")
        if validate and mode != "shared":
            raise ValueError("validate=True needs mode='shared'")
        if address is not None and (address <= 0 or address % FLAGS["PAGE"]):
            raise ValueError(f"address {address:#x} is not a multiple of the page size {FLAGS['PAGE']:#x}")
        flags = FLAGS["PRIVATE"] if mode == "private" else FLAGS["SHARED"]
        if validate:
            flags = FLAGS["SHARED_VALIDATE"] | (FLAGS["SYNC"] if sync else 0)
        name = os.path.abspath(os.fsdecode(path))
        file = Backing(name, mode, flags=flags, reserve=reserve, lock_memory=lock_memory)
        self = cls._new(file, fixed_size, growth_limit)
        new = False
        try:
            wanted, new = file.open(
                size,
                create=create,
                exclusive=exclusive,
                truncate=truncate,
                fit=fit,
                permissions=0o600 if permissions is None else permissions,
                huge_pages=huge_pages,
            )
            extra = FLAGS["POPULATE"] if populate else 0
            if address is not None:
                extra |= FLAGS["FIXED_NOREPLACE"]
            self._use(file.map(wanted, extra, address or 0), mode != "private")
            if auto_unlink:
                file.auto_unlink()
        except BaseException:
            if new and auto_unlink:
                file.auto_unlink()
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
        huge_pages: HugePages = None,
        fixed_size: bool = False,
        lock_memory: bool = False,
        growth_limit: int = 64 << 20,
    ) -> Self:
        """Maps `size` zero bytes without a file, shared with the processes forked from this one; gone with the last.

        Huge pages must have been reserved (``/proc/sys/vm/nr_hugepages``), else OSError(ENOMEM).
        """
        if size <= 0:
            raise ValueError(f"size {size}: a region has at least one byte")
        file = Backing(None, "shared", flags=FLAGS["SHARED"], reserve=reserve, lock_memory=lock_memory)
        self = cls._new(file, fixed_size, growth_limit)
        try:
            self._use(file.map(file.memory(size, huge_pages), FLAGS["POPULATE"] if populate else 0), True)
        except BaseException:
            self.close()
            raise
        return self

    @classmethod
    def _new(cls, file: Backing, fixed_size: bool, growth_limit: int) -> Self:
        if growth_limit <= 0:
            raise ValueError(f"growth_limit {growth_limit} is not positive")
        self = cls.__new__(cls)
        self.path = file.path
        self.mode = file.mode
        self.fixed_size = fixed_size
        self.growth_limit = growth_limit
        self._file = file
        self._mutex = threading.RLock()
        self._resizing = False
        self._older = []
        self._epoch = kernel.fork_count()
        return self

    def _exclusive(self) -> threading.RLock:
        """Threads that change what is mapped take turns; a signal handler that interrupted one of them cannot wait."""
        if self._epoch != kernel.fork_count():  # no thread of the parent is here
            self._mutex, self._resizing, self._epoch = threading.RLock(), False, kernel.fork_count()
        return self._mutex

    def _check_not_resizing(self) -> None:
        if self._resizing:
            raise RuntimeError("a signal handler cannot resize or close the region whose resize() it interrupted")

    def _range(self, offset: int, length: int | None) -> tuple[int, int]:
        """Start and end, checked."""
        self._mapping.ensure()
        end = len(self) if length is None else offset + length
        if not 0 <= offset <= end <= len(self):
            raise ValueError(f"offset {offset} and length {length} are not within the region's {len(self)} bytes")
        return offset, end

    # ---- size ---------------------------------------------------------------------------------------------------

    def resize(self, size: int | None = None) -> int:
        """Makes the region, and in mode ``shared`` its file, `size` bytes long; returns the new size.

        Without a size: twice as long up to `growth_limit`, by `growth_limit` from there. Growing keeps the address if
        it can; a view made before stays valid either way, and in mode ``shared`` shows the same bytes. Shrinking cuts
        the file: views made before keep what was there, as copies (pages wholly behind the new end; the rest of the
        page with the end in it becomes zeros); other processes that map the part cut off get `MappingLost`. A full disk
        raises OSError(ENOSPC), with nothing changed. Processes that resize one file take turns, under a kernel lock.

        A ``readonly`` region follows a file that others have resized (without a size: to what it is now). A ``private``
        one grows by zeros, in this process only; it raises BufferError if bytes that a view or an atomic shows would
        have to move or go.
        """
        if self.fixed_size:
            raise ValueError(f"{self.path or 'the region'} was opened with fixed_size=True")
        with self._exclusive():
            self._check_not_resizing()
            self._resizing = True
            try:
                return self._resize(self._mapping, len(self), size)
            finally:
                self._resizing = False

    def _resize(self, mapping: Mapping, old: int, size: int | None) -> int:
        mapping.ensure()
        if size is None:
            size = self._file.size if self.mode == "readonly" else old + min(old, self.growth_limit)
        if size <= 0:
            raise ValueError(f"size {size}: a region has at least one byte")
        size = self._file.whole(size)
        if size == old:
            return old
        if self.mode == "private":
            return self._resize_private(mapping, old, size)
        if self.mode == "readonly":
            if size > (there := self._file.size):
                raise ValueError(f"{self.path} has {there} bytes: mode='readonly' does not grow a file")
            self._enlarge(mapping, old, size)
            return size
        with self._file.growing():
            if size > old:
                self._file.allocate(size)
                self._enlarge(mapping, old, size)
            else:
                self._shrink(mapping, size)
        return size

    def _enlarge(self, mapping: Mapping, old: int, size: int) -> None:
        file = self._file
        if size > old and mapping.grow_in_place(file.fd, size, file.flags, file.lock_memory):
            self._use(mapping, True)
        else:
            self._replace(mapping, size)

    def _replace(self, mapping: Mapping, size: int) -> None:
        self._use(self._file.map(size), True)
        self._older = [old for old in (*self._older, mapping) if old.borrows]  # now, when there are no new borrowers

    def _shrink(self, mapping: Mapping, size: int) -> None:
        file = self._file
        copied: list[tuple[Mapping, int, int]] = []
        self._replace(mapping, size)
        try:
            copied.extend((old, *span) for old in self._older if (span := old.detach(file.fd, size)))
            os.ftruncate(file.fd, size)
        except BaseException:
            if file.size > size:
                for old, start, end in copied:
                    old.attach(file.fd, file.flags, start, end)
                self._use(mapping, True)
            raise

    def _resize_private(self, mapping: Mapping, old: int, size: int) -> int:
        flags = FLAGS["PRIVATE"] | FLAGS["ANONYMOUS"]
        if size < old and not mapping.borrows:
            mapping.trim(size)
        elif size < old or not mapping.grow_in_place(-1, size, flags, self._file.lock_memory):
            if mapping.borrows:
                raise BufferError("a private region cannot move while a view or an atomic of it is alive")
            fresh = Mapping(-1, size, FLAGS["READ"] | FLAGS["WRITE"], flags, self.path)
            if self._file.lock_memory:
                fresh.lock_memory()
            memoryview(fresh)[:old] = memoryview(mapping)
            mapping.ensure()
            mapping = fresh
        self._use(mapping, False)
        return size

    # ---- durability and paging ----------------------------------------------------------------------------------

    def flush(self, offset: int = 0, length: int | None = None, *, wait: bool = True) -> None:
        """Writes a range (default: all) to the disk; with ``wait=False`` only starts it.

        When it returns after waiting, the range survives power loss. If it raises OSError, what the range held may be
        lost *although a repeated flush would succeed*, because the kernel marks the pages clean: write the data again
        before you flush again. Does nothing in modes ``private`` and ``readonly``, which have nothing to write.
        """
        start, end = self._range(offset, length)
        if self.mode == "shared" and self.path is not None:
            if wait:
                self._msync(start, end - start)
            else:
                kernel.start_writeback(self._file.fd, start, end - start)

    def advise(self, advice: str, offset: int = 0, length: int | None = None) -> None:
        """Tells the kernel how a range will be used (madvise): "normal", "random", "sequential", "willneed",
        "dontneed", "hugepage", "nohugepage", "dontfork", "dofork", "dontdump", "dodump", "cold", "pageout".

        In mode ``private``, "dontneed" throws the changes of the range away, in pages that lie in it whole.
        """
        try:
            number = ADVICE[advice]
        except KeyError:
            raise ValueError(f"advice {advice!r} is not one of {', '.join(map(repr, ADVICE))}") from None
        start, end = self._range(offset, length)
        if self.mode == "private" and advice == "dontneed":
            page = self._file.page
            end = end if end == len(self) else end // page * page
            start = min(-(-start // page) * page, end)
        self._advise(number, start, end - start)

    # ---- locks --------------------------------------------------------------------------------------------------

    def atomic(self, offset: int) -> AtomicInt64:
        """The 64-bit word at `offset` (a multiple of 8) as an :class:`AtomicInt64`."""
        return AtomicInt64(self._mapping, offset, self.mode != "private")

    def lock(self, offset: int) -> Lock:
        """The lock at `offset` (8 bytes, a multiple of 8, zero at first), for all processes that map the file."""
        if self.mode != "shared":
            raise ValueError(f"mode={self.mode!r}: a lock is shared memory; open the region with mode='shared'")
        with self._exclusive():
            return Lock(self._mapping, offset, self._file.owners())

    # ---- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Lets go of the mapping; idempotent. It stays mapped as long as a view or an atomic of it is alive."""
        with self._exclusive():
            self._check_not_resizing()
            self._use(None, False)
            self._older = []
            self._file.close()

    def __enter__(self) -> Self:
        len(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            if not self.closed and self._epoch == kernel.fork_count():
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            if hasattr(self, "_epoch"):
                self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self)} bytes"
        return f"<Region {self.path or 'anonymous'} {self.mode} {state}>"
