"""A snapshot map in words: what `mmapds inspect` says of it, and of its layers and its delta."""

from __future__ import annotations

import os
import struct
from typing import Any

import msgpack

from mmapds import files
from mmapds._native import kernel
from mmapds.errors import MappingLost
from mmapds.inspection import _sync
from mmapds.inspection._base import described_header, first_page, opened
from mmapds.inspection._snapshot import KEYS, NAME, SYNC, decode, file_names, mapped, read_manifest
from mmapds.inspection._snapshot_delta import Delta, geometry_is_wrong, start_of
from mmapds.inspection._snapshot_layer import layer_options, parts_are_wrong

_WHAT = {
    "sync": "snapshot map: what its manifest names",
    "syncdata": "manifest of a snapshot map",
    "layer": "layer of a snapshot map",
    "delta": "delta of a snapshot map: the newest commits",
}
_LARGEST_METADATA = 1 << 16
_WRITTEN = kernel.PAGE


def describe(path: str) -> dict[str, object]:
    """A snapshot map in words: its directory, its manifest, or one of its files."""
    if os.path.isdir(path):
        path = os.path.join(path, SYNC)
    folder = os.path.dirname(path) or "."
    with opened(path) as fd:
        header = files.parse_header(first_page(fd), path)
        common = described_header(fd, path, header)
        if header.kind in _WHAT:
            common["what"] = _WHAT[header.kind]
        if header.kind == "sync":
            return common | _described_map(folder) | _sync.described_control(fd, path, header)
        if header.kind == "syncdata":
            return common | _sync.described_data(fd, path[: -len("_data_0")], header)
        if header.kind == "layer":
            return common | _described_layer(fd, header) | _place_in_map(folder, path, header)
        if header.kind == "delta":
            return common | _described_delta(fd, path, header) | _place_in_map(folder, path, header)
        return common


def _kind(keys: int) -> str:
    return KEYS[keys] if keys < len(KEYS) else f"unknown ({keys})"


def _described_map(folder: str) -> dict[str, object]:
    """What the manifest says."""
    reading = read_manifest(folder)
    contents = decode(reading.data)[0] if reading.data else None
    names = file_names(folder)
    if contents is None:
        empty = reading.data == b""
        return {"version": 0 if empty else None, "manifest_right": empty or None, "files": names}
    layers = [_described_part(folder, f"{one.number:016x}.layer") | {"records": one.records} for one in contents.layers]
    delta = None
    if contents.delta is not None:
        delta = _described_part(folder, f"{contents.delta.number:016x}.delta") | {"end": contents.delta.end}
    named = {one["name"] for one in [*layers, *([delta] if delta else [])]}
    return {
        "version": reading.version,
        "manifest_right": True,
        "entries": contents.entries,
        "keys": _kind(contents.keys),
        "next_number": contents.number,
        "clock": {"nanoseconds": contents.clock, "boot": contents.boot.hex()},
        "layers": layers,
        "delta": delta,
        "not_named": [name for name in names if name not in named],
    }


def _described_part(folder: str, name: str) -> dict[str, Any]:
    try:
        status = os.lstat(os.path.join(folder, name))
    except OSError:
        return {"name": name, "size": None, "disk": None}
    return {"name": name, "size": status.st_size, "disk": status.st_blocks * 512}


def _place_in_map(folder: str, path: str, header: files.Header) -> dict[str, object]:
    """Whether the manifest beside it names the file."""
    if not os.path.lexists(os.path.join(folder, SYNC)) or not NAME.fullmatch(os.path.basename(path)):
        return {"map": None}
    reading = read_manifest(folder)
    contents = decode(reading.data)[0] if reading.data else None
    if contents is None or reading.header is None:
        return {"map": {"path": folder, "is_parent": None, "named": None}}
    named = {(ref.number, ref.identity) for ref in contents.layers}
    if contents.delta is not None:
        named.add((contents.delta.number, contents.delta.identity))
    return {
        "map": {
            "path": folder,
            "is_parent": header.parent == reading.header.identity,
            "named": (header.options[0], header.identity) in named,
        }
    }


def _described_layer(fd: int, header: files.Header) -> dict[str, object]:
    options = layer_options(header)
    size = os.fstat(fd).st_size
    wrong = parts_are_wrong(options, size)
    found: dict[str, object] = {
        "options": options | {"keys": _kind(options["keys"]), "sums_hash": f"{options['sums_hash']:016x}"}
    }
    if wrong:
        return found | {"cut": wrong}
    length = options["metadata"]
    metadata: object = None
    if 0 < length <= _LARGEST_METADATA:
        data = os.pread(fd, length, options["end"])
        try:
            metadata = repr(msgpack.unpackb(data, raw=False, strict_map_key=False))
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            metadata = f"cannot be decoded: {error}"
    elif length:
        metadata = f"{length} bytes"
    return found | {"metadata": metadata}


def _described_delta(fd: int, path: str, header: files.Header) -> dict[str, object]:
    number, stored, buckets, before = header.options[:4]
    size = os.fstat(fd).st_size
    found: dict[str, object] = {"options": {"number": number, "size": stored, "buckets": buckets, "entries": before}}
    if wrong := geometry_is_wrong(header, size):
        return found | {"cut": wrong}
    written = struct.unpack("<Q", os.pread(fd, 8, _WRITTEN).ljust(8, b"\0"))[0]
    found |= {"start": start_of(buckets), "limit": size - 8, "written": written}
    try:
        delta = Delta(mapped(fd, size, path), header)
        batches = records = 0
        version = entries = None
        end = delta.start
        for batch in delta.walk(min(written, delta.limit)):
            batches, records, end = batches + 1, records + batch.count, batch.end
            version, entries = batch.version, batch.entries
        delta.mapping.ensure()
    except (MappingLost, OSError) as error:
        return found | {"cut": f"changed while it was read: {error}"}
    return found | {
        "batches": {"count": batches, "records": records, "read_up_to": end, "version": version, "entries": entries}
    }
