"""`mmapds bench queue`: the Queue."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from mmapds.bench import peers, queue_cases, queue_opens, queue_peers, queue_teams, rows
from mmapds.bench.plot import svg
from mmapds.bench.report import tables
from mmapds.bench.run import Run, perform

__all__ = ["run", "svg", "tables"]

_PACKAGES = ("mmapds", "xxhash", "msgpack", "faster-fifo", "persist-queue", "litequeue", "diskcache", "redis")
_WAITING, _PASSING = 1_000_000, 10_000_000  # items


def run(*, quick: bool, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measures everything, in one place: where queues live, on a disk, if there is one."""
    results = perform("queue", _measure, rows.QUEUE, queue_peers.PEERS, _PACKAGES, quick=quick, progress=progress)
    systems = results["file_systems"]
    used = "disk" if systems["disk"] else "memory"
    return {**results, "file_systems": {used: systems[used]}}


def _measure(run: Run) -> None:
    place = run.disk or run.place
    with ExitStack() as stack:
        servers, absent = peers.found(stack, place, queue_peers.SERVERS)
        with run.pinned():
            run.progress("calls, and peers")
            others, missing = peers.found(stack, place, queue_peers.PINNED)
            run.reasons |= absent | missing
            run.calls([*queue_cases.calls(stack, place), *others, *servers])
            run.progress("claims while others are not due")
            run.long_calls(queue_cases.claims(stack, place, queue_cases.DELAYED))
    run.progress("two processes")
    queue_teams.two(run, place)
    _power(run)
    run.progress("opening after a crash, and after another boot")
    queue_opens.opens(run, place, round(_WAITING * run.effort.amount))
    passing = round(_PASSING * run.effort.amount)
    run.progress(f"{passing:,} items pass through")
    queue_teams.segments(run, place, passing)


def _power(run: Run) -> None:
    """Puts that wait for the disk."""
    if run.disk is None:
        names = ("power", "fdatasync", "sqlite", "power_one", "power_eight")
        run.skip("no directory on a disk can be written: set TMPDIR to one", *names)
        return
    run.progress("puts that wait for the disk")
    with ExitStack() as stack, run.pinned():
        run.disk_calls(queue_cases.durable(stack, run.disk))
    queue_teams.producers(run, run.disk)
