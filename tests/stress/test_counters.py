"""Exactness: what many processes count is there to the last unit; and long hunts for what is lost, or counted twice."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import counterfiles
import pytest
from peers import Peer, PeerError

from mmapds import Counters


@pytest.fixture
def path() -> Iterator[str]:
    """In memory, where names come and go fastest."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="mmapds-counters-", dir=memory) as folder:
        yield f"{folder}/counters"


MILLION = {
    "bound": "add = bound.fetch_add\nfor _ in range(n): add()",
    "by name": "add = c.fetch_add\nfor _ in range(n): add('hits')",
    "by index": "add = c.fetch_add\nfor _ in range(n): add(0)",
    "add": "add = bound.add\nfor _ in range(n): add()",
    "compare and exchange": """
swap = bound.compare_exchange
for _ in range(n):
    found = 0
    while True:
        done, found = swap(found, found + 1)
        if done:
            break
""",
}


@pytest.mark.parametrize(
    ("how", "dtype", "layout", "n"),
    [
        ("bound", "i64", "mmapds", 1_000_000),
        ("by name", "i64", "mmapds", 1_000_000),
        ("by index", "i64", "emmap", 1_000_000),
        ("bound", "f64", "mmapds", 1_000_000),
        ("by name", "f64", "mmapds", 200_000),
        ("add", "i64", "mmapds", 200_000),
        ("compare and exchange", "i64", "mmapds", 20_000),
    ],
)
def test_8_unrelated_processes_count_a_million_each(path: str, how: str, dtype: Any, layout: Any, n: int) -> None:
    options: dict[str, Any] = {"layout": layout} if layout == "emmap" else {"dtype": dtype}
    key = 0 if layout == "emmap" else "hits"
    with contextlib.ExitStack() as stack:
        setup = "c = mmapds.Counters(path, **options); bound = c.counter(key)"
        peers = [stack.enter_context(Peer(setup, path=path, options=options, key=key, n=n)) for _ in range(8)]
        for peer in peers:
            peer.send("c.add(1)\nwhile c[1] < 8: pass\n" + MILLION[how])  # all at once
        for peer in peers:
            peer.receive()
        with Counters(path, **options) as c:
            assert c[key] == 8 * n
        assert [peer("c[key], bound.load()") for peer in peers] == [(8 * n, 8 * n)] * 8


def test_8_processes_make_and_count_names_in_the_same_order(path: str) -> None:
    """All of them run into each new name, and into each growth of the file, at about the same time."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer("c = mmapds.Counters(path, 4)", path=path)) for _ in range(8)]
        for peer in peers:
            peer.send("for n in range(3000): c.add(f'name {n}'); c.add(f'name {n // 2}')")
        for peer in peers:
            peer.receive()
    expected = {f"name {n}": 8 + (16 if n < 1500 else 0) for n in range(3000)}
    assert counterfiles.check(path).values() == expected


POPPER = """
import random
c = mmapds.Counters(path)
def add(poppers, names):
    '''Adds by name until those who pop are done: how much.'''
    choose = random.Random(os.getpid())
    added = 0
    while c[0] < poppers:
        name = f"name {choose.randrange(names)}"
        for _ in range(20):
            c.fetch_add(name, 3)
            c.add(name, -1)
            c.fetch_sub(name, 1)
            added += 1
    return added
def pop(times, names):
    '''Pops what others add, so often that there was something: how much.'''
    choose = random.Random(os.getpid())
    popped = 0
    while times:
        found = c.pop(f"name {choose.randrange(names)}", None)
        if found is not None:
            popped += found
            times -= 1
    c.add(0)
    return popped
"""


def hunt(path: str, times: int, adders: int, poppers: int, names: int) -> int:
    """How much was added."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(POPPER, path=path, n=names)) for _ in range(adders + poppers)]
        for k, peer in enumerate(peers):
            peer.send(
                "add(poppers, n) if k < adders else pop(times, n)", k=k, times=times, adders=adders, poppers=poppers
            )
        found = [peer.receive(3600) for peer in peers]
        added, popped = sum(found[:adders]), sum(found[adders:])
        with Counters(path) as c:
            left = sum(c.values())
        assert popped + left == added, f"{added} added, {popped} popped, {left} left"
        assert counterfiles.check(path).names <= names
        return int(added)


@pytest.mark.parametrize(("adders", "poppers", "names"), [(2, 2, 1), (1, 1, 1), (3, 1, 2), (1, 3, 5)])
def test_what_is_popped_and_what_is_left_is_what_was_added(path: str, adders: int, poppers: int, names: int) -> None:
    assert hunt(path, 150, adders, poppers, names) > 300


# ---- long runs -----------------------------------------------------------------------------------------------------


@pytest.mark.stress
@pytest.mark.parametrize(("adders", "poppers", "names"), [(2, 2, 1), (4, 4, 3), (1, 1, 1), (2, 6, 2), (6, 2, 20)])
def test_a_long_hunt_for_lost_additions(path: str, adders: int, poppers: int, names: int) -> None:
    for _ in range(10):
        added = hunt(path, 200_000, adders, poppers, names)
        print(f"{adders} adders, {poppers} poppers, {names} names: {added} added")
        os.unlink(path)


@pytest.mark.stress
def test_a_long_race_for_new_names(path: str) -> None:
    for turn in range(200):
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(Peer("c = mmapds.Counters(path, 4)", path=path)) for _ in range(4)]
            for peer in peers:
                peer.send("for n in range(5000): c.add(f'name {n}')")
            for peer in peers:
                peer.receive()
        assert counterfiles.check(path, f"turn {turn}").values() == {f"name {n}": 4 for n in range(5000)}
        os.unlink(path)


CHAOS = """
import random
c = mmapds.Counters(path)
bound = c.counter("steady")
def chaos():
    choose = random.Random(os.urandom(8))
    while True:
        bound.add()
        name = f"name {choose.randrange(300)}"
        action = choose.randrange(8)
        if action < 4:
            c.add(name)
        elif action == 4:
            c.pop(name, None)
        elif action == 5:
            c[name] = choose.randrange(1000)
        elif action == 6:
            block = c.reserve("ids", choose.randrange(1, 50))
            os.write(ids, f"{block.start} {block.stop}\\n".encode())
        elif choose.random() < 0.05:
            c[f"{os.getpid()}/{choose.randrange(10**9)}"] = 1
        else:
            assert c.snapshot()["steady"] <= bound.load()
"""


@pytest.mark.stress
def test_chaos(path: str) -> None:
    """For five minutes: processes are stopped, continued and killed at random, and replaced; nobody hangs."""
    choose = random.Random(5)
    ids = os.open(path + "-ids", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    with contextlib.ExitStack() as stack:

        def start() -> Peer:
            peer = stack.enter_context(
                Peer(f"ids = os.open({path + '-ids'!r}, os.O_WRONLY | os.O_APPEND)" + CHAOS, path=path)
            )
            peer.send("chaos()")
            return peer

        Counters(path, 4).close()
        with Counters(path) as witness:
            peers = [start() for _ in range(6)]
            end = time.monotonic() + 300
            deaths = 0
            steady = 0.0
            while time.monotonic() < end:
                time.sleep(choose.random() * 0.02)
                n = choose.randrange(6)
                assert peers[n].process.poll() is None, peers[n].stderr()
                action = choose.choice([signal.SIGSTOP, signal.SIGCONT, signal.SIGCONT, signal.SIGKILL])
                if action != signal.SIGKILL:
                    peers[n].signal(action)
                    continue
                peers[n].__exit__(None, None, None)
                deaths += 1
                peers[n] = start()
                now = witness.get("steady", 0)
                assert now >= steady, "an addition was lost"
                steady = now
            for peer in peers:
                peer.signal(signal.SIGCONT)
            before = witness["steady"]
            while witness["steady"] < before + 10_000:
                time.sleep(0.01)
            for peer in peers:
                peer.signal(signal.SIGINT)
                with pytest.raises(PeerError, match="KeyboardInterrupt"):
                    peer.receive()
            assert deaths > 100
            witness.add("finish")
            assert counterfiles.check(path).values() == witness.snapshot()
    os.close(ids)
    with open(path + "-ids") as file:
        blocks = sorted((int(start), int(stop)) for start, stop in (line.split() for line in file))
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(blocks)), "numbers were handed out twice"
