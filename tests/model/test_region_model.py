"""Region against a bytearray: whatever is done, both hold the same bytes, and every view keeps what it saw.

The reference of a shared region is the file as others see it; a private one has a reference of its own. A view that was
made before a region shrank keeps what was cut; what is not cut it shares with the region.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mmapds import AtomicInt64, Closed, Region

PAGE = os.sysconf("SC_PAGE_SIZE")
LIMIT = 6 * PAGE

sizes = st.one_of(
    st.integers(1, 40),
    st.integers(1, LIMIT),
    st.sampled_from([PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 3 * PAGE + 5, LIMIT]),
)
offsets = st.one_of(st.integers(0, 40), st.integers(0, LIMIT), st.sampled_from([PAGE - 1, PAGE, PAGE + 1, 2 * PAGE]))
chunks = st.one_of(st.binary(max_size=30), st.integers(0, 2 * PAGE).map(lambda n: (bytes(range(256)) * 33)[:n]))
bounds = st.one_of(st.none(), st.integers(-LIMIT - 10, LIMIT + 10))
steps = st.sampled_from([None, 1, 2, -1, -3, 4096])


class RegionModel(RuleBasedStateMachine):
    mode = "shared"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="mmapds-"))
        self.path = self.folder / "file"
        self.region: Region | None = None
        self.views: list[tuple[memoryview, bytearray, int]] = []  # the view, what it shows, from where it is a copy
        self.atomics: list[tuple[AtomicInt64, int]] = []

    def teardown(self) -> None:
        for view, _, _ in self.views:
            view.release()
        self.views.clear()
        self.atomics.clear()
        if self.region is not None:
            self.region.close()
        shutil.rmtree(self.folder)

    # ---- the reference: `self.bytes`, of which the region shows `self.size`, and what the views show -----------------

    @property
    def now(self) -> bytes:
        return bytes(self.bytes[: self.size])

    def put(self, offset: int, data: bytes) -> None:
        self.bytes[offset : offset + len(data)] = data
        for _, shown, shared in self.views:
            for i, byte in enumerate(data, offset):
                if i < shared:
                    shown[i] = byte

    # ---- rules ------------------------------------------------------------------------------------------------------

    @initialize(size=sizes, content=chunks)
    def make(self, size: int, content: bytes) -> None:
        if self.mode == "shared":
            self.region = Region.open(self.path, size)
            self.bytes = bytearray(size)
        else:
            self.path.write_bytes(bytes(content) + b"x" * size)
            self.original = self.path.read_bytes()
            self.region = Region.open(self.path, size, mode="private")
            self.bytes = bytearray(self.original[:size])
        self.size = size
        self.position = 0

    @precondition(lambda self: self.region.closed)
    @rule(size=st.one_of(st.none(), sizes))
    def reopen(self, size: int | None) -> None:
        assert self.region is not None
        with pytest.raises(Closed):
            self.region.pread(1, 0)
        if self.mode == "shared":
            self.region = Region.open(self.path, size)
            self.size = size or len(self.bytes)
            self.bytes.extend(bytes(max(0, self.size - len(self.bytes))))
        else:
            self.size = min(size or 1, len(self.original))
            self.region = Region.open(self.path, self.size, mode="private")
            self.bytes = bytearray(self.original[: self.size])
        self.position = 0

    @precondition(lambda self: not self.region.closed)
    @rule(n=sizes, offset=offsets)
    def pread(self, n: int, offset: int) -> None:
        assert self.region.pread(n, offset) == self.now[offset : offset + n]

    @precondition(lambda self: not self.region.closed)
    @rule(data=chunks, offset=offsets)
    def pwrite(self, data: bytes, offset: int) -> None:
        if offset + len(data) > self.size:
            with pytest.raises(ValueError, match="resize"):
                self.region.pwrite(data, offset)
        else:
            assert self.region.pwrite(data, offset) == len(data)
            self.put(offset, data)

    @precondition(lambda self: not self.region.closed)
    @rule(start=bounds, stop=bounds, step=steps)
    def get(self, start: int | None, stop: int | None, step: int | None) -> None:
        key = slice(start, stop, step)
        assert self.region[key] == self.now[key]

    @precondition(lambda self: not self.region.closed)
    @rule(start=bounds, stop=bounds, step=steps, seed=st.integers(0, 255))
    def set(self, start: int | None, stop: int | None, step: int | None, seed: int) -> None:
        key = slice(start, stop, step)
        indices = range(*key.indices(self.size))
        data = bytes((seed + i) % 256 for i in range(len(indices)))
        self.region[key] = data
        for index, byte in zip(indices, data, strict=True):
            self.put(index, bytes([byte]))

    @precondition(lambda self: not self.region.closed)
    @rule(index=st.integers(-LIMIT, LIMIT), value=st.integers(0, 255))
    def item(self, index: int, value: int) -> None:
        if -self.size <= index < self.size:
            assert self.region[index] == self.now[index]
            self.region[index] = value
            self.put(index % self.size, bytes([value]))
        else:
            with pytest.raises(IndexError):
                self.region[index]

    @precondition(lambda self: not self.region.closed)
    @rule(n=st.one_of(st.none(), st.integers(-1, LIMIT)))
    def read(self, n: int | None) -> None:
        end = self.size if n is None or n < 0 else self.position + n
        expected = self.now[self.position : end]
        assert self.region.read(n) == expected
        self.position += len(expected)

    @precondition(lambda self: not self.region.closed)
    @rule()
    def readline(self) -> None:
        end = self.now.find(b"\n", self.position) + 1 or self.size
        expected = self.now[self.position : end]
        assert self.region.readline() == expected
        self.position += len(expected)

    @precondition(lambda self: not self.region.closed)
    @rule(data=chunks)
    def write(self, data: bytes) -> None:
        if self.position + len(data) > self.size:
            with pytest.raises(ValueError, match="resize"):
                self.region.write(data)
        else:
            assert self.region.write(data) == len(data)
            self.put(self.position, data)
            self.position += len(data)

    @precondition(lambda self: not self.region.closed)
    @rule(offset=st.integers(-LIMIT, LIMIT), whence=st.integers(0, 2))
    def seek(self, offset: int, whence: int) -> None:
        position = offset + (0, self.position, self.size)[whence]
        if 0 <= position <= self.size:
            assert self.region.seek(offset, whence) == position
            self.position = position
        else:
            with pytest.raises(ValueError, match="outside"):
                self.region.seek(offset, whence)

    @precondition(lambda self: not self.region.closed)
    @rule(size=st.one_of(st.none(), sizes))
    def resize(self, size: int | None) -> None:
        old = self.size
        new = 2 * old if size is None else size
        if new > 4 * LIMIT:
            return
        if self.mode == "private" and new != old and self.region._mapping.borrows:
            try:
                self.region.resize(size)
            except BufferError:
                return
            assert new > old  # in place
        else:
            assert self.region.resize(size) == new
        self.size = new
        if new > old:
            self.bytes.extend(bytes(max(0, new - len(self.bytes))))
        elif new < old:
            whole = -(-new // PAGE) * PAGE
            if self.mode == "shared":
                for i, (view, shown, shared) in enumerate(self.views):
                    end = min(whole, shared, len(shown))
                    shown[new:end] = bytes(max(0, end - new))
                    self.views[i] = (view, shown, min(shared, whole))
                self.atomics = [(atomic, at) for atomic, at in self.atomics if at + 8 <= new]
            del self.bytes[new:]

    @precondition(lambda self: not self.region.closed and len(self.views) < 4)
    @rule()
    def view(self) -> None:
        self.views.append((memoryview(self.region), bytearray(self.now), self.size))

    @precondition(lambda self: self.views)
    @rule(which=st.integers(0, 3))
    def release(self, which: int) -> None:
        view, _, _ = self.views.pop(which % len(self.views))
        view.release()

    @precondition(lambda self: self.views)
    @rule(which=st.integers(0, 3), offset=offsets, value=st.integers(0, 255))
    def write_through_a_view(self, which: int, offset: int, value: int) -> None:
        view, shown, shared = self.views[which % len(self.views)]
        if offset < len(shown):
            view[offset] = value
            if offset >= shared:  # views of one mapping have one copy
                for other, bytes_, _ in self.views:
                    if other.obj is view.obj and offset < len(bytes_):
                        bytes_[offset] = value
            elif offset < len(self.bytes):
                self.put(offset, bytes([value]))
            else:  # behind the end, in the last page: the next who extends the file may find it there
                view[offset] = 0

    @precondition(lambda self: not self.region.closed and self.size >= 8 and len(self.atomics) < 3)
    @rule(offset=offsets)
    def atomic(self, offset: int) -> None:
        offset = offset % (self.size // 8) * 8
        self.atomics.append((self.region.atomic(offset), offset))

    @precondition(lambda self: self.atomics and not self.region.closed)
    @rule(which=st.integers(0, 2), n=st.integers(-(2**63), 2**63 - 1))
    def add(self, which: int, n: int) -> None:
        atomic, at = self.atomics[which % len(self.atomics)]
        old = int.from_bytes(self.bytes[at : at + 8], "little", signed=True)
        assert atomic.fetch_add(n) == old
        self.put(at, ((old + n) % 2**64).to_bytes(8, "little"))

    @precondition(lambda self: self.atomics)
    @rule()
    def drop_atomics(self) -> None:
        self.atomics.clear()

    @precondition(lambda self: not self.region.closed and not self.views)
    @rule()
    def close(self) -> None:
        self.atomics.clear()
        self.region.close()
        self.region.close()

    @precondition(lambda self: not self.region.closed)
    @rule()
    def paging(self) -> None:
        self.region.populate()
        self.region.flush()
        self.region.advise("willneed")
        assert 0 < self.region.resident() <= -(-self.size // PAGE) * PAGE

    # ---- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def same_bytes(self) -> None:
        if self.region is None:
            return
        if not self.region.closed:
            assert len(self.region) == self.size
            assert self.region[:] == self.now
            assert self.region.tell() == self.position
        if self.mode == "private":
            assert self.path.read_bytes() == self.original
        else:
            assert self.path.read_bytes() == self.bytes
        for view, shown, _ in self.views:
            assert view == bytes(shown)


class PrivateRegionModel(RegionModel):
    mode = "private"


budget = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSharedRegion = RegionModel.TestCase
TestSharedRegion.settings = budget
TestPrivateRegion = PrivateRegionModel.TestCase
TestPrivateRegion.settings = budget
