"""Waiting for a queue in asyncio: one thread for each queue and event loop, which only signals.

The thread sleeps on the queue's futex and, when there may be something, wakes the first coroutine that waits; that one
takes the item in its own step. So a cancelled coroutine has taken nothing, and an item is never on its way between a
thread and a coroutine. The thread ends when nobody has waited for a second.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmapds.queue import Queue

_IDLE = 1.0  # seconds without a waiter after which the thread ends
_SLICE = 0.5


class Waiter:
    """For one queue and one loop."""

    __slots__ = ("_loop", "_looked", "_queue", "_thread", "_waiting", "_wanted")

    def __init__(self, queue: Queue, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = queue
        self._loop = loop
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._wanted = threading.Event()  # somebody waits
        self._looked = threading.Event()  # who was woken has looked
        self._thread: threading.Thread | None = None

    async def wait(self, timeout: float | None) -> None:
        """Returns when there may be something to take, or after `timeout` seconds."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(future)
        self._looked.set()
        self._wanted.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="mmapds-queue", daemon=True)
            self._thread.start()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await future
        finally:
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
        while self._wanted.wait(_IDLE):
            try:
                something = self._queue._wait_item(_SLICE)
            except Exception:  # noqa: BLE001  closed, forked, damaged: who waits finds out when he looks
                something = True
            if something:
                self._looked.clear()
                try:
                    self._loop.call_soon_threadsafe(self._signal)
                except RuntimeError:  # the loop is closed
                    return
                self._looked.wait(_SLICE)
