"""Other stores of keys and values, on the same machine in the same run.

They promise other things than a SnapshotMap does. LMDB and RocksDB are stores that are changed all the time; diskcache
is a table of SQLite, shared by processes; Redis is a server that other machines reach, and loads all it has into its
memory. None of these waits for the disk here, and neither do our commits beside them.

A store is filled once, and opened anew for each stage of the run, since some must not be opened twice in a process.
The RDB file that Redis loads is written here, with no more in it than the entries: it is the least that Redis can be
given to load, and Redis itself says how long that took.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeAlias

from mmapds.bench import peers
from mmapds.bench.measure import Case, only
from mmapds.bench.rows import Peer
from mmapds.bench.snapshot_cases import Data, each, many, of_thousands, scan

__all__ = ["MAKERS", "PEERS", "Maker", "Stages", "found", "write_rdb"]

Stages: TypeAlias = Mapping[str, Callable[[ExitStack], list[Case]]]
"""What makes the cases, by what they are timed beside: "open", "load", "read", "commit", "commits", "build"."""

Maker: TypeAlias = Callable[[ExitStack, str, Data, int], Stages | str]
"""Fills a store, in a directory; or says why it cannot. The number: how many thousands a slice commits."""

_OPEN = "open and first get"
_GET = "m.get(key), one layer, raw"
_MANY = "m.get_many of 100, an item"
_SCAN = "for pair in m.range(start), an item"
_COMMIT = "a commit of one key"
_COMMITS = "commits of a thousand keys, a key"
_FEW = 20_000
_FILL = 10_000

PEERS = (
    Peer("lmdb.open", "LMDB: open, begin, get", _OPEN, "open"),
    Peer("rocksdict.open", "rocksdict: open, get", _OPEN, "open"),
    Peer("rocksdict.get", "rocksdict: get", _GET, "get"),
    Peer("diskcache.get", f"diskcache: get, of {_FEW:,} keys at most", _GET, "get"),
    Peer("redis.get", "Redis: GET on loopback", _GET, "get"),
    Peer("rocksdict.many", "rocksdict: get of a list of 100, an item", _MANY, "many"),
    Peer("redis.many", "Redis: MGET of 100 on loopback, an item", _MANY, "many"),
    Peer("rocksdict.scan", "rocksdict: items(), an item", _SCAN, "scan"),
    Peer("lmdb.build", "LMDB: putmulti, unsorted, one transaction, an item", "build in memory, an item", "build"),
    Peer("lmdb.commit", "LMDB: put in a transaction", _COMMIT, "commit", typical=True),
    Peer("rocksdict.commit", "rocksdict: put", _COMMIT, "commit", typical=True),
    Peer("lmdb.commits", "LMDB: putmulti of a thousand in a transaction, a key", _COMMITS, "commits", typical=True),
    Peer("rocksdict.commits", "rocksdict: a WriteBatch of a thousand, a key", _COMMITS, "commits", typical=True),
)


def found(
    stack: ExitStack, directory: str, data: Data, thousands: int, makers: Mapping[str, Maker]
) -> tuple[list[Stages], dict[str, str]]:
    """The peers that are here, filled, and why the others are not. As `peers.found`."""
    here: list[Stages] = []
    reasons: dict[str, str] = {}
    for name, make in makers.items():
        made = make(stack, directory, data, thousands)
        if isinstance(made, str):
            reasons[name] = made
        else:
            here.append(made)
    return here, reasons


def _lmdb(stack: ExitStack, directory: str, data: Data, thousands: int) -> Stages | str:  # noqa: ARG001 - as the others
    try:
        import lmdb
    except ImportError as error:
        return f"lmdb cannot be imported: {error}"
    keys = cycle(data.probes)

    def opened(name: str = "lmdb") -> Any:
        return lmdb.open(f"{directory}/{name}", map_size=(64 << 20) + 1024 * data.count, sync=False)

    with opened() as env, env.begin(write=True) as txn:
        txn.cursor().putmulti(sorted(data.table.items()), append=True)

    def open_it() -> float:
        key = next(keys)
        start = time.perf_counter()
        with opened() as env, env.begin() as txn:
            txn.get(key)
            return time.perf_counter() - start

    def read(stack: ExitStack) -> list[Case]:
        txn = stack.enter_context(stack.enter_context(opened()).begin())
        cursor = txn.cursor()
        deque(cursor.iternext(), maxlen=0)  # touches all pages, as ours have been

        def begin(key: bytes) -> Iterator[object]:
            cursor.set_range(key)
            walk: Iterator[object] = cursor.iternext()
            return walk

        return [
            each("lmdb.get", "get(key)", {"get": txn.get}, data),
            many("lmdb.many", "getmulti(batch)", {"getmulti": cursor.getmulti}, data),
            scan("lmdb.scan", begin, data),
        ]

    def commit(stack: ExitStack) -> list[Case]:
        env = stack.enter_context(opened())
        return [_one("lmdb.commit", lambda key, value: _put(env, [(key, value)]), data)]

    def commits(stack: ExitStack) -> list[Case]:
        env = stack.enter_context(opened())
        return [of_thousands("lmdb.commits", lambda batch: _put(env, batch.items()), data, thousands)]

    def build() -> float:
        with opened("lmdb_built") as env:
            with env.begin(write=True) as txn:
                txn.drop(env.open_db(None, txn), delete=False)
            start = time.perf_counter()
            _put(env, data.table.items())
            return time.perf_counter() - start

    return {
        "open": lambda _: [only("lmdb.open", open_it)],
        "read": read,
        "commit": commit,
        "commits": commits,
        "build": lambda _: [only("lmdb.build", build, each=data.count)],
    }


def _put(env: Any, items: Any) -> None:
    with env.begin(write=True) as txn:
        txn.cursor().putmulti(items)


def _one(name: str, put: Callable[[bytes, bytes], object], data: Data) -> Case:
    """Changing one key, another one each time."""
    keys = cycle(data.probes)

    def change() -> float:
        key = next(keys)
        value = data.table[key]
        start = time.perf_counter()
        put(key, value)
        return time.perf_counter() - start

    return only(name, change)


def _rocksdict(stack: ExitStack, directory: str, data: Data, thousands: int) -> Stages | str:  # noqa: ARG001 - as the others
    try:
        from rocksdict import Options, Rdict, WriteBatch
    except ImportError as error:
        return f"rocksdict cannot be imported: {error}"
    keys = cycle(data.probes)

    def opened() -> Any:
        return Rdict(f"{directory}/rocksdict", Options(raw_mode=True))

    def write(db: Any, batch: Mapping[bytes, bytes]) -> None:
        changes = WriteBatch(raw_mode=True)
        for key, value in batch.items():
            changes.put(key, value)
        db.write(changes)

    def kept(stack: ExitStack) -> Any:
        db = opened()
        stack.callback(db.close)
        return db

    db = opened()
    entries = iter(data.table.items())
    while part := dict(islice(entries, _FILL)):
        write(db, part)
    db.flush()
    db.compact_range(None, None)
    db.close()

    def open_it() -> float:
        key = next(keys)
        start = time.perf_counter()
        db = opened()
        db.get(key)
        taken = time.perf_counter() - start
        db.close()
        return taken

    def read(stack: ExitStack) -> list[Case]:
        db = kept(stack)
        return [
            each("rocksdict.get", "get(key)", {"get": db.get}, data),
            many("rocksdict.many", "get(batch)", {"get": db.get}, data),
            scan("rocksdict.scan", lambda key: iter(db.items(from_key=key)), data),
        ]

    def commits(stack: ExitStack) -> list[Case]:
        db = kept(stack)
        return [of_thousands("rocksdict.commits", lambda batch: write(db, batch), data, thousands)]

    return {
        "open": lambda _: [only("rocksdict.open", open_it)],
        "read": read,
        "commit": lambda stack: [_one("rocksdict.commit", kept(stack).put, data)],
        "commits": commits,
    }


def _diskcache(stack: ExitStack, directory: str, data: Data, thousands: int) -> Stages | str:  # noqa: ARG001 - as the others
    try:
        import diskcache
    except ImportError as error:
        return f"diskcache cannot be imported: {error}"
    few = Data(data.table, data.probes[:_FEW])
    with diskcache.Cache(f"{directory}/diskcache", size_limit=1 << 40) as cache, cache.transact():
        for key in few.probes:
            cache[key] = data.table[key]

    def read(stack: ExitStack) -> list[Case]:
        cache = stack.enter_context(diskcache.Cache(f"{directory}/diskcache"))
        return [each("diskcache.get", "get(key)", {"get": cache.get}, few)]

    return {"read": read}


# ---- Redis ---------------------------------------------------------------------------------------------------------


def _redis(stack: ExitStack, directory: str, data: Data, thousands: int) -> Stages | str:  # noqa: ARG001 - as the others
    million = data.million
    write_rdb(f"{directory}/bench.rdb", million)
    log = Path(directory, "redis.log")
    options = ("--dbfilename", "bench.rdb", "--logfile", str(log))
    client = peers.redis(stack, directory, *options)
    if isinstance(client, str):
        return client
    if client.dbsize() != len(million):
        return f"redis-server has loaded {client.dbsize()} keys of {len(million)}"
    few = data if data.count == len(million) else Data(million, list(million))

    def load() -> float:
        log.unlink(missing_ok=True)
        with ExitStack() as inner:
            failed = peers.redis(inner, directory, *options)
            if isinstance(failed, str):
                raise RuntimeError(failed)
        said = re.search(r"DB loaded from disk: ([0-9.]+) seconds", log.read_text(encoding="utf-8"))
        if said is None:
            raise RuntimeError("redis-server does not say how long it has loaded")
        return max(float(said[1]), 0.0005)  # it says milliseconds

    def read(_: ExitStack) -> list[Case]:
        return [
            each("redis.get", "get(key)", {"get": client.get}, few),
            many("redis.many", "mget(batch)", {"mget": client.mget}, few),
        ]

    return {"load": lambda _: [only("redis.load", load)], "read": read}


def write_rdb(path: str, table: Mapping[bytes, bytes]) -> None:
    """A dump of these entries as Redis writes it; without checksum, which is allowed, and less to do."""

    def size(value: int) -> bytes:
        if value < 64:
            return value.to_bytes(1, "big")
        return (0x4000 | value).to_bytes(2, "big") if value < 16384 else b"\x80" + value.to_bytes(4, "big")

    with open(path, "wb") as file:
        # Its version, the database that follows, and how many keys there are, all of them without expiry.
        file.write(b"REDIS0009\xfe\x00\xfb" + size(len(table)) + b"\x00")
        file.writelines(
            b"\x00%b%b%b%b" % (size(len(key)), key, size(len(value)), value) for key, value in table.items()
        )
        file.write(b"\xff" + bytes(8))


MAKERS: Mapping[str, Maker] = {"lmdb": _lmdb, "rocksdict": _rocksdict, "diskcache": _diskcache, "redis": _redis}
