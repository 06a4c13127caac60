"""The checkers of histories, checked: what they must accept, and what they must not.

Right histories, made from a sequential description with random interleaving, deaths and unknown outcomes, are accepted;
wrong ones, each with the fault that its name says, are not; and on small histories with random results the searches
agree with a search through all orders. What real processes do is checked in ``test_histories.py``.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import histories as h
import pytest
import queuehistory as qh
from histories import HistoryError, Op
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peers import Peer

MANY = settings(max_examples=150, deadline=None)

# ---- right histories ------------------------------------------------------------------------------------------------


class Timeline:
    """Steps in the order in which they happen, each by a process; then the times at which each may have been seen.

    A step happens at its moment. Its operation begins before and returns after it, at random, but between the steps
    before and after it of the same process.
    """

    def __init__(self, choose: random.Random) -> None:
        self.choose = choose
        self.steps: list[tuple[int, Op | None, bool]] = []  # process, its operation or None (its death), known
        self.killed: dict[int, int] = {}
        self.born: dict[int, int] = {}  # who takes the place of a dead one

    def add(self, process: int, op: Op, known: bool = True) -> None:
        self.steps.append((process, op, known))

    def die(self, process: int, heir: int | None = None) -> None:
        self.steps.append((process, None, True))
        if heir is not None:
            self.born[heir] = 1000 * len(self.steps) + 500

    def ops(self) -> list[Op]:
        """The history, as it was recorded."""
        choose, found = self.choose, []
        nexts: dict[int, int] = {}  # of each process: when its next step happens
        begins: dict[int, int] = {}  # the latest end of the step before
        for at in reversed(range(len(self.steps))):
            begins[at] = nexts.get(self.steps[at][0], 1000 * (len(self.steps) + 2))
            nexts[self.steps[at][0]] = 1000 * (at + 1)
        free = dict(self.born)
        for at, (process, op, known) in enumerate(self.steps):
            moment, following = 1000 * (at + 1), begins[at]
            if op is None:
                self.killed[process] = moment - choose.randrange(400)
                continue
            begin = choose.randrange(free.get(process, 0), moment)
            cut = choose.randrange(moment + 1, following)
            free[process] = cut
            end = choose.randrange(moment, cut) if known else following + choose.randrange(400)
            found.append(op._replace(begin=begin, end=end, known=known, process=process))
        choose.shuffle(found)
        return found


def op(kind: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0, content: Any = ()) -> Op:
    return Op(0, 0, True, kind, a, b, c, d, e, content=tuple(content))


SIZES = {"seed": st.integers(0, 1 << 32), "steps": st.integers(1, 60), "processes": st.integers(1, 5)}


def right_counters(
    seed: int, steps: int, processes: int, mixed: bool
) -> tuple[list[Op], dict[int, int], dict[int, int]]:
    choose = random.Random(seed)
    line, names = Timeline(choose), list(range(processes))
    start = {0: choose.randrange(10), 1: choose.choice((h.ABSENT, 4)) if mixed else 4}
    values = dict(start)
    for _ in range(steps):
        who, key = choose.randrange(processes), choose.randrange(2)
        more = (h.POP, h.POP) if key else (h.EXCHANGE, h.EXCHANGE_IF)
        kind = choose.choice((h.ADD, h.GET, h.RESERVE, *(more * mixed)))
        amount = choose.randrange(-3 if mixed else 1, 4) if choose.random() < 0.7 else choose.randrange(1, 1000)
        before = values[key]
        if kind == h.EXCHANGE_IF:
            expected = choose.choice((before, before, choose.randrange(5)))
            made = op(kind, key, expected, amount, expected == before, before)
        else:
            made = op(kind, key, amount, d=0 if before == h.ABSENT and kind in (h.ADD, h.RESERVE) else before)
        known, happens = choose.random() < 0.85, choose.random() < 0.5
        if known or happens:
            values[key] = h.step(made, before)  # type: ignore[assignment]
        line.add(names[who], made if known else made._replace(d=0, e=0), known)
        if not known:
            for _ in range(choose.randrange(3)):
                line.add(99 + choose.randrange(2), op(h.GET, key, d=values[key]))
            line.die(names[who], heir := 100 + len(line.steps))
            names[who] = heir
    return line.ops(), start, values


@MANY
@given(**SIZES, mixed=st.booleans())
def test_right_histories_of_counters_are_accepted(seed: int, steps: int, processes: int, mixed: bool) -> None:
    ops, start, end = right_counters(seed, steps, processes, mixed)
    assert h.check_counters(ops, start, end).ops == len(ops)


def right_versions(seed: int, steps: int, processes: int) -> tuple[list[Op], tuple[int, int], tuple[int, int]]:
    choose = random.Random(seed)
    line, writer, n = Timeline(choose), 10, 0
    version, token = start = (choose.randrange(1, 9), 1)
    for _ in range(steps):
        what = choose.random()
        if what < 0.4:
            n += 1
            mine = writer << 24 | n
            known = choose.random() < 0.8
            if known or choose.random() < 0.5:
                version, token = version + 1, mine
            line.add(writer, op(h.WRITE, mine, d=version if known else 0), known)
            if not known:
                for _ in range(choose.randrange(3)):
                    line.add(choose.randrange(processes), op(h.READ, token, d=version))
                line.die(writer, writer + 1)
                writer, n = writer + 1, 0
        elif what < 0.6:
            older = choose.randrange(version + 1)
            line.add(choose.randrange(processes), op(h.WAIT, b=older, d=version if older < version else 0))
        else:
            line.add(choose.randrange(processes), op(h.READ, token, d=version * (what < 0.9)))
    return line.ops(), start, (version, token)


@MANY
@given(**SIZES)
def test_right_histories_of_versions_are_accepted(seed: int, steps: int, processes: int) -> None:
    ops, start, end = right_versions(seed, steps, processes)
    assert h.check_versions(ops, start, end).ops == len(ops)
    bare = [o._replace(d=0) for o in ops if o.kind != h.WAIT]
    h.check_versions(*h.ranked(bare, start[1], end[1]))


def right_map(seed: int, steps: int, processes: int) -> tuple[list[Op], tuple[int, int], tuple[int, int]]:
    choose = random.Random(seed)
    line, writer = Timeline(choose), 10
    version, n = start = (choose.randrange(1, 9), choose.randrange(1, 9))
    for _ in range(steps):
        what = choose.random()
        if what < 0.4:
            known = choose.random() < 0.7
            wanted = n + 1
            if known or choose.random() < 0.5:
                version, n = version + 1, n + 1
            line.add(writer, op(h.WRITE, wanted, d=n if known else 0), known)
            if not known:
                line.die(writer, writer + 1)
                writer += 1
        elif what < 0.5:
            version += 1  # compacted
        elif what < 0.6:
            older = choose.randrange(version + 1)
            line.add(choose.randrange(processes), op(h.WAIT, b=older, d=version if older < version else 0))
        else:
            line.add(choose.randrange(processes), op(h.READ, n, version * (what < 0.8), d=n))
    return line.ops(), start, (version, n)


@MANY
@given(**SIZES)
def test_right_histories_of_a_map_are_accepted(seed: int, steps: int, processes: int) -> None:
    ops, start, end = right_map(seed, steps, processes)
    h.check_map(ops, start, end)


class Model:
    """A queue as its description says, step by step."""

    def __init__(self, choose: random.Random, processes: int) -> None:
        self.choose, self.line = choose, Timeline(choose)
        self.waiting: list[tuple[int, int]] = []  # places of items, in order
        self.names: dict[int, tuple[int, int]] = {}  # place: item
        self.attempts: dict[int, int] = {}
        self.held: dict[int, list[int]] = {}
        self.lost = 0
        self.place = 0
        self.people = list(range(processes))
        self.put_by: dict[int, int] = {}
        self.next = processes

    def release(self, place: int) -> None:
        self.waiting = sorted([*self.waiting, (place, 0)])

    def take(self, count: int) -> list[int]:
        found, self.waiting = self.waiting[:count], self.waiting[count:]
        return [place for place, _ in found]

    def step(self) -> None:
        choose, line = self.choose, self.line
        k = choose.randrange(len(self.people))
        who = self.people[k]
        mine = self.held.setdefault(who, [])
        known, happens = choose.random() < 0.9, choose.random() < 0.5
        what = choose.random()
        if mine and what < 0.5:
            place = mine.pop(choose.randrange(len(mine)))
            nack = choose.random() < 0.3
            line.add(who, op(qh.NACK if nack else qh.ACK, *self.names[place], self.attempts[place], int(known)), known)
            if not known and not (happens and not nack):
                mine.append(place)
            elif nack:
                self.release(place)
        elif what < 0.75:
            count, first = choose.randrange(1, 4), self.put_by.get(who, 0) + 1
            done = count if known else choose.randrange(count + 1)
            line.add(who, op(qh.PUT, who, first, count, count if known else 0), known)
            self.put_by[who] = first + count - 1
            for n in range(done):
                self.place += 1
                self.names[self.place] = who, first + n
                self.attempts[self.place] = 0
                self.release(self.place)
        else:
            count = choose.randrange(1, 4)
            found = self.take(count) if known or happens else []
            claims = choose.random() < 0.6
            if claims:
                for place in found:
                    self.attempts[place] += 1
                mine += found
                rows = [(*self.names[place], self.attempts[place], 1, place) for place in found]
            else:
                rows = [(*self.names[place], 0, 0, 0) for place in found]
                self.lost += 0 if known else len(found)
            line.add(who, op(qh.CLAIM if claims else qh.TAKE, count, content=rows if known else ()), known)
        if not known or choose.random() < 0.03:
            line.die(who, self.next)
            for place in mine:
                self.release(place)
            del self.held[who]
            self.people[k], self.next = self.next, self.next + 1

    def settle(self) -> None:
        """Who holds something acknowledges it."""
        for who in self.people:
            for place in self.held.pop(who, []):
                self.line.add(who, op(qh.ACK, *self.names[place], self.attempts[place], 1))

    def checked(self) -> tuple[list[Op], list[tuple[int, int]], dict[int, int]]:
        return self.line.ops(), [self.names[place] for place, _ in self.waiting], self.line.killed


@MANY
@given(**SIZES)
@example(seed=0, steps=2000, processes=8)
def test_right_histories_of_a_queue_are_accepted(seed: int, steps: int, processes: int) -> None:
    """In two windows."""
    model = Model(random.Random(seed), processes)
    for _ in range(steps):
        model.step()
    model.settle()
    checker = qh.QueueChecker()
    checker.window(*whole(model), final=False)
    moved = 1000 * (len(model.line.steps) + 10)
    model.line = Timeline(model.choose)
    for _ in range(steps):
        model.step()
    model.settle()
    ops, waiting, killed = whole(model)[0], whole(model)[1], {}
    ops = [o._replace(begin=o.begin + moved, end=o.end + moved) for o in ops]
    killed = {process: when + moved for process, when in model.line.killed.items()}
    checker.window(ops, waiting, 0, killed, True)
    assert checker.lost <= model.lost


def whole(model: Model) -> tuple[list[Op], list[tuple[int, int]], int, dict[int, int]]:
    ops, waiting, killed = model.checked()
    return ops, waiting, 0, killed


# ---- against a search through all orders ----------------------------------------------------------------------------


def linearizable(ops: list[Op], start: Any, step: Callable[[Op, Any], Any]) -> bool:
    """Whether any order of all known and of some unknown operations is right: tries all."""
    sure = [o for o in ops if o.known]
    maybe = [o for o in ops if not o.known]
    for count in range(len(maybe) + 1):
        for some in itertools.combinations(maybe, count):
            for order in itertools.permutations([*sure, *some]):
                if any(b.end < a.begin for a, b in itertools.combinations(order, 2)):
                    continue
                value = start
                for o in order:
                    value = step(o, value)
                    if value is None:
                        break
                else:
                    return True
    return False


def accepted(check: Callable[[], object]) -> bool:
    try:
        check()
    except HistoryError:
        return False
    return True


def random_times(choose: random.Random, ops: list[Op]) -> list[Op]:
    stamps = choose.sample(range(1, 1000), 2 * len(ops))
    return [
        o._replace(begin=min(pair), end=max(pair))
        for o, pair in zip(ops, zip(*[iter(stamps)] * 2, strict=True), strict=True)
    ]


@pytest.mark.parametrize("mixed", [False, True])
def test_counters_agree_with_a_search_through_all_orders(mixed: bool) -> None:
    right = wrong = 0
    for seed in range(1500):
        choose = random.Random(seed)
        kinds = (h.ADD, h.GET, h.EXCHANGE, h.EXCHANGE_IF) if mixed else (h.ADD, h.ADD, h.GET)
        ops = []
        for _ in range(choose.randrange(2, 6)):
            kind, amount, value = choose.choice(kinds), choose.randrange(1, 3), choose.randrange(5)
            if kind == h.EXCHANGE_IF:
                ops.append(op(kind, 0, choose.randrange(3), amount, choose.randrange(2), choose.randrange(3)))
            else:
                ops.append(op(kind, 0, amount, d=value))
            if choose.random() < 0.25:
                ops[-1] = ops[-1]._replace(known=False)
        ops = random_times(choose, ops)
        if choose.random() < 0.8:  # results of some order, mostly, one of them changed
            value = 0
            ops.sort(key=lambda o: choose.uniform(o.begin, o.end))
            for at, o in enumerate(ops):
                ops[at] = o._replace(d=value == o.b, e=value) if o.kind == h.EXCHANGE_IF else o._replace(d=value)
                value = h.step(ops[at], value)  # type: ignore[assignment]
            if choose.random() < 0.5:
                at = choose.randrange(len(ops))
                ops[at] = ops[at]._replace(d=max(0, ops[at].d + choose.choice((-1, 1))))
        possible = linearizable(ops, 0, h.step)
        found = accepted(lambda ops=ops: h.check_register(list(ops), 0))
        assert found == possible, f"seed {seed}: {possible}\n{h.told(map(h.named, ops))}"
        if not mixed:
            found = accepted(lambda ops=ops: h.check_adds(list(ops), 0))
            assert found == possible, (
                f"seed {seed}, by what additions returned: {possible}\n{h.told(map(h.named, ops))}"
            )
        right, wrong = right + possible, wrong + (not possible)
    assert min(right, wrong) > 300, (right, wrong)


def test_versions_agree_with_a_search_through_all_orders() -> None:
    def step(o: Op, value: tuple[int, int]) -> tuple[int, int] | None:
        version, token = value
        if o.kind == h.WRITE:
            return (version + 1, o.a) if not o.known or o.d == version + 1 else None
        return value if (o.d, o.a) == (version, token) else None

    right = wrong = 0
    for seed in range(2500):
        choose = random.Random(seed)
        kinds = [choose.choice((h.WRITE, h.READ)) for _ in range(choose.randrange(2, 6))]
        ops = random_times(choose, [op(kind) for kind in kinds])
        value = (1, 7)
        ops.sort(key=lambda o: choose.uniform(o.begin, o.end))
        for at, o in enumerate(ops):
            if o.kind == h.WRITE:
                known = choose.random() < 0.75
                if known or choose.random() < 0.5:
                    value = value[0] + 1, 100 + at
                ops[at] = o._replace(a=100 + at, d=value[0] if known else 0, known=known)
            else:
                ops[at] = o._replace(a=value[1], d=value[0])
        if choose.random() < 0.6:
            a, b = choose.randrange(len(ops)), choose.randrange(len(ops))
            ops[a] = ops[a]._replace(begin=ops[b].begin, end=ops[b].end)
            ops[b] = ops[b]._replace(begin=(other := random_times(choose, [op(0)])[0]).begin, end=other.end)
        last = Op(h.NEVER, h.NEVER, True, h.READ, value[1], d=value[0])
        possible = linearizable([*ops, last], (1, 7), step)
        found = accepted(lambda ops=ops, value=value: h.check_versions(ops, (1, 7), value))
        assert found == possible, f"seed {seed}: {possible}, {value}\n{h.told(ops)}"
        right, wrong = right + possible, wrong + (not possible)
    assert min(right, wrong) > 300, (right, wrong)


# ---- wrong histories ------------------------------------------------------------------------------------------------


def one_by_one(*ops: Op | tuple[Op, int] | tuple[Op, int, int]) -> list[Op]:
    """Each from 10 n to 10 n + 5, n counted from 1, or from 10 a to 10 b."""
    found = []
    for n, given_op in enumerate(ops, 1):
        made, *times = given_op if type(given_op) is tuple else (given_op,)
        begin, end = (10 * times[0], 10 * times[1]) if len(times) == 2 else (10 * n, 10 * n + 5)
        found.append(made._replace(begin=begin, end=end, process=n))
    return found


def unknown(made: Op) -> Op:
    return made._replace(known=False, d=0, e=0)


def added(n: int, before: int) -> Op:
    return op(h.ADD, 0, n, d=before)


WRONG_COUNTERS = {
    "a lost update": ([added(1, 0), (added(1, 0), 1, 3)], 2, "an addition is lost|nothing explains"),
    "an addition that nobody made": ([added(1, 0), added(1, 2)], 3, "nobody made|nothing explains"),
    "a stale read": ([added(5, 0), op(h.GET, d=0)], 5, "already|saw a later value|nothing explains"),
    "a read of the future": ([op(h.GET, d=5), added(5, 0)], 5, "saw a later value|nothing explains"),
    "a last value that is too small": ([added(5, 0)], 4, "already|nothing explains"),
    "a last value that is too large": ([added(5, 0)], 6, "nobody made|nothing explains"),
    "an unknown addition that happened twice": ([unknown(added(5, 0)), op(h.GET, d=5)], 10, "nobody made|nothing"),
    "an unknown addition of another amount": ([unknown(added(5, 0))], 4, "nobody made|nothing explains"),
    "an unknown addition after its process was dead": (
        [(unknown(added(5, 0)), 1, 2), (op(h.GET, d=0), 3, 4)], 5, "nobody made|nothing explains"),
    "numbers reserved twice": ([op(h.RESERVE, 0, 5, d=0), op(h.RESERVE, 0, 5, d=3)], 8, "already|nothing explains"),
    "two exchanges that both succeed": (
        [(op(h.EXCHANGE_IF, 0, 0, 1, 1, 0), 1, 3), (op(h.EXCHANGE_IF, 0, 0, 2, 1, 0), 2, 4)], 2, "nothing explains"),
    "an exchange that fails although the value was there": ([op(h.EXCHANGE_IF, 0, 0, 1, 0, 0)], 0, "nothing explains"),
    "an addition lost to a removal": ([added(5, 0), op(h.POP, d=5), added(1, 0), op(h.POP, d=0)], h.ABSENT, "nothing"),
    "a name popped twice": ([added(5, 0), (op(h.POP, d=5), 2, 4), (op(h.POP, d=5), 3, 5)], h.ABSENT, "nothing"),
    "a name that is there after its removal": ([added(5, 0), op(h.POP, d=5), op(h.GET, d=5)], h.ABSENT, "nothing"),
    "an exchange that is forgotten": ([op(h.EXCHANGE, 0, 7, d=0), op(h.EXCHANGE, 0, 8, d=0)], 8, "nothing explains"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_COUNTERS)
def test_wrong_histories_of_counters_are_refused(what: str) -> None:
    ops, end, message = WRONG_COUNTERS[what]
    with pytest.raises(HistoryError, match=message):
        h.check_counters(one_by_one(*ops), {0: 0}, {0: end})
    with pytest.raises(HistoryError, match="nothing explains"):
        h.check_register([*one_by_one(*ops), Op(h.NEVER, h.NEVER, True, h.GET, d=end)], 0)


def test_a_name_is_made_before_it_is_added_to() -> None:
    """Others may see it with 0, also when its maker was killed in between."""
    made = [unknown(added(5, 0)), op(h.GET, d=0), op(h.GET, d=0)]
    h.check_counters(one_by_one(*made), {0: h.ABSENT}, {0: 0})
    h.check_counters(one_by_one((added(5, 0), 1, 9), (op(h.GET, d=0), 2, 3)), {0: h.ABSENT}, {0: 5})
    h.check_counters(one_by_one((added(5, 2), 1, 9), (added(2, 0), 2, 3)), {0: h.ABSENT}, {0: 7})
    with pytest.raises(HistoryError):
        h.check_counters(one_by_one(added(5, 0), op(h.GET, d=0)), {0: h.ABSENT}, {0: 5})


def wrote(token: int, version: int) -> Op:
    return op(h.WRITE, token, d=version)


def saw(token: int, version: int, torn: int = 0) -> Op:
    return op(h.READ, token, d=version, e=torn)


WRONG_VERSIONS = {
    "a torn value": ([wrote(8, 2), saw(-1, 2, 1)], (2, 8), "torn"),
    "a stale read": ([wrote(8, 2), saw(7, 1)], (2, 8), "older version"),
    "a version that goes back": ([(wrote(8, 2), 1, 9), (saw(8, 2), 2, 3), (saw(7, 1), 4, 5)], (2, 8), "older version"),
    "the future": ([saw(8, 2), wrote(8, 2)], (2, 8), "older version"),
    "a write that is lost": ([wrote(8, 2)], (1, 7), "newer than the last"),
    "a lost write and a reader who did not see it": ([wrote(8, 2), wrote(9, 2)], (2, 9), "two writes made|two values"),
    "a version that nobody wrote": ([wrote(8, 2), saw(9, 3)], (3, 9), "nobody wrote"),
    "a value under two versions": ([wrote(8, 2), wrote(9, 3), saw(8, 3)], (3, 9), "two values"),
    "an unknown value under two versions": ([unknown(wrote(8, 0)), saw(8, 2), saw(8, 3)], (3, 8), "two versions"),
    "a version with two values": ([wrote(8, 2), unknown(wrote(9, 0)), saw(9, 2)], (2, 8), "two values"),
    "an unknown write seen after its process was dead, and not before": (
        [(unknown(wrote(8, 0)), 1, 2), (saw(7, 1), 3, 4), (saw(8, 2), 5, 6)], (2, 8), "older version"),
    "more versions than writes": ([wrote(8, 3)], (3, 8), "2 versions from 1 to 3"),
    "a wait for what was there": ([wrote(8, 2), op(h.WAIT, b=1)], (2, 8), "in vain"),
    "a wait that gives what was known": ([wrote(8, 2), op(h.WAIT, b=2, d=2)], (2, 8), "newer than 2 gave 2"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_VERSIONS)
def test_wrong_histories_of_versions_are_refused(what: str) -> None:
    ops, end, message = WRONG_VERSIONS[what]
    with pytest.raises(HistoryError, match=message):
        h.check_versions(one_by_one(*ops), (1, 7), end)


def test_wrong_histories_without_versions_are_refused() -> None:
    for ops, end, message in (
        ([wrote(8, 0), saw(7, 0)], 8, "older version"),
        ([wrote(8, 0), wrote(9, 0), saw(8, 0)], 9, "older version"),
        ([wrote(8, 0), saw(9, 0)], 8, "nobody wrote"),
        ([wrote(8, 0)], 9, "nobody wrote"),
        ([wrote(8, 0)], 7, "two values"),
        ([saw(-1, 0, 1)], 7, "torn"),
    ):
        with pytest.raises(HistoryError, match=message):
            h.check_versions(*h.ranked(one_by_one(*ops), 7, end))


WRONG_MAPS = {
    "two keys of two versions": ([wrote(2, 2), op(h.READ, 2, 3, d=2, e=1)], (3, 2), "torn"),
    "a commit that is lost": ([wrote(2, 2)], (2, 1), "newer than the last"),
    "a commit number given twice": ([wrote(2, 2), wrote(2, 2)], (3, 2), "two writes"),
    "a stale snapshot": ([wrote(2, 2), op(h.READ, 1, 2, d=1)], (3, 2), "older version"),
    "a later version with an older commit": (
        [(wrote(2, 2), 1, 9), (op(h.READ, 2, 3, d=2), 2, 8), (op(h.READ, 1, 4, d=1), 2, 8)], (5, 2), "is of commit 1"),
    "a version with two contents": (
        [(wrote(2, 2), 1, 9), (op(h.READ, 1, 3, d=1), 2, 8), (op(h.READ, 2, 3, d=2), 2, 8)], (5, 2), "is of commit 2"),
    "compaction that goes back": ([op(h.READ, 1, 4, d=1), op(h.READ, 1, 3, d=1)], (5, 1), "older version"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_MAPS)
def test_wrong_histories_of_a_map_are_refused(what: str) -> None:
    ops, end, message = WRONG_MAPS[what]
    with pytest.raises(HistoryError, match=message):
        h.check_map(one_by_one(*ops), (2, 1), end)


def put(first: int, count: int = 1, done: int | None = None) -> Op:
    return op(qh.PUT, 1, first, count, count if done is None else done)


def took(*numbers: int) -> Op:
    return op(qh.TAKE, len(numbers), content=[(1, n, 0, 0, 0) for n in numbers])


def claimed(n: int, attempts: int = 1, number: int | None = None, lease: bool = False) -> Op:
    return op(qh.CLAIM, 1, lease, content=[(1, n, attempts, 1, number or n)])


def acked(n: int, attempts: int = 1, done: int = 1) -> Op:
    return op(qh.ACK, 1, n, attempts, done)


def nacked(n: int, attempts: int = 1, delayed: int = 0) -> Op:
    return op(qh.NACK, 1, n, attempts, 1, delayed)


WRONG_QUEUES = {
    "an item that is lost": ([put(1), put(2), took(1)], [], "neither done nor there"),
    "one of a batch that is lost": ([put(1, 3), took(1), took(3)], [], "neither done nor there|was there, put before"),
    "delivered twice by get": ([put(1), took(1), took(1)], [], "twice by get"),
    "got, and still there": ([put(1), took(1)], [1], "done, and in the queue"),
    "there twice": ([put(1)], [1, 1], "in the queue twice"),
    "an ack that is duplicated": ([put(1), claimed(1), acked(1), (acked(1), 8, 9)], [], "acknowledged twice"),
    "claimed after the ack": ([put(1), claimed(1), acked(1), claimed(1, 2)], [], "after the delivery that was ack"),
    "got after the ack": ([put(1), claimed(1), acked(1), took(1)], [], "acknowledged, and delivered by get"),
    "acknowledged, and still there": ([put(1), claimed(1), acked(1)], [1], "done, and in the queue"),
    "two who have it": ([put(1), claimed(1), claimed(1, 2), acked(1, 2)], [], "while somebody else had it"),
    "there while somebody has it": ([put(1), claimed(1)], [1], "while somebody has it"),
    "reordered": ([put(1), put(2), took(2), took(1)], [], "was there, put before it"),
    "reordered within a batch": ([put(1, 2), took(2), took(1)], [], "was there, put before it"),
    "reordered, and the first still there": ([put(1), put(2), took(2)], [1], "was there, put before it"),
    "returned, and passed over": (
        [put(1), put(2), claimed(1), nacked(1), took(2), took(1)], [], "was there, put before it"),
    "in the wrong order in the queue": ([put(1), put(2)], [2, 1], "in front of it|is behind"),
    "a batch in the wrong order": ([put(1, 2)], [2, 1], "is behind"),
    "a delivery that is counted twice": ([put(1), claimed(1, 2), acked(1, 2)], [], "nobody noted"),
    "a delivery that is not counted": (
        [put(1), claimed(1), nacked(1), claimed(1, 1), acked(1, 1)], [], "after delivery"),
    "an id that changes": ([put(1), claimed(1), nacked(1), claimed(1, 2, 9), acked(1, 2)], [], "its id was"),
    "an id that two have": ([put(1), put(2), claimed(1), claimed(2, 1, 1), acked(1), acked(2)], [], "has the id of"),
    "an item that nobody put": ([put(1), took(1), took(7)], [], "nobody has put"),
    "an item that there was no room for": ([put(1, 3, 1), took(1), took(2)], [], "nobody has put"),
    "claimed and forgotten": ([put(1), claimed(1)], [], "neither acknowledged nor returned"),
    "an item before its put": ([took(1), put(1)], [], "before its put began"),
    "a claim that is lost for no reason": ([put(1), claimed(1), acked(1, 1, 0)], [1], "no lease"),
    "more lost than died with who got them": (
        [put(1, 3), (unknown(op(qh.TAKE, 1)), 2, 3)], [], "neither done nor there"),
}  # fmt: skip


def as_told(ops: list[Any]) -> list[Op]:
    """One by one; who acknowledges or returns is who claimed."""
    found = one_by_one(*ops)
    owners: dict[tuple[int, int], int] = {}
    for at, o in enumerate(found):
        for row in o.content:
            owners[row[1], row[2]] = o.process
        if o.kind in (qh.ACK, qh.NACK):
            found[at] = o._replace(process=owners[o.b, o.c])
    return found


@pytest.mark.parametrize("what", WRONG_QUEUES)
def test_wrong_histories_of_a_queue_are_refused(what: str) -> None:
    ops, waiting, message = WRONG_QUEUES[what]
    with pytest.raises(HistoryError, match=message):
        qh.QueueChecker().window(as_told(ops), [(1, n) for n in waiting], final=True)


RIGHT_QUEUES = {
    "a claim whose process was killed comes back": (
        [put(1), put(2), claimed(1), took(2), claimed(1, 2), acked(1, 2)], [], {3: 35}),
    "an item in the hands of one who was killed": ([put(1), (unknown(op(qh.TAKE, 1)), 2, 3)], [], {}),
    "a claim that died before it was noted": (
        [put(1), put(2), (unknown(op(qh.CLAIM, 1)), 3, 4), (took(2), 5, 6), (claimed(1, 2), 7, 8), acked(1, 2)],
        [], {}),
    "an unknown ack that happened": ([put(1), claimed(1), unknown(acked(1))], [], {2: 36}),
    "an unknown ack that did not": ([put(1), claimed(1), unknown(acked(1)), claimed(1, 2), acked(1, 2)], [], {2: 36}),
    "an unknown put that happened": ([unknown(put(1, 3)), took(1), took(2)], [], {}),
    "an unknown put that did not": ([unknown(put(1, 3))], [], {}),
    "an unknown put seen later": ([unknown(put(1)), put(2), took(2), took(1)], [], {}),
    "a lease that ended": ([put(1), claimed(1, lease=True), claimed(1, 2), acked(1, 1, 0), acked(1, 2)], [], {}),
    "a delay": ([put(1), put(2), claimed(1), nacked(1, 1, 1), took(2), took(1)], [], {}),
    "puts at the same time": ([(put(1), 1, 3), (op(qh.PUT, 2, 1, 1, 1), 2, 4)], None, {}),
}  # fmt: skip


@pytest.mark.parametrize("what", RIGHT_QUEUES)
def test_right_histories_of_a_queue_with_unknown_outcomes_are_accepted(what: str) -> None:
    ops, waiting, killed = RIGHT_QUEUES[what]
    there = [(2, 1), (1, 1)] if waiting is None else [(1, n) for n in waiting]
    qh.QueueChecker().window(as_told(ops), there, killed=killed, final=True)
    if waiting is None:
        qh.QueueChecker().window(as_told(ops), there[::-1], killed=killed, final=True)


# ---- the recorder ---------------------------------------------------------------------------------------------------


def test_a_log_outlives_its_process_and_has_the_last_operation_as_unknown(tmp_path: Path) -> None:
    base = str(tmp_path / "log")
    code = """
import histories
log = histories.Log(base, 4)
for n in range(7):
    log.begin(histories.ADD, n, 10, room=1)
    log.end(n, content=[(n, 1)] if n % 3 == 0 else ())
log.begin(histories.GET, 7)
"""
    with Peer() as peer:
        peer(code, base=base)
        journal = h.Journal(base, 5)
        ops = journal.read()
        assert [(o.known, o.a, o.b, o.d, o.content) for o in ops] == [
            (True, n, 10, n, ((n, 1, 0, 0, 0),) if n % 3 == 0 else ()) for n in range(7)
        ]
        assert all(o.begin <= o.end and o.process == 5 for o in ops)
        assert all(a.end <= b.begin for a, b in itertools.pairwise(ops))
        assert journal.read() == []
        peer("log.end(42)")
        assert [(o.known, o.a, o.d) for o in journal.read()] == [(True, 7, 42)]
        peer("log.begin(histories.ADD, 8)")
        peer.signal(signal.SIGKILL)
        peer.process.wait()
    dead = h.clock()
    assert [(o.known, o.a, o.end) for o in journal.read(dead)] == [(False, 8, dead)]
    assert os.listdir(tmp_path) == []
