"""Small real files of every format, mapped by the fuzzer, to be damaged and mended thousands of times a second.

A `Place` is a directory with the files of one structure, made by the structure itself. Its files are mapped here,
shared: an edit is a store, and mending takes the stores back, so that an execution costs no copy of a file. Each kind
of place knows where its words are (`hot` spans and `fields`, which mutations prefer) and how to make its checksums
right again after an edit (`repair`), so that the code behind the checks is reached too. What a place may rightly show
is kept with it.

Offsets and checks are those of `tests/support`, which are written down a second time there on purpose.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import counterfiles
import queuefiles
import snapdisk
import snapmaps
import syncfiles
import xxhash

from mmapds import Counters, Queue, SnapshotMap, Synchronizer, files

PAGE = 4096
MAGIC = b"\x89mmapds\n"
HEADER_FIELDS = (
    (0, 8), (8, 4), (12, 2), (14, 2), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8), (56, 8), (64, 8), (72, 4), (76, 4),
    (80, 8), (88, 8), *((96 + 8 * n, 8) for n in range(15)), (352, 8), (2040, 8), (2048, 8), (2064, 8), (2072, 8),
    (2112, 8), (2176, 8),
)  # fmt: skip
_pack = struct.Struct("<Q").pack


class Part:
    """A file of a place: what it was, and what it is now."""

    def __init__(self, folder: str, name: str) -> None:
        self.name = name
        self.path = os.path.join(folder, name)
        self.hot: list[tuple[int, int]] = []
        self.fields: list[tuple[int, int]] = []
        self.original = b""
        self.open()

    def open(self) -> None:
        """Maps what is there now."""
        with open(self.path, "r+b") as file:
            status = os.fstat(file.fileno())
            self.size, self.inode = status.st_size, status.st_ino
            self.map = mmap.mmap(file.fileno(), self.size)
        self.original = self.map[:]
        self.limits = [
            self.size, self.size - 1, self.size + 1, self.size - 8, self.size + 8, self.size - PAGE, self.size + PAGE,
            self.size - PAGE - 8, self.size // 8, self.size // PAGE,
        ]  # fmt: skip

    def header(self) -> None:
        """It starts with a header page."""
        self.hot += [(0, 96), (96, 240), (352, 384), (2040, 2080), (2112, 2184)]
        self.fields += HEADER_FIELDS

    def word(self, offset: int) -> int:
        """The word there now."""
        return int.from_bytes(self.map[offset : offset + 8], "little")


class Place:
    """The files of one structure."""

    kind = ""
    has_checksums = True

    def __init__(self, folder: str) -> None:
        os.makedirs(folder)
        self.folder = folder
        self.undo: list[tuple[Part, int, bytes]] = []
        self.resized: list[Part] = []
        self.generation = 0  # grows when files are replaced by new ones
        self.make()
        names = [os.path.relpath(os.path.join(at, name), folder) for at, _, found in os.walk(folder) for name in found]
        self.parts = [Part(folder, name) for name in sorted(names)]
        self.by_name = {part.name: part for part in self.parts}
        self.folders = {os.path.dirname(part.name) for part in self.parts}
        for part in self.parts:
            if part.original.startswith(MAGIC):
                part.header()
        self.find()
        self.choices = [part for part in self.parts for _ in range(self.weight(part))]

    # ---- what each kind says ---------------------------------------------------------------------------------------

    def make(self) -> None:
        """Makes the files."""
        raise NotImplementedError

    def find(self) -> None:
        """Adds to the spans and fields of the parts, and keeps what may be shown."""

    def weight(self, part: Part) -> int:
        """How often a part is chosen."""
        return 1

    def repair(self, touched: list[tuple[Part, int, int]]) -> None:
        """Makes all checksums right that cover what was touched."""

    # ---- editing ---------------------------------------------------------------------------------------------------

    def edit(self, part: Part, offset: int, data: bytes) -> None:
        """Writes there, until `mend`."""
        found = part.map
        end = offset + len(data)
        self.undo.append((part, offset, found[offset:end]))
        found[offset:end] = data

    def poke(self, part: Part, offset: int, value: int) -> None:
        """The same for a word."""
        self.edit(part, offset, _pack(value & 0xFFFFFFFFFFFFFFFF))

    def resize(self, part: Part, size: int) -> None:
        """Cuts or extends the file, until `mend`: the last of all edits."""
        self.resized.append(part)
        with contextlib.suppress(FileNotFoundError):  # somebody who works with it has removed it
            os.truncate(part.path, size)

    def mend(self) -> None:
        """As it was, if nobody else has written."""
        for part in self.resized:
            try:
                cut = os.stat(part.path).st_size
                os.truncate(part.path, part.size)
            except FileNotFoundError:  # somebody who works with it has removed it
                continue
            if cut < part.size:
                part.map[cut:] = part.original[cut:]
        self.resized.clear()
        for part, offset, old in reversed(self.undo):
            part.map[offset : offset + len(old)] = old
        self.undo.clear()

    def reset(self) -> None:
        """As it was, whatever was done to it."""
        self.undo.clear()
        self.resized.clear()
        found: dict[str, int] = {}
        for folder in self.folders:
            for entry in os.scandir(os.path.join(self.folder, folder)):
                name = os.path.join(folder, entry.name)
                if name in self.by_name:
                    found[name] = entry.inode()
                elif entry.is_dir(follow_symlinks=False):
                    if name not in self.folders:
                        shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
        for part in self.parts:
            if found.get(part.name) == part.inode:
                if os.stat(part.path).st_size != part.size:
                    os.truncate(part.path, part.size)
                part.map[:] = part.original
            else:
                self.put(part)
                self.generation += 1

    def put(self, part: Part) -> None:
        """A new file of the old content, which is no copy to who looks at inodes."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part.path)
        old = part.inode
        Path(part.path).write_bytes(part.original)
        inode = os.stat(part.path).st_ino
        if part.original[:8] == MAGIC and part.original[2072:2080] == _pack(old):
            with open(part.path, "r+b") as file:
                file.seek(2072)
                file.write(_pack(inode))
        part.open()

    # ---- keeping what was found ------------------------------------------------------------------------------------

    def keep(self, target: str) -> None:
        """Copies the files as they are now, holes and all, so that `load` finds them again."""
        os.makedirs(target)
        for part in self.parts:
            with contextlib.suppress(FileNotFoundError):
                size = os.stat(part.path).st_size
                os.makedirs(os.path.dirname(os.path.join(target, part.name)), exist_ok=True)
                with open(part.path, "rb") as source, open(os.path.join(target, part.name), "wb") as copy:
                    copy.write(source.read(min(size, part.size + (1 << 20))))
                    copy.truncate(min(size, 1 << 40))
        inodes = {part.name: part.inode for part in self.parts}
        Path(target, "place.json").write_text(json.dumps({"kind": self.kind, "inodes": inodes}))

    def load(self, source: str) -> None:
        """Makes the files what `keep` has kept."""
        inodes = json.loads(Path(source, "place.json").read_text())["inodes"]
        for part in self.parts:
            with open(os.path.join(source, part.name), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                content = file.read(part.size)
            if content[:8] == MAGIC and content[2072:2080] == _pack(inodes[part.name]):
                content = content[:2072] + _pack(part.inode) + content[2080:]
            self.edit(part, 0, content)
            if size != part.size:
                self.resize(part, size)


def seal(place: Place, part: Part) -> None:
    """The header's check."""
    place.poke(part, 2040, xxhash.xxh3_64_intdigest(part.map[:2040]))


def seal_touched(place: Place, touched: list[tuple[Part, int, int]]) -> None:
    """Of all headers that were touched."""
    done: set[str] = set()
    for part, start, _ in touched:
        if start < 2040 and part.fields and part.name not in done and part.original[:8] == MAGIC:
            done.add(part.name)
            seal(place, part)


# ---- a Synchronizer ------------------------------------------------------------------------------------------------


def pattern(n: int, size: int) -> bytes:
    """A value that says all over which version it belongs to."""
    return n.to_bytes(8, "little") * (size // 8)


class SyncPlace(Place):
    """Versions 6 and 7."""

    kind = "sync"
    codec = "raw"
    stem = "value"

    def make(self) -> None:
        self.prefix = os.path.join(self.folder, self.stem)
        with Synchronizer(self.prefix, codec=self.codec, schema="a text") as s:
            for n in range(1, 8):
                s.write_bytes(pattern(n, 400 + 8 * n))
        self.known = {n: pattern(n, 400 + 8 * n) for n in (6, 7)}

    def find(self) -> None:
        self.control = self.by_name[self.stem + "_sync"]
        self.data = [self.by_name[f"{self.stem}_data_{index}"] for index in (0, 1)]
        self.identity = self.control.original[32:48]
        self.control.hot += [(4096, 4416)] * 3 + [(8176, 8192), (8192, 8448)]
        records = [(at + 8 * n, 8) for at in syncfiles.RECORDS for n in range(5)]
        self.control.fields += [(4096, 8), *records, (4288, 4), (4352, 8), (8184, 8), (8192, 8), (8200, 8)] * 2
        for data in self.data:
            data.hot += [(4096, 4600), (8184, 8192)]

    def weight(self, part: Part) -> int:
        return {"sync": 3, "_0": 1}.get(part.name[-4:], 2)

    def repair(self, touched: list[tuple[Part, int, int]]) -> None:
        seal_touched(self, touched)
        control = self.control
        for index, at in enumerate(syncfiles.RECORDS):
            data = self.data[index]
            changed = any(part is control and start < at + 32 and stop > at for part, start, stop in touched)
            if any(part is data and stop > PAGE for part, _, stop in touched):
                changed = True
                size = control.word(at + 8)
                if size <= data.size - PAGE:
                    self.poke(control, at + 16, xxhash.xxh3_64_intdigest(data.map[PAGE : PAGE + size]))
            if changed:
                words = struct.unpack("<3Q", control.map[at : at + 24])
                self.poke(control, at + 24, syncfiles.record_check(self.identity, *words))


class ObjectPlace(SyncPlace):
    """The same with objects, which must be decoded."""

    kind = "sync of objects"
    codec = "msgpack"

    def make(self) -> None:
        self.prefix = os.path.join(self.folder, self.stem)
        with Synchronizer(self.prefix) as s:
            for n in range(1, 8):
                s.write({"version": n, "list": [1.5, None, True, -1, "text", b"bytes"] * 3, "deep": [[[[{"a": n}]]]]})
        self.known = {}


class CratePlace(Place):
    """The files of mmap-sync."""

    kind = "mmap-sync"

    def make(self) -> None:
        self.prefix = os.path.join(self.folder, "value")
        with Synchronizer(self.prefix, protocol="mmap-sync", codec="raw") as s:
            for n in range(1, 8):
                s.write_bytes(pattern(n, 400 + 8 * n))
        self.known = {pattern(n, 400 + 8 * n) for n in (6, 7)}

    def find(self) -> None:
        self.state = self.by_name["value_state"]
        self.data = [self.by_name[f"value_data_{index}"] for index in (0, 1)]
        self.state.hot = [(0, 16), (0, 8)]
        self.state.fields = [(0, 8), (8, 4), (12, 4)]
        for data in self.data:
            data.hot = [(0, data.size)]

    def weight(self, part: Part) -> int:
        return 3 if part.name.endswith("state") else 1

    def repair(self, touched: list[tuple[Part, int, int]]) -> None:
        word = self.state.word(0)
        data, size = self.data[word & 1], word >> 1 & (1 << 39) - 1
        if size <= data.size:
            check = xxhash.xxh3_64_intdigest(data.map[:size]) & 0xFFFFFF
            self.poke(self.state, 0, word & (1 << 40) - 1 | check << 40)


# ---- counters ------------------------------------------------------------------------------------------------------


class CountersPlace(Place):
    """80 names and a removed one, in several extents."""

    kind = "counters"

    def make(self) -> None:
        self.path = os.path.join(self.folder, "counters")
        with Counters(self.path, 4) as c:
            for n in range(80):
                c[f"name {n}" + "é" * (n % 9)] = n
            c.remove("name 9")
            c[3] = 33
            self.names = list(c)

    def find(self) -> None:
        part = self.part = self.parts[0]
        found = self.found = counterfiles.Snapshot(self.path)
        self.identity = found.identity
        assert len(found.extents) >= 2
        self.entries = [found.entry(number).offset for number in range(found.names)]
        part.hot += [(4096, 4192), (4608, 4608 + 32 * (len(found.extents) + 1))] * 3
        part.hot += [(self.entries[0], self.entries[0] + 600), (self.entries[-1], self.entries[-1] + 272)]
        part.hot += [(extent.end - 16, extent.end) for extent in found.extents]
        part.hot += [(self.entries[9], self.entries[9] + 40)]
        words = [4096, 4104, 4160, 4168, 4176, 4184]
        words += [4608 + 8 * n for n in range(4 * (len(found.extents) + 1))]
        words += [at + 8 * n for at in self.entries[:3] for n in range(3)]
        part.fields += [(at, 8) for at in words] * 2

    def repair(self, touched: list[tuple[Part, int, int]]) -> None:
        seal_touched(self, touched)
        part = self.part
        for at in (4096, 4160, 4168):
            if any(start < at + 8 and stop > at for _, start, stop in touched):
                self.poke(part, at, counterfiles.count(part.word(at) & 0xFFFFFFFF, self.identity))
        for number in range(len(self.found.extents) + 1):
            at = 4608 + 32 * number
            if any(start < at + 32 and stop > at for _, start, stop in touched):
                check = counterfiles.extent_check(number, part.word(at), part.word(at + 8), self.identity)
                self.poke(part, at + 24, check)
        for number, at in enumerate(self.entries):
            if any(start < at + 272 and stop > at + 8 for _, start, stop in touched):
                length = part.map[at + 16]
                name = part.map[at + 17 : at + 17 + length]
                self.poke(part, at + 8, counterfiles.entry_check(number, name, self.identity))


class EmmapPlace(Place):
    """The counters of emmap."""

    kind = "emmap"
    has_checksums = False

    def make(self) -> None:
        self.path = os.path.join(self.folder, "counters")
        with Counters(self.path, 20, layout="emmap") as c:
            for n in range(20):
                c[n] = n

    def find(self) -> None:
        self.part = self.parts[0]
        self.part.hot = [(0, 16), (8, 16), (0, self.part.size)]
        self.part.fields = [(0, 8), (8, 8)]


# ---- a queue -------------------------------------------------------------------------------------------------------

SEGMENT = 8192


class QueuePlace(Place):
    """Items that wait as they were put, delayed, returned, sent to the back, compressed and large; some are done."""

    kind = "queue"

    def make(self) -> None:
        self.path = os.path.join(self.folder, "queue")
        choose = random.Random(7)
        items = [b"%d " % n * (n % 37) for n in range(1, 41)] + [b"again and again " * 40, choose.randbytes(9000)]
        with Queue(self.path, codec="raw", segment_size=SEGMENT, compress="zlib:6:300") as q:
            q.put_many(items)
            q.put(b"later", delay=86400.0)
            assert q.get_many(4) == items[:4]
            claims = q.claim_many(6)
            claims[0].nack(0)
            claims[1].nack(0.0, to_back=True)
            claims[2].nack(86400.0)
            self.dead(claims[3])
        self.items = {*items, b"later", b"new"}

    def dead(self, claim: Any) -> None:
        """What becomes of one claim."""
        claim.nack(0)

    def find(self) -> None:
        self.queues = [QueueIn(self, "queue")]

    def weight(self, part: Part) -> int:
        return 4 if part.name.endswith("meta") else 1

    def repair(self, touched: list[tuple[Part, int, int]]) -> None:
        seal_touched(self, touched)
        for queue in self.queues:
            queue.repair(touched)


class LettersPlace(QueuePlace):
    """The same with dead letters."""

    kind = "dead letters"

    def dead(self, claim: Any) -> None:
        claim.bury("no reason")

    def find(self) -> None:
        self.queues = [QueueIn(self, "queue"), QueueIn(self, "queue/dead")]

    def weight(self, part: Part) -> int:
        return 4 if "dead" in part.name else 1


class QueueIn:
    """Where in a place the words and records of a queue are."""

    def __init__(self, place: QueuePlace, folder: str) -> None:
        self.place = place
        path = os.path.join(place.folder, folder)
        found = queuefiles.Snapshot(path)
        self.meta = place.by_name[folder + "/meta"]
        self.key = found.key
        self.size = found.segment_size
        self.segments = {n: place.by_name[f"{folder}/{n:016x}.segment"] for n in found.files}
        used = queuefiles.ENTRIES + 96 * found.words["used"]
        meta = self.meta
        meta.hot += [(4096, 4144), (4224, 4272), (4352, 4448)] * 3 + [(4480, 4896), (8192, 8256), (12288, 12416)]
        meta.hot += [(queuefiles.ENTRIES, used)] * 3 + [(81904, 81920)]
        meta.fields += [(at, 8) for at in queuefiles.WORDS.values()] * 2
        meta.fields += [(12288 + 8 * n, 8) for n in range(5)]
        for n in range(min(found.words["used"], 8)):
            at = queuefiles.ENTRIES + 96 * n
            meta.fields += [(at + 8 * word, 8) for word in range(7)] + [(at + 56 + 4 * half, 4) for half in range(10)]
        self.records: list[tuple[Part, int, int, int]] = []  # part, first byte, end, position
        for number, content in found.files.items():
            part, at = self.segments[number], PAGE
            while at + queuefiles.HEAD <= len(content):
                _, _, order, extent = struct.unpack_from("<4Q", content, at)
                size = extent & (1 << 40) - 1
                if not any(content[at : at + 32]):
                    break
                head = queuefiles.DELAYED_HEAD if order & queuefiles.DELAYED else queuefiles.HEAD
                end = at + head + (size + 7) // 8 * 8
                if end > len(content):
                    break
                self.records.append((part, at, end, number * self.size + at))
                part.fields += [(at + 8 * word, 8) for word in range(11)]
                part.hot.append((at, min(at + 96, end)))
                if order & queuefiles.END:
                    break
                at = end
            part.hot.append((PAGE, at))

    def repair(self, touched: list[tuple[Part, int, int]]) -> None:
        """Records, each by its own words."""
        poke = self.place.poke
        for changed, start, stop in touched:
            for part, at, end, position in self.records:
                if part is not changed or start >= end or stop <= at:
                    continue
                words = struct.unpack_from("<8Q", part.map, at + 8)
                size = words[2] & (1 << 40) - 1
                delayed = words[1] & queuefiles.DELAYED
                begin = at + (queuefiles.DELAYED_HEAD if delayed else queuefiles.HEAD)
                digest = words[0]
                if begin + size <= part.size:
                    digest = xxhash.xxh3_64_intdigest(part.map[begin : begin + size])
                    poke(part, at + 8, digest)
                more = struct.unpack_from("<2Q", part.map, at + 72) if delayed and at + 88 <= part.size else (0, 0)
                poke(part, at, queuefiles.item_check((digest, *words[1:4], *more), position, self.key))
                number = words[4] & 0xFFFFFFFF
                state = queuefiles.item_state(number & 15, number >> 4, words[5:8], position, self.key)
                poke(part, at + 40, state)


# ---- a snapshot map ------------------------------------------------------------------------------------------------


class MapPlace(SyncPlace):
    """Two layers, and a delta of several batches."""

    kind = "snapshot map"
    stem = "map/manifest"

    def make(self) -> None:
        snapdisk.tiny()
        self.path = os.path.join(self.folder, "map")
        self.prefix = os.path.join(self.path, "manifest")
        self.versions: list[dict[str, bytes]] = []
        SnapshotMap.build(
            self.path, {f"k/{n:03}": b"%d." % n * (n % 9) for n in range(0, 240, 2)}, codec="raw", metadata={"of": [1]}
        )
        with SnapshotMap(self.path) as m:
            self.versions += [{}, dict(m)]

            def commit(change: Callable[[Any], object]) -> None:
                with m.transaction() as txn:
                    change(txn)
                self.versions.append(dict(m))

            for n in range(1, 9, 2):
                commit(lambda txn, n=n: txn.update({f"k/{n:03}": b"odd %d" % n, f"k/{2 * n:03}": b"new %d" % n}))
            commit(lambda txn: txn.pop("k/100"))
            before, m._files.delta_size = m._files.delta_size, 2
            commit(lambda txn: txn.update({"k/102": b"folded"}))
            m._files.delta_size = before
            for n in range(11, 41, 6):
                commit(lambda txn, n=n: txn.update({f"k/{n + 2 * i:03}": b"delta %d" % n * i for i in range(4)}))
            commit(lambda txn: (txn.pop("k/104"), txn.pop("k/011"), txn.set("k/013", b"for long", 1e7)))
            stats = m.stats()
            assert stats["delta"], stats
            self.layer_count = len(stats["layers"])
        snapmaps.check(self.path)
        self.history: dict[str, set[Any]] = {}
        every = {key for version in self.versions for key in version}
        self.history = {key: {version.get(key) for version in self.versions} for key in every}

    def find(self) -> None:
        super().find()
        self.known = {}
        manifest = snapdisk.read_manifest(self.path)
        newest = self.data[manifest.version & 1]
        newest.hot += [(PAGE, PAGE + 96 + 48 * len(manifest.layers))] * 3
        newest.fields += [(PAGE + at, 8) for at in range(0, 96 + 48 * len(manifest.layers), 8)]
        self.manifest, self.newest = manifest, newest
        self.layers = [self.by_name[f"map/{ref.number:016x}.layer"] for ref in manifest.layers]
        self.delta = self.by_name[f"map/{manifest.delta:016x}.delta"]
        self.options = [struct.unpack_from("<14Q", layer.original, 96) for layer in self.layers]
        for layer, options in zip(self.layers, self.options, strict=True):
            o = dict(zip(snapdisk.LAYER_OPTIONS, options, strict=True))
            layer.hot += [
                (PAGE, PAGE + 400), (PAGE, o["end"] + o["metadata"]), (o["guide"], o["guide"] + 16 * o["guides"]),
                (o["table"], o["sums"]), (o["sums"], layer.size),
            ]  # fmt: skip
            at = PAGE
            while at < o["end"]:
                layer.fields += [(at, 4), (at + 4, 4), (at + 8, 8)]
                at = snapdisk.parse(layer.original, at, o["end"])[1]
            layer.fields += [(o["guide"] + 8 * n, 8) for n in range(2 * o["guides"])]
        delta = self.delta
        self.batches = []  # first byte, first record, end
        at = first = (8192 + 4 * struct.unpack_from("<Q", delta.original, 112)[0] + 63) & ~63
        while at < manifest.delta_end:
            size, count = struct.unpack_from("<2Q", delta.original, at + 16)
            self.batches.append((at, at + 64 + 16 * count, at + size))
            delta.fields += [(at + 8 * n, 8) for n in range(6)]
            delta.fields += [(at + 64 + 4 * n, 4) for n in range(4 * count)]
            at += size
        delta.hot += [(4096, 4104), (8192, first), *((first, at),) * 4, (delta.size - 8, delta.size)]
        delta.fields += [(4096, 8), *((8192 + n, 4) for n in range(0, first - 8192, 4))]

    def weight(self, part: Part) -> int:
        return 2

    def repair(self, touched: list[tuple[Part, int, int]]) -> None:
        for layer, options in zip(self.layers, self.options, strict=True):
            sums = options[10]
            if any(part is layer and start < sums and stop > PAGE for part, start, stop in touched):
                packed = b"".join(
                    _pack(xxhash.xxh3_64_intdigest(layer.map[at : min(at + snapdisk.BLOCK, sums)]))
                    for at in range(PAGE, sums, snapdisk.BLOCK)
                )
                self.edit(layer, sums, packed)
                self.poke(layer, 96 + 8 * 13, xxhash.xxh3_64_intdigest(packed))
                seal(self, layer)
        delta = self.delta
        for at, first, end in self.batches:
            if any(part is delta and start < end and stop > at for part, start, stop in touched):
                self.poke(delta, at + 8, xxhash.xxh3_64_intdigest(delta.map[first:end]))
                words = struct.unpack("<5Q", delta.map[at + 8 : at + 48])
                identity = struct.unpack("<2Q", delta.map[32:48])
                self.poke(delta, at, counterfiles.mix(0x6261746368, at, *words, *identity))
        super().repair(touched)


# ---- a Region, and headers of all kinds ------------------------------------------------------------------------------


class RegionPlace(Place):
    """A file without a format, in which somebody keeps lock words and integers."""

    kind = "region"
    has_checksums = False

    def make(self) -> None:
        self.path = os.path.join(self.folder, "region")
        Path(self.path).write_bytes(bytes(range(256)) * 32)

    def find(self) -> None:
        self.part = self.parts[0]
        self.part.hot = [(0, 128), (self.part.size - 64, self.part.size)]
        self.part.fields = [(0, 8), (8, 8), (64, 8)]


class HeaderPlace(Place):
    """One header page of each kind."""

    kind = "headers"
    kinds = ("counters", "delta", "layer", "queue", "segment", "sync", "syncdata")

    def make(self) -> None:
        for n, kind in enumerate(self.kinds):
            page = files.new_header(
                kind, options=tuple(range(1, n + 3)), schema=None if n % 2 else files_schema(), parent=b"p" * 16
            )
            Path(self.folder, kind).write_bytes(page)

    def find(self) -> None:
        self.headers = {part.name: files.parse_header(part.original, part.name) for part in self.parts}
        self.immutable = {part.name: part.original[:2040] for part in self.parts}
        for part in self.parts:
            part.hot += [(0, 2048), (240, 352)]

    def repair(self, touched: list[tuple[Part, int, int]]) -> None:
        seal_touched(self, touched)


def files_schema() -> Any:
    """The codec of most files, with a text."""
    from mmapds import codecs

    return codecs.fingerprint("msgpack", "a text of the user's")


KINDS: dict[str, type[Place]] = {
    kind.kind: kind
    for kind in (
        SyncPlace, ObjectPlace, CratePlace, CountersPlace, EmmapPlace, QueuePlace, LettersPlace, MapPlace, RegionPlace,
        HeaderPlace,
    )
}  # fmt: skip


@contextlib.contextmanager
def identities(seed: int) -> Iterator[None]:
    """Files made in the block have identities that the seed alone decides."""
    choose, before = random.Random(seed), os.urandom
    os.urandom = choose.randbytes
    try:
        yield
    finally:
        os.urandom = before


def drain(q: Any, most: int = 200) -> list[bytes]:
    """What comes until nothing does, or an error."""
    found: list[bytes] = []
    with contextlib.suppress(Empty):
        while len(found) < most:
            found.append(q.get_nowait())
    return found
