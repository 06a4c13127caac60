"""What is wrong with the index of a queue: its words and entries, of one moment.

Every entry is in exactly one place: among the free ones, in a heap, in the list of its holder (and, with a lease, in a
heap too); and in the list of its segment. All counts follow from the entries. Bytes are untrusted: a reference is
looked up only when it is one, and no list is followed longer than there are entries.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from mmapds.inspection._base import Report, Severity
from mmapds.inspection._queue import CLAIMED, DELAYED, FREE, LEASED, READY, Slot, Snapshot

_SHOWN = 6
_NAMES = {FREE: "free", DELAYED: "delayed", READY: "ready", CLAIMED: "claimed", LEASED: "leased"}
_PREVIOUS, _NEXT, _OWN_PREVIOUS, _OWN_NEXT, _HOLDER, _HEAP_AT, _CELLS = 14, 15, 16, 17, 18, 20, 22


class Faults:
    """Findings that many numbers share; some numbers are shown."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._found: dict[tuple[Severity, str], tuple[int, list[int]]] = {}

    def add(self, number: int, what: str, severity: Severity = "error") -> None:
        """One of them."""
        count, some = self._found.get((severity, what), (0, []))
        if len(some) < _SHOWN:
            some.append(number)
        self._found[severity, what] = count + 1, some

    def tell(self, report: Report, where: str) -> None:
        """Makes a finding of each kind."""
        for (severity, what), (count, some) in self._found.items():
            numbers = ", ".join(map(str, some))
            many = f"{count} times, first {numbers}" if count > len(some) else numbers
            report.add(severity, where, f"{self.noun} {many}: {what}")


class Index:
    """Checks a snapshot; `starts` and `stops` are those of the segments that are there, in order."""

    def __init__(self, snapshot: Snapshot, starts: list[int], stops: list[int], segment_size: int) -> None:
        self.s = snapshot
        self.words = snapshot.words
        self.used = snapshot.used
        self.halves = snapshot.halves
        self.quads = snapshot.quads
        self.starts, self.stops, self.size = starts, stops, segment_size
        self.faults = Faults("entry")
        self.listed = bytearray(self.used + 1)  # in the free list or a heap: 1 + kind of place
        self.owned = bytearray(self.used + 1)  # in the list of a holder

    def run(self, report: Report, where: str) -> None:
        """Reports everything that is wrong."""
        self.check_free(report, where)
        self.check_heap(report, where, 0, self.words["timed"], "timed", (DELAYED, LEASED))
        self.check_heap(report, where, 1, self.words["ready"], "ready", (READY,))
        for slot in self.s.slots:
            self.check_slot(report, where, slot)
        self.check_entries()
        self.check_counts(report, where)
        self.check_segment_lists(report, where)
        self.faults.tell(report, where)

    def half(self, number: int, at: int) -> int:
        """A 32-bit word of an entry."""
        return self.halves[24 * number - 24 + at]

    def is_one(self, number: int) -> bool:
        """Whether there is such an entry."""
        return 1 <= number <= self.used

    # -- places

    def check_free(self, report: Report, where: str) -> None:
        number = self.words["free"]
        while number:
            if not self.is_one(number):
                report.error(where, f"the list of free entries leads to entry {number}, and {self.used} have been used")
                return
            if self.listed[number]:
                report.error(where, f"the list of free entries comes to entry {number} twice")
                return
            self.listed[number] = 1
            if self.s.kind(number) != FREE:
                self.faults.add(
                    number, f"is among the free ones, and {_NAMES.get(self.s.kind(number), 'of no known kind')}"
                )
            number = self.half(number, _OWN_NEXT)

    def check_heap(self, report: Report, where: str, heap: int, count: int, name: str, kinds: tuple[int, ...]) -> None:
        if count > self.used:
            report.error(where, f"says {count} entries are in the heap {name!r}, and {self.used} have been used")
            count = self.used
        cells = self.halves[_CELLS + heap :: 24].tolist()[:count]
        before = self.before_of(heap)
        for at, number in enumerate(cells):
            if not self.is_one(number):
                report.error(
                    where, f"cell {at} of the heap {name!r} has entry {number}, and {self.used} have been used"
                )
                continue
            if self.listed[number]:
                self.faults.add(number, f"is in the heap {name!r}, and in another place too")
                continue
            self.listed[number] = 2 + heap
            if self.s.kind(number) not in kinds:
                self.faults.add(
                    number, f"is in the heap {name!r}, and {_NAMES.get(self.s.kind(number), 'of no known kind')}"
                )
            if self.half(number, _HEAP_AT) != at + 1:
                self.faults.add(number, f"does not say at which place of the heap {name!r} it is")
            above = cells[(at - 1) // 2] if at else number
            if self.is_one(above) and before(number) < before(above):
                self.faults.add(number, f"is below another in the heap {name!r}, and comes before it")

    def before_of(self, heap: int) -> Callable[[int], tuple[int, int]]:
        quads = self.quads
        if heap == 0:
            return lambda n: (quads[12 * n - 9], quads[12 * n - 8])  # due, place
        return lambda n: (quads[12 * n - 8], quads[12 * n - 7])  # place, stamp

    def check_slot(self, report: Report, where: str, slot: Slot) -> None:
        what = f"holder {slot.number} (pid {slot.pid})"
        if not slot.token:
            if slot.claims or slot.claimed:
                report.error(where, f"{what} has gone, and still has claims")
            return
        number, before, count = slot.claims, 0, 0
        while number:
            if not self.is_one(number):
                report.error(where, f"{what}: its claims lead to entry {number}, and {self.used} have been used")
                return
            if self.owned[number]:
                report.error(where, f"{what}: its claims lead to entry {number}, which is among somebody's already")
                return
            self.owned[number] = 1
            count += 1
            if self.s.kind(number) not in (CLAIMED, LEASED):
                self.faults.add(
                    number, f"is among the claims of {what}, and {_NAMES.get(self.s.kind(number), 'unknown')}"
                )
            if self.half(number, _HOLDER) != slot.number or self.half(number, _OWN_PREVIOUS) != before:
                self.faults.add(number, f"is among the claims of {what}, and does not say so")
            before, number = number, self.half(number, _OWN_NEXT)
        if count != slot.claimed:
            report.error(where, f"{what} says {slot.claimed} claims, and its list has {count}")

    # -- entries

    def check_entries(self) -> None:
        words, faults = self.words, self.faults
        seen: set[int] = set()
        fences: set[int] = set()
        for number in range(1, self.used + 1):
            kind = self.s.kind(number)
            if kind == FREE or kind > LEASED:
                if kind > LEASED:
                    faults.add(number, "is of no known kind")
                elif self.listed[number] != 1:
                    faults.add(number, "is free, and not among the free ones")
                continue
            position, sequence, _size, _due, place, stamp, fence = self.quads[12 * number - 12 : 12 * number - 5]
            place_wanted = {DELAYED: 2, LEASED: 2, READY: 3}.get(kind, 0)
            if self.listed[number] != place_wanted and self.listed[number] != 1:
                faults.add(number, f"is {_NAMES[kind]}, and not in the heap for that")
            if (kind in (CLAIMED, LEASED)) != bool(self.owned[number]):
                faults.add(
                    number,
                    f"is {_NAMES[kind]}, and {'not ' if kind in (CLAIMED, LEASED) else ''}among a holder's claims",
                )
            if position >= words["head"] or sequence >= words["head_sequence"]:
                faults.add(number, "is of an item that the head has not come to")
            if position in seen:
                faults.add(number, "is of the same item as another one")
            seen.add(position)
            if place != 2 * position + 1 and (place & 1 or place > 2 * words["tail"]):
                faults.add(number, "has a place that is neither its own nor one behind other items")
            if stamp > words["stamps"]:
                faults.add(number, "has a stamp that was not given yet")
            if kind in (CLAIMED, LEASED):
                if not 0 < fence <= words["fences"] or fence in fences:
                    faults.add(number, "is claimed without a number of its own")
                fences.add(fence)
            elif fence:
                faults.add(number, f"is {_NAMES[kind]}, and has the number of a claim")

    def check_counts(self, report: Report, where: str) -> None:
        words = self.words
        kinds = self.s.kinds()
        waiting = sum(
            self.quads[12 * number - 10]
            for number in range(1, self.used + 1)
            if self.s.kind(number) in (DELAYED, READY)
        )
        for name, found in (
            ("claimed", kinds[CLAIMED] + kinds[LEASED]),
            ("leased", kinds[LEASED]),
            ("timed", kinds[DELAYED] + kinds[LEASED]),
            ("ready", kinds[READY]),
            ("waiting_bytes", waiting),
        ):
            if words[name] != found:
                report.error(where, f"says {words[name]} for {name!r}, and its entries make {found}")

    # -- the lists of segments

    def segment_of(self, position: int) -> int:
        """The start of the segment that a position is in."""
        at = bisect_right(self.starts, position) - 1
        if at >= 0 and position < self.stops[at]:
            return self.starts[at]
        return position // self.size * self.size

    def check_segment_lists(self, report: Report, where: str) -> None:
        firsts: dict[int, list[int]] = {}
        live = [number for number in range(1, self.used + 1) if self.s.kind(number) != FREE]
        for number in live:
            before, after = self.half(number, _PREVIOUS), self.half(number, _NEXT)
            segment = self.segment_of(self.s.position(number))
            for other, back in ((before, _NEXT), (after, _PREVIOUS)):
                if other and not (
                    self.is_one(other)
                    and self.s.kind(other) != FREE
                    and self.half(other, back) == number
                    and self.segment_of(self.s.position(other)) == segment
                ):
                    self.faults.add(number, "has a neighbour in the list of its segment that does not have it")
            if not before:
                firsts.setdefault(segment, []).append(number)
        reached = 0
        for segment, numbers in firsts.items():
            if len(numbers) > 1:
                report.error(where, f"the entries of the segment at {segment} are in {len(numbers)} lists")
            for number in numbers:
                while self.is_one(number) and reached <= len(live):
                    reached += 1
                    number = self.half(number, _NEXT)
        if reached != len(live):
            report.error(where, f"the lists of the segments have {reached} entries, and {len(live)} are in use")
        held, expected = self.words["held"], firsts.get(self.segment_of(self.words["head"]), [0])
        if held not in expected:
            report.error(
                where, f"says that the entries of the head's segment begin with {held}, and they do with {expected[0]}"
            )
