"""Persistent structures in memory-mapped files: they survive ``kill -9``, are shared by unrelated processes at memory
speed, and need no server.

The layers, imports pointing downwards only::

    cli  bench                                      what a shell can do
    Synchronizer  Counters  Queue  SnapshotMap      structures: policy in Python on a Cython hot class
    codecs  region  files  errors                   values, mapped memory, how files come to life
    _native                                         each multi-step change of shared memory, layouts, system calls
"""

from queue import Empty, Full

from mmapds._native.atomic import AtomicInt64
from mmapds._native.claim import Claim
from mmapds._native.counter import Counter, FloatCounter
from mmapds._native.lockword import Lock
from mmapds._native.results import ReadResult
from mmapds._native.writer import WriteResult
from mmapds._snapview import Snapshot
from mmapds.counters import Counters
from mmapds.errors import (
    Closed,
    CorruptionError,
    DurabilityFailed,
    ForkedHandle,
    IncompatibleFormat,
    MappingLost,
    MmapdsError,
    NotInitialised,
    ProtocolMismatch,
    SchemaMismatch,
    ShutDown,
    StaleClaim,
    UnsupportedFilesystem,
    WriterBusy,
)
from mmapds.queue import Queue
from mmapds.region import Region
from mmapds.snapshot import SnapshotMap, Transaction
from mmapds.synchronizer import Synchronizer

__version__ = "0.1.0"

__all__ = [
    "AtomicInt64",
    "Claim",
    "Closed",
    "CorruptionError",
    "Counter",
    "Counters",
    "DurabilityFailed",
    "Empty",
    "FloatCounter",
    "ForkedHandle",
    "Full",
    "IncompatibleFormat",
    "Lock",
    "MappingLost",
    "MmapdsError",
    "NotInitialised",
    "ProtocolMismatch",
    "Queue",
    "ReadResult",
    "Region",
    "SchemaMismatch",
    "ShutDown",
    "Snapshot",
    "SnapshotMap",
    "StaleClaim",
    "Synchronizer",
    "Transaction",
    "UnsupportedFilesystem",
    "WriteResult",
    "WriterBusy",
]
