"""Other ways to hand a small value to another process, on the same machine in the same run.

They promise other things than a Synchronizer does: LMDB is a whole store of keys with transactions, Redis a server that
other machines reach; the shared memory with a lock is what people write by hand, and a process killed inside its lock
stops all others for ever. The figures say what a reader pays, not which is better.
"""

from __future__ import annotations

import multiprocessing
import struct
from contextlib import ExitStack
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import msgpack

from mmapds.bench import peers
from mmapds.bench.measure import Case, statement
from mmapds.bench.rows import Peer
from mmapds.bench.sync_cases import SMALL, VALUE

__all__ = ["MAKERS", "PEERS"]

_COPY = "with s.read() as r: bytes(r.data)"
_DECODE = "with s.read() as r: r.value"
_READ = "r = s.read(); r.release()"

PEERS = (
    Peer("crate.version_ns", "mmap-sync crate (Rust): version", "s.version", "version"),
    Peer("crate.read_checked_ns", "mmap-sync crate (Rust): read, check_bytes = true", _READ, "read_release"),
    Peer("crate.read_unchecked_ns", "mmap-sync crate (Rust): read, check_bytes = false", _READ, "read_release"),
    Peer("crate.write_raw_36_ns", "mmap-sync crate (Rust): write_raw, 36 bytes", "s.write_bytes(36 B)", "write_36"),
    Peer("crate.write_raw_1mib_ns", "mmap-sync crate (Rust): write_raw, 1 MiB", "s.write_bytes(1 MiB)", "write_1mib"),
    Peer("shm.read", "shared_memory, lock, msgpack: read", _DECODE, "read_value"),
    # It has no cheaper way to see that nothing has changed.
    Peer("shm.load", "shared_memory, lock, msgpack: read", "s.load(), unchanged", "load", measured="shm.read"),
    Peer("shm.write", "shared_memory, lock, msgpack: write", "s.write(value)", "write_value"),
    Peer("lmdb.get", "LMDB: get in a read transaction of its own", _COPY, "read_copy"),
    Peer("lmdb.get_within", "LMDB: get within one read transaction", _COPY, "read_copy"),
    Peer("redis.get", "Redis: GET on loopback", _COPY, "read_copy"),
)


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
    client = peers.redis(stack, directory)
    if isinstance(client, str):
        return client
    client.set("key", bytes(SMALL))
    return [statement("redis.get", "client.get(key)", {"client": client, "key": b"key"}, repeat=1)]


MAKERS = {"shm": _shared_memory, "lmdb": _lmdb, "redis": _redis}
