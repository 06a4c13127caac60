"""What a type checker makes of the public API: never run, only checked (test_typing.py).

Each `assert_type` pins a type that users see; each ``# error: CODE`` marks a mistake that a checker must find.
"""

from __future__ import annotations

import array
import mmap
from pathlib import Path
from typing import Any, assert_type

import mmapds
from mmapds import AtomicInt64, Lock, ReadResult, Region, Synchronizer, WriteResult, codecs


def opening(path: Path) -> None:
    assert_type(Synchronizer("prefix"), Synchronizer)
    assert_type(Synchronizer(path, mode="readonly"), Synchronizer)
    Synchronizer(path, mode="private", codec="raw", schema="v1", durability="power", populate=True, verify=False)
    Synchronizer(path, protocol="mmap-sync", checksum=hash)
    Synchronizer(path, codec=codecs.Pickle())
    Synchronizer(path, codec=Upper())
    Synchronizer(b"prefix")  # error: arg-type
    Synchronizer(path, mode="copy")  # error: arg-type
    Synchronizer(path, protocol="tcp")  # error: arg-type
    Synchronizer(path, durability="some")  # error: arg-type
    Synchronizer(path, "shared")  # error: call-arg|misc
    Synchronizer(path, sise=3)  # error: call-arg


class Upper:
    def encode(self, value: str) -> bytes:
        return value.upper().encode()

    def decode(self, data: memoryview) -> str:
        return bytes(data).decode()


def using(s: Synchronizer) -> None:
    with s as same:
        assert_type(same, Synchronizer)
    assert_type(s.version, int)
    assert_type(s.prefix, str)
    assert_type(s.durability, str)
    assert_type(s.write({"any": "value"}), WriteResult)
    assert_type(s.write({"any": "value"}, 0.5), WriteResult)
    assert_type(s.write_bytes(b"bytes", grace=0.5), WriteResult)
    s.write_bytes(bytearray(3))
    s.write_bytes(memoryview(b"x"))
    s.write_bytes(array.array("i", [1]))
    s.write_bytes(mmap.mmap(-1, 1))
    assert_type(s.load(), Any)
    assert_type(s.load(None), Any)
    assert_type(s.load(default=[]), Any)
    assert_type(s.wait(), int | None)
    assert_type(s.wait(3, 0.5), int | None)
    assert_type(s.wait(newer_than=3, timeout=None), int | None)
    s.close()
    s.check()
    s.version = 3  # error: misc
    s.write()  # error: call-arg
    s.write_bytes("text")  # error: arg-type
    s.write_bytes(b"x", grace="long")  # error: arg-type
    s.wait(newer_than="1")  # error: arg-type
    s.missing()  # error: attr-defined


def results(s: Synchronizer) -> None:
    r = s.read()
    assert_type(r, ReadResult)
    with r as same:
        assert_type(same, ReadResult)
    assert_type(r.data, memoryview)
    assert_type(r.value, Any)
    assert_type(r.version, int)
    assert_type(r.switched, bool)
    assert_type(r.copied, bool)
    assert_type(len(r), int)
    assert_type(memoryview(r), memoryview)
    bytes(r)
    r.release()
    r.data = memoryview(b"")  # error: misc
    written = s.write(1)
    assert_type(written.size, int)
    assert_type(written.reset, bool)
    size, reset = written
    assert_type(size, int)
    assert_type(reset, int)
    written.size = 4  # error: misc


def errors() -> None:
    try:
        Synchronizer("prefix").write(1)
    except mmapds.WriterBusy as error:
        assert_type(error.path, str | None)
        assert_type(error.holder, str | None)
        assert_type(error.errno, int | None)
    except (mmapds.MappingLost, mmapds.UnsupportedFilesystem, mmapds.DurabilityFailed) as lost:
        assert_type(lost.path, str | None)
    except mmapds.MmapdsError:
        pass


def regions(path: Path) -> None:
    with Region.open(path, 4096, create=True) as region:
        assert_type(region, Region)
        assert_type(region.pread(10, 0), bytes)
        assert_type(region.pwrite(b"x", 0), int)
        assert_type(region[0], int)
        assert_type(region[0:10], bytes)
        assert_type(region.resize(), int)
        assert_type(region.resident(), int)
        assert_type(region.atomic(8), AtomicInt64)
        assert_type(region.atomic(8).fetch_add(1), int)
        assert_type(region.atomic(8).compare_exchange(1, 2), tuple[bool, int])
        assert_type(region.atomic(8).wait(1, timeout=0.5), bool)
        with region.lock(64) as lock:
            assert_type(lock, Lock)
        region.pwrite("text", 0)  # error: arg-type
        region.atomic("8")  # error: arg-type
    assert_type(Region.anonymous(4096), Region)
