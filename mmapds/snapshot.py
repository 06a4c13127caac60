"""SnapshotMap: an ordered map on the disk that is opened, not loaded; one writer changes it while any number read.

Promises
    Opening maps files and reads their headers: a millisecond, whatever the size. Readers need no slot, no
    registration and no permission to write; they never block the writer, and it never blocks or invalidates them. A
    commit is one atomic step: a reader sees all of it or nothing. Whoever dies, whenever, harms nobody.

A map is immutable layers, newest first, and a delta, a file that commits are appended to; a manifest says what
counts. The protocol, and why it is right, is in ``_native/snapshot.h``; what a manifest is in ``_manifest.py``; files
in ``_snapfiles.py``. Here is the policy of handles. Reading and walking is in ``_snapview.py``, changes over a base
in ``_snapcover.py``, commits, compaction and building in ``_snapcommit.py``.

Prior art
    LevelDB and RocksDB (layers, compaction), LMDB (readers that map, one writer), CDB (a constant map with a table of
    hashes), Kyoto Cabinet.

Rejected
    A B-tree that is changed in place, or copied on write: readers must register, so that pages are not reused under
    them, and one that is stopped keeps the file growing. A file for each commit: a hundred microseconds for the
    writer, and for every follower.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Self

from mmapds import files
from mmapds._handle import Handle
from mmapds._manifest import Contents, DeltaRef, Manifest
from mmapds._native import kernel
from mmapds._native.atomic import own_methods
from mmapds._native.region import FLAGS
from mmapds._native.snapcursor import Values
from mmapds._native.snaplayer import Delta, Layer, State
from mmapds._native.snapmap import MapCore
from mmapds._snapcommit import Committer, build_map, create_map
from mmapds._snapcover import SLOTS, Covered
from mmapds._snapfiles import MANIFEST, MapFiles
from mmapds._snapview import KINDS, MapView, Snapshot
from mmapds.errors import (
    Closed,
    CorruptionError,
    DurabilityFailed,
    ForkedHandle,
    MmapdsError,
    NotInitialised,
    SchemaMismatch,
)
from mmapds.region import Mode, StrPath, check_mode

_MEMORY = 256 << 20


@own_methods
class SnapshotMap(MapView, Handle):
    """The map in the directory at `path`: a Mapping of str or bytes keys (one kind for each map), ordered by their
    bytes.

    path
        In mode ``shared`` an empty map is made if there is none (0700).
    mode
        ``shared``: read, and change in a :meth:`transaction`. ``readonly``: needs no permission to write, and never
        writes. ``private``: a MutableMapping over a version that stays until `refresh()`; changes stay in this process.
    codec, schema, durability
        Stored when the map is made, and taken from it if left out (new: "msgpack", none, "process"); given and
        different, `SchemaMismatch` shows both. Durability "power": a transaction that has ended survives power loss.
    follow
        Each lookup sees what was committed before it; False: this handle stays at its version until `refresh()`. (A
        readonly handle that was the first on this boot, before any that may write: within 10 ms.)
    populate
        Fault layers in when they are mapped.
    verify
        Check the checksum of each block of 64 KiB before it is used for the first time. Without it a flipped bit in a
        value goes unnoticed; `verify()` reads everything.

    Keys have up to 65,536 bytes; str keys are stored, and ordered, as UTF-8. Values are decoded at each lookup.

    Progress: lookups are lock-free and make no system call while the map is the same. After a crash: the newest
    version that was published. A handle may be shared by threads; its transactions are serialised. In the child of a
    fork it goes on reading; a transaction that was open belongs to the parent. Source of the idea: LSM trees, LMDB's
    readers.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, SnapshotMap(folder + "/cities") as m:
    ...     with m.transaction() as txn:
    ...         txn["de/berlin"] = {"people": 3_700_000}
    ...         txn["de/bonn"] = {"people": 330_000}
    ...     m["de/bonn"], list(m.prefix("de/b")), len(m)
    ({'people': 330000}, [('de/berlin', {'people': 3700000}), ('de/bonn', {'people': 330000})], 2)
    """

    __slots__ = (
        "_base",
        "_closing",
        "_committer",
        "_files",
        "_manifest",
        "_turns",
        "_written",
        "durability",
        "follow",
        "mode",
    )

    mode: Mode
    follow: bool
    durability: str

    def __new__(cls, *_arguments: Any, mode: str = "shared", **_options: Any) -> Self:
        if mode == "private" and cls is SnapshotMap:
            return super().__new__(PrivateMap)  # type: ignore[return-value]
        return super().__new__(cls)

    def __init__(
        self,
        path: StrPath,
        *,
        mode: Mode = "shared",
        codec: Any = None,
        schema: str | None = None,
        follow: bool = True,
        durability: Literal["process", "power"] | None = None,
        populate: bool = False,
        verify: bool = False,
    ) -> None:
        if hasattr(self, "_manifest"):
            raise RuntimeError("a SnapshotMap is opened once: make another")
        check_mode(mode)
        if durability is not None and durability not in files.DURABILITIES:
            raise ValueError(f"durability {durability!r} is not 'process' or 'power'")
        if FLAGS["PAGE"] != kernel.PAGE:
            raise OSError(
                errno.ENOTSUP,
                f"this kernel has pages of {FLAGS['PAGE']} bytes; snapshot maps are laid out in pages of {kernel.PAGE}",
            )
        self.path = os.path.abspath(os.fspath(path))
        self.mode = mode
        self.follow = follow and mode != "private"
        self._turns = kernel.Turns()
        self._closing = False
        self._committer: Committer | None = None
        self._written: Delta | None = None  # the delta, mapped to be appended to
        self._base: tuple[Contents, State] | None = None  # what our last transaction published
        self._manifest = open_manifest(self.path, mode, codec, schema, durability)
        try:
            self.codec = self._manifest.codec
            self.durability = self._manifest.durability
            self._decoder = Values(self.codec)
            self._use(self._decoder)
            self._files = MapFiles(
                self.path, self._manifest.identity, durability=self.durability, verify=verify, populate=populate
            )
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        try:
            self._reload()
        except NotInitialised:
            if self.mode != "shared":
                raise FileNotFoundError(
                    errno.ENOENT, "this map is being made, or its maker died: open it with mode='shared'", self.path
                ) from None
            create_map(self)
            self._reload()
        except DurabilityFailed:
            if self.mode != "shared" or not self.follow:
                raise
            if not self._manifest.version:  # its maker could not sync, and has published nothing: we make it
                create_map(self)
                self._reload()
            else:
                # Only a transaction heals the map, and there may be no other handle. Until then lookups raise.
                version, contents = self._manifest.contents_for_writer()
                self._adopt(self._state_of(version, contents, None))
        self._look()

    # ---- versions -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Lookups look for new versions, or do not."""
        self._follow(self._manifest if self.follow else None)

    def _advance(self) -> None:
        """There is a newer version than the one to go by, or this handle is closed."""
        self._check_open()
        self._reload()
        self._look()

    def _reload(self) -> None:
        """Goes by the newest version. All its files are mapped before anything changes."""
        manifest = self._manifest
        while True:
            version, contents = manifest.contents()
            before = self._seen
            if before is not None and before.version >= version and not manifest.foreign:
                return
            try:
                state = self._state_of(version, contents, before)
            except FileNotFoundError as error:
                if manifest.version != version:  # replaced, and removed, since we read the manifest
                    continue
                raise CorruptionError(
                    f"{error.filename} is missing, and the manifest of version {version} names it: restore a copy"
                ) from error
            if contents.delta is not None and state.delta is None and manifest.version != version:
                continue  # its delta is not lost, but has become a layer since
            self._adopt(state)
            return

    def _adopt(self, state: State) -> None:
        """Goes by a version, unless another thread was faster."""
        before = self._seen
        if before is None or before.version <= state.version:
            self._go_by(state)

    def _state_of(self, version: int, contents: Contents, before: State | None) -> State:
        known: dict[tuple[int, bytes], Layer] = {}
        if before is not None:
            known = {(layer.number, layer.identity): layer for layer in before.layers}
        layers = tuple(known.get((ref.number, ref.identity)) or self._files.layer(ref) for ref in contents.layers)
        delta, end, entries = None, 0, contents.entries
        if (ref := contents.delta) is not None:
            delta, end = before.delta if before is not None else None, ref.end
            if delta is None or (delta.number, delta.identity) != (ref.number, ref.identity):
                delta, end, entries = self._new_delta(contents, ref)
            elif before is not None and before.cut:
                end, entries = before.end, before.entries
        cut = 0 if ref is None else ref.end - end
        return State(version, entries, contents.keys, layers, delta, end, contents.clock_here(), cut)

    def _new_delta(self, contents: Contents, ref: DeltaRef) -> tuple[Delta | None, int, int]:
        """Maps a delta; how much of it counts, and len of the map then.

        With durability "process" the power may have gone before the kernel wrote all of it. What is whole counts, from
        the first batch on: a version that was, if not the last one.
        """
        powerless = self.durability == "process" and contents.boot != files.boot_id()
        try:
            delta, ours = self._files.delta(ref, writable=False)
        except (CorruptionError, FileNotFoundError):
            if not powerless:
                raise
            return None, 0, contents.layers[0].entries if contents.layers else 0
        if ours or self.durability != "process":
            return delta, ref.end, contents.entries
        end, entries = delta.whole(ref.end)
        return delta, end, contents.entries if entries is None else entries

    def refresh(self) -> int:
        """Goes by the newest version from here on, also with ``follow=False``; its number. `MappingLost` if the path
        has been removed, or names another map by now.
        """
        self._check_open()
        self._manifest.check_place()
        self._reload()
        self._look()
        return self._state.version

    def wait(self, newer_than: int | None = None, timeout: float | None = None) -> int | None:
        """Sleeps until there is a version newer than `newer_than` (default: than the newest); its number, or None after
        `timeout` seconds. The writer wakes who waits in mode ``shared``; the others look every half millisecond."""
        self._check_open()
        found: int | None = self._manifest.wait(newer_than, timeout)
        return found

    def snapshot(self) -> Snapshot:
        """The version of this moment, frozen: consistent for as long as it is held, and free."""
        return Snapshot(self.path, self._state, self.codec, self._decoder)

    # ---- changing -------------------------------------------------------------------------------------------------

    def transaction(self) -> Transaction:
        """``with m.transaction() as txn:`` changes made in the block are published as one version at its end; an
        exception drops them.

        One at a time, over all processes: `WriterBusy` names who has the place (threads of one handle wait for each
        other). Killed at any point, readers see the old version or the new one.
        """
        self._check_open()
        if self.mode != "shared":
            raise PermissionError(
                errno.EACCES, f"mode={self.mode!r} does not change the map: open it with mode='shared'", self.path
            )
        return Transaction(self)

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError(
            f"a map in mode {self.mode!r} is changed in a block: with m.transaction() as txn: txn[key] = value"
        )

    def __delitem__(self, key: Any) -> None:
        raise TypeError(f"a map in mode {self.mode!r} is changed in a block: with m.transaction() as txn: del txn[key]")

    def compact(self, progress: Callable[[str, int, int | None], object] | None = None) -> None:
        """Merges all layers into one, and drops what was deleted or has expired. Needs room for the result beside
        what there is; readers go on meanwhile. Killed at any point, the map is as it was, or compacted.
        """
        with self.transaction() as transaction:
            transaction._committer.compact(progress)

    @classmethod
    def build(
        cls,
        path: StrPath,
        items: Iterable[tuple[Any, Any]] | Mapping[Any, Any],
        *,
        codec: Any = None,
        schema: str | None = None,
        durability: Literal["process", "power"] | None = None,
        metadata: Any = None,
        memory_limit: int = _MEMORY,
        progress: Callable[[str, int, int | None], object] | None = None,
    ) -> int:
        """Makes a map of `items` (pairs, in any order; of equal keys the last counts); how many entries it has.

        Atomic: until it is complete there is no map, or the one that was there before, which is replaced as by a
        commit (readers that follow go on with the new one). The items may be more than fit into memory: what exceeds
        `memory_limit` bytes is sorted in files without names, beside the map. The result is one layer, and is on the
        disk when this returns. `metadata`: anything msgpack can keep. `progress` is called as ``progress(stage, done,
        total)`` with the stages "read", "write", "index" and "sync"; `total` is None as long as it is not known.
        """
        name = os.path.abspath(os.fspath(path))
        return build_map(name, items, codec, schema, durability, metadata, memory_limit, progress)

    # ---- about it -------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """What the map consists of, as a dict."""
        return {"path": self.path, "mode": self.mode, "durability": self.durability, **self._describe()}

    def check(self) -> None:
        """Checks every invariant of the files, and changes nothing; `CorruptionError` says which one is broken."""
        self._check_open()
        from mmapds.inspection import check

        check(self.path)

    # ---- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends this handle; idempotent. Views, snapshots and walks that are held stay valid."""
        manifest = getattr(self, "_manifest", None)
        if manifest is not None:
            committer = self._committer
            if committer is not None and committer.epoch == kernel.fork_count():
                self._closing = True
                committer.closes = True  # who commits keeps the writer's place until that is done
            else:
                manifest.close()
            self._written = self._base = None
        self._end()

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._is_closed

    @property
    def _is_closed(self) -> bool:
        manifest = getattr(self, "_manifest", None)
        return manifest is None or self._closing or bool(manifest._is_closed)

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed(f"{self.path}: this map is closed")

    def __repr__(self) -> str:
        try:
            state = "closed" if self._is_closed else f"version {self.version}"
        except (MmapdsError, OSError) as error:
            state = type(error).__name__
        return f"<SnapshotMap {self.path} {self.mode} {state}>"


def open_manifest(path: str, mode: str, codec: Any, schema: str | None, durability: Any) -> Manifest:
    """Opens the manifest of a map; in mode shared, makes one that nothing was published in."""
    if os.path.lexists(path) and not os.path.isdir(path):
        from mmapds.errors import IncompatibleFormat

        raise IncompatibleFormat(f"{path} is a file; a snapshot map is a directory: give another path")
    if mode == "shared":
        MapFiles.make_directory(path)
    try:
        return Manifest(
            os.path.join(path, MANIFEST),
            mode="shared" if mode == "shared" else "readonly",
            codec=codec,
            schema=schema,
            durability=durability,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, f"there is no map here, and mode={mode!r} makes none", path) from error
    except SchemaMismatch as error:
        error.add_note(f"the map is {path}")
        raise


@own_methods
class PrivateMap(Covered, SnapshotMap):
    """A map in mode ``private``: what SnapshotMap(path, mode="private") makes.

    A MutableMapping over one version; changes go to an ordered overlay in this process, and the files see nothing of
    them.
    """

    __slots__ = SLOTS

    def _begin(self) -> None:
        super()._begin()
        self._uncover(counted=True)

    __setitem__ = Covered.__setitem__
    __delitem__ = Covered.__delitem__

    def _check_changeable(self) -> None:
        self._check_open()

    def refresh(self) -> int:
        """Puts the newest version under the changes, which stay; its number."""
        self._check_open()
        self._manifest.check_place()
        before, ours = self._state, self._overlay_kind
        self._reload()
        if ours and self._state.keys not in (0, ours):
            self._go_by(before)
            raise TypeError(
                f"the map has keys of another kind by now than the {KINDS[ours]} keys that were changed here: "
                "discard() the changes first"
            )
        self._look()
        self._gained = None
        return self._state.version

    @property
    def overlay_size(self) -> int:
        """How many keys were changed, or deleted, here."""
        self._check_open()
        return len(self._changes)

    def discard(self) -> None:
        """Forgets all changes."""
        self._check_open()
        self._uncover(counted=True)

    def publish(self, path: StrPath, *, progress: Callable[[str, int, int | None], object] | None = None) -> int:
        """Makes a new map at `path` of what this one is now, changes included, with the same codec, schema, metadata
        and durability, as `build` does; how many entries it has.
        """
        self._check_open()
        from mmapds._snapcommit import publish_private

        return publish_private(self, os.path.abspath(os.fspath(path)), progress)

    def snapshot(self) -> Snapshot:
        """The base, without the changes, frozen."""
        return super().snapshot()

    def compact(self, progress: Callable[[str, int, int | None], object] | None = None) -> None:
        """Not in this mode: PermissionError."""
        super().compact(progress)

    def close(self) -> None:
        """Ends this handle, and forgets its changes; idempotent."""
        super().close()
        self._changes = {}
        self._order = None


@own_methods
class Transaction(Covered):
    """Changes that become one version: a MutableMapping over the version that it began with. From
    `SnapshotMap.transaction`.
    """

    __slots__ = (*SLOTS, "_begun", "_committer", "_epoch", "_map", "_open")

    def __init__(self, owner: SnapshotMap) -> None:
        self._map = owner
        self.path = owner.path
        self.codec = owner.codec
        self._decoder = owner._decoder
        self._use(self._decoder)
        self._open = self._begun = False
        self._epoch = kernel.fork_count()

    def __enter__(self) -> Self:
        if self._begun:
            raise RuntimeError("a transaction is one block: call m.transaction() again")
        self._begun = True
        owner = self._map
        turn = owner._turns.take("this thread is in a transaction of this map already: end it first")
        committer = Committer(owner)
        try:
            self._hold(turn)
            self._committer = committer
            owner._committer = committer
            self._go_by(committer.begin())
            self._bind()
            self._uncover(counted=False)
            self._open = True
        except BaseException:
            try:
                self._give_up()
            finally:
                turn.give()
            raise
        return self

    __exit__ = MapCore._exit  # native, so that no signal comes between its beginning and its `try`

    def _finish(self, failed: bool) -> None:
        try:
            if self._epoch != kernel.fork_count():
                if not failed:
                    raise ForkedHandle("this transaction belongs to the parent of this process: begin one of your own")
            elif not failed:
                self._committer.commit(self._changes)
        finally:
            self._give_up()

    def _give_up(self) -> None:
        """Gives back what the transaction has. Idempotent."""
        self._open = False
        self._changes = {}
        self._end()
        committer = getattr(self, "_committer", None)
        if committer is not None and self._epoch == kernel.fork_count():
            if self._map._committer is committer:
                self._map._committer = None
            committer.end()
            del self._committer

    def _advance(self) -> None:
        self._check_changeable()

    def _check_changeable(self) -> None:
        if self._epoch != kernel.fork_count():
            raise ForkedHandle("this transaction belongs to the parent of this process: begin one of your own")
        if not self._open:
            raise Closed(f"{self.path}: this transaction is over, or has not begun: with m.transaction() as txn: ...")

    def __repr__(self) -> str:
        return f"<Transaction of {self.path}, {len(self._changes) if self._open else 'over'}>"
