"""How far something is that takes a while, on standard error: a bar, lines, or nothing.

A bar where rich is installed and standard error is a terminal that allows it, as for tables; plain lines, at most one
a second, on any other terminal; nothing where it is no terminal: a log file has no use for it.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from mmapds.cli.output import _rich_wanted

__all__ = ["Progress"]

_BAR_EVERY, _LINE_EVERY = 0.1, 1.0  # seconds


class Progress:
    """``with Progress(expected) as progress: progress(stage, done, total)``.

    `expected`: how many there will be in a stage that does not know its total.
    """

    def __init__(self, expected: int | None = None) -> None:
        self._expected = expected
        self._stream = sys.stderr
        self._stage = ""
        self._due = 0.0
        self._bar: Any = None
        self._task: Any = None
        self._shown = self._stream.isatty()

    def __enter__(self) -> Self:
        if self._shown and _rich_wanted(self._stream):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description:<5}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Bar(*columns, console=Console(file=self._stream), auto_refresh=False, transient=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with suppress(OSError):  # the terminal is gone: what was asked for is done all the same
                self._bar.stop()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """As `SnapshotMap.build` calls it."""
        if not self._shown:
            return
        now = time.monotonic()
        begins = stage != self._stage
        if not begins and now < self._due:
            return
        self._stage = stage
        total = self._expected if total is None else total
        try:
            if self._bar is not None:
                self._due = now + _BAR_EVERY
                self._draw(stage, done, total, begins=begins)
            else:
                self._due = now + _LINE_EVERY
                self._stream.write(f"{stage} {done:,}{'' if total is None else f' of {total:,}'}\n")
                self._stream.flush()
        except OSError:
            self._shown = False

    def _draw(self, stage: str, done: int, total: int | None, *, begins: bool) -> None:
        if begins:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(stage, total=total)
        self._bar.update(self._task, completed=done, total=total, refresh=True)
