/* The default Synchronizer protocol: one writer, many wait-free readers, zero-copy, and every death survived.

   Two data files take turns. The commit word V is a sequence whose low bit is the index of the *active* file; the writer
   fills the other one and then stores V + 1. A reader owns a slot, a cache line with a pin count for each index, that only
   it writes. The layout is drawn in layout.h.

   Reading (all seq_cst)::

       i = V & 1
       twice:  pins[i]++ ;  v = V
               if v == 0: unpin, nothing published
               if v & 1 == i: pinned
               pins[i]-- ; i = v & 1
       pins[0]++ ; pins[1]++ ; v = V        now both are held, so whichever is active is; bounded, hence wait-free
       drop the one that v does not need

   Why nothing that is pinned is overwritten in place. The writer fills index n only after it saw every pins[n] at 0, and it
   looks only while V's index is not n. Take a reader that has incremented pins[n] and then loads V with index n.
   (1) The writer looked after the increment: it saw the pin, and does not touch that inode.
   (2) It looked before. Then, in the one order of all seq_cst operations, look < increment < load of V; the load found
       index n, so the store of V that ends this very filling is before the load: the filling is over, and the next one of
       index n starts with another look, which comes after the increment.
   A reader loads and stores its own pins without read-modify-write, because nobody else writes its slot while it lives: an
   increment is one seq_cst store, a decrement one release store (pairs with the writer's look: all our reads of the data
   happen before it sees 0).

   Why the writer never waits for ever. If a live reader holds index n beyond `grace`, the writer fills a *new inode* that
   it then renames over data_n, adds 1 to generation[n], and publishes. The reader keeps its mapping of the old inode.
   Readers compare the generation they mapped with the record's whenever they see a new version.
   * A reader pinned at v that maps data_n by name while the writer replaces it may get the new inode. That replacement is
     of v + 2, so V has become v + 1 before it began: the reader re-checks V after mapping and starts again.
   * While V stays what it was when a mapping was checked, the mapping stays right: the active index is never replaced.

   Why a death harms nobody. The writer: killed before the store of V, nothing is published; between rename and generation,
   its successor adds 1 to both generations before its first write, and until then the inactive file is nobody's. A reader:
   the kernel drops the lock on its slot's byte; the writer that finds it pinned takes that lock, zeroes the pins, clears
   the slot's bit, and lets go. A slot's bit and incarnation are only changed by whoever holds its byte.

   Readers without a slot (all 1,024 taken, or no permission to write) copy instead: load V, copy record and data, fence,
   load V again. Equal: the copy is of v, because index v & 1 is not touched before V is v + 1, and the writer fences
   between that store and the first byte. Lock-free, not wait-free; what they hand out is marked `copied`.

   In the process, the GIL is the mutex of the reading half: pin, compare and hand out happen without letting it go. The
   writing half releases it for large copies, syncs and waits, and has a mutex of its own.

   Prior art: mmap-sync (two files, counts of readers), left-right (Ramalhete and Correia: announce, then look again),
   concread and evmap. Rejected: counts of readers shared by all (a dead reader cannot be told from a slow one, and readers
   fight for a cache line); epochs with hazard pointers (more memory to fault, no gain with two versions); a seqlock alone
   (no zero-copy).
*/
#ifndef MMAPDS_LEFTRIGHT_H
#define MMAPDS_LEFTRIGHT_H

#include "atomics.h"
#include "kernel.h"
#include "layout.h"

/* A data file that is cut in the middle of a page shows zeros behind its end, and no signal comes: so there is a sentinel at
   the end of each mapping, at which every read looks. Where it was missing when the file was mapped (a power cut may take
   it, for it is not synced) there is nothing to be looked at, and this stands in. */
static const uint64_t leftright_no_seal = MMAPDS_SENTINEL;

static inline const uint64_t *leftright_seal(const char *base, size_t size)
{
    const uint64_t *end = (const uint64_t *)(base + size - 8);
    return load_relaxed_u64(end) == MMAPDS_SENTINEL ? end : &leftright_no_seal;
}

static inline void leftright_unpin(uint64_t *pins, int index)
{
    store_release_u64(&pins[index], pins[index] - 1); /* pairs with leftright_pinned: our reads are over */
}

/* Pins the active index and returns it, or returns -1 when nothing has been published. *version is what was pinned. */
static inline int leftright_pin(const mmapds_sync *sync, uint64_t *pins, uint64_t *version)
{
    uint64_t v;
    int i = (int)(load_relaxed_u64(&sync->sequence) & 1);
    for (int attempt = 0; attempt < 2; attempt++) {
        store_seq_cst_u64(&pins[i], pins[i] + 1);   /* pairs with leftright_pinned: announce, then look again */
        v = load_seq_cst_u64(&sync->sequence);      /* pairs with the store in leftright_publish */
        if ((int)(v & 1) == i && v != 0) {
            *version = v;
            return i;
        }
        leftright_unpin(pins, i);
        if (v == 0)
            return -1;
        i = (int)(v & 1);
    }
    store_seq_cst_u64(&pins[0], pins[0] + 1);
    store_seq_cst_u64(&pins[1], pins[1] + 1);
    v = load_seq_cst_u64(&sync->sequence);
    i = (int)(v & 1);
    leftright_unpin(pins, 1 - i);
    *version = v;
    return i;
}

/* The first slot from `start` that pins `index`, or -1; -2 if a slot in use has never been used: zeros for real counts, which
   is what the kernel shows behind the end of a file that was cut in the middle of a page. */
static inline int leftright_pinned(const mmapds_sync *sync, int index, int start)
{
    if (start >= MMAPDS_SLOTS)
        return -1;
    int word = start / 64;
    /* Pairs with the reader's fetch_or in leftright_attach, which is before its first pin in the order of all seq_cst
       operations: a bit that is not seen here belongs to a reader whose load of V comes later. */
    uint64_t bits = load_seq_cst_u64(&sync->in_use[word]) & (~(uint64_t)0 << (start % 64));
    for (;;) {
        for (; bits; bits &= bits - 1) {
            int slot = word * 64 + __builtin_ctzll(bits);
            if (load_seq_cst_u64(&sync->slots[slot].pins[index])) /* pairs with leftright_pin and leftright_unpin */
                return slot;
            if (load_relaxed_u64(&sync->slots[slot].incarnation) == 0)
                return -2;
        }
        if (++word >= MMAPDS_SLOT_WORDS)
            return -1;
        bits = load_seq_cst_u64(&sync->in_use[word]);
    }
}

/* The caller has locked the slot's byte: recover what still names the slot, then announce it. */
static inline void leftright_attach(mmapds_sync *sync, int slot, uint64_t pid)
{
    mmapds_slot *mine = &sync->slots[slot];
    store_seq_cst_u64(&mine->pins[0], 0);
    store_seq_cst_u64(&mine->pins[1], 0);
    store_relaxed_u64(&mine->pid, pid);
    store_relaxed_u64(&mine->incarnation, load_relaxed_u64(&mine->incarnation) + 1);
    fetch_or_seq_cst_u64(&sync->in_use[slot / 64], (uint64_t)1 << (slot % 64));
}

static inline void leftright_detach(mmapds_sync *sync, int slot)
{
    fetch_and_seq_cst_u64(&sync->in_use[slot / 64], ~((uint64_t)1 << (slot % 64)));
}

/* Frees the slot of a dead handle: 1 if it was dead, 0 if it lives. A death in the middle leaves the slot as it was, or
   without its bit and with no pins: the next look, or the next owner, goes on from there. */
static inline int leftright_reclaim(mmapds_sync *sync, int slot, int fd)
{
    int64_t byte = MMAPDS_LOCK_SLOT + slot;
    if (kernel_lock(fd, F_WRLCK, byte, 1, 0) != 0)
        return 0;
    /* Nobody lives in the slot, and nobody can move in while we have its byte. */
    store_seq_cst_u64(&sync->slots[slot].pins[0], 0);
    store_seq_cst_u64(&sync->slots[slot].pins[1], 0);
    leftright_detach(sync, slot);
    kernel_lock(fd, F_UNLCK, byte, 1, 0);
    return 1;
}

/* Frees slots of dead handles among the next `count` in use from `start`, except `mine`; returns where to go on. Readers
   that die without a pin leave a bit that costs every write a look. */
static inline int leftright_sweep(mmapds_sync *sync, int start, int count, int mine, int fd)
{
    for (int i = 0; i < MMAPDS_SLOTS && count > 0; i++, start++) {
        int slot = start % MMAPDS_SLOTS;
        if (slot != mine && (load_seq_cst_u64(&sync->in_use[slot / 64]) >> (slot % 64) & 1)) {
            leftright_reclaim(sync, slot, fd);
            count--;
        }
    }
    return start % MMAPDS_SLOTS;
}

/* The record of the inactive index, whose contents nobody may use, then V. A death in between leaves a record that V does
   not name; a death before the wake costs a waiter one slice of its sleep. */
static inline void leftright_publish(mmapds_sync *sync, uint64_t sequence, uint64_t size, uint64_t hash)
{
    mmapds_record *record = &sync->records[sequence & 1];
    store_relaxed_u64(&record->sequence, sequence);
    store_relaxed_u64(&record->size, size);
    store_relaxed_u64(&record->hash, hash);
    store_relaxed_u64(&record->check, mmapds_record_check(sequence, size, hash, sync->header.identity));
    /* A waiter sets its mark, compares V, and sleeps on it. Sleepers of the old V are remembered, and their mark taken, before
       V changes; a mark set after that is found by the second look, or, if its owner has seen the new V, kept for the next
       write. Taking it after the store instead could take the mark of one who already waits for the next version. */
    uint32_t marked = load_seq_cst_u32(&sync->waiters);
    if (marked)
        store_seq_cst_u32(&sync->waiters, 0);
    store_seq_cst_u64(&sync->sequence, sequence); /* pairs with leftright_pin and LeftRight.copy: all above is seen */
    if (marked || load_seq_cst_u32(&sync->waiters))
        kernel_futex_wake((const uint32_t *)&sync->sequence, INT_MAX);
}

#endif
