"""SnapshotMap: versions. Who sees what when: follow, refresh, wait and snapshot."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import snapmaps
from calls import Call
from peers import Peer

from mmapds import Closed, Snapshot, SnapshotMap

MODES = ["shared", "readonly"]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "map")
    yield path
    snapmaps.check(path)


@pytest.fixture
def m(path: str) -> Iterator[SnapshotMap]:
    with SnapshotMap(path) as m:
        snapmaps.commit(m, {"a": 1})
        yield m


# ---- follow --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_each_lookup_of_a_follower_sees_the_newest(m: SnapshotMap, mode: Any) -> None:
    with SnapshotMap(m.path, mode=mode) as f:
        for i in range(2, 60):
            snapmaps.commit(m, {"a": i, f"{i}": i})
            if i % 20 == 0:
                m.compact()
            looks = [
                lambda: f["a"], lambda: f.get("a"), lambda: f.get_many(["a"])["a"], lambda: dict(f)["a"],
                lambda: f.snapshot()["a"], lambda: next(f.prefix("a"))[1], lambda: len(f), lambda: f.get_view("a")[0],
            ]  # fmt: skip
            assert looks[i % len(looks)]() == i
            assert f.version == m.version


def test_a_follower_in_another_process(m: SnapshotMap) -> None:
    with Peer("m = mmapds.SnapshotMap(path, mode='readonly')", path=m.path) as peer:
        for i in range(20):
            snapmaps.commit(m, {"a": i})
            assert peer("m['a'], m.version") == (i, m.version)
        peer("w = mmapds.SnapshotMap(path)")
        for i in range(20):
            peer("with w.transaction() as txn: txn['a'] = ('peer', i)", i=i)
            assert m["a"] == ["peer", i]


@pytest.mark.parametrize("mode", MODES)
def test_without_follow_a_handle_stays_until_refresh(m: SnapshotMap, mode: Any) -> None:
    with SnapshotMap(m.path, mode=mode, follow=False) as f:
        assert f.follow is False
        walk = f.items()
        snapmaps.commit(m, {"a": 2, "b": 2})
        m.compact()
        assert (f["a"], f.version, len(f), list(f), "b" in f, dict(walk)) == (1, 2, 1, ["a"], False, {"a": 1})
        assert f.snapshot().version == 2
        assert f.refresh() == 4 == f.version
        assert snapmaps.contents(f) == {"a": 2, "b": 2}
        assert dict(walk) == {"a": 2, "b": 2}, "a view is of the map, and a walk of it begins anew"
        snapmaps.commit(m, {"a": 3})
        assert (f["a"], f.version) == (2, 4)
        assert (f.refresh(), f.refresh()) == (5, 5)


def test_a_transaction_of_a_handle_that_does_not_follow(m: SnapshotMap) -> None:
    with SnapshotMap(m.path, follow=False) as f:
        snapmaps.commit(m, {"a": 2})
        with f.transaction() as txn:
            assert txn["a"] == 2, "it builds on the newest version"
            txn["b"] = txn["a"]
        assert (f["a"], f.version) == (1, 2), "and the handle stays where it was"
        assert f.refresh() == 4
        assert dict(f) == {"a": 2, "b": 2}


def test_refresh_of_a_follower_says_the_version(m: SnapshotMap) -> None:
    with SnapshotMap(m.path, mode="readonly") as f:
        assert f.refresh() == 2
        snapmaps.commit(m, {"a": 2})
        assert f.refresh() == 3


def test_versions_count_commits(m: SnapshotMap) -> None:
    assert m.version == 2
    for expected in range(3, 50):
        assert snapmaps.commit(m, {"a": expected}) == expected
    m.compact()
    assert m.version == 50


# ---- snapshots -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [*MODES, "private"])
def test_a_snapshot_is_frozen(m: SnapshotMap, mode: Any) -> None:
    with SnapshotMap(m.path, mode=mode) as f:
        snapshot = f.snapshot()
        again = snapshot.snapshot()
        snapmaps.commit(m, {"b": 2}, "a")
        m.compact()
        with SnapshotMap(m.path, mode=mode) as newer:
            later = newer.snapshot()
        for frozen in (snapshot, again):
            assert isinstance(frozen, Snapshot)
            assert snapmaps.contents(frozen) == {"a": 1}
            assert (frozen.version, len(frozen), frozen.path) == (2, 1, m.path)
        assert snapmaps.contents(later) == {"b": 2}
        again.close()
        assert snapshot["a"] == 1, "each by itself"
        with snapshot:
            pass
        with pytest.raises(Closed):
            snapshot.get("a")


def test_a_snapshot_has_nothing_that_changes(m: SnapshotMap) -> None:
    snapshot: Any = m.snapshot()
    for name in ("transaction", "refresh", "wait", "compact", "set"):
        assert not hasattr(snapshot, name)
    with pytest.raises(TypeError):
        snapshot["a"] = 1
    with pytest.raises(TypeError):
        del snapshot["a"]


# ---- wait ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [*MODES, "private"])
def test_a_version_that_is_there_already_is_returned_at_once(m: SnapshotMap, mode: Any) -> None:
    with SnapshotMap(m.path, mode=mode) as f:
        assert f.wait(0) == f.wait(1, 0) == f.wait(newer_than=1, timeout=5.0) == 2
        snapmaps.commit(m, {"a": 2})
        assert f.wait(2) == 3, "also when this handle has not looked"


@pytest.mark.parametrize("mode", [*MODES, "private"])
@pytest.mark.parametrize("timeout", [0, -1, 0.1])
def test_none_after_the_timeout_and_not_before(m: SnapshotMap, mode: Any, timeout: float) -> None:
    with SnapshotMap(m.path, mode=mode) as f:
        began = time.monotonic()
        assert f.wait(timeout=timeout) is None
        assert time.monotonic() - began >= timeout
        assert f.wait(2, timeout) is None
        assert f.wait(1 << 62, timeout) is None


@pytest.mark.parametrize("mode", MODES)
def test_a_commit_wakes_who_waits(m: SnapshotMap, mode: Any) -> None:
    with SnapshotMap(m.path, mode=mode) as f:
        for i in range(5):
            call = Call(lambda: (f.wait(), f["a"]))
            assert call.waits
            snapmaps.commit(m, {"a": i})
            assert call.result() == (3 + i, i)
        call = Call(f.wait)
        assert call.waits
        m.compact()
        assert call.result() == 8


@pytest.mark.parametrize("mode", [*MODES, "private"])
def test_a_commit_wakes_who_waits_in_another_process(m: SnapshotMap, mode: Any) -> None:
    with Peer("m = mmapds.SnapshotMap(path, mode=mode)", path=m.path, mode=mode) as peer:
        for i in range(10):
            peer.send("m.wait(version), m.refresh(), m['a']", version=m.version)
            snapmaps.commit(m, {"a": i})
            assert peer.receive() == (m.version, m.version, i)


def test_several_wait(m: SnapshotMap) -> None:
    with SnapshotMap(m.path) as other, SnapshotMap(m.path, mode="readonly") as reader:
        calls = [Call(lambda f=f: f.wait(2)) for f in (m, m, other, other, reader)]
        assert all(call.waits for call in calls)
        snapmaps.commit(m, {"a": 2})
        assert [call.result() for call in calls] == [3] * 5


def test_a_build_ends_a_wait(m: SnapshotMap) -> None:
    call = Call(m.wait)
    assert call.waits
    SnapshotMap.build(m.path, {"b": 1})
    assert call.result() == 3


@pytest.mark.parametrize("mode", [*MODES, "private"])
def test_ctrl_c_ends_a_wait(m: SnapshotMap, mode: Any) -> None:
    with Peer("m = mmapds.SnapshotMap(path, mode=mode)", path=m.path, mode=mode) as peer:
        for timeout in (None, 1e6):
            peer.send(f"m.wait(timeout={timeout})")
            time.sleep(0.1)  # so that it waits, mostly; if it does not yet, it is interrupted too
            peer.signal(signal.SIGINT)
            with pytest.raises(Exception, match="KeyboardInterrupt"):
                peer.receive()
        assert peer("m['a']") == 1


def test_closing_ends_a_wait_of_another_thread(m: SnapshotMap) -> None:
    f = SnapshotMap(m.path)
    call = Call(f.wait)
    assert call.waits
    f.close()
    with pytest.raises(Closed):
        call.result()


def test_threads_that_verify_index_each_batch_once(path: Path) -> None:
    """Hashing a large batch lets other threads run; one of them may have gone by a newer version meanwhile."""
    with SnapshotMap(path, codec="raw") as m:
        m.refresh()
    setup = """
m = mmapds.SnapshotMap(path)
def commit(n):
    with m.transaction() as t:
        t["big"] = bytes(1_900_000)
        t["a"] = b"old %d" % n
    with m.transaction() as t:
        t["a"] = b"new %d" % n
"""
    stop = threading.Event()
    interval = sys.getswitchinterval()
    with Peer(setup, path=str(path)) as writer, SnapshotMap(path, verify=True) as m:

        def look() -> None:
            while not stop.is_set():
                m.get("a")

        threads = [threading.Thread(target=look) for _ in range(3)]
        sys.setswitchinterval(1e-5)
        try:
            for thread in threads:
                thread.start()
            for n in range(40):
                writer(f"commit({n})")
                assert m["a"] == b"new %d" % n, (n, m.stats())
        finally:
            sys.setswitchinterval(interval)
            stop.set()
            for thread in threads:
                thread.join()
