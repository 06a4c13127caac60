"""The numpy codec, apart from the others because it alone needs numpy.

Promise
    ``encode`` takes an array of exactly the codec's dtype, ``decode`` returns a read-only array
    over the mapped bytes and copies nothing.  The dtype is kept as a text in ASCII that is
    parsed as a literal and never evaluated; a dtype that its text would not give back unchanged
    (objects, titles, types that other packages register) is refused when the codec is made.

Canonical text
    ``<f8``                          a plain type, numpy's own short name with its byte order
    ``('<f8', (3,))``                a type and a shape: values are arrays of shape (n, 3)
    ``[('a', '<i4'), ('b', ...)]``   fields that follow each other without gaps
    ``{'names': ..., 'formats': ..., 'offsets': ..., 'itemsize': ...}``   any other layout

Prior art
    The header of ``.npy`` files.  It keeps ``dtype.descr``, which turns padding into fields and
    cannot express overlaps, hence the fourth form.
"""

from __future__ import annotations

import ast
from typing import Any, Final, final

import numpy as np

from mmapds.codecs._builtin import undecodable

__all__ = ["Numpy", "canonical", "parse"]

# What numpy and the literal parser raise for texts that are no dtype.
_BAD_DTYPE = (TypeError, ValueError, SyntaxError, KeyError, MemoryError, RecursionError)


def canonical(dtype: np.dtype[Any]) -> str:
    """The one text of a dtype; raises ValueError if it has none."""
    literal = _literal(dtype)
    return literal if isinstance(literal, str) else ascii(literal)


def _literal(dtype: np.dtype[Any]) -> Any:
    if dtype.hasobject:
        raise ValueError(f"numpy dtype {dtype} holds Python objects: their addresses mean nothing in a file")
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return (_literal(base), tuple(map(int, shape)))
    if dtype.names is None or dtype.fields is None:
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    if any(len(field) > 2 for field in fields):
        raise ValueError(f"numpy dtype {dtype} has titles: give its fields names only")
    formats = [_literal(field[0]) for field in fields]
    offsets = [int(field[1]) for field in fields]
    ends = [offset + field[0].itemsize for offset, field in zip(offsets, fields, strict=True)]
    if [*offsets, dtype.itemsize] == [0, *ends]:
        return [
            (name, *text) if isinstance(text, tuple) else (name, text)
            for name, text in zip(dtype.names, formats, strict=True)
        ]
    return {
        "names": list(dtype.names),
        "formats": formats,
        "offsets": offsets,
        "itemsize": dtype.itemsize,
    }


def parse(text: str) -> Numpy:
    """The codec for what follows ``numpy:``; anything that numpy takes as a literal will do.

    Raises ValueError for all else, and for what numpy deprecates where warnings are errors.
    """
    try:
        return Numpy(_dtype(text))
    except (*_BAD_DTYPE, Warning) as error:
        raise ValueError(f"numpy dtype {text!r} is not valid: {error}") from None


def _dtype(text: str) -> np.dtype[Any]:
    return np.dtype(ast.literal_eval(text) if text[:1] in ("(", "[", "{") else text)


@final
class Numpy:
    """Arrays of one dtype.

    An array has one dimension, unless the dtype has a shape of its own: with
    ``np.dtype(("<f8", (3,)))`` an array has shape (n, 3).  An array that is not C-contiguous is
    copied once more.  ``decode`` returns an array that cannot be written to and that keeps the
    bytes under it mapped and pinned for as long as it lives; ``own`` returns a copy, read-only
    like it.
    """

    zero_copy: Final = True
    __slots__ = ("_base", "_shape", "dtype", "name")

    def __init__(self, dtype: Any) -> None:
        given = np.dtype(dtype)
        text = canonical(given)
        if given.itemsize == 0:
            raise ValueError(f"numpy dtype {given} has no size: give it a length")
        # The one from the text, so that whoever opens the file by its text gets the same.
        self.dtype: Final = _dtype(text)
        if self.dtype != given:
            raise ValueError(f"numpy dtype {given!r} cannot be kept as text: {text!r} is another")
        self.name: Final = f"numpy:{text}"
        self._base: Final = self.dtype.base
        self._shape: Final = self.dtype.shape

    def encode(self, value: Any, /) -> memoryview:
        if not isinstance(value, np.ndarray):
            raise TypeError(
                f"codec {self.name!r} encodes an array, got {type(value).__name__}: "
                f"make one by numpy.asarray(value, dtype=...)"
            )
        if type(value) is not np.ndarray and isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"codec {self.name!r} would lose the mask: pass value.filled(...)")
        if value.dtype != self._base:
            raise TypeError(
                f"codec {self.name!r} encodes arrays of dtype {self._base}, "
                f"got {value.dtype}: convert it by value.astype(...)"
            )
        if value.ndim != 1 + len(self._shape) or value.shape[1:] != self._shape:
            expected = ", ".join(map(str, ("n", *self._shape)))
            raise ValueError(f"codec {self.name!r} encodes arrays of shape ({expected}), got {value.shape}")
        return _flat(value)

    def decode(self, data: memoryview, /) -> np.ndarray[Any, Any]:
        view = data if data.readonly else data.toreadonly()
        try:
            return np.frombuffer(view, dtype=self.dtype)
        except ValueError as error:
            raise undecodable(self.name, data, error) from None

    def own(self, value: Any, /) -> np.ndarray[Any, Any]:
        return np.frombuffer(bytes(_flat(value)), dtype=self.dtype)


def _flat(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of an array, copied only if it has strides.

    It is copied as plain bytes, because numpy's copies of fields leave the padding between them
    undefined: what happened to lie in this process's memory would get into the file.
    """
    plain = np.asarray(array)
    if not plain.flags.c_contiguous:
        plain = np.ascontiguousarray(plain.view((np.void, plain.itemsize)))
    return plain.reshape(-1).view(np.uint8).data
