"""`mmapds bench snapshot`: SnapshotMap."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from mmapds import SnapshotMap
from mmapds._snapcommit import MOST_KEPT
from mmapds.bench import rows, snapshot_cases, snapshot_peers, snapshot_teams
from mmapds.bench.measure import Case, Cost, take
from mmapds.bench.plot import svg
from mmapds.bench.report import tables
from mmapds.bench.run import FULL, QUICK, Run, perform
from mmapds.bench.snapshot_cases import Data, quiet
from mmapds.bench.snapshot_peers import Stages

__all__ = ["run", "svg", "tables"]

_PACKAGES = ("mmapds", "xxhash", "msgpack", "lmdb", "rocksdict", "diskcache", "redis")
_KEYS = 1_000_000
_BYTES = 1500  # for each entry, in all stores together
_COMMITS = 200  # of a thousand keys
_SEEN = 400  # commits that a follower sees
_LIMITS = {"2_ms": 2e6, "1_us": 1e3, "2500_ns": 2.5e3, "2_us": 2e3, "200_us": 2e5, "1_ms": 1e6}
"""What is compared with a time that somebody has named."""


def run(
    *, quick: bool, progress: Callable[[str], None], keys: int | None = None, memory: bool = False
) -> dict[str, Any]:
    """Measures everything with so many keys. In one place: on a disk, if there is one; or in `memory`."""
    count = keys or round(_KEYS * (QUICK if quick else FULL).amount)
    used = ""

    def measure_all(run: Run) -> None:
        nonlocal used
        place = (run.memory if memory else run.disk) or run.place
        used = "memory" if place == run.memory else "disk"
        _measure(run, place, count)

    results = perform(
        "snapshot", measure_all, rows.SNAPSHOT, snapshot_peers.PEERS, _PACKAGES, quick=quick, progress=progress
    )
    return {**results, "keys": count, "file_systems": {used: results["file_systems"][used]}}


def _measure(run: Run, place: str, count: int) -> None:
    if shutil.disk_usage(place).free < count * _BYTES:
        raise OSError(
            errno.ENOSPC,
            f"{count:,} keys take {count * _BYTES >> 20:,} MiB here: set TMPDIR to where there is room, or give fewer",
            place,
        )
    run.figures |= {name: Cost(ns, ns) for name, ns in _LIMITS.items()}
    longer = max(1, count // _KEYS)
    rounds = max(min(2, run.effort.start_runs), run.effort.start_runs // longer)  # of what takes seconds
    with ExitStack() as stack, quiet():
        run.progress(f"{count:,} entries, in every store")
        data = Data.make(count)
        SnapshotMap.build(f"{place}/map", data.table, codec="raw")
        layers = snapshot_cases.layered(f"{place}/layers", data)
        thousands = max(1, round(_COMMITS * run.effort.amount))
        others, missing = snapshot_peers.found(stack, place, data, thousands, snapshot_peers.MAKERS)
        run.reasons |= missing
        run.progress("opening")
        with ExitStack() as stage:
            run.disk_calls([*snapshot_cases.opens(place, data), *_beside(stage, others, "open")])
            cases = [snapshot_cases.loads(place, data), *_beside(stage, others, "load")]
            run.figures |= take(cases, rounds=run.effort.start_runs, slice_seconds=0)
        snapshot_teams.opened(run, place, count)
        with run.pinned():
            run.progress("looking up, and walking")
            with ExitStack() as stage:
                run.warm_calls([*snapshot_cases.calls(stage, place, data), *_beside(stage, others, "read")])
            if layers != MOST_KEPT:
                del run.figures["get_layers"]
                run.skip(f"the writer has merged what was to be {MOST_KEPT} layers into {layers}", "get_layers")
            run.progress("building")
            with ExitStack() as stage:
                cases = [*snapshot_cases.builds(place, data), *_beside(stage, others, "build")]
                run.figures |= snapshot_cases.series(cases, rounds)
        run.progress("building with little memory")
        snapshot_teams.built(run, place, count, rounds)
        with run.pinned():
            run.progress("commits")
            with ExitStack() as stage:
                run.long_calls([*snapshot_cases.commits(stage, place, data), *_beside(stage, others, "commit")])
            with ExitStack() as stage:
                cases = [*snapshot_cases.thousands(stage, place, data, thousands), *_beside(stage, others, "commits")]
                run.figures |= snapshot_cases.series(cases, max(2, run.effort.start_runs // 2))
        run.progress("other processes")
        snapshot_teams.follower(run, place, max(10, round(_SEEN * run.effort.amount)))
    snapshot_teams.workers(run, place)


def _beside(stage: ExitStack, others: Sequence[Stages], name: str) -> list[Case]:
    return [case for stages in others if name in stages for case in stages[name](stage)]
