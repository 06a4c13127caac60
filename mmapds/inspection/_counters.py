"""A counters file as the inspection reads it, and in words; and the counters of emmap, which have no header of ours.

The layout is drawn in ``_native/layout.h``. The arithmetic of the checks is written here a second time, from the
drawing: a check that shares the code of what it checks would share its mistakes.

Everything is read with pread, words first and what they count behind them, so that what is counted is there: an extent
is published when it is in the file, and a name when its extent and its entry are.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from mmapds import files
from mmapds._native import kernel
from mmapds.inspection._base import described_file, opened

CONTROL = 8192  # where the extents begin
DTYPES = {0: "i64", 1: "f64"}
STRIDES = {8: False, 64: True}  # bytes from cell to cell: padded
INDICES = 1 << 40  # more have no file
LIVE, REMOVED, DAMAGED = (int.from_bytes(word, "little") for word in (b"live    ", b"removed ", b"damaged "))
ENTRY = 272

_NAMES, _CHANGING, TABLE = 4096, 4160, 4608
EXTENTS = 112
_EXTENT = struct.Struct("<4Q")
_HEAD = struct.Struct("<2QB")
_WORDS = tuple(struct.Struct(f"<{count}Q") for count in range(33))
_CHUNK = 3855 * ENTRY  # somewhat less than 1 MiB, in whole entries
_LARGEST = 1 << 46  # bytes of cells, or of entries, in an extent
_MASK = (1 << 64) - 1

EMMAP_MAGIC = b"EMMAP01\n"
EMMAP_HEAD = 16


# ---- the arithmetic of layout.h ------------------------------------------------------------------------------------


def mix(acc: int, words: tuple[int, ...]) -> int:
    """mmapds_mix, once for each word."""
    for word in words:
        acc = (acc ^ word) * 0x9E3779B97F4A7C15 & _MASK
        acc ^= acc >> 32
    return acc


def identity_words(identity: bytes) -> tuple[int, ...]:
    """The two words that bind a check to its file."""
    return _WORDS[2].unpack(identity)


def count_word(number: int, identity: tuple[int, ...]) -> int:
    """mmapds_count: a number with a check in its upper half."""
    return number | mix(0x636F756E74, (number, *identity)) << 32 & _MASK if number else 0


def count_of(word: int, identity: tuple[int, ...]) -> int | None:
    """The number in such a word; None if it is damaged."""
    number = word & 0xFFFFFFFF
    return number if word == count_word(number, identity) else None


def extent_check(number: int, cells_size: int, names_size: int, identity: tuple[int, ...]) -> int:
    """mmapds_extent_check: never 0."""
    return mix(0x657874656E74, (number, cells_size, names_size, *identity)) or 1


def entry_check(entry: bytes, number: int, identity: tuple[int, ...]) -> int:
    """mmapds_entry_check: over the length and the name, as words."""
    words = _WORDS[(entry[16] + 8) // 8].unpack_from(entry, 16)
    return mix(0x6E616D65, (number, *words, *identity))


# ---- what is there -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Extent:
    """A record of the table, and where its extent would lie in the file."""

    number: int
    start: int
    cells_size: int
    names_size: int
    zero: int
    check: int

    def wrong(self, identity: tuple[int, ...]) -> str:
        """What is wrong with the record; "" if nothing is."""
        if self.check != extent_check(self.number, self.cells_size, self.names_size, identity):
            return "its check is wrong: damaged, or from another file"
        if (self.cells_size | self.names_size) % kernel.PAGE or not 0 < self.names_size <= _LARGEST >= self.cells_size:
            return f"says {self.cells_size} bytes of cells and {self.names_size} of names, and both are whole pages"
        return ""

    @property
    def entries(self) -> int:
        """Where the entries begin."""
        return self.start + self.cells_size

    @property
    def end(self) -> int:
        """Where the extent ends."""
        return self.entries + self.names_size

    @property
    def room(self) -> int:
        """How many entries there are before the sentinel."""
        return (self.names_size - 8) // ENTRY


class Control:
    """The words of the control page, read one after the other; the file may end before any of them, and grow again."""

    def __init__(self, fd: int, identity: tuple[int, ...]) -> None:
        self.changing = os.pread(fd, 32, _CHANGING)
        words = os.pread(fd, 16, _NAMES)
        table = os.pread(fd, CONTROL - TABLE, TABLE)
        self.complete = (len(self.changing), len(words), len(table)) == (32, 16, CONTROL - TABLE)
        if not self.complete:
            return
        names, self.changes = _WORDS[2].unpack(words)
        removing, returning, _, self.how = _WORDS[4].unpack(self.changing)
        self.names = count_of(names, identity)
        self.removing = count_of(removing, identity)
        self.returning = count_of(returning, identity)
        self.table: list[Extent] = []
        start = CONTROL
        for number in range(EXTENTS):
            self.table.append(Extent(number, start, *_EXTENT.unpack_from(table, number * _EXTENT.size)))
            start = self.table[-1].end

    def extents(self, identity: tuple[int, ...]) -> list[Extent]:
        """Those that are there, up to the first that is not, or that is damaged."""
        for extent in self.table:
            if not extent.check or extent.wrong(identity):
                return self.table[: extent.number]
        return self.table


def entries(fd: int, extents: list[Extent], stop: int) -> Iterator[tuple[int, int, bytes]]:
    """(number, offset in the file, bytes) of the entries below `stop`; the last is short if the file ends there."""
    number = 0
    for extent in extents:
        upto = min(extent.room, stop - number) * ENTRY
        for start in range(0, upto, _CHUNK):
            size = min(_CHUNK, upto - start)
            data = os.pread(fd, size, extent.entries + start)
            for at in range(0, size, ENTRY):
                yield number, extent.entries + start + at, data[at : at + ENTRY]
                if len(data) < at + ENTRY:
                    return
                number += 1


def entry_is_wrong(entry: bytes, number: int, identity: tuple[int, ...]) -> str:
    """What is wrong with an entry, as what one says of several; "" if nothing is."""
    if len(entry) < ENTRY:
        return "lie behind the end of the file"
    state, check, length = _HEAD.unpack_from(entry)
    if check != entry_check(entry, number, identity):
        return "are not what was written: their checks are wrong"
    if state not in ((LIVE, REMOVED) if length else (DAMAGED,)):
        return "are neither there nor removed: their states are damaged"
    return ""


def state_of(entry: bytes) -> int:
    """The state of an entry."""
    return int.from_bytes(entry[:8], "little")


def name_of(entry: bytes) -> bytes:
    """The name in an entry."""
    return entry[17 : 17 + entry[16]]


# ---- in words ------------------------------------------------------------------------------------------------------


def described(fd: int, header: files.Header) -> dict[str, object]:
    """What a counters file says beyond what every header does. Reads all names."""
    dtype, stride, capacity = header.options[:3]
    found: dict[str, object] = {
        "options": {
            "dtype": DTYPES.get(dtype, f"{dtype}: not known here"),
            "padded": STRIDES.get(stride, f"{stride} bytes from cell to cell: not known here"),
            "capacity": capacity,
        },
        "durability_failed": bool(header.failed),
        "in_use": kernel.locked(fd, kernel.LOCK_SLOT),
    }
    identity = identity_words(header.identity)
    control = Control(fd, identity)
    if not control.complete:
        return found | {"cut": f"{os.fstat(fd).st_size} bytes, and the control page ends at {CONTROL}"}
    extents = control.extents(identity)
    states = dict.fromkeys((LIVE, REMOVED, DAMAGED), 0)
    for number, _, entry in entries(fd, extents, control.names or 0):
        if not entry_is_wrong(entry, number, identity):
            states[state_of(entry)] += 1
    return found | {
        "names": {
            "published": control.names,
            "live": states[LIVE],
            "removed": states[REMOVED],
            "given_up": states[DAMAGED],
            "room": sum(extent.room for extent in extents),
        },
        "changes": control.changes,
        "removing": control.removing - 1 if control.removing else None,
        "returning": control.returning - 1 if control.returning else None,
        "extents": [
            {"start": e.start, "cells_size": e.cells_size, "names_size": e.names_size, "room": e.room} for e in extents
        ],
    }


def describe_emmap(path: str) -> dict[str, object]:
    """A file of emmap's counters in words."""
    with opened(path) as fd:
        count = os.pread(fd, EMMAP_HEAD, 0)[8:]
        return {
            "what": "counters of emmap, by index",
            **described_file(fd, path),
            "kind": "emmap counters",
            "count": int.from_bytes(count, "little") if len(count) == 8 else None,
        }
