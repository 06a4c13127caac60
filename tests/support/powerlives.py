"""Lives of files that are recorded for the power-loss simulator (powerlog.py): the real code, in processes of its own.

Each life is a function of a `Stage` (powerstage.py), in a file for each structure (powersync.py, powercounters.py,
powerqueue.py, powermap.py). Between steps it says what must be found if the power goes from there on, in the terms of
powerchecks.py. Three kinds: lives from the creation on, with all that makes files grow, be replaced, or be removed; the
same with a process killed before each of its syncs, and a successor, who must make durable what he builds on; and lives
that begin with what a power cut has left, so that it goes in a recovery.

Runs inside a process that has ``storeshim.c`` preloaded: ``import powerlives``.
"""

from __future__ import annotations

import gc
import random
from typing import Any

import powercounters  # noqa: F401  its lives enter themselves
import powermap  # noqa: F401  its lives enter themselves
import powerqueue  # noqa: F401  its lives enter themselves
import powersync  # noqa: F401  its lives enter themselves
from powerlog import Files, Recording
from powerstage import FIRST_BOOT, LIVES, RECOVERIES, SECOND_BOOT, WANDERS, Stage, settle_down


def record(structure: str, base: str, names: list[str] | None, wanders: list[int]) -> list[Recording]:
    """The lives of a structure (None: all), and so many by chance. Those whose number is behind the last sync are left
    out."""
    settle_down(FIRST_BOOT)
    gc.collect()
    found = []
    lives = LIVES[structure] if names is None else {name: LIVES[structure][name] for name in names}
    for name, function in lives.items():
        stage = Stage(base, f"{structure}: {name}")
        if function(stage) is not False:  # of those that are killed: it came to that sync
            found.append(stage.recording())
    for seed in wanders:
        stage = Stage(base, f"{structure}: by chance, {seed}")
        WANDERS[structure](stage, random.Random(seed))
        found.append(stage.recording())
    return found


def record_recoveries(structure: str, base: str, starts: list[tuple[str, Files, dict[str, Any]]]) -> list[Recording]:
    """Lives that begin with what a power cut has left, in the next boot."""
    settle_down(SECOND_BOOT)
    found = []
    for name, files, expected in starts:
        stage = Stage(base, f"{structure}: recovery of {name}", files)
        stage.expect(**expected)
        RECOVERIES[structure](stage)
        found.append(stage.recording())
    return found
