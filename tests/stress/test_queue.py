"""Histories of queues whose producers and consumers die all the while: nothing lost, nothing twice, in order."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import queuefiles
from peers import Peer, PeerError

from mmapds import Queue


@pytest.fixture
def folder() -> Iterator[str]:
    """In memory, where everything is fastest."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="mmapds-queue-", dir=memory) as folder:
        yield folder


def history(folder: str, items: int, pause: float, **options: Any) -> dict[str, int]:
    path, logs = f"{folder}/queue", f"{folder}/logs"
    os.mkdir(logs)
    Queue(path, codec="raw", segment_size=8192, **options).close()
    with Peer("import queuehistory", path=path, logs=logs) as peer:
        peer.send("queuehistory.History(path, logs).run(items, pause)", items=items, pause=pause)
        try:
            found: dict[str, int] = peer.receive(3600)
        except PeerError as error:
            raise AssertionError(f"{error}\n{peer.stderr()}\n{queuefiles.state(path)}") from None
    print(found)
    with Queue(path) as q:
        assert q.qsize() == 0
        q.put(b"last")
        assert q.get() == b"last"
    # Who made a segment that others did not need may have died each time.
    assert queuefiles.check(path, str(found), spare=found["producers"]).everything() == []
    return found


OPTIONS: list[dict[str, Any]] = [{}, {"maxsize": 64}, {"max_bytes": 20_000}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_r02_r03_a_history_with_deaths(folder: str, options: dict[str, Any]) -> None:
    """About 100,000 operations in all."""
    found = history(folder, 35_000, 0.01, **options)
    assert found["acked"] > 500, found
    assert found["got"] > 500, found
    assert found["claimers"] > 3, found


@pytest.mark.stress
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_r02_r03_a_million_operations_with_deaths(folder: str, options: dict[str, Any]) -> None:
    found = history(folder, 500_000, 0.02, **options)
    assert found["got"] + found["acked"] > 450_000, found
