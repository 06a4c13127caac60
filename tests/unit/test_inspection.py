"""`describe` and `verify`: every kind of damage is found and named, a sound set has no findings, nothing is changed."""

from __future__ import annotations

import os
import shutil
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import syncfiles as raw
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from peers import Peer

import mmapds
from mmapds import Synchronizer, inspection
from mmapds.errors import CorruptionError, IncompatibleFormat
from mmapds.inspection import Finding, describe, verify
from mmapds.inspection._base import hash_range

PARTS = ("_sync", "_data_0", "_data_1")


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """Three versions, everybody gone: version 3 is active, in data_1."""
    path = str(tmp_path / "set")
    with Synchronizer(path, schema="numbers v1") as s:
        for number in range(1, 4):
            s.write(list(range(100 * number)))
    return path


@pytest.fixture
def crate(tmp_path: Path) -> str:
    """The same in the files of mmap-sync: the third is in data_0."""
    path = str(tmp_path / "rust")
    with Synchronizer(path, protocol="mmap-sync") as s:
        for number in range(1, 4):
            s.write(list(range(100 * number)))
    return path


def errors(path: str) -> list[Finding]:
    return [finding for finding in verify(path) if finding.severity == "error"]


def only(path: str, severity: str, where: str, what: str) -> Finding:
    """The only finding, which must be that one."""
    findings = verify(path)
    assert [(f.severity, f.where) for f in findings] == [(severity, where)], findings
    assert what in findings[0].what
    return findings[0]


def unchanged(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir() if p.is_file()}


# ---- sound ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["", *PARTS])
def test_a_sound_set_has_no_findings_whichever_file_is_named(prefix, part, tmp_path):
    before = unchanged(tmp_path)
    assert verify(prefix + part) == []
    assert verify(os.fsencode(prefix + part)) == []
    assert verify(Path(prefix + part)) == []
    describe(prefix + part)
    assert unchanged(tmp_path) == before


@pytest.mark.parametrize("versions", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("protocol", ["mmapds", "mmap-sync"])
@pytest.mark.parametrize("value", [b"", b"x", b"y" * 100_000])
def test_sound_from_the_first_moment_on_open_and_closed(tmp_path, versions, protocol, value):
    path = str(tmp_path / "set")
    with Synchronizer(path, protocol=protocol, codec="raw") as s, Synchronizer(path, protocol=protocol) as reader:
        for _ in range(versions):
            s.write(value)
        if versions:
            with reader.read() as held:
                assert verify(path) == []
                assert held.data == value
        assert verify(path) == []
        s.check()
    assert verify(path) == []


def test_sound_in_the_current_directory(prefix, monkeypatch):
    monkeypatch.chdir(os.path.dirname(prefix))
    assert verify("set") == []
    assert describe("set_data_0")["control"] == {"path": "set_sync", "is_parent": True}


def test_sound_after_a_reader_kept_its_version_and_got_a_new_file_beside_it(prefix):
    with Synchronizer(prefix) as s, Synchronizer(prefix) as reader, reader.read() as held:
        for _ in range(3):
            s.write("next", grace=0)
        assert held.value == list(range(300))
        assert verify(prefix) == []
        generations = [record["generation"] for record in describe(prefix)["records"]]
        assert max(generations) > 2


def test_one_file_may_be_unreadable_or_missing(prefix, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        verify(tmp_path / "nothing")
    assert caught.value.filename == str(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        describe(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        verify(tmp_path)


def test_a_directory_of_the_prefix_s_name_is_no_hindrance(prefix):
    os.mkdir(prefix)
    assert verify(prefix) == []
    assert describe(prefix)["kind"] == "sync"


# ---- described -----------------------------------------------------------------------------------------------------


def test_describe_the_control_file(prefix):
    found = describe(prefix)
    assert found == describe(prefix + "_sync")
    identity = raw.peek(raw.sync(prefix), raw.IDENTITY, 16).hex()
    status = os.stat(raw.sync(prefix))
    size, digest = raw.record(prefix, 1)[1:3]
    expected = {
        "what": "control file of a Synchronizer",
        "path": prefix + "_sync",
        "size": raw.SIZE,
        "permissions": "0600",
        "kind": "sync",
        "format": "1.0",
        "identity": identity,
        "parent": None,
        "durability": "process",
        "codec": "msgpack",
        "schema": "numbers v1",
        "options": {"slots": 1024},
        "origin": {"device": status.st_dev, "inode": status.st_ino, "copied": False},
        "durability_failed": False,
        "sequence": 3,
        "active": 1,
        "slots": {"in_use": 0, "used": []},
        "waiters": False,
    }
    assert expected.items() <= found.items()
    assert found["boot"] == {"id": mmapds.files.boot_id().hex(), "this_boot": True}
    assert found["writer"]["locked"] is False
    assert found["writer"]["holder"].startswith(f"pid {os.getpid()} ")
    assert found["created"].endswith("+00:00")
    generation = raw.record(prefix, 1).generation
    assert found["records"][1] == {
        "index": 1,
        "sequence": 3,
        "size": size,
        "hash": f"{digest:016x}",
        "check_right": True,
        "generation": generation,
    }


def test_describe_who_is_there(prefix):
    with Synchronizer(prefix) as s, s.read(), Peer("s = Synchronizer(prefix)", prefix=prefix) as peer:
        peer("r = s.read(); q = s.read(); s.write('x'); None")
        found = describe(prefix)
        assert found["writer"]["locked"] is True
        assert found["writer"]["holder"].startswith(f"pid {peer.pid} ")
        used = found["slots"]["used"]
        assert found["slots"]["in_use"] == 2
        assert [slot["alive"] for slot in used] == [True, True]
        assert sorted(slot["pins"] for slot in used) == [(0, 1), (0, 2)]
        peer.kill()
        found = describe(prefix)
        assert found["writer"]["locked"] is False
        assert {slot["alive"]: slot["pins"] for slot in found["slots"]["used"]} == {True: (0, 1), False: (0, 2)}


def test_describe_a_data_file(prefix):
    found = describe(prefix + "_data_1")
    assert found["what"] == "data file of a Synchronizer"
    assert found["options"] == {"index": 1}
    assert found["parent"] == describe(prefix)["identity"]
    assert found["capacity"] == os.stat(prefix + "_data_1").st_size - raw.PAGE
    assert found["control"] == {"path": prefix + "_sync", "is_parent": True}
    raw.poke(prefix + "_sync", 0, b"?")
    assert describe(prefix + "_data_1")["control"]["is_parent"] is None
    os.unlink(prefix + "_sync")
    assert "control" not in describe(prefix + "_data_1")


def test_describe_a_copy(prefix, tmp_path):
    shutil.copy(prefix + "_sync", tmp_path / "copy")
    found = describe(tmp_path / "copy")
    assert found["origin"]["copied"] is True
    assert found["boot"]["this_boot"] is True


def test_describe_what_was_cut(prefix):
    os.truncate(prefix + "_sync", 5000)
    assert describe(prefix)["cut"] == f"5000 bytes, expected {raw.SIZE}"


def test_describe_what_is_not_ours(tmp_path):
    for name, content in {
        "text": b"hello" * 2000,
        "empty": b"",
        "x_sync": b"",
        "y_data_0": b"z",
        "z_state": b"17 bytes, not 16.",
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        for look in (describe, verify):
            with pytest.raises(IncompatibleFormat):
                look(path)
    os.mkfifo(tmp_path / "fifo_sync")
    os.symlink(tmp_path / "text", tmp_path / "link")
    for name in ("fifo_sync", "fifo", "link"):
        with pytest.raises(IncompatibleFormat):
            describe(tmp_path / name)
        with pytest.raises(IncompatibleFormat):
            verify(tmp_path / name)


def test_another_kind_has_its_header_described_and_checked(tmp_path):
    path = str(tmp_path / "file")
    mmapds.files.create(path, mmapds.files.new_header("gadget"), 4096, durability="process")
    assert describe(path)["kind"] == "gadget"
    assert "does not know" in describe(path)["what"]
    only(path, "note", "file", "of kind 'gadget'")
    raw.flip(path, 8 * 40)
    for look in (describe, verify):
        with pytest.raises(CorruptionError, match="header is damaged"):
            look(path)


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


@pytest.mark.parametrize("size", [0, 100, 4095, 4096, 4100, 4096 + 200])
def test_a_data_file_that_was_cut(prefix, size):
    os.truncate(prefix + "_data_1", size)
    findings = errors(prefix)
    assert [f.where for f in findings] == ["set_data_1"] + ["set_data_1"] * 0
    assert "long" in findings[0].what or "empty" in findings[0].what or "room for" in findings[0].what


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
    assert found[0].what.lower().startswith("is a")


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
    for value in (0, 1, 2, 4, 5, 1 << 63, (1 << 64) - 1):
        raw.poke_word(prefix + "_sync", raw.COMMIT, value)
        assert errors(prefix), value
    raw.poke_word(prefix + "_sync", raw.COMMIT, 3)
    assert verify(prefix) == []


def test_reserved_bytes(prefix):
    for part, offset in (("_sync", 2300), ("_sync", 4104), ("_sync", 8191), ("_sync", 8192 + 100), ("_data_0", 2200)):
        raw.poke(prefix + part, offset, b"\xaa")
        only(prefix, "warning", "set" + part, f"byte {offset} is 0xaa")
        raw.poke(prefix + part, offset, b"\0")


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
    with Peer("s = Synchronizer(prefix); r = s.read(); t = Synchronizer(prefix); t.load(); None", prefix=prefix) as peer:
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


# ---- another boot, copies ------------------------------------------------------------------------------------------


def test_r24_a_copy_is_judged_by_what_recovery_will_find(prefix, tmp_path):
    other = str(tmp_path / "copy")
    raw.copy(prefix, other)
    only(other, "note", "copy_sync", "or is a copy")
    raw.poke_word(other + "_sync", raw.IN_USE, 1)  # slots and pins of another time mean nothing
    only(other, "note", "copy_sync", "or is a copy")
    raw.flip(other + "_data_1", 8 * raw.PAGE)
    findings = verify(other)
    assert [f.severity for f in findings] == ["warning", "note"]
    assert "goes back to 2" in findings[0].what
    raw.flip(other + "_data_0", 8 * raw.PAGE)
    assert [f.severity for f in verify(other)] == ["error", "note"]
    assert "neither version 3 nor the one before" in verify(other)[0].what
    raw.flip(other + "_data_0", 8 * raw.PAGE)
    with Synchronizer(other) as s:
        assert s.load() == list(range(200))
        assert errors(other) == []


def test_another_boot(prefix):
    raw.other_boot(prefix + "_sync")
    only(prefix, "note", "set_sync", "another boot")
    assert describe(prefix)["boot"]["this_boot"] is False
    with Synchronizer(prefix):
        assert verify(prefix) == []


def test_nothing_published_on_another_boot(tmp_path):
    path = str(tmp_path / "set")
    Synchronizer(path).close()
    raw.other_boot(path + "_sync")
    only(path, "note", "set_sync", "another boot")
    raw.poke_word(path + "_sync", raw.COMMIT, 7)
    assert errors(path)


# ---- beside a writer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["mmapds", "mmap-sync"])
@pytest.mark.parametrize("size", [10, 300_000])
def test_nothing_false_is_said_while_a_writer_and_readers_are_busy(tmp_path, protocol, size):
    path = str(tmp_path / "set")
    busy = f"""
import time
stop = time.monotonic() + 3
n = 0
while time.monotonic() < stop:
    n += 1
    s.write_bytes(bytes([n % 256]) * ({size} + n % 1000), grace=0)
    if n % 3 == 0:
        s.load()
    r = s.read()    # held over the next write, so that files are replaced
"""
    setup = "s = Synchronizer(path, protocol=protocol, codec='raw')"
    with Peer(setup + "; s.write(b'x'); None", path=path, protocol=protocol) as peer:
        peer.send(busy)
        done = threading.Event()
        looks: list[Finding] = []
        count = 0

        def look() -> None:
            nonlocal count
            while not done.is_set():
                looks.extend(verify(path))
                describe(path)
                count += 1

        thread = threading.Thread(target=look)
        thread.start()
        try:
            peer.receive()
        finally:
            done.set()
            thread.join()
    assert count > 3
    assert {f.what for f in looks if f.severity == "error"} == set()
    assert {f.what for f in looks if f.severity == "warning"} == set()


def test_an_error_in_an_attempt_that_was_disturbed_is_looked_at_again(prefix, monkeypatch):
    """The version changes during each look: what hangs on it is not said, what does not is."""
    from mmapds.inspection import _sync_check

    raw.flip(prefix + "_data_1", 8 * raw.PAGE)
    raw.flip(prefix + "_data_0", 8 * 40)
    looks = []

    def moving(fd: int) -> int:
        looks.append(1)
        return 1000 + len(looks)

    with monkeypatch.context() as patch:
        patch.setattr(_sync_check, "sequence_of", moving)
        patch.setattr("time.sleep", lambda seconds: None)
        findings = verify(prefix)
    assert [(f.severity, f.where) for f in findings] == [("error", "set_data_0"), ("note", "value")]
    assert len(looks) > 20
    assert [f.where for f in errors(prefix)] == ["set_data_0", "set_data_1"] or len(errors(prefix)) == 2


def test_check_raises_what_verify_finds(prefix):
    with Synchronizer(prefix) as s:
        s.check()
        raw.flip(prefix + "_data_1", 8 * raw.PAGE)
        with pytest.raises(CorruptionError, match="set_data_1: version 3: checksum"):
            s.check()


# ---- protocol mmap-sync --------------------------------------------------------------------------------------------


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
        assert found["writer"] == {"locked": True, "holder": f"pid {os.getpid()}"}
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
    only(crate, "error", "rust_data_0", "Is a directory" if False else "directory")
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


# ---- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_hashing_in_pieces(tmp_path, size):
    content = os.urandom(size)
    path = tmp_path / "f"
    path.write_bytes(b"head" + content)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert hash_range(fd, 4, size) == xxhash.xxh3_64_intdigest(content)
        assert hash_range(fd, 4, size + 1) is None
    finally:
        os.close(fd)


def test_findings_are_plain_values():
    finding = Finding("note", "x", "y")
    assert finding == Finding("note", "x", "y")
    with pytest.raises(AttributeError):
        finding.what = "z"  # type: ignore[misc]
    assert inspection.__all__ == ["Finding", "describe", "verify"]
    looks: list[Callable[..., object]] = [describe, verify]
    assert all(look.__doc__ for look in looks)
