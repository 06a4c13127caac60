"""Recorded histories of queues: what must be true of them, and a run at full speed whose processes are killed.

`QueueChecker` checks what processes have noted in their logs (``histories.py``). `History` is such a run: four
producers, two who get and two who claim, almost without rest, until so many items were put.
"""

from __future__ import annotations

import heapq
import os
import struct
import time
from collections import Counter, defaultdict
from queue import Empty
from typing import Any, NamedTuple

from fleet import Fleet, Role
from histories import NEVER, HistoryError, Op, clock, told

import mmapds

# ---- the checker ----------------------------------------------------------------------------------------------------

# PUT: a producer, b its first number, c how many, d how many were put. TAKE (get): a how many at most; content:
# producer, number. CLAIM: a, b whether with a lease; content: producer, number, attempts, id. ACK and NACK: a producer,
# b number, c attempts, d 1, or 0 if the claim was lost; e of a NACK: whether with a delay.
PUT, TAKE, CLAIM, ACK, NACK = range(21, 26)
Name = tuple[int, int]


class Item:
    """What is known of an item that is not done."""

    __slots__ = ("attempts", "begin", "end", "free", "id", "perhaps_done", "put")

    def __init__(self, begin: int, end: int, put: bool) -> None:
        self.begin, self.end, self.put = begin, end, put  # of its put; whether it is sure that it happened
        self.perhaps_done = False  # somebody was killed while he acknowledged it
        self.attempts = 0
        self.id: Name | None = None
        self.free = end if put else NEVER  # since when it is sure that it waits


class Delivery(NamedTuple):
    """One item out of a TAKE or a CLAIM; `attempts` is 0 for a TAKE."""

    begin: int
    end: int
    name: Name
    attempts: int
    lease: bool
    process: int
    id: Name | None


class QueueChecker:
    """Checks the history of a queue, cut into windows at moments at which nobody is in the middle of anything.

    Order: whoever takes gets the first item that is due and not claimed. So there is a violation if an item b was taken
    while an item a, put before it, was there from before that operation began until after it had returned: a's put (or
    the `nack` that gave it back) had returned, and nobody who might have held it is unaccounted for. Exactly once or
    again: what was got or acknowledged does not come again; whatever else was put comes, or is there at the end, but
    for what died with those killed in the middle of a `get`. Attempts are counted: what is missing in them must be
    claims whose process was killed before it could note them. A claim is nobody else's while its process lives.
    """

    def __init__(self) -> None:
        self.items: dict[Name, Item] = {}
        self.ids: dict[Name, Name] = {}  # of items that are not done
        self.hidden_takes = self.hidden_claims = self.missing = self.lost = self.unsure = 0
        self.ops = self.unknown = self.delivered = 0
        self.pending: set[Name] = set()

    def window(
        self,
        ops: list[Op],
        waiting: list[Name],
        claimed: int = 0,
        killed: dict[int, int] | None = None,
        final: bool = False,
    ) -> None:
        """`waiting`: what is in the queue at the end, in order; `claimed`: how many the queue says are held.

        `killed`: when processes were sent SIGKILL. `final`: nobody holds anything any more.
        """
        self.ops += len(ops)
        self.unknown += sum(not op.known for op in ops)
        self._take_puts(ops)
        hidden = [(op.begin, op.end) for op in ops if op.kind == CLAIM and not op.known]
        self.hidden_claims += sum(op.a for op in ops if op.kind == CLAIM and not op.known)
        self.hidden_takes += sum(op.a for op in ops if op.kind == TAKE and not op.known)
        deliveries = [
            Delivery(op.begin, op.end, (row[0], row[1]), row[2], bool(op.b), op.process,
                     (row[3], row[4]) if op.kind == CLAIM else None)
            for op in ops if op.kind in (TAKE, CLAIM) for row in op.content
        ]  # fmt: skip
        ends: defaultdict[Name, list[Op]] = defaultdict(list)
        for op in ops:
            if op.kind in (ACK, NACK):
                ends[op.a, op.b].append(op)
        self._sure(deliveries, waiting)
        mine: defaultdict[Name, list[Delivery]] = defaultdict(list)
        for delivery in deliveries:
            mine[delivery.name].append(delivery)
        spans: list[tuple[int, int, int, Name]] = []  # since when, until when it was there for sure; end of its put
        done: set[Name] = set()
        there = set(waiting)
        if len(there) < len(waiting):
            raise HistoryError(f"in the queue twice: {[name for name in there if waiting.count(name) > 1][:9]}")
        began = {name: (item.begin, item.end) for name, item in self.items.items()}
        for name in mine.keys() | ends.keys() | there | self.items.keys():
            if self._one(name, mine[name], ends[name], name in there, hidden, killed or {}, spans):
                done.add(name)
        self._check_order(waiting)
        self._check_fifo(deliveries, spans, began)
        self.delivered += len(deliveries)
        for name in done:
            self.ids.pop(self.items.pop(name).id or (0, 0), None)
        self.pending = {
            name for name, item in self.items.items() if item.put and not item.perhaps_done and name not in there
        }
        if self.missing > self.hidden_claims:
            raise HistoryError(
                f"{self.missing} deliveries that nobody noted, and {self.hidden_claims} items may have been claimed by "
                "processes that were killed before they could"
            )
        if len(self.pending) > self.hidden_takes + (0 if final else claimed) - self.lost:
            raise HistoryError(
                f"{len(self.pending)} items were put, and are neither done nor there: {sorted(self.pending)[:9]}; "
                f"{self.hidden_takes} may have died with who got them, {claimed} are claimed"
            )
        if final:
            self.lost += len(self.pending)
            self.unsure += sum(item.perhaps_done for item in self.items.values())
            self.items = {name: item for name, item in self.items.items() if name in there}

    def _take_puts(self, ops: list[Op]) -> None:
        for op in ops:
            if op.kind == PUT:
                for k in range(op.c if not op.known else op.d):
                    name = op.a, op.b + k
                    if name in self.items:
                        raise HistoryError(f"the history puts {name} twice")
                    self.items[name] = Item(op.begin, op.end, op.known)

    def _sure(self, deliveries: list[Delivery], waiting: list[Name]) -> None:
        """Unknown puts happened if their items were seen; the items of a batch are put one after the other."""
        seen: dict[Name, int] = dict.fromkeys(waiting, NEVER)
        for delivery in deliveries:
            seen[delivery.name] = min(seen.get(delivery.name, NEVER), delivery.end)
        for (who, n), when in seen.items():
            item = self.items.get((who, n))
            if item is None:
                raise HistoryError(f"nobody has put {(who, n)}, or it was done before; it was seen at {when}")
            if when < item.begin:
                raise HistoryError(f"{(who, n)} was delivered before its put began, at {item.begin}: {when}")
            while item is not None and not item.put:
                item.put, n = True, n - 1
                before = self.items.get((who, n))
                item = before if before is not None and before.begin == item.begin else None

    def _one(
        self, name: Name, deliveries: list[Delivery], ends: list[Op], there: bool, hidden: list[tuple[int, int]],
        killed: dict[int, int], spans: list[tuple[int, int, int, Name]],
    ) -> bool:  # fmt: skip
        """The history of one item; whether it is done."""
        item = self.items.get(name)
        if item is None:
            raise HistoryError(f"{name} was ended, and is not known:\n{told(ends)}")

        def wrong(what: str) -> HistoryError:
            return HistoryError(f"{name}: {what}\n{told(deliveries)}\n{told(ends)}")

        takes = [delivery for delivery in deliveries if not delivery.attempts]
        claims = sorted((delivery for delivery in deliveries if delivery.attempts), key=lambda found: found.attempts)
        acks = [op for op in ends if op.kind == ACK and op.known and op.d]
        if len(takes) > 1:
            raise wrong("delivered twice by get")
        if len(acks) > 1:
            raise wrong("acknowledged twice")
        if takes and acks:
            raise wrong("acknowledged, and delivered by get")
        if there and (takes or acks):
            raise wrong("done, and in the queue")
        if acks and claims and claims[-1].attempts > acks[0].c:
            raise wrong("delivered again after the delivery that was acknowledged")
        by_attempt = {(op.process, op.c): op for op in ends}
        release, since, attempts = 0, item.free, item.attempts
        for delivery in (*claims, *takes):
            if delivery.attempts:
                if delivery.attempts <= attempts:
                    raise wrong(f"delivery {delivery.attempts} after delivery {attempts}")
                skipped = delivery.attempts - attempts - 1
                self.missing += skipped
                attempts = delivery.attempts
                if item.id is None:
                    item.id = delivery.id
                    if self.ids.setdefault(delivery.id or (0, 0), name) != name:
                        raise wrong(f"has the id of {self.ids[delivery.id or (0, 0)]}")
                elif item.id != delivery.id:
                    raise wrong(f"its id was {item.id}")
                self._span(spans, name, item, since, delivery.begin, hidden if skipped else ())
            else:
                self._span(spans, name, item, since, delivery.begin, hidden)
            if delivery.end < release:
                raise wrong("delivered while somebody else had it")
            end = by_attempt.get((delivery.process, delivery.attempts)) if delivery.attempts else None
            since = NEVER
            if delivery.lease:
                release = delivery.begin
            elif end is not None:
                release = end.begin
            else:
                release = killed.get(delivery.process, NEVER) if delivery.attempts else NEVER
            if end is not None and end.known:
                if not end.d and not delivery.lease:
                    raise wrong("lost by a live process, and there was no lease")
                if end.kind == NACK and end.d and not end.e:
                    since = end.end
        if there:
            if release == NEVER:
                raise wrong("in the queue, while somebody has it")
            self._span(spans, name, item, since, NEVER, hidden)
        item.attempts, item.free = attempts, since if there else NEVER
        if takes or acks:
            return True
        if claims and not claims[-1].lease and release == NEVER:
            raise wrong("somebody who lives has claimed it, and neither acknowledged nor returned it")
        if there or deliveries:
            item.perhaps_done = False
        if not there and any(op.kind == ACK and not op.known for op in ends):
            item.perhaps_done = True
        return False

    @staticmethod
    def _span(
        spans: list[tuple[int, int, int, Name]], name: Name, item: Item, since: int, until: int, hidden: Any
    ) -> None:
        """It was there from `since` to `until`, unless somebody who was killed had it."""
        for begin, end in hidden:
            if end >= since:
                until = min(until, begin)
        if since < until:
            spans.append((since, until, item.end, name))

    def _check_order(self, waiting: list[Name]) -> None:
        newest: Item | None = None
        numbers: dict[int, int] = {}
        for who, n in waiting:
            item = self.items[who, n]
            if newest is not None and item.end < newest.begin:
                raise HistoryError(f"{(who, n)} was put before one that is in front of it: {waiting[:20]}")
            if newest is None or item.begin > newest.begin:
                newest = item
            if numbers.get(who, -1) > n:
                raise HistoryError(f"{(who, n)} is behind {(who, numbers[who])}: {waiting[:20]}")
            numbers[who] = n

    def _check_fifo(
        self, deliveries: list[Delivery], spans: list[tuple[int, int, int, Name]], began: dict[Name, tuple[int, int]]
    ) -> None:
        spans.sort()
        first: list[tuple[int, int, Name]] = []  # of those that were there: end of put, until when
        own: defaultdict[int, list[tuple[int, int, Name]]] = defaultdict(list)  # of each producer: number, until when
        at = 0
        for delivery in sorted(deliveries):
            while at < len(spans) and spans[at][0] < delivery.begin:
                _, until, end, name = spans[at]
                heapq.heappush(first, (end, until, name))
                heapq.heappush(own[name[0]], (name[1], until, name))
                at += 1
            for heap, limit in ((first, began[delivery.name][0]), (own[delivery.name[0]], delivery.name[1])):
                aside = []
                while heap and (heap[0][0] < limit or heap[0][1] < delivery.begin):
                    found = heapq.heappop(heap)
                    if found[1] < delivery.begin:
                        continue  # gone
                    aside.append(found)
                    if found[1] > delivery.end:
                        raise HistoryError(
                            f"{delivery.name} was delivered while {found[2]} was there, put before it "
                            f"({began[delivery.name]} against {began[found[2]]}):\n  {delivery}"
                        )
                for found in aside:
                    heapq.heappush(heap, found)


# ---- a run ----------------------------------------------------------------------------------------------------------


class History:
    """Four producers and four consumers, two of which claim. `run` kills and replaces them all the while."""

    def __init__(self, path: str, logs: str) -> None:
        self.path, self.logs = path, logs
        inside = {"name": os.path.relpath(path, logs), "rest": 0.004, "burst": 60}
        self.roles = [
            Role(name, "queue", job, inside, stop=False)
            for name, job, count in (("producers", "put", 4), ("consumers", "get", 2), ("claimers", "claim", 2))
            for _ in range(count)
        ]

    def run(self, items: int, pause: float) -> dict[str, Any]:
        """Until so many were put, and a thousandth as many have died; counts of what has happened."""
        checker = QueueChecker()
        with Fleet(self.logs, self.roles, items) as fleet:
            fleet.start_all()
            last, since = 0, time.monotonic()

            def enough() -> bool:
                nonlocal last, since
                now = fleet.progress("producers")
                if now != last:
                    last, since = now, time.monotonic()
                assert time.monotonic() - since < 60, f"nothing was put for a minute, after {now}; {fleet.kills}"
                return now >= items and fleet.kills.total() >= items // 1000

            fleet.harass((0, pause), enough)
            for process in [process for process in fleet.running if process.role.name == "producers"]:
                fleet.kill(process)
                fleet.kills["producers"] += 1
            since = time.monotonic()
            with mmapds.Queue(self.path, mode="readonly") as q:

                def empty() -> bool:
                    assert time.monotonic() - since < 60, f"it does not become empty: {q.stats()}"
                    return not q.qsize() and not q.stats()["claimed"]

                fleet.harass((0, pause), lambda: q.qsize() <= 100)
                while not empty():
                    time.sleep(pause / 2)
            for process in list(fleet.running):
                fleet.kill(process)
            ops, kills, killed = fleet.ops["queue"], dict(fleet.kills), fleet.killed
        with mmapds.Queue(self.path) as q:
            while True:
                begin = clock()
                try:
                    found = q.get_many(100, timeout=0.3)
                except Empty:
                    break
                rows = tuple((*struct.unpack_from("<QQ", item), 0, 0, 0) for item in found)
                ops.append(Op(begin, clock(), True, TAKE, len(rows), process=1 << 20, content=rows))
                for _ in found:
                    q.task_done()
            assert q.join(60), f"join() waits for what nobody has: {q.stats()}, {q.holders()}"
        checker.window(ops, [], 0, killed, True)
        content = Counter(op.kind for op in ops for _ in op.content)
        known = Counter(op.kind for op in ops if op.known and op.d)
        return {
            "put": sum(op.d for op in ops if op.kind == PUT), "got": content[TAKE], "claimed": content[CLAIM],
            "acked": known[ACK], "nacked": known[NACK], "died with who got them": checker.lost,
            "died in their ack": checker.unsure, "claims not noted": checker.missing, "unknown": checker.unknown,
            "operations": len(ops), **kills,
        }  # fmt: skip
