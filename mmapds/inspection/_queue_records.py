"""What is wrong with the records of a queue, from the oldest segment to the tail."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from dataclasses import dataclass

import msgpack

from mmapds._native import kernel
from mmapds._native.queuescan import FLAGS, STATES, Record, SegmentReader
from mmapds.errors import CorruptionError, IncompatibleFormat, MappingLost
from mmapds.inspection._base import Report, Severity, opened
from mmapds.inspection._queue import FREE, HEAD, Snapshot, mapped

_MOST = 20  # findings about places in one segment
_SEQUENCES = (1 << 56) - 1


@dataclass(slots=True)
class Segment:
    """A segment whose header is what it should be."""

    where: str
    path: str
    start: int
    stop: int


@dataclass(slots=True)
class Suspicion:
    """What is wrong with positions from `position` to `stop`, if somebody still needs them."""

    severity: Severity
    where: str
    what: str
    position: int
    stop: int


class Records:
    """Reads them all. `aside`: the positions whose bytes have been set aside already."""

    def __init__(
        self,
        report: Report,
        before: str,
        identity: bytes,
        words: dict[str, int],
        snapshot: Snapshot | None,
        tail: int,
        aside: set[int],
        *,
        letters: bool,
    ) -> None:
        self.report = report
        self.meta = f"{before}meta"
        self.identity = identity
        self.epoch_now = words["epoch"]
        self.head, self.head_sequence = words["head"], words["head_sequence"] & _SEQUENCES
        self.exact = snapshot is not None  # else the head and its sequence are of two moments
        self.tail = tail
        self.aside = aside
        self.letters = letters
        self.suspicions: list[Suspicion] = []
        self.held: dict[int, tuple[int, int]] = {}  # position: sequence, size
        if snapshot is not None:
            for number in range(1, snapshot.used + 1):
                if snapshot.kind(number) != FREE:
                    position, sequence, size = snapshot.quads[12 * number - 12 : 12 * number - 9]
                    self.held[position] = sequence, size
        self.order = sorted(self.held)
        self.sequence: int | None = None  # expected next
        self.epoch = 0  # of the last one
        self.reached = 0  # up to where all was read
        self.missed = False

    def check(self, segments: list[Segment]) -> None:
        """All segments up to the tail."""
        self.check_missing(segments)
        for segment in segments:
            if segment.start > self.tail:
                break
            if segment.start != self.reached:
                self.sequence = None
            self.look_into(segment)
            self.reached = segment.stop

    def check_missing(self, segments: list[Segment]) -> None:
        """The positions that items are at, and no segment is."""
        ends = [(s.start, s.stop) for s in segments]
        at = self.head
        for start, stop in ends:
            if stop > at and at < self.tail:
                if start > at:
                    self.missing(at, start)
                at = stop + kernel.PAGE
        if at < self.tail:
            self.missing(at, self.tail)
        starts = [start for start, _stop in ends]
        gone = []
        for position in self.order:
            n = bisect_left(starts, position + 1) - 1
            if n < 0 or position >= ends[n][1]:
                gone.append(position)
        for position in gone[:_MOST]:
            self.missing(position, position + 1)

    def missing(self, start: int, stop: int) -> None:
        what = f"there is no segment, or none that can be read, with the items at positions {start} to {stop}"
        self.suspicions.append(Suspicion("error", self.meta, what, start, stop))
        self.missed = True

    def look_into(self, segment: Segment) -> None:
        try:
            with opened(segment.path) as fd:
                if os.fstat(fd).st_size != segment.stop - segment.start:
                    self.suspect(segment, "error", "was cut while it was looked at", segment.start, segment.stop)
                    return
                reader = mapped(fd, segment.stop - segment.start, segment.start, self.identity, segment.path)
            self.walk(segment, reader)
            self.check_held(segment, reader)
        except FileNotFoundError:  # finished meanwhile; if it was not, that is an error
            what = "was removed, and has items that are not done"
            self.suspicions.append(Suspicion("error", segment.where, what, segment.start, segment.stop))
            self.sequence = None
        except (MappingLost, IncompatibleFormat, CorruptionError) as error:
            self.suspect(segment, "error", f"changed while it was read: {error}", segment.start, segment.stop)

    def suspect(self, segment: Segment, severity: Severity, what: str, position: int, stop: int) -> None:
        """Of an item that is needed now: said if it still is at the end. Of one that is done: a warning now."""
        if stop > self.head or self.is_held(position, stop) or not self.exact:
            self.suspicions.append(Suspicion(severity, segment.where, f"at {position}: {what}", position, stop))
        elif position not in self.aside:
            self.report.warning(segment.where, f"at {position}: {what}; it was of items that are done")

    def is_held(self, position: int, stop: int) -> bool:
        """Whether an entry is for something in there."""
        at = bisect_left(self.order, position)
        return at < len(self.order) and self.order[at] < stop

    # -- one record after the other

    def walk(self, segment: Segment, reader: SegmentReader) -> None:
        at, limit, found = segment.start + kernel.PAGE, min(segment.stop, self.tail), 0
        while at < limit and segment.stop - at >= HEAD:
            if at == self.head and self.exact:
                if self.sequence not in (None, self.head_sequence):
                    self.suspect(
                        segment, "error", f"item {self.sequence}, and the head says {self.head_sequence}", at, at + 1
                    )
                self.sequence = self.head_sequence
            if self.sequence is not None and not self.letters:
                stop, count, epoch = reader.run(at, self.sequence, self.epoch)
                if count and stop <= limit and epoch <= self.epoch_now and not (self.exact and at < self.head < stop):
                    at, self.sequence, self.epoch = stop, self.sequence + count, epoch
                    continue
            record = reader.at(at)
            if record is None:
                if found == _MOST:
                    self.report.warning(
                        segment.where, f"has more that is damaged from {at} on, which was not looked at"
                    )
                    self.sequence = None
                    return
                found += 1
                at = self.bad(segment, reader, at, limit)
                continue
            self.check_record(segment, reader, record)
            if self.exact and at < self.head < record.next:
                self.suspect(
                    segment, "error", f"the head is at {self.head}, in the middle of this record", at, record.next
                )
            if record.end:
                if limit > at and self.tail < segment.stop:
                    what = f"says that its segment has no more, and the tail is at {self.tail}, in the same segment"
                    self.suspect(segment, "error", what, at, self.tail)
                return
            at = record.next

    def bad(self, segment: Segment, reader: SegmentReader, at: int, limit: int) -> int:
        """No record is where one should be: where the next one is."""
        least = 0 if self.sequence is None else self.sequence
        after = reader.find(at, least, _SEQUENCES)
        if after is None or after.position >= limit:
            self.suspect(segment, "error", f"the bytes up to {limit} are not what was written", at, limit)
            self.sequence = None
            return limit
        lost = "" if self.sequence is None else f", which were those of {after.sequence - self.sequence} items"
        self.suspect(
            segment, "error", f"the bytes up to {after.position} are not what was written{lost}", at, after.position
        )
        self.sequence = after.sequence
        return after.position

    def check_record(self, segment: Segment, reader: SegmentReader, record: Record) -> None:
        at, stop = record.position, record.next
        if self.sequence is not None and record.sequence != self.sequence:
            if at >= self.head:
                self.suspect(
                    segment, "error", f"is item {record.sequence}, and {self.sequence} should be here", at, stop
                )
            elif record.sequence < self.sequence:
                self.suspect(
                    segment, "warning", f"is item {record.sequence}, and comes behind {self.sequence - 1}", at, stop
                )
        if not self.epoch <= record.epoch <= self.epoch_now:
            what = f"is of epoch {record.epoch}, where {self.epoch} to {self.epoch_now} are possible"
            self.suspect(segment, "error", what, at, stop)
        self.epoch = max(self.epoch, min(record.epoch, self.epoch_now))
        if record.flags & ~(FLAGS["delayed"] | FLAGS["compressed"] | FLAGS["end"]):
            self.suspect(
                segment, "error", f"has flags 0x{record.flags:02x}, of which this release does not know all", at, stop
            )
        name = f"item {record.epoch}-{record.sequence}"
        if record.end:
            self.sequence = record.sequence if self.sequence is None else self.sequence
            return
        self.sequence = record.sequence + 1
        if not reader.intact(record):
            self.suspect(segment, "error", f"{name}: its bytes are not what was put", at, stop)
        elif self.letters and (at >= self.head or at in self.held):
            self.check_letter(segment, name, reader.payload(record), at)
        self.check_state(segment, reader, record, name)

    def check_state(self, segment: Segment, reader: SegmentReader, record: Record, name: str) -> None:
        at = record.position
        needed = self.exact and (at >= self.head or at in self.held)
        if record.what == STATES["done"] and needed:
            self.suspect(
                segment,
                "error",
                f"{name} waits, and its record says that it is done: lost after the next boot",
                at,
                at + 1,
            )
        if record.what in STATES.values():
            return
        for _ in range(3):
            time.sleep(0.001)  # somebody may be changing it this moment
            again = reader.at(at)
            if again is None or again.what in STATES.values():
                return
        if needed:
            self.report.note(
                segment.where,
                f"at {at}: {name}: its state is damaged: after another boot it is delivered as if for the first time",
            )

    def check_letter(self, segment: Segment, name: str, data: bytes, at: int) -> None:
        try:
            letter = msgpack.unpackb(data)
            kinds = (str, int, int, int, str, str | None, int, bytes)
            good = len(letter) == len(kinds) and all(map(isinstance, letter, kinds))
        except (ValueError, TypeError):
            good = False
        if not good:
            self.suspect(segment, "error", f"{name} is no dead letter", at, at + 1)

    # -- what meta says of them

    def check_held(self, segment: Segment, reader: SegmentReader) -> None:
        """The records that entries are for."""
        for position in self.order[bisect_left(self.order, segment.start) : bisect_left(self.order, segment.stop)]:
            record = reader.at(position)
            sequence, size = self.held[position]
            if record is None or record.end or (record.sequence, record.size) != (sequence & _SEQUENCES, size):
                what = f"an entry of the index is for item {sequence} of {size} bytes here, and it is not here"
                self.suspect(segment, "error", what, position, position + 1)

    def check_end(self, where: str, least: int, most: int) -> None:
        """How many items there are, which the tail's sequence says."""
        if self.missed or self.suspicions or self.sequence is None:
            return
        if not least <= self.sequence <= most and self.reached >= self.tail:
            self.report.error(where, f"says {most} items were put, and its records end with item {self.sequence - 1}")
