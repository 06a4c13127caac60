"""What every test of a codec needs: the way of a value into a file and back."""

from __future__ import annotations

from typing import Any


def stored(codec: Any, value: Any) -> memoryview:
    """The bytes of a value as a structure hands them back: a flat read-only view."""
    return memoryview(bytes(codec.encode(value)))


def round_trip(codec: Any, value: Any) -> Any:
    return codec.decode(stored(codec, value))


def same(left: object, right: object) -> bool:
    """Equality that looks at types too, and for which a NaN equals itself."""
    return repr(left) == repr(right)
