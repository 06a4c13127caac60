"""What every structure does, to be killed or failed at each point of it (failpoints.py), and what must be true then.

A `Case` is one operation of one structure: how its files begin, what runs in the victim, and an oracle. The oracles,
and most of the operations, are those of the tests that kill by stepping (test_queue_steps.py, test_counters_steps.py,
test_snapshot_kill.py): here they meet every named point and every errno, in the build with failpoints.

After a kill: a new process finds what was there before or what was to become of it, goes on, and leaves everything in
order. After an errno: the operation has succeeded all the same, or has raised an error of the system with that errno;
no lock, pin, descriptor or mapping is left; what was there is intact. After an error of a sync: nobody trusts the
structure until it was written anew.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import counterfiles
import failpoints
import queuefiles
import snapdisk
import syncfiles
from failpoints import CALL, READ, STORE, FailPeer, Outcome
from peers import Peer
from victims import number, pattern

import mmapds
from mmapds import Counters, DurabilityFailed, Queue, SnapshotMap, Synchronizer

CRASH = Path(__file__).parents[1] / "crash"


@cache
def tests(name: str) -> Any:
    """A module of tests, for its oracles."""
    spec = importlib.util.spec_from_file_location(f"failjobs_{name}", CRASH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and NamedTuples look there
    spec.loader.exec_module(module)
    return module


class Case:
    """One operation. `path`: where its files are, in `folder`, which is watched."""

    structure = ""
    after = ""

    def __init__(self, operation: str, prepare: str, code: str, durability: str = "process") -> None:
        self.operation = operation
        self.prepare = prepare
        self.code = code
        self.durability = durability
        self.folder = ""
        self.path = ""

    def __str__(self) -> str:
        return f"{self.structure}: {self.operation} ({self.durability})"

    @property
    def control(self) -> str:
        """The file whose header says that a sync has failed."""
        raise NotImplementedError

    def begin(self, folder: str) -> None:
        """Makes what the operation begins with."""
        self.folder = folder
        self.path = os.path.join(folder, "it")
        shutil.rmtree(folder, ignore_errors=True)
        os.mkdir(folder)
        self.make()

    def make(self) -> None:
        raise NotImplementedError

    def verify(self, done: bool, message: str, *, failed: bool = False) -> None:
        """The operation is over: `done` if it has come to its end. `failed`: it has noted that a sync failed."""
        raise NotImplementedError

    def end(self) -> None:
        """What `make` has opened is closed."""


def untrusted(call: Callable[[], object], message: str) -> None:
    """It must raise DurabilityFailed."""
    try:
        found = call()
    except DurabilityFailed:
        return
    raise AssertionError(f"a sync has failed, and this is trusted: {found!r}; {message}")


# ---- Synchronizer --------------------------------------------------------------------------------------------------


class SyncCase(Case):
    structure = "Synchronizer"
    after = """
import syncfiles
if os.path.exists(path + "_sync"):
    held = {} if "r" not in globals() or r is None else {1: 1}
    assert len(syncfiles.pins(path)) == len(held), syncfiles.pins(path)
    assert not syncfiles.locked(path + "_sync", 0), "byte 0 is locked"
"""

    @property
    def control(self) -> str:
        return syncfiles.sync(self.path)

    def __init__(self, operation: str, prepare: str, code: str, durability: str, *, versions: int, writes: int) -> None:
        super().__init__(operation, prepare, code, durability)
        self.versions = versions  # that are there when the operation begins, those of `prepare` included
        self.writes = writes

    def make(self) -> None:
        # Versions that `prepare` writes are counted too.
        mine = self.versions - self.prepare.count("s.write_bytes")
        if mine >= 0 and self.operation != "create":
            with Synchronizer(self.path, codec="raw", durability=self.durability) as s:  # type: ignore[arg-type]
                for n in range(1, mine + 1):
                    s.write_bytes(pattern(n))
        if self.operation == "recovery after another boot":
            syncfiles.other_boot(syncfiles.sync(self.path))

    def verify(self, done: bool, message: str, *, failed: bool = False) -> None:
        allowed = range(self.versions + self.writes * done, self.versions + self.writes + 1)
        if self.operation == "create":
            if not os.path.exists(syncfiles.sync(self.path)):
                assert not done, message
                assert os.listdir(self.folder) == [], f"something is left: {os.listdir(self.folder)}; {message}"
            with Synchronizer(self.path, codec="raw", durability=self.durability) as s:  # type: ignore[arg-type]
                assert s.version == 0, message
                s.write_bytes(pattern(1))
                s.check()
            return
        version = syncfiles.sequence(self.path)
        message = f"{message}; {syncfiles.state(self.path)}"
        if failed:
            assert version in (*allowed, self.versions), message
            with Synchronizer(self.path) as s:
                if version:
                    untrusted(s.load, message)
                    untrusted(s.read, message)
            with Synchronizer(self.path) as s:
                s.write_bytes(pattern(version + 1))  # heals
                assert number(s.load()) == s.version == version + 1, message
        else:
            with Synchronizer(self.path) as reader, Synchronizer(self.path, mode="readonly") as copying:
                for handle in (reader, copying):
                    if version == 0:
                        assert handle.version == 0 in allowed, message
                        continue
                    with handle.read() as r:
                        assert number(r.data) == r.version == version, message
                        assert r.version in allowed, f"{r.version} is none of {[*allowed]}; {message}"
        with Synchronizer(self.path) as s:
            for _ in range(3):
                s.write_bytes(pattern(s.version + 1, 128), grace=0.0)
                assert number(s.load()) == s.version, message
            s.check()
            assert syncfiles.pins(self.path) == {}, message
        names = sorted(syncfiles.snapshot(self.path))
        assert names == ["_data_0", "_data_1", "_sync"], f"{names}; {message}"


def _sync_cases() -> Iterator[Case]:
    opened = "import victims\nfrom victims import pattern\ns = mmapds.Synchronizer(path)\n"
    writer = opened + "s.write_bytes(pattern(2))\n"
    held = (
        opened + "t = mmapds.Synchronizer(path); s.write_bytes(pattern(2)); r = t.read(); s.write_bytes(pattern(3))\n"
    )
    for durability in ("process", "power"):

        def case(
            what: str, prepare: str, code: str, versions: int = 1, writes: int = 0, durability: str = durability
        ) -> Case:
            return SyncCase(what, prepare, code, durability, versions=versions, writes=writes)

        create = f"s = mmapds.Synchronizer(path, codec='raw', durability={durability!r})"
        yield case("create", "", create, 0)
        yield case("first write of all", opened, "s.write_bytes(pattern(1))", 0, 1)
        yield case("first write of a handle", opened, "s.write_bytes(pattern(2))", 1, 1)
        yield case("write small", writer + "s.write_bytes(pattern(3))", "s.write_bytes(pattern(4))", 3, 1)
        yield case("write large", writer, "s.write_bytes(pattern(3, 200_000))", 2, 1)
        yield case("write beside a reader, a new inode", held, "s.write_bytes(pattern(4, 8000), grace=0.0)", 3, 1)
        yield case("recovery after another boot", "", "s = mmapds.Synchronizer(path)", 4)
        yield case("close of a writer", writer, "s.close()", 2)
        if durability == "process":
            yield case("open", "", "s = mmapds.Synchronizer(path)")
            yield case("first read of a handle", opened, "s.load()")
            yield case("read", opened + "s.load()", "with s.read() as x: assert victims.number(x.data) == 1")
            yield case("read of a new version", opened + "s.load(); s.write_bytes(pattern(2))", "s.load()", 2)
            yield case("close of a reader", opened + "s.load()", "s.close()")
            yield case(
                "read without a slot",
                "from victims import *\ns = mmapds.Synchronizer(path, mode='readonly')",
                "s.load()",
            )
            yield case("wait", opened, "s.wait(timeout=0.001)")


# ---- Counters ------------------------------------------------------------------------------------------------------


class CountersCase(Case):
    structure = "Counters"
    after = """
import syncfiles
if os.path.exists(path):
    assert not syncfiles.locked(path, 0, 2), "byte 0 or 1 is locked"
"""

    @property
    def control(self) -> str:
        return self.path

    def __init__(self, operation: str, code: str, durability: str, start: Any, changes: list[Any]) -> None:
        prepare = "" if start is None else "c = mmapds.Counters(path)"
        super().__init__(operation, prepare, code, durability)
        self.start = start
        self.changes = changes
        self.witness: Peer | None = None

    def make(self) -> None:
        self.before: dict[str, float] = {}
        if self.operation == "recovery after another boot":
            self.before = dict(counterfiles.crashed(self.path, self.durability))
        elif self.start is not None:
            with Counters(self.path, 4, durability=self.durability) as c:  # type: ignore[call-overload]
                self.start(c)
                self.before = c.snapshot()
            if self.witness is None:
                self.witness = Peer()
            self.witness(tests("test_counters_steps").WITNESS, path=self.path)

    def verify(self, done: bool, message: str, *, failed: bool = False) -> None:
        if self.operation == "create":
            if not os.path.exists(self.path):
                assert not done, message
                assert os.listdir(self.folder) == [], f"something is left: {os.listdir(self.folder)}; {message}"
            with Counters(self.path, 4, durability=self.durability) as c:  # type: ignore[call-overload]
                assert c.snapshot() == {}, message
                assert c.add("a", 3) == 3
            counterfiles.check(self.path, message)
            return
        if failed:
            with Counters(self.path) as c:
                if self.durability == "power":
                    untrusted(lambda: c.reserve("a", 1), message)
                    untrusted(lambda: c.setdefault("never", 1), message)
                c.flush()
        if self.operation == "recovery after another boot":
            with Counters(self.path) as c:
                assert c.snapshot() == self.before, f"{c.snapshot()}; {message}"
                assert c.add("another", 3) == 3, message
            counterfiles.check(self.path, message)
            return
        steps = tests("test_counters_steps")
        allowed = steps.outcomes(self.before, self.changes)
        steps.check_after(self.path, self.witness, allowed[-1:] if done else allowed, message)

    def end(self) -> None:
        if self.witness is not None:
            self.witness.__exit__(None, None, None)
            self.witness = None


def _counters_cases() -> Iterator[Case]:
    steps = tests("test_counters_steps")
    for durability in ("process", "power"):
        power = ("reserve", "reserve from a new name", "set a new name", "pop", "return", "grow")  # where it syncs
        make = f"c = mmapds.Counters(path, 4, durability={durability!r})"
        yield CountersCase("create", make, durability, None, [])
        yield CountersCase("recovery after another boot", "c = mmapds.Counters(path)", durability, None, [])
        yield CountersCase("flush", "c.flush()", durability, steps.start, [])
        for what, (start, code, changes) in steps.JOBS.items():
            if durability == "process" or what in power:
                yield CountersCase(what, code, durability, start, changes)
        if durability == "process":
            yield CountersCase("open", "c = mmapds.Counters(path); c.snapshot()", durability, steps.start, [])
            yield CountersCase("close", "c.close()", durability, steps.start, [])


# ---- Queue ---------------------------------------------------------------------------------------------------------


class QueueCase(Case):
    structure = "Queue"
    after = """
import queuefiles
if os.path.exists(os.path.join(path, "meta")):
    words = queuefiles.Snapshot(path).words
    assert words["put_lock"] & 0x3fffffff == words["take_lock"] & 0x3fffffff == 0, "a lock word is left"
    assert not queuefiles.locked(queuefiles.meta(path), 0, 2), "byte 0 or 1 is locked"
"""

    @property
    def control(self) -> str:
        return queuefiles.meta(self.path)

    def __init__(self, operation: str, job: Any, durability: str, *, opens: bool = False) -> None:
        super().__init__(operation, ("" if opens else "q = mmapds.Queue(path)\n") + job.prepare, job.code, durability)
        self.job = job

    def make(self) -> None:
        steps = tests("test_queue_steps")
        if self.operation == "create":
            return
        options: Any = {"segment_size": steps.SEGMENT, "durability": self.durability}
        with Queue(self.path, codec="raw", **options) as q:
            exec(self.job.setup, {"q": q})
        if self.operation == "recovery after another boot":
            queuefiles.other_boot(self.path)

    def verify(self, done: bool, message: str, *, failed: bool = False) -> None:
        steps = tests("test_queue_steps")
        if not os.path.exists(queuefiles.meta(self.path)):
            assert self.operation == "create", message
            assert not done, message
            left = os.listdir(self.path) if os.path.exists(self.path) else []
            assert left == [], f"something is left: {left}; {message}"
            return
        if failed:
            with Queue(self.path) as q:
                if self.durability == "power":
                    untrusted(lambda: q.put(b"never"), message)
                q.flush()
        before = self.before
        allowed = [self.job.must(before)] if done else self.job.may(before)
        files = queuefiles.content(self.path)
        if os.path.exists(os.path.join(self.path, "dead")):
            shutil.rmtree(os.path.join(self.path, "dead"))
        steps.go_on(self.path, files, allowed, False, message)
        steps.go_on(self.path, files, allowed, True, message + ", on the next boot")

    @property
    def before(self) -> list[bytes]:
        return BEFORE[str(self)]


BEFORE: dict[str, list[bytes]] = {}  # what is there when the operation begins; `Runner.record` looks


def _queue_cases() -> Iterator[Case]:
    steps = tests("test_queue_steps")
    power = ("put", "put_many", "get", "claim", "ack", "nack", "put into the next segment", "get in the next segment",
             "the first put of a handle", "ack that ends a segment")  # fmt: skip
    dead = "claims = q.claim_many(5); claims[2].bury('no use'); q.dead.redrive if False else None; c = claims[1]"
    for durability in ("process", "power"):
        make = f"q = mmapds.Queue(path, codec='raw', segment_size={steps.SEGMENT}, durability={durability!r})"
        yield QueueCase("create", steps.same(make), durability, opens=True)
        yield QueueCase("open", steps.same("q = mmapds.Queue(path)", setup=steps.TEN), durability, opens=True)
        claimed = steps.FULL + "; claims = q.claim_many(4); claims[1].nack(0); q.put(b'late', delay=1000)"
        yield QueueCase(
            "recovery after another boot", steps.same("q = mmapds.Queue(path)", setup=claimed), durability, opens=True
        )
        yield QueueCase("bury", steps.ends("c.bury('no use')", b"1", steps.TEN + "; " + dead), durability)
        yield QueueCase("flush", steps.same("q.flush()", steps.WARM, steps.FULL), durability)
        for what, job in {**steps.JOBS, **steps.COLD}.items():
            if durability == "process" or what in power:
                yield QueueCase(what, job, durability)


# ---- SnapshotMap ---------------------------------------------------------------------------------------------------


class SnapshotCase(Case):
    structure = "SnapshotMap"
    after = """
import syncfiles
if os.path.exists(path + "/manifest_sync"):
    assert not syncfiles.locked(path + "/manifest_sync", 0, 2), "byte 0 or 1 is locked"
    assert not syncfiles.pins(path + "/manifest"), "a pin is left"
"""

    @property
    def control(self) -> str:
        return os.path.join(self.path, "manifest_sync")

    def __init__(self, operation: str, job: Any, durability: str) -> None:
        super().__init__(operation, "import snapdisk; snapdisk.tiny()\n" + job.prepare, job.code, durability)
        self.job = job
        self.witness: Any = None
        self.other: Any = None

    def make(self) -> None:
        kill = tests("test_snapshot_kill")
        self.end()
        if self.operation.startswith("create"):
            return
        kill.make(self.path, self.job.before, self.durability)
        if "-origin" in self.job.prepare:
            kill.make(self.path + "-origin", self.job.before, self.durability)
        if self.operation == "recovery after another boot":
            snapdisk.other_boot(self.path)
        else:
            self.witness = kill.Witness(self.path)
            self.other = SnapshotMap(self.path)  # who heals the map when a sync has failed

    def verify(self, done: bool, message: str, *, failed: bool = False) -> None:
        if self.operation.startswith("create"):
            self._created(done, message, failed)
            return
        found = snapdisk.check(self.path, message, leftovers=True, linked="boot" not in self.operation)
        values = {key.decode(): value for key, value in found.values().items()}
        allowed = [self.job.after] if done else [self.job.before, self.job.after]
        assert values in allowed, (
            f"something between the old and the new version: {message}; {snapdisk.state(self.path)}"
        )
        if self.witness is not None and not failed:
            self.witness.check(self.job.after, message)
            return
        if failed:
            assert self.other is not None, message
            untrusted(lambda: dict(self.other), message)
            untrusted(lambda: self.other["k03"], message)
            with self.other.transaction() as t:  # heals
                t["healed"] = b"healed"
            assert dict(self.other) == values | {"healed": b"healed"}, message
            values["healed"] = b"healed"
        self.end()
        with SnapshotMap(self.path) as m:
            assert dict(m) == values, message
            with m.transaction() as t:
                t["next"] = b"next"
            assert dict(m) == values | {"next": b"next"}, message
            m.check()
        snapdisk.check(self.path, f"{message}, and a successor has written", linked="boot" not in self.operation)

    def _created(self, done: bool, message: str, failed: bool) -> None:
        message = f"{message}: {os.listdir(self.path) if os.path.exists(self.path) else 'nothing'}"
        full: dict[str, bytes] = self.job.after
        if not failed:
            try:
                with SnapshotMap(self.path, mode="readonly") as reader:
                    assert dict(reader) == full, message
            except FileNotFoundError:
                assert not done, message
        SnapshotMap.build(self.path, {"b": b"2"}, codec="raw", durability=self.durability)  # type: ignore[arg-type]
        with SnapshotMap(self.path) as m:
            assert dict(m) == {"b": b"2"}, message
        snapdisk.check(self.path, message)

    def end(self) -> None:
        for one in (self.witness, self.other):
            if one is not None:
                one.close()
        self.witness = self.other = None


def _snapshot_cases() -> Iterator[Case]:
    kill = tests("test_snapshot_kill")
    opened = "m = mmapds.SnapshotMap(path)"
    for durability in ("process", "power"):
        make = f"m = mmapds.SnapshotMap(path, codec='raw', durability={durability!r})"
        build = f"mmapds.SnapshotMap.build(path, {{'a': b'1'}}, codec='raw', durability={durability!r})"
        yield SnapshotCase("create", kill.Job({}, make, {}, ""), durability)
        yield SnapshotCase("create by build", kill.Job({}, build, {"a": b"1"}, ""), durability)
        yield SnapshotCase("open", kill.Job(kill.START, opened + "; m['k03']", kill.START, ""), durability)
        yield SnapshotCase(
            "recovery after another boot", kill.Job(kill.START, opened + "; m['k03']", kill.START, ""), durability
        )
        for what, job in kill.JOBS.items():
            yield SnapshotCase(what, job, durability)


def cases() -> list[Case]:
    """All of them, in order."""
    return [*_sync_cases(), *_counters_cases(), *_queue_cases(), *_snapshot_cases()]


# ---- running them --------------------------------------------------------------------------------------------------


class Points(NamedTuple):
    """Of one operation: the numbers at which it can be killed, with their names, and those of calls that can fail."""

    kills: list[tuple[int, str]]
    calls: list[tuple[int, str]]


class Figures:
    """What was done, for a table."""

    def __init__(self) -> None:
        self.points: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.raised: Counter[str] = Counter()
        self.failures: list[str] = []


class Runner:
    """Runs cases in a peer of the build with failpoints, in a folder of its own."""

    def __init__(self, folder: str | Path, build: str = "") -> None:
        self.folder = os.path.join(folder, "watched")
        os.makedirs(self.folder, exist_ok=True)
        self.peer = FailPeer("import victims, syncfiles, queuefiles, snapdisk", folder=self.folder, build=build)
        snapdisk.tiny()
        self.figures = Figures()

    def victim(self, case: Case, how: str, number: int, **options: Any) -> Outcome:
        names = {"path": case.path}
        return self.peer.victim(how, number, case.prepare, case.code, names=names, after=case.after, **options)

    def record(self, case: Case) -> Points:
        """Runs it to its end, unharmed, and looks what it came to."""
        case.begin(self.folder)
        if isinstance(case, QueueCase) and case.operation != "create":
            # The victim is killed before it comes to anything: that is what the oracle begins with.
            found = self.peer.victim("record", 0, case.prepare, "", names={"path": case.path}, kinds=0)
            assert (found.status, found.error) == (0, ""), f"{case}: {found}\n{self.peer.stderr()}"
            BEFORE[str(case)] = queuefiles.Snapshot(case.path).everything()
            case.begin(self.folder)
        elif isinstance(case, QueueCase):
            BEFORE[str(case)] = []
        found = self.victim(case, "record", 0, kinds=STORE | CALL | READ)
        assert (found.status, found.error) == (0, ""), f"{case}: {found}\n{self.peer.stderr()}"
        seen = self.peer.seen()
        case.verify(True, f"{case}: unharmed")
        kills = [name for name in seen if not name.startswith("call pread")]
        calls = [name for name in seen if name.startswith("call ")]
        return Points(list(enumerate(kills)), list(enumerate(calls)))

    def kill(self, case: Case, number: int) -> str:
        """Killed at that point; where that was."""
        case.begin(self.folder)
        found = self.victim(case, "kill", number)
        where = failpoints.shown(found.at) if found.status else "the end, before it came to it"
        message = f"{case}, killed at point {number}: {where}"
        assert found.status in (0, -9), f"{message}: {found}\n{self.peer.stderr()}"
        case.verify(found.status == 0, message)
        return where

    def fail(self, case: Case, number: int, error: int) -> tuple[str, str]:
        """That call fails; where that was, and the class of what was raised."""
        case.begin(self.folder)
        found = self.victim(case, "fail", number, error=error, kinds=CALL | READ)
        message = f"{case}, {errno.errorcode[error]} at call {number}: {found.at}: {found.error} {found.message}"
        assert found.status == 0, f"{message}: {found}\n{self.peer.stderr()}"
        assert found.left == [], f"it leaves {found.left}; {message}"
        if found.error:
            kind = getattr(mmapds, found.error, None) or getattr(__builtins__, found.error, None) or __builtins__.get(
                found.error, Exception)  # fmt: skip
            assert issubclass(kind, OSError), f"not an error of the system: {message}"
            if kind is not DurabilityFailed:
                assert found.number == error, f"errno {found.number}; {message}"
        noted = os.path.exists(case.control) and syncfiles.word(case.control, syncfiles.FAILED) != 0
        if case.operation.startswith("recovery"):
            noted = False  # of another boot, if at all; whoever opens it next begins anew
        if found.error == "DurabilityFailed" and counts(found.at, case):
            assert noted, f"a sync has failed, and nobody will know; {message}"
        case.verify(not found.error, message, failed=noted)
        return found.at, found.error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.peer.__exit__(None, None, None)


def counts(call: str, case: Case) -> bool:
    """Whether it syncs what the structure holds: not a name, nor what has no name yet, nor, in recovery, the files of
    another boot, which is done anew; nor the dead letters, a queue of their own."""
    _, what, file = call.split()
    there = "/" in file and "/dead" not in file if case.structure in ("Queue", "SnapshotMap") else file.startswith("it")
    return what in ("msync", "fsync", "fdatasync") and there and not case.operation.startswith(("create", "recovery"))


def run(
    runner: Runner,
    case: Case,
    say: Callable[[str], object],
    choose: random.Random | None = None,
    kills: int = 0,
    fails: int = 0,
) -> None:
    """All points of a case, each with every errno that fits; with `choose`, so many of them. Failures are noted."""
    figures = runner.figures
    name = str(case)

    def attempt(what: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # noqa: BLE001  noted, and the next one is tried
            figures.failures.append(f"{case}, {what}: {type(error).__name__}: {error}")
            say(figures.failures[-1])
            return None

    points: Points | None = attempt("unharmed", lambda: runner.record(case))
    if points is not None:
        figures.points[name] = len(points.kills) + sum(what.startswith("call pread") for _, what in points.calls)
        deaths = points.kills
        errors = [(n, what, error) for n, what in points.calls for error in failpoints.errors(what)]
        if choose is not None:
            deaths = choose.sample(deaths, min(len(deaths), kills))
            errors = choose.sample(errors, min(len(errors), fails))
        for n, what in deaths:
            if attempt(f"killed at point {n}, {failpoints.shown(what)}", partial(runner.kill, case, n)):
                figures.kills[name] += 1
        for n, what, error in errors:
            code = errno.errorcode[error]
            found = attempt(f"{code} at call {n}, {what}", partial(runner.fail, case, n, error))
            if found and found[0]:  # else a matter of time: this time it did not come to it
                figures.errors[name] += 1
                figures.raised[f"{found[0].split()[1]} {code} {found[1] or 'done all the same'}"] += 1
    case.end()
