"""Claims in loops, and waiting for a queue in asyncio: one thread for each queue and event loop, which only signals.

The thread sleeps on the queue's futex and, when there may be something, wakes the first coroutine that waits; that one
takes the item in its own step. So a cancelled coroutine has taken nothing, and an item is never on its way between a
thread and a coroutine. The thread ends when nobody has waited for a second.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty
from typing import Any

from mmapds._native.claim import Claim
from mmapds._queuelook import QueueLook
from mmapds.errors import Closed, StaleClaim

_IDLE = 1.0  # seconds without a waiter after which the thread ends
_SLICE = 0.5


class Waiter:
    """For one queue and one loop."""

    __slots__ = ("_lock", "_looked", "_loop", "_queue", "_thread", "_waiting", "_wanted")

    def __init__(self, queue: QueueLook, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = queue
        self._loop = loop
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._wanted = threading.Event()  # somebody waits
        self._looked = threading.Event()  # who was woken has looked
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    async def wait(self, timeout: float | None) -> None:
        """Returns when there may be something to take, or after `timeout` seconds."""
        future: asyncio.Future[None] = self._loop.create_future()
        with self._lock:  # or the thread may be about to end, having seen nobody
            self._waiting.append(future)
            self._looked.set()
            self._wanted.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mmapds-queue", daemon=True)
                self._thread.start()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await future
        finally:
            with self._lock:
                with suppress(ValueError):
                    self._waiting.remove(future)
                if not self._waiting:
                    self._wanted.clear()
            self._loop.call_soon(self._looked.set)  # after the step in which he looks

    def _signal(self) -> None:
        """In the loop: wakes one."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return
        self._looked.set()

    def _run(self) -> None:
        while True:
            if not self._wanted.wait(_IDLE):
                with self._lock:
                    if not self._wanted.is_set():
                        self._thread = None
                        return
            try:
                something = self._queue._wait_item(_SLICE)
            except Exception:  # noqa: BLE001  closed, forked, damaged: who waits finds out when he looks
                something = True
            if something:
                self._looked.clear()
                try:
                    self._loop.call_soon_threadsafe(self._signal)
                except RuntimeError:  # the loop is closed
                    self._thread = None
                    return
                self._looked.wait(_SLICE)


@contextmanager
def _left(claim: Claim) -> Iterator[None]:
    """Who leaves a loop in the middle of an item has failed with it: `retry_delay` and `max_attempts` apply."""
    try:
        yield
    except GeneratorExit:
        if claim.active:
            with suppress(StaleClaim, Closed):
                claim.nack()
        raise


class QueueAsync(QueueLook):
    """Claims in loops, and waiting in asyncio."""

    __slots__ = ("_async",)

    _async: dict[asyncio.AbstractEventLoop, Waiter]

    # ---- claims in loops -------------------------------------------------------------------------------------------

    def claims(self, timeout: float | None = None, lease: float | None = None) -> Iterator[Claim]:
        """Claims, one after the other, until none came for `timeout` seconds.

        A claim that the loop's body has not ended is acknowledged when the loop asks for the next one. When the body
        raises or leaves the loop, the item has failed, as by `nack`; the error is not known here: where its text is
        to be kept, use ``with claim:`` in the body.
        """
        while True:
            try:
                claim = self.claim(timeout, lease)
            except Empty:
                return
            with claim, _left(claim):
                yield claim

    async def get_async(self, timeout: float | None = None) -> Any:
        """get() for asyncio. Cancelling it loses nothing: what it has not returned, it has not taken."""
        return await self._take_async(self.get_nowait, timeout)

    async def claim_async(self, timeout: float | None = None, lease: float | None = None) -> Claim:
        """claim() for asyncio."""
        claim: Claim = await self._take_async(lambda: self.claim(0, lease), timeout)
        return claim

    async def claims_async(self, timeout: float | None = None, lease: float | None = None) -> AsyncIterator[Claim]:
        """claims() for asyncio."""
        while True:
            try:
                claim = await self.claim_async(timeout, lease)
            except Empty:
                return
            with claim, _left(claim):
                yield claim

    async def _take_async(self, take: Callable[[], Any], timeout: float | None) -> Any:
        if timeout is not None and timeout < 0:
            raise ValueError("'timeout' must be a non-negative number")
        limit = None if timeout is None else time.monotonic() + timeout
        loop = asyncio.get_running_loop()
        while True:
            try:
                return take()
            except Empty:
                left = None if limit is None else limit - time.monotonic()
                if left is not None and left <= 0:
                    raise
            waiter = self._async.get(loop)
            if waiter is None:
                for other in [found for found in self._async if found.is_closed()]:
                    del self._async[other]
                waiter = self._async[loop] = Waiter(self, loop)
            await waiter.wait(left)
