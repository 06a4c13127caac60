"""The interleavings of the protocols' arguments, forced onto real code: the Synchronizer's (rows 1, 3, 5, 20, 27, 33).

Each argument in the headers of ``mmapds/_native`` says: suppose one process has come to *here*, and another does
*that*. Here both are real processes, of the build with failpoints; one is held exactly there, the other does that, the
first goes on, or is killed. Nothing is left to chance, and nothing is waited for but the points themselves. The other
structures' are in files of their own: test_schedules_queue.py, _names.py, _makers.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import failpoints
import pytest
import syncfiles
from failpoints import Died, FailPeer
from peers import PeerDiedError
from stages import SETUP, Stage
from victims import pattern, synchronizer

from mmapds import Synchronizer

WHY = failpoints.missing()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))


READ = "r = s.read(); found = number(r.data), r.version; r.release(); found"
WRITER = "w = mmapds.Synchronizer(path); w.write_bytes(pattern(w.version + 1)); w.version"
WRITE = "w.write_bytes(pattern(w.version + 1), grace=0.0).reset"


@pytest.mark.parametrize("first", [False, True], ids=["it has mapped both", "it has mapped nothing"])
def test_r05_a_reader_between_pin_and_look_while_two_versions_are_published(
    stage: Stage, path: str, first: bool
) -> None:
    """mmap-sync's race: the second write must find the pin, and leave that file alone."""
    synchronizer(path)
    reader, writer = stage["a"], stage["b"]
    reader("s = mmapds.Synchronizer(path, verify=False)", path=path)
    if not first:
        reader("s.load()")
    assert writer(WRITER, path=path) == 2
    if not first:
        reader("s.load()")
    at = reader.hold(READ, "leftright_pin load_seq_cst_u64 sequence")
    assert "leftright_pin" in at
    assert list(syncfiles.pins(path).values()) == [(1, 0)]
    assert [writer(WRITE), writer(WRITE)] == [False, True], "the pin was not seen"
    reader.go()
    assert reader.receive() == (4, 4)
    assert syncfiles.pins(path) == {}


def test_r05_a_reader_before_its_pin_while_two_versions_are_published(stage: Stage, path: str) -> None:
    """The file is filled anew in its place, and the pin comes after that: the look finds the new version in it."""
    synchronizer(path)
    reader, writer = stage["a"], stage["b"]
    reader("s = mmapds.Synchronizer(path, verify=False); s.load() and None", path=path)
    assert writer(WRITER, path=path) == 2
    reader("s.load() and None")
    reader.hold(READ, "leftright_pin store_seq_cst_u64 pins")
    assert [writer(WRITE), writer(WRITE)] == [False, False]
    reader.go()
    assert reader.receive() == (4, 4)


def test_r05_a_reader_that_is_overtaken_twice_pins_both(stage: Stage, path: str) -> None:
    """Bounded: after two rounds that came too late it holds both files, and takes what is the newest."""
    synchronizer(path)
    reader, writer = stage["a"], stage["b"]
    reader("s = mmapds.Synchronizer(path, verify=False); s.load() and None", path=path)
    assert writer(WRITER, path=path) == 2
    look = "leftright_pin load_seq_cst_u64 sequence"
    reader.hold(READ, look)
    writer(WRITE)
    reader.go(look)
    writer(WRITE)
    reader.go(look)
    assert list(syncfiles.pins(path).values()) == [(1, 1)]
    assert writer(WRITE) is True
    assert writer(WRITE) is True
    reader.go()
    assert reader.receive() == (6, 6)
    assert syncfiles.pins(path) == {}


def pinned_while_it_is_filled(reader: FailPeer, writer: FailPeer, path: str) -> Any:
    """The second case of the argument: the reader pins the file that is being filled. What it has read, (value,
    version); V was 2 when it began, is 3, and version 4 is written and not published."""
    reader("s = mmapds.Synchronizer(path, verify=False); s.load() and None", path=path)
    writer("w = mmapds.Synchronizer(path); w._become_writer()", path=path)
    reader.hold(READ, "leftright_pin store_seq_cst_u64 pins")  # of file 0: V is 2
    writer("w.write_bytes(pattern(3))")
    writer.hold("w.write_bytes(pattern(4)).reset", "leftright_publish store_relaxed_u64 record->sequence")
    reader.go("leftright_pin load_seq_cst_u64 sequence")  # V is 3: what it has pinned is being filled
    reader.go()
    return reader.receive()


def test_r05_a_pin_between_the_writers_look_and_its_publishing(stage: Stage, path: str) -> None:
    synchronizer(path, 2)
    reader, writer = stage["a"], stage["b"]
    assert pinned_while_it_is_filled(reader, writer, path) == (3, 3)
    writer.go()
    assert writer.receive() is False
    assert reader(READ) == (4, 4)


@pytest.mark.parametrize("publish", [False, True], ids=["before", "after"])
def test_r05_a_pin_at_both_sides_of_the_publishing_store(stage: Stage, path: str, publish: bool) -> None:
    """It is held between pin and look; V changes, or does not, in between: what it reads is whole."""
    synchronizer(path, 2)
    reader, writer = stage["a"], stage["b"]
    reader("s = mmapds.Synchronizer(path, verify=False); s.load() and None", path=path)
    writer(WRITER, path=path)
    reader("s.load() and None")
    writer.hold("w.write_bytes(pattern(4))", "leftright_publish store_seq_cst_u64 sequence")
    reader.hold(READ, "leftright_pin load_seq_cst_u64 sequence")
    if publish:
        writer.go()
        writer.receive()
    reader.go()
    assert reader.receive() == ((4, 4) if publish else (3, 3))
    if not publish:
        writer.go()
        writer.receive()
    assert reader(READ) == (4, 4)


@pytest.mark.parametrize("where", ["load_seq_cst record->generation", "load_bytes source"])
def test_r05_a_reader_without_a_slot_while_two_versions_are_published(stage: Stage, path: str, where: str) -> None:
    """No pin holds the writer off: the file that it copies is filled anew, and it begins again."""
    synchronizer(path, 2)
    reader, writer = stage["a"], stage["b"]
    writer(WRITER.replace("w.write", "#"), path=path)
    reader("s = mmapds.Synchronizer(path, mode='readonly', verify=False)", path=path)
    at = reader.hold(READ, f"LeftRight_copy {where}")
    assert [writer(WRITE), writer(WRITE)] == [False, False]
    reader.go()
    assert reader.receive() == (4, 4), at


@pytest.mark.parametrize(
    "where", ["call open_path it_data", "call mmap it_data", "LeftRight_switch load_seq_cst sync->sequence"]
)
def test_r05_a_reader_that_maps_while_the_writer_rotates(stage: Stage, path: str, where: str) -> None:
    """Pinned at v, it maps the file by its name, which the inode of v + 2 has got meanwhile: it looks again."""
    synchronizer(path, 2)
    reader, writer = stage["a"], stage["b"]
    writer(WRITER.replace("w.write", "#"), path=path)
    reader("s = mmapds.Synchronizer(path, verify=False)", path=path)
    at = reader.hold(READ, where)
    assert list(syncfiles.pins(path).values()) == [(1, 0)], at
    assert [writer(WRITE), writer(WRITE)] == [False, True]
    reader.go()
    assert reader.receive() == (4, 4)
    assert [writer(WRITE), writer(WRITE)] == [False, False]
    assert reader(READ) == (6, 6)


def test_r33_a_writer_killed_between_rename_and_generation_while_a_reader_maps(stage: Stage, path: str) -> None:
    """The reader maps the dead one's inode, of a version that was never published; and lets go of it."""
    synchronizer(path, 2)
    reader, writer = stage["a"], stage["victim"]
    writer("w = mmapds.Synchronizer(path); w._become_writer()", path=path)
    reader("s = mmapds.Synchronizer(path, verify=False)", path=path)
    reader.hold(READ, "call open_path it_data_0")
    writer(WRITE)
    before = Path(syncfiles.data(path, 0)).stat().st_ino
    at = writer.hold(WRITE, "Writer_write_locked fetch_add_seq_cst_u64 generation")
    assert Path(syncfiles.data(path, 0)).stat().st_ino != before, at
    assert syncfiles.sequence(path) == 3
    reader.go("LeftRight_switch load_seq_cst_u64 sync->sequence")  # it has mapped the new inode
    writer.kill()
    reader.go()
    assert reader.receive() == (3, 3)
    with Synchronizer(path) as successor:
        for n in range(4, 8):
            successor.write_bytes(pattern(n), grace=0.0)
            assert reader(READ) == (n, n), syncfiles.state(path)
        successor.check()


def test_r01_a_writer_killed_at_the_publishing_store_while_a_reader_is_pinned(stage: Stage, path: str) -> None:
    synchronizer(path, 2)
    reader, writer = stage["a"], stage["victim"]
    writer(WRITER, path=path)
    reader("s = mmapds.Synchronizer(path); r = s.read()", path=path)
    writer.hold(WRITE, "leftright_publish store_seq_cst_u64 sequence")
    writer.kill()
    assert reader("number(r.data), r.version, s.version") == (3, 3, 3)
    with Synchronizer(path) as successor:
        for n in (4, 5):
            successor.write_bytes(pattern(n), grace=0.0)
            assert reader("number(r.data), r.version, s.version, number(s.load())") == (3, 3, n, n)


@pytest.mark.parametrize(
    "where", ["leftright_attach fetch_or_seq_cst_u64 in_use", "leftright_attach store_seq_cst_u64 pins[1]"]
)
def test_r20_a_slot_that_is_taken_while_the_writer_sweeps(stage: Stage, path: str, where: str) -> None:
    """A dead reader's slot, with its pins, is given to a new one who is not done with it when the writer looks."""
    synchronizer(path, 2)
    dead, reader, writer = stage["victim"], stage["a"], stage["b"]
    writer(WRITER.replace("w.write", "#"), path=path)
    dead("s = mmapds.Synchronizer(path); r = s.read()", path=path)
    dead.kill()
    assert list(syncfiles.pins(path).values()) == [(1, 0)]
    reader("s = mmapds.Synchronizer(path, verify=False)", path=path)
    reader.hold(READ, where)
    for _ in range(4):
        writer(WRITE)
    reader.go()
    assert reader.receive() == (6, 6)
    assert [writer(WRITE), writer(WRITE)] == [False, False]
    assert syncfiles.pins(path) == {}
    assert reader(READ) == (8, 8)


def test_r20_a_slot_that_is_taken_while_the_writer_reclaims_it(stage: Stage, path: str) -> None:
    """The writer has the dead one's byte: a new reader finds another slot, or copies; both go on."""
    synchronizer(path, 2)
    dead, reader, writer = stage["victim"], stage["a"], stage["b"]
    writer(WRITER, path=path)
    dead("s = mmapds.Synchronizer(path); r = s.read()", path=path)
    dead.kill()
    writer(WRITE)
    reader("s = mmapds.Synchronizer(path, verify=False)", path=path)
    writer.hold(WRITE, "leftright_reclaim store_seq_cst_u64 pins[1]")
    assert reader(READ) == (4, 4)
    reader("r = s.read()")
    writer.go()
    assert writer.receive() is True
    assert reader("number(r.data), r.version") == (4, 4)
    assert [writer(WRITE), writer(WRITE)] == [True, False], "the pin of the new reader was taken for the dead one's"
    assert reader("number(r.data), r.version") == (4, 4)


def test_r27_two_who_become_the_writer_at_once(stage: Stage, path: str) -> None:
    synchronizer(path)
    one, other = stage["a"], stage["b"]
    for peer in (one, other):
        peer("w = mmapds.Synchronizer(path)", path=path)
    one.hold(WRITE, "call lock try_writer")
    other(WRITE)
    one.go()
    with pytest.raises(Exception, match="WriterBusy"):
        one.receive()
    other("w.close()")
    assert one(WRITE) is False
    assert syncfiles.sequence(path) == 3


def test_r03_a_waiter_between_its_mark_and_its_sleep(stage: Stage, path: str) -> None:
    """The version is published in between: it must not sleep."""
    synchronizer(path)
    waiter, writer = stage["a"], stage["b"]
    waiter("s = mmapds.Synchronizer(path)", path=path)
    writer(WRITER, path=path)
    waiter.hold("s.wait(newer_than=2)", "store_seq_cst_u32 waiters")
    waiter.go("load_seq_cst_u64 word")
    writer(WRITE)
    with pytest.raises(Died):
        waiter.go("call futex_wait")
    assert waiter.receive() == 3


# ---- these tests can fail --------------------------------------------------------------------------------------------


def test_the_race_of_mmap_sync_is_found_when_the_second_look_is_taken_out(tmp_path: Path) -> None:
    """Its reader loads the version, counts itself, and does not look again: two writes in between tear the read."""
    build = failpoints.broken(
        "_native/leftright.h", "if ((int)(v & 1) == i && v != 0) {", "if (v != 0) { v -= (v ^ i) & 1;", "leftright"
    )
    path = str(tmp_path / "it")
    synchronizer(path, 2)
    with (
        FailPeer(SETUP, folder=tmp_path, build=build, path=path) as reader,
        FailPeer(SETUP, folder=tmp_path, path=path) as writer,
    ):
        torn = pinned_while_it_is_filled(reader, writer, path)
        assert torn == (4, 2), "not the bytes of a version that is not published"


def test_a_process_that_never_comes_to_its_point_is_an_error(stage: Stage, path: str) -> None:
    synchronizer(path)
    peer = stage["a"]
    peer("s = mmapds.Synchronizer(path)", path=path)
    with pytest.raises(Died, match="never came"):
        peer.hold("s.load() and 1", "a point that is nowhere")
    assert peer.receive() == 1
    victim = stage["victim"]
    victim("s = mmapds.Synchronizer(path)", path=path)
    victim.hold("s.load()", "leftright_pin")
    victim.kill()
    with pytest.raises(PeerDiedError):
        victim.receive()
