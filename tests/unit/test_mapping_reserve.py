"""Mapping(reserve=True): a range of addresses and nothing else, and the word that says whether a file is whole."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapds import Counters, MappingLost
from mmapds._native.region import Mapping

FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE
GIB = 1 << 30


def ranges() -> list[tuple[int, int, str]]:
    """(start, end, permissions) of everything that is mapped."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions = line.split()[:2]
        start, end = (int(number, 16) for number in addresses.split("-"))
        found.append((start, end, permissions))
    return found


def test_a_reserved_range_is_addresses_without_memory() -> None:
    mapping = Mapping(-1, 64 * GIB, PROTECTION, FLAGS, "a path", reserve=True)
    assert (mapping.size, mapping.path, mapping.writable, mapping.borrows) == (64 * GIB, "a path", True, 0)
    at = mapping.address
    assert [p for start, end, p in ranges() if start < at + mapping.size and end > at] == ["---p"]
    assert not mapping.is_lost
    mapping.ensure()
    del mapping
    gc.collect()
    assert [p for start, end, p in ranges() if start < at + 64 * GIB and end > at] == []


def test_a_range_that_there_is_not() -> None:
    for size in (1 << 62, 0, -4096):
        with pytest.raises((OSError, ValueError)):
            Mapping(-1, size, PROTECTION, FLAGS, None, reserve=True)


@pytest.mark.parametrize("room", [256, 24])
@pytest.mark.parametrize("padded", [False, True])
def test_with_few_addresses_fewer_are_reserved_and_growth_takes_others(
    tmp_path: Path, run: Callable[..., str], room: int, padded: bool
) -> None:
    """A limit on addresses, as some servers set it. With 24 MiB, 1 MiB is for entries, so the mapping moves."""
    script = """
        import resource
        path, room, padded = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + (room << 20),) * 2)
        with mmapds.Counters(path, padded=padded) as c, mmapds.Counters(path) as other:
            bound, view = c.counter("first"), c.view()
            for i in range(5000):
                c.fetch_add(f"n{i}", i)
                if i % 500 == 0:
                    bound.fetch_add()
                    assert (other[f"n{i}"], other["first"], view[64]) == (i, c["first"], c["first"])
            say(len(c), len(other), sum(c.values()), c["first"], bound.load(), view[64])
    """
    found = run(script, tmp_path / "counters", room, padded)
    assert found == f"5001 5001 {sum(range(5000)) + 10} 10 10 10"


def test_counters_map_their_file_once(tmp_path: Path) -> None:
    with Counters(tmp_path / "counters") as c:
        c.fetch_add("x")
        path = str(tmp_path / "counters")
        mine = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(path)]
        mapped = sum(int(end, 16) - int(start, 16) for start, end in (line.split()[0].split("-") for line in mine))
        assert mapped == os.path.getsize(path), "the whole file, once"


@pytest.mark.parametrize("cut", [1, 8, 4095, 4096, 8192])
@pytest.mark.parametrize("mode", ["shared", "readonly"])
def test_a_cut_within_the_last_page_is_noticed_too(tmp_path: Path, cut: int, mode: str) -> None:
    """It raises no SIGBUS: the word at the end of the file is what tells."""
    path = str(tmp_path / "counters")
    with Counters(path) as c, Counters(path, mode=mode) as other:  # type: ignore[arg-type]
        c["x"] = 5
        bound = other.counter("x")
        assert (other["x"], bound.load()) == (5, 5)
        os.truncate(path, os.path.getsize(path) - cut)
        for call in (bound.load, lambda: other["x"], other.snapshot, lambda: other[0], lambda: c.fetch_add("x")):
            with pytest.raises(MappingLost, match=path):
                call()
        for call in (bound.load, lambda: other["x"]):
            with pytest.raises(MappingLost, match=path):
                call()
