"""`describe` and `verify` for the counters of emmap, and how files of that kind and of ours are told apart."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from findings import only

from mmapds import Counters, Synchronizer, files
from mmapds.errors import IncompatibleFormat
from mmapds.inspection import describe, verify

EMMAP = b"EMMAP01\n"


def test_emmap(tmp_path):
    path = str(tmp_path / "erlang")
    Path(path).write_bytes(EMMAP + struct.pack("<Q3q", 3, 1, -1, 2**63 - 1))
    assert verify(path) == []
    found = describe(path)
    assert found == {
        "what": "counters of emmap, by index",
        "path": path,
        "size": 40,
        "permissions": found["permissions"],
        "kind": "emmap counters",
        "count": 3,
    }
    with Counters(path, layout="emmap") as c:
        c.check()
    for content, severity, text in (
        (EMMAP + struct.pack("<Q4q", 3, 0, 0, 0, 0), "warning", "has 48 bytes, and 3 counters end at 40"),
        (EMMAP + struct.pack("<Q2q", 3, 0, 0), "error", "has 32 bytes, and 3 counters end at 40: it was cut"),
        (EMMAP + struct.pack("<Q", 0), "error", "says that it holds 0 counters"),
        (EMMAP + struct.pack("<Q", 2**64 - 1), "error", "says that it holds 18446744073709551615 counters"),
        (EMMAP + b"\3", "error", "has 9 bytes"),
        (EMMAP, "error", "has 8 bytes"),
    ):
        Path(path).write_bytes(content)
        only(path, severity, "erlang", text)
        describe(path)
    Path(path).write_bytes(EMMAP[:7])
    with pytest.raises(IncompatibleFormat):
        verify(path)


def test_emmap_in_the_place_of_a_structure_s_file(tmp_path):
    """A file of the crate that begins like this is the crate's; alone, such a name means nothing."""
    with Synchronizer(tmp_path / "set", protocol="mmap-sync", codec="raw") as s:
        for _ in range(2):
            s.write(EMMAP + bytes(100))
    assert describe(tmp_path / "set_data_1")["kind"] == "mmap-sync data"
    assert verify(tmp_path / "set_data_1") == []
    (tmp_path / "alone_data_0").write_bytes(EMMAP + struct.pack("<Qq", 1, 0))
    assert describe(tmp_path / "alone_data_0")["kind"] == "emmap counters"
    assert verify(tmp_path / "alone_data_0") == []


def test_a_kind_that_begins_alike_is_another(tmp_path):
    path = str(tmp_path / "file")
    files.create(path, files.new_header("counter"), 8192, durability="process")
    only(path, "note", "file", "of kind 'counter'")
    with pytest.raises(IncompatibleFormat):
        Counters(path)
