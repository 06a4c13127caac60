"""The files of a queue: a directory with meta, segments, what recovery has set aside, and the dead letters.

Promises
    A file gets its name when it is complete. A segment belongs to one queue and one number for ever; none is used
    again. It gets its name under the lock for putting, and only if the tail has not come to it yet: one that came too
    late would lie over what others use. A death before it is used leaves an empty file, which the next producer takes.

Recovery after another boot is in ``_queuerecovery.py``; transitions are native.

Rejected
    One file that grows: it gives space back only when it is empty (emmap_queue). Recycled segments: others may still
    have them mapped, and an old record could be taken for a new one.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache

from mmapds import files
from mmapds._native import kernel
from mmapds._native.queuescan import first_control
from mmapds._native.queueview import LAYOUT
from mmapds.codecs import Schema
from mmapds.errors import CorruptionError, IncompatibleFormat, WriterBusy

META = "meta"
DEAD = "dead"
QUARANTINE = "quarantine"
SEGMENT = re.compile(r"([0-9a-f]{16})\.segment")
FIRST_ENTRIES = 84  # with the control pages, 88 KiB


def segment_name(number: int) -> str:
    """The name of a segment's file."""
    return f"{number:016x}.segment"


@cache
def boot_offset() -> int:
    """What this time namespace adds to CLOCK_BOOTTIME, in nanoseconds."""
    with suppress(OSError, ValueError):
        for line in kernel.read_small("/proc/self/timens_offsets").decode().splitlines():
            name, seconds, nanoseconds = line.split()
            if name in ("boottime", "7"):
                return int(seconds) * 10**9 + int(nanoseconds)
    return 0


class QueueFiles:
    """The directory of one handle."""

    __slots__ = ("directory", "meta", "path", "segment_size", "writable")

    def __init__(self, path: str, *, writable: bool) -> None:
        self.path = path
        self.writable = writable
        self.directory = -1
        if os.path.lexists(path) and not os.path.isdir(path):
            raise IncompatibleFormat(f"{path} is a file; a queue is a directory: give another path")
        self.meta = files.OpenFile(os.path.join(path, META), "queue", writable=writable)
        self.segment_size = self.meta.header.options[0]
        self.directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Lets go of the descriptors. Idempotent."""
        self.meta.close()
        if self.directory >= 0:
            fd, self.directory = self.directory, -1
            os.close(fd)

    def __del__(self) -> None:
        if self.directory >= 0:
            self.close()

    # ---- meta -----------------------------------------------------------------------------------------------------

    @staticmethod
    def create(path: str, *, durability: str, options: tuple[int, ...], schema: Schema) -> None:
        """Makes the directory and its meta; FileExistsError if somebody was first."""
        made = False
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
            made = True
        if not made:
            found = [name for name in os.listdir(path) if not name.startswith(".")]
            if found and META not in found:
                found = found if META not in os.listdir(path) else []  # somebody may have made it meanwhile
                if found:
                    raise IncompatibleFormat(
                        f"{path} is a directory with other files ({', '.join(sorted(found)[:3])}) and without the meta "
                        "of a queue: give another path, or an empty directory"
                    )
        page = files.new_header("queue", durability=durability, options=options, schema=schema)
        control = first_control(options[0], FIRST_ENTRIES)
        size = LAYOUT["CONTROL"] + FIRST_ENTRIES * LAYOUT["ENTRY"]
        size += -size % kernel.PAGE
        files.create(os.path.join(path, META), page + control, size, durability=durability)
        if durability == "power":
            files.sync_directory(path)

    def grow(self, entries: int, *, alone: bool = False) -> None:
        """Makes room for as many entries in meta. `alone`: the caller has the lock of who recovers."""
        size = LAYOUT["CONTROL"] + entries * LAYOUT["ENTRY"]
        size += -size % kernel.PAGE
        fd = self.meta.descriptor()
        with nullcontext() if alone else files.growing(fd, self.meta.path):
            try:
                kernel.allocate(fd, size)
            except OSError as error:
                error.filename = self.meta.path
                raise

    # ---- segments -------------------------------------------------------------------------------------------------

    def segment_path(self, number: int) -> str:
        """Where a segment is."""
        return os.path.join(self.path, segment_name(number))

    def numbers(self) -> list[int]:
        """The segments that exist, in order."""
        return sorted(int(found[1], 16) for name in os.listdir(self.path) if (found := SEGMENT.fullmatch(name)))

    def open_segment(self, number: int, *, writable: bool) -> tuple[int, int]:
        """A descriptor and the size of a segment that exists."""
        path = self.segment_path(number)
        self.meta.check_path()  # the place where the queue was
        fd = files.open_regular(path, writable=writable)
        try:
            header = files.parse_header(os.pread(fd, kernel.PAGE, 0), path, "segment")
            if header.parent != self.meta.header.identity or header.options[0] != number:
                raise IncompatibleFormat(f"{path} belongs to another queue, or to another place in this one")
            size = os.fstat(fd).st_size
            if size != header.options[1] * self.segment_size or size > 1 << 62:
                raise CorruptionError(
                    f"{path} has {size} bytes, and {header.options[1]} x {self.segment_size} belong there: restore "
                    "a copy"
                )
            return fd, size
        except BaseException:
            os.close(fd)
            raise

    def make_segment(self, number: int, units: int, name: Callable[[int, str | None, str], None]) -> tuple[int, int]:
        """The same of one that may not exist yet; if it does, its size is what it is. `name` gives it its name, while
        it is still wanted, or raises FileNotFoundError."""
        while True:
            with suppress(FileNotFoundError):
                return self.open_segment(number, writable=True)
            durability = self.meta.header.durability
            page = files.new_header(
                "segment", durability=durability, options=(number, units), parent=self.meta.header.identity
            )
            with suppress(FileExistsError):
                size = units * self.segment_size
                files.create(self.segment_path(number), page, size, durability=durability, name=name)

    def quarantine_segment(self, number: int) -> None:
        """What has a segment's name and is none goes where people can look at it."""
        folder = os.path.join(self.path, QUARANTINE)
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        for attempt in range(1000):
            with suppress(FileExistsError, FileNotFoundError):
                kernel.rename_new(self.segment_path(number), os.path.join(folder, f"{segment_name(number)}.{attempt}"))
                return
            if not os.path.lexists(self.segment_path(number)):
                return

    def exists(self, number: int) -> bool:
        """Whether a segment has a file."""
        return os.path.exists(self.segment_path(number))

    def remove_segment(self, number: int) -> None:
        """Takes its name away."""
        with suppress(FileNotFoundError):
            os.unlink(self.segment_path(number))

    def set_aside(self, name: str, data: bytes) -> str:
        """Keeps damaged bytes for people: where."""
        folder = os.path.join(self.path, QUARANTINE)
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        target = os.path.join(folder, name)
        with suppress(FileExistsError), open(target, "xb") as file:
            file.write(data)
        return target


def erase(path: str) -> None:
    """Removes a queue and all it holds. See Queue.erase."""
    meta = files.OpenFile(os.path.join(path, META), "queue", writable=True)
    try:
        locks = meta.live_locks()
        if not locks.try_lock(kernel.LOCK_WRITER, 0):
            raise WriterBusy(
                f"{path} is in use: close all handles of it, in all processes, before it is erased", path=path
            )
        parent, name = os.path.split(path)
        for attempt in range(100):
            target = os.path.join(parent, f".{name}.{os.getpid()}.{attempt}.erased")
            try:
                os.rename(path, target)  # from one moment to the next: no half of a queue is ever left at the path
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        shutil.rmtree(target)
    finally:
        meta.close()
