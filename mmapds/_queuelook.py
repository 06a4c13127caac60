"""Looking at a queue: peeking, iterating, counting; and what it looks at, in each mode.

Promises
    Looking takes nothing and waits for nobody. It begins with a copy of the index, of one moment; what is taken or put
    while an iteration runs may be in it or not. A damaged item is left out: `verify` names it.

A private copy is made of the same: its index is built anew, in memory of this process, from the copy; payloads, which
nobody changes once they are put, are mapped privately. All segments are mapped at open, so the queue may finish and remove
them meanwhile.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Iterator
from queue import Empty
from typing import TYPE_CHECKING, Any, NoReturn

import xxhash

from mmapds import _compression
from mmapds._native import kernel
from mmapds._native.queue import QueueCore
from mmapds._native.queuescan import (
    FLAGS,
    KINDS,
    Record,
    Rebuild,
    SegmentReader,
    add_tally,
    boottime,
    copy_control,
    parse_control,
    parse_entries,
    parse_holders,
    repaired_copy,
    reset_control,
)
from mmapds._native.queueview import LAYOUT
from mmapds._native.region import Mapping
from mmapds._queuefiles import QueueFiles
from mmapds._queuerecovery import Plan, Readers, carry_out, fill_index, survey
from mmapds.errors import CorruptionError

if TYPE_CHECKING:
    from mmapds._deadletters import DeadLetters

_DELAYED, _READY, _CLAIMED, _LEASED = range(1, 5)
assert KINDS[_DELAYED] == "delayed" and KINDS[_LEASED] == "leased"


class QueueLook(QueueCore):
    """What a queue shows, and the mappings that it shows it from."""

    __slots__ = ("_apart", "_backing", "_frozen", "codec")

    _backing: QueueFiles
    _apart: dict[int, Mapping]  # private copies: all segments
    _frozen: bool  # what is shown is a copy: nothing outside changes it

    if TYPE_CHECKING:
        _offset: int
        dead: DeadLetters

    # ---- mappings -------------------------------------------------------------------------------------------------

    def _open_segment(self, number: int) -> Mapping:
        if self.mode == "private":
            try:
                return self._apart[number]
            except KeyError:
                raise FileNotFoundError(self._backing.segment_path(number)) from None
        fd, size = self._backing.open_segment(number, writable=self.mode == "shared")
        try:
            return self._segment_mapping(fd, size)
        finally:
            os.close(fd)

    def _make_segment(self, number: int, units: int) -> Mapping:
        size = self._backing.segment_size
        if self.mode == "private":
            if number not in self._apart:
                self._apart[number] = self._segment_mapping(-1, units * size, True)
            return self._apart[number]
        fd, length = self._backing.make_segment(number, units)
        try:
            mapping = self._segment_mapping(fd, length)
        finally:
            os.close(fd)
        words = parse_control(bytes(memoryview(self._meta)[: LAYOUT["CONTROL"]]))
        if words["tail"] >= number * size + length:  # too late: the queue has gone past it, perhaps has finished it
            if words["head"] >= number * size + length and words["held"] == 0:
                self._backing.remove_segment(number)
        return mapping

    def _recover(self) -> None:
        """Meta is another boot's, or a copy's: under the lock of who opens, with nobody alive."""
        meta = self._backing.meta
        readers = Readers(self._backing, writable=True)
        plan = survey(readers, os.pread(meta.fd, LAYOUT["CONTROL"], 0).ljust(LAYOUT["CONTROL"], b"\0"))
        carry_out(plan, readers, self._offset)

    def _begin_apart(self, options: tuple[int, ...]) -> None:
        backing, meta = self._backing, self._backing.meta
        self._apart = {}
        self._frozen = self.mode == "private"
        plan = None
        if not meta.settled():
            plan = survey(Readers(backing, writable=False), os.pread(meta.fd, LAYOUT["CONTROL"], 0))
            self._frozen = True
        if not self._frozen:
            self._map(meta.fd, meta.size, False, options, -1, self._offset)
            return
        while not self._copy(options, plan):
            pass

    def _copy(self, options: tuple[int, ...], plan: Plan | None) -> bool:
        """Makes a copy of the index, and maps what it needs; False if some of it went away meanwhile."""
        backing, meta = self._backing, self._backing.meta
        if plan is None:
            self._map(meta.fd, meta.size, False, options, -1, self._offset)
            control, entries = self._look_at(self._meta)
            self._forget()
        else:
            control, entries = os.pread(meta.fd, LAYOUT["CONTROL"], 0), b""
        self._map_copy(options, self._offset, control, b"")
        capacity = self._entries()[1]
        readers = Readers(backing, writable=False)
        waiting = [entry for entry in parse_entries(entries) if entry["kind"] in (_DELAYED, _READY)]
        if plan is not None:
            fill_index(plan, self._meta, capacity, readers, self._offset)
        else:
            self._fill(parse_control(control), waiting, capacity)
        words = parse_control(bytes(memoryview(self._meta)[: LAYOUT["CONTROL"]]))
        needed = {entry["position"] // backing.segment_size for entry in waiting}
        first, last = (words[name] // backing.segment_size for name in ("head", "tail"))
        self._apart.clear()
        for number in backing.numbers():
            if number in needed or first <= number <= last or plan is not None:
                try:
                    fd, size = backing.open_segment(number, writable=False)
                except FileNotFoundError:
                    self._forget()
                    return False
                try:
                    self._apart[number] = self._segment_mapping(fd, size)
                finally:
                    os.close(fd)
                needed.discard(number)
        if needed and plan is None:
            self._forget()
            return False
        return True

    def _fill(self, words: dict[str, int], waiting: list[dict[str, int]], capacity: int) -> None:
        size = self._backing.segment_size
        reset_control(
            self._meta, words["head"], words["head_sequence"], words["tail"], words["tail_sequence"], words["epoch"],
            capacity, 0, 0,
        )  # fmt: skip
        rebuild = Rebuild(self._meta, size, capacity)
        number = -1
        for entry in sorted(waiting, key=lambda entry: entry["position"]):
            if entry["position"] // size != number:
                number = entry["position"] // size
                rebuild.begin_segment()
            due = entry["due"] if entry["kind"] == _DELAYED else 0
            place = 0 if entry["place"] % 2 else entry["place"]
            rebuild.add(entry["position"], entry["sequence"], entry["size"], entry["attempts"], place, due)
        rebuild.end(words["head"] // size == number)

    def _populate(self) -> None:
        for number in self._backing.numbers():
            try:
                fd, size = self._backing.open_segment(number, writable=False)
            except FileNotFoundError:
                continue
            try:
                os.posix_fadvise(fd, 0, size, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(fd)
        self._populate_mapped()

    # ---- looking --------------------------------------------------------------------------------------------------

    def _look_at(self, meta: Mapping) -> tuple[bytes, bytes]:
        """Control and entries, of one moment."""
        for _ in range(20):
            found = copy_control(meta)
            if found is None and self.mode == "shared":
                self._repair()  # whoever is in the middle of something: wait for him, or take it back
            elif found is None:
                found = repaired_copy(meta)
            if found is not None:
                return found
        raise CorruptionError(f"{self.path}: meta does not come to rest: `mmapds verify` says more")

    def _index(self) -> tuple[dict[str, int], list[dict[str, int]]]:
        control, entries = self._look_at(self._meta)
        return parse_control(control), parse_entries(entries)

    def _reader(self, number: int) -> SegmentReader:
        return SegmentReader(self._open_segment(number), number * self._backing.segment_size, self._backing.meta.header.identity)

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
            data = _compression.unpack(data)
        return self._value_of(data)

    def _plain(self, words: dict[str, int]) -> Iterator[tuple[tuple[int, int], SegmentReader, Record]]:
        """From the head to the tail."""
        size = self._backing.segment_size
        at, tail = words["head"], words["tail"]
        while at < tail:
            number = at // size
            try:
                reader = self._reader(number)
            except FileNotFoundError:  # finished meanwhile
                later = [found for found in self._numbers() if found > number]
                if not later:
                    return
                at = later[0] * size + kernel.PAGE
                continue
            while at < min(tail, reader.stop) and reader.stop - at >= LAYOUT["HEAD"]:
                record = reader.at(at)
                if record is None:
                    record = reader.find(at, words["head_sequence"], words["tail_sequence"])
                    if record is None or record.position >= tail:
                        break
                if record.end:
                    break
                yield (2 * record.position + 1, 0), reader, record
                at = record.next
            at = reader.stop + kernel.PAGE

    def _numbers(self) -> list[int]:
        return sorted(self._apart) if self.mode == "private" else self._backing.numbers()

    def _held(self, waiting: list[dict[str, int]]) -> Iterator[tuple[tuple[int, int], SegmentReader, Record]]:
        """Items that have an entry, by place."""
        size = self._backing.segment_size
        reader: SegmentReader | None = None
        for entry in waiting:
            position = entry["position"]
            if reader is None or not reader.start <= position < reader.stop:
                try:
                    reader = self._reader(position // size)
                except FileNotFoundError:
                    continue
            record = reader.at(position)
            if record is not None and record.sequence == entry["sequence"]:
                yield (entry["place"], entry["stamp"]), reader, record

    def _walk(self, backwards: bool = False, due: int | None = None) -> Iterator[Any]:
        """The values of what waits, in order; with `due`, only what is due by then."""
        words, entries = self._index()
        waiting = [entry for entry in entries if entry["kind"] == _READY or (entry["kind"] == _DELAYED and (due is None or entry["due"] <= due))]
        waiting.sort(key=lambda entry: (entry["place"], entry["stamp"]), reverse=backwards)
        plain = self._plain_backwards(words) if backwards else self._plain(words)
        for _key, reader, record in heapq.merge(self._held(waiting), plain, key=lambda found: found[0], reverse=backwards):
            if due is not None and record.flags & FLAGS["delayed"] and record.due > due and record.position >= words["head"]:
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
        first of what waits was put. ``bytes``: what waits takes, ``disk``: what the files take. ``deaths``, ``expired``,
        ``returns``: claims that ended that way; ``buried``, ``purged``; ``set_aside`` items and ``cut`` bytes: what was
        damaged.
        """
        words, entries = self._index()
        kinds = [entry["kind"] for entry in entries]
        oldest = None
        found = sorted((entry for entry in entries if entry["kind"] in (_DELAYED, _READY)), key=lambda entry: entry["position"])
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
        waiting = kinds.count(_DELAYED) + kinds.count(_READY)
        return {
            "items": words["tail_sequence"] - words["head_sequence"] + waiting,
            "delayed": kinds.count(_DELAYED),
            "returned": kinds.count(_READY),
            "claimed": kinds.count(_CLAIMED) + kinds.count(_LEASED),
            "leased": kinds.count(_LEASED),
            "dead": len(self.dead),
            "put": words["tail_sequence"],
            "oldest": oldest,
            "bytes": words["tail"] - words["head"] + words["waiting_bytes"],
            "disk": disk,
            "segments": len(numbers),
            "epoch": words["epoch"],
            **{name: words[name] for name in ("returns", "deaths", "expired", "buried", "purged", "set_aside", "cut", "recoveries")},
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

    # ---- what is damaged --------------------------------------------------------------------------------------------

    def _set_aside(self, position: int, number: int) -> None:
        """A record is not what was written: it, and what cannot be told from it, goes to the quarantine."""
        reader = self._reader(position // self._backing.segment_size)
        name = f"{position // self._backing.segment_size:016x}-{position:x}"
        if number:
            data = reader.raw(position, position + 4096)
            if self._discard(number, position):
                raise self._spoiled(1, name, data)
            return
        words, _entries = self._index()
        if words["head"] != position:
            return
        tail, upto = words["tail"], words["tail_sequence"]
        found = reader.find(position, words["head_sequence"], upto)
        if found is not None and found.position < tail:
            stop, sequence = found.position, found.sequence
        elif tail <= reader.stop:
            stop, sequence = tail, upto
        else:
            stop = reader.stop
            first = next(self._plain(dict(words, head=stop + kernel.PAGE)), None)
            sequence = words["head_sequence"] if first is None else first[2].sequence
        data = reader.raw(position, stop)
        if self._skip(position, stop, max(0, sequence - words["head_sequence"])):
            raise self._spoiled(sequence - words["head_sequence"], name, data)

    def _spoiled(self, count: int, name: str, data: bytes) -> CorruptionError:
        where = self._keep(name, data)
        return CorruptionError(
            f"{self.path}: {count} items are not what was written; their bytes were set aside in {where}. What is behind "
            "them is not touched: the next call goes on there."
        )

    def _keep(self, name: str, data: bytes) -> str:
        if self.mode != "shared":
            return "nowhere, as this is a private copy"
        return self._backing.set_aside(f"{name}.bytes", data)

    def _spoilt(self, data: bytes, position: int, name: str, why: str) -> NoReturn:
        """An item that was taken cannot be handed out."""
        if self.mode == "shared":
            add_tally(self._meta, "set_aside")
        raise CorruptionError(
            f"{self.path}: item {name} is damaged: {why}. Its bytes were set aside in {self._keep(name, data)}; the next "
            "call goes on behind it."
        )
