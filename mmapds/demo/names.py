"""The map of the demo: the Unicode table by name, an ordered index by code point, and how far its revision has got.

Three kinds of keys, apart by how they begin::

    name/LATIN SMALL LETTER A    [code point, category, numeric value, revision]
    code/000061                  [name, revision]
    revision                     [revision, editor]

Revision n takes block n of the characters, around and around, and notes its number at each of them, under both keys, in
one transaction with the number itself. So the number of the last one says what is noted at every character, and a
version in which anything else is noted is of two: torn.

A finder trusts nothing that it is sent: it has a table of its own, from its own `unicodedata`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from mmapds.demo.table import character_table

BLOCK = 100  # characters that one revision takes
REVISION = "revision"

Pair = tuple[str, list[Any]]


class View(Protocol):
    """What is looked at: a version of the map."""

    def __getitem__(self, key: str, /) -> Any: ...

    def range(self, start: str, stop: str) -> Iterator[tuple[Any, Any]]: ...

    def get_many(self, keys: Iterable[str], /) -> dict[Any, Any]: ...


def by_name(name: str) -> str:
    """The key of a character's record."""
    return f"name/{name}"


def by_code(code: int) -> str:
    """The key of a character in the index: code points in their order."""
    return f"code/{code:06X}"


class Names:
    """The characters that have a name, in the order of their code points."""

    def __init__(self) -> None:
        self.rows = [row for row in character_table() if row[1]]
        self.blocks = -(-len(self.rows) // BLOCK)

    def items(self, last: int = 0, editor: int = 0) -> Iterator[Pair]:
        """The whole map, as it is after revision `last`."""
        yield REVISION, [last, editor]
        for i in range(len(self.rows)):
            yield from self._pairs(i, self.noted(i, last))

    def revised(self, number: int) -> Iterator[Pair]:
        """What a revision changes, beside its number."""
        start = self.start_of(number)
        for i in range(start, min(start + BLOCK, len(self.rows))):
            yield from self._pairs(i, number)

    def start_of(self, number: int) -> int:
        """The first character that a revision takes."""
        return number % self.blocks * BLOCK

    def noted(self, i: int, last: int) -> int:
        """What is noted at a character after revision `last`; 0: none has come to it yet."""
        behind = (last - i // BLOCK) % self.blocks
        return max(last - behind, 0)

    def _pairs(self, i: int, revision: int) -> Iterator[Pair]:
        code, name, category, numeric = self.rows[i]
        yield by_name(name), [code, category, numeric, revision]
        yield by_code(code), [name, revision]

    def compare(self, view: View, start: int) -> tuple[str, str]:
        """Walks the block of characters from one on and looks each of them up; what is torn there, and what is wrong:
        "" for nothing.
        """
        last, _ = view[REVISION]
        rows = self.rows[start : start + BLOCK]
        walked = list(view.range(by_code(rows[0][0]), by_code(rows[-1][0] + 1)))
        found = view.get_many([by_name(row[1]) for row in rows])
        where = f"{by_code(rows[0][0])} to {by_code(rows[-1][0])}, in revision {last}"
        if [(key, value[0]) for key, value in walked] != [(by_code(row[0]), row[1]) for row in rows]:
            return "", f"{where}: a walk finds other characters than there are"
        if [found.get(by_name(name), ())[:3] for _, name, *_ in rows] != [[c, *more] for c, _, *more in rows]:
            return "", f"{where}: names lead to other records than theirs"
        noted = [self.noted(i, last) for i in range(start, start + len(rows))]
        for what, revisions in (
            ("the index", [value[1] for _, value in walked]),
            ("the records", [found[by_name(row[1])][3] for row in rows]),
        ):
            if revisions != noted:
                i = next(i for i, pair in enumerate(zip(revisions, noted, strict=True)) if pair[0] != pair[1])
                return f"{where}: {what} note revision {revisions[i]} at {rows[i][1]}, not {noted[i]}", ""
        return "", ""
