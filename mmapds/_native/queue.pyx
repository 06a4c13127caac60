# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""The hot half of Queue: put, get, claim, and waiting for them.

Payloads are hashed and decoded outside every lock. A `get` makes its buffer before it locks, as large as the next item
looks, because what happens under the lock must need nothing from Python; a guess that was wrong costs a repetition. Large
items are claimed, copied without a lock, and acknowledged: who dies in between has not had them.

Who waits spins for some microseconds first: between two busy processes the next item is nearer than a system call.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject
from libc.errno cimport EAGAIN, EINTR, ETIMEDOUT
from libc.stdint cimport INT64_MAX, UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from mmapds._native.atomics cimport (
    cpu_relax, fetch_add_seq_cst_u64, load_relaxed_u64, load_seq_cst_u64, store_seq_cst_u64,
)
from mmapds._native.kernel cimport deadline, kernel_clock_ns, raise_errno
from mmapds._native.lockword cimport Owner
from mmapds._native.queueview cimport *
from mmapds._native.queueview cimport QueueView, Segments, ready
from mmapds._native.region cimport Mapping

from queue import Empty, Full

from msgpack import Packer, unpackb
from xxhash import xxh3_64_intdigest

from mmapds.errors import Closed, CorruptionError, DurabilityFailed, ForkedHandle, ShutDown, StaleClaim


cdef object hash_of = xxh3_64_intdigest # not looked up among the module's names at each call


cdef Py_ssize_t LARGE = 65536           # bytes from which an item is not copied under the lock
cdef int64_t SPIN = 15000               # ns
cdef double LONGEST = 9e9               # seconds that fit into nanoseconds
cdef Py_ssize_t BATCH = 256            # items that are put or taken under one lock
cdef Py_ssize_t PACKER_KEEPS = 1 << 20 # a packer keeps its largest buffer: one that grew past this goes
cdef int COARSE = 5                     # CLOCK_REALTIME_COARSE


cdef int64_t nanoseconds(object seconds, str what) except -1:
    """A duration, of 0 or more."""
    cdef double value = seconds
    if not value >= 0:
        raise ValueError(f"{what} is {seconds} seconds: it must be 0 or more")
    return <int64_t>(min(value, LONGEST) * 1e9)


cdef int64_t limit_of(object block, object timeout) except -1:
    """When a wait ends, on kernel_clock_ns; 0: at once. As queue.Queue takes them."""
    if not block:
        return 0
    if timeout is None:
        return INT64_MAX
    if timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")
    return deadline(timeout)


cdef inline Mapping taken_from(Segments table, const queue_item *item):
    """The mapping that an item was taken from, with this table."""
    return table.mappings[item.segment - &table.entries[0]]


@cython.final
cdef class Box:
    pass


@cython.final
@cython.no_gc_clear                     # collected in a cycle, it still has to return the item
@cython.binding(False)
cdef class Claim:
    """A hold on an item: it is nobody else's until it is acknowledged, returned, or its handle ends.

    :attr:`item` is the value. A context manager: leaving the block acknowledges the item; leaving it by an exception
    returns it, to its old place, after the queue's `retry_delay`, or to the dead letters after `max_attempts`. Every method
    but `touch` ends the claim; after that, and once the claim was lost (its lease ended), they raise `StaleClaim`. A claim
    that is dropped returns the item. In a fork's child it is the parent's: `ForkedHandle`.
    """

    def __init__(self):
        raise TypeError("claims come from Queue.claim()")

    def __dealloc__(self):
        if self.queue is not None and not self.settled and self.ours == self.queue.epoch[0]:
            self.settled = True
            self.drop()

    cdef int drop(self) except -1:
        try:
            self.settled = False
            self.back(0, False)
        except (Closed, StaleClaim, CorruptionError, OSError, KeyboardInterrupt):
            pass                            # nobody can be told; the item comes back with its handle
        return 0

    @property
    def id(self):
        """"EPOCH-SEQUENCE": the same at each delivery of this item, and no other item's of this queue."""
        return f"{self.held.epoch}-{self.held.sequence}"

    @property
    def attempts(self):
        """How many times the item has been delivered by a claim, with this one."""
        return self.held.attempts

    @property
    def put_at(self):
        """When the item was put: seconds since 1970, some milliseconds coarse."""
        return self.held.born / 1e9

    @property
    def active(self):
        """False once this object has ended the claim. A lease may have ended without it."""
        return not self.settled

    cdef int begin(self) except -1:
        if self.ours != self.queue.epoch[0]:
            raise ForkedHandle("the claim is the parent's: a fork does not inherit it; claim in this process")
        if self.settled:
            raise StaleClaim(f"claim {self.id} of {self.queue.path} has been ended: each claim is acked or returned once")
        ready(self.queue)
        return 0

    cdef int check(self, int status) except -1:
        """After a transition: 1 if it is to be repeated."""
        if status == QUEUE_DONE:
            self.settled = True
            self.segment.check()
            return 0
        if status == QUEUE_STALE:
            self.settled = True
            raise StaleClaim(
                f"claim {self.id} of {self.queue.path} was lost: its lease ended, and the item went back to the queue; "
                "somebody else may have it. Do less per claim, touch() it, or take a longer lease."
            )
        if status != QUEUE_BUSY:
            self.queue.settle(status)
        return 1

    cdef int done(self, bint owe) except -1:
        cdef QueueCore queue = self.queue
        cdef queue_view view
        cdef Mapping meta
        cdef int status
        self.begin()
        status = queue_ack(&queue.view, &self.held, owe, False)
        while status != QUEUE_DONE:
            if status == QUEUE_BUSY:
                view = queue.view
                meta = queue.mapping
                queue.users += 1
                with nogil:
                    status = queue_ack(&view, &self.held, owe, True)
                queue.users -= 1
                if status == QUEUE_DONE:
                    break
                PyErr_CheckSignals()
            self.check(status)
            self.begin()
            status = queue_ack(&queue.view, &self.held, owe, False)
        self.check(QUEUE_DONE)
        if queue.power:
            queue.durable(self.segment)
        return 0

    cdef int back(self, uint64_t delay, bint to_back) except -1:
        cdef QueueCore queue = self.queue
        cdef queue_view view
        cdef Mapping meta
        cdef int status
        self.begin()
        while True:
            view = queue.view
            meta = queue.mapping
            queue.users += 1
            with nogil:
                status = queue_nack(&view, &self.held, delay, to_back, True)
            queue.users -= 1
            if status == QUEUE_DONE:
                return self.check(status)
            PyErr_CheckSignals()
            self.check(status)
            self.begin()

    cdef bytes payload(self):
        cdef bytes data = PyBytes_FromStringAndSize(NULL, self.held.size)
        cdef char *to = PyBytes_AS_STRING(data)
        cdef char *source = self.held.payload
        if <Py_ssize_t>self.held.size >= LARGE:
            with nogil:
                memcpy(to, source, self.held.size)
        else:
            memcpy(to, source, self.held.size)
        self.segment.check()
        return data

    def _payload(self):
        """What is stored: the payload, perhaps compressed, its flags, and when it was put."""
        return self.payload(), self.held.flags, self.held.born

    def ack(self):
        """The item is done, and gone. Counts as `task_done`.

        Durability "power": when it returns, the disk knows. StaleClaim if the claim was lost.
        """
        self.done(False)

    def nack(self, delay=None, *, bint to_back=False, error=None):
        """The item comes back: to its old place, or, with `to_back`, behind all others, after `delay` seconds.

        `delay` None: the queue's `retry_delay`. After `max_attempts` deliveries it goes to the dead letters instead, with
        `error` (a text, or an exception).
        """
        cdef QueueCore queue = self.queue
        self.begin()
        if queue.view.max_attempts and self.held.attempts >= queue.view.max_attempts:
            queue._bury(self, f"failed {self.held.attempts} times", error)
            return
        self.back(nanoseconds(queue._retry(self.held.attempts) if delay is None else delay, "delay"), to_back)

    def bury(self, reason=None):
        """The item goes to the dead letters now. Counts as `task_done`."""
        self.begin()
        self.queue._bury(self, "buried" if reason is None else str(reason), None)

    def touch(self, seconds=None):
        """From now on the claim ends in so many seconds if nothing else ends it; None: with its handle only."""
        cdef QueueCore queue = self.queue
        cdef queue_view view
        cdef Mapping meta
        cdef uint64_t lease = max(1, nanoseconds(seconds, "the lease")) if seconds is not None else 0
        cdef int status = QUEUE_BUSY
        self.begin()
        while status != QUEUE_DONE:
            view = queue.view
            meta = queue.mapping
            queue.users += 1
            with nogil:
                status = queue_touch(&view, &self.held, lease, True)
            queue.users -= 1
            if status != QUEUE_DONE:
                PyErr_CheckSignals()
                self.check(status)
                self.begin()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        if self.settled or self.ours != self.queue.epoch[0]:
            return                          # ended inside the block; or forked inside it: the parent's
        if kind is None:
            self.done(False)
        elif issubclass(kind, Exception):
            try:
                self.nack(error=value)
            except (StaleClaim, Closed):
                pass                        # lost meanwhile: the item is back already, and the block's error counts
            except Exception as error:      # retry_delay's own, or no room for a dead letter
                value.add_note(f"the item could not be returned as it should be ({error!r}): it comes back in a second")
                if not self.settled:
                    self.back(1000000000, False)
        else:
            try:
                self.back(0, False)  # interrupted, not failed
            except (StaleClaim, Closed):
                pass

    def __repr__(self):
        state = "ended" if self.settled else "active"
        return f"<Claim {self.id} of {self.queue.path} {state}, attempt {self.held.attempts}>"


@cython.binding(False)
cdef class QueueCore(QueueView):

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
            try:
                data = pack(item)
                if len(data) > PACKER_KEEPS:
                    pack = Packer().pack
            except Exception:
                pack = Packer().pack
                data = self.encode(item)    # the same, and an error that says what is wrong
            finally:
                self.pack = pack
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

    # ---- taking --------------------------------------------------------------------------------------------------

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
            meta.check()
            load_seq_cst_u64(&view.control.tail)        # EFAULT: if the page is gone, this leaves the mark
            meta.check()
            raise_errno(-result, self.path)
        if result == -ETIMEDOUT:
            self._tend()
        return 0

    cdef int attempt(self, int how, uint64_t lease, char *into, Py_ssize_t room, queue_item *item, Box box) except -1:
        """One transition, whatever it needs: DONE, TIRED, EMPTY, LARGE, BAD."""
        cdef queue_view view
        cdef Mapping meta
        cdef Segments table = self.table
        cdef Owner owner
        cdef int status = queue_take(&self.view, how, lease, into, room, item, False)
        while True:
            if status == QUEUE_DONE or status == QUEUE_TIRED:
                box.segment = taken_from(table, item)
                return status
            if status == QUEUE_EMPTY or status == QUEUE_LARGE or status == QUEUE_BAD:
                return status
            if status == QUEUE_BUSY:
                table = None
                view = self.view
                table = self.table
                meta = self.mapping
                owner = self.owner
                self.users += 1
                with nogil:
                    status = queue_take(&view, how, lease, into, room, item, True)
                self.users -= 1
                if status == QUEUE_DONE or status == QUEUE_TIRED:
                    continue
                self.view.wanted = view.wanted
                self.view.units = view.units
                PyErr_CheckSignals()
                ready(self)
                if status != QUEUE_BUSY:
                    continue
            else:
                self.settle(status)
            ready(self)
            if not self.view.holder and how != QUEUE_DROP:
                self.hold_slot()
            table = None                    # a table's end unmaps, and that lets go of the GIL: before the next is looked at
            table = self.table
            status = queue_take(&self.view, how, lease, into, room, item, False)

    cdef int take(self, int how, object lease, Box box, queue_item *item, int64_t limit) except -1:
        """DONE, TIRED, EMPTY or LARGE: waits until `limit`. For GET, the buffer in `box` is replaced as needed."""
        cdef uint32_t seen = 0
        cdef bint announced = False, swept = False
        cdef char *into = NULL
        cdef Py_ssize_t room = 0
        cdef uint64_t due = 0
        cdef int64_t spun
        cdef int status
        cdef mmapds_queue *control
        while True:
            if load_relaxed_u64(&self.view.control.shutdowns) != self.shut:
                self.shut_down(False)
            if how == QUEUE_GET:
                into = PyBytes_AS_STRING(box.buffer)
                room = len(box.buffer)
            elif lease is not None:
                due = queue_now(&self.view) + max(1, nanoseconds(lease, "lease"))
            status = self.attempt(how, due, into, room, item, box)
            if status == QUEUE_DONE or status == QUEUE_TIRED:
                if announced and queue_waiting(self.view.control) > 0:
                    queue_wake(&self.view, QUEUE_ITEMS, 1)          # see queue.h: one at a time
                return status
            if status == QUEUE_LARGE:
                if <Py_ssize_t>item.size > LARGE:
                    return status
                box.buffer = PyBytes_FromStringAndSize(NULL, item.size)
                continue
            if status == QUEUE_BAD:
                if announced:
                    queue_wake(&self.view, QUEUE_ITEMS, 1)
                self._set_aside(item.position, item.entry)
                continue
            if load_relaxed_u64(&self.view.control.shutdowns) != self.shut:
                self.shut_down(True)
            if not swept:
                swept = True
                if load_relaxed_u64(&self.view.control.claimed) and self.bury_dead(False):
                    continue
            if limit == 0:
                return QUEUE_EMPTY
            if announced:
                if self.wait(QUEUE_ITEMS, seen, limit):
                    return QUEUE_EMPTY
                ready(self)
            else:
                control = self.view.control
                meta = self.mapping
                self.users += 1
                with nogil:
                    spun = kernel_clock_ns() + SPIN
                    while (load_relaxed_u64(&control.head) == load_relaxed_u64(&control.tail)
                            and not load_relaxed_u64(&control.heaps[QUEUE_READY]) and kernel_clock_ns() < spun):
                        cpu_relax()
                self.users -= 1
            ready(self)
            seen = queue_announce(&self.view, QUEUE_ITEMS)
            announced = True

    cdef object value_of(self, bytes data):
        if self.raw:
            return data
        if self.unpack is not None:
            try:
                return self.unpack(data)
            except Exception:
                pass                        # keys that are no text, or damage: the codec knows
        return self.decode(memoryview(data))

    cdef object received(self, bytes data, queue_item *item):
        """The value of an item that is ours alone."""
        if <uint64_t>hash_of(data) != item.hash:
            self._spoilt(data, f"{item.epoch}-{item.sequence}", "its bytes are not what was put")
        try:
            return self.value_of(self._decompress(data) if item.flags & MMAPDS_COMPRESSED else data)
        except CorruptionError as error:
            self._spoilt(data, f"{item.epoch}-{item.sequence}", str(error))
        except Exception as error:          # the codec's own: the item is gone, its bytes are not
            error.add_note(self._keep_bytes(data, f"{item.epoch}-{item.sequence}"))
            raise

    cdef int may_take(self) except -1:
        """Before each get or claim."""
        ready(self)
        if not self.writable:
            self._refuse()
        if not self.view.holder:
            self.hold_slot()
        if self.view.control.claimed:
            self.look()
        if self.power:
            self.check_durable()
        return 0

    cdef object get_item(self, int64_t limit):
        cdef queue_item item
        cdef Claim claim
        cdef bytes data
        cdef Py_ssize_t size
        cdef int status
        cdef Mapping segment = None
        cdef Segments table
        cdef Box box
        self.may_take()
        while True:
            size = queue_guess(&self.view, LARGE)
            data = PyBytes_FromStringAndSize(NULL, size)
            table = None                    # see attempt()
            table = self.table
            if load_relaxed_u64(&self.view.control.shutdowns) == self.shut:
                status = queue_take(&self.view, QUEUE_GET, 0, PyBytes_AS_STRING(data), size, &item, False)
            else:
                status = QUEUE_BUSY
            if status == QUEUE_DONE:
                if self.power:
                    segment = taken_from(table, &item)
            elif status == QUEUE_TIRED:
                self.tired(&item, taken_from(table, &item))
                continue
            else:
                table = None            # who waits must not keep finished segments
                box = Box.__new__(Box)
                box.buffer = data
                status = self.take(QUEUE_GET, None, box, &item, limit)
                data = box.buffer
                segment = box.segment
                if status == QUEUE_EMPTY:
                    raise Empty
                if status == QUEUE_TIRED:
                    self.tired(&item, segment)
                    continue
                if status == QUEUE_LARGE:
                    claim = self.claimed(None, 0)
                    if claim is None:       # another consumer was faster
                        continue
                    value = claim.item
                    try:
                        claim.done(True)
                    except DurabilityFailed as error:
                        error.items = [value]
                        raise
                    return value
            if <Py_ssize_t>item.size != len(data):
                data = data[:item.size]
            value = self.received(data, &item)
            if self.power:
                try:
                    self.durable(segment)
                except DurabilityFailed as error:
                    error.items = [value]       # gone from the queue, perhaps not on the disk
                    raise
            return value

    cdef int tired(self, queue_item *item, Mapping segment) except -1:
        """An item that was tried too often, and is claimed, goes to the dead letters."""
        cdef Claim claim = Claim.__new__(Claim)
        claim.queue = self
        claim.held = item[0]
        claim.segment = segment
        claim.ours = self.epoch[0]
        self._tired(claim)
        return 0

    cdef Claim claimed(self, object lease, int64_t limit):
        """None if nothing came."""
        cdef queue_item item
        cdef Claim claim
        cdef bytes data
        cdef int status
        cdef uint64_t due = 0
        cdef Segments table
        cdef Box box
        self.may_take()
        if lease is None and self.lease:
            lease = self.lease / 1e9
        while True:
            claim = Claim.__new__(Claim)    # before the claim: afterwards there must be somebody to end it
            if lease is not None:
                due = queue_now(&self.view) + max(1, nanoseconds(lease, "lease"))
            table = None                    # see attempt()
            table = self.table
            if load_relaxed_u64(&self.view.control.shutdowns) == self.shut:
                status = queue_take(&self.view, QUEUE_CLAIM, due, NULL, 0, &item, False)
            else:
                status = QUEUE_BUSY
            if status == QUEUE_DONE or status == QUEUE_TIRED:
                claim.segment = taken_from(table, &item)
            else:
                table = None            # who waits must not keep finished segments
                box = Box.__new__(Box)
                status = self.take(QUEUE_CLAIM, lease, box, &item, limit)
                if status == QUEUE_EMPTY:
                    return None
                claim.segment = box.segment
            claim.queue = self
            claim.held = item
            claim.ours = self.epoch[0]
            if status == QUEUE_TIRED:
                self._tired(claim)
                continue
            data = claim.payload()
            if <uint64_t>hash_of(data) != item.hash:
                claim.done(False)
                self._spoilt(data, claim.id, "its bytes are not what was put")
            try:
                claim.item = self.value_of(self._decompress(data) if item.flags & MMAPDS_COMPRESSED else data)
            except CorruptionError as error:
                self._bury(claim, "cannot be decoded", error)
                raise
            except Exception as error:      # the codec's own
                claim.nack(error=error)
                raise
            return claim

    def get(self, block=True, timeout=None):
        """Takes the first item: it is gone when this returns (at most once). `Empty` if none came in `timeout` seconds.

        Blocking, on a futex; Ctrl-C works. Killed inside, the item is there or gone. Durability "power": when it returns,
        the disk knows. ShutDown after shutdown(), when nothing is left. CorruptionError for an item that is damaged: it has
        been set aside, and the next call goes on behind it.
        """
        return self.get_item(limit_of(block, timeout))

    def get_nowait(self):
        """get() that does not wait."""
        return self.get_item(0)

    def get_many(self, Py_ssize_t n, block=True, timeout=None):
        """Takes up to `n` items, as many as are there: a list. Waits for the first, as get() does; `Empty` if none came.

        A damaged item among them is set aside, and left out; an error after the first item ends the list.
        """
        cdef list values = []
        if n <= 0:
            raise ValueError(f"get_many({n}): at least one")
        values.append(self.get_item(limit_of(block, timeout)))
        try:
            while len(values) < n:
                self.may_take()
                if not self.get_batch(values, min(n - len(values), BATCH)):
                    values.append(self.get_item(0))
        except DurabilityFailed as error:
            error.items = values + getattr(error, "items", [])      # gone from the queue, perhaps not on the disk
            raise
        except Exception:
            pass                                # Empty; or what the next call will tell: these are taken
        except BaseException as error:          # KeyboardInterrupt, most likely
            error.items = values
            raise
        return values

    cdef bint get_batch(self, list values, Py_ssize_t n) except -1:
        """Takes up to `n` items under one lock; False if the next one needs something first, or there is none."""
        cdef queue_item *items = <queue_item *>malloc(n * sizeof(queue_item))
        cdef list datas = [None] * n
        cdef bytes data = None
        cdef object stopped = None
        cdef set segments = set()
        cdef Segments table = self.table
        cdef Py_ssize_t i = 0, j
        cdef int status
        if items is NULL:
            raise MemoryError
        try:
            status = queue_take_lock(&self.view, False)
            if status == QUEUE_DONE:
                while i < n:                    # with the GIL and the lock, and nothing that runs Python code
                    try:
                        data = PyBytes_FromStringAndSize(NULL, queue_guess(&self.view, LARGE))
                    except MemoryError:
                        status = QUEUE_LARGE
                        break
                    status = queue_take_one(&self.view, QUEUE_GET, 0, PyBytes_AS_STRING(data), len(data), &items[i])
                    if status != QUEUE_DONE:
                        break
                    datas[i] = data
                    i += 1
                queue_take_unlock(&self.view, status)
                if self.view.maxsize or self.view.max_bytes:
                    queue_wake(&self.view, QUEUE_ROOM, 1)
            if self.power:
                for j in range(i):
                    segments.add(taken_from(table, &items[j]))
            for j in range(i):
                data = datas[j]
                try:
                    values.append(self.received(data if items[j].size == <size_t>len(data) else data[:items[j].size], &items[j]))
                except Exception:
                    pass                        # damaged: set aside, and counted
                except BaseException as error:
                    stopped = error             # the others first
            for segment in segments:
                self.durable(segment)
            if stopped is not None:
                raise stopped
            if status == QUEUE_TIRED:
                self.tired(&items[i], taken_from(table, &items[i]))
                status = QUEUE_DONE
            self.opened()
            self.mapping.check()
            return status == QUEUE_DONE
        finally:
            free(items)

    def claim_many(self, Py_ssize_t n, timeout=None, lease=None):
        """Claims up to `n` items, as many as are there: a list. Waits for the first; `Empty` if none came."""
        cdef list claims = []
        cdef Claim claim
        if n <= 0:
            raise ValueError(f"claim_many({n}): at least one")
        claims.append(self.claim(timeout, lease))
        while len(claims) < n:
            claim = self.claimed(lease, 0)
            if claim is None:
                break
            claims.append(claim)
        return claims

    def claim(self, timeout=None, lease=None):
        """Takes a hold on the first item: a :class:`Claim`, to be acked or returned (at least once).

        If this process dies, the item comes back; with `lease` (seconds; None: the queue's), also when that time is over.
        `timeout` 0 does not wait; `Empty` if nothing came.
        """
        cdef Claim claim = self.claimed(lease, limit_of(True, timeout) if timeout is None or timeout else 0)
        if claim is None:
            raise Empty
        return claim

    def _skip(self, uint64_t head, uint64_t position, uint64_t count):
        """The head goes past damaged records, unless it has moved meanwhile: whether it did."""
        cdef queue_view view
        cdef Mapping meta
        cdef Segments table
        cdef int status
        while True:
            ready(self)
            view = self.view
            meta = self.mapping
            table = self.table
            self.users += 1
            with nogil:
                status = queue_skip(&view, head, position, count, True)
            self.users -= 1
            if status == QUEUE_DONE or status == QUEUE_STALE:
                return status == QUEUE_DONE
            PyErr_CheckSignals()
            if status != QUEUE_BUSY:
                self.settle(status)

    def _discard(self, uint32_t number, uint64_t position):
        """A returned item whose record is damaged is given up, unless that has happened: whether it did."""
        cdef queue_view view
        cdef Mapping meta
        cdef int status
        while True:
            ready(self)
            view = self.view
            meta = self.mapping
            self.users += 1
            with nogil:
                status = queue_discard(&view, number, position, True)
            self.users -= 1
            if status == QUEUE_DONE or status == QUEUE_STALE:
                return status == QUEUE_DONE
            PyErr_CheckSignals()
            if status != QUEUE_BUSY:
                self.settle(status)

    def _put_payload(self, bytes payload, uint64_t flags):
        """Puts what is stored in a dead letter."""
        cdef mmapds_record_item prepared
        cdef uint64_t position = 0
        self.allowed()
        self.prepare(payload, flags & MMAPDS_COMPRESSED, 0, &prepared)
        self.put_data(payload, &prepared, INT64_MAX, &position)
        if self.power:
            self.synced(position)

    @property
    def _meta(self):
        """The mapping of meta."""
        self.opened()
        return self.mapping

    # ---- counting and waiting for the end ------------------------------------------------------------------------

    def qsize(self):
        """How many items wait, those with a delay included; claimed ones are not."""
        cdef int64_t found
        self.opened()
        found = queue_waiting(self.view.control)
        self.mapping.check()
        if found > <int64_t>((self.view.control.tail - self.view.control.head) // MMAPDS_ITEM_HEAD + self.view.control.capacity):
            self.settle(QUEUE_DAMAGED)      # nobody should make room for so many
        return max(0, found)

    def __len__(self):
        return self.qsize()

    def __bool__(self):
        return True                         # as queue.Queue: emptiness is asked for by name

    def empty(self):
        """True if nothing waits. It may be otherwise when you look at the answer."""
        return self.qsize() == 0

    def full(self):
        """True if `maxsize` items wait."""
        cdef uint64_t waiting = self.qsize()
        return 0 < self.view.maxsize <= waiting

    @property
    def unfinished_tasks(self):
        """Items that are not done: they wait, are claimed, or were got and wait for task_done."""
        cdef int64_t found
        self.opened()
        found = queue_unfinished(self.view.control)
        self.mapping.check()
        return max(0, found)

    def task_done(self):
        """An item that this handle got is done. ValueError if it has not got so many.

        Items that a handle got and that are not done when it ends, or dies, count as done: nobody will say so any more.
        """
        cdef queue_view view
        cdef Mapping meta
        cdef int status = QUEUE_BUSY
        ready(self)
        if not self.writable:
            self._refuse()
        while status != QUEUE_DONE:
            view = self.view
            meta = self.mapping
            self.users += 1
            with nogil:
                status = queue_task_done(&view, 1, True)
            self.users -= 1
            if status == QUEUE_DONE:
                return
            PyErr_CheckSignals()
            ready(self)
            if status == QUEUE_STALE:
                raise ValueError("task_done() called too many times")
            if status != QUEUE_BUSY:
                self.settle(status)

    def join(self, timeout=None):
        """Waits until every item is done: acked, or got and task_done; False if that took longer than `timeout` seconds.

        Items of consumers that died count for whoever has them next, or as done.
        """
        cdef int64_t limit = limit_of(True, timeout)
        cdef uint32_t seen
        ready(self)
        if not self.writable:
            self._refuse()
        while True:
            seen = queue_announce(&self.view, QUEUE_JOINED)
            if queue_unfinished(self.view.control) <= 0:
                self.mapping.check()
                return True
            late = self.wait(QUEUE_JOINED, seen, limit)
            ready(self)
            self.mapping.check()
            if late:
                return queue_unfinished(self.view.control) <= 0

    def _wait_item(self, double seconds):
        """For the waiter thread of asyncio: sleeps until there may be something to take, and says whether; takes nothing."""
        cdef uint32_t seen
        ready(self)
        seen = queue_announce(&self.view, QUEUE_ITEMS)
        if (load_relaxed_u64(&self.view.control.head) == load_seq_cst_u64(&self.view.control.tail)
                and not load_relaxed_u64(&self.view.control.heaps[QUEUE_READY])
                and load_relaxed_u64(&self.view.control.shutdowns) == self.shut):
            return self.wait(QUEUE_ITEMS, seen, kernel_clock_ns() + <int64_t>(seconds * 1e9)) == 0
        return True

    def _shut(self, bint immediate):
        """Every handle that is open now is shut down; this one too."""
        cdef mmapds_queue *control
        cdef uint64_t number
        ready(self)
        if not self.writable:
            self._refuse()
        control = self.view.control
        number = fetch_add_seq_cst_u64(&control.shutdowns, 1) + 1
        if immediate:
            store_seq_cst_u64(&control.immediate, number)
        for event in (QUEUE_ITEMS, QUEUE_ROOM, QUEUE_JOINED):
            queue_wake(&self.view, event, 0x7fffffff)
        self.mapping.check()

    def _purge(self):
        """Takes away all that waits now; how many."""
        cdef queue_item item
        cdef queue_view view
        cdef Mapping meta
        cdef Segments table = None
        cdef uint64_t until, number = 0, count = 0
        cdef int status = QUEUE_DONE, found = 0
        ready(self)
        if not self.writable:
            self._refuse()
        until = load_seq_cst_u64(&self.view.control.tail)
        while load_relaxed_u64(&self.view.control.head) < until and status != QUEUE_EMPTY:
            status = self.attempt(QUEUE_DROP, 0, NULL, 0, &item, Box.__new__(Box))
            if status == QUEUE_BAD:
                try:
                    self._set_aside(item.position, item.entry)
                except CorruptionError:
                    pass
            count += status != QUEUE_EMPTY
            ready(self)
        while number < self.view.control.used:
            table = None
            view = self.view
            table = self.table
            meta = self.mapping
            self.users += 1
            with nogil:
                status = queue_purge_entry(&view, <uint32_t>(number + 1), &found, True)
            self.users -= 1
            if status == QUEUE_DONE:
                count += found
                number += 1
                continue
            self.view.wanted = view.wanted
            PyErr_CheckSignals()
            ready(self)
            if status != QUEUE_BUSY:
                self.settle(status)
        queue_wake(&self.view, QUEUE_ROOM, 0x7fffffff)
        queue_wake(&self.view, QUEUE_JOINED, 0x7fffffff)
        return count
