"""The files of a snapshot map: a directory with the manifest's three, layers, and a delta.

Promises
    A layer gets its name when it is complete and on the disk, whatever the durability: what a manifest names can be
    trusted after a power cut, and a layer never has to be read to find out. A file is removed only when what replaces
    it is on the disk, with the manifest that says so. Numbers are never used twice; what a writer that died has left
    behind is removed by the next one.

A layer that lies in another file than it was written to (a copy of the map) is verified block by block, as each is
used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress

from mmapds import files
from mmapds._manifest import DeltaRef, LayerRef
from mmapds._native import kernel
from mmapds._native.region import FLAGS, Mapping
from mmapds._native.snapbuild import BLOCK, GUIDED, Output, buckets_for, write_index, write_records, write_sums
from mmapds._native.snapcursor import Cursor
from mmapds._native.snaplayer import Delta, Layer
from mmapds.errors import CorruptionError, IncompatibleFormat

MANIFEST = "manifest"
NAME = re.compile(r"([0-9a-f]{16})\.(layer|delta)")
DELTA_SIZE = 4 << 20  # of a small map
DELTA_BUCKETS = 1 << 15
LARGE = 32  # a map of so many times that has a delta four times as large: its layers are rewritten less often

Progress = Callable[[str, int, int | None], object]


def is_map(path: str) -> bool:
    """Whether there is a snapshot map, as far as names tell."""
    return os.path.lexists(os.path.join(path, MANIFEST + "_sync"))


class MapFiles:
    """The directory of one handle. `identity`: of the map."""

    __slots__ = ("delta_size", "durability", "identity", "path", "populate", "verify")

    def __init__(self, path: str, identity: bytes, *, durability: str, verify: bool, populate: bool) -> None:
        self.path = path
        self.identity = identity
        self.durability = durability
        self.verify = verify
        self.populate = populate
        self.delta_size = DELTA_SIZE

    @staticmethod
    def make_directory(path: str) -> None:
        """Makes the directory of a map, or checks that one may be made in what is there."""
        made = False
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
            made = True
        if made or is_map(path):
            return
        found = sorted(name for name in os.listdir(path) if not name.startswith("."))
        if found and not is_map(path):
            raise IncompatibleFormat(
                f"{path} is a directory with other files ({', '.join(found[:3])}) and without the manifest of a "
                "snapshot map: give another path, or an empty directory"
            )

    def name(self, number: int, kind: str) -> str:
        """Where a file is."""
        return os.path.join(self.path, f"{number:016x}.{kind}")

    # ---- opening --------------------------------------------------------------------------------------------------

    def _open(self, number: int, kind: str, identity: bytes, *, writable: bool) -> files.OpenFile:
        """FileNotFoundError if it is gone."""
        path = self.name(number, kind)
        try:
            opened = files.OpenFile(path, kind, writable=writable)
        except IncompatibleFormat as error:
            raise CorruptionError(
                f"{path} is not the {kind} that the manifest names: it was cut, or something else was written there. "
                "Restore a copy"
            ) from error
        header = opened.header
        if header.identity != identity or header.parent != self.identity or header.options[0] != number:
            opened.close()
            raise CorruptionError(
                f"{path} is not the {kind} that the manifest names: were files of another map copied here? Restore "
                "a copy"
            )
        return opened

    def layer(self, ref: LayerRef) -> Layer:
        """Maps a layer. FileNotFoundError if it is gone."""
        opened = self._open(ref.number, "layer", ref.identity, writable=False)
        try:
            flags = FLAGS["SHARED"] | (FLAGS["POPULATE"] if self.populate else 0)
            size = opened.size  # once: whoever cuts it after this look makes it a lost mapping
            if size < kernel.PAGE + 80 or size != ref.bytes or opened.header.options[1] != ref.records:
                raise CorruptionError(
                    f"{opened.path} has {size} bytes and says {opened.header.options[1]} records; the manifest "
                    f"names it with {ref.bytes} and {ref.records}: restore a copy"
                )
            mapping = Mapping(opened.fd, size, FLAGS["READ"], flags, opened.path)
            header = opened.header
            status = os.fstat(opened.fd)
            moved = (header.device, header.inode) != (status.st_dev, status.st_ino)
            return Layer(mapping, ref.number, ref.identity, header.options, self.verify or moved)
        finally:
            opened.close()

    def delta(self, ref: DeltaRef, *, writable: bool) -> tuple[Delta, bool]:
        """Maps the delta, and says whether this boot wrote it, in this very file: else its links are not to be trusted.
        FileNotFoundError if it is gone."""
        opened = self._open(ref.number, "delta", ref.identity, writable=writable)
        try:
            size = opened.size
            if size < 3 * kernel.PAGE:
                raise CorruptionError(f"{opened.path} has {size} bytes: restore a copy")
            protection = FLAGS["READ"] | (FLAGS["WRITE"] if writable else 0)
            mapping = Mapping(opened.fd, size, protection, FLAGS["SHARED"], opened.path)
            ours = opened.same_origin()
            own = not writable and (self.verify or not ours)
            return Delta(mapping, ref.number, ref.identity, opened.header.options, own), ours
        finally:
            opened.close()

    # ---- making ---------------------------------------------------------------------------------------------------

    def new_delta(self, number: int, entries: int, below: int) -> DeltaRef:
        """A delta without a batch, over a map of so many entries, and so many bytes."""
        path = self.name(number, "delta")
        times = 4 if below >= LARGE * self.delta_size else 1
        size, buckets = self.delta_size * times, DELTA_BUCKETS * times
        page = files.new_header(
            "delta",
            durability=self.durability,
            options=(number, size, buckets, entries),
            parent=self.identity,
        )
        end = kernel.SENTINEL.to_bytes(8, "little")
        files.create(path, page, size, durability=self.durability, permissions=self._permissions(), end=end)
        start = _up(2 * kernel.PAGE + 4 * buckets, 64)
        return DeltaRef(number, files.identity_of(page), start)

    def new_layer(
        self,
        number: int,
        cursor: Cursor,
        *,
        keys: int,
        bottom: bool,
        now: int,
        metadata: bytes = b"",
        progress: Progress | None = None,
        total: int | None = None,
    ) -> tuple[LayerRef | None, int]:
        """Writes a layer of what the cursor walks, to the disk, and how many of its entries have lapsed; None if
        nothing was left to write. `bottom`: there is no older one below.
        """
        path = self.name(number, "layer")

        def tell(stage: str) -> Callable[[int], object] | None:
            return None if progress is None else lambda done: progress(stage, done, total)

        with files.unnamed(path, self._permissions()) as (fd, publish):
            files.check_filesystem(fd, path, self.durability)
            try:
                output = Output(fd)
                end, records, lapsed = write_records(output, cursor, bottom, now, tell("write"))
                if not records and not metadata:
                    return None, lapsed
                total = records
                output.add(metadata)
                guide = _up(end + len(metadata), 8)
                guides = -(-records // GUIDED)
                table = _up(guide + 16 * guides, 64)
                buckets = buckets_for(records)
                sums = table + 64 * buckets
                size = sums + 8 * -(-(sums - kernel.PAGE) // BLOCK) + 8
                output.zeros(size)  # all of it has its place on the disk now
            except OSError as error:
                error.filename = path
                raise
            mapping = Mapping(fd, size, FLAGS["READ"] | FLAGS["WRITE"], FLAGS["SHARED"], path)
            common, probes = write_index(mapping, end, guide, table, buckets, tell("index"))
            checked = write_sums(mapping, sums)
            page = files.new_header(
                "layer",
                durability=self.durability,
                options=(
                    number, records, end, len(metadata), guide, guides, common, table, buckets, probes, sums, size,
                    keys, checked,
                ),
                parent=self.identity,
            )  # fmt: skip
            files.set_origin(fd, page)
            os.pwrite(fd, page, 0)
            if progress is not None:
                progress("sync", records, records)
            files.sync(fd, path)
            publish()
        files.sync_directory(path)
        return LayerRef(number, files.identity_of(page), records, size), lapsed

    def _permissions(self) -> int:
        """Those of the manifest: an operator may have let readers in."""
        return os.stat(os.path.join(self.path, MANIFEST + "_sync"), follow_symlinks=False).st_mode & 0o777

    # ---- removing -------------------------------------------------------------------------------------------------

    def leftovers(self, wanted: set[int]) -> list[str]:
        """Files that no manifest names any more, or never has."""
        left = []
        for name in os.listdir(self.path):
            found = NAME.fullmatch(name)
            if (found and int(found[1], 16) not in wanted) or re.fullmatch(r"\..*\.[0-9a-f]{8}\.tmp", name):
                left.append(os.path.join(self.path, name))
        return left

    @staticmethod
    def remove(paths: list[str]) -> None:
        """They live on in the mappings of who reads them."""
        for path in paths:
            with suppress(FileNotFoundError):
                os.unlink(path)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
