"""The files of a queue as the inspection reads them.

The layout is drawn in ``_native/layout.h`` and written here a second time, from the drawing. Meta is read with pread:
what its transitions change is of one moment if the count of changes is the same before and after, and the undo log is
empty both times (``_native/queueindex.h``). A log that does not become empty belongs to somebody who was killed or
stopped: then its words are taken back in the copy, as the next taker would do in the file. Records are read through
`SegmentReader`, from a private mapping that is guarded: what is cut off under it is an error and not a SIGBUS.
"""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress
from typing import cast

from mmapds import files
from mmapds._native import kernel
from mmapds._native.queuescan import SegmentReader
from mmapds._native.region import FLAGS as MAP
from mmapds._native.region import Mapping
from mmapds._queuefiles import META, SEGMENT, QueueFiles
from mmapds.inspection._base import opened

WORDS, WORDS_END = 4096, 4928
UNDO, UNDO_MOST = 8192, 256
SLOTS, SLOT, SLOTS_MOST = 12288, 64, 1024
SENTINEL = 81912
ENTRIES, ENTRY = 81920, 96
FREE, DELAYED, READY, CLAIMED, LEASED = range(5)
LARGEST = 1 << 40  # a segment
EPOCHS = 1 << 24
HEAD = 72  # bytes of the shortest record
END_OF_ALL = 1 << 62  # positions are below
_TOKEN = ~(3 << 30)
_ATTEMPTS = 400
_PIECE = 1 << 26
_WORD = struct.Struct("<Q")
_CHANGES, _CHANGES_AT = struct.Struct("<2Q"), 4248  # and the length of the undo log

_PARTS = (
    (0, ("put_lock", "tail", "tail_sequence", "saved_tail", "saved_sequence", "epoch")),
    (128, ("take_lock", "head", "head_sequence", "changes", "logged", "finished")),
    (256, ("capacity", "used", "free", "timed", "ready", "leased", "claimed", "waiting_bytes", "held", "fences",
           "stamps", "holders")),
    (384, ("returns", "deaths", "expired", "buried", "set_aside", "cut", "purged", "recoveries")),
    (768, ("shutdowns", "immediate", "looked")),
)  # fmt: skip
CONTROL_ZERO = (
    *((4144, 4224), (4272, 4352), (4448, 4480), (4544, 4608)),
    *((at + 8, at + 64) for at in range(4608, 4864, 64)),
    *((4888, 8192), (77824, SENTINEL)),
)
TALLIES = _PARTS[3][1]


class Slot:
    """Who takes items: one handle."""

    __slots__ = ("claimed", "claims", "number", "owing", "pid", "token")

    def __init__(self, number: int, data: bytes) -> None:
        self.number = number
        self.token, self.owing, self.claims, self.claimed, self.pid = struct.unpack_from("<5Q", data)

    def alive(self, fd: int) -> bool:
        """Whether its handle still is."""
        return token_lives(fd, self.token)


class Snapshot:
    """The words, slots and entries of meta at one moment."""

    def __init__(self, words: dict[str, int], slots: bytes, entries: bytes, taken_back: int = 0) -> None:
        slots, entries = slots[: len(slots) // SLOT * SLOT], entries[: len(entries) // ENTRY * ENTRY]
        self.words = words
        self.slots = [Slot(at // SLOT + 1, slots[at : at + SLOT]) for at in range(0, len(slots), SLOT)]
        self.entries = entries
        self.used = len(entries) // ENTRY
        self.taken_back = taken_back  # words of a transition that was not finished
        self.quads = memoryview(entries).cast("Q")
        self.halves = memoryview(entries).cast("I")

    def position(self, number: int) -> int:
        """Of an entry, numbered from 1 on."""
        return self.quads[12 * number - 12]

    def kind(self, number: int) -> int:
        """What an entry is in use for."""
        return self.halves[24 * number - 3]

    def positions(self) -> set[int]:
        """Of all items that have an entry."""
        kinds, quads = self.halves[21::24].tolist(), self.quads[::12].tolist()
        return {position for kind, position in zip(kinds, quads, strict=True) if kind != FREE}

    def kinds(self) -> list[int]:
        """How many entries there are of each kind."""
        counts = [0] * 5
        for kind in self.halves[21::24].tolist():
            if kind <= LEASED:
                counts[kind] += 1
        return counts


def parse_words(data: bytes) -> dict[str, int]:
    """The words from WORDS to WORDS_END."""
    found: dict[str, int] = {}
    for offset, names in _PARTS:
        found.update(zip(names, struct.unpack_from(f"<{len(names)}Q", data, offset), strict=True))
    return found


def read_words(fd: int) -> dict[str, int] | None:
    """The words as they are now, not all of one moment; None if the file is too short."""
    data = os.pread(fd, WORDS_END - WORDS, WORDS)
    return parse_words(data) if len(data) == WORDS_END - WORDS else None


def read_tail(fd: int) -> tuple[int, int, int]:
    """Where the tail is, and the least and the most that its sequence is: a put changes the sequence before the tail,
    and whoever is between the two, or died there, has saved the tail."""
    least, tail, most, saved, again = (
        _WORD.unpack(os.pread(fd, 8, WORDS + at).ljust(8, b"\0"))[0] for at in (16, 8, 16, 24, 8)
    )
    return tail, least - (saved == tail or (least, tail) != (most, again)), most


def look(fd: int, attempts: int = _ATTEMPTS) -> Snapshot | None:
    """Meta at one moment; None if it was changed all the while. The sizes in it have been checked by `sizes_fit`."""
    stuck: tuple[int, int] | None = None
    times = 0
    for attempt in range(attempts):
        data = os.pread(fd, WORDS_END - WORDS, WORDS)
        if len(data) < WORDS_END - WORDS:
            return None
        before = _CHANGES.unpack_from(data, _CHANGES_AT - WORDS)
        if before[1] == 0:
            used, capacity, holders = (_WORD.unpack_from(data, at)[0] for at in (264, 256, 344))
            slots = os.pread(fd, min(holders, SLOTS_MOST) * SLOT, SLOTS)
            entries = _read(fd, ENTRIES, min(used, capacity) * ENTRY)
            if os.pread(fd, _CHANGES.size, _CHANGES_AT) == _CHANGES.pack(*before):
                return Snapshot(parse_words(data), slots, entries)
        elif before == stuck:
            times += 1
            if times >= 8 and (repaired := _taken_back(fd)) is not None:
                return repaired
            if times >= 60:
                return None  # what the log says cannot be
        else:
            stuck, times = before, 0
        if attempt >= 20:
            time.sleep(0.00002 * (attempt % 100))
    return None


def sizes_fit(words: dict[str, int], size: int) -> bool:
    """Whether the entries that the words speak of are in the file."""
    return words["used"] <= words["capacity"] <= max(0, size - ENTRIES) // ENTRY and words["holders"] <= SLOTS_MOST


def _read(fd: int, offset: int, size: int) -> bytes:
    pieces = []
    while size > 0:
        data = os.pread(fd, min(_PIECE, size), offset)
        if not data:
            break
        pieces.append(data)
        offset += len(data)
        size -= len(data)
    return b"".join(pieces)


def _taken_back(fd: int) -> Snapshot | None:
    """A copy in which the undo log has been applied; None if somebody changed something meanwhile, or it is damaged."""
    words = read_words(fd)
    if words is None or not 0 < words["logged"] <= UNDO_MOST:
        return None
    size = ENTRIES + min(words["used"], words["capacity"]) * ENTRY
    copy = bytearray(_read(fd, 0, size))
    again = _read(fd, 0, size)
    if len(copy) < size or any(copy[start:end] != again[start:end] for start, end in ((4224, 4608), (4864, size))):
        return None  # puts go on, and wake: what they change is not in the log
    logged: int = words["logged"]
    pairs = [struct.unpack_from("<2Q", copy, UNDO + 16 * i) for i in range(logged)]
    for offset, value in reversed(pairs):
        if undo_is_wrong(offset, ENTRIES + words["capacity"] * ENTRY):
            return None
        if offset + 8 <= len(copy):
            struct.pack_into("<Q", copy, offset, value)
    words = parse_words(bytes(copy[WORDS:WORDS_END]))
    slots = bytes(copy[SLOTS : SLOTS + min(words["holders"], SLOTS_MOST) * SLOT])
    entries = bytes(copy[ENTRIES : ENTRIES + min(words["used"], words["capacity"]) * ENTRY])
    return Snapshot(words, slots, entries, logged)


def undo_is_wrong(offset: int, end: int) -> bool:
    """Whether no transition logs a word there."""
    return bool(offset & 7) or offset < 4232 or offset + 8 > end or 4864 <= offset < SLOTS


def token_lives(fd: int, token: int) -> bool:
    """Whether the owner of a token, or of a lock word with it, is alive."""
    token &= _TOKEN & (1 << 64) - 1
    byte = kernel.LOCK_TOKEN + ((token >> 32) << 30 | token & 0x3FFFFFFF)
    return token != 0 and byte < 1 << 63 and kernel.locked(fd, byte)


# ---- files ---------------------------------------------------------------------------------------------------------


class Looking(QueueFiles):
    """The files of a queue that is only looked at, wherever it lies."""

    __slots__ = ()

    def __init__(self, path: str, header: files.Header) -> None:
        self.path = path
        self.writable = False
        self.directory = -1
        self.segment_size = header.options[0]
        self.meta = cast(files.OpenFile, _Meta(header))


class _Meta:
    def __init__(self, header: files.Header) -> None:
        self.header = header

    def check_path(self) -> None:
        """What is there now is the caller's affair."""


def mapped(fd: int, size: int, start: int, queue: bytes, path: str) -> SegmentReader:
    """The records of a segment of the queue with this identity."""
    return SegmentReader(Mapping(fd, size, MAP["READ"], MAP["PRIVATE"], path), start, queue)


def is_queue(path: str) -> bool:
    """Whether a directory is one of a queue, perhaps a damaged one."""
    with suppress(OSError):
        if os.path.lexists(os.path.join(path, META)):
            return True
        return any(SEGMENT.fullmatch(name) for name in os.listdir(path))
    return False


def queue_of(path: str) -> str:
    """The directory of the queue that a file belongs to; "" if the file, or its name, is not one of a queue."""
    folder, name = os.path.split(path)
    if name != META and not (SEGMENT.fullmatch(name) and os.path.lexists(os.path.join(folder, META))):
        return ""
    with opened(path) as fd:
        head = os.pread(fd, 24, 0)
    if head.startswith(files.MAGIC):
        ours = head[16:].rstrip(b"\0") in (b"queue", b"segment")
    else:
        ours = any(SEGMENT.fullmatch(other) for other in os.listdir(folder or "."))  # it may be damaged
    return (folder or ".") if ours else ""
