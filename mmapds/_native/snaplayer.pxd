# cython: language_level=3
"""Layers, the delta, and what a handle of a snapshot map goes by (snaplayer.pyx); snapshot.h and snapcursor.h."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from mmapds._native.region cimport Mapping


cdef extern from "snapcursor.h" nogil:
    int MMAPDS_PAGE, MMAPDS_KEY, MMAPDS_BLOCK, MMAPDS_GUIDED, MMAPDS_BUCKET, MMAPDS_LAYERS
    uint64_t MMAPDS_SENTINEL
    int SNAP_NONE, SNAP_FOUND, SNAP_DAMAGED, SNAP_UNSOUND

    ctypedef struct mmapds_guide:
        uint64_t prefix, offset
    ctypedef struct mmapds_delta:
        uint64_t written
        uint32_t heads[0]
    ctypedef struct mmapds_node:
        uint32_t next, record
        uint64_t hash
    ctypedef struct mmapds_batch:
        uint64_t check, hash, size, count, version, entries
        uint64_t zero[2]
        mmapds_node nodes[0]
    uint64_t mmapds_batch_check(const mmapds_batch *batch, uint64_t offset, const uint8_t *identity)

    ctypedef struct snap_record:
        const char *key
        const char *value
        const char *start
        const char *end
        uint64_t value_size
        int64_t expires
        uint32_t key_size
        int gone
    ctypedef struct snap_layer:
        const char *base
        uint64_t end
        const mmapds_guide *guide
        uint64_t guides, common
        const uint64_t *table
        uint64_t buckets, probes, records, sums
        uint64_t *checked
        uint64_t wanted
    ctypedef struct snap_delta:
        const char *base
        const char *nodes
        uint64_t room
        const uint32_t *heads
        uint64_t buckets, start, size
    ctypedef struct snap_view:
        snap_layer *layers[12]
        int count
        const snap_delta *delta
        uint64_t end
        int64_t clock

    uint64_t snap_up(uint64_t n)
    int64_t snap_now(int64_t clock)
    int snap_parse(const char *at, const char *limit, snap_record *record)
    uint64_t snap_size(uint32_t key_size, uint64_t value_size, int64_t expires)
    char *snap_compose(char *at, const char *key, uint32_t key_size, uint64_t value_size, int64_t expires, int gone)
    int snap_compare(const char *a, uint64_t a_size, const char *b, uint64_t b_size)
    int snap_alive(const snap_record *record, int64_t clock)
    uint64_t snap_prefix(const char *key, uint64_t size, uint64_t start)
    uint64_t snap_bucket(const snap_layer *layer, uint64_t hash)
    const uint64_t *snap_line(const snap_layer *layer, uint64_t hash)
    uint64_t snap_guess(const snap_layer *layer, uint64_t hash)
    int snap_find(snap_layer *layer, uint64_t hash, const char *key, uint32_t size, snap_record *record)
    void snap_link(uint32_t *heads, uint64_t buckets, char *nodes, uint64_t offset)
    uint64_t snap_common(const char *key, uint64_t common, const char *other, uint64_t size)
    void snap_prefetch(const snap_view *view, uint64_t hash)
    void snap_prefetch_next(const snap_view *view, uint64_t hash)
    int snap_get(const snap_view *view, uint64_t hash, const char *key, uint32_t size, snap_record *record, int *where)

    ctypedef struct snap_source:
        snap_record now
        int rank
        snap_layer *layer
        const char *base
        const char *limit
        const uint32_t *order
        uint64_t stop
    ctypedef struct snap_cursor:
        snap_source *sources
        int *heap
        int count, live, backward
        const char *bound
        uint64_t bound_size
        snap_record out
        int rank, begun
    int snap_begin(snap_cursor *cursor, const char *key, uint64_t size)
    int snap_step(snap_cursor *cursor)

    int snap_lower(snap_layer *layer, const char *key, uint64_t size, uint64_t *offset, uint64_t *group)

    ctypedef struct snap_key:
        uint64_t prefix
        uint32_t offset
    uint64_t snap_sort(snap_key *keys, uint64_t count, const char *base, const char *limit, uint32_t *order)

    void prefetch "__builtin_prefetch" (const void *address)


cpdef enum:
    NO_KEYS = 0
    STR_KEYS = 1
    BYTES_KEYS = 2


# The bytes of a key of the map's kind, and how many; TypeError, or ValueError if it is too long.
cdef const char *key_bytes(object key, int kind, Py_ssize_t *size) except NULL
# xxh3_64 of a key, whose bytes these are.
cdef uint64_t key_hash(object key, const char *data, Py_ssize_t size) except? 0
# A key of the map's kind from its bytes.
cdef object key_object(const char *key, Py_ssize_t size, int kind)


cdef class Layer:
    """A file of sorted records, complete and never changed."""
    cdef readonly Mapping mapping
    cdef readonly bytes identity
    cdef readonly uint64_t number
    cdef snap_layer snap
    cdef uint64_t metadata_size
    cdef uint64_t sums_hash
    cdef uint64_t *bits
    cdef bint sums_checked
    cdef int verify_wanted(self) except -1
    cdef int wanted_or_raise(self) except -1
    cdef int check_sums(self) except -1
    cdef int check_block(self, uint64_t block) except -1


cdef struct walked:
    snap_key *keys
    uint64_t count, room


cdef class Order:
    """Where the records of a delta up to `end` are, in the order of their keys; of equal keys the youngest."""
    cdef uint32_t *offsets
    cdef uint64_t count, end


cdef class Delta:
    """What was committed since the last layer."""
    cdef readonly Mapping mapping
    cdef readonly bytes identity
    cdef readonly uint64_t number
    cdef snap_delta snap
    cdef bint own                       # nodes and heads are memory of ours
    cdef uint32_t *heads
    cdef char *nodes
    cdef uint64_t node_count, node_room
    cdef uint64_t reached               # up to where batches were looked at
    cdef uint64_t entries               # len of the map there, if the index is our own
    cdef Order sorted_keys
    cdef int reach(self, uint64_t end) except -1
    cdef int reserve(self, uint64_t count) except -1
    cdef int index(self, uint64_t at, uint64_t next, const mmapds_batch *found) except -1
    cdef uint64_t batch(self, uint64_t at, uint64_t end, mmapds_batch *found) except 0
    cdef int parse(self, uint64_t data, uint64_t end, uint64_t batch, snap_record *record) except -1
    cdef int check_hash(self, uint64_t at, const mmapds_batch *found) except -1
    cdef int collect(self, uint64_t start, uint64_t end, walked *into) except -1
    cdef bint later(self, uint64_t end)
    cdef Order order(self, uint64_t end)


cdef class State:
    """One version of the map. Never changes."""
    cdef readonly uint64_t version, entries
    cdef readonly uint64_t cut          # bytes of the delta that a power cut has damaged, and that do not count
    cdef readonly int keys
    cdef readonly tuple layers
    cdef readonly Delta delta
    cdef snap_view view
    cdef const uint32_t *marks[13]      # of each file's mapping: lost, and its seal
    cdef const uint64_t *seals[13]
    cdef int files
    cdef int watch(self, Mapping mapping) except -1
    cdef int raise_for(self, int status, int where) except -1
    cdef int check_lost(self) except -1
    cdef int find(self, uint64_t hash, const char *key, uint32_t size, snap_record *record) except -1
