"""Power loss between any two syncs of a snapshot map, with any mixture of sectors, sizes and names (rows 6, 7, 34)."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import snapdisk
from peers import PeerDiedError
from powerloss import Call, Disk, WatchedPeer

from mmapds import CorruptionError, IncompatibleFormat, MappingLost, MmapdsError, SnapshotMap

SETUP = """
import snapdisk
snapdisk.tiny(16384, 16)
"""


class Power:
    """Runs a writer on a watched folder; before and after each call that matters, cuts the power in many ways."""

    def __init__(self, folder: Path, durability: str) -> None:
        self.folder = str(folder / "running")
        self.found = str(folder / "found")
        self.durability = durability
        os.mkdir(self.folder)
        self.disk = Disk(self.folder)
        self.choose = random.Random(6)
        self.history: list[dict[str, Any] | None] = [None]  # what the map had after each step; None: there is none
        self.returned = 0  # the step that has returned last, in `history`
        self.begun = 0
        self.at_most = 6
        self.cases = 0
        self.calls: list[str] = []
        self.outcomes: dict[Any, int] = {}

    def on_call(self, call: Call) -> int:
        self.calls.append(f"{call.name} {os.path.basename(call.path)}")
        self.disk.look(call)
        self.cut()  # in the middle of the call
        self.disk.done(call)
        self.cut()  # just after it
        return 0

    def cut(self) -> None:
        for files in self.disk.losses(self.choose, self.at_most):
            self.cases += 1
            outcome = self.after(files)
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def after(self, files: dict[str, bytes]) -> Any:
        """What is there when the machine runs again: the number of a step, or how it was refused."""
        for name in os.listdir(self.found) if os.path.isdir(self.found) else []:
            os.unlink(os.path.join(self.found, name))
        os.makedirs(self.found, exist_ok=True)
        for name, content in files.items():
            Path(self.found, name).write_bytes(content)
        write_too = self.cases % 20 == 0
        outcome: Any
        reason = ""
        try:
            with SnapshotMap(self.found, mode="shared" if write_too else "readonly", codec="raw") as m:
                values = dict(m)
                assert len(m) == len(values), self.describe(f"{len(m)} entries, {values}")
                outcome = next((n for n, step in reversed(list(enumerate(self.history))) if step == values), "mixed")
                if not values and outcome == "mixed":
                    outcome = "empty"  # made, and nothing was committed yet
                if write_too:
                    with m.transaction() as t:
                        t["after"] = b"after"
                    m.compact()
                    assert dict(m) == values | {"after": b"after"}
                    snapdisk.check(self.found, self.describe("written to, afterwards"))
        except FileNotFoundError as error:
            outcome, reason = "absent", str(error)
        except (CorruptionError, IncompatibleFormat, MappingLost) as error:  # lost: no sentinel at the end of a file
            outcome, reason = "refused", str(error)
        except (MmapdsError, OSError) as error:
            outcome, reason = type(error).__name__, str(error)
        if self.durability == "power":
            allowed: set[Any] = set(range(self.returned, self.begun + 1)) - {0}
            if not self.returned:
                allowed |= {"absent", "empty", "refused"}
            assert outcome in allowed, self.describe(f"found {outcome} {reason}, allowed {allowed}")
        else:
            allowed = set(range(1, self.begun + 1)) | {"absent", "refused", "empty"}
            assert outcome in allowed, self.describe(f"found {outcome} {reason}")
        return outcome

    def describe(self, what: object) -> str:
        return f"{what}; {self.returned} returned, {self.begun} begun; calls so far: {self.calls[-14:]}"

    def step(self, peer: WatchedPeer, code: str, after: dict[str, Any], **names: Any) -> None:
        self.history.append(after)
        self.begun = len(self.history) - 1
        peer.watch(code, self.on_call, **names)
        self.disk.look()
        self.returned = self.begun
        self.cut()

    def commit(self, peer: WatchedPeer, **changes: Any) -> None:
        after = {**(self.history[-1] or {}), **changes}
        after = {key: value for key, value in after.items() if value is not None}
        self.step(
            peer,
            """
with m.transaction() as t:
    for key, value in changes.items():
        if value is None: del t[key]
        else: t[key] = value
""",
            after,
            changes=changes,
        )


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a disk: durability 'power' is refused on tmpfs."""
    with tempfile.TemporaryDirectory(prefix="mmapds-power-", dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmapds._snapfiles.DELTA_SIZE", 16384)
    monkeypatch.setattr("mmapds._snapfiles.DELTA_BUCKETS", 16)
    monkeypatch.setattr("mmapds.files.boot_id", lambda: b"another boot now")  # the writers live in the boot before


def life(power: Power, rounds: int) -> None:
    """Commits small and large, deletions, folds, a compaction, another writer, and a build over it."""
    for _ in range(rounds):
        with WatchedPeer(SETUP) as peer:
            peer.watch(
                "m = mmapds.SnapshotMap(path, codec='raw', durability=durability)",
                power.on_call,
                path=power.folder,
                durability=power.durability,
            )
            power.commit(peer, a=b"1", b=b"2")
            power.commit(peer, a=b"3" * 600)
            power.commit(peer, b=None, c=b"4" * 2500)
            for n in range(3):
                power.commit(peer, d=b"%d" % n * 2500)  # the third one folds
            power.commit(peer, e=b"5" * 9000)  # a layer at once
            power.commit(peer, f=b"6")
            power.step(peer, "m.compact()", power.history[-1] or {})
            power.commit(peer, a=None, f=b"7")
        with WatchedPeer(SETUP) as peer:
            code = "m = mmapds.SnapshotMap(path)"
            peer.watch(code, power.on_call, path=power.folder)
            power.commit(peer, g=b"8")
            power.step(
                peer,
                "mmapds.SnapshotMap.build(path, {'a': b'9', 'h': b'10'})",
                {"a": b"9", "h": b"10"},
                path=power.folder,
            )
            power.commit(peer, h=None, i=b"11")


@pytest.mark.parametrize("rounds", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_r06_r07_r34_power_loss_gives_the_last_commit_that_returned_or_a_newer_one(folder: Path, rounds: int) -> None:
    power = Power(folder, "power")
    power.at_most = 1 if rounds == 1 else 40
    life(power, rounds)
    found = {outcome for outcome in power.outcomes if isinstance(outcome, int)}
    assert len(found) >= len(power.history) - 3, power.outcomes
    assert power.outcomes.keys() >= {"absent"}, power.outcomes
    assert "mixed" not in power.outcomes
    assert power.cases > 300, power.cases


@pytest.mark.parametrize("rounds", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_r06_r34_process_durability_gives_a_version_that_verifies_or_a_clear_error(folder: Path, rounds: int) -> None:
    power = Power(folder, "process")
    power.at_most = 1 if rounds == 1 else 40
    life(power, rounds)
    found = {outcome for outcome in power.outcomes if isinstance(outcome, int)}
    assert len(found) >= 4, power.outcomes
    assert sum(power.outcomes[n] for n in found) > power.cases // 4, power.outcomes


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_r06_r33_a_writer_killed_before_each_call_then_power_loss(folder: Path, every: int) -> None:
    """What was published and is not durable yet is made so by the successor, before it goes on."""
    for killed in range(1, 100, every):
        here = folder / f"killed-{killed}"
        here.mkdir()
        power = Power(here, "power")
        power.at_most = 2
        with WatchedPeer(SETUP) as peer:
            cut, power.cut = power.cut, lambda: None  # type: ignore[method-assign]  # what leads here is tested above
            peer.watch(
                "m = mmapds.SnapshotMap(path, codec='raw', durability='power')", power.on_call, path=power.folder
            )
            power.commit(peer, a=b"1", b=b"2" * 2000)
            power.commit(peer, a=b"3", b=b"2" * 2500)
            power.cut = cut  # type: ignore[method-assign]
            count = killed
            died = False

            def on_call(call: Call, peer: WatchedPeer = peer, power: Power = power) -> int:
                nonlocal count, died
                if count == 0:
                    died = True
                    power.disk.look(call)
                    power.cut()
                    peer.process.kill()
                    peer.process.wait()
                    return 0
                count -= 1
                return power.on_call(call)

            after = {"a": b"4", "b": b"5" * 6000}
            power.history.append(after)
            power.begun = len(power.history) - 1
            try:
                peer.watch("with m.transaction() as t: t.update(after)", on_call, after=after)
            except (PeerDiedError, OSError):
                assert died
            else:
                power.returned = power.begun
            power.disk.look()
            power.cut()
        with WatchedPeer(SETUP) as successor:
            successor.watch("m = mmapds.SnapshotMap(path)", power.on_call, path=power.folder)
            with SnapshotMap(power.folder, mode="readonly") as looking:
                visible = dict(looking)
            assert visible in (power.history[-2], power.history[-1]), power.describe(visible)
            power.history.append(visible | {"c": b"6"})
            power.begun = len(power.history) - 1
            successor.watch("with m.transaction() as t: t['c'] = b'6'", power.on_call)
            power.disk.look()
            power.returned = power.begun
            power.cut()
        if not died:
            break
    assert killed >= 4, "a fold makes more calls"
