"""The header page: what it says, and what is refused, bit by bit."""

import os
import stat
from pathlib import Path

import pytest
import xxhash

from mmapds import CorruptionError, IncompatibleFormat, files
from mmapds._native import kernel
from mmapds.codecs import Schema

KIND = "example"


@pytest.fixture
def path(tmp_path: Path, descriptors: None) -> str:
    return str(tmp_path / "file")


def make(path: str, durability: str = "process", **options: object) -> bytes:
    page = files.new_header(KIND, durability=durability, **options)
    files.create(path, page, 8192, durability=durability)
    return Path(path).read_bytes()


def resealed(page: bytearray) -> bytes:
    """The page with the check that it would have had."""
    check = xxhash.xxh3_64_intdigest(bytes(page[: kernel.CHECKED]))
    page[kernel.CHECKED : kernel.IMMUTABLE] = check.to_bytes(8, "little")
    return bytes(page)


def test_header_says_what_it_was_made_of(path: str) -> None:
    schema = Schema(xxhash.xxh3_128_digest(b"text"), "text")
    content = make(path, durability="power", options=(1, 2, 1 << 63), schema=schema, parent=b"p" * 16)
    assert len(content) == 8192
    assert content[kernel.PAGE :] == bytes(4096)
    header = files.parse_header(content[: kernel.PAGE], path, KIND)
    assert (header.kind, header.format, header.durability, header.schema) == (KIND, kernel.FORMAT, "power", schema)
    assert header.options == (1, 2, 1 << 63) + (0,) * (kernel.OPTIONS - 3)
    assert (header.parent, header.failed, header.holder) == (b"p" * 16, 0, "an unknown process")
    assert header.identity == files.identity_of(content) != bytes(16)
    status = os.stat(path)
    assert (header.boot_id, header.device, header.inode) == (files.boot_id(), status.st_dev, status.st_ino)
    assert stat.S_IMODE(status.st_mode) == 0o600


def test_identities_differ(tmp_path: Path) -> None:
    assert len({files.identity_of(make(str(tmp_path / str(i)))) for i in range(50)}) == 50


def test_schema_texts(path: str) -> None:
    for text in ("", "x" * kernel.SCHEMA_TEXT, "é" * (kernel.SCHEMA_TEXT // 2)):
        schema = Schema(xxhash.xxh3_128_digest(text.encode()), text)
        page = files.new_header(KIND, schema=schema)
        assert files.parse_header(bytes(page), path).schema == schema
    with pytest.raises(ValueError, match="a header holds 1,680"):
        files.new_header(KIND, schema=Schema(bytes(16), "é" * (kernel.SCHEMA_TEXT // 2 + 1)))


@pytest.mark.parametrize("content", [b"", b"x", b"\x89mmapds\n", bytes(4095)])
def test_r17_too_short(path: str, content: bytes) -> None:
    with pytest.raises(IncompatibleFormat, match=r"is (empty|\d+ bytes long)"):
        files.parse_header(content, path)


@pytest.mark.parametrize(
    ("offset", "new", "message"),
    [
        (0, b"EMMAP01\n", "not a file of mmapds: it starts with b'EMMAP01"),
        (8, b"\x0a\x0b\x0c\x0d", "big-endian"),
        (12, b"\x02\x00", "has format 2.0; this release reads 1"),
        (16, b"another\0", "of kind 'another', not 'example'"),
        (16, b"\xff" * 8, "of kind"),
        (24, b"\x01", "needs features 0x1 "),
        (2032, b"\x01", "needs features"),
    ],
)
def test_r14_incompatible(path: str, offset: int, new: bytes, message: str) -> None:
    page = bytearray(make(path)[: kernel.PAGE])
    page[offset : offset + len(new)] = new
    content = resealed(page) + bytes(4096)
    Path(path).write_bytes(content)
    for writable in (True, False):
        with pytest.raises(IncompatibleFormat, match=message):
            files.OpenFile(path, KIND, writable=writable)
    assert Path(path).read_bytes() == content


def test_a_newer_minor_format_is_read(path: str) -> None:
    page = bytearray(make(path)[: kernel.PAGE])
    page[14] = 9
    assert files.parse_header(resealed(page), path).format == (1, 9)


@pytest.mark.parametrize(
    ("offset", "new"), [(72, b"\x02"), (72, b"\xff" * 4), (76, b"\xff" * 4), (76, b"\x91\x06\0\0")]
)
def test_r16_hostile_lengths(path: str, offset: int, new: bytes) -> None:
    page = bytearray(make(path)[: kernel.PAGE])
    page[offset : offset + len(new)] = new
    with pytest.raises(CorruptionError, match="out of range"):
        files.parse_header(resealed(page), path)


def test_r15_every_bit_of_the_immutable_half(path: str) -> None:
    page = make(path, schema=Schema(b"h" * 16, "a schema"), options=(5,))[: kernel.PAGE]
    for bit in range(kernel.IMMUTABLE * 8):
        damaged = bytearray(page)
        damaged[bit // 8] ^= 1 << bit % 8
        # What is compared before the checksum can only be "not ours": nothing else is said about such a file.
        expected = IncompatibleFormat if bit // 8 < 14 else CorruptionError
        with pytest.raises(expected):
            files.parse_header(bytes(damaged), path, KIND)


def test_r15_every_bit_of_the_mutable_half(path: str) -> None:
    page = make(path, schema=Schema(b"h" * 16, "a schema"), options=(5,))[: kernel.PAGE]
    good = files.parse_header(page, path, KIND)
    for bit in range(kernel.IMMUTABLE * 8, kernel.PAGE * 8):
        damaged = bytearray(page)
        damaged[bit // 8] ^= 1 << bit % 8
        header = files.parse_header(bytes(damaged), path, KIND)
        assert (header.identity, header.options, header.schema) == (good.identity, good.options, good.schema)
        assert header.holder


def test_r16_a_hostile_holder(path: str) -> None:
    page = bytearray(make(path)[: kernel.PAGE])
    page[kernel.IMMUTABLE + 64 : kernel.IMMUTABLE + 112] = b"\xff" * 48
    assert "pid 18446744073709551615" in files.parse_header(bytes(page), path).holder


def test_holder(path: str) -> None:
    make(path)
    file = files.OpenFile(path, KIND, writable=True)
    file.write_holder()
    assert f"pid {os.getpid()} (" in file.read_holder()
    assert ", since 20" in file.read_holder()
    file.close()
