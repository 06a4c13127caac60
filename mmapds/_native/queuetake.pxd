# cython: language_level=3
"""Taking (queuetake.pyx)."""

from libc.stdint cimport int64_t, uint64_t

from mmapds._native.claim cimport Claim
from mmapds._native.queueput cimport QueuePut
from mmapds._native.queueview cimport queue_item
from mmapds._native.region cimport Mapping


cdef class Box:
    """What a slow get or claim brings back."""
    cdef bytes buffer
    cdef Mapping segment                # the one that the item was taken from, not another of the same file


cdef class QueueTake(QueuePut):
    """Getting and claiming."""
    cdef int attempt(self, int how, uint64_t lease, char *into, Py_ssize_t room, queue_item *item, Box box) except -1
    cdef int take(self, int how, object lease, Box box, queue_item *item, int64_t limit) except -1
    cdef object value_of(self, bytes data, uint64_t flags)
    cdef object received(self, bytes data, queue_item *item)
    cdef int may_take(self) except -1
    cdef object get_item(self, int64_t limit)
    cdef int tired(self, queue_item *item, Mapping segment) except -1
    cdef Claim claimed(self, object lease, int64_t limit)
    cdef bint get_batch(self, list values, Py_ssize_t n) except -1
