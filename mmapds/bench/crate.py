"""The Rust crate mmap-sync, timed by the small program of tests/interop/rust.

The program is found in a checkout of this repository, built by cargo where that is installed. It runs several times,
between slices of our own calls and on the same processor, and its best figures are taken, as everywhere here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from mmapds.bench.measure import Case, Cost, Figures, take

__all__ = ["FIGURES", "alternate", "find"]

FIGURES = {
    "version_ns": "version",
    "read_checked_ns": "read, check_bytes = true",
    "read_unchecked_ns": "read, check_bytes = false",
    "write_value_ns": "write",
    "write_raw_36_ns": "write_raw, 36 bytes",
    "write_raw_1mib_ns": "write_raw, 1 MiB",
}
"""What the program says, and what to call it."""

_SOURCE = Path(__file__).parents[2] / "tests" / "interop" / "rust"


def find(given: str | None, *, build: bool, progress: Callable[[str], None]) -> Path | str:
    """The program, or why there is none. It is built only if `build`; that needs the network once."""
    if given is not None:
        return Path(given) if os.access(given, os.X_OK) else f"{given} is not a program"
    target = Path(os.environ.get("CARGO_TARGET_DIR", _SOURCE / "target"))
    program = target / "release" / "interop"
    cargo = shutil.which("cargo")
    if not (_SOURCE / "Cargo.toml").exists():
        return "not a checkout: tests/interop/rust is not here"
    if build and cargo:
        progress("building the Rust program")
        manifest = str(_SOURCE / "Cargo.toml")
        built = subprocess.run(
            [cargo, "build", "--release", "--locked", "--quiet", "--manifest-path", manifest],
            env={**os.environ, "CARGO_TARGET_DIR": str(target)},
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            last = (built.stderr.strip().splitlines() or ["no message"])[-1]
            return f"cargo build failed: {last}"
    if program.exists():
        return program
    return "cargo is not installed" if cargo is None else "the Rust program is not built"


def alternate(
    program: Path, directory: str, cases: Sequence[Case], *, runs: int, rounds: int, slice_seconds: float
) -> tuple[Figures, str]:
    """Runs the program and times our own cases in turn, `runs` times; the figures, and the version of the crate."""
    said: list[dict[str, float]] = []
    ours: list[Figures] = []
    version = "unknown"
    for run in range(runs):
        ours.append(take(cases, rounds=rounds, slice_seconds=slice_seconds))
        output = subprocess.run([program, "bench", f"{directory}/crate_{run}"], capture_output=True, check=True).stdout
        answer = json.loads(output)
        version = str(answer["crate_version"])
        said.append({name: float(answer[name]) for name in FIGURES})
    figures = {f"crate.{name}": _best([Cost(one[name], one[name]) for one in said]) for name in FIGURES}
    return figures | {case.name: _best([one[case.name] for one in ours]) for case in cases}, version


def _best(costs: Sequence[Cost]) -> Cost:
    """The best of several; of the crate only the best is known, so its median is that of its runs."""
    middle = sorted(cost.median for cost in costs)[len(costs) // 2]
    return Cost(min(cost.best for cost in costs), middle)
