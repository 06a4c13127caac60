"""Synchronizer: what opening does, refuses and takes from the file; the modes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import syncfiles

import mmapds
from mmapds import Closed, IncompatibleFormat, NotInitialised, ProtocolMismatch, SchemaMismatch, Synchronizer


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "value")


@pytest.fixture
def published(prefix: str) -> str:
    """A prefix with one version, 'hello', and nobody there."""
    with Synchronizer(prefix) as s:
        s.write("hello")
    return prefix


# ---- files ---------------------------------------------------------------------------------------------------------


def test_the_three_files_their_names_sizes_and_permissions(prefix: str) -> None:
    old = os.umask(0)
    try:
        with Synchronizer(prefix) as s:
            assert sorted(syncfiles.snapshot(prefix)) == ["_sync"]
            s.write(1)
            s.write(2)
    finally:
        os.umask(old)
    assert sorted(syncfiles.snapshot(prefix)) == ["_data_0", "_data_1", "_sync"]
    assert {stat.S_IMODE(os.stat(prefix + suffix).st_mode) for suffix in syncfiles.SUFFIXES} == {0o600}
    assert os.path.getsize(syncfiles.sync(prefix)) == syncfiles.SIZE
    assert os.path.getsize(syncfiles.data(prefix, 0)) % 4096 == 0


def test_the_files_have_no_holes_that_a_full_disk_could_turn_into_a_signal(prefix: str) -> None:
    with Synchronizer(prefix, codec="raw") as s:
        s.write_bytes(bytes(300_000))
        for path in (syncfiles.sync(prefix), syncfiles.data(prefix, 1)):
            status = os.stat(path)
            assert status.st_blocks * 512 >= status.st_size, path


def test_paths_of_any_kind_and_a_prefix_in_the_working_directory(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with Synchronizer("relative") as s:
        s.write("a")
        assert s.prefix == str(tmp_path / "relative")
        monkeypatch.chdir("/")
        s.write("b")  # the second data file is made where the first one is
    with Synchronizer(tmp_path / "relative") as s:
        assert s.load() == "b"
    for name in ("täglich ☃", "with space", "-n", "x" * 240):
        with Synchronizer(tmp_path / name) as s:
            s.write(name)
            assert s.load() == name
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with Synchronizer(tmp_path / "link" / "relative") as s:
        assert s.load() == "b"


@pytest.mark.parametrize("mode", ["readonly", "private"])
def test_only_mode_shared_makes_files(prefix: str, mode: Any) -> None:
    with pytest.raises(FileNotFoundError, match="start the writer") as caught:
        Synchronizer(prefix, mode=mode)
    assert caught.value.filename == syncfiles.sync(prefix)
    assert os.listdir(os.path.dirname(prefix)) == []


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    for mode in ("shared", "readonly", "private"):
        with pytest.raises(FileNotFoundError):
            Synchronizer(tmp_path / "missing" / "value", mode=mode)  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Synchronizer(tmp_path / "file" / "value")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "copy"}, "mode 'copy'"),
        ({"protocol": "tcp"}, "protocol 'tcp'"),
        ({"durability": "none"}, "durability 'none'"),
        ({"codec": "pickle"}, "Pickle"),
        ({"codec": "json"}, "codec 'json'"),
        ({"checksum": hash}, "mmap-sync"),
    ],
)
def test_a_wrong_option_is_said_and_leaves_no_file(prefix: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Synchronizer(prefix, **options)
    assert os.listdir(os.path.dirname(prefix)) == []


def test_options_have_names(prefix: str) -> None:
    with pytest.raises(TypeError):
        Synchronizer(prefix, "shared")  # type: ignore[misc]
    with pytest.raises(TypeError):
        Synchronizer(prefix, sise=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Synchronizer()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Synchronizer(7)  # type: ignore[arg-type]


def test_the_other_protocols_files_are_refused(prefix: str) -> None:
    Path(prefix + "_state").write_bytes(bytes(16))
    for mode in ("shared", "readonly", "private"):
        with pytest.raises(ProtocolMismatch, match="mmap-sync"):
            Synchronizer(prefix, mode=mode)  # type: ignore[arg-type]
    assert os.listdir(os.path.dirname(prefix)) == ["value_state"]


# ---- what a file stores --------------------------------------------------------------------------------------------


def test_what_is_left_out_is_taken_from_the_file(prefix: str) -> None:
    with Synchronizer(prefix, codec="struct:<iq", schema="point v1", durability="process") as s:
        s.write((1, 2))
    with Synchronizer(prefix) as s:
        assert s.codec.name == "struct:<iq"
        assert s.durability == "process"
        assert s.load() == (1, 2)


def test_new_files_have_msgpack_and_durability_process(prefix: str) -> None:
    with Synchronizer(prefix) as s:
        assert (s.codec.name, s.durability, s.mode) == ("msgpack", "process", "shared")


@pytest.mark.parametrize(
    ("given", "both"),
    [
        ({"codec": "raw"}, ("'msgpack'", "'raw'")),
        ({"codec": "struct:<i"}, ("'msgpack'", "'struct:<i'")),
        ({"schema": "point v2"}, ("'point v1'", "'point v2'")),
        ({"schema": ""}, ("'point v1'", "''")),
        ({"durability": "power"}, ("'process'", "'power'")),
    ],
)
@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
def test_what_is_given_and_different_shows_both_and_changes_nothing(
    prefix: str, given: dict[str, Any], both: tuple[str, str], mode: Any
) -> None:
    with Synchronizer(prefix, schema="point v1") as s:
        s.write(1)
    before = syncfiles.snapshot(prefix)
    with pytest.raises(SchemaMismatch) as caught:
        Synchronizer(prefix, mode=mode, **given)
    for text in both:
        assert text in str(caught.value)
    assert syncfiles.snapshot(prefix) == before
    assert not syncfiles.locked(syncfiles.sync(prefix), 0, 0)
    with Synchronizer(prefix, codec="msgpack", schema="point v1", durability="process", mode=mode) as s:
        assert s.load() == 1


def test_pickle_is_never_taken_from_the_file(prefix: str) -> None:
    with Synchronizer(prefix, codec=mmapds.codecs.Pickle()) as s:
        s.write({1, 2})
    with pytest.raises(SchemaMismatch, match="Pickle"):
        Synchronizer(prefix)
    with Synchronizer(prefix, codec=mmapds.codecs.Pickle()) as s:
        assert s.load() == {1, 2}


def test_a_schema_text_longer_than_the_header_holds_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="1,680"):
        Synchronizer(prefix, schema="x" * 5000)
    assert os.listdir(os.path.dirname(prefix)) == []
    longest = "x" * (1680 - len("msgpack\n"))
    Synchronizer(prefix, schema=longest).close()
    Synchronizer(prefix, schema=longest).close()
    with pytest.raises(SchemaMismatch):
        Synchronizer(prefix, schema=longest[:-1])


# ---- modes ---------------------------------------------------------------------------------------------------------


def test_readonly_reads_and_follows_and_never_writes(published: str) -> None:
    with Synchronizer(published, mode="readonly") as reader, Synchronizer(published) as writer:
        before = syncfiles.snapshot(published)
        assert reader.version == 1
        with reader.read() as r:
            assert (r.value, r.version, r.switched, r.copied) == ("hello", 1, True, True)
        assert reader.load() == "hello"
        assert reader.load() is reader.load()
        for write in (lambda: reader.write(1), lambda: reader.write_bytes(b"1")):
            with pytest.raises(PermissionError, match="readonly"):
                write()
        assert syncfiles.snapshot(published) == before
        writer.write("there")
        assert (reader.version, reader.load()) == (2, "there")
        assert reader.slot == -1


def test_readonly_before_the_first_write(prefix: str) -> None:
    with Synchronizer(prefix) as writer, Synchronizer(prefix, mode="readonly") as reader:
        assert reader.version == 0
        with pytest.raises(NotInitialised):
            reader.read()
        assert reader.load(default="none") == "none"
        writer.write(1)
        assert reader.load() == 1


def test_private_is_this_moment_and_its_writes_stay_here(published: str) -> None:
    with Synchronizer(published) as writer, Synchronizer(published, mode="private") as mine:
        assert (mine.version, mine.load()) == (1, "hello")
        before = syncfiles.snapshot(published)
        assert tuple(mine.write("mine")) == (5, False)
        assert mine.write_bytes(bytearray(b"\xa4mine")).size == 5
        assert (mine.version, mine.load()) == (3, "mine")
        with mine.read() as r:
            assert (r.value, r.version, r.switched, r.copied) == ("mine", 3, False, True)
        assert syncfiles.snapshot(published) == before
        writer.write("theirs")
        assert (mine.version, mine.load()) == (3, "mine")
        assert writer.load() == "theirs"
        with Synchronizer(published, mode="private") as another:
            assert (another.version, another.load()) == (2, "theirs")


def test_private_holds_no_lock_descriptor_or_mapping(published: str) -> None:
    with Synchronizer(published, mode="private") as mine:
        assert not syncfiles.locked(syncfiles.sync(published), 0, 0)
        assert published not in "".join(os.readlink(f"/proc/self/fd/{fd}") for fd in fds())
        for suffix in syncfiles.SUFFIXES:
            if os.path.exists(published + suffix):
                os.unlink(published + suffix)
        assert mine.load() == "hello"
        mine.write("still")
        assert mine.load() == "still"
    with pytest.raises(Closed):
        mine.load()


def fds() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]


def test_private_before_the_first_write(prefix: str) -> None:
    with Synchronizer(prefix), Synchronizer(prefix, mode="private") as mine:
        assert mine.version == 0
        with pytest.raises(NotInitialised):
            mine.read()
        mine.write(1)
        assert (mine.version, mine.load()) == (1, 1)


@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
def test_populate_reads_the_same(prefix: str, mode: Any) -> None:
    value = os.urandom(3 << 20)
    with Synchronizer(prefix, codec="raw", populate=True) as writer:
        writer.write_bytes(value)
        with Synchronizer(prefix, mode=mode, populate=True) as reader:
            assert bytes(reader.load()) == value
            writer.write_bytes(value[::-1])
            assert bytes(reader.load()) == (value if mode == "private" else value[::-1])


def test_verify_false_hands_out_what_is_there(prefix: str) -> None:
    with Synchronizer(prefix, codec="raw") as writer:
        writer.write_bytes(b"a" * 100)
        syncfiles.poke(syncfiles.data(prefix, 1), 4096 + 50, b"b")
        for mode in ("shared", "readonly"):
            with Synchronizer(prefix, verify=False, mode=mode) as trusting:  # type: ignore[arg-type]
                assert bytes(trusting.load()) == b"a" * 50 + b"b" + b"a" * 49
            with (
                Synchronizer(prefix, mode=mode) as careful,  # type: ignore[arg-type]
                pytest.raises(mmapds.CorruptionError, match="checksum"),
            ):
                careful.read()
        with pytest.raises(mmapds.CorruptionError, match="checksum"):
            Synchronizer(prefix, mode="private")


def test_each_version_is_verified_once(prefix: str) -> None:
    """The first read of a version checks it, later ones do not; the next version is checked again."""
    with Synchronizer(prefix, codec="raw") as writer, Synchronizer(prefix) as reader:
        writer.write_bytes(b"a" * 100)
        reader.read().release()
        syncfiles.poke(syncfiles.data(prefix, 1), 4096, b"b")
        reader.read().release()
        writer.write_bytes(b"c" * 100)
        syncfiles.poke(syncfiles.data(prefix, 0), 4096, b"d")
        for _ in range(3):
            with pytest.raises(mmapds.CorruptionError):
                reader.read()
        assert syncfiles.pins(prefix) == {}, "an error leaves no pin"


def test_check_passes_on_sound_files_and_says_what_is_broken(published: str) -> None:
    for mode in ("shared", "readonly", "private"):
        with Synchronizer(published, mode=mode) as s:  # type: ignore[arg-type]
            s.check()
    syncfiles.flip(syncfiles.data(published, 1), 8 * 4096)
    with Synchronizer(published, verify=False) as s:
        before = syncfiles.snapshot(published)
        with pytest.raises(mmapds.CorruptionError, match="data_1"):
            s.check()
        assert syncfiles.snapshot(published) == before


def test_what_is_not_a_synchronizers_file_is_refused(tmp_path: Path, prefix: str) -> None:
    Path(syncfiles.sync(prefix)).write_bytes(b"#!/bin/sh\n" * 2000)
    before = syncfiles.snapshot(prefix)
    for mode in ("shared", "readonly", "private"):
        with pytest.raises(IncompatibleFormat, match="not a file of mmapds"):
            Synchronizer(prefix, mode=mode)  # type: ignore[arg-type]
    assert syncfiles.snapshot(prefix) == before
