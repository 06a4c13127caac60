/* Every call that only Linux has, in one place. Functions return 0 (or a value) on success and -errno on failure, and
   never touch Python, so that they can be called without the GIL. */
#ifndef MMAPDS_KERNEL_H
#define MMAPDS_KERNEL_H

#include "platform.h"

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define KERNEL_STEP (8LL << 20) /* bytes that are allocated at a time, so that signals get a hearing */

#ifndef MAP_SHARED_VALIDATE
#define MAP_SHARED_VALIDATE 0x03
#endif
#ifndef MAP_SYNC
#define MAP_SYNC 0x80000
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MAP_HUGE_2MB
#define MAP_HUGE_2MB (21 << 26)
#define MAP_HUGE_1GB (30 << 26)
#endif

/* ---- open-file-description locks -------------------------------------------------------------------------- */

/* `type`: F_WRLCK, F_RDLCK or F_UNLCK. length 0 reaches to infinity. -EAGAIN when somebody else holds the range and
   `wait` is 0; -EINTR when a signal came while waiting. */
static inline int kernel_lock(int fd, int type, int64_t start, int64_t length, int wait)
{
    struct flock request = {.l_type = (short)type, .l_whence = SEEK_SET, .l_start = start, .l_len = length, .l_pid = 0};
    if (fcntl(fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &request) == 0)
        return 0;
    return errno == EACCES ? -EAGAIN : -errno;
}

/* 1 if another open file description has a lock in the range that excludes `type` (F_RDLCK: an exclusive one; F_WRLCK: any),
   without taking one; needs no write permission. */
static inline int kernel_find_lock(int fd, int type, int64_t start, int64_t length, int64_t *its_length)
{
    struct flock request = {.l_type = (short)type, .l_whence = SEEK_SET, .l_start = start, .l_len = length, .l_pid = 0};
    if (fcntl(fd, F_OFD_GETLK, &request) != 0)
        return -errno;
    *its_length = request.l_len;
    return request.l_type != F_UNLCK;
}

static inline int kernel_locked(int fd, int type, int64_t start, int64_t length)
{
    return kernel_find_lock(fd, type, start, length, &length);
}

/* ---- futex ------------------------------------------------------------------------------------------------- */

/* Sleeps while *word == expected, at most `nanoseconds`. 0 when woken; -EAGAIN: the word differs; -ETIMEDOUT; -EINTR.
   Not FUTEX_PRIVATE: the word lies in a mapping that processes share. */
static inline int kernel_futex_wait(const uint32_t *word, uint32_t expected, int64_t nanoseconds)
{
    struct timespec limit = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
    return syscall(SYS_futex, word, FUTEX_WAIT, expected, &limit, NULL, 0) == 0 ? 0 : -errno;
}

static inline int kernel_futex_wake(const uint32_t *word, int count)
{
    long woken = syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
    return woken < 0 ? -errno : (int)woken;
}

/* ---- files --------------------------------------------------------------------------------------------------- */

/* Gives the open file behind `fd` (from O_TMPFILE) the name `path`; fails with -EEXIST if there is one. */
static inline int kernel_link_fd(int fd, const char *path)
{
    char self[40];
    snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
    return linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW) == 0 ? 0 : -errno;
}

/* Another open file description of the file behind `fd`, even if its path names another file by now. */
static inline int kernel_reopen(int fd)
{
    char self[40];
    snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
    int opened = open(self, O_RDWR | O_CLOEXEC);
    return opened >= 0 ? opened : -errno;
}

/* rename() that fails with -EEXIST instead of replacing. */
static inline int kernel_rename_new(const char *from, const char *to)
{
    return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 1 /* RENAME_NOREPLACE */) == 0 ? 0 : -errno;
}

/* Bytes that the file system of `fd` has left, for root; INT64_MAX if it does not say. */
static inline int64_t kernel_room(int fd)
{
    struct statfs found;
    if (fstatfs(fd, &found) != 0 || found.f_blocks == 0 || found.f_bfree > (uint64_t)(INT64_MAX / found.f_bsize))
        return INT64_MAX;
    return (int64_t)found.f_bfree * found.f_bsize;
}

/* Growing a file takes three steps, so that a full disk fails in the first, with the size as it was, and so that
   nothing ever makes the file smaller than somebody else has made it meanwhile. First blocks, without the size: file
   systems keep what they got when they run out in the middle. */
static inline int kernel_reserve(int fd, int64_t offset, int64_t length)
{
    if (fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, length) == 0)
        return 0;
    if (errno != EOPNOTSUPP)
        return -errno;
    return -posix_fallocate(fd, offset, length); /* the size comes with it */
}

/* Then the size, by a call that can only make it larger: the block is there. */
static inline int kernel_extend(int fd, int64_t length)
{
    if (fallocate(fd, 0, length - 1, 1) == 0 || errno == EOPNOTSUPP)
        return 0;
    return -errno;
}

/* One step of these: 1 if there are more, 0 when the file has all of `length` bytes, -errno (-EINTR: repeat it). `done`
   begins as the size. */
static inline int kernel_allocate_step(int fd, int64_t length, int64_t *done)
{
    int64_t left = length - *done, step = left < KERNEL_STEP ? left : KERNEL_STEP;
    if (left <= 0)
        return kernel_extend(fd, length);
    int failed = kernel_reserve(fd, *done, step);
    if (failed)
        return failed;
    *done += step;
    return 1;
}

/* Or, if one of these failed, gives back what lies behind the end, which was at `size`. */
static inline void kernel_give_back(int fd, int64_t size, int64_t limit)
{
    struct stat found;
    if (fstat(fd, &found) == 0 && found.st_size >= size && found.st_size < limit)
        while (ftruncate(fd, size) != 0 && errno == EINTR) {
        }
}

static inline int64_t kernel_size(int fd)
{
    struct stat found;
    return fstat(fd, &found) == 0 ? (int64_t)found.st_size : -errno;
}

/* Starts write-back without waiting. msync(MS_ASYNC) does nothing since Linux 2.6.19. */
static inline int kernel_start_writeback(int fd, int64_t offset, int64_t length)
{
    return sync_file_range(fd, offset, length, SYNC_FILE_RANGE_WRITE) == 0 ? 0 : -errno;
}

/* Writes all of it, within the size that the file has: 0, -errno, or -ESTALE if the file is shorter by now. */
static inline int kernel_fill(int fd, const char *source, size_t length, int64_t offset)
{
    struct stat found;
    if (fstat(fd, &found) != 0)
        return -errno;
    if (found.st_size < offset + (int64_t)length)
        return -ESTALE;
    while (length > 0) {
        ssize_t written = pwrite(fd, source, length, offset);
        if (written < 0 && errno != EINTR)
            return -errno;
        if (written > 0) {
            source += written;
            offset += written;
            length -= written;
        }
    }
    return 0;
}

/* Up to `size` bytes from the start of a file (of /proc, say): how many, or -errno. */
static inline int64_t kernel_read_small(const char *path, char *room, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int64_t done = 0;
    while (done < (int64_t)size) {
        ssize_t got = read(fd, room + done, size - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            done = -errno;
        if (got <= 0)
            break;
        done += got;
    }
    close(fd);
    return done;
}

static inline int64_t kernel_filesystem(int fd)
{
    struct statfs found;
    return fstatfs(fd, &found) == 0 ? (int64_t)(uint32_t)found.f_type : -errno;
}

/* ---- memory -------------------------------------------------------------------------------------------------- */

static inline void *kernel_map(void *address, size_t length, int protection, int flags, int fd, int64_t offset)
{
    void *mapped, *reserved = NULL;
    if ((flags & MAP_FIXED_NOREPLACE) && (flags & MAP_SHARED_VALIDATE) == MAP_SHARED_VALIDATE) {
        /* VALIDATE refuses NOREPLACE, which is younger: take the addresses with one call, fill them with another */
        int empty = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
        reserved = mmap(address, length, PROT_NONE, empty, -1, 0);
        if (reserved == MAP_FAILED)
            return (void *)(intptr_t)-errno;
        address = reserved;
        flags = (flags & ~MAP_FIXED_NOREPLACE) | MAP_FIXED;
    }
    mapped = mmap(address, length, protection, flags, fd, offset);
    if (mapped != MAP_FAILED)
        return mapped;
    int failed = errno;
    if (reserved)
        munmap(reserved, length);
    return (void *)(intptr_t)-failed;
}

static inline int kernel_failed(const void *mapped)
{
    intptr_t value = (intptr_t)mapped;
    return value < 0 && value > -4096 ? (int)-value : 0;
}

/* Copies bytes [start, end) of the file `fd`, which are mapped at `from`, to `to`, which is zero; skips holes. */
static inline void kernel_copy_data(char *to, const char *from, int fd, int64_t start, int64_t end)
{
    for (int64_t at = start, data, hole; at < end; at = hole) {
        data = lseek(fd, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return;
        hole = data < at ? -1 : lseek(fd, data, SEEK_HOLE);
        if (hole <= data) /* the file system does not say */
            data = at, hole = end;
        if (data >= end)
            return;
        if (hole > end)
            hole = end;
        memcpy(to + (data - start), from + (data - start), hole - data);
    }
}

/* The mark that the SIGBUS handler leaves, which runs in this thread, in the middle of the access: the fence keeps the
   compiler from looking before the access. */
static inline uint32_t kernel_lost(const uint32_t *mark)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    return __atomic_load_n(mark, __ATOMIC_RELAXED);
}

static inline int64_t kernel_page_size(void) { return sysconf(_SC_PAGESIZE); }

/* Bytes of [base, base + length) that are in memory, in whole pages; base is page-aligned. */
static inline int64_t kernel_resident(void *base, size_t length)
{
    unsigned char map[1024];
    size_t page = kernel_page_size();
    int64_t pages = 0;
    while (length > 0) {
        size_t step = length < sizeof(map) * page ? length : sizeof(map) * page;
        if (mincore(base, step, map) != 0)
            return -errno;
        for (size_t i = 0; i < (step + page - 1) / page; i++)
            pages += map[i] & 1;
        base = (char *)base + step;
        length -= step;
    }
    return pages * (int64_t)page;
}

static inline int64_t kernel_clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Cheaper, and a few milliseconds coarse. */
static inline int64_t kernel_coarse_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline void kernel_sleep_ns(int64_t nanoseconds)
{
    struct timespec pause = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
    nanosleep(&pause, NULL);
}

#endif
