"""Pickle: refused wherever it was not asked for by an object, and its own round trips."""

from __future__ import annotations

import contextlib
import pathlib
import pickle
import sys
import threading
from typing import NamedTuple

import pytest
from roundtrip import round_trip

from mmapds import codecs
from mmapds.errors import CorruptionError, SchemaMismatch


class Point(NamedTuple):
    x: int
    y: complex


def pickles_that_import(module: str) -> list[bytes]:
    """Pickles, in every protocol, that import ``module`` the moment they are loaded."""
    by_global = f"c{module}\nVALUE\n.".encode()
    framed = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode() + b"\x8c\x05VALUE\x93."
    protocols = [
        bytes([0x80, number]) + f"c{module}\nVALUE\n.".encode() for number in range(2, pickle.HIGHEST_PROTOCOL + 1)
    ]
    return [by_global, framed, *protocols]


def test_r31_pickle_bytes_under_the_default_codec_are_refused_and_import_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "mmapds_r31_trap"
    sprung = tmp_path / "sprung"
    (tmp_path / f"{module}.py").write_text(f"open({str(sprung)!r}, 'w').close()\nVALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    default = codecs.resolve("msgpack")
    others = [codecs.resolve("struct:<q"), codecs.resolve("numpy:<M8[ns]"), codecs.resolve("raw")]
    assert default.name == "msgpack"
    for data in pickles_that_import(module):
        with pytest.raises(CorruptionError, match=f"'msgpack' .* {len(data)} bytes") as caught:
            default.decode(memoryview(data))
        if data[0] == 0x80:
            assert "look like a pickle" in str(caught.value)
        for codec in others:
            with contextlib.suppress(CorruptionError):
                codec.decode(memoryview(data))
        assert module not in sys.modules, f"{data!r} imported {module}"
        assert not sprung.exists(), f"{data!r} ran {module}"
    # The trap works: the codec that was asked for by name of class springs it.
    for data in pickles_that_import(module):
        sys.modules.pop(module, None)
        assert codecs.Pickle().decode(memoryview(data)) == 1
        assert sprung.exists(), "the trap did not spring, so this test proves nothing"
        sprung.unlink()
    sys.modules.pop(module, None)


def test_ordinary_pickles_are_refused_by_the_default_codec() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for value in (None, 1, "a", [1, 2], {"a": 1}, Point(1, 2), 2.5, b"", True):
            data = pickle.dumps(value, protocol)
            with pytest.raises(CorruptionError):
                codecs.Msgpack().decode(memoryview(data))


def test_pickle_is_never_chosen_by_text() -> None:
    for text in ("pickle", "pickle:", "pickle:5"):
        with pytest.raises(ValueError, match=r"mmapds\.codecs\.Pickle\(\)"):
            codecs.resolve(text)
    with pytest.raises(SchemaMismatch, match=r"mmapds\.codecs\.Pickle\(\)"):
        codecs.from_text("pickle")
    with pytest.raises(TypeError, match="pass an instance"):
        codecs.resolve(codecs.Pickle)


def test_pickle_round_trip() -> None:
    codec = codecs.resolve(codecs.Pickle())
    assert codec.name == "pickle"
    assert round_trip(codec, {"a": {1, 2}, 3: Point(1, 2j)}) == {"a": {1, 2}, 3: Point(1, 2j)}


@pytest.mark.parametrize("data", [b"", b"\x80\x05", b"\x80\x63.", b"\xff" * 9, b"0.", b"Ix\n."])
def test_pickle_refuses_broken_bytes(data: bytes) -> None:
    with pytest.raises(CorruptionError, match=f"'pickle' .* {len(data)} bytes"):
        codecs.Pickle().decode(memoryview(data))


def test_pickle_lets_a_missing_class_show() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        codecs.Pickle().decode(memoryview(b"cmmapds_no_such_module\nX\n."))
    assert "'pickle' decoded" in caught.value.__notes__[0]


@pytest.mark.parametrize("value", [lambda: 0, threading.Lock()], ids=["lambda", "lock"])
def test_pickle_says_what_it_cannot_encode(value) -> None:
    with pytest.raises(TypeError, match="'pickle' cannot encode"):
        codecs.Pickle().encode(value)
