/* Finding and walking the records of a snapshot map: layers, which never change, and the delta, which only grows.

   READING THE DELTA WHILE IT GROWS. One writer appends batches; readers use no lock, no slot and write nothing. What a
   reader looks at has an end, the one of the manifest that it goes by. A record that begins behind it is not there for him.

   The writer, for each batch:
       1  the records and nodes, behind the last batch; nothing refers to them yet
       2  written = the batch's end
       3  for each node: node.next = the bucket's head; head = node (release)
       4  publishes a manifest with the new end
   A chain leads from newer to older nodes only, offsets that fall; so a reader steps over what is newer than his end, and
   what he then comes to was complete before its head was stored (acquire). He may meet a batch in the middle of 3 or
   before 4: it lies behind his end. After 4 he finds all of it: the manifest was stored (seq_cst) after the heads.

   If the writer dies
       in 1       nobody refers to what it wrote: written is still the end of the last manifest, and the next writer
                  begins at the same place
       in 2 to 4  written is not the manifest's end: nodes behind the end may be linked. The next writer leaves this delta
                  as it is, moves what is published into a layer, and begins a new one. A reader goes on as he did.
   Nothing that a head or a published node refers to is ever written again.

   LAYERS are complete, and on the disk, before a manifest names them. Readers map all of a manifest's layers before they
   go by it; a file that was removed lives on in who has it mapped.

   UNTRUSTED. Every offset and length is read once, held against the file's bounds, and then used; a chain must fall, probes
   are counted. A record of zeros is none. Where blocks are to be verified, `snap_sound` stands before each use.

   Prior art: LevelDB (a memory table and sorted files, a file that says which), its skip list that readers walk without a
   lock; Kyoto Cabinet and CDB (a table of offsets); FASTER (chains of records in a log, newest first). Rejected: a file for
   each commit (a hundred microseconds each, for the writer and every follower); an index that is sorted in the shared
   file (the few who need the order sort what is new, in their own memory). */
#ifndef MMAPDS_SNAPSHOT_H
#define MMAPDS_SNAPSHOT_H

#include "atomics.h"
#include "kernel.h"
#include "layout.h"
#include <stdlib.h>

enum {
    SNAP_NONE = 0,
    SNAP_FOUND = 1,
    SNAP_DAMAGED = -1,
    SNAP_UNSOUND = -2, /* a block must be verified first: layer->wanted */
};

typedef struct {
    const char *key, *value;
    const char *start, *end; /* of all of it */
    uint64_t value_size;
    int64_t expires; /* 0: never */
    uint32_t key_size;
    int gone;
} snap_record;

typedef struct {
    const char *base;
    uint64_t end;      /* of the records, which begin at MMAPDS_PAGE */
    const mmapds_guide *guide;
    uint64_t guides, common;
    const uint64_t *table;
    uint64_t buckets, probes;
    uint64_t records, sums; /* sums: offset, which is where the last block ends */
    uint64_t *checked;      /* a bit for each block that was found sound; NULL: nobody asks */
    uint64_t wanted;        /* the block to look at, after SNAP_UNSOUND */
} snap_layer;

typedef struct {
    const char *base;       /* the file's */
    const char *nodes;      /* what references of nodes count from, in units of 8: the file, or memory of our own */
    uint64_t room;          /* bytes behind `nodes` */
    const uint32_t *heads;
    uint64_t buckets, start, size; /* where batches begin, and the file ends */
} snap_delta;

typedef struct {
    snap_layer *layers[MMAPDS_LAYERS]; /* newest first */
    int count;
    const snap_delta *delta; /* or NULL */
    uint64_t end;            /* of the delta, for us */
    int64_t clock;           /* what to add to CLOCK_BOOTTIME */
} snap_view;

static inline uint64_t snap_up(uint64_t n) { return (n + 7) & ~(uint64_t)7; }

static inline int64_t snap_now(int64_t clock)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec + clock;
}

/* ---- records -------------------------------------------------------------------------------------------------- */

/* The record at `at`, which must end before `limit`; 0 if there is none. */
static inline int snap_parse(const char *at, const char *limit, snap_record *record)
{
    if (limit - at < 8)
        return 0; /* and what the record was stays */
    uint64_t first = load_relaxed_u64((const uint64_t *)at); /* once: the file may be changed under us */
    uint32_t word = (uint32_t)first;
    uint64_t size = first >> 32, room = (uint64_t)(limit - at) - 8;
    const char *next = at + 8;
    if (!(word & MMAPDS_PAIR))
        return 0;
    if (word & MMAPDS_LONG) {
        if (room < 8)
            return 0;
        size = load_relaxed_u64((const uint64_t *)next);
        next += 8;
        room -= 8;
    }
    record->expires = 0;
    if (word & MMAPDS_EXPIRES) {
        if (room < 8)
            return 0;
        record->expires = (int64_t)load_relaxed_u64((const uint64_t *)next);
        next += 8;
        room -= 8;
    }
    uint32_t key_size = word & MMAPDS_KEY_BITS;
    if (key_size > MMAPDS_KEY || snap_up(key_size) > room || size > room)
        return 0;
    room -= snap_up(key_size);
    if (snap_up(size) > room)
        return 0;
    record->start = at;
    record->key = next;
    record->key_size = key_size;
    record->value = next + snap_up(key_size);
    record->value_size = size;
    record->gone = (word & MMAPDS_GONE) != 0;
    record->end = record->value + snap_up(size);
    return 1;
}

/* Bytes that a record takes. */
static inline uint64_t snap_size(uint32_t key_size, uint64_t value_size, int64_t expires)
{
    return 8 + (value_size > UINT32_MAX ? 8 : 0) + (expires ? 8 : 0) + snap_up(key_size) + snap_up(value_size);
}

/* Writes all of a record but its value, and returns where that belongs (the padding behind it is the caller's). */
static inline char *snap_compose(char *at, const char *key, uint32_t key_size, uint64_t value_size, int64_t expires, int gone)
{
    uint64_t word = MMAPDS_PAIR | key_size | (gone ? MMAPDS_GONE : 0) | (expires ? MMAPDS_EXPIRES : 0);
    if (value_size > UINT32_MAX)
        word |= MMAPDS_LONG;
    else
        word |= value_size << 32;
    memcpy(at, &word, 8);
    at += 8;
    if (value_size > UINT32_MAX) {
        memcpy(at, &value_size, 8);
        at += 8;
    }
    if (expires) {
        memcpy(at, &expires, 8);
        at += 8;
    }
    if (key_size) {
        memset(at + snap_up(key_size) - 8, 0, 8);
        memcpy(at, key, key_size);
    }
    return at + snap_up(key_size);
}

static inline int snap_compare(const char *a, uint64_t a_size, const char *b, uint64_t b_size)
{
    int order = memcmp(a, b, a_size < b_size ? a_size : b_size);
    return order ? order : a_size < b_size ? -1 : a_size > b_size;
}

static inline int snap_alive(const snap_record *record, int64_t clock)
{
    return !record->gone && (!record->expires || record->expires > snap_now(clock));
}

/* 8 bytes of a key from byte `from` on, as a number that orders as they do. */
static inline uint64_t snap_prefix(const char *key, uint64_t size, uint64_t from)
{
    uint64_t word = 0;
    if (size > from)
        memcpy(&word, key + from, size - from < 8 ? size - from : 8);
    return __builtin_bswap64(word);
}

/* How many of the first `common` bytes of one key the other key begins with. */
static inline uint64_t snap_common(const char *key, uint64_t common, const char *other, uint64_t size)
{
    if (size < common)
        common = size;
    if (memcmp(key, other, common) != 0)
        for (uint64_t i = 0; i < common; i++)
            if (key[i] != other[i])
                return i;
    return common;
}

/* ---- layers --------------------------------------------------------------------------------------------------- */

/* Whether all blocks of [offset, offset + size) were found sound; if not, `wanted` is the first that was not looked at. */
static inline int snap_sound(snap_layer *layer, uint64_t offset, uint64_t size)
{
    if (!layer->checked)
        return 1;
    uint64_t block = (offset - MMAPDS_PAGE) / MMAPDS_BLOCK;
    uint64_t last = (offset + (size ? size : 1) - 1 - MMAPDS_PAGE) / MMAPDS_BLOCK;
    for (; block <= last; block++)
        if (!(layer->checked[block / 64] >> (block % 64) & 1)) {
            layer->wanted = block;
            return 0;
        }
    return 1;
}

/* snap_parse with that: the record's head, then the rest of what it says it has, must be sound. */
static inline int snap_read(snap_layer *layer, uint64_t offset, snap_record *record)
{
    if (offset < MMAPDS_PAGE || offset >= layer->end || offset % 8)
        return SNAP_DAMAGED;
    uint64_t head = layer->end - offset < 24 ? layer->end - offset : 24;
    if (!snap_sound(layer, offset, head))
        return SNAP_UNSOUND;
    if (!snap_parse(layer->base + offset, layer->base + layer->end, record))
        return SNAP_DAMAGED;
    return snap_sound(layer, offset, record->end - record->start) ? SNAP_FOUND : SNAP_UNSOUND;
}

static inline uint64_t snap_bucket(const snap_layer *layer, uint64_t hash)
{
    return (uint64_t)(((unsigned __int128)hash * layer->buckets) >> 64);
}

static inline const uint64_t *snap_line(const snap_layer *layer, uint64_t hash)
{
    return layer->table + snap_bucket(layer, hash) * MMAPDS_BUCKET;
}

/* The offset of the first candidate in the key's first bucket, to be fetched early; 0: none there. */
static inline uint64_t snap_guess(const snap_layer *layer, uint64_t hash)
{
    const uint64_t *line = snap_line(layer, hash);
    for (int i = 0; i < MMAPDS_BUCKET; i++)
        if ((line[i] & 0xffff) == (hash & 0xffff) && line[i]) {
            uint64_t offset = line[i] >> 16 << 3;
            return offset < layer->end ? offset : 0;
        }
    return 0;
}

static inline int snap_find(snap_layer *layer, uint64_t hash, const char *key, uint32_t size, snap_record *record)
{
    uint64_t bucket = snap_bucket(layer, hash), tag = hash & 0xffff;
    for (uint64_t probe = 0; probe < layer->probes; probe++) {
        const uint64_t *line = layer->table + bucket * MMAPDS_BUCKET;
        if (layer->checked && !snap_sound(layer, (const char *)line - layer->base, 64))
            return SNAP_UNSOUND;
        for (int i = 0; i < MMAPDS_BUCKET; i++) {
            uint64_t entry = load_relaxed_u64(&line[i]);
            if (!entry)
                return SNAP_NONE;
            if ((entry & 0xffff) != tag)
                continue;
            uint64_t offset = entry >> 16 << 3;
            if (offset < MMAPDS_PAGE || offset >= layer->end)
                return SNAP_DAMAGED;
            __builtin_prefetch(layer->base + offset + 64); /* the value, while the key comes from memory */
            __builtin_prefetch(layer->base + offset + 128);
            int status = snap_read(layer, offset, record);
            if (status != SNAP_FOUND)
                return status;
            if (record->key_size == size && memcmp(record->key, key, size) == 0)
                return SNAP_FOUND;
        }
        if (++bucket == layer->buckets)
            bucket = 0;
    }
    return SNAP_NONE;
}

/* ---- the delta ------------------------------------------------------------------------------------------------ */

static inline int snap_find_new(const snap_delta *delta, uint64_t end, uint64_t hash, const char *key, uint32_t size,
                                snap_record *record)
{
    uint32_t at = __atomic_load_n(&delta->heads[hash % delta->buckets], __ATOMIC_ACQUIRE); /* pairs with snap_link */
    while (at) {
        uint64_t offset = (uint64_t)at * 8;
        if (offset > delta->room - sizeof(mmapds_node))
            return SNAP_DAMAGED;
        const mmapds_node *node = (const mmapds_node *)(delta->nodes + offset);
        uint64_t links = load_relaxed_u64((const uint64_t *)node); /* next and record in one */
        uint64_t record_at = (links >> 32) * 8;
        if (record_at < end && load_relaxed_u64(&node->hash) == hash) {
            if (record_at < delta->start || !snap_parse(delta->base + record_at, delta->base + end, record))
                return SNAP_DAMAGED;
            if (record->key_size == size && memcmp(record->key, key, size) == 0)
                return SNAP_FOUND;
        }
        uint32_t next = (uint32_t)links;
        if (next >= at)
            return SNAP_DAMAGED; /* a chain falls, or it would not end */
        at = next;
    }
    return SNAP_NONE;
}

/* Step 3 for one node, which is complete. */
static inline void snap_link(uint32_t *heads, uint64_t buckets, char *nodes, uint64_t offset)
{
    mmapds_node *node = (mmapds_node *)(nodes + offset);
    uint32_t *head = &heads[node->hash % buckets];
    node->next = *head; /* only the writer, which we are, changes it */
    __atomic_store_n(head, (uint32_t)(offset / 8), __ATOMIC_RELEASE); /* pairs with snap_find_new */
}

/* ---- all of it ------------------------------------------------------------------------------------------------ */

static inline void snap_prefetch(const snap_view *view, uint64_t hash)
{
    if (view->delta)
        __builtin_prefetch(&view->delta->heads[hash % view->delta->buckets]);
    for (int i = 0; i < view->count; i++)
        __builtin_prefetch(snap_line(view->layers[i], hash));
}

/* And when that has come: what it refers to. */
static inline void snap_prefetch_next(const snap_view *view, uint64_t hash)
{
    if (view->delta) {
        uint64_t node = (uint64_t)load_relaxed_u32(&view->delta->heads[hash % view->delta->buckets]) * 8;
        if (node && node < view->delta->room)
            __builtin_prefetch(view->delta->nodes + node);
    }
    for (int i = 0; i < view->count; i++) {
        uint64_t offset = snap_guess(view->layers[i], hash);
        if (offset) {
            __builtin_prefetch(view->layers[i]->base + offset);
            __builtin_prefetch(view->layers[i]->base + offset + 64);
        }
    }
}

/* The newest record of a key, which may say that it is gone. *where: -1 the delta, or the layer that had the last word. */
static inline int snap_get(const snap_view *view, uint64_t hash, const char *key, uint32_t size, snap_record *record, int *where)
{
    int status = SNAP_NONE;
    *where = -1;
    if (view->count > 1)
        snap_prefetch(view, hash);
    if (view->delta)
        status = snap_find_new(view->delta, view->end, hash, key, size, record);
    for (int i = 0; status == SNAP_NONE && i < view->count; i++) {
        *where = i;
        status = snap_find(view->layers[i], hash, key, size, record);
    }
    return status;
}

#endif
