"""Queue: task_done and join, and shutdown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from calls import WATCHDOG, Call, failure
from peers import Peer

from mmapds import Queue, ShutDown


@pytest.fixture
def q(queue_path: str) -> Iterator[Queue]:
    with Queue(queue_path, segment_size=8192) as q:
        yield q


# ---- task_done and join --------------------------------------------------------------------------------------------


def test_join_waits_until_every_item_is_done(q: Queue) -> None:
    assert q.join() is True
    q.put_many(range(3))
    assert q.unfinished_tasks == 3
    with Queue(q.path) as other:
        call = Call(q.join)
        assert call.waits
        assert other.get() == 0
        claim = other.claim()
        q.get()
        assert (other.unfinished_tasks, call.waits) == (3, True)
        other.task_done()
        claim.ack()
        assert call.waits
        q.task_done()
        assert call.result() is True
        assert q.unfinished_tasks == 0


def test_join_with_a_timeout(q: Queue) -> None:
    q.put("a")
    assert q.join(0) is False
    began = time.monotonic()
    assert q.join(timeout=0.1) is False
    assert time.monotonic() - began >= 0.1
    q.get()
    assert q.join(timeout=0.05) is False
    q.task_done()
    assert q.join(timeout=0) is True


def test_every_end_of_an_item_lets_join_go_on(q: Queue) -> None:
    ends: list[Callable[[], Any]] = [
        lambda: q.claim().ack(),
        lambda: q.claim().bury(),
        q.purge,
        lambda: (q.get(), q.task_done()),
        lambda: (q.get_many(5), q.task_done()),
    ]
    for end in ends:
        q.put("a")
        call = Call(q.join)
        assert call.waits
        end()
        assert call.result() is True


@pytest.mark.parametrize("how", ["killed", "closed"])
@pytest.mark.parametrize("taken", ["q.get()", "claim = q.claim()"])
def test_a_consumer_that_ends_cannot_hang_join(q: Queue, taken: str, how: str) -> None:
    q.put("a")
    with Peer("q = mmapds.Queue(path)", path=q.path) as peer:
        peer(taken)
        call = Call(q.join)
        assert call.waits
        peer.kill() if how == "killed" else peer("q.close()")
        if "claim" in taken:  # the item is due again, and nobody has done it
            with q.claim(timeout=WATCHDOG) as claim:
                assert claim.item == "a"
        assert call.result() is True


def test_task_done_too_often(q: Queue) -> None:
    with Queue(q.path) as other:
        q.put_many(["a", "b"])
        with pytest.raises(ValueError, match="too many times"):
            q.task_done()
        q.get()
        with pytest.raises(ValueError, match="too many times"):
            other.task_done()  # who has got it says so
        q.task_done()
        with pytest.raises(ValueError, match="too many times"):
            q.task_done()
        with q.claim():  # an ack is one already
            pass
        with pytest.raises(ValueError, match="too many times"):
            q.task_done()


# ---- shutdown ------------------------------------------------------------------------------------------------------


def test_after_shutdown_nothing_is_put_and_the_rest_may_be_taken(q: Queue) -> None:
    q.put_many(range(4))
    with Queue(q.path) as other:
        other.shutdown()
        for handle in (q, other):
            for put in (handle.put, handle.put_nowait, lambda item, handle=handle: handle.put_many([item])):
                with pytest.raises(ShutDown, match="shut down"):
                    put("new")
        assert (q.get(), other.get_nowait()) == (0, 1)
        with q.claim() as claim:
            assert claim.item == 2
        assert q.get_many(10) == [3]
        for handle in (q, other):
            for take in (handle.get, handle.get_nowait, handle.claim, partial(handle.get_many, 3)):
                with pytest.raises(ShutDown):
                    take()


def test_what_comes_back_after_shutdown_may_be_taken(q: Queue) -> None:
    q.put("a")
    claim = q.claim()
    q.shutdown()
    claim.nack(0)
    with q.claim() as claim:
        assert claim.item == "a"
    with pytest.raises(ShutDown):
        q.get()


def test_an_immediate_shutdown_takes_away_what_waits(q: Queue) -> None:
    q.put_many(range(4))
    with Queue(q.path) as other:
        claim = other.claim()
        q.shutdown(immediate=True)
        assert q.qsize() == 0
        for handle in (q, other):
            for take in (handle.get, handle.get_nowait, handle.claim, partial(handle.get_many, 3)):
                with pytest.raises(ShutDown):
                    take()
        claim.ack()  # what is held may be ended
        assert q.join() is True


@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_ends_all_waits(queue_path: str, immediate: bool) -> None:
    with Queue(queue_path, 1) as q, Queue(queue_path) as other, Peer("q = mmapds.Queue(path)", path=queue_path) as peer:
        calls = [
            Call(call) for handle in (q, other) for call in (handle.get, handle.claim, lambda h=handle: h.get_many(3))
        ]
        peer.send("q.get()")
        assert all(call.waits for call in calls)
        q.shutdown(immediate)
        for call in calls:
            with pytest.raises(ShutDown):
                call.result()
        assert failure(peer) == "ShutDown"


@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_ends_waits_for_room(queue_path: str, immediate: bool) -> None:
    with Queue(queue_path, 1) as q, Queue(queue_path) as other:
        q.put("a")
        calls = [Call(lambda: q.put("b")), Call(lambda: other.put_many(["b", "c"]))]
        join = Call(q.join)
        assert all(call.waits for call in calls)
        other.shutdown(immediate)
        for call in calls:
            with pytest.raises(ShutDown):
                call.result()
        if not immediate:
            assert list(q) == ["a"]
            assert join.waits
            q.get()
            q.task_done()
        assert join.result() is True


def test_handles_that_are_opened_after_a_shutdown_are_not(q: Queue) -> None:
    q.put("a")
    q.shutdown()
    with Queue(q.path) as later:
        later.put("b")
        assert later.get() == "a"
        assert q.get() == "b"
        with pytest.raises(ShutDown):
            q.get()
        q.shutdown()
        with pytest.raises(ShutDown):
            later.put("c")


def test_claims_in_a_loop_end_with_the_shutdown(q: Queue) -> None:
    q.put_many(range(3))
    seen = []

    def work() -> None:
        seen.extend(claim.item for claim in q.claims())

    call = Call(work)
    while len(seen) < 3:
        assert call.waits
    q.shutdown()
    with pytest.raises(ShutDown):
        call.result()
    assert seen == [0, 1, 2]
