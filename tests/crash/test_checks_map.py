"""Each check that a snapshot map makes of what it reads (rows 9, 15, 16 and 28): what comes through without it.

The layers here have records of 1,024 bytes each, 64 to a block of checksums, so that what leads to the records (guide
and table) lies in a block of its own, which nothing else makes anybody verify.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import failpoints
import pytest
import snapdamage
import snapdisk
import syncfiles
import xxhash
from peers import SUPPORT, Peer, PeerError
from stages import Stage

from mmapds import Closed, CorruptionError, MappingLost, SnapshotMap
from mmapds._native.region import FLAGS, Mapping
from mmapds._native.snapbuild import write_sums

needs_failpoints = pytest.mark.skipif(failpoints.missing() is not None, reason=str(failpoints.missing()))

PAGE = 4096
PAIR, EXPIRES, LONG = 1 << 31, 1 << 29, 1 << 28
RECORD = 1024
COUNT = 128
BIG = bytes(range(1, 251)) * 80


def key(n: int) -> str:
    return f"key {n:04}"


def value(n: int) -> bytes:
    return b"%04d" % n * 252


@pytest.fixture
def there(tmp_path: Path) -> str:
    return str(tmp_path / "map")


def build(path: str, items: dict[str, bytes] | None = None, **options: Any) -> str:
    """A map of one layer, with those items or 128 records in two blocks; the layer."""
    if items is None:
        items = {key(n): value(n) for n in range(COUNT)}
    SnapshotMap.build(path, items, codec="raw", **options)
    return snapdisk.layers(path)[0]


def guide(file: str, n: int) -> int:
    """Where the entry of the guide is: 8 bytes of a key, and where its record is."""
    return snapdamage.option(file, snapdamage.GUIDE) + 16 * n


def set_word(file: str, at: int, word: int) -> None:
    """With checksums that are right again."""
    syncfiles.poke_word(file, at, word)
    snapdamage.seal_layer(file)


def unpair(file: str, n: int) -> None:
    """The record is none any more."""
    at = PAGE + RECORD * n
    syncfiles.poke_word(file, at, syncfiles.word(file, at) & ~PAIR)


def readonly(path: str, **options: Any) -> SnapshotMap:
    return SnapshotMap(path, mode="readonly", **options)


# ---- records (row 16) ----------------------------------------------------------------------------------------------


def test_r16_a_record_without_its_mark_is_none(there: str) -> None:
    file = build(there)
    unpair(file, 0)
    snapdamage.seal_layer(file)
    with readonly(there) as m:
        with pytest.raises(CorruptionError):
            m[key(0)]
        with pytest.raises(CorruptionError):
            m.first()


@pytest.mark.parametrize("word", [PAIR | LONG, PAIR | EXPIRES, PAIR | 8, PAIR | 1 << 35, PAIR | 65537])
def test_r16_a_record_does_not_reach_behind_the_last(there: str, word: int) -> None:
    """It ends where the guide begins, which would be taken for its value."""
    file = build(there, {"": b""})
    set_word(file, PAGE, word)
    with readonly(there) as m, pytest.raises(CorruptionError):
        m.first()


def test_r16_key_and_value_have_room_together(there: str) -> None:
    file = build(there, {"12345678": b""})
    set_word(file, PAGE, PAIR | 8 | 8 << 32)
    with readonly(there) as m, pytest.raises(CorruptionError):
        m["12345678"]


def test_r16_a_record_that_is_damaged_is_in_nobody_elses_way(there: str) -> None:
    """Both are in one line of the table."""
    file = build(there, {"a": b"1", "b": b"2"})
    syncfiles.poke_word(file, PAGE, syncfiles.word(file, PAGE) & ~PAIR)
    snapdamage.seal_layer(file)
    with readonly(there) as m:
        assert m["b"] == b"2"
        with pytest.raises(CorruptionError):
            m["a"]


def test_a_key_that_is_not_there_whose_tag_is_zero(there: str) -> None:
    """As an empty place of the table has it."""
    build(there)
    names = (f"absent {n}" for n in itertools.count())
    absent = next(name for name in names if xxhash.xxh3_64_intdigest(name.encode()) & 0xFFFF == 0)
    with readonly(there) as m:
        assert m.get(absent) is None


# ---- layers (rows 15 and 16) ---------------------------------------------------------------------------------------


def test_r16_a_table_that_is_smaller_than_its_place(there: str) -> None:
    file = build(there)
    buckets = snapdamage.option(file, snapdamage.BUCKETS) - 1
    snapdamage.set_option(file, snapdamage.BUCKETS, buckets)
    snapdamage.set_option(file, snapdamage.SUMS, snapdamage.option(file, snapdamage.TABLE) + 64 * buckets)
    with pytest.raises(CorruptionError, match="do not fit together"):
        readonly(there)


def test_r09_a_layer_without_its_last_word_is_not_opened(there: str) -> None:
    file = build(there)
    syncfiles.poke_word(file, os.path.getsize(file) - 8, 0)
    with pytest.raises(MappingLost):
        readonly(there)


def test_r15_damage_to_the_table_is_not_taken_for_a_key_that_is_not_there(there: str) -> None:
    file = build(there)
    syncfiles.poke_word(file, snapdamage.table_entry(file, snapdamage.stored(file, PAGE)), 0)
    with readonly(there, verify=True) as m, pytest.raises(CorruptionError, match="block 2 "):
        m.get(key(0))


def test_r15_damage_to_a_record_is_told_with_its_block(there: str) -> None:
    unpair(build(there), 0)
    with readonly(there, verify=True) as m, pytest.raises(CorruptionError, match="block 0 "):
        m.first()


def test_r15_damage_to_the_guide_is_told_before_a_range_begins(there: str) -> None:
    file = build(there)
    for n in range(COUNT // 16):
        syncfiles.poke_word(file, guide(file, n), (1 << 64) - 1)
    with readonly(there, verify=True) as m, pytest.raises(CorruptionError, match="block 2 "):
        next(m.range(key(100)))


def test_r15_damage_to_the_guide_is_told_before_a_walk_backwards(there: str) -> None:
    file = build(there)
    syncfiles.poke_word(file, guide(file, COUNT // 16 - 1) + 8, PAGE + RECORD * (COUNT - 1))
    with readonly(there, verify=True) as m, pytest.raises(CorruptionError, match="block 2 "):
        m.last()


def test_a_range_begins_where_it_should_when_nothing_was_verified_yet(there: str) -> None:
    build(there)
    for first in (0, 16, 63, 70, 127):
        with readonly(there, verify=True) as m:
            assert next(m.range(key(first))) == (key(first), value(first))
        with readonly(there, verify=True) as m:
            assert next(m.range(None, key(first), reverse=True), None) == (
                (key(first - 1), value(first - 1)) if first else None
            )


def test_a_range_that_begins_before_what_all_keys_begin_with(there: str) -> None:
    """What follows there counts for nothing."""
    build(there)
    with readonly(there) as m:
        assert len(list(m.range("kay zzzz"))) == COUNT
        assert list(m.range("kez 0000")) == []


def test_r16_a_first_record_that_cannot_be_read_says_nothing_about_ranges(there: str) -> None:
    file = build(there)
    with readonly(there) as m:
        assert list(m.range("z")) == []
        unpair(file, 0)
        with pytest.raises(CorruptionError):
            list(m.range("z"))


def test_r16_keys_that_have_more_in_common_than_they_have(there: str) -> None:
    file = build(there)
    snapdamage.set_option(file, snapdamage.COMMON, 65536)
    with readonly(there) as m, pytest.raises(CorruptionError):
        list(m.range("z"))


def test_r16_a_guide_with_a_group_that_is_too_large(there: str) -> None:
    """What is kept of a group has its place on the heap."""
    file = build(there)
    set_word(file, guide(file, COUNT // 16 - 1) + 8, PAGE)
    with Peer(path=there) as peer:
        assert peer.fails("mmapds.SnapshotMap(path, mode='readonly').last()")[0] == "CorruptionError"


def test_r16_a_guide_that_leads_into_a_value(there: str) -> None:
    """There lies a record, and behind it the next one: backwards, the one around it would come once more."""
    inner = struct.pack("<Q", PAIR | 8 | 992 << 32) + b"key 0015" + bytes(992)
    file = build(there, {key(n): inner if n == 15 else value(n) for n in range(31)})
    set_word(file, guide(file, 1) + 8, PAGE + RECORD * 15 + 16)
    with readonly(there) as m, pytest.raises(CorruptionError):
        list(m.range(reverse=True))


# ---- deltas (rows 15 and 16) ---------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmapds._snapfiles.DELTA_SIZE", 65536)
    monkeypatch.setattr("mmapds._snapfiles.DELTA_BUCKETS", 64)


def commit(path: str, *batches: dict[str, Any], codec: str = "raw") -> str:
    """A map with nothing but a delta, with those batches; the delta."""
    with SnapshotMap(path, codec=codec) as m:
        for batch in batches:
            with m.transaction() as t:
                t.update(batch)
    return snapdisk.delta(path)


def found_batches(path: str) -> list[snapdamage.BatchAt]:
    return snapdamage.batches(snapdisk.delta(path), snapdisk.read_manifest(path).delta_end)


def spoil(file: str, batch: snapdamage.BatchAt) -> None:
    """Changes the last byte of its last value, which has 8."""
    syncfiles.poke(file, batch.end - 1, b"?")


THREE = ({"a": b"old     "}, {"b": b"newer   "}, {"c": b"newest  "})


@pytest.mark.usefixtures("tiny")
def test_r16_a_chain_that_does_not_fall(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows it would never come to its end."""
    monkeypatch.setattr("mmapds._snapfiles.DELTA_BUCKETS", 1)
    file = commit(there, {"a": b"1"})
    (batch,) = found_batches(there)
    node = batch.at + snapdamage.BATCH
    syncfiles.poke(file, node, struct.pack("<I", node // 8))
    with Peer("signal.alarm(15)", path=there) as peer:
        code = "m = mmapds.SnapshotMap(path, mode='readonly'); m.get('absent')"
        assert peer.fails(code)[0] == "CorruptionError"


@pytest.mark.usefixtures("tiny")
def test_r16_a_batch_that_counts_a_record_behind_its_end(there: str) -> None:
    file = commit(there, {"a": b"1", "b": b"2"})
    (batch,) = found_batches(there)
    end = batch.end - 24  # there b's record begins, which stays where it is
    syncfiles.poke_word(file, batch.at + 16, end - batch.at)
    snapdamage.seal_batch(file, batch._replace(end=end))
    snapdamage.publish(there, snapdamage.with_word(snapdamage.value(there), snapdamage.DELTA_END, end))
    with pytest.raises(CorruptionError, match="record of the batch"):
        readonly(there, verify=True)


@pytest.mark.usefixtures("tiny")
def test_r16_a_delta_whose_buckets_leave_no_room(there: str) -> None:
    file = commit(there, {"a": b"1"})
    snapdamage.set_option(file, 2, (os.path.getsize(file) - 8192) // 4)
    with pytest.raises(CorruptionError, match="buckets do not fit"):
        readonly(there)


@pytest.mark.usefixtures("tiny")
def test_r15_a_delta_without_its_last_word_is_not_opened(there: str) -> None:
    file = commit(there, {"a": b"1"})
    syncfiles.poke_word(file, os.path.getsize(file) - 8, 0)
    with pytest.raises(CorruptionError, match="sentinel"):
        readonly(there)


@pytest.mark.usefixtures("tiny")
def test_r15_damage_to_a_batch(there: str) -> None:
    file = commit(there, *THREE)
    spoil(file, found_batches(there)[1])
    with pytest.raises(CorruptionError, match=r"version 3\) do not match"):
        readonly(there, verify=True)
    with readonly(there) as m:
        with pytest.raises(CorruptionError, match=r"version 3\) do not match"):
            m.verify()
        with pytest.raises(CorruptionError, match=r"version 3\) do not match"):
            list(m)


@pytest.mark.usefixtures("tiny")
def test_r12_what_a_power_cut_left_of_a_delta_ends_with_its_first_gap(there: str) -> None:
    """Two batches that are not whole at its end: the version before them. One with a whole one behind it: damage."""
    file = commit(there, *THREE)
    _, second, third = found_batches(there)
    snapdisk.other_boot(there)
    spoil(file, second)
    with pytest.raises(CorruptionError):
        readonly(there)
    spoil(file, third)
    with readonly(there) as m:
        assert dict(m) == THREE[0]


# ---- cut files (row 9) ---------------------------------------------------------------------------------------------


def cut_value(path: str, value: Any = BIG, codec: str = "raw") -> Callable[[], None]:
    """A map with a delta, which is cut in the middle of the value of "big"; of "next", the record is gone."""
    file = commit(path, {"big": value, "next": value[:1]}, codec=codec)
    return lambda: os.truncate(file, 12288)


def expect_lost(handle: Any, cut: Callable[[], None], job: Callable[[Any], object]) -> None:
    job(handle)
    cut()
    with pytest.raises(MappingLost):
        job(handle)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "job",
    [
        lambda m: m["big"],
        lambda m: m.get("big"),
        lambda m: "big" in m,
        lambda m: m.get_view("big"),
        lambda m: m.get_many(["big"]),
        lambda m: m["next"],
        lambda m: m.get("nothing"),
        lambda m: m.prefetch(["big"]),
        lambda m: m.verify(),
    ],
    ids=["[]", "get", "in", "get_view", "get_many", "record", "nothing", "prefetch", "verify"],
)
@pytest.mark.parametrize("mode", ["readonly", "private"])
def test_r09_a_delta_that_is_cut_in_the_middle_of_a_value(there: str, mode: Any, job: Callable[[Any], object]) -> None:
    """Its key is still found."""
    cut = cut_value(there)
    with SnapshotMap(there, mode=mode) as m:
        expect_lost(m, cut, job)


@pytest.mark.usefixtures("tiny")
def test_r09_a_delta_that_is_cut_before_its_batches(there: str) -> None:
    file = commit(there, {"a": b"1"})
    with readonly(there) as m:
        expect_lost(m, lambda: os.truncate(file, 4096), lambda m: m.verify())


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("mode", ["readonly", "private"])
def test_r09_what_was_cut_is_not_decoded(there: str, mode: Any) -> None:
    """Zeros would be said to be damaged."""
    cut = cut_value(there, ["x" * 100] * 200, "msgpack")
    with SnapshotMap(there, mode=mode) as m:
        expect_lost(m, cut, lambda m: m.get_many(["big"]))


@pytest.mark.parametrize(
    ("job", "verify"),
    [
        (lambda m: m.metadata, False),
        (lambda m: m.verify(), False),
        (lambda m: m.verify(), True),
        (lambda m: m.prefetch(start=key(50)), False),
        (list, False),
    ],
    ids=["metadata", "verify", "verify verified", "prefetch", "list"],
)
def test_r09_a_layer_that_is_cut_is_not_said_to_be_damaged(
    there: str, job: Callable[[Any], object], verify: bool
) -> None:
    file = build(there, metadata=1)
    with readonly(there, verify=verify) as m:
        os.truncate(file, PAGE)
        with pytest.raises(MappingLost):
            job(m)


def test_r09_a_walk_over_a_value_that_was_cut(there: str) -> None:
    """At its end at the latest; what is decoded is looked after at once."""
    file = build(there, {"big": BIG})
    with readonly(there) as m:
        expect_lost(m, lambda: os.truncate(file, 2 * PAGE), lambda m: list(m.items()))
    SnapshotMap.build(there + "2", {"big": BIG})
    file = snapdisk.layers(there + "2")[0]
    with readonly(there + "2") as m:
        expect_lost(m, lambda: os.truncate(file, 2 * PAGE), lambda m: m.first())


def test_r09_a_range_does_not_end_early_because_its_next_key_was_cut(there: str) -> None:
    """Zeros come before every bound: it would be the end, and no word of what is missing."""
    layer = build(there, {"k1": b"1"})
    with SnapshotMap(there) as m:
        with m.transaction() as txn:
            txn["z1"] = b"2"
        walk = iter(m.range("k", "zz", reverse=True))
        assert next(walk) == ("z1", b"2")
        os.truncate(layer, 0)
        with pytest.raises(MappingLost):
            next(walk)


def test_r09_nothing_is_committed_over_a_layer_that_was_cut(there: str) -> None:
    """It does not say any more which keys are new."""
    file = build(there)
    with SnapshotMap(there) as m:
        with m.transaction() as t:
            t["key 0000"] = b"1"
        before = snapdisk.read_manifest(there)
        os.truncate(file, PAGE)
        with pytest.raises(MappingLost), m.transaction() as t:
            t["key 0001"] = b"2"
        assert snapdisk.read_manifest(there) == before


def test_r09_a_layer_that_is_cut_while_its_checksums_are_made(tmp_path: Path) -> None:
    """Only a disk that fails does this: the file has no name then."""
    path = tmp_path / "layer"
    path.write_bytes(bytes(4 * PAGE))
    with open(path, "r+b") as file:
        mapping = Mapping(file.fileno(), 4 * PAGE, FLAGS["READ"] | FLAGS["WRITE"], FLAGS["SHARED"], str(path))
    os.truncate(path, 2 * PAGE)
    with pytest.raises(MappingLost):
        write_sums(mapping, 3 * PAGE)


@needs_failpoints
def test_r09_nothing_is_published_of_a_delta_that_is_cut_while_it_is_written(stage: Stage, path: str) -> None:
    peer = stage["held"]
    peer("import snapdisk; snapdisk.tiny(); m = mmapds.SnapshotMap(path, codec='raw')", path=path)
    change = "with m.transaction() as t: t['{}'] = b'1'"
    peer(change.format("a"))
    before = snapdisk.read_manifest(path)
    peer.hold(change.format("b"), "load_acquire_u64 written")
    os.truncate(snapdisk.delta(path), 8192)  # what says how much was written stays
    peer.go()
    with pytest.raises(PeerError, match="MappingLost"):
        peer.receive()
    assert snapdisk.read_manifest(path) == before
    stage.drop("held")


@needs_failpoints
def test_r09_a_delta_that_is_cut_while_it_is_opened(stage: Stage, path: str) -> None:
    with SnapshotMap(path, codec="raw") as m, m.transaction() as t:
        t["a"] = b"1"
    peer = stage["held"]
    peer.hold("m = mmapds.SnapshotMap(path, mode='readonly')", "call mmap .delta", path=path)
    os.truncate(snapdisk.delta(path), 8192)
    peer.go()
    with pytest.raises(PeerError, match="MappingLost"):
        peer.receive()
    stage.drop("held")


# ---- no room, and no memory (rows 10 and 28) -----------------------------------------------------------------------


@needs_failpoints
def test_r10_a_layer_that_the_disk_does_not_take(stage: Stage, path: str) -> None:
    peer = stage["held"]
    peer("mmapds.SnapshotMap.build(path, {'a': 1}); signal.alarm(20)", path=path)  # or the manifest's are the first
    peer.hold("mmapds.SnapshotMap.build(path, {'a': 2, 'b': 3})", "call pwrite unnamed", path=path)
    peer.fail(errno.ENOSPC)
    with pytest.raises(PeerError, match="No space left"):
        peer.receive()
    assert peer("signal.alarm(0); m = mmapds.SnapshotMap(path); dict(m)") == {"a": 1}


def test_r28_no_addresses_to_sort_in(there: str) -> None:
    code = """
import resource
space = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (space + (64 << 20), resource.RLIM_INFINITY))
"""
    build_it = "mmapds.SnapshotMap.build(path, {'a': 1}, memory_limit=1 << 30)"
    with Peer(code, path=there) as peer:
        assert peer.fails(build_it)[0] == "MemoryError"
        peer("resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))")
        assert peer(build_it) == 1


def test_r15_r28_no_memory_for_what_was_verified_is_not_taken_for_nothing_to_verify(there: str, tmp_path: Path) -> None:
    syncfiles.poke(build(there), PAGE + RECORD * 5 + 100, b"?")
    library = tmp_path / "nomem.so"
    compiler = failpoints.compiler()
    if compiler is None:
        pytest.skip("no C compiler, to build what is preloaded")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SUPPORT / "nomem.c"], check=True)
    code = """
import ctypes
library = ctypes.CDLL(None)
outcomes, calls, at = [], 1, 0
while at < calls:
    at += 1
    library.nomem_arm(at)
    try:
        with mmapds.SnapshotMap(path, mode="readonly", verify=True) as m:
            outcomes.append(m["key 0005"])
    except (MemoryError, mmapds.CorruptionError) as error:
        outcomes.append(type(error).__name__)
    calls = max(calls, library.nomem_arm(0))
set(outcomes)
"""
    with Peer(env={"LD_PRELOAD": str(library)}) as peer:
        assert peer(code, path=there) <= {"MemoryError", "CorruptionError"}


# ---- closed in the middle ------------------------------------------------------------------------------------------


class ClosedMeanwhile(SnapshotMap):
    """As if another thread closed it when a lookup has read the new manifest."""

    armed = False

    def _reload(self) -> None:
        super()._reload()
        if self.armed:
            self.close()


def test_a_map_that_is_closed_while_a_lookup_brings_it_forward(there: str) -> None:
    m = ClosedMeanwhile(there, codec="raw")
    with SnapshotMap(there) as other, other.transaction() as t:
        t["a"] = b"1"
    m.armed = True
    with pytest.raises(Closed):
        m["a"]


class Closing:
    """A codec whose values, when they are decoded, close the map that they are of."""

    name = "closing"
    maps: Iterator[SnapshotMap] = iter(())

    def encode(self, value: Any) -> bytes:
        return bytes(value)

    def decode(self, data: memoryview) -> bytes:
        for m in self.maps:
            m.close()
        return bytes(data)


def test_a_private_map_that_is_closed_by_the_first_of_many_values(there: str) -> None:
    codec = Closing()
    with SnapshotMap(there, codec=codec):
        pass
    m = SnapshotMap(there, mode="private", codec=codec)
    m["a"], m["b"] = b"1", b"2"
    codec.maps = iter([m])
    with pytest.raises(Closed):
        m.get_many(["a", "b"])
