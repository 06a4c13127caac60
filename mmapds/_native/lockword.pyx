# cython: language_level=3, boundscheck=False, wraparound=False
"""The lock word: fast mutual exclusion between processes, in 8 bytes of a shared mapping, that survives its owner.

::

     63                              32  31      30     29              0
    +----------------------------------+-------+-------+-----------------+
    |  token, upper 32 bits            |waiters| dirty | token, lower 30 |
    +----------------------------------+-------+-------+-----------------+

A *token* is 60 random bits that a handle draws once; before it writes the token anywhere it locks byte 2^62 + token of
the file (an open-file-description lock), and the kernel drops that lock when the process dies. So "is the owner alive?"
is one system call, without pids, and a token is never reused: the reuse of a slot, which needs an incarnation number
and somebody who bumps it, cannot happen. The word is 0 when free.

Transitions, each one atomic instruction, so that a death leaves the word as before or as after:

* take          0 | d -> token | d | w          (d, w: dirty and waiters, kept)
* announce      token -> token | waiters
* release       token | w -> 0 or dirty         then wake one if there was w
* take over     dead | w -> mine | dirty | w    while holding the dead owner's byte: it is dead then. That one prober
                                                does it is the compare-and-swap's doing

Dirty means that whoever held the word did not leave it in order; it stays until somebody who knows how has repaired
what the lock protects, so a repairer who dies in mid-repair leaves it to the next.

Waiting. An owner killed between release and wake, and a waiter killed, or giving up, between being woken and acting,
would leave others asleep; so no sleep is longer than 50 ms, and after each the owner is probed. Nobody is robbed by time alone: a
*stopped* owner (SIGSTOP) holds the others up until it goes on.

The transitions themselves are in lockword.h, which the queue uses inside its own.

Prior art: robust futexes (the kernel walks a list in the dead process; they need the same layout of libc in every
process), Drepper's "Futexes are tricky" (the waiters bit). Rejected: pthread robust mutexes, whose pointers glibc
follows in the file; a lease by time, which robs the slow.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport PyThread_get_thread_ident
from libc.errno cimport EAGAIN, EINTR, ETIMEDOUT
from libc.stdint cimport int64_t, uint64_t

from mmapds._native.atomics cimport load_seq_cst_u64
from mmapds._native.kernel cimport LockFile, deadline, epoch, kernel_clock_ns, kernel_lost, raise_errno
from mmapds._native.region cimport Mapping

import os

from mmapds.errors import ForkedHandle


cdef int64_t SLICE = 50000000       # ns


@cython.final
@cython.no_gc                       # refers to a LockFile only; a Lock that is collected in a cycle still needs it
cdef class Owner:
    """Draws a token and locks its byte on `locks`; the kernel keeps the lock as long as that descriptor lives."""

    def __cinit__(self, LockFile locks not None):
        cdef uint64_t random
        self.locks = locks
        while True:
            random = int.from_bytes(os.urandom(8), "little")
            random &= LOCK_TOKEN
            if random and locks.try_lock(lockword_byte(random)):
                self.token = random
                return


@cython.final
@cython.no_gc_clear
cdef class Lock:
    """A lock that processes share, at a word of a region. Obtained from :meth:`mmapds.Region.lock`.

    A context manager. Not reentrant. Uncontended it costs one atomic instruction each way and no system call. If an
    owner dies inside, the next one gets the lock, and finds :attr:`owner_died` true: what the lock protects may be half
    changed, and is to be repaired before the block is left. Leaving the block normally declares it in order; leaving it
    by an exception while `owner_died` leaves the mark for the next owner. A *stopped* owner holds others up until it
    goes on. In the child of a fork a lock that the parent held is still the parent's: acquiring waits for it, and
    leaving the block does nothing.
    """

    def __cinit__(self, Mapping mapping not None, Py_ssize_t offset, owners):
        if offset < 0 or offset > mapping.size - 8:
            raise ValueError(f"offset {offset} is outside: a lock needs 8 bytes within the region's {mapping.size}")
        if offset % 8:
            raise ValueError(f"offset {offset} is misaligned: a lock lies at a multiple of 8")
        if not mapping.writable:
            raise ValueError(f"{mapping.path or 'the region'} is mapped read-only: a lock needs mode='shared'")
        self.mapping = mapping
        self.word = <uint64_t *>(mapping.base + offset)
        self.owners = owners
        mapping.borrowed += 1

    def __dealloc__(self):
        if self.mapping is not None:
            if self.owner is not None and self.owner.locks.epoch == epoch():
                lockword_release(self.word, True)       # collected while held: nobody knows in what state
            self.mapping.borrowed -= 1

    @property
    def owner_died(self):
        """While held: True if the previous owner died, or left by an exception, before it had put things in order."""
        return self.found_dirty

    def locked(self):
        """Whether somebody, perhaps dead, has the lock now."""
        return (load_seq_cst_u64(self.word) & LOCK_TOKEN) != 0

    cdef Owner live_owner(self):
        if self.mine is None or self.mine.locks.fd < 0 or self.mine.locks.epoch != epoch():
            self.mine = self.owners()
        return self.mine

    def acquire(self, timeout=None):
        """Takes the lock; False if that was not possible in `timeout` seconds. Signal handlers run while it waits."""
        cdef Owner owner = self.live_owner()
        cdef uint64_t token = owner.token
        cdef int64_t limit, left
        cdef int status, result
        cdef bint waited = False
        if self.owner is not None and self.owner.locks.epoch != epoch():
            self.owner = None               # it was the parent's
        if self.owner is not None and self.thread == PyThread_get_thread_ident():
            raise RuntimeError("this thread holds the lock already, and it is not reentrant")
        self.mapping.check()
        status = lockword_try(self.word, token, False)
        if status != LOCK_BUSY:
            self.enter(owner, status)
            return True
        limit = deadline(timeout)
        while True:
            with nogil:
                status = lockword_press(self.word, token, owner.locks.fd, waited)
            if status != LOCK_BUSY:
                self.enter(owner, status)
                return True
            self.mapping.check()
            left = min(SLICE, limit - kernel_clock_ns())
            if left <= 0:
                return False
            with nogil:
                result = lockword_sleep(self.word, left)
            waited = True
            PyErr_CheckSignals()        # in every round: a signal may have come while we looked
            if result not in (0, -EAGAIN, -ETIMEDOUT, -EINTR):
                load_seq_cst_u64(self.word)     # EFAULT: if the page is gone, this leaves the mark
                self.mapping.check()
                raise_errno(-result, self.mapping.path)

    cdef int enter(self, Owner owner, int status) except -1:
        if kernel_lost(&self.mapping.lost):     # perhaps only this process sees the word that it has just changed
            lockword_release(self.word, status == LOCK_TAKEN_DIRTY)
            self.mapping.check()
        self.owner = owner
        self.thread = PyThread_get_thread_ident()
        self.found_dirty = status == LOCK_TAKEN_DIRTY
        return 0

    def release(self, *, bint in_order=True):
        """Gives the lock back. With `in_order` false the next owner finds `owner_died` true."""
        if self.owner is None:
            raise RuntimeError("this lock object does not hold the lock")
        if self.owner.locks.epoch != epoch():
            self.owner = None
            raise ForkedHandle("the lock is the parent's: a fork does not inherit it; acquire it in this process")
        if self.thread != PyThread_get_thread_ident():
            raise RuntimeError("the lock is held by another thread")
        self.owner = None
        self.found_dirty = False
        lockword_release(self.word, not in_order)
        self.mapping.check()

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, kind, value, traceback):
        if self.owner is not None and self.owner.locks.epoch != epoch():
            self.owner = None               # forked inside the block: the parent's
            return
        self.release(in_order=kind is None or not self.found_dirty)
