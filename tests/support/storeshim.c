/* Preloaded into a process under test: writes down, in order, every store that it makes to a mapped file under a folder,
   and every call that changes or syncs a file or a name there. powerlog.py reads it; the log is the whole truth about
   what a disk may hold.

   Stores: such a file is mapped without permission to write. The first store to a page faults; the handler keeps the
   page as it was, allows writing, and has the processor stop after this one instruction; what the page has then that it
   had not before is the store, and writing is forbidden again. So each machine store is one record, in the order in
   which the thread makes them; it costs some microseconds, and nothing that is not a store is slowed down. (Stepping
   through everything by ptrace, which stepping.py does, costs a thousand times as much for a whole life of a file.)

   Calls that sync: a function that the process has set (`shim_on_sync`) is called first with the return addresses, says
   where in the code the call stands (`shim_site`), and may kill the process.

   For one thread at a time, x86-64, Linux. Nothing is written down before `shim_begin`. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#define PAGE 4096UL
#define REGIONS 512
#define OPEN 64

enum { STORE = 1, SIZE, SYNC, SYNC_FOLDER, LINK, UNLINK, RENAME, CREATED, FOLDER, MARK };

struct head { /* of a record; then `length` bytes */
    uint32_t kind, length;
    uint64_t inode, a, b;
};

static struct region {
    char *start;
    size_t length;
    uint64_t offset, inode;
} regions[REGIONS];
static int region_count;
static struct open_page {
    char *page;
    struct region *region;
    char before[PAGE];
} open_pages[OPEN];
static int open_count;
static int log_fd = -1, installed;
static char root[PATH_MAX];
static size_t root_length;
static int (*on_sync)(int count, void **addresses);
static char site[2000];

static long raw(long n, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return result;
}

static void fail(const char *why)
{
    raw(SYS_write, 2, (long)why, strlen(why), 0, 0, 0);
    raw(SYS_write, 2, (long)"\n", 1, 0, 0, 0);
    raw(SYS_exit_group, 98, 0, 0, 0, 0, 0);
}

/* From now on. Nothing in the folder may be mapped yet. */
void shim_begin(const char *folder, const char *log)
{
    if (log_fd >= 0)
        raw(SYS_close, log_fd, 0, 0, 0, 0, 0);
    root_length = strlen(folder);
    memcpy(root, folder, root_length);
    log_fd = raw(SYS_open, (long)log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600, 0, 0, 0);
    if (log_fd < 0)
        fail("storeshim: no log");
    int high = raw(SYS_fcntl, log_fd, F_DUPFD_CLOEXEC, 900, 0, 0, 0);
    if (high >= 0) {
        raw(SYS_close, log_fd, 0, 0, 0, 0, 0);
        log_fd = high;
    }
}

static void note(uint32_t kind, uint64_t inode, uint64_t a, uint64_t b, const void *data, size_t length)
{
    struct head head = {kind, length, inode, a, b};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)data, length}};
    if (raw(SYS_writev, log_fd, (long)parts, 2, 0, 0, 0) != (long)(sizeof head + length))
        fail("storeshim: the log cannot be written");
}

/* The inode of a file in the folder, or 0. */
static uint64_t inode_of(int fd, int *folder)
{
    char link[64], path[PATH_MAX];
    struct stat found;
    if (log_fd < 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long length = raw(SYS_readlink, (long)link, (long)path, sizeof path, 0, 0, 0);
    if (length < (long)root_length || memcmp(path, root, root_length) != 0)
        return 0;
    if (fstat(fd, &found) != 0)
        return 0;
    if (folder)
        *folder = S_ISDIR(found.st_mode);
    return found.st_ino;
}

/* ---- names ---------------------------------------------------------------------------------------------------- */

/* "FOLDER'S INODE/NAME" of a path in the folder; 0 if it is elsewhere. */
static int place(int at, const char *path, char *out, size_t room)
{
    char full[PATH_MAX];
    struct stat found;
    if (log_fd < 0)
        return 0;
    if (path[0] == '/' || at == AT_FDCWD) {
        if (path[0] == '/')
            snprintf(full, sizeof full, "%s", path);
        else {
            char here[PATH_MAX - 300];
            if (!getcwd(here, sizeof here))
                return 0;
            snprintf(full, sizeof full, "%s/%.290s", here, path);
        }
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        long length = raw(SYS_readlink, (long)link, (long)full, sizeof full - 300, 0, 0, 0);
        if (length < 0)
            return 0;
        snprintf(full + length, sizeof full - length, "/%.290s", path);
    }
    if (strncmp(full, root, root_length) != 0)
        return 0;
    char *slash = strrchr(full, '/');
    *slash = 0;
    if (stat(full, &found) != 0)
        return 0;
    snprintf(out, room, "%lu/%s", (unsigned long)found.st_ino, slash + 1);
    return 1;
}

static uint64_t inode_at(int at, const char *path)
{
    struct stat found;
    return fstatat(at, path, &found, AT_SYMLINK_NOFOLLOW) == 0 ? found.st_ino : 0;
}

static int give(long result)
{
    if (result < 0 && result > -4096) {
        errno = -result;
        return -1;
    }
    return result;
}

static int opened(int at, const char *path, int flags, mode_t mode)
{
    char where[PATH_MAX];
    int makes = (flags & O_CREAT) && place(at, path, where, sizeof where) && !inode_at(at, path);
    int fd = give(raw(SYS_openat, at, (long)path, flags, mode, 0, 0));
    if (fd < 0 || log_fd < 0)
        return fd;
    int kept = errno;
    uint64_t inode = inode_of(fd, NULL);
    if (inode && (makes || (flags & O_TMPFILE) == O_TMPFILE))
        note(CREATED, inode, 0, 0, NULL, 0);
    if (inode && makes)
        note(LINK, inode, 0, 0, where, strlen(where));
    if (inode && !makes && (flags & O_TRUNC))
        note(SIZE, inode, 0, 0, NULL, 0);
    errno = kept;
    return fd;
}

#define OPENS(NAME)                                                       \
    int NAME(const char *path, int flags, ...)                            \
    {                                                                     \
        va_list more;                                                     \
        va_start(more, flags);                                            \
        mode_t mode = va_arg(more, mode_t);                               \
        va_end(more);                                                     \
        return opened(AT_FDCWD, path, flags, mode);                       \
    }
#define OPENS_AT(NAME)                                                    \
    int NAME(int at, const char *path, int flags, ...)                    \
    {                                                                     \
        va_list more;                                                     \
        va_start(more, flags);                                            \
        mode_t mode = va_arg(more, mode_t);                               \
        va_end(more);                                                     \
        return opened(at, path, flags, mode);                             \
    }
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)

static int linked(int from_at, const char *from, int at, const char *to, int flags)
{
    char where[PATH_MAX];
    int result = give(raw(SYS_linkat, from_at, (long)from, at, (long)to, flags, 0));
    if (result == 0 && place(at, to, where, sizeof where))
        note(LINK, inode_at(at, to), 0, 0, where, strlen(where));
    return result;
}

int linkat(int from_at, const char *from, int at, const char *to, int flags) { return linked(from_at, from, at, to, flags); }
int link(const char *from, const char *to) { return linked(AT_FDCWD, from, AT_FDCWD, to, 0); }

static int renamed(int from_at, const char *from, int at, const char *to, unsigned flags)
{
    char where[2 * PATH_MAX];
    int ours = place(from_at, from, where, PATH_MAX);
    uint64_t inode = inode_at(from_at, from);
    int result = give(raw(SYS_renameat2, from_at, (long)from, at, (long)to, flags, 0));
    if (result == 0 && ours) {
        size_t length = strlen(where);
        if (!place(at, to, where + length + 1, PATH_MAX))
            fail("storeshim: a file was moved out of the folder");
        note(RENAME, inode, 0, 0, where, length + 1 + strlen(where + length + 1));
    }
    return result;
}

int rename(const char *from, const char *to) { return renamed(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_at, const char *from, int at, const char *to) { return renamed(from_at, from, at, to, 0); }
int renameat2(int from_at, const char *from, int at, const char *to, unsigned flags) { return renamed(from_at, from, at, to, flags); }

static int unlinked(int at, const char *path, int flags)
{
    char where[PATH_MAX];
    int ours = place(at, path, where, sizeof where);
    int result = give(raw(SYS_unlinkat, at, (long)path, flags, 0, 0, 0));
    if (result == 0 && ours)
        note(UNLINK, 0, 0, 0, where, strlen(where));
    return result;
}

int unlink(const char *path) { return unlinked(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinked(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int at, const char *path, int flags) { return unlinked(at, path, flags); }

int mkdir(const char *path, mode_t mode)
{
    char where[PATH_MAX];
    int result = give(raw(SYS_mkdir, (long)path, mode, 0, 0, 0, 0));
    if (result == 0 && place(AT_FDCWD, path, where, sizeof where))
        note(FOLDER, inode_at(AT_FDCWD, path), 0, 0, where, strlen(where));
    return result;
}

/* ---- contents by calls ---------------------------------------------------------------------------------------- */

static void sized(int fd, uint64_t inode, uint64_t before)
{
    struct stat found;
    if (inode && fstat(fd, &found) == 0 && (uint64_t)found.st_size != before)
        note(SIZE, inode, found.st_size, 0, NULL, 0);
}

static uint64_t size_of(int fd)
{
    struct stat found;
    return fstat(fd, &found) == 0 ? found.st_size : 0;
}

static ssize_t written(int fd, const void *data, size_t length, off_t offset)
{
    uint64_t inode = fd == log_fd ? 0 : inode_of(fd, NULL), before = inode ? size_of(fd) : 0;
    if (inode && offset < 0 && (offset = lseek(fd, 0, SEEK_CUR)) >= 0) {
        long result = raw(SYS_pwrite64, fd, (long)data, length, offset, 0, 0);
        if (result > 0)
            lseek(fd, result, SEEK_CUR);
        sized(fd, inode, before);
        if (result > 0)
            note(STORE, inode, offset, 0, data, result);
        return result < 0 ? (errno = -result, -1) : result;
    }
    long result = offset < 0 ? raw(SYS_write, fd, (long)data, length, 0, 0, 0) : raw(SYS_pwrite64, fd, (long)data, length, offset, 0, 0);
    sized(fd, inode, before);
    if (inode && result > 0)
        note(STORE, inode, offset, 0, data, result);
    return result < 0 ? (errno = -result, -1) : result;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return written(fd, data, length, offset); }
ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset) { return written(fd, data, length, offset); }
ssize_t write(int fd, const void *data, size_t length) { return written(fd, data, length, -1); }

#define SIZES(NAME, PARAMETERS, CALL)                              \
    int NAME PARAMETERS                                            \
    {                                                              \
        uint64_t inode = inode_of(fd, NULL), before = size_of(fd); \
        int result = give(CALL);                                   \
        sized(fd, inode, before);                                  \
        return result;                                             \
    }
SIZES(ftruncate, (int fd, off_t size), raw(SYS_ftruncate, fd, size, 0, 0, 0, 0))
SIZES(ftruncate64, (int fd, off_t size), raw(SYS_ftruncate, fd, size, 0, 0, 0, 0))
SIZES(fallocate, (int fd, int mode, off_t offset, off_t size), raw(SYS_fallocate, fd, mode, offset, size, 0, 0))
SIZES(fallocate64, (int fd, int mode, off_t offset, off_t size), raw(SYS_fallocate, fd, mode, offset, size, 0, 0))

/* ---- syncs ---------------------------------------------------------------------------------------------------- */

void shim_on_sync(int (*function)(int, void **)) { on_sync = function; }
void shim_site(const char *text) { snprintf(site, sizeof site, "%s", text); }
void shim_mark(const char *text, size_t length) { note(MARK, 0, 0, 0, text, length); }

static void asked(void)
{
    void *addresses[40];
    site[0] = 0;
    if (on_sync)
        on_sync(backtrace(addresses, 40), addresses);
}

static struct region *region_of(const char *address)
{
    for (int i = 0; i < region_count; i++)
        if (address >= regions[i].start && address < regions[i].start + regions[i].length)
            return &regions[i];
    return NULL;
}

int msync(void *start, size_t length, int flags)
{
    struct region *region = region_of(start);
    if (region && (flags & MS_SYNC))
        asked();
    int result = give(raw(SYS_msync, (long)start, length, flags, 0, 0, 0));
    if (result == 0 && region && (flags & MS_SYNC)) {
        uint64_t at = region->offset + ((char *)start - region->start);
        note(SYNC, region->inode, at, at + length, site, strlen(site));
    }
    return result;
}

static int synced(int fd, long call)
{
    int folder = 0;
    uint64_t inode = inode_of(fd, &folder);
    if (inode)
        asked();
    int result = give(raw(call, fd, 0, 0, 0, 0, 0));
    if (result == 0 && inode)
        note(folder ? SYNC_FOLDER : SYNC, inode, 0, UINT64_MAX, site, strlen(site));
    return result;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

/* ---- stores --------------------------------------------------------------------------------------------------- */

/* `rep movs` and `rep stos`, which would stop after each byte: done here, as one store. */
static int repeated(struct region *region, greg_t *registers)
{
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    size_t wide = code[0] == 0xF3 && code[1] == 0x48, unit;
    unsigned char what = code[1 + wide];
    if (code[0] != 0xF3 || (what & 0xF0) != 0xA0)
        return 0;
    unit = what == 0xA4 || what == 0xAA ? 1 : what == 0xA5 || what == 0xAB ? (wide ? 8 : 4) : 0;
    if (!unit)
        return 0;
    char *to = (char *)registers[REG_RDI], *end = to + unit * registers[REG_RCX];
    char *page = (char *)((uintptr_t)to & -PAGE);
    size_t length = end - page;
    if (end > region->start + region->length)
        fail("storeshim: a store beyond a mapping");
    if (raw(SYS_mprotect, (long)page, length, PROT_READ | PROT_WRITE, 0, 0, 0) < 0)
        fail("storeshim: mprotect");
    if (what < 0xA8) {
        memcpy(to, (char *)registers[REG_RSI], end - to);
        registers[REG_RSI] += end - to;
    } else
        for (char *at = to; at < end; at += unit)
            memcpy(at, &registers[REG_RAX], unit);
    note(STORE, region->inode, region->offset + (to - region->start), 0, to, end - to);
    if (raw(SYS_mprotect, (long)page, length, PROT_READ, 0, 0, 0) < 0)
        fail("storeshim: mprotect");
    registers[REG_RDI] = (greg_t)end;
    registers[REG_RCX] = 0;
    registers[REG_RIP] += 2 + wide;
    return 1;
}

static void on_store(int number, siginfo_t *info, void *context)
{
    ucontext_t *state = context;
    char *page = (char *)((uintptr_t)info->si_addr & -PAGE);
    struct region *region = region_of(info->si_addr);
    if (!region || !(state->uc_mcontext.gregs[REG_ERR] & 2)) {
        signal(SIGSEGV, SIG_DFL); /* not ours: it dies when this instruction is tried again */
        return;
    }
    if (repeated(region, state->uc_mcontext.gregs))
        return;
    if (open_count == OPEN)
        fail("storeshim: one instruction stores to too many pages");
    struct open_page *kept = &open_pages[open_count++];
    kept->page = page;
    kept->region = region;
    memcpy(kept->before, page, PAGE);
    if (raw(SYS_mprotect, (long)page, PAGE, PROT_READ | PROT_WRITE, 0, 0, 0) < 0)
        fail("storeshim: mprotect");
    state->uc_mcontext.gregs[REG_EFL] |= 0x100; /* one step */
}

static void on_step(int number, siginfo_t *info, void *context)
{
    ucontext_t *state = context;
    for (int i = 0; i < open_count; i++) {
        struct open_page *kept = &open_pages[i];
        long first = -1, last = -1;
        for (size_t at = 0; at < PAGE; at += 8)
            if (memcmp(kept->page + at, kept->before + at, 8) != 0) {
                if (first < 0)
                    first = at;
                last = at + 8;
            }
        if (first >= 0)
            note(STORE, kept->region->inode, kept->region->offset + (kept->page - kept->region->start) + first, 0,
                 kept->page + first, last - first);
        if (raw(SYS_mprotect, (long)kept->page, PAGE, PROT_READ, 0, 0, 0) < 0)
            fail("storeshim: mprotect");
    }
    open_count = 0;
    state->uc_mcontext.gregs[REG_EFL] &= ~0x100L;
}

static void forget(char *start, size_t length)
{
    for (int i = 0; i < region_count;) {
        struct region *region = &regions[i], tail;
        char *end = region->start + region->length, *stop = start + length;
        if (end <= start || region->start >= stop) {
            i++;
            continue;
        }
        tail = *region;
        regions[i] = regions[--region_count];
        if (tail.start < start)
            regions[region_count++] = (struct region){tail.start, start - tail.start, tail.offset, tail.inode};
        if (end > stop)
            regions[region_count++] = (struct region){stop, end - stop, tail.offset + (stop - tail.start), tail.inode};
        i = 0;
    }
}

static void *mapped(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    int shared = (flags & MAP_TYPE) == MAP_SHARED || (flags & MAP_TYPE) == MAP_SHARED_VALIDATE;
    uint64_t inode = shared && fd >= 0 && (protection & PROT_WRITE) ? inode_of(fd, NULL) : 0;
    long result;
    if (inode && !installed) {
        struct sigaction store = {.sa_sigaction = on_store, .sa_flags = SA_SIGINFO | SA_NODEFER};
        struct sigaction step = {.sa_sigaction = on_step, .sa_flags = SA_SIGINFO | SA_NODEFER};
        sigaction(SIGSEGV, &store, NULL);
        sigaction(SIGTRAP, &step, NULL);
        installed = 1;
    }
    result = raw(SYS_mmap, (long)address, length, inode ? protection & ~PROT_WRITE : protection, flags, fd, offset);
    if (result < 0 && result > -4096) {
        errno = -result;
        return MAP_FAILED;
    }
    length = (length + PAGE - 1) & -PAGE;
    if (region_count)
        forget((char *)result, length);
    if (inode) {
        if (region_count >= REGIONS - 2)
            fail("storeshim: too many mappings");
        regions[region_count++] = (struct region){(char *)result, length, offset, inode};
    }
    return (void *)result;
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) { return mapped(address, length, protection, flags, fd, offset); }
void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset) { return mapped(address, length, protection, flags, fd, offset); }

int munmap(void *start, size_t length)
{
    if (region_count)
        forget(start, (length + PAGE - 1) & -PAGE);
    return give(raw(SYS_munmap, (long)start, length, 0, 0, 0, 0));
}

int madvise(void *start, size_t length, int advice)
{
    if (region_of(start) && advice == 23) /* MADV_POPULATE_WRITE, which the protection forbids */
        return 0;
    return give(raw(SYS_madvise, (long)start, length, advice, 0, 0, 0));
}

/* renameat2 is called by its number; everything else passes. */
long syscall(long number, ...)
{
    va_list more;
    long a, b, c, d, e, f;
    va_start(more, number);
    a = va_arg(more, long), b = va_arg(more, long), c = va_arg(more, long);
    d = va_arg(more, long), e = va_arg(more, long), f = va_arg(more, long);
    va_end(more);
    if (number == SYS_renameat2)
        return renamed(a, (const char *)b, c, (const char *)d, e);
    long result = raw(number, a, b, c, d, e, f);
    if (result < 0 && result > -4096) {
        errno = -result;
        return -1;
    }
    return result;
}
