"""Other ways to count in several processes, on the same machine in the same run.

They promise other things than Counters do. A dict counts for its process alone. `multiprocessing.Value` is shared by a
process and its children, and lost with them; a process killed inside its lock stops all others for ever.
prometheus_client adds up files of one process each when it is asked, and knows labels and histograms. Redis is a server
that other machines reach. The figures say what an addition costs, not which is better.
"""

from __future__ import annotations

import multiprocessing
from contextlib import ExitStack

from mmapds.bench import peers, prometheus
from mmapds.bench.measure import Case, statement
from mmapds.bench.rows import Peer

__all__ = ["PEERS", "PINNED", "SERVERS"]

_BOUND = "hits.fetch_add()"
_NAME = 'c.fetch_add("hits")'
_PADDED = "two adders, one file, padded"

PEERS = (
    Peer("dict", 'd["hits"] += 1, a dict of this process alone', _NAME, "name"),
    Peer("redis.incr", "Redis: INCR on loopback", _NAME, "name"),
    Peer("float", 'dtype="f64": seconds.add(0.5)', _BOUND, "bound"),
    Peer("adders_neighbours", "two adders, neighbours in a cache line", _PADDED, "adders_one", typical=True),
    Peer("adders_same", "two adders, the same counter", _PADDED, "adders_one", typical=True),
    Peer("files", "an empty file, made and closed", "c.fetch_add(name), a new name", "create"),
    Peer("msync", "one msync of as many bytes", "ids.reserve(1000), power", "reserve", typical=True),
)


def _value(stack: ExitStack, directory: str) -> list[Case] | str:  # noqa: ARG001 - as the others
    try:
        value = multiprocessing.Value("q", 0)
    except OSError as error:
        return f"no shared memory here: {error}"
    return [statement("value", "with value.get_lock():\n    value.value += 1", {"value": value})]


def _redis(stack: ExitStack, directory: str) -> list[Case] | str:
    client = peers.redis(stack, directory)
    if isinstance(client, str):
        return client
    return [statement("redis.incr", "client.incr(key)", {"client": client, "key": b"hits"}, repeat=1)]


PINNED = {"value": _value, "prometheus": prometheus.cases}
SERVERS = {"redis": _redis}
"""Those that run where they like."""
