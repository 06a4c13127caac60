"""Queue: mode="readonly", which never writes, mode="private", a point in time, and what handles end like."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import queuefiles
from peers import Peer

from mmapds import Closed, Counters, Empty, Full, Queue, WriterBusy


@pytest.fixture
def stored(queue_path: str) -> Iterator[str]:
    """Two items wait, one of them has come back; one is delayed; one is dead."""
    with Queue(queue_path, segment_size=8192) as q:
        q.put_many(["gone", "dead", "back", "second"])
        q.put("slow", delay=1000)
        q.get()
        q.claim().bury("why not")
        q.claim().nack(0)
    return queue_path


WRITES = [
    "q.put(1)", "q.put_nowait(1)", "q.put_many([1])", "q.get()", "q.get_nowait()", "q.get_many(1)", "q.claim()",
    "q.claim_many(1)", "next(q.claims())", "q.task_done()", "q.join()", "q.purge()", "q.shutdown()",
    "q.shutdown(immediate=True)", "q.dead.requeue()", "q.dead.purge()", "asyncio.run(q.get_async(timeout=0))",
    "asyncio.run(q.claim_async(timeout=0))",
]  # fmt: skip
READS = [
    "q.peek()", "q.peek_last()", "list(q)", "list(reversed(q))", "q.qsize()", "len(q)", "q.empty()", "q.full()",
    "q.unfinished_tasks", "q.stats()", "q.holders()", "list(q.dead)", "len(q.dead)", "q.flush()", "q.check()",
]  # fmt: skip


# ---- readonly ------------------------------------------------------------------------------------------------------


def test_readonly_refuses_whatever_would_write(stored: str) -> None:
    before = queuefiles.content(stored)
    with Peer("q = mmapds.Queue(path, mode='readonly'); import asyncio", path=stored) as peer:  # it may be a signal
        for call in WRITES:
            name, message = peer.fails(call)
            assert name == "PermissionError", f"{call}: {name} {message}"
            assert "readonly" in message
        assert peer("[list(q), len(q.dead)]") == [["back", "second", "slow"], 1]
    assert queuefiles.content(stored) == before


def test_readonly_shows_everything(stored: str) -> None:
    before = queuefiles.content(stored)
    with Queue(stored, mode="readonly") as q:
        assert (q.peek(), q.peek_last(), list(q)) == ("back", "slow", ["back", "second", "slow"])
        assert (len(q), q.empty(), q.full(), q.unfinished_tasks) == (3, False, False, 3)
        assert q.stats()["dead"] == 1
        [letter] = q.dead
        assert (letter.item, letter.reason) == ("dead", "why not")
        assert repr(q) == f"<Queue {stored} readonly 3 items>"
        q.flush()
        q.flush(wait=False)
    assert queuefiles.content(stored) == before


def test_readonly_sees_what_others_do_at_once(stored: str) -> None:
    with Queue(stored) as q, Queue(stored, mode="readonly") as r:
        for i in range(500):  # across segments
            q.put(i)
            assert r.peek_last() == i
            assert len(r) == i + 4
        assert q.get_many(502) == ["back", "second", *range(500)]
        assert list(r) == ["slow"]
        claims = []
        for i in range(300):  # the index grows
            q.put(i)
            claims.append(q.claim())
        assert (r.stats()["claimed"], len(r)) == (300, 1)
        for claim in claims:
            claim.nack(0)
        assert list(r) == ["slow", *range(300)]
        q.purge()
        assert list(r) == []


def test_readonly_needs_no_permission_to_write(stored: str) -> None:
    for name in os.listdir(stored):
        os.chmod(os.path.join(stored, name), 0o400 if name != "dead" else 0o500)
    os.chmod(stored, 0o500)
    try:
        with Queue(stored, mode="readonly") as q:
            assert list(q) == ["back", "second", "slow"]
    finally:
        os.chmod(stored, 0o700)
        os.chmod(os.path.join(stored, "dead"), 0o700)
        for name in ("meta", "0000000000000001.segment"):
            os.chmod(os.path.join(stored, name), 0o600)


# ---- private -------------------------------------------------------------------------------------------------------


def test_a_private_copy_is_drained_and_the_queue_sees_nothing(stored: str) -> None:
    before = queuefiles.content(stored)
    with Queue(stored, mode="private") as q:
        assert list(q) == ["back", "second", "slow"]
        assert q.get() == "back"
        with q.claim() as claim:
            assert (claim.item, claim.attempts) == ("second", 1)
        assert len(q) == 1
        with pytest.raises(Empty):
            q.get_nowait()
        q.put_many(range(1000))  # segments of its own
        assert q.get_many(600) == list(range(600))
        q.claim().nack(0, to_back=True)
        q.put("last")
        assert list(q) == ["slow", *range(601, 1000), 600, "last"]
        assert q.purge() == 402
        assert (len(q), q.empty()) == (0, True)
        q.flush()
    assert queuefiles.content(stored) == before
    with Queue(stored) as q:
        assert list(q) == ["back", "second", "slow"]


def test_a_private_copy_has_the_attempts_of_returned_items(stored: str) -> None:
    with Queue(stored, mode="private") as q:
        claim = q.claim()
        assert (claim.item, claim.attempts, claim.id) == ("back", 2, "1-2")
    with Queue(stored) as q:
        assert q.claim().attempts == 2


def test_a_private_copy_is_a_point_in_time(queue_path: str) -> None:
    with Queue(queue_path, segment_size=8192) as q:
        q.put_many(range(1000))
        held = q.claim_many(3)
        with Queue(queue_path, mode="private") as copy:
            assert q.get_many(2000) == list(range(3, 1000))  # its segments are gone
            for claim in held:
                claim.ack()
            q.put_many(["new"] * 10)
            assert list(copy) == list(range(3, 1000))
            assert copy.get_many(2000) == list(range(3, 1000))
            assert len(q) == 10


def test_a_private_copy_of_a_queue_with_all_kinds_of_items(queue_path: str) -> None:
    with Queue(queue_path, segment_size=8192) as q:
        q.put_many(range(400))
        claims = q.claim_many(200)
        for claim in claims[:150:3]:
            claim.nack(0)
        for claim in claims[1:150:3]:
            claim.nack(0, to_back=True)
        for claim in claims[2:150:3]:
            claim.nack(1000)
        expected = [value for value in q if value % 3 != 2 or value >= 150]
        with Queue(queue_path, mode="private") as copy:
            assert list(copy) == list(q)
            assert len(copy) == len(q)
            assert copy.get_many(1000) == expected
            assert sorted(copy) == list(range(2, 150, 3))
        assert q.stats()["claimed"] == 50


def test_private_copies_have_nothing_to_do_with_each_other(stored: str) -> None:
    with Queue(stored, mode="private") as a, Queue(stored, mode="private") as b:
        a.put("a")
        b.put("b")
        assert (a.peek_last(), b.peek_last()) == ("a", "b")
        assert (a.get(), b.get()) == ("back", "back")


def test_limits_and_dead_letters_of_a_private_copy(queue_path: str) -> None:
    with Queue(queue_path, 2, max_attempts=1) as q:
        q.put_many(["a", "b"])
        with Queue(queue_path, mode="private") as copy:
            assert copy.full()
            with pytest.raises(Full):
                copy.put_nowait("c")
            copy.claim().nack()
            copy.claim().bury("enough")
            assert (len(copy), copy.unfinished_tasks) == (0, 0)
            copy.put("c")
            assert copy.get() == "c"
        assert (list(q), len(q.dead)) == (["a", "b"], 0)


# ---- populate, flush -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
def test_populate(stored: str, mode: Any) -> None:
    with Queue(stored, mode=mode, populate=True) as q:
        assert list(q) == ["back", "second", "slow"]


@pytest.mark.parametrize("durability", ["process", "power"])
def test_flush(queue_path: str, durability: Any) -> None:
    with Queue(queue_path, segment_size=8192, durability=durability) as q:
        q.flush()
        q.put_many(range(300))
        q.flush()
        q.flush(wait=False)
        assert q.get_many(1000) == list(range(300))
        q.flush()


def test_durability_power(queue_path: str) -> None:
    with Queue(queue_path, segment_size=8192, durability="power", max_attempts=1) as q:
        q.put_many(range(200))
        q.put("one")
        assert q.get_many(150) == list(range(150))
        with q.claim() as claim:
            assert claim.item == 150
        q.claim().bury()
        assert q.get() == 152
        assert q.purge() == 48
        assert q.dead.requeue() == 1
        assert q.get() == 151


# ---- erase ---------------------------------------------------------------------------------------------------------


def test_erase_removes_all_of_it(queue_path: str) -> None:
    with Queue(queue_path, segment_size=8192) as q:
        q.put_many(range(1000))
        q.claim().bury()
    Queue.erase(queue_path)
    assert os.listdir(os.path.dirname(queue_path)) == []
    with pytest.raises(FileNotFoundError):
        Queue.erase(queue_path)
    with Queue(queue_path, maxsize=3) as q:  # another one
        assert (len(q), len(q.dead)) == (0, 0)
    Queue.erase(Path(queue_path))
    assert not os.path.exists(queue_path)


def test_erase_refuses_while_somebody_has_it_open(queue_path: str) -> None:
    with Queue(queue_path) as q:
        q.put(1)
        with pytest.raises(WriterBusy, match="in use") as caught:
            Queue.erase(queue_path)
        assert caught.value.path == queue_path
        assert q.get() == 1
    Queue.erase(queue_path)
    assert not os.path.exists(queue_path)


def test_erase_is_for_queues(tmp_path: Path) -> None:
    Counters(tmp_path / "counters").close()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "meta").write_text("something else")
    for path in ("counters", "folder", "nothing"):
        with pytest.raises((OSError, ValueError)):
            Queue.erase(tmp_path / path)
    assert (tmp_path / "counters").exists()
    assert (tmp_path / "folder" / "meta").read_text() == "something else"


# ---- the end of a handle -------------------------------------------------------------------------------------------


def test_close_is_idempotent_and_final(stored: str) -> None:
    q = Queue(stored)
    assert not q.closed
    q.close()
    q.close()
    assert q.closed
    for call in [*WRITES, *READS, "q.__enter__()"]:
        with pytest.raises(Closed, match="closed"):
            print(call, eval(call, {"q": q, "asyncio": asyncio}))
    assert (q.path, q.mode, q.segment_size) == (stored, "shared", 8192)
    assert repr(q) == f"<Queue {stored} shared closed>"


def test_a_block_closes(queue_path: str) -> None:
    with Queue(queue_path) as q:
        assert q.__enter__() is q
    assert q.closed
    q = Queue(queue_path)
    with pytest.raises(ZeroDivisionError), q:
        raise ZeroDivisionError
    assert q.closed


def test_a_handle_left_open_is_a_resource_warning(queue_path: str) -> None:
    with Queue(queue_path) as other:
        other.put("a")
        q = Queue(queue_path)
        held = [q, q.claim()]
        del q
        with pytest.warns(ResourceWarning, match="unclosed <Queue"):
            held.clear()
        assert other.get_nowait() == "a"


def test_a_handle_that_could_not_be_opened_warns_of_nothing(queue_path: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FileNotFoundError):
            Queue(queue_path, mode="readonly")
        with pytest.raises(ValueError, match="segment_size"):
            Queue(queue_path, segment_size=5)
        gc.collect()


def test_queues_are_not_copied_or_pickled(queue_path: str) -> None:
    with Queue(queue_path) as q:
        for call in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="open the path once more"):
                call(q)


def test_check_finds_nothing(stored: str) -> None:
    for mode in ("shared", "readonly"):
        with Queue(stored, mode=mode) as q:  # type: ignore[arg-type]
            q.check()


def test_a_queue_has_no_attributes_of_its_users(queue_path: str) -> None:
    with Queue(queue_path) as q, pytest.raises(AttributeError):
        q.typo = 1  # type: ignore[attr-defined]
