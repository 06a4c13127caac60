/* The protocol of the Rust crate mmap-sync, on its own files, so that Python and Rust read and write the same value.

   The state file has a version word (index 1 bit, size 39, checksum 24; 0: nothing written) and a count of readers for
   each index, which all readers share. A writer fills the file whose index the version does not name, after it saw that
   file's count at 0, or `grace` had passed and it reset the count.

   The crate's reader loads the version, then counts itself, and does not look again: two writes in between and it reads a
   file that is being overwritten. Ours announces itself first and then looks, as in leftright.h, with the same argument:
   a writer that looked at the count before our increment stored its version before our load of it, so the load shows
   another index, or that the filling is over. Bounded by three rounds: wait-free.

   What cannot be mended from one side. A count does not say whose it is: a reader that dies leaves it, so a writer must
   reset it when grace has passed, and then a live reader that was only slow reads what is being overwritten, and its late
   release takes away the count of another. Ours never goes below 0. A version is no sequence: equal values written twice
   have equal words. Use the default protocol where Rust is not needed. */
#ifndef MMAPDS_MMAPSYNC_H
#define MMAPDS_MMAPSYNC_H

#include "atomics.h"
#include "layout.h"

/* Late, after a writer's reset, there is nothing to take back. */
static inline void mmapsync_unpin(mmapds_crate_state *state, int index)
{
    uint32_t count = load_relaxed_u32(&state->readers[index]);
    while (count != 0 && !compare_exchange_seq_cst_u32(&state->readers[index], &count, count - 1))
        ; /* pairs with the writer's look: our reads of the data are over */
}

/* Pins the active index and returns it, or returns -1 when nothing has been published. *version is what was pinned. */
static inline int mmapsync_pin(mmapds_crate_state *state, uint64_t *version)
{
    uint64_t v = load_relaxed_u64(&state->version);
    int i = (int)(v & 1);
    for (int attempt = 0; attempt < 2; attempt++) {
        fetch_add_seq_cst_u32(&state->readers[i], 1);   /* pairs with the writer's look: announce, then look again */
        v = load_seq_cst_u64(&state->version);          /* pairs with the store that publishes */
        if (v != 0 && (int)(v & 1) == i) {
            *version = v;
            return i;
        }
        mmapsync_unpin(state, i);
        if (v == 0)
            return -1;
        i = (int)(v & 1);
    }
    fetch_add_seq_cst_u32(&state->readers[0], 1);
    fetch_add_seq_cst_u32(&state->readers[1], 1);
    v = load_seq_cst_u64(&state->version);
    i = (int)(v & 1);
    mmapsync_unpin(state, 1 - i);
    *version = v;
    return i;
}

#endif
