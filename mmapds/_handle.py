"""What every handle of a structure does as a Python object: a block closes it; one that is forgotten open says so."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self


class Handle:
    """Beside a structure's native half; needs what is named here of it."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def _is_closed(self) -> bool: ...
        def _check_open(self) -> None: ...
        def close(self) -> None: ...

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self, _finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not self._is_closed and not _finalizing():
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            finally:
                self.close()
