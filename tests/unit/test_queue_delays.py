"""Delays: of puts, of nacks, and the retry delay."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from queueitems import drain

from mmapds import Claim, Empty, Queue


@pytest.fixture
def q(queue_path: str) -> Iterator[Queue]:
    with Queue(queue_path) as q:
        yield q


def fail(claim: Claim, error: BaseException | None = None) -> Claim:
    """Its block raises."""
    error = error or ZeroDivisionError()
    with pytest.raises(type(error)), claim:
        raise error
    return claim


def test_a_delay_keeps_an_item_back_and_then_it_is_in_its_place(q: Queue) -> None:
    q.put("slow", delay=0.15)
    q.put("fast")
    assert (q.qsize(), q.empty()) == (2, False)
    assert q.get_nowait() == "fast"
    with pytest.raises(Empty):
        q.get_nowait()
    assert (q.qsize(), q.stats()["delayed"]) == (1, 1)
    q.put("later")
    assert q.get(timeout=60) == "later"
    assert q.get(timeout=60) == "slow"
    assert q.stats()["delayed"] == 0


def test_delays_of_put_many_put_nowait_and_nack(q: Queue) -> None:
    q.put_nowait("a", delay=0.2)
    q.put_many(["b", "c"], delay=0.1)
    with pytest.raises(Empty):
        q.get_nowait()
    assert [q.get(timeout=60) for _ in range(3)] == ["b", "c", "a"]
    q.put_many(["d", "e"])
    q.claim().nack(0.1)
    assert q.get_nowait() == "e"
    with pytest.raises(Empty):
        q.get_nowait()
    claim = q.claim(timeout=60)
    assert (claim.item, claim.attempts) == ("d", 2)


def test_delayed_items_come_back_to_their_place_when_they_are_due(q: Queue) -> None:
    q.put_many(["a", "b", "c"])
    q.claim().nack(0.05)
    time.sleep(0.06)
    assert drain(q) == ["a", "b", "c"]
    q.put("x")
    q.put("y", delay=0.05)
    q.put("z")
    time.sleep(0.06)
    assert drain(q) == ["x", "y", "z"]


def test_to_back_with_a_delay(q: Queue) -> None:
    q.put_many(["a", "b"])
    q.claim().nack(0.05, to_back=True)
    q.put("c")
    time.sleep(0.06)
    assert drain(q) == ["b", "a", "c"]


def test_delays_outlive_the_handle(queue_path: str) -> None:
    with Queue(queue_path) as q:
        q.put("put", delay=1000)
        q.put("nacked")
        q.claim().nack(1000)
    with Queue(queue_path) as q:
        assert (len(q), q.stats()["delayed"]) == (2, 2)
        with pytest.raises(Empty):
            q.get_nowait()


def test_the_retry_delay_holds_for_exceptions_and_nacks(queue_path: str) -> None:
    with Queue(queue_path, retry_delay=1000) as q:
        q.put_many(["a", "b", "c"])
        fail(q.claim())
        q.claim().nack()
        claim = q.claim()
        assert claim.item == "c"
        claim.nack(0)  # said otherwise
        assert drain(q) == ["c"]
        assert q.stats()["delayed"] == 2


def test_the_retry_delay_may_depend_on_the_attempts(queue_path: str) -> None:
    asked = []

    def delay(attempts: int) -> float:
        asked.append(attempts)
        return 0 if attempts < 3 else 1000

    with Queue(queue_path, retry_delay=delay) as q:
        q.put("a")
        for _ in range(3):
            fail(q.claim(timeout=0))
        assert asked == [1, 2, 3]
        with pytest.raises(Empty):
            q.claim(timeout=0)


def test_a_retry_delay_that_is_wrong_ends_no_claim(queue_path: str) -> None:
    with Queue(queue_path, retry_delay=lambda attempts: -1) as q:
        q.put("a")
        claim = q.claim()
        with pytest.raises(ValueError, match="0 or more"):
            claim.nack()
        assert claim.active
        claim.nack(0)
        assert q.get_nowait() == "a"
