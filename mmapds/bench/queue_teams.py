"""Processes that put into a queue and take from it at the same time, each on a processor of its own where it may.

Each opens everything first, and is told in each round what to do, how often, and from when on; the clock is
CLOCK_MONOTONIC, which is the same for all processes. A round ends when the last of them is done: for a producer and a
consumer, when the last item has arrived.

They are started anew (spawned), not forked: they share a path with each other, and no memory. Queues that can only be
inherited are handed to them by multiprocessing.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self, TypeAlias

from mmapds import Queue
from mmapds.bench import futexes
from mmapds.bench.measure import Case, Cost, Figures, statement
from mmapds.bench.queue_cases import ITEM
from mmapds.bench.run import Run

__all__ = ["Team", "producers", "segments", "two"]

Work: TypeAlias = tuple[Any, ...]
"""The name of a case of `_CASES`, and what it takes."""

_LEAD = 3_000_000  # ns between an order and its start: longer than a pipe takes
_WATCHDOG = 120.0  # seconds for a round of a fraction of one
_PRODUCERS = 8
_PUTS = 50  # by each producer, in a round
_BALLS = {"wake": 0, "sleep": 100_000}
"""Kinds of ping-pong, and nanoseconds for which the ball is kept: with a pause, the other is asleep when it comes."""
_OTHERS = ("", "_pipe", "_futex")
_SEGMENT = 8 << 20
_BATCH = 100
_FULL = 10_000  # items; then the producer waits

spawn = multiprocessing.get_context("spawn")


class Team:
    """Some processes, and what each can do, by kind."""

    def __init__(self, members: Sequence[Mapping[str, Work]], cpus: Sequence[int] = ()) -> None:
        self._processes = []
        self._lines: list[Connection] = []
        for number, work in enumerate(members):
            line, theirs = spawn.Pipe()
            cpu = cpus[number] if cpus else None
            process = spawn.Process(target=_serve, args=(theirs, cpu, dict(work)), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._lines.append(line)

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self._processes]

    def ready(self) -> None:
        """Waits until all have opened their files."""
        for number in range(len(self._lines)):
            self._answer(number)

    def time(
        self, kind: str, count: int, members: int | None = None, meanwhile: Callable[[], None] | None = None
    ) -> float:
        """Nanoseconds until all members (or the first few) have done it `count` times."""
        start = time.monotonic_ns() + _LEAD
        chosen = range(len(self._lines) if members is None else members)
        for number in chosen:
            self._lines[number].send((kind, count, start))
        while meanwhile is not None and not self._lines[chosen[-1]].poll(0.001):
            meanwhile()
        return float(max(self._answer(number) for number in chosen) - start)

    def _answer(self, number: int) -> int:
        line = self._lines[number]
        try:
            if line.poll(_WATCHDOG):
                found: int = line.recv()
                return found
        except EOFError:
            self._processes[number].join()
            status = self._processes[number].exitcode
            raise RuntimeError(f"one of several processes ended early, with status {status}; see above") from None
        raise RuntimeError(f"one of several processes did not do in {_WATCHDOG:g} seconds what takes a moment")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for line in self._lines:
            line.close()  # the end of its orders
        for process in self._processes:
            process.join(1 if error[0] else _WATCHDOG)
            process.kill()  # one that waits for an item that never comes
            process.join()
            process.close()


# ---- in the other processes --------------------------------------------------------------------------------------


def _mmapds(stack: ExitStack, path: str, **options: Any) -> Queue:
    return stack.enter_context(Queue(path, codec="raw", **options))


def _put(stack: ExitStack, q: Any) -> Case:
    q = _mmapds(stack, q) if isinstance(q, str) else q
    return statement("put", "q.put(item)", {"q": q, "item": ITEM})


def _put_one(stack: ExitStack, path: str) -> Case:
    return statement("put", "q.put(item)", {"q": _mmapds(stack, path), "item": ITEM}, repeat=1)


def _get(stack: ExitStack, q: Any) -> Case:
    q = _mmapds(stack, q) if isinstance(q, str) else q
    return statement("get", "q.get()", {"q": q})


def _send(stack: ExitStack, end: Connection) -> Case:  # noqa: ARG001 - as the others
    return statement("send", "end.send_bytes(item)", {"end": end, "item": ITEM})


def _receive(stack: ExitStack, end: Connection) -> Case:  # noqa: ARG001 - as the others
    return statement("receive", "end.recv_bytes()", {"end": end})


def _ping(stack: ExitStack, there: str, back: str, pause: int) -> Case:
    there_, back_ = _mmapds(stack, there), _mmapds(stack, back)
    return _ball(there_.put, back_.get, pause, pong=False)


def _pong(stack: ExitStack, there: str, back: str, pause: int) -> Case:
    there_, back_ = _mmapds(stack, there), _mmapds(stack, back)
    return _ball(back_.put, there_.get, pause, pong=True)


def _ping_pipe(stack: ExitStack, end: Connection, pause: int) -> Case:  # noqa: ARG001 - as the others
    return _ball(end.send_bytes, end.recv_bytes, pause, pong=False)


def _pong_pipe(stack: ExitStack, end: Connection, pause: int) -> Case:  # noqa: ARG001 - as the others
    return _ball(end.send_bytes, end.recv_bytes, pause, pong=True)


def _ball(hit: Callable[[bytes], object], catch: Callable[[], object], pause: int, *, pong: bool) -> Case:
    """Throws it, and waits for it; the other way round for who answers. Keeps it for so many nanoseconds."""
    parts = ["hit(item)", "catch()"]
    if pause:
        parts.insert(0, "until = now() + pause\nwhile now() < until:\n    pass")
    if pong:
        parts = parts[-1:] + parts[:-1]
    names = {"hit": hit, "catch": catch, "item": ITEM, "now": time.monotonic_ns, "pause": pause}
    return statement("ball", "\n".join(parts), names, repeat=1)


def _put_many(stack: ExitStack, path: str) -> Case:
    names = {"q": _mmapds(stack, path), "batch": [ITEM] * _BATCH}
    return statement("put_many", "q.put_many(batch)", names, repeat=1)


def _get_many(stack: ExitStack, path: str) -> Case:
    """As many as in `_put_many`; in other portions."""
    q = _mmapds(stack, path)

    def clock(count: int) -> float:
        start = time.perf_counter()
        left = count * _BATCH
        while left:
            left -= len(q.get_many(min(left, _BATCH)))
        return time.perf_counter() - start

    return Case("get_many", clock, looped=False)


_CASES: Mapping[str, Callable[..., Case]] = {
    "put": _put,
    "put_one": _put_one,
    "get": _get,
    "send": _send,
    "receive": _receive,
    "ping": _ping,
    "pong": _pong,
    "ping_pipe": _ping_pipe,
    "pong_pipe": _pong_pipe,
    "put_many": _put_many,
    "get_many": _get_many,
}


def _serve(line: Connection, cpu: int | None, work: Mapping[str, Work]) -> None:
    if cpu is not None:
        with suppress(OSError):  # else wherever the kernel puts us
            os.sched_setaffinity(0, {cpu})
    with ExitStack() as stack:
        cases = {kind: _CASES[what](stack, *names) for kind, (what, *names) in work.items()}
        line.send(0)
        with suppress(EOFError):
            while True:
                kind, count, start = line.recv()
                clock = cases[kind].clock
                if cpu is None:  # there may be more of us than processors
                    time.sleep(max(0, start - time.monotonic_ns()) / 1e9)
                while time.monotonic_ns() < start:
                    pass
                clock(count)
                line.send(time.monotonic_ns())


# ---- what is timed -----------------------------------------------------------------------------------------------


def two(run: Run, directory: str) -> None:
    """A producer and a consumer, and two processes that wake each other in turn; each with what it is compared with."""
    names = ("two", "two_simple", "two_fast", "two_pipe", *(f"{kind}{of}" for kind in _BALLS for of in _OTHERS))
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        run.skip("needs two processors", *names)
        return
    with ExitStack() as stack:
        first, second = _pairs(run, stack, directory)
        program = futexes.build(directory)
        timers: dict[str, Callable[[int], float]] = {}
        team = stack.enter_context(Team((first, second), cpus))
        team.ready()
        for kind in first:
            if kind.startswith("two"):
                timers[kind] = _timer(team, kind, 10, 0)  # the statement stands there ten times
            else:
                timers[kind] = _timer(team, kind, 1, _BALLS[kind.partition("_")[0]])
        if isinstance(program, str):
            run.skip(program, *(f"{kind}_futex" for kind in _BALLS))
        else:
            for kind, pause in _BALLS.items():
                timers[f"{kind}_futex"] = _futexes(program, (cpus[0], cpus[1]), pause)
        run.figures |= _turns(timers, run.effort.pair_rounds, run.effort.pair_seconds)


def _timer(team: Team, kind: str, each: int, pause: int) -> Callable[[int], float]:
    return lambda count: max(1.0, team.time(kind, count) / count / each - 2 * pause)


def _futexes(program: Path, cpus: tuple[int, int], pause: int) -> Callable[[int], float]:
    return lambda count: max(1.0, futexes.play(program, cpus, count, pause) - 2 * pause)


def _pairs(run: Run, stack: ExitStack, directory: str) -> tuple[dict[str, Work], dict[str, Work]]:
    """By kind, what the one does and what the other does."""
    paths = [f"{directory}/{name}" for name in ("two", "there", "back")]
    for path in paths:
        Queue(path, codec="raw").close()
    simple = spawn.SimpleQueue()
    stack.callback(simple.close)
    first: dict[str, Work] = {"two": ("put", paths[0]), "two_simple": ("put", simple)}
    second: dict[str, Work] = {"two": ("get", paths[0]), "two_simple": ("get", simple)}
    first["two_pipe"], second["two_pipe"] = _ends(stack, ("send",), ("receive",))
    for kind, pause in _BALLS.items():
        first[kind], second[kind] = ("ping", *paths[1:], pause), ("pong", *paths[1:], pause)
        first[f"{kind}_pipe"], second[f"{kind}_pipe"] = _ends(stack, ("ping_pipe", pause), ("pong_pipe", pause))
    try:
        import faster_fifo
    except ImportError as error:
        run.skip(f"faster_fifo cannot be imported: {error}", "two_fast")
    else:
        fast = faster_fifo.Queue(max_size_bytes=64 << 20)
        first["two_fast"], second["two_fast"] = ("put", fast), ("get", fast)
    return first, second


def _ends(stack: ExitStack, one: Work, other: Work) -> tuple[Work, Work]:
    """Each with its end of a pipe."""
    ends = spawn.Pipe()
    for end in ends:
        stack.callback(end.close)
    return (one[0], ends[0], *one[1:]), (other[0], ends[1], *other[1:])


def _turns(timers: Mapping[str, Callable[[int], float]], rounds: int, seconds: float) -> Figures:
    """Times all in turn, as `measure.take` does; a round of one lasts about so long."""
    counts = {}
    for kind, timer in timers.items():
        timer(10)  # the first says nothing about the others
        start = time.monotonic()
        timer(100)
        counts[kind] = max(10, round(100 * seconds / (time.monotonic() - start)))
    found: dict[str, list[float]] = {kind: [] for kind in timers}
    for round_ in range(rounds):
        for kind in reversed(list(timers)) if round_ % 2 else timers:
            found[kind].append(timers[kind](counts[kind]))
    return {kind: _cost(times) for kind, times in found.items()}


def _cost(times: Sequence[float]) -> Cost:
    ordered = sorted(times)
    return Cost(ordered[0], ordered[len(ordered) // 2])


def producers(run: Run, disk: str) -> None:
    """Several producers at once whose puts wait for the disk, and one alone."""
    path = f"{disk}/producers"
    Queue(path, codec="raw", durability="power").close()
    with Team([{"put": ("put_one", path)}] * _PRODUCERS) as team:
        team.ready()
        timers: dict[str, Callable[[int], float]] = {
            "power_one": lambda count: team.time("put", count, 1) / count,
            "power_eight": lambda count: team.time("put", count) / count / _PRODUCERS,
        }
        for timer in timers.values():
            timer(_PUTS)
        found: dict[str, list[float]] = {kind: [] for kind in timers}
        for _ in range(max(1, run.effort.disk_rounds // 4)):
            for kind, timer in timers.items():
                found[kind].append(timer(_PUTS))
        run.figures |= {kind: _cost(times) for kind, times in found.items()}


def segments(run: Run, directory: str, count: int) -> None:
    """The greatest number of segments at one time, while items pass through a queue whose consumer keeps up."""
    path = f"{directory}/segments"
    Queue(path, _FULL, codec="raw", segment_size=_SEGMENT).close()
    most = 0
    with Team([{"pass": ("put_many", path)}, {"pass": ("get_many", path)}]) as team:
        team.ready()

        def look() -> None:
            nonlocal most
            before, after = (set(_segments(path, team.pids)) for _ in range(2))
            most = max(most, len(before & after))  # those that were all there in between

        look()
        team.time("pass", count // _BATCH, meanwhile=look)
        look()
    run.figures |= {"segments": Cost(most, most), "3_files": Cost(3, 3)}


def _segments(path: str, pids: Sequence[int]) -> Iterator[int]:
    """The inodes of those that have a name, and of those without one that somebody still maps: all that take space."""
    for entry in os.scandir(path):
        if entry.name.endswith(".segment"):
            yield entry.inode()
    for pid in pids:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            yield from (int(line.split()[4]) for line in maps if f"{path}/" in line and ".segment" in line)
