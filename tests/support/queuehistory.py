"""A recorded history of a queue: producers and consumers that are killed all the while, and what must be true of it.

Each process writes what it does to a log of its own, a mapped file, one word for each event: what is stored there
outlives it. A log is read when its process is dead. Used inside a peer, which forks them: ``import queuehistory``.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from queue import Empty, Full
from typing import Any

import victims

import mmapds

GOT, CLAIMED, ACKING, ACKED, NACKED = range(1, 6)
_LOG = 16 << 20


class Log:
    """One process's. Word 0: how many puts have returned, or how many items a get in hand may take."""

    def __init__(self, path: str) -> None:
        with open(path, "w+b") as file:
            file.truncate(_LOG)
            self.words = memoryview(mmap.mmap(file.fileno(), _LOG)).cast("Q")
        self.next = 1

    def note(self, kind: int, who: int, n: int, attempts: int = 0) -> None:
        self.words[self.next] = kind << 61 | min(attempts, 31) << 56 | who << 40 | n
        self.next += 1

    def events(self) -> Iterator[tuple[int, int, int, int]]:
        """(kind, producer, number, attempts)"""
        at = 1
        while word := self.words[at]:
            yield word >> 61, word >> 40 & 0xFFFF, word & (1 << 40) - 1, word >> 56 & 31
            at += 1


def produce(path: str, log: Log, who: int) -> None:
    choose = random.Random(who)
    q = mmapds.Queue(path)
    n = 0
    while True:
        count = choose.choice((1, 1, 1, 1, 30))
        items = [struct.pack("<QQ", who, n + k + 1) + bytes(choose.choice((0, 1, 40, 200))) for k in range(count)]
        if choose.random() < 0.001:
            items = [items[0] + bytes(10_000)]
        if len(items) == 1:
            q.put(items[0])
        else:
            q.put_many(items)
        n += len(items)
        log.words[0] = n


def consume(path: str, log: Log, who: int, claiming: bool) -> None:
    choose = random.Random(who)
    q = mmapds.Queue(path)
    while True:
        n = choose.choice((1, 1, 1, 20, 100))
        if not claiming:
            log.words[0] = n
            found = [q.get()] if n == 1 else q.get_many(n)
            for data in found:
                log.note(GOT, *struct.unpack_from("<QQ", data))
            log.words[0] = 0
            continue
        claims = q.claim_many(n)
        names = [struct.unpack_from("<QQ", claim.item) for claim in claims]
        for name, claim in zip(names, claims, strict=True):
            log.note(CLAIMED, *name, claim.attempts)
        if choose.random() < 0.1:
            both = list(zip(names, claims, strict=True))
            choose.shuffle(both)
            names, claims = [name for name, _ in both], [claim for _, claim in both]
        for name, claim in zip(names, claims, strict=True):
            if choose.random() < 0.02:
                log.note(NACKED, *name)
                claim.nack(choose.choice((0, 0, 0.0005)))
            else:
                log.note(ACKING, *name, claim.attempts)
                claim.ack()
                log.note(ACKED, *name, claim.attempts)


class History:
    """Four producers and four consumers, two of which claim. `run` kills and replaces them until so many were put."""

    def __init__(self, path: str, logs: str) -> None:
        self.path, self.logs = path, logs
        self.number = 0
        self.produced: dict[int, Log] = {}
        self.consumed: dict[int, Log] = {}
        self.running: dict[int, tuple[int, int]] = {}  # place: pid, number of the process
        self.deaths: Counter[str] = Counter()

    def start(self, place: int) -> None:
        self.number += 1
        number, log = self.number, Log(os.path.join(self.logs, str(self.number)))
        (self.produced if place < 4 else self.consumed)[number] = log

        def job() -> None:
            signal.alarm(3600)
            if place < 4:
                produce(self.path, log, number)
            else:
                consume(self.path, log, number, place >= 6)

        self.running[place] = victims.spawn(job), number

    def end(self, place: int) -> None:
        pid, number = self.running.pop(place)
        status = victims.end(pid)
        assert status == -signal.SIGKILL, f"process {number}, at place {place}, ended with status {status}"
        self.deaths["producers" if place < 4 else "consumers" if place < 6 else "claimers"] += 1

    def puts(self) -> int:
        return sum(log.words[0] for log in self.produced.values())

    def run(self, items: int, pause: float) -> dict[str, Any]:
        choose = random.Random(items)
        for place in range(8):
            self.start(place)
        last, since = 0, time.monotonic()
        while (now := self.puts()) < items:
            if now != last:
                last, since = now, time.monotonic()
            assert time.monotonic() - since < 60, f"nothing was put for a minute, after {now} items; {self.deaths}"
            time.sleep(choose.random() * pause)
            place = choose.randrange(8)
            self.end(place)
            self.start(place)
        for place in range(4):
            self.end(place)
        since = time.monotonic()
        with mmapds.Queue(self.path) as q:
            while q.qsize() or q.stats()["claimed"]:
                time.sleep(choose.random() * pause)
                assert time.monotonic() - since < 60, f"it does not become empty: {q.stats()}"
                if q.qsize() > 100:
                    place = choose.randrange(4, 8)
                    self.end(place)
                    self.start(place)
            since = time.monotonic()
            for place in range(4, 8):
                self.end(place)
            rest = []
            while True:
                try:
                    rest.append(struct.unpack_from("<QQ", q.get(timeout=0.3)))
                except (Empty, Full):
                    break
            for _ in rest:
                q.task_done()
            assert q.join(60), f"join() waits for what nobody has: {q.stats()}, {q.holders()}"
        return self.check(rest)

    def check(self, rest: list[tuple[int, int]]) -> dict[str, Any]:
        """What must be true; counts of what has happened."""
        put = {(who, n) for who, log in self.produced.items() for n in range(1, log.words[0] + 1)}
        got: Counter[tuple[int, int]] = Counter(rest)
        claimed: Counter[tuple[int, int, int]] = Counter()
        acked: dict[tuple[int, int], int] = {}
        attempts: defaultdict[tuple[int, int], int] = defaultdict(int)
        unsure, returned, moot = set(), set(), 0
        disorder = 0
        for log in self.consumed.values():
            moot += log.words[0]
            newest: defaultdict[int, int] = defaultdict(int)
            for kind, who, n, attempt in log.events():
                name = who, n
                if kind == GOT:
                    got[name] += 1
                elif kind == CLAIMED:
                    claimed[who, n, attempt] += 1
                    attempts[name] = max(attempts[name], attempt)
                elif kind == ACKING:
                    unsure.add(name)
                elif kind == ACKED:
                    assert name not in acked, f"{name} was acknowledged twice"
                    acked[name] = attempt
                elif kind == NACKED:
                    returned.add(name)
                if kind in (GOT, CLAIMED):
                    disorder += n < newest[who] and attempt <= 1 and name not in returned
                    newest[who] = max(newest[who], n)
        twice = [name for name, count in got.items() if count > 1]
        assert not twice, f"delivered twice by get: {twice[:9]}"
        both = got.keys() & acked.keys()
        assert not both, f"acknowledged, and got by get: {sorted(both)[:9]}"
        again = [name for name, attempt in acked.items() if attempts[name] > attempt]
        assert not again, f"claimed after it was acknowledged: {again[:9]}"
        doubles = [name for name, count in claimed.items() if count > 1 and name[2] < 31]
        assert not doubles, f"the same delivery by claim, twice: {doubles[:9]}"
        unknown = {
            (who, n) for who, n in (got.keys() | acked.keys()) - put if n > self.produced[who].words[0] + 30 or n < 1
        }
        assert not unknown, f"nobody has put {sorted(unknown)[:9]}"
        lost = put - got.keys() - acked.keys() - unsure
        assert len(lost) <= moot, f"{len(lost)} items lost, and {moot} were in hands that died: {sorted(lost)[:9]}"
        # Who is killed between a claim and its note has given the items back, and nobody knows.
        assert disorder <= 100 * self.deaths["claimers"], f"{disorder} items out of order; {self.deaths}"
        if not returned and not self.deaths["claimers"]:
            assert disorder == 0, f"{disorder} items out of order, and nothing was returned"
        return {
            "put": len(put), "got": len(got), "acked": len(acked), "in hands that died": moot, "lost": len(lost),
            "unsure": len(unsure - acked.keys()), "nacked": len(returned), "out of order": disorder, **self.deaths,
        }  # fmt: skip
