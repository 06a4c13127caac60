"""Queue: who waits for items or for room; who wakes them, and what interrupts them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from calls import WATCHDOG, Call, failure
from peers import Peer

from mmapds import Closed, Empty, Full, Queue


@pytest.fixture
def q(queue_path: str) -> Iterator[Queue]:
    with Queue(queue_path, segment_size=8192) as q:
        yield q


# ---- for items -----------------------------------------------------------------------------------------------------

TAKE: dict[str, Callable[[Queue], Any]] = {
    "get": lambda q: q.get(),
    "get with a timeout": lambda q: q.get(timeout=WATCHDOG),
    "get_many": lambda q: q.get_many(5)[0],
    "claim": lambda q: q.claim().item,
    "claim with a timeout": lambda q: q.claim(timeout=WATCHDOG).item,
    "claim_many": lambda q: q.claim_many(5)[0].item,
    "claims": lambda q: next(q.claims()).item,
}
GIVE: dict[str, Callable[[Queue, Any], None]] = {
    "put": lambda q, item: q.put(item),
    "put_many": lambda q, item: q.put_many([item]),
    "put with a delay": lambda q, item: q.put(item, delay=0.01),
}


@pytest.mark.parametrize("give", GIVE)
@pytest.mark.parametrize("take", TAKE)
def test_who_waits_gets_what_is_put(q: Queue, take: str, give: str) -> None:
    with Queue(q.path) as other:
        for consumer, producer in ((q, q), (q, other)):
            call = Call(lambda consumer=consumer: TAKE[take](consumer))
            time.sleep(0.02)
            GIVE[give](producer, "a")
            assert call.result() == "a"
            q.purge()


def test_who_waits_gets_what_comes_back(q: Queue) -> None:
    q.put("a")
    claim = q.claim()
    call = Call(q.get)
    assert call.waits
    claim.nack(0)
    assert call.result() == "a"
    q.put("b")
    claim = q.claim()
    call = Call(q.get)
    claim.nack(0.05)
    assert call.result() == "b"
    q.put("c")
    leased = q.claim(lease=0.05)
    call = Call(q.get)
    assert call.result() == "c"
    assert leased.active
    q.put("d")
    with Queue(q.path) as other:
        held = other.claim()
        call = Call(q.get)
        assert call.waits
    assert call.result() == "d"
    del held
    q.put("e")
    q.claim().bury()
    call = Call(q.get)
    assert call.waits
    assert q.dead.requeue() == 1
    assert call.result() == "e"


def test_a_delay_wakes_at_its_end_and_not_before(q: Queue) -> None:
    for delay in (0.03, 0.3):
        began = time.monotonic()
        q.put("a", delay=delay)
        assert q.get(timeout=WATCHDOG) == "a"
        assert time.monotonic() - began >= delay


def test_a_delay_that_ends_earlier_than_another(q: Queue) -> None:
    q.put("late", delay=1000)
    call = Call(q.get)
    assert call.waits
    q.put("soon", delay=0.05)
    assert call.result() == "soon"


@pytest.mark.parametrize("timeout", [0.01, 0.1, 0.25])
def test_timeouts_are_not_shorter_than_said(q: Queue, timeout: float) -> None:
    q.put("later", delay=1000)
    for call in (
        lambda: q.get(timeout=timeout),
        lambda: q.claim(timeout=timeout),
        lambda: q.get_many(3, timeout=timeout),
        lambda: q.claim_many(3, timeout=timeout),
    ):
        began = time.monotonic()
        with pytest.raises(Empty):
            call()
        assert time.monotonic() - began >= timeout


def test_an_item_of_a_process_that_is_killed(q: Queue) -> None:
    q.put("a")
    with Peer("q = mmapds.Queue(path); claim = q.claim()", path=q.path) as peer:
        call = Call(q.claim)
        assert call.waits
        peer.kill()
        claim = call.result()
        assert (claim.item, claim.attempts, q.stats()["deaths"]) == ("a", 2, 1)
        claim.ack()


@pytest.mark.parametrize("handles", [1, 10])
def test_of_many_who_wait_each_gets_one(q: Queue, handles: int) -> None:
    others = [Queue(q.path) for _ in range(handles)]
    calls = [Call(others[n % handles].get) for n in range(30)]
    for n in range(15):
        q.put(n)
    q.put_many(range(15, 30))
    assert sorted(call.result() for call in calls) == list(range(30))
    assert q.empty()
    for other in others:
        other.close()


def test_threads_and_handles_share_the_work(q: Queue) -> None:
    """FIFO per producer, nothing lost, nothing twice."""
    count, producers = 1500, 4
    seen: list[list[Any]] = []
    with Queue(q.path) as other:

        def produce(number: int) -> None:
            handle = (q, other)[number % 2]
            for n in range(count):
                handle.put((number, n))

        def consume(number: int) -> None:
            mine: list[Any] = []
            seen.append(mine)
            handle = (q, other)[number % 2]
            while True:
                if number == 1:
                    item = handle.get(timeout=WATCHDOG)
                    handle.task_done()
                else:
                    with handle.claim(timeout=WATCHDOG) as claim:
                        item = claim.item
                if item is None:
                    return
                mine.append(tuple(item))

        calls = [Call(lambda number=number: produce(number)) for number in range(producers)]
        consumers = [Call(lambda number=number: consume(number)) for number in range(3)]
        for call in calls:
            call.result()
        q.put_many([None] * 3)
        for call in consumers:
            call.result()
    every = [item for mine in seen for item in mine]
    assert sorted(every) == [(number, n) for number in range(producers) for n in range(count)]
    for mine in seen:
        for number in range(producers):
            numbers = [n for producer, n in mine if producer == number]
            assert numbers == sorted(numbers), "one consumer saw one producer's items out of order"
    assert q.unfinished_tasks == 0


# ---- for room ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [{"maxsize": 3}, {"max_bytes": 300}], ids=str)
def test_who_waits_for_room_goes_on_when_something_is_taken(queue_path: str, limit: dict[str, int]) -> None:
    item = b"x" * 8
    with Queue(queue_path, codec="raw", **limit) as q, Queue(queue_path) as other:  # type: ignore[arg-type]
        ways: list[Callable[[], Any]] = [
            other.get,
            lambda: other.claim().ack(),
            lambda: other.get_many(2),
            lambda: other.claim().bury(),
            q.purge,
            q.get,
        ]
        for give in (lambda: q.put(item), lambda: q.put_many([item, item]), lambda: q.put(item, timeout=WATCHDOG)):
            for make_room in ways:
                with pytest.raises(Full):
                    q.put_many([item] * 10, block=False)
                call = Call(give)
                assert call.waits
                make_room()
                time.sleep(0.01)
                q.purge()
                call.result()
                q.purge()


def test_many_wait_for_room(queue_path: str) -> None:
    with Queue(queue_path, 2) as q, Queue(queue_path) as other:
        calls = [Call(lambda n=n: (q, other)[n % 2].put(n)) for n in range(20)]
        assert sorted(q.get(timeout=WATCHDOG) for _ in range(20)) == list(range(20))
        for call in calls:
            call.result()
        assert q.empty()


def test_full_after_the_timeout_and_not_before(queue_path: str) -> None:
    with Queue(queue_path, 1) as q:
        q.put("a")
        for timeout in (0.01, 0.2):
            began = time.monotonic()
            with pytest.raises(Full):
                q.put("b", timeout=timeout)
            assert time.monotonic() - began >= timeout
        assert list(q) == ["a"]


# ---- interruptions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["q.get()", "q.get(timeout=99)", "q.claim()", "q.get_many(3)", "q.join()", "f.put(1)"])
def test_ctrl_c_ends_a_wait(q: Queue, what: str) -> None:
    q.put("held", delay=0 if what == "q.join()" else 1000)
    code = "q = mmapds.Queue(path); f = mmapds.Queue(path + '-full', 1); f.put(0)"
    with Peer(code, path=q.path) as peer:
        peer.send(what)
        time.sleep(0.1)
        peer.signal(signal.SIGINT)
        assert failure(peer) == "KeyboardInterrupt"
        assert peer("q.put('after'); q.qsize()") == 2  # the handle goes on
        assert peer("f.get(), f.qsize()") == (0, 0)


def test_signal_handlers_run_while_it_waits(q: Queue) -> None:
    code = "q = mmapds.Queue(path); seen = []; signal.signal(signal.SIGUSR1, lambda *_: seen.append(len(seen)))"
    with Peer(code, path=q.path) as peer:
        peer.send("(q.get(), seen)")
        for _ in range(5):
            time.sleep(0.03)
            peer.signal(signal.SIGUSR1)
        time.sleep(0.03)
        q.put("a")
        item, seen = peer.receive()
        assert item == "a"
        assert seen


def test_closing_ends_the_waits_of_other_threads(queue_path: str) -> None:
    q = Queue(queue_path, 1)
    calls = [Call(q.get), Call(q.claim), Call(q.get), Call(lambda: next(q.claims()))]
    assert all(call.waits for call in calls)
    q.close()
    for call in calls:
        with pytest.raises(Closed):
            call.result()
    q = Queue(queue_path)
    q.put("a")
    calls = [Call(lambda: q.put("b")), Call(q.join)]
    assert all(call.waits for call in calls)
    q.close()
    for call in calls:
        with pytest.raises(Closed):
            call.result()
