"""Checks that stand before what must not happen (see test_checks_handles.py): each of files that were cut (row 9)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import queuefiles
import syncfiles
from peers import Peer

from mmapds import CorruptionError, Counters, MappingLost, Queue, Region, Synchronizer
from mmapds._native.queuescan import Rebuild, SegmentReader, copy_control, repaired_copy, reset_control
from mmapds._native.region import FLAGS, Mapping

leaves_it = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture
def peer(tmp_path: Path) -> Any:
    with Peer("import os", path=str(tmp_path / "it")) as peer:
        yield peer


@leaves_it
def test_r09_a_reader_whose_pin_is_in_a_page_that_is_gone(tmp_path: Path) -> None:
    """It has the version, and nobody would see that it has it."""
    path = str(tmp_path / "it")
    s = Synchronizer(path, codec="raw")
    s.write_bytes(b"value")
    s.read().release()
    os.truncate(syncfiles.sync(path), 8192)
    with pytest.raises(MappingLost):
        s.read()
    for job in (s.read, s.load, lambda: s.version, lambda: s.wait(5, 0.01), lambda: s.write_bytes(b"x")):
        with pytest.raises(MappingLost):
            job()


def test_r05_r09_a_pin_of_our_own_when_another_thread_finds_that_a_file_was_cut(peer: Peer) -> None:
    """The handle gives its slot back, and the thread that waits for the pins must not take it for a dead reader's."""
    peer(
        """
import threading, time
s = mmapds.Synchronizer(path, codec="raw")
s.write_bytes(b"1" * 5000)
kept = s.read().data
s.write_bytes(b"2" * 5000)
s.read().release()
outcome = []
def write():
    try:
        s.write_bytes(b"3" * 5000, grace=30.0)
        outcome.append("written")
    except mmapds.MappingLost:
        outcome.append("lost")
thread = threading.Thread(target=write)
thread.start()
time.sleep(0.1)
os.truncate(path + "_data_0", 4096)
"""
    )
    assert peer.fails("s.read()")[0] == "MappingLost"
    peer("thread.join()")
    assert peer("outcome") == ["lost"]
    assert peer("bytes(kept) == b'1' * 5000") is True


@leaves_it
def test_r09_after_a_lost_value_the_handle_is_of_no_use(tmp_path: Path) -> None:
    path = str(tmp_path / "it")
    with Synchronizer(path, codec="raw") as w:
        w.write_bytes(b"value" * 5000)
        s = Synchronizer(path)
        s.read().release()
        os.truncate(syncfiles.data(path, 1), 4096)
        with pytest.raises(MappingLost):
            s.read()
        for job in (lambda: s.version, s.read, lambda: s.wait(5, 0.01), lambda: s.write_bytes(b"x")):
            with pytest.raises(MappingLost):
                job()


@leaves_it
@pytest.mark.parametrize("mode", ["shared", "readonly"])
def test_r09_floats_whose_cells_are_gone(tmp_path: Path, mode: Any) -> None:
    path = str(tmp_path / "it")
    with Counters(path, 4, dtype="f64") as c:
        c["x"] = 5.5
    c = Counters(path, mode=mode, dtype="f64")
    x = c.counter("x")
    if mode == "readonly":
        for change in (x.add, x.reset, lambda: x.store(1.0), x.fetch_add):
            with pytest.raises(PermissionError):
                change()
    os.truncate(path, 0)
    with pytest.raises(MappingLost):
        x.load()


@leaves_it
def test_r09_a_payload_that_is_gone_is_not_passed_over(tmp_path: Path) -> None:
    """The last item's head is there: without a look it would just be left out."""
    path = str(tmp_path / "it")
    with Queue(path, codec="raw", segment_size=1 << 16) as q:
        q.put_many([b"first", bytes(range(256)) * 100])
    with Queue(path, mode="readonly") as q:
        found = iter(q)
        assert next(found) == b"first"
        os.truncate(queuefiles.segment(path, queuefiles.segments(path)[0]), 8192)
        with pytest.raises(MappingLost):
            next(found)


@leaves_it
def test_r09_a_dead_letter_is_not_made_of_zeros(tmp_path: Path) -> None:
    path = str(tmp_path / "it")
    q = Queue(path, codec="raw", segment_size=1 << 16)
    q.put(bytes(range(256)) * 100)
    claim = q.claim()
    os.truncate(queuefiles.segment(path, queuefiles.segments(path)[0]), 8192)
    with pytest.raises(MappingLost):
        claim.bury("why")
    assert q.stats()["dead"] == 0


@leaves_it
def test_r09_a_word_that_is_waited_for_in_a_file_that_was_cut(tmp_path: Path) -> None:
    with Region.open(tmp_path / "it", 8192) as r:
        word = r.atomic(4096)
        os.truncate(tmp_path / "it", 0)
        for expected in (0, 1):
            with pytest.raises(MappingLost):
                word.wait(expected, timeout=0.05)


# ---- looking at a queue's files: each call alone ---------------------------------------------------------------------


def mapped(path: str) -> Mapping:
    with open(path, "r+b") as file:
        protection = FLAGS["READ"] | FLAGS["WRITE"]
        return Mapping(file.fileno(), os.path.getsize(path), protection, FLAGS["SHARED"], path)


class Files(NamedTuple):
    """The files of a queue, mapped as recovery maps them."""

    meta: Mapping
    reader: SegmentReader
    segment: str
    start: int
    size: int

    @classmethod
    def of(cls, folder: Path) -> Files:
        path = str(folder / "it")
        with Queue(path, codec="raw", segment_size=1 << 16) as q:
            q.put_many([bytes(range(1, 251)) * 40] * 3)
        found = queuefiles.Snapshot(path)
        (number,) = found.files
        segment = queuefiles.segment(path, number)
        start = number * found.segment_size
        return cls(
            mapped(queuefiles.meta(path)), SegmentReader(mapped(segment), start, found.identity), segment, start + 4096,
            found.segment_size,
        )  # fmt: skip


@pytest.mark.parametrize(
    "look",
    [
        lambda reader, record: reader.at(record.position),
        lambda reader, record: reader.payload(record),
        lambda reader, record: reader.intact(record),
        lambda reader, record: reader.run(record.position, record.sequence, 0),
        lambda reader, record: reader.find(record.position, 0, 1 << 40),
        lambda reader, record: reader.blank(record.position),
        lambda reader, record: reader.raw(record.position, record.next),
        lambda reader, record: reader.clear(record.position),
        lambda reader, record: reader.store_state(record, 2, 1, 0, 0, 0),
    ],
    ids=["at", "payload", "intact", "run", "find", "blank", "raw", "clear", "store_state"],
)
def test_r09_each_look_at_a_segment_that_is_cut(tmp_path: Path, look: Any) -> None:
    """Zeros are no end of what was put, and no bytes to keep."""
    files = Files.of(tmp_path)
    record = files.reader.at(files.start)
    assert record is not None
    assert files.reader.intact(record)
    os.truncate(files.segment, 4096)
    with pytest.raises(MappingLost):
        look(files.reader, record)


@pytest.mark.parametrize(
    "step",
    [
        lambda meta, _rebuild: reset_control(meta, 0, 0, 0, 0, 1, 42, 0, 0),
        lambda _meta, rebuild: rebuild.add(69632, 0, 10, 0, 0, 0),
        lambda _meta, rebuild: rebuild.end(False),
        lambda meta, _rebuild: copy_control(meta, 42),
    ],
    ids=["reset", "add", "end", "copy"],
)
def test_r09_each_step_of_a_recovery_whose_meta_is_cut(tmp_path: Path, step: Any) -> None:
    files = Files.of(tmp_path)
    rebuild = Rebuild(files.meta, files.size, 42)
    os.truncate(tmp_path / "it" / "meta", 0)
    with pytest.raises(MappingLost):
        step(files.meta, rebuild)


def test_r09_no_copy_of_an_index_of_which_a_page_is_gone(tmp_path: Path) -> None:
    files = Files.of(tmp_path)
    os.truncate(tmp_path / "it" / "meta", queuefiles.ENTRIES)
    assert memoryview(files.meta)[queuefiles.ENTRIES + 4096 - 96] == 0
    queuefiles.poke_word(queuefiles.meta(tmp_path / "it"), queuefiles.WORDS["used"], 1)
    with pytest.raises(MappingLost):
        copy_control(files.meta, 0)
    with pytest.raises(MappingLost):
        repaired_copy(files.meta, 1)


def test_r16_items_that_are_not_there_when_they_are_entered(tmp_path: Path) -> None:
    files = Files.of(tmp_path)
    record = files.reader.at(files.start)
    assert record is not None
    rebuild = Rebuild(files.meta, files.size, 42)
    with pytest.raises(CorruptionError, match="a record changed while"):
        rebuild.add_run(files.reader, files.start + 8, record.next)
    with pytest.raises(CorruptionError, match="have changed while"):
        Rebuild(files.meta, files.size, 0).add(files.start, 0, 10, 0, 0, 0)
    os.truncate(files.segment, 4096)
    with pytest.raises(MappingLost):
        rebuild.add_run(files.reader, files.start, record.next)


class Cutting:
    """A codec under whose hands the file is cut."""

    name = "cutting"
    path = ""

    def encode(self, value: bytes) -> bytes:
        return value

    def decode(self, data: Any) -> bytes:
        if self.path:
            os.truncate(self.path, 8192)
        return bytes(data)


@leaves_it
def test_r09_a_value_that_is_cut_while_it_is_decoded(tmp_path: Path) -> None:
    path = str(tmp_path / "it")
    codec = Cutting()
    s = Synchronizer(path, codec=codec)
    s.write(b"1" * 20_000)
    codec.path = syncfiles.data(path, 1)
    with pytest.raises(MappingLost):
        s.load()


@leaves_it
def test_r09_a_private_copy_of_emmaps_cells_that_are_gone(tmp_path: Path) -> None:
    """As if the file were cut between its mapping and its copy."""
    path = str(tmp_path / "it")
    with Counters(path, 4, layout="emmap") as c:
        c[0] = 5
    c = Counters(path, 4, layout="emmap", mode="readonly")
    os.truncate(path, 0)
    with pytest.raises(MappingLost):
        c._copy()


def test_r09_a_word_whose_page_is_gone_wakes_nobody(tmp_path: Path) -> None:
    with Region.open(tmp_path / "it", 8192) as r:
        word = r.atomic(4096)
        os.truncate(tmp_path / "it", 0)
        with pytest.raises(MappingLost):
            word.wake()
