"""`verify`: every kind of damage is found and named, what a death leaves is not called damage, nothing is changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import syncfiles as raw
from findings import errors, only
from hypothesis import given
from hypothesis import strategies as st
from peers import Peer

from mmapds import Synchronizer
from mmapds.errors import CorruptionError, IncompatibleFormat
from mmapds.inspection import describe, verify

PARTS = ("_sync", "_data_0", "_data_1")


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """Three versions, everybody gone: version 3 is active, in data_1."""
    path = str(tmp_path / "set")
    with Synchronizer(path, schema="numbers v1") as s:
        for number in range(1, 4):
            s.write(list(range(100 * number)))
    return path


def unchanged(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir() if p.is_file()}


# ---- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
@given(bit=st.integers(8 * 64, 8 * 2048 - 1))
def test_r15_every_bit_of_the_immutable_half_of_a_header(part, bit, tmp_path_factory):
    prefix = _set_of(tmp_path_factory)
    raw.flip(prefix + part, bit)
    try:
        assert [f.where for f in errors(prefix)] == ["set" + part]
        with pytest.raises(CorruptionError):
            describe(prefix + part)
    finally:
        raw.flip(prefix + part, bit)
    assert verify(prefix) == []


_folders: dict[str, str] = {}


def _set_of(factory: pytest.TempPathFactory) -> str:
    """One set for many examples, each of which puts right what it did."""
    if "set" not in _folders:
        _folders["set"] = str(factory.mktemp("inspection") / "set")
        with Synchronizer(_folders["set"]) as s:
            for number in range(3):
                s.write([number] * 50)
    return _folders["set"]


@given(bit=st.integers(8 * 64, 8 * (8192 + 256) - 1))
def test_r15_every_bit_of_the_control_file_that_means_something(bit, tmp_path_factory):
    prefix = _set_of(tmp_path_factory)
    byte = bit // 8
    free = [
        (2112, 2160),  # the holder, for messages
        (4192, 4200),  # generations
        (4256, 4264),
        (4288, 4289),  # waiters: 0 or 1, both right
        (8208, 8224),  # incarnation and pid of slots 0 and 1
        (8336, 8352),
    ]
    if any(start <= byte < end for start, end in free):
        return
    raw.flip(prefix + "_sync", bit)
    try:
        assert verify(prefix) != []
    finally:
        raw.flip(prefix + "_sync", bit)
    assert verify(prefix) == []


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("offset", range(24))
def test_r14_magic_byte_order_version_and_kind(prefix, part, offset, tmp_path):
    raw.flip(prefix + part, 8 * offset + 3)
    before = unchanged(tmp_path)
    if part == "_sync" and 8 <= offset < 14:
        with pytest.raises(IncompatibleFormat):  # says that it is of another format: no question of damage
            verify(prefix)
    else:
        assert [f.where for f in errors(prefix)] == ["set" + part]
    assert unchanged(tmp_path) == before


def test_the_value(prefix):
    size = raw.record(prefix, 1).size
    for offset in (raw.PAGE, raw.PAGE + size // 2, raw.PAGE + size - 1):
        raw.flip(prefix + "_data_1", 8 * offset)
        only(prefix, "error", "set_data_1", "version 3: checksum 0x")
        raw.flip(prefix + "_data_1", 8 * offset)
    raw.flip(prefix + "_data_1", 8 * (raw.PAGE + size))  # behind the value
    assert verify(prefix) == []


def test_the_inactive_value_is_a_note_and_not_even_that_while_a_writer_is_there(prefix):
    raw.flip(prefix + "_data_0", 8 * raw.PAGE)
    only(prefix, "note", "set_data_0", "version 2, which nobody reads any more: checksum 0x")
    with Synchronizer(prefix) as s:
        s._become_writer()
        assert verify(prefix) == []
        s.write(1)
    assert verify(prefix) == []


@pytest.mark.parametrize(
    ("size", "what"),
    [(0, "is empty"), (100, "is 100 bytes long"), (4096, "room for 0"), (4100, "room for 4"), (4296, "room for 200")],
)
def test_a_data_file_that_was_cut(prefix, size, what):
    os.truncate(prefix + "_data_1", size)
    only(prefix, "error", "set_data_1", what)


def test_missing_files(prefix, tmp_path):
    os.rename(prefix + "_data_0", tmp_path / "away")
    only(prefix, "warning", "set_sync, record 0", "its data file is missing")
    os.rename(tmp_path / "away", prefix + "_data_0")
    os.unlink(prefix + "_data_1")
    only(prefix, "error", "set_data_1", "is missing, and holds version 3")
    os.unlink(prefix + "_sync")
    only(prefix + "_data_0", "error", "set_sync", "is missing")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path)])
@pytest.mark.parametrize("index", [0, 1])
def test_r17_something_else_in_the_place_of_a_data_file(prefix, make, index):
    os.unlink(f"{prefix}_data_{index}")
    make(f"{prefix}_data_{index}")
    found = errors(prefix)
    assert found[0].where == f"set_data_{index}"
    assert found[0].what.startswith("is a")


@pytest.mark.parametrize("size", [0, 1, 4095])
def test_a_control_file_without_a_header_beside_data_of_ours(prefix, size):
    os.truncate(prefix + "_sync", size)
    only(prefix, "error", "set_sync", "empty" if size == 0 else f"{size} bytes")


@pytest.mark.parametrize("size", [4096, 8192, raw.SIZE - 1, raw.SIZE + 1])
def test_a_control_file_that_was_cut_or_added_to(prefix, size):
    os.truncate(prefix + "_sync", size)
    only(prefix, "error", "set_sync", f"has {size} bytes, expected {raw.SIZE}")


def test_exchanged_and_foreign_data_files(prefix, tmp_path):
    os.rename(prefix + "_data_0", tmp_path / "x")
    os.rename(prefix + "_data_1", prefix + "_data_0")
    os.rename(tmp_path / "x", prefix + "_data_1")
    found = {(f.where, f.what.partition(":")[0]) for f in errors(prefix)}
    assert ("set_data_0", "says that it is data_1") in found
    assert ("set_data_1", "says that it is data_0") in found
    other = str(tmp_path / "other")
    with Synchronizer(other, codec="raw") as s:
        s.write(b"x")
    os.replace(other + "_data_1", prefix + "_data_1")
    assert any(f.where == "set_data_1" and "belongs to the control file" in f.what for f in errors(prefix))


def test_a_forged_header(prefix):
    """Its checksum is right: what it says is checked all the same."""
    path = prefix + "_sync"
    for offset, text in ((48, "names a parent"), (96, "reader slots"), (104, "no more options"), (80, "hashes to")):
        before = raw.peek(path, 0, 4096)
        raw.flip(path, 8 * offset)
        raw.seal(path)
        only(prefix, "error", "set_sync", text)
        raw.poke(path, 0, before)
    raw.poke_word(prefix + "_data_1", 72, 1)  # durability, and the length of the schema
    raw.seal(prefix + "_data_1")
    only(prefix, "error", "set_data_1", "has durability 'power'")


@pytest.mark.parametrize("word", range(4))
def test_the_active_record(prefix, word):
    raw.flip(prefix + "_sync", 8 * (raw.RECORDS[1] + 8 * word))
    found = errors(prefix)
    assert {f.where for f in found} == {"set_sync, record 1"}
    assert any("its check is wrong" in f.what for f in found)
    assert any("commit word says 3" in f.what for f in found) == (word == 0)


@pytest.mark.parametrize("word", range(4))
def test_the_inactive_record_is_a_warning(prefix, word):
    raw.flip(prefix + "_sync", 8 * (raw.RECORDS[0] + 8 * word) + 5)
    assert [(f.severity, f.where) for f in verify(prefix)] == [("warning", "set_sync, record 0")]


@pytest.mark.parametrize("size", [1 << 20, 1 << 39, (1 << 64) - 1, (1 << 64) - 4096])
def test_r16_a_hostile_size_with_a_right_check(prefix, size):
    raw.write_record(prefix, 1, 3, size, 0)
    assert len(errors(prefix)) == 1
    raw.write_record(prefix, 0, 2, size, 0)
    assert len(errors(prefix)) == 1


def test_r16_a_hostile_size_in_a_hostile_file_takes_no_memory(prefix):
    """A sparse file as long as the record says: read in pieces, as long as it takes."""
    size = 1 << 28
    os.truncate(prefix + "_data_1", raw.PAGE + size)
    raw.write_record(prefix, 1, 3, size, 0)
    only(prefix, "error", "set_data_1", f"computed over {size} bytes")


def test_the_commit_word(prefix):
    for value in (0, 1, 4, 5, 1 << 63, (1 << 64) - 1):
        raw.poke_word(prefix + "_sync", raw.COMMIT, value)
        assert errors(prefix), value
    raw.poke_word(prefix + "_sync", raw.COMMIT, 2)  # as a writer leaves it that dies just before it publishes 3
    only(prefix, "note", "set_sync, record 1", "begun for version 3")
    raw.poke_word(prefix + "_sync", raw.COMMIT, 3)
    assert verify(prefix) == []


def test_reserved_bytes(prefix):
    for part, offset in (("_sync", 2300), ("_sync", 4104), ("_sync", 8183), ("_sync", 8192 + 100), ("_data_0", 2200)):
        raw.poke(prefix + part, offset, b"\xaa")
        only(prefix, "warning", "set" + part, f"byte {offset} is 0xaa")
        raw.poke(prefix + part, offset, b"\0")


def test_a_commit_page_that_was_cut(prefix):
    raw.poke(prefix + "_sync", 8191, b"\0")
    only(prefix, "error", "set_sync", "was the file cut?")


def test_the_durability_failed_word(prefix):
    raw.poke_word(prefix + "_sync", raw.FAILED, 1)
    only(prefix, "warning", "set_sync", "a flush to the disk failed")
    assert describe(prefix)["durability_failed"] is True


def test_the_waiters_word(prefix):
    raw.poke_word(prefix + "_sync", raw.WAITERS, 1)
    assert verify(prefix) == []
    raw.poke_word(prefix + "_sync", raw.WAITERS, 7)
    only(prefix, "warning", "set_sync", "waiters")


def test_the_other_protocol_beside_it(prefix):
    Path(prefix + "_state").write_bytes(bytes(16))
    only(prefix, "warning", "set_state", "'mmap-sync'")


# ---- deaths --------------------------------------------------------------------------------------------------------


def test_leftovers_of_a_dead_writer(prefix, tmp_path):
    Path(prefix + "_data_0.new").touch()
    only(prefix, "note", "set_data_0.new", "the next one removes it")
    with Synchronizer(prefix) as s:
        s.write(1)
    assert verify(prefix) == []
    Path(tmp_path / ".set_sync.0123abcd.tmp").touch()
    Path(tmp_path / ".unset_sync.0123abcd.tmp").touch()
    only(prefix, "note", ".set_sync.0123abcd.tmp", "can be removed")


def test_a_record_begun_by_a_dead_writer(prefix):
    """Killed between the first store of a record and the commit word."""
    raw.poke_word(prefix + "_sync", raw.RECORDS[0], 4)
    only(prefix, "note", "set_sync, record 0", "begun for version 4 by a writer that died")
    raw.write_record(prefix, 0, 4, 10, 0)
    only(prefix, "note", "set_sync, record 0", "begun for version 4 by a writer that died")
    with Synchronizer(prefix) as s:
        assert s.load() == list(range(300))
        s.write(1)
    assert verify(prefix) == []


def test_the_first_record_begun_by_a_dead_writer(tmp_path):
    path = str(tmp_path / "set")
    Synchronizer(path).close()
    raw.write_record(path, 1, 1, 10, 0)
    only(path, "note", "set_sync, record 1", "begun for version 1")
    raw.write_record(path, 0, 2, 10, 0)
    assert any("there is none" in f.what for f in errors(path))


def test_dead_readers(prefix):
    with Peer(
        "s = Synchronizer(prefix); r = s.read(); t = Synchronizer(prefix); t.load(); None", prefix=prefix
    ) as peer:
        assert verify(prefix) == []
        peer.kill()
    only(prefix, "note", "set_sync", "2 reader slots (0, 1) are of handles that died, 1 of them with pins")
    with Synchronizer(prefix) as s:
        for _ in range(3):
            s.write("x", grace=0)
    assert not any("1 of them with pins" in f.what for f in verify(prefix))
    assert errors(prefix) == []


def test_pins_that_no_writer_sees(prefix):
    offset = raw.SLOTS + 5 * raw.SLOT_SIZE
    raw.poke_word(prefix + "_sync", offset, 1)
    only(prefix, "warning", "set_sync", "slot 5: has pins 1 and 0, and is not marked as in use")
    descriptor = os.open(prefix + "_sync", os.O_RDWR)
    try:
        raw.lock(descriptor, raw.LOCK_SLOT + 5)  # somebody lives there: it could be overwritten under him
        only(prefix, "error", "set_sync", "slot 5: has pins 1 and 0, and is not marked as in use")
    finally:
        os.close(descriptor)
    raw.poke_word(prefix + "_sync", offset, (1 << 64) - 1)
    only(prefix, "error", "set_sync", "slot 5: its pins are 18446744073709551615 and 0: damaged")
