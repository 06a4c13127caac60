"""Creating and recovering counters, killed before each line of the package's code and each call and store (rows 7, 8).

After each death the file is absent or complete; a reader, and the next process, find what they should, without help.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import counterfiles
import pytest
from peers import Peer

from mmapds import Counters


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "counters")


@pytest.fixture
def zygote(path: str) -> Iterator[Peer]:
    with Peer("import stepping, victims", path=path) as peer:
        yield peer


def at_each_line(zygote: Peer, step: int, prepare: Callable[[], None], check: Callable[[str], None]) -> int:
    """Runs `job` until it is not killed any more; returns how many lines it has."""
    for line in range(0, 2000, step):
        prepare()
        status = zygote("victims.killed_at_line(line, job)", line=line)
        assert status in (0, -signal.SIGKILL), f"line {line}: exit status {status}\n{zygote.stderr()}"
        check(f"killed before line {line}" if status else "not killed")
        if status == 0:
            return line
    raise AssertionError("2,000 lines are more than there can be")


def at_each_point(zygote: Peer, kind: str, prepare: Callable[[], None], check: Callable[[str], None]) -> list[str]:
    """The same at each system call ("call"), or each store where the job asks for it ("store"); what they were."""
    if not zygote("stepping.available()"):
        pytest.skip("processes may not be traced here")
    for count in range(1000):
        prepare()
        status, seen = zygote(
            "stepping.killed_at(count, lambda: None, lambda _: job(), path, kind)", count=count, kind=kind
        )
        message = f"killed at {kind} {count}, {seen[-1] if seen else 'none'}"
        assert status in (0, -signal.SIGKILL), f"{message}: exit status {status}\n{zygote.stderr()}"
        check(message if status else "not killed")
        if status == 0:
            return list(seen)
    raise AssertionError("1,000 points are more than there can be")


# ---- row 7: creating -----------------------------------------------------------------------------------------------


def absent(path: str) -> None:
    for entry in os.scandir(os.path.dirname(path)):
        os.unlink(entry.path)


def check_created(path: str, durability: Any, message: str) -> None:
    names = os.listdir(os.path.dirname(path))
    assert names in ([], ["counters"]), f"{message}: {names}"
    options: Any = {"dtype": "f64", "padded": True, "durability": durability}
    if names:
        counterfiles.check(path, message)
        with Counters(path, 100, mode="readonly", **options) as c:
            assert (len(c), c.capacity, c[99]) == (0, 100, 0.0), message
    with Counters(path, 100, **options) as c:
        assert c.add("a", 1.5) == 1.5, message
        assert c.add(99) == 1.0, message
    counterfiles.check(path, message)


CREATE = """
def job():
    mmapds.Counters(path, 100, dtype="f64", padded=True, durability=durability).close()
"""


@pytest.mark.parametrize("durability", ["process", "power"])
def test_r07_creating_is_nothing_or_all(zygote: Peer, path: str, durability: str) -> None:
    zygote(CREATE, durability=durability)

    def check(message: str) -> None:
        check_created(path, durability, message)

    if durability == "process":  # the lines are the same
        assert at_each_line(zygote, 2, lambda: absent(path), check) > 50
    assert len(at_each_point(zygote, "call", lambda: absent(path), check)) > 20


EMMAP = "def job(): mmapds.Counters(path, 100, layout='emmap').close()"


def test_r07_a_file_of_emmap_is_nothing_or_all(zygote: Peer, path: str) -> None:
    zygote(EMMAP)

    def check(message: str) -> None:
        names = os.listdir(os.path.dirname(path))
        assert names in ([], ["counters"]), f"{message}: {names}"
        if names:
            assert Path(path).read_bytes() == b"EMMAP01\n" + (100).to_bytes(8, "little") + bytes(800), message
        with Counters(path, 100, layout="emmap") as c:
            assert c.add(99) == 1, message

    assert at_each_line(zygote, 1, lambda: absent(path), check) > 20
    assert len(at_each_point(zygote, "call", lambda: absent(path), check)) > 10


# ---- row 8: recovering ---------------------------------------------------------------------------------------------


# Stores are looked for where the file is changed.
RECOVER = """
class Stepped(mmapds.Counters):
    __slots__ = ()
    def _recover(self):
        os.getppid()
        super()._recover()
def job():
    with Stepped(path) as c:
        assert c.snapshot() == expected, c.snapshot()
"""


@pytest.mark.parametrize("durability", [pytest.param("process", marks=pytest.mark.slow), "power"])
def test_r08_a_recovery_killed_anywhere_comes_to_the_same_result(zygote: Peer, path: str, durability: Any) -> None:
    expected = counterfiles.crashed(path, durability)
    before = Path(path).read_bytes()
    zygote(RECOVER, expected=expected)

    def prepare() -> None:
        counterfiles.restore(path, before)

    def check(message: str) -> None:
        for mode in ("readonly", "private"):
            with Counters(path, mode=mode) as c:  # type: ignore[arg-type]
                assert c.snapshot() == expected, f"{message}, mode {mode}"
        with Counters(path) as c:
            assert c.snapshot() == expected, message
            assert c[3] == 33
            c.reserve("a", 5)
            c["new"] = 1
            assert c.counter("new").index == 16, message
            assert c.pop("b", None) is None, message
            assert c.snapshot() == expected | {"a": 6, "new": 1}, message
        found = counterfiles.check(path, message)
        states = [found.entry(number).state for number in (1, 3, 6)]
        assert states == ["removed", "damaged", "damaged"], message

    if durability == "process":  # the lines are the same
        assert at_each_line(zygote, 3, prepare, check) > 30
    assert len(at_each_point(zygote, "call", prepare, check)) > 50
    assert len(at_each_point(zygote, "store", prepare, check)) > 7


def test_r08_a_recovery_while_another_waits_for_it(path: str) -> None:
    """The first dies in the middle; the second, which waits, does it all."""
    expected = counterfiles.crashed(path)
    with (
        Peer("import counterfiles, fcntl; fd = os.open(path, os.O_RDWR)", path=path) as first,
        Peer(path=path) as second,
    ):
        first("counterfiles.lock(fd, 0); counterfiles.lock(fd, 1, 0)")
        second.send("c = mmapds.Counters(path); c.snapshot()")
        first("counterfiles.poke_word(path, counterfiles.REMOVING, 0)")  # half of it
        first.kill()
        assert second.receive() == expected
