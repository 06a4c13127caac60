"""`verify` of snapshot maps that are damaged, by chance and on purpose."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from itertools import pairwise

import pytest
import snapdamage as raw
import syncfiles as sync
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snapdamage import PAGE, Shared, says

from mmapds import CorruptionError, SnapshotMap
from mmapds.cli import main
from mmapds.inspection import Finding, verify

fast = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    path = str(tmp_path_factory.mktemp("damaged") / "cities")
    with pytest.MonkeyPatch.context() as monkeypatch:
        raw.fill(path, monkeypatch)
    return Shared(path)


@pytest.fixture
def shared(made: Shared) -> Iterator[Shared]:
    yield made
    made.mend()
    assert verify(made.path) == []


def flipped(shared: Shared, file: str, bit: int) -> list[Finding]:
    """What is found while one bit of a file is another."""
    sync.flip(file, bit)
    try:
        return verify(shared.path)
    finally:
        sync.flip(file, bit)


# ---- by chance -----------------------------------------------------------------------------------------------------


@fast
@given(data=st.data())
def test_r15_every_bit_of_a_layer_is_found_and_named(data, shared):
    file = data.draw(st.sampled_from(shared.layers))
    size = os.path.getsize(file)
    bit = data.draw(st.integers(8 * PAGE, 8 * size - 1))
    found = flipped(shared, file, bit)
    assert {(f.severity, f.where) for f in found} == {("error", os.path.basename(file))}, found
    sums, byte = raw.option(file, raw.SUMS), bit // 8
    if byte < sums:
        block = (byte - PAGE) // raw.BLOCK
        begin = PAGE + block * raw.BLOCK
        assert f"block {block} (bytes {begin} to {min(begin + raw.BLOCK, sums)}: " in found[0].what
        for name, start, end in (
            ("records", PAGE, raw.option(file, raw.END)),
            ("table", raw.option(file, raw.TABLE), sums),
        ):
            if start <= byte < end:
                assert name in found[0].what
    else:
        assert "sentinel" in found[0].what or "the checksums of its blocks" in found[0].what


@fast
@given(data=st.data())
def test_r15_every_bit_of_the_header_of_a_layer_and_of_the_delta(data, shared):
    file = data.draw(st.sampled_from([*shared.layers, shared.delta]))
    bit = data.draw(st.one_of(st.integers(0, 8 * 2048 - 1), st.integers(8 * 2080, 8 * PAGE - 1)))
    sync.flip(file, bit)
    try:
        found = shared.found()
        severity = "error" if bit < 8 * 2048 else "warning"
        assert [(f.severity, f.where) for f in found] == [(severity, os.path.basename(file))], found
    finally:
        sync.flip(file, bit)


@fast
@given(data=st.data())
def test_r15_every_bit_of_the_delta_that_counts(data, shared):
    file = shared.delta
    regions = [(raw.start(file), shared.end), (raw.HEADS, raw.HEADS + 32), (raw.WRITTEN, raw.WRITTEN + 8)]
    start, end = data.draw(
        st.sampled_from([*regions, (raw.WRITTEN + 8, raw.HEADS), (raw.start(file) - 32, raw.start(file))])
    )
    bit = data.draw(st.integers(8 * start, 8 * end - 1))
    found = flipped(shared, file, bit)
    assert found, f"bit {bit} was not found"
    assert {f.where for f in found} == {os.path.basename(file)}, found
    spare = any(batch.at + 48 <= bit // 8 < batch.at + 64 for batch in shared.batches)
    if (start, end) in regions[:2] and not spare:
        assert {f.severity for f in found} == {"error"}, found
    else:
        assert {f.severity for f in found} <= {"warning", "note"}, found


@fast
@given(bit=st.integers(0, 8 * 288 - 1))
def test_r15_every_bit_of_the_manifest(bit, shared):
    file = sync.data(raw.manifest(shared.path), sync.sequence(raw.manifest(shared.path)) & 1)
    assert len(raw.value(shared.path)) == 96 + 3 * 48
    if bit >= 8 * len(raw.value(shared.path)):
        return
    found = flipped(shared, file, 8 * PAGE + bit)
    assert [(f.severity, f.where) for f in found] == [
        ("error", os.path.basename(file)), ("note", os.path.basename(shared.delta)), ("note", "manifest_sync")
    ], found  # fmt: skip
    assert "checksum" in found[0].what


def test_check_and_the_command_say_what_verify_does(shared, capsys):
    with SnapshotMap(shared.path, mode="readonly") as m:
        m.check()
        sync.flip(shared.layers[1], 8 * PAGE + 77)
        with pytest.raises(CorruptionError, match=r"000\d\.layer: block 0 \(bytes 4096 to "):
            m.check()
    assert main(["verify", shared.path]) == 1
    assert "block 0 (bytes 4096 to " in capsys.readouterr().out


def test_all_damaged_blocks_are_named_and_the_list_ends(tmp_path):
    path = str(tmp_path / "large")
    SnapshotMap.build(path, ((f"{n:06}", b"x" * 1000) for n in range(3000)), codec="raw")
    file = raw.named(path)[0][0]
    for at in (PAGE, PAGE + 3 * raw.BLOCK + 5, PAGE + 4 * raw.BLOCK):
        sync.poke(file, at, b"\xff\xff\xff")
    found = verify(path)
    assert [f.what.split(" (")[0] for f in found] == ["block 0", "block 3", "block 4"], found
    for at in range(PAGE, raw.option(file, raw.END), raw.BLOCK):
        sync.poke(file, at, b"\xfe\xff\xff")
    found = verify(path)
    assert len(found) == 21, found
    assert "more that are not listed" in found[-1].what


# ---- layers, on purpose --------------------------------------------------------------------------------------------


def layer_with(shared: Shared, at: int, data: bytes, file: str | None = None) -> list[Finding]:
    """What is found with these bytes, under right checksums, in the oldest layer."""
    file = file or shared.layers[-1]
    sync.poke(file, at, data)
    raw.seal_layer(file)
    return shared.found()


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("has flags that this release does not know", lambda word: word | 1 << 22),
        ("says that its key is gone, and has a value", lambda word: word | 1 << 30),
        ("where record 3 should be, is none", lambda word: word & ~(1 << 31)),
        ("where record 3 should be, is none", lambda word: word | 0xFFFFF),
        ("where record 3 should be, is none", lambda word: word | 0x7FFFFFFF << 32),
        ("where record 3 should be, is none", lambda word: word | 1 << 28),
        ("", lambda word: word | 1 << 29),
        ("", lambda word: word - (8 << 32)),
    ],
)
def test_r16_the_head_of_a_record(what, change, shared):
    file = shared.layers[-1]
    record = next(r for n, r in enumerate(raw.records(file)) if n == 3)
    assert sync.word(file, record.at) >> 32 > 8
    found = layer_with(shared, record.at, struct.pack("<Q", change(sync.word(file, record.at)) & (1 << 64) - 1))
    says(found, "error", file, what)


def test_r16_padding_order_twins_and_text(shared):
    file = shared.layers[-1]
    records = raw.records(file)
    one, two = next((a, b) for a, b in pairwise(records) if len(a.key) == len(b.key))
    at = one.at + 8
    assert len(one.key) % 8
    says(layer_with(shared, at + len(one.key), b"x"), "error", file, f"key {one.key!r}) has padding that is not 0")
    shared.mend()
    found = layer_with(shared, two.at + 8, one.key)
    says(found, "error", file, f"has the key of the one before it: {one.key!r}")
    says(found, "error", file, "is not found through the table")
    shared.mend()
    sync.poke(file, one.at + 8, two.key)
    found = layer_with(shared, two.at + 8, one.key)
    says(found, "error", file, f"has a key that belongs before: {two.key!r}")
    shared.mend()
    found = layer_with(shared, one.at + 8 + len(one.key) - 1, b"\xff")
    says(found, "error", file, "has a key that is not UTF-8")


def test_r16_the_table(shared):
    file = shared.layers[-1]
    records = raw.records(file)
    name = f"key {records[7].key!r}"
    entry = raw.table_entry(file, records[7])
    found = layer_with(shared, entry, bytes(8))
    says(found, "error", file, f"{name}) is not found through the table")
    shared.mend()
    found = layer_with(shared, entry, struct.pack("<Q", sync.word(file, entry) ^ 1))
    says(found, "error", file, f"{name}) is not found through the table")
    shared.mend()
    table, sums = raw.option(file, raw.TABLE), raw.option(file, raw.SUMS)
    free = next(at for at in range(table, sums, 8) if not sync.word(file, at))
    for stray in (sync.word(file, entry), 1 << 40 | 5, records[9].at + 8 >> 3 << 16 | 3, 7):
        found = layer_with(shared, free, struct.pack("<Q", stray))
        assert len(found) == 1, found
        bucket, number = divmod((free - table) // 8, 8)
        says(found, "error", file, f"entry {number} of bucket {bucket} of its table (byte {free}) is for byte")
        shared.mend()


def test_r16_the_guide(shared):
    file = shared.layers[-1]
    guide = raw.option(file, raw.GUIDE)
    for at, change in ((guide + 16 * 4, 1), (guide + 16 * 4 + 8, 8), (guide + 8, 1 << 60)):
        found = layer_with(shared, at, struct.pack("<Q", sync.word(file, at) ^ change))
        assert len(found) == 1, found
        says(found, "error", file, f"entry {(at - guide) // 16} of the guide says")
        shared.mend()


def test_r16_metadata(shared):
    file = shared.layers[-1]
    for data in (b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x91" * 5):
        found = layer_with(shared, raw.option(file, raw.END), data)
        assert len(found) == 1, found
        says(found, "error", file, "its metadata (5 bytes at byte")
        shared.mend()


@settings(fast, max_examples=80)
@given(number=st.sampled_from([*range(15), 31]), data=st.data())
def test_r16_every_option_of_a_layer(number, data, shared):
    """No value but the right one passes, and none does harm."""
    file = data.draw(st.sampled_from(shared.layers))
    before = raw.option(file, number)
    wrong = data.draw(
        st.one_of(st.integers(0, (1 << 64) - 1), st.integers(-64, 64).map(lambda d: (before + d) % (1 << 64)))
    )
    if wrong == before:
        return
    raw.set_option(file, number, wrong)
    try:
        found = shared.found()
    finally:
        raw.set_option(file, number, before)
    if number == raw.PROBES and raw.option(file, raw.BUCKETS) >= wrong > before:
        assert found == []  # a longer search finds the same
    else:
        raw.assert_named(found, file)


def test_a_record_of_the_oldest_layer_that_says_that_its_key_is_gone(shared):
    file = shared.layers[-1]
    records = raw.records(file)
    one = next(a for a in records if sync.word(file, a.at) >> 32 == 1)  # an empty str
    found = layer_with(shared, one.at, struct.pack("<Q", 1 << 31 | 1 << 30 | len(one.key) + 8))
    says(found, "error", file, "is not found through the table")
    says(found, "warning", file, "is the oldest, and 1 records hide what nothing older says")


# ---- the delta, on purpose -----------------------------------------------------------------------------------------


def test_r16_batches(shared):
    file, (_, _, batch, *_) = shared.delta, shared.batches
    for at, number, what in (
        (24, batch.count - 1, f"of the batch at byte {batch.at} should be, is none"),
        (24, batch.count + 1, ""),
        (32, 1 << 40, f"the batch at byte {batch.at} says that it makes version {1 << 40}"),
        (32, 1, f"the batch at byte {batch.at} says that it makes version 1"),
        (40, 5, f"the batch at byte {batch.at} says that the map of version"),
        (16, 1 << 40, f"the batch at byte {batch.at} is damaged"),
        (16, 0, f"the batch at byte {batch.at} is damaged"),
        (24, 1 << 60, f"the batch at byte {batch.at} is damaged"),
    ):
        sync.poke_word(file, batch.at + at, number)
        if number < 1 << 40 and at != 16:
            count = batch.count if at != 24 else number
            raw.seal_batch(file, raw.BatchAt(batch.at, batch.end, count))
        elif at == 32:
            raw.seal_batch(file, batch)
        says(shared.found(), "error", file, what)
        shared.mend()


def test_r16_records_and_nodes_of_a_batch(shared):
    file, batch = shared.delta, shared.batches[2]
    record = raw.stored(file, batch.first)
    for at, data, what in (
        (record.at + 2, b"\x40", "has flags"),
        (record.at + 3, b"\x00", "is none"),
        (record.at + 2, b"\x0f", "is none"),
        (record.at + 8, b"\xff", "has a key that is not UTF-8"),
        (record.at + 8, b"C", "the node at byte"),
        (batch.at + raw.BATCH + 4, b"\xff\xff\xff\xff", "the node at byte"),
        (batch.at + raw.BATCH + 8, bytes(8), "the node at byte"),
    ):
        sync.poke(file, at, data)
        raw.seal_batch(file, batch)
        says(shared.found(), "error", file, what)
        shared.mend()


@fast
@given(data=st.data())
def test_r16_links(data, shared):
    """A head, or a node's link, that is any other."""
    file = shared.delta
    nodes = [batch.at + raw.BATCH + raw.NODE * i for batch in shared.batches for i in range(batch.count)]
    at = data.draw(st.sampled_from([*range(raw.HEADS, raw.HEADS + 32, 4), *nodes]))
    before = sync.peek(file, at, 4)
    other = st.one_of(
        st.integers(0, (1 << 32) - 1), st.sampled_from(nodes).map(lambda node: node // 8), st.just(shared.end // 8)
    )
    after = struct.pack("<I", data.draw(other))
    sync.poke(file, at, after)
    try:
        found = shared.found()
    finally:
        sync.poke(file, at, before)
    assert (before == after and found == []) or {(f.severity, f.where) for f in found} == {
        ("error", os.path.basename(file))
    }, found


@settings(fast, max_examples=30)
@given(number=st.integers(0, 4), wrong=st.integers(0, (1 << 64) - 1))
def test_r16_every_option_of_the_delta(number, wrong, shared):
    before = raw.option(shared.delta, number)
    if wrong == before:
        return
    raw.set_option(shared.delta, number, wrong)
    try:
        found = shared.found()
    finally:
        raw.set_option(shared.delta, number, before)
    raw.assert_named(found, shared.delta)
