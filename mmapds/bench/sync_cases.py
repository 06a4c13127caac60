"""The calls of the Synchronizer and the mapping layer that are timed, and what they are measured by."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack

import xxhash

from mmapds import Region, Synchronizer
from mmapds._native.unit import Unit
from mmapds.bench.measure import Case, statement
from mmapds.bench.peers import one_msync

__all__ = ["SMALL", "VALUE", "calls", "crate_calls", "durable_writes", "has_room", "published", "writes"]

SMALL = 36  # bytes: the archive of the value below, as the Rust crate makes it
VALUE = {"version": 7, "messages": ["Hello", "World", "!"]}
MIB = 1 << 20
LARGE = 64 * MIB
_PAGE = 4096  # where the data of a Synchronizer begins: the references copy to the same place


def calls(stack: ExitStack, directory: str, roomy: str) -> list[Case]:
    """Everything that takes nanoseconds. `roomy` has room for the large value."""
    unit = Unit()
    s = stack.enter_context(Synchronizer(f"{directory}/calls", codec="raw"))
    s.write_bytes(bytes(SMALL))
    large = stack.enter_context(Synchronizer(f"{roomy}/large", codec="raw"))
    large.write_bytes(bytes(LARGE))
    value = stack.enter_context(Synchronizer(f"{directory}/value", codec="msgpack"))
    value.write(VALUE)
    region = stack.enter_context(Region.open(f"{directory}/region", 2 * _PAGE))
    word = region.atomic(0)
    return [
        statement("U", "unit.call()", {"unit": unit}),
        statement("with_empty", "with unit.context():\n    pass", {"unit": unit}),
        statement("version", "s.version", {"s": s}),
        statement("read_release", "r = s.read()\nr.release()", {"s": s}),
        statement("with_read", "with s.read():\n    pass", {"s": s}),
        statement("with_read_64mib", "with s.read():\n    pass", {"s": large}),
        statement("load", "s.load()", {"s": value}),
        statement("pread", "region.pread(100, 2000)", {"region": region}),
        statement("pwrite", "region.pwrite(data, 2000)", {"region": region, "data": bytes(100)}),
        statement("fetch_add", "word.fetch_add(1)", {"word": word}),
        # Beside the peers: a copy of the bytes, and a decoded value, made anew each time.
        statement("read_copy", "with s.read() as r:\n    bytes(r.data)", {"s": s}),
        statement("read_value", "with s.read() as r:\n    r.value", {"s": value}),
        statement("write_value", "s.write(value)", {"s": value, "value": VALUE}),
    ]


def has_room(directory: str | None) -> bool:
    """Whether the large value fits there; containers often give /dev/shm 64 MiB."""
    return directory is not None and shutil.disk_usage(directory).free > 2 * LARGE


def crate_calls(stack: ExitStack, memory: str) -> list[Case]:
    """What is timed between two runs of the crate's program."""
    s = stack.enter_context(Synchronizer(f"{memory}/beside", codec="raw"))
    return [statement("write_36", "s.write_bytes(data)", {"s": s, "data": bytes(SMALL)})]


def writes(stack: ExitStack, memory: str) -> list[Case]:
    """1 MiB at a time.

    The references copy into mappings of the same kind: two of them in turn, because two files in turn is what a write
    fills (so as not to touch what is being read), and once more into one alone, for comparison.
    """
    data = bytes(range(256)) * (MIB // 256)
    s = stack.enter_context(Synchronizer(f"{memory}/writes", codec="raw"))
    regions = [stack.enter_context(Region.open(f"{memory}/copy_{i}", _PAGE + MIB)) for i in (0, 1)]
    names = {"a": regions[0], "b": regions[1], "data": data, "digest": xxhash.xxh3_64_intdigest, "at": _PAGE}
    copy = "{}.pwrite(data, at)\ndigest(data)\n"
    return [
        statement("write_1mib", "s.write_bytes(data)\n" * 2, {"s": s, "data": data}, repeat=1, each=2),
        statement("memcpy_xxh3", copy.format("a") + copy.format("b"), names, repeat=1, each=2),
        statement("memcpy_xxh3_one", copy.format("a") * 2, names, repeat=1, each=2),
    ]


def durable_writes(stack: ExitStack, disk: str, name: str) -> list[Case]:
    """A write that waits for the disk, and one msync of as many bytes that were just changed."""
    data = b"x" * {"36": SMALL, "1mib": MIB}[name]
    s = stack.enter_context(Synchronizer(f"{disk}/power_{name}", codec="raw", durability="power"))
    return [
        statement(f"power_{name}", "s.write_bytes(data)", {"s": s, "data": data}, repeat=1),
        one_msync(stack, f"{disk}/msync_{name}", f"msync_{name}", data),
    ]


def published(stack: ExitStack, directory: str, names: Sequence[str]) -> list[str]:
    """Prefixes of Synchronizers that hold a small value."""
    prefixes = [f"{directory}/{name}" for name in names]
    for prefix in prefixes:
        stack.enter_context(Synchronizer(prefix, codec="raw")).write_bytes(bytes(SMALL))
    return prefixes
