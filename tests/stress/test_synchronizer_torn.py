"""The hunt for torn reads: a writer that never stops, and readers that look at every byte themselves.

The readers do not verify checksums (``verify=False``): each new version is checked whole when it is first seen, and
once more just before it is let go. A value consists of one number, repeated: a tear is a second number in it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator

import pytest
import syncfiles
from peers import Peer, PeerError

from mmapds import Synchronizer


@pytest.fixture
def prefix() -> Iterator[str]:
    """In memory, where writing is fastest."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="mmapds-torn-", dir=memory) as folder:
        yield f"{folder}/value"


WRITER = """
import time, victims
s = Synchronizer(prefix, codec="raw")
def write(seconds, size, grace=0.0, pause=0.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(20):
            s.write_bytes(victims.pattern(s.version + 1, size), grace)
            if pause:
                time.sleep(pause)
    return s.version
"""

READER = """
import random, time, victims
s = Synchronizer(prefix, mode=mode, verify=False)
def check(r):
    n = victims.number(r.data)
    if n != r.version:
        words = sorted({bytes(r.data[i:i + 8]) for i in range(0, len(r), 8)})
        raise AssertionError(f"torn: version {r.version} consists of {[int.from_bytes(w, 'little') for w in words]}")
def read(reads, again, holds):
    '''Reads so often: (reads, versions checked whole). `again`: reads of a version between its two checks.'''
    choose = random.Random(os.getpid())
    done = versions = last = 0
    while done < reads:
        r = s.read()
        check(r)
        assert r.version >= last, (r.version, last)
        last = r.version
        versions += 1
        for _ in range(again):
            with s.read() as q:
                if q.switched:
                    check(q)
                    versions += 1
        if holds and choose.random() < 0.02:
            time.sleep(choose.random() * 0.004)
        check(r)
        r.release()
        done += again + 1
    return done, versions
"""


def hunt(prefix: str, modes: list[str], seconds: float, size: int, reads: int, again: int) -> tuple[int, int, int]:
    """(reads, versions that readers checked whole, versions written), with readers of these modes."""
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(Peer(WRITER, prefix=prefix))
        writer("write(0, size)", size=size)
        writer("s.write_bytes(victims.pattern(s.version + 1, size)).size", size=size)
        readers = [stack.enter_context(Peer(READER, prefix=prefix, mode=mode)) for mode in modes]
        writer.send("write(seconds, size)", seconds=seconds, size=size)
        done = versions = 0
        busy = True
        while busy or done < reads:
            for reader in readers:
                reader.send("read(20_000, again, True)", again=again)
            for reader in readers:
                some, checked = reader.receive()
                done += some
                versions += checked
            if syncfiles.sequence(prefix) and busy and done >= reads:
                break
        writer.signal(signal.SIGINT)
        with contextlib.suppress(PeerError):
            writer.receive()
        with Synchronizer(prefix) as s:
            s.check()
            return done, versions, s.version


def test_a_million_reads_of_1_mib_values_by_4_readers_and_none_is_torn(prefix: str) -> None:
    reads, checked, written = hunt(prefix, ["shared"] * 4, 600.0, 1 << 20, 1_000_000, again=600)
    assert reads >= 1_000_000
    assert checked > 1000, f"{checked} versions checked, {written} written"
    assert written > 500, f"{checked} versions checked, {written} written"


def test_small_values_by_4_readers_and_none_is_torn(prefix: str) -> None:
    reads, checked, written = hunt(prefix, ["shared"] * 4, 600.0, 64, 300_000, again=3)
    assert checked > 50_000, f"{checked} versions checked, {written} written, {reads} reads"
    assert written > 5000, f"{checked} versions checked, {written} written, {reads} reads"


def test_readers_that_copy_and_none_is_torn(prefix: str) -> None:
    reads, checked, written = hunt(
        prefix, ["readonly", "readonly", "shared", "shared"], 600.0, 1 << 16, 100_000, again=20
    )
    assert checked > 2000, f"{checked} versions checked, {written} written, {reads} reads"


# ---- the hunt has teeth --------------------------------------------------------------------------------------------

PYTHON_READER = """
import victims
from pyreader import PythonReader
reader = PythonReader(prefix, order, pause=0.0005)
def hunt(reads):
    '''(torn reads, versions seen), until there is a tear or so many reads were made.'''
    torn, seen = 0, set()
    for _ in range(reads):
        version, data = reader.read()
        if victims.number(data) < 0:
            torn += 1
            break
        seen.add(version)
    return torn, len(seen)
"""


def test_a_reader_that_loads_and_then_counts_is_caught(prefix: str) -> None:
    """mmap-sync's order, on our files: the very check that the hunt makes finds the tear."""
    with Peer(WRITER, prefix=prefix) as writer:
        writer("write(0.01, 1 << 20)")
        with Peer(PYTHON_READER, prefix=prefix, order="load, then count") as reader:
            writer.send("write(600.0, 1 << 20)")
            torn, seen = reader("hunt(100_000)")
            assert torn, f"100,000 reads in the wrong order of {seen} versions, and no tear was found"
        writer.signal(signal.SIGINT)
        with pytest.raises(PeerError, match="KeyboardInterrupt"):
            writer.receive()


def test_the_same_reader_in_the_right_order_is_not(prefix: str) -> None:
    with Peer(WRITER, prefix=prefix) as writer:
        writer("write(0.01, 1 << 20)")
        with Peer(PYTHON_READER, prefix=prefix, order="announce, then look again") as reader:
            writer.send("write(600.0, 1 << 20)")
            torn, seen = reader("hunt(5000)")
            assert torn == 0
            assert seen > 100, "the two did not meet"
        writer.signal(signal.SIGINT)
        with pytest.raises(PeerError, match="KeyboardInterrupt"):
            writer.receive()


# ---- long runs -----------------------------------------------------------------------------------------------------


@pytest.mark.stress
@pytest.mark.parametrize("size", [64, 5000, 1 << 20, 16 << 20])
@pytest.mark.parametrize("modes", [["shared"] * 4, ["shared"] * 8, ["shared", "shared", "readonly", "readonly"]])
def test_a_long_hunt(prefix: str, size: int, modes: list[str]) -> None:
    again = 3 if size < 1 << 16 else 250
    reads, checked, written = hunt(prefix, modes, 3600.0, size, 10_000_000 if again > 3 else 20_000_000, again)
    print(f"{len(modes)} readers, {size} bytes: {reads} reads, {checked} versions checked, {written} written")


@pytest.mark.stress
def test_chaos(prefix: str) -> None:
    """For five minutes: readers and the writer are stopped, continued and killed at random, and replaced."""
    import random

    choose = random.Random(5)
    with contextlib.ExitStack() as stack:

        def start(setup: str, job: str) -> Peer:
            peer = stack.enter_context(Peer(setup, prefix=prefix, mode=choose.choice(["shared", "shared", "readonly"])))
            peer.send(job)
            return peer

        write = "write(100_000.0, 200_000, 0.001)"
        read = "read(1 << 60, 10, True)"
        Synchronizer(prefix, codec="raw").close()
        writer = start(WRITER, write)
        while syncfiles.sequence(prefix) < 2:
            time.sleep(0.01)
        readers = [start(READER, read) for _ in range(6)]
        end = time.monotonic() + 300
        deaths = 0
        while time.monotonic() < end:
            time.sleep(choose.random() * 0.02)
            n = choose.randrange(7)
            victim = writer if n == 6 else readers[n]
            assert victim.process.poll() is None, victim.stderr()
            action = choose.choice([signal.SIGSTOP, signal.SIGSTOP, signal.SIGCONT, signal.SIGCONT, signal.SIGKILL])
            if action != signal.SIGKILL:
                victim.signal(action)
                continue
            victim.__exit__(None, None, None)
            deaths += 1
            if n == 6:
                writer = start(WRITER, write)
            else:
                readers[n] = start(READER, read)
        for peer in (writer, *readers):
            peer.signal(signal.SIGCONT)
            peer.signal(signal.SIGINT)
            with pytest.raises(PeerError, match="KeyboardInterrupt"):
                peer.receive()
        assert deaths > 100
        with Synchronizer(prefix) as s:
            s.check()
