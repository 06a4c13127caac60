"""Queues whose files are cut, removed or replaced under those who have them mapped (rows 9 and 19)."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from queue import Empty

import pytest
import queuefiles
from peers import Peer, PeerError

from mmapds import CorruptionError, MappingLost, MmapdsError, Queue

SEGMENT = 8192


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Four segments of three items each."""
    path = str(tmp_path / "queue")
    with Queue(path, codec="raw", segment_size=SEGMENT) as q:
        q.put_many([item(n) for n in range(12)])
    return path


def item(n: int) -> bytes:
    return b"%03d" % n + bytes(1000)


OPEN = "from queue import Empty; q = mmapds.Queue(path); c = q.claim(); q.put(b'x'); q.qsize()"
CALLS = [
    "q.get_nowait()", "q.claim(0)", "q.put(b'1')", "q.put_many([b'1', b'2'])", "q.get_many(3, timeout=0)", "q.qsize()",
    "len(q)", "q.empty()", "c.ack()", "c.nack()", "c.touch(5)", "list(q)", "q.peek()", "q.peek_last()", "q.stats()",
    "q.unfinished_tasks", "q.join(0.01)", "q.task_done()", "q.shutdown()", "q.holders()",
]  # fmt: skip


def outcome(peer: Peer, code: str) -> str:
    try:
        peer(f"{code} and None")
    except PeerError as error:
        return error.name
    return ""


@pytest.mark.parametrize("size", [0, 4096, 8192, *(pytest.param(n, marks=pytest.mark.slow) for n in (40_000, 81_920))])
def test_r09_meta_is_cut(path: str, size: int) -> None:
    """The operation in hand or the next says so; from then on every one does; and another queue goes on."""
    content = queuefiles.content(path)
    with Peer() as peer, Queue(path + "-healthy") as healthy:
        for first in CALLS if size == 4096 else CALLS[:5]:
            queuefiles.restore(path, content)
            peer(OPEN, path=path)
            os.truncate(queuefiles.meta(path), size)
            found = [outcome(peer, code) for code in (first, "q.put(b'1')", "q.get_nowait()", "q.claim(0)")]
            assert found[-1] == "MappingLost", f"{first}: {found}"
            assert set(found) <= {"", "MappingLost", "StaleClaim", "ValueError", "ShutDown"}, f"{first}: {found}"
            for code in CALLS:
                name = outcome(peer, code)
                assert name in ("MappingLost", "StaleClaim", "CorruptionError", "ShutDown"), (
                    f"{code} after {first}: {name}"
                )
            peer("c = None; q.close()")
            assert os.path.getsize(queuefiles.meta(path)) == size, "somebody made it longer"
            healthy.put(1)
            assert healthy.get() == 1


@pytest.mark.parametrize("size", [0, 4096, 5000])
def test_r09_the_segment_of_the_head_is_cut(path: str, size: int) -> None:
    """Only what was in it is lost; this process, and others, go on behind it."""
    with Peer(OPEN, path=path) as peer, Queue(path) as other:
        assert other.get() == item(1)
        os.truncate(queuefiles.segment(path, 1), size)
        names = [outcome(peer, "q.get()") for _ in range(4)]
        assert set(names) & {"MappingLost", "CorruptionError"}, names
        found = []
        for _ in range(30):
            try:
                found.append(other.get_nowait())
            except Empty:
                break
            except (MappingLost, CorruptionError):
                continue
        with Queue(path) as new:
            for _ in range(30):
                try:
                    found.append(new.get_nowait())
                except Empty:
                    break
                except MmapdsError:
                    continue
            new.put(b"new")
            assert new.get() == b"new"
        taken = names.count("")
        behind = [item(n) for n in range(3, 12)] + [b"x"]
        assert found[-1] == b"x"
        assert len([one for one in found if one in behind]) + taken >= len(behind), (names, len(found))


def test_r09_the_segment_of_the_tail_is_cut_while_somebody_puts(path: str) -> None:
    with Peer(OPEN, path=path) as peer, Queue(path) as other:
        last = max(queuefiles.segments(path))
        peer("q.put(b'1')")
        os.truncate(queuefiles.segment(path, last), 4096)
        assert outcome(peer, "[q.put(b'2') for _ in range(3)]") == "MappingLost"
        assert [other.get() for _ in range(8)] == [item(n) for n in range(1, 9)], "what is whole is whole"


def test_r09_cut_while_threads_work(path: str) -> None:
    with Peer(
        """
import threading
q = mmapds.Queue(path)
found = []
def work():
    try:
        while True:
            q.put(b"1" * 100)
            with q.claim(): pass
    except (mmapds.MappingLost, mmapds.CorruptionError) as error:
        found.append(type(error).__name__)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
""",
        path=path,
    ) as peer:
        time.sleep(0.1)
        os.truncate(queuefiles.meta(path), 4096)
        peer("for thread in threads: thread.join()")
        assert peer("found") == ["MappingLost"] * 4
        peer("q.close()")


def test_r09_who_waits_is_told(path: str) -> None:
    with Peer("q = mmapds.Queue(path); [q.get() for _ in range(12)] and None", path=path) as peer:
        peer.send("q.get(timeout=100)")
        time.sleep(0.1)
        os.truncate(queuefiles.meta(path), 0)
        with pytest.raises(PeerError, match="MappingLost"):
            peer.receive()


def test_r09_a_reader(path: str) -> None:
    with Queue(path, mode="readonly") as q, Queue(path, mode="private") as p:
        assert len(list(q)) == len(list(p)) == 12
        os.truncate(queuefiles.segment(path, 2), 4096)
        for one in (q, p):
            try:
                found = list(one)
            except (MappingLost, CorruptionError):
                continue
            assert item(3) not in found
            assert item(0) in found
        os.truncate(queuefiles.meta(path), 4096)
        with contextlib.suppress(MappingLost):
            q.qsize()
        with pytest.raises((MappingLost, CorruptionError)):
            q.stats()


# ---- row 19 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["removed", "replaced", "meta replaced"])
def test_r19_the_path_is_another_queue_by_now(path: str, how: str) -> None:
    """It is said at the next operation that opens or makes a file, or that takes a check of the path."""
    with Queue(path) as q:
        assert q.get() == item(0)
        if how == "meta replaced":
            with Queue(path + "-other", codec="raw", segment_size=SEGMENT) as other:
                other.put(b"other")
            os.replace(queuefiles.meta(path + "-other"), queuefiles.meta(path))
        else:
            shutil.rmtree(path)
        if how == "replaced":
            with Queue(path, codec="raw", segment_size=SEGMENT) as other:
                other.put(b"other")
        found, errors = [], []
        for _ in range(20):
            try:
                found.append(q.get_nowait())
            except Empty:
                break
            except (OSError, MmapdsError) as error:
                errors.append(str(error))
                break
        assert b"other" not in found
        assert errors, found
        assert any(word in errors[0] for word in ("replaced", "removed", "another", "gone", "missing")), errors
        with pytest.raises((OSError, MmapdsError)):
            q.put_many([bytes(1000)] * 20)
        with pytest.raises((OSError, MmapdsError)):
            q.flush()
    if how == "replaced":
        with Queue(path) as q:
            assert q.get() == b"other"
            assert q.qsize() == 0
