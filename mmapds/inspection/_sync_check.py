"""What is wrong with a Synchronizer's three files, protocol "mmapds".

What each death may leave behind follows from the protocol in ``_native/leftright.h``. Everything about the value hangs
on the commit word: index V & 1 is whole as long as V stays, and the other one is nobody's. So all of it is a passing
finding, believed only if V is the same at the end. Slots change by themselves, and are looked at several times before
anything is said about them. A file of another boot, and a copy, is judged by what recovery will make of it.
"""

from __future__ import annotations

import os
import time

from mmapds import files
from mmapds._native import kernel
from mmapds.errors import CorruptionError, IncompatibleFormat
from mmapds.inspection._base import (
    Finding,
    Report,
    check_header,
    check_temporaries,
    check_zero,
    first_page,
    hash_range,
    opened,
    until_still,
    without_path,
)
from mmapds.inspection._sync import SLOT, SLOT_SIZE, SLOTS_AT, ZERO, Control, Record, Slot, look_at_slot, sequence_of

_LIMIT = 1 << 39  # bytes in a value
_WRAPPED = 1 << 32  # no reader has so many results; a count below zero looks like this


def verify(prefix: str) -> list[Finding]:
    """Everything that is wrong with the three files of a prefix."""
    return until_still(lambda: _Look(prefix).run())


class _Look:
    """One look at the three files: `run` returns what it found, and whether somebody published meanwhile."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.name = os.path.basename(prefix)
        self.report = Report()
        self.header: files.Header | None = None
        self.writing = False  # somebody has the writer's lock
        self.foreign = False  # the volatile words are of another boot, or of the file that this one was copied from

    def run(self) -> tuple[Report, bool]:
        path = self.prefix + "_sync"
        report = self.report
        check_temporaries(report, self.prefix)
        if os.path.lexists(self.prefix + "_state"):
            report.warning(
                f"{self.name}_state",
                f"belongs to the protocol 'mmap-sync', and {self.name}_sync to this one: one prefix",
            )
        try:
            fd = files.open_regular(path, writable=False)
        except FileNotFoundError:
            report.error(f"{self.name}_sync", "is missing: without it nobody can tell what the data files hold")
            self.check_data_files(-1, None)
            return report, False
        try:
            disturbed = self.check_set(fd, path)
            status, there = os.fstat(fd), os.stat(path, follow_symlinks=False)
            return report, disturbed or (status.st_dev, status.st_ino) != (there.st_dev, there.st_ino)
        finally:
            os.close(fd)

    def check_set(self, fd: int, path: str) -> bool:
        where = f"{self.name}_sync"
        report = self.report
        page = first_page(fd)
        try:
            self.header = files.parse_header(page, path, "sync")
        except CorruptionError as error:
            report.error(where, without_path(error, path))
        except IncompatibleFormat as error:
            # Whole and ours, so of another format or kind; or nothing here is ours. Neither is damage.
            if (page.startswith(files.MAGIC) and len(page) == kernel.PAGE) or not self.data_is_ours():
                raise
            report.error(where, without_path(error, path))
        if self.header is None:
            self.check_data_files(fd, None)
            return False
        check_header(report, where, page, self.header)
        if self.header.options[0] != kernel.SLOTS or any(self.header.options[1:]):
            report.error(
                where, f"says {self.header.options[0]} reader slots, expected {kernel.SLOTS} and no more options"
            )
        if any(self.header.parent):
            report.error(where, "names a parent, and a control file has none")
        size = os.fstat(fd).st_size
        if size != kernel.SYNC_SIZE:
            report.error(where, f"has {size} bytes, expected {kernel.SYNC_SIZE}: it was cut, or added to")
        control = Control(fd)
        if not control.complete:
            self.check_data_files(fd, None)
            return False
        self.check_control(fd, where, control)
        self.check_data_files(fd, control)
        return sequence_of(fd) != control.sequence

    def data_is_ours(self) -> bool:
        for index in (0, 1):
            try:
                with opened(f"{self.prefix}_data_{index}") as fd:
                    if first_page(fd).startswith(files.MAGIC):
                        return True
            except (OSError, IncompatibleFormat):
                continue
        return False

    # -- the sync file

    def check_control(self, fd: int, where: str, control: Control) -> None:
        header = self.header
        assert header is not None
        report = self.report
        check_zero(report, where, control.page, ZERO)
        ends = tuple((o + SLOT.size, o + SLOT_SIZE) for o in range(SLOTS_AT, kernel.SYNC_SIZE, SLOT_SIZE))
        check_zero(report, where, control.page, ends)
        if control.waiters > 1:
            report.warning(where, f"the waiters word is {control.waiters}, expected 0 or 1")
        if control.sentinel != kernel.SENTINEL:
            report.error(where, "the end of the commit page is not what was written there: was the file cut?")
        self.writing = kernel.locked(fd, kernel.LOCK_WRITER)
        self.foreign = not _same_origin(fd, header) and not kernel.locked(fd, kernel.LOCK_OPEN, 0)
        if self.foreign:
            report.note(
                where,
                "was last used on another boot, or is a copy: the next to open it resets what is volatile, and takes "
                "the newest version that matches its checksum",
            )
        else:
            if header.failed:
                report.warning(
                    where, "a flush to the disk failed: nobody reads or trusts it until a write has succeeded"
                )
            self.check_slots(fd, where, control)
        if not self.writing:
            for index in (0, 1):
                if os.path.lexists(f"{self.prefix}_data_{index}.new"):
                    report.note(
                        f"{self.name}_data_{index}.new", "was left by a writer that died: the next one removes it"
                    )

    def check_slots(self, fd: int, where: str, control: Control) -> None:
        dead, pinned = [], 0
        for number in control.slots():
            slot = look_at_slot(fd, number)
            bad = _slot_is_wrong(slot)
            for _ in range(4):  # a slot that is taken or given back this moment may look wrong, but not for long
                if not bad:
                    break
                time.sleep(0.001)
                slot = look_at_slot(fd, number)
                bad = _slot_is_wrong(slot)
            if bad:
                self.report.add(
                    "error" if slot.alive or max(slot.pins) >= _WRAPPED else "warning", where, f"slot {number}: {bad}"
                )
            elif slot.in_use and not slot.alive:
                dead.append(number)
                pinned += any(slot.pins)
        if dead:
            some = ", ".join(map(str, dead[:8])) + (", ..." if len(dead) > 8 else "")
            self.report.note(
                where,
                f"{len(dead)} reader slots ({some}) are of handles that died, {pinned} of them with pins: they are "
                "taken back when they are needed",
            )

    # -- the data files and the records

    def check_data_files(self, fd: int, control: Control | None) -> None:
        """The active index first, and what was found there is settled if the version is still the same: a writer may
        well publish once while the inactive value is read."""
        first = control.active if control else 0
        order = (first, 1 - first)
        if control is None or self.foreign:
            whole = {index: self.check_data_file(index, control) for index in order}
            if control is not None:
                self.check_recovery(control, whole)
            return
        for index in order:
            wrong = self.check_data_file(index, control)
            check = self.check_active if control.sequence and index == first else self.check_inactive
            check(f"{self.name}_sync, record {index}", index, control.records[index], control.sequence, wrong)
            if index == first and sequence_of(fd) == control.sequence:
                self.report.settle()

    def check_data_file(self, index: int, control: Control | None) -> str | None:
        """Checks a data file by itself. What is wrong with the value that its record describes, "" if nothing is;
        None if there is no such file, or no telling."""
        path = f"{self.prefix}_data_{index}"
        where = f"{self.name}_data_{index}"
        report = self.report
        try:
            with opened(path) as fd:
                page = first_page(fd)
                header = files.parse_header(page, path, "syncdata")
                check_header(report, where, page, header)
                if header.options[0] != index or any(header.options[1:]):
                    report.error(where, f"says that it is data_{header.options[0]}: were the files exchanged?")
                if self.header is not None:
                    if header.parent != self.header.identity:
                        report.error(
                            where,
                            f"belongs to the control file {header.parent.hex()}, and {self.name}_sync is "
                            f"{self.header.identity.hex()}: were some of the three files replaced?",
                        )
                    if header.durability != self.header.durability:
                        report.error(
                            where, f"has durability {header.durability!r}, the control file {self.header.durability!r}"
                        )
                return None if control is None else _value_is_wrong(fd, control.records[index])
        except FileNotFoundError:
            return None
        except (CorruptionError, IncompatibleFormat, IsADirectoryError) as error:
            report.error(where, without_path(error, path))
            return None

    def check_active(self, where: str, index: int, record: Record, version: int, wrong: str | None) -> None:
        report, header = self.report, self.header
        assert header is not None
        if record.sequence != version:
            report.error(
                where,
                f"is of version {record.sequence}, and the commit word says {version}: one is damaged",
                passing=True,
            )
        if not record.right(header.identity):
            report.error(where, "its check is wrong: damaged, or from another file", passing=True)
        elif record.size >= _LIMIT:
            report.error(where, f"says {record.size} bytes, and a value has less than 2**39", passing=True)
        elif wrong is None and not os.path.lexists(f"{self.prefix}_data_{index}"):
            report.error(f"{self.name}_data_{index}", f"is missing, and holds version {version}", passing=True)
        elif wrong:
            report.error(f"{self.name}_data_{index}", f"version {version}: {wrong}", passing=True)

    def check_inactive(self, where: str, index: int, record: Record, version: int, wrong: str | None) -> None:
        """Nobody reads this index before it is written anew, and a writer may have died anywhere in it."""
        report, header = self.report, self.header
        assert header is not None
        before, after = version - 1, version + 1
        if version == 0 and not record.empty and record.sequence != index:
            report.error(
                where, f"is of version {record.sequence}, and the commit word says that there is none", passing=True
            )
        elif record.empty:
            if version > 1:
                report.warning(where, f"is empty, although version {before} was published under it", passing=True)
        elif record.sequence == after:
            if not self.writing:
                report.note(where, f"was begun for version {after} by a writer that died", passing=True)
        elif record.sequence != before:
            report.warning(
                where, f"is of version {record.sequence}, which is neither before nor after {version}", passing=True
            )
        elif not record.right(header.identity):
            report.warning(where, "its check is wrong; nobody reads it, and the next write replaces it", passing=True)
        elif wrong is None:
            report.warning(where, f"is of version {before}, and its data file is missing or not usable", passing=True)
        elif wrong and not self.writing:
            report.note(
                f"{self.name}_data_{index}",
                f"version {before}, which nobody reads any more: {wrong}. A writer died as it wrote, or this is damage",
                passing=True,
            )

    def check_recovery(self, control: Control, whole: dict[int, str | None]) -> None:
        """What will the next to open it find?"""
        header = self.header
        assert header is not None
        good = [
            record.sequence
            for index, record in enumerate(control.records)
            if record.right(header.identity) and record.sequence & 1 == index and record.sequence and whole[index] == ""
        ]
        version = control.sequence
        newest = max(good, default=0)
        where = f"{self.name}_sync"
        if newest:
            if newest != version:
                self.report.warning(
                    where,
                    f"version {version} cannot be recovered; the next to open it goes back to {newest}",
                    passing=True,
                )
        elif version or not all(record.empty for record in control.records):
            self.report.error(where, f"neither version {version} nor the one before matches its checksum", passing=True)


def _same_origin(fd: int, header: files.Header) -> bool:
    status = os.fstat(fd)
    return (header.boot_id, header.device, header.inode) == (files.boot_id(), status.st_dev, status.st_ino)


def _slot_is_wrong(slot: Slot) -> str:
    if max(slot.pins) >= _WRAPPED:
        return f"its pins are {slot.pins[0]} and {slot.pins[1]}: damaged, or counted below zero"
    if any(slot.pins) and not slot.in_use:
        return f"has pins {slot.pins[0]} and {slot.pins[1]}, and is not marked as in use: writers do not see it"
    if slot.in_use and slot.incarnation == 0:
        return "is in use, and has never been used: was the file cut?"
    return ""


def _value_is_wrong(fd: int, record: Record) -> str:
    """Whether the file holds what its record says; "" if it does. The record may be hostile."""
    room = os.fstat(fd).st_size - kernel.PAGE
    if record.size > room:
        return f"{record.size} bytes are stored, and the file has room for {room}"
    if record.size >= _LIMIT:
        return f"{record.size} bytes are too many"
    found = hash_range(fd, kernel.PAGE, record.size)
    if found is None:
        return f"the file ends before the {record.size} bytes do"
    if found != record.hash:
        return f"checksum 0x{record.hash:016x} stored, 0x{found:016x} computed over {record.size} bytes"
    return ""
