/* The index of a queue: what is not where it was put any more, or not yet. Claimed, delayed and returned items.

   All of it changes under take_lock, by transitions that a death cannot leave half done: before a word changes, its old
   value goes to the undo log, and the transition is done when the log's length is set to 0. Whoever finds the lock's owner
   dead takes back what the log holds, in reverse. It takes back at most one transition, whose caller has not returned.

      die before a word is logged           nothing has changed
      ... between `logged` and `commit`     the next owner restores every word; if it dies meanwhile, the one after it
                                            does so again, from the same log
      ... after `commit`                    done

   That needs order only between the stores of one processor, as seen by another after the first has been killed (and the
   kernel has said so); release fences, which are free on x86-64, keep the compiler and other processors from turning
   them round. The fences also let others copy the index without a lock: queue_begin_look.

   Entries are found by three structures: two heaps (timed: by `due`; ready: by place), a list for each holder, a list for
   each segment. A segment of which no entry and no record before the head is left is finished, and its file goes.

   Prior art: the undo log of every database; Redis' streams (pending entries by consumer); SQS (visibility time-outs).
   Rejected: a state in each record, which somebody has to scan for; a log that redoes, which must hold what is new and
   what it depends on; counts of items per segment, which every get would have to change. */
#ifndef MMAPDS_QUEUEINDEX_H
#define MMAPDS_QUEUEINDEX_H

#include "atomics.h"
#include "layout.h"
#include <stddef.h>
#include <string.h>

enum { QUEUE_TIMED, QUEUE_READY };               /* heaps */
enum { QUEUE_FREE, QUEUE_DELAYED, QUEUE_WAITING, QUEUE_CLAIMED, QUEUE_LEASED }; /* kinds of entries */
enum {                                           /* tallies */
    QUEUE_RETURNS,   /* nacks, and exceptions in a block */
    QUEUE_DEATHS,    /* claims of dead holders that came back */
    QUEUE_EXPIRED,   /* leases that ended */
    QUEUE_BURIED,    /* to the dead letters */
    QUEUE_SET_ASIDE, /* items that were damaged */
    QUEUE_CUT,       /* bytes that recovery cut off the end */
    QUEUE_PURGED,
    QUEUE_RECOVERIES,
};

/* A segment as one handle has it mapped. */
typedef struct {
    uint64_t start, length; /* positions */
    char *base;
    uint32_t *lost;
} queue_segment;

/* A queue as one handle has it mapped. */
typedef struct {
    mmapds_queue *control;
    uint32_t *lost;
    uint64_t capacity;     /* entries that are mapped */
    uint64_t segment_size, maxsize, max_bytes, max_attempts;
    uint64_t key;          /* mmapds_queue_key */
    uint64_t token;        /* of this handle */
    int locks;             /* the descriptor that it is locked on */
    int directory;         /* to remove segments from, or -1 */
    int64_t boot_offset;   /* of CLOCK_BOOTTIME in this time namespace */
    uint32_t holder;       /* our slot, from 1 on; 0: none yet */
    uint32_t damaged;      /* a reference was out of range */
    uint64_t tail_seen;    /* the tail, as it was when we looked last */
    uint64_t wanted;       /* QUEUE_MAP: the number of the segment; units for QUEUE_SEGMENT */
    uint64_t units;
    const queue_segment *segments;
    uint32_t count;        /* of these */
    uint32_t private_copy; /* nobody else sees it */
    mmapds_held nothing;   /* stands for an entry that does not exist */
} queue_view;

/* ---- the log ------------------------------------------------------------------------------------------------- */

static inline void queue_log(queue_view *view, const uint64_t *word)
{
    mmapds_queue *control = view->control;
    uint64_t n = control->logged;
    if ((char *)word >= (char *)&view->nothing && (char *)word < (char *)(&view->nothing + 1))
        return;
    if (n >= MMAPDS_UNDO) {
        view->damaged = 1;
        return;
    }
    control->undo[n].offset = (uint64_t)((const char *)word - (const char *)control);
    control->undo[n].value = *word;
    __atomic_thread_fence(__ATOMIC_RELEASE); /* the pair before the length: queue_rollback */
    store_relaxed_u64(&control->logged, n + 1);
    __atomic_thread_fence(__ATOMIC_RELEASE); /* the length before the word: queue_rollback, queue_end_look */
}

static inline void queue_set(queue_view *view, uint64_t *word, uint64_t value)
{
    queue_log(view, word);
    store_relaxed_u64(word, value);
}

static inline void queue_add(queue_view *view, uint64_t *word, int64_t more) { queue_set(view, word, *word + more); }

/* A half of a logged word. */
static inline void queue_set_half(queue_view *view, uint32_t *half, uint32_t value)
{
    queue_log(view, (uint64_t *)((uintptr_t)half & ~(uintptr_t)7));
    __atomic_store_n(half, value, __ATOMIC_RELAXED);
}

static inline void queue_commit(queue_view *view)
{
    mmapds_queue *control = view->control;
    store_release_u64(&control->changes, control->changes + 1); /* pairs with queue_end_look */
    store_release_u64(&control->logged, 0);
}

/* Takes back what the log holds; -1 if it holds what cannot be, and then changes nothing. */
static inline int queue_rollback(queue_view *view)
{
    mmapds_queue *control = view->control;
    uint64_t n = control->logged, end = sizeof(mmapds_queue) + view->capacity * sizeof(mmapds_held);
    if (n > MMAPDS_UNDO)
        return -1;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t at = control->undo[i].offset;
        if (at & 7 || at < offsetof(mmapds_queue, head) || at >= end ||
            (at >= offsetof(mmapds_queue, shutdowns) && at < offsetof(mmapds_queue, slots)))
            return -1;
    }
    while (n--)
        store_relaxed_u64((uint64_t *)((char *)control + control->undo[n].offset), control->undo[n].value);
    queue_commit(view);
    return 0;
}

/* ---- entries ------------------------------------------------------------------------------------------------- */

static inline mmapds_held *queue_entry(queue_view *view, uint64_t number)
{
    if (number - 1 < view->capacity) /* 0 wraps */
        return &view->control->entries[number - 1];
    view->damaged = 1;
    memset(&view->nothing, 0, sizeof(view->nothing));
    return &view->nothing;
}

static inline uint32_t *queue_cell(queue_view *view, int heap, uint64_t at)
{
    return &queue_entry(view, at + 1)->cells[heap];
}

/* Whether entry a goes before b. */
static inline int queue_before(queue_view *view, int heap, uint32_t a, uint32_t b)
{
    const mmapds_held *x = queue_entry(view, a), *y = queue_entry(view, b);
    if (heap == QUEUE_TIMED)
        return x->due != y->due ? x->due < y->due : x->place < y->place;
    return x->place != y->place ? x->place < y->place : x->stamp < y->stamp;
}

static inline void queue_seat(queue_view *view, int heap, uint64_t at, uint32_t number)
{
    queue_set_half(view, queue_cell(view, heap, at), number);
    queue_set_half(view, &queue_entry(view, number)->heap_at, (uint32_t)at + 1);
}

static inline void queue_up(queue_view *view, int heap, uint64_t at, uint32_t number)
{
    while (at > 0 && !view->damaged) {
        uint64_t parent = (at - 1) / 2;
        uint32_t above = *queue_cell(view, heap, parent);
        if (!queue_before(view, heap, number, above))
            break;
        queue_seat(view, heap, at, above);
        at = parent;
    }
    queue_seat(view, heap, at, number);
}

static inline void queue_down(queue_view *view, int heap, uint64_t at, uint32_t number, uint64_t count)
{
    while (!view->damaged) {
        uint64_t child = 2 * at + 1;
        if (child >= count)
            break;
        uint32_t below = *queue_cell(view, heap, child);
        if (child + 1 < count) {
            uint32_t other = *queue_cell(view, heap, child + 1);
            if (queue_before(view, heap, other, below)) {
                below = other;
                child++;
            }
        }
        if (!queue_before(view, heap, below, number))
            break;
        queue_seat(view, heap, at, below);
        at = child;
    }
    queue_seat(view, heap, at, number);
}

static inline void queue_push(queue_view *view, int heap, uint32_t number)
{
    uint64_t count = view->control->heaps[heap];
    queue_set(view, &view->control->heaps[heap], count + 1);
    queue_up(view, heap, count, number);
}

static inline void queue_pull(queue_view *view, int heap, uint32_t number)
{
    mmapds_held *entry = queue_entry(view, number);
    uint64_t count = view->control->heaps[heap] - 1, at = (uint64_t)entry->heap_at - 1;
    if (at > count || count >= view->capacity || *queue_cell(view, heap, at) != number) {
        view->damaged = 1;
        return;
    }
    uint32_t last = *queue_cell(view, heap, count);
    queue_set(view, &view->control->heaps[heap], count);
    if (last == number)
        return;
    if (at > 0 && queue_before(view, heap, last, *queue_cell(view, heap, (at - 1) / 2)))
        queue_up(view, heap, at, last);
    else
        queue_down(view, heap, at, last, count);
}

/* The first of a heap, or 0. */
static inline uint32_t queue_top(queue_view *view, int heap)
{
    if (!view->control->heaps[heap])
        return 0;
    uint32_t number = *queue_cell(view, heap, 0);
    if (!number)
        view->damaged = 1;
    return number;
}

/* A new entry for the record at the head, in the list of its segment; 0 if there is no room. */
static inline uint32_t queue_make(queue_view *view, uint64_t position, uint64_t sequence, uint64_t size, int kind)
{
    mmapds_queue *control = view->control;
    uint64_t number = control->free;
    mmapds_held *entry;
    if (number) {
        entry = queue_entry(view, number);
        queue_set(view, &control->free, entry->own_next);
        queue_set_half(view, &entry->own_next, 0); /* logged: it leads to the next free one */
        queue_log(view, (uint64_t *)&entry->heap_at); /* with `kind`, by which others tell that it is free */
    } else {
        if (control->used >= view->capacity)
            return 0;
        number = control->used + 1; /* nobody looks behind `used` */
        entry = queue_entry(view, number);
        queue_set(view, &control->used, number);
        entry->own_next = 0;
    }
    entry->position = position; /* nobody looks at it before it is committed */
    entry->sequence = sequence;
    entry->size = size;
    entry->due = 0;
    entry->place = 2 * position + 1;
    entry->stamp = 0;
    entry->fence = 0;
    entry->segment_previous = 0;
    entry->segment_next = (uint32_t)control->held;
    entry->own_previous = 0;
    entry->holder = 0;
    entry->attempts = 0;
    entry->heap_at = 0;
    entry->kind = kind;
    if (control->held)
        queue_set_half(view, &queue_entry(view, control->held)->segment_previous, (uint32_t)number);
    queue_set(view, &control->held, number);
    return (uint32_t)number;
}

/* The entry goes. If it was the last one of a segment that the head has left, the segment is finished. */
static inline void queue_free(queue_view *view, uint32_t number)
{
    mmapds_queue *control = view->control;
    mmapds_held *entry = queue_entry(view, number);
    uint32_t previous = entry->segment_previous, next = entry->segment_next;
    if (previous)
        queue_set_half(view, &queue_entry(view, previous)->segment_next, next);
    if (next)
        queue_set_half(view, &queue_entry(view, next)->segment_previous, previous);
    if (control->held == number)
        queue_set(view, &control->held, next);
    else if (!previous && !next)
        queue_set(view, &control->finished, entry->position / view->segment_size);
    queue_set_half(view, &entry->own_next, (uint32_t)control->free);
    queue_set_half(view, &entry->kind, QUEUE_FREE);
    queue_set(view, &entry->fence, 0);
    queue_set(view, &control->free, number);
}

/* The head leaves its segment. */
static inline void queue_leave(queue_view *view, const queue_segment *segment)
{
    mmapds_queue *control = view->control;
    if (control->held)
        queue_set(view, &control->held, 0);
    else
        queue_set(view, &control->finished, segment->start / view->segment_size);
    queue_set(view, &control->head, segment->start + segment->length + MMAPDS_PAGE);
}

/* ---- claims -------------------------------------------------------------------------------------------------- */

static inline mmapds_holder *queue_slot(queue_view *view, uint32_t number)
{
    if (number - 1 < MMAPDS_HOLDERS)
        return &view->control->slots[number - 1];
    view->damaged = 1;
    return &view->control->slots[0];
}

/* The entry, which is in no heap and no list of claims, becomes ours. `due`: the end of the lease, or 0. */
static inline uint64_t queue_hold(queue_view *view, uint32_t number, uint64_t due)
{
    mmapds_queue *control = view->control;
    mmapds_holder *slot = queue_slot(view, view->holder);
    mmapds_held *entry = queue_entry(view, number);
    uint64_t fence = control->fences + 1, last = slot->claims;
    control->fences = fence; /* not logged: a number that is skipped does no harm */
    queue_set(view, &entry->fence, fence);
    queue_log(view, (uint64_t *)&entry->own_previous);
    entry->own_previous = 0;
    entry->own_next = (uint32_t)last;
    queue_log(view, (uint64_t *)&entry->holder);
    entry->holder = view->holder;
    entry->attempts++;
    queue_set_half(view, &entry->kind, due ? QUEUE_LEASED : QUEUE_CLAIMED);
    if (last)
        queue_set_half(view, &queue_entry(view, last)->own_previous, number);
    queue_set(view, &slot->claims, number);
    queue_add(view, &slot->claimed, 1);
    queue_add(view, &control->claimed, 1);
    if (due) {
        queue_set(view, &entry->due, due);
        queue_add(view, &control->leased, 1);
        queue_push(view, QUEUE_TIMED, number);
    }
    return fence;
}

/* A claim ends, whoever held it. The entry is in no heap and no list of claims then. */
static inline void queue_unhold(queue_view *view, uint32_t number)
{
    mmapds_queue *control = view->control;
    mmapds_held *entry = queue_entry(view, number);
    mmapds_holder *slot = queue_slot(view, entry->holder);
    uint32_t previous = entry->own_previous, next = entry->own_next;
    if (entry->kind == QUEUE_LEASED) {
        queue_pull(view, QUEUE_TIMED, number);
        queue_add(view, &control->leased, -1);
    }
    if (previous)
        queue_set_half(view, &queue_entry(view, previous)->own_next, next);
    else
        queue_set(view, &slot->claims, next);
    if (next)
        queue_set_half(view, &queue_entry(view, next)->own_previous, previous);
    queue_add(view, &slot->claimed, -1);
    queue_add(view, &control->claimed, -1);
    queue_set_half(view, &entry->holder, 0);
    queue_set(view, &entry->fence, 0);
}

/* The entry, which is in no heap, waits: until `due`, or, if that is 0, for the next taker. */
static inline void queue_await(queue_view *view, uint32_t number, uint64_t due)
{
    mmapds_queue *control = view->control;
    mmapds_held *entry = queue_entry(view, number);
    queue_set_half(view, &entry->kind, due ? QUEUE_DELAYED : QUEUE_WAITING);
    queue_set(view, &entry->due, due);
    queue_add(view, &control->waiting_bytes, entry->size);
    queue_push(view, due ? QUEUE_TIMED : QUEUE_READY, number);
}

/* ... and waits no more. */
static inline void queue_unawait(queue_view *view, uint32_t number)
{
    const mmapds_held *entry = queue_entry(view, number);
    queue_add(view, &view->control->waiting_bytes, -(int64_t)entry->size);
    queue_pull(view, entry->kind == QUEUE_DELAYED ? QUEUE_TIMED : QUEUE_READY, number);
}

/* ---- looking without a lock ----------------------------------------------------------------------------------- */

/* What is copied between the two was there at one moment if the second returns 1. Pairs with queue_log and queue_commit. */
static inline int queue_begin_look(const mmapds_queue *control, uint64_t *changes)
{
    *changes = load_acquire_u64(&control->changes);
    return load_acquire_u64(&control->logged) == 0;
}

static inline int queue_end_look(const mmapds_queue *control, uint64_t changes)
{
    fence_acquire();
    if (load_acquire_u64(&control->logged) != 0)
        return 0;
    return load_acquire_u64(&control->changes) == changes;
}

/* The tail, and the sequence that comes next, as they were at one moment, without a lock. Between two equal tails nothing was
   published, so if a put is under way, or its producer dead, the saved words are this tail's (queueput.h). The loads
   stay in this order; they pair with the release fences and stores of queue_put_one. */
static inline uint64_t queue_tail(const mmapds_queue *control, uint64_t *sequence)
{
    for (;;) {
        uint64_t tail = load_acquire_u64(&control->tail), next = load_acquire_u64(&control->tail_sequence);
        if (load_acquire_u64(&control->saved_tail) == tail)
            next = load_acquire_u64(&control->saved_sequence);
        fence_acquire();
        if (load_relaxed_u64(&control->tail) == tail) {
            *sequence = next;
            return tail;
        }
    }
}

/* Items that somebody may take, now or later. */
static inline int64_t queue_waiting(const mmapds_queue *control)
{
    uint64_t head = load_relaxed_u64(&control->head_sequence), next; /* first: it does not pass the tail */
    queue_tail(control, &next);
    return (int64_t)(next - head + load_relaxed_u64(&control->heaps[QUEUE_TIMED]) +
                     load_relaxed_u64(&control->heaps[QUEUE_READY]) - load_relaxed_u64(&control->leased));
}

#endif
