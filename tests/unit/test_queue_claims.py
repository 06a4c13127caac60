"""Claims: how they end, how items come back, leases."""

from __future__ import annotations

import gc
import pickle
import time
from collections.abc import Iterator

import pytest
from queueitems import drain

from mmapds import Claim, Closed, Empty, Queue, StaleClaim


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


# ---- claims --------------------------------------------------------------------------------------------------------


def test_a_claim_is_acked_when_its_block_ends(q: Queue) -> None:
    q.put("a")
    with q.claim() as claim:
        assert isinstance(claim, Claim)
        assert (claim.item, claim.attempts, claim.active) == ("a", 1, True)
        assert (q.qsize(), q.stats()["claimed"]) == (0, 1)
        with pytest.raises(Empty):
            q.claim(timeout=0)
    assert not claim.active
    assert (q.qsize(), q.stats()["claimed"], q.unfinished_tasks) == (0, 0, 0)


def test_an_exception_returns_the_item_to_its_old_place(q: Queue) -> None:
    q.put_many(["a", "b"])
    for attempt in range(1, 4):
        claim = fail(q.claim())
        assert (claim.item, claim.attempts) == ("a", attempt)
    assert q.stats()["returns"] == 3
    assert drain(q) == ["a", "b"]


def test_an_interruption_returns_the_item_at_once(queue_path: str) -> None:
    with Queue(queue_path, retry_delay=1000, max_attempts=3) as q:
        q.put("a")
        for attempt in range(1, 4):
            assert fail(q.claim(timeout=0), KeyboardInterrupt()).attempts == attempt
        assert len(q.dead) == 0  # a block that is interrupted buries nothing; who takes it next does
        with pytest.raises(Empty):
            q.claim(timeout=0)
        assert [letter.item for letter in q.dead] == ["a"]


def test_a_claim_is_ended_once(q: Queue) -> None:
    for end in ("ack", "nack", "bury"):
        q.put(end)
        claim = q.claim()
        getattr(claim, end)()
        assert not claim.active
        for again in (claim.ack, claim.nack, claim.bury, claim.touch, lambda claim=claim: claim.touch(5)):
            with pytest.raises(StaleClaim, match="has been ended"):
                again()
        if end == "nack":
            assert q.get_nowait() == "nack"
    assert len(q) == 0


def test_a_claim_that_was_ended_in_its_block_stays_so(q: Queue) -> None:
    q.put_many(range(3))
    with q.claim() as claim:
        claim.nack(0, to_back=True)
    with q.claim() as claim:
        claim.ack()
    with q.claim() as claim:
        claim.bury("enough")
    claim = q.claim()
    claim.ack()
    fail(claim)
    assert len(q) == 0
    assert [letter.item for letter in q.dead] == [2]


def test_a_claim_that_is_dropped_returns_its_item(q: Queue) -> None:
    q.put_many(["a", "b"])
    claim = q.claim()
    del claim
    gc.collect()
    assert drain(q) == ["a", "b"]


def test_closing_the_handle_returns_its_claims(queue_path: str) -> None:
    with Queue(queue_path) as other:
        q = Queue(queue_path)
        q.put_many(range(4))
        claims = q.claim_many(3)
        assert other.get_nowait() == 3
        q.close()
        assert drain(other) == [0, 1, 2]
        for claim in claims:
            with pytest.raises(Closed):
                claim.ack()
            with pytest.raises(Closed):
                claim.nack()


def test_the_id_stays_and_attempts_count(queue_path: str) -> None:
    with Queue(queue_path) as q:
        q.put_many(["a", "b"])
        first, second = q.claim_many(2)
        assert (first.id, second.id) == ("1-0", "1-1")
        assert first.id != second.id
        first.nack(0)
        second.nack(0, to_back=True)
        for attempt in (2, 3):
            claim = fail(q.claim())
            assert (claim.id, claim.item, claim.attempts) == ("1-0", "a", attempt)
    with Queue(queue_path) as q:
        claim = q.claim()
        assert (claim.id, claim.attempts) == ("1-0", 4)
        claim.ack()
        claim = q.claim()
        assert (claim.id, claim.item, claim.attempts) == ("1-1", "b", 2)
        claim.ack()
        q.put("c")
        assert q.claim().id == "1-2"


def test_put_at_is_when_the_item_was_put(q: Queue) -> None:
    before = time.time()
    q.put("a")
    after = time.time()
    claim = q.claim()
    assert before - 1 < claim.put_at < after + 1
    seen = claim.put_at
    claim.nack(0)
    assert q.claim().put_at == seen


def test_claims_are_not_made_copied_or_pickled(q: Queue) -> None:
    with pytest.raises(TypeError, match="claims come from"):
        Claim()
    q.put("a")
    claim = q.claim()
    with pytest.raises(TypeError):
        pickle.dumps(claim)
    assert repr(claim) == f"<Claim 1-0 of {q.path} active, attempt 1>"
    claim.ack()
    assert "ended" in repr(claim)


def test_the_names_of_a_claim_are_pinned() -> None:
    public = {name for name in dir(Claim) if not name.startswith("_")}
    assert public == {"ack", "active", "attempts", "bury", "id", "item", "nack", "put_at", "touch"}


def test_claims_go_on_until_nothing_comes(q: Queue) -> None:
    q.put_many(range(5))
    seen = []
    for claim in q.claims(timeout=0):
        seen.append(claim.item)
        assert q.stats()["claimed"] == 1
    assert seen == list(range(5))
    assert q.unfinished_tasks == 0


def test_a_loop_over_claims_that_ends_early_loses_nothing(q: Queue) -> None:
    q.put_many(range(5))
    for claim in q.claims(timeout=0):
        if claim.item == 2:
            break
    gc.collect()
    assert drain(q) == [2, 3, 4]
    q.put_many(range(3))

    def fail() -> None:
        for claim in q.claims(timeout=0):
            if claim.item == 1:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    gc.collect()
    assert drain(q) == [1, 2]


def test_a_claim_may_be_ended_in_the_loop(q: Queue) -> None:
    q.put_many(range(4))
    seen = []
    for claim in q.claims(timeout=0):
        seen.append(claim.item)
        if claim.item == 1:
            claim.bury("odd")
        elif claim.item == 2 and claim.attempts == 1:
            claim.nack(0, to_back=True)
    assert seen == [0, 1, 2, 3, 2]
    assert len(q.dead) == 1


# ---- coming back ---------------------------------------------------------------------------------------------------


def test_returned_items_come_first_in_their_old_order(q: Queue) -> None:
    q.put_many(range(10))
    claims = q.claim_many(6)
    for i in (3, 0, 5, 1):
        claims[i].nack(0)
    assert q.get_many(6) == [0, 1, 3, 5, 6, 7]
    claims[4].nack(0)
    claims[2].nack(0)
    assert drain(q) == [2, 4, 8, 9]


def test_to_back_is_behind_all_that_was_put_and_before_what_comes(q: Queue) -> None:
    q.put_many(["a", "b", "c"])
    first, second = q.claim_many(2)
    second.nack(0, to_back=True)
    first.nack(0, to_back=True)
    q.put("d")
    assert list(q) == ["c", "b", "a", "d"]
    assert drain(q) == ["c", "b", "a", "d"]


def test_to_back_and_back_again_to_the_new_place(q: Queue) -> None:
    q.put_many(["a", "b"])
    q.claim().nack(0, to_back=True)
    assert q.get() == "b"
    q.put("c")
    claim = q.claim()
    assert claim.item == "a"
    claim.nack(0)
    assert list(q) == ["a", "c"]
    q.claim().nack(0, to_back=True)
    assert drain(q) == ["c", "a"]


# ---- leases --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["handle", "claim", "touch"])
def test_a_lease_ends_a_claim(queue_path: str, of: str) -> None:
    with Queue(queue_path, lease=0.05 if of == "handle" else None) as q, Queue(queue_path) as other:
        q.put("a")
        claim = q.claim(lease=0.05 if of == "claim" else None)
        if of == "touch":
            claim.touch(0.05)
        assert q.stats()["leased"] == 1
        again = other.claim(timeout=60)
        assert (again.item, again.id, again.attempts) == ("a", claim.id, 2)
        assert claim.active  # it does not know
        with pytest.raises(StaleClaim, match="was lost"):
            claim.ack()
        assert not claim.active
        again.ack()
        assert (q.stats()["expired"], q.unfinished_tasks) == (1, 0)


def test_a_lost_claim_changes_nothing(queue_path: str) -> None:
    with Queue(queue_path, lease=0.01) as q:
        q.put("a")
        lost = [q.claim(timeout=60) for _ in range(4)]
        last = q.claim(timeout=60, lease=1000)
        for claim, end in zip(lost, ("ack", "nack", "bury", "touch"), strict=True):
            with pytest.raises(StaleClaim):
                getattr(claim, end)()
        assert (last.attempts, q.stats()["claimed"], len(q.dead)) == (5, 1, 0)
        last.ack()


def test_a_claim_that_was_lost_in_its_block(queue_path: str) -> None:
    with Queue(queue_path) as q:
        q.put("a")
        with pytest.raises(StaleClaim), q.claim(lease=0.01):
            assert q.get(timeout=60) == "a"
        q.put("b")
        claim = q.claim(lease=0.01)
        assert q.get(timeout=60) == "b"
        fail(claim)  # the block's own error counts


def test_touch_makes_a_lease_longer_or_ends_it(queue_path: str) -> None:
    with Queue(queue_path, lease=0.1) as q:
        q.put_many(["a", "b"])
        longer, without = q.claim_many(2)
        longer.touch(1000)
        without.touch()
        time.sleep(0.15)
        with pytest.raises(Empty):
            q.claim(timeout=0)
        assert (q.stats()["leased"], q.stats()["claimed"]) == (1, 2)
        longer.ack()
        without.ack()
