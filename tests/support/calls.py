"""Calls that may wait, in threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from peers import Peer, PeerError

WATCHDOG = 60.0  # seconds


class Call:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:  # noqa: BLE001  raised by result()
            self._error = error

    @property
    def waits(self) -> bool:
        """True if it is still there after it has had time to come to an end."""
        self._thread.join(0.05)
        return self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(WATCHDOG)
        assert not self._thread.is_alive(), f"it waits for more than {WATCHDOG} s"
        if self._error is not None:
            raise self._error
        return self._value


def failure(peer: Peer) -> str:
    """The name of the error that what was sent to the peer has ended with."""
    try:
        value = peer.receive()
    except PeerError as error:
        return error.name
    raise AssertionError(f"no error; it gave {value!r}")
