"""The files of a snapshot map as bytes: what tests look at, and damage, behind the package's back.

`check` reads a map by itself, without the package, and holds everything against everything else: the order of the
records, the guide, the table, the sums, the delta's batches and chains, the number of entries. The offsets are written
down here once more on purpose: a change of the layout that nobody meant fails these tests.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import syncfiles
import xxhash

PAGE = 4096
OPTIONS = 96
ORIGIN = 2048
BLOCK = 65536
SENTINEL_SIZE = 8
WRITTEN, HEADS = 4096, 8192
PAIR, GONE, EXPIRES, LONG, KEY_BITS = 1 << 31, 1 << 30, 1 << 29, 1 << 28, (1 << 20) - 1
NAME = re.compile(r"[0-9a-f]{16}\.(layer|delta)")
MANIFEST_NAMES = {"manifest_sync", "manifest_data_0", "manifest_data_1"}
LAYER_OPTIONS = (
    "number", "records", "end", "metadata", "guide", "guides", "common", "table", "buckets", "probes", "sums", "size",
    "keys", "sums_hash",
)  # fmt: skip
_MASK = (1 << 64) - 1

Entries = dict[bytes, tuple[bytes, int]]  # key -> (value, when it expires or 0)
Files = dict[str, bytes]


class LayerRef(NamedTuple):
    number: int
    identity: bytes
    records: int
    bytes: int
    entries: int  # of the map, when this was its newest layer and there was no delta


class Manifest(NamedTuple):
    version: int
    number: int
    entries: int
    keys: int
    clock: int
    boot: bytes
    delta: int
    delta_identity: bytes
    delta_end: int
    layers: tuple[LayerRef, ...]


class Record(NamedTuple):
    key: bytes
    value: bytes
    expires: int
    gone: bool


class Map(NamedTuple):
    """What a map has. `entries` has those that have expired too."""

    manifest: Manifest
    entries: Entries
    names: list[str]

    def values(self) -> dict[bytes, bytes]:
        return {key: value for key, (value, _) in self.entries.items()}


def prefix(path: str) -> str:
    return os.path.join(path, "manifest")


def name(number: int, kind: str) -> str:
    return f"{number:016x}.{kind}"


def layers(path: str) -> list[str]:
    """Paths of the layers that the manifest names, newest first."""
    return [os.path.join(path, name(ref.number, "layer")) for ref in read_manifest(path).layers]


def delta(path: str) -> str:
    found = read_manifest(path).delta
    assert found, "there is no delta"
    return os.path.join(path, name(found, "delta"))


def read_manifest(path: str) -> Manifest:
    version = syncfiles.sequence(prefix(path))
    record = syncfiles.record(prefix(path), version & 1)
    data = syncfiles.peek(syncfiles.data(prefix(path), version & 1), PAGE, record.size)
    assert record.sequence == version, f"version {version}: {record}"
    assert xxhash.xxh3_64_intdigest(data) == record.hash, f"version {version}: {record}"
    magic, number, entries, keys, clock, boot, delta, identity, end, count = struct.unpack_from(
        "<8sQQQq16sQ16sQQ", data
    )
    assert magic == b"manifest"
    assert len(data) == 96 + 48 * count
    refs = tuple(LayerRef(*found) for found in struct.iter_unpack("<Q16s3Q", data[96:]))
    assert all(ref.number < number for ref in refs), refs
    return Manifest(version, number, entries, keys, clock, boot, delta, identity, end, refs)


def _up(size: int, unit: int = 8) -> int:
    return -(-size // unit) * unit


def parse(data: bytes, at: int, end: int) -> tuple[Record, int]:
    """The record at `at`, and where it ends."""
    word, size = struct.unpack_from("<II", data, at)
    assert word & PAIR, f"no record at {at}"
    at += 8
    if word & LONG:
        (size,) = struct.unpack_from("<Q", data, at)
        at += 8
    expires = 0
    if word & EXPIRES:
        (expires,) = struct.unpack_from("<q", data, at)
        at += 8
    length = word & KEY_BITS
    key = data[at : at + length]
    assert not any(data[at + length : at + _up(length)]), "padding"
    at += _up(length)
    value = data[at : at + size]
    assert not any(data[at + size : at + _up(size)]), "padding"
    at += _up(size)
    assert at <= end, (at, end)
    return Record(key, value, expires, bool(word & GONE)), at


def check_header(data: bytes, kind: bytes, where: str) -> tuple[int, ...]:
    assert data[16:24].rstrip(b"\0 ") == kind, (where, data[16:24])
    assert struct.unpack_from("<Q", data, syncfiles.CHECK)[0] == xxhash.xxh3_64_intdigest(data[: syncfiles.CHECK]), (
        where
    )
    assert data[-8:] != bytes(8), f"{where}: no sentinel"
    return struct.unpack_from("<14Q", data, OPTIONS)


def read_layer(data: bytes, where: str) -> list[Record]:
    """Its records, when all that it says about them is right."""
    o = dict(zip(LAYER_OPTIONS, check_header(data, b"layer", where), strict=True))
    assert o["size"] == len(data), (where, o)
    found, at = [], PAGE
    starts: dict[int, int] = {}
    prefixes = []
    while at < o["end"]:
        if len(found) % 16 == 0:
            prefixes.append(at)
        starts[at] = len(found)
        record, at = parse(data, at, o["end"])
        found.append(record)
    keys = [record.key for record in found]
    assert keys == sorted(set(keys)), f"{where}: not in order"
    assert len(found) == o["records"], (where, len(found), o)
    guide = [struct.unpack_from("<QQ", data, o["guide"] + 16 * n) for n in range(o["guides"])]
    common = o["common"]
    assert all(key[:common] == keys[0][:common] and len(key) >= common for key in keys), where
    words = [int.from_bytes(keys[16 * n][common : common + 8].ljust(8, b"\0"), "big") for n in range(len(prefixes))]
    assert guide == list(zip(words, prefixes, strict=True)), f"{where}: the guide"
    table = struct.unpack_from(f"<{8 * o['buckets']}Q", data, o["table"])
    assert sum(entry != 0 for entry in table) == len(found), f"{where}: the table"
    for start, n in starts.items():
        hash_ = xxhash.xxh3_64_intdigest(keys[n])
        bucket = hash_ * o["buckets"] >> 64
        entry = start // 8 << 16 | hash_ & 0xFFFF
        for _ in range(o["probes"]):
            line = table[8 * bucket : 8 * bucket + 8]
            if entry in line:
                break
            assert 0 not in line, f"{where}: {keys[n]!r} is not in the table"
            bucket = (bucket + 1) % o["buckets"]
        else:
            raise AssertionError(f"{where}: {keys[n]!r} is not within {o['probes']} probes")
    sums = data[o["sums"] : -8]
    assert xxhash.xxh3_64_intdigest(sums) == o["sums_hash"], f"{where}: the sums' sum"
    for n, (stored,) in enumerate(struct.iter_unpack("<Q", sums)):
        start = PAGE + n * BLOCK
        assert xxhash.xxh3_64_intdigest(data[start : min(start + BLOCK, o["sums"])]) == stored, f"{where}: block {n}"
    return found


def batch_check(offset: int, words: tuple[int, ...], identity: bytes) -> int:
    accumulator = 0x6261746368
    for word in (offset, *words, *struct.unpack("<2Q", identity)):
        accumulator = ((accumulator ^ word) * 0x9E3779B97F4A7C15) & _MASK
        accumulator ^= accumulator >> 32
    return accumulator


def batches(data: bytes, end: int, where: str) -> Iterator[tuple[int, int, int, list[tuple[int, int, int, Record]]]]:
    """(version, entries, end, [(node's offset, next, hash, record)]) of each batch."""
    _, size, buckets, *_ = check_header(data, b"delta", where)
    assert size == len(data), where
    at = _up(HEADS + 4 * buckets, 64)
    while at < end:
        check, hash_, size, count, version, entries, *zero = struct.unpack_from("<8Q", data, at)
        assert zero == [0, 0], where
        assert batch_check(at, (hash_, size, count, version, entries), data[32:48]) == check, f"{where}: batch at {at}"
        records = at + 64 + 16 * count
        assert xxhash.xxh3_64_intdigest(data[records : at + size]) == hash_, f"{where}: records of the batch at {at}"
        found = []
        place = records
        for n in range(count):
            node = at + 64 + 16 * n
            next_, record_at, key_hash = struct.unpack_from("<IIQ", data, node)
            assert record_at * 8 == place, f"{where}: node {node}"
            record, place = parse(data, place, at + size)
            assert xxhash.xxh3_64_intdigest(record.key) == key_hash, f"{where}: node {node}"
            found.append((node, next_ * 8, key_hash, record))
        assert place == at + size, where
        at += size
        yield version, entries, at, found
    assert at == end, (where, at, end)


def read_delta(data: bytes, end: int, where: str, *, linked: bool = True) -> list[Record]:
    """Its records up to `end`, oldest first. `linked`: this boot has written it, and its chains are right."""
    found: list[Record] = []
    nodes: dict[int, tuple[int, int]] = {}
    for _version, _entries, _end, records in batches(data, end, where):
        for node, next_, hash_, record in records:
            nodes[node] = (next_, hash_)
            found.append(record)
    if not linked:
        return found
    (buckets,) = struct.unpack_from("<Q", data, OPTIONS + 16)
    reached = set()
    for bucket, (head,) in enumerate(struct.iter_unpack("<I", data[HEADS : HEADS + 4 * buckets])):
        at = head * 8
        while at >= end:  # of a batch that was not published
            following = struct.unpack_from("<I", data, at)[0] * 8
            assert following < at, f"{where}: a chain that does not fall, at {at}"
            at = following
        while at:
            assert at in nodes, f"{where}: bucket {bucket} leads to {at}, where no node is"
            next_, hash_ = nodes[at]
            assert hash_ % buckets == bucket, f"{where}: the node at {at} is in bucket {bucket}"
            assert next_ < at, f"{where}: a chain that does not fall, at {at}"
            reached.add(at)
            at = next_
    assert reached == set(nodes), f"{where}: nodes that no chain leads to: {set(nodes) - reached}"
    return found


def check(path: str, message: str = "", *, leftovers: bool = False, linked: bool = True) -> Map:
    """All of the map at `path`; it must be sound. `leftovers`: files that no manifest names may be there."""
    names = sorted(os.listdir(path))
    try:
        manifest = read_manifest(path)
        entries: Entries = {}

        def put(record: Record) -> None:
            if record.gone:
                entries.pop(record.key, None)
            else:
                entries[record.key] = (record.value, record.expires)

        wanted = MANIFEST_NAMES | {f"manifest_data_{n}.damaged" for n in (0, 1)}  # set aside by a recovery
        for n, ref in enumerate(reversed(manifest.layers)):
            file = name(ref.number, "layer")
            wanted.add(file)
            data = Path(path, file).read_bytes()
            assert data[32:48] == ref.identity, file
            assert len(data) == ref.bytes, file
            records = read_layer(data, file)
            assert len(records) == ref.records, file
            assert n or not any(record.gone for record in records), f"{file} is the oldest, and hides something"
            for record in records:
                put(record)
        if manifest.delta:
            file = name(manifest.delta, "delta")
            wanted.add(file)
            data = Path(path, file).read_bytes()
            assert data[32:48] == manifest.delta_identity, file
            for record in read_delta(data, manifest.delta_end, file, linked=linked):
                put(record)
        assert len(entries) == manifest.entries, f"{len(entries)} entries, the manifest says {manifest.entries}"
        assert len(manifest.layers) <= 12
        if manifest.layers and not manifest.delta:
            assert manifest.layers[0].entries == manifest.entries, manifest
        left = set(names) - wanted
        assert leftovers or not left, f"left behind: {left}"
    except (AssertionError, OSError, struct.error) as error:
        raise AssertionError(f"{message or path}: {error}; {names}; {state(path)}") from error
    return Map(manifest, entries, names)


def state(path: str) -> str:
    """For messages of failing tests."""
    try:
        found = read_manifest(path)
    except (AssertionError, OSError, struct.error) as error:
        return f"no manifest: {error!r}"
    refs = [(ref.number, ref.records, ref.bytes) for ref in found.layers]
    return (
        f"version {found.version}, {found.entries} entries, layers {refs}, delta {found.delta} to {found.delta_end}, "
        f"next {found.number}"
    )


def content(path: str) -> Files:
    """All files."""
    return {entry.name: Path(entry.path).read_bytes() for entry in os.scandir(path) if entry.is_file()}


def restore(path: str, files: Files, *, in_place: bool = False) -> None:
    """Writes what `content` returned, and nothing else. `in_place`: to the same inodes where they are there."""
    os.makedirs(path, exist_ok=True)
    for entry in list(os.scandir(path)):
        if not in_place or entry.name not in files:
            os.unlink(entry.path)
    for file, data in files.items():
        target = os.path.join(path, file)
        with open(target, "r+b" if in_place and os.path.exists(target) else "wb") as there:
            there.write(data)
            there.truncate(len(data))


def other_boot(path: str) -> None:
    """As if the machine had been started anew since the map was last used. The manifest's clock stays."""
    for file in os.listdir(path):
        if file == "manifest_sync" or NAME.fullmatch(file):
            syncfiles.poke(os.path.join(path, file), ORIGIN, b"another boot now")


def poke_option(file: str, number: int, value: int) -> None:
    """Changes what a header says, and computes its checksum anew, as a hostile writer would."""
    syncfiles.poke_word(file, OPTIONS + 8 * number, value & _MASK)
    syncfiles.seal(file)


def reseal(file: str) -> None:
    """Makes a layer's sums right again after a change of what they cover, as a hostile writer would."""
    data = bytearray(Path(file).read_bytes())
    options = dict(zip(LAYER_OPTIONS, struct.unpack_from("<14Q", data, OPTIONS), strict=True))
    for n in range(-(-(options["sums"] - PAGE) // BLOCK)):
        start = PAGE + n * BLOCK
        digest = xxhash.xxh3_64_intdigest(bytes(data[start : min(start + BLOCK, options["sums"])]))
        struct.pack_into("<Q", data, options["sums"] + 8 * n, digest)
    syncfiles.poke(file, options["sums"], bytes(data[options["sums"] : -8]))
    poke_option(file, 13, xxhash.xxh3_64_intdigest(bytes(data[options["sums"] : -8])))


def tiny(size: int = 16384, buckets: int = 16) -> None:
    """From now on this process makes deltas so small that a few commits fill them."""
    from mmapds import _snapfiles

    files: Any = _snapfiles
    files.DELTA_SIZE, files.DELTA_BUCKETS = size, buckets
