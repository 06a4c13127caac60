"""SnapshotMap in mode private: changes in an overlay of this process, over a version that stays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import snapmaps
from hypothesis import given, settings
from hypothesis import strategies as st

from mmapds import CorruptionError, SchemaMismatch, SnapshotMap, codecs
from mmapds.snapshot import PrivateMap


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "map")
    SnapshotMap.build(path, {"b": 2, "a": 1, "c": 3}, metadata="about it")
    yield path
    snapmaps.check(path)


@pytest.fixture
def p(path: str) -> Iterator[PrivateMap]:
    with private(path) as p:
        yield p


def private(path: str, **options: Any) -> PrivateMap:
    p = SnapshotMap(path, mode="private", **options)
    assert isinstance(p, PrivateMap)
    return p


def image(path: str) -> dict[str, tuple[int, bytes]]:
    return {
        name: (os.stat(f"{path}/{name}").st_mtime_ns, Path(path, name).read_bytes())
        for name in sorted(os.listdir(path))
    }


def test_changes_stay_here_and_the_files_are_untouched(p: PrivateMap) -> None:
    before = image(p.path)
    with SnapshotMap(p.path, mode="readonly") as m, private(p.path) as other:
        p["a"] = "mine"
        p["d"] = 4
        del p["b"]
        p.set("e", 5, ttl=1000)
        p.update(f=6)
        assert snapmaps.contents(p) == {"a": "mine", "c": 3, "d": 4, "e": 5, "f": 6}
        assert len(p) == 5
        for handle in (m, other):
            assert snapmaps.contents(handle) == {"a": 1, "b": 2, "c": 3}
        assert other.overlay_size == 0
    assert image(p.path) == before


def test_overlay_size_counts_keys_that_were_changed(p: PrivateMap) -> None:
    assert p.overlay_size == 0
    for i in range(3):
        p["a"] = i
        assert p.overlay_size == 1
    del p["b"]
    assert p.overlay_size == 2
    p["new"] = 1
    assert p.overlay_size == 3
    assert p.stats()["entries"] == len(p) == 3
    with pytest.raises(KeyError):
        del p["none"]
    with pytest.raises(TypeError):
        p["none"] = object()
    with pytest.raises(TypeError):
        p[b"none"] = 1
    assert p.overlay_size == 3


def test_discard_forgets_all_changes(p: PrivateMap) -> None:
    p["a"] = 7
    p.clear()
    assert (len(p), list(p)) == (0, [])
    p["z"] = 1
    assert list(p) == ["z"]
    p.discard()
    assert (p.overlay_size, len(p), dict(p)) == (0, 3, {"a": 1, "b": 2, "c": 3})
    p["a"] = 8
    assert dict(p) == {"a": 8, "b": 2, "c": 3}


def test_it_stays_at_its_version_until_refresh_which_keeps_the_changes(p: PrivateMap) -> None:
    with SnapshotMap(p.path) as m:
        p["a"], p["new"] = "mine", "mine"
        del p["c"]
        snapmaps.commit(m, {"a": "theirs", "d": "theirs", "c": "theirs", "new": "theirs"}, "b")
        m.compact()
        assert (p.version, p.follow) == (1, False)
        assert dict(p) == {"a": "mine", "b": 2, "new": "mine"}
        assert len(p) == 3
        assert p.refresh() == m.version == p.version
        assert snapmaps.contents(p) == {"a": "mine", "d": "theirs", "new": "mine"}
        assert (len(p), p.overlay_size) == (3, 3)
        p.discard()
        assert dict(p) == dict(m) == {"a": "theirs", "c": "theirs", "d": "theirs", "new": "theirs"}
        snapmaps.commit(m, {"e": 1})
        assert "e" not in p
        assert p.wait(p.version, 0) == m.version, "it is told, and does not follow"
        assert "e" not in p


def test_refresh_to_a_map_with_other_keys(tmp_path: Path) -> None:
    path = str(tmp_path / "other")
    SnapshotMap(path).close()
    with private(path) as p, SnapshotMap(path) as m:
        p["text"] = 1
        snapmaps.commit(m, {b"bytes": 1})
        with pytest.raises(TypeError, match="keys"):
            p.refresh()
        assert dict(p) == {"text": 1}
        p.discard()
        p.refresh()
        assert dict(p) == {b"bytes": 1}


def test_its_snapshot_is_the_base(p: PrivateMap) -> None:
    p["a"] = "mine"
    snapshot = p.snapshot()
    assert dict(snapshot) == {"a": 1, "b": 2, "c": 3}
    assert (snapshot.version, snapshot.metadata) == (p.version, p.metadata)


def test_a_closed_map_has_no_changes_to_keep(path: str) -> None:
    with private(path) as p:
        p["a"] = 7
    with private(path) as p:
        assert p["a"] == 1


# ---- publishing ----------------------------------------------------------------------------------------------------


def test_publish_makes_a_map_of_what_it_is_now(p: PrivateMap, tmp_path: Path) -> None:
    with SnapshotMap(p.path) as m:
        snapmaps.commit(m, {"d": 4, "e": 5}, "c")
    p.refresh()
    p["a"], p["f"] = "mine", 6
    del p["e"]
    other = str(tmp_path / "published")
    calls: list[tuple[str, int, int | None]] = []
    assert p.publish(other, progress=lambda *call: calls.append(call)) == 4
    assert calls, "progress was told"
    with SnapshotMap(other) as m:
        assert snapmaps.contents(m) == {"a": "mine", "b": 2, "d": 4, "f": 6}
        assert (m.metadata, m.codec.name, m.version, len(m)) == ("about it", "msgpack", 1, 4)
        assert snapmaps.layers(m) == [4]
    assert p.overlay_size == 3, "and the changes stay"
    snapmaps.check(other)


def test_publish_over_another_map(p: PrivateMap, tmp_path: Path) -> None:
    other = str(tmp_path / "published")
    with SnapshotMap(other) as m:
        snapmaps.commit(m, {"x": 1})
        p["a"] = "mine"
        assert p.publish(other) == 3
        assert dict(m) == {"a": "mine", "b": 2, "c": 3}
        assert m.version == 3
    snapmaps.check(other)


def test_publish_of_nothing(p: PrivateMap, tmp_path: Path) -> None:
    other = str(tmp_path / "published")
    p.clear()
    assert p.publish(other) == 0
    with SnapshotMap(other) as m:
        assert (len(m), dict(m), m.metadata) == (0, {}, "about it")
    snapmaps.check(other)


def test_not_over_itself(p: PrivateMap) -> None:
    p["a"] = "mine"
    with pytest.raises(ValueError, match="publish to another path"):
        p.publish(p.path)
    with SnapshotMap(p.path) as m:
        assert dict(m) == {"a": 1, "b": 2, "c": 3}


def test_publish_keeps_codec_and_schema(tmp_path: Path) -> None:
    path, other = str(tmp_path / "map"), str(tmp_path / "published")
    for codec, values in ((codecs.Pickle(), {"a": {1, 2}}), ("struct:<q", {"a": (5,)}), ("raw", {"a": b"x"})):
        for there in (path, other):
            if os.path.exists(there):
                for name in os.listdir(there):
                    os.unlink(f"{there}/{name}")
        SnapshotMap.build(path, values, codec=codec, schema="version 2")
        with private(path, codec=codec) as p:
            p["b"] = values["a"]
            assert p.publish(other) == 2
        with SnapshotMap(other, codec=codec, schema="version 2") as m:
            assert dict(m) == {"a": values["a"], "b": values["a"]}
            assert m.codec.name == p.codec.name
        with pytest.raises(SchemaMismatch):
            SnapshotMap(other, codec=codec, schema="version 3")


def test_a_codec_error_in_the_overlay_names_the_codec(tmp_path: Path) -> None:
    path = str(tmp_path / "map")

    class Wrong:
        def encode(self, value: Any) -> bytes:
            return b"wrong"

        def decode(self, data: memoryview) -> Any:
            raise ValueError("cannot")

    SnapshotMap(path, codec=Wrong()).close()
    with private(path, codec=Wrong()) as p:
        p["a"] = 1
        with pytest.raises(CorruptionError, match="Wrong"):
            p.get("a")


# ---- by chance -----------------------------------------------------------------------------------------------------

change = st.tuples(st.sampled_from("abcdefgh"), st.none() | st.integers(0, 9))


@settings(max_examples=30, deadline=None)
@given(
    base=st.lists(change, max_size=8),
    rounds=st.lists(
        st.tuples(st.lists(change, max_size=6), st.lists(change, max_size=4), st.sampled_from(["", "", "discard"])),
        max_size=4,
    ),
)
def test_it_is_the_base_with_changes_over_it(tmp_path_factory: pytest.TempPathFactory, base: Any, rounds: Any) -> None:
    path = str(tmp_path_factory.mktemp("private") / "map")

    def committed(m: SnapshotMap, changes: Any) -> dict[str, int]:
        with m.transaction() as txn:
            apply(txn, changes)
        return dict(m)

    with SnapshotMap(path) as m:
        under = committed(m, base)
        with private(path) as p:
            over: dict[str, int | None] = {}
            for mine, theirs, how in rounds:
                for key, value in mine:
                    if value is not None or key in p:
                        over[key] = value
                    apply(p, [(key, value)])
                same(p, under, over)
                now = committed(m, theirs)
                same(p, under, over)
                under = now
                p.refresh()
                same(p, under, over)
                if how:
                    p.discard()
                    over = {}
                    same(p, under, over)


def apply(target: Any, changes: Any) -> None:
    for key, value in changes:
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value


def same(p: PrivateMap, under: dict[str, int], over: dict[str, int | None]) -> None:
    model = {key: value for key, value in {**under, **over}.items() if value is not None}
    assert snapmaps.contents(p) == model
    assert (len(p), p.overlay_size) == (len(model), len(over))
