"""Every error that mmapds raises on its own account.

Promise
    All of them derive from `MmapdsError`, so one ``except`` catches the package and nothing
    else.  Each is also the builtin that a caller would have caught anyway: a file that says
    something else than expected is a `ValueError`, a busy writer a `BlockingIOError`, a lost
    mapping an `OSError`.  A message says what was found, what was expected and what to do.
    Every error is built from one message, ``str(error)`` is exactly that message, and pickling
    keeps it, so errors cross `multiprocessing` and `concurrent.futures` unchanged.

Not here
    Errors of the operating system that need no more words (`FileNotFoundError`,
    `PermissionError`, `IsADirectoryError`, a full disk) are raised as the builtins they are.
    Wrong arguments are plain `TypeError`, `ValueError` and `IndexError`.

Prior art
    bbolt groups its errors by operation and states for each when it is returned; pathlib and
    shutil show that an ``OSError`` is only useful with its ``errno``.

Rejected
    A class for each thing that can be wrong in a file: nobody handles thirty classes apart.
    Formatting the message from ``errno`` as `OSError` does: "[Errno 5] Input/output error"
    does not say what to do.
"""

# ruff: noqa: N818  The names say what is wrong; "Error" at the end of each would add nothing.

from __future__ import annotations

import errno as _errno
import queue as _queue
from typing import TYPE_CHECKING, Any, ClassVar

__all__ = [
    "Closed",
    "CorruptionError",
    "DurabilityFailed",
    "ForkedHandle",
    "IncompatibleFormat",
    "MappingLost",
    "MmapdsError",
    "NotInitialised",
    "ProtocolMismatch",
    "SchemaMismatch",
    "ShutDown",
    "StaleClaim",
    "UnsupportedFilesystem",
    "WriterBusy",
]


if TYPE_CHECKING:
    _LibraryShutDown = Exception
else:  # from Python 3.13 on
    _LibraryShutDown = getattr(_queue, "ShutDown", Exception)


class MmapdsError(Exception):
    """The base of all errors here; never raised itself.  Catch it to catch the package."""


# --- opening: the file is not what was asked for -------------------------------------------


class SchemaMismatch(MmapdsError, ValueError):
    """Raised when a file is opened with another codec, schema, dtype or layout than it stores.

    The message shows both; the file is unchanged.  Open without the option to take the stored
    one, pass the stored one, or write to a new path.
    """


class IncompatibleFormat(MmapdsError, ValueError):
    """Raised when a file is none of ours, another kind, or of a format version not known here.

    The file is unchanged: nothing is re-initialised because it looks wrong.  Check the path
    (``mmapds inspect PATH`` tells what it is), or use the release that wrote it.
    """


class ProtocolMismatch(MmapdsError, ValueError):
    """Raised when a Synchronizer finds the state file of the other protocol at its prefix.

    Pass the ``protocol=`` that the message names, or choose another prefix.
    """


# --- reading: the bytes are wrong -----------------------------------------------------------


class CorruptionError(MmapdsError, ValueError):
    """Raised when stored bytes contradict themselves: checksum, length, cursor or encoding.

    Nothing of them has been handed out.  ``mmapds verify PATH`` lists all damage; restore the
    file from a copy, or publish anew.  Bytes that another codec wrote raise this too.
    """


# --- the operating system and other processes -----------------------------------------------


class _SystemError(MmapdsError, OSError):
    """What the `OSError` kinds share: one message, a standing ``errno``, an optional path.

    ``errno`` is set without ``strerror`` and ``filename``, which would change ``str(error)``.
    """

    default_errno: ClassVar[int] = _errno.EIO
    path: str | None

    def __init__(self, message: str, *, path: str | None = None, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = self.default_errno if errno is None else errno
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, {**self.__dict__, "errno": self.errno}


class WriterBusy(_SystemError, BlockingIOError):
    """Raised when another live handle holds the one writer's place (``errno`` is ``EAGAIN``).

    ``path`` is the file, ``holder`` names who holds it, for people ("pid 123 (python), since
    ...") and not for decisions: the pid may be of another namespace.  Wait and try again, close
    the other handle, or read only.  A holder that dies gives the place up by itself.
    """

    default_errno: ClassVar[int] = _errno.EAGAIN
    holder: str | None

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        holder: str | None = None,
        errno: int | None = None,
    ) -> None:
        super().__init__(message, path=path, errno=errno)
        self.holder = holder


class MappingLost(_SystemError):
    """Raised when pages under a mapping are gone: file truncated, disk full or failing (``EIO``).

    Nothing was published, and the handle is of no further use: close it, find out who truncated
    the file or filled the disk, and open again.  Views handed out before read zeros there.
    """

    default_errno: ClassVar[int] = _errno.EIO


class UnsupportedFilesystem(_SystemError):
    """Raised when the file system cannot keep what was asked for (``errno`` is ``EOPNOTSUPP``).

    Network file systems and overlayfs do not share mappings reliably, tmpfs does not survive
    power loss, few offer DAX.  Use a local one (ext4, xfs, btrfs; tmpfs for ``process``), or the
    override that the message names.
    """

    default_errno: ClassVar[int] = _errno.EOPNOTSUPP


class DurabilityFailed(_SystemError):
    """Raised when a sync failed, by every handle until the range is written anew and synced.

    The kernel marks pages clean after a failed write, so a second sync that succeeds proves
    nothing.  What was published is visible to other processes and may not survive power loss.
    Look at the device, then publish again.  ``errno`` is that of the sync (``EIO`` if unknown).
    """

    default_errno: ClassVar[int] = _errno.EIO


# --- using a handle in a state that does not allow it ---------------------------------------


class ForkedHandle(MmapdsError, RuntimeError):
    """Raised when a forked child uses a pin, claim, transaction or lock of its parent.

    They stay the parent's.  Take a new one in the child, or open the structure there.
    """


class NotInitialised(MmapdsError, RuntimeError):
    """Raised when a value is read before any was published.

    Wait for the first (``wait()``), pass a default (``load(default=...)``), or publish one.
    """


class Closed(MmapdsError, ValueError):
    """Raised when a closed handle is used; `ValueError`, as for closed files of the library.

    Open again.  ``close()`` itself may be called any number of times.
    """


class StaleClaim(MmapdsError, RuntimeError):
    """Raised when a claim is used that has ended: acked or returned before, or its lease was over.

    In the last case the item went back to the queue, and somebody else may have it: what was done for it may be done
    twice.  Do less per claim, `touch()` it in time, or take a longer lease.
    """


class ShutDown(MmapdsError, _LibraryShutDown):
    """Raised by a queue that was shut down: when something is put, and when nothing is left to get.

    Where the standard library has ``queue.ShutDown``, this is one too.  Handles that are opened
    later are not shut down.
    """
