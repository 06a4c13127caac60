"""What a queue's handle looks at, in each mode: its mappings, its private copy, and what is damaged in them.

A private copy is made of a copy of the index, of one moment: its own index is built anew, in memory of this process.
Payloads, which nobody changes once they are put, are mapped privately. All segments are mapped at open, so the queue
may finish and remove them meanwhile.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NoReturn

from mmapds import _deflate, files
from mmapds._native import kernel
from mmapds._native.queue import QueueCore
from mmapds._native.queuescan import (
    FLAGS,
    KINDS,
    Rebuild,
    Record,
    SegmentReader,
    add_tally,
    copy_control,
    parse_control,
    parse_entries,
    repaired_copy,
    reset_control,
)
from mmapds._native.queueview import LAYOUT
from mmapds._native.region import Mapping
from mmapds._queuefiles import QueueFiles
from mmapds._queuerecovery import Plan, Readers, carry_out, fill_index, survey
from mmapds.errors import Closed, CorruptionError, IncompatibleFormat

NO_SEGMENT = (CorruptionError, IncompatibleFormat, IsADirectoryError)  # what has a segment's name, and is none

DELAYED, READY, CLAIMED, LEASED = range(1, 5)
assert KINDS[1:] == ("delayed", "ready", "claimed", "leased")


class QueueMaps(QueueCore):
    """The mappings of a queue, and what the native half asks for."""

    __slots__ = ("_apart", "_backing", "_found_last", "_frozen", "_level", "_offset")

    _backing: QueueFiles
    _apart: dict[int, Mapping]  # private copies: all segments
    _frozen: bool  # what is shown is a copy: nothing outside changes it
    _level: int
    _offset: int
    _found_last: tuple[int, int, int, int]  # what was not set aside: position, entry; head and tally then

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

    def _exists(self, number: int) -> bool:
        return number in self._apart if self.mode == "private" else self._backing.exists(number)

    def _make_segment(self, number: int, units: int) -> Mapping:
        size = self._backing.segment_size
        if self.mode == "private":
            if number not in self._apart:
                self._apart[number] = self._segment_mapping(-1, units * size, True)
            return self._apart[number]

        def name(fd: int, temporary: str | None, path: str) -> None:
            self._name_segment(fd, temporary, path, number * size)

        fd, length = self._backing.make_segment(number, units, name)
        try:
            if self.durability == "power":
                files.sync_directory(self._backing.meta.path)  # who made it may have died before he did
            return self._segment_mapping(fd, length)
        finally:
            os.close(fd)

    def _recover(self) -> None:
        """Meta is another boot's, or a copy's: under the lock of who opens, with nobody alive."""
        meta = self._backing.meta
        readers = Readers(self._backing)
        plan = survey(readers, os.pread(meta.fd, LAYOUT["CONTROL"], 0).ljust(LAYOUT["CONTROL"], b"\0"))
        carry_out(plan, readers, self._offset)

    def _begin_apart(self, options: tuple[int, ...]) -> None:
        backing, meta = self._backing, self._backing.meta
        self._apart = {}
        self._frozen = self.mode == "private"
        plan = None
        if not meta.settled():
            plan = survey(Readers(backing), os.pread(meta.fd, LAYOUT["CONTROL"], 0))
            self._frozen = True
        if not self._frozen:
            self._map(meta.fd, meta.size, False, options, -1, self._offset)
            return
        for _ in range(100):
            if self._copy(options, plan):
                return
        raise CorruptionError(f"{self.path}: segments are missing that items should be in: `mmapds verify` says more")

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
        readers = Readers(backing)
        waiting = [entry for entry in parse_entries(entries) if entry["kind"] in (DELAYED, READY)]
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
        if plan is None and (needed or not self._whole(words)):
            self._forget()
            return False
        return True

    def _whole(self, words: dict[str, int]) -> bool:
        """Whether all segments from the head to the tail are there."""
        size = self._backing.segment_size
        number, last = words["head"] // size, words["tail"] // size
        while words["head"] < words["tail"] and number <= last:
            if number not in self._apart:
                return number == last and words["tail"] % size == kernel.PAGE  # nobody has made it yet
            number += len(self._apart[number]) // size
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
            due = entry["due"] if entry["kind"] == DELAYED else 0
            place = 0 if entry["place"] % 2 else entry["place"]
            rebuild.add(
                entry["position"], entry["sequence"], entry["size"], entry["attempts"], place, due, entry["stamp"]
            )
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

    # ---- what the native half asks for ----------------------------------------------------------------------------

    def _grow(self, capacity: int) -> None:
        wanted = capacity + max(capacity, 42)
        self._backing.grow(wanted)
        self._publish_entries(wanted)

    def _remap(self) -> None:
        self._map_entries(self._backing.meta.descriptor())

    def _compress(self, data: bytes) -> tuple[bytes, int]:
        packed = _deflate.pack(data, self._level)
        return (data, 0) if packed is None else (packed, FLAGS["compressed"])

    def _decompress(self, data: bytes) -> bytes:
        return _deflate.unpack(data)

    def _refuse(self) -> NoReturn:
        """What a handle says that may not change anything."""
        if self.closed:
            raise Closed(f"{self.path}: this queue is closed")
        raise PermissionError(errno.EACCES, "this queue was opened readonly: it can be looked at", self.path)

    def _look_at(self, meta: Mapping) -> tuple[bytes, bytes]:
        """Control and entries, of one moment."""
        for _ in range(20):
            there, mapped = self._entries()
            if there > mapped:
                self._remap()
                continue
            found = copy_control(meta, mapped)
            if found is None and self.mode == "shared":
                found = self._locked_copy()
            if found is None:  # whoever is in the middle of something does not go on
                found = repaired_copy(meta, mapped)
            if found is not None:
                return found
        raise CorruptionError(f"{self.path}: meta does not come to rest: `mmapds verify` says more")

    def _index(self) -> tuple[dict[str, int], list[dict[str, int]]]:
        control, entries = self._look_at(self._meta)
        return parse_control(control), parse_entries(entries)

    def _reader(self, number: int) -> SegmentReader:
        return SegmentReader(
            self._open_segment(number), number * self._backing.segment_size, self._backing.meta.header.identity
        )

    def _plain(self, words: dict[str, int]) -> Iterator[tuple[tuple[int, int], SegmentReader, Record]]:
        """From the head to the tail."""
        size = self._backing.segment_size
        at, tail = words["head"], words["tail"]
        while at < tail:
            number = at // size
            try:
                reader = self._reader(number)
            except (FileNotFoundError, *NO_SEGMENT):  # finished meanwhile; or broken, which `verify` tells
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

    # ---- what is damaged --------------------------------------------------------------------------------------------

    def _can_hold(self, tail: int) -> bool:
        """Whether there are segments up to about there."""
        return tail // self._backing.segment_size <= max(self._numbers(), default=0) + 1

    def _set_aside(self, position: int, number: int) -> None:
        """A record is not what was written: it, and what cannot be told from it, goes to the quarantine."""
        reader = self._reader(position // self._backing.segment_size)
        name = f"{position // self._backing.segment_size:016x}-{position:x}"
        words, _ = self._index()
        if number:
            data = reader.raw(position, position + 4096)
            if self._discard(number, position):
                raise self._spoiled(1, name, data)
        if number or words["head"] != position:  # somebody else was faster; or meta contradicts itself
            self._check_progress(position, number, words)
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
        self._check_progress(position, number, words)

    def _check_progress(self, position: int, number: int, words: dict[str, int]) -> None:
        """What was not set aside was by somebody else meanwhile; or it never can be, and would be found for ever."""
        found = position, number, words["head"], words["set_aside"]
        if found == self._found_last:
            raise CorruptionError(
                f"{self.path}: the record at {position} is damaged, and cannot be set aside, because meta contradicts "
                f"itself (head {words['head']}, tail {words['tail']}): restore a copy"
            )
        self._found_last = found

    def _broken_segment(self, number: int) -> None:
        """What has a segment's name is none of this queue's: out of the way, and on behind it."""
        self._backing.quarantine_segment(number)
        self._missing(number)

    def _missing(self, number: int) -> None:
        """A segment has no file: if items should be in it, goes on behind it, and says so."""
        size = self._backing.segment_size
        words, entries = self._index()
        if words["tail"] >= 1 << 62 or words["head"] > words["tail"]:
            raise CorruptionError(
                f"{self.path}: meta contradicts itself (head {words['head']}, tail {words['tail']}): restore a copy"
            )
        lost = 0
        for entry in entries:
            if entry["position"] // size == number and entry["kind"] == READY:
                lost += self._discard(entry["number"], entry["position"])
        head = words["head"]
        later = [found for found in self._numbers() if number < found <= words["tail"] // size]
        if head // size == number and words["tail"] // size != number:
            stop = later[0] * size + kernel.PAGE if later else words["tail"]
            first = next(self._plain(dict(words, head=stop)), None)
            count = (words["tail_sequence"] if first is None else first[2].sequence) - words["head_sequence"]
            if self._skip(head, stop, max(0, count)):
                lost += max(0, count)
        if words["tail"] // size == number and words["tail"] % size != kernel.PAGE:
            behind = max([number, *self._numbers()]) + 1
            self._move_tail(words["tail"], behind * size + kernel.PAGE)
            if head // size == number:
                lost += max(0, words["tail_sequence"] - words["head_sequence"])
                self._skip(head, behind * size + kernel.PAGE, lost)
        if lost or (words["tail"] // size == number and words["tail"] % size != kernel.PAGE):
            raise CorruptionError(
                f"{self.path}: segment {number:016x} is missing, and {lost or 'all'} items that were in it are lost: "
                "was it removed by hand? What is behind it is not touched."
            )

    def _spoiled(self, count: int, name: str, data: bytes) -> CorruptionError:
        where = self._keep(name, data)
        return CorruptionError(
            f"{self.path}: {count} items are not what was written; their bytes were set aside in {where}. What is "
            "behind them is not touched: the next call goes on there."
        )

    def _keep(self, name: str, data: bytes) -> str:
        if self.mode != "shared":
            return "nowhere, as this is a private copy"
        return self._backing.set_aside(f"{name}.bytes", data)

    def _spoilt(self, data: bytes, name: str, why: str) -> NoReturn:
        """An item that was taken cannot be handed out."""
        if self.mode == "shared":
            add_tally(self._meta, "set_aside")
        raise CorruptionError(
            f"{self.path}: item {name} is damaged: {why}. Its bytes were set aside in {self._keep(name, data)}; the "
            "next call goes on behind it."
        )

    def _keep_bytes(self, data: bytes, name: str) -> str:
        """The same when the codec has failed, not the bytes: what to say."""
        return f"{self.path}: item {name} was taken; its bytes were kept in {self._keep(name, data)}"
