"""Processes, threads, forks, boots, copies, clocks, interruptions and limits (rows 18, 21, 22, 24, 25, 27 to 30)."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import snapdisk
import syncfiles
from peers import Peer

from mmapds import Closed, CorruptionError, ForkedHandle, SnapshotMap, WriterBusy


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmapds._snapfiles.DELTA_SIZE", 32768)
    monkeypatch.setattr("mmapds._snapfiles.DELTA_BUCKETS", 64)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "map")


def put(m: SnapshotMap, **changes: object) -> None:
    with m.transaction() as t:
        t.update(changes)


# ---- row 18 --------------------------------------------------------------------------------------------------------

AT_ONCE = """
import random, tempfile, time, victims
def at_once(count, job):
    reading, go = os.pipe()
    pids = []
    for n in range(count):
        def run():
            os.close(go)
            os.read(reading, 1)  # ends for all of them at the same moment
            job(n)
        pids.append(victims.spawn(run))
    os.close(go)
    os.close(reading)
    return [victims.finish(pid) for pid in pids]

def busy(job):
    while True:
        try:
            return job()
        except mmapds.WriterBusy:
            time.sleep(random.random() * 0.01)

def commit(n):
    with mmapds.SnapshotMap(path) as m:
        def job():
            with m.transaction() as t:
                t[f"k{n}"] = n
                t["count"] = t.get("count", 0) + 1
        busy(job)
"""


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_r18_64_processes_create_the_map_at_once(path: str, rounds: int) -> None:
    with Peer(AT_ONCE) as zygote:
        for n in range(rounds):
            assert zygote("at_once(64, commit)", path=f"{path}{n}") == [0] * 64, zygote.stderr()
            with SnapshotMap(f"{path}{n}") as m:
                assert dict(m) == {f"k{n}": n for n in range(64)} | {"count": 64}
            snapdisk.check(f"{path}{n}")


def test_r18_some_build_and_some_open_at_once(path: str) -> None:
    with Peer(AT_ONCE) as zygote:
        zygote(
            """
def job(n):
    if n % 4 == 0:
        busy(lambda: mmapds.SnapshotMap.build(path, {"built": n, "count": 0}))
    else:
        commit(n)
"""
        )
        assert zygote("at_once(32, job)", path=path) == [0] * 32, zygote.stderr()
    found = snapdisk.check(path)
    with SnapshotMap(path) as m:
        assert len(m) == len(found.entries) == m["count"] + ("built" in m) + 1
        put(m, more=1)


# ---- row 27 --------------------------------------------------------------------------------------------------------


def test_r27_a_second_writer_is_told_who_is_the_first(path: str) -> None:
    with SnapshotMap(path) as m, SnapshotMap(path) as mine, Peer("m = mmapds.SnapshotMap(path)", path=path) as peer:
        peer("t = m.transaction(); t.__enter__() and None")
        for job in (lambda: m.transaction().__enter__(), m.compact, lambda: SnapshotMap.build(path, {"a": 1})):
            with pytest.raises(WriterBusy) as caught:
                job()
            assert str(peer.pid) in str(caught.value), caught.value
        peer("t['a'] = 1; t.__exit__(None, None, None)")
        put(m, b=2)
        with m.transaction() as t:
            t["c"] = 3
            with pytest.raises(WriterBusy):
                mine.transaction().__enter__()
            assert peer.fails("m.transaction().__enter__()")[0] == "WriterBusy"
            assert peer.fails("mmapds.SnapshotMap.build(path, {'a': 1})")[0] == "WriterBusy"
        peer("t = m.transaction(); t.__enter__()['d'] = 4")
        peer.kill()
        put(mine, e=5)
        assert dict(m) == {"a": 1, "b": 2, "c": 3, "e": 5}
    snapdisk.check(path)


def test_r27_threads_of_one_handle_are_serialised(path: str) -> None:
    with SnapshotMap(path) as m:
        put(m, n=0)
        errors = []

        def count(own: int) -> None:
            try:
                for n in range(100):
                    with m.transaction() as t:
                        t["n"] = t["n"] + 1
                        t[f"t{own}"] = n
                    now = m.snapshot()
                    assert now["n"] >= now[f"t{own}"] >= n
            except BaseException as error:  # noqa: BLE001  the test is told
                errors.append(error)

        threads = [threading.Thread(target=count, args=(own,)) for own in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert dict(m) == {"n": 600} | {f"t{own}": 99 for own in range(6)}
    snapdisk.check(path)


# ---- row 22 --------------------------------------------------------------------------------------------------------


def in_child(job: object) -> str:
    """What a forked child says, which runs this."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = str(job())  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001  the test is told
            answer = type(error).__name__
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        found = answers.read()
    assert os.waitpid(pid, 0)[1] == 0
    return found


def test_r22_fork_in_a_transaction(path: str) -> None:
    with SnapshotMap(path, codec="raw") as m:
        put(m, a=b"1", b=b"2")
        view, held, walk = m.get_view("a"), m.snapshot(), iter(m.items())
        with m.transaction() as t:
            t["a"] = b"3"
            for job in (lambda: t.set("x", b"x"), lambda: t.__exit__(None, None, None), lambda: t.__delitem__("a")):
                assert in_child(job) == "ForkedHandle"
            assert in_child(lambda: m.transaction().__enter__()) == "WriterBusy"
            assert in_child(lambda: (m["a"], held["a"], bytes(view), next(walk))) == str(
                (b"1", b"1", b"1", ("a", b"1"))
            )  # type: ignore[arg-type]
            assert in_child(lambda: t.__exit__(ValueError, None, None)) == "None"
            assert in_child(lambda: (m.close(), gc.collect()) and "closed") == "closed"
            assert in_child(lambda: SnapshotMap(path, mode="readonly")["a"]) == "b'1'"
            t["b"] = b"4"
        assert dict(m) == {"a": b"3", "b": b"4"}
        assert in_child(lambda: put(m, c=b"5")) == "None"
        assert m["c"] == b"5"
        put(m, d=b"6")
        assert in_child(m.compact) == "None"
        put(m, e=b"7")
        assert dict(m) == {"a": b"3", "b": b"4", "c": b"5", "d": b"6", "e": b"7"}
    snapdisk.check(path)


def test_r22_a_child_of_a_transaction_writes_when_it_is_over(path: str) -> None:
    """And the parent's place is free when the parent dies, while the child lives."""
    with SnapshotMap(path) as m:
        put(m, a=1)
        with Peer("m = mmapds.SnapshotMap(path)", path=path) as parent:
            parent(
                """
t = m.transaction()
t.__enter__()["b"] = 2
reading, go = os.pipe()
if os.fork() == 0:
    os.close(go)
    os.read(reading, 1)
    with m.transaction() as mine:
        mine["child"] = len(mine)
    os._exit(0)
"""
            )
            with pytest.raises(WriterBusy):
                put(m, c=3)
            parent("t.__exit__(None, None, None); os.close(go); os.waitpid(-1, 0)[1]")
            assert dict(m) == {"a": 1, "b": 2, "child": 2}
            parent(
                """
t = m.transaction()
t.__enter__()
reading, born = os.pipe()
if (child := os.fork()) == 0:
    os.write(born, b"!")  # it has run, and so its fork handler
    signal.pause()
os.read(reading, 1)
"""
            )
            with pytest.raises(WriterBusy):
                put(m, c=3)
            child = parent("child")
            parent.kill()
            put(m, c=3)
            os.kill(child, signal.SIGKILL)
        assert m["c"] == 3


def test_r22_an_exception_that_is_the_childs(path: str) -> None:
    with SnapshotMap(path) as m, m.transaction() as t:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                t["a"] = 1
            except ForkedHandle:
                status = 0
            os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0


# ---- rows 21 and 24 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["another boot", "copy"])
def test_r24_another_boot_and_copies(path: str, how: str) -> None:
    with SnapshotMap(path, codec="raw") as m:
        for n in range(30):
            put(m, **{f"k{n:02}": b"%d" % n * 1000, "n": b"%d" % n})
        with m.transaction() as t:
            del t["k03"]
            t.set("late", b"late", ttl=1000)
        expected = dict(m)
    if how == "copy":
        shutil.move(path, path + "-moved")
        shutil.copytree(path + "-moved", path)
    else:
        snapdisk.other_boot(path)
    before = snapdisk.content(path)
    for mode in ("readonly", "private", "readonly"):
        with SnapshotMap(path, mode=mode) as m:  # type: ignore[arg-type]
            assert dict(m) == expected
            assert dict(reversed(m.items())) == expected
            assert 900 < m.ttl("late") <= 1000  # type: ignore[operator]
    assert snapdisk.content(path) == before
    with SnapshotMap(path) as m, SnapshotMap(path, mode="readonly") as reader:
        assert dict(m) == expected
        for n in range(20):
            put(m, new=b"%d" % n * 900)
            assert dict(reader) == dict(m) == expected | {"new": b"%d" % n * 900}
        m.compact()
        assert 900 < reader.ttl("late") <= 1000  # type: ignore[operator]
        assert dict(reader) == dict(m) == expected | {"new": b"%d" % 19 * 900}
    snapdisk.check(path)


def test_r24_a_copy_is_verified_before_it_is_trusted(path: str) -> None:
    values = {f"k{n:04}": b"%d" % n * 200 for n in range(2000)}
    SnapshotMap.build(path, values, codec="raw")
    copy = path + "-copy"
    shutil.copytree(path, copy)
    [file] = snapdisk.layers(copy)
    at = Path(file).read_bytes().index(values["k1234"])
    syncfiles.poke(file, at, b"?")
    with SnapshotMap(copy, mode="readonly") as m:
        assert m["k0001"] == values["k0001"], "what is whole is whole"
        with pytest.raises(CorruptionError, match="block"):
            m["k1234"]
        with pytest.raises(CorruptionError, match="block"):
            list(m.items())


def test_r21_containers_with_boot_ids_of_their_own(path: str, tmp_path: Path) -> None:
    """Both write in turn; nobody resets the other, and each sees what the other did."""
    mine = Path("/proc/sys/kernel/random/boot_id")
    if os.geteuid() or not mine.exists():
        pytest.skip("needs root, to make a mount namespace")
    boot = tmp_path / "boot_id"
    boot.write_text("01234567-89ab-cdef-0123-456789abcdef\n")
    put_code = "with m.transaction() as t: t.update(changes)"
    with SnapshotMap(path, codec="raw") as m:
        put(m, a=b"1" * 3000)
        try:
            other = Peer(wrapper=("unshare", "--mount", "sh", "-c", f'mount --bind {boot} {mine} && exec "$@"', "sh"))
        except Exception as error:  # noqa: BLE001
            pytest.skip(f"no mount namespace here: {error}")
        with other:
            if other("open('/proc/sys/kernel/random/boot_id').read()") != boot.read_text():
                pytest.skip("nothing can be mounted here")
            other("m = mmapds.SnapshotMap(path); r = mmapds.SnapshotMap(path, mode='readonly')", path=path)
            held = m.snapshot()
            for n in range(30):
                put(m, a=b"%d" % n * 1000)
                assert other("m['a'], r['a']") == (b"%d" % n * 1000, b"%d" % n * 1000), n
                other(put_code, changes={"b": b"%d" % n * 1000})
                assert m["b"] == b"%d" % n * 1000, n
                assert other("dict(m) == dict(r)")
            with m.transaction() as t:
                t["c"] = b"c"
                assert other.fails(put_code, changes={"d": b"d"})[0] == "WriterBusy"
            other("m.compact()")
            assert other("dict(r)") == dict(m)
            assert dict(held) == {"a": b"1" * 3000}
    snapdisk.check(path, linked=False)


# ---- row 25 --------------------------------------------------------------------------------------------------------


def test_r25_the_wall_clock_does_not_matter(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at once for each boot: by who publishes first, so that times go on over boots."""
    with SnapshotMap(path) as m:
        with m.transaction() as t:
            t.set("soon", 1, ttl=0.05)
            t.set("late", 2, ttl=1000)
        clock, real = m._state.clock, time.clock_gettime_ns
        for years in (-10, 10):
            offset = years * 365 * 86400 * 10**9
            monkeypatch.setattr(
                time,
                "clock_gettime_ns",
                lambda which, o=offset: real(which) + (o if which == time.CLOCK_REALTIME else 0),
            )
            with SnapshotMap(path) as other, SnapshotMap(path, mode="readonly") as reader:
                assert other["late"] == reader["late"] == 2
                put(other, **{f"y{abs(years)}": years})
                assert other._state.clock == reader._state.clock == m._state.clock == clock
                assert 900 < reader.ttl("late") <= 1000  # type: ignore[operator]
        monkeypatch.undo()
        while m._state.now <= m._state.now and "soon" in m:
            time.sleep(0.005)
        assert m.get("soon") is None
        m.compact()
        assert sorted(m) == ["late", "y10"]


def test_r25_a_time_namespace_of_its_own(path: str) -> None:
    """Its CLOCK_BOOTTIME is another one; when something expires is the same moment for all."""
    if os.geteuid():
        pytest.skip("needs root, to make a time namespace")
    command = ("unshare", "--time", "--boottime", "1000000")
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no time namespaces here")
    with SnapshotMap(path) as m, Peer(wrapper=command) as peer:
        with m.transaction() as t:
            t.set("a", 1, ttl=1000)
        peer("m = mmapds.SnapshotMap(path)", path=path)
        assert 900 < peer("m.ttl('a')") <= 1000
        peer("with m.transaction() as t: t.set('b', 2, ttl=2000)")
        assert 1900 < m.ttl("b") <= 2000  # type: ignore[operator]
        assert abs(peer("m._state.now") - m._state.now) < 60 * 10**9


# ---- row 28 --------------------------------------------------------------------------------------------------------

INJECT = """
import gc, sys, threading, warnings, snapdisk, victims
warnings.simplefilter("ignore", ResourceWarning)  # an interrupted constructor, or its caller, forgets a handle
snapdisk.tiny(32768, 64)

def interrupted(count, job):
    where = None
    def interrupt():
        nonlocal where
        frame = sys._getframe(2)
        where = f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno} in {frame.f_code.co_name}"
        raise KeyboardInterrupt
    victims.at_line(count, interrupt)
    try:
        job()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return where

def afterwards(m):
    '''The handle is usable by each thread, or closed.'''
    if m is None or m.closed:
        return
    found = []
    def work():
        try:
            with m.transaction() as t:
                t["after"] = t.get("after", 0) + 1
                dict(t)
            m.compact()
            found.append(dict(m))
        except BaseException as error:
            found.append(repr(error))
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert found and isinstance(found[0], dict), f"another thread cannot go on: {found or 'it waits'}"
    with m.transaction() as t:
        t["after"] = t["after"] + 1
    m.close()

def attempt(count, prepare, job):
    '''Where it was interrupted, or None.'''
    scope = globals() | {"m": None}
    exec(prepare, scope)
    where = interrupted(count, lambda: exec(job, scope))
    m = scope.pop("m")
    held = mmapds.SnapshotMap(path, mode="readonly")
    inner = dict(held)
    held.close()
    del held
    scope.clear()
    gc.collect()
    return where, m, inner

def interrupt_at(count, prepare, job):
    where, m, inner = attempt(count, prepare, job)
    try:
        afterwards(m)
    except BaseException as error:
        return where, repr(error), inner
    return where, "", inner
"""

OPENED = "m = mmapds.SnapshotMap(path)"
LINES = {
    "open": ("", OPENED),
    "commit": (OPENED, "with m.transaction() as t: t['k1'] = 'new'"),
    "roll back": (
        OPENED,
        """
try:
    with m.transaction() as t:
        t['k1'] = 'old'
        1 / 0
except ZeroDivisionError: pass
""",
    ),
    "fold": (
        OPENED,
        """
for n in range(4):
    with m.transaction() as t: t['k1'] = 'new' if n == 3 else 'x' * 12000
""",
    ),
    "large": (OPENED, "with m.transaction() as t: t.update(k1='new', k2='x' * 40000)"),
    "compact": (OPENED, "m.compact()"),
    "build": ("", "mmapds.SnapshotMap.build(path, base | {'k1': 'new'})"),
    "look": (
        OPENED,
        "list(m.items()); m.get_many(['k1']); list(m.prefix('k')); m.snapshot()['k1']; m.verify(); m.stats()",
    ),
    "private": (
        "",
        """
p = mmapds.SnapshotMap(path, mode='private')
p['k1'] = 'x'
list(p)
p.publish(path + '-published')
p.close()
""",
    ),
}
BASE = {f"k{n}": n for n in range(20)} | {"k2": "x"}


@pytest.fixture
def injected(path: str) -> Iterator[Peer]:
    with Peer(INJECT, path=path, base=BASE) as peer:
        yield peer


def check_interrupted(path: str, other: SnapshotMap, what: str, inner: dict[str, object], message: str) -> None:
    """What was seen in between is the old or the new version; others go on."""
    inner.pop("after", None)
    new = BASE | {"k1": "new"} | ({"k2": "x" * 40000} if what == "large" else {})
    allowed = [BASE, new] + ([BASE | {"k1": "x" * 12000}] if what == "fold" else [])
    assert inner in allowed, f"{message}: {[(k, v) for k, v in inner.items() if BASE.get(k) != v]}"
    put(other, other=1)
    with other.transaction() as t:
        del t["other"]
    snapdisk.check(path, message)


@pytest.mark.parametrize(
    ("what", "every"),
    [
        *((what, {"commit": 7, "open": 7}.get(what, 19)) for what in ("open", "commit", "large", "compact", "build")),
        *(pytest.param(what, 1, marks=pytest.mark.slow) for what in LINES),
    ],
)
def test_r28_keyboard_interrupt_before_each_line(path: str, injected: Peer, what: str, every: int) -> None:
    prepare, job = LINES[what]
    failures = []
    for count in range(0, 3000, every):
        shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(path + "-published", ignore_errors=True)
        SnapshotMap.build(path, BASE)
        with SnapshotMap(path) as other:
            put(other, k1=1)
            where, error, inner = injected("interrupt_at(count, prepare, job)", count=count, prepare=prepare, job=job)
            message = f"{what}, interrupted at {where}"
            if error:
                failures.append(f"{message}: {error}")
                continue
            try:
                check_interrupted(path, other, what, inner, message)
            except (WriterBusy, AssertionError) as problem:
                failures.append(f"{message}: {problem!r}")
        if where is None:
            break
    assert not failures, f"{len(failures)} failures:\n" + "\n".join(failures)


MEMORY = """
try:
    import _testcapi as testcapi
except ImportError:
    testcapi = None
sys.unraisablehook = lambda info: None      # finalisers run out of memory too

def starve(count, prepare, job):
    '''Allocation number `count` of the job fails; afterwards everything works.'''
    scope = globals() | {"m": None}
    exec(prepare, scope)
    code = compile(job, "job", "exec")
    testcapi.set_nomemory(count, count + 1)
    try:
        exec(code, scope)
        outcome = "finished"
    except Exception:  # MemoryError, and what the standard library makes of it ("can't allocate lock")
        outcome = "failed"
    finally:
        testcapi.remove_mem_hooks()
    m = scope.pop("m")
    held = mmapds.SnapshotMap(path, mode="readonly")
    inner = dict(held)
    held.close()
    try:
        afterwards(m)
    except BaseException as error:
        return outcome, repr(error), inner
    return outcome, "", inner
"""


@pytest.mark.parametrize(
    ("what", "every"),
    [
        ("commit", 5),
        ("look", 9),
        ("large", 13),
        *(pytest.param(what, 1, marks=pytest.mark.slow) for what in LINES if what != "open"),
    ],
)
def test_r28_memory_error_at_each_allocation(path: str, injected: Peer, what: str, every: int) -> None:
    injected(MEMORY)
    if injected("testcapi is None"):
        pytest.skip("this Python was built without _testcapi")
    prepare, job = LINES[what]
    problems, failed = [], 0
    for count in range(0, 400, every):
        shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(path + "-published", ignore_errors=True)
        SnapshotMap.build(path, BASE)
        with SnapshotMap(path) as other:
            put(other, k1=1)
            outcome, error, inner = injected("starve(count, prepare, job)", count=count, prepare=prepare, job=job)
            message = f"{what}, allocation {count}: {outcome}"
            failed += outcome == "failed"
            if error:
                problems.append(f"{message}: {error}")
                continue
            try:
                check_interrupted(path, other, what, inner, message)
            except (WriterBusy, AssertionError) as problem:
                problems.append(f"{message}: {problem!r}")
        if outcome == "finished" and count > 40 and count > 3 * every * failed:
            break
    assert not problems, f"{len(problems)} failures:\n" + "\n".join(problems)
    assert failed > 2


def test_r28_ctrl_c_ends_a_wait_and_a_build(path: str) -> None:
    with SnapshotMap(path) as m, Peer("m = mmapds.SnapshotMap(path)", path=path) as peer:
        put(m, a=1)
        for code in ("m.wait()", "mmapds.SnapshotMap.build(path, ((f'{n}', n) for n in range(1 << 60)))"):
            peer.send(f"open(path + '-started', 'w').close(); {code}")
            while not os.path.exists(path + "-started"):
                time.sleep(0.001)
            time.sleep(0.02)
            peer.signal(signal.SIGINT)
            with pytest.raises(Exception, match="KeyboardInterrupt"):
                peer.receive()
            os.unlink(path + "-started")
        put(m, b=2)
        assert peer("m['b']") == 2
    snapdisk.check(path)


# ---- rows 29 and 30 ------------------------------------------------------------------------------------------------


def test_r29_sizes(path: str) -> None:
    """Keys of every size up to the limit, large values, and numbers that are close to their end."""
    values = {bytes([n % 251]) * n: b"%d" % n for n in (0, 1, 7, 8, 9, 4095, 4096, 65535, 65536)}
    values |= {b"value%d" % n: bytes([n % 251]) * n for n in (0, 1, 65535, 65536, 65537, 1 << 20)}
    SnapshotMap.build(path, values, codec="raw")
    with SnapshotMap(path, verify=True) as m:
        assert dict(m) == values
        with m.transaction() as t:
            t.update(values)
            for key in (b"x" * 65537, b"x" * (1 << 21)):
                with pytest.raises(ValueError, match="65,536"):
                    t[key] = b""
        assert dict(m) == values
        with pytest.raises(ValueError, match="65,536"):
            m.get(b"x" * 65537)
        version = snapdisk.read_manifest(path).version
    syncfiles.set_sequence(snapdisk.prefix(path), (1 << 63) + version)
    with SnapshotMap(path) as m:
        for n in range(5):
            with m.transaction() as t:
                t[b"n"] = b"%d" % n
        assert m.version == (1 << 63) + version + 5
        m.compact()
        assert dict(m) == values | {b"n": b"4"}


@pytest.mark.slow
def test_r29_more_than_4_gib(path: str, tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    memory = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    size = (4 << 30) + 12345
    if free.f_bavail * free.f_frsize < 3 * size or memory < 3 * size:
        pytest.skip("too little room")
    large = bytes(size)
    SnapshotMap.build(path, {"large": large, "small": b"1", "z": b"z"}, codec="raw")
    with SnapshotMap(path, mode="readonly") as m:
        view = m.get_view("large")
        assert view is not None
        assert (len(view), bytes(view[-3:]), m["z"], len(m)) == (size, bytes(3), b"z", 3)
        assert [key for key, _ in m.range("m")] == ["small", "z"]
    del view


def test_r30_views_live_on(path: str) -> None:
    SnapshotMap.build(path, {"a": b"1" * 10_000}, codec="raw")
    m = SnapshotMap(path)
    put(m, b=b"2" * 1000)
    views = [m.get_view("a"), m.get_view("b")]
    held, walk = m.snapshot(), iter(m.items())
    one = next(walk)
    for n in range(60):
        put(m, a=b"%d" % n * 3000, b=b"3")
    m.compact()
    m.close()
    gc.collect()
    shutil.rmtree(path)
    assert [bytes(view) for view in views if view is not None] == [b"1" * 10_000, b"2" * 1000]
    assert [one, *walk] == [("a", b"1" * 10_000), ("b", b"2" * 1000)] == list(held.items())
    held.close()
    with pytest.raises(Closed):
        m["a"]
    with pytest.raises(Closed):
        held["a"]
    assert bytes(views[0]) == b"1" * 10_000  # type: ignore[arg-type]
