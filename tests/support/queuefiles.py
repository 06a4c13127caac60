"""The files of a queue as bytes: what tests look at, and damage, behind the package's back.

The offsets and checks are written down here once more on purpose: a change of the layout that nobody meant fails these
tests. `Snapshot` reads a whole queue by nothing but the description in ``_native/layout.h``, and `check` knows what
must hold when nobody is in the middle of anything.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash
from syncfiles import (
    CHECK,
    FAILED,
    IDENTITY,
    ORIGIN,
    PAGE,
    flip,
    lock,
    locked,
    peek,
    poke,
    poke_word,
    seal,
    word,
)
from syncfiles import other_boot as _other_boot

__all__ = [
    "CHECK", "FAILED", "IDENTITY", "ORIGIN", "PAGE", "flip", "lock", "locked", "peek", "poke", "poke_word", "seal",
    "word",
]  # fmt: skip

OPTIONS = 96
WORDS = {
    "put_lock": 4096, "tail": 4104, "tail_sequence": 4112, "saved_tail": 4120, "saved_sequence": 4128, "epoch": 4136,
    "take_lock": 4224, "head": 4232, "head_sequence": 4240, "changes": 4248, "logged": 4256, "finished": 4264,
    "capacity": 4352, "used": 4360, "free": 4368, "timed": 4376, "ready": 4384, "leased": 4392, "claimed": 4400,
    "waiting_bytes": 4408, "held": 4416, "fences": 4424, "stamps": 4432, "holders": 4440,
    "shutdowns": 4864, "immediate": 4872, "looked": 4880,
}  # fmt: skip
TALLIES, EVENTS, UNDO, SLOTS, SENTINEL, ENTRIES, ENTRY = 4480, 4608, 8192, 12288, 81912, 81920, 96
HEAD, DELAYED_HEAD = 72, 88
DELAYED, COMPRESSED, END = 1, 2, 4
KINDS = ("free", "delayed", "waiting", "claimed", "leased")
_MASK = (1 << 64) - 1
_SEGMENT = re.compile(r"[0-9a-f]{16}\.segment")


def mix(accumulator: int, *words: int) -> int:
    for value in words:
        accumulator = ((accumulator ^ value) * 0x9E3779B97F4A7C15) & _MASK
        accumulator ^= accumulator >> 32
    return accumulator


def _rotate(value: int, by: int) -> int:
    return (value << by | value >> (64 - by)) & _MASK


def item_check(words: tuple[int, ...], position: int, key: int) -> int:
    """`words`: hash, order, extent, born; and due, delay."""
    a = (words[0] ^ key) * 0x9E3779B97F4A7C15 & _MASK
    b = (words[1] + key) * 0xC2B2AE3D27D4EB4F & _MASK
    c = ((words[2] ^ position << 20) & _MASK) * 0x165667B19E3779F9 & _MASK
    d = (words[3] + position) * 0xD6E8FEB86659FD93 & _MASK
    if words[1] & DELAYED:
        d = (d + mix(words[4], words[5])) & _MASK
    return mix(a ^ _rotate(b, 31), (c + _rotate(d, 17)) & _MASK)


def item_state(what: int, attempts: int, after: tuple[int, int, int], position: int, key: int) -> int:
    number = what | (attempts & 0xFFFFFFF) << 4
    more = (after[0] * 3 + after[1] * 5 + after[2] * 7) & _MASK
    if more:
        more = mix(key, *after)
    return number | mix((number ^ key) * 0xC2B2AE3D27D4EB4F & _MASK, (position + more) & _MASK) << 32 & _MASK


class Record(NamedTuple):
    position: int
    sequence: int
    flags: int
    epoch: int
    size: int
    what: int  # 0: the word does not say
    attempts: int
    payload: bytes
    end: int  # where the next one begins

    @property
    def whole(self) -> bool:
        return bool(self.what)


class Held(NamedTuple):
    number: int
    position: int
    sequence: int
    size: int
    due: int
    place: int
    stamp: int
    fence: int
    segment_previous: int
    segment_next: int
    own_previous: int
    own_next: int
    holder: int
    attempts: int
    heap_at: int
    kind: int
    timed_cell: int
    ready_cell: int


def meta(path: str | Path) -> str:
    return os.path.join(path, "meta")


def segment(path: str | Path, number: int) -> str:
    return os.path.join(path, f"{number:016x}.segment")


def segments(path: str | Path) -> list[int]:
    return sorted(int(name[:16], 16) for name in os.listdir(path) if _SEGMENT.fullmatch(name))


class Snapshot:
    """A queue as its files are."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.meta = Path(meta(path)).read_bytes()
        self.files = {number: Path(segment(path, number)).read_bytes() for number in segments(path)}
        self.identity = self.meta[IDENTITY : IDENTITY + 16]
        self.key = mix(0x7175657565, *struct.unpack("<2Q", self.identity))
        self.segment_size = struct.unpack_from("<Q", self.meta, OPTIONS)[0]
        self.words: dict[str, int] = {name: struct.unpack_from("<Q", self.meta, at)[0] for name, at in WORDS.items()}
        self.entries = [self.entry(number) for number in range(1, self.words["used"] + 1)]

    def entry(self, number: int) -> Held:
        return Held(number, *struct.unpack_from("<7Q10I", self.meta, ENTRIES + (number - 1) * ENTRY))

    def live(self) -> list[Held]:
        return [entry for entry in self.entries if entry.kind]

    def slots(self) -> list[tuple[int, int, int, int, int]]:
        """(token, owing, claims, claimed, pid) of all that were ever used."""
        return [struct.unpack_from("<5Q", self.meta, SLOTS + n * 64) for n in range(self.words["holders"])]

    def find(self, position: int) -> tuple[int, bytes] | None:
        """The start and the content of the segment that a position is in."""
        for number, content in self.files.items():
            start = number * self.segment_size
            if start <= position < start + len(content):
                return start, content
        return None

    def record(self, position: int) -> Record | None:
        """The record there, if it is what was written."""
        found = self.find(position)
        if found is None:
            return None
        start, content = found
        at = position - start
        if at % 8 or at < PAGE or len(content) - at < HEAD:
            return None
        check, *words = struct.unpack_from("<9Q", content, at)
        flags, size = words[1] & 0xFF, words[2] & (1 << 40) - 1
        head = DELAYED_HEAD if flags & DELAYED else HEAD
        if flags & DELAYED:
            words += struct.unpack_from("<2Q", content, at + HEAD)
        end = at + head + (size + 7) // 8 * 8
        if end > len(content) or check != item_check((*words[:4], *words[8:]), position, self.key):
            return None
        state, *after = words[4:8]
        number = state & 0xFFFFFFFF
        verified = state == item_state(number & 15, number >> 4, (after[0], after[1], after[2]), position, self.key)
        payload = content[at + head : at + head + size]
        if not flags & END and xxhash.xxh3_64_intdigest(payload) != words[0]:
            return None
        return Record(
            position, words[1] >> 8, flags, words[2] >> 40, size, number & 15 if verified else 0, number >> 4, payload,
            start + end,
        )  # fmt: skip

    def plain(self) -> Iterator[Record]:
        """The records from the head to the tail; AssertionError if one is missing."""
        at, sequence = self.words["head"], self.words["head_sequence"]
        while at < self.words["tail"]:
            found = self.find(at)
            assert found is not None, f"no segment for position {at}"
            end = found[0] + len(found[1])
            if end - at < HEAD:
                at = end + PAGE
                continue
            record = self.record(at)
            assert record is not None, f"no record at {at}"
            assert record.sequence == sequence, f"{record.sequence} at {at}, and {sequence} should be there"
            if record.flags & END:
                at = end + PAGE
                continue
            yield record
            sequence += 1
            at = record.end
            if end - at < HEAD:
                at = end + PAGE
        assert at == self.words["tail"], f"the last record ends at {at}"
        assert sequence == self.words["tail_sequence"], f"the last record but one is {sequence}"

    def waiting(self) -> list[bytes]:
        """Payloads in the order in which they come, all delays over."""
        plain = list(self.plain())
        held = [(e.place, e.stamp, self.held_record(e)) for e in self.live() if KINDS[e.kind] in ("delayed", "waiting")]
        every = [*held, *((2 * r.position + 1, 0, r) for r in plain)]
        return [record.payload for _, _, record in sorted(every, key=lambda item: item[:2])]

    def everything(self) -> list[bytes]:
        """Payloads of all that is not done, in order, as if every claim had been returned to its place."""
        held = [(e.place, e.stamp, self.held_record(e)) for e in self.live()]
        every = [*held, *((2 * r.position + 1, 0, r) for r in self.plain())]
        return [record.payload for _, _, record in sorted(every, key=lambda item: item[:2])]

    def claimed(self) -> list[bytes]:
        return [self.held_record(e).payload for e in self.live() if KINDS[e.kind] in ("claimed", "leased")]

    def held_record(self, entry: Held) -> Record:
        record = self.record(entry.position)
        assert record is not None, f"no record for {entry}"
        assert record.sequence == entry.sequence, (record, entry)
        assert record.size == entry.size, (record, entry)
        return record

    def check(self, message: str = "", *, spare: int = 1) -> None:
        """Every invariant of a queue that nobody alive is changing, and that nobody died in. `spare`: how many segments
        there may be that nobody needs, as their makers died."""
        try:
            self._check(spare)
        except AssertionError as error:
            raise AssertionError(f"{error}; {message}; {self.describe()}") from None

    def _check(self, spare: int) -> None:
        words, entries = self.words, {entry.number: entry for entry in self.entries}
        live = self.live()
        assert words["logged"] == 0, "a transition is half done"
        assert words["finished"] == 0, "a finished segment still has its name"
        assert words["used"] <= words["capacity"] <= (len(self.meta) - ENTRIES) // ENTRY
        assert self.meta[SENTINEL : SENTINEL + 8] == b"sentinel"
        free, at = set(), words["free"]
        while at:
            assert at not in free, f"the list of free entries has a cycle at {at}"
            assert entries[at].kind == 0, f"a free entry is {KINDS[entries[at].kind]}"
            free.add(at)
            at = entries[at].own_next
        assert len(free) + len(live) == words["used"], (
            f"{len(free)} free and {len(live)} live entries of {words['used']}"
        )
        kinds = [KINDS[entry.kind] for entry in live]
        assert words["timed"] == kinds.count("delayed") + kinds.count("leased"), kinds
        assert words["ready"] == kinds.count("waiting"), kinds
        assert words["leased"] == kinds.count("leased"), kinds
        assert words["claimed"] == kinds.count("claimed") + kinds.count("leased"), kinds
        waiting = sum(entry.size for entry in live if KINDS[entry.kind] in ("delayed", "waiting"))
        assert words["waiting_bytes"] == waiting, f"{waiting} bytes wait in entries"
        for heap, count in (("timed", words["timed"]), ("ready", words["ready"])):
            cells = [
                self.entry(n + 1).timed_cell if heap == "timed" else self.entry(n + 1).ready_cell for n in range(count)
            ]
            assert len(set(cells)) == count, f"{heap}: {cells}"

            def key(number: int, heap: str = heap) -> tuple[int, int]:
                entry = entries[number]
                return (entry.due, entry.place) if heap == "timed" else (entry.place, entry.stamp)

            for n, number in enumerate(cells):
                assert entries[number].heap_at == n + 1, f"{heap}: {cells}; {entries[number]}"
                expected = ("delayed", "leased") if heap == "timed" else ("waiting",)
                assert KINDS[entries[number].kind] in expected, f"{heap}: {cells}; {entries[number]}"
                assert n == 0 or key(cells[(n - 1) // 2]) <= key(number), f"{heap}: {cells} is no heap at {n}"
        owned: set[int] = set()
        for slot, (token, _, claims, claimed, _) in enumerate(self.slots(), 1):
            mine, before, at = [], 0, claims
            while at:
                assert at not in owned, f"claim {at} has two holders, or the list of slot {slot} a cycle"
                entry = entries[at]
                assert (entry.holder, entry.own_previous) == (slot, before), f"slot {slot}: {mine}, {entry}"
                assert KINDS[entry.kind] in ("claimed", "leased"), f"slot {slot}: {mine}, {entry}"
                assert entry.fence, entry
                owned.add(at)
                mine.append(at)
                before, at = at, entry.own_next
            assert len(mine) == claimed, f"slot {slot} counts {claimed} claims, and has {mine}"
            assert token or not mine, f"slot {slot} is nobody's, and has {mine}"
        assert len(owned) == words["claimed"], f"{sorted(owned)} are in lists of claims"
        by_segment: dict[int, list[Held]] = {}
        for entry in live:
            self.held_record(entry)
            assert entry.position < words["head"], f"the head has not come to {entry}"
            by_segment.setdefault(entry.position // self.segment_size, []).append(entry)
        for number, group in by_segment.items():
            firsts = [entry for entry in group if not entry.segment_previous]
            assert len(firsts) == 1, f"segment {number:x} has {len(firsts)} lists of entries"
            listed, before, at = [], 0, firsts[0].number
            while at:
                assert at not in listed, f"the list of segment {number:x} has a cycle"
                assert entries[at].segment_previous == before, f"segment {number:x}: {listed}, {entries[at]}"
                listed.append(at)
                before, at = at, entries[at].segment_next
            assert sorted(listed) == sorted(entry.number for entry in group), f"segment {number:x}: {listed}, {group}"
        head_segment = words["head"] // self.segment_size
        firsts = [entry.number for entry in by_segment.get(head_segment, []) if not entry.segment_previous]
        assert [words["held"]] == (firsts or [0]), f"`held` is not {firsts}"
        plain = list(self.plain())
        assert len({entry.position for entry in live}) == len(live)
        assert all(record.whole for record in plain), [record for record in plain if not record.whole]
        needed = set(by_segment)
        for number, content in self.files.items():
            start, end = number * self.segment_size, number * self.segment_size + len(content)
            if start <= words["tail"] and end > words["head"]:
                needed.add(number)
        surplus = [f"{number:x}" for number in self.files if number not in needed]
        assert len(surplus) <= spare, f"segments that nobody needs: {surplus}"

    def describe(self) -> str:
        """For messages of failing tests."""
        words = " ".join(f"{name}={value}" for name, value in self.words.items() if value and "lock" not in name)
        held = [f"{e.number}:{KINDS[e.kind]}@{e.position}#{e.sequence}" for e in self.live()[:8]]
        slots = [f"{n}:{claimed}+{owing}" for n, (t, owing, _, claimed, _) in enumerate(self.slots(), 1) if t]
        return f"{words}; segments={[f'{n:x}' for n in self.files]} entries={held} holders={slots[:8]}"


def check(path: str | Path, message: str = "", *, spare: int = 1) -> Snapshot:
    """The queue, whose invariants hold."""
    found = Snapshot(path)
    found.check(message, spare=spare)
    return found


def state(path: str | Path) -> str:
    """For messages of failing tests."""
    return Snapshot(path).describe()


def other_boot(path: str | Path) -> None:
    """As if the machine had been started anew since the queue was last used."""
    _other_boot(meta(path))


def content(path: str | Path) -> dict[str, bytes]:
    """All files of the queue itself, by name."""
    return {entry.name: Path(entry.path).read_bytes() for entry in os.scandir(path) if entry.is_file()}


def restore(path: str | Path, files: dict[str, bytes], *, in_place: bool = False) -> None:
    """Makes the queue of these files. `in_place`: files that are there keep their inodes, so meta is not a copy."""
    os.makedirs(path, exist_ok=True)
    for entry in list(os.scandir(path)):
        if entry.is_dir():
            shutil.rmtree(entry.path)
        elif not in_place or entry.name not in files:
            os.unlink(entry.path)
    for name, data in files.items():
        target = os.path.join(path, name)
        fd = os.open(target, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.truncate(fd, len(data))
            os.pwrite(fd, data, 0)
        finally:
            os.close(fd)


def copy(path: str | Path, target: str | Path) -> None:
    """Other inodes with the same bytes, as cp -r makes them."""
    shutil.copytree(path, target)
