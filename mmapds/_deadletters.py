"""Dead letters: items that failed too often, or were buried, with their history.

They lie in a queue of their own, in the folder ``dead`` of the queue they come from, so they are as durable as its
items. A letter is put there first and acknowledged where it comes from then; whoever dies in between leaves it in both
places, and it comes to be buried again: of letters with one identity only the last counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from queue import Empty
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from mmapds import _deflate
from mmapds._native.queuescan import FLAGS
from mmapds._queuefiles import DEAD, META
from mmapds.errors import Closed, CorruptionError

if TYPE_CHECKING:
    from mmapds._native.claim import Claim
    from mmapds.queue import Queue

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

    __slots__ = ("_queue",)

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def _open(self, *, make: bool) -> Queue | None:
        queue = self._queue
        if queue.closed:
            raise Closed(f"{queue.path}: this queue is closed, and so are its dead letters")
        if queue._letters is None:
            path = os.path.join(queue.path, DEAD)
            if not make and not os.path.exists(os.path.join(path, META)):
                return None
            own = type(queue)._dead_queue(path, queue.mode, queue.durability)
            if not queue._keep_letters(own):  # another thread was faster
                own.close()
        return queue._letters

    def _add(self, claim: Claim, reason: str, error: object) -> None:
        if self._queue.mode == "private" and self._open(make=False) is None:
            return  # a copy without letters: this one would be forgotten with it
        own = self._open(make=True)
        assert own is not None
        data, flags, born = claim._payload()
        letter = [claim.id, claim.attempts, born, time.time_ns(), reason[:_TEXT], error_text(error), flags, data]
        own.put(msgpack.packb(letter))

    def _letters(self) -> dict[str, list[Any]]:
        """By identity, the oldest first; of those with the same, the last."""
        own = self._open(make=False)
        found: dict[str, list[Any]] = {}
        for data in own or ():
            fields = self._fields(data)
            found.pop(fields[0], None)
            found[fields[0]] = fields
        return found

    def _fields(self, data: bytes) -> list[Any]:
        try:
            fields = msgpack.unpackb(data)
            if [type(field) for field in fields[:5]] != [str, int, int, int, str] or len(fields) != 8:
                raise ValueError(f"its fields are {fields[:6]!r}")
            return list(fields)
        except (ValueError, TypeError) as error:
            raise CorruptionError(f"{self._queue.path}: a dead letter is not what was written: {error}") from error

    def __iter__(self) -> Iterator[DeadLetter]:
        """The letters, the oldest first; taken from nobody. What cannot be decoded has the item None, and says so."""
        for name, attempts, born, buried, reason, error, flags, payload in self._letters().values():
            item = None
            try:
                item = self._queue._value_of(_deflate.unpack(payload) if flags & FLAGS["compressed"] else payload)
            except Exception as failed:  # noqa: BLE001  the codec may be the user's own; the others are to be seen
                error = error or error_text(failed)
            yield DeadLetter(name, item, attempts, born / 1e9, buried / 1e9, reason, error)

    def __len__(self) -> int:
        return len(self._letters())

    def __bool__(self) -> bool:
        return self._count() > 0

    def _count(self) -> int:
        """How many there are, those that are there twice counted twice."""
        own = self._open(make=False)
        return 0 if own is None else own.qsize()

    def requeue(self, id: str | None = None) -> int:  # noqa: A002  the name that letters and claims have for it
        """Puts a letter (None: all) back into the queue, as a new item at its end; returns how many.

        `Full` if the queue has no room for one; those before it are back. A death in the middle may leave one in both
        places.
        """
        own = self._open(make=False)
        done: set[str] = set()
        others = []
        for _ in range(0 if own is None else own.qsize()):
            assert own is not None
            try:
                claim = own.claim(0)
            except Empty:
                break
            fields = self._fields(claim.item)
            if id is not None and fields[0] != id:
                others.append(claim)
                continue
            with claim:  # acknowledged at its end
                if fields[0] not in done:
                    self._queue._put_payload(fields[7], fields[6])
                    done.add(fields[0])
        for claim in others:
            claim.nack(0)
        return len(done)

    def purge(self) -> int:
        """Forgets them all; returns how many there were."""
        own = self._open(make=False)
        return 0 if own is None else own.purge()

    def _flush(self, wait: bool) -> None:
        own = self._open(make=False)
        if own is not None:
            own.flush(wait)

    def __repr__(self) -> str:
        return f"<DeadLetters of {self._queue.path}>"
