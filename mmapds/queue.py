"""A work queue between unrelated processes, in files, without a server: FIFO, with delivery that survives deaths.

Promises
    What was put is there, whoever dies, until somebody has got it or acknowledged it. `get` delivers at most once,
    `claim` at least once: a claim whose process dies comes back to its place. Order is the order of puts. What is
    finished gives its space back while the queue is in use.

Here is the policy: paths, options, modes, the end of a handle. The transitions are in ``_native/queueput.h`` and
``queue.h``; their hot callers in ``queueput.pyx``, ``queuetake.pyx`` and ``queue.pyx``. In order of inheritance:
mappings, private copies and damage in ``_queuemaps.py``, looking without taking in ``_queuelook.py``, claims in loops
and asyncio in ``_queueasync.py``. Files in ``_queuefiles.py``, recovery after another boot in ``_queuerecovery.py``,
dead letters in ``_deadletters.py``.

Prior art
    `queue.Queue` (signatures), emmap_queue (Erlang: a queue in one mapped file), Amazon SQS (visibility, dead letters),
    beanstalkd (delay, bury, touch), Redis streams (pending entries by consumer).

Rejected
    A table in SQLite, as other persistent queues have it: four to five orders of magnitude slower. Visibility time-outs
    as the only way back: either too short for the slow or too long after a death, of which the kernel knows at once.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Any, Literal, NoReturn

from mmapds import _deflate, _queuefiles, codecs, files
from mmapds._deadletters import DeadLetters
from mmapds._handle import Handle
from mmapds._native import kernel
from mmapds._native.atomic import own_methods
from mmapds._native.claim import Claim
from mmapds._native.lockword import Owner
from mmapds._native.queuescan import add_tally
from mmapds._native.region import FLAGS as MAP
from mmapds._queueasync import QueueAsync
from mmapds._queueoptions import LARGEST, RetryDelay, check_options
from mmapds.errors import Closed, CorruptionError, DurabilityFailed, MmapdsError, SchemaMismatch
from mmapds.region import Mode, StrPath, check_mode

_SEGMENT = 64 << 20
_STORED = ("segment_size", "maxsize", "max_bytes", "max_attempts")


@own_methods
class Queue(QueueAsync, Handle):
    """A FIFO queue in the directory at `path`, for any number of processes that put and take.

    path
        In mode ``shared`` the directory is made if it is missing (0700).
    maxsize, max_bytes
        How many items may wait, and how many bytes they may take: then `put` blocks, or raises `Full`. 0 or None: no
        limit.
    mode
        ``shared``; ``readonly``: peek, iterate and stats, without write permission; ``private``: a copy, a point in
        time, which may be drained while the queue itself sees nothing.
    codec, schema
        As for Synchronizer; "raw" is the fastest.
    durability
        "process": survives the death of any process; "power": when `put`, `ack` or `get` returns, it is on the disk.
    segment_size
        Bytes of a file of the queue (64 MiB). A finished one is removed while the queue is in use.
    lease
        Seconds after which a claim ends even if its process lives. None: never. Of this handle.
    max_attempts
        After so many deliveries that failed an item goes to the dead letters. None: never.
    retry_delay
        Seconds before an item that failed is delivered again, or a function of its attempts. Of this handle.
    compress
        "zlib:LEVEL" or "zlib:LEVEL:FROM": items of FROM bytes (512) or more are stored compressed.
    populate
        Fault in, at open, what the queue holds.

    maxsize, max_bytes, codec, schema, durability, segment_size, max_attempts and compress are stored when the queue is
    made, and taken from it if left out; given and different, `SchemaMismatch` shows both.

    Progress: lock-based and short. A process that dies inside an operation harms nobody: the next one finishes or takes
    back what it began. A process *stopped* inside one holds the others up until it goes on. A handle may be shared by
    threads; in the child of a fork it registers anew, and its parent's claims stay the parent's. Source of the idea:
    emmap_queue.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Queue(folder + "/jobs") as q:
    ...     q.put({"job": 1})
    ...     with q.claim() as claim:
    ...         claim.item, claim.id, claim.attempts
    ({'job': 1}, '1-0', 1)
    """

    __slots__ = (
        "_least",
        "_letters",
        "_retry_delay",
        "compress",
        "lease",
        "max_attempts",
        "max_bytes",
        "maxsize",
        "segment_size",
    )

    maxsize: int
    max_bytes: int | None
    max_attempts: int | None
    segment_size: int
    compress: str | None
    lease: float | None
    _letters: Queue | None

    def __init__(
        self,
        path: StrPath,
        maxsize: int | None = None,
        *,
        mode: Mode = "shared",
        codec: object = None,
        schema: str | None = None,
        durability: Literal["process", "power"] | None = None,
        max_bytes: int | None = None,
        segment_size: int | None = None,
        lease: float | None = None,
        max_attempts: int | None = None,
        retry_delay: RetryDelay = 0,
        compress: str | None = None,
        populate: bool = False,
    ) -> None:
        if self.path:  # None before
            raise RuntimeError("a Queue is opened once: make another")
        check_mode(mode)
        if MAP["PAGE"] != kernel.PAGE:
            raise OSError(
                errno.ENOTSUP,
                f"this kernel has pages of {MAP['PAGE']} bytes; queues are laid out in pages of {kernel.PAGE}",
            )
        asked = {"segment_size": segment_size, "maxsize": maxsize, "max_bytes": max_bytes, "max_attempts": max_attempts}
        check_options(asked, durability, retry_delay, lease)
        packed = _deflate.parse(compress)
        name = os.path.abspath(os.fspath(path))
        self._configure(name, mode, durability or "process")
        try:
            self._backing = self._open_files(name, mode, asked, durability, codec, schema, packed)
            header = self._backing.meta.header
            self._configure(name, mode, header.durability)
            self._take_options(header, asked, durability, packed)
            self.codec = codecs.reopen(header.schema.text, codec, schema, where=name)
            self._retry_delay = retry_delay
            self.lease = lease
            self._async = {}
            self._letters = None
            self._use(self.codec, self._least if self._level else None, lease)
            self._offset = _queuefiles.boot_offset()
            self._found_last = (0, 0, 0, 0)
            self._begin()
            if populate:
                self._populate()
        except BaseException:
            self.close()
            raise

    # ---- coming to life -----------------------------------------------------------------------------------------

    @staticmethod
    def _open_files(
        path: str,
        mode: str,
        asked: dict[str, int | None],
        durability: str | None,
        codec: object,
        schema: str | None,
        packed: tuple[int, int] | None,
    ) -> _queuefiles.QueueFiles:
        while True:
            try:
                return _queuefiles.QueueFiles(path, writable=mode == "shared")
            except FileNotFoundError:
                if mode != "shared":
                    raise FileNotFoundError(
                        errno.ENOENT, f"there is no queue here, and mode={mode!r} makes none", path
                    ) from None
            with suppress(FileExistsError):  # somebody was first: open theirs
                _queuefiles.QueueFiles.create(
                    path,
                    durability=durability or "process",
                    options=(
                        asked["segment_size"] or _SEGMENT,
                        asked["maxsize"] or 0,
                        asked["max_bytes"] or 0,
                        asked["max_attempts"] or 0,
                        *(packed or (0, 0)),
                    ),
                    schema=codecs.fingerprint("msgpack" if codec is None else codec, schema),
                )

    def _take_options(
        self, header: files.Header, asked: dict[str, int | None], durability: str | None, packed: tuple[int, int] | None
    ) -> None:
        stored = dict(zip(_STORED, header.options, strict=False))
        size = stored["segment_size"]
        if (
            size < 2 * kernel.PAGE
            or size % kernel.PAGE
            or size > LARGEST
            or stored["maxsize"] >> 62
            or any(stored[name] >> 62 for name in ("max_bytes", "max_attempts"))
            or header.options[4] > 9
            or header.options[5] >> 62
        ):
            raise CorruptionError(f"{self.path}: meta stores segments of {size} bytes: restore a copy")
        self._level, self._least = header.options[4:6]
        self.compress = _deflate.text_of(self._level, self._least)
        shown = {**stored, "compress": self.compress, "durability": header.durability}
        wanted: dict[str, object] = {
            **asked,
            "compress": _deflate.text_of(*packed) if packed else None,
            "durability": durability,
        }
        for option, value in wanted.items():
            if value is not None and value != shown[option]:
                raise SchemaMismatch(
                    f"{self.path} stores {option}={shown[option]!r}, asked for was {value!r}: leave {option}= out to "
                    "take the stored one, or use another path"
                )
        self.segment_size = size
        self.maxsize = stored["maxsize"]
        self.max_bytes = stored["max_bytes"] or None
        self.max_attempts = stored["max_attempts"] or None

    def _begin(self) -> None:
        backing, meta = self._backing, self._backing.meta
        options = tuple(meta.header.options[:4])
        if self.mode == "shared":
            meta.settle_and_live(self._recover)
            if meta.header.durability == "power":
                files.sync_directory(meta.path)  # who made the file may have died before he did
                files.sync_directory(self.path)
            self._map(meta.fd, meta.size, True, options, backing.directory, self._offset)
        else:
            self._begin_apart(options)

    def _new_owner(self) -> Owner:
        meta = self._backing.meta
        locks = meta.live_locks()
        locks.lock(kernel.LOCK_SLOT, shared=True)  # the child of a fork is alive too
        return Owner(locks)

    @classmethod
    def _dead_queue(cls, path: str, mode: Mode, durability: Any) -> Queue:
        if mode != "shared":
            return cls(path, mode=mode, codec="raw")
        return cls(path, codec="raw", durability=durability, segment_size=1 << 20)

    # ---- failures ----------------------------------------------------------------------------------------------

    def _retry(self, attempts: int) -> float:
        delay = self._retry_delay
        return delay(attempts) if callable(delay) else delay

    def _bury(self, claim: Claim, reason: str, error: object) -> None:
        claim.touch(None)  # still ours, and from here on without a lease
        self.dead._add(claim, reason, error)
        claim.ack()
        add_tally(self._meta, "buried")

    def _tired(self, claim: Claim) -> None:
        self._bury(claim, f"delivered {claim.attempts} times", "its consumer died, or its lease ended")

    # ---- the end of items -----------------------------------------------------------------------------------------

    @property
    def dead(self) -> DeadLetters:
        """The dead letters: items that failed too often, or were buried."""
        return DeadLetters(self)

    def _keep_letters(self, letters: Queue) -> bool:
        if self.closed or self._letters is not None:
            return False
        self._letters = letters
        return True

    def purge(self) -> int:
        """Takes away all that waits, delayed items included; returns how many. Claimed ones stay their holders'."""
        count: int = self._purge()
        if count and self.mode == "shared":
            add_tally(self._meta, "purged", count)
        return count

    def shutdown(self, immediate: bool = False) -> None:
        """Ends the work of every handle that is open now, in all processes: `put` raises `ShutDown`, and so does `get`
        when nothing is left; with `immediate`, all that waits is taken away, and `get` raises at once. What is opened
        later is not shut down."""
        self._shut(immediate)
        if immediate:
            self.purge()

    @staticmethod
    def erase(path: StrPath) -> None:
        """Removes the queue at `path` and all it holds. WriterBusy if somebody has it open; FileNotFoundError if there
        is none. Killed inside, the queue is there or not (what is left has a hidden name)."""
        _queuefiles.erase(os.path.abspath(os.fspath(path)))

    # ---- durability and the end ---------------------------------------------------------------------------------

    def flush(self, wait: bool = True) -> None:
        """Writes all of the queue to the disk; with ``wait=False`` only starts it.

        When it returns after waiting, what was put before survives power loss. DurabilityFailed if the disk did not
        take it: the next call writes everything anew. Does nothing in modes ``private`` and ``readonly``.
        """
        self._check_open()
        if self.mode != "shared":
            return
        self.dead._flush(wait)  # first: a letter must not be lost because its item is known to be done
        backing = self._backing
        meta = backing.meta
        meta.check_path()
        if not wait:
            kernel.start_writeback(meta.descriptor(), 0, meta.size)
        anew = bool(int.from_bytes(os.pread(meta.descriptor(), 8, files.FAILED), "little"))
        error = self._sync_control(anew) if wait else 0
        for number in backing.numbers():
            try:
                fd, size = backing.open_segment(number, writable=True)
            except FileNotFoundError:
                continue  # finished meanwhile
            try:
                if wait:
                    error = self._sync_segment(self._segment_mapping(fd, size), anew) or error
                else:
                    kernel.start_writeback(fd, 0, size)
            finally:
                os.close(fd)
        if error:
            self._set_failed(True)
            raise DurabilityFailed(
                f"{self.path}: the disk did not take it ({os.strerror(error)}). Check the disk, then call flush() "
                "again.",
                path=self.path,
                errno=error,
            )
        if wait:
            files.sync_directory(meta.path)
            with suppress(PermissionError):  # of a directory that may be written and not be read
                files.sync_directory(self.path)  # its own name
            if anew:
                self._set_failed(False)

    def close(self) -> None:
        """Ends this handle: its claims return to the queue, and threads that wait in it raise `Closed`. Idempotent."""
        self._leave()
        self._forget()
        letters, self._letters = getattr(self, "_letters", None), None
        if letters is not None:
            letters.close()
        backing = getattr(self, "_backing", None)
        if backing is not None:
            backing.close()

    def check(self) -> None:
        """Checks every invariant of the queue, and changes nothing; `CorruptionError` says which one is broken."""
        self._check_open()
        from mmapds.inspection import check

        check(self.path)

    @property
    def _is_closed(self) -> bool:
        return self.closed

    def _check_open(self) -> None:
        if self.closed:
            raise Closed(f"{self.path}: this queue is closed")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a queue is not copied or pickled: open the path once more")

    def __repr__(self) -> str:
        try:
            state = "closed" if self.closed else f"{self.qsize()} items"
        except MmapdsError as error:
            state = type(error).__name__
        return f"<Queue {self.path} {self.mode} {state}>"
