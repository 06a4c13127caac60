# cython: language_level=3
"""Mutual exclusion in shared memory that survives its owner (lockword.pyx)."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from mmapds._native.kernel cimport LockFile
from mmapds._native.region cimport Mapping


cdef class Owner:
    """One living handle that may own lock words: a token, and the kernel's lock on the token's byte."""
    cdef readonly uint64_t token
    cdef readonly LockFile locks


# Each returns a status and never touches Python.
cdef enum:
    LOCK_TAKEN = 0          # the word is ours, in order
    LOCK_TAKEN_DIRTY = 1    # the word is ours; an owner died, or left, in the middle of something
    LOCK_BUSY = 2           # somebody has it

cdef int lockword_try(uint64_t *word, uint64_t token, bint waited) noexcept nogil
cdef int lockword_probe(uint64_t *word, uint64_t token, int fd) noexcept nogil
cdef void lockword_release(uint64_t *word, bint dirty) noexcept nogil


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
