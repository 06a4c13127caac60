"""Disks that are full, failing, read-only or of the wrong kind (rows 10, 11, 12, 13, 32)."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import syncfiles
from peers import Peer
from victims import number, pattern

from mmapds import DurabilityFailed, Synchronizer, UnsupportedFilesystem

SIZE = 6000
Mount = Callable[..., Path]


def fill(path: Path) -> int:
    """Writes until the disk is full; how many bytes that took."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while True:
                    file.write(os.urandom(size))
        return file.tell()


# ---- row 10: full --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", [0, 8192, 65_536])
def test_r10_no_room_to_create(small_disk: Path, leave: int) -> None:
    filler = small_disk / "filler"
    os.truncate(filler, fill(filler) - leave) if leave else fill(filler)
    before = os.listdir(small_disk)
    with pytest.raises(OSError, match="No space") as caught:
        Synchronizer(small_disk / "value")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(small_disk) == before
    filler.unlink()
    with Synchronizer(small_disk / "value") as s:
        s.write(1)
        assert s.load() == 1


def test_r10_no_room_for_the_first_value_or_to_grow_or_for_a_new_inode(small_disk: Path) -> None:
    prefix = str(small_disk / "value")
    filler = small_disk / "filler"
    with Synchronizer(prefix, codec="raw") as s, Synchronizer(prefix) as reader:
        fill(filler)

        def refused(size: int, grace: float = 0.0) -> None:
            before = {name: os.path.getsize(small_disk / name) for name in os.listdir(small_disk)}
            version = s.version
            for _ in range(2):
                with pytest.raises(OSError, match="No space") as caught:
                    s.write_bytes(pattern(version + 1, size), grace)
                assert caught.value.errno == errno.ENOSPC
            assert s.version == reader.version == version
            assert number(s.load(default=pattern(0))) == number(reader.load(default=pattern(0))) == version
            after = {name: os.path.getsize(small_disk / name) for name in os.listdir(small_disk)}
            assert after == before, "a write that failed left something behind"

        refused(SIZE)
        filler.unlink()
        s.write_bytes(pattern(1, SIZE))
        fill(filler)
        refused(SIZE)  # the other file is still to be made
        filler.unlink()
        s.write_bytes(pattern(2, SIZE))
        fill(filler)
        s.write_bytes(pattern(3, SIZE))  # both are there, and need no more
        refused(50 * SIZE)
        with reader.read() as held:
            s.write_bytes(pattern(4, SIZE))
            refused(SIZE)  # the reader holds the file: a new inode would be needed
            assert number(held.data) == 3
            filler.unlink()
            assert s.write_bytes(pattern(5, 50 * SIZE), grace=0.0).reset
            assert number(held.data) == 3
        assert number(reader.load()) == 5
        s.check()


def test_r10_room_for_the_value_but_not_for_growth_in_advance(small_disk: Path) -> None:
    """Growing by more than was asked for is a courtesy, not a reason to fail."""
    prefix = str(small_disk / "value")
    with Synchronizer(prefix, codec="raw") as s:
        s.write_bytes(pattern(1, 1 << 20))
        s.write_bytes(pattern(2, 1 << 20))
        filler = small_disk / "filler"
        os.truncate(filler, fill(filler) - (64 << 10))
        s.write_bytes(pattern(3, (1 << 20) + 8192))
        assert number(s.load()) == 3


# ---- row 11: not allowed to be so large ----------------------------------------------------------------------------

LIMITED = """
import resource, victims
def limited(size, call):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


def test_r11_rlimit_fsize(tmp_path: Path) -> None:
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("this machine limits the size of files already")
    prefix = str(tmp_path / "value")
    with Peer(LIMITED, prefix=prefix) as peer:
        for size in (0, 4096, 100_000):
            name, message = peer.fails("limited(size, lambda: Synchronizer(prefix, codec='raw'))", size=size)
            assert name == "OSError", message
            assert "File too large" in message
            assert os.listdir(tmp_path) == []
        peer("s = Synchronizer(prefix, codec='raw')")
        for version in (1, 2, 3):
            name, message = peer.fails("limited(4096, lambda: s.write_bytes(victims.pattern(s.version + 1, 50_000)))")
            assert (name, "File too large" in message) == ("OSError", True), message
            assert peer("s.version") == version - 1
            assert peer("s.write_bytes(victims.pattern(s.version + 1, 6000)).size") == SIZE
        before = syncfiles.snapshot(prefix)
        assert peer.fails("limited(9000, lambda: s.write_bytes(bytes(50_000)))")[0] == "OSError"
        after = syncfiles.snapshot(prefix)
        assert {name: len(content) for name, content in after.items()} == {n: len(c) for n, c in before.items()}
        assert peer("victims.number(s.load())") == 3


# ---- row 12: a disk that fails -------------------------------------------------------------------------------------


@pytest.fixture
def failing_disk(mount: Mount, tmp_path: Path) -> tuple[Path, Callable[[], None], Callable[[], None]]:
    """ext4 in a file on a small tmpfs: when that is full, the disk fails to write. (the disk, break it, mend it)"""
    behind = mount("tmpfs", "size=16m")
    image = behind / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    if shutil.which("mkfs.ext4") is None or os.system(f"mkfs.ext4 -q -O ^has_journal -m 0 {image}"):
        pytest.skip("cannot make an ext4 file system")
    disk = mount("ext4", "loop,errors=continue", str(image))
    filler = behind / "filler"
    return disk, lambda: fill(filler) and None, filler.unlink


def test_r12_a_write_that_the_disk_did_not_take(failing_disk: Any) -> None:
    disk, break_it, mend_it = failing_disk
    prefix = str(disk / "value")
    with (
        Synchronizer(prefix, codec="raw", durability="power") as s,
        Peer("import victims; s = Synchronizer(prefix); 1", prefix=prefix) as other,
        Synchronizer(prefix, mode="readonly") as copying,
    ):
        s.write_bytes(pattern(1, 40_000))
        held = s.read()
        break_it()
        failures = 0
        for _ in range(4):  # the first may land on blocks that the image has already
            try:
                s.write_bytes(os.urandom(800_000), grace=0.0)
            except (DurabilityFailed, OSError):
                failures += 1
        assert failures >= 3, "the disk cannot have taken that"
        assert syncfiles.word(syncfiles.sync(prefix), syncfiles.FAILED), "nobody else was told"
        for call in (s.read, s.load, copying.read, copying.load):
            with pytest.raises(DurabilityFailed):
                call()
        for code in ("s.read()", "s.load()", "s.wait(timeout=1)"):
            assert other.fails(code)[0] == "DurabilityFailed"
        with Synchronizer(prefix) as late, pytest.raises(DurabilityFailed):
            late.load()
        assert number(held.data) == 1
        mend_it()
        for code in ("s.read()", "s.load()"):
            assert other.fails(code)[0] == "DurabilityFailed", "mended, and nothing was written anew"
        s.write_bytes(pattern(77, 40_000), grace=0.0)
        version = s.version
        for handle in (s, copying):
            assert number(handle.load()) == 77
        assert other("s.version, victims.number(s.load())") == (version, 77)
        held.release()
        other("s.close()")
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    with Synchronizer(prefix) as s:
        assert number(s.load()) == 77, "what has returned is on the disk"
        s.check()


def test_r12_the_next_writer_does_not_trust_it_either(failing_disk: Any) -> None:
    disk, break_it, mend_it = failing_disk
    prefix = str(disk / "value")
    with Synchronizer(prefix, codec="raw", durability="power") as s:
        s.write_bytes(pattern(1, 40_000))
    break_it()
    for _ in range(3):
        with Synchronizer(prefix) as s, pytest.raises((DurabilityFailed, OSError)):
            s.write_bytes(os.urandom(2_000_000))
    mend_it()
    with Synchronizer(prefix) as s:
        s.write_bytes(pattern(2, 40_000))
        assert number(s.load()) == 2


# ---- row 13: may be read, may not be written -----------------------------------------------------------------------


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="mmapds-public-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def publish(prefix: str, other_boot: bool) -> Synchronizer | None:
    s = Synchronizer(prefix, codec="raw")
    for n in (1, 2, 3):
        s.write_bytes(pattern(n, SIZE))
    if other_boot:
        s.close()
        syncfiles.flip(syncfiles.data(prefix, 1), 8 * 5000)
        syncfiles.other_boot(syncfiles.sync(prefix))
        return None
    return s


READ = "import victims; s = Synchronizer(prefix, mode='readonly'); (victims.number(s.load()), s.read().copied)"


@pytest.mark.parametrize("other_boot", [False, True])
def test_r13_a_read_only_file_system(public: Path, other_boot: bool) -> None:
    prefix = str(public / "value")
    writer = publish(prefix, other_boot)
    try:
        peer = Peer(wrapper=("unshare", "--mount"))
    except Exception as error:  # noqa: BLE001
        pytest.skip(f"no mount namespace here: {error}")
    with peer:
        if peer(f"os.system('mount --bind {public} {public} && mount -o remount,bind,ro {public}')"):
            pytest.skip("may not mount here")
        assert peer.fails("open(prefix + '_sync', 'r+')", prefix=prefix)[0] == "OSError", "it is not read-only"
        before = syncfiles.snapshot(prefix)
        assert peer(READ) == (2 if other_boot else 3, True)
        assert peer.fails("Synchronizer(prefix)")[0] == "OSError"
        assert peer.fails("s.write_bytes(b'x')")[0] == "PermissionError"
        assert peer("p = Synchronizer(prefix, mode='private'); p.write_bytes(b'12345678').size") == 8
        assert syncfiles.snapshot(prefix) == before
        if writer is not None:
            for n in (4, 5, 6):
                peer.send("s.wait(newer_than=n - 1), victims.number(s.load())", n=n)
                writer.write_bytes(pattern(n, SIZE * n))
                assert peer.receive() == (n, n)
            writer.close()
        else:
            with Synchronizer(prefix) as s:
                s.write_bytes(pattern(3, SIZE))
                assert peer("victims.number(s.load()), s.version") == (3, 3)


@pytest.mark.parametrize("other_boot", [False, True])
def test_r13_no_write_permission(public: Path, other_boot: bool) -> None:
    prefix = str(public / "value")
    writer = publish(prefix, other_boot)
    for suffix in syncfiles.SUFFIXES:
        os.chmod(prefix + suffix, 0o444)
    with Peer("import victims", prefix=prefix) as peer:
        if os.geteuid() == 0:
            peer("os.setgroups([]); os.setgid(65534); os.setuid(65534)")
        before = syncfiles.snapshot(prefix)
        assert peer(READ) == (2 if other_boot else 3, True)
        name, message = peer.fails("Synchronizer(prefix)")
        assert name == "PermissionError", message
        assert peer.fails("s.write_bytes(b'x')")[0] == "PermissionError"
        assert syncfiles.snapshot(prefix) == before
        if writer is not None:
            writer.write_bytes(pattern(4, SIZE))
            assert peer("s.wait(newer_than=3), victims.number(s.load())") == (4, 4)
            writer.close()
    assert stat.S_IMODE(os.stat(syncfiles.sync(prefix)).st_mode) == 0o444


def test_r13_no_permission_to_read_is_said(public: Path) -> None:
    prefix = str(public / "value")
    Synchronizer(prefix).close()
    with Peer(prefix=prefix) as peer:
        if os.geteuid() == 0:
            peer("os.setgroups([]); os.setgid(65534); os.setuid(65534)")
        else:
            os.chmod(syncfiles.sync(prefix), 0)
        for mode in ("shared", "readonly", "private"):
            assert peer.fails("Synchronizer(prefix, mode=mode)", mode=mode)[0] == "PermissionError"


# ---- row 32: the wrong kind ----------------------------------------------------------------------------------------


def test_r32_power_on_tmpfs_is_refused(mount: Mount) -> None:
    folder = mount("tmpfs", "size=4m")
    with pytest.raises(UnsupportedFilesystem, match="tmpfs") as caught:
        Synchronizer(folder / "value", durability="power")
    assert caught.value.errno == errno.EOPNOTSUPP
    assert os.listdir(folder) == []
    Synchronizer(folder / "value", durability="process").close()


def test_r32_a_power_file_copied_to_tmpfs_is_refused(mount: Mount, tmp_path: Path) -> None:
    with Synchronizer(tmp_path / "value", durability="power") as s:
        s.write(1)
    folder = mount("tmpfs", "size=4m")
    syncfiles.copy(tmp_path / "value", folder / "value")
    for mode in ("shared", "readonly", "private"):
        with pytest.raises(UnsupportedFilesystem, match="tmpfs"):
            Synchronizer(folder / "value", mode=mode)  # type: ignore[arg-type]


def test_r32_overlayfs_is_refused_unless_overridden(mount: Mount, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("MMAPDS_ANY_FILESYSTEM", raising=False)
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    with Synchronizer(tmp_path / "lower" / "old") as s:
        s.write("old")
    options = ",".join(f"{name}dir={tmp_path}/{name}" for name in ("lower", "upper", "work"))
    folder = mount("overlay", options, "overlay")
    before = os.listdir(folder)
    for name, mode in (("old", "shared"), ("old", "readonly"), ("old", "private"), ("new", "shared")):
        with pytest.raises(UnsupportedFilesystem, match=r"overlayfs.*MMAPDS_ANY_FILESYSTEM"):
            Synchronizer(folder / name, mode=mode)  # type: ignore[arg-type]
    assert os.listdir(folder) == before
    monkeypatch.setenv("MMAPDS_ANY_FILESYSTEM", "1")
    with Synchronizer(folder / "new") as s:
        s.write("new")
        assert s.load() == "new"
