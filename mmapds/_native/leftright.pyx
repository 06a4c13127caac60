# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""The reading half of a Synchronizer handle.

The protocol, and why it is right, is in leftright.h; this is what surrounds it in a process: results that hold a pin
for as long as somebody can see the bytes, a cache of what the present version is mapped at, the path for handles
without a slot, and waiting.

In the process, the GIL is the mutex of this half: pin, compare and hand out happen without letting it go, and fields
that belong together change together. An unmapping lets go of the GIL, so what is replaced is held until after the
change.

Rejected: an in-process lock on the reading path, which costs as much as the read; a result that caches its decoded
value, which could make it part of a cycle that only the collector ends, with the pin.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromMemory, PyMemoryView_FromObject
from libc.errno cimport EAGAIN, EINTR, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport getpid

from mmapds._native.atomics cimport (
    fence_acquire, load_acquire_u64, load_bytes, load_relaxed_u64, load_seq_cst_u64, store_seq_cst_u32, store_seq_cst_u64,
)
from mmapds._native.kernel cimport (
    F_WRLCK, LockFile, deadline, epoch_word, kernel_clock_ns, kernel_futex_wait, kernel_lock, kernel_sleep_ns, raise_errno,
)
from mmapds._native.region cimport Mapping
from mmapds._native.results cimport Pins, ReadResult

from xxhash import xxh3_64_intdigest

from mmapds.errors import Closed, CorruptionError, DurabilityFailed, ForkedHandle, NotInitialised


cdef int64_t SLICE = 100000000          # ns: no sleep is longer, because a writer may die before it wakes us
cdef int64_t POLL = 500000              # ns: readers that cannot say that they wait


@cython.final
@cython.no_gc_clear      # what it needs at its end stays until then
cdef class Slot(Pins):

    cdef void unpin(self, int index) noexcept:
        # In a fork's child the pin, and the slot, are the parent's.
        if self.registered == self.epoch[0] and self.pins is not NULL:
            leftright_unpin(self.pins, index)
            if self.ended:
                self.end()

    cdef void end(self) noexcept:
        """The handle has gone: gives the slot back, now or with the last pin."""
        self.ended = True
        if self.registered == self.epoch[0] and self.pins is not NULL and self.pins[0] + self.pins[1] == 0:
            leftright_detach(self.sync, self.number)        # the bit goes before the byte is unlocked
            self.pins = NULL
            self.locks.close()          # not only let go of: a traceback somewhere may hold it

    def __dealloc__(self):
        self.end()


# ---- the handle ----------------------------------------------------------------------------------------------------

cdef uint64_t never_failed = 0


cdef class LeftRight:

    def __cinit__(self, *args, **kwargs):
        self.epoch = epoch_word()
        self.verify = True
        self.is_closed = True           # until _open
        self.failed = self.word = &never_failed

    # -- set up by Synchronizer --

    def _open(self, Mapping control not None, *, bint verify, bint unregistered):
        """From now on `control` is the sync file. `unregistered`: it must not, or cannot, be written."""
        cdef Mapping previous = self.control    # held until no pointer into it is left
        self.control = control
        self.sync = <mmapds_sync *>control.base
        self.word = &self.sync.sequence
        self.failed = &self.sync.header.failed
        self.verify = verify
        self.unregistered = self.polls = unregistered
        self.current_copy = None                # another file may count its versions otherwise
        self.copied = 0
        self.is_closed = False

    def _open_private(self, bytes value, uint64_t version):
        """From now on all there is lies in this process."""
        self.is_private = self.unregistered = self.polls = True
        self.is_closed = False
        self.copied = version
        self.current_copy = value
        self.returned = 0

    def _close(self):
        """From now on every call raises Closed."""
        self.is_closed = True
        self.loaded = 0
        self.loaded_value = None

    def _give_slot_back(self):
        """After _close: True if results still hold pins, with which the slot will go."""
        cdef Slot seat = self.seat
        self.leave_slot()
        return seat is not None and seat.pins is not NULL and seat.registered == self.epoch[0]

    cdef void leave_slot(self) noexcept:
        cdef Slot seat = self.seat
        self.pins = NULL
        self.seat = None
        if seat is not None:
            seat.end()

    def _take_slot(self, LockFile locks not None):
        """Registers in a slot whose byte nobody has locked; False if there is none. One call, so that no signal handler
        can come between lock and use."""
        cdef int slot, fd = locks.fd
        cdef Slot seat
        if self.pins is not NULL and self.registered == self.epoch[0]:
            return True
        seat = Slot.__new__(Slot)
        seat.control = self.control
        seat.locks = locks
        seat.epoch = self.epoch
        seat.registered = self.epoch[0]
        for slot in range(MMAPDS_SLOTS):        # also one whose bit is set, if its owner has died
            if kernel_lock(fd, F_WRLCK, MMAPDS_LOCK_SLOT + slot, 1, 0) == 0:
                leftright_attach(self.sync, slot, getpid())
                seat.pins = self.sync.slots[slot].pins
                seat.sync = self.sync
                seat.number = slot
                self.seat = seat
                self.pins = seat.pins
                self.registered = seat.registered
                return True
        return False

    @property
    def slot(self):
        """The number of this handle's reader slot, or -1: it has none (yet)."""
        return self.seat.number if self.pins is not NULL and self.registered == self.epoch[0] else -1

    @property
    def _pinned(self):
        """How many pins this handle's slot has."""
        return self.pins[0] + self.pins[1] if self.pins is not NULL and self.registered == self.epoch[0] else 0

    @property
    def _is_closed(self):
        return self.is_closed

    @property
    def _verifies(self):
        return self.verify

    def _record(self, int index):
        """(sequence, size, hash, whether its check is right) of an index."""
        cdef mmapds_record *record = &self.sync.records[index]
        cdef uint64_t expected = mmapds_record_check(
            record.sequence, record.size, record.hash, self.sync.header.identity)
        return record.sequence, record.size, record.hash, record.check == expected

    def _recover(self, uint64_t sequence):
        """After another boot, when nobody is alive: V, and nothing volatile."""
        memset(self.sync.in_use, 0, sizeof(self.sync.in_use))
        memset(self.sync.slots, 0, sizeof(self.sync.slots))
        store_seq_cst_u32(&self.sync.waiters, 0)
        store_seq_cst_u64(&self.sync.header.failed, 0)
        store_seq_cst_u64(&self.sync.sentinel, MMAPDS_SENTINEL)
        store_seq_cst_u64(&self.sync.sequence, sequence)

    # -- reading --

    cdef int check_open(self) except -1:
        if self.is_closed:
            raise Closed("this Synchronizer is closed")
        if not self.is_private:
            self.check_lost()
        return 0

    cdef int check_failed(self) except -1:
        if load_seq_cst_u64(self.failed):
            raise DurabilityFailed(
                f"{self.control.path}: a flush to the disk failed, here or in another process, and the kernel may have "
                "dropped what it could not write. Nothing is trusted until a write() has succeeded; check the disk."
            )
        return 0

    @property
    def version(self):
        """The sequence of the newest version; 0 before the first. One load: wait-free, no pin, no system call."""
        cdef uint64_t found
        if self.is_closed or self.unregistered or self.control.lost:
            self.check_open()
            found = self._slow_version()
        else:
            found = load_acquire_u64(self.word)     # pairs with the store in leftright_publish
        if found == 0:
            self.check_lost()                       # the zero of a file that was cut just now
        return found

    def _slow_version(self):
        if self.is_private:
            return self.copied
        self._refresh()
        return load_acquire_u64(self.word)

    def read(self):
        """Pins the newest version and returns it as a :class:`ReadResult`.

        Wait-free and without a system call as long as the data file has not been replaced or outgrown. The first read
        of each version checks its checksum (unless `verify=False`). Raises `NotInitialised` before the first write,
        `CorruptionError`, `MappingLost`, `DurabilityFailed`. A death leaves a pin that the writer takes back.
        """
        cdef ReadResult result
        cdef uint64_t version = 0
        cdef int index
        # Allocated first: the collector may run meanwhile, and close or poison this very handle. From the look at the slot
        # to the pin in the result nothing else runs.
        result = ReadResult.__new__(ReadResult)
        if self.registered != self.epoch[0] or self.is_closed or self.pins is NULL:
            return self.read_slowly()
        index = leftright_pin(self.sync, self.pins, &version)
        if index < 0:
            self.not_initialised()
            return self.read()
        result.pins = self.seat
        result.pinned = True
        result.owner = self
        result.index = index
        if version == self.current and self.current_map is not None:
            result.mapping = self.current_map
            result.base = self.current_base
            result.size = self.current_size
            result.version = version
        else:
            self.settle(result, version)
        result.switched = result.version != self.returned
        self.returned = result.version
        if (self.failed[0] or self.control.lost or result.mapping.seal[0] != MMAPDS_SENTINEL
                or result.mapping.lost):        # in this order: the look at the end may be what brings the mark
            self.refuse(result)
        return result

    cdef int refuse(self, ReadResult result) except -1:
        result.release()
        self.check_whole(result.mapping)
        self.check_lost()
        self.check_failed()
        return 0

    cdef int check_whole(self, Mapping mapping) except -1:
        if load_relaxed_u64(mapping.seal) != MMAPDS_SENTINEL:
            mapping.lost = 1
        if mapping.lost:
            self.poison(mapping)
        return 0

    cdef int check_lost(self) except -1:
        if self.poisoned is not None:
            self.poisoned.check()
        if self.control is not None and self.control.lost:
            self.poison(self.control)
        return 0

    cdef int poison(self, Mapping mapping) except -1:
        """Part of a file is gone: this handle is of no further use. It gives back what others wait for: its place as
        the writer, and its slot with the last pin, because what results hold may lie in another file that is sound."""
        if self.poisoned is None:
            self.poisoned = mapping
            self.unregistered = True    # no fast path looks any more
            if mapping is self.control and self.seat is not None:
                self.seat.pins = NULL   # the counts themselves may be gone
            self.leave_slot()
            self.give_up()
        mapping.check()
        return 0

    cdef int give_up(self) except -1:
        return 0

    cdef int settle(self, ReadResult result, uint64_t version) except -1:
        """The result holds a pin for `version`, which is new to this handle: fills the rest in, perhaps for a newer one."""
        cdef int index
        while not self.switch(result, version):
            # The version changed while we mapped: what we mapped may be the writer's next inode.
            result.unpin()
            index = -1
            while index < 0:
                self.check_open()
                if self.registered != self.epoch[0]:
                    raise ForkedHandle("this process was forked while its parent was reading: read again")
                if self.pins is NULL:
                    raise Closed("this Synchronizer was closed while it was reading")
                index = leftright_pin(self.sync, self.pins, &version)
                if index < 0:
                    self.not_initialised()
            result.pins = self.seat
            result.pinned = True
            result.index = index
        return 0

    cdef int switch(self, ReadResult result, uint64_t version) except -1:
        """Maps and checks `version`, which the result has pinned; 0 if it must be pinned anew."""
        cdef int index = result.index
        cdef mmapds_record *record = &self.sync.records[index]
        # Each word is read once: the file may be hostile.
        cdef uint64_t sequence = load_relaxed_u64(&record.sequence), size = load_relaxed_u64(&record.size)
        cdef uint64_t hash = load_relaxed_u64(&record.hash), check = load_relaxed_u64(&record.check)
        # Before the file is opened: pairs with write_locked.
        cdef uint64_t generation = load_seq_cst_u64(&record.generation)
        cdef Mapping mapping, previous
        if not self.fits(version, sequence, size, hash, check):
            # A writer that has waited for us beyond its grace publishes version + 2 over this record.
            fence_acquire()
            if load_seq_cst_u64(&self.sync.sequence) != version:
                return 0
            self.damaged(version, sequence, size)
        mapping = self.map1 if index else self.map0
        if mapping is None or self.generations[index] != generation or <uint64_t>mapping.size - MMAPDS_PAGE - 8 < size:
            mapping = self.map_data(index, size)
            if load_seq_cst_u64(&self.sync.sequence) != version:
                # What was mapped may already be the inode of version + 2; its generation, still to come, will say so.
                # Kept nevertheless: a writer that is as fast as we map would otherwise keep us mapping for ever.
                if mapping is not None:
                    self.keep(index, mapping, generation)
                return 0
            if mapping is None:
                self.missing(version, size, index)
        if self.verify:
            self.verify_hash(mapping, mapping.base + MMAPDS_PAGE, size, hash, version)
        self.keep(index, mapping, generation)
        previous = self.current_map     # held until the end: an unmapping lets go of the GIL, and all this changes as one
        self.current_map = mapping
        self.current_base = mapping.base + MMAPDS_PAGE
        self.current_size = size
        self.current = version
        result.mapping = mapping
        result.base = self.current_base
        result.size = size
        result.version = version
        return 1

    cdef Mapping map_data(self, int index, uint64_t size):
        cdef Mapping mapping = self._data.map(index, size)
        if mapping is not None:
            mapping.seal = leftright_seal(mapping.base, mapping.size)
        return mapping

    cdef bint fits(self, uint64_t version, uint64_t sequence, uint64_t size, uint64_t hash, uint64_t check) noexcept:
        return sequence == version and size < MMAPDS_LIMIT and check == mmapds_record_check(
            sequence, size, hash, self.sync.header.identity)

    cdef int damaged(self, uint64_t version, uint64_t sequence, uint64_t size) except -1:
        self.check_lost()
        raise CorruptionError(
            f"{self.control.path}: the record of version {version} is damaged (it says version {sequence}, {size} bytes): "
            "publish anew, or restore a copy"
        )

    cdef int missing(self, uint64_t version, uint64_t size, int index) except -1:
        raise CorruptionError(
            f"{self.control.path}: data_{index} is missing, or shorter than the {size} bytes of version {version}: "
            "publish anew, or restore a copy"
        )

    cdef void keep(self, int index, Mapping mapping, uint64_t generation) noexcept:
        cdef Mapping previous = self.map1 if index else self.map0       # held until both have changed
        if index:
            self.map1 = mapping
        else:
            self.map0 = mapping
        self.generations[index] = generation

    cdef int verify_hash(self, Mapping mapping, char *base, Py_ssize_t size, uint64_t hash, uint64_t version) except -1:
        cdef uint64_t found = xxh3_64_intdigest(PyMemoryView_FromMemory(base, size, 0x100))
        if base == mapping.base + MMAPDS_PAGE:      # else it is a copy, whose maker has looked
            self.check_whole(mapping)
        self.check_lost()
        if found != hash:
            raise CorruptionError(
                f"{self.control.path}: version {version} does not match its checksum (0x{hash:016x} stored, "
                f"0x{found:016x} computed over {size} bytes): publish anew, or restore a copy"
            )
        return 0

    cdef int not_initialised(self) except -1:
        """V was 0. Raises, unless somebody has published since."""
        cdef int index
        cdef uint64_t later = 0
        self.check_lost()
        if self.sync is not NULL:
            for index in range(2):
                sequence, _, _, right = self._record(index)
                if right:
                    later = max(later, sequence)
            if load_seq_cst_u64(self.word) != 0:
                return 0
            # Version 1 without V may be what a writer's death has left; with any later one, V has been something else.
            if later > 1:
                raise CorruptionError(
                    f"{self.control.path}: it says that nothing has been published, and has a record of version {later}: "
                    "restore a copy, or remove the three files to begin anew"
                )
        raise NotInitialised(
            f"{self.control.path}: nothing has been published yet: write() first, or wait() for a writer"
        )

    cdef object read_slowly(self):
        self.check_open()
        cdef ReadResult result
        if not self.unregistered:
            if self._register():
                return self.read()
        result = ReadResult.__new__(ReadResult)
        result.owner = self
        self.copy(result)
        result.copied = True
        result.switched = result.version != self.returned
        self.returned = result.version
        return result

    cdef int hold(self, ReadResult result, bytes data, uint64_t version) except -1:
        result.held = data
        result.base = PyBytes_AS_STRING(data)
        result.size = len(data)
        result.version = version
        return 0

    cdef int copy(self, ReadResult result) except -1:
        """Fills the result with a copy of the newest version, without a slot."""
        cdef uint64_t version, size, hash, check, sequence, generation
        cdef mmapds_record *record
        cdef Mapping mapping, control
        cdef bytes data
        cdef char *source
        cdef char *target
        cdef int index
        cdef bint sealed
        if self.is_private:
            if self.copied == 0:
                raise NotInitialised("nothing has been published: write() first")
            return self.hold(result, self.current_copy, self.copied)
        while True:
            self._refresh()
            self.check_lost()
            self.check_failed()
            PyErr_CheckSignals()
            version = load_seq_cst_u64(&self.sync.sequence)     # pairs with leftright_publish
            if version == 0:
                self.not_initialised()
                continue
            if version == self.copied and self.current_copy is not None:
                return self.hold(result, self.current_copy, version)
            index = <int>(version & 1)
            record = &self.sync.records[index]
            generation = load_seq_cst_u64(&record.generation)
            sequence = load_relaxed_u64(&record.sequence)
            size = load_relaxed_u64(&record.size)
            hash = load_relaxed_u64(&record.hash)
            check = load_relaxed_u64(&record.check)
            fence_acquire()
            if load_seq_cst_u64(&self.sync.sequence) != version:
                continue
            if not self.fits(version, sequence, size, hash, check):
                self.damaged(version, sequence, size)
            mapping = self.map1 if index else self.map0
            if mapping is None or self.generations[index] != generation or <uint64_t>mapping.size - MMAPDS_PAGE - 8 < size:
                mapping = self.map_data(index, size)
                if load_seq_cst_u64(&self.sync.sequence) != version:
                    continue
                if mapping is None:
                    self.missing(version, size, index)
                self.keep(index, mapping, generation)
            data = PyBytes_FromStringAndSize(NULL, size)
            target = PyBytes_AS_STRING(data)
            source = mapping.base + MMAPDS_PAGE
            with nogil:
                load_bytes(target, source, size)
            sealed = load_relaxed_u64(mapping.seal) == MMAPDS_SENTINEL     # before V, too: a later write may grow over it
            fence_acquire()             # pairs with the fence in write_locked: the data before V
            if load_seq_cst_u64(&self.sync.sequence) != version:
                continue
            control = self.control
            self._refresh()             # a V of our own says nothing about a writer that has come to life meanwhile
            if self.control is not control:
                continue
            if not sealed:
                mapping.lost = 1
            if mapping.lost:
                self.poison(mapping)
            if self.verify:
                self.verify_hash(mapping, target, size, hash, version)
            self.current_copy = data
            self.copied = version
            return self.hold(result, data, version)

    def load(self, default=...):
        """The newest value, decoded; `default`, if given, before the first write.

        Decoded again only when the version changed, and it leaves no pin. All callers share the one object: do not
        change it. With the codecs raw and numpy it is a copy that stands alone. Wait-free while the version is the
        same.
        """
        cdef ReadResult result
        cdef uint64_t version
        cdef object value = None
        if not self.unregistered and not self.is_closed:
            version = load_acquire_u64(self.word)
            if version == self.loaded and version != 0 and not self.failed[0] and not self.control.lost:
                return self.loaded_value
        try:
            result = self.read()
        except NotInitialised:
            if default is ...:
                raise
            return default
        if result.version != self.loaded:
            version = result.version
            with result:
                value = self._own(self._decode(PyMemoryView_FromObject(result)))
            if result.mapping is not None:
                result.mapping.check()
            previous = self.loaded_value    # held: its end may run other code
            self.loaded_value = value
            self.loaded = version
            return value
        result.release()
        return self.loaded_value

    def wait(self, newer_than=None, timeout=None):
        """Sleeps until there is a version newer than `newer_than` (default: than the present one); returns it, or None
        after `timeout` seconds.

        The writer wakes all waiters by futex as it publishes. A writer killed in between costs a waiter 100 ms at most.
        Handles that cannot write the file look every half millisecond instead. Signal handlers run while it waits.
        """
        cdef uint64_t seen = self.version if newer_than is None else newer_than
        cdef uint64_t version
        cdef int64_t limit = deadline(timeout), left, checked = kernel_clock_ns(), now
        cdef int result
        while True:
            version = self.version
            if version > seen or (self.unordered and version != seen):
                return version
            if not self.is_private:
                self.check_lost()
                self.check_failed()
            now = kernel_clock_ns()
            if now - checked >= SLICE and not self.is_private:
                self._check_path()
                checked = now
            left = min(POLL if self.polls else SLICE, limit - now)
            if left <= 0:
                return None
            result = 0
            if self.polls:
                with nogil:
                    kernel_sleep_ns(left)
            else:
                store_seq_cst_u32(&self.sync.waiters, 1)        # pairs with the look in leftright_publish
                if load_seq_cst_u64(self.word) != version:
                    continue
                with nogil:
                    result = kernel_futex_wait(<uint32_t *>self.word, <uint32_t>version, left)
            PyErr_CheckSignals()
            if result not in (0, -EAGAIN, -ETIMEDOUT, -EINTR):
                load_seq_cst_u64(self.word)     # EFAULT: if the page is gone, this leaves the mark
                self.check_lost()
                raise_errno(-result, self.control.path)
            self.check_open()
