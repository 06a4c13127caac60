"""The header page that every file of mmapds starts with: 4096 bytes, as drawn in ``_native/layout.h``.

Promises
    What is not ours, or of another version or kind, is `IncompatibleFormat`; what is ours and
    damaged is `CorruptionError`, for any bit of the immutable half. The mutable half (origin,
    holder, failed) is never trusted beyond what it says about itself: a wrong origin costs a
    recovery, a wrong holder a wrong name in a message, a wrong `failed` a refusal.

Prior art
    PNG's magic number, which shows a transfer in text mode; bbolt's checksummed meta pages;
    systemd-journald, which keeps the boot id in the header.

Rejected
    A header in text, which nobody can map; a checksum over the mutable words too, which every
    writer would then have to keep up to date in two steps.
"""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from functools import cache

import xxhash

from mmapds._native import kernel
from mmapds.codecs import Schema
from mmapds.errors import CorruptionError, IncompatibleFormat

MAGIC = b"\x89mmapds\n"
DURABILITIES = ("process", "power")

_IMMUTABLE = struct.Struct(f"<8sIHH8sQ16s16sQII16s{kernel.OPTIONS}Q{kernel.SCHEMA_TEXT}sQ")
_MUTABLE = struct.Struct("<16sQQ32xQQ32s16xQ")  # origin, holder, failed
assert _IMMUTABLE.size == kernel.CHECKED
ORIGIN = slice(kernel.IMMUTABLE, kernel.IMMUTABLE + 32)
HOLDER = slice(kernel.IMMUTABLE + 64, kernel.IMMUTABLE + 112)
FAILED = kernel.IMMUTABLE + 128  # offset of the durability-failed word


@dataclass(frozen=True, slots=True)
class Header:
    """What a header page says. The last six fields are mutable words as they were when the page was read."""

    kind: str
    format: tuple[int, int]
    identity: bytes
    parent: bytes
    created: int
    durability: str
    options: tuple[int, ...]
    schema: Schema
    boot_id: bytes
    device: int
    inode: int
    holder_pid: int
    holder_start: int
    holder_name: str
    failed: int

    @property
    def holder(self) -> str:
        """Whom to name in an error, for people: the pid may be of another namespace."""
        if not self.holder_pid:
            return "an unknown process"
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.holder_start / 1e9))
        return f"pid {self.holder_pid} ({self.holder_name}), since {since}"


def new_header(
    kind: str,
    *,
    durability: str = "process",
    options: tuple[int, ...] = (),
    schema: Schema | None = None,
    parent: bytes = bytes(16),
) -> bytearray:
    """A header page for a new file, with a random identity. The origin is filled in by `create`."""
    text = schema.text.encode() if schema else b""
    if len(text) > kernel.SCHEMA_TEXT:
        raise ValueError(
            f"codec name and schema text are {len(text):,} bytes, a header holds {kernel.SCHEMA_TEXT:,}: pass "
            "a shorter schema= (a digest of yours, say), or an object with encode, decode and a short name as codec="
        )
    digest = schema.hash if schema else bytes(16)
    fixed = _IMMUTABLE.pack(
        MAGIC,
        kernel.BYTE_ORDER,
        *kernel.FORMAT,
        kind.encode(),
        0,
        os.urandom(16),
        parent,
        time.time_ns(),
        DURABILITIES.index(durability),
        min(len(text), kernel.SCHEMA_TEXT),
        digest,
        *options,
        *(0,) * (kernel.OPTIONS - len(options)),
        text[: kernel.SCHEMA_TEXT],
        0,
    )
    page = bytearray(kernel.PAGE)
    page[: len(fixed)] = fixed
    page[kernel.CHECKED : kernel.IMMUTABLE] = xxhash.xxh3_64_intdigest(fixed).to_bytes(8, "little")
    return page


def identity_of(page: bytes | bytearray) -> bytes:
    """The identity in a header page."""
    return bytes(page[32:48])


def parse_header(page: bytes, path: str, kind: str | None = None) -> Header:
    """Checks a header page and reads it; `kind` is what the caller can use.

    Raises IncompatibleFormat for what is not ours, or of another version or kind, and CorruptionError for what is ours
    but damaged.
    """
    if len(page) < kernel.PAGE:
        found = "empty" if not page else f"{len(page)} bytes long"
        raise IncompatibleFormat(
            f"{path} is {found}; a file of mmapds has a header of {kernel.PAGE} bytes. It is left as it is: "
            "give another path, or remove it if it is yours."
        )
    fields = _IMMUTABLE.unpack_from(page)
    magic, order, major, minor, raw_kind, flags, identity, parent, created, power, length, digest = fields[:12]
    options, text, zero = fields[12:-2], fields[-2], fields[-1]
    if magic != MAGIC:
        raise IncompatibleFormat(f"{path} is not a file of mmapds: it starts with {magic!r}, not {MAGIC!r}")
    if order != kernel.BYTE_ORDER:
        raise IncompatibleFormat(
            f"{path}: byte-order mark 0x{order:08x}, expected 0x{kernel.BYTE_ORDER:08x}: from a big-endian machine?"
        )
    if major != kernel.FORMAT[0]:
        raise IncompatibleFormat(
            f"{path} has format {major}.{minor}; this release reads {kernel.FORMAT[0]}: use the one that wrote it"
        )
    check = int.from_bytes(page[kernel.CHECKED : kernel.IMMUTABLE], "little")
    computed = xxhash.xxh3_64_intdigest(page[: kernel.CHECKED])
    if check != computed:
        raise CorruptionError(
            f"{path}: the header is damaged (checksum 0x{check:016x} stored, 0x{computed:016x} found): restore a copy"
        )
    name = raw_kind.rstrip(b"\0").decode("ascii", "backslashreplace")
    if flags or zero:
        raise IncompatibleFormat(
            f"{path} needs features 0x{flags:x} that this release lacks: use the one that wrote it"
        )
    if kind is not None and name != kind:
        raise IncompatibleFormat(f"{path} is a file of kind {name!r}, not {kind!r}: give another path")
    if power >= len(DURABILITIES) or length > kernel.SCHEMA_TEXT:
        raise CorruptionError(f"{path}: durability {power} or schema length {length} is out of range")
    schema = Schema(hash=digest, text=text[:length].decode("utf-8", "replace"))
    boot, device, inode, pid, start, comm, failed = _MUTABLE.unpack_from(page, kernel.IMMUTABLE)
    return Header(
        name,
        (major, minor),
        identity,
        parent,
        created,
        DURABILITIES[power],
        options,
        schema,
        boot,
        device,
        inode,
        pid,
        start,
        comm.rstrip(b"\0").decode("utf-8", "replace"),
        failed,
    )


@cache
def boot_id() -> bytes:
    """16 bytes that the kernel draws at each boot. Read once: a process does not outlive it."""
    return bytes.fromhex(kernel.read_small("/proc/sys/kernel/random/boot_id").decode().strip().replace("-", ""))


def set_origin(fd: int, page: bytearray) -> None:
    """Fills the origin of `fd` into its header page: from here on its volatile words may be trusted on this boot."""
    status = os.fstat(fd)
    page[ORIGIN] = boot_id() + status.st_dev.to_bytes(8, "little") + status.st_ino.to_bytes(8, "little")
