# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""Looking things up in a snapshot map.

A lookup is one load of the manifest's version, one hash of the key, one line of the newest layer's table and one record;
where there are several layers, their lines are fetched together. It makes no system call and writes nothing that others
see. Many keys at once are fetched ahead: while one line comes from memory, so do the next ones.

What a lookup finds is copied before anything else can run; who wants no copy gets a view that keeps the file mapped.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t

from mmapds._native.atomics cimport load_acquire_u64
from mmapds._native.kernel cimport epoch_word, kernel_coarse_ns
from mmapds._native.leftright cimport LeftRight
from mmapds._native.region cimport Mapping
from mmapds._native.snapcursor cimport Values
from mmapds._native.snaplayer cimport (
    BYTES_KEYS, Layer, MMAPDS_PAGE, NO_KEYS, SNAP_FOUND, STR_KEYS, State, key_bytes, key_hash, snap_alive, snap_get, snap_guess, snap_line,
    snap_now, snap_prefetch, snap_prefetch_next, snap_record, snap_view,
)


from mmapds.errors import Closed


cdef extern from *:
    PyObject *PyDict_GetItemWithError(object mapping, object key) except? NULL


cdef enum:
    TOGETHER = 32                       # keys that are fetched at a time
cdef uint64_t nothing = 0
cdef int64_t LOOK = 10000000            # ns between two looks whether somebody has recovered the manifest


@cython.binding(False)
@cython.always_allow_keywords(False)
cdef class MapCore:

    def __cinit__(self, *args, **kwargs):
        self.word = self.failed = &nothing
        self.seen = 1                   # until there is a state, every lookup goes to _advance

    # -- set up by SnapshotMap --

    def _follow(self, LeftRight manifest):
        """From now on each lookup looks at the manifest's version; None: at nothing."""
        if self.over:
            return                      # by another thread, meanwhile
        if manifest is None:
            self.word = &self.still
            self.failed = &nothing
            self.still = self.seen
            self.foreign = False
        else:
            self.control = manifest.control
            self.word = manifest.word
            self.failed = manifest.failed
            self.foreign = manifest._foreign
            self.looked = kernel_coarse_ns()

    def _bind(self):
        """From now on lookups in the child of a fork go to _advance."""
        self.word = epoch_word()
        self.seen = self.word[0]

    def _go_by(self, State state not None):
        """From now on this version is what lookups find."""
        if self.over:
            return
        self.state = state
        self.seen = self.still = state.version

    def _use(self, Values values not None):
        self.values = values

    def _cover(self, dict overlay, bint counted):
        """From now on lookups ask `overlay` first. `counted`: `_change` is told of each change."""
        self.overlay = overlay
        self.overlay_keys = NO_KEYS
        self.counted = counted

    def _end(self):
        """From now on every lookup goes to _advance, which says that the map is closed."""
        cdef State state = self.state
        self.over = True
        self.word = self.failed = &nothing
        self.foreign = False
        self.seen = 1
        self.state = None
        self.control = None
        self.overlay = None

    @property
    def _state(self):
        """The version to go by, the newest if this handle follows."""
        return self.now()

    @property
    def _seen(self):
        """The version that was gone by last; None when closed."""
        return self.state

    def _advance(self):
        """SnapshotMap's: there is a newer version than the one to go by, or none."""
        raise NotImplementedError

    # -- lookups --

    cdef State now(self):
        if load_acquire_u64(self.word) != self.seen or self.failed[0]:      # pairs with leftright_publish
            self._advance()
        elif self.foreign and kernel_coarse_ns() - self.looked > LOOK:
            self._advance()
        if self.state is None:
            raise Closed("this map is closed")
        return self.state

    cdef int find(self, State state, object key, snap_record *record) except -1:
        """SNAP_FOUND if there is a record that is neither gone nor expired. `state` is to be held while it is used."""
        cdef Py_ssize_t size = 0
        cdef const char *data = key_bytes(key, state.keys, &size)
        cdef int status = state.find(key_hash(key, data, size), data, <uint32_t>size, record)
        if status == SNAP_FOUND and not record.gone and (not record.expires or snap_alive(record, state.view.clock)):
            return status               # who copies the value looks for lost pages afterwards
        state.check_lost()
        return 0

    cdef object changed(self, State state, object key):
        """What the overlay says of a key: (bytes, expires), None for what is gone or has expired; `...` if nothing."""
        cdef Py_ssize_t size = 0
        cdef dict overlay = self.overlay        # held, as `change` is: a key's __eq__ may do anything
        cdef PyObject *found
        key_bytes(key, state.keys if state.keys != NO_KEYS else self.overlay_keys, &size)
        if overlay is None:
            raise Closed("this map is closed")
        found = PyDict_GetItemWithError(overlay, key)
        if found is NULL:
            return ...
        change = <object>found
        if change is None or (change[1] and change[1] <= snap_now(state.view.clock)):
            return None
        return change

    def get(self, key, default=None, /):
        """The value of a key, decoded; `default` if there is none, or it has expired. A new object at each call.

        Lock-free, and without a system call while the map is the same. Raises `TypeError` for a key of another kind than
        the map's, `CorruptionError`, `MappingLost`.
        """
        cdef snap_record record
        cdef State state = self.now()
        if self.overlay is not None:
            change = self.changed(state, key)
            if change is None:
                return default
            if change is not ...:
                return self.values.value(change[0])
        if self.find(state, key, &record) != SNAP_FOUND:
            return default
        data = PyBytes_FromStringAndSize(record.value, record.value_size)
        state.check_lost()
        return data if self.values.raw else self.values.value(data)

    def __getitem__(self, key):
        cdef snap_record record
        cdef State state = self.now()
        if self.overlay is not None:
            change = self.changed(state, key)
            if change is None:
                raise KeyError(key)
            if change is not ...:
                return self.values.value(change[0])
        if self.find(state, key, &record) != SNAP_FOUND:
            raise KeyError(key)
        data = PyBytes_FromStringAndSize(record.value, record.value_size)
        state.check_lost()
        return data if self.values.raw else self.values.value(data)

    def __contains__(self, key):
        cdef snap_record record
        cdef State state = self.now()
        if self.overlay is not None:
            change = self.changed(state, key)
            if change is not ...:
                return change is not None
        if self.find(state, key, &record) != SNAP_FOUND:
            return False
        state.check_lost()
        return True

    def get_view(self, key, default=None, /):
        """The value's bytes as they are stored, as a read-only memoryview that copies nothing, and keeps the file mapped."""
        cdef snap_record record
        cdef State state = self.now()
        cdef Mapping mapping
        cdef Layer layer
        if self.overlay is not None:
            change = self.changed(state, key)
            if change is None:
                return default
            if change is not ...:
                return memoryview(change[0])
        if self.find(state, key, &record) != SNAP_FOUND:
            return default
        mapping = None
        if state.delta is not None and state.delta.mapping.base <= record.start < state.delta.mapping.base + state.delta.mapping.size:
            mapping = state.delta.mapping
        else:
            for layer in state.layers:
                if layer.mapping.base <= record.start < layer.mapping.base + layer.mapping.size:
                    mapping = layer.mapping
                    break
        state.check_lost()
        at = record.value - mapping.base
        return PyMemoryView_FromObject(mapping)[at:at + <Py_ssize_t>record.value_size].toreadonly()

    def get_many(self, keys, /):
        """A dict of those of `keys` that there are, with their values, all of one version. Fetches them from memory
        together: half the price of one lookup each, or less."""
        cdef State state = self.now()
        cdef const snap_view *view = &state.view
        cdef uint64_t[TOGETHER] hashes
        cdef const char *data[TOGETHER]
        cdef uint32_t[TOGETHER] sizes
        cdef Py_ssize_t size = 0, at = 0, total, n, i
        cdef snap_record record
        cdef int status
        cdef bint raw = self.values.raw
        cdef tuple wanted = tuple(keys)
        cdef dict found = {}
        if self.overlay is not None:
            return self.get_many_covered(state, wanted)
        total = len(wanted)
        while at < total:
            n = min(<Py_ssize_t>TOGETHER, total - at)
            for i in range(n):
                key = wanted[at + i]
                data[i] = key_bytes(key, state.keys, &size)
                sizes[i] = <uint32_t>size
                hashes[i] = key_hash(key, data[i], size)
                snap_prefetch(view, hashes[i])
            for i in range(n):
                snap_prefetch_next(view, hashes[i])
            for i in range(n):
                status = state.find(hashes[i], data[i], sizes[i], &record)
                if status == SNAP_FOUND and not record.gone and (not record.expires or snap_alive(&record, view.clock)):
                    value = PyBytes_FromStringAndSize(record.value, record.value_size)
                    if not raw:
                        state.check_lost()
                        value = self.values.value(value)
                    found[wanted[at + i]] = value
            at += n
        state.check_lost()
        return found

    cdef dict get_many_covered(self, State state, tuple wanted):
        cdef snap_record record
        cdef dict found = {}
        for key in wanted:
            change = self.changed(state, key)
            if change is ...:
                if self.find(state, key, &record) == SNAP_FOUND:
                    value = PyBytes_FromStringAndSize(record.value, record.value_size)
                    state.check_lost()
                    found[key] = self.values.value(value)
            elif change is not None:
                found[key] = self.values.value(change[0])
        return found

    def _count(self):
        """From now on `_change` is told of each change."""
        self.counted = True

    @property
    def _kind(self):
        """The kind of the keys; NO_KEYS if there is none yet."""
        cdef State state = self.now()
        return state.keys if state.keys != NO_KEYS else self.overlay_keys

    @property
    def _overlay_kind(self):
        """The kind of the overlay's keys; NO_KEYS if it is not the overlay that says."""
        return self.overlay_keys

    def _set(self, key, value, int64_t expires=0):
        """One change of the overlay."""
        cdef Py_ssize_t size = 0
        cdef State state = self.now()
        cdef int kind = state.keys if state.keys != NO_KEYS else self.overlay_keys
        key_bytes(key, kind, &size)
        if not self.values.raw or type(value) is not bytes:
            value = self.values.encode(value)
            if type(value) is not bytes:
                value = bytes(value)
        if kind == NO_KEYS:
            self.overlay_keys = STR_KEYS if isinstance(key, str) else BYTES_KEYS
        if type(key) is not str and type(key) is not bytes:    # a subclass, which may be equal to others in its own way
            key = str.__str__(key) if isinstance(key, str) else bytes(key)
        if self.counted:
            self._change(key, (value, expires))
        else:
            self.overlay[key] = (value, expires)

    def _hold(self, turn):
        """The turn of a transaction, which ends with it."""
        self.turn = turn

    def _exit(self, kind, value, trace, /):
        """A transaction's ``__exit__``."""
        turn = self.turn
        try:
            self._finish(kind is not None)
        finally:
            try:
                if not self.over:       # a signal came at the very beginning
                    self._give_up()
            finally:
                self.turn = None
                if turn is not None:
                    turn.give()

    def _finish(self, failed):
        """Of transactions."""
        raise NotImplementedError

    def _give_up(self):
        """Of transactions."""
        raise NotImplementedError

    def _set_many(self, dict items):
        """Many of them."""
        for key, value in items.items():
            self._set(key, value)

    def _change(self, key, change):
        """Of those who count their changes."""
        raise NotImplementedError

    def _expires(self, key, /):
        """When an entry expires, in nanoseconds on the map's clock; 0: never. None if there is no such key."""
        cdef snap_record record
        cdef State state = self.now()
        if self.overlay is not None:
            change = self.changed(state, key)
            if change is not ...:
                return None if change is None else change[1]
        return record.expires if self.find(state, key, &record) == SNAP_FOUND else None

    def _stored(self, key, /):
        """Whether the base has a record of the key that is not gone, expired or not: what `len` counts."""
        cdef snap_record record
        cdef State state = self.now()
        cdef Py_ssize_t size = 0
        cdef const char *data = key_bytes(key, state.keys, &size)
        cdef bint found = state.find(key_hash(key, data, size), data, <uint32_t>size, &record) == SNAP_FOUND and not record.gone
        state.check_lost()
        return found

    def _fetch(self, keys, /):
        """Faults in what a lookup of each of these keys touches, with the GIL released."""
        cdef State state = self.now()
        cdef const char *data
        cdef Py_ssize_t size = 0
        cdef snap_record record
        cdef uint64_t hash, offset
        cdef Layer layer
        for key in keys:
            data = key_bytes(key, state.keys, &size)
            hash = key_hash(key, data, size)
            for layer in state.layers:
                fault_in(layer.mapping, <const char *>snap_line(&layer.snap, hash), 64)
                offset = snap_guess(&layer.snap, hash)
                if offset:
                    fault_in(layer.mapping, layer.snap.base + offset, MMAPDS_PAGE)
            if state.find(hash, data, <uint32_t>size, &record) == SNAP_FOUND:
                for layer in state.layers:
                    if layer.mapping.base <= record.start < layer.mapping.base + layer.mapping.size:
                        fault_in(layer.mapping, record.start, record.end - record.start)
        state.check_lost()


cdef int fault_in(Mapping mapping, const char *start, uint64_t size) except -1:
    """The pages of a range."""
    cdef uint64_t at = <uint64_t>(start - mapping.base) & ~<uint64_t>(MMAPDS_PAGE - 1)
    cdef uint64_t end = min(<uint64_t>(start - mapping.base) + size, <uint64_t>mapping.size)
    return mapping.populate(mapping.base + at, end - at, False)
