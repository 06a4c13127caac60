# cython: language_level=3
"""The reading half of a Synchronizer handle (leftright.pyx), and the transitions of its protocol (leftright.h)."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from mmapds._native.kernel cimport LockFile
from mmapds._native.region cimport Mapping
from mmapds._native.results cimport Pins, ReadResult


cdef extern from "layout.h" nogil:
    int MMAPDS_PAGE, MMAPDS_SLOTS
    int64_t MMAPDS_LOCK_SLOT
    uint64_t MMAPDS_LIMIT, MMAPDS_SENTINEL

    ctypedef struct mmapds_header:
        uint8_t identity[16]
        uint64_t failed

    ctypedef struct mmapds_record:
        uint64_t sequence, size, hash, check, generation

    ctypedef struct mmapds_slot:
        uint64_t pins[2]
        uint64_t incarnation, pid

    ctypedef struct mmapds_sync:
        mmapds_header header
        uint64_t sequence
        mmapds_record records[2]
        uint32_t waiters
        uint64_t in_use[16]
        uint64_t sentinel
        mmapds_slot slots[1024]

    uint64_t mmapds_record_check(uint64_t sequence, uint64_t size, uint64_t hash, const uint8_t *identity)


cdef extern from "leftright.h" nogil:
    const uint64_t *leftright_seal(const char *base, size_t size)
    int leftright_pin(const mmapds_sync *sync, uint64_t *pins, uint64_t *version)
    void leftright_unpin(uint64_t *pins, int index)
    int leftright_pinned(const mmapds_sync *sync, int index, int start)
    void leftright_attach(mmapds_sync *sync, int slot, uint64_t pid)
    void leftright_detach(mmapds_sync *sync, int slot)
    int leftright_reclaim(mmapds_sync *sync, int slot, int fd)
    int leftright_sweep(mmapds_sync *sync, int start, int count, int mine, int fd)
    void leftright_publish(mmapds_sync *sync, uint64_t sequence, uint64_t size, uint64_t hash)


cdef class Slot(Pins):
    """A reader's slot: its byte is locked, and its bit set, as long as a handle or a result refers to this."""
    cdef mmapds_sync *sync
    cdef uint64_t *pins                 # NULL when the slot may be somebody else's by now
    cdef int number
    cdef LockFile locks
    cdef bint ended                     # the handle has gone; the slot goes with the last pin
    cdef void end(self) noexcept


cdef class LeftRight:
    """Everything that happens once per read. The writing half derives from it (writer.pxd)."""
    cdef mmapds_sync *sync
    cdef Mapping control                # keeps `sync` and `word` mapped
    cdef const uint64_t *word           # the version: V
    cdef const uint64_t *failed         # the durability-failed word
    cdef const uint64_t *epoch          # of forks
    cdef Slot seat                      # our slot, or None: not registered (yet)
    cdef uint64_t *pins                 # the slot's, or NULL
    cdef uint64_t registered            # the fork epoch in which it was taken
    cdef Mapping map0, map1             # data_0 and data_1 as readers see them
    cdef uint64_t generations[2]
    cdef uint64_t current               # the version that the next three describe; 0: none
    cdef Mapping current_map
    cdef char *current_base
    cdef Py_ssize_t current_size
    cdef uint64_t copied                # the version that current_copy is of
    cdef bytes current_copy             # for those who cannot pin; in mode private, all there is
    cdef uint64_t returned              # the version that was read last, for `switched`
    cdef uint64_t loaded                # the version that loaded_value decodes
    cdef object loaded_value
    cdef bint verify
    cdef bint unregistered              # mode readonly or private
    cdef bint is_private
    cdef bint is_closed
    cdef bint polls                     # wait() cannot be woken by a futex
    cdef bint unordered                 # a version that differs is a newer one
    cdef public object _decode          # the codec's
    cdef public object _own
    cdef public object _data            # the data files
    cdef Mapping poisoned               # what was lost, or None

    cdef int check_open(self) except -1
    cdef int check_failed(self) except -1
    cdef object read_slowly(self)
    cdef int refuse(self, ReadResult result) except -1
    cdef int poison(self, Mapping mapping) except -1
    cdef int check_lost(self) except -1
    cdef int check_whole(self, Mapping mapping) except -1
    cdef void leave_slot(self) noexcept
    cdef int settle(self, ReadResult result, uint64_t version) except -1
    cdef int switch(self, ReadResult result, uint64_t version) except -1
    cdef Mapping map_data(self, int index, uint64_t size)
    cdef bint fits(self, uint64_t version, uint64_t sequence, uint64_t size, uint64_t hash, uint64_t check) noexcept
    cdef int damaged(self, uint64_t version, uint64_t sequence, uint64_t size) except -1
    cdef int not_initialised(self) except -1
    cdef int give_up(self) except -1
    cdef int missing(self, uint64_t version, uint64_t size, int index) except -1
    cdef void keep(self, int index, Mapping mapping, uint64_t generation) noexcept
    cdef int verify_hash(self, Mapping mapping, char *base, Py_ssize_t size, uint64_t hash, uint64_t version) except -1
    cdef int hold(self, ReadResult result, bytes data, uint64_t version) except -1
    cdef int copy(self, ReadResult result) except -1
