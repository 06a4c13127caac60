# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""One counter of a :class:`mmapds.Counters` as an object: the fast path.

A bound counter knows the address of its cell, so an operation is one atomic instruction and no look-up. The address
stays right: cells never move, growth adds memory behind them, and the object keeps the mapping alive. The integer
counter is an :class:`AtomicInt64` with a name; doubles have no atomic addition in hardware, and a class of their own.
"""

cimport cython
from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.stdint cimport int64_t, uint64_t

from mmapds._native.atomic cimport AtomicInt64
from mmapds._native.atomics cimport exchange_seq_cst_u64, fetch_add_seq_cst_u64, load_seq_cst_u64, store_seq_cst_u64
from mmapds._native.kernel cimport kernel_lost, kernel_page_size
from mmapds._native.region cimport MMAPDS_SENTINEL, Mapping

import errno as errors
import os
from operator import index

from mmapds._native.atomic import own_methods
from mmapds.errors import DurabilityFailed


cdef extern from "<sys/mman.h>" nogil:
    int msync(void *base, size_t length, int flags)
    int MS_SYNC


cdef extern from "<errno.h>" nogil:
    int errno


cdef Py_ssize_t PAGE = kernel_page_size()


cdef int64_t integer(object value) except? -1:
    cdef int beyond = 0
    cdef int64_t found
    if type(value) is int:
        found = PyLong_AsLongLongAndOverflow(value, &beyond)
    elif hasattr(value, "__index__"):
        found = PyLong_AsLongLongAndOverflow(index(value), &beyond)
    else:
        raise TypeError(
            f"a counter of dtype 'i64' takes an int, not {type(value).__name__} {value!r}: dtype='f64' counts in floats"
        )
    if beyond:
        raise OverflowError(f"{shown(index(value))} does not fit into a signed 64-bit counter")
    return found


cdef double real(object value) except? -1.0:
    if type(value) is float:
        return value
    if isinstance(value, (str, bytes)) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        raise TypeError(f"a counter of dtype 'f64' takes a number, not {type(value).__name__} {value!r}")
    return float(value)


cdef str shown(number):
    return str(number) if number.bit_length() < 256 else f"a number of {number.bit_length()} bits"


cdef object overflow(object before, object n):
    return OverflowError(f"{before} + {n} does not fit into the counter; it was left as it is")


cdef object reserve(Mapping mapping, uint64_t *word, object n, uint64_t *failed):
    cdef int64_t count = integer(n)
    cdef int64_t before = 0
    cdef int error = 0
    cdef char *page
    if count < 1:
        raise ValueError(f"cannot reserve {n} numbers: at least 1")
    if failed is not NULL and load_seq_cst_u64(failed):
        raise unsynced(mapping, "an earlier sync failed")
    if not cell_add_checked(word, count, &before):
        raise overflow(before, n)
    if failed is not NULL:
        page = mapping.base + ((<char *>word - mapping.base) & -PAGE)
        with nogil:
            error = errno if msync(page, PAGE, MS_SYNC) != 0 else 0
        if error:
            fetch_add_seq_cst_u64(failed, 1)
            raise unsynced(mapping, os.strerror(error))
        if load_seq_cst_u64(failed):    # the kernel tells of a failure once: perhaps another thread has heard of ours
            raise unsynced(mapping, "another sync failed")
    mapping.check()
    return range(before, before + count)


cdef object readonly(Mapping mapping):
    return PermissionError(
        errors.EACCES, "mode='readonly' never writes: open with mode='shared' or 'private'", mapping.path
    )


cdef object unsynced(Mapping mapping, why):
    return DurabilityFailed(
        f"{mapping.path}: the disk did not take what was written ({why}), so this is not promised to survive "
        "power loss. Check the disk, then call flush(), which writes everything anew, and try again.",
        path=mapping.path,
    )


@cython.final
@cython.binding(False)
@cython.always_allow_keywords(False)
@cython.no_gc                           # refers to a mapping and a str only
cdef class Counter(AtomicInt64):
    """One counter, bound to its cell: an :class:`AtomicInt64` with `name` (or None) and `index`.

    Obtained from :meth:`mmapds.Counters.counter`. All operations are atomic and shared with every process that has the
    file open; they wrap at 64 bits unless they are checked. It stays valid when the file grows, after `close()` of the
    handle, and in the child of a fork; if its name is removed it goes on counting in the same cell, which no other name
    gets. After a crash of any process: the value that was last stored.
    """

    cdef int refuse(self) except -1:
        self.mapping.check()
        raise readonly(self.mapping)

    def add(self, n=1, bint checked=False):
        """Adds n and returns the new value. With `checked`, OverflowError instead of wrapping, and nothing is changed."""
        cdef int64_t value = integer(n), before
        if self.mapping.lost or not self.mapping.writable:
            self.refuse()
        if not checked:
            before = cell_apply(CELL_ADD, self.word, value)
        elif not cell_add_checked(self.word, value, &before):
            raise overflow(before, n)
        if kernel_lost(&self.mapping.lost) or self.mapping.seal[0] != MMAPDS_SENTINEL:
            self.mapping.check()
        return <int64_t>(<uint64_t>before + <uint64_t>value)

    def reset(self):
        """Sets 0 and returns the value before, so that nothing is lost between reading and clearing."""
        return self.exchange(0)

    def reserve(self, n, /):
        """Adds n >= 1 and returns the `range` of the n numbers from the old value on, which nobody else gets.

        Durability "power": returns when it is on the disk; a crash may skip numbers and never repeats one.
        OverflowError if they do not fit; DurabilityFailed if the disk fails, and then nothing is handed out.
        """
        if self.mapping.lost or not self.mapping.writable:
            self.refuse()
        return reserve(self.mapping, self.word, n, self.failed)

    def __repr__(self):
        return f"<Counter {self.name if self.name is not None else self.index!r}: {self.load()}>"


@cython.final
@cython.binding(False)
@cython.always_allow_keywords(False)
@cython.no_gc                           # refers to a mapping and a str only
cdef class FloatCounter:
    """One counter of dtype "f64", bound to its cell: for gauges and sums.

    Obtained from :meth:`mmapds.Counters.counter`. The same as :class:`Counter` with floats: load and store are one
    instruction; addition is a compare-and-swap that is repeated if another process was faster (lock-free). Sums of
    floats depend on the order of addition; what is added is never lost.
    """

    def __cinit__(self, Mapping mapping not None, Py_ssize_t offset):
        if offset < 0 or offset > mapping.size - 8 or offset % 8:
            raise ValueError(f"offset {offset}: a cell is 8 aligned bytes within the mapping's {mapping.size}")
        self.mapping = mapping
        self.word = <uint64_t *>(mapping.base + offset)
        mapping.borrowed += 1

    def __dealloc__(self):
        if self.mapping is not None:
            self.mapping.borrowed -= 1

    cdef int before(self) except -1:
        self.mapping.check()
        if not self.mapping.writable:
            raise readonly(self.mapping)
        return 0

    cdef int after(self) except -1:
        if kernel_lost(&self.mapping.lost) or self.mapping.seal[0] != MMAPDS_SENTINEL:
            self.mapping.check()
        return 0

    def load(self):
        """The value."""
        cdef double value = cell_double(load_seq_cst_u64(self.word))
        self.after()
        return value

    def store(self, value, /):
        """Sets the value."""
        cdef double x = real(value)
        self.before()
        store_seq_cst_u64(self.word, cell_bits(x))
        self.after()

    def fetch_add(self, n=1):
        """Adds n and returns the value before."""
        cdef double x = real(n), found
        self.before()
        cell_add_double(self.word, x, False, &found)
        self.after()
        return found

    def fetch_sub(self, n=1):
        """Subtracts n and returns the value before."""
        return self.fetch_add(-real(n))

    def add(self, n=1, bint checked=False):
        """Adds n and returns the new value. With `checked`, OverflowError where two finite numbers have no finite sum, and
        nothing is changed."""
        cdef double x = real(n), found
        self.before()
        if not cell_add_double(self.word, x, checked, &found):
            raise overflow(found, n)
        self.after()
        return found + x

    def exchange(self, value, /):
        """Sets the value and returns the one before."""
        cdef double x = real(value), found
        self.before()
        found = cell_double(exchange_seq_cst_u64(self.word, cell_bits(x)))
        self.after()
        return found

    def compare_exchange(self, expected, desired, /):
        """Sets `desired` if the value equals `expected` (as numbers do: 0.0 is -0.0, nothing is nan); returns (whether it
        did, the value before)."""
        cdef double found = real(expected), wanted = real(desired)
        self.before()
        cdef bint done = cell_compare_exchange_double(self.word, &found, wanted)
        self.after()
        return done, found

    def reset(self):
        """Sets 0.0 and returns the value before."""
        return self.exchange(0.0)

    def __repr__(self):
        return f"<FloatCounter {self.name if self.name is not None else self.index!r}: {self.load()}>"


own_methods(Counter)
