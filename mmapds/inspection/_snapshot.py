"""The files of a snapshot map as the inspection reads them, and in words.

The layout is drawn in ``_native/layout.h`` and written here a second time, from the drawing: records, the manifest's
words, the arithmetic of checks. A manifest is believed when its record and checksum are right and the version is the
same before and after. Layers never change, and what of a delta is published never does: once its files are open, a
version can be looked at for as long as it takes, whatever a writer does meanwhile. They are mapped, and the mapping is
guarded: what is cut off under it is an error and not a SIGBUS.
"""

from __future__ import annotations

import os
import re
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import xxhash

from mmapds import files
from mmapds._manifest import Contents, DeltaRef, LayerRef
from mmapds._native import kernel
from mmapds._native.region import FLAGS as MAP
from mmapds._native.region import Mapping
from mmapds.errors import CorruptionError, IncompatibleFormat
from mmapds.inspection._base import ATTEMPTS, Report, Severity, first_page, opened, settled
from mmapds.inspection._sync import Control, Record, sequence_of

PREFIX = "manifest"
SYNC = f"{PREFIX}_sync"
NAME = re.compile(r"([0-9a-f]{16})\.(layer|delta)")
_PART = re.compile(rf"{PREFIX}_(?:sync|data_[01])")
_HEAD = struct.Struct("<8s3Qq16sQ16s2Q")
_LAYER = struct.Struct("<Q16s3Q")
MAGIC = b"manifest"
MOST_LAYERS = 12
LARGEST = _HEAD.size + MOST_LAYERS * _LAYER.size
KEYS = ("none yet", "str", "bytes")
STR = 1

PAIR, GONE, EXPIRES, LONG, UNKNOWN = 1 << 31, 1 << 30, 1 << 29, 1 << 28, 0xFF << 20
_SELDOM = GONE | EXPIRES | LONG | UNKNOWN
KEY_LIMIT = 65536
_MASK = (1 << 64) - 1
_MOST = 20  # findings of one severity in one file


class Place:
    """What is found in one file: the first of each severity, and how many more there are."""

    def __init__(self, report: Report, where: str) -> None:
        self.where = where
        self._report = report
        self._counts: dict[Severity, int] = {}

    def _add(self, severity: Severity, what: str) -> None:
        self._counts[severity] = count = self._counts.get(severity, 0) + 1
        if count <= _MOST:
            self._report.add(severity, self.where, what)

    def error(self, what: str) -> None:
        """Adds what somebody will trip over."""
        self._add("error", what)

    def warning(self, what: str) -> None:
        """Adds what is wrong and harms nobody yet."""
        self._add("warning", what)

    def note(self, what: str) -> None:
        """Adds what is worth knowing."""
        self._add("note", what)

    @property
    def broken(self) -> bool:
        """Whether there was an error."""
        return "error" in self._counts

    def end(self) -> None:
        """Says how many were left out."""
        for severity, count in self._counts.items():
            if count > _MOST:
                self._report.add(severity, self.where, f"has {count - _MOST} more that are not listed")


def mixed(start: int, *words: int) -> int:
    """mmapds_mix of layout.h, of one word after the other."""
    for word in words:
        start = (start ^ word) * 0x9E3779B97F4A7C15 & _MASK
        start ^= start >> 32
    return start


def mapped(fd: int, size: int, path: str) -> Mapping:
    """A file that changes in no way that matters, or is looked at live."""
    return Mapping(fd, size, MAP["READ"], MAP["SHARED"], path)


# ---- records -------------------------------------------------------------------------------------------------------

Entry = tuple[bytes, bool, int, str]  # key, whether it is gone, end, what is wrong with it


def read_record(data: memoryview, words: memoryview, at: int, limit: int) -> Entry | None:
    """The record at `at`, a multiple of 8, which ends at `limit` at the latest; None if there is none. Its value is not
    read."""
    if limit - at < 8:
        return None
    first = words[at >> 3]
    if not first & PAIR:
        return None
    size, start, wrong = first >> 32, at + 8, ""
    if first & _SELDOM:
        if first & UNKNOWN:
            wrong = "has flags that this release does not know"
        if first & LONG:
            if limit - start < 8:
                return None
            if size or words[start >> 3] >> 32 == 0:
                wrong = "says in eight bytes a size that has four, or has both"
            size, start = words[start >> 3], start + 8
        if first & EXPIRES:
            if limit - start < 8:
                return None
            if not 0 < words[start >> 3] < 1 << 63:
                wrong = "expires at a time that is none"
            start += 8
        if first & GONE and (size or first & EXPIRES):
            wrong = "says that its key is gone, and has a value, or expires"
    key_size = first & 0xFFFFF
    value = start + (key_size + 7 & ~7)
    end = value + (size + 7 & ~7)
    if key_size > KEY_LIMIT or end > limit:
        return None
    if (key_size & 7 and words[(value >> 3) - 1] >> 8 * (key_size & 7)) or (
        size & 7 and words[(end >> 3) - 1] >> 8 * (size & 7)
    ):
        wrong = "has padding that is not 0"
    return data[start : start + key_size].tobytes(), bool(first & GONE), end, wrong


def shown(key: bytes) -> str:
    """A key in a message."""
    return repr(key[:40]) + ("..." if len(key) > 40 else "")


# ---- the manifest --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """The newest manifest as its words. `data` is None if it cannot be had; b"" with version 0: none was published."""

    version: int = 0
    data: bytes | None = None
    header: files.Header | None = None
    foreign: bool = False

    @property
    def where(self) -> str:
        """The file that has it."""
        return f"{PREFIX}_data_{self.version & 1}"


def read_manifest(folder: str) -> Reading:
    """Of a map of another boot, and of a copy: the one that readers take, the newest that matches its checksum."""
    path = os.path.join(folder, SYNC)
    try:
        with opened(path) as fd:
            page = first_page(fd)
            header = files.parse_header(page, path, "sync")
            foreign = not settled(fd, page)
            for attempt in range(ATTEMPTS):
                control = Control(fd)
                if not control.complete:
                    break
                found = _newest(folder, control, header.identity, foreign)
                if found is not None:
                    return Reading(*found, header, foreign)
                if sequence_of(fd) == control.sequence:
                    break
                time.sleep(0.0005 * 1.2**attempt)
            return Reading(header=header, foreign=foreign)
    except (FileNotFoundError, IsADirectoryError, CorruptionError, IncompatibleFormat):
        return Reading()


def _newest(folder: str, control: Control, identity: bytes, foreign: bool) -> tuple[int, bytes] | None:
    if control.sequence == 0 and (not foreign or all(record.empty for record in control.records)):
        return 0, b""
    order = [control.active]
    if foreign:
        order = sorted((0, 1), key=lambda index: control.records[index].sequence, reverse=True)
    for index in order:
        record = control.records[index]
        right = record.sequence & 1 == index if foreign else record.sequence == control.sequence
        if right and record.sequence and record.right(identity):
            data = _value(os.path.join(folder, f"{PREFIX}_data_{index}"), record)
            if data is not None:
                return record.sequence, data
    return None


def _value(path: str, record: Record) -> bytes | None:
    """What matches the record; of one that is too long to be a manifest, the beginning."""
    try:
        with opened(path) as fd:
            data = os.pread(fd, min(record.size, LARGEST + 1), kernel.PAGE)
    except (OSError, IncompatibleFormat):
        return None
    return data if record.size > LARGEST or xxhash.xxh3_64_intdigest(data) == record.hash else None


def version_of(folder: str) -> tuple[int, bool]:
    """The version now, and whether somebody has the writer's place."""
    try:
        with opened(os.path.join(folder, SYNC)) as fd:
            writing = kernel.locked(fd, kernel.LOCK_WRITER)
            return sequence_of(fd), writing
    except (OSError, IncompatibleFormat):
        return 0, False


def decode(data: bytes) -> tuple[Contents | None, list[str]]:
    """What the words say, as far as it can be used, and what is wrong with them."""
    if len(data) < _HEAD.size or not data.startswith(MAGIC):
        return None, [f"is no manifest: {min(len(data), LARGEST + 1)} bytes, {data[:8]!r} first"]
    _, number, entries, keys, clock, boot, delta, identity, end, count = _HEAD.unpack_from(data)
    if count > MOST_LAYERS or len(data) != _HEAD.size + count * _LAYER.size:
        return None, [
            f"names {count} layers in {len(data)} bytes: {MOST_LAYERS} are the most, {_LAYER.size} bytes each"
        ]
    found = list(_LAYER.iter_unpack(data[_HEAD.size :]))
    numbers = [layer[0] for layer in found]
    wrong = [
        f"names file {one:016x}, and the next new one's number is {number:x}"
        for one in [*numbers, *([delta] if delta else [])]
        if not 0 < one < number
    ]
    if keys >= len(KEYS):
        wrong.append(f"says {keys} for the kind of its keys: from 0 to 2 are possible")
    if any(newer <= older for newer, older in pairwise(numbers)):
        wrong.append(f"names layers in an order that is not from new to old: {', '.join(f'{n:x}' for n in numbers)}")
    if found and not delta and found[0][4] != entries:
        wrong.append(f"says {entries} entries, and {found[0][4]} when its newest layer was made, with nothing newer")
    if not delta and (any(identity) or end):
        wrong.append("has words that must be 0 and are not")
    layers = tuple(LayerRef(*layer) for layer in found)
    there = DeltaRef(delta, identity, end) if delta else None
    return Contents(number, entries, keys, clock, boot, there, layers), wrong


# ---- which map a path belongs to -----------------------------------------------------------------------------------


def file_names(folder: str) -> list[str]:
    """Layers and deltas in a directory, in order."""
    with suppress(OSError):
        return sorted(name for name in os.listdir(folder) if NAME.fullmatch(name))
    return []


def is_map(path: str) -> bool:
    """Whether a directory is one of a snapshot map, perhaps a damaged one."""
    return os.path.lexists(os.path.join(path, SYNC)) or bool(file_names(path))


def is_manifest(folder: str) -> bool:
    """Whether the Synchronizer there is a map's, as far as can be told."""
    if file_names(folder):
        return True
    data = read_manifest(folder).data
    return data is not None and data.startswith(MAGIC)


def map_of(path: str) -> str:
    """The directory of the map that a file belongs to; "" if there is none."""
    folder, name = os.path.split(path)
    folder = folder or "."
    if _PART.fullmatch(name):
        return folder if is_manifest(folder) else ""
    if not NAME.fullmatch(name) or not os.path.lexists(os.path.join(folder, SYNC)):
        return ""
    with opened(path) as fd:
        head = os.pread(fd, 24, 0)
    ours = not head.startswith(files.MAGIC) or head[16:].rstrip(b"\0") in (b"layer", b"delta")
    return folder if ours else ""
