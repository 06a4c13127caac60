"""The second part of the demo: processes count the letters of the names together, and one of them is killed.

Each process says every letter on a pipe when it is counted, never before. So the pipes tell what the counters must
hold: nothing less, and for the process that was killed at most one more, which it had counted and not yet said.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from string import ascii_uppercase
from typing import Any

from mmapds import Counters, inspection
from mmapds.demo.cast import Cast, Worker
from mmapds.demo.worker import BLOCK, DONE, READY, TAKEN


class Counting(Worker):
    """A process that counts, and what it has said: bytes."""

    def __init__(self, role: str, path: str, number: int) -> None:
        self.heard: Counter[int] = Counter()
        super().__init__(role, path, number)

    def hear(self, data: bytes) -> None:
        self.heard.update(data)

    @property
    def done(self) -> bool:
        return self.times(DONE) > 0

    @property
    def letters(self) -> int:
        return sum(self.times(letter.encode()) for letter in ascii_uppercase)

    def times(self, byte: bytes) -> int:
        """How often it has said that."""
        return self.heard[byte[0]]


def play(path: str, seconds: float, count: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Plays this part in about so many seconds and returns what came of it."""
    with Counters(path, 0, padded=True) as c, Cast(path, Counting) as cast:
        workers = [cast.add("counter", number) for number in range(1, count + 1)]
        cast.until(lambda: all(worker.times(READY) for worker in workers), "the counters")
        progress(f"{count} processes count the letters of the names for {seconds:g} seconds")
        begin = time.monotonic()
        for worker in workers:
            worker.tell("go")
        victim, *alive = workers
        cast.until_time(begin + seconds / 2)
        cast.until(lambda: victim.letters, "letters of the first")
        victim.kill()
        before = sum(worker.letters for worker in alive)
        progress(f"{victim.name} (pid {victim.pid}) killed while it counted, after {victim.letters:,} letters")
        cast.until_time(begin + seconds)
        cast.until(lambda: sum(worker.letters for worker in alive) > before, "letters of the others")
        for worker in alive:
            worker.tell("stop")
        elapsed = time.monotonic() - begin
        cast.until(lambda: all(worker.silent for worker in workers), "the end of the counting")
        held = c.snapshot()
    findings = inspection.verify(path)
    said = {letter: sum(worker.times(letter.encode()) for worker in workers) for letter in ascii_uppercase}
    said["names"] = BLOCK * sum(worker.times(TAKEN) for worker in workers)
    return {
        "processes": count,
        "killed": 1,
        "seconds": elapsed,
        "letters": {letter: int(held[letter]) for letter in ascii_uppercase},
        "names": int(held["names"]),
        **_compared(held, said),
        "sound": all(finding.severity != "error" for finding in findings),
        "findings": findings,
    }


def _compared(held: Mapping[str, float], said: dict[str, int]) -> dict[str, int]:
    """What the counters hold beside what was said: how much is missing there, and how many steps nobody told of."""
    steps = {name: BLOCK if name == "names" else 1 for name in said}
    apart = {name: int(held[name]) - said[name] for name in said}
    return {
        "said": sum(said.values()) - said["names"],
        "lost": sum(-found for found in apart.values() if found < 0),
        "untold": sum(found // steps[name] for name, found in apart.items() if found > 0),
    }
