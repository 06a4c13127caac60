"""How every command speaks: one JSON document for machines, or tables for people.

Promise
    With ``--json`` standard output holds exactly one JSON document (ASCII, no NaN, bytes as hex)
    and nothing else.  Without it, plain text in columns; where rich is installed, standard output
    is a terminal, and neither NO_COLOR nor TERM=dumb forbids it, rich draws the same tables.  Text
    that comes out of a file is never trusted: control characters are shown as escapes, so a
    crafted schema cannot drive the terminal.

Prior art
    systemd's tools (``--json`` beside tables), git's "porcelain", and https://no-color.org.

Rejected
    Formatting in each command: two places would have to agree on what ``--json`` holds.
"""

from __future__ import annotations

import dataclasses
import enum
import json as _json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

__all__ = ["Output", "Table", "document", "facts", "plain", "printable"]


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Rows for people.  Cells are any values; `columns` is empty for a table without a head."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""


class Output:
    """Where a command's results go.  A command calls `emit` once, and `progress` as it likes."""

    def __init__(self, *, json: bool = False, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.json = json
        self._stdout = sys.stdout if stdout is None else stdout
        self._stderr = sys.stderr if stderr is None else stderr

    def emit(self, data: object, *parts: Table | str) -> None:
        """Print the result: `data` as JSON, or else `parts` (tables and paragraphs) in order."""
        if self.json:
            self._stdout.write(document(data))
            return
        draw = self._draw_rich if _rich_wanted(self._stdout) else self._draw_plain
        for number, part in enumerate(parts):
            if number:
                print(file=self._stdout)
            if isinstance(part, str):
                print("\n".join(map(printable, part.splitlines())), file=self._stdout)
            else:
                draw(part)

    def progress(self, text: str) -> None:
        """Say on standard error, at once, what is going on."""
        print(printable(text), file=self._stderr, flush=True)

    def _draw_plain(self, table: Table) -> None:
        lines = [list(table.columns)] if table.columns else []
        lines += [[_cell(value) for value in row] for row in table.rows]
        count = max(map(len, lines), default=0)
        numeric = _numeric_columns(table, count)
        widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(count)]
        if table.columns:
            lines.insert(1, ["-" * width for width in widths])
        if table.title:
            print(printable(table.title), file=self._stdout)
        for line in lines:
            cells = (
                text.rjust(width) if right else text.ljust(width)
                for text, width, right in zip(line, widths, numeric, strict=False)
            )
            print("  ".join(cells).rstrip(), file=self._stdout)

    def _draw_rich(self, table: Table) -> None:
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        count = max(map(len, (table.columns, *table.rows)))
        drawn = RichTable(
            title=Text(printable(table.title)) if table.title else None,
            title_justify="left",
            show_header=bool(table.columns),
        )
        for i, right in enumerate(_numeric_columns(table, count)):
            head = Text(table.columns[i]) if i < len(table.columns) else ""
            drawn.add_column(head, justify="right" if right else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*(Text(_cell(value)) for value in row))  # Text: no markup is read in it
        Console(file=self._stdout).print(drawn)


def document(data: object) -> str:
    """Return `data` as one JSON document that ends in a line feed; see `plain` for the forms."""
    return _json.dumps(plain(data), indent=2, allow_nan=False) + "\n"


def facts(data: Mapping[str, object], title: str = "") -> Table:
    """Return a two-column table of a nested mapping: one row for each leaf, named by its path.

    >>> facts({"kind": "sync", "header": {"format": [1, 0]}}).rows
    [('kind', 'sync'), ('header.format', '1, 0')]
    """
    return Table((), list(_leaves("", data)), title)


def plain(value: object) -> Any:
    """Return `value` as what JSON can hold; raise `TypeError` for anything it has no form for.

    Bytes become hex, paths text, enumerations their values, dataclasses objects, sets and tuples
    lists; infinities and NaN become null.

    >>> plain({"identity": b"\\x01\\xff", "ratio": float("nan"), "sizes": (1, 2)})
    {'identity': '01ff', 'ratio': None, 'sizes': [1, 2]}
    """
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__qualname__} has no form in JSON: {value!r}")


def printable(text: str) -> str:
    """Return `text` with everything that is not a visible character or a space as an escape.

    >>> printable("struct:<iq\\n\\x1b[31m")
    'struct:<iq\\\\n\\\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def _leaves(path: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        join = f"{path}." if path else ""
        return [leaf for key, item in value.items() for leaf in _leaves(f"{join}{key}", item)]
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return [leaf for i, item in enumerate(value) for leaf in _leaves(f"{path}[{i}]", item)]
    return [(path, _cell(value))]


def _cell(value: object) -> str:
    """Return one value as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, str):
        return printable(value)
    data = plain(value)
    if isinstance(data, list):
        return ", ".join(map(_cell, data)) or "-"
    return printable(str(data)) if data != {} else "-"


def _numeric_columns(table: Table, count: int) -> list[bool]:
    """Say for each column whether all of its values are numbers, and so align to the right."""
    return [
        all(
            isinstance(row[i], int | float) and not isinstance(row[i], bool)
            for row in table.rows
            if i < len(row) and row[i] is not None
        )
        and any(i < len(row) and row[i] is not None for row in table.rows)
        for i in range(count)
    ]


def _rich_wanted(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return False
    try:
        import rich  # noqa: F401 - only whether it is there
    except ImportError:
        return False
    return True
