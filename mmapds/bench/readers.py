"""Two processes that read at the same time: of one Synchronizer, and each of its own.

A reader writes nothing but its own cache line, so the two must not slow each other down. Each process keeps both
Synchronizers open and is told in each round which one to read, and from when to when; the clock is CLOCK_MONOTONIC,
which is the same for all processes. They are kept on different processors, where that is allowed.

Run as a program this is one of the two: ``python -m mmapds.bench.readers SHARED OWN CPU``, with orders on standard
input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import timeit
from contextlib import ExitStack, suppress
from typing import Self

from mmapds import Synchronizer
from mmapds.bench.measure import Cost
from mmapds.bench.rows import SMALL

__all__ = ["both"]

_BATCH = 100  # times 10 reads: how often a reader looks at the clock
_LEAD = 3_000_000  # ns between an order and its start: longer than a pipe takes
_KINDS = ("same", "apart")


def both(directory: str, *, rounds: int, seconds: float) -> dict[str, Cost] | str:
    """Nanoseconds per read, in each of two processes, by kind; or why that cannot be measured."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return "needs two processors"
    with ExitStack() as stack:
        shared, *own = (f"{directory}/{name}" for name in ("shared", "own_0", "own_1"))
        for prefix in (shared, *own):
            stack.enter_context(Synchronizer(prefix, codec="raw")).write_bytes(bytes(SMALL))
        readers = [stack.enter_context(_Reader(shared, mine, cpu)) for mine, cpu in zip(own, cpus, strict=False)]
        for reader in readers:
            reader.ready()
        found: dict[str, list[float]] = {kind: [] for kind in _KINDS}
        for round_ in range(rounds + 1):
            for kind in reversed(_KINDS) if round_ % 2 else _KINDS:
                start = time.monotonic_ns() + _LEAD
                for reader in readers:
                    reader.order(kind, start, start + round(seconds * 1e9))
                if round_:  # the first one warms up
                    found[kind].append(sum(reader.rate() for reader in readers))
                else:
                    _ = [reader.rate() for reader in readers]
    return {f"readers_{kind}": _cost(rates) for kind, rates in found.items()}


def _cost(rates: list[float]) -> Cost:
    """From reads per nanosecond of both together to nanoseconds per read of each."""
    times = sorted(2 / rate for rate in rates)
    return Cost(times[0], times[len(times) // 2])


class _Reader:
    """The other end of one reader process."""

    def __init__(self, shared: str, own: str, cpu: int) -> None:
        command = [sys.executable, "-m", "mmapds.bench.readers", shared, own, str(cpu)]
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
        reads, elapsed = self._answer()
        return float(reads / elapsed)

    def _answer(self) -> list[int]:
        line = self._out.readline()
        if not line:
            raise RuntimeError(f"a reader process ended early, with status {self._process.wait()}; its error is above")
        answer: list[int] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._in.close()  # the end of its orders
        self._process.wait()
        self._out.close()


def _serve(shared: str, own: str, cpu: str) -> None:
    with suppress(OSError):  # else wherever the kernel puts us
        os.sched_setaffinity(0, {int(cpu)})
    with Synchronizer(shared) as same, Synchronizer(own) as apart:
        text = "\n".join(["with s.read():\n    pass"] * 10)
        timers = {
            kind: timeit.Timer(text, "s = _s", globals={"_s": s}) for kind, s in zip(_KINDS, (same, apart), strict=True)
        }
        for timer in timers.values():
            timer.timeit(_BATCH)
        _say([0, 1])
        for line in sys.stdin:
            kind, start, end = json.loads(line)
            _say(_read_until(timers[kind], start, end))


def _read_until(timer: timeit.Timer, start: int, end: int) -> list[int]:
    """How many reads there were, in how many nanoseconds; at least one batch, on a busy machine after the end."""
    reads = 0
    began = time.monotonic_ns()
    while began < start:
        began = time.monotonic_ns()
    while True:
        timer.timeit(_BATCH)
        reads += 10 * _BATCH
        now = time.monotonic_ns()
        if now >= end:
            return [reads, now - began]


def _say(answer: list[int]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
