"""The first part of the demo: one process publishes a table, others read it; a reader and the writer are killed."""

from __future__ import annotations

import contextlib
import os
import time
import unicodedata
from collections.abc import Callable
from typing import Any

from mmapds import Synchronizer, inspection
from mmapds._native.kernel import PAGE
from mmapds.demo.cast import Cast, Worker


def play(prefix: str, seconds: float, count: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Plays this part in about so many seconds and returns what came of it."""
    with Cast(prefix, Worker) as cast:
        return _play(cast, seconds, count, progress)


def _play(cast: Cast[Worker], seconds: float, count: int, progress: Callable[[str], None]) -> dict[str, Any]:
    progress(f"Unicode {unicodedata.unidata_version}, one writer, {count} readers, files in {cast.prefix}_*")
    Synchronizer(cast.prefix).close()  # says at once if files cannot be made here
    writer = cast.add("writer", 1)
    readers = [cast.add("reader", number) for number in range(1, count + 1)]
    cast.until(lambda: writer.said("published"), "the first version")
    heir = cast.add("writer", 2)
    cast.until(lambda: heir.said("waiting"), "the second writer")
    progress(f"{heir.name} waits for the place of: {heir.said('waiting')[0]['holder']}")
    cast.until(lambda: all(reader.said("ready") for reader in readers), "the readers")
    ready = readers[0].said("ready")[0]
    progress(f"{ready['rows']:,} rows, {ready['length']:,} bytes a version; reading for {seconds:g} seconds")

    before = len(writer.said("published")) - 1  # the newest one is still to be seen
    begin = time.monotonic()
    for reader in readers:
        reader.tell("go")
    cast.until_time(begin + 0.3 * seconds)

    victim = readers[0]
    victim.tell("hold")
    cast.until(lambda: victim.said("holding"), "a reader that holds a version")
    victim.kill()
    progress(f"{victim.name} (pid {victim.pid}) killed while it held a version")
    cast.until_time(begin + 0.6 * seconds)

    watch = _HalfWritten(cast.prefix, ready["length"])
    with contextlib.closing(watch.sync):
        caught = cast.stop_when(writer, watch, limit=max(seconds, 2.0))
    cast.until_time(time.monotonic() + min(0.03 * seconds, 0.3))  # the readers go on meanwhile
    kill_time = time.monotonic_ns()
    writer.kill()
    progress(
        f"{writer.name} (pid {writer.pid}) killed {'in the middle of a write' if caught else 'between two writes'}"
    )
    alive = readers[1:]
    cast.until(lambda: _first_seen(alive, 2), "a version of the second writer")
    takeover = (_first_seen(alive, 2) - kill_time) / 1e9
    progress(f"{heir.name} took over: its first version was seen after {takeover * 1000:.1f} ms")
    cast.until_time(begin + seconds)
    cast.until(lambda: len(heir.said("published")) > 2, "versions of the second writer")

    for worker in (*alive, heir):
        worker.tell("stop")
    elapsed = time.monotonic() - begin
    cast.until(lambda: all(worker.done for worker in (*alive, heir)), "the end")
    reports = [*victim.said("holding"), *(reader.said("done")[0] for reader in alive)]
    seen = {tuple(version) for report in reports for version in report["versions"]}
    published = [*writer.said("published")[before:], *heir.said("published")]
    findings = inspection.verify(cast.prefix)
    reads = sum(report["reads"] for report in reports)
    return {
        "unicode": unicodedata.unidata_version,
        "rows": ready["rows"],
        "bytes_per_version": ready["length"],
        "readers": count,
        "seconds": elapsed,
        "reads": reads,
        "reads_per_second": reads / elapsed,
        "versions_published": len(published),
        "versions_seen": len(seen),
        "versions_seen_after_takeover": sum(made_by == 2 for made_by, _ in seen),
        "torn_reads": sum(report["torn"] for report in reports),
        "faults": sorted({fault for report in reports for fault in report["faults"]}),
        "takeover_seconds": takeover,
        "writer_killed_in_the_middle_of_a_write": caught,
        "resets": sum(event["reset"] for event in published),
        "sound": all(finding.severity != "error" for finding in findings),
        "findings": findings,
    }


def _first_seen(readers: list[Worker], writer: int) -> int:
    """When the first of the readers saw a version of a writer; 0: none has."""
    times = [event["at"] for reader in readers for event in reader.said("writer") if event["writer"] == writer]
    return min(times, default=0)


class _HalfWritten:
    """Whether a version is being copied into its file this moment, which then is neither old nor new.

    Compares two places of the inactive file, near its ends, with what they were while it was the active one: one of
    them has changed and the other has not. Not the very ends, which some memcpy write last, both at once.
    """

    def __init__(self, prefix: str, length: int) -> None:
        self.sync = Synchronizer(prefix, mode="readonly")
        self.places = (PAGE + 1024, PAGE + length - 1024)
        self.known: dict[int, list[bytes]] = {}  # by version

    def __call__(self) -> bool:
        version = self.sync.version
        now = self.sample(version)
        if self.sync.version == version:
            self.known = {version: now, version - 1: self.known.get(version - 1, [])}
        if not (before := self.known.get(version - 1)):
            return False
        changed = [old != new for old, new in zip(before, self.sample(version - 1), strict=True)]
        return any(changed) and not all(changed) and self.sync.version == version

    def sample(self, version: int) -> list[bytes]:
        try:
            with open(f"{self.sync.prefix}_data_{version & 1}", "rb", buffering=0) as file:
                return [os.pread(file.fileno(), 64, place) for place in self.places]
        except FileNotFoundError:
            return []
