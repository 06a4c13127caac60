"""A build of the package with AddressSanitizer and UndefinedBehaviorSanitizer, and fuzzer and tests on it: one command.

    python tests/fuzz/sanitize.py [--dir DIRECTORY] [--executions N] [--seed S] [--json FILE] [--no-tests] [TESTS ...]

The package and its tests are copied to a directory (a temporary one, unless one is named, which is used again if it is
complete), and the native code is compiled there with ``-fsanitize=address,undefined -fno-sanitize-recover=undefined``
and ``-O1``. Then the fuzzer's executions are run on it, and after them the tests of damaged and hostile files (or those
that are named). Objects of Python come from malloc, so that reading behind the end of a bytes object is seen too.

Nothing is suppressed. What is set differently from the defaults, and why:

- ``detect_leaks=0``: the interpreter itself frees little at its end.
- ``handle_sigbus=0``: a SIGBUS is the package's to handle, and tests cause them.
- ``allocator_may_return_null=1`` and ``max_allocation_size_mb``: an allocation without bound shall be a MemoryError,
  which the fuzzer takes for a fault, as without the sanitizer.

Prior art: the sanitizer builds of CPython, SQLite and LMDB. Rejected: MemorySanitizer, which needs an interpreter and
libraries built with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = {
    "CFLAGS": "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1 -g",
    "LDFLAGS": "-fsanitize=address,undefined",
}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:handle_sigbus=0:allocator_may_return_null=1:max_allocation_size_mb=8192",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "PYTHONMALLOC": "malloc",
    "PYTHONDONTWRITEBYTECODE": "1",
}
TESTS = (
    "tests/crash/test_synchronizer_bytes.py", "tests/crash/test_synchronizer_hostile.py",
    "tests/crash/test_counters_bytes.py", "tests/crash/test_counters_hostile.py", "tests/crash/test_queue_bytes.py",
    "tests/crash/test_snapshot_bytes.py", "tests/unit/test_header.py", "tests/unit/test_snaplayer.py",
)  # fmt: skip
DONE = "sanitized"


class UnavailableError(Exception):
    """There is no compiler with sanitizers here."""


def runtime() -> str:
    """The library that must be there before all others."""
    compiler = os.environ.get("CC", "gcc")
    try:
        found = subprocess.run(
            [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UnavailableError(f"{compiler}: {error}") from None
    if not os.path.isabs(found):
        raise UnavailableError(f"{compiler} has no AddressSanitizer (no libasan.so)")
    return os.path.realpath(found)


def build(where: Path, env: dict[str, str] = BUILD) -> None:
    """Copies the package and its tests, and compiles with these in the environment."""
    if (where / DONE).exists():
        return
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.html")
    where.mkdir(parents=True, exist_ok=True)
    for folder in ("mmapds", "tests", "examples"):
        if (ROOT / folder).exists():
            shutil.copytree(ROOT / folder, where / folder, ignore=ignored, dirs_exist_ok=True)
    # The project's own level of optimisation comes behind ours, and would win.
    (where / "pyproject.toml").write_text(
        (ROOT / "pyproject.toml").read_text("utf-8").replace('"-O3"', '"-O1"'), "utf-8"
    )
    shutil.copy(ROOT / "README.md", where)
    command = [sys.executable, "-W", "ignore", "-c", "from setuptools import setup; setup()", "build_ext", "--inplace"]
    made = subprocess.run(
        command, cwd=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env={**os.environ, **env},
    )  # fmt: skip
    if made.returncode:
        raise SystemExit(made.stdout[-4000:])
    (where / DONE).touch()


def environment(where: Path) -> dict[str, str]:
    """What a process needs to run on it."""
    return {**os.environ, **OPTIONS, "LD_PRELOAD": runtime(), "PYTHONPATH": str(where)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs the fuzzer and tests on a build with sanitizers.")
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--executions", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json")
    parser.add_argument("--keep")
    parser.add_argument("--no-tests", action="store_true")
    options, tests = parser.parse_known_args()
    where = options.dir or Path(tempfile.mkdtemp(prefix="mmapds-sanitized-"))
    try:
        runtime()
        build(where)
        sys.path.insert(0, str(HERE))
        import fuzzing  # by the usual build: only its workers are sanitized

        status = 0
        if options.executions:
            keep = options.keep or tempfile.mkdtemp(prefix="fuzz-faults-")
            os.makedirs(keep, exist_ok=True)
            worker = str(where / "tests" / "fuzz" / "fuzzworker.py")
            result = fuzzing.campaign(
                options.executions, seed=options.seed, keep=keep, sanitized=True, patience=10 * fuzzing.PATIENCE,
                command=[sys.executable, "-W", "error", worker], env=environment(where), progress=True,
            )  # fmt: skip
            print(result.table())
            fuzzing.tell(result)
            if options.json:
                Path(options.json).write_text(json.dumps(result.as_json(), indent=1))
            status = 1 if result.faults else 0
        if not options.no_tests:
            chosen = tests or [test for test in TESTS if (where / test).exists()]
            command = [
                sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-p", "no:faulthandler", *chosen,
            ]  # fmt: skip
            status |= subprocess.run(command, cwd=where, env=environment(where), check=False).returncode
        return status
    finally:
        if options.dir is None:
            shutil.rmtree(where, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
