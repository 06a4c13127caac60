"""The fourth part of the demo: the table as a map that processes look names up in, while another changes it and is killed.

An editor commits one revision after the other. It is stopped in the middle of a commit: what it changes lies in the
file, and no version counts it. So it is left for a moment, in which the lookups go on and a second editor finds the
place taken, and killed; the second one has the place at once. At the end the whole map is compared with what it must be
after the last revision, and the revisions in it with those that the editors said they had committed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from mmapds import SnapshotMap, inspection
from mmapds.demo.cast import Cast, Worker
from mmapds.demo.names import REVISION, Names

_PATIENCE = 2.0  # seconds to stop an editor in the middle of a commit: at most


def play(path: str, seconds: float, count: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Plays this part in about so many seconds and returns what came of it."""
    names = Names()
    begin = time.monotonic()
    entries = SnapshotMap.build(path, names.items())
    building = time.monotonic() - begin
    with Cast(path, Worker) as cast:
        found = _play(cast, seconds, count, progress)
    with SnapshotMap(path, mode="readonly") as m:
        last, editor = m[REVISION]
        apart = dict(m).items() ^ () if False else _differences(m, dict(names.items(last, editor)))
    findings = inspection.verify(path)
    return {}
