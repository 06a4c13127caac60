"""Power loss between any two stores of an operation: what the disk may hold, from a trace of one file (stepping.py).

`losses` goes through the trace. After each store, and in the middle and at the end of each sync, it yields files that
may be found then: each sector of 512 bytes as it was last synced, or as it has been since, and mixtures of these.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from powerloss import SECTOR, _Inode, _pick

Trace = Sequence[tuple[int, int, bytes]]


def losses(trace: Trace, choose: random.Random, at_most: int) -> Iterator[tuple[int, bytes]]:
    """(how many steps of the trace were done, a file that may be found). The first step must be a sync."""
    inode = _Inode()
    for step, (start, end, content) in enumerate(trace):
        inode.see(content)
        if step:
            yield from ((step, found) for found in _found(inode, choose, at_most))
        if end:
            inode.synced(start, end)
            yield from ((step + 1, found) for found in _found(inode, choose, at_most if step else 1))


def at_end(trace: Trace, choose: random.Random, at_most: int) -> Iterator[bytes]:
    """Files that may be found when all of it is done."""
    inode = _Inode()
    for start, end, content in trace:
        inode.see(content)
        if end:
            inode.synced(start, end)
    yield from _found(inode, choose, at_most)


def _found(inode: _Inode, choose: random.Random, at_most: int) -> Iterator[bytes]:
    sizes = inode.sizes()
    sectors = [inode.sector(number, choose) for number in range(-(-max(sizes) // SECTOR))]
    pieces = [choices[0] for choices in sectors]
    open_ = [number for number, choices in enumerate(sectors) if len(choices) > 1]
    for size_picked, *picked in _pick([len(sizes), *(len(sectors[number]) for number in open_)], choose, at_most):
        for number, n in zip(open_, picked, strict=True):
            pieces[number] = sectors[number][n]
        yield b"".join(pieces)[: sizes[size_picked]]
