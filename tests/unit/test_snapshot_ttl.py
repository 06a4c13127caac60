"""SnapshotMap: entries that expire read as absent everywhere, count until a compaction, and never bring an older value
back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import snapmaps

from mmapds import SnapshotMap

WATCHDOG = 60.0
SHORT = 0.05  # seconds: long enough to look at it before, mostly
LONG = 10_000.0


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "map")
    yield path
    snapmaps.check(path)


def wait_until_gone(m: Any, *keys: Any) -> None:
    limit = time.monotonic() + WATCHDOG
    while any(key in m for key in keys):
        assert time.monotonic() < limit, f"{[key for key in keys if key in m]} do not expire; {m.stats()}"
        time.sleep(0.002)


def absent(m: Any, key: Any) -> None:
    """By each way to read."""
    assert key not in m
    assert m.get(key) is None
    assert m.get(key, "default") == "default"
    assert m.get_view(key, "default") == "default"
    assert m.get_many([key]) == {}
    with pytest.raises(KeyError):
        m[key]
    assert key not in list(m)
    assert key not in dict(m.items())
    assert key not in list(reversed(m))
    assert key not in [found for found, _ in m.range(reverse=True)]
    assert list(m.range(key, key + "\0")) == list(m.prefix(key)) == []
    assert len(list(m.values())) == len(list(m))
    assert key not in m.keys()  # noqa: SIM118


@pytest.mark.parametrize("where", ["delta", "layer"])
def test_what_has_expired_reads_as_absent_everywhere(path: str, where: str) -> None:
    with SnapshotMap(path) as m, SnapshotMap(path, mode="readonly") as reader, SnapshotMap(path, follow=False) as old:
        with m.transaction() as txn:
            txn.set("b", 2, SHORT)
            txn.set("c", 3, ttl=LONG)
            txn.update(a=1, d=4)
        if where == "layer":
            snapmaps.fold(m)
        old.refresh()
        snapshot, walk = m.snapshot(), m.items()
        began = iter(walk)
        wait_until_gone(m, "b")
        with SnapshotMap(path, mode="private") as private, SnapshotMap(path, mode="readonly", verify=True) as verified:
            for handle in (m, reader, old, snapshot, private, verified):
                absent(handle, "b")
                assert dict(handle) == {"a": 1, "c": 3, "d": 4}
                assert len(handle) == 4, "what has expired counts"
        assert dict(began) == {"a": 1, "c": 3, "d": 4}, "a walk leaves out what has expired when it comes there"
        with m.transaction() as txn:
            absent(txn, "b")
            with pytest.raises(KeyError):
                del txn["b"]
            assert len(txn) == 4
        m.compact()
        assert (len(m), len(reader), len(old), len(snapshot), dict(m)) == (3, 3, 4, 4, {"a": 1, "c": 3, "d": 4})
        assert snapmaps.layers(m) == [3]


def test_an_entry_is_there_until_it_expires(path: str) -> None:
    with SnapshotMap(path) as m:
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        snapmaps.commit(m, {"a": 1}, ttl=0.2)
        while "a" in m:
            assert m.get("a") in (1, None)
        assert time.clock_gettime(time.CLOCK_BOOTTIME) - before >= 0.2


def test_an_older_value_does_not_come_back(path: str) -> None:
    """Neither when the delta becomes a layer over the older one, nor when layers are merged, nor by compaction."""
    with SnapshotMap(path) as m:
        usual = m._files.delta_size
        m._files.delta_size = 2
        snapmaps.commit(m, {"a": "oldest", "b": "oldest", "z": "x" * 100_000})
        snapmaps.commit(m, {"a": "older", "y": "x" * 10_000})
        m._files.delta_size = usual
        snapmaps.commit(m, {"a": "newest", "b": "newest"}, ttl=SHORT)
        assert len(snapmaps.layers(m)) == 2
        wait_until_gone(m, "a", "b")
        for step in ("delta", "layer over others", "merged", "compacted"):
            if step == "layer over others":
                m._files.delta_size = 2
                snapmaps.commit(m, {"new": 1})
                assert len(snapmaps.layers(m)) > 1
            elif step == "merged":
                snapmaps.commit(m, {"large": "x" * 9_000})
            elif step == "compacted":
                m.compact()
            for key in "ab":
                absent(m, key)
        assert (len(m), snapmaps.layers(m)) == (4, [4])


def test_the_same_in_a_layer_that_expires_later(path: str) -> None:
    with SnapshotMap(path) as m:
        m._files.delta_size = 2
        snapmaps.commit(m, {"a": "old", "z": "x" * 100_000})
        snapmaps.commit(m, {"a": "new"}, ttl=SHORT)
        assert len(snapmaps.layers(m)) == 2
        wait_until_gone(m, "a")
        absent(m, "a")
        snapmaps.commit(m, {"b": "x"})
        absent(m, "a")
        m.compact()
        absent(m, "a")
        assert len(m) == 2


def test_setting_over_what_has_expired(path: str) -> None:
    with SnapshotMap(path) as m:
        snapmaps.commit(m, {"a": 1, "b": 1, "c": 1}, ttl=SHORT)
        wait_until_gone(m, "a", "b", "c")
        assert len(m) == 3
        with m.transaction() as txn:
            txn["a"] = 2
            assert (txn["a"], len(txn)) == (2, 3)
            assert txn.setdefault("b", 3) == 3
            txn.set("d", 4, SHORT)
            assert len(txn) == 4
        assert (dict(m.range("a", "d")), len(m)) == ({"a": 2, "b": 3}, 4)
        wait_until_gone(m, "d")
        snapmaps.commit(m, {"d": 5})
        assert len(m) == 4
        m.compact()
        assert (len(m), dict(m)) == (3, {"a": 2, "b": 3, "d": 5})


def test_setting_again_forgets_the_time(path: str) -> None:
    with SnapshotMap(path) as m:
        with m.transaction() as txn:
            txn.set("a", 1, SHORT)
            txn["a"] = 2
            txn.set("b", 1, SHORT)
            txn.set("b", 2, LONG)
            txn.set("c", 1, LONG)
            txn.set("c", 2, ttl=None)
            txn.set("gone", 1, SHORT)
        wait_until_gone(m, "gone")
        assert dict(m) == {"a": 2, "b": 2, "c": 2}


def test_a_compaction_that_leaves_nothing(path: str) -> None:
    with SnapshotMap(path) as m:
        snapmaps.commit(m, {"a": 1, "b": 1}, ttl=SHORT)
        wait_until_gone(m, "a", "b")
        m.compact()
        assert (len(m), list(m), snapmaps.files(path)) == (0, [], [])
        snapmaps.commit(m, {"a": 2})
        assert dict(m) == {"a": 2}


def test_expiry_within_a_transaction(path: str) -> None:
    with SnapshotMap(path) as m:
        with m.transaction() as txn:
            txn.set("a", 1, SHORT)
            txn["b"] = 2
            wait_until_gone_in(txn, "a")
            absent(txn, "a")
            assert len(txn) == 2
        absent(m, "a")
        assert (dict(m), len(m)) == ({"b": 2}, 2)


def wait_until_gone_in(txn: Any, key: Any) -> None:
    limit = time.monotonic() + WATCHDOG
    while key in txn:
        assert time.monotonic() < limit, f"{key!r} does not expire"
        time.sleep(0.002)


def test_a_private_map_has_times_of_its_own(path: str, tmp_path: Path) -> None:
    with SnapshotMap(path) as m:
        snapmaps.commit(m, {"a": "base", "b": "base"})
        snapmaps.commit(m, {"short": "base"}, ttl=SHORT)
    other = str(tmp_path / "published")
    with SnapshotMap(path, mode="private") as p:
        p.set("a", "mine", SHORT)
        p.set("c", "mine", LONG)
        p.set("d", "mine", SHORT)
        wait_until_gone(p, "a", "d", "short")
        for key in ("a", "d", "short"):
            absent(p, key)
        assert dict(p) == {"b": "base", "c": "mine"}
        assert p.overlay_size == 3
        assert p.publish(other) == 2
        p.discard()
        assert dict(p) == {"a": "base", "b": "base"}
    with SnapshotMap(other) as m:
        assert (dict(m), len(m)) == ({"b": "base", "c": "mine"}, 2), "a is gone, and not what it was before"
        assert m._expires("c")
        assert m._expires("b") == 0
    snapmaps.check(other)


@pytest.mark.parametrize("ttl", [0, -1, 1e9, float("inf"), float("nan"), -0.0])
@pytest.mark.parametrize("mode", ["shared", "private"])
def test_times_that_are_none_are_refused(path: str, mode: Any, ttl: float) -> None:
    SnapshotMap.build(path, {"a": 1})
    with SnapshotMap(path, mode=mode) as m:
        target: Any = m if mode == "private" else m.transaction().__enter__()
        with pytest.raises(ValueError, match="a number of seconds above 0"):
            target.set("a", 2, ttl)
        with pytest.raises(TypeError):
            target.set("a", 2, "1")
        if mode == "shared":
            target.__exit__(None, None, None)
        assert (m["a"], len(m)) == (1, 1)


def test_the_shortest_time(path: str) -> None:
    with SnapshotMap(path) as m:
        snapmaps.commit(m, {"a": 1}, ttl=1e-12)
        absent(m, "a")
        assert len(m) == 1
        snapmaps.commit(m, {"a": 1}, ttl=999_999_999.0)
        assert m["a"] == 1


def test_how_long_an_entry_has(path: str) -> None:
    with SnapshotMap(path) as m:
        with m.transaction() as txn:
            txn["a"] = 1
            txn.set("b", 2, LONG)
            txn.set("c", 3, SHORT)
            assert txn.ttl("a") is None
            assert 0 < txn.ttl("b") <= LONG
        for handle in (m, m.snapshot()):
            assert handle.ttl("a") is None
            left = handle.ttl("b")
            assert left is not None
            assert LONG - WATCHDOG < left <= LONG
            with pytest.raises(KeyError):
                handle.ttl("none")
        wait_until_gone(m, "c")
        with pytest.raises(KeyError):
            m.ttl("c")
    with SnapshotMap(path, mode="private") as p:
        p.set("a", 1, LONG)
        p["b"] = 2
        left = p.ttl("a")
        assert left is not None
        assert 0 < left <= LONG
        assert p.ttl("b") is None
        del p["b"]
        with pytest.raises(KeyError):
            p.ttl("b")
