"""Queues in the children of forks, and descriptors of their files that are closed (rows 22 and 23)."""

from __future__ import annotations

import os
from pathlib import Path
from queue import Empty

import pytest
import queuefiles
from peers import Peer

from mmapds import Queue


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "queue")
    with Queue(path, codec="raw", segment_size=8192) as q:
        q.put_many([b"%d" % n for n in range(10)])
    return path


# in_child(job) -> what it returned: runs it in a forked child, which ends without collecting anything.
FORK = """
import gc, pickle, traceback, warnings
def in_child(job, end=True):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            found = job()
        except BaseException as error:
            found = f"{type(error).__name__}: {error}"
        os.write(writing, pickle.dumps(found))
        os.close(writing)
        if not end:
            signal.pause()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        data = file.read() if end else pickle.load(file)
    if end:
        os.waitpid(pid, 0)
        return pickle.loads(data)
    return data, pid
q = mmapds.Queue(path)
"""


def test_r22_a_claim_of_the_parent_is_not_the_childs(path: str) -> None:
    with Peer(FORK, path=path) as peer, Queue(path) as other:
        peer("c = q.claim(0)")
        for call in ("ack()", "nack()", "nack(5, to_back=True)", "bury('x')", "touch(5)", "touch()"):
            assert peer(f"in_child(lambda: c.{call})").startswith("ForkedHandle"), call
            assert other.qsize() == 9
            assert other.stats()["claimed"] == 1
        peer("c.ack()")
        assert other.get() == b"1"


def test_r22_the_end_of_a_child_harms_nothing(path: str) -> None:
    """Collecting, closing, leaving a block: the claims stay the parent's."""
    with Peer(FORK, path=path) as peer, Queue(path) as other:
        peer("c, d, e = q.claim_many(3)")
        for job in (
            "globals().pop('c') and gc.collect()",
            "q.close()",
            "(q.close(), gc.collect())",
            "c.__exit__(None, None, None)",
            "c.__exit__(ValueError, ValueError('x'), None)",
            "globals().pop('q') and gc.collect()",
            "None",
        ):
            found = peer(f"in_child(lambda: {job})")
            assert not isinstance(found, str), f"{job}: {found}"
            assert other.stats()["claimed"] == 3, f"after {job}: {queuefiles.state(path)}"
            assert other.qsize() == 7
        peer("c.ack(); d.nack(0); e.ack()")
        assert other.get() == b"1"
        assert other.get() == b"3"
        queuefiles.check(path)


def test_r22_a_child_takes_part_as_itself(path: str) -> None:
    with Peer(FORK, path=path) as peer, Queue(path) as other:
        assert peer("q.get()") == b"0"
        peer("c = q.claim(0)")
        assert peer("in_child(lambda: (q.get(), q.put(b'child'), q.qsize(), q.task_done()))") == (b"2", None, 8, None)
        assert peer("in_child(lambda: q.claim(0).item)") == b"3"  # dies with it
        assert other.claim(0).item == b"3"
        assert peer("in_child(lambda: in_child(lambda: q.get()))") == b"3"
        holders = other.holders()
        assert sum(holder["claimed"] for holder in holders) == 1, holders
        peer("c.ack(); q.task_done()")
        assert peer("q.get()") == b"4"
        queuefiles.check(path)


def test_r22_claims_come_back_when_the_parent_dies_and_the_child_lives(path: str) -> None:
    with Peer(FORK, path=path) as peer, Queue(path) as other:
        peer("c = q.claim(0)")
        _, child = peer("in_child(lambda: None, end=False)")
        _, user = peer("in_child(lambda: q.claim(0).item and q.qsize(), end=False)")
        try:
            peer.kill()
            with other.claim(timeout=60) as claim:
                assert (claim.item, claim.attempts) == (b"0", 2)
        finally:
            os.kill(child, 9)
            os.kill(user, 9)
        found = [other.get(timeout=60) for _ in range(9)]
        assert sorted(found) == [b"%d" % n for n in range(1, 10)]
        queuefiles.check(path)


def test_r22_a_fork_in_the_middle_of_what_another_thread_does(path: str) -> None:
    """Children of a process whose threads put and take all the while can use the queue."""
    with Peer(FORK, path=path) as peer, Queue(path) as other:
        peer(
            """
import threading
stop = False
def work():
    while not stop:
        q.put(b"w")
        with q.claim(): pass
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
"""
        )
        for _ in range(15):
            found = peer("signal.alarm(100); in_child(lambda: (q.put(b'c'), q.get(timeout=50), q.task_done()))")
            assert found[0] is None, found
        peer("stop = True\nfor thread in threads: thread.join()")
        assert other.qsize() == 10
        queuefiles.check(path)


def test_r23_other_descriptors_of_the_same_files_may_be_closed(path: str) -> None:
    """Locks must not go with them: a claim is lost only when its handle ends."""
    with Queue(path) as q, Queue(path) as other:
        claim = q.claim(0)
        for name in os.listdir(path):
            with open(os.path.join(path, name), "rb"):
                pass
            os.close(os.open(os.path.join(path, name), os.O_RDWR))
        with Queue(path) as third:
            third.claim(0).nack(0)
        with Queue(path, mode="readonly"), Queue(path, mode="private"):
            pass
        assert [other.get_nowait() for _ in range(9)] == [b"%d" % n for n in range(1, 10)]
        with pytest.raises(Empty):
            other.get_nowait()
        claim.ack()
        with Peer("q = mmapds.Queue(path)", path=path) as peer:
            assert peer("q.qsize(), q.stats()['deaths']") == (0, 0)
