"""What commands with actions share: refusals, numbers on the command line, and looking again and again."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator

__all__ = ["Refused", "positive", "redraws", "seconds", "ticks"]


class Refused(Exception):  # noqa: N818 - never seen outside
    """What cannot be done, in words, and the exit status that says so."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def seconds(text: str) -> float:
    """An interval."""
    value = float(text)
    if not 0.001 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text}: must be from 0.001 to 1000000")
    return value


def positive(text: str) -> int:
    """How many, at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


def redraws() -> bool:
    """Whether standard output is a terminal that may be cleared."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in (None, "dumb")


def ticks(interval: float, count: int | None) -> Iterator[int]:
    """The number of each look, when it is due: from 0 on, `count` times."""
    due, looks = time.monotonic(), 0
    while count is None or looks < count:
        due = max(due + interval, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        yield looks
        looks += 1
