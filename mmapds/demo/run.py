"""The director of the demo: where it plays, its four parts, and that nothing is left of them."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from mmapds.demo import count, lookup, publish, work

_SHM = "/dev/shm"
_ENOUGH = 128 << 20  # bytes: the files take about 16 MB, and the map up to 60
_READING, _COUNTING, _WORKING = 0.5, 0.15, 0.15  # of the time; the rest is for the lookups


def run(seconds: float, workers: int, directory: str | None, progress: Callable[[str], None]) -> dict[str, Any]:
    """Runs the demo and returns what came of it. Everything it made is gone afterwards, also after Ctrl-C."""
    with (
        _ended_by_signals(),
        tempfile.TemporaryDirectory(prefix="mmapds-demo-", dir=directory or _default_directory()) as folder,
    ):
        published = publish.play(f"{folder}/unicode", _READING * seconds, workers, progress)
        counted = count.play(f"{folder}/letters", _COUNTING * seconds, workers, progress)
        worked = work.play(f"{folder}/jobs", _WORKING * seconds, workers, progress)
        left = (1 - _READING - _COUNTING - _WORKING) * seconds
        looked = lookup.play(f"{folder}/names", left, workers, progress)
    return {"directory": folder, **published, "counters": counted, "queue": worked, "snapshot": looked}


def _default_directory() -> str | None:
    """/dev/shm if there is room in one; else what `tempfile` takes."""
    try:
        free = os.statvfs(_SHM)
    except OSError:
        return None
    return _SHM if os.access(_SHM, os.W_OK) and free.f_bavail * free.f_frsize >= _ENOUGH else None


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as an exception does, so that it cleans up."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
