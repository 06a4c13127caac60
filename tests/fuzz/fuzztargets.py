"""What is done with a damaged place: every way in, through the package's own interface.

A target opens (or, "in place", keeps open) one kind of place and reads everything that it offers. It returns a word for
what it saw, raises one of the errors that the package documents, or raises `WrongError`: a value was handed out that
nobody has written, although no checksum was repaired. `honest` says that none was. What has no checksum is not called
wrong: the cells of counters, the state of a name, the index of a queue; but that a payload was put by somebody is
always checked. Some targets call a parser alone, over a mapping that stays: those are fast, and get the most of a run.

Values of older versions are right: nobody can tell them from what a death leaves.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from queue import Empty, Full
from typing import Any

import fuzzplaces
import xxhash
from fuzzplaces import Place

from mmapds import Counters, MmapdsError, Queue, Region, Snapshot, SnapshotMap, Synchronizer, _manifest, codecs, files
from mmapds._native import queuescan
from mmapds._native.region import FLAGS, Mapping
from mmapds._native.snapcursor import Values
from mmapds._native.snaplayer import STR_KEYS, Delta, Layer, State
from mmapds.inspection import _base, describe, verify

Random = Callable[[], float]
LENGTHS = (
    0, 1, 7, 8, 9, 63, 64, 4095, 4096, 4097, 8184, 8191, 8192, 8193, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 32,
    (1 << 62), (1 << 63) - 4096, (1 << 63) - 8, (1 << 63) - 1,
)  # fmt: skip


class WrongError(AssertionError):
    """A value was handed out that nobody has written."""


class Target:
    """One way in."""

    name = ""
    format = ""
    share = 1.0  # of all executions
    writes = False  # what it does is taken back by writing everything anew
    resizes = True  # whether files are cut and extended
    copies = False  # what it says was copied before it was checked: right, whoever writes meanwhile
    files: tuple[str, ...] = ()  # the ends of the names that are edited; empty: all
    extra: tuple[type[Exception], ...] = ()

    def __init__(self, place: Place) -> None:
        self.place = place
        self.choices = [part for part in place.choices if not self.files or part.name.endswith(self.files)]
        self.start()

    def start(self) -> None:
        """Opens what stays open."""

    def run(self, random: Random, honest: bool) -> str:
        """One execution."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes what stays open."""

    def again(self) -> None:
        """A mapping was lost, for good: everything is opened anew, after the place was mended."""
        self.close()
        self.start()

    def restore(self, outcome: str) -> None:
        """After an execution: the files are as they were, and what is open can be used."""
        if self.writes:
            self.place.reset()
        else:
            self.place.mend()
        if outcome in ("MappingLost", "HANG"):
            self.again()


def _choose(random: Random, values: Any) -> Any:
    return values[int(random() * len(values))]


# ---- headers -------------------------------------------------------------------------------------------------------


class Headers(Target):
    """`parse_header`, and what the inspection adds."""

    copies = True
    name, format, share = "parse_header", "headers", 18
    resizes = False
    place: fuzzplaces.HeaderPlace

    def run(self, random: Random, honest: bool) -> str:
        part = self.place.undo[0][0]
        page = part.map[: 4096 if random() < 0.97 else int(random() * 4096)]
        header = files.parse_header(page, part.name, part.name if random() < 0.9 else None)
        if honest and page[:2040] != self.place.immutable[part.name]:
            raise WrongError(f"a header was accepted that nobody wrote: {header}")
        report = _base.Report()
        _base.check_header(report, part.name, page, header)
        return f"{header.durability} {len(report.findings())} {header.holder[:4]}"


# ---- Synchronizer --------------------------------------------------------------------------------------------------


def check_version(target: Target, version: int, data: bytes, honest: bool) -> None:
    known = target.place.known
    if honest and known and known.get(version) != data:
        raise WrongError(f"version {version} is {data[:32]!r}... of {len(data)} bytes")


class SyncOpen(Target):
    """Opened without a slot, or as a copy."""

    copies = True
    name, format, share = "open and read", "Synchronizer", 2
    place: fuzzplaces.SyncPlace

    def run(self, random: Random, honest: bool) -> str:
        mode = "readonly" if random() < 0.7 else "private"
        checks = random() < 0.8
        with Synchronizer(self.place.prefix, mode=mode, verify=checks) as s:
            with s.read() as r:
                data = bytes(r.data)
                version = r.version
            check_version(self, version, data, honest and checks)
            if random() < 0.2:
                s.load()
                s.wait(timeout=0)
            return f"{mode} {version} {len(data)}"


class SyncObjects(SyncOpen):
    name, share = "open and decode objects", 0.5

    def run(self, random: Random, honest: bool) -> str:
        with Synchronizer(self.place.prefix, mode="readonly") as s:
            found = s.load()
            return f"{type(found).__name__}"


class SyncShared(Target):
    """Opened for writing: slots, recovery; written to, and read again."""

    name, format, share, writes = "open, read, write", "Synchronizer", 0.4, True
    place: fuzzplaces.SyncPlace

    def run(self, random: Random, honest: bool) -> str:
        checks = random() < 0.8
        said = []
        with Synchronizer(self.place.prefix, verify=checks) as s:
            try:
                with s.read() as r:
                    check_version(self, r.version, bytes(r.data), honest and checks)
                    said.append("read")
            except MmapdsError as error:
                said.append(type(error).__name__)
            if random() < 0.7:
                value = b"new" * int(random() * 3000)
                s.write_bytes(value, 0.0)
                with s.read() as r:
                    if bytes(r.data) != value:
                        raise WrongError(f"{len(value)} bytes were written, {len(r)} read: {bytes(r.data)[:30]!r}")
                said.append("written")
            return " ".join(said)


class SyncInPlace(Target):
    """A handle that stays open, while words change under it: two versions in turn, so that each read looks anew."""

    name, format, share = "read, changed in place", "Synchronizer", 10
    place: fuzzplaces.SyncPlace
    mode = "readonly"

    def start(self) -> None:
        self.s = Synchronizer(self.place.prefix, mode=self.mode)
        self.last = -1  # what this handle has seen last, and knows without another look; -1: nobody can say

    def run(self, random: Random, honest: bool) -> str:
        control = self.place.control
        if self.place.resized:
            honest = False
        elif control.word(4096) in (6, 7):
            self.place.poke(control, 4096, 6 if self.last == 7 else 7)
        last, self.last = self.last, -1
        with self.s.read() as r:
            data, version = bytes(r.data), r.version
        self.last = version
        check_version(self, version, data, honest and last >= 0 and version != last)
        return f"{version} {len(data)}"

    def close(self) -> None:
        self.s.close()


class SyncSlot(SyncInPlace):
    # What it writes are the words of its slot: they may stay.
    name, share, writes, mode = "read with a slot, changed in place", 4, True, "shared"


class CrateOpen(Target):
    copies = True
    name, format, share = "open and read", "mmap-sync", 3
    place: fuzzplaces.CratePlace
    modes = ("readonly", "readonly", "private")

    def run(self, random: Random, honest: bool) -> str:
        mode = _choose(random, self.modes)
        checksum = xxhash.xxh3_64_intdigest if random() < 0.7 else None  # None: readers check nothing
        with Synchronizer(self.place.prefix, mode=mode, protocol="mmap-sync", codec="raw", checksum=checksum) as s:
            with s.read() as r:
                data, version = bytes(r.data), r.version
            if checksum is not None and data not in self.place.known:
                # 24 bits are all the checksum that these files have: who changes the word can meet it.
                if (
                    xxhash.xxh3_64_intdigest(data) & 0xFFFFFF != version >> 40
                    or len(data) != version >> 1 & (1 << 39) - 1
                ):
                    raise WrongError(f"{data[:32]!r}... of {len(data)} bytes, {version:#x}")
                return f"{mode} another"
            return f"{mode} {len(data)}"


class CrateShared(CrateOpen):
    name, share, writes, modes = "open, read, write", 0.4, True, ("shared",)

    def run(self, random: Random, honest: bool) -> str:
        with contextlib.suppress(MmapdsError):
            super().run(random, honest)
        with Synchronizer(self.place.prefix, protocol="mmap-sync", codec="raw") as s:
            value = b"new" * int(random() * 1000)
            s.write_bytes(value, 0.0)
            with s.read() as r:
                if bytes(r.data) != value:
                    raise WrongError(f"{len(value)} bytes were written, and {bytes(r.data)[:30]!r} read")
        return "written"


# ---- Counters ------------------------------------------------------------------------------------------------------


class CountersOpen(Target):
    copies = True
    name, format, share = "open and read", "Counters", 1
    place: fuzzplaces.CountersPlace
    extra = (KeyError, IndexError)

    def run(self, random: Random, honest: bool) -> str:
        mode = "readonly" if random() < 0.7 else "private"
        with Counters(self.place.path, mode=mode) as c:
            return self.look(c, random, honest)

    def look(self, c: Any, random: Random, honest: bool) -> str:
        found = c.snapshot()
        if honest:
            wrong = found.keys() - {*self.place.names, "name 9"}
            if wrong:
                raise WrongError(f"names that nobody made: {wrong}")
        if random() < 0.3:
            list(c), len(c), c.capacity, c.get("name 3"), "nobody" in c
        c[3]
        return f"{len(found)} {c.capacity} {c.dtype}"


class CountersInPlace(CountersOpen):
    name, share = "read, changed in place", 7
    resizes = False
    changes = itertools.count(0x5EED << 40)  # values that no damage puts there, and that never come again

    def start(self) -> None:
        self.c: Any = Counters(self.place.path, mode="readonly")

    def run(self, random: Random, honest: bool) -> str:
        if random() < 0.9:
            self.place.poke(self.place.part, 4104, next(self.changes))  # all names are read again
        else:
            honest = False  # it goes by what it has read before, perhaps under checks that were made right
        return self.look(self.c, random, honest)

    def close(self) -> None:
        self.c.close()


class CountersShared(CountersOpen):
    name, share, writes = "open, count, make and remove names", 0.2, True
    extra = (KeyError, IndexError, TypeError)  # TypeError: integers of a file that says it holds floats

    def run(self, random: Random, honest: bool) -> str:
        with Counters(self.place.path) as c:
            said = self.look(c, random, honest)
            for call in (
                lambda: c.fetch_add("name 5", 2), lambda: c.fetch_add("name 9"), lambda: c.pop("name 3", None),
                lambda: c.fetch_add("new"), lambda: c.reserve("name 7", 3),
                lambda: c.update({f"x{n}": n for n in range(70)}), c.snapshot,
            ):  # fmt: skip
                if random() < 0.5:
                    call()
            return said


class EmmapOpen(Target):
    name, format, share = "open and read", "emmap", 3
    place: fuzzplaces.EmmapPlace
    extra = (IndexError,)

    def run(self, random: Random, honest: bool) -> str:
        mode = _choose(random, ("readonly", "private", "shared"))
        with Counters(self.place.path, mode=mode, layout="emmap") as c:
            if c.capacity:
                c[c.capacity - 1]
            c[19]
            return f"{mode} {c.capacity}"


# ---- Queue ---------------------------------------------------------------------------------------------------------


def check_items(target: Target, found: Any, honest: bool) -> None:
    if honest:
        wrong = {bytes(item) for item in found} - target.place.items
        if wrong:
            raise WrongError(f"items that nobody put: {sorted(wrong)[:3]}")


class QueueLook(Target):
    """Opened to be looked at, or as a copy, which is drained."""

    name, format, share = "open and look", "Queue", 0.25
    place: fuzzplaces.QueuePlace
    extra = (Empty,)

    def run(self, random: Random, honest: bool) -> str:
        mode = "readonly" if random() < 0.6 else "private"
        with Queue(self.place.path, mode=mode) as q:
            if mode == "private" and random() < 0.7:
                found = fuzzplaces.drain(q)
                check_items(self, found, honest)
                return f"private {len(found)}"
            found = list(q)
            check_items(self, found, honest)
            if random() < 0.3:
                check_items(self, [*reversed(q), q.peek(), q.peek_last()], honest)
                q.qsize(), q.empty(), q.stats(), q.holders()
            return f"{mode} {len(found)}"


def put(call: Callable[..., None], what: Any, **options: float) -> None:
    """Puts; that an item can never fit is an answer, of a queue that says that it holds three bytes."""
    try:
        call(what, timeout=0, **options)
    except ValueError as error:
        if "can never fit" not in str(error):
            raise


class QueueShared(QueueLook):
    """Opened to work: recovery, the index, the undo log; everything that changes it."""

    name, share, writes = "open and work", 0.2, True
    extra = (Empty, Full)

    def run(self, random: Random, honest: bool) -> str:
        said = []
        with Queue(self.place.path) as q:
            for _ in range(4):
                try:
                    self.work(q, random, honest)
                    said.append("1")
                except (MmapdsError, Empty, Full) as error:
                    said.append(type(error).__name__)
            found: list[bytes] = []
            try:
                found = fuzzplaces.drain(q)
            finally:
                check_items(self, found, honest)
            return f"{len(found)} {' '.join(said)}"

    def work(self, q: Any, random: Random, honest: bool) -> None:
        what = int(random() * 9)
        if what == 0:
            put(q.put, b"new")
        elif what == 1:
            put(q.put, b"new", delay=5.0)
        elif what == 2:
            check_items(self, [q.get_nowait()], honest)
        elif what == 3:
            claim = q.claim(0)
            check_items(self, [claim.item], honest)
            claim.ack()
        elif what == 4:
            q.claim(0).nack(0, to_back=random() < 0.5)
        elif what == 5:
            q.claim(0).nack(60.0)
        elif what == 6:
            check_items(self, q.get_many(5, timeout=0), honest)
        elif what == 7:
            q.stats(), q.qsize(), q.peek()
        elif random() < 0.1:
            q.purge()
        else:
            put(q.put_many, [b"new"] * 5)


class QueueInPlace(QueueShared):
    """A handle that stays open and works, while its words change under it."""

    name, share = "work, changed in place", 3
    resizes = False

    def start(self) -> None:
        self.q: Any = Queue(self.place.path)
        self.count = 0
        self.generation = self.place.generation

    def run(self, random: Random, honest: bool) -> str:
        self.count += 1
        if self.count % 500 == 0 or self.q.closed or self.generation != self.place.generation:
            self.again()
        self.work(self.q, random, honest)
        return "worked"

    def close(self) -> None:
        with contextlib.suppress(MmapdsError, OSError):
            self.q.close()


class Segments(Target):
    """What reads records, over a mapping that stays."""

    name, format, share = "records of a segment", "Queue", 14
    place: fuzzplaces.QueuePlace
    resizes = False
    files = (".segment",)

    def start(self) -> None:
        self.readers = {}
        queue = self.place.queues[0]
        identity = queue.meta.original[32:48]
        for number, part in queue.segments.items():
            with open(part.path, "rb") as file:
                mapping = Mapping(file.fileno(), part.size, FLAGS["READ"], FLAGS["SHARED"], part.path)
            self.readers[part.name] = (number, part, queuescan.SegmentReader(mapping, number * queue.size, identity))
        self.records = queue.records

    def run(self, random: Random, honest: bool) -> str:
        _number, part, reader = self.readers[self.place.undo[0][0].name]
        at = reader.start + 4096
        stop, count, _epoch = reader.run(at, 0 if random() < 0.5 else int(random() * 50), 0)
        found = 0
        while reader.stop - at >= 72 and found < 60:
            record = reader.at(at)
            if record is None:
                record = reader.find(at, 0, (1 << 56) - 1)
                if record is None:
                    break
            if record.end:
                break
            found += 1
            if reader.intact(record):
                data = reader.payload(record)
                if honest and not record.flags & 2 and data not in self.place.items:
                    raise WrongError(f"{record} of {part.name}: {data[:40]!r}")
            if record.next <= at:
                raise WrongError(f"{record} of {part.name} ends at {record.next}")
            at = record.next
        if random() < 0.1:
            reader.blank(reader.start + 4096 + 8 * int(random() * 500))
            start = reader.start + _choose(random, LENGTHS)
            with contextlib.suppress(ValueError, OverflowError, MmapdsError):
                reader.raw(start, start + _choose(random, LENGTHS[:14]))
        return f"{count} {found} {stop == at}"


class Index(Target):
    """What copies and parses the words and entries of meta, over a mapping that stays."""

    name, format, share = "index of meta", "Queue", 14
    place: fuzzplaces.QueuePlace
    resizes = False
    files = ("meta",)

    def start(self) -> None:
        part = self.place.queues[0].meta
        with open(part.path, "rb") as file:
            self.mapping = Mapping(file.fileno(), part.size, FLAGS["READ"], FLAGS["SHARED"], part.path)
        self.room = (part.size - 81920) // 96

    def run(self, random: Random, honest: bool) -> str:
        if random() < 0.7:
            found = queuescan.copy_control(self.mapping, self.room)
        else:
            found = queuescan.repaired_copy(self.mapping, self.room)
        if found is None:
            return "not at rest"
        control, entries = found
        words = queuescan.parse_control(control)
        held = queuescan.parse_entries(entries)
        queuescan.parse_holders(control)
        if random() < 0.5:
            queuescan.parse_cells(entries, 0, min(words["timed"], len(held)))
            queuescan.parse_cells(entries, 1, min(words["ready"], len(held)))
        return f"{len(held)}"


class Letters(QueueLook):
    name, format, share = "dead letters", "Queue", 0.05
    files = ("dead/meta", "dead/0000000000000001.segment")

    def run(self, random: Random, honest: bool) -> str:
        with Queue(self.place.path, mode="readonly") as q:
            letters = list(q.dead)
            check_items(self, [letter.item for letter in letters], honest)
            return f"{len(letters)} {len(q.dead)}"


# ---- SnapshotMap ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def other_keys(honest: bool) -> Iterator[None]:
    """That a map has no such key is an answer, if its kind of keys was changed, and its checksums made right."""
    try:
        yield
    except TypeError as error:
        if honest or "the keys of this map are" not in str(error):
            raise
        raise KeyError(str(error)) from None


def look_at_map(target: Any, m: Any, random: Random, honest: bool) -> str:
    """Everything that a map offers; the sum of what went wrong."""
    history = target.place.history
    said = []

    def expect(key: Any, value: Any) -> None:
        if honest and value not in history.get(key, (None,)):
            raise WrongError(f"{key!r} is {value!r}, and never was")

    def lookups() -> None:
        for key in ("k/100", "k/013", f"k/{int(random() * 240):03}", "nobody"):
            expect(key, m.get(key))

    def walk() -> None:
        found = list(m.items() if random() < 0.7 else reversed(m.items()))
        for key, value in found:
            expect(key, value)
        keys = [key for key, _ in found]
        if honest and len(set(keys)) != len(keys):
            raise WrongError(f"keys come twice: {sorted(keys)}")
        said.append(str(len(found)))

    def parts() -> None:
        for key, value in m.range("k/050", "k/09"):
            expect(key, value)
        for key, value in m.prefix("k/1", reverse=True):
            expect(key, value)
        view = m.get_view("k/101")
        if view is not None:
            expect("k/101", bytes(view))
        for key, value in m.get_many(["k/003", "k/004", "k/104", "k/236"]).items():
            expect(key, value)

    def about() -> None:
        m.metadata, m.stats(), len(m), m.ttl("k/013"), m.verify()

    failed: Exception | None = None
    for job, share in ((lookups, 1.0), (walk, 0.7), (parts, 0.25), (about, 0.15)):
        if random() < share:
            try:
                with other_keys(honest):
                    job()
            except (MmapdsError, KeyError) as error:
                failed = error
    if failed is not None:
        raise failed
    return " ".join(said)


class MapOpen(Target):
    """Opened and read. Without `verify` a value may be damaged without a word."""

    name, format, share = "open and read", "SnapshotMap", 0.4
    place: fuzzplaces.MapPlace
    extra = (KeyError,)

    def run(self, random: Random, honest: bool) -> str:
        mode, checks = "readonly" if random() < 0.8 else "private", random() < 0.7
        with SnapshotMap(self.place.path, mode=mode, verify=checks) as m:
            return f"{mode} {checks} {look_at_map(self, m, random, honest and checks)}"


class MapShared(MapOpen):
    name, share, writes = "open, commit, compact", 0.08, True

    def run(self, random: Random, honest: bool) -> str:
        with SnapshotMap(self.place.path, verify=True) as m:
            with contextlib.suppress(MmapdsError, KeyError):
                look_at_map(self, m, random, honest)
            with other_keys(honest), m.transaction() as txn:
                txn["k/new"] = b"new"
                txn.pop("k/014", None)
            if m["k/new"] != b"new":
                raise WrongError(f"k/new is {m['k/new']!r}")
            if random() < 0.3:
                m.compact()
                if m["k/new"] != b"new":
                    raise WrongError(f"k/new is {m['k/new']!r} after a compaction")
            with contextlib.suppress(MmapdsError):
                m.verify()
            return "committed"


class Layers(Target):
    """One layer alone, over a mapping that stays; its header as it says it is."""

    name, format, share = "a layer", "SnapshotMap", 9
    place: fuzzplaces.MapPlace
    resizes = False
    files = (".layer",)
    extra = (KeyError,)

    def start(self) -> None:
        self.codec = codecs.resolve("raw")
        self.values = Values(self.codec)
        self.mappings = {}
        for part in self.choices:
            with open(part.path, "rb") as file:
                self.mappings[part.name] = Mapping(file.fileno(), part.size, FLAGS["READ"], FLAGS["SHARED"], part.path)

    def run(self, random: Random, honest: bool) -> str:
        part = self.place.undo[0][0]
        mapping = self.mappings[part.name]
        header = files.parse_header(part.map[:4096], part.name, "layer")
        checks = random() < 0.6
        layer = Layer(mapping, header.options[0], header.identity, header.options, checks)
        state = State(7, header.options[1], STR_KEYS, (layer,), None, 0, 0)
        with Snapshot(self.place.path, state, self.codec, self.values) as m:
            return look_at_map(self, m, random, honest and checks)


class Deltas(Layers):
    """The delta alone: by its links, or by an index of this process's own."""

    name, share = "a delta", 9
    files = (".delta",)

    def run(self, random: Random, honest: bool) -> str:
        part = self.place.delta
        header = files.parse_header(part.map[:4096], part.name, "delta")
        own = random() < 0.6
        delta = Delta(self.mappings[part.name], header.options[0], header.identity, header.options, own)
        end = self.place.manifest.delta_end if random() < 0.9 else _choose(random, LENGTHS)
        if own and random() < 0.3:
            delta.whole(end)
        state = State(7, 10, STR_KEYS, (), delta, end, 0)
        with Snapshot(self.place.path, state, self.codec, self.values) as m:
            return look_at_map(self, m, random, honest and own)


class Manifests(Target):
    name, format, share = "decode the manifest", "SnapshotMap", 12
    place: fuzzplaces.MapPlace
    resizes = False
    files = ("manifest_data_0", "manifest_data_1")

    def run(self, random: Random, honest: bool) -> str:
        part = self.place.newest
        size = 96 + 48 * len(self.place.layers)
        if random() < 0.1:
            size = int(random() * 700)
        found = _manifest.decode(part.map[4096 : 4096 + size], part.name)
        found.here()
        return f"{len(found.layers)} {found.delta is None} {found.keys}"


# ---- Region --------------------------------------------------------------------------------------------------------


class Regions(Target):
    """Any bytes, any size, any offset; lock words that nobody wrote."""

    name, format, share, writes = "open and use", "Region", 0.4, True
    place: fuzzplaces.RegionPlace
    extra = (ValueError, IndexError, OverflowError)  # arguments that make no sense

    def run(self, random: Random, honest: bool) -> str:
        mode = _choose(random, ("readonly", "shared", "private"))
        with Region.open(self.place.path, mode=mode, create=False) as r:
            size = len(r)
            offset, length = _choose(random, LENGTHS), _choose(random, LENGTHS)
            what = int(random() * 6)
            if what == 0:
                found = r.pread(length if length < 1 << 31 else 100, offset)
                with open(self.place.path, "rb") as file:
                    expected = os.pread(file.fileno(), 8300, min(offset, 1 << 50))[: min(length, len(found))]
                if honest and found[: len(expected)] != expected[: len(found)]:
                    raise WrongError(f"pread({length}, {offset}) of {size}: {found[:30]!r}")
            elif what == 1:
                return f"{r[offset]}"[:1]
            elif what == 2:
                return f"{len(r[offset:length])}"[:1]
            elif what == 3:
                r.atomic(offset).load() if random() < 0.5 else r.resident(offset, length)
            elif what == 4 and mode == "shared":
                lock = r.lock(8 * int(random() * 16))
                if lock.acquire(timeout=0.0):
                    died = lock.owner_died
                    lock.release()
                    return f"locked {died}"
                return "not locked"
            else:
                r.populate(offset, length)
            return f"{mode} {size > 8192}"


# ---- inspection ----------------------------------------------------------------------------------------------------


class Inspect(Target):
    """`mmapds inspect` and `mmapds verify`: findings, or the errors that they document."""

    name, share = "inspect and verify", 0.25

    def run(self, random: Random, honest: bool) -> str:
        place: Any = self.place
        path = place.path if hasattr(place, "path") else place.prefix
        if random() < 0.3:
            path = _choose(random, place.parts).path
        if random() < 0.4:
            return f"{len(describe(path))}"
        found = verify(path)
        return " ".join(f"{finding.severity} {finding.what[:20]}" for finding in found[:2])


def _inspect(kind: str, title: str, how_often: float) -> type[Inspect]:
    return type(f"Inspect{kind}", (Inspect,), {"format": title, "share": how_often, "kind": kind})


PAIRS: list[tuple[type[Target], str]] = [
    (Headers, "headers"),
    (SyncOpen, "sync"),
    (SyncObjects, "sync of objects"),
    (SyncShared, "sync"),
    (SyncInPlace, "sync"),
    (SyncSlot, "sync"),
    (CrateOpen, "mmap-sync"),
    (CrateShared, "mmap-sync"),
    (CountersOpen, "counters"),
    (CountersInPlace, "counters"),
    (CountersShared, "counters"),
    (EmmapOpen, "emmap"),
    (QueueLook, "queue"),
    (QueueShared, "queue"),
    (QueueInPlace, "queue"),
    (Segments, "queue"),
    (Index, "queue"),
    (Letters, "dead letters"),
    (MapOpen, "snapshot map"),
    (MapShared, "snapshot map"),
    (Layers, "snapshot map"),
    (Deltas, "snapshot map"),
    (Manifests, "snapshot map"),
    (Regions, "region"),
    (_inspect("sync", "Synchronizer", 0.05), "sync"),
    (_inspect("mmap-sync", "mmap-sync", 0.05), "mmap-sync"),
    (_inspect("counters", "Counters", 0.05), "counters"),
    (_inspect("emmap", "emmap", 0.05), "emmap"),
    (_inspect("queue", "Queue", 0.05), "queue"),
    (_inspect("map", "SnapshotMap", 0.05), "snapshot map"),
]
NAMES = [f"{target.format}: {target.name}" for target, _ in PAIRS]
