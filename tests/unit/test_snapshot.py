"""SnapshotMap: opening, what is stored, and what a map says as a Mapping, in each mode."""

from __future__ import annotations

import copy
import gc
import inspect
import os
import pickle
import stat
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import snapmaps

import mmapds
from mmapds import Closed, IncompatibleFormat, SchemaMismatch, Snapshot, SnapshotMap, Transaction
from mmapds._manifest import Manifest
from mmapds.snapshot import PrivateMap

MODES = ["shared", "readonly", "private"]
PLACES = {"a": 1, "b/1": [2], "b/2": {"x": None}, "c": "three", "é": 4.5}


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "map")
    yield path
    snapmaps.check(path)


@pytest.fixture
def made(path: str) -> str:
    """Where a map of PLACES is, in a layer and in the delta."""
    SnapshotMap.build(path, {"b/1": [2], "a": 0, "gone": 5}, metadata={"of": ["places", 1]})
    with SnapshotMap(path) as m:
        snapmaps.commit(m, {key: PLACES[key] for key in ("é", "c", "a", "b/2")}, "gone")
    return path


@pytest.fixture(params=["shared", "readonly", "private", "snapshot", "transaction", "changed", "changing"])
def m(request: pytest.FixtureRequest, made: str) -> Iterator[Any]:
    """PLACES, as everything that can be read: a map in each mode, a snapshot, a transaction, and with the last of the
    changes still in an overlay."""
    how = request.param
    if how in ("changed", "changing"):
        with SnapshotMap(made) as writer:
            snapmaps.commit(writer, {"a": "old", "more": 1}, "b/1")
    with SnapshotMap(made, mode=how if how in MODES else "private" if how == "changed" else "shared") as handle:
        if how == "snapshot":
            with handle.snapshot() as snapshot:
                yield snapshot
        elif how in ("transaction", "changing"):
            with handle.transaction() as txn:
                if how == "changing":
                    txn["a"], txn["b/1"] = PLACES["a"], PLACES["b/1"]
                    del txn["more"]
                yield txn
        else:
            if how == "changed":
                handle["a"], handle["b/1"] = PLACES["a"], PLACES["b/1"]
                del handle["more"]
            yield handle


# ---- the surface ---------------------------------------------------------------------------------------------------


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


READING = {
    "codec", "first", "get", "get_many", "get_view", "items", "key_type", "keys", "last", "metadata", "path",
    "prefetch", "prefix", "range", "ttl", "values", "verify", "version",
}  # fmt: skip
CHANGING = {"clear", "pop", "popitem", "set", "setdefault", "update"}
MAP = {
    "build", "check", "close", "closed", "compact", "durability", "follow", "mode", "refresh", "snapshot", "stats",
    "transaction", "wait",
}  # fmt: skip


def test_the_public_names_are_exactly_these() -> None:
    assert public(SnapshotMap) == READING | MAP
    assert public(PrivateMap) == READING | MAP | CHANGING | {"discard", "overlay_size", "publish"}
    assert public(Transaction) == READING | CHANGING
    assert public(Snapshot) == READING | {"close", "snapshot", "stats"}
    assert {"Snapshot", "SnapshotMap", "Transaction"} <= set(mmapds.__all__)


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    found = inspect.signature(function).parameters
    return {name: parameter.default for name, parameter in found.items() if name != "self"}


def test_the_parameters_are_exactly_these() -> None:
    empty = inspect.Parameter.empty
    assert parameters(SnapshotMap.__init__) == {
        "path": empty, "mode": "shared", "codec": None, "schema": None, "follow": True, "durability": None,
        "populate": False, "verify": False,
    }  # fmt: skip
    assert parameters(SnapshotMap.build) == {
        "path": empty, "items": empty, "codec": None, "schema": None, "durability": None, "metadata": None,
        "memory_limit": 256 << 20, "progress": None,
    }  # fmt: skip
    assert parameters(SnapshotMap.range) == {"start": None, "stop": None, "reverse": False}
    assert parameters(SnapshotMap.prefix) == {"prefix": empty, "reverse": False}
    assert parameters(SnapshotMap.wait) == {"newer_than": None, "timeout": None}
    assert parameters(Transaction.set) == {"key": empty, "value": empty, "ttl": None}


@pytest.mark.parametrize("thing", [SnapshotMap, Snapshot, Transaction, PrivateMap])
def test_everything_public_is_documented(thing: type) -> None:
    assert thing.__doc__
    plain = {"codec", "durability", "follow", "mode", "path"}
    plain |= {"pop", "popitem", "setdefault"}  # the standard library's
    for name in public(thing) - plain:
        assert getattr(thing, name).__doc__, f"{thing.__name__}.{name} has no docstring"


# ---- opening -------------------------------------------------------------------------------------------------------


def test_opening_makes_an_empty_map_that_only_its_owner_can_read(path: str) -> None:
    before = os.umask(0)
    try:
        with SnapshotMap(path) as m:
            assert (m.version, len(m), list(m), dict(m)) == (1, 0, [], {})
            assert (m.key_type, m.metadata, m.mode, m.follow, m.durability) == (None, None, "shared", True, "process")
            assert m.codec.name == "msgpack"
            assert m.path == path
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert set(os.listdir(path)) == {"manifest_sync", "manifest_data_1"}
    for name in os.listdir(path):
        assert stat.S_IMODE(os.stat(f"{path}/{name}").st_mode) == 0o600, name


def test_an_empty_directory_becomes_a_map(path: str) -> None:
    os.mkdir(path)
    Path(path, ".hidden").touch()
    with SnapshotMap(path) as m:
        assert len(m) == 0
    os.unlink(f"{path}/.hidden")


@pytest.mark.parametrize("kind", [str, Path, os.path.relpath])
def test_paths_of_each_kind(path: str, kind: Callable[[str], Any]) -> None:
    with SnapshotMap(kind(path)) as m, SnapshotMap(kind(path), mode="readonly") as reader:
        assert m.path == reader.path == path


@pytest.mark.parametrize("mode", MODES)
def test_a_directory_of_something_else_is_left_as_it_is(path: str, mode: Any) -> None:
    os.mkdir(path)
    Path(path, "letters").write_text("dear")
    with pytest.raises(IncompatibleFormat if mode == "shared" else FileNotFoundError) as caught:
        SnapshotMap(path, mode=mode)
    assert path in str(caught.value)
    assert "letters" in str(caught.value) or mode != "shared"
    assert os.listdir(path) == ["letters"]
    if mode == "shared":
        with pytest.raises(IncompatibleFormat, match="letters"):
            SnapshotMap.build(path, {})


@pytest.mark.parametrize("mode", MODES)
def test_a_file_is_no_map(path: str, mode: Any) -> None:
    Path(path).write_text("file")
    with pytest.raises(IncompatibleFormat, match="is a file; a snapshot map is a directory"):
        SnapshotMap(path, mode=mode)
    assert Path(path).read_text() == "file"


@pytest.mark.parametrize("mode", ["readonly", "private"])
def test_other_modes_make_no_map(path: str, mode: Any) -> None:
    with pytest.raises(FileNotFoundError, match="makes none") as caught:
        SnapshotMap(path, mode=mode)
    assert caught.value.filename == path
    assert not os.path.exists(path)


@pytest.mark.parametrize("mode", ["readonly", "private"])
def test_a_map_whose_maker_died_is_opened_when_somebody_has_made_it(path: str, mode: Any) -> None:
    os.mkdir(path)
    Manifest(f"{path}/manifest", mode="shared", codec="raw").close()
    with pytest.raises(FileNotFoundError, match="open it with mode='shared'"):
        SnapshotMap(path, mode=mode)
    with SnapshotMap(path) as m, SnapshotMap(path, mode=mode) as reader:
        assert (m.version, reader.version, reader.codec.name) == (1, 1, "raw")


@pytest.mark.parametrize("wrong", [{"mode": "copy"}, {"mode": None}, {"durability": "some"}, {"codec": "json"}])
def test_wrong_options_make_nothing(path: str, wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=f"{next(iter(wrong.values()))}"):
        SnapshotMap(path, **wrong)
    assert not os.path.exists(path) or not os.listdir(path)


def test_a_handle_is_opened_once(path: str) -> None:
    with SnapshotMap(path) as m, pytest.raises(RuntimeError, match="opened once"):
        SnapshotMap.__init__(m, path)


def test_each_mode_has_its_class(made: str) -> None:
    for mode, kind in (("shared", SnapshotMap), ("readonly", SnapshotMap), ("private", PrivateMap)):
        with SnapshotMap(made, mode=mode) as m:  # type: ignore[arg-type]
            assert type(m) is kind
            assert isinstance(m, SnapshotMap)
            assert isinstance(m, Mapping)
            assert isinstance(m, MutableMapping) == (mode == "private")
            assert m.mode == mode


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("option", ["populate", "verify"])
def test_options_of_a_handle_change_nothing_that_is_read(made: str, mode: Any, option: str) -> None:
    with SnapshotMap(made, mode=mode, **{option: True}) as m:
        assert snapmaps.contents(m) == PLACES


# ---- options that are stored -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_what_is_left_out_is_taken_from_the_map(path: str, mode: Any) -> None:
    with SnapshotMap(path, codec="raw", schema="places 1", durability="process") as m:
        snapmaps.commit(m, {"a": b"x"})
    with SnapshotMap(path, mode=mode) as m:
        assert (m.codec.name, m.durability, m["a"]) == ("raw", "process", b"x")
    with SnapshotMap(path, mode=mode, codec="raw", schema="places 1", durability="process") as m:
        assert m["a"] == b"x"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("option", "stored", "other"),
    [("codec", "raw", "msgpack"), ("schema", "places 1", "places 2"), ("durability", "process", "power")],
)
def test_what_differs_is_refused_and_both_are_shown(path: str, mode: Any, option: str, stored: str, other: str) -> None:
    with SnapshotMap(path, **{option: stored}) as m:
        snapmaps.commit(m, {"a": b"x"})
    for call in (
        lambda: SnapshotMap(path, mode=mode, **{option: other}),
        lambda: SnapshotMap.build(path, {"a": b"y"}, **{option: other}),
    ):
        with pytest.raises(SchemaMismatch) as caught:
            call()
        told = str(caught.value) + "".join(caught.value.__notes__)
        assert repr(stored) in told
        assert repr(other) in told
        assert path in told
    with SnapshotMap(path, mode="readonly") as m:
        assert m["a"] == b"x"


# ---- a Mapping -----------------------------------------------------------------------------------------------------


def test_all_ways_to_read_say_the_same(m: Any) -> None:
    if not isinstance(m, (Transaction, PrivateMap)):
        snapmaps.contents(m)
    assert dict(m) == PLACES
    assert dict(m.items()) == PLACES
    assert list(m) == sorted(PLACES, key=str.encode) == list(m.keys())
    assert list(m.values()) == [PLACES[key] for key in sorted(PLACES)]
    assert list(reversed(m)) == sorted(PLACES, reverse=True)
    assert list(reversed(m.keys())) == list(reversed(m))
    assert list(reversed(m.values())) == list(m.values())[::-1]
    assert list(reversed(m.items())) == list(m.items())[::-1]
    assert len(m) == len(m.keys()) == len(m.items()) == len(m.values()) == len(PLACES)
    assert bool(m)
    assert m.key_type is str
    assert (m.first(), m.last()) == (("a", 1), ("é", 4.5))
    assert list(m.prefix("b")) == [("b/1", [2]), ("b/2", {"x": None})]
    assert list(m.range("b", "c", reverse=True)) == [("b/2", {"x": None}), ("b/1", [2])]


def test_equality_and_views_are_those_of_a_mapping(m: Any) -> None:
    assert m == PLACES
    assert PLACES == m  # noqa: SIM300
    assert m != {**PLACES, "a": 2}
    assert m.keys() == PLACES.keys()
    assert m.keys() & {"a", "x"} == {"a"}
    assert m.keys() | {"x"} == {*PLACES, "x"}
    assert m.keys() - {"a"} == PLACES.keys() - {"a"}
    assert m.keys().isdisjoint({"x"})
    assert "a" in m.keys()  # noqa: SIM118
    assert ("a", 1) in m.items()
    assert ("a", 2) not in m.items()
    assert ("x", 2) not in m.items()
    assert 4.5 in m.values()
    assert "gone" not in m.values()
    with pytest.raises(TypeError, match="unhashable"):
        hash(m)


def test_what_is_not_there(m: Any) -> None:
    for key in ("", "gone", "more", "a\0", "A", "b", "b/", "x" * 65536):
        if key == "more":
            continue
        assert key not in m
        assert m.get(key) is None
        assert m.get(key, 7) == 7
        assert m.get_view(key) is None
        assert m.get_view(key, 7) == 7
        with pytest.raises(KeyError) as caught:
            m[key]
        assert caught.value.args == (key,)
    assert m.get_many(["gone", "x"]) == {}


def test_each_lookup_makes_a_new_object(m: Any) -> None:
    assert m["b/1"] is not m["b/1"]
    m["b/1"].append("mine")
    assert m["b/1"] == [2]


WRONG: list[Callable[[Any, Any], object]] = [
    lambda m, key: m[key],
    lambda m, key: m.get(key),
    lambda m, key: m.get_view(key),
    lambda m, key: key in m,
    lambda m, key: m.get_many(["a", key]),
    lambda m, key: m.range(key),
    lambda m, key: m.range(None, key),
    lambda m, key: m.prefix(key),
    lambda m, key: m.prefetch([key]),
    lambda m, key: m.prefetch(start=key),
]


@pytest.mark.parametrize("key", [b"a", 1, [], bytearray(b"a")], ids=repr)
def test_keys_of_another_kind_are_refused(m: Any, key: Any) -> None:
    for i, call in enumerate(WRONG):
        with pytest.raises(TypeError, match="keys of this map are str") as caught:
            call(m, key)
        assert f"got {type(key).__name__}" in str(caught.value), i


def test_none_is_no_key(m: Any) -> None:
    for call in (WRONG[0], WRONG[1], WRONG[3], WRONG[4], WRONG[7]):
        with pytest.raises(TypeError, match=r"NoneType|got None"):
            call(m, None)


def test_bytes_and_str_maps_refuse_each_other(tmp_path: Path) -> None:
    for keys, others in (("abc", b"abc"), ([b"a", b"b", b"c"], "abc")):
        path = tmp_path / type(others).__name__
        with SnapshotMap(path) as m:
            for key in (keys[0], others[0:1]):  # without keys, it takes both
                assert key not in m
            snapmaps.commit(m, dict.fromkeys(keys, 1))
            assert m.key_type is type(keys[0])
            with pytest.raises(TypeError, match="keys of this map are"):
                m.get(others[0:1])
            with pytest.raises(TypeError, match="keys of this map are"), m.transaction() as txn:
                txn[others[0:1]] = 1
            assert list(m) == list(keys)
        snapmaps.check(str(path))


# ---- many, and views -----------------------------------------------------------------------------------------------


def test_get_many_takes_any_iterable_and_finds_what_there_is(m: Any) -> None:
    asked = ["é", "x", "a", "a", "b/2"]
    for keys in (asked, tuple(asked), iter(asked), dict.fromkeys(asked), (key for key in asked)):
        assert m.get_many(keys) == {"é": 4.5, "a": 1, "b/2": {"x": None}}
    assert list(m.get_many(asked)) == ["é", "a", "b/2"], "in the order they were asked for"
    assert m.get_many([]) == m.get_many("xyz") == {}
    assert m.get_many("ac") == {"a": 1, "c": "three"}


def test_get_many_of_more_than_are_fetched_together(path: str) -> None:
    values = {f"{i:05}": i for i in range(1000)}
    SnapshotMap.build(path, values)
    with SnapshotMap(path) as m:
        snapmaps.commit(m, {"00500": "new"}, "00501")
        for count in (1, 31, 32, 33, 63, 64, 65, 1000):
            keys = list(values)[::-1][:count]
            expected = {key: "new" if key == "00500" else values[key] for key in keys if key != "00501"}
            assert m.get_many(keys) == expected, count
            assert m.get_many([*keys, "none"] * 2) == expected


def test_views_are_the_stored_bytes_and_keep_them(descriptors: None, path: str) -> None:
    SnapshotMap.build(path, {"layer": b"in a layer", "empty": b"", "large": b"x" * 300_000}, codec="raw")
    m = SnapshotMap(path)
    snapmaps.commit(m, {"delta": b"in the delta"})
    views = {key: m.get_view(key) for key in m}
    for key, view in views.items():
        assert isinstance(view, memoryview)
        assert (view.readonly, view.format, view.ndim, view.nbytes) == (True, "B", 1, len(m[key])), key
        assert view == m[key]
    with pytest.raises(TypeError, match="read-only"):
        views["layer"][0] = 1
    snapmaps.commit(m, dict.fromkeys(m, b"replaced"))
    m.compact()
    m.close()
    gc.collect()
    found = {key: bytes(view) for key, view in views.items()}
    assert found == {"delta": b"in the delta", "empty": b"", "large": b"x" * 300_000, "layer": b"in a layer"}


def test_views_of_changes(path: str) -> None:
    with SnapshotMap(path, codec="raw") as m:
        with m.transaction() as txn:
            txn["a"] = bytearray(b"one")
            view = txn.get_view("a")
            assert (view, view.readonly) == (b"one", True)
            txn["a"] = b"two"
            assert (view, txn.get_view("a")) == (b"one", b"two")
            del txn["a"]
            assert txn.get_view("a") is None
        assert view == b"one"


# ---- changing in a mode that does not ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["shared", "readonly"])
def test_assignment_names_transaction(made: str, mode: Any) -> None:
    with SnapshotMap(made, mode=mode) as m:
        with pytest.raises(TypeError, match=r"with m\.transaction\(\) as txn"):
            m["a"] = 5
        with pytest.raises(TypeError, match=r"with m\.transaction\(\) as txn"):
            del m["a"]
        assert m["a"] == 1


@pytest.mark.parametrize("mode", ["private", "readonly"])
def test_other_modes_have_no_transactions(made: str, mode: Any) -> None:
    with SnapshotMap(made, mode=mode) as m:
        for call in (m.transaction, m.compact):
            with pytest.raises(PermissionError, match=f"mode='{mode}' does not change the map") as caught:
                call()
            assert caught.value.filename == made


# ---- about it ------------------------------------------------------------------------------------------------------


def test_metadata_is_what_build_was_given(path: str) -> None:
    metadata = {"text": ["é", None, 1.5], "bytes": b"\0", 3: True}
    SnapshotMap.build(path, {"a": 1}, metadata=metadata)
    with SnapshotMap(path) as m:
        assert m.metadata == m.snapshot().metadata == metadata
        snapmaps.commit(m, {"b": 1})
        m.compact()
        assert m.metadata == metadata, "compactions keep it"
        snapmaps.commit(m, {}, "a", "b")
        m.compact()
        assert (m.metadata, len(m), snapmaps.layers(m)) == (metadata, 0, [0]), "also when nothing else is left"
        snapmaps.commit(m, {"c": 1})
        m.compact()
        with m.transaction() as txn:
            assert txn.metadata == metadata
        SnapshotMap.build(path, {"a": 1})
        assert m.metadata is None


def test_stats(made: str) -> None:
    with SnapshotMap(made) as m:
        stats = m.stats()
        (layer,) = stats.pop("layers")
        delta = stats.pop("delta")
        assert stats == {
            "path": made, "mode": "shared", "durability": "process", "version": 2, "entries": 5, "keys": "str",
            "codec": "msgpack", "bytes": sum(os.stat(f"{made}/{name}").st_size for name in snapmaps.files(made)),
        }  # fmt: skip
        assert (layer["records"], layer["bytes"]) == (3, os.stat(f"{made}/{layer['number']:016x}.layer").st_size)
        assert 0 < delta["used"] < delta["bytes"] < os.stat(f"{made}/{delta['number']:016x}.delta").st_size
        snapshot = m.snapshot().stats()
        assert snapshot == {key: value for key, value in m.stats().items() if key in snapshot}
        assert m.stats()["version"] == m.version
        m.compact()
        assert (m.stats()["delta"], snapmaps.layers(m)) == (None, [5])


def test_len_counts_entries(path: str) -> None:
    with SnapshotMap(path) as m:
        assert not m
        for i in range(5):
            snapmaps.commit(m, {f"{i}": i, "same": i})
            assert len(m) == i + 2
        snapmaps.commit(m, {"0": 1}, "1", "2")
        assert len(m) == 4
        m.compact()
        assert len(m) == 4
        snapmaps.commit(m, {}, *list(m))
        assert (len(m), bool(m), list(m)) == (0, False, [])
        m.compact()
        assert (len(m), snapmaps.files(path)) == (0, [])
        for call in (m.first, m.last):
            with pytest.raises(KeyError, match="the map is empty"):
                call()


def test_repr(made: str) -> None:
    with SnapshotMap(made) as m:
        assert repr(m) == f"<SnapshotMap {made} shared version 2>"
        snapshot = m.snapshot()
        assert repr(snapshot) == f"<Snapshot {made} version 2>"
        txn = m.transaction()
        assert repr(txn) == f"<Transaction of {made}, over>"
        with txn:
            txn["x"] = 1
            assert repr(txn) == f"<Transaction of {made}, 1>"
        assert repr(txn) == f"<Transaction of {made}, over>"
    assert repr(m) == f"<SnapshotMap {made} shared closed>"
    with snapshot:
        assert "version 2" in repr(snapshot)
    assert repr(snapshot) == f"<Snapshot {made} closed>"
    with SnapshotMap(made, mode="private") as m:
        assert repr(m) == f"<SnapshotMap {made} private version 3>"


def test_verify_counts_blocks_and_batches(made: str) -> None:
    with SnapshotMap(made) as m:
        assert m.verify() == 2
        assert m.snapshot().verify() == 2
        snapmaps.commit(m, {"a": "x" * 200_000})
        assert m.verify() == 3
        m.compact()
        assert m.verify() == 4


def test_prefetch_changes_nothing(m: Any) -> None:
    m.prefetch()
    m.prefetch(["a", "gone", "é"])
    m.prefetch(iter(()))
    for what in ({"start": "b"}, {"stop": "b"}, {"start": "c", "stop": "b"}, {"prefix": "b"}, {"prefix": ""}):
        m.prefetch(**what)
    assert m == PLACES
    for key in ("a", b"a"):
        with pytest.raises(TypeError, match="an iterable of keys"):
            m.prefetch(key)


# ---- the end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_after_close_everything_says_so(made: str, mode: Any) -> None:
    m: Any = SnapshotMap(made, mode=mode)
    walk = m.items()
    values = iter(m.values())
    assert m.closed is False
    m.close()
    m.close()
    assert m.closed is True
    calls: list[Callable[[], object]] = [
        lambda: m["a"], lambda: m.get("a"), lambda: "a" in m, lambda: m.get_many(["a"]), lambda: m.get_view("a"),
        lambda: len(m), lambda: list(m), lambda: list(walk), m.range, lambda: m.prefix("a"), m.first, m.last,
        lambda: m.version, lambda: m.key_type, lambda: m.metadata, m.verify, m.prefetch, m.refresh, m.wait, m.snapshot,
        m.stats, m.transaction, m.compact, m.check, m.__enter__,
    ]  # fmt: skip
    if mode == "private":
        calls += [
            lambda: m.__setitem__("a", 1), lambda: m.__delitem__("a"), m.clear, m.popitem, lambda: m.update(a=1),
            lambda: m.set("a", 1), lambda: m.overlay_size, m.discard, lambda: m.publish(made + "2"),
        ]  # fmt: skip
    for i, call in enumerate(calls):
        with pytest.raises(Closed) as caught:
            raise AssertionError(f"call {i} of a closed map gave {call()!r}")
        assert f"{made}: this map is closed" in str(caught.value), i
    assert len(list(values)) == 5, "what was begun before goes on"
    assert not os.path.exists(made + "2")


def test_what_was_handed_out_outlives_the_handle(descriptors: None, made: str) -> None:
    m = SnapshotMap(made)
    walk, snapshot, view = m.range(), m.snapshot(), m.get_view("c")
    assert next(walk) == ("a", 1)
    m.close()
    assert len(list(walk)) == 4
    assert snapmaps.contents(snapshot) == PLACES
    assert view.tobytes() == b"\xa5three"
    snapshot.close()
    snapshot.close()
    for call in (lambda: snapshot["a"], lambda: list(snapshot), snapshot.snapshot, snapshot.stats, snapshot.verify):
        with pytest.raises(Closed, match="this snapshot is closed"):
            call()


@pytest.mark.parametrize("mode", MODES)
def test_a_handle_that_is_forgotten_says_so(made: str, mode: Any) -> None:
    m = SnapshotMap(made, mode=mode)
    with pytest.warns(ResourceWarning, match=f"unclosed <SnapshotMap {made}"):
        del m


def test_snapshots_and_handles_that_could_not_be_opened_need_no_closing(descriptors: None, made: str) -> None:
    with SnapshotMap(made) as m:
        snapshot = m.snapshot()
        assert len(snapshot) == 5
        del snapshot
        gc.collect()
    for wrong in ({"codec": "raw"}, {"mode": "x"}, {"durability": "x"}):
        with pytest.raises(ValueError, match=r"x|raw"):
            SnapshotMap(made, **wrong)  # type: ignore[arg-type]
    gc.collect()


def test_copying_and_pickling_are_refused(m: Any) -> None:
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            duplicate(m)
    assert m == PLACES


def test_walks_are_not_pickled(made: str) -> None:
    with SnapshotMap(made) as m:
        for duplicate in (pickle.dumps, copy.copy):
            with pytest.raises(TypeError):
                duplicate(m.range())
