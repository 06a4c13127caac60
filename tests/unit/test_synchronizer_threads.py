"""Threads that share a handle: readers with readers, readers with writers, writers with writers, and close()."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import syncfiles
from peers import Peer

from mmapds import Closed, ForkedHandle, Synchronizer, WriterBusy


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "value")


@pytest.fixture
def s(prefix: str) -> Iterator[Synchronizer]:
    with Synchronizer(prefix, codec="raw") as handle:
        handle.write_bytes(pattern(0))
        yield handle
    with Synchronizer(prefix, mode="readonly") as handle:
        handle.check()


def pattern(n: int, size: int = 40_000) -> bytes:
    return n.to_bytes(8, "little") * (size // 8)


def whole(data: bytes | memoryview) -> int:
    """The number that the value consists of; fails if it is made of two."""
    content = bytes(data)
    assert content == content[:8] * (len(content) // 8), f"torn: starts with {content[:8]!r}, {len(content)} bytes"
    return int.from_bytes(content[:8], "little")


def together(*jobs: Callable[[], None]) -> None:
    """Runs the jobs in threads; what one of them raises is raised here."""
    errors: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001  handed over to the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_readers_and_a_writer_share_a_handle(s: Synchronizer, prefix: str) -> None:
    done = threading.Event()

    def write() -> None:
        try:
            for n in range(1, 400):
                s.write_bytes(pattern(n, 8 * (1 + n * 37 % 20_000)), grace=0.001)
        finally:
            done.set()

    def read() -> None:
        last = 0
        while not done.is_set():
            with s.read() as r:
                n = whole(r.data)
                assert n == r.version - 1
            assert n >= last, "versions never go back"
            last = n

    def hold() -> None:
        while not done.is_set():
            r = s.read()
            n = whole(r.data)
            time.sleep(0.002)
            assert whole(r.data) == n
            r.release()

    def load() -> None:
        last = -1
        while not done.is_set():
            n = whole(s.load())
            assert n >= last
            last = n

    together(write, read, read, hold, load)
    assert s._pinned == 0
    assert syncfiles.pins(prefix) == {}
    assert whole(s.load()) == 399


def test_r27_writing_threads_of_one_handle_take_turns(s: Synchronizer) -> None:
    def write(start: int) -> Callable[[], None]:
        def job() -> None:
            for n in range(100):
                s.write_bytes(pattern(start + n, 80_000), grace=0.0)

        return job

    together(write(1000), write(2000), write(3000))
    assert s.version == 301, "each write is one version"
    assert whole(s.load()) % 1000 == 99


def test_the_first_reads_of_many_threads_take_one_slot(s: Synchronizer, prefix: str) -> None:
    for _ in range(20):
        with Synchronizer(prefix) as reader:
            barrier = threading.Barrier(8)

            def read(reader: Synchronizer = reader, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                with reader.read() as r:
                    assert whole(r.data) == 0
                    assert not r.copied

            together(*[read] * 8)
            assert syncfiles.slots_in_use(prefix) == [reader.slot], syncfiles.state(prefix)
            assert reader._pinned == 0


def test_a_read_does_not_wait_for_a_thread_that_writes(s: Synchronizer, prefix: str) -> None:
    """Also not the first one, which takes a slot."""
    with Peer("s = Synchronizer(prefix); r = s.read()", prefix=prefix) as peer:
        s.write_bytes(pattern(1))
        writing = threading.Thread(target=lambda: s.write_bytes(pattern(2), grace=600.0))
        writing.start()
        time.sleep(0.05)
        assert s.slot == -1
        for _ in range(3):
            with s.read() as r:
                assert whole(r.data) == 1
        assert writing.is_alive(), "it still waits for the other process"
        peer("r.release()")
        writing.join()
        assert whole(s.load()) == 2


def test_close_while_a_thread_writes_leaves_no_second_writer(s: Synchronizer, prefix: str) -> None:
    """The writer's place is not given away under a thread that has not finished: no version is published twice."""
    with Peer("s = Synchronizer(prefix); r = s.read()", prefix=prefix):
        s.write_bytes(pattern(1))
        outcome: list[object] = []

        def write() -> None:
            try:
                outcome.append(s.write_bytes(pattern(2), grace=0.5).reset)
            except Closed as error:
                outcome.append(error)

        writing = threading.Thread(target=write)
        writing.start()
        time.sleep(0.05)
        closing = threading.Thread(target=s.close)
        closing.start()
        with Synchronizer(prefix) as other:
            published = 0
            while not published:
                try:
                    other.write_bytes(pattern(100), grace=0.0)
                    published = other.version
                except WriterBusy:
                    time.sleep(0.01)
            writing.join()
            closing.join()
            assert other.version == published, "the closed handle published behind the new writer's back"
            assert whole(other.load()) == 100
            assert published == (4 if outcome == [True] else 3), outcome


def test_close_while_threads_read_gives_values_or_closed(s: Synchronizer, prefix: str) -> None:
    for _ in range(30):
        reader = Synchronizer(prefix)
        barrier = threading.Barrier(4)

        def read(reader: Synchronizer = reader, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                while True:
                    with reader.read() as r:
                        assert whole(r.data) == 0
                    reader.load()
            except Closed:
                pass

        def close(reader: Synchronizer = reader, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            time.sleep(0.0005)
            reader.close()

        together(read, read, read, close)
    assert syncfiles.slots_in_use(prefix) == [], syncfiles.state(prefix)
    assert syncfiles.pins(prefix) == {}


def test_a_source_that_changes_while_it_is_written_is_published_as_it_was_copied(s: Synchronizer, prefix: str) -> None:
    """What is hashed is what was stored, not what the caller's buffer says by then."""
    source = bytearray(8 << 20)
    stop = threading.Event()

    def scribble() -> None:
        n = 0
        while not stop.is_set():
            n = (n + 1) % 256
            source[:: 1 << 14] = bytes([n]) * len(range(0, len(source), 1 << 14))

    def write() -> None:
        try:
            with Synchronizer(prefix) as reader:
                for _ in range(10):
                    s.write_bytes(source)
                    reader.read().release()  # checks the hash
        finally:
            stop.set()

    together(scribble, write)


def test_a_handler_that_writes_during_a_write_does_not_hang(prefix: str) -> None:
    """The signal comes while the main thread waits for a reader: a second write in it is refused, or done, at once."""
    setup = """
s = Synchronizer(prefix, codec="raw")
s.write_bytes(b"1")
outcome = []
def handler(*_):
    for call in (lambda: s.read().release(), lambda: s.write_bytes(b"from the handler", 0.0)):
        try:
            call()
            outcome.append("done")
        except BaseException as error:
            outcome.append(type(error).__name__)
"""
    with Peer(setup, prefix=prefix) as peer, Peer() as holder:
        holder("s = Synchronizer(prefix); r = s.read()", prefix=prefix)
        peer("s.write_bytes(b'2').reset")
        peer("signal.signal(signal.SIGALRM, handler); signal.setitimer(signal.ITIMER_REAL, 0.1)")
        reset = peer("s.write_bytes(b'3', 0.5).reset")
        assert reset
        assert peer("outcome")[0] == "done", "reading is always possible"
        assert peer("outcome")[1] in ("done", "RuntimeError"), peer("outcome")
        assert peer("tuple(s.write_bytes(b'4'))") == (1, False)


def test_a_fork_while_a_thread_writes(s: Synchronizer, prefix: str) -> None:
    """The child has a copy of a mutex that is locked for ever: it must not wait for it."""
    with Peer("s = Synchronizer(prefix); r = s.read()", prefix=prefix) as peer:
        s.write_bytes(pattern(1))
        writing = threading.Thread(target=lambda: s.write_bytes(pattern(2), grace=600.0))
        writing.start()
        time.sleep(0.05)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with s.read() as r:
                    fine = whole(r.data) == 1
                try:
                    s.write_bytes(b"child")
                except (WriterBusy, ForkedHandle):
                    status = 0 if fine else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        peer("r.release()")
        writing.join()
        assert whole(s.load()) == 2
