"""Queue against a plain list: whatever several handles, and processes that are killed, do in whatever order.

An `Item` of the model knows its place (own places are numbers of puts; the back is behind all of them so far), who
holds it, and between which two times its delay or lease ends: the clock goes on while a call runs, so of an item that
comes due meanwhile either answer is right. Each take must return an item that may be due, and leave none before it that
is due for certain.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

import pytest
import queuefiles
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from peers import Peer
from queuemodel import LIFE, NEVER, Handle, Item, Model, now

from mmapds import Claim, Empty, Full, Queue, StaleClaim

SEGMENT = 8192
sizes = st.sampled_from([0, 1, 40, 300, 300, 1500, 5000, 20_000])
delays = st.sampled_from([0, 0, 0, 0.0005, 0.003, 1000])
which = st.integers(0, 7)
ENDS = ["ack", "ack", "nack", "back", "bury", "touch", "short", "long", "interrupt", "fail"]


class QueueModel(Model):
    @initialize(maxsize=st.sampled_from([0, 0, 0, 12]), attempts=st.sampled_from([0, 0, 1, 3]), packed=st.booleans())
    def make(self, maxsize: int, attempts: int, packed: bool) -> None:
        self.maxsize, self.attempts = maxsize, attempts
        Queue(
            self.path, maxsize, max_attempts=attempts, segment_size=SEGMENT, compress="zlib:1:1000" if packed else None
        ).close()
        self.open()
        self.open()
        self.put_many(0, [40] * 11, 0)

    # ---- handles ----------------------------------------------------------------------------------------------------

    @rule(which=which, what=st.sampled_from(["open", "open", "close", "close", "reopen", "reboot"]))
    def come_and_go(self, which: int, what: str) -> None:
        if what == "open" and len(self.handles) < 4:
            self.open()
        elif what == "close" and len(self.handles) > 1:
            self.end(self.pick(which))
        elif what in ("reopen", "reboot"):
            for handle in list(self.handles):
                self.end(handle)
            if what == "reboot":
                self.reboot()
            self.open()

    def reboot(self) -> None:
        """As if the machine had been started anew: all is told by the segments."""
        queuefiles.check(self.path)
        for folder in (self.path, os.path.join(self.path, "dead")):
            if os.path.exists(folder):
                queuefiles.other_boot(folder)
        for item in self.items:
            item.lost = False
            if item.place[1] == 0:  # of those that were sent to one back, each is where it was put
                item.place = (item.place[0], 0, item.order - (1 << 40))
            if item.due[1]:
                item.due = (item.due[0] - 0.01, item.due[1] + 0.01)  # kept by another clock

    @rule(which=which, puts=st.lists(sizes, max_size=2), gets=st.integers(0, 2), claims=st.integers(0, 3))
    def killed(self, which: int, puts: list[int], gets: int, claims: int) -> None:
        """A process comes, works, and is killed."""
        mine = [] if self.maxsize else [self.add(self.new(self.puts, size)) for size in puts]
        payloads = [item.payload() for item in mine]
        time.sleep(0.002)  # handles look for the dead once in a millisecond
        before = now()
        got, held = type(self).peer(
            "life(path, puts, gets, claims)", path=self.path, puts=payloads, gets=gets, claims=claims
        )
        after = now()
        handle = self.pick(which)
        for value in got:
            self.items.remove(self.take(value, before, after, handle))
        lost = []
        for value, id_, attempts in filter(None, held):
            item = self.take(value, before, after, handle)
            item.attempts += 1
            item.due = (NEVER, NEVER)  # until all that it did is told
            assert attempts == item.attempts, self.say(f"{value}: attempt {attempts}")
            self.known(item, id_)
            lost.append(item)
        if None in held:
            self.none(before, after, handle)
        for item in lost:
            item.lost, item.due = True, (0, 0)
        time.sleep(0.002)

    # ---- putting ----------------------------------------------------------------------------------------------------

    def room(self) -> tuple[int, int]:
        """How many items may be put at least, and at most."""
        if not self.maxsize:
            return 1 << 30, 1 << 30
        waiting = sum(not item.held and not item.lost for item in self.items)
        doubtful = len(self.doubtful())
        return max(0, self.maxsize - waiting - doubtful), max(0, self.maxsize - waiting)

    @rule(which=which, size=sizes, delay=delays)
    def put(self, which: int, size: int, delay: float) -> None:
        item = self.new(self.puts, size)
        least, most = self.room()
        before = now()
        try:
            self.pick(which).real.put(item.payload(), block=False, delay=delay)
        except Full:
            assert least == 0, self.say("Full")
            return
        assert most > 0, self.say("not Full")
        item.due = (before + delay, now() + delay) if delay else (0, 0)
        self.add(item)

    @rule(which=which, many=st.lists(sizes, min_size=2, max_size=20), delay=delays)
    def put_many(self, which: int, many: list[int], delay: float) -> None:
        items = [self.new(self.puts + n, size) for n, size in enumerate(many)]
        least, most = self.room()
        before = now()
        done = len(items)
        try:
            self.pick(which).real.put_many([item.payload() for item in items], block=False, delay=delay)
        except Full as error:
            done = error.args[0]
        after = now()
        assert min(least, len(items)) <= done <= most, self.say(f"{done} of {len(items)} were put")
        for item in items[:done]:
            item.place = (self.puts, 1, 0)
            item.due = (before + delay, after + delay) if delay else (0, 0)
            self.add(item)

    # ---- taking -----------------------------------------------------------------------------------------------------

    @rule(which=which)
    def get(self, which: int) -> None:
        handle = self.pick(which)
        before = now()
        try:
            payload = handle.real.get_nowait()
        except Empty:
            self.none(before, now(), handle)
            return
        item = self.take(payload[0], before, now(), handle)
        self.checked(payload, item)
        self.items.remove(item)

    @rule(which=which, n=st.sampled_from([2, 3, 5, 20]))
    def get_many(self, which: int, n: int) -> None:
        handle = self.pick(which)
        before = now()
        try:
            payloads = handle.real.get_many(n, block=False)
        except Empty:
            payloads = []
        after = now()
        for payload in payloads:
            item = self.take(payload[0], before, after, handle)
            self.checked(payload, item)
            self.items.remove(item)
        if len(payloads) < n:
            self.none(before, after, handle)

    @rule(which=which, n=st.sampled_from([1, 1, 2, 3, 12]), lease=st.sampled_from([None, None, 0.001, 1000]))
    def claim(self, which: int, n: int, lease: float | None) -> None:
        """Some."""
        self.claim_some(which, n, lease)

    @rule(which=which, n=st.integers(3, 15), lease=st.sampled_from([None, 1000, 2000]))
    def claim_many(self, which: int, n: int, lease: float | None) -> None:
        """Many."""
        self.claim_some(which, n, lease)

    def claim_some(self, which: int, n: int, lease: float | None) -> None:
        handle = self.pick(which)
        before = now()
        try:
            claims = handle.real.claim_many(n, timeout=0, lease=lease)
        except Empty:
            claims = []
        after = now()
        until = (NEVER * 2, NEVER * 2) if lease is None else (before + lease, after + lease)
        taken: dict[int, Item] = {}
        for claim in claims:
            value = claim.item[0]
            if value in taken:  # its lease was so short that it came again
                assert lease == 0.001, self.say(f"{value} twice")
                taken[value].lease = (before, before)
            item = self.take(value, before, after, handle)
            self.checked(claim.item, item)
            self.hold(item, claim, handle, until)
            taken[value] = item
        if len(claims) < n:
            self.none(before, after, handle)

    @rule(which=which, end=st.sampled_from(ENDS), delay=delays)
    def end_a_claim(self, which: int, end: str, delay: float) -> None:
        every = [(handle, pair) for handle in self.handles for pair in handle.claims]
        if not every:  # no precondition: the clock has a say in it, and hypothesis' choices must not depend on that
            return
        handle, (claim, item) = every[which % len(every)]
        del every
        self.end_claim(handle, claim, item, end, delay)

    @rule(end=st.sampled_from(ENDS), delay=delays, seed=st.integers(0, 5), share=st.sampled_from([0.5, 1]))
    def end_many_claims(self, end: str, delay: float, seed: int, share: float) -> None:
        """Heaps and lists are changed in their middle."""
        handle = max(self.handles, key=lambda handle: len(handle.claims))
        pairs = handle.claims.copy()
        rng = random.Random(seed)
        rng.shuffle(pairs)
        for claim, item in pairs[: round(len(pairs) * share)]:
            self.end_claim(handle, claim, item, end, delay and delay + rng.random() * delay)
        del pairs
        queuefiles.check(self.path)

    def end_claim(self, handle: Handle, claim: Claim, item: Item, end: str, delay: float) -> None:
        mine = item.claim is claim and item in self.items
        before = now()
        alive = claim.active
        try:
            if end == "ack":
                claim.ack()
            elif end == "nack":
                claim.nack(delay, error="nacked")
            elif end == "back":
                claim.nack(delay, to_back=True)
            elif end == "bury":
                claim.bury("buried")
            elif end == "touch":
                claim.touch()
            elif end in ("short", "long"):
                claim.touch(0.001 if end == "short" else 1000 + 1000 * random.random())
            elif end == "fail":
                with pytest.raises(ZeroDivisionError), claim:
                    raise ZeroDivisionError
        except StaleClaim:
            after = now()
            handle.claims.remove((claim, item))
            if mine:
                assert item.lease[0] <= after, self.say(f"the claim of {item.value} was lost")
                item.free()
            return
        after = now()
        if end in ("touch", "short", "long"):
            assert mine, self.say(f"the claim of {item.value} was not lost")
            item.lease = (before + 0.001, after + 0.001) if end == "short" else (NEVER * 2, NEVER * 2)
            return
        handle.claims.remove((claim, item))
        if end == "interrupt":
            claim.__exit__(KeyboardInterrupt, None, None)
            if mine:
                item.free()
            return
        if end == "fail" and not mine:
            return  # lost meanwhile; the block's own error counts
        if end == "fail" and item.lease[0] <= after:
            item.free()  # it may have been lost, and comes back either way, or is dead
            if any(letter.item[0] == item.value for letter in handle.real.dead):
                self.bury(item)
            return
        assert mine, self.say(f"the claim of {item.value} was not lost")
        assert alive, self.say(f"the claim of {item.value} was ended before")
        if end == "ack":
            self.items.remove(item)
        elif end == "bury" or (end in ("nack", "back", "fail") and self.tired(item)):
            self.bury(item)
        else:
            item.free()
            if end == "back":
                self.backs += 1
                item.place = (self.puts, 0, self.backs)
            if end in ("nack", "back") and delay:
                item.due = (before + delay, after + delay)

    # ---- the rest ---------------------------------------------------------------------------------------------------

    @rule(which=which)
    def purge(self, which: int) -> None:
        soon = now() + 100  # leases that may end while it runs
        if len(self.items) < 15 or any(item.lost or (item.held and item.lease[0] < soon) for item in self.items):
            return
        waiting = [item for item in self.items if not item.held]
        assert self.pick(which).real.purge() == len(waiting), self.say("purge")
        for item in waiting:
            self.items.remove(item)

    @rule(which=which, number=st.integers(0, 9), every=st.booleans())
    def requeue(self, which: int, number: int, every: bool) -> None:
        if not self.dead or self.room()[0] < len(self.dead):
            return
        letters = list(self.dead) if every else [self.dead[number % len(self.dead)]]
        name = None if every else letters[0].id
        if name is None and not every:
            return
        assert self.pick(which).real.dead.requeue(name) == len(letters), self.say("requeue")
        for letter in letters:
            self.dead.remove(letter)
            self.add(self.new(letter.value, letter.size))
            del self.ids[str(letter.id)]

    @rule(which=which)
    def purge_the_dead(self, which: int) -> None:
        if len(self.dead) < 3:
            return
        assert self.pick(which).real.dead.purge() == len(self.dead)
        self.dead.clear()

    @rule(which=which, mode=st.sampled_from(["shared", "readonly", "private"]), backwards=st.booleans())
    def look(self, which: int, mode: Any, backwards: bool) -> None:
        doubtful = {item.value for item in self.doubtful()}
        known = {item.value: item for item in self.items if not item.held and not item.lost}
        with Queue(self.path, mode=mode) as q:
            found = list(reversed(q))[::-1] if backwards else list(q)
            if mode == "private" and not doubtful:
                self.drain(q, [payload[0] for payload in found])
        places = []
        every = {item.value: item for item in self.items}
        for payload in found:
            assert payload[0] in known or payload[0] in doubtful, self.say(f"{payload[0]} is shown")
            self.checked(payload, every[payload[0]])
            places.append(every[payload[0]].place)
        assert places == sorted(places), self.say(f"shown are {[payload[0] for payload in found]}")
        assert set(known) - {payload[0] for payload in found} <= doubtful, self.say("some are not shown")

    def drain(self, q: Queue, found: list[int]) -> None:
        """What a private copy gives is what it shows, but for what is not due and what failed too often."""
        due = [i for i in self.items if not i.held and i.due[1] <= now() and not self.tired(i)]
        try:
            got = [payload[0] for payload in q.get_many(100, block=False)]
        except Empty:
            got = []
        certain = [item.value for item in sorted(due, key=lambda item: item.place)]
        assert [value for value in got if value in certain] == certain, self.say(f"a private copy gave {got}")
        assert set(got) <= set(found), self.say(f"a private copy gave {got}")

    @rule()
    def pause(self) -> None:
        time.sleep(0.004)
        queuefiles.check(self.path)

    @invariant()
    def counts(self) -> None:
        if not self.handles:
            return
        doubtful = self.doubtful()
        least = sum(not item.held and not item.lost for item in self.items)
        for handle in self.handles:
            assert least <= len(handle.real) <= least + len(doubtful), self.say(f"qsize {len(handle.real)}")

    @invariant()
    def letters(self) -> None:
        if self.handles and (self.dead or self.gone % 8 == 0):
            found = [(letter.item[0], letter.attempts) for letter in self.handles[-1].real.dead]
            assert found == [(item.value, item.attempts) for item in self.dead], self.say(f"dead letters: {found}")
            for letter in self.handles[-1].real.dead:
                [item] = [item for item in self.dead if item.value == letter.item[0]]
                self.known(item, letter.id)
        self.gone += 1


@pytest.fixture(autouse=True)
def peer() -> Any:
    with Peer(LIFE) as peer:
        QueueModel.peer = peer
        yield


TestQueueModel = QueueModel.TestCase
TestQueueModel.settings = settings(
    max_examples=90, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
class TestQueueModelLonger(QueueModel.TestCase):  # type: ignore[misc]
    settings = settings(
        max_examples=2000, stateful_step_count=120, deadline=None, suppress_health_check=list(HealthCheck)
    )
