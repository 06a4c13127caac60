"""Counters in Prometheus' text format 0.0.4, and what a counter's name becomes there.

The rule
    1. Each character but A-Z, a-z, 0-9 and _ becomes one _. A name that begins with a digit then gets a _ in front.
    2. A counter whose name was changed has the label ``name``, which is its name; one whose name was valid has none.
    3. A cell without a name is ``mmapds_counter`` with the label ``index``.

    So no two counters have one series, and what a counter is called hangs on its own name alone: if the label came only
    where two names clash, a series would break off when the other name appears. A colon is valid too, but Prometheus
    asks exporters to leave it to recording rules.

The type is ``untyped`` unless one is asked for: the file does not say whether anybody sets or resets its counters, and
``counter`` would promise that they only grow. Sums beyond 2**53 are written in full; Prometheus rounds them.

Prior art
    prometheus_client and node_exporter's textfile collector, for what scrapers read.

Rejected
    Escaping (``_3a_`` for a colon), which nobody can read in a query; Prometheus 3's names in quotes, which older
    scrapers refuse, together with all else on the page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

CELL = "mmapds_counter"
TYPES = ("untyped", "counter", "gauge")
_HELP = "A counter of mmapds. If it has a label, that is its name in the file, or its index."
_VALID = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")


@dataclass(frozen=True, slots=True)
class Row:
    """One counter as it was read; `name` is None for a cell that has none."""

    name: str | None
    index: int
    value: float


def metric_name(name: str) -> str:
    """What a counter's name becomes.

    >>> metric_name("http.200"), metric_name("200"), metric_name("hits")
    ('http_200', '_200', 'hits')
    """
    changed = re.sub("[^A-Za-z0-9_]", "_", name)
    return f"_{changed}" if changed[0].isdigit() else changed


def is_prefix(text: str) -> bool:
    """Whether text may stand before metric names."""
    return _VALID.fullmatch(text) is not None


def exposition(rows: Iterable[Row], *, kind: str = "untyped", prefix: str = "") -> str:
    """All rows as one page. A metric's lines stand together, as the format demands."""
    metrics: dict[str, list[str]] = {}
    for row in rows:
        metric, label = CELL, f'{{index="{row.index}"}}'
        if row.name is not None:
            metric = metric_name(row.name)
            label = "" if metric == row.name else f'{{name="{_escaped(row.name)}"}}'
        metric = prefix + metric
        metrics.setdefault(metric, []).append(f"{metric}{label} {_number(row.value)}\n")
    return "".join(
        f"# HELP {metric} {_HELP}\n# TYPE {metric} {kind}\n{''.join(lines)}" for metric, lines in metrics.items()
    )


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return repr(value)
