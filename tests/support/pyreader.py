"""A reader of the default protocol in plain Python, from the description in ``_native/layout.h`` and ``leftright.h``.

It exists to show two things: that the description suffices to write a reader, and that the hunt for torn reads finds
them when the reader's order is wrong. With ``order="load, then count"`` it does what the mmap-sync crate does: load the
version, count itself in, and not look again.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import time

import syncfiles

import mmapds


class PythonReader:
    """Reads `prefix` through a slot that it takes by itself."""

    def __init__(self, prefix: str, order: str = "announce, then look again", pause: float = 0.0) -> None:
        self.prefix = prefix
        self.pause = pause
        self.looks_again = order == "announce, then look again"
        path = syncfiles.sync(prefix)
        self._region = mmapds.Region.open(path, create=False)
        self._locks = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._version = self._region.atomic(syncfiles.COMMIT)
        for slot in range(syncfiles.SLOT_COUNT - 1, -1, -1):
            try:
                syncfiles.lock(self._locks, syncfiles.LOCK_SLOT + slot)
                break
            except OSError:
                continue
        where = syncfiles.SLOTS + slot * syncfiles.SLOT_SIZE
        self._pins = [self._region.atomic(where), self._region.atomic(where + 8)]
        for pins in self._pins:
            pins.store(0)
        self._region.atomic(where + 16).fetch_add(1)
        self._region.atomic(syncfiles.IN_USE + slot // 64 * 8).fetch_or(
            (1 << slot % 64) - (1 << 64 if slot % 64 == 63 else 0)
        )

    def read(self) -> tuple[int, bytes]:
        """(version, value)."""
        while True:
            version = self._version.load()
            index = version & 1
            time.sleep(self.pause * random.random())  # a reader may be descheduled anywhere; so it is, here
            self._pins[index].fetch_add(1)
            try:
                if self.looks_again:
                    version = self._version.load()
                    if version & 1 != index:
                        continue
                sequence, size = struct.unpack("<2Q", self._region.pread(16, syncfiles.RECORDS[index]))
                if self.looks_again and sequence != version:
                    if self._version.load() != version:
                        continue  # a writer whose grace was over has published version + 2 in a new inode
                    raise ValueError(f"record of version {sequence} under version {version}")
                data = self._data(index, size)
                if self.looks_again and self._version.load() != version and data is None:
                    continue  # the name stands for the next inode by now
                if data is not None:
                    return version, data
            finally:
                self._pins[index].fetch_sub(1)

    def _data(self, index: int, size: int) -> bytes | None:
        descriptor = os.open(syncfiles.data(self.prefix, index), os.O_RDONLY | os.O_CLOEXEC)
        try:
            before = self._version.load()
            with mmap.mmap(descriptor, syncfiles.PAGE + size, prot=mmap.PROT_READ) as mapped:
                if self.looks_again and (before ^ self._version.load() or before & 1 != index):
                    return None
                return mapped[syncfiles.PAGE : syncfiles.PAGE + size]
        finally:
            os.close(descriptor)

    def close(self) -> None:
        self._region.close()
        os.close(self._locks)
