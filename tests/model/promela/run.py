"""Runs the models of this directory through spin, and says for each run whether it came out as it must.

    python tests/model/promela/run.py [--all | --large] [--json FILE] [--trail] [--unreached] [MODEL[:RUN] ...]

A model declares its runs in comments, one on a line::

    /* run: NAME size=small|large expect=ok|error [finds="TEXT"] [check=safety|progress|ltl:NAME] [fair=yes]
            [depth=N] [cc=-DX,-DY] [-DMACRO[=VALUE] ...] */

``expect=ok``: the search visits every state and finds nothing. A search that was cut short, by the depth of the stack
or the memory, fails: it has not shown anything. ``expect=error``: the macros put a fault into the protocol, and spin
must find it; ``finds`` is a part of what it says (the text of the assertion, "invalid end state", "non-progress
cycle"), so that a run cannot come out right for a wrong reason. ``check=progress`` searches for cycles without a label
``progress``, ``check=ltl:NAME`` for a run that breaks a formula of the model, ``fair=yes`` only for those in which
nobody who could move stands still for ever.

Small runs take a second or so each, and are compiled without optimisation, which would take longer than they do.
Without ``--all`` only they are run. Models are searched one at a time.

spin (Holzmann) makes a program of C out of a model, which visits all states that its processes can reach in any order
of their steps. Rejected: TLA+ (needs Java; no fault in the comparison of the two, but spin is a package of Debian);
random schedules, which find what is likely and not what is possible.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
MEMORY = 6000  # MiB
_RUN = re.compile(r"/\*\s*run:\s*(.*?)\*/", re.DOTALL)
_CHECKS = {"safety": ["-DSAFETY"], "progress": ["-DNP"], "ltl": []}
# Lines of a trail that say nothing.
_NOISE = re.compile(r"\[(goto|\.\(goto\)|DO|IF|sub-sequence|else|\(1\)|break|D_STEP\d*|ATOMIC)|^\s*$")
# What pan says when it did not see all states.
_CUT = ("max search depth too small", "Search not completed", "reached -DMEMLIM", "out of memory", "hash table full")


@dataclass(frozen=True)
class Run:
    """One search, as a model declares it."""

    model: str
    name: str
    size: str = "small"
    expect: str = "ok"
    finds: str = ""
    check: str = "safety"
    fair: bool = False
    depth: int = 0  # of the stack
    cc: tuple[str, ...] = ()
    macros: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.model}:{self.name}"


@dataclass
class Outcome:
    """What came out of it. `result` is "ok", "found" (an error that was expected), or what is wrong."""

    run: Run
    result: str
    states: int = 0
    transitions: int = 0
    depth: int = 0
    megabytes: float = 0.0
    seconds: float = 0.0
    says: str = ""
    trail: str = ""
    unreached: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.result in ("ok", "found")


def missing() -> str:
    """Why nothing can be run here; empty if it can."""
    absent = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]
    return f"needs {' and '.join(absent)} (Debian: apt-get install spin gcc)" if absent else ""


def declared(path: Path) -> Iterator[Run]:
    """The runs of a model; ValueError says what is wrong with a declaration."""
    names = set()
    for found in _RUN.finditer(path.read_text()):
        name, *words = shlex.split(found[1])
        macros = tuple(word for word in words if word.startswith(("-D", "-U")))
        options = dict(word.split("=", 1) for word in words if not word.startswith(("-D", "-U")))
        run = Run(
            path.stem,
            name,
            options.pop("size", "small"),
            options.pop("expect", "ok"),
            options.pop("finds", ""),
            options.pop("check", "safety"),
            options.pop("fair", "no") == "yes",
            int(options.pop("depth", 0)),
            tuple(filter(None, options.pop("cc", "").split(","))),
            macros,
        )
        if (
            options
            or name in names
            or run.size not in ("small", "large")
            or run.expect not in ("ok", "error")
            or run.check.partition(":")[0] not in _CHECKS
            or (run.expect == "error") != bool(run.finds)
        ):
            raise ValueError(f"{path.name}: a run is declared wrongly, or twice: {found[0]}")
        names.add(name)
        yield run


def all_runs() -> list[Run]:
    """Of all models here."""
    return [run for path in sorted(HERE.glob("*.pml")) for run in declared(path)]


def search(run: Run, *, trail: bool = True, unreached: bool = False, limit: float | None = None) -> Outcome:
    """Generates, compiles and runs the search; after `limit` seconds it is cut short."""
    started = time.monotonic()
    path = HERE / f"{run.model}.pml"
    kind, _, formula = run.check.partition(":")
    with tempfile.TemporaryDirectory(prefix="promela-") as folder:

        def call(*command: str) -> tuple[int, str]:
            with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
                try:
                    said, _ = child.communicate(timeout=limit)
                except subprocess.TimeoutExpired:
                    child.send_signal(signal.SIGINT)  # pan prints what it has
                    said, _ = child.communicate()
                    said += b"\nSearch not completed: time is up\n"
                except BaseException:
                    child.kill()
                    raise
            return child.returncode, said.decode(errors="replace")

        def outcome(result: str, says: str) -> Outcome:
            return Outcome(run, result, seconds=time.monotonic() - started, says=says)

        code, text = call("spin", "-a", *run.macros, str(path))
        if code or "Error:" in text or not Path(folder, "pan.c").exists():
            return outcome("spin fails", text[-3000:])
        flags = [
            "-O0" if run.size == "small" or run.expect == "error" else "-O1",
            "-w",
            "-DCOLLAPSE",
            f"-DMEMLIM={MEMORY}",
            *_CHECKS[kind],
            *run.cc,
        ]
        code, text = call("gcc", *flags, "-o", "pan", "pan.c")
        if code:
            return outcome("gcc fails", text[-3000:])
        small = run.size == "small"
        options = [f"-m{run.depth or (100_000 if small else 5_000_000)}", "-w20" if small else "-w24"]
        options += {"safety": [], "progress": ["-l"], "ltl": ["-a"]}[kind]
        options += ["-N", formula] if formula else []
        options += ["-f"] if run.fair else []
        options += [] if unreached else ["-n"]
        code, text = call("./pan", *options)
        result = _read(text, outcome("", ""))
        result.seconds = time.monotonic() - started
        cut = [words for words in _CUT if words in text]
        steps = ""
        if "errors: 0" not in text:
            if trail and (left := list(Path(folder).glob("*.trail"))):
                steps = call("spin", "-k", left[0].name, "-p", "-g", "-l", *run.macros, str(path))[1]
                steps = "\n".join(line for line in steps.splitlines() if not _NOISE.search(line))
            first = re.search(r"^pan:\s*\d+:\s*(.*)$", text, re.MULTILINE)
            result.says = first[1] if first else text[-3000:]
        if run.expect == "error":
            # The search ends at the first error; only what it says counts.
            if not result.says or "errors: 0" in text:
                result.result, result.says = "NOT FOUND", f"spin was to find {run.finds!r}, and found nothing"
            elif run.finds not in result.says:
                result.result, result.trail = "WRONG ERROR", steps
            else:
                result.result = "found"
        elif "errors: 0" not in text:
            result.result, result.trail = "ERROR", steps
        elif cut:
            result.result, result.says = "CUT SHORT", cut[0]
        else:
            result.result = "ok"
        if unreached:
            result.unreached = _unreached(text)
        if trail and run.expect == "error":
            result.trail = steps
        return result


def _read(text: str, outcome: Outcome) -> Outcome:
    def number(pattern: str) -> float:
        found = re.search(pattern, text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    outcome.states = int(number(r"^\s*([0-9.e+]+) states, stored"))
    outcome.transitions = int(number(r"^\s*([0-9.e+]+) transitions"))
    outcome.depth = int(number(r"depth reached (\d+)"))
    outcome.megabytes = number(r"^\s*([0-9.]+)\s+total actual memory usage")
    return outcome


def _unreached(text: str) -> list[str]:
    """Lines of the model that no state came to: either the model has dead code, or a process never gets so far."""
    lines, where = [], ""
    for line in text.splitlines():
        if line.startswith("unreached in"):
            where = line.removeprefix("unreached in ").strip()
        elif where and line.startswith("\t") and ".pml:" in line:
            found = re.match(r"\t(.*?):(\d+), state \d+, (.*)", line)
            if found and found[3] != '"-end-"':
                lines.append(f"{where}, line {found[2]}: {found[3]}")
    return lines


def table(outcomes: list[Outcome]) -> str:
    """For people."""
    rows = [("model", "run", "states", "transitions", "depth", "MiB", "seconds", "result")]
    for o in outcomes:
        numbers = (f"{o.states:,}", f"{o.transitions:,}", f"{o.depth:,}", f"{o.megabytes:,.0f}", f"{o.seconds:,.1f}")
        said = f"{o.result}: {o.says}" if o.says else o.result
        rows.append((o.run.model, o.run.name, *numbers, said))
    widths = [max(len(row[i]) for row in rows) for i in range(7)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), row[1].ljust(widths[1]), *(row[i].rjust(widths[i]) for i in range(2, 7)), row[7]]
        )
        for row in rows
    )


def chosen(wanted: list[str], *, everything: bool, large: bool) -> list[Run]:
    """The runs that the command line asks for."""
    runs = all_runs()
    known = {run.model for run in runs} | {str(run) for run in runs}
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"there is no model or run {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if wanted:
        runs = [run for run in runs if run.model in wanted or str(run) in wanted]
    return [run for run in runs if everything or str(run) in wanted or run.size == ("large" if large else "small")]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL[:RUN]", help="default: all")
    parser.add_argument("--all", action="store_true", help="large ones too")
    parser.add_argument("--large", action="store_true", help="large ones only")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="cut each search short after so long")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    parser.add_argument("--trail", action="store_true", help="print the steps to each error")
    parser.add_argument("--unreached", action="store_true", help="print what no state of a complete search came to")
    arguments = parser.parse_args()
    if reason := missing():
        raise SystemExit(reason)
    outcomes = []
    for run in chosen(arguments.models, everything=arguments.all, large=arguments.large):
        print(f"{run} ...", end=" ", flush=True, file=sys.stderr)
        found = search(run, unreached=arguments.unreached, limit=arguments.limit)
        print(f"{found.result}, {found.states:,} states, {found.seconds:.1f} s", file=sys.stderr)
        outcomes.append(found)
        if found.trail and (arguments.trail or not found.good):
            print(f"--- {run}: {found.says}\n{found.trail}")
        if found.unreached and run.expect == "ok":
            print(f"--- {run}: not reached\n  " + "\n  ".join(found.unreached))
        if arguments.json:  # kept as it grows: a long run may be stopped
            arguments.json.write_text(
                json.dumps([{**asdict(o), "trail": "", "good": o.good} for o in outcomes], indent=1)
            )
    print(table(outcomes))
    bad = [str(o.run) for o in outcomes if not o.good]
    states = sum(o.states for o in outcomes if o.result == "ok")
    print(
        f"{len(outcomes)} runs, {states:,} states in those that must find nothing, "
        f"{sum(o.result == 'found' for o in outcomes)} faults found; "
        + (f"WRONG: {', '.join(bad)}" if bad else "all as they must be")
    )
    return 1 if bad or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
