"""Lives of Counters for the power-loss simulator; see powerlives.py."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

from powerstage import Stage, killed, last_expected, life, recovery, wander

from mmapds import Counters

# Expected: `must` and `may`, names with the values that they may have; `absent`.


def counters(stage: Stage) -> Counters:
    return Counters(stage.folder + "/counters", 4, durability="power")


class Names:
    """What the counters hold, and steps that change it. Only what is durable when it returns is done."""

    def __init__(self, stage: Stage, c: Counters) -> None:
        self.stage = stage
        self.c = c
        must: dict[str, list[int]] = dict(stage.expected.get("must", {}))
        self.values = {name: values[-1] for name, values in must.items()}
        self.removed: dict[str, int | None] = {}

    def step(self, code: Callable[[], object], *between: dict[str, int | None], **after: int | None) -> None:
        """`between` and `after`: names with the values that they may have during the step, and have then."""
        states: list[dict[str, int | None]] = [{}, *between, after]
        # A name that comes back shows what its cell has; that its removal has set that to 0 may not be on the disk
        # before its return is.
        states += [{name: value} for name, value in self.removed.items() if name in after and name not in self.values]
        names = {name for state in states for name in state}
        must = {name: [value] for name, value in self.values.items() if name not in names}
        may: dict[str, list[int]] = {}
        for name in names:
            values: list[int | None] = [self.values.get(name)]
            values += [state[name] for state in states if name in state]
            found = [value for value in values if value is not None]
            (must if None not in values else may)[name] = found
        self.stage.expect(must=must, may=may, between=[self._state(state) for state in states])
        code()
        self.removed |= {name: self.values[name] for name, value in after.items() if value is None}
        self.values = self._state(after)
        self.stage.expect(
            must={name: [value] for name, value in self.values.items()}, may={}, between=[self.values], absent=False
        )

    def _state(self, changes: dict[str, int | None]) -> dict[str, int]:
        return {name: value for name, value in {**self.values, **changes}.items() if value is not None}

    def reserve(self, name: str, n: int) -> None:
        new: tuple[dict[str, int | None], ...] = () if name in self.values else ({name: 0},)
        found = None

        def code() -> None:
            nonlocal found
            found = self.c.reserve(name, n)

        start = self.values.get(name, 0)
        self.step(code, *new, **{name: start + n})
        assert found == range(start, start + n), (found, start)

    def make(self, name: str) -> None:
        self.step(lambda: self.c.counter(name), **{name: 0})


NEW_COUNTERS: dict[str, Any] = {"must": {}, "may": {}, "between": [{}], "absent": True}


@life("Counters")
def counters_life(stage: Stage) -> None:
    def first() -> None:
        stage.expect(**NEW_COUNTERS)
        with counters(stage) as c:
            stage.expect(absent=False)
            names = Names(stage, c)
            names.make("a")
            names.reserve("ids", 10)
            names.reserve("ids", 10)
            names.step(lambda: c.setdefault("d", 3), {"d": 0}, d=3)
            bound = c.counter("d")
            names.step(lambda: bound.reserve(4), d=7)
            names.step(lambda: c.pop("d"), d=None)
            names.make("x" * 200)
            names.step(lambda: c.reserve("d", 2), {"d": 0}, d=2)
            names.step(lambda: (c.add("a", 5), c.flush()), a=5)
            names.step(lambda: c.__setitem__("e", 9), {"e": 0}, e=9)

    def second() -> None:
        with counters(stage) as c, counters(stage) as other:
            names = Names(stage, c)
            for n in range(3):
                names.reserve("ids", 5)
                names.c = other
                names.reserve("ids", 5)
                names.make(f"n{n}")
                names.c = c

    stage.run(first)
    stage.expected = last_expected(stage)
    stage.run(second)


@life("Counters")
def counters_growth(stage: Stage) -> None:
    """The first extent becomes full, and another one comes."""

    def first() -> None:
        stage.expect(**NEW_COUNTERS)
        with counters(stage) as c:
            import counterfiles

            stage.look(False)
            c.reserve("ids", 7)
            for n in range(1, counterfiles.Snapshot(c.path).extents[0].entries):
                c.counter(f"n{n:02}")
            names = Names(stage, c)
            stage.expected["absent"] = False
            names.values = dict.fromkeys(c.snapshot(), 0) | {"ids": 7}
            names.step(c.flush)
            stage.look(True)
            names.reserve("ids", 1)
            names.reserve("more", 3)
            names.make("again")
            names.reserve("again", 5)
            names.step(lambda: c.pop("more"), more=None)
            names.step(c.flush)

    stage.run(first)


@killed("Counters", "a life", 11)
def counters_killed(stage: Stage, number: int) -> bool:
    stage.expect(**NEW_COUNTERS)

    def job() -> None:
        with counters(stage) as c:
            stage.expect(absent=False)
            names = Names(stage, c)
            names.make("a")
            names.reserve("b", 10)
            names.step(lambda: c.setdefault("d", 3), {"d": 0}, d=3)
            names.step(lambda: c.pop("d"), d=None)
            names.step(lambda: c.counter("d"), d=0)
            names.step(lambda: c.pop("b"), b=None)
            names.make("e")

    died = stage.run(job, number)
    stage.expected = last_expected(stage)
    stage.run(lambda: counters_successor(stage))
    return died


def counters_successor(stage: Stage) -> None:
    """What he finds may have been, and goes on; whatever he makes stays."""
    with counters(stage) as c:
        expected = stage.expected
        found = {name: int(value) for name, value in c.snapshot().items()}
        # What is there and was not acknowledged may be lost still, until somebody has synced it.
        for name, values in expected["must"].items():
            assert found[name] in values, (found, expected)
        stage.expect(absent=False)
        names = Names(stage, c)
        names.values = {name: values[-1] for name, values in expected["must"].items() if len(values) == 1}
        loose = {**expected["must"], **expected["may"]}
        loose = {name: values for name, values in loose.items() if name not in names.values}
        for turn, name in enumerate(["new", "newer"]):
            may = {k: [*v, *range(v[-1] + 1, v[-1] + 3)] for k, v in loose.items()}
            stage.expect(
                must={k: [v] for k, v in names.values.items()}, may={**may, name: [0, 3]}, between=None, absent=False
            )
            c.reserve(name, 3)
            names.values[name] = 3
            stage.expect(must={k: [v] for k, v in names.values.items()}, may=may, between=None)
            if turn == 0:
                for other in sorted(loose):
                    may = {**may, other: [0, *loose[other], *(v + 2 for v in loose[other]), 2]}
                    loose[other] = may[other]
                    stage.expect(may=may)
                    start = c.reserve(other, 2).start
                    del loose[other], may[other]
                    names.values[other] = start + 2
                    stage.expect(must={k: [v] for k, v in names.values.items()}, may=may)


@recovery("Counters")
def counters_recovery(stage: Stage) -> None:
    expected = stage.expected

    def job() -> None:
        with counters(stage) as c:
            found = {name: int(value) for name, value in c.snapshot().items()}
            stage.expect(must={name: [value] for name, value in found.items()}, may={}, between=[found])
            names = Names(stage, c)
            names.values = dict(found)
            stage.expect(absent=expected.get("absent"))
            for name in [*sorted(found)[:2], "new"]:
                names.reserve(name, 3)
            names.make("latest")
            if found:
                names.step(lambda: c.pop(min(found)), **{min(found): None})

    stage.run(job)


@life("Counters")
def counters_flush(stage: Stage) -> None:
    """Durability "process": what was added before a flush that has returned."""

    def job() -> None:
        with Counters(stage.folder + "/counters", 4) as c:
            for n in range(3):
                c.add("a", 1)
                c.flush()
                stage.expect(must={"a": [n + 1]}, may={}, between=[{"a": n + 1}], absent=False)
                stage.look(True)
                stage.look(False)

    stage.look(False)
    stage.run(job)


def assign(c: Counters, name: str, value: int) -> None:
    c[name] = value
    c.flush()


@wander("Counters")
def counters_wander(stage: Stage, choose: random.Random) -> None:
    def job() -> None:
        with counters(stage) as c:
            stage.expect(absent=False)
            names = Names(stage, c)
            names.removed = removed
            for _ in range(8):
                name = choose.choice(("a", "b", "c" * 200, "d", "e", "f"))
                what = choose.random()
                if name not in names.values and what < 0.4:
                    names.make(name)
                elif name not in names.values or what < 0.6:
                    names.reserve(name, choose.randrange(1, 50))
                elif what < 0.85:
                    names.step(functools.partial(c.pop, name), **{name: None})
                else:
                    value = choose.randrange(100)
                    names.step(functools.partial(assign, c, name, value), **{name: value})

    stage.expect(**NEW_COUNTERS)
    stage.look(False)
    stage.run(lambda: counters(stage).close())
    stage.look(True)
    removed: dict[str, int | None] = dict.fromkeys(("a", "b", "c" * 200, "d", "e", "f"), 0)
    stage.run(job)
