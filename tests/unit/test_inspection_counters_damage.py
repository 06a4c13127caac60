"""`verify` of counters: every kind of damage is found and named, hostile files harm nobody, nothing is changed."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import counterfiles as raw
import pytest
from findings import errors, only
from hypothesis import example, given
from hypothesis import strategies as st

from mmapds import Counters, MmapdsError
from mmapds.errors import CorruptionError, IncompatibleFormat
from mmapds.inspection import describe, verify

NAMES = ("hits", "errors", "gone", "größe")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Four names, one of them removed, and an index."""
    return _make(str(tmp_path / "counts"))


def _make(path: str, more: int = 0) -> str:
    with Counters(path, 8) as c:
        for name in NAMES:
            c[name] = 1
        c[3] = 33
        c.remove("gone")
        for number in range(more):
            c[f"more {number}"] = number
    return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> str:
    """One file of three extents for many examples, each of which puts right what it did."""
    return _make(str(tmp_path_factory.mktemp("inspection") / "counts"), 200)


def entry_at(path: str, number: int) -> int:
    return raw.Snapshot(path).entry_offset(number)


def refused(path: str) -> None:
    """Nobody opens it, and it stays as it is."""
    before = Path(path).read_bytes()
    with pytest.raises(MmapdsError):
        Counters(path).close()
    assert Path(path).read_bytes() == before


# ---- the header ----------------------------------------------------------------------------------------------------


@given(bit=st.integers(8 * 24, 8 * 2048 - 1))
def test_r15_every_bit_of_the_immutable_half_of_the_header(bit, shared):
    raw.flip(shared, bit)
    try:
        only(shared, "error", "counts", "the header is damaged")
        with pytest.raises(CorruptionError):
            describe(shared)
    finally:
        raw.flip(shared, bit)
    assert verify(shared) == []


@pytest.mark.parametrize("offset", range(24))
def test_r14_magic_byte_order_version_and_kind(path, offset):
    raw.flip(path, 8 * offset + 3)
    before = Path(path).read_bytes()
    if offset in (14, 15):  # another minor version would have another checksum
        only(path, "error", "counts", "the header is damaged")
    else:
        with pytest.raises(CorruptionError if offset >= 16 else IncompatibleFormat):
            verify(path)
    with pytest.raises(CorruptionError if offset >= 14 else IncompatibleFormat):
        describe(path)
    assert Path(path).read_bytes() == before


@given(bit=st.integers(8 * 2080, 8 * 8192 - 1))
@example(bit=8 * raw.NAMES)
@example(bit=8 * raw.REMOVING + 40)
@example(bit=8 * raw.FAILED)
@example(bit=8 * (raw.EXTENTS + 16))
@example(bit=8 * (raw.EXTENTS + 3 * raw.EXTENT_SIZE))
@example(bit=8 * (raw.EXTENTS + 3 * raw.EXTENT_SIZE + 16))
@example(bit=8 * (raw.EXTENTS + 3 * raw.EXTENT_SIZE + 24))
@example(bit=8 * (raw.EXTENTS + 4 * raw.EXTENT_SIZE))
def test_r15_every_bit_of_the_control_page(bit, shared):
    byte = bit // 8
    if raw.CHANGES <= byte < raw.CHANGES + 8 or raw.REMOVING + 16 <= byte <= raw.REMOVING + 24:
        return  # any number is right, or, of the last word, any small one
    raw.flip(shared, bit)
    try:
        assert verify(shared) != []
    finally:
        raw.flip(shared, bit)
    assert verify(shared) == []


@pytest.mark.parametrize("number", [0, 2, 3, 4, 80, 203])
@given(bit=st.integers(0, 8 * raw.ENTRY - 1))
def test_r15_every_bit_of_an_entry(number, bit, shared):
    bit += 8 * entry_at(shared, number)
    raw.flip(shared, bit)
    try:
        found = verify(shared)
        assert len(found) == 1, found
        assert f"{number})" in found[0].what or found[0].where == f"counts, name {number}", found
        assert found[0].severity == ("error" if "names (number" in found[0].what else "warning")
    finally:
        raw.flip(shared, bit)
    assert verify(shared) == []


@pytest.mark.parametrize("bit", range(0, 64, 5))
def test_r15_sentinels(bit, shared):
    for number, extent in enumerate(raw.Snapshot(shared).extents):
        raw.flip(shared, 8 * (extent.end - 8) + bit)
        try:
            only(shared, "error", f"counts, extent {number}", "has no sentinel at its end")
        finally:
            raw.flip(shared, 8 * (extent.end - 8) + bit)


def test_reserved_bytes(shared):
    extent = raw.Snapshot(shared).extents[1]
    behind = extent.names_start + raw.ENTRY * extent.entries
    padding = entry_at(shared, 0) + 271
    for offset in (2100, 2112, 2159, 2170, 4095, 4112, 4159, 4192, 4223, 4224, 4607, behind, extent.end - 9, padding):
        raw.poke(shared, offset, b"\xaa")
        where = "counts"
        where += ", extent 1" if offset >= extent.start else ", name 0" if offset == padding else ""
        only(shared, "warning", where, f"byte {offset} is 0xaa: it is reserved")
        raw.poke(shared, offset, b"\0")
    raw.poke_word(shared, raw.EXTENTS + raw.EXTENT_SIZE + 16, 7)
    only(shared, "warning", "counts, extent 1", "its reserved word is 0x7")
    raw.poke_word(shared, raw.EXTENTS + raw.EXTENT_SIZE + 16, 0)


@pytest.mark.parametrize(
    ("offset", "value", "text"),
    [
        (48, 1, "names a parent"),
        (raw.OPTIONS, 2, "stores dtype 2"),
        (raw.OPTIONS + 8, 16, "16 bytes from cell to cell"),
        (raw.OPTIONS + 8, 0, "0 bytes from cell to cell"),
        (raw.OPTIONS + 16, 1 << 63, "9223372036854775808 indices"),
        (raw.OPTIONS + 24, 1, "and perhaps more"),
        (raw.OPTIONS + 16, 1000, "up to here are 512 cells, for 1000 indices and 75 names"),
        (raw.OPTIONS + 8, 64, "up to here are 64 cells, for 8 indices and 75 names"),
        (80, 1, "hashes to"),
    ],
)
def test_a_forged_header(path, offset, value, text):
    """Its checksum is right: what it says is checked all the same."""
    raw.poke_word(path, offset, value)
    if offset == 80:
        raw.poke(path, 76, struct.pack("<I", 3))  # a schema of three bytes
    raw.seal(path)
    only(path, "error", "counts" if "up to" not in text else "counts, extent 0", text)
    describe(path)


# ---- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [24, 100, 4095])
def test_a_file_without_a_whole_header(path, size):
    os.truncate(path, size)
    only(path, "error", "counts", f"is {size} bytes long")
    refused(path)


@pytest.mark.parametrize("size", [4096, 8191])
def test_a_file_without_a_whole_control_page(path, size):
    os.truncate(path, size)
    only(path, "error", "counts", f"has {size} bytes, and the control page ends at 8192: it was cut")
    refused(path)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_file_that_was_cut(tmp_path, number):
    path = _make(str(tmp_path / "counts"), 200)
    extent = raw.Snapshot(path).extents[number]
    for size in (extent.end - 1, extent.end - 8, extent.names_start + 1, extent.start):
        os.truncate(path, size)
        found = errors(path)
        assert found[0].where == f"counts, extent {number}"
        assert found[0].what == f"ends at {extent.end}, and the file at {size}: it was cut"
        assert [f.what for f in found[1:]] == [f"says 204 names, and has room for {75 * number}"] * (number > 0)
        refused(path)


def test_the_end_of_the_file_with_zeros_in_its_place(path):
    """Cut, and made as long again: nothing but the sentinel shows it where there are no names."""
    end = raw.Snapshot(path).extents[0].end
    os.truncate(path, end - 4096)
    os.truncate(path, end)
    only(path, "error", "counts, extent 0", "was the file cut?")
    refused(path)


# ---- extents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [0, 1, 3])
def test_a_damaged_record_of_an_extent(tmp_path, word):
    path = _make(str(tmp_path / "counts"), 200)
    for number, rest in ((0, 0), (1, 75), (2, 150)):
        raw.flip(path, 8 * (raw.EXTENTS + number * raw.EXTENT_SIZE + 8 * word) + 12)
        expected = [
            (f"counts, extent {number}", "its check is wrong: damaged, or from another file"),
            ("counts", f"says 204 names, and has room for {rest}"),
        ]
        assert [(f.where, f.what) for f in errors(path)] == expected[: 2 if number else 1]
        assert len(describe(path)["extents"]) == number
        refused(path)
        raw.flip(path, 8 * (raw.EXTENTS + number * raw.EXTENT_SIZE + 8 * word) + 12)
    assert verify(path) == []


def test_a_missing_record(tmp_path):
    path = _make(str(tmp_path / "counts"), 200)
    record = raw.peek(path, raw.EXTENTS + raw.EXTENT_SIZE, 32)
    raw.poke(path, raw.EXTENTS + raw.EXTENT_SIZE, bytes(32))
    assert {(f.where, f.what) for f in errors(path)} == {
        ("counts, extent 2", "is there, and extent 1 before it is not"),
        ("counts", "says 204 names, and has room for 75"),
    }
    refused(path)
    raw.poke(path, raw.EXTENTS + raw.EXTENT_SIZE, record)
    raw.poke(path, raw.EXTENTS, bytes(raw.EXTENT_SIZE))
    assert any(f.what == "has no extents, and so no cells: damaged" for f in errors(path))
    refused(path)


@pytest.mark.parametrize(
    ("cells", "names", "text"),
    [
        (4096, 20481, "both are whole pages"),
        (4095, 20480, "both are whole pages"),
        (4096, 0, "0 of names, and both are whole pages"),
        (1 << 47, 4096, "both are whole pages"),
        (4096, 1 << 47, "both are whole pages"),
        ((1 << 64) - 4096, 4096, "both are whole pages"),
        (1 << 46, 1 << 46, "and the file at 32768: it was cut"),
        (4096, 1 << 46, "and the file at 32768: it was cut"),
        (0, 4096, "up to here are 0 cells, for 8 indices and 15 names"),
    ],
)
def test_r16_hostile_sizes_with_a_right_check(path, cells, names, text):
    check = raw.extent_check(0, cells, names, raw.identity(path))
    raw.poke(path, raw.EXTENTS, struct.pack("<4Q", cells, names, 0, check))
    raw.poke_word(path, raw.NAMES, raw.count(0xFFFFFFFF, raw.identity(path)))
    assert any(f.where == "counts, extent 0" and text in f.what for f in errors(path)), errors(path)
    describe(path)
    refused(path)


def test_r16_all_records_are_hostile(path):
    identity = raw.identity(path)
    for number in range(raw.EXTENT_COUNT):
        check = raw.extent_check(number, 1 << 46, 1 << 46, identity)
        raw.poke(path, raw.EXTENTS + number * 32, struct.pack("<4Q", 1 << 46, 1 << 46, 0, check))
    assert errors(path)
    assert len(describe(path)["extents"]) == raw.EXTENT_COUNT
    refused(path)


# ---- counts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [5, 3, 1 << 32, (1 << 64) - 1])
def test_damaged_words(path, value):
    for offset, text in (
        (raw.NAMES, "the count of names is damaged"),
        (raw.REMOVING, "the word for a removal is damaged"),
        (raw.REMOVING + 8, "the word for a return is damaged"),
    ):
        before = raw.word(path, offset)
        raw.poke_word(path, offset, value)
        only(path, "error", "counts", text)
        raw.poke_word(path, offset, before)
    assert verify(path) == []


def test_too_many_names(path):
    raw.poke_word(path, raw.NAMES, raw.count(76, raw.identity(path)))
    assert [(f.where, f.what) for f in errors(path)] == [
        ("counts", "says 76 names, and has room for 75"),
        (
            "counts",
            "71 names (number 4, 5, 6, 7, 8, 9, 10, 11, ...) are not what was written: their checks are wrong",
        ),
    ]
    refused(path)


def test_names_of_another_file_and_number(path, tmp_path):
    other = _make(str(tmp_path / "other"))
    at = entry_at(path, 1)
    content = raw.peek(path, at, raw.ENTRY)
    for foreign in (raw.peek(other, at, raw.ENTRY), raw.peek(path, entry_at(path, 0), raw.ENTRY), bytes(raw.ENTRY)):
        raw.poke(path, at, foreign)
        only(path, "error", "counts", "1 names (number 1) are not what was written")
        refused(path)
    raw.poke(path, at, content)
    assert verify(path) == []


def test_removal_and_return_of_a_name_that_is_not_there(path):
    for offset, what in ((raw.REMOVING, "removal"), (raw.REMOVING + 8, "return")):
        raw.poke_word(path, offset, raw.count(5, raw.identity(path)))
        only(path, "error", "counts", f"the {what} of name 4 is under way, and there is no such name")
        raw.poke_word(path, offset, 0)
    raw.poke_word(path, raw.REMOVING + 24, 3)
    only(path, "warning", "counts", "says 3 for how a name returns")


# ---- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [b"live    ", b"removed "])
def test_a_name_that_is_there_twice(path, state):
    raw.poke(path, entry_at(path, 3), raw.entry(3, b"hits", raw.identity(path), state))
    removed = "and removed, " if state == b"removed " else ""
    only(path, "error", "counts, name 3", f"is 'hits', {removed}and so is name 0")


def test_a_name_that_is_not_utf_8(path):
    raw.poke(path, entry_at(path, 1), raw.entry(1, b"\xff\xfe", raw.identity(path)))
    raw.poke(path, entry_at(path, 2), raw.entry(2, b"\xed\xa0\x80", raw.identity(path), b"removed "))
    only(path, "error", "counts", "2 names (number 1, 2) are not UTF-8")
    refused(path)


@pytest.mark.parametrize(
    ("name", "state"), [(b"x", b"damaged "), (b"", b"live    "), (b"", b"removed "), (b"x", bytes(8))]
)
def test_a_state_that_does_not_go_with_the_name(path, name, state):
    raw.poke(path, entry_at(path, 1), raw.entry(1, name, raw.identity(path), state))
    only(path, "error", "counts", "1 names (number 1) are neither there nor removed")
    refused(path)


def test_what_a_recovery_gave_up_is_a_note(path):
    for number in (0, 2):
        raw.poke(path, entry_at(path, number), raw.entry(number, b"", raw.identity(path), b"damaged "))
    only(path, "note", "counts", "2 names (number 0, 2) were lost with the power, and given up by a recovery")
    with Counters(path) as c:
        assert sorted(c) == ["errors", "größe"]
        c.check()


def test_all_damage_at_once_is_all_reported_and_nothing_is_changed(tmp_path):
    path = _make(str(tmp_path / "counts"), 200)
    extents = raw.Snapshot(path).extents
    for number in range(10, 30):
        raw.poke(path, entry_at(path, number) + 20, b"\xff")
    raw.poke(path, entry_at(path, 1), raw.entry(1, b"hits", raw.identity(path)))
    raw.poke_word(path, extents[0].end - 8, 0)
    raw.poke_word(path, raw.FAILED, 3)
    raw.flip(path, 8 * 4100)
    before = Path(path).read_bytes(), os.stat(path).st_mtime_ns
    found = verify(path)
    assert (Path(path).read_bytes(), os.stat(path).st_mtime_ns) == before
    assert [f.severity for f in found] == ["error"] * 4 + ["warning"], found
    assert any("20 names (number 10, 11, 12, 13, 14, 15, 16, 17, ...)" in f.what for f in found)
    with pytest.raises(CorruptionError) as caught, Counters(path, mode="readonly") as c:
        c.check()
    assert str(caught.value)
