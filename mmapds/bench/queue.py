"""`mmapds bench queue`: the Queue."""

from __future__ import annotations

import os
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
    """Measures everything."""
    return perform("queue", _measure, rows.QUEUE, queue_peers.PEERS, _PACKAGES, quick=quick, progress=progress)


def _measure(run: Run) -> None:
    with ExitStack() as stack:
        servers, absent = peers.found(stack, run.place, queue_peers.SERVERS)
        with run.pinned():
            run.reasons |= absent
            run.progress("calls, and peers")
            run.calls([*queue_cases.calls(stack, run.place), *servers])
            run.progress("other queues in files")
            directory = os.path.join(run.disk or run.place, "files")
            os.mkdir(directory)
            others, missing = peers.found(stack, directory, queue_peers.ON_DISK)
            run.reasons |= missing
            run.calls([*queue_cases.in_files(stack, directory), *others])
            run.progress("claims while others are not due")
            run.long_calls(queue_cases.claims(stack, run.place, queue_cases.DELAYED))
    run.progress("two processes")
    queue_teams.two(run)
    _power(run)
    run.progress("opening after a crash, and after another boot")
    queue_opens.opens(run, round(_WAITING * run.effort.amount))
    passing = round(_PASSING * run.effort.amount)
    run.progress(f"{passing:,} items pass through")
    queue_teams.segments(run, passing)


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
