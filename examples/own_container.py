"""A container of your own: a ring of samples that processes share, and that survives the death of any of them.

    python examples/own_container.py

It is made of three things that a region offers: bytes, atomic words and a lock. Layout of the file::

    offset  size
         0     8  lock        who may change the rest (region.lock)
         8     8  put         samples ever put; stored last: it publishes the sample (region.atomic)
        16     8  taken       samples ever taken
        24     8  total       sum of the values between the two, in thousandths
        32     8  repairs     how often somebody found the ring half changed
        64    32  sample 0    number, process id, value, reserved
         ...

`put`, `taken` and `total` belong together, and a process can die between two of them. Whoever gets the lock next is
told so (`lock.owner_died`), and computes `total` anew from the samples, which are either published or not.

The program starts producers and consumers, which are processes of their own, kills one producer with SIGKILL while it
holds the lock, in the middle of a change, and lets the others go on.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Self

from mmapds import Region

SAMPLE = struct.Struct("<qqdq")
FIRST = 64  # offset of the samples
CAPACITY = 50  # samples
PRODUCERS, EACH, VICTIM = 3, 2000, 5  # how many, samples of each, samples of the one that is killed


class SampleRing:
    """Samples in the order in which they were put; full when CAPACITY of them wait."""

    def __init__(self, path: str) -> None:
        # Whoever comes first makes the file. It is all zeros: an empty ring, and a lock that nobody has.
        self.region = Region.open(path, FIRST + CAPACITY * SAMPLE.size, fixed_size=True)
        self.lock = self.region.lock(0)
        self.puts = self.region.atomic(8)
        self.taken = self.region.atomic(16)
        self.total = self.region.atomic(24)
        self.repairs = self.region.atomic(32)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.region.close()

    def put(self, value: float, *, dawdle: bool = False) -> None:
        """Adds a sample, or waits until there is room."""
        while True:
            with self.lock:
                self._repair_if_needed()
                put, taken = self.puts.load(), self.taken.load()
                if put - taken < CAPACITY:
                    self.region.pwrite(SAMPLE.pack(put, os.getpid(), value, 0), self._place(put))
                    self.total.fetch_add(round(value * 1000))
                    if dawdle:
                        print("in the middle", flush=True)
                        signal.pause()  # until it is killed
                    self.puts.store(put + 1)
                    self.puts.wake(1)
                    return
            self.taken.wait(taken)  # without the lock, so that somebody can make room

    def take(self) -> float:
        """Removes the oldest sample, or waits until there is one."""
        while True:
            with self.lock:
                self._repair_if_needed()
                put, taken = self.puts.load(), self.taken.load()
                if put > taken:
                    number, _, value, _ = SAMPLE.unpack(self.region.pread(SAMPLE.size, self._place(taken)))
                    assert number == taken
                    self.total.fetch_sub(round(value * 1000))
                    self.taken.store(taken + 1)
                    self.taken.wake(1)
                    return float(value)
            self.puts.wait(put)

    def check(self) -> None:
        """AssertionError unless all parts agree."""
        assert 0 <= self.puts.load() - self.taken.load() <= CAPACITY
        assert self.total.load() == self._computed_total()

    def _repair_if_needed(self) -> None:
        if self.lock.owner_died:
            self.total.store(self._computed_total())
            self.repairs.fetch_add(1)

    def _computed_total(self) -> int:
        numbers = range(self.taken.load(), self.puts.load())
        samples = (SAMPLE.unpack(self.region.pread(SAMPLE.size, self._place(number))) for number in numbers)
        return sum(round(value * 1000) for _, _, value, _ in samples)

    @staticmethod
    def _place(number: int) -> int:
        return FIRST + number % CAPACITY * SAMPLE.size


def produce(path: str, first: int, count: int, dawdle: bool) -> None:
    with SampleRing(path) as ring:
        for i in range(first, first + count):
            ring.put(i / 2, dawdle=dawdle and i == first + count - 1)


def consume(path: str, count: int) -> None:
    with SampleRing(path) as ring:
        print(sum(ring.take() for _ in range(count)))


def start(role: str, path: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, role, path, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate()
    assert process.returncode == 0, process.args
    return said


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, SampleRing(path := os.path.join(folder, "ring")) as ring:
        victim = start("produce", path, 0, VICTIM, True)
        assert victim.stdout
        assert victim.stdout.readline() == "in the middle\n"
        victim.kill()
        victim.communicate()
        print(f"killed a producer in the middle of its sample {VICTIM}; the lock is held: {ring.lock.locked()}")

        whole = VICTIM - 1 + PRODUCERS * EACH  # the sample that was being put was never there
        consumers = [start("consume", path, whole // 2), start("consume", path, whole - whole // 2)]
        producers = [start("produce", path, VICTIM + i * EACH, EACH, False) for i in range(PRODUCERS)]
        for producer in producers:
            finish(producer)
        consumed = sum(float(finish(consumer)) for consumer in consumers)
        expected = sum(i / 2 for i in [*range(VICTIM - 1), *range(VICTIM, VICTIM + PRODUCERS * EACH)])
        ring.check()
        print(f"samples put: {ring.puts.load()}, taken: {ring.taken.load()}, repairs: {ring.repairs.load()}")
        print(f"sum of what was taken: {consumed}, of what was put: {expected}")
        assert (consumed, ring.puts.load(), ring.repairs.load()) == (expected, whole, 1)


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["produce", path, first, count, dawdle]:
            produce(path, int(first), int(count), dawdle == "True")
        case ["consume", path, count]:
            consume(path, int(count))
