"""A run as a chart: horizontal bars on a logarithmic scale, in SVG.

Each promise is a pair of bars, ours and what it is compared with, and the ratio beside its target; each peer is a bar,
next to ours. Every bar carries its value, so that colour is never the only thing that tells; the picture has a
background of its own and follows the reader's light or dark setting.

Rejected: a plotting library, which would draw the same rectangles from a hundred megabytes of dependencies; a linear
scale, on which everything but the disk is a hairline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from mmapds.bench.report import nanoseconds

__all__ = ["svg"]

_WIDTH = 960
_LEFT = 330  # where the bars begin
_RIGHT = 700  # where the scale ends; values and ratios stand behind
_BAR = 12
_GAP = 10  # between groups
_TOP = 92

_STYLE = """
  text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: #1b1f24; }
  .title { font-size: 16px; font-weight: 600; }
  .chapter { font-weight: 600; }
  .soft { fill: #59636e; }
  .small { font-size: 11px; }
  .end { text-anchor: end; }
  .middle { text-anchor: middle; }
  .grid { stroke: #dde2e7; stroke-width: 1; }
  .ground { fill: #ffffff; }
  .ours { fill: #1f6fb5; }
  .reference { fill: #a3acb5; }
  .peer { fill: #b8641b; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e8ecf0; }
    .soft { fill: #a0aab4; }
    .grid { stroke: #2b3239; }
    .ground { fill: #14181d; }
    .ours { fill: #5aa7ea; }
    .reference { fill: #6b7580; }
    .peer { fill: #e09a55; }
  }
""".strip("\n")


@dataclass(frozen=True, slots=True)
class _Bar:
    kind: str  # "ours", "reference" or "peer": its class in the style
    label: str
    ns: float
    note: str = ""  # behind the value


def svg(results: dict[str, Any]) -> str:
    """The chart of a run, a whole SVG document."""
    chapters = (("Promises", _promises(results)), ("Other ways", _peers(results)))
    bars = [bar for _, groups in chapters for group in groups for bar in group]
    scale = _Scale(max(1, math.ceil(math.log10(max((bar.ns for bar in bars), default=10.0)))))
    body: list[str] = []
    y = _TOP
    for title, groups in chapters:
        body.append(f'<text class="chapter" x="20" y="{y + _BAR - 2}">{title}</text>')
        for group in groups:
            for bar in group:
                body += _draw(bar, scale, y)
                y += _BAR + 4
            y += _GAP
        y += _GAP
    height = y + 30
    return "\n".join([*_head(results, height), *_grid(scale, height), *body, "</svg>", ""])


class _Scale:
    """Nanoseconds to pixels, from 1 ns on."""

    def __init__(self, decades: int) -> None:
        self.decades = decades
        self._step = (_RIGHT - _LEFT) / decades

    def __call__(self, ns: float) -> float:
        return _LEFT + max(0.0, math.log10(max(ns, 1e-9))) * self._step


def _promises(results: dict[str, Any]) -> list[list[_Bar]]:
    groups = []
    for row in results["rows"]:
        if row["skipped"] or row.get("counted"):  # the scale is one of times
            continue
        verdict = "met" if row["met"] else "missed"
        note = f"{row['ratio']:.2f}, must be {row['target'].replace('<=', '≤').replace('>=', '≥')}: {verdict}"
        groups.append(
            [
                _Bar("ours", row["what"], row["measured_ns"], note),
                _Bar("reference", row["against"], row["reference_ns"]),
            ]
        )
    return groups


def _peers(results: dict[str, Any]) -> list[list[_Bar]]:
    """One group for all peers that stand beside the same call of ours."""
    groups: dict[tuple[str, float], list[_Bar]] = {}
    for peer in results["peers"]:
        if peer["skipped"]:
            continue
        group = groups.setdefault((peer["ours"], peer["ours_ns"]), [_Bar("ours", peer["ours"], peer["ours_ns"])])
        group.append(_Bar("peer", peer["what"].replace("mmap-sync crate (Rust)", "crate"), peer["ns"]))
    return list(groups.values())


def _head(results: dict[str, Any], height: int) -> list[str]:
    machine = results["machine"]
    where = f"{machine['cpu']}, {results['kernel']}, Python {results['versions']['python']}, {results['started'][:10]}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="title">',
        '<title id="title">Time of one operation: mmapds, what each is compared with, and other ways</title>',
        f"<style>\n{_STYLE}\n</style>",
        f'<rect class="ground" width="{_WIDTH}" height="{height}"/>',
        '<text class="title" x="20" y="30">Time of one operation (logarithmic scale, shorter is better)</text>',
        f'<text class="soft" x="20" y="48">{escape(where)}</text>',
    ]
    x = 20
    for kind, label in (("ours", "mmapds"), ("reference", "compared with, in the same run"), ("peer", "other ways")):
        parts.append(f'<rect class="{kind}" x="{x}" y="58" width="12" height="12" rx="2"/>')
        parts.append(f'<text class="soft" x="{x + 18}" y="68">{label}</text>')
        x += 44 + 6 * len(label)
    return parts


def _grid(scale: _Scale, height: int) -> list[str]:
    parts = []
    for decade in range(scale.decades + 1):
        x = scale(10.0**decade)
        label = nanoseconds(10.0**decade).replace(".00", "").replace(".0", "")
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{_TOP - 4}" x2="{x:.1f}" y2="{height - 32}"/>')
        parts.append(f'<text class="soft small middle" x="{x:.1f}" y="{height - 16}">{label}</text>')
    return parts


def _draw(bar: _Bar, scale: _Scale, y: int) -> list[str]:
    end = max(scale(bar.ns), _LEFT + 1)
    base = y + _BAR - 2
    soft = "" if bar.kind == "ours" else " soft"
    note = f'<tspan class="soft" dx="8">{escape(bar.note)}</tspan>' if bar.note else ""
    return [
        f'<text class="small end{soft}" x="{_LEFT - 8}" y="{base}">{escape(bar.label)}</text>',
        f'<rect class="{bar.kind}" x="{_LEFT}" y="{y}" width="{end - _LEFT:.1f}" height="{_BAR}" rx="2"/>',
        f'<text class="small" x="{end + 6:.1f}" y="{base}">{nanoseconds(bar.ns)}{note}</text>',
    ]
