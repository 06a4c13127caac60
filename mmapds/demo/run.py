"""The director of the demo: starts the processes, kills two of them, and counts what the others saw."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

import mmapds
from mmapds import Synchronizer, inspection
from mmapds._native.kernel import PAGE

WATCHDOG = 60.0  # seconds for something that takes well below one
_SHM = "/dev/shm"
_ENOUGH = 64 << 20  # bytes: the files take about 11 MB

Event = dict[str, Any]


class DemoError(Exception):
    """A process of the demo died that was not killed, or did not do in a minute what takes a second."""


class Worker:
    """A process of the demo, and what it has said."""

    def __init__(self, role: str, prefix: str, number: int) -> None:
        self.name = f"{role} {number}"
        self.events: list[Event] = []
        self.killed = False
        package = str(Path(mmapds.__file__).parent.parent)
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mmapds.demo.worker", role, prefix, str(number)],
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
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self.events += map(json.loads, lines)
        return bool(data)

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


class Cast:
    """All processes of the demo."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.workers: list[Worker] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.end()
        self._selector.close()

    def add(self, role: str, number: int) -> Worker:
        """Starts a process."""
        worker = Worker(role, self.prefix, number)
        self.workers.append(worker)
        self._selector.register(worker.stdout, selectors.EVENT_READ, worker)
        return worker

    def listen(self, timeout: float) -> None:
        """Takes in what anybody says, for at most so long; returns at the first words."""
        for key, _ in self._selector.select(timeout):
            worker: Worker = key.data
            if not worker.listen():
                self._selector.unregister(worker.stdout)
                if not worker.killed and not worker.said("done"):
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


def run(seconds: float, readers: int, directory: str | None, progress: Callable[[str], None]) -> dict[str, Any]:
    """Runs the demo and returns what came of it. Everything it made is gone afterwards, also after Ctrl-C."""
    with (
        _ended_by_signals(),
        tempfile.TemporaryDirectory(prefix="mmapds-demo-", dir=directory or _default_directory()) as folder,
        Cast(os.path.join(folder, "unicode")) as cast,
    ):
        return _play(cast, seconds, readers, progress)


def _play(cast: Cast, seconds: float, count: int, progress: Callable[[str], None]) -> dict[str, Any]:
    progress(f"Unicode {unicodedata.unidata_version}, one writer, {count} readers, files in {cast.prefix}_*")
    Synchronizer(cast.prefix).close()  # says at once if files cannot be made here
    writer = cast.add("writer", 1)
    readers = [cast.add("reader", number) for number in range(1, count + 1)]
    cast.until(lambda: writer.said("published"), "the first version")
    heir = cast.add("writer", 2)
    cast.until(lambda: heir.said("waiting"), "the second writer")
    progress(f"{heir.name} waits for the place of: {heir.said('waiting')[0]['holder']}")
    cast.until(lambda: all(reader.said("ready") for reader in readers), "the readers")
    ready = readers[0].said("ready")[0]
    progress(f"{ready['rows']:,} rows, {ready['length']:,} bytes a version; reading for {seconds:g} seconds")

    before = len(writer.said("published")) - 1  # the newest one is still to be seen
    begin = time.monotonic()
    for reader in readers:
        reader.tell("go")
    cast.until_time(begin + 0.3 * seconds)

    victim = readers[0]
    victim.tell("hold")
    cast.until(lambda: victim.said("holding"), "a reader that holds a version")
    victim.kill()
    progress(f"{victim.name} (pid {victim.pid}) killed while it held a version")
    cast.until_time(begin + 0.6 * seconds)

    caught = _stop_in_the_middle(cast, writer, ready["length"], limit=max(seconds, 2.0))
    cast.until_time(time.monotonic() + min(0.03 * seconds, 0.3))  # the readers go on meanwhile
    kill_time = time.monotonic_ns()
    writer.kill()
    progress(
        f"{writer.name} (pid {writer.pid}) killed {'in the middle of a write' if caught else 'between two writes'}"
    )
    alive = readers[1:]
    cast.until(lambda: _first_seen(alive, 2), "a version of the second writer")
    takeover = (_first_seen(alive, 2) - kill_time) / 1e9
    progress(f"{heir.name} took over: its first version was seen after {takeover * 1000:.1f} ms")
    cast.until_time(begin + seconds)
    cast.until(lambda: len(heir.said("published")) > 2, "versions of the second writer")

    for worker in (*alive, heir):
        worker.tell("stop")
    elapsed = time.monotonic() - begin
    cast.until(lambda: all(worker.said("done") for worker in (*alive, heir)), "the end")
    reports = [*victim.said("holding"), *(reader.said("done")[0] for reader in alive)]
    seen = {tuple(version) for report in reports for version in report["versions"]}
    published = [*writer.said("published")[before:], *heir.said("published")]
    findings = inspection.verify(cast.prefix)
    reads = sum(report["reads"] for report in reports)
    return {
        "unicode": unicodedata.unidata_version,
        "rows": ready["rows"],
        "bytes_per_version": ready["length"],
        "directory": os.path.dirname(cast.prefix),
        "readers": count,
        "seconds": elapsed,
        "reads": reads,
        "reads_per_second": reads / elapsed,
        "versions_published": len(published),
        "versions_seen": len(seen),
        "versions_seen_after_takeover": sum(made_by == 2 for made_by, _ in seen),
        "torn_reads": sum(report["torn"] for report in reports),
        "faults": sorted({fault for report in reports for fault in report["faults"]}),
        "takeover_seconds": takeover,
        "writer_killed_in_the_middle_of_a_write": caught,
        "resets": sum(event["reset"] for event in published),
        "sound": all(finding.severity != "error" for finding in findings),
        "findings": findings,
    }


def _first_seen(readers: list[Worker], writer: int) -> int:
    """When the first of the readers saw a version of a writer; 0: none has."""
    times = [event["at"] for reader in readers for event in reader.said("writer") if event["writer"] == writer]
    return min(times, default=0)


def _stop_in_the_middle(cast: Cast, writer: Worker, length: int, limit: float) -> bool:
    """Stops the writer with SIGSTOP while it copies a version into its file: the file is then neither old nor new."""
    watch = _HalfWritten(cast.prefix, length)
    end = time.monotonic() + limit
    with contextlib.closing(watch.sync):
        while time.monotonic() < end:
            if watch():
                os.kill(writer.pid, signal.SIGSTOP)
                os.waitid(os.P_PID, writer.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
                if watch():
                    return True
                os.kill(writer.pid, signal.SIGCONT)
    return False


class _HalfWritten:
    """Whether a version is being copied this moment.

    Compares two places of the inactive file, near its ends, with what they were while it was the active one: one of
    them has changed and the other has not. Not the very ends, which some memcpy write last, both at once.
    """

    def __init__(self, prefix: str, length: int) -> None:
        self.sync = Synchronizer(prefix, mode="readonly")
        self.places = (PAGE + 1024, PAGE + length - 1024)
        self.known: dict[int, list[bytes]] = {}  # by version

    def __call__(self) -> bool:
        version = self.sync.version
        now = self.sample(version)
        if self.sync.version == version:
            self.known = {version: now, version - 1: self.known.get(version - 1, [])}
        if not (before := self.known.get(version - 1)):
            return False
        changed = [old != new for old, new in zip(before, self.sample(version - 1), strict=True)]
        return any(changed) and not all(changed) and self.sync.version == version

    def sample(self, version: int) -> list[bytes]:
        try:
            with open(f"{self.sync.prefix}_data_{version & 1}", "rb", buffering=0) as file:
                return [os.pread(file.fileno(), 64, place) for place in self.places]
        except FileNotFoundError:
            return []


def _default_directory() -> str | None:
    """/dev/shm if there is room in one; else what `tempfile` takes."""
    try:
        free = os.statvfs(_SHM)
    except OSError:
        return None
    return _SHM if os.access(_SHM, os.W_OK) and free.f_bavail * free.f_frsize >= _ENOUGH else None


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as an exception does, so that it cleans up."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
