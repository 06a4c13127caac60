"""Forks: counters that were open before the fork count in the children, too (rows 22, 23)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import counterfiles
import pytest
from peers import Peer, open_files

from mmapds import Counters


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "counters")


SETUP = """
import gc, threading, time, victims, warnings
c = mmapds.Counters(path, 4)
c.update(a=1, b=2)
bound = c.counter("a")
view = c.view()

def in_children(count, job):
    '''Runs the job in children that fork from here; whether all of them ended well.'''
    pids = [victims.spawn(lambda n=n: job(n)) for n in range(count)]
    return [victims.finish(pid) for pid in pids]
"""


@pytest.fixture
def parent(path: str) -> Iterator[Peer]:
    with Peer(SETUP, path=path) as peer:
        yield peer


def test_r22_children_count_with_what_the_parent_opened(parent: Peer, path: str) -> None:
    """As the workers of a pre-fork server do, the parent among them."""
    parent(
        """
def job(n):
    mine = c.counter(f"worker {n}")
    for i in range(2000):
        bound.fetch_add()
        c.fetch_add("b")
        c.add(3)
        c.add("made by one of us")
        mine.add()
    assert 2000 < view[4] <= bound.load()
"""
    )
    parent.send("in_children(6, job)")
    assert parent.receive() == [0] * 6, parent.stderr()
    parent("job(99)")
    expected = {"a": 14_001, "b": 14_002, "made by one of us": 14_000}
    expected |= {f"worker {n}": 2000 for n in (*range(6), 99)}
    assert parent("c.snapshot(), c[3], view[3]") == (expected, 14_000, 14_000)
    assert counterfiles.check(path).values() == expected


def test_r22_names_are_made_and_removed_and_the_file_grows_in_children(parent: Peer, path: str) -> None:
    parent(
        """
def job(n):
    for i in range(300):
        c.add(f"all {i}")
        c[f"{n}/{i}"] = i
        if i % 3 == 0:
            c.remove(f"{n}/{i}")
    assert c.reserve("ids", 10).stop <= 60
    c.flush()
    c.close()
"""
    )
    assert parent("in_children(6, job)") == [0] * 6, parent.stderr()
    expected: dict[str, float] = {"a": 1, "b": 2, "ids": 60} | {f"all {i}": 6 for i in range(300)}
    expected |= {f"{n}/{i}": i for n in range(6) for i in range(300) if i % 3}
    assert parent("c.snapshot()") == expected
    assert parent("c.add('after'), bound.add(), c.closed") == (1, 2, False)
    assert counterfiles.check(path).values() == expected | {"after": 1, "a": 2}


ENDS = [
    "c.close()",
    "os._exit(0)",
    "victims.die()",
    "[globals().pop(name) for name in ('c', 'bound', 'view')] and gc.collect()",
    "c.add('a'), c.add('child'), c.close(), view.release()",
    "c.add('child'), victims.die()",
    "mmapds.Counters(path).close()",
    "sys_exit()",
]


@pytest.mark.parametrize("end", ENDS)
def test_r22_however_a_child_ends_the_parent_goes_on(parent: Peer, path: str, end: str) -> None:
    parent(
        f"""
def sys_exit():
    raise SystemExit
def job(n):
    warnings.simplefilter("ignore")
    {end}
statuses = in_children(3, job)
"""
    )
    assert set(parent("statuses")) <= {0, 1, -signal.SIGKILL}
    assert counterfiles.locked(path, counterfiles.LOCK_ALIVE), "the parent looks dead"
    assert not counterfiles.locked(path, counterfiles.LOCK_NAMES), "a child's lock is left"
    added = 3 if end.startswith("c.add('a')") else 0
    assert parent("c.add('parent'), bound.add(), view[4], c['b']") == (1, 2 + added, 2 + added, 2)
    counterfiles.check(path)


def test_r22_the_child_goes_on_when_the_parent_has_died(parent: Peer, path: str) -> None:
    child = parent(
        """
reading, go = os.pipe()
answers, answer = os.pipe()
child = victims.spawn(lambda: (os.close(go), os.read(reading, 1), c.update((f"n{i}", i) for i in range(200)),
                               bound.add(), c.add("b"), open(path + "-done", "w").close(), signal.pause()))
child
"""
    )
    try:
        parent.kill()
        while not os.path.exists(path + "-done"):
            os.kill(child, 0)
        with Counters(path) as c:
            assert c.snapshot() == {"a": 2, "b": 3} | {f"n{i}": i for i in range(200)}
            c.add("late")
        counterfiles.check(path)
    finally:
        os.kill(child, signal.SIGKILL)


def test_r22_fork_while_threads_make_names(parent: Peer, path: str) -> None:
    """A child keeps no lock that a thread of the parent has just then, and waits for no thread that it has not."""
    parent(
        """
import sys
sys.setswitchinterval(1e-5)
stop = False
made = [0, 0, 0]
def work(k):
    while not stop:
        c[f"thread {k}/{made[k]}"] = made[k]
        c.pop(f"thread {k}/{made[k] - 40}", None)
        made[k] += 1
def child(n):
    c.add("children")
    c.add(f"child {n}")
    bound.add()
    c.pop("child 0", None) if n == 5 else None
    os._exit(0)
def run(count):
    global stop
    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads: thread.start()
    alive, statuses = [], []
    for n in range(count):
        pid = victims.spawn(lambda: child(n))
        alive.append(pid)
        if n % 10 == 9:
            # Nobody waits for a child that lives on.
            sleeper = victims.spawn(signal.pause)
            before = sum(made)
            while sum(made) < before + 30:
                pass
            victims.end(sleeper)
    statuses = [victims.finish(pid) for pid in alive]
    stop = True
    for thread in threads: thread.join()
    return statuses
"""
    )
    parent.send("run(60)")
    assert parent.receive() == [0] * 60, parent.stderr()
    values = parent("c.snapshot()")
    assert (values["children"], values["a"]) == (60, 61)
    assert all(values[f"child {n}"] == 1 for n in range(1, 60))
    assert all(int(name.partition("/")[2]) == value for name, value in values.items() if name.startswith("thread"))
    assert counterfiles.check(path).values() == values


def test_r22_fork_in_a_handler_that_interrupts_the_wait_for_the_lock(parent: Peer, path: str) -> None:
    """Both go on: the parent with its wait, the child with one of its own."""
    with Peer("import counterfiles; fd = os.open(path, os.O_RDWR)", path=path) as holder:
        holder("counterfiles.lock(fd, counterfiles.LOCK_NAMES)")
        parent(
            """
pids = []
def handler(*_):
    pids.append(os.fork())
signal.signal(signal.SIGUSR1, handler)
def make():
    first = os.getpid()
    c.add("made")
    c.add("made")
    if os.getpid() != first:
        os._exit(0)
    return [victims.finish(pid) for pid in pids]
"""
        )
        parent.send("make()")
        while "setlk" not in Path(f"/proc/{parent.pid}/wchan").read_text():
            pass
        parent.signal(signal.SIGUSR1)
        while not (children := Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()):
            pass
        assert len(children) == 1
        holder.kill()
        assert parent.receive() == [0], parent.stderr()
    assert parent("c['made']") == 4
    counterfiles.check(path)


def test_r22_children_of_multiprocessing(path: str) -> None:
    setup = """
import multiprocessing
context = multiprocessing.get_context("fork")
c = mmapds.Counters(path)
def work(n):
    for _ in range(1000):
        c.add("shared")
    c.add(f"own {n}")
def run(count):
    children = [context.Process(target=work, args=(n,)) for n in range(count)]
    for child in children: child.start()
    for child in children: child.join()
    return [child.exitcode for child in children]
"""
    with Peer(setup, path=path) as peer:
        assert peer("run(4)") == [0] * 4, peer.stderr()
        assert peer("c.snapshot()") == {"shared": 4000} | {f"own {n}": 1 for n in range(4)}


@pytest.mark.parametrize("layout", ["mmapds", "emmap"])
def test_r22_private_and_emmap_counters_in_children(path: str, layout: Any) -> None:
    setup = """
import victims
shared = mmapds.Counters(path, 8, layout=layout)
private = mmapds.Counters(path, mode="private", layout=layout)
bound = private.counter(3)
def job():
    for _ in range(100):
        shared.add(3), private.add(3), bound.add()
    assert private[3] == 200 + 5
    if layout == "mmapds":
        private["new"] = 1
"""
    with Peer(setup, path=path, layout=layout) as peer:
        peer("private.add(3, 5)")
        assert peer("[victims.finish(pid) for pid in [victims.spawn(job) for _ in range(4)]]") == [0] * 4, peer.stderr()
        assert peer("shared[3], private[3], bound.load(), 'new' in private") == (400, 5, 5, False), (
            "a private copy is one"
        )


@pytest.mark.parametrize("how", ["os.close(os.open(path, os.O_RDWR))", "open(path, 'rb').read()"])
def test_r23_closing_another_descriptor_of_the_file_keeps_the_locks(parent: Peer, path: str, how: str) -> None:
    """POSIX record locks would be gone: somebody might recover under the living."""
    parent(f"{how} and None")
    parent("o = mmapds.Counters(path); o.add('a'); o.add('o'); o.close()")
    parent("o = mmapds.Counters(path, mode='readonly'); o.snapshot(); o.close()")
    assert counterfiles.locked(path, counterfiles.LOCK_ALIVE)
    changes = counterfiles.Snapshot(path).changes
    counterfiles.other_boot(path)
    with Counters(path) as c:
        c.add("a")
    assert counterfiles.Snapshot(path).changes == changes
    assert parent("c['a'], bound.load()") == (3, 3)


def test_r23_names_are_made_under_a_lock_of_its_own(parent: Peer, path: str) -> None:
    """Closing any descriptor in the middle of it does not give the lock up."""
    with Peer("c = mmapds.Counters(path)", path=path) as other:
        parent(
            """
import fcntl, counterfiles
fd = os.open(path, os.O_RDWR)
counterfiles.lock(fd, counterfiles.LOCK_NAMES)
os.close(os.open(path, os.O_RDWR))
"""
        )
        other.send("c.add('new')")
        assert "new" not in counterfiles.Snapshot(path).values()
        parent("os.close(fd)")
        assert other.receive() == 1


def test_r23_an_executed_program_inherits_nothing(parent: Peer, path: str) -> None:
    parent("import subprocess; p = subprocess.Popen(['sleep', '600'], close_fds=False)")
    child = parent("p.pid")
    try:
        assert not [name for name in open_files(child) if path in name]
        parent.kill()
        assert not counterfiles.locked(path, 0, 0)
    finally:
        os.kill(child, signal.SIGKILL)
