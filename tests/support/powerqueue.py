"""Lives of a Queue for the power-loss simulator; see powerlives.py."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

from powerstage import Stage, killed, last_expected, life, recovery, wander

from mmapds import Queue

# Expected: `order`, the numbers of all items that were ever about to be put, in their order; `kept`, which of them must
# be there; `gone`, which must not; `dead`, which are dead letters, or still in the queue; `absent`.


def item(n: int, size: int = -1) -> bytes:
    return b"%04d" % n + bytes(n * 97 % 900 if size < 0 else size)


def jobs(stage: Stage, **options: Any) -> Queue:
    return Queue(stage.folder + "/queue", codec="raw", segment_size=8192, durability="power", **options)


NEW_QUEUE: dict[str, Any] = {"order": [], "kept": [], "gone": [], "dead": [], "absent": True}


def put(stage: Stage, q: Queue, *numbers: int, size: int = -1) -> None:
    stage.expect(order=[*stage.expected["order"], *numbers])
    items = [item(n, size) for n in numbers]
    if len(items) == 1:
        q.put(items[0])
    else:
        q.put_many(items)
    stage.expect(kept=[*stage.expected["kept"], *numbers])


def end(stage: Stage, code: Callable[[], object], *numbers: int) -> None:
    """What may be gone while it runs, and must be when it has returned."""
    stage.expect(kept=[n for n in stage.expected["kept"] if n not in numbers])
    code()
    stage.expect(gone=[*stage.expected["gone"], *numbers])


def get(stage: Stage, q: Queue, number: int) -> None:
    found = b""

    def code() -> None:
        nonlocal found
        found = q.get_nowait()

    end(stage, code, number)
    assert int(found[:4]) == number, (found[:4], number)


@life("Queue")
def queue_life(stage: Stage) -> None:
    def first() -> None:
        stage.expect(**NEW_QUEUE)
        with jobs(stage) as q, jobs(stage) as other:
            stage.expect(absent=False)
            put(stage, q, 0)
            put(stage, other, 1, 2)
            put(stage, q, 3)
            get(stage, other, 0)
            claim = q.claim(0)
            get(stage, other, 2)
            end(stage, claim.ack, 1)
            for n in range(4, 19):
                put(stage, (q, other)[n % 2], n)
            other.claim(0).nack(0)
            for n in range(3, 8):
                get(stage, q, n)

    def second() -> None:
        with jobs(stage) as q:
            put(stage, q, 19, 20, 21)
            end(stage, lambda: q.get_many(6), *range(8, 14))
            put(stage, q, *range(22, 40))
            end(stage, lambda: q.get_many(4), *range(14, 18))
            claims = q.claim_many(3)
            end(stage, claims[1].ack, 19)
            put(stage, q, 40)
            q.flush()

    stage.run(first)
    stage.expected = last_expected(stage)
    stage.run(second)


@life("Queue")
def queue_large(stage: Stage) -> None:
    """Items larger than a segment, delayed ones, and those sent to the back."""

    def job() -> None:
        stage.expect(**NEW_QUEUE)
        with jobs(stage) as q:
            stage.expect(absent=False)
            put(stage, q, 0)
            put(stage, q, 1, size=9000)
            put(stage, q, 2)
            put(stage, q, 3, size=7900)
            get(stage, q, 0)
            get(stage, q, 1)
            put(stage, q, 4, size=20_000)
            get(stage, q, 2)
            end(stage, q.claim(0).ack, 3)
            end(stage, q.claim(0).ack, 4)
            put(stage, q, 5)

    stage.run(job)


@life("Queue")
def queue_letters(stage: Stage) -> None:
    """Dead letters: in the queue, or among the letters, from the moment on when they were put."""

    def job() -> None:
        stage.expect(**NEW_QUEUE)
        with jobs(stage) as q:
            stage.expect(absent=False)
            put(stage, q, 0)
            put(stage, q, 1, 2)
            claim = q.claim(0)
            stage.expect(kept=[1, 2], dead=[0])
            claim.bury("broken")
            stage.expect(buried=[0])
            put(stage, q, 3)
            claim = q.claim(0)
            stage.expect(kept=[2, 3], dead=[0, 1])
            claim.bury("broken too")
            stage.expect(buried=[0, 1])
            get(stage, q, 2)

    stage.run(job)


@life("Queue")
def queue_flush(stage: Stage) -> None:
    """Durability "process": what was put, and what was ended, before a flush that has returned."""

    def job() -> None:
        with Queue(stage.folder + "/queue", codec="raw", segment_size=8192) as q:
            order: list[int] = []
            for n in range(4):
                numbers = [3 * n, 3 * n + 1, 3 * n + 2]
                q.put_many([item(number, 900) for number in numbers])
                order += numbers
                if n:
                    assert int(q.get_nowait()[:4]) == n - 1
                q.flush()
                stage.expect(**{**NEW_QUEUE, "order": order, "gone": order[:n], "kept": order[n:], "absent": False})
                stage.look(True)
                stage.look(False)

    stage.look(False)
    stage.run(job)


@killed("Queue", "creation and a put", 9)
def queue_killed_creation(stage: Stage, number: int) -> bool:
    stage.expect(**NEW_QUEUE)

    def job() -> None:
        with jobs(stage) as q:
            stage.expect(absent=False)
            put(stage, q, 0)

    died = stage.run(job, number)
    stage.expected = last_expected(stage)
    stage.run(lambda: queue_successor(stage, 1))
    return died


@killed("Queue", "a put into the next segment", 5)
def queue_killed_put(stage: Stage, number: int) -> bool:
    stage.look(False)

    def first() -> None:
        with jobs(stage) as q:
            q.put_many([item(0, 3000), item(1, 200)])

    def job() -> None:
        with jobs(stage) as q:
            put(stage, q, 2, size=2000)

    stage.run(first)
    stage.expect(**{**NEW_QUEUE, "order": [0, 1], "kept": [0, 1], "absent": False})
    stage.look(True)
    died = stage.run(job, number + 2)  # behind those of opening
    stage.expected = last_expected(stage)
    stage.run(lambda: queue_successor(stage, 3))
    return died


@killed("Queue", "beside another, a put into the next segment", 3)
def queue_killed_beside(stage: Stage, number: int) -> bool:
    """The other has had the queue open all the time, and goes on in the segment whose maker has died."""
    stage.look(False)
    died = False

    def other() -> None:
        nonlocal died
        with jobs(stage) as q:
            q.put_many([item(0, 3000), item(1, 200)])
            stage.expect(**{**NEW_QUEUE, "order": [0, 1], "kept": [0, 1], "absent": False})
            died = stage.run(lambda: beside(stage), number + 2)
            stage.expected = last_expected(stage)
            stage.look(True)
            put(stage, q, 3, size=1000)
            put(stage, q, 4, size=1000)
        if not died:
            os._exit(0)
        stage.expect(died=True)

    stage.run(other)
    return bool(last_expected(stage).get("died"))


def beside(stage: Stage) -> None:
    with jobs(stage) as q:
        put(stage, q, 2, size=3000)


@killed("Queue", "a get and an ack", 4)
def queue_killed_get(stage: Stage, number: int) -> bool:
    stage.look(False)

    def first() -> None:
        with jobs(stage) as q:
            q.put_many([item(n, 1500) for n in range(6)])

    def job() -> None:
        with jobs(stage) as q:
            get(stage, q, 0)
            end(stage, q.claim(0).ack, 1)
            put(stage, q, 6)
            get(stage, q, 2)

    stage.run(first)
    stage.expect(**{**NEW_QUEUE, "order": [*range(6)], "kept": [*range(6)], "absent": False})
    stage.look(True)
    died = stage.run(job, number + 2)
    stage.expected = last_expected(stage)
    stage.run(lambda: queue_successor(stage, 7))
    return died


def queue_successor(stage: Stage, number: int) -> None:
    with jobs(stage) as q:
        stage.expect(absent=False)
        put(stage, q, number)
        put(stage, q, number + 1, size=5000)
        put(stage, q, number + 2, size=5000)
        first = int(q.claim(0).item[:4])
        assert first in stage.expected["order"]


@recovery("Queue")
def queue_recovery(stage: Stage) -> None:
    expected = stage.expected

    def job() -> None:
        with jobs(stage) as q:
            found = [int(data[:4]) for data in q]
            letters = [int(letter.item[:4]) for letter in q.dead]
            stage.expect(
                order=found, kept=found, gone=[n for n in expected["order"] if n not in found],
                dead=[n for n in letters if n not in found], buried=[],
            )  # fmt: skip
            new = max(expected["order"], default=0) + 1
            put(stage, q, new)
            for n in found[:2]:
                get(stage, q, n)
            put(stage, q, new + 1, size=6000)
            stage.expect(absent=False)
            put(stage, q, new + 2)
            ids: list[str] = []
            for n in [*found[2:], new, new + 1, new + 2]:
                claim = q.claim(0)
                assert int(claim.item[:4]) == n
                ids.append(claim.id)
                end(stage, claim.ack, n)
                stage.expect(ids=list(ids))
            put(stage, q, new + 3, size=6000)
            put(stage, q, new + 4, size=6000)

    stage.run(job)


@wander("Queue")
def queue_wander(stage: Stage, choose: random.Random) -> None:
    def job() -> None:
        with jobs(stage) as q:
            stage.expect(absent=False)
            for _ in range(choose.randrange(4, 12)):
                new = len(stage.expected["order"])
                what = choose.random()
                waiting = sorted(set(stage.expected["kept"]))
                if what < 0.5 or not waiting:
                    put(stage, q, new, size=choose.choice((0, 40, 400, 900, 2500, 9000)))
                elif what < 0.65:
                    put(stage, q, *range(new, new + choose.randrange(2, 5)), size=choose.choice((10, 600)))
                elif what < 0.75:
                    q.claim(0).nack(0)
                elif what < 0.9:
                    get(stage, q, waiting[0])
                else:
                    claims = q.claim_many(2)
                    numbers = [int(claim.item[:4]) for claim in claims]
                    end(stage, claims[-1].ack, numbers[-1])
                    if len(claims) > 1:
                        claims[0].nack(0)

    stage.expect(**NEW_QUEUE)
    stage.look(False)
    stage.run(lambda: jobs(stage).close())
    stage.look(True)
    for _ in range(3):
        stage.run(job)
        stage.expected = last_expected(stage)
        choose.random()
