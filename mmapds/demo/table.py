"""The value that the demo publishes: the Unicode character table, in editions that all differ, each provably whole.

A version is the msgpack list ``[stamp, rows, checksum, stamp]``, and a row ``[code point, name, category, numeric
value]``. The stamp says which writer made it and which of its editions it is; edition n begins n * 1009 rows into the
table and goes around, so that nearly every byte of a version differs from the one before. Stamp and checksum are bytes
of a fixed length, so that they lie at fixed places of the encoded value, and a reader can compare the stamps at both
ends without decoding anything.

A reader trusts nothing that it is sent: it has a table of its own, from its own `unicodedata`, and compares all rows.
"""

from __future__ import annotations

import struct
import sys
import unicodedata
from typing import Any

import msgpack
import xxhash

Row = list[Any]

STAMP = struct.Struct("<II")  # writer, edition
FIRST = 3  # offset of the first stamp: behind the head of a list of four, and of 8 bytes
LAST = STAMP.size  # bytes from the last stamp to the end
_ROWS = slice(FIRST + STAMP.size, -(2 + 8 + 2 + STAMP.size))
_STEP = 1009


def character_table() -> list[Row]:
    """Every character that Unicode names or classifies; not the unassigned, private and surrogate code points, of which
    it says nothing."""
    table: list[Row] = []
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)
        if category not in ("Cn", "Co", "Cs"):
            name = unicodedata.name(character, None)
            table.append([code, name, category, unicodedata.numeric(character, None)])
    return table


def edition(table: list[Row], writer: int, number: int) -> bytes:
    """One version of the value, encoded."""
    start = _start(table, number)
    rows = table[start:] + table[:start]
    checksum = xxhash.xxh3_64_digest(msgpack.packb(rows))
    stamp = STAMP.pack(writer, number)
    encoded: bytes = msgpack.packb([stamp, rows, checksum, stamp])
    return encoded


def fault(value: list[Any], data: memoryview, table: list[Row]) -> str:
    """What is wrong with a version, decoded and as bytes; "" if it is whole."""
    first, rows, checksum, last = value
    if first != last:
        return f"begins as edition {STAMP.unpack(first)} and ends as {STAMP.unpack(last)}"
    if xxhash.xxh3_64_digest(data[_ROWS]) != checksum:
        return "the rows do not match the checksum"
    if len(rows) != len(table):
        return f"{len(rows)} rows instead of {len(table)}"
    turn = len(table) - _start(table, STAMP.unpack(first)[1])
    if rows[:turn] != table[-turn:] or rows[turn:] != table[:-turn]:
        return "some rows are of another edition"
    if bytes(data[FIRST : FIRST + STAMP.size]) != first or bytes(data[-LAST:]) != last:
        return "it changed while it was held"
    return ""


def _start(table: list[Row], number: int) -> int:
    return number * _STEP % len(table)
