"""Synchronizer: one writer publishes a value, any number of processes read it, zero-copy.

Promises
    A reader sees a whole version, never a torn one, and what it holds stays as it is for as long as it holds it.
    Reading is wait-free and makes no system call. The writer is never blocked by a reader, alive, stopped or dead.
    Whoever dies, whenever, harms nobody: the next writer goes on, the next reader reads the newest version that was
    published whole.

Here is the policy: paths, options, codecs, who may write, recovery after another boot. The protocol is in
``_native/leftright.h``, its two halves in ``_native/leftright.pyx`` and ``_native/writer.pyx``, whose methods this
class inherits: a wrapper in Python would cost more than a read.

Prior art
    cloudflare/mmap-sync, whose files ``protocol="mmap-sync"`` shares (see `mmapds._crate`); the left-right technique.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from contextlib import suppress
from typing import Any, Literal, Self

import xxhash

from mmapds import codecs, files
from mmapds._datafiles import DataFiles
from mmapds._handle import Handle
from mmapds._native import kernel
from mmapds._native.region import FLAGS, Mapping
from mmapds._native.writer import Writer, WriteResult
from mmapds.errors import (
    Closed,
    CorruptionError,
    DurabilityFailed,
    IncompatibleFormat,
    MmapdsError,
    NotInitialised,
    ProtocolMismatch,
    SchemaMismatch,
    WriterBusy,
)
from mmapds.region import Mode, StrPath, check_mode

_READ = FLAGS["READ"]
_WRITE = FLAGS["READ"] | FLAGS["WRITE"]
_RETRY = 1.0  # seconds between two searches for a slot while all are taken


class Synchronizer(Writer, Handle):
    """One value, published in versions under ``<prefix>_sync``, ``<prefix>_data_0`` and ``<prefix>_data_1``.

    prefix
        A path; the suffixes are appended to it. In mode ``shared`` the files are made if they are missing (0600).
    mode
        ``shared`` to read and write; ``readonly`` needs no write permission and never writes: reads copy, and `wait`
        looks every half millisecond; ``private`` is a copy of the value at this moment, whose writes stay here.
    protocol
        "mmapds", or "mmap-sync" to exchange data with the Rust crate of that name.
    codec, schema, durability
        Stored when the files are made, and taken from them if left out (new: "msgpack", none, "process"); given and
        different, `SchemaMismatch` shows both. Durability "power": what `write` has returned survives power loss.
    populate
        Fault data files in when they are mapped.
    verify
        Check the checksum at the first read of each version.
    checksum
        For protocol "mmap-sync" only: the function whose low 24 bits are stored, and verified by readers.

    Progress: `version`, `read` and `load` are wait-free in mode ``shared`` (lock-free where a copy is made). After a
    crash: the newest version that was published whole. A handle may be shared by threads; in the child of a fork it
    registers anew at its first use. Source of the idea: mmap-sync and the left-right technique.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Synchronizer(folder + "/demo") as s:
    ...     s.write({"answer": 42})
    ...     s.load()
    WriteResult(size=9, reset=False)
    {'answer': 42}
    """

    def __new__(cls, prefix: StrPath, *, protocol: str = "mmapds", **_options: Any) -> Self:
        if protocol == "mmap-sync" and cls is Synchronizer:
            from mmapds._crate import CrateSynchronizer

            return CrateSynchronizer.__new__(CrateSynchronizer, prefix)  # type: ignore[return-value]
        return super().__new__(cls)

    def __init__(
        self,
        prefix: StrPath,
        *,
        mode: Mode = "shared",
        protocol: Literal["mmapds", "mmap-sync"] = "mmapds",
        codec: Any = None,
        schema: str | None = None,
        durability: Literal["process", "power"] | None = None,
        populate: bool = False,
        verify: bool = True,
        checksum: Any = None,
    ) -> None:
        if hasattr(self, "prefix"):
            raise RuntimeError("a Synchronizer is opened once: make another")
        check_mode(mode)
        if protocol != "mmapds":
            raise ValueError(f"protocol {protocol!r} is not 'mmapds' or 'mmap-sync'")
        if checksum is not None:
            raise ValueError("checksum= is for protocol='mmap-sync'; this protocol always uses xxh3_64")
        if durability is not None and durability not in files.DURABILITIES:
            raise ValueError(f"durability {durability!r} is not 'process' or 'power'")
        self.prefix = os.path.abspath(os.fspath(prefix))
        self.mode = mode
        self._path = self.prefix + "_sync"
        self._retry = 0.0
        self._foreign = False
        self._copy_of = b""
        self._mutexes: dict[int, threading.RLock] = {}
        self._file = self._open_file(codec, schema, durability)
        try:
            header = self._file.header
            if durability is not None and durability != header.durability:
                raise SchemaMismatch(
                    f"{self._path} stores durability {header.durability!r}, asked for was {durability!r}: leave "
                    "durability= out to take the stored one, or use another prefix"
                )
            self._power = header.durability == "power"
            self.durability = header.durability
            self.codec = codecs.reopen(header.schema.text, codec, schema, where=self._path)
            self._decode = self.codec.decode
            self._own = self.codec.own
            if self._file.size != kernel.SYNC_SIZE:
                raise CorruptionError(
                    f"{self._path} has {self._file.size} bytes, expected {kernel.SYNC_SIZE}: restore a copy"
                )
            if header.options[0] != kernel.SLOTS:
                raise IncompatibleFormat(
                    f"{self._path} has {header.options[0]} reader slots, this release knows {kernel.SLOTS}: use the "
                    "one that wrote it"
                )
            self._data = DataFiles(self.prefix, self._file, populate=populate)
            self._start(verify)
        except BaseException:
            self._close()
            self._file.close()
            raise

    # ---- coming to life -----------------------------------------------------------------------------------------

    def _open_file(self, codec: Any, schema: str | None, durability: str | None) -> files.OpenFile:
        writable = self.mode == "shared"
        while True:
            try:
                return files.OpenFile(self._path, "sync", writable=writable)
            except FileNotFoundError:
                if os.path.lexists(self.prefix + "_state"):
                    raise ProtocolMismatch(
                        f"{self.prefix}_state belongs to protocol 'mmap-sync': pass protocol='mmap-sync', or use "
                        "another prefix"
                    ) from None
                if not writable:
                    raise FileNotFoundError(
                        errno.ENOENT,
                        f"nothing is published here, and mode={self.mode!r} makes no files: start the writer first",
                        self._path,
                    ) from None
            page = files.new_header(
                "sync",
                durability=durability or "process",
                options=(kernel.SLOTS,),
                schema=codecs.fingerprint("msgpack" if codec is None else codec, schema),
            )
            page += bytes(kernel.PAGE - 8) + kernel.SENTINEL.to_bytes(8, "little")  # the commit page
            with suppress(FileExistsError):  # somebody was first: open theirs
                files.create(self._path, page, kernel.SYNC_SIZE, durability=durability or "process")

    def _start(self, verify: bool) -> None:
        writable = self.mode == "shared"
        control = Mapping(self._file.fd, kernel.SYNC_SIZE, _WRITE if writable else _READ, FLAGS["SHARED"], self._path)
        if writable:
            self._open(control, verify=verify, unregistered=False)
            self._file.settle(self._recover_after_boot)
            return
        if not self._file.settled():
            # Another boot wrote it, and nobody is alive to have recovered it: do so in memory of our own.
            self._foreign = True
            control = self._copied(control)
        self._open(control, verify=verify, unregistered=True)
        if self._foreign:
            try:
                self._recover_after_boot()
            except CorruptionError:
                if not self._file.settled():  # else somebody has recovered it meanwhile, and may have written
                    raise
                self._refresh()
        if self.mode == "private":
            try:
                with self.read() as result:
                    self._open_private(bytes(result.data), result.version)
            except NotInitialised:
                self._open_private(b"", 0)
            self._file.close()

    def _recover_after_boot(self) -> None:
        """Chooses the newest version that verifies. Nobody else is alive in the file, or it is our own copy."""
        records = [(self._record(index), index) for index in (0, 1)]
        found = [
            (sequence, size, digest, index)
            for (sequence, size, digest, right), index in records
            if right and sequence and sequence & 1 == index
        ]
        for sequence, size, digest, index in sorted(found, reverse=True):
            try:
                mapping = self._data.map(index, size)
            except (CorruptionError, IncompatibleFormat):  # its header did not survive
                continue
            if mapping is not None:
                with memoryview(mapping)[kernel.PAGE : kernel.PAGE + size] as data:
                    if xxhash.xxh3_64_intdigest(data) == digest:
                        if self.mode == "shared":
                            self._data.set_aside(1 - index)
                        self._recover(sequence)
                        return
        # `power`: V is synced before the first write returns, so while it is 0 nothing was durable: half a first record
        # is what a power cut in the middle of that write may leave.
        begun = records[0][0][:3] == (0, 0, 0) and records[1][0][0] <= 1 and not super().version
        unpublished = begun and self._file.header.durability == "power"
        if not unpublished and any(record[:3] != (0, 0, 0) for record, _ in records):
            raise CorruptionError(
                f"{self._path}: this file was last used on another boot, or copied, and no version in it matches its "
                "checksum. It is left as it is: restore a copy, or remove the three files to begin anew."
            )
        if self.mode == "shared":
            self._data.set_aside(0)
            self._data.set_aside(1)
        self._recover(0)

    def _refresh(self) -> None:
        """Readers without a slot, before each look: has somebody recovered the file for real?"""
        if not self._foreign:
            return
        settled = self._file.settled()
        if not settled and self._looked_at() == self._copy_of:
            return
        control = Mapping(self._file.fd, kernel.SYNC_SIZE, _READ, FLAGS["SHARED"], self._path)
        if settled:
            self._foreign = False
            self._open(control, verify=self._verifies, unregistered=True)
        else:
            # Somebody whose boot id is the file's own (in another container) has been here and has gone.
            self._open(self._copied(control), verify=self._verifies, unregistered=True)
            self._recover_after_boot()

    def _looked_at(self) -> bytes:
        """What changes with each version, of a file that is not ours."""
        return os.pread(self._file.fd, 2 * kernel.PAGE, 0)

    def _copied(self, control: Mapping) -> Mapping:
        """The control file in memory of our own, as it is at one moment."""
        copy = Mapping(-1, kernel.SYNC_SIZE, _WRITE, FLAGS["PRIVATE"] | FLAGS["ANONYMOUS"], self._path)
        while True:
            self._copy_of = self._looked_at()
            memoryview(copy)[:] = memoryview(control)
            control.ensure()  # else we would take a file that was cut for one that says nothing yet
            if self._looked_at() == self._copy_of:
                return copy

    def _registering(self) -> threading.RLock:
        """Excludes close() while a thread takes a slot.

        Not the mutex of the writing half, which a thread may hold for as long as its grace; and one for each fork,
        because the parent's may be held by a thread that this process does not have.
        """
        return self._mutexes.setdefault(kernel.fork_count(), threading.RLock())

    def _register(self) -> bool:
        """Takes a slot; False if there is none, and then for a while."""
        now = time.monotonic()
        if now < self._retry:
            return False
        with self._registering():
            self._check_open()
            try:
                locks = self._file.live_locks()
            except OSError:  # no permission any more, after a fork and setuid; too many open files
                self._retry = now + _RETRY
                return False
            # Nobody resets the slots meanwhile; and if somebody does just now, or was stopped in it, this read copies.
            with locks.held(kernel.LOCK_OPEN, shared=True, wait=False) as registry:
                if not registry.got:
                    return False
                found: bool = self._take_slot(locks)
        if not found:
            self._retry = now + _RETRY
        return found

    # ---- writing ------------------------------------------------------------------------------------------------

    def write(self, value: Any, grace: float = 1.0) -> WriteResult:
        """Encodes and publishes `value`; otherwise as :meth:`write_bytes`."""
        return self.write_bytes(self.codec.encode(value), grace)

    def _may_write(self) -> None:
        if self.mode == "readonly":
            raise PermissionError(
                errno.EACCES, "mode='readonly' never writes: open with mode='shared' or 'private'", self._path
            )

    def _busy(self, holder: str) -> WriterBusy:
        return WriterBusy(
            f"{self._path} has a writer: {holder}. There is one at a time; it keeps the place until it closes its "
            "handle or dies.",
            path=self._path,
            holder=holder,
        )

    def _become_writer(self) -> None:
        """Takes the writer's lock, which the kernel keeps for this handle until it is closed or dies."""
        self._may_write()
        locks = self._file.live_locks()
        with locks.held(kernel.LOCK_WRITER, wait=False) as place:
            if not place.got:
                raise self._busy(self._file.read_holder())
            try:
                self._file.check_path()
                sequence = super().version
                found, _, _, right = self._record(sequence & 1)
                if sequence and (found != sequence or not right):
                    raise CorruptionError(
                        f"{self._path}: the record of version {sequence} is damaged (it says version {found}): "
                        "restore a copy, or remove the three files to begin anew"
                    )
                self._file.write_holder()
                self._data.discard(0)
                self._data.discard(1)
                self._start_writing(locks.fd)
                if self._power:
                    self._heal()
                place.keep()
            except BaseException:
                place.keep(False)
                self._stop_writing()
                raise

    def _heal(self) -> None:
        """Makes the active version durable, before the inactive file, perhaps the last durable one, is touched.

        Pages whose flush failed are clean although the disk does not have them: they are made dirty again first.
        """
        sequence = super().version
        if sequence:
            _, size, digest, _ = self._record(sequence & 1)
        if sequence and self._data.map(sequence & 1, size) is not None:  # else what is there was never that long
            active = self._data.target(sequence & 1, size, False)
            with memoryview(active)[kernel.PAGE : kernel.PAGE + size] as data:
                whole = xxhash.xxh3_64_intdigest(data) == digest
            if whole:  # else the kernel has dropped it: the version to be written replaces it
                self._redirty(active, kernel.PAGE + size)
                self._durable(active, kernel.PAGE + size)
        self._sync_names()
        self._redirty_control()
        self._durable_control()

    def _sync_names(self) -> None:
        """Makes the names of the three files durable."""
        try:
            files.sync_directory(self._path)
        except DurabilityFailed:
            self._set_failed(True)
            raise
        self._names_synced()

    # ---- the end ------------------------------------------------------------------------------------------------

    def _check_path(self) -> None:
        try:
            self._file.check_path()
        except OSError:
            if self._is_closed:  # by another thread, while this one waits
                raise Closed("this Synchronizer is closed") from None
            raise

    def _let_go(self) -> None:
        """A poisoned handle gives its place as the writer back."""
        self._stop_writing()
        if self._file.locks is not None and self._file.locks.usable:
            self._file.locks.unlock(kernel.LOCK_WRITER)

    def close(self) -> None:
        """Ends this handle; idempotent. Results that are still held, and their views, stay valid until they go."""
        if not self._is_closed:  # whatever an earlier call was interrupted in is finished below
            self._close()
        with self._registering():
            locks = self._file.locks
            if not self._give_slot_back() and locks is not None:
                locks.close()
            elif locks is not None:
                locks.unlock(kernel.LOCK_WRITER)  # the slot's byte stays locked as long as a result is held
            self._file.close()

    def check(self) -> None:
        """Checks every invariant of the files, and changes nothing; `CorruptionError` says which one is broken."""
        from mmapds.inspection import check

        check(self._path)

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("this Synchronizer is closed")

    def __repr__(self) -> str:
        try:
            state = "closed" if self._is_closed else f"version {self.version}"
        except MmapdsError as error:
            state = type(error).__name__
        return f"<Synchronizer {self.prefix} {self.mode} {state}>"
