"""Power loss between any two stores and syncs, with every mixture of old and new sectors (rows 6 and 7)."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import counterfiles
import powersteps
import pytest
from peers import Peer
from powerloss import Call, Disk, WatchedPeer

from mmapds import CorruptionError, Counters, IncompatibleFormat

Values = dict[str, float]


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a disk: durability 'power' is refused on tmpfs."""
    with tempfile.TemporaryDirectory(prefix="mmapds-power-", dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture
def path(folder: Path) -> str:
    return str(folder / "counters")


# ---- row 6: at every store of one operation ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zygote() -> Iterator[Peer]:
    with Peer("import stepping") as peer:
        if not peer("stepping.can_trace()"):
            pytest.skip("processes may not be traced here")
        yield peer


def trace(zygote: Peer, path: str, job: str) -> powersteps.Trace:
    """What happens to the file, store by store; all that was there before is durable."""
    zygote(
        f"""
import pickle
def job(c):
    os.getppid()
    {job}
with open(out, "wb") as file:
    pickle.dump(stepping.trace(lambda: mmapds.Counters(path), job, path), file)
""",
        path=path,
        out=path + ".trace",
    )
    import pickle

    found: powersteps.Trace = pickle.loads(Path(path + ".trace").read_bytes())
    return found


def start(c: Counters) -> None:
    """a=5, b=6, durable; c was removed, and a bound counter has added 2 since, durable too."""
    c["a"], c["b"], c["c"] = 5, 6, 7
    later = c.counter("c")
    c.pop("c")
    later.reserve(2)


def fill(c: Counters) -> None:
    start(c)
    found = counterfiles.Snapshot(c.path)
    for n in range(found.names, found.extents[0].entries):
        c[f"n{n}"] = n


# The state before, the job, what may be found while it has not returned (beside the state before), and afterwards.
JOBS: dict[str, tuple[Callable[[Counters], None], str, list[Values], list[Values]]] = {
    "reserve": (start, "c.reserve('a', 3)", [{"a": 8}], [{"a": 8}]),
    "bound reserve": (start, "c.counter('b').reserve(3)", [{"b": 9}], [{"b": 9}]),
    "reserve twice": (start, "c.reserve('a', 3); c.reserve('b', 3)", [{"a": 8}, {"a": 8, "b": 9}], [{"a": 8, "b": 9}]),
    "reserve from a new name": (start, "c.reserve('d', 3)", [{"d": 0}, {"d": 3}], [{"d": 3}]),
    "a new name": (start, "c.counter('d')", [{"d": 0}], [{"d": 0}]),
    "a long new name": (start, "c.counter('x' * 255)", [{"x" * 255: 0}], [{"x" * 255: 0}]),
    "set a new name": (start, "c['d'] = 3", [{"d": 0}, {"d": 3}], [{"d": 3}]),
    "setdefault": (start, "c.setdefault('d', 3)", [{"d": 0}, {"d": 3}], [{"d": 3}]),
    "two new names": (
        start,
        "c.counter('d'); c.counter('e')",
        [{"d": 0}, {"d": 0, "e": 0}],
        [{"d": 0, "e": 0}],
    ),
    "pop": (start, "c.pop('b')", [{"b": None}], [{"b": None}]),
    "return": (start, "c.counter('c')", [{"c": 2}], [{"c": 2}]),
    "return and reserve": (start, "c.reserve('c', 3)", [{"c": 2}, {"c": 5}], [{"c": 5}]),
    "return with a value": (start, "c['c'] = 9", [{"c": 2}, {"c": 9}], [{"c": 9}]),
    "pop and return": (
        start,
        "c.pop('b'); c.reserve('b', 4)",
        [{"b": None}, {"b": 0}, {"b": 4}],  # a name that came back begins with 0
        [{"b": 4}],
    ),
    "pop, then another name": (
        start,
        "c.pop('b'); c.counter('d')",
        [{"b": None}, {"b": None, "d": 0}],
        [{"b": None, "d": 0}],
    ),
    "grow": (fill, "c.reserve('d', 3)", [{"d": 0}, {"d": 3}], [{"d": 3}]),
    "flush": (start, "c.add(0, 5); c.add('a', 3); c.flush()", [{"a": 8}], [{"a": 8}]),
}


def apply(before: Values, changes: list[Values]) -> list[Values]:
    return [{k: v for k, v in (before | change).items() if v is not None} for change in changes]


def after_power_loss(path: str, content: bytes, write: bool) -> Values:
    """What a process finds on the next boot; it must be able to go on, too."""
    counterfiles.restore(path, content)
    with Counters(path, mode="shared" if write else "readonly") as c:
        found = c.snapshot()
        if write:
            c.reserve("a", 100)
            c["new"] = 77
            assert c.snapshot() == found | {"a": found["a"] + 100, "new": 77}
    if write:
        counterfiles.check(path)
    return found


@pytest.mark.parametrize("at_most", [4, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", JOBS)
def test_r06_power_loss_at_every_store(zygote: Peer, path: str, what: str, at_most: int) -> None:
    prepare, job, under_way, returned = JOBS[what]
    with Counters(path, 4, durability="power") as c:
        prepare(c)
        c.flush()
        before = c.snapshot()
    steps = trace(zygote, path, job)
    assert any(end for _, end, _ in steps[1:]), "no sync at all"
    choose = random.Random(6)
    allowed = [before, *apply(before, under_way)]
    seen = []
    for case, (step, content) in enumerate(powersteps.losses(steps, choose, at_most)):
        found = after_power_loss(path + ".found", content, write=case % 4 == 0)
        assert found in allowed, f"found {found} after step {step} of {len(steps)}"
        if found not in seen:
            seen.append(found)
    final = apply(before, returned)
    for content in powersteps.at_end(steps, choose, 20):
        found = after_power_loss(path + ".found", content, write=True)
        assert found in final, f"found {found} after it had returned"
        seen.append(found)
    assert before in seen
    assert final[0] in seen


def test_r06_process_durability_opens_or_says_why_and_is_never_wrong(zygote: Peer, path: str) -> None:
    """Without a single sync any old sector may be found: of the names that were, with values that they had."""
    with Counters(path, 4) as c:
        fill(c)
        c.flush()
        filler = {name: {value} for name, value in c.items() if name not in "abc"}
    job = (
        "c.add('b', 10); c.pop('a'); c.setdefault('c', 300); c['d'] = 100; c.add('d', 1); "  # d: the file grows
        "c.pop('n3'); c['e'] = 200; c.add('n3', 5); c.pop('e'); c.update(f=400, e=500)"
    )
    steps = trace(zygote, path, job)
    assert [end for _, end, _ in steps[1:] if end] == [], "durability 'process' never syncs"
    had: dict[str, set[float]] = filler | {
        "a": {0, 5}, "b": {6, 16}, "c": {2, 300}, "d": {0, 100, 101}, "e": {0, 200, 500},
        "f": {0, 400}, "n3": {0, 3, 5},
    }  # fmt: skip
    choose = random.Random(6)
    found = refused = 0
    names = set()
    for step, content in powersteps.losses(steps, choose, 4):
        try:
            values = after_power_loss_somehow(path + ".found", content)
        except (CorruptionError, IncompatibleFormat):
            refused += 1
            continue
        found += 1
        wrong = {name: value for name, value in values.items() if value not in had.get(name, ())}
        assert not wrong, f"{wrong} after step {step} of {len(steps)}"
        names |= values.keys()
    assert found > 500, (found, refused)
    assert names == had.keys()


def after_power_loss_somehow(path: str, content: bytes) -> Values:
    counterfiles.restore(path, content)
    with Counters(path, mode="readonly") as looking:
        found = looking.snapshot()
    with Counters(path) as c:
        assert c.snapshot() == found, "recovery comes to another result for those who may write"
        c["new"] = 77
        c.add("b")
        assert c.snapshot() == found | {"new": 77, "b": found.get("b", 0) + 1}
    counterfiles.check(path)
    return found


# ---- rows 6 and 7: a life from its creation on, at every sync -------------------------------------------------------


class Power:
    """Runs a process on a watched folder; before each call that matters, cuts the power in many ways and looks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "running"
        self.folder.mkdir()
        self.found = str(folder / "found")
        self.path = str(self.folder / "counters")
        self.disk = Disk(str(self.folder))
        self.choose = random.Random(6)
        self.created = False  # the first open has returned
        self.issued: dict[str, int] = {}  # names that were made, and the numbers handed out
        self.begun: set[str] = set()  # names that are being made
        self.cutting = True
        self.cases = 0
        self.calls: list[str] = []
        self.outcomes: set[Any] = set()

    def on_call(self, call: Call) -> int:
        self.calls.append(call.name)
        self.disk.look(call)
        self.cut()  # in the middle of the call
        self.disk.done(call)
        self.cut()  # just after it
        return 0

    def cut(self) -> None:
        if not self.cutting:
            return
        for files in self.disk.losses(self.choose, 8):
            self.cases += 1
            self.look(files.get("counters"))

    def look(self, content: bytes | None) -> None:
        """What is there when the machine runs again."""
        if content is None:
            assert not self.created, f"the file is gone; {self.describe()}"
            self.outcomes.add("absent")
            return
        counterfiles.restore(self.found, content)
        with Counters(self.found, mode="shared" if self.cases % 7 == 0 else "readonly") as c:
            values = c.snapshot()
            missing = self.issued.keys() - values.keys()
            assert not missing, f"{missing} had been returned; {self.describe()}"
            unknown = values.keys() - self.issued.keys() - self.begun
            assert not unknown, f"{unknown} was never made; {self.describe()}"
            repeated = {name: values[name] for name, stop in self.issued.items() if values[name] < stop}
            assert not repeated, f"{repeated} would be handed out again; {self.describe()}"
            self.outcomes.add(len(values))
            if c.mode == "shared":
                for name in values:
                    assert c.reserve(name, 5).start >= self.issued.get(name, 0)
        if self.cases % 7 == 0:
            counterfiles.check(self.found)

    def describe(self) -> str:
        return f"{self.issued} returned, {self.begun} begun; calls so far: {' '.join(self.calls[-12:])}"

    def open(self) -> WatchedPeer:
        peer = WatchedPeer()
        peer.watch("c = mmapds.Counters(path, 4, durability='power')", self.on_call, path=self.path)
        self.created = True
        return peer

    def reserve(self, peer: WatchedPeer, name: str, n: int) -> range:
        self.begun = {name}
        found = range(*peer.watch("r = c.reserve(name, n); (r.start, r.stop)", self.on_call, name=name, n=n))
        assert found.start >= self.issued.get(name, 0), f"{found} was handed out before; {self.describe()}"
        self.issued[name] = found.stop
        self.begun = set()
        self.disk.look()
        self.cut()
        return found


def test_r06_r07_numbers_never_repeat_and_names_that_were_returned_are_there(folder: Path) -> None:
    power = Power(folder)
    with power.open() as peer, power.open() as other:
        for turn in range(3):
            assert power.reserve(peer, "ids", 10) == range(20 * turn, 20 * turn + 10)
            assert power.reserve(other, "ids", 10) == range(20 * turn + 10, 20 * turn + 20)
            power.reserve(peer, f"name {turn}", 1)
            other.watch("for n in range(4): c.add(n); c.add('ids', 0)", power.on_call)  # nothing that syncs
        power.cutting = False
        for n in range(counterfiles.Snapshot(power.path).names, 74):
            power.reserve(peer, f"filler {n}", 1)
        power.cutting = True
        for n in range(4):  # the file grows
            power.reserve((peer, other)[n % 2], f"more {n}", 3)
        assert len(counterfiles.Snapshot(power.path).extents) == 2
        peer.watch("c.flush()", power.on_call)
    with power.open() as successor:
        power.reserve(successor, "ids", 10)
    assert power.outcomes >= {"absent", 0, 1, 2}, power.outcomes
    assert {"msync", "fsync", "fdatasync", "linkat"} <= set(power.calls), set(power.calls)
    assert power.cases > 300, power.cases
