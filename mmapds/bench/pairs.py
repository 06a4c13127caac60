"""Two processes at work at the same time, each on a processor of its own, where that is allowed.

What is to be shown is that they do not slow each other down: so they do the same in turn with one file and each with a
file of its own. Each process opens everything first, and is told in each round what to do, and from when to when; the
clock is CLOCK_MONOTONIC, which is the same for all processes.

Run as a program this is one of the two: ``python -m mmapds.bench.pairs CPU WORK``, with orders on standard input. WORK
is a JSON object: for each kind, what to do and with which files, as `both` got it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Self, TypeAlias

from mmapds import Counters, Synchronizer
from mmapds.bench.measure import Case, Cost, statement

__all__ = ["Kinds", "both"]

Work: TypeAlias = tuple[str, ...]
"""The name of a case of `_CASES`, and what it takes."""

Kinds: TypeAlias = Mapping[str, tuple[Work, Work]]
"""By kind, the work of the one process and of the other."""

_BATCH = 100  # times 10 operations: how often a process looks at the clock
_LEAD = 3_000_000  # ns between an order and its start: longer than a pipe takes


def both(kinds: Kinds, *, rounds: int, seconds: float) -> dict[str, Cost] | str:
    """Nanoseconds per operation, in each of two processes, by kind; or why that cannot be measured."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return "needs two processors"
    with ExitStack() as stack:
        workers = [
            stack.enter_context(_Worker({kind: work[i] for kind, work in kinds.items()}, cpus[i])) for i in (0, 1)
        ]
        for worker in workers:
            worker.ready()
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for round_ in range(rounds + 1):
            for kind in reversed(list(kinds)) if round_ % 2 else kinds:
                start = time.monotonic_ns() + _LEAD
                for worker in workers:
                    worker.order(kind, start, start + round(seconds * 1e9))
                rate = sum(worker.rate() for worker in workers)
                if round_:  # the first one warms up
                    found[kind].append(rate)
    return {kind: _cost(rates) for kind, rates in found.items()}


def _cost(rates: list[float]) -> Cost:
    """From operations per nanosecond of both together to nanoseconds per operation of each."""
    times = sorted(2 / rate for rate in rates)
    return Cost(times[0], times[len(times) // 2])


class _Worker:
    """The other end of one of the processes."""

    def __init__(self, work: Mapping[str, Work], cpu: int) -> None:
        command = [sys.executable, "-P", "-m", "mmapds.bench.pairs", str(cpu), json.dumps(work)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin
        assert self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout

    def ready(self) -> None:
        """Waits until it has opened its files."""
        self._answer()

    def order(self, kind: str, start: int, end: int) -> None:
        self._in.write(json.dumps([kind, start, end]) + "\n")
        self._in.flush()

    def rate(self) -> float:
        done, elapsed = self._answer()
        return float(done / elapsed)

    def _answer(self) -> list[int]:
        line = self._out.readline()
        if not line:
            raise RuntimeError(f"one of two processes ended early, with status {self._process.wait()}; see above")
        answer: list[int] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._in.close()  # the end of its orders
        self._process.wait()
        self._out.close()


def _read(stack: ExitStack, prefix: str) -> Case:
    s = stack.enter_context(Synchronizer(prefix))
    return statement("read", "with s.read():\n    pass", {"s": s})


def _add(stack: ExitStack, path: str, name: str) -> Case:
    counter = stack.enter_context(Counters(path)).counter(name)
    return statement("add", "counter.fetch_add()", {"counter": counter})


_CASES: Mapping[str, Callable[..., Case]] = {"read": _read, "add": _add}


def _serve(cpu: str, work: str) -> None:
    with suppress(OSError):  # else wherever the kernel puts us
        os.sched_setaffinity(0, {int(cpu)})
    with ExitStack() as stack:
        cases = {kind: _CASES[what](stack, *names) for kind, (what, *names) in json.loads(work).items()}
        for case in cases.values():
            case.clock(_BATCH)
        _say([0, 1])
        for line in sys.stdin:
            kind, start, end = json.loads(line)
            _say(_work_until(cases[kind], start, end))


def _work_until(case: Case, start: int, end: int) -> list[int]:
    """How many operations there were, in how many nanoseconds; at least one batch, on a busy machine after the end."""
    done = 0
    began = time.monotonic_ns()
    while began < start:
        began = time.monotonic_ns()
    while True:
        case.clock(_BATCH)
        done += _BATCH * case.each
        now = time.monotonic_ns()
        if now >= end:
            return [done, now - began]


def _say(answer: list[int]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
