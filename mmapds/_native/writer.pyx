# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""The writing half of a Synchronizer handle.

One handle at a time is the writer: it holds the kernel's lock on byte 1 until it is closed or dies. A write fills the
inactive data file and publishes; the protocol, and why it is right, is in leftright.h.

What remains if the writer dies
    before the publishing store of V: the old version; the inactive file is nobody's, whatever is in it.
    between rename and generation (a new inode had to be begun): the old version; the successor raises both generations.
    after the store: the new version; a sleeper notices within 100 ms if the wake did not come.

Durability ``power``, when a write returns: the data is synced before V is stored, and V before the call returns; an
inode is synced before its rename, the directory before V. A new writer, and one whose last flush failed, first makes
the active version durable, and only then touches the inactive file, which may be the last durable one. A flush that
fails sets the durability-failed word, so that nobody trusts what the kernel may have dropped, until a write has
succeeded from end to end.

In the process, one mutex serialises the threads of a handle; the GIL is released for large copies, syncs and waits.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.pythread cimport (
    NOWAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_get_thread_ident,
    PyThread_release_lock, WAIT_LOCK,
)
from libc.errno cimport ESTALE
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from mmapds._native.atomics cimport fence_seq_cst, fetch_add_seq_cst_u64, store_seq_cst_u64
from mmapds._native.kernel cimport (
    deadline, kernel_clock_ns, kernel_coarse_ns, kernel_fill, kernel_sleep_ns, raise_errno,
)
from mmapds._native.leftright cimport (
    LeftRight, MMAPDS_LIMIT, MMAPDS_PAGE, MMAPDS_SENTINEL, leftright_pinned, leftright_publish, leftright_reclaim,
    leftright_seal, leftright_sweep, mmapds_sync,
)
from mmapds._native.region cimport Mapping, redirty

from xxhash import xxh3_64_intdigest

from mmapds.errors import CorruptionError, DurabilityFailed, ForkedHandle


cdef extern from "<sys/mman.h>" nogil:
    int msync(void *base, size_t length, int flags)
    int MS_SYNC


cdef extern from "<errno.h>" nogil:
    int errno


cdef Py_ssize_t LARGE = 65536           # bytes from which a copy releases the GIL
cdef int64_t PROBE = 50000000           # ns between two looks whether a pinned reader still lives
cdef int SWEEP = 16                     # slots that are probed at each such look
cdef int64_t LOOK = 100000000           # ns between two looks whether the path is still ours
cdef enum:
    FREE = 0                            # nobody pins the file
    RECLAIMED = 1                       # nobody does any more: a dead reader's pin was taken back
    HELD = 2                            # a live reader holds on: begin a new inode


@cython.final
@cython.freelist(16)
cdef class WriteResult:
    """What a write did: `size` in bytes, and `reset`, whether a reader's claim was in the way: a dead one's was taken back
    now (and not before, as the writer does now and then by itself), or a live one's outlasted `grace`, and the value went
    to a new file. Unpacks as a pair."""

    def __iter__(self):
        yield self.size
        yield self.reset

    def __eq__(self, other):
        return isinstance(other, WriteResult) and tuple(self) == tuple(other)

    def __repr__(self):
        return f"WriteResult(size={self.size}, reset={self.reset})"


cdef class Writer(LeftRight):

    def __dealloc__(self):
        if self.mutex is not NULL and self.mutex_epoch == self.epoch[0]:
            PyThread_free_lock(self.mutex)

    # -- set up by Synchronizer --

    def _start_writing(self, int lock_fd):
        """We have the writer's lock. Our predecessor may have died between its rename and its new generation."""
        fetch_add_seq_cst_u64(&self.sync.records[0].generation, 1)
        fetch_add_seq_cst_u64(&self.sync.records[1].generation, 1)
        self.target0 = self.target1 = None
        memset(self.stuck, 0, sizeof(self.stuck))
        self.any_stuck[0] = self.any_stuck[1] = False
        self.lock_fd = lock_fd
        self.names = True               # our predecessor may have died before it synced the directory
        self.writing = self.epoch[0]

    def _stop_writing(self):
        self.writing = 0
        self.target0 = self.target1 = None

    def _pause_writing(self):
        """Ends the writing for now; what _resume_writing is to get."""
        self.writing = 0
        return (self.sync.sequence, self.sync.records[0].generation, self.sync.records[1].generation, self.lock_fd,
                self.epoch[0])

    def _resume_writing(self, paused, int lock_fd):
        """We have the writer's lock again. False if somebody else may have had it since (who raised the generations), or this
        is a fork's child: then all begins anew."""
        if paused != (self.sync.sequence, self.sync.records[0].generation, self.sync.records[1].generation, lock_fd,
                      self.epoch[0]):
            return False
        self.writing = self.epoch[0]
        return True

    @property
    def _is_writer(self):
        return self.writing == self.epoch[0]

    @property
    def _failed_word(self):
        return self.sync.header.failed

    def _set_failed(self, bint failed):
        store_seq_cst_u64(&self.sync.header.failed, failed)

    def _redirty(self, Mapping mapping not None, Py_ssize_t size):
        """After a flush that failed and left pages clean."""
        redirty(mapping.base, min(size, mapping.size))

    def _redirty_control(self):
        self._redirty(self.control, 2 * MMAPDS_PAGE)

    def _durable(self, Mapping mapping not None, Py_ssize_t size):
        self.durable(mapping, size)

    def _durable_control(self):
        self.durable(self.control, 2 * MMAPDS_PAGE)

    cdef int sync_range(self, Mapping mapping, Py_ssize_t size) except -1:
        """msync of the first `size` bytes, with the GIL released."""
        cdef int failed
        with nogil:
            failed = errno if msync(mapping.base, size, MS_SYNC) != 0 else 0
        if failed:
            raise_errno(failed, mapping.path)
        return 0

    def _close(self):
        """Waits for the thread that is writing, then ends the handle."""
        self.enter()
        try:
            self._stop_writing()
            LeftRight._close(self)
        finally:
            self.leave()

    cdef int enter(self) except -1:
        """The in-process mutex of the writing half; a fork's child has a new one."""
        cdef unsigned long thread = PyThread_get_thread_ident()
        if self.mutex is NULL or self.mutex_epoch != self.epoch[0]:
            self.mutex = PyThread_allocate_lock()
            if self.mutex is NULL:
                raise MemoryError
            self.mutex_epoch = self.epoch[0]
            self.mutex_owner = 0
        if self.mutex_owner == thread:
            raise RuntimeError("reentrant call: a signal handler cannot write or close what its own thread is writing")
        if not PyThread_acquire_lock(self.mutex, NOWAIT_LOCK):
            with nogil:
                PyThread_acquire_lock(self.mutex, WAIT_LOCK)
        self.mutex_owner = thread
        return 0

    cdef void leave(self) noexcept:
        if self.gives_up:
            self.gives_up = False
            self._let_go()
        self.mutex_owner = 0
        PyThread_release_lock(self.mutex)

    cdef int give_up(self) except -1:
        """Poisoned: the writer's place is given back, but not under a thread that is writing; then it does so as it
        leaves."""
        self.gives_up = True
        if self.mutex is NULL or self.mutex_epoch != self.epoch[0]:
            self.enter()
            self.leave()
        elif PyThread_acquire_lock(self.mutex, NOWAIT_LOCK):
            self.leave()
        return 0

    def write_bytes(self, data, double grace=1.0):
        """Publishes a bytes-like object as the next version; returns a :class:`WriteResult`.

        The first write makes this handle the writer until it is closed; `WriterBusy` names another one. Waits up to
        `grace` seconds for readers of the version before last; one that stays keeps what it holds, and the value goes
        to a new file. Threads of one handle are serialised. Killed at any point, readers see the old version or the new
        one. On any error (`OSError(ENOSPC)`, `MappingLost`, ...) nothing is published; only if the very last sync of
        durability "power" fails, the `DurabilityFailed` comes when readers may have seen the version.
        """
        cdef Py_buffer view
        if not grace >= 0:
            raise ValueError(f"grace {grace} is not a number of seconds")
        self.enter()
        try:
            self.check_open()
            if not self.is_private and self.writing != self.epoch[0]:
                self._become_writer()
            if not self.is_private and kernel_coarse_ns() - self.looked >= LOOK:
                self.look_around()
            if type(data) is bytes:
                return self.write_locked(PyBytes_AS_STRING(data), len(<bytes>data), data, grace)
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
            try:
                return self.write_locked(<char *>view.buf, view.len, None, grace)
            finally:
                PyBuffer_Release(&view)
        finally:
            try:
                if self.renewing:       # an exception between its creation and its installation
                    self.renewing = False
                    self._data.discard(self.renewed)
            except OSError:
                pass                    # what is left behind is discarded by the next writer; the first error counts
            finally:
                self.leave()

    cdef int look_around(self) except -1:
        """Every 100 ms of writing: are these still the files that the path names, and who has died?"""
        self._check_path()              # writing for nobody, into files that were replaced, should be noticed
        self.check_open()
        if self.sync is not NULL:
            self.swept = leftright_sweep(
                self.sync, self.swept, SWEEP, self.seat.number if self.mine_at_all() else -1, self.lock_fd)
        self.looked = kernel_coarse_ns()
        return 0

    cdef object write_locked(self, char *source, Py_ssize_t size, object immutable, double grace):
        cdef mmapds_sync *sync = self.sync
        cdef uint64_t sequence, hash
        cdef int index, room, slot
        cdef Mapping target
        cdef WriteResult result = WriteResult.__new__(WriteResult)
        result.size = size
        if <uint64_t>size >= MMAPDS_LIMIT:
            raise ValueError(f"{size} bytes are too many: a value has less than 2**39 (549 GB)")
        if self.is_private:
            if self.copied + 1 == 0:
                raise OverflowError("the sequence is at 2**64 - 1")
            self.current_copy = immutable if immutable is not None else PyBytes_FromStringAndSize(source, size)
            self.copied += 1
            return result
        if sync.header.failed:
            self._heal()
        sequence = sync.sequence + 1    # only the writer, which we are, changes it
        if sequence == 0:
            raise OverflowError("the sequence is at 2**64 - 1")
        index = <int>(sequence & 1)
        room = FREE
        slot = leftright_pinned(sync, index, 0)
        if slot >= 0:
            room = self.make_room(index, grace)
            result.reset = room != FREE
        elif self.any_stuck[index]:
            memset(self.stuck[index], 0, sizeof(self.stuck[index]))
            self.any_stuck[index] = False
        if slot == -2 or sync.sentinel != MMAPDS_SENTINEL:
            self.control.lost = 1       # cut in the middle of a page: no signal, but zeros for real counts
        if self.control.lost:           # the pins that were looked at, or V, may have been such zeros
            self.poison(self.control)
        target = self.target1 if index else self.target0
        if room == HELD or target is None or target.size - MMAPDS_PAGE - 8 < size:
            self.renewed = index
            self.renewing = room == HELD
            target = self.name(index, size, room == HELD)
            if room != HELD:
                # Perhaps somebody removed the file and this is another inode: whoever has a mapping of it maps anew.
                fetch_add_seq_cst_u64(&sync.records[index].generation, 1)
        self.check_writer()
        hash = self.store(target, target.base + MMAPDS_PAGE, source, size, immutable)
        if self._power:
            self.durable(target, MMAPDS_PAGE + size)
        if room == HELD:
            try:
                self.check_lost()
                self.check_writer()
                self.install(index)     # rename over data_<index>
                self.renewing = False
            except BaseException:
                target = None           # which inode has the name now is not known
                raise
            finally:
                # After the rename: pairs with switch(). Once too often does no harm.
                fetch_add_seq_cst_u64(&sync.records[index].generation, 1)
                self.aim(index, target)
        self.aim(index, target)
        if self._power and self.names:
            self._sync_names()
        self.check_writer()
        leftright_publish(sync, sequence, size, hash)
        if self._power:
            self.durable(self.control, 2 * MMAPDS_PAGE)
        if sync.header.failed:
            self._set_failed(False)
        if self.control.lost:
            self.poison(self.control)
        return result

    cdef uint64_t store(self, Mapping target, char *base, char *source, Py_ssize_t size, object immutable) except? 0:
        """Copies the value to where it belongs, and returns the hash of what is there: somebody may change a mutable
        source meanwhile."""
        cdef uint64_t hash
        cdef int failed
        fence_seq_cst()                 # pairs with the fence in LeftRight.copy: V before the first byte
        if size >= LARGE and target.fd >= 0:
            # Each sync write-protects the pages, and a copy through the mapping would take a fault at each of them.
            with nogil:
                failed = kernel_fill(target.fd, source, size, base - target.base)
            if failed == -ESTALE:
                target.lost = 1
                self.poison(target)
            if failed < 0:
                raise_errno(-failed, target.path)
            hash = xxh3_64_intdigest(PyMemoryView_FromMemory(source, size, 0x100))
            if hash != xxh3_64_intdigest(PyMemoryView_FromMemory(base, size, 0x100)):
                self.check_lost()
                raise CorruptionError(
                    f"{target.path}: what is in the file is not what was written there: did another thread change the data "
                    "while they were written, or somebody cut the file? Nothing was published."
                )
            self.check_lost()
            return hash
        if size >= LARGE:
            with nogil:
                memcpy(base, source, size)
        else:
            memcpy(base, source, size)
        hash = xxh3_64_intdigest(immutable if immutable is not None else PyMemoryView_FromMemory(base, size, 0x100))
        if self.sync is not NULL:
            self.check_whole(target)
        elif target.lost:
            self.poison(target)
        self.check_lost()
        return hash

    # Names: set while one may have been made or changed that no sync of the directory has covered, so also after an
    # exception in the middle. A version may not be published on a name that a power cut takes back.

    cdef Mapping name(self, int index, Py_ssize_t size, bint renew):
        cdef bint names = self.names
        cdef Mapping target
        self.names = True
        try:
            target = self._data.target(index, size, renew)
            target.seal = leftright_seal(target.base, target.size)
        except DurabilityFailed:
            self._set_failed(True)
            raise
        self.names = names              # what it made it has synced
        return target

    cdef int install(self, int index) except -1:
        cdef bint names = self.names
        self.names = True
        try:
            self._data.install(index)
        except DurabilityFailed:
            self._set_failed(True)
            raise
        self.names = names
        return 0

    def _names_synced(self):
        self.names = False

    @property
    def _names_pending(self):
        return self.names

    cdef int durable(self, Mapping mapping, Py_ssize_t size) except -1:
        try:
            self.sync_range(mapping, size)
        except OSError as error:
            self._set_failed(True)
            raise DurabilityFailed(
                f"{mapping.path}: the disk did not take what was written ({error.strerror}); nothing of this Synchronizer "
                "is trusted until a write() has succeeded. Check the disk, then write again."
            ) from error
        return 0

    cdef int check_writer(self) except -1:
        """A signal handler may have forked in the middle of a write: the child goes on here, and is not the writer."""
        if self.writing != self.epoch[0]:
            raise ForkedHandle("this process was forked while its parent was writing: the write is the parent's")
        return 0

    cdef void aim(self, int index, Mapping target) noexcept:
        if index:
            self.target1 = target
        else:
            self.target0 = target

    cdef bint mine_at_all(self) noexcept:
        return self.seat is not None and self.registered == self.epoch[0]

    cdef bint mine(self, int slot) noexcept:
        return self.mine_at_all() and slot == self.seat.number

    cdef int make_room(self, int index, double grace) except -1:
        """Waits for the pins of `index`: FREE, RECLAIMED or HELD. Grace is spent once per stuck pin, until its count is
        seen at 0."""
        cdef mmapds_sync *sync = self.sync
        cdef uint64_t *stuck = self.stuck[index]
        cdef uint64_t still[16]
        cdef int64_t limit = deadline(grace), probed = 0, now, pause = 5000
        cdef bint dead = False, waiting, any_live, look
        cdef int slot, word
        while True:
            now = kernel_clock_ns()
            look = now - probed >= PROBE
            if look:
                probed = now
            memset(still, 0, sizeof(still))
            waiting = any_live = False
            slot = leftright_pinned(sync, index, 0)
            while slot >= 0:
                # Never our own slot: our own lock would look free, and unlocking would drop it.
                if look and not self.mine(slot) and leftright_reclaim(sync, slot, self.lock_fd):
                    dead = True
                else:
                    any_live = True
                    still[slot // 64] |= <uint64_t>1 << (slot % 64)
                    if not stuck[slot // 64] >> (slot % 64) & 1:
                        waiting = True
                slot = leftright_pinned(sync, index, slot + 1)
            if slot == -2:
                self.control.lost = 1
                self.poison(self.control)
            for word in range(16):
                stuck[word] &= still[word]
            if not any_live:
                return RECLAIMED if dead else FREE
            if not waiting:
                return HELD
            if now >= limit:
                memcpy(stuck, still, sizeof(still))
                self.any_stuck[index] = True
                return HELD
            with nogil:
                kernel_sleep_ns(pause)
            pause = min(2 * pause, 1000000)
            PyErr_CheckSignals()
            self.check_writer()
            self.check_lost()           # another thread may have poisoned the handle: our slot is not ours any more
