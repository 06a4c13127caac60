# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""A counters file as one handle has it mapped.

The mapping is one range of reserved addresses: the control page, then the cells of all extents as one array, then the
entries. The file grows into it, so nothing that somebody uses ever moves, whatever other threads do. When a range is
used up the handle makes a larger one; bound counters keep theirs, and see the same pages.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mmapds._native.atomics cimport load_relaxed_u64
from mmapds._native.counter cimport readonly
from mmapds._native.kernel cimport kernel_size
from mmapds._native.region cimport Mapping

from mmapds.errors import Closed, CorruptionError


cdef extern from "kernel.h" nogil:
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE


cdef mmapds_counters nothing            # stands for the control page where there is none: no names, no changes

cdef Py_ssize_t RESERVE = 4 << 30


cdef inline Py_ssize_t whole_pages(Py_ssize_t size) noexcept:
    return (size + MMAPDS_PAGE - 1) & -MMAPDS_PAGE


cdef int plan(Py_ssize_t capacity, Py_ssize_t stride, Py_ssize_t room, Py_ssize_t cells_size, Py_ssize_t more,
              Py_ssize_t *cells, Py_ssize_t *names) noexcept:
    """The sizes of an extent for `more` names, or a few more, behind `room` names and `cells_size` bytes of cells."""
    names[0] = whole_pages(more * <Py_ssize_t>sizeof(mmapds_entry) + 8)
    cells[0] = whole_pages(max(0, (capacity + room + <Py_ssize_t>counters_entries(names[0])) * stride - cells_size))
    return 0


def first_extent(bytes identity not None, Py_ssize_t capacity, Py_ssize_t stride):
    """What follows the header page of a new file: its control page, and the size of the whole file."""
    cdef mmapds_counters control
    cdef Py_ssize_t cells, names
    memset(&control, 0, sizeof(control))
    memcpy(control.header.identity, <char *>identity, 16)
    plan(capacity, stride, 0, 0, max(COUNTERS_LEAST, min(capacity, 1024)), &cells, &names)
    counters_extend(&control, 0, cells, names)
    return (<char *>&control)[MMAPDS_PAGE:COUNTERS_CONTROL], COUNTERS_CONTROL + cells + names


@cython.final
@cython.no_gc                           # refers to a mapping only
cdef class Window:

    def __cinit__(self, Mapping mapping not None, Py_ssize_t start, Py_ssize_t size):
        if start < 0 or size < 0 or start > mapping.size - size:
            raise ValueError(f"bytes {start} to {start + size} are not within the mapping's {mapping.size}")
        self.mapping = mapping
        self.start = mapping.base + start
        self.size = size

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.start, self.size, True, flags)

    def __releasebuffer__(self, Py_buffer *view):
        pass                            # that there is one makes numpy hold a memoryview


@cython.binding(False)
@cython.always_allow_keywords(False)
cdef class Extents:

    def __cinit__(self, *args, **kwargs):
        self.numbers = {}
        self.removed = {}
        self.known.control = &nothing
        self.known.seen = 1             # never current

    def _configure(self, str path, str mode, str layout, str dtype, bint padded, str durability, file):
        self.path = path
        self.mode = mode
        self.layout = layout
        self.dtype = dtype
        self.padded = padded
        self.durability = durability
        self._file = file
        self.floats = dtype == "f64"
        self.power = durability == "power" and mode == "shared"

    @property
    def _backing(self):
        """The file. Its descriptor is closed when the last thread that uses it lets go of it."""
        if self._file is None:
            raise Closed(f"{self.path}: these counters are closed")
        return self._file

    def _release(self):
        """After _forget: lets go of the file too."""
        self._file = None

    def _map_emmap(self, int fd, Py_ssize_t count, bint writable):
        """The same of a file of emmap's."""
        cdef counters_view view
        cdef int protection = PROT_READ | (PROT_WRITE if writable else 0)
        cdef Mapping mapping = Mapping(fd, EMMAP_CELLS + 8 * count, protection, MAP_SHARED, self.path)
        memset(&view, 0, sizeof(view))
        view.control = &nothing
        view.cells = mapping.base + EMMAP_CELLS
        view.lost = &mapping.lost
        view.stride = 8
        view.capacity = count
        view.cells_size = 8 * count
        view.extents = MMAPDS_EXTENTS   # it has no more
        self.enter(&view, mapping, writable)

    cdef Mapping fill(self, counters_view *view, int fd, bint writable):
        """A mapping of the file as it is now, with addresses for more."""
        cdef Mapping mapping = self.addresses(view, writable)
        mapping.place(0, fd, 0, COUNTERS_CONTROL, MAP_SHARED)
        if self.attach(view, mapping, fd):
            raise OSError(ENOMEM, "not enough addresses to map the counters", self.path)
        if view.capacity > view.cells_size // view.stride or view.extents == 0:
            self.damaged("its first extent is missing")
        return mapping

    cdef Mapping addresses(self, counters_view *view, bint writable):
        """Addresses for the control page, the cells and the entries; fewer if there are not as many."""
        cdef int protection = PROT_READ | (PROT_WRITE if writable else 0)
        cdef Mapping mapping
        while True:
            try:
                mapping = Mapping(-1, COUNTERS_CONTROL + view.cells_room + view.names_room, protection,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, self.path, reserve=True)
                break
            except OSError:
                if view.cells_room <= 1 << 20 and view.names_room <= 1 << 20:
                    raise
                view.cells_room = max(1 << 20, view.cells_room >> 1)
                view.names_room = max(1 << 20, view.names_room >> 1)
        view.control = <mmapds_counters *>mapping.base
        view.cells = mapping.base + COUNTERS_CONTROL
        view.lost = &mapping.lost
        view.end = COUNTERS_CONTROL
        view.fd = -1
        return mapping

    cdef int enter(self, counters_view *view, Mapping mapping, bint writable) except -1:
        old = self.mapping              # unmapping lets go of the GIL: last
        self.mapping = mapping
        self.known = view[0]
        self.writable = writable
        self.valid = view.capacity + view.names
        return 0

    cdef int attach(self, counters_view *view, Mapping mapping, int fd) except -1:
        """Maps the extents that are new; 1 if there are no addresses left. With the GIL held from end to end."""
        cdef mmapds_extent record
        cdef mmapds_entry *entries
        cdef uint64_t *sentinel
        cdef int status, flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE if self.copied else MAP_SHARED
        cdef int64_t end
        cdef Py_ssize_t at
        while view.extents < MMAPDS_EXTENTS:
            status = counters_extent(view.control, view.extents, &record)
            if status == 0 or (status < 0 and self.lenient):
                break
            if status < 0:
                self.damaged(f"the record of extent {view.extents} is not what was written")
            end = view.end + record.cells_size + record.names_size
            if not self.copied and end > kernel_size(fd):
                if self.lenient:
                    break
                self.damaged(f"it has {kernel_size(fd)} bytes, and extent {view.extents} ends at {end}")
            if (view.cells_size + record.cells_size > view.cells_room
                    or view.names_size + record.names_size > view.names_room):
                return 1
            if record.cells_size:
                mapping.place(COUNTERS_CONTROL + view.cells_size, fd, view.end, record.cells_size, flags)
            at = COUNTERS_CONTROL + view.cells_room + view.names_size
            mapping.place(at, fd, view.end + record.cells_size, record.names_size, flags)
            entries = <mmapds_entry *>(mapping.base + at)
            sentinel = counters_sentinel(entries, record.names_size)
            if self.copied:
                sentinel[0] = MMAPDS_SENTINEL
            if load_relaxed_u64(sentinel) == MMAPDS_SENTINEL:
                mapping.seal = sentinel
            elif not self.lenient:
                self.damaged(f"extent {view.extents} has no sentinel at its end: was the file cut?")
            view.room += counters_entries(record.names_size)
            view.cells_size += record.cells_size
            if (view.capacity > view.cells_size // view.stride
                    or view.room > view.cells_size // view.stride - view.capacity):
                self.damaged(f"{view.cells_size} bytes of cells for {view.capacity} indices and {view.room} names")
            view.entries[view.extents] = entries
            view.upto[view.extents] = view.room
            view.names_size += record.names_size
            view.end = end
            view.extents += 1
        return 0

    cdef int move(self, int fd) except -1:
        """The addresses are used up: more of them, elsewhere. Who uses the old ones keeps them."""
        cdef counters_view view
        cdef Mapping mapping, source = self.mapping
        if self.copied:
            raise OSError(ENOMEM, "a private copy has no addresses left for more names", self.path)
        memset(&view, 0, sizeof(view))
        view.capacity = self.known.capacity
        view.stride = self.known.stride
        view.cells_room = 4 * self.known.cells_room
        view.names_room = 4 * self.known.names_room
        mapping = self.fill(&view, fd, source.writable)
        if self.mapping is source:      # another thread may have done it, or closed the handle
            view.names = self.known.names
            view.seen = self.known.seen
            self.enter(&view, mapping, source.writable)
        return 0

    cdef Mapping opened(self):
        if self.mapping is None:
            raise Closed(f"{self.path}: these counters are closed")
        return self.mapping

    cdef int refuse(self) except -1:
        raise readonly(self.opened())

    cdef int damaged(self, object what) except -1:
        if self.mapping is not None:
            self.mapping.check()        # the file was cut: that is why
        raise CorruptionError(f"{self.path}: {what}. `mmapds verify` says more; restore a copy.")

    cdef uint64_t *failed_word(self) noexcept:
        return &self.failed if self.layout == "emmap" else &self.known.control.header.failed

    def _populate(self):
        if self.known.cells_size:
            self.mapping.populate(self.mapping.base if self.layout == "emmap" else self.known.cells,
                                  self.mapping.size if self.layout == "emmap" else self.known.cells_size, self.writable)

    def _forget(self):
        """Lets go of the mapping; bound counters and views keep it."""
        old = self.mapping
        self.mapping = None
        self.writable = False
        self.valid = 0
        self.numbers = {}
        self.removed = {}
        memset(&self.known, 0, sizeof(self.known))
        self.known.control = &nothing
        self.known.seen = 1             # never current

    @property
    def closed(self):
        """True after close()."""
        return self.mapping is None
