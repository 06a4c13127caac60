"""The plain list that Queue is compared with, and what its state machine knows of each item (test_queue_model.py)."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import queuefiles
from hypothesis.stateful import RuleBasedStateMachine
from peers import Peer

from mmapds import Claim, Queue

NEVER = 1e9  # seconds

LIFE = """
import ast

def life(path, puts, gets, claims):
    # A process opens the queue, works, and is killed: what it got, and what it held.
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            q, got, held = mmapds.Queue(path), [], []
            q.put_many(puts)
            try:
                for _ in range(gets):
                    got.append(q.get_nowait()[0])
                for _ in range(claims):
                    held.append(q.claim(timeout=0))
            except mmapds.Empty:
                held.append(None)
            answer = repr((got, [claim and (claim.item[0], claim.id, claim.attempts) for claim in held]))
        except BaseException as error:
            answer = repr(repr(error))
        os.write(write, answer.encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return ast.literal_eval(answer)
"""


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(eq=False)
class Item:
    value: int
    size: int
    place: tuple[int, int, int]  # puts before it; 0 at the back, 1 in its own place; which of those at the back
    order: int = 0  # of its put
    due: tuple[float, float] = (0, 0)
    claim: Claim | None = None
    holder: Handle | None = None
    lease: tuple[float, float] = (NEVER * 2, NEVER * 2)
    attempts: int = 0
    id: str | None = None
    lost: bool = False  # its holder was killed, and nobody has looked yet

    @property
    def held(self) -> bool:
        return self.claim is not None

    def free(self) -> None:
        self.claim = self.holder = None
        self.lease = (NEVER * 2, NEVER * 2)

    def payload(self) -> list[Any]:
        return [self.value, b"x" * self.size]


@dataclass(eq=False)
class Handle:
    real: Queue
    claims: list[tuple[Claim, Item]] = field(default_factory=list)  # also those that were lost


class Model(RuleBasedStateMachine):
    peer: Peer
    attempts: int

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="mmapds-")
        self.path = os.path.join(self.folder, "queue")
        self.handles: list[Handle] = []
        self.items: list[Item] = []  # all that wait or are held
        self.dead: list[Item] = []
        self.ids: dict[str, int] = {}
        self.puts = self.backs = self.gone = 0

    def teardown(self) -> None:
        try:
            for handle in list(self.handles):
                self.end(handle)
            if os.path.exists(queuefiles.meta(self.path)):
                queuefiles.check(self.path)
        finally:
            shutil.rmtree(self.folder)

    def open(self) -> None:
        self.handles.append(Handle(Queue(self.path)))

    def end(self, handle: Handle) -> None:
        handle.real.close()
        self.handles.remove(handle)
        for item in self.items:
            if item.holder is handle:
                item.free()

    # ---- the model --------------------------------------------------------------------------------------------------

    def pick(self, which: int) -> Handle:
        return self.handles[which % len(self.handles)]

    def add(self, item: Item) -> Item:
        self.items.append(item)
        item.order = self.puts
        self.puts += 1
        return item

    def new(self, value: int, size: int) -> Item:
        return Item(value, size, (self.puts, 1, 0))

    def say(self, message: str) -> str:
        """For messages; said at once too, as a failure that the clock has a part in may not come again."""
        lines = [
            f"{item.value} at {item.place} due {item.due} {'held' if item.held else ''} lease {item.lease} attempts "
            f"{item.attempts} {'lost' if item.lost else ''}"
            for item in sorted(self.items, key=lambda item: item.place)
        ]
        text = "\n".join([message, *lines, queuefiles.state(self.path)])
        print(text)
        return text

    def looked(self, before: float) -> None:
        """Somebody has looked for what is due at some time after `before`."""
        for item in self.items:
            item.lost = False
            if item.held and item.lease[1] <= before:
                item.free()

    def tired(self, item: Item) -> bool:
        return bool(self.attempts) and item.attempts >= self.attempts

    def bury(self, item: Item) -> None:
        item.free()
        self.items.remove(item)
        self.dead.append(item)

    def take(self, value: int, before: float, after: float, handle: Handle) -> Item:
        """A take between these times has returned this value."""
        self.looked(before)
        [item] = [item for item in self.items if item.value == value] or [None]
        assert item is not None, self.say(f"{value} should not be there")
        times = item.lease if item.held else item.due
        assert times[0] <= after, self.say(f"{value} was not due by {after}")
        assert not self.tired(item), self.say(f"{value} was delivered {item.attempts} times before")
        self.passed(item.place, before, after, handle, f"got {value}")
        item.free()
        item.due = (0, 0)
        return item

    def none(self, before: float, after: float, handle: Handle) -> None:
        """A take between these times has found nothing."""
        self.looked(before)
        self.passed((1 << 60, 0, 0), before, after, handle, "got nothing")

    def passed(self, place: tuple[int, int, int], before: float, after: float, handle: Handle, what: str) -> None:
        """Who took from this place has found nothing before it; what had failed too often went to the dead letters."""
        dead: set[int] | None = None
        for item in sorted(self.items, key=lambda item: item.place):
            times = item.lease if item.held else item.due
            if item.place >= place or times[0] > after:
                continue
            if self.tired(item):
                dead = {letter.item[0] for letter in handle.real.dead} if dead is None else dead
                if item.value in dead:
                    self.bury(item)
                    continue
            assert times[1] > before, self.say(f"{what}, and {item.value} was due by {before}")

    def hold(self, item: Item, claim: Claim, handle: Handle, lease: tuple[float, float]) -> None:
        item.claim, item.holder, item.lease = claim, handle, lease
        item.attempts += 1
        assert claim.attempts == item.attempts, self.say(f"{item.value}: attempt {claim.attempts}")
        self.known(item, claim.id)
        handle.claims.append((claim, item))

    def known(self, item: Item, id_: str) -> None:
        item.id = item.id or id_
        assert item.id == id_, self.say(f"{item.value} was {item.id} and is {id_}")
        assert self.ids.setdefault(id_, item.value) == item.value, self.say(f"{id_} is two items")

    def checked(self, payload: Any, item: Item) -> None:
        assert payload == item.payload(), self.say(f"{item.value}: other bytes than were put")

    def doubtful(self) -> list[Item]:
        """What may be held or wait, for all we know."""
        moment = now()
        return [item for item in self.items if item.lost or (item.held and item.lease[0] <= moment)]
