"""What is compared with what, and the ratios that are promised.

A promise is a ratio of two times from the same run, never a time: it holds on slow machines too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmapds.bench.measure import Cost, Figures, noise, ratio

__all__ = ["MIB", "ROWS", "SMALL", "VALUE", "Result", "Row", "beside", "missing", "results"]

SMALL = 36  # bytes: the archive of the value below, as the Rust crate makes it
MIB = 1 << 20
VALUE = {"version": 7, "messages": ["Hello", "World", "!"]}

Result = dict[str, Any]
"""One line of a table, as it goes into the JSON document."""


@dataclass(frozen=True, slots=True)
class Row:
    """One promise: `measured`, divided by `reference`, is at most (or `at least`) `limit`. The two name cases.

    `typical`: it compares medians. Calls compare their best slices, because all that can happen to them is disturbance;
    a disk, and two processors at once, have good and bad moments of their own, and the best may be a stroke of luck.
    """

    name: str
    what: str
    against: str
    measured: str
    reference: str
    limit: float
    at_least: bool = False
    typical: bool = False

    @property
    def target(self) -> str:
        """The promise, for people."""
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"

    def result(self, measured: Cost, reference: Cost) -> Result:
        """The row as measured. Where the ratio must be *at least* something it is one of rates: upside down."""
        ns, reference_ns = (cost.median if self.typical else cost.best for cost in (measured, reference))
        found = reference_ns / ns if self.at_least else ns / reference_ns
        return {
            **self._head(),
            "measured_ns": ns,
            "reference_ns": reference_ns,
            "ratio": found,
            "met": found >= self.limit if self.at_least else found <= self.limit,
            "noise": noise(measured, reference),
            "skipped": None,
        }

    def skipped(self, reason: str) -> Result:
        """The row, not measured."""
        nothing = dict.fromkeys(("measured_ns", "reference_ns", "ratio", "met", "noise"))
        return {**self._head(), **nothing, "skipped": reason}

    def _head(self) -> Result:
        statistic = "median" if self.typical else "best"
        head = {"name": self.name, "what": self.what, "against": self.against}
        return {**head, "target": self.target, "statistic": statistic}


_U = "an empty method call (U)"

ROWS: Sequence[Row] = (
    Row("version", "s.version", _U, "version", "U", 2),
    Row("read_release", "r = s.read(); r.release()", _U, "read_release", "U", 5),
    Row("with_read", "with s.read(): pass", "with on an empty context manager", "with_read", "with_empty", 1.5),
    Row("with_read_64mib", "the same, 64 MiB", "36 bytes", "with_read_64mib", "with_read", 1.3),
    Row("load", "s.load()", _U, "load", "U", 3),
    Row("write_36", "s.write_bytes(36 B), tmpfs", "the crate's write_raw", "write_36", "crate.write_raw_36_ns", 1),
    Row("write_1mib", "s.write_bytes(1 MiB), tmpfs", "memcpy + xxh3 of it", "write_1mib", "memcpy_xxh3", 1.2),
    Row("readers", "two readers of one", "two readers of two", "readers_same", "readers_apart", 0.95, True, True),
    Row("power_36", "write_bytes(36 B), power", "one msync of that", "power_36", "msync_36", 2.3, typical=True),
    Row("power_1mib", "write_bytes(1 MiB), power", "one msync of that", "power_1mib", "msync_1mib", 2.3, typical=True),
    Row("pread", "Region.pread(100, o)", _U, "pread", "U", 4),
    Row("pwrite", "Region.pwrite(100 B, o)", _U, "pwrite", "U", 3),
    Row("fetch_add", "AtomicInt64.fetch_add(1)", _U, "fetch_add", "U", 2.2),
)


def results(figures: Figures, reasons: Mapping[str, str]) -> list[Result]:
    """Every row, in order. A case that was not timed is one of `reasons`."""
    found = []
    for row in ROWS:
        try:
            found.append(row.result(figures[row.measured], figures[row.reference]))
        except KeyError as missing_case:
            found.append(row.skipped(reasons[missing_case.args[0]]))
    return found


def beside(name: str, what: str, peer: Cost, ours: str, cost: Cost) -> Result:
    """A peer's figure beside the one of ours that does the same."""
    return {
        "name": name,
        "what": what,
        "ns": peer.best,
        "ours": ours,
        "ours_ns": cost.best,
        "ratio": ratio(peer, cost),
        "noise": noise(peer, cost),
        "skipped": None,
    }


def missing(name: str, what: str, ours: str, reason: str) -> Result:
    """A peer that is not here."""
    nothing = dict.fromkeys(("ns", "ours_ns", "ratio", "noise"))
    return {"name": name, "what": what, "ours": ours, **nothing, "skipped": reason}
