/* What exists once per process: the table of our mappings for the SIGBUS handler, the lock descriptors for the fork
   handler, and the fork epoch. Included by kernel.pyx alone; other modules go through kernel.pxd.

   SIGBUS. A page of a file mapping whose file was truncated (or whose copy-on-write needs room on a full disk, or whose
   disk fails) raises SIGBUS at the instruction that touches it. The handler looks the address up in the table; if it is
   ours it maps a zero page over the fault, marks the mapping as lost and returns, so that the instruction goes on and
   the caller, who looks at the mark afterwards, raises MappingLost. Other addresses go to whatever handler was there
   before. libwayland-server and systemd's journal do the same.

   The handler only reads the table (lock-free) and calls mmap, sigaction and getpid-like system calls, all of which are
   safe in a handler. The table is changed with the GIL held, so there is one writer at a time. An entry has a version,
   odd while it is changed: a reader copies the entry and looks at the version again, because an entry that is withdrawn
   and used anew in between would join the start of one mapping to the end of another. One pass is enough: an entry that
   covers an access in flight was complete before the access began, and stays where it is until the mapping goes.

   Somebody may install a handler after ours (faulthandler.enable() does) and chain to us. We take the front again at
   the next mapping; to keep the two from calling each other for ever, a nested call of ours goes to the handler that
   was there before either. Until then the other one goes first and, as faulthandler does, passes the signal on by raise(),
   which says nothing about an address. The address is then taken from the kernel's frame, where it stays until the
   thread's next fault; `bus_repaired` tells such a call from a raise() that meant it.

   Not in our power: a handler that is installed after the last mapping and neither chains nor gives way, as Python's
   signal.signal(SIGBUS, ...) does. */
#ifndef MMAPDS_PROCESS_H
#define MMAPDS_PROCESS_H

#include "atomics.h"
#include "kernel.h"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <ucontext.h>

typedef struct {
    uint64_t version; /* odd: being changed */
    uint64_t start, end;
    uint64_t page;
    uint32_t *lost;
    int protection;
} bus_entry;

enum { BUS_CHUNK = 256 };

typedef struct bus_chunk {
    bus_entry entries[BUS_CHUNK];
    struct bus_chunk *next;
} bus_chunk;

static bus_chunk bus_first;
static struct sigaction bus_original, bus_before[2];
static int bus_installed, bus_current;
static __thread int bus_depth __attribute__((tls_model("initial-exec")));
static __thread uint64_t bus_repaired __attribute__((tls_model("initial-exec")));

static int bus_find(uint64_t address, bus_entry *found)
{
    for (bus_chunk *chunk = &bus_first; chunk; chunk = __atomic_load_n(&chunk->next, __ATOMIC_ACQUIRE))
        for (int i = 0; i < BUS_CHUNK; i++) {
            bus_entry *entry = &chunk->entries[i];
            uint64_t version = load_acquire_u64(&entry->version); /* pairs with the release store in bus_set */
            found->start = load_relaxed_u64(&entry->start);
            found->end = load_relaxed_u64(&entry->end);
            if (found->start == 0 || address < found->start || address >= found->end)
                continue;
            found->page = load_relaxed_u64(&entry->page);
            found->lost = __atomic_load_n(&entry->lost, __ATOMIC_RELAXED);
            found->protection = __atomic_load_n(&entry->protection, __ATOMIC_RELAXED);
            fence_acquire(); /* pairs with the release fence in bus_set */
            if (!(version & 1) && load_relaxed_u64(&entry->version) == version)
                return 1;
        }
    return 0;
}

/* The address whose access failed last in this thread, as the kernel left it in the frame; 0 if it does not say. */
static uint64_t bus_last_fault(const ucontext_t *context)
{
#if defined(__x86_64__)
    const greg_t *registers = context->uc_mcontext.gregs;
    return registers[REG_TRAPNO] == 14 ? (uint64_t)registers[REG_CR2] : 0;
#else
    return context->uc_mcontext.fault_address;
#endif
}

/* Maps a zero page over `address` if it is ours. */
static int bus_repair(uint64_t address)
{
    bus_entry found;
    if (!bus_find(address, &found))
        return 0;
    void *page = (void *)(uintptr_t)(address & ~(found.page - 1));
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    void *zero = mmap(page, found.page, found.protection, flags, -1, 0);
    if (zero == MAP_FAILED)
        return 0;
    __atomic_store_n(found.lost, 1, __ATOMIC_SEQ_CST); /* read by the operation in hand: kernel_lost */
    bus_repaired = address;
    return 1;
}

static void bus_chain(int signal, siginfo_t *info, void *context, const struct sigaction *to)
{
    if (to->sa_flags & SA_SIGINFO) {
        to->sa_sigaction(signal, info, context);
    } else if (to->sa_handler == SIG_IGN && info->si_code <= 0) {
        return;
    } else if (to->sa_handler == SIG_DFL || to->sa_handler == SIG_IGN) {
        struct sigaction fatal = {.sa_handler = SIG_DFL};
        sigemptyset(&fatal.sa_mask);
        sigaction(signal, &fatal, NULL);
        if (info->si_code <= 0) /* sent by kill(): it will not come back by itself */
            raise(signal);
    } else {
        to->sa_handler(signal);
    }
}

static void bus_handler(int signal, siginfo_t *info, void *context)
{
    int saved = errno;
    uint64_t address = 0;
    if (info->si_code > 0) {
        if (info->si_code != BUS_ADRALN) /* misaligned: the page is there */
            address = (uint64_t)(uintptr_t)info->si_addr;
    } else if (info->si_code == SI_TKILL && info->si_pid == getpid() && bus_depth == 0) {
        address = bus_last_fault(context); /* raise(): perhaps by a handler in front of ours */
        if (address == bus_repaired)
            address = 0;
    }
    if (address == 0 || !bus_repair(address)) {
        int current = __atomic_load_n(&bus_current, __ATOMIC_ACQUIRE); /* pairs with bus_install */
        bus_depth++;
        bus_chain(signal, info, context, bus_depth > 1 ? &bus_original : &bus_before[current]);
        bus_depth--;
    }
    errno = saved;
}

/* Puts our handler in front. With the GIL held. Returns 0 or -errno. */
static int bus_install(void)
{
    struct sigaction found, ours = {.sa_sigaction = bus_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigemptyset(&ours.sa_mask);
    if (sigaction(SIGBUS, NULL, &found) != 0)
        return -errno;
    if ((found.sa_flags & SA_SIGINFO) && found.sa_sigaction == bus_handler)
        return 0;
    if (!bus_installed)
        bus_original = found;
    bus_installed = 1;
    bus_before[!bus_current] = found; /* not the one that a handler may be reading */
    __atomic_store_n(&bus_current, !bus_current, __ATOMIC_RELEASE);
    return sigaction(SIGBUS, &ours, NULL) == 0 ? 0 : -errno;
}

/* With the GIL held. start 0 withdraws the entry. */
static void bus_set(bus_entry *entry, uint64_t start, uint64_t end, uint64_t page, int protection, uint32_t *lost)
{
    uint64_t version = entry->version;
    store_relaxed_u64(&entry->version, version + 1);
    __atomic_thread_fence(__ATOMIC_RELEASE); /* pairs with the acquire fence in bus_find */
    store_relaxed_u64(&entry->start, start);
    store_relaxed_u64(&entry->end, end);
    store_relaxed_u64(&entry->page, page);
    __atomic_store_n(&entry->lost, lost, __ATOMIC_RELAXED);
    __atomic_store_n(&entry->protection, protection, __ATOMIC_RELAXED);
    store_release_u64(&entry->version, version + 2); /* pairs with the acquire load in bus_find */
}

/* With the GIL held. NULL when memory is out. */
static bus_entry *bus_add(void *start, size_t length, size_t page, int protection, uint32_t *lost)
{
    bus_chunk *chunk = &bus_first;
    for (;;) {
        for (int i = 0; i < BUS_CHUNK; i++) {
            bus_entry *entry = &chunk->entries[i];
            if (entry->start == 0) {
                bus_set(entry, (uintptr_t)start, (uintptr_t)start + length, page, protection, lost);
                return entry;
            }
        }
        if (!chunk->next) {
            bus_chunk *more = calloc(1, sizeof(*more));
            if (!more)
                return NULL;
            __atomic_store_n(&chunk->next, more, __ATOMIC_RELEASE); /* pairs with bus_find */
        }
        chunk = chunk->next;
    }
}

/* The mapping has another length now. One store, so that there is no moment without an entry. */
static void bus_resize(bus_entry *entry, size_t length)
{
    store_release_u64(&entry->end, entry->start + length);
}

static void bus_remove(bus_entry *entry)
{
    bus_set(entry, 0, 0, 0, 0, NULL);
}

/* ---- fork ---------------------------------------------------------------------------------------------------- */

enum { FDS_CHUNK = 256 };

typedef struct fds_chunk {
    int fds[FDS_CHUNK]; /* descriptor + 1; 0: free */
    struct fds_chunk *next;
} fds_chunk;

static fds_chunk fds_first;
static uint64_t fork_epoch = 1;
static int fork_installed;

/* In a fork's child. The descriptors are closed, never unlocked: the locks belong to the open file description, which the
   parent still has, and closing one of two references leaves them alone. From here on every handle that remembers
   another epoch knows that what it holds is the parent's. */
static void fork_child(void)
{
    fork_epoch++;
    for (fds_chunk *chunk = &fds_first; chunk; chunk = chunk->next)
        for (int i = 0; i < FDS_CHUNK; i++)
            if (chunk->fds[i]) {
                close(chunk->fds[i] - 1);
                chunk->fds[i] = 0;
            }
}

static int fork_install(void)
{
    if (fork_installed)
        return 0;
    int failed = pthread_atfork(NULL, NULL, fork_child);
    if (failed)
        return -failed;
    fork_installed = 1;
    return 0;
}

/* With the GIL held. 0, or -ENOMEM. */
static int fds_add(int fd)
{
    fds_chunk *chunk = &fds_first;
    for (;;) {
        for (int i = 0; i < FDS_CHUNK; i++)
            if (chunk->fds[i] == 0) {
                chunk->fds[i] = fd + 1;
                return 0;
            }
        if (!chunk->next) {
            fds_chunk *more = calloc(1, sizeof(*more));
            if (!more)
                return -ENOMEM;
            chunk->next = more;
        }
        chunk = chunk->next;
    }
}

static void fds_remove(int fd)
{
    for (fds_chunk *chunk = &fds_first; chunk; chunk = chunk->next)
        for (int i = 0; i < FDS_CHUNK; i++)
            if (chunk->fds[i] == fd + 1) {
                chunk->fds[i] = 0;
                return;
            }
}

#endif
