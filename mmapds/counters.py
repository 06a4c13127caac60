"""Counters: 64-bit numbers in a file, by name or by index, that processes change by single atomic instructions.

Promises
    What an operation has added is there whatever dies afterwards, and is seen by every process at once. Nobody waits
    for anybody, but for who makes or removes a name. A name belongs to one counter, for all processes, from its first
    use on; the file grows in place while others count.

Here is the policy: paths, options, modes, recovery after another boot. Operations are methods of the Cython class
(``_native/counters.pyx``), names and growth in ``_native/cells.pyx`` and ``_native/counters.h``.

Prior art
    emmap's persistent counters (Erlang), whose files ``layout="emmap"`` shares; Erlang's ``counters`` and ``atomics``,
    for the names of operations; Prometheus' client library, which adds up a mapped file of each process because it has
    no atomic addition between them.

Rejected
    A lock for each counter, which a dead process keeps; one file for each process, to be added up by readers: a pid
    that is reused goes on counting in somebody's file, and no process knows the sum; growth by copying into a larger
    file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import ItemsView, MutableMapping, ValuesView
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, NoReturn, TypeAlias, TypeVar, overload

from mmapds import files
from mmapds._handle import Handle
from mmapds._native import kernel
from mmapds._native.atomic import own_methods
from mmapds._native.counters import CountersCore
from mmapds._native.extents import first_extent
from mmapds._native.region import FLAGS
from mmapds.errors import Closed, CorruptionError, IncompatibleFormat, MappingLost, MmapdsError, SchemaMismatch
from mmapds.region import Mode, StrPath, check_mode

Key: TypeAlias = str | int
_T = TypeVar("_T")

_DTYPES = ("i64", "f64")
_STRIDES = {8: False, 64: True}
_EMMAP = b"EMMAP01\n"
_LARGEST = 1 << 40  # indices
_MISSING = object()

if TYPE_CHECKING:  # Counters[int] or Counters[float]: checkers know by dtype=; Counters alone is Counters[int]
    import typing_extensions

    _V = typing_extensions.TypeVar("_V", bound=float, default=int)

    class _Numbers(CountersCore[_V], MutableMapping[str, _V]): ...
else:  # Python 3.11 has no type variables with a default
    _V = TypeVar("_V")

    class _Numbers(CountersCore, MutableMapping):
        __slots__ = ()


@own_methods
class Counters(_Numbers[_V], Handle):
    """Counters in the file at `path`, by name or by index; a mapping of names to values.

    path
        In mode ``shared`` the file is made if it is missing (0600).
    capacity
        How many counters go by index, from 0 on; as many names have room at first. Names are no part of them: each
        gets a cell of its own behind them, and the file grows in place for as many as there are.
    mode
        ``shared``; ``readonly`` for exporters: needs no write permission and never writes; ``private``: a copy, a
        point in time, whose changes stay in this process.
    dtype
        "i64": signed integers, which wrap as the hardware does; "f64": floats, for gauges and sums of seconds.
    padded
        Each counter on a cache line of its own, for those that several processors change all the time.
    layout
        "mmapds", or "emmap" for the files of emmap's ``open_counters/2``: `capacity` counters by index, no names.
    durability
        "process": survives the death of any process; "power": names, and what `reserve` hands out, survive power loss.
    populate
        Fault the cells in at open.

    capacity (64), dtype ("i64"), padded (False) and durability ("process") are stored when the file is made, and taken
    from it if left out; given and different, `SchemaMismatch` shows both.

    Progress: operations on a cell are wait-free (floats, bits and `checked`: lock-free) and make no system call; by
    name, the first after somebody has removed a name reads all names again. Making or removing a name takes a kernel
    lock: blocking, for as long as another process does the same. After a crash: each counter has the value that was
    last stored, and each name is there or not. ``c[k] += 1`` reads, then writes: not atomic; `fetch_add`, `add`,
    `setdefault`, `pop` and `popitem` are. A handle may be shared by threads, and works in the child of a fork. Source
    of the idea: emmap.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Counters(folder + "/demo") as c:
    ...     c.fetch_add("requests"), c.add("requests", 10), c.snapshot()
    (0, 11, {'requests': 11})
    """

    __slots__ = ()

    @overload
    def __init__(
        self: Counters[int],
        path: StrPath,
        capacity: int | None = None,
        *,
        mode: Mode = "shared",
        dtype: Literal["i64"] | None = None,
        padded: bool | None = None,
        layout: Literal["mmapds", "emmap"] = "mmapds",
        durability: Literal["process", "power"] | None = None,
        populate: bool = False,
    ) -> None: ...
    @overload
    def __init__(
        self: Counters[float],
        path: StrPath,
        capacity: int | None = None,
        *,
        mode: Mode = "shared",
        dtype: Literal["f64"],
        padded: bool | None = None,
        layout: Literal["mmapds", "emmap"] = "mmapds",
        durability: Literal["process", "power"] | None = None,
        populate: bool = False,
    ) -> None: ...
    def __init__(
        self,
        path: StrPath,
        capacity: int | None = None,
        *,
        mode: Mode = "shared",
        dtype: Literal["i64", "f64"] | None = None,
        padded: bool | None = None,
        layout: Literal["mmapds", "emmap"] = "mmapds",
        durability: Literal["process", "power"] | None = None,
        populate: bool = False,
    ) -> None:
        if self.path:  # None before
            raise RuntimeError("Counters are opened once: make another")
        check_mode(mode)
        if FLAGS["PAGE"] != kernel.PAGE:
            raise OSError(
                errno.ENOTSUP,
                f"this kernel has pages of {FLAGS['PAGE']} bytes; counters are laid out in pages of {kernel.PAGE}",
            )
        _check_options(capacity, dtype, layout, durability)
        name = os.path.abspath(os.fspath(path))
        try:
            if layout == "emmap":
                self._open_emmap(name, capacity, mode, dtype, padded, durability)
            else:
                self._open(name, capacity, mode, dtype, padded, durability)
            if mode == "private":
                self._copy()
                self._backing.close()
            if populate:
                self._populate()
        except BaseException:
            self.close()
            raise

    # ---- coming to life -----------------------------------------------------------------------------------------

    def _open(
        self, path: str, capacity: int | None, mode: str, dtype: str | None, padded: bool | None, durability: str | None
    ) -> None:
        shared = mode == "shared"
        file = self._open_file(path, capacity, mode, dtype, padded, durability)
        header = file.header
        number, stride, cells = header.options[:3]
        self._configure(path, mode, "mmapds", "", False, header.durability, file)
        if number >= len(_DTYPES) or stride not in _STRIDES or cells > _LARGEST:
            raise IncompatibleFormat(
                f"{path} stores dtype {number}, {stride} bytes from cell to cell and {cells} indices, which this "
                "release does not know: use the one that wrote it"
            )
        stored = {
            "capacity": cells,
            "dtype": _DTYPES[number],
            "padded": _STRIDES[stride],
            "durability": header.durability,
        }
        asked = {"capacity": capacity, "dtype": dtype, "padded": padded, "durability": durability}
        for option, value in asked.items():
            if value is not None and value != stored[option]:
                raise SchemaMismatch(
                    f"{path} stores {option}={stored[option]!r}, asked for was {value!r}: leave {option}= out to take "
                    "the stored one, or use another path"
                )
        self._configure(path, mode, "mmapds", _DTYPES[number], _STRIDES[stride], header.durability, file)
        if shared:
            file.settle_and_live(lambda: self._recover_file(cells))
            if header.durability == "power":
                files.sync_directory(path)  # who made the file may have died before he did
        self._map(file.fd, cells, writable=shared, lenient=not shared and not file.settled())

    @staticmethod
    def _open_file(
        path: str, capacity: int | None, mode: str, dtype: str | None, padded: bool | None, durability: str | None
    ) -> files.OpenFile:
        durability = durability or "process"
        capacity = 64 if capacity is None else capacity
        stride = 64 if padded else 8
        while True:
            try:
                return files.OpenFile(path, "counters", writable=mode == "shared")
            except FileNotFoundError:
                if mode != "shared":
                    raise FileNotFoundError(
                        errno.ENOENT, f"there are no counters here, and mode={mode!r} makes no file", path
                    ) from None
            page = files.new_header(
                "counters", durability=durability, options=(_DTYPES.index(dtype or "i64"), stride, capacity)
            )
            control, size = first_extent(files.identity_of(page), capacity, stride)
            sentinel = kernel.SENTINEL.to_bytes(8, "little")
            with suppress(FileExistsError):  # somebody was first: open theirs
                files.create(path, page + control, size, durability=durability, end=sentinel)

    def _recover_file(self, capacity: int) -> None:
        file = self._backing
        assert file is not None
        self._map(file.fd, capacity, writable=True, lenient=True)
        try:
            self._recover()
        finally:
            self._forget()

    def _settled(self) -> bool:
        file: files.OpenFile = self._backing
        return file.settled()

    def _lock(self) -> kernel.LockFile:
        file: files.OpenFile = self._backing
        file.check_path()
        try:
            if file.locks is None or not file.locks.usable:  # the child of a fork is alive too
                file.live_locks().lock(kernel.LOCK_SLOT, shared=True)
            return files.open_locks(file.descriptor(), self.path, file.identity)
        except PermissionError as error:
            error.add_note(
                "This process may not open the file any more: make names before you drop privileges, or give the file "
                "to the user of the workers."
            )
            raise

    def _open_emmap(
        self, path: str, capacity: int | None, mode: str, dtype: str | None, padded: bool | None, durability: str | None
    ) -> None:
        refused = {"dtype='f64'": dtype == "f64", "padded=True": padded, "durability='power'": durability == "power"}
        for option, given in refused.items():
            if given:
                raise ValueError(f"layout='emmap' has no {option}: its files hold int64 cells and nothing else")
        while True:
            try:
                file = _EmmapFile(path, writable=mode == "shared")
                break
            except FileNotFoundError:
                if mode != "shared":
                    raise FileNotFoundError(
                        errno.ENOENT, f"there are no counters here, and mode={mode!r} makes no file", path
                    ) from None
            with suppress(FileExistsError), files.unnamed(path, 0o600) as (fd, publish):
                files.check_filesystem(fd, path, "process")
                count = 64 if capacity is None else capacity
                kernel.allocate(fd, 16 + 8 * count)
                os.pwrite(fd, _EMMAP + count.to_bytes(8, "little"), 0)
                publish()
        self._configure(path, mode, "emmap", "i64", False, "process", file)
        if capacity is not None and capacity != file.count:
            raise SchemaMismatch(
                f"{path} holds {file.count} counters, asked for were {capacity}: leave capacity= out to take the "
                "stored count, or use another path"
            )
        self._map_emmap(file.fd, file.count, writable=mode == "shared")

    # ---- a mapping ----------------------------------------------------------------------------------------------

    def items(self) -> ItemsView[str, _V]:
        """The items of a :meth:`snapshot`."""
        return self.snapshot().items()

    def values(self) -> ValuesView[_V]:
        """The values of a :meth:`snapshot`."""
        return self.snapshot().values()

    @overload
    def pop(self, name: str, /) -> _V: ...
    @overload
    def pop(self, name: str, /, default: _V | _T) -> _V | _T: ...
    def pop(self, name, /, default=_MISSING):  # type: ignore[no-untyped-def]
        """Removes a name and returns its value, `default` or KeyError if there is none. Atomic: what is added by name
        before is in the value, what is added later makes the name anew."""
        if not isinstance(name, str):
            raise TypeError(f"names are popped, not {type(name).__name__} {name!r}: reset() takes an index's value")
        value = self._pop(name)
        if value is not None:
            return value
        if default is not _MISSING:
            return default
        raise KeyError(name)

    def clear(self) -> None:
        """Removes all names that there are now."""
        if self.layout == "emmap":
            raise TypeError("layout='emmap' has no names to remove")
        for name in self:
            self._pop(name)

    def popitem(self) -> tuple[str, _V]:
        """Removes the name that was made last; KeyError if there is none. Atomic."""
        if self.layout == "emmap":
            raise TypeError("layout='emmap' has no names to remove")
        while names := list(self):
            if (value := self._pop(names[-1])) is not None:
                return names[-1], value
        raise KeyError("there are no names")

    # ---- durability and the end ---------------------------------------------------------------------------------

    def flush(self, wait: bool = True) -> None:
        """Writes all counters to the disk; with ``wait=False`` only starts it.

        When it returns after waiting, they survive power loss. DurabilityFailed if the disk did not take them: the next
        call writes everything anew. Does nothing in modes ``private`` and ``readonly``, which have nothing to write.
        """
        self._check_open()
        if self.mode != "shared":
            return
        file = self._backing
        file.check_path()
        if wait:
            self._flush()
            if self.durability == "process":  # else who opened the file has done it
                with suppress(PermissionError):  # of a directory that may be written and not be read
                    files.sync_directory(file.path)
        else:
            kernel.start_writeback(file.descriptor(), 0, file.size)

    def close(self) -> None:
        """Ends this handle; idempotent. Bound counters and views stay valid."""
        self._forget()
        self._release()

    def check(self) -> None:
        """Checks every invariant of the file, and changes nothing; `CorruptionError` says which one is broken."""
        from mmapds.inspection import check

        check(self.path)

    @property
    def _is_closed(self) -> bool:
        return self.closed

    def _check_open(self) -> None:
        if self.closed:
            raise Closed(f"{self.path}: these counters are closed")

    def __reduce__(self) -> NoReturn:
        raise TypeError("counters are not copied or pickled: open the path once more")

    def __repr__(self) -> str:
        try:
            what = "counters" if self.layout == "emmap" else "names"
            state = "closed" if self.closed else f"{len(self)} {what}"
        except MmapdsError as error:
            state = type(error).__name__
        return f"<Counters {self.path} {self.mode} {state}>"


class _EmmapFile(files.Opened):
    """A file of emmap's, open: its descriptor and how many counters it holds."""

    __slots__ = ("count",)

    def __init__(self, path: str, *, writable: bool) -> None:
        super().__init__(path, writable=writable)
        try:
            files.check_filesystem(self.fd, path, "process")
            head = os.pread(self.fd, 16, 0)
            if head[:8] != _EMMAP or len(head) < 16:
                raise IncompatibleFormat(
                    f"{path} does not start with {_EMMAP!r} and a count, but with {head!r}: it is no file of emmap's "
                    "counters, and is left as it is"
                )
            self.count, size = int.from_bytes(head[8:], "little"), self.size
            if not 0 < self.count <= _LARGEST or size < 16 + 8 * self.count:
                raise CorruptionError(
                    f"{path} has {size} bytes and says that it holds {self.count} counters, which take "
                    f"{16 + 8 * self.count}: restore a copy"
                )
        except BaseException:
            self.close()
            raise

    def check_path(self) -> None:
        """Also whether the file was cut: it may be shorter than a page, and then nothing else would tell."""
        super().check_path()
        size = self.size
        if size < 16 + 8 * self.count:
            raise MappingLost(
                f"{self.path} was cut to {size} bytes while it was open: what was counted since is lost. Close "
                "this handle, look at the file.",
                path=self.path,
            )


def _check_options(capacity: int | None, dtype: str | None, layout: str, durability: str | None) -> None:
    if capacity is not None and (isinstance(capacity, bool) or not isinstance(capacity, int)):
        raise TypeError(f"capacity is an int, not {type(capacity).__name__} {capacity!r}")
    least = 1 if layout == "emmap" else 0
    if capacity is not None and not least <= capacity <= _LARGEST:
        raise ValueError(f"capacity {capacity} is not from {least} to {_LARGEST}")
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r} is not 'i64' or 'f64'")
    if layout not in ("mmapds", "emmap"):
        raise ValueError(f"layout {layout!r} is not 'mmapds' or 'emmap'")
    if durability is not None and durability not in files.DURABILITIES:
        raise ValueError(f"durability {durability!r} is not 'process' or 'power'")
