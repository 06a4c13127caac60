"""The files of a snapshot map as bytes: what tests look at, and damage, behind the package's back.

The offsets are written down here once more on purpose: a change of the layout that nobody meant fails these tests.
`seal_layer`, `seal_batch` and `publish` compute checksums anew, as somebody hostile would.
"""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import NamedTuple

import pytest
import syncfiles as sync
import xxhash
from snapmaps import commit, tiny
from syncfiles import PAGE, peek, poke, poke_word, word

from mmapds import SnapshotMap
from mmapds.inspection import Finding, describe, verify

OPTIONS, SUMS_HASH, BLOCK, KEYS = 96, 13, 65536, 12
(NUMBER, RECORDS, END, METADATA, GUIDE, GUIDES, COMMON, TABLE, BUCKETS, PROBES, SUMS, SIZE) = range(12)
WRITTEN, HEADS = 4096, 8192
BATCH, NODE = 64, 16
MANIFEST_NUMBER, ENTRIES, KIND, DELTA, DELTA_END, LAYERS, LAYER, LAYER_SIZE = 8, 16, 24, 56, 80, 88, 96, 48
_MASK = (1 << 64) - 1


def manifest(path: str) -> str:
    """The prefix of the Synchronizer."""
    return os.path.join(path, "manifest")


def value(path: str) -> bytes:
    """The newest manifest."""
    prefix = manifest(path)
    index = sync.sequence(prefix) & 1
    return peek(sync.data(prefix, index), PAGE, sync.record(prefix, index).size)


def publish(path: str, content: bytes) -> None:
    """Puts another manifest in the place of the newest."""
    prefix = manifest(path)
    version = sync.sequence(prefix)
    poke(sync.data(prefix, version & 1), PAGE, content)
    sync.write_record(prefix, version & 1, version, len(content), xxhash.xxh3_64_intdigest(content))


def with_word(content: bytes, offset: int, number: int) -> bytes:
    """With another word there."""
    return content[:offset] + struct.pack("<Q", number) + content[offset + 8 :]


def named(path: str) -> tuple[list[str], str | None]:
    """The files of the layers, newest first, and of the delta, that the manifest names."""
    content = value(path)
    (count,) = struct.unpack_from("<Q", content, LAYERS)
    numbers = [struct.unpack_from("<Q", content, LAYER + LAYER_SIZE * i)[0] for i in range(count)]
    (delta,) = struct.unpack_from("<Q", content, DELTA)
    return (
        [os.path.join(path, f"{number:016x}.layer") for number in numbers],
        os.path.join(path, f"{delta:016x}.delta") if delta else None,
    )


def option(file: str, number: int) -> int:
    """A word of the header's options."""
    return word(file, OPTIONS + 8 * number)


def set_option(file: str, number: int, content: int) -> None:
    """The same, with a right header afterwards."""
    poke_word(file, OPTIONS + 8 * number, content)
    sync.seal(file)


def seal_layer(file: str) -> None:
    """Computes all checksums of a layer anew."""
    data = Path(file).read_bytes()
    sums = option(file, SUMS)
    found = [xxhash.xxh3_64_intdigest(data[at : min(at + BLOCK, sums)]) for at in range(PAGE, sums, BLOCK)]
    packed = struct.pack(f"<{len(found)}Q", *found)
    poke(file, sums, packed)
    set_option(file, SUMS_HASH, xxhash.xxh3_64_intdigest(packed))


class Stored(NamedTuple):
    """A record."""

    at: int
    key: bytes
    end: int


def up(size: int) -> int:
    return (size + 7) & ~7


def stored(file: str, at: int) -> Stored:
    """A record with a short value, that does not expire or does."""
    first = word(file, at)
    start = at + (16 if first >> 29 & 1 else 8)
    size = first & 0xFFFFF
    return Stored(at, peek(file, start, size), start + up(size) + up(first >> 32))


def records(file: str) -> list[Stored]:
    """All of a layer."""
    found, at = [], PAGE
    while at < option(file, END):
        found.append(stored(file, at))
        at = found[-1].end
    return found


def table_entry(file: str, record: Stored) -> int:
    """Where in the file the record's entry of the table is."""
    digest = xxhash.xxh3_64_intdigest(record.key)
    buckets = option(file, BUCKETS)
    bucket = digest * buckets >> 64
    for _ in range(option(file, PROBES)):
        for at in range(option(file, TABLE) + 64 * bucket, option(file, TABLE) + 64 * bucket + 64, 8):
            if word(file, at) == record.at >> 3 << 16 | digest & 0xFFFF:
                return at
        bucket = (bucket + 1) % buckets
    raise AssertionError(f"{record} has no entry in {file}")


class BatchAt(NamedTuple):
    """A batch of a delta."""

    at: int
    end: int
    count: int

    @property
    def first(self) -> int:
        """Where its records begin."""
        return self.at + BATCH + NODE * self.count


def start(file: str) -> int:
    """Where the batches of a delta begin."""
    return (HEADS + 4 * option(file, 2) + 63) & ~63


def batches(file: str, end: int) -> list[BatchAt]:
    """Those of a delta up to `end`."""
    found, at = [], start(file)
    while at < end:
        found.append(BatchAt(at, at + word(file, at + 16), word(file, at + 24)))
        at = found[-1].end
    return found


def seal_batch(file: str, batch: BatchAt) -> None:
    """Computes a batch's checksums anew."""
    poke_word(file, batch.at + 8, xxhash.xxh3_64_intdigest(peek(file, batch.first, batch.end - batch.first)))
    check = 0x6261746368
    words = struct.unpack("<5Q", peek(file, batch.at + 8, 40))
    for each in (batch.at, *words, *struct.unpack("<2Q", peek(file, sync.IDENTITY, 16))):
        check = ((check ^ each) * 0x9E3779B97F4A7C15) & _MASK
        check ^= check >> 32
    poke_word(file, batch.at, check)


def fill(path: str, monkeypatch: pytest.MonkeyPatch, **options: str) -> None:
    """A map with several layers and a delta of a few batches, and records of all sorts."""
    rng = random.Random(5)
    keys = [f"common/{number:05}" for number in range(0, 2400, 2)]
    SnapshotMap.build(
        path, ((key, "x" * rng.randrange(120)) for key in rng.sample(keys, len(keys))), metadata={"of": 1}, **options
    )
    with SnapshotMap(path) as m:
        tiny(m, monkeypatch)
        number = 0
        while len(m.stats()["layers"]) < 3 or m.stats()["delta"]["used"] < 2000:
            commit(m, {f"common/{rng.randrange(2400):05}": "y" * rng.randrange(90) for _ in range(12)}, keys.pop())
            commit(m, {f"common/{number:05}-ü": number}, ttl=1e-3 if number % 2 else 1e6)
            number += 1
        commit(m, {"common/a": 1, "common/b": 2}, "common/a" if "common/a" in m else keys.pop())


class Shared:
    """A map that tests damage and mend again."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.layers, delta = named(path)
        assert delta is not None
        self.delta = delta
        self.end = struct.unpack_from("<Q", value(path), DELTA_END)[0]
        self.batches = batches(delta, self.end)
        self.files = {entry.path: Path(entry.path).read_bytes() for entry in os.scandir(path)}

    def mend(self) -> None:
        for file in set(os.listdir(self.path)) - {os.path.basename(file) for file in self.files}:
            os.unlink(os.path.join(self.path, file))
        for file, data in self.files.items():
            os.truncate(file, len(data))
            poke(file, 0, data)

    def found(self) -> list[Finding]:
        """What is found now; `describe` must say something of every file, or raise what it may."""
        describe(self.path)
        return verify(self.path)


def says(found: list[Finding], severity: str, where: str, what: str) -> None:
    """Asserts that one of the findings is this one."""
    where = os.path.basename(where)
    assert [f for f in found if (f.severity, f.where) == (severity, where) and what in f.what], found


def assert_named(found: list[Finding], file: str) -> None:
    """Asserts that something is wrong with this file, and with no other."""
    assert {f.where for f in found} == {os.path.basename(file)}, found
    assert "error" in {f.severity for f in found}, found
