"""Forks: handles work in the child, what is held stays the parent's (rows 22, 23)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import syncfiles
from peers import Peer, open_files
from victims import number, pattern

from mmapds import Synchronizer, WriterBusy

SIZE = 6000


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "value")


@pytest.fixture
def parent(prefix: str) -> Iterator[Peer]:
    """A process that writes, holds a result and a view, and can have things done in a child."""
    setup = """
import victims, gc, json, tempfile
s = Synchronizer(prefix, codec="raw")
for n in range(1, 4): s.write_bytes(victims.pattern(n, 6000))
r = s.read()
held = s.read()
view = held.data
held.release()

def name(call):
    try:
        return repr(call())
    except Exception as error:
        return type(error).__name__

def in_child(job):
    '''Runs the job in a child that then ends as a script does; what it returned.'''
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, repr(job()).encode())
        except BaseException as error:
            os.write(writing, repr(repr(error)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        text = answer.read()
    assert victims.finish(pid) == 0
    return eval(text)
"""
    with Peer(setup, prefix=prefix) as peer:
        yield peer


def assert_unharmed(parent: Peer, prefix: str) -> None:
    """The parent is the writer, and holds version 3 twice. (A child that ended without close() left a slot behind.)"""
    assert syncfiles.locked(syncfiles.sync(prefix), syncfiles.LOCK_WRITER), "the parent lost its place"
    assert syncfiles.pins(prefix) == {0: (0, 2)}, syncfiles.state(prefix)
    assert 0 in syncfiles.slots_in_use(prefix), syncfiles.state(prefix)
    assert syncfiles.locked(syncfiles.sync(prefix), syncfiles.LOCK_SLOT), "the parent's slot looks dead"
    assert not syncfiles.locked(syncfiles.sync(prefix), syncfiles.LOCK_SLOT + 1, 1000), "a lock of the child's is left"
    assert parent("victims.number(view), victims.number(r.data), r.version") == (3, 3, 3)
    assert parent("s.write_bytes(victims.pattern(s.version + 1, 6000), 0.0).size") == SIZE
    assert parent("s.write_bytes(victims.pattern(s.version + 1, 6000), 0.0).reset") is True
    assert parent("victims.number(view), victims.number(r.data), r.version") == (3, 3, 3)
    with Synchronizer(prefix) as other, pytest.raises(WriterBusy, match=str(parent.pid)):
        other.write_bytes(b"x")


def test_r22_what_the_parent_holds_raises_in_the_child(parent: Peer, prefix: str) -> None:
    uses = ["r.data", "r.value", "memoryview(r)", "bytes(r)"]
    found = parent(f"in_child(lambda: [name(lambda: eval(use)) for use in {uses}])")
    assert found == ["ForkedHandle"] * len(uses)
    assert parent("in_child(lambda: victims.number(view))") == 3, "a view is memory, and memory is inherited"
    assert_unharmed(parent, prefix)


@pytest.mark.parametrize(
    "job",
    [
        "r.release()",
        "view.release()",
        "s.close()",
        "(r.release(), view.release(), s.close())",
        "[globals().pop(name, None) for name in ('r', 'held', 'view')] and gc.collect()",
        "[globals().pop(name, None) for name in ('s', 'r', 'held', 'view')] and (warnings(), gc.collect())",
        "r.__exit__(None, None, None)",
        "(s.load(), s.close(), r.release())",
        "(s.read(), view.release(), r.release(), gc.collect())",
        "os._exit(0)",
        "os.kill(os.getpid(), 9)",
    ],
)
def test_r22_release_collection_close_and_exit_in_the_child_leave_the_parents_alone(
    parent: Peer, prefix: str, job: str
) -> None:
    parent("def warnings(): import warnings as w; w.simplefilter('ignore')")
    parent(
        f"""
pid = os.fork()
if pid == 0:
    try:
        {job}
    except BaseException:
        victims.traceback.print_exc()
        os._exit(3)
    os._exit(0)
status = victims.finish(pid)
"""
    )
    assert parent("status") in (0, -signal.SIGKILL), parent.stderr()
    assert_unharmed(parent, prefix)


def test_r22_the_child_registers_anew_at_its_first_read(parent: Peer, prefix: str) -> None:
    job = """
def job():
    with s.read() as mine:
        first = victims.number(mine.data), mine.copied, s.slot
        slots = victims_slots()
    before = s.load()
    s.close()
    return first, slots, victims.number(before)
import syncfiles
victims_slots = lambda: syncfiles.slots_in_use(prefix)
"""
    parent(job)
    assert parent("in_child(job)") == ((3, False, 1), [0, 1], 3)
    assert syncfiles.slots_in_use(prefix) == [0]
    assert_unharmed(parent, prefix)


def test_r22_the_child_is_not_the_writer(parent: Peer, prefix: str) -> None:
    assert parent("in_child(lambda: name(lambda: s.write_bytes(b'x')))") == "WriterBusy"
    assert_unharmed(parent, prefix)
    parent("s.close(); s = Synchronizer(prefix)")
    assert parent("in_child(lambda: (name(lambda: s.write_bytes(victims.pattern(6, 6000)).size), s.close()))") == (
        "6000",
        None,
    )
    assert parent("s.write_bytes(victims.pattern(7, 6000)).size") == SIZE


def test_r22_version_load_and_wait_work_in_the_child(parent: Peer, prefix: str) -> None:
    parent("first = s.load()")
    assert parent("in_child(lambda: (s.version, s.load() is first, s.wait(0), s.wait(timeout=0)))") == (
        3,
        True,
        3,
        None,
    )
    parent(
        """
reading, writing = os.pipe()
pid = os.fork()
if pid == 0:
    os.write(writing, str(s.wait(newer_than=3)).encode())
    os._exit(0)
s.write_bytes(victims.pattern(4, 6000))
status = victims.finish(pid)
"""
    )
    assert parent("status, os.read(reading, 10)") == (0, b"4")


def test_r22_the_parents_things_are_free_at_its_death_while_the_child_lives(parent: Peer, prefix: str) -> None:
    """A child inherits descriptors and mappings, and must not keep the parent's locks alive with them."""
    child = parent("pid = os.fork()\nif pid == 0:\n    signal.pause()\npid")
    try:
        assert_unharmed(parent, prefix)
        parent.kill()
        os.kill(child, 0)
        with Synchronizer(prefix) as s:
            assert s.write_bytes(pattern(6, SIZE), grace=600.0).size == SIZE
            s.write_bytes(pattern(7, SIZE), grace=600.0)
            assert syncfiles.pins(prefix) == {}, "the dead parent's pins"
            assert number(s.load()) == 7
    finally:
        os.kill(child, signal.SIGKILL)


def test_r22_a_grandchild_and_a_fork_of_a_child_that_registered(parent: Peer, prefix: str) -> None:
    parent(
        """
def generation(depth):
    with s.read() as mine:
        assert victims.number(mine.data) == 3
        if depth:
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    assert name(lambda: mine.data) == "ForkedHandle"
                    generation(depth - 1)
                    status = 0
                finally:
                    os._exit(status)
            assert victims.finish(pid) == 0
        assert victims.number(mine.data) == 3
    return True
"""
    )
    assert parent("in_child(lambda: generation(3))") is True, parent.stderr()
    assert_unharmed(parent, prefix)


def test_r22_children_of_multiprocessing_read_what_they_inherited(prefix: str) -> None:
    setup = """
import multiprocessing, victims
s = Synchronizer(prefix, codec="raw")
s.write_bytes(victims.pattern(1, 6000))
r = s.read()
queue = multiprocessing.get_context("fork").Queue()
def work():
    queue.put([victims.number(s.load()) for _ in range(10)])
    s.close()
def run(count):
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=work) for _ in range(count)]
    for child in children: child.start()
    found = [queue.get() for _ in children]
    for child in children: child.join()
    return found, [child.exitcode for child in children]
"""
    with Peer(setup, prefix=prefix) as peer:
        assert peer("run(4)") == ([[1] * 10] * 4, [0] * 4), peer.stderr()
        assert peer("victims.number(r.data)") == 1
        assert syncfiles.pins(prefix) == {0: (0, 1)}


@pytest.mark.parametrize("how", ["os.close(os.open(path, os.O_RDWR))", "open(path, 'rb').read()"])
def test_r23_closing_another_descriptor_of_the_file_keeps_the_locks(parent: Peer, prefix: str, how: str) -> None:
    """POSIX record locks would be gone."""
    for suffix in syncfiles.SUFFIXES:
        parent(f"{how} and None", path=prefix + suffix)
    parent("o = Synchronizer(prefix); o.load(); o.close()")
    parent("o = Synchronizer(prefix, mode='readonly'); o.load(); o.close(); mmapds.Region")
    assert_unharmed(parent, prefix)


def test_r23_an_executed_program_inherits_nothing(parent: Peer, prefix: str) -> None:
    parent("import subprocess; p = subprocess.Popen(['sleep', '600'], close_fds=False)")
    child = parent("p.pid")
    try:
        assert not [name for name in open_files(child) if prefix in name]
        parent.kill()
        with Synchronizer(prefix) as s:
            s.write_bytes(pattern(4, SIZE))
    finally:
        os.kill(child, signal.SIGKILL)
