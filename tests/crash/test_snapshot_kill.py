"""A snapshot map whose process is killed before every line and at every store and call (rows 1, 7, 8, 33 and 34).

After each death the map is exactly what it was, or what it should become; a reader that was there goes on, and what it
held before is untouched; the next writer works without help, and removes what was left behind.
"""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import snapdisk
from peers import Peer

from mmapds import SnapshotMap
from mmapds._snapfiles import MapFiles

Values = dict[str, bytes]


class Job(NamedTuple):
    """`prepare` and `code` run in the victim, which may die in `code`; `before` and `after`: all that the map has."""

    before: Values
    code: str
    after: Values
    prepare: str = "m = mmapds.SnapshotMap(path)"


def value(n: int, size: int = 100) -> bytes:
    return (b"%d." % n).ljust(size, b"-")


START: Values = {f"k{n:02}": value(n) for n in range(20)}
ONE = START | {"k03": b"new", "more": b"more"}
FULL = START | {f"full{n}": value(n, 1500) for n in range(5)}  # no room in the delta for another commit
BIG = START | {"k03": bytes(20_000)}
COMMIT = "with m.transaction() as t: t.update({'k03': b'new', 'more': b'more'})"
JOBS = {
    "commit": Job(START, COMMIT, ONE),
    "first commit of a handle": Job(START, "m = mmapds.SnapshotMap(path)\n" + COMMIT, ONE, ""),
    "delete": Job(START, "with m.transaction() as t: del t['k03']", {k: v for k, v in START.items() if k != "k03"}),
    "fold": Job(FULL, COMMIT, FULL | ONE),
    "big commit": Job(START, "with m.transaction() as t: t['k03'] = bytes(20_000)", BIG),
    "compact": Job(START, "m.compact()", START),
    "build": Job(START, "mmapds.SnapshotMap.build(path, {'k03': b'new', 'a': b'b'})", {"k03": b"new", "a": b"b"}),
    "publish": Job(
        START, "p.publish(path)", ONE,
        "p = mmapds.SnapshotMap(path + '-origin', mode='private'); p['k03'] = b'new'; p['more'] = b'more'",
    ),
}  # fmt: skip


ZYGOTE = """
import warnings; warnings.simplefilter("ignore", ResourceWarning)
import shutil, sys, snapdisk, stepping, victims
snapdisk.tiny()

def scope_of(prepare):
    scope = {"mmapds": mmapds, "path": path, "os": os}
    exec(prepare, scope)
    return scope

def at_line(count, prepare, job):
    code = compile(job, "job", "exec")
    def run():
        scope = scope_of(prepare)
        victims.at_line(count, victims.die)
        try:
            exec(code, scope)
        finally:
            sys.settrace(None)
    return victims.finish(victims.spawn(run)), []

def at_point(count, prepare, job):
    code = compile(job, "job", "exec")
    return stepping.killed_at(count, lambda: scope_of(prepare), lambda scope: exec(code, scope), path)
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "map")


@pytest.fixture
def zygote(path: str) -> Iterator[Peer]:
    with Peer("import warnings; warnings.simplefilter('ignore', ResourceWarning)\n" + ZYGOTE, path=path) as peer:
        yield peer


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmapds._snapfiles.DELTA_SIZE", 16384)
    monkeypatch.setattr("mmapds._snapfiles.DELTA_BUCKETS", 16)


def make(path: str, before: Values, durability: Any = None) -> None:
    """A map with a layer, a delta over it, and something that is gone."""
    shutil.rmtree(path, ignore_errors=True)
    keys = list(before)
    first = {key: before[key] for key in keys[: len(keys) // 2]} | {"gone": b"gone", keys[0]: b"old"}
    SnapshotMap.build(path, first, codec="raw", durability=durability, metadata={"made": 1})
    with SnapshotMap(path) as m:
        with m.transaction() as t:
            t.update({key: before[key] for key in keys[len(keys) // 2 :]})
        with m.transaction() as t:
            t[keys[0]] = before[keys[0]]
            del t["gone"]


class Witness:
    """Who had the map open when the victim began."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.follower = SnapshotMap(path, mode="readonly")
        self.checking = SnapshotMap(path, mode="readonly", verify=True)
        self.still = SnapshotMap(path, mode="readonly", follow=False)
        self.held = self.follower.snapshot()
        self.before = dict(self.held)
        self.version = self.held.version
        self.walk = iter(self.held.items())
        self.first = next(self.walk)
        self.view = self.follower.get_view(self.first[0])

    def check(self, after: Values | None, message: str) -> None:
        """The map is what it was, or `after`; the next writer goes on; what was held is as it was."""
        names = os.listdir(self.path)
        found = snapdisk.check(self.path, message, leftovers=True)
        values = {key.decode(): value for key, value in found.values().items()}
        version = found.manifest.version
        if version == self.version:
            assert values == self.before, f"{message}: something between the old and the new version"
        else:
            assert version == self.version + 1, f"{message}: version {version}"
            assert values == after, f"{message}: something between the old and the new version"
        for handle in (self.follower, self.checking):
            assert (handle.version, dict(handle)) == (version, values), f"{message}: a follower sees {dict(handle)}"
            assert handle.get_many(values) == values, message
        with SnapshotMap(self.path, mode="readonly", verify=True) as late:
            assert (late.version, dict(late), len(late)) == (version, values, len(values)), message
            late.verify()
        with SnapshotMap(self.path) as successor:
            with successor.transaction() as t:
                t["next"] = b"next"
                assert dict(t) == values | {"next": b"next"}, message
            successor.check()
            left = snapdisk.check(self.path, f"{message}, and a successor has written; before: {names}")
            assert left.values()[b"next"] == b"next"
            for handle in (self.follower, self.checking):
                assert (handle.version, handle["next"], dict(handle)) == (version + 1, b"next", dict(successor)), (
                    message
                )
            successor.compact()
        found = snapdisk.check(self.path, f"{message}, and it was compacted")
        assert len(found.manifest.layers) == 1, message
        assert dict(self.follower) == dict(self.checking) == values | {"next": b"next"}, message
        for one in (self.still, self.held):
            assert (one.version, dict(one)) == (self.version, self.before), f"{message}: what is held was touched"
            assert one.verify() > 0
        assert dict([self.first, *self.walk]) == self.before, f"{message}: a walk went astray"
        assert bytes(self.view) == self.first[1], f"{message}: a view was touched"  # type: ignore[arg-type]

    def close(self) -> None:
        for handle in (self.follower, self.checking, self.still, self.held):
            handle.close()


def at_each_point(zygote: Peer, path: str, job: Job, durability: str, call: str, step: int) -> set[str]:
    """Kills it at point 0, step, 2 * step, ... until it gets through; what it has come to."""
    for count in range(0, 5000, step):
        make(path, job.before, durability)
        if "-origin" in job.prepare:
            make(path + "-origin", job.before, durability)
        witness = Witness(path)
        try:
            code = f"{call}(count, prepare, job)"
            status, seen = zygote(code, count=count, prepare=job.prepare, job=job.code)
            assert status in (0, -signal.SIGKILL), f"{call} {count}: exit status {status}\n{zygote.stderr()}"
            message = f"killed {call} {count}, {seen[-1] if seen else ''}" if status else "not killed"
            if status == 0:
                assert witness.follower.version == witness.version + 1, zygote.stderr()
            witness.check(job.after, message)
        finally:
            witness.close()
        if status == 0:
            assert count > 5
            return set(seen)
    raise AssertionError("there is no end")


OFTEN = ["commit", "fold", "big commit", "compact", "build"]


@pytest.mark.parametrize("what", OFTEN)
def test_r01_r33_r34_killed_before_some_lines(zygote: Peer, path: str, what: str) -> None:
    at_each_point(zygote, path, JOBS[what], "process", "at_line", 37)


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("what", JOBS)
def test_r01_r33_r34_killed_before_each_line(zygote: Peer, path: str, what: str, durability: str) -> None:
    at_each_point(zygote, path, JOBS[what], durability, "at_line", 1 if durability == "process" else 3)


# ---- at stores and calls -------------------------------------------------------------------------------------------


def can_trace(zygote: Peer) -> None:
    if not zygote("stepping.available()"):
        pytest.skip("processes may not be traced here")


@pytest.mark.parametrize(
    "what", ["commit", *(pytest.param(what, marks=pytest.mark.slow) for what in JOBS if what != "commit")]
)
def test_r01_r33_r34_killed_before_each_call(zygote: Peer, path: str, what: str) -> None:
    can_trace(zygote)
    seen = at_each_point(zygote, path, JOBS[what], "process", "at_point", 4 if what == "commit" else 1)
    assert any(point.startswith("call") for point in seen), seen


@pytest.mark.slow
@pytest.mark.parametrize("what", ["commit", "fold"])
def test_r01_killed_at_every_store(zygote: Peer, path: str, what: str) -> None:
    """The files are put back as they were after each store, in the same inodes where those were there before."""
    can_trace(zygote)
    job = JOBS[what]
    make(path, job.before)
    out = path + ".states"
    count = zygote(
        """
import snapsteps
def prepare():
    txn = mmapds.SnapshotMap(path).transaction().__enter__()
    txn.update({'k03': b'new', 'more': b'more'})
    return txn
snapsteps.save(snapsteps.states(prepare, lambda txn: txn.__exit__(None, None, None), path), out)
""".replace("snapsteps.save(", "count = snapsteps.save(")
        + "\ncount",
        out=out,
    )
    found: list[dict[str, bytes]] = pickle.loads(Path(out).read_bytes())
    assert len(found) == count > 20
    versions = set()
    choose = random.Random(1)
    for number in sorted({0, 1, len(found) - 1, *choose.sample(range(len(found)), min(len(found), 400))}):
        snapdisk.restore(path, found[0], in_place=True)
        witness = Witness(path)
        try:
            snapdisk.restore(path, found[number], in_place=True)
            versions.add(snapdisk.read_manifest(path).version)
            witness.check(job.after, f"killed after store {number} of {len(found)}")
        finally:
            witness.close()
    assert len(versions) == 2, versions


# ---- creation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [61, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["mmapds.SnapshotMap(path)", "mmapds.SnapshotMap.build(path, {'a': 1})"])
def test_r07_creation_is_nothing_or_all(zygote: Peer, path: str, how: str, step: int) -> None:
    for call, stride in (("at_line", step), ("at_point", -(-step // 4))):
        if call == "at_point":
            can_trace(zygote)
        for count in range(0, 5000, stride):
            shutil.rmtree(path, ignore_errors=True)
            if call == "at_point":
                os.mkdir(path)
            status, _ = zygote(f"{call}(count, prepare, job)", count=count, prepare="", job=how)
            message = f"killed {call} {count}: {os.listdir(path) if os.path.exists(path) else 'nothing'}"
            assert status in (0, -signal.SIGKILL), zygote.stderr()
            try:
                with SnapshotMap(path, mode="readonly") as reader:
                    assert dict(reader) in ([{}] if "build" not in how else [{"a": 1}]), message
            except FileNotFoundError:
                assert status, message
            if count % 2:
                with SnapshotMap(path) as m:
                    assert dict(m) in ({}, {"a": 1}), message
                    with m.transaction() as t:
                        t["b"] = 2
                    assert m["b"] == 2, message
            else:
                assert SnapshotMap.build(path, {"b": 2}) == 1, message
            snapdisk.check(path, message)
            if status == 0:
                break
        assert count > 20


# ---- at any moment -------------------------------------------------------------------------------------------------

FOR_EVER = """
import mmap, random, time
acknowledged = mmap.mmap(-1, 8)  # shared with the victims, and survives them

def write_for_ever():
    m = mmapds.SnapshotMap(path)
    n = m['n']
    choose = random.Random(n)
    while True:
        acknowledged[:] = n.to_bytes(8, "little")
        n += 1
        with m.transaction() as t:
            t['n'] = n
            t[f"k{n % 50}"] = n
            t["large"] = bytes(choose.choice((0, 100, 1000, 1000, 9000)))
            if n % 40 == 0: m._committer.compact(None)

def kill_one(seconds):
    status = victims.end(victims.spawn(write_for_ever), after=seconds)
    return status, int.from_bytes(acknowledged[:], "little")
"""


@pytest.mark.parametrize("kills", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_r01_r34_writers_killed_at_any_moment(zygote: Peer, path: str, kills: int) -> None:
    """What was acknowledged is there; each version is whole: the keys say to which commit they belong."""
    SnapshotMap.build(path, {"n": 0, "large": b""})
    zygote(FOR_EVER)
    with SnapshotMap(path) as follower, SnapshotMap(path, mode="readonly", verify=True) as checking:
        for number in range(kills):
            status, acknowledged = zygote("kill_one(random.random() * 0.05)")
            assert status == -signal.SIGKILL, zygote.stderr()
            for handle in (follower, checking):
                now = handle.snapshot()
                n, message = now["n"], f"kill {number}, {acknowledged} acknowledged; {snapdisk.state(path)}"
                assert n in (acknowledged, acknowledged + 1) or acknowledged == 0, f"{message}: {n}"
                numbers = [now[f"k{k % 50}"] for k in range(max(1, n - 49), n + 1)]
                assert numbers == list(range(max(1, n - 49), n + 1)), message
                assert len(now) == 2 + min(n, 50), message
            if number % 10 == 0:
                snapdisk.check(path, message, leftovers=True)
        assert follower["n"] > kills // 2, "the victims were killed before they had written anything"
        with follower.transaction() as t:
            t["n"] = t["n"] + 1
    snapdisk.check(path, "at the end")


# ---- files that go while somebody opens them -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["layer", "delta"])
def test_r34_files_unlinked_between_a_followers_manifest_and_its_open(
    path: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It goes to the newer manifest, as often as it takes; only a manifest that stays is damage."""
    make(path, START)
    with SnapshotMap(path) as writer, SnapshotMap(path, mode="readonly") as follower:
        held = follower.snapshot()
        before, real, raced = dict(held), getattr(MapFiles, kind), 0

        def race(self: MapFiles, *arguments: Any, **options: Any) -> Any:
            nonlocal raced
            if raced < 5 and self is follower._files:
                raced += 1
                with writer.transaction() as t:
                    t["raced"] = b"%d" % raced
                    t["large"] = bytes(9000)
                writer.compact()
            return real(self, *arguments, **options)

        with writer.transaction() as t:
            t["k03"] = bytes(5000)
        writer.compact()
        with writer.transaction() as t:
            t["k03"] = b"new"
        monkeypatch.setattr(MapFiles, kind, race)
        assert follower["k03"] == b"new"
        assert raced >= 1
        monkeypatch.undo()
        assert follower["raced"] == b"%d" % raced
        assert dict(follower) == dict(writer)
        assert dict(held) == before
        with SnapshotMap(path, mode="readonly") as late:
            assert dict(late) == dict(writer)
    snapdisk.check(path)
