"""Looking at a queue: peeking, iterating, counting.

Promises
    Looking takes nothing and waits for nobody. It begins with a copy of the index, of one moment; what is taken or put
    while an iteration runs may be in it or not. A damaged item is left out: `verify` names it.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Iterator
from queue import Empty
from typing import TYPE_CHECKING, Any

import xxhash

from mmapds import _deflate
from mmapds._native import kernel
from mmapds._native.queuescan import FLAGS, Record, SegmentReader, boottime, parse_holders
from mmapds._queuemaps import CLAIMED, DELAYED, LEASED, NO_SEGMENT, READY, QueueMaps
from mmapds.codecs import ResolvedCodec
from mmapds.errors import CorruptionError

if TYPE_CHECKING:
    from mmapds._deadletters import DeadLetters

_WAITING = (DELAYED, READY)


class QueueLook(QueueMaps):
    """What a queue shows."""

    __slots__ = ("codec",)

    codec: ResolvedCodec

    if TYPE_CHECKING:

        @property
        def dead(self) -> DeadLetters: ...

    # ---- looking --------------------------------------------------------------------------------------------------

    def _value_of(self, data: bytes) -> Any:
        if self.codec.name == "raw":
            return data
        return self.codec.decode(memoryview(data))

    def _shown(self, reader: SegmentReader, record: Record) -> Any:
        """The value of a record; Empty if its bytes are not what was put."""
        data = reader.payload(record)
        if xxhash.xxh3_64_intdigest(data) != record.hash:
            raise Empty
        if record.flags & FLAGS["compressed"]:
            data = _deflate.unpack(data)
        return self._value_of(data)

    def _held(self, waiting: list[dict[str, int]]) -> Iterator[tuple[tuple[int, int], SegmentReader, Record]]:
        """Items that have an entry, by place."""
        size = self._backing.segment_size
        reader: SegmentReader | None = None
        for entry in waiting:
            position = entry["position"]
            if reader is None or not reader.start <= position < reader.stop:
                try:
                    reader = self._reader(position // size)
                except (FileNotFoundError, *NO_SEGMENT):
                    continue
            record = reader.at(position)
            if record is not None and record.sequence == entry["sequence"]:
                yield (entry["place"], entry["stamp"]), reader, record

    def _walk(self, backwards: bool = False, due: int | None = None) -> Iterator[Any]:
        """The values of what waits, in order; with `due`, only what is due by then."""
        words, entries = self._index()
        waiting = [
            entry
            for entry in entries
            if entry["kind"] == READY or (entry["kind"] == DELAYED and (due is None or entry["due"] <= due))
        ]
        waiting.sort(key=lambda entry: (entry["place"], entry["stamp"]), reverse=backwards)
        plain = self._plain_backwards(words) if backwards else self._plain(words)
        for _key, reader, record in heapq.merge(
            self._held(waiting), plain, key=lambda found: found[0], reverse=backwards
        ):
            if (
                due is not None
                and record.flags & FLAGS["delayed"]
                and record.due > due
                and record.position >= words["head"]
            ):
                continue
            try:
                yield self._shown(reader, record)
            except (Empty, CorruptionError):
                continue

    def _plain_backwards(self, words: dict[str, int]) -> Iterator[tuple[tuple[int, int], SegmentReader, Record]]:
        size = self._backing.segment_size
        head, tail = words["head"], words["tail"]
        for number in reversed(self._numbers()):
            start = number * size
            if start > tail or start + size <= head - head % size:
                continue
            part = dict(words, head=max(head, start + kernel.PAGE), tail=min(tail, start + size))
            if start <= head < start + size or start > head:
                found = [item for item in self._plain(part) if item[1].start == start]
                yield from reversed(found)

    def __iter__(self) -> Iterator[Any]:
        """What waits, in order, delayed items in their place; nothing is taken."""
        return self._walk()

    def __reversed__(self) -> Iterator[Any]:
        """The same, the last first."""
        return self._walk(backwards=True)

    def peek(self) -> Any:
        """The item that `get` would return; `Empty` if there is none. Takes nothing."""
        for value in self._walk(due=boottime(self._offset)):
            return value
        raise Empty

    def peek_last(self) -> Any:
        """The last item that waits; `Empty` if there is none. Takes nothing."""
        for value in self._walk(backwards=True):
            return value
        raise Empty

    def stats(self) -> dict[str, Any]:
        """Numbers of one moment.

        ``items`` wait: ``delayed`` are not due yet, as far as somebody has looked; ``returned`` come before all others.
        ``claimed`` are held, ``leased`` of them until some time. ``put``: how many ever. ``oldest``: seconds since the
        first of what waits was put. ``bytes``: what waits takes, ``disk``: what the files take. ``deaths``,
        ``expired``, ``returns``: claims that ended that way; ``buried``, ``purged``; ``set_aside`` items and ``cut``
        bytes: what was damaged.
        """
        words, entries = self._index()
        kinds = [entry["kind"] for entry in entries]
        oldest = None
        found = sorted(
            (entry for entry in entries if entry["kind"] in (DELAYED, READY)), key=lambda entry: entry["position"]
        )
        for _key, _reader, record in [*self._first(self._held(found)), *self._first(self._plain(words))]:
            age = max(0.0, time.time() - record.born / 1e9)
            oldest = age if oldest is None else max(age, oldest)
        disk = 0
        numbers = self._backing.numbers()
        for name in ["meta", *(f"{number:016x}.segment" for number in numbers)]:
            try:
                disk += os.stat(os.path.join(self.path, name)).st_blocks * 512
            except FileNotFoundError:
                continue
        waiting = kinds.count(DELAYED) + kinds.count(READY)
        return {
            "items": words["tail_sequence"] - words["head_sequence"] + waiting,
            "delayed": kinds.count(DELAYED),
            "returned": kinds.count(READY),
            "claimed": kinds.count(CLAIMED) + kinds.count(LEASED),
            "leased": kinds.count(LEASED),
            "dead": self.dead._count(),
            "put": words["tail_sequence"],
            "oldest": oldest,
            "bytes": words["tail"] - words["head"] + words["waiting_bytes"],
            "disk": disk,
            "segments": len(numbers),
            "epoch": words["epoch"],
            **{
                name: words[name]
                for name in ("returns", "deaths", "expired", "buried", "purged", "set_aside", "cut", "recoveries")
            },
        }

    @staticmethod
    def _first(found: Iterator[Any]) -> list[Any]:
        for item in found:
            return [item]
        return []

    def holders(self) -> list[dict[str, int]]:
        """Who takes items from it: the pid, how many claims he holds, how many items he got and has not called done."""
        control, _entries = self._look_at(self._meta)
        names = ("slot", "token", "owing", "claims", "claimed", "pid")
        found = [dict(zip(names, holder, strict=True)) for holder in parse_holders(control)]
        return [{name: holder[name] for name in ("pid", "claimed", "owing")} for holder in found]
