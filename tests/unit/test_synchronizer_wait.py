"""wait(): what it returns, who wakes it, and what ends it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import syncfiles
from peers import Peer

from mmapds import MappingLost, Synchronizer


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "value")


@pytest.fixture
def s(prefix: str) -> Iterator[Synchronizer]:
    with Synchronizer(prefix) as handle:
        handle.write(1)
        yield handle


MODES = ["shared", "readonly"]


@pytest.mark.parametrize("mode", MODES)
def test_a_version_that_is_there_already_is_returned_at_once(s: Synchronizer, prefix: str, mode: Any) -> None:
    s.write(2)
    with Synchronizer(prefix, mode=mode) as waiter:
        assert waiter.wait(newer_than=0) == 2
        assert waiter.wait(newer_than=1, timeout=0) == 2
        assert waiter.wait(1, 5.0) == 2


@pytest.mark.parametrize("mode", [*MODES, "private"])
@pytest.mark.parametrize("timeout", [0, 0.0, -1, 0.01, 0.25])
def test_none_after_the_timeout_and_not_before(s: Synchronizer, prefix: str, mode: Any, timeout: float) -> None:
    with Synchronizer(prefix, mode=mode) as waiter:
        start = time.monotonic()
        assert waiter.wait(timeout=timeout) is None
        assert time.monotonic() - start >= timeout
        assert waiter.wait(newer_than=1, timeout=timeout) is None
        assert waiter.wait(newer_than=1 << 63, timeout=timeout) is None
        assert waiter.load() == 1, "waiting pins and changes nothing"


@pytest.mark.parametrize("mode", MODES)
def test_another_process_wakes_the_waiter(s: Synchronizer, prefix: str, mode: Any) -> None:
    with Peer("s = Synchronizer(prefix, mode=mode)", prefix=prefix, mode=mode) as waiter:
        for n in range(2, 30):
            waiter.send("s.wait(newer_than=n - 1), s.load()", n=n)
            if n % 3:
                time.sleep(0.003 * (n % 4))
            s.write(n)
            assert waiter.receive() == (n, n)


@pytest.mark.parametrize("mode", MODES)
def test_the_first_version_ends_a_wait_too(prefix: str, mode: Any) -> None:
    with Synchronizer(prefix) as s, Peer("s = Synchronizer(prefix, mode=mode)", prefix=prefix, mode=mode) as waiter:
        waiter.send("s.wait()")
        time.sleep(0.15)
        s.write("first")
        assert waiter.receive() == 1


def test_many_waiters_in_processes_and_threads_are_all_woken(s: Synchronizer, prefix: str) -> None:
    setup = """
import threading
s = Synchronizer(prefix)
def wait_in_threads(n):
    found = []
    threads = [threading.Thread(target=lambda: found.append(s.wait(newer_than=n))) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return found
"""
    with Peer(setup, prefix=prefix) as a, Peer(setup, prefix=prefix) as b:
        for n in range(1, 6):
            for peer in (a, b):
                peer.send("wait_in_threads(n)", n=n)
            time.sleep(0.05)
            s.write(n)
            for peer in (a, b):
                assert peer.receive() == [n + 1] * 4


def test_a_thread_of_the_writing_handle_may_wait(s: Synchronizer) -> None:
    found: list[int | None] = []
    thread = threading.Thread(target=lambda: found.append(s.wait()))
    thread.start()
    while syncfiles.word(syncfiles.sync(s.prefix), syncfiles.WAITERS) & 0xFFFFFFFF == 0:
        time.sleep(0.001)
    s.write(2)
    thread.join()
    assert found == [2]


@pytest.mark.parametrize("mode", [*MODES, "private"])
@pytest.mark.parametrize("timeout", [None, float("inf"), threading.TIMEOUT_MAX, 1e300])
def test_ctrl_c_ends_a_wait(s: Synchronizer, prefix: str, mode: Any, timeout: Any) -> None:
    shown = "None" if timeout is None else f"float('{timeout}')"
    with Peer("s = Synchronizer(prefix, mode=mode)", prefix=prefix, mode=mode) as waiter:
        for _ in range(3):
            waiter.send(f"s.wait(timeout={shown})")
            time.sleep(0.15)
            waiter.signal(signal.SIGINT)
            with pytest.raises(Exception, match="KeyboardInterrupt"):
                waiter.receive()
        assert waiter("s.load()") == 1
        assert syncfiles.pins(prefix) == {}


def test_signal_handlers_run_while_it_waits_and_it_goes_on(s: Synchronizer, prefix: str) -> None:
    setup = """
s = Synchronizer(prefix)
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(s.version))
"""
    with Peer(setup, prefix=prefix) as waiter:
        waiter.send("s.wait(), len(seen)")
        for _ in range(5):
            time.sleep(0.05)
            waiter.signal(signal.SIGUSR1)
        time.sleep(0.05)
        s.write(2)
        version, handled = waiter.receive()
        assert version == 2
        assert handled >= 1


def test_a_handler_that_raises_ends_it(s: Synchronizer, prefix: str) -> None:
    setup = """
s = Synchronizer(prefix)
def handler(*_): raise ZeroDivisionError
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.1)
"""
    with Peer(setup, prefix=prefix) as waiter:
        assert waiter.fails("s.wait()")[0] == "ZeroDivisionError"


def test_wrong_arguments(s: Synchronizer) -> None:
    with pytest.raises(TypeError):
        s.wait(newer_than="1")  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        s.wait(newer_than=-1)
    with pytest.raises(OverflowError):
        s.wait(newer_than=1 << 64)
    with pytest.raises((TypeError, ValueError)):
        s.wait(timeout="long")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nan"):
        s.wait(timeout=float("nan"))


def test_close_in_another_thread_ends_a_wait(s: Synchronizer) -> None:
    found: list[str] = []

    def wait() -> None:
        try:
            s.wait()
        except ValueError as error:
            found.append(type(error).__name__)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    s.close()
    thread.join()
    assert found == ["Closed"]


@pytest.mark.parametrize("mode", MODES)
def test_r19_a_waiter_notices_that_the_path_was_replaced(s: Synchronizer, prefix: str, mode: Any) -> None:
    with Synchronizer(prefix, mode=mode) as waiter:
        s.close()
        for suffix in syncfiles.snapshot(prefix):
            Path(prefix + suffix).rename(prefix + suffix + ".old")
        with Synchronizer(prefix) as new:
            new.write("elsewhere")
            with pytest.raises(MappingLost, match="replaced"):
                waiter.wait()


def test_a_writer_killed_before_it_could_wake_costs_a_moment(s: Synchronizer, prefix: str) -> None:
    """The waiter's mark is wiped behind its back, so that nobody wakes it: it looks by itself."""
    with Peer("s = Synchronizer(prefix)", prefix=prefix) as waiter:
        waiter.send("s.wait()")
        time.sleep(0.05)
        syncfiles.poke(syncfiles.sync(prefix), syncfiles.WAITERS, bytes(4))
        s.write(2)
        assert waiter.receive() == 2


def test_publishing_wakes_sleepers_on_the_low_half_of_the_sequence(s: Synchronizer, prefix: str) -> None:
    """As the format promises to readers in other languages: this one sleeps without a time limit of its own."""
    sleeper = """
import ctypes, mmap, platform
file = open(path, "r+b")
mapped = mmap.mmap(file.fileno(), 8192)
word = ctypes.c_uint32.from_buffer(mapped, 4096)
waiters = ctypes.c_uint32.from_buffer(mapped, 4288)
number = {"x86_64": 202, "aarch64": 98}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)
def sleep(version):
    waiters.value = 1
    while word.value == version:
        libc.syscall(number, ctypes.byref(word), 0, version, None, None, 0)
    return word.value
"""
    with Peer(sleeper, path=syncfiles.sync(prefix)) as peer:
        for version in (1, 2, 3):
            peer.send("sleep(version)", version=version)
            while "futex" not in Path(f"/proc/{peer.pid}/wchan").read_text():
                time.sleep(0.001)
            s.write(version)
            assert peer.receive() == version + 1
