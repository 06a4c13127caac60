"""The third part of the demo: processes work off jobs together, and one of them is killed with a job in its hands.

A job is a number, of a block of the table; the work is to normalise its characters. Whoever has done it puts the result
into another queue, and then acknowledges the job. So the results tell which jobs were done: each that was put, none
twice but for one that was in the hands of the process that was killed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from queue import Empty
from typing import Any

from mmapds import Queue, inspection
from mmapds.demo.cast import Cast, Worker
from mmapds.demo.worker import blocks, changing, results_of

_SEGMENT = 1 << 20
_ENOUGH = 10_000  # jobs that wait: more than are done between two looks
_LOOK = 0.02  # seconds


def play(path: str, seconds: float, count: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Plays this part in about so many seconds and returns what came of it."""
    with (
        Queue(path, segment_size=_SEGMENT) as jobs,
        Queue(results_of(path), segment_size=_SEGMENT) as results,
        Cast(path, Worker) as cast,
    ):
        found = _play(cast, _Books(jobs, results), seconds, count, progress)
    findings = [finding for queue in (path, results_of(path)) for finding in inspection.verify(queue)]
    sound = all(finding.severity != "error" for finding in findings)
    return {"processes": count, "killed": 1, **found, "sound": sound, "findings": findings}


class _Books:
    """What was put, and what has come of it."""

    def __init__(self, jobs: Queue, results: Queue) -> None:
        self.jobs = jobs
        self.results = results
        self.right = [changing(block) for block in blocks()]
        self.put = 0
        self.wrong = 0
        self.done: Counter[int] = Counter()

    def collect(self) -> None:
        """Takes in the results that are there."""
        while True:
            try:
                results = self.results.get_many(1000, block=False)
            except Empty:
                return
            for number, changed in results:
                self.done[number] += 1
                self.wrong += changed != self.right[number % len(self.right)]

    def keep(self) -> None:
        """Takes in the results that are there, and puts jobs, if there are few."""
        self.collect()
        if self.jobs.qsize() < _ENOUGH:
            self.jobs.put_many(range(self.put, self.put + _ENOUGH))
            self.put += _ENOUGH


def _play(
    cast: Cast[Worker], books: _Books, seconds: float, count: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    def until(happened: Callable[[], object], what: str) -> None:
        def kept() -> object:
            books.keep()
            return happened()

        cast.until(kept, what)

    def until_time(moment: float) -> None:
        while time.monotonic() < moment:
            books.keep()
            cast.listen(_LOOK)

    workers = [cast.add("worker", number) for number in range(1, count + 1)]
    cast.until(lambda: all(worker.said("ready") for worker in workers), "the workers")
    progress(f"{count} processes work off jobs for {seconds:g} seconds")
    begin = time.monotonic()
    for worker in workers:
        worker.tell("go")
    until_time(begin + seconds / 2)
    until(lambda: books.done, "results")
    victim, *alive = workers
    victim.tell("hold")
    until(lambda: victim.said("holding"), "a worker with a job in its hands")
    kill_time = time.monotonic_ns()
    victim.kill()
    job = victim.said("holding")[0]["id"]
    progress(f"{victim.name} (pid {victim.pid}) killed with job {job} in its hands")
    until(lambda: any(worker.said("again") for worker in alive), "the job of the one that was killed")
    again = min((event["at"], event["id"]) for worker in alive for event in worker.said("again"))
    until_time(begin + seconds)
    cast.until(lambda: books.jobs.unfinished_tasks == 0, "the last jobs")
    elapsed = time.monotonic() - begin
    for worker in alive:
        worker.tell("stop")
    cast.until(lambda: all(worker.done for worker in alive), "the end of the work")
    books.collect()
    return {
        "seconds": elapsed,
        "jobs": books.put,
        "done": len(books.done),
        "lost": books.put - len(books.done),
        "twice": sum(books.done.values()) - len(books.done),
        "wrong": books.wrong,
        "again_seconds": (again[0] - kill_time) / 1e9,
        "held": job,
        "again": again[1],
    }
