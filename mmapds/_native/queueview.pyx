# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""A queue as one handle has it mapped: its meta file, the segments that it uses, its place among the holders.

The transitions are in queueput.h and queue.h. Each is tried once with the GIL, which makes the fields of this object
one; if the lock is taken it is repeated without the GIL on a copy of the view, so that other threads, and signal
handlers between two attempts, find everything in order. What the copy refers to (mappings, the table of segments, the descriptor for locks)
is held by references on the stack and by `users`, for which close() waits.

A transition that lacks something (a segment that is not mapped, an entry, addresses) gives its lock back and says so;
`settle` gets it, with Python and system calls and no lock, and the caller repeats. No step of that leaves anything that
the next one cannot do again.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport ENOENT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.unistd cimport getpid

from mmapds._native.atomics cimport (
    compare_exchange_seq_cst_u64, fetch_add_seq_cst_u64, load_acquire_u64, load_relaxed_u64, load_seq_cst_u64,
    store_relaxed_u64, store_seq_cst_u64,
)
from mmapds._native.kernel cimport (
    LockFile, epoch_word, kernel_clock_ns, kernel_futex_wait, kernel_futex_wake, kernel_link_fd, kernel_lost,
    kernel_rename_new, kernel_size, kernel_sleep_ns, raise_errno,
)
from mmapds._native.lockword cimport Owner
from mmapds._native.region cimport Mapping, redirty

import os

from mmapds.errors import Closed, CorruptionError, DurabilityFailed, IncompatibleFormat, MappingLost


cdef extern from "<sched.h>" nogil:
    int sched_yield()


cdef extern from "kernel.h" nogil:
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    int MS_SYNC
    int msync(void *base, size_t length, int flags)
    int errno


cdef Py_ssize_t CONTROL = sizeof(mmapds_queue)
cdef Py_ssize_t RESERVE = 64 << 30      # addresses for entries
cdef int KEPT = 6                       # segments that a handle keeps mapped
cdef int64_t LOOK = 1000000             # ns between two looks for dead holders while there are items to take
cdef int64_t GATHER = 60000             # ns that who syncs waits for others at most
cdef int64_t SHARED_LOOK = 100000000    # ns between two looks of any of those who wait


@cython.final
@cython.no_gc                           # refers to mappings only
cdef class Segments:

    def __cinit__(self):
        self.mappings = ()


cdef Segments no_segments = Segments()
cdef mmapds_queue nothing               # stands for meta where there is none: no items, no holders, no segments
cdef uint32_t nothing_lost = 0


@cython.no_gc_clear
cdef class QueueView:

    def __cinit__(self, *args, **kwargs):
        self.epoch = epoch_word()
        self.table = no_segments
        self.view.segments = &no_segments.entries[0]
        self.view.control = &nothing
        self.view.lost = &nothing_lost
        self.view.segment_size = MMAPDS_PAGE
        self.view.directory = -1
        self.view.locks = -1

    # ---- set up by Queue ----------------------------------------------------------------------------------------

    def _configure(self, str path, str mode, str durability):
        self.path = path
        self.mode = mode
        self.durability = durability
        self.power = durability == "power" and mode == "shared"

    def _map(self, int fd, Py_ssize_t size, bint writable, options, int directory, int64_t boot_offset):
        """Maps meta, of `size` bytes."""
        cdef Mapping mapping
        cdef mmapds_queue *control
        cdef int protection = PROT_READ | (PROT_WRITE if writable else 0)
        if size < CONTROL + <Py_ssize_t>sizeof(mmapds_held):
            raise CorruptionError(f"{self.path}: meta has {size} bytes, at least {CONTROL} belong there: restore a copy")
        mapping = Mapping(-1, CONTROL + RESERVE, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, self.path,
                          reserve=True)
        mapping.place(0, fd, 0, (size + MMAPDS_PAGE - 1) & -MMAPDS_PAGE, MAP_SHARED)
        control = <mmapds_queue *>mapping.base
        mapping.seal = &control.sentinel
        mapping.check()
        self.view.capacity = load_acquire_u64(&control.capacity)
        if kernel_size(fd) > size:      # after the capacity, which is raised when the file is long enough
            mapping.place(0, fd, 0, (kernel_size(fd) + MMAPDS_PAGE - 1) & -MMAPDS_PAGE, MAP_SHARED)
            size = kernel_size(fd)
        if self.view.capacity < 1 or self.view.capacity > (size - CONTROL) // sizeof(mmapds_held):
            raise CorruptionError(
                f"{self.path}: meta says that it has {self.view.capacity} entries, in {size} bytes: restore a copy"
            )
        self.begin(mapping, options, directory, boot_offset)
        self.writable = writable

    cdef begin(self, Mapping mapping, options, int directory, int64_t boot_offset):
        self.view.control = <mmapds_queue *>mapping.base
        self.view.lost = &mapping.lost
        self.view.segment_size, self.view.maxsize, self.view.max_bytes, self.view.max_attempts = options
        self.view.key = mmapds_queue_key(self.view.control.header.identity)
        self.view.directory = directory
        self.view.boot_offset = boot_offset
        self.view.tail_seen = 0
        self.shut = load_seq_cst_u64(&self.view.control.shutdowns)
        self.mapping = mapping

    def _map_copy(self, options, int64_t boot_offset, control, entries):
        """From here on the queue is memory of this process; `control` and `entries` are what `_copy_control` returned."""
        cdef Mapping mapping
        cdef const unsigned char[::1] head = control
        cdef const unsigned char[::1] tail = entries
        cdef mmapds_queue *copy
        mapping = Mapping(-1, CONTROL + RESERVE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                          self.path)
        copy = <mmapds_queue *>mapping.base
        memcpy(copy, &head[0], head.shape[0])
        if tail.shape[0]:
            memcpy(mapping.base + CONTROL, &tail[0], tail.shape[0])
        copy.put_lock = copy.take_lock = 0
        memset(&copy.events, 0, sizeof(copy.events))
        memset(&copy.slots, 0, sizeof(copy.slots))
        copy.holders = 0
        self.view.private_copy = True
        self.view.capacity = copy.capacity = RESERVE // <Py_ssize_t>sizeof(mmapds_held)
        self.begin(mapping, options, -1, boot_offset)
        self.writable = self.mode == "private"

    def _forget(self):
        """Lets go of everything; `_leave` comes first."""
        old = self.mapping, self.table      # unmapping lets go of the GIL: last
        self.mapping = None
        self.table = no_segments
        self.view.segments = &no_segments.entries[0]
        self.view.count = 0
        self.view.control = &nothing        # a thread may be between two looks
        self.view.lost = &nothing_lost
        self.view.capacity = 0
        self.view.directory = -1
        self.writable = False

    def _leave(self):
        """This handle ends: its claims and its place go back. Waits for the threads that use it."""
        cdef Mapping mapping = self.mapping
        cdef queue_view view
        cdef int status
        cdef int event
        cdef bint ours = self.ours == self.epoch[0]
        cdef LockFile locks
        while self.leaving and ours:            # another thread closes it: what it lets go of must not be in use
            with nogil:
                kernel_sleep_ns(1000000)
        if mapping is None or self.mapping is None:
            return
        self.leaving = ours
        if ours and self.owner is not None:
            for _ in range(20):             # a second, if somebody was stopped inside; our lock tells the others anyway
                if not self.view.holder:
                    break
                view = self.view
                with nogil:
                    status = queue_unregister(&view, True)
                if status == QUEUE_REMAP:
                    try:
                        self.settle(status)
                    except (CorruptionError, OSError):
                        self.view.holder = 0
                elif status != QUEUE_BUSY:
                    self.view.holder = 0    # if it is damaged, the kernel tells the others with our lock
        view = self.view
        self.mapping = None
        self.writable = False
        if ours:
            if self.owner is not None:
                for event in range(3):      # threads of this handle that sleep
                    queue_wake(&view, event, 0x7fffffff)
            while self.users > 0:
                with nogil:
                    kernel_sleep_ns(1000000)
            if self.owner is not None:
                locks = self.owner.locks
                self.owner = None
                locks.close()
        self.view.holder = 0
        self.view.locks = -1
        self.leaving = False

    @property
    def closed(self):
        """True after close()."""
        return self.mapping is None

    # ---- before an operation ------------------------------------------------------------------------------------

    cdef int opened(self) except -1:
        if self.mapping is None:
            raise Closed(f"{self.path}: this queue is closed")
        return 0

    cdef int own(self) except -1:
        """In a process that has not used this handle yet: a token of its own; its parent's holder slot is not ours."""
        self.opened()
        if self.view.private_copy:
            self.view.token = 1
        else:
            self._owned()
        self.ours = self.epoch[0]
        return 0

    def _owned(self):
        cdef Owner owner = self._new_owner() if self.writable else None
        self.view.holder = 0
        self.users = 0
        self.owner = owner
        if owner is not None:
            self.view.token = owner.token
            self.view.locks = owner.locks.fd

    cdef int hold_slot(self) except -1:
        """A place among the holders, for who takes items."""
        cdef queue_view view
        cdef Mapping mapping
        cdef int status
        cdef bint swept = False
        while not self.view.holder:
            ready(self)
            view = self.view
            mapping = self.mapping
            self.users += 1
            with nogil:
                status = queue_register(&view, getpid(), True)
            self.users -= 1
            PyErr_CheckSignals()
            ready(self)
            if status == QUEUE_DONE:
                self.view.holder = view.holder
            elif status == QUEUE_CROWDED and not swept:
                self.bury_dead(True)
                swept = True
            elif status != QUEUE_BUSY:
                self.settle(status)
        return 0

    # ---- what a transition lacked --------------------------------------------------------------------------------

    cdef int settle(self, int status) except -1:
        """Gets what a transition of this handle's view asked for, or raises what it means. Without locks."""
        cdef uint64_t number = self.view.wanted
        self.opened()
        if status == QUEUE_MAP or status == QUEUE_SEGMENT:
            try:
                if status == QUEUE_MAP:
                    mapping = self._open_segment(number)
                else:
                    mapping = self._make_segment(number, self.view.units)
            except (CorruptionError, IncompatibleFormat, IsADirectoryError):
                if self.mode != "shared":
                    raise
                self._broken_segment(number)    # it goes to the quarantine, and then it is missing
                return 0
            except FileNotFoundError:
                if status == QUEUE_MAP:     # finished meanwhile, and then nobody asks for it again; or lost
                    self._missing(number)
                    self.fruitless += 1
                    if self.fruitless > 1000:
                        raise CorruptionError(
                            f"{self.path}: meta refers to segment {number:016x}, which is missing, and to nothing in it: "
                            "`mmapds verify` says more; restore a copy"
                        )
                return 0
            self.fruitless = 0
            self.enter_segment(mapping, number)
        elif status == QUEUE_GROW:
            self._grow(self.view.capacity)
        elif status == QUEUE_REMAP:
            self._remap()
        elif status == QUEUE_STRANGER:
            self.view.holder = 0
            self.hold_slot()
        elif status == QUEUE_CROWDED:
            raise OverflowError(
                f"{self.path}: {MMAPDS_HOLDERS} handles take items from it already: close some, or share one among threads"
            )
        elif status == QUEUE_LOST:
            self.mapping.check()
            for segment in self.table.mappings:
                (<Mapping>segment).check()
            raise MappingLost(f"{self.path}: a file of the queue was cut while it was open", path=self.path)
        elif status < 0:
            raise DurabilityFailed(
                f"{self.path}: the disk did not take a segment (error {-status}); what was put since the last sync may not "
                "survive power loss. Check the disk, then call flush().", path=self.path, errno=-status)
        else:
            raise CorruptionError(
                f"{self.path}: meta contradicts itself (status {status}): `mmapds verify` says more; restore a copy"
            )
        return 0

    cdef int enter_segment(self, Mapping mapping, uint64_t number) except -1:
        """Adds a segment to the table. Those that are finished by now go, and the one that was used longest ago."""
        cdef Segments table = Segments.__new__(Segments), old = self.table
        cdef queue_segment *entry = &table.entries[0]
        cdef uint32_t i
        cdef list mappings = [mapping]
        entry.start = number * self.view.segment_size
        entry.length = mapping.size
        entry.base = mapping.base
        entry.lost = &mapping.lost
        table.count = 1
        for i in range(old.count):
            if (old.entries[i].start != entry.start and table.count < <uint32_t>KEPT
                    and (self.in_use(&old.entries[i]) or self._exists(old.entries[i].start // self.view.segment_size))):
                table.entries[table.count] = old.entries[i]
                table.count += 1
                mappings.append(old.mappings[i])
        table.mappings = tuple(mappings)
        self.use_table(table)
        return 0

    cdef bint in_use(self, const queue_segment *segment) noexcept:
        """Whether the head or the tail is in it."""
        return (load_relaxed_u64(&self.view.control.head) - segment.start < segment.length
                or load_relaxed_u64(&self.view.control.tail) - segment.start < segment.length)

    cdef use_table(self, Segments table):
        old = self.table                    # lives until the new one is in use
        self.table = table
        self.view.segments = &table.entries[0]
        self.view.count = table.count

    cdef int trim(self) except -1:
        """Lets go of segments that neither the head nor the tail is in: they may be finished, and take room on the disk."""
        cdef Segments table, old = self.table
        cdef uint32_t i
        cdef list mappings = []
        if self.view.private_copy or self.mapping is None:
            return 0
        table = Segments.__new__(Segments)
        for i in range(old.count):
            if self.in_use(&old.entries[i]):
                table.entries[table.count] = old.entries[i]
                table.count += 1
                mappings.append(old.mappings[i])
        if table.count != old.count:
            table.mappings = tuple(mappings)
            self.use_table(table)
        return 0

    cdef Mapping segment_at(self, uint64_t position):
        """The mapping that a position is in, if it is in the table."""
        cdef Segments table = self.table
        cdef uint32_t i
        for i in range(table.count):
            if position - table.entries[i].start < table.entries[i].length:
                return table.mappings[i]
        return None

    def _segment_mapping(self, int fd, Py_ssize_t size, bint anonymous=False):
        """What `_open_segment` and `_make_segment` return."""
        cdef int protection = PROT_READ | (PROT_WRITE if self.writable else 0)
        if anonymous:
            return Mapping(-1, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, self.path)
        return Mapping(fd, size, protection, MAP_PRIVATE if self.view.private_copy else MAP_SHARED, self.path)

    def _populate_mapped(self):
        """Faults in what is mapped."""
        self.opened()
        for segment in self.table.mappings:
            (<Mapping>segment).populate((<Mapping>segment).base, (<Mapping>segment).size, False)

    def _move_tail(self, uint64_t head, uint64_t tail):
        """The segment that the tail is in is lost: puts go on at `tail`. Unless it has moved meanwhile."""
        cdef queue_view view
        cdef Mapping mapping
        cdef int status = QUEUE_BUSY
        while status == QUEUE_BUSY:
            ready(self)
            view = self.view
            mapping = self.mapping
            self.users += 1
            with nogil:
                status = queue_put_lock(&view, True)
                if status == QUEUE_DONE:
                    if load_relaxed_u64(&view.control.tail) == head:
                        store_seq_cst_u64(&view.control.tail, tail)
                    lockword_release(&view.control.put_lock, False)
            self.users -= 1
            PyErr_CheckSignals()

    def _name_segment(self, int fd, temporary, path, uint64_t start):
        """Gives a new segment its name; FileNotFoundError if the tail has come to it, or past it, without this one: a file
        that came too late would lie over what others use, or would have used."""
        cdef queue_view view
        cdef Mapping mapping
        cdef bytes target = os.fsencode(path)
        cdef bytes source = os.fsencode(temporary or "")
        cdef const char *to = target
        cdef const char *named = source
        cdef int status = QUEUE_BUSY, failed = 0
        while status == QUEUE_BUSY:
            ready(self)
            view = self.view
            mapping = self.mapping
            self.users += 1
            with nogil:
                status = queue_put_lock(&view, True)
                if status == QUEUE_DONE:
                    # The tail is in the segment before, or at the start of this one, which nobody has made yet.
                    if load_relaxed_u64(&view.control.tail) > start + MMAPDS_PAGE:
                        failed = -ENOENT
                    else:
                        failed = kernel_rename_new(named, to) if named[0] else kernel_link_fd(fd, to)
                    lockword_release(&view.control.put_lock, False)
            self.users -= 1
            PyErr_CheckSignals()
        if failed:
            raise_errno(-failed, path)

    def _entries(self):
        """How many entries the file has, and how many are mapped."""
        return load_acquire_u64(&self.view.control.capacity), self.view.capacity

    def _map_entries(self, int fd):
        """Maps the entries that the file has more by now."""
        self.opened()
        cdef uint64_t capacity = load_acquire_u64(&self.view.control.capacity)
        cdef Py_ssize_t size = kernel_size(fd)  # after the capacity, which is raised when the file is long enough
        cdef Py_ssize_t end = (CONTROL + self.view.capacity * sizeof(mmapds_held) + MMAPDS_PAGE - 1) & -MMAPDS_PAGE
        cdef Py_ssize_t needed = (CONTROL + capacity * sizeof(mmapds_held) + MMAPDS_PAGE - 1) & -MMAPDS_PAGE
        if capacity < self.view.capacity or capacity > RESERVE // sizeof(mmapds_held) or needed > size:
            raise CorruptionError(f"{self.path}: meta says that it has {capacity} entries, in {size} bytes: restore a copy")
        if needed > end:
            self.mapping.place(end, fd, end, needed - end, MAP_SHARED)
        self.view.capacity = capacity

    def _publish_entries(self, uint64_t capacity):
        """The file has been made longer: from here on it has so many entries. False if somebody was faster."""
        cdef queue_view view
        cdef Mapping mapping
        cdef int status
        ready(self)
        view = self.view
        mapping = self.mapping
        self.users += 1
        with nogil:
            status = queue_take_lock(&view, True)
            if status == QUEUE_DONE:
                view.control.capacity = max(view.control.capacity, capacity)
                status = queue_take_unlock(&view, QUEUE_DONE)
        self.users -= 1
        ready(self)
        if status != QUEUE_DONE and status != QUEUE_BUSY:
            self.settle(status)
        return status == QUEUE_DONE

    def _locked_copy(self):
        """Control and entries, copied under the lock for taking; None if its owner is stopped."""
        cdef queue_view view
        cdef Mapping mapping
        cdef Py_ssize_t size
        cdef char *copy
        cdef int status
        cdef uint64_t used = 0, sequence = 0
        ready(self)
        view = self.view
        mapping = self.mapping
        size = CONTROL + view.capacity * sizeof(mmapds_held)
        copy = <char *>malloc(size)
        if copy is NULL:
            raise MemoryError
        try:
            self.users += 1
            with nogil:
                status = queue_take_lock(&view, True)
                if status == QUEUE_DONE:
                    used = min(view.control.used, view.capacity)
                    memcpy(copy, view.control, CONTROL + used * sizeof(mmapds_held))
                    (<mmapds_queue *>copy).tail = queue_tail(view.control, &sequence)
                    (<mmapds_queue *>copy).tail_sequence = sequence
                    status = queue_take_unlock(&view, QUEUE_DONE)
            self.users -= 1
            PyErr_CheckSignals()
            if status == QUEUE_DONE:
                return copy[:CONTROL], copy[CONTROL:CONTROL + used * sizeof(mmapds_held)]
            if status != QUEUE_BUSY:
                self.settle(status)
            return None
        finally:
            free(copy)

    # ---- holders -------------------------------------------------------------------------------------------------

    cdef int bury_dead(self, bint all_of_them) except -1:
        """Returns the items of dead holders; how many."""
        cdef queue_view view
        cdef Mapping mapping
        cdef int found
        self.looked = kernel_clock_ns()
        if self.view.private_copy or not self.writable:
            return 0
        while True:
            view = self.view
            mapping = self.mapping
            self.users += 1
            with nogil:
                found = queue_bury_dead(&view, all_of_them, True)
            self.users -= 1
            PyErr_CheckSignals()
            ready(self)
            if found >= 0:
                return found
            if found != -QUEUE_BUSY:
                self.settle(-found)

    cdef int look(self) except -1:
        """While others hold claims, now and then: has one of them died?"""
        cdef mmapds_queue *control = self.view.control
        cdef uint64_t mine = control.slots[self.view.holder - 1].claimed if self.view.holder else 0
        if load_relaxed_u64(&control.claimed) != mine and kernel_clock_ns() - self.looked >= LOOK:
            return self.bury_dead(False)
        return 0

    def _tend(self):
        """What who waits does now and then, one for all: looks for dead holders. And lets go of finished segments."""
        cdef mmapds_queue *control
        cdef uint64_t now, looked
        ready(self)
        self.trim()
        control = self.view.control
        now = queue_now(&self.view)
        looked = load_seq_cst_u64(&control.looked)
        if now - looked < <uint64_t>SHARED_LOOK or self.view.private_copy or not self.writable:
            return                          # unsigned: a time in the future does not count
        if compare_exchange_seq_cst_u64(&control.looked, &looked, now):
            self.bury_dead(False)

    # ---- durability ----------------------------------------------------------------------------------------------

    cdef int check_durable(self) except -1:
        if self.power and load_seq_cst_u64(&self.view.control.header.failed):
            raise DurabilityFailed(
                f"{self.path}: an earlier sync failed, here or in another process, and what it was to write may be lost. "
                "Check the disk, then call flush(), which writes everything anew.", path=self.path)
        return 0

    cdef int durable(self, Mapping segment) except -1:
        """Group commit: returns when the disk has what this thread has stored in the segment. One for all syncs; the others
        sleep until the count of what is on the disk has passed theirs."""
        cdef mmapds_segment_words *words = mmapds_words_of(segment.base)
        cdef uint64_t mine, upto, done
        cdef int64_t until
        cdef uint64_t token = self.view.token
        cdef int locks = self.view.locks
        cdef uint64_t *failed = &self.view.control.header.failed
        cdef Mapping meta = self.mapping
        cdef int error = 0, rounds = 0
        cdef bint busy
        mine = fetch_add_seq_cst_u64(&words.dirtied, 1) + 1     # after our stores: who syncs reads it before he syncs
        while error == 0:
            self.users += 1
            with nogil:
                done = load_seq_cst_u64(&words.synced)
                if done < mine and not load_seq_cst_u64(failed):
                    if lockword_try(&words.lock, token, False) == LOCK_BUSY:
                        kernel_futex_wait(<uint32_t *>&words.synced, <uint32_t>done, 50000000)
                        busy = (load_seq_cst_u64(&words.synced) != done
                                or lockword_press(&words.lock, token, locks, False) == LOCK_BUSY)
                    else:
                        busy = False
                    if not busy:
                        # Ours, perhaps by taking over from one who died: what he has not published nobody relies on.
                        # Not alone, he waits a moment for those whom the last sync has just woken: else two halves would
                        # sync in turn, for ever.
                        done = load_seq_cst_u64(&words.synced)
                        upto = load_seq_cst_u64(&words.dirtied)
                        if upto - done > 1:
                            until = kernel_clock_ns() + GATHER
                            while upto - done < load_relaxed_u64(&words.group) and kernel_clock_ns() < until:
                                sched_yield()
                                upto = load_seq_cst_u64(&words.dirtied)
                        if done < mine:
                            store_relaxed_u64(&words.group, upto - done)
                            error = errno if msync(segment.base, segment.length, MS_SYNC) != 0 else 0
                            if error:
                                store_seq_cst_u64(failed, 1)
                            else:
                                store_seq_cst_u64(&words.synced, upto)
                        lockword_release(&words.lock, False)
                        kernel_futex_wake(<uint32_t *>&words.synced, 0x7fffffff)
            self.users -= 1
            if done >= mine or load_seq_cst_u64(failed):
                break
            rounds += 1
            if rounds > 20:             # a second: who syncs was stopped. Not before: an item may be in the caller's hand
                PyErr_CheckSignals()
                self.opened()
        segment.check()
        meta.check()
        if error or load_seq_cst_u64(failed):
            raise DurabilityFailed(
                f"{self.path}: the disk did not take what was written" + (f" (error {error})" if error else "") +
                ". Others see it, and it may not survive power loss. Check the disk, then call flush().", path=self.path)
        return 0

    def _set_failed(self, bint failed):
        store_seq_cst_u64(&self.view.control.header.failed, failed)

    def _sync_control(self, bint anew):
        """msync of meta; `anew`: also of pages that a failed sync has left clean."""
        cdef Mapping mapping = self.mapping
        cdef Py_ssize_t size = CONTROL + self.view.capacity * sizeof(mmapds_held)
        cdef int failed
        with nogil:
            if anew:
                redirty(mapping.base, size)
            failed = errno if msync(mapping.base, size, MS_SYNC) != 0 else 0
        return failed

    def _sync_segment(self, Mapping segment not None, bint anew):
        """The same of a segment."""
        cdef int failed
        with nogil:
            if anew:
                redirty(segment.base, segment.size)
            failed = errno if msync(segment.base, segment.length, MS_SYNC) != 0 else 0
        return failed


LAYOUT = {"CONTROL": CONTROL, "ENTRY": sizeof(mmapds_held), "HEAD": MMAPDS_ITEM_HEAD, "HOLDERS": MMAPDS_HOLDERS}
