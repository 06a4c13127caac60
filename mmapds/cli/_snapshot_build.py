"""``mmapds snapshot PATH build``: from a source to a map.

A map that another one is made of as it is goes through ``mode="private"`` and `publish`: as bytes, with lifetimes. All
else goes through `SnapshotMap.build`, which knows no lifetimes. So entries that expire are kept back meanwhile, in a
file without a name beside the map if they are many, and set in transactions when the build is published. Until then,
and if this is killed in between, they are absent, which is what a cache may always say of them; never are they there
for ever. They are encoded before the build is published: what cannot be stored is found in time.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain, islice
from typing import IO, Any

import msgpack

from mmapds.cli._actions import Refused
from mmapds.cli._jsonlines import value_of
from mmapds.cli._progress import Progress
from mmapds.cli._snapshot_sources import FORMATS, Copied, Source, open_file, open_redis
from mmapds.cli.output import Output

__all__ = ["build", "register_build"]

_COLUMNS = ("key", "columns", "value", "delimiter")
_IN_MEMORY = 16 << 20  # bytes of what is kept back, before there is a file
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

FORMS = """\
FILE may be
  lines of JSON, {"key": k, "value": v} or [k, v]; the former may have "ttl":
      the entry expires after so many seconds. What JSON has no form for is an
      object with one key: {"$bytes": "aGk="} (base64), {"$float": "nan"}, or, for
      a dictionary whose keys are not all text, {"$map": [[key, value], ...]}.
  CSV (*.csv) with a head; the values are dictionaries of text.
  msgpack (*.msgpack, *.mp), arrays of key and value one behind the other.
  another map (a directory), copied as it is, with what is to expire when.

Of equal keys the last counts, and before it one that expires. What expires is set
in transactions when all else is published; until then it is absent. A map that is
there is replaced in one step. With the codec raw, text is stored as UTF-8.
"""


def register_build(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("source", metavar="FILE", nargs="?", help="a file or a map (default, and -: standard input)")
    parser.add_argument("--format", choices=FORMATS, help="what FILE is (default: by its name, else json)")
    parser.add_argument("--redis", metavar="URL", help="take the strings of a server instead: redis://HOST:PORT/NUMBER")
    parser.add_argument("--match", metavar="PATTERN", help="of Redis, only keys like this")
    parser.add_argument("--bytes-keys", action="store_true", help="the keys are bytes, also if they were text")
    parser.add_argument("--metadata", metavar="JSON", help="to be kept with the map")
    parser.add_argument(
        "--memory-limit", type=_size, default=256 << 20, metavar="N", help="bytes to sort in, as 64M (default 256M)"
    )
    made = parser.add_argument_group("options of a map that is made, or which it must have")
    made.add_argument("--codec", metavar="NAME", help="msgpack (default; of Redis: raw), raw, struct:FORMAT, ...")
    made.add_argument("--schema", metavar="TEXT")
    made.add_argument("--durability", choices=("process", "power"))
    table = parser.add_argument_group("of CSV")
    table.add_argument("--key", metavar="COLUMN", help="which one has the keys (default: the first)")
    table.add_argument("--columns", metavar="A,B,...", help="which ones the values have (default: all others)")
    table.add_argument("--value", metavar="COLUMN", help="the one whose text is the value, instead of a dictionary")
    table.add_argument("--delimiter", metavar="C", help="between cells (default: a comma; \\t)")


def _size(text: str) -> int:
    found = re.fullmatch(r"([0-9]+)([KMG]?)(?:i?B)?", text, re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text}: must be bytes, or as 64K, 64M, 2G")
    value = int(found[1]) * _UNITS[found[2].upper()]
    if not 1 << 20 <= value <= 1 << 60:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1M")
    return value


def build(args: argparse.Namespace, out: Output) -> int:
    """Does it, and prints how many entries the map has then."""
    if args.redis is not None and (args.source is not None or args.format is not None):
        raise Refused(2, "give FILE, or --redis, and not both")
    if args.match is not None and args.redis is None:
        raise Refused(2, "--match needs --redis")
    try:
        metadata = None if args.metadata is None else value_of(args.metadata)
    except ValueError as error:
        raise Refused(2, f"--metadata: {error}") from None
    columns = {name: getattr(args, name) for name in _COLUMNS}
    with ExitStack() as stack:
        source: Source
        if args.redis is not None:
            if any(value is not None for value in columns.values()):
                raise Refused(2, "give columns of CSV, or --redis, and not both")
            source = open_redis(args.redis, args.match, stack)
        else:
            source = open_file(args.source, args.format, columns, stack)
        progress = stack.enter_context(Progress(source.total))
        changed = args.bytes_keys or any(
            value is not None for value in (args.codec, args.schema, args.durability, metadata)
        )
        if isinstance(source, Copied) and not changed:
            found = _publish(args, source, progress)
        else:
            found = _build(args, source, metadata, progress)
    if source.skipped:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(source.skipped.items()))
        out.progress(f"mmapds: left out {source.skipped.total():,} keys that are no strings: {kinds}")
    out.emit({"path": os.path.abspath(args.path), **found, "skipped": dict(source.skipped)}, str(found["entries"]))
    return 0


def _publish(args: argparse.Namespace, source: Copied, progress: Progress) -> dict[str, int | None]:
    from mmapds import SnapshotMap
    from mmapds.errors import MmapdsError

    with SnapshotMap(source.name, mode="private") as m:
        try:
            entries = m.publish(args.path, progress=progress)  # type: ignore[attr-defined]
        except ValueError as error:
            if isinstance(error, MmapdsError):
                raise
            raise Refused(2, str(error)) from None
    return {"entries": entries, "expiring": None}


def _build(args: argparse.Namespace, source: Source, metadata: Any, progress: Progress) -> dict[str, int | None]:
    from mmapds import SnapshotMap
    from mmapds.errors import MmapdsError

    if isinstance(source, Copied) and metadata is None:
        metadata = source.snapshot.metadata
    with ExitStack() as stack:
        try:
            taken = _Taken(args, source, _codec(args, source), stack)
        except (TypeError, ValueError) as error:
            if isinstance(error, MmapdsError):
                raise
            raise Refused(2, str(error)) from None
        try:
            pairs = iter(taken)
            first = list(islice(pairs, 1))  # before anything is made: it tells whether this is the right file
            SnapshotMap.build(
                args.path,
                chain(first, pairs),
                codec=taken.codec,
                schema=args.schema,
                durability=args.durability,
                metadata=metadata,
                memory_limit=args.memory_limit,
                progress=progress,
            )
        except (TypeError, ValueError) as error:
            if isinstance(error, MmapdsError):
                raise
            raise Refused(1, f"{source.place()}: {error}; nothing was built") from None
        expiring = _set_kept(args, taken) if taken.count else 0
        with SnapshotMap(args.path, mode="readonly", codec=taken.codec) as m:
            return {"entries": len(m), "expiring": expiring}


def _codec(args: argparse.Namespace, source: Source) -> Any:
    """That of the command line, of the map that is there, or of the source."""
    from mmapds import codecs
    from mmapds._snapfiles import is_map
    from mmapds.snapshot import open_manifest

    if args.codec is not None:
        return codecs.resolve(args.codec)
    if is_map(args.path):
        with open_manifest(os.path.abspath(args.path), "readonly", None, None, None) as manifest:
            return manifest.codec
    if isinstance(source, Copied):
        return source.snapshot.codec
    return codecs.resolve("msgpack" if args.redis is None else "raw")


class _Taken:
    """What of a source goes into the build: pairs. Keeps back what expires; `count`: how much."""

    def __init__(self, args: argparse.Namespace, source: Source, codec: Any, stack: ExitStack) -> None:
        self.codec = codec
        self.count = 0
        self._bytes_keys = args.bytes_keys
        self._source = source
        self._where = os.path.dirname(os.path.abspath(args.path))
        self._stack = stack
        self._file: IO[bytes] | None = None
        self._pack = msgpack.Packer().pack

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        raw = self.codec.name == "raw"
        kind: type | None = None
        for key, value, ttl in self._source:
            key = self._key(key)
            if type(key) is not kind:
                if kind is not None:
                    raise ValueError("this key is text and others are bytes, or the reverse: --bytes-keys for bytes")
                kind = type(key)
            if raw and isinstance(value, str):
                value = value.encode()
            if ttl is None:
                yield key, value
            else:
                self._keep(key, value, ttl)

    def _key(self, key: Any) -> str | bytes:
        if isinstance(key, str):
            return key.encode() if self._bytes_keys else key
        if not isinstance(key, bytes):
            raise ValueError(f"a key is text or bytes, got {key!r:.60}")
        if not self._bytes_keys and self._source.unit == "key":  # of Redis
            try:
                return key.decode()
            except UnicodeDecodeError:
                raise ValueError(f"the key {key!r:.80} is not UTF-8: --bytes-keys keeps the keys as bytes") from None
        return key

    def _keep(self, key: str | bytes, value: Any, ttl: float) -> None:
        from mmapds._native.snapbuild import KEY_LIMIT

        size = len(key.encode() if isinstance(key, str) else key)
        if size > KEY_LIMIT:
            raise ValueError(f"a key has at most {KEY_LIMIT:,} bytes, this one has {size:,}")
        if self._file is None:
            file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=self._where)  # noqa: SIM115
            self._file = self._stack.enter_context(file)
        until = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(ttl * 1e9)
        self._file.write(self._pack([key, bytes(self.codec.encode(value)), until]))
        self.count += 1

    def kept(self, most: int) -> Iterator[list[tuple[Any, Any, int]]]:
        """(key, value, when it expires on CLOCK_BOOTTIME), in lists of about `most` bytes."""
        if self._file is None:
            return
        self._file.seek(0)
        batch, size = [], 0
        for key, data, until in msgpack.Unpacker(self._file, raw=False, max_buffer_size=0):
            batch.append((key, self.codec.decode(memoryview(data)), until))
            size += len(key) + len(data) + 500  # what Python needs for one
            if size > most:
                yield batch
                batch, size = [], 0
        yield batch


def _set_kept(args: argparse.Namespace, taken: _Taken) -> int:
    """Sets what was kept back; how many entries had not expired meanwhile."""
    from mmapds import SnapshotMap
    from mmapds.errors import MmapdsError

    done = there = 0
    try:
        with SnapshotMap(args.path, codec=taken.codec) as m:
            for batch in taken.kept(args.memory_limit // 4):
                with m.transaction() as txn:
                    for key, value, until in batch:
                        left = (until - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9
                        if left > 0:
                            txn.set(key, value, ttl=left)
                            there += 1
                done += len(batch)
    except MmapdsError as error:
        raise Refused(1, f"{error} It was built, but without {taken.count - done:,} entries that expire.") from None
    return there
