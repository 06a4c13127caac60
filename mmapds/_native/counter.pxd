# cython: language_level=3
"""One counter as an object (counter.pyx), and what an operation on a cell needs."""

from libc.stdint cimport int64_t, uint64_t

from mmapds._native.atomic cimport AtomicInt64
from mmapds._native.region cimport Mapping


cdef extern from "counters.h" nogil:
    ctypedef struct mmapds_counters:
        pass
    int CELL_ADD, CELL_SUB, CELL_AND, CELL_OR, CELL_XOR, CELL_EXCHANGE
    uint64_t cell_apply(int operation, uint64_t *cell, uint64_t n)
    int cell_add_checked(uint64_t *cell, int64_t n, int64_t *before)
    int cell_add_double(uint64_t *cell, double n, int checked, double *before)
    int cell_compare_exchange_double(uint64_t *cell, double *expected, double desired)
    double cell_double(uint64_t bits)
    uint64_t cell_bits(double value)


# A value for a cell. OverflowError: it does not fit into 64 bits; TypeError: it is no integer (no number).
cdef int64_t integer(object value) except? -1
cdef double real(object value) except? -1.0

cdef object overflow(object before, object n)
cdef str shown(number)                  # of any size, for messages
cdef object readonly(Mapping mapping)
cdef object unsynced(Mapping mapping, why)


cdef class Counter(AtomicInt64):
    cdef readonly str name
    cdef readonly Py_ssize_t index
    cdef uint64_t *failed               # the durability-failed word, if a reservation is to be durable


cdef class FloatCounter:
    cdef Mapping mapping
    cdef uint64_t *word
    cdef readonly str name
    cdef readonly Py_ssize_t index
    cdef int before(self) except -1
    cdef int after(self) except -1


# A block of n numbers, which nobody else gets, also after a power cut if `failed` is given.
cdef object reserve(Mapping mapping, uint64_t *word, object n, uint64_t *failed)
