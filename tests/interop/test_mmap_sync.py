"""mmapds and the Rust crate mmap-sync on the same files, in both directions and at once.

The Rust side is the published crate in a program of ours (rust/); it reads with check_bytes = true
unless said otherwise. In the state file ``u64 version`` has the data file in bit 0, the size in 39
bits and a checksum in 24, and two ``u32`` count the readers of each data file.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import xxhash

import mmapds

Run = Callable[..., str]
Start = Callable[..., "subprocess.Popen[str]"]

SEED = ("7", "Hello", "World", "!")  # the value of the crate's own example
SEED_LINE = 'version: 7 messages: ["Hello", "World", "!"]'
VERSIONS = 100_000


class State(NamedTuple):
    """The state file, taken apart."""

    active: int
    size: int
    checksum: int
    readers: tuple[int, int]


def state(prefix: str) -> State:
    data = Path(f"{prefix}_state").read_bytes()
    assert len(data) == 16
    version, *readers = struct.unpack("<QII", data)
    return State(version & 1, version >> 1 & (1 << 39) - 1, version >> 40, (readers[0], readers[1]))


def listing(prefix: str) -> dict[str, tuple[str, int]]:
    """Name, permissions and size of each file."""
    found = {}
    for path in Path(prefix).parent.iterdir():
        status = path.stat()
        found[path.name] = (stat.filemode(status.st_mode), status.st_size)
    return found


@contextmanager
def opened(prefix: str, **options: Any) -> Iterator[mmapds.Synchronizer]:
    with mmapds.Synchronizer(prefix, protocol="mmap-sync", codec="raw", **options) as s:
        yield s
        s.check()


def line(process: subprocess.Popen[str]) -> str:
    """The next line of a process, "" if it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().removesuffix("\n")


def end(process: subprocess.Popen[str]) -> str:
    """Close the stdin that a process may be waiting on; the rest of its output."""
    if process.stdin is not None:
        process.stdin.close()
    assert process.stdout is not None
    output = process.stdout.read()
    assert process.wait() == 0
    return output


def archive(rust: Run, *value: str) -> bytes:
    return bytes.fromhex(rust("archive", *value))


# --- one value, one direction ---------------------------------------------------------------


def test_rust_writes_python_reads(prefix: str, rust: Run, common: Any) -> None:
    assert rust("write", prefix, *SEED) == "written: 36 bytes | reset: false"
    with opened(prefix) as s:
        with s.read() as r:
            assert r.data == archive(rust, *SEED)
            assert str(common.HelloWorldCodec().decode(r.data)) == SEED_LINE
            assert r.version == s.version == int(rust("version", prefix))
            assert r.switched
            assert not r.copied
        with s.read() as r:
            assert not r.switched
        rust("write", prefix, "8", "another", "value, longer than the first")
        with s.read() as r:
            assert r.switched
            value = common.HelloWorldCodec().decode(r.data)
        assert value == common.HelloWorld(8, ["another", "value, longer than the first"])


def test_python_publishes_an_archive_of_rust_and_rust_reads_it(prefix: str, rust: Run) -> None:
    data = archive(rust, *SEED)
    with opened(prefix) as s:
        result = s.write_bytes(data)
        assert (result.size, result.reset) == (36, False)
        assert rust("read", prefix) == SEED_LINE
        assert int(rust("version", prefix)) == s.version
        s.write(archive(rust, "8", "a message of more than seven bytes"))
        assert rust("read", prefix) == 'version: 8 messages: ["a message of more than seven bytes"]'


def test_both_write_in_turn(prefix: str, rust: Run, common: Any) -> None:
    codec = common.HelloWorldCodec()
    with opened(prefix) as reader:
        for version in range(0, 40, 2):
            text = "x" * (version * 700)
            rust("write", prefix, str(version), text)
            with reader.read() as r:
                assert codec.decode(r.data) == common.HelloWorld(version, [text])
            with opened(prefix) as writer:
                assert not writer.write_bytes(archive(rust, str(version + 1), text)).reset
            assert rust("read", prefix) == f'version: {version + 1} messages: ["{text}"]'
            assert state(prefix).active == 1


def test_wait_sees_what_rust_publishes(prefix: str, rust: Run, start_rust: Start) -> None:
    rust("write", prefix, *SEED)
    with opened(prefix) as s:
        before = s.version
        assert s.wait(newer_than=before, timeout=0.05) is None
        writer = start_rust("write", prefix, "8", "now")
        assert s.wait(newer_than=before, timeout=60) == s.version != before
        end(writer)


# --- the archive, as examples/common.py writes it -------------------------------------------


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [""],
        ["1234567", "12345678"],
        ["12345678", "1234567", "123456789", ""],
        ["é" * 3, "é" * 4, "\N{SNOWMAN}", "snow \N{SNOWMAN} man"],
        ["x" * 100_000, "y"],
        [str(n) * (n % 5) for n in range(300)],
    ],
    ids=["none", "empty", "short-and-long", "mixed", "unicode", "large", "many"],
)
def test_archives_of_the_example_are_those_of_rust(prefix: str, rust: Run, common: Any, messages: list[str]) -> None:
    codec = common.HelloWorldCodec()
    value = common.HelloWorld(2**32 - 1, messages)
    data = archive(rust, str(value.version), *messages)
    assert codec.encode(value) == data
    assert codec.decode(memoryview(data)) == value
    with mmapds.Synchronizer(prefix, protocol="mmap-sync", codec=codec) as s:
        s.write(value)
    assert rust("read", prefix).startswith("version: 4294967295 messages: [")


def test_a_thousand_archives_compare_equal(start_rust: Start, start_python: Start) -> None:
    archives = start_rust("archives", "1000")
    assert end(start_python("archives", stdin=archives.stdout)) == "1000\n"


# --- the files ------------------------------------------------------------------------------


def test_examples_give_the_output_and_the_files_of_the_crate(prefix: str, rust: Run, example: Run) -> None:
    written = "written: 36 bytes | reset: false"
    for data_files in (["_data_0"], ["_data_0", "_data_1"]):
        assert example("writer.py", prefix, umask=0) == written
        assert example("reader.py", prefix) == SEED_LINE
        assert rust("read", prefix) == SEED_LINE
        assert listing(prefix) == {
            "value_state": ("-rw-rw----", 16),
            **{f"value{name}": ("-rw-r-----", 36) for name in data_files},
        }
    assert rust("write", prefix, *SEED) == written
    assert example("reader.py", prefix) == SEED_LINE


def test_files_are_byte_for_byte_those_of_the_crate(prefix: str, rust: Run) -> None:
    theirs, ours = f"{prefix}-theirs", f"{prefix}-ours"
    first, second = ("1", "one"), ("2", "another, somewhat longer one")
    with opened(ours, checksum=lambda data: state(theirs).checksum) as s:
        for value in (first, second, first):
            rust("write", theirs, *value, umask=0)
            s.write_bytes(archive(rust, *value))
            assert s.version == int(rust("version", theirs))
    for suffix in ("_state", "_data_0", "_data_1"):
        assert Path(ours + suffix).read_bytes() == Path(theirs + suffix).read_bytes()
        assert os.stat(ours + suffix).st_mode == os.stat(theirs + suffix).st_mode


def test_the_sixteen_bytes_of_the_state(prefix: str) -> None:
    with opened(prefix) as s:
        assert Path(f"{prefix}_state").read_bytes() == bytes(16)
        for index, data in [(0, b"first"), (1, b"second, longer"), (0, b"3rd"), (1, b"4")]:
            s.write_bytes(data)
            checksum = xxhash.xxh3_64_intdigest(data) & 0xFF_FFFF
            assert state(prefix) == State(index, len(data), checksum, (0, 0))
            assert s.version == checksum << 40 | len(data) << 1 | index


def test_checksum_of_the_crate_is_verified_only_on_request(prefix: str, rust: Run) -> None:
    rust("write", prefix, *SEED)
    theirs = state(prefix).checksum  # WyHash of the archive
    with opened(prefix) as s, s.read() as r:
        assert len(r.data) == 36
    with opened(prefix, checksum=lambda data: theirs) as s, s.read() as r:
        assert len(r.data) == 36
    with opened(prefix, checksum=lambda data: theirs ^ 1) as s:
        with pytest.raises(mmapds.CorruptionError):
            s.read()
        assert state(prefix).readers == (0, 0)


def test_data_files_stay_the_same_inodes(prefix: str, rust: Run) -> None:
    """A Rust reader keeps its mapping of a data file until a value is larger than it."""
    with opened(prefix) as s:
        s.write_bytes(b"0" * 100)
        s.write_bytes(b"1" * 100)
        before = [os.stat(f"{prefix}_data_{index}").st_ino for index in (0, 1)]
        for size in (1, 5_000, 100, 70_000, 36, 0, 1 << 20, 10):
            s.write_bytes(b"x" * size)
            s.write_bytes(b"y" * size)
        assert [os.stat(f"{prefix}_data_{index}").st_ino for index in (0, 1)] == before
        # and never shrink: a mapping that is longer than its file faults
        assert all(os.stat(f"{prefix}_data_{index}").st_size >= 1 << 20 for index in (0, 1))
        s.write_bytes(archive(rust, *SEED))
    assert rust("read", prefix) == SEED_LINE


def test_an_empty_state_file_is_one_being_created(prefix: str, rust: Run) -> None:
    """The crate opens with O_CREAT and sizes the file afterwards."""
    path = Path(f"{prefix}_state")
    path.touch(mode=0o660)
    inode = path.stat().st_ino
    with pytest.raises(mmapds.NotInitialised), opened(prefix, mode="readonly") as s:
        s.read()
    assert path.stat().st_size == 0
    with opened(prefix) as s:
        with pytest.raises(mmapds.NotInitialised):
            s.read()
        rust("write", prefix, *SEED)  # as if the crate had only now come to it
        with s.read() as r:
            assert r.data == archive(rust, *SEED)
    assert path.stat().st_ino == inode


def test_python_completes_an_empty_state_file(prefix: str, rust: Run) -> None:
    path = Path(f"{prefix}_state")
    path.touch(mode=0o660)
    inode = path.stat().st_ino
    with opened(prefix) as s:
        s.write_bytes(archive(rust, *SEED))
        assert rust("read", prefix) == SEED_LINE
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("size", [1, 15, 17, 4096])
def test_a_state_file_of_another_size_is_left_alone(prefix: str, size: int) -> None:
    """The crate would zero it."""
    path = Path(f"{prefix}_state")
    path.write_bytes(b"\xa5" * size)
    with pytest.raises(mmapds.IncompatibleFormat), opened(prefix):
        pass
    assert path.read_bytes() == b"\xa5" * size


def test_neither_protocol_takes_the_files_of_the_other(prefix: str, rust: Run) -> None:
    rust("write", prefix, *SEED)
    before = listing(prefix)
    with pytest.raises(mmapds.ProtocolMismatch):
        mmapds.Synchronizer(prefix)
    assert listing(prefix) == before
    with mmapds.Synchronizer(f"{prefix}-2") as s:
        s.write({"a": 1})
    with pytest.raises(mmapds.ProtocolMismatch), opened(f"{prefix}-2"):
        pass


# --- readers are counted in the state -------------------------------------------------------


def test_python_counts_itself_where_rust_looks(prefix: str, rust: Run) -> None:
    rust("write", prefix, *SEED)
    with opened(prefix) as s, opened(prefix) as other:
        first = s.read()
        assert state(prefix).readers == (1, 0)
        with other.read():
            assert state(prefix).readers == (2, 0)
        rust("write", prefix, "8", "next")
        second = s.read()
        assert state(prefix).readers == (1, 1)
        first.release()
        first.release()  # a second time does nothing
        assert state(prefix).readers == (0, 1)
        second.release()
        assert state(prefix).readers == (0, 0)


def test_a_view_keeps_the_count_until_it_is_released(prefix: str, rust: Run) -> None:
    rust("write", prefix, *SEED)
    with opened(prefix) as s:
        with s.read() as r:
            view = memoryview(r.data)
        assert state(prefix).readers == (1, 0)
        assert view == archive(rust, *SEED)
        view.release()
        del view, r
        assert state(prefix).readers == (0, 0)


def test_rust_waits_for_a_reader_in_python(prefix: str, rust: Run, start_rust: Start) -> None:
    rust("write", prefix, *SEED)
    with opened(prefix) as s:
        r = s.read()
        writer = start_rust("writer", prefix, "2", "--grace", "600000")
        s.wait(newer_than=r.version, timeout=60)  # the first goes to the other data file
        assert s.wait(newer_than=s.version, timeout=0.3) is None  # the second waits for us
        assert r.data == archive(rust, *SEED)
        r.release()
        assert "done: 2 resets: 0" in end(writer)


def test_python_waits_for_a_reader_in_rust(prefix: str, rust: Run, start_rust: Start) -> None:
    with opened(prefix) as s:
        s.write_bytes(archive(rust, *SEED))
        reader = start_rust("pin", prefix)
        assert line(reader) == "pinned"
        assert state(prefix).readers == (1, 0)
        assert not s.write_bytes(b"to the other data file", grace=0).reset
        assert s.write_bytes(b"waits in vain, then resets the count", grace=0.1).reset
        assert state(prefix).readers == (0, 0)
        # The crate takes its count back all the same, from 0 to 2**32 - 1. We get over it.
        end(reader)
        assert state(prefix).readers == (2**32 - 1, 0)
        assert not s.write_bytes(b"to the other data file", grace=0).reset
        assert s.write_bytes(archive(rust, *SEED), grace=0.1).reset
        assert state(prefix).readers == (0, 0)
        assert rust("read", prefix) == SEED_LINE


def test_rust_gets_over_a_killed_reader_in_python(prefix: str, rust: Run, start_python: Start) -> None:
    rust("write", prefix, *SEED)
    reader = start_python("pin", prefix)
    assert line(reader) == "pinned"
    reader.kill()
    reader.wait()
    assert state(prefix).readers == (1, 0)
    assert rust("writer", prefix, "2", "--grace", "50").endswith("done: 2 resets: 1")
    assert state(prefix).readers == (0, 0)


# --- one writer at a time -------------------------------------------------------------------


def test_r27_single_writer_of_rust_excludes_us(prefix: str, start_rust: Start) -> None:
    holder = start_rust("hold", prefix)
    assert line(holder) == "holding"
    with opened(prefix) as s:
        before = state(prefix)
        with pytest.raises(mmapds.WriterBusy) as caught:
            s.write_bytes(b"not now")
        assert caught.value.holder is not None
        assert str(holder.pid) in caught.value.holder
        assert state(prefix) == before
        with s.read() as r:
            assert len(r.data) == before.size  # reading goes on
        end(holder)
        s.write_bytes(b"now")


def test_r27_we_exclude_single_writer_of_rust(prefix: str, rust: Run, start_python: Start) -> None:
    holder = start_python("hold", prefix)
    assert line(holder) == "holding"
    before = state(prefix)
    assert rust("try-write", prefix) == "conflict"
    assert state(prefix) == before
    assert rust("read", prefix).startswith('version: 1 messages: ["1", ')
    end(holder)
    assert rust("try-write", prefix) == "ok"


def test_r27_until_we_close_or_die(prefix: str, rust: Run, start_python: Start) -> None:
    with opened(prefix) as s:
        s.write_bytes(archive(rust, *SEED))
        assert rust("try-write", prefix) == "conflict"
    assert rust("try-write", prefix) == "ok"
    holder = start_python("hold", prefix)
    assert line(holder) == "holding"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert rust("try-write", prefix) == "ok"


def test_reading_does_not_take_the_writers_place(prefix: str, rust: Run) -> None:
    rust("write", prefix, *SEED)
    with opened(prefix) as s, s.read():
        assert rust("try-write", prefix) == "ok"


# --- all at once ----------------------------------------------------------------------------


def test_rust_writes_at_full_speed_and_nothing_is_torn_in_python(
    prefix: str, start_rust: Start, start_python: Start
) -> None:
    """The readers create the files; the writer's grace is long, so it waits for who is counted.

    How many versions a reader gets to see is up to the scheduler: so it is done again until it is enough.
    """
    seen = 0
    for attempt in range(50):
        place = f"{prefix}-{attempt}"
        readers = [start_python("read", place, VERSIONS) for _ in range(2)]
        for reader in readers:
            assert line(reader) == "ready"
        writer = start_rust("writer", place, VERSIONS, "--single-writer", "--grace", "600000")
        assert end(writer).endswith(f"done: {VERSIONS} resets: 0\n")
        for reader in readers:
            summary = json.loads(end(reader))
            for fault in ("torn", "invalid", "changed", "backwards"):
                assert summary[fault] == 0, summary
            assert summary["last"] == VERSIONS
            seen += summary["versions"]
        assert state(place).readers == (0, 0)
        if seen > 1000:
            break
    assert seen > 1000


def test_python_publishes_archives_of_rust_and_nothing_is_torn_in_either(
    prefix: str, start_rust: Start, start_python: Start
) -> None:
    """The crate's readers load the version, then count themselves, and do not look again.

    A writer that publishes twice in between tears the read. So this writer waits until the Rust
    reader has acknowledged a version before it publishes the next: with at most one publish in
    between, the data file that the reader is about to use is never the one being written. The
    reader in Python acknowledges nothing; it is only counted.
    """
    fifo = f"{prefix}_ack"
    os.mkfifo(fifo)
    ours = start_python("read", prefix, VERSIONS)
    assert line(ours) == "ready"
    archives = start_rust("archives", VERSIONS)
    writer = start_python("publish", prefix, fifo, stdin=archives.stdout)
    theirs = start_rust("reader", prefix, VERSIONS, "--ack", fifo)
    assert line(theirs) == "ready"
    assert json.loads(end(writer)) == {"published": VERSIONS, "resets": 0}
    summary = json.loads(end(theirs))
    for fault in ("torn", "invalid", "backwards"):
        assert summary[fault] == 0, summary
    assert summary["versions"] == VERSIONS, summary
    summary = json.loads(end(ours))
    for fault in ("torn", "invalid", "changed", "backwards"):
        assert summary[fault] == 0, summary
    assert summary["last"] == VERSIONS
    assert state(prefix).readers == (0, 0)


# --- the figures that our benchmark shows beside ours ---------------------------------------


def test_the_crate_is_timed(prefix: str, rust: Run) -> None:
    figures = json.loads(rust("bench", prefix))
    assert figures["archive_bytes"] == 36
    for name in ("read_checked", "read_unchecked", "version", "write_raw_36", "write_raw_1mib"):
        assert figures[f"{name}_ns"] > 0
    assert listing(prefix) == {}
