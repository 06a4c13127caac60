"""What a process comes by only if another acts between two of its instructions (rows 5, 9 and 12): forced, as in
test_schedules.py, onto code that no other test can be sure to reach.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import failpoints
import pytest
from peers import Peer, PeerError
from stages import Stage
from victims import pattern, synchronizer

from mmapds import Counters, Queue, SnapshotMap, Synchronizer

WHY = failpoints.missing()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))


def test_r05_a_reader_of_the_crates_files_that_is_overtaken_twice_pins_both(stage: Stage, path: str) -> None:
    with Synchronizer(path, codec="raw", protocol="mmap-sync") as s:
        s.write_bytes(pattern(1))
    reader, writer = stage["a"], stage["b"]
    reader("s = mmapds.Synchronizer(path, protocol='mmap-sync', codec='raw'); s.load() and None", path=path)
    writer("w = mmapds.Synchronizer(path, protocol='mmap-sync', codec='raw')", path=path)
    write = "w.write_bytes(pattern({}), grace=0.0).reset"
    writer(write.format(2))
    look = "mmapsync_pin load_seq_cst_u64 version"
    reader.hold("r = s.read(); found = number(r.data); r.release(); found", look)
    writer(write.format(3))
    reader.go(look)
    writer(write.format(4))
    reader.go(look)
    assert writer(write.format(5)) is True, "one of its two pins was not seen"
    assert writer(write.format(6)) is True, "one of its two pins was not seen"
    reader.go()
    assert reader.receive() == 6


def cut(path: str | Path) -> None:
    """A file is truncated under those who use it."""
    with open(path, "r+b") as file:
        file.truncate(0)


def lost(stage: Stage) -> str:
    """What the held peer is told when it goes on. It has nothing left that could be closed in peace."""
    stage["held"].go()
    with pytest.raises(PeerError) as caught:
        stage["held"].receive()
    for name in ("held", "holder"):
        stage.drop(name)
    return str(caught.value)


def test_r09_a_lock_whose_page_goes_when_its_waiter_falls_asleep(stage: Stage, path: str) -> None:
    """The kernel cannot look at the word, and says EFAULT: that is a lost mapping."""
    stage["holder"]("r = mmapds.Region.open(path, 8192); lock = r.lock(4096); lock.acquire()", path=path)
    stage["held"]("r = mmapds.Region.open(path); lock = r.lock(4096)", path=path)
    stage["held"].hold("lock.acquire(5)", "call futex_wait")
    cut(path)
    assert "MappingLost" in lost(stage)


def test_r09_a_queue_whose_page_goes_when_a_consumer_falls_asleep(stage: Stage, path: str) -> None:
    with Queue(path):
        pass
    peer = stage["held"]
    peer("q = mmapds.Queue(path)", path=path)
    peer.hold("q.get(timeout=5)", "call futex_wait")
    cut(path + "/meta")
    assert "MappingLost" in lost(stage)


@pytest.mark.parametrize("what", ["c.counter('name').add()", "c.add('name')", "c.add(0)"])
def test_r09_cells_that_go_after_the_look_and_before_the_addition(stage: Stage, path: str, what: str) -> None:
    """What it would return is a sum of zeros."""
    with Counters(path, 4) as c:
        c["name"] = 5
    peer = stage["held"]
    peer("c = mmapds.Counters(path)", path=path)
    peer.hold(what, "fetch_add_seq_cst_u64")
    cut(path)
    assert "MappingLost" in lost(stage)


def test_r12_what_a_put_of_many_has_put_is_durable_when_it_says_that_the_queue_is_full(stage: Stage, path: str) -> None:
    with Queue(path, maxsize=2, durability="power"):
        pass
    peer = stage["a"]
    peer("q = mmapds.Queue(path); q.put('first'); q.get()", path=path)
    assert "msync" in peer.hold("q.put_many(['a', 'b', 'c'], block=False)", "call msync")
    peer.go()
    with pytest.raises(PeerError, match=r"queue\.Full: 2|Full: 2"):
        peer.receive()


def test_r06_r12_a_name_that_was_made_before_an_error_is_synced_before_a_version_is_published(
    stage: Stage, path: str
) -> None:
    """The file is there, and the write that made it failed before its name was synced: the next write syncs it."""
    with Synchronizer(path, codec="raw", durability="power") as s:
        s.write_bytes(pattern(1))
    peer = stage["a"]
    peer("w = mmapds.Synchronizer(path); w._become_writer()", path=path)
    write = "w.write_bytes(pattern(w.version + 1)); w.version"
    peer.hold(write, "call open_read")  # between link and fsync of the directory
    peer.fail(errno.EMFILE)
    with pytest.raises(PeerError, match="Too many open files"):
        peer.receive()
    assert peer.hold(write, "call fsync").endswith(Path(path).parent.name)
    with Synchronizer(path) as s:
        assert s.version == 1
    peer.go()
    assert peer.receive() == 2


def test_a_private_copy_whose_addresses_are_used_up(tmp_path: Path) -> None:
    """It cannot move as a shared one does: what was counted in it would stay behind."""
    path = str(tmp_path / "it")
    with Counters(path, 4) as c:
        c["name"] = 1
    with Peer(
        """
import resource
space = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (space + (48 << 20), resource.RLIM_INFINITY))
c = mmapds.Counters(path, mode="private")
made = 1
try:
    for n in range(200_000):
        c[f"name {n}"] = n
        made += 1
except OSError as error:
    why = str(error)
""",
        path=path,
    ) as peer:
        why, made = peer("why, made")
        assert "private copy has no addresses left" in why
        assert peer("len(c.snapshot()), c['name'], c.add('name 5')") == (made, 1, 6)


def test_r09_a_layer_that_is_cut_while_it_is_built(stage: Stage, path: str) -> None:
    """It has no name yet: only a disk that fails does this. Its records are read back for the index."""
    peer = stage["held"]
    peer.hold("mmapds.SnapshotMap.build(path, {str(n): n for n in range(100)})", "call mmap unnamed", path=path)
    cut_files = 0
    for link in Path(f"/proc/{peer.pid}/fd").iterdir():
        if str(link.readlink()).startswith(path + "/#"):
            os.truncate(link, 0)
            cut_files += 1
    assert cut_files == 1
    assert "MappingLost" in lost(stage)
    with pytest.raises(FileNotFoundError):
        SnapshotMap(path, mode="readonly")
    SnapshotMap.build(path, {"a": 1})
    with SnapshotMap(path) as m:
        assert dict(m) == {"a": 1}


def test_r05_a_copying_reader_whose_file_is_replaced_before_it_maps_it(stage: Stage, path: str) -> None:
    """Somebody else pins the long version, so the next but one is in a new, short file: newer, not damaged."""
    with Synchronizer(path, codec="raw") as s:
        s.write_bytes(b"long" * 100_000)
    reader, writer, pinning = stage["a"], stage["b"], stage["c"]
    reader("s = mmapds.Synchronizer(path, mode='readonly', verify=False)", path=path)
    writer("w = mmapds.Synchronizer(path)", path=path)
    pinning("s = mmapds.Synchronizer(path); r = s.read()", path=path)
    assert "data_1" in reader.hold("bytes(s.load())", "call open")
    assert [writer(f"w.write_bytes(b'short {n}', grace=0.0).reset") for n in (2, 3)] == [False, True]
    reader.go()
    assert reader.receive() == b"short 3"


def test_r05_a_copying_reader_of_the_crates_files_while_two_versions_are_published(stage: Stage, path: str) -> None:
    """The file is filled anew in its place between its look and its copy."""
    with Synchronizer(path, codec="raw", protocol="mmap-sync") as s:
        s.write_bytes(pattern(1))
    reader, writer = stage["a"], stage["b"]
    options = "protocol='mmap-sync', codec='raw'"
    reader(f"s = mmapds.Synchronizer(path, mode='readonly', verify=False, {options})", path=path)
    writer(f"w = mmapds.Synchronizer(path, {options}); w.write_bytes(pattern(2)); w.write_bytes(pattern(3))", path=path)
    at = reader.hold("r = s.read(); found = number(r.data), r.version == s.version; r.release(); found", "call mmap")
    writer("w.write_bytes(pattern(4)); w.write_bytes(pattern(5))")
    reader.go()
    assert reader.receive() == (5, True), at


@pytest.mark.parametrize("index", [0, 1])
def test_r33_a_reader_that_has_mapped_what_a_dead_writer_replaced(stage: Stage, path: str, index: int) -> None:
    """It looks at the file again, although the dead one had not come to say that there is another."""
    newest = 2 + index
    synchronizer(path, newest)
    reader, writer = stage["a"], stage["victim"]
    reader("s = mmapds.Synchronizer(path, verify=False); r = s.read()", path=path)
    write = "w.write_bytes(pattern({}), grace=0.0)"
    writer("w = mmapds.Synchronizer(path); w._become_writer()", path=path)
    writer(write.format(newest + 1))
    writer.hold(write.format(newest + 2), "Writer_write_locked fetch_add_seq_cst_u64 generation")
    writer.kill()
    reader("r.release()")
    with Synchronizer(path) as successor:
        for n in range(newest + 2, newest + 6):
            successor.write_bytes(pattern(n), grace=0.0)
            assert reader("r = s.read(); found = number(r.data), r.version; r.release(); found") == (n, n)


WAITING = """
import os, signal
from victims import pattern
w = mmapds.Synchronizer(path, codec="raw")
w.write_bytes(pattern(3))
found = []
def while_it_waits(job):
    def handler(*_):
        job()
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    w.write_bytes(pattern(4), grace=0.5)        # a reader holds what was in that file
def write_again():
    try:
        w.write_bytes(pattern(9))
    except RuntimeError as error:
        found.append(str(error))
def fork():
    found.append(os.fork())
def is_not_the_writer():
    try:
        while_it_waits(fork)
        told = 1
    except mmapds.ForkedHandle:
        told = 7
    if found[0] == 0:
        os._exit(told)
    return told, os.waitstatus_to_exitcode(os.waitpid(found[0], 0)[1])
"""


def test_r22_who_is_forked_in_the_middle_of_a_write_is_not_the_writer(tmp_path: Path) -> None:
    path = str(tmp_path / "it")
    synchronizer(path, 2)
    with Synchronizer(path, codec="raw") as s, s.read(), Peer(WAITING, path=path) as writer:
        assert writer("is_not_the_writer()") == (1, 7)
        assert s.load() == pattern(4)


def test_a_write_in_a_signal_handler_of_who_writes(tmp_path: Path) -> None:
    path = str(tmp_path / "it")
    synchronizer(path, 2)
    with Synchronizer(path, codec="raw") as s, s.read(), Peer(WAITING, path=path) as writer:
        writer("while_it_waits(write_again)")
        assert "reentrant" in writer("found[0]")
        assert s.load() == pattern(4)
