"""What cache_server.py serves: a snapshot map in mode ``private``, and the cursors of SCAN.

A cursor is a number of 64 bits; a place in an ordered map is a key, which may be longer. So the number says how to find
the place in the tree of prefixes: one byte for each point where the keys of the base differ, at most six. Nothing is
kept for a scan, and any worker can go on with it. Keys that were only set here follow, in the order in which they were
set: their cursors are numbers of a list. Every key that is there from the beginning of a scan to its end is returned,
and an iteration looks at COUNT keys, or at more if six bytes do not tell the next ones apart. From the lowest bit up::

    0, 14 bits of the base's version, path: 1, then up to LEVELS bytes
    1, index in the list

The base that a path belongs to is kept for one refresh, so that a scan goes on across it. A second one ends the scan.
"""

from __future__ import annotations

import asyncio
import sys
import time

from cache_protocol import Refused, pattern

import mmapds

LEVELS = 6  # bytes of a path
VERSIONS = 1 << 14


class Cache:
    """The map of one worker, its cursors and its figures."""

    def __init__(self, path: str, port: int) -> None:
        self.map = open_map(path)
        self.base = self.map.snapshot()
        self.bases = [self.base]  # cursors may still be of the one before the last refresh; it keeps its files
        self.added: list[bytes] = []  # keys that were set here and were not in the map, in this order
        self.known: set[bytes] = set()  # the same
        self.port = port
        self.started = time.monotonic()
        self.transports: set[asyncio.Transport] = set()
        self.accepted = self.commands = 0

    def refresh(self) -> None:
        """Puts the newest version under the overlay."""
        try:
            version = self.map.refresh()
        except (mmapds.MmapdsError, OSError) as error:
            print(f"version {self.base.version} is kept: {error}", file=sys.stderr, flush=True)
            return
        if version != self.base.version:
            self.bases = [self.base, self.map.snapshot()]
            self.base = self.bases[-1]

    def set(self, key: bytes, value: bytes, ttl: float | None = None) -> None:
        new = key not in self.map
        self.map.set(key, value, ttl)
        if new and key not in self.known:
            self.added.append(key)
            self.known.add(key)

    def scan(self, cursor: int, count: int, glob: bytes) -> tuple[int, list[bytes]]:
        """The next cursor (0: that was all), and those of the next `count` keys that fit."""
        regex, prefix = pattern(glob)
        fits = regex.match if glob != b"*" else None
        keys: list[bytes] = []
        seen = index = 0
        if cursor & 1:
            index = cursor >> 1
        else:
            start = max(prefix, self._place(cursor)) if cursor else prefix
            last = group = b""
            for key, _ in self.base.range(start, after(prefix)):  # a range and not all: the map is ordered
                if seen >= count and not (group and key.startswith(group)):
                    path, group = path_to(self.base, key)
                    if not last.startswith(group):
                        return path << 15 | self.base.version % VERSIONS << 1, keys
                if (fits is None or fits(key)) and key in self.map:
                    keys.append(key)
                last = key
                seen += 1
        more = self.added[index : index + max(count - seen, 0)]
        keys += (key for key in more if (fits is None or fits(key)) and key in self.map)
        index += len(more)
        return (index << 1 | 1 if index < len(self.added) else 0), keys

    def _place(self, cursor: int) -> bytes:
        for base in self.bases:
            if base.version % VERSIONS == cursor >> 1 & VERSIONS - 1:
                return place_of(base, cursor >> 15)
        raise Refused("ERR this cursor is of a version of the map that was replaced: begin again with 0")


def open_map(path: str) -> mmapds.SnapshotMap:
    opened = mmapds.SnapshotMap(path, mode="private", codec="raw")
    if opened.key_type is str:
        opened.close()
        raise SystemExit(f"{path}: the keys of this map are str; this server needs one whose keys are bytes")
    return opened


def after(prefix: bytes) -> bytes | None:
    """The first key behind all that begin with `prefix`; None if there is none."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else None


def common(base: mmapds.Snapshot, prefix: bytes) -> bytes | None:
    """What all keys that begin with `prefix` begin with: what the first and the last have in common."""
    first = next(base.prefix(prefix), None)
    if first is None:
        return None
    last = next(base.prefix(prefix, reverse=True))
    low, high = first[0], last[0]
    return low[: next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))]


def path_to(base: mmapds.Snapshot, key: bytes) -> tuple[int, bytes]:
    """The path to the longest prefix of `key` that LEVELS bytes lead to, and that prefix."""
    path, prefix = 1, b""
    for _ in range(LEVELS):
        shared = common(base, prefix)
        if shared is None or shared == key:
            break
        prefix = key[: len(shared) + 1]
        path = path << 8 | prefix[-1]
    return path, prefix


def place_of(base: mmapds.Snapshot, path: int) -> bytes:
    """The prefix that a path leads to."""
    prefix = b""
    for byte in path.to_bytes(LEVELS + 1, "big").lstrip(b"\0")[1:]:
        prefix = (common(base, prefix) or b"") + bytes([byte])
    return prefix
