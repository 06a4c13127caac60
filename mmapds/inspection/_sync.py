"""A Synchronizer's files, protocol "mmapds", as the inspection reads them, and in words.

The layout is drawn in ``_native/layout.h``. The arithmetic of a record's check is written here a second time, from the
drawing: a check that shares the code of what it checks would share its mistakes.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from mmapds import files
from mmapds._native import kernel
from mmapds.errors import CorruptionError, IncompatibleFormat
from mmapds.inspection._base import ATTEMPTS, described_neighbour, first_page, opened

_SEQUENCE, _RECORDS, _WAITERS, _IN_USE, _SENTINEL, SLOTS_AT = 4096, (4160, 4224), 4288, 4352, 8184, 8192
SLOT_SIZE = 128
_RECORD = struct.Struct("<5Q")
SLOT = struct.Struct("<4Q")
ZERO = ((4104, 4160), (4200, 4224), (4264, 4288), (4292, 4352), (4480, 8184))
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Record:
    """What is published under one index."""

    sequence: int
    size: int
    hash: int
    check: int
    generation: int

    def right(self, identity: bytes) -> bool:
        """Whether the words belong to each other and to this file."""
        return self.check == record_check(self.sequence, self.size, self.hash, identity)

    @property
    def empty(self) -> bool:
        """Whether nothing was ever published here."""
        return not (self.sequence or self.size or self.hash or self.check)


@dataclass(frozen=True, slots=True)
class Slot:
    """A reader's slot, read twice with its bit and its lock in between."""

    pins: tuple[int, int]
    incarnation: int
    pid: int
    in_use: bool
    alive: bool


class Control:
    """The sync file as it was in one read: a mixture of two moments if the sequence changed meanwhile."""

    def __init__(self, fd: int) -> None:
        self.page = os.pread(fd, kernel.SYNC_SIZE, 0)
        self.complete = len(self.page) == kernel.SYNC_SIZE
        if self.complete:
            self.sequence = int.from_bytes(self.page[_SEQUENCE : _SEQUENCE + 8], "little")
            self.records = tuple(Record(*_RECORD.unpack_from(self.page, offset)) for offset in _RECORDS)
            self.waiters = int.from_bytes(self.page[_WAITERS : _WAITERS + 4], "little")
            self.sentinel = int.from_bytes(self.page[_SENTINEL : _SENTINEL + 8], "little")
            self._in_use = int.from_bytes(self.page[_IN_USE : _IN_USE + kernel.SLOTS // 8], "little")

    @property
    def active(self) -> int:
        """The index that readers read."""
        return self.sequence & 1

    def slots(self) -> list[int]:
        """The slots that are in use, or that pin something without being so."""
        return [
            slot
            for slot in range(kernel.SLOTS)
            if self._in_use >> slot & 1 or any(SLOT.unpack_from(self.page, SLOTS_AT + slot * SLOT_SIZE)[:2])
        ]


def record_check(sequence: int, size: int, digest: int, identity: bytes) -> int:
    """mmapds_record_check of layout.h."""
    words = (sequence, size, digest, int.from_bytes(identity[:8], "little"), int.from_bytes(identity[8:], "little"))
    check = 0x6D6D61706473
    for word in words:
        check = (check ^ word) * 0x9E3779B97F4A7C15 & _MASK
        check ^= check >> 32
    return check


def sequence_of(fd: int) -> int:
    """The commit word now."""
    return int.from_bytes(os.pread(fd, 8, _SEQUENCE), "little")


def look_at_slot(fd: int, slot: int) -> Slot:
    """One slot. What is not the same before and after is read again, a few times."""
    offset = SLOTS_AT + slot * SLOT_SIZE
    for _ in range(5):
        before = os.pread(fd, SLOT.size, offset)
        word = os.pread(fd, 1, _IN_USE + slot // 8)
        alive = kernel.locked(fd, kernel.LOCK_SLOT + slot)
        again = os.pread(fd, 1, _IN_USE + slot // 8)
        if before == os.pread(fd, SLOT.size, offset) and word == again:
            break
    pins0, pins1, incarnation, pid = SLOT.unpack(before.ljust(SLOT.size, b"\0"))
    return Slot((pins0, pins1), incarnation, pid, bool(word and word[0] >> slot % 8 & 1), alive)


# ---- in words ------------------------------------------------------------------------------------------------------


def described_control(fd: int, path: str, header: files.Header) -> dict[str, object]:
    """What the sync file says beyond what every header does."""
    for _ in range(ATTEMPTS):
        control = Control(fd)
        if not control.complete or control.sequence == sequence_of(fd):
            break
    common: dict[str, object] = {
        "options": {"slots": header.options[0]},
        "writer": {
            "locked": kernel.locked(fd, kernel.LOCK_WRITER),
            "holder": header.holder if header.holder_pid else None,
        },
        "durability_failed": bool(header.failed),
    }
    if not control.complete:
        return common | {"cut": f"{len(control.page)} bytes, expected {kernel.SYNC_SIZE}"}
    slots = [(slot, look_at_slot(fd, slot)) for slot in control.slots()]
    return common | {
        "sequence": control.sequence,
        "active": control.active if control.sequence else None,
        "records": [
            {
                "index": index,
                "sequence": record.sequence,
                "size": record.size,
                "hash": f"{record.hash:016x}",
                "check_right": record.empty or record.right(header.identity),
                "generation": record.generation,
            }
            for index, record in enumerate(control.records)
        ],
        "slots": {
            "in_use": sum(slot.in_use for _, slot in slots),
            "used": [
                {
                    "slot": n,
                    "pins": slot.pins,
                    "pid": slot.pid or None,
                    "incarnation": slot.incarnation,
                    "alive": slot.alive,
                }
                for n, slot in slots
                if slot.in_use
            ],
        },
        "waiters": bool(control.waiters),
        "data": [described_neighbour(path.removesuffix("_sync") + f"_data_{index}") for index in (0, 1)],
    }


def described_data(fd: int, prefix: str, header: files.Header) -> dict[str, object]:
    """What a data file says beyond what every header does."""
    found: dict[str, object] = {
        "options": {"index": header.options[0]},
        "capacity": os.fstat(fd).st_size - kernel.PAGE,
    }
    path = prefix + "_sync"
    if prefix and os.path.lexists(path):
        try:
            with opened(path) as control:
                owner = files.parse_header(first_page(control), path)
            found["control"] = {"path": path, "is_parent": owner.identity == header.parent}
        except (CorruptionError, IncompatibleFormat, PermissionError) as error:
            found["control"] = {"path": path, "is_parent": None, "error": str(error)}
    return found
