# cython: language_level=3
"""The hot half of Queue (queue.pyx)."""

from mmapds._native.queuetake cimport QueueTake


cdef class QueueCore(QueueTake):
    """Counting, waiting for the end."""
