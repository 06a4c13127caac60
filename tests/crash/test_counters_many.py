"""Many processes and threads at once (rows 18, 27)."""

from __future__ import annotations

import os
import random
from pathlib import Path

import counterfiles
import pytest
from peers import Peer

from mmapds import Counters


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "counters")


# at_once(count, job): starts processes, lets all of them go at the same moment, and returns what they found.
ZYGOTE = """
import collections, random, tempfile, victims
def at_once(count, job):
    reading, go = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        pids = []
        for n in range(count):
            def run():
                os.close(go)
                os.read(reading, 1)  # ends for all of them at the same moment
                with open(f"{folder}/{n}", "w") as answer:
                    answer.write(repr(job(n)))
            pids.append(victims.spawn(run))
        os.close(go)
        os.close(reading)
        assert [victims.finish(pid) for pid in pids] == [0] * count
        return [eval(open(f"{folder}/{n}").read()) for n in range(count)]
"""


# ---- row 18: at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["mmapds", "emmap"])
def test_r18_64_processes_create_the_file_at_once(tmp_path: Path, layout: str) -> None:
    with Peer(ZYGOTE, layout=layout) as zygote:
        zygote(
            """
def job(n):
    with mmapds.Counters(path, 100, layout=layout) as c:
        c.fetch_add(7)
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_ino, file.read(48)[32:].hex()
"""
        )
        for n in range(6):
            path = str(tmp_path / f"counters{n}")
            found = zygote("at_once(64, job)", path=path)
            assert len(set(found)) == 1, f"more than one file was made: {set(found)}"
            with Counters(path, layout=layout) as c:  # type: ignore[arg-type]
                assert (c[7], c[8]) == (64, 0)
    assert sorted(os.listdir(tmp_path)) == [f"counters{n}" for n in range(6)]


def test_r18_64_processes_create_the_same_1000_names_at_once(path: str) -> None:
    with Peer(ZYGOTE, path=path) as zygote:
        zygote(
            """
def job(n):
    names = [f"name {i}" for i in range(1000)]
    if n % 2:
        random.Random(n).shuffle(names)
    with mmapds.Counters(path, 8) as c:
        return {c.counter(name).index: name for name in names if c.add(name) or True}
"""
        )
        found = zygote("at_once(64, job)")
    assert all(one == found[0] for one in found), "a name has two cells, or two names have one"
    assert sorted(found[0]) == list(range(8, 1008)), "cells were wasted"
    with Counters(path) as c:
        assert c.snapshot() == {found[0][8 + n]: 64 for n in range(1000)}
        c.check()
    counterfiles.check(path)


def test_r18_values_of_new_names_are_set_by_one(path: str) -> None:
    """setdefault() makes a name with its value, or finds the one of who was first: never anything else."""
    with Peer(ZYGOTE, path=path) as zygote:
        zygote(
            """
def job(n):
    with mmapds.Counters(path) as c:
        return [c.setdefault(f"name {i}", 1000 * n + i + 1) for i in range(200)]
"""
        )
        found = zygote("at_once(12, job)")
    assert all(one == found[0] for one in found), "two processes have made one name"
    assert all(value % 1000 == i + 1 for i, value in enumerate(found[0]))


# ---- row 27: threads and processes that change the same ------------------------------------------------------------


def test_r27_threads_of_one_handle_make_the_same_names(path: str) -> None:
    """Each name once, and every addition counts."""
    with Peer(
        """
import sys, threading
sys.setswitchinterval(1e-5)
c = mmapds.Counters(path, 4)
barrier = threading.Barrier(6)
def work():
    for i in range(300):
        barrier.wait()
        c.fetch_add(f"name {i}")
        c.fetch_add("all")
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
""",
        path=path,
    ) as peer:
        expected = {"all": 1800} | {f"name {i}": 6 for i in range(300)}
        assert peer("c.snapshot()") == expected
    assert counterfiles.check(path).values() == expected


def test_r27_growth_by_one_process_while_threads_of_another_add(path: str) -> None:
    """Through bound counters, by index and by name; readers look on."""
    with (
        Peer("c = mmapds.Counters(path, 2)", path=path) as grower,
        Peer(
            """
import threading
c = mmapds.Counters(path)
counted = [c.counter("bound"), c.counter(0)]
def work():
    for _ in range(40_000):
        counted[0].fetch_add()
        counted[1].add(2)
        c.fetch_add("by name")
        c.fetch_add(1)
def run():
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return c["bound"], c[0], c["by name"], c[1]
""",
            path=path,
        ) as adder,
        Counters(path, mode="readonly") as looking,
    ):
        view = looking.view()
        adder.send("run()")
        grower("for n in range(3000): c[f'name {n}'] = n")
        assert adder.receive() == (160_000, 320_000, 160_000, 160_000)
        assert looking["name 2999"] == 2999
        assert view[:2].tolist() == [320_000, 160_000]
    found = counterfiles.check(path)
    assert len(found.extents) >= 5
    expected = {f"name {n}": n for n in range(3000)} | {"bound": 160_000, "by name": 160_000}
    assert found.values() == expected


@pytest.mark.parametrize("handles", ["processes", "threads"])
def test_r27_what_is_popped_and_what_remains_is_what_was_added(path: str, handles: str) -> None:
    """Two add by name, two pop, and nothing is lost or counted twice; to the last unit."""
    with Peer(ZYGOTE, path=path) as zygote:
        zygote(
            """
import sys, threading
sys.setswitchinterval(1e-5)
NAMES = ["a", "b", "c"]
def work(n, c):
    choose = random.Random(n)
    added, popped = collections.Counter(), collections.Counter()
    for i in range(4000):
        name = choose.choice(NAMES)
        if n % 2:
            popped[name] += c.pop(name, 0)
        else:
            for _ in range(5):
                c.fetch_add(name, n + 1)
            c.add(name, -2)
            added[name] += 5 * (n + 1) - 2
    return dict(added), dict(popped)
def job(n):
    with mmapds.Counters(path) as c:
        return work(n, c)
def threads():
    found = []
    with mmapds.Counters(path) as c:
        running = [threading.Thread(target=lambda n=n: found.append(work(n, c))) for n in range(4)]
        for thread in running: thread.start()
        for thread in running: thread.join()
    return found
"""
        )
        found = zygote("at_once(4, job)" if handles == "processes" else "threads()")
    with Counters(path) as c:
        for name in "abc":
            added = sum(one[0].get(name, 0) for one in found)
            popped = sum(one[1].get(name, 0) for one in found)
            assert popped + c.get(name, 0) == added > 1000, (
                f"{name}: {added} added, {popped} popped, {c.get(name)} left"
            )
    assert counterfiles.check(path).names <= 3


def test_r27_blocks_are_gap_free_when_nobody_dies(path: str) -> None:
    with Peer(ZYGOTE, path=path) as zygote:
        zygote(
            """
def job(n):
    choose = random.Random(n)
    with mmapds.Counters(path) as c:
        bound = c.counter("ids")
        found = [bound.reserve(choose.randrange(1, 100)) for _ in range(3000)]
        found += [c.reserve("ids", choose.randrange(1, 100)) for _ in range(1000)]
        return [(one.start, one.stop) for one in found]
"""
        )
        blocks = sorted(block for one in zygote("at_once(4, job)") for block in one)
    assert len(blocks) == 16_000
    stops = [0, *(stop for _, stop in blocks)]
    assert [start for start, _ in blocks] == stops[:-1], "a gap, or an overlap"
    with Counters(path) as c:
        assert c["ids"] == stops[-1]


@pytest.mark.parametrize("seed", range(3))
def test_r27_a_model_of_one_process_beside_many(path: str, seed: int) -> None:
    """What one process sees of names that only it changes is what a dict says, whatever others do to the file."""
    choose = random.Random(seed)
    model: dict[str, float] = {}
    with (
        Peer("import itertools, random; c = mmapds.Counters(path, 2)", path=path) as other,
        Counters(path) as c,
    ):
        other.send("for n in itertools.count(): c[f'other {n % 2000}'] = n; c.pop(f'other {n * 7 % 2000}', None)")
        for step in range(3000):
            name = f"mine {choose.randrange(40)}"
            message = f"step {step}, {name}"
            action = choose.randrange(7)
            if action == 0:
                assert c.fetch_add(name, step) == model.get(name, 0), message
                model[name] = model.get(name, 0) + step
            elif action == 1:
                assert c.pop(name, None) == model.pop(name, None), message
            elif action == 2:
                assert c.setdefault(name, step) == model.setdefault(name, step), message
            elif action == 3:
                c[name] = model[name] = step
            elif action == 4:
                assert c.get(name) == model.get(name), message
            elif action == 5:
                assert (name in c) == (name in model), message
            else:
                assert {k: v for k, v in c.items() if k.startswith("mine")} == model, message
        other.kill()
    counterfiles.check(path)
