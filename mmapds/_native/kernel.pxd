# cython: language_level=3
"""What exists once per process (SIGBUS table, fork epoch, lock descriptors) and the calls that only Linux has."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "kernel.h" nogil:
    int kernel_lock(int fd, int type, int64_t start, int64_t length, int wait)
    int kernel_find_lock(int fd, int type, int64_t start, int64_t length, int64_t *its_length)
    int kernel_locked(int fd, int type, int64_t start, int64_t length)
    int kernel_futex_wait(const uint32_t *word, uint32_t expected, int64_t nanoseconds)
    int kernel_futex_wake(const uint32_t *word, int count)
    int kernel_link_fd(int fd, const char *path)
    int kernel_rename_new(const char *source, const char *target)
    int kernel_fill(int fd, const char *source, size_t length, int64_t offset)
    int64_t kernel_read_small(const char *path, char *room, size_t size)
    int64_t kernel_filesystem(int fd)
    int64_t kernel_size(int fd)
    int64_t kernel_room(int fd)
    int kernel_reopen(int fd)
    int kernel_allocate_step(int fd, int64_t length, int64_t *done)
    void kernel_give_back(int fd, int64_t size, int64_t limit)
    int kernel_start_writeback(int fd, int64_t offset, int64_t length)
    void *kernel_map(void *address, size_t length, int protection, int flags, int fd, int64_t offset)
    int kernel_failed(const void *mapped)
    void kernel_copy_data(char *to, const char *source, int fd, int64_t start, int64_t end)
    uint32_t kernel_lost(const uint32_t *mark)
    int64_t kernel_page_size()
    int64_t kernel_resident(void *base, size_t length)
    int64_t kernel_clock_ns()
    int64_t kernel_coarse_ns()
    void kernel_sleep_ns(int64_t nanoseconds)
    int F_RDLCK, F_WRLCK, F_UNLCK
    int MADV_POPULATE_READ, MADV_POPULATE_WRITE


# Grows by one in each fork's child: a handle that remembers another epoch was made by an ancestor.
cdef uint64_t epoch() noexcept nogil
cdef const uint64_t *epoch_word() noexcept nogil

# The SIGBUS table. `lost` is set to 1 when a page of [start, start + length) had to be replaced by zeros.
cdef void *guard_add(void *start, size_t length, size_t page, int protection, uint32_t *lost) except NULL
cdef void guard_resize(void *entry, size_t length) noexcept
cdef void guard_remove(void *entry) noexcept

cdef int raise_errno(int error, object path) except -1

# When a wait of `timeout` seconds (None: for ever) that begins now ends, on kernel_clock_ns.
cdef int64_t deadline(object timeout) except -1


cdef class LockFile:
    """A descriptor opened for locking alone; closed, never unlocked, in a fork's child."""
    cdef readonly int fd
    cdef readonly uint64_t epoch
    cdef object path
    cdef void _close(self) noexcept
    cdef int _checked(self) except -1
