"""Counters as a MutableMapping, beside a dict that is asked the same; what is atomic of it; snapshots."""

from __future__ import annotations

import collections.abc
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmapds import Counters, MappingLost

names = st.sampled_from(["a", "b", "c", "ä" * 20, "d" * 255])
values = st.integers(-(1 << 63), (1 << 63) - 1)


@pytest.fixture
def path(tmp_path: Path, descriptors: None) -> str:
    return str(tmp_path / "counters")


@pytest.fixture(params=["shared", "private"])
def c(request: pytest.FixtureRequest, path: str) -> Iterator[Counters]:
    Counters(path).close()
    with Counters(path, mode=request.param) as counters:
        yield counters


# ---- as a dict does ------------------------------------------------------------------------------------------------


def test_it_is_a_mutable_mapping() -> None:
    assert issubclass(Counters, collections.abc.MutableMapping)
    assert Counters.__hash__ is None


def outcome(call: Callable[..., Any], *arguments: object) -> Any:
    """What it returns, or the kind of error that it raises."""
    try:
        return call(*arguments)
    except Exception as error:  # noqa: BLE001  to be compared
        return type(error)


STEPS: dict[str, Callable[[Any, str, int], Any]] = {
    "get item": lambda m, k, v: m[k],
    "set item": lambda m, k, v: m.__setitem__(k, v),
    "delete item": lambda m, k, v: m.__delitem__(k),
    "in": lambda m, k, v: k in m,
    "get": lambda m, k, v: m.get(k),
    "get with a default": lambda m, k, v: m.get(k, v),
    "setdefault": lambda m, k, v: m.setdefault(k, v),
    "pop": lambda m, k, v: m.pop(k),
    "pop with a default": lambda m, k, v: m.pop(k, v),
    "pop with None": lambda m, k, v: m.pop(k, None),
    "update with a dict": lambda m, k, v: m.update({k: v, "c": 1}),
    "update with pairs": lambda m, k, v: m.update([("b", 2), (k, v)]),
    "update with keywords": lambda m, k, v: m.update(a=v),
    "ior": lambda m, k, v: m.update(m),
    "length": lambda m, k, v: len(m),
    "truth": lambda m, k, v: bool(m),
    "equal": lambda m, k, v: m == {k: v},
    "not equal": lambda m, k, v: m != dict(m),
    "as a dict": lambda m, k, v: dict(m),
    "clear": lambda m, k, v: m.clear(),
}


@pytest.mark.parametrize("mode", ["shared", "private"])
@given(steps=st.lists(st.tuples(st.sampled_from(sorted(STEPS)), names, values), max_size=30))
@settings(max_examples=60, deadline=None)
def test_whatever_is_asked_a_dict_answers_the_same(
    tmp_path_factory: pytest.TempPathFactory, mode: Any, steps: list[tuple[str, str, int]]
) -> None:
    path = str(tmp_path_factory.getbasetemp() / f"mapping-{mode}")
    if os.path.exists(path):
        os.unlink(path)
    Counters(path, 2).close()
    with Counters(path, mode=mode) as c:
        d: dict[str, int] = {}
        for what, key, value in steps:
            ours, theirs = outcome(STEPS[what], c, key, value), outcome(STEPS[what], d, key, value)
            assert ours == theirs, (what, key, value, d)
            assert c.snapshot() == dict(c.items()) == d
            assert set(c) == set(d) == set(c.keys())
            assert sorted(c.values()) == sorted(d.values())
            assert len(c) == len(d)


def test_iteration_is_in_the_order_of_creation_and_unmoved_by_what_happens_meanwhile(c: Counters) -> None:
    expected = [f"n{i}" for i in range(100)]
    for name in expected:
        c.fetch_add(name)
    assert list(c) == list(c.keys()) == list(c.snapshot()) == expected
    seen = []
    for name in c:
        seen.append(name)
        c.fetch_add(f"made while iterating over {name}")
        c.pop(name)
    assert seen == expected
    assert list(c) == [f"made while iterating over {name}" for name in expected]
    c["n5"] = 1
    assert next(iter(c)) == "n5", "a name that returns has the place that it had"
    assert list(reversed(list(c.items())))[-1] == ("n5", 1)


def test_comparisons(c: Counters, tmp_path: Path) -> None:
    c.update(a=1, b=2)
    assert c == {"a": 1, "b": 2}
    assert c == {"b": 2, "a": 1}
    assert c != {"a": 1}
    assert c != 5
    with Counters(tmp_path / "other", dtype="f64") as other:
        other.update(b=2.0, a=1.0)
        assert c == other
    with pytest.raises(TypeError, match="unhashable"):
        hash(c)


def test_items_and_values_are_those_of_one_moment(c: Counters) -> None:
    c.update(a=1, b=2)
    items, values, keys = c.items(), c.values(), c.keys()
    assert ("a", 1) in items
    c["a"] = 5
    c["new"] = 3
    assert (list(items), list(values), len(items)) == ([("a", 1), ("b", 2)], [1, 2], 2)
    assert list(keys) == ["a", "b", "new"], "keys() is a view of the counters"
    assert keys & {"a", "x"} == {"a"}


# ---- pop, popitem, setdefault --------------------------------------------------------------------------------------


def test_popitem_takes_the_name_that_was_made_last(c: Counters) -> None:
    c.update(a=1, b=2, c=3)
    assert [c.popitem() for _ in range(2)] == [("c", 3), ("b", 2)]
    c["b"] = 5
    c["d"] = 6
    assert [c.popitem() for _ in range(3)] == [("d", 6), ("b", 5), ("a", 1)]
    with pytest.raises(KeyError, match="no names"):
        c.popitem()


def test_pop_takes_one_default(c: Counters) -> None:
    c["a"] = 1
    sentinel = object()
    assert c.pop("unknown", sentinel) is sentinel
    assert c.pop("a", sentinel) == 1
    for wrong in (c.pop, lambda: c.pop("a", 1, 2)):
        with pytest.raises(TypeError):
            wrong()
    assert c.pop("a", default=1) == 1  # as of every MutableMapping


def test_setdefault_of_an_index_is_its_value(c: Counters) -> None:
    assert c.setdefault(3, 9) == 0
    c[3] = 5
    assert c.setdefault(3, 9) == 5
    with pytest.raises(IndexError):
        c.setdefault(64, 9)


def test_get_and_in_with_an_index(c: Counters) -> None:
    c["a"] = 7
    assert (c.get(0), c.get(64), 0 in c, 64 in c, 65 in c, -1 in c) == (0, 7, True, True, False, False)
    with pytest.raises(IndexError):
        c.get(65)
    assert list(c) == ["a"], "indices are no part of the iteration"


def together(count: int, job: Callable[[int], None]) -> None:
    errors: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            barrier.wait()
            job(number)
        except BaseException as error:  # noqa: BLE001  handed over
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


@pytest.fixture
def handles(path: str) -> Iterator[list[Counters]]:
    """Four handles of one file, which exclude each other by the kernel's locks only."""
    handles = [Counters(path) for _ in range(4)]
    yield handles
    for handle in handles:
        handle.close()


def test_of_many_setdefaults_one_makes_the_name_and_all_return_its_value(handles: list[Counters]) -> None:
    for turn in range(50):
        results: list[int] = []
        together(4, lambda i: results.append(handles[i].setdefault(f"n{turn}", i + 1)))  # noqa: B023
        assert len(set(results)) == 1, results
        assert results[0] == handles[0][f"n{turn}"] in range(1, 5)


def test_what_is_added_while_others_pop_is_in_exactly_one_place(handles: list[Counters]) -> None:
    taken = [0, 0]

    def work(number: int) -> None:
        if number < 2:
            for _ in range(3000):
                handles[number].fetch_add("k")
        else:
            for _ in range(400):
                taken[number - 2] += handles[number].pop("k", 0)

    together(4, work)
    left = handles[0].pop("k", 0)
    assert sum(taken) + left == 6000, (taken, left)


def test_of_many_popitems_each_takes_another(handles: list[Counters]) -> None:
    handles[0].update({f"n{i}": i for i in range(400)})
    found: list[tuple[str, int]] = []
    together(4, lambda i: found.extend(handles[i].popitem() for _ in range(100)))
    assert sorted(found) == sorted((f"n{i}", i) for i in range(400))
    assert len(handles[1]) == 0


def test_nothing_that_is_added_is_lost_to_reset(handles: list[Counters]) -> None:
    taken = [0]

    def work(number: int) -> None:
        if number:
            for _ in range(3000):
                handles[number].fetch_add("k")
        else:
            handles[0].counter("k")
            for _ in range(1000):
                taken[0] += handles[0].reset("k")

    together(4, work)
    assert taken[0] + handles[0]["k"] == 9000


# ---- snapshot ------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_a_plain_dict_of_plain_numbers(c: Counters) -> None:
    c.update({f"n{i}": i - 50 for i in range(100)})
    found = c.snapshot()
    assert type(found) is dict
    assert found == {f"n{i}": i - 50 for i in range(100)}
    assert {type(value) for value in found.values()} == {int}
    found.clear()
    assert len(c) == 100
    c.clear()
    assert c.snapshot() == {}


def test_a_snapshot_during_additions_is_between_before_and_after(handles: list[Counters]) -> None:
    for i in range(20):
        handles[0][f"n{i}"] = 0
    stop = threading.Event()
    seen: list[dict[str, int]] = []

    def work(number: int) -> None:
        if number == 0:
            seen.extend(handles[0].snapshot() for _ in range(200))
            stop.set()
        else:
            while not stop.is_set():
                for i in range(20):
                    handles[number].fetch_add(f"n{i}")

    together(3, work)
    for before, after in itertools.pairwise(seen):
        assert list(before) == list(after)
        assert all(before[name] <= after[name] for name in before)


@pytest.mark.parametrize("what", ["removed", "replaced"])
def test_a_snapshot_of_a_file_that_is_not_at_its_path_any_more_is_refused(path: str, what: str) -> None:
    with Counters(path) as c, Counters(path, mode="readonly") as r, Counters(path, mode="private") as p:
        c["a"] = 1
        bound = c.counter("a")
        assert r.snapshot() == {"a": 1}
        os.unlink(path)
        if what == "replaced":
            Counters(path).close()
        for handle in (c, r):
            for call in (handle.snapshot, handle.items, handle.values):
                with pytest.raises(MappingLost, match=path):
                    call()
        for call in (c.flush, lambda: c.fetch_add("new"), lambda: c.remove("a")):
            with pytest.raises(MappingLost, match=path):
                call()
        assert (c.fetch_add("a"), bound.fetch_add(), r["a"]) == (1, 2, 3), "what is mapped goes on"
        assert p.snapshot() == {}
