"""What is compared with what, and the ratios that are promised.

A promise is a ratio of two times from the same run, never a time: it holds on slow machines too. Beside the promises
stand peers, other ways to do the same, of which nothing is promised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmapds.bench.measure import Cost, Figures, noise

__all__ = ["COUNTERS", "QUEUE", "SNAPSHOT", "SYNC", "Peer", "Result", "Row", "peers", "promises"]

Result = dict[str, Any]
"""One line of a table, as it goes into the JSON document."""


@dataclass(frozen=True, slots=True)
class Row:
    """One promise: `measured`, divided by `reference`, is at most (or `at_least`) `limit`. The two name cases.

    `at_least`: the ratio is one of rates, so upside down: how many times as long the reference takes.
    `typical`: it compares medians. Calls compare their best slices, because all that can happen to them is disturbance;
    a disk, and two processors at once, have good and bad moments of their own, and the best may be a stroke of luck.
    `counted`: neither of the two is a time, but a number of something; the reference is the limit itself.
    """

    name: str
    what: str
    against: str
    measured: str
    reference: str
    limit: float
    at_least: bool = False
    typical: bool = False
    counted: bool = False

    @property
    def target(self) -> str:
        """The promise, for people."""
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"

    def result(self, measured: Cost, reference: Cost) -> Result:
        """The row as measured."""
        ns, reference_ns = (cost.median if self.typical else cost.best for cost in (measured, reference))
        found = reference_ns / ns if self.at_least else ns / reference_ns
        return {
            **self._head(),
            **({"counted": True} if self.counted else {}),
            "measured_ns": ns,
            "reference_ns": reference_ns,
            "ratio": found,
            "met": found >= self.limit if self.at_least else found <= self.limit,
            "noise": noise(measured, reference),
            "skipped": None,
        }

    def skipped(self, reason: str) -> Result:
        """The row, not measured."""
        nothing = dict.fromkeys(("measured_ns", "reference_ns", "ratio", "met", "noise"))
        return {**self._head(), **nothing, "skipped": reason}

    def _head(self) -> Result:
        statistic = "median" if self.typical else "best"
        head = {"name": self.name, "what": self.what, "against": self.against}
        return {**head, "target": self.target, "statistic": statistic}


@dataclass(frozen=True, slots=True)
class Peer:
    """A case of a peer, and the one of ours that does the same. `measured`: that case, if it has another name."""

    name: str
    what: str
    ours: str
    beside: str
    measured: str = ""
    typical: bool = False

    @property
    def case(self) -> str:
        return self.measured or self.name

    def result(self, peer: Cost, ours: Cost) -> Result:
        """The peer's figure beside ours."""
        ns, ours_ns = (cost.median if self.typical else cost.best for cost in (peer, ours))
        return {
            **self._head(),
            "ns": ns,
            "ours_ns": ours_ns,
            "ratio": ns / ours_ns,
            "noise": noise(peer, ours),
            "skipped": None,
        }

    def skipped(self, reason: str) -> Result:
        """A peer that is not here."""
        return {**self._head(), **dict.fromkeys(("ns", "ours_ns", "ratio", "noise")), "skipped": reason}

    def _head(self) -> Result:
        return {"name": self.name, "what": self.what, "ours": self.ours}


def promises(table: Sequence[Row], figures: Figures, reasons: Mapping[str, str]) -> list[Result]:
    """Every row, in order. A case that was not timed is one of `reasons`."""
    return [_line(row, row.measured, row.reference, figures, reasons) for row in table]


def peers(table: Sequence[Peer], figures: Figures, reasons: Mapping[str, str]) -> list[Result]:
    """Every peer beside ours, in order; likewise."""
    return [_line(peer, peer.case, peer.beside, figures, reasons) for peer in table]


def _line(line: Row | Peer, one: str, other: str, figures: Figures, reasons: Mapping[str, str]) -> Result:
    for case in (one, other):
        if case not in figures:
            # Many cases of one program are skipped by its name: "crate" for "crate.version_ns".
            return line.skipped(reasons[case] if case in reasons else reasons[case.partition(".")[0]])
    return line.result(figures[one], figures[other])


_U = "an empty method call (U)"

SYNC: Sequence[Row] = (
    Row("version", "s.version", _U, "version", "U", 2),
    Row("read_release", "r = s.read(); r.release()", _U, "read_release", "U", 5),
    Row("with_read", "with s.read(): pass", "with on an empty context manager", "with_read", "with_empty", 1.5),
    Row("with_read_64mib", "the same, 64 MiB", "36 bytes", "with_read_64mib", "with_read", 1.3),
    Row("load", "s.load()", _U, "load", "U", 3),
    Row("write_36", "s.write_bytes(36 B), tmpfs", "the crate's write_raw", "write_36", "crate.write_raw_36_ns", 1),
    Row("write_1mib", "s.write_bytes(1 MiB), tmpfs", "memcpy + xxh3 of it", "write_1mib", "memcpy_xxh3", 1.2),
    Row("readers", "two readers of one", "two readers of two", "readers_same", "readers_apart", 0.95, True, True),
    Row("power_36", "write_bytes(36 B), power", "one msync of that", "power_36", "msync_36", 2.3, typical=True),
    Row("power_1mib", "write_bytes(1 MiB), power", "one msync of that", "power_1mib", "msync_1mib", 2.3, typical=True),
    Row("pread", "Region.pread(100, o)", _U, "pread", "U", 4),
    Row("pwrite", "Region.pwrite(100 B, o)", _U, "pwrite", "U", 3),
    Row("fetch_add", "AtomicInt64.fetch_add(1)", _U, "fetch_add", "U", 2.2),
)

COUNTERS: Sequence[Row] = (
    Row("bound", "hits.fetch_add(), a bound counter", _U, "bound", "U", 2.2),
    Row("index", "c.fetch_add(7)", _U, "index", "U", 2.6),
    Row("name", 'c.fetch_add("hits")', _U, "name", "U", 6),
    Row("value", "hits.fetch_add()", "multiprocessing.Value and its lock", "bound", "value", 15, True),
    Row("prometheus", "hits.fetch_add()", "prometheus_client's multiprocess inc()", "bound", "prometheus", 25, True),
    Row(
        "adders", "two adders, one file, padded", "two adders, two files", "adders_one", "adders_two", 0.95, True, True
    ),
    Row("snapshot", "c.snapshot(), 10,000 names", "dict(zip(names, ints))", "snapshot", "dict_of_ints", 1.5),
)

_PUT_GET = "q.put(100 B); q.get(), raw"
_TWO = "one producer and one consumer process, an item"
_WAKE = "ping-pong of two processes, there and back"
_SLEEP = "the same, who waits is asleep"
_POWER = "q.put(100 B), power"

QUEUE: Sequence[Row] = (
    Row("deque", _PUT_GET, "collections.deque: append, popleft", "put_get", "deque", 10),
    Row("simple", _PUT_GET, "queue.SimpleQueue: put, get", "put_get", "simple", 5),
    Row("claim", "q.put(100 B); q.claim().ack()", "q.put(100 B); q.get()", "put_claim", "put_get", 1.8),
    Row("msgpack", 'the same of ("order", 12345, 100 B)', "packing, unpacking alone", "msgpack", "pack_unpack", 2),
    Row("many", "put_many, get_many of 100, an item", _PUT_GET, "many", "put_get", 2, True),
    Row("persist_queue", _PUT_GET, "persist-queue: put, get", "put_get", "persist_queue", 300, True),
    Row("litequeue", _PUT_GET, "litequeue: put, pop, done", "put_get", "litequeue", 300, True),
    Row("diskcache", _PUT_GET, "diskcache.Deque: append, popleft", "put_get", "diskcache", 300, True),
    Row("delayed", "q.claim(), 100,000 delayed items wait", "with none", "claim_delayed", "claim_alone", 1.5),
    Row("two", _TWO, "multiprocessing.SimpleQueue", "two", "two_simple", 10, True, True),
    Row("two_fast", _TWO, "faster_fifo.Queue", "two", "two_fast", 8, True, True),
    Row("wake", _WAKE, "in C, with bare futexes", "wake", "wake_futex", 1.6, typical=True),
    Row("wake_pipe", _WAKE, "multiprocessing.Pipe", "wake", "wake_pipe", 1, typical=True),
    Row("sleep", _SLEEP, "in C, with bare futexes", "sleep", "sleep_futex", 1.6, typical=True),
    Row("sleep_pipe", _SLEEP, "multiprocessing.Pipe", "sleep", "sleep_pipe", 1, typical=True),
    Row("power", _POWER, "pwrite and fdatasync of as much", "power", "fdatasync", 1.3, typical=True),
    Row("power_sqlite", _POWER, "SQLite, WAL, synchronous=FULL: insert", "power", "sqlite", 1, typical=True),
    Row("power_eight", "the same, 8 producers at once", "one producer", "power_eight", "power_one", 3, True, True),
    Row("open", "open after a crash, 1 million items", "5 ms", "open", "5_ms", 1),
    Row("scan", "open after another boot, a MB of segments", "1 GB/s", "scan", "1_ms", 1, True),
    Row("segments", "segment files while 10 million items pass", "3", "segments", "3_files", 1, counted=True),
)

_OPEN = "open and first get"
_GET = "m.get(key), one layer, raw"
_MANY = "m.get_many of 100, an item"

SNAPSHOT: Sequence[Row] = (
    Row("open", _OPEN, "2 ms", "open", "2_ms", 1),
    Row("open_small", _OPEN, "of a map of 1,000 keys", "open", "open_small", 1.5),
    Row(
        "open_redis", _OPEN, "redis-server loads an RDB of as many, a million at most", "open", "redis.load", 300, True
    ),
    Row("open_pickle", _OPEN, "pickle.load of as many, a million at most", "open", "pickle", 100, True),
    Row("memory", "RssAnon of it and 1,000 gets, MB", "8 MB", "memory", "8_mb", 1, counted=True),
    Row("get", _GET, "dict.get, equal keys that are other objects", "get", "dict", 1),
    Row("get_lmdb", _GET, "LMDB: get within one transaction", "get", "lmdb.get", 2.5, True),
    Row("many", _MANY, "a dict comprehension, an item", "many", "dict_many", 0.5),
    Row("many_lmdb", _MANY, "LMDB: getmulti of 100, an item", "many", "lmdb.many", 5, True),
    Row(
        "scan", "for pair in m.range(start), an item", "LMDB: iterating a cursor, an item", "scan", "lmdb.scan", 1, True
    ),
    Row("layers", "m.get(key), the most layers there can be", "one layer", "get_layers", "get", 2),
    Row("build", "build in memory, an item", "1,000,000 items/s", "build", "1_us", 1, True),
    Row("build_limit", "build, memory_limit=64 MiB, an item", "400,000 items/s", "build_limit", "2500_ns", 1, True),
    Row("build_memory", "the same, greatest RssAnon, MB", "64 MiB + 64 MB", "build_memory", "131_mb", 1, counted=True),
    Row("commit", "a commit of one key", "200 µs", "commit", "200_us", 1, typical=True),
    Row("commits", "commits of a thousand keys, a key", "500,000 keys/s", "commits", "2_us", 1, True, True),
    Row("seen", "commit of one key, until a follower finds it", "1 ms", "seen", "1_ms", 1, typical=True),
    Row("seen_asleep", "the same, it sleeps in wait()", "1 ms", "seen_asleep", "1_ms", 1, typical=True),
    Row("workers", "PSS of 4 workers on 1 GiB, all read, MiB", "1.15 GiB", "workers", "most_pss", 1, counted=True),
)
