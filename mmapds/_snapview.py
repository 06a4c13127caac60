"""Reading a snapshot map as an ordered Mapping: what a version, a handle that follows, and a private one have in
common.

Lookups are native (``_native/snapmap.pyx``). Here is what walks: everything lazy, in the order of the keys' bytes,
over the one version that was the newest when the walk began.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeAlias

import msgpack

from mmapds import codecs
from mmapds._native.atomic import own_methods
from mmapds._native.snapcursor import ITEMS, KEYS, VALUES, Entries, Values
from mmapds._native.snaplayer import BYTES_KEYS, STR_KEYS, State
from mmapds._native.snapmap import MapCore
from mmapds.errors import CorruptionError

Key: TypeAlias = str | bytes

KINDS = {0: None, STR_KEYS: "str", BYTES_KEYS: "bytes"}

if TYPE_CHECKING:
    _Mapping: TypeAlias = Mapping[Any, Any]
else:
    _Mapping = Mapping


def successor(prefix: bytes) -> bytes | None:
    """The first key behind all that begin with `prefix`; None if there is none."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else None


class Keys(KeysView[Any]):
    """Lazy, ordered."""

    _mapping: MapView

    def __iter__(self) -> Iterator[Any]:
        return self._mapping._walk(KEYS)

    def __reversed__(self) -> Iterator[Any]:
        return self._mapping._walk(KEYS, backward=True)


class Pairs(ItemsView[Any, Any]):
    """Lazy, ordered."""

    _mapping: MapView

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping._walk(ITEMS)

    def __reversed__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping._walk(ITEMS, backward=True)


class OrderedValues(ValuesView[Any]):
    """Lazy, in the order of the keys."""

    _mapping: MapView

    def __iter__(self) -> Iterator[Any]:
        return self._mapping._walk(VALUES)

    def __reversed__(self) -> Iterator[Any]:
        return self._mapping._walk(VALUES, backward=True)

    def __contains__(self, value: object) -> bool:
        return any(found == value for found in self)


class MapView(MapCore, _Mapping):
    """What can be read. Abstract: `_advance` brings a state."""

    __slots__ = ("_decoder", "codec", "path")

    codec: codecs.ResolvedCodec
    path: str
    _decoder: Values

    if TYPE_CHECKING:  # native

        def __getitem__(self, key: Any, /) -> Any: ...

    # ---- walking --------------------------------------------------------------------------------------------------

    def _walk(
        self, kind: int, start: bytes | None = None, stop: bytes | None = None, *, backward: bool = False
    ) -> Iterator[Any]:
        """Of [start, stop), keys as bytes."""
        return self._walk_state(self._state, kind, start, stop, backward)

    def _walk_state(
        self, state: State, kind: int, start: bytes | None, stop: bytes | None, backward: bool
    ) -> Iterator[Any]:
        entries = Entries(state, kind, self._decoder)
        first, bound = (stop, start) if backward else (start, stop)
        entries.range(first, bound, backward)
        return entries

    def _encoded(self, key: Key | None) -> bytes | None:
        """A bound of a range, as the bytes that keys are ordered by."""
        if key is None:
            return None
        kind = self._kind
        if isinstance(key, str) and kind != BYTES_KEYS:
            return key.encode()
        if isinstance(key, bytes) and kind != STR_KEYS:
            return key
        raise TypeError(f"the keys of this map are {KINDS[kind] or 'str or bytes'}, got {type(key).__name__}")

    def __iter__(self) -> Iterator[Any]:
        return self._walk(KEYS)

    def __reversed__(self) -> Iterator[Any]:
        return self._walk(KEYS, backward=True)

    def keys(self) -> Keys:
        """A set-like view, ordered; iterating reads keys alone."""
        return Keys(self)

    def values(self) -> OrderedValues:
        """In the order of the keys."""
        return OrderedValues(self)

    def items(self) -> Pairs:
        """(key, value) pairs, in the order of the keys."""
        return Pairs(self)

    def range(
        self, start: Key | None = None, stop: Key | None = None, reverse: bool = False
    ) -> Iterator[tuple[Any, Any]]:
        """(key, value) pairs of start <= key < stop, in the order of the keys' bytes, or the reverse.

        Lazy; of the one version that was the newest when it was called. O(log n) to begin, then O(1) for each.
        """
        return self._walk(ITEMS, self._encoded(start), self._encoded(stop), backward=reverse)

    def prefix(self, prefix: Key, reverse: bool = False) -> Iterator[tuple[Any, Any]]:
        """(key, value) pairs of the keys that begin with `prefix`, in order."""
        low = self._encoded(prefix)
        if low is None:
            raise TypeError("a prefix is str or bytes, as the keys are, got None")
        return self._walk(ITEMS, low, successor(low), backward=reverse)

    def first(self) -> tuple[Any, Any]:
        """The pair with the least key; KeyError if the map is empty."""
        pair: tuple[Any, Any] | None = next(self._walk(ITEMS), None)
        if pair is None:
            raise KeyError("first(): the map is empty")
        return pair

    def last(self) -> tuple[Any, Any]:
        """The pair with the greatest key; KeyError if the map is empty."""
        pair: tuple[Any, Any] | None = next(self._walk(ITEMS, backward=True), None)
        if pair is None:
            raise KeyError("last(): the map is empty")
        return pair

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is not copied or pickled: open the path once more")

    def ttl(self, key: Key) -> float | None:
        """Seconds until an entry expires; None if it never does. KeyError if there is none, or it has expired."""
        expires = self._expires(key)
        if expires is None:
            raise KeyError(key)
        return max(0.0, (expires - self._state.now) / 1e9) if expires else None

    # ---- about it -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Entries that were neither deleted nor compacted away: what has expired counts until a compaction drops it.
        O(1).
        """
        return self._state.entries

    @property
    def version(self) -> int:
        """How often the map was published: grows by one with each commit."""
        return self._state.version

    @property
    def key_type(self) -> type[str | bytes] | None:
        """str or bytes; None as long as there was no key."""
        return {0: None, STR_KEYS: str, BYTES_KEYS: bytes}[self._kind]

    @property
    def metadata(self) -> Any:
        """What `build` was given as metadata; None if nothing. Compactions keep it."""
        return metadata_of(self._state)

    def verify(self) -> int:
        """Reads every block of this version and checks its checksum; how many there were.

        `CorruptionError` names file and block. Whatever the `verify` of the constructor was.
        """
        state = self._state
        blocks = sum(layer.verify() for layer in state.layers)
        if state.delta is not None:
            blocks += sum(1 for _ in state.delta.batches(state.end))
        return blocks

    def prefetch(
        self,
        keys: Iterable[Any] | None = None,
        *,
        start: Key | None = None,
        stop: Key | None = None,
        prefix: Key | None = None,
    ) -> None:
        """Brings pages into memory, with the GIL released: those that lookups of `keys` touch, or the records of a
        range; without arguments, everything, indexes included.

        For servers that must not stall in a lookup. The kernel may drop the pages again when memory is short.
        """
        if keys is not None:
            if isinstance(keys, (str, bytes)):
                raise TypeError("prefetch(keys): an iterable of keys, not a single one")
            self._fetch(keys)
            return
        low, high = self._encoded(start), self._encoded(stop)
        if prefix is not None:
            low = self._encoded(prefix)
            high = successor(low or b"")
        everything = low is None and high is None
        for layer in self._state.layers:
            layer.populate(low, high, everything)

    def _describe(self) -> dict[str, Any]:
        state = self._state
        delta = state.delta
        return {
            "version": state.version,
            "entries": len(self),
            "keys": KINDS[state.keys],
            "codec": self.codec.name,
            "bytes": sum(layer.size for layer in state.layers) + (delta.size if delta is not None else 0),
            "layers": [{"number": one.number, "records": one.records, "bytes": one.size} for one in state.layers],
            "delta": None
            if delta is None
            else {
                "number": delta.number,
                "used": state.end - delta.start,
                "bytes": delta.limit - delta.start,
                "cut": state.cut,
            },
        }


def metadata_of(state: State) -> Any:
    """Decoded; the oldest layer has it."""
    data = state.layers[-1].metadata if state.layers else b""
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False) if data else None
    except Exception as error:  # whatever msgpack finds
        raise CorruptionError(f"{state.layers[-1].path}: the metadata is damaged ({error}): restore a copy") from error


@own_methods
class Snapshot(MapView):
    """One version of a map, frozen: a Mapping, ordered. From :meth:`SnapshotMap.snapshot`.

    Its files live on as long as it, and what it handed out, do, even if they are removed from the disk meanwhile.
    Works in the child of a fork. There is nothing to close; `close()` lets go of the files early, and a ``with``
    block does that.
    """

    __slots__ = ()

    def __init__(self, path: str, state: State, codec: codecs.ResolvedCodec, decoder: Values) -> None:
        self.path = path
        self.codec = codec
        self._decoder = decoder
        self._use(decoder)
        self._go_by(state)
        self._follow(None)

    def _advance(self) -> None:
        from mmapds.errors import Closed

        raise Closed(f"{self.path}: this snapshot is closed")

    def snapshot(self) -> Snapshot:
        """Another one of the same version."""
        return Snapshot(self.path, self._state, self.codec, self._decoder)

    def stats(self) -> dict[str, Any]:
        """What it consists of."""
        return self._describe()

    def close(self) -> None:
        """Lets go of the files. Idempotent."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = self._seen
        return f"<Snapshot {self.path} {'closed' if state is None else f'version {state.version}'}>"
