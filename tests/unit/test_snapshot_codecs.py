"""SnapshotMap: values through codecs, and what is wrong in a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import snapmaps

from mmapds import CorruptionError, SchemaMismatch, SnapshotMap, codecs


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    return str(tmp_path / "map")


class Upper:
    """A codec of the user's."""

    def encode(self, value: str) -> bytes:
        return value.upper().encode()

    def decode(self, data: memoryview) -> str:
        return bytes(data).decode()


class Views:
    """One whose values refer to their bytes."""

    name = "views"
    zero_copy = True

    def encode(self, value: Any) -> Any:
        return value

    def decode(self, data: memoryview) -> memoryview:
        return data[1:]

    def own(self, value: Any) -> bytes:
        return bytes(value)


CODECS: list[tuple[Any, list[Any]]] = [
    ("raw", [b"", b"bytes", b"x" * 100_000]),
    ("msgpack", [None, True, -1, 1 << 63, 1.5, "é", b"\0", [1, [2]], {"a": {1: None}}, {(1, (2,)): 3}, ""]),
    ("struct:<iq", [(1, -(1 << 40)), (0, 0)]),
    ("struct:5s", [(b"abcde",)]),
    ("numpy:<f8", [np.arange(5.0), np.zeros(0)]),
    (np.dtype("int16"), [np.arange(6, dtype="int16")]),
    (codecs.Pickle(), [{1, 2, (3, 4)}, 1j, range(3)]),
    (Upper(), ["TEXT", ""]),
]


def equal(a: Any, b: Any) -> bool:
    return bool(np.array_equal(a, b)) if isinstance(b, np.ndarray) else bool(a == b and type(a) is type(b))


@pytest.mark.parametrize(("codec", "values"), CODECS, ids=lambda value: str(value)[:20])
def test_each_way_to_read_gives_the_value(path: str, codec: Any, values: list[Any]) -> None:
    model = {f"{i}": value for i, value in enumerate(values)}
    SnapshotMap.build(path, model, codec=codec)
    with SnapshotMap(path, codec=codec) as m, SnapshotMap(path, codec=codec, mode="private") as p:
        with m.transaction() as txn:
            for key, value in model.items():
                txn["new " + key] = value
                assert equal(txn["new " + key], value)
                assert equal(dict(txn)["new " + key], value)
                p[key] = value  # type: ignore[index]
        for key, value in [*model.items(), *(("new " + key, value) for key, value in model.items())]:
            found = [
                m[key], m.get(key), m.get_many([key])[key], next(m.range(key))[1], dict(m.items())[key],
                list(m.values())[list(m).index(key)], m.snapshot()[key], *([p[key], dict(p)[key]] if key in p else []),
            ]  # fmt: skip
            assert all(equal(one, value) for one in found), (key, found)
            assert bytes(m.get_view(key)) == bytes(m.codec.encode(value))
    if isinstance(codec, str):
        with SnapshotMap(path) as m:
            assert m.codec.name.startswith(codec.partition(":")[0])
    for mode in ("shared", "readonly", "private"):
        with pytest.raises(SchemaMismatch, match="struct:<q"):
            SnapshotMap(path, mode=mode, codec="struct:<q")  # type: ignore[arg-type]
    snapmaps.check(path, codec)


@pytest.mark.parametrize("codec", [codecs.Pickle(), Upper()], ids=["pickle", "object"])
def test_some_codecs_must_be_given(path: str, codec: Any) -> None:
    SnapshotMap.build(path, {"a": "A"}, codec=codec)
    for call in (
        lambda: SnapshotMap(path),
        lambda: SnapshotMap(path, mode="readonly"),
        lambda: SnapshotMap.build(path, {"a": "B"}),
    ):
        with pytest.raises(SchemaMismatch, match="pass codec="):
            call()
    with SnapshotMap(path, codec=codec) as m:
        assert m["a"] == "A"


def test_pickle_is_not_chosen_by_name(path: str) -> None:
    with pytest.raises(ValueError, match="pickle is not chosen by name"):
        SnapshotMap(path, codec="pickle")


def test_values_that_refer_to_their_bytes_stand_alone(path: str) -> None:
    SnapshotMap.build(path, {"a": b"-abc", "b": b"-def"}, codec=Views())
    with SnapshotMap(path, codec=Views()) as m:
        values = [m["a"], m.get("a"), m.get_many(["a"])["a"], next(iter(m.values())), m.first()[1]]
        snapmaps.commit(m, {"a": b"-xyz"})
        m.compact()
        assert m["a"] == b"xyz"
    assert all(value == b"abc" for value in values)
    arrays = path + "2"
    SnapshotMap.build(arrays, {"a": np.arange(1000.0)}, codec="numpy:<f8")
    with SnapshotMap(arrays) as m:
        array = m["a"]
        assert not array.flags.writeable
        snapmaps.commit(m, {}, "a")
        m.compact()
    assert array.sum() == 499_500


@pytest.mark.parametrize(
    ("codec", "wrong", "error"),
    [("raw", "text", TypeError), ("msgpack", object(), TypeError), ("msgpack", 1 << 64, ValueError),
     ("struct:<iq", (1,), ValueError), ("struct:<iq", 5, TypeError), ("numpy:<f8", "text", TypeError),
     (codecs.Pickle(), lambda: None, TypeError)],
)  # fmt: skip
def test_values_that_a_codec_cannot_keep(path: str, codec: Any, wrong: Any, error: Any) -> None:
    with SnapshotMap(path, codec=codec) as m:
        with m.transaction() as txn:
            for change in (
                lambda: txn.__setitem__("a", wrong),
                lambda: txn.set("a", wrong, 5),
                lambda: txn.update(a=wrong),
                lambda: txn.setdefault("a", wrong),
            ):
                with pytest.raises(error):
                    change()
            assert len(txn) == 0
        assert m.version == 1
        with pytest.raises(error):
            SnapshotMap.build(path, {"a": wrong}, codec=codec)
        assert (m.version, len(m)) == (1, 0)


def test_a_schema_is_stored(path: str) -> None:
    SnapshotMap(path, schema="orders 1").close()
    with SnapshotMap(path, schema="orders 1") as m:
        snapmaps.commit(m, {"a": 1})
    with pytest.raises(SchemaMismatch, match="orders 2") as caught:
        SnapshotMap(path, schema="orders 2")
    assert "orders 1" in str(caught.value)


# ---- what is wrong in a value --------------------------------------------------------------------------------------

READS: list[Callable[[Any], object]] = [
    lambda m: m["a"],
    lambda m: m.get("a"),
    lambda m: m.get_many(["b", "a"]),
    lambda m: list(m.items()),
    lambda m: list(m.values()),
    lambda m: m.first(),
    lambda m: list(m.range(reverse=True)),
    dict,
]


@pytest.mark.parametrize(
    ("codec", "name", "good", "bad"),
    [
        ("msgpack", "msgpack", b"\xa3abc", b"\xc1abc"), ("msgpack", "msgpack", b"\xa3abc", b"\xa9abc"),
        ("msgpack", "msgpack", b"\xa2ab", b"\xa2a\xff"), ("struct:<q", "struct:<q", bytes(8), bytes(7)),
        ("numpy:<f8", "numpy:<f8", None, b"x" * 9), (codecs.Pickle(), "pickle", b"N.", b"\xffnone."),
        (Upper(), "object:Upper", b"A", b"\xff"),
    ],
    ids=lambda value: str(value)[:12],
)  # fmt: skip
@pytest.mark.parametrize("where", ["layer", "delta", "changed"])
def test_damaged_values_name_the_codec(path: str, codec: Any, name: str, good: Any, bad: bytes, where: str) -> None:
    """As if another codec had written them: the records are sound, what they hold is not."""
    resolved = codecs.resolve(codec)
    if good is None:
        good = bytes(resolved.encode(np.arange(3.0)))
    values = {"a": bad, "b": good}
    with SnapshotMap(path, codec=codec) as m:
        with m.transaction() as txn:
            txn._changes.update({key: (data, 0) for key, data in values.items()})
        if where == "layer":
            m.compact()
    with SnapshotMap(path, codec=codec, mode="private" if where == "changed" else "readonly") as m:
        if where == "changed":
            m["c"] = resolved.decode(memoryview(good))
        for i, call in enumerate(READS):
            with pytest.raises(CorruptionError) as caught:
                raise AssertionError(f"{i} gave {call(m)!r}")
            assert repr(name) in str(caught.value), i
            assert f"{len(bad)} bytes" in str(caught.value), i
        assert m.get_view("a") == bad, "the bytes are to be had"
        m.get("b")
        assert list(m) == ["a", "b", *(["c"] if where == "changed" else [])]


def test_an_error_of_the_users_codec_passes(path: str) -> None:
    class Fails(Upper):
        def decode(self, data: memoryview) -> str:
            raise ZeroDivisionError("mine")

    SnapshotMap.build(path, {"a": "A"}, codec=Fails())
    with SnapshotMap(path, codec=Fails()) as m:
        for call in READS[:2] + READS[3:]:
            with pytest.raises(ZeroDivisionError, match="mine"):
                call(m)
        assert list(m) == ["a"]
