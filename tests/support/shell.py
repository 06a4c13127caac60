"""The command line for tests: as a program of its own, or in this process, which is faster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import pytest

from mmapds import cli

COMMAND = [sys.executable, "-W", "error", "-m", "mmapds"]
WATCHDOG = 120.0  # seconds


class Said(NamedTuple):
    """Exit status, standard output, standard error."""

    status: int
    out: str
    err: str


Run: TypeAlias = Callable[..., Said]


def shell(*words: object, env: dict[str, str] | None = None) -> Said:
    """Runs ``mmapds ...`` as a program."""
    command = [*COMMAND, *map(str, words)]
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(command, capture_output=True, timeout=WATCHDOG, env=environment, check=False)
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


def in_process(capsys: pytest.CaptureFixture[str], *before: str) -> Run:
    """Does the same in this process; `before` stands before all words."""

    def here(*words: object) -> Said:
        try:
            status: Any = cli.main([*before, *map(str, words)])
        except SystemExit as end:
            status = end.code
        return Said(status, *capsys.readouterr())

    return here
