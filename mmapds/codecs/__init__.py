"""Codecs: how a value becomes bytes in a file, and the text a file keeps to say which it was.

Promise
    A codec turns a value into bytes and back.  It has a *name*, a canonical text from which the
    built-in ones are made again, so a file needs no options to be opened.  The name, followed by
    the user's own schema text if there is one, is hashed (xxh3_128); a file stores both and is
    opened with nothing else.  Bytes from a file are untrusted: what does not decode raises
    `CorruptionError`, and no codec that is built from a text runs code that the bytes or the
    text name.  A value that a codec cannot encode raises `TypeError` or `ValueError` before
    anything is written.

        ====================  ================================================================
        ``raw``               any contiguous bytes-like object; back comes a read-only view
        ``msgpack``           the default: None, bool, int, float, str, bytes, list, dict
        ``struct:<format>``   a tuple of numbers and bytes, as in `struct`
        ``numpy:<dtype>``     an array; back comes a read-only array over the mapped bytes
        ``Pickle()``          any object, only for files that nobody untrusted can write
        your own              any object with ``encode`` and ``decode``
        ====================  ================================================================

Prior art
    numpy's ``.npy`` header keeps the dtype as a literal; LMDB and Redis leave encoding to the
    user; mmap-sync fixes rkyv at compile time.  A file that names its own encoding can be opened
    and inspected by a program that has never seen the writer.

Rejected
    Pickle by name: whoever can write the file could then run code in every reader.  ``eval`` of a
    dtype: a literal parser and one comparison do.  Falling back on another codec when the first
    fails: bytes would change meaning without a word.
"""

from __future__ import annotations

import sys
from typing import Any, Final, NamedTuple, Protocol, final

import xxhash

from mmapds.codecs._builtin import BytesLike, Msgpack, Pickle, Raw, Struct, as_bytes, undecodable
from mmapds.errors import CorruptionError, IncompatibleFormat, SchemaMismatch

__all__ = [
    "Codec",
    "Msgpack",
    "Pickle",
    "Raw",
    "ResolvedCodec",
    "Schema",
    "Struct",
    "fingerprint",
    "from_text",
    "reopen",
    "resolve",
]


class Codec(Protocol):
    """What a codec of your own must have: an object with these two methods.

    ``encode`` returns one contiguous bytes-like object.  ``decode`` gets a read-only memoryview
    of exactly those bytes; a `ValueError` from it means that they are wrong and is raised as
    `CorruptionError`, anything else is taken for a mistake in the codec and passes unchanged.

    Optional attributes: ``name`` (str, one line, what files store; default: the name of the
    class), ``zero_copy`` (True if what ``decode`` returns refers to its argument; default False)
    and, required with it, ``own(value)``, which returns a copy that stands alone.
    """

    def encode(self, value: Any, /) -> BytesLike: ...
    def decode(self, data: memoryview, /) -> Any: ...


class ResolvedCodec(Codec, Protocol):
    """A codec as the structures use it: every optional attribute is there."""

    @property
    def name(self) -> str: ...
    @property
    def zero_copy(self) -> bool: ...
    def own(self, value: Any, /) -> Any: ...


class Schema(NamedTuple):
    """What a file stores about its values.

    ``text`` is the codec's name, then, if the user gave one, a newline and his schema text.
    ``hash`` is the xxh3_128 (seed 0) of its UTF-8 bytes, 16 bytes in canonical (big-endian) order.
    """

    hash: bytes
    text: str


@final
class _Object:
    """A codec of the user's, checked once and given the attributes that it left out."""

    __slots__ = ("_decode", "_encode", "name", "own", "zero_copy")

    def __init__(self, codec: Codec) -> None:
        own_name = getattr(codec, "name", None)
        if own_name is None:
            own_name = getattr(codec, "__name__", None) or type(codec).__qualname__
        if not (isinstance(own_name, str) and own_name and own_name.isprintable()):
            raise ValueError(f"name of codec {codec!r} is {own_name!r}: it must be one line of printable text")
        self.name: Final = f"object:{own_name}"
        self.zero_copy: Final = bool(getattr(codec, "zero_copy", False))
        own = getattr(codec, "own", None)
        if self.zero_copy and not callable(own):
            raise TypeError(
                f"codec {codec!r} has zero_copy but no own(value): add one that returns a copy that stands alone"
            )
        self.own: Final = own if callable(own) else _unchanged
        self._encode = codec.encode
        self._decode = codec.decode

    def encode(self, value: Any, /) -> BytesLike:
        data = self._encode(value)
        return data if type(data) is bytes else as_bytes(data, self.name)

    def decode(self, data: memoryview, /) -> Any:
        try:
            return self._decode(data)
        except CorruptionError:
            raise
        except ValueError as error:
            raise undecodable(self.name, data, error) from error
        except Exception as error:
            error.add_note(f"while the codec {self.name!r} decoded {data.nbytes:,} bytes")
            raise


def _unchanged(value: Any, /) -> Any:
    return value


def resolve(codec: object) -> ResolvedCodec:
    """The codec that a user's ``codec=`` means: a text, a dtype, or an object with both methods.

    Raises `ValueError` for a text that names no codec, and for ``"pickle"``; `TypeError` for
    anything that is no codec.

    >>> resolve("struct:<iq").name
    'struct:<iq'
    """
    if isinstance(codec, str):
        kind, _, rest = codec.partition(":")
        if kind == "pickle":
            raise ValueError(
                "pickle is not chosen by name, because loading one can run any code: where every "
                "writer is trusted, pass codec=mmapds.codecs.Pickle()"
            )
        found = _from_name(codec, kind, rest)
        if found is None:
            raise ValueError(
                f"codec {codec!r} is not known: use 'raw', 'msgpack', 'struct:<format>', "
                f"'numpy:<dtype>', a numpy dtype, or an object with encode and decode"
            )
        return found
    if type(codec) in (Raw, Msgpack, Struct, Pickle, _Object):
        return codec  # type: ignore[return-value]
    numpy = sys.modules.get("numpy")  # a dtype cannot be given before numpy is imported
    if numpy is not None:
        from mmapds.codecs._numpy import Numpy

        if type(codec) is Numpy:
            return codec
        if isinstance(codec, numpy.dtype) or (isinstance(codec, type) and issubclass(codec, numpy.generic)):
            return Numpy(codec)
    if isinstance(codec, type):
        raise TypeError(f"codec is the class {codec.__qualname__}: pass an instance of it")
    if callable(getattr(codec, "encode", None)) and callable(getattr(codec, "decode", None)):
        return _Object(codec)  # type: ignore[arg-type]
    raise TypeError(
        f"codec must be a text, a numpy dtype, or an object with encode and decode, got {type(codec).__name__}"
    )


def from_text(text: str) -> ResolvedCodec:
    """Make the codec again that a file names; only the first line of ``text`` counts.

    Raises `SchemaMismatch` for a codec that must be passed explicitly (pickle, objects), and
    `IncompatibleFormat` for a text that no release known here has written.
    """
    name = text.partition("\n")[0]
    kind, _, rest = name.partition(":")
    if name == "pickle":
        raise SchemaMismatch(
            "the values are stored as pickle, which can run any code when loaded: where every "
            "writer is trusted, pass codec=mmapds.codecs.Pickle(); otherwise read the bytes"
        )
    if kind == "object":
        raise SchemaMismatch(
            f"the values are stored by a codec object of its writer's, {rest!r}: "
            f"pass codec= with an object of that name"
        )
    why = "this release knows no such codec"
    try:
        found = _from_name(name, kind, rest)
        if found is not None and found.name == name:
            return found
        if found is not None:
            why = f"it would be written {found.name!r}"
    except (ValueError, TypeError) as error:
        why = str(error)
    raise IncompatibleFormat(
        f"the file names the codec {name!r}: {why}; a later release may read it, "
        f"or its header is damaged (mmapds verify PATH)"
    )


def _from_name(name: str, kind: str, rest: str) -> ResolvedCodec | None:
    if name == "raw":
        return Raw()
    if name == "msgpack":
        return Msgpack()
    if kind == "struct":
        return Struct(rest)
    if kind == "numpy":
        try:
            from mmapds.codecs._numpy import parse
        except ImportError as error:
            raise ModuleNotFoundError(
                f"codec {name!r} needs numpy, which is not installed: pip install numpy"
            ) from error
        return parse(rest)
    return None


def fingerprint(codec: object, schema: str | None = None) -> Schema:
    """What a file stores for this codec and the user's own schema text (none if None or empty).

    >>> fingerprint("msgpack", "point v2").text
    'msgpack\\npoint v2'
    """
    if schema is not None and not isinstance(schema, str):
        raise TypeError(f"schema must be a str or None, got {type(schema).__name__}")
    name = resolve(codec).name
    text = f"{name}\n{schema}" if schema else name
    return Schema(xxhash.xxh3_128_digest(text.encode()), text)


def reopen(stored: str, codec: object = None, schema: str | None = None, *, where: str = "the file") -> ResolvedCodec:
    """The codec to use on a file that stores the schema text ``stored``.

    What is None is taken from the file.  What is given and different raises `SchemaMismatch`,
    which shows both; ``schema=""`` asks for a file that has no schema text.
    """
    stored_name, _, stored_schema = stored.partition("\n")
    found = from_text(stored_name) if codec is None else resolve(codec)
    if found.name != stored_name:
        raise SchemaMismatch(
            f"{where} stores the codec {stored_name!r}, asked for was {found.name!r}: "
            f"leave codec= out to take the stored one, or use another path"
        )
    if schema is not None and schema != stored_schema:
        raise SchemaMismatch(
            f"{where} stores the schema {stored_schema!r}, asked for was {schema!r}: "
            f"leave schema= out to take the stored one, or use another path"
        )
    return found
