"""Snapshot maps for tests: small ones that fold and merge after a few commits, and what must hold for each when nobody
is in the middle of anything.

A delta of the usual size takes thousands of commits. `tiny` gives a handle deltas that take a few dozen, so that
layers, merging and compaction are reached by small tests.
"""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

from mmapds import Snapshot, SnapshotMap

LAYER = re.compile(r"[0-9a-f]{16}\.layer")
DELTA = re.compile(r"[0-9a-f]{16}\.delta")
MANIFEST = {"manifest_sync", "manifest_data_0", "manifest_data_1"}


def tiny(m: SnapshotMap, monkeypatch: pytest.MonkeyPatch, size: int = 1 << 14) -> SnapshotMap:
    """From its next delta on, the handle makes small ones: `size` bytes, of which 8,248 are not for batches."""
    monkeypatch.setattr("mmapds._snapfiles.DELTA_BUCKETS", 8)
    m._files.delta_size = size
    return m


def commit(m: SnapshotMap, changes: dict[Any, Any] | None = None, *gone: Any, ttl: float | None = None) -> int:
    """One transaction; the version it made."""
    with m.transaction() as txn:
        for key, value in (changes or {}).items():
            txn.set(key, value, ttl)
        for key in gone:
            del txn[key]
    return m.refresh()


def fold(m: SnapshotMap) -> None:
    """Makes a layer of the delta, and of the layers that are merged with it, by a commit that is too large for one."""
    before = m._files.delta_size
    m._files.delta_size = 2
    try:
        with m.transaction() as txn:
            key = next(iter(txn))
            txn.set(key, txn[key])
    finally:
        m._files.delta_size = before


def files(path: str) -> list[str]:
    """The names of layers and deltas, sorted."""
    return sorted(name for name in os.listdir(path) if LAYER.fullmatch(name) or DELTA.fullmatch(name))


def layers(m: SnapshotMap | Snapshot) -> list[int]:
    """How many records each layer has, newest first."""
    return [layer["records"] for layer in m.stats()["layers"]]


def contents(m: SnapshotMap | Snapshot) -> dict[Any, Any]:
    """What it holds, after all ways to read it have said the same."""
    walked = list(m.items())
    keys = [key for key, _ in walked]
    encoded = [key.encode() if isinstance(key, str) else key for key in keys]
    assert encoded == sorted(set(encoded)), "keys in their order, each once"
    assert list(m) == list(m.keys()) == keys
    assert list(m.range(reverse=True)) == walked[::-1]
    assert list(reversed(m.keys())) == keys[::-1]
    assert [value for _, value in walked] == list(m.values())
    found = dict(walked)
    assert m.get_many(keys) == found
    for key, value in walked:
        assert key in m
        assert m[key] == m.get(key) == value, key
    if keys:
        assert (m.first(), m.last()) == (walked[0], walked[-1])
    return found


def check(path: str, codec: Any = None) -> None:
    """What must hold for a map that nobody is changing: its files are those that it names, and all can be read."""
    if not os.path.exists(os.path.join(path, "manifest_data_1")):  # which the first version is in
        return
    with SnapshotMap(path, mode="readonly", codec=codec) as m:
        stats = m.stats()
        named = [f"{layer['number']:016x}.layer" for layer in stats["layers"]]
        if stats["delta"] is not None:
            named.append(f"{stats['delta']['number']:016x}.delta")
        assert files(path) == sorted(named), "what lies there is what the manifest names"
        rest = set(os.listdir(path)) - set(named)
        assert {"manifest_sync", f"manifest_data_{m.version & 1}"} <= rest <= MANIFEST, rest
        assert len(named) <= 9
        assert m.verify() >= 0
        keys = list(m)
        entries = len(m)
        assert len(keys) <= entries, "what has expired counts, nothing else does"
    with SnapshotMap(path, mode="readonly", codec=codec, verify=True) as m:
        assert list(m) == keys
        assert m.get_many(keys).keys() == set(keys)
        assert len(m) == entries
