# cython: language_level=3
"""Claims and the hot half of Queue (queue.pyx)."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from mmapds._native.queueview cimport QueueView, Segments, mmapds_record_item, queue_item
from mmapds._native.region cimport Mapping


cdef class Claim:
    """A consumer's hold on an item."""
    cdef object __weakref__
    cdef QueueCore queue
    cdef queue_item held
    cdef Mapping segment                # keeps the record mapped
    cdef uint64_t ours                  # the fork epoch in which it was claimed
    cdef bint settled
    cdef readonly object item
    cdef int begin(self) except -1
    cdef int drop(self) except -1
    cdef int check(self, int status) except -1
    cdef int done(self, bint owe) except -1
    cdef int back(self, uint64_t delay, bint to_back) except -1
    cdef bytes payload(self)


cdef class Box:
    """What a slow get or claim brings back."""
    cdef bytes buffer
    cdef Mapping segment                # the one that the item was taken from, not another of the same file


cdef class QueueCore(QueueView):
    """Putting, taking, claiming and waiting."""
    cdef object codec, encode, decode
    cdef object pack, unpack            # msgpack's own, for what they do without help; None: taken, or another codec
    cdef bint raw
    cdef Py_ssize_t compress_from       # bytes from which items are compressed; -1: never
    cdef uint64_t lease                 # ns, 0: none
    cdef bytes data_of(self, item, uint64_t *flags)
    cdef int put_data(self, bytes data, mmapds_record_item *prepared, int64_t limit, uint64_t *position) except -1
    cdef int synced(self, uint64_t position) except -1
    cdef int allowed(self) except -1
    cdef int may_take(self) except -1
    cdef int tired(self, queue_item *item, Mapping segment) except -1
    cdef int check_size(self, Py_ssize_t size) except -1
    cdef int prepare(self, bytes data, uint64_t flags, object delay, mmapds_record_item *prepared) except -1
    cdef int wait(self, int event, uint32_t seen, int64_t limit) except -1
    cdef int attempt(self, int how, uint64_t lease, char *into, Py_ssize_t room, queue_item *item, Box box) except -1
    cdef int take(self, int how, object lease, Box box, queue_item *item, int64_t limit) except -1
    cdef object value_of(self, bytes data)
    cdef object received(self, bytes data, queue_item *item)
    cdef Claim claimed(self, object lease, int64_t limit)
    cdef object get_item(self, int64_t limit)
    cdef bint get_batch(self, list values, Py_ssize_t n) except -1
    cdef int shut_down(self, bint empty) except -1
