"""Counters: what opening does, refuses and takes from the file."""

from __future__ import annotations

import gc
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmapds
from mmapds import Closed, CorruptionError, Counters, IncompatibleFormat, Region, SchemaMismatch, Synchronizer

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "counters")


# ---- files ---------------------------------------------------------------------------------------------------------


def test_one_file_for_its_owner_without_holes(path: str) -> None:
    old = os.umask(0)
    try:
        with Counters(path) as c:
            c.fetch_add("x")
            assert os.listdir(os.path.dirname(path)) == ["counters"]
    finally:
        os.umask(old)
    status = os.stat(path)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size % PAGE == 0
    assert status.st_blocks * 512 >= status.st_size


def test_paths_of_any_kind(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with Counters("relative") as c:
        c.fetch_add("a")
        assert c.path == str(tmp_path / "relative")
        monkeypatch.chdir("/")
        for i in range(500):
            c.fetch_add(f"n{i}")  # grows where the file is
        assert c.snapshot()["a"] == 1
    for name in ("täglich ☃", "with space", "-n", "x" * 240, "a\nb"):
        for mode in ("shared", "readonly", "private"):
            with Counters(tmp_path / name, mode=mode) as c:  # type: ignore[arg-type]
                assert c.path == str(tmp_path / name)
                if mode != "readonly":
                    assert c.fetch_add("x") == (0 if mode == "shared" else 1)
                assert name in repr(c)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with Counters(tmp_path / "link" / "relative") as c:
        assert c["a"] == 1
    for wrong in (3, None, b"bytes"):
        with pytest.raises(TypeError):
            Counters(wrong)  # type: ignore[call-overload]


@pytest.mark.parametrize("mode", ["readonly", "private"])
@pytest.mark.parametrize("layout", ["mmapds", "emmap"])
def test_only_mode_shared_makes_a_file(path: str, mode: Any, layout: Any) -> None:
    with pytest.raises(FileNotFoundError, match=f"mode='{mode}' makes no file") as caught:
        Counters(path, mode=mode, layout=layout)
    assert caught.value.filename == path
    assert os.listdir(os.path.dirname(path)) == []


def test_a_folder_that_is_not_there(path: str) -> None:
    with pytest.raises(FileNotFoundError):
        Counters(path + "/deeper")
    Path(path).touch()
    with pytest.raises(NotADirectoryError):
        Counters(path + "/deeper")


def test_a_capacity_for_which_there_is_no_room_leaves_nothing(path: str) -> None:
    with pytest.raises(OSError, match=r"No space left|too large|quota") as caught:
        Counters(path, 1 << 40)
    assert caught.value.filename == path
    assert os.listdir(os.path.dirname(path)) == []


# ---- options of a new file, and of one that is there ---------------------------------------------------------------


def test_what_a_new_file_is_without_options(path: str) -> None:
    with Counters(path) as c:
        assert (c.mode, c.layout, c.capacity, c.dtype, c.padded, c.durability) == (
            "shared", "mmapds", 64, "i64", False, "process",
        )  # fmt: skip
        assert (len(c), c.closed) == (0, False)
        assert repr(c) == f"<Counters {path} shared 0 names>"
        assert [c[i] for i in range(64)] == [0] * 64


GIVEN: list[dict[str, Any]] = [
    {"capacity": 0},
    {"capacity": 1},
    {"capacity": 511},
    {"capacity": 512},
    {"capacity": 513},
    {"capacity": 100_000},
    {"dtype": "f64"},
    {"padded": True},
    {"dtype": "f64", "padded": True, "capacity": 65},
    {"durability": "power"},
]


@pytest.mark.parametrize("options", GIVEN, ids=str)
@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
def test_options_are_stored_and_need_not_be_given_again(path: str, mode: Any, options: dict[str, Any]) -> None:
    if options.get("durability") == "power" and not can_sync(path):
        pytest.skip("this file system keeps nothing")
    with Counters(path, **options) as c:
        c["x"] = 3
    for given in ({}, options):
        with Counters(path, mode=mode, **given) as c:
            found = {"capacity": c.capacity, "dtype": c.dtype, "padded": c.padded, "durability": c.durability}
            assert found == {"capacity": 64, "dtype": "i64", "padded": False, "durability": "process"} | options
            assert c.snapshot() == {"x": 3}
            assert c.mode == mode
            if c.capacity:
                assert c[c.capacity - 1] == 0
            assert c[c.capacity] == 3
            with pytest.raises(IndexError):
                c[c.capacity + 1]


def can_sync(path: str) -> bool:
    try:
        Counters(path + "-probe", durability="power").close()
    except mmapds.UnsupportedFilesystem:
        return False
    os.unlink(path + "-probe")
    return True


@pytest.mark.parametrize(
    ("option", "stored", "asked"),
    [
        ("capacity", 64, 65),
        ("capacity", 64, 0),
        ("dtype", "i64", "f64"),
        ("padded", False, True),
        ("durability", "process", "power"),
    ],
)
@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
def test_an_option_that_contradicts_the_file_shows_both(
    path: str, mode: Any, option: str, stored: Any, asked: Any
) -> None:
    Counters(path).close()
    content = Path(path).read_bytes()
    with pytest.raises(SchemaMismatch) as caught:
        Counters(path, mode=mode, **{option: asked})
    message = str(caught.value)
    assert path in message
    assert f"{option}={stored!r}" in message
    assert repr(asked) in message.replace(f"{option}={stored!r}", "")
    assert Path(path).read_bytes() == content


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "copy"}, ValueError, "copy"),
        ({"mode": None}, ValueError, "None"),
        ({"dtype": "i32"}, ValueError, "i32"),
        ({"layout": "erlang"}, ValueError, "erlang"),
        ({"durability": "some"}, ValueError, "some"),
        ({"capacity": -1}, ValueError, "-1"),
        ({"capacity": (1 << 40) + 1}, ValueError, "capacity"),
        ({"capacity": 1 << 70}, ValueError, "capacity"),
        ({"capacity": 4.0}, TypeError, "float"),
        ({"capacity": "64"}, TypeError, "str"),
        ({"capacity": True}, TypeError, "bool"),
        ({"size": 4}, TypeError, "size"),
    ],
)
def test_options_that_are_none(path: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Counters(path, **options)
    assert os.listdir(os.path.dirname(path)) == []


@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
@pytest.mark.parametrize("layout", ["mmapds", "emmap"])
@pytest.mark.parametrize("padded", [False, True])
def test_populate_brings_the_cells_in(path: str, mode: Any, layout: Any, padded: bool) -> None:
    if layout == "emmap" and padded:
        return
    Counters(path, 20_000, layout=layout, padded=padded).close()
    with Counters(path, mode=mode, layout=layout, populate=True) as c:
        assert c[19_999] == 0
        if mode != "readonly":
            c[19_999] = 5
        with Region.open(path, mode="readonly") as region:
            assert mode == "private" or region.resident() >= 20_000 * (64 if padded else 8)


def test_populate_of_no_cells(path: str) -> None:
    with Counters(path, 0, populate=True) as c:
        assert c.fetch_add("x") == 0


# ---- what is not ours ----------------------------------------------------------------------------------------------


def other_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files that are no counters."""
    for name, content in {
        "empty": b"",
        "short": b"MMAPDS",
        "text": b"hello\n" * 2000,
        "zeros": bytes(16384),
        "emmap": b"EMMAP01\n" + (64).to_bytes(8, "little") + bytes(512),
    }.items():
        (folder / name).write_bytes(content)
        yield name, folder / name
    with Synchronizer(folder / "value") as s:
        s.write(1)
    yield "synchronizer", folder / "value_sync"
    yield "data", folder / "value_data_1"


@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
def test_files_of_others_are_refused_and_left_as_they_are(tmp_path: Path, mode: Any) -> None:
    for name, file in other_files(tmp_path):
        content = file.read_bytes()
        with pytest.raises(IncompatibleFormat, match=str(file)):
            print(name, Counters(file, mode=mode))
        assert file.read_bytes() == content, name


@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
@pytest.mark.parametrize("layout", ["mmapds", "emmap"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, mode: Any, layout: Any) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "target").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in (tmp_path, tmp_path / "fifo", tmp_path / "link", tmp_path / "dangling", "/dev/null", "/dev/zero"):
        with pytest.raises((OSError, mmapds.MmapdsError)) as caught:
            Counters(name, mode=mode, layout=layout)
        assert str(name) in str(caught.value)
    assert not (tmp_path / "nothing").exists()
    assert (tmp_path / "target").read_bytes() == b"x"


@pytest.mark.parametrize("size", [4096, 8191, 8192, 12288, -1])
def test_a_file_that_was_cut_is_refused(path: str, size: int) -> None:
    with Counters(path) as c:
        c["x"] = 1
    whole = os.path.getsize(path)
    os.truncate(path, size if size >= 0 else whole - 1)
    content = Path(path).read_bytes()
    for mode in ("shared", "readonly", "private"):
        with pytest.raises(CorruptionError, match=path):
            Counters(path, mode=mode)  # type: ignore[arg-type]
    assert Path(path).read_bytes() == content


@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
def test_an_opening_that_fails_leaves_nothing_open(tmp_path: Path, descriptors: None, mode: Any) -> None:
    Counters(tmp_path / "ours").close()
    Counters(tmp_path / "theirs", layout="emmap").close()
    (tmp_path / "text").write_bytes(b"hello\n" * 2000)
    failing: list[dict[str, Any]] = [
        {"path": "ours", "dtype": "f64"},
        {"path": "ours", "capacity": 3},
        {"path": "ours", "layout": "emmap"},
        {"path": "theirs"},
        {"path": "theirs", "layout": "emmap", "capacity": 3},
        {"path": "text"},
        {"path": "text", "layout": "emmap"},
        {"path": "missing/file"},
        {"path": "."},
    ]
    for options in failing:
        with pytest.raises((OSError, ValueError)):
            Counters(tmp_path / options.pop("path"), mode=mode, **options)


# ---- the end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
def test_a_handle_that_is_left_open_warns(path: str, mode: Any) -> None:
    Counters(path).close()
    c = Counters(path, mode=mode)
    with pytest.warns(ResourceWarning, match=f"unclosed <Counters {path} {mode} 0 names>"):  # noqa: PT031
        del c
        gc.collect()
    with pytest.raises(FileNotFoundError):
        Counters(path + "-missing", mode="readonly")
    gc.collect()  # which would be an error: it was never open


def test_with_closes_also_after_an_error(path: str) -> None:
    with pytest.raises(ZeroDivisionError), Counters(path) as c:
        c.fetch_add("x", 1 // 0)
    assert c.closed
    with pytest.raises(Closed), c:
        pass


def test_flush_writes_and_can_be_called_at_any_time(path: str) -> None:
    with Counters(path) as c:
        c["x"] = 5
        assert c.flush() is None
        assert c.flush(wait=False) is None
        assert c.flush(wait=True) is None
        assert c.flush(False) is None
    content = Path(path).read_bytes()
    for mode in ("readonly", "private"):
        with Counters(path, mode=mode) as c:  # type: ignore[arg-type]
            c.flush()
            c.flush(wait=False)
    assert Path(path).read_bytes() == content


def test_a_parameter_tells_type_checkers_what_the_values_are(path: str) -> None:
    assert Counters[float](path, dtype="f64").close() is None
