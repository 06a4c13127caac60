"""``mmapds snapshot PATH build``: what a map is made of, and what of a source that makes no sense."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
from shell import Run, in_process

from mmapds import SnapshotMap, WriterBusy
from mmapds.cli._snapshot_sources import lifetime


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Run:
    return in_process(capsys, "snapshot")


@pytest.fixture
def build(here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """build(bytes, word, ...): as if these stood on standard input."""

    class Stdin(NamedTuple):
        buffer: io.BytesIO

    def build(text: bytes, *words: object) -> Any:
        monkeypatch.setattr("sys.stdin", Stdin(io.BytesIO(text)))
        return here(tmp_path / "m", "build", *words)

    return build


@pytest.fixture
def m(tmp_path: Path) -> Callable[[], dict[Any, Any]]:
    """What the map holds."""

    def m() -> dict[Any, Any]:
        with SnapshotMap(tmp_path / "m", mode="readonly") as m:
            return {key: bytes(value) if isinstance(value, memoryview) else value for key, value in m.items()}

    return m


def packed(*pairs: Any) -> bytes:
    return b"".join(map(msgpack.packb, pairs))


# ---- lines of JSON -------------------------------------------------------------------------------------------------


def test_both_forms_of_lines(build, m):
    text = b'{"key": "b", "value": 1}\n\n  \n["a", {"x": null}]\r\n{"value": [2], "key": "gr\xc3\xb6\xc3\x9fe"}'
    assert build(text) == (0, "3\n", "")
    assert list(m().items()) == [("a", {"x": None}), ("b", 1), ("größe", [2])]
    assert build(b"", "-") == (0, "0\n", "")
    assert m() == {}


def test_of_equal_keys_the_last_counts(build, m):
    assert build(b'["a", 1]\n["b", 1]\n["a", 2]\n') == (0, "2\n", "")
    assert m() == {"a": 2, "b": 1}


def test_keys_of_bytes(build, m):
    assert build(b'[{"$bytes": "/w=="}, 1]\n["a", 2]', "--bytes-keys") == (0, "2\n", "")
    assert m() == {b"a": 2, b"\xff": 1}
    assert build(b'[{"$bytes": "/w=="}, 1]\n') == (0, "1\n", "")
    assert m() == {b"\xff": 1}


def test_a_file_and_what_the_result_says(tmp_path, here):
    (tmp_path / "lines").write_text('["a", 1]\n')
    said = here(tmp_path / "m", "build", tmp_path / "lines", "--metadata", '{"n": {"$bytes": "AA=="}}', "--json")
    assert json.loads(said.out) == {"path": str(tmp_path / "m"), "entries": 1, "expiring": 0, "skipped": {}}
    with SnapshotMap(tmp_path / "m") as m:
        assert m.metadata == {"n": b"\0"}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "Expecting"),
        (b"7", "an entry is"),
        (b'["a"]', "an entry is"),
        (b'["a", 1, 2]', "an entry is"),
        (b'{"key": "a"}', "an entry is"),
        (b'{"key": "a", "value": 1, "tlt": 1}', "an entry is"),
        (b"[7, 1]", "a key is text or bytes, got 7"),
        (b"[null, 1]", "a key is text or bytes"),
        (b'[{"$bytes": "AA=="}, 1]', "--bytes-keys"),
        (b'["a", NaN]', '{"$float": "nan"}'),
        (b'["\xff", 1]', "utf-8"),
        (b'["\\ud800", 1]', "surrogates"),
        (b'["a", "\\ud800"]', "surrogates"),
        (b'["a", {"$bytes": "!"}]', "base64"),
        (b'["a", {"$repr": "x"}]', "means nothing here"),
        (b'["a", 1' + b"0" * 40 + b"]", "cannot encode"),
        (b"[" * 100_000, "nested too deeply"),
        (b'["' + b"k" * 65_537 + b'", 1]', "65,536"),
        (b'{"key": "' + b"k" * 65_537 + b'", "value": 1, "ttl": 9}', "65,536"),
        (b'{"key": "a", "value": 1' + b"0" * 40 + b', "ttl": 9}', "cannot encode"),
        (b'{"key": "a", "value": 1, "ttl": 0}', '"ttl" must be'),
        (b'{"key": "a", "value": 1, "ttl": true}', '"ttl" must be'),
        (b'{"key": "a", "value": 1, "ttl": {"$float": "nan"}}', '"ttl" must be'),
        (b'{"key": "a", "value": 1, "ttl": 1e9}', '"ttl" must be'),
    ],
)
def test_a_line_that_makes_no_sense_builds_nothing(line, why, build, m):
    assert build(b'["old", 1]').status == 0
    status, out, err = build(b'["a", 1]\n\n' + line + b'\n["z", 1]\n')
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("mmapds: standard input, line 3: ")
    assert err.endswith("; nothing was built\n")
    assert why in err
    assert m() == {"old": 1}


def test_the_wrong_file_leaves_nothing_behind(build, tmp_path):
    before = list(tmp_path.iterdir())
    assert build(b"PK\3\4 binary\n").status == 1
    assert build(b"name,size\nx,1\n").status == 1
    assert list(tmp_path.iterdir()) == before


# ---- lifetimes -----------------------------------------------------------------------------------------------------


def test_entries_that_expire(build, m, tmp_path):
    text = b'{"key": "a", "value": 1, "ttl": 1000}\n["b", 2]\n{"key": "c", "value": 3, "ttl": null}\n'
    text += b'{"key": "short", "value": 4, "ttl": 0.3}\n{"key": "shortest", "value": 4, "ttl": 1e-9}\n'
    said = build(text, "--json")
    assert json.loads(said.out)["expiring"] in (1, 2)  # a slow machine may be late for one
    found = m()
    found.pop("short", None)
    assert found == {"a": 1, "b": 2, "c": 3}
    with SnapshotMap(tmp_path / "m") as handle:
        assert 0 < lifetime(handle, "a") <= 1000
        assert (lifetime(handle, "b"), lifetime(handle, "c"), lifetime(handle, "shortest")) == (None, None, 0)
        while "short" in handle:  # a watchdog of the run ends this if it never comes
            time.sleep(0.01)
        assert handle["a"] == 1


def test_only_entries_that_expire(build, m):
    assert build(b'{"key": "a", "value": 1, "ttl": 1000}\n{"key": "a", "value": 2, "ttl": 1000}\n') == (0, "1\n", "")
    assert m() == {"a": 2}
    assert build(b'{"key": "a", "value": 1, "ttl": 1000}\n', "--bytes-keys", "--metadata", "7") == (0, "1\n", "")
    assert m() == {b"a": 1}


def test_many_that_expire_go_through_a_file(build, m, tmp_path):
    value = "x" * 5000
    line = json.dumps({"key": "%d", "value": value, "ttl": 9999}) + "\n"
    text = "".join(line % i for i in range(4000)).encode()
    assert build(text, "--memory-limit", "8M", "--codec", "raw") == (0, "4000\n", "")
    assert m() == {str(i): value.encode() for i in range(4000)}
    assert [found.name for found in tmp_path.iterdir()] == ["m"]


def test_somebody_who_comes_in_between_is_told_of(build, m, tmp_path, monkeypatch):
    """The place is free for a moment, and then taken: those that expire are absent, and never there for ever."""
    whole = SnapshotMap.build
    with ExitStack() as stack:

        def then(path, *arguments, **options):
            whole(path, *arguments, **options)
            other = stack.enter_context(SnapshotMap(path))
            stack.enter_context(other.transaction())

        monkeypatch.setattr(SnapshotMap, "build", then)
        said = build(b'["b", 2]\n{"key": "a", "value": 1, "ttl": 1000}\n')
    assert (said.status, said.out, said.err.count("\n")) == (1, "", 1)
    assert said.err.endswith("It was built, but without 1 entries that expire.\n")
    assert m() == {"b": 2}


# ---- CSV -----------------------------------------------------------------------------------------------------------

TABLE = '\ufeffid,name,"the size"\r\n7,"a ""b""\r\nc",1\r\n\r\n8,größe,\r\n'.encode()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], {"7": {"name": 'a "b"\r\nc', "the size": "1"}, "8": {"name": "größe", "the size": ""}}),
        (["--key", "name", "--columns", "id"], {'a "b"\r\nc': {"id": "7"}, "größe": {"id": "8"}}),
        (["--columns", "the size,id"], {"7": {"the size": "1", "id": "7"}, "8": {"the size": "", "id": "8"}}),
        (["--value", "the size"], {"7": "1", "8": ""}),
        (["--value", "the size", "--codec", "raw", "--bytes-keys"], {b"7": b"1", b"8": b""}),
    ],
)
def test_csv(words, wanted, build, m, tmp_path, here):
    (tmp_path / "table.CSV").write_bytes(TABLE)
    assert here(tmp_path / "m", "build", tmp_path / "table.CSV", *words) == (0, "2\n", "")
    assert m() == wanted
    assert build(TABLE, "--format", "csv", *words) == (0, "2\n", "")
    assert m() == wanted


def test_csv_with_other_delimiters_and_long_cells(build, m):
    assert build(b"k\tv\na\t" + b"x" * 200_000, "--format", "csv", "--delimiter", "\\t") == (0, "1\n", "")
    assert m() == {"a": {"v": "x" * 200_000}}
    assert build(b"k;v\na;1\n", "--format", "csv", "--delimiter", ";", "--value", "v").status == 0
    assert m() == {"a": "1"}
    assert build(b"k,v\n", "--format", "csv") == (0, "0\n", "")


@pytest.mark.parametrize(
    ("text", "words", "why"),
    [
        (b"", [], "standard input: no head"),
        (b"a,b\n1,2\n1,2,3\n", [], "line 3: 3 cells, and 2 columns in the head"),
        (b"a,b\n1,2\n\n1\n", [], "line 4: 1 cells"),
        (b"a,b,a\n", [], "line 1: two columns are named 'a'"),
        (b"a,b\n", ["--key", "c"], "line 1: there is no column 'c': there are a, b"),
        (b"a,b\n", ["--columns", "b,c"], "there is no column 'c'"),
        (b"a,b\n", ["--value", "c"], "there is no column 'c'"),
        (b'a,b\n1,"2\n', [], "line 2: unexpected end of data"),
        (b"a,b\n1,2\n1,\xff\n", [], "line 3: 'utf-8' codec"),
        (b"a,b\n1,2\n", ["--codec", "raw"], "line 2: "),
    ],
)
def test_csv_that_makes_no_sense(text, words, why, build, tmp_path):
    status, out, err = build(text, "--format", "csv", *words)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert why in err


# ---- msgpack -------------------------------------------------------------------------------------------------------


def test_msgpack(build, m, tmp_path, here):
    text = packed(["b", {"x": b"\0"}], ("a", 2.5))
    assert build(text, "--format", "msgpack") == (0, "2\n", "")
    assert m() == {"a": 2.5, "b": {"x": b"\0"}}
    (tmp_path / "x.msgpack").write_bytes(packed([b"\xff", 1], ["a", {7: [None]}]))
    assert here(tmp_path / "m", "build", tmp_path / "x.msgpack", "--bytes-keys") == (0, "2\n", "")
    assert m() == {b"a": {7: [None]}, b"\xff": 1}
    assert build(b"", "--format", "msgpack") == (0, "0\n", "")
    moment = msgpack.Timestamp(1, 2)
    assert build(packed(["a", moment]), "--format", "msgpack") == (0, "1\n", "")
    assert m() == {"a": moment}
    assert here(tmp_path / "m", "get", "a").out == '{"$repr": "Timestamp(seconds=1, nanoseconds=2)"}\n'


def test_msgpack_of_items_larger_than_what_is_read_at_once(build, m):
    big = [bytes([i]) * 1_700_000 for i in range(3)]
    assert build(packed(*[[str(i), data] for i, data in enumerate(big)]), "--format", "msgpack") == (0, "3\n", "")
    assert list(m().values()) == big


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (packed(["a", 1], ["b", "xyz"])[:-2], "item 2: ends in the middle of an item: 5 bytes are left over"),
        (packed(["a", 1], 7), "item 2: an item is an array of key and value, got 7"),
        (packed(["a", 1], ["b"]), "item 2: an item is an array"),
        (packed(["a", 1], [7, 1]), "item 2: a key is text or bytes"),
        (packed(["a", 1], [b"b", 1]), "item 2: this key is text and others are bytes"),
        (packed(["a", 1]) + b"\xc1", "item 2: no msgpack"),
        (packed(["a", 1]) + b"\x92\xa1b\xa1\xff", "item 2: no msgpack"),
        (packed(["a", 1]) + b"\x91" * 5000, "item 2: no msgpack"),
        (packed(["a", 1]) + b"\x92\xa1b\x81\x90\x01", "item 2: no msgpack"),
        (packed(["a", 1]) + b"\x92\xa1b\xdd\xff\xff\xff\xff", "item 2"),
    ],
)
def test_msgpack_that_makes_no_sense(text, why, build, m):
    assert build(b'["old", 1]').status == 0
    status, out, err = build(text, "--format", "msgpack")
    assert (status, out, err.count("\n")) == (1, "", 1), m()
    assert why in err
    assert m() == {"old": 1}


# ---- codecs, and what is there already -----------------------------------------------------------------------------


def test_codecs(build, m):
    assert build(b'["a", [1, 2.5]]\n', "--codec", "struct:<id", "--schema", "point") == (0, "1\n", "")
    assert m() == {"a": (1, 2.5)}
    assert build(b'["a", [3, 0]]\n') == (0, "1\n", "")  # that of the map
    assert m() == {"a": (3, 0.0)}
    said = build(b'["a", [3, 0]]\n', "--codec", "msgpack")
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert "struct:<id" in said.err
    assert "msgpack" in said.err
    said = build(b'["a", [3]]\n')
    assert (said.status, said.err.startswith("mmapds: standard input, line 1: codec 'struct:<id'")) == (1, True)
    assert m() == {"a": (3, 0.0)}


def test_text_in_the_codec_raw(build, m, here, tmp_path):
    assert build(b'["a", "gr\xc3\xb6"]\n["b", {"$bytes": "/w=="}]\n', "--codec", "raw") == (0, "2\n", "")
    assert m() == {"a": "grö".encode(), "b": b"\xff"}
    assert build(b'["a", "x"]\n') == (0, "1\n", "")
    assert m() == {"a": b"x"}
    assert build(b'["a", 7]\n').status == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--codec", "nonsense"], "'nonsense' is not known"),
        (["--codec", "pickle"], "pickle"),
        (["--codec", "struct:"], "no fields"),
        (["--metadata", "{"], "--metadata: "),
        (["--metadata", "NaN"], "--metadata: "),
        (["--key", "a"], "--key needs CSV, and standard input is read as json: --format csv"),
        (["--format", "csv", "--columns", "a", "--value", "b"], "and not both"),
        (["--format", "csv", "--delimiter", "::"], "must be one character"),
        (["--match", "a*"], "--match needs --redis"),
        (["--redis", "redis://x", "-"], "give FILE, or --redis, and not both"),
        (["--redis", "redis://x", "--format", "csv"], "and not both"),
        (["--redis", "redis://x", "--key", "k"], "and not both"),
    ],
)
def test_words_that_cannot_be_acted_on(words, why, build, tmp_path):
    before = list(tmp_path.iterdir())
    status, out, err = build(b'["a", 1]', *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert why in err
    assert list(tmp_path.iterdir()) == before


def test_memory_limits(build, m):
    text = b"".join(b'["%d", "%s"]\n' % (i * 7919 % 20_000, b"x" * 100) for i in range(20_000))
    assert build(text, "--memory-limit", "1MiB") == (0, "20000\n", "")
    assert list(m()) == sorted(map(str, range(20_000)))
    for limit in ("1023K", "0", "-1", "1T", "x", "1.5M"):
        assert build(b"", "--memory-limit", limit).status == 2


def test_durability(build, tmp_path):
    assert build(b'["a", 1]', "--durability", "power").status == 0
    with SnapshotMap(tmp_path / "m") as m:
        assert m.durability == "power"


# ---- another map ---------------------------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other"
    SnapshotMap.build(path, {"a": [1, 2], "b": [3, 4], "c": [5, 6]}, metadata={"x": 1}, schema="s")
    with SnapshotMap(path) as m, m.transaction() as txn:
        del txn["b"]
        txn.set("a", [7, 7], ttl=1000)
        txn.set("gone", [7, 7], ttl=1e-9)
    return path


def test_another_map_as_it_is(other, build, m, tmp_path):
    assert build(b'["old", 1]', "--schema", "s").status == 0
    said = build(b"", other, "--json")
    assert (said.status, said.err) == (0, "")
    assert m() == {"a": [7, 7], "c": [5, 6]}
    with SnapshotMap(tmp_path / "m") as copy:
        assert copy.metadata == {"x": 1}
        assert 0 < lifetime(copy, "a") <= 1000
        assert lifetime(copy, "c") is None


def test_another_map_with_changes(other, build, m, tmp_path):
    assert build(b"", other, "--codec", "struct:<2i", "--bytes-keys") == (0, "2\n", "")
    assert m() == {b"a": (7, 7), b"c": (5, 6)}
    with SnapshotMap(tmp_path / "m") as copy:
        assert copy.metadata == {"x": 1}
        assert 0 < lifetime(copy, b"a") <= 1000
        assert lifetime(copy, b"c") is None


def test_a_map_of_itself(other, here):
    said = here(other, "build", other)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert here(other, "build", other, "--metadata", '"new"') == (0, "2\n", "")
    with SnapshotMap(other) as m:
        assert (dict(m), m.metadata) == ({"a": [7, 7], "c": [5, 6]}, "new")


def test_what_is_no_map(tmp_path, build):
    (tmp_path / "folder").mkdir()
    assert build(b"", tmp_path / "folder") == (
        2,
        "",
        f"mmapds: {tmp_path / 'folder'}: a directory, and not that of a snapshot map\n",
    )
    assert build(b"", tmp_path / "missing") == (2, "", f"mmapds: {tmp_path / 'missing'}: No such file or directory\n")
    assert build(b"", tmp_path / "folder", "--key", "k").status == 2
    assert build(b"", tmp_path / "folder", "--format", "csv").status == 2


def test_a_writer_that_is_busy(build, m, tmp_path):
    assert build(b'["old", 1]').status == 0
    with SnapshotMap(tmp_path / "m") as other, other.transaction():
        said = build(b'["a", 1]')
        with pytest.raises(WriterBusy):
            SnapshotMap.build(tmp_path / "m", {})
    assert (said.status, said.out, said.err.count("\n")) == (1, "", 1)
    assert m() == {"old": 1}
