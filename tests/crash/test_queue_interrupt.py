"""KeyboardInterrupt, other signals and MemoryError anywhere: no claim or lock stays, and no item is lost (row 28)."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import queuefiles
from peers import Peer, PeerError

from mmapds import Queue


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "queue")
    with Queue(path, codec="raw", segment_size=8192) as q:
        q.put_many([b"%d" % n for n in range(20)])
    yield path
    with Queue(path) as q:
        q.put(b"last")
        with q.claim(0):
            pass
        found = queuefiles.check(path, spare=3)
        assert found.claimed() == [], found.describe()
    for name in ("put_lock", "take_lock"):
        assert queuefiles.word(queuefiles.meta(path), queuefiles.WORDS[name]) & ~7 == 0, f"{name} is held"


INJECT = """
import gc, warnings, interruptions
from queue import Empty
warnings.simplefilter("ignore", ResourceWarning)  # an interrupted constructor, or its caller, forgets a handle

def attempt(count, prepare, job):
    '''Where it was interrupted, or None. Then the handle is usable, or closed, and then it goes.'''
    scope = globals() | {"q": None, "c": None}
    exec(prepare, scope)
    where = interruptions.at_line(count, lambda: exec(job, scope))
    q = scope["q"]
    if q is not None and not q.closed:
        q.put(b"after")
        q.qsize(), q.stats()
        q.close()
    del q
    scope.clear()
    gc.collect()
    return where
"""

OPENED = "q = mmapds.Queue(path)"
JOBS = {
    "open": ("", "q = mmapds.Queue(path)"),
    "open after another boot": ("import queuefiles; queuefiles.other_boot(path)", "q = mmapds.Queue(path)"),
    "put": (OPENED, "q.put(b'x')"),
    "put into a new segment": (OPENED, "q.put(bytes(3500)); q.put(bytes(3500))"),
    "get": (OPENED, "q.put(b'x'); q.get()"),
    "claim": (OPENED, "q.put(b'x'); c = q.claim(0); c.ack()"),
    "claim in a block": (OPENED, "q.put(b'x')\nwith q.claim(0) as c: len(c.item)"),
    "claims": (OPENED, "q.put(b'x')\nfor c in q.claims(0): break"),
    "nack": (OPENED, "q.claim(0).nack(0)"),
    "bury": (OPENED, "q.put(b'x'); q.claim(0).bury('x')"),
    "grow": (OPENED, "q.put_many([b'x'] * 90); c = q.claim_many(100); [x.nack(0) for x in c]"),
    "flush": (OPENED, "q.flush()"),
    "readonly": ("", "r = mmapds.Queue(path, mode='readonly'); list(r); r.close()"),
    "private": ("", "r = mmapds.Queue(path, mode='private'); r.get(); r.close()"),
    "purge": (OPENED, "q.put(b'x'); q.purge(); q.put_many([b'1', b'2'])"),
    "close": (OPENED, "c = q.claim(0); q.close()"),
}
SLOW = {
    "flush",
    "grow",
    "put into a new segment",
    "readonly",
    "private",
    "nack",
    "put",
    "open after another boot",
    "bury",
    "purge",
    "claims",
}


@pytest.mark.parametrize("what", [pytest.param(what, marks=[pytest.mark.slow] * (what in SLOW)) for what in JOBS])
def test_r28_keyboard_interrupt_before_each_line(path: str, what: str) -> None:
    prepare, job = JOBS[what]
    with Peer(INJECT, path=path) as peer, Queue(path) as other:
        for count in range(2000):
            where = peer("attempt(count, prepare, job)", count=count, prepare=prepare, job=job)
            message = f"interrupted at {where}; {queuefiles.state(path)}"
            if what != "open after another boot" or where is None:
                other.put(b"o")
                with other.claim(10):
                    pass
                assert other.stats()["claimed"] == 0, message
            queuefiles.check(path, message, spare=2)
            if where is None:
                break
        if not where and not prepare and what == "open":
            assert count >= 20


# ---- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait", ["q.get()", "q.claim()", "q.join()", "list(q.claims())", "full.put(b'1')", "q.get_many(5)"]
)
def test_r28_ctrl_c_ends_a_wait(tmp_path: Path, wait: str) -> None:
    path = str(tmp_path / "queue")
    with Queue(path, codec="raw") as q, Queue(path + "-full", 1, codec="raw") as full:
        full.put(b"0")
        with Peer("q = mmapds.Queue(path); full = mmapds.Queue(path + '-full')", path=path) as peer:
            if "join" in wait:
                q.put(b"1")
            for _ in range(3):
                peer.send(wait)
                time.sleep(0.05)
                peer.signal(signal.SIGINT)
                with pytest.raises(PeerError, match="KeyboardInterrupt"):
                    peer.receive()
            peer("q.put(b'2')")
            assert q.get(timeout=10) in (b"1", b"2")


@pytest.mark.parametrize(
    "job",
    [
        "q.put(b'x'); q.get(); q.task_done()",
        "q.put(b'x'); c = q.claim(0); c.ack()",
        "q.put(b'x' * 500)\n                with q.claim(0): pass",
        "q.put_many([b'x'] * 20); q.get_many(20)",
        "q.put(b'x', delay=1e-6); c = q.claim(1); c.nack(0); q.get()",
    ],
)
def test_r28_handlers_that_raise_at_random_moments(path: str, job: str) -> None:
    setup = f"""
import gc, time, warnings
warnings.simplefilter("ignore", ResourceWarning)
q = mmapds.Queue(path)
armed, c = False, None
def handler(*_):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, handler)
def run(seconds):
    global armed, c
    finished = interrupted = 0
    end = time.monotonic() + seconds
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    while time.monotonic() < end or (min(finished, interrupted) <= 20 and time.monotonic() < end + 30):
        if time.monotonic() > end:  # a busy machine: less often
            signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
        try:
            armed = True
            for _ in range(200):
                {job}
                finished += 1
            armed = False
        except KeyboardInterrupt:
            interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    c = None
    gc.collect()
    return finished, interrupted
"""
    with Peer() as peer:
        peer(setup, path=path)
        finished, interrupted = peer("run(0.3)")
        assert finished > 20, (finished, interrupted)
        assert interrupted > 20, (finished, interrupted)
        found = queuefiles.check(path)
        assert found.claimed() == [], found.describe()
        assert peer("q.qsize()") == len(found.everything())
        with Queue(path) as other:
            other.put(b"o")
            with other.claim(0):
                pass
        peer("q.close()")


def test_r28_stopped_waits_are_repeated(path: str) -> None:
    """EINTR: signals whose handlers return do not end a wait."""
    with Peer(
        "q = mmapds.Queue(path); hits = []; signal.signal(signal.SIGALRM, lambda *_: hits.append(1))", path=path
    ) as peer:
        peer("q.purge()")
        peer("signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)")
        peer.send("q.get(timeout=100)")
        time.sleep(0.2)
        with Queue(path) as q:
            q.put(b"1")
        assert peer.receive() == b"1"
        peer("signal.setitimer(signal.ITIMER_REAL, 0)")
        assert peer("len(hits)") > 20


# ---- memory --------------------------------------------------------------------------------------------------------

MEMORY = """
def starve(count, prepare, job):
    '''Allocation number `count` of the job, and all that follow for a while, fail; afterwards everything works.'''
    scope = globals() | {"q": None, "c": None}
    exec(prepare, scope)
    code = compile(job, "job", "exec")
    outcome = interruptions.without_memory(count, lambda: exec(code, scope))
    q = scope["q"]
    if q is not None and not q.closed:
        signal.alarm(60)    # a lock that was left makes the next put wait for ever: its owner lives
        q.put(b"after")
        with q.claim(10): pass
        signal.alarm(0)
        q.close()
    del q
    scope.clear()
    gc.collect()
    return outcome
"""


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "what",
    [
        *("put", "claim", "get_many", "put_many"),
        *(pytest.param(what, marks=pytest.mark.slow) for what in ("open", "get", "claim_many", "bury", "private")),
    ],
)
def test_r28_memory_error_at_each_allocation(path: str, what: str, every: int) -> None:
    many = {
        "get_many": (OPENED + "; q.purge(); q.put_many([b'x' * 1500, b'y' * 700] * 3)", "q.get_many(6)"),
        "put_many": (OPENED, "q.put_many([bytes(700)] * 8)"),
        "claim_many": (OPENED, "c = q.claim_many(5)"),
    }
    prepare, job = {**JOBS, **many}[what]
    with Peer(INJECT + MEMORY, path=path) as peer, Queue(path) as other:
        if peer("interruptions.testcapi is None"):
            pytest.skip("this Python was built without _testcapi")
        failures = 0
        for count in range(0, 300, every):
            outcome = peer("starve(count, prepare, job)", count=count, prepare=prepare, job=job)
            failures += outcome == "failed"
            message = f"allocation {count}: {outcome}; {queuefiles.state(path)}"
            other.put(b"o")
            with other.claim(10):
                pass
            queuefiles.check(path, message, spare=2 + failures)
            assert other.stats()["claimed"] == 0, message
            if outcome == "finished" and count > 40 and every * failures < count - 40:
                break
        assert failures >= 2, failures
