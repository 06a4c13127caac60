"""One unrelated Python process of the interoperability tests; prints lines, flushed at once.

    peer.py publish PREFIX [FIFO...]   publishes the archives on stdin; with FIFOs, each version
                                       only when every FIFO has acknowledged the one before
    peer.py read PREFIX UNTIL          reads until it sees version UNTIL; JSON summary
    peer.py hold PREFIX                writes version 1, keeps the writer lock until stdin ends
    peer.py pin PREFIX                 holds a read until stdin ends
    peer.py archives                   compares the archives on stdin with what we would encode

Archives on stdin are as `interop archives` writes them: u32 length, bytes.
"""

from __future__ import annotations

import importlib
import json
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import mmapds

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
common: Any = importlib.import_module("common")
codec = common.HelloWorldCodec()

GRACE = 60.0  # a live reader is waited for: a reset would be a failure


def expected(version: int) -> Any:
    """The one value that belongs to `version`, as in rust/src/model.rs."""
    length = ((version * 2_654_435_761) & 0xFFFF_FFFF) >> 20
    if version % 64 == 63:
        length *= 9
    letter = chr(ord("a") + version % 26)
    return common.HelloWorld(version, [str(version), letter * length, str(version)])


def say(line: str) -> None:
    print(line, flush=True)


def archives(stream: BinaryIO) -> Iterator[bytes]:
    while head := stream.read(4):
        yield stream.read(struct.unpack("<I", head)[0])


def opened(prefix: str) -> mmapds.Synchronizer:
    return mmapds.Synchronizer(prefix, protocol="mmap-sync", codec="raw")


def publish(prefix: str, *fifos: str) -> None:
    acks = [open(fifo, "rb", buffering=0) for fifo in fifos]  # noqa: SIM115 (for the whole life)
    resets = 0
    with opened(prefix) as s:
        for version, data in enumerate(archives(sys.stdin.buffer), 1):
            result = s.write_bytes(data, grace=GRACE)
            resets += result.reset
            for ack in acks:
                # Each reader writes u32 versions that only grow; 4 bytes of a pipe come whole.
                while (seen := ack.read(4)) and struct.unpack("<I", seen)[0] < version:
                    pass
                if not seen:
                    raise SystemExit(f"a reader went away at version {version}")
    say(json.dumps({"published": version, "resets": resets}))


def read(prefix: str, until: str) -> None:
    counts = dict.fromkeys(["reads", "versions", "torn", "invalid", "changed", "backwards"], 0)
    last = 0
    with opened(prefix) as s:
        say("ready")
        while last < int(until):
            try:
                r = s.read()
            except mmapds.NotInitialised:
                time.sleep(0.001)
                continue
            with r:
                counts["reads"] += 1
                before = bytes(r.data)
                try:
                    value = codec.decode(r.data)
                except ValueError:
                    counts["invalid"] += 1
                    continue
                if counts["reads"] % 64 == 0:
                    time.sleep(0.0005)  # stay for a while, to let a writer that would not wait in
                counts["changed"] += bytes(r.data) != before
            counts["torn"] += value != expected(value.version)
            if value.version == last:
                os.sched_yield()  # there are more processes here than some machines have cores
                continue
            counts["versions"] += 1
            counts["backwards"] += value.version < last
            last = value.version
    say(json.dumps({**counts, "last": last}))


def hold(prefix: str) -> None:
    with opened(prefix) as s:
        s.write_bytes(codec.encode(expected(1)), grace=GRACE)
        say("holding")
        sys.stdin.read()


def pin(prefix: str) -> None:
    with opened(prefix) as s, s.read():
        say("pinned")
        sys.stdin.read()


def compare() -> None:
    compared = 0
    for version, data in enumerate(archives(sys.stdin.buffer), 1):
        value = codec.decode(memoryview(data))
        assert value == expected(version), f"decoded {value}"
        assert codec.encode(value) == data, f"encoded {codec.encode(value)!r}, crate: {data!r}"
        compared += 1
    say(str(compared))


if __name__ == "__main__":
    roles: Any = {"publish": publish, "read": read, "hold": hold, "pin": pin, "archives": compare}
    roles[sys.argv[1]](*sys.argv[2:])
