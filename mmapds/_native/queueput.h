/* Putting into a queue (layout.h: QUEUE), and what all transitions need: locks, time, segments, waking. Each transition
   is one function that holds a lock from its beginning to its end and returns a status. None touches Python; all may be
   called without the GIL, on a copy of the view.

   Putting, under put_lock. Only the tail tells what is in the queue:

      write the record behind the tail      die here: nothing has happened; the next put writes over it
      saved sequence, saved tail            die here: nothing has happened
      tail sequence                         die here: the saved tail is still the tail, so the saved sequence is restored
      tail                                  the item is there; takers pair with this store
      unlock, wake one                      die here: sleepers look again by themselves within QUEUE_SLICE

   A segment that has no room is closed with an END record (or by being too short for a record), then the tail moves to
   the next one, which exists already: a death in between leaves a tail at the END record, over which the next put writes
   one again. In durability "power" the old segment is synced before the tail leaves it, so that recovery never finds a
   hole before a record that was durable.

   Waiting, for items: load `count`, store `sleepers`, look again, sleep on `count`. Waking: publish, then load `sleepers`; if it is
   set, clear it, raise `count`, wake one. All sequentially consistent: either the sleeper's second look sees what was
   published, or the waker sees the sleeper. Who has slept sets `sleepers` again before it looks, because others may
   still sleep, and having found something wakes the next if there is more: a thousand sleepers wake one at a time. A
   waker or a woken one that is killed leaves the others asleep for QUEUE_SLICE at most. For room, likewise. */
#ifndef MMAPDS_QUEUEPUT_H
#define MMAPDS_QUEUEPUT_H

#include "kernel.h"
#include "lockword.h"
#include "queueindex.h"
#include <stdio.h>

#define QUEUE_SLICE 50000000LL /* ns: no sleep is longer, as others may die before they wake us */
#define QUEUE_PATIENCE 50000000LL /* ns: the same for locks; then it is looked whether the owner lives */

enum {
    QUEUE_DONE = 0,
    QUEUE_EMPTY = 1,
    QUEUE_FULL = 2,
    QUEUE_BUSY = 3,     /* somebody has the lock */
    QUEUE_MAP = 4,      /* segment `wanted` is not mapped */
    QUEUE_SEGMENT = 5,  /* segment `wanted`, of `units` units, must exist and be mapped */
    QUEUE_GROW = 6,     /* there is no entry left: extend the file */
    QUEUE_REMAP = 7,    /* the file has more entries than are mapped */
    QUEUE_LARGE = 8,    /* the item does not fit into the buffer */
    QUEUE_BAD = 9,      /* the record is not what was written */
    QUEUE_TIRED = 10,   /* claimed, but it has been tried max_attempts times */
    QUEUE_STALE = 11,   /* the claim is not ours any more */
    QUEUE_DAMAGED = 12, /* meta contradicts itself */
    QUEUE_LOST = 13,    /* a file was cut */
    QUEUE_CROWDED = 14, /* no holder slot is free */
    QUEUE_STRANGER = 15, /* our holder slot is not ours (any more): register */
};

enum { QUEUE_ITEMS, QUEUE_ROOM, QUEUE_JOINED }; /* events */
enum { QUEUE_GET, QUEUE_CLAIM, QUEUE_DROP };    /* ways to take */

/* An item, as it was taken. */
typedef struct {
    uint64_t position, sequence, size, hash, epoch, flags, born;
    uint64_t fence;
    uint32_t entry, attempts;
    const queue_segment *segment; /* of the view that it was taken with */
    mmapds_record_item *record;
    char *payload;
} queue_item;

/* ---- locks, time, segments ------------------------------------------------------------------------------------ */

static inline int64_t queue_now(const queue_view *view)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec - view->boot_offset;
}

static inline uint64_t queue_wall(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* `patient`: without the GIL, spins, looks whether the owner is dead, and sleeps; BUSY after QUEUE_PATIENCE. */
static inline int queue_lock(queue_view *view, uint64_t *word, int patient)
{
    int status = lockword_try(word, view->token, 0);
    if (status == LOCK_BUSY && patient) {
        status = lockword_press(word, view->token, view->locks, 0);
        if (status == LOCK_BUSY) {
            lockword_sleep(word, QUEUE_PATIENCE);
            status = lockword_press(word, view->token, view->locks, 1);
        }
    }
    return status;
}

static inline const queue_segment *queue_find(const queue_view *view, uint64_t position)
{
    for (uint32_t i = 0; i < view->count; i++)
        if (position - view->segments[i].start < view->segments[i].length)
            return &view->segments[i];
    return NULL;
}

static inline int queue_map(queue_view *view, uint64_t position)
{
    view->wanted = position / view->segment_size;
    return QUEUE_MAP;
}

static inline uint64_t queue_record_bytes(uint64_t flags, uint64_t size)
{
    return (flags & MMAPDS_DELAYED ? sizeof(mmapds_record_item) : MMAPDS_ITEM_HEAD) + ((size + 7) & ~7ULL);
}

/* The record at a position of a segment, read once into `copy`: its length with the head, 0 if it is not what was written. */
static inline uint64_t queue_record(const queue_view *view, const queue_segment *segment, uint64_t position,
                                    mmapds_record_item *copy)
{
    uint64_t room = segment->start + segment->length - position, size;
    if (position & 7 || position - segment->start < MMAPDS_PAGE || room < MMAPDS_ITEM_HEAD)
        return 0;
    memcpy(copy, segment->base + (position - segment->start), room < sizeof(*copy) ? room : sizeof(*copy));
    size = queue_record_bytes(copy->order, copy->extent & ((1ULL << MMAPDS_ITEM_BITS) - 1));
    if (size > room || copy->check != mmapds_item_check(copy, position, view->key))
        return 0;
    return size;
}

static inline void queue_store_state(const queue_view *view, mmapds_record_item *record, uint64_t position, unsigned what,
                                     uint32_t attempts, uint64_t wall, uint64_t wait, uint64_t place)
{
    uint64_t after[3] = {wall, wait, place};
    if (wall | wait | place | record->wall | record->wait | record->place) {
        store_relaxed_u64(&record->wall, wall);
        store_relaxed_u64(&record->wait, wait);
        store_relaxed_u64(&record->place, place);
    }
    store_relaxed_u64(&record->state, mmapds_item_state(what, attempts, after, position, view->key));
}

static inline void queue_wake(queue_view *view, int event, int count)
{
    mmapds_event *on = &view->control->events[event];
    if (load_seq_cst_u32(&on->sleepers) && !view->private_copy) { /* see the top */
        store_seq_cst_u32(&on->sleepers, 0);
        fetch_add_seq_cst_u32(&on->count, 1);
        kernel_futex_wake(&on->count, count);
    }
}

/* ---- putting -------------------------------------------------------------------------------------------------- */

static inline int queue_put_lock(queue_view *view, int patient)
{
    mmapds_queue *control = view->control;
    int status = queue_lock(view, &control->put_lock, patient);
    if (status == LOCK_BUSY)
        return QUEUE_BUSY;
    if (status == LOCK_TAKEN_DIRTY && control->saved_tail == control->tail)
        control->tail_sequence = control->saved_sequence;
    return QUEUE_DONE;
}

/* What waits now; exact, unless a taker was stopped or killed in the middle of a transition. */
static inline int queue_full(queue_view *view, uint64_t size)
{
    const mmapds_queue *control = view->control;
    uint64_t changes, bytes;
    int64_t waiting;
    for (int i = 0; i < 100; i++) {
        int quiet = queue_begin_look(control, &changes);
        waiting = queue_waiting(control);
        bytes = load_relaxed_u64(&control->tail) - load_relaxed_u64(&control->head) + load_relaxed_u64(&control->waiting_bytes);
        if (quiet && queue_end_look(control, changes))
            break;
        cpu_relax();
    }
    if (view->maxsize && waiting >= (int64_t)view->maxsize)
        return 1;
    return view->max_bytes && waiting > 0 && bytes + size > view->max_bytes;
}

/* What follows the last record of a segment, if there is room to say so. */
static inline void queue_seal(queue_view *view, const queue_segment *segment, uint64_t position, uint64_t sequence)
{
    mmapds_record_item *end = (mmapds_record_item *)(segment->base + (position - segment->start));
    if (segment->start + segment->length - position < MMAPDS_ITEM_HEAD)
        return;
    memset(end, 0, MMAPDS_ITEM_HEAD);
    end->order = sequence << 8 | MMAPDS_END; /* of what comes next */
    end->extent = view->control->epoch << MMAPDS_ITEM_BITS;
    end->check = mmapds_item_check(end, position, view->key);
}

/* In durability "power", before the tail leaves a segment: 0 or -errno. */
static inline int queue_sync_left(queue_view *view, const queue_segment *segment)
{
    if (!view->control->header.durability || view->private_copy || msync(segment->base, segment->length, MS_SYNC) == 0)
        return 0;
    int failed = errno;
    store_seq_cst_u64(&view->control->header.failed, 1);
    return -failed;
}

/* Puts one item; `prepared` has hash, flags (but DELAYED), born, due and delay. With the lock. Sets `position`. */
static inline int queue_put_one(queue_view *view, const char *data, uint64_t size, const mmapds_record_item *prepared,
                                uint64_t *position)
{
    mmapds_queue *control = view->control;
    uint64_t flags = prepared->order | (prepared->delay ? MMAPDS_DELAYED : 0);
    uint64_t bytes = queue_record_bytes(flags, size), tail = control->tail, next, end;
    uint64_t units = (bytes + MMAPDS_PAGE + view->segment_size - 1) / view->segment_size;
    const queue_segment *segment = queue_find(view, tail), *after;
    if ((view->maxsize || view->max_bytes) && queue_full(view, bytes))
        return QUEUE_FULL;
    if (!segment) {
        view->wanted = tail / view->segment_size;
        view->units = units;
        return tail % view->segment_size == MMAPDS_PAGE ? QUEUE_SEGMENT : QUEUE_MAP; /* in the first case it may not exist */
    }
    for (;;) {
        end = segment->start + segment->length;
        if (bytes <= end - tail)
            break;
        after = queue_find(view, end);
        if (!after) {
            view->wanted = end / view->segment_size;
            view->units = units;
            return QUEUE_SEGMENT;
        }
        queue_seal(view, segment, tail, control->tail_sequence);
        if (kernel_lost(segment->lost))
            return QUEUE_LOST;
        int failed = queue_sync_left(view, segment);
        if (failed)
            return failed;
        segment = after; /* perhaps too small, made for somebody's smaller item: then it stays empty, and the next is tried */
        tail = end + MMAPDS_PAGE;
        store_seq_cst_u64(&control->tail, tail);
    }
    mmapds_record_item *record = (mmapds_record_item *)(segment->base + (tail - segment->start));
    uint64_t sequence = control->tail_sequence, none[3] = {0, 0, 0};
    mmapds_record_item head = *prepared;
    head.order = sequence << 8 | flags;
    head.extent = size | control->epoch << MMAPDS_ITEM_BITS;
    head.wall = head.wait = head.place = 0;
    head.check = mmapds_item_check(&head, tail, view->key);
    head.state = mmapds_item_state(MMAPDS_ITEM_NEW, 0, none, tail, view->key);
    if (flags & MMAPDS_DELAYED)
        memcpy(record, &head, sizeof(head));
    else
        memcpy(record, &head, MMAPDS_ITEM_HEAD);
    char *payload = (char *)record + (flags & MMAPDS_DELAYED ? sizeof(head) : MMAPDS_ITEM_HEAD);
    if (size & 7)
        memset(payload + (size & ~7ULL), 0, 8);
    memcpy(payload, data, size);
    if (kernel_lost(segment->lost))
        return QUEUE_LOST;
    *position = tail;
    next = tail + bytes;
    if (end - next < MMAPDS_ITEM_HEAD || segment->length > view->segment_size) { /* a large item is alone */
        queue_seal(view, segment, next, sequence + 1);
        int failed = queue_sync_left(view, segment);
        if (failed)
            return failed;
        next = end + MMAPDS_PAGE;
    }
    store_relaxed_u64(&control->saved_sequence, sequence);
    __atomic_thread_fence(__ATOMIC_RELEASE); /* each of these before the next: see the top */
    store_relaxed_u64(&control->saved_tail, control->tail);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    store_relaxed_u64(&control->tail_sequence, sequence + 1);
    store_release_u64(&control->tail, next); /* pairs with the load in queue_pick; unlocking is a full barrier: queue_wake */
    return QUEUE_DONE;
}

static inline int queue_put(queue_view *view, const char *data, uint64_t size, const mmapds_record_item *prepared,
                            uint64_t *position, int patient)
{
    int status = queue_put_lock(view, patient);
    if (status)
        return status;
    status = queue_put_one(view, data, size, prepared, position);
    if (kernel_lost(view->lost))
        status = QUEUE_LOST;
    lockword_release(&view->control->put_lock, 0);
    if (status == QUEUE_DONE)
        queue_wake(view, QUEUE_ITEMS, 1);
    return status;
}

#endif
