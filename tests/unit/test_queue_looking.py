"""Looking at a queue: peek, peek_last, iteration both ways. It takes nothing, and says what get would say."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
import queuefiles

from mmapds import Empty, Queue


@pytest.fixture(params=[8192, 1 << 20], ids=["small", "large"])
def q(request: pytest.FixtureRequest, queue_path: str) -> Iterator[Queue]:
    with Queue(queue_path, segment_size=request.param) as q:
        yield q


def look(q: Queue) -> list[Any]:
    """What iteration shows; all ways to look must agree, in all modes, and with the files."""
    found = list(q)
    assert list(reversed(q)) == found[::-1], f"forwards {found}"
    if found:
        assert q.peek_last() == found[-1]
    else:
        with pytest.raises(Empty):
            q.peek_last()
    for mode in ("readonly", "private"):
        with Queue(q.path, mode=mode) as other:  # type: ignore[arg-type]
            assert list(other) == found, mode
            assert list(reversed(other)) == found[::-1], mode
            assert len(other) == len(found), mode
    assert len(q) == len(found), f"qsize says {len(q)}: {found}"
    queuefiles.check(q.path)
    return found


def drain(q: Queue) -> list[Any]:
    found = []
    while True:
        try:
            if found:
                first = q.peek()
            found.append(q.get_nowait())
        except Empty:
            return found
        if len(found) > 1:
            assert found[-1] == first, f"peek said {first!r}, get {found[-1]!r}"


def test_an_empty_queue(q: Queue) -> None:
    for call in (q.peek, q.peek_last):
        with pytest.raises(Empty):
            call()
    assert look(q) == []
    q.put(1)
    q.get()
    assert look(q) == []
    with pytest.raises(Empty):
        q.peek()


def test_looking_takes_nothing(q: Queue) -> None:
    q.put_many(range(500))
    for _ in range(3):
        assert q.peek() == 0
        assert look(q) == list(range(500))
    assert q.stats()["claimed"] == 0
    assert drain(q) == list(range(500))


def test_iteration_may_stop_early(q: Queue) -> None:
    q.put_many(range(500))
    found = []
    for value in q:
        found.append(value)
        if len(found) == 300:
            break
    assert found == list(range(300))
    backwards = reversed(q)
    assert [next(backwards) for _ in range(300)] == list(range(499, 199, -1))


def test_after_some_were_taken(q: Queue) -> None:
    q.put_many(range(500))
    for n in (1, 100, 150, 200):
        first = look(q)[0]
        assert q.get_many(n) == list(range(first, first + n))
    assert look(q) == list(range(451, 500))
    assert q.peek() == 451


def test_claimed_items_are_not_shown(q: Queue) -> None:
    q.put_many(range(300))
    claims = q.claim_many(250)
    assert look(q) == list(range(250, 300))
    for claim in claims[::2]:
        claim.ack()
    assert look(q) == list(range(250, 300))
    assert q.peek() == 250
    for claim in claims[1::2]:
        claim.nack(0)
    assert look(q) == [*range(1, 250, 2), *range(250, 300)]
    assert q.peek() == 1
    assert drain(q) == [*range(1, 250, 2), *range(250, 300)]


def test_a_queue_of_returned_items_only(q: Queue) -> None:
    q.put_many(range(300))
    for claim in reversed(q.claim_many(300)):
        claim.nack(0)
    assert look(q) == list(range(300))
    assert (q.peek(), q.peek_last()) == (0, 299)


def test_returned_items_are_shown_in_their_place(q: Queue) -> None:
    q.put_many(range(200))
    claims = q.claim_many(150)
    chosen = random.Random(5).sample(range(150), 70)
    for i in chosen:
        claims[i].nack(0)
    expected = [*sorted(chosen), *range(150, 200)]
    assert look(q) == expected
    assert drain(q) == expected


def test_items_sent_to_the_back_are_shown_there(q: Queue) -> None:
    q.put_many(range(100))
    for claim in q.claim_many(5):
        claim.nack(0, to_back=True)
    q.put_many(range(100, 200))
    for claim in q.claim_many(3):
        claim.nack(0, to_back=True)
    expected = [*range(8, 100), 0, 1, 2, 3, 4, *range(100, 200), 5, 6, 7]
    assert look(q) == expected
    assert q.peek_last() == 7
    assert drain(q) == expected


def test_items_sent_to_the_back_with_and_without_a_delay(q: Queue) -> None:
    q.put_many("abcdef")
    for n, claim in enumerate(q.claim_many(5)):
        claim.nack(0.01 if n % 2 else 0, to_back=True)
    expected = ["f", "a", "b", "c", "d", "e"]
    assert look(q) == expected
    time.sleep(0.02)
    assert look(q) == expected
    assert drain(q) == expected


def test_delayed_items_are_shown_in_their_place_and_not_peeked(q: Queue) -> None:
    q.put("slow", delay=1000)
    with pytest.raises(Empty):
        q.peek()
    assert q.peek_last() == "slow"
    q.put("a")
    q.put("slower", delay=2000)
    assert look(q) == ["slow", "a", "slower"]
    assert (q.peek(), q.peek_last()) == ("a", "slower")
    q.claim().nack(1000)
    with pytest.raises(Empty):
        q.peek()
    assert look(q) == ["slow", "a", "slower"]
    q.put("b")
    assert q.peek() == "b"
    assert look(q) == ["slow", "a", "slower", "b"]
    assert drain(q) == ["b"]
    assert look(q) == ["slow", "a", "slower"]


def test_a_delay_that_is_over_shows_in_peek_before_anybody_takes(q: Queue) -> None:
    q.put("put", delay=0.05)
    q.put("second")
    time.sleep(0.06)
    assert q.peek() == "put"
    q.claim().nack(0.05)
    assert q.peek() == "second"
    time.sleep(0.06)
    assert q.peek() == "put"
    with Queue(q.path, mode="readonly") as other:
        assert other.peek() == "put"
    assert drain(q) == ["put", "second"]


def test_large_items_among_small_ones(queue_path: str) -> None:
    items = [bytes([i]) * (20_000 if i % 3 == 0 else 50) for i in range(60)]
    with Queue(queue_path, codec="raw", segment_size=8192) as q:
        for item in items:
            q.put(item)
        assert look(q) == items
        claims = q.claim_many(31)
        assert look(q) == items[31:]
        for claim in claims[::2]:
            claim.nack(0)
        assert look(q) == [*items[0:31:2], *items[31:]]
        for claim in claims[1::2]:
            claim.ack()
        assert drain(q) == [*items[0:31:2], *items[31:]]
        assert look(q) == []


def test_an_iteration_while_others_take_and_put(q: Queue) -> None:
    q.put_many(range(1000))
    with Queue(q.path) as other:
        seen = []
        for value in q:
            seen.append(value)
            if value % 5 == 0 and len(other) > 10:
                other.get_many(7)
                other.put("new")
    numbers = [value for value in seen if value != "new"]
    assert numbers == sorted(set(numbers)), "each once, in order"
    assert numbers[0] == 0
    assert set(look(q)) <= {*range(1000), "new"}


def test_looking_does_not_wait_for_who_is_in_the_middle(q: Queue) -> None:
    """A consumer that holds claims, and one that sleeps, disturb nobody who looks."""
    q.put_many(range(10))
    with Queue(q.path) as other:
        held = other.claim_many(3)
        assert look(q) == list(range(3, 10))
        assert q.stats()["claimed"] == 3
        del held
