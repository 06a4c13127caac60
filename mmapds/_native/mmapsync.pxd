# cython: language_level=3
"""A Synchronizer handle that speaks the protocol of the Rust crate mmap-sync (mmapsync.h)."""

from libc.stdint cimport uint32_t, uint64_t

from mmapds._native.region cimport Mapping
from mmapds._native.results cimport Pins
from mmapds._native.writer cimport Writer


cdef extern from "layout.h" nogil:
    ctypedef struct mmapds_crate_state:
        uint64_t version
        uint32_t readers[2]


cdef extern from "mmapsync.h" nogil:
    int mmapsync_pin(mmapds_crate_state *state, uint64_t *version)
    void mmapsync_unpin(mmapds_crate_state *state, int index)


cdef class Counts(Pins):
    """The counts that all readers share."""
    cdef mmapds_crate_state *state


cdef class Crate(Writer):
    cdef mmapds_crate_state *state
    cdef Counts counts
    cdef object checksum                # the function that readers verify with, or None
    cdef uint64_t checked               # the version word that was verified last
    cdef int count(self) except -1
    cdef int wait_for_readers(self, int index, double grace) except -1
    cdef Mapping map_crate(self, uint64_t version, int index)
    cdef int verify_crate(self, char *base, uint64_t version) except -1
