"""Queue: what is put comes out, in order, once; delays, many at a time, purge, stats."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from queueitems import drain

import mmapds
from mmapds import Empty, Queue


@pytest.fixture
def q(queue_path: str) -> Iterator[Queue]:
    with Queue(queue_path) as q:
        yield q


# ---- put and get ---------------------------------------------------------------------------------------------------


def test_items_come_out_in_the_order_of_puts(q: Queue) -> None:
    for i in range(1000):
        q.put(i)
    assert (q.qsize(), len(q)) == (1000, 1000)
    assert [q.get() for _ in range(1000)] == list(range(1000))
    assert (q.qsize(), len(q), q.empty()) == (0, 0, True)
    with pytest.raises(Empty):
        q.get(block=False)
    with pytest.raises(Empty):
        q.get_nowait()
    with pytest.raises(Empty):
        q.get(timeout=0)
    with pytest.raises(Empty):
        q.get(timeout=0.01)


def test_empty_and_full_are_the_standard_librarys() -> None:
    import queue

    assert mmapds.Empty is queue.Empty
    assert mmapds.Full is queue.Full


def test_values_come_out_as_they_were_put(q: Queue) -> None:
    values = [None, True, 0, -1, 1 << 63, 1.5, "", "ä" * 1000, b"", b"\0" * 9, [], [1, [2]], {}, {"a": {"b": None}}]
    q.put_many(values)
    assert [q.get() for _ in values] == values


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 72, 4095, 4096, 65535, 65536, 65537, 1 << 20])
def test_raw_bytes_of_all_sizes(queue_path: str, size: int) -> None:
    first, second = bytes(range(256)) * (size // 256) + bytes(size % 256), b"\xff" * size
    with Queue(queue_path, codec="raw") as q:
        q.put(first)
        q.put(bytearray(second))
        q.put(memoryview(first))
        found = q.get()
        assert type(found) is bytes
        assert found == first
        with q.claim() as claim:
            assert type(claim.item) is bytes
            assert claim.item == second
        assert q.get() == first


def test_a_queue_is_true_even_if_it_is_empty(q: Queue) -> None:
    assert bool(q)
    assert len(q) == 0


def test_what_was_put_is_there_when_it_is_opened_again(queue_path: str) -> None:
    for i in range(5):
        with Queue(queue_path) as q:
            assert len(q) == i
            q.put(i)
    with Queue(queue_path) as q:
        assert drain(q) == [0, 1, 2, 3, 4]
    with Queue(queue_path) as q:
        assert drain(q) == []


def test_two_handles_are_one_queue(queue_path: str) -> None:
    with Queue(queue_path) as a, Queue(queue_path) as b:
        a.put(1)
        b.put(2)
        a.put(3)
        assert (a.qsize(), b.qsize()) == (3, 3)
        assert (b.get(), a.get(), b.get()) == (1, 2, 3)
        assert a.empty()
        assert b.empty()


def test_positional_arguments_are_those_of_queue_queue(queue_path: str) -> None:
    with Queue(queue_path, 1) as q:
        q.put("a", False)
        with pytest.raises(mmapds.Full):
            q.put("b", True, 0.01)
        assert q.get(True, 1) == "a"
        with pytest.raises(Empty):
            q.get(False)
        q.put("c", True, None)
        assert q.get(False, None) == "c"


# ---- many ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, 1000])
def test_put_many_and_get_many(queue_path: str, count: int) -> None:
    with Queue(queue_path, segment_size=8192) as q:
        q.put("first")
        q.put_many(iter(range(count)))
        q.put("last")
        assert len(q) == count + 2
        found = q.get_many(count + 1)
        assert found == ["first", *range(count)]
        assert q.get_many(1000) == ["last"]
        with pytest.raises(Empty):
            q.get_many(1, block=False)
        with pytest.raises(Empty):
            q.get_many(5, timeout=0.01)


def test_get_many_takes_items_of_all_sizes(queue_path: str) -> None:
    items = [bytes([i % 256]) * (i * 997 % 70000) for i in range(100)]
    with Queue(queue_path, codec="raw", segment_size=1 << 16) as q:
        q.put_many(items)
        assert q.get_many(1000) == items
        assert q.stats()["claimed"] == 0


def test_get_many_takes_returned_items_too(q: Queue) -> None:
    q.put_many(range(10))
    for claim in q.claim_many(5):
        claim.nack(0)
    assert q.get_many(100) == list(range(10))


def test_put_many_encodes_all_before_it_puts_the_first(q: Queue) -> None:
    with pytest.raises(TypeError):
        q.put_many([1, 2, object()])
    assert len(q) == 0

    def broken() -> Iterator[int]:
        yield 1
        raise RuntimeError("the iterable's own")

    with pytest.raises(RuntimeError, match="the iterable's own"):
        q.put_many(broken())
    assert len(q) == 0


@pytest.mark.parametrize("n", [0, -1])
def test_many_means_at_least_one(q: Queue, n: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        q.get_many(n)
    with pytest.raises(ValueError, match="at least one"):
        q.claim_many(n)


def test_claim_many(q: Queue) -> None:
    q.put_many(range(10))
    claims = q.claim_many(4)
    assert [claim.item for claim in claims] == [0, 1, 2, 3]
    claims[1].ack()
    claims[2].nack(0)
    rest = q.claim_many(100)
    assert [claim.item for claim in rest] == [2, 4, 5, 6, 7, 8, 9]
    with pytest.raises(Empty):
        q.claim_many(1, timeout=0)
    for claim in [claims[0], claims[3], *rest]:
        claim.ack()
    assert q.unfinished_tasks == 0


# ---- the end of all that waits -------------------------------------------------------------------------------------


def test_purge_takes_away_what_waits(q: Queue) -> None:
    assert q.purge() == 0
    q.put_many(range(10))
    held, back = q.claim_many(2)
    back.nack(0)
    q.put("later", delay=1000)
    assert len(q) == 10
    assert q.purge() == 10
    assert (len(q), list(q), q.stats()["purged"], q.stats()["delayed"]) == (0, [], 10, 0)
    with pytest.raises(Empty):
        q.get_nowait()
    assert q.unfinished_tasks == 1
    held.nack(0)
    assert drain(q) == [0]
    q.put("new")
    assert q.get_nowait() == "new"


def test_stats_count(queue_path: str) -> None:
    with Queue(queue_path) as q:
        assert q.stats()["items"] == 0
        assert q.stats()["oldest"] is None
        q.put_many(range(10))
        q.put("later", delay=1000)
        held = q.claim_many(3)
        held[0].nack(0)
        leased = q.claim(lease=1000)
        found = q.stats()
        names = (
            "items",
            "claimed",
            "leased",
            "put",
            "returns",
            "dead",
            "epoch",
            "segments",
            "deaths",
            "set_aside",
            "cut",
        )
        assert {name: found[name] for name in names} == {
            "items": 8, "claimed": 3, "leased": 1, "put": 11, "returns": 1, "dead": 0, "epoch": 1, "segments": 1,
            "deaths": 0, "set_aside": 0, "cut": 0,
        }  # fmt: skip
        assert 0 <= found["oldest"] < 3600
        assert found["bytes"] > 8
        assert found["disk"] > 0
        assert q.holders() == [{"pid": os.getpid(), "claimed": 3, "owing": 0}]
        for claim in (*held[1:], leased):
            claim.ack()
        q.get()
        assert q.holders() == [{"pid": os.getpid(), "claimed": 0, "owing": 1}]
        q.task_done()
        assert q.holders() == [{"pid": os.getpid(), "claimed": 0, "owing": 0}]
    with Queue(queue_path) as q:
        assert q.holders() == []
