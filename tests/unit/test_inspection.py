"""`describe` and `verify`: what they say of a sound set, of a copy, of another boot, and beside a writer."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import syncfiles as raw
import xxhash
from findings import errors, only
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
stop = time.monotonic() + 1
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
    assert count > 0
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
