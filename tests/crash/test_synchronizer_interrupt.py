"""KeyboardInterrupt, other signals and MemoryError anywhere: no pin or lock stays behind (row 28)."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import syncfiles
from peers import Peer
from victims import number, pattern

from mmapds import Synchronizer

SIZE = 6000


@pytest.fixture
def prefix(tmp_path: Path) -> Iterator[str]:
    prefix = str(tmp_path / "value")
    with Synchronizer(prefix, codec="raw") as s:
        for n in (1, 2):
            s.write_bytes(pattern(n, SIZE))
    yield prefix
    with Synchronizer(prefix) as s:
        s.check()
        s.write_bytes(pattern(s.version + 1, SIZE))
        s.check()


JOBS = {
    "open": ("", "o = Synchronizer(prefix); o.close()"),
    "open after another boot": ("syncfiles.other_boot(prefix + '_sync')", "o = Synchronizer(prefix); o.close()"),
    "create": ("fresh()", "o = Synchronizer(prefix + '_fresh'); o.write(1); o.close()"),
    "first read": ("o = Synchronizer(prefix)", "o.read().release()"),
    "load": ("o = Synchronizer(prefix)", "o.load()"),
    "first write": ("o = Synchronizer(prefix)", "o.write_bytes(new(), 0.0)"),
    "second write": ("o = Synchronizer(prefix); o.write_bytes(new())", "o.write_bytes(new(), 0.0)"),
    "growing write": ("o = Synchronizer(prefix); o.write_bytes(new())", "o.write_bytes(new(100_000), 0.0)"),
    "write with a new inode": (
        "o = Synchronizer(prefix); h = Synchronizer(prefix); r = h.read(); o.write_bytes(new())",
        "o.write_bytes(new(), 0.0)",
    ),
    "close": ("o = Synchronizer(prefix); o.write_bytes(new()); r = o.read(); o.load()", "o.close()"),
    "close with a result": ("o = Synchronizer(prefix); o.write_bytes(new()); r = o.read()", "o.close(); r.release()"),
    "wait": ("o = Synchronizer(prefix)", "o.wait(timeout=0.25)"),
    "readonly": ("", "o = Synchronizer(prefix, mode='readonly'); o.load(); o.close()"),
    "private": ("", "o = Synchronizer(prefix, mode='private'); o.load(); o.close()"),
}

SETUP = """
import gc, interruptions, syncfiles, victims, warnings
def new(size=6000):
    return victims.pattern(syncfiles.sequence(prefix) + 1, size)
def fresh():
    for suffix in syncfiles.snapshot(prefix + "_fresh"):
        os.unlink(prefix + "_fresh" + suffix)
kept = []
def run(count, prepare, job):
    '''Where it was interrupted, or None; everything but the interrupted handle is let go of.'''
    scope = globals() | {"o": None, "r": None, "h": None}
    exec(prepare, scope)
    where = interruptions.at_place(count, lambda: exec(job, scope))
    kept[:] = [scope["o"]]
    for name in "rh":
        thing, scope[name] = scope[name], None
        if thing is not None:
            getattr(thing, "close", getattr(thing, "release", None))()
    del thing
    gc.collect()
    return where
def finish():
    '''The interrupted handle must still be usable, or closed; then it is closed.'''
    o = kept.pop()
    if o is not None:
        try:
            number = victims.number(o.load(b""))
            assert number == o.version or o.codec.name != "raw", (number, o.version)
        except mmapds.Closed:
            pass
        o.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # an interrupted constructor, or its caller, forgot one
        gc.collect()
"""


def left_locked(prefix: str, *alive: Synchronizer) -> bool:
    """Whether anybody but these handles holds a lock."""
    sync = syncfiles.sync(prefix)
    slots = sorted({-1, 1 << 40, *(handle.slot for handle in alive)})
    between = [(a + 1, b - a - 1) for a, b in itertools.pairwise(slots) if b - a > 1]
    return syncfiles.locked(sync, 0, 64) or any(syncfiles.locked(sync, 64 + a, n) for a, n in between)


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", JOBS)
def test_r28_keyboard_interrupt_wherever_the_interpreter_may_raise_it(prefix: str, what: str, every: int) -> None:
    prepare, job = JOBS[what]
    with Peer(SETUP, prefix=prefix) as peer, Synchronizer(prefix) as other:
        for count in range(0, 1000, every):
            where = peer("run(count, prepare, job)", count=count, prepare=prepare, job=job)
            message = f"interrupted at place {count}, {where}; {syncfiles.state(prefix)}"
            sync = syncfiles.sync(prefix)
            assert not syncfiles.locked(sync, syncfiles.LOCK_OPEN), f"the lock of openers was left; {message}"
            assert syncfiles.pins(prefix) == {}, f"a pin was left; {message}"
            if "write" not in what and not what.startswith("close"):
                assert not syncfiles.locked(sync, syncfiles.LOCK_WRITER), f"the writer's place was left; {message}"
            if not what.startswith(
                "close"
            ):  # a close() that was interrupted is finished by the next one, or by the collector
                assert peer("kept[0] is None or kept[0]._is_writer") or not syncfiles.locked(sync, 1), (
                    f"the writer's place is locked, and the handle does not know; {message}"
                )
            assert number(other.load()) == other.version, message
            peer("finish()")
            assert not left_locked(prefix, other), f"a lock was left after close; {message}"
            assert set(syncfiles.snapshot(prefix)) <= {*syncfiles.SUFFIXES, "_fresh_sync", "_fresh_data_1"}, message
            if where is None:
                break
            with Synchronizer(prefix) as successor:
                successor.write_bytes(pattern(successor.version + 1, SIZE), grace=0.0)
            assert number(other.load()) == other.version, message
            other.read().release()
        assert count >= 3, "this job has no place to be interrupted at"


@pytest.mark.parametrize(
    "job",
    [
        "s.read().release()",
        "s.load()",
        "s.write_bytes(victims.pattern(s.version + 1, 6000), 0.0)",
        "s.write_bytes(victims.pattern(s.version + 1, 300_000), 0.0)",
        "s.wait(timeout=0.001)",
        "with s.read() as r: bytes(r.data)",
        "o = Synchronizer(prefix); o.load(); o.close()",
        "held.append(s.read()); held.clear()",
    ],
)
@pytest.mark.parametrize("raises", [True, False])
def test_r28_real_signals_at_random_moments(prefix: str, job: str, raises: bool) -> None:
    """A timer that fires every fraction of a millisecond; its handler raises, or returns (so that calls get EINTR)."""
    setup = f"""
import gc, random, time, victims, warnings
s = Synchronizer(prefix)
held = []
fired = 0
def handler(*_):
    global fired
    fired += 1
    if {raises}:
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, handler)
def run(seconds):
    finished = interrupted = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.random() * 0.0005 + 1e-6, random.random() * 0.0005 + 1e-5)
            for _ in range(200):
                {job}
                finished += 1
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            while True:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    break
                except KeyboardInterrupt:
                    pass
    held.clear()
    o = r = None
    globals().update(o=None, r=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    return finished, interrupted, fired
"""
    with Peer("import warnings; warnings.simplefilter('ignore', ResourceWarning)") as peer:
        peer(setup, prefix=prefix)
        finished, interrupted, fired = peer("run(0.7)")
        assert finished + interrupted > 20, (finished, interrupted, fired)
        assert fired > 100, (finished, interrupted, fired)
        assert syncfiles.pins(prefix) == {}, syncfiles.state(prefix)
        assert not syncfiles.locked(syncfiles.sync(prefix), syncfiles.LOCK_OPEN)
        assert len(syncfiles.slots_in_use(prefix)) <= 2, syncfiles.state(prefix)
        assert peer("victims.number(s.load()) == s.version") is True
        peer("s.close()")
        assert not syncfiles.locked(syncfiles.sync(prefix), 0, 0), "a lock was left"


def test_r28_ctrl_c_ends_a_write_that_waits_for_a_reader(prefix: str) -> None:
    with Peer("s = Synchronizer(prefix); import victims", prefix=prefix) as peer, Synchronizer(prefix) as reader:
        held = reader.read()
        peer("s.write_bytes(victims.pattern(3, 6000)).size")
        for _ in range(3):
            peer.send("s.write_bytes(victims.pattern(4, 6000), 600.0).size")
            while not peer_waits(peer):
                pass
            peer.signal(signal.SIGINT)
            with pytest.raises(Exception, match="KeyboardInterrupt"):
                peer.receive()
            assert reader.version == 3, "nothing was published"
        assert number(held.data) == 2
        held.release()
        assert peer("s.write_bytes(victims.pattern(4, 6000), 600.0).reset") is False
        assert number(reader.load()) == 4


def peer_waits(peer: Peer) -> bool:
    """Whether it sleeps inside the write, not yet in the wait for its next order."""
    return "nanosleep" in Path(f"/proc/{peer.pid}/wchan").read_text()


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "what", ["first read", "load", "first write", "growing write", "write with a new inode", "open"]
)
def test_r28_memory_error_at_each_allocation(prefix: str, what: str, every: int) -> None:
    prepare, job = JOBS[what]
    with Peer(SETUP, prefix=prefix) as peer:
        if peer("interruptions.testcapi is None"):
            pytest.skip("this Python was built without _testcapi")
        peer(
            """
def attempt(count, prepare, job):
    scope = globals() | {"o": None, "r": None, "h": None}
    exec(prepare, scope)
    values = {0: new(), 100_000: new(100_000)}
    scope["new"] = lambda size=0: values[size]
    code = compile(job, "job", "exec")
    outcome = interruptions.without_memory(count, lambda: exec(code, scope))
    for name in "rh":
        thing, scope[name] = scope[name], None
        if thing is not None:
            getattr(thing, "close", getattr(thing, "release", None))()
    o = scope.pop("o")
    if o is not None and not o._is_closed:
        # Whatever was missing is there again: the handle works.
        for call in (lambda: o.load(), lambda: o.write_bytes(new(), 0.0), lambda: o.load()):
            call()
    pins = syncfiles.pins(prefix)
    if o is not None:
        o.close()
    del o, thing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    return outcome, pins
"""
        )
        failures = 0
        for count in range(0, 600, every):
            outcome, pins = peer("attempt(count, prepare, job)", count=count, prepare=prepare, job=job)
            message = f"allocation {count} failed: {outcome}; {syncfiles.state(prefix)}"
            assert pins == {}, message
            assert not syncfiles.locked(syncfiles.sync(prefix), 0, 0), message
            failures += outcome == "failed"
            if outcome == "finished" and count > 60 and every * failures < count - 60:
                break
            with Synchronizer(prefix) as other:
                assert number(other.load()) == other.version, message
        assert failures >= 3, failures
