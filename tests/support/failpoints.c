/* Preloaded into a process under test, which runs the build with failpoints (mmapds/_native/failpoints.h): listens to the
   points before each shared store and look, and interposes the system calls that change, map, lock or sync a file, or
   that sleep and wake. failpoints.py says what for.

   Armed, in one of these modes, by a call from the process itself; points outside of the watched folder do not count:

      RECORD    names all points that are come to, in their order, in the control file
      KILL      at the point number N: SIGKILL to itself
      FAIL      the call number N is not made; it returns an errno
      HOLD      at the point number N: says so, and waits for a byte: 'g' to go on, 'n' to go on and hold again where the
                control file says, or an errno + 128 for a call

   A name is "FUNCTION OPERATION WORD:LINE" or "call NAME FILE". Only the first armed thread of a process counts, so that
   a number always means the same point. All state but the control file is the process's own: children of a fork begin
   with a copy.

   Here nothing may be interposed: what is needed is called through `raw`, or is the next definition. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { OFF, RECORD, KILL, FAIL, HOLD };
enum { STORE = 1, CALL = 2, LOOK = 4, READ = 8 }; /* kinds; READ: a call that only reads */
enum { NAMES = 4096, NAME = 240, ORDER = 1 << 18 };

struct control {
    uint32_t names, order;
    char at[NAME];          /* where it was killed, failed or held */
    char next[NAME];        /* where to hold next; and which of these, and kinds */
    uint32_t next_number, next_kinds;
    char name[NAMES][NAME];
    uint16_t seen[ORDER];
};

static struct control *control;
static int mode, kinds, fails_with, say, hear, inside;
static long number, hits;
static char match[NAME], watch[4096];
static pid_t thread;


/* Without the interposed syscall(). */
static long raw(long call, long a, long b, long c, long d, long e, long f)
{
    static long (*next)(long, ...);
    if (!next)
        next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    return next(call, a, b, c, d, e, f);
}
#define RAW3(call, a, b, c) raw(call, (long)(a), (long)(b), (long)(c), 0, 0, 0)

__attribute__((constructor)) static void map_control(void)
{
    const char *path = getenv("FAILPOINTS_CONTROL");
    if (!path)
        return;
    long fd = raw(SYS_openat, AT_FDCWD, (long)path, O_RDWR | O_CLOEXEC, 0, 0, 0);
    if (fd < 0)
        return;
    long found = raw(SYS_mmap, 0, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (found != -1)
        control = (struct control *)found;
    RAW3(SYS_close, fd, 0, 0);
}

/* ---- for failpoints.py ------------------------------------------------------------------------------------------ */

void failpoints_arm(int how, int which, long n, int error, const char *words, const char *folder, int says, int hears)
{
    mode = OFF;
    kinds = which;
    number = n;
    hits = 0;
    fails_with = error;
    snprintf(match, sizeof match, "%s", words);
    snprintf(watch, sizeof watch, "%s", folder);
    say = says;
    hear = hears;
    thread = (pid_t)RAW3(SYS_gettid, 0, 0, 0);
    if (!control)
        return;
    control->at[0] = 0;
    if (how == RECORD)
        control->names = control->order = 0;
    mode = how;
}

/* How many points were come to that count; -1 if there is no control file. */
long failpoints_disarm(void)
{
    mode = OFF;
    return control ? hits : -1;
}

/* ---- a point ---------------------------------------------------------------------------------------------------- */

static void note(const char *name)
{
    uint32_t i;
    for (i = 0; i < control->names; i++)
        if (strcmp(control->name[i], name) == 0)
            break;
    if (i == control->names && i < NAMES)
        strcpy(control->name[control->names++], name);
    if (control->order < ORDER)
        control->seen[control->order++] = (uint16_t)i;
}

/* Whether the name has all words of `match`, in their order. */
static int matches(const char *name)
{
    char words[NAME], *word, *rest = words;
    strcpy(words, match);
    while ((word = strsep(&rest, " ")))
        if (*word) {
            name = strstr(name, word);
            if (!name)
                return 0;
            name += strlen(word);
        }
    return 1;
}

/* 0 to go on, or an errno with which a call is to fail. */
static int point(int kind, const char *name)
{
    if (!(kinds & kind) || (match[0] && !matches(name)))
        return 0;
    long mine = hits++;
    if (mode == RECORD) {
        note(name);
        return 0;
    }
    if (mine != number)
        return 0;
    strcpy(control->at, name);
    if (mode == KILL)
        for (;;)
            RAW3(SYS_kill, RAW3(SYS_getpid, 0, 0, 0), SIGKILL, 0);
    if (mode == FAIL) {
        mode = OFF;
        return fails_with;
    }
    unsigned char answer = 0;
    long got;
    if (RAW3(SYS_write, say, "h", 1) != 1)
        RAW3(SYS_exit_group, 98, 0, 0);
    do
        got = RAW3(SYS_read, hear, &answer, 1);
    while (got < 0 && errno == EINTR);
    if (got != 1)
        RAW3(SYS_exit_group, 99, 0, 0);
    mode = OFF;
    if (answer == 'n') {
        strcpy(match, control->next);
        number = control->next_number;
        kinds = (int)control->next_kinds;
        hits = 0;
        mode = HOLD;
    }
    return answer >= 128 ? answer - 128 : 0;
}

static int armed(void)
{
    return mode && !inside && (pid_t)RAW3(SYS_gettid, 0, 0, 0) == thread;
}

/* The tables of the process itself are nobody else's: not `bus_set` and its like. */
int mmapds_failpoint(const char *function, const char *operation, const char *what, int line)
{
    char name[NAME];
    int saved = errno;
    if (!armed() || strncmp(function, "bus_", 4) == 0)
        return 0;
    inside = 1;
    snprintf(name, sizeof name, "%s %s %s:%d", function, operation, what, line);
    inside = 0;
    point(operation[0] == 'l' ? LOOK : STORE, name);
    errno = saved;
    return 0;
}

/* What a file of the watched folder is called, with numbers left out; 0 if it lies elsewhere. */
static int named(const char *path, char *name)
{
    size_t length = strlen(watch), n = 0;
    if (!length || strncmp(path, watch, length) != 0 || (path[length] && path[length] != '/'))
        return 0;
    const char *from = path[length] ? path + length + 1 : ".";
    const char *hash = strstr(from, "#");
    if (hash && strstr(from, " (deleted)")) {
        strcpy(name, "unnamed");
        return 1;
    }
    while (*from && n < 100) {
        size_t digits = strspn(from, "0123456789abcdef");
        if (digits >= 8) {
            name[n++] = 'N';
            from += digits;
        } else if (digits) {
            memcpy(name + n, from, digits);
            n += digits;
            from += digits;
        } else {
            name[n++] = *from == ' ' ? '_' : *from;
            from++;
        }
    }
    name[n] = 0;
    return 1;
}

static int named_fd(int fd, char *name)
{
    char self[40], path[4200];
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    long got = raw(SYS_readlinkat, AT_FDCWD, (long)self, (long)path, sizeof path - 1, 0, 0);
    if (got < 0)
        return 0;
    path[got] = 0;
    return named(path, name);
}

static int named_path(int directory, const char *path, char *name)
{
    char whole[4400];
    if (strncmp(path, "/proc/self/fd/", 14) == 0)
        return named_fd(atoi(path + 14), name);
    if (path[0] == '/' || directory == AT_FDCWD)
        return named(path, name);
    snprintf(whole, 40, "/proc/self/fd/%d", directory);
    char link[40];
    strcpy(link, whole);
    long got = raw(SYS_readlinkat, AT_FDCWD, (long)link, (long)whole, 4096, 0, 0);
    if (got < 0)
        return 0;
    snprintf(whole + got, sizeof whole - got, "/%s", path);
    return named(whole, name);
}

static int named_address(uintptr_t address, char *name)
{
    static char maps[1 << 20];
    long fd = raw(SYS_openat, AT_FDCWD, (long)"/proc/self/maps", O_RDONLY | O_CLOEXEC, 0, 0, 0), size = 0, got;
    while ((got = RAW3(SYS_read, fd, maps + size, sizeof maps - 1 - size)) > 0)
        size += got;
    RAW3(SYS_close, fd, 0, 0);
    maps[size] = 0;
    for (char *line = maps; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
        char *end;
        uintptr_t low = strtoull(line, &end, 16), high = strtoull(end + 1, NULL, 16);
        if (low <= address && address < high) {
            char *path = strchr(line, '/'), *stop = strchr(line, '\n');
            if (!path || path > stop)
                return 0;
            *stop = 0;
            return named(path, name);
        }
    }
    return 0;
}

static int call(int kind, const char *what, const char *file)
{
    char name[NAME];
    snprintf(name, sizeof name, "call %s %.150s", what, file);
    return point(kind, name);
}

/* Says that the call is about to be made, if `find` finds the file; with an errno it returns `failed`. */
#define CALL_AT(kind, what, find, failed)               \
    do {                                                \
        int saved_ = errno, error_ = 0;                 \
        if (armed()) {                                  \
            char name_[120];                            \
            inside = 1;                                 \
            int found_ = find;                          \
            inside = 0;                                 \
            if (found_)                                 \
                error_ = call(kind, what, name_);       \
        }                                               \
        errno = saved_;                                 \
        if (error_) {                                   \
            errno = error_;                             \
            return failed;                              \
        }                                               \
    } while (0)

/* ---- the calls -------------------------------------------------------------------------------------------------- */

#define OPEN_KIND(flags) ((flags) & O_TMPFILE) == O_TMPFILE ? "open_tmpfile" : (flags) & O_CREAT ? "open_create" : \
    (flags) & O_PATH ? "open_path" : ((flags) & O_ACCMODE) == O_RDONLY ? "open_read" : "open_write"

#define OPEN(name)                                                          \
    int name(const char *path, int flags, ...)                              \
    {                                                                       \
        va_list list;                                                       \
        va_start(list, flags);                                              \
        int permissions = va_arg(list, int);                                \
        va_end(list);                                                       \
        CALL_AT(CALL, OPEN_KIND(flags), named_path(AT_FDCWD, path, name_), -1); \
        static int (*next)(const char *, int, ...);                         \
        if (!next)                                                          \
            next = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name); \
        return next(path, flags, permissions);                              \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                        \
    int name(int directory, const char *path, int flags, ...)               \
    {                                                                       \
        va_list list;                                                       \
        va_start(list, flags);                                              \
        int permissions = va_arg(list, int);                                \
        va_end(list);                                                       \
        CALL_AT(CALL, OPEN_KIND(flags), named_path(directory, path, name_), -1); \
        static int (*next)(int, const char *, int, ...);                    \
        if (!next)                                                          \
            next = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #name); \
        return next(directory, path, flags, permissions);                   \
    }
OPENAT(openat)
OPENAT(openat64)

#define FORWARD(type, name, types, ...)                                     \
    static type (*next) types;                                              \
    if (!next)                                                              \
        next = (type (*) types)dlsym(RTLD_NEXT, #name);                     \
    return next(__VA_ARGS__)

int mkdir(const char *path, mode_t permissions)
{
    CALL_AT(CALL, "mkdir", named_path(AT_FDCWD, path, name_), -1);
    FORWARD(int, mkdir, (const char *, mode_t), path, permissions);
}

int rename(const char *from, const char *to)
{
    CALL_AT(CALL, "rename", named_path(AT_FDCWD, to, name_), -1);
    FORWARD(int, rename, (const char *, const char *), from, to);
}

int renameat(int a, const char *from, int b, const char *to)
{
    CALL_AT(CALL, "rename", named_path(b, to, name_), -1);
    FORWARD(int, renameat, (int, const char *, int, const char *), a, from, b, to);
}

int link(const char *from, const char *to)
{
    CALL_AT(CALL, "link", named_path(AT_FDCWD, to, name_), -1);
    FORWARD(int, link, (const char *, const char *), from, to);
}

int linkat(int a, const char *from, int b, const char *to, int flags)
{
    CALL_AT(CALL, "link", named_path(b, to, name_), -1);
    FORWARD(int, linkat, (int, const char *, int, const char *, int), a, from, b, to, flags);
}

int unlink(const char *path)
{
    CALL_AT(CALL, "unlink", named_path(AT_FDCWD, path, name_), -1);
    FORWARD(int, unlink, (const char *), path);
}

int unlinkat(int directory, const char *path, int flags)
{
    CALL_AT(CALL, "unlink", named_path(directory, path, name_), -1);
    FORWARD(int, unlinkat, (int, const char *, int), directory, path, flags);
}

int fchmod(int fd, mode_t permissions)
{
    CALL_AT(CALL, "fchmod", named_fd(fd, name_), -1);
    FORWARD(int, fchmod, (int, mode_t), fd, permissions);
}

#define TRUNCATE(name)                                                      \
    int name(int fd, off_t size)                                            \
    {                                                                       \
        CALL_AT(CALL, "ftruncate", named_fd(fd, name_), -1);                \
        FORWARD(int, name, (int, off_t), fd, size);                         \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

#define FALLOCATE(name)                                                     \
    int name(int fd, int flags, off_t offset, off_t size)                   \
    {                                                                       \
        CALL_AT(CALL, "fallocate", named_fd(fd, name_), -1);                \
        FORWARD(int, name, (int, int, off_t, off_t), fd, flags, offset, size); \
    }
FALLOCATE(fallocate)
FALLOCATE(fallocate64)

#define POSIX_FALLOCATE(name)                                               \
    int name(int fd, off_t offset, off_t size)                              \
    {                                                                       \
        CALL_AT(CALL, "posix_fallocate", named_fd(fd, name_), error_);      \
        FORWARD(int, name, (int, off_t, off_t), fd, offset, size);          \
    }
POSIX_FALLOCATE(posix_fallocate)
POSIX_FALLOCATE(posix_fallocate64)

#define PWRITE(name)                                                        \
    ssize_t name(int fd, const void *data, size_t size, off_t offset)       \
    {                                                                       \
        CALL_AT(CALL, "pwrite", named_fd(fd, name_), -1);                   \
        FORWARD(ssize_t, name, (int, const void *, size_t, off_t), fd, data, size, offset); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define PREAD(name)                                                         \
    ssize_t name(int fd, void *data, size_t size, off_t offset)             \
    {                                                                       \
        CALL_AT(READ, "pread", named_fd(fd, name_), -1);                    \
        FORWARD(ssize_t, name, (int, void *, size_t, off_t), fd, data, size, offset); \
    }
PREAD(pread)
PREAD(pread64)

int fsync(int fd)
{
    CALL_AT(CALL, "fsync", named_fd(fd, name_), -1);
    FORWARD(int, fsync, (int), fd);
}

int fdatasync(int fd)
{
    CALL_AT(CALL, "fdatasync", named_fd(fd, name_), -1);
    FORWARD(int, fdatasync, (int), fd);
}

int msync(void *start, size_t length, int flags)
{
    CALL_AT(CALL, "msync", named_address((uintptr_t)start, name_), -1);
    FORWARD(int, msync, (void *, size_t, int), start, length, flags);
}

int sync_file_range(int fd, off_t offset, off_t size, unsigned flags)
{
    CALL_AT(CALL, "sync_file_range", named_fd(fd, name_), -1);
    FORWARD(int, sync_file_range, (int, off_t, off_t, unsigned), fd, offset, size, flags);
}

#define MMAP(name)                                                          \
    void *name(void *address, size_t length, int protection, int flags, int fd, off_t offset) \
    {                                                                       \
        if (fd >= 0)                                                        \
            CALL_AT(CALL, "mmap", named_fd(fd, name_), MAP_FAILED);         \
        FORWARD(void *, name, (void *, size_t, int, int, int, off_t), address, length, protection, flags, fd, offset); \
    }
MMAP(mmap)
MMAP(mmap64)

/* The locks of an open file description, and which byte. */
static int named_lock(int fd, int command, const struct flock *lock, char *name)
{
    char file[120];
    if (!named_fd(fd, file))
        return 0;
    long long byte = lock->l_start;
    const char *which = byte == 0 ? "open" : byte == 1 ? "writer" : byte < 64 ? "byte" : byte < 64 + 1024 ? "slot" : "token";
    const char *how = command == F_OFD_GETLK ? "look" : lock->l_type == F_UNLCK ? "unlock" : command == F_OFD_SETLKW ? "wait" : "try";
    snprintf(name, 118, "%s_%s %.80s", how, which, file);
    return 1;
}

#define FCNTL(name)                                                         \
    int name(int fd, int command, ...)                                      \
    {                                                                       \
        va_list list;                                                       \
        va_start(list, command);                                            \
        void *argument = va_arg(list, void *);                              \
        va_end(list);                                                       \
        if (command == F_OFD_SETLK || command == F_OFD_SETLKW || command == F_OFD_GETLK) \
            CALL_AT(CALL, "lock", named_lock(fd, command, argument, name_), -1); \
        static int (*next)(int, int, ...);                                  \
        if (!next)                                                          \
            next = (int (*)(int, int, ...))dlsym(RTLD_NEXT, #name);         \
        return next(fd, command, argument);                                 \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

long syscall(long number_, ...)
{
    long a[6];
    va_list list;
    va_start(list, number_);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    if (number_ == SYS_futex) {
        const char *what = (a[1] & 127) == FUTEX_WAIT ? "futex_wait" : "futex_wake";
        CALL_AT(CALL, what, named_address((uintptr_t)a[0], name_), -1);
    } else if (number_ == SYS_renameat2) {
        CALL_AT(CALL, "rename", named_path((int)a[2], (const char *)a[3], name_), -1);
    }
    return raw(number_, a[0], a[1], a[2], a[3], a[4], a[5]);
}
