# cython: language_level=3
"""Walking several sources of records in the order of their keys (snapcursor.pyx, snapcursor.h)."""

from libc.stdint cimport int64_t, uint64_t

from mmapds._native.snaplayer cimport snap_cursor, snap_layer, snap_source


cdef class Cursor:
    """The records of a range, each key's newest, those that are gone too."""
    cdef snap_cursor cursor
    cdef list owners                    # what keeps the sources where they are: Layer, Run, (Delta, Order)
    cdef object bound                   # keeps the bound's bytes
    cdef object first                   # and the first key's
    cdef bint placed
    cdef uint64_t steps
    cdef int add_layer(self, snap_layer *layer, object owner) except -1
    cdef snap_source *more(self) except NULL
    cdef int place(self) except -1
    cdef int step(self) except -1
    cdef int recover(self, int status) except -1


cdef class Values:
    """How values become objects."""
    cdef object encode, decode, unpack
    cdef bint raw
    cdef object value(self, bytes data)


cdef class Run:
    """A file of sorted records, without an index; the first page of it is not used."""
    cdef object mapping
    cdef snap_layer snap
