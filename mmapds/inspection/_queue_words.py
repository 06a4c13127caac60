"""A queue in words: what `mmapds inspect` says of it, and of its segments."""

from __future__ import annotations

import os
import stat
import struct
from contextlib import suppress
from typing import Any

from mmapds import _deflate, files
from mmapds._native import kernel
from mmapds._native.queuescan import SegmentReader, boottime
from mmapds._queuefiles import DEAD, META, QUARANTINE, SEGMENT, boot_offset, segment_name
from mmapds.errors import CorruptionError, IncompatibleFormat
from mmapds.inspection._base import described_header, first_page, opened, settled
from mmapds.inspection._queue import (
    CLAIMED,
    DELAYED,
    END_OF_ALL,
    HEAD,
    LEASED,
    READY,
    TALLIES,
    Looking,
    Snapshot,
    look,
    mapped,
    read_words,
    sizes_fit,
)


def _waiting(snapshot: Snapshot) -> int:
    kinds, words = snapshot.kinds(), snapshot.words
    return words["tail_sequence"] - words["head_sequence"] + kinds[DELAYED] + kinds[READY]


def _described_meta(fd: int, folder: str, header: files.Header) -> dict[str, object]:
    """What the queue of a meta file holds, beyond what every header says."""
    size, maxsize, max_bytes, max_attempts, level, least = header.options[:6]
    words = read_words(fd)
    found: dict[str, object] = {
        "options": {
            "segment_size": size,
            "maxsize": maxsize,
            "max_bytes": max_bytes or None,
            "max_attempts": max_attempts or None,
            "compress": _deflate.text_of(level, least),
        },
        "durability_failed": bool(header.failed),
        "in_use": kernel.locked(fd, kernel.LOCK_SLOT),
    }
    if words is None or not sizes_fit(words, os.fstat(fd).st_size):
        return found | {"cut": f"{os.fstat(fd).st_size} bytes: fewer than its words say"}
    snapshot = look(fd)
    if snapshot is not None:
        words = snapshot.words
        kinds = snapshot.kinds()
        found |= {
            "items": _waiting(snapshot),
            "delayed": kinds[DELAYED],
            "returned": kinds[READY],
            "claimed": kinds[CLAIMED] + kinds[LEASED],
            "leased": kinds[LEASED],
            "holders": [
                {"slot": s.number, "pid": s.pid, "alive": s.alive(fd), "claimed": s.claimed, "owing": s.owing}
                for s in snapshot.slots
                if s.token
            ],
        }
    return found | {
        "busy": snapshot is None,
        "epoch": words["epoch"],
        "head": words["head"],
        "head_sequence": words["head_sequence"],
        "tail": words["tail"],
        "tail_sequence": words["tail_sequence"],
        "index": {name: words[name] for name in ("capacity", "used", "timed", "ready", "waiting_bytes")},
        "shutdowns": words["shutdowns"],
        **{name: words[name] for name in TALLIES},
        "segments": _described_segments(folder),
        "quarantine": _described_folder(os.path.join(folder, QUARANTINE)),
        "dead": _described_dead(os.path.join(folder, DEAD)),
    }


def _described_segments(folder: str) -> list[dict[str, int]]:
    found = []
    for number in sorted(int(match[1], 16) for name in os.listdir(folder) if (match := SEGMENT.fullmatch(name))):
        with suppress(FileNotFoundError):  # finished meanwhile
            status = os.lstat(os.path.join(folder, segment_name(number)))
            found.append({"number": number, "size": status.st_size, "disk": status.st_blocks * 512})
    return found


def _described_folder(folder: str) -> dict[str, int] | None:
    try:
        sizes = [entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder)]
    except OSError:
        return None
    return {"files": len(sizes), "bytes": sum(sizes)}


def _described_dead(folder: str) -> dict[str, object] | None:
    path = os.path.join(folder, META)
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            return None
        with opened(path) as fd:
            header = files.parse_header(first_page(fd), path, "queue")
            words = read_words(fd)
            fits = words is not None and sizes_fit(words, os.fstat(fd).st_size)
            snapshot = look(fd) if fits else None
    except (OSError, CorruptionError, IncompatibleFormat):
        return None
    if snapshot is None:
        return {"path": folder, "identity": header.identity.hex()}
    words, kinds = snapshot.words, snapshot.kinds()
    waiting = words["tail_sequence"] - words["head_sequence"] + kinds[DELAYED] + kinds[READY]
    return {
        "path": folder,
        "identity": header.identity.hex(),
        "items": waiting,
        "claimed": kinds[CLAIMED] + kinds[LEASED],
    }


def _described_segment(fd: int, path: str, page: bytes, header: files.Header) -> dict[str, Any]:
    """What a segment holds, beyond what every header says."""
    number, units = header.options[:2]
    size = os.fstat(fd).st_size
    dirtied, synced, lock = struct.unpack_from("<3Q", page, 2304)
    found: dict[str, Any] = {
        "options": {"number": number, "units": units},
        "synced": synced,
        "dirtied": dirtied,
        "syncing": lock != 0,
    }
    if (
        not units
        or size < kernel.PAGE
        or size % units
        or size // units % kernel.PAGE
        or (number + units) * (size // units) >= END_OF_ALL
        or size > END_OF_ALL
    ):
        return found | {"cut": f"{size} bytes, for {units} units"}
    reader = mapped(fd, size, number * (size // units), header.parent, path)
    states = dict.fromkeys(("new", "claimed", "returned", "done", "unknown"), 0)
    at, first, last, ended = reader.start + kernel.PAGE, None, None, False
    while reader.stop - at >= HEAD and (record := reader.at(at)) is not None:
        if record.end:
            ended = True
            break
        last = f"{record.epoch}-{record.sequence}"
        first = first or last
        states[("unknown", "new", "claimed", "returned", "done")[record.what if record.what < 5 else 0]] += 1
        at = record.next
    return found | {
        "start": reader.start,
        "stop": reader.stop,
        "records": {"first": first, "last": last, "ended": ended, "read_up_to": at, **states},
    }


def claims(path: str) -> list[dict[str, object]] | None:
    """Who holds what in the queue of a directory, in the order of items; None if it is changed all the while. Nobody
    holds anything of a queue of another boot, or of a copy."""
    meta = os.path.join(path, META)
    with opened(meta) as fd:
        page = first_page(fd)
        header = files.parse_header(page, meta, "queue")
        words = read_words(fd)
        if words is None or not sizes_fit(words, os.fstat(fd).st_size):
            raise CorruptionError(f"{meta}: `mmapds verify` says what is wrong with it")
        if not settled(fd, page):
            return []
        snapshot = look(fd)
        if snapshot is None:
            return None
        holders = {slot.number: (slot.pid, slot.alive(fd)) for slot in snapshot.slots if slot.token}
    now = boottime(boot_offset())
    held = [number for number in range(1, snapshot.used + 1) if snapshot.kind(number) in (CLAIMED, LEASED)]
    found: list[dict[str, object]] = []
    queue, reader = Looking(path, header), None
    for number in sorted(held, key=snapshot.position):
        position, sequence, size, due = snapshot.quads[12 * number - 12 : 12 * number - 8]
        holder, attempts = snapshot.halves[24 * number - 6 : 24 * number - 4]
        if reader is None or not reader.start <= position < reader.stop:
            reader = _reader(queue, position // queue.segment_size)
        record = reader.at(position) if reader else None
        pid, alive = holders.get(holder, (None, False))
        found.append(
            {
                "id": f"{record.epoch if record else '?'}-{sequence}",
                "pid": pid,
                "alive": alive,
                "attempts": attempts,
                "lease": max(0, due - now) / 1e9 if snapshot.kind(number) == LEASED else None,
                "put_at": record.born / 1e9 if record else None,
                "size": size,
            }
        )
    return found


def _reader(queue: Looking, number: int) -> SegmentReader | None:
    try:
        fd, size = queue.open_segment(number, writable=False)
    except (OSError, CorruptionError, IncompatibleFormat):
        return None  # finished meanwhile, or damaged
    try:
        return mapped(fd, size, number * queue.segment_size, queue.meta.header.identity, queue.segment_path(number))
    finally:
        os.close(fd)


def describe(path: str) -> dict[str, object]:
    """A queue in words: its meta file, or one of its segments."""
    if os.path.isdir(path):
        path = os.path.join(path, META)
    with opened(path) as fd:
        page = first_page(fd)
        header = files.parse_header(page, path)
        common = described_header(fd, path, header)
        if header.kind == "queue":
            return common | _described_meta(fd, os.path.dirname(path) or ".", header)
        if header.kind == "segment":
            return common | _described_segment(fd, path, page, header)
        return common
