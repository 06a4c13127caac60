"""The fuzzer with its choices made by libFuzzer, which sees the branches of the native code and of the Python code.

    python tests/fuzz/guided.py [--executions N] [--seed S] [--only TEXT] [--dir DIRECTORY] [--corpus DIRECTORY]
                                [--keep DIRECTORY] [--json FILE]

The bytes that libFuzzer makes are the numbers that `fuzzworker.mutate` asks for, two for each: what it learns is which
field to damage, how, and what to do then, and not how a checksum is computed. What is fed, what is done with it and
what is a fault is as in `run.py`. Each target runs in a process of its own; `--corpus` keeps what led further, and
begins there the next time.

It needs clang and https://github.com/google/atheris (``pip install atheris``). The native code is built with
``-fsanitize=fuzzer-no-link`` in a directory, as `sanitize.py` does with its sanitizers.

Prior art: libFuzzer, and its FuzzedDataProvider. Rejected: feeding it whole files, which are 8 to 100 KB here, of which
nearly every damaged byte is told by the first checksum.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "support"))

LONGEST = 512  # bytes of an input: more choices than an execution ever makes
SLOW, PATIENCE, RESIDENT = 10.0, 60, 2048  # seconds of processor time; seconds, MiB for libFuzzer
BUILD = {
    "CC": "clang",
    "LDSHARED": "clang -shared",
    "CFLAGS": "-fsanitize=fuzzer-no-link -O1 -g",
}
_DONE = re.compile(r"#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)/")


class Choices:
    """Numbers between 0 and 1: those of the input, and then some that its length decides."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.further = random.Random(len(data)).random

    def random(self) -> float:
        at = self.at
        self.at = at + 2
        return int.from_bytes(self.data[at : at + 2], "little") / 65536 if self.at <= len(self.data) else self.further()


def child(options: dict[str, Any]) -> None:
    """One target; ends by itself, with what libFuzzer has to say on stderr."""
    import atheris

    with atheris.instrument_imports(include=["mmapds"]):
        import fuzzworker

    number = options["number"]
    worker = fuzzworker.Worker(options)
    resource.setrlimit(resource.RLIMIT_FSIZE, (fuzzworker.LARGEST, resource.RLIM_INFINITY))
    with fuzzworker.fuzzplaces.identities(options["seed"]):
        target = worker.target(number)

    def once(data: bytes) -> None:
        choices: Any = Choices(data)
        honest = fuzzworker.mutate(target.place, target, choices.random, None)
        worker.random = choices
        outcome, _ = worker.attempt(number, target, honest)
        target.restore(outcome)

    atheris.Setup(["guided", *options["arguments"]], once)
    atheris.Fuzz()


def campaign(where: Path, counts: dict[int, int], options: argparse.Namespace, keep: Path) -> dict[str, Any]:
    """All targets, one after the other."""
    import atheris
    import fuzztargets

    preload = Path(atheris.path(), "ubsan_with_fuzzer.so")
    env = {**os.environ, "LD_PRELOAD": str(preload), "PYTHONPATH": str(where)}
    rows: dict[str, Any] = {}
    faults: list[Any] = []
    for number, count in counts.items():
        name = fuzztargets.NAMES[number]
        folder = tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        corpus = (options.corpus or Path(folder)) / f"corpus-{number}"
        corpus.mkdir(parents=True, exist_ok=True)
        progress = Path(folder, "progress")
        progress.write_bytes(bytes(64))
        told = {
            "number": number, "folder": os.path.join(folder, "places"), "progress": str(progress), "keep": str(keep),
            "seed": options.seed, "sanitized": False, "slow": SLOW, "sweep": "",
            "arguments": [
                str(corpus), f"-runs={count}", f"-seed={options.seed}", f"-max_len={LONGEST}", f"-timeout={PATIENCE}",
                f"-rss_limit_mb={RESIDENT}", f"-artifact_prefix={keep}/{number}-", "-handle_bus=0",
            ],
        }  # fmt: skip
        began = time.monotonic()
        ran = subprocess.run(
            [sys.executable, str(where / "tests" / "fuzz" / "guided.py"), "--child", json.dumps(told)],
            env=env, capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        found = [json.loads(line)["fault"] for line in ran.stdout.splitlines() if line.startswith('{"fault"')]
        done = _DONE.search(ran.stderr)
        if ran.returncode or done is None:
            place = keep / f"{number}-died"
            shutil.copytree(folder, place, dirs_exist_ok=True)
            found.append(
                {"target": name, "what": f"died: {ran.returncode}", "trace": ran.stderr[-6000:], "files": str(place)}
            )
        shutil.rmtree(folder, ignore_errors=True)
        executions, branches, features, kept = map(int, done.groups()) if done else (0, 0, 0, 0)
        rows[name] = {
            "executions": executions, "branches": branches, "features": features, "corpus": kept, "faults": len(found),
            "seconds": round(time.monotonic() - began, 1),
        }  # fmt: skip
        faults += found
        print(f"{name:58}" + "".join(f"{value:>11,}" for value in rows[name].values()), flush=True)
    total = sum(row["executions"] for row in rows.values())
    print(f"{total:,} executions, {len(faults)} faults, seed {options.seed}")
    return {"seed": options.seed, "executions": total, "faults": faults, "targets": rows}


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]))
        return 0
    parser = argparse.ArgumentParser(description="Fuzzes with libFuzzer's guidance.")
    parser.add_argument("--executions", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        raise SystemExit("atheris is not installed: pip install atheris") from None
    if shutil.which("clang") is None:
        raise SystemExit("clang is not installed: it builds what libFuzzer can see into")
    import fuzzing
    import sanitize

    where = options.dir or Path(tempfile.mkdtemp(prefix="mmapds-guided-"))
    keep = options.keep or Path(tempfile.mkdtemp(prefix="fuzz-faults-"))
    keep.mkdir(parents=True, exist_ok=True)
    try:
        sanitize.build(where, BUILD)
        titles = ("executions", "branches", "features", "corpus", "faults", "seconds")
        print("format: target".ljust(58) + "".join(f"{title:>11}" for title in titles))
        result = campaign(where, fuzzing.shares(options.executions, options.only), options, keep)
        for fault in result["faults"]:
            print(f"\n{fault['target']}: {fault['what']}\n{fault['trace'][-3000:]}\n{fault['files']}")
        if options.json:
            options.json.write_text(json.dumps(result, indent=1))
        return 1 if result["faults"] else 0
    finally:
        if options.dir is None:
            shutil.rmtree(where, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
