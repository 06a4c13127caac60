"""Counters files as bytes: what tests look at, and damage, behind the package's back.

The offsets and checks are written down here once more on purpose: a change of the layout that nobody meant fails these
tests. `Snapshot` reads a whole file by nothing but the description in ``_native/layout.h``.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

from syncfiles import (
    CHECK,
    FAILED,
    IDENTITY,
    ORIGIN,
    PAGE,
    flip,
    lock,
    locked,
    other_boot,
    peek,
    poke,
    poke_word,
    seal,
    word,
)

import mmapds

__all__ = [
    "CHECK", "FAILED", "IDENTITY", "ORIGIN", "PAGE",
    "flip", "lock", "locked", "other_boot", "peek", "poke", "poke_word", "seal", "word",
]  # fmt: skip

OPTIONS = 96  # dtype, stride, capacity
NAMES, CHANGES, REMOVING = 4096, 4104, 4160
EXTENTS, EXTENT_SIZE, EXTENT_COUNT = 4608, 32, 112
CONTROL = 8192  # bytes before the first extent
ENTRY = 272
STATES = {b"live    ": "live", b"removed ": "removed", b"damaged ": "damaged"}
SENTINEL = b"sentinel"
LOCK_NAMES, LOCK_ALIVE = 0, 64
_MASK = (1 << 64) - 1


def mix(accumulator: int, *words: int) -> int:
    for value in words:
        accumulator = ((accumulator ^ value) * 0x9E3779B97F4A7C15) & _MASK
        accumulator ^= accumulator >> 32
    return accumulator


def identity(path: str) -> bytes:
    return peek(path, IDENTITY, 16)


def count(number: int, identity: bytes) -> int:
    """How `names` and `removing` are stored."""
    if not number:
        return 0
    return number | mix(0x636F756E74, number, *struct.unpack("<2Q", identity)) << 32 & _MASK


def extent_check(number: int, cells_size: int, names_size: int, identity: bytes) -> int:
    return mix(0x657874656E74, number, cells_size, names_size, *struct.unpack("<2Q", identity)) or 1


def entry_check(number: int, name: bytes, identity: bytes) -> int:
    text = bytes([len(name)]) + name
    text = text.ljust(-(-len(text) // 8) * 8, b"\0")
    words = struct.unpack(f"<{len(text) // 8}Q", text)
    return mix(0x6E616D65, number, *words, *struct.unpack("<2Q", identity))


def entry(number: int, name: bytes, identity: bytes, state: bytes = b"live    ") -> bytes:
    """An entry with a right check, as a hostile writer would make it."""
    check = entry_check(number, name, identity)
    return state + check.to_bytes(8, "little") + bytes([len(name)]) + name.ljust(255, b"\0")


class Extent(NamedTuple):
    start: int
    cells_size: int
    names_size: int

    @property
    def entries(self) -> int:
        """How many it has room for."""
        return (self.names_size - 8) // ENTRY

    @property
    def names_start(self) -> int:
        return self.start + self.cells_size

    @property
    def end(self) -> int:
        return self.start + self.cells_size + self.names_size


class Entry(NamedTuple):
    state: str  # "" if it is none of the three
    name: str
    offset: int
    intact: bool


class Snapshot:
    """A file as it is, or as `content` says it is."""

    def __init__(self, path: str | Path, content: bytes | None = None) -> None:
        self.content = content = Path(path).read_bytes() if content is None else content
        self.identity = content[IDENTITY : IDENTITY + 16]
        self.dtype, self.stride, self.capacity = struct.unpack_from("<3Q", content, OPTIONS)
        self.raw_names, self.changes = struct.unpack_from("<2Q", content, NAMES)
        (self.raw_removing,) = struct.unpack_from("<Q", content, REMOVING)
        self.names = self.raw_names & 0xFFFFFFFF
        self.removing = self.raw_removing & 0xFFFFFFFF
        self.extents: list[Extent] = []
        start = CONTROL
        for number in range(EXTENT_COUNT):
            record = struct.unpack_from("<4Q", content, EXTENTS + number * EXTENT_SIZE)
            if record[3] == 0:
                break
            assert record[3] == extent_check(number, *record[:2], self.identity), f"extent {number} is damaged"
            self.extents.append(Extent(start, *record[:2]))
            start = self.extents[-1].end

    def entry_offset(self, number: int) -> int:
        for extent in self.extents:
            if number < extent.entries:
                return extent.names_start + number * ENTRY
            number -= extent.entries
        raise IndexError(number)

    def cell_offset(self, index: int) -> int:
        at = index * self.stride
        for extent in self.extents:
            if at < extent.cells_size:
                return extent.start + at
            at -= extent.cells_size
        raise IndexError(index)

    def entry(self, number: int) -> Entry:
        offset = self.entry_offset(number)
        state, check, length = struct.unpack_from("<8sQB", self.content, offset)
        name = self.content[offset + 17 : offset + 17 + length]
        intact = check == entry_check(number, name, self.identity)
        return Entry(STATES.get(state, ""), name.decode(errors="replace"), offset, intact)

    def entries(self) -> list[Entry]:
        """Those that are published."""
        return [self.entry(number) for number in range(self.names)]

    def cell(self, index: int) -> int:
        found: int = struct.unpack_from("<q", self.content, self.cell_offset(index))[0]
        return found

    def values(self) -> dict[str, int]:
        """Live names and what is in their cells."""
        return {e.name: self.cell(self.capacity + n) for n, e in enumerate(self.entries()) if e.state == "live"}

    def check(self, message: str = "") -> None:
        """Every invariant of a file that nobody alive is changing: counts and entries verify, each name has one cell,
        there is room for all, and all is within the file."""
        where = f"{message}; {self.describe()}"
        assert self.raw_names == count(self.names, self.identity), f"the count of names is damaged; {where}"
        assert self.raw_removing == count(self.removing, self.identity), f"`removing` is damaged; {where}"
        assert self.extents, f"no extent; {where}"
        assert self.extents[-1].end <= len(self.content), f"the file ends before its last extent; {where}"
        for extent in self.extents:
            assert self.content[extent.end - 8 : extent.end] == SENTINEL, f"no sentinel in {extent}; {where}"
        room = sum(extent.entries for extent in self.extents)
        assert self.names <= room, f"more names than room; {where}"
        assert self.removing <= self.names, f"removing what is not there; {where}"
        assert (self.capacity + room) * self.stride <= sum(extent.cells_size for extent in self.extents), where
        seen: dict[str, int] = {}
        for number, entry in enumerate(self.entries()):
            assert entry.intact, f"entry {number} is damaged; {where}"
            assert entry.state, f"entry {number} has no state; {where}"
            if entry.state != "damaged":
                assert entry.name not in seen, f"{entry.name!r} has cells {seen[entry.name]} and {number}; {where}"
                seen[entry.name] = number

    def describe(self) -> str:
        """For messages of failing tests."""
        some = [f"{e.name}:{e.state}={self.cell(self.capacity + n)}" for n, e in enumerate(self.entries()[:12])]
        return (
            f"names={self.names} changes={self.changes} removing={self.removing} extents={len(self.extents)} "
            f"size={len(self.content)} entries={' '.join(some)}{' ...' if self.names > 12 else ''}"
        )


def check(path: str | Path, message: str = "") -> Snapshot:
    """The file, whose invariants hold."""
    found = Snapshot(path)
    found.check(message)
    return found


def state(path: str | Path) -> str:
    """For messages of failing tests."""
    return Snapshot(path).describe()


def copy(path: str, target: str) -> None:
    """Another inode with the same bytes, as cp makes it."""
    Path(target).write_bytes(Path(path).read_bytes())


def restore(path: str, content: bytes) -> None:
    """Writes the file anew, as it may be found after another boot."""
    if os.path.exists(path):
        os.unlink(path)
    Path(path).write_bytes(content)
    if len(content) >= PAGE:
        other_boot(path)


def crashed(path: str, durability: Any = "process") -> dict[str, int]:
    """Makes a file as a crash of the machine may leave it, in the middle of everything; what a recovery must find."""
    with mmapds.Counters(path, 8, durability=durability) as c:
        for number, name in enumerate("abcdefgh"):
            c[name] = number + 1
        c[3] = 33
        c.remove("e")
    found = Snapshot(path)
    entries = found.entries()
    poke(path, entries[1].offset, b"removed ")  # the removal of b was under way, and 2 is in its cell
    poke_word(path, REMOVING, count(2, found.identity))
    poke(path, entries[3].offset + 17, b"D")  # d was torn
    poke(path, entries[6].offset, entry(6, b"h", found.identity))  # g was written over a name that nobody had seen
    # Some that came last are on the disk, and the count is not. What "power" has counted is whole.
    poke_word(path, NAMES, count(3 if durability == "power" else 6, found.identity))
    poke_word(path, FAILED, 1)
    other_boot(path)
    return {"a": 1, "c": 3, "f": 6, "h": 8}
