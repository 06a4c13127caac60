"""What the files of a queue hold after each store that an operation makes to them (stepping.py).

The operation is run once, in a process of its own, instruction by instruction. A test can put the files back as they
were after any of its stores: then everything is as if that process had been killed there, which a thousand real deaths
would show more slowly. (A few real ones are had too: the tests say where.) Used inside a peer: ``import queuesteps``.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import pickle
import signal
from collections.abc import Callable

import stepping
import victims

import mmapds

MOST = 6_000_000  # instructions that an operation may take
# Of meta: the control words, the first slots, all entries; the undo log changes before what it is for.
_RANGES = ((4096, 8192), (12288, 13312), (81920, 1 << 40))

Files = dict[str, bytes]


class _Watched:
    """A file; how many bytes of which parts have changed is no matter, only whether."""

    def __init__(self, path: str, ranges: tuple[tuple[int, int], ...]) -> None:
        self.path = path
        self.ranges = ranges
        self.file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.inode = os.fstat(self.file).st_ino
        self.size = -1
        self.changed()

    def changed(self) -> bool:
        size = os.fstat(self.file).st_size
        if size != self.size:
            self.size = size
            self.mapped = mmap.mmap(self.file, size)
            here = ctypes.addressof(ctypes.c_char.from_buffer(self.mapped))
            self.before = ctypes.create_string_buffer(self.mapped[:], size)
            there = ctypes.addressof(self.before)
            self.parts = [
                (here + start, there + start, min(stop, size) - start) for start, stop in self.ranges if start < size
            ]
            return True
        found = False
        for here, there, length in self.parts:
            if stepping._libc.memcmp(here, there, length):
                ctypes.memmove(there, here, length)
                found = True
        return found

    def content(self) -> bytes:
        return self.mapped[:]

    def close(self) -> None:
        os.close(self.file)


class _Files:
    """Those of a queue."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.watched: dict[str, _Watched] = {}
        self.names: list[str] = []
        self.files: Files = {}
        self.changed()

    def changed(self) -> bool:
        found = False
        names = os.listdir(self.path)
        if names != self.names:
            self.names = names
            present = {name for name in names if name == "meta" or name.endswith(".segment")}
            for name in self.watched.keys() - present:
                self.watched.pop(name).close()
                self.files.pop(name)
                found = True
            for name in present - self.watched.keys():
                file = _Watched(os.path.join(self.path, name), _RANGES if name == "meta" else ((0, 1 << 40),))
                self.watched[name] = file
                self.files[name] = file.content()
                found = True
        for name, file in self.watched.items():
            if file.changed():
                self.files[name] = file.content()
                found = True
        return found

    def close(self) -> None:
        for file in self.watched.values():
            file.close()


def states(prepare: Callable[[], object], job: Callable[[object], object], path: str) -> list[Files]:
    """Runs ``job(prepare())`` to its end: the files of the queue at `path` before, after each store or change of a
    name, and in the end."""
    flag = mmap.mmap(-1, mmap.PAGESIZE)

    def marked(prepared: object) -> None:
        flag[0] = 1
        job(prepared)
        flag[0] = 2

    pid = stepping._start(prepare, marked)
    assert pid is not None, "it failed before it began"
    with contextlib.closing(_Files(path)) as files:
        found = [dict(files.files)]
        for _ in range(MOST):
            stepping._ptrace(stepping._SINGLESTEP, pid)
            status = os.waitpid(pid, 0)[1]
            assert os.WIFSTOPPED(status), f"it ended with status {os.waitstatus_to_exitcode(status)}"
            assert os.WSTOPSIG(status) == signal.SIGTRAP, f"it got signal {os.WSTOPSIG(status)}"
            if files.changed():
                found.append(dict(files.files))
            if flag[0] == 2:
                break
        else:
            raise AssertionError(f"it takes more than {MOST} instructions")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return found


def ghost(path: str, code: str) -> None:
    """A process that runs the code with a handle `q`, and is killed: its claims are a dead holder's."""

    def run() -> None:
        exec(code, {"q": mmapds.Queue(path), "mmapds": mmapds, "os": os})
        victims.die()

    assert victims.finish(victims.spawn(run)) == -signal.SIGKILL, "it failed before it was killed"


def save(found: list[Files], target: str) -> int:
    """Writes them to a file, for the test that has asked for them; how many."""
    with open(target, "wb") as file:
        pickle.dump(found, file)  # what is the same in two of them is there once
    return len(found)
