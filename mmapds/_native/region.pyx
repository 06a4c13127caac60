# cython: language_level=3, boundscheck=False, wraparound=False
"""Mapped memory as Python objects.

A :class:`Mapping` owns one ``mmap`` range and nothing else. Whoever can still touch the range holds a reference to it
(an exported buffer through the buffer protocol, an atomic, a reader's pin), so ``munmap`` happens when the last of them
is gone and there is never a dangling pointer. ``close()`` and ``resize()`` only let go of a reference. CPython's own
``mmap`` refuses to close while a buffer is exported; a structure whose data moves under its readers cannot.

Large copies run with the GIL released. A copy of less than 64 KiB keeps it: a page fault that has to read the disk then
stops every thread of the process, which is why ``populate`` exists.

An access to a page that is gone does not fail; the SIGBUS handler (process.h) puts zeros there and leaves a mark. So
each operation looks at the mark before it starts, because a lost mapping is of no use any more, and when it is done.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.number cimport PyNumber_AsSsize_t
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EEXIST, EFAULT, EINVAL
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memmove, memset

from mmapds._native.atomics cimport (
    compare_exchange_seq_cst_u64, fetch_or_seq_cst_u64, load_relaxed_u64, load_seq_cst_u64,
)
from mmapds._native.kernel cimport (
    MADV_POPULATE_READ, MADV_POPULATE_WRITE, guard_add, guard_remove, guard_resize, kernel_copy_data, kernel_failed,
    kernel_lost, kernel_map, kernel_page_size, kernel_resident, raise_errno,
)
from mmapds.errors import Closed, MappingLost


cdef extern from "kernel.h" nogil:
    int PROT_NONE, PROT_READ, PROT_WRITE
    int MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_POPULATE, MAP_NORESERVE
    int MAP_SHARED_VALIDATE, MAP_SYNC
    int MS_SYNC
    int munmap(void *base, size_t length)
    int msync(void *base, size_t length, int flags)
    int madvise(void *base, size_t length, int advice)
    int mlock(void *base, size_t length)
    void *mremap(void *base, size_t old, size_t new, int flags, ...)
    int MREMAP_MAYMOVE, MREMAP_FIXED
    int fcntl(int fd, int command, ...)
    int close(int fd)
    int F_DUPFD_CLOEXEC
    int errno


cdef uint64_t NO_SEAL = MMAPDS_SENTINEL  # of mappings that have none of their own
cdef Py_ssize_t LARGE = 65536          # bytes from which a copy releases the GIL
cdef Py_ssize_t PAGE = kernel_page_size()


cdef inline Py_ssize_t round_up(Py_ssize_t value, Py_ssize_t unit) noexcept nogil:
    return (value + unit - 1) & -unit


cdef void redirty(char *start, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t at = 0
    cdef uint64_t found
    while at < size:                    # not by adding 0: compilers may make a mere fence of that
        found = load_seq_cst_u64(<uint64_t *>(start + at))
        while not compare_exchange_seq_cst_u64(<uint64_t *>(start + at), &found, found):
            pass
        at += MMAPDS_PAGE


@cython.final
@cython.no_gc                           # refers to a path only; those who refer to it are collected in any order
cdef class Mapping:
    """`size` bytes of `fd` from the start of the file (or, with fd -1, of nothing).

    With `reserve`, addresses only, which nobody may touch before `place` has put something there.
    """

    def __cinit__(self, int fd, Py_ssize_t size, int protection, int flags, path=None, Py_ssize_t page=4096,
                  uintptr_t address=0, bint reserve=False):
        self.guard = NULL
        self.seal = &NO_SEAL
        self.fd = -1
        self.base = NULL
        page = max(page, PAGE)
        if size <= 0:
            raise ValueError(f"cannot map {size} bytes: a mapping has at least one byte")
        if size > (<Py_ssize_t>1 << 62):
            raise ValueError(f"cannot map {size} bytes: there are not as many addresses")
        cdef Py_ssize_t length = round_up(size, page)
        cdef void *mapped
        with nogil:
            mapped = kernel_map(<void *>address, length, PROT_NONE if reserve else protection, flags, fd, 0)
        cdef int failed = kernel_failed(mapped)
        if failed:
            raise_errno(failed, path)
        self.base = <char *>mapped
        self.size = size
        self.length = self.copied = length
        self.page = page
        self.path = path
        self.writable = (protection & PROT_WRITE) != 0
        if flags & MAP_FIXED_NOREPLACE and <uintptr_t>mapped != address:
            raise_errno(EEXIST, path)   # a kernel before 4.17 takes the address as a hint
        self.guard = guard_add(mapped, length, page, protection, &self.lost)

    def __dealloc__(self):
        if self.guard is not NULL:
            guard_remove(self.guard)
        if self.base is not NULL:
            with nogil:
                munmap(self.base, self.length)
        if self.fd >= 0:
            close(self.fd)

    def keep(self, int fd):
        """Keeps a duplicate of the file's descriptor, for as long as the mapping lives."""
        cdef int kept = fcntl(fd, F_DUPFD_CLOEXEC, 0)
        if kept < 0:
            raise_errno(errno, self.path)
        self.fd = kept

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.base, self.size, not self.writable, flags)
        self.borrowed += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.borrowed -= 1

    def __len__(self):
        return self.size

    @property
    def borrows(self):
        """How many buffers, atomics, locks and calls in other threads use it now."""
        return self.borrowed

    @property
    def address(self):
        return <uintptr_t>self.base

    @property
    def is_lost(self):
        """True once a page had to be replaced by zeros: the file was truncated, or the disk failed or was full."""
        return kernel_lost(&self.lost) != 0

    cdef int check(self) except -1:
        if kernel_lost(&self.lost) or load_relaxed_u64(self.seal) != MMAPDS_SENTINEL:
            self.lost = 1               # a file that was cut in the middle of a page raises no SIGBUS
            raise MappingLost(
                f"{self.path or 'a mapping'}: part of the file is gone from under its mapping (truncated by somebody, "
                "or the disk is full or failing); what was read there is zeros. Close this handle, look at the file.",
                path=self.path,
            )
        return 0

    def ensure(self):
        """Raises MappingLost if it is lost."""
        self.check()

    cdef int place(self, Py_ssize_t at, int fd, Py_ssize_t offset, Py_ssize_t length, int flags) except -1:
        """Puts `length` bytes of the file from `offset` (fd -1: zeros) at byte `at` of what was reserved. Keeps the GIL."""
        cdef int protection = PROT_READ | (PROT_WRITE if self.writable else 0)
        cdef void *mapped = kernel_map(self.base + at, length, protection, flags | MAP_FIXED, fd, offset)
        cdef int failed = kernel_failed(mapped)
        if failed:
            raise_errno(failed, self.path)
        return 0

    def grow_in_place(self, int fd, Py_ssize_t size, int flags, bint locked=False):
        """Maps the file's bytes (fd -1: zeros) up to `size` behind what is mapped; False if the addresses are taken.

        `locked`: the new ones are to stay in memory; OSError, with nothing changed, if they cannot.
        """
        if size <= self.size:
            return True
        if size > (<Py_ssize_t>1 << 62):
            return False
        cdef Py_ssize_t length = round_up(size, self.page)
        cdef Py_ssize_t start = self.length
        cdef Py_ssize_t more = length - start
        cdef int failed, protection = PROT_READ | (PROT_WRITE if self.writable else 0)
        cdef char *end = self.base + start
        cdef void *mapped
        if more > 0:
            mapped = kernel_map(end, more, protection, flags | MAP_FIXED_NOREPLACE, fd, start if fd >= 0 else 0)
            if kernel_failed(mapped):
                return False
            if mapped != end:           # a kernel before 4.17 takes the address as a hint
                munmap(mapped, more)
                return False
            if locked:
                with nogil:
                    failed = errno if mlock(end, more) != 0 else 0
                if failed:
                    munmap(end, more)
                    raise_errno(failed, self.path)
            self.length = self.copied = length
            guard_resize(self.guard, length)
        if fd < 0:                      # the file may be longer than what was mapped of it
            memset(self.base + self.size, 0, min(size, start) - self.size)
        self.size = size
        return True

    def detach(self, int fd, Py_ssize_t size):
        """Before the file shrinks to `size`: if somebody looks at the mapping, pages wholly behind the new end become
        private copies, so that views keep what they saw and do not fault. Returns the range, or None. The page with the
        new end in it stays shared; the kernel zeroes its rest."""
        cdef Py_ssize_t start = round_up(size, self.page)
        cdef Py_ssize_t tail = self.copied - start
        cdef void *copy
        cdef void *moved
        cdef int failed
        if tail <= 0 or not self.borrowed:
            return None
        copy = kernel_map(NULL, tail, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        failed = kernel_failed(copy)
        if failed:
            raise_errno(failed, self.path)
        self.borrowed += 1
        with nogil:
            kernel_copy_data(<char *>copy, self.base + start, fd, start, start + tail)
            moved = mremap(copy, tail, tail, MREMAP_MAYMOVE | MREMAP_FIXED, self.base + start)
            failed = errno if moved != self.base + start else 0
            if failed:
                munmap(copy, tail)
        self.borrowed -= 1
        if failed:
            raise_errno(failed, self.path)
        self.copied = start
        return start, start + tail

    def attach(self, int fd, int flags, Py_ssize_t start, Py_ssize_t end):
        """Undoes detach(): the file is as it was."""
        kernel_map(self.base + start, end - start, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, start)
        self.copied = end

    def trim(self, Py_ssize_t size):
        """Forgets what lies behind `size`. For private mappings that nobody looks at."""
        cdef Py_ssize_t start = round_up(size, self.page)
        cdef Py_ssize_t tail = self.length - start
        if self.borrowed:
            raise BufferError("the mapping is in use")
        if tail > 0:
            guard_resize(self.guard, start)
            if munmap(self.base + start, tail) != 0:
                guard_resize(self.guard, self.length)
                raise_errno(errno, self.path)
            self.length = self.copied = start
        self.size = size

    cdef int populate(self, char *start, Py_ssize_t size, bint write) except -1:
        """Faults pages in, with the GIL released. `start` is at the start of one."""
        cdef Py_ssize_t i = 0
        cdef int failed
        self.borrowed += 1
        with nogil:
            failed = errno if madvise(start, size, MADV_POPULATE_WRITE if write else MADV_POPULATE_READ) != 0 else 0
            if failed == EINVAL or failed == EFAULT:    # before Linux 5.14; pages are gone: the touch leaves the mark
                failed = 0
                while i < size and not kernel_lost(&self.lost):
                    if write:
                        fetch_or_seq_cst_u64(<uint64_t *>(start + i), 0)
                    else:
                        load_seq_cst_u64(<uint64_t *>(start + i))
                    i += PAGE
        self.borrowed -= 1
        self.check()
        if failed:
            raise_errno(failed, self.path)
        return 0

    def lock_memory(self):
        cdef int failed
        self.borrowed += 1
        with nogil:
            failed = errno if mlock(self.base, self.length) != 0 else 0
        self.borrowed -= 1
        if failed:
            raise_errno(failed, self.path)


@cython.auto_pickle(False)
cdef class RegionCore:

    cdef int use(self, Mapping mapping) except -1:
        # The old one lives until the change is done: unmapping lets go of the GIL.
        old = self.mapping
        Py_INCREF(old)
        self.mapping = mapping
        Py_DECREF(old)
        return 0

    def _use(self, Mapping mapping, bint shared):
        self.shared = shared
        self.use(mapping)

    @property
    def _mapping(self):
        return self.opened()

    cdef Mapping opened(self):
        if self.mapping is None:
            raise Closed("this region is closed")
        return self.mapping

    cdef int span(self, Py_ssize_t offset, object length, Py_ssize_t unit, char **start, Py_ssize_t *size) except -1:
        """Checks a range; widens it downwards to whole units."""
        cdef Mapping mapping = self.opened()
        mapping.check()
        cdef Py_ssize_t bytes_ = mapping.size - offset if length is None else length
        if offset < 0 or bytes_ < 0 or offset > mapping.size or bytes_ > mapping.size - offset:
            raise ValueError(f"offset {offset} and length {bytes_} are not within the region's {mapping.size} bytes")
        cdef Py_ssize_t step = offset & (unit - 1)
        start[0] = mapping.base + offset - step
        size[0] = bytes_ + step if bytes_ else 0
        return 0

    @property
    def closed(self):
        """True after close()."""
        return self.mapping is None

    def __len__(self):
        if self.mapping is None:
            self.opened()
        return self.mapping.size

    def __getbuffer__(self, Py_buffer *view, int flags):
        # The view's owner is the Mapping, not this object: it stays valid across close() and resize().
        self.opened().check()
        PyObject_GetBuffer(self.mapping, view, flags)

    def __releasebuffer__(self, Py_buffer *view):
        pass    # that there is one makes numpy hold a memoryview, and so the mapping, instead of this object

    def pread(self, Py_ssize_t n, Py_ssize_t offset):
        """Up to n bytes from offset, as `os.pread`: fewer at the end, b"" behind it."""
        cdef Mapping mapping = self.mapping
        if mapping is None:
            self.opened()
        if offset < 0 or n < 0:
            raise ValueError(f"pread of {n} bytes at {offset}: neither may be negative")
        if offset >= mapping.size:
            n = 0
            offset = 0
        elif n > mapping.size - offset:
            n = mapping.size - offset
        cdef bytes data = PyBytes_FromStringAndSize(NULL, n)
        cdef char *target = PyBytes_AS_STRING(data)
        cdef char *source = mapping.base + offset
        if n >= LARGE:
            mapping.borrowed += 1
            with nogil:
                memcpy(target, source, n)
            mapping.borrowed -= 1
        else:
            memcpy(target, source, n)
        if kernel_lost(&mapping.lost):
            mapping.check()
        return data

    def pwrite(self, data, Py_ssize_t offset):
        """Writes all of a bytes-like object at offset, and returns its length. A region does not grow by writing: past
        its end this raises ValueError and writes nothing."""
        cdef Py_buffer view
        if type(data) is bytes:
            self.copy_in(PyBytes_AS_STRING(data), len(<bytes>data), offset)
            return len(<bytes>data)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.copy_in(<char *>view.buf, view.len, offset)
            return view.len
        finally:
            PyBuffer_Release(&view)

    cdef int copy_in(self, char *source, Py_ssize_t n, Py_ssize_t offset) except -1:
        cdef Mapping mapping = self.mapping
        if mapping is None:
            self.opened()
        if mapping.lost:
            mapping.check()
        if not mapping.writable:
            raise ValueError(f"{mapping.path or 'the region'} is mapped read-only: modes shared and private can write")
        if offset < 0 or offset > mapping.size or n > mapping.size - offset:
            raise ValueError(f"cannot write {n} bytes at {offset} into a region of {mapping.size}: resize() it first")
        cdef char *target = mapping.base + offset
        if n >= LARGE:
            mapping.borrowed += 1
            with nogil:
                memmove(target, source, n)      # the source may be a view of this very region
            mapping.borrowed -= 1
        elif n > 0:
            memmove(target, source, n)
        if kernel_lost(&mapping.lost):
            mapping.check()
        return 0

    def __getitem__(self, key):
        cdef Py_ssize_t start, stop, step
        if not isinstance(key, slice):
            return self.pread(1, self.position(key))[0]
        start, stop, step = key.indices(len(self))
        if step == 1:
            return self.pread(max(0, stop - start), start)
        with memoryview(self) as view:
            key = bytes(view[key])
        self.opened().check()
        return key

    def __setitem__(self, key, value):
        cdef Py_ssize_t start, stop, step
        if not isinstance(key, slice):
            self.pwrite(bytes((value,)), self.position(key))
            return
        start, stop, step = key.indices(len(self))
        with memoryview(value) as source:
            if source.nbytes != len(range(start, stop, step)):
                raise ValueError(
                    f"cannot put {source.nbytes} bytes in the place of {len(range(start, stop, step))}: use resize()"
                )
            if step == 1:
                self.pwrite(source, start)
            else:
                self.copy_in(NULL, 0, 0)        # may it be written?
                with memoryview(self) as view:
                    view[key] = source.cast("B")
                self.opened().check()

    cdef Py_ssize_t position(self, key) except -1:
        cdef Py_ssize_t index = PyNumber_AsSsize_t(key, IndexError)
        cdef Py_ssize_t size = len(self)
        if index < 0:
            index += size
        if index < 0 or index >= size:
            raise IndexError(f"index {key} is outside the region's {size} bytes")
        return index

    def populate(self, Py_ssize_t offset=0, length=None, *, bint write=False):
        """Faults the pages of a range in (with `write`, ready to be written), with the GIL released."""
        cdef char *start = NULL
        cdef Py_ssize_t size = 0
        if write:
            self.copy_in(NULL, 0, 0)            # may it be written?
        self.span(offset, length, PAGE, &start, &size)
        self.opened().populate(start, size, write)

    def resident(self, Py_ssize_t offset=0, length=None):
        """How many bytes of a range are in memory now (whole pages, by mincore)."""
        cdef char *start = NULL
        cdef Py_ssize_t size = 0
        cdef int64_t found
        cdef Mapping mapping = self.opened()
        self.span(offset, length, PAGE, &start, &size)
        mapping.borrowed += 1
        with nogil:
            found = kernel_resident(start, size)
        mapping.borrowed -= 1
        if found < 0:
            raise_errno(<int>-found, mapping.path)
        return found

    def _advise(self, int advice, Py_ssize_t offset, length):
        cdef char *start = NULL
        cdef Py_ssize_t size = 0
        cdef int failed
        cdef Mapping mapping = self.opened()
        self.span(offset, length, mapping.page, &start, &size)
        mapping.borrowed += 1
        with nogil:
            failed = errno if madvise(start, size, advice) != 0 else 0
        mapping.borrowed -= 1
        if failed:
            raise_errno(failed, mapping.path)

    def _msync(self, Py_ssize_t offset, length):
        cdef char *start = NULL
        cdef Py_ssize_t size = 0
        cdef int failed
        cdef Mapping mapping = self.opened()
        self.span(offset, length, PAGE, &start, &size)
        mapping.borrowed += 1
        with nogil:
            failed = errno if msync(start, size, MS_SYNC) != 0 else 0
        mapping.borrowed -= 1
        if failed:
            raise_errno(failed, mapping.path)
        mapping.check()


# The names of <sys/mman.h> that Python policy needs.
FLAGS = {
    "READ": PROT_READ, "WRITE": PROT_WRITE,
    "SHARED": MAP_SHARED, "PRIVATE": MAP_PRIVATE, "ANONYMOUS": MAP_ANONYMOUS, "POPULATE": MAP_POPULATE,
    "FIXED_NOREPLACE": MAP_FIXED_NOREPLACE, "NORESERVE": MAP_NORESERVE,
    "SHARED_VALIDATE": MAP_SHARED_VALIDATE, "SYNC": MAP_SYNC, "PAGE": PAGE,
}
