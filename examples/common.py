"""What writer.py and reader.py share: a struct, and its bytes as a Rust program would write them.

The struct is the one in mmap-sync's own examples::

    pub struct HelloWorld { pub version: u32, pub messages: Vec<String> }

Rust programs exchange it through mmap-sync as an archive of rkyv 0.7, which is used where it lies,
without decoding. `HelloWorldCodec` reads and writes that archive, so these examples talk to Rust
in both directions. It also shows all that mmapds asks of a codec of your own: `encode` and
`decode`. Among Python programs alone you would write ``codec="msgpack"`` and need none of this.

The archive, little-endian, each offset relative to the position of the field that holds it::

    text of each message longer than 7 bytes, one after the other
    zeros up to a multiple of 4
    messages, 8 bytes each      up to 7 bytes: text, zeros up to 7 bytes, u8 length
                                longer:        u32 length, i32 offset of its text (negative)
    struct, the last 12 bytes   u32 version, i32 offset of messages, u32 number of messages

The last byte of a message tells the two forms apart: its high bit is the sign of the offset.
"""

from __future__ import annotations

import json
import struct
import sys
from dataclasses import dataclass

DEFAULT_PREFIX = "/tmp/hello_world"
INLINE = 7  # bytes of text that fit into a message's own 8 bytes
MESSAGE = struct.Struct("<Ii")  # length, offset
ROOT = struct.Struct("<IiI")  # version, offset of messages, number of messages


@dataclass(frozen=True)
class HelloWorld:
    version: int
    messages: list[str]

    def __str__(self) -> str:
        return f"version: {self.version} messages: {json.dumps(self.messages, ensure_ascii=False)}"


class HelloWorldCodec:
    """HelloWorld to and from an rkyv 0.7 archive, byte for byte as Rust makes it."""

    name = "rkyv-0.7:HelloWorld"

    def encode(self, value: HelloWorld) -> bytes:
        """Return the archive of `value`; `struct.error` if a number does not fit its field."""
        texts = [message.encode() for message in value.messages]
        out = bytearray()
        starts = []
        for text in texts:
            starts.append(len(out))
            if len(text) > INLINE:
                out += text
        out += bytes(-len(out) % 4)
        messages = len(out)
        for text, start in zip(texts, starts, strict=True):
            if len(text) > INLINE:
                out += MESSAGE.pack(len(text), start - len(out))
            else:
                out += text.ljust(INLINE, b"\0") + bytes([len(text)])
        out += ROOT.pack(value.version, messages - (len(out) + 4), len(texts))
        return bytes(out)

    def decode(self, data: memoryview) -> HelloWorld:
        """Return what `data` holds, copied out of it; `ValueError` if it is no such archive."""
        root = len(data) - ROOT.size
        if root < 0 or root % 4:
            raise ValueError(f"not a HelloWorld archive: {len(data)} bytes")
        version, offset, count = ROOT.unpack_from(data, root)
        start = root + 4 + offset
        # Every number comes from a file: check each before it is used.
        if start < 0 or start % 4 or start + count * MESSAGE.size > root:
            raise ValueError(f"not a HelloWorld archive: {count} messages at byte {start}")
        return HelloWorld(
            version,
            [self._message(data, start + i * MESSAGE.size, start) for i in range(count)],
        )

    def _message(self, data: memoryview, position: int, end_of_texts: int) -> str:
        length: int = data[position + INLINE]
        if length <= INLINE:
            start, end = position, position + length
        else:
            length, offset = MESSAGE.unpack_from(data, position)
            start, end = position + offset, position + offset + length
            if start < 0 or end > end_of_texts:
                raise ValueError(f"not a HelloWorld archive: a message from byte {start} to {end}")
        return str(data[start:end], "utf-8")  # UnicodeDecodeError is a ValueError


def prefix_from_arguments() -> str:
    """Return the first command-line argument, or /tmp/hello_world as in mmap-sync's examples."""
    return sys.argv[1] if len(sys.argv) > 1 else DEFAULT_PREFIX
