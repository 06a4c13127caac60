"""What a type checker makes of the public API: never run, only checked (test_typing.py).

Each `assert_type` pins a type that users see; each ``# error: CODE`` marks a mistake that a checker must find.
"""

from __future__ import annotations

import array
import mmap
from collections.abc import ItemsView, Iterator, Mapping, MutableMapping, ValuesView
from pathlib import Path
from typing import Any, Literal, assert_type

import mmapds
from mmapds import (
    AtomicInt64,
    Counter,
    Counters,
    FloatCounter,
    Lock,
    ReadResult,
    Region,
    Snapshot,
    SnapshotMap,
    Synchronizer,
    Transaction,
    WriteResult,
    codecs,
)


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


def opening_counters(path: Path) -> None:
    assert_type(Counters("path"), Counters[int])
    assert_type(Counters(path, 64, mode="readonly", dtype="i64", padded=True, populate=True), Counters[int])
    assert_type(Counters(path, dtype="f64", durability="power"), Counters[float])
    assert_type(Counters(path, layout="emmap", mode="private"), Counters[int])
    with Counters(path) as same:
        assert_type(same, Counters[int])
    Counters(b"path")  # error: call-overload
    Counters(path, 64, "shared")  # error: call-overload
    Counters(path, capacity="64")  # error: call-overload
    Counters(path, mode="copy")  # error: call-overload
    Counters(path, dtype="i32")  # error: call-overload
    Counters(path, layout="erlang")  # error: call-overload


def counting(c: Counters) -> None:
    assert_type(c, Counters[int])
    assert_type(c.fetch_add("x"), int)
    assert_type(c.fetch_add(3, 5), int)
    assert_type(c.fetch_sub("x", n=5), int)
    assert_type(c.fetch_or("x", 1) | c.fetch_and("x", 1) | c.fetch_xor("x", 1), int)
    assert_type(c.add("x", n=2, checked=True), int)
    assert_type(c.exchange("x", 3), int)
    assert_type(c.compare_exchange("x", 3, 4), tuple[bool, int])
    assert_type(c.reset("x"), int)
    assert_type(c.reserve("x", 1000), range)
    assert_type(c.counter("x"), Counter)
    assert_type(c.view(), memoryview[int])
    assert_type(c.capacity, int)
    assert_type(c.path, str)
    assert_type(c.padded, bool)
    assert_type(c.closed, bool)
    c.remove("x")
    c.flush()
    c.flush(wait=False)
    c.flush(False)
    c.check()
    c.close()
    c.fetch_add("x", 0.5)  # error: arg-type
    c.fetch_add(None)  # error: arg-type
    c.fetch_add(b"x")  # error: arg-type
    c.add("x", check=True)  # error: call-arg
    c.counter(key="x")  # error: call-arg|call-overload
    c.remove(3)  # error: arg-type
    c.capacity = 5  # error: misc


def counters_as_a_mapping(c: Counters) -> None:
    mapping: MutableMapping[str, int] = c
    assert_type(mapping["x"], int)
    assert_type(c["x"], int)
    assert_type(c[3], int)
    c["x"] = 3
    c[3] += 1
    del c["x"]
    assert_type("x" in c, bool)
    assert_type(len(c), int)
    assert_type(list(c), list[str])
    assert_type(c.get("x"), int | None)
    assert_type(c.get("x", 0), int)
    assert_type(c.pop("x"), int)
    assert_type(c.pop("x", None), int | None)
    assert_type(c.pop("x", "text"), int | str)
    assert_type(c.popitem(), tuple[str, int])
    assert_type(c.setdefault("x"), int)
    assert_type(c.setdefault("x", 3), int)
    assert_type(c.snapshot(), dict[str, int])
    assert_type(c.items(), ItemsView[str, int])
    assert_type(c.values(), ValuesView[int])
    c.update({"x": 1})
    c.update(x=1)
    c["x"] = "text"  # error: assignment
    c["x"] = 0.5  # error: assignment
    c.pop(3)  # error: call-overload
    del c[3]  # error: arg-type


def counting_floats(f: Counters[float]) -> None:
    assert_type(f.add("x", 0.5), float)
    assert_type(f.fetch_add("x", 1), float)
    assert_type(f["x"], float)
    assert_type(f.compare_exchange("x", 0.5, 1), tuple[bool, float])
    assert_type(f.counter("x"), FloatCounter)
    assert_type(f.snapshot(), dict[str, float])
    f["x"] += 0.5
    f.fetch_or("x", 1)  # error: misc
    f.reserve("x", 1)  # error: misc


def bound(c: Counter, f: FloatCounter) -> None:
    word: AtomicInt64 = c
    assert_type(word.load(), int)
    assert_type(c.name, str | None)
    assert_type(c.index, int)
    assert_type(c.fetch_add(), int)
    assert_type(c.fetch_add(n=2), int)
    assert_type(c.add(2, checked=True), int)
    assert_type(c.reset(), int)
    assert_type(c.reserve(10), range)
    assert_type(c.compare_exchange(1, 2), tuple[bool, int])
    assert_type(f.add(0.5, checked=True), float)
    assert_type(f.fetch_sub(n=1), float)
    assert_type(f.compare_exchange(0.5, 1), tuple[bool, float])
    assert_type(f.load(), float)
    f.store(1)
    c.fetch_add(0.5)  # error: arg-type
    c.add("1")  # error: arg-type
    c.name = "other"  # error: misc
    c.reserve()  # error: call-arg
    f.reserve(1)  # error: attr-defined
    f.fetch_or(1)  # error: attr-defined


def opening_maps(path: Path) -> None:
    assert_type(SnapshotMap("path"), SnapshotMap)
    SnapshotMap(path, mode="readonly", codec="raw", schema="v1", follow=False)
    SnapshotMap(path, mode="private", codec=Upper(), durability="power", populate=True, verify=True)
    with SnapshotMap(path) as same:
        assert_type(same, SnapshotMap)
    assert_type(SnapshotMap.build(path, {"a": 1}), int)
    assert_type(SnapshotMap.build(path, [(b"a", 1)], codec="raw", metadata={"x": 1}, memory_limit=1 << 20), int)
    SnapshotMap.build(path, iter([("a", 1)]), progress=print)
    SnapshotMap(b"path")  # error: arg-type
    SnapshotMap(path, "shared")  # error: call-arg|misc
    SnapshotMap(path, mode="copy")  # error: arg-type
    SnapshotMap(path, durability="some")  # error: arg-type
    SnapshotMap.build(path)  # error: call-arg
    SnapshotMap.build(path, 5)  # error: arg-type
    SnapshotMap.build(path, ["a"])  # error: list-item
    SnapshotMap.build(path, {}, memory_limit="1 MiB")  # error: arg-type


def reading_maps(m: SnapshotMap) -> None:
    mapping: Mapping[str, int] = m
    assert_type(mapping["a"], int)
    assert_type(m["a"], Any)
    assert_type(m.get("a"), Any)
    assert_type(m.get(b"a", 5), Any)
    assert_type("a" in m, bool)
    assert_type(len(m), int)
    assert_type(m.get_many(["a", "b"]), dict[Any, Any])
    assert_type(m.range(), Iterator[tuple[Any, Any]])
    assert_type(m.range("a", stop="b", reverse=True), Iterator[tuple[Any, Any]])
    assert_type(m.prefix(b"a", True), Iterator[tuple[Any, Any]])
    assert_type(m.first(), tuple[Any, Any])
    assert_type(m.last(), tuple[Any, Any])
    assert_type(m.ttl("a"), float | None)
    assert_type(m.version, int)
    assert_type(m.refresh(), int)
    assert_type(m.wait(), int | None)
    assert_type(m.wait(newer_than=3, timeout=0.5), int | None)
    assert_type(m.metadata, Any)
    assert_type(m.key_type, type[str | bytes] | None)
    assert_type(m.verify(), int)
    assert_type(m.stats(), dict[str, Any])
    assert_type(m.path, str)
    assert_type(m.mode, Literal["shared", "private", "readonly"])
    assert_type(m.follow, bool)
    assert_type(m.durability, str)
    assert_type(m.closed, bool)
    for pair in m.items():
        assert_type(pair, tuple[Any, Any])
    m.prefetch()
    m.prefetch(["a"])
    m.prefetch(start="a", stop="b")
    m.prefetch(prefix=b"a")
    m.compact()
    m.compact(print)
    m.check()
    m.close()
    m.range(5)  # error: arg-type
    m.prefix(None)  # error: arg-type
    m.prefetch(["a"], "b")  # error: call-arg|misc
    m.wait("1")  # error: arg-type
    m.get()  # error: call-arg|call-overload
    m.version = 3  # error: misc
    m.missing()  # error: attr-defined


def snapshots(m: SnapshotMap) -> None:
    with m.snapshot() as s:
        assert_type(s, Snapshot)
    mapping: Mapping[str, int] = s
    assert_type(mapping["a"], int)
    assert_type(s["a"], Any)
    assert_type(s.version, int)
    assert_type(s.snapshot(), Snapshot)
    assert_type(s.stats(), dict[str, Any])
    assert_type(list(s.range("a")), list[tuple[Any, Any]])
    s.transaction()  # error: attr-defined
    s["a"] = 1  # error: index


def transactions(m: SnapshotMap) -> None:
    assert_type(m.transaction(), Transaction)
    with m.transaction() as txn:
        assert_type(txn, Transaction)
        mapping: MutableMapping[str, int] = txn
        mapping["a"] = 1
        txn["a"] = {"any": "value"}
        txn.set("a", 1)
        txn.set(b"a", 1, ttl=0.5)
        del txn["a"]
        txn.update({"a": 1}, b=2)
        txn.update([("a", 1)])
        txn.clear()
        assert_type(txn.pop("a"), Any)
        assert_type(txn.setdefault("a", 1), Any)
        assert_type(txn.popitem(), tuple[Any, Any])
        assert_type(len(txn), int)
        txn.set("a")  # error: call-arg
        txn.set("a", 1, ttl="1")  # error: arg-type
        txn.set(5, 1)  # error: arg-type
        txn.commit()  # error: attr-defined
