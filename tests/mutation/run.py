"""Whether the tests have teeth: runs them against each mutant of the native code, and says which ones nobody noticed.

    python tests/mutation/run.py [--files NAME ...] [--kinds KIND ...] [--sample N] [--quick] [--results FILE]

A copy of the repository is made (in ``--dir``), all mutants are built into it at once (mutants.py), and for each the
tests of what the file is for are run, until one fails. A mutant is *killed* by a failure, a crash or a hang. One that
lives is either *argued*, in argued.txt, with the reason why no test can notice it, or it *survives*: then a test is
missing.

``--quick`` runs the first quarter of the tests only: what it kills is killed, what lives is not looked at further.

Results are appended to FILE, one JSON object a line; what is there already is not run again, so a run can be broken off
and goes on. ``--report`` only counts. Takes hours; the machine can be used meanwhile, if a hang is told by a long time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from mutants import SWITCH, Mutant, find

ROOT = Path(__file__).parents[2]
ARGUED = Path(__file__).with_name("argued.txt")
HANG = 240  # seconds without an end: all these tests together take a third of it

_SYNC = (
    "unit/test_synchronizer.py", "unit/test_synchronizer_views.py", "unit/test_synchronizer_slots.py",
    "unit/test_synchronizer_writer.py", "unit/test_synchronizer_wait.py", "crash/test_synchronizer_bytes.py",
    "crash/test_synchronizer_hostile.py", "crash/test_synchronizer_lines.py", "crash/test_synchronizer_truncate.py",
    "crash/test_synchronizer_boot.py", "crash/test_synchronizer_disk.py", "crash/test_synchronizer_fork.py",
    "crash/test_synchronizer_interrupt.py", "crash/test_synchronizer_kill.py", "crash/test_synchronizer_power.py",
    "unit/test_synchronizer_threads.py", "unit/test_synchronizer_options.py", "model/test_synchronizer_model.py",
    "interop/test_mmap_sync.py", "crash/test_synchronizer_many.py",
)  # fmt: skip
_COUNTERS = (
    "unit/test_counters.py", "unit/test_counter.py", "unit/test_counters_names.py", "unit/test_counters_states.py",
    "unit/test_counters_modes.py", "unit/test_counters_mapping.py", "unit/test_counters_view.py",
    "unit/test_counters_emmap.py", "unit/test_counters_options.py", "crash/test_counters_bytes.py",
    "crash/test_counters_hostile.py", "crash/test_counters_lines.py", "crash/test_counters_limits.py",
    "crash/test_counters_boot.py", "crash/test_counters_truncate.py", "crash/test_counters_durability.py",
    "crash/test_counters_disk.py", "crash/test_counters_fork.py", "crash/test_counters_interrupt.py",
    "crash/test_counters_steps.py", "crash/test_counters_between.py", "crash/test_counters_kill.py",
    "crash/test_counters_power.py", "model/test_counters_model.py", "crash/test_counters_many.py",
)  # fmt: skip
_QUEUE = (
    "unit/test_queue.py", "unit/test_queue_claims.py", "unit/test_queue_delays.py", "unit/test_queue_space.py",
    "unit/test_queue_looking.py", "unit/test_queue_waiting.py", "unit/test_queue_dead.py", "unit/test_queue_end.py",
    "unit/test_queue_modes.py", "unit/test_queue_stdlib.py", "unit/test_queue_options.py", "crash/test_queue_bytes.py",
    "crash/test_queue_boot.py", "crash/test_queue_stale.py", "crash/test_queue_kinds.py", "crash/test_queue_disk.py",
    "crash/test_queue_truncate.py", "crash/test_queue_fork.py", "crash/test_queue_interrupt.py",
    "crash/test_queue_steps.py", "crash/test_queue_kill.py", "crash/test_queue_power.py", "model/test_queue_model.py",
    "crash/test_queue_many.py", "stress/test_queue.py",
)  # fmt: skip
_MAP = (
    "unit/test_snapshot.py", "unit/test_snapshot_order.py", "unit/test_snapshot_layers.py", "unit/test_snapshot_ttl.py",
    "unit/test_snaplayer.py", "unit/test_snapshot_build.py", "unit/test_snapshot_private.py",
    "unit/test_snapshot_transactions.py", "unit/test_snapshot_versions.py", "unit/test_snapshot_codecs.py",
    "crash/test_snapshot_bytes.py", "crash/test_snapshot_handles.py", "crash/test_snapshot_disk.py",
    "crash/test_snapshot_kill.py", "crash/test_snapshot_power.py", "model/test_snapshot_model.py",
    "stress/test_snapshot.py",
)  # fmt: skip
_REGION = (
    "unit/test_region.py", "unit/test_region_options.py", "unit/test_region_memory.py", "unit/test_region_resize.py",
    "unit/test_atomics.py", "unit/test_lockword.py", "crash/test_mapping_faults.py", "crash/test_ownership.py",
    "crash/test_forks.py", "crash/test_interruptions.py", "crash/test_sigbus.py", "model/test_region_model.py",
)  # fmt: skip
TESTS = {
    "lockword": (*_REGION, *_QUEUE[:4]),
    "leftright": _SYNC,
    "writer": _SYNC,
    "results": _SYNC,
    "mmapsync": _SYNC[:1] + _SYNC[6:8] + ("interop/test_mmap_sync.py", *_SYNC[1:6], *_SYNC[8:]),
    "counters": _COUNTERS,
    "counter": _COUNTERS,
    "cells": _COUNTERS,
    "extents": _COUNTERS,
    "queueindex": _QUEUE,
    "queueput": _QUEUE,
    "queuetake": _QUEUE,
    "queuescan": _QUEUE,
    "queueview": _QUEUE,
    "queue": _QUEUE,
    "claim": _QUEUE,
    "snapshot": _MAP,
    "snapcursor": _MAP,
    "snaplayer": _MAP,
    "snapbuild": _MAP,
    "snapmap": _MAP,
    "process": (*_REGION, *_SYNC[:4], *_QUEUE[:4]),
    "region": (*_REGION, "unit/test_files.py"),
    "atomic": _REGION,
}
"""By the file's name: what is run, in this order; the quick ones first."""
for _name in ("lockword", "leftright", "queueput", "queueindex", "queue", "snapshot"):  # what its harness includes
    TESTS[_name] = (TESTS[_name][0], "model/test_tsan.py", *TESTS[_name][1:])


def build(where: Path) -> list[Mutant]:
    """A copy of the repository with all mutants in it."""
    native = where / "mmapds" / "_native"
    if not native.exists():
        ignored = shutil.ignore_patterns(
            "*.so", "*.c", "__pycache__", ".git", ".venv*", "build", "*.egg-info", ".hypothesis"
        )
        shutil.copytree(ROOT, where, ignore=ignored, dirs_exist_ok=True)
        for name, text, _ in find(ROOT / "mmapds" / "_native"):
            (native / name).write_text(text, "utf-8")
        platform = native / "platform.h"
        text = platform.read_text("utf-8")
        end = text.rindex("#endif")
        platform.write_text(text[:end] + SWITCH + text[end:], "utf-8")
        every = [mutant for _, _, mutants in find(ROOT / "mmapds" / "_native") for mutant in mutants]
        (where / "mutants.json").write_text(json.dumps(every), "utf-8")
    command = [sys.executable, "-W", "ignore", "-c", "from setuptools import setup; setup()", "build_ext", "--inplace"]
    made = subprocess.run(
        [*command, f"-j{os.cpu_count()}"], check=False, cwd=where, capture_output=True, text=True,
        env={**os.environ, "CFLAGS": "-O1 -g0"},
    )  # fmt: skip
    if made.returncode:
        sys.exit(made.stdout[-3000:] + made.stderr[-3000:])
    return [Mutant(*fields) for fields in json.loads((where / "mutants.json").read_text("utf-8"))]


def run(where: Path, number: int, tests: tuple[str, ...]) -> tuple[str, str]:
    """("killed", by what) or ("lives", "")."""
    present = [f"tests/{test}" for test in tests if (where / "tests" / test).exists()]
    command = [
        sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", "--no-header", "-rfE",
        "--tb=no", *present,
    ]  # fmt: skip
    environment = {
        **os.environ, "PYTHONPATH": str(where), "MMAPDS_MUTANT": str(number), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    process = subprocess.Popen(
        command, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=HANG)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "killed", "a hang"
    if process.returncode == 0:
        return "lives", ""
    if process.returncode == 1:
        failed = [line for line in said.split("\n") if line.startswith(("FAILED", "ERROR"))]
        return "killed", failed[0].split(" - ")[0] if failed else "a failure"
    if process.returncode in (2, 4) and "import" not in said and "rror" not in said:
        sys.exit(said[-2000:])
    return "killed", f"status {process.returncode}"


def argued() -> dict[str, str]:
    """Mutant's name -> why no test can notice it."""
    reasons: dict[str, str] = {}
    names: list[str] = []
    for line in ARGUED.read_text("utf-8").split("\n") if ARGUED.exists() else ():
        if line.startswith("    ") and names:
            for name in names:
                reasons[name] = (reasons.get(name, "") + " " + line.strip()).strip()
        elif line.strip() and not line.startswith("#"):
            if names and names[-1] in reasons:
                names = []
            names.append(line.strip())
    return reasons


def report(mutants: list[Mutant], results: dict[str, dict[str, object]]) -> int:
    reasons = argued()
    counts: dict[str, Counter[str]] = {}
    survivors = []
    for mutant in mutants:
        found = results.get(mutant.name)
        if found is None:
            state = "not run"
        elif found["state"] == "killed":
            state = "killed"
        else:
            state = "argued" if mutant.name in reasons else "survives"
            if state == "survives":
                survivors.append(mutant)
        for key in (mutant.file, f"({mutant.kind})", "all"):
            counts.setdefault(key, Counter())[state] += 1
    print(f"{'':20} {'mutants':>8} {'killed':>8} {'argued':>8} {'survive':>8} {'not run':>8}")
    for key, of in sorted(counts.items()):
        states = [of[state] for state in ("killed", "argued", "survives", "not run")]
        print(f"{key:20} {sum(states):8}" + "".join(f" {n:8}" for n in states))
    for mutant in survivors:
        print(f"survives: {mutant.name} (line {mutant.line})")
    return len(survivors)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", nargs="*", help="only mutants of these files")
    parser.add_argument("--kinds", nargs="*", help="only these: order, store, fence, lock, sync, check")
    parser.add_argument("--quick", action="store_true", help="a quarter of the tests")
    parser.add_argument("--sample", type=int, help="so many of them, chosen by chance", metavar="N")
    parser.add_argument("--results", type=Path, default=Path("mutants.jsonl"), metavar="FILE")
    parser.add_argument("--dir", type=Path, default=Path("/tmp/mmapds-mutants"), help="where the copy is made")
    parser.add_argument("--report", action="store_true", help="run nothing; count what FILE has")
    options = parser.parse_args()
    results: dict[str, dict[str, object]] = {}
    if options.results.exists():
        lines = options.results.read_text("utf-8").splitlines()
        results = {found["name"]: found for found in map(json.loads, lines)}
    every = [mutant for _, _, mutants in find(ROOT / "mmapds" / "_native") for mutant in mutants]
    if options.report:
        return 1 if report(every, results) else 0
    every = build(options.dir)
    chosen = [
        mutant
        for mutant in every
        if (not options.files or mutant.file in options.files)
        and (not options.kinds or mutant.kind in options.kinds)
        and mutant.name not in results
    ]
    if options.sample:
        chosen = random.Random(0).sample(chosen, min(options.sample, len(chosen)))
    sound: set[tuple[str, ...]] = set()
    for done, mutant in enumerate(chosen):
        tests = TESTS[mutant.file.partition(".")[0]]
        if options.quick:
            tests = tests[: -(-len(tests) // 4)]
        if tests not in sound:  # none of them fails without a mutant
            state, by = run(options.dir, 0, tests)
            if state != "lives":
                sys.exit(f"the tests of {mutant.file} fail without a mutant: {by}")
            sound.add(tests)
        start = time.monotonic()
        state, by = run(options.dir, mutant.number, tests)
        seconds = round(time.monotonic() - start, 1)
        found = {"name": mutant.name, "state": state, "by": by, "seconds": seconds}
        results[mutant.name] = found
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(f"{done + 1}/{len(chosen)} {state:7} {seconds:6.1f} s  {mutant.name}  {by}", flush=True)
    return 1 if report(every, results) else 0


if __name__ == "__main__":
    sys.exit(main())
