"""No memory for the native code's own allocations (row 28): `MemoryError`, nothing is lost, and all goes on.

`test_..._memory_error_at_each_allocation` of each structure does this for what Python allocates; here it is malloc.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import Peer

SETUP = """
import ctypes, gc
library = ctypes.CDLL(None)

def starve(at, prepare, job):
    scope = {"mmapds": mmapds, "path": path}
    exec(prepare, scope)
    library.nomem_arm(at)
    try:
        exec(job, scope)
        outcome = "finished"
    except MemoryError:
        outcome = "failed"
    calls = library.nomem_arm(0)
    if outcome == "failed":
        exec(job, scope)  # all is as it was, so it can be done now
    return outcome, calls, repr(scope.get("found"))
"""

BUILT = """
import shutil; shutil.rmtree(path, ignore_errors=True)
mmapds.SnapshotMap.build(path, {str(n): n for n in range(500)})
"""
CHANGED = (
    BUILT
    + """
m = mmapds.SnapshotMap(path)
f = mmapds.SnapshotMap(path, mode="readonly")
for n in range(300):
    with m.transaction() as t: t[f"new {n}"] = -n; del t[str(n)]
"""
)
CASES = {
    "queue put_many": ("q = mmapds.Queue(path); q.purge()", "q.put_many(range(50)); found = q.qsize()"),
    "queue get_many": (
        "q = mmapds.Queue(path); q.purge(); q.put_many(range(50)); found = []",
        "while len(found) < 20: found += q.get_many(20 - len(found))",
    ),
    "queue verify": (
        "import mmapds.inspection as i; q = mmapds.Queue(path); q.purge(); q.put(1); c = q.claim()",
        "found = i.verify(path)",
    ),
    "map build": ("", BUILT + "with mmapds.SnapshotMap(path) as m: found = len(m), m['7']"),
    "map open": (CHANGED, "with mmapds.SnapshotMap(path, verify=True) as m: found = len(m), m['400']"),
    "map commit": (
        BUILT + "m = mmapds.SnapshotMap(path)",
        "with m.transaction() as t:\n    for n in range(600): t[str(n)] = -n\nfound = len(m), m['7']",
    ),
    "map iterate": (CHANGED, "found = list(m.items())"),
    "map compact": (CHANGED, "m.compact(); found = list(m.items())"),
    "map follow": (CHANGED, "f.refresh(); found = list(f.items())"),
}


@pytest.fixture(scope="module")
def peer(nomem: str) -> Iterator[Peer]:
    with Peer(env={"LD_PRELOAD": nomem}) as peer:
        yield peer


@pytest.mark.parametrize("case", CASES)
def test_r28_no_memory_for_each_native_allocation(peer: Peer, case: str, tmp_path: Path) -> None:
    prepare, job = CASES[case]
    peer(SETUP, path=str(tmp_path / "it"))
    starve = "starve(at, prepare, job)"
    outcome, calls, expected = peer(starve, at=0, prepare=prepare, job=job)
    assert outcome == "finished"
    assert calls > 0 or case == "queue verify", "it allocates nothing by itself"
    for at in range(1, calls + 1):  # it may also do without, with less at a time
        outcome, _, found = peer(starve, at=at, prepare=prepare, job=job)
        assert found == expected, f"allocation {at} of {calls} {outcome}: {os.listdir(tmp_path)}"
