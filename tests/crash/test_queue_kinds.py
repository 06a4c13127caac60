"""Other files and bytes where those of a queue should be (rows 14, 17 and 31)."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import queuefiles
from peers import Peer
from queuedamage import DRAIN, ITEMS, SEGMENT, WHOLE, drain, make

from mmapds import CorruptionError, IncompatibleFormat, MmapdsError, Queue


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "queue")
    make(path)
    return path


# ---- rows 14 and 17: something else --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "content"),
    [(0, b"?"), (8, b"\x0a\x0b\x0c\x0d"), (12, b"\x63"), (16, b"counters"), (24, b"\xff")],
)
@pytest.mark.parametrize("file", ["meta", "segment"])
def test_r14_another_format_stays_as_it_is(path: str, offset: int, content: bytes, file: str) -> None:
    name = queuefiles.meta(path) if file == "meta" else queuefiles.segment(path, 1)
    queuefiles.poke(name, offset, content)
    queuefiles.seal(name)
    before = queuefiles.content(path)
    if file == "meta":
        for mode in ("shared", "readonly", "private"):
            with pytest.raises(MmapdsError) as caught:
                Queue(path, mode=mode)  # type: ignore[arg-type]
            assert "meta" in str(caught.value)
            assert isinstance(caught.value, IncompatibleFormat), caught.value
        assert queuefiles.content(path) == before
        return
    with Queue(path, mode="readonly") as q, contextlib.suppress(IncompatibleFormat):
        assert set(q) <= set(WHOLE)
    assert queuefiles.content(path)[os.path.basename(name)] == before[os.path.basename(name)]


def test_r14_a_segment_of_another_queue(path: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    with Queue(other, codec="raw", segment_size=SEGMENT) as q:
        q.put_many(ITEMS)
    for number in (2, 3):
        Path(queuefiles.segment(path, number)).write_bytes(Path(queuefiles.segment(other, number)).read_bytes())
    with Queue(path) as q:
        found, errors = drain(q)
        assert errors
        assert set(found) < set(WHOLE), "items of another queue were handed out"
        foreign = Path(queuefiles.segment(other, 2)).read_bytes()
    kept = [Path(p, f) for p, _, names in os.walk(path) for f in names]
    assert foreign in [file.read_bytes() for file in kept], "it was removed"


@pytest.mark.parametrize("kind", ["empty", "short", "long", "directory", "fifo", "symlink", "device"])
@pytest.mark.parametrize("file", ["meta", "segment"])
def test_r17_the_wrong_kind_of_file(path: str, kind: str, file: str) -> None:
    name = queuefiles.meta(path) if file == "meta" else queuefiles.segment(path, 2)
    content = Path(name).read_bytes()
    os.unlink(name)
    if kind == "empty":
        Path(name).touch()
    elif kind == "short":
        Path(name).write_bytes(content[:5000])
    elif kind == "long":
        Path(name).write_bytes(content + bytes(5000 if file == "segment" else 0))
        if file == "meta":
            queuefiles.poke_word(name, queuefiles.WORDS["capacity"], 10_000)
    elif kind == "directory":
        os.mkdir(name)
    elif kind == "fifo":
        os.mkfifo(name)
    elif kind == "symlink":
        Path(path + "-elsewhere").write_bytes(content)
        os.symlink(path + "-elsewhere", name)
    else:
        if os.geteuid():
            pytest.skip("needs root, to make a device")
        try:
            os.mknod(name, 0o600 | 0o020000, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("devices may not be made here")
    with Peer(DRAIN, path=path) as peer:
        if file == "meta" and kind in ("short", "long"):  # another inode: a copy, and what a copy says is not believed
            found, errors = peer("use(path)")
            assert len(found) >= len(WHOLE) - 1 or errors, (len(found), errors)
            assert set(found) <= set(WHOLE) | {b"new"}
        elif file == "meta":
            for mode in ("shared", "readonly"):
                error, message = peer.fails(f"signal.alarm(30); mmapds.Queue(path, mode={mode!r}).stats()")
                assert error in ("IncompatibleFormat", "CorruptionError", "OSError", "IsADirectoryError"), message
                assert "meta" in message
            assert kind == "directory" or os.path.lexists(name)
        else:
            found, errors = peer("use(path)")
            assert set(found) <= set(WHOLE) | {b"new"}
            assert errors
            assert b"new" in found or any("new" in error for error in errors), (found[-3:], errors)


@pytest.mark.parametrize("kind", ["file", "fifo", "symlink", "other files"])
def test_r17_the_wrong_kind_of_thing_at_the_path(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "queue"
    if kind == "file":
        path.write_bytes(b"something")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "other files":
        path.mkdir()
        (path / "letter.txt").write_text("hello")
    else:
        os.symlink(tmp_path / "nowhere", path)
    before = os.lstat(path)[:4]
    with Peer("signal.alarm(30)", path=str(path)) as peer:
        error, _ = peer.fails("mmapds.Queue(path)")
        assert error in ("IncompatibleFormat", "NotADirectoryError", "FileExistsError", "FileNotFoundError", "OSError")
    assert os.lstat(path)[:4] == before
    assert kind != "other files" or os.listdir(path) == ["letter.txt"]


# ---- row 31: pickles -----------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/never-touched-by-mmapds",)


def test_r31_pickles_are_not_loaded_unless_asked_for(tmp_path: Path) -> None:
    path = str(tmp_path / "queue")
    with Queue(path, codec="raw") as q:
        q.put(pickle.dumps(Evil()))
    data = pickle.dumps(Evil())
    path = str(tmp_path / "default")
    with Queue(path, segment_size=SEGMENT) as q:
        q._put_payload(data, 0)
        q._put_payload(data, 0)
        q.put("fine")
        before = set(os.listdir("/tmp"))
        with pytest.raises(CorruptionError):
            q.get_nowait()
        with pytest.raises(CorruptionError):
            q.claim(0)
        assert q.get_nowait() == "fine"
        assert "never-touched-by-mmapds" not in set(os.listdir("/tmp")) - before
        with pytest.raises((MmapdsError, ValueError)):
            Queue(path, codec="pickle")
