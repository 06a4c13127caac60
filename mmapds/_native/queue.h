/* Taking from a queue: getting, claiming, and what becomes of claims. Putting, and waiting, is in queueput.h.

   Taking, under take_lock: see queueindex.h. The head is the first item that nobody has looked at; an item that is
   delayed gets an entry when the head comes to it, so putting needs no index. What is returned goes before the head by
   its place. `get` copies the payload out while it holds the lock, because afterwards the segment may go. After the
   commit, `state` in the record says "done", "claimed" or "returned" to the next boot: it is behind, never ahead, of the
   index, and the boot that finds it behind delivers once more what nobody has got.

   A segment that is finished loses its name under the lock: `finished` names it from the commit to the unlink, so whoever
   finds the owner dead unlinks it. */
#ifndef MMAPDS_QUEUE_H
#define MMAPDS_QUEUE_H

#include "queueput.h"

/* ---- taking --------------------------------------------------------------------------------------------------- */

/* The name of a finished segment goes. Repeated after a death. */
static inline void queue_drop(queue_view *view)
{
    mmapds_queue *control = view->control;
    char name[40];
    snprintf(name, sizeof(name), "%016llx.segment", (unsigned long long)control->finished);
    if (view->directory >= 0)
        unlinkat(view->directory, name, 0); /* if that fails, it stays: `verify` tells */
    store_relaxed_u64(&control->finished, 0);
}

static inline int queue_take_lock(queue_view *view, int patient)
{
    mmapds_queue *control = view->control;
    int dirty, failed = 0;
    int status = queue_lock(view, &control->take_lock, patient);
    if (status == LOCK_BUSY)
        return QUEUE_BUSY;
    dirty = status == LOCK_TAKEN_DIRTY;
    if (load_relaxed_u64(&control->capacity) != view->capacity)
        failed = QUEUE_REMAP;
    else if (dirty && queue_rollback(view) != 0)
        failed = QUEUE_DAMAGED;
    else if (dirty && control->finished)
        queue_drop(view);
    view->damaged = 0;
    if (kernel_lost(view->lost))
        failed = QUEUE_LOST;
    if (failed)
        lockword_release(&control->take_lock, dirty);
    return failed;
}

/* Ends what queue_take_lock began: with status DONE the transition counts, else it is taken back. */
static inline int queue_take_unlock(queue_view *view, int status)
{
    mmapds_queue *control = view->control;
    int dirty = 0;
    if (view->damaged)
        status = QUEUE_DAMAGED;
    if (kernel_lost(view->lost))
        status = QUEUE_LOST;
    if (control->logged) {
        if (status == QUEUE_DONE || status == QUEUE_TIRED)
            queue_commit(view);
        else
            dirty = queue_rollback(view) != 0;
    }
    if (control->finished && !dirty)
        queue_drop(view);
    lockword_release(&control->take_lock, dirty);
    return status;
}

/* Delays and leases that are over. A transition each. */
static inline void queue_expire(queue_view *view)
{
    mmapds_queue *control = view->control;
    uint32_t number = queue_top(view, QUEUE_TIMED);
    if (!number)
        return;
    uint64_t now = queue_now(view);
    while (number && !view->damaged) {
        mmapds_held *entry = queue_entry(view, number);
        if (entry->due > now)
            break;
        if ((entry->kind != QUEUE_LEASED && entry->kind != QUEUE_DELAYED) || entry->heap_at != 1) {
            view->damaged = 1; /* else this might never end */
            break;
        }
        if (entry->kind == QUEUE_LEASED) {
            queue_unhold(view, number);
            queue_add(view, &control->tallies[QUEUE_EXPIRED], 1);
        } else {
            queue_unawait(view, number);
        }
        queue_await(view, number, 0);
        if (view->damaged)
            break;
        queue_commit(view);
        number = queue_top(view, QUEUE_TIMED);
    }
}

/* The head goes on to `position` in its segment, or, if nothing can follow there, leaves it, as the tail has done. */
static inline void queue_move(queue_view *view, const queue_segment *segment, uint64_t position)
{
    if (segment->start + segment->length - position < MMAPDS_ITEM_HEAD || segment->length > view->segment_size)
        queue_leave(view, segment);
    else
        queue_set(view, &view->control->head, position);
}

/* Finds what is to be taken next: DONE, and either `item->entry` or the record at the head, read into `copy`. */
static inline int queue_pick(queue_view *view, queue_item *item, mmapds_record_item *copy)
{
    mmapds_queue *control = view->control;
    const queue_segment *segment;
    uint64_t head, bytes, now = 0;
    uint32_t ready;
    if (control->heaps[QUEUE_TIMED])
        queue_expire(view);
    for (;;) {
        if (view->damaged)
            return QUEUE_DAMAGED;
        head = control->head;
        ready = queue_top(view, QUEUE_READY);
        if (ready) {
            const mmapds_held *entry = queue_entry(view, ready);
            if (entry->kind != QUEUE_WAITING || entry->position >= head) {
                view->damaged = 1;
                return QUEUE_DAMAGED;
            }
            if (entry->place < 2 * head + 1 || head == load_seq_cst_u64(&control->tail)) {
                item->entry = ready;
                item->position = entry->position;
                if (!(segment = queue_find(view, entry->position)))
                    return queue_map(view, entry->position);
                item->segment = segment;
                item->record = (mmapds_record_item *)(segment->base + (entry->position - segment->start));
                bytes = queue_record(view, segment, entry->position, copy);
                if (kernel_lost(segment->lost))
                    return QUEUE_LOST;
                return bytes && copy->order >> 8 == entry->sequence ? QUEUE_DONE : QUEUE_BAD;
            }
        }
        item->entry = 0;
        if (head >= view->tail_seen) { /* others may have taken beyond it */
            view->tail_seen = load_seq_cst_u64(&control->tail); /* pairs with the store in queue_put_one */
            if (head >= view->tail_seen)
                return QUEUE_EMPTY;
        }
        if (!(segment = queue_find(view, head)))
            return queue_map(view, head);
        item->position = head;
        item->segment = segment;
        item->record = (mmapds_record_item *)(segment->base + (head - segment->start));
        bytes = queue_record(view, segment, head, copy);
        if (kernel_lost(segment->lost))
            return QUEUE_LOST;
        if (!bytes || copy->order >> 8 != (control->head_sequence & 0xffffffffffffffULL))
            return QUEUE_BAD;
        if (copy->order & MMAPDS_END) {
            queue_leave(view, segment);
        } else if (copy->order & MMAPDS_DELAYED && (now ? now : (now = queue_now(view))) < copy->due) {
            uint32_t number = queue_make(view, head, control->head_sequence, copy->extent & ((1ULL << MMAPDS_ITEM_BITS) - 1),
                                         QUEUE_DELAYED);
            if (!number)
                return QUEUE_GROW;
            queue_await(view, number, copy->due);
            queue_add(view, &control->head_sequence, 1);
            queue_move(view, segment, head + bytes);
        } else {
            return QUEUE_DONE;
        }
        if (view->damaged)
            return QUEUE_DAMAGED;
        queue_commit(view);
        if (control->finished)
            queue_drop(view);
    }
}

/* The head goes past the item, which was put there. */
static inline void queue_pass(queue_view *view, const queue_item *item)
{
    mmapds_queue *control = view->control;
    queue_set(view, &control->head_sequence, control->head_sequence + 1);
    queue_move(view, item->segment, item->position + queue_record_bytes(item->flags, item->size));
}

/* Takes the next item, with the lock. GET copies its payload, if it fits into `room`, and owes a task_done; CLAIM holds it,
   until `lease` if that is not 0; DROP forgets it. */
static inline int queue_take_one(queue_view *view, int how, uint64_t lease, char *into, uint64_t room, queue_item *item)
{
    mmapds_queue *control = view->control;
    mmapds_record_item copy;
    mmapds_held *entry;
    int status;
    if (how != QUEUE_DROP && (!view->holder || queue_slot(view, view->holder)->token != view->token))
        return QUEUE_STRANGER; /* another thread is closing the handle: nobody would look for what we take */
    status = queue_pick(view, item, &copy);
    if (status)
        return status;
    item->sequence = copy.order >> 8;
    item->flags = copy.order & 0xff;
    item->size = copy.extent & ((1ULL << MMAPDS_ITEM_BITS) - 1);
    item->epoch = copy.extent >> MMAPDS_ITEM_BITS;
    item->hash = copy.hash;
    item->born = copy.born;
    item->payload = (char *)item->record + (copy.order & MMAPDS_DELAYED ? sizeof(copy) : MMAPDS_ITEM_HEAD);
    item->attempts = 0;
    if (item->entry) {
        entry = queue_entry(view, item->entry);
        item->attempts = entry->attempts;
        if (how != QUEUE_DROP && view->max_attempts && entry->attempts >= view->max_attempts) {
            status = QUEUE_TIRED;
            how = QUEUE_CLAIM;
            lease = 0;
        }
    }
    if (how == QUEUE_CLAIM) {
        if (item->entry) {
            queue_unawait(view, item->entry);
        } else {
            item->entry = queue_make(view, item->position, item->sequence, item->size, QUEUE_CLAIMED);
            if (!item->entry)
                return QUEUE_GROW;
            queue_pass(view, item);
        }
        item->fence = queue_hold(view, item->entry, lease);
        if (status == QUEUE_TIRED)
            queue_entry(view, item->entry)->attempts = item->attempts; /* this is no attempt */
        else
            item->attempts++;
    } else {
        if (how == QUEUE_GET) {
            if (item->size > room)
                return QUEUE_LARGE;
            memcpy(into, item->payload, item->size);
            if (kernel_lost(item->segment->lost))
                return QUEUE_LOST;
            queue_add(view, &queue_slot(view, view->holder)->owing, 1);
        }
        if (item->entry) {
            queue_unawait(view, item->entry);
            queue_free(view, item->entry);
        } else {
            queue_pass(view, item);
        }
    }
    if (view->damaged)
        return QUEUE_DAMAGED;
    queue_commit(view);
    if (how == QUEUE_CLAIM)
        queue_store_state(view, item->record, item->position, MMAPDS_ITEM_CLAIMED, item->attempts, 0, 0, copy.place);
    else
        queue_store_state(view, item->record, item->position, MMAPDS_ITEM_DONE, item->attempts, 0, 0, 0);
    if (control->finished) /* now: the next transition under this lock may finish another */
        queue_drop(view);
    return status;
}

static inline int queue_take(queue_view *view, int how, uint64_t lease, char *into, uint64_t room, queue_item *item, int patient)
{
    int status = queue_take_lock(view, patient);
    if (status)
        return status;
    status = queue_take_unlock(view, queue_take_one(view, how, lease, into, room, item));
    if (status == QUEUE_DONE && (view->maxsize || view->max_bytes))
        queue_wake(view, QUEUE_ROOM, 1);
    return status;
}

/* Bytes of the item that a get would take, as it looks now; at most `limit`. A guess, for a buffer. */
static inline uint64_t queue_guess(const queue_view *view, uint64_t limit)
{
    const mmapds_queue *control = view->control;
    const queue_segment *segment;
    uint64_t head = load_relaxed_u64(&control->head), size = 0;
    if (load_relaxed_u64(&control->heaps[QUEUE_READY])) {
        uint32_t top = control->entries[0].cells[QUEUE_READY];
        size = top - 1 < view->capacity ? control->entries[top - 1].size : 0;
    } else if ((segment = queue_find(view, head)) && segment->start + segment->length - head >= MMAPDS_ITEM_HEAD
               && head % 8 == 0) {
        const mmapds_record_item *record = (const mmapds_record_item *)(segment->base + (head - segment->start));
        size = record->extent & ((1ULL << MMAPDS_ITEM_BITS) - 1);
    }
    return size < limit ? size : limit;
}

/* ---- claims ---------------------------------------------------------------------------------------------------- */

static inline int queue_ours(queue_view *view, uint32_t number, uint64_t fence)
{
    const mmapds_held *entry = queue_entry(view, number);
    return fence && entry->fence == fence && entry->holder == view->holder && view->holder;
}

/* The claimed item is done; or, with `owe`, it is got, and will be done with task_done. */
static inline int queue_ack(queue_view *view, const queue_item *item, int owe, int patient)
{
    int status = queue_take_lock(view, patient);
    if (status)
        return status;
    if (queue_ours(view, item->entry, item->fence)) {
        queue_unhold(view, item->entry);
        queue_free(view, item->entry);
        if (owe)
            queue_add(view, &queue_slot(view, view->holder)->owing, 1);
    } else {
        status = QUEUE_STALE;
    }
    if (status == QUEUE_DONE && !view->damaged) {
        queue_commit(view);
        queue_store_state(view, item->record, item->position, MMAPDS_ITEM_DONE, item->attempts, 0, 0, 0);
    }
    status = queue_take_unlock(view, status);
    if (status == QUEUE_DONE)
        queue_wake(view, QUEUE_JOINED, INT_MAX);
    return status;
}

/* The claimed item comes back: after `delay` ns, to its own place, or behind all that is there. */
static inline int queue_nack(queue_view *view, const queue_item *item, uint64_t delay, int to_back, int patient)
{
    mmapds_queue *control = view->control;
    uint64_t place = 0;
    int status = queue_take_lock(view, patient);
    if (status)
        return status;
    if (queue_ours(view, item->entry, item->fence)) {
        mmapds_held *entry = queue_entry(view, item->entry);
        queue_unhold(view, item->entry);
        if (to_back) { /* behind what is there, and what was sent there before */
            queue_set(view, &entry->place, 2 * load_seq_cst_u64(&control->tail));
            queue_set(view, &entry->stamp, control->stamps + 1);
            control->stamps++; /* not logged: as fences */
        }
        queue_await(view, item->entry, delay ? queue_now(view) + delay : 0);
        queue_add(view, &control->tallies[QUEUE_RETURNS], 1);
        if (!view->damaged) {
            place = entry->place & 1 ? 0 : entry->place;
            queue_commit(view);
            queue_store_state(view, item->record, item->position, MMAPDS_ITEM_RETURNED, entry->attempts,
                              delay ? queue_wall(CLOCK_REALTIME) + delay : 0, delay, place);
        }
    } else {
        status = QUEUE_STALE;
    }
    status = queue_take_unlock(view, status);
    if (status == QUEUE_DONE)
        queue_wake(view, QUEUE_ITEMS, 1);
    return status;
}

/* The claim ends `lease` ns from now, or, if that is 0, with its holder. */
static inline int queue_touch(queue_view *view, const queue_item *item, uint64_t lease, int patient)
{
    mmapds_queue *control = view->control;
    int status = queue_take_lock(view, patient);
    if (status)
        return status;
    if (queue_ours(view, item->entry, item->fence)) {
        mmapds_held *entry = queue_entry(view, item->entry);
        if (entry->kind == QUEUE_LEASED) {
            queue_pull(view, QUEUE_TIMED, item->entry);
            queue_add(view, &control->leased, -1);
        }
        queue_set_half(view, &entry->kind, lease ? QUEUE_LEASED : QUEUE_CLAIMED);
        queue_set(view, &entry->due, lease ? queue_now(view) + lease : 0);
        if (lease) {
            queue_add(view, &control->leased, 1);
            queue_push(view, QUEUE_TIMED, item->entry);
        }
    } else {
        status = QUEUE_STALE;
    }
    return queue_take_unlock(view, status);
}

/* ---- holders ---------------------------------------------------------------------------------------------------- */

/* The last claim of a holder comes back; 0 if it has none. With the lock; a transition. */
static inline int queue_give_back(queue_view *view, mmapds_holder *slot, int tally)
{
    uint32_t number = (uint32_t)slot->claims;
    if (!number || view->damaged)
        return 0;
    queue_unhold(view, number);
    queue_await(view, number, 0);
    queue_add(view, &view->control->tallies[tally], 1);
    if (view->damaged)
        return 0;
    queue_commit(view);
    return 1;
}

/* What the holder in this slot has goes back, and the slot is free. With the lock. */
static inline int queue_evict(queue_view *view, mmapds_holder *slot, int tally)
{
    int found = 0;
    while (queue_give_back(view, slot, tally))
        found++;
    if (slot->owing)
        queue_set(view, &slot->owing, 0);
    queue_set(view, &slot->token, 0);
    if (!view->damaged)
        queue_commit(view);
    return found;
}

/* Returns what dead holders had; the number of items, or -status. `all`: also looks at those who have nothing. */
static inline int queue_bury_dead(queue_view *view, int all, int patient)
{
    mmapds_queue *control = view->control;
    uint64_t used = load_relaxed_u64(&control->holders);
    int found = 0;
    for (uint32_t i = 0; i < used && i < MMAPDS_HOLDERS; i++) {
        mmapds_holder *slot = &control->slots[i];
        uint64_t token = load_relaxed_u64(&slot->token);
        if (!token || token == view->token || !(all || load_relaxed_u64(&slot->claimed) || load_relaxed_u64(&slot->owing)))
            continue;
        int64_t byte = lockword_byte(token & LOCK_TOKEN);
        if (kernel_lock(view->locks, F_WRLCK, byte, 1, 0) != 0)
            continue;
        /* Dead, and nobody else looks after it while we have its byte; tokens are never used again. */
        int status = queue_take_lock(view, patient);
        if (status == QUEUE_DONE) {
            if (slot->token == token)
                found += queue_evict(view, slot, QUEUE_DEATHS);
            status = queue_take_unlock(view, view->damaged ? QUEUE_DAMAGED : QUEUE_DONE);
        }
        kernel_lock(view->locks, F_UNLCK, byte, 1, 0);
        if (status)
            return -status;
    }
    if (found)
        queue_wake(view, QUEUE_ITEMS, 1);
    return found;
}

/* A slot for this handle. */
static inline int queue_register(queue_view *view, uint64_t pid, int patient)
{
    mmapds_queue *control = view->control;
    int status = queue_take_lock(view, patient);
    if (status)
        return status;
    uint64_t at = 0;
    for (uint32_t i = 0; i < control->holders && i < MMAPDS_HOLDERS; i++)
        if (control->slots[i].token == view->token) { /* another thread of ours was faster */
            view->holder = i + 1;
            return queue_take_unlock(view, QUEUE_DONE);
        }
    while (at < MMAPDS_HOLDERS && control->slots[at].token)
        at++;
    if (at == MMAPDS_HOLDERS)
        return queue_take_unlock(view, QUEUE_CROWDED);
    mmapds_holder *slot = &control->slots[at];
    queue_set(view, &slot->owing, 0);
    queue_set(view, &slot->claims, 0);
    queue_set(view, &slot->claimed, 0);
    queue_set(view, &slot->pid, pid);
    if (at >= control->holders)
        queue_set(view, &control->holders, at + 1);
    queue_set(view, &slot->token, view->token);
    view->holder = (uint32_t)at + 1;
    status = queue_take_unlock(view, QUEUE_DONE);
    if (status)
        view->holder = 0;
    return status;
}

/* This handle ends: its claims come back. */
static inline int queue_unregister(queue_view *view, int patient)
{
    int status = queue_take_lock(view, patient);
    if (status)
        return status;
    if (view->holder)
        queue_evict(view, queue_slot(view, view->holder), QUEUE_RETURNS);
    view->holder = 0;
    status = queue_take_unlock(view, QUEUE_DONE);
    queue_wake(view, QUEUE_ITEMS, 1);
    queue_wake(view, QUEUE_JOINED, INT_MAX);
    return status;
}

/* `count` of the items that we got are done; STALE if we do not owe so many. */
static inline int queue_task_done(queue_view *view, uint64_t count, int patient)
{
    int status = queue_take_lock(view, patient);
    if (status)
        return status;
    mmapds_holder *slot = view->holder ? queue_slot(view, view->holder) : NULL;
    if (slot && slot->token == view->token && slot->owing >= count)
        queue_set(view, &slot->owing, slot->owing - count);
    else
        status = QUEUE_STALE;
    status = queue_take_unlock(view, status);
    if (status == QUEUE_DONE)
        queue_wake(view, QUEUE_JOINED, INT_MAX);
    return status;
}

/* Items that are not done: waiting, claimed, or got and owed. */
static inline int64_t queue_unfinished(const mmapds_queue *control)
{
    uint64_t used = load_relaxed_u64(&control->holders);
    int64_t sum = queue_waiting(control) + (int64_t)load_relaxed_u64(&control->claimed);
    for (uint64_t i = 0; i < used && i < MMAPDS_HOLDERS; i++)
        if (load_relaxed_u64(&control->slots[i].token))
            sum += (int64_t)load_relaxed_u64(&control->slots[i].owing);
    return sum;
}

/* The records from the head up to `position`, which are not what was written, are given up: `count` of them. STALE if the
   head has moved meanwhile. */
static inline int queue_skip(queue_view *view, uint64_t head, uint64_t position, uint64_t count, int patient)
{
    mmapds_queue *control = view->control;
    const queue_segment *segment;
    int status = queue_take_lock(view, patient);
    if (status)
        return status;
    segment = queue_find(view, head);
    if (control->head != head || position < head || position > load_seq_cst_u64(&control->tail)) {
        status = QUEUE_STALE;
    } else {
        queue_add(view, &control->head_sequence, count);
        queue_add(view, &control->tallies[QUEUE_SET_ASIDE], count);
        if (segment && position >= segment->start + segment->length)
            queue_leave(view, segment);
        else if (!segment && position / view->segment_size != head / view->segment_size)
            queue_set(view, &control->held, 0); /* its file is missing */
        if (position > control->head)
            queue_set(view, &control->head, position);
    }
    return queue_take_unlock(view, status);
}

/* The returned item whose record is not what was written is given up. */
static inline int queue_discard(queue_view *view, uint32_t number, uint64_t position, int patient)
{
    int status = queue_take_lock(view, patient);
    if (status)
        return status;
    mmapds_held *entry = queue_entry(view, number);
    if (entry->position == position && entry->kind == QUEUE_WAITING) {
        queue_unawait(view, number);
        queue_free(view, number);
        queue_add(view, &view->control->tallies[QUEUE_SET_ASIDE], 1);
    } else {
        status = QUEUE_STALE;
    }
    return queue_take_unlock(view, status);
}

/* Takes away what waits in an entry: 1 if something did. */
static inline int queue_purge_entry(queue_view *view, uint32_t number, int *found, int patient)
{
    mmapds_record_item copy;
    int status = queue_take_lock(view, patient);
    if (status)
        return status;
    mmapds_held *entry = queue_entry(view, number);
    *found = 0;
    if (entry->kind == QUEUE_WAITING || entry->kind == QUEUE_DELAYED) {
        uint64_t position = entry->position;
        const queue_segment *segment = queue_find(view, position);
        if (!segment)
            return queue_take_unlock(view, queue_map(view, position));
        queue_unawait(view, number);
        queue_free(view, number);
        if (!view->damaged) {
            queue_commit(view);
            if (queue_record(view, segment, position, &copy))
                queue_store_state(view, (mmapds_record_item *)(segment->base + (position - segment->start)), position,
                                  MMAPDS_ITEM_DONE, 0, 0, 0, 0);
            *found = 1;
        }
    }
    return queue_take_unlock(view, QUEUE_DONE);
}

/* ---- waiting ---------------------------------------------------------------------------------------------------- */

/* Says that somebody is about to sleep; look again before queue_sleep(). */
static inline uint32_t queue_announce(queue_view *view, int event)
{
    /* The count first: who takes our mark away for what was published before raises it after that, and we do not sleep. */
    uint32_t seen = load_seq_cst_u32(&view->control->events[event].count);
    store_seq_cst_u32(&view->control->events[event].sleepers, 1);
    return seen;
}

/* At most `nanoseconds`, QUEUE_SLICE, or until the next delay or lease is over. */
static inline int queue_sleep(queue_view *view, int event, uint32_t seen, int64_t nanoseconds)
{
    mmapds_queue *control = view->control;
    if (nanoseconds > QUEUE_SLICE)
        nanoseconds = QUEUE_SLICE;
    if (event == QUEUE_ITEMS && load_relaxed_u64(&control->heaps[QUEUE_TIMED])) {
        uint32_t top = control->entries[0].cells[QUEUE_TIMED];
        int64_t left = top - 1 < view->capacity ? (int64_t)control->entries[top - 1].due - queue_now(view) : nanoseconds;
        if (left < nanoseconds)
            nanoseconds = left > 0 ? left : 0;
    }
    return nanoseconds > 0 ? kernel_futex_wait(&control->events[event].count, seen, nanoseconds) : 0;
}

#endif
