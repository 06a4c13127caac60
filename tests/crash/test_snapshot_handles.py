"""Processes, threads, forks, boots, copies, clocks and limits (rows 18, 21, 22, 24, 25, 27, 29 and 30)."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import snapdisk
import syncfiles
from peers import Peer

from mmapds import Closed, CorruptionError, ForkedHandle, SnapshotMap, WriterBusy

pytestmark = pytest.mark.usefixtures("small_deltas")


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
