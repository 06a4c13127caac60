"""SnapshotMap against a SortedDict: whatever handles, processes that are killed, and time do, in whatever order.

The model's `Base` is what is published: for each key its value and when it expires. The map's time goes on while a call
runs, so of an entry that expires meanwhile either answer is right: what is expected has two bounds, what must be there
and what may be. Deltas are so small that a few commits fill them, and their chains are long.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from typing import Any

import pytest
import snapdisk
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from peers import Peer
from sortedcontainers import SortedDict

from mmapds import SnapshotMap
from mmapds._snapview import Snapshot

Base = SortedDict  # key -> (value, when it expires, or 0)
NS = 1_000_000_000

# Few keys, so that they meet; with empty ones, prefixes of each other, the last code points and bytes, and long ones.
TEXTS = ["", "a", "aa", "a\0", "ab", "b", "ba/1", "ba/2", "ba/10", "é", "\U0010ffff", "\U0010ffffz", "x" * 300, "zz"]
KEYS = {
    "str": TEXTS,
    "bytes": [text.encode() for text in TEXTS[:-3]] + [b"\xff", b"\xff\xff", b"\xff" * 9, b"y" * 70_000],
}
KEYS["bytes"][-1] = b"y" * 65_536
ttls = st.sampled_from([None, None, None, None, 0.002, 0.02, 1000.0])
sizes = st.sampled_from([0, 1, 7, 8, 30, 30, 500, 3000])
which = st.integers(0, 40)
changes = st.lists(st.tuples(which, st.one_of(st.none(), sizes), ttls), max_size=12)

LIFE = """
import snapdisk, victims
snapdisk.tiny()

def life(path, changes, line):
    '''Begins a transaction with these changes, and is killed at that line of its commit; how it ended.'''
    def job():
        m = mmapds.SnapshotMap(path)
        txn = m.transaction()
        txn.__enter__()
        for key, value, ttl in changes:
            if value is None:
                if key in txn:
                    del txn[key]
            else:
                txn.set(key, value, ttl)
        victims.at_line(line, victims.die)
        if len(changes) % 4 == 3:
            m._committer.compact(None)
        txn.__exit__(None, None, None)
    return victims.finish(victims.spawn(job))
"""


def raw(key: Any) -> bytes:
    return key.encode() if isinstance(key, str) else key


class View:
    """A frozen state of the model, and the handle that must show it."""

    def __init__(self, real: Any, base: Base, changes: dict[Any, Any] | None = None) -> None:
        self.real = real
        self.base = base
        self.changes = changes  # of a private handle: key -> (value, expires) or None


class SnapshotModel(RuleBasedStateMachine):
    peer: Peer
    kind = "str"

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="mmapds-model-")
        self.path = os.path.join(self.folder, "map")
        self.base = Base()
        self.handles: list[SnapshotMap] = []
        self.frozen: list[View] = []
        self.private: list[View] = []
        self.counter = 0
        self.log: list[str] = []
        self.metadata: Any = None

    @initialize(kind=st.sampled_from(["str", "str", "bytes"]))
    def make(self, kind: str) -> None:
        self.kind = kind
        self.open("shared", True, False)

    def open(self, mode: Any, follow: bool, verify: bool) -> None:
        self.handles.append(SnapshotMap(self.path, mode=mode, codec="raw", follow=follow, verify=verify))
        if not follow:
            self.frozen.append(View(self.handles.pop(), self.base.copy()))

    def teardown(self) -> None:
        for real in [*self.handles, *(view.real for view in self.frozen + self.private)]:
            real.close()
        shutil.rmtree(self.folder)

    # ---- helpers ----------------------------------------------------------------------------------------------------

    def say(self, what: object) -> str:
        return f"{what}; {snapdisk.state(self.path)}; {self.log[-12:]}"

    def key(self, number: int) -> Any:
        keys = KEYS[self.kind]
        return keys[number % len(keys)]

    def value(self, size: int) -> bytes:
        self.counter += 1
        return (b"%d." % self.counter).ljust(size, b"-")

    @property
    def writer(self) -> SnapshotMap:
        return next(handle for handle in self.handles if handle.mode == "shared")

    def compare(self, real: Any, base: Base, changes: dict[Any, Any] | None = None) -> None:
        """All ways of looking at it show the same."""
        state = real._state
        before = state.now
        found = list(real.items())
        backwards = list(reversed(real.items()))
        keys, values = list(real), list(real.values())
        every = set(KEYS[self.kind])
        many = real.get_many(every)
        single = {key: real.get(key) for key in every if key in real}
        count = len(real)
        after = state.now
        effective = SortedDict(raw, base)
        counted = set(base)
        for key, change in (changes or {}).items():
            if change is None:
                counted.discard(key)
                effective.pop(key, None)
            else:
                counted.add(key)
                effective[key] = change
        must = [(key, value) for key, (value, expires) in effective.items() if not expires or expires > after]
        may = [(key, value) for key, (value, expires) in effective.items() if not expires or expires > before]
        for what, pairs in (
            ("items", found),
            ("backwards", backwards[::-1]),
            ("get_many", sorted(many.items(), key=lambda p: raw(p[0]))),
        ):
            if must == may:
                assert pairs == must, self.say(f"{what}: {short(pairs)} instead of {short(must)}")
            else:
                assert [pair for pair in may if pair in pairs] == pairs, self.say(f"{what}: {short(pairs)}")
                assert set(must) <= set(pairs), self.say(f"{what}: {short(pairs)} without some of {short(must)}")
        if must == may:
            assert keys == [key for key, _ in must], self.say("keys")
            assert values == [value for _, value in must], self.say("values")
            assert {key: value for key, value in single.items() if value is not None} == dict(must), self.say("get")
        assert len(base) >= count - len(changes or {}), self.say("len")
        if changes is None:
            # len counts what is expired, until a compaction drops it
            assert len(must) <= count <= len(counted), self.say(
                f"len {count}, {len(must)} live, {len(counted)} at most"
            )
            assert count == len(base) or any(expires for _, expires in base.values()), self.say("len")

    # ---- reading ----------------------------------------------------------------------------------------------------

    @rule(low=which, high=which, backwards=st.booleans(), number=which, private=st.booleans())
    def ranges(self, low: int, high: int, backwards: bool, number: int, private: bool) -> None:
        views = [View(handle, self.base) for handle in self.handles] + self.frozen + (self.private if private else [])
        view = views[number % len(views)]
        start, stop = self.key(low), self.key(high)
        real = view.real
        every = list(real.items())
        for a, b in ((start, stop), (start, None), (None, stop)):
            expected = [
                (key, value)
                for key, value in every
                if (a is None or raw(key) >= raw(a)) and (b is None or raw(key) < raw(b))
            ]
            found = list(real.range(a, b, reverse=backwards))
            if list(real.items()) == every:
                assert (found[::-1] if backwards else found) == expected, self.say(f"range({a!r}, {b!r}, {backwards})")
        found = list(real.prefix(start, reverse=backwards))
        expected = [(key, value) for key, value in every if raw(key).startswith(raw(start))]
        if list(real.items()) == every:
            assert (found[::-1] if backwards else found) == expected, self.say(f"prefix({start!r}, {backwards})")
            if every:
                assert (real.first(), real.last()) == (every[0], every[-1]), self.say("first, last")
            else:
                with pytest.raises(KeyError):
                    real.first()

    @rule(number=which)
    def view_of_one(self, number: int) -> None:
        key = self.key(number)
        for handle in self.handles[-2:]:
            expected = handle.get(key)
            view = handle.get_view(key)
            if view is not None and expected is not None:
                assert bytes(view) == expected, self.say(f"get_view({key!r})")

    # ---- handles ----------------------------------------------------------------------------------------------------

    @rule(
        mode=st.sampled_from(["shared", "shared", "readonly"]),
        follow=st.sampled_from([True, True, False]),
        verify=st.booleans(),
    )
    def come(self, mode: str, follow: bool, verify: bool) -> None:
        if len(self.handles) + len(self.frozen) < 7:
            self.open(mode, follow, verify)
            self.log.append(f"open {mode} follow={follow} verify={verify}")

    @rule(number=which)
    def go(self, number: int) -> None:
        number %= len(self.handles)
        if sum(one.mode == "shared" for one in self.handles) > 1 or self.handles[number].mode != "shared":
            self.handles.pop(number).close()

    @rule()
    def open_anew(self) -> None:
        for handle in self.handles:
            handle.close()
        self.handles.clear()
        self.open("shared", True, False)
        self.log.append("reopen")

    @rule(number=which)
    def freeze(self, number: int) -> None:
        if len(self.frozen) < 5:
            handle = self.handles[number % len(self.handles)]
            self.frozen.append(View(handle.snapshot(), self.base.copy()))

    @rule(number=which, refresh=st.booleans())
    def thaw(self, number: int, refresh: bool) -> None:
        if self.frozen:
            view = self.frozen[number % len(self.frozen)]
            if refresh and not isinstance(view.real, Snapshot):
                assert view.real.refresh() == self.writer.version
                view.base = self.base.copy()
            else:
                view.real.close()
                self.frozen.remove(view)

    # ---- changing ---------------------------------------------------------------------------------------------------

    def apply(self, txn: Any, todo: list[tuple[int, int | None, float | None]], base: Base) -> dict[Any, Any]:
        """Makes the changes in a transaction or a private map; what they come to."""
        made: dict[Any, Any] = {}
        for number, size, ttl in todo:
            key = self.key(number)
            if size is None:
                try:
                    del txn[key]
                except KeyError:
                    change = made.get(key, base.get(key))
                    assert change is None or change[1], self.say(f"{key!r} is not there")
                else:
                    made[key] = None
            else:
                value = self.value(size)
                txn.set(key, value, ttl) if ttl or number % 2 else txn.update({key: value})
                made[key] = (value, txn._expires(key) or (txn._state.now if ttl else 0))
                assert bool(made[key][1]) == bool(ttl)
        return made

    def publish(self, base: Base, made: dict[Any, Any]) -> Base:
        after = base.copy()
        for key, change in made.items():
            if change is None:
                after.pop(key, None)
            else:
                after[key] = change
        return after

    @rule(number=which, todo=changes, fails=st.sampled_from([False, False, False, True]), repeat=st.integers(1, 4))
    def commit(self, number: int, todo: list[Any], fails: bool, repeat: int) -> None:
        writers = [handle for handle in self.handles if handle.mode == "shared"]
        handle = writers[number % len(writers)]
        for _ in range(repeat):
            version = handle.version
            made: dict[Any, Any] = {}
            try:
                with handle.transaction() as txn:
                    made = self.apply(txn, todo, self.base)
                    if not any(ttl for _, _, ttl in todo):
                        self.compare(txn, self.base, made)
                    if fails:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                assert handle.version == version
            else:
                self.base = self.publish(self.base, made)
                assert handle.version <= version + 1
        self.log.append(f"commit {len(todo)} x{repeat} {'rolled back' if fails else ''}")

    @rule(number=which, size=st.sampled_from([9000, 20_000, 70_000]))
    def large(self, number: int, size: int) -> None:
        """More than half a delta: a layer at once."""
        key, value = self.key(number), self.value(size)
        with self.writer.transaction() as txn:
            txn[key] = value
        self.base = self.publish(self.base, {key: (value, 0)})
        self.log.append(f"large {key!r:.20} {size}")

    @rule()
    def compact(self) -> None:
        handle = self.writer
        before = handle._state.now
        handle.compact()
        for key, (_, expires) in list(self.base.items()):
            if expires and expires <= before:
                del self.base[key]
        stats = handle.stats()
        assert len(stats["layers"]) <= 1, self.say(stats)
        assert stats["delta"] is None
        self.log.append("compact")

    @rule(todo=changes)
    def build(self, todo: list[Any]) -> None:
        pairs = [(self.key(number), self.value(size or 0)) for number, size, _ in todo]
        self.metadata = {"n": self.counter}
        made = {key: (value, 0) for key, value in pairs}
        assert SnapshotMap.build(self.path, iter(pairs), metadata=self.metadata, memory_limit=1 << 20) == len(made)
        self.base = Base(raw, made)
        self.log.append(f"build {len(made)}")
        snapdisk.check(self.path, self.say("build"))

    @rule(todo=changes, line=st.one_of(st.integers(0, 30), st.integers(0, 250)))
    def killed(self, todo: list[Any], line: int) -> None:
        """A process comes, and is killed at any line of its commit, perhaps of a compaction."""
        handle = self.writer
        version = handle.version
        work = [(self.key(number), None if size is None else self.value(size), None) for number, size, _ in todo]
        # Whether what expires is still there to be deleted would be a matter of time.
        work = [one for one in work if one[1] is not None or not self.base.get(one[0], (b"", 0))[1]]
        status = type(self).peer("life(path, work, line)", path=self.path, work=work, line=line)
        assert status in (0, -signal.SIGKILL), self.say(type(self).peer.stderr())
        made: dict[Any, Any] = {}
        for key, value, _ in work:
            if value is None:
                if made.get(key, self.base.get(key)) is not None:
                    made[key] = None
            else:
                made[key] = (value, 0)
        after = self.publish(self.base, made)
        found = handle.version
        assert found in (version, version + 1), self.say(f"{version} before, now {found}")
        if found > version:
            self.base = after
        else:
            assert status or not any(key in self.base or change for key, change in made.items()), self.say(
                "nothing done"
            )
        with SnapshotMap(self.path, mode="readonly", verify=True) as reader:
            self.compare(reader, self.base)
        self.log.append(f"killed at line {line} of {len(todo)}: {status}, version {version} -> {found}")

    # ---- private ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.private) < 2)
    @rule(verify=st.booleans())
    def cover(self, verify: bool) -> None:
        self.private.append(View(SnapshotMap(self.path, mode="private", verify=verify), self.base.copy(), {}))

    @precondition(lambda self: self.private)
    @rule(number=which, todo=changes)
    def change_privately(self, number: int, todo: list[Any]) -> None:
        view = self.private[number % len(self.private)]
        assert view.changes is not None
        effective = self.publish(view.base, view.changes)
        view.changes |= self.apply(view.real, todo, effective)
        assert view.real.overlay_size == len(view.changes), self.say("overlay_size")

    @precondition(lambda self: self.private)
    @rule(number=which, what=st.sampled_from(["discard", "refresh", "publish", "close"]))
    def end_privately(self, number: int, what: str) -> None:
        view = self.private[number % len(self.private)]
        assert view.changes is not None
        if what == "discard":
            view.real.discard()
            view.changes = {}
        elif what == "refresh":
            assert view.real.refresh() == self.writer.version
            view.base = self.base.copy()
        elif what == "publish":
            target = os.path.join(self.folder, "published")
            live = dict(view.real.items())
            count = view.real.publish(target)
            with SnapshotMap(target, mode="readonly", verify=True) as made:
                found = dict(made.items())
                assert count >= len(found), self.say("publish")
                assert set(found.items()) <= set(live.items()), self.say("publish")
                forever = {
                    key
                    for key, change in self.publish(view.base, view.changes).items()
                    if not change[1] or change[1] > made._state.now
                }
                assert forever <= set(found), self.say("publish")
                assert made.metadata == view.real.metadata
            snapdisk.check(target)
            shutil.rmtree(target)
        else:
            view.real.close()
            self.private.remove(view)

    # ---- time -------------------------------------------------------------------------------------------------------

    @rule()
    def pause(self) -> None:
        """Until what expires soon has expired."""
        now = self.writer._state.now
        soon = [expires for _, expires in self.base.values() if now < expires < now + NS // 10]
        while soon and self.writer._state.now <= max(soon):
            time.sleep(0.001)

    # ---- always -----------------------------------------------------------------------------------------------------

    @invariant()
    def same(self) -> None:
        for handle in self.handles:
            self.compare(handle, self.base)
        for view in self.frozen[-2:] + self.private:
            self.compare(view.real, view.base, view.changes)

    @invariant()
    def sound(self) -> None:
        self.counter += 1
        if self.handles and self.counter % 3 == 0:
            found = snapdisk.check(self.path, self.say("files"), leftovers=True)
            for key, (value, expires) in found.entries.items():
                known = self.base.get(key.decode() if self.kind == "str" else key)
                assert expires or known == (value, 0), self.say(f"the files say {key!r} is {value!r:.40}")
            assert len(found.manifest.layers) <= 9, self.say("layers")


def short(pairs: Any) -> str:
    return str(
        [(key if len(key) < 20 else key[:20], value[:20] if value is not None else None) for key, value in pairs]
    )


@pytest.fixture(autouse=True)
def peer(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("mmapds._snapfiles.DELTA_SIZE", 16384)
    monkeypatch.setattr("mmapds._snapfiles.DELTA_BUCKETS", 16)
    with Peer(LIFE) as peer:
        SnapshotModel.peer = peer
        yield


TestSnapshotModel = SnapshotModel.TestCase
TestSnapshotModel.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
class TestSnapshotModelLonger(SnapshotModel.TestCase):  # type: ignore[misc]
    settings = settings(
        max_examples=1500, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
    )
