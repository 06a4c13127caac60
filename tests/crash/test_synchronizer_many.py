"""Many processes at once, and numbers at their limits (rows 18, 27, 29, 31)."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import syncfiles
from peers import Peer
from victims import number, pattern

from mmapds import CorruptionError, Synchronizer

TOP = (1 << 64) - 1


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "value")


def test_r18_64_processes_create_at_once(tmp_path: Path) -> None:
    with Peer("import victims, collections") as zygote:
        zygote(
            """
def create(prefix, go, identities):
    os.read(go, 1)  # ends for all of them at the same moment
    s = Synchronizer(prefix, codec="raw", schema="one")
    with open(prefix + "_sync", "rb") as file:
        os.write(identities, file.read(48)[32:])
    try:
        s.write_bytes(victims.pattern(1, 4096))
    except mmapds.WriterBusy:
        while s.wait(0, timeout=0.05) is None:
            pass
    assert victims.number(s.load()) == 1
    s.close()

def run(prefix, count):
    reading, go = os.pipe()
    identities_in, identities_out = os.pipe()
    pids = []
    for _ in range(count):
        def job():
            os.close(go)
            create(prefix, reading, identities_out)
        pids.append(victims.spawn(job))
    os.close(go)
    os.close(reading)
    os.close(identities_out)
    statuses = collections.Counter(victims.finish(pid) for pid in pids)
    found = b""
    while data := os.read(identities_in, 4096):
        found += data
    os.close(identities_in)
    return dict(statuses), len(found), len({found[i:i + 16] for i in range(0, len(found), 16)})
"""
        )
        for n in range(6):
            prefix = str(tmp_path / f"value{n}")
            assert zygote("run(prefix, 64)", prefix=prefix) == ({0: 64}, 64 * 16, 1), zygote.stderr()
            names = sorted(syncfiles.snapshot(prefix))
            assert set(names) <= set(syncfiles.SUFFIXES), names
            with Synchronizer(prefix, schema="one") as s:
                assert number(s.load()) == 1
                s.check()
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_r27_of_many_processes_one_writes_and_all_see_the_same(prefix: str) -> None:
    """Everybody tries to be the writer for a moment, again and again: no version is published twice."""
    Synchronizer(prefix, codec="raw").close()
    with Peer("import victims, collections", prefix=prefix) as zygote:
        zygote(
            """
def compete(out):
    published = []
    while len(published) < 50:
        with Synchronizer(prefix) as s:
            try:
                n = s.version
                s.write_bytes(victims.pattern(os.getpid(), 4096), grace=0.0)
            except mmapds.WriterBusy:
                continue
            published.append(s.version)
            with s.read() as r:
                assert r.version == published[-1] and victims.number(r.data) == os.getpid()
    os.write(out, repr(published).encode() + b"\\n")

def run(count):
    reading, writing = os.pipe()
    pids = [victims.spawn(lambda: compete(writing)) for _ in range(count)]
    os.close(writing)
    statuses = [victims.finish(pid) for pid in pids]
    with open(reading) as lines:
        return statuses, [eval(line) for line in lines]
"""
        )
        statuses, published = zygote("run(6)")
        assert statuses == [0] * 6, zygote.stderr()
        assert sorted(version for versions in published for version in versions) == list(range(1, 301))


# ---- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [(1 << 31) - 2, (1 << 32) - 2, (1 << 53) - 2, (1 << 63) - 2, TOP - 5])
def test_r29_versions_beyond_every_power_of_two(prefix: str, start: int) -> None:
    with Synchronizer(prefix, codec="raw") as s:
        s.write_bytes(pattern(1))
        if not start & 1:
            s.write_bytes(pattern(2))
    syncfiles.set_sequence(prefix, start)
    with (
        Synchronizer(prefix) as s,
        Synchronizer(prefix) as reader,
        Synchronizer(prefix, mode="readonly") as copying,
        Peer("s = Synchronizer(prefix)", prefix=prefix) as waiter,
    ):
        held = []
        for n in range(start + 1, start + 5):
            waiter.send("s.wait(newer_than=n - 1)", n=n)
            s.write_bytes(pattern(n), grace=0.0)
            assert waiter.receive() == n
            held.append(reader.read())
            for handle in (s, reader, copying):
                assert handle.version == n
                with handle.read() as r:
                    assert (r.version, number(r.data)) == (n, n)
        for n, r in enumerate(held, start + 1):
            assert number(r.data) == n
            r.release()


@pytest.mark.parametrize("mode", ["shared", "private"])
def test_r29_the_last_version_of_all_is_an_explicit_error(prefix: str, mode: Any) -> None:
    with Synchronizer(prefix, codec="raw") as s:
        s.write_bytes(pattern(1))
    syncfiles.set_sequence(prefix, TOP)
    before = syncfiles.snapshot(prefix)
    with Synchronizer(prefix, mode=mode) as s:
        assert s.version == TOP
        assert number(s.load()) == 1
        for _ in range(2):
            with pytest.raises(OverflowError):
                s.write_bytes(b"one more")
        assert s.version == TOP
        assert number(s.load()) == 1
        assert s.wait(newer_than=TOP, timeout=0) is None
    after = syncfiles.snapshot(prefix)
    assert after["_data_0"] if "_data_0" in before else "_data_0" not in after
    assert after["_data_1"] == before["_data_1"]


def test_r29_a_value_of_2_to_the_39_is_refused_and_one_below_is_tried(prefix: str) -> None:
    """The source is memory that is not there: only its size is looked at before the file is made."""
    import mmap

    try:
        huge = mmap.mmap(-1, (1 << 39), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, prot=mmap.PROT_READ)
    except OSError as error:
        pytest.skip(f"no address space for the source: {error}")
    with huge, Synchronizer(prefix, codec="raw") as s:
        s.write_bytes(b"before")
        inodes = [os.stat(syncfiles.sync(prefix)).st_ino, os.stat(syncfiles.data(prefix, 1)).st_ino]
        with pytest.raises(ValueError, match=r"2\*\*39"):
            s.write_bytes(huge)
        with memoryview(huge) as view, view[:-1] as almost:
            free = os.statvfs(prefix + "_sync")
            if free.f_bavail * free.f_frsize > 1 << 38:
                pytest.skip("this disk might even hold it")
            with pytest.raises(OSError, match=r"space|large"):
                s.write_bytes(almost)
        assert bytes(s.load()) == b"before"
        assert inodes == [os.stat(syncfiles.sync(prefix)).st_ino, os.stat(syncfiles.data(prefix, 1)).st_ino]
        s.write_bytes(b"after")
        s.check()


@pytest.mark.slow
def test_r29_a_value_larger_than_4_gib(tmp_path: Path) -> None:
    import mmap
    import shutil
    import tempfile

    size = (4 << 30) + 12_345
    memory = "/dev/shm"
    if not os.path.isdir(memory) or shutil.disk_usage(memory).free < size + (1 << 30):
        pytest.skip("needs 5 GiB of tmpfs")
    with tempfile.TemporaryDirectory(dir=memory) as folder, mmap.mmap(-1, size) as source:
        prefix = folder + "/value"
        source[-8:] = source[4 << 30 : (4 << 30) + 8] = b"the end!"
        with Synchronizer(prefix, codec="raw") as s:
            assert s.write_bytes(source).size == size
            with Synchronizer(prefix) as reader, reader.read() as r:
                assert len(r) == size
                assert bytes(r.data[-8:]) == bytes(r.data[4 << 30 : (4 << 30) + 8]) == b"the end!"
            s.check()
        syncfiles.flip(syncfiles.data(prefix, 1), 8 * (4096 + (4 << 30) + 5000))
        with Synchronizer(prefix) as reader, pytest.raises(CorruptionError, match="checksum"):
            reader.read()


# ---- what must not be imported -------------------------------------------------------------------------------------


class Evil:
    """Unpickling it imports a module that nothing else imports."""

    def __reduce__(self) -> tuple[Any, ...]:
        return __import__, ("this",)


@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_r31_pickle_bytes_under_the_default_codec_are_refused(prefix: str, protocol: int, mode: Any) -> None:
    with Synchronizer(prefix) as s:
        s.write_bytes(pickle.dumps(Evil(), protocol))
    sys.modules.pop("this", None)
    with Synchronizer(prefix, mode=mode) as s:
        with pytest.raises(CorruptionError):
            s.load()
        with s.read() as r, pytest.raises(CorruptionError):
            _ = r.value
    assert "this" not in sys.modules
