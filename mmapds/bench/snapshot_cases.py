"""The calls of a SnapshotMap that are timed in one process, what they are measured by, and the entries of all of them.

Every store has the same entries: keys of ten bytes, values of a hundred, put in in one random order and looked up in
another. A look-up is told by how far it must go for what it reads, so no two slices ask for the same keys, and all go
round through a million of them (or all there are), each case in an order of its own: what a processor's caches keep of
one slice is of no use to the next, nor to another case that reads the same store. The keys that are looked up are equal
to those of the dict and other objects, as keys are that come from elsewhere. They are the same objects each time round,
so a dict finds their hash computed.
"""

from __future__ import annotations

import gc
import itertools
import math
import pickle
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mmapds import SnapshotMap
from mmapds._native.unit import Unit
from mmapds._snapcommit import MOST_KEPT, RATIO
from mmapds.bench.measure import Case, Cost, Figures, only, statement

__all__ = [
    "BATCH",
    "KEY",
    "MOST",
    "Data",
    "builds",
    "calls",
    "commits",
    "each",
    "layered",
    "loads",
    "many",
    "opens",
    "quiet",
    "scan",
    "series",
    "thousands",
    "timed",
]

BATCH = 100  # keys
MOST = 1_000_000  # keys that are looked up, and entries of what is loaded
KEY = b"%010d"
_VALUE = b"%0100d"
_SMALL = 1000
_SCANNED = 20_000
_OPENS = 5
_THOUSAND = 1000
_PLENTY = 64 << 30  # bytes: nothing is sorted in files


@dataclass(frozen=True, slots=True)
class Data:
    """The entries. `table` is the dict; `probes` are keys that are equal to some of its, or to all."""

    table: Mapping[bytes, bytes]
    probes: Sequence[bytes]

    @classmethod
    def make(cls, count: int) -> Data:
        chance = random.Random(count)
        order = list(range(count))
        chance.shuffle(order)
        table = {KEY % number: _VALUE % number for number in order}
        return cls(table, [KEY % number for number in chance.sample(range(count), min(count, MOST))])

    @property
    def count(self) -> int:
        return len(self.table)

    @property
    def million(self) -> dict[bytes, bytes]:
        """As many of the entries as are loaded by what must load them."""
        return dict(islice(self.table.items(), MOST))


# ---- how it is timed -----------------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """Stops the garbage collector, as `timeit` does."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def series(cases: Sequence[Case], rounds: int) -> Figures:
    """Times cases of seconds in turn, `rounds` times. There is no warm-up, as in `measure.take`."""
    found: dict[str, list[float]] = {case.name: [] for case in cases}
    for round_ in range(rounds):
        for case in reversed(cases) if round_ % 2 else cases:
            found[case.name].append(case.clock(1) / case.each * 1e9)
    return {name: Cost(min(times), sorted(times)[len(times) // 2]) for name, times in found.items()}


def timed(name: str, text: str, names: Mapping[str, object], data: Data) -> Case:
    """A case of statements about a `batch` of keys, another one at each call. `names` are local variables.

    Each case is compiled for itself, because the interpreter adapts code to the types it meets.
    """
    run = _compiled(text, names)
    batches = _batches(data.probes, name)

    def clock(count: int) -> float:
        # Taking a batch brings its keys to the caches, for everybody alike.
        return float(sum(run(batch, time.perf_counter) for batch in islice(batches, count)))

    return Case(name, clock, BATCH, looped=False)


def each(name: str, text: str, names: Mapping[str, object], data: Data) -> Case:
    """A case of a statement about a `key`, without the loop around it."""
    loop = _compiled("for key in batch:\n    pass", {})
    batch = data.probes[:BATCH]
    own = min(loop(batch, time.perf_counter) for _ in range(1000))
    case = timed(name, "for key in batch:\n    " + text.replace("\n", "\n    "), names, data)
    return Case(name, lambda count: case.clock(count) - own * count, BATCH, looped=False)


def many(name: str, text: str, names: Mapping[str, object], data: Data) -> Case:
    """A case of a statement about a `batch` of keys; the time is that of one key."""
    return timed(name, text, names, data)


def scan(name: str, begin: Callable[[bytes], Iterator[object]], data: Data) -> Case:
    """A case of walking some thousand entries in order, from anywhere on."""
    length = min(_SCANNED, data.count // 2)
    chance = random.Random(0)

    def walk() -> float:
        start = KEY % chance.randrange(data.count - length)
        began = time.perf_counter()
        deque(islice(begin(start), length), maxlen=0)
        return time.perf_counter() - began

    return only(name, walk, each=length)


def _compiled(text: str, names: Mapping[str, object]) -> Callable[[Sequence[bytes], Callable[[], float]], float]:
    body = text.replace("\n", "\n    ")
    arguments = "".join(f", {name}={name}" for name in names)
    source = f"def run(batch, now{arguments}):\n    start = now()\n    {body}\n    return now() - start\n"
    space: dict[str, Any] = dict(names)
    exec(source, space)
    run: Callable[[Sequence[bytes], Callable[[], float]], float] = space["run"]
    return run


def _batches(probes: Sequence[bytes], name: str) -> Iterator[Sequence[bytes]]:
    """All keys, in an order that goes by the case's name."""
    order = list(probes)
    random.Random(name).shuffle(order)
    for at in itertools.cycle(range(0, len(order) - BATCH + 1, BATCH)):
        yield order[at : at + BATCH]


# ---- the calls -----------------------------------------------------------------------------------------------------


def layered(path: str, data: Data) -> int:
    """Makes a map with as many layers as a writer ever leaves, by commits that are just small enough not to be merged;
    how many there are.
    """
    SnapshotMap.build(path, data.table, codec="raw")
    with SnapshotMap(path) as m:
        m._files.delta_size = 0  # however small, a commit becomes a layer
        size = data.count / RATIO
        for number in range(1, MOST_KEPT):
            size /= RATIO + 0.5
            # From all over, so that each batch has its share of what was changed.
            keys = data.probes[number :: math.ceil(len(data.probes) / max(1, size))]
            with m.transaction() as txn:
                txn.update({key: data.table[key] for key in keys})
        return len(m.stats()["layers"])


def opens(directory: str, data: Data) -> list[Case]:
    """Opening a map and finding one key; the map of all entries is there already."""
    small = dict(islice(data.table.items(), _SMALL))
    SnapshotMap.build(f"{directory}/small", small, codec="raw")
    return [
        _opening("open", f"{directory}/map", data.probes),
        _opening("open_small", f"{directory}/small", list(small)),
    ]


def _opening(name: str, path: str, keys: Sequence[bytes]) -> Case:
    every = itertools.cycle(keys)

    def open_it() -> float:
        taken = 0.0
        for key in islice(every, _OPENS):
            start = time.perf_counter()
            m = SnapshotMap(path)
            m[key]
            taken += time.perf_counter() - start
            m.close()
        return taken

    return only(name, open_it, each=_OPENS)


def loads(directory: str, data: Data) -> Case:
    """What opening is compared with: loading them."""
    path = f"{directory}/pickle"
    with open(path, "wb") as file:
        pickle.dump(data.million, file, protocol=pickle.HIGHEST_PROTOCOL)

    def load() -> float:
        with open(path, "rb") as file:
            start = time.perf_counter()
            found = pickle.load(file)
            taken = time.perf_counter() - start
        del found
        return taken

    return only("pickle", load)


def calls(stack: ExitStack, directory: str, data: Data) -> list[Case]:
    """Looking up, and walking."""
    m = stack.enter_context(SnapshotMap(f"{directory}/map"))
    layers = stack.enter_context(SnapshotMap(f"{directory}/layers"))
    for one in (m, layers):
        one.prefetch()  # else the first to touch a page pays for all others
    table = data.table
    return [
        statement("U", "unit.call()", {"unit": Unit()}),
        each("get", "get(key)", {"get": m.get}, data),
        each("get_layers", "get(key)", {"get": layers.get}, data),
        each("dict", "get(key)", {"get": table.get}, data),
        many("many", "get_many(batch)", {"get_many": m.get_many}, data),
        many("dict_many", "{key: table[key] for key in batch}", {"table": table}, data),
        scan("scan", m.range, data),
    ]


def commits(stack: ExitStack, directory: str, data: Data) -> list[Case]:
    """Changing one key of the map of all entries."""
    m = stack.enter_context(SnapshotMap(f"{directory}/map"))
    keys = itertools.cycle(data.probes)
    value = data.table[data.probes[0]]

    def commit() -> float:
        key = next(keys)
        start = time.perf_counter()
        with m.transaction() as txn:
            txn[key] = value
        return time.perf_counter() - start

    return [only("commit", commit)]


def thousands(stack: ExitStack, directory: str, data: Data, count: int) -> list[Case]:
    """So many commits of a thousand keys, with all the merging that they bring about."""
    m = stack.enter_context(SnapshotMap(f"{directory}/map"))

    def change(batch: Mapping[bytes, bytes]) -> None:
        with m.transaction() as txn:
            txn.update(batch)

    return [of_thousands("commits", change, data, count)]


def of_thousands(name: str, change: Callable[[Mapping[bytes, bytes]], object], data: Data, count: int) -> Case:
    """A case of `count` changes of a thousand keys each."""
    chance = random.Random(1)

    def run() -> float:
        taken = 0.0
        for _ in range(count):
            keys = chance.sample(data.probes, min(_THOUSAND, len(data.probes)))
            batch = {key: data.table[key] for key in keys}
            start = time.perf_counter()
            change(batch)
            taken += time.perf_counter() - start
        return taken

    return only(name, run, each=count * _THOUSAND)


def builds(directory: str, data: Data) -> list[Case]:
    """Making a map of all entries, in memory; the sync to the disk at its end is part of it."""

    def build() -> float:
        start = time.perf_counter()
        SnapshotMap.build(f"{directory}/built", data.table, codec="raw", memory_limit=_PLENTY)
        return time.perf_counter() - start

    return [only("build", build, each=data.count)]
