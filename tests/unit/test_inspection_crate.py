"""`describe` and `verify` for the files of protocol "mmap-sync"."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
import syncfiles as raw
import xxhash
from findings import errors, only

from mmapds import Synchronizer
from mmapds.errors import IncompatibleFormat
from mmapds.inspection import describe, verify


@pytest.fixture
def crate(tmp_path: Path) -> str:
    """The same in the files of mmap-sync: the third is in data_0."""
    path = str(tmp_path / "rust")
    with Synchronizer(path, protocol="mmap-sync") as s:
        for number in range(1, 4):
            s.write(list(range(100 * number)))
    return path


def state(path: str) -> tuple[int, int, int]:
    return struct.unpack("<Q2I", Path(path + "_state").read_bytes())


@pytest.mark.parametrize("part", ["", "_state", "_data_0", "_data_1"])
def test_crate_sound(crate, part):
    assert verify(crate + part) == []


def test_crate_described(crate):
    value = Path(crate + "_data_0").read_bytes()
    found = describe(crate)
    assert found == describe(crate + "_state")
    assert found["active"] == 0
    assert found["value_size"] == len(value)
    assert found["checksum"] == f"{xxhash.xxh3_64_intdigest(value) & 0xFFFFFF:06x}"
    assert found["readers"] == [0, 0]
    assert found["writer"] == {"locked": False, "holder": None}
    assert [data["size"] for data in found["data"]] == [len(value), os.stat(crate + "_data_1").st_size]
    with Synchronizer(crate, protocol="mmap-sync") as s, s.read():
        s.write(1, grace=0)
        found = describe(crate)
        assert found["readers"] == [1, 0]
        assert found["active"] == 1
        assert found["writer"]["locked"] is True
        assert found["writer"]["holder"].startswith(f"pid {os.getpid()} (")
    data = describe(crate + "_data_1")
    assert (data["active"], data["value_size"], data["state"]) == (True, 1, crate + "_state")
    data = describe(crate + "_data_0")
    assert (data["active"], data["value_size"]) == (False, None)


def test_crate_damage(crate, tmp_path):
    version = state(crate)[0]
    raw.flip(crate + "_data_0", 8)
    only(crate, "note", "rust_data_0", "is not that of xxh3")
    raw.flip(crate + "_data_0", 8)
    os.truncate(crate + "_data_0", 100)
    only(crate, "error", "rust_data_0", "has 100 bytes, and the state says")
    os.unlink(crate + "_data_0")
    only(crate, "error", "rust_data_0", "is missing")
    os.mkdir(crate + "_data_0")
    only(crate, "error", "rust_data_0", "is a directory")
    os.rmdir(crate + "_data_0")
    os.unlink(crate + "_data_1")
    os.mkfifo(crate + "_data_1")
    assert {f.where for f in errors(crate)} == {"rust_data_0", "rust_data_1"}
    Path(crate + "_state").write_bytes(struct.pack("<Q2I", 0, 0, 0))
    assert [f.where for f in errors(crate)] == ["rust_data_1"]
    os.unlink(crate + "_data_1")
    assert verify(crate) == []
    assert describe(crate)["active"] is None
    Path(crate + "_state").write_bytes(struct.pack("<Q2I", version, 0, (1 << 32) - 1))
    found = verify(crate)
    assert [f.severity for f in found] == ["error", "warning"]
    assert "below zero" in found[1].what


def test_crate_in_creation_or_of_another_size(crate):
    os.truncate(crate + "_state", 0)
    only(crate, "note", "rust_state", "is empty")
    assert describe(crate)["state"] == "empty: it is being created"
    assert "active" not in describe(crate + "_data_0")
    os.truncate(crate + "_state", 15)
    with pytest.raises(IncompatibleFormat):
        verify(crate)
    with pytest.raises(IncompatibleFormat):
        describe(crate)
