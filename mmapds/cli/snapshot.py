"""``mmapds snapshot PATH [info|build|get|range|dump|verify|diff|compact]``: look at a snapshot map, and make one.

Promise
    All but ``build`` and ``compact`` open the map read-only: they need no write permission, change nothing, and stand
    in nobody's way; each shows one version. Only ``build`` makes a map, and it and ``compact`` take the writer's place
    while they work: status 1 if somebody else has it.

    ``get`` prints values alone, one a line, as JSON; ``range`` and ``dump`` a line for each entry, also with
    ``--json``. What JSON has no form for, such as bytes, has a mark (`mmapds.cli._jsonlines`). A line says with "ttl"
    when its entry expires, so that ``dump`` and ``build`` are each other's reverse, but for the metadata, which
    ``info`` prints, and for what JSON can only show, as {"$repr": ...}: arrays.

    A KEY is text; where the keys of the map are bytes, its bytes as they stand on the command line. Exit status 1 also
    where there is no such key, and of ``diff`` if the maps differ.

Prior art
    ``mdb_dump`` and ``mdb_load`` of LMDB, ``ldb scan`` of RocksDB, ``comm`` and ``diff``; JSON lines as jq -c has them.

Rejected
    Setting single entries: that is a program's affair, with a transaction. ``diff`` of values: sizes have no bounds.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

from mmapds.cli._actions import Refused, positive
from mmapds.cli._jsonlines import line_of
from mmapds.cli._progress import Progress
from mmapds.cli._snapshot_build import FORMS, build, register_build
from mmapds.cli._snapshot_sources import lifetime
from mmapds.cli.output import Output, facts

__all__ = ["register", "run"]

_FORMS = """\
Entries are lines of JSON, {"key": k, "value": v}, with "ttl": seconds if they
expire. What JSON has no form for is an object with one key: {"$bytes": "aGk="}
(base64), {"$float": "nan"}, or, for a dictionary whose keys are not all text, or
that itself looks like this, {"$map": [[key, value], ...]}.
"""


# ---- the command line ----------------------------------------------------------------------------------------------


def register(commands: argparse._SubParsersAction[Any], common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the options that all commands share."""
    parser = commands.add_parser(
        "snapshot",
        parents=[common],
        usage="%(prog)s [-h] [--json] PATH [ACTION ...]",
        help="look at a snapshot map, make one, compare two",
        description="Look at a snapshot map, make one of JSON, CSV, msgpack, another map or a Redis server, compare "
        "two. Without an action: info.",
        epilog="Exit status: 0 done, 1 failed, no such key, or different, 2 usage, or the path cannot be opened.",
    )
    parser.add_argument("path", metavar="PATH", help="the directory of the map")
    parser.set_defaults(run=run, action=_info)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", prog="mmapds snapshot PATH")

    def action(name: str, run: Callable[[argparse.Namespace, Output], int], text: str, forms: str | None = None) -> Any:
        found = actions.add_parser(
            name,
            parents=[common],
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=forms,
            formatter_class=argparse.RawDescriptionHelpFormatter if forms else argparse.HelpFormatter,
        )
        found.set_defaults(action=run)
        return found

    action("info", _info, "version, size, layers and metadata")
    register_build(action("build", build, "make a map, or replace what one holds, and print how many entries", FORMS))
    get = action("get", _get, "print the values of some keys, one a line", _FORMS)
    get.add_argument("keys", metavar="KEY", nargs="+")
    walk = action("range", _range, "print entries in the order of their keys, one a line", _FORMS)
    walk.add_argument("start", metavar="START", nargs="?", help="the first key (default, and '': of all)")
    walk.add_argument("stop", metavar="STOP", nargs="?", help="the first key that is not printed (default: none)")
    walk.add_argument("--prefix", metavar="P", help="only keys that begin like this, instead of START and STOP")
    walk.add_argument("--reverse", action="store_true", help="the last first")
    walk.add_argument("--limit", type=positive, metavar="N", help="how many at most")
    action("dump", _dump, "print all entries, one a line, for build", _FORMS)
    action("verify", _verify, "check every block; status 1 if one is damaged")
    diff = action("diff", _diff, "print the keys that OTHER has more (+), has not (-), has other values of (!)")
    diff.add_argument("other", metavar="OTHER", help="the directory of another map")
    action("compact", _compact, "merge all layers into one, without what was deleted or has expired")


def run(args: argparse.Namespace, out: Output) -> int:
    """Do one action; return 0, or another status if it was refused."""
    try:
        status: int = args.action(args, out)
    except Refused as refused:
        out.progress(f"mmapds: {refused}")
        return refused.status
    except ImportError as error:  # numpy, for a codec
        out.progress(f"mmapds: {error}")
        return 1
    return status


# ---- the map -------------------------------------------------------------------------------------------------------


def _open(path: str, mode: Literal["readonly", "shared"] = "readonly") -> Any:
    from mmapds import SnapshotMap
    from mmapds._snapfiles import is_map

    if not is_map(path):  # SnapshotMap would make one
        if not os.path.lexists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        raise Refused(2, f"{path}: a directory, and not that of a snapshot map")
    return SnapshotMap(path, mode=mode, follow=False)


def _found(m: Any) -> dict[str, Any]:
    stats = m.stats()
    del stats["mode"]  # ours
    return {**stats, "metadata": json.loads(line_of(m.metadata))}


def _info(args: argparse.Namespace, out: Output) -> int:
    with _open(args.path) as m:
        found = _found(m)
    out.emit(found, facts(found))
    return 0


def _verify(args: argparse.Namespace, out: Output) -> int:
    from mmapds.errors import CorruptionError

    blocks, what = None, None
    try:
        with _open(args.path) as m:
            blocks = m.verify()
    except CorruptionError as error:
        what = " ".join(str(error).split())
    verdict = f"{args.path}: {'sound' if what is None else 'corrupt'}"
    out.emit(
        {"path": args.path, "sound": what is None, "blocks": blocks, "what": what},
        f"{verdict}, {blocks:,} blocks" if what is None else f"{what}\n{verdict}",
    )
    return 0 if what is None else 1


def _compact(args: argparse.Namespace, out: Output) -> int:
    with _open(args.path, "shared") as m, Progress() as progress:
        before = m.stats()["bytes"]
        m.compact(progress)
        m.refresh()
        after = m.stats()
    data = {"path": after["path"], "entries": after["entries"], "bytes": after["bytes"], "bytes_before": before}
    out.emit(data, f"{after['entries']:,} entries, {after['bytes']:,} bytes; before: {before:,} bytes")
    return 0


# ---- entries -------------------------------------------------------------------------------------------------------


def _key(m: Any, text: str) -> str | bytes:
    """What a word of the command line is as a key."""
    data = os.fsencode(text)
    if m.key_type is bytes:
        return data
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Refused(2, f"{text!r} is not UTF-8, and the keys of {m.path} are text") from None


def _json(key: object, value: object) -> str:
    try:
        return line_of(value)
    except RecursionError:
        raise Refused(1, f"the value of {key!r:.80} is nested too deeply for JSON") from None


def _line(key: Any, value: Any, ttl: float | None) -> str:
    entry = {"key": key, "value": value}
    return _json(key, entry if ttl is None else {**entry, "ttl": ttl}) + "\n"


def _get(args: argparse.Namespace, out: Output) -> int:
    with _open(args.path) as m:
        keys = [_key(m, text) for text in args.keys]
        found = m.get_many(keys)
        missing = [key for key in keys if key not in found]
        if missing:
            raise Refused(1, f"{m.path} has no key {missing[0]!r:.80}")
        lines = [_json(key, found[key]) for key in keys]
    data = [{"key": json.loads(line_of(key)), "value": json.loads(line)} for key, line in zip(keys, lines, strict=True)]
    out.emit(data, "\n".join(lines))
    return 0


def _range(args: argparse.Namespace, out: Output) -> int:  # noqa: ARG001 - as all actions
    if args.prefix is not None and args.start is not None:
        raise Refused(2, "give START and STOP, or --prefix, and not both")
    with _open(args.path) as m:
        if args.prefix is not None:
            pairs = m.prefix(_key(m, args.prefix), reverse=args.reverse)
        else:
            start, stop = (None if text is None else _key(m, text) for text in (args.start, args.stop))
            pairs = m.range(start, stop, reverse=args.reverse)
        _write(m, itertools.islice(pairs, args.limit))
    return 0


def _dump(args: argparse.Namespace, out: Output) -> int:  # noqa: ARG001 - as all actions
    with _open(args.path) as m:
        _write(m, m.range())
    return 0


def _write(m: Any, pairs: Iterator[tuple[Any, Any]]) -> None:
    write = sys.stdout.write
    for key, value in pairs:
        ttl = lifetime(m, key)
        if ttl != 0:
            write(_line(key, value, ttl))


# ---- two maps ------------------------------------------------------------------------------------------------------

_MARKS = {"added": "+", "removed": "-", "changed": "!"}


def _diff(args: argparse.Namespace, out: Output) -> int:
    different = False
    with _open(args.path) as one, _open(args.other) as other:
        kinds = one.key_type, other.key_type
        if None not in kinds and kinds[0] is not kinds[1]:
            names = ["text" if kind is str else "bytes" for kind in kinds]
            raise Refused(2, f"the keys of {one.path} are {names[0]}, those of {other.path} {names[1]}")
        for change, key in differences(one, other):
            different = True
            if out.json:
                sys.stdout.write(json.dumps({"change": change, "key": json.loads(line_of(key))}) + "\n")
            else:
                sys.stdout.write(f"{_MARKS[change]} {line_of(key)}\n")
    return 1 if different else 0


def differences(one: Any, other: Any) -> Iterator[tuple[str, Any]]:
    """What was done to `one` to make `other`: ("added" | "removed" | "changed", key), in the order of the keys.

    A merge of two walks: UTF-8 is ordered as text is. Values are compared as they are stored; where the codecs differ,
    as lines of JSON. When they expire does not count.
    """
    bytewise = one.codec.name == other.codec.name
    mine, theirs = iter(one), iter(other)
    a, b = next(mine, None), next(theirs, None)
    while a is not None or b is not None:
        order = 1 if a is None else -1 if b is None else (a > b) - (a < b)
        if order < 0:
            yield "removed", a
            a = next(mine, None)
        elif order > 0:
            yield "added", b
            b = next(theirs, None)
        else:
            if not _same(one, other, a, bytewise=bytewise):
                yield "changed", a
            a, b = next(mine, None), next(theirs, None)


def _same(one: Any, other: Any, key: Any, *, bytewise: bool) -> bool:
    if bytewise:
        mine, theirs = one.get_view(key), other.get_view(key)
        # One that expires at this very moment is left for the next time.
        return mine is None or theirs is None or bytes(mine) == bytes(theirs)
    return _json(key, one.get(key)) == _json(key, other.get(key))
