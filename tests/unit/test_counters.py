"""Counters: what each operation returns, changes and refuses, by name and by index, in the modes that change values."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import counterfiles
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mmapds
from mmapds import Closed, Counter, Counters, FloatCounter

LOW, HIGH = -(1 << 63), (1 << 63) - 1
words = st.one_of(st.integers(LOW, HIGH), st.sampled_from([LOW, LOW + 1, -1, 0, 1, HIGH - 1, HIGH]))
KEYS = ["name", 0, 63, 64]  # 64 is the index of the first name, which the fixtures make


def wrapped(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "counters")
    yield path
    if os.path.exists(path):
        counterfiles.check(path)


@pytest.fixture(params=["shared", "private", "padded"])
def c(request: pytest.FixtureRequest, path: str) -> Iterator[Counters]:
    Counters(path, padded=request.param == "padded").close()
    with Counters(path, mode="private" if request.param == "private" else "shared") as counters:
        counters["name"] = 0
        yield counters


@pytest.fixture(params=["shared", "private", "padded"])
def f(request: pytest.FixtureRequest, path: str) -> Iterator[Counters[float]]:
    Counters(path, dtype="f64", padded=request.param == "padded").close()
    with Counters(path, mode="private" if request.param == "private" else "shared", dtype="f64") as counters:
        counters["name"] = 0.0
        yield counters


# ---- the surface ---------------------------------------------------------------------------------------------------


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_the_public_names_are_exactly_these(path: str) -> None:
    assert public(Counters) == {
        "add", "capacity", "check", "clear", "close", "closed", "compare_exchange", "counter", "dtype", "durability",
        "exchange", "fetch_add", "fetch_and", "fetch_or", "fetch_sub", "fetch_xor", "flush", "get", "items", "keys",
        "layout", "mode", "padded", "path", "pop", "popitem", "remove", "reserve", "reset", "setdefault", "snapshot",
        "update", "values", "view",
    }  # fmt: skip
    atomic = public(mmapds.AtomicInt64)
    assert public(Counter) == atomic | {"add", "index", "name", "reserve", "reset"}
    assert public(FloatCounter) == public(Counter) - {
        "fetch_and", "fetch_or", "fetch_xor", "reserve", "wait", "wake",
    }  # fmt: skip


def test_the_parameters_are_exactly_these() -> None:
    parameters = inspect.signature(Counters.__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    assert defaults == {
        "path": inspect.Parameter.empty, "capacity": None, "mode": "shared", "dtype": None, "padded": None,
        "layout": "mmapds", "durability": None, "populate": False,
    }  # fmt: skip
    keyword_only = [name for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert keyword_only == ["mode", "dtype", "padded", "layout", "durability", "populate"]


@pytest.mark.parametrize("thing", [Counters, Counter, FloatCounter])
def test_everything_public_is_documented(thing: type) -> None:
    assert thing.__doc__
    plain = {"durability", "dtype", "index", "layout", "mode", "name", "padded", "path"}
    for name in public(thing) - plain:
        assert getattr(thing, name).__doc__, f"{thing.__name__}.{name} has no docstring"


# ---- integers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_each_operation_returns_what_its_name_says(c: Counters, key: Any) -> None:
    assert (c.fetch_add(key), c.fetch_add(key, 5), c[key]) == (0, 1, 6)
    assert (c.fetch_sub(key), c.fetch_sub(key, 2), c[key]) == (6, 5, 3)
    assert (c.add(key), c.add(key, 7), c.add(key, -1, True), c[key]) == (4, 11, 10, 10)
    assert (c.fetch_and(key, 6), c.fetch_or(key, 9), c.fetch_xor(key, 3), c[key]) == (10, 2, 11, 8)
    assert (c.exchange(key, -4), c[key]) == (8, -4)
    assert (c.compare_exchange(key, -4, 5), c[key]) == ((True, -4), 5)
    assert (c.compare_exchange(key, -4, 6), c[key]) == ((False, 5), 5)
    assert (c.reset(key), c.reset(key), c[key]) == (5, 0, 0)
    assert (c.reserve(key, 10), c.reserve(key, 1), c[key]) == (range(10), range(10, 11), 11)
    c[key] = 99
    assert (c[key], c.get(key)) == (99, 99)
    assert key in c


def test_names_and_indices_never_meet(c: Counters) -> None:
    names = [f"n{i}" for i in range(200)]
    for i, name in enumerate(names):
        c[name] = 1000 + i
    assert [c[i] for i in range(64)] == [0] * 64
    for i in range(64):
        c[i] = -i
    assert [c[name] for name in names] == list(range(1000, 1200))
    assert [c.counter(name).index for name in ["name", *names]] == list(range(64, 265))
    assert [c[64 + 1 + i] for i in range(200)] == list(range(1000, 1200))


@given(old=words, n=words, other=words)
def test_arithmetic_wraps_as_the_hardware_does(tmp_path_factory: pytest.TempPathFactory, **w: int) -> None:
    old, n, other = w["old"], w["n"], w["other"]
    path = tmp_path_factory.getbasetemp() / "wraps"
    with Counters(path, 1) as c:
        for key in ("name", 0):
            for operation, expected in (
                (c.fetch_add, wrapped(old + n)),
                (c.fetch_sub, wrapped(old - n)),
                (c.fetch_and, old & n),
                (c.fetch_or, old | n),
                (c.fetch_xor, old ^ n),
                (c.exchange, n),
            ):
                c[key] = old
                assert operation(key, n) == old
                assert c[key] == expected, operation
            c[key] = old
            assert c.add(key, n) == wrapped(old + n)
            c[key] = old
            assert c.compare_exchange(key, other, n) == (old == other, old)
            assert c[key] == (n if old == other else old)


@given(old=words, n=words)
def test_checked_addition_is_exact_or_changes_nothing(tmp_path_factory: pytest.TempPathFactory, **w: int) -> None:
    old, n = w["old"], w["n"]
    with Counters(tmp_path_factory.getbasetemp() / "checked", 1) as c:
        for key in ("name", 0):
            c[key] = old
            if LOW <= old + n <= HIGH:
                assert c.add(key, n, checked=True) == old + n == c[key]
            else:
                with pytest.raises(OverflowError, match="left as it is"):
                    c.add(key, n, checked=True)
                assert c[key] == old


def test_reserve_hands_out_numbers_once_and_refuses_what_does_not_fit(c: Counters) -> None:
    blocks = [c.reserve("order-id", n) for n in (1, 1000, 7)]
    assert [number for block in blocks for number in block] == list(range(1008))
    assert all(type(block) is range for block in blocks)
    c["order-id"] = HIGH - 3
    with pytest.raises(OverflowError, match="left as it is"):
        c.reserve("order-id", 4)
    assert c.reserve("order-id", 3) == range(HIGH - 3, HIGH)
    assert c["order-id"] == HIGH
    for n in (0, -1, LOW):
        with pytest.raises(ValueError, match="at least 1"):
            c.reserve("never", n)
    with pytest.raises(TypeError, match="int, not float"):
        c.reserve("never", 1.0)  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        c.reserve("never", HIGH + 1)
    assert "never" not in c
    c["below"] = -5
    assert c.reserve("below", 7) == range(-5, 2)


def test_arguments_by_keyword(c: Counters) -> None:
    assert c.fetch_add("k", n=4) == 0
    assert c.fetch_add(key="k", n=1) == 4
    assert c.fetch_sub(key="k", n=2) == 5
    assert c.add(key="k", n=2, checked=True) == 5
    assert c.fetch_or(key="k", n=8) == 5
    assert c.fetch_and(key="k", n=12) == 13
    assert c.fetch_xor(key="k", n=4) == 12
    assert c.exchange(key="k", value=3) == 8
    assert c.compare_exchange(key="k", expected=3, desired=4) == (True, 3)
    assert c.reserve(key="k", n=2) == range(4, 6)
    assert c.setdefault(key="k", default=1) == 6
    for call in (c.counter, c.reset, c.remove):
        with pytest.raises(TypeError, match="no keyword"):
            call(key="k")  # type: ignore[operator]
    c.remove("k")
    with pytest.raises(TypeError):
        c.fetch_add("k", m=4)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        c.fetch_and("k")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        c.fetch_add()  # type: ignore[call-arg]
    assert list(c) == ["name"]


# ---- values that are refused ---------------------------------------------------------------------------------------


def changes(c: Counters, key: Any) -> dict[str, Callable[[Any], Any]]:
    """Everything that takes a value."""
    return {
        "fetch_add": lambda v: c.fetch_add(key, v),
        "fetch_sub": lambda v: c.fetch_sub(key, v),
        "fetch_and": lambda v: c.fetch_and(key, v),
        "fetch_or": lambda v: c.fetch_or(key, v),
        "fetch_xor": lambda v: c.fetch_xor(key, v),
        "exchange": lambda v: c.exchange(key, v),
        "add": lambda v: c.add(key, v),
        "checked": lambda v: c.add(key, v, checked=True),
        "expected": lambda v: c.compare_exchange(key, v, 0),
        "desired": lambda v: c.compare_exchange(key, 0, v),
        "setdefault": lambda v: c.setdefault(key, v),
        "item": lambda v: c.__setitem__(key, v),
    }


@pytest.mark.parametrize("key", ["name", "new", 3])
def test_what_is_no_64_bit_integer_is_refused_before_anything_happens(c: Counters, key: Any) -> None:
    for what, change in changes(c, key).items():
        for value in (HIGH + 1, LOW - 1, 1 << 200, -(1 << 200)):
            with pytest.raises(OverflowError, match="signed 64-bit"):
                change(value)
        for value in (1.0, 0.5, float("nan"), "1", b"1", None, [], 1j):
            with pytest.raises(TypeError, match=f"takes an int, not {type(value).__name__}"):
                change(value)
        assert list(c) == ["name"], what
        assert (c["name"], c[3]) == (0, 0), what


class Five:
    def __index__(self) -> int:
        return 5


class Raises:
    def __index__(self) -> int:
        raise RuntimeError("no number today")


def test_values_of_other_integer_types(c: Counters) -> None:
    numpy = pytest.importorskip("numpy")
    for value in (Five(), True, numpy.int64(5), numpy.uint8(5), numpy.bool_(True).item()):
        number = 5 if value != True else 1  # noqa: E712
        c["name"] = 0
        assert c.add("name", value) == number
        assert c.exchange("name", value) == number
        assert c.compare_exchange("name", value, 0) == (True, number)
    with pytest.raises(RuntimeError, match="no number today"):
        c.fetch_add("new", Raises())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not float64"):
        c.fetch_add("new", numpy.float64(1))
    with pytest.raises(OverflowError):
        c.fetch_add("new", numpy.uint64(1 << 63))
    assert "new" not in c


# ---- floats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_each_operation_on_floats(f: Counters[float], key: Any) -> None:
    assert (f.fetch_add(key), f.fetch_add(key, 0.5), f[key]) == (0.0, 1.0, 1.5)
    assert (f.fetch_sub(key), f.fetch_sub(key, 0.25), f[key]) == (1.5, 0.5, 0.25)
    assert (f.add(key), f.add(key, 2), f.add(key, -1.25, True), f[key]) == (1.25, 3.25, 2.0, 2.0)
    assert (f.exchange(key, -4.5), f[key]) == (2.0, -4.5)
    assert (f.compare_exchange(key, -4.5, 5), f[key]) == ((True, -4.5), 5.0)
    assert (f.compare_exchange(key, -4.5, 6), f[key]) == ((False, 5.0), 5.0)
    assert (f.reset(key), f.reset(key), f[key]) == (5.0, 0.0, 0.0)
    f[key] = 99
    assert (f[key], type(f[key])) == (99.0, float)
    for result in (f.fetch_add(key), f.add(key), f.exchange(key, 1), f.reset(key), f.setdefault(key, 3)):
        assert type(result) is float


def test_floats_have_no_bits_and_no_blocks(f: Counters[float]) -> None:
    for operation in (f.fetch_and, f.fetch_or, f.fetch_xor, f.reserve):
        for key in ("name", "new", 0):
            with pytest.raises(TypeError, match="i64"):
                operation(key, 1)  # type: ignore[operator]
    assert list(f) == ["name"]


def test_floats_that_are_none(f: Counters[float]) -> None:
    for value in ("1", b"1", None, [], 1j):
        for change in (f.fetch_add, f.fetch_sub, f.exchange, f.add, f.__setitem__, f.setdefault):
            with pytest.raises(TypeError, match=f"takes a number, not {type(value).__name__}"):
                change("new", value)  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        f.fetch_add("new", 10**400)
    assert list(f) == ["name"]


def test_special_floats_are_kept_and_compared_as_numbers(f: Counters[float]) -> None:
    inf, nan = float("inf"), float("nan")
    f["name"] = -0.0
    assert f.compare_exchange("name", 0.0, inf) == (True, 0.0)
    assert f["name"] == inf
    f["name"] = nan
    assert f.compare_exchange("name", nan, 1.0)[0] is False, "nothing is nan"
    assert f["name"] != f["name"]
    assert f.reset("name") != 0
    f["name"] = 1.7e308
    with pytest.raises(OverflowError, match="left as it is"):
        f.add("name", 1.7e308, checked=True)
    assert f["name"] == 1.7e308
    assert f.add("name", 1.7e308) == inf
    assert f.add("name", 1.0, checked=True) == inf, "it did not come from finite numbers"
    f["name"] = 5e-324
    assert f.fetch_sub("name", 5e-324) == 5e-324
    assert f["name"] == 0


def test_numpy_floats_and_integers_in_floats(f: Counters[float]) -> None:
    numpy = pytest.importorskip("numpy")
    assert f.add("name", numpy.float32(0.5)) == 0.5
    assert f.add("name", numpy.float64(0.5)) == 1.0
    assert f.add("name", numpy.int64(2)) == 3.0
    assert f.add("name", Five()) == 8.0  # type: ignore[arg-type]


# ---- handles -------------------------------------------------------------------------------------------------------


def everything(c: Counters, key: Any = "name") -> dict[str, Callable[[], Any]]:
    """A call of everything that needs an open handle."""
    return {
        **{what: (lambda change=change: change(1)) for what, change in changes(c, key).items()},
        "get": lambda: c[key],
        "in": lambda: key in c,
        "len": lambda: len(c),
        "iter": lambda: list(c),
        "reset": lambda: c.reset(key),
        "remove": lambda: c.remove("name"),
        "del": lambda: c.__delitem__("name"),
        "pop": lambda: c.pop("name"),
        "pop with a default": lambda: c.pop("name", 1),
        "popitem": c.popitem,
        "clear": c.clear,
        "reserve": lambda: c.reserve(key, 1),
        "counter": lambda: c.counter(key),
        "snapshot": c.snapshot,
        "items": c.items,
        "values": c.values,
        "view": c.view,
        "capacity": lambda: c.capacity,
        "flush": c.flush,
        "flush without waiting": lambda: c.flush(wait=False),
        "with": c.__enter__,
    }


@pytest.mark.parametrize("key", ["name", "new", 0, 64])
def test_a_closed_handle_says_so_whatever_is_called(c: Counters, key: Any) -> None:
    c.close()
    c.close()
    assert c.closed
    for what, call in everything(c, key).items():
        with pytest.raises(Closed, match="closed"):
            print(what, call())
    assert "closed" in repr(c)
    assert (c.mode in ("shared", "private"), c.dtype, c.layout) == (True, "i64", "mmapds")
    assert c.path in repr(c)


def test_a_handle_is_opened_once_and_neither_copied_nor_pickled(c: Counters, tmp_path: Path) -> None:
    c.fetch_add("x")
    with pytest.raises(RuntimeError, match="make another"):
        c.__init__(tmp_path / "other")  # type: ignore[misc]
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            make(c)
        with pytest.raises(TypeError):
            make(c.counter("x"))
    assert c["x"] == 1
    assert not (tmp_path / "other").exists()
