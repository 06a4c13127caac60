"""Counters against plain dicts: whatever several handles do in whatever order, all say the same.

A `World` is what a file, or a private copy, holds: values by index, and names in the order of their creation, each with
a cell that outlives its removal. The handles of modes shared and readonly are of one world; a private copy, and what is
bound to it, is of a world of its own, which begins as the other one is at that time.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import counterfiles
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mmapds import Counter, Counters, FloatCounter

LOW, HIGH = -(1 << 63), (1 << 63) - 1
NAMES = ["a", "b", "c", "ä" * 127, "d" * 255]

names = st.sampled_from(NAMES)
keys = st.one_of(names, names, st.integers(0, 9), st.sampled_from([-1, 1 << 64, "made in bulk 3"]))
values = st.one_of(st.integers(-5, 5), st.integers(LOW, HIGH), st.sampled_from([LOW, HIGH, HIGH - 1]))
which = st.integers(0, 7)


@dataclass
class World:
    """What a file holds."""

    indices: list[Any]
    cells: dict[str, Any] = field(default_factory=dict)  # in the order of creation; a removed name keeps its cell
    live: set[str] = field(default_factory=set)

    def names(self) -> dict[str, Any]:
        return {name: value for name, value in self.cells.items() if name in self.live}

    def all(self) -> list[Any]:
        return self.indices + list(self.cells.values())

    def cell(self, key: str | int) -> str | int | None:
        """The key by which `get` and `set` know a cell, or None if there is no such key."""
        if isinstance(key, str):
            return key if key in self.live else None
        if not 0 <= key < len(self.indices) + len(self.cells):
            return None
        return key if key < len(self.indices) else list(self.cells)[key - len(self.indices)]

    def get(self, cell: str | int) -> Any:
        return self.cells[cell] if isinstance(cell, str) else self.indices[cell]

    def set(self, cell: str | int, value: Any) -> None:
        if isinstance(cell, str):
            self.cells[cell] = value
        else:
            self.indices[cell] = value

    def make(self, name: str) -> None:
        self.cells.setdefault(name, 0)
        self.live.add(name)

    def setdefault(self, name: str, value: Any) -> Any:
        if name not in self.live:
            self.make(name)
            self.cells[name] = self.cells[name] or value  # what bound counters have added after a removal stays
        return self.cells[name]


@dataclass(eq=False)
class Handle:
    real: Counters[Any]
    world: World


class CountersModel(RuleBasedStateMachine):
    dtype: Any = "i64"

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="mmapds-")
        self.path = os.path.join(self.folder, "counters")
        self.handles: list[Handle] = []
        self.bound: list[tuple[Any, str | int, World]] = []

    def teardown(self) -> None:
        for handle in self.handles:
            handle.real.close()
        self.bound.clear()
        shutil.rmtree(self.folder)

    @initialize(capacity=st.integers(0, 6), padded=st.booleans())
    def make(self, capacity: int, padded: bool) -> None:
        self.world = World([0] * capacity)
        Counters(self.path, capacity, dtype=self.dtype, padded=padded).close()
        self.open("shared")
        self.open("shared")

    def pick(self, which: int, writing: bool = True) -> Handle:
        handles = [handle for handle in self.handles if not writing or handle.real.mode != "readonly"]
        return handles[which % len(handles)]

    def value(self, n: int) -> Any:
        return n

    def sum(self, old: Any, n: Any) -> Any:
        return (old + n + (1 << 63)) % (1 << 64) - (1 << 63)

    def fits(self, old: Any, n: Any) -> bool:
        return LOW <= old + n <= HIGH

    def expect(self, handle: Handle, key: str | int, making: bool, call: Callable[[], Any]) -> Any:
        """Calls it, or expects the error of a key that is none; (the result, the value before, the cell) or None."""
        if making and isinstance(key, str):
            handle.world.make(key)
        cell = handle.world.cell(key)
        if cell is None:
            with pytest.raises(KeyError if isinstance(key, str) else IndexError):
                call()
            return None
        before = handle.world.get(cell)
        return call(), before, cell

    # ---- one cell ---------------------------------------------------------------------------------------------------

    @rule(which=which, key=keys, n=values, subtract=st.booleans())
    def fetch(self, which: int, key: Any, n: Any, subtract: bool) -> None:
        n = self.value(n)
        handle = self.pick(which)
        operation = handle.real.fetch_sub if subtract else handle.real.fetch_add
        if found := self.expect(handle, key, True, lambda: operation(key, n)):
            result, before, cell = found
            assert result == before
            handle.world.set(cell, self.sum(before, -n if subtract else n))

    @rule(which=which, key=keys, n=values, checked=st.booleans())
    def add(self, which: int, key: Any, n: Any, checked: bool) -> None:
        n = self.value(n)
        handle = self.pick(which)

        def call() -> Any:
            try:
                return handle.real.add(key, n, checked)
            except OverflowError as error:
                return error

        if found := self.expect(handle, key, True, call):
            result, before, cell = found
            if checked and not self.fits(before, n):
                assert isinstance(result, OverflowError)
            else:
                assert result == self.sum(before, n)
                handle.world.set(cell, result)

    @rule(which=which, key=keys, n=values)
    def exchange(self, which: int, key: Any, n: Any) -> None:
        n = self.value(n)
        handle = self.pick(which)
        if found := self.expect(handle, key, True, lambda: handle.real.exchange(key, n)):
            assert found[0] == found[1]
            handle.world.set(found[2], n)

    @rule(which=which, key=keys, n=values)
    def set_item(self, which: int, key: Any, n: Any) -> None:
        n = self.value(n)
        handle = self.pick(which)
        if found := self.expect(handle, key, True, lambda: handle.real.__setitem__(key, n)):
            handle.world.set(found[2], n)

    @rule(which=which, key=keys, expected=values, right=st.booleans(), n=values)
    def compare_exchange(self, which: int, key: Any, expected: Any, right: bool, n: Any) -> None:
        expected, n = self.value(expected), self.value(n)
        handle = self.pick(which)
        cell = handle.world.cell(key)
        if right and cell is not None:
            expected = handle.world.get(cell)
        if found := self.expect(handle, key, False, lambda: handle.real.compare_exchange(key, expected, n)):
            result, before, cell = found
            assert result == (before == expected, before)
            if before == expected:
                handle.world.set(cell, n)

    @rule(which=which, key=keys)
    def reset(self, which: int, key: Any) -> None:
        handle = self.pick(which)
        if found := self.expect(handle, key, False, lambda: handle.real.reset(key)):
            assert found[0] == found[1]
            handle.world.set(found[2], 0)

    @rule(which=which, key=keys)
    def get_item(self, which: int, key: Any) -> None:
        handle = self.pick(which, writing=False)
        assert (key in handle.real) == (handle.world.cell(key) is not None)
        if found := self.expect(handle, key, False, lambda: handle.real[key]):
            assert found[0] == found[1]

    # ---- names ------------------------------------------------------------------------------------------------------

    @rule(which=which, name=names, n=values)
    def setdefault(self, which: int, name: str, n: Any) -> None:
        n = self.value(n)
        handle = self.pick(which)
        assert handle.real.setdefault(name, n) == handle.world.setdefault(name, n)

    @rule(which=which, name=names, how=st.sampled_from(["remove", "del", "pop", "pop with a default"]))
    def remove(self, which: int, name: str, how: str) -> None:
        handle = self.pick(which)
        real = handle.real
        default = object()
        call: Callable[[], Any] = {
            "remove": lambda: real.remove(name),
            "del": lambda: real.__delitem__(name),
            "pop": lambda: real.pop(name),
            "pop with a default": lambda: real.pop(name, default),
        }[how]
        if name not in handle.world.live and how == "pop with a default":
            assert call() is default
        elif found := self.expect(handle, name, False, call):
            assert found[0] == (found[1] if "pop" in how else None)
            handle.world.set(name, 0)
            handle.world.live.remove(name)

    @rule(which=which)
    def popitem(self, which: int) -> None:
        handle = self.pick(which)
        if not handle.world.live:
            with pytest.raises(KeyError):
                handle.real.popitem()
            return
        name, value = list(handle.world.names().items())[-1]
        assert handle.real.popitem() == (name, value)
        handle.world.set(name, 0)
        handle.world.live.remove(name)

    @rule(which=which, count=st.sampled_from([1, 10, 80]))
    def grow(self, which: int, count: int) -> None:
        handle = self.pick(which)
        first = len(handle.world.cells)
        if first > 200:
            return
        for i in range(first, first + count):
            name = f"made in bulk {i}"
            assert handle.real.setdefault(name, i) == handle.world.setdefault(name, i)

    # ---- bound counters, which outlive everything -------------------------------------------------------------------

    @precondition(lambda self: len(self.bound) < 6)
    @rule(which=which, key=keys)
    def bind(self, which: int, key: Any) -> None:
        handle = self.pick(which)
        if found := self.expect(handle, key, True, lambda: handle.real.counter(key)):
            bound, before, cell = found
            assert isinstance(bound, Counter if self.dtype == "i64" else FloatCounter)
            assert bound.load() == before
            assert bound.name == (key if isinstance(key, str) else None)
            assert bound.index == (
                cell if isinstance(cell, int) else len(handle.world.indices) + list(handle.world.cells).index(cell)
            )
            self.bound.append((bound, cell, handle.world))

    @precondition(lambda self: self.bound)
    @rule(which=which, n=values, how=st.sampled_from(["fetch_add", "fetch_sub", "add", "exchange", "reset"]))
    def use_bound(self, which: int, n: Any, how: str) -> None:
        n = self.value(n)
        bound, cell, world = self.bound[which % len(self.bound)]
        before = world.get(cell)
        after = {"exchange": n, "reset": 0, "fetch_sub": self.sum(before, -n)}.get(how, self.sum(before, n))
        result = bound.reset() if how == "reset" else getattr(bound, how)(n)
        assert result == (after if how == "add" else before)
        world.set(cell, after)

    # ---- handles ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.handles) < 6)
    @rule(mode=st.sampled_from(["shared", "readonly", "private"]))
    def open(self, mode: Any) -> None:
        world = copy.deepcopy(self.world) if mode == "private" else self.world
        self.handles.append(Handle(Counters(self.path, mode=mode, dtype=self.dtype), world))

    @precondition(lambda self: len(self.handles) > 2)
    @rule(which=which)
    def close(self, which: int) -> None:
        handle = self.handles[which % len(self.handles)]
        if handle.real.mode == "shared" and sum(other.real.mode == "shared" for other in self.handles) == 1:
            return
        handle.real.close()
        self.handles.remove(handle)

    @rule(how=st.sampled_from(["again", "after another boot", "as a copy"]))
    def open_all_anew(self, how: str) -> None:
        modes = [handle.real.mode for handle in self.handles if handle.real.mode != "private"]
        for handle in self.handles:
            handle.real.close()
        if how == "after another boot":
            counterfiles.other_boot(self.path)
        elif how == "as a copy":
            os.rename(self.path, self.path + "-old")
            counterfiles.copy(self.path + "-old", self.path)
            self.bound = [bound for bound in self.bound if bound[2] is not self.world]  # they count in the old one
        self.handles = []
        for mode in modes:
            self.open(mode)

    @rule(which=which, wait=st.booleans())
    def flush(self, which: int, wait: bool) -> None:
        self.pick(which, writing=False).real.flush(wait=wait)

    # ---- what is true at any time ----------------------------------------------------------------------------------

    @invariant()
    def every_handle_says_what_its_world_says(self) -> None:
        for handle in self.handles:
            message = f"{handle.real!r}; {counterfiles.state(self.path)}"
            expected = handle.world.names()
            assert list(handle.real.snapshot().items()) == list(expected.items()), message
            assert list(handle.real) == list(expected), message
            assert len(handle.real) == len(expected), message
            assert handle.real.view().tolist() == handle.world.all(), message
        for bound, cell, world in self.bound:
            assert bound.load() == world.get(cell), f"{bound!r}; {counterfiles.state(self.path)}"

    @invariant()
    def the_file_says_what_the_world_says(self) -> None:
        if self.handles:
            found = counterfiles.check(self.path)
            assert [e.name for e in found.entries()] == list(self.world.cells), found.describe()
            assert [e.name for e in found.entries() if e.state == "live"] == list(self.world.names()), found.describe()
            assert not counterfiles.locked(self.path, counterfiles.LOCK_NAMES), found.describe()


class IntegersModel(CountersModel):
    """What only integers can."""

    @rule(which=which, key=keys, n=values, how=st.sampled_from(["and", "or", "xor"]))
    def bits(self, which: int, key: Any, n: int, how: str) -> None:
        handle = self.pick(which)
        if found := self.expect(handle, key, True, lambda: getattr(handle.real, f"fetch_{how}")(key, n)):
            result, before, cell = found
            assert result == before
            handle.world.set(cell, {"and": before & n, "or": before | n, "xor": before ^ n}[how])

    @rule(which=which, key=keys, n=st.one_of(st.integers(1, 100), st.just(HIGH)))
    def reserve(self, which: int, key: Any, n: int) -> None:
        handle = self.pick(which)

        def call() -> Any:
            try:
                return handle.real.reserve(key, n)
            except OverflowError as error:
                return error

        if found := self.expect(handle, key, True, call):
            result, before, cell = found
            if self.fits(before, n):
                assert result == range(before, before + n)
                handle.world.set(cell, before + n)
            else:
                assert isinstance(result, OverflowError)


class FloatsModel(CountersModel):
    """Halves, whose sums are exact."""

    dtype = "f64"

    def value(self, n: int) -> float:
        return (n % 2001 - 1000) / 2

    def sum(self, old: float, n: float) -> float:
        return old + n

    def fits(self, old: float, n: float) -> bool:
        return True


budget = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TestIntegers = IntegersModel.TestCase
TestIntegers.settings = budget
TestFloats = FloatsModel.TestCase
TestFloats.settings = budget
