"""The calls of a Queue that are timed in one process, and what they are measured by."""

from __future__ import annotations

import os
import queue
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgpack

from mmapds import Queue
from mmapds._native.unit import Unit
from mmapds.bench.measure import Case, only, statement

__all__ = ["DELAYED", "ITEM", "SIZE", "calls", "claims", "durable"]

SIZE = 100  # bytes
ITEM = b"x" * SIZE
ORDER = ("order", 12345, ITEM)
DELAYED = 100_000
_BATCH = 100
_CLAIMS = 1000
_FILE = 1 << 20


def calls(stack: ExitStack, directory: str) -> list[Case]:
    """Everything that takes nanoseconds."""
    q = stack.enter_context(Queue(f"{directory}/raw", codec="raw"))
    orders = stack.enter_context(Queue(f"{directory}/orders", codec="msgpack"))
    batch = [ITEM] * _BATCH
    codec = {"pack": msgpack.Packer().pack, "unpack": msgpack.unpackb, "order": ORDER}
    return [
        statement("U", "unit.call()", {"unit": Unit()}),
        statement("deque", "d.append(item)\nd.popleft()", {"d": deque(), "item": ITEM}),
        statement("simple", "s.put(item)\ns.get()", {"s": queue.SimpleQueue(), "item": ITEM}),
        statement("queue", "s.put(item)\ns.get()", {"s": queue.Queue(), "item": ITEM}),
        statement("put_get", "q.put(item)\nq.get()", {"q": q, "item": ITEM}),
        statement("put_claim", "q.put(item)\nq.claim().ack()", {"q": q, "item": ITEM}),
        statement(
            "many", "q.put_many(batch)\nq.get_many(n)", {"q": q, "batch": batch, "n": _BATCH}, repeat=1, each=100
        ),
        statement("msgpack", "q.put(order)\nq.get()", {"q": orders, "order": ORDER}),
        statement("pack_unpack", "unpack(pack(order))", codec),
    ]


def claims(stack: ExitStack, directory: str, delayed: int) -> list[Case]:
    """Claims alone, in a queue with many items that are not due, and in one without."""
    cases = []
    for name, count in (("claim_alone", 0), ("claim_delayed", delayed)):
        q = stack.enter_context(Queue(f"{directory}/{name}", codec="raw"))
        q.put_many([ITEM] * count, delay=86_400)
        cases.append(only(name, _claims(q), each=_CLAIMS))
    return cases


def _claims(q: Queue) -> Callable[[], float]:
    batch = [ITEM] * _CLAIMS

    def take() -> float:
        q.put_many(batch)
        claim = q.claim
        found: list[Any] = []
        keep = found.append
        start = time.perf_counter()
        for _ in batch:
            keep(claim())
        taken = time.perf_counter() - start
        for one in found:
            one.ack()
        return taken

    return take


def durable(stack: ExitStack, disk: str) -> list[Case]:
    """A put that waits for the disk, and the cheapest others that do."""
    q = stack.enter_context(Queue(f"{disk}/power", codec="raw", durability="power"))
    return [
        statement("power", "q.put(item)", {"q": q, "item": ITEM}, repeat=1),
        _fdatasync(stack, f"{disk}/fdatasync"),
        _sqlite(stack, f"{disk}/sqlite"),
    ]


def _fdatasync(stack: ExitStack, path: str) -> Case:
    """Bytes behind bytes, in a file all of whose blocks have been written before: nothing but data goes to the disk."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    stack.callback(os.close, fd)
    os.pwrite(fd, bytes(_FILE), 0)
    os.fsync(fd)
    at = 0

    def write() -> float:
        nonlocal at
        start = time.perf_counter()
        os.pwrite(fd, ITEM, at)
        os.fdatasync(fd)
        taken = time.perf_counter() - start
        at = (at + SIZE) % (_FILE - SIZE)
        return taken

    return only("fdatasync", write)


def _sqlite(stack: ExitStack, path: str) -> Case:
    connection = sqlite3.connect(path, isolation_level=None)
    stack.callback(connection.close)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, data BLOB)")
    names = {"execute": connection.execute, "values": (ITEM,)}
    return statement("sqlite", 'execute("INSERT INTO items (data) VALUES (?)", values)', names, repeat=1)
