# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""A claim: a consumer's hold on an item, as an object."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from mmapds._native.queueview cimport *
from mmapds._native.queueview cimport QueueView, ready
from mmapds._native.region cimport Mapping

from mmapds.errors import Closed, CorruptionError, ForkedHandle, StaleClaim


cdef Py_ssize_t LARGE = 65536           # bytes from which a copy releases the GIL
cdef double LONGEST = 9e9               # seconds that fit into nanoseconds


cdef int64_t nanoseconds(object seconds, str what) except -1:
    """A duration, of 0 or more."""
    cdef double value = seconds
    if not value >= 0:
        raise ValueError(f"{what} is {seconds} seconds: it must be 0 or more")
    return <int64_t>(min(value, LONGEST) * 1e9)


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
        cdef QueueView queue = self.queue
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
        cdef QueueView queue = self.queue
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
        cdef QueueView queue = self.queue
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
        cdef QueueView queue = self.queue
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
