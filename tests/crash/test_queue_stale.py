"""Claims that were lost, in other processes (row 26): whoever comes back with one is told, and changes nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmapds import Queue

HOLDER = """
    q = mmapds.Queue(sys.argv[1])
    claim = q.claim(lease=0.05)
    say(claim.id, claim.attempts)
    hear()
    try:
        eval(sys.argv[2])
        say("done")
    except mmapds.StaleClaim as error:
        say("stale", claim.id in str(error), claim.active)
    q.close()
"""
ENDS = ["claim.ack()", "claim.nack()", "claim.nack(to_back=True)", "claim.bury('late')", "claim.touch(100)"]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "queue")


@pytest.mark.parametrize("end", ENDS)
def test_r26_a_process_that_was_stopped_comes_back_with_an_old_claim(
    start: Callable[..., Any], path: str, end: str
) -> None:
    """Its lease is over, another one has the item: that one's claim stays whole."""
    with Queue(path, segment_size=8192) as q:
        q.put("item")
        holder = start(HOLDER, path, end)
        holder.expect("1-0 1")
        holder.signal(signal.SIGSTOP)
        claim = q.claim(timeout=100)
        assert (claim.id, claim.attempts) == ("1-0", 2)
        holder.signal(signal.SIGCONT)
        assert holder.ask() == "stale True False"
        assert holder.finish() == ""
        assert (q.qsize(), len(q.dead), q.stats()["claimed"]) == (0, 0, 1), q.stats()
        claim.ack()
        assert q.unfinished_tasks == 0, q.stats()


@pytest.mark.parametrize("end", ENDS)
def test_r26_an_old_claim_of_an_item_that_is_done(start: Callable[..., Any], path: str, end: str) -> None:
    """The entry that it names may be another item's by now, which the same process may even have claimed."""
    with Queue(path, segment_size=8192) as q:
        q.put("first")
        holder = start(HOLDER, path, end)
        holder.expect("1-0 1")
        q.claim(timeout=100).ack()
        q.put("second")
        claim = q.claim(timeout=0)
        assert claim.id == "1-1"
        assert holder.ask() == "stale True False"
        assert holder.finish() == ""
        assert (q.stats()["claimed"], len(q.dead)) == (1, 0), q.stats()
        claim.ack()
        assert q.unfinished_tasks == 0, q.stats()


def test_r26_the_holder_has_claimed_the_same_item_again(path: str) -> None:
    """Two claims of one item in one handle: the fence tells them apart."""
    with Queue(path, segment_size=8192) as q:
        q.put("item")
        old = q.claim(lease=0.01)
        new = q.claim(timeout=100)
        assert (old.id, old.attempts, new.attempts) == (new.id, 1, 2)
        with pytest.raises(RuntimeError, match="was lost"):
            old.ack()
        assert q.stats()["claimed"] == 1, q.stats()
        new.ack()
        assert q.unfinished_tasks == 0, q.stats()
