"""One run of a benchmark: the places, the effort, what was measured so far, and the document that comes of it.

Promise
    A run measures every promise of its table in `mmapds.bench.rows`, and the peers that are installed, and returns all
    of it as plain data with what it ran on. A row that cannot be measured here says why. Files are made in new
    directories, one in memory and one on a disk, and removed; processes that were started have ended. Nothing is
    asserted: a figure that misses its target is a result.

What a figure means, and how to read it, is in docs/benchmarks.md.
"""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mmapds.bench import machine, measure, pairs, rows
from mmapds.bench.measure import Case, Figures, take

__all__ = ["FULL", "QUICK", "Effort", "Run", "perform"]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a run takes."""

    rounds: int  # of slices, for calls of nanoseconds
    slice_seconds: float
    long_rounds: int  # for calls of microseconds and more
    disk_rounds: int  # few: a disk that takes many flushes at once in a burst is slow after it
    program_runs: int  # of a program that is timed between our own slices
    pair_rounds: int
    pair_seconds: float
    start_runs: int  # of what begins with a process that is killed
    amount: float  # share of the large numbers of items that wait, or pass


FULL = Effort(200, 0.002, 200, 60, 4, 40, 0.05, 7, 1.0)
QUICK = Effort(10, 0.0005, 10, 5, 1, 3, 0.02, 1, 0.02)


class Run:
    """What has been measured so far, by case, and why a case was not."""

    def __init__(self, effort: Effort, memory: str | None, disk: str | None, progress: Callable[[str], None]) -> None:
        place = memory or disk
        if place is None:
            raise FileNotFoundError("no directory on tmpfs, ext4, xfs or the like can be written: set TMPDIR to one")
        self.effort = effort
        self.memory = memory
        self.disk = disk
        self.place = place  # the better of the two
        self.progress = progress
        self.cpu: int | None = None
        self.figures: Figures = {}
        self.reasons: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """On one processor, if that is allowed."""
        with measure.pinned() as self.cpu:
            yield

    def calls(self, cases: Sequence[Case]) -> None:
        """Times what takes nanoseconds."""
        self.figures |= take(cases, rounds=self.effort.rounds, slice_seconds=self.effort.slice_seconds)

    def warm_calls(self, cases: Sequence[Case]) -> None:
        """Times what takes nanoseconds when the processor's caches hold what every call needs, and more when they do
        not. In longer slices, so that what the other cases leave in the caches is soon gone."""
        effort = self.effort
        self.figures |= take(cases, rounds=max(2, effort.rounds // 10), slice_seconds=50 * effort.slice_seconds)

    def long_calls(self, cases: Sequence[Case]) -> None:
        """Times what takes microseconds and more: one call is a slice."""
        self.figures |= take(cases, rounds=self.effort.long_rounds, slice_seconds=0)

    def disk_calls(self, cases: Sequence[Case]) -> None:
        """Times what waits for the disk."""
        self.figures |= take(cases, rounds=self.effort.disk_rounds, slice_seconds=0)

    def pairs(self, kinds: pairs.Kinds) -> None:
        """Times two processes at once."""
        found = pairs.both(kinds, rounds=self.effort.pair_rounds, seconds=self.effort.pair_seconds)
        if isinstance(found, str):
            self.skip(found, *kinds)
        else:
            self.figures |= found

    def skip(self, reason: str, *names: str) -> None:
        """These cases are not timed."""
        self.reasons |= dict.fromkeys(names, reason)


def perform(
    benchmark: str,
    measure_all: Callable[[Run], None],
    promises: Sequence[rows.Row],
    peers: Sequence[rows.Peer],
    packages: Sequence[str],
    *,
    quick: bool,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Makes the places, measures, and returns the document. `packages` take part, if they are installed."""
    started = dt.datetime.now(dt.UTC)
    watch = machine.Watch()
    with machine.directories() as (memory, disk):
        run = Run(QUICK if quick else FULL, memory, disk, progress)
        measure_all(run)
        systems = {"memory": memory, "disk": disk}
        return {
            "benchmark": benchmark,
            "quick": quick,
            "started": started.isoformat(timespec="seconds"),
            "machine": {**machine.describe(), "pinned_to": run.cpu},
            "kernel": f"{platform.system()} {platform.release()}",
            "file_systems": {name: path and machine.file_system(path) for name, path in systems.items()},
            "versions": {**machine.versions(packages), **run.versions},
            "others": watch.seen(),
            "unit_ns": run.figures["U"].best,
            "rows": rows.promises(promises, run.figures, run.reasons),
            "peers": rows.peers(peers, run.figures, run.reasons),
            "figures": {name: {"best_ns": cost.best, "median_ns": cost.median} for name, cost in run.figures.items()},
        }
