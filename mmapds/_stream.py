"""The binary-file view of a region: a position, and what moves it.

Promise
    ``read``, ``readline``, ``write``, ``seek`` and ``tell`` mean what they mean for a file opened in binary mode, over
    the bytes that are mapped. The position belongs to the handle; threads that share one see each other's moves.

Rejected
    Deriving from `io.RawIOBase`, as it promises a file that grows by writing, and makes every method slower.
"""

from __future__ import annotations

import io
from typing import Any

from mmapds._native.region import RegionCore

_CHUNK = 4096


class Stream(RegionCore):
    """`RegionCore` with a position."""

    _position: int = 0

    def read(self, n: int | None = -1) -> bytes:
        """Up to n bytes from the position (all that is left by default); b"" at the end."""
        left = max(0, len(self) - self._position)
        data = self.pread(left if n is None or n < 0 else min(n, left), self._position)
        self._position += len(data)
        return data

    def readline(self) -> bytes:
        """From the position through the next newline, or to the end."""
        size = len(self)
        start = position = min(self._position, size)
        while position < size:
            found = self.pread(_CHUNK, position).find(b"\n")
            if found >= 0:
                position += found + 1
                break
            position = min(position + _CHUNK, size)
        return self.read(position - start)

    def write(self, data: Any) -> int:
        """Writes at the position, which moves on; raises ValueError, having written nothing, if there is no room."""
        written = self.pwrite(data, self._position)
        self._position += written
        return written

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Sets the position, and returns it: from the start, the position (1) or the end (2)."""
        size = len(self)
        try:
            position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: size}[whence]
        except KeyError:
            raise ValueError(f"whence {whence} is not 0, 1 or 2") from None
        if not 0 <= position <= size:
            raise ValueError(f"position {position} is outside the region's {size} bytes")
        self._position = position
        return position

    def tell(self) -> int:
        """The position."""
        len(self)
        return self._position
