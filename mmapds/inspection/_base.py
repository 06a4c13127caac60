"""What the inspection of every kind of file needs: findings, careful reading, and the header in words."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import xxhash

from mmapds import files
from mmapds._native import kernel
from mmapds.errors import IncompatibleFormat

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

ATTEMPTS = 30
_CHUNK = 1 << 20
_ZERO = ((2080, 2112), (2160, 2176), (2184, 4096))  # between and behind the mutable words: see layout.h
_ZERO_IN = {  # a data file has an origin, and no holder or failure of its own; a segment has words of its own
    "syncdata": ((2080, 4096),),
    "segment": ((2080, 2304), (2336, 4096)),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found: how bad it is, in which file and part of it, and what it is."""

    severity: Severity
    where: str
    what: str


class Report:
    """Collects findings. One that is `passing` means something only if the version did not change meanwhile."""

    def __init__(self) -> None:
        self._lasting: list[Finding] = []
        self._passing: list[Finding] = []

    def add(self, severity: Severity, where: str, what: str, *, passing: bool = False) -> None:
        """Adds a finding; the same one twice counts once."""
        finding = Finding(severity, where, what)
        found = self._passing if passing else self._lasting
        if finding not in found:
            found.append(finding)

    def error(self, where: str, what: str, *, passing: bool = False) -> None:
        """Adds what somebody will trip over."""
        self.add("error", where, what, passing=passing)

    def warning(self, where: str, what: str, *, passing: bool = False) -> None:
        """Adds what is wrong and harms nobody yet."""
        self.add("warning", where, what, passing=passing)

    def note(self, where: str, what: str, *, passing: bool = False) -> None:
        """Adds what is worth knowing."""
        self.add("note", where, what, passing=passing)

    @property
    def doubtful(self) -> bool:
        """Whether there is a passing finding that matters."""
        return any(finding.severity != "note" for finding in self._passing)

    def settle(self) -> None:
        """The version is still the same: what was found up to now stands."""
        for finding in self._passing:
            if finding not in self._lasting:
                self._lasting.append(finding)
        self._passing.clear()

    def forget_passing(self) -> None:
        """Drops the passing findings: the version has changed."""
        self._passing.clear()

    def doubt(self) -> None:
        """Everything is passing: what was looked at is not what is there now."""
        self._passing = self._lasting + self._passing
        self._lasting = []

    def findings(self) -> list[Finding]:
        """All of them, the worst first."""
        return sorted(self._lasting + self._passing, key=lambda finding: SEVERITIES.index(finding.severity))


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor of a regular file, for reading; anything else is refused."""
    fd = files.open_regular(path, writable=False)
    try:
        yield fd
    finally:
        os.close(fd)


def first_page(fd: int) -> bytes:
    """The header page, or as much of it as there is."""
    return os.pread(fd, kernel.PAGE, 0)


def hash_range(fd: int, offset: int, size: int) -> int | None:
    """The xxh3_64 of a range of a file, read in pieces; None if the file ends before the range does."""
    hasher = xxhash.xxh3_64()
    piece = memoryview(bytearray(min(size, _CHUNK)))
    while size > 0:
        found = os.preadv(fd, [piece[: min(size, _CHUNK)]], offset)
        if found == 0:
            return None
        hasher.update(piece[:found])
        offset += found
        size -= found
    return hasher.intdigest()


def check_zero(report: Report, where: str, data: bytes, ranges: Iterable[tuple[int, int]], offset: int = 0) -> None:
    """Reports reserved bytes that are not zero: this release never writes them. `offset`: of the data in the file."""
    for start, end in ranges:
        part = data[start:end]
        if any(part):
            first = start + len(part) - len(part.lstrip(b"\0"))
            report.warning(where, f"byte {offset + first} is 0x{data[first]:02x}: it is reserved and must be 0")


def check_header(report: Report, where: str, page: bytes, header: files.Header) -> None:
    """Reports what `files.parse_header` lets pass: text that does not match its hash, reserved bytes."""
    length = int.from_bytes(page[76:80], "little")
    if 0 < length < kernel.SCHEMA_TEXT:  # a longer text is cut
        digest = xxhash.xxh3_128_digest(page[352 : 352 + length])
        if digest != header.schema.hash:
            report.error(
                where, f"the schema text hashes to {digest.hex()}, and {header.schema.hash.hex()} is stored with it"
            )
    check_zero(report, where, page, _ZERO_IN.get(header.kind, _ZERO))


def check_temporaries(report: Report, prefix: str, parts: str = "_.*") -> None:
    """Reports files with a temporary name: a death left them, or somebody is creating one this moment. `parts` is what
    may follow the prefix, as a regular expression. Nothing is said of a directory that may not be listed."""
    pattern = re.compile(r"\." + re.escape(os.path.basename(prefix)) + parts + r"\.[0-9a-f]{8}\.tmp", re.DOTALL)
    with suppress(PermissionError), os.scandir(os.path.dirname(prefix) or ".") as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name):
                report.note(entry.name, "was left by a process that died while it created a file; it can be removed")


_NEVER_STILL = "a writer published all the while, faster than the value could be read: it was not checked"


def until_still(
    examine: Callable[[], tuple[Report, bool]], where: str = "value", never: str = _NEVER_STILL
) -> list[Finding]:
    """Repeats a look until what it found means something; `examine` returns what it found and whether it was disturbed.

    After a number of attempts, with pauses from 0.5 ms to 0.1 s, what depends on the version is not reported, but in a
    note that says `never`.
    """
    for attempt in range(ATTEMPTS):
        report, disturbed = examine()
        if not disturbed:
            return report.findings()
        doubtful = report.doubtful
        report.forget_passing()
        if not doubtful:
            return report.findings()
        time.sleep(0.0005 * 1.2**attempt)
    report.note(where, never)
    return report.findings()


def without_path(error: Exception, path: str) -> str:
    """What an error says, where the file is already named."""
    text = error.strerror if isinstance(error, OSError) else None
    return (text or str(error).removeprefix(path)).lstrip(": ")


def settled(fd: int, page: bytes) -> bool:
    """Whether the words can be judged as they are: this boot wrote them, or somebody lives in the file, and nobody is
    recovering it; see OpenFile.settled."""
    status = os.fstat(fd)
    origin = files.boot_id() + status.st_dev.to_bytes(8, "little") + status.st_ino.to_bytes(8, "little")
    if page[2048:2080] == origin:
        return True
    return kernel.inhabited(fd)


def described_file(fd: int, path: str) -> dict[str, object]:
    """What the file system says."""
    status = os.fstat(fd)
    return {"path": path, "size": status.st_size, "permissions": f"{stat.S_IMODE(status.st_mode):04o}"}


def described_neighbour(path: str) -> dict[str, object]:
    """The same of a file that may be missing."""
    try:
        with opened(path) as fd:
            return described_file(fd, path)
    except (OSError, IncompatibleFormat):
        return {"path": path, "size": None}


def described_header(fd: int, path: str, header: files.Header) -> dict[str, object]:
    """The header in words, as far as it means the same in every kind of file."""
    what = {
        "sync": "control file of a Synchronizer",
        "syncdata": "data file of a Synchronizer",
        "counters": "counters, by name or by index",
        "queue": "queue: what is in it, and who holds what",
        "segment": "segment of a queue",
    }
    status = os.fstat(fd)
    codec, _, schema = header.schema.text.partition("\n")
    return {
        "what": what.get(header.kind, "a file of mmapds, of a kind that this release does not know"),
        **described_file(fd, path),
        "kind": header.kind,
        "format": "{}.{}".format(*header.format),
        "identity": header.identity.hex(),
        "parent": header.parent.hex() if any(header.parent) else None,
        "created": datetime.fromtimestamp(header.created / 1e9, UTC).isoformat(timespec="milliseconds"),
        "durability": header.durability,
        "codec": codec or None,
        "schema": schema or None,
        "schema_hash": header.schema.hash.hex() if any(header.schema.hash) else None,
        "boot": {"id": header.boot_id.hex(), "this_boot": header.boot_id == files.boot_id()},
        "origin": {
            "device": header.device,
            "inode": header.inode,
            "copied": (header.device, header.inode) != (status.st_dev, status.st_ino),
        },
    }
