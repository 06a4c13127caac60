"""Files that are not ours, damaged, or something else than files (rows 14, 15 and 17)."""

from __future__ import annotations

import os
import random
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
import syncfiles
from victims import number, pattern

from mmapds import (
    CorruptionError,
    DurabilityFailed,
    IncompatibleFormat,
    NotInitialised,
    SchemaMismatch,
    Synchronizer,
)

SIZE = 6000
MODES = ["shared", "readonly", "private"]


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """Versions 6 and 7 of a Synchronizer that nobody has open."""
    prefix = str(tmp_path / "value")
    with Synchronizer(prefix, codec="raw") as s:
        for n in range(1, 8):
            s.write_bytes(pattern(n, SIZE))
    return prefix


# ---- row 14: not this format ---------------------------------------------------------------------------------------

FOREIGN = {
    "magic": (0, b"X", "not a file of mmapds"),
    "magic mangled by a text-mode copy": (6, b"\r\n", "not a file of mmapds"),
    "big-endian": (8, struct.pack(">I", 0x0A0B0C0D), "big-endian"),
    "the next major format": (12, b"\x02\0", "format 2"),
    "format 0": (12, b"\0\0", "format 0"),
    "a flag of a later release": (24, b"\x01", "features"),
    "the highest flag": (31, b"\x80", "features"),
    "another kind": (16, b"queue\0\0\0", "queue"),
    "kind of a data file": (16, b"syncdata", "syncdata"),
    "more reader slots": (96, struct.pack("<Q", 2048), "2048|slots"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", FOREIGN)
def test_r14_another_format_is_refused_and_stays_byte_identical(prefix: str, what: str, mode: Any) -> None:
    offset, content, words = FOREIGN[what]
    syncfiles.poke(syncfiles.sync(prefix), offset, content)
    syncfiles.seal(syncfiles.sync(prefix))
    before = syncfiles.snapshot(prefix)
    with pytest.raises(IncompatibleFormat, match=words):
        Synchronizer(prefix, mode=mode)
    assert syncfiles.snapshot(prefix) == before
    assert not syncfiles.locked(syncfiles.sync(prefix), 0, 0)


@pytest.mark.parametrize("what", ["magic", "big-endian", "the next major format", "a flag of a later release"])
def test_r14_so_is_a_data_file_and_the_writer_leaves_it_too(prefix: str, what: str) -> None:
    offset, content, words = FOREIGN[what]
    for index in (0, 1):
        syncfiles.poke(syncfiles.data(prefix, index), offset, content)
        syncfiles.seal(syncfiles.data(prefix, index))
    before = [Path(syncfiles.data(prefix, index)).read_bytes() for index in (0, 1)]
    with Synchronizer(prefix) as s:
        for call in (s.read, s.load, lambda: s.write_bytes(b"x")):
            with pytest.raises(IncompatibleFormat, match=words):
                call()
    assert [Path(syncfiles.data(prefix, index)).read_bytes() for index in (0, 1)] == before


def test_r14_a_minor_format_of_a_later_release_is_read(prefix: str) -> None:
    for path in (syncfiles.sync(prefix), syncfiles.data(prefix, 0), syncfiles.data(prefix, 1)):
        syncfiles.poke(path, 14, b"\x07\0")
        syncfiles.seal(path)
    with Synchronizer(prefix) as s:
        assert number(s.load()) == 7


# ---- row 15: flipped bits ------------------------------------------------------------------------------------------


def flips(prefix: str, path: str, bits: Any, mode: str = "shared", verify: bool = True) -> dict[str, int]:
    """Flips each bit, opens and reads; counts the outcomes. A wrong value, or another exception, fails the test."""
    original = Path(path).read_bytes()
    found: dict[str, int] = {}
    descriptor = os.open(path, os.O_RDWR)
    try:
        for bit in bits:
            os.pwrite(descriptor, bytes([original[bit // 8] ^ (1 << bit % 8)]), bit // 8)
            try:
                with Synchronizer(prefix, mode=mode, verify=verify) as s, s.read() as r:  # type: ignore[arg-type]
                    value = number(r.data)
                    outcome = "right" if (value, r.version, len(r)) == (7, 7, SIZE) else f"{value} as {r.version}"
            except (CorruptionError, IncompatibleFormat, DurabilityFailed, NotInitialised, SchemaMismatch) as error:
                outcome = type(error).__name__
            if outcome not in ("right", "CorruptionError"):
                where = f"bit {bit % 8} of byte {bit // 8}"
                accepted = {
                    "IncompatibleFormat": bit < 8 * 32,  # magic, byte order, format: row 14
                    "DurabilityFailed": 8 * syncfiles.FAILED <= bit < 8 * (syncfiles.FAILED + 8),
                    # What a death just before the last store of version 7 leaves: nobody can tell the difference.
                    "6 as 6": bit == 8 * syncfiles.COMMIT,
                }
                assert accepted.get(outcome), f"{outcome} after flipping {where} of {os.path.basename(path)}"
            found[outcome] = found.get(outcome, 0) + 1
            os.pwrite(descriptor, original[: 2 * 4096], 0)
            if bit // 8 >= 2 * 4096:
                os.pwrite(descriptor, original[bit // 8 : bit // 8 + 1], bit // 8)
    finally:
        os.close(descriptor)
    return found


def test_r15_every_bit_of_the_sync_header_page(prefix: str) -> None:
    found = flips(prefix, syncfiles.sync(prefix), range(8 * 4096))
    assert found["CorruptionError"] > 8 * 2000 - 300, found
    assert found["right"] > 8 * 1800, found
    assert found["IncompatibleFormat"] >= 8 * 12, found


@pytest.mark.parametrize("mode", MODES)
def test_r15_every_bit_of_the_commit_block(prefix: str, mode: str) -> None:
    bits = range(8 * syncfiles.COMMIT, 8 * (syncfiles.WAITERS + 64))
    found = flips(prefix, syncfiles.sync(prefix), bits, mode)
    # 64 bits of V and 256 of the active record decide; one of V gives the version before.
    assert found["CorruptionError"] == 63 + 4 * 64, found
    assert found["6 as 6"] == 1, found


@pytest.mark.parametrize("mode", ["shared", "readonly"])
def test_r15_without_verification_the_record_is_still_checked(prefix: str, mode: str) -> None:
    bits = range(8 * syncfiles.COMMIT, 8 * (syncfiles.RECORDS[1] + 32))
    found = flips(prefix, syncfiles.sync(prefix), bits, mode, verify=False)
    assert found["CorruptionError"] == 63 + 4 * 64, found


def test_r15_sampled_bits_of_slots_and_their_bitmap(prefix: str) -> None:
    choose = random.Random(15)
    bits = [choose.randrange(8 * syncfiles.IN_USE, 8 * syncfiles.SIZE) for _ in range(1500)]
    assert flips(prefix, syncfiles.sync(prefix), bits) == {"right": 1500}


@pytest.mark.parametrize("index", [0, 1])
def test_r15_sampled_bits_of_data_headers(prefix: str, index: int) -> None:
    found = flips(prefix, syncfiles.data(prefix, index), range(0, 8 * 4096, 7))
    if index == 0:
        assert set(found) == {"right"}, "nobody reads the other file"
    else:
        assert found["CorruptionError"] > 2000, found


def test_r15_sampled_bits_of_the_payload(prefix: str) -> None:
    choose = random.Random(15)
    bits = [8 * 4096, 8 * (4096 + SIZE) - 1, *(choose.randrange(8 * 4096, 8 * (4096 + SIZE)) for _ in range(1500))]
    for mode in MODES:
        found = flips(prefix, syncfiles.data(prefix, 1), bits, mode)
        assert found == {"CorruptionError": len(bits)}, mode
    behind = range(8 * (4096 + SIZE), 8 * (4096 + SIZE + 100))
    assert flips(prefix, syncfiles.data(prefix, 1), behind) == {"right": len(behind)}


def test_r15_a_damaged_state_is_not_written_over_but_a_damaged_value_is_replaced(prefix: str) -> None:
    syncfiles.flip(syncfiles.data(prefix, 1), 8 * 5000)
    with Synchronizer(prefix) as s:
        with pytest.raises(CorruptionError):
            s.read()
        s.write_bytes(pattern(8, SIZE))
        assert number(s.load()) == 8, "publishing anew mends it"
        s.check()
    syncfiles.flip(syncfiles.sync(prefix), 8 * (syncfiles.RECORDS[0] + 8))
    before = syncfiles.snapshot(prefix)
    with Synchronizer(prefix) as s:
        for call in (s.read, lambda: s.write_bytes(b"x")):
            with pytest.raises(CorruptionError, match="record"):
                call()
        assert not syncfiles.locked(syncfiles.sync(prefix), syncfiles.LOCK_WRITER)
    after = syncfiles.snapshot(prefix)
    assert [after[name] for name in ("_data_0", "_data_1")] == [before[name] for name in ("_data_0", "_data_1")]
    assert after["_sync"][:8192] == before["_sync"][:8192]


def test_r15_a_version_of_zero_although_there_are_records_is_damage(prefix: str) -> None:
    """V = 0 beside a record of version 1 is what a death leaves; beside later versions it is not."""
    syncfiles.poke_word(syncfiles.sync(prefix), syncfiles.COMMIT, 0)
    for mode in MODES:
        with pytest.raises(CorruptionError), Synchronizer(prefix, mode=mode) as s:  # type: ignore[arg-type]
            s.load(default="nothing")


# ---- row 17: something else in its place ---------------------------------------------------------------------------


def make(path: str, what: str) -> None:
    """Puts something that is no file of ours at the path."""
    if what == "empty file":
        Path(path).write_bytes(b"")
    elif what == "short file":
        Path(path).write_bytes(b"\x89mmapds\n" + bytes(1000))
    elif what == "zeros":
        Path(path).write_bytes(bytes(syncfiles.SIZE))
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
    "empty file",
    "short file",
    "zeros",
    "directory",
    "FIFO",
    "symbolic link",
    "dangling link",
    "socket",
    "device",
]


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(folder)}
    return {name: (status.st_ino, status.st_size, status.st_mode) for name, status in found.items()}


@pytest.mark.parametrize("what", THINGS)
@pytest.mark.parametrize("mode", MODES)
def test_r17_something_else_in_place_of_the_sync_file(tmp_path: Path, what: str, mode: Any) -> None:
    prefix = str(tmp_path / "value")
    make(syncfiles.sync(prefix), what)
    before = listing(tmp_path)
    expected: Any = IsADirectoryError if what == "directory" else (IncompatibleFormat, CorruptionError)
    with pytest.raises(expected) as caught:
        Synchronizer(prefix, mode=mode)
    assert syncfiles.sync(prefix) in str(caught.value)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("what", THINGS)
def test_r17_something_else_in_place_of_a_data_file(prefix: str, what: str) -> None:
    for index in (0, 1):
        os.unlink(syncfiles.data(prefix, index))
        make(syncfiles.data(prefix, index), what)
    folder = Path(prefix).parent
    before = listing(folder)
    expected: Any = IsADirectoryError if what == "directory" else (IncompatibleFormat, CorruptionError)
    with Synchronizer(prefix) as s, Synchronizer(prefix, mode="readonly") as reader:
        for call in (s.read, s.load, reader.read, lambda: s.write_bytes(b"x")):
            with pytest.raises(expected) as caught:
                call()
            assert "_data_" in str(caught.value)
        assert s.version == 7
        assert syncfiles.pins(prefix) == {}
    with pytest.raises(expected):
        Synchronizer(prefix, mode="private")
    assert listing(folder) == before


@pytest.mark.parametrize("size", [4096, 8192, syncfiles.SIZE - 1, syncfiles.SIZE + 1, syncfiles.SIZE + 4096])
def test_r17_a_sync_file_of_the_wrong_size(prefix: str, size: int) -> None:
    os.truncate(syncfiles.sync(prefix), size)
    before = syncfiles.snapshot(prefix)
    for mode in MODES:
        with pytest.raises(CorruptionError, match=str(syncfiles.SIZE)):
            Synchronizer(prefix, mode=mode)  # type: ignore[arg-type]
    assert syncfiles.snapshot(prefix) == before


def test_r17_something_else_in_place_of_the_next_inode(prefix: str) -> None:
    os.mkdir(syncfiles.data(prefix, 0) + ".new")
    with Synchronizer(prefix) as s, Synchronizer(prefix) as reader, reader.read() as r:
        for _ in range(2):
            with pytest.raises(OSError, match=r"_data_0\.new"):
                [s.write_bytes(b"x", grace=0.0) for _ in range(3)]
            assert number(r.data) == 7
    with Synchronizer(prefix) as s:
        assert number(s.load()) == 7


def test_r17_something_appears_in_place_of_the_next_inode_and_goes_again(prefix: str) -> None:
    """The write that meets it fails, says so, and leaves nothing locked: the next one works."""
    with Synchronizer(prefix) as s, Synchronizer(prefix) as reader:
        r = reader.read()
        s.write_bytes(pattern(8, SIZE))
        os.mkdir(syncfiles.data(prefix, 1) + ".new")
        for _ in range(2):
            with pytest.raises(OSError, match=r"_data_1\.new"):
                s.write_bytes(b"x", grace=0.0)
        os.rmdir(syncfiles.data(prefix, 1) + ".new")
        assert s.write_bytes(pattern(9, SIZE), grace=0.0).reset
        assert (number(r.data), number(reader.load())) == (7, 9)
        r.release()
