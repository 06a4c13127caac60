"""Counters files that are not ours, damaged, or something else than files (rows 14, 15 and 17)."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import counterfiles
import pytest

from mmapds import CorruptionError, Counters, DurabilityFailed, IncompatibleFormat, SchemaMismatch, Synchronizer

MODES = ["shared", "readonly", "private"]
VALUES = {"a": 1, "bb": 22, "ccc": 333, "é" * 100: 4444, "x" * 255: -5}


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Five names and a removed one; nobody has the file open."""
    path = str(tmp_path / "counters")
    with Counters(path, 8) as c:
        c.update(VALUES)
        c["gone"] = 6
        c.remove("gone")
        c[3] = 33
    return path


# ---- row 14: not this format ---------------------------------------------------------------------------------------

FOREIGN = {
    "magic": (0, b"X", "not a file of mmapds"),
    "magic mangled by a text-mode copy": (6, b"\r\n", "not a file of mmapds"),
    "a file of emmap": (0, b"EMMAP01\n", "not a file of mmapds"),
    "big-endian": (8, struct.pack(">I", 0x0A0B0C0D), "big-endian"),
    "the next major format": (12, b"\x02\0", "format 2"),
    "format 0": (12, b"\0\0", "format 0"),
    "a flag of a later release": (24, b"\x01", "features"),
    "the highest flag": (31, b"\x80", "features"),
    "another kind": (16, b"queue\0\0\0", "queue"),
    "kind of a sync file": (16, b"sync\0\0\0\0", "sync"),
    "another dtype": (96, struct.pack("<Q", 2), "dtype 2"),
    "another stride": (104, struct.pack("<Q", 16), "16 bytes"),
    "stride 0": (104, struct.pack("<Q", 0), "0 bytes"),
    "more indices than there can be": (112, struct.pack("<Q", (1 << 40) + 1), "indices"),
    "2^64 - 1 indices": (112, struct.pack("<Q", (1 << 64) - 1), "indices"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", FOREIGN)
def test_r14_another_format_is_refused_and_stays_byte_identical(path: str, what: str, mode: Any) -> None:
    offset, content, words = FOREIGN[what]
    counterfiles.poke(path, offset, content)
    counterfiles.seal(path)
    before = Path(path).read_bytes()
    with pytest.raises(IncompatibleFormat, match=words):
        Counters(path, mode=mode)
    assert Path(path).read_bytes() == before
    assert not counterfiles.locked(path, 0, 0)


def test_r14_a_minor_format_of_a_later_release_is_read(path: str) -> None:
    counterfiles.poke(path, 14, b"\x07\0")
    counterfiles.seal(path)
    with Counters(path) as c:
        assert c.snapshot() == VALUES


@pytest.mark.parametrize("mode", MODES)
def test_r14_files_of_others_are_refused(tmp_path: Path, path: str, mode: Any) -> None:
    prefix = str(tmp_path / "value")
    with Synchronizer(prefix) as s:
        s.write(1)
    Counters(tmp_path / "emmap", layout="emmap").close()
    for name, layout in (("value_sync", "mmapds"), ("value_data_1", "mmapds"), ("emmap", "mmapds")):
        before = Path(tmp_path / name).read_bytes()
        with pytest.raises(IncompatibleFormat):
            Counters(tmp_path / name, mode=mode, layout=layout)  # type: ignore[arg-type]
        assert Path(tmp_path / name).read_bytes() == before
    for name in ("value_sync", "counters"):
        before = Path(tmp_path / name).read_bytes()
        with pytest.raises(IncompatibleFormat, match="EMMAP01"):
            Counters(tmp_path / name, mode=mode, layout="emmap")
        assert Path(tmp_path / name).read_bytes() == before


# ---- row 15: flipped bits ------------------------------------------------------------------------------------------


def flips(path: str, bits: Iterable[int], mode: Any = "shared") -> dict[str, int]:
    """Flips each bit, opens, reads and counts; counts the outcomes. A wrong name or value fails the test."""
    original = Path(path).read_bytes()
    removed_at = counterfiles.Snapshot(path).entry(5).offset
    found: dict[str, int] = {}
    descriptor = os.open(path, os.O_RDWR)
    try:
        for bit in bits:
            byte = bit // 8
            os.pwrite(descriptor, bytes([original[byte] ^ (1 << bit % 8)]), byte)
            try:
                outcome = use(path, mode)
            except (CorruptionError, IncompatibleFormat, DurabilityFailed, SchemaMismatch) as error:
                outcome = type(error).__name__
            where = f"bit {bit % 8} of byte {byte}"
            accepted = {
                "right": True,
                "CorruptionError": True,
                "IncompatibleFormat": byte < 32,  # magic, byte order, format: row 14
                "DurabilityFailed": counterfiles.FAILED <= byte < counterfiles.FAILED + 8,
            }
            assert accepted.get(outcome), f"{outcome} after flipping {where}; the removed entry is at {removed_at}"
            found[outcome] = found.get(outcome, 0) + 1
            os.pwrite(descriptor, original, 0)
    finally:
        os.close(descriptor)
    return found


def use(path: str, mode: Any) -> str:
    """Looks at everything, and changes a name if it may."""
    with Counters(path, mode=mode) as c:
        found = c.snapshot()
        if found != VALUES or c[3] != 33 or list(c) != list(VALUES):
            return f"found {found}, {c[3]}"
        if mode != "readonly":
            begun = c.fetch_add("gone", 5)
            if begun or c["gone"] != 5 or c.pop("gone") != 5 or c.fetch_add("new", 2) or c.pop("new") != 2:
                return f"wrong afterwards: {begun}, {c.snapshot()}"
            if c.snapshot() != VALUES:
                return f"afterwards {c.snapshot()}"
    return "right"


def test_r15_bits_of_the_header_page(path: str) -> None:
    bits = [*range(8 * 2304), *range(8 * 2304, 8 * 4096, 5)]  # the rest is zero, and nobody reads it
    found = flips(path, bits)
    assert found["CorruptionError"] > 8 * 2000 - 300, found
    assert found["right"] > 8 * 400, found
    assert found["IncompatibleFormat"] >= 8 * 12, found


@pytest.mark.parametrize("mode", MODES)
def test_r15_every_bit_of_the_control_words_and_the_table_of_extents(path: str, mode: str) -> None:
    bits = [*range(8 * 4096, 8 * 4608), *range(8 * 4608, 8 * (4608 + 64)), *range(8 * 4672, 8 * 8192, 13)]
    found = flips(path, bits, mode)
    assert found["CorruptionError"] >= 64 + 64 + 3 * 64, found  # names, removing, an extent's sizes and check
    assert found["right"] > 64 + 2000, found  # changes; what is zero, and nobody reads


@pytest.mark.parametrize("mode", MODES)
def test_r15_sampled_bits_of_entries(path: str, mode: str) -> None:
    choose = random.Random(15)
    found = counterfiles.Snapshot(path)
    bits = []
    for number in range(found.names):
        offset = found.entry(number).offset
        bits += range(8 * offset, 8 * (offset + 17))  # state, check, length
        bits += [choose.randrange(8 * (offset + 17), 8 * (offset + 272)) for _ in range(40)]
    outcomes = flips(path, bits, mode)
    assert outcomes["CorruptionError"] >= 6 * 17 * 8, outcomes
    behind = found.entry_offset(found.names)
    outcomes = flips(path, [choose.randrange(8 * behind, 8 * (len(found.content) - 8)) for _ in range(300)], mode)
    assert outcomes == {"right": 300}, "what is behind the last name is nobody's"


def test_r15_every_bit_of_the_sentinel(path: str) -> None:
    size = os.path.getsize(path)
    assert flips(path, range(8 * (size - 8), 8 * size)) == {"CorruptionError": 64}


def test_r15_a_damaged_file_is_not_written_to(path: str) -> None:
    """Whatever is asked of it."""
    counterfiles.flip(path, 8 * (counterfiles.Snapshot(path).entry(1).offset + 20))
    before = Path(path).read_bytes()
    for mode in MODES:
        for _ in range(2):
            with pytest.raises(CorruptionError, match="name 1"):
                Counters(path, mode=mode)  # type: ignore[arg-type]
    assert Path(path).read_bytes() == before
    assert not counterfiles.locked(path, 0, 0)


def test_r15_damage_under_a_handle_that_has_it_open(path: str) -> None:
    """It has read the names; what it must read anew is checked."""
    found = counterfiles.Snapshot(path)
    with Counters(path) as c:
        counterfiles.flip(path, 8 * (found.entry(0).offset + 20))
        assert c.add("bb") == 23, "this one is known"
        assert c.add("new") == 1, "so is where the next one goes"
        with pytest.raises(CorruptionError, match="name 0"):
            Counters(path, mode="readonly")
        for _ in range(2):
            with pytest.raises(CorruptionError):
                c.remove("a")
        assert c.pop("bb") == 23


# ---- row 17: something else in its place ---------------------------------------------------------------------------


def make(path: str, what: str) -> None:
    """Puts something that is no file of ours at the path."""
    if what == "empty file":
        Path(path).write_bytes(b"")
    elif what == "short file":
        Path(path).write_bytes(b"\x89mmapds\n" + bytes(1000))
    elif what == "short file of emmap":
        Path(path).write_bytes(b"EMMAP01\n" + bytes(7))
    elif what == "zeros":
        Path(path).write_bytes(bytes(32_768))
    elif what == "directory":
        os.mkdir(path)
    elif what == "FIFO":
        os.mkfifo(path)
    elif what == "symbolic link":
        os.symlink("/etc/hostname", path)
    elif what == "dangling link":
        os.symlink("nowhere", path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.getcwd()
            os.chdir(os.path.dirname(path))
            try:
                listener.bind(os.path.basename(path))
            finally:
                os.chdir(here)
    elif what == "device":
        try:
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root may make devices")


THINGS = [
    "empty file", "short file", "short file of emmap", "zeros", "directory", "FIFO", "symbolic link", "dangling link",
    "socket", "device",
]  # fmt: skip


@pytest.mark.parametrize("what", THINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["mmapds", "emmap"])
def test_r17_something_else_in_its_place(tmp_path: Path, what: str, mode: Any, layout: Any) -> None:
    path = str(tmp_path / "counters")
    make(path, what)
    before = os.lstat(path)
    expected: Any = IsADirectoryError if what == "directory" else (IncompatibleFormat, CorruptionError)
    with pytest.raises(expected) as caught:
        Counters(path, mode=mode, layout=layout)
    assert path in str(caught.value)
    after = os.lstat(path)
    assert (after.st_ino, after.st_size, after.st_mode) == (before.st_ino, before.st_size, before.st_mode)
    assert os.listdir(tmp_path) == ["counters"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [4096, 4097, 8191, 8192, 8193, 12_288, 32_768 - 4096, 32_767])
def test_r17_a_file_that_is_too_short(path: str, size: int, mode: Any) -> None:
    os.truncate(path, size)
    before = Path(path).read_bytes()
    for _ in range(2):
        with pytest.raises(CorruptionError, match=str(size)):
            Counters(path, mode=mode)
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("more", [1, 4095, 4096, 100_000])
def test_r17_a_file_that_is_longer_than_it_should_be(path: str, more: int, mode: Any) -> None:
    """Somebody who died when it grew may have left that behind, with anything in it."""
    with open(path, "ab") as file:
        file.write(b"\xff" * more)
    with Counters(path, mode=mode) as c:
        assert c.snapshot() == VALUES
        if mode == "readonly":
            return
        for n in range(300):
            assert c.fetch_add(f"name {n}", n) == 0
        assert c.snapshot() == VALUES | {f"name {n}": n for n in range(300)}
    if mode == "shared":
        counterfiles.check(path)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [15, 16, 17, 23, 24, 816, 817, 4096, 4096 + 8])
def test_r17_files_of_emmap_of_every_size(tmp_path: Path, size: int, mode: Any) -> None:
    """A count that does not fit the file is refused, and nothing is changed."""
    path = str(tmp_path / "counters")
    for count in (0, 1, 2, 99, 100, 101, 1 << 40, (1 << 61) - 2, 1 << 61, 1 << 63, (1 << 64) - 1):
        content = (b"EMMAP01\n" + count.to_bytes(8, "little")).ljust(size, b"\x01")[:size]
        Path(path).write_bytes(content)
        if size >= 16 and count > 0 and 16 + 8 * count <= size:
            with Counters(path, mode=mode, layout="emmap") as c:
                assert c.snapshot() == dict.fromkeys(range(count), 0x0101010101010101)
        else:
            with pytest.raises((CorruptionError, IncompatibleFormat)):
                Counters(path, mode=mode, layout="emmap")
        assert Path(path).read_bytes() == content, f"count {count}"
