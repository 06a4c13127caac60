"""What is wrong with a layer of a snapshot map: header, parts, checksums, and then each record, and what leads to it.

A block that does not match its checksum is damaged, and said by its number. Where all blocks match, records, guide and
table are held against each other, which finds what was written wrong, or by somebody who computes checksums too. What
it takes of memory depends on the layer's metadata alone: the table is counted and asked, not copied.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator

import msgpack
import xxhash

from mmapds import files
from mmapds._native import kernel
from mmapds._native.region import Mapping
from mmapds.errors import MappingLost
from mmapds.inspection._base import Report, check_header, check_zero
from mmapds.inspection._snapshot import KEY_LIMIT, KEYS, STR, Entry, Place, mapped, read_record, shown

_BLOCK = 65536
_GUIDED = 16
_BUCKET = 8
_ZERO = ((2080, 4096),)  # a layer has an origin, and no holder or failure of its own
_CHUNK = 1 << 16
_OPTIONS = (
    "number", "records", "end", "metadata", "guide", "guides", "common", "table", "buckets", "probes", "sums", "size",
    "keys", "sums_hash",
)  # fmt: skip


def layer_options(header: files.Header) -> dict[str, int]:
    """The header's, by name."""
    return dict(zip(_OPTIONS, header.options, strict=False))


def parts_are_wrong(o: dict[str, int], size: int) -> str:
    """Why the parts do not lie one behind the other in a file of this size; "" if they do."""
    if o["size"] != size:
        return f"has {size} bytes, and {o['size']} belong there: it was cut, or added to"
    blocks = -(-(o["sums"] - kernel.PAGE) // _BLOCK)
    if not kernel.PAGE <= o["end"] <= size or o["end"] % 8 or o["records"] > (o["end"] - kernel.PAGE) // 8:
        return f"cannot have {o['records']} records that end at byte {o['end']}"
    if o["guide"] != (o["end"] + o["metadata"] + 7 & ~7) or o["guides"] != -(-o["records"] // _GUIDED):
        return f"cannot have a guide of {o['guides']} entries at byte {o['guide']}"
    if o["table"] != (o["guide"] + 16 * o["guides"] + 63 & ~63) or o["buckets"] < 1:
        return f"cannot have a table of {o['buckets']} buckets at byte {o['table']}"
    if o["sums"] != o["table"] + 64 * o["buckets"] or o["sums"] + 8 * blocks + 8 != size:
        return f"cannot have its checksums at byte {o['sums']}"
    if not 1 <= o["probes"] <= o["buckets"] or o["common"] > KEY_LIMIT or o["keys"] >= len(KEYS):
        return f"says {o['probes']} probes, {o['common']} bytes that all keys share, and {o['keys']} for their kind"
    return ""


class Layer:
    """A layer whose parts fit together, mapped."""

    def __init__(self, mapping: Mapping, options: dict[str, int]) -> None:
        self.mapping = mapping
        self.options = options
        self.data = memoryview(mapping)
        self.words = self.data.cast("Q")
        self.end = options["end"]
        self.alive = 0  # records that do not say that their key is gone; counted by `check`

    def record(self, at: int) -> Entry | None:
        """The record at an offset, a multiple of 8 that is not before the first."""
        return read_record(self.data, self.words, at, self.end)

    def walk(self) -> Iterator[tuple[bytes, bool]]:
        """(key, whether it is gone) of each record. The layer has been checked."""
        at = kernel.PAGE
        while (record := self.record(at)) is not None:
            yield record[0], record[1]
            at = record[2]

    def lines(self, digest: int) -> Iterator[tuple[int, list[int]]]:
        """The buckets that an entry for this hash may lie in, in order, up to one that is not full; and where."""
        words, first, buckets = self.words, self.options["table"] >> 3, self.options["buckets"]
        bucket = digest * buckets >> 64
        for _ in range(self.options["probes"]):
            at = first + _BUCKET * bucket
            line = words[at : at + _BUCKET].tolist()
            if 0 in line:
                yield at, line[: line.index(0)]
                return
            yield at, line
            bucket = (bucket + 1) % buckets

    def find(self, key: bytes) -> bool | None:
        """Whether the key's record is alive; None if there is none. The layer has been checked."""
        digest = xxhash.xxh3_64_intdigest(key)
        for _, line in self.lines(digest):
            for entry in line:
                if (entry ^ digest) & 0xFFFF == 0 and (record := self.record(entry >> 16 << 3)) and record[0] == key:
                    return not record[1]
        return None


def check_layer(
    report: Report, where: str, fd: int, path: str, page: bytes, header: files.Header, *, bottom: bool
) -> Layer | None:
    """The layer, if nothing is wrong with it. `bottom`: it is the oldest of its map."""
    place = Place(report, where)
    check_header(report, where, page, header)
    check_zero(report, where, page, _ZERO)
    options = layer_options(header)
    size = os.fstat(fd).st_size
    if any(header.options[len(_OPTIONS) :]):
        place.error("stores options that this release does not know")
    if wrong := parts_are_wrong(options, size):
        place.error(wrong)
        return None
    try:
        check = _Check(place, Layer(mapped(fd, size, path), options), bottom)
        check.run()
        check.layer.mapping.ensure()
    except (MappingLost, OSError) as error:
        place.error(f"changed while it was read: {error}")
    place.end()
    return None if place.broken else check.layer


class _Check:
    def __init__(self, place: Place, layer: Layer, bottom: bool) -> None:
        self.place = place
        self.layer = layer
        self.bottom = bottom
        self.o = layer.options
        self.table = layer.options["table"] >> 3

    def run(self) -> None:
        o, data = self.o, self.layer.data
        if self.layer.words[-1] != kernel.SENTINEL:
            self.place.error("has no sentinel at its end: was it cut?")
        self.check_blocks()
        if self.place.broken:
            return  # what is in a damaged block is not looked at
        for start, stop in ((o["end"] + o["metadata"], o["guide"]), (o["guide"] + 16 * o["guides"], o["table"])):
            if any(data[start:stop]):  # less than 64
                self.place.warning(f"has bytes between its parts, from {start} to {stop}, that are not 0")
        self.check_records()
        self.check_strays()
        self.check_metadata()

    # -- blocks

    def check_blocks(self) -> None:
        o, data = self.o, self.layer.data
        sums = o["sums"]
        if xxhash.xxh3_64_intdigest(data[sums:-8]) != o["sums_hash"]:
            self.place.error(f"the checksums of its blocks (bytes {sums} to {o['size'] - 8}) are not what was written")
        for number, start in enumerate(range(kernel.PAGE, sums, _BLOCK)):
            stop = min(start + _BLOCK, sums)
            stored = self.layer.words[(sums >> 3) + number]
            computed = xxhash.xxh3_64_intdigest(data[start:stop])
            if computed != stored:
                self.place.error(
                    f"block {number} (bytes {start} to {stop}: {self.what_is_at(start, stop)}) is damaged: checksum "
                    f"0x{stored:016x} stored, 0x{computed:016x} computed"
                )

    def what_is_at(self, start: int, stop: int) -> str:
        o = self.o
        parts = (
            ("records", kernel.PAGE, o["end"]),
            ("metadata", o["end"], o["end"] + o["metadata"]),
            ("guide", o["guide"], o["guide"] + 16 * o["guides"]),
            ("table", o["table"], o["sums"]),
        )
        return ", ".join(name for name, begin, end in parts if begin < stop and end > start and begin < end)

    # -- records

    def check_records(self) -> None:
        o, layer, place = self.o, self.layer, self.place
        at, count, common = kernel.PAGE, 0, o["common"]
        first = before = b""
        text = o["keys"] == STR
        while at < layer.end:
            record = layer.record(at)
            if record is None:
                place.error(f"at byte {at}, where record {count} should be, is none: what follows was not looked at")
                return
            key, gone, end, wrong = record
            if wrong:
                place.error(f"record {count} (byte {at}, key {shown(key)}) {wrong}")
            if count == 0:
                first = key
            elif key <= before:
                what = "has the key of the one before it" if key == before else "has a key that belongs before"
                place.error(f"record {count} (byte {at}, key {shown(key)}) {what}: {shown(before)}")
            if text and not key.isascii():
                self.check_text(key, count, at)
            if count % _GUIDED == 0:
                self.check_guide(key, count // _GUIDED, at, common)
            self.check_table(key, count, at)
            layer.alive += not gone
            before, at, count = key, end, count + 1
        if count != o["records"]:
            place.error(f"has {count} records, and its header says {o['records']}")
        elif count and (len(first) < common or first[:common] != before[:common]):
            place.error(f"says that all keys share {common} bytes, and {shown(first)} and {shown(before)} do not")
        if count and not o["keys"]:
            place.error("has records, and its header does not say whether keys are str or bytes")
        if self.bottom and layer.alive != count:
            place.warning(f"is the oldest, and {count - layer.alive} records hide what nothing older says")

    def check_text(self, key: bytes, count: int, at: int) -> None:
        try:
            key.decode()
        except UnicodeDecodeError as error:
            self.place.error(
                f"record {count} (byte {at}, key {shown(key)}) has a key that is not UTF-8: {error.reason}"
            )

    def check_guide(self, key: bytes, number: int, at: int, common: int) -> None:
        if number >= self.o["guides"]:
            return  # there are more records than the header says
        index = (self.o["guide"] >> 3) + 2 * number
        prefix, offset = self.layer.words[index], self.layer.words[index + 1]
        expected = int.from_bytes(key[common : common + 8].ljust(8, b"\0"), "big")
        if (prefix, offset) != (expected, at):
            self.place.error(
                f"entry {number} of the guide says 0x{prefix:016x} at byte {offset}; the record is at byte {at}, with "
                f"0x{expected:016x}"
            )

    def check_table(self, key: bytes, count: int, at: int) -> None:
        digest = xxhash.xxh3_64_intdigest(key)
        entry = at >> 3 << 16 | digest & 0xFFFF
        first = self.table + _BUCKET * (digest * self.o["buckets"] >> 64)
        line = self.layer.words[first : first + _BUCKET].tolist()
        if entry in line and 0 not in line[: line.index(entry)]:  # as for nearly all, without a generator
            return
        for _, line in self.layer.lines(digest):
            if entry in line:
                return
        self.place.error(f"record {count} (byte {at}, key {shown(key)}) is not found through the table")

    # -- the rest

    def check_strays(self) -> None:
        """Each record has been found by an entry of its own: so there is one for nothing only if there are more."""
        o, words = self.o, self.layer.words
        first, last = o["table"] >> 3, o["sums"] >> 3
        pieces = range(first, last, _CHUNK)
        there = sum(
            len(piece) - piece.count(0) for piece in (words[at : min(at + _CHUNK, last)].tolist() for at in pieces)
        )
        if there == o["records"]:
            return
        if self.place.broken:
            self.place.error(f"its table has {there} entries, and there are {o['records']} records")
            return
        for at in range(first, last):
            if words[at] and not self.leads_here(words[at], at):
                bucket, number = divmod(at - first, _BUCKET)
                self.place.error(
                    f"entry {number} of bucket {bucket} of its table (byte {8 * at}) is for byte "
                    f"{words[at] >> 16 << 3}, and of no record's"
                )

    def leads_here(self, entry: int, at: int) -> bool:
        """Whether this is the entry of a record. Records and guide are right."""
        o, words = self.o, self.layer.words
        offset = entry >> 16 << 3
        number = bisect_right(range(o["guides"]), offset, key=lambda n: words[(o["guide"] >> 3) + 2 * n + 1]) - 1
        if number < 0 or offset >= o["end"]:
            return False
        start = words[(o["guide"] >> 3) + 2 * number + 1]
        while start < offset:
            record = self.layer.record(start)
            if record is None:
                return False
            start = record[2]
        record = self.layer.record(start)
        if start != offset or record is None:
            return False
        digest = xxhash.xxh3_64_intdigest(record[0])
        for index, line in self.layer.lines(digest):
            if entry in line:
                return index + line.index(entry) == at
        return False

    def check_metadata(self) -> None:
        o = self.o
        if o["metadata"]:
            try:
                msgpack.unpackb(self.layer.data[o["end"] : o["end"] + o["metadata"]], raw=False, strict_map_key=False)
            except (ValueError, TypeError, RecursionError, OverflowError) as error:
                self.place.error(f"its metadata ({o['metadata']} bytes at byte {o['end']}) cannot be decoded: {error}")
