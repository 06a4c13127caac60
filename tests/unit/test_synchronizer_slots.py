"""Reader slots: taken at the first read, given back, reclaimed from the dead; and reading without one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import syncfiles
from peers import Peer

from mmapds import Synchronizer


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


# Takes the locks that 1,024 live handles would have, and marks their slots as used.
CROWD = """
import syncfiles
fd = os.open(syncfiles.sync(prefix), os.O_RDWR)
syncfiles.lock(fd, syncfiles.LOCK_SLOT + first, syncfiles.SLOT_COUNT - first)
bits = int.from_bytes(syncfiles.peek(syncfiles.sync(prefix), syncfiles.IN_USE, 128), "little")
bits |= (1 << syncfiles.SLOT_COUNT) - (1 << first)
for slot in range(first, syncfiles.SLOT_COUNT):
    syncfiles.poke(syncfiles.sync(prefix), syncfiles.SLOTS + syncfiles.SLOT_SIZE * slot + 16, b"\\x01")
syncfiles.poke(syncfiles.sync(prefix), syncfiles.IN_USE, bits.to_bytes(128, "little"))
"""


@pytest.fixture
def crowd(writer: Synchronizer, prefix: str) -> Iterator[Peer]:
    """A process that is alive in every slot."""
    with Peer(CROWD, prefix=prefix, first=0) as peer:
        yield peer


def test_a_slot_is_taken_at_the_first_read_and_given_back_at_close(writer: Synchronizer, prefix: str) -> None:
    assert syncfiles.slots_in_use(prefix) == []
    with Synchronizer(prefix) as reader:
        assert reader.slot == -1
        assert reader.version == 1
        assert syncfiles.slots_in_use(prefix) == []
        reader.load()
        assert reader.slot == 0
        assert syncfiles.slots_in_use(prefix) == [0]
        assert syncfiles.locked(syncfiles.sync(prefix), syncfiles.LOCK_SLOT)
        with Synchronizer(prefix) as other:
            other.load()
            assert other.slot == 1
            assert syncfiles.slots_in_use(prefix) == [0, 1]
        assert syncfiles.slots_in_use(prefix) == [0]
        writer.load()
        assert writer.slot == 1
    assert syncfiles.slots_in_use(prefix) == [1]
    assert not syncfiles.locked(syncfiles.sync(prefix), syncfiles.LOCK_SLOT)


def test_each_use_of_a_slot_has_an_incarnation_of_its_own(writer: Synchronizer, prefix: str) -> None:
    def incarnation() -> int:
        return syncfiles.word(syncfiles.sync(prefix), syncfiles.SLOTS + 16)

    seen = []
    for _ in range(5):
        with Synchronizer(prefix) as reader:
            reader.load()
            seen.append(incarnation())
    assert seen == [1, 2, 3, 4, 5]


def test_the_slot_names_the_process_for_people(writer: Synchronizer, prefix: str) -> None:
    with Peer("s = Synchronizer(prefix); s.load() and None", prefix=prefix) as peer:
        assert syncfiles.word(syncfiles.sync(prefix), syncfiles.SLOTS + 24) == peer.pid


def test_r20_what_a_dead_reader_left_in_a_slot_is_cleared_before_the_slot_is_used(
    writer: Synchronizer, prefix: str
) -> None:
    """All slots were left pinned by dead handles, and nobody wrote since: the next reader takes over one of them."""
    with Peer(CROWD, prefix=prefix, first=0) as crowd:
        for slot in range(syncfiles.SLOT_COUNT):
            syncfiles.poke_word(syncfiles.sync(prefix), syncfiles.SLOTS + syncfiles.SLOT_SIZE * slot + 8, 3)
        crowd.kill()
    with Synchronizer(prefix) as reader:
        with reader.read() as r:
            assert not r.copied
            assert syncfiles.pins(prefix)[reader.slot] == (0, 1), "three pins of its predecessor are gone"
        assert reader.slot not in syncfiles.pins(prefix)
        assert not writer.write_bytes(b"2").reset
        writer.write_bytes(b"3", grace=600.0)
        assert syncfiles.pins(prefix) == {}, "the other 1,023 were dead"
        assert syncfiles.slots_in_use(prefix) == [reader.slot]


def test_without_a_free_slot_values_are_copied(crowd: Peer, writer: Synchronizer, prefix: str) -> None:
    with Synchronizer(prefix) as reader:
        with reader.read() as r:
            assert (bytes(r.data), r.version, r.copied, r.switched) == (b"1" * 100, 1, True, True)
        with reader.read() as r:
            assert (r.copied, r.switched) == (True, False)
            view = r.data
        assert reader.slot == -1
        for n in range(2, 8):
            assert not writer.write_bytes(b"%d" % n * 100, grace=0.0).reset, "copies are in nobody's way"
            with reader.read() as r:
                assert (bytes(r.data), r.version, r.copied) == (b"%d" % n * 100, n, True)
        assert bytes(view) == b"1" * 100
        first = reader.load()
        assert reader.load() is first
        assert reader.wait(newer_than=3) == 7


def test_a_copying_reader_checks_what_it_copies(crowd: Peer, writer: Synchronizer, prefix: str) -> None:
    from mmapds import CorruptionError

    with Synchronizer(prefix) as reader, Synchronizer(prefix, verify=False) as trusting:
        syncfiles.flip(syncfiles.data(prefix, 1), 8 * 4096)
        for _ in range(3):
            with pytest.raises(CorruptionError, match="checksum"):
                reader.read()
        assert bytes(trusting.load())[1:] == b"1" * 99
        syncfiles.flip(syncfiles.data(prefix, 1), 8 * 4096)


def test_a_copying_reader_follows_a_growing_and_replaced_file(crowd: Peer, writer: Synchronizer, prefix: str) -> None:
    crowd("os.close(fd)")
    with Peer("s = Synchronizer(prefix); r = s.read()", prefix=prefix):
        crowd(CROWD, first=1)
        with Synchronizer(prefix) as reader:
            for n in range(12):
                value = os.urandom(1 << n + 6)
                writer.write_bytes(value, grace=0.0)
                with reader.read() as r:
                    assert r.copied
                    assert bytes(r.data) == value


def test_a_slot_that_becomes_free_is_taken_in_the_end(crowd: Peer, writer: Synchronizer, prefix: str) -> None:
    with Synchronizer(prefix) as reader:
        assert reader.read().copied
        crowd.kill()
        while reader.read().copied:  # it looks again from time to time
            time.sleep(0.02)
        assert reader.slot >= 0
        assert bytes(reader.load()) == b"1" * 100


def test_a_writer_can_write_without_a_slot(crowd: Peer, writer: Synchronizer, prefix: str) -> None:
    for n in range(4):
        assert not writer.write_bytes(b"%d" % n).reset
        assert bytes(writer.load()) == b"%d" % n


def test_the_last_slot_works_like_the_first(writer: Synchronizer, prefix: str) -> None:
    with Peer(CROWD, prefix=prefix, first=0) as crowd:
        crowd("os.close(fd); fd = os.open(syncfiles.sync(prefix), os.O_RDWR)")
        crowd("syncfiles.lock(fd, syncfiles.LOCK_SLOT, syncfiles.SLOT_COUNT - 1)")
        with Synchronizer(prefix) as reader:
            r = reader.read()
            assert reader.slot == syncfiles.SLOT_COUNT - 1
            assert not r.copied
            assert [writer.write_bytes(b"%d" % n, grace=0.0).reset for n in range(4)] == [False, True, False, True]
            assert bytes(r.data) == b"1" * 100
            r.release()


def test_1024_handles_have_slots_and_the_next_one_copies(writer: Synchronizer, prefix: str) -> None:
    handles: list[Any] = []
    try:
        for _ in range(syncfiles.SLOT_COUNT):
            handles.append(Synchronizer(prefix))
            handles[-1].load()
        assert sorted(handle.slot for handle in handles) == list(range(syncfiles.SLOT_COUNT))
        with Synchronizer(prefix) as late:
            assert late.read().copied
        held = [handle.read() for handle in handles]
        writer.write_bytes(b"2")
        assert writer.write_bytes(b"3", grace=0.0).reset
        assert all(bytes(r.data) == b"1" * 100 for r in held)
        for r in held:
            r.release()
        assert not writer.write_bytes(b"4").reset
    finally:
        for handle in handles:
            handle.close()
    assert syncfiles.slots_in_use(prefix) == []
    assert not writer.write_bytes(b"5").reset
