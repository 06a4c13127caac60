# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""The names of the cells of a counters file, as one handle knows them.

A handle keeps the names in a dict. One word of the file tells that the dict is right; the names are read again when
that word has changed, and those that were added when a look-up fails. The transitions that change names, and why they
are right, are in counters.h; here is what they need from Python, with the GIL held but for locks and syncs.

In a signal handler, which Python runs between two bytecodes, every call works: nothing here is half done between two.
"""

cimport cython
from cpython.dict cimport PyDict_GetItemWithError
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_AsSsize_t
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.errno cimport EDQUOT, EFBIG, ENOMEM, ENOSPC
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mmapds._native.atomics cimport (
    compare_exchange_seq_cst_u64, fetch_add_seq_cst_u64, load_relaxed_u64, load_seq_cst_u64, store_relaxed_u64,
)
from mmapds._native.counter cimport shown, unsynced
from mmapds._native.extents cimport (
    EMMAP_CELLS, COUNTERS_CONTROL, COUNTERS_DONE, COUNTERS_FOUND, COUNTERS_FULL, COUNTERS_GONE, COUNTERS_LEAST, COUNTERS_STALE,
    MMAPDS_EXTENTS, MMAPDS_LIVE, MMAPDS_NAME, MMAPDS_PAGE, MMAPDS_SENTINEL, RESERVE, Extents, counters_allocate,
    counters_cell, counters_create, counters_current, counters_enter, counters_entry, counters_extend,
    counters_give_up, counters_intact, counters_names, counters_names_size, counters_recover, counters_recovered,
    counters_remove, counters_view, mmapds_entry, mmapds_extent, plan,
)
from mmapds._native.kernel cimport LockFile, epoch, kernel_size, raise_errno
from mmapds._native.region cimport Mapping, redirty

import os
from operator import index as index_of


cdef extern from "kernel.h" nogil:
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS
    int MS_SYNC
    int msync(void *base, size_t length, int flags)
    int fcntl(int fd, int command, ...)
    int F_DUPFD_CLOEXEC
    int close(int fd)
    ssize_t pwrite(int fd, const void *data, size_t length, int64_t offset)
    int errno


cdef str exact(key):
    return key if type(key) is str else str.__str__(key)


cdef bytes encoded(str name):
    cdef bytes text
    try:
        text = name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name {name!r} has no UTF-8: it contains half of a surrogate pair") from None
    if not 1 <= len(text) <= MMAPDS_NAME:
        shown = f"{name[:40]!r}..." if len(name) > 40 else repr(name)
        raise ValueError(f"the name {shown} has {len(text)} bytes in UTF-8; a name has 1 to {MMAPDS_NAME}")
    return text


cdef int synced(char *start, Py_ssize_t size) noexcept nogil:
    return errno if msync(start, size, MS_SYNC) != 0 else 0


@cython.binding(False)
@cython.always_allow_keywords(False)
cdef class Cells(Extents):

    def _map(self, int fd, Py_ssize_t capacity, bint writable, bint lenient):
        """Maps the file. `lenient`: it comes from another boot, so what is damaged in it is left out."""
        cdef counters_view view
        cdef Mapping mapping
        cdef int64_t size = kernel_size(fd)
        if size < COUNTERS_CONTROL:
            self.damaged(f"it has {size} bytes, and the control page ends at {COUNTERS_CONTROL}")
        memset(&view, 0, sizeof(view))
        view.capacity = capacity
        view.stride = 64 if self.padded else 8
        view.cells_room = view.names_room = max(RESERVE, min(2 * size, <int64_t>1 << 46))
        self.lenient = lenient
        mapping = self.fill(&view, fd, writable)
        self.enter(&view, mapping, writable)
        self.catch_up()

    def _copy(self):
        """From here on the counters are memory of this process: a point in time of each."""
        cdef counters_view view
        cdef Mapping source = self.opened()
        cdef Mapping mapping
        cdef uint64_t i
        cdef uint64_t *to
        cdef uint64_t *cells
        cdef int tries = 0
        if self.layout == "emmap":
            mapping = Mapping(-1, source.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, self.path)
            view = self.known
            view.cells = mapping.base + EMMAP_CELLS
            view.lost = &mapping.lost
            with nogil:
                for i in range(view.capacity):
                    (<uint64_t *>view.cells)[i] = load_relaxed_u64(<uint64_t *>self.known.cells + i)
            source.check()
            self.copied = True
            self.enter(&view, mapping, True)
            return
        while True:
            self.refresh()
            memset(&view, 0, sizeof(view))
            view.capacity = self.known.capacity
            view.stride = self.known.stride
            view.cells_room = max(RESERVE, 2 * self.known.cells_size)
            view.names_room = max(RESERVE, 2 * self.known.names_size)
            mapping = self.addresses(&view, True)
            mapping.place(0, -1, 0, COUNTERS_CONTROL, MAP_PRIVATE | MAP_ANONYMOUS)
            memcpy(view.control, self.known.control, COUNTERS_CONTROL)
            memset(&view.control.extents[self.known.extents], 0,
                   (MMAPDS_EXTENTS - self.known.extents) * sizeof(mmapds_extent))
            self.copied = True
            try:
                if self.attach(&view, mapping, -1):
                    raise OSError(ENOMEM, "not enough addresses for a private copy", self.path)
            finally:
                self.copied = False
            if (view.extents != self.known.extents or view.room != self.known.room
                    or view.cells_size != self.known.cells_size):
                self.damaged("the records of its extents change")       # behind our back, since they were mapped
            to = <uint64_t *>view.cells
            cells = <uint64_t *>self.known.cells
            with nogil:
                for i in range(view.cells_size // 8):
                    store_relaxed_u64(to + i, load_relaxed_u64(cells + i))
            for i in range(view.extents):
                memcpy(view.entries[i], self.known.entries[i], counters_names_size(&view, i))
            source.check()
            tries += 1
            if (counters_current(&self.known) and not self.known.control.removing | self.known.control.returning
                    or tries == 10):
                break                   # else a name was removed meanwhile, and there may be a 0 that never was
        self.copied = True
        self.enter(&view, mapping, True)
        self.known.seen = view.control.changes - 1
        if self.lenient:
            self._recover()
            self.lenient = False
        self.catch_up()

    cdef int refresh(self) except -1:
        """Knows all names that are published now."""
        self.opened().check()
        if not counters_current(&self.known) or self.lenient or counters_names(&self.known) != <int64_t>self.known.names:
            self.catch_up()
        return 0

    cdef int catch_up(self) except -1:
        cdef uint64_t changes
        cdef int64_t names
        cdef int fd = -1
        self.opened()
        if self.layout == "emmap":
            return 0
        if self.lenient and not self.copied and self._settled():
            self.lenient = False
            self.known.names = 0
            self.known.seen = self.known.control.changes - 1
        if not self.copied:
            file = self._backing        # its descriptor stays open as long as we have it
            fd = file.descriptor()
        numbers, removed = {}, {}       # now: who makes a dict may run the collector, and so anything
        while True:                     # no Python code from here on, but in other threads while addresses are made
            self.opened()
            if self.attach(&self.known, self.mapping, fd):
                self.move(fd)
                continue
            changes = load_seq_cst_u64(&self.known.control.changes)   # before the names: see counters.h
            names = counters_names(&self.known)
            if (names <= <int64_t>self.known.room or self.lenient or self.known.extents == MMAPDS_EXTENTS
                    or not self.known.control.extents[self.known.extents].check):
                break
        if self.lenient:                # the count may be older than the entries, or newer
            self.check_durable()
            names = self.known.room
        elif names < 0 or names > <int64_t>self.known.room or names < <int64_t>self.known.names:
            self.damaged(f"the count of names is {names}, with {self.known.names} read and room for {self.known.room}")
        if changes != self.known.seen:
            names = self.read_names(numbers, removed, 0, names)
            self.numbers, self.removed = numbers, removed
        else:
            names = self.read_names(self.numbers, self.removed, self.known.names, names)
        self.known.names = names
        self.known.seen = changes
        self.valid = self.known.capacity + names
        self.mapping.check()
        return 0

    cdef int64_t read_names(self, dict numbers, dict removed, uint64_t start, uint64_t stop) except -1:
        """Returns how many there are, then: `stop`, or fewer if `lenient`."""
        cdef mmapds_entry entry
        cdef uint64_t at
        cdef int64_t found = start
        for at in range(start, stop):
            entry = counters_entry(&self.known, at)[0]   # once: what is checked is what is used
            if not counters_intact(&self.known, &entry, at):
                if self.lenient:
                    continue
                self.damaged(f"name {at} is not what was written")
            found = at + 1
            if entry.length == 0:
                continue                # given up by a recovery
            try:
                name = PyUnicode_DecodeUTF8(<char *>entry.name, entry.length, NULL)
            except UnicodeDecodeError:
                self.damaged(f"name {at} is not UTF-8")
            if entry.state == MMAPDS_LIVE:
                numbers[name] = at
            else:
                removed[name] = at
        return found

    cdef uint64_t *search(self, key) except? NULL:
        cdef PyObject *number
        cdef int64_t index = -1
        cdef int beyond = 0
        if isinstance(key, str):
            key = exact(key)
            self.refresh()
            number = PyDict_GetItemWithError(self.numbers, key)
            return counters_cell(&self.known, PyLong_AsSsize_t(<object>number)) if number is not NULL else NULL
        if isinstance(key, bool) or not hasattr(key, "__index__"):
            raise TypeError(f"a key is a name (str) or an index (int), not {type(key).__name__} {key!r}")
        position = index_of(key)
        index = PyLong_AsLongLongAndOverflow(position, &beyond)
        self.refresh()
        if beyond or not 0 <= index < self.valid:
            named = "" if self.layout == "emmap" else f", of which those from {self.known.capacity} on have names"
            raise IndexError(
                f"{self.path} has no counter {shown(position)}: its indices go from 0 to {self.valid - 1}{named}"
            )
        return <uint64_t *>(self.known.cells + index * self.known.stride)

    cdef LockFile hold(self, counters_view *view):
        """The kernel's lock under which names change, on a descriptor of its own: threads of one handle, and a signal
        handler's calls, exclude each other too. None for a private copy, which needs the GIL only.

        Also what `view` needs to sync: the file as this handle has opened it, which hears of every failure, on a
        descriptor that no other thread closes.
        """
        cdef LockFile lock
        if self.copied:
            self.opened()
            return None
        if self.power and load_seq_cst_u64(self.failed_word()):
            raise unsynced(self.opened(), "an earlier sync failed")
        while True:
            lock = self._lock()
            try:
                lock.lock(0)
            except ValueError:
                if lock.epoch == epoch():
                    raise
                continue                # a signal handler has forked, and this is the child
            if self.mapping is None:
                lock._close()
            self.opened()
            if self.power:
                view.fd = fcntl(self._file.fd, F_DUPFD_CLOEXEC, 0)
                if view.fd < 0:
                    lock._close()
                    raise_errno(errno, self.path)
            return lock

    cdef void release(self, counters_view *view, LockFile lock) noexcept:
        lock._close()
        if view.fd >= 0:
            close(view.fd)
        view.fd = -1

    cdef int create(self, str name, const uint64_t *initial, int how) except -1:
        """Makes a name, or lets it return: DONE, FOUND or GONE."""
        cdef counters_view view
        cdef Mapping mapping
        cdef LockFile lock
        cdef bytes text
        cdef const uint8_t *start
        cdef Py_ssize_t length
        cdef int64_t hint
        cdef uint64_t number = 0
        cdef int status
        if not self.writable:
            self.refuse()
        if self.layout == "emmap":
            raise ValueError(f"{self.path}: layout='emmap' has no names: use indices from 0 to {self.valid - 1}")
        text = encoded(name)
        start = text
        length = len(text)
        while True:
            self.refresh()
            if name in self.numbers:
                return COUNTERS_FOUND
            hint = self.removed.get(name, -1)
            mapping = self.mapping      # lives until we are done, whatever other threads do
            view = self.known           # as of this look-up: other threads may know more when we have the lock
            lock = self.hold(&view)
            if lock is None:
                status = counters_create(&view, start, length, hint, initial, how, &number)
            else:
                with nogil:
                    status = counters_create(&view, start, length, hint, initial, how, &number)
                self.release(&view, lock)
            if status == COUNTERS_FULL:
                self.extend(max(COUNTERS_LEAST, view.room // 2))
                self.catch_up()
            elif status == COUNTERS_DONE or status == COUNTERS_GONE:
                return status
            elif status == COUNTERS_STALE or status == COUNTERS_FOUND:
                self.learn(&view, status)
            else:
                self.fail(mapping, status)

    cdef bint take(self, str name, uint64_t *value) except -1:
        """Removes a name and takes its value; False if there is none."""
        cdef counters_view view
        cdef Mapping mapping
        cdef LockFile lock
        cdef uint64_t number
        cdef int status
        if not self.writable:
            self.refuse()
        while True:
            self.refresh()
            if name not in self.numbers:
                return False
            number = self.numbers[name]
            mapping = self.mapping
            view = self.known
            lock = self.hold(&view)
            if lock is None:
                status = counters_remove(&view, number, value)
            else:
                with nogil:
                    status = counters_remove(&view, number, value)
                self.release(&view, lock)
            if status == COUNTERS_DONE:
                # `changes` is one more than it was, by us: unless others are at work no name must be read again.
                if self.known.seen == view.seen and name in self.numbers:
                    self.removed[name] = self.numbers.pop(name)
                    self.known.seen += 1
                return True
            if status != COUNTERS_STALE and status != COUNTERS_GONE:
                self.fail(mapping, status)
            self.learn(&view, status)

    cdef int learn(self, const counters_view *view, int status) except -1:
        """Looks again, after somebody was faster."""
        self.catch_up()
        if status != COUNTERS_STALE and self.known.seen == view.seen and self.known.names == view.names:
            self.damaged("the state of a name has changed, and the count of changes has not")
        return 0

    cdef int fail(self, Mapping mapping, int status) except -1:
        mapping.check()
        if status < 0:
            raise unsynced(mapping, os.strerror(-status))
        self.damaged("names, extents and their counts contradict each other")

    cdef int extend(self, Py_ssize_t more) except -1:
        """Makes room for `more` names, or for as many as the disk has."""
        cdef counters_view view
        cdef Mapping mapping
        cdef LockFile lock
        cdef Py_ssize_t cells, names, least
        cdef int64_t found
        cdef uint64_t seal = MMAPDS_SENTINEL
        cdef int status, failed = 0
        if self.known.extents == MMAPDS_EXTENTS or self.known.room + more > UINT32_MAX:
            raise OSError(EFBIG, f"{self.known.room} names are as many as this file can have", self.path)
        mapping = self.mapping
        view = self.known
        lock = self.hold(&view)
        plan(view.capacity, view.stride, view.room, view.cells_size, more, &cells, &names)
        if lock is None:
            counters_extend(view.control, view.extents, cells, names)
        else:
            with nogil:
                status = counters_enter(&view, &found)
                if status == COUNTERS_DONE:
                    failed = counters_allocate(lock.fd, view.end, view.end + cells + names)
                    if failed == 0 and pwrite(lock.fd, &seal, 8, view.end + cells + names - 8) != 8:
                        failed = -errno
                    if failed == 0:
                        counters_extend(view.control, view.extents, cells, names)
            self.release(&view, lock)
        mapping.check()
        # Records are few: the second half of them is for extents that make the room larger by a part of it.
        least = 1 if view.extents < MMAPDS_EXTENTS // 2 else max(1, <Py_ssize_t>view.room // 16)
        if failed in (-ENOSPC, -EDQUOT, -EFBIG) and more > least:
            self.extend(max(least, more // 2))
        elif failed < 0:
            raise_errno(-failed, self.path)
        return 0                        # who called looks again

    def _recover(self):
        """After another boot, with nobody alive in the file: what verifies stays, what does not is given up."""
        cdef Mapping mapping = self.opened()
        cdef uint64_t at
        cdef mmapds_entry *entry
        found = {}
        self.check_durable()
        cdef int64_t names = counters_recover(&self.known)
        for at in range(names):
            entry = counters_entry(&self.known, at)
            if entry.length:
                name = (<char *>entry.name)[:entry.length]
                if name in found:       # the entry that was written over it did not reach the disk
                    counters_give_up(&self.known, found[name])
                found[name] = at
        counters_recovered(&self.known, names)
        mapping.check()

    cdef int check_durable(self) except -1:
        """Of a file from another boot, durability "power": whoever counted a name had synced it."""
        cdef int64_t names = counters_names(&self.known)
        cdef int64_t at
        if self.durability != "power":
            return 0
        if names < 0 or names > <int64_t>self.known.room:
            self.damaged(f"the count of names is {names}, and there is room for {self.known.room}: was a copy cut?")
        for at in range(names):
            if not counters_intact(&self.known, counters_entry(&self.known, at), at):
                self.damaged(f"name {at} is not what was written")
        return 0

    def _flush(self):
        """Writes all to the disk; if a sync has failed before, makes all pages dirty first."""
        self.catch_up()                 # extents that others have added
        cdef Mapping mapping = self.opened()
        cdef counters_view view = self.known
        cdef bint ours = self.layout != "emmap"
        cdef uint64_t *word = self.failed_word()
        cdef uint64_t failed = load_seq_cst_u64(word)
        cdef int error = 0
        cdef uint32_t i
        mapping.check()
        if failed:
            redirty(mapping.base, COUNTERS_CONTROL if ours else mapping.size)
            redirty(view.cells, view.cells_size)
            for i in range(view.extents):
                redirty(<char *>view.entries[i], counters_names_size(&view, i))
        mapping.borrowed += 1
        with nogil:
            if not ours:
                error = synced(mapping.base, mapping.size)
            else:
                error = synced(mapping.base, COUNTERS_CONTROL) or synced(view.cells, view.cells_size)
                for i in range(view.extents):
                    error = error or synced(<char *>view.entries[i], counters_names_size(&view, i))
        mapping.borrowed -= 1
        mapping.check()
        if error:
            fetch_add_seq_cst_u64(word, 1)
            raise unsynced(mapping, os.strerror(error))
        if failed:                      # unless one failed meanwhile
            compare_exchange_seq_cst_u64(word, &failed, 0)
