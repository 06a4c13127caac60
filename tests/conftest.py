"""What tests share: unrelated processes to talk to, small file systems, and huge pages.

Processes are started afresh (never forked from the test), talk over pipes line by line, and are killed by a watchdog,
which is there for the case that something hangs: no test asserts how long anything takes.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import queue
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmapds import UnsupportedFilesystem, files

WATCHDOG = 120.0  # seconds

# Every script starts with this.
PRELUDE = """\
import contextlib, gc, os, signal, sys, threading, time
import mmapds
from mmapds import Region

def say(*words):
    print(*words, flush=True)

def hear():
    line = sys.stdin.readline()
    if not line:
        sys.exit("the test is gone")
    return line.strip()

def lock_ends(lock):
    # a lock that can be had and given back
    assert lock.acquire(timeout=100), "the lock cannot be had"
    died = lock.owner_died
    lock.release()
    return died

"""


UNCHECKED = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """In a container temporary files often lie on overlayfs, which mmapds refuses unless it is told otherwise.

    Signals that nohup, or a shell's background, has us ignore would be ignored by the processes that we start too.
    """
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    fd = os.open(tempfile.gettempdir(), os.O_RDONLY)
    try:
        files.check_filesystem(fd, tempfile.gettempdir(), "process")
    except UnsupportedFilesystem as error:
        os.environ[files.ANY_FILESYSTEM] = "1"
        config.stash[UNCHECKED] = f"file systems are not checked in these tests: {error}"
    finally:
        os.close(fd)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Thousands of tests are a million objects, and many tests collect garbage: it need not look at those each time."""
    gc.collect()
    gc.freeze()


def pytest_report_header(config: pytest.Config) -> str | None:
    return config.stash.get(UNCHECKED, None)


class Peer:
    """An unrelated process that runs a script."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )
        self.pid = self.process.pid
        self._lines: queue.Queue[str] = queue.Queue()
        self._errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put("")

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self._errors.extend(self.process.stderr)

    def line(self) -> str:
        """The next line it says; "" at its end."""
        try:
            return self._lines.get(timeout=WATCHDOG)
        except queue.Empty:
            self.kill()
            pytest.fail(f"no answer within {WATCHDOG} s; it said on stderr: {self.errors}")

    def expect(self, line: str) -> None:
        """The next line must be this one."""
        found = self.line()
        if found != line:
            self.kill()
            raise AssertionError(f"{found!r} instead of {line!r}; it said on stderr: {self.errors}")

    def tell(self, line: str = "go on") -> None:
        """Says a line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, line: str = "go on") -> str:
        """Says a line and returns the answer."""
        self.tell(line)
        return self.line()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        self.process.kill()
        self.wait()

    def wait(self) -> int:
        """Waits for its end, and returns its status."""
        try:
            status = self.process.wait(WATCHDOG)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"still running after {WATCHDOG} s; it said on stderr: {self.errors}")
        for thread in self._threads:
            thread.join(1)  # a grandchild may hold the pipes open
        return status

    @property
    def errors(self) -> str:
        """What it wrote to stderr."""
        return "".join(self._errors)

    def finish(self) -> str:
        """Its end must be a success, without a word on stderr; the rest of what it said."""
        status = self.wait()
        rest = []
        while not self._lines.empty():
            rest.append(self._lines.get())
        assert (status, self.errors) == (0, ""), f"status {status}\n{self.errors}"
        return "\n".join(rest).rstrip("\n")

    def close(self) -> None:
        """Kills it if it still lives, and closes the pipes."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(BrokenPipeError, ValueError):
                if stream is not None:
                    stream.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Peer]]:
    """start(script, *arguments, under=[], env={}) -> Peer: an unrelated process that runs the script."""
    peers: list[Peer] = []

    def start(
        script: str, *arguments: object, under: list[str] | None = None, env: dict[str, str] | None = None
    ) -> Peer:
        source = PRELUDE + textwrap.dedent(script)
        command = [*(under or []), sys.executable, "-P", "-W", "default", "-c", source, *map(str, arguments)]
        peers.append(Peer(command, {**os.environ, "PYTHONFAULTHANDLER": "", **(env or {})}))
        return peers[-1]

    yield start
    for peer in peers:
        peer.close()


@pytest.fixture
def run(start: Callable[..., Peer]) -> Callable[..., str]:
    """run(script, *arguments) -> what it printed; it must end with success and say nothing on stderr."""

    def run(script: str, *arguments: object, **options: object) -> str:
        return start(script, *arguments, **options).finish()

    return run


@pytest.fixture
def needs_root() -> None:
    """Skips unless root."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a file system or make a namespace")


def _command(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join(command)}: {done.stdout.strip()}")


@pytest.fixture
def mount(needs_root: None, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """mount(type, options, source="none") -> the directory where such a file system is mounted until the end."""
    mounted: list[Path] = []

    def mount(kind: str, options: str, source: str = "none") -> Path:
        where = tmp_path / f"mounted-{len(mounted)}"
        where.mkdir()
        _command("mount", "-t", kind, "-o", options, source, str(where))
        mounted.append(where)
        return where

    yield mount
    for where in reversed(mounted):
        subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.fixture(params=["tmpfs", "ext4", "ext2"])  # ext2 has no fallocate
def small_disk(request: pytest.FixtureRequest, tmp_path: Path, mount: Callable[..., Path]) -> Path:
    """A file system with a few MiB of room."""
    if request.param == "tmpfs":
        return mount("tmpfs", "size=4m")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    _command(f"mkfs.{request.param}", "-q", "-O", "^has_journal", "-m", "0", str(image))
    return mount(request.param, "loop", str(image))


@pytest.fixture
def huge_pages() -> Iterator[int]:
    """Reserves huge pages of 2 MB for the test; how many there are."""
    control = Path("/proc/sys/vm/nr_hugepages")
    if os.geteuid() != 0 or not control.exists():
        pytest.skip("needs root, to reserve huge pages")
    with open(control) as alone:  # tests that run at the same time must not undo what this one does
        fcntl.flock(alone, fcntl.LOCK_EX)
        before = control.read_text()
        control.write_text("16")
        try:
            count = int(control.read_text())
            if count < 8:
                pytest.skip(f"the kernel could reserve {count} huge pages only")
            yield count
        finally:
            control.write_text(before)


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Fails if the test leaves a descriptor or a mapping of a file behind."""

    def held() -> tuple[list[str], list[str]]:
        gc.collect()
        paths = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                paths.append(os.readlink(f"/proc/self/fd/{name}"))
        maps = [
            line for line in Path("/proc/self/maps").read_text().splitlines() if "/pytest-" in line or "memfd" in line
        ]
        return sorted(path for path in paths if not path.startswith("/proc/")), maps

    before = held()
    yield
    for then, now in zip(before, held(), strict=True):
        left = Counter(now) - Counter(then)  # what others left, and was collected meanwhile, does not matter
        assert not left, f"left behind: {list(left)}"


@pytest.fixture
def queue_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, descriptors: None) -> Iterator[str]:
    """Where a queue may be made: at the end it, and its dead letters, must be whole."""
    import queuefiles

    monkeypatch.setattr("mmapds.queue._SEGMENT", 1 << 16)  # unless the test says otherwise: they are read, all of them
    path = tmp_path / "queue"
    yield str(path)
    for folder in (path, path / "dead"):
        if os.path.exists(queuefiles.meta(folder)):
            queuefiles.check(folder)
