"""Numbers and sizes at their limits, and views of what grows (rows 29, 30)."""

from __future__ import annotations

import os
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
