"""The numpy codec: canonical texts, views without copies, hostile texts and lengths."""

from __future__ import annotations

import numpy as np
import pytest
from roundtrip import round_trip, stored

from mmapds import codecs
from mmapds.errors import CorruptionError, IncompatibleFormat

PLAIN = np.dtype([("id", "<i4"), ("name", "S5"), ("at", "<M8[ns]")])
DTYPES = {
    "f8": (np.dtype("f8"), "<f8"),
    "big-endian": (np.dtype(">i2"), ">i2"),
    "bool": (np.dtype(bool), "|b1"),
    "text": (np.dtype("U3"), "<U3"),
    "time": (np.dtype("M8[25s]"), "<M8[25s]"),
    "fields": (PLAIN, "[('id', '<i4'), ('name', '|S5'), ('at', '<M8[ns]')]"),
    "shape": (np.dtype(("<f8", (3, 2))), "('<f8', (3, 2))"),
    "nested": (
        np.dtype([("p", [("x", "<f4"), ("y", "<f4")], (2,)), ("é'", "u1")]),
        "[('p', [('x', '<f4'), ('y', '<f4')], (2,)), (\"\\xe9'\", '|u1')]",
    ),
    "aligned": (
        np.dtype([("a", "u1"), ("b", "<i4")], align=True),
        "{'names': ['a', 'b'], 'formats': ['|u1', '<i4'], 'offsets': [0, 4], 'itemsize': 8}",
    ),
    "overlap": (
        np.dtype({"names": ["w", "b"], "formats": ["<u4", "u1"], "offsets": [0, 0]}),
        "{'names': ['w', 'b'], 'formats': ['<u4', '|u1'], 'offsets': [0, 0], 'itemsize': 4}",
    ),
}
every_dtype = pytest.mark.parametrize(("dtype", "text"), DTYPES.values(), ids=DTYPES)


@every_dtype
def test_numpy_canonical_text_is_pinned_and_gives_the_dtype_back(dtype, text: str) -> None:
    codec = codecs.resolve(dtype)
    assert codec.name == f"numpy:{text}"
    assert codec.name.isascii()
    again = codecs.from_text(codec.name)
    assert (again.name, again.dtype) == (codec.name, dtype)
    assert codecs.resolve(codec.name).name == codec.name


@every_dtype
def test_numpy_round_trip_without_a_copy(dtype, text: str) -> None:
    codec = codecs.resolve(dtype)
    value = np.zeros(4, dtype)
    memory = bytearray(codec.encode(value))
    rng = np.random.default_rng(7)
    if dtype.kind in "if":  # any bytes are a value of these
        memory[:] = rng.bytes(len(memory))
    back = codec.decode(memoryview(memory))
    assert (back.shape, back.dtype) == (value.shape, value.dtype)
    assert back.tobytes() == bytes(memory)
    assert not back.flags.writeable
    assert not back.flags.owndata
    assert np.shares_memory(back, np.frombuffer(memory, np.uint8)), "decode copied"
    with pytest.raises(BufferError):
        memory.append(0)  # the array holds the memory in place
    with pytest.raises(ValueError, match="WRITEABLE"):
        back.flags.writeable = True
    own = codec.own(back)
    assert not np.shares_memory(own, back)
    assert (own.tobytes(), own.dtype, own.shape) == (back.tobytes(), back.dtype, back.shape)
    assert not own.flags.writeable
    del back
    memory.append(0)  # own holds nothing


def test_numpy_values_survive() -> None:
    rows = np.array([(1, b"one", "2024-01-01"), (2, b"two", "NaT")], PLAIN)
    back = round_trip(codecs.resolve(PLAIN), rows)
    assert back.tolist() == rows.tolist()
    assert back["name"].tolist() == [b"one", b"two"]


def test_numpy_encode_copies_only_what_is_not_contiguous() -> None:
    codec = codecs.resolve("numpy:<i4")
    value = np.arange(10, dtype="<i4")
    direct = codec.encode(value)
    assert np.shares_memory(np.frombuffer(direct, "u1"), value)
    assert (direct.format, direct.ndim) == ("B", 1)
    assert codec.decode(stored(codec, value[::-2])).tolist() == [9, 7, 5, 3, 1]
    assert codec.decode(stored(codec, value[:0])).tolist() == []
    records = value.view([("a", "<i4")]).view(np.recarray)
    assert codecs.resolve(np.dtype([("a", "<i4")])).encode(records).nbytes == 40


def test_numpy_copies_carry_the_padding_of_the_source_and_nothing_of_the_heap() -> None:
    codec = codecs.resolve(np.dtype([("a", "u1"), ("b", "<i4")], align=True))
    source = np.frombuffer(bytes(range(8)) * 2000, codec.dtype)
    for turn in range(20):
        scratch = np.full(8000, 0xAA, "u1")  # what a careless copy would pick up
        del scratch
        assert codec.own(source).tobytes() == bytes(range(8)) * 2000, turn
        assert bytes(codec.encode(source[::2])) == bytes(range(8)) * 1000, turn


@pytest.mark.parametrize(
    ("value", "error", "reason"),
    [
        ([1.0, 2.0], TypeError, "got list"),
        (np.float64(1), TypeError, "got float64"),
        (np.zeros(2, "<f4"), TypeError, "got float32"),
        (np.zeros(2, ">f8"), TypeError, "got >f8"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), TypeError, "mask"),
        (np.zeros((2, 2)), ValueError, r"shape \(n\), got \(2, 2\)"),
        (np.array(1.0), ValueError, r"shape \(n\), got \(\)"),
    ],
)
def test_numpy_says_what_it_cannot_encode(value, error: type, reason: str) -> None:
    with pytest.raises(error, match=reason):
        codecs.resolve(np.float64).encode(value)


def test_numpy_shape_of_the_dtype_is_required() -> None:
    codec = codecs.resolve(np.dtype(("<f8", (3,))))
    assert round_trip(codec, np.ones((2, 3))).shape == (2, 3)
    for value in (np.ones(6), np.ones((3, 2)), np.ones((1, 2, 3))):
        with pytest.raises(ValueError, match=r"\(n, 3\)"):
            codec.encode(value)


@pytest.mark.parametrize("length", [1, 7, 9, 23])
def test_numpy_refuses_a_length_that_is_no_multiple(length: int) -> None:
    with pytest.raises(CorruptionError, match=f"'numpy:<f8' .* {length} bytes: .*multiple"):
        codecs.resolve("numpy:<f8").decode(memoryview(bytes(length)))


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype(object),
        np.dtype([("a", "<i4"), ("b", object)]),
        np.dtype(("O", (3,))),
        np.dtype([(("title", "a"), "<i4")]),
        np.dtype({"names": ["a", ""], "formats": ["<i4", "<i4"]}),
        np.dtype("S0"),
        np.dtype([]),
        np.str_,
        np.object_,
    ],
    ids=str,
)
def test_numpy_refuses_dtypes_that_no_file_can_keep(dtype) -> None:
    with pytest.raises(ValueError, match="numpy dtype"):
        codecs.resolve(dtype)


@pytest.mark.parametrize(
    "text",
    [
        "O",
        "|O",
        "[('a', 'O')]",
        "('O', (2,))",
        "{'names': ['a'], 'formats': ['O'], 'offsets': [0], 'itemsize': 8}",
        "",
        "nonsense",
        "a",  # deprecated: a warning, and warnings are errors here
        "[('a', __import__('os').getpid())]",
        "[x for x in (1,)]",
        "(" * 5000,
        "[" + "-" * 5000 + "1]",
        "{'names': ['a'], 'formats': ['<i8'], 'offsets': [-8], 'itemsize': 8}",
        "{'names': ['a'], 'formats': ['<i8'], 'offsets': [4], 'itemsize': 8}",
        "('<f8', (-1,))",
        "('<f8', (1099511627776, 1099511627776))",
        "[('a', '<i4'), ('a', '<i4')]",
        "{1: 2}",
        "[1]",
        "[('\\x00'",
    ],
)
def test_numpy_refuses_hostile_texts(text: str) -> None:
    with pytest.raises(ValueError, match="numpy dtype"):
        codecs.resolve(f"numpy:{text}")
    with pytest.raises(IncompatibleFormat, match="numpy"):
        codecs.from_text(f"numpy:{text}")
