/* Persistent counters: the names, and how they come and go.

   A cell is a word that atomic instructions change, and nothing more: whoever dies, whenever, it holds what was last
   stored. All that needs a protocol is which cell belongs to which name, and how the file grows. Both happen under the
   kernel's lock on byte 0 (LOCK_OPEN), which a dead process gives up; the functions below that say "locked" are called
   with it, and what a predecessor left half done is finished by the next one that has it. Readers take no lock: they
   see a name or an extent when it is complete, because the word that publishes it is stored last (release; the
   reader's load of it is an acquire). The layout is in layout.h.

   A new name. (1) The entry, its cell and its check are written, behind the published ones. (2) `power`: the file is
   synced. (3) names + 1. Dead before (3): nobody has seen it, the next new name is written over it. Power lost: after
   (2) the entry verifies, and recovery counts it in whether or not (3) is on the disk; nobody had it before (2).

   A new extent. (1) The file gets blocks, as zeros. (2) The sentinel. (3) The record in the table, its check last. Dead
   before (3): the file is longer than the table says; the next one who grows it starts from there, with zeros again.
   `power`: the sync of the first name in it covers it.

   Removal. (1) `removing` names the entry. (2) The state becomes REMOVED, and `changes` is raised. (3) `power`: sync; if it
   fails, LIVE again, `changes` again. (4) The cell's value is taken: exchanged for 0. (5) `removing` is 0. Whoever has
   the lock next after a death raises `changes` (again), if `removing` is not 0; if the state is REMOVED, he does (3), (4)
   and (5), so that the name, when it returns, begins with 0 (what was added since the first (4) goes with the rest); if
   it is LIVE, nothing happened, and he does (5). Power lost: after (2) the state on the disk may be REMOVED, and the cell what it was: a name
   that returns then begins with that. `power`: a LIVE name on the disk was never emptied, because of (3), so what was
   reserved from it does not come again.

   Why nothing that is added is lost to a removal: who adds by name looks at `changes` before and after. If it is the
   same after the addition, (4) comes later, and takes it. If not, he looks the name up again; if it was removed and
   its cell is not 0, his addition may have come after (4), so he makes the name return, with what is in the cell.

   Return of a removed name: its cell was 0 after (4); what bound counters have added to it since then is in it and
   stays. (1) `value` and `how` say what it is to begin with, and `returning` names the entry. (2) The cell gets that
   value. (3) The state becomes LIVE, and `changes` is raised. (4) `returning` is 0. (5) `power`: sync. Dead after (1):
   the next one does (2), (3) and (4); if the state was LIVE already, he only raises `changes` (again), for those who add
   may have come. After another boot the state is what the disk has. Another process may use the name between (3) and (5); if the power goes
   then, its state may be REMOVED again, with the cell as it is on the disk: what is reserved from it later does not
   repeat what was reserved before.

   Rejected: a hash table in the file, whose every growth is a protocol of its own: a handle keeps a dict, and looks at
   one word to know that it is up to date; an entry in one step by a 256-byte atomic store, which there is not; giving
   the cell of a removed name to another, whose first owner's bound counters still add to it. */
#ifndef MMAPDS_COUNTERS_H
#define MMAPDS_COUNTERS_H

#include "atomics.h"
#include "kernel.h"
#include "layout.h"

#define COUNTERS_CONTROL ((ssize_t)sizeof(mmapds_counters)) /* where the first extent begins */
#define COUNTERS_LEAST 64                                    /* names that an extent is for, at least */
#define EMMAP_CELLS ((ssize_t)sizeof(mmapds_emmap))         /* where the cells begin in a file of emmap's */

enum {
    COUNTERS_DONE = 0,
    COUNTERS_FOUND = 1,   /* the name is there: somebody was first */
    COUNTERS_GONE = 2,    /* it is not there any more */
    COUNTERS_STALE = 3,   /* the file has changed since the caller looked: look again */
    COUNTERS_FULL = 4,    /* no room: extend the file */
    COUNTERS_DAMAGED = 5, /* what is in the file contradicts itself */
    COUNTERS_LOST = 6,    /* the file was cut */
};                        /* and -errno: a sync failed */

enum {                      /* how a removed name comes back */
    COUNTERS_ANYHOW = 0,
    COUNTERS_NEEDED = 1,    /* only if its cell is not 0 */
    COUNTERS_SET = 2,       /* with the initial value, whatever is in its cell */
};

/* A file as one handle has it mapped. */
typedef struct {
    mmapds_counters *control;
    char *cells;
    uint64_t stride, capacity;
    uint64_t seen;        /* `changes` when the names were read */
    uint64_t names;       /* how many entries were read */
    uint64_t room;        /* entries in the extents below */
    uint64_t cells_size, names_size; /* bytes of cells and of entries in them */
    uint64_t cells_room, names_room; /* addresses that the mapping has for them */
    uint64_t end;         /* of the last of them in the file */
    uint32_t extents;
    uint32_t *lost;
    int fd;               /* to sync, if that is needed, or -1 */
    mmapds_entry *entries[MMAPDS_EXTENTS];
    uint64_t upto[MMAPDS_EXTENTS]; /* entries in this extent and those before it */
} counters_view;

/* ---- reading ------------------------------------------------------------------------------------------------- */

/* Decodes a count; -1 if it is damaged. */
static inline int64_t counters_count(uint64_t word, const uint8_t identity[16])
{
    uint64_t number = word & 0xffffffff;
    return word == mmapds_count(number, identity) ? (int64_t)number : -1;
}

static inline uint64_t counters_entries(uint64_t names_size) { return (names_size - 8) / sizeof(mmapds_entry); }

/* The end of an extent's entries, where the file's last word is as long as the file is whole. */
static inline uint64_t *counters_sentinel(mmapds_entry *entries, uint64_t names_size)
{
    return (uint64_t *)((char *)entries + names_size - 8);
}

/* Bytes of an extent's entries and the sentinel behind them, in whole pages: as it was mapped, whatever the file says now. */
static inline uint64_t counters_names_size(const counters_view *view, unsigned extent)
{
    uint64_t entries = view->upto[extent] - (extent ? view->upto[extent - 1] : 0);
    return (entries * sizeof(mmapds_entry) + 8 + MMAPDS_PAGE - 1) & ~(uint64_t)(MMAPDS_PAGE - 1);
}

/* Extent `number`, read once: 1 if there is one, 0 if not, -1 if it is damaged. Sizes that pass are whole pages, and do
   not overflow, even 112 times. */
static inline int counters_extent(const mmapds_counters *control, unsigned number, mmapds_extent *found)
{
    const mmapds_extent *record = &control->extents[number];
    found->check = load_acquire_u64(&record->check); /* pairs with the release in counters_extend */
    if (found->check == 0)
        return 0;
    found->cells_size = load_relaxed_u64(&record->cells_size);
    found->names_size = load_relaxed_u64(&record->names_size);
    if (found->check != mmapds_extent_check(number, found->cells_size, found->names_size, control->header.identity))
        return -1;
    if ((found->cells_size | found->names_size) & (MMAPDS_PAGE - 1) || found->names_size == 0 ||
        found->cells_size > 1ULL << 46 || found->names_size > 1ULL << 46)
        return -1;
    return 1;
}

/* `number` is below the room. */
static inline mmapds_entry *counters_entry(const counters_view *view, uint64_t number)
{
    unsigned i = 0;
    while (number >= view->upto[i])
        i++;
    return view->entries[i] + (i ? number - view->upto[i - 1] : number);
}

static inline uint64_t *counters_cell(const counters_view *view, uint64_t number)
{
    return (uint64_t *)(view->cells + (view->capacity + number) * view->stride);
}

static inline int counters_intact(const counters_view *view, const mmapds_entry *entry, uint64_t number)
{
    uint64_t state = load_acquire_u64(&entry->state);
    return entry->check == mmapds_entry_check(entry, number, view->control->header.identity) &&
           (entry->length ? state == MMAPDS_LIVE || state == MMAPDS_REMOVED : state == MMAPDS_DAMAGED);
}

/* How many entries are published, for which there must be room; -1 if the word is damaged. */
static inline int64_t counters_names(const counters_view *view)
{
    /* Pairs with the release in counters_create: an entry that is counted is complete, and so is its extent. */
    return counters_count(load_acquire_u64(&view->control->names), view->control->header.identity);
}

/* ---- changing, locked ---------------------------------------------------------------------------------------- */

/* 0, or -errno, and then nobody trusts a sync until a flush has written everything anew. The kernel tells each open file
   of a failure once: whoever shares ours, a thread or the child of a fork, may have heard of it. So the word counts. */
static inline int counters_sync(const counters_view *view)
{
    uint64_t *word = &view->control->header.failed;
    if (view->fd < 0)
        return 0;
    if (load_seq_cst_u64(word))
        return -EIO;
    if (fdatasync(view->fd) != 0) {
        int failed = -errno;
        fetch_add_seq_cst_u64(word, 1);
        return failed;
    }
    return load_seq_cst_u64(word) ? -EIO : 0;
}

/* Steps (2) and (3) of a return, as far as they are not done. */
static inline void counters_make_live(counters_view *view, uint64_t number)
{
    mmapds_counters *control = view->control;
    mmapds_entry *entry = counters_entry(view, number);
    uint64_t *cell = counters_cell(view, number), zero = 0;
    if (load_seq_cst_u64(&entry->state) == MMAPDS_REMOVED) {
        if (control->how == COUNTERS_SET)
            store_seq_cst_u64(cell, control->value);
        else if (control->value)
            compare_exchange_seq_cst_u64(cell, &zero, control->value);
        store_seq_cst_u64(&entry->state, MMAPDS_LIVE);
    }
    fetch_add_seq_cst_u64(&control->changes, 1); /* pairs with the loads of those who add by name */
}

/* Whether the caller knows the file as it is; finishes what a dead predecessor has begun. */
static inline int counters_enter(counters_view *view, int64_t *names)
{
    mmapds_counters *control = view->control;
    const uint8_t *identity = control->header.identity;
    mmapds_extent next;
    int more = view->extents < MMAPDS_EXTENTS ? counters_extent(control, view->extents, &next) : 0;
    int64_t removing = counters_count(load_seq_cst_u64(&control->removing), identity);
    int64_t returning = counters_count(load_seq_cst_u64(&control->returning), identity);
    *names = counters_names(view);
    if (kernel_lost(view->lost))
        return COUNTERS_LOST;
    if (more > 0 || load_seq_cst_u64(&control->changes) != view->seen)
        return COUNTERS_STALE;
    if (more < 0 || *names < (int64_t)view->names || *names > (int64_t)view->room || removing < 0 || returning < 0 ||
        removing > *names || returning > *names)
        return COUNTERS_DAMAGED;
    if (removing) {
        fetch_add_seq_cst_u64(&control->changes, 1); /* perhaps the predecessor did not come to it */
        if (load_seq_cst_u64(&counters_entry(view, removing - 1)->state) == MMAPDS_REMOVED) {
            int failed = counters_sync(view);
            if (failed)
                return failed;
            exchange_seq_cst_u64(counters_cell(view, removing - 1), 0);
        }
        store_seq_cst_u64(&control->removing, 0);
        return COUNTERS_STALE;
    }
    if (returning) {
        counters_make_live(view, returning - 1);
        store_seq_cst_u64(&control->returning, 0);
        return COUNTERS_STALE;
    }
    return COUNTERS_DONE;
}

/* The name comes back, with what is in its cell; if that is 0, with `initial`, if there is one. */
static inline int counters_return(counters_view *view, uint64_t number, const uint64_t *initial, int how)
{
    mmapds_counters *control = view->control;
    if (how == COUNTERS_NEEDED && load_seq_cst_u64(counters_cell(view, number)) == 0)
        return COUNTERS_GONE;
    control->value = initial ? *initial : 0;
    control->how = how;
    store_seq_cst_u64(&control->returning, mmapds_count(number + 1, control->header.identity));
    counters_make_live(view, number);
    store_seq_cst_u64(&control->returning, 0);
    return counters_sync(view);
}

/* Makes the name, if it is not there, with `initial` or 0. `hint`: the number of the entry that had it, or -1. Sets
   `number`. */
static inline int counters_create(counters_view *view, const uint8_t *name, unsigned length, int64_t hint,
                                  const uint64_t *initial, int how, uint64_t *number)
{
    int64_t names, at;
    int status = counters_enter(view, &names);
    if (status)
        return status;
    for (at = hint >= 0 ? hint : (int64_t)view->names; at < names; at++) {
        mmapds_entry *entry = counters_entry(view, at);
        if (!counters_intact(view, entry, at))
            return kernel_lost(view->lost) ? COUNTERS_LOST : COUNTERS_DAMAGED;
        if (entry->length == length && memcmp(entry->name, name, length) == 0) {
            *number = at;
            if (load_acquire_u64(&entry->state) == MMAPDS_LIVE)
                return COUNTERS_FOUND;
            return counters_return(view, at, initial, how);
        }
        if (hint >= 0) /* an entry keeps its name for as long as somebody has the file open */
            return COUNTERS_DAMAGED;
    }
    if (names == (int64_t)view->room)
        return COUNTERS_FULL;
    mmapds_entry *entry = counters_entry(view, names);
    entry->check = 0; /* somebody who died may have left one here */
    entry->length = (uint8_t)length;
    memcpy(entry->name, name, length);
    memset(entry->name + length, 0, MMAPDS_NAME - length);
    entry->state = MMAPDS_LIVE;
    store_seq_cst_u64(counters_cell(view, names), initial ? *initial : 0);
    entry->check = mmapds_entry_check(entry, names, view->control->header.identity);
    if (kernel_lost(view->lost))
        return COUNTERS_LOST;
    status = counters_sync(view);
    if (status)
        return status;
    *number = names;
    /* Pairs with the acquire in counters_names. */
    store_release_u64(&view->control->names, mmapds_count(names + 1, view->control->header.identity));
    return COUNTERS_DONE;
}

/* Removes entry `number`, if it is live, and takes its value. */
static inline int counters_remove(counters_view *view, uint64_t number, uint64_t *value)
{
    mmapds_counters *control = view->control;
    int64_t names;
    int status = counters_enter(view, &names);
    if (status)
        return status;
    mmapds_entry *entry = counters_entry(view, number);
    if (!counters_intact(view, entry, number))
        return kernel_lost(view->lost) ? COUNTERS_LOST : COUNTERS_DAMAGED;
    if (load_acquire_u64(&entry->state) != MMAPDS_LIVE)
        return COUNTERS_GONE;
    store_seq_cst_u64(&control->removing, mmapds_count(number + 1, control->header.identity));
    store_seq_cst_u64(&entry->state, MMAPDS_REMOVED);
    /* Before the exchange; pairs with the second load of those who add by name. */
    fetch_add_seq_cst_u64(&control->changes, 1);
    status = counters_sync(view);
    if (status == 0) {
        *value = exchange_seq_cst_u64(counters_cell(view, number), 0);
    } else {
        store_seq_cst_u64(&entry->state, MMAPDS_LIVE);
        fetch_add_seq_cst_u64(&control->changes, 1);
    }
    store_seq_cst_u64(&control->removing, 0);
    return status;
}

/* Blocks for the file up to `end`, zero from `start` on. Hears no signals, which may have handlers that count. */
static inline int counters_allocate(int fd, int64_t start, int64_t end)
{
    static const char zeros[MMAPDS_PAGE];
    int64_t size = kernel_size(fd), done = size;
    int failed = 1;
    if (size < 0)
        return (int)size;
    for (int64_t at = start; at < size && at < end; at += MMAPDS_PAGE) { /* who died here before, or lost the power */
        failed = kernel_fill(fd, zeros, size - at < MMAPDS_PAGE ? size - at : MMAPDS_PAGE, at);
        if (failed)
            return failed;
    }
    failed = 1;
    if (size >= end)
        return 0;
    if (end - size > kernel_room(fd))
        return -ENOSPC;
    while (failed == 1 || failed == -EINTR)
        failed = kernel_allocate_step(fd, end, &done);
    if (failed)
        kernel_give_back(fd, size, end);
    return failed;
}

/* What the power took: its cell goes by number only from now on. */
static inline void counters_give_up(counters_view *view, uint64_t number)
{
    mmapds_entry *entry = counters_entry(view, number);
    memset(entry, 0, sizeof(*entry));
    entry->state = MMAPDS_DAMAGED;
    entry->check = mmapds_entry_check(entry, number, view->control->header.identity);
}

/* Publishes the extent that comes next, whose bytes are in the file. */
static inline void counters_extend(mmapds_counters *control, unsigned number, uint64_t cells_size, uint64_t names_size)
{
    mmapds_extent *record = &control->extents[number];
    store_relaxed_u64(&record->cells_size, cells_size);
    store_relaxed_u64(&record->names_size, names_size);
    store_relaxed_u64(&record->zero, 0);
    /* Pairs with the acquire in counters_extent. */
    store_release_u64(&record->check, mmapds_extent_check(number, cells_size, names_size, control->header.identity));
}

/* ---- recovery, locked, and nobody is alive in the file (or it is a private copy) -------------------------------- */

/* `view` holds the extents that the file has whole. Returns how many entries count, for counters_recovered. Comes to the
   same result when it is repeated after a death at any step: what is given up is counted afterwards. */
static inline int64_t counters_recover(counters_view *view)
{
    mmapds_counters *control = view->control;
    int64_t names = counters_names(view), found = 0;
    for (unsigned i = view->extents; i < MMAPDS_EXTENTS; i++) /* the disk had the record and not the size */
        memset(&control->extents[i], 0, sizeof(control->extents[i]));
    for (unsigned i = 0; i < view->extents; i++)
        *counters_sentinel(view->entries[i], counters_names_size(view, i)) = MMAPDS_SENTINEL;
    control->removing = control->returning = 0;
    for (int64_t at = 0; at < (int64_t)view->room; at++)
        if (counters_intact(view, counters_entry(view, at), at))
            found = at + 1;
    if (names > (int64_t)view->room)
        names = view->room;
    if (names < found)
        names = found;
    for (int64_t at = 0; at < names; at++)
        if (!counters_intact(view, counters_entry(view, at), at))
            counters_give_up(view, at);
    return names;
}

static inline void counters_recovered(counters_view *view, int64_t names)
{
    mmapds_counters *control = view->control;
    control->header.failed = 0;
    control->changes++;
    store_release_u64(&control->names, mmapds_count(names, control->header.identity));
}

/* ---- by name, with the names as they were when the caller read them -------------------------------------------- */

/* Before and after each operation. Before: the names are right. After: so they were; see the top. Sequentially
   consistent: between the two loads lies the operation, and the remover raises `changes` before it takes the value. */
static inline int counters_current(const counters_view *view)
{
    return load_seq_cst_u64(&view->control->changes) == view->seen;
}

/* ---- cells --------------------------------------------------------------------------------------------------- */

enum { CELL_ADD, CELL_SUB, CELL_AND, CELL_OR, CELL_XOR, CELL_EXCHANGE };

/* One atomic instruction, but for and, or, xor on x86-64, which repeat a compare-and-swap. Returns the value before. */
static inline uint64_t cell_apply(int operation, uint64_t *cell, uint64_t n)
{
    switch (operation) {
    case CELL_ADD: return fetch_add_seq_cst_u64(cell, n);
    case CELL_SUB: return fetch_sub_seq_cst_u64(cell, n);
    case CELL_AND: return fetch_and_seq_cst_u64(cell, n);
    case CELL_OR: return fetch_or_seq_cst_u64(cell, n);
    case CELL_XOR: return fetch_xor_seq_cst_u64(cell, n);
    default: return exchange_seq_cst_u64(cell, n);
    }
}

/* Adds n unless the sum does not fit: then 0, and nothing is changed. Lock-free. */
static inline int cell_add_checked(uint64_t *cell, int64_t n, int64_t *before)
{
    uint64_t found = load_seq_cst_u64(cell);
    int64_t sum;
    do {
        *before = (int64_t)found;
        if (__builtin_add_overflow(*before, n, &sum))
            return 0;
    } while (!compare_exchange_seq_cst_u64(cell, &found, (uint64_t)sum));
    return 1;
}

static inline double cell_double(uint64_t bits)
{
    double value;
    __builtin_memcpy(&value, &bits, 8);
    return value;
}

static inline uint64_t cell_bits(double value)
{
    uint64_t bits;
    __builtin_memcpy(&bits, &value, 8);
    return bits;
}

/* The same for doubles, which no instruction adds: a compare-and-swap, repeated if somebody was faster. `checked`: not
   if two finite numbers have no finite sum. */
static inline int cell_add_double(uint64_t *cell, double n, int checked, double *before)
{
    uint64_t found = load_seq_cst_u64(cell);
    double sum;
    do {
        *before = cell_double(found);
        sum = *before + n;
        if (checked && !__builtin_isfinite(sum) && __builtin_isfinite(*before) && __builtin_isfinite(n))
            return 0;
    } while (!compare_exchange_seq_cst_u64(cell, &found, cell_bits(sum)));
    return 1;
}

/* Compared as numbers: 0.0 is -0.0, and nothing is nan. */
static inline int cell_compare_exchange_double(uint64_t *cell, double *expected, double desired)
{
    uint64_t found = load_seq_cst_u64(cell);
    do {
        if (!(cell_double(found) == *expected)) {
            *expected = cell_double(found);
            return 0;
        }
    } while (!compare_exchange_seq_cst_u64(cell, &found, cell_bits(desired)));
    *expected = cell_double(found);
    return 1;
}

#endif
