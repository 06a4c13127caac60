"""``mmapds counters PATH [list|get|add|reset|watch|export]``: look at counters, and change one, from a shell.

Promise
    ``list``, ``get``, ``watch`` and ``export`` open the file read-only: they need no write permission, write nothing
    and stand in nobody's way. ``add`` and ``reset`` are the same single steps that programs take. Nothing here makes a
    file, and only ``add --create`` a name: a typo is an error and not one more counter.

    A KEY is a name, also if it looks like a number; with ``--index`` it is an index. (A mark such as #3 would be a
    comment to the shell, and is a name that somebody may have.) The files of emmap have no names: there each KEY is an
    index.

    ``get`` prints values alone, one a line, as a script wants them. ``watch --json`` prints one JSON document a line
    for each look, ``export`` the format asked for, in UTF-8 whatever the locale: these two do not go through `Output`.
    Exit status 1 also where there is no such counter. What names become in Prometheus: `mmapds.cli._prometheus`.

Prior art
    sysctl, ``git config --get`` (values alone), vmstat (rates), journalctl ``-o json`` (JSON lines).

Rejected
    Asking back before a name is made: scripts cannot answer. Making files: dtype, padding and durability are the
    programs' affair.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from mmapds.cli._actions import Refused, positive, redraws, seconds, ticks
from mmapds.cli._prometheus import TYPES, Row, exposition, is_prefix
from mmapds.cli.output import Output, Table, document, plain, printable

__all__ = ["register", "run"]

_CHUNK = 4096  # cells
_RULE = """\
Names in Prometheus: each character but A-Z, a-z, 0-9 and _ becomes one _, and a
name that then begins with a digit gets a _ in front. A counter whose name was
changed by this has the label name="its name", so that no two of them are one. A
cell without a name is mmapds_counter{index="3"}. The type is "untyped", because
a file does not say whether anybody sets or resets its counters.
"""


# ---- the command line ----------------------------------------------------------------------------------------------


def register(commands: argparse._SubParsersAction[Any], common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the options that all commands share."""
    parser = commands.add_parser(
        "counters",
        parents=[common],
        usage="%(prog)s [-h] [--json] [--all] PATH [ACTION ...]",
        help="list, read, change, watch and export the counters of a file",
        description="List, read, change, watch and export the counters of a file, also of one that emmap wrote. "
        "Without an action: list.",
        epilog="Exit status: 0 done, 1 failed or no such counter, 2 usage, or the path cannot be opened.",
    )
    parser.add_argument("path", metavar="PATH", help="the file")
    everything = argparse.ArgumentParser(add_help=False)
    everything.add_argument(
        "--all", action="store_true", default=argparse.SUPPRESS, help="also cells without a name that are 0"
    )
    keys = argparse.ArgumentParser(add_help=False)
    keys.add_argument("-i", "--index", action="store_true", help="a KEY is an index, not a name")
    parser.add_argument("--all", action="store_true", help="list: also cells without a name that are 0")
    parser.set_defaults(run=run, action=_list)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", prog="mmapds counters PATH")

    def action(
        name: str, run: Callable[[argparse.Namespace, Output], int], text: str, *parents: Any, **more: Any
    ) -> Any:
        sentence = text[0].upper() + text[1:] + "."
        found = actions.add_parser(name, parents=[common, *parents], help=text, description=sentence, **more)
        found.set_defaults(action=run)
        return found

    action("list", _list, "names, indices and values", everything)
    get = action("get", _get, "print the values of some counters, one a line", keys)
    get.add_argument("keys", metavar="KEY", nargs="+")
    add = action("add", _add, "add to a counter and print the new value; refuse a sum that does not fit", keys)
    add.add_argument("--create", action="store_true", help="make the name if it is not there")
    add.add_argument("key", metavar="KEY")
    add.add_argument("n", metavar="N", nargs="?", default="1", help="how much (default 1)")
    reset = action("reset", _reset, "set a counter to 0 and print what it was", keys)
    reset.add_argument("key", metavar="KEY")
    watch = action("watch", _watch, "print values and rates again and again", everything)
    watch.add_argument(
        "--interval", type=seconds, default=1.0, metavar="S", help="seconds between (default %(default)g)"
    )
    watch.add_argument("--count", type=positive, metavar="N", help="end after so many times")
    export = action(
        "export",
        _export,
        "print all for another program",
        everything,
        epilog=_RULE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument(
        "--format", choices=("prometheus", "json", "csv"), help="default prometheus, or json with --json"
    )
    export.add_argument("--type", choices=TYPES, default="untyped", help="of all metrics, for prometheus")
    export.add_argument("--prefix", type=_prefix, default="", metavar="P", help="before all names, for prometheus")


def run(args: argparse.Namespace, out: Output) -> int:
    """Do one action; return 0, or another status if it was refused."""
    try:
        status: int = args.action(args, out)
    except Refused as refused:
        out.progress(f"mmapds: {refused}")
        return refused.status
    return status


def _prefix(text: str) -> str:
    if text and not is_prefix(text):
        raise argparse.ArgumentTypeError(f"{text}: a metric's name cannot begin like this")
    return text


# ---- what is in the file -------------------------------------------------------------------------------------------


def _open(path: str, mode: Literal["readonly", "shared"]) -> Any:
    from mmapds import Counters, files
    from mmapds.inspection._counters import EMMAP_MAGIC

    fd = files.open_regular(path, writable=False)  # if there is none: Counters would make one
    try:
        emmap = os.pread(fd, len(EMMAP_MAGIC), 0) == EMMAP_MAGIC
    finally:
        os.close(fd)
    return Counters(path, mode=mode, layout="emmap" if emmap else "mmapds")


def _rows(c: Any, *, everything: bool) -> list[Row]:
    """All names; then the cells without one that are not 0, or all of them."""
    c._backing.check_path()  # a watcher would show the old file's values for ever
    with c.view() as cells:
        rows = _named(c)
        found = [Row(None, i, value) for i, value in _cells(cells, everything=everything)]
    named = {row.index for row in rows}
    if any(row.index >= c.capacity and row.index not in named for row in found):
        named.update(row.index for row in _named(c))  # a name may have come back meanwhile
    len(c)  # an error if the file was cut meanwhile, and all this is zeros
    return rows + [row for row in found if row.index not in named]


def _named(c: Any) -> list[Row]:
    rows = []
    for name, value in c.snapshot().items() if c.layout != "emmap" else ():
        try:
            rows.append(Row(name, c.counter(name).index, value))
        except KeyError:  # removed since
            continue
    return rows


def _cells(cells: memoryview[Any], *, everything: bool) -> Iterator[tuple[int, float]]:
    for start in range(0, len(cells), _CHUNK):
        part = cells[start : start + _CHUNK]
        if everything or any(part.tobytes()):
            yield from ((i, value) for i, value in enumerate(part.tolist(), start) if value or everything)


def _document(c: Any, rows: Sequence[Row]) -> dict[str, object]:
    return {
        "path": c.path,
        "layout": c.layout,
        "dtype": c.dtype,
        "padded": c.padded,
        "durability": c.durability,
        "capacity": c.capacity,
        "names": sum(row.name is not None for row in rows),
        "counters": rows,
    }


def _key(c: Any, text: str, *, index: bool) -> str | int:
    if not index and c.layout != "emmap":
        return text
    try:
        return int(text)
    except ValueError:
        without = "" if index else ", and the files of emmap have no names"
        raise Refused(2, f"{text!r} is not an index{without}") from None


@contextmanager
def _asked(c: Any, key: str | int) -> Iterator[None]:
    """Says in one line what is wrong with a key or a value that came from the command line."""
    from mmapds.errors import MmapdsError

    try:
        yield
    except MmapdsError:
        raise
    except KeyError:
        hint = f"; --index {key} is the one at that index" if str(key).isdecimal() else ""
        raise Refused(1, f"{c.path} has no counter named {key!r}{hint}") from None
    except (IndexError, OverflowError) as error:
        raise Refused(1, str(error)) from None
    except ValueError as error:
        raise Refused(2, str(error)) from None


# ---- actions -------------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace, out: Output) -> int:
    with _open(args.path, "readonly") as c:
        rows = _rows(c, everything=args.all)
        data = _document(c, rows)
    shown = _table(rows) if rows else f"{data['path']}: no names, and all {data['capacity']} cells are 0"
    out.emit(data, shown)
    return 0


def _table(rows: Sequence[Row], rates: Mapping[int, float | None] | None = None) -> Table:
    """Floats in full, which a table by itself would round."""
    values: list[Any] = [row.value for row in rows]
    if any(isinstance(value, float) for value in values):
        width = max(len(repr(value)) for value in values)
        values = [repr(value).rjust(width) for value in values]
    columns = ["name", "index", "value"]
    lines = [[row.name, row.index, value] for row, value in zip(rows, values, strict=True)]
    if rates is not None:
        columns.append("per second")
        lines = [[*line, rates[row.index]] for line, row in zip(lines, rows, strict=True)]
    return Table(columns, lines)


def _get(args: argparse.Namespace, out: Output) -> int:
    found = []
    with _open(args.path, "readonly") as c:
        for text in args.keys:
            key = _key(c, text, index=args.index)
            with _asked(c, key):
                found.append({"key": key, "value": c[key]})
    out.emit(found, "\n".join(repr(each["value"]) for each in found))
    return 0


def _add(args: argparse.Namespace, out: Output) -> int:
    with _open(args.path, "shared") as c:
        key = _key(c, args.key, index=args.index)
        n = _number(c, args.n)
        if isinstance(key, str) and key not in c and not args.create:
            raise Refused(1, f"{c.path} has no counter named {key!r}: --create makes it")
        with _asked(c, key):
            value = c.add(key, n, checked=True)
    out.emit({"key": key, "value": value}, repr(value))
    return 0


def _number(c: Any, text: str) -> float:
    kind, expected = (float, "a finite number") if c.dtype == "f64" else (int, "an integer")
    try:
        value: float = kind(text)
        if isinstance(value, int) or math.isfinite(value):
            return value
    except ValueError:
        pass
    raise Refused(2, f"{text!r} is not {expected}, which the counters of {c.path} need (dtype {c.dtype!r})")


def _reset(args: argparse.Namespace, out: Output) -> int:
    with _open(args.path, "shared") as c:
        key = _key(c, args.key, index=args.index)
        with _asked(c, key):
            value = c.reset(key)
    out.emit({"key": key, "value": value}, repr(value))
    return 0


def _watch(args: argparse.Namespace, out: Output) -> int:
    redraw = redraws()
    with _open(args.path, "readonly") as c:
        rows, since = _rows(c, everything=args.all), time.monotonic()
        for number in ticks(args.interval, args.count):
            before = {row.index: row for row in rows}
            rows, now = _rows(c, everything=args.all), time.monotonic()
            rates = {row.index: _rate(row, before.get(row.index), now - since) for row in rows}
            if out.json:
                counters = [{**plain(row), "rate": rates[row.index]} for row in rows]
                line = {"time": time.time(), "seconds": now - since, "counters": counters}
                sys.stdout.write(json.dumps(plain(line), allow_nan=False) + "\n")
            else:
                sys.stdout.write("\x1b[H\x1b[J" if redraw else "\n" if number else "")
                table = _table(rows, rates)
                out.emit(None, Table(table.columns, table.rows, time.strftime("%H:%M:%S")))
            sys.stdout.flush()
            since = now
    return 0


def _rate(row: Row, before: Row | None, seconds: float) -> float | None:
    """Per second; None if the name is new. Of an integer that has wrapped, what was counted."""
    if before is None and row.name is None:
        before = Row(None, row.index, 0)  # it was 0, and so not among the rows
    if before is None or before.name != row.name:
        return None
    more = row.value - before.value
    if isinstance(more, int):
        more = (more + (1 << 63)) % (1 << 64) - (1 << 63)
    return more / seconds


def _export(args: argparse.Namespace, out: Output) -> int:
    chosen = args.format or ("json" if out.json else "prometheus")
    if out.json and chosen != "json":
        raise Refused(2, f"--json and --format {chosen} contradict each other")
    with _open(args.path, "readonly") as c:
        rows = _rows(c, everything=args.all)
        data = _document(c, rows)
    if chosen == "json":
        text = document(data)
    elif chosen == "csv":
        text = _csv(rows)
    else:
        text = exposition(rows, kind=args.type, prefix=args.prefix)
    if sys.stdout.isatty():
        text = "".join(printable(line) + "\n" for line in text.splitlines())
    sys.stdout.flush()
    rest = memoryview(text.encode())
    while rest:  # python -u has no buffer there, and then a write may be half of one
        rest = rest[sys.stdout.buffer.write(rest) :]
    return 0


def _csv(rows: Sequence[Row]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("name", "index", "value"))
    writer.writerows(("" if row.name is None else row.name, row.index, repr(row.value)) for row in rows)
    return file.getvalue()
