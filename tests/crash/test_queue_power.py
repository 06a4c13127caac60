"""Power loss between any two syncs of a queue, with every mixture of old and new sectors (rows 6, 7 and 8)."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import queuefiles
from powerloss import Call, Disk, WatchedPeer
from queueitems import drain

from mmapds import CorruptionError, IncompatibleFormat, Queue

Items = list[bytes]


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a disk: durability 'power' is refused on tmpfs."""
    with tempfile.TemporaryDirectory(prefix="mmapds-power-", dir="/var/tmp") as name:
        yield Path(name)


def short(items: Iterable[bytes]) -> list[str]:
    return sorted(item[:5].decode() for item in items)


class Power:
    """Runs processes on a watched folder; before and after each call, cuts the power in many ways and looks."""

    def __init__(self, folder: Path, durability: str = "power") -> None:
        self.folder = folder / "queue"
        self.folder.mkdir()
        self.path = str(self.folder)
        self.found = str(folder / "found")
        self.durability = durability
        self.disk = Disk(self.path)
        self.choose = random.Random(6)
        self.order: Items = []  # every item that was ever about to be put
        self.put: set[bytes] = set()  # their put has returned
        self.done: set[bytes] = set()  # their get or ack has returned
        self.ending: set[bytes] = set()  # what may be gone, or not
        self.created = False
        self.cases = self.taken = self.refused = 0
        self.calls: list[str] = []
        self.outcomes: set[Any] = set()
        self.every = 1

    def on_call(self, call: Call) -> int:
        self.calls.append(f"{call.name} {call.path.rpartition('/')[2][-17:]}")
        self.disk.look(call)
        self.cut()  # in the middle of the call
        self.disk.done(call)
        self.cut()  # just after it
        return 0

    def cut(self, at_most: int = 3) -> None:
        self.taken += 1
        if self.created and self.taken % self.every:
            return
        for files in self.disk.losses(self.choose, at_most):
            self.cases += 1
            self.look(files)

    def look(self, files: dict[str, bytes]) -> None:
        """What is there when the machine runs again."""
        if "meta" not in files:
            assert not self.created, f"the queue is gone; {self.describe()}"
            self.outcomes.add("absent")
            return
        queuefiles.restore(self.found, {name: data for name, data in files.items() if not name.startswith(".")})
        try:
            with Queue(self.found, mode="readonly") as q:
                seen = list(q)
            with Queue(self.found) as q:
                message = f"{q.stats()}; {self.describe()}"
                items = drain(q)
                assert items == seen, f"a reader came to {short(seen)}, and here are {short(items)}; {message}"
                q.put(b"next")
                assert q.get() == b"next", message
        except (CorruptionError, IncompatibleFormat):
            assert self.durability == "process", self.describe()
            self.refused += 1
            return
        self.outcomes.add(len(items))
        places = [self.order.index(item) for item in items]
        assert places == sorted(set(places)), f"{short(items)}: not in order, or something twice; {message}"
        if self.durability == "power":
            lost = self.put - self.done - self.ending - set(items)
            assert not lost, f"{short(lost)} had been put; {message}"
            again = self.done & set(items)
            assert not again, f"{short(again)} was done; {message}"

    def describe(self) -> str:
        return (
            f"{len(self.put)} put, {len(self.done)} done, {short(self.ending)} ending; calls so far: {self.calls[-12:]}"
        )

    def open(self) -> WatchedPeer:
        peer = WatchedPeer()
        peer.watch(
            f"q = mmapds.Queue(path, codec='raw', segment_size=8192, durability={self.durability!r}); claims = {{}}",
            self.on_call, path=self.path,
        )  # fmt: skip
        self.created = self.durability == "power"
        return peer

    def puts(self, peer: WatchedPeer, *items: bytes) -> None:
        self.order += items
        peer.watch("q.put(items[0]) if len(items) == 1 else q.put_many(items)", self.on_call, items=list(items))
        self.put |= set(items)
        self.disk.look()
        self.cut()

    def ends(self, peer: WatchedPeer, code: str, *items: bytes) -> None:
        self.ending = set(items)
        found = peer.watch(code, self.on_call)
        assert found == (list(items) if len(items) > 1 else items[0]), found
        self.done |= self.ending
        self.ending = set()
        self.disk.look()
        self.cut()

    def does(self, peer: WatchedPeer, code: str) -> None:
        peer.watch(code, self.on_call)
        self.disk.look()
        self.cut()


def item(n: int) -> bytes:
    return b"%04d" % n + bytes(n * 97 % 900)


def live(power: Power, n: int) -> None:
    """A life, over several segments."""
    numbers = iter(range(3 * n))
    with power.open() as peer, power.open() as other:
        for k in range(n):
            power.puts(peer, item(3 * k))
            power.puts(other, item(3 * k + 1), item(3 * k + 2))
            if k % 3 == 1:
                power.ends(other, "q.get()", item(next(numbers)))
                power.does(peer, "c = q.claim(0)")
                claimed = item(next(numbers))
                if k % 2:
                    power.ends(other, "q.get()", item(next(numbers)))
                else:
                    power.does(other, "q.claim(0).nack(0)")
                power.ends(peer, "c.ack(); c.item", claimed)


def test_r06_r07_what_had_returned_is_there(folder: Path) -> None:
    power = Power(folder)
    power.every = 8
    live(power, 5)
    assert power.outcomes >= {"absent", 0}, power.outcomes
    assert power.cases > 60, power.cases
    names = {call.split()[0] for call in power.calls}
    assert {"msync", "fsync", "linkat"} <= names | {"fdatasync"}, names


@pytest.mark.slow
def test_r06_r07_what_had_returned_is_there_at_length(folder: Path) -> None:
    power = Power(folder)
    live(power, 16)
    assert power.cases > 2000, power.cases


def test_r06_more_than_a_segment_and_delays(folder: Path) -> None:
    power = Power(folder)
    power.every = 10
    with power.open() as peer:
        power.puts(peer, b"first")
        power.puts(peer, b"large" + bytes(9000))
        power.puts(peer, b"last")
        power.ends(peer, "q.get()", b"first")
        power.ends(peer, "q.get()", b"large" + bytes(9000))
        power.puts(peer, b"again")
        power.ends(peer, "q.get_many(2)", b"last", b"again")
        power.puts(peer, b"after")
    assert power.cases > 15, power.cases


def test_r06_process_durability_opens_or_says_why_and_is_never_wrong(folder: Path) -> None:
    """Without a sync any old sector may be found: what is there was put, and is whole and in order."""
    power = Power(folder, "process")
    with power.open() as peer:
        for n in range(14):
            power.order.append(item(n))
            peer.watch("q.put(data)", lambda call: 0, data=item(n))
            power.disk.look()
            power.cut(20)
            if n % 3 == 2:
                peer.watch("q.get()", lambda call: 0)
                power.disk.look()
                power.cut(20)
    assert power.cases - power.refused > 100, (power.cases, power.refused)
    assert len(power.outcomes) > 3


def test_r08_a_power_loss_during_recovery(folder: Path) -> None:
    """Recovery after a power loss in the middle of a recovery comes to the same."""
    path = str(folder / "before")
    with Queue(path, codec="raw", segment_size=8192, durability="power") as q:
        q.put_many([item(n) for n in range(40)])
        for n in range(10):
            assert q.get() == item(n)
        claims = q.claim_many(5)
        claims[0].ack()
        claims[1].nack(0)
        expected = [item(n) for n in range(11, 40)]
        content = queuefiles.content(path)
    power = Power(folder)
    queuefiles.restore(power.path, content)
    queuefiles.other_boot(power.path)
    power.disk = Disk(power.path)
    power.disk.look()
    for inode in power.disk._inodes.values():  # all of it is on the disk
        inode.synced(0, len(inode.contents[-1]))
    power.disk._names = power.disk._names[-1:]
    power.every = 5
    power.order, power.put, power.created = expected, set(expected), True
    with WatchedPeer() as peer:
        peer.watch("q = mmapds.Queue(path)", power.on_call, path=power.path)
        power.disk.look()
        power.cut()
        power.ends(peer, "q.get()", expected[0])
    assert power.cases > 10, power.cases
    assert power.outcomes <= {len(expected), len(expected) - 1}
