"""SnapshotMap: layers and the delta. How commits become layers, which are merged, how many remain, how much room they
take, and that files which were replaced go, and live on in who reads them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import snapmaps

from mmapds import SnapshotMap
from mmapds._snapcommit import ALIKE, MOST_KEPT, RATIO
from mmapds._snapfiles import MapFiles


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "map")
    yield path
    snapmaps.check(path)


@pytest.fixture
def m(path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SnapshotMap]:
    """With a delta that has room for some dozens of small commits."""
    with SnapshotMap(path, codec="raw") as m:
        yield snapmaps.tiny(m, monkeypatch)


def sizes(m: SnapshotMap) -> list[int]:
    return [layer["bytes"] for layer in m.stats()["layers"]]


def within_bounds(m: SnapshotMap) -> None:
    """Few layers, and the oldest RATIO times as large as all others together, but for what each has besides records."""
    found = sizes(m)
    assert len(found) <= MOST_KEPT, found
    assert len(found) < 2 or found[-1] >= 0.8 * RATIO * sum(found[:-1]), found


def test_a_full_delta_becomes_a_layer(m: SnapshotMap) -> None:
    snapmaps.commit(m, {"0": b"x" * 100})
    first = m.stats()["delta"]
    used = 0
    n = 1
    while m.stats()["delta"]["number"] == first["number"]:
        assert m.stats()["layers"] == []
        assert m.stats()["delta"]["used"] > used
        used = m.stats()["delta"]["used"]
        snapmaps.commit(m, {f"{n}": b"x" * 100})
        n += 1
    assert snapmaps.layers(m) == [n - 1], "all before the commit that found no room"
    assert m.stats()["delta"]["used"] < used, "and that begins the next one"
    assert first["bytes"] - used < 500, "it was full"
    assert len(m) == n
    assert snapmaps.contents(m) == {f"{i}": b"x" * 100 for i in range(n)}


def test_overwriting_folds_and_does_not_grow(m: SnapshotMap) -> None:
    for i in range(400):
        snapmaps.commit(m, {"same": b"%d" % i, "other": b"x"})
    assert m["same"] == b"399"
    assert (len(m), m.version) == (2, 401)
    assert snapmaps.layers(m) == [2]


def test_what_is_set_and_deleted_leaves_nothing(m: SnapshotMap) -> None:
    for i in range(300):
        snapmaps.commit(m, {f"{i}": b"x" * 100})
        snapmaps.commit(m, {}, f"{i}")
    assert (len(m), list(m)) == (0, [])
    assert snapmaps.layers(m) == [], "nothing is below that deletions would have to hide"


@pytest.mark.parametrize("seed", range(2))
def test_layers_are_few_and_the_oldest_is_much_larger(path: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    model: dict[str, bytes] = {}
    most = 0
    with SnapshotMap(path, codec="raw") as m:
        snapmaps.tiny(m, monkeypatch, 1 << 16)
        model.update({f"{i}": b"old" * 300 for i in range(1500)})
        snapmaps.commit(m, model)
        for n in range(200):
            changes = {f"{rng.randrange(5000)}": b"%d " % n * rng.randrange(200) for _ in range(rng.randrange(1, 25))}
            gone = [key for key in rng.sample(sorted(model), min(len(model), rng.randrange(3))) if key not in changes]
            snapmaps.commit(m, changes, *gone)
            model.update(changes)
            for key in gone:
                del model[key]
            most = max(most, len(sizes(m)))
            within_bounds(m)
            if n % 50 == 0:
                assert m.get_many(list(model)) == model
                assert len(m) == len(model)
        assert most > 3, "the test has reached several layers"
        assert snapmaps.contents(m) == model


def test_no_more_layers_than_said_even_where_each_is_much_larger(path: str) -> None:
    with SnapshotMap(path, codec="raw") as m:
        m._files.delta_size = 2
        seen = []
        for n in range(MOST_KEPT + 2):
            size = 200 * 5 ** (MOST_KEPT + 1 - n)
            snapmaps.commit(m, {f"{n}": b"x" * min(size, 20_000_000)})
            seen.append(len(sizes(m)))
        assert max(seen) <= MOST_KEPT, seen
        assert len(m) == MOST_KEPT + 2
        assert [len(m[f"{n}"]) for n in range(MOST_KEPT + 1, MOST_KEPT - 2, -1)] == [200, 1000, 5000]
        assert list(m) == sorted(f"{n}" for n in range(MOST_KEPT + 2))


def test_the_newest_are_merged_when_there_are_several_of_a_size(path: str) -> None:
    with SnapshotMap(path, codec="raw") as m:
        m._files.delta_size = 2

        def add(name: str, size: int) -> list[int]:
            snapmaps.commit(m, {name: b"x" * size})
            return snapmaps.layers(m)

        assert add("a", 1_000_000) == [1]
        assert add("b", 100_000) == [1, 1]
        assert add("c", 10_000) == [1, 1, 1]
        assert add("d", 10_000) == [1, 1, 1, 1]
        assert add("e", 10_000) == [1, 1, 1, 1, 1]
        assert add("f", 10_000) == [4, 1, 1], f"with the {ALIKE} of its size, and not with those that are larger"
        assert add("g", 200_000) == [7], f"together more than a part in {RATIO} of the oldest"
        assert snapmaps.contents(m).keys() == set("abcdefg")


def test_what_older_layers_waste_is_bounded(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files together are never more than one and a half of what a compaction leaves, and the deltas."""
    rng = random.Random(1)
    with SnapshotMap(path, codec="raw") as m:
        snapmaps.tiny(m, monkeypatch, 1 << 15)
        keys = [f"{i:05}" for i in range(3000)]
        with m.transaction() as txn:
            txn.update((key, b"x" * 100) for key in keys)
        m.compact()
        whole = sizes(m)[0]
        for _ in range(400):
            snapmaps.commit(m, dict.fromkeys(rng.sample(keys, 10), b"y" * 100))
            room = sum(os.stat(f"{path}/{name}").st_size for name in snapmaps.files(path))
            assert room <= 1.5 * whole + (1 << 15), (room, whole, m.stats())
        assert len(m) == 3000


# ---- compaction ----------------------------------------------------------------------------------------------------


def test_compaction_leaves_one_layer_of_what_there_is(m: SnapshotMap) -> None:
    for i in range(200):
        snapmaps.commit(m, {f"{i % 50:02}": b"%d" % i, f"gone {i}": b""}, *([f"gone {i - 1}"] if i else []))
    before = snapmaps.contents(m)
    version = m.version
    m.compact()
    assert snapmaps.contents(m) == before
    assert (snapmaps.layers(m), m.stats()["delta"], len(m)) == ([len(before)], None, len(before))
    assert m.version == version + 1
    assert len(snapmaps.files(m.path)) == 1
    m.compact()
    assert (snapmaps.contents(m), len(m)) == (before, len(before)), "and once more"


def test_compaction_of_an_empty_map_does_nothing(m: SnapshotMap) -> None:
    m.compact()
    assert (m.version, snapmaps.files(m.path)) == (1, [])


def test_compaction_tells_how_far_it_is(m: SnapshotMap) -> None:
    with m.transaction() as txn:
        txn.update((f"{i:06}", b"") for i in range(150_000))
    calls: list[tuple[str, int, int | None]] = []
    m.compact(progress=lambda *call: calls.append(call))
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert stages == ["write", "index", "sync"], calls
    assert all(0 <= done <= 150_000 and total in (None, 150_000) for _, done, total in calls), calls


def test_an_error_of_progress_leaves_the_map_as_it_was(m: SnapshotMap) -> None:
    with m.transaction() as txn:
        txn.update((f"{i:06}", b"") for i in range(70_000))
    before = snapmaps.files(m.path)
    for wanted in ("write", "index", "sync"):

        def progress(stage: str, done: int, total: int | None, wanted: str = wanted) -> None:
            if stage == wanted:
                raise ZeroDivisionError(stage)

        with pytest.raises(ZeroDivisionError, match=wanted):
            m.compact(progress)
        assert (m.version, snapmaps.files(m.path), len(m)) == (2, before, 70_000)
    snapmaps.commit(m, {"a": b"1"})
    m.compact()
    assert len(m) == 70_001


# ---- files ---------------------------------------------------------------------------------------------------------


def test_names_are_never_used_twice(m: SnapshotMap) -> None:
    seen: dict[str, int] = {}
    for i in range(300):
        snapmaps.commit(m, {f"{i}": b"x" * 200})
        for name in snapmaps.files(m.path):
            inode = os.stat(f"{m.path}/{name}").st_ino
            assert seen.setdefault(name, inode) == inode, "a name is another file"
    assert len(seen) > 10


def test_files_that_were_replaced_go_and_live_on_in_readers(m: SnapshotMap) -> None:
    readers: list[tuple[Any, dict[Any, Any]]] = []
    views = []
    for i in range(300):
        snapmaps.commit(m, {f"{i % 40}": b"%d" % i * 20})
        if i % 60 == 7:
            with SnapshotMap(m.path, mode="readonly") as opened:
                readers.append((opened.snapshot(), dict(m)))
            views.append((m.get_view(f"{i % 40}"), m[f"{i % 40}"]))
        assert len(snapmaps.files(m.path)) <= MOST_KEPT + 1
    m.compact()
    assert len(snapmaps.files(m.path)) == 1
    names = {f"{one['number']:016x}" for reader, _ in readers for one in reader.stats()["layers"]}
    assert not names & {name.partition(".")[0] for name in snapmaps.files(m.path)}, "the files of readers are gone"
    for reader, expected in readers:
        assert snapmaps.contents(reader) == expected
        assert reader.verify() >= 0
    for view, expected in views:
        assert view == expected


def test_a_reader_follows_through_folds_and_compactions(m: SnapshotMap) -> None:
    with SnapshotMap(m.path, mode="readonly") as reader, SnapshotMap(m.path, mode="readonly", verify=True) as verified:
        for i in range(250):
            snapmaps.commit(m, {f"{i % 30}": b"%d" % i, "last": b"%d" % i})
            if i % 100 == 50:
                m.compact()
            for handle in (reader, verified):
                assert (handle["last"], handle.version) == (b"%d" % i, m.version)
                assert handle.get_many(["last", f"{i % 30}"]) == {"last": b"%d" % i, f"{i % 30}": b"%d" % i}
        assert snapmaps.contents(reader) == snapmaps.contents(verified) == snapmaps.contents(m)


def test_writers_that_take_turns(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with SnapshotMap(path, codec="raw") as a, SnapshotMap(path) as b:
        for m in (a, b):
            snapmaps.tiny(m, monkeypatch)
        for i in range(300):
            m = (a, b)[i % 3 == 0]
            snapmaps.commit(m, {f"{i % 70}": b"%d" % i})
        expected = {f"{i % 70}": b"%d" % i for i in range(300)}
        for m in (a, b):
            assert snapmaps.contents(m) == expected
            assert (len(m), m.version) == (70, 301)


def test_leftovers_are_removed_by_the_next_writer(m: SnapshotMap, path: str) -> None:
    snapmaps.commit(m, {"a": b"1"})
    named = snapmaps.files(path)
    for name in ("00000000000000ff.layer", "00000000000000fe.delta", ".0000000000000003.layer.01234567.tmp"):
        Path(path, name).write_bytes(b"left by somebody who died")
    Path(path, "notes.txt").write_text("somebody's")
    Path(path, "00ff.layer").write_text("somebody's too")
    with SnapshotMap(path, mode="readonly") as reader:
        assert reader["a"] == b"1"
    with SnapshotMap(path) as other:
        snapmaps.commit(other, {"b": b"2"})
    assert snapmaps.files(path) == named
    for name in ("notes.txt", "00ff.layer"):
        os.unlink(f"{path}/{name}")


def test_only_what_looks_like_ours_is_left_over(path: str) -> None:
    os.mkdir(path)
    names = [
        "0000000000000001.layer", "0000000000000002.layer", "0000000000000003.delta", "000000000000000g.layer",
        "0000000000000004.layer~", "x0000000000000005.layer", "manifest_sync", ".hidden", ".run.0123abcd.tmp",
    ]  # fmt: skip
    for name in names:
        Path(path, name).touch()
    there = MapFiles(path, bytes(16), durability="process", verify=False, populate=False)
    found = sorted(os.path.basename(name) for name in there.leftovers({1}))
    assert found == [".run.0123abcd.tmp", "0000000000000002.layer", "0000000000000003.delta"]
    there.remove(there.leftovers({1}))
    there.remove([f"{path}/none"])
    assert len(os.listdir(path)) == 6
    for name in os.listdir(path):
        os.unlink(f"{path}/{name}")
    os.rmdir(path)
