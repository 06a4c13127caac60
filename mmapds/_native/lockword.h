/* The transitions of the lock word; what it is, and why they are right, is in lockword.pyx. */
#ifndef MMAPDS_LOCKWORD_H
#define MMAPDS_LOCKWORD_H

#include "atomics.h"
#include "kernel.h"
#include "layout.h"

#define LOCK_WAITERS (1ULL << 31)
#define LOCK_DIRTY (1ULL << 30)
#define LOCK_TOKEN (~(LOCK_WAITERS | LOCK_DIRTY))

enum {
    LOCK_TAKEN = 0,       /* the word is ours, in order */
    LOCK_TAKEN_DIRTY = 1, /* the word is ours; an owner died, or left, in the middle of something */
    LOCK_BUSY = 2,        /* somebody has it */
    LOCK_SPINS = 100,
};

/* The byte of the file that the owner with this token has locked. The flags' two bits are squeezed out: 62 - 2 = 60 bits,
   below 2^62. */
static inline int64_t lockword_byte(uint64_t token)
{
    return MMAPDS_LOCK_TOKEN + (int64_t)((token >> 32) << 30 | (token & 0x3fffffff));
}

/* One attempt, without waiting: takes a free word. Release clears the waiters bit and wakes one; whoever has `waited`
   sets it again, because others may still sleep. */
static inline int lockword_try(uint64_t *word, uint64_t token, int waited)
{
    uint64_t found = 0, mine = waited ? token | LOCK_WAITERS : token;
    if (compare_exchange_seq_cst_u64(word, &found, mine)) /* pairs with the exchange in lockword_release */
        return LOCK_TAKEN;
    while (!(found & LOCK_TOKEN)) /* free, but flagged */
        if (compare_exchange_seq_cst_u64(word, &found, mine | found))
            return found & LOCK_DIRTY ? LOCK_TAKEN_DIRTY : LOCK_TAKEN;
    return LOCK_BUSY;
}

/* Takes the word over if its owner is dead. `fd`: the descriptor that our own token is locked on. */
static inline int lockword_probe(uint64_t *word, uint64_t token, int fd)
{
    uint64_t found = load_seq_cst_u64(word), dead = found & LOCK_TOKEN;
    int status = LOCK_BUSY;
    if (dead == 0)
        return lockword_try(word, token, 1);
    if (dead == token) /* another thread of this handle: alive, and its lock would look free to us */
        return LOCK_BUSY;
    if (kernel_lock(fd, F_WRLCK, lockword_byte(dead), 1, 0) != 0)
        return LOCK_BUSY;
    /* The owner is dead and we alone hold its byte: the word can change only by a flag or, if it had been released or
       taken over before we got the byte, be another's by now. */
    while ((found & LOCK_TOKEN) == dead)
        if (compare_exchange_seq_cst_u64(word, &found, token | LOCK_DIRTY | LOCK_WAITERS)) { /* others may sleep, too */
            status = LOCK_TAKEN_DIRTY;
            break;
        }
    kernel_lock(fd, F_UNLCK, lockword_byte(dead), 1, 0);
    return status;
}

static inline void lockword_release(uint64_t *word, int dirty)
{
    /* Pairs with the compare-and-swap in lockword_try: what we did under the lock is seen by the next owner. */
    if (exchange_seq_cst_u64(word, dirty ? LOCK_DIRTY : 0) & LOCK_WAITERS)
        kernel_futex_wake((uint32_t *)word, 1);
}

/* Spins for a moment, then looks whether the owner is dead. */
static inline int lockword_press(uint64_t *word, uint64_t token, int fd, int waited)
{
    for (int i = 0; i < LOCK_SPINS; i++) {
        cpu_relax();
        if (!(load_relaxed_u64(word) & LOCK_TOKEN)) {
            int status = lockword_try(word, token, waited);
            if (status != LOCK_BUSY)
                return status;
        }
    }
    return lockword_probe(word, token, fd);
}

/* Sleeps until the word is released, at most `nanoseconds`; 0, or -errno as kernel_futex_wait. */
static inline int lockword_sleep(uint64_t *word, int64_t nanoseconds)
{
    uint64_t found = load_seq_cst_u64(word);
    if (!(found & LOCK_TOKEN))
        return 0;
    if (!(found & LOCK_WAITERS) && !compare_exchange_seq_cst_u64(word, &found, found | LOCK_WAITERS))
        return 0;
    /* The kernel compares again before it sleeps; every release clears the waiters bit in this half. */
    return kernel_futex_wait((uint32_t *)word, (uint32_t)(found | LOCK_WAITERS), nanoseconds);
}

#endif
