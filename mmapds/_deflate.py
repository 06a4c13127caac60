"""How a queue compresses what is put into it: ``"zlib:LEVEL"`` or ``"zlib:LEVEL:FROM"``.

A compressed payload begins with the size of what it was (8 bytes, little-endian), so that a hostile one cannot unpack
to more than it says, and nobody allocates more than that. What does not get smaller is stored as it is.
"""

from __future__ import annotations

import zlib

from mmapds.errors import CorruptionError

_FROM = 512
_FACTOR = 1100  # deflate never reaches 1032


def _is_size(text: str) -> bool:
    return text == "" or (text.isdecimal() and len(text) < 13)


def parse(text: str | None) -> tuple[int, int] | None:
    """Level, and bytes from which on; None for None.

    >>> parse("zlib:6")
    (6, 512)
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise TypeError(f"compress is a text such as 'zlib:6', not {type(text).__name__}")
    kind, _, rest = text.partition(":")
    level, _, least = rest.partition(":")
    if kind != "zlib" or not level.isdecimal() or not 1 <= int(level) <= 9 or not _is_size(least):
        raise ValueError(f"compress {text!r} is not 'zlib:LEVEL' or 'zlib:LEVEL:FROM', with a level from 1 to 9")
    return int(level), int(least) if least else _FROM


def text_of(level: int, least: int) -> str | None:
    """The text that parses to these; None if the level is 0."""
    return f"zlib:{level}:{least}" if level else None


def pack(data: bytes, level: int) -> bytes | None:
    """The compressed payload; None if it would not be smaller."""
    packed = len(data).to_bytes(8, "little") + zlib.compress(data, level)
    return packed if len(packed) < len(data) else None


def unpack(packed: bytes) -> bytes:
    """The bytes as they were."""
    size = int.from_bytes(packed[:8], "little")
    if len(packed) < 8 or size > len(packed) * _FACTOR:
        raise CorruptionError(f"{len(packed)} compressed bytes say that they were {size}")
    engine = zlib.decompressobj()
    try:
        data = engine.decompress(packed[8:], size + 1)
    except zlib.error as error:
        raise CorruptionError(f"{len(packed)} compressed bytes do not unpack: {error}") from None
    if len(data) != size or not engine.eof or engine.unused_data:
        raise CorruptionError(f"{len(packed)} compressed bytes unpack to {len(data)}, and {size} were put")
    return data
