# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""Putting, and what putting and taking have in common: codecs, waiting, shutting down.

Payloads are encoded, compressed and hashed outside every lock.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.exc cimport PyErr_CheckSignals, PyErr_Clear, PyErr_ExceptionMatches
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.errno cimport EAGAIN, EINTR, ETIMEDOUT
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from mmapds._native.atomics cimport load_relaxed_u64, load_seq_cst_u64
from mmapds._native.claim cimport nanoseconds
from mmapds._native.kernel cimport deadline, kernel_clock_ns, raise_errno
from mmapds._native.lockword cimport Owner
from mmapds._native.queueview cimport *
from mmapds._native.queueview cimport QueueView, Segments, ready
from mmapds._native.region cimport Mapping

from queue import Full

from msgpack import Packer, unpackb
from xxhash import xxh3_64_intdigest

from mmapds.errors import ShutDown


cdef extern from "Python.h":
    PyObject *PyObject_CallOneArg(PyObject *function, PyObject *argument)


cdef object hash_of = xxh3_64_intdigest # not looked up among the module's names at each call

cdef Py_ssize_t BATCH = 256             # items that are put under one lock
cdef Py_ssize_t PACKER_KEEPS = 1 << 20  # a packer keeps its largest buffer: one that grew past this goes
cdef int COARSE = 5                     # CLOCK_REALTIME_COARSE


cdef int64_t limit_of(object block, object timeout) except -1:
    """When a wait ends, on kernel_clock_ns; 0: at once. As queue.Queue takes them."""
    if not block:
        return 0
    if timeout is None:
        return INT64_MAX
    if timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")
    return deadline(timeout)


cdef object called(object function, object argument):
    """function(argument), or None if that raised an Exception; without the price of a try."""
    cdef PyObject *result = PyObject_CallOneArg(<PyObject *>function, <PyObject *>argument)
    if result is not NULL:
        found = <object>result
        Py_DECREF(found)
        return found
    if not PyErr_ExceptionMatches(Exception):
        raised()                            # KeyboardInterrupt, and its like
    PyErr_Clear()
    return None


cdef int raised() except -1:
    return -1                               # the error is set


@cython.binding(False)
cdef class QueuePut(QueueView):

    def __cinit__(self, *args, **kwargs):
        self.compress_from = -1

    def _use(self, codec, compress_from, lease):
        self.codec = codec
        self.encode = codec.encode
        self.decode = codec.decode
        self.raw = codec.name == "raw"
        if codec.name == "msgpack":
            self.pack = Packer().pack
            self.unpack = unpackb
        self.compress_from = -1 if compress_from is None else compress_from
        self.lease = 0 if lease is None else nanoseconds(lease, "lease")

    # ---- putting -------------------------------------------------------------------------------------------------

    cdef bytes data_of(self, item, uint64_t *flags):
        cdef bytes data
        if self.raw and type(item) is bytes:
            data = item
        elif self.pack is not None:
            pack = self.pack                # out of others' reach: packing may run code of the item's class, or fail
            self.pack = None
            data = called(pack, item)
            if data is None or len(data) > PACKER_KEEPS:
                pack = Packer().pack
            self.pack = pack
            if data is None:
                data = self.encode(item)    # the same, and an error that says what is wrong
        else:
            encoded = self.encode(item)
            data = encoded if type(encoded) is bytes else bytes(encoded)
        flags[0] = 0
        if self.compress_from >= 0 and len(data) >= self.compress_from:
            data, flags[0] = self._compress(data)
        return data

    cdef int check_size(self, Py_ssize_t size) except -1:
        """Whether it can ever fit."""
        if size >> MMAPDS_ITEM_BITS:
            raise ValueError(f"the item is {size} bytes: fewer than 2**{MMAPDS_ITEM_BITS} fit")
        if self.view.max_bytes and queue_record_bytes(MMAPDS_DELAYED, size) > self.view.max_bytes:
            raise ValueError(
                f"the item takes {queue_record_bytes(MMAPDS_DELAYED, size)} bytes in the queue, and max_bytes is "
                f"{self.view.max_bytes}: it can never fit"
            )
        return 0

    cdef int prepare(self, bytes data, uint64_t flags, object delay, mmapds_record_item *prepared) except -1:
        self.check_size(len(data))
        prepared.hash = hash_of(data)
        prepared.order = flags
        prepared.delay = 0
        prepared.due = 0
        prepared.born = queue_wall(COARSE)
        if delay:
            prepared.delay = nanoseconds(delay, "delay")
            prepared.due = queue_now(&self.view) + prepared.delay
        return 0

    cdef int put_data(self, bytes data, mmapds_record_item *prepared, int64_t limit, uint64_t *position) except -1:
        """DONE, with its position, or FULL."""
        cdef queue_view view
        cdef Mapping meta
        cdef Segments table
        cdef Owner owner
        cdef uint32_t seen = 0
        cdef bint announced = False
        cdef const char *source = PyBytes_AS_STRING(data)
        cdef Py_ssize_t size = len(data)
        cdef int status
        status = queue_put(&self.view, source, size, prepared, position, False)
        while status != QUEUE_DONE:
            if status == QUEUE_BUSY:
                table = None
                view = self.view
                table = self.table
                meta = self.mapping
                owner = self.owner
                self.users += 1
                with nogil:
                    status = queue_put(&view, source, size, prepared, position, True)
                self.users -= 1
                self.view.wanted = view.wanted
                self.view.units = view.units
                if status == QUEUE_DONE:
                    break
                PyErr_CheckSignals()
            elif status == QUEUE_FULL:
                if limit == 0:
                    return QUEUE_FULL
                if announced and self.wait(QUEUE_ROOM, seen, limit):
                    return QUEUE_FULL
                ready(self)
                self.shut_down(True)
                seen = queue_announce(&self.view, QUEUE_ROOM)
                announced = True
            else:
                self.settle(status)
            ready(self)
            status = queue_put(&self.view, source, size, prepared, position, False)
        if announced:
            queue_wake(&self.view, QUEUE_ROOM, 1)       # others may wait for the room that is left
        return QUEUE_DONE

    cdef int synced(self, uint64_t position) except -1:
        """Returns when the disk has what was put at a position, and before it."""
        cdef Mapping segment = self.segment_at(position)
        cdef uint64_t number = position // self.view.segment_size
        if segment is None:
            try:
                segment = self._open_segment(number)
            except FileNotFoundError:
                return 0                    # taken by now, and finished
        return self.durable(segment)

    cdef int allowed(self) except -1:
        """Before each put."""
        ready(self)
        if not self.writable:
            self._refuse()
        if load_relaxed_u64(&self.view.control.shutdowns) != self.shut:
            self.shut_down(True)
        if self.power:
            self.check_durable()
        return 0

    def put(self, item, block=True, timeout=None, *, delay=0):
        """Puts an item at the end; `Full` if `maxsize` or `max_bytes` leave no room for it in `timeout` seconds.

        `delay`: seconds before which nobody gets it; after them it is in its place. Blocking for room, else lock-based and
        short. When it returns, the item survives the death of any process, with durability "power" also of the machine;
        killed inside, the item is there or not. ShutDown after shutdown(); OSError on a full disk, and then nothing has
        changed; TypeError or ValueError from the codec.
        """
        cdef mmapds_record_item prepared
        cdef uint64_t flags = 0, position = 0
        cdef int64_t limit = limit_of(block, timeout)
        cdef bytes data = self.data_of(item, &flags)
        self.allowed()
        self.prepare(data, flags, delay, &prepared)
        if self.put_data(data, &prepared, limit, &position) == QUEUE_FULL:
            raise Full
        if self.power:
            self.synced(position)

    def put_nowait(self, item, *, delay=0):
        """put() that does not wait."""
        self.put(item, False, delay=delay)

    def put_many(self, items, block=True, timeout=None, *, delay=0):
        """Puts items one behind the other, faster than as many calls; other producers' may come in between.

        All are encoded before the first is put. `Full` when there is no room for the rest: its `args[0]` is how many were
        put.
        """
        cdef mmapds_record_item *prepared
        cdef mmapds_record_item first
        cdef list datas = []
        cdef bytes data
        cdef int64_t limit = limit_of(block, timeout)
        cdef uint64_t flags = 0, position = 0
        cdef Py_ssize_t i, n, upto
        cdef int status
        if type(items) is list and self.raw and self.compress_from < 0:
            for item in <list>items:        # no comprehension: Cython's gives a reference too many back when memory is out
                datas.append(item if type(item) is bytes else self.data_of(item, &flags))
        else:
            for item in items:
                data = self.data_of(item, &flags)
                datas.append(data if flags == 0 else (data, flags))
        n = PyList_GET_SIZE(datas)
        if n == 0:
            return
        self.allowed()
        self.prepare(b"", 0, delay, &first)
        prepared = <mmapds_record_item *>malloc(n * sizeof(mmapds_record_item))
        if prepared is NULL:
            raise MemoryError
        try:
            for i in range(n):
                prepared[i] = first
                item = <object>PyList_GET_ITEM(datas, i)
                if type(item) is tuple:
                    datas[i], prepared[i].order = item
                data = <bytes>PyList_GET_ITEM(datas, i)
                self.check_size(len(data))
                prepared[i].hash = hash_of(data)
            i = 0
            while i < n:
                upto = min(n, i + BATCH)
                ready(self)
                status = queue_put_lock(&self.view, False)
                if status == QUEUE_DONE:
                    while i < upto:         # with the GIL and the lock, and nothing that runs Python code
                        data = <bytes>PyList_GET_ITEM(datas, i)
                        status = queue_put_one(&self.view, PyBytes_AS_STRING(data), len(data), &prepared[i], &position)
                        if status != QUEUE_DONE:
                            break
                        i += 1
                    lockword_release(&self.view.control.put_lock, False)
                    queue_wake(&self.view, QUEUE_ITEMS, 1)
                    self.mapping.check()
                    if status == QUEUE_DONE:
                        continue
                data = datas[i]             # one item with whatever it needs
                if self.put_data(data, &prepared[i], limit, &position) == QUEUE_FULL:
                    if self.power and i:
                        self.synced(position)
                    raise Full(i)
                i += 1
        finally:
            free(prepared)
        if self.power:
            self.synced(position)

    def _put_payload(self, bytes payload, uint64_t flags):
        """Puts what is stored in a dead letter; Full if there is no room."""
        cdef mmapds_record_item prepared
        cdef uint64_t position = 0
        self.allowed()
        self.prepare(payload, flags & MMAPDS_COMPRESSED, 0, &prepared)
        if self.put_data(payload, &prepared, 0, &position) == QUEUE_FULL:
            raise Full
        if self.power:
            self.synced(position)

    cdef int shut_down(self, bint empty) except -1:
        """ShutDown, if it is: at once after an immediate one, else when nothing is left (or to put)."""
        cdef mmapds_queue *control = self.view.control
        if load_seq_cst_u64(&control.shutdowns) != self.shut and (empty or load_seq_cst_u64(&control.immediate) > self.shut):
            raise ShutDown(f"{self.path} was shut down while this handle was open: what is opened from now on is not")
        return 0

    cdef int wait(self, int event, uint32_t seen, int64_t limit) except -1:
        """Sleeps until there may be something; 1 if the time was over before."""
        cdef queue_view view = self.view
        cdef Mapping meta = self.mapping
        cdef int64_t left = limit - kernel_clock_ns()
        cdef int result
        if left <= 0:
            return 1
        self.users += 1
        with nogil:
            result = queue_sleep(&view, event, seen, left)
        self.users -= 1
        PyErr_CheckSignals()
        if result not in (0, -EAGAIN, -ETIMEDOUT, -EINTR):
            load_seq_cst_u64(&view.control.tail)        # EFAULT: if the page is gone, this leaves the mark
            meta.check()
            raise_errno(-result, self.path)
        if result == -ETIMEDOUT:
            self._tend()
        return 0
