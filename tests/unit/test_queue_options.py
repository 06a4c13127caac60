"""Queue: what opening does, refuses, stores, and takes from the files."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import queuefiles

import mmapds
from mmapds import Claim, Counters, Empty, IncompatibleFormat, Queue, SchemaMismatch
from mmapds._deadletters import DeadLetters
from mmapds.queue import Queue as Documented

# ---- files ---------------------------------------------------------------------------------------------------------


def test_a_directory_for_its_owner_without_holes(queue_path: str) -> None:
    old = os.umask(0)
    try:
        with Queue(queue_path, segment_size=8192) as q:
            q.put("a")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(queue_path).st_mode) == 0o700
    assert sorted(os.listdir(queue_path)) == ["0000000000000001.segment", "meta"]
    for name in os.listdir(queue_path):
        status = os.stat(os.path.join(queue_path, name))
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_size % 4096 == 0
        assert status.st_blocks * 512 >= status.st_size
    assert os.listdir(os.path.dirname(queue_path)) == ["queue"]


def test_paths_of_any_kind(tmp_path: Path, monkeypatch: Any, descriptors: None) -> None:
    monkeypatch.chdir(tmp_path)
    with Queue("relative", segment_size=8192) as q:
        assert q.path == str(tmp_path / "relative")
        monkeypatch.chdir("/")
        for i in range(500):
            q.put(i)  # makes segments where the queue is
        q.claim().bury()
        assert len(q.dead) == 1
    for name in ("täglich ☃", "with space", "-n", "x" * 240, "a\nb"):
        for mode in ("shared", "readonly", "private"):
            with Queue(tmp_path / name, mode=mode, segment_size=8192 if mode == "shared" else None) as q:  # type: ignore[arg-type]
                assert q.path == str(tmp_path / name)
                if mode == "shared":
                    q.put(1)
                assert q.peek() == 1
                assert name in repr(q)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with Queue(tmp_path / "link" / "relative") as q:
        assert q.get() == 1
    (tmp_path / "other").symlink_to(tmp_path / "relative", target_is_directory=True)
    with Queue(str(tmp_path / "other")) as q:
        assert q.get() == 2
    for wrong in (3, None, b"bytes"):
        with pytest.raises(TypeError):
            Queue(wrong)  # type: ignore[arg-type]


def test_an_empty_directory_becomes_a_queue(queue_path: str) -> None:
    os.mkdir(queue_path)
    Path(queue_path, ".hidden").touch()
    with Queue(queue_path) as q:
        q.put(1)
        assert q.get() == 1


def test_a_directory_with_other_files_is_left_alone(queue_path: str) -> None:
    os.mkdir(queue_path)
    Path(queue_path, "letters.txt").write_text("dear")
    with pytest.raises(IncompatibleFormat, match=r"other files \(letters\.txt\)"):
        Queue(queue_path)
    assert os.listdir(queue_path) == ["letters.txt"]


def test_a_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("dear")
    with pytest.raises(IncompatibleFormat, match="a queue is a directory"):
        Queue(path)
    assert path.read_text() == "dear"
    counters = tmp_path / "counters"
    Counters(counters).close()
    with pytest.raises(IncompatibleFormat):
        Queue(counters)


def test_a_queue_is_nothing_else(queue_path: str) -> None:
    Queue(queue_path).close()
    with pytest.raises((IncompatibleFormat, IsADirectoryError)):
        Counters(queue_path)
    os.rename(queuefiles.meta(queue_path), queuefiles.meta(queue_path) + ".away")
    Counters(queuefiles.meta(queue_path)).close()
    with pytest.raises(IncompatibleFormat):
        Queue(queue_path)
    os.replace(queuefiles.meta(queue_path) + ".away", queuefiles.meta(queue_path))


@pytest.mark.parametrize("mode", ["readonly", "private"])
def test_only_mode_shared_makes_a_queue(queue_path: str, mode: Any) -> None:
    with pytest.raises(FileNotFoundError, match=f"mode='{mode}' makes none") as caught:
        Queue(queue_path, mode=mode)
    assert caught.value.filename == queue_path
    assert os.listdir(os.path.dirname(queue_path)) == []


def test_a_folder_that_is_not_there(queue_path: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Queue(queue_path + "/deeper")
    assert caught.value.filename
    assert not os.path.exists(queue_path)
    Path(queue_path).touch()
    with pytest.raises(NotADirectoryError):
        Queue(queue_path + "/deeper")
    os.unlink(queue_path)


def test_many_threads_open_a_new_queue_at_once(queue_path: str) -> None:
    begin = threading.Barrier(8)
    identities: list[Any] = []

    def work(number: int) -> None:
        begin.wait(60)
        with Queue(queue_path) as q:
            q.put(number)
            identities.append(Path(queuefiles.meta(queue_path)).read_bytes()[64:96])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(identities)) == 1
    with Queue(queue_path) as q:
        assert sorted(q.get_many(100)) == list(range(8))


def test_a_queue_is_opened_once(queue_path: str) -> None:
    with Queue(queue_path) as q, pytest.raises(RuntimeError, match="opened once"):
        q.__init__(queue_path)  # type: ignore[misc]


# ---- options of a new queue, and of one that is there --------------------------------------------------------------


def test_what_a_new_queue_is_without_options(tmp_path: Path) -> None:
    path = str(tmp_path / "queue")
    with Queue(path) as q:
        assert (q.path, q.mode, q.durability, q.maxsize, q.max_bytes) == (path, "shared", "process", 0, None)
        assert (q.segment_size, q.lease, q.max_attempts, q.compress) == (64 << 20, None, None, None)
        assert (q.codec.name, q.closed, len(q), q.full(), q.empty()) == ("msgpack", False, 0, False, True)
        assert repr(q) == f"<Queue {path} shared 0 items>"
        assert os.listdir(path) == ["meta"]  # a segment is made by the first put
    assert repr(q) == f"<Queue {path} shared closed>"


GIVEN: list[dict[str, Any]] = [
    {"maxsize": 1},
    {"maxsize": 1000},
    {"max_bytes": 1 << 20},
    {"segment_size": 8192},
    {"segment_size": 12288},
    {"max_attempts": 1},
    {"compress": "zlib:1:512"},
    {"compress": "zlib:9:0"},
    {"durability": "process"},
    {"maxsize": 5, "max_bytes": 5000, "segment_size": 16384, "max_attempts": 7, "compress": "zlib:6:100"},
]


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_options_are_stored(queue_path: str, given: dict[str, Any]) -> None:
    with Queue(queue_path, **given) as q:
        expected = {name: getattr(q, name) for name in given}
        assert expected == given
    for again in ({}, given):
        with Queue(queue_path, **again) as q:
            assert {name: getattr(q, name) for name in given} == given
    for mode in ("readonly", "private"):
        with Queue(queue_path, mode=mode, **given) as q:  # type: ignore[arg-type]
            assert {name: getattr(q, name) for name in given} == given


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ({}, {"maxsize": 5}),
        ({"maxsize": 5}, {"maxsize": 6}),
        ({"maxsize": 5}, {"maxsize": 0}),
        ({"max_bytes": 5000}, {"max_bytes": 5001}),
        ({}, {"max_bytes": 5000}),
        ({"segment_size": 8192}, {"segment_size": 16384}),
        ({}, {"max_attempts": 3}),
        ({"max_attempts": 4}, {"max_attempts": 3}),
        ({}, {"compress": "zlib:6"}),
        ({"compress": "zlib:6"}, {"compress": "zlib:5"}),
        ({"compress": "zlib:6:10"}, {"compress": "zlib:6:11"}),
        ({}, {"durability": "power"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
def test_other_options_than_the_stored_ones_raise_and_show_both(
    queue_path: str, stored: dict[str, Any], asked: dict[str, Any], mode: Any
) -> None:
    with Queue(queue_path, **stored) as q:
        q.put(1)
        [(name, value)] = asked.items()
        mine = getattr(q, name)
    before = queuefiles.content(queue_path)
    with pytest.raises(SchemaMismatch) as caught:
        Queue(queue_path, mode=mode, **asked)
    expected = value if name != "compress" or value.count(":") == 2 else f"{value}:512"
    assert repr(expected) in str(caught.value)
    assert name in str(caught.value)
    assert repr(mine if mine is not None or name == "compress" else 0) in str(caught.value)
    assert queuefiles.content(queue_path) == before


def test_without_limits_means_the_same_however_it_is_said(queue_path: str) -> None:
    Queue(queue_path, maxsize=0, max_bytes=0, max_attempts=0).close()
    for given in ({}, {"maxsize": 0}, {"max_bytes": 0, "max_attempts": 0}):
        with Queue(queue_path, **given) as q:  # type: ignore[arg-type]
            assert (q.maxsize, q.max_bytes, q.max_attempts) == (0, None, None)


def test_options_of_a_handle_are_not_stored(queue_path: str) -> None:
    with Queue(queue_path, lease=1, retry_delay=1000) as q, Queue(queue_path, lease=2.5) as other:
        assert (q.lease, other.lease) == (1, 2.5)
        other.put("a")
        other.claim().nack()
        assert other.get_nowait() == "a"


WRONG: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"maxsize": -1}, ValueError),
    ({"maxsize": 1.5}, TypeError),
    ({"maxsize": True}, TypeError),
    ({"maxsize": "5"}, TypeError),
    ({"maxsize": 1 << 62}, ValueError),
    ({"max_bytes": -1}, ValueError),
    ({"max_bytes": "1k"}, TypeError),
    ({"max_attempts": -1}, ValueError),
    ({"max_attempts": 2.5}, TypeError),
    ({"segment_size": 0}, ValueError),
    ({"segment_size": 4096}, ValueError),
    ({"segment_size": 8193}, ValueError),
    ({"segment_size": (1 << 40) + 4096}, ValueError),
    ({"segment_size": 8192.0}, TypeError),
    ({"mode": "writable"}, ValueError),
    ({"mode": None}, ValueError),
    ({"durability": "none"}, ValueError),
    ({"durability": 1}, ValueError),
    ({"compress": "zlib"}, ValueError),
    ({"compress": "zlib:0"}, ValueError),
    ({"compress": "zlib:10"}, ValueError),
    ({"compress": "zlib:6:-1"}, ValueError),
    ({"compress": "zlib:6:1:2"}, ValueError),
    ({"compress": "lz4:1"}, ValueError),
    ({"compress": 6}, TypeError),
    ({"compress": f"zlib:6:{1 << 64}"}, ValueError),
    ({"lease": -1}, ValueError),
    ({"lease": float("nan")}, ValueError),
    ({"lease": "1"}, TypeError),
    ({"retry_delay": -1}, ValueError),
    ({"retry_delay": float("nan")}, ValueError),
    ({"retry_delay": "1"}, ValueError),
    ({"retry_delay": None}, ValueError),
    ({"codec": "no such"}, ValueError),
    ({"codec": "pickle"}, ValueError),
    ({"codec": 5}, TypeError),
    ({"schema": 5}, TypeError),
    ({"unknown": 5}, TypeError),
]


@pytest.mark.parametrize(("given", "error"), WRONG, ids=str)
def test_wrong_arguments_make_no_queue(queue_path: str, given: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        Queue(queue_path, **given)
    assert str(caught.value)
    assert not os.path.exists(queue_path), f"{given} has made {os.listdir(queue_path)}"


def test_positional_arguments_end_with_maxsize(queue_path: str) -> None:
    with pytest.raises(TypeError):
        Queue(queue_path, 5, "shared")  # type: ignore[misc]


# ---- wrong arguments of operations ---------------------------------------------------------------------------------


def test_wrong_arguments_of_operations_change_nothing(queue_path: str) -> None:
    with Queue(queue_path) as q:
        q.put("a")
        calls: list[tuple[Any, type[Exception]]] = [
            (lambda: q.put("b", timeout=-1), ValueError),
            (lambda: q.put("b", delay=-1), ValueError),
            (lambda: q.put("b", delay=float("nan")), ValueError),
            (lambda: q.put("b", delay="1"), TypeError),  # type: ignore[arg-type]
            (lambda: q.put("b", True, None, 1), TypeError),  # type: ignore[misc]
            (lambda: q.put(object()), TypeError),
            (lambda: q.put(1 << 64), (ValueError, OverflowError)),  # type: ignore[arg-type]
            (lambda: q.put_many(5), TypeError),  # type: ignore[arg-type]
            (lambda: q.put_many([1], delay=-1), ValueError),
            (lambda: q.get(timeout=-1), ValueError),
            (lambda: q.get(timeout="1"), TypeError),  # type: ignore[arg-type]
            (lambda: q.get_many(1, timeout=-1), ValueError),
            (lambda: q.get_many("1"), TypeError),  # type: ignore[arg-type]
            (lambda: q.claim(timeout=-1), ValueError),
            (lambda: q.claim(lease=-1), ValueError),
            (lambda: q.claim(lease="1"), TypeError),  # type: ignore[arg-type]
            (lambda: q.claim_many(1, timeout=-1), ValueError),
            (lambda: q.join(timeout=-1), ValueError),
            (q.task_done, ValueError),
        ]
        for i, (call, error) in enumerate(calls):
            with pytest.raises(error):
                print(i, call())
        assert (list(q), q.stats()["claimed"], q.unfinished_tasks) == (["a"], 0, 1)
        claim = q.claim()
        wrong: list[tuple[Any, type[Exception]]] = [
            (lambda: claim.nack(-1), ValueError),
            (lambda: claim.nack(float("nan")), ValueError),
            (lambda: claim.nack("1"), TypeError),  # type: ignore[arg-type]
            (lambda: claim.nack(0, True), TypeError),  # type: ignore[misc]
            (lambda: claim.touch(-1), ValueError),
            (lambda: claim.touch("1"), TypeError),  # type: ignore[arg-type]
        ]
        for i, (call, error) in enumerate(wrong):
            with pytest.raises(error):
                print(i, call())
        assert claim.active
        claim.ack()


def test_very_long_times_are_for_ever(queue_path: str) -> None:
    with Queue(queue_path, lease=1e300, retry_delay=float("inf")) as q:
        q.put("a", delay=1e300)
        q.put("b", timeout=1e300)
        claim = q.claim(timeout=float("inf"))
        assert claim.item == "b"
        claim.touch(1e300)
        claim.nack()
        with pytest.raises(Empty):
            q.get(timeout=0)
        assert q.stats()["delayed"] == 2


# ---- names ---------------------------------------------------------------------------------------------------------


def test_the_public_names_are_pinned() -> None:
    assert mmapds.Queue is Documented
    assert {name for name in dir(Queue) if not name.startswith("_")} == {
        "check", "claim", "claim_async", "claim_many", "claims", "claims_async", "close", "closed", "codec", "compress",
        "dead", "durability", "empty", "erase", "flush", "full", "get", "get_async", "get_many", "get_nowait",
        "holders", "join", "lease", "max_attempts", "max_bytes", "maxsize", "mode", "path", "peek", "peek_last",
        "purge", "put", "put_many", "put_nowait", "qsize", "segment_size", "shutdown", "stats", "task_done",
        "unfinished_tasks",
    }  # fmt: skip


def test_every_public_method_says_what_it_does() -> None:
    for cls in (Queue, Claim, DeadLetters):
        for name in dir(cls):
            if not name.startswith("_") and callable(getattr(cls, name)):
                assert getattr(cls, name).__doc__, f"{cls.__name__}.{name} has no docstring"
