"""Processes killed at each of their stores to a shared file, and before each of their system calls.

The victim runs under ptrace: from system call to system call, and instruction by instruction where stores are to be
expected: behind a lock of the file, and behind ``os.getppid()``, which a job may call to ask for it. A point is a call
about to be made, or an instruction that has changed the file. Used inside a peer: ``import stepping``.

`trace` records what the file contains at each of these points, and which syncs lie between them: from that a test knows
what a disk may hold when the power goes at any of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

import victims

# Instructions without a store after which it goes from call to call again: behind a lock, and where the job asked.
BEHIND_A_LOCK, WHERE_ASKED = 1500, 8000
ELSEWHERE = 50_000  # instructions outside of the modules that are looked at, after which the job is taken to be done

_TRACEME, _SINGLESTEP, _SETOPTIONS, _SYSCALL, _SYSCALL_INFO = 0, 9, 0x4200, 24, 0x420E
_CONT, _PEEKTEXT, _POKETEXT = 7, 1, 4
_GETREGS, _SETREGS, _RIP = 12, 13, 16  # x86-64
_MSYNC, _FSYNC, _FDATASYNC = 26, 74, 75
_SYSGOOD, _EXITKILL = 1, 1 << 20
_ENTRY = 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_GETPPID, _FCNTL = {"x86_64": (110, 72), "aarch64": (173, 25)}.get(os.uname().machine, (-1, -1))
_OFD_SETLK, _OFD_SETLKW = 37, 38
_registers = (ctypes.c_ulonglong * 27)()


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace: {os.strerror(error)}")


class _SyscallInfo(ctypes.Structure):
    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("number", ctypes.c_uint64),  # of an entry; the rest too
        ("arguments", ctypes.c_uint64 * 6),
    )


class _File:
    """The file as the victim's stores leave it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.file = -1
        self.size = 0
        self.before = (ctypes.c_char * 0)()
        self.changed()

    def changed(self) -> bool:
        """Whether it has, since this was asked last."""
        if self.file < 0:
            try:
                self.file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
        size = os.fstat(self.file).st_size
        if size != self.size:
            self.size = size
            self.mapped = mmap.mmap(self.file, size)
            self.now = (ctypes.c_char * size).from_buffer(self.mapped)
            self.before = (ctypes.c_char * size)()
        elif _libc.memcmp(self.now, self.before, size) == 0:
            return False
        ctypes.memmove(self.before, self.now, size)
        return True

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)


class _Folder:
    """All files in a folder, those that come while the victim runs too."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.files: dict[str, _File] = {}
        self.names: list[str] = []
        self.changed()

    def changed(self) -> bool:
        """Whether one of them has, or their names have, since this was asked last."""
        names = [name for name in os.listdir(self.path) if "." in name or name == "meta"]
        found = names != self.names
        if found:
            self.names = names
            for name in names:
                self.files.setdefault(name, _File(os.path.join(self.path, name)))
            for name in self.files.keys() - set(names):
                self.files.pop(name).close()
        for file in self.files.values():
            found |= file.changed()
        return found

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def _watched(path: str) -> _File | _Folder:
    return _Folder(path) if os.path.isdir(path) else _File(path)


class Point(NamedTuple):
    """Where a victim has come to. `arguments` are those of a call."""

    what: str  # "a store", "call NUMBER" or "end STATUS"
    arguments: tuple[int, ...] = ()


def _points(
    pid: int, file: _File | _Folder, *, every_call: bool = False, at_locks: bool = True, where_asked: bool = True
) -> Iterator[Point]:
    """Lets the victim run from point to point. Ends with the victim. `every_call`: also those between stores."""
    info = _SyscallInfo()
    quiet = 0  # instructions to step when the call in hand has returned, and after each store
    left = 0  # instructions to step now
    request = _SYSCALL
    while True:
        if left and every_call and (call := _call_ahead(pid)):
            yield call
        _ptrace(request, pid)
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSTOPPED(status):
            yield Point(f"end {os.waitstatus_to_exitcode(status)}")
            return
        if left:
            left -= 1
            if file.changed():
                left = quiet
                yield Point("a store")
        elif os.WSTOPSIG(status) == signal.SIGTRAP | 0x80:
            _ptrace(_SYSCALL_INFO, pid, ctypes.sizeof(info), ctypes.addressof(info))
            if info.op == _ENTRY:
                locks = info.number == _FCNTL and info.arguments[1] in (_OFD_SETLK, _OFD_SETLKW)
                asked = info.number == _GETPPID and where_asked
                quiet = WHERE_ASKED if asked else BEHIND_A_LOCK if locks and at_locks else 0
                if info.number != _GETPPID:
                    yield Point(f"call {info.number}", tuple(info.arguments))
            else:
                file.changed()
                left = quiet
        request = _SINGLESTEP if left else _SYSCALL


def _call_ahead(pid: int) -> Point | None:
    """The system call that the next instruction makes, if it does (x86-64: ``syscall``, 0f 05)."""
    _ptrace(_GETREGS, pid, 0, ctypes.addressof(_registers))
    ctypes.set_errno(0)
    if _libc.ptrace(_PEEKTEXT, pid, _registers[_RIP], None) & 0xFFFF != 0x050F:
        return None
    return Point(f"call {_registers[10]}", (_registers[14], _registers[13], _registers[12]))  # rax; rdi, rsi, rdx


def _start(prepare: Callable[[], object], job: Callable[[object], object]) -> int | None:
    """The pid of a process that has done `prepare` and is about to do `job`; None if it died before."""

    def run() -> None:
        prepared = prepare()
        _ptrace(_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        job(prepared)
        os._exit(0)

    pid = victims.spawn(run)
    if not os.WIFSTOPPED(os.waitpid(pid, 0)[1]):
        return None
    _ptrace(_SETOPTIONS, pid, 0, _SYSGOOD | _EXITKILL)
    return pid


def killed_at(
    count: int, prepare: Callable[[], object], job: Callable[[object], object], path: str, kind: str = "any"
) -> tuple[int, list[str]]:
    """Runs ``job(prepare())`` in a process that is killed at that point (from 0) of `job`; its exit status, 0 if it got
    through, and the points that it has come to. `kind`: "call", "store" (where the job asks for it), or "any"."""
    pid = _start(prepare, job)
    if pid is None:
        return 1, ["failed before it began"]
    seen: list[str] = []
    with contextlib.closing(_watched(path)) as file:
        for point in _points(pid, file, at_locks=kind == "any", where_asked=kind != "call"):
            if point.what.startswith("end"):
                return int(point.what.split()[1]), seen
            if kind == "any" or kind in point.what:
                seen.append(point.what)
            if len(seen) > count:
                os.kill(pid, signal.SIGKILL)
                break
    while True:
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status), seen


def trace(prepare: Callable[[], object], job: Callable[[object], object], path: str) -> list[tuple[int, int, bytes]]:
    """Runs ``job(prepare())`` to its end: (start, end, content) for each store and each sync of the file. A sync makes
    the bytes from `start` to `end` durable; for a store both are 0."""
    pid = _start(prepare, job)
    assert pid is not None, "it failed before it began"
    found = []
    with contextlib.closing(_File(path)) as file:
        found.append((0, file.size, bytes(file.before)))
        for point in _points(pid, file, every_call=True):
            file.changed()
            if bytes(file.before) != found[-1][2]:
                found.append((0, 0, bytes(file.before)))
            if point.what == f"call {_MSYNC}":
                start = _offset(pid, path, point.arguments[0])
                found.append((start, start + point.arguments[1], bytes(file.before)))
            elif point.what in (f"call {_FSYNC}", f"call {_FDATASYNC}"):
                if os.path.samefile(f"/proc/{pid}/fd/{point.arguments[0]}", path):
                    found.append((0, file.size, bytes(file.before)))
            elif point.what.startswith("end"):
                assert point.what == "end 0", point.what
    return found


def within(prepare: Callable[[], object], job: Callable[[object], object], modules: tuple[str, ...]) -> list[int]:
    """The instructions of modules of ours that ``job(prepare())`` comes to, from where the job asks for it: addresses,
    which are the same in all children of this process."""
    pid = _start(prepare, job)
    assert pid is not None, "it failed before it began"
    ranges = [_code(pid, module) for module in modules]
    _run_to_mark(pid)
    found: dict[int, None] = {}
    left = ELSEWHERE
    while left:
        _ptrace(_GETREGS, pid, 0, ctypes.addressof(_registers))
        at = _registers[_RIP]
        left -= 1
        if any(low <= at < high for low, high in ranges):
            found[at] = None
            left = ELSEWHERE
        _ptrace(_SINGLESTEP, pid)
        if not os.WIFSTOPPED(os.waitpid(pid, 0)[1]):
            return list(found)
    os.kill(pid, signal.SIGKILL)
    while os.WIFSTOPPED(os.waitpid(pid, 0)[1]):
        pass
    return list(found)


def held_at(
    address: int, prepare: Callable[[], object], job: Callable[[object], object], action: Callable[[], object]
) -> int:
    """Runs ``job(prepare())``, holds it when it comes to that instruction, runs `action` here, and lets it go on; its
    exit status."""
    pid = _start(prepare, job)
    assert pid is not None, "it failed before it began"
    _run_to_mark(pid)
    word = _libc.ptrace(_PEEKTEXT, pid, address, None)
    _ptrace(_POKETEXT, pid, address, word & ~0xFF | 0xCC)  # int3
    _ptrace(_CONT, pid)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSTOPPED(status):
        assert os.WSTOPSIG(status) == signal.SIGTRAP, f"stopped by signal {os.WSTOPSIG(status)}"
        _ptrace(_POKETEXT, pid, address, word)
        _ptrace(_GETREGS, pid, 0, ctypes.addressof(_registers))
        _registers[_RIP] = address
        _ptrace(_SETREGS, pid, 0, ctypes.addressof(_registers))
        action()
        _ptrace(_CONT, pid)
        status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status)


def _run_to_mark(pid: int) -> None:
    """To the end of the call by which the job asks for it."""
    info = _SyscallInfo()
    while info.op != _ENTRY or info.number != _GETPPID:
        _ptrace(_SYSCALL, pid)
        assert os.WIFSTOPPED(os.waitpid(pid, 0)[1]), "the job did not ask for it"
        _ptrace(_SYSCALL_INFO, pid, ctypes.sizeof(info), ctypes.addressof(info))
    _ptrace(_SYSCALL, pid)
    os.waitpid(pid, 0)


def _code(pid: int, module: str) -> tuple[int, int]:
    """Where the code of a module lies."""
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            if f"/{module}." in line and line.split()[1] == "r-xp":
                low, high = (int(part, 16) for part in line.split()[0].split("-"))
                return low, high
    raise AssertionError(f"{module} is not loaded")


def _offset(pid: int, path: str, address: int) -> int:
    """Of an address in the file that is mapped there."""
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            span, _, offset, _, _, *name = line.split(maxsplit=5)
            low, high = (int(part, 16) for part in span.split("-"))
            if low <= address < high:
                assert name[0].strip() == path, line
                return address - low + int(offset, 16)
    raise AssertionError(f"{address:x} is not mapped")


def available() -> bool:
    """Whether a process may be traced here."""
    try:
        return _GETPPID >= 0 and killed_at(1 << 30, os.getpid, lambda _: os.getppid(), "/nowhere")[0] == 0
    except OSError:
        return False


def can_trace() -> bool:
    """Whether `trace` works here."""
    return os.uname().machine == "x86_64" and available()
