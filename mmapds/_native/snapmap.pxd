# cython: language_level=3
"""The hot half of SnapshotMap (snapmap.pyx)."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from mmapds._native.region cimport Mapping
from mmapds._native.snapcursor cimport Values
from mmapds._native.snaplayer cimport State, snap_record


cdef class MapCore:
    """Everything that happens once per lookup."""
    cdef const uint64_t *word           # the newest version: the manifest's, or our own if nobody is followed
    cdef uint64_t seen                  # the version that `state` is; differs from *word: there is work to do first
    cdef uint64_t still                 # what `word` refers to when nobody is followed
    cdef const uint64_t *failed         # the manifest's durability-failed word
    cdef bint foreign                   # the manifest is a copy in memory: now and then somebody must look
    cdef int64_t looked
    cdef Mapping control                # keeps `word` mapped
    cdef State state
    cdef Values values
    cdef int overlay_keys               # the kind of the overlay's keys, once there is one
    cdef bint counted                   # the overlay's changes go through _change
    cdef dict overlay                   # what mode private has changed: (bytes, expires), or None for what is gone
    cdef bint over                      # closed
    cdef object turn                    # of a transaction: what keeps other threads out
    cdef State now(self)
    cdef int find(self, State state, object key, snap_record *record) except -1
    cdef object changed(self, State state, object key)
    cdef dict get_many_covered(self, State state, tuple wanted)
