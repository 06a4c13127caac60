"""What a file of mmapds is, and whether it is sound: without changing it, or taking a lock.

Promise
    `describe` says what any file of ours is and what its header says. `verify` checks every header, record, size,
    cross-reference and checksum of the structure that a path belongs to, and returns what it found: an "error" is
    corruption (somebody will trip over it), a "warning" is wrong and harms nobody yet, a "note" is worth knowing and
    normal after a death (half a value in the inactive file, a slot of a dead process). A structure that is sound has no
    findings. Both work beside a busy writer and never take its traces for corruption: what depends on the version is
    believed only if the version is the same before and after; otherwise they look again.

    Bytes are untrusted: each length is read once and checked before it is used, values are hashed in pieces of 1 MiB,
    and a file that shrinks meanwhile is a finding and not a SIGBUS: files are read, and only the segments of a queue,
    and the layers and the delta of a snapshot map, are mapped, guarded.

Prior art
    ``bbolt check``, ``journalctl --verify``, ``btrfs scrub``; sortedcontainers' ``_check()``.

Rejected
    Checking through the structure itself: it stops at the first fault, takes a slot, and may recover what one wanted to
    look at. A repair mode: opening is the recovery, and what that cannot mend needs a copy.
"""

from __future__ import annotations

import errno
import os
import re

from mmapds import files
from mmapds.errors import CorruptionError
from mmapds.inspection import (
    _counters,
    _counters_check,
    _crate,
    _queue,
    _queue_check,
    _queue_words,
    _snapshot,
    _snapshot_check,
    _snapshot_words,
    _sync,
    _sync_check,
)
from mmapds.inspection._base import Finding, Report, described_header, first_page, opened
from mmapds.region import StrPath

__all__ = ["Finding", "describe", "verify"]

_NAME = re.compile(r"(.+)_(sync|state|data_[01])", re.DOTALL)


def describe(path: StrPath) -> dict[str, object]:
    """What the file at `path` is and what its header says, in words; a prefix stands for its control file, and the
    directory of a queue or a snapshot map for its meta file or manifest.

    Changes nothing and needs no write permission. A writer may be at work: then words that are not of one record may be
    of two moments. Raises IncompatibleFormat for what is not ours, CorruptionError for a damaged header,
    FileNotFoundError.
    """
    path = _resolve(os.fsdecode(path))
    if os.path.isdir(path):
        return _queue_words.describe(path) if _queue.is_queue(path) else _snapshot_words.describe(path)
    if _snapshot.map_of(path):
        return _snapshot_words.describe(path)
    protocol, prefix, part = _place(path)
    if protocol == "mmap-sync":
        return _crate.describe_state(path) if part == "state" else _crate.describe_data(path, prefix, int(part[-1]))
    if protocol == "emmap":
        return _counters.describe_emmap(path)
    with opened(path) as fd:
        header = files.parse_header(first_page(fd), path)
        common = described_header(fd, path, header)
        if header.kind == "sync":
            return common | _sync.described_control(fd, path, header)
        if header.kind == "syncdata":
            return common | _sync.described_data(fd, prefix, header)
        if header.kind == "counters":
            return common | _counters.described(fd, header)
    if header.kind in ("layer", "delta"):
        return _snapshot_words.describe(path)
    return _queue_words.describe(path) if header.kind in ("queue", "segment") else common


def verify(path: StrPath) -> list[Finding]:
    """Everything that is wrong with the structure that `path` (one of its files, its prefix or directory) belongs to.

    The worst first; empty if it is sound. Raises IncompatibleFormat if nothing there is ours, or if it is of another
    format; FileNotFoundError, PermissionError. Reads the whole value: some seconds for each 10 GB.
    """
    path = _resolve(os.fsdecode(path))
    is_folder = os.path.isdir(path)
    if queue := (path if _queue.is_queue(path) else "") if is_folder else _queue.queue_of(path):
        return _queue_check.verify(queue)
    if folder := path if is_folder else _snapshot.map_of(path):
        return _snapshot_check.verify(folder)
    protocol, prefix, _ = _place(path)
    if protocol == "mmap-sync":
        return _crate.verify(prefix)
    if protocol == "emmap":
        return _counters_check.verify_emmap(path)
    if protocol == "counters":
        return _counters_check.verify(path)
    if prefix:
        return _sync_check.verify(prefix)
    with opened(path) as fd:
        header = files.parse_header(first_page(fd), path)
    if header.kind in ("layer", "delta"):
        return _snapshot_check.verify_alone(path)
    report = Report()
    report.note(
        os.path.basename(path),
        f"is of kind {header.kind!r} and has a name of its own, so that the files beside it are not known: only its "
        "header was checked",
    )
    return report.findings()


def check(path: StrPath) -> None:
    """CorruptionError with all that `verify` calls an error, if there is any: what the structures' own `check` does."""
    broken = [finding for finding in verify(path) if finding.severity == "error"]
    if broken:
        raise CorruptionError("; ".join(f"{finding.where}: {finding.what}" for finding in broken))


def _resolve(path: str) -> str:
    """The file, or the directory of a queue or map, that a path or a prefix means."""
    if os.path.lexists(path) and (not os.path.isdir(path) or _queue.is_queue(path) or _snapshot.is_map(path)):
        return path
    for suffix in ("_sync", "_state"):
        if os.path.lexists(path + suffix):
            return path + suffix
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise FileNotFoundError(errno.ENOENT, "no such file, and no Synchronizer of that prefix", path)


def _place(path: str) -> tuple[str, str, str]:
    """(protocol, prefix, part) of a file; the prefix is empty if the name is not one that a structure gives."""
    with opened(path) as fd:
        head = os.pread(fd, 24, 0)
        size = os.fstat(fd).st_size
    ours = head.startswith(files.MAGIC)
    match = _NAME.fullmatch(path)
    prefix, part = match.groups() if match else ("", "")
    if part == "state":
        if not ours and size in (0, _crate.STATE_SIZE):
            return "mmap-sync", prefix, part
        prefix = ""
    elif part not in ("", "sync") and not ours and not os.path.lexists(prefix + "_sync"):
        if os.path.lexists(prefix + "_state"):
            return "mmap-sync", prefix, part
        prefix = ""
    if part in ("", "sync", "state") or not os.path.lexists(prefix + "_sync"):  # it is not one of a set
        if head.startswith(_counters.EMMAP_MAGIC):
            return "emmap", "", ""
        if ours and head[16:] == b"counters":
            return "counters", "", ""
    return "mmapds", prefix, part if prefix else ""
