"""Queues with something of everything, and damage to them."""

from __future__ import annotations

import os
from queue import Empty
from typing import Any

import queuefiles as raw

from mmapds import Claim, Queue
from mmapds.inspection import Finding, describe, verify


def fill(q: Queue) -> list[Claim]:
    """Items in every state, over many segments; the claims that are held."""
    for number in range(150):
        q.put({"number": number, "text": "x" * (number % 50)}, delay=1000 if number % 7 == 0 else 0)
    q.put(b"large" * 5000)
    q.put_many(range(20))
    claims = q.claim_many(40)
    for claim in claims[:10]:
        claim.ack()
    for claim in claims[10:15]:
        claim.nack(1000)
    for claim in claims[15:20]:
        claim.nack(to_back=True)
    for claim in claims[20:22]:
        claim.bury("no use")
    for claim in claims[22:25]:
        claim.touch(1000)
    for _ in range(20):
        q.get()
    return claims[22:]


def drain(q: Queue) -> list[Any]:
    """All that can be got now."""
    found = []
    while True:
        try:
            found.append(q.get_nowait())
        except Empty:
            return found


class Shared:
    """A queue in use with something of everything, that tests damage and mend again; and how it is."""

    def __init__(self, path: str, q: Queue, claims: list[Claim]) -> None:
        self.path, self.q, self.claims = path, q, claims
        self.meta = raw.meta(path)
        self.files = raw.content(path)
        self.snapshot = raw.Snapshot(path)

    def mend(self) -> None:
        for name, data in self.files.items():
            file = os.path.join(self.path, name)
            os.truncate(file, len(data))
            raw.poke(file, 0, data)


def found_with(shared: Shared, offset: int, data: bytes, file: str | None = None) -> list[Finding]:
    """What is found while these bytes are there."""
    file = file or shared.meta
    before = raw.peek(file, offset, len(data))
    raw.poke(file, offset, data)
    try:
        found = verify(shared.path)
        describe(shared.path)
    finally:
        raw.poke(file, offset, before)
    return found


def place(shared: Shared, position: int) -> tuple[str, int]:
    """The file, and the offset in it, of a position."""
    start, _ = shared.snapshot.find(position) or (0, b"")
    return raw.segment(shared.path, start // 8192), position - start
