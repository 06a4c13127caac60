"""Many processes and threads at once, numbers at their limits, and views of what grows (rows 18, 27, 29, 30)."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import counterfiles
import pytest
from peers import Peer

from mmapds import Counters

TOP = (1 << 63) - 1


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


# ---- row 29: limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["a", 3])
def test_r29_values_wrap_as_the_hardware_does_or_say_so(path: str, key: Any) -> None:
    with Counters(path) as c, Counters(path, mode="readonly") as looking:
        bound = c.counter(key)
        c[key] = TOP
        assert (c.fetch_add(key), c[key], looking[key]) == (TOP, -TOP - 1, -TOP - 1)
        assert (c.fetch_sub(key), c[key]) == (-TOP - 1, TOP)
        assert (c.add(key, 2), bound.add(-2), bound.fetch_add(TOP)) == (-TOP, TOP, TOP)
        assert bound.exchange(TOP) == -2
        for call in (
            lambda: c.add(key, 1, True),
            lambda: bound.add(1, True),
            lambda: c.reserve(key, 1),
            lambda: bound.reserve(TOP),
            lambda: c.add(key, TOP + 1),
            lambda: c.__setitem__(key, TOP + 1),
            lambda: c.exchange(key, -TOP - 2),
            lambda: c.compare_exchange(key, TOP, 1 << 64),
        ):
            for _ in range(2):
                with pytest.raises(OverflowError):
                    call()
                assert c[key] == TOP
        c[key] = TOP - 10
        assert c.reserve(key, 10) == range(TOP - 10, TOP)
        c[key] = -TOP - 1
        with pytest.raises(OverflowError):
            c.add(key, -1, True)
        assert c[key] == -TOP - 1


def test_r29_changes_that_wrap(path: str) -> None:
    """The word that tells of removals has 64 bits, and nobody compares which is larger."""
    with Counters(path) as c:
        c.update(a=1, b=2)
    counterfiles.poke_word(path, counterfiles.CHANGES, (1 << 64) - 2)
    with Counters(path) as c, Counters(path) as other:
        for n in range(5):
            assert c.pop("a") == n + 1
            assert "a" not in other
            assert other.fetch_add("a", n + 2) == 0
            assert c["a"] == n + 2
        assert c.snapshot() == other.snapshot() == {"a": 6, "b": 2}
    assert counterfiles.word(path, counterfiles.CHANGES) < 100


@pytest.mark.parametrize("capacity", [(5 << 30) // 64, (9 << 30) // 64])
def test_r29_more_than_4_gib_of_cells(tmp_path: Path, capacity: int) -> None:
    """In a file with holes, as fast file systems make them."""
    path = str(tmp_path / "counters")
    size = capacity * 64 + counterfiles.CONTROL
    with Counters(path, 0, padded=True) as c:
        identity = counterfiles.identity(path)
        names_size = counterfiles.Snapshot(path).extents[0].names_size
    cells_size = -(-(capacity * 64 + 64 * 100) // 4096) * 4096
    with open(path, "r+b") as file:
        file.truncate(counterfiles.CONTROL + cells_size + names_size)
    counterfiles.poke(path, counterfiles.CONTROL + cells_size + names_size - 8, counterfiles.SENTINEL)
    check = counterfiles.extent_check(0, cells_size, names_size, identity)
    words = [cells_size, names_size, 0, check]
    counterfiles.poke(path, counterfiles.EXTENTS, b"".join(word.to_bytes(8, "little") for word in words))
    counterfiles.poke_word(path, counterfiles.OPTIONS + 16, capacity)
    counterfiles.seal(path)
    with Counters(path) as c, Counters(path, mode="readonly") as looking:
        assert c.capacity == capacity
        last = c.counter(capacity - 1)
        assert last.add(5) == 5
        c["a"] = 7
        for n in range(200):
            c[f"name {n}"] = n
        assert (c[capacity - 1], looking[capacity - 1], c["a"], looking["name 199"]) == (5, 5, 7, 199)
        assert c.view()[capacity - 1] == 5
        assert len(c.view()) == capacity + 201
        with pytest.raises(IndexError):
            c.add(capacity + 201)
        assert last.add(1) == 6
    with open(path, "rb") as file:
        file.seek(counterfiles.CONTROL + (capacity - 1) * 64)
        assert file.read(8) == (6).to_bytes(8, "little")
        file.seek(counterfiles.CONTROL + capacity * 64)
        assert file.read(8) == (7).to_bytes(8, "little")
    assert os.stat(path).st_blocks * 512 < 4 << 20, "somebody filled the holes"
    assert size > 1 << 32


# ---- row 30: views -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
def test_r30_a_view_outlives_growth_and_close(path: str, padded: bool) -> None:
    c = Counters(path, 4, padded=padded)
    c["a"] = 1
    view = c.view()
    bound = c.counter("a")
    with Counters(path) as other:
        for n in range(500):
            other[f"name {n}"] = n
        assert c["name 499"] == 499
        grown = c.view()
        assert (len(view), len(grown), view.format, view.readonly) == (5, 505, "q", True)
        c.close()
        other.add("a", 10)
        other.add(2, 9)
        assert view.tolist() == [0, 0, 9, 0, 11]
        assert grown[4:6].tolist() == [11, 0]
        assert bound.add() == 12
        assert view[4] == 12
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if path in line]
    assert mapped, "the mapping went, and somebody has a view"
    view.release()
    grown.release()
    del bound, view, grown
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if path in line]


def test_r30_addresses_are_used_up_and_everything_stays_valid(path: str) -> None:
    """With little address space a handle must map the file elsewhere; what was handed out stays where it is."""
    with Peer(
        """
import resource
space = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (space + (96 << 20), resource.RLIM_INFINITY))
c = mmapds.Counters(path, 4)
first = c.counter("first")
view = c.view()
for n in range(6000):
    c[f"name {n}"] = n
    first.add()
later = c.counter("name 5999")
""",
        path=path,
    ) as peer:
        assert peer("first.load(), view[4], c['first'], later.load()") == (6000, 6000, 6000, 5999)
        with Counters(path) as other:
            assert other.snapshot() == {"first": 6000} | {f"name {n}": n for n in range(6000)}
            other.add("first")
            other.add("name 5999")
            assert peer("first.load(), view[4], c['first'], later.load()") == (6001, 6001, 6001, 6000)
        assert peer("c.close(), first.add(), later.add(), view[4]")[1:] == (6002, 6001, 6002)
    counterfiles.check(path)
