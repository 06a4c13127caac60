"""Whether the tests have teeth: runs them against each mutant of the native code, and says which ones nobody noticed.

    python tests/mutation/run.py [--files NAME ...] [--kinds KIND ...] [--sample N] [--jobs N] [--results FILE]

A copy of the repository is made (in ``--dir``), with all mutants built into it at once (mutants.py). The whole suite
runs there once without a mutant, and notes which tests come by which mutants' places (reached.py). Then each mutant
meets the tests that come by its place until one fails: first those that were written for one check (CLOSE), that are
quick, come by few places, and have killed mutants of its file. It is *killed* by a test that fails twice, by a crash or
by a hang. One that lives through all of them is either *argued*, in argued.txt, with the reason why no test can notice
it, or it *survives*: then a test is missing.

Results are appended to FILE, one JSON object a line. What was killed is not run again, so a run can be broken off and
goes on; what lived is run again by ``--again``, with the tests as they are then. ``--report`` only counts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from mutants import SWITCH, Mutant, find

ROOT = Path(__file__).parents[2]
ARGUED = Path(__file__).with_name("argued.txt")
CLOSE = re.compile("test_checks_|test_schedules|test_each_look|test_native_memory")  # written for one mutant, mostly
HANG = 15  # seconds without an end, over three times what the tests need without a mutant


class Test(NamedTuple):
    far: bool  # not of those in CLOSE
    cost: float  # its seconds, times how many mutants it comes by: who comes by few looks closely
    seconds: float
    name: str


def build(where: Path) -> list[Mutant]:
    """A copy of the repository as it is now, with all mutants in it; what has not changed is not built anew."""
    mutated = list(find(ROOT / "mmapds" / "_native"))
    texts = {f"{ROOT}/mmapds/_native/{name}": text for name, text, _ in mutated}
    platform = ROOT / "mmapds" / "_native" / "platform.h"
    text = platform.read_text("utf-8")
    end = text.rindex("#endif")
    texts[str(platform)] = text[:end] + SWITCH + text[end:]

    def copy(source: str, target: str) -> None:
        content = texts[source].encode() if source in texts else Path(source).read_bytes()
        if not os.path.exists(target) or Path(target).read_bytes() != content:
            Path(target).write_bytes(content)
            shutil.copymode(source, target)

    ignored = shutil.ignore_patterns(
        "*.so", "*.c", "__pycache__", ".git", ".venv*", "build", "*.egg-info", ".hypothesis"
    )
    shutil.copytree(ROOT, where, ignore=ignored, copy_function=copy, dirs_exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-c", "from setuptools import setup; setup()", "build_ext", "--inplace"]
    made = subprocess.run(
        [*command, f"-j{os.cpu_count()}"], check=False, cwd=where, capture_output=True, text=True,
        env={**os.environ, "CFLAGS": "-O1 -g0"},
    )  # fmt: skip
    if made.returncode:
        sys.exit(made.stdout[-3000:] + made.stderr[-3000:])
    return [mutant for _, _, mutants in mutated for mutant in mutants]


def trace(where: Path, every: list[Mutant]) -> dict[int, list[Test]]:
    """Mutant's number -> the tests that come by it, the cheap ones first.

    Runs the test files that have changed since they ran for this; at first that is the whole suite. What was noted
    before the native code has changed is kept, by the mutants' names.
    """
    log, names = where / "reached.jsonl", where / "reached-names.json"
    stamps = {str(file.relative_to(where)): file.stat().st_mtime for file in sorted(where.glob("tests/*/test_*.py"))}
    lines = list(map(json.loads, log.read_text("utf-8").splitlines())) if log.exists() else []
    lines = [found for found in lines if stamps.get(found["file"]) == found["stamp"]]
    if lines:
        numbers = {mutant.name: mutant.number for mutant in every}
        now = {old: numbers.get(name) for old, name in json.loads(names.read_text("utf-8")).items()}
        for found in lines:
            found["reached"] = [number for old in found["reached"] if (number := now[str(old)])]
    if changed := stamps.keys() - {found["file"] for found in lines}:
        partial = log.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", f"-n{os.cpu_count()}", "-p", "reached", "--tb=line"]
        traced = environment(where, 0) | {"MMAPDS_REACHED": str(partial)}
        subprocess.run([*command, *sorted(changed)], check=False, cwd=where, env=traced)
        for found in map(json.loads, partial.read_text("utf-8").splitlines()):
            file = found["test"].partition("::")[0]
            lines.append(found | {"file": file, "stamp": stamps[file]})
    if sum(not found["reached"] for found in lines) > len(lines) // 2:
        raise SystemExit("most tests came by no mutant: was the native code loaded before reached.py?")
    log.write_text("".join(json.dumps(found) + "\n" for found in lines), "utf-8")
    names.write_text(json.dumps({mutant.number: mutant.name for mutant in every}), "utf-8")
    tests: dict[int, list[Test]] = {}
    for found in lines:
        if found["passed"]:  # what fails or is skipped without a mutant says nothing about one
            for number in found["reached"]:
                cost = found["seconds"] * len(found["reached"])
                tests.setdefault(number, []).append(
                    Test(not CLOSE.search(found["file"]), cost, found["seconds"], found["test"])
                )
    return {number: sorted(which) for number, which in tests.items()}


def environment(where: Path, number: int) -> dict[str, str]:
    return {
        **os.environ, "PYTHONPATH": f"{where}:{Path(__file__).parent}", "MMAPDS_MUTANT": str(number),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip


def run(where: Path, number: int, tests: list[Test]) -> str:
    """The name of the first test that fails, or does not end; "status N" of a run that broke off; "" if all pass."""
    folder = tempfile.mkdtemp(prefix="mmapds-mutant-")
    command = [
        sys.executable, "-m", "pytest", "-x", "-v", "-n0", "-p", "no:cacheprovider", "--no-header", "--tb=no",
        f"--basetemp={folder}/tests", *(test.name for test in tests),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=where, env=environment(where, number), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=HANG + 3 * sum(test.seconds for test in tests))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
    finally:  # what is killed leaves files, and mounts, behind
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if line.split()[1].startswith(folder):
                subprocess.run(["umount", "-l", line.split()[1]], check=False)
        shutil.rmtree(folder, ignore_errors=True)
    if process.returncode == 0:
        return ""
    by = [test.name for test in tests if f"\n{test.name} " in said and f"\n{test.name} PASSED" not in said]
    if by:
        return by[-1]
    if process.returncode in (2, 4) and "import" not in said and "rror" not in said:
        raise RuntimeError(said[-2000:])
    return f"status {process.returncode}"


def killer(where: Path, number: int, tests: list[Test]) -> str:
    """As `run`, but it must happen twice: a test that failed once, on a busy machine, has killed nothing."""
    left = tests
    while left:
        by = run(where, number, left)
        at = next((at for at, test in enumerate(left) if test.name == by), None)
        again = left if at is None else [left[at]]
        if not by or run(where, number, again):
            return by
        left = [] if at is None else left[at + 1 :]
    return ""


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
        if mutant.name in reasons:  # also if a test died of it, which held a process at just the point that is gone
            state = "argued"
        elif found is None:
            state = "not run"
        else:
            state = "killed" if found["state"] == "killed" else "survives"
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
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="so many at a time", metavar="N")
    parser.add_argument("--sample", type=int, help="so many of them, chosen by chance", metavar="N")
    parser.add_argument("--results", type=Path, default=Path("mutants.jsonl"), metavar="FILE")
    parser.add_argument("--dir", type=Path, default=Path("/tmp/mmapds-mutants"), help="where the copy is made")
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[4.0, 40.0, math.inf], metavar="S",
        help="of tests: all mutants meet the first so many, those that live so many more, and so on",
    )  # fmt: skip
    parser.add_argument(
        "--tests", nargs="*", help="only tests whose names begin so; nothing is said of what lives", default=[""]
    )
    parser.add_argument("--again", action="store_true", help="also what lived before")
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
        and results.get(mutant.name, {}).get("state") not in (("killed",) if options.again else ("killed", "lives"))
    ]
    if options.sample:
        chosen = random.Random(0).sample(chosen, min(options.sample, len(chosen)))
    reaching = trace(options.dir, every)
    alive = chosen
    killers = {mutant.name: str(results[mutant.name]["by"]) for mutant in every if mutant.name in results}
    reasons = argued()
    met: dict[str, set[str]] = {}
    chosen_tests = tuple(options.tests)
    for most in options.seconds:
        print(f"{len(alive)} mutants, by tests that take {most:g} s together", flush=True)
        lived = []

        def stage(mutant: Mutant, most: float = most) -> tuple[Mutant, int, str, float]:
            tests, total = [], 0.0
            before = met.setdefault(mutant.name, set())
            proven = Counter(by for name, by in list(killers.items()) if name.startswith(mutant.file))
            for test in sorted(
                reaching.get(mutant.number, []), key=lambda test: (test.far, test.cost / (1 + proven[test.name]) ** 2)
            ):
                if total + test.seconds <= most and test.name not in before and test.name.startswith(chosen_tests):
                    total += test.seconds
                    tests.append(test)
                    before.add(test.name)
            start = time.monotonic()
            killers[mutant.name] = by = killer(options.dir, mutant.number, tests) if tests else ""
            return mutant, len(tests), by, round(time.monotonic() - start, 1)

        with ThreadPoolExecutor(options.jobs) as pool:
            for done, (mutant, ran, by, seconds) in enumerate(pool.map(stage, alive)):
                if not by and (options.tests != [""] or (most < options.seconds[-1] and mutant.name not in reasons)):
                    lived.append(mutant)
                    continue
                reached = len(reaching.get(mutant.number, []))
                found = {"name": mutant.name, "state": "killed" if by else "lives", "by": by, "reached": reached}
                results[mutant.name] = found
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
                print(
                    f"{done + 1}/{len(alive)} {found['state']} {seconds:.1f} s, {ran} of {reached} tests: "
                    f"{mutant.name}: {by}", flush=True,
                )  # fmt: skip
        alive = lived
    return 1 if report(every, results) else 0


if __name__ == "__main__":
    sys.exit(main())
