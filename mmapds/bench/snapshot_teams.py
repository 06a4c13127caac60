"""Other processes with a SnapshotMap: what they see of a commit, and how much memory they take.

Each is a new Python, not a fork: it shares a path with us, and no memory. Run as a program this is one of them:
``python -m mmapds.bench.snapshot_teams WORK ARGUMENTS``, where WORK is one of

opened PATH COUNT        opens a map, looks up a thousand keys, says how many bytes of anonymous memory that took
built PATH COUNT LIMIT   builds a map of so many entries, which it makes up as it goes, and says how long that took
touched PATH             reads a map, all of it, says so, and waits
follows PATH CPU HOW     for each commit, says how many nanoseconds after its beginning it has found it

Memory is what the kernel says of a process, in /proc: RssAnon, of which it keeps no greatest value, so that one is
taken by looking every few milliseconds; and PSS, where a page that four processes map counts a quarter for each.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from itertools import repeat
from typing import Self

from mmapds import SnapshotMap
from mmapds.bench.measure import Cost
from mmapds.bench.run import Run
from mmapds.bench.snapshot_cases import KEY

__all__ = ["Process", "built", "entries", "follower", "opened", "workers"]

_GETS = 1000
_LIMIT = 64 << 20
_MB = 1e6  # bytes
_LOOK = 0.002  # seconds between two looks at a process
_PAUSE = 0.0005  # seconds between two commits: a follower that waits is asleep by then
_SEEN = b"seen"
_END = b"end"
_SIZE = 100
_WORKERS = 4
_WHOLE = 1 << 30
_VALUE = 4096
_STRIDE = 7_368_787  # prime


class Process:
    """One of them, from here."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-P", "-m", "mmapds.bench.snapshot_teams", *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def says(self) -> int:
        """What it says next, a number."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"another process ended early, with status {self._process.wait()}; see above")
        return int(line)

    def watched(self) -> Iterator[float]:
        """Bytes of anonymous memory, again and again until it ends."""
        while self._process.poll() is None:
            with suppress(FileNotFoundError, KeyError):  # it ends just now
                yield _memory(f"/proc/{self.pid}/status")["RssAnon"]
            time.sleep(_LOOK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()  # what it waits for
        if error[0] is not None:
            self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def _memory(path: str) -> dict[str, float]:
    """Bytes, by name; of a file in /proc."""
    with open(path, encoding="ascii", errors="replace") as file:
        lines = [line.split() for line in file]
    return {line[0].rstrip(":"): float(line[1]) * 1024 for line in lines if len(line) == 3 and line[2] == "kB"}


# ---- what is measured ----------------------------------------------------------------------------------------------


def opened(run: Run, directory: str, count: int) -> None:
    """Anonymous memory that opening and a thousand look-ups take."""
    with Process("opened", f"{directory}/map", count) as process:
        taken = round(process.says() / _MB, 2)
    run.figures |= {"memory": Cost(taken, taken), "8_mb": Cost(8, 8)}


def built(run: Run, directory: str, count: int, rounds: int) -> None:
    """Building with little memory: how long an entry takes, and the most anonymous memory there was at any time."""
    times, most = [], 0.0
    for _ in range(rounds):
        with Process("built", f"{directory}/limited", count, _LIMIT) as process:
            most = max(most, *process.watched())
            times.append(process.says() / count)
        shutil.rmtree(f"{directory}/limited")
    peak, allowed = round(most / _MB, 1), round(_LIMIT / _MB + 64, 1)
    run.figures |= {
        "build_limit": Cost(min(times), sorted(times)[len(times) // 2]),
        "build_memory": Cost(peak, peak),
        "131_mb": Cost(allowed, allowed),
    }


def follower(run: Run, directory: str, commits: int) -> None:
    """How long after a commit has begun another process has what it wrote: one that looks, and one that sleeps."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        run.skip("needs two processors", "seen", "seen_asleep")
        return
    path = f"{directory}/map"
    with SnapshotMap(path) as m, run.pinned():
        for name, how in (("seen", "looks"), ("seen_asleep", "waits")):
            _change(m, b"")
            with Process("follows", path, cpus[0], how) as other:
                other.says()
                found = []
                for _ in range(commits):
                    time.sleep(_PAUSE)
                    _change(m, b"%0*d" % (_SIZE, time.monotonic_ns()))
                    found.append(other.says())
                _change(m, _END)
            run.figures[name] = Cost(min(found), sorted(found)[len(found) // 2])


def _change(m: SnapshotMap, value: bytes) -> None:
    with m.transaction() as txn:
        txn[_SEEN] = value


def workers(run: Run, directory: str) -> None:
    """The memory of processes that have all of one map in theirs."""
    size = max(1 << 20, round(_WHOLE * run.effort.amount))
    if shutil.disk_usage(directory).free < 2 * size:
        run.skip(f"there is no room for {size >> 19} MiB", "workers")
        return
    path = f"{directory}/whole"
    SnapshotMap.build(path, ((KEY % i, bytes(_VALUE)) for i in range(size // (_VALUE + 64))), codec="raw")
    with ExitStack() as stack:
        team = [stack.enter_context(Process("touched", path)) for _ in range(_WORKERS)]
        for process in team:
            process.says()
        taken = sum(_memory(f"/proc/{process.pid}/smaps_rollup")["Pss"] for process in team)
    shutil.rmtree(path)
    found, most = (round(value / (1 << 20), 1) for value in (taken, 1.15 * size))
    run.figures |= {"workers": Cost(found, found), "most_pss": Cost(most, most)}


# ---- in the other processes ----------------------------------------------------------------------------------------


def _opened(path: str, count: str) -> None:
    before = _memory("/proc/self/status")["RssAnon"]
    m = SnapshotMap(path)
    for _ in range(_GETS):
        m[KEY % random.randrange(int(count))]
    _say(_memory("/proc/self/status")["RssAnon"] - before)
    m.close()


def entries(count: int) -> Iterator[tuple[bytes, bytes]]:
    """All keys below `count`, none twice, in an order that has nothing to do with theirs; none of them is kept."""
    numbers = map(count.__rmod__, range(0, _STRIDE * count, _STRIDE))
    return zip(map(KEY.__mod__, numbers), repeat(b"x" * _SIZE))


def _built(path: str, count: str, limit: str) -> None:
    start = time.monotonic_ns()
    SnapshotMap.build(path, entries(int(count)), codec="raw", memory_limit=int(limit))
    _say(time.monotonic_ns() - start)


def _touched(path: str) -> None:
    with SnapshotMap(path, mode="readonly") as m:
        m.verify()  # reads all blocks
        for _ in m.items():
            pass
        _say(len(m))
        sys.stdin.read()


def _follows(path: str, cpu: str, how: str) -> None:
    with suppress(OSError):  # else wherever the kernel puts us
        os.sched_setaffinity(0, {int(cpu)})
    with SnapshotMap(path) as m:
        last, version = m[_SEEN], m.version
        _say(0)
        while True:
            if how == "waits":
                version = m.wait(version) or version
            while (value := m.get(_SEEN)) == last:
                pass
            now = time.monotonic_ns()
            if value == _END:
                return
            last = value
            _say(now - int(value))


_WORK: Mapping[str, Callable[..., None]] = {
    "opened": _opened,
    "built": _built,
    "touched": _touched,
    "follows": _follows,
}


def _say(number: float) -> None:
    sys.stdout.write(f"{number:.0f}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _WORK[sys.argv[1]](*sys.argv[2:])
