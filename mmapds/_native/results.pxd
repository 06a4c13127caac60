# cython: language_level=3
"""What a read hands out (results.pyx)."""

from libc.stdint cimport uint64_t

from mmapds._native.region cimport Mapping


cdef class Pins:
    """What a result gives its pin back to. Never cleared by the collector."""
    cdef Mapping control                # keeps the words mapped
    cdef uint64_t registered            # the fork epoch in which the pins are ours
    cdef const uint64_t *epoch
    cdef void unpin(self, int index) noexcept


cdef class ReadResult:
    """One version, held until it is released and the last buffer exported from it is gone."""
    cdef object owner                   # the handle, for its codec
    cdef Pins pins                      # whom to give the pin back to
    cdef bint pinned
    cdef Mapping mapping
    cdef bytes held
    cdef char *base
    cdef Py_ssize_t size
    cdef readonly uint64_t version
    cdef int index
    cdef Py_ssize_t exports
    cdef readonly bint switched
    cdef readonly bint copied
    cdef bint released
    cdef void unpin(self) noexcept
    cdef int usable(self) except -1
