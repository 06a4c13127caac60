# cython: language_level=3
"""The writing half of a Synchronizer handle (writer.pyx)."""

from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport int64_t, uint64_t

from mmapds._native.leftright cimport LeftRight
from mmapds._native.region cimport Mapping


cdef class WriteResult:
    cdef readonly Py_ssize_t size
    cdef readonly bint reset


cdef class Writer(LeftRight):
    """Everything that happens once per write."""
    cdef uint64_t writing               # the fork epoch in which we are the writer; 0: we are not
    cdef Mapping target0, target1       # data_0 and data_1, writable
    cdef uint64_t stuck[2][16]          # slots whose grace is spent, by index
    cdef bint any_stuck[2]
    cdef public bint _power
    cdef PyThread_type_lock mutex
    cdef uint64_t mutex_epoch
    cdef unsigned long mutex_owner      # the thread that holds it, or 0
    cdef int lock_fd
    cdef bint names                     # a name may not be durable yet
    cdef int swept                      # the slot to go on at
    cdef int64_t looked                 # when the path was looked at
    cdef bint renewing                  # there is an inode that has not got its name yet,
    cdef int renewed                    # of this index
    cdef bint gives_up                  # poisoned, and still the writer

    cdef int enter(self) except -1
    cdef void leave(self) noexcept
    cdef object write_locked(self, char *source, Py_ssize_t size, object immutable, double grace)
    cdef uint64_t store(self, Mapping target, char *base, char *source, Py_ssize_t size, object immutable) except? 0
    cdef int sync_range(self, Mapping mapping, Py_ssize_t size) except -1
    cdef Mapping name(self, int index, Py_ssize_t size, bint renew)
    cdef int install(self, int index) except -1
    cdef int durable(self, Mapping mapping, Py_ssize_t size) except -1
    cdef int check_writer(self) except -1
    cdef void aim(self, int index, Mapping target) noexcept
    cdef int look_around(self) except -1
    cdef bint mine_at_all(self) noexcept
    cdef bint mine(self, int slot) noexcept
    cdef int make_room(self, int index, double grace) except -1
