"""The power-loss simulator, the whole of it: at least so many distinct states of disks, and every call site that syncs.

    python tests/crash/powerloss_all.py [--states 100000] [--teeth] [--seed 6] [--structure NAME ...] [--json FILE]

For each structure: its lives are recorded, from the creation on, with kills and recoveries (powerlives.py), states that
a disk may be in are rebuilt, recovered by the real code, and checked (powerchecks.py). All combinations, where no more
than 12 units (sectors of 512 bytes, sizes, names) are dirty; samples with the seed where there are more. If that comes
to fewer states than asked for, more lives by chance are recorded; if it is far more, not every moment is looked at.
With --teeth, each call site that syncs lies in turn: for each there must be a state that is refuted, or it is in
REDUNDANT (powersites.py) with the reason.

Exit status 1: a state was refuted, or a lie was not, that should have been.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parent)]

from powerrun import STRUCTURES, Run  # noqa: E402
from powersites import REDUNDANT, key  # noqa: E402

SHARES = {"Synchronizer": 0.33, "Counters": 0.05, "Queue": 0.34, "SnapshotMap": 0.28}
COUNTED = ("recordings", "moments", "exhausted", "built", "distinct", "written", "torn", "absent", "refused")


def states(structure: str, wanted: int, seed: int, seeded: int = 16) -> dict[str, Any]:
    """Figures of at least so many distinct states."""
    total: dict[str, Any] = {}
    turn = 0
    while total.get("distinct", 0) < wanted:
        with Run(structure, seed + 100 * turn) as run:
            # The lives once; then lives by chance, until it is enough.
            run.record(None if turn == 0 else [], wanders=8 if turn == 0 else 24, recoveries=16)
            left = wanted - total.get("distinct", 0)
            # Where that is far more than asked for, not all moments are looked at; more of those when a step has ended.
            share = min(1.0, 1.5 * left / run.estimate(seeded))
            found = run.explore(0, seeded=seeded, share=share)
            for again in range(1, 4):  # other samples of the same
                if found["distinct"] < left:
                    found = run.explore(left - found["distinct"], seeded=seeded, share=share, turn=again)
        assert found["distinct"], found
        for name in COUNTED:
            total[name] = total.get(name, 0) + found[name]
        total["most_units"] = max(total.get("most_units", 0), found["most_units"])
        turn += 1
        print(f"  {structure}: {total['distinct']} distinct states", file=sys.stderr, flush=True)
    return total


def teeth(structure: str, seed: int) -> list[dict[str, Any]]:
    """For each call site: how often it synced, and how it was found that it lied."""
    found = []
    with Run(structure, seed) as run:
        run.record(wanders=8, recoveries=16)
        for site, calls in sorted(run.sites().items()):
            refuted, looked = run.lie(site)
            reason = REDUNDANT.get(key(site), "")
            found.append(
                {
                    "structure": structure,
                    "site": site,
                    "calls": calls,
                    "found": refuted,
                    "states": looked,
                    "why": reason,
                }
            )
            print(f"  {'found' if refuted else 'NOT FOUND':9} {site}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--states", type=int, default=100_000, help="in all; 0: none")
    parser.add_argument("--teeth", action="store_true")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--structure", nargs="*", default=STRUCTURES, choices=STRUCTURES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    failed = 0
    result: dict[str, Any] = {"seed": options.seed, "states": {}, "teeth": [], "seconds": {}}
    for structure in options.structure:
        begun = time.monotonic()
        if options.states:
            share = SHARES[structure] / sum(SHARES[name] for name in options.structure)
            try:
                result["states"][structure] = states(structure, -(-int(options.states * share) // 1), options.seed)
            except Exception as error:  # noqa: BLE001  the others are looked at, too
                failed = 1
                result["states"][structure] = {"failure": str(error)}
                print(error, file=sys.stderr)
        if options.teeth:
            result["teeth"] += teeth(structure, options.seed)
        result["seconds"][structure] = round(time.monotonic() - begun)
    if result["states"]:
        print(f"{'':14}" + "".join(f"{name:>12}" for name in (*COUNTED, "most units")))
        sums = dict.fromkeys(COUNTED, 0)
        for structure, found in result["states"].items():
            if "failure" in found:
                print(f"{structure:14}  REFUTED: {found['failure'].splitlines()[0]}")
                continue
            print(f"{structure:14}" + "".join(f"{found[name]:12}" for name in (*COUNTED, "most_units")))
            for name in COUNTED:
                sums[name] += found[name]
        print(f"{'all':14}" + "".join(f"{sums[name]:12}" for name in COUNTED))
    for row in result["teeth"]:
        outcome = "found" if row["found"] else "redundant" if row["why"] else "NOT FOUND"
        failed |= outcome == "NOT FOUND"
        print(f"{outcome:10} {row['structure']:13} {row['calls']:5} calls {row['states']:5} states  {row['site']}")
    unproven = {key(row["site"]) for row in result["teeth"] if not row["found"]}
    if result["teeth"] and set(options.structure) == set(STRUCTURES):
        for stale in REDUNDANT.keys() - unproven:
            failed = 1
            print(f"found, or gone, so not redundant: {stale}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    return failed


if __name__ == "__main__":
    sys.exit(main())
