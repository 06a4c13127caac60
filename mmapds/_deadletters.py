"""Dead letters: items that failed too often, or were buried, with their history.

They lie in a queue of their own, in the folder ``dead`` of the queue they come from, so they are as durable as its items.
A letter is put there first and acknowledged where it comes from then; whoever dies in between leaves it in both places,
and it comes to be buried again: of letters with one identity only the last counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from mmapds import _compression
from mmapds.errors import CorruptionError

if TYPE_CHECKING:
    from mmapds._native.queue import Claim
    from mmapds.queue import Queue

_COMPRESSED = 2
_TEXT = 4096  # characters of an error that are kept


class DeadLetter(NamedTuple):
    """One of them. Times are seconds since 1970."""

    id: str
    item: Any
    attempts: int
    put_at: float
    buried_at: float
    reason: str
    error: str | None


def error_text(error: object) -> str | None:
    """What is kept of an error."""
    if error is None:
        return None
    text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    return text[:_TEXT]


class DeadLetters:
    """The dead letters of a queue: iterate, `requeue`, `purge`. Obtained as ``queue.dead``."""

    __slots__ = ("_own", "_queue")

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._own: Queue | None = None

    def _open(self, *, make: bool) -> Queue | None:
        if self._own is None:
            path = os.path.join(self._queue.path, "dead")
            if not make and not os.path.exists(os.path.join(path, "meta")):
                return None
            mode = self._queue.mode
            self._own = type(self._queue)._dead_queue(path, mode, self._queue.durability)
        return self._own

    def _add(self, claim: Claim, reason: str, error: object) -> None:
        own = self._open(make=True)
        assert own is not None
        data, flags, born = claim._payload()
        letter = [claim.id, claim.attempts, born, time.time_ns(), reason[:_TEXT], error_text(error), flags, data]
        own.put(msgpack.packb(letter))

    def _read(self, data: bytes) -> tuple[DeadLetter, int, bytes]:
        try:
            name, attempts, born, buried, reason, error, flags, payload = msgpack.unpackb(data)
            plain = _compression.unpack(payload) if flags & _COMPRESSED else payload
            letter = DeadLetter(
                name, self._queue._value_of(plain), attempts, born / 1e9, buried / 1e9, reason, error
            )
        except (ValueError, TypeError) as error_:
            raise CorruptionError(f"{self._queue.path}: a dead letter is not what was written: {error_}") from error_
        return letter, flags, payload

    def __iter__(self) -> Iterator[DeadLetter]:
        """The letters, the oldest first; taken from nobody."""
        own = self._open(make=False)
        if own is None:
            return
        found: dict[str, DeadLetter] = {}
        for data in own:
            letter, _flags, _payload = self._read(data)
            found.pop(letter.id, None)
            found[letter.id] = letter
        yield from found.values()

    def __len__(self) -> int:
        own = self._open(make=False)
        return 0 if own is None else sum(1 for _ in self)

    def __bool__(self) -> bool:
        return len(self) > 0

    def requeue(self, id: str | None = None) -> int:  # noqa: A002  the name that letters and claims have for it
        """Puts a letter (None: all) back into the queue, as a new item at its end; returns how many.

        A death in the middle may leave one in both places.
        """
        own = self._open(make=False)
        if own is None:
            return 0
        done: set[str] = set()
        back = []
        for _ in range(own.qsize()):
            claims = own.claim_many(1, timeout=0) if own.qsize() else []
            if not claims:
                break
            claim = claims[0]
            letter, flags, payload = self._read(claim.item)
            if id is not None and letter.id != id:
                back.append(claim)
                continue
            if letter.id not in done:
                self._queue._put_payload(payload, flags)
                done.add(letter.id)
            claim.ack()
        for claim in back:
            claim.nack(0)
        return len(done)

    def purge(self) -> int:
        """Forgets them all; returns how many there were."""
        own = self._open(make=False)
        return 0 if own is None else own.purge()

    def _close(self) -> None:
        if self._own is not None:
            self._own.close()
            self._own = None

    def __repr__(self) -> str:
        return f"<DeadLetters of {self._queue.path}>"
