# cython: language_level=3
"""A counters file as one handle has it mapped (extents.pyx), and the transitions of counters.h."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from mmapds._native.region cimport Mapping


cdef extern from "counters.h" nogil:
    ctypedef struct mmapds_extent:
        uint64_t cells_size, names_size, zero, check
    ctypedef struct mmapds_header:
        uint8_t identity[16]
        uint64_t failed
    ctypedef struct mmapds_counters:
        mmapds_header header
        uint64_t names, changes, removing, returning
        mmapds_extent extents[112]
    ctypedef struct mmapds_entry:
        uint64_t state, check
        uint8_t length
        uint8_t name[255]
    ctypedef struct counters_view:
        mmapds_counters *control
        char *cells
        uint64_t stride, capacity, seen, names, room, cells_size, names_size, cells_room, names_room, end
        uint32_t extents
        uint32_t *lost
        int fd
        mmapds_entry *entries[112]
        uint64_t upto[112]
    Py_ssize_t COUNTERS_CONTROL, COUNTERS_LEAST, EMMAP_CELLS
    int MMAPDS_EXTENTS, MMAPDS_NAME, MMAPDS_PAGE
    uint64_t MMAPDS_LIVE, MMAPDS_REMOVED, MMAPDS_DAMAGED, MMAPDS_SENTINEL
    int COUNTERS_DONE, COUNTERS_FOUND, COUNTERS_GONE, COUNTERS_STALE, COUNTERS_FULL, COUNTERS_DAMAGED, COUNTERS_LOST
    int COUNTERS_ANYHOW, COUNTERS_NEEDED, COUNTERS_SET
    int64_t counters_count(uint64_t word, const uint8_t *identity)
    int64_t counters_names(const counters_view *view)
    uint64_t counters_entries(uint64_t names_size)
    uint64_t *counters_sentinel(mmapds_entry *entries, uint64_t names_size)
    uint64_t counters_names_size(const counters_view *view, unsigned extent)
    int counters_extent(const mmapds_counters *control, unsigned number, mmapds_extent *found)
    mmapds_entry *counters_entry(const counters_view *view, uint64_t number)
    uint64_t *counters_cell(const counters_view *view, uint64_t number)
    bint counters_intact(const counters_view *view, const mmapds_entry *entry, uint64_t number)
    bint counters_current(const counters_view *view)
    int counters_enter(counters_view *view, int64_t *names)
    int counters_create(counters_view *view, const uint8_t *name, unsigned length, int64_t hint, const uint64_t *initial,
                        int how, uint64_t *number)
    int counters_remove(counters_view *view, uint64_t number, uint64_t *value)
    int counters_allocate(int fd, int64_t start, int64_t end)
    void counters_extend(mmapds_counters *control, unsigned number, uint64_t cells_size, uint64_t names_size)
    void counters_give_up(counters_view *view, uint64_t number)
    int64_t counters_recover(counters_view *view)
    void counters_recovered(counters_view *view, int64_t names)
    int counters_sync(const counters_view *view)


# The sizes of an extent for `more` names, or a few more, behind `room` names and `cells_size` bytes of cells.
cdef int plan(Py_ssize_t capacity, Py_ssize_t stride, Py_ssize_t room, Py_ssize_t cells_size, Py_ssize_t more,
              Py_ssize_t *cells, Py_ssize_t *names) noexcept

cdef Py_ssize_t RESERVE                 # addresses for cells, and as many for entries


cdef class Window:
    """A range of a mapping, read-only, for buffers."""
    cdef Mapping mapping
    cdef char *start
    cdef Py_ssize_t size


cdef class Extents:
    """The mapping and its extents; policy (paths, modes, recovery) is a subclass's."""
    cdef Mapping mapping                # None after close()
    cdef counters_view known            # that mapping, as far as it was read
    cdef Py_ssize_t valid               # indices below it are cells
    cdef dict numbers                   # name -> number of its entry, as of known.seen
    cdef dict removed                   # the same of removed names
    cdef bint floats, writable, power
    cdef uint64_t failed                # the durability-failed word of a file that has none
    cdef bint copied                    # memory of this process: no locks, no file
    cdef bint lenient                   # the file comes from another boot: what is damaged there is left out
    cdef object __weakref__
    # Set by the policy.
    cdef readonly str path, mode, layout, dtype, durability
    cdef readonly bint padded
    cdef object _file
    cdef Mapping opened(self)
    cdef int refuse(self) except -1
    cdef int damaged(self, object what) except -1
    cdef int attach(self, counters_view *view, Mapping mapping, int fd) except -1
    cdef Mapping fill(self, counters_view *view, int fd, bint writable)
    cdef Mapping addresses(self, counters_view *view, bint writable)
    cdef int enter(self, counters_view *view, Mapping mapping, bint writable) except -1
    cdef int move(self, int fd) except -1
    cdef uint64_t *failed_word(self) noexcept
