"""Queues on another boot, and copies of their files (rows 8, 24 and 25)."""

from __future__ import annotations

import os
import pickle
import random
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
import queuefiles
from peers import Peer
from queueitems import drain

from mmapds import Queue, StaleClaim

SEGMENT = 8192
Items = list[bytes]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "queue")


def make(path: str, **options: Any) -> Queue:
    return Queue(path, codec="raw", segment_size=SEGMENT, **options)


def crowd(q: Queue, n: int = 300) -> tuple[Items, list[Any]]:
    """Everything at once, over several segments: what is there, in order, all claims returned; and the claims."""
    for i in range(n):
        q.put(b"%d" % i + bytes(i % 50))
    for _ in range(n // 10):
        q.get()
    claims = q.claim_many(n // 2)
    for i, claim in enumerate(claims):
        if i % 3 == 0:
            claim.ack()
        elif i % 10 == 1:
            claim.nack(0)
        elif i % 10 == 2:
            claim.nack(0, to_back=True)
        elif i % 10 == 4:
            claim.touch(1000)
    q.put(b"last")
    return queuefiles.Snapshot(q.path).everything(), [claim for claim in claims if claim.active]


def test_r24_another_boot_keeps_what_was_put_and_forgets_who_held_it(path: str) -> None:
    with make(path) as q:
        expected, claims = crowd(q)
        before = q.stats()
        with pytest.raises(Exception, match=r"in use|uses"):
            Queue.erase(path)
        content = queuefiles.content(path)
        assert claims
    for where in (path, path + "-copy"):
        queuefiles.restore(where, content)
        queuefiles.other_boot(where)
        with Queue(where) as q:
            stats = q.stats()
            assert stats["items"] == len(expected), f"{stats}; {queuefiles.state(where)}"
            assert (stats["claimed"], stats["epoch"]) == (0, before["epoch"] + 1)
            assert (stats["cut"], stats["set_aside"], stats["put"]) == (0, 0, before["put"])
            assert q.holders() == []
            found = queuefiles.check(where, spare=0)
            assert found.everything() == expected
            assert drain(q) == expected
            q.put(b"more")
            assert q.claim().id == f"{before['epoch'] + 1}-{before['put']}", "identities must never be given twice"


def test_r24_attempts_survive(path: str) -> None:
    with make(path) as q:
        q.put(b"failing")
        for n in range(3):
            with q.claim() as claim:
                assert claim.attempts == n + 1
                claim.nack(0)
        held = q.claim()
        name = held.id
        queuefiles.other_boot(path)
    queuefiles.other_boot(path)
    with Queue(path) as q, q.claim(0) as claim:
        assert (claim.attempts, claim.id, claim.item) == (5, name, b"failing")


def test_r24_a_copy_is_taken_while_others_work(path: str, tmp_path: Path) -> None:
    """Whatever a copy has caught, it opens, and holds what was put before and not taken."""
    with make(path) as q:
        for n in range(50):
            q.put(b"always %d" % n)
        with Peer("import itertools; q = mmapds.Queue(path)", path=path) as peer:
            peer.send(
                """
for n in itertools.count():
    q.put(b"%d" % n)
    with q.claim() as claim:
        if claim.item.startswith(b"always"):
            claim.nack(0, to_back=True)
"""
            )
            for n in range(15):
                time.sleep(0.01)
                copy = tmp_path / f"copy{n}"
                queuefiles.restore(copy, content_somehow(path))
                with Queue(copy) as other:
                    found = drain(other)
                    assert all(item.startswith(b"always") or item.isdigit() for item in found), found
                    other.put(b"x")
                    assert other.get() == b"x"
            peer.kill()
        always = {b"always %d" % n for n in range(50)}
        assert always <= set(drain(q)), "the queue itself has lost something"


def content_somehow(path: str) -> dict[str, bytes]:
    found = {}
    for name in os.listdir(path):
        try:
            found[name] = Path(path, name).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            continue
    return found


def test_r24_nobody_resets_those_who_are_alive(path: str) -> None:
    """Two containers on one volume may have boot ids of their own."""
    with make(path) as q:
        q.put(b"1")
        q.put(b"2")
        claim = q.claim()
        with Peer("q = mmapds.Queue(path)", path=path) as peer:
            for _ in range(3):
                queuefiles.other_boot(path)
                assert peer("q.close(); q = mmapds.Queue(path); q.qsize()") == 1
                with Queue(path, mode="readonly") as looking:
                    assert list(looking) == [b"2"]
            claim.ack()
            assert q.stats()["epoch"] == 1
            assert peer("q.get()") == b"2"


def test_r24_what_was_claimed_before_the_boot_is_stale_for_a_handle_that_sleeps_through_it(path: str) -> None:
    with make(path) as q:
        q.put(b"1")
        claim = q.claim(lease=0.001)
        time.sleep(0.01)
        with Queue(path) as other:
            assert other.get() == b"1"
        with pytest.raises(StaleClaim):
            claim.ack()


# ---- row 25 --------------------------------------------------------------------------------------------------------


def test_r25_what_is_left_of_a_delay(path: str) -> None:
    with make(path) as q:
        q.put(b"short", delay=0.3)
        q.put(b"long", delay=1000)
        q.put(b"now")
        q.claim().nack(0.3)
        q.put(b"returned late")
        q.claim().nack(1000)
        assert q.qsize() == 4
    queuefiles.other_boot(path)
    with Queue(path) as q:
        assert q.qsize() == 4
        early = drain(q)
        assert b"long" not in early
        time.sleep(0.35)
        assert sorted(early + drain(q)) == [b"now", b"short"]
        assert q.stats()["delayed"] == 2
        assert list(q) == [b"long", b"returned late"]


@pytest.mark.parametrize("years", [-10, 10])
def test_r25_delays_when_the_wall_clock_was_moved(path: str, years: int) -> None:
    """What remains is never less than nothing, and never more than was asked for."""
    with make(path) as q:
        q.put(b"put", delay=0.2)
        q.put(b"x")
        claim = q.claim()
        claim.nack(0.2)
    found = queuefiles.Snapshot(path)
    moved = int(years * 365.25 * 86400 * 1e9)
    data = bytearray(found.files[1])
    for entry in found.live():
        record = found.record(entry.position)
        assert record is not None
        at = entry.position - SEGMENT
        words = [int.from_bytes(data[at + n : at + n + 8], "little") for n in range(0, 88, 8)]
        # As if it had been written when the clock showed something else.
        words[4] += moved  # born
        if record.flags & queuefiles.DELAYED:
            words[0] = queuefiles.item_check((*words[1:5], *words[9:11]), entry.position, found.key)
        else:
            words[0] = queuefiles.item_check(tuple(words[1:5]), entry.position, found.key)
            words[6] += moved  # due then
            words[5] = queuefiles.item_state(3, 1, (words[6], words[7], words[8]), entry.position, found.key)
        data[at : at + 72] = b"".join((word % (1 << 64)).to_bytes(8, "little") for word in words[:9])
    Path(queuefiles.segment(path, 1)).write_bytes(data)
    queuefiles.other_boot(path)
    with Queue(path) as q:
        assert q.qsize() == 2, queuefiles.state(path)
        if years > 0:
            assert drain(q) == [], "it is due only after its delay"
            assert all(entry.due < time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 10**9 for entry in
                       queuefiles.Snapshot(path).live())  # fmt: skip
            time.sleep(0.3)
        assert drain(q) == [b"put", b"x"]


def test_r24_what_was_sent_to_the_back_stays_before_what_is_put_after_the_boot(path: str) -> None:
    """The tail was behind a large item that is finished; recovery finds nothing there, and begins further in front."""
    with make(path) as q:
        q.put(b"back")
        claim = q.claim()
        q.put(bytes(5000))
        q.put(bytes(9000))
        assert len(q.get_many(2)) == 2
        claim.nack(0, to_back=True)
        content = queuefiles.content(path)
    queuefiles.restore(path, content)
    for boot in range(2):
        queuefiles.other_boot(path)
        with make(path) as q:
            q.put(b"%d" % boot)
            state = queuefiles.state(path)
            assert list(q) == [b"back", *(b"%d" % i for i in range(boot + 1))], state
    with make(path) as q:
        assert drain(q) == [b"back", b"0", b"1"]


def test_r25_leases_do_not_outlive_a_boot(path: str) -> None:
    with make(path, lease=1000) as q:
        q.put(b"1")
        q.claim()
    with make(path) as q:
        q.put(b"2")
        claims = [q.claim(lease=1000), q.claim()]
        assert q.qsize() == 0
        content = queuefiles.content(path)
        assert claims
    queuefiles.restore(path, content)
    queuefiles.other_boot(path)
    with Queue(path) as q:
        assert drain(q) == [b"1", b"2"]


def test_r25_a_lease_ends_by_the_boot_clock(path: str) -> None:
    with make(path) as q:
        q.put(b"1")
        with Peer("q = mmapds.Queue(path); c = q.claim(lease=0.2)", path=path) as peer:
            begun = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            with pytest.raises(Empty):
                q.get_nowait()
            assert q.get(timeout=100) == b"1"
            assert time.clock_gettime_ns(time.CLOCK_BOOTTIME) - begun > 10_000_000
            name, message = peer.fails("c.ack()")
            assert name == "StaleClaim"
            assert "lease" in message


# ---- row 8: a death in the middle of recovery ----------------------------------------------------------------------


def test_r08_recovery_killed_at_every_call_and_line(path: str) -> None:
    """Whoever comes next recovers again, to the same."""
    with make(path) as q:
        expected, claims = crowd(q)
        content = queuefiles.content(path)
        assert claims
    damage = bytearray(content["0000000000000002.segment"])
    damage[5000:5100] = bytes(100)  # something is set aside, too
    content["0000000000000002.segment"] = bytes(damage)
    queuefiles.restore(path, content)
    queuefiles.other_boot(path)
    with Queue(path) as q:
        whole = q.stats()
        items = list(q)
        assert 0 < len(items) < len(expected)
        assert set(items) < set(expected)
    with Peer("import victims", path=path) as zygote:
        count, ends = 0, 0
        while not ends:
            queuefiles.restore(path, content)
            queuefiles.other_boot(path)
            ends = zygote("victims.killed_at_line(count, lambda: mmapds.Queue(path).close()) == 0", count=count)
            check_recovered(path, items, whole, f"killed before line {count}")
            count += 1 if count < 5 else 97
        assert count > 200, count


def check_recovered(path: str, items: Items, whole: dict[str, Any], message: str) -> None:
    with Queue(path, mode="readonly") as q:
        assert list(q) == items, f"a reader; {message}; {queuefiles.state(path)}"
    with Queue(path) as q:
        stats = q.stats()
        message = f"{message}; {queuefiles.state(path)}"
        assert list(q) == items, message
        assert [stats[name] for name in ("items", "claimed", "delayed")] == [
            whole[name] for name in ("items", "claimed", "delayed")
        ], message
        assert stats["set_aside"] >= whole["set_aside"], message
        queuefiles.check(path, message)
        assert drain(q) == items, message


@pytest.mark.slow
def test_r08_recovery_killed_at_every_store(path: str) -> None:
    with make(path) as q:
        _, claims = crowd(q, 40)
        content = queuefiles.content(path)
        assert claims
    queuefiles.restore(path, content)
    queuefiles.other_boot(path)
    content = queuefiles.content(path)
    with Queue(path) as q:
        whole, items = q.stats(), list(q)
    with Peer("import queuesteps, stepping") as zygote:
        if not zygote("stepping.available()"):
            pytest.skip("processes may not be traced here")
        queuefiles.restore(path, content)
        out = path + ".states"
        zygote(
            "queuesteps.save(queuesteps.states(os.getpid, lambda _: mmapds.Queue(path), path), out)", path=path, out=out
        )
    found = pickle.loads(Path(out).read_bytes())
    choose = random.Random(8)
    for number in sorted(choose.sample(range(len(found)), min(300, len(found)))):
        queuefiles.restore(path, found[number])  # another inode: it is not the present one, whatever meta says
        check_recovered(path, items, whole, f"killed after store {number} of {len(found)}")


@pytest.fixture
def waiting_recoverer(path: str) -> Iterator[Peer]:
    """Somebody has the lock of who recovers, and does not go on."""
    with Peer(
        "import queuefiles; fd = os.open(queuefiles.meta(path), os.O_RDWR); queuefiles.lock(fd, 0)", path=path
    ) as peer:
        yield peer


def test_r08_a_recoverer_that_dies_while_others_wait_for_it(path: str, request: pytest.FixtureRequest) -> None:
    with make(path) as q:
        q.put(b"1")
    queuefiles.other_boot(path)
    recoverer: Peer = request.getfixturevalue("waiting_recoverer")
    with Queue(path, mode="readonly") as looking:
        assert list(looking) == [b"1"], "who only looks does not wait"
    with Peer() as peer:
        peer.send("q = mmapds.Queue(path); q.get(timeout=100)", path=path)
        time.sleep(0.1)
        recoverer.kill()
        assert peer.receive() == b"1"
