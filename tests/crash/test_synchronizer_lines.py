"""Killed before each line of the package's Python code: creating, becoming the writer, growing, rotating, recovering.

The victim is killed before line 0, 1, 2, ... of what it runs, until it gets through. After each death the files are
what they were, or what they should become; a reader that was there goes on; the next process finishes without help.
(Rows 1, 7, 8 and 33, for what is policy; deaths inside the native transitions are in test_synchronizer_kill.py.)
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import syncfiles
from peers import Peer
from victims import number, pattern

from mmapds import Synchronizer


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "value")


@pytest.fixture
def zygote(prefix: str) -> Iterator[Peer]:
    with Peer("import victims", prefix=prefix) as peer:
        yield peer


def at_each_line(zygote: Peer, job: str, every: int, prepare: Callable[[], None], check: Callable[[str], None]) -> int:
    """Runs `job` (the name of a function in the zygote) until it is not killed any more; returns how many lines it has.
    Before every so-manieth line."""
    for line in range(0, 2000, every):
        prepare()
        status = zygote(f"victims.killed_at_line(line, {job})", line=line)
        assert status in (0, -signal.SIGKILL), f"line {line}: exit status {status}\n{zygote.stderr()}"
        check(f"killed before line {line}" if status else "not killed")
        if status == 0:
            return line
    raise AssertionError("2,000 lines are more than there can be")


def remove(prefix: str) -> None:
    for entry in os.scandir(os.path.dirname(prefix)):
        os.unlink(entry.path)


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_r07_creating_is_nothing_or_all(zygote: Peer, prefix: str, durability: str, every: int) -> None:
    zygote("def job(): Synchronizer(prefix, codec='raw', schema='v1', durability=durability)", durability=durability)

    def check(message: str) -> None:
        names = os.listdir(os.path.dirname(prefix))
        assert names in ([], ["value_sync"]), f"{message}: {names}"
        if names:
            with Synchronizer(prefix, mode="readonly", codec="raw", schema="v1", durability=durability) as s:  # type: ignore[arg-type]
                s.check()
                assert s.load(default=None) is None
        with Synchronizer(prefix, codec="raw", schema="v1", durability=durability) as s:  # type: ignore[arg-type]
            s.write_bytes(pattern(1))
            assert number(s.load()) == 1, message
            s.check()

    assert at_each_line(zygote, "job", every, lambda: remove(prefix), check) > 50


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_r01_the_first_write_of_all_is_nothing_or_all(zygote: Peer, prefix: str, durability: str, every: int) -> None:
    zygote("def job(): Synchronizer(prefix).write_bytes(victims.pattern(1))")

    def prepare() -> None:
        remove(prefix)
        Synchronizer(prefix, codec="raw", durability=durability).close()  # type: ignore[arg-type]

    def check(message: str) -> None:
        with Synchronizer(prefix) as s:
            s.check()
            found = s.load(default=None)
            assert s.version in (0, 1), message
            assert (found is None) == (s.version == 0), message
            assert found is None or number(found) == 1, message
            s.write_bytes(pattern(s.version + 1))
            assert number(s.load()) == s.version
            s.check()
        assert set(syncfiles.snapshot(prefix)) <= set(syncfiles.SUFFIXES), message

    assert at_each_line(zygote, "job", every, prepare, check) > 30


# Writes of a new writer over a history of versions: (its sizes, whether a live reader holds both old versions).
WRITES = {
    "in place": ([64, 64], False),
    "growing": ([9000, 90_000], False),
    "new inodes": ([64, 64], True),
    "new and larger inodes": ([9000, 90_000], True),
}


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", WRITES)
def test_r01_r33_a_writer_killed_at_each_line(
    zygote: Peer, prefix: str, kind: str, durability: str, every: int
) -> None:
    sizes, held = WRITES[kind]
    zygote(
        """
def job():
    s = Synchronizer(prefix)
    for size in sizes:
        s.write_bytes(victims.pattern(s.version + 1, size), grace=0.0)
    s.close()
""",
        sizes=sizes,
    )
    results = []
    with Synchronizer(prefix, codec="raw", durability=durability) as s:  # type: ignore[arg-type]
        for n in (1, 2):
            s.write_bytes(pattern(n))
            if held:
                results.append(s.read())
    with Synchronizer(prefix) as reader, Synchronizer(prefix, mode="readonly") as copying:
        before = 0

        def prepare() -> None:
            nonlocal before
            before = reader.version

        def check(message: str) -> None:
            message += f"; {before} before; {syncfiles.state(prefix)}"
            for handle in (reader, copying):
                assert handle.version - before in (0, 1, 2), message
                with handle.read() as r:
                    assert number(r.data) == r.version, message
            for n, r in enumerate(results, 1):
                assert number(r.data) == n, f"a live reader's version {n} was touched; {message}"
            with Synchronizer(prefix) as successor:
                successor.write_bytes(pattern(successor.version + 1), grace=0.0)
                for handle in (reader, copying):
                    with handle.read() as r:
                        assert number(r.data) == r.version == successor.version, message
                successor.check()
            assert sorted(syncfiles.snapshot(prefix)) == sorted(syncfiles.SUFFIXES), message

        assert at_each_line(zygote, "job", every, prepare, check) > 30
        for r in results:
            r.release()


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("damage", ["none", "newest torn", "newest and its header torn"])
def test_r08_a_recovery_killed_at_each_line_comes_to_the_same_result(
    zygote: Peer, prefix: str, damage: str, durability: str, every: int
) -> None:
    zygote(
        """
def job():
    s = Synchronizer(prefix)
    assert victims.number(s.load()) == expected
    s.close()
""",
        expected=7 if damage == "none" else 6,
    )
    with Synchronizer(prefix, codec="raw", durability=durability) as s:  # type: ignore[arg-type]
        for n in range(1, 8):
            s.write_bytes(pattern(n, 6000))
    if damage != "none":
        syncfiles.poke(syncfiles.data(prefix, 1), 8000, b"torn")
    if damage == "newest and its header torn":
        syncfiles.poke(syncfiles.data(prefix, 1), 0, bytes(512))
    syncfiles.poke(syncfiles.sync(prefix), syncfiles.IN_USE, b"\xff" * 128)
    syncfiles.poke(syncfiles.sync(prefix), syncfiles.SLOTS, b"\x01" * 16)
    before = syncfiles.snapshot(prefix)

    def prepare() -> None:
        remove(prefix)
        syncfiles.restore(prefix, before)  # other inodes: a copy, as after another boot
        syncfiles.other_boot(syncfiles.sync(prefix))

    def check(message: str) -> None:
        with Synchronizer(prefix, mode="readonly") as looking:
            assert number(looking.load()) == (7 if damage == "none" else 6), message
        with Synchronizer(prefix) as s:
            assert number(s.load()) == (7 if damage == "none" else 6), message
            assert len(syncfiles.slots_in_use(prefix)) <= 2, f"neither ours nor the victim's; {message}"
            for _ in range(2):
                s.write_bytes(pattern(s.version + 1, 6000), grace=0.0)
                assert number(s.load()) == s.version, message
            assert syncfiles.pins(prefix) == {}, message
            s.check()

    assert at_each_line(zygote, "job", every, prepare, check) > 50
