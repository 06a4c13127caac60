"""What is wrong with a queue: meta, its segments, what was set aside, its dead letters.

Within a boot meta tells what is in the queue. Its index is checked as it was at one moment; then every record is read,
from the oldest segment to the tail. Records never change once they are put, and the head never goes back, so all that
can happen meanwhile is that an item is taken and its segment removed: what is found about an item that waits counts
only if it still waits after everything was read. Of a queue that was last used on another boot, or of a copy, the
segments alone tell what is in it: there it is said what recovery will make of them.
"""

from __future__ import annotations

import os
import re
import time
from bisect import bisect_left
from dataclasses import dataclass

from mmapds import files
from mmapds._native import kernel
from mmapds._queuefiles import DEAD, META, QUARANTINE, SEGMENT, segment_name
from mmapds.errors import CorruptionError, IncompatibleFormat
from mmapds.inspection._base import (
    Finding,
    Report,
    Severity,
    check_header,
    check_temporaries,
    check_zero,
    first_page,
    opened,
    settled,
    until_still,
    without_path,
)
from mmapds.inspection._queue import (
    CONTROL_ZERO,
    END_OF_ALL,
    ENTRIES,
    EPOCHS,
    LARGEST,
    SENTINEL,
    UNDO_MOST,
    Snapshot,
    look,
    read_tail,
    read_words,
    sizes_fit,
    token_lives,
)
from mmapds.inspection._queue_foreign import check_foreign
from mmapds.inspection._queue_index import Index
from mmapds.inspection._queue_records import Records, Segment, Suspicion

_ORIGIN = slice(2048, 2080)
_HOLDER = ((2112, 2160),)  # nobody holds a queue as a whole
_DEEPEST = 3
_ASIDE = re.compile(r"[0-9a-f]{16}-([0-9a-f]+)(?:-[0-9a-f]+)?\.bytes")
_NEVER = "the queue was recovered again and again while it was looked at"
_BUSY = "items were taken all the while: its index was not of one moment, and was not checked"


def verify(path: str, depth: int = 0, before: str = "") -> list[Finding]:
    """Everything that is wrong with the queue in a directory. `before`: what findings name its files with."""
    found = until_still(lambda: _Look(path, before, depth).run(), f"{before}{META}", _NEVER)
    dead = os.path.join(path, DEAD)
    if not os.path.isdir(dead):
        return found
    if os.path.islink(dead) or depth >= _DEEPEST:
        found.append(
            Finding("warning", f"{before}{DEAD}", "is a symbolic link, or too deep: what it holds was not checked")
        )
        return found
    try:
        found += verify(dead, depth + 1, f"{before}{DEAD}/")
    except (IncompatibleFormat, FileNotFoundError) as error:
        found.append(Finding("error", f"{before}{DEAD}", without_path(error, dead)))
    severities: tuple[Severity, ...] = ("error", "warning", "note")
    return sorted(found, key=lambda finding: severities.index(finding.severity))


@dataclass(slots=True)
class _Folder:
    """What is in the directory."""

    segments: list[int]
    strange: list[str]


class _Look:
    """One look at a queue: `run` returns what it found, and whether somebody recovered or replaced it meanwhile."""

    def __init__(self, path: str, before: str, depth: int) -> None:
        self.path = path
        self.before = before
        self.depth = depth
        self.where = f"{before}{META}"
        self.report = Report()
        self.foreign = False
        self.in_use = False
        self.header: files.Header
        self.fd = -1

    def run(self) -> tuple[Report, bool]:
        report, path = self.report, os.path.join(self.path, META)
        check_temporaries(report, self.path + "/", rf"(?:{META}|[0-9a-f]{{16}}\.segment)")
        try:
            fd = files.open_regular(path, writable=False)
        except FileNotFoundError:
            if self.folder().segments:
                report.error(self.where, "is missing: without it nobody can tell what the segments hold")
            else:
                report.note(self.where, "is not there yet: somebody makes the queue this moment, or died when he did")
            return report, False
        try:
            self.fd = fd
            page = first_page(fd)
            try:
                self.header = files.parse_header(page, path, "queue")
            except (CorruptionError, IncompatibleFormat) as error:
                whole = page.startswith(files.MAGIC) and len(page) == kernel.PAGE
                if isinstance(error, IncompatibleFormat) and (whole or not self.folder().segments):
                    raise
                report.error(self.where, without_path(error, path))
                return report, False
            self.check(page)
            status, there = os.fstat(fd), os.stat(path, follow_symlinks=False)
            same = (status.st_dev, status.st_ino) == (there.st_dev, there.st_ino)
            recovering = self.foreign and kernel.locked(fd, kernel.LOCK_OPEN)
            disturbed = not same or recovering or first_page(fd)[_ORIGIN] != page[_ORIGIN]
        finally:
            os.close(fd)
        if disturbed:
            report.doubt()
        return report, disturbed

    def check(self, page: bytes) -> None:
        report, where, header = self.report, self.where, self.header
        check_header(report, where, page, header)
        check_zero(report, where, page, _HOLDER)
        if any(header.parent):
            report.error(where, "names a parent, and a queue has none")
        size, maxsize, _max_bytes, _max_attempts, level, _least = header.options[:6]
        if size < 2 * kernel.PAGE or size % kernel.PAGE or size > LARGEST or maxsize >> 62 or level > 9:
            report.error(
                where, f"stores segments of {size} bytes, a maxsize of {maxsize} and level {level}: nobody can use that"
            )
            return
        if any(header.options[6:]):
            report.error(where, "stores options that this release does not know")
        self.foreign = not settled(self.fd, page)
        self.in_use = kernel.locked(self.fd, kernel.LOCK_SLOT)
        self.check_quarantine()
        if self.foreign:
            check_foreign(report, self.path, self.before, where, header, self.fd)
            return
        if header.failed:
            report.warning(
                where, "a flush to the disk failed: until flush() has written everything anew, nobody puts or takes"
            )
        words = self.check_size()
        if words is None:
            return
        check_zero(report, where, os.pread(self.fd, ENTRIES, 0), CONTROL_ZERO)
        self.check_life(words)
        self.check_contents(words)

    # -- meta

    def check_size(self) -> dict[str, int] | None:
        """The words, if what they count is in the file."""
        report, where = self.report, self.where
        size = os.fstat(self.fd).st_size
        words = read_words(self.fd)
        if words is None or size <= ENTRIES:
            report.error(where, f"has {size} bytes, and its control pages end at {ENTRIES}: it was cut")
            return None
        if os.pread(self.fd, 8, SENTINEL) != kernel.SENTINEL.to_bytes(8, "little"):
            report.error(where, "has no sentinel at the end of its control pages: was it cut?")
        if not words["capacity"] or not sizes_fit(words, size):
            report.error(
                where,
                f"has {size} bytes, {words['capacity']} entries of which {words['used']} were used, and "
                f"{words['holders']} holders: that cannot be",
            )
            return None
        if words["logged"] > UNDO_MOST:
            report.error(where, f"says {words['logged']} words in its undo log: from 0 to {UNDO_MOST} are possible")
            return None
        if not 0 < words["epoch"] < EPOCHS:
            report.error(where, f"says epoch {words['epoch']}: from 1 to {EPOCHS - 1} are possible")
        return words

    def check_life(self, words: dict[str, int]) -> None:
        """Notes on who died, and what has happened to items."""
        report, where = self.report, self.where
        for lock, what in (("put_lock", "put"), ("take_lock", "took")):
            token = words[lock]
            if token & ~(3 << 30) and not token_lives(self.fd, token):
                report.note(where, f"a process died while it {what} something: the next to do so sets it right")
        if words["set_aside"]:
            report.warning(
                where, f"{words['set_aside']} items were damaged and were set aside; their bytes are in {QUARANTINE}/"
            )
        if words["cut"]:
            report.note(where, f"{words['cut']} bytes at the end were torn when the machine went down, and were cut")

    def check_quarantine(self) -> None:
        self.aside: set[int] = set()
        try:
            names = sorted(os.listdir(os.path.join(self.path, QUARANTINE)))
        except (FileNotFoundError, NotADirectoryError):
            return
        except PermissionError:
            self.report.note(f"{self.before}{QUARANTINE}", "may not be read: what was set aside was not looked at")
            return
        self.aside = {int(found[1], 16) for name in names if (found := _ASIDE.fullmatch(name))}
        if names:
            self.report.note(
                f"{self.before}{QUARANTINE}",
                f"holds {len(names)} files with what was damaged, as {names[0]!r}; they can be removed",
            )

    def check_words(self, words: dict[str, int], tail: int, most: int) -> bool:
        """The cursors: whether records can be read by them."""
        report, where = self.report, self.where
        good = True
        for name, position in (("head", words["head"]), ("tail", tail)):
            if position >= END_OF_ALL or position & 7 or position < kernel.PAGE:
                report.error(where, f"says {position} for the {name}, where no record can be")
                good = False
        if words["head"] > tail or words["head_sequence"] > most:
            report.error(
                where,
                f"the head ({words['head']}, item {words['head_sequence']}) is behind the tail ({tail}, item {most})",
            )
            good = False
        return good

    # -- what it holds

    def check_contents(self, words: dict[str, int]) -> None:
        report, where = self.report, self.where
        snapshot = look(self.fd)
        tail, least, most = read_tail(self.fd)
        if snapshot is None:
            now = read_words(self.fd)
            if now is not None and now["logged"] == words["logged"] and now["changes"] == words["changes"]:
                report.error(where, "its undo log names words that no transition changes: damaged")
            else:
                report.note(where, _BUSY)
        else:
            words = snapshot.words
            if snapshot.taken_back and not token_lives(self.fd, words["take_lock"]):
                report.note(
                    where, f"{snapshot.taken_back} words are to be taken back: a process died while it took something"
                )
            self.check_holders(snapshot)
            self.check_finished(snapshot, tail)
        if not self.check_words(words, tail, most):
            return
        segments = self.check_segments(self.folder())
        starts, stops = [s.start for s in segments], [s.stop for s in segments]
        if snapshot is not None:
            Index(snapshot, starts, stops, self.header.options[0]).run(report, where)
        records = Records(
            report, self.before, self.header.identity, words, snapshot, tail, self.aside, letters=self.depth > 0
        )
        records.check(segments)
        records.check_end(where, least, most)
        self.confirm(records.suspicions)
        self.check_strays(segments, tail)

    def check_holders(self, snapshot: Snapshot) -> None:
        for slot in snapshot.slots:
            if slot.token and slot.claimed and not slot.alive(self.fd):
                self.report.note(
                    self.where,
                    f"holder {slot.number} (pid {slot.pid}) died with {slot.claimed} claims: they come back at the "
                    "next operation",
                )

    def check_finished(self, snapshot: Snapshot, tail: int) -> None:
        """Whoever died before he removed a segment leaves its number to the next one."""
        number, size = snapshot.words["finished"], self.header.options[0]
        start, stop = number * size, number * size + size
        needed = start < tail and stop > snapshot.words["head"]
        if number and (needed or any(start <= position < stop for position in snapshot.positions())):
            self.report.error(self.where, f"says that segment {number} is to be removed, and it has items")

    def confirm(self, suspicions: list[Suspicion]) -> None:
        """Reports what is still so: of items that wait, or are claimed, even now."""
        if not suspicions:
            return
        now = look(self.fd)
        words = now.words if now is not None else read_words(self.fd)
        if words is None:
            return
        positions = sorted(now.positions()) if now is not None else []
        for each in suspicions:
            at = bisect_left(positions, each.position)
            if each.stop > words["head"] or (at < len(positions) and positions[at] < each.stop):
                self.report.add(each.severity, each.where, each.what)

    # -- files

    def folder(self) -> _Folder:
        found = _Folder([], [])
        for name in os.listdir(self.path):
            if match := SEGMENT.fullmatch(name):
                found.segments.append(int(match[1], 16))
            elif name not in (META, DEAD, QUARANTINE) and not name.startswith("."):
                found.strange.append(name)
        found.segments.sort()
        return found

    def check_segments(self, folder: _Folder) -> list[Segment]:
        """The headers of all; those that can be read."""
        for name in sorted(folder.strange)[:8]:
            self.report.note(f"{self.before}{name}", "is no file of a queue")
        found: list[Segment] = []
        for number in folder.segments:
            where = f"{self.before}{segment_name(number)}"
            path = os.path.join(self.path, segment_name(number))
            try:
                with opened(path) as fd:
                    segment = self.check_segment(fd, path, where, number)
            except FileNotFoundError:
                continue  # finished meanwhile
            except (IncompatibleFormat, CorruptionError, IsADirectoryError) as error:
                self.report.error(where, without_path(error, path))
                continue
            if segment is None:
                continue
            if found and segment.start < found[-1].stop:
                self.report.error(where, f"begins in the middle of {found[-1].where}, which is longer than one segment")
                continue
            found.append(segment)
        return found

    def check_segment(self, fd: int, path: str, where: str, number: int) -> Segment | None:
        report, unit = self.report, self.header.options[0]
        page = first_page(fd)
        header = files.parse_header(page, path, "segment")
        check_header(report, where, page, header)
        stored, units = header.options[:2]
        size = os.fstat(fd).st_size
        if header.parent != self.header.identity:
            report.error(where, "belongs to another queue")
        elif stored != number:
            report.error(where, f"has the name of number {number}, and says that it is number {stored}")
        elif not units or size != units * unit or (number + units) * unit >= END_OF_ALL:
            report.error(where, f"has {size} bytes, and {units} x {unit} belong there: it was cut, or added to")
        else:
            if any(header.options[2:]) or header.durability != self.header.durability:
                report.warning(where, "stores other options than a segment of this queue has")
            return Segment(where, path, number * unit, (number + units) * unit)
        return None

    def check_strays(self, segments: list[Segment], tail: int) -> None:
        """Segments that nobody needs, or not yet."""
        now = look(self.fd)
        if now is None:
            return
        held = sorted(now.positions())
        last = max((s.stop for s in segments if s.start <= tail), default=0)
        newest = read_tail(self.fd)[0]
        done: list[Segment] = []
        for segment in segments:
            at = bisect_left(held, segment.start)
            if segment.stop <= now.words["head"] and (at == len(held) or held[at] >= segment.stop):
                done.append(segment)
            elif segment.start > newest and not (self.in_use and segment.start == last):
                self.report.note(segment.where, "lies ahead of the tail: made by somebody who died, or could not go on")
        if self.in_use and done:
            time.sleep(0.02)  # somebody may be removing it this moment
        for segment in done:
            if os.path.lexists(segment.path):
                what = "is finished, and was not removed: its items are done; the next recovery removes it"
                self.report.note(segment.where, what)
