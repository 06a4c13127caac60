"""The files of the default Synchronizer protocol as bytes: what tests look at, and damage, behind the package's back.

The offsets are written down here once more on purpose: a change of the layout that nobody meant fails these tests.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from pathlib import Path
from typing import NamedTuple

import xxhash

PAGE = 4096
IDENTITY = 32
CHECK = 2040
ORIGIN = 2048
HOLDER = 2112
FAILED = 2176
COMMIT = 4096
RECORDS = (4160, 4224)
WAITERS = 4288
IN_USE = 4352
SLOTS = 8192
SLOT_SIZE = 128
SLOT_COUNT = 1024
SIZE = 139264
LOCK_OPEN, LOCK_WRITER, LOCK_SLOT = 0, 1, 64
SUFFIXES = ("_sync", "_data_0", "_data_1")
_MASK = (1 << 64) - 1


class Record(NamedTuple):
    sequence: int
    size: int
    hash: int
    check: int
    generation: int


def sync(prefix: str | Path) -> str:
    return f"{prefix}_sync"


def data(prefix: str | Path, index: int) -> str:
    return f"{prefix}_data_{index}"


def peek(path: str, offset: int, length: int = 8) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def poke(path: str, offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def word(path: str, offset: int) -> int:
    return int.from_bytes(peek(path, offset), "little")


def poke_word(path: str, offset: int, value: int) -> None:
    poke(path, offset, value.to_bytes(8, "little"))


def flip(path: str, bit: int) -> None:
    """Inverts one bit of a file; twice is never."""
    byte = peek(path, bit // 8, 1)[0] ^ (1 << bit % 8)
    poke(path, bit // 8, bytes([byte]))


def sequence(prefix: str | Path) -> int:
    return word(sync(prefix), COMMIT)


def record(prefix: str | Path, index: int) -> Record:
    return Record(*struct.unpack("<5Q", peek(sync(prefix), RECORDS[index], 40)))


def record_check(identity: bytes, sequence: int, size: int, digest: int) -> int:
    """What binds a record's words to each other and to the file."""
    accumulator = 0x6D6D61706473
    for value in (sequence, size, digest, *struct.unpack("<2Q", identity)):
        accumulator = ((accumulator ^ value) * 0x9E3779B97F4A7C15) & _MASK
        accumulator ^= accumulator >> 32
    return accumulator


def write_record(prefix: str | Path, index: int, sequence: int, size: int, digest: int) -> None:
    """A record with a right check, as a hostile writer would make it."""
    path = sync(prefix)
    check = record_check(peek(path, IDENTITY, 16), sequence, size, digest)
    poke(path, RECORDS[index], struct.pack("<4Q", sequence, size, digest, check))


def set_sequence(prefix: str | Path, value: int) -> None:
    """Gives the newest version another number; nobody may have the files open."""
    old = sequence(prefix)
    newest = record(prefix, old & 1)
    content = peek(data(prefix, old & 1), PAGE, newest.size)
    assert old & 1 == value & 1, "the active index must stay"
    write_record(prefix, value & 1, value, newest.size, xxhash.xxh3_64_intdigest(content))
    poke_word(sync(prefix), COMMIT, value)


def other_boot(path: str) -> None:
    """As if the machine had been started anew since the file was last used."""
    poke(path, ORIGIN, os.urandom(16))


def seal(path: str) -> None:
    """Computes the checksum of a changed header anew, as a hostile writer would."""
    poke_word(path, CHECK, xxhash.xxh3_64_intdigest(peek(path, 0, CHECK)))


def slots_in_use(prefix: str | Path) -> list[int]:
    bits = int.from_bytes(peek(sync(prefix), IN_USE, 128), "little")
    return [slot for slot in range(SLOT_COUNT) if bits >> slot & 1]


def pins(prefix: str | Path) -> dict[int, tuple[int, int]]:
    """Slots whose pin counts are not both 0."""
    content = peek(sync(prefix), SLOTS, SLOT_COUNT * SLOT_SIZE)
    found = {slot: struct.unpack_from("<2Q", content, slot * SLOT_SIZE) for slot in range(SLOT_COUNT)}
    return {slot: counts for slot, counts in found.items() if counts != (0, 0)}


def locked(path: str, start: int, length: int = 1) -> bool:
    """Whether anybody holds a lock in the range (length 0: to infinity)."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        answer = fcntl.fcntl(descriptor, 36, request)  # F_OFD_GETLK
        return struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK
    finally:
        os.close(descriptor)


def lock(descriptor: int, start: int, length: int = 1) -> None:
    """Takes a lock as a handle does; OSError if somebody else has it."""
    fcntl.fcntl(descriptor, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0))  # F_OFD_SETLK


def snapshot(prefix: str | Path) -> dict[str, bytes]:
    """All files of a prefix, by suffix."""
    folder, name = os.path.split(str(prefix))
    return {
        entry.name.removeprefix(name): Path(entry.path).read_bytes()
        for entry in os.scandir(folder)
        if entry.name.startswith(name + "_") and entry.is_file(follow_symlinks=False)
    }


def copy(prefix: str | Path, target: str | Path) -> None:
    """Copies the three files, as cp does."""
    for suffix in SUFFIXES:
        if os.path.exists(f"{prefix}{suffix}"):
            shutil.copyfile(f"{prefix}{suffix}", f"{target}{suffix}")


def restore(prefix: str | Path, files: dict[str, bytes]) -> None:
    """Writes what `snapshot` returned, and nothing else, under a prefix."""
    for suffix in snapshot(prefix):
        os.unlink(f"{prefix}{suffix}")
    for suffix, content in files.items():
        Path(f"{prefix}{suffix}").write_bytes(content)


def state(prefix: str | Path) -> str:
    """For messages of failing tests."""
    return (
        f"V={sequence(prefix)} records={[tuple(record(prefix, index)) for index in (0, 1)]} "
        f"slots={slots_in_use(prefix)} pins={pins(prefix)}"
    )
