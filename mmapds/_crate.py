"""Synchronizer with ``protocol="mmap-sync"``: the files of the Rust crate, shared with Rust processes both ways.

``<prefix>_state`` (0660, 16 bytes), ``<prefix>_data_0`` and ``<prefix>_data_1`` (0640), as the crate makes them. There
is no header, so nothing is stored about codec or schema, and no recovery after power loss: ``durability="power"`` is
refused. Writers exclude each other, and the crate's ``SingleWriter``, by ``flock`` on the state file; they do not see
the crate's ``LockDisabled``. See ``_native/mmapsync.h`` for the protocol and for what cannot be mended from one side.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mmapds import codecs, files
from mmapds._datafiles import CrateDataFiles
from mmapds._native import kernel
from mmapds._native.kernel import LockFile
from mmapds._native.mmapsync import Crate
from mmapds._native.region import FLAGS, Mapping
from mmapds.errors import IncompatibleFormat, NotInitialised, ProtocolMismatch
from mmapds.region import Mode, StrPath, check_mode
from mmapds.synchronizer import Synchronizer

_STATE_SIZE = 16
_PATIENCE = 0.1  # seconds for somebody who has created the state file and not yet sized it


class CrateSynchronizer(Synchronizer, Crate):
    """See the module's text; what is not said here is as `Synchronizer` says it."""

    def __init__(
        self,
        prefix: StrPath,
        *,
        mode: Mode = "shared",
        protocol: str = "mmap-sync",  # noqa: ARG002 (chosen by Synchronizer.__new__)
        codec: Any = None,
        schema: str | None = None,
        durability: str | None = None,
        populate: bool = False,
        verify: bool = True,
        checksum: Callable[[memoryview], int] | None = None,
    ) -> None:
        if hasattr(self, "prefix"):
            raise RuntimeError("a Synchronizer is opened once: make another")
        check_mode(mode)
        if durability not in (None, "process"):
            raise ValueError(f"durability {durability!r}: the files of mmap-sync can only have 'process'")
        if schema is not None:
            raise ValueError("schema=: the files of mmap-sync have no place to store one")
        self.prefix = os.path.abspath(os.fspath(prefix))
        self.mode = mode
        self.durability = "process"
        self.codec = codecs.resolve("msgpack" if codec is None else codec)
        self._decode = self.codec.decode
        self._own = self.codec.own
        self._path = self.prefix + "_state"
        self._data = CrateDataFiles(self.prefix, populate=populate)
        self._writer_lock: LockFile | None = None
        self._fd = self._open_state()
        status = os.fstat(self._fd)
        self._identity = (status.st_dev, status.st_ino)
        try:
            protection = FLAGS["READ"] | (FLAGS["WRITE"] if mode == "shared" else 0)
            control = Mapping(self._fd, _STATE_SIZE, protection, FLAGS["SHARED"], self._path)
            self._open_crate(control, verify=verify, unregistered=mode != "shared", checksum=checksum)
            if mode == "private":
                self._copy_here()
        except BaseException:
            self.close()
            raise

    def _open_state(self) -> int:
        writable = self.mode == "shared"
        while True:
            try:
                fd = files.open_regular(self._path, writable=writable)
                break
            except FileNotFoundError:
                if os.path.lexists(self.prefix + "_sync"):
                    raise ProtocolMismatch(
                        f"{self.prefix}_sync belongs to protocol 'mmapds': leave protocol= out, or use another prefix"
                    ) from None
                if not writable:
                    raise FileNotFoundError(
                        errno.ENOENT,
                        f"nothing is published here, and mode={self.mode!r} makes no files: start the writer first",
                        self._path,
                    ) from None
            # FileExistsError: somebody was first, open theirs
            with suppress(FileExistsError), files.unnamed(self._path, 0o660) as (created, publish):
                files.check_filesystem(created, self._path, "process")
                kernel.allocate(created, _STATE_SIZE)
                publish()
        try:
            files.check_filesystem(fd, self._path, "process")
            self._complete(fd, writable)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _complete(self, fd: int, writable: bool) -> None:
        """The crate creates the state file empty and sizes it afterwards; a death in between leaves it empty."""
        limit = time.monotonic() + _PATIENCE
        while (size := os.fstat(fd).st_size) == 0 and time.monotonic() < limit:
            time.sleep(0.001)
        if size == 0:
            if not writable:
                raise NotInitialised(f"{self._path} is empty: it is being created; start the writer first")
            kernel.allocate(fd, _STATE_SIZE)
        elif size != _STATE_SIZE:
            raise IncompatibleFormat(
                f"{self._path} has {size} bytes; the state file of mmap-sync has {_STATE_SIZE}. It is left as it is."
            )

    def _copy_here(self) -> None:
        try:
            with self.read() as result:
                self._open_private(bytes(result.data), result.version)
        except NotInitialised:
            self._open_private(b"", 0)

    def _become_writer(self) -> None:
        self._may_write()
        lock = files.open_locks(self._fd, self._path, self._identity)
        try:
            fcntl.flock(lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise self._busy(files.flock_holder(self._fd) or "an unknown process") from None
        try:
            self._check_path()
        except BaseException:
            lock.close()
            raise
        self._writer_lock = lock
        self._start_crate()

    def _check_path(self) -> None:
        files.check_same(self._fd, self._path)

    def _let_go(self) -> None:
        self._stop_writing()
        if self._writer_lock is not None:
            self._writer_lock.close()
            self._writer_lock = None

    def close(self) -> None:
        """Ends this handle; idempotent. Results that are still held stay counted, and valid for the writer's grace."""
        if not self._is_closed:
            self._close()
        self._let_go()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
