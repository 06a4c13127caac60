# cython: language_level=3, boundscheck=False, wraparound=False
"""What exists once per process, and the calls that only Linux has.

Liveness in mmapds is a kernel lock on a byte of a file, held through an open file description (``F_OFD_SETLK``): the
kernel drops it when the process dies, however it dies, so pid reuse, pid namespaces and reboots need no thought. A
:class:`LockFile` is the only thing such locks are taken on. It is never mapped (a mapping keeps its open file
description, and with it the locks, alive after ``close``) and it is closed in the child of a fork, where the locks are
the parent's. POSIX record locks were rejected because closing *any* descriptor of a file drops them; pthread robust
mutexes because they put libc's own pointers into the file.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_get_thread_ident,
    PyThread_release_lock, PyThread_type_lock,
)
from libc.errno cimport EAGAIN, EINTR, ENOSPC
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t

import os


cdef extern from "<unistd.h>" nogil:
    int close(int fd)


cdef extern from "process.h" nogil:
    ctypedef struct bus_entry:
        pass
    int bus_install()
    bus_entry *bus_add(void *start, size_t length, size_t page, int protection, uint32_t *lost)
    void bus_resize(bus_entry *entry, size_t length)
    void bus_remove(bus_entry *entry)
    uint64_t fork_epoch
    int fork_install()
    int fds_add(int fd)
    void fds_remove(int fd)


cdef extern from "layout.h" nogil:
    int MMAPDS_PAGE, MMAPDS_IMMUTABLE, MMAPDS_CHECKED, MMAPDS_OPTIONS, MMAPDS_SCHEMA_TEXT
    int MMAPDS_FORMAT_MAJOR, MMAPDS_FORMAT_MINOR, MMAPDS_SLOTS
    int64_t MMAPDS_LOCK_OPEN, MMAPDS_LOCK_WRITER, MMAPDS_LOCK_SLOT, MMAPDS_LOCK_TOKEN
    uint32_t MMAPDS_BYTE_ORDER
    uint64_t MMAPDS_LIMIT, MMAPDS_SENTINEL
    ctypedef struct mmapds_sync:
        pass


# The constants of layout.h that Python policy needs: one copy, there.
PAGE = MMAPDS_PAGE
IMMUTABLE = MMAPDS_IMMUTABLE
CHECKED = MMAPDS_CHECKED
OPTIONS = MMAPDS_OPTIONS
SCHEMA_TEXT = MMAPDS_SCHEMA_TEXT
FORMAT = (MMAPDS_FORMAT_MAJOR, MMAPDS_FORMAT_MINOR)
BYTE_ORDER = MMAPDS_BYTE_ORDER
SLOTS = MMAPDS_SLOTS
SYNC_SIZE = sizeof(mmapds_sync)
LIMIT = MMAPDS_LIMIT
SENTINEL = MMAPDS_SENTINEL
LOCK_OPEN = MMAPDS_LOCK_OPEN
LOCK_WRITER = MMAPDS_LOCK_WRITER
LOCK_SLOT = MMAPDS_LOCK_SLOT
LOCK_TOKEN = MMAPDS_LOCK_TOKEN


cdef double LONGEST = 9e9               # seconds that fit into nanoseconds

cdef int installed = fork_install()
if installed < 0:
    raise_errno(-installed, None)


cdef uint64_t epoch() noexcept nogil:
    return fork_epoch


cdef const uint64_t *epoch_word() noexcept nogil:
    return &fork_epoch


def fork_count():
    """How many forks lie between the first process that loaded this module and this one, plus 1."""
    return fork_epoch


cdef int raise_errno(int error, object path) except -1:
    if path is None:
        raise OSError(error, os.strerror(error))
    raise OSError(error, os.strerror(error), os.fspath(path))


cdef int64_t deadline(object timeout) except -1:
    cdef double seconds
    if timeout is None:
        return INT64_MAX
    seconds = timeout
    if seconds != seconds:
        raise ValueError("a timeout of nan seconds: give a number, or None to wait for ever")
    if seconds <= 0:
        return 0
    if seconds >= LONGEST:
        return INT64_MAX
    return min(INT64_MAX - 1, kernel_clock_ns() + <int64_t>(seconds * 1e9))


cdef void *guard_add(void *start, size_t length, size_t page, int protection, uint32_t *lost) except NULL:
    cdef int failed = bus_install()
    if failed < 0:
        raise_errno(-failed, None)
    cdef bus_entry *entry = bus_add(start, length, page, protection, lost)
    if entry is NULL:
        raise MemoryError("no memory for one more entry in the table of mappings")
    return entry


cdef void guard_resize(void *entry, size_t length) noexcept:
    bus_resize(<bus_entry *>entry, length)


cdef void guard_remove(void *entry) noexcept:
    bus_remove(<bus_entry *>entry)


@cython.final
@cython.no_gc                   # refers to a path only; those who refer to it are collected in any order
cdef class LockFile:
    """A new open file description of the file behind `fd`, for locking alone.

    Opened and entered into the table of the fork handler without letting go of the GIL in between: no thread can fork a
    child that inherits it unknown, and would keep the locks alive.
    """

    def __cinit__(self, int fd, path):
        cdef int opened, failed
        self.fd = -1
        self.epoch = fork_epoch
        self.path = path
        opened = kernel_reopen(fd)
        if opened < 0:
            raise_errno(-opened, path)
        failed = fds_add(opened)
        if failed < 0:
            close(opened)
            raise_errno(-failed, path)
        self.fd = opened

    def __dealloc__(self):
        self._close()

    cdef void _close(self) noexcept:
        # In a child the fork handler has closed the descriptor already, and its number may be somebody else's by now.
        # Unlocked first: a child that was forked a moment ago may not have closed its descriptor yet.
        if self.fd >= 0 and self.epoch == fork_epoch:
            fds_remove(self.fd)
            kernel_lock(self.fd, F_UNLCK, 0, 0, 0)
            close(self.fd)
        self.fd = -1

    @property
    def usable(self):
        """False after close(), and in the child of a fork."""
        return self.fd >= 0 and self.epoch == fork_epoch

    def close(self):
        """Closes the descriptor: the kernel drops all its locks. Idempotent; does nothing in a fork's child."""
        self._close()

    def try_lock(self, int64_t start, int64_t length=1, *, bint shared=False):
        """Locks [start, start + length) (length 0: to infinity) if nobody else has it; True on success."""
        cdef int failed = kernel_lock(self._checked(), F_RDLCK if shared else F_WRLCK, start, length, 0)
        if failed == -EAGAIN:
            return False
        if failed < 0:
            raise_errno(-failed, self.path)
        return True

    def lock(self, int64_t start, int64_t length=1, *, bint shared=False):
        """The same, waiting with the GIL released; a signal handler runs while it waits and may raise."""
        cdef int type = F_RDLCK if shared else F_WRLCK
        cdef int fd, failed
        while True:
            fd = self._checked()        # in each round: a signal handler may have forked, and this be the child
            with nogil:
                failed = kernel_lock(fd, type, start, length, 1)
            if failed == 0:
                return
            if failed != -EINTR:
                raise_errno(-failed, self.path)
            PyErr_CheckSignals()

    def unlock(self, int64_t start, int64_t length=1):
        """Gives the range back. Does nothing in a fork's child, where it is the parent's."""
        if self.fd >= 0 and self.epoch == fork_epoch:
            kernel_lock(self.fd, F_UNLCK, start, length, 0)

    def held(self, int64_t start, int64_t length=1, *, bint shared=False, bint wait=True):
        """A context manager that holds the range in its block; its value says whether it got it (always, if it waits)."""
        return Held(self, start, length, shared, wait)

    cdef int _checked(self) except -1:
        if self.fd < 0 or self.epoch != fork_epoch:
            raise ValueError("this lock descriptor is closed, or belongs to the parent of this process")
        return self.fd


@cython.final
cdef class Held:
    """A lock for the length of a block. KeyboardInterrupt comes between two bytecodes, so "lock, then try" can lose a
    lock; entering a block is one bytecode."""
    cdef LockFile locks
    cdef int64_t start, length
    cdef bint shared, wait, keeps

    def __cinit__(self, LockFile locks, int64_t start, int64_t length, bint shared, bint wait):
        self.locks = locks
        self.start = start
        self.length = length
        self.shared = shared
        self.wait = wait

    def __enter__(self):
        if self.wait:
            self.locks.lock(self.start, self.length, shared=self.shared)
        else:
            self.keeps = not self.locks.try_lock(self.start, self.length, shared=self.shared)
        return self

    @property
    def got(self):
        """Whether the lock was free, or has been waited for."""
        return self.wait or not self.keeps

    def keep(self, bint keeps=True):
        """Whether the lock outlasts the block."""
        self.keeps = keeps

    def __exit__(self, kind, value, traceback):
        if not self.keeps:
            self.locks.unlock(self.start, self.length)


@cython.final
@cython.no_gc                   # refers to nothing
@cython.auto_pickle(False)
cdef class Turns:
    """The threads of a handle take turns. In a fork's child nobody has one: a thread that is not there may have it."""
    cdef PyThread_type_lock lock
    cdef uint64_t epoch
    cdef unsigned long owner    # thread, or 0

    def __dealloc__(self):
        if self.lock is not NULL and self.epoch == fork_epoch:
            PyThread_free_lock(self.lock)

    def take(self, str refusal):
        """Waits for a :class:`Turn`. RuntimeError(refusal) if this thread has it. Signal handlers run while it waits."""
        cdef unsigned long thread = PyThread_get_thread_ident()
        cdef Turn turn = Turn.__new__(Turn)
        cdef int got
        if self.lock is NULL or self.epoch != fork_epoch:
            self.lock = PyThread_allocate_lock()
            if self.lock is NULL:
                raise MemoryError
            self.epoch = fork_epoch
            self.owner = 0
        if self.owner == thread:
            raise RuntimeError(refusal)
        while not PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
            with nogil:
                kernel_sleep_ns(1000000)
            PyErr_CheckSignals()
            if self.epoch != fork_epoch:    # a signal handler forked, and this is the child
                return self.take(refusal)
        self.owner = thread
        turn.turns = self
        turn.epoch = self.epoch
        return turn


@cython.final
@cython.no_gc
@cython.auto_pickle(False)
cdef class Turn:
    """Held until `give()`, or until the last reference to it goes: no interruption in between can lose it."""
    cdef Turns turns            # None when it is over
    cdef uint64_t epoch

    def give(self):
        """Ends it. Idempotent; does nothing in a fork's child."""
        cdef Turns turns = self.turns
        self.turns = None
        if turns is not None and self.epoch == fork_epoch:
            turns.owner = 0
            PyThread_release_lock(turns.lock)

    def __dealloc__(self):
        if self.turns is not None and self.epoch == fork_epoch:
            self.turns.owner = 0
            PyThread_release_lock(self.turns.lock)


def link_fd(int fd, path):
    """Gives the unnamed file `fd` (O_TMPFILE) the name `path`. FileExistsError if something has it."""
    cdef bytes name = os.fsencode(path)
    cdef int failed = kernel_link_fd(fd, name)
    if failed < 0:
        raise_errno(-failed, path)


def rename_new(source, target):
    """rename() that raises FileExistsError instead of replacing."""
    cdef bytes old = os.fsencode(source)
    cdef bytes new = os.fsencode(target)
    cdef int failed = kernel_rename_new(old, new)
    if failed < 0:
        raise_errno(-failed, target)


def read_small(path):
    """The first 4095 bytes of a file, as those in /proc; one call, so that no signal handler comes between open and close."""
    cdef bytes name = os.fsencode(path)
    cdef char[4096] room
    cdef int64_t found = kernel_read_small(name, room, sizeof(room) - 1)
    if found < 0:
        raise_errno(<int>-found, path)
    return room[:found]


def filesystem(int fd):
    """The statfs f_type of the file system that `fd` lies on."""
    cdef int64_t found = kernel_filesystem(fd)
    if found < 0:
        raise_errno(<int>-found, None)
    return found


def allocate(int fd, int64_t length):
    """Makes the file at least `length` bytes long, with blocks behind all that is added.

    OSError (a full disk, a quota, RLIMIT_FSIZE) leaves it as it was, and so does a signal handler that raises. Never
    makes it smaller. Two who grow one file at the same time must exclude each other, or the failure of one may cut what
    the other got.
    """
    cdef int64_t size = kernel_size(fd)
    cdef int64_t done = size
    cdef int failed = 1
    if size < 0:
        raise_errno(<int>-size, None)
    if size >= length:
        return
    if length - size > kernel_room(fd):
        raise_errno(ENOSPC, None)           # without filling the disk for a moment, which others would notice
    try:
        while failed:
            with nogil:
                failed = kernel_allocate_step(fd, length, &done)
            PyErr_CheckSignals()
            if failed < 0 and failed != -EINTR:
                raise_errno(-failed, None)
    except BaseException:
        kernel_give_back(fd, size, length)
        raise


def start_writeback(int fd, int64_t offset, int64_t length):
    """Asks the kernel to start writing a range to the disk, and does not wait for the end."""
    cdef int failed = 0
    if length > 0:                      # 0 would mean "to the end"
        with nogil:
            failed = kernel_start_writeback(fd, offset, length)
    if failed < 0:
        raise_errno(-failed, None)


def inhabited(int fd):
    """Whether somebody lives in a file of ours: has locked a byte of it, other than byte 0. Who has locked all of them, to
    infinity, is a recoverer, and alone."""
    cdef int64_t length = 1
    cdef int found = kernel_find_lock(fd, F_WRLCK, MMAPDS_LOCK_WRITER, 0, &length)
    if found < 0:
        raise_errno(-found, None)
    return found != 0 and length != 0


def locked(int fd, int64_t start, int64_t length=1):
    """Whether somebody else has a lock in [start, start + length), length 0: to infinity. Takes none."""
    cdef int found = kernel_locked(fd, F_WRLCK, start, length)
    if found < 0:
        raise_errno(-found, None)
    return found != 0
