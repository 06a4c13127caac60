"""What the files of a snapshot map hold after each store that an operation makes to them (stepping.py).

As queuesteps.py does it for queues: the operation is run once, instruction by instruction, from where it asks for it
(``os.getppid()``) to its end; a test can put the files back as they were after any of its stores, as if the process had
been killed there. Used inside a peer: ``import snapsteps``.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
from collections.abc import Callable

import stepping
from queuesteps import MOST, Files, _Watched, save

__all__ = ["save", "states"]

_CONTROL = ((0, 8192),)  # of manifest_sync; behind it are slots, which nobody takes
_ALL = ((0, 1 << 40),)


class _Files:
    """Those of a map."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.watched: dict[str, _Watched] = {}
        self.names: set[str] = set()
        self.files: Files = {}
        self.changed()

    def changed(self) -> bool:
        names = set(os.listdir(self.path))
        found = names != self.names
        for name in self.names - names:
            self.watched.pop(name).close()
            self.files.pop(name)
        for name in names - self.names:
            ranges = _CONTROL if name == "manifest_sync" else _ALL
            self.watched[name] = _Watched(os.path.join(self.path, name), ranges)
            self.files[name] = self.watched[name].content()
        self.names = names
        for name, file in self.watched.items():
            if file.changed():
                self.files[name] = file.content()
                found = True
        return found

    def close(self) -> None:
        for file in self.watched.values():
            file.close()


def states(prepare: Callable[[], object], job: Callable[[object], object], path: str) -> list[Files]:
    """Runs ``job(prepare())`` to its end: the files of the map before, after each store or change of a name, and in the
    end."""
    flag = mmap.mmap(-1, mmap.PAGESIZE)

    def marked(prepared: object) -> None:
        os.getppid()
        job(prepared)
        flag[0] = 1

    pid = stepping._start(prepare, marked)
    assert pid is not None, "it failed before it began"
    stepping._run_to_mark(pid)
    with contextlib.closing(_Files(path)) as files:
        found = [dict(files.files)]
        for _ in range(MOST):
            stepping._ptrace(stepping._SINGLESTEP, pid)
            status = os.waitpid(pid, 0)[1]
            assert os.WIFSTOPPED(status), f"it ended with status {os.waitstatus_to_exitcode(status)}"
            assert os.WSTOPSIG(status) == signal.SIGTRAP, f"it got signal {os.WSTOPSIG(status)}"
            if files.changed():
                found.append(dict(files.files))
            if flag[0]:
                break
        else:
            raise AssertionError(f"it takes more than {MOST} instructions")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return found
