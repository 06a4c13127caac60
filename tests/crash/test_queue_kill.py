"""SIGKILL of those who use a queue, with others that look on and wait (rows 2, 3, 20, 22 and 33).

Real deaths, at every store where they matter: what a live handle has seen and mapped before must not mislead it, and
who sleeps must not sleep on. `test_queue_steps.py` goes through everything else.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import queuefiles
from peers import Peer
from queueitems import drain

from mmapds import Queue

SEGMENT = 8192


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "queue")


def make(path: str, **options: object) -> Queue:
    return Queue(path, codec="raw", segment_size=SEGMENT, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def zygote() -> Iterator[Peer]:
    """kill(path, count, prepare, job) -> (exit status, what it had come to)."""
    with Peer("import stepping, victims") as peer:
        if not peer("stepping.available()"):
            pytest.skip("processes may not be traced here")
        peer(
            """
def kill(path, count, prepare, job, kind="any"):
    before, code = compile(prepare, "prepare", "exec"), compile(job, "job", "exec")
    def run_before():
        scope = {"q": mmapds.Queue(path), "os": os}
        exec(before, scope)
        return scope
    return stepping.killed_at(count, run_before, lambda scope: exec(code, scope), path, kind)
"""
        )
        yield peer


# ---- at every store, with witnesses --------------------------------------------------------------------------------

START = "q.put(b'w'); q.get(); q.task_done(); q.put_many([b'a', b'b', b'c'])"
CLAIM = f"{START}; c = q.claim()"
# What the victim does, what it did before, and which of a, b, c (and n, which is new) may be there, in order.
KILLED = {
    "put": ("q.put(b'n')", START, ["abc", "abcn"]),
    "get": ("q.get()", START, ["abc", "bc"]),
    "claim": ("c = q.claim()", START, ["abc"]),
    "ack": ("c.ack()", CLAIM, ["abc", "bc"]),
    "nack": ("c.nack(0)", CLAIM, ["abc"]),
    "nack to the back": ("c.nack(0, to_back=True)", CLAIM, ["abc", "bca"]),
}
SLOW = {"put", "claim", "nack", "nack to the back"}


@pytest.mark.parametrize("what", [pytest.param(what, marks=[pytest.mark.slow] * (what in SLOW)) for what in KILLED])
def test_r02_r03_sigkill_at_every_store_with_a_witness(zygote: Peer, path: str, what: str) -> None:
    """The witness has put and taken before, and goes on at once."""
    job, prepare, outcomes = KILLED[what]
    allowed = [[bytes([c]) for c in text.encode()] for text in outcomes]
    killed, seen = 0, []
    with make(path) as witness:
        for count in range(200):
            status, points = zygote(
                "kill(path, count, prepare, job, 'store')",
                path=path, count=count, prepare=prepare, job="os.getppid(); " + job,
            )  # fmt: skip
            message = f"killed at point {count}, {points[-1:]}; {queuefiles.state(path)}"
            assert status in (0, -signal.SIGKILL), f"{message}\n{zygote.stderr()}"
            size = witness.qsize()
            with make(path) as late:
                found = late.claim(timeout=10)
                found.nack(0)
            items = drain(witness)
            assert items in allowed, f"{items} is none of {allowed}; {message}"
            assert size <= len(items) + 1, f"{size}, and there were {items}; {message}"
            witness.put(b"after")
            assert witness.get(timeout=10) == b"after", message
            assert witness.qsize() == 0, message
            queuefiles.check(path, message)
            seen.append(items)
            killed += status != 0
            if status == 0:
                break
        assert killed > 4, f"killed {killed} times"
        assert seen[-1] == allowed[-1], "it has returned"


def test_r33_sigkill_at_every_call_of_making_a_segment(zygote: Peer, path: str) -> None:
    """Whoever puts next finds what is there, or makes it."""
    with make(path) as witness:
        for count in range(300):
            item = bytes([count % 256]) * 2000
            witness.put(item)
            status, points = zygote(
                "kill(path, count, '', job, 'call')",
                path=path,
                count=count,
                job="q.put(bytes(3000)); q.put(bytes(3000))",
            )
            message = f"killed at point {count}, {points[-1:]}; {queuefiles.state(path)}"
            assert status in (0, -signal.SIGKILL), f"{message}\n{zygote.stderr()}"
            witness.put(item)
            found = drain(witness)
            assert found in ([item] + [bytes(3000)] * n + [item] for n in range(3)), message
            queuefiles.check(path, message, spare=count + 1)
            assert len(queuefiles.segments(path)) <= 2 + count, message
            if status == 0:
                break
        assert count > 20, count


# ---- row 3: those who wait -----------------------------------------------------------------------------------------

WAIT = "q = mmapds.Queue(path)"


def test_r03_a_claim_whose_holder_died_is_there_at_the_next_operation(path: str) -> None:
    with make(path) as q:
        for n in range(6):
            q.put(b"1")
            with Peer(f"{WAIT}; c = q.claim()", path=path) as peer:
                assert peer("c.attempts") == 1
                assert q.qsize() == 0
                peer.kill()
            with q.claim(0) as claim:
                assert claim.attempts == 2
            assert q.stats()["deaths"] == n + 1


CLAIM_IT = "c = q.claim(timeout=100); c.ack(); c.item"


@pytest.mark.parametrize("wait", ["q.get(timeout=100)", CLAIM_IT])
def test_r03_who_is_blocked_gets_what_a_dead_one_held(path: str, wait: str) -> None:
    with make(path) as q, Peer(WAIT, path=path) as waiter:
        for n in range(3):
            q.put(b"%d" % n)
            with Peer(f"{WAIT}; c = q.claim()", path=path) as holder:
                waiter.send(wait)
                time.sleep(0.05)
                holder.kill()
            assert waiter.receive() == b"%d" % n


def test_r03_waiters_that_are_killed_just_after_they_were_woken(path: str) -> None:
    """Nobody sleeps on an item that is there."""
    with make(path) as q:
        for n in range(5):
            with Peer("import victims; pids = []", path=path) as zygote:
                zygote("for _ in range(6): pids.append(victims.spawn(lambda: mmapds.Queue(path).get(timeout=100)))")
                with Peer(WAIT, path=path) as survivor:
                    survivor.send("q.get(timeout=100)")
                    time.sleep(0.02 + n % 5 / 100)
                    q.put(b"%d" % n)
                    zygote("for pid in pids: os.kill(pid, signal.SIGKILL)\nfor pid in pids: os.waitpid(pid, 0)")
                    # A victim may have got it before it died; then nothing is there, and nobody is to be woken.
                    time.sleep(0.01)
                    if q.qsize() == 0:
                        q.put(b"%d" % n)
                    assert survivor.receive() == b"%d" % n
            drain(q)
        queuefiles.check(path)


def test_r03_a_producer_killed_between_publishing_and_waking(zygote: Peer, path: str) -> None:
    """It is held before its futex call, with a sleeper there, and dies."""
    with make(path) as q, Peer(WAIT, path=path) as sleeper:
        for count in range(60):
            sleeper.send("q.get(timeout=100)")
            time.sleep(0.03)
            status, _ = zygote("kill(path, count, '', job, 'call')", path=path, count=count, job="q.put(b'x')")
            if status == 0:
                assert sleeper.receive() == b"x"
                break
            time.sleep(0.01)
            with make(path) as late:
                left = late.qsize()
            # Either it was published before the death, and comes; or somebody must put one.
            if not queuefiles.Snapshot(path).words["tail_sequence"] > count:
                assert left == 0
                q.put(b"y")
            assert sleeper.receive() in (b"x", b"y")
        assert count > 5, count


def test_r03_producers_that_wait_for_room_and_die(path: str) -> None:
    with make(path, maxsize=1) as q:
        q.put(b"0")
        with Peer("import victims; pids = []", path=path) as zygote, Peer(WAIT, path=path) as survivor:
            zygote(
                "for _ in range(5): pids.append(victims.spawn(lambda: mmapds.Queue(path).put(b'dead', timeout=100)))"
            )
            survivor.send("q.put(b'1', timeout=100)")
            time.sleep(0.1)
            q.get()  # wakes one of them
            zygote("for pid in pids: os.kill(pid, signal.SIGKILL)\nfor pid in pids: os.waitpid(pid, 0)")
            found = q.get(timeout=100)
            while found == b"dead":  # it had put before it died
                found = q.get(timeout=100)
            assert found == b"1"
            survivor.receive()


def test_r03_join_does_not_wait_for_the_dead(path: str) -> None:
    with make(path) as q, Peer(WAIT, path=path) as joiner:
        q.put_many([b"1", b"2"])
        with Peer(f"{WAIT}; q.get(); c = q.claim()", path=path) as consumer:
            joiner.send("q.join(100)")
            time.sleep(0.05)
            consumer.kill()
        with q.claim(timeout=10) as claim:
            assert claim.item == b"2"
        assert joiner.receive() is True


# ---- row 20: owners of locks, and holders --------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["put_lock", "take_lock"])
def test_r20_a_lock_whose_owner_is_gone_is_taken(path: str, word: str) -> None:
    """A token whose byte nobody holds, as a kill leaves it: with and without the waiters' bit."""
    with make(path) as q:
        q.put(b"1")
        for dirt in range(4):
            token = int.from_bytes(b"\x12\x34\x56\x78\x9a\xbc\x05\x00", "little") << 2 & ~7 | dirt
            queuefiles.poke_word(queuefiles.meta(path), queuefiles.WORDS[word], token)
            with Peer(WAIT, path=path) as peer:
                peer("q.put(b'2')")
                assert peer("q.get(timeout=60)") == b"1"
            assert q.get(timeout=60) == b"2"
            q.put(b"1")
            queuefiles.check(path)


def test_r20_a_lock_is_never_taken_from_who_lives(path: str) -> None:
    """A producer is stopped inside; others wait until it goes on."""
    with make(path) as q, Peer(f"{WAIT}; q.put(b'0')", path=path) as stopped, Peer(WAIT, path=path) as other:
        q.get()
        stopped.send("while True: q.put(b'1'); q.get()")
        for _ in range(200):
            time.sleep(0.002)
            stopped.signal(signal.SIGSTOP)
            time.sleep(0.002)
            if queuefiles.word(queuefiles.meta(path), queuefiles.WORDS["take_lock"]):
                break
            stopped.signal(signal.SIGCONT)
        else:
            pytest.skip("it was never stopped inside")
        other.send("q.put(b'x'); c = q.claim(timeout=100); c.ack()")
        time.sleep(0.3)
        stopped.signal(signal.SIGCONT)
        other.receive()
        stopped.kill()
        drain(q)
        queuefiles.check(path)


@pytest.mark.slow
def test_r20_more_holders_over_time_than_there_are_slots(path: str) -> None:
    """1,024 handles may take at once; those of the dead are used again."""
    with make(path) as q:
        q.put_many([b"%d" % n for n in range(1200)])
        with Peer("import victims", path=path) as zygote:
            zygote(
                """
def take(n):
    q = mmapds.Queue(path)
    claim = q.claim(10)
    claim.ack()
    victims.die()
for n in range(1100):
    assert victims.finish(victims.spawn(lambda: take(n))) == -9, n
"""
            )
        assert len(drain(q)) == 100
        found = queuefiles.check(path)
        assert found.words["holders"] <= 1024


def test_r20_all_slots_taken(path: str) -> None:
    with make(path) as q, Peer("qs = []", path=path) as peer:
        q.put(b"1")
        peer("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))")
        name, message = peer.fails(
            "while len(qs) < 1100:\n    qs.append(mmapds.Queue(path))\n    qs[-1].put(b'x')\n    qs[-1].get()"
        )
        assert name == "OverflowError"
        assert "1024" in message
        assert peer("len(qs)") == 1025
        with pytest.raises(OverflowError):
            q.get()
        q.put(b"2")  # no slot is needed
        peer("qs.pop(5).close()")
        assert q.get() in (b"x", b"2")
        peer.kill()
        drain(q)
        queuefiles.check(path)
