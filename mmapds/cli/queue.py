"""``mmapds queue PATH [stat|put|get|peek|claims|dead|requeue|purge|watch]``: look at a queue, and work with it.

Promise
    ``stat``, ``peek``, ``claims``, ``dead`` and ``watch`` open the queue read-only: they need no write permission, and
    change and take nothing. Items are lines of JSON, in ``put``, ``get`` and ``peek``, also with ``--json``; what JSON
    has no form for has a mark (`mmapds.cli._jsonlines`), so that what one command prints another one puts as it was.

    ``put`` puts each line when it has read it. ``get`` acknowledges items when their lines are written: if nobody reads
    its output any more, or it is killed, they are in the queue again. Only ``put --create`` makes a queue.

    Exit status 1 also where there was nothing to get or to peek at, and for a dead letter that is not there.

Prior art
    ``rabbitmqadmin``, ``beanstalkd-cli``, ``redis-cli``; JSON lines as ``jq -c`` and journalctl have them.

Rejected
    Asking back before a purge: scripts cannot answer. ``get`` that takes items at once: what is in a pipe that breaks
    would be lost.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any, Literal

from mmapds.cli._actions import Refused, positive, redraws, seconds, ticks
from mmapds.cli._jsonlines import line_of, value_of
from mmapds.cli.output import Output, Table, facts, plain

__all__ = ["register", "run"]

_BATCH = 100
_SHOWN = 60  # characters of an item in a table
_OPTIONS = ("codec", "schema", "durability", "maxsize", "max_bytes", "segment_size", "max_attempts", "compress")
_FORMS = """\
Items are lines of JSON. What JSON has no form for is an object with one key:
{"$bytes": "aGk="} (base64), {"$float": "nan"}, or, for a dictionary whose keys
are not all text, or that itself looks like this, {"$map": [[key, value], ...]}.
"""


# ---- the command line ----------------------------------------------------------------------------------------------


def register(commands: argparse._SubParsersAction[Any], common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the options that all commands share."""
    parser = commands.add_parser(
        "queue",
        parents=[common],
        usage="%(prog)s [-h] [--json] PATH [ACTION ...]",
        help="look at a queue, put items and get them, see to its dead letters",
        description="Look at a queue, put items and get them as lines of JSON, see to its dead letters. "
        "Without an action: stat.",
        epilog="Exit status: 0 done, 1 failed or nothing there, 2 usage, or the path cannot be opened.",
    )
    parser.add_argument("path", metavar="PATH", help="the directory of the queue")
    parser.set_defaults(run=run, action=_stat)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", prog="mmapds queue PATH")

    def action(name: str, run: Callable[[argparse.Namespace, Output], int], text: str, *, forms: bool = False) -> Any:
        found = actions.add_parser(
            name,
            parents=[common],
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=_FORMS if forms else None,
            formatter_class=argparse.RawDescriptionHelpFormatter if forms else argparse.HelpFormatter,
        )
        found.set_defaults(action=run)
        return found

    action("stat", _stat, "how many items there are, who holds some, and what has happened")
    _register_put(action("put", _put, "put items, and print how many", forms=True))
    get = action("get", _get, "take items and print them, one a line", forms=True)
    get.add_argument("-n", type=positive, default=1, metavar="N", help="how many at most (default %(default)s)")
    get.add_argument("--all", action="store_true", help="all that are there; status 0 also if none is")
    get.add_argument(
        "--timeout", type=_time, default=0, metavar="S", help="wait so many seconds for one (default 0; inf: for ever)"
    )
    peek = action("peek", _peek, "print items without taking them, delayed ones in their place", forms=True)
    peek.add_argument("-n", type=positive, default=1, metavar="N", help="how many at most (default %(default)s)")
    peek.add_argument("--all", action="store_true", help="all that wait; status 0 also if none does")
    peek.add_argument("--reverse", action="store_true", help="the last first")
    action("claims", _claims, "who holds what")
    action("dead", _dead, "the dead letters, with their history")
    requeue = action("requeue", _requeue, "put dead letters back at the end of the queue, and print how many")
    which = requeue.add_mutually_exclusive_group(required=True)
    which.add_argument("id", metavar="ID", nargs="?", help="the letter with this identity")
    which.add_argument("--all", action="store_true", help="all of them")
    purge = action("purge", _purge, "take away all that waits, and print how much it was")
    purge.add_argument("--dead", action="store_true", help="the dead letters instead")
    watch = action("watch", _watch, "print what stat prints, and rates, again and again")
    watch.add_argument(
        "--interval", type=seconds, default=1.0, metavar="S", help="seconds between (default %(default)g)"
    )
    watch.add_argument("--count", type=positive, metavar="N", help="end after so many times")


def _register_put(put: argparse.ArgumentParser) -> None:
    put.add_argument("items", metavar="ITEM", nargs="*", help="JSON; without any, lines of standard input")
    put.add_argument("--file", metavar="FILE", help="read lines from FILE instead (-: standard input)")
    put.add_argument("--delay", type=_time, default=0, metavar="S", help="seconds before they can be taken")
    put.add_argument("--timeout", type=_time, metavar="S", help="seconds to wait for room (default: for ever)")
    put.add_argument("--create", action="store_true", help="make the queue if it is not there")
    made = put.add_argument_group("options of a queue that is made, or which it must have")
    made.add_argument("--codec", metavar="NAME", help="msgpack (default), raw, struct:FORMAT, ...")
    made.add_argument("--schema", metavar="TEXT")
    made.add_argument("--durability", choices=("process", "power"))
    for option in ("--maxsize", "--max-bytes", "--segment-size", "--max-attempts"):
        made.add_argument(option, type=int, metavar="N")
    made.add_argument("--compress", metavar="zlib:LEVEL")


def run(args: argparse.Namespace, out: Output) -> int:
    """Do one action; return 0, or another status if it was refused."""
    try:
        status: int = args.action(args, out)
    except Refused as refused:
        out.progress(f"mmapds: {refused}")
        return refused.status
    return status


def _time(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text}: must be 0 or more")
    return value


def _limit(value: float | None) -> float | None:
    return None if value is None or value > 1e9 else value


# ---- the queue -----------------------------------------------------------------------------------------------------


def _open(path: str, mode: Literal["readonly", "shared"], *, create: bool = False, **options: Any) -> Any:
    from mmapds import Queue

    if not create and not os.path.lexists(os.path.join(path, "meta")):  # Queue would make one
        if not os.path.lexists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        raise Refused(2, f"{path}: a directory, and not that of a queue")
    return Queue(path, mode=mode, **options)


def _found(q: Any) -> dict[str, Any]:
    """What stat and watch say."""
    stats = q.stats()
    return {
        **stats,
        "unfinished": q.unfinished_tasks,
        "durability": q.durability,
        "codec": q.codec.name,
        "maxsize": q.maxsize or None,
        "max_bytes": q.max_bytes,
        "max_attempts": q.max_attempts,
        "segment_size": q.segment_size,
        "compress": q.compress,
    }


def _stat(args: argparse.Namespace, out: Output) -> int:
    with _open(args.path, "readonly") as q:
        found = _found(q)
        holders = q.holders()
        path = q.path
    parts: list[Table | str] = [facts({"path": path, **found})]
    if holders:
        parts.append(Table(list(holders[0]), [list(holder.values()) for holder in holders], "holders"))
    out.emit({"path": path, **found, "holders": holders}, *parts)
    return 0


# ---- items ---------------------------------------------------------------------------------------------------------


def _put(args: argparse.Namespace, out: Output) -> int:
    from mmapds import Full
    from mmapds.errors import MmapdsError

    if args.items and args.file is not None:
        raise Refused(2, "give items, or --file, and not both")
    options = {name: value for name in _OPTIONS if (value := getattr(args, name)) is not None}
    count = 0
    with ExitStack() as stack:
        lines = _lines(args, stack)
        try:
            q = stack.enter_context(_open(args.path, "shared", create=args.create, **options))
        except FileNotFoundError:
            if args.create:
                raise  # its parent is missing
            raise Refused(2, f"{args.path}: there is no queue: --create makes one") from None
        except (TypeError, ValueError) as error:
            if isinstance(error, MmapdsError):
                raise
            raise Refused(2, str(error)) from None
        for number, line in lines:
            try:
                q.put(value_of(line.decode()), timeout=_limit(args.timeout), delay=args.delay)
            except Full:
                what = "the queue is full"
            except (TypeError, ValueError) as error:
                if isinstance(error, MmapdsError):
                    raise
                what = str(error)
            else:
                count += 1
                continue
            raise Refused(1, f"item {number} was not put: {what}; {count} were put before it")
    out.emit({"put": count}, str(count))
    return 0


def _lines(args: argparse.Namespace, stack: ExitStack) -> Iterator[tuple[int, bytes]]:
    """Items and their numbers; blank lines do not count as items."""
    source: Iterable[bytes]
    if args.items:
        source = [os.fsencode(item) for item in args.items]
    elif args.file in (None, "-"):
        source = sys.stdin.buffer
    else:
        source = stack.enter_context(open(args.file, "rb"))  # noqa: SIM115 - the stack closes it
    return ((number, line) for number, line in enumerate(source, 1) if line.strip())


def _get(args: argparse.Namespace, out: Output) -> int:
    from mmapds import Empty
    from mmapds.errors import CorruptionError

    taken = damaged = 0
    with _open(args.path, "shared") as q:
        while args.all or taken < args.n:
            wanted = _BATCH if args.all else min(_BATCH, args.n - taken)
            try:
                claims = q.claim_many(wanted, timeout=_limit(args.timeout))
            except Empty:
                break
            except CorruptionError as error:  # set aside: the next one is behind it
                out.progress(f"mmapds: {error}")
                damaged += 1
                continue
            sys.stdout.write("".join(line_of(claim.item) + "\n" for claim in claims))
            sys.stdout.flush()  # if that fails, the end of the handle gives them back
            for claim in claims:
                claim.ack()
            taken += len(claims)
    return 0 if not damaged and (taken or args.all) else 1


def _peek(args: argparse.Namespace, out: Output) -> int:  # noqa: ARG001 - as all actions
    shown = 0
    with _open(args.path, "readonly") as q:
        for item in itertools.islice(reversed(q) if args.reverse else q, None if args.all else args.n):
            sys.stdout.write(line_of(item) + "\n")
            shown += 1
    return 0 if shown or args.all else 1


def _purge(args: argparse.Namespace, out: Output) -> int:
    with _open(args.path, "shared") as q:
        count = q.dead.purge() if args.dead else q.purge()
    out.emit({"purged": count}, str(count))
    return 0


# ---- who holds what, and what failed -------------------------------------------------------------------------------


def _claims(args: argparse.Namespace, out: Output) -> int:
    from mmapds.inspection import _queue_words

    _open(args.path, "readonly").close()  # says what is wrong with the path
    claims = _queue_words.claims(args.path)
    if claims is None:
        raise Refused(1, f"{args.path}: items were taken all the while, and no look at it was of one moment: try again")
    columns = ["id", "pid", "alive", "attempts", "lease", "put", "size"]
    rows = [[*(claim[name] for name in columns[:5]), _when(claim["put_at"]), claim["size"]] for claim in claims]
    out.emit(claims, Table(columns, rows) if rows else f"{args.path}: nobody holds anything")
    return 0


def _dead(args: argparse.Namespace, out: Output) -> int:
    with _open(args.path, "readonly") as q:
        letters = [letter._asdict() for letter in q.dead]
    rows = []
    for letter in letters:
        line = line_of(letter["item"])
        letter["item"] = json.loads(line)
        times = _when(letter["put_at"]), _when(letter["buried_at"])
        item = line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."
        rows.append([letter["id"], letter["attempts"], *times, letter["reason"], letter["error"], item])
    table = Table(["id", "attempts", "put", "buried", "reason", "error", "item"], rows)
    out.emit(letters, table if rows else f"{args.path}: no dead letters")
    return 0


def _when(at: Any) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="seconds")[:19]


def _requeue(args: argparse.Namespace, out: Output) -> int:
    with _open(args.path, "shared") as q:
        count = q.dead.requeue(None if args.all else args.id)
    if not count and not args.all:
        raise Refused(1, f"{args.path} has no dead letter {args.id!r}")
    out.emit({"requeued": count}, str(count))
    return 0


# ---- again and again -----------------------------------------------------------------------------------------------

_WATCHED = ("items", "delayed", "claimed", "dead", "put", "done", "returns", "deaths", "bytes", "disk")


def _watch(args: argparse.Namespace, out: Output) -> int:
    redraw = redraws()
    with _open(args.path, "readonly") as q:
        before, since = _counted(q), time.monotonic()
        for number in ticks(args.interval, args.count):
            found, now = _counted(q), time.monotonic()
            rates = {name: (found[name] - before[name]) / (now - since) for name in ("put", "done")}
            if out.json:
                line = {"time": time.time(), "seconds": now - since, "stats": found, "rates": rates}
                sys.stdout.write(json.dumps(plain(line), allow_nan=False) + "\n")
            else:
                sys.stdout.write("\x1b[H\x1b[J" if redraw else "\n" if number else "")
                rows = [[name, found[name], rates.get(name)] for name in _WATCHED]
                out.emit(None, Table(["what", "now", "per second"], rows, time.strftime("%H:%M:%S")))
            sys.stdout.flush()
            before, since = found, now
    return 0


def _counted(q: Any) -> dict[str, Any]:
    q._backing.meta.check_path()  # a watcher would show the old queue's numbers for ever
    found: dict[str, Any] = q.stats()
    found["done"] = found["put"] - found["items"] - found["claimed"]
    return found
