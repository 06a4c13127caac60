"""Snapshot maps on disks that are full, failing, read-only, or of the wrong kind (rows 10, 11, 12, 13 and 32)."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import snapdisk
from peers import Peer, PeerError
from powerloss import Call, WatchedPeer

from mmapds import DurabilityFailed, SnapshotMap, UnsupportedFilesystem, files

FAULTS = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
Mount = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("small_deltas")


def fill(path: Path) -> None:
    """Writes until the disk is full."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while True:
                    file.write(os.urandom(size))


def commit(m: SnapshotMap, n: int, size: int) -> None:
    with m.transaction() as t:
        t[f"k{n:05}"] = b"%d" % n + bytes(size)
        t["n"] = b"%d" % n


# ---- rows 10 and 11 ------------------------------------------------------------------------------------------------


def test_r10_no_room_to_create(small_disk: Path) -> None:
    path = small_disk / "map"
    fill(small_disk / "filler")
    for _ in range(2):
        with pytest.raises(OSError, match="No space") as caught:
            SnapshotMap.build(path, {"a": 1})
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(OSError, match="No space"):
            SnapshotMap(path)
    (small_disk / "filler").unlink()
    assert SnapshotMap.build(path, {"a": 1}) == 1
    with SnapshotMap(path) as m:
        assert dict(m) == {"a": 1}
    snapdisk.check(str(path))


@pytest.mark.parametrize("size", [100, 3000, 200_000])
def test_r10_no_room_for_a_commit(small_disk: Path, size: int) -> None:
    """Whatever does not fit fails, whole; the map stays what it was; with room again, the same handle goes on."""
    path = str(small_disk / "map")
    with SnapshotMap(path, codec="raw") as m, SnapshotMap(path, mode="readonly", verify=True) as reader:
        commit(m, 0, size)
        free = os.statvfs(small_disk)
        (small_disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize * 6 // 10))  # a merge needs room
        if size == 100:
            fill(small_disk / "filler")
        for n in range(1, 3000):
            try:
                commit(m, n, size)
            except OSError as error:
                assert error.errno == errno.ENOSPC, error  # noqa: PT017
                break
        else:
            raise AssertionError("this disk is not small")
        before = dict(reader)
        assert len(before) == n + 1
        assert before["n"] == b"%d" % (n - 1)
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                commit(m, n, size)
            with pytest.raises(OSError, match="No space"):
                SnapshotMap.build(path, {f"{k}": bytes(100_000) for k in range(80)}, codec="raw", memory_limit=1 << 20)
            assert dict(m) == dict(reader) == before
        snapdisk.check(path, leftovers=True)
        for name in ("ballast", "filler"):
            with contextlib.suppress(FileNotFoundError):
                (small_disk / name).unlink()
        commit(m, n, size)
        assert dict(reader) == dict(m) == before | {f"k{n:05}": b"%d" % n + bytes(size), "n": b"%d" % n}
    with SnapshotMap(path) as other:
        commit(other, n, size)
    snapdisk.check(path)


@pytest.mark.parametrize("what", ["fold", "large", "compact", "build", "create"])
def test_r11_a_limit_on_the_size_of_files(tmp_path: Path, what: str) -> None:
    path = str(tmp_path / "map")
    code = {
        "fold": "for n in range(2, 40): commit(n, 3000)",
        "large": "commit(2, 50_000)",
        "compact": "m.compact()",
        "build": "mmapds.SnapshotMap.build(path, {'a': bytes(100_000)})",
        "create": "mmapds.SnapshotMap(path + '-new')",
    }[what]
    with SnapshotMap(path, codec="raw") as m:
        commit(m, 0, 12_000 if what == "fold" else 60_000)
        if what == "compact":
            commit(m, 1, 10)
        with Peer(
            "import resource, snapdisk; snapdisk.tiny(32768, 64); m = mmapds.SnapshotMap(path)", path=path
        ) as peer:
            peer(
                """
def commit(n, size):
    with m.transaction() as t:
        t[f"k{n:05}"] = bytes(size)
"""
            )
            limit = "resource.setrlimit(resource.RLIMIT_FSIZE, ({}, resource.RLIM_INFINITY))"
            peer(limit.format(20_000))
            name, message = peer.fails(code)
            assert name == "OSError", message
            assert "large" in message, message
            before = dict(m)
            found = snapdisk.check(path, leftovers=True)
            assert {key.decode(): value for key, value in found.values().items()} == before
            assert name == peer.fails("while True: commit(3, 25_000)")[0]
            peer(limit.format("resource.RLIM_INFINITY"))
            peer(code)
            peer("commit(1000, 10)")
        if what != "build":
            assert set(before) <= set(m)
        assert m["k01000"] == bytes(10)
    with SnapshotMap(path) as m:
        m.compact()
    snapdisk.check(path)


# ---- row 12 --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a disk: durability 'power' is refused on tmpfs."""
    with tempfile.TemporaryDirectory(prefix="mmapds-power-", dir="/var/tmp") as name:
        yield Path(name)


JOBS = {
    "commit": "commit(10)",
    "fold": "commit(6000)",
    "large": "commit(30_000)",
    "compact": "m.compact()",
    "build": "mmapds.SnapshotMap.build(path, {'new': b'new'})",
}
OFTEN = {"commit", "fold"}


@pytest.mark.parametrize("failure", [errno.EIO, pytest.param(errno.ENOSPC, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", [pytest.param(what, marks=[pytest.mark.slow] * (what not in OFTEN)) for what in JOBS])
def test_r12_whichever_sync_fails_nothing_counts_until_it_has_succeeded(folder: Path, what: str, failure: int) -> None:
    """The first, second, ... sync of one operation fails, and so do all later ones until the disk is well again."""
    first = 0
    while fail_from(str(folder / f"map{first}"), JOBS[what], failure, first):
        first += 1
        assert first < 60
    assert first >= 2, "it makes two syncs at least"


def fail_from(path: str, job: str, failure: int, first: int) -> bool:
    """One operation whose syncs fail from number `first` on; whether it has so many."""
    count = 0

    def fail(call: Call) -> int:
        nonlocal count
        if call.name not in ("msync", "fsync", "fdatasync"):
            return 0
        count += 1
        return failure if count > first else 0

    with SnapshotMap(path, codec="raw", durability="power") as m:
        with m.transaction() as t:
            t.update({"a": b"1", "b": bytes(12_000)})
        with m.transaction() as t:
            t.update({"a": b"2", "c": bytes(8000)})
        before = dict(m)
    setup = """
import snapdisk
snapdisk.tiny(32768, 64)
m = mmapds.SnapshotMap(path)
def commit(size):
    with m.transaction() as t:
        t["new"] = bytes(size)
m.version
"""
    with (
        WatchedPeer(setup, path=path) as peer,
        SnapshotMap(path, mode="readonly") as reader,
        SnapshotMap(path, mode="readonly", follow=False) as held,
    ):
        outcome = attempt(peer, job, fail)
        if outcome:
            for retry in range(2):
                # Either nobody sees anything of it, or nobody trusts anything.
                try:
                    found = dict(reader)
                except DurabilityFailed:
                    with pytest.raises(DurabilityFailed):
                        SnapshotMap(path, mode="readonly")
                else:
                    assert found == before, f"sync {first}: published, and not durable; {outcome}"
                outcome = attempt(peer, job, fail)
                assert outcome, f"retry {retry} on a failing disk counted as success (sync {first} of {job})"
        peer.watch("with m.transaction() as t: t['well'] = b'again'", lambda call: 0)
        assert reader["well"] == b"again"
        assert reader.get("a") == b"2" or "build" in job
        assert dict(held) == before, "what is held was touched"
        with SnapshotMap(path) as other:
            with other.transaction() as t:
                t["other"] = b"other"
            assert dict(other) == dict(reader)
        snapdisk.check(path, f"sync {first} of {job} failed", linked=False)
    return bool(outcome)


def attempt(peer: WatchedPeer, job: str, fail: Callable[[Call], int]) -> str:
    """How it failed, or nothing."""
    try:
        peer.watch(job, fail)
    except PeerError as error:
        assert error.name in ("DurabilityFailed", "OSError"), error  # noqa: PT017  of another process
        return str(error)
    return ""


# ---- row 13 --------------------------------------------------------------------------------------------------------

WRITES = {
    "m.transaction()": "PermissionError",
    "m.compact()": "PermissionError",
    "m['a'] = 1": "TypeError",
    "del m['a']": "TypeError",
}


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="mmapds-public-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def publish(path: str, boot: bool) -> dict[str, bytes]:
    with SnapshotMap(path, codec="raw") as m:
        for n in range(12):
            commit(m, n, 3000)
        with m.transaction() as t:
            del t["k00003"]
        expected = dict(m)
    if boot:
        snapdisk.other_boot(path)
    os.chmod(path, 0o755)
    for name in os.listdir(path):
        os.chmod(os.path.join(path, name), 0o644)
    return expected


def check_readonly(peer: Peer, path: str, expected: dict[str, bytes]) -> None:
    before = snapdisk.content(path)
    stats = {name: os.stat(Path(path, name)).st_mtime_ns for name in os.listdir(path)}
    peer("m = mmapds.SnapshotMap(path, mode='readonly')", path=path)
    assert peer("dict(m)") == expected
    assert peer("dict(reversed(m.items()))") == expected
    assert peer("m.get_many(['k00001', 'k00003'])") == {"k00001": expected["k00001"]}
    assert peer("(len(m), m.first()[0], m.verify() > 0)") == (len(expected), "k00000", True)
    peer("m.prefetch(); m.refresh(); m.wait(m.version, 0); m.stats() and None")
    for code, error in WRITES.items():
        assert peer.fails(code)[0] == error, code
    peer("p = mmapds.SnapshotMap(path, mode='private'); p['x'] = b'x'; del p['n']")
    assert peer("(len(p), p['x'], 'n' in p)") == (len(expected), b"x", False)
    peer("p.close(); m.close()")
    assert snapdisk.content(path) == before
    assert {name: os.stat(Path(path, name)).st_mtime_ns for name in os.listdir(path)} == stats


@pytest.mark.parametrize("boot", [False, True])
def test_r13_a_read_only_file_system(public: Path, boot: bool) -> None:
    path = str(public / "map")
    expected = publish(path, boot)
    try:
        peer = Peer(wrapper=("unshare", "--mount"))
    except Exception as error:  # noqa: BLE001
        pytest.skip(f"no mount namespace here: {error}")
    with peer:
        if peer(f"os.system('mount --bind {public} {public} && mount -o remount,bind,ro {public}')"):
            pytest.skip("nothing can be mounted here")
        check_readonly(peer, path, expected)
        for code in (
            "mmapds.SnapshotMap(path)",
            "mmapds.SnapshotMap(path + '-new')",
            "mmapds.SnapshotMap.build(path, {})",
        ):
            assert peer.fails(code)[0] in ("OSError", "PermissionError")


@pytest.mark.parametrize("boot", [False, True])
def test_r13_no_write_permission(public: Path, boot: bool) -> None:
    if os.geteuid():
        pytest.skip("needs root, to become somebody else")
    path = str(public / "map")
    expected = publish(path, boot)
    with Peer() as peer:
        peer("os.setgid(65534); os.setuid(65534)")
        check_readonly(peer, path, expected)
        assert peer.fails("mmapds.SnapshotMap(path)")[0] == "PermissionError"
        assert peer.fails("mmapds.SnapshotMap.build(path, {'a': b''})")[0] == "PermissionError"
        peer("m = mmapds.SnapshotMap(path, mode='readonly')")
        assert peer("dict(m)") == expected
        with SnapshotMap(path) as writer:  # somebody who may, meanwhile
            for n in range(100, 120):
                commit(writer, n, 3000)
                if boot and n == 100:
                    peer("m.refresh()")  # until now it went by a copy: nobody had recovered the manifest
                assert peer("m['n']") == b"%d" % n
            writer.compact()
            assert peer("dict(m)") == dict(writer)


# ---- row 32 --------------------------------------------------------------------------------------------------------


def test_r32_power_on_tmpfs(mount: Mount) -> None:
    where = mount("tmpfs", "size=8m")
    with pytest.raises(UnsupportedFilesystem):
        SnapshotMap(where / "map", durability="power")
    with pytest.raises(UnsupportedFilesystem):
        SnapshotMap.build(where / "map", {"a": 1}, durability="power")
    assert not os.path.lexists(where / "map" / "manifest_sync")
    with SnapshotMap(where / "map") as m:
        with m.transaction() as t:
            t["a"] = 1
        m.compact()
        assert dict(m) == {"a": 1}


def test_r32_overlayfs(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(files.ANY_FILESYSTEM, raising=False)
    base = mount("tmpfs", "size=8m")
    for name in ("lower", "upper", "work"):
        (base / name).mkdir()
    where = mount("overlay", f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work")
    for code in (lambda: SnapshotMap(where / "map"), lambda: SnapshotMap.build(where / "map", {"a": 1})):
        with pytest.raises(UnsupportedFilesystem):
            code()
    monkeypatch.setenv(files.ANY_FILESYSTEM, "1")
    assert SnapshotMap.build(where / "map", {"a": 1}) == 1
    with SnapshotMap(where / "map") as m:
        with m.transaction() as t:
            t["b"] = 2
        assert dict(m) == {"a": 1, "b": 2}


@pytest.mark.parametrize("kind", ["ext4", "ext2", "vfat"])
def test_r32_file_systems_that_lack_something(mount: Mount, tmp_path: Path, kind: str) -> None:
    """No O_TMPFILE, no links, no fallocate: other ways."""
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"there is no mkfs.{kind}")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    if os.system(f"mkfs.{kind} {image} >/dev/null 2>&1"):
        pytest.skip(f"mkfs.{kind} failed")
    where = mount(kind, "loop", str(image))
    path: Any = str(where / "map")
    try:
        with SnapshotMap(path, codec="raw") as m:
            for n in range(30):
                commit(m, n, 3000)
            m.compact()
            assert len(m) == 31
    except UnsupportedFilesystem:
        return
    assert SnapshotMap.build(path, {"a": b"1"}) == 1
    snapdisk.check(path)
