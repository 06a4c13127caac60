"""Other queues, on the same machine in the same run.

They promise other things than a Queue does. A deque and the queues of the standard library belong to one process, and
are lost with it; those of multiprocessing, and faster_fifo's, belong to a process and its children. persist-queue keeps
pickles in files, for the threads of one process; litequeue and diskcache are tables of SQLite, shared by processes.
Redis is a server that other machines reach. None of these waits for the disk here, and neither does ours beside them.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack

from mmapds.bench import peers
from mmapds.bench.measure import Case, statement
from mmapds.bench.queue_cases import ITEM
from mmapds.bench.rows import Peer

__all__ = ["PEERS", "PINNED", "SERVERS"]

_PUT_GET = "q.put(100 B); q.get(), raw"

PEERS = (
    Peer("queue", "queue.Queue: put, get", _PUT_GET, "put_get"),
    Peer("redis.list", "Redis: LPUSH, RPOP on loopback", _PUT_GET, "put_get"),
    Peer(
        "two_pipe",
        "multiprocessing.Pipe, one end to the other",
        "one producer and one consumer process",
        "two",
        "",
        True,
    ),
)


def _persist_queue(stack: ExitStack, directory: str) -> list[Case] | str:  # noqa: ARG001 - as the others
    logging.getLogger("persistqueue").addHandler(logging.NullHandler())  # it warns of things that are as they should be
    try:
        import persistqueue
    except ImportError as error:
        return f"persist-queue cannot be imported: {error}"
    # autosave: what was got stays got if the process dies, as with the others.
    q = persistqueue.Queue(f"{directory}/persist_queue", tempdir=directory, autosave=True)
    return [statement("persist_queue", "q.put(item)\nq.get()", {"q": q, "item": ITEM}, repeat=1)]


def _litequeue(stack: ExitStack, directory: str) -> list[Case] | str:
    try:
        import litequeue
    except ImportError as error:
        return f"litequeue cannot be imported: {error}"
    q = litequeue.LiteQueue(f"{directory}/litequeue")
    stack.callback(q.conn.close)
    # What was taken and is not done stays in the table, for somebody to retry.
    return [statement("litequeue", "q.put(item)\nq.done(q.pop().message_id)", {"q": q, "item": ITEM}, repeat=1)]


def _diskcache(stack: ExitStack, directory: str) -> list[Case] | str:
    try:
        import diskcache
    except ImportError as error:
        return f"diskcache cannot be imported: {error}"
    q = diskcache.Deque(directory=f"{directory}/diskcache")
    stack.callback(q._cache.close)
    return [statement("diskcache", "q.append(item)\nq.popleft()", {"q": q, "item": ITEM}, repeat=1)]


def _redis(stack: ExitStack, directory: str) -> list[Case] | str:
    client = peers.redis(stack, directory)
    if isinstance(client, str):
        return client
    names = {"client": client, "key": b"items", "item": ITEM}
    return [statement("redis.list", "client.lpush(key, item)\nclient.rpop(key)", names, repeat=1)]


PINNED = {"persist_queue": _persist_queue, "litequeue": _litequeue, "diskcache": _diskcache}
SERVERS = {"redis": _redis}
"""Those that run where they like."""
