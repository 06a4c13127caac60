# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""Cursors: the records of a version of the map, or of runs that are to be merged, in the order of their keys.

What a cursor has handed out stays mapped as long as the cursor, which refers to its sources. It needs no lock: all that it
walks is never changed. A long walk lets go of the GIL every few thousand records, and looks for signals.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from mmapds._native.region cimport Mapping
from mmapds._native.snaplayer cimport (
    Delta, Layer, MMAPDS_PAGE, Order, SNAP_FOUND, SNAP_NONE, SNAP_UNSOUND, State, key_bytes, key_object, snap_alive,
    snap_begin, snap_layer, snap_source, snap_step,
)

from msgpack import unpackb

from mmapds.errors import CorruptionError


@cython.final
cdef class Values:
    """Of a codec. A value is copied first: what the codec makes of it may refer to its argument, and stands alone."""

    def __init__(self, codec):
        self.raw = codec.name == "raw"
        self.encode = codec.encode
        self.decode = codec.decode
        if codec.name == "msgpack":
            self.unpack = unpackb

    def __call__(self, bytes data not None):
        """The value of these bytes."""
        return self.value(data)

    cdef object value(self, bytes data):
        if self.raw:
            return data
        if self.unpack is not None:
            try:
                return self.unpack(data)
            except Exception:
                pass                    # the codec says what is wrong, or knows a way
        return self.decode(memoryview(data))


cdef uint64_t PAUSE = 4096              # records between two looks for signals, and at the marks of lost mappings


@cython.final
@cython.no_gc
cdef class Run:

    def __init__(self, Mapping mapping not None, uint64_t end):
        if end < MMAPDS_PAGE or end > <uint64_t>mapping.size:
            raise ValueError(f"a run of {mapping.size} bytes cannot end at {end}")
        self.mapping = mapping
        self.snap.base = mapping.base
        self.snap.end = end


cdef class Cursor:

    def __cinit__(self, *args, **kwargs):
        self.owners = []

    def __dealloc__(self):
        free(self.cursor.sources)
        free(self.cursor.heap)

    cdef snap_source *more(self) except NULL:
        cdef int count = self.cursor.count + 1
        cdef snap_source *sources = <snap_source *>realloc(self.cursor.sources, count * sizeof(snap_source))
        cdef int *heap
        if sources is NULL:
            raise MemoryError
        self.cursor.sources = sources
        heap = <int *>realloc(self.cursor.heap, count * sizeof(int))
        if heap is NULL:
            raise MemoryError
        self.cursor.heap = heap
        memset(&sources[count - 1], 0, sizeof(snap_source))
        sources[count - 1].rank = count - 1
        self.cursor.count = count
        return &sources[count - 1]

    cdef int add_layer(self, snap_layer *layer, object owner) except -1:
        self.owners.append(owner)
        self.more().layer = layer
        return 0

    def add(self, Layer layer not None):
        """One more source, older than those that there are."""
        self.add_layer(&layer.snap, layer)

    def add_run(self, Run run not None):
        self.add_layer(&run.snap, run)

    def add_delta(self, Delta delta not None, uint64_t end):
        cdef Order order = delta.order(end)
        cdef snap_source *source
        self.owners.append((delta, order))
        source = self.more()
        source.base = delta.snap.base
        source.limit = delta.snap.base + end
        source.order = order.offsets
        source.stop = order.count

    def range(self, bytes first, bytes bound, bint backward):
        """What is walked: from `first` (None: the beginning) up to `bound`, which is not part of it; backwards: from the last
        key before `first` (None: the end) down to `bound`, which is."""
        self.first = first
        self.bound = bound
        self.cursor.backward = backward
        if bound is not None:
            self.cursor.bound = PyBytes_AS_STRING(bound)
            self.cursor.bound_size = len(bound)

    cdef int place(self) except -1:
        cdef const char *key = NULL
        cdef uint64_t size = 0
        cdef int status
        if self.first is not None:
            key = PyBytes_AS_STRING(self.first)
            size = len(<bytes>self.first)
        status = snap_begin(&self.cursor, key, size)
        while status < 0:
            self.recover(status)
            status = snap_begin(&self.cursor, key, size)
        self.placed = True
        return 0

    cdef int recover(self, int status) except -1:
        """After a status below 0: verifies what was wanted, or raises."""
        cdef Layer layer
        self.check_lost()
        if status == SNAP_UNSOUND:
            for owner in self.owners:
                if type(owner) is Layer and (<Layer>owner).snap.checked is not NULL:
                    layer = <Layer>owner
                    layer.verify_wanted()
            return 0
        paths = sorted(owner.path for owner in self.owners if type(owner) is Layer)
        raise CorruptionError(f"a record in one of {paths} is damaged: mmapds verify says where; restore a copy")

    def check_lost(self):
        for owner in self.owners:
            if type(owner) is Layer:
                (<Layer>owner).mapping.check()
            elif type(owner) is Run:
                (<Mapping>(<Run>owner).mapping).check()
            elif type(owner) is tuple:
                (<Delta>owner[0]).mapping.check()

    cdef int step(self) except -1:
        """SNAP_FOUND, with `cursor.out`; or SNAP_NONE."""
        cdef int status
        if not self.placed:
            self.place()
        status = snap_step(&self.cursor)
        while status < 0:
            self.recover(status)
            status = snap_step(&self.cursor)
        self.steps += 1
        if self.steps % PAUSE == 0 or status == SNAP_NONE:
            self.check_lost()
            PyErr_CheckSignals()
            with nogil:
                pass
        return status


cpdef enum:
    KEYS = 0
    VALUES = 1
    ITEMS = 2


@cython.final
cdef class Entries(Cursor):
    """An iterator over keys, values or pairs of a version; what has expired when it comes there is left out."""
    cdef int kind, keys
    cdef int64_t clock
    cdef State state
    cdef Values values

    def __init__(self, State state not None, int kind, Values values not None):
        cdef Layer layer
        if state.delta is not None:
            self.add_delta(state.delta, state.view.end)
        for layer in state.layers:
            self.add_layer(&layer.snap, layer)
        self.kind = kind
        self.keys = state.keys
        self.state = state
        self.clock = state.view.clock
        self.values = values

    def __iter__(self):
        return self

    def __next__(self):
        cdef object key = None, value = None
        while True:
            if self.step() == SNAP_NONE:
                raise StopIteration
            out = &self.cursor.out
            if not out.gone and (not out.expires or snap_alive(out, self.clock)):
                break
        if self.kind != VALUES:
            key = key_object(out.key, out.key_size, self.keys)
        if self.kind != KEYS:
            value = PyBytes_FromStringAndSize(out.value, out.value_size)
        self.state.check_lost()         # what was copied may be zeros of a file that was cut
        if self.kind != KEYS and not self.values.raw:
            value = self.values.value(value)
        if self.kind == KEYS:
            return key
        if self.kind == VALUES:
            return value
        return (key, value)
