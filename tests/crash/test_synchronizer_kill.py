"""SIGKILL and SIGSTOP of writers and readers at any moment (rows 1, 4, 5, 20, 33)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import syncfiles
from peers import Peer
from victims import number, pattern

from mmapds import Synchronizer


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "value")


@pytest.fixture
def zygote(prefix: str) -> Iterator[Peer]:
    with Peer("import victims, mmap, random, time", prefix=prefix) as peer:
        yield peer


WRITE_FOR_EVER = """
acknowledged = mmap.mmap(-1, 8)  # shared with the victims, and survives them

def write_for_ever():
    s = Synchronizer(prefix)
    n = s.version
    while True:
        acknowledged[:] = n.to_bytes(8, "little")
        n += 1
        s.write_bytes(victims.pattern(n, sizes[n % len(sizes)]), grace=0.0)

def kill_one(seconds):
    pid = victims.spawn(write_for_ever)
    status = victims.end(pid, after=seconds)
    return status, int.from_bytes(acknowledged[:], "little")
"""


@pytest.mark.parametrize("share", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("durability", "sizes", "held", "kills"),
    [
        ("process", [64], False, 250),
        ("process", [64, 72, 4096, 8000], True, 250),
        ("process", [200_000, 64, 1 << 20], False, 100),
        ("power", [64, 10_000], False, 40),
        ("power", [64], True, 40),
    ],
)
def test_r01_writers_killed_at_any_moment_leave_the_old_or_the_new_version(
    zygote: Peer, prefix: str, durability: str, sizes: list[int], held: bool, kills: int, share: int
) -> None:
    """`held`: a live reader holds a version, so that each second write begins a new inode and renames it."""
    kills //= share
    with Synchronizer(prefix, codec="raw", durability=durability) as s:  # type: ignore[arg-type]
        s.write_bytes(pattern(1, sizes[0]))
        stuck = s.read() if held else None  # outlives the handle
    longest = 0.012 if durability == "process" else 0.12
    zygote(WRITE_FOR_EVER, sizes=sizes)
    highest = 1
    with Synchronizer(prefix) as reader, Synchronizer(prefix, mode="readonly") as copying:
        for _ in range(kills):
            status, acknowledged = zygote("kill_one(random.random() * longest)", longest=longest)
            assert status == -signal.SIGKILL, zygote.stderr()
            for handle in (reader, copying):
                with handle.read() as r:
                    message = f"acknowledged {acknowledged}; {syncfiles.state(prefix)}"
                    assert number(r.data) == r.version, message
                    assert r.version in (acknowledged, acknowledged + 1) or acknowledged == 0, message
                    assert r.version >= highest, message
            highest = reader.version
        assert highest > kills // 4, "the victims were killed before they had written anything"
        if stuck is not None:
            assert number(stuck.data) == 1, "what a live reader holds was overwritten"
            stuck.release()
    with Synchronizer(prefix) as s:
        s.check()
        s.write_bytes(b"mine")
        s.check()
        assert sorted(syncfiles.snapshot(prefix)) == ["_data_0", "_data_1", "_sync"], "a victim left something behind"


def test_r04_a_thousand_pinned_readers_are_killed(zygote: Peer, prefix: str) -> None:
    zygote(
        """
def pin(written):
    r = Synchronizer(prefix).read()
    assert victims.number(r.data) == r.version
    os.write(written, b"x")
    signal.pause()

def kill_readers(count):
    '''Starts readers, and kills them when all of them hold the version.'''
    reading, writing = os.pipe()
    pids = [victims.spawn(lambda: pin(writing)) for _ in range(count)]
    os.close(writing)
    ready = 0
    while ready < count and (data := os.read(reading, count)):
        ready += len(data)
    os.close(reading)
    return ready, [victims.end(pid) for pid in pids]
"""
    )
    live = []
    with Synchronizer(prefix, codec="raw") as writer:
        try:
            for _ in range(4):
                writer.write_bytes(pattern(writer.version + 1, 4096))
                live.append(Peer("import victims; s = Synchronizer(prefix); r = s.read(); r.version", prefix=prefix))
            for batch in range(25):
                ready, statuses = zygote("kill_readers(40)")
                assert ready == 40, zygote.stderr()
                assert statuses == [-signal.SIGKILL] * 40
                assert len(syncfiles.pins(prefix)) == 44
                for _ in range(2):
                    writer.write_bytes(pattern(writer.version + 1, 4096), grace=0.0)
                assert len(syncfiles.pins(prefix)) == 4, f"batch {batch}: {syncfiles.state(prefix)}"
                assert len(syncfiles.slots_in_use(prefix)) == 4, f"batch {batch}: {syncfiles.state(prefix)}"
            for n, peer in enumerate(live, 1):
                assert peer("r.version, victims.number(r.data)") == (n, n), "a live reader was touched"
                assert peer("r.release(); r = s.read(); r.version == victims.number(r.data) == s.version")
            writer.check()
        finally:
            for peer in live:
                peer.kill()
                peer.__exit__(None, None, None)


def test_r05_a_stopped_reader_still_has_its_version_whole(prefix: str) -> None:
    with Synchronizer(prefix, codec="raw") as writer:
        writer.write_bytes(pattern(1, 1 << 20))
        with Peer("import victims; s = Synchronizer(prefix); r = s.read(); view = r.data", prefix=prefix) as reader:
            reader.signal(signal.SIGSTOP)
            resets = [writer.write_bytes(pattern(n, 1 << 20), grace=0.02).reset for n in range(2, 30)]
            assert resets == [False, True] * 14
            reader.signal(signal.SIGCONT)
            assert reader("victims.number(view), r.version, victims.number(r.data)") == (1, 1, 1)
            assert reader("view.release(); r.release(); r = s.read(); victims.number(r.data)") == 29
            reader("r.release()")
            assert not writer.write_bytes(pattern(30)).reset


def test_r05_a_reader_stopped_anywhere_in_a_read(prefix: str) -> None:
    """Stopped and continued at random moments of a loop of reads, while the writer overwrites everything."""
    loop = """
import victims
s = Synchronizer(prefix, verify=False)
seen = set()
while True:
    with s.read() as r:
        n = victims.number(r.data)
        assert n == r.version, (n, r.version)
        seen.add(n)
    if n == last:
        break
len(seen)
"""
    with Synchronizer(prefix, codec="raw") as writer:
        writer.write_bytes(pattern(1, 20_000))
        with Peer() as reader:
            reader.send(loop, prefix=prefix, last=1001)
            for n in range(2, 1002):
                if n % 4 == 0:
                    reader.signal(signal.SIGSTOP)
                writer.write_bytes(pattern(n, 20_000), grace=0.0)
                if n % 4 == 3:
                    reader.signal(signal.SIGCONT)
            reader.signal(signal.SIGCONT)
            assert reader.receive() >= 1


def test_r33_a_writer_that_died_between_rename_and_publish(prefix: str) -> None:
    """Done by hand in the victim. A reader has the old inode mapped: the next writer must make it map anew."""
    with Synchronizer(prefix, codec="raw") as first:
        first.write_bytes(pattern(1, 4096))
        first.write_bytes(pattern(2, 4096))
        first.write_bytes(pattern(3, 4096))
    with (
        Peer("import victims; s = Synchronizer(prefix); r = s.read(); q = s.load()", prefix=prefix) as reader,
        Synchronizer(prefix, mode="readonly", verify=False) as copying,
        Synchronizer(prefix, verify=False) as trusting,
    ):
        for generation in range(3):
            version = trusting.version
            assert number(copying.load()) == version
            with trusting.read() as r:
                assert number(r.data) == version
            before = os.stat(syncfiles.data(prefix, 1 - (version & 1))).st_ino
            with Peer("s = Synchronizer(prefix); s._become_writer()", prefix=prefix) as victim:
                index = 1 - (version & 1)
                victim("target = s._data.target(index, 4096, True)", index=index)
                victim("memoryview(target)[4096:8192] = b'half done, never published......' * 128")
                assert os.path.exists(syncfiles.data(prefix, index) + ".new")
                victim("s._data.install(index)")
                victim.kill()
            assert os.stat(syncfiles.data(prefix, index)).st_ino != before
            for handle in (copying, trusting):
                assert number(handle.load()) == version, f"round {generation}: {syncfiles.state(prefix)}"
            with Synchronizer(prefix) as successor:
                successor.write_bytes(pattern(version + 1, 4096), grace=0.0)
                for handle in (copying, trusting):
                    with handle.read() as r:
                        assert number(r.data) == version + 1, "a reader kept the inode that lost its name"
                assert reader("victims.number(r.data)") == 3
                successor.write_bytes(pattern(version + 2, 4096), grace=0.0)
                successor.check()
                for handle in (copying, trusting):
                    with handle.read() as r:
                        assert number(r.data) == version + 2


def test_r33_a_writer_that_died_with_a_new_inode_that_has_no_name_yet(prefix: str) -> None:
    with Synchronizer(prefix, codec="raw") as first:
        first.write_bytes(pattern(1))
    with Peer(
        "s = Synchronizer(prefix); s._become_writer(); target = s._data.target(0, 4096, True)", prefix=prefix
    ) as victim:
        victim.kill()
    assert sorted(syncfiles.snapshot(prefix)) == ["_data_0.new", "_data_1", "_sync"]
    with Synchronizer(prefix) as successor:
        assert number(successor.load()) == 1
        successor.write_bytes(pattern(2))
        assert sorted(syncfiles.snapshot(prefix)) == ["_data_0", "_data_1", "_sync"]
        successor.check()


def test_r20_readers_and_writers_of_recycled_slots_never_own_twice(zygote: Peer, prefix: str) -> None:
    """Processes take and leave slots, by close and by death, as fast as they can; a writer overwrites all the time."""
    zygote(
        """
def churn(seed):
    choose = random.Random(seed)
    for _ in range(60):
        s = Synchronizer(prefix, verify=False)
        held = [s.read() for _ in range(3)]
        time.sleep(choose.random() * 0.001)
        for r in held:
            assert victims.number(r.data) == r.version, (r.version, victims.number(r.data))
        if choose.random() < 0.05:
            victims.die()
        for r in held:
            r.release()
        s.close()

def run(count):
    pids = [victims.spawn(lambda: churn(seed)) for seed in range(count)]
    return [victims.finish(pid) for pid in pids]
"""
    )
    with Synchronizer(prefix, codec="raw") as writer:
        writer.write_bytes(pattern(1, 8000))
        zygote.send("[run(12) for _ in range(4)]")
        import select

        assert zygote.process.stdout is not None
        while not select.select([zygote.process.stdout], [], [], 0)[0]:
            writer.write_bytes(pattern(writer.version + 1, 8000), grace=0.0)
        for statuses in zygote.receive():
            assert set(statuses) <= {0, -signal.SIGKILL}, zygote.stderr()
        writer.write_bytes(pattern(writer.version + 1, 8000), grace=0.0)
        writer.write_bytes(pattern(writer.version + 1, 8000), grace=0.0)
        assert syncfiles.pins(prefix) == {}, syncfiles.state(prefix)
        writer.check()
