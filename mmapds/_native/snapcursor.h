/* Records of many sources in the order of their keys, forwards or backwards; of several with one key, the newest.

   A source is a layer (or a sorted run of records, which is a layer without a guide, for those who go forwards only), or a
   list of offsets in the order of the keys. The sources form a heap by key and, for equal keys, by rank: 0 is the newest.

   Each step may come back with SNAP_UNSOUND: nothing has changed then, and it is repeated when the block was verified. */
#ifndef MMAPDS_SNAPCURSOR_H
#define MMAPDS_SNAPCURSOR_H

#include "snapshot.h"

enum { SNAP_AHEAD = 8 }; /* records of a list that are fetched before their turn */

typedef struct {
    snap_record now;
    int rank;
    snap_layer *layer;      /* or NULL, and then: */
    const char *base;       /* what the offsets count from, in units of 8 */
    const char *limit;
    const uint32_t *order;
    uint64_t at;            /* layer: offset of the next record, or, backwards, end of what is left; else index of the next */
    uint64_t stop;          /* order, forwards: how many there are */
    uint64_t group;         /* backwards: entries of the guide that are left */
    int grouped;            /* records of the group that are left */
    uint64_t starts[MMAPDS_GUIDED];
} snap_source;

typedef struct {
    snap_source *sources;
    int *heap;
    int count, live;
    int backward;
    const char *bound;      /* forwards: the first key behind the range; backwards: the last one in it; NULL: none */
    uint64_t bound_size;
    snap_record out;
    int rank;               /* of the source that `out` is from */
    int begun;
} snap_cursor;

/* How the guide's entry `i` compares to the key: < 0 if its record is before it. SNAP_... in *status if it cannot be told. */
static inline int snap_guide_compare(snap_layer *layer, uint64_t i, const char *key, uint64_t size, uint64_t prefix, int *status)
{
    const mmapds_guide *entry = &layer->guide[i];
    snap_record record;
    if (!snap_sound(layer, (const char *)entry - layer->base, sizeof(*entry))) {
        *status = SNAP_UNSOUND;
        return 0;
    }
    uint64_t found = load_relaxed_u64(&entry->prefix);
    if (found != prefix)
        return found < prefix ? -1 : 1;
    uint64_t offset = load_relaxed_u64(&entry->offset);
    if (offset < MMAPDS_PAGE || offset >= layer->end || offset % 8) {
        *status = SNAP_DAMAGED;
        return 0;
    }
    int read = snap_read(layer, offset, &record);
    if (read != SNAP_FOUND) {
        *status = read;
        return 0;
    }
    return snap_compare(record.key, record.key_size, key, size);
}

/* The offset of the first record whose key is not before this one, or the end of all; also how many entries of the guide are
   before that offset. */
static inline int snap_lower(snap_layer *layer, const char *key, uint64_t size, uint64_t *offset, uint64_t *group)
{
    snap_record record;
    int status = SNAP_FOUND;
    *offset = MMAPDS_PAGE;
    *group = 0;
    if (!layer->guides)
        return SNAP_FOUND;
    if (layer->common) {
        status = snap_read(layer, MMAPDS_PAGE, &record);
        if (status != SNAP_FOUND)
            return status;
        if (layer->common > record.key_size)
            return SNAP_DAMAGED;
        int order = snap_compare(record.key, layer->common, key, size < layer->common ? size : layer->common);
        if (order > 0)
            return SNAP_FOUND; /* all keys are behind it */
        if (order < 0) {
            *offset = layer->end;
            *group = layer->guides;
            return SNAP_FOUND;
        }
    }
    uint64_t low = 0, high = layer->guides, prefix = snap_prefix(key, size, layer->common);
    while (low < high) { /* the first entry that is not before the key */
        uint64_t middle = low + (high - low) / 2;
        int order = snap_guide_compare(layer, middle, key, size, prefix, &status);
        if (status != SNAP_FOUND)
            return status;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    *group = low;
    if (low == 0)
        return SNAP_FOUND;
    const mmapds_guide *entry = &layer->guide[low - 1];
    if (!snap_sound(layer, (const char *)entry - layer->base, sizeof(*entry)))
        return SNAP_UNSOUND;
    uint64_t at = load_relaxed_u64(&entry->offset);
    if (at < MMAPDS_PAGE || at >= layer->end || at % 8)
        return SNAP_DAMAGED;
    for (int i = 0; i < MMAPDS_GUIDED && at < layer->end; i++) {
        status = snap_read(layer, at, &record);
        if (status != SNAP_FOUND)
            return status;
        if (snap_compare(record.key, record.key_size, key, size) >= 0)
            break;
        at = record.end - layer->base;
    }
    *offset = at;
    return SNAP_FOUND;
}

/* The same in a list of offsets: an index. */
static inline int snap_lower_order(const char *base, const char *limit, const uint32_t *order, uint64_t count, const char *key,
                                   uint64_t size, uint64_t *index)
{
    snap_record record;
    uint64_t low = 0, high = count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (!snap_parse(base + (uint64_t)order[middle] * 8, limit, &record))
            return SNAP_DAMAGED;
        if (snap_compare(record.key, record.key_size, key, size) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    *index = low;
    return SNAP_FOUND;
}

/* Puts a source before the first record of the range [low, high), or behind its last; NULL: no bound. */
static inline int snap_seek(snap_source *source, int backward, const char *key, uint64_t size)
{
    snap_layer *layer = source->layer;
    source->grouped = 0;
    if (layer) {
        if (!key) {
            source->at = backward ? layer->end : MMAPDS_PAGE;
            source->group = layer->guides;
            return SNAP_FOUND;
        }
        return snap_lower(layer, key, size, &source->at, &source->group);
    }
    if (!key) {
        source->at = backward ? source->stop : 0;
        return SNAP_FOUND;
    }
    return snap_lower_order(source->base, source->limit, source->order, source->stop, key, size, &source->at);
}

/* The starts of the records in the last group that is left. */
static inline int snap_regroup(snap_source *source)
{
    snap_layer *layer = source->layer;
    snap_record record;
    const mmapds_guide *entry = &layer->guide[source->group - 1];
    if (!snap_sound(layer, (const char *)entry - layer->base, sizeof(*entry)))
        return SNAP_UNSOUND;
    uint64_t at = load_relaxed_u64(&entry->offset);
    int count = 0;
    for (; at < source->at; count++) {
        if (count == MMAPDS_GUIDED || at < MMAPDS_PAGE || at % 8)
            return SNAP_DAMAGED;
        int status = snap_read(layer, at, &record);
        if (status != SNAP_FOUND)
            return status;
        source->starts[count] = at;
        at = record.end - layer->base;
    }
    if (at != source->at)
        return SNAP_DAMAGED;
    source->group--;
    source->grouped = count;
    return SNAP_FOUND;
}

/* To the next record: SNAP_FOUND, or SNAP_NONE at the end. */
static inline int snap_advance(snap_source *source, int backward)
{
    snap_layer *layer = source->layer;
    snap_record next; /* read elsewhere first: a step that is repeated must find `now` as it was */
    int status;
    if (!layer) {
        if (backward ? source->at == 0 : source->at == source->stop)
            return SNAP_NONE;
        uint64_t index = backward ? source->at - 1 : source->at;
        if (!backward && index + SNAP_AHEAD < source->stop) { /* they lie anywhere */
            const char *ahead = source->base + (uint64_t)source->order[index + SNAP_AHEAD] * 8;
            __builtin_prefetch(ahead);
            __builtin_prefetch(ahead + 64);
            __builtin_prefetch(ahead + 128);
        }
        if (!snap_parse(source->base + (uint64_t)source->order[index] * 8, source->limit, &next))
            return SNAP_DAMAGED;
        source->now = next;
        source->at = backward ? index : index + 1;
        return SNAP_FOUND;
    }
    if (!backward) {
        if (source->at == layer->end)
            return SNAP_NONE;
        status = snap_read(layer, source->at, &next);
        if (status == SNAP_FOUND) {
            source->now = next;
            source->at = next.end - layer->base;
        }
        return status;
    }
    while (!source->grouped) {
        if (!source->group)
            return source->at == MMAPDS_PAGE ? SNAP_NONE : SNAP_DAMAGED;
        status = snap_regroup(source);
        if (status != SNAP_FOUND)
            return status;
    }
    status = snap_read(layer, source->starts[source->grouped - 1], &next);
    if (status == SNAP_FOUND) {
        source->now = next;
        source->at = source->starts[--source->grouped];
    }
    return status;
}

/* ---- the heap ------------------------------------------------------------------------------------------------- */

static inline int snap_before(const snap_cursor *cursor, int a, int b)
{
    const snap_source *x = &cursor->sources[a], *y = &cursor->sources[b];
    int order = snap_compare(x->now.key, x->now.key_size, y->now.key, y->now.key_size);
    if (order)
        return cursor->backward ? order > 0 : order < 0;
    return x->rank < y->rank;
}

static inline void snap_sift(snap_cursor *cursor, int at)
{
    int *heap = cursor->heap, moving = heap[at];
    for (;;) {
        int child = 2 * at + 1;
        if (child >= cursor->live)
            break;
        if (child + 1 < cursor->live && snap_before(cursor, heap[child + 1], heap[child]))
            child++;
        if (!snap_before(cursor, heap[child], moving))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

/* The first record of each source, and the heap. `key`: where to begin. */
static inline int snap_begin(snap_cursor *cursor, const char *key, uint64_t size)
{
    cursor->live = 0;
    cursor->begun = 0;
    for (int i = 0; i < cursor->count; i++) {
        int status = snap_seek(&cursor->sources[i], cursor->backward, key, size);
        if (status == SNAP_FOUND)
            status = snap_advance(&cursor->sources[i], cursor->backward);
        if (status < 0)
            return status;
        if (status == SNAP_FOUND)
            cursor->heap[cursor->live++] = i;
    }
    for (int i = cursor->live / 2 - 1; i >= 0; i--)
        snap_sift(cursor, i);
    return SNAP_FOUND;
}

/* The next key's newest record in `out`: SNAP_FOUND, or SNAP_NONE at the end. */
static inline int snap_step(snap_cursor *cursor)
{
    while (cursor->begun && cursor->live) { /* past what was handed out, in all sources */
        snap_source *top = &cursor->sources[cursor->heap[0]];
        if (top->now.start != cursor->out.start
            && snap_compare(top->now.key, top->now.key_size, cursor->out.key, cursor->out.key_size) != 0)
            break;
        int status = snap_advance(top, cursor->backward);
        if (status < 0)
            return status;
        if (status == SNAP_NONE)
            cursor->heap[0] = cursor->heap[--cursor->live];
        if (cursor->live > 1)
            snap_sift(cursor, 0);
    }
    if (!cursor->live)
        return SNAP_NONE;
    snap_source *top = &cursor->sources[cursor->heap[0]];
    if (cursor->bound) {
        int order = snap_compare(top->now.key, top->now.key_size, cursor->bound, cursor->bound_size);
        if (cursor->backward ? order < 0 : order >= 0)
            return SNAP_NONE;
    }
    cursor->out = top->now;
    cursor->rank = top->rank;
    cursor->begun = 1;
    return SNAP_FOUND;
}

/* ---- sorting -------------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t prefix;
    uint32_t offset; /* / 8, from the base */
    uint32_t spare;
} snap_key;

typedef struct {
    const char *base, *limit;
} snap_arena;

static inline void snap_key_of(const snap_arena *arena, uint32_t offset, snap_record *record)
{
    record->key = "";
    record->key_size = 0;
    snap_parse(arena->base + (uint64_t)offset * 8, arena->limit, record); /* unless somebody has changed it meanwhile */
}

/* By key; of equal ones the younger, which lies further behind, comes first. */
static int snap_key_compare(const void *a, const void *b, void *arena)
{
    const snap_key *x = a, *y = b;
    if (x->prefix != y->prefix)
        return x->prefix < y->prefix ? -1 : 1;
    snap_record p, q;
    snap_key_of(arena, x->offset, &p);
    snap_key_of(arena, y->offset, &q);
    int order = snap_compare(p.key, p.key_size, q.key, q.key_size);
    return order ? order : x->offset > y->offset ? -1 : 1;
}

/* By prefix, from the last byte to the first (which is stable); bytes that are the same everywhere cost nothing. Where the
   keys are in the end: in one of the two. */
static inline snap_key *snap_sort_prefixes(snap_key *keys, snap_key *spare, uint64_t count)
{
    uint64_t counts[8][256] = {{0}};
    for (uint64_t i = 0; i < count; i++)
        for (int byte = 0; byte < 8; byte++)
            counts[byte][keys[i].prefix >> 8 * byte & 0xff]++;
    for (int byte = 0; byte < 8; byte++) {
        uint64_t *to = counts[byte], before = 0;
        if (to[keys[0].prefix >> 8 * byte & 0xff] == count)
            continue;
        for (int value = 0; value < 256; value++) {
            uint64_t own = to[value];
            to[value] = before;
            before += own;
        }
        for (uint64_t i = 0; i < count; i++)
            spare[to[keys[i].prefix >> 8 * byte & 0xff]++] = keys[i];
        snap_key *sorted = spare;
        spare = keys;
        keys = sorted;
    }
    return keys;
}

/* Sorts `count` keys, keeps the youngest of equal ones, and writes their offsets to `order`, which may be where the keys
   are. Returns how many. */
static inline uint64_t snap_sort(snap_key *keys, uint64_t count, const char *base, const char *limit, uint32_t *order)
{
    snap_arena arena = {base, limit};
    snap_record last = {0}, record;
    uint64_t kept = 0;
    snap_key *spare = count ? malloc(count * sizeof(snap_key)) : NULL;
    snap_key *sorted = spare ? snap_sort_prefixes(keys, spare, count) : keys;
    for (uint64_t i = 0, next; i < count; i = next) { /* those that have a prefix in common; all, if there was no memory */
        for (next = i + 1; next < count && (!spare || sorted[next].prefix == sorted[i].prefix); next++)
            ;
        if (next - i > 1)
            qsort_r(&sorted[i], next - i, sizeof(snap_key), snap_key_compare, &arena);
        for (uint64_t j = i; j < next; j++) {
            uint32_t offset = sorted[j].offset; /* before `order`, which may lie over it, is written */
            if (next - i > 1) {
                snap_key_of(&arena, offset, &record);
                if (j > i && snap_compare(record.key, record.key_size, last.key, last.key_size) == 0)
                    continue;
                last = record;
            }
            order[kept++] = offset;
        }
    }
    free(spare);
    return kept;
}

#endif
