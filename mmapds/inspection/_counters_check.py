"""What is wrong with a counters file, or with one of emmap's.

What each death may leave behind follows from the protocol in ``_native/counters.h``. A cell may hold anything, so all
that can be wrong is in the header, the words that count, the table of extents, and the names. Of these, what is
published stays as it is, but for a name's state, which is one word: a look beside busy writers needs no lock, only that
words are read before what they count, and that what looks wrong is looked at again. One thing changes what is
published: the recovery of a file of another boot, or of a copy. It ends with another origin, and then the whole look is
repeated. A file that waits for that is judged by what recovery will make of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from mmapds import files
from mmapds._native import kernel
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
from mmapds.inspection._counters import (
    CONTROL,
    DAMAGED,
    DTYPES,
    EMMAP_HEAD,
    ENTRY,
    INDICES,
    REMOVED,
    STRIDES,
    TABLE,
    Control,
    Extent,
    entries,
    entry_is_wrong,
    identity_words,
    name_of,
    state_of,
)

_HOLDER = ((2112, 2160),)  # nobody holds counters
_ZERO = ((4112, 4160), (4192, TABLE))
_HOW = 2  # the largest
_ORIGIN = slice(2048, 2080)
_T = TypeVar("_T")


def verify(path: str) -> list[Finding]:
    """Everything that is wrong with a counters file."""
    return until_still(
        lambda: _Look(path).run(),
        os.path.basename(path),
        "it was recovered or replaced all the while, faster than it could be read: it was not checked",
    )


def verify_emmap(path: str) -> list[Finding]:
    """Everything that is wrong with a file of emmap's counters: there is little to check."""
    report = Report()
    where = os.path.basename(path)
    _check_temporaries(report, path)
    with opened(path) as fd:
        head = os.pread(fd, EMMAP_HEAD, 0)
        size = os.fstat(fd).st_size
    count = int.from_bytes(head[8:], "little")
    if len(head) < EMMAP_HEAD:
        report.error(where, f"has {len(head)} bytes, and starts with {EMMAP_HEAD} of header: it was cut")
    elif not 0 < count <= INDICES:
        report.error(where, f"says that it holds {count} counters: from 1 to {INDICES} are possible")
    elif size < EMMAP_HEAD + 8 * count:
        report.error(where, f"has {size} bytes, and {count} counters end at {EMMAP_HEAD + 8 * count}: it was cut")
    elif size > EMMAP_HEAD + 8 * count:
        report.warning(where, f"has {size} bytes, and {count} counters end at {EMMAP_HEAD + 8 * count}")
    return report.findings()


class _Look:
    """One look at the file: `run` returns what it found, and whether somebody recovered or replaced it meanwhile."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.where = os.path.basename(path)
        self.report = Report()
        self.foreign = False  # waits for recovery
        self.power = False
        self.identity: tuple[int, ...] = ()
        self.looks = 50  # second ones, at single names

    def run(self) -> tuple[Report, bool]:
        report = self.report
        _check_temporaries(report, self.path)
        with opened(self.path) as fd:
            page = first_page(fd)
            try:
                header = files.parse_header(page, self.path, "counters")
            except (CorruptionError, IncompatibleFormat) as error:
                if isinstance(error, IncompatibleFormat) and len(page) == kernel.PAGE:
                    raise  # whole, and of another format
                report.error(self.where, without_path(error, self.path))
                return report, False
            self.identity = identity_words(header.identity)
            self.check_file(fd, page, header)
            status, there = os.fstat(fd), os.stat(self.path, follow_symlinks=False)
            same = (status.st_dev, status.st_ino) == (there.st_dev, there.st_ino)
            recovering = self.foreign and kernel.locked(fd, kernel.LOCK_OPEN)
            disturbed = not same or recovering or first_page(fd)[_ORIGIN] != page[_ORIGIN]
        if disturbed:
            report.doubt()
        return report, disturbed

    def grave(self, where: str, what: str, later: str) -> None:
        """An error; but if recovery will see to it, a warning that says how."""
        severity: Severity = "warning" if self.foreign else "error"
        self.report.add(severity, where, f"{what}; the next to open it {later}" if self.foreign else what)

    def durable(self, where: str, what: str, later: str) -> None:
        """The same of what `power` has synced before it was counted: recovery refuses the file."""
        if self.power:
            self.report.error(where, what)
        else:
            self.grave(where, what, later)

    # -- header and words

    def check_file(self, fd: int, page: bytes, header: files.Header) -> None:
        report, where = self.report, self.where
        check_header(report, where, page, header)
        check_zero(report, where, page, _HOLDER)
        if any(header.parent):
            report.error(where, "names a parent, and counters have none")
        dtype, stride, capacity = header.options[:3]
        if dtype not in DTYPES or stride not in STRIDES or capacity > INDICES or any(header.options[3:]):
            report.error(
                where,
                f"stores dtype {dtype}, {stride} bytes from cell to cell and {capacity} indices, and perhaps more: "
                "this release does not know all of these options",
            )
            return
        self.foreign = not settled(fd, page)
        self.power = header.durability == "power"
        control = _again(lambda: Control(fd, self.identity), self.is_wrong)
        if not control.complete:
            report.error(where, f"has {os.fstat(fd).st_size} bytes, and the control page ends at {CONTROL}: it was cut")
            return
        check_zero(report, where, os.pread(fd, CONTROL, 0), _ZERO)
        if self.foreign:
            report.note(
                where,
                "was last used on another boot, or is a copy: the next to open it for writing checks all its names",
            )
        elif header.failed:
            report.warning(
                where,
                "a flush to the disk failed: nobody makes or removes names, or reserves numbers, until flush() has "
                "written everything anew",
            )
        extents = self.check_extents(fd, control, stride, capacity)
        self.check_words(fd, control, extents)
        self.check_names(fd, control, extents)

    def is_wrong(self, control: Control) -> bool:
        """Whether it is worth a second look: a pread is no atomic load."""
        return control.complete and (
            control.names is None
            or control.removing is None
            or control.returning is None
            or any(extent.check and extent.wrong(self.identity) for extent in control.table)
        )

    def check_words(self, fd: int, control: Control, extents: list[Extent]) -> None:
        report, where = self.report, self.where
        room = sum(extent.room for extent in extents)
        if control.names is None:
            self.durable(where, "the count of names is damaged", "counts those that are whole")
        elif control.names > room and extents:
            self.durable(where, f"says {control.names} names, and has room for {room}", f"keeps {room}")
        for word, what in ((control.removing, "removal"), (control.returning, "return")):
            if word is None:
                self.grave(where, f"the word for a {what} is damaged", "clears it")
            elif word > (control.names or 0) and not self.foreign:
                report.error(where, f"the {what} of name {word - 1} is under way, and there is no such name")
            elif word and not self.foreign and not self.changing(fd, control):
                report.note(
                    where,
                    f"the {what} of name {word - 1} was not finished by a process that died: the next to make or "
                    "remove a name does it",
                )
        if control.how > _HOW:
            report.warning(where, f"says {control.how} for how a name returns: from 0 to {_HOW} mean something")

    def changing(self, fd: int, control: Control) -> bool:
        """Whether somebody is changing names or the file's size, or has done so since."""
        if kernel.locked(fd, kernel.LOCK_OPEN):
            return True
        now = Control(fd, self.identity)
        then = (control.changes, control.changing, control.table)
        return not now.complete or (now.changes, now.changing, now.table) != then

    # -- extents

    def check_extents(self, fd: int, control: Control, stride: int, capacity: int) -> list[Extent]:
        """The extents that are there; what comes behind a damaged one cannot be found."""
        report = self.report
        size = os.fstat(fd).st_size  # after the table was read: an extent is in the file before it is in the table
        extents, cells, room = control.extents(self.identity), 0, 0
        for extent in extents:
            where = f"{self.where}, extent {extent.number}"
            if extent.zero:
                report.warning(where, f"its reserved word is 0x{extent.zero:x} and must be 0")
            if extent.end > size:
                self.lost(where, extent, f"ends at {extent.end}, and the file at {size}: it was cut")
                return extents[: extent.number]
            cells += extent.cells_size
            room += extent.room
            if cells // stride < capacity + room:
                report.error(
                    where, f"up to here are {cells // stride} cells, for {capacity} indices and {room} names: damaged"
                )
            if os.pread(fd, 8, extent.end - 8) != kernel.SENTINEL.to_bytes(8, "little"):
                self.grave(where, "has no sentinel at its end: was the file cut?", "puts it there")
            check_zero(report, where, *self.behind(fd, extent))
        self.check_absent(fd, control, extents, size)
        return extents

    def behind(self, fd: int, extent: Extent) -> tuple[bytes, tuple[tuple[int, int]], int]:
        """What lies between the last entry and the sentinel: (bytes, range, offset)."""
        offset = extent.entries + extent.room * ENTRY
        data = os.pread(fd, extent.end - 8 - offset, offset)
        return data, ((0, len(data)),), offset

    def check_absent(self, fd: int, control: Control, extents: list[Extent], size: int) -> None:
        rest = control.table[len(extents) :]
        if rest and rest[0].check:
            self.lost(f"{self.where}, extent {rest[0].number}", rest[0], rest[0].wrong(self.identity))
            return
        if not extents:
            self.report.error(self.where, "has no extents, and so no cells: damaged")
            return
        if found := [extent.number for extent in rest[1:] if extent.check]:
            self.grave(
                f"{self.where}, extent {found[0]}",
                f"is there, and extent {rest[0].number} before it is not",
                "drops it",
            )
        if self.foreign:
            return
        for extent in rest:
            begun = extent is rest[0] and extent.end <= size and not extent.zero  # its sizes, and not yet its check
            if not (begun or extent.check) and (extent.cells_size or extent.names_size or extent.zero):
                self.report.warning(
                    f"{self.where}, extent {extent.number}", "is not there, and its record is not empty"
                )
        if size == extents[-1].end or self.changing(fd, control):
            return
        self.report.note(
            self.where,
            f"has {size - extents[-1].end} bytes behind its last extent: whoever added them died before they were "
            "part of it, and the next to need them takes them",
        )

    def lost(self, where: str, extent: Extent, what: str) -> None:
        if extent.number:
            self.grave(where, what, "drops it, and the names in it")
        else:
            self.report.error(where, what)  # with it the indices are gone

    # -- names

    def check_names(self, fd: int, control: Control, extents: list[Extent]) -> None:
        """All that are counted; and what lies behind them, if there is no count or recovery is to count."""
        seen: dict[bytes, int] = {}
        faults: dict[str, _Numbers] = {}
        room = sum(extent.room for extent in extents)
        counted = min(room, control.names or 0)
        more = _Numbers()
        before: dict[str, _Numbers] = {}  # if a whole one follows
        stop = room if self.foreign or control.names is None else counted
        for number, offset, entry in entries(fd, extents, stop):
            entry, wrong = self.look_at(fd, number, offset, entry, again=number < counted)
            if wrong:
                (faults if number < counted else before).setdefault(wrong, _Numbers()).add(number)
                continue
            if number >= counted:
                more.add(number)
                for what, numbers in before.items():
                    faults.setdefault(what, _Numbers()).take(numbers)
            self.check_name(number, offset, entry, seen, faults)
        for what, numbers in faults.items():
            if what in (_GIVEN_UP, _NOT_TEXT):
                self.report.add("note" if what == _GIVEN_UP else "error", self.where, f"{numbers} {what}")
            else:
                self.durable(self.where, f"{numbers} {what}", "gives them up: their cells go by number only")
        if more.count and control.names is not None:
            self.report.note(self.where, f"{more} {_NOT_COUNTED}")

    def check_name(
        self, number: int, offset: int, entry: bytes, seen: dict[bytes, int], faults: dict[str, _Numbers]
    ) -> None:
        """An entry that is what was written."""
        name = name_of(entry)
        check_zero(self.report, f"{self.where}, name {number}", entry, ((17 + len(name), ENTRY),), offset)
        if state_of(entry) == DAMAGED:
            faults.setdefault(_GIVEN_UP, _Numbers()).add(number)
            return
        try:
            text = name.decode()
        except UnicodeDecodeError:
            faults.setdefault(_NOT_TEXT, _Numbers()).add(number)
            return
        if (first := seen.setdefault(name, number)) != number:
            self.grave(
                f"{self.where}, name {number}",
                f"is {text!r}, {'and removed, ' if state_of(entry) == REMOVED else ''}and so is name {first}",
                f"gives up name {first}",
            )
            seen[name] = number

    def look_at(self, fd: int, number: int, offset: int, entry: bytes, *, again: bool) -> tuple[bytes, str]:
        """An entry, and what is wrong with it."""
        wrong = entry_is_wrong(entry, number, self.identity)
        if wrong and again and len(entry) == ENTRY and self.looks:  # not for each of very many
            self.looks -= 1
            entry = _again(
                lambda: os.pread(fd, ENTRY, offset), lambda found: bool(entry_is_wrong(found, number, self.identity))
            )
            wrong = entry_is_wrong(entry, number, self.identity)
        return entry, wrong


_GIVEN_UP = "were lost with the power, and given up by a recovery: their cells go by number only"
_NOT_TEXT = "are not UTF-8"
_NOT_COUNTED = "are whole, and not counted: the next to open it counts them"


class _Numbers:
    """Numbers of names, of which some are shown."""

    def __init__(self) -> None:
        self.count = 0
        self._some: list[int] = []

    def add(self, number: int) -> None:
        self.count += 1
        if len(self._some) < 8:
            self._some.append(number)

    def take(self, others: _Numbers) -> None:
        self.count += others.count
        self._some = (self._some + others._some)[:8]
        others.count, others._some = 0, []

    def __str__(self) -> str:
        some = ", ".join(map(str, self._some))
        return f"{self.count} names (number {some}{', ...' if self.count > len(self._some) else ''})"


def _again(read: Callable[[], _T], wrong: Callable[[_T], bool]) -> _T:
    """Reads, and if it looks wrong, some more times: what changes this moment may look so, but not for long."""
    for _ in range(4):
        if not wrong(found := read()):
            return found
        time.sleep(0.001)
    return read()


def _check_temporaries(report: Report, path: str) -> None:
    folder, name = os.path.split(path)
    check_temporaries(report, os.path.join(folder, name[:40]), "")  # files.unnamed cuts it
