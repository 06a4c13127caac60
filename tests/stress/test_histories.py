"""Histories of processes that are killed all the while, on each structure, and what a checker says to them.

A few seconds here, minutes with the marker `stress`. The checkers themselves are checked in
``test_history_checkers.py``; everything at once is the soak, ``soak.py``.
"""

from __future__ import annotations

import copy
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import histories as h
import pytest
import queuehistory as qh
import scenes
from fleet import Fleet
from histories import HistoryError, Op

import mmapds

# ---- real processes -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[str]:
    """In memory, but for who waits for a disk."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="mmapds-histories-", dir=memory) as folder:
        yield folder


def run(folder: str, kind: type[scenes.Scene], windows: int, kills: int, seed: int) -> tuple[scenes.Scene, Fleet]:
    """Works until so many were killed in each window; checks each, and once more when all are dead."""
    scene = kind(folder)
    told = f"seed {seed}, {kind.__name__}"
    with Fleet(folder, scene.roles, seed, pace=0.5) as fleet:
        fleet.start_all()
        for window in range(windows):
            limit = (window + 1) * kills
            fleet.harass((0.005, 0.05), lambda limit=limit: fleet.kills.total() >= limit)
            with fleet.paused() as ops:
                state = scene.capture()
                assert scene.verify() == [], told
            scene.check(ops.get(scene.name, []), state, fleet.killed)
        for process in list(fleet.running):
            fleet.kill(process)
        scene.check(fleet.ops.get(scene.name, []), scene.capture(), fleet.killed)
        if isinstance(scene, scenes.QueueScene):
            scene.drain()
        assert scene.verify() == [], told
    print(f"{told}: {scene.ops} operations, {scene.unknown} unknown, {dict(fleet.kills)}")
    return scene, fleet


IN_MEMORY = (scenes.SyncScene, scenes.CrateScene, scenes.CountersScene, scenes.QueueScene, scenes.MapScene)


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_r01_r02_r03_histories_of_processes_that_are_killed(folder: str, kind: type[scenes.Scene]) -> None:
    scene, fleet = run(folder, kind, 2, 20, 1)
    assert scene.ops > 300, scene.ops
    assert fleet.kills.total() >= 40, fleet.kills


def test_r02_r03_histories_of_a_queue_with_durability_power(tmp_path: Path) -> None:
    scene, _ = run(str(tmp_path), scenes.PowerQueueScene, 2, 10, 1)
    assert scene.ops > 20, scene.ops


@pytest.mark.stress
@pytest.mark.parametrize("kind", IN_MEMORY)
@pytest.mark.parametrize("seed", range(2, 5))
def test_r01_r02_r03_long_histories(folder: str, kind: type[scenes.Scene], seed: int) -> None:
    scene, _ = run(folder, kind, 10, 150, seed)
    assert scene.unknown > 100, scene.unknown


# ---- recorded histories, altered in one place -----------------------------------------------------------------------


def altered_sync(ops: list[Op], choose: random.Random) -> Iterator[list[Op]]:
    """A read that is late by one version; a write that is forgotten; a value that is not whole."""
    writes = sorted((o for o in ops if o.kind == h.WRITE and o.known and o.d > 0), key=lambda o: o.d)
    tokens = {o.d: o.a for o in writes}
    for read in sorted((o for o in ops if o.kind == h.READ and o.d - 1 in tokens), key=lambda o: o.begin):
        if any(o.d == read.d and o.end < read.begin for o in writes):
            yield [read._replace(d=read.d - 1, a=tokens[read.d - 1]) if o is read else o for o in ops]
            yield [read._replace(e=1) if o is read else o for o in ops]
            break
    else:
        raise AssertionError("nobody read what had been written")
    yield [o for o in ops if o is not writes[len(writes) // 2]]


def altered_counters(ops: list[Op], choose: random.Random) -> Iterator[list[Op]]:
    """An addition that returned one more; that is forgotten; that happened twice; an exchange with another result."""
    for kind in (h.ADD, h.RESERVE, h.EXCHANGE_IF):
        one = choose.choice([o for o in ops if o.kind == kind and o.known and (kind != h.ADD or o.a < 4)])
        yield [one._replace(d=1 - one.d if kind == h.EXCHANGE_IF else one.d + 1) if o is one else o for o in ops]
        if kind != h.EXCHANGE_IF:
            yield [o for o in ops if o is not one]
            yield [*ops, one]


def altered_queue(ops: list[Op], choose: random.Random) -> Iterator[list[Op]]:
    """Gets that are forgotten; an item that comes twice; items in the reverse order; acks that are forgotten.

    Not one only: that may be what a process has done that was killed in it, or an item that had come back.
    """
    taken = sorted((o for o in ops if o.kind == qh.TAKE and o.content), key=lambda o: o.begin)
    one = choose.choice(taken)
    half = set(map(id, taken[::2]))
    yield [o for o in ops if id(o) not in half]
    yield [one._replace(content=one.content * 2) if o is one else o for o in ops]
    producer, numbers = Counter(o.content[0][0] for o in taken).most_common(1)[0]
    own = [o for o in taken if o.content[0][0] == producer]
    assert numbers > 20, "too little to swap"
    backwards = {id(o): other.content for o, other in zip(own, reversed(own), strict=True)}
    yield [o._replace(content=backwards.get(id(o), o.content)) for o in ops]
    leased = {o.process for o in ops if o.kind == qh.CLAIM and o.b}
    acks = [o for o in ops if o.kind == qh.ACK and o.known and o.d and o.process not in leased]
    half = set(map(id, acks[::2]))
    yield [o for o in ops if id(o) not in half]


def altered_map(ops: list[Op], choose: random.Random) -> Iterator[list[Op]]:
    """A lookup that is late by one commit; a commit that is forgotten."""
    writes = sorted((o for o in ops if o.kind == h.WRITE and o.known and o.d > 0), key=lambda o: o.d)
    for read in sorted((o for o in ops if o.kind == h.READ), key=lambda o: o.begin):
        if any(o.d == read.d and o.end < read.begin for o in writes):
            yield [read._replace(d=read.d - 1, a=read.d - 1) if o is read else o for o in ops]
            break
    else:
        raise AssertionError("nobody read what had been committed")
    yield [o for o in ops if o is not writes[len(writes) // 2]]


@pytest.mark.parametrize(
    ("kind", "alter"),
    [
        (scenes.SyncScene, altered_sync),
        (scenes.CountersScene, altered_counters),
        (scenes.QueueScene, altered_queue),
        (scenes.MapScene, altered_map),
    ],
)
def test_a_recorded_history_altered_in_one_place_is_refused(folder: str, kind: type[scenes.Scene], alter: Any) -> None:
    """The whole way, from processes to the checker, has teeth."""
    scene = kind(folder)
    with Fleet(folder, scene.roles, 7) as fleet:
        fleet.start_all()
        fleet.harass((0.05, 0.1), lambda: fleet.kills.total() >= 8)
        with fleet.paused() as ops:
            state = scene.capture()
    history = ops[scene.name]
    altered = list(alter(history, random.Random(3)))
    for number, other in enumerate(altered):
        before = copy.deepcopy(scene)
        try:
            before.check(other, state, fleet.killed)
        except HistoryError:
            continue
        raise AssertionError(f"alteration {number} was accepted: {alter.__doc__}")
    scene.check(history, state, fleet.killed)
    assert len(altered) > 1


# ---- what the histories have found ----------------------------------------------------------------------------------


def test_a_copying_reader_that_is_held_up_is_not_told_that_its_file_is_gone(tmp_path: Path) -> None:
    """Between its second look at the version and the end of its read, two writes make the file grow and write over the
    place where the end of its mapping was. Found by the soak: MappingLost, and nothing was cut."""
    prefix = str(tmp_path / "value")
    with mmapds.Synchronizer(prefix, codec="raw") as writer:
        writer.write_bytes(b"1" * 8)
        writer.write_bytes(b"2" * 8)

        class HeldUp(mmapds.Synchronizer):
            looks = 0

            def _refresh(self) -> None:  # the copy calls it at its beginning, and after its second look
                self.looks += 1
                if self.looks == 2:
                    writer.write_bytes(b"3" * 8)
                    writer.write_bytes(b"4" * 20_000)
                super()._refresh()

        with HeldUp(prefix, mode="readonly") as reader:
            assert bytes(reader.read().data) == b"2" * 8
            assert reader.looks == 2, "nobody was held up"
            assert bytes(reader.read().data) == b"4" * 20_000
