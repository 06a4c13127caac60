"""`mmapds bench counters`: Counters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from mmapds.bench import counters_cases, counters_peers, peers, rows
from mmapds.bench.plot import svg
from mmapds.bench.report import tables
from mmapds.bench.run import Run, perform

__all__ = ["run", "svg", "tables"]

_PACKAGES = ("mmapds", "prometheus_client", "redis")


def run(*, quick: bool, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measures everything."""
    return perform("counters", _measure, rows.COUNTERS, counters_peers.PEERS, _PACKAGES, quick=quick, progress=progress)


def _measure(run: Run) -> None:
    with ExitStack() as stack:
        servers, absent = peers.found(stack, run.place, counters_peers.SERVERS)
        with run.pinned():
            run.progress("calls, and peers")
            others, missing = peers.found(stack, run.place, counters_peers.PINNED)
            run.reasons |= absent | missing
            run.calls([*counters_cases.calls(stack, run.place), *others, *servers])
            run.progress("snapshots, and new names")
            run.long_calls([*counters_cases.snapshots(stack, run.place), *counters_cases.creations(run.place)])
            _power(run)
    run.progress("two adders")
    with ExitStack() as stack:
        run.pairs(counters_cases.adders(stack, run.place))


def _power(run: Run) -> None:
    """Numbers that are handed out when the disk knows it."""
    if run.disk is None:
        run.skip("no directory on a disk can be written: set TMPDIR to one", "reserve", "msync")
        return
    run.progress("numbers that wait for the disk")
    with ExitStack() as stack:
        run.disk_calls(counters_cases.reserves(stack, run.disk))
