"""Cheap processes to kill: a peer that has imported everything forks them; each opens what it needs by itself.

A victim shares no handle, lock or mapping with anybody: it is as unrelated as a fresh interpreter, and a hundred times
cheaper. Used inside a peer: ``import victims``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

import mmapds

FOLDER = os.path.dirname(mmapds.__file__)


def pattern(n: int, size: int = 64) -> bytes:
    """A value that says which version it belongs to, all over."""
    return n.to_bytes(8, "little") * (size // 8)


def number(data: Any) -> int:
    """The version that a pattern belongs to; -1 if it is made of two."""
    content = bytes(data)
    return int.from_bytes(content[:8], "little") if content == content[:8] * (len(content) // 8) else -1


def synchronizer(path: str, versions: int = 1, **options: Any) -> None:
    """Makes one, with so many versions."""
    with mmapds.Synchronizer(path, codec="raw", **options) as s:
        for n in range(1, versions + 1):
            s.write_bytes(pattern(n))


def spawn(job: Callable[[], object]) -> int:
    """Runs `job` in a new process; returns its pid."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            job()
            status = 0
        except BaseException:  # noqa: BLE001  it must not return into the code of the peer
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def end(pid: int, after: float = 0.0) -> int:
    """Waits, kills, and returns the exit status (-9: it lived until then)."""
    if after:
        time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def at_line(count: int, action: Callable[[], object]) -> None:
    """From now on, runs `action` before line number `count` (from 0) of the package's Python code is executed."""
    left = count

    def line(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if event == "line":
            if left == 0:
                sys.settrace(None)
                action()
            left -= 1
        return line

    def call(frame: FrameType, event: str, argument: object) -> Any:
        return line if frame.f_code.co_filename.startswith(FOLDER) else None

    sys.settrace(call)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at_line(count: int, job: Callable[[], object]) -> int:
    """Runs `job` in a process that is killed before that line; the exit status: 0 if it ended before."""

    def run() -> None:
        at_line(count, die)
        try:
            job()
        finally:
            sys.settrace(None)

    return finish(spawn(run))
