"""A fleet of processes that work on structures while they are killed and stopped at random; their history is checked.

A fresh interpreter, the zygote, forks the processes, so that each is cheap and as small as the first. Somebody sends
them SIGKILL, SIGSTOP and SIGCONT at random moments, and replaces the dead. At a checkpoint nobody is in the middle of
anything: who was stopped goes on, everybody finishes his burst and waits at a gate (a lock of the kernel), the logs are
read, the structures looked at, the gate opens. So each window between two checkpoints is a history that is complete,
with a known state before and after it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import histories as h
from peers import Peer

WATCHDOG = 120.0  # seconds for all to come to the gate


@dataclass
class Role:
    """A place in the fleet. `structure`: what its operations belong to."""

    name: str
    structure: str
    job: str
    options: dict[str, Any] = field(default_factory=dict)
    kill: bool = True
    stop: bool = True


@dataclass
class Process:
    """Who has a place."""

    role: Role
    number: int
    pid: int
    journal: h.Journal
    stopped: float = 0.0  # until when


class FleetError(AssertionError):
    """A process ended by itself, or does not come to the gate."""


class Fleet:
    """All processes. `kills` and `stops` by role, and `killed` (when) tell what was done to them."""

    def __init__(self, folder: str, roles: list[Role], seed: int = 1, pace: float = 1.0, nice: int = 0) -> None:
        self.folder, self.roles, self.pace, self.nice = folder, roles, pace, nice
        self.choose = random.Random(seed)
        self.number = 0
        self.running: list[Process] = []
        self.kills: Counter[str] = Counter()
        self.stops: Counter[str] = Counter()
        self.done: Counter[str] = Counter()  # by those who are dead
        self.killed: dict[int, int] = {}
        self.ops: defaultdict[str, list[h.Op]] = defaultdict(list)  # of the window, by structure
        self.lock = threading.RLock()
        for name in ("logs", "private"):
            os.mkdir(f"{folder}/{name}")
        self.gate = open(f"{folder}/gate", "w+b")  # noqa: SIM115  closed with the fleet
        self.gate.truncate(8)
        self.control = memoryview(mmap.mmap(self.gate.fileno(), 8)).cast("q")
        self.turn = 0
        self.zygote = Peer("import historyjobs")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.lock:
            self.zygote.__exit__(None, None, None)  # and with it the others
            self.gate.close()

    # ---- processes ------------------------------------------------------------------------------------------------

    def start(self, role: Role) -> None:
        """A new process for a place."""
        self.number += 1
        pid = self.zygote(
            "historyjobs.start(folder, number, job, pace, nice, options)",
            folder=self.folder, number=self.number, job=role.job, pace=self.pace, nice=self.nice,
            options=role.options,
        )  # fmt: skip
        journal = h.Journal(f"{self.folder}/logs/{self.number}", self.number)
        self.running.append(Process(role, self.number, pid, journal))

    def start_all(self) -> None:
        """One for each role."""
        for role in self.roles:
            self.start(role)

    def kill(self, process: Process) -> None:
        """SIGKILL; its log is read, and it counts as dead from here on."""
        self.killed[process.number] = h.clock()
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            state = f"the zygote's status is {self.zygote.process.poll()}\n{self.zygote.stderr()}"
            raise FleetError(f"process {process.number} ({process.role.name}) is gone, and {state}") from None
        status = self.zygote(f"historyjobs.victims.finish({process.pid})")
        dead = h.clock()
        with contextlib.suppress(FileNotFoundError):
            self.done[process.role.name] += process.journal.state()[3]
        self.running.remove(process)
        self.ops[process.role.structure] += process.journal.read(dead)
        if status != -signal.SIGKILL:
            raise FleetError(
                f"process {process.number} ({process.role.name}) ended with {status}\n{self.zygote.stderr()}"
            )

    def harass(self, often: tuple[float, float] = (0.1, 0.5), until: Callable[[], bool] = lambda: False) -> None:
        """Kills, stops and continues at random, until told to end. May run in a thread."""
        while not until():
            time.sleep(self.choose.uniform(*often))
            with self.lock:
                now = time.monotonic()
                for process in self.running:
                    if process.stopped and process.stopped < now:
                        process.stopped = 0.0
                        os.kill(process.pid, signal.SIGCONT)
                process = self.choose.choice(self.running)
                if process.role.stop and self.choose.random() < 0.25:
                    if not process.stopped:
                        self._meet(process)
                        os.kill(process.pid, signal.SIGSTOP)
                        with contextlib.suppress(FileNotFoundError):
                            process.journal.hurry(False)
                        process.stopped = now + self.choose.choice((0.01, 0.05, 0.3, 1.0))
                        self.stops[process.role.name] += 1
                elif process.role.kill:
                    if not process.stopped:
                        self._meet(process)
                    self.kill(process)
                    self.kills[process.role.name] += 1
                    self.start(process.role)

    def _meet(self, process: Process) -> None:
        """Waits a little for a moment at which it works, without rest: otherwise most would die in their sleep."""
        with contextlib.suppress(FileNotFoundError):  # it has not begun yet
            process.journal.hurry(True)
            for _ in range(100):
                if process.journal.state()[1] == 2:
                    break
                time.sleep(0.0005)
        time.sleep(self.choose.random() * 0.002)

    def progress(self, role: str) -> int:
        """How much was done by all who had this role, in units of their job."""
        with self.lock:
            alive = [process for process in self.running if process.role.name == role]
            total = self.done[role]
            for process in alive:
                with contextlib.suppress(FileNotFoundError):
                    total += process.journal.state()[3]
            return total

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def paused(self) -> Iterator[dict[str, list[h.Op]]]:
        """Nobody is in the middle of anything in this block; the history since the last one, by structure."""
        with self.lock:
            fcntl.flock(self.gate, fcntl.LOCK_EX)
            self.turn += 1
            self.control[0] = self.turn
            try:
                for process in self.running:
                    process.stopped = 0.0
                    os.kill(process.pid, signal.SIGCONT)
                limit = time.monotonic() + WATCHDOG
                late = list(self.running)
                while late := [process for process in late if not self._has_paused(process)]:
                    if time.monotonic() > limit:
                        raise FleetError(f"do not come to the gate: {[(p.number, p.role.name, p.pid) for p in late]}")
                    time.sleep(0.005)
                for process in self.running:
                    self.ops[process.role.structure] += process.journal.read()
                ops, self.ops = dict(self.ops), defaultdict(list)
                yield ops
            finally:
                self.control[0] = 0
                fcntl.flock(self.gate, fcntl.LOCK_UN)

    def _has_paused(self, process: Process) -> bool:
        with contextlib.suppress(FileNotFoundError):  # it has not begun yet
            if process.journal.state()[0] == self.turn:
                return True
        with open(f"/proc/{process.pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
        if state in "ZX":
            raise FleetError(f"process {process.number} ({process.role.name}) ended by itself\n{self.zygote.stderr()}")
        return False
