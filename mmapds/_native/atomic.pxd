# cython: language_level=3
"""A 64-bit word of mapped memory as an object (atomic.pyx)."""

cimport cython
from libc.stdint cimport uint64_t

from mmapds._native.region cimport Mapping


@cython.no_gc
cdef class AtomicInt64:
    cdef Mapping mapping
    cdef uint64_t *word
    cdef bint futex
    cdef int refuse(self) except -1
