"""Everything at once, for an hour, with kills: `python tests/stress/soak.py --minutes 60 [--json FILE] [--dir D]`.

One Synchronizer with two processes that want to write and readers; the same in mmap-sync's files; Counters; a Queue in
process and one in power durability; a SnapshotMap with commits, compaction, followers and private copies. Every 100 to
500 ms a process is killed (SIGKILL) or stopped (SIGSTOP, later SIGCONT), mostly in the middle of its work, and the dead
are replaced. Twice a minute there is a checkpoint: the history of the window is checked whole (linearizability of each
counter; order, exactly once or again, and attempts of the queues; versions and their content; see ``histories.py`` and
``queuehistory.py``), every file is verified, and files, disk, descriptors, mappings, memory and slots must be bounded.
Processes that are never killed are there to show what a long life leaks.

At the end a report in plain text, also after a SIGTERM; the status is 1 if anything was wrong, and the files are kept
then. Work is paced to about two thirds of one processor, at niceness 10 (5 for who kills and checks); with `--pace 1`
it rests twice as long.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import histories
from fleet import Fleet, FleetError, Process
from scenes import SCENES, QueueScene, Scene, SyncScene

ALLOWED = {"descriptors": 16, "mappings": 64, "anonymous KiB": 16384}  # what a long life may gain
LOGS_LIMIT = 256 << 20
NICE = 5  # of this program, which has to be in time to kill; twice as much for those who work


def measure(process: Process) -> dict[str, int]:
    """What a process has now."""
    where = f"/proc/{process.pid}"
    with open(f"{where}/status") as file:
        anonymous = next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))
    with open(f"{where}/maps") as file:
        mappings = sum(1 for _ in file)
    return {"descriptors": len(os.listdir(f"{where}/fd")), "mappings": mappings, "anonymous KiB": anonymous}


class Soak:
    """One run. `violations`: what was wrong, in words; it ends at the first."""

    def __init__(self, folder: str, seed: int, pace: float) -> None:
        self.folder, self.seed, self.pace = folder, seed, pace
        self.scenes: list[Scene] = [scene(folder) for scene in SCENES]
        self.violations: list[str] = []
        self.checks: Counter[str] = Counter()
        self.first: dict[int, dict[str, int]] = {}  # of a process that is never killed: what it had at first
        self.maxima: Counter[str] = Counter()
        self.leftovers = 0
        self.killer_error: list[BaseException] = []
        self.over = threading.Event()

    def note(self, name: str, value: int, limit: int | None = None) -> None:
        """A resource: its maximum is told, and the limit is a limit."""
        self.maxima[name] = max(self.maxima[name], value)
        self.checks["limits of resources"] += limit is not None
        if limit is not None and value > limit:
            self.violations.append(f"{name}: {value}, more than {limit}")

    def run(self, seconds: float, window: float) -> None:
        """Works for so long, with a checkpoint after each `window` seconds."""
        over = self.over
        roles = [role for scene in self.scenes for role in scene.roles]
        with Fleet(self.folder, roles, self.seed, self.pace, NICE) as fleet:
            self.fleet = fleet
            fleet.start_all()

            def harass() -> None:
                try:
                    fleet.harass(until=over.is_set)
                except BaseException as error:  # noqa: BLE001  told by the main thread
                    self.killer_error.append(error)
                    over.set()

            killer = threading.Thread(target=harass)
            killer.start()
            try:
                end = time.monotonic() + seconds
                while not self.violations and not over.is_set() and (left := end - time.monotonic()) > 0:
                    over.wait(min(window, left))
                    self.checkpoint()
                    print(self.progress(), file=sys.stderr, flush=True)
            except Exception as error:  # noqa: BLE001  whatever a structure raises is in the report
                self.violations.append(f"{type(error).__name__}: {error}")
            finally:
                over.set()
                killer.join()
            if not self.violations:
                self.finish()

    def checkpoint(self) -> None:
        if self.killer_error:
            raise FleetError(str(self.killer_error[0]))
        with self.fleet.paused() as ops:
            states = {scene.name: scene.capture() for scene in self.scenes}
            self.verify()
            self.measure()
        self.check(ops, states)
        self.checks["checkpoints"] += 1

    def check(self, ops: dict[str, list[histories.Op]], states: dict[str, Any]) -> None:
        for scene in self.scenes:
            self.checks["histories"] += 1
            try:
                scene.check(ops.get(scene.name, []), states[scene.name], self.fleet.killed)
            except histories.HistoryError as error:
                self.violations.append(f"{scene.name}: {error}")

    def verify(self) -> None:
        for scene in self.scenes:
            self.violations += scene.verify()
            self.checks["structures verified"] += 1

    def measure(self) -> None:
        for scene in self.scenes:
            files, size = scene.disk()
            self.note(f"files of {scene.name}", files, scene.files_limit)
            self.note(f"bytes of {scene.name}", size, scene.bytes_limit)
            if isinstance(scene, SyncScene):
                self.note("slots of synchronizer in use", scene.slots())
        logs = [os.stat(entry).st_blocks * 512 for entry in os.scandir(f"{self.folder}/logs")]
        self.note("bytes of logs", sum(logs), LOGS_LIMIT)
        alive = {str(process.number) for process in self.fleet.running}
        for name in set(os.listdir(f"{self.folder}/private")) - alive:
            shutil.rmtree(f"{self.folder}/private/{name}", ignore_errors=True)
            self.leftovers += 1
        for process in self.fleet.running:
            found = measure(process)
            for what, value in found.items():
                self.note(f"{what} of any process", value)
            if not process.role.kill and self.checks["checkpoints"] >= 1:
                first = self.first.setdefault(process.number, found)
                for what, value in found.items():
                    self.note(f"{what} gained in a long life", value - first[what], ALLOWED[what])
        self.note("descriptors of this program", len(os.listdir("/proc/self/fd")), 64)
        self.note("peak KiB of this program", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    def finish(self) -> None:
        """Everybody is killed; what is left is looked at once more, and the queues are drained."""
        fleet = self.fleet
        try:
            if self.killer_error:
                raise FleetError(str(self.killer_error[0]))
            with fleet.lock:
                for process in list(fleet.running):
                    fleet.kill(process)
                self.check(dict(fleet.ops), {scene.name: scene.capture() for scene in self.scenes})
                for scene in self.scenes:
                    if isinstance(scene, QueueScene):
                        scene.drain()
                        self.checks["queues drained"] += 1
                self.verify()
        except Exception as error:  # noqa: BLE001
            self.violations.append(f"at the end: {type(error).__name__}: {error}")

    def progress(self) -> str:
        kills = self.fleet.kills.total()
        ops = sum(scene.ops for scene in self.scenes)
        when = f"{time.strftime('%H:%M:%S')} checkpoint {self.checks['checkpoints']}"
        return f"{when}: {ops} operations, {kills} kills, {len(self.violations)} violations"

    def result(self, seconds: float) -> dict[str, Any]:
        """All figures."""
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        queues = [scene for scene in self.scenes if isinstance(scene, QueueScene)]
        return {
            "seconds": round(seconds),
            "seed": self.seed,
            "pace": self.pace,
            "machine": f"{platform.release()} {platform.machine()}, {os.cpu_count()} processors",
            "processor_seconds": round(sum(one.ru_utime + one.ru_stime for one in used)),
            "processes_started": self.fleet.number,
            "operations": {scene.name: scene.ops for scene in self.scenes},
            "unknown_outcomes": {scene.name: scene.unknown for scene in self.scenes},
            "queues": {
                scene.name: {
                    "deliveries": scene.checker.delivered,
                    "died in the middle of a get": scene.checker.lost,
                    "died in the middle of an ack": scene.checker.unsure,
                    "claims that died before they were noted": scene.checker.missing,
                }
                for scene in queues
            },
            "kills": dict(sorted(self.fleet.kills.items())),
            "stops": dict(sorted(self.fleet.stops.items())),
            "checks": dict(self.checks),
            "maxima": dict(sorted(self.maxima.items())),
            "private_maps_left_by_the_dead": self.leftovers,
            "violations": self.violations,
        }


def table(result: dict[str, Any]) -> str:
    """The report in plain text."""
    lines = [
        f"soak: {result['seconds']} s, seed {result['seed']}, pace {result['pace']}, {result['machine']}",
        f"processor time: {result['processor_seconds']} s; processes started: {result['processes_started']}",
        "",
        f"{'operations':34}{'checked':>12}{'outcome unknown':>18}",
    ]
    for name, count in result["operations"].items():
        lines.append(f"  {name:32}{count:>12,}{result['unknown_outcomes'][name]:>18,}")
    total = sum(result["operations"].values())
    lines.append(f"  {'all':32}{total:>12,}{sum(result['unknown_outcomes'].values()):>18,}")
    for name, figures in result["queues"].items():
        lines += ["", name, *(f"  {what:44}{count:>10,}" for what, count in figures.items())]
    lines += ["", f"{'by role':34}{'SIGKILL':>12}{'SIGSTOP':>18}"]
    for role in sorted(result["kills"] | result["stops"]):
        lines.append(f"  {role:32}{result['kills'].get(role, 0):>12,}{result['stops'].get(role, 0):>18,}")
    lines.append(f"  {'all':32}{sum(result['kills'].values()):>12,}{sum(result['stops'].values()):>18,}")
    lines += ["", "checks", *(f"  {what:44}{count:>10,}" for what, count in result["checks"].items())]
    lines += ["", "maxima", *(f"  {what:44}{count:>14,}" for what, count in result["maxima"].items())]
    lines += ["", f"violations: {len(result['violations'])}", *result["violations"]]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Everything at once, with kills.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--window", type=float, default=30.0, help="seconds from one checkpoint to the next")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pace", type=float, default=0.5, help="how long processes rest; less is more work")
    parser.add_argument("--dir", help="where the files are made (default: the directory for temporary files)")
    parser.add_argument("--json", help="the figures, as a file")
    options = parser.parse_args(arguments)
    os.nice(max(0, NICE - os.nice(0)))
    gc.disable()  # histories are millions of tuples, and none is part of a cycle
    folder = tempfile.mkdtemp(prefix="mmapds-soak-", dir=options.dir)
    begin = time.monotonic()
    soak = Soak(folder, options.seed, options.pace)
    signal.signal(signal.SIGTERM, lambda *_: soak.over.set())
    soak.run(options.minutes * 60, options.window)
    result = soak.result(time.monotonic() - begin)
    if result["violations"]:
        print(f"the files are kept: {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    print(table(result), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
