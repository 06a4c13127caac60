"""Commits, compaction and building: everything that publishes a version of a snapshot map.

A commit is appended to the delta, and a manifest published that counts it. When the delta is full it becomes a layer.
If there are three layers already that are less than four times as large, it is merged with them, and so on with what
comes of that; and with all layers when they would together come to a quarter of the oldest one. So there are few
layers, and what newer ones make obsolete is at most a quarter of the oldest. A commit too large for the delta becomes
a layer at once.

What remains if the writer dies
    before a manifest is published: the old version. Layers and deltas that no manifest names are removed by the next
    writer; a delta that was appended to beyond what counts is not appended to again (snapshot.h) but becomes a layer.
    after it: the new version. Files that were replaced are removed by the next writer.

A file is removed when what replaces it is on the disk: layers are synced before they are named, and the manifest before
anything goes. `power`: the batch is synced before its manifest, the manifest before the commit returns.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import msgpack

from mmapds import files
from mmapds._manifest import EMPTY, Contents, Manifest
from mmapds._native import kernel
from mmapds._native.region import FLAGS
from mmapds._native.region import Mapping as Mapped
from mmapds._native.snapbuild import Changes, Sorter, append, spill_one
from mmapds._native.snapcursor import Cursor, Run
from mmapds._native.snaplayer import Delta, State
from mmapds._queuefiles import boot_offset
from mmapds._snapfiles import MapFiles, Progress
from mmapds.errors import Closed, CorruptionError, DurabilityFailed, MmapdsError, WriterBusy

if TYPE_CHECKING:
    from mmapds.snapshot import PrivateMap, SnapshotMap

RATIO = 4  # the oldest layer is at least as many times as large as all others together; so unlike are two of them
ALIKE = 3  # layers of a size, which the next one of that size is merged with
MOST_KEPT = 8  # layers, at most; the format allows some more
_PATIENCE = 5.0  # seconds for somebody who is making the map


class Committer:
    """The writer's side of one transaction."""

    def __init__(self, owner: SnapshotMap) -> None:
        self._owner = owner
        self._manifest: Manifest = owner._manifest
        self._files: MapFiles = owner._files
        self.epoch = kernel.fork_count()
        self.closes = False  # the handle was closed meanwhile: its place is kept until the end
        self._retired: list[str] = []
        self._compacted = False

    def begin(self) -> State:
        """Takes the writer's place; the version to build on."""
        owner, manifest = self._owner, self._manifest
        base, owner._base = owner._base, None  # whatever interrupts this, what we knew is not used after it
        fresh = manifest.acquire()
        try:
            self._suspect = manifest.has_failed
            if not fresh and not self._suspect and base is not None:
                owner._base = base  # nobody else has written since we did
                self._contents, self._state = base
                return self._state
            version, self._contents = manifest.contents_for_writer()
            sweep(manifest, self._files, self._contents)
            try:
                self._state = owner._state_of(version, self._contents, owner._seen)
            except FileNotFoundError as error:  # nobody but us removes files now
                raise CorruptionError(
                    f"{error.filename} is missing, and the manifest of version {version} names it: restore a copy"
                ) from error
        except BaseException:
            manifest.release()
            raise
        return self._state

    def end(self) -> None:
        """Gives the place back."""
        self._manifest.release()
        if self.closes:
            self._manifest.close()

    # ---- commits --------------------------------------------------------------------------------------------------

    def commit(self, changed: dict[Any, Any]) -> None:
        """Publishes the changes, and what a compaction has made."""
        if self._owner._is_closed:
            raise Closed(f"{self._owner.path}: this map was closed in the middle of a transaction, which is dropped")
        changes = Changes(self._state, changed)
        if not len(changes):
            if self._compacted:
                self._publish(self._contents)
            return
        delta = self._appendable()
        if changes.size > self._files.delta_size // 2:
            self._publish(self._with_layer(changes))
            return
        used = self._contents.delta
        if delta is None or used is None or used.end + changes.size > delta.limit:
            if used is not None:
                self._fold()
                changes = Changes(self._state, changed)  # what had expired is gone
            below = sum(layer.bytes for layer in self._contents.layers)
            made = self._files.new_delta(self._take_number(), self._state.entries, below)
            self._contents = replace(self._contents, delta=made)
            delta, _ = self._files.delta(made, writable=True)
            self._owner._written = delta
            used = made
        state = self._state
        entries = state.entries + changes.gained
        end = append(delta, changes, used.end, state.version + 1, entries)
        if self._files.durability == "power":
            self._sync_delta(delta, used.end, end)
        self._publish(replace(self._contents, entries=entries, keys=changes.keys, delta=replace(used, end=end)))

    def _appendable(self) -> Delta | None:
        """The delta, mapped to be written; None if there is none, or it must not be appended to."""
        ref = self._contents.delta
        if ref is None or self._suspect or self._state.delta is None:
            return None
        delta = self._owner._written
        if delta is None or delta.identity != ref.identity:
            self._owner._written = None
            delta, ours = self._files.delta(ref, writable=True)
            if not ours:
                return None
        if delta.written not in (ref.end, 0) or (delta.written == 0 and ref.end != delta.start):
            self._owner._written = None
            return None  # a writer died, or was interrupted, between its batch and its manifest
        self._owner._written = delta
        return delta

    def _sync_delta(self, delta: Delta, start: int, end: int) -> None:
        try:
            delta.sync(start, end)
        except OSError as error:
            self._manifest.fail()
            raise DurabilityFailed(
                f"{delta.path}: the disk did not take what was written ({error.strerror}); nothing of this map is "
                "trusted until a transaction has succeeded. Check the disk, then commit again.",
                path=delta.path,
            ) from error

    def _take_number(self) -> int:
        self._owner._base = None  # what has the number is swept away if it is not published
        number = self._contents.number
        self._contents = replace(self._contents, number=number + 1)
        return number

    # ---- merging --------------------------------------------------------------------------------------------------

    def _new_bytes(self) -> int:
        delta = self._state.delta
        return 0 if delta is None else self._state.end - delta.start

    def _merging(self, size: int) -> int:
        """How many of the newest layers are merged with `size` new bytes."""
        layers = self._contents.layers
        if layers and RATIO * (size + sum(layer.bytes for layer in layers[:-1])) >= layers[-1].bytes:
            return len(layers)
        count = 0
        while True:
            alike = count
            while alike < len(layers) and layers[alike].bytes < RATIO * size:
                alike += 1
            if alike - count < ALIKE:
                break
            size += sum(layer.bytes for layer in layers[count:alike])
            count = alike
        if count < (forced := len(layers) + 1 - MOST_KEPT):
            size += sum(layer.bytes for layer in layers[count:forced])
            count = forced
            while count < len(layers) and layers[count].bytes < RATIO * size:  # or the newest one would grow each time
                size += layers[count].bytes
                count += 1
        return count

    def _merge(self, cursor: Cursor, count: int, keys: int, entries: int, progress: Progress | None = None) -> None:
        """A layer of what the cursor has, of the delta, and of the newest `count` layers, which it replaces."""
        state, contents = self._state, self._contents
        if state.delta is not None:
            cursor.add_delta(state.delta, state.end)
        for layer in state.layers[:count]:
            layer.verify()  # or a damaged block would get a checksum that is right
            cursor.add(layer)
        bottom = count == len(state.layers)
        ref, lapsed = self._files.new_layer(
            self._take_number(),
            cursor,
            keys=keys,
            bottom=bottom,
            now=state.now,
            metadata=state.layers[-1].metadata if bottom and state.layers else b"",
            progress=progress,
            total=sum(layer.records for layer in state.layers[:count]) or None,
        )
        self._retired += [self._files.name(layer.number, "layer") for layer in contents.layers[:count]]
        if contents.delta is not None:
            self._retired.append(self._files.name(contents.delta.number, "delta"))
            self._owner._written = None  # which would keep its blocks
        entries -= lapsed
        layers = contents.layers[count:]
        if ref is not None:
            layers = (replace(ref, entries=entries), *layers)
        self._contents = replace(self._contents, layers=layers, delta=None, keys=keys, entries=entries)

    def _fold(self, count: int | None = None, progress: Progress | None = None) -> None:
        """Turns the delta into a layer."""
        state = self._state
        if count is None:
            count = self._merging(self._new_bytes())
        self._merge(Cursor(), count, state.keys, state.entries, progress)
        self._state = self._owner._state_of(state.version, self._contents, state)

    def _with_layer(self, changes: Changes) -> Contents:
        """The changes as a layer."""
        cursor = Cursor()
        changes.sorter().add_to(cursor)
        count = self._merging(changes.size + self._new_bytes())
        self._merge(cursor, count, changes.keys, self._state.entries + changes.gained)
        return self._contents

    def compact(self, progress: Progress | None) -> None:
        """Merges everything; `commit` publishes it."""
        if self._state.layers or self._state.delta is not None:
            self._fold(len(self._state.layers), progress)
            self._compacted = True

    # ---- publishing -----------------------------------------------------------------------------------------------

    def _publish(self, contents: Contents) -> None:
        owner = self._owner
        owner._base = None
        contents = contents.here()
        self._manifest.write_bytes(contents.encode())
        retired, self._retired = self._retired, []
        retire(self._manifest, self._files, retired)
        state = owner._state_of(self._state.version + 1, contents, self._state)
        owner._base = contents, state
        if owner.follow:
            owner._adopt(state)


def retire(manifest: Manifest, there: MapFiles, paths: list[str]) -> None:
    """Removes files that the manifest that was just published does without."""
    if paths:
        manifest.make_durable()
        manifest.check_place()
        there.remove(paths)


def sweep(manifest: Manifest, there: MapFiles, contents: Contents) -> None:
    """Removes what writers that died, or failed, have left."""
    wanted = {layer.number for layer in contents.layers}
    if contents.delta is not None:
        wanted.add(contents.delta.number)
    retire(manifest, there, there.leftovers(wanted))


def create_map(owner: SnapshotMap) -> None:
    """Publishes an empty map, unless somebody else does."""
    manifest = owner._manifest
    limit = time.monotonic() + _PATIENCE
    while not manifest.version:
        try:
            manifest.acquire()
        except WriterBusy as error:
            if time.monotonic() > limit:
                error.add_note("the map is being built: it can be opened when it is complete")
                raise
            manifest.wait(0, 0.05)
            continue
        try:
            if not manifest.version:
                manifest.write_bytes(EMPTY.here().encode())
        finally:
            manifest.release()


# ---- building ------------------------------------------------------------------------------------------------------


def build_map(
    path: str,
    items: Iterable[tuple[Any, Any]] | Mapping[Any, Any],
    codec: Any,
    schema: str | None,
    durability: Any,
    metadata: Any,
    memory_limit: int,
    progress: Progress | None,
) -> int:
    """`SnapshotMap.build`."""
    if memory_limit < 1 << 20:
        raise ValueError(f"memory_limit is {memory_limit} bytes: at least 1 MiB (1048576)")
    note = b"" if metadata is None else msgpack.packb(metadata)
    with _Building(path, codec, schema, durability) as building:
        iterator = iter(items.items() if isinstance(items, Mapping) else items)
        cursor, keys, total = _sorted(building, iterator, memory_limit, progress)
        return building.publish(cursor, keys, note, progress, total=total)


def publish_private(private: PrivateMap, path: str, progress: Progress | None) -> int:
    """`PrivateMap.publish`."""
    state = private._state
    changes = Changes(state, private._changes)
    text = private.codec.name
    schema = private._manifest._file.header.schema.text.partition("\n")[2]
    codec = private.codec if text.startswith("object:") or text == "pickle" else text
    with _Building(path, codec, schema, private.durability) as building:
        if building.manifest.identity == private._manifest.identity:
            raise ValueError(f"{path} is the map that this one is a copy of: publish to another path")
        cursor = Cursor()
        if len(changes):
            changes.sorter().add_to(cursor)
        if state.delta is not None:
            cursor.add_delta(state.delta, state.end)
        for layer in state.layers:
            layer.verify()
            cursor.add(layer)
        note = state.layers[-1].metadata if state.layers else b""
        building.clock = state.clock + boot_offset()
        return building.publish(cursor, changes.keys, note, progress, total=len(private), now=state.now)


class _Building:
    """A map whose contents are being replaced: the writer's place, from beginning to end."""

    def __init__(self, path: str, codec: Any, schema: str | None, durability: Any) -> None:
        from mmapds.snapshot import open_manifest

        self.path = path
        self.clock: int | None = None
        self.manifest = open_manifest(path, "shared", codec, schema, durability)
        self.files = MapFiles(
            path, self.manifest.identity, durability=self.manifest.durability, verify=False, populate=False
        )

    def __enter__(self) -> Self:
        manifest = self.manifest
        try:
            manifest.acquire()
            self.before = manifest.contents_for_writer()[1] if manifest.version else EMPTY
            sweep(manifest, self.files, self.before)
        except BaseException:
            manifest.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(MmapdsError):
            self.manifest.release()
        self.manifest.close()

    def publish(
        self,
        cursor: Cursor,
        keys: int,
        metadata: bytes,
        progress: Progress | None,
        *,
        total: int | None,
        now: int = 0,
    ) -> int:
        """Writes the layer, and makes it all there is."""
        before = self.before
        ref, _ = self.files.new_layer(
            before.number, cursor, keys=keys, bottom=True, now=now, metadata=metadata, progress=progress, total=total
        )
        contents = Contents(before.number + 1, 0, keys, 0, bytes(16), None, ()).here()
        if self.clock is not None:
            contents = replace(contents, clock=self.clock)
        if ref is not None:
            contents = replace(contents, entries=ref.records, layers=(replace(ref, entries=ref.records),))
        self.manifest.write_bytes(contents.encode())
        self.manifest.make_durable()
        with suppress(PermissionError):  # of a directory that may be written and not be read
            files.sync_directory(self.path)  # the map's own name
        retire(self.manifest, self.files, self.files.leftovers({before.number}))
        return contents.entries


def _sorted(
    building: _Building, iterator: Any, memory_limit: int, progress: Progress | None
) -> tuple[Cursor, int, int]:
    """A cursor over all items, the newest of equal keys first, the kind of the keys, and how many items there were."""
    codec = building.manifest.codec
    raw = codec.name == "raw"
    sorter = Sorter(memory_limit, 0)
    runs: list[Run] = []
    total = 0
    while True:
        done = sorter.feed(iterator, codec.encode, raw, 1 << 16)
        if progress is not None:
            progress("read", sorter.total, None)
        if done:
            break
        if sorter.full:
            with files.unnamed(f"{building.path}/run", 0o600) as (fd, _):
                end = sorter.spill(fd) if len(sorter) else spill_one(fd, *sorter.take_waiting(), sorter.keys)
                runs.append(Run(Mapped(fd, end, FLAGS["READ"], FLAGS["SHARED"], building.path), end))
    total = sorter.total
    cursor = Cursor()
    if len(sorter):
        sorter.add_to(cursor)
    for run in reversed(runs):
        cursor.add_run(run)
    return cursor, sorter.keys, total
