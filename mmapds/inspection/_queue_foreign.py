"""What recovery will make of a queue that was last used on another boot, or that is a copy: told by its segments."""

from __future__ import annotations

import os

from mmapds import files
from mmapds._queuefiles import QUARANTINE, segment_name
from mmapds._queuerecovery import Readers, survey
from mmapds.errors import CorruptionError, MappingLost
from mmapds.inspection._base import Report, without_path
from mmapds.inspection._queue import ENTRIES, Looking


def check_foreign(report: Report, path: str, before: str, where: str, header: files.Header, fd: int) -> None:
    """Does what recovery would do, up to the point where it would change something."""
    size = os.fstat(fd).st_size
    if size <= ENTRIES:
        what = f"has {size} bytes, and its control pages end at {ENTRIES}: it was cut, and recovery makes them anew"
        report.warning(where, what)
    control = os.pread(fd, ENTRIES, 0).ljust(ENTRIES, b"\0")
    try:
        plan = survey(Readers(Looking(path, header)), control)
    except FileNotFoundError:
        report.doubt()  # somebody removes segments: recovered meanwhile
        return
    except (CorruptionError, MappingLost, IsADirectoryError, OverflowError, ValueError) as error:
        report.error(where, f"cannot be recovered: {without_path(error, path)}")
        return
    waiting = sum(getattr(item, "count", 1) for item in plan.items)
    report.note(
        where,
        "was last used on another boot, or is a copy: the next to open it for writing recovers it, with "
        f"{waiting} items that are whole, and begins epoch {plan.epoch}",
    )
    if plan.lost or plan.aside:
        places = ", ".join(f"{start} to {stop}" for _number, start, stop in plan.aside[:6])
        report.warning(
            where,
            f"{plan.lost} items are damaged or missing, with whole ones behind them: recovery sets aside in "
            f"{QUARANTINE}/ what is at {places or 'no position'}",
        )
    if plan.cut:
        report.note(where, f"{plan.cut} bytes at its end were torn when the machine went down: recovery cuts them")
    for number in plan.broken:
        what = f"is no segment of this queue: recovery moves it to {QUARANTINE}/"
        report.warning(f"{before}{segment_name(number)}", what)
