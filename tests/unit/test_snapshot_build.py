"""SnapshotMap.build: from any iterable, in any order, larger than its memory, atomically, also over an existing map."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import snapmaps
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import Peer

from mmapds import SchemaMismatch, SnapshotMap, WriterBusy
from mmapds._native.snapbuild import Sorter

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "map")
    yield path
    snapmaps.check(path)


def read(path: str, **options: Any) -> dict[Any, Any]:
    with SnapshotMap(path, mode="readonly", **options) as m:
        found = snapmaps.contents(m)
        assert len(m) == len(found)
        return found


# ---- what it takes -------------------------------------------------------------------------------------------------

PAIRS = [("b", 2), ("", 0), ("a", 1), ("c", None), ("é", [1])]


@pytest.mark.parametrize(
    "items",
    [PAIRS, dict(PAIRS), tuple(PAIRS), (pair for pair in PAIRS), dict(PAIRS).items(), [list(pair) for pair in PAIRS]],
    ids=["list", "dict", "tuple", "generator", "items", "lists"],
)
def test_any_iterable_of_pairs(path: str, items: Any) -> None:
    assert SnapshotMap.build(path, items) == 5
    assert read(path) == dict(PAIRS)
    with SnapshotMap(path) as m:
        assert (m.version, snapmaps.layers(m), m.stats()["delta"], m.key_type, m.metadata) == (1, [5], None, str, None)


def test_a_map_is_built_from_a_map(path: str, tmp_path: Path) -> None:
    SnapshotMap.build(path, PAIRS)
    other = str(tmp_path / "other")
    with SnapshotMap(path) as m:
        assert SnapshotMap.build(other, m) == 5
        assert SnapshotMap.build(other, m.prefix("a")) == 1
    assert read(other) == {"a": 1}
    snapmaps.check(other)


@pytest.mark.parametrize("limit", [MIB, 256 * MIB])
def test_of_equal_keys_the_last_counts(path: str, limit: int) -> None:
    rng = random.Random(0)
    items = [(f"{rng.randrange(2000)}", b"%d " % i * 20) for i in range(20_000)]
    expected = dict(items)
    assert SnapshotMap.build(path, items, codec="raw", memory_limit=limit) == len(expected)
    assert read(path) == expected


def test_nothing(path: str) -> None:
    assert SnapshotMap.build(path, []) == 0
    assert read(path) == {}
    with SnapshotMap(path) as m:
        assert (m.key_type, m.version, snapmaps.files(path)) == (None, 1, [])
        snapmaps.commit(m, {b"x": 1})
    assert SnapshotMap.build(path, {}, metadata={"x": 1}) == 0
    with SnapshotMap(path) as m:
        assert (dict(m), m.metadata, m.key_type, snapmaps.layers(m)) == ({}, {"x": 1}, None, [0])
        snapmaps.commit(m, {"text": 1})
        assert (dict(m), m.metadata) == ({"text": 1}, {"x": 1})


@settings(max_examples=25, deadline=None)
@given(items=st.lists(st.tuples(st.binary(max_size=4) | st.sampled_from([b"x" * 5000]), st.binary(max_size=20))))
def test_it_is_a_dict_of_the_items(tmp_path_factory: pytest.TempPathFactory, items: list[tuple[bytes, bytes]]) -> None:
    path = str(tmp_path_factory.mktemp("build") / "map")
    assert SnapshotMap.build(path, items, codec="raw") == len(dict(items))
    assert read(path) == dict(items)
    assert read(path, verify=True) == dict(items)


# ---- larger than its memory ----------------------------------------------------------------------------------------


def test_many_runs_are_merged(path: str, descriptors: None) -> None:
    rng = random.Random(1)
    items = [(rng.randbytes(10), rng.randbytes(rng.randrange(300))) for _ in range(60_000)]
    stages: list[str] = []
    total = SnapshotMap.build(
        path, iter(items), codec="raw", memory_limit=MIB, progress=lambda stage, *_: stages.append(stage)
    )
    assert total == len(dict(items))
    assert read(path) == dict(items)
    assert stages.count("read") > 8, "several runs"


def test_items_larger_than_the_limit(path: str) -> None:
    large = [os.urandom(3 * MIB), b"y" * (MIB + 1), b"z" * (5 * MIB + 3)]
    items = [
        ("b", b"old"),
        ("c", large[0]),
        ("a", b"small"),
        ("c", large[1]),
        ("b", large[2]),
        ("d", b""),
        ("a", large[0]),
    ]
    assert SnapshotMap.build(path, items, codec="raw", memory_limit=MIB) == 4
    assert read(path) == {"a": large[0], "b": large[2], "c": large[1], "d": b""}
    assert SnapshotMap.build(path, [("only", memoryview(large[0]))], codec="raw", memory_limit=MIB) == 1
    assert read(path) == {"only": large[0]}


def test_a_small_item_replaces_a_large_one(path: str) -> None:
    items: list[tuple[str, bytes]] = []
    for i in range(40):
        items += [(f"{i % 7}", b"x" * (2 * MIB if i % 5 == 0 else 10) + b"%d" % i)]
    assert SnapshotMap.build(path, items, codec="raw", memory_limit=MIB) == 7
    assert read(path) == dict(items)


@pytest.mark.parametrize("limit", [0, MIB - 1, -1])
def test_limits_that_are_too_small_are_refused(path: str, limit: int) -> None:
    with pytest.raises(ValueError, match="at least 1 MiB"):
        SnapshotMap.build(path, [], memory_limit=limit)
    assert not os.path.exists(path)


def test_bytes_like_values(path: str) -> None:
    import array

    values = [bytearray(b"one"), memoryview(b"two"), array.array("H", [1, 2]), b""]
    SnapshotMap.build(path, [(f"{i}", value) for i, value in enumerate(values)], codec="raw")
    assert read(path) == {"0": b"one", "1": b"two", "2": b"\1\0\2\0", "3": b""}


@pytest.mark.slow
def test_a_value_beyond_4_gib() -> None:
    room = os.statvfs("/dev/shm")
    if room.f_bavail * room.f_frsize < 11 << 30:
        pytest.skip("needs 11 GiB of room in /dev/shm")
    path = f"/dev/shm/mmapds-test-{os.getpid()}"
    size = (4 << 30) + 5
    code = """
import mmap
value = mmap.mmap(-1, size)
value[:3], value[-3:], value[1 << 32 : (1 << 32) + 1] = b"abc", b"xyz", b"!"
mmapds.SnapshotMap.build(path, [("large", value), ("b", b"small"), ("z", b"last")], codec="raw", memory_limit=1 << 20)
del value
with mmapds.SnapshotMap(path) as m:
    view = m.get_view("large")
    found = len(view), bytes(view[:4]), bytes(view[-4:]), bytes(view[1 << 32 : (1 << 32) + 1])
    rest = m["b"], m["z"], [key for key in m.keys()], list(reversed(m.keys())), len(m)
"""
    try:
        with Peer(path=path, size=size) as peer:
            peer(code)
            assert peer("found") == (size, b"abc\0", b"\0xyz", b"!")
            assert peer("rest") == (b"small", b"last", ["b", "large", "z"], ["z", "large", "b"], 3)
    finally:
        for name in os.listdir(path) if os.path.exists(path) else ():
            os.unlink(f"{path}/{name}")
        os.rmdir(path)


# ---- over an existing map ------------------------------------------------------------------------------------------


def test_followers_go_on_with_the_new_one(path: str) -> None:
    SnapshotMap.build(path, {"a": 1, "b": 2}, metadata="old")
    with SnapshotMap(path) as m, SnapshotMap(path, mode="readonly") as reader, SnapshotMap(path, follow=False) as stays:
        snapmaps.commit(m, {"c": 3})
        stays.refresh()
        before = m.snapshot()
        assert SnapshotMap.build(path, [("z", 26), ("y", 25)], metadata="new") == 2
        for handle in (m, reader):
            assert snapmaps.contents(handle) == {"y": 25, "z": 26}
            assert (handle.version, handle.metadata, len(handle)) == (3, "new", 2)
        for handle in (stays, before):
            assert snapmaps.contents(handle) == {"a": 1, "b": 2, "c": 3}
            assert handle.metadata == "old"
        assert len(snapmaps.files(path)) == 1, "the old files are gone"
        assert snapmaps.commit(m, {"x": 24}) == 4
        assert dict(reader) == {"x": 24, "y": 25, "z": 26}


def test_the_other_kind_of_keys(path: str) -> None:
    SnapshotMap.build(path, {"a": 1})
    with SnapshotMap(path) as m:
        SnapshotMap.build(path, {b"a": 2})
        assert (m.key_type, dict(m)) == (bytes, {b"a": 2})
        SnapshotMap.build(path, {})
        assert (m.key_type, dict(m)) == (None, {})


def test_one_writer_at_a_time(path: str) -> None:
    SnapshotMap.build(path, {"a": 1})
    with SnapshotMap(path) as m:
        with m.transaction() as txn:
            txn["b"] = 2
            with pytest.raises(WriterBusy, match=f"pid {os.getpid()}"):
                SnapshotMap.build(path, {"c": 3})

        def items() -> Iterator[tuple[str, int]]:
            yield "d", 4
            with pytest.raises(WriterBusy):
                m.transaction().__enter__()
            assert dict(m) == {"a": 1, "b": 2}, "until it is complete, there is the one before"
            with pytest.raises(WriterBusy):
                SnapshotMap.build(path, {})

        assert SnapshotMap.build(path, items()) == 1
        assert dict(m) == {"d": 4}


# ---- errors --------------------------------------------------------------------------------------------------------


def failing(error: BaseException, count: int = 100_000) -> Iterator[tuple[str, bytes]]:
    for i in range(count):
        yield f"{i}", b"x" * 100
    raise error


WRONG: list[tuple[type[BaseException], str, Callable[[], Any]]] = [
    (ZeroDivisionError, "mine", lambda: failing(ZeroDivisionError("mine"))),
    (ZeroDivisionError, "mine", lambda: failing(ZeroDivisionError("mine"), 0)),
    (KeyboardInterrupt, "^$", lambda: failing(KeyboardInterrupt(), 10)),
    (TypeError, "keys of this map are str, got bytes", lambda: [("a", b""), (b"b", b"")]),
    (TypeError, "keys of this map are bytes, got str", lambda: {b"b": b"", "a": b""}),
    (TypeError, "keys of this map are str or bytes, got int", lambda: [(1, b"")]),
    (TypeError, "keys of this map are str or bytes, got NoneType", lambda: {None: b""}),
    (TypeError, "must be a pair of key and value, got 'abc'", lambda: ["abc"]),
    (TypeError, "must be a pair of key and value, got 5", lambda: [5]),
    (TypeError, "not iterable", lambda: 5),
    (TypeError, "codec 'raw' stores bytes-like objects, got int", lambda: [("a", 5)]),
    (ValueError, "at most 65,536 bytes", lambda: [("a" * 65537, b"")]),
    (ValueError, "surrogates", lambda: [("\ud800", b"")]),
]


@pytest.mark.parametrize(("error", "match", "items"), WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize("there", [False, True])
def test_an_error_leaves_what_was_there(
    path: str, there: bool, error: type[BaseException], match: str, items: Callable[[], Any], descriptors: None
) -> None:
    if there:
        SnapshotMap.build(path, {"old": b"1"}, codec="raw", metadata="old")
    before = snapmaps.files(path) if there else []
    with pytest.raises(error, match=match):
        SnapshotMap.build(path, items(), codec="raw", metadata="new", memory_limit=MIB)
    assert (snapmaps.files(path) if os.path.exists(path) else []) == before
    assert not os.path.exists(path) or not [name for name in os.listdir(path) if name.endswith(".tmp")]
    if there:
        with SnapshotMap(path) as m:
            assert (dict(m), m.metadata, m.version) == ({"old": b"1"}, "old", 1)
    else:
        with pytest.raises(FileNotFoundError):
            SnapshotMap(path, mode="readonly")
    assert SnapshotMap.build(path, {"new": b"2"}, codec="raw") == 1, "and another one may be built"
    assert read(path) == {"new": b"2"}


@pytest.mark.parametrize("stage", ["read", "write", "index", "sync"])
def test_an_error_of_progress(path: str, stage: str) -> None:
    SnapshotMap.build(path, {"old": 1})

    def progress(now: str, done: int, total: int | None) -> None:
        if now == stage:
            raise ZeroDivisionError(now)

    with pytest.raises(ZeroDivisionError, match=stage):
        SnapshotMap.build(path, ((f"{i}", i) for i in range(70_000)), progress=progress)
    assert read(path) == {"old": 1}


@pytest.mark.parametrize("option", ["codec", "schema"])
def test_another_codec_or_schema_is_refused(path: str, option: str) -> None:
    SnapshotMap.build(path, {"a": b"1"}, codec="raw", schema="one")
    wrong: dict[str, Any] = {"codec": "raw", "schema": "one", option: "msgpack"}
    with pytest.raises(SchemaMismatch, match="msgpack"):
        SnapshotMap.build(path, {"b": b"2"}, **wrong)
    assert read(path) == {"a": b"1"}
    assert SnapshotMap.build(path, {"b": b"2"}) == 1, "left out, it is the stored one"
    with SnapshotMap(path, codec="raw", schema="one") as m:
        assert dict(m) == {"b": b"2"}


def test_metadata_that_cannot_be_kept_changes_nothing(path: str) -> None:
    SnapshotMap.build(path, {"a": 1})
    with pytest.raises(TypeError):
        SnapshotMap.build(path, {"b": 1}, metadata=object())
    assert read(path) == {"a": 1}


def test_ctrl_c_ends_it(path: str) -> None:
    code = """
def items():
    for i in range(10**9):
        if i == 300_000:
            os.kill(os.getpid(), signal.SIGINT)
        yield f"{i}", b"x" * 10
"""
    SnapshotMap.build(path, {"a": b"1"}, codec="raw")
    with Peer(code, path=path) as peer:
        name, _ = peer.fails("mmapds.SnapshotMap.build(path, items(), memory_limit=1 << 20)")
        assert name == "KeyboardInterrupt"
        assert peer("mmapds.SnapshotMap(path, mode='readonly').__enter__()['a']") == b"1"
    assert read(path) == {"a": b"1"}
    assert signal.SIGINT == 2


# ---- progress ------------------------------------------------------------------------------------------------------


def test_progress_says_stage_done_and_total(path: str) -> None:
    calls: list[tuple[str, int, int | None]] = []
    count = 200_000
    SnapshotMap.build(path, ((f"{i}", None) for i in range(count)), progress=lambda *call: calls.append(call))
    assert list(dict.fromkeys(stage for stage, _, _ in calls)) == ["read", "write", "index", "sync"]
    for stage in ("read", "write", "index", "sync"):
        done = [done for name, done, _ in calls if name == stage]
        assert done == sorted(done), (stage, done)
        assert done[-1] <= count
        totals = {total for name, _, total in calls if name == stage}
        assert totals == ({None} if stage == "read" else {count}), (stage, totals)
    assert [call for call in calls if call[0] == "read"][-1] == ("read", count, None)
    assert calls[-1] == ("sync", count, count)


# ---- the sorter ----------------------------------------------------------------------------------------------------


def test_a_sorter_takes_what_fits() -> None:
    sorter = Sorter(MIB, 0)
    items = iter([(f"{i:03}", b"x" * 1000) for i in range(2000)])
    while not sorter.feed(items, bytes, True, 100):
        if sorter.full:
            break
    assert sorter.full
    assert 900 < len(sorter) == sorter.total < 1100
    assert sorter.keys == 1
    key, value = sorter.take_waiting()
    assert (key, value, sorter.full) == (f"{len(sorter):03}", b"x" * 1000, False)
    with pytest.raises(TypeError, match="got bytes"):
        sorter.feed(iter([(b"x", b"")]), bytes, True, 1)
