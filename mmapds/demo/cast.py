"""The processes of the demo, as the director sees them: started, told words, listened to, killed."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import mmapds

WATCHDOG = 60.0  # seconds for something that takes well below one

Event = dict[str, Any]


class DemoError(Exception):
    """A process of the demo died that was not killed, or did not do in a minute what takes a second."""


class Worker:
    """A process of the demo, and what it has said: events, one JSON object a line."""

    def __init__(self, role: str, prefix: str, number: int) -> None:
        self.name = f"{role} {number}"
        self.events: list[Event] = []
        self.killed = False
        self.silent = False  # it has closed its output: all that it has ever said was heard
        package = str(Path(mmapds.__file__).parent.parent)
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mmapds.demo.worker", role, prefix, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            process_group=0,  # Ctrl-C is the director's affair
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        os.set_blocking(self.stdout.fileno(), False)
        self._buffer = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, word: str) -> None:
        """Says a word to it."""
        try:
            self.stdin.write(word.encode() + b"\n")
            self.stdin.flush()
        except BrokenPipeError:
            raise DemoError(f"{self.name} has gone") from None

    def listen(self) -> bool:
        """Takes in what it has said; False when it has closed its output."""
        data = os.read(self.stdout.fileno(), 1 << 20)
        self.hear(data)
        self.silent = not data
        return bool(data)

    def hear(self, data: bytes) -> None:
        """Makes sense of what it has said."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self.events += map(json.loads, lines)

    @property
    def done(self) -> bool:
        """Whether it has said that it ends."""
        return bool(self.said("done"))

    def said(self, event: str) -> list[Event]:
        """What it has said of one kind."""
        return [found for found in self.events if found["event"] == event]

    def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is cleaned up but by the kernel."""
        self.killed = True
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """However it goes; idempotent."""
        if self.process.poll() is None:
            self.kill()
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        self.stdout.close()


W = TypeVar("W", bound=Worker)


class Cast(Generic[W]):
    """All processes of a part of the demo, which share the files at `prefix`."""

    def __init__(self, prefix: str, kind: type[W]) -> None:
        self.prefix = prefix
        self.workers: list[W] = []
        self._kind = kind
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.end()
        self._selector.close()

    def add(self, role: str, number: int) -> W:
        """Starts a process."""
        worker = self._kind(role, self.prefix, number)
        self.workers.append(worker)
        self._selector.register(worker.stdout, selectors.EVENT_READ, worker)
        return worker

    def listen(self, timeout: float) -> None:
        """Takes in what anybody says, for at most so long; returns at the first words."""
        for key, _ in self._selector.select(timeout):
            worker: W = key.data
            if not worker.listen():
                self._selector.unregister(worker.stdout)
                if not worker.killed and not worker.done:
                    raise DemoError(f"{worker.name} ended with status {worker.process.wait()}; see above")

    def until(self, happened: Callable[[], object], what: str) -> None:
        """Listens until it happened."""
        limit = time.monotonic() + WATCHDOG
        while not happened():
            if time.monotonic() > limit:
                raise DemoError(f"{what}: not in {WATCHDOG:.0f} seconds")
            self.listen(0.05)

    def until_time(self, moment: float) -> None:
        """Listens until a moment of the monotonic clock."""
        while (left := moment - time.monotonic()) > 0:
            self.listen(left)

    def stop_when(self, worker: W, middle: Callable[[], bool], limit: float) -> bool:
        """Stops a process with SIGSTOP in the middle of something, and leaves it so; False: not caught in so many
        seconds, it goes on.
        """
        end = time.monotonic() + limit
        while time.monotonic() < end:
            self.listen(0.0)
            if middle():
                os.kill(worker.pid, signal.SIGSTOP)
                os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
                if middle():
                    return True
                os.kill(worker.pid, signal.SIGCONT)
        return False
