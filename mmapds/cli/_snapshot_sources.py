"""Where ``mmapds snapshot PATH build`` gets entries from: lines of JSON, CSV, msgpack, another map, a Redis server.

Promise
    A source is read once, from front to end, and never held in memory. What it cannot make sense of is an error that
    names the place (`Source.place`), and then nothing is built. Each entry is (key, value, seconds until it expires or
    None); what becomes of those that expire is in ``snapshot.py``.

Forms
    json        a line each: {"key": k, "value": v}, with "ttl": seconds if it is to expire, or [k, v]. Marks as in
                `mmapds.cli._jsonlines`. Blank lines do not count.
    csv         a head with the names of the columns; the key is one of them, the value a dict of the others' text, or
                with --value the text of one.
    msgpack     arrays of two, one behind the other, as ``Packer.pack([key, value])`` writes them.
    map         a snapshot map: one version of it.
    redis       the strings of one database of a server; values are bytes.

Redis
    SCAN, then for each batch MGET and PTTL in one MULTI: value and lifetime belong together. The database is not
    frozen: a key is as it was when its batch was read, and what is set or deleted meanwhile may be missed, as SCAN
    says. What is no string has no value in MGET; TYPE tells it from what has expired meanwhile.

Rejected
    DUMP and a reader of RDB: formats of the server, which change with its release. Guessing the types of CSV cells:
    a postcode is not a number.
"""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import msgpack

from mmapds.cli._actions import Refused
from mmapds.cli._jsonlines import value_of

if TYPE_CHECKING:
    from mmapds._snapview import MapView

__all__ = ["FORMATS", "Entry", "Source", "lifetime", "open_file", "open_redis"]

Entry: TypeAlias = tuple[Any, Any, float | None]

FORMATS = ("json", "csv", "msgpack")
LONGEST = 1e9  # seconds; a map takes no longer ttl
_CHUNK = 1 << 20
_SCANNED = 1000  # keys that SCAN is asked for
_HEAVY, _LIGHT = 16 << 20, 4 << 20  # bytes in a batch


class Source:
    """Entries, and where the one that came last was. `total`: how many, if known; `skipped`: what was left out, by
    kind.
    """

    unit = "item"

    def __init__(self, name: str) -> None:
        self.name = name
        self.at = 0
        self.total: int | None = None
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Entry]:
        raise NotImplementedError

    def place(self) -> str:
        """For a message."""
        return f"{self.name}, {self.unit} {self.at:,}" if self.at else self.name


def open_file(path: str | None, form: str | None, columns: dict[str, Any], stack: ExitStack) -> Source:
    """What a FILE on the command line means; None and "-": standard input. `columns`: options for CSV alone."""
    from mmapds._snapfiles import is_map

    if path not in (None, "-") and os.path.isdir(path) and form is None:
        if not is_map(path):
            raise Refused(2, f"{path}: a directory, and not that of a snapshot map")
        given, kind = "map", "map"
    else:
        kind = given = form or _form_of(path)
    if given != "csv" and any(value is not None for value in columns.values()):
        options = " ".join(f"--{name}" for name, value in columns.items() if value is not None)
        raise Refused(2, f"{options} needs CSV, and {path or 'standard input'} is read as {kind}: --format csv")
    if kind == "map":
        from mmapds import SnapshotMap

        assert path is not None
        return Copied(stack.enter_context(SnapshotMap(path, mode="readonly")).snapshot())
    if path in (None, "-"):
        name, file = "standard input", sys.stdin.buffer
    else:
        name, file = path, stack.enter_context(open(path, "rb"))  # noqa: SIM115 - the stack closes it
    if kind == "csv":
        return Csv(name, file, **columns)
    return Packed(name, file) if kind == "msgpack" else JsonLines(name, file)


def _form_of(path: str | None) -> str:
    suffix = os.path.splitext(path or "")[1].lower()
    return {".csv": "csv", ".msgpack": "msgpack", ".mp": "msgpack"}.get(suffix, "json")


# ---- files ---------------------------------------------------------------------------------------------------------


class JsonLines(Source):
    """Lines of JSON."""

    unit = "line"

    def __init__(self, name: str, file: IO[bytes]) -> None:
        super().__init__(name)
        self._file = file

    def __iter__(self) -> Iterator[Entry]:
        for line in self._file:
            self.at += 1
            if line.strip():
                yield _entry(value_of(line.decode()))


def _entry(found: Any) -> Entry:
    if isinstance(found, list) and len(found) == 2:
        return found[0], found[1], None
    if isinstance(found, dict) and {"key", "value"} <= found.keys() <= {"key", "value", "ttl"}:
        ttl = found.get("ttl")
        if ttl is not None and (isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl < LONGEST):
            raise ValueError('"ttl" must be a number of seconds above 0, and below 10**9')
        return found["key"], found["value"], ttl
    raise ValueError('an entry is {"key": ..., "value": ...}, with "ttl": seconds if it expires, or [key, value]')


class Csv(Source):
    """A table with a head. `columns`: those of the value, apart by commas; `value`: the one that it is."""

    unit = "line"

    def __init__(
        self,
        name: str,
        file: IO[bytes],
        *,
        key: str | None = None,
        columns: str | None = None,
        value: str | None = None,
        delimiter: str | None = None,
    ) -> None:
        super().__init__(name)
        self._file = file
        self._key, self._columns, self._value = key, columns, value
        self._delimiter = {None: ",", "\\t": "\t"}.get(delimiter, delimiter) or ","
        if len(self._delimiter) != 1:
            raise Refused(2, f"--delimiter {delimiter}: must be one character, or \\t")
        if columns is not None and value is not None:
            raise Refused(2, "give --columns, for a dict, or --value, for the text of one column, and not both")

    def _lines(self) -> Iterator[str]:
        coding = "utf-8-sig"
        for line in self._file:
            yield line.decode(coding)
            coding = "utf-8"

    def __iter__(self) -> Iterator[Entry]:
        csv.field_size_limit((1 << 31) - 1)
        rows = csv.reader(self._lines(), delimiter=self._delimiter, strict=True)
        head: list[str] | None = None
        try:
            for row in rows:
                self.at = rows.line_num
                if not row:
                    continue
                if head is None:
                    head = row
                    key, wanted = self._places(head)
                elif len(row) != len(head):
                    raise ValueError(f"{len(row)} cells, and {len(head)} columns in the head")
                elif self._value is not None:
                    yield row[key], row[wanted[0]], None
                else:
                    yield row[key], {head[i]: row[i] for i in wanted}, None
        except csv.Error as error:
            self.at = rows.line_num
            raise ValueError(str(error)) from None
        except UnicodeDecodeError:
            self.at = rows.line_num + 1
            raise
        if head is None:
            raise ValueError("no head: the first line must name the columns")

    def _places(self, head: list[str]) -> tuple[int, list[int]]:
        twice = [name for name, count in Counter(head).items() if count > 1]
        if twice:
            raise ValueError(f"two columns are named {twice[0]!r}")

        def place(name: str) -> int:
            if name not in head:
                raise ValueError(f"there is no column {name!r}: there are {', '.join(head)}")
            return head.index(name)

        key = 0 if self._key is None else place(self._key)
        if self._value is not None:
            return key, [place(self._value)]
        if self._columns is not None:
            return key, [place(name) for name in self._columns.split(",")]
        return key, [i for i in range(len(head)) if i != key]


class Packed(Source):
    """Pairs of msgpack, one behind the other."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        super().__init__(name)
        self._file = file

    def __iter__(self) -> Iterator[Entry]:
        unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=0)
        read = end = 0
        while chunk := self._file.read(_CHUNK):
            read += len(chunk)
            try:
                unpacker.feed(chunk)
            except msgpack.BufferFull:
                raise ValueError("an item is larger than 4 GiB, or this is no msgpack") from None
            while True:
                try:
                    found = unpacker.unpack()
                except msgpack.OutOfData:
                    break
                except (ValueError, TypeError, RecursionError) as error:
                    self.at += 1
                    raise ValueError(f"no msgpack: {str(error) or type(error).__name__}") from None
                self.at += 1
                end = unpacker.tell()
                if not isinstance(found, list) or len(found) != 2:
                    raise ValueError(f"an item is an array of key and value, got {found!r:.60}")
                yield found[0], found[1], None
        if end != read:
            self.at += 1
            raise ValueError(f"ends in the middle of an item: {read - end:,} bytes are left over")


# ---- another map ---------------------------------------------------------------------------------------------------


def lifetime(view: MapView, key: Any) -> float | None:
    """Seconds until an entry expires, 0 if it just has; None: never."""
    try:
        return view.ttl(key)
    except KeyError:
        return 0.0


class Copied(Source):
    """A version of a map."""

    def __init__(self, snapshot: Any) -> None:
        super().__init__(snapshot.path)
        self.snapshot = snapshot
        self.total = len(snapshot)

    def __iter__(self) -> Iterator[Entry]:
        snapshot = self.snapshot
        for key, value in snapshot.items():
            self.at += 1
            ttl = lifetime(snapshot, key)
            if ttl != 0:
                yield key, value, ttl


# ---- Redis ---------------------------------------------------------------------------------------------------------


def open_redis(url: str, match: str | None, stack: ExitStack) -> Source:
    """The strings of the database that a URL names: redis://[[user]:password@]host[:port][/number], rediss://, unix://."""
    try:
        import redis
    except ImportError:
        raise Refused(1, "--redis needs the client of Redis for Python: pip install mmapds[redis]") from None
    try:
        client = redis.Redis.from_url(url, socket_connect_timeout=10)
    except (ValueError, TypeError) as error:
        raise Refused(2, f"--redis: {error}") from None
    stack.callback(client.close)
    words = client.get_connection_kwargs()
    place = words.get("path") or f"{words.get('host', 'localhost')}:{words.get('port', 6379)}"
    return Redis(f"Redis at {place}, database {words.get('db') or 0}", client, match)


class Redis(Source):
    """The strings of a server's database."""

    unit = "key"

    def __init__(self, name: str, client: Any, match: str | None) -> None:
        super().__init__(name)
        self._client = client
        self._match = match
        self._size = 64  # keys in a batch

    def __iter__(self) -> Iterator[Entry]:
        from redis import RedisError

        try:
            if self._match is None:
                self.total = self._client.dbsize()
            cursor = 0
            while True:
                cursor, keys = self._client.scan(cursor, match=self._match, count=_SCANNED)
                while keys:
                    batch, keys = keys[: self._size], keys[self._size :]
                    yield from self._batch(batch)
                if cursor == 0:
                    return
        except RedisError as error:
            self.at = 0
            raise ValueError(str(error) or type(error).__name__) from None

    def _batch(self, keys: list[bytes]) -> Iterator[Entry]:
        pipeline = self._client.pipeline(transaction=True)
        pipeline.mget(keys)
        for key in keys:
            pipeline.pttl(key)
        values, *lifetimes = pipeline.execute()
        self._count_others([key for key, value in zip(keys, values, strict=True) if value is None])
        size = 0
        for key, value, left in zip(keys, values, lifetimes, strict=True):
            self.at += 1
            if value is not None and left != 0:  # 0: in this millisecond
                size += len(value)
                yield key, value, min(left / 1000, LONGEST - 1) if left > 0 else None
        if size > _HEAVY:
            self._size = max(1, self._size // 2)
        elif size < _LIGHT:
            self._size = min(_SCANNED, self._size * 2)

    def _count_others(self, keys: list[bytes]) -> None:
        """Those without a value: of other types, or gone."""
        if keys:
            pipeline = self._client.pipeline(transaction=False)
            for key in keys:
                pipeline.type(key)
            kinds = [kind if isinstance(kind, str) else kind.decode() for kind in pipeline.execute()]
            self.skipped.update(kind for kind in kinds if kind not in ("none", "string"))
