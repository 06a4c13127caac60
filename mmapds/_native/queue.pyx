# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""The hot half of Queue, above putting and taking: counting, waiting for the end, giving up what is damaged."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t

from mmapds._native.atomics cimport (
    fetch_add_seq_cst_u64,
    load_acquire_u64,
    load_relaxed_u64,
    load_seq_cst_u64,
    store_seq_cst_u64,
)
from mmapds._native.kernel cimport kernel_clock_ns
from mmapds._native.queueput cimport limit_of
from mmapds._native.queuetake cimport Box, QueueTake
from mmapds._native.queueview cimport *
from mmapds._native.queueview cimport Segments, ready
from mmapds._native.region cimport Mapping

from mmapds.errors import CorruptionError


cdef int64_t FEW = 1LL << 20              # items that are believed without looking at the files


@cython.binding(False)
cdef class QueueCore(QueueTake):

    @property
    def _meta(self):
        """The mapping of meta."""
        self.opened()
        return self.mapping

    def _skip(self, uint64_t head, uint64_t position, uint64_t count):
        """The head goes past damaged records, unless it has moved meanwhile: whether it did."""
        cdef queue_view view
        cdef Mapping meta
        cdef Segments table
        cdef int status
        while True:
            ready(self)
            view = self.view
            meta = self.mapping
            table = self.table
            self.users += 1
            with nogil:
                status = queue_skip(&view, head, position, count, True)
            self.users -= 1
            if status == QUEUE_DONE or status == QUEUE_STALE:
                return status == QUEUE_DONE
            PyErr_CheckSignals()
            if status != QUEUE_BUSY:
                self.settle(status)

    def _discard(self, uint32_t number, uint64_t position):
        """A returned item whose record is damaged is given up, unless that has happened: whether it did."""
        cdef queue_view view
        cdef Mapping meta
        cdef int status
        while True:
            ready(self)
            view = self.view
            meta = self.mapping
            self.users += 1
            with nogil:
                status = queue_discard(&view, number, position, True)
            self.users -= 1
            if status == QUEUE_DONE or status == QUEUE_STALE:
                return status == QUEUE_DONE
            PyErr_CheckSignals()
            if status != QUEUE_BUSY:
                self.settle(status)

    # ---- counting and waiting for the end ------------------------------------------------------------------------

    def qsize(self):
        """How many items wait, those with a delay included; claimed ones are not."""
        cdef int64_t found
        cdef uint64_t head, tail
        self.opened()
        found = queue_waiting(self.view.control)
        self.mapping.check()
        head = load_acquire_u64(&self.view.control.head)        # first: it does not pass the tail
        tail = load_acquire_u64(&self.view.control.tail)
        if head > tail or found > <int64_t>((tail - head) // MMAPDS_ITEM_HEAD + self.view.control.capacity) \
                or (found > FEW and not self._can_hold(tail)):
            self.settle(QUEUE_DAMAGED)      # nobody should make room for so many
        return max(0, found)

    def __len__(self):
        return self.qsize()

    def __bool__(self):
        return True                         # as queue.Queue: emptiness is asked for by name

    def empty(self):
        """True if nothing waits. It may be otherwise when you look at the answer."""
        return self.qsize() == 0

    def full(self):
        """True if `maxsize` items wait."""
        cdef uint64_t waiting = self.qsize()
        return 0 < self.view.maxsize <= waiting

    @property
    def unfinished_tasks(self):
        """Items that are not done: they wait, are claimed, or were got and wait for task_done."""
        cdef int64_t found
        self.opened()
        found = queue_unfinished(self.view.control)
        self.mapping.check()
        return max(0, found)

    def task_done(self):
        """An item that this handle got is done. ValueError if it has not got so many.

        Items that a handle got and that are not done when it ends, or dies, count as done: nobody will say so any more.
        """
        cdef queue_view view
        cdef Mapping meta
        cdef int status = QUEUE_BUSY
        ready(self)
        if not self.writable:
            self._refuse()
        while status != QUEUE_DONE:
            view = self.view
            meta = self.mapping
            self.users += 1
            with nogil:
                status = queue_task_done(&view, 1, True)
            self.users -= 1
            if status == QUEUE_DONE:
                return
            PyErr_CheckSignals()
            ready(self)
            if status == QUEUE_STALE:
                raise ValueError("task_done() called too many times")
            if status != QUEUE_BUSY:
                self.settle(status)

    def join(self, timeout=None):
        """Waits until every item is done: acked, or got and task_done; False if that took longer than `timeout` seconds.

        Items of consumers that died count for whoever has them next, or as done.
        """
        cdef int64_t limit = limit_of(True, timeout)
        cdef uint32_t seen
        ready(self)
        if not self.writable:
            self._refuse()
        while True:
            seen = queue_announce(&self.view, QUEUE_JOINED)
            if queue_unfinished(self.view.control) <= 0:
                self.mapping.check()
                return True
            late = self.wait(QUEUE_JOINED, seen, limit)
            ready(self)
            self.mapping.check()
            if late:
                return queue_unfinished(self.view.control) <= 0

    def _wait_item(self, double seconds):
        """For the waiter thread of asyncio: sleeps until there may be something to take, and says whether; takes nothing."""
        cdef uint32_t seen
        ready(self)
        seen = queue_announce(&self.view, QUEUE_ITEMS)
        if (load_relaxed_u64(&self.view.control.head) == load_seq_cst_u64(&self.view.control.tail)
                and not load_relaxed_u64(&self.view.control.heaps[QUEUE_READY])
                and load_relaxed_u64(&self.view.control.shutdowns) == self.shut):
            return self.wait(QUEUE_ITEMS, seen, kernel_clock_ns() + <int64_t>(seconds * 1e9)) == 0
        return True

    def _shut(self, bint immediate):
        """Every handle that is open now is shut down; this one too."""
        cdef mmapds_queue *control
        cdef uint64_t number
        ready(self)
        if not self.writable:
            self._refuse()
        control = self.view.control
        number = fetch_add_seq_cst_u64(&control.shutdowns, 1) + 1
        if immediate:
            store_seq_cst_u64(&control.immediate, number)
        for event in (QUEUE_ITEMS, QUEUE_ROOM, QUEUE_JOINED):
            queue_wake(&self.view, event, 0x7fffffff)
        self.mapping.check()

    def _purge(self):
        """Takes away all that waits now; how many."""
        cdef queue_item item
        cdef queue_view view
        cdef Mapping meta
        cdef Segments table = None
        cdef uint64_t until, head, aside, number = 0, count = 0
        cdef int status = QUEUE_DONE, found = 0
        ready(self)
        if not self.writable:
            self._refuse()
        until = load_seq_cst_u64(&self.view.control.tail)
        while load_relaxed_u64(&self.view.control.head) < until and status != QUEUE_EMPTY:
            status = self.attempt(QUEUE_DROP, 0, NULL, 0, &item, Box.__new__(Box))
            if status == QUEUE_BAD:
                head = load_relaxed_u64(&self.view.control.head)
                aside = load_relaxed_u64(&self.view.control.tallies[QUEUE_SET_ASIDE])
                try:
                    self._set_aside(item.position, item.entry)
                except CorruptionError:
                    if head == load_relaxed_u64(&self.view.control.head) and \
                            aside == load_relaxed_u64(&self.view.control.tallies[QUEUE_SET_ASIDE]):
                        raise           # it was not set aside: it would be found for ever
            count += status != QUEUE_EMPTY
            ready(self)
        while number < load_relaxed_u64(&self.view.control.used):
            table = None
            view = self.view
            table = self.table
            meta = self.mapping
            self.users += 1
            with nogil:
                status = queue_purge_entry(&view, <uint32_t>(number + 1), &found, True)
            self.users -= 1
            if status == QUEUE_DONE:
                count += found
                number += 1
                continue
            self.view.wanted = view.wanted
            PyErr_CheckSignals()
            ready(self)
            if status != QUEUE_BUSY:
                self.settle(status)
        queue_wake(&self.view, QUEUE_ROOM, 0x7fffffff)
        queue_wake(&self.view, QUEUE_JOINED, 0x7fffffff)
        self.mapping.check()            # else the tail, or how many entries there are, may be zeros of a file that was cut
        return count
