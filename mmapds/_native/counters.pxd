# cython: language_level=3
"""The hot half of Counters (counters.pyx)."""

from libc.stdint cimport uint64_t

from mmapds._native.cells cimport Cells


cdef class CountersCore(Cells):
    """Operations on cells; policy (paths, modes, recovery) is the subclass's."""
    cdef uint64_t bits(self, value) except? 0
    cdef object value(self, uint64_t bits)
