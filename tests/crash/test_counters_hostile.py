"""Counters files that somebody made on purpose, or changes while they are read (row 16)."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import counterfiles
import pytest
from peers import Peer

from mmapds import CorruptionError, Counters, MmapdsError

MODES: list[Any] = ["shared", "readonly", "private"]
HUGE = [1 << 64, 1 << 63, (1 << 63) - 1, 1 << 62, 1 << 47, 1 << 46, 1 << 40, 1 << 33, 1 << 32, 1 << 31]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """200 names in two extents or more; nobody has the file open."""
    path = str(tmp_path / "counters")
    with Counters(path, 8, padded=True) as c:
        c.update((f"name {n}", n) for n in range(200))
    return path


def refused(path: str) -> None:
    """In every mode, without a change; and at once: nothing is looped over that somebody wrote down."""
    before = Path(path).read_bytes()
    for mode in MODES:
        with pytest.raises((MmapdsError, OSError)) as caught, Counters(path, mode=mode) as c:
            c.snapshot()
        assert path in str(caught.value)
    assert Path(path).read_bytes() == before


def set_extent(path: str, number: int, cells_size: int, names_size: int) -> None:
    """A record whose own check is right."""
    check = counterfiles.extent_check(number, cells_size, names_size, counterfiles.identity(path))
    words = struct.pack("<4Q", cells_size, names_size, 0, check)
    counterfiles.poke(path, counterfiles.EXTENTS + number * counterfiles.EXTENT_SIZE, words)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("which", ["cells", "names"])
def test_r16_extents_that_reach_beyond_the_file(path: str, number: int, which: str) -> None:
    extent = counterfiles.Snapshot(path).extents[number]
    for huge in HUGE:
        for less in (0, 1, 8, 4096):
            size = (huge - less) % (1 << 64)
            if which == "cells":
                set_extent(path, number, size, extent.names_size)
            else:
                set_extent(path, number, extent.cells_size, size)
            refused(path)


@pytest.mark.parametrize("number", [0, 1])
def test_r16_extents_of_sizes_that_make_no_sense(path: str, number: int) -> None:
    extent = counterfiles.Snapshot(path).extents[number]
    for cells_size, names_size in [
        (extent.cells_size, 0),
        (extent.cells_size, 8),
        (extent.cells_size, extent.names_size - 8),
        (extent.cells_size + 1, extent.names_size),
        (extent.cells_size + 8, extent.names_size - 8),
        (extent.cells_size + 4096, extent.names_size - 4096),  # the entries begin elsewhere
        (extent.cells_size, extent.names_size - 4096),
        (0, 0),
    ]:
        set_extent(path, number, cells_size, names_size)
        refused(path)
    set_extent(path, number, 0, extent.cells_size + extent.names_size)  # all of it names
    refused(path)


def test_r16_more_extents_than_the_file_has(path: str) -> None:
    """The table is full of them; in a file with holes that is long enough for some."""
    found = counterfiles.Snapshot(path)
    for number in range(len(found.extents), counterfiles.EXTENT_COUNT):
        set_extent(path, number, 4096, 4096)
    refused(path)
    os.truncate(path, len(found.content) + 50 * 8192)
    refused(path)


def test_r16_a_table_that_is_full_to_the_end(path: str) -> None:
    """112 extents, each of them whole: nothing is wrong, and there is no room for another."""
    found = counterfiles.Snapshot(path)
    at = found.extents[-1].end
    for number in range(len(found.extents), counterfiles.EXTENT_COUNT):
        set_extent(path, number, 4096, 4096)
        at += 8192
        os.truncate(path, at)
        counterfiles.poke(path, at - 8, counterfiles.SENTINEL)
    with Counters(path) as c, Counters(path, mode="readonly") as looking:
        assert len(c) == 200
        made = 200
        with pytest.raises(OSError, match="as many as this file can have"):  # noqa: PT012
            while True:
                c[f"name {made}"] = made
                made += 1
        assert made >= 200 + 15 * (counterfiles.EXTENT_COUNT - len(found.extents))
        assert c.snapshot() == looking.snapshot() == {f"name {n}": n for n in range(made)}
        assert c.add("name 0") == 1
        assert c.pop("name 1") == 1
        assert c.fetch_add("name 1", 5) == 0
    counterfiles.check(path)


def test_r16_counts_that_do_not_fit(path: str) -> None:
    identity = counterfiles.identity(path)
    room = sum(extent.entries for extent in counterfiles.Snapshot(path).extents)
    for number in (room + 1, room * 2, 1 << 31, (1 << 32) - 1, 201):
        counterfiles.poke_word(path, counterfiles.NAMES, counterfiles.count(number, identity))
        refused(path)
    counterfiles.poke_word(path, counterfiles.NAMES, counterfiles.count(200, identity))
    for word in (counterfiles.REMOVING,):
        for number in (201, room + 1, 1 << 31, (1 << 32) - 1):
            counterfiles.poke_word(path, word, counterfiles.count(number, identity))
            before = Path(path).read_bytes()
            with Counters(path) as c:
                for call in (lambda c=c: c.fetch_add("new"), lambda c=c: c.pop("name 3")):
                    with pytest.raises(CorruptionError):
                        call()
                assert c["name 3"] == 3
            assert Path(path).read_bytes() == before


@pytest.mark.parametrize(
    "name", [b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"name 4", b"nul\0in it", b"\x00", b" " * 255, b"a\nb"]
)
def test_r16_names_that_nobody_would_make(path: str, name: bytes) -> None:
    """Under a right check. One that no name can be is damage; one that another entry has too does no harm."""
    found = counterfiles.Snapshot(path)
    counterfiles.poke(path, found.entry(3).offset, counterfiles.entry(3, name, found.identity))
    try:
        text = name.decode()
    except UnicodeDecodeError:
        refused(path)
        return
    for mode in MODES:
        try:
            with Counters(path, mode=mode) as c:
                assert c[text] in (3, 4)
                assert c["name 5"] == 5
                assert "name 3" not in c
        except CorruptionError:
            pass


@pytest.mark.parametrize("length", [0, 1, 200, 255])
def test_r16_lengths_of_names(path: str, length: int) -> None:
    """A check over the length that is said."""
    found = counterfiles.Snapshot(path)
    offset = found.entry(3).offset
    name = found.content[offset + 17 : offset + 17 + length]
    made = counterfiles.entry(3, name, found.identity)
    counterfiles.poke(path, offset, made)
    for mode in MODES:
        try:
            with Counters(path, mode=mode) as c:
                values = c.snapshot()
                assert "name 3" not in values
                assert all(values[f"name {n}"] == n for n in range(200) if n != 3)
        except CorruptionError:
            pass


@pytest.mark.parametrize("capacity", [1 << 40, 1 << 39, 1 << 32, 1 << 20, 2000, 512, 9])
def test_r16_a_capacity_that_the_cells_have_no_room_for(path: str, capacity: int) -> None:
    counterfiles.poke_word(path, counterfiles.OPTIONS + 16, capacity)
    counterfiles.seal(path)
    if capacity <= 512 - 200:
        with Counters(path) as c:
            assert (c.capacity, len(c)) == (capacity, 200)
    else:
        refused(path)


# A process that opens and uses files full of random words, and says what happened. A crash of it is what we look for.
FUZZ = """
import collections, random, struct, counterfiles
def fuzz(seed, count):
    choose = random.Random(seed)
    original = open(path, "rb").read()
    identity = original[32:48]
    entries = [counterfiles.Snapshot(path).entry_offset(n) for n in range(200)]
    words = [0, 1, 2, 7, 8, 63, 64, 200, 201, 4095, 4096, 8192, 2**31, 2**32, 2**46, 2**63 - 1, 2**63, 2**64 - 1]
    outcomes = collections.Counter()
    def spoil():
        kind = choose.randrange(8)
        if kind == 0:
            os.truncate(path, choose.choice([0, 4095, 4096, 8192, 12288, len(original) // 2, len(original) + 100_000]))
        elif kind == 1:
            counterfiles.poke_word(path, choose.randrange(0, 8192, 8), choose.choice([*words, choose.getrandbits(64)]))
        elif kind == 2:
            counterfiles.poke(path, choose.randrange(len(original)), choose.randbytes(choose.randrange(1, 40)))
        elif kind == 3:
            where = choose.choice([counterfiles.NAMES, counterfiles.REMOVING, 4224, 4168])
            counterfiles.poke_word(path, where, counterfiles.count(choose.choice(words) & 0xFFFFFFFF, identity))
        elif kind == 4:
            number = choose.randrange(4)
            sizes = [choose.choice([*words, 4096, 8192, 20480, 12288]) for _ in range(2)]
            check = counterfiles.extent_check(number, *sizes, identity)
            counterfiles.poke(path, counterfiles.EXTENTS + 32 * number, struct.pack("<4Q", *sizes, 0, check))
        elif kind == 5:
            number = choose.randrange(200)
            state = choose.choice([b"live    ", b"removed ", b"damaged ", choose.randbytes(8)])
            name = choose.choice([b"", b"name 7", choose.randbytes(choose.randrange(255))])
            counterfiles.poke(path, entries[number], counterfiles.entry(number, name, identity, state))
        elif kind == 6:
            counterfiles.poke_word(path, 96 + 8 * choose.randrange(3), choose.choice(words))
            counterfiles.seal(path)
        else:
            counterfiles.other_boot(path)
    for _ in range(count):
        with open(path, "r+b") as file:
            file.truncate(len(original))
            file.write(original)
        for _ in range(choose.randrange(1, 5)):
            if os.path.getsize(path) >= 4096:
                spoil()
        try:
            with mmapds.Counters(path, mode=choose.choice(["shared", "shared", "readonly", "private"])) as c:
                key = choose.choice(["name 3", "name 150", f"new {choose.randrange(9)}", 5])
                def grow():
                    for n in range(150):
                        c[f"more {n}"] = n
                calls = [
                    c.snapshot, lambda: c.fetch_add(key), lambda: c[key], lambda: c.pop("name 3"), c.popitem, c.flush,
                    lambda: c.counter(key).add(), lambda: c.add("name 3"), lambda: c.reserve("name 5", 2), grow,
                    lambda: c.view()[-1], lambda: c.add(7), c.snapshot, c.check,
                ]
                for call in choose.sample(calls, 8):
                    try:
                        call()
                        outcomes["fine"] += 1
                    except (mmapds.MmapdsError, KeyError, OSError, IndexError, TypeError) as error:  # TypeError: f64
                        outcomes[type(error).__name__] += 1
        except (mmapds.MmapdsError, ValueError, OSError) as error:
            outcomes["open: " + type(error).__name__] += 1
    return dict(outcomes)
"""


def test_r16_files_full_of_random_words_crash_nobody(path: str) -> None:
    with Peer(FUZZ, path=path) as peer:
        outcomes = peer("fuzz(seed, 1200)", seed=16)
    assert outcomes["fine"] > 500, outcomes
    assert outcomes["open: CorruptionError"] > 100, outcomes


@pytest.mark.stress
def test_r16_many_more_files_full_of_random_words(path: str) -> None:
    with Peer(FUZZ, path=path) as peer:
        for seed in range(100):
            peer("fuzz(seed, 2000)", seed=seed)


@pytest.mark.parametrize("mode", ["shared", "readonly"])
def test_r16_words_that_change_while_they_are_read(path: str, mode: str) -> None:
    """Somebody scribbles counts, states, names and extents into the file: what is read verifies, or it is said."""
    scribble = """
import mmap, random, struct, counterfiles
found = counterfiles.Snapshot(path)
file = open(path, "r+b")
words = mmap.mmap(file.fileno(), len(found.content))
good = found.content
entry = found.entry(3).offset
def scribble(count):
    choose = random.Random(count)
    for _ in range(count):
        count = choose.choice([200, 200, 199, 220, 1 << 31])
        words[4096:4104] = struct.pack("<Q", counterfiles.count(count, found.identity))
        words[4104:4112] = struct.pack("<Q", choose.getrandbits(64))
        words[entry : entry + 272] = choose.choice([
            counterfiles.entry(3, b"name 3", found.identity),
            counterfiles.entry(3, b"name three", found.identity),
            counterfiles.entry(3, b"name 3", found.identity, b"removed "),
            bytes(272), choose.randbytes(272),
        ])
        where = 4608 + 32 * len(found.extents)
        check = counterfiles.extent_check(len(found.extents), 1 << 45, 4096, found.identity)
        words[where : where + 32] = choose.choice([bytes(32), struct.pack("<4Q", 1 << 45, 4096, 0, check)])
        words[4096:8192] = good[4096:8192]
        words[entry : entry + 272] = good[entry : entry + 272]
"""
    read = """
seen = dict(right=0, refused=0)
with c:
    for _ in range(1_000_000):
        if min(seen.values()) >= 200:
            break
        try:
            values = c.snapshot()
            values.pop("name 3", None)
            values.pop("name three", None)
            extra = {k for k in values if not k.startswith("name")}
            assert not extra, extra
            assert all(values[f"name {n}"] == n for n in range(198) if n != 3), values
            c.get("name 3"), c.get("new")
            seen["right"] += 1
        except (mmapds.CorruptionError, mmapds.MappingLost):
            seen["refused"] += 1
seen["right"], seen["refused"]
"""
    with (
        Peer(scribble, path=path) as peer,
        Peer("c = mmapds.Counters(path, mode=mode)", path=path, mode=mode) as reader,
    ):
        peer.send("while True: scribble(1000)")
        right, refusals = reader(read)
        assert right >= 200, "the two did not meet"
        assert refusals >= 200, "the two did not meet"
