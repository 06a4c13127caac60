"""`mmapds bench sync`: the Synchronizer and the mapping layer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mmapds.bench import crate, peers, rows, sync_cases, sync_peers
from mmapds.bench.plot import svg
from mmapds.bench.report import tables
from mmapds.bench.run import Run, perform

__all__ = ["run", "svg", "tables"]

_PACKAGES = ("mmapds", "xxhash", "msgpack", "lmdb", "redis")


def run(*, quick: bool, progress: Callable[[str], None], program: str | None = None) -> dict[str, Any]:
    """Measures everything. `program`: the Rust program, if it is not to be looked for; `quick` never builds it."""
    found = crate.find(program, build=not quick, progress=progress)

    def measure_all(run: Run) -> None:
        with ExitStack() as stack:
            others, reasons = peers.found(
                stack, run.place, sync_peers.MAKERS
            )  # not pinned: a server runs where it likes
            run.reasons |= reasons
            with run.pinned():
                run.progress("calls, and peers")
                with ExitStack() as files:
                    roomy = run.place if run.disk is None or sync_cases.has_room(run.place) else run.disk
                    run.calls([*sync_cases.calls(files, run.place, roomy), *others])
                _writes(run, found)
                _power(run)
        _readers(run)

    return perform("sync", measure_all, rows.SYNC, sync_peers.PEERS, _PACKAGES, quick=quick, progress=progress)


def _writes(run: Run, program: Path | str) -> None:
    """Writes on tmpfs, beside the crate and beside the least that a write could do."""
    if run.memory is None:
        run.skip("no directory on tmpfs can be written", "write_36", "write_1mib", "memcpy_xxh3", "crate")
        return
    with ExitStack() as stack:
        run.progress("writes of 1 MiB")
        run.long_calls(sync_cases.writes(stack, run.memory))
    with ExitStack() as stack:
        run.progress("writes of 36 bytes, and the Rust crate")
        ours = sync_cases.crate_calls(stack, run.memory)
        if isinstance(program, str):
            run.skip(program, "crate")
            run.calls(ours)
            return
        effort = run.effort
        figures, version = crate.alternate(
            program,
            run.memory,
            ours,
            runs=effort.program_runs,
            rounds=effort.rounds,
            slice_seconds=effort.slice_seconds,
        )
        run.figures |= figures
        run.versions["mmap-sync (Rust)"] = version


def _power(run: Run) -> None:
    """Writes that wait for the disk."""
    if run.disk is None:
        run.skip("no directory on a disk can be written: set TMPDIR to one", "power_36", "power_1mib")
        return
    run.progress("writes that wait for the disk")
    for name in ("36", "1mib"):  # apart: a large write makes the next small one slower
        with ExitStack() as stack:
            run.disk_calls(sync_cases.durable_writes(stack, run.disk, name))


def _readers(run: Run) -> None:
    """Two readers: each writes nothing but a cache line of its own, so they must not slow each other down."""
    run.progress("two readers")
    with ExitStack() as stack:
        shared, *own = sync_cases.published(stack, run.place, ("shared", "own_0", "own_1"))
        same, apart = (("read", shared), ("read", shared)), (("read", own[0]), ("read", own[1]))
        run.pairs({"readers_same": same, "readers_apart": apart})
