"""What the fuzzer has found, each by the fewest words that show it (row 16)."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import queuefiles
import syncfiles

from mmapds import CorruptionError, MappingLost, Queue, Synchronizer, _queuemaps


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "queue")
    with Queue(path, codec="raw", segment_size=8192) as q:
        q.put_many([b"%d" % n * 20 for n in range(10)])
    return path


@pytest.mark.parametrize("tail", [(1 << 64) - 1, (1 << 64) - 8192, 1 << 63, 1 << 62])
@pytest.mark.parametrize("call", ["put", "put_many", "get"])
def test_r16_a_tail_that_no_number_can_follow(path: str, tail: int, call: str) -> None:
    """It was an OverflowError: the segment behind it was counted beyond 2^64."""
    with Queue(path) as q:
        q.get()
        queuefiles.poke_word(queuefiles.meta(path), queuefiles.WORDS["tail"], tail)
        jobs: dict[str, Any] = {
            "put": lambda: q.put(b"x", timeout=0),
            "put_many": lambda: q.put_many([b"x"] * 5, timeout=0),
            "get": lambda: [q.get_nowait() for _ in range(20)],
        }
        for _ in range(2):
            with pytest.raises(CorruptionError):
                jobs[call]()


def test_r16_records_that_change_while_a_copy_is_made_of_them(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a ValueError. The queue is of another boot, so its segments are read twice."""
    queuefiles.poke(queuefiles.segment(path, 1), 4096 + 5 * 96 + 40, bytes(8))  # what lies before it gets entries
    queuefiles.other_boot(path)
    whole = _queuemaps.fill_index

    def fill_index(*arguments: Any) -> None:
        queuefiles.flip(queuefiles.segment(path, 1), 8 * (4096 + 3 * 96))
        whole(*arguments)

    monkeypatch.setattr(_queuemaps, "fill_index", fill_index)
    with pytest.raises(CorruptionError):
        Queue(path, mode="readonly")


@pytest.mark.parametrize("value", [1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("option", [0, 1, 4, 5])
def test_r16_options_of_a_queue_beyond_every_limit(tmp_path: Path, option: int, value: int) -> None:
    """It was an OverflowError for the fifth, of a queue that compresses."""
    path = str(tmp_path / "queue")
    Queue(path, codec="raw", compress="zlib:6:300").close()
    queuefiles.poke_word(queuefiles.meta(path), queuefiles.OPTIONS + 8 * option, value)
    queuefiles.seal(queuefiles.meta(path))
    modes: list[Any] = ["readonly", "shared", "private"]
    for mode in modes:
        with pytest.raises(CorruptionError):
            Queue(path, mode=mode)


@pytest.mark.parametrize("size", [(1 << 64) - 1, 1 << 63, (1 << 63) - 5000, 1 << 34])
def test_r16_a_size_that_the_file_never_had_is_not_allocated_after_a_failed_flush(tmp_path: Path, size: int) -> None:
    """The writer makes the newest version durable first. It was an OverflowError, or a file of that size."""
    prefix = str(tmp_path / "value")
    with Synchronizer(prefix, codec="raw") as s:
        s.write_bytes(b"1")
    syncfiles.write_record(prefix, 1, 1, size, 0x1234)
    syncfiles.poke_word(syncfiles.sync(prefix), syncfiles.FAILED, 1)
    before = os.path.getsize(syncfiles.data(prefix, 1))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 26, limit[1]))
    try:
        with Synchronizer(prefix) as s:
            s.write_bytes(b"2")  # replaces what is damaged
            assert bytes(s.read().data) == b"2"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert os.path.getsize(syncfiles.data(prefix, 1)) == before


@pytest.mark.parametrize("length", [4097, 5000, 8191, 12000])
@pytest.mark.parametrize("mode", ["shared", "readonly"])
def test_r09_r16_a_data_file_that_ends_within_a_page(tmp_path: Path, length: int, mode: Any) -> None:
    """The part of a page was left out of what was mapped, not of what was compared: a read went behind the mapping."""
    path = str(tmp_path / "it")
    size = min(length - 4096 - 8, 7500)
    with Synchronizer(path, codec="raw") as s:
        s.write_bytes(b"x" * 20_000)
        s.write_bytes(b"y" * max(1, size))
    os.truncate(syncfiles.data(path, 0), length)
    with Synchronizer(path, mode=mode, verify=False) as s, pytest.raises((CorruptionError, MappingLost)):
        bytes(s.read().data)


def test_r16_more_items_than_there_can_be(path: str) -> None:
    """Where the head has passed the tail any number was believed, and a list made room for so many."""
    with Queue(path) as q:
        q.get()
        meta = queuefiles.meta(path)
        queuefiles.poke_word(meta, queuefiles.WORDS["head"], 3368960)
        queuefiles.poke_word(meta, queuefiles.WORDS["ready"], 40532396646334469)
        with pytest.raises(CorruptionError):
            q.qsize()
        with pytest.raises(CorruptionError):
            list(q)


def test_r16_a_tail_behind_all_files(path: str) -> None:
    """Four billion items were believed without a look at the files."""
    with Queue(path) as q:
        q.get()
        meta = queuefiles.meta(path)
        queuefiles.poke_word(meta, queuefiles.WORDS["tail"], (1 << 64) - 1)
        queuefiles.poke_word(meta, queuefiles.WORDS["tail_sequence"], (1 << 32) - 1)
        for look in (q.qsize, lambda: list(q)):
            with pytest.raises(CorruptionError):
                look()


@pytest.mark.parametrize("used", [85, 2147483647, 1 << 63])
def test_r16_more_entries_than_there_is_room_for(path: str, used: int) -> None:
    """That contradicts itself, and is not gone through."""
    with Queue(path) as q:
        q.claim()
        queuefiles.poke_word(queuefiles.meta(path), queuefiles.WORDS["used"], used)
        start = time.process_time()
        with pytest.raises(CorruptionError):
            q.purge()
        assert time.process_time() - start < 1
