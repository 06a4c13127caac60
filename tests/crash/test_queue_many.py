"""Many processes and threads at once, tokens, and limits (rows 18, 26, 27 and 29)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
import queuefiles
from peers import Peer

from mmapds import Queue, StaleClaim

ZYGOTE = """
import tempfile, victims
def at_once(count, job):
    reading, go = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        pids = []
        for n in range(count):
            def run():
                os.close(go)
                os.read(reading, 1)  # ends for all of them at the same moment
                with open(f"{folder}/{n}", "w") as answer:
                    answer.write(repr(job(n)))
            pids.append(victims.spawn(run))
        os.close(go)
        os.close(reading)
        assert [victims.finish(pid) for pid in pids] == [0] * count
        return [eval(open(f"{folder}/{n}").read()) for n in range(count)]
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "queue")


def test_r18_64_processes_create_the_queue_at_once(tmp_path: Path) -> None:
    with Peer(ZYGOTE) as zygote:
        zygote(
            """
def job(n):
    with mmapds.Queue(path, codec="raw", segment_size=8192) as q:
        q.put(b"%d" % n + bytes(500))
        with open(path + "/meta", "rb") as file:
            return os.fstat(file.fileno()).st_ino, file.read(48)[32:].hex()
"""
        )
        for n in range(4):
            path = str(tmp_path / f"queue{n}")
            found = zygote("at_once(64, job)", path=path)
            assert len(set(found)) == 1, f"more than one queue was made: {set(found)}"
            queuefiles.check(path, spare=0)
            with Queue(path) as q:
                assert sorted(int(q.get()[:-500]) for _ in range(64)) == list(range(64))
                assert q.qsize() == 0
            assert [name for name in os.listdir(path) if name.startswith(".")] == []
    assert sorted(os.listdir(tmp_path)) == [f"queue{n}" for n in range(4)]


def test_r18_64_processes_take_and_recover_at_once(path: str) -> None:
    """After another boot one recovers, and all find the same; each item goes to one."""
    with Queue(path, codec="raw", segment_size=8192) as q:
        q.put_many([b"%d" % n + bytes(100) for n in range(640)])
        claims = q.claim_many(200)
        assert claims
        content = queuefiles.content(path)
    queuefiles.restore(path, content)
    queuefiles.other_boot(path)
    with Peer(ZYGOTE, path=path) as zygote:
        zygote(
            """
def job(n):
    with mmapds.Queue(path) as q:
        return [int(q.get(timeout=50)[:-100]) for _ in range(10)]
"""
        )
        found = zygote("at_once(64, job)")
    assert sorted(n for one in found for n in one) == list(range(640))
    assert all(one == sorted(one) for one in found), "not in order"
    with Queue(path) as q:
        assert (q.qsize(), q.stats()["recoveries"]) == (0, 1)


def test_r27_threads_of_one_handle(path: str) -> None:
    with Queue(path, codec="raw", segment_size=8192) as q:
        found: list[list[bytes]] = [[] for _ in range(4)]

        def produce(n: int) -> None:
            for k in range(500):
                q.put(b"%d %d" % (n, k))

        def consume(n: int) -> None:
            for k in range(500):
                if k % 2:
                    found[n].append(q.get(timeout=60))
                else:
                    with q.claim(timeout=60) as claim:
                        found[n].append(claim.item)

        threads = [threading.Thread(target=job, args=(n,)) for n in range(4) for job in (produce, consume)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        every = [item for one in found for item in one]
        assert sorted(every) == sorted(b"%d %d" % (n, k) for n in range(4) for k in range(500))
        for one in found:
            for n in range(4):
                mine = [int(item.split()[1]) for item in one if item.startswith(b"%d " % n)]
                assert mine == sorted(mine)
        queuefiles.check(path)


# ---- row 26 --------------------------------------------------------------------------------------------------------


ENDS: dict[str, Callable[[Any], object]] = {
    "ack": lambda claim: claim.ack(),
    "nack": lambda claim: claim.nack(0),
    "bury": lambda claim: claim.bury("x"),
    "touch": lambda claim: claim.touch(5),
    "block": lambda claim: claim.__enter__().__exit__(None, None, None),
}


@pytest.mark.parametrize("end", ENDS)
def test_r26_a_claim_that_was_lost(path: str, end: str) -> None:
    """Its lease ended, and another has the item, or has had it."""
    with Queue(path, codec="raw", lease=0.02) as q, Queue(path) as other:
        for gone in (False, True):
            q.put(b"1")
            claim = q.claim()
            time.sleep(0.04)
            with other.claim(timeout=10) as theirs:
                assert (theirs.item, theirs.attempts, theirs.id) == (b"1", 2, claim.id)
                if gone:
                    theirs.ack()
                with pytest.raises(StaleClaim, match="lease"):
                    ENDS[end](claim)
                if not gone:
                    assert q.stats()["claimed"] == 1, "it took the other's claim away"
                    theirs.ack()
            del claim
            assert q.qsize() == 0
        assert queuefiles.check(path).everything() == []


def test_r26_a_claim_is_ended_once(path: str) -> None:
    with Queue(path, codec="raw") as q:
        for first in ("ack", "nack"):
            for second in ("ack", "nack", "touch", "bury"):
                q.put(b"1")
                claim = q.claim()
                getattr(claim, first)()
                if first == "nack":
                    again = q.claim()
                with pytest.raises(StaleClaim):
                    getattr(claim, second)()
                if first == "nack":
                    again.ack()
                assert q.qsize() == 0


def test_r26_a_reused_entry_does_not_make_an_old_token_good(path: str) -> None:
    with Queue(path, codec="raw") as q, Queue(path) as other:
        q.put(b"1")
        old = q.claim(lease=0.001)
        time.sleep(0.01)
        other.claim(timeout=10).ack()
        q.put(b"2")
        new = q.claim(0)  # the same handle, the same entry
        with pytest.raises(StaleClaim):
            old.ack()
        new.ack()
        with pytest.raises(Empty):
            q.get_nowait()


# ---- row 29 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 40, 55])
def test_r29_large_sequences_and_positions(path: str, bits: int) -> None:
    """A queue that has run for a long time: its numbers are beyond 32 bits."""
    with Queue(path, codec="raw", segment_size=8192) as q:
        q.put(b"0")
        assert q.get() == b"0"
    meta = queuefiles.meta(path)
    number = (1 << min(bits, 45)) + 5
    for name in ("head", "tail"):
        queuefiles.poke_word(meta, queuefiles.WORDS[name], number * 8192 + 4096)
    for name in ("head_sequence", "tail_sequence"):
        queuefiles.poke_word(meta, queuefiles.WORDS[name], (1 << bits) - 3)
    for name in ("fences", "stamps"):
        queuefiles.poke_word(meta, queuefiles.WORDS[name], (1 << 63) - 2)
    with Queue(path) as q:
        q.put_many([b"%d" % n + bytes(500) for n in range(40)])
        assert q.claim(0).id == f"1-{(1 << bits) - 3}"
        claims = q.claim_many(10)
        claims[3].nack(0)
        claims[4].nack(0, to_back=True)
        queuefiles.check(path)
        content = queuefiles.content(path)
        expected = queuefiles.Snapshot(path).everything()
        assert len(list(q)) == 32
    queuefiles.restore(path, content)
    queuefiles.other_boot(path)
    with Queue(path) as q:
        assert [q.get_nowait() for _ in range(40)] == expected
        assert q.qsize() == 0


@pytest.mark.slow
def test_r29_an_item_of_more_than_4_gib(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    size = (4 << 30) + 12345
    memory = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    if free.f_bavail * free.f_frsize < 3 * size or memory < 3 * size:
        pytest.skip("too little room")
    path = str(tmp_path / "queue")
    with Queue(path, codec="raw", segment_size=1 << 20) as q:
        q.put(b"before")
        data = bytearray(size)
        data[::4096] = b"x" * len(data[::4096])
        q.put(data)
        q.put(b"after")
        assert q.get() == b"before"
        with q.claim(0) as claim:
            assert len(claim.item) == size
            assert claim.item == data
        assert q.get() == b"after"
        assert q.stats()["segments"] <= 2
