"""Power loss, simulated: what a disk may hold when the power goes, between any two of a process's calls to sync.

A `WatchedPeer` is a peer with ``syncshim.c`` preloaded: it stops before each msync, fsync, rename and link, and asks.
The test can look at the files then, let the call fail, or kill the process. A `Disk` follows a folder from call to call
and knows, for each sector of 512 bytes, which contents may be on the disk: the last one synced, and all later ones.
Sizes and names are followed in the same way. `Disk.losses` enumerates folders that may be found afterwards.

Needs a C compiler, as the package does.
"""

from __future__ import annotations

import itertools
import os
import random
import select
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from peers import SUPPORT, WATCHDOG, Peer

SECTOR = 512


class Call(NamedTuple):
    """What the process is about to do; `inode`, `start`, `end`: what becomes durable then (end 0: a folder)."""

    name: str
    path: str
    inode: int
    start: int
    end: int
    content: bytes | None  # of a file without a name


@cache
def shim() -> str:
    """The shared object, compiled once."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler, to build the shim that stops a process before each sync")
    target = str(Path(tempfile.mkdtemp(prefix="mmapds-shim-")) / "syncshim.so")
    source = str(SUPPORT / "syncshim.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", target, source, "-ldl"], check=True)
    return target


class WatchedPeer(Peer):
    """A peer that stops before each call of interest. Use `watch` instead of calling it."""

    def __init__(self, setup: str = "", **names: Any) -> None:
        self._said, say = os.pipe()
        hear, self._answer = os.pipe()
        os.set_inheritable(say, True)
        os.set_inheritable(hear, True)
        env = {"LD_PRELOAD": shim(), "SHIM_SAY": str(say), "SHIM_HEAR": str(hear)}
        try:
            super().__init__(env=env, close_fds=False)
        finally:
            os.close(say)
            os.close(hear)
        if setup or names:
            self.watch(setup, lambda call: 0, **names)

    def watch(self, code: str, on_call: Callable[[Call], int], **names: Any) -> Any:
        """Runs the code; `on_call` gets each call before it is made and returns 0, or the errno it is to fail with."""
        self.send(code, **names)
        assert self.process.stdout is not None
        answers = self.process.stdout.fileno()
        while True:
            ready = select.select([self._said, answers], [], [], WATCHDOG)[0]
            if self._said not in ready:
                return self.receive()
            line = os.read(self._said, 10_000).decode()
            if line:
                os.write(self._answer, bytes([on_call(self._call(line))]))

    def _call(self, line: str) -> Call:
        name, first, second = line.split()
        if name == "msync":
            address, length = int(first), int(second)
            for entry in Path(f"/proc/{self.pid}/maps").read_text().splitlines():
                span, _, offset, _, inode, *path = entry.split(maxsplit=5)
                low, high = (int(part, 16) for part in span.split("-"))
                if low <= address < high:
                    start = address - low + int(offset, 16)
                    content = None
                    if path[0].rstrip().endswith("(deleted)"):  # nothing but the process can show it
                        with open(f"/proc/{self.pid}/mem", "rb") as memory:
                            memory.seek(low - int(offset, 16))
                            content = memory.read(high - low + int(offset, 16))
                    return Call(name, path[0].strip(), int(inode), start, start + length, content)
            raise AssertionError(f"msync of an address that is not mapped: {line}")
        if name in ("fsync", "fdatasync"):
            link = f"/proc/{self.pid}/fd/{first}"
            status = os.stat(link)
            if os.path.isdir(link):
                return Call(name, os.readlink(link), status.st_ino, 0, 0, None)
            return Call(name, os.readlink(link), status.st_ino, 0, status.st_size, Path(link).read_bytes())
        return Call(name, first if second == "0" else second, 0, 0, 0, None)

    def kill(self) -> None:
        super().kill()
        for descriptor in (self._said, self._answer):
            if descriptor >= 0:
                os.close(descriptor)
        self._said = self._answer = -1


class _Inode:
    """Every content of a file since it was first seen, and for each sector the oldest that may still be on the disk."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []
        self.floor: dict[int, int] = {}
        self.size_floor = -1  # never synced: it may be empty, and its sectors zero

    def see(self, content: bytes) -> None:
        if not self.contents or self.contents[-1] != content:
            self.contents.append(content)

    def synced(self, start: int, end: int) -> None:
        last = len(self.contents) - 1
        self.size_floor = last
        for sector in range(start // SECTOR, -(-end // SECTOR)):
            self.floor[sector] = last

    def sector(self, number: int, choose: random.Random) -> list[bytes]:
        """What it may contain; where it changed, also mixtures of words: it may have been read while it was written."""
        floor = self.floor.get(number, -1)
        found = [] if floor >= 0 else [bytes(SECTOR)]
        for content in self.contents[max(floor, 0) :]:
            piece = content[number * SECTOR : (number + 1) * SECTOR].ljust(SECTOR, b"\0")
            if piece not in found:
                found.append(piece)
        mixed = []
        for old, new in itertools.pairwise(found):
            mixed += [b"".join(choose.choice((old, new))[n : n + 8] for n in range(0, SECTOR, 8)) for _ in range(2)]
        return found[:-1] + mixed + found[-1:]

    def sizes(self) -> list[int]:
        found = [] if self.size_floor >= 0 else [0]
        return [*dict.fromkeys(found + [len(content) for content in self.contents[max(self.size_floor, 0) :]])]


class Disk:
    """What may be on the disk under a folder. Tell it about each call before it is made, and whether it succeeded."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._inodes: dict[int, _Inode] = {}
        self._names: list[dict[str, int]] = [{}]  # since the folder was last synced

    def look(self, call: Call | None = None) -> None:
        """Notes what the files contain now."""
        names = {}
        for entry in os.scandir(self.folder):
            names[entry.name] = entry.inode()
            self._inodes.setdefault(entry.inode(), _Inode()).see(Path(entry.path).read_bytes())
        if names != self._names[-1]:
            self._names.append(names)
        if call is not None and call.content is not None:
            self._inodes.setdefault(call.inode, _Inode()).see(call.content)

    def done(self, call: Call) -> None:
        """The call has succeeded, and nothing was changed since `look`."""
        if call.end:
            self._inodes[call.inode].synced(call.start, call.end)
        elif call.name == "fsync":
            self._names = self._names[-1:]

    def losses(self, choose: random.Random, at_most: int) -> Iterator[dict[str, bytes]]:
        """Contents of the folder that may be found after a power loss now: all of them if there are few, or a sample
        that begins with the extremes."""
        every = sorted({name for names in self._names for name in names})
        places: list[tuple[Any, list[Any]]] = [
            (name, [*dict.fromkeys(names.get(name) for names in self._names)]) for name in every
        ]
        for number in {inode for _, choices in places for inode in choices if inode is not None}:
            inode = self._inodes[number]
            places.append(((number, "size"), inode.sizes()))
            sectors = range(-(-max(inode.sizes()) // SECTOR))
            places += [((number, sector), inode.sector(sector, choose)) for sector in sectors]
        open_ = [place for place in places if len(place[1]) > 1]
        fixed = {place: choices[0] for place, choices in places if len(choices) == 1}
        for picked in _pick([len(choices) for _, choices in open_], choose, at_most):
            state = fixed | {place: choices[n] for (place, choices), n in zip(open_, picked, strict=True)}
            found = {}
            for name in every:
                number = state[name]
                if number is not None:
                    size = state[number, "size"]
                    sectors = range(-(-size // SECTOR))
                    found[name] = b"".join(state[number, sector] for sector in sectors)[:size]
            yield found


def _pick(counts: list[int], choose: random.Random, at_most: int) -> Iterator[tuple[int, ...]]:
    total = 1
    for count in counts:
        total *= count
    if total <= at_most:
        yield from itertools.product(*map(range, counts))
        return
    oldest, newest = tuple(0 for _ in counts), tuple(count - 1 for count in counts)
    yield oldest
    yield newest
    for one in range(len(counts)) if len(counts) <= 40 else choose.sample(range(len(counts)), 20):
        yield tuple(newest[n] if n == one else 0 for n in range(len(counts)))
        yield tuple(0 if n == one else newest[n] for n in range(len(counts)))
    for _ in range(at_most):
        favour = choose.choice((0.0, 0.5, 0.9, 0.98))  # most of them old, or new, and a few that are not
        oldest_mostly = choose.random() < 0.3
        yield tuple(
            (0 if oldest_mostly else count - 1) if choose.random() < favour else choose.randrange(count)
            for count in counts
        )
