"""Whoever opens or looks at a file reads it in several steps, and it may be another between any two (rows 9 and 16).

Each system call that reads a file's bytes, size or directory is a point at which the file is really truncated, and some
points later, or never, it gets its bytes back. What comes of it is right, or an error that says so. The fast suite
takes some pairs of points, `-m slow` all. (A cut that lasts through a whole call is what a fuzzer finds; one that comes
and goes within it is not.)
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from cutkinds import KINDS, VALUE

from mmapds import Counters, MmapdsError, Queue, SnapshotMap, Synchronizer
from mmapds.inspection import describe, verify

READS = ("pread", "preadv", "fstat", "stat", "lstat", "open", "listdir")
NEVER = 1 << 30


class Cutter:
    """Cuts `file` to `size` before read number `first`, and gives back what it had before number `last`."""

    def __init__(self, file: str, size: int, first: int, last: int) -> None:
        self.file, self.size, self.first, self.last = file, size, first, last
        self.count = 0
        self.taken = b""

    def step(self) -> None:
        """Calls nothing that is replaced."""
        if self.count == self.first:
            with open(self.file, "r+b") as file:
                self.taken = file.read()
                file.truncate(self.size)
        if self.count == self.last:
            self.give_back()
        self.count += 1

    def give_back(self) -> None:
        if self.taken:
            with suppress(FileNotFoundError), open(self.file, "r+b") as file:  # recovery may have moved it
                file.seek(self.size)
                file.write(self.taken[self.size :])
            self.taken = b""

    @contextmanager
    def at_work(self) -> Iterator[None]:
        def after_a_step(call: Callable[..., Any]) -> Callable[..., Any]:
            def read(*args: Any, **kwargs: Any) -> Any:
                self.step()
                return call(*args, **kwargs)

            return read

        with pytest.MonkeyPatch.context() as patch:
            for name in READS:
                patch.setattr(os, name, after_a_step(getattr(os, name)))
            try:
                yield
            finally:
                self.give_back()


def files_of(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if path.is_file())


def cuts(folder: Path, points: int, stride: int, phase: int) -> Iterator[tuple[str, int, int, int]]:
    """(file, size, first, last): every one of `stride`."""
    number = phase
    for file in files_of(folder):
        for size in (0, 12, 100, 4100, 4300, 5000, 8242, 20480):
            if size < os.path.getsize(file):
                for first in range(points):
                    for last in (first + 1, first + 2, first + 3, NEVER):
                        number += 1
                        if number % stride == 0:
                            yield file, size, first, last


def points_of(job: Callable[[], object]) -> int:
    nothing = Cutter(os.devnull, 0, -1, -1)
    with nothing.at_work():
        job()
    return nothing.count


SHARES = pytest.mark.parametrize("share", ["some", pytest.param("all", marks=pytest.mark.slow)])
STRIDES = {"Synchronizer": 17, "mmap-sync": 5, "Counters": 1, "Queue": 7, "SnapshotMap": 173}


@SHARES
@pytest.mark.parametrize("settled", [True, False], ids=["of this boot", "a copy"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("job", [describe, verify])
def test_r16_inspection_of_a_file_that_is_cut_and_grows_again_between_two_reads(
    tmp_path: Path, job: Callable[[str], object], kind: str, settled: bool, share: str
) -> None:
    """The words of a control page were unpacked though only the last of three reads had been looked at."""
    folder = made(tmp_path, kind, settled)
    outcomes: Counter[str] = Counter()
    wrong = []
    for number, target in enumerate(sorted({str(folder / "it"), *files_of(folder)})):
        points = points_of(partial(job, target))
        for file, size, first, last in cuts(folder, points, STRIDES[kind] if share == "some" else 1, number):
            try:
                with Cutter(file, size, first, last).at_work():
                    job(target)
            except MmapdsError as error:
                outcomes[type(error).__name__] += 1
            except Exception as error:  # noqa: BLE001  any other is what this looks for
                wrong.append(f"{target}: {file} cut to {size} from read {first} to {last}: {error!r}")
            else:
                outcomes["looked"] += 1
    assert not wrong, "\n".join(wrong[:20])
    assert outcomes["looked"] > 20, outcomes


def made(folder: Path, kind: str, settled: bool) -> Path:
    """A directory with an "it" of this kind; or a copy, which counts for another boot's."""
    (folder / "first").mkdir()
    KINDS[kind].make(str(folder / "first" / "it"))
    if settled:
        return folder / "first"
    shutil.copytree(folder / "first", folder / "copy")
    return folder / "copy"


# ---- the structures themselves --------------------------------------------------------------------------------------


OPEN: dict[str, Callable[[str, Any], Any]] = {
    "Synchronizer": lambda path, mode: Synchronizer(path, mode=mode, codec="raw"),
    "mmap-sync": lambda path, mode: Synchronizer(path, mode=mode, codec="raw", protocol="mmap-sync"),
    "Counters": lambda path, mode: Counters(path, mode=mode),
    "Queue": lambda path, mode: Queue(path, mode=mode),
    "SnapshotMap": lambda path, mode: SnapshotMap(path, mode=mode),
}


def everything(handle: Any) -> Any:
    """All that is in it."""
    if isinstance(handle, Synchronizer):
        return handle.load()
    if isinstance(handle, Counters):
        return handle.snapshot()
    if isinstance(handle, SnapshotMap):
        return list(handle.items())
    if handle.mode == "readonly":
        return list(handle)
    found = []
    with suppress(Empty):
        while True:
            found.append(handle.get_nowait())
    return found


def may_be(kind: str, settled: bool, found: Any, whole: Any) -> bool:
    """A list of a queue leaves out what is damaged. Of another boot's file, recovery keeps what is whole."""
    if found == whole:
        return True
    if kind == "Queue":
        return [item for item in whole if item in found] == found
    if settled:
        return False
    if kind == "Synchronizer":
        return bool(found == VALUE)
    if kind == "SnapshotMap":
        return bool(found == [(f"k{n:03}", VALUE[n:]) for n in range(100)])
    return False


OPENED = {"Synchronizer": 29, "mmap-sync": 13, "Counters": 5, "Queue": 23, "SnapshotMap": 97}


@SHARES
@pytest.mark.parametrize("settled", [True, False], ids=["of this boot", "a copy"])
@pytest.mark.parametrize("mode", ["readonly", "private", "shared"])
@pytest.mark.parametrize("kind", KINDS)
def test_r09_all_that_is_read_while_a_file_is_cut_and_grows_again(
    tmp_path: Path, kind: str, mode: str, settled: bool, share: str
) -> None:
    template = made(tmp_path, kind, False)
    folder = tmp_path / "now"

    def anew() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)
        if settled:
            OPEN[kind](str(folder / "it"), "shared").close()

    def look() -> Any:
        with OPEN[kind](str(folder / "it"), mode) as handle:
            return everything(handle)

    anew()
    whole = look()
    anew()
    points = points_of(look)
    outcomes: Counter[str] = Counter()
    wrong = []
    anew()
    for file, size, first, last in list(cuts(folder, points, OPENED[kind] if share == "some" else 1, 0)):
        anew()
        try:
            with Cutter(file, size, first, last).at_work():
                found = look()
        except MmapdsError as error:
            outcomes[type(error).__name__] += 1
        except Exception as error:  # noqa: BLE001  any other is what this looks for
            wrong.append(f"{file} cut to {size} from read {first} to {last}: {error!r}")
        else:
            outcomes["right" if found == whole else "older"] += 1
            if not may_be(kind, settled, found, whole):
                wrong.append(f"{file} cut to {size} from read {first} to {last}: {str(found)[:80]!r}")
    assert not wrong, f"{len(wrong)}, {outcomes}:\n" + "\n".join(wrong[:20])
    assert outcomes["right"] > 5, outcomes
    assert outcomes.total() > outcomes["right"] + outcomes["older"], outcomes  # some were refused
