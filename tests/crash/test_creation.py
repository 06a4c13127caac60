"""How files come to life when their maker is killed, or is one of many."""

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapds import IncompatibleFormat, Region, files

KIND = "example"

# Kills itself at the n-th call of a builtin within what it makes: between any two system calls there is one.
MAKE = """
from mmapds import files
from mmapds._native import kernel
what, path, n, fallback = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "named"
if fallback:
    real = os.open
    def no_unnamed(name, flags, mode=0o777):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "not supported")
        return real(name, flags, mode)
    os.open = no_unnamed
count = 0
def profile(frame, event, argument):
    global count
    if event == "c_call":
        count += 1
        if count == n:
            os.kill(os.getpid(), signal.SIGKILL)
page = files.new_header("example", durability="power" if what == "power" else "process")
sys.setprofile(profile)
if what == "region":
    region = Region.open(path, 100000)
else:
    files.create(path, page, 100000, durability="power" if what == "power" else "process")
sys.setprofile(None)
if what == "region":
    region.close()
say("made")
"""


def complete(what: str, path: Path) -> bool:
    if path.stat().st_size != 100000:
        return False
    if what == "region":
        with Region.open(path) as region:
            return region[:] == bytes(100000)
    files.OpenFile(str(path), KIND, writable=True).close()
    return True


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", ["unnamed", "named"])
@pytest.mark.parametrize("what", ["region", "process", "power"])
def test_r07_killed_at_every_call_while_creating(
    start: Callable, tmp_path: Path, what: str, way: str, every: int
) -> None:
    absent = present = 0
    path = tmp_path / "file"
    n, step = 1, 12  # every call takes long: a dozen processes at once
    while True:
        calls = range(n, n + step * every, every)
        folders = [tmp_path / str(i) for i in calls]
        for folder in folders:
            folder.mkdir()
        peers = [start(MAKE, what, folder / "file", i, way) for i, folder in zip(calls, folders, strict=True)]
        made = 0
        for folder, peer in zip(folders, peers, strict=True):
            path = folder / "file"
            if peer.wait() == 0:
                made += 1
            else:
                assert peer.process.returncode == -signal.SIGKILL, peer.errors
            names = set(os.listdir(folder)) - {"file"}
            assert len(names) <= (way == "named"), names
            assert all(re.fullmatch(r"\.file\.[0-9a-f]{8}\.tmp", name) for name in names)
            if path.exists():
                assert complete(what, path)
                present += 1
            else:
                absent += 1
                if what == "region":  # the next one makes it
                    Region.open(path, 100000).close()
                    assert complete(what, path)
            peer.close()
            shutil.rmtree(folder)
        if made == step:
            break
        n += step * every
    assert absent > 5
    assert present > step


def test_r07_power_syncs_before_and_after_the_name(tmp_path: Path, start: Callable) -> None:
    """The file is on the disk before it gets its name, and the name before create() returns."""
    if shutil.which("strace") is None:
        pytest.skip("no strace here")
    log = tmp_path / "log"
    peer = start(
        """
        from mmapds import files
        files.create(sys.argv[1], files.new_header("example", durability="power"), 8192, durability="power")
        """,
        tmp_path / "file",
        under=["strace", "-f", "-o", str(log), "-y", "-e", "trace=pwrite64,fsync,linkat,fallocate"],
    )
    if peer.wait() != 0 and "ptrace" in peer.errors:
        pytest.skip(peer.errors)
    calls = re.findall(r"\d+ +(\w+)\(.*?(?:= 0|= \d+)$", log.read_text(), re.MULTILINE)
    assert calls == ["fallocate", "fallocate", "pwrite64", "fsync", "linkat", "fsync"]


# ---- many at once -----------------------------------------------------------------------------------------------


def test_r18_64_processes_create_at_once(start: Callable, tmp_path: Path) -> None:
    path, go = tmp_path / "file", tmp_path / "go"
    script = """
        path, go = sys.argv[1:]
        from mmapds import files
        page = files.new_header("example")
        say("ready")
        while not os.path.exists(go):
            time.sleep(0.001)
        try:
            files.create(path, page, 100000, durability="process")
            made = True
        except FileExistsError:
            made = False
        file = files.OpenFile(path, "example", writable=True)
        assert file.size == 100000 and (not made or file.header.identity == files.identity_of(page))
        say(made, file.header.identity.hex(), os.fstat(file.fd).st_ino)
        file.close()
        """
    peers = [start(script, path, go) for _ in range(64)]
    for peer in peers:
        peer.expect("ready")
    go.touch()
    said = [peer.finish().split() for peer in peers]
    assert sorted(made for made, _, _ in said) == ["False"] * 63 + ["True"]
    assert len({(identity, inode) for _, identity, inode in said}) == 1
    assert sorted(os.listdir(tmp_path)) == ["file", "go"]


def test_r18_64_processes_open_and_grow_a_region_at_once(start: Callable, tmp_path: Path) -> None:
    path, go = tmp_path / "file", tmp_path / "go"
    script = """
        path, go, n = sys.argv[1:]
        say("ready")
        while not os.path.exists(go):
            time.sleep(0.001)
        with Region.open(path, 4096) as region:
            assert len(region) == 4096
            before = region.atomic(0).fetch_add(1)
            region.resize(4096 + 64 * int(n))
            region[4095 + 64 * int(n)] = 77
            assert region.resize(100000) == 100000
            region[50000 + int(n)] = 1
            with region.lock(8):
                region[16:24] = (int.from_bytes(region[16:24], "little") + 1).to_bytes(8, "little")
            say(before, os.stat(path).st_ino)
        """
    peers = [start(script, path, go, n) for n in range(1, 65)]
    for peer in peers:
        peer.expect("ready")
    go.touch()
    said = [peer.finish().split() for peer in peers]
    assert sorted(int(before) for before, _ in said) == list(range(64))
    assert len({inode for _, inode in said}) == 1
    with Region.open(path) as region:
        assert len(region) == 100000
        assert int.from_bytes(region[16:24], "little") == region.atomic(0).load() == 64
        assert region[50001:50065] == b"\1" * 64
        assert all(region[4095 + 64 * n] == 77 for n in range(1, 65))


def test_r18_growers_and_shrinkers_of_one_file(start: Callable, tmp_path: Path) -> None:
    """Whoever grows never cuts what another has grown meanwhile."""
    path = tmp_path / "file"
    Region.open(path, 4096).close()
    script = """
        path, n = sys.argv[1], int(sys.argv[2])
        hear()
        for i in range(1, 300):
            with Region.open(path) as region:
                size = max(len(region), 4096 * (n + 3 * i))
                region.resize(size)
                region[size - 1] = 1
                assert os.stat(path).st_size >= size
        """
    peers = [start(script, path, n) for n in range(3)]
    for peer in peers:
        peer.tell()
    for peer in peers:
        peer.finish()
    assert path.stat().st_size == 4096 * (2 + 3 * 299)


# ---- what is in the way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["shared", "private", "readonly"])
def test_r17_what_is_not_a_regular_file(tmp_path: Path, mode: str) -> None:
    folder, fifo, link, dangling = (tmp_path / name for name in ("folder", "fifo", "link", "dangling"))
    folder.mkdir()
    os.mkfifo(fifo)
    (tmp_path / "file").write_bytes(b"x")
    link.symlink_to("file")
    dangling.symlink_to("nowhere")
    for size in (None, 100):
        with pytest.raises(IsADirectoryError, match="is a directory"):
            Region.open(folder, size, mode=mode)
        with pytest.raises(IncompatibleFormat, match="is a FIFO"):
            Region.open(fifo, size, mode=mode)
        for path in (link, dangling):
            with pytest.raises(IncompatibleFormat, match="is a symbolic link"):
                Region.open(path, size, mode=mode)
        with pytest.raises(IncompatibleFormat, match="is a device"):
            Region.open("/dev/zero", size, mode=mode)
    assert (tmp_path / "file").read_bytes() == b"x"
    assert sorted(os.listdir(tmp_path)) == ["dangling", "fifo", "file", "folder", "link"]


@pytest.mark.parametrize("mode", ["shared", "private", "readonly"])
def test_r17_empty_and_short_files(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ValueError, match="is empty"):
        Region.open(path, mode=mode)
    path.write_bytes(b"x")
    with Region.open(path, mode=mode) as region:
        assert region[:] == b"x"
        with pytest.raises(IndexError):
            region[1]
    for content in (b"", b"x", bytes(4095), bytes(4096), bytes(100000)):
        path.write_bytes(content)
        with pytest.raises(IncompatibleFormat):
            files.OpenFile(str(path), KIND, writable=mode == "shared")
        assert path.read_bytes() == content
