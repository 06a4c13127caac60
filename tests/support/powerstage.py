"""What the lives of powerlives.py are made of: a folder whose changes are recorded, and who has which lives."""

from __future__ import annotations

import ast
import os
import random
import shutil
from collections.abc import Callable
from typing import Any

import powerlog
from powerlog import Files, Recorder, Recording

FIRST_BOOT, SECOND_BOOT, THIRD_BOOT = (b"boot number %4d" % n for n in (1, 2, 3))


def settle_down(boot: bytes) -> None:
    """This process lives in that boot, in a temporary file system that it takes for a disk, with small files."""
    from mmapds import _header, _snapfiles, files, queue

    parts: Any = (files, _header, _snapfiles, queue)
    parts[0].boot_id = parts[1].boot_id = lambda: boot
    parts[0]._VOLATILE = {}
    parts[2].DELTA_SIZE, parts[2].DELTA_BUCKETS = 16384, 16
    parts[3].Queue._dead_queue = classmethod(
        lambda cls, path, mode, durability: (
            cls(path, mode=mode, codec="raw")
            if mode != "shared"
            else cls(path, codec="raw", durability=durability, segment_size=8192)
        )
    )


class Stage:
    """A folder whose changes are recorded, and what is expected of it."""

    def __init__(self, base: str, name: str, start: Files | None = None) -> None:
        self.name = name
        self.folder = os.path.join(base, "run")
        self._log = os.path.join(base, "log")
        shutil.rmtree(self.folder, ignore_errors=True)
        if os.path.exists(self._log):
            os.unlink(self._log)
        os.mkdir(self.folder)
        self.root = os.stat(self.folder).st_ino
        self.recorder = Recorder(self.folder, self._log)
        self.expected: dict[str, Any] = {}
        if start:
            write(self.folder, start, parents=True)
            self.recorder.mark(settled=True)

    def expect(self, **expected: Any) -> None:
        """From now on."""
        self.expected = {**self.expected, **expected}
        self.recorder.mark(**self.expected)

    def look(self, looking: bool) -> None:
        """Whether there are cuts from here on: what is in another life too need not be looked at twice."""
        self.recorder.mark(looking=looking)

    def run(self, job: Callable[[], object], killed_at: int = -1) -> bool:
        return self.recorder.run(job, killed_at)

    def recording(self) -> Recording:
        """All of it; AssertionError if the log does not come to the files as they are: a store was missed."""
        with open(self._log, "rb") as log:
            found = Recording(self.name, self.root, log.read())
        files: Files = {}
        for folder, folders, names in os.walk(self.folder):
            inside = os.path.relpath(folder, self.folder) + "/" if folder != self.folder else ""
            files |= dict.fromkeys((inside + name for name in folders), None)
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    files[inside + name] = file.read()
        logged = found.end()
        wrong = [path for path in files.keys() | logged.keys() if files.get(path, 0) != logged.get(path, 0)]
        assert not wrong, f"{self.name}: the log says otherwise of {wrong}"
        return found


def write(folder: str, files: Files, *, parents: bool = False) -> None:
    for path, content in sorted(files.items()):
        target = os.path.join(folder, path)
        if content is None:
            os.mkdir(target)
        else:
            fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.pwrite(fd, content, 0)
            finally:
                os.close(fd)


Life = Callable[[Stage], bool | None]
Wander = Callable[[Stage, random.Random], None]
LIVES: dict[str, dict[str, Life]] = {}
RECOVERIES: dict[str, Life] = {}
WANDERS: dict[str, Wander] = {}


def life(structure: str) -> Callable[[Life], Life]:
    def add(function: Life) -> Life:
        LIVES.setdefault(structure, {})[function.__name__.partition("_")[2]] = function
        return function

    return add


def killed(structure: str, what: str, most: int) -> Callable[[Callable[[Stage, int], bool]], Any]:
    """A life with a number, for each sync before which a process of it may be killed."""

    def add(function: Callable[[Stage, int], bool]) -> Any:
        for number in range(most):
            LIVES.setdefault(structure, {})[f"{what} killed at sync {number}"] = lambda stage, number=number: function(
                stage, number
            )  # type: ignore[misc]
        return function

    return add


def recovery(structure: str) -> Callable[[Life], Life]:
    """A life that begins with what a power cut has left."""

    def add(function: Life) -> Life:
        RECOVERIES[structure] = function
        return function

    return add


def wander(structure: str) -> Callable[[Wander], Wander]:
    """A life by chance."""

    def add(function: Wander) -> Wander:
        WANDERS[structure] = function
        return function

    return add


def last_expected(stage: Stage) -> dict[str, Any]:
    """What a child has said last."""
    found: dict[str, Any] = {}
    with open(stage._log, "rb") as log:
        for record in powerlog.read(log.read()):
            if record.kind == powerlog.MARK:
                mark = ast.literal_eval(record.data.decode())
                found = found if "looking" in mark or "settled" in mark else mark
    return found
