# cython: language_level=3
"""Claims (claim.pyx)."""

from libc.stdint cimport int64_t, uint64_t

from mmapds._native.queueview cimport QueueView, queue_item
from mmapds._native.region cimport Mapping


# A duration, of 0 or more; `what` it is, for the error.
cdef int64_t nanoseconds(object seconds, str what) except -1


cdef class Claim:
    """A consumer's hold on an item."""
    cdef object __weakref__
    cdef QueueView queue
    cdef queue_item held
    cdef Mapping segment                # keeps the record mapped: the one that it was taken from
    cdef uint64_t ours                  # the fork epoch in which it was claimed
    cdef bint settled
    cdef readonly object item
    cdef int begin(self) except -1
    cdef int drop(self) except -1
    cdef int check(self, int status) except -1
    cdef int done(self, bint owe) except -1
    cdef int back(self, uint64_t delay, bint to_back) except -1
    cdef bytes payload(self)
