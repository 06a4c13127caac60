"""KeyboardInterrupt, other signals and MemoryError anywhere: no lock stays, nothing is counted twice (row 28)."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import counterfiles
import pytest
from peers import Peer

from mmapds import Counters


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "counters")
    with Counters(path, 4) as c:
        c.update(a=1, b=2)
    yield path
    with Counters(path) as c:
        c.add("a")
    counterfiles.check(path)
    assert not counterfiles.locked(path, 0, 0)


INJECT = """
import contextlib, gc, warnings
import counterfiles, interruptions
warnings.simplefilter("ignore", ResourceWarning)  # an interrupted constructor, or its caller, forgets a handle

def attempt(count, prepare, job):
    '''Where it was interrupted, or None; the handle is usable, or closed; and then it goes.'''
    scope = globals() | {"c": None}
    exec(prepare, scope)
    where = interruptions.at_place(count, lambda: exec(job, scope))
    assert not counterfiles.locked(path, counterfiles.LOCK_NAMES), f"interrupted at {where}: the lock was left"
    c = scope["c"]
    if c is not None:
        with contextlib.suppress(mmapds.Closed):
            c.add("after")
            assert c.snapshot()["after"] == c["after"]
        c.close()
    del c
    scope.clear()
    gc.collect()
    assert not counterfiles.locked(path, 0, 0), f"interrupted at {where}: a lock was left after close"
    assert path not in open("/proc/self/maps").read(), f"interrupted at {where}: a mapping was left after close"
    return where
"""

ANEW = "if os.path.exists(path + '-new'): os.unlink(path + '-new')"
JOBS = {
    "open": ("", "c = mmapds.Counters(path)"),
    "open and close": ("", "c = mmapds.Counters(path); c.close()"),
    "open after another boot": ("counterfiles.other_boot(path)", "c = mmapds.Counters(path)"),
    "create": (ANEW, "d = mmapds.Counters(path + '-new'); d.close()"),
    "create in power": (
        ANEW,
        "d = mmapds.Counters(path + '-new', durability='power'); d.close()",
    ),
    "a new name": ("c = mmapds.Counters(path)", "c.add(f'new {c.add(0)}')"),
    "grow": ("c = mmapds.Counters(path)", "c.update((f'grow {c[0]}/{n}', 1) for n in range(30))"),
    "remove": ("c = mmapds.Counters(path); c.add('x')", "c.remove('x')"),
    "pop": ("c = mmapds.Counters(path); c.add('x')", "c.pop('x')"),
    "popitem": ("c = mmapds.Counters(path); c.add('x')", "c.popitem()"),
    "return": ("c = mmapds.Counters(path); c.add('x'); c.remove('x')", "c.add('x')"),
    "setdefault": ("c = mmapds.Counters(path)", "c.setdefault(f'default {c.add(1)}', 5)"),
    "snapshot": ("c = mmapds.Counters(path)", "c.snapshot()"),
    "flush": ("c = mmapds.Counters(path)", "c.flush()"),
    "flush without waiting": ("c = mmapds.Counters(path)", "c.flush(wait=False)"),
    "readonly": ("", "c = None; d = mmapds.Counters(path, mode='readonly'); d.snapshot(); d.close()"),
    "private": ("", "d = mmapds.Counters(path, mode='private'); d.add('new'); d.close()"),
    "emmap": (
        ANEW,
        "d = mmapds.Counters(path + '-new', layout='emmap'); d.add(3); d.close()",
    ),
}  # fmt: skip


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", JOBS)
def test_r28_keyboard_interrupt_wherever_the_interpreter_may_raise_it(path: str, what: str, every: int) -> None:
    prepare, job = JOBS[what]
    with Peer(INJECT, path=path) as peer, Counters(path, mode="readonly") as looking:
        for count in range(0, 2000, every):
            if peer("attempt(count, prepare, job)", count=count, prepare=prepare, job=job) is None:
                break
            assert looking["b"] == 2
        assert count >= 2, "this job has no place to be interrupted at"
        values = looking.snapshot()
        assert values.get("x") in (None, 1) or what == "popitem"
        assert all(value == 5 for name, value in values.items() if name.startswith("default"))
        counterfiles.check(path)


# ---- signals -------------------------------------------------------------------------------------------------------


def test_r28_a_storm_of_signals_whose_handler_counts_by_new_names(path: str) -> None:
    """On the same handle, wherever it is; the sums are exact, and each name has one cell."""
    storm = """
import itertools, time
c = mmapds.Counters(path)
numbers, ticked, taken = itertools.count(), [], []
def handler(*_):                        # handlers interrupt each other, too
    tick = next(numbers)
    c.add(f"name {tick % 700}")         # perhaps the very one that is being made
    c.add(f"mine {tick}")
    c.add("both")
    if tick % 5 == 0:
        taken.append(c.pop("popped", 0))
    ticked.append(tick)
signal.signal(signal.SIGALRM, handler)
def run(seconds):
    added = done = 0
    end = time.monotonic() + seconds
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    while time.monotonic() < end:
        name = f"name {done % 700}"
        c.add(name)
        c.add("both")
        c.add("popped", 3)
        added += 3
        done += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    return done, len(ticked), added, sum(taken)
"""
    with Peer(storm, path=path) as peer, Peer(storm, path=path) as other:
        other.send("run(1.0)")
        done, ticks, added, taken = peer("run(1.0)")
        theirs = other.receive()
        values = peer("c.snapshot()")
    assert ticks > 300, (done, ticks)
    assert values["both"] == done + ticks + theirs[0] + theirs[1]
    named = sum(value for name, value in values.items() if name.startswith("name"))
    assert named == done + ticks + theirs[0] + theirs[1]
    assert taken + theirs[3] + values.get("popped", 0) == added + theirs[2]
    mine = [value for name, value in values.items() if name.startswith("mine")]
    assert sum(mine) == ticks + theirs[1]
    assert counterfiles.check(path).values() == values


@pytest.mark.parametrize(
    "job",
    [
        "c.add(f'new {c.add(0)}')",
        "c.add('x'); c.pop('x', None)",
        "o = mmapds.Counters(path); o.add('a', 0); o.close()",
        pytest.param("c.snapshot()", marks=pytest.mark.slow),
        pytest.param("c.add('a', 0); bound.add(0); c.reserve(1, 5)", marks=pytest.mark.slow),
        "c.flush()",
    ],
)
def test_r28_handlers_that_raise_at_random_moments(path: str, job: str) -> None:
    tick, seconds = (0.004, 1.0) if "flush" in job else (0.0004, 0.3)  # a flush waits for the disk
    setup = f"""
import gc, random, time, warnings
import counterfiles
warnings.simplefilter("ignore", ResourceWarning)
c = mmapds.Counters(path)
bound = c.counter("a")
armed = False
def handler(*_):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, handler)
def run(seconds):
    global armed
    finished = interrupted = 0
    end = time.monotonic() + seconds
    signal.setitimer(signal.ITIMER_REAL, {tick}, {tick})
    while time.monotonic() < end or (min(finished, interrupted) <= 20 and time.monotonic() < end + 20):  # a busy disk
        try:
            armed = True
            for _ in range(200):
                {job}
                finished += 1
            armed = False
        except KeyboardInterrupt:
            interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    globals().update(o=None)
    gc.collect()
    return finished, interrupted
"""
    with Peer("import warnings; warnings.simplefilter('ignore', ResourceWarning)") as peer:
        peer(setup, path=path)
        finished, interrupted = peer(f"run({seconds})")
        assert finished > 20, (finished, interrupted)
        assert interrupted > 20, (finished, interrupted)
        assert not counterfiles.locked(path, counterfiles.LOCK_NAMES)
        values = peer("c.snapshot()")
        assert counterfiles.check(path).values() == values
        assert (values["a"], values["b"]) == (1, 2)
        wrong = {name: value for name, value in values.items() if name.startswith("new") and value not in (0, 1)}
        assert not wrong, wrong
        peer("c.close()")


def test_r28_ctrl_c_ends_the_wait_for_the_lock(path: str) -> None:
    with (
        Peer("c = mmapds.Counters(path)", path=path) as peer,
        Peer("import counterfiles; fd = os.open(path, os.O_RDWR)", path=path) as holder,
    ):
        holder("counterfiles.lock(fd, counterfiles.LOCK_NAMES)")
        for code in ("c.add('new')", "c.pop('a')", "c.setdefault('new', 5)", "c.counter('new')"):
            peer.send(code)
            while "setlk" not in Path(f"/proc/{peer.pid}/wchan").read_text():
                pass
            peer.signal(signal.SIGINT)
            with pytest.raises(Exception, match="KeyboardInterrupt"):
                peer.receive()
            assert peer("c.snapshot(), c.add('a', 0)") == ({"a": 1, "b": 2}, 1)
        holder("os.close(fd)")
        assert peer("c.add('new')") == 1


def test_r28_a_handler_that_closes_what_it_interrupts(path: str) -> None:
    with (
        Peer("c = mmapds.Counters(path); bound = c.counter('a')", path=path) as peer,
        Peer("import counterfiles; fd = os.open(path, os.O_RDWR)", path=path) as holder,
    ):
        peer("signal.signal(signal.SIGUSR1, lambda *_: c.close()) and None")
        holder("counterfiles.lock(fd, counterfiles.LOCK_NAMES)")
        peer.send("c.add('new')")
        while "setlk" not in Path(f"/proc/{peer.pid}/wchan").read_text():
            pass
        peer.signal(signal.SIGUSR1)
        while counterfiles.locked(path, counterfiles.LOCK_ALIVE):
            pass
        holder("os.close(fd)")
        with pytest.raises(Exception, match="closed"):
            peer.receive()
        assert peer("c.closed, bound.add(0)") == (True, 1)
    assert "new" not in counterfiles.check(path).values()


# ---- memory --------------------------------------------------------------------------------------------------------

MEMORY = """
def starve(count, prepare, job):
    '''Allocation number `count` of the job fails; afterwards everything works.'''
    scope = globals() | {"c": None}
    exec(prepare, scope)
    code = compile(job, "job", "exec")
    outcome = interruptions.without_memory(count, lambda: exec(code, scope))
    assert not counterfiles.locked(path, counterfiles.LOCK_NAMES), f"allocation {count}: the lock was left"
    c = scope["c"]
    if c is not None:
        if not c.closed:
            c.add("after")
            c.snapshot()
            counterfiles.check(path, f"allocation {count}")
            assert c.snapshot() == counterfiles.Snapshot(path).values(), f"allocation {count}"
        c.close()
    del c, scope["c"]
    gc.collect()
    assert not counterfiles.locked(path, 0, 0), f"allocation {count}: a lock was left after close"
    return outcome
"""


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "what",
    ["open", "open after another boot", "a new name", "grow", "pop", "return", "setdefault", "snapshot", "private"],
)
def test_r28_memory_error_at_each_allocation(path: str, what: str, every: int) -> None:
    prepare, job = JOBS[what]
    with Peer(INJECT + MEMORY, path=path) as peer:
        if peer("interruptions.testcapi is None"):
            pytest.skip("this Python was built without _testcapi")
        failures = 0
        for count in range(0, 600, every):
            outcome = peer("starve(count, prepare, job)", count=count, prepare=prepare, job=job)
            failures += outcome == "failed"
            if outcome == "finished" and count > 40 and every * failures < count - 40:
                break
            with Counters(path) as other:
                assert other["b"] == 2
        assert failures >= 2, failures
