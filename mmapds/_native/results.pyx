# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""What a read hands out: one version of a value, and the pin that keeps it as it is.

A pin lasts as long as anybody can see the bytes, so it is given back by whichever comes last: the end of the block,
`release()`, the last memoryview or array made from the result, or its collection. The collector may clear the handle
before the result, in any order; therefore a pin is given back to a :class:`Pins`, which the collector does not clear
and which keeps the counts mapped, and never to the handle.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.memoryview cimport PyMemoryView_FromObject


from mmapds.errors import Closed, ForkedHandle


@cython.no_gc
cdef class Pins:

    cdef void unpin(self, int index) noexcept:
        pass


# Python 3.11 calls a method faster if it is exactly a method descriptor, which Cython's own kind of function is not.
@cython.final
@cython.freelist(16)
@cython.no_gc_clear
@cython.binding(False)
@cython.always_allow_keywords(False)
cdef class ReadResult:
    """One version of the value, held until it is released and the last view of it is gone.

    A context manager. The writer never changes or invalidates what a result, or a memoryview or array made from it,
    still holds. Not to be used in the child of a fork: it is the parent's, and raises `ForkedHandle` there.
    """

    def __dealloc__(self):
        if self.pinned:
            self.pins.unpin(self.index)

    cdef void unpin(self) noexcept:
        if self.pinned:
            self.pinned = False
            self.pins.unpin(self.index)

    cdef int usable(self) except -1:
        if self.owner is None:
            raise TypeError("a result comes from read(), and from nothing else")
        if self.released:
            raise Closed("this result was released: read again")
        if self.pinned and self.pins.registered != self.pins.epoch[0]:
            raise ForkedHandle("this result belongs to the parent of this process: read again")
        if self.mapping is not None:
            self.mapping.check()
        return 0

    def __getbuffer__(self, Py_buffer *view, int flags):
        self.usable()
        PyBuffer_FillInfo(view, self, self.base, self.size, 1, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1
        if self.exports == 0 and self.released:
            self.unpin()

    @property
    def data(self):
        """The bytes as a read-only memoryview, zero-copy; the version is held as long as it lives."""
        return PyMemoryView_FromObject(self)

    @property
    def value(self):
        """The decoded value; decoded at each access. With the codecs raw and numpy it is a view, as `data` is."""
        cdef object view = PyMemoryView_FromObject(self)
        return self.owner._decode(view)

    def __reduce__(self):
        raise TypeError("a result cannot be copied or pickled: it is a claim on this process's mapping; copy its data")

    def release(self):
        """Lets go of the version, now or with the last view of it. Idempotent."""
        self.released = True
        if self.exports == 0:
            self.unpin()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        self.released = True
        if self.exports == 0:
            self.unpin()

    def __len__(self):
        return self.size

    def __repr__(self):
        state = "released" if self.released else f"{self.size} bytes"
        return f"<ReadResult version {self.version} {state}>"
