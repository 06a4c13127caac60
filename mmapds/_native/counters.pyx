# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""The hot half of :class:`mmapds.Counters`: operations on cells, by index and by name.

An operation is one atomic instruction on mapped memory. By name it costs a look-up in a dict more, and two looks at one
word of the file: before it, whether the dict is right, and after it, whether it still was (why: counters.h).
"""

cimport cython
from cpython.dict cimport PyDict_Next, PyDict_SetItem, PyDict_Update
from cpython.long cimport PyLong_AsSsize_t
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from mmapds._native.atomics cimport (
    compare_exchange_seq_cst_u64, load_relaxed_u64, load_seq_cst_u64, store_seq_cst_u64,
)
from mmapds._native.cells cimport Cells, exact, peek
from mmapds._native.counter cimport (
    CELL_ADD, CELL_AND, CELL_EXCHANGE, CELL_OR, CELL_SUB, CELL_XOR, Counter, FloatCounter, cell_add_checked,
    cell_add_double, cell_apply, cell_bits, cell_compare_exchange_double, cell_double, integer, overflow, real,
)
from mmapds._native.extents cimport (
    COUNTERS_ANYHOW, COUNTERS_DONE, COUNTERS_NEEDED, COUNTERS_SET, Window, counters_cell, counters_current,
)
from mmapds._native.kernel cimport kernel_lost
from mmapds._native.region cimport MMAPDS_SENTINEL, Mapping


cdef inline uint64_t *find(CountersCore self, key, bint create) except NULL:
    """The cell of a key, with the name made if it is not there, or KeyError."""
    cdef uint64_t *cell = peek(self, key)
    while cell is NULL:
        if not create:
            raise KeyError(key)
        self.create(exact(key), NULL, COUNTERS_ANYHOW)
        cell = peek(self, key)
    return cell


cdef inline int whole(CountersCore self) except -1:
    if kernel_lost(&self.mapping.lost) or load_relaxed_u64(self.mapping.seal) != MMAPDS_SENTINEL:
        self.mapping.check()
    return 0


cdef inline int leave(CountersCore self, key) except -1:
    """After an operation: is the file whole, and the cell still the key's?"""
    whole(self)
    if type(key) is not int and not counters_current(&self.known):
        left(self, key)
    return 0


cdef int left(CountersCore self, key) except -1:
    if isinstance(key, str):
        self.refresh()                  # a name was removed, or came back
        key = exact(key)
        if key not in self.numbers and key in self.removed:
            self.create(key, NULL, COUNTERS_NEEDED)
    return 0


cdef inline object operate(CountersCore self, int operation, object key, object n):
    cdef uint64_t *cell
    cdef uint64_t operand
    if not self.writable:
        self.refuse()
    if self.floats:
        return operate_float(self, operation, key, n)
    operand = integer(n)                # before the name is made: a wrong value changes nothing
    cell = find(self, key, True)
    operand = cell_apply(operation, cell, operand)
    leave(self, key)
    return <int64_t>operand


cdef object operate_float(CountersCore self, int operation, object key, object n):
    cdef double operand = real(n)
    cdef double before = 0
    cdef uint64_t *cell
    if operation not in (CELL_ADD, CELL_SUB, CELL_EXCHANGE):
        raise TypeError("floats have no bits to count with: fetch_and, fetch_or and fetch_xor need dtype='i64'")
    cell = find(self, key, True)
    if operation == CELL_EXCHANGE:
        before = cell_double(cell_apply(CELL_EXCHANGE, cell, cell_bits(operand)))
    else:
        cell_add_double(cell, operand if operation == CELL_ADD else -operand, False, &before)
    leave(self, key)
    return before


@cython.binding(False)
@cython.always_allow_keywords(False)
cdef class CountersCore(Cells):

    # ---- operations ---------------------------------------------------------------------------------------------

    def fetch_add(self, key, n=1):
        """Adds n to a counter and returns the value before. Makes the name if it is new. Wait-free."""
        return operate(self, CELL_ADD, key, n)

    def fetch_sub(self, key, n=1):
        """Subtracts n and returns the value before. Makes the name if it is new. Wait-free."""
        return operate(self, CELL_SUB, key, n)

    def fetch_and(self, key, n):
        """Bitwise and; returns the value before. Makes the name if it is new. Lock-free."""
        return operate(self, CELL_AND, key, n)

    def fetch_or(self, key, n):
        """Bitwise or; returns the value before. Makes the name if it is new. Lock-free."""
        return operate(self, CELL_OR, key, n)

    def fetch_xor(self, key, n):
        """Bitwise exclusive or; returns the value before. Makes the name if it is new. Lock-free."""
        return operate(self, CELL_XOR, key, n)

    def exchange(self, key, value):
        """Sets the value and returns the one before. Makes the name if it is new. Wait-free."""
        return operate(self, CELL_EXCHANGE, key, value)

    def add(self, key, n=1, bint checked=False):
        """Adds n and returns the new value. Makes the name if it is new.

        With `checked` a sum that does not fit raises OverflowError and changes nothing (floats: where two finite
        numbers have no finite sum). Wait-free; checked, or with floats, lock-free.
        """
        cdef uint64_t *cell
        cdef int64_t operand, before = 0
        cdef double real_operand, real_before = 0
        cdef bint fits = True
        if not self.writable:
            self.refuse()
        if self.floats:
            real_operand = real(n)
            cell = find(self, key, True)
            fits = cell_add_double(cell, real_operand, checked, &real_before)
            leave(self, key)
            if not fits:
                raise overflow(real_before, n)
            return real_before + real_operand
        operand = integer(n)
        cell = find(self, key, True)
        if checked:
            fits = cell_add_checked(cell, operand, &before)
        else:
            before = cell_apply(CELL_ADD, cell, operand)
        leave(self, key)
        if not fits:
            raise overflow(before, n)
        return <int64_t>(<uint64_t>before + <uint64_t>operand)

    def compare_exchange(self, key, expected, desired):
        """Sets `desired` if the value is `expected`; returns (whether it did, the value before). KeyError if there is no
        such name. Wait-free (floats: lock-free, and compared as numbers)."""
        cdef uint64_t *cell
        cdef uint64_t found, wanted
        cdef double number
        cdef bint done
        if not self.writable:
            self.refuse()
        found = self.bits(expected)
        wanted = self.bits(desired)
        cell = find(self, key, False)
        if self.floats:
            number = cell_double(found)
            done = cell_compare_exchange_double(cell, &number, cell_double(wanted))
            found = cell_bits(number)
        else:
            done = compare_exchange_seq_cst_u64(cell, &found, wanted)
        leave(self, key)
        return done, self.value(found)

    def reset(self, key):
        """Sets 0 and returns the value before, so that nothing is lost between reading and clearing. KeyError if there is
        no such name. Wait-free."""
        cdef uint64_t found
        if not self.writable:
            self.refuse()
        found = cell_apply(CELL_EXCHANGE, find(self, key, False), 0)
        leave(self, key)
        return self.value(found)

    def reserve(self, key, n):
        """Adds n >= 1 and returns the `range` of the n numbers from the old value on, which nobody else gets.

        Makes the name if it is new. Durability "power": when it returns the numbers are spent on the disk too, so that
        a crash may skip some and never repeats one. OverflowError if they do not fit, and nothing is changed;
        DurabilityFailed if the disk fails, and nothing is handed out.
        """
        if self.floats:
            raise TypeError("numbers are reserved from integers: reserve() needs dtype='i64'")
        cdef int64_t count = integer(n)
        if count < 1:
            raise ValueError(f"cannot reserve {n} numbers: at least 1")
        if not self.writable:
            self.refuse()
        result = self.counter(key).reserve(count)
        if self.mapping is not None and isinstance(key, str):
            left(self, key)             # others may have looked at the names meanwhile: whatever we know of them is new
        return result

    def counter(self, key):
        """A counter as an object, bound to its cell: the fast path. Makes the name if it is new."""
        cdef uint64_t *cell = find(self, key, self.writable)
        cdef Mapping mapping = self.mapping
        cdef Py_ssize_t offset = <char *>cell - mapping.base
        cdef Py_ssize_t index = (<char *>cell - self.known.cells) // self.known.stride
        cdef uint64_t *failed = &self.known.control.header.failed if self.power else NULL
        cdef Counter bound
        cdef FloatCounter real_bound
        name = exact(key) if isinstance(key, str) else None
        if self.floats:
            real_bound = FloatCounter(mapping, offset)
            real_bound.name = name
            real_bound.index = index
            return real_bound
        bound = Counter(mapping, offset, not self.copied)
        bound.name = name
        bound.index = index
        bound.failed = failed
        return bound

    # ---- a mapping of names to values ---------------------------------------------------------------------------

    def __getitem__(self, key):
        cdef uint64_t found
        while True:
            found = load_seq_cst_u64(find(self, key, False))
            whole(self)
            if type(key) is int or counters_current(&self.known) or not isinstance(key, str):
                return self.value(found)
            self.refresh()              # the name was removed meanwhile, or another: look again

    def __setitem__(self, key, value):
        cdef uint64_t *cell
        cdef uint64_t wanted
        if not self.writable:
            self.refuse()
        wanted = self.bits(value)
        cell = peek(self, key)
        while cell is NULL:
            if self.create(exact(key), &wanted, COUNTERS_SET) == COUNTERS_DONE:
                return
            cell = peek(self, key)
        store_seq_cst_u64(cell, wanted)
        leave(self, key)

    def __delitem__(self, key):
        self.remove(key)

    def remove(self, name):
        """Removes a name; KeyError if there is none. Its cell goes to no other name: if the name comes back it begins with
        0, or with what bound counters have added since."""
        cdef uint64_t value = 0
        if not isinstance(name, str):
            raise TypeError(f"names are removed, not {type(name).__name__} {name!r}: reset() sets a counter to 0")
        if not self.take(exact(name), &value):
            raise KeyError(name)

    def _pop(self, name):
        """The value that a removed name had, or None."""
        cdef uint64_t value = 0
        return self.value(value) if self.take(exact(name), &value) else None

    def setdefault(self, key, default=0):
        """The value of a name; it is made with `default` if it is new. Atomic: of all who call it, one makes it."""
        cdef uint64_t initial = self.bits(default)
        if not isinstance(key, str):
            return self[key]
        while True:
            try:
                return self[key]
            except KeyError:
                self.create(exact(key), &initial, COUNTERS_ANYHOW)

    def __contains__(self, key):
        if isinstance(key, str):
            return peek(self, key) is not NULL
        try:
            return peek(self, key) is not NULL
        except (IndexError, TypeError):
            return False

    def __len__(self):
        self.refresh()
        return self.valid if self.layout == "emmap" else len(self.numbers)

    def __iter__(self):
        self.refresh()
        return iter(range(self.valid) if self.layout == "emmap" else list(self.numbers))

    def snapshot(self):
        """A dict of all values by name (layout "emmap": by index), in the order in which the names were made.

        Each value is read atomically, one after the other: what other processes add meanwhile is in some values and not
        in others.
        """
        cdef PyObject *key = NULL
        cdef PyObject *number = NULL
        cdef Py_ssize_t at
        if not self.copied:
            file = self._backing        # its descriptor stays open as long as we have it
            file.check_path()     # an exporter would show the old file's values for ever
        while True:
            result = {}                 # first: who makes a dict may run the collector, and so anything
            self.refresh()
            if self.layout == "emmap":
                result = {i: self.value(load_seq_cst_u64(<uint64_t *>self.known.cells + i)) for i in range(self.valid)}
            else:
                PyDict_Update(result, self.numbers)
                at = 0
                while PyDict_Next(result, &at, &key, &number):
                    PyDict_SetItem(result, <object>key, self.value(
                        load_seq_cst_u64(counters_cell(&self.known, PyLong_AsSsize_t(<object>number)))))
            self.opened().check()
            if counters_current(&self.known):
                return result

    def view(self):
        """All cells, zero-copy: a read-only memoryview of int64 (float64) that shows what they are now, and stays valid
        when the file grows and after close(). With `padded`, one element in eight of the memory: numpy.asarray takes
        both."""
        self.refresh()
        cdef Py_ssize_t step = self.known.stride // 8
        cells = memoryview(Window(self.opened(), self.known.cells - self.mapping.base, self.valid * self.known.stride))
        cells = cells.cast("d" if self.floats else "q")
        return cells if step == 1 else cells[::step]

    @property
    def capacity(self):
        """How many counters go by index only."""
        self.opened()
        return self.known.capacity

    cdef uint64_t bits(self, value) except? 0:
        return cell_bits(real(value)) if self.floats else <uint64_t>integer(value)

    cdef object value(self, uint64_t bits):
        return cell_double(bits) if self.floats else <int64_t>bits

