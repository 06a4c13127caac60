"""Counters whose process is killed at every store and every system call of what it does (rows 7, 8 and 33).

A witness had the file open before, with all names known; after each death it, a new process and a reader agree on the
names, each name has one cell, no value is wrong by more than the operation that was killed, and everything goes on.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import counterfiles
import pytest
from peers import Peer

from mmapds import Counters

Values = dict[str, float]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "counters")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Peer]:
    """kill(path, count, job) -> (exit status, what it had come to): runs the job with `c`, its own handle."""
    with Peer("import stepping") as peer:
        if not peer("stepping.available()"):
            pytest.skip("processes may not be traced here")
        peer(
            """
def kill(path, count, job, opened=True):
    code = compile(job, "job", "exec")
    scope = {"mmapds": mmapds, "os": os, "path": path}
    def prepare():
        return mmapds.Counters(path) if opened else None
    return stepping.killed_at(count, prepare, lambda c: exec(code, scope | {"c": c}), path)
"""
        )
        yield peer


@pytest.fixture(scope="module")
def witness() -> Iterator[Peer]:
    with Peer() as peer:
        yield peer


# It has all names read before the victim begins. What hangs is ended.
WITNESS = "signal.alarm(100); w = mmapds.Counters(path); w.snapshot() and None"


def start(c: Counters) -> None:
    """Where every job begins: a=5, b=6; c was removed, and a bound counter has added 2 since."""
    c["a"], c["b"], c["c"] = 5, 6, 7
    later = c.counter("c")
    c.pop("c")
    later.add(2)


def fill(c: Counters) -> None:
    """No room for another name."""
    start(c)
    found = counterfiles.Snapshot(c.path)
    for n in range(found.names, found.extents[0].entries):
        c.fetch_add(f"n{n}", n)


# What is done: (the state before, the job, what it may have changed when it is killed).
ONE = {"a": 5, "b": 6}
JOBS: dict[str, tuple[Any, str, list[Values]]] = {
    "add by name": (start, "os.getppid(); c.fetch_add('a', 3)", [{"a": 8}]),
    "reserve": (start, "os.getppid(); c.reserve('a', 3)", [{"a": 8}]),
    "reserve from a new name": (start, "c.reserve('d', 3)", [{"d": 0}, {"d": 3}]),
    "exchange": (start, "os.getppid(); c.exchange('a', 100)", [{"a": 100}]),
    "add to a new name": (start, "c.fetch_add('d', 3)", [{"d": 0}, {"d": 3}]),
    "a long new name": (start, "c.fetch_add('x' * 255, 3)", [{"x" * 255: 0}, {"x" * 255: 3}]),
    "set a new name": (start, "c['d'] = 3", [{"d": 3}]),
    "setdefault": (start, "c.setdefault('d', 3)", [{"d": 3}]),
    "pop": (start, "c.pop('b')", [{"b": None}]),
    "pop, then make it again": (start, "c.pop('b'); c['b'] = 3", [{"b": None}, {"b": 3}]),
    "return": (start, "c.fetch_add('c', 3)", [{"c": 2}, {"c": 5}]),
    "return with a value": (start, "c['c'] = 3", [{"c": 3}]),
    "grow": (fill, "c.fetch_add('d', 3)", [{"d": 0}, {"d": 3}]),
    "update": (start, "c.update(d=1, e=2, b=9)", [{"d": 1}, {"d": 1, "e": 2}, {"d": 1, "e": 2, "b": 9}]),
    "clear": (start, "c.clear()", [{"b": None}, {"a": None}, {"b": None, "a": None}]),
}  # fmt: skip


def outcomes(before: Values, changes: list[Values]) -> list[Values]:
    found = [before]
    for change in changes:
        after = before | change
        found.append({name: value for name, value in after.items() if value is not None})
    return found


POWER = ["reserve", "set a new name", "pop", "return"]  # the others sync where these do


SLOW = ["exchange", "a long new name", "reserve from a new name", "update", "clear"]  # like others that are not


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("what", "durability"),
    [
        *(pytest.param(what, "process", marks=[pytest.mark.slow] * (what in SLOW)) for what in JOBS),
        *((what, "power") for what in POWER),
    ],
)
def test_r33_killed_at_every_store_and_call(
    zygote: Peer, witness: Peer, path: str, what: str, durability: Any, every: int
) -> None:
    prepare, job, changes = JOBS[what]
    statuses = set()
    stores = 0
    for count in range(0, 1000, every):
        if os.path.exists(path):
            os.unlink(path)
        with Counters(path, 4, durability=durability) as c:
            prepare(c)
            before = c.snapshot()
        witness(WITNESS, path=path)
        status, seen = zygote("kill(path, count, job)", path=path, count=count, job=job)
        message = f"killed at point {count}, {seen[-1] if status else 'the end'}; {counterfiles.state(path)}"
        assert status in (0, -signal.SIGKILL), f"{message}\n{zygote.stderr()}"
        statuses.add(status)
        stores = seen.count("a store")
        check_after(path, witness, outcomes(before, changes), message)
        if status == 0:
            break
    assert statuses == {0, -signal.SIGKILL}
    assert stores >= 1, seen


def check_after(path: str, witness: Peer, allowed: list[Values], message: str) -> None:
    """Somebody has died in `path`; it holds one of these."""
    counterfiles.check(path, message)
    with Counters(path, mode="readonly") as reader, Counters(path) as new:
        for handle in (reader, new):
            assert handle.snapshot() in allowed, f"{handle.snapshot()} in mode {handle.mode}; {message}"
        new.fetch_add("another", 11)  # finishes what the dead began
        found = new.snapshot()
        assert {name: value for name, value in found.items() if name != "another"} in allowed, f"{found}; {message}"
        for where, snapshot in (("witness", witness("w.snapshot()")), ("readonly", reader.snapshot())):
            assert snapshot == found, f"{where} sees {snapshot}, a new handle {found}; {message}"
        assert counterfiles.check(path, message).values() == found, message
        assert counterfiles.Snapshot(path).removing == 0, message
        # Everybody may go on with every name, and nothing that is added gets lost, or counted elsewhere.
        indices = {}
        for name in ("a", "b", "c", "d", "another"):
            begun = witness("w.fetch_add(name, 100)", name=name)
            # A name that comes back has what bound counters have added, or what somebody died setting.
            may_be = (
                {found[name]} if name in found else {2 if name == "c" else 0, *(one.get(name, 0) for one in allowed)}
            )
            assert begun in may_be, f"{name} begins with {begun}; {message}"
            new.fetch_add(name, 1000)
            found[name] = begun + 1100
            indices[name] = new.counter(name).index
            assert witness("w.counter(name).index", name=name) == indices[name], f"two cells for {name}; {message}"
        assert len(set(indices.values())) == len(indices), f"names share a cell: {indices}; {message}"
        assert new.snapshot() == found == witness("w.snapshot()") == reader.snapshot(), message
        assert witness("[w.pop(name) for name in names]", names=["a", "b"]) == [found.pop("a"), found.pop("b")]
        assert new.snapshot() == found == witness("w.snapshot()") == reader.snapshot(), message
    witness("w.close()")
    with Counters(path) as late:
        assert late.snapshot() == found, message
    counterfiles.check(path, message)
