"""A queue to damage, and how it is used then."""

from __future__ import annotations

from queue import Empty

import queuefiles

from mmapds import MmapdsError, Queue

SEGMENT = 8192
ITEMS = [b"%d" % n + bytes([n]) * (n % 40) for n in range(150)]
WHOLE = [ITEMS[n] for n in range(20, 150) if n != 21] + [ITEMS[21]]  # what waits, in order


def make(path: str) -> None:
    """150 items in three segments: 20 are taken, some of the next are returned, the rest is as it was put."""
    with Queue(path, codec="raw", segment_size=SEGMENT) as q:
        q.put_many(ITEMS)
        assert q.get_many(20) == ITEMS[:20]
        claims = q.claim_many(20)
        for claim in claims[::2]:
            claim.nack(0)
        claims[1].nack(0.001, to_back=True)
        queuefiles.check(path)


def drain(q: Queue) -> tuple[list[bytes], int]:
    """What comes, and how many errors; it must come to an end."""
    found, errors = [], 0
    for _ in range(1000):
        try:
            found.append(q.get_nowait())
        except Empty:
            return found, errors
        except MmapdsError:
            errors += 1
    raise AssertionError(f"it never becomes empty: {errors} errors, {len(found)} items")


# For a peer: everything that can be asked for is asked for.
DRAIN = """
from queue import Empty, Full
def use(path):
    '''What came; everything that can be asked for is asked for.'''
    signal.alarm(60)
    found, errors = [], []
    try:
        with mmapds.Queue(path, mode="readonly") as q:
            list(q), q.qsize(), q.stats()
    except mmapds.MmapdsError as error:
        errors.append(str(error))
    try:
        q = mmapds.Queue(path)
    except mmapds.MmapdsError as error:
        signal.alarm(0)
        return found, errors + [str(error)]
    with q:
        for what in (
            "q.put(b'new', timeout=0.01)", "q.claim(0).ack()", "q.claim(0).nack()", "q.stats()", "list(q)", "q.check()",
        ):
            try:
                exec(what)
            except (mmapds.MmapdsError, Empty, Full, OverflowError) as error:
                errors.append(f"{what}: {error}")
        for _ in range(400):
            try:
                found.append(q.get_nowait())
            except Empty:
                break
            except mmapds.MmapdsError as error:
                errors.append(str(error))
                if len(errors) > 200:
                    break
    signal.alarm(0)
    return found, errors
"""
