"""Power loss at any store (rows 6, 7, 8, 33): five thousand states of disks, rebuilt from what the real code did.

powerloss_all.py does the same at length. A test cannot show that there is no state that is refuted; that these would
show one is tested too: of each structure some call sites lie, as if they did not sync, and that must be found.
"""

from __future__ import annotations

from collections.abc import Iterator

import powerlog
import pytest
from powerrun import STRUCTURES, Run
from powersites import REDUNDANT, key

STATES = {"Synchronizer": 1700, "Counters": 600, "Queue": 1500, "SnapshotMap": 1200}
LIVES = {
    "Synchronizer": ["life", "first write killed at sync 1", "write killed at sync 3"],
    "Counters": ["life", "a life killed at sync 5", "a life killed at sync 8", "flush"],
    "Queue": ["life", "large", "creation and a put killed at sync 2", "flush"],
    "SnapshotMap": ["life", "build", "process", "a fold killed at sync 6", "its maker killed at sync 7"],
}
LIARS = {
    "Synchronizer": [
        "writer.pyx:sync_range < writer.pyx:write_locked",
        "files.py:sync < _datafiles.py:DataFiles.install",
    ],
    "Counters": ["counter.pyx:reserve", "counters.h:counters_sync < counters.h:counters_create"],
    "Queue": ["queueview.pyx:durable < queueput.pyx:put", "queueput.h:queue_sync_left < queueput.h:queue_put_one"],
    "SnapshotMap": [
        "snaplayer.pyx:sync < _snapcommit.py:Committer.commit",
        "files.py:sync < _snapfiles.py:MapFiles.new_layer",
    ],
}


@pytest.fixture(scope="module", autouse=True)
def shim() -> None:
    try:
        powerlog.shim()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=STRUCTURES)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Lives of one structure, recorded."""
    with Run(request.param) as run:
        run.record(LIVES[request.param], wanders=4, recoveries=2)
        yield run


def test_r06_r07_every_state_of_the_disk_is_recovered(run: Run) -> None:
    wanted = STATES[run.structure]
    found = run.explore(wanted, exhaustive=8, seeded=8, share=0.5, most=8)
    assert found["distinct"] >= wanted, found
    assert found["outcomes"] >= 5, found


def test_r06_a_sync_that_lies_is_found(run: Run) -> None:
    sites = run.sites()
    for liar in LIARS[run.structure]:
        own = [site for site in sites if key(site) == liar]
        assert own, f"{liar} is not among {[*map(key, sites)]}"
        for site in own:
            found, states = run.lie(site)
            assert found, f"{site} did nothing, and none of {states} states shows it"
            assert key(site) not in REDUNDANT
