"""Dead letters: what was buried, or failed too often, with its history."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from mmapds import Claim, Empty, Full, Queue


@pytest.fixture
def q(queue_path: str) -> Iterator[Queue]:
    with Queue(queue_path) as q:
        yield q


def drain(q: Queue) -> list[Any]:
    found = []
    while True:
        try:
            found.append(q.get_nowait())
        except Empty:
            return found


def fail(claim: Claim, error: BaseException | None = None) -> Claim:
    """Its block raises."""
    error = error or ZeroDivisionError()
    with pytest.raises(type(error)), claim:
        raise error
    return claim


# ---- dead letters --------------------------------------------------------------------------------------------------


def test_bury_keeps_the_item_and_its_history(q: Queue) -> None:
    assert (len(q.dead), bool(q.dead), list(q.dead)) == (0, False, [])
    q.put_many(["a", "b"])
    q.claim().nack(0)
    before = time.time()
    claim = q.claim()
    claim.bury("no such customer")
    assert (len(q), len(q.dead), bool(q.dead)) == (1, 1, True)
    [letter] = q.dead
    assert (letter.id, letter.item, letter.attempts) == ("1-0", "a", 2)
    assert (letter.reason, letter.error) == ("no such customer", None)
    assert letter.put_at == pytest.approx(claim.put_at)
    assert before - 1 < letter.buried_at < time.time() + 1
    assert (q.stats()["dead"], q.stats()["buried"], q.unfinished_tasks) == (1, 1, 1)
    assert q.get() == "b"
    assert q.path in repr(q.dead)


def test_after_max_attempts_an_item_is_dead(queue_path: str) -> None:
    with Queue(queue_path, max_attempts=3) as q:
        q.put_many(["bad", "good"])
        for attempt in range(1, 4):
            claim = fail(q.claim(timeout=0), ZeroDivisionError(f"number {attempt}"))
            assert (claim.item, claim.attempts) == ("bad", attempt)
        assert q.get_nowait() == "good"
        [letter] = q.dead
        assert (letter.id, letter.item, letter.attempts) == ("1-0", "bad", 3)
        assert "3" in letter.reason
        assert letter.error == "ZeroDivisionError: number 3"


def test_nacks_count_as_attempts(queue_path: str) -> None:
    with Queue(queue_path, max_attempts=2) as q:
        q.put("bad")
        q.claim().nack(0, error="first")
        q.claim().nack(0, error=ValueError("second"))
        [letter] = q.dead
        assert (letter.attempts, letter.error) == (2, "ValueError: second")
        assert len(q) == 0


def test_leases_that_end_count_as_attempts(queue_path: str) -> None:
    with Queue(queue_path, max_attempts=2, lease=0.02) as q:
        q.put("hangs")
        lost = [q.claim(timeout=60), q.claim(timeout=60)]
        time.sleep(0.05)
        q.put("next")
        assert q.get(timeout=60) == "next"
        [letter] = q.dead
        assert (letter.item, letter.attempts) == ("hangs", 2)
        assert "2 times" in letter.reason
        assert "lease" in (letter.error or "")
        del lost


def test_handles_that_end_count_as_attempts(queue_path: str) -> None:
    with Queue(queue_path, max_attempts=2) as q:
        q.put("unlucky")
        for _ in range(2):
            with Queue(queue_path) as other:
                held = other.claim(timeout=0)
            del held
        for take in (q.get_nowait, lambda: q.claim(timeout=0), lambda: q.get_many(5, block=False)):
            with pytest.raises(Empty):
                take()
        assert [letter.item for letter in q.dead] == ["unlucky"]


@pytest.mark.parametrize("how", ["get", "claim", "get_many", "claim_many"])
def test_who_meets_a_tired_item_buries_it_and_takes_the_next(queue_path: str, how: str) -> None:
    with Queue(queue_path, max_attempts=1) as q:
        q.put_many(range(6))
        with Queue(queue_path) as other:
            held = other.claim_many(3)
        del held
        if how == "get":
            assert [q.get_nowait() for _ in range(3)] == [3, 4, 5]
        elif how == "claim":
            claims = [q.claim(0) for _ in range(3)]
            assert [claim.item for claim in claims] == [3, 4, 5]
        elif how == "get_many":
            assert q.get_many(10) == [3, 4, 5]
        else:
            claims = q.claim_many(10)
            assert [claim.item for claim in claims] == [3, 4, 5]
        assert [letter.item for letter in q.dead] == [0, 1, 2]
        assert all(letter.attempts == 1 for letter in q.dead)


def test_the_text_of_an_error_is_cut(queue_path: str) -> None:
    with Queue(queue_path, max_attempts=1) as q:
        q.put("a")
        q.claim().nack(error="x" * 100_000)
        q.put("b")
        q.claim().bury("y" * 100_000)
        first, second = q.dead
        assert len(first.error or "") == 4096
        assert len(second.reason) == 4096


def test_requeue_puts_dead_letters_back(q: Queue) -> None:
    q.put_many(["a", "b", "c"])
    for claim in q.claim_many(3):
        claim.bury("why not")
    q.put("d")
    assert q.dead.requeue("1-1") == 1
    assert [letter.item for letter in q.dead] == ["a", "c"]
    assert list(q) == ["d", "b"]
    assert q.dead.requeue("1-1") == 0
    assert q.dead.requeue("9-9") == 0
    assert q.dead.requeue() == 2
    assert (len(q.dead), list(q)) == (0, ["d", "b", "a", "c"])
    assert q.dead.requeue() == 0
    claims = q.claim_many(4)
    assert [claim.attempts for claim in claims] == [1, 1, 1, 1]
    assert len({claim.id for claim in claims} | {"1-0", "1-1", "1-2"}) == 7  # new items
    assert q.unfinished_tasks == 4


def test_dead_letters_are_purged(q: Queue) -> None:
    assert q.dead.purge() == 0
    q.put_many(range(5))
    for claim in q.claim_many(3):
        claim.bury()
    assert q.dead.purge() == 3
    assert (len(q.dead), list(q.dead), len(q)) == (0, [], 2)


def test_every_handle_sees_the_dead_letters(queue_path: str) -> None:
    with Queue(queue_path) as q, Queue(queue_path) as other:
        assert list(other.dead) == []
        q.put("a")
        q.claim().bury("first")
        other.put("b")
        other.claim().bury("second")
        expected = [("a", "first"), ("b", "second")]
        for handle in (q, other):
            assert [(letter.item, letter.reason) for letter in handle.dead] == expected
    with Queue(queue_path) as again:
        assert len(again.dead) == 2


def test_a_full_queue_takes_no_letter_back(queue_path: str) -> None:
    with Queue(queue_path, maxsize=1) as q:
        q.put("bad")
        q.claim(0).bury("why not")
        q.put("in the way")
        with pytest.raises(Full):
            q.dead.requeue()
        assert [letter.item for letter in q.dead] == ["bad"]
        assert q.get() == "in the way"
        assert q.dead.requeue() == 1
        assert (q.get(), len(q.dead)) == ("bad", 0)
