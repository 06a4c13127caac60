"""Items of a queue as lines of JSON, there and back.

What JSON has no form for is an object with one key: ``{"$bytes": "aGk="}`` (base64), ``{"$float": "nan"}``,
``{"$map": [[key, value], ...]}`` for a dictionary whose keys are not all text, or that itself looks like one of these.
So whatever a queue holds comes back as it was, but for tuples, which become lists, as in msgpack. What only Python
knows (the objects of a pickle) is shown as ``{"$repr": "..."}``, which is refused when it is read.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["line_of", "value_of"]

_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def line_of(value: object) -> str:
    r"""One line of ASCII, without a line feed.

    >>> line_of({"name": "größe", "data": b"hi", "ratio": float("inf")})
    '{"name": "gr\\u00f6\\u00dfe", "data": {"$bytes": "aGk="}, "ratio": {"$float": "inf"}}'
    """
    return json.dumps(_plain(value), allow_nan=False)


def value_of(line: str) -> Any:
    """What a line means; ValueError if it is not JSON, or has a mark that means nothing.

    >>> value_of('{"$bytes": "aGk="}')
    b'hi'
    """
    try:
        return json.loads(line, object_pairs_hook=_object, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _plain(value: object) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and not (len(value) == 1 and next(iter(value)).startswith("$")):
            return {key: _plain(item) for key, item in value.items()}
        return {"$map": [[_plain(key), _plain(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {"$repr": repr(value)}


def _object(pairs: list[tuple[str, Any]]) -> Any:
    if len(pairs) == 1 and pairs[0][0].startswith("$"):
        return _marked(*pairs[0])
    return dict(pairs)


def _marked(mark: str, content: Any) -> Any:
    if mark == "$bytes" and isinstance(content, str):
        try:
            return base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise ValueError(f"no base64 behind $bytes: {error}") from None
    if mark == "$float" and isinstance(content, str) and content in _FLOATS:
        return _FLOATS[content]
    if (
        mark == "$map"
        and isinstance(content, list)
        and all(isinstance(pair, list) and len(pair) == 2 for pair in content)
    ):
        try:
            return {_key(key): value for key, value in content}
        except TypeError as error:
            raise ValueError(f"no keys behind $map: {error}") from None
    raise ValueError(f"an object with the one key {mark!r} means nothing here; write it as $map: see the documentation")


def _key(key: Any) -> Any:
    return tuple(map(_key, key)) if isinstance(key, list) else key


def _no_constant(name: str) -> Any:
    raise ValueError(f'{name} is not JSON; write {{"$float": "{name.lower().replace("infinity", "inf")}"}}')
