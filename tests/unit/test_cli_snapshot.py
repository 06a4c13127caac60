"""``mmapds snapshot``: looking at maps, comparing two, there and back, as a shell sees them."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shell import COMMAND, WATCHDOG, Run, in_process, shell

from mmapds import SnapshotMap

ENTRIES = {"a": 1, "b": b"\xff\0", "größe": {"x": [1.5, None, True]}, "b/1": "one", "b/2": math.inf}
LINES = [
    '{"key": "a", "value": 1}',
    '{"key": "b", "value": {"$bytes": "/wA="}}',
    '{"key": "b/1", "value": "one"}',
    '{"key": "b/2", "value": {"$float": "inf"}}',
    '{"key": "gr\\u00f6\\u00dfe", "value": {"x": [1.5, null, true]}}',
]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Run:
    return in_process(capsys, "snapshot")


@pytest.fixture
def path(tmp_path: Path) -> str:
    name = str(tmp_path / "some map")
    SnapshotMap.build(name, ENTRIES, metadata={"from": "tests", "day": 7, "raw": b"\0"})
    return name


def lines(said: Any) -> list[Any]:
    assert (said.status, said.err) == (0, ""), said
    return [json.loads(line) for line in said.out.splitlines()]


# ---- info ----------------------------------------------------------------------------------------------------------


def test_info_is_what_happens_without_an_action(path):
    first, second = shell("snapshot", path), shell("snapshot", path, "info")
    assert (first.status, first.err, second.status, second.err) == (0, "", 0, "")
    rows = [line.split() for line in first.out.splitlines()]
    assert rows[0] == ["path", *path.split()]
    for row in (["entries", "5"], ["keys", "str"], ["codec", "msgpack"], ["metadata.from", "tests"]):
        assert row in rows, first.out


def test_info_as_json(path, here):
    with SnapshotMap(path) as m, m.transaction() as txn:
        txn["more"] = 1
    for words in ((path, "--json"), (path, "info", "--json"), ("--json", path)):
        found = json.loads(here(*words).out)
    with SnapshotMap(path, mode="readonly") as m:
        stats = m.stats()
    assert found.pop("metadata") == {"from": "tests", "day": 7, "raw": {"$bytes": "AA=="}}
    assert found == {name: value for name, value in stats.items() if name != "mode"}
    assert (found["entries"], found["version"]) == (6, 2)


def test_info_of_an_empty_map(tmp_path, here):
    SnapshotMap(tmp_path / "m").close()
    found = json.loads(here(tmp_path / "m", "--json").out)
    assert (found["entries"], found["keys"], found["metadata"], found["layers"]) == (0, None, None, [])
    assert here(tmp_path / "m", "dump") == (0, "", "")
    assert here(tmp_path / "m", "range", "a") == (0, "", "")
    assert here(tmp_path / "m", "get", "a").status == 1


def test_metadata_cannot_drive_a_terminal(tmp_path, here):
    SnapshotMap.build(tmp_path / "m", [], metadata={"\x1b[31m": "\x1b[0m\n"})
    assert "\x1b" not in here(tmp_path / "m").out


# ---- get -----------------------------------------------------------------------------------------------------------


def test_get(path, here):
    assert here(path, "get", "b", "größe", "b") == (
        0,
        '{"$bytes": "/wA="}\n{"x": [1.5, null, true]}\n{"$bytes": "/wA="}\n',
        "",
    )
    assert json.loads(here(path, "get", "--json", "b/2", "a").out) == [
        {"key": "b/2", "value": {"$float": "inf"}},
        {"key": "a", "value": 1},
    ]


def test_get_what_is_not_there_prints_nothing(path, here):
    assert here(path, "get", "a", "c", "d") == (1, "", f"mmapds: {path} has no key 'c'\n")
    assert here(path, "get", "").status == 1


def test_get_of_bytes(tmp_path):
    """The bytes as they stand on the command line, in whatever encoding."""
    SnapshotMap.build(tmp_path / "m", {b"\xff\x01": 1, "ü".encode(): 2})
    assert shell("snapshot", tmp_path / "m", "get", os.fsdecode(b"\xff\x01"), "ü") == (0, "1\n2\n", "")
    said = shell("snapshot", tmp_path / "m", "range", "--prefix", os.fsdecode(b"\xff"))
    assert said == (0, '{"key": {"$bytes": "/wE="}, "value": 1}\n', "")


def test_a_key_that_no_text_can_be(path):
    for words in (["get", os.fsdecode(b"\xff")], ["range", os.fsdecode(b"\xff")]):
        said = shell("snapshot", path, *words)
        assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
        assert "not UTF-8" in said.err


def test_a_codec_of_bytes(tmp_path, here):
    SnapshotMap.build(tmp_path / "m", {"k": b"text"}, codec="raw")
    assert here(tmp_path / "m", "get", "k").out == '{"$bytes": "dGV4dA=="}\n'


# ---- range, dump ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], [0, 1, 2, 3, 4]),
        (["b"], [1, 2, 3, 4]),
        (["b", "b/2"], [1, 2]),
        (["", "b"], [0]),
        (["b", "b"], []),
        (["x"], []),
        (["--reverse"], [4, 3, 2, 1, 0]),
        (["b", "g", "--reverse", "--limit", "2"], [3, 2]),
        (["--limit", "2"], [0, 1]),
        (["--prefix", "b/"], [2, 3]),
        (["--prefix", "b", "--reverse"], [3, 2, 1]),
        (["--prefix", ""], [0, 1, 2, 3, 4]),
        (["--prefix", "z"], []),
        (["--prefix", "grö", "--json"], [4]),
    ],
)
def test_range(words, wanted, path, here):
    assert here(path, "range", *words) == (0, "".join(LINES[i] + "\n" for i in wanted), "")


def test_dump(path, here):
    assert here(path, "dump") == (0, "\n".join(LINES) + "\n", "")
    assert here(path, "dump", "--json").out == here(path, "dump").out


def test_entries_say_when_they_expire(path, here):
    with SnapshotMap(path) as m, m.transaction() as txn:
        txn.set("a", 2, ttl=1000)
        txn.set("gone", 2, ttl=1e-9)
    found = lines(here(path, "dump"))
    assert [line["key"] for line in found] == ["a", "b", "b/1", "b/2", "größe"]
    assert 0 < found[0]["ttl"] <= 1000
    assert all("ttl" not in line for line in found[1:])
    assert here(path, "get", "gone").status == 1


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.just(math.nan)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 99), inner),
    max_leaves=5,
)
KEYS = st.text(max_size=20)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.dictionaries(KEYS, VALUES) | st.dictionaries(KEYS.map(str.encode), VALUES))
def test_dump_and_build_are_each_others_reverse(entries, tmp_path_factory, capsys, monkeypatch):
    folder = tmp_path_factory.mktemp("maps")
    here = in_process(capsys, "snapshot")
    SnapshotMap.build(folder / "one", entries)
    dumped = here(folder / "one", "dump").out
    (folder / "lines").write_text(dumped)
    assert here(folder / "two", "build", folder / "lines") == (0, f"{len(entries)}\n", "")
    assert here(folder / "two", "dump").out == dumped
    assert here(folder / "one", "diff", folder / "two") == (0, "", "")
    with SnapshotMap(folder / "one") as one, SnapshotMap(folder / "two") as two:
        assert [(key, one.get_view(key).tobytes()) for key in one] == [
            (key, two.get_view(key).tobytes()) for key in two
        ]


# ---- verify, compact -----------------------------------------------------------------------------------------------


def test_verify(path, here):
    status, out, err = here(path, "verify")
    assert (status, out.split(",")[0], err) == (0, f"{path}: sound", "")
    assert json.loads(here(path, "verify", "--json").out) == {"path": path, "sound": True, "blocks": 1, "what": None}


def test_r15_verify_names_the_damage(path, here):
    (layer,) = Path(path).glob("*.layer")
    with open(layer, "r+b") as file:
        file.seek(4096 + 20)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))
    status, out, err = here(path, "verify")
    assert (status, err) == (1, ""), out
    assert layer.name in out
    assert out.endswith(f"{path}: corrupt\n")
    found = json.loads(here(path, "verify", "--json").out)
    assert (found["sound"], found["blocks"]) == (False, None)
    assert layer.name in found["what"]


def test_compact(path, here):
    with SnapshotMap(path) as m:
        with m.transaction() as txn:
            del txn["a"]
            txn.set("gone", 1, ttl=1e-9)
            txn["new"] = 1
        assert len(m) == 6
        said = here(path, "compact")
        assert (said.status, said.err) == (0, "")
        assert said.out.startswith("5 entries, ")
        assert len(m) == 5
        assert m.metadata["from"] == "tests"
        assert [layer["records"] for layer in m.stats()["layers"]] == [5]
        assert m.stats()["delta"] is None
    found = json.loads(here(path, "compact", "--json").out)
    assert (found["entries"], found["bytes"]) == (5, found["bytes_before"])


# ---- diff ----------------------------------------------------------------------------------------------------------


def test_diff(path, tmp_path, here):
    other = str(tmp_path / "other")
    SnapshotMap.build(other, {**ENTRIES, "a": 2, "0": None, "zz\n": 1, "b/2": 1e9})
    with SnapshotMap(other) as m, m.transaction() as txn:
        del txn["b/1"]
    assert here(path, "diff", other) == (1, '+ "0"\n! "a"\n- "b/1"\n! "b/2"\n+ "zz\\n"\n', "")
    said = here(other, "diff", path, "--json")
    assert (said.status, said.err) == (1, "")
    assert [tuple(json.loads(line).values()) for line in said.out.splitlines()] == [
        ("removed", "0"),
        ("changed", "a"),
        ("added", "b/1"),
        ("changed", "b/2"),
        ("removed", "zz\n"),
    ]
    assert here(path, "diff", path) == (0, "", "")


@settings(max_examples=40, deadline=None)
@given(
    one=st.dictionaries(st.text("aßz\U00010000\uffff", max_size=3), st.integers(0, 2)),
    other=st.dictionaries(st.text("aßz\U00010000\uffff", max_size=3), st.integers(0, 2)),
)
def test_diff_is_what_dicts_say(one, other):
    from mmapds.cli.snapshot import differences
    from mmapds.codecs import resolve

    class Fake(dict):
        """As a map is walked."""

        codec = resolve("msgpack")

        def __iter__(self):
            return iter(sorted(self.keys(), key=str.encode))

        def get_view(self, key):
            return memoryview(self.codec.encode(self[key]))

    found = list(differences(Fake(one), Fake(other)))
    wanted = dict.fromkeys(other.keys() - one.keys(), "added")
    wanted |= dict.fromkeys(one.keys() - other.keys(), "removed")
    wanted |= {key: "changed" for key in one.keys() & other.keys() if one[key] != other[key]}
    assert {key: change for change, key in found} == wanted
    assert [key.encode() for _, key in found] == sorted(key.encode() for key in wanted)


def test_diff_of_other_codecs_compares_what_is_meant(tmp_path, here):
    SnapshotMap.build(tmp_path / "one", {"a": b"x", "b": b"y"}, codec="raw")
    SnapshotMap.build(tmp_path / "two", {"a": b"x", "b": "y"})
    assert here(tmp_path / "one", "diff", tmp_path / "two") == (1, '! "b"\n', "")


def test_diff_of_text_and_bytes_is_refused_but_for_empty_maps(path, tmp_path, here):
    SnapshotMap.build(tmp_path / "bytes", {b"a": 1})
    SnapshotMap.build(tmp_path / "empty", {})
    said = here(path, "diff", tmp_path / "bytes")
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.endswith("some map are text, those of " + str(tmp_path / "bytes") + " bytes\n")
    assert here(tmp_path / "empty", "diff", tmp_path / "bytes") == (1, '+ {"$bytes": "YQ=="}\n', "")
    assert here(tmp_path / "empty", "diff", tmp_path / "empty").status == 0


# ---- progress ------------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    status: int
    out: str
    terminal: str


def on_a_terminal(*words: object, **env: str) -> Seen:
    """What stands on a terminal that standard error goes to."""
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [*COMMAND, "snapshot", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=slave,
            env={**{name: value for name, value in os.environ.items() if name != "NO_COLOR"}, **env},
        )
        os.close(slave)
        slave = -1
        seen = io.BytesIO()
        while True:
            try:
                data = os.read(master, 4096)
            except OSError:  # nobody has its other end any more
                break
            if not data:
                break
            seen.write(data)
        out, _ = process.communicate(timeout=WATCHDOG)
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)
    return Seen(process.returncode, out.decode(), seen.getvalue().decode())


def test_progress_in_lines(tmp_path):
    (tmp_path / "in").write_text('["a", 1]\n["b", 2]\n')
    seen = on_a_terminal(tmp_path / "m", "build", tmp_path / "in", NO_COLOR="1")
    assert (seen.status, seen.out) == (0, "2\n")
    assert seen.terminal.split("\r\n") == ["read 2", "sync 2 of 2", ""]
    seen = on_a_terminal(tmp_path / "n", "build", tmp_path / "m", NO_COLOR="1", TERM="dumb")
    assert seen.terminal.split("\r\n") == ["sync 2 of 2", ""]


def test_progress_as_a_bar(tmp_path):
    pytest.importorskip("rich")
    (tmp_path / "in").write_text('["a", 1]\n["b", 2]\n')
    seen = on_a_terminal(tmp_path / "m", "build", tmp_path / "in", TERM="xterm-256color")
    assert (seen.status, seen.out) == (0, "2\n")
    assert "\x1b[" in seen.terminal
    assert "2/2" in seen.terminal
    seen = on_a_terminal(tmp_path / "m", "compact", TERM="xterm-256color")
    assert seen.status == 0, seen
    assert "2/2" in seen.terminal
    seen = on_a_terminal(tmp_path / "n", "build", tmp_path / "none", TERM="xterm-256color")
    assert (seen.status, seen.out, "Traceback" in seen.terminal) == (2, "", False)


def test_no_progress_where_there_is_no_terminal(tmp_path):
    (tmp_path / "in").write_text('["a", 1]\n')
    assert shell("snapshot", tmp_path / "m", "build", tmp_path / "in") == (0, "1\n", "")
    assert shell("snapshot", tmp_path / "m", "compact").err == ""
