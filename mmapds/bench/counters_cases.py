"""The calls of Counters that are timed, and what they are measured by."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from tempfile import TemporaryDirectory

from mmapds import Counters
from mmapds._native.unit import Unit
from mmapds.bench.measure import Case, only, statement
from mmapds.bench.pairs import Kinds
from mmapds.bench.peers import one_msync

__all__ = ["adders", "calls", "creations", "reserves", "snapshots"]


def calls(stack: ExitStack, directory: str) -> list[Case]:
    """Everything that takes nanoseconds."""
    c = stack.enter_context(Counters(f"{directory}/calls"))
    floats = stack.enter_context(Counters(f"{directory}/floats", dtype="f64"))
    hits, seconds = c.counter("hits"), floats.counter("seconds")
    return [
        statement("U", "unit.call()", {"unit": Unit()}),
        statement("bound", "hits.fetch_add()", {"hits": hits}),
        statement("index", "c.fetch_add(7)", {"c": c}),
        statement("name", 'c.fetch_add("hits")', {"c": c}),
        statement("float", "seconds.add(0.5)", {"seconds": seconds}),
        statement("dict", 'd["hits"] += 1', {"d": {"hits": 0}}),
    ]


def snapshots(stack: ExitStack, directory: str) -> list[Case]:
    """A snapshot of many names, and the same dict made of ints that are there already."""
    c = stack.enter_context(Counters(f"{directory}/many", 0))
    for i in range(10_000):
        c[f"requests.{i}"] = 1_000_000 + 7 * i  # no ints that Python has ready
    names, ints = list(c), list(c.values())
    return [
        statement("snapshot", "c.snapshot()", {"c": c}, repeat=1),
        statement("dict_of_ints", "dict(zip(names, ints))", {"names": names, "ints": ints}, repeat=1),
    ]


def creations(directory: str) -> list[Case]:
    """New names, in a file that grows several times; and as many files."""
    names = [f"requests.{i}" for i in range(1_000)]

    def create() -> float:
        with Counters(f"{directory}/new", 0) as c:
            start = time.perf_counter()
            for name in names:
                c.fetch_add(name)
            taken = time.perf_counter() - start
        os.unlink(f"{directory}/new")
        return taken

    def files() -> float:
        with TemporaryDirectory(dir=directory) as folder:
            paths = [f"{folder}/{name}" for name in names]
            start = time.perf_counter()
            for path in paths:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR))
            return time.perf_counter() - start

    return [only("create", create, each=len(names)), only("files", files, each=len(names))]


def reserves(stack: ExitStack, disk: str) -> list[Case]:
    """A block of numbers that waits for the disk, and one msync of as many bytes that were just changed."""
    ids = stack.enter_context(Counters(f"{disk}/ids", durability="power")).counter("ids")
    return [
        statement("reserve", "ids.reserve(1000)", {"ids": ids}, repeat=1),
        one_msync(stack, f"{disk}/msync", "msync", bytes(8)),
    ]


def adders(stack: ExitStack, directory: str) -> Kinds:
    """What two processes add to: padded counters of one file, and of two; neighbours in a cache line; one counter."""
    shared, *own, close = (f"{directory}/{name}" for name in ("shared", "own_0", "own_1", "close"))
    for path in (shared, *own):
        stack.enter_context(Counters(path, padded=True))
    c = stack.enter_context(Counters(close, 0))
    for name in "ab":  # in this order, so that they are neighbours
        c.counter(name)
    return {
        "adders_one": (("add", shared, "a"), ("add", shared, "b")),
        "adders_two": (("add", own[0], "a"), ("add", own[1], "b")),
        "adders_neighbours": (("add", close, "a"), ("add", close, "b")),
        "adders_same": (("add", close, "a"), ("add", close, "a")),
    }
