"""Other ways to hand a small value to another process, on the same machine in the same run.

They promise other things than a Synchronizer does: LMDB is a whole store of keys with transactions, Redis a server that
other machines reach; the shared memory with a lock is what people write by hand, and a process killed inside its lock
stops all others for ever. The figures say what a reader pays, not which is better.

Each is left out, and says why, where it is not installed: ``pip install mmapds[bench]``, and a ``redis-server``.
"""

from __future__ import annotations

import multiprocessing
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import msgpack

from mmapds.bench.measure import Case, Cost, Figures, statement
from mmapds.bench.rows import SMALL, VALUE, Result, beside, missing

__all__ = ["cases", "results"]

_PATIENCE = 10.0  # seconds for a server to start


@dataclass(frozen=True, slots=True)
class _Peer:
    """A case of a peer, and the case of ours that does the same."""

    name: str
    what: str
    ours: str
    beside: str


_COPY = "with s.read() as r: bytes(r.data)"
_DECODE = "with s.read() as r: r.value"
_READ = "r = s.read(); r.release()"

_PEERS = (
    _Peer("crate.version_ns", "mmap-sync crate (Rust): version", "s.version", "version"),
    _Peer("crate.read_checked_ns", "mmap-sync crate (Rust): read, check_bytes = true", _READ, "read_release"),
    _Peer("crate.read_unchecked_ns", "mmap-sync crate (Rust): read, check_bytes = false", _READ, "read_release"),
    _Peer("crate.write_raw_36_ns", "mmap-sync crate (Rust): write_raw, 36 bytes", "s.write_bytes(36 B)", "write_36"),
    _Peer("crate.write_raw_1mib_ns", "mmap-sync crate (Rust): write_raw, 1 MiB", "s.write_bytes(1 MiB)", "write_1mib"),
    _Peer("shm.read", "shared_memory, lock, msgpack: read", _DECODE, "read_value"),
    _Peer("shm.load", "shared_memory, lock, msgpack: read", "s.load(), unchanged", "load"),
    _Peer("shm.write", "shared_memory, lock, msgpack: write", "s.write(value)", "write_value"),
    _Peer("lmdb.get", "LMDB: get in a read transaction of its own", _COPY, "read_copy"),
    _Peer("lmdb.get_within", "LMDB: get within one read transaction", _COPY, "read_copy"),
    _Peer("redis.get", "Redis: GET on loopback", _COPY, "read_copy"),
)


def cases(stack: ExitStack, directory: str) -> tuple[list[Case], dict[str, str]]:
    """The cases of those that are here, and why the others are not."""
    found: list[Case] = []
    reasons: dict[str, str] = {}
    for name, make in (("shm", _shared_memory), ("lmdb", _lmdb), ("redis", _redis)):
        made = make(stack, directory)
        if isinstance(made, str):
            reasons[name] = made
        else:
            found += made
    return found, reasons


def results(figures: Figures, reasons: Mapping[str, str]) -> list[Result]:
    """Every peer beside ours, in order."""
    figures = dict(figures)
    if "shm.read" in figures:
        figures["shm.load"] = figures["shm.read"]  # it has no cheaper way to see that nothing has changed
    found = []
    for peer in _PEERS:
        cost: Cost | None = figures.get(peer.name)
        ours: Cost | None = figures.get(peer.beside)
        if cost and ours:
            found.append(beside(peer.name, peer.what, cost, peer.ours, ours))
        else:
            reason = reasons.get(peer.name.partition(".")[0]) or reasons[peer.beside]
            found.append(missing(peer.name, peer.what, peer.ours, reason))
    return found


def _shared_memory(stack: ExitStack, directory: str) -> list[Case] | str:  # noqa: ARG001 - as the others
    try:
        lock = multiprocessing.Lock()
        memory = SharedMemory(create=True, size=4096)
    except OSError as error:
        return f"no shared memory here: {error}"
    stack.callback(memory.unlink)
    stack.callback(memory.close)
    length = struct.Struct("<Q")
    buffer: Any = memory.buf
    stack.callback(buffer.release)
    names = {
        "lock": lock,
        "buffer": buffer,
        "length": length.unpack_from,
        "put_length": length.pack_into,
        "unpack": msgpack.unpackb,
        "pack": msgpack.packb,
        "value": VALUE,
    }
    read = "with lock:\n    unpack(buffer[8:8 + length(buffer)[0]])"
    write = "data = pack(value)\nwith lock:\n    put_length(buffer, 0, len(data))\n    buffer[8:8 + len(data)] = data"
    timed = [statement("shm.write", write, names), statement("shm.read", read, names)]
    timed[0].clock(1)  # there is something to be read
    return timed


def _lmdb(stack: ExitStack, directory: str) -> list[Case] | str:
    try:
        import lmdb
    except ImportError as error:
        return f"lmdb cannot be imported: {error}"
    env = lmdb.open(f"{directory}/lmdb", map_size=1 << 20, sync=False)
    stack.callback(env.close)
    with env.begin(write=True) as txn:
        txn.put(b"key", bytes(SMALL))
    within = stack.enter_context(env.begin())
    return [
        statement("lmdb.get", "with env.begin() as txn:\n    txn.get(key)", {"env": env, "key": b"key"}),
        statement("lmdb.get_within", "txn.get(key)", {"txn": within, "key": b"key"}),
    ]


def _redis(stack: ExitStack, directory: str) -> list[Case] | str:
    """A server of our own on a free port of the loopback interface."""
    try:
        import redis
    except ImportError as error:
        return f"redis, the client, cannot be imported: {error}"
    program = shutil.which("redis-server")
    if program is None:
        return "there is no redis-server"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(
        [*command, "--dir", directory],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stack.callback(server.wait)
    stack.callback(server.terminate)
    client = redis.Redis(host="127.0.0.1", port=port)
    stack.callback(client.close)
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            client.set("key", bytes(SMALL))
            break
        except redis.ConnectionError:
            if server.poll() is not None:
                return f"redis-server ended with status {server.returncode}"
            if time.monotonic() > until:
                return f"redis-server did not answer within {_PATIENCE:g} seconds"
            time.sleep(0.05)
    return [statement("redis.get", "client.get(key)", {"client": client, "key": b"key"}, repeat=1)]
