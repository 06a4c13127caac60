"""Choosing and naming codecs: codecs of the user's own, texts, fingerprints, reopening."""

from __future__ import annotations

import doctest
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roundtrip import round_trip

from mmapds import codecs
from mmapds.codecs import _builtin
from mmapds.errors import CorruptionError, IncompatibleFormat, SchemaMismatch

ROOT = pathlib.Path(codecs.__file__).parents[2]
PLAIN = np.dtype([("id", "<i4"), ("name", "S5"), ("at", "<M8[ns]")])


# --- codecs of the user's own ----------------------------------------------------------------


class Json:
    def encode(self, value):
        return json.dumps(value).encode()

    def decode(self, data):
        return json.loads(bytes(data))


class Named(Json):
    name = "json v1"


class Views:
    name = "views"
    zero_copy = True

    def encode(self, value):
        return value

    def decode(self, data):
        return data[1:]

    def own(self, value):
        return bytes(value)


@given(st.dictionaries(st.text(), st.lists(st.integers())))
def test_object_round_trip(value) -> None:
    assert round_trip(codecs.resolve(Json()), value) == value


def test_object_names_and_defaults() -> None:
    plain, named = codecs.resolve(Json()), codecs.resolve(Named())
    assert (plain.name, plain.zero_copy, named.name) == ("object:Json", False, "object:json v1")
    value = object()
    assert plain.own(value) is value
    views = codecs.resolve(Views())
    assert (views.name, views.zero_copy) == ("object:views", True)
    assert views.own(views.decode(memoryview(b"abc"))) == b"bc"
    assert codecs.resolve(views) is views
    assert codecs.fingerprint(Named()).text == "object:json v1"


def test_object_value_error_means_corruption_and_others_pass() -> None:
    with pytest.raises(CorruptionError, match=r"'object:Json' .* 3 bytes: JSONDecodeError") as bad:
        codecs.resolve(Json()).decode(memoryview(b"{x}"))
    assert isinstance(bad.value.__cause__, json.JSONDecodeError)

    class Buggy(Json):
        def decode(self, data):
            raise AttributeError("a mistake")

    with pytest.raises(AttributeError, match="a mistake") as caught:
        codecs.resolve(Buggy()).decode(memoryview(b"1234"))
    assert "4 bytes" in caught.value.__notes__[0]


def test_object_must_encode_to_bytes() -> None:
    class Text(Json):
        def encode(self, value):
            return json.dumps(value)

    with pytest.raises(TypeError, match="bytes-like objects, got str"):
        codecs.resolve(Text()).encode(1)


@pytest.mark.parametrize("name", ["", "two\nlines", "tab\t", 5, b"bytes", "\ud800"])
def test_object_name_must_be_one_printable_line(name) -> None:
    codec = Json()
    codec.name = name
    with pytest.raises(ValueError, match="one line of printable text"):
        codecs.resolve(codec)


def test_object_that_hands_out_views_must_know_how_to_copy() -> None:
    codec = Json()
    codec.zero_copy = True
    with pytest.raises(TypeError, match="own"):
        codecs.resolve(codec)


@pytest.mark.parametrize("codec", [None, 5, b"raw", object(), ["raw"], Json, json])
def test_what_is_no_codec_is_refused(codec) -> None:
    with pytest.raises(TypeError, match="codec"):
        codecs.resolve(codec)


def test_a_module_can_be_a_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "encode", Json().encode, raising=False)
    monkeypatch.setattr(json, "decode", Json().decode, raising=False)
    assert codecs.resolve(json).name == "object:json"


# --- texts and fingerprints ------------------------------------------------------------------

# A file written by one release must open in the next: these may never change.
FINGERPRINTS = [
    ("raw", None, "raw", "13d13f150e5ec1cc1dddc59c28b3ac7e"),
    ("msgpack", None, "msgpack", "ed88a6850277deabab37928ea8f04efb"),
    ("msgpack", "point v2", "msgpack\npoint v2", "13260f0b2cf5fbe1e4d39642566a903e"),
    ("msgpack", "größe", "msgpack\ngröße", "0cb3c18e0b95410081ae8b14c2c30a33"),
    ("struct:=i i q", None, "struct:<2iq", "9a5612a4f4f8dcfe89ebc7cb3505f678"),
    (
        PLAIN,
        None,
        "numpy:[('id', '<i4'), ('name', '|S5'), ('at', '<M8[ns]')]",
        "1e82be6b8d3a1a1ccf81c6d333c19241",
    ),
    (codecs.Pickle(), None, "pickle", "8e4ed0f8791255e28ae65b314cb03d12"),
    (Named(), None, "object:json v1", "32eab1a4b800896a3c568831474121c2"),
]


@pytest.mark.parametrize(("codec", "schema", "text", "digest"), FINGERPRINTS)
def test_fingerprints_are_pinned(codec, schema, text: str, digest: str) -> None:
    found = codecs.fingerprint(codec, schema)
    assert (found.text, found.hash.hex()) == (text, digest)
    assert len(found.hash) == 16


def test_fingerprints_do_not_depend_on_the_process() -> None:
    code = (
        "from mmapds import codecs\n"
        "for codec in ('raw', 'struct:<iq', 'numpy:[(\"a\", \"<i4\")]'):\n"
        "    print(codecs.fingerprint(codec, 'é').hash.hex())\n"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONUTF8": "1"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = [codecs.fingerprint(c, "é") for c in ("raw", "struct:<iq", "numpy:[('a', '<i4')]")]
    assert seen == {"".join(f"{schema.hash.hex()}\n" for schema in here)}


def test_empty_schema_is_none_and_schema_must_be_text() -> None:
    assert codecs.fingerprint("raw", "") == codecs.fingerprint("raw")
    assert codecs.fingerprint("raw", "a") != codecs.fingerprint("raw")
    with pytest.raises(TypeError, match="schema must be a str or None, got bytes"):
        codecs.fingerprint("raw", b"a")
    with pytest.raises(ValueError, match="surrogates"):
        codecs.fingerprint("raw", "\ud800")


@pytest.mark.parametrize("text", ["nonsense", "", "RAW", "raw ", "raw:", "msgpack:strict", "json", "pickle2"])
def test_unknown_texts(text: str) -> None:
    with pytest.raises(ValueError, match="is not known"):
        codecs.resolve(text)
    with pytest.raises(IncompatibleFormat, match="knows no such codec"):
        codecs.from_text(text)


@pytest.mark.parametrize("text", ["struct:iq", "struct:<ii", "struct:< i", "numpy:float64", "numpy:\0"])
def test_a_stored_text_must_be_canonical(text: str) -> None:
    assert codecs.resolve(text).name != text
    with pytest.raises(IncompatibleFormat, match="it would be written"):
        codecs.from_text(text)


@given(st.text(max_size=40) | st.text("abcdefiOSUVMm<>|=0123456789[]()'", max_size=8))
def test_any_stored_text_is_a_codec_or_an_error_of_ours(text: str) -> None:
    for candidate in (text, f"struct:{text}", f"numpy:{text}", f"object:{text}"):
        try:
            codec = codecs.from_text(candidate)
        except (IncompatibleFormat, SchemaMismatch):
            pass
        else:
            assert codec.name == candidate.partition("\n")[0]


def test_from_text_reads_the_first_line() -> None:
    assert codecs.from_text("struct:<iq\nraw\npickle").name == "struct:<iq"


def test_reopen_takes_what_is_left_out_from_the_file() -> None:
    assert codecs.reopen("raw").name == "raw"
    assert codecs.reopen("raw\nv1").name == "raw"
    assert codecs.reopen("raw\nv1", schema="v1").name == "raw"
    assert codecs.reopen("raw", schema="").name == "raw"
    assert codecs.reopen("struct:<2i\nv1", "struct:=i i").name == "struct:<2i"
    assert codecs.reopen("object:json v1\nv1", Named()).name == "object:json v1"
    pickled = codecs.Pickle()
    assert codecs.reopen("pickle", pickled) is pickled


@pytest.mark.parametrize(
    ("text", "codec", "schema", "shown"),
    [
        ("msgpack", "raw", None, ["'msgpack'", "'raw'", "/x_sync"]),
        ("struct:<iq", "struct:<qi", None, ["'struct:<iq'", "'struct:<qi'"]),
        ("numpy:<f8", np.dtype("f4"), None, ["'numpy:<f8'", "'numpy:<f4'"]),
        ("raw\nv1", None, "v2", ["'v1'", "'v2'", "/x_sync"]),
        ("raw", None, "v2", ["''", "'v2'"]),
        ("raw\nv1", None, "", ["'v1'", "''"]),
        ("pickle", "msgpack", None, ["'pickle'", "'msgpack'"]),
        ("msgpack", codecs.Pickle(), None, ["'pickle'", "'msgpack'"]),
        ("object:json v1", Json(), None, ["'object:json v1'", "'object:Json'"]),
        ("object:json v1", None, None, ["'json v1'"]),
        ("pickle", None, None, ["Pickle()"]),
    ],
)
def test_reopen_shows_both_when_they_differ(text: str, codec, schema, shown: list[str]) -> None:
    with pytest.raises(SchemaMismatch) as caught:
        codecs.reopen(text, codec, schema, where="/x_sync")
    missing = [part for part in shown if part not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


def test_numpy_is_imported_only_when_it_is_used() -> None:
    code = (
        "import sys\n"
        "from mmapds import codecs\n"
        "for codec in ('raw', 'msgpack', 'struct:<iq'):\n"
        "    codecs.fingerprint(codec)\n"
        "assert 'numpy' not in sys.modules, 'numpy was imported'\n"
        "sys.modules['numpy'] = None\n"
        "try:\n"
        "    codecs.resolve('numpy:<f8')\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "needs numpy, which is not installed" in result.stdout


@pytest.mark.parametrize("module", [codecs, _builtin])
def test_examples_in_the_docstrings(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
