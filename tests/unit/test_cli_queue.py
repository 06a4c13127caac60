"""``mmapds queue``: looking at queues, putting, getting, dead letters, as a shell sees them."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import NamedTuple

import pytest
from shell import Run, Said, in_process, shell

from mmapds import Queue
from mmapds.inspection import verify


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Run:
    return in_process(capsys, "queue")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Three items, of which one has a delay."""
    name = str(tmp_path / "some jobs")
    with Queue(name, segment_size=8192, max_attempts=2) as q:
        q.put({"number": 1, "größe": 2.5})
        q.put(b"hi", delay=1000)
        q.put([None, True, "x"])
    return name


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> object:
    """typed(bytes): what standard input holds."""

    class Stdin(NamedTuple):
        buffer: io.BytesIO

    def typed(text: bytes) -> None:
        monkeypatch.setattr("sys.stdin", Stdin(io.BytesIO(text)))

    return typed


LINES = ['{"number": 1, "gr\\u00f6\\u00dfe": 2.5}', '{"$bytes": "aGk="}', '[null, true, "x"]']


# ---- stat ----------------------------------------------------------------------------------------------------------


def test_stat_is_what_happens_without_an_action(path):
    first, second = shell("queue", path), shell("queue", path, "stat")
    assert (first.status, first.err, second.status, second.err) == (0, "", 0, "")
    lines = [line.split() for line in first.out.splitlines()]
    assert ["items", "3"] in lines
    assert ["max_attempts", "2"] in lines
    assert ["maxsize", "-"] in lines
    assert lines[0] == ["path", *path.split()]
    assert "holders" not in first.out


def test_stat_as_json(path, here):
    with Queue(path) as q:
        q.get()
        held = q.claim()
        for words in ((path, "--json"), (path, "stat", "--json"), ("--json", path)):
            status, out, err = here(*words)
            assert (status, err) == (0, "")
            found = json.loads(out)
        stats = q.stats()
        assert {name: found[name] for name in stats if name != "oldest"} == {
            name: value for name, value in stats.items() if name != "oldest"
        }
        assert found["holders"] == [{"pid": os.getpid(), "claimed": 1, "owing": 1}]
        assert (found["codec"], found["durability"], found["segment_size"]) == ("msgpack", "process", 8192)
        assert "holders" in here(path).out
        held.ack()


# ---- put -----------------------------------------------------------------------------------------------------------


def test_put_words(path, here):
    assert here(path, "put", "7", '"text"', '{"$bytes": "AP8="}') == (0, "3\n", "")
    assert here(path, "put", "--json", "8").out == '{\n  "put": 1\n}\n'
    with Queue(path) as q:
        assert list(q)[3:] == [7, "text", b"\0\xff", 8]


def test_put_lines(path, here, typed, tmp_path):
    typed(b'1\n\n  \n"gr\xc3\xb6\xc3\x9fe"\r\n[2]')
    assert here(path, "put") == (0, "3\n", "")
    (tmp_path / "lines").write_bytes(b'{"a": 1}\n{"a": 2}\n')
    assert here(path, "put", "--file", tmp_path / "lines") == (0, "2\n", "")
    typed(b"3\n")
    assert here(path, "put", "--file", "-") == (0, "1\n", "")
    typed(b"")
    assert here(path, "put") == (0, "0\n", "")
    with Queue(path) as q:
        assert list(q)[3:] == [1, "größe", [2], {"a": 1}, {"a": 2}, 3]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "Expecting"),
        (b"NaN", '{"$float": "nan"}'),
        (b"-Infinity", '{"$float": "-inf"}'),
        (b'"\xff"', "utf-8"),
        (b'{"$bytes": "!"}', "base64"),
        (b'{"$repr": "x"}', "means nothing here"),
        (b'{"$map": [[{}, 1]]}', "$map"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" + b"0" * 40, "cannot encode"),
    ],
)
def test_put_what_cannot_be_put(line, why, path, here, typed):
    typed(b"1\n2\n\n" + line + b"\n4\n")
    status, out, err = here(path, "put")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("mmapds: item 4 was not put: ")
    assert err.endswith("; 2 were put before it\n")
    assert why in err
    with Queue(path) as q:
        assert len(q) == 5


def test_put_into_a_full_queue(tmp_path, here):
    path = tmp_path / "small"
    assert here(path, "put", "--create", "--maxsize", "2", "--timeout", "0", "1", "2", "3") == (
        1,
        "",
        "mmapds: item 3 was not put: the queue is full; 2 were put before it\n",
    )
    assert here(path, "put", "--timeout", "0.01", "4").status == 1
    assert here(path, "get", "--all").out == "1\n2\n"


def test_put_with_a_delay(path, here):
    assert here(path, "put", "--delay", "1000", '"later"').status == 0
    assert here(path, "get", "--all").out.splitlines() == [LINES[0], LINES[2]]
    assert here(path, "get").status == 1
    assert here(path, "peek", "--all").out.splitlines() == [LINES[1], '"later"']


def test_put_makes_a_queue_only_when_it_is_told_to(tmp_path, here):
    path = tmp_path / "new"
    assert here(path, "put", "1") == (2, "", f"mmapds: {path}: there is no queue: --create makes one\n")
    assert not path.exists()
    words = ("--create", "--codec", "raw", "--segment-size", "8192", "--max-attempts", "3", "--max-bytes", "100000")
    more = ("--durability", "process", "--compress", "zlib:6:100", '{"$bytes": "aGk="}')
    assert here(path, "put", *words, *more) == (0, "1\n", "")
    with Queue(path) as q:
        assert (q.segment_size, q.max_attempts, q.max_bytes, q.compress) == (8192, 3, 100_000, "zlib:6:100")
        assert q.get() == b"hi"
    assert here(path, "put", *words, '{"$bytes": ""}') == (0, "1\n", "")  # it is there, and has them
    status, _, err = here(path, "put", "--maxsize", "5", '{"$bytes": ""}')
    assert (status, "stores maxsize=0, asked for was 5" in err) == (1, True)
    status, _, err = here(path, "put", '"text"')
    assert (status, "item 1 was not put: codec 'raw' stores bytes-like objects" in err) == (1, True)
    for wrong in (("--codec", "foo"), ("--segment-size", "5"), ("--compress", "lz4"), ("--maxsize", "-1")):
        status, out, err = here(tmp_path / "other", "put", "--create", *wrong, "1")
        assert (status, out, err.count("\n")) == (2, "", 1), wrong
    assert here(tmp_path / "no" / "where", "put", "--create", "1").status == 2
    assert sorted(os.listdir(tmp_path)) == ["new"]


# ---- get and peek --------------------------------------------------------------------------------------------------


def test_get(path, here):
    assert shell("queue", path, "get") == (0, LINES[0] + "\n", "")
    assert here(path, "get", "-n", "5") == (0, LINES[2] + "\n", "")
    assert here(path, "get") == (1, "", "")
    assert here(path, "get", "-n", "3", "--timeout", "0.01") == (1, "", "")
    assert here(path, "get", "--all") == (0, "", "")
    with Queue(path) as q:
        assert q.stats()["claimed"] == 0
        assert len(q) == 1
    assert verify(path) == []


def test_get_waits(path, here, tmp_path):
    with Queue(tmp_path / "soon") as q:
        q.put("soon", delay=0.3)
    assert here(tmp_path / "soon", "get").status == 1
    assert here(tmp_path / "soon", "get", "--timeout", "inf").out == '"soon"\n'


def test_get_many(tmp_path, here):
    path = tmp_path / "many"
    with Queue(path) as q:
        q.put_many(range(1000))
    assert here(path, "get", "-n", "250").out.split() == list(map(str, range(250)))
    assert here(path, "get", "--all", "--json").out.split() == list(map(str, range(250, 1000)))
    assert verify(path) == []


def test_peek(path, here):
    before = [Path(path, name).read_bytes() for name in sorted(os.listdir(path))]
    assert here(path, "peek") == (0, LINES[0] + "\n", "")
    assert here(path, "peek", "--all").out.splitlines() == LINES
    assert here(path, "peek", "-n", "2", "--reverse", "--json").out.splitlines() == LINES[:0:-1]
    assert [Path(path, name).read_bytes() for name in sorted(os.listdir(path))] == before
    assert here(path, "purge").out == "3\n"
    assert here(path, "peek") == (1, "", "")
    assert here(path, "peek", "--all") == (0, "", "")


def test_what_one_prints_another_puts(path, here, typed, tmp_path):
    values = [
        {"a": {"$bytes": 1}}, {"$bytes": "aGk="}, {1: 2, b"k": None}, {"$": {}}, {"$x": 1, "y": 2}, float("inf"), {},
        {(1, 2): [3]}, "\x1b[2J", "\u2028", -(2**63), 2**64 - 1, 1e300, [[b""]],
    ]  # fmt: skip
    with Queue(tmp_path / "a") as q:
        q.put_many(values)
    said: Said = here(tmp_path / "a", "get", "--all")
    assert said.out.isascii()
    typed(said.out.encode())
    assert here(tmp_path / "b", "put", "--create").out == f"{len(values)}\n"
    with Queue(tmp_path / "b") as q:
        assert list(q) == values


def test_values_that_only_python_knows(tmp_path, here, typed):
    from mmapds.codecs import Pickle

    with Queue(tmp_path / "q", codec=Pickle()) as q:
        q.put({"a": (1, {2})})
    status, _, err = here(tmp_path / "q", "peek")
    assert (status, err.count("\n")) == (1, 1)  # no pickle is loaded unless it is asked for by name
    with Queue(tmp_path / "pairs", codec="struct:<iq") as q:
        q.put((1, 2))
    said = here(tmp_path / "pairs", "get")
    assert said.out == "[1, 2]\n"
    typed(said.out.encode())
    assert here(tmp_path / "pairs", "put").out == "1\n"


# ---- claims, dead letters ------------------------------------------------------------------------------------------


def test_claims(path, here):
    assert here(path, "claims") == (0, f"{path}: nobody holds anything\n", "")
    assert here(path, "claims", "--json").out == "[]\n"
    with Queue(path) as q:
        first, second = q.claim(), q.claim(lease=1000)
        found = json.loads(here(path, "claims", "--json").out)
        assert [(claim["id"], claim["pid"], claim["alive"]) for claim in found] == [
            (first.id, os.getpid(), True),
            (second.id, os.getpid(), True),
        ]
        assert found[0]["lease"] is None
        assert 990 < found[1]["lease"] <= 1000
        lines = here(path, "claims").out.splitlines()
        assert lines[0].split() == ["id", "pid", "alive", "attempts", "lease", "put", "size"]
        assert lines[2].split()[:5] == [first.id, str(os.getpid()), "yes", "1", "-"]
        first.ack()
        second.ack()


@pytest.fixture
def failed(path: str) -> str:
    """Two of the items are dead letters."""
    with Queue(path) as q:
        q.claim().bury("\x1b[31mno use")
        for _ in range(2):
            q.claim().nack(0, error=ValueError("not today"))
    return path


def test_dead(failed, here):
    letters = json.loads(here(failed, "dead", "--json").out)
    assert [(letter["id"], letter["attempts"]) for letter in letters] == [("1-0", 1), ("1-2", 2)]
    assert letters[0]["item"] == {"number": 1, "größe": 2.5}
    assert letters[1]["error"] == "ValueError: not today"
    assert letters[0]["put_at"] <= letters[0]["buried_at"]
    said = shell("queue", failed, "dead")
    assert said.status == 0
    lines = said.out.splitlines()
    assert lines[0].split() == ["id", "attempts", "put", "buried", "reason", "error", "item"]
    assert lines[2].startswith("1-0")
    assert "\\x1b[31mno use" in lines[2]
    assert lines[3].endswith('[null, true, "x"]')


def test_dead_of_a_queue_without_any(path, here):
    assert here(path, "dead") == (0, f"{path}: no dead letters\n", "")
    assert here(path, "dead", "--json").out == "[]\n"
    assert here(path, "requeue", "--all") == (0, "0\n", "")
    assert here(path, "purge", "--dead") == (0, "0\n", "")
    assert not os.path.exists(os.path.join(path, "dead"))


def test_requeue_and_purge(failed, here):
    assert here(failed, "requeue", "1-7") == (1, "", f"mmapds: {failed} has no dead letter '1-7'\n")
    assert here(failed, "requeue", "1-2") == (0, "1\n", "")
    assert here(failed, "get").out == LINES[2] + "\n"
    assert here(failed, "requeue", "--all", "--json").out == '{\n  "requeued": 1\n}\n'
    assert here(failed, "dead", "--json").out == "[]\n"
    assert here(failed, "get").out == LINES[0] + "\n"
    with Queue(failed) as q:
        q.put(5)
        q.claim().bury()
    assert here(failed, "purge", "--dead", "--json").out == '{\n  "purged": 1\n}\n'
    assert here(failed, "dead", "--json").out == "[]\n"
    assert here(failed, "purge") == (0, "1\n", "")  # the delayed one
    assert here(failed).out.splitlines()[1].split() == ["items", "0"]
    assert verify(failed) == []


# ---- inspect and verify --------------------------------------------------------------------------------------------


def test_inspect_and_verify(path, capsys):
    command = in_process(capsys)
    assert command("verify", path) == (0, f"{path}: sound\n", "")
    assert json.loads(command("inspect", path, "--json").out)["items"] == 3
    segment = os.path.join(path, min(os.listdir(path)))
    assert command("inspect", segment).out.splitlines()[0].split(maxsplit=1) == ["what", "segment of a queue"]
    with Path(segment).open("r+b") as file:
        file.seek(4096 + 80)
        file.write(b"\xff\xff")
    status, out, err = command("verify", path)
    assert (status, err) == (1, "")
    assert out.splitlines()[-1] == f"{path}: corrupt"
    assert "item 1-0: its bytes are not what was put" in out
