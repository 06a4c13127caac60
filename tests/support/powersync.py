"""Lives of a Synchronizer for the power-loss simulator; see powerlives.py."""

from __future__ import annotations

import random
from contextlib import ExitStack

from powerstage import Stage, killed, last_expected, life, recovery, wander
from victims import pattern

import mmapds
from mmapds import Synchronizer

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


@recovery("Synchronizer")
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


@wander("Synchronizer")
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
