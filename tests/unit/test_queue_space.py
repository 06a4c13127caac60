"""Queue: segments come and go, items of any size find room, the index grows. Tiny segments reach every wrap."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import queuefiles
from peers import Peer
from queueitems import drain

from mmapds import Empty, Queue

ROOM = 4096  # bytes for records in a segment of 8192
HEAD = 72

small: dict[str, Any] = {"codec": "raw", "segment_size": 8192}


def item(number: int, size: int) -> bytes:
    return (b"%d." % number).ljust(size, bytes([65 + number % 26]))[: max(size, 0)]


def files(path: str) -> int:
    """How many segments have a name."""
    return len(queuefiles.segments(path))


def mapped(path: str) -> list[str]:
    """The segments that this process has mapped."""
    found = [line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if path in line]
    return sorted({os.path.basename(name) for name in found if "segment" in name})


# ---- wraps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 60, 200])
def test_many_items_through_small_segments(queue_path: str, depth: int) -> None:
    rng = random.Random(depth)
    items = [item(n, rng.choice([0, 1, 8, 30, 100, 500])) for n in range(3000)]
    most = 0
    with Queue(queue_path, **small) as q:
        for n, data in enumerate(items):
            q.put(data)
            if n >= depth:
                assert q.get() == items[n - depth]
            if n % 50 == 0:
                most = max(most, files(queue_path))
                queuefiles.check(queue_path)
        assert drain(q) == items[-depth:]
    waiting = depth * (HEAD + 160) // ROOM + 1
    assert most <= waiting + 3, f"{most} segments for {depth} items"
    assert files(queue_path) <= 1


@pytest.mark.parametrize("left", [*range(0, 168, 8)])
def test_whatever_is_left_at_the_end_of_a_segment(queue_path: str, left: int) -> None:
    """The last record of a segment leaves so many bytes; then comes a small one, or one that fills a segment."""
    first = ROOM - HEAD - left
    for sizes in ([first, 0, ROOM - HEAD, 5], [first - 96, 24, 8, first, first], [first] * 5):
        items = [item(n, size) for n, size in enumerate(sizes)]
        with Queue(queue_path, **small) as q, Queue(queue_path) as other:
            q.put_many(items)
            assert list(q) == items
            assert list(reversed(q)) == items[::-1]
            queuefiles.check(queue_path)
            assert other.get() == items[0]
            for claim in q.claim_many(10):
                claim.nack(0)
            queuefiles.check(queue_path)
            assert drain(other) == items[1:]
            assert (q.empty(), files(queue_path) <= 1) == (True, True), queuefiles.state(queue_path)


def test_put_many_and_get_many_across_segments(queue_path: str) -> None:
    items = [item(n, n % 300) for n in range(2000)]
    with Queue(queue_path, **small) as q, Queue(queue_path) as other:
        for start in range(0, 2000, 500):
            q.put_many(items[start : start + 500])
            queuefiles.check(queue_path)
            assert other.get_many(500) == items[start : start + 500]
            queuefiles.check(queue_path)
            assert files(queue_path) <= 1


# ---- large items ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [ROOM - HEAD, ROOM - HEAD + 1, 8192, 12288 - HEAD, 12289 - HEAD, 100_000])
def test_items_larger_than_a_segment(queue_path: str, size: int) -> None:
    items = [item(0, 10), item(1, size), item(2, 10), item(3, size), item(4, size), item(5, 3000), item(6, 3000)]
    with Queue(queue_path, **small) as q, Queue(queue_path) as other:
        for data in items:
            q.put(data)
        queuefiles.check(queue_path)
        assert list(other) == items
        assert list(reversed(other)) == items[::-1]
        assert [handle.get() for handle in (q, other, other, q, other)] == items[:5]
        assert drain(q) == items[5:]
        assert files(queue_path) <= 1
        q.put_many(items)
        assert other.get_many(3) == items[:3]
        with q.claim() as claim:
            assert claim.item == items[3]
        assert drain(other) == items[4:]
        assert files(queue_path) <= 1


@pytest.mark.parametrize("handles", [1, 2])
def test_large_items_claimed_returned_and_delayed(queue_path: str, handles: int) -> None:
    items = [item(n, 20_000 if n % 2 else 50) for n in range(20)]
    with Queue(queue_path, **small) as q, Queue(queue_path) as second:
        other = (q, second)[handles - 1]
        for n, data in enumerate(items):
            q.put(data, delay=0.001 if n % 5 == 0 else 0)
        time.sleep(0.002)
        claims = other.claim_many(20)
        assert [claim.item for claim in claims] == items
        for n, claim in enumerate(claims):
            claim.nack(0.001 if n % 3 == 0 else 0, to_back=n % 4 == 0)
            queuefiles.check(queue_path)
        time.sleep(0.002)
        expected = [data for n, data in enumerate(items) if n % 4] + items[::4]
        assert list(second) == expected
        claims = q.claim_many(5)
        assert drain(other) == expected[5:]
        assert [claim.item for claim in claims] == expected[:5]
        for claim in claims:
            claim.ack()
        q.put(b"next")
        assert other.get() == b"next"
        assert files(queue_path) <= 1


def test_a_private_copy_with_large_items(queue_path: str) -> None:
    items = [item(n, 20_000 if n % 2 else 50) for n in range(10)]
    with Queue(queue_path, **small) as q:
        q.put_many(items)
        q.claim().nack(0)
        with Queue(queue_path, mode="private") as copy:
            copy.put(item(10, 50_000))
            assert copy.get_many(20) == [*items, item(10, 50_000)]
        assert drain(q) == items


# ---- what is finished goes -----------------------------------------------------------------------------------------


def test_a_drained_queue_keeps_one_segment(queue_path: str) -> None:
    with Queue(queue_path, **small) as q:
        for n in range(5):
            q.put_many([bytes(1000)] * 40)
            assert files(queue_path) > 5
            if n % 2:
                q.purge()
            else:
                q.get_many(100)
            assert files(queue_path) <= 1
            assert q.stats()["disk"] < 200_000


def test_a_held_claim_keeps_its_segment_and_no_other(queue_path: str) -> None:
    with Queue(queue_path, **small) as q:
        q.put_many([item(n, 1000) for n in range(100)])
        claims = {}
        for n in range(100):
            claim = q.claim()
            if n in (0, 1, 50):
                claims[n] = claim
            else:
                claim.ack()
        assert files(queue_path) == 3  # of 0 and 1, of 50, of the tail
        queuefiles.check(queue_path)
        claims[0].ack()
        assert files(queue_path) == 3
        claims[1].ack()
        assert files(queue_path) == 2
        claims[50].nack(0)
        assert files(queue_path) == 2
        assert q.get() == item(50, 1000)
        assert files(queue_path) <= 1


def test_a_delayed_item_keeps_its_segment_and_no_other(queue_path: str) -> None:
    with Queue(queue_path, **small) as q:
        q.put(item(0, 1000), delay=1000)
        q.put_many([item(n, 1000) for n in range(1, 100)])
        assert len(q.get_many(200)) == 99
        assert files(queue_path) == 2
        assert list(q) == [item(0, 1000)]
        assert q.purge() == 1
        assert files(queue_path) <= 1


def test_handles_that_wait_let_go_of_finished_segments(queue_path: str) -> None:
    code = "q = mmapds.Queue(path, codec='raw', segment_size=8192)"
    with Peer(code, path=queue_path) as peer, Queue(queue_path) as waiting:
        peer("q.put_many([bytes(1000)] * 20)")
        assert len(waiting.get_many(20)) == 20
        assert mapped(queue_path), "it has none mapped: this test sees nothing"
        thread = threading.Thread(target=waiting.get)
        thread.start()
        peer("q.put_many([bytes(1000)] * 100); q.purge()")
        watchdog = time.monotonic() + 60
        while len(found := mapped(queue_path)) > 1 or any("deleted" in name for name in found):
            assert time.monotonic() < watchdog, f"{found} are still mapped; {os.listdir(queue_path)}"
            time.sleep(0.02)
            if not thread.is_alive():  # it was faster than the purge
                thread = threading.Thread(target=waiting.get)
                thread.start()
        peer("q.put(b'end')")
        thread.join(60)
        assert not thread.is_alive()


def test_two_processes_leave_no_segment_behind(queue_path: str) -> None:
    with Queue(queue_path, **small) as q, Peer("q = mmapds.Queue(path)", path=queue_path) as peer:
        peer.send("for n in range(5000): q.put(b'%d' % n)")
        most = 0
        for n in range(5000):
            assert q.get(timeout=60) == b"%d" % n
            if n % 100 == 0:
                most = max(most, files(queue_path) - len(q) * 88 // ROOM)
        peer.receive()
        assert files(queue_path) <= 1
        assert most <= 4


def test_a_backlog_that_comes_and_goes(queue_path: str) -> None:
    rng = random.Random(8)
    waiting: list[bytes] = []
    with Queue(queue_path, **small) as q:
        for round_ in range(60):
            for n in range(rng.randrange(120)):
                waiting.append(item(1000 * round_ + n, rng.randrange(200)))
                q.put(waiting[-1])
            for _ in range(min(rng.randrange(150), len(waiting))):
                assert q.get() == waiting.pop(0)
            queuefiles.check(queue_path)
            assert files(queue_path) <= len(waiting) * 280 // ROOM + 2


@pytest.mark.slow
def test_millions_of_items_in_three_segments(queue_path: str) -> None:
    with Queue(queue_path, codec="raw", segment_size=1 << 16) as q:
        for n in range(1_000_000):
            q.put(b"%d" % n)
            if n >= 10:
                q.get()
            if n % 997 == 0:
                assert files(queue_path) <= 3
        assert len(q) == 10


# ---- the index grows -----------------------------------------------------------------------------------------------


def test_thousands_of_claims(queue_path: str) -> None:
    with Queue(queue_path, **small) as q, Queue(queue_path) as other:
        q.put_many([b"%d" % n for n in range(4000)])
        mine, others = [], []
        for n in range(2000):
            mine.append(q.claim())
            others.append(other.claim())
            assert (mine[-1].item, others[-1].item) == (b"%d" % (2 * n), b"%d" % (2 * n + 1))
        queuefiles.check(queue_path)
        assert q.stats()["claimed"] == 4000
        random.Random(1).shuffle(mine)
        for claim in mine:
            claim.nack(0)
        for claim in others:
            claim.ack()
        queuefiles.check(queue_path)
        assert other.get_many(5000) == [b"%d" % n for n in range(0, 4000, 2)]
        assert files(queue_path) <= 1
        size = os.path.getsize(queuefiles.meta(queue_path))
        q.put_many([b"%d" % n for n in range(4000)])
        for claim in q.claim_many(4000):
            claim.ack()
        assert os.path.getsize(queuefiles.meta(queue_path)) == size  # what was free is used again


def test_thousands_of_delays(queue_path: str) -> None:
    rng = random.Random(2)
    with Queue(queue_path, **small) as q, Queue(queue_path) as other:
        for n in range(3000):
            q.put(b"%d" % n, delay=1000 + rng.random())
        q.put(b"now")
        assert other.get() == b"now"
        assert other.stats()["delayed"] == 3000
        queuefiles.check(queue_path)
        for n in range(50):
            other.put(b"x%d" % n)
            assert q.get() == b"x%d" % n
        assert len(q) == 3000
        assert q.purge() == 3000
        assert files(queue_path) <= 1


def test_delays_that_end_at_different_times(queue_path: str) -> None:
    rng = random.Random(3)
    delays = [rng.choice([0, 0.001, 0.05, 0.1, 0.2]) for _ in range(500)]
    with Queue(queue_path, **small) as q:
        for n, delay in enumerate(delays):
            q.put(b"%d" % n, delay=delay)
        found = [int(q.get(timeout=60)) for _ in delays]
    assert sorted(found) == list(range(500))
    assert [n for n in found if delays[n] == 0] == [n for n in range(500) if delays[n] == 0]
    assert found != sorted(found)


def test_thousands_of_leases(queue_path: str) -> None:
    with Queue(queue_path, lease=0.2, **small) as q, Queue(queue_path) as other:
        q.put_many([b"%d" % n for n in range(1000)])
        claims = q.claim_many(1000)
        for claim in claims[::2]:
            claim.touch(1000)
        assert [int(other.get(timeout=60)) for _ in range(500)] == list(range(1, 1000, 2))
        with pytest.raises(Empty):
            other.get_nowait()
        assert q.stats()["expired"] == 500
        for claim in claims[::2]:
            claim.ack()
        assert q.unfinished_tasks == 500  # got, and not called done


def test_what_is_in_the_middle_of_the_heap_leaves_it(queue_path: str) -> None:
    """Leases and delays of all lengths; claims are ended and items purged in any order."""
    rng = random.Random(4)
    with Queue(queue_path, **small) as q:
        q.put_many([b"%d" % n for n in range(400)])
        claims = q.claim_many(400)
        for claim in claims:
            claim.touch(1000 + 1000 * rng.random())
        rng.shuffle(claims)
        for n, claim in enumerate(claims):
            if n % 4 == 0:
                claim.nack(1000 * rng.random() + 1000)
            elif n % 4 == 1:
                claim.touch(1000 + 1000 * rng.random())
            else:
                claim.ack()
            if n % 10 == 0:
                queuefiles.check(queue_path)
        assert q.stats()["delayed"] == 100
        assert q.stats()["leased"] == 100
        assert q.purge() == 100
        queuefiles.check(queue_path)
