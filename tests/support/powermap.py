"""Lives of a SnapshotMap for the power-loss simulator; see powerlives.py."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

from powerstage import Stage, killed, last_expected, life, recovery, wander

import mmapds
from mmapds import SnapshotMap

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


@recovery("SnapshotMap")
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


@wander("SnapshotMap")
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
