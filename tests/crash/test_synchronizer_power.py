"""Power loss between any two syncs, with every mixture of old and new sectors, sizes and names (rows 6, 7, 12)."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import syncfiles
from peers import PeerDiedError, PeerError
from powerloss import Call, Disk, WatchedPeer
from victims import number, pattern

from mmapds import CorruptionError, DurabilityFailed, IncompatibleFormat, NotInitialised, Synchronizer

SIZE = 1400  # three sectors


class Power:
    """Runs writers on a watched folder; before each call that matters, cuts the power in many ways and looks."""

    def __init__(self, folder: Path, durability: str) -> None:
        self.folder = folder / "running"
        self.folder.mkdir()
        self.found = folder / "found"
        self.found.mkdir()
        self.prefix = str(self.folder / "value")
        self.durability = durability
        self.disk = Disk(str(self.folder))
        self.choose = random.Random(6)
        self.returned = 0  # the version of the last write that has returned
        self.begun = 0  # the version that is being written
        self.unacknowledged: set[Any] = set()  # others that may be found: their write has not returned
        self.cutting = True
        self.at_most = 40  # mixtures at each cut, beside the extremes
        self.cases = 0
        self.calls: list[str] = []
        self.outcomes: dict[Any, int] = {}

    def on_call(self, call: Call, kill: WatchedPeer | None = None) -> int:
        self.calls.append(call.name)
        self.disk.look(call)
        self.cut()  # in the middle of the call
        if kill is not None:
            kill.process.kill()
            kill.process.wait()
            return 0
        self.disk.done(call)
        self.cut()  # just after it
        return 0

    def cut(self) -> None:
        if not self.cutting:
            return
        for files in self.disk.losses(self.choose, self.at_most):
            self.cases += 1
            outcome = self.after(files)
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def after(self, files: dict[str, bytes]) -> Any:
        """What is there when the machine runs again."""
        prefix, reason = str(self.found / "value"), ""
        syncfiles.restore(prefix, {name.removeprefix("value"): content for name, content in files.items()})
        sync = syncfiles.sync(prefix)
        if os.path.exists(sync) and os.path.getsize(sync) >= 4096:
            syncfiles.other_boot(sync)
        write_too = self.cases % 25 == 0
        try:
            with Synchronizer(prefix, mode="shared" if write_too else "readonly", verify=False) as s:
                try:
                    with s.read() as r:
                        outcome: Any = number(r.data)
                        assert outcome == r.version, f"{outcome} was read as version {r.version}; {self.describe()}"
                except NotInitialised:
                    outcome = 0
                if write_too:
                    s.write_bytes(pattern(s.version + 1, SIZE))
                    s.write_bytes(pattern(s.version + 1, SIZE))
                    assert number(s.load()) == s.version
                    s.check()
        except FileNotFoundError:
            outcome = "absent"
        except (CorruptionError, IncompatibleFormat) as error:
            outcome, reason = "refused", str(error)
        if self.durability == "power":
            # A first record of which half the words are on the disk cannot be told from damage.
            allowed = {self.returned, self.begun} | self.unacknowledged | (set() if self.returned else {"refused"})
            allowed |= set() if self.begun else {"absent"}
            assert outcome in allowed, f"found {outcome} {reason}, allowed {allowed}; {self.describe()}"
        return outcome

    def describe(self) -> str:
        return f"{self.returned} has returned, {self.begun} has begun; calls so far: {' '.join(self.calls[-12:])}"

    def write(self, peer: WatchedPeer, size: int = SIZE) -> bool:
        self.begun = self.returned + 1
        code = "s.write_bytes(victims.pattern(n, size), 0.0).reset"
        reset = peer.watch(code, self.on_call, n=self.begun, size=size)
        self.returned = self.begun
        self.disk.look()
        self.cut()
        return bool(reset)

    def writer(self) -> WatchedPeer:
        peer = WatchedPeer("import victims")
        code = "s = Synchronizer(prefix, codec='raw', durability=durability)"
        peer.watch(code, self.on_call, prefix=self.prefix, durability=self.durability)
        return peer


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a disk: durability 'power' is refused on tmpfs."""
    with tempfile.TemporaryDirectory(prefix="mmapds-power-", dir="/var/tmp") as name:
        yield Path(name)


@pytest.mark.parametrize("at_most", [20, pytest.param(40, marks=pytest.mark.slow)])
def test_r06_r07_power_loss_gives_the_last_version_that_returned_or_a_newer_one(folder: Path, at_most: int) -> None:
    power = Power(folder, "power")
    power.at_most = at_most
    with power.writer() as peer:
        for _ in range(4):
            assert not power.write(peer)
        power.write(peer, 5 * SIZE)  # grows
        power.write(peer, 5 * SIZE)
        with Synchronizer(power.prefix) as reader, reader.read(), reader.read():
            assert [power.write(peer), power.write(peer), power.write(peer)] == [False, True, False]
            assert power.write(peer, 9 * SIZE), "a new inode, and a larger one"
        assert not power.write(peer)
        for _ in range(3):
            power.write(peer, 70_000)  # what is large takes another way to the file
        with Synchronizer(power.prefix) as reader, reader.read():
            assert [power.write(peer, 70_000), power.write(peer, 70_000)] == [False, True]
    with power.writer() as successor:
        power.write(successor)
        power.write(successor)
    assert power.outcomes.keys() >= {"absent", *range(power.returned + 1)}, power.outcomes
    assert power.cases > 20 * at_most, power.cases
    assert {"msync", "fsync", "linkat", "rename"} <= set(power.calls)


@pytest.mark.parametrize("at_most", [6, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("held", [False, True])
def test_r06_r33_a_writer_killed_before_each_call_then_power_loss(folder: Path, held: bool, at_most: int) -> None:
    """What was published and is not durable yet must be made so by the successor, before it touches the other file."""
    for killed in itertools.count():
        here = folder / f"killed-{killed}"
        here.mkdir()
        power = Power(here, "power")
        power.at_most = at_most
        power.cutting = False  # what leads to where it begins is in the test above
        with power.writer() as peer:
            for _ in range(3):
                power.write(peer)
            with Synchronizer(power.prefix) as reader:
                results = [reader.read()] if held else []
                if held:
                    power.write(peer)
                power.cutting = True
                died = write_until(power, peer, killed)
                with contextlib.nullcontext() if not died else power.writer() as successor:
                    if successor is not None:
                        visible = syncfiles.sequence(power.prefix)
                        power.unacknowledged = {power.returned, visible}
                        power.returned = visible
                        power.write(successor)
                        power.unacknowledged = set()
                        power.write(successor)
                for r in results:
                    assert number(r.data) == 3
                    r.release()
        if not died:
            break
    assert killed >= 2, "a write makes two calls at least"


def write_until(power: Power, peer: WatchedPeer, count: int) -> bool:
    """Begins a write, kills the writer before call number `count` of it, cuts the power; False if it got through."""
    died = False

    def on_call(call: Call) -> int:
        nonlocal count, died
        died = count == 0
        count -= 1
        return power.on_call(call, peer if died else None)

    power.begun = power.returned + 1
    try:
        peer.watch("s.write_bytes(victims.pattern(n, 1400), 0.0).reset", on_call, n=power.begun)
    except (PeerDiedError, OSError):
        assert died
    power.disk.look()
    power.cut()
    return died


def test_r06_process_durability_gives_a_version_that_verifies_or_a_clear_error(folder: Path) -> None:
    power = Power(folder, "process")
    with power.writer() as peer:
        for size in (SIZE, SIZE, SIZE, 5 * SIZE, 5 * SIZE, 2 * SIZE):
            power.write(peer, size)
    versions = [outcome for outcome in power.outcomes if isinstance(outcome, int) and outcome]
    assert len(versions) >= 4, power.outcomes
    assert power.outcomes["refused"] > 100, power.outcomes
    assert "msync" not in power.calls
    assert "fsync" not in power.calls, "durability 'process' never syncs, not at creation either"


# ---- a sync that fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("failure", [errno.EIO, errno.ENOSPC])
def test_r12_whichever_sync_fails_nothing_is_trusted_until_a_write_has_succeeded(
    folder: Path, held: bool, failure: int
) -> None:
    """The first, second, ... sync of one write fails, and so do all later ones until the disk is well again."""
    prefix = str(folder / "value")
    with Synchronizer(prefix, codec="raw", durability="power") as s:
        s.write_bytes(pattern(1, SIZE))
    first = 0
    while fail_from(prefix, held, failure, first):
        first += 1
        assert first < 100
    assert first >= 2, "a write makes two syncs at least"


WRITE = "s.write_bytes(victims.pattern(s.version + 1, 1400), 0.0).size"


def fail_from(prefix: str, held: bool, failure: int, first: int) -> bool:
    """One write whose syncs fail from number `first` on; whether it has so many."""
    count = 0

    def fail(call: Call) -> int:
        nonlocal count
        if call.name not in ("msync", "fsync", "fdatasync"):
            return 0
        count += 1
        return failure if count > first else 0

    with (
        WatchedPeer("import victims; s = Synchronizer(prefix); s.version", prefix=prefix) as peer,
        Synchronizer(prefix) as reader,
        Synchronizer(prefix, mode="readonly") as copying,
    ):
        for _ in range(2):
            peer.watch(WRITE, lambda call: 0)
        results = [reader.read()] if held else []
        if held:
            peer.watch(WRITE, lambda call: 0)
        version = reader.version
        outcome = attempt(peer, fail)
        if outcome:
            for retry in range(3):
                message = f"sync {first}: {outcome}; retry {retry}"
                if syncfiles.word(syncfiles.sync(prefix), syncfiles.FAILED):
                    assert_distrusted(prefix, reader, copying)
                else:
                    assert "DurabilityFailed" not in outcome, f"others may not trust it either: {message}"
                    assert reader.version == version, f"published, and not durable: {message}"
                outcome = attempt(peer, fail)
                assert outcome, f"a retry on a failing disk counted as success: {message}"
        else:
            assert count <= first, f"sync {first} failed, and nobody noticed"
        peer.watch("s.write_bytes(b'well again').size", lambda call: 0)
        for handle in (reader, copying):
            assert bytes(handle.load()) == b"well again"
        assert syncfiles.word(syncfiles.sync(prefix), syncfiles.FAILED) == 0
        for r in results:
            assert number(r.data) == version - 1
            r.release()
    return bool(outcome)


def attempt(peer: WatchedPeer, fail: Callable[[Call], int]) -> str:
    """A write; how it failed, or nothing."""
    try:
        peer.watch(WRITE, fail)
    except PeerError as error:
        assert error.name in ("DurabilityFailed", "OSError"), error  # noqa: PT017  of another process
        return str(error)
    return ""


def assert_distrusted(prefix: str, *handles: Synchronizer) -> None:
    for handle in handles:
        for call in (handle.read, handle.load):
            with pytest.raises(DurabilityFailed):
                call()
        with pytest.raises(DurabilityFailed):
            handle.wait(timeout=0)
    with pytest.raises(DurabilityFailed):
        Synchronizer(prefix, mode="private")
