# cython: language_level=3
"""An owned range of mapped memory, and the words in it."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "layout.h" nogil:
    const uint64_t MMAPDS_SENTINEL
    int MMAPDS_PAGE


# Marks pages dirty without changing them: a failed flush has left them clean.
cdef void redirty(char *start, Py_ssize_t size) noexcept nogil


cdef class Mapping:
    """A mapped range, unmapped with the last reference: buffers exported from it, atomics, pins hold one."""
    cdef char *base
    cdef readonly Py_ssize_t size       # bytes that may be used
    cdef Py_ssize_t length              # bytes mapped (whole pages)
    cdef Py_ssize_t page
    cdef uint32_t lost                  # set by the SIGBUS handler
    cdef readonly bint writable
    cdef Py_ssize_t borrowed            # buffers, atomics, calls without the GIL: while not 0, bytes may not move
    cdef void *guard
    cdef const uint64_t *seal           # holds MMAPDS_SENTINEL as long as all is there
    cdef int fd                         # kept for those who also write by system call, or -1
    cdef readonly object path
    cdef Py_ssize_t copied              # from here on the pages are private copies (detach)
    cdef int check(self) except -1
    cdef int place(self, Py_ssize_t at, int fd, Py_ssize_t offset, Py_ssize_t length, int flags) except -1
    cdef int populate(self, char *start, Py_ssize_t size, bint write) except -1


cdef class RegionCore:
    """The hot half of Region: byte access, atomics, and the system calls on ranges."""
    cdef Mapping mapping                # None after close()
    cdef bint shared
    cdef Mapping opened(self)
    cdef int use(self, Mapping mapping) except -1
    cdef int copy_in(self, char *source, Py_ssize_t n, Py_ssize_t offset) except -1
    cdef Py_ssize_t position(self, key) except -1
    cdef int span(self, Py_ssize_t offset, object length, Py_ssize_t unit, char **start, Py_ssize_t *size) except -1
