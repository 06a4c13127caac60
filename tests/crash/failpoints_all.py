"""Every point of every operation of every structure: killed there, and each call failed with each errno that fits.

    python tests/crash/failpoints_all.py [--json FILE] [WORDS ...]

WORDS: only operations that have all of them in their names. Prints a table; exit status 1 if something failed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import failjobs
import failpoints

from mmapds import UnsupportedFilesystem, files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORDS")
    parser.add_argument("--json", metavar="FILE", help="keep the figures there")
    arguments = parser.parse_args()
    if reason := failpoints.missing():
        sys.exit(f"cannot be done here: {reason}")
    if failpoints.MADE not in os.environ:
        # Who looks afterwards runs the same build: the sources may change in the half hour that this takes.
        made = {failpoints.MADE: f"{failpoints.modules()}{os.pathsep}{failpoints.package()}"}
        path = {"PYTHONPATH": failpoints.package()}
        return subprocess.run([sys.executable, *sys.argv], env={**os.environ, **made, **path}, check=False).returncode
    begun = time.monotonic()
    cases = [case for case in failjobs.cases() if all(word in str(case) for word in arguments.words)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        allow(folder)
        with failjobs.Runner(folder) as runner:
            figures = runner.figures
            print(
                f"{'structure':12} {'operation':36} {'durability':10} {'points':>6} {'kills':>6} {'errnos':>6} failures"
            )
            for case in cases:
                before = len(figures.failures)
                failjobs.run(runner, case, lambda text: print(f"    {text[:2000]}", flush=True))
                name = str(case)
                row = (
                    case.structure, case.operation, case.durability, figures.points[name], figures.kills[name],
                    figures.errors[name], len(figures.failures) - before,
                )  # fmt: skip
                rows.append(row)
                print(f"{row[0]:12} {row[1]:36.36} {row[2]:10} {row[3]:6} {row[4]:6} {row[5]:6} {row[6]:8}", flush=True)
    print("\nwhat a call that failed led to:")
    for what, count in sorted(figures.raised.items()):
        print(f"    {count:6}  {what}")
    used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    totals = {
        "operations": len(rows),
        "points": sum(row[3] for row in rows),
        "kills": sum(row[4] for row in rows),
        "errnos": sum(row[5] for row in rows),
        "failures": len(figures.failures),
        "seconds": round(time.monotonic() - begun),
        "cpu_seconds": round(used),
    }
    print("\n" + ", ".join(f"{name} {value}" for name, value in totals.items()))
    if arguments.json:
        report = {"totals": totals, "rows": rows, "raised": dict(figures.raised), "failures": figures.failures}
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")
    return 1 if figures.failures else 0


def allow(folder: str) -> None:
    """In a container temporary files often lie on overlayfs, which is refused unless one says otherwise."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        files.check_filesystem(fd, folder, "process")
    except UnsupportedFilesystem:
        os.environ[files.ANY_FILESYSTEM] = "1"
    finally:
        os.close(fd)


if __name__ == "__main__":
    sys.exit(main())
