"""The manifest of a snapshot map: which layers there are, and how much of the delta counts.

It is the value of a Synchronizer of the map's own, ``<path>/manifest_*``, so that publishing it is one atomic step
that survives whatever a Synchronizer's write survives. It is always read by copy and validation: a reader needs no
slot and no permission to write. The writer's place is taken for one transaction at a time, and taking it again, when
nobody else had it in between, costs a lock and a comparison.

Its words are drawn in ``_native/layout.h``.
"""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import xxhash

from mmapds import files
from mmapds._native import kernel
from mmapds._native.snapbuild import MOST_LAYERS
from mmapds._queuefiles import boot_offset
from mmapds.errors import CorruptionError, DurabilityFailed, WriterBusy
from mmapds.synchronizer import Synchronizer

_HEAD = struct.Struct("<QQQQq16sQ16sQQ")
_LAYER = struct.Struct("<Q16sQQQ")
_MAGIC = int.from_bytes(b"manifest", "little")
LEAST = 24  # bytes that an entry of the delta takes


@dataclass(frozen=True, slots=True)
class LayerRef:
    """A layer, as the manifest names it."""

    number: int
    identity: bytes
    records: int
    bytes: int
    entries: int = 0  # len of the map when this was the newest layer, and there was no delta


@dataclass(frozen=True, slots=True)
class DeltaRef:
    """The delta, and up to where it counts."""

    number: int
    identity: bytes
    end: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What a manifest says. `clock` belongs to the boot `boot`."""

    number: int
    entries: int
    keys: int
    clock: int
    boot: bytes
    delta: DeltaRef | None
    layers: tuple[LayerRef, ...]

    def encode(self) -> bytes:
        """The words."""
        delta = self.delta or DeltaRef(0, bytes(16), 0)
        head = _HEAD.pack(
            _MAGIC,
            self.number,
            self.entries,
            self.keys,
            self.clock,
            self.boot,
            delta.number,
            delta.identity,
            delta.end,
            len(self.layers),
        )
        return head + b"".join(
            _LAYER.pack(one.number, one.identity, one.records, one.bytes, one.entries) for one in self.layers
        )

    def here(self) -> Contents:
        """The same, with a clock of this boot."""
        if self.boot == files.boot_id():
            return self
        clock = time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_BOOTTIME) + boot_offset()
        return replace(self, clock=clock, boot=files.boot_id())

    def clock_here(self) -> int:
        """What this process adds to its CLOCK_BOOTTIME."""
        return self.here().clock - boot_offset()


EMPTY = Contents(1, 0, 0, 0, bytes(16), None, ())


def decode(data: bytes, path: str) -> Contents:
    """What the words say; CorruptionError if they cannot be right."""
    if len(data) >= _HEAD.size:
        magic, number, entries, keys, clock, boot, delta, identity, end, count = _HEAD.unpack_from(data)
        if (
            magic == _MAGIC
            and keys <= 2
            and count <= MOST_LAYERS
            and len(data) == _HEAD.size + count * _LAYER.size
            and delta < number < 1 << 62
        ):
            layers = tuple(LayerRef(*found) for found in _LAYER.iter_unpack(data[_HEAD.size :]))
            most = sum(layer.records for layer in layers) + (end // LEAST if delta else 0)
            if all(0 < layer.number < number for layer in layers) and entries <= most:
                there = DeltaRef(delta, identity, end) if delta else None
                return Contents(number, entries, keys, clock, boot, there, layers)
    raise CorruptionError(f"{path}: the manifest is damaged ({len(data)} bytes, {data[:8]!r} first): restore a copy")


class Manifest(Synchronizer):
    """The Synchronizer of a map."""

    def __init__(self, prefix: str, **options: Any) -> None:
        self._paused: tuple[int, ...] | None = None
        super().__init__(prefix, **options)
        if self.mode == "shared":
            self._stay_alive()

    def _stay_alive(self) -> None:
        # Nobody resets the file while this handle lives: a reader of a container with a boot id of its own, say.
        self._file.live_locks().lock(kernel.LOCK_SLOT, shared=True)

    def _register(self) -> bool:
        return False

    def _busy(self, holder: str) -> WriterBusy:
        return WriterBusy(
            f"{os.path.dirname(self.prefix)} is being changed by {holder}. There is one transaction at a time; its "
            "place is free again when it ends, or its process dies.",
            path=os.path.dirname(self.prefix),
            holder=holder,
        )

    @property
    def identity(self) -> bytes:
        """Of the map."""
        return self._file.header.identity

    @property
    def foreign(self) -> bool:
        """Whether another boot wrote the file and nobody has recovered it: what is read is a copy in this process."""
        return bool(self._foreign)

    def contents(self) -> tuple[int, Contents]:
        """The newest version, and what it says. NotInitialised before the first."""
        with self.read() as result:
            return result.version, decode(bytes(result.data), self._path)

    def contents_for_writer(self) -> tuple[int, Contents]:
        """The same, for who has the writer's place, and also while a failed flush keeps others from reading."""
        version = int(super().version)
        _, size, digest, _ = self._record(version & 1)
        mapping = self._data.map(version & 1, size)
        data = b"" if mapping is None else bytes(memoryview(mapping)[kernel.PAGE : kernel.PAGE + size])
        if xxhash.xxh3_64_intdigest(data) != digest:
            raise CorruptionError(f"{self._path}: version {version} does not match its checksum: restore a copy")
        return version, decode(data, self._path)

    @property
    def has_failed(self) -> bool:
        """Whether a flush has failed, and nothing has replaced what it lost."""
        return bool(self._failed_word)

    def fail(self) -> None:
        """A flush of one of the map's files has failed."""
        self._set_failed(True)

    def acquire(self) -> bool:
        """Takes the writer's place; WriterBusy if somebody has it. Whether somebody else may have had it since we
        did.
        """
        self._check_open()
        self._may_write()
        self._check_path()  # a map that was put in its place has files of the same names
        forked = self._file.locks is None or not self._file.locks.usable
        locks = self._file.live_locks()
        paused, self._paused = self._paused, None
        if paused is not None:
            with locks.held(kernel.LOCK_WRITER, wait=False) as place:
                if not place.got:
                    raise self._busy(self._file.read_holder())
                try:
                    if self._resume_writing(paused, locks.fd):
                        place.keep()
                        return False
                except BaseException:
                    place.keep(False)
                    self._stop_writing()
                    raise
        self._become_writer()
        if forked:
            self._stay_alive()
        return True

    def release(self) -> None:
        """Gives the place back."""
        if self._is_writer:
            self._paused = self._pause_writing()
            locks = self._file.locks
            if locks is not None and locks.usable:
                locks.unlock(kernel.LOCK_WRITER)

    def _sync_names(self) -> None:
        """The map's own name, too: who made it may have died before he did."""
        super()._sync_names()
        try:
            with suppress(PermissionError):  # of a directory that may be written and not be read
                files.sync_directory(os.path.dirname(self._path))
        except DurabilityFailed:
            self._set_failed(True)
            raise

    def check_place(self) -> None:
        """MappingLost if the path names another map by now, or none."""
        self._check_path()

    def make_durable(self) -> None:
        """What is published survives power loss when this returns; the names of the map's files too, if not before."""
        sequence = int(super().version)
        if self._failed_word or not sequence:
            self._heal()
            return
        _, size, _, _ = self._record(sequence & 1)
        if self._data.map(sequence & 1, size) is None:
            raise CorruptionError(
                f"{self._path}: version {sequence} has {size} bytes, and its file has not: restore a copy"
            )
        self._durable(self._data.target(sequence & 1, size, False), kernel.PAGE + size)
        if self._names_pending:
            self._sync_names()
        self._durable_control()
