# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""A 64-bit word of mapped memory as an object, for counters, flags and sequence numbers that processes share.

Rejected: a general "typed cell"; a class for each type would say nothing that the caller does not know.
"""

cimport cython
from cpython.dict cimport PyDict_SetItem
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyTypeObject
from cpython.type cimport PyType_Modified
from libc.errno cimport EAGAIN, EFAULT, EINTR, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t

from mmapds._native.atomics cimport (
    compare_exchange_seq_cst_u64, exchange_seq_cst_u64, fetch_add_seq_cst_u64, fetch_and_seq_cst_u64,
    fetch_or_seq_cst_u64, fetch_sub_seq_cst_u64, fetch_xor_seq_cst_u64, load_relaxed_u64, load_seq_cst_u64,
    store_seq_cst_u64,
)
from mmapds._native.kernel cimport (
    deadline, kernel_clock_ns, kernel_futex_wait, kernel_futex_wake, kernel_lost, raise_errno,
)
from mmapds._native.region cimport MMAPDS_SENTINEL, Mapping


cdef extern from *:
    ctypedef struct PyMethodDef:
        pass
    ctypedef struct PyMethodDescrObject:
        PyMethodDef *d_method
    object PyDescr_NewMethod(PyTypeObject *cls, PyMethodDef *method)


cdef int64_t SLICE = 100000000         # ns: no sleep is longer, because a waker may die before it wakes


cdef inline int before(AtomicInt64 self) except -1:
    if self.mapping.lost or not self.mapping.writable:
        self.refuse()
    return 0


cdef inline int whole(AtomicInt64 self) except -1:
    if kernel_lost(&self.mapping.lost) or load_relaxed_u64(self.mapping.seal) != MMAPDS_SENTINEL:
        self.mapping.check()
    return 0


cdef inline object after(AtomicInt64 self, uint64_t value):
    whole(self)
    return <int64_t>value


# Python 3.11 calls a method faster if it is exactly a method descriptor, which Cython's own kind of function is not.
@cython.binding(False)
@cython.always_allow_keywords(False)
@cython.no_gc                           # refers to a mapping only
cdef class AtomicInt64:
    """A signed 64-bit word of a region, changed by atomic instructions of the hardware.

    All operations are sequentially consistent, and shared with every process that maps the word; they wrap at 64 bits
    as the hardware does. On x86-64 they are wait-free, but for fetch_and, fetch_or and fetch_xor, which repeat a
    compare-and-swap (lock-free); on other machines that is up to the instruction set. The word survives the death of
    any process. An atomic keeps its mapping alive: it stays valid after the region's `close()` and `resize()`, and in the
    child of a fork. Obtained from :meth:`mmapds.Region.atomic`.
    """

    def __cinit__(self, Mapping mapping not None, Py_ssize_t offset, bint futex):
        if offset < 0 or offset > mapping.size - 8:
            raise ValueError(f"offset {offset} is outside: a word needs 8 bytes within the region's {mapping.size}")
        if offset % 8:
            raise ValueError(f"offset {offset} is misaligned: an atomic word lies at a multiple of 8")
        self.mapping = mapping
        self.futex = futex
        self.word = <uint64_t *>(mapping.base + offset)
        mapping.borrowed += 1

    def __dealloc__(self):
        if self.mapping is not None:
            self.mapping.borrowed -= 1

    cdef int refuse(self) except -1:
        self.mapping.check()
        raise ValueError(f"{self.mapping.path or 'the region'} is mapped read-only: mode='shared' can change it")

    def load(self):
        """The value."""
        return after(self, load_seq_cst_u64(self.word))

    def store(self, Py_ssize_t value, /):
        """Sets the value."""
        before(self)
        store_seq_cst_u64(self.word, <uint64_t>value)
        whole(self)

    def fetch_add(self, Py_ssize_t n=1):
        """Adds n and returns the value before."""
        before(self)
        return after(self, fetch_add_seq_cst_u64(self.word, <uint64_t>n))

    def fetch_sub(self, Py_ssize_t n=1):
        """Subtracts n and returns the value before."""
        before(self)
        return after(self, fetch_sub_seq_cst_u64(self.word, <uint64_t>n))

    def fetch_and(self, Py_ssize_t mask, /):
        """Bitwise and; returns the value before."""
        before(self)
        return after(self, fetch_and_seq_cst_u64(self.word, <uint64_t>mask))

    def fetch_or(self, Py_ssize_t mask, /):
        """Bitwise or; returns the value before."""
        before(self)
        return after(self, fetch_or_seq_cst_u64(self.word, <uint64_t>mask))

    def fetch_xor(self, Py_ssize_t mask, /):
        """Bitwise exclusive or; returns the value before."""
        before(self)
        return after(self, fetch_xor_seq_cst_u64(self.word, <uint64_t>mask))

    def exchange(self, Py_ssize_t value, /):
        """Sets the value and returns the one before."""
        before(self)
        return after(self, exchange_seq_cst_u64(self.word, <uint64_t>value))

    def compare_exchange(self, Py_ssize_t expected, Py_ssize_t desired, /):
        """Sets `desired` if the value is `expected`; returns (whether it did, the value before)."""
        cdef uint64_t found = <uint64_t>expected
        before(self)
        cdef bint done = compare_exchange_seq_cst_u64(self.word, &found, <uint64_t>desired)
        return done, after(self, found)

    def wait(self, Py_ssize_t expected, timeout=None):
        """Sleeps while the value is `expected`, at most `timeout` seconds; True when it is another, False on time-out.

        Whoever changes the value must call :meth:`wake`. A futex compares 32 bits, so a change of the upper half
        alone, like a waker that died before it woke anybody, is noticed after 100 ms. Signal handlers run, and may
        raise, while it sleeps.
        """
        cdef int64_t limit = deadline(timeout), left
        cdef int result = 0, before
        if not self.futex:
            raise ValueError("cannot wait on a private mapping, which nobody else can change: open it with mode='shared'")
        while True:
            if <int64_t>load_seq_cst_u64(self.word) != expected:
                self.mapping.check()
                return True
            self.mapping.check()
            left = min(SLICE, limit - kernel_clock_ns())
            if left <= 0:
                return False
            before = result
            with nogil:
                # The kernel compares again before it sleeps: pairs with the change that precedes wake().
                result = kernel_futex_wait(<uint32_t *>self.word, <uint32_t>expected, left)
            PyErr_CheckSignals()        # in every round: a signal may have come while we looked
            if result == -EFAULT and before != -EFAULT:
                continue                # no page: the next look brings the mark
            elif result not in (0, -EAGAIN, -ETIMEDOUT, -EINTR):
                raise_errno(-result, self.mapping.path)

    def wake(self, int n=1):
        """Wakes up to n waiters of any process; returns how many."""
        if n < 0:
            raise ValueError(f"cannot wake {n} waiters")
        cdef int woken = kernel_futex_wake(<uint32_t *>self.word, n)
        if woken < 0:
            load_seq_cst_u64(self.word)         # if there is no page, this brings the mark
            self.mapping.check()
            raise_errno(-woken, self.mapping.path)
        return woken

    def __repr__(self):
        return f"<AtomicInt64 {self.load()}>"


def own_methods(cls):
    """A class decorator that gives a class the methods it inherits from Cython classes as its own.

    Python 3.11 has a fast way to call a method of exactly the object's class; for an inherited one it takes another, which
    costs as much as an atomic addition.
    """
    if not isinstance(cls, type):
        raise TypeError(f"a class, not {cls!r}")
    for base in cls.__mro__[1:]:
        for name, method in vars(base).items():
            if type(method) is type(str.join) and name not in vars(cls) and getattr(cls, name) is method:
                PyDict_SetItem(<object>(<PyTypeObject *>cls).tp_dict, name, PyDescr_NewMethod(
                    <PyTypeObject *>cls, (<PyMethodDescrObject *>method).d_method))
    PyType_Modified(cls)
    return cls
