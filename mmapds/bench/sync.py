"""`mmapds bench sync`: the Synchronizer and the mapping layer.

Promise
    One run measures every row of the table in `mmapds.bench.rows`, and the peers that are installed, and returns all of
    it as plain data with what it ran on. A row that cannot be measured here says why. Files are made in new
    directories, one in memory and one on a disk, and removed; processes that were started have ended. Nothing is
    asserted: a figure that misses its target is a result.

What a figure means, and how to read it, is in docs/benchmarks.md.
"""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmapds.bench import cases, crate, machine, peers, readers, rows
from mmapds.bench.measure import Case, Figures, pinned, take
from mmapds.bench.plot import svg
from mmapds.bench.report import tables

__all__ = ["run", "svg", "tables"]


@dataclass(frozen=True, slots=True)
class _Effort:
    """How long a run takes."""

    rounds: int  # of slices, for calls of nanoseconds
    slice_seconds: float
    long_rounds: int  # for calls of microseconds and more
    disk_rounds: int  # few: a disk that takes many flushes at once in a burst is slow after it
    crate_runs: int
    reader_rounds: int
    reader_seconds: float


_FULL = _Effort(200, 0.002, 200, 60, 4, 40, 0.05)
_QUICK = _Effort(10, 0.0005, 10, 5, 1, 3, 0.02)


def run(*, quick: bool, progress: Callable[[str], None], program: str | None = None) -> dict[str, Any]:
    """Measures everything. `program`: the Rust program, if it is not to be looked for; `quick` never builds it."""
    effort = _QUICK if quick else _FULL
    started = dt.datetime.now(dt.UTC)
    watch = machine.Watch()
    measuring = _Measuring(effort, progress)
    found = crate.find(program, build=not quick, progress=progress)
    with machine.directories() as (memory, disk):
        place = memory or disk
        if place is None:
            raise FileNotFoundError("no directory on tmpfs, ext4, xfs or the like can be written: set TMPDIR to one")
        with ExitStack() as stack:
            others, measuring.reasons = peers.cases(stack, place)  # not pinned: a server runs where it likes
            with pinned() as cpu:
                measuring.calls(place, disk, others)
                measuring.writes(memory, found)
                measuring.power(disk)
        measuring.readers(place)
        systems = {"memory": memory, "disk": disk}
        figures, reasons = measuring.figures, measuring.reasons
        return {
            "benchmark": "sync",
            "quick": quick,
            "started": started.isoformat(timespec="seconds"),
            "machine": {**machine.describe(), "pinned_to": cpu},
            "kernel": f"{platform.system()} {platform.release()}",
            "file_systems": {name: path and machine.file_system(path) for name, path in systems.items()},
            "versions": {**machine.versions(), **measuring.versions},
            "others": watch.seen(),
            "unit_ns": figures["U"].best,
            "rows": rows.results(figures, reasons),
            "peers": peers.results(figures, reasons),
            "figures": {name: {"best_ns": cost.best, "median_ns": cost.median} for name, cost in figures.items()},
        }


class _Measuring:
    """What has been measured so far, by case, and why a case was not."""

    def __init__(self, effort: _Effort, progress: Callable[[str], None]) -> None:
        self.effort = effort
        self.progress = progress
        self.figures: Figures = {}
        self.reasons: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def calls(self, place: str, disk: str | None, others: Sequence[Case]) -> None:
        """What takes nanoseconds, and the peers, all in the same rounds."""
        self.progress("calls, and peers")
        with ExitStack() as stack:
            roomy = place if disk is None or cases.has_room(place) else disk
            every = [*cases.calls(stack, place, roomy), *others]
            self.figures |= take(every, rounds=self.effort.rounds, slice_seconds=self.effort.slice_seconds)

    def writes(self, memory: str | None, program: Path | str) -> None:
        """Writes on tmpfs, beside the crate and beside the least that a write could do."""
        if memory is None:
            self._skip("no directory on tmpfs can be written", "write_36", "write_1mib", "memcpy_xxh3", "crate")
            return
        effort = self.effort
        with ExitStack() as stack:
            self.progress("writes of 1 MiB")
            self.figures |= take(cases.writes(stack, memory), rounds=effort.long_rounds, slice_seconds=0)
        with ExitStack() as stack:
            self.progress("writes of 36 bytes, and the Rust crate")
            ours = cases.crate_calls(stack, memory)
            options = {"rounds": effort.rounds, "slice_seconds": effort.slice_seconds}
            if isinstance(program, str):
                self._skip(program, "crate", "crate.write_raw_36_ns")
                self.figures |= take(ours, **options)  # type: ignore[arg-type]
                return
            figures, version = crate.alternate(program, memory, ours, runs=effort.crate_runs, **options)  # type: ignore[arg-type]
            self.figures |= figures
            self.versions["mmap-sync (Rust)"] = version

    def power(self, disk: str | None) -> None:
        """Writes that wait for the disk."""
        if disk is None:
            self._skip("no directory on a disk can be written: set TMPDIR to one", "power_36", "power_1mib")
            return
        self.progress("writes that wait for the disk")
        for name in ("36", "1mib"):  # apart: a large write makes the next small one slower
            with ExitStack() as stack:
                every = cases.durable_writes(stack, disk, name)
                self.figures |= take(every, rounds=self.effort.disk_rounds, slice_seconds=0)

    def readers(self, place: str) -> None:
        """Two processes at once."""
        self.progress("two readers")
        found = readers.both(place, rounds=self.effort.reader_rounds, seconds=self.effort.reader_seconds)
        if isinstance(found, str):
            self._skip(found, "readers_same", "readers_apart")
        else:
            self.figures |= found

    def _skip(self, reason: str, *names: str) -> None:
        self.reasons |= dict.fromkeys(names, reason)
