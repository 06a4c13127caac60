# cython: language_level=3
"""Making layers, and batches of the delta (snapbuild.pyx)."""

from libc.stdint cimport int64_t, uint64_t

from mmapds._native.snaplayer cimport State, snap_key


cdef class Sorter:
    """Records in memory, up to a limit, to be written in the order of their keys."""
    cdef char *base
    cdef uint64_t room, used, budget
    cdef snap_key *list
    cdef uint64_t count
    cdef uint64_t common                # bytes that the beginning of all keys has in common
    cdef bytes first
    cdef readonly int keys              # the kind, when there is a key
    cdef readonly uint64_t total        # records that were ever added
    cdef object waiting                 # an item that found no room
    cdef bint sorted
    cdef int put(self, const char *key, Py_ssize_t size, const char *value, uint64_t value_size, int64_t expires,
                 bint gone) except -1
    cdef int sort(self) except -1
