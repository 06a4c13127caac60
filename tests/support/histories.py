"""Histories of many processes: a recorder that outlives its process, and checkers of what it recorded.

Each process notes each operation twice in a mapped file of its own, before it begins and after it has returned, with
the nanoseconds of CLOCK_MONOTONIC, which all processes share. A process that is killed leaves at most one operation
that was begun and not noted as returned: its outcome is *unknown*. It may have happened at any moment between its
beginning and the moment at which its process was known to be dead, or not at all; nothing else is assumed of it.

A checker says whether there is any order of the operations that the structure's sequential description allows and in
which whatever returned before something else began comes first: linearizability. One operation may concern one counter
only, so each counter is searched alone (linearizability is local). Three searches:

- `check_register`: any operations of one counter; all configurations (value, which of the open operations have
  happened) are followed through the events, each operation as late as it can (the just-in-time search of Lowe, with
  the memoisation of Wing & Gong's search that Knossos and Porcupine have).
- `check_adds`: positive additions, reads and reservations alone: what they returned is their order, and what remains
  is a sort, n log n. Sums that nobody acknowledged must be those of unknown additions, which is searched.
- `check_versions`: one value published in versions (Gibbons & Korach: with the order of writes known, a register is
  checked by one walk).

That of queues is in ``queuehistory.py``. Violations raise `HistoryError`, whose text shows the operations in question.

Rejected: Knossos or Porcupine themselves, another language for what takes a hundred lines; a log in a pipe, which loses
what was not read when its writer dies, or blocks it.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

clock = time.monotonic_ns
NEVER = 1 << 62

# ---- the recorder ---------------------------------------------------------------------------------------------------

_RECORD = struct.Struct("<8q")  # begun, returned (0: not), kind, a, b, c, d, e
_WORDS = 8
CONTENT = 0  # kind of a record that belongs to the operation before it: one of the items of a batch


class Op(NamedTuple):
    """An operation. `known`: whether it is known to have returned; if not, `end` is when its process was dead."""

    begin: int
    end: int
    known: bool
    kind: int
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0
    e: int = 0
    process: int = 0
    content: tuple[tuple[int, ...], ...] = ()


class Log:
    """What one process does, in files ``<base>.0``, ``<base>.1`` ...: the next is begun when one is full.

    The first record of the first file is the log's own: there the process says whether it works, rests, or has paused.
    """

    def __init__(self, base: str, records: int = 8192) -> None:
        self.base, self.records, self.number = base, records, -1
        self._roll()
        self.state, self.at = self.words, _WORDS

    def _roll(self) -> None:
        self.number += 1
        size = self.records * _RECORD.size
        temporary = f"{self.base}.new"
        with open(temporary, "w+b") as file:
            file.truncate(size)
            self.map = mmap.mmap(file.fileno(), size)
        os.rename(temporary, f"{self.base}.{self.number}")
        self.words = memoryview(self.map).cast("q")
        self.at = 0

    def begin(self, kind: int, a: int = 0, b: int = 0, c: int = 0, room: int = 0) -> None:
        """An operation begins, in which up to `room` items may come."""
        if self.at + (room + 1) * _WORDS > self.records * _WORDS:
            self._roll()
        at, words = self.at, self.words
        words[at + 3], words[at + 4], words[at + 5] = a, b, c
        words[at + 2] = kind
        words[at] = clock()

    def argument(self, a: int, b: int = 0) -> None:
        """`a` and `b` of the operation that has begun were not known then."""
        self.words[self.at + 3], self.words[self.at + 4] = a, b

    def end(self, d: int = 0, e: int = 0, now: int = 0, content: Iterable[tuple[int, ...]] = ()) -> None:
        """It has returned, at `now`."""
        now = now or clock()
        at, words = self.at, self.words
        words[at + 6], words[at + 7] = d, e
        after = at + _WORDS
        for row in content:
            _RECORD.pack_into(self.map, after * 8, 1, 1, CONTENT, *row, *(0,) * (5 - len(row)))
            after += _WORDS
        words[at + 1] = now  # last: all of it counts from here on
        self.at = after


class Journal:
    """Reads a log while it is written, and removes what is read. For who is not its writer."""

    def __init__(self, base: str, process: int) -> None:
        self.base, self.process = base, process
        self.number, self.offset = 0, _RECORD.size
        self.path = f"{base}.0"

    def state(self) -> tuple[int, int, int, int]:
        """What the process says of itself: in which turn it has paused last; 1 if it works, 2 without rest; whether it
        was told not to rest; how much it has done, in units of its job."""
        with open(f"{self.base}.0", "rb") as file:
            return struct.unpack("<4q", file.read(32))

    def hurry(self, on: bool) -> None:
        """Tells the process not to rest any more, or to rest again."""
        with open(f"{self.base}.0", "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), bytes([on]), 16)

    def read(self, dead: int = 0) -> list[Op]:
        """The operations since the last call; `dead`: the process is no more, since then at the latest."""
        found: list[Op] = []
        while True:
            path = f"{self.base}.{self.number}"
            if not os.path.exists(path):  # it died before its first record
                break
            following = os.path.exists(f"{self.base}.{self.number + 1}")
            with open(path, "rb") as file:
                file.seek(self.offset)
                data = file.read()
            self.offset += self._take(data, found, dead)
            if not following:
                break
            if self.number:
                os.unlink(path)
            self.number += 1
            self.offset = 0
        if dead:
            for name in (f"{self.base}.0", f"{self.base}.{self.number}", f"{self.base}.new"):
                if os.path.exists(name):
                    os.unlink(name)
        return found

    def _take(self, data: bytes, found: list[Op], dead: int) -> int:
        rows: list[tuple[int, ...]] = []
        taken = 0
        op: tuple[int, ...] | None = None
        process = self.process
        for record in _RECORD.iter_unpack(data):
            begin, end, kind = record[:3]
            if kind == CONTENT and begin:
                rows.append(record[3:])
                taken += 1
                continue
            if op is not None:
                found.append(Op(op[0], op[1], True, *op[2:], process, tuple(rows)))
                op = None
                rows = []
            if not begin:
                break
            if not end:
                if dead:
                    found.append(Op(begin, dead, False, *record[2:], process))
                    taken += 1
                break
            op = record
            taken += 1
        if op is not None:
            found.append(Op(op[0], op[1], True, *op[2:], process, tuple(rows)))
        return taken * _RECORD.size


# ---- what a checker says --------------------------------------------------------------------------------------------


class HistoryError(AssertionError):
    """No order of the operations explains what they returned."""


def told(ops: Iterable[Any], limit: int = 14) -> str:
    """Operations, one a line."""
    lines = [f"  {op}" for op in ops]
    return "\n".join([*lines[:limit], *([f"  ... and {len(lines) - limit} more"] if len(lines) > limit else [])])


# ---- counters -------------------------------------------------------------------------------------------------------

# a: which counter. ADD and RESERVE: b is the amount, d the value before; GET: d; EXCHANGE: b, d before;
# EXCHANGE_IF (compare_exchange): b expected, c desired, d whether it was set, e the value before. POP: d before. A name
# that is not there has the value ABSENT: who adds makes it first, with 0, which is a step of its own.
ADD, GET, RESERVE, EXCHANGE, EXCHANGE_IF, POP = range(1, 7)
_NAMES = {ADD: "add", GET: "get", RESERVE: "reserve", EXCHANGE: "exchange", EXCHANGE_IF: "compare_exchange", POP: "pop"}
ABSENT = -(1 << 62)


def named(op: Op) -> str:
    """An operation of a counter in words."""
    name = f"{op.begin}..{op.end} process {op.process} {_NAMES[op.kind]}"
    if op.kind == EXCHANGE_IF:
        return f"{name}({op.b}, {op.c}) -> {(bool(op.d), op.e) if op.known else 'unknown'}"
    found: Any = "absent" if op.d == ABSENT else op.d
    return f"{name}({'' if op.kind in (GET, POP) else op.b}) -> {found if op.known else 'unknown'}"


def step(op: Op, value: int) -> int | None:
    """The value after `op` has happened to `value`; None if it cannot have returned what it did."""
    kind = op.kind
    if kind == EXCHANGE_IF:
        if op.known and (op.e != value or op.d != (value == op.b)):
            return None
        return op.c if value == op.b else value
    if kind in (GET, POP):
        if op.known and op.d != value:
            return None
        return value if kind == GET else ABSENT
    value = 0 if value == ABSENT else value
    if op.known and op.d != value:
        return None
    return op.b if kind == EXCHANGE else value + op.b


def check_counters(ops: Iterable[Op], start: dict[int, int], end: dict[int, int]) -> Counts:
    """All counters. `start`: the values (0 if left out) before everything; `end`: after everything, of all of them."""
    parts: defaultdict[int, list[Op]] = defaultdict(list)
    for op in ops:
        parts[op.a].append(op)
    counts = Counts()
    for key in sorted(parts.keys() | start.keys() | end.keys()):
        part = parts[key]
        part.append(Op(NEVER, NEVER, True, GET, key, d=end.get(key, start.get(key, 0))))
        first = start.get(key, 0)
        if first != ABSENT and all(op.kind == GET or (op.kind in (ADD, RESERVE) and op.b > 0) for op in part):
            check_adds(part, first)
        else:
            check_register(part, first)
        counts.ops += len(part) - 1
        counts.unknown += sum(not op.known for op in part)
    return counts


class Counts:
    """How much was checked."""

    def __init__(self) -> None:
        self.ops = self.unknown = 0


def check_register(ops: list[Op], start: int) -> None:
    """Any operations of one counter."""
    events = sorted([(op.begin, 0, n) for n, op in enumerate(ops)] + [(op.end, 1, n) for n, op in enumerate(ops)])
    opened: set[int] = set()
    states: set[tuple[int, frozenset[int]]] = {(start, frozenset())}  # the value, which of the open ones have happened
    for _, ends, n in events:
        if not ends:
            opened.add(n)
            continue
        op = ops[n]
        after: set[tuple[int, frozenset[int]]] = set()
        seen: set[tuple[int, frozenset[int]]] = set()
        todo = list(states)
        while todo:
            state = todo.pop()
            if state in seen:
                continue
            seen.add(state)
            value, happened = state
            if n in happened:
                after.add((value, happened - {n}))
                continue
            if not op.known:
                after.add(state)  # it never happened, or has only made the name
            for other in opened:
                if other not in happened:
                    if value == ABSENT and ops[other].kind in (ADD, RESERVE, EXCHANGE):
                        todo.append((0, happened))  # the name is made first, and others may see it so
                    then = step(ops[other], value)
                    if then is not None:
                        todo.append((then, happened | {other}))
        if not after:
            late = sorted(opened, key=lambda m: ops[m].begin)
            before = [m for _, ended, m in events[: events.index((op.end, 1, n))] if ended][-6:]
            raise HistoryError(
                f"counter {op.a}: nothing explains\n  {named(op)}\nThe values may have been "
                f"{sorted({value for value, _ in states})[:20]}; before it ended\n"
                + told(named(ops[m]) for m in before)
                + "\nand open were\n"
                + told(named(ops[m]) for m in late)
            )
        states = after
        opened.discard(n)


def check_adds(ops: list[Op], start: int) -> None:
    """Positive additions, reservations and reads of one counter: what they returned says where they stand."""
    known = sorted((op.d, op.kind != GET, op.begin, n) for n, op in enumerate(ops) if op.known)
    unknown = [op for op in ops if not op.known and op.kind != GET]
    order: list[Op] = []
    gaps: list[tuple[int, int]] = []  # where in the order, how much is missing
    at = start
    for value, adds, _, n in known:
        if value < at:
            raise HistoryError(
                f"counter {ops[n].a}: the value was {at} already, and an addition is lost, or counted twice:\n"
                f"  {named(ops[n])}\nafter\n" + told(map(named, order[-8:]))
            )
        if value > at:
            gaps.append((len(order), value - at))
            at = value
        order.append(ops[n])
        if adds:
            at += ops[n].b
    late = _late(order)
    if late is not None:
        raise HistoryError(f"counter {late[1].a}: returned before the other began, and saw a later value:\n"
                           f"  {named(late[1])}\n  {named(late[0])}")  # fmt: skip
    if not _fits(order, gaps, unknown):
        raise HistoryError(
            f"counter {ops[0].a}: additions that nobody made: "
            f"{[(gap, named(order[where])) for where, gap in gaps][:8]}; unknown are\n" + told(map(named, unknown))
        )


def _fits(order: list[Op], gaps: list[tuple[int, int]], unknown: list[Op]) -> bool:
    """Whether unknown operations may be what is missing in an order: (before which of it, how much, by their b)."""
    highest = [0, *accumulate((op.begin for op in order), max)]
    lowest = [*accumulate((op.end for op in reversed(order)), min, initial=NEVER * 2)][::-1]
    return not gaps or any(_late(_merged(order, filled)) is None for filled in _filled(gaps, unknown, highest, lowest))


def _merged(order: list[Op], filled: dict[int, list[Op]]) -> Iterator[Op]:
    for where, op in enumerate(order):
        yield from filled.get(where, ())
        yield op


def _late(order: Iterable[Op]) -> tuple[Op, Op] | None:
    """Two of which the first, in this order, began after the second had ended."""
    newest: Op | None = None
    for op in order:
        if newest is not None and op.end < newest.begin:
            return newest, op
        if newest is None or op.begin > newest.begin:
            newest = op
    return None


def _filled(
    gaps: list[tuple[int, int]], unknown: list[Op], highest: list[int], lowest: list[int]
) -> Iterator[dict[int, list[Op]]]:
    """All ways to fill gaps with unknown additions that were open at the right time. Those left over never happened."""
    if not gaps:
        yield {}
        return
    (where, missing), rest = gaps[0], gaps[1:]
    fits = [
        n for n, op in enumerate(unknown)
        if op.b <= missing and op.end >= highest[where] and op.begin <= lowest[where]
    ]  # fmt: skip
    for chosen in _sums(fits, unknown, missing):
        left = [op for n, op in enumerate(unknown) if n not in chosen]
        for others in _filled(rest, left, highest, lowest):
            yield {where: sorted((unknown[n] for n in chosen), key=lambda op: op.begin), **others}


def _sums(numbers: list[int], unknown: list[Op], missing: int) -> Iterator[frozenset[int]]:
    if missing == 0:
        yield frozenset()
    for k, n in enumerate(numbers):
        if unknown[n].b <= missing:
            for others in _sums(numbers[k + 1 :], unknown, missing - unknown[n].b):
                yield others | {n}


# ---- versions -------------------------------------------------------------------------------------------------------

# WRITE: a is the value's token, d the version (0: unknown), or REFUSED: nothing changed. READ: d the version (0: not
# known), a the token (0: not looked at), e is 0 if the value was whole. WAIT: b is `newer_than`, d the version or 0.
WRITE, READ, WAIT = range(11, 14)
REFUSED = -1
TORN = -1


def check_versions(ops: list[Op], start: tuple[int, int], end: tuple[int, int]) -> Counts:
    """A value that is published in versions, one writer at a time.

    `start`, `end`: (version, token) before and after.
    """
    writes = [op for op in ops if op.kind == WRITE and op.d != REFUSED]
    tokens: dict[int, int] = {start[0]: start[1]}  # version: token
    versions: dict[int, int] = {start[1]: start[0]}
    counts = Counts()
    counts.ops = len(ops)

    def same(version: int, token: int, op: Op) -> None:
        if tokens.setdefault(version, token) != token:
            raise HistoryError(f"version {version} is two values, {tokens[version]:x} and {token:x}:\n  {op}")
        if versions.setdefault(token, version) != version:
            raise HistoryError(f"the value {token:x} is two versions, {versions[token]} and {version}:\n  {op}")

    for op in writes:
        if op.known:
            if op.d <= start[0]:
                raise HistoryError(
                    f"a write that returned made version {op.d}, and {start[0]} was there before:\n  {op}"
                )
            if op.d in tokens:
                raise HistoryError(f"two writes made version {op.d}:\n  {op}")
            same(op.d, op.a, op)
    unknown = {op.a: op for op in writes if not op.known}
    for op in [*ops, Op(NEVER, NEVER, True, READ, end[1], d=end[0])]:
        if op.kind == READ and op.known:
            if op.e:
                raise HistoryError(f"torn: the value of a read is not whole:\n  {op}")
            if op.d and op.a:
                if op.d not in tokens and op.a not in unknown:
                    raise HistoryError(f"version {op.d} is a value that nobody wrote, {op.a:x}:\n  {op}")
                same(op.d, op.a, op)
            elif op.a and op.a not in versions and op.a not in unknown:
                raise HistoryError(f"a value that nobody wrote, {op.a:x}:\n  {op}")
    # In the order of versions, writes first.
    order: list[tuple[int, int, int, Op]] = []
    for op in ops:
        if op.kind == WRITE:
            if op.d != REFUSED and (version := op.d if op.known else versions.get(op.a, 0)):
                order.append((version, 0, op.begin, op))
        elif op.known:
            version = op.d or versions.get(op.a, 0)
            if version:
                order.append((version, 1, op.begin, op))
                if op.kind == WAIT and version <= op.b:
                    raise HistoryError(f"wait() for a version newer than {op.b} gave {version}:\n  {op}")
    order.append((end[0], 1, NEVER, Op(NEVER, NEVER, True, READ, end[1], d=end[0])))
    order.sort(key=lambda found: found[:3])
    if order[0][0] < start[0]:
        raise HistoryError(f"version {order[0][0]}, and {start[0]} was there before:\n  {order[0][3]}")
    if order[-1][0] > end[0]:
        raise HistoryError(f"a version newer than the last one, {end[0]}:\n  {order[-1][3]}")
    late = _late(found[3] for found in order)
    if late is not None:
        raise HistoryError(
            f"the first began after the second had returned, and is of an older version:\n  {late[0]}\n  {late[1]}"
        )
    made = end[0] - start[0]
    sure = sum(op.known for op in writes)
    if not sure <= made <= sure + len(unknown):
        raise HistoryError(
            f"{made} versions from {start[0]} to {end[0]}; {sure} writes returned, and {len(unknown)} are unknown:\n"
            + told(unknown.values())
        )
    placed = {version for version, kind, _, _ in order if kind == 0}
    begun = [version for version, _, _, _ in order]
    missing = Counter(bisect_left(begun, v) for v in range(start[0] + 1, end[0] + 1) if v not in placed)
    unseen = [op._replace(b=1) for token, op in unknown.items() if token not in versions]
    if not _fits([found[3] for found in order], sorted(missing.items()), unseen):
        raise HistoryError(
            f"versions that nobody wrote: {sorted((order[at][0], count) for at, count in missing.items())}, each "
            f"before this one; unknown are\n{told(unseen)}"
        )
    _check_waits([op for op in ops if op.kind == WAIT and op.known and not op.d], order)
    counts.unknown = len(unknown)
    return counts


def _check_waits(empty: list[Op], order: list[tuple[int, int, int, Op]]) -> None:
    """Who waited in vain: no newer version was there when he began."""
    ends = sorted((op.end, version) for version, kind, _, op in order if kind == 0 and op.known)
    newest = [*accumulate((version for _, version in ends), max)]
    times = [end for end, _ in ends]
    for op in empty:
        at = bisect_right(times, op.begin - 1)
        if at and newest[at - 1] > op.b:
            raise HistoryError(f"wait() in vain, and version {newest[at - 1]} was there before it began:\n  {op}")


def check_map(ops: list[Op], start: tuple[int, int], end: tuple[int, int]) -> Counts:
    """A map whose key `n` counts commits (a and d), and whose versions (b of a READ) count compactions as well.

    `start`, `end`: (version, n) before and after.
    """
    ops = [op for op in ops if op.kind in (WRITE, READ, WAIT)]
    known = {op.d for op in ops if op.kind == WRITE and op.known}
    unknown: dict[int, Op] = {}  # by n: several may have wanted to be it, one after the other, and one was at most
    for op in ops:
        if op.kind == WRITE and not op.known and op.a and op.a not in known:
            other = unknown.get(op.a, op)
            unknown[op.a] = op._replace(begin=min(op.begin, other.begin), end=max(op.end, other.end))
    commits = [op for op in ops if op.kind == READ or (op.kind == WRITE and op.known)]
    counts = check_versions([*commits, *unknown.values()], (start[1], start[1]), (end[1], end[1]))
    counts.ops, counts.unknown = len(ops), sum(not op.known for op in ops)
    order = [(op.b, op.begin, op) for op in ops if op.kind == READ and op.known and op.b]
    order += [(op.d, op.begin, op) for op in ops if op.kind == WAIT and op.known and op.d]
    order.append((end[0], NEVER, Op(NEVER, NEVER, True, READ, end[1], end[0], d=end[1])))
    order.sort(key=lambda found: found[:2])
    version, n = start
    for seen, _, op in order:
        if seen < version:
            raise HistoryError(f"version {seen}, and {version} was there before:\n  {op}")
        if op.kind == READ:
            if op.d < n or (seen == version and op.d != n):
                raise HistoryError(f"version {seen} is of commit {op.d}, and version {version} of {n}:\n  {op}")
            version, n = seen, op.d
        elif seen <= op.b:
            raise HistoryError(f"wait() for a version newer than {op.b} gave {seen}:\n  {op}")
    late = _late(op for _, _, op in order)
    if late is not None:
        raise HistoryError(
            f"the first began after the second had returned, and is of an older version:\n  {late[0]}\n  {late[1]}"
        )
    return counts


def ranked(ops: list[Op], start: int, end: int) -> tuple[list[Op], tuple[int, int], tuple[int, int]]:
    """For values whose versions are no sequence, written by one process at a time: versions by the order of writing.

    `start`, `end`: the tokens before and after. A write that is unknown and was never seen did not happen.
    """
    seen = {op.a for op in ops if op.kind == READ and op.known} | {end}
    writes = sorted((op for op in ops if op.kind == WRITE), key=lambda op: op.begin)
    writes = [op for op in writes if op.known or op.a in seen]
    number = {start: 1} | {op.a: n for n, op in enumerate(writes, 2)}
    fine = [op._replace(d=number[op.a]) if op.known else op for op in writes]
    fine += [op._replace(d=number.get(op.a, 0)) for op in ops if op.kind == READ and op.known]
    if end not in number:
        raise HistoryError(f"the last value is one that nobody wrote, {end:x}")
    return fine, (1, start), (len(writes) + 1 if writes else 1, end)
