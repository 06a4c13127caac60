"""Synchronizer, the default protocol: what each public call returns and raises in one process."""

from __future__ import annotations

import gc
import inspect
import os
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import syncfiles

import mmapds
from mmapds import Closed, NotInitialised, ReadResult, Synchronizer, WriteResult, codecs


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "value")


@pytest.fixture
def s(prefix: str) -> Iterator[Synchronizer]:
    with Synchronizer(prefix, codec="raw") as handle:
        yield handle
    with Synchronizer(prefix, mode="readonly") as handle:
        handle.check()


# ---- the surface ---------------------------------------------------------------------------------------------------


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_the_public_names_of_a_handle_and_its_results_are_exactly_these(s: Synchronizer) -> None:
    s.write_bytes(b"x")
    assert public(s) == {
        "check", "close", "codec", "durability", "load", "mode", "prefix", "read", "slot", "version", "wait", "write",
        "write_bytes",
    }  # fmt: skip
    with s.read() as r:
        assert public(r) == {"copied", "data", "release", "switched", "value", "version"}
    assert public(s.write_bytes(b"y")) == {"reset", "size"}


def test_the_parameters_are_exactly_these() -> None:
    parameters = inspect.signature(Synchronizer.__init__).parameters
    assert list(parameters) == [
        "self", "prefix", "mode", "protocol", "codec", "schema", "durability", "populate", "verify", "checksum",
    ]  # fmt: skip
    assert {name for name, parameter in parameters.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY} == set(
        list(parameters)[2:]
    )
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert defaults | {"mode": "shared", "protocol": "mmapds", "populate": False, "verify": True} == defaults


@pytest.mark.parametrize("thing", [Synchronizer, ReadResult, WriteResult])
def test_everything_public_is_documented(thing: type) -> None:
    assert thing.__doc__
    for name in public(thing) - {"size", "reset", "slot", "version", "switched", "copied"}:
        assert getattr(thing, name).__doc__, f"{thing.__name__}.{name} has no docstring"


# ---- write and read ------------------------------------------------------------------------------------------------


def test_what_was_written_is_read_and_the_version_grows_by_one(s: Synchronizer) -> None:
    assert s.version == 0
    for n in range(1, 20):
        assert tuple(s.write_bytes(b"%d" % n)) == (len(b"%d" % n), False)
        assert s.version == n
        with s.read() as r:
            assert bytes(r.data) == b"%d" % n
            assert r.version == n
            assert not r.copied


def test_a_write_result_is_a_size_and_whether_a_reader_was_in_the_way(s: Synchronizer) -> None:
    result = s.write_bytes(b"abc")
    assert (result.size, result.reset) == (3, False)
    size, reset = result
    assert (size, reset) == (3, False)
    assert repr(result) == "WriteResult(size=3, reset=False)"
    assert result == s.write_bytes(b"def")
    assert result != s.write_bytes(b"de")
    assert result != (3, False)
    with pytest.raises(AttributeError):
        result.size = 4  # type: ignore[misc]


@pytest.mark.parametrize("data", [b"", b"x", bytearray(b"mutable"), memoryview(b"a view"), b"\0" * 4096, b"p" * 70_000])
def test_every_bytes_like_value_comes_back_equal(s: Synchronizer, data: Any) -> None:
    assert s.write_bytes(data).size == len(data)
    with s.read() as r:
        assert r.data == data
        assert len(r) == len(data)


def test_sizes_around_page_and_copy_limits(s: Synchronizer) -> None:
    for size in (0, 1, 7, 8, 4095, 4096, 4097, 8192, 65535, 65536, 65537, 1 << 20, 5, (1 << 20) + 1, 0):
        value = os.urandom(size)
        s.write_bytes(value)
        with s.read() as r:
            assert bytes(r.data) == value, f"{size} bytes"


def test_a_buffer_that_is_not_contiguous_or_not_bytes_is_refused(s: Synchronizer) -> None:
    s.write_bytes(b"before")
    with pytest.raises(BufferError):
        s.write_bytes(memoryview(b"abcdef")[::2])
    for wrong in ("text", 5, None, object()):
        with pytest.raises(TypeError):
            s.write_bytes(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        s.write_bytes(b"x", grace="long")  # type: ignore[arg-type]
    assert bytes(s.load()) == b"before"
    assert s.version == 1


def test_a_value_that_cannot_be_encoded_changes_nothing(prefix: str) -> None:
    with Synchronizer(prefix) as s:
        s.write([1])
        before = syncfiles.snapshot(prefix)
        with pytest.raises((TypeError, ValueError)):
            s.write(object())
        assert syncfiles.snapshot(prefix) == before
        assert s.load() == [1]


def test_data_is_a_read_only_view_and_not_a_copy(s: Synchronizer) -> None:
    s.write_bytes(b"abcd")
    with s.read() as r:
        view = r.data
        assert isinstance(view, memoryview)
        assert view.readonly
        assert (view.format, view.ndim, view.nbytes) == ("B", 1, 4)
        with pytest.raises(TypeError):
            view[0] = 1
        syncfiles.poke(syncfiles.data(s.prefix, 1), 4096, b"A")  # zero-copy: what is in the file is what is seen
        assert bytes(view) == b"Abcd"
        syncfiles.poke(syncfiles.data(s.prefix, 1), 4096, b"a")
        view.release()


@pytest.mark.parametrize(
    ("codec", "value", "stored"),
    [
        ("raw", b"bytes", b"bytes"),
        ("msgpack", {"a": [1, None, 2.5, "x", b"y"]}, None),
        ("struct:<iq", (-1, 1 << 40), struct.pack("<iq", -1, 1 << 40)),
        (codecs.Pickle(), {1, 2, 3}, None),
    ],
)
def test_value_decodes_what_write_encoded(prefix: str, codec: Any, value: Any, stored: bytes | None) -> None:
    with Synchronizer(prefix, codec=codec) as s:
        s.write(value)
        with s.read() as r:
            assert r.value == value
            assert bytes(r.data) == (stored if stored is not None else s.codec.encode(value))
        assert s.load() == value


def test_numpy_values_are_read_only_arrays_over_the_mapped_bytes(prefix: str) -> None:
    numpy = pytest.importorskip("numpy")
    with Synchronizer(prefix, codec=numpy.dtype("<f4")) as s:
        s.write(numpy.arange(1000, dtype="<f4"))
        with s.read() as r:
            array = r.value
            assert array.dtype == numpy.dtype("<f4")
            assert not array.flags.writeable
            assert not array.flags.owndata
            assert (array == numpy.arange(1000)).all()
        loaded = s.load()
        assert loaded.base is None or isinstance(loaded.base, bytes), "load() hands out a copy that stands alone"
        assert not loaded.flags.writeable


def test_a_codec_object_of_the_users_own(prefix: str) -> None:
    class Upper:
        name = "upper"

        def encode(self, value: str) -> bytes:
            return value.upper().encode()

        def decode(self, data: memoryview) -> str:
            return bytes(data).decode()

    with Synchronizer(prefix, codec=Upper()) as s:
        s.write("shout")
        assert s.load() == "SHOUT"
    with pytest.raises(mmapds.SchemaMismatch, match="upper"):
        Synchronizer(prefix)
    with Synchronizer(prefix, codec=Upper()) as s:
        assert s.load() == "SHOUT"


# ---- switched, load ------------------------------------------------------------------------------------------------


def test_switched_says_whether_this_handle_read_another_version_before(s: Synchronizer) -> None:
    s.write_bytes(b"1")
    assert [s.read().switched, s.read().switched] == [True, False]
    s.write_bytes(b"1")
    assert [s.read().switched, s.read().switched] == [True, False]
    s.write_bytes(b"2")
    s.load()
    assert not s.read().switched
    with Synchronizer(s.prefix) as other:
        assert other.read().switched
        assert not s.read().switched


def test_load_decodes_once_for_each_version_and_leaves_no_pin(prefix: str) -> None:
    with Synchronizer(prefix) as s:
        s.write([1])
        first = s.load()
        assert first == [1]
        assert s.load() is first
        with s.read() as r:
            assert r.value == [1]
            assert r.value is not first
        assert s.load() is first
        s.write([1])
        second = s.load()
        assert second == [1]
        assert second is not first
        assert s.load() is second
        assert syncfiles.pins(prefix) == {}
        assert s._pinned == 0


@pytest.mark.parametrize("codec", ["raw", "numpy:<i8"])
def test_load_of_a_zero_copy_codec_stands_alone(prefix: str, codec: str) -> None:
    if codec != "raw":
        pytest.importorskip("numpy")
    with Synchronizer(prefix, codec=codec) as s:
        s.write_bytes(bytes(range(16)))
        value = s.load()
        assert s.load() is value
        assert syncfiles.pins(prefix) == {}
        for n in range(4):
            s.write_bytes(bytes([n]) * 16)
        assert bytes(value) == bytes(range(16))


def test_load_default_is_for_a_value_that_was_never_published(s: Synchronizer) -> None:
    fallback = object()
    assert s.load(default=fallback) is fallback
    assert s.load(None) is None
    assert s.load(default=None) is None
    with pytest.raises(NotInitialised, match="nothing has been published"):
        s.load()
    s.write_bytes(b"now")
    assert bytes(s.load(default=fallback)) == b"now"


def test_what_does_not_decode_is_said_at_each_load_and_leaves_no_pin(prefix: str) -> None:
    with Synchronizer(prefix) as s:
        s.write_bytes(b"\xc1 is not msgpack")
        for _ in range(3):
            with pytest.raises(mmapds.CorruptionError):
                s.load()
        with s.read() as r:
            assert bytes(r.data) == b"\xc1 is not msgpack"
            with pytest.raises(mmapds.CorruptionError):
                _ = r.value
        gc.collect()
        assert syncfiles.pins(prefix) == {}
        s.write("good")
        assert s.load() == "good"


def test_reading_before_the_first_write_is_not_initialised(s: Synchronizer) -> None:
    for _ in range(2):
        with pytest.raises(NotInitialised, match="write"):
            s.read()
    assert s.version == 0
    assert syncfiles.pins(s.prefix) == {}


# ---- the end -------------------------------------------------------------------------------------------------------


def test_close_is_idempotent_and_then_every_call_raises_closed(prefix: str) -> None:
    s = Synchronizer(prefix, codec="raw")
    s.write_bytes(b"x")
    s.read().release()
    s.close()
    s.close()
    with Synchronizer(prefix) as other:
        assert bytes(other.load()) == b"x"
    calls = [
        s.read, s.load, s.wait, lambda: s.version, lambda: s.write(b""), lambda: s.write_bytes(b""), s.__enter__,
        lambda: s.load(default=1), lambda: s.wait(timeout=0), lambda: s.wait(newer_than=0),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(Closed, match="closed"):
            call()
    s.close()
    assert isinstance(Closed("x"), ValueError)


def test_a_with_block_closes_whatever_happens(prefix: str) -> None:
    with pytest.raises(ZeroDivisionError), Synchronizer(prefix) as s:
        raise ZeroDivisionError
    with pytest.raises(Closed):
        s.read()
    assert not syncfiles.locked(syncfiles.sync(prefix), 0, 0)


def test_an_unclosed_handle_warns_and_gives_everything_back(prefix: str) -> None:
    s = Synchronizer(prefix)
    s.write(1)
    s.read().release()
    before = len(os.listdir("/proc/self/fd"))
    handles = [s]
    del s
    with pytest.warns(ResourceWarning, match="unclosed <Synchronizer .*value"):
        handles.clear()
    assert len(os.listdir("/proc/self/fd")) < before
    assert not syncfiles.locked(syncfiles.sync(prefix), 0, 0), syncfiles.state(prefix)


def test_a_handle_leaves_no_descriptor_and_no_mapping(prefix: str) -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(prefix)

    before = len(os.listdir("/proc/self/fd"))
    for mode in ("shared", "readonly", "private"):
        with Synchronizer(prefix, mode=mode, codec="msgpack") as s:  # type: ignore[arg-type]
            if mode == "shared":
                s.write(list(range(10_000)))
                s.write(list(range(10_000)))
            assert s.load() == list(range(10_000))
        del s
        gc.collect()
        assert mappings() == 0, mode
        assert len(os.listdir("/proc/self/fd")) == before, mode


def test_repr_says_where_what_and_whether(prefix: str) -> None:
    s = Synchronizer(prefix)
    assert repr(s) == f"<Synchronizer {prefix} shared version 0>"
    s.write(1)
    assert repr(s) == f"<Synchronizer {prefix} shared version 1>"
    r = s.read()
    assert repr(r) == "<ReadResult version 1 1 bytes>"
    r.release()
    assert repr(r) == "<ReadResult version 1 released>"
    s.close()
    assert repr(s) == f"<Synchronizer {prefix} shared closed>"
    assert repr(r) == "<ReadResult version 1 released>"


def test_handles_and_results_cannot_be_pickled(s: Synchronizer) -> None:
    s.write_bytes(b"x")
    with s.read() as r:
        for thing in (s, r):
            with pytest.raises((TypeError, pickle.PicklingError)):
                pickle.dumps(thing)


def test_a_result_cannot_be_made_or_subclassed_by_hand() -> None:
    with pytest.raises(TypeError):
        type("Mine", (ReadResult,), {})
    with pytest.raises(TypeError):
        type("Mine", (WriteResult,), {})
