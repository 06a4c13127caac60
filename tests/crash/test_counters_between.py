"""Names removed, made anew and grown past between any two instructions of another process' addition.

The adder is held before each of its instructions in turn, while somebody else does all that can be done to its name.
What is popped, and what is left, must be what was added; whether the two meet in time is not left to chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import counterfiles
import pytest
from peers import Peer

from mmapds import Counters


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "counters")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Peer]:
    with Peer("import stepping") as peer:
        if not peer("stepping.can_trace()"):
            pytest.skip("processes may not be traced here")
        peer(
            """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})     # from one process to the other takes less time

def hold(path, job, action, every):
    '''For each instruction (each so-manieth): (its number, what was popped, what is left), and how many were added.'''
    code, meanwhile = compile(job, "job", "exec"), compile(action, "action", "exec")
    def prepare():
        c = mmapds.Counters(path)
        c.snapshot()                    # knows all names
        return c
    def run(c):
        os.getppid()
        exec(code, {"c": c})
    found = []
    with mmapds.Counters(path) as other:
        other["x"] = 0
        addresses = stepping.within(prepare, run, ("counter", "counters"))
        for number in range(0, len(addresses), every):
            other.clear()
            other["x"] = 0
            popped = []
            scope = {"other": other, "popped": popped, "number": number}
            status = stepping.held_at(addresses[number], prepare, run, lambda: exec(meanwhile, scope))
            assert status == 0, (number, status)
            found.append((number, sum(popped), other.get("x", 0)))
    return found
"""
        )
        yield peer


POP = "popped.append(other.pop('x', 0))"
POP_AND_MAKE = POP + "; other.add('x', 100)"
ACTIONS = {
    "pop": (POP, 0),
    "pop, make anew": (POP_AND_MAKE, 100),
    "pop, make anew, pop": (POP_AND_MAKE + "; " + POP, 100),
    "pop twice, make anew twice": (f"{POP_AND_MAKE}; {POP_AND_MAKE}", 200),
    "pop and grow": (POP + "; other.update((f'{number}/{n}', n) for n in range(80))", 0),
}


@pytest.mark.parametrize(
    ("job", "adds", "dtype", "action", "every"),
    [
        ("c.fetch_add('x', 7)", 7, "i64", "pop", 1),
        ("c.fetch_add('x', 7)", 7, "i64", "pop, make anew", 1),
        ("c.fetch_add('x', 7)", 7, "i64", "pop, make anew, pop", 1),
        pytest.param("c.fetch_add('x', 7)", 7, "i64", "pop twice, make anew twice", 2, marks=pytest.mark.slow),
        ("c.fetch_add('x', 7)", 7, "i64", "pop and grow", 3),
        ("c.add('x', 7)", 7, "f64", "pop", 1),
        pytest.param("c.add('x', 7, True)", 7, "i64", "pop", 1, marks=pytest.mark.slow),
        pytest.param("c.fetch_sub('x', -7)", 7, "i64", "pop, make anew, pop", 5, marks=pytest.mark.slow),
        ("c.reserve('x', 7)", 7, "i64", "pop", 1),
        ("c.fetch_or('x', 8)", 8, "i64", "pop", 1),
    ],
)
def test_what_is_added_while_the_name_comes_and_goes(
    zygote: Peer, path: str, job: str, adds: int, dtype: Any, action: str, every: int
) -> None:
    Counters(path, 4, dtype=dtype).close()
    code, made = ACTIONS[action]
    found = zygote("hold(path, job, action, every)", path=path, job=job, action=code, every=every)
    assert len(found) > 10, found
    wrong = [(number, popped, left) for number, popped, left in found if popped + left != adds + made]
    assert not wrong, f"{adds + made} were added; (instruction, popped, left): {wrong}"
    assert len({popped for _, popped, _ in found}) > 1, "the two never met"
    counterfiles.check(path)


# Somebody has the lock, and is held: others add by name meanwhile, and wait for him if they must.
MEANWHILE = """
thread = threading.Thread(target=lambda: other.fetch_add("x", 5))
thread.start()
thread.join(0.001)
threads.append(thread)
"""


@pytest.mark.parametrize(
    ("before", "job", "sums"),
    [
        ("other['x'] = 3", "c.add(0, c.pop('x'))", {8}),
        ("other['x'] = 3; other.pop('x')", "c.add('x', 7)", {12}),
        pytest.param("other['x'] = 3; other.pop('x')", "c['x'] = 7", {12, 7}, marks=pytest.mark.slow),
        pytest.param("other['x'] = 3; other.pop('x')", "c.setdefault('x', 7)", {12, 5}, marks=pytest.mark.slow),
        ("fresh()", "c.add('x', 7)", {12}),
        pytest.param("fresh()", "c.setdefault('x', 7)", {12, 5}, marks=pytest.mark.slow),
        pytest.param("fresh()", "c['x'] = 7", {12, 7}, marks=pytest.mark.slow),
        ("fresh(full=True)", "c.add('x', 7)", {12}),
    ],
)
def test_what_is_added_while_somebody_makes_or_removes_the_name(
    zygote: Peer, path: str, before: str, job: str, sums: set[int]
) -> None:
    zygote(
        """
import threading, counterfiles
def hold_and_add(path, before, job, meanwhile, every):
    # For each so-manieth instruction: (its number, what is in x and in index 0 together).
    code, action = compile(job, "job", "exec"), compile(meanwhile, "meanwhile", "exec")
    def fresh(full=False):
        if scope["other"] is not None:
            scope["other"].close()
            os.unlink(path)
        scope["other"] = other = mmapds.Counters(path, 4)
        while full and (found := counterfiles.Snapshot(path)).names < found.extents[0].entries:
            other[f"name {found.names}"] = 0
    def prepare():
        c = mmapds.Counters(path)
        c.snapshot()
        return c
    def run(c):
        os.getppid()
        exec(code, {"c": c})
    scope = {"other": None, "threading": threading, "fresh": fresh, "threads": []}
    fresh()
    found = []
    exec(before, scope)
    addresses = stepping.within(prepare, run, ("cells", "counters"))
    for number in range(0, len(addresses), every):
        exec(before, scope)
        scope["other"][0] = 0
        status = stepping.held_at(addresses[number], prepare, run, lambda: exec(action, scope))
        assert status == 0, (number, status)
        while scope["threads"]:
            scope["threads"].pop().join()
        found.append((number, scope["other"].get("x", 0) + scope["other"][0]))
    assert counterfiles.check(path).values() == scope["other"].snapshot()
    scope["other"].close()
    return found
"""
    )
    found = zygote(
        "hold_and_add(path, before, job, meanwhile, every)",
        path=path, before=before, job=job, meanwhile=MEANWHILE, every=1 if "pop" in job else 20,
    )  # fmt: skip
    assert len(found) > 5, found
    wrong = [(number, total) for number, total in found if total not in sums]
    assert not wrong, f"not {sums}; (instruction, sum): {wrong}"


@pytest.mark.parametrize("job", ["c['x'] = 7", "c.exchange('x', 7)"])
def test_what_is_set_while_the_name_goes(zygote: Peer, path: str, job: str) -> None:
    """It is popped, or it is there: never lost, and never there twice."""
    Counters(path, 4).close()
    found = zygote("hold(path, job, action, every)", path=path, job=job, action=POP, every=1)
    wrong = [(number, popped, left) for number, popped, left in found if {popped, left} != {0, 7}]
    assert not wrong, f"(instruction, popped, left): {wrong}"


def test_what_is_read_while_the_name_comes_and_goes(zygote: Peer, path: str) -> None:
    """5 or nothing at all, in the middle of whatever: never the 0 between a removal's steps, nor another's value."""
    Counters(path, 4).close()
    found = zygote(
        "hold(path, job, action, every)",
        path=path,
        job="found = c.get('x', 9), c.setdefault('x', 9), 'x' in c; assert found[0] in (0, 5, 9), found",
        action="other.pop('x', 0); other['y'] = 1; other.setdefault('x', 5)",
        every=2,
    )
    assert {left for _, _, left in found} <= {0, 5, 9}, found
    counterfiles.check(path)
