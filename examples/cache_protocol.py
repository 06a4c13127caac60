"""What cache_server.py speaks: the protocol of Redis, RESP, read from bytes and written to bytes.

Commands come as arrays of strings with their lengths in front, or inline, as words with quotes. What is wrong with them
is said in the words of Redis 7, whose limits these are. Also here: the patterns of SCAN and CONFIG GET.
"""

from __future__ import annotations

import functools
import re

INLINE_LIMIT = 64 << 10  # bytes of an inline command, and of the line with a length
BULK_LIMIT = 512 << 20  # bytes of an argument
OK, NULL2, NULL3 = b"+OK\r\n", b"$-1\r\n", b"_\r\n"


class Refused(Exception):  # noqa: N818  it is an answer
    """A command is answered by an error."""


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def number(value: int) -> bytes:
    return b":%d\r\n" % value


def array(answers: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(answers) + b"".join(answers)


def failure(text: str) -> bytes:
    return b"-%b\r\n" % text.replace("\r", " ").replace("\n", " ").encode("utf-8", "surrogateescape")


def text_of(data: bytes) -> str:
    """To be shown in an error."""
    return data.decode("utf-8", "surrogateescape")


def integer(text: bytes) -> int | None:
    """As Redis reads them: no sign but a minus, no leading zeros, no blanks, 64 bits."""
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or len(digits) > 19 or (digits[0] == 0x30 and text != b"0"):
        return None
    value = int(text)
    return value if -(1 << 63) <= value < 1 << 63 else None


LENGTHS = {b"%d" % length: length for length in range(1024)}  # most of those that come


class Parser:
    """Bytes to commands. What was parsed is not looked at again, and a long argument is copied once or twice, however
    many pieces it comes in.
    """

    def __init__(self) -> None:
        self.rest = bytearray()  # not parsed yet
        self.wanted = 0  # bytes of rest below which nothing can be done
        self.args: list[bytes] = []  # of a command that is not complete
        self.missing = 0  # arguments of that command
        self.error = ""  # what was wrong, behind the commands that were returned; nothing is parsed after it

    def feed(self, data: bytes) -> list[list[bytes]]:
        """The commands that are complete now."""
        if self.rest:
            self.rest += data
            if len(self.rest) < self.wanted:
                return []
            data = bytes(self.rest)
            self.rest.clear()
        commands: list[list[bytes]] = []
        args, missing, at, size = self.args, self.missing, 0, len(data)
        self.wanted = 0
        while at < size:
            if not missing and data[at] != 0x2A:
                end = data.find(b"\n", at)
                if end < 0:
                    self._too_long(size - at, "too big inline request")
                    break
                words = split(data[at : end - 1 if end > at and data[end - 1] == 0x0D else end])
                if words is None:
                    self.error = "Protocol error: unbalanced quotes in request"
                    break
                at = end + 1
                if words:
                    commands.append(words)
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                self._too_long(size - at, "too big bulk count string" if missing else "too big mbulk count string")
                break
            length = LENGTHS.get(data[at + 1 : end])
            if not missing:
                if (length is None and (length := integer(data[at + 1 : end])) is None) or length >= 1 << 31:
                    self.error = "Protocol error: invalid multibulk length"
                    break
                at = end + 2
                if length > 0:
                    args, missing = [], length
                continue
            if data[at] != 0x24:
                self.error = f"Protocol error: expected '$', got '{chr(data[at])}'"
                break
            if length is None and ((length := integer(data[at + 1 : end])) is None or not 0 <= length <= BULK_LIMIT):
                self.error = "Protocol error: invalid bulk length"
                break
            stop = end + 2 + length
            if stop + 2 > size:
                self.wanted = stop + 2 - at
                break
            args.append(data[end + 2 : stop])
            at = stop + 2
            missing -= 1
            if not missing:
                commands.append(args)
        self.args, self.missing = args, missing
        if at < size and not self.error:
            self.rest += data if not at else memoryview(data)[at:]
        return commands

    def _too_long(self, size: int, what: str) -> None:
        if size > INLINE_LIMIT:
            self.error = f"Protocol error: {what}"


QUOTED = rb'"((?:[^"\\]|\\.)*)"(?=\s|\Z)|\'((?:[^\'\\]|\\.)*)\'(?=\s|\Z)'
WORD = re.compile(rb"\s*+([^\s\"']*+)(?:%b|(?=\s|\Z))" % QUOTED, re.DOTALL)  # quotes may stand at its end
ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


def split(line: bytes) -> list[bytes] | None:
    """The words of an inline command; None if a quote is not closed, or not followed by a blank."""
    words, at = [], 0
    line = line.strip()
    while at < len(line):
        found = WORD.match(line, at)
        if found is None:
            return None
        plain, double, single = found.groups()
        if double is not None:
            plain += ESCAPE.sub(lambda e: bytes.fromhex(e[1].decode()) if e[1] else ESCAPED.get(e[2], e[2]), double)
        words.append(plain + single.replace(b"\\'", b"'") if single is not None else plain)
        at = found.end()
    return words


# In brackets: an escaped character, a range, a character.
SPECIAL = re.compile(rb"\\(.)|(\*+)|(\?)|\[(\^?)((?:\\.|[^\]]-.|[^\]])*+)\]?|(.)", re.DOTALL)
MEMBER = re.compile(rb"\\(.)|(.)-(.)|(.)", re.DOTALL)


@functools.lru_cache(maxsize=256)
def pattern(glob: bytes) -> tuple[re.Pattern[bytes], bytes]:
    """A pattern of SCAN's MATCH as a regular expression, and the literal text that it begins with."""
    # Between two stars the first fit is as good as any other: `(?>...)` forgets the rest, and matching takes no more
    # than the length of the pattern times that of the key.
    parts, prefix, literal = [b""], b"", True
    for escaped, stars, any_one, inverted, chars, plain in (found.groups() for found in SPECIAL.finditer(glob)):
        if stars:
            parts.append(b"")
        elif any_one:
            parts[-1] += b"."
        elif chars is not None:
            parts[-1] += members(chars, inverted != b"")
        else:
            parts[-1] += re.escape(escaped or plain)
        literal = literal and bool(escaped or plain)
        if literal:
            prefix += escaped or plain
    first, *rest = parts
    expression = first
    if rest:
        expression += b"".join(b"(?>.*?%b)" % part for part in rest[:-1]) + b".*" + rest[-1]
    return re.compile(expression + rb"\Z", re.DOTALL), prefix


def members(chars: bytes, inverted: bool) -> bytes:
    """What stands in brackets: characters and ranges, which may be written backwards."""
    if not chars:
        return b"." if inverted else b"(?!)"
    found = (((a or d, a or d) if a or d else sorted((b, c))) for a, b, c, d in MEMBER.findall(chars))
    ranges = b"".join(re.escape(low) + b"-" + re.escape(high) for low, high in found)
    return b"[%b%b]" % (b"^" if inverted else b"", ranges)
