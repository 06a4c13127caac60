# cython: language_level=3
"""A queue as one handle has it mapped (queueview.pyx), and the transitions of queueput.h and queue.h."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from mmapds._native.lockword cimport Owner
from mmapds._native.region cimport Mapping


cdef extern from "queue.h" nogil:
    int MMAPDS_PAGE, MMAPDS_HOLDERS, MMAPDS_ITEM_BITS
    uint64_t MMAPDS_DELAYED, MMAPDS_COMPRESSED, MMAPDS_END
    uint64_t MMAPDS_SENTINEL
    uint64_t MMAPDS_ITEM_HEAD
    int MMAPDS_ITEM_NEW, MMAPDS_ITEM_CLAIMED, MMAPDS_ITEM_RETURNED, MMAPDS_ITEM_DONE
    int QUEUE_DONE, QUEUE_EMPTY, QUEUE_FULL, QUEUE_BUSY, QUEUE_MAP, QUEUE_SEGMENT, QUEUE_GROW, QUEUE_REMAP, QUEUE_LARGE
    int QUEUE_BAD, QUEUE_TIRED, QUEUE_STALE, QUEUE_DAMAGED, QUEUE_LOST, QUEUE_CROWDED, QUEUE_STRANGER
    int QUEUE_ITEMS, QUEUE_ROOM, QUEUE_JOINED
    int QUEUE_GET, QUEUE_CLAIM, QUEUE_DROP
    int QUEUE_TIMED, QUEUE_READY
    int QUEUE_FREE, QUEUE_DELAYED, QUEUE_WAITING, QUEUE_CLAIMED, QUEUE_LEASED
    int QUEUE_RETURNS, QUEUE_DEATHS, QUEUE_EXPIRED, QUEUE_BURIED, QUEUE_SET_ASIDE, QUEUE_CUT, QUEUE_PURGED, QUEUE_RECOVERIES
    int64_t QUEUE_SLICE

    ctypedef struct mmapds_header:
        unsigned char identity[16]
        uint64_t failed
    ctypedef struct mmapds_record_item:
        uint64_t check, hash, order, extent, born, state, wall, wait, place, due, delay
    ctypedef struct mmapds_held:
        uint64_t position, sequence, size, due, place, stamp, fence
        uint32_t segment_previous, segment_next, own_previous, own_next, holder, attempts, heap_at, kind
        uint32_t cells[2]
    ctypedef struct mmapds_holder:
        uint64_t token, owing, claims, claimed, pid
    ctypedef struct mmapds_event:
        uint32_t count, sleepers
    ctypedef struct mmapds_queue:
        mmapds_header header
        uint64_t put_lock, tail, tail_sequence, saved_tail, saved_sequence, epoch
        uint64_t take_lock, head, head_sequence, changes, logged, finished
        uint64_t capacity, used, free
        uint64_t heaps[2]
        uint64_t leased, claimed, waiting_bytes, held, fences, stamps, holders
        uint64_t tallies[16]
        mmapds_event events[4]
        uint64_t shutdowns, immediate, looked
        mmapds_holder slots[1024]
        uint64_t sentinel
        mmapds_held entries[0]
    ctypedef struct mmapds_segment_words:
        uint64_t dirtied, synced, lock, group
    mmapds_segment_words *mmapds_words_of(char *segment)
    uint64_t mmapds_queue_key(const unsigned char *identity)
    uint64_t mmapds_item_state(unsigned int what, uint32_t attempts, const uint64_t *after, uint64_t position, uint64_t key)

    ctypedef struct queue_segment:
        uint64_t start, length
        char *base
        uint32_t *lost
    ctypedef struct queue_view:
        mmapds_queue *control
        uint32_t *lost
        uint64_t capacity, segment_size, maxsize, max_bytes, max_attempts, key, token
        int locks, directory
        int64_t boot_offset
        uint32_t holder, damaged
        uint64_t tail_seen, wanted, units
        const queue_segment *segments
        uint32_t count, private_copy
    ctypedef struct queue_item:
        uint64_t position, sequence, size, hash, epoch, flags, born, fence
        uint32_t entry, attempts
        const queue_segment *segment
        mmapds_record_item *record
        char *payload

    int64_t queue_now(const queue_view *view)
    uint64_t queue_wall(int clock)
    const queue_segment *queue_find(const queue_view *view, uint64_t position)
    uint64_t queue_record_bytes(uint64_t flags, uint64_t size)
    uint64_t queue_record(const queue_view *view, const queue_segment *segment, uint64_t position, mmapds_record_item *copy)
    void queue_store_state(const queue_view *view, mmapds_record_item *record, uint64_t position, unsigned int what,
                           uint32_t attempts, uint64_t wall, uint64_t wait, uint64_t place)
    void queue_wake(queue_view *view, int event, int count)
    int queue_put_lock(queue_view *view, int patient)
    int queue_put_one(queue_view *view, const char *data, uint64_t size, const mmapds_record_item *prepared,
                      uint64_t *position)
    int queue_put(queue_view *view, const char *data, uint64_t size, const mmapds_record_item *prepared,
                  uint64_t *position, int patient)
    int queue_take_lock(queue_view *view, int patient)
    int queue_take_unlock(queue_view *view, int status)
    int queue_take_one(queue_view *view, int how, uint64_t lease, char *into, uint64_t room, queue_item *item)
    int queue_take(queue_view *view, int how, uint64_t lease, char *into, uint64_t room, queue_item *item, int patient)
    uint64_t queue_guess(const queue_view *view, uint64_t limit)
    int queue_ack(queue_view *view, const queue_item *item, int owe, int patient)
    int queue_nack(queue_view *view, const queue_item *item, uint64_t delay, int to_back, int patient)
    int queue_touch(queue_view *view, const queue_item *item, uint64_t lease, int patient)
    int queue_bury_dead(queue_view *view, int all, int patient)
    int queue_register(queue_view *view, uint64_t pid, int patient)
    int queue_unregister(queue_view *view, int patient)
    int queue_task_done(queue_view *view, uint64_t count, int patient)
    int64_t queue_unfinished(const mmapds_queue *control)
    int64_t queue_waiting(const mmapds_queue *control)
    uint64_t queue_tail(const mmapds_queue *control, uint64_t *sequence)
    int queue_skip(queue_view *view, uint64_t head, uint64_t position, uint64_t count, int patient)
    int queue_discard(queue_view *view, uint32_t number, uint64_t position, int patient)
    int queue_purge_entry(queue_view *view, uint32_t number, int *found, int patient)
    uint32_t queue_announce(queue_view *view, int event)
    int queue_sleep(queue_view *view, int event, uint32_t seen, int64_t nanoseconds)
    uint32_t queue_make(queue_view *view, uint64_t position, uint64_t sequence, uint64_t size, int kind)
    mmapds_held *queue_entry(queue_view *view, uint64_t number)
    void queue_await(queue_view *view, uint32_t number, uint64_t due)
    void queue_commit(queue_view *view)
    int queue_begin_look(const mmapds_queue *control, uint64_t *changes)
    int queue_end_look(const mmapds_queue *control, uint64_t changes)
    int queue_rollback(queue_view *view)
    int LOCK_BUSY
    int lockword_try(uint64_t *word, uint64_t token, bint waited)
    int lockword_press(uint64_t *word, uint64_t token, int fd, bint waited)
    void lockword_release(uint64_t *word, bint dirty)


cdef class Segments:
    """Segments that a handle has mapped: a table that never changes, so that it can be used without the GIL."""
    cdef queue_segment entries[16]
    cdef uint32_t count
    cdef tuple mappings


cdef class QueueView:
    """A queue as one handle has it mapped, and what its transitions need of Python when they stop half way."""
    cdef queue_view view
    cdef Mapping mapping                # meta; None after close()
    cdef Segments table
    cdef Owner owner
    cdef const uint64_t *epoch
    cdef uint64_t ours                  # the fork epoch in which owner and holder slot are ours
    cdef int64_t looked                 # when we looked for dead holders (kernel_clock_ns)
    cdef uint64_t shut                  # shutdowns that there had been when the handle was opened
    cdef int fruitless                  # how often in a row a segment was missing that nobody missed
    cdef Py_ssize_t users               # threads that are in a transition without the GIL
    cdef bint power, writable, leaving
    cdef readonly str path
    cdef readonly str mode
    cdef readonly str durability
    cdef begin(self, Mapping mapping, options, int directory, int64_t boot_offset)
    cdef use_table(self, Segments table)
    cdef int opened(self) except -1
    cdef int own(self) except -1
    cdef int hold_slot(self) except -1
    cdef int settle(self, int status) except -1
    cdef int bury_dead(self, bint all_of_them) except -1
    cdef int look(self) except -1
    cdef int trim(self) except -1
    cdef bint in_use(self, const queue_segment *segment) noexcept
    cdef int enter_segment(self, Mapping mapping, uint64_t number) except -1
    cdef Mapping segment_at(self, uint64_t position)
    cdef int durable(self, Mapping segment) except -1
    cdef int check_durable(self) except -1


cdef inline int ready(QueueView self) except -1:
    """Before each operation: open, of this process, not cut."""
    if self.mapping is None or self.ours != self.epoch[0]:
        self.own()
    return 0
