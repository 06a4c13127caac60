# cython: language_level=3
"""The cells and names of a counters file as one handle has them mapped (cells.pyx), and the transitions of counters.h."""

from cpython.dict cimport PyDict_GetItemWithError
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_AsSsize_t
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from mmapds._native.kernel cimport LockFile
from mmapds._native.region cimport Mapping


cdef extern from "counters.h" nogil:
    ctypedef struct mmapds_extent:
        uint64_t cells_size, names_size, zero, check
    ctypedef struct mmapds_header:
        uint8_t identity[16]
        uint64_t failed
    ctypedef struct mmapds_counters:
        mmapds_header header
        uint64_t names, changes, removing
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
    int MMAPDS_EXTENTS, MMAPDS_NAME, MMAPDS_PAGE
    uint64_t MMAPDS_LIVE, MMAPDS_REMOVED, MMAPDS_DAMAGED, MMAPDS_SENTINEL
    int COUNTERS_DONE, COUNTERS_FOUND, COUNTERS_GONE, COUNTERS_STALE, COUNTERS_FULL, COUNTERS_DAMAGED, COUNTERS_LOST
    int COUNTERS_ANYHOW, COUNTERS_NEEDED, COUNTERS_SET
    int64_t counters_names(const counters_view *view)
    uint64_t counters_entries(uint64_t names_size)
    uint64_t *counters_sentinel(mmapds_entry *entries, uint64_t names_size)
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
    void counters_recover(counters_view *view)
    int counters_sync(const counters_view *view)


cdef class Cells:
    """Cells by index and by name; policy (paths, modes, recovery) is the subclass's."""
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
    cdef uint64_t *search(self, key) except? NULL
    cdef int refuse(self) except -1
    cdef Mapping opened(self)
    cdef int damaged(self, object what) except -1
    cdef int catch_up(self) except -1
    cdef int refresh(self) except -1
    cdef int64_t read_names(self, dict numbers, dict removed, uint64_t start, uint64_t stop) except -1
    cdef int attach(self, counters_view *view, Mapping mapping, int fd) except -1
    cdef Mapping fill(self, counters_view *view, int fd, bint writable)
    cdef Mapping addresses(self, counters_view *view, bint writable)
    cdef int enter(self, counters_view *view, Mapping mapping, bint writable) except -1
    cdef int move(self, int fd) except -1
    cdef LockFile hold(self, counters_view *view)
    cdef void release(self, counters_view *view, LockFile lock) noexcept
    cdef uint64_t *failed_word(self) noexcept
    cdef int create(self, str name, const uint64_t *initial, int how) except -1
    cdef bint take(self, str name, uint64_t *value) except -1
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
