"""How a time is taken.

What is compared is timed in the same rounds: every round gives each case one short slice, odd rounds in reverse order,
so that whatever disturbs the machine (another process, a change of clock frequency, a warm-up) meets all of them alike.
The figure of a call is its best slice: disturbance only ever adds. The median is kept too: their quotient says how much
disturbance there was, and for a disk it is the better figure. What the loop costs by itself is timed in the same rounds
and subtracted.

A statement stands several times in the body of the loop, and the names it uses are local variables, which is the
cheapest thing Python can do with a name; so a figure contains the call and next to nothing around it.

Prior art: `timeit`, which compiles and runs the loops here and stops the garbage collector meanwhile; Go's testing.B;
"Robust benchmarking in noisy environments" (Chen and Revels), on why the minimum is the estimator to take.

Rejected: one long run per case, in which two cases meet different machines; means, which measure the neighbours.
"""

from __future__ import annotations

import os
import statistics
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Case", "Clock", "Cost", "Figures", "noise", "only", "pinned", "statement", "take"]

Clock = Callable[[int], float]
"""Runs something so many times, and returns how many seconds that took."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Nanoseconds of one operation: the best slice and the median of all."""

    best: float
    median: float


Figures = dict[str, Cost]


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time. A call of `clock` with n makes n * `each` operations."""

    name: str
    clock: Clock
    each: int = 1
    looped: bool = True  # `clock` is a loop of timeit's, whose own cost is to be subtracted


def statement(name: str, text: str, names: Mapping[str, object], *, repeat: int = 10, each: int = 1) -> Case:
    """A case of `repeat` copies of a statement, each of which is `each` operations. `names` become local variables."""
    setup = "\n".join(f"{name} = _{name}" for name in names) or "pass"
    timer = timeit.Timer("\n".join([text] * repeat), setup, globals={f"_{name}": names[name] for name in names})
    return Case(name, timer.timeit, repeat * each)


def take(cases: Sequence[Case], *, rounds: int, slice_seconds: float) -> Figures:
    """Times all cases in turn, `rounds` times; slices last about `slice_seconds`, or one call if that takes longer."""
    loop = Case("", timeit.Timer("pass").timeit)
    every = [loop, *cases]
    counts = {case.name: _count(case, slice_seconds) for case in every}
    slices: dict[str, list[float]] = {case.name: [] for case in every}
    for round_ in range(rounds):
        for case in reversed(every) if round_ % 2 else every:
            count = counts[case.name]
            slices[case.name].append(case.clock(count) / count)
    own = min(slices[loop.name])
    figures: Figures = {}
    for case in cases:
        less = own if case.looped else 0.0
        taken = slices[case.name]
        # Never 0: a ratio is made of it.
        best, median = (max(t - less, 1e-11) / case.each * 1e9 for t in (min(taken), statistics.median(taken)))
        figures[case.name] = Cost(best, median)
    return figures


def _count(case: Case, slice_seconds: float) -> int:
    """How many calls fill a slice. The first call does what is done once, and says nothing about the others."""
    case.clock(1)
    count = 1
    while slice_seconds:
        taken = min(case.clock(count) for _ in range(3))
        if taken >= slice_seconds / 2:
            return max(1, round(count * slice_seconds / taken))
        count *= 2
    return 1


@contextmanager
def pinned() -> Iterator[int | None]:
    """Keeps this process on one processor meanwhile; yields its number, or None where that is not allowed."""
    allowed = os.sched_getaffinity(0)
    cpu = max(allowed)  # interrupts tend to go to the first
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError:
        yield None
        return
    try:
        yield cpu
    finally:
        os.sched_setaffinity(0, allowed)


def noise(*costs: Cost) -> float:
    """How much slower the median was than the best, 0.0 in perfect quiet; the worst of several."""
    return max(cost.median / cost.best - 1 if cost.best else 0.0 for cost in costs)


def only(name: str, function: Callable[[], float], *, each: int = 1) -> Case:
    """A case whose function says itself how many seconds the part that counts has taken: `each` operations."""

    def clock(count: int) -> float:
        return sum(function() for _ in range(count))

    return Case(name, clock, each, looped=False)
