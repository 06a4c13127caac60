# cython: language_level=3
"""The names of the cells of a counters file, as one handle knows them (cells.pyx)."""

from cpython.dict cimport PyDict_GetItemWithError
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_AsSsize_t
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from mmapds._native.extents cimport Extents, counters_cell, counters_current, counters_view
from mmapds._native.kernel cimport LockFile
from mmapds._native.region cimport Mapping


cdef class Cells(Extents):
    """Cells by index and by name."""
    cdef uint64_t *search(self, key) except? NULL
    cdef int catch_up(self) except -1
    cdef int refresh(self) except -1
    cdef int64_t read_names(self, dict numbers, dict removed, uint64_t start, uint64_t stop) except -1
    cdef LockFile hold(self, counters_view *view)
    cdef void release(self, counters_view *view, LockFile lock) noexcept
    cdef int create(self, str name, const uint64_t *initial, int how) except -1
    cdef bint take(self, str name, uint64_t *value) except -1
    cdef int learn(self, const counters_view *view, int status) except -1
    cdef int check_durable(self) except -1
    cdef int fail(self, Mapping mapping, int status) except -1
    cdef int extend(self, Py_ssize_t more) except -1


cdef inline uint64_t *peek(Cells self, object key) except? NULL:
    """The cell of a key; NULL if there is no such name, an exception if there is no such index. Names are looked up as of
    known.seen, which was current when this began: see counters.h for what is to be looked at afterwards."""
    cdef PyObject *number
    cdef int64_t index
    cdef int beyond = 0
    if type(key) is str:
        if counters_current(&self.known):
            number = PyDict_GetItemWithError(self.numbers, key)
            if number is not NULL:
                return counters_cell(&self.known, PyLong_AsSsize_t(<object>number))
    elif type(key) is int:
        index = PyLong_AsLongLongAndOverflow(key, &beyond)
        if 0 <= index < self.valid:
            return <uint64_t *>(self.known.cells + index * self.known.stride)
    return self.search(key)


cdef str exact(key)
