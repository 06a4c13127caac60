"""Changes over a base that stays as it is: a transaction, and a map in mode ``private``.

An overlay holds, for each key that was changed, the encoded value and when it expires, or None for a key that is
gone. Lookups ask it first (native); walks merge it with the base. Its order is made when somebody walks, and kept
from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from sortedcontainers import SortedList

from mmapds._native.snapcursor import ITEMS, KEYS, VALUES
from mmapds._native.snaplayer import STR_KEYS, State
from mmapds._snapview import Key, MapView

Change: TypeAlias = "tuple[bytes, int] | None"

if TYPE_CHECKING:
    _Mutable: TypeAlias = MutableMapping[Any, Any]
else:
    _Mutable = MutableMapping

_MISSING = object()
_TOGETHER = 64  # keys that a walk looks ahead
SLOTS = ("_changes", "_gained", "_order")  # of those who derive from Covered, whose bases have some too


class Covered(MapView, _Mutable):
    """A base, and changes over it. Not for several threads that change it at the same time.

    A walk goes over each key as it is when the walk comes to it: keys that are added ahead of it are met too.
    """

    __slots__ = ()

    _changes: dict[Any, Change]
    _order: SortedList | None
    _gained: int | None  # entries more than in the base; None: to be counted

    def _uncover(self, counted: bool) -> None:
        """No changes. `counted`: `len` is wanted, and what it takes is kept up to date."""
        self._changes = {}
        self._order = None
        self._gained = 0 if counted else None
        self._cover(self._changes, counted)

    # ---- changing -------------------------------------------------------------------------------------------------

    def _change(self, key: Any, change: Change) -> None:
        """Of a key of the right kind."""
        changes = self._changes
        if self._gained is not None:
            before = changes.get(key, _MISSING)
            was = before is not None if before is not _MISSING else self._stored(key)
            self._gained += (change is not None) - was
        if self._order is not None and key not in changes:
            self._order.add(key if isinstance(key, bytes) else key.encode())
        changes[key] = change

    def __setitem__(self, key: Key, value: Any) -> None:
        self._check_changeable()
        self._set(key, value)

    def set(self, key: Key, value: Any, ttl: float | None = None) -> None:
        """Sets a value that expires after `ttl` seconds, on a clock that a changed wall clock does not move; None:
        never.
        """
        self._check_changeable()
        expires = 0
        if ttl is not None:
            if not 0 < ttl < 1e9:
                raise ValueError(f"ttl is {ttl!r}: a number of seconds above 0, and below 10**9 (None: never)")
            expires = self._state.now + max(1, int(ttl * 1e9))
        self._set(key, value, expires)

    def __delitem__(self, key: Key) -> None:
        self._check_changeable()
        if key not in self:
            raise KeyError(key)
        self._change(key, None)

    def update(self, other: Any = (), /, **more: Any) -> None:
        """As for a dict."""
        if type(other) is dict and not more:  # the usual case, and faster
            self._check_changeable()
            self._set_many(other)
        else:
            super().update(other, **more)

    def clear(self) -> None:
        """Deletes all entries, one by one."""
        self._check_changeable()
        for key in list(self):
            self._change(key, None)

    def _check_changeable(self) -> None:
        pass

    # ---- walking --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        entries = self._state.entries
        if self._gained is None:
            self._gained = sum((change is not None) - self._stored(key) for key, change in self._changes.items())
            self._count()
        return entries + self._gained

    def _walk(
        self, kind: int, start: bytes | None = None, stop: bytes | None = None, *, backward: bool = False
    ) -> Iterator[Any]:
        state = self._state
        if not self._changes:
            return self._walk_state(state, kind, start, stop, backward)
        return self._merged(state, kind, start, stop, backward)

    def _merged(
        self, state: State, kind: int, start: bytes | None, stop: bytes | None, backward: bool
    ) -> Iterator[Any]:
        """Each key once, as it is when the walk comes to it."""
        text = self._kind == STR_KEYS
        base = self._walk_state(state, KEYS if kind == KEYS else ITEMS, start, stop, backward)
        changed = self._changed(start, stop, backward)
        raw = next(changed, None)
        for found in base:
            key = found if kind == KEYS else found[0]
            here = key.encode() if text else key
            while raw is not None and (raw > here if backward else raw < here):
                yield from self._one(raw, kind, text, state)
                raw = next(changed, None)
            if raw == here:
                raw = next(changed, None)
            if key in self._changes:
                yield from self._one(here, kind, text, state)
            else:
                yield found[1] if kind == VALUES else found
        while raw is not None:
            yield from self._one(raw, kind, text, state)
            raw = next(changed, None)

    def _changed(self, start: bytes | None, stop: bytes | None, backward: bool) -> Iterator[bytes]:
        """The keys that were changed, in order; some at a time, because more may be changed meanwhile."""
        inclusive = (True, False)
        while True:
            self._check_changeable()
            order = self._ordered()
            some = list(islice(order.irange(start, stop, inclusive, backward), _TOGETHER))
            if not some:
                return
            size = len(order)
            for raw in some:
                yield raw
                if backward:
                    stop = raw
                else:
                    start, inclusive = raw, (False, False)
                if len(order) != size or self._order is not order:
                    break

    def _ordered(self) -> SortedList:
        order = self._order
        if order is None:
            order = SortedList(key if isinstance(key, bytes) else key.encode() for key in self._changes)
            self._order = order
            self._count()
        return order

    def _one(self, raw: bytes, kind: int, text: bool, state: State) -> Iterator[Any]:
        key = raw.decode() if text else raw
        change = self._changes.get(key)
        if change is not None and (not change[1] or change[1] > state.now):
            if kind == KEYS:
                yield key
            else:
                value = self._decoder(change[0])
                yield value if kind == VALUES else (key, value)
