"""Lives of files that are recorded for the power-loss simulator (powerlog.py): the real code, in processes of its own.

Each life is a function of a `Stage`; LIVES has them by structure. Between steps it says what must be found if the power
goes from there on, in the terms of powerchecks.py. Three kinds: lives from the creation on, with all that makes files
grow, be replaced, or be removed; the same with a process killed before each of its syncs, and a successor, who must
make durable what he builds on; and lives that begin with what a power cut has left, so that it goes in a recovery.

Runs inside a process that has ``storeshim.c`` preloaded: ``import powerlives``.
"""

from __future__ import annotations

import functools
import gc
import os
import random
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import powerlog
from powerlog import Files, Recorder, Recording
from victims import pattern

import mmapds
from mmapds import Counters, Queue, SnapshotMap, Synchronizer

FIRST_BOOT, SECOND_BOOT, THIRD_BOOT = (b"boot number %4d" % n for n in (1, 2, 3))


def settle_down(boot: bytes) -> None:
    """This process lives in that boot, in a temporary file system that it takes for a disk, with small files."""
    from mmapds import _header, _snapfiles, files, queue

    parts: Any = (files, _header, _snapfiles, queue)
    parts[0].boot_id = parts[1].boot_id = lambda: boot
    parts[0]._VOLATILE = {}
    parts[2].DELTA_SIZE, parts[2].DELTA_BUCKETS = 16384, 16
    parts[3].Queue._dead_queue = classmethod(
        lambda cls, path, mode, durability: (
            cls(path, mode=mode, codec="raw")
            if mode != "shared"
            else cls(path, codec="raw", durability=durability, segment_size=8192)
        )
    )


class Stage:
    """A folder whose changes are recorded, and what is expected of it."""

    def __init__(self, base: str, name: str, start: Files | None = None) -> None:
        self.name = name
        self.folder = os.path.join(base, "run")
        self._log = os.path.join(base, "log")
        shutil.rmtree(self.folder, ignore_errors=True)
        if os.path.exists(self._log):
            os.unlink(self._log)
        os.mkdir(self.folder)
        self.root = os.stat(self.folder).st_ino
        self.recorder = Recorder(self.folder, self._log)
        self.expected: dict[str, Any] = {}
        if start:
            write(self.folder, start, parents=True)
            self.recorder.mark(settled=True)

    def expect(self, **expected: Any) -> None:
        """From now on."""
        self.expected = {**self.expected, **expected}
        self.recorder.mark(**self.expected)

    def look(self, looking: bool) -> None:
        """Whether there are cuts from here on: what is in another life too need not be looked at twice."""
        self.recorder.mark(looking=looking)

    def run(self, job: Callable[[], object], killed_at: int = -1) -> bool:
        return self.recorder.run(job, killed_at)

    def recording(self) -> Recording:
        """All of it; AssertionError if the log does not come to the files as they are: a store was missed."""
        with open(self._log, "rb") as log:
            found = Recording(self.name, self.root, log.read())
        files: Files = {}
        for folder, folders, names in os.walk(self.folder):
            inside = os.path.relpath(folder, self.folder) + "/" if folder != self.folder else ""
            files |= dict.fromkeys((inside + name for name in folders), None)
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    files[inside + name] = file.read()
        logged = found.end()
        wrong = [path for path in files.keys() | logged.keys() if files.get(path, 0) != logged.get(path, 0)]
        assert not wrong, f"{self.name}: the log says otherwise of {wrong}"
        return found


def write(folder: str, files: Files, *, parents: bool = False) -> None:
    for path, content in sorted(files.items()):
        target = os.path.join(folder, path)
        if content is None:
            os.mkdir(target)
        else:
            fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.pwrite(fd, content, 0)
            finally:
                os.close(fd)


Life = Callable[[Stage], bool | None]
LIVES: dict[str, dict[str, Life]] = {}


def life(structure: str) -> Callable[[Life], Life]:
    def add(function: Life) -> Life:
        LIVES.setdefault(structure, {})[function.__name__.partition("_")[2]] = function
        return function

    return add


def killed(structure: str, what: str, most: int) -> Callable[[Callable[[Stage, int], bool]], Any]:
    """A life with a number, for each sync before which a process of it may be killed."""

    def add(function: Callable[[Stage, int], bool]) -> Any:
        for number in range(most):
            LIVES.setdefault(structure, {})[f"{what} killed at sync {number}"] = lambda stage, number=number: function(
                stage, number
            )  # type: ignore[misc]
        return function

    return add


# ---- Synchronizer ----------------------------------------------------------------------------------------------------
# Expected: `versions`, those that may be found (0: nothing was published); `absent`, whether there may be no file.


def synchronizer(stage: Stage) -> Synchronizer:
    return Synchronizer(stage.folder + "/value", codec="raw", durability="power")


def publish(stage: Stage, s: Synchronizer, size: int = 1400) -> bool:
    """One write; whether it went to a new inode."""
    before = s.version
    stage.expect(versions=[before, before + 1])
    reset = s.write_bytes(pattern(before + 1, size), 0.0).reset
    stage.expect(versions=[before + 1], absent=False, refused=False)
    return bool(reset)


NEW_SYNC = {"versions": [0], "absent": True, "refused": True}


@life("Synchronizer")
def sync_life(stage: Stage) -> None:
    def first() -> None:
        stage.expect(**NEW_SYNC)
        with synchronizer(stage) as s:
            stage.expect(absent=False)
            for size in (1400, 1400, 600, 5000, 5000):
                publish(stage, s, size)
            with Synchronizer(s.prefix) as reader, reader.read(), reader.read():
                found = [publish(stage, s), publish(stage, s), publish(stage, s)]
                assert found == [False, True, False], found
                assert publish(stage, s, 9000), "a new inode, and a larger one"
            publish(stage, s, 40)

    def large() -> None:
        with synchronizer(stage) as s:
            for _ in range(2):
                publish(stage, s, 70_000)
            publish(stage, s, 100)

    def last() -> None:
        with synchronizer(stage) as s:
            publish(stage, s)
            publish(stage, s)

    stage.run(first)
    stage.run(large)
    stage.run(last)


def sync_successor(stage: Stage) -> None:
    """Whatever is visible is a version that may be found; what he writes stays."""
    allowed = set(stage.expected["versions"])
    with synchronizer(stage) as s:
        assert s.version in allowed, (s.version, allowed)
        stage.expect(versions=sorted(allowed | {s.version, s.version + 1}))
        s.write_bytes(pattern(s.version + 1, 1400), 0.0)  # before that, nothing is promised to who only opened it
        stage.expect(versions=[s.version], absent=False, refused=False)
        publish(stage, s)


@killed("Synchronizer", "first write", 7)
def sync_killed_first(stage: Stage, number: int) -> bool:
    stage.expect(**NEW_SYNC)

    def job() -> None:
        with synchronizer(stage) as s:
            s.write_bytes(pattern(1, 1400), 0.0)

    stage.expect(versions=[0, 1])
    died = stage.run(job, number)
    stage.run(lambda: sync_successor(stage))
    return died


@killed("Synchronizer", "creation", 2)
def sync_killed_creation(stage: Stage, number: int) -> bool:
    stage.expect(**NEW_SYNC)
    died = stage.run(lambda: synchronizer(stage).close(), number)

    def second() -> None:
        synchronizer(stage).close()
        stage.expect(**NEW_SYNC)
        sync_successor(stage)

    stage.run(second)
    return died


@killed("Synchronizer", "write", 6)
def sync_killed_write(stage: Stage, number: int) -> bool:
    return sync_killed_held(stage, number, held=False)


@killed("Synchronizer", "write to a new inode", 9)
def sync_killed_held(stage: Stage, number: int, held: bool = True) -> bool:
    stage.look(False)

    def first() -> None:
        with synchronizer(stage) as s:
            for _ in range(3):
                s.write_bytes(pattern(s.version + 1, 1400), 0.0)

    stage.run(first)
    stage.expect(versions=[3], absent=False, refused=False)
    stage.look(True)
    with ExitStack() as held_open:
        if held:  # a reader in a process of its own would be the same to the writer
            reader = held_open.enter_context(Synchronizer(stage.folder + "/value"))
            result = held_open.enter_context(reader.read())
            assert result.version == 3
            stage.run(lambda: publish_one(stage))

        def dies() -> None:
            with synchronizer(stage) as s:
                stage.expect(versions=[s.version, s.version + 1])
                s.write_bytes(pattern(s.version + 1, 1400), 0.0)

        before = 4 if held else 3
        stage.expect(versions=[before, before + 1])
        died = stage.run(dies, number)
        stage.run(lambda: sync_successor(stage))
        stage.run(lambda: sync_successor_again(stage))
    return died


def publish_one(stage: Stage) -> None:
    with synchronizer(stage) as s:
        publish(stage, s)


def sync_successor_again(stage: Stage) -> None:
    with synchronizer(stage) as s:
        stage.expect(versions=[s.version], absent=False, refused=False)
        publish(stage, s)


def sync_recovery(stage: Stage) -> None:
    """`stage` began with what a power cut has left."""
    expected = stage.expected

    def job() -> None:
        try:
            s = synchronizer(stage)
        except mmapds.CorruptionError:
            assert expected.get("refused"), expected
            return
        with s:
            found = s.version
            assert found in expected["versions"], (found, expected)
            stage.expect(versions=[found], absent=expected.get("absent") and not found)
            stage.expect(versions=[found, found + 1])
            s.write_bytes(pattern(found + 1, 900), 0.0)
            stage.expect(versions=[found + 1], absent=False, refused=False)
            publish(stage, s, 5000)

    stage.run(job)


# ---- Counters --------------------------------------------------------------------------------------------------------
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


def last_expected(stage: Stage) -> dict[str, Any]:
    """What a child has said last."""
    import ast

    found: dict[str, Any] = {}
    with open(stage._log, "rb") as log:
        for record in powerlog.read(log.read()):
            if record.kind == powerlog.MARK:
                mark = ast.literal_eval(record.data.decode())
                found = found if "looking" in mark or "settled" in mark else mark
    return found


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


# ---- Queue -----------------------------------------------------------------------------------------------------------
# Expected: `order`, the numbers of all items that were ever about to be put, in their order; `kept`, which of them must
# be there; `gone`, which must not; `dead`, which are dead letters, or still in the queue; `absent`.


def item(n: int, size: int = -1) -> bytes:
    return b"%04d" % n + bytes(n * 97 % 900 if size < 0 else size)


def jobs(stage: Stage, **options: Any) -> Queue:
    return Queue(stage.folder + "/queue", codec="raw", segment_size=8192, durability="power", **options)


NEW_QUEUE: dict[str, Any] = {"order": [], "kept": [], "gone": [], "dead": [], "absent": True}


def put(stage: Stage, q: Queue, *numbers: int, size: int = -1) -> None:
    stage.expect(order=[*stage.expected["order"], *numbers])
    items = [item(n, size) for n in numbers]
    if len(items) == 1:
        q.put(items[0])
    else:
        q.put_many(items)
    stage.expect(kept=[*stage.expected["kept"], *numbers])


def end(stage: Stage, code: Callable[[], object], *numbers: int) -> None:
    """What may be gone while it runs, and must be when it has returned."""
    stage.expect(kept=[n for n in stage.expected["kept"] if n not in numbers])
    code()
    stage.expect(gone=[*stage.expected["gone"], *numbers])


def get(stage: Stage, q: Queue, number: int) -> None:
    found = b""

    def code() -> None:
        nonlocal found
        found = q.get_nowait()

    end(stage, code, number)
    assert int(found[:4]) == number, (found[:4], number)


@life("Queue")
def queue_life(stage: Stage) -> None:
    def first() -> None:
        stage.expect(**NEW_QUEUE)
        with jobs(stage) as q, jobs(stage) as other:
            stage.expect(absent=False)
            put(stage, q, 0)
            put(stage, other, 1, 2)
            put(stage, q, 3)
            get(stage, other, 0)
            claim = q.claim(0)
            get(stage, other, 2)
            end(stage, claim.ack, 1)
            for n in range(4, 19):
                put(stage, (q, other)[n % 2], n)
            other.claim(0).nack(0)
            for n in range(3, 8):
                get(stage, q, n)

    def second() -> None:
        with jobs(stage) as q:
            put(stage, q, 19, 20, 21)
            end(stage, lambda: q.get_many(6), *range(8, 14))
            put(stage, q, *range(22, 40))
            end(stage, lambda: q.get_many(4), *range(14, 18))
            claims = q.claim_many(3)
            end(stage, claims[1].ack, 19)
            put(stage, q, 40)
            q.flush()

    stage.run(first)
    stage.expected = last_expected(stage)
    stage.run(second)


@life("Queue")
def queue_large(stage: Stage) -> None:
    """Items larger than a segment, delayed ones, and those sent to the back."""

    def job() -> None:
        stage.expect(**NEW_QUEUE)
        with jobs(stage) as q:
            stage.expect(absent=False)
            put(stage, q, 0)
            put(stage, q, 1, size=9000)
            put(stage, q, 2)
            put(stage, q, 3, size=7900)
            get(stage, q, 0)
            get(stage, q, 1)
            put(stage, q, 4, size=20_000)
            get(stage, q, 2)
            end(stage, q.claim(0).ack, 3)
            end(stage, q.claim(0).ack, 4)
            put(stage, q, 5)

    stage.run(job)


@life("Queue")
def queue_letters(stage: Stage) -> None:
    """Dead letters: in the queue, or among the letters, from the moment on when they were put."""

    def job() -> None:
        stage.expect(**NEW_QUEUE)
        with jobs(stage) as q:
            stage.expect(absent=False)
            put(stage, q, 0)
            put(stage, q, 1, 2)
            claim = q.claim(0)
            stage.expect(kept=[1, 2], dead=[0])
            claim.bury("broken")
            stage.expect(buried=[0])
            put(stage, q, 3)
            claim = q.claim(0)
            stage.expect(kept=[2, 3], dead=[0, 1])
            claim.bury("broken too")
            stage.expect(buried=[0, 1])
            get(stage, q, 2)

    stage.run(job)


@life("Queue")
def queue_flush(stage: Stage) -> None:
    """Durability "process": what was put, and what was ended, before a flush that has returned."""

    def job() -> None:
        with Queue(stage.folder + "/queue", codec="raw", segment_size=8192) as q:
            order: list[int] = []
            for n in range(4):
                numbers = [3 * n, 3 * n + 1, 3 * n + 2]
                q.put_many([item(number, 900) for number in numbers])
                order += numbers
                if n:
                    assert int(q.get_nowait()[:4]) == n - 1
                q.flush()
                stage.expect(**{**NEW_QUEUE, "order": order, "gone": order[:n], "kept": order[n:], "absent": False})
                stage.look(True)
                stage.look(False)

    stage.look(False)
    stage.run(job)


@killed("Queue", "creation and a put", 9)
def queue_killed_creation(stage: Stage, number: int) -> bool:
    stage.expect(**NEW_QUEUE)

    def job() -> None:
        with jobs(stage) as q:
            stage.expect(absent=False)
            put(stage, q, 0)

    died = stage.run(job, number)
    stage.expected = last_expected(stage)
    stage.run(lambda: queue_successor(stage, 1))
    return died


@killed("Queue", "a put into the next segment", 5)
def queue_killed_put(stage: Stage, number: int) -> bool:
    stage.look(False)

    def first() -> None:
        with jobs(stage) as q:
            q.put_many([item(0, 3000), item(1, 200)])

    def job() -> None:
        with jobs(stage) as q:
            put(stage, q, 2, size=2000)

    stage.run(first)
    stage.expect(**{**NEW_QUEUE, "order": [0, 1], "kept": [0, 1], "absent": False})
    stage.look(True)
    died = stage.run(job, number + 2)  # behind those of opening
    stage.expected = last_expected(stage)
    stage.run(lambda: queue_successor(stage, 3))
    return died


@killed("Queue", "beside another, a put into the next segment", 3)
def queue_killed_beside(stage: Stage, number: int) -> bool:
    """The other has had the queue open all the time, and goes on in the segment whose maker has died."""
    stage.look(False)
    died = False

    def other() -> None:
        nonlocal died
        with jobs(stage) as q:
            q.put_many([item(0, 3000), item(1, 200)])
            stage.expect(**{**NEW_QUEUE, "order": [0, 1], "kept": [0, 1], "absent": False})
            died = stage.run(lambda: beside(stage), number + 2)
            stage.expected = last_expected(stage)
            stage.look(True)
            put(stage, q, 3, size=1000)
            put(stage, q, 4, size=1000)
        if not died:
            os._exit(0)
        stage.expect(died=True)

    stage.run(other)
    return bool(last_expected(stage).get("died"))


def beside(stage: Stage) -> None:
    with jobs(stage) as q:
        put(stage, q, 2, size=3000)


@killed("Queue", "a get and an ack", 4)
def queue_killed_get(stage: Stage, number: int) -> bool:
    stage.look(False)

    def first() -> None:
        with jobs(stage) as q:
            q.put_many([item(n, 1500) for n in range(6)])

    def job() -> None:
        with jobs(stage) as q:
            get(stage, q, 0)
            end(stage, q.claim(0).ack, 1)
            put(stage, q, 6)
            get(stage, q, 2)

    stage.run(first)
    stage.expect(**{**NEW_QUEUE, "order": [*range(6)], "kept": [*range(6)], "absent": False})
    stage.look(True)
    died = stage.run(job, number + 2)
    stage.expected = last_expected(stage)
    stage.run(lambda: queue_successor(stage, 7))
    return died


def queue_successor(stage: Stage, number: int) -> None:
    with jobs(stage) as q:
        stage.expect(absent=False)
        put(stage, q, number)
        put(stage, q, number + 1, size=5000)
        put(stage, q, number + 2, size=5000)
        first = int(q.claim(0).item[:4])
        assert first in stage.expected["order"]


def queue_recovery(stage: Stage) -> None:
    expected = stage.expected

    def job() -> None:
        with jobs(stage) as q:
            found = [int(data[:4]) for data in q]
            letters = [int(letter.item[:4]) for letter in q.dead]
            stage.expect(
                order=found, kept=found, gone=[n for n in expected["order"] if n not in found],
                dead=[n for n in letters if n not in found], buried=[],
            )  # fmt: skip
            new = max(expected["order"], default=0) + 1
            put(stage, q, new)
            for n in found[:2]:
                get(stage, q, n)
            put(stage, q, new + 1, size=6000)
            stage.expect(absent=False)
            put(stage, q, new + 2)
            ids: list[str] = []
            for n in [*found[2:], new, new + 1, new + 2]:
                claim = q.claim(0)
                assert int(claim.item[:4]) == n
                ids.append(claim.id)
                end(stage, claim.ack, n)
                stage.expect(ids=list(ids))
            put(stage, q, new + 3, size=6000)
            put(stage, q, new + 4, size=6000)

    stage.run(job)


# ---- SnapshotMap -----------------------------------------------------------------------------------------------------
# Expected: `maps`, contents that may be found, values as (byte, size); `absent`.


def snapmap(stage: Stage) -> SnapshotMap:
    return SnapshotMap(stage.folder + "/map", codec="raw", durability="power")


NEW_MAP: dict[str, Any] = {"maps": [{}], "absent": True, "refused": True}


def commit(stage: Stage, m: SnapshotMap, **changes: tuple[int, int] | None) -> None:
    before = stage.expected["maps"][-1]
    after = {key: value for key, value in {**before, **changes}.items() if value is not None}
    stage.expect(maps=[before, after])
    with m.transaction() as t:
        for key, value in changes.items():
            if value is None:
                del t[key]
            else:
                t[key] = bytes([value[0]]) * value[1]
    stage.expect(maps=[after])


@life("SnapshotMap")
def map_life(stage: Stage) -> None:
    def first() -> None:
        stage.expect(**NEW_MAP)
        with snapmap(stage) as m:
            stage.expect(absent=False, refused=False)
            commit(stage, m, a=(1, 1), b=(2, 2))
            commit(stage, m, a=(3, 600))
            commit(stage, m, b=None, c=(4, 1200))
            for n in range(4):  # one of them folds
                commit(stage, m, d=(n, 1500))
            commit(stage, m, e=(5, 9000))  # a layer at once
            commit(stage, m, f=(6, 1))
            m.compact()
            commit(stage, m, a=None, f=(7, 1))

    def second() -> None:
        with snapmap(stage) as m:
            commit(stage, m, g=(8, 1))
            for n in range(3):
                commit(stage, m, h=(n, 2000), c=None)
                commit(stage, m, c=(9, 3))
            m.compact()

    def third() -> None:
        before = stage.expected["maps"][-1]
        after = {"a": (9, 1), "h": (10, 3)}
        stage.expect(maps=[before, after])
        SnapshotMap.build(stage.folder + "/map", {key: bytes([byte]) * size for key, (byte, size) in after.items()})
        stage.expect(maps=[after])
        with snapmap(stage) as m:
            commit(stage, m, h=None, i=(11, 5))

    for job in (first, second, third):
        stage.run(job)
        stage.expected = last_expected(stage)


@life("SnapshotMap")
def map_build(stage: Stage) -> None:
    """A map that a build makes."""
    built = {f"k{n}": (n, 40 * n) for n in range(1, 9)}
    stage.expect(maps=[{}, built], absent=True, refused=True)

    def job() -> None:
        data = {key: bytes([byte]) * size for key, (byte, size) in built.items()}
        SnapshotMap.build(stage.folder + "/map", data, codec="raw", durability="power")
        stage.expect(maps=[built], absent=False, refused=False)
        with snapmap(stage) as m:
            commit(stage, m, k1=None)

    stage.run(job)


def map_killed(stage: Stage, number: int, create: bool, code: Callable[[Stage], None]) -> bool:
    stage.expect(**NEW_MAP)

    def first() -> None:
        with snapmap(stage) as m:
            stage.expect(absent=False, refused=False)
            commit(stage, m, a=(1, 1), b=(2, 1500))
            commit(stage, m, a=(3, 1), b=(4, 1500))

    if create:  # the folder is there before: whether its own name is on the disk is looked at in a life of its own
        os.mkdir(stage.folder + "/map")
        stage.recorder.mark(settled=True)
        stage.expect(**NEW_MAP)
    else:
        stage.look(False)
        stage.run(first)
        stage.expected = last_expected(stage)
        stage.look(True)
    died = stage.run(lambda: code(stage), number)
    stage.expected = last_expected(stage)
    stage.run(lambda: map_successor(stage))
    return died


@killed("SnapshotMap", "creation and a commit", 14)
def map_killed_creation(stage: Stage, number: int) -> bool:
    def code(stage: Stage) -> None:
        with snapmap(stage) as m:
            stage.expect(absent=False, refused=False)
            commit(stage, m, a=(1, 1))

    return map_killed(stage, number, True, code)


@killed("SnapshotMap", "a commit", 8)
def map_killed_commit(stage: Stage, number: int) -> bool:
    def code(stage: Stage) -> None:
        with snapmap(stage) as m:
            commit(stage, m, a=(5, 1))
            commit(stage, m, c=(6, 100))

    return map_killed(stage, number, False, code)


@killed("SnapshotMap", "a fold", 10)
def map_killed_fold(stage: Stage, number: int) -> bool:
    def code(stage: Stage) -> None:
        with snapmap(stage) as m:
            commit(stage, m, a=(5, 1), b=(6, 6000))

    return map_killed(stage, number, False, code)


@killed("SnapshotMap", "a build", 14)
def map_killed_build(stage: Stage, number: int) -> bool:
    def code(stage: Stage) -> None:
        after = {"z": (7, 300)}
        stage.expect(maps=[stage.expected["maps"][-1], after])
        SnapshotMap.build(stage.folder + "/map", {"z": b"\x07" * 300}, codec="raw", durability="power")
        stage.expect(maps=[after], absent=False, refused=False)

    return map_killed(stage, number, number % 2 == 0, code)


@killed("SnapshotMap", "its maker", 14)
def map_whose_maker_died(stage: Stage, number: int) -> bool:
    """Its own name, too, must be on the disk when the commit of somebody else has returned."""
    stage.expect(**NEW_MAP)
    died = stage.run(lambda: snapmap(stage).close(), number)
    stage.run(lambda: map_successor(stage))
    return died


@life("SnapshotMap")
def map_process(stage: Stage) -> None:
    """Durability "process": what a build has made is on the disk when it returns, all the same."""
    built = {f"k{n}": (n, 40 * n) for n in range(1, 9)}

    def job() -> None:
        data = {key: bytes([byte]) * size for key, (byte, size) in built.items()}
        for n in range(3):
            built["round"] = data["round"] = (n, 1)  # type: ignore[assignment]
            data["round"] = bytes([n])
            SnapshotMap.build(stage.folder + "/map", data, codec="raw")
            stage.expect(maps=[dict(built)], absent=False, refused=False)
            stage.look(True)
            stage.look(False)

    stage.look(False)
    stage.run(job)


def shape(m: SnapshotMap) -> dict[str, tuple[int, int]]:
    return {key: (value[0], len(value)) for key, value in dict(m).items()}


def map_successor(stage: Stage) -> None:
    maps = stage.expected["maps"]
    with snapmap(stage) as m:
        found = shape(m)
        assert found in maps, (found, maps)
        after = {**found, "new": (9, 10)}
        stage.expect(maps=[*maps, found, after])
        with m.transaction() as t:
            t["new"] = b"\x09" * 10
        stage.expect(maps=[after], absent=False, refused=False)
        commit(stage, m, newer=(10, 5000))
        m.compact()


def map_recovery(stage: Stage) -> None:
    expected = stage.expected

    def job() -> None:
        try:
            m = snapmap(stage)
        except mmapds.MmapdsError:
            assert expected.get("refused"), expected
            return
        with m:
            found = shape(m)
            assert found in expected["maps"], (found, expected)
            stage.expect(maps=[found], absent=expected.get("absent"), refused=expected.get("refused", False))
            commit(stage, m, new=(9, 10))
            stage.expect(absent=False, refused=False)
            commit(stage, m, newer=(9, 5000), new=None)
            m.compact()

    stage.run(job)


RECOVERIES: dict[str, Life] = {
    "Synchronizer": sync_recovery,
    "Counters": counters_recovery,
    "Queue": queue_recovery,
    "SnapshotMap": map_recovery,
}


# ---- lives by chance -------------------------------------------------------------------------------------------------


def sync_wander(stage: Stage, choose: random.Random) -> None:
    def job() -> None:
        with synchronizer(stage) as s, ExitStack() as held:
            stage.expect(absent=False)
            for _ in range(choose.randrange(2, 6)):
                if choose.random() < 0.3:
                    held.close()
                if s.version and choose.random() < 0.3:
                    reader = held.enter_context(Synchronizer(s.prefix))
                    held.enter_context(reader.read())
                publish(stage, s, choose.choice((8, 400, 1000, 2000, 3000, 4000, 9000, 70_000)))

    stage.expect(**NEW_SYNC)
    stage.look(False)
    stage.run(lambda: synchronizer(stage).close())
    stage.look(True)
    for _ in range(3):
        stage.run(job)
        stage.expected = last_expected(stage)
        choose.random()


def assign(c: Counters, name: str, value: int) -> None:
    c[name] = value
    c.flush()


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


def queue_wander(stage: Stage, choose: random.Random) -> None:
    def job() -> None:
        with jobs(stage) as q:
            stage.expect(absent=False)
            for _ in range(choose.randrange(4, 12)):
                new = len(stage.expected["order"])
                what = choose.random()
                waiting = sorted(set(stage.expected["kept"]))
                if what < 0.5 or not waiting:
                    put(stage, q, new, size=choose.choice((0, 40, 400, 900, 2500, 9000)))
                elif what < 0.65:
                    put(stage, q, *range(new, new + choose.randrange(2, 5)), size=choose.choice((10, 600)))
                elif what < 0.75:
                    q.claim(0).nack(0)
                elif what < 0.9:
                    get(stage, q, waiting[0])
                else:
                    claims = q.claim_many(2)
                    numbers = [int(claim.item[:4]) for claim in claims]
                    end(stage, claims[-1].ack, numbers[-1])
                    if len(claims) > 1:
                        claims[0].nack(0)

    stage.expect(**NEW_QUEUE)
    stage.look(False)
    stage.run(lambda: jobs(stage).close())
    stage.look(True)
    for _ in range(3):
        stage.run(job)
        stage.expected = last_expected(stage)
        choose.random()


def map_wander(stage: Stage, choose: random.Random) -> None:
    def job() -> None:
        with snapmap(stage) as m:
            stage.expect(absent=False, refused=False)
            for _ in range(choose.randrange(2, 6)):
                before = stage.expected["maps"][-1]
                changes: dict[str, tuple[int, int] | None] = {}
                for _ in range(choose.randrange(1, 4)):
                    key = choose.choice("abcdefgh")
                    size = choose.choice((1, 30, 300, 1500, 5000))
                    gone = key in before and choose.random() < 0.3
                    changes[key] = None if gone else (choose.randrange(256), size)
                commit(stage, m, **changes)
                if choose.random() < 0.15:
                    m.compact()

    stage.expect(**NEW_MAP)
    stage.look(False)
    stage.run(lambda: snapmap(stage).close())
    stage.look(True)
    for _ in range(3):
        stage.run(job)
        stage.expected = last_expected(stage)
        choose.random()


WANDERS: dict[str, Callable[[Stage, random.Random], None]] = {
    "Synchronizer": sync_wander,
    "Counters": counters_wander,
    "Queue": queue_wander,
    "SnapshotMap": map_wander,
}


# ---- all of them -----------------------------------------------------------------------------------------------------


def record(structure: str, base: str, names: list[str] | None, wanders: list[int]) -> list[Recording]:
    """The lives of a structure (None: all), and so many by chance. Those whose number is behind the last sync are left
    out."""
    settle_down(FIRST_BOOT)
    gc.collect()
    found = []
    lives = LIVES[structure] if names is None else {name: LIVES[structure][name] for name in names}
    for name, function in lives.items():
        stage = Stage(base, f"{structure}: {name}")
        if function(stage) is not False:  # of those that are killed: it came to that sync
            found.append(stage.recording())
    for seed in wanders:
        stage = Stage(base, f"{structure}: by chance, {seed}")
        WANDERS[structure](stage, random.Random(seed))
        found.append(stage.recording())
    return found


def record_recoveries(structure: str, base: str, starts: list[tuple[str, Files, dict[str, Any]]]) -> list[Recording]:
    """Lives that begin with what a power cut has left, in the next boot."""
    settle_down(SECOND_BOOT)
    found = []
    for name, files, expected in starts:
        stage = Stage(base, f"{structure}: recovery of {name}", files)
        stage.expect(**expected)
        RECOVERIES[structure](stage)
        found.append(stage.recording())
    return found
