# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""Taking: get and claim.

A `get` makes its buffer before it locks, as large as the next item looks, because what happens under the lock must need
nothing from Python; a guess that was wrong costs a repetition. Large items are claimed, copied without a lock, and
acknowledged: who dies in between has not had them. Hashes are looked at, and values decoded, outside every lock.

Who waits spins for some microseconds first: between two busy processes the next item is nearer than a system call.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from mmapds._native.atomics cimport cpu_relax, load_relaxed_u64
from mmapds._native.claim cimport Claim, nanoseconds
from mmapds._native.kernel cimport kernel_clock_ns
from mmapds._native.lockword cimport Owner
from mmapds._native.queueput cimport QueuePut, called, limit_of
from mmapds._native.queueview cimport *
from mmapds._native.queueview cimport Segments, ready
from mmapds._native.region cimport Mapping

from queue import Empty

from xxhash import xxh3_64_intdigest

from mmapds.errors import CorruptionError, DurabilityFailed


cdef object hash_of = xxh3_64_intdigest # not looked up among the module's names at each call

cdef Py_ssize_t LARGE = 65536           # bytes from which an item is not copied under the lock
cdef int64_t SPIN = 15000               # ns
cdef Py_ssize_t BATCH = 256             # items that are taken under one lock


cdef inline Mapping taken_from(Segments table, const queue_item *item):
    """The mapping that an item was taken from, with this table."""
    return table.mappings[item.segment - &table.entries[0]]


@cython.final
cdef class Box:
    pass


@cython.binding(False)
cdef class QueueTake(QueuePut):

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
                    queue_wake(&self.view, QUEUE_ITEMS, 1)          # see queueput.h: one at a time
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

    cdef object value_of(self, bytes data, uint64_t flags):
        """The value of stored bytes; CorruptionError, or what the codec raises."""
        if flags & MMAPDS_COMPRESSED:
            data = self._decompress(data)
        if self.raw:
            return data
        if self.unpack is not None:
            value = called(self.unpack, data)
            if value is not None:           # None may be the value: then the codec says so
                return value
        return self.decode(memoryview(data))

    cdef object received(self, bytes data, queue_item *item):
        """The value of an item that is ours alone."""
        if <uint64_t>hash_of(data) != item.hash:
            self._spoilt(data, f"{item.epoch}-{item.sequence}", "its bytes are not what was put")
        if self.raw and not item.flags & MMAPDS_COMPRESSED:
            return data
        try:
            return self.value_of(data, item.flags)
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
                claim.item = self.value_of(data, item.flags)
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
