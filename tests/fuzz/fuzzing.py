"""Feeds millions of damaged files to every parser and opener, in processes of their own, and counts what happens.

    python tests/fuzz/run.py --executions N [--workers 1] [--seed S] [--only TEXT] [--json FILE] [--keep DIRECTORY]
    python tests/fuzz/run.py --beside --executions N [...]         files that another process changes all the while
    python tests/fuzz/run.py --sweep limits|bits [--stride N] [--only TEXT] [--json FILE]
    python tests/fuzz/run.py --replay DIRECTORY          what was kept of a fault, once more

A sweep is not random: it sets every word of every format to every value at and beyond a limit, without and with its
checksums repaired, or inverts every bit of every header; ``--json`` has the outcomes by file and offset.

An execution is one damaged set of files that is given to one way in, which is used until it ends or raises. Faults are:
a crash, a hang (an execution that takes more than two seconds of processor time, or a slice that does not end within
`PATIENCE`), an exception that is not documented, a value that nobody wrote, and memory without bound. Whatever was fed
is kept, with the seed.

The files of a run have identities that the seed decides, so the same seed does the same, but for what depends on time
and on the order of the memory. `fuzzworker.py` says how files are damaged, `fuzztargets.py` what is done with them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "support"))

PATIENCE = 120.0  # seconds for a slice; under sanitizers ten times that


@dataclass
class Row:
    """What became of one target."""

    executions: int = 0
    distinct: int = 0
    corpus: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    memory: int = 0
    crashes: int = 0
    hangs: int = 0
    wrong: int = 0
    undocumented: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    fields: dict[str, Counter[str]] = field(default_factory=dict)  # of a sweep: by file and offset


@dataclass
class Result:
    """What became of a run."""

    rows: dict[str, Row]
    faults: list[dict[str, Any]]
    seed: int
    seconds: float = 0.0

    @property
    def executions(self) -> int:
        return sum(row.executions for row in self.rows.values())

    def table(self) -> str:
        """For people."""
        titles = (
            ("executions", 11),
            ("us CPU", 9),
            ("outcomes", 9),
            ("crashes", 8),
            ("hangs", 6),
            ("wrong", 6),
            ("undoc.", 7),
        )
        lines = ["format: target".ljust(58) + "".join(title.rjust(width) for title, width in titles)]
        formats: dict[str, Row] = {}
        for name, row in self.rows.items():
            if row.executions or row.crashes or row.hangs:
                lines.append(_line(name, row))
                whole = formats.setdefault(name.split(":")[0], Row())
                for each in ("executions", "distinct", "seconds", "crashes", "hangs", "wrong", "undocumented"):
                    setattr(whole, each, getattr(whole, each) + getattr(row, each))
        lines.append("")
        lines += [_line(f"all of {name}", row) for name, row in formats.items()]
        total = Row()
        outcomes: Counter[str] = Counter()
        for row in self.rows.values():
            outcomes.update(row.outcomes)
            for each in ("executions", "distinct", "seconds", "crashes", "hangs", "wrong", "undocumented"):
                setattr(total, each, getattr(total, each) + getattr(row, each))
        lines.append(_line("all", total))
        memory = max((row.memory for row in self.rows.values()), default=0)
        slowest = max((row.slowest for row in self.rows.values()), default=0.0)
        lines.append("")
        lines.append(", ".join(f"{name} {count:,}" for name, count in outcomes.most_common()))
        lines.append(
            f"seed {self.seed}; {self.seconds:.0f} s; memory grew by {memory >> 20} MiB at most; slowest execution "
            f"{slowest:.2f} s; faults: {len(self.faults)}"
        )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "seed": self.seed, "seconds": round(self.seconds, 1), "executions": self.executions, "faults": self.faults,
            "targets": {
                name: {
                    **row.__dict__, "outcomes": dict(row.outcomes), "seconds": round(row.seconds, 1),
                    "fields": {at: dict(found) for at, found in row.fields.items()},
                }
                for name, row in self.rows.items()
                if row.executions
            },
        }  # fmt: skip


def _line(name: str, row: Row) -> str:
    each = row.seconds / row.executions * 1e6 if row.executions else 0.0
    return (
        f"{name:58}{row.executions:>11,}{each:>9.0f}{row.distinct:>9}{row.crashes:>8}{row.hangs:>6}{row.wrong:>6}"
        f"{row.undocumented:>7}"
    )


def shares(executions: int, only: str = "") -> dict[int, int]:
    """How many of them each target gets."""
    import fuzztargets

    every = {n: target.share for n, (target, _) in enumerate(fuzztargets.PAIRS) if only in fuzztargets.NAMES[n]}
    total = sum(every.values())
    counts = {n: max(1, int(executions * share / total)) for n, share in every.items()}
    if counts:
        largest = max(counts, key=lambda n: counts[n])
        counts[largest] += max(0, executions - sum(counts.values()))
    return counts


class Child:
    """A worker, as its parent sees it."""

    def __init__(self, options: dict[str, Any], command: list[str], env: dict[str, str]) -> None:
        self.folder = tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.progress = os.path.join(self.folder, "progress")
        Path(self.progress).write_bytes(bytes(64))
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the child
        options = {**options, "folder": os.path.join(self.folder, "places"), "progress": self.progress}
        self.options = options
        self.process = subprocess.Popen(
            [*command, json.dumps(options)], stdout=subprocess.PIPE, stderr=self.errors, env=env
        )

    def lines(self, patience: float) -> Iterator[dict[str, Any] | None]:
        """What it says; None if it says nothing for so long."""
        assert self.process.stdout is not None
        buffer = b""
        while True:
            if not select.select([self.process.stdout], [], [], patience)[0]:
                yield None
                return
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                yield json.loads(line)

    def stderr(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")[-6000:]

    def where(self) -> tuple[int, int]:
        """The target it was in, and the execution of the slice."""
        target, number = struct.unpack("<2Q", Path(self.progress).read_bytes()[:16])
        return target, number

    def keep(self, target: str, what: str, keep: str) -> dict[str, Any]:
        """Its files as they lie there: what it died of, or hangs in."""
        number, execution = self.where()
        where = os.path.join(keep, f"{self.process.pid}-{what.split(maxsplit=1)[0]}")
        with contextlib.suppress(OSError):
            os.makedirs(where)
            source = Path(self.folder, "places", str(number))
            for at, _, names in os.walk(source):
                for name in names:
                    path = Path(at, name)
                    copy = Path(where, path.relative_to(source))
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    with open(path, "rb") as file, open(copy, "wb") as out:
                        out.write(file.read(4 << 20))
                        out.truncate(min(path.stat().st_size, 1 << 40))
        told = {
            "target": target, "what": what, "seed": self.options["seed"], "execution": execution, "files": where,
            "trace": self.stderr(), "honest": False,
        }  # fmt: skip
        with contextlib.suppress(OSError):
            Path(where, "fault.json").write_text(json.dumps(told, indent=1))
        return told

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def campaign(
    executions: int,
    *,
    seed: int,
    keep: str,
    only: str = "",
    counts: dict[int, int] | None = None,
    command: list[str] | None = None,
    env: dict[str, str] | None = None,
    sanitized: bool = False,
    patience: float = PATIENCE,
    most_deaths: int = 20,
    progress: bool = False,
    sweep: str = "",
    stride: int = 1,
    memory: int = 1 << 30,
    seconds: float = float("inf"),
    figures: str | None = None,
    episode: int = 300,
    slow: float = 2.0,
) -> Result:
    """Runs until all executions are done, by one worker after the other if they die.

    `sweep`: "limits" or "bits", every `stride`-th of the fields' values, or bits, instead of so many random executions.
    """
    import fuzztargets

    counts = dict(counts if counts is not None else shares(executions, only))
    result = Result({name: Row() for name in fuzztargets.NAMES}, [], seed)
    if sweep in ("limits", "bits"):
        counts, most_deaths = dict.fromkeys(counts, 1), 0
    command = command or [sys.executable, "-X", "faulthandler", "-W", "error", str(HERE / "fuzzworker.py")]
    deaths = 0
    begin = told = time.monotonic()
    while any(counts.values()) and deaths <= most_deaths and time.monotonic() - begin < seconds:
        rounds = max(1, min(200, sum(counts.values()) // 40_000))
        options = {
            "seed": seed + 1_000_003 * deaths, "counts": {n: count for n, count in counts.items() if count},
            "rounds": rounds, "keep": keep, "sanitized": sanitized,
            "sweep": sweep, "stride": stride, "memory": memory, "episode": episode, "slow": slow,
        }  # fmt: skip
        child = Child(options, command, env or dict(os.environ))
        try:
            hung = False
            for line in child.lines(patience):
                if line is None:
                    hung = True
                    child.process.send_signal(signal.SIGABRT)  # faulthandler says where
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.process.wait(20)
                    break
                if "fault" in line:
                    fault = line["fault"]
                    result.faults.append(fault)
                    row = result.rows[fault["target"]]
                    if fault["what"].startswith("wrong"):
                        row.wrong += 1
                    elif fault["what"].startswith("hang"):
                        row.hangs += 1
                    else:
                        row.undocumented += 1
                    continue
                _add(result.rows[fuzztargets.NAMES[line["target"]]], line)
                counts[line["target"]] = (
                    0 if sweep in ("limits", "bits") else max(0, counts[line["target"]] - line["count"])
                )
                result.seconds = time.monotonic() - begin
                if progress and time.monotonic() - told > 60:
                    told = time.monotonic()
                    print(f"{told - begin:6.0f} s {result.executions:>12,} executions", flush=True)
                    if figures:
                        Path(figures).write_text(json.dumps(result.as_json(), indent=1))
                if result.seconds > seconds:
                    return result
            status = child.process.wait()
            if hung or status:
                deaths += 1
                number, execution = child.where()
                name = fuzztargets.NAMES[number]
                what = f"hang: no slice within {patience:.0f} s" if hung else f"crash: exit status {status}"
                result.faults.append(child.keep(name, what, keep))
                row = result.rows[name]
                row.executions += execution
                counts[number] = max(0, counts.get(number, 0) - execution - 1)
                if hung:
                    row.hangs += 1
                else:
                    row.crashes += 1
        finally:
            child.close()
    result.seconds = time.monotonic() - begin
    return result


def _add(row: Row, line: dict[str, Any]) -> None:
    row.executions += line["count"]
    row.distinct = max(row.distinct, line["distinct"])
    row.corpus = max(row.corpus, line["corpus"])
    row.seconds += line["seconds"]
    row.slowest = max(row.slowest, line["slowest"])
    row.memory = max(row.memory, line["memory"])
    row.outcomes.update(line["outcomes"])
    for name, outcomes in line["fields"].items():
        row.fields.setdefault(name, Counter()).update(outcomes)


def parallel(
    executions: int, workers: int, seed: int, keep: str, only: str, seconds: float, figures: str | None
) -> Result:
    """The same by several at once, each with a seed of its own."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers) as pool:
        parts = list(
            pool.map(
                lambda n: campaign(
                    executions // workers + (n < executions % workers),
                    seed=seed + n,
                    keep=keep,
                    only=only,
                    progress=n == 0,
                    seconds=seconds,
                    figures=figures if n == 0 else None,
                ),
                range(workers),
            )
        )
    whole = parts[0]
    for part in parts[1:]:
        whole.faults += part.faults
        whole.seconds = max(whole.seconds, part.seconds)
        for name, row in part.rows.items():
            ours = whole.rows[name]
            for each in ("executions", "seconds", "crashes", "hangs", "wrong", "undocumented"):
                setattr(ours, each, getattr(ours, each) + getattr(row, each))
            for each in ("distinct", "corpus", "slowest", "memory"):
                setattr(ours, each, max(getattr(ours, each), getattr(row, each)))
            ours.outcomes.update(row.outcomes)
    return whole


def tell(result: Result) -> None:
    """Every fault once."""
    seen = Counter((fault["target"], fault["what"][:60]) for fault in result.faults)
    for fault in result.faults:
        if count := seen.pop((fault["target"], fault["what"][:60]), 0):
            print(f"\n{count} x {fault['target']}: {fault['what'][:600]}\n  kept in {fault['files']}")
            print(fault["trace"][-1500:])


def main() -> int:
    parser = argparse.ArgumentParser(description="Feeds damaged files to every parser and opener.")
    parser.add_argument("--executions", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sweep", choices=("limits", "bits"), default="", help="all of them, instead of random ones")
    parser.add_argument("--beside", action="store_true", help="while another process changes the files all the time")
    parser.add_argument("--stride", type=int, default=1, help="of a sweep: every so many")
    parser.add_argument("--only", default="", help="targets whose name has this text")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop then, and say how many there were")
    parser.add_argument("--json", help="a file for the figures")
    parser.add_argument("--keep", help="a directory for what was fed in each fault")
    parser.add_argument("--replay", help="the directory of a fault")
    options = parser.parse_args()
    if options.replay:
        import fuzzworker

        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as where:
            print(fuzzworker.replay(options.replay, where))
        return 0
    keep = options.keep or tempfile.mkdtemp(prefix="fuzz-faults-")
    os.makedirs(keep, exist_ok=True)
    seconds = 60 * options.minutes
    if options.beside or options.sweep:
        result = campaign(
            0 if options.sweep else options.executions,
            seed=options.seed,
            keep=keep,
            only=options.only,
            sweep=options.sweep or "beside",
            stride=options.stride,
            seconds=seconds,
            progress=True,
        )
    else:
        result = parallel(options.executions, options.workers, options.seed, keep, options.only, seconds, options.json)
    print(result.table())
    tell(result)
    if options.json:
        Path(options.json).write_text(json.dumps(result.as_json(), indent=1))
    return 1 if result.faults else 0
