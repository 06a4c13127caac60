"""Checks that stand before what must not happen, one by one: hostile words, calls that fail, forks, arguments.

Most of them are not met in an ordinary life, and another check behind them often hides that one is missing. Here each
is the one that must say no.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import subprocess
from pathlib import Path
from queue import Full
from typing import Any

import counterfiles
import failpoints
import pytest
import queuefiles
import syncfiles
from peers import Peer, PeerDiedError
from stages import Stage

from mmapds import (
    Closed,
    CorruptionError,
    Counters,
    MappingLost,
    Queue,
    Region,
    ShutDown,
    StaleClaim,
    Synchronizer,
)
from mmapds._native.atomic import own_methods
from mmapds._native.extents import Window
from mmapds._native.lockword import Lock
from mmapds._native.region import FLAGS, Mapping
from mmapds._native.results import ReadResult

WHY = failpoints.missing()
with_failpoints = pytest.mark.skipif(WHY is not None, reason=str(WHY))
leaves_it = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

SETUP = """
import errno, os, resource, signal
def in_child(job):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = job()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def raises(error, job):
    try:
        job()
    except error:
        return 0
    except BaseException:
        return 2
    return 3

def address_space(more):
    space = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (space + more, resource.RLIM_INFINITY))
"""


@pytest.fixture
def peer(tmp_path: Path) -> Any:
    with Peer(SETUP, path=str(tmp_path / "it")) as peer:
        yield peer


def anonymous(size: int = 4096, protection: int = FLAGS["READ"] | FLAGS["WRITE"]) -> Mapping:
    return Mapping(-1, size, protection, FLAGS["PRIVATE"] | FLAGS["ANONYMOUS"])


# ---- forks ---------------------------------------------------------------------------------------------------------


def test_r22_a_fork_leaves_a_descriptor_alone_that_has_the_number_of_a_lock_that_is_closed(peer: Peer) -> None:
    peer("s = mmapds.Synchronizer(path); s.write(1); s.close()")
    peer("mine = [os.open(path + '_sync', os.O_RDONLY) for _ in range(20)]")
    assert peer("in_child(lambda: len([os.fstat(fd) for fd in mine]) - 20)") == 0


def test_r22_a_lock_that_the_parent_holds_is_not_released_in_the_child(peer: Peer) -> None:
    peer("r = mmapds.Region.anonymous(4096); lock = r.lock(0); lock.acquire()")
    assert peer("in_child(lambda: raises(mmapds.ForkedHandle, lock.release))") == 0
    assert peer("lock.locked()") is True


def test_r22_a_result_of_the_parent_is_not_read_in_the_child(peer: Peer) -> None:
    peer("s = mmapds.Synchronizer(path); s.write(1); r = s.read()")
    assert peer("in_child(lambda: raises(mmapds.ForkedHandle, lambda: bytes(r.data)))") == 0
    assert peer("r.value") == 1


def test_r22_a_claim_of_the_parent_is_not_ended_in_the_child(peer: Peer) -> None:
    peer("q = mmapds.Queue(path); q.put(1); c = q.claim()")
    assert peer("in_child(lambda: raises(mmapds.ForkedHandle, c.ack))") == 0
    assert peer("q.stats()['claimed']") == 1
    peer("c.ack()")


def test_r22_a_fork_while_a_new_version_is_mapped(peer: Peer, tmp_path: Path) -> None:
    """The child goes on in the middle of its parent's read; the pins are the parent's."""
    peer(
        """
import sys
w = mmapds.Synchronizer(path); w.write(1); w.write(2); w.write(3)
s = mmapds.Synchronizer(path); s.read().release()
for n in range(4, 8): w.write("long" * 10_000 * n)
armed, pid = True, -1
def hook(event, arguments):
    global armed, pid
    if armed and event == "open" and "_data_" in str(arguments[0]):
        armed = False
        w.write("newer"); w.write("newest")
        pid = os.fork()
sys.addaudithook(hook)
def read():
    with s.read() as r:
        return r.value
"""
    )
    peer(
        """
try:
    found = read()
except mmapds.ForkedHandle:
    found = "forked"
except BaseException as error:
    found = repr(error)
if pid == 0:
    os._exit(0 if found == "forked" else 1)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
    )
    assert peer("found, status") == ("newest", 0)
    assert syncfiles.pins(str(tmp_path / "it")) == {}, "a pin of the child's in its parent's slot"


# ---- arguments -----------------------------------------------------------------------------------------------------


def test_words_that_no_atomic_and_no_lock_may_have(tmp_path: Path) -> None:
    with Region.anonymous(4096) as r:
        for offset in (-8, 4089, 4096, 1 << 62):
            with pytest.raises(ValueError, match="is outside"):
                r.atomic(offset)
        with pytest.raises(ValueError, match="misaligned"):
            r.atomic(4)
        with pytest.raises(ValueError, match="cannot wake"):
            r.atomic(0).wake(-1)
        assert r.atomic(0).wait(0, timeout=0.01) is False
    with Region.open(tmp_path / "it", 4096):
        pass
    with Region.open(tmp_path / "it", mode="private") as r, pytest.raises(ValueError, match="cannot wait"):
        r.atomic(0).wait(1, timeout=0.01)
    with pytest.raises(ValueError, match="read-only"):
        Lock(anonymous(protection=FLAGS["READ"]), 0, list)  # type: ignore[arg-type]


def test_what_no_window_may_show_and_no_result_made_of_nothing() -> None:
    for start, size in ((-1, 10), (0, -1), (0, 4097), (4090, 7), (1 << 62, 1 << 62)):
        with pytest.raises(ValueError, match="are not within"):
            Window(anonymous(), start, size)
    with pytest.raises(TypeError):
        memoryview(ReadResult())
    with pytest.raises(TypeError, match="a class"):
        own_methods(5)  # type: ignore[type-var]


def test_an_item_that_can_never_fit(tmp_path: Path) -> None:
    with Queue(tmp_path / "it", codec="raw", max_bytes=1000) as q, pytest.raises(ValueError, match="never fit"):
        q.put_nowait(bytes(2000))


def test_what_is_asked_for_is_not_waited_for_when_it_cannot_be(tmp_path: Path) -> None:
    with Queue(tmp_path / "it", codec="raw", maxsize=2) as q, Queue(tmp_path / "it", codec="raw") as other:
        for n in (0, -1):
            with pytest.raises(ValueError, match="at least one"):
                q.get_many(n, False)
            with pytest.raises(ValueError, match="at least one"):
                q.claim_many(n, timeout=0)
        with pytest.raises(Full) as caught:
            q.put_many([b"a", bytes(5000), b"c"], block=False)
        assert caught.value.args[0] == 2
        assert [q.get_nowait(), q.get_nowait()] == [b"a", bytes(5000)]
        other.shutdown()
        with pytest.raises(ShutDown):
            q.put_nowait(b"d")
        with pytest.raises(ShutDown):
            q.get(timeout=0.1)
    with Region.anonymous(4096) as r:
        lock, word = r.lock(0), r.atomic(8)
        with lock, pytest.raises(RuntimeError, match="not reentrant"):
            lock.acquire(timeout=0.01)
        word.store(5)
        assert word.load() == 5


def test_a_closed_queue_says_so(tmp_path: Path) -> None:
    q = Queue(tmp_path / "it")
    q.close()
    for job in (q.qsize, q.empty, lambda: q.unfinished_tasks, q.get_nowait, lambda: q.put(1), q.purge, q.join):
        with pytest.raises(Closed):
            job()


def test_a_claim_that_was_ended_says_that_it_was(tmp_path: Path) -> None:
    with Queue(tmp_path / "it") as q:
        q.put(1)
        claim = q.claim()
        claim.ack()
        for job in (claim.ack, claim.nack, claim.touch, claim.bury):
            with pytest.raises(StaleClaim, match="has been ended"):
                job()


def test_a_value_that_is_too_long_for_the_crates_files(peer: Peer) -> None:
    """No byte of it exists: it is refused before one is looked at."""
    peer("resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 24, 1 << 24)); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)")
    peer("import ctypes; s = mmapds.Synchronizer(path, codec='raw', protocol='mmap-sync'); s.write_bytes(b'x')")
    name, message = peer.fails("s.write_bytes((ctypes.c_char * (1 << 39)).from_address(4096))")
    assert (name, "too many" in message) == ("ValueError", True)


def test_a_private_region_that_would_have_more_bytes_than_there_are_addresses(tmp_path: Path) -> None:
    with Region.open(tmp_path / "it", 4096):
        pass
    with Region.open(tmp_path / "it", mode="private") as r:
        for size in (2**63 - 1, 2**63 - 4096, (1 << 62) + 1):
            with pytest.raises((ValueError, OSError)):
                r.resize(size)
            assert len(r) == 4096


# ---- calls that fail -----------------------------------------------------------------------------------------------


def test_r09_a_page_that_cannot_be_replaced_is_fatal(peer: Peer) -> None:
    """And no loop without an end: the access would fail again and again."""
    peer("r = mmapds.Region.open(path, 1 << 20); os.truncate(path, 4096); signal.alarm(3)")
    peer("address_space(-(1 << 20))")
    with pytest.raises(PeerDiedError):
        peer("r[8192]")
    assert peer.process.wait() == -signal.SIGBUS


def test_no_addresses_for_counters(peer: Peer) -> None:
    peer("with mmapds.Counters(path, 4) as c: c[0] = 5")
    peer("signal.alarm(10); address_space(3 << 19)")
    assert peer.fails("mmapds.Counters(path)")[0] == "OSError"
    peer("address_space(1 << 40)")
    assert peer("mmapds.Counters(path)[0]") == 5


def test_no_descriptor_for_the_sync_of_a_name(peer: Peer) -> None:
    peer("c = mmapds.Counters(path, 4, durability='power'); c['x'] = 1")
    peer("free = os.dup(0); os.close(free); before = resource.getrlimit(resource.RLIMIT_NOFILE)")
    peer("resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, before[1]))")
    name, message = peer.fails("c.add('new')")
    assert (name, "Too many open files" in message) == ("OSError", True), message
    peer("resource.setrlimit(resource.RLIMIT_NOFILE, before)")
    assert peer("c.add('new')") == 1


def test_calls_on_a_mapping_that_the_kernel_refuses(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        anonymous().keep(-1)
    with Region.open(tmp_path / "it", 4096) as r, pytest.raises(OSError, match="Invalid argument"):
        r._advise(12345, 0, None)
    mapping = anonymous(8192)
    with memoryview(mapping), pytest.raises(BufferError):
        mapping.trim(4096)


def test_r28_no_memory_for_the_lock_of_who_writes(peer: Peer) -> None:
    peer(
        """
import _testcapi
outcomes = []
with mmapds.Synchronizer(path, codec="raw") as s:
    s.write_bytes(b"x")
for n in range(12):
    s = mmapds.Synchronizer(path, codec="raw", mode="private")
    _testcapi.set_nomemory(n, n + 1)
    try:
        s.write_bytes(b"x")
        outcome = "done"
    except MemoryError:
        outcome = "no memory"
    finally:
        _testcapi.remove_mem_hooks()
    outcomes.append(outcome)
    s.write_bytes(b"y")
    assert bytes(s.load()) == b"y"
    s.close()
"""
    )
    assert "no memory" in peer("outcomes")


def test_no_addresses_for_what_views_keep(peer: Peer) -> None:
    """The part that is cut off is copied for the view: if it cannot be, nothing is cut."""
    peer("r = mmapds.Region.open(path, 64 << 20); r[50 << 20] = 7; view = memoryview(r); address_space(1 << 20)")
    assert peer.fails("r.resize(4096)")[0] == "OSError"
    assert peer("len(r), r[50 << 20], view[50 << 20], os.stat(path).st_size") == (64 << 20, 7, 7, 64 << 20)


def test_memory_that_may_not_be_locked(peer: Peer) -> None:
    peer("from mmapds._native.region import FLAGS, Mapping")
    peer("m = Mapping(-1, 1 << 20, FLAGS['READ'] | FLAGS['WRITE'], FLAGS['PRIVATE'] | FLAGS['ANONYMOUS'])")
    peer("resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0)); os.getuid() or os.setresuid(65534, 65534, 65534)")
    assert peer.fails("m.lock_memory()")[0] in ("OSError", "PermissionError")


@pytest.fixture(scope="module")
def starved(nomem: str) -> Any:
    """A peer whose native modules' n-th allocation can be made to fail."""
    with Peer(SETUP + "import ctypes\nlibrary = ctypes.CDLL(None)", env={"LD_PRELOAD": nomem}) as peer:
        yield peer


@pytest.mark.parametrize("table", ["mappings", "locks"])
def test_r28_no_memory_for_the_tables_of_the_process(starved: Peer, tmp_path: Path, table: str) -> None:
    """They grow by 256 at a time."""
    starved(
        """
from mmapds._native.kernel import LockFile
kept, outcomes, file = [], [], open(path, "w")
library.nomem_arm(1)
for n in range(300):
    try:
        if table == "mappings":
            kept.append(mmapds.Region.anonymous(4096))
        else:
            kept.append(LockFile(file.fileno(), path))
    except (MemoryError, OSError) as error:
        outcomes.append(type(error).__name__ if isinstance(error, MemoryError) else error.errno)
        library.nomem_arm(0)
library.nomem_arm(0)
""",
        path=str(tmp_path / "it"),
        table=table,
    )
    assert starved("outcomes") == (["MemoryError"] if table == "mappings" else [errno.ENOMEM])
    starved("del kept; file.close(); import gc; gc.collect(); mmapds.Region.open(path, 4096).lock(0).acquire()")


# ---- hostile words -------------------------------------------------------------------------------------------------


def test_a_data_file_of_the_crate_that_is_gone(tmp_path: Path) -> None:
    path = str(tmp_path / "it")
    with Synchronizer(path, codec="raw", protocol="mmap-sync") as s:
        s.write_bytes(b"value")
    os.unlink(f"{path}_data_0")
    with (
        Synchronizer(path, codec="raw", protocol="mmap-sync", mode="readonly") as s,
        pytest.raises(CorruptionError, match="data_0 is missing"),
    ):
        s.load()


@pytest.mark.parametrize("capacity", [0, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_r16_a_queue_that_says_it_has_entries_that_are_not_there(tmp_path: Path, capacity: int) -> None:
    path = str(tmp_path / "it")
    with Queue(path) as q:
        q.put(1)
    queuefiles.poke_word(queuefiles.meta(path), queuefiles.WORDS["capacity"], capacity)
    with pytest.raises(CorruptionError, match="entries"):
        Queue(path)


def test_r16_a_queue_without_its_sentinel_is_not_opened(tmp_path: Path) -> None:
    path = str(tmp_path / "it")
    with Queue(path) as q:
        q.put(1)
    queuefiles.poke_word(queuefiles.meta(path), queuefiles.SENTINEL, 0)
    with pytest.raises(MappingLost):
        Queue(path)


def test_r16_entries_that_come_and_are_not_in_the_file(tmp_path: Path) -> None:
    path = str(tmp_path / "it")
    with Queue(path) as q:
        q.put_many([1, 2])
        claim = q.claim()
        meta = queuefiles.meta(path)
        before = queuefiles.word(meta, queuefiles.WORDS["capacity"])
        for capacity in (1 << 20, 1 << 40, 1):
            queuefiles.poke_word(meta, queuefiles.WORDS["capacity"], capacity)
            with pytest.raises(CorruptionError, match="entries"):
                q._remap()
        queuefiles.poke_word(meta, queuefiles.WORDS["capacity"], before)
        claim.ack()
        assert q.get() == 2


def test_r16_a_name_that_was_given_up_is_no_name(tmp_path: Path) -> None:
    path = str(tmp_path / "it")
    with Counters(path, 4) as c:
        c["x"] = 5
        c["y"] = 6
    found = counterfiles.Snapshot(path)
    extent = found.extents[0]
    damaged = counterfiles.entry(0, b"", found.identity, b"damaged ")
    counterfiles.poke(path, extent.names_start, damaged)
    with Counters(path) as c:
        assert list(c) == ["y"]
        assert dict(c.items()) == {"y": 6}


# ---- what else a handle meets ----------------------------------------------------------------------------------------


def test_a_value_that_changes_while_it_is_written(tmp_path: Path) -> None:
    """Its bytes are those of the very file that it goes to, a little further on."""
    path = str(tmp_path / "it")
    with Synchronizer(path, codec="raw", durability="power") as s:
        for _ in range(4):
            s.write_bytes(random.randbytes(200_000))
        with (
            open(syncfiles.data(path, 1), "rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content,
            memoryview(content)[4104:154_104] as source,
            pytest.raises(CorruptionError, match="while they were"),
        ):
            s.write_bytes(source)
        assert s.version == 4
        s.write_bytes(b"fine")
        assert bytes(s.load()) == b"fine"


class Interrupting:
    """A codec that is interrupted in the middle of a list."""

    name = "interrupting"

    def encode(self, value: bytes) -> bytes:
        return value

    def decode(self, data: Any) -> bytes:
        if bytes(data) == b"stop":
            raise KeyboardInterrupt
        return bytes(data)


def test_r28_what_was_got_before_an_interruption_is_not_lost(tmp_path: Path) -> None:
    with Queue(tmp_path / "it", codec=Interrupting()) as q:
        q.put_many([b"first", b"second", b"stop", b"third", b"fourth"])
        with pytest.raises(KeyboardInterrupt) as caught:
            q.get_many(4)
        assert caught.value.items == [b"first", b"second", b"third"]  # type: ignore[attr-defined]
        assert q.get() == b"fourth"


def test_puts_go_on_behind_a_segment_that_is_gone(tmp_path: Path) -> None:
    path = str(tmp_path / "it")
    with Queue(path) as q:
        q.put(1)
    os.unlink(queuefiles.segment(path, queuefiles.segments(path)[0]))
    with Queue(path) as q:
        with pytest.raises(CorruptionError, match="is missing, and 1 items"):
            q.put(2)
        q.put(2)
        assert q.get_nowait() == 2


HANDLER = r"""
#include <setjmp.h>
#include <signal.h>
static sigjmp_buf back;
static void handler(int signal) { siglongjmp(back, 1); }
void install(void)
{
    struct sigaction mine = {.sa_handler = handler};
    sigaction(SIGBUS, &mine, 0);
}
int touch(volatile char *where) { return sigsetjmp(back, 1) ? -1 : *where; }
"""


def test_r09_a_handler_from_between_two_of_our_mappings_is_not_forgotten_at_the_third(
    peer: Peer, tmp_path: Path
) -> None:
    compiler = failpoints.compiler()
    if compiler is None:
        pytest.skip("no C compiler here")
    source, built = tmp_path / "handler.c", tmp_path / "handler.so"
    source.write_text(HANDLER)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(source)], check=True)
    peer(
        """
import ctypes, mmap
library = ctypes.CDLL(built)
kept = [mmapds.Region.anonymous(4096)]
library.install()
kept += [mmapds.Region.anonymous(4096) for _ in range(2)]
file = open(path, "w+b")
file.truncate(8192)
foreign = mmap.mmap(file.fileno(), 8192)
file.truncate(0)
address = ctypes.addressof(ctypes.c_char.from_buffer(foreign))
""",
        built=str(built),
    )
    assert peer("library.touch(ctypes.c_void_p(address + 5000))") == -1


@with_failpoints
def test_r28_no_memory_for_a_look_at_a_queue_that_is_in_the_middle_of_something(
    stage: Stage, path: str, starved: Peer
) -> None:
    with Queue(path) as q:
        q.put_many([1, 2])
    victim = stage["victim"]
    victim("q = mmapds.Queue(path)", path=path)
    starved("q = mmapds.Queue(path)", path=path)
    victim.hold("q.get()", "queue_commit")
    victim.kill()
    starved("library.nomem_arm(1)")
    try:
        assert starved.fails("q.stats()")[0] == "MemoryError"
    finally:
        starved("library.nomem_arm(0)")
    assert starved("q.stats()['items']") == 2
    starved("q.close()")
