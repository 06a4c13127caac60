"""The built-in codecs that need nothing beyond the required packages, and what all codecs share.

Promise
    Stateless for the caller: one codec may serve any number of structures, threads and forked
    children.  ``encode`` raises `TypeError` or `ValueError` for what it cannot keep, ``decode``
    raises `CorruptionError` for bytes that it cannot have written.  `mmapds.codecs` is where
    they are chosen and named; import them from there.

Prior art
    `struct`, `pickle` and msgpack-python, whose many kinds of error become two here.

Rejected
    One shared packer behind a flag or a lock: a thread switch or a method of a user's dict
    subclass can fall inside ``pack``.  Taking the packer out of a list is atomic and as fast.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Final, final

import msgpack

from mmapds.errors import CorruptionError

__all__ = ["BytesLike", "Msgpack", "Pickle", "Raw", "Struct", "as_bytes", "undecodable"]

BytesLike = bytes | bytearray | memoryview

_PACKER_KEEPS: Final = 1 << 20  # a packer keeps its largest buffer: one that grew past this goes
_STRUCT_TOKEN: Final = re.compile(r"(\d*)([^\s\d])")


def as_bytes(value: Any, name: str) -> BytesLike:
    """``value`` as bytes, bytearray or a flat memoryview of bytes; copied only if it must be."""
    if isinstance(value, (bytes, bytearray)):
        return value
    try:
        view = memoryview(value)
    except TypeError:
        raise TypeError(f"codec {name!r} stores bytes-like objects, got {type(value).__name__}") from None
    if not view.c_contiguous:
        raise ValueError(
            f"codec {name!r} stores contiguous bytes, got a view with strides {view.strides}: copy it first"
        )
    if view.ndim == 1 and view.format == "B":
        return view
    try:
        return view.cast("B")
    except TypeError:  # a format that memoryview does not know, or a zero in the shape
        return view.tobytes()


def undecodable(name: str, data: memoryview, why: Exception) -> CorruptionError:
    """The error for bytes that a codec refuses: which codec, how many bytes, the reason, a way."""
    reason = f"{type(why).__name__}: {why}".rstrip(": ")
    if name != "pickle" and data.nbytes > 2 and data[0] == 0x80 and data[-1] == 0x2E:
        hint = "they look like a pickle, which is loaded only by codec=mmapds.codecs.Pickle()"
    else:
        hint = "another codec wrote them, or they are damaged (mmapds verify PATH)"
    return CorruptionError(f"codec {name!r} cannot decode these {data.nbytes:,} bytes: {reason}; {hint}")


@final
class Raw:
    """Bytes as they are.  ``decode`` copies nothing: it returns the read-only view itself."""

    name: Final = "raw"
    zero_copy: Final = True
    __slots__ = ()

    def encode(self, value: Any, /) -> BytesLike:
        return as_bytes(value, self.name)

    def decode(self, data: memoryview, /) -> memoryview:
        return data if data.readonly else data.toreadonly()

    def own(self, value: Any, /) -> bytes:
        return bytes(value)


@final
class Msgpack:
    """The default: one MessagePack object, nothing before it and nothing behind it.

    Tuples come back as lists (as tuples where they are keys of a dict), integers must fit 64
    bits, nesting ends at 1,024.  May be used by several threads and re-entered (a subclass of
    dict runs Python code while it is packed): each call takes an idle packer or makes one.
    Lengths inside the bytes are held against the length of the whole before anything is
    allocated.

    >>> Msgpack().decode(memoryview(Msgpack().encode({"a": [1, 2.5, None]})))
    {'a': [1, 2.5, None]}
    """

    name: Final = "msgpack"
    zero_copy: Final = False
    __slots__ = ("_idle",)

    def __init__(self) -> None:
        self._idle: list[Any] = []

    def encode(self, value: Any, /) -> bytes:
        try:
            packer = self._idle.pop()
        except IndexError:
            packer = msgpack.Packer()
        try:
            data: bytes = packer.pack(value)
        except TypeError as error:
            raise TypeError(f"codec 'msgpack' cannot encode this value: {error}") from error
        except (ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"codec 'msgpack' cannot encode this value: {error}") from error
        if len(data) <= _PACKER_KEEPS:
            self._idle.append(packer)
        return data

    def decode(self, data: memoryview, /) -> Any:
        try:
            # The limits are -1: each is then derived from len(data).
            return msgpack.unpackb(data, raw=False, strict_map_key=False)
        except TypeError:
            pass  # an array as a key of a map: a list cannot be one, a tuple can
        except (ValueError, RecursionError) as error:
            raise undecodable(self.name, data, error) from None
        try:
            return msgpack.unpackb(data, raw=False, strict_map_key=False, object_pairs_hook=_map_with_array_keys)
        except (ValueError, RecursionError, TypeError) as error:
            raise undecodable(self.name, data, error) from None

    def own(self, value: Any, /) -> Any:
        return value


def _map_with_array_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {_as_tuple(key): value for key, value in pairs}


def _as_tuple(key: Any) -> Any:
    return tuple(map(_as_tuple, key)) if type(key) is list else key


@final
class Struct:
    """A fixed-size tuple, by a format of the `struct` module.

    ``encode`` takes a tuple or list, or the bare value if the format has one field; ``decode``
    returns a tuple.  Bytes that are too long for their ``s`` or ``p`` field raise, where `struct`
    would cut them; short ones are filled up with zeros, as there.  The name has the format
    without spaces, with its byte order spelled out and neighbours of a kind counted together, so
    that equal layouts mostly have equal names.

    >>> Struct("i i 3s").name, Struct("!hh").name
    ('struct:@2i3s', 'struct:>2h')
    >>> Struct("<iq").decode(memoryview(Struct("<iq").encode((1, 2))))
    (1, 2)
    """

    zero_copy: Final = False
    __slots__ = ("_fields", "_limits", "_struct", "name", "size")

    def __init__(self, fmt: str) -> None:
        try:
            struct.Struct(fmt)
        except (struct.error, ValueError) as error:
            raise ValueError(f"struct format {fmt!r} is not valid: {error}") from None
        self._fields, self._limits, canonical = _struct_layout(fmt)
        if not self._fields:
            raise ValueError(f"struct format {fmt!r} has no fields: nothing would be stored")
        self._struct = struct.Struct(canonical)
        self.name: Final = f"struct:{canonical}"
        self.size: Final = self._struct.size

    def encode(self, value: Any, /) -> bytes:
        if not isinstance(value, (tuple, list)):
            if self._fields != 1:
                raise TypeError(
                    f"codec {self.name!r} encodes a tuple of {self._fields} fields, got {type(value).__name__}"
                )
            value = (value,)
        try:
            data = self._struct.pack(*value)
        except (struct.error, OverflowError, ValueError) as error:
            raise ValueError(f"codec {self.name!r} cannot encode this value: {error}") from error
        for index, limit in self._limits:
            if len(value[index]) > limit:
                raise ValueError(
                    f"codec {self.name!r} has room for {limit} bytes in field {index}, got {len(value[index])}"
                )
        return data

    def decode(self, data: memoryview, /) -> tuple[Any, ...]:
        try:
            return self._struct.unpack(data)
        except struct.error as error:
            raise undecodable(self.name, data, error) from None

    def own(self, value: Any, /) -> Any:
        return value


def _struct_layout(fmt: str) -> tuple[int, tuple[tuple[int, int], ...], str]:
    """Of a format that `struct` accepts: fields, (field, longest bytes) pairs, canonical text."""
    order, body = (fmt[0], fmt[1:]) if fmt[:1] in tuple("@=<>!") else ("@", fmt)
    fields = 0
    limits: list[tuple[int, int]] = []
    runs: list[tuple[int, str]] = []
    for digits, code in _STRUCT_TOKEN.findall(body):
        count = int(digits) if digits else 1
        if code == "p" and count == 0:
            raise ValueError(f"struct format {fmt!r} has a '0p', which struct itself cannot unpack")
        if code in "sp":
            # The first byte of a "p" field holds the length.
            limits.append((fields, count if code == "s" else min(count - 1, 255)))
            fields += 1
        elif code != "x":
            fields += count
        if code not in "sp" and runs and runs[-1][1] == code and count and runs[-1][0]:
            count += runs.pop()[0]
        runs.append((count, code))
    text = "".join(code if count == 1 else f"{count}{code}" for count, code in runs)
    return fields, tuple(limits), {"=": "<", "!": ">"}.get(order, order) + text


@final
class Pickle:
    """Any picklable object.  **Loading a pickle can run any code that its writer chose.**

    Use it only where every process that can write the file may also run code as every process
    that reads it.  For that reason it is never chosen by name, neither by an option nor by what
    a file stores: pass ``codec=mmapds.codecs.Pickle()`` at each open.  ``decode`` lets
    `ImportError` and `AttributeError` pass: they mean a class that is missing here.
    """

    name: Final = "pickle"
    zero_copy: Final = False
    __slots__ = ("_pickle",)

    def __init__(self) -> None:
        import pickle

        self._pickle = pickle

    def encode(self, value: Any, /) -> bytes:
        try:
            return self._pickle.dumps(value, protocol=5)
        except (self._pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(f"codec 'pickle' cannot encode this value: {error}") from error
        except (RecursionError, OverflowError, ValueError) as error:
            raise ValueError(f"codec 'pickle' cannot encode this value: {error}") from error

    def decode(self, data: memoryview, /) -> Any:
        try:
            return self._pickle.loads(data)
        except (ImportError, AttributeError, MemoryError) as error:
            error.add_note(f"while the codec 'pickle' decoded {data.nbytes:,} bytes")
            raise
        except Exception as error:
            raise undecodable(self.name, data, error) from error

    def own(self, value: Any, /) -> Any:
        return value
