"""What a queue is after another boot, or in a copy: told by its segments alone.

Promises
    Every record that verifies is there, in its order, with its attempts and what is left of its delay; what was done is
    not. Bad bytes with something good behind them are *set aside*: copied to ``quarantine/`` and counted. Bad bytes
    with nothing good behind them are a torn tail, which is *cut*, and counted. The epoch is raised, so no identity of
    an item is given twice. Nothing is decided by the index or the cursors of the last boot, which may be older or newer
    than the segments. It may die anywhere: the next one comes to the same.

How
    `survey` reads every segment, in order, and changes nothing; `carry_out` makes meta and the files as it says.
    Records that are just as they were put, behind all others, need no entry in the index: the head stands before the
    first of them. All before that gets an entry.

Prior art
    Kafka (truncating a log at the first bad record), bbolt and SQLite's WAL (a salt for each generation: our epoch).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from mmapds import files
from mmapds._native import kernel
from mmapds._native.queuescan import (
    FLAGS,
    STATES,
    Rebuild,
    Record,
    SegmentReader,
    boottime,
    parse_control,
    reset_control,
)
from mmapds._native.queueview import LAYOUT
from mmapds._native.region import FLAGS as MAP
from mmapds._native.region import Mapping
from mmapds._queuefiles import FIRST_ENTRIES, QueueFiles
from mmapds.errors import CorruptionError, IncompatibleFormat

_EPOCHS = 1 << 24
_SEQUENCES = 1 << 56


@dataclass(slots=True)
class Run:
    """Records that are just as they were put, one behind the other."""

    number: int
    start: int
    stop: int
    sequence: int
    count: int


@dataclass(slots=True)
class Single:
    """A record that waits, but not as it was put."""

    number: int
    record: Record


@dataclass(slots=True)
class Plan:
    """What survey() found."""

    items: list[Run | Single] = field(default_factory=list)
    plain: int = 0  # from this one on, items are runs without anything between them
    head: int = 0
    head_sequence: int = 0
    tail: int = 0
    tail_sequence: int = 0
    epoch: int = 1
    cut: int = 0  # bytes
    lost: int = 0  # items that were set aside
    aside: list[tuple[int, int, int]] = field(default_factory=list)  # segment, from, to
    broken: list[int] = field(default_factory=list)  # files that are no segments of this queue
    keep: set[int] = field(default_factory=set)
    scanned: int = 0  # bytes

    @property
    def entries(self) -> int:
        """How many items need a place in the index."""
        return sum(item.count if isinstance(item, Run) else 1 for item in self.items[: self.plain])


class Readers:
    """The segments of a queue, mapped one after the other."""

    def __init__(self, queue: QueueFiles) -> None:
        self.queue = queue

    def open(self, number: int, *, writable: bool = False) -> SegmentReader:
        """The reader of one. If it is only read, all of it is faulted in at once."""
        fd, size = self.queue.open_segment(number, writable=writable)
        try:
            flags = MAP["SHARED"] | (0 if writable else MAP["POPULATE"])
            protection = MAP["READ"] | (MAP["WRITE"] if writable else 0)
            mapping = Mapping(fd, size, protection, flags, self.queue.segment_path(number))
        finally:
            os.close(fd)
        return SegmentReader(mapping, number * self.queue.segment_size, self.queue.meta.header.identity)


def survey(readers: Readers, control: bytes) -> Plan:
    """Reads all segments; `control` is what meta says, of which only hints are taken."""
    plan = Plan()
    size = readers.queue.segment_size
    words = parse_control(control)
    scan = _Scan(plan)
    end = 0
    for number in readers.queue.numbers():
        if number >= (1 << 61) // size:
            plan.broken.append(number)
            continue
        try:
            reader = readers.open(number)
        except (IncompatibleFormat, CorruptionError, IsADirectoryError):
            plan.broken.append(number)
            continue
        scan.segment(number, reader)
        end = reader.stop
        if end - reader.start > size and reader.start + kernel.PAGE < scan.tail < end:
            scan.tail = end + kernel.PAGE  # a large item is alone, even if what says so did not reach the disk
        plan.scanned += end - reader.start
    scan.finish()
    plan.lost += len(plan.broken)  # one each, at least
    known = words["epoch"] if 0 < words["epoch"] < _EPOCHS else 0  # it may be older on the disk than the segments
    plan.epoch = max(known, scan.epoch) + 1
    if plan.epoch >= _EPOCHS:
        raise CorruptionError(f"{readers.queue.path} was recovered {_EPOCHS - 1} times: copy its items to a new queue")
    if plan.tail == 0:  # nothing at all is left
        here = words["tail"] if words["tail"] < 1 << 62 else 0
        plan.tail = (max(end, here) // size + 1) * size + kernel.PAGE
        hint = words["tail_sequence"]
        plan.tail_sequence = hint if hint < _SEQUENCES - (1 << 40) else 0
    first = plan.items[plan.plain] if plan.plain < len(plan.items) else None
    if isinstance(first, Run):
        plan.head, plan.head_sequence = first.start, first.sequence
    else:
        plan.head, plan.head_sequence = plan.tail, plan.tail_sequence
    plan.keep = {plan.tail // size, *(item.number for item in plan.items)}
    return plan


class _Scan:
    """Goes through the records of one segment after the other."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.end = 0  # of the segment before
        self.epoch = 0  # of the last good record
        self.sequence = 0  # behind the last good record
        self.started = False
        self.gaps: list[tuple[int, int, int]] = []  # bad bytes with nothing good behind them so far
        self.tail = 0

    def segment(self, number: int, reader: SegmentReader) -> None:
        """All records of a segment."""
        plan = self.plan
        at = reader.start + kernel.PAGE
        follows, self.end = self.end == reader.start, reader.stop  # others between them may be finished, and gone
        while reader.stop - at >= LAYOUT["HEAD"]:
            if self.started:
                stop, count, self.epoch = reader.run(at, self.sequence, self.epoch)
                if count:
                    plan.items.append(Run(number, at, stop, self.sequence, count))
                    self.sequence += count
                    self.good(stop)
                    at = stop
                    continue
            record = reader.at(at)
            if record is None or not self.fits(record):
                record = self.search(reader, at)
                if record is None:
                    if not reader.blank(at):
                        self.gaps.append((number, at, reader.stop))
                    return
                self.gaps.append((number, at, record.position))
                at = record.position
                plan.plain = len(plan.items)
            if not self.started or record.sequence > self.sequence:  # what should be in between is lost
                if self.started and (follows or at != reader.start + kernel.PAGE):
                    plan.lost += record.sequence - self.sequence
                self.started = True
                self.sequence = record.sequence
                plan.plain = len(plan.items)
                continue
            if record.end:
                self.good(reader.stop + kernel.PAGE)
                self.epoch = record.epoch
                return
            if not reader.intact(record):
                self.gaps.append((number, at, record.next))
            else:
                if record.what != STATES["done"]:
                    plan.items.append(Single(number, record))
                plan.plain = len(plan.items)
                self.sequence += 1
                self.epoch = record.epoch
                self.good(record.next)
            at = record.next
        if self.tail == at:
            self.tail = reader.stop + kernel.PAGE

    def search(self, reader: SegmentReader, at: int) -> Record | None:
        """The next good record."""
        while (found := reader.find(at, self.sequence, _SEQUENCES)) is not None:
            if self.fits(found):
                return found
            at = found.position + 8
        return None

    def fits(self, record: Record) -> bool:
        """Whether it may come behind the last one."""
        return self.epoch <= record.epoch <= _EPOCHS - 1 and record.sequence >= self.sequence

    def good(self, end: int) -> None:
        """Something good ends here: what was bad before it is in the middle."""
        self.plan.aside += self.gaps
        self.gaps.clear()
        self.tail = end

    def finish(self) -> None:
        """What was bad to the end is cut."""
        self.plan.cut = sum(stop - start for _number, start, stop in self.gaps)
        self.plan.tail = self.tail
        self.plan.tail_sequence = self.sequence


def _place(record: Record, plan: Plan) -> int:
    """The place of an item that was sent to the back; 0: its own. The tail may have been further on, where nothing is
    now: what is put from here on comes behind the item all the same.
    """
    return min(record.place, 2 * plan.tail) if record.place % 2 == 0 else 0


def fill_index(plan: Plan, mapping: Mapping, capacity: int, readers: Readers, offset: int) -> None:
    """Makes the words of meta, or of a private copy of it, as the plan says."""
    size = readers.queue.segment_size
    reset_control(
        mapping, plan.head, plan.head_sequence, plan.tail, plan.tail_sequence, plan.epoch, capacity, plan.cut, plan.lost
    )
    rebuild = Rebuild(mapping, size, capacity)
    now, wall = boottime(offset), time.time_ns()
    number, reader = -1, None
    for item in plan.items[: plan.plain]:
        if item.number != number:
            number = item.number
            reader = readers.open(number)
            rebuild.begin_segment()
        assert reader is not None
        if isinstance(item, Run):
            rebuild.add_run(reader, item.start, item.stop)
            continue
        record = item.record
        returned = record.what == STATES["returned"]
        delay = record.wait if returned else record.delay if record.flags & FLAGS["delayed"] else 0
        if record.what == STATES["claimed"]:
            delay = 0
        since = record.wall if returned else record.born + record.delay
        left = max(0, min(since - wall, delay))
        rebuild.add(
            record.position,
            record.sequence,
            record.size,
            record.attempts,
            _place(record, plan),
            now + left if left else 0,
        )
    rebuild.end(plan.head // size == number or plan.head - kernel.PAGE == 0)


def carry_out(plan: Plan, readers: Readers, offset: int) -> None:
    """Makes meta and the files as the plan says. Nobody else is alive."""
    queue = readers.queue
    for number, start, stop in plan.aside:
        data = readers.open(number).raw(start, stop)
        queue.set_aside(f"{number:016x}-{start:x}-{stop:x}.bytes", data)
    for number in plan.broken:
        queue.quarantine_segment(number)
    capacity = parse_control(os.pread(queue.meta.fd, LAYOUT["CONTROL"], 0))["capacity"]
    room = (os.fstat(queue.meta.fd).st_size - LAYOUT["CONTROL"]) // LAYOUT["ENTRY"]
    capacity = capacity if 0 < capacity <= room else max(0, room)
    if plan.entries > capacity or capacity < FIRST_ENTRIES:
        capacity = max(FIRST_ENTRIES, plan.entries + plan.entries // 4)
        queue.grow(capacity, alone=True)
    with_room = Mapping(
        queue.meta.fd,
        LAYOUT["CONTROL"] + capacity * LAYOUT["ENTRY"],
        MAP["READ"] | MAP["WRITE"],
        MAP["SHARED"],
        queue.meta.path,
    )
    fill_index(plan, with_room, capacity, readers, offset)
    for item in plan.items[: plan.plain]:
        if isinstance(item, Single) and (place := _place(item.record, plan)) != item.record.place and place:
            found = item.record  # for the boot after this one
            readers.open(item.number, writable=True).store_state(
                found, found.what, found.attempts, found.wall, found.wait, place
            )
    power = queue.meta.header.durability == "power"
    for number in queue.numbers():
        if number not in plan.keep:
            queue.remove_segment(number)
            continue
        reader = readers.open(number, writable=True)
        reader.reset_words()
        if number == plan.tail // queue.segment_size:
            reader.clear(plan.tail)
        if power:
            fd, _size = queue.open_segment(number, writable=True)
            try:
                files.sync(fd, queue.segment_path(number))
            finally:
                os.close(fd)
    if power:
        files.sync_directory(queue.meta.path)
