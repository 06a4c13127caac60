"""Who may write, how long a writer waits for readers, and what `reset` says."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import syncfiles
from peers import Peer

from mmapds import Synchronizer, WriterBusy


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "value")


@pytest.fixture
def writer(prefix: str) -> Iterator[Synchronizer]:
    with Synchronizer(prefix, codec="raw") as handle:
        handle.write_bytes(b"1" * 100)
        yield handle
    with Synchronizer(prefix, mode="readonly") as handle:
        handle.check()


READER = "s = Synchronizer(prefix); r = s.read(); view = r.data"


def sequence_of_writes(writer: Synchronizer, count: int, grace: float = 0.0) -> list[bool]:
    return [writer.write_bytes(os.urandom(100), grace).reset for _ in range(count)]


# ---- one writer at a time ------------------------------------------------------------------------------------------


def test_r27_the_second_writing_process_is_busy_and_learns_who_the_first_is(prefix: str) -> None:
    with Peer("s = Synchronizer(prefix); tuple(s.write(1))", prefix=prefix) as first, Synchronizer(prefix) as second:
        with pytest.raises(WriterBusy) as caught:
            second.write(2)
        assert f"pid {first.pid} (python" in str(caught.value)
        assert caught.value.holder is not None
        assert f"pid {first.pid}" in caught.value.holder
        assert caught.value.path == syncfiles.sync(prefix)
        assert isinstance(caught.value, BlockingIOError)
        assert second.load() == 1
        first("s.close()")
        assert tuple(second.write(2)) == (1, False)
        name, message = first.fails("s = Synchronizer(prefix); s.write(3)")
        assert name == "WriterBusy"
        assert f"pid {os.getpid()} (" in message


def test_r27_two_handles_of_one_process_are_two_writers(writer: Synchronizer, prefix: str) -> None:
    with Synchronizer(prefix) as second:
        with pytest.raises(WriterBusy, match=str(os.getpid())):
            second.write_bytes(b"2")
        assert second.version == 1
        writer.close()
        second.write_bytes(b"2")
        assert bytes(second.load()) == b"2"


def test_opening_reading_and_waiting_do_not_make_a_writer(prefix: str) -> None:
    with Synchronizer(prefix) as a, Synchronizer(prefix) as b:
        a.load(default=None)
        a.wait(timeout=0)
        a.check()
        assert not syncfiles.locked(syncfiles.sync(prefix), syncfiles.LOCK_WRITER)
        b.write(1)
        assert syncfiles.locked(syncfiles.sync(prefix), syncfiles.LOCK_WRITER)


def test_a_write_that_fails_to_start_leaves_no_lock(writer: Synchronizer, prefix: str) -> None:
    with Synchronizer(prefix) as other:
        for _ in range(3):
            with pytest.raises(WriterBusy):
                other.write_bytes(b"x")
        writer.close()
        assert not syncfiles.locked(syncfiles.sync(prefix), syncfiles.LOCK_WRITER)
        with Synchronizer(prefix, mode="readonly") as reader, pytest.raises(PermissionError):
            reader.write_bytes(b"x")
        assert not syncfiles.locked(syncfiles.sync(prefix), syncfiles.LOCK_WRITER)


def test_a_dead_writers_place_is_free_at_once(prefix: str) -> None:
    with Synchronizer(prefix) as s:
        for n in range(1, 6):
            with Peer("s = Synchronizer(prefix); tuple(s.write(n))", prefix=prefix, n=n) as peer:
                with pytest.raises(WriterBusy):
                    s.write(0)
                peer.kill()
            assert s.load() == n
            assert s.version == n
        assert tuple(s.write("mine")) == (5, False)


def test_r20_a_stopped_writer_keeps_its_place_and_readers_go_on(prefix: str) -> None:
    with Peer("s = Synchronizer(prefix); tuple(s.write(1))", prefix=prefix) as peer, Synchronizer(prefix) as s:
        peer.signal(signal.SIGSTOP)
        with pytest.raises(WriterBusy):
            s.write(2)
        assert s.load() == 1
        peer.signal(signal.SIGCONT)
        peer("s.write(3).size")
        assert s.load() == 3


def test_the_next_writer_goes_on_with_the_next_number(prefix: str) -> None:
    for n in range(1, 8):
        with Synchronizer(prefix) as s:
            s.write(n)
            assert s.version == n
    with Synchronizer(prefix) as s:
        assert s.load() == 7


# ---- grace and reset -----------------------------------------------------------------------------------------------


def test_a_reader_of_the_newest_version_is_in_nobodys_way(writer: Synchronizer, prefix: str) -> None:
    with Peer(READER, prefix=prefix) as reader:
        assert not writer.write_bytes(b"2" * 100).reset, "the other file is free"
        assert reader("r.release(); view.release(); r = s.read(); r.version") == 2
        assert not writer.write_bytes(b"3" * 100).reset


def test_a_live_reader_keeps_its_version_and_the_writer_takes_a_new_inode(writer: Synchronizer, prefix: str) -> None:
    with Peer(READER, prefix=prefix) as reader:
        inode = os.stat(syncfiles.data(prefix, 1)).st_ino
        assert sequence_of_writes(writer, 6, grace=0.01) == [False, True] * 3
        assert os.stat(syncfiles.data(prefix, 1)).st_ino != inode
        assert reader("bytes(view)") == b"1" * 100
        assert reader("s.version") == 7
        assert reader("view.release(); r.release(); q = s.read(); q.version") == 7
        reader("q.release()")
        assert sequence_of_writes(writer, 4) == [False] * 4
        assert not os.path.exists(syncfiles.data(prefix, 1) + ".new")


def test_a_stopped_reader_is_alive(writer: Synchronizer, prefix: str) -> None:
    with Peer(READER, prefix=prefix) as reader:
        reader.signal(signal.SIGSTOP)
        assert sequence_of_writes(writer, 4, grace=0.01) == [False, True, False, True]
        reader.signal(signal.SIGCONT)
        assert reader("bytes(view)") == b"1" * 100


def test_a_dead_readers_pin_is_taken_back_at_once(writer: Synchronizer, prefix: str) -> None:
    """`reset` says so if the write found the pin; a look around from time to time may have taken it back before."""
    with Peer(READER, prefix=prefix) as reader:
        writer.write_bytes(b"2")
        assert len(syncfiles.pins(prefix)) == 1
        inode = os.stat(syncfiles.data(prefix, 1)).st_ino
        reader.kill()
        writer.write_bytes(b"3", grace=1000.0)
        assert syncfiles.pins(prefix) == {}
        assert syncfiles.slots_in_use(prefix) == []
        assert os.stat(syncfiles.data(prefix, 1)).st_ino == inode, "nobody holds the old file: it is used again"
        assert sequence_of_writes(writer, 4) == [False] * 4


def test_the_writer_waits_for_a_reader_that_lets_go_within_grace(writer: Synchronizer, prefix: str) -> None:
    with Peer(READER, prefix=prefix) as reader:
        writer.write_bytes(b"2")
        reader.send("import time; time.sleep(0.3); view.release(); r.release()")
        assert not writer.write_bytes(b"3", grace=1000.0).reset
        reader.receive()


def test_a_reader_that_dies_while_the_writer_waits(writer: Synchronizer, prefix: str) -> None:
    with Peer(READER, prefix=prefix) as reader:
        writer.write_bytes(b"2")
        reader.send("import time; time.sleep(0.3); os._exit(3)")
        assert writer.write_bytes(b"3", grace=1000.0).reset
        assert syncfiles.pins(prefix) == {}


def test_grace_is_spent_at_least_and_once_for_a_stuck_pin(writer: Synchronizer, prefix: str) -> None:
    with Peer(READER, prefix=prefix):
        writer.write_bytes(b"2")
        start = time.monotonic()
        assert writer.write_bytes(b"3", grace=0.4).reset
        assert time.monotonic() - start >= 0.4
        # From here on it would take hours if each write waited again; the watchdog of the suite would say so.
        assert sequence_of_writes(writer, 20, grace=600.0) == [False, True] * 10


def test_grace_is_given_again_once_the_pin_was_seen_at_zero(writer: Synchronizer, prefix: str) -> None:
    with Peer(READER, prefix=prefix) as reader:
        assert sequence_of_writes(writer, 2, grace=0.01) == [False, True]
        reader("view.release(); r.release()")
        assert sequence_of_writes(writer, 4) == [False] * 4  # seen at 0, without anybody to wait for
        assert reader("r = s.read(); view = r.data; r.version") == 7
        assert not writer.write_bytes(b"8").reset
        reader.send("import time; time.sleep(0.3); view.release(); r.release()")
        assert not writer.write_bytes(b"9", grace=1000.0).reset, "a new pin has a grace of its own"
        reader.receive()


def test_one_stuck_reader_does_not_cost_another_its_grace(writer: Synchronizer, prefix: str) -> None:
    with Peer(READER, prefix=prefix) as stuck, Peer() as other:
        assert sequence_of_writes(writer, 2, grace=0.01) == [False, True]
        assert other(READER + "; r.version", prefix=prefix) == 3
        assert not writer.write_bytes(b"4").reset
        other.send("import time; time.sleep(0.3); view.release(); r.release(); time.monotonic()")
        start = time.monotonic()
        assert writer.write_bytes(b"5", grace=1000.0).reset, "the first reader still holds on"
        released = other.receive()
        assert time.monotonic() >= released >= start
        assert stuck("bytes(view)") == b"1" * 100


@pytest.mark.parametrize("grace", [0.0, 0, 1e-9])
def test_no_grace_means_not_waiting(writer: Synchronizer, prefix: str, grace: float) -> None:
    with Peer(READER, prefix=prefix) as reader:
        assert sequence_of_writes(writer, 2, grace) == [False, True]
        assert reader("bytes(view)") == b"1" * 100


@pytest.mark.parametrize("grace", [float("inf"), 1e300, 1e10])
def test_endless_grace_waits_until_the_reader_lets_go(writer: Synchronizer, prefix: str, grace: float) -> None:
    with Peer(READER, prefix=prefix) as reader:
        writer.write_bytes(b"2")
        reader.send("import time; time.sleep(0.2); view.release(); r.release()")
        assert not writer.write_bytes(b"3", grace).reset
        reader.receive()


@pytest.mark.parametrize("grace", [float("nan"), -1.0])
def test_a_grace_that_is_no_number_of_seconds_is_refused(writer: Synchronizer, grace: float) -> None:
    for call in (writer.write, writer.write_bytes):
        with pytest.raises(ValueError, match="grace"):
            call(b"x", grace)
    assert writer.version == 1


def test_many_readers_of_many_versions_all_keep_theirs(writer: Synchronizer, prefix: str) -> None:
    with contextlib.ExitStack() as stack:
        readers = []
        for version in range(1, 7):
            readers.append(stack.enter_context(Peer(READER, prefix=prefix)))
            writer.write_bytes(b"%d" % (version + 1) * 100, grace=0.0)
        for version, reader in enumerate(readers, 1):
            assert reader("bytes(view), r.version") == (b"%d" % version * 100, version)
        readers[0].kill()
        for reader in readers[1:]:
            reader("view.release(); r.release()")
        sequence_of_writes(writer, 2)
        assert sequence_of_writes(writer, 4) == [False] * 4, syncfiles.state(prefix)


def test_leftovers_of_a_dead_writer_are_removed_by_the_next(writer: Synchronizer, prefix: str) -> None:
    writer.close()
    for index in (0, 1):
        Path(syncfiles.data(prefix, index) + ".new").write_bytes(b"half a file")
    with Synchronizer(prefix) as next_writer:
        assert bytes(next_writer.load()) == b"1" * 100
        next_writer.write_bytes(b"2")
        assert sorted(syncfiles.snapshot(prefix)) == ["_data_0", "_data_1", "_sync"]
