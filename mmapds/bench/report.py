"""A run as tables: for a terminal, and as Markdown for the documentation.

``python -m mmapds.bench.report PAGE.md RUN.json...`` puts the Markdown of each run into a page, between two marks that
stand there for it, in this order, and the chart beside the run. docs/benchmarks.md is kept that way, and a test
compares the two, so that no figure there is typed by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmapds.cli.output import Table

__all__ = ["markdown", "nanoseconds", "renew", "tables"]

BEGIN, END = "<!-- the run -->\n", "<!-- end of the run -->\n"

_ROWS = ("what", "time", "compared with", "time", "ratio", "target", "met")
_PEERS = ("another way", "time", "mmapds", "time", "times as long")


def tables(results: dict[str, Any]) -> Sequence[Table]:
    """The promises, the peers, and what the run ran on."""
    return (
        Table(_ROWS, [_row(row) for row in results["rows"]], "Promises: ratios within this run"),
        Table(_PEERS, [_peer(peer) for peer in results["peers"]], "Peers"),
        Table((), _facts(results), "The run"),
    )


def markdown(results: dict[str, Any]) -> str:
    """The same three tables, in Markdown."""
    return "\n".join(_markdown(table) for table in tables(results))


def renew(page: str, *runs: dict[str, Any]) -> str:
    """The page with the tables of each run between its marks; ValueError if it has not as many places for them."""
    head, *places = page.split(BEGIN)
    if len(places) != len(runs) or any(place.count(END) != 1 for place in places):
        raise ValueError(
            f"the page does not have {len(runs)} times {BEGIN.strip()!r} and {END.strip()!r} to put the tables between"
        )
    parts = [head]
    for place, results in zip(places, runs, strict=True):
        parts.append(f"{BEGIN}\n{markdown(results)}\n{END}{place.partition(END)[2]}")
    return "".join(parts)


def nanoseconds(value: float) -> str:
    """A time for people: three digits.

    >>> [nanoseconds(t) for t in (8.914, 231.2, 60_120.0, 1_234_000.0)]
    ['8.91 ns', '231 ns', '60.1 µs', '1.23 ms']
    """
    units = ["s", "ms", "µs", "ns"]
    unit = units.pop()
    while value >= 999.5 and units:
        value /= 1000
        unit = units.pop()
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def _time(value: float | None) -> str | None:
    return None if value is None else nanoseconds(value)


def _count(value: float | None) -> str | None:
    return None if value is None else f"{value:g}"


def _row(row: dict[str, Any]) -> list[object]:
    shown = _count if row.get("counted") else _time
    head = [row["what"], shown(row["measured_ns"]), row["against"], shown(row["reference_ns"])]
    if row["skipped"]:
        return [*head, None, row["target"], f"not measured: {row['skipped']}"]
    return [*head, f"{row['ratio']:.2f}", row["target"], "yes" if row["met"] else "NO"]


def _peer(peer: dict[str, Any]) -> list[object]:
    if peer["skipped"]:
        return [peer["what"], f"not measured: {peer['skipped']}", peer["ours"], None, None]
    ratio = peer["ratio"]
    shown = f"{ratio:.2f}" if ratio < 9.995 else f"{ratio:,.0f}"
    return [peer["what"], _time(peer["ns"]), peer["ours"], _time(peer["ours_ns"]), shown]


def _facts(results: dict[str, Any]) -> list[list[object]]:
    machine, others = results["machine"], results["others"]
    cores = f"{machine['usable_cores']} of {machine['cores']} processors"
    systems = results["file_systems"]
    return [
        ["unit U", nanoseconds(results["unit_ns"])],
        *([["keys", f"{results['keys']:,}"]] if "keys" in results else []),
        ["processor", f"{machine['cpu']} ({machine['architecture']}), {cores}"],
        ["machine", f"{'virtual, ' if machine['virtual'] else ''}{machine['memory_gib']} GiB of memory"],
        ["kernel", results["kernel"]],
        ["file systems", ", ".join(f"{name}: {system or 'none'}" for name, system in systems.items())],
        ["versions", ", ".join(f"{name} {version}" for name, version in results["versions"].items())],
        ["used by others", f"{others['others_percent']} % of the processors; {others['stolen_percent']} % stolen"],
        ["noise", f"{_noise(results):.0%} (median slice above best slice, calls of nanoseconds)"],
        ["run", f"{results['started']}, {others['seconds']} s{', quick' if results['quick'] else ''}"],
    ]


def _noise(results: dict[str, Any]) -> float:
    """The middle one of the rows that compare with U; where none does, of all that compare their best slices."""
    measured = [row for row in results["rows"] if row["noise"] is not None and not row.get("counted")]
    calls = [row for row in measured if "(U)" in row["against"]] or [
        row for row in measured if row["statistic"] == "best"
    ]
    found = sorted(row["noise"] for row in calls)
    return float(found[len(found) // 2])


def _markdown(table: Table) -> str:
    columns = table.columns or ("", "")
    lines = [f"**{table.title}**", "", _line(columns), _line(["---"] * len(columns))]
    lines += [_line(["" if cell is None else str(cell) for cell in row]) for row in table.rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _main(page: str, *paths: str) -> None:
    from mmapds.bench.plot import svg

    runs = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    Path(page).write_text(renew(Path(page).read_text(encoding="utf-8"), *runs), encoding="utf-8")
    for path, results in zip(paths, runs, strict=True):
        Path(path).with_suffix(".svg").write_text(svg(results), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
