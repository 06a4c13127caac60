"""Queues with something of everything."""

from __future__ import annotations

from mmapds import Claim, Queue


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
