"""Queue in asyncio: get_async, claim_async, claims_async; cancelling loses nothing."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from calls import WATCHDOG
from peers import Peer

from mmapds import Closed, Empty, Queue, ShutDown


@pytest.fixture
def q(queue_path: str) -> Iterator[Queue]:
    with Queue(queue_path, segment_size=8192) as q:
        yield q


def run(main: Any) -> Any:
    """Runs a coroutine, under a watchdog, with warnings about what asyncio was not told."""

    async def watched() -> Any:
        async with asyncio.timeout(WATCHDOG):
            return await main

    return asyncio.run(watched(), debug=False)


async def ticks(seconds: float = 0.05) -> None:
    """Lets others run."""
    await asyncio.sleep(seconds)


def test_what_is_there_is_taken_at_once(q: Queue) -> None:
    async def main() -> None:
        q.put_many(range(6))
        assert await q.get_async() == 0
        assert await q.get_async(timeout=0) == 1
        async with asyncio.timeout(WATCHDOG):
            claim = await q.claim_async()
        assert (claim.item, claim.attempts) == (2, 1)
        with claim:
            pass
        with await q.claim_async(timeout=5, lease=1000) as claim:
            assert (claim.item, q.stats()["leased"]) == (3, 1)
        assert [await q.get_async() for _ in range(2)] == [4, 5]
        assert q.stats()["claimed"] == 0

    run(main())


def test_who_waits_gets_what_is_put(q: Queue) -> None:
    with Queue(q.path) as other, Peer("q = mmapds.Queue(path)", path=q.path) as peer:

        async def main() -> None:
            for put in (lambda: q.put("a"), lambda: other.put("a"), lambda: q.put("a", delay=0.05)):
                task = asyncio.create_task(q.get_async())
                await ticks()
                assert not task.done()
                put()
                assert await task == "a"
            task = asyncio.create_task(q.get_async())
            await ticks()
            peer.send("q.put('from far')")
            assert await task == "from far"
            peer.receive()

        run(main())


def test_the_loop_goes_on_while_somebody_waits(q: Queue) -> None:
    async def main() -> None:
        task = asyncio.create_task(q.get_async())
        count = 0
        while count < 50:
            await asyncio.sleep(0.001)
            count += 1
        assert not task.done()
        q.put("a")
        assert await task == "a"

    run(main())


def test_what_comes_back_wakes_who_waits(q: Queue) -> None:
    async def main() -> None:
        q.put("a")
        claim = await q.claim_async()
        task = asyncio.create_task(q.claim_async())
        await ticks()
        claim.nack(0)
        again = await task
        assert (again.item, again.attempts) == ("a", 2)
        task = asyncio.create_task(q.claim_async())
        again.nack(0.05)
        again = await task
        assert again.attempts == 3
        again.touch(0.05)  # a lease
        last = await q.claim_async()
        assert last.attempts == 4
        last.ack()

    run(main())


def test_an_item_of_a_process_that_is_killed(q: Queue) -> None:
    q.put("a")
    with Peer("q = mmapds.Queue(path); claim = q.claim()", path=q.path) as peer:

        async def main() -> None:
            task = asyncio.create_task(q.claim_async())
            await ticks()
            assert not task.done()
            peer.kill()
            claim = await task
            assert (claim.item, claim.attempts) == ("a", 2)
            claim.ack()

        run(main())


@pytest.mark.parametrize("timeout", [0, 0.01, 0.2])
def test_timeouts(q: Queue, timeout: float) -> None:
    async def main() -> None:
        q.put("later", delay=1000)
        for call in (q.get_async, q.claim_async):
            began = time.monotonic()
            with pytest.raises(Empty):
                await call(timeout=timeout)
            assert time.monotonic() - began >= timeout
        async for _ in q.claims_async(timeout=timeout):
            raise AssertionError
        with pytest.raises(TimeoutError):  # asyncio's own
            async with asyncio.timeout(0.05):
                await q.get_async()
        for call in (q.get_async, q.claim_async):
            with pytest.raises(ValueError, match="non-negative"):
                await call(timeout=-1)

    run(main())


def test_many_coroutines_each_get_one(q: Queue) -> None:
    async def main() -> None:
        with Queue(q.path) as other:
            tasks = [asyncio.create_task((q, other)[n % 2].get_async()) for n in range(300)]
            await ticks()
            for n in range(150):
                q.put(n)
            await ticks(0)
            other.put_many(range(150, 300))
            assert sorted(await asyncio.gather(*tasks)) == list(range(300))
            assert q.empty()

    run(main())


def test_cancelling_loses_nothing(q: Queue) -> None:
    """Tasks are cancelled at all times, while items come from another thread: each item is got once."""
    count = 500
    got: list[int] = []

    def produce() -> None:
        with Queue(q.path) as other:
            for n in range(count):
                other.put(n)
                if n % 7 == 0:
                    time.sleep(0.0005)

    async def one(claiming: bool) -> None:
        if claiming:
            with await q.claim_async() as claim:
                got.append(claim.item)
        else:
            got.append(await q.get_async())

    async def main() -> None:
        thread = threading.Thread(target=produce)
        thread.start()
        number = cancelled = 0
        while len(got) < count:
            tasks = [asyncio.create_task(one(n % 2 == 0)) for n in range(8)]
            await asyncio.sleep(number % 5 * 0.0003)
            number += 1
            for task in tasks:
                cancelled += task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        thread.join()
        assert cancelled > 0

    run(main())
    assert sorted(got) == list(range(count))
    assert (len(q), q.stats()["claimed"]) == (0, 0)


def test_a_cancelled_task_that_was_woken_passes_it_on(q: Queue) -> None:
    async def main() -> None:
        for _ in range(30):
            first = asyncio.create_task(q.get_async())
            second = asyncio.create_task(q.get_async())
            await ticks(0.002)
            q.put("a")
            await ticks(0)
            if first.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await first
                assert await second == "a"
            else:
                second.cancel()
                await asyncio.gather(second, return_exceptions=True)

    run(main())


def test_claims_in_a_loop(q: Queue) -> None:
    async def main() -> None:
        q.put_many(range(5))
        seen = []
        async for claim in q.claims_async(timeout=0.05):
            seen.append((claim.item, claim.attempts))
            if claim.item == 3 and claim.attempts == 1:
                claim.nack(0.01)
        assert sorted(seen) == [(0, 1), (1, 1), (2, 1), (3, 1), (3, 2), (4, 1)]
        assert q.unfinished_tasks == 0
        q.put_many(range(3))
        loop = q.claims_async()
        async for claim in loop:
            if claim.item == 1:
                break
        await loop.aclose()
        assert list(q) == [1, 2]

    run(main())


def test_a_task_that_is_cancelled_in_its_claim_returns_the_item(q: Queue) -> None:
    async def work() -> None:
        with await q.claim_async():
            await asyncio.sleep(1000)

    async def main() -> None:
        q.put("a")
        task = asyncio.create_task(work())
        await ticks()
        assert q.stats()["claimed"] == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await q.get_async(timeout=0) == "a"

    run(main())


def test_closing_ends_the_waits(queue_path: str) -> None:
    async def main() -> None:
        q = Queue(queue_path)
        tasks = [asyncio.create_task(call()) for call in (q.get_async, q.claim_async)]
        await ticks()
        q.close()
        for task in tasks:
            with pytest.raises(Closed):
                await task
        with pytest.raises(Closed):
            await q.get_async()

    run(main())


@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_ends_the_waits(q: Queue, immediate: bool) -> None:
    async def main() -> None:
        with Queue(q.path) as other:
            tasks = [asyncio.create_task(call()) for call in (q.get_async, q.claim_async, q.get_async)]
            await ticks()
            other.shutdown(immediate)
            for task in tasks:
                with pytest.raises(ShutDown):
                    await task

    run(main())


def test_one_loop_after_the_other_and_two_at_once(q: Queue) -> None:
    async def one(value: int) -> int:
        task = asyncio.create_task(q.get_async())
        await ticks(0.02)
        q.put(value)
        found: int = await task
        return found

    for n in range(3):
        assert run(one(n)) == n
    found: list[int] = []
    threads = [threading.Thread(target=lambda n=n: found.append(run(one(n)))) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
    assert sorted(found) == [0, 1, 2]


def test_one_thread_for_each_queue_and_loop_which_ends(q: Queue) -> None:
    def waiters() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "mmapds-queue"]

    async def main() -> None:
        watchdog = time.monotonic() + WATCHDOG
        while waiters():  # of other tests
            assert time.monotonic() < watchdog, waiters()
            await ticks(0.01)
        tasks = [asyncio.create_task(q.get_async()) for _ in range(50)]
        await ticks()
        assert len(waiters()) == 1
        q.put_many(range(50))
        await asyncio.gather(*tasks)
        while waiters():  # nobody waits any more
            assert time.monotonic() < watchdog, waiters()
            await ticks(0.01)

    run(main())


def test_a_queue_is_let_go_of_although_somebody_waited(queue_path: str) -> None:
    async def main() -> None:
        with Queue(queue_path) as q, pytest.raises(Empty):
            await q.get_async(timeout=0.02)

    run(main())
    gc.collect()
    with Queue(queue_path) as q:
        q.put(1)
        assert q.get() == 1
