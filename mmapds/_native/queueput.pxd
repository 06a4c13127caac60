# cython: language_level=3
"""Putting (queueput.pyx)."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from mmapds._native.queueview cimport QueueView, mmapds_record_item


# When a wait ends, on kernel_clock_ns; 0: at once. As queue.Queue takes its arguments.
cdef int64_t limit_of(object block, object timeout) except -1


cdef object called(object function, object argument)


cdef class QueuePut(QueueView):
    """Codecs, putting, waiting."""
    cdef object codec, encode, decode
    cdef object pack, unpack            # msgpack's own, for what they do without help; None: taken, or another codec
    cdef bint raw
    cdef Py_ssize_t compress_from       # bytes from which items are compressed; -1: never
    cdef uint64_t lease                 # ns, 0: none
    cdef bytes data_of(self, item, uint64_t *flags)
    cdef int check_size(self, Py_ssize_t size) except -1
    cdef int prepare(self, bytes data, uint64_t flags, object delay, mmapds_record_item *prepared) except -1
    cdef int put_data(self, bytes data, mmapds_record_item *prepared, int64_t limit, uint64_t *position) except -1
    cdef int synced(self, uint64_t position) except -1
    cdef int allowed(self) except -1
    cdef int wait(self, int event, uint32_t seen, int64_t limit) except -1
    cdef int shut_down(self, bint empty) except -1
