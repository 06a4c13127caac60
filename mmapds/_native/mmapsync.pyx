# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""A Synchronizer handle that speaks the protocol of the Rust crate mmap-sync; the protocol is argued in mmapsync.h.

Results, waiting, the cache of `load` and the writer's mutex are the default protocol's; what differs is pinning (counts
that all readers share), the version word, and data files that start with the data, keep their inode and never shrink,
because Rust readers keep their mapping of them.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from mmapds._native.atomics cimport (
    compare_exchange_seq_cst_u32, fence_acquire, load_seq_cst_u32, load_seq_cst_u64, store_seq_cst_u64,
)
from mmapds._native.kernel cimport deadline, kernel_clock_ns, kernel_sleep_ns
from mmapds._native.leftright cimport LeftRight, MMAPDS_LIMIT
from mmapds._native.region cimport Mapping
from mmapds._native.results cimport Pins, ReadResult
from mmapds._native.writer cimport WriteResult, Writer


from mmapds.errors import CorruptionError


cdef Py_ssize_t LARGE = 65536


cdef inline Py_ssize_t size_of(uint64_t version) noexcept nogil:
    return (version >> 1) & 0x7fffffffffULL


@cython.final
@cython.no_gc_clear      # what it needs at its end stays until then
cdef class Counts(Pins):

    cdef void unpin(self, int index) noexcept:
        # In a fork's child the pin is the parent's.
        if self.registered == self.epoch[0]:
            mmapsync_unpin(self.state, index)


cdef class Crate(Writer):

    def _open_crate(self, Mapping control not None, *, bint verify, bint unregistered, checksum):
        """From now on `control` is the state file. `unregistered`: it must not be written."""
        self.control = control
        self.state = <mmapds_crate_state *>control.base
        self.word = &self.state.version
        self.checksum = checksum
        self.verify = verify and checksum is not None
        self.unregistered = unregistered
        self.polls = True               # Rust writers wake nobody
        self.unordered = True           # and their versions are no sequence
        self.is_closed = False

    def _start_crate(self):
        """We have the writer's lock."""
        self.target0 = self.target1 = None
        self.writing = self.epoch[0]

    # -- reading --

    def read(self):
        """Pins the present version and returns it as a :class:`ReadResult`; see :meth:`mmapds.Synchronizer.read`.

        Wait-free and without a system call as long as the data file is not outgrown. The writer, here or in Rust, waits
        for this reader up to its `grace`; a result that is held longer may be overwritten under its owner.
        """
        cdef ReadResult result
        cdef uint64_t version = 0
        cdef int index
        self.check_open()
        result = ReadResult.__new__(ReadResult)
        result.owner = self
        if self.unregistered:
            self.copy(result)
            result.copied = True
        else:
            if self.counts is None or self.counts.registered != self.epoch[0]:
                self.count()
            index = mmapsync_pin(self.state, &version)
            if index < 0:
                self.not_initialised()
            result.pins = self.counts
            result.pinned = True
            result.index = index
            result.mapping = self.map_crate(version, index)
            result.base = result.mapping.base
            result.size = size_of(version)
            result.version = version
            if result.mapping.lost or self.control.lost:
                self.refuse(result)
            if self.verify and version != self.checked:
                self.verify_crate(result.base, version)
        result.switched = result.version != self.returned
        self.returned = result.version
        return result

    cdef int count(self) except -1:
        """Counts made in this process, not in its parent."""
        cdef Counts counts = Counts.__new__(Counts)
        counts.control = self.control
        counts.state = self.state
        counts.epoch = self.epoch
        counts.registered = self.epoch[0]
        self.counts = counts
        return 0

    cdef Mapping map_crate(self, uint64_t version, int index):
        """Maps the data file of the index at least as far as the version's size."""
        cdef Mapping mapping = self.map1 if index else self.map0
        cdef Py_ssize_t size = size_of(version)
        if mapping is None or mapping.size < size:
            mapping = self._data.map(index, size)
            if mapping is None:
                raise CorruptionError(
                    f"{self.control.path}: data_{index} is missing, or shorter than the {size} bytes that the state says: "
                    "write anew"
                )
            self.keep(index, mapping, 0)
        return mapping          # not the one that is kept: another thread may have kept a shorter one since

    cdef int verify_crate(self, char *base, uint64_t version) except -1:
        cdef uint64_t found = self.checksum(PyMemoryView_FromMemory(base, size_of(version), 0x100)) & 0xffffff
        if found != version >> 40 and not (found == 0 and version == 1ULL << 40):     # see write_locked
            raise CorruptionError(
                f"{self.control.path}: {size_of(version)} bytes do not match their checksum (0x{version >> 40:06x} stored, "
                f"0x{found:06x} computed): write anew, or is checksum= not the writer's function?"
            )
        self.checked = version
        return 0

    cdef int copy(self, ReadResult result) except -1:
        cdef uint64_t version
        cdef Mapping mapping
        cdef bytes data
        cdef char *target
        cdef char *source
        cdef Py_ssize_t size
        if self.is_private:
            return LeftRight.copy(self, result)
        while True:
            self.check_lost()
            version = load_seq_cst_u64(self.word)       # pairs with the store that publishes
            if version == 0:
                self.not_initialised()
            size = size_of(version)
            mapping = self.map_crate(version, <int>(version & 1))
            data = PyBytes_FromStringAndSize(NULL, size)
            target = PyBytes_AS_STRING(data)
            source = mapping.base
            with nogil:
                memcpy(target, source, size)
            fence_acquire()
            if load_seq_cst_u64(self.word) != version:
                PyErr_CheckSignals()
                continue
            if mapping.lost:
                self.poison(mapping)
            if self.verify:
                self.verify_crate(target, version)
            return self.hold(result, data, version)

    def _slow_version(self):
        return self.copied if self.is_private else load_seq_cst_u64(self.word)

    # -- writing --

    cdef object write_locked(self, char *source, Py_ssize_t size, object immutable, double grace):
        cdef uint64_t version, checksum
        cdef int index
        cdef Mapping target
        cdef WriteResult result
        if <uint64_t>size >= MMAPDS_LIMIT:
            raise ValueError(f"{size} bytes are too many: a value has less than 2**39 (549 GB)")
        if self.is_private:
            return Writer.write_locked(self, source, size, immutable, grace)
        result = WriteResult.__new__(WriteResult)
        result.size = size
        version = load_seq_cst_u64(self.word)
        index = 0 if version == 0 else 1 - <int>(version & 1)
        result.reset = self.wait_for_readers(index, grace)
        self.check_writer()
        target = self.target1 if index else self.target0
        if target is None or target.size < size:
            target = self._data.target(index, size, False)
            self.aim(index, target)
        checksum = self.store(target, target.base, source, size, immutable)
        if self.checksum is not None:
            checksum = self.checksum(PyMemoryView_FromMemory(target.base, size, 0x100)) & 0xffffff
        version = (<uint64_t>index) | (<uint64_t>size << 1) | (checksum << 40)
        if version == 0:
            version = 1ULL << 40        # an empty value with checksum 0 would read as "nothing written"
        self.check_writer()             # a signal handler may have forked: the child goes on here, and is not the writer
        store_seq_cst_u64(<uint64_t *>self.word, version)       # pairs with mmapsync_pin: the data is seen
        self.check_lost()
        return result

    cdef int wait_for_readers(self, int index, double grace) except -1:
        """Whether the count of readers had to be reset."""
        cdef int64_t limit = deadline(grace), pause = 5000
        cdef uint32_t count
        while True:
            count = load_seq_cst_u32(&self.state.readers[index])        # pairs with mmapsync_pin and mmapsync_unpin
            if count == 0:
                break
            # Only the count that was seen: one that has just changed is somebody who is alive.
            if kernel_clock_ns() >= limit and compare_exchange_seq_cst_u32(&self.state.readers[index], &count, 0):
                return 1
            with nogil:
                kernel_sleep_ns(pause)
            pause = min(2 * pause, 1000000)
            PyErr_CheckSignals()
        return 0
