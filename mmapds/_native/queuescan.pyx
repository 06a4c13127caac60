# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""Looking at a queue without taking part in it: copies of its index, and records by position.

For iteration, recovery and checks. Nothing here changes a file but `store_state`, which recovery uses when nobody else is
alive.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mmapds._native.atomics cimport cpu_relax, load_acquire_u64, load_relaxed_u64
from mmapds._native.queueview cimport *
from mmapds._native.region cimport Mapping

from mmapds.errors import CorruptionError

from xxhash import xxh3_64_intdigest


cdef object hash_of = xxh3_64_intdigest

cdef Py_ssize_t CONTROL = sizeof(mmapds_queue)
cdef Py_ssize_t EVENTS = <Py_ssize_t>&(<mmapds_queue *>0).events
cdef Py_ssize_t EVENTS_END = <Py_ssize_t>&(<mmapds_queue *>0).shutdowns
cdef uint64_t SIZE = (1ULL << MMAPDS_ITEM_BITS) - 1


@cython.final
cdef class Record:
    """A record whose head is what was written: where it lies, and what it says."""
    cdef readonly uint64_t position, sequence, flags, size, epoch, hash, born, due, delay, state, wall, wait, place, next
    cdef readonly int what              # MMAPDS_ITEM_..., 0 if the word does not say
    cdef readonly uint32_t attempts

    @property
    def end(self):
        """Whether it only says that its segment has no more."""
        return (self.flags & MMAPDS_END) != 0

    def __repr__(self):
        return f"<Record {self.epoch}-{self.sequence} at {self.position}, {self.size} bytes>"


@cython.final
@cython.no_gc
cdef class Span:
    """Mapped bytes for the hash, one object for all: a memoryview for each record costs more than its hash."""
    cdef char *start
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.start, self.size, True, flags)


@cython.final
@cython.no_gc
cdef class SegmentReader:
    """The records of a segment: `mapping` is of the whole file, whose first byte is at position `start`."""
    cdef Mapping mapping
    cdef queue_view view
    cdef queue_segment segment
    cdef readonly uint64_t start, stop

    def __cinit__(self, Mapping mapping not None, uint64_t start, bytes identity not None):
        self.mapping = mapping
        self.segment.start = self.start = start
        self.segment.length = mapping.size
        self.segment.base = mapping.base
        self.segment.lost = &mapping.lost
        self.stop = start + mapping.size
        self.view.key = mmapds_queue_key(<const unsigned char *><char *>identity)

    def at(self, uint64_t position):
        """The record there; None if there is none that is what was written."""
        cdef mmapds_record_item copy
        cdef uint64_t length, number
        cdef uint64_t after[3]
        cdef Record record
        memset(&copy, 0, sizeof(copy))
        if position < self.start or position >= self.stop:
            return None
        length = queue_record(&self.view, &self.segment, position, &copy)
        self.mapping.check()
        if length == 0:
            return None
        record = Record.__new__(Record)
        record.position = position
        record.sequence = copy.order >> 8
        record.flags = copy.order & 0xff
        record.size = copy.extent & SIZE
        record.epoch = copy.extent >> MMAPDS_ITEM_BITS
        record.hash = copy.hash
        record.born = copy.born
        if record.flags & MMAPDS_DELAYED:
            record.due = copy.due
            record.delay = copy.delay
        record.state = copy.state
        after[0], after[1], after[2] = copy.wall, copy.wait, copy.place
        record.next = position + length
        number = copy.state & 0xffffffff
        if copy.state == mmapds_item_state(number & 15, number >> 4, after, position, self.view.key):
            record.what = number & 15
            record.attempts = number >> 4
            record.wall, record.wait, record.place = copy.wall, copy.wait, copy.place
        return record

    def payload(self, Record record not None):
        """A copy of its payload."""
        cdef char *source = self.segment.base + (record.position - self.start)
        source += sizeof(mmapds_record_item) if record.flags & MMAPDS_DELAYED else MMAPDS_ITEM_HEAD
        data = PyBytes_FromStringAndSize(source, record.size)
        self.mapping.check()
        return data

    def intact(self, Record record not None):
        """Whether the payload is what was put."""
        cdef char *source = self.segment.base + (record.position - self.start)
        source += sizeof(mmapds_record_item) if record.flags & MMAPDS_DELAYED else MMAPDS_ITEM_HEAD
        if record.size == 0:
            return record.hash == (0 if record.flags & MMAPDS_END else xxh3_64_intdigest(b""))
        found = xxh3_64_intdigest(PyMemoryView_FromMemory(source, record.size, 0x100)) == record.hash
        self.mapping.check()
        return found

    def run(self, uint64_t position, uint64_t sequence, uint64_t oldest):
        """Passes records that are just what was put, one behind the other, from `sequence` on, in epochs from `oldest` on:
        the position behind the last, how many there are, and the epoch of the last. Each is verified."""
        cdef mmapds_record_item copy
        cdef uint64_t none[3]
        cdef uint64_t length, size, epoch
        cdef uint64_t count = 0
        cdef Span span = Span.__new__(Span)
        none[0] = none[1] = none[2] = 0
        while self.start <= position < self.stop:
            length = queue_record(&self.view, &self.segment, position, &copy)
            epoch = copy.extent >> MMAPDS_ITEM_BITS
            if (length == 0 or copy.order >> 8 != sequence + count or copy.order & (MMAPDS_END | MMAPDS_DELAYED)
                    or epoch < oldest or copy.wall | copy.wait | copy.place
                    or copy.state != mmapds_item_state(MMAPDS_ITEM_NEW, 0, none, position, self.view.key)):
                break
            size = copy.extent & SIZE
            if size:
                span.start = self.segment.base + (position - self.start) + MMAPDS_ITEM_HEAD
                span.size = size
                if <uint64_t>hash_of(span) != copy.hash:
                    break
            oldest = epoch
            count += 1
            position += length
        self.mapping.check()
        return position, count, oldest

    def find(self, uint64_t position, uint64_t least, uint64_t most):
        """The first record from `position` on with a sequence from `least` to `most`; None if there is none."""
        cdef mmapds_record_item copy
        cdef uint64_t at = (position + 7) & ~7ULL, found = 0
        with nogil:
            while at + MMAPDS_ITEM_HEAD <= self.stop:
                memcpy(&copy, self.segment.base + (at - self.start), MMAPDS_ITEM_HEAD)
                if least <= copy.order >> 8 <= most and queue_record(&self.view, &self.segment, at, &copy):
                    found = at
                    break
                at += 8
        self.mapping.check()
        return self.at(found) if found else None

    def blank(self, uint64_t position):
        """Whether nothing but zeros follows."""
        cdef uint64_t at = position             # a multiple of 8
        cdef bint found = True
        with nogil:
            while at + 8 <= self.stop:
                if load_relaxed_u64(<uint64_t *>(self.segment.base + (at - self.start))):
                    found = False
                    break
                at += 8
        self.mapping.check()
        return found

    def raw(self, uint64_t position, uint64_t stop):
        """A copy of the bytes from `position` to `stop`."""
        stop = min(stop, self.stop)
        if position < self.start or position > stop:
            return b""
        data = PyBytes_FromStringAndSize(self.segment.base + (position - self.start), stop - position)
        self.mapping.check()
        return data

    def clear(self, uint64_t position):
        """Zeros from `position` on."""
        cdef uint64_t at = position - self.start
        cdef uint64_t step
        while at < self.segment.length:             # only what is not zero: pages that nobody touched stay untouched
            step = min(MMAPDS_PAGE - at % MMAPDS_PAGE, self.segment.length - at)
            if self.segment.base[at] or memcmp_zero(self.segment.base + at, step):
                memset(self.segment.base + at, 0, step)
            at += step
        self.mapping.check()

    def store_state(self, Record record not None, unsigned int what, uint32_t attempts, uint64_t wall, uint64_t wait,
                    uint64_t place):
        """What has become of an item."""
        cdef mmapds_record_item *found = <mmapds_record_item *>(self.segment.base + (record.position - self.start))
        queue_store_state(&self.view, found, record.position, what, attempts, wall, wait, place)
        self.mapping.check()

    def reset_words(self):
        """The words for syncing, after another boot."""
        memset(mmapds_words_of(self.segment.base), 0, sizeof(mmapds_segment_words))


cdef bint memcmp_zero(const char *at, uint64_t length) noexcept:
    cdef uint64_t i
    for i in range(length):
        if at[i]:
            return True
    return False


def copy_control(Mapping mapping not None, uint64_t mapped):
    """The control pages and the entries of a queue as they were at one moment: two bytes objects. `mapped`: how many entries
    the caller has mapped.

    None if somebody was in the middle of a transition all the while, or if there are more entries.
    """
    cdef mmapds_queue *control = <mmapds_queue *>mapping.base
    cdef uint64_t changes, used, sequence = 0
    cdef int i, j
    cdef bint quiet
    cdef bytes head
    for i in range(20):
        quiet = queue_begin_look(control, &changes)
        used = load_relaxed_u64(&control.used)
        if quiet and used <= mapped:
            head = PyBytes_FromStringAndSize(<char *>control, CONTROL)
            entries = PyBytes_FromStringAndSize(<char *>control + CONTROL, used * sizeof(mmapds_held))
            (<mmapds_queue *><char *>head).tail = queue_tail(control, &sequence)    # nobody else has seen it yet
            (<mmapds_queue *><char *>head).tail_sequence = sequence
            if queue_end_look(control, changes):
                mapping.check()
                return head, entries
        for j in range(100):
            cpu_relax()
    mapping.check()
    return None


def repaired_copy(Mapping mapping not None, uint64_t mapped):
    """The same when the transition does not end, because who was in it is dead or stopped: taken back, in the copy.

    None if the words under the lock for taking do not stay the same for as long as it takes to copy them twice: then the
    owner lives, and `copy_control` is right.
    """
    cdef mmapds_queue *control = <mmapds_queue *>mapping.base
    cdef queue_view view
    cdef uint64_t used
    cdef char *base
    cdef Py_ssize_t start = <char *>&control.take_lock - <char *>control
    first = None
    for _ in range(100):
        used = load_relaxed_u64(&control.used)
        if used > mapped:
            return None
        copy = bytearray((<char *>control)[:CONTROL + used * sizeof(mmapds_held)])
        memset(<char *>copy + EVENTS, 0, EVENTS_END - EVENTS)      # of those who put, too
        if first is not None and copy[start:] == first[start:]:
            break
        first = copy
    else:
        return None
    mapping.check()
    memset(&view, 0, sizeof(view))
    base = copy
    view.control = <mmapds_queue *>base
    view.capacity = used
    if queue_rollback(&view) != 0:
        return None
    view.control.tail = queue_tail(control, &view.control.tail_sequence)
    return bytes(copy[:CONTROL]), bytes(copy[CONTROL:])


def parse_control(bytes control not None):
    """The words of a control copy; zeros if it is cut."""
    if len(control) < CONTROL:
        control = control.ljust(CONTROL, b"\0")
    cdef const mmapds_queue *found = <const mmapds_queue *><char *>control
    cdef int i
    words = {
        "tail": found.tail, "tail_sequence": found.tail_sequence, "saved_tail": found.saved_tail,
        "saved_sequence": found.saved_sequence, "epoch": found.epoch, "head": found.head,
        "head_sequence": found.head_sequence, "changes": found.changes, "logged": found.logged,
        "finished": found.finished, "capacity": found.capacity, "used": found.used, "free": found.free,
        "timed": found.heaps[0], "ready": found.heaps[1], "leased": found.leased, "claimed": found.claimed,
        "waiting_bytes": found.waiting_bytes, "held": found.held, "fences": found.fences, "stamps": found.stamps,
        "holders": found.holders, "shutdowns": found.shutdowns, "put_lock": found.put_lock, "take_lock": found.take_lock,
    }
    for i, name in enumerate(TALLIES):
        words[name] = found.tallies[i]
    return words


# Loops, no comprehensions: Cython's give a reference too many back when memory is out.

def parse_holders(bytes control not None):
    """The holders that the copy names: (slot, token, owing, claims, claimed, pid) of each."""
    cdef const mmapds_queue *found = <const mmapds_queue *><char *>control
    cdef const mmapds_holder *slot
    cdef list holders = []
    cdef int i
    for i in range(min(found.holders, <uint64_t>MMAPDS_HOLDERS)):
        slot = &found.slots[i]
        if slot.token:
            holders.append((i + 1, slot.token, slot.owing, slot.claims, slot.claimed, slot.pid))
    return holders


def parse_entries(bytes entries not None):
    """The entries in use: a list of dicts."""
    cdef const mmapds_held *at = <const mmapds_held *><char *>entries
    cdef list found = []
    cdef Py_ssize_t i
    for i in range(len(entries) // <Py_ssize_t>sizeof(mmapds_held)):
        if at[i].kind != QUEUE_FREE:
            found.append({
                "number": i + 1, "position": at[i].position, "sequence": at[i].sequence, "size": at[i].size,
                "due": at[i].due, "place": at[i].place, "stamp": at[i].stamp, "fence": at[i].fence,
                "holder": at[i].holder, "attempts": at[i].attempts, "heap_at": at[i].heap_at, "kind": at[i].kind,
                "own_previous": at[i].own_previous, "own_next": at[i].own_next,
                "segment_previous": at[i].segment_previous, "segment_next": at[i].segment_next,
            })
    return found


def parse_cells(bytes entries not None, int heap, Py_ssize_t count):
    """The first `count` cells of a heap (0: timed, 1: ready)."""
    cdef const mmapds_held *at = <const mmapds_held *><char *>entries
    cdef list cells = []
    cdef Py_ssize_t i
    for i in range(min(count, len(entries) // <Py_ssize_t>sizeof(mmapds_held))):
        cells.append(at[i].cells[heap])
    return cells


def reset_control(Mapping mapping not None, uint64_t head, uint64_t head_sequence, uint64_t tail, uint64_t tail_sequence,
                  uint64_t epoch, uint64_t capacity, uint64_t cut, uint64_t set_aside):
    """After another boot, when nobody is alive: an index without entries, nobody who holds or waits, and these cursors."""
    cdef mmapds_queue *control = <mmapds_queue *>mapping.base
    control.put_lock = control.take_lock = 0
    control.logged = control.finished = 0
    control.heaps[0] = control.heaps[1] = 0
    control.used = control.free = control.leased = control.claimed = control.waiting_bytes = control.held = 0
    control.holders = 0
    memset(&control.slots, 0, sizeof(control.slots))
    memset(&control.events, 0, sizeof(control.events))
    control.looked = 0
    control.head = head
    control.head_sequence = head_sequence
    control.tail = tail
    control.tail_sequence = tail_sequence
    control.saved_tail = 0
    control.capacity = capacity
    control.sentinel = MMAPDS_SENTINEL
    control.epoch = epoch
    control.tallies[QUEUE_CUT] += cut
    control.tallies[QUEUE_SET_ASIDE] += set_aside
    control.tallies[QUEUE_RECOVERIES] += 1
    control.header.failed = 0
    control.changes += 1
    mapping.check()


cdef class Rebuild:
    """Fills the index of a queue that `reset_control` has emptied, segment by segment."""
    cdef Mapping mapping
    cdef queue_view view

    def __cinit__(self, Mapping mapping not None, uint64_t segment_size, uint64_t capacity):
        self.mapping = mapping
        self.view.control = <mmapds_queue *>mapping.base
        self.view.lost = &mapping.lost
        self.view.capacity = capacity
        self.view.segment_size = segment_size

    def begin_segment(self):
        self.view.control.held = 0

    def add(self, uint64_t position, uint64_t sequence, uint64_t size, uint32_t attempts, uint64_t place, uint64_t due,
            uint64_t stamp=0):
        """An item that waits: `due` 0, or on CLOCK_BOOTTIME; `place` 0: its own; `stamp` orders those of one place."""
        cdef uint32_t number = queue_make(&self.view, position, sequence, size, QUEUE_WAITING)
        cdef mmapds_held *entry
        if number == 0:
            raise CorruptionError(f"{self.mapping.path}: the segments have changed while they were looked at")
        entry = queue_entry(&self.view, number)
        entry.attempts = attempts
        if place:
            entry.place = place
            entry.stamp = stamp if stamp else self.view.control.stamps + 1      # the record does not tell: by position
            stamp = entry.stamp
            self.view.control.stamps = max(self.view.control.stamps, stamp)
        queue_await(&self.view, number, due)
        queue_commit(&self.view)
        self.mapping.check()

    def add_run(self, SegmentReader reader not None, uint64_t position, uint64_t stop):
        """All records of a run."""
        cdef mmapds_record_item copy
        cdef uint64_t length
        while position < stop:
            length = queue_record(&reader.view, &reader.segment, position, &copy)
            reader.mapping.check()
            if length == 0:
                raise CorruptionError(f"{reader.mapping.path}: a record changed while it was looked at")
            self.add(position, copy.order >> 8, copy.extent & SIZE, 0, 0, 0)
            position += length

    def end(self, bint head_in_last):
        """`head_in_last`: the head is in the segment that was begun last."""
        if not head_in_last:
            self.view.control.held = 0
        self.mapping.check()


def boottime(int64_t boot_offset):
    """CLOCK_BOOTTIME in ns, as the queue's words have it."""
    cdef queue_view view
    memset(&view, 0, sizeof(view))
    view.boot_offset = boot_offset
    return queue_now(&view)


def add_tally(Mapping mapping not None, str name, uint64_t more=1):
    """Counts what has happened, for people; a death may lose one."""
    (<mmapds_queue *>mapping.base).tallies[TALLIES.index(name)] += more


def first_control(uint64_t segment_size, uint64_t capacity):
    """What follows the header page of a new meta file, up to the entries."""
    cdef mmapds_queue *control
    page = bytearray(CONTROL)
    cdef char *base = page
    control = <mmapds_queue *>base
    control.tail = control.head = segment_size + MMAPDS_PAGE
    control.epoch = 1
    control.capacity = capacity
    control.sentinel = MMAPDS_SENTINEL
    return bytes(page[MMAPDS_PAGE:])


TALLIES = ("returns", "deaths", "expired", "buried", "set_aside", "cut", "purged", "recoveries")
KINDS = ("free", "delayed", "ready", "claimed", "leased")
STATES = {"new": MMAPDS_ITEM_NEW, "claimed": MMAPDS_ITEM_CLAIMED, "returned": MMAPDS_ITEM_RETURNED, "done": MMAPDS_ITEM_DONE}
FLAGS = {"delayed": MMAPDS_DELAYED, "compressed": MMAPDS_COMPRESSED, "end": MMAPDS_END}
