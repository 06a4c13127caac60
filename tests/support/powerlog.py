"""Power loss, simulated from a log of everything that a run of the real code did to its files.

`Recorder` is for a process in which ``storeshim.c`` is preloaded: each machine store to a mapped file of a folder, and
each call that writes, sizes, links, renames, unlinks or syncs there, is a record, in order; between them lie marks that
say what must be found when the power goes from there on. A `Disk` replays the log and knows, at every record, what may
be on the disk: for each sector of 512 bytes, each size and each name what it was when it was last synced, and all that
it has been since, any combination of these, and sectors of which some words are older. A cut is such a combination.

Syncs are credited here, not where they were made: what a process does is the same whether a sync has reached the disk
or lied. So one recording serves for every question "and if this call did nothing?" (`lies`).

powerloss.py stops a process at each sync and looks at the files then; stores in between come together there. Here they
are one by one. Needs a C compiler, as the package does, and x86-64, for the trace flag.
"""

from __future__ import annotations

import ast
import atexit
import bisect
import ctypes
import functools
import itertools
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

SECTOR = 512
EXHAUSTIVE = 12  # dirty units; all their combinations are tried
FEW = 64  # combinations of all contents that the units have had
STORE, SIZE, SYNC, SYNC_FOLDER, LINK, UNLINK, RENAME, CREATED, FOLDER, MARK = range(1, 11)
CHANGES = (STORE, SIZE, LINK, UNLINK, RENAME, FOLDER)
_HEAD = struct.Struct("<2I3Q")
_FOREVER = (1 << 64) - 1
Files = dict[str, bytes | None]  # by path; None: a folder


class Record(NamedTuple):
    kind: int
    inode: int
    a: int
    b: int
    data: bytes


def read(log: bytes) -> Iterator[Record]:
    at = 0
    while at < len(log):
        kind, length, inode, a, b = _HEAD.unpack_from(log, at)
        at += _HEAD.size
        yield Record(kind, inode, a, b, log[at : at + length])
        at += length


# ---- recording, inside of a process with the shim --------------------------------------------------------------------


@functools.cache
def shim() -> str:
    """The shared object, compiled once; RuntimeError says why that cannot be."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("no C compiler, to build the shim that writes stores down")
    if os.uname().machine != "x86_64":
        raise RuntimeError("stores are written down by the trace flag of x86-64")
    folder = tempfile.mkdtemp(prefix="mmapds-shim-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = os.path.join(folder, "storeshim.so")
    source = str(Path(__file__).with_name("storeshim.c"))
    subprocess.run([compiler, "-O1", "-w", "-shared", "-fPIC", "-o", target, source, "-ldl"], check=True)
    return target


class Recorder:
    """In a process with the shim: runs jobs in children of their own, and says between them what must be found."""

    def __init__(self, folder: str, log: str) -> None:
        self.folder = folder
        self._library = ctypes.CDLL(None)
        self._library.shim_begin(folder.encode(), log.encode())
        self._hook = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p))(self._on_sync)
        self._library.shim_on_sync(self._hook)
        self._left = -1
        _modules()  # for the children too

    def mark(self, **expected: Any) -> None:
        text = repr(expected).encode()
        self._library.shim_mark(text, ctypes.c_size_t(len(text)))

    def run(self, job: Callable[[], object], killed_at: int = -1) -> bool:
        """Runs it in a new process, which is killed before its sync number `killed_at` (from 0); whether it was. What
        comes before the sync before that one is in other lives, and not looked at here."""
        if killed_at >= 1:
            self.mark(looking=False)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self._left = killed_at
                job()
                status = 0
            except BaseException:  # noqa: BLE001  it must not return into the code of the parent
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, -signal.SIGKILL if killed_at >= 0 else 0), f"a recorded process ended with {status}"
        return status != 0

    def _on_sync(self, count: int, addresses: Any) -> int:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._left == 1:
            self.mark(looking=True)
        self._left -= 1
        self._library.shim_site(self._site([addresses[n] for n in range(count)]).encode())
        return 0

    def _site(self, addresses: list[int]) -> str:
        """Where in the package the call stands, innermost first: MODULE+OFFSET of native code; FILE:LINE:FUNCTION."""
        package = _package()
        native = [found for found in map(self._native, addresses) if found]
        python = []
        frame = sys._getframe(1)
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith(package):
                python.append(f"{name[len(package) :]}:{frame.f_lineno}:{frame.f_code.co_qualname}")
            frame = frame.f_back  # type: ignore[assignment]
        return " ".join(native) + "|" + " ".join(python)

    @staticmethod
    def _native(address: int) -> str:
        for low, high, start, name in _modules():
            if low <= address < high:
                return f"{name}+{address - start:x}"
        return ""


@functools.cache
def _modules() -> list[tuple[int, int, int, str]]:
    """Where the code of the package's native modules lies; all are loaded by now."""
    found = []
    base: dict[str, int] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, offset, _dev, _inode, *path = line.split(maxsplit=5)
        if path and "/mmapds/_native/" in path[0]:
            low, high = (int(part, 16) for part in span.split("-"))
            base.setdefault(path[0], low - int(offset, 16))
            if "x" in access:
                found.append((low, high, base[path[0]], path[0]))
    return found


@functools.cache
def _package() -> str:
    import mmapds

    return os.path.dirname(mmapds.__file__) + os.sep


# ---- what a disk may hold --------------------------------------------------------------------------------------------


class _Inode:
    """`disk` and the first of each list are what was synced last (or nothing, for what never was)."""

    __slots__ = ("dirty", "disk", "folder", "now", "sizes")

    def __init__(self, content: bytes = b"", *, folder: bool = False) -> None:
        self.folder = folder
        self.now = bytearray(content)
        self.disk = bytearray(content)
        self.sizes = [len(content)]
        self.dirty: dict[int, list[bytes]] = {}

    def resize(self, size: int) -> None:
        if size < len(self.now):
            end = len(self.now)
            self._put(size, bytes(end - size))
            del self.now[size:]
        else:
            self.now.extend(bytes(size - len(self.now)))
        if size != self.sizes[-1]:
            self.sizes.append(size)

    def store(self, at: int, data: bytes) -> None:
        if at + len(data) > len(self.now):  # a record of the size came before, or the file was cut since
            self.resize(at + len(data))
        self._put(at, data)

    def _put(self, at: int, data: bytes) -> None:
        self.now[at : at + len(data)] = data
        for number in range(at // SECTOR, -(-(at + len(data)) // SECTOR)):
            piece = bytes(self.now[number * SECTOR : (number + 1) * SECTOR]).ljust(SECTOR, b"\0")
            versions = self.dirty.get(number)
            if versions is None:
                versions = self.dirty[number] = [self.synced(number)]
            if versions[-1] != piece:
                versions.append(piece)

    def synced(self, number: int) -> bytes:
        return bytes(self.disk[number * SECTOR : (number + 1) * SECTOR]).ljust(SECTOR, b"\0")

    def sync(self, start: int, end: int) -> None:
        del self.sizes[:-1]
        size = self.sizes[0]
        del self.disk[size:]
        self.disk.extend(bytes(size - len(self.disk)))
        covered = [number for number in self.dirty if start <= number * SECTOR < end]
        for number in covered:
            piece = self.dirty.pop(number)[-1]
            at = number * SECTOR
            if at < size:
                self.disk[at : min(at + SECTOR, size)] = piece[: size - at]


Unit = tuple[Any, list[Any]]  # what it is, and what it may be: first as it was synced


class Disk:
    """What may be on the disk under a folder, record by record."""

    def __init__(self, root: int, lies: Iterable[str] = (), name_of: Callable[[str], str] = lambda text: text) -> None:
        self.inodes: dict[int, _Inode] = {0: _Inode(folder=True)}  # by a number of ours: the kernel uses its own again
        self.current = {root: 0}
        self.names: dict[tuple[int, str], list[int | None]] = {}
        self.lies = set(lies)
        self.name_of = name_of
        self.last: Any = None  # the unit that the last record has changed
        self.syncs: dict[str, int] = {}

    def _place(self, text: bytes) -> tuple[int, str]:
        folder, _, name = text.decode().partition("/")
        return self.current[int(folder)], name

    def _name(self, place: tuple[int, str], value: int | None) -> None:
        versions = self.names.setdefault(place, [None])
        if versions[-1] != value:
            versions.append(value)
        self.last = ("name", *place)

    def _inode(self, record: Record) -> _Inode:
        if record.inode not in self.current:
            self._new(record.inode)
        return self.inodes[self.current[record.inode]]

    def _new(self, inode: int, *, folder: bool = False) -> int:
        number = len(self.inodes)
        self.inodes[number] = _Inode(folder=folder)
        self.current[inode] = number
        return number

    def apply(self, record: Record) -> None:
        kind = record.kind
        self.last = None
        if kind == STORE:
            self._inode(record).store(record.a, record.data)
            self.last = ("sector", self.current[record.inode], record.a // SECTOR)
        elif kind == SIZE:
            self._inode(record).resize(record.a)
            self.last = ("size", self.current[record.inode])
        elif kind in (SYNC, SYNC_FOLDER):
            site = self.name_of(record.data.decode())
            self.syncs[site] = self.syncs.get(site, 0) + 1
            if site in self.lies:
                return
            if kind == SYNC:
                self._inode(record).sync(record.a, record.b)
            else:
                folder = self.current[record.inode]
                for (parent, _), versions in self.names.items():
                    if parent == folder:
                        del versions[:-1]
        elif kind == CREATED:
            self._new(record.inode)
        elif kind == FOLDER:
            self._name(self._place(record.data), self._new(record.inode, folder=True))
        elif kind == LINK:
            self._name(self._place(record.data), self.current[record.inode])
        elif kind == UNLINK:
            self._name(self._place(record.data), None)
        elif kind == RENAME:
            old, _, new = record.data.partition(b"\0")
            number = self.names[self._place(old)][-1]
            self._name(self._place(old), None)
            self._name(self._place(new), number)

    def settle(self) -> None:
        """All that there is now is on the disk."""
        for inode in self.inodes.values():
            inode.sync(0, _FOREVER)
        for versions in self.names.values():
            del versions[:-1]

    def units(self) -> list[Unit]:
        """What may be found as more than one thing."""
        found: list[Unit] = []
        linked = set()
        for place, versions in self.names.items():
            linked.update(versions)
            if len(versions) > 1:
                distinct = [*dict.fromkeys(versions[:-1])]
                distinct = [value for value in distinct if value != versions[-1]]
                if distinct:
                    found.append((("name", *place), [*distinct, versions[-1]]))
        for number in linked:
            if number is None:
                continue
            inode = self.inodes[number]
            if len(inode.sizes) > 1:
                sizes = [*dict.fromkeys(inode.sizes[:-1])]
                found.append((("size", number), [size for size in sizes if size != inode.sizes[-1]] + inode.sizes[-1:]))
            for sector, versions_ in inode.dirty.items():
                if len(versions_) > 1:
                    found.append((("sector", number, sector), versions_))
        return [unit for unit in found if len(unit[1]) > 1]

    def state(self, picked: dict[Any, Any]) -> Files:
        """The files, where these units are this."""
        found: Files = {}
        contents: dict[int, bytes] = {}
        folders = [(0, "")]
        by_folder: dict[int, list[tuple[str, int]]] = {}
        for (parent, name), versions in self.names.items():
            value = picked.get(("name", parent, name), versions[-1])
            if value is not None:
                by_folder.setdefault(parent, []).append((name, value))
        changed: dict[int, list[tuple[int, bytes]]] = {}
        for key, value in picked.items():
            if key[0] == "sector":
                changed.setdefault(key[1], []).append((key[2], value))
        while folders:
            folder, path = folders.pop()
            for name, number in by_folder.get(folder, ()):
                inode = self.inodes[number]
                if inode.folder:
                    found[path + name] = None
                    folders.append((number, f"{path}{name}/"))
                    continue
                if number not in contents:
                    size = picked.get(("size", number), inode.sizes[-1])
                    data = bytearray(inode.disk[:size])
                    data.extend(bytes(-(-size // SECTOR) * SECTOR - len(data)))
                    for sector, piece in changed.get(number, ()):
                        data[sector * SECTOR : (sector + 1) * SECTOR] = piece
                    contents[number] = bytes(data[:size])
                found[path + name] = contents[number]
        return found


def combinations(
    units: list[Unit], last: Any, choose: random.Random, *, exhaustive: int, seeded: int
) -> Iterator[dict[Any, Any]]:
    """Of what the units may be: each old or new, all combinations of that, if there are at most `exhaustive` units; of
    more, extremes and a sample. Then a sample with contents between the old and the new, or all of these if they
    are few; and some with a sector that is half written. Only those in which the unit `last` is new, if there is one:
    the others could be found before its last change, too."""
    fixed = {key: choices[-1] for key, choices in units if key == last}
    units = [unit for unit in units if unit[0] != last]
    keys = [key for key, _ in units]
    total = 1
    for _, choices in units:
        total *= len(choices)
    if total <= FEW:
        for values in itertools.product(*(choices for _, choices in units)):
            yield fixed | dict(zip(keys, values, strict=True))
        seeded = min(seeded, total)
    elif len(units) <= exhaustive:
        for values in itertools.product(*((choices[0], choices[-1]) for _, choices in units)):
            yield fixed | dict(zip(keys, values, strict=True))
    else:
        old = {key: choices[0] for key, choices in units}
        new = {key: choices[-1] for key, choices in units}
        yield fixed | old
        yield fixed | new
        for key in choose.sample(keys, min(len(keys), max(2, seeded // 2))):
            yield fixed | old | {key: new[key]}
            yield fixed | new | {key: old[key]}
    for _ in range(seeded if total > FEW else 0):
        share = choose.choice((0.1, 0.5, 0.9))
        between = choose.choice((0.1, 0.5, 1.0))
        yield fixed | {
            key: choose.choice(choices) if choose.random() < between else choices[0 if choose.random() < share else -1]
            for key, choices in units
        }
    yield from (fixed | torn for torn in _torn(units, choose, -(-seeded // 4)))


def _torn(units: list[Unit], choose: random.Random, count: int) -> Iterator[dict[Any, Any]]:
    """With a sector of which some words are older than others: it was read while it was written."""
    sectors = [unit for unit in units if unit[0][0] == "sector"]
    for _ in range(count if sectors else 0):
        found = {key: choose.choice(choices) for key, choices in units}
        found["torn"] = True
        for key, choices in choose.sample(sectors, min(len(sectors), 2)):
            at = choose.randrange(len(choices) - 1)
            pair = choices[at], choices[at + 1]
            found[key] = b"".join(choose.choice(pair)[n : n + 8] for n in range(0, SECTOR, 8))
        yield found


# ---- recordings ------------------------------------------------------------------------------------------------------


class Recording(NamedTuple):
    """One life. `root` is the inode of its folder."""

    name: str
    root: int
    log: bytes

    def end(self) -> Files:
        """The files as they were at its end, as the log has it."""
        disk = Disk(self.root)
        for record in read(self.log):
            if record.kind != MARK:
                disk.apply(record)
        return disk.state({key: choices[-1] for key, choices in disk.units()})

    def moments(self, lies: Iterable[str] = ()) -> Iterator[tuple[int, Record, Disk, dict[str, Any]]]:
        """(number, record, the disk after it, what is expected there), for each record that changes one of them."""
        disk = Disk(self.root, lies, site_name)
        expected: dict[str, Any] = {}
        looking = True
        for number, record in enumerate(read(self.log)):
            if record.kind == MARK:
                mark = ast.literal_eval(record.data.decode())
                disk.last = None
                if mark == {"settled": True}:
                    disk.settle()
                    continue
                if "looking" in mark:
                    looking = mark["looking"]
                else:
                    expected = mark
            else:
                disk.apply(record)
            if expected and looking and record.kind != CREATED:
                yield number, record, disk, expected


# Functions that only pass a sync on: whoever calls them is the call site.
_PASSING = {
    "sync", "sync_directory", "create", "unnamed", "sync_range", "durable", "_durable", "_durable_control", "synced",
    "_sync_names", "_sync_delta", "_sync_control", "_sync_segment", "make_segment", "counters_sync", "queue_sync_left",
}  # fmt: skip
_FROM_PYTHON = {"_durable", "_durable_control", "_sync_control", "_sync_segment", "_flush", "sync", "_msync"}


@functools.cache
def site_name(text: str) -> str:
    """A call site: the innermost call, and who called it, out to the first function that does more than pass it on."""
    native, _, python = text.partition("|")
    lines = [entry.split(":", 2) for entry in python.split()]
    found = []
    if not (lines and lines[0][0] == "files.py" and lines[0][2] == "sync"):
        for place in native.split():
            inlined = _lines(place)
            found += inlined
            name = inlined[-1].split(":")[2]
            if name in _FROM_PYTHON:
                break
            if name not in _PASSING:
                return " < ".join(_short(found))
    for where, line, name in lines:
        found.append(f"{where}:{line}:{name}")
        if name.rpartition(".")[2] not in _PASSING:
            break
    return " < ".join(_short(found))


def _short(frames: list[str]) -> list[str]:
    """Without those in the middle: where the system call is made, and whose call it is."""
    return (
        [frames[0], *(frame for frame in frames[1:-1] if "create" in frame or "control" in frame), frames[-1]]
        if len(frames) > 1
        else frames
    )


@functools.cache
def _lines(place: str) -> list[str]:
    """FILE:LINE:FUNCTION of MODULE+OFFSET, the inlined ones too, innermost first."""
    path, _, offset = place.rpartition("+")
    module = os.path.basename(path).split(".")[0]
    command = ["addr2line", "-i", "-f", "-e", path, hex(int(offset, 16) - 1)]
    try:
        words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        words = ["??", "??:0"]
    found = []
    for name, where in zip(words[::2], words[1::2], strict=False):
        file, _, line = where.partition(" ")[0].rpartition(":")
        if file.endswith(".c") and os.path.basename(file) == f"{module}.c":
            file, line = _pyx(os.path.join(os.path.dirname(path), f"{module}.c"), line)
        elif not file.strip("?"):
            file, line = module, offset
        found.append(f"{os.path.basename(file)}:{line}:{_plain(name, module)}")
    return found


def _plain(name: str, module: str) -> str:
    """A function's name as its author wrote it."""
    if "__pyx" not in name:
        return name
    name = name.partition(f"_{len(module)}{module}_")[2]
    for part in range(len(name)):  # CLASS's length and name, and numbers of Cython's
        if name[part].isdigit():
            digits = len(name[part:]) - len(name[part:].lstrip("0123456789"))
            length = int(name[part : part + digits])
            rest = name[part + digits :]
            if len(rest) > length and rest[length : length + 1] == "_":
                return rest[length + 1 :].lstrip("0123456789")
    return name


@functools.cache
def _generated(path: str) -> list[tuple[int, str]]:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return []
    found = []
    for number, line in enumerate(lines, 1):
        if line.startswith('  /* "mmapds/') or line.lstrip().startswith('/* "mmapds/'):
            found.append((number, line.split('"', 2)[1] + line.split('"', 2)[2].split()[0]))
    return found


def _pyx(path: str, line: str) -> tuple[str, str]:
    """The line in Cython of one in C."""
    marks = _generated(path)
    at = bisect.bisect_right(marks, (int(line.strip("?") or 0), "~")) - 1
    if at < 0:
        return os.path.basename(path), line
    file, _, number = marks[at][1].rpartition(":")
    return file, number
