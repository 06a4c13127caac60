# cython: language_level=3
"""Mutual exclusion in shared memory that survives its owner (lockword.pyx)."""

from libc.stdint cimport int64_t, uint64_t

from mmapds._native.kernel cimport LockFile
from mmapds._native.region cimport Mapping


cdef class Owner:
    """One living handle that may own lock words: a token, and the kernel's lock on the token's byte."""
    cdef readonly uint64_t token
    cdef readonly LockFile locks


cdef extern from "lockword.h" nogil:
    uint64_t LOCK_TOKEN
    int LOCK_TAKEN, LOCK_TAKEN_DIRTY, LOCK_BUSY
    int64_t lockword_byte(uint64_t token)
    int lockword_try(uint64_t *word, uint64_t token, bint waited)
    int lockword_press(uint64_t *word, uint64_t token, int fd, bint waited)
    int lockword_sleep(uint64_t *word, int64_t nanoseconds)
    void lockword_release(uint64_t *word, bint dirty)


cdef class Lock:
    cdef Mapping mapping
    cdef uint64_t *word
    cdef object owners          # callable: the Owner of this handle in this process
    cdef Owner mine             # the last one it returned
    cdef Owner owner            # who holds the word through this object, or None
    cdef unsigned long thread
    cdef bint found_dirty
    cdef int enter(self, Owner owner, int status) except -1
    cdef Owner live_owner(self)
