"""What is wrong with the delta of a snapshot map: its batches up to where the manifest counts, and the links to them.

What is published stays as it is, and so do the links between published nodes: a writer only puts newer nodes before
them. So what a manifest counts can be checked beside a writer who goes on. Of another boot's delta, and of a copied
one, nobody uses the nodes: there it is the batches that count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from mmapds import files
from mmapds._native import kernel
from mmapds._native.region import Mapping
from mmapds.errors import MappingLost
from mmapds.inspection._base import Report, check_header, check_zero
from mmapds.inspection._snapshot import Place, mapped, mixed, read_record, shown

_HEADS = 2 * kernel.PAGE
_LARGEST = 1 << 34
_NODE = 16
BATCH = 64
_WRITTEN = kernel.PAGE
_ZERO = ((2080, 4096),)
_CHUNK = 1 << 16
_ZEROS = bytes(_CHUNK)
_BATCH_CHECK = 0x6261746368


@dataclass(frozen=True, slots=True)
class Batch:
    """One commit: where it is, and what it says of itself."""

    start: int
    end: int
    count: int
    version: int
    entries: int
    hash: int

    @property
    def records(self) -> int:
        """Where they begin."""
        return self.start + BATCH + _NODE * self.count


def geometry_is_wrong(header: files.Header, size: int) -> str:
    """Why a delta of this size cannot be used; "" if it can."""
    _, stored, buckets = header.options[:3]
    if stored != size or size % 8:
        return f"has {size} bytes, and {stored} belong there: it was cut, or added to"
    if size > _LARGEST or buckets < 1 or start_of(buckets) > size - 8:
        return f"has {size} bytes, and says {buckets} buckets: that cannot be"
    return ""


def start_of(buckets: int) -> int:
    """Where batches begin."""
    return _HEADS + 4 * buckets + 63 & ~63


class Delta:
    """A delta whose size is right, mapped."""

    def __init__(self, mapping: Mapping, header: files.Header) -> None:
        self.mapping = mapping
        self.header = header
        self.buckets = header.options[2]
        self.entries = header.options[3]  # of the map, when the delta was made
        self.start = start_of(self.buckets)
        self.limit = mapping.size - 8
        self.data = memoryview(mapping)
        self.words = self.data.cast("Q")
        self.batches: list[Batch] = []  # those that count; found by `check_delta`
        self.cut = False  # not all that the manifest counts is there

    @property
    def written(self) -> int:
        """End of the last batch that was, or is being, linked."""
        return self.words[_WRITTEN >> 3]

    def batch(self, at: int, end: int) -> Batch | None:
        """The batch at `at`, if its words belong to each other and to this place."""
        if end - at < BATCH:
            return None
        check, digest, size, count, version, entries = self.words[at >> 3 : (at >> 3) + 6].tolist()
        if size < BATCH or size > end - at or size % 8 or count > (size - BATCH) // (_NODE + 8):
            return None
        identity = self.header.identity
        binding = int.from_bytes(identity[:8], "little"), int.from_bytes(identity[8:], "little")
        if check != mixed(_BATCH_CHECK, at, digest, size, count, version, entries, *binding):
            return None
        return Batch(at, at + size, count, version, entries, digest)

    def whole(self, batch: Batch) -> bool:
        """Whether its records match their checksum."""
        return xxhash.xxh3_64_intdigest(self.data[batch.records : batch.end]) == batch.hash

    def walk(self, end: int) -> Iterator[Batch]:
        """The batches up to the first that is damaged."""
        at = self.start
        while at < end and (batch := self.batch(at, end)) is not None:
            yield batch
            at = batch.end

    def later(self, at: int, end: int) -> bool:
        """Whether behind the damaged batch at `at` there is one that is whole."""
        return any(
            (batch := self.batch(place, end)) is not None and self.whole(batch)
            for place in range(at + 8, end - BATCH + 1, 8)
        )

    def records(self, batch: Batch) -> Iterator[tuple[bytes, bool]]:
        """(key, whether it is gone) of each record. The batch has been checked."""
        at = batch.records
        while (record := read_record(self.data, self.words, at, batch.end)) is not None:
            yield record[0], record[1]
            at = record[2]


def open_delta(
    report: Report, where: str, fd: int, path: str, page: bytes, header: files.Header
) -> tuple[Place, Delta | None]:
    """The delta, if it can be read at all."""
    place = Place(report, where)
    check_header(report, where, page, header)
    check_zero(report, where, page, _ZERO)
    if any(header.options[4:]):
        place.error("stores options that this release does not know")
    size = os.fstat(fd).st_size
    if wrong := geometry_is_wrong(header, size):
        place.error(wrong)
        return place, None
    try:
        return place, Delta(mapped(fd, size, path), header)
    except (MappingLost, OSError) as error:
        place.error(f"changed while it was read: {error}")
        return place, None


def check_delta(place: Place, delta: Delta, end: int, version: int, text: bool, ours: bool) -> bool:
    """Whether all is right with what a manifest of `version` counts, the bytes up to `end`. `text`: keys are str.
    `ours`: this boot wrote it, in this very file, so that its links are used."""
    try:
        _Check(place, delta, end, version, text, ours).run()
        delta.mapping.ensure()
    except (MappingLost, OSError) as error:
        place.error(f"changed while it was read: {error}")
    return not place.broken


class _Check:
    def __init__(self, place: Place, delta: Delta, end: int, version: int, text: bool, ours: bool) -> None:
        self.place = place
        self.delta = delta
        self.end = end
        self.version = version
        self.text = text
        self.ours = ours
        self.may_be_torn = not ours and delta.header.durability == "process"  # nobody had synced it
        self.nodes: set[int] = set()  # of published batches, in units of 8
        self.torn = 0  # nodes that nobody uses, and are not what they should be

    def run(self) -> None:
        delta, place, end = self.delta, self.place, self.end
        if delta.words[-1] != kernel.SENTINEL:
            place.error("has no sentinel at its end: was it cut?")
        for start, stop in ((_WRITTEN + 8, _HEADS), (_HEADS + 4 * delta.buckets, delta.start)):
            if any(delta.data[start:stop]):
                place.warning(f"has bytes between its parts, from {start} to {stop}, that are not 0")
        if end < delta.start or end > delta.limit or end % 8:
            place.error(f"has batches from {delta.start} to {delta.limit}, and the manifest counts up to {end}")
            return
        self.check_batches()
        if self.torn:
            place.note(f"{self.torn} nodes are not what was written; another boot's, or a copy's, are not used")
        if self.ours and not place.broken:
            self.check_written()
            self.check_chains()

    # -- batches

    def check_batches(self) -> None:
        delta, place, at, version = self.delta, self.place, self.delta.start, 0
        for batch in delta.walk(self.end):
            whole = delta.whole(batch)
            if not whole and self.may_be_torn:
                break
            at = batch.end
            delta.batches.append(batch)
            if not version < batch.version <= self.version:
                place.error(
                    f"the batch at byte {batch.start} says that it makes version {batch.version}, behind {version} and "
                    f"up to {self.version}"
                )
            version = batch.version
            if any(delta.words[(batch.start >> 3) + 6 : (batch.start >> 3) + 8]):
                place.warning(f"the batch at byte {batch.start} has words that must be 0 and are not")
            if whole:
                self.check_records(batch)
            else:
                place.error(
                    f"the records of the batch at byte {batch.start} (bytes {batch.records} to {batch.end}, version "
                    f"{batch.version}) do not match their checksum"
                )
        if at < self.end and self.may_be_torn and not delta.later(at, self.end):
            delta.cut = True
            place.warning(
                f"the batch at byte {at} is damaged: {self.end - at} bytes of commits are lost, torn when the power "
                "went, or when the map was copied; the map is as it was before them, of "
                f"{delta.batches[-1].entries if delta.batches else delta.entries} entries"
            )
        elif at < self.end:
            place.error(
                f"the batch at byte {at} is damaged: what was committed from there up to {self.end} is not to be had"
            )
        elif delta.batches and version != self.version and not place.broken:
            place.warning(f"its last batch makes version {version}, and the manifest is of version {self.version}")

    def check_records(self, batch: Batch) -> None:
        delta, place, at = self.delta, self.place, batch.records
        for number in range(batch.count):
            record = read_record(delta.data, delta.words, at, batch.end)
            if record is None:
                place.error(
                    f"at byte {at}, where record {number} of the batch at byte {batch.start} should be, is none"
                )
                return
            key, _, end, wrong = record
            if wrong:
                place.error(f"the record at byte {at} (key {shown(key)}) {wrong}")
            if self.text and not key.isascii():
                try:
                    key.decode()
                except UnicodeDecodeError as error:
                    place.error(f"the record at byte {at} has a key that is not UTF-8: {error.reason}")
            self.check_node(batch, number, at, key)
            at = end
        if at != batch.end:
            place.error(f"the records of the batch at byte {batch.start} end at byte {at}, and it ends at {batch.end}")

    def check_node(self, batch: Batch, number: int, at: int, key: bytes) -> None:
        node = (batch.start + BATCH + _NODE * number) >> 3
        links, digest = self.delta.words[node], self.delta.words[node + 1]
        if links >> 32 == at >> 3 and digest == xxhash.xxh3_64_intdigest(key):
            self.nodes.add(node)
        elif self.ours:
            self.place.error(
                f"the node at byte {8 * node} is of byte {links >> 32 << 3} and hash 0x{digest:016x}; its record, of "
                f"key {shown(key)}, is at byte {at}"
            )
        else:
            self.torn += 1

    # -- links

    def check_written(self) -> None:
        written, delta = self.delta.written, self.delta
        if written < self.end and (written or self.end != delta.start):
            self.place.warning(
                f"says that batches were written up to {written}, and the manifest counts up to {self.end}"
            )
        elif written > delta.limit or written % 8:
            self.place.warning(f"says that batches were written up to {written}, where none can end")

    def check_chains(self) -> None:
        """Each chain must fall and stay in its bucket, so that looking at all of them takes no longer than the file."""
        delta, left = self.delta, self.nodes
        farthest = 0
        for first in range(0, delta.buckets, _CHUNK // 4):
            stop = min(first + _CHUNK // 4, delta.buckets)
            heads = bytes(delta.data[_HEADS + 4 * first : _HEADS + 4 * stop])
            if heads == _ZEROS[: len(heads)]:
                continue
            for bucket, at in enumerate(memoryview(heads).cast("I").tolist(), first):
                if at:
                    farthest = max(farthest, at)
                    self.follow(bucket, at)
        if left and not self.place.broken:
            some = ", ".join(str(8 * node) for node in sorted(left)[:5])
            self.place.error(f"{len(left)} records are not found: no chain leads to their nodes, as at byte {some}")
        if 8 * farthest >= max(self.end, delta.written):
            self.place.error(f"its chains begin at byte {8 * farthest}, and batches were written up to {delta.written}")

    def follow(self, bucket: int, at: int) -> None:
        delta, end = self.delta, self.end >> 3
        where = f"the chain of bucket {bucket}"
        while at:
            if at < delta.start >> 3 or 8 * at > delta.limit - _NODE:
                self.place.error(f"{where} leads to byte {8 * at}, where no node can be")
                return
            links, digest = delta.words[at], delta.words[at + 1]
            if digest % delta.buckets != bucket or (at < end and at not in self.nodes):
                self.place.error(f"{where} leads to byte {8 * at}, where no node of its own is")
                return
            self.nodes.discard(at)
            following = links & 0xFFFFFFFF
            if following >= at:
                self.place.error(f"{where} leads from byte {8 * at} to byte {8 * following}: it must fall")
                return
            at = following
