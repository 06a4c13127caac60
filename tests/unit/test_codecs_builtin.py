"""raw, msgpack and struct: round trips, what is copied, hostile bytes and values."""

from __future__ import annotations

import array
import struct
import threading

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roundtrip import round_trip, same, stored

from mmapds import codecs
from mmapds.codecs import _builtin
from mmapds.errors import CorruptionError

# --- raw -------------------------------------------------------------------------------------


@given(st.binary())
def test_raw_round_trip(data: bytes) -> None:
    raw = codecs.resolve("raw")
    assert bytes(round_trip(raw, data)) == data
    assert bytes(raw.encode(memoryview(bytearray(data)))) == data


def test_raw_decode_is_a_read_only_view_of_the_same_memory() -> None:
    memory = bytearray(b"first")
    view = codecs.Raw().decode(memoryview(memory))
    assert view.readonly
    memory[:] = b"other"
    assert bytes(view) == b"other", "decode copied"
    with pytest.raises(BufferError):
        memory.append(0)  # the view holds the memory in place


def test_raw_own_stands_alone() -> None:
    memory = bytearray(b"first")
    own = codecs.Raw().own(codecs.Raw().decode(memoryview(memory)))
    memory[:] = b"other"
    assert (type(own), own) == (bytes, b"first")
    memory.append(0)  # nothing is held


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (array.array("d", [1.0, 2.0]), struct.pack("=2d", 1, 2)),
        (np.arange(6, dtype=">i4").reshape(2, 3), struct.pack(">6i", *range(6))),
        (np.zeros((0, 4)), b""),
        (np.zeros(2, [("a", "<i2"), ("b", "<f4")]), bytes(12)),
        (memoryview(b"abcdef")[1:4], b"bcd"),
    ],
    ids=["array", "numpy-2d-big-endian", "numpy-empty", "numpy-struct", "slice"],
)
def test_raw_takes_any_contiguous_buffer(value, expected: bytes) -> None:
    data = codecs.Raw().encode(value)
    view = memoryview(data)
    assert (bytes(data), view.ndim, view.format) == (expected, 1, "B")


def test_raw_encode_does_not_copy() -> None:
    source = array.array("d", [1.0, 2.0])
    data = codecs.Raw().encode(source)
    source[0] = 3.0
    assert bytes(data) == struct.pack("=2d", 3, 2), "encode copied"


@pytest.mark.parametrize("value", ["text", 5, None, [1, 2], {"a": 1}])
def test_raw_refuses_what_is_no_buffer(value) -> None:
    with pytest.raises(TypeError, match=f"'raw' .*{type(value).__name__}"):
        codecs.Raw().encode(value)


@pytest.mark.parametrize("value", [memoryview(b"abcdef")[::2], np.zeros((3, 4)).T])
def test_raw_refuses_strided_views(value) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        codecs.Raw().encode(value)


# --- msgpack ---------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
KEYS = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
MSGPACK = codecs.Msgpack()  # one for all examples: a used packer must not remember anything


@given(VALUES)
def test_msgpack_round_trip(value) -> None:
    back = round_trip(MSGPACK, value)
    assert same(back, value), (back, value)


@given(st.binary(max_size=64))
def test_msgpack_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        value = MSGPACK.decode(memoryview(data))
    except CorruptionError:
        return
    again = round_trip(MSGPACK, value)
    assert same(again, value), (data, value, again)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "incomplete"),
        (b"\x92\x01", "incomplete"),
        (b"\x93\x01", "exceeds max_array_len"),
        (b"\x01\x02", "ExtraData"),
        (b"\xc1", "FormatError"),
        (b"\xa1\xff", "UnicodeDecodeError"),
        (b"\x91" * 5000, "StackError"),
        (b"\xdd\xff\xff\xff\xff", "exceeds max_array_len"),
        (b"\xdf\xff\xff\xff\xff", "exceeds max_map_len"),
        (b"\xc6\xff\xff\xff\xff", "exceeds max_bin_len|incomplete"),
        (b"\xdb\xff\xff\xff\xff", "exceeds max_str_len|incomplete"),
        (b"\xc7\x03\xff\x00\x00\x00", "(?i)timestamp"),
        (b"\x81\x80\x01", "unhashable"),  # a map as a key
        (b"\x81\x91\x80\x01", "unhashable"),  # an array that holds a map as a key
    ],
)
def test_msgpack_refuses_hostile_bytes(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptionError, match=reason) as caught:
        MSGPACK.decode(memoryview(data))
    assert f"{len(data):,} bytes" in str(caught.value)
    assert "verify" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "error", "reason"),
    [
        ({1, 2}, TypeError, "set|{1, 2}"),
        (1j, TypeError, "complex|1j"),
        ([object()], TypeError, "object"),
        (2**64, ValueError, "out of range"),
        (-(2**63) - 1, ValueError, "out of range"),
        ("\ud800", ValueError, "surrogates"),
    ],
)
def test_msgpack_says_what_it_cannot_encode(value, error: type, reason: str) -> None:
    codec = codecs.Msgpack()
    with pytest.raises(error, match=rf"'msgpack' cannot encode .*({reason})"):
        codec.encode([b"already packed", value])
    assert codec.decode(stored(codec, [1])) == [1], "the failure left something behind"


def nested(depth: int):
    value = None
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.skipif(
    msgpack.Packer.__module__ == "msgpack.fallback",
    reason="msgpack without its C module is bounded by the recursion limit",
)
def test_msgpack_reads_back_the_deepest_value_it_writes() -> None:
    deepest = nested(1024)
    data = stored(MSGPACK, deepest)
    assert MSGPACK.encode(MSGPACK.decode(data)) == bytes(data)
    with pytest.raises(ValueError, match="recursion"):
        MSGPACK.encode(nested(1025))


class Reentrant(dict):
    """A dict that uses the codec while the codec packs it."""

    def __init__(self, codec, content) -> None:
        super().__init__(content)
        self.codec = codec
        self.inner = None

    def items(self):
        self.inner = self.codec.encode(["inner", "x" * 100])
        return super().items()


def test_msgpack_encode_may_be_reentered() -> None:
    codec = codecs.Msgpack()
    codec.encode(0)  # from here on a packer lies idle
    value = Reentrant(codec, {"outer": 1})
    outer = codec.encode([b"before", value, b"after"])
    assert msgpack.unpackb(outer) == [b"before", {"outer": 1}, b"after"]
    assert msgpack.unpackb(value.inner) == ["inner", "x" * 100]
    assert len(codec._idle) == 2


def test_msgpack_encode_from_many_threads() -> None:
    codec = codecs.Msgpack()
    wrong: list[object] = []

    def work(number: int) -> None:
        for turn in range(300):
            value = [number, turn, {"k": "v" * number}]
            data = codec.encode(Reentrant(codec, {"k": value}))
            if msgpack.unpackb(data) != {"k": value}:
                wrong.append((number, turn, data))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_msgpack_does_not_keep_a_large_buffer() -> None:
    codec = codecs.Msgpack()
    codec.encode(bytes(_builtin._PACKER_KEEPS - 100))
    assert len(codec._idle) == 1, "a packer of modest size is used again"
    codec.encode(bytes(_builtin._PACKER_KEEPS + 1))
    assert codec._idle == []


# --- struct ----------------------------------------------------------------------------------

FORMATS = st.builds(
    lambda order, fields: order + " ".join(fields),
    st.sampled_from(["", "@", "=", "<", ">", "!"]),
    st.lists(
        st.builds(
            lambda count, code: f"{count}{code}",
            st.sampled_from(["", "", "0", "1", "02", "3"]),
            st.sampled_from("xcbB?hHiIlLqQefdsp"),
        ).filter(lambda field: field != "0p"),
        min_size=1,
        max_size=8,
    ),
)


@given(FORMATS, st.binary(min_size=400, max_size=400))
def test_struct_name_means_the_same_layout_as_the_format(fmt: str, noise: bytes) -> None:
    plain = struct.Struct(fmt)
    if not plain.unpack(bytes(plain.size)):
        with pytest.raises(ValueError, match="no fields"):
            codecs.Struct(fmt)
        return
    codec = codecs.Struct(fmt)
    again = codecs.from_text(codec.name)
    data = memoryview(noise)[: plain.size]
    expected = plain.unpack(data)
    assert (codec.size, again.name) == (plain.size, codec.name)
    assert codec._fields == len(expected), codec.name
    for which in (codec, again):
        assert same(which.decode(data), expected), (fmt, which.name)
        assert which.encode(expected) == plain.pack(*expected), (fmt, which.name)


@pytest.mark.parametrize(
    ("fmt", "name"),
    [
        ("<iq", "struct:<iq"),
        ("iq", "struct:@iq"),
        ("=i i", "struct:<2i"),
        ("!2h3hB", "struct:>5hB"),
        ("<3s3s4p", "struct:<3s3s4p"),
        ("bxxi0q", "struct:@b2xi0q"),
        ("<i0ii", "struct:<i0ii"),
    ],
)
def test_struct_names(fmt: str, name: str) -> None:
    assert codecs.Struct(fmt).name == name
    assert codecs.Struct(name.removeprefix("struct:")).name == name


def test_struct_takes_a_bare_value_for_one_field() -> None:
    codec = codecs.resolve("struct:<q")
    assert codec.encode(5) == codec.encode((5,)) == codec.encode([5]) == struct.pack("<q", 5)
    assert codec.decode(stored(codec, 5)) == (5,)
    assert round_trip(codecs.resolve("struct:3s"), b"ab") == (b"ab\0",)


@pytest.mark.parametrize("length", [0, 11, 13, 24])
def test_struct_refuses_another_size(length: int) -> None:
    with pytest.raises(CorruptionError, match=f"'struct:<iq' .* {length} bytes: .*12 bytes"):
        codecs.resolve("struct:<iq").decode(memoryview(bytes(length)))


@pytest.mark.parametrize(
    ("fmt", "value", "error", "reason"),
    [
        ("<iq", 5, TypeError, "tuple of 2 fields, got int"),
        ("<iq", (1,), ValueError, "expected 2"),
        ("<b", 200, ValueError, "-128"),
        ("<b", 1.5, ValueError, "integer"),
        ("<f", 1e300, ValueError, "float"),
        ("<b3s", (1, b"four"), ValueError, "room for 3 bytes in field 1, got 4"),
        ("<3p", b"abc", ValueError, "room for 2 bytes in field 0, got 3"),
        ("<1p", b"a", ValueError, "room for 0 bytes"),
        ("<300p", bytes(256), ValueError, "room for 255 bytes"),
    ],
)
def test_struct_says_what_it_cannot_encode(fmt, value, error: type, reason: str) -> None:
    with pytest.raises(error, match=reason):
        codecs.Struct(fmt).encode(value)


@pytest.mark.parametrize("fmt", ["", "<", "y", "4", "< P", "<3x", " <i", "9" * 30 + "i", "é", "<i0p"])
def test_struct_refuses_formats(fmt: str) -> None:
    with pytest.raises(ValueError, match="struct format"):
        codecs.resolve(f"struct:{fmt}")
