"""Liveness is a kernel lock: dead owners, reused pids, containers, forks, other descriptors."""

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapds import Region, files
from mmapds._native import kernel
from mmapds._native.kernel import LockFile

HOLD = """
region = Region.open(sys.argv[1], 4096)
lock = region.lock(0)
lock.acquire()
say("held", os.getpid())
hear()
lock.release()
region.close()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def ends(path: Path) -> bool:
    """The lock can be had; whether its owner died."""
    with Region.open(path) as region:
        lock = region.lock(0)
        assert lock.acquire(timeout=100)
        died = lock.owner_died
        lock.release()
        return died


# ---- death ------------------------------------------------------------------------------------------------------


def test_r20_dead_owners_one_after_the_other(start: Callable, path: Path) -> None:
    for _ in range(5):
        peer = start(HOLD, path)
        assert peer.line().startswith("held")
        peer.kill()
    assert ends(path)


def test_r20_a_dead_recoverer_leaves_the_mark(start: Callable, path: Path) -> None:
    script = HOLD.replace('say("held",', 'say("held", lock.owner_died,')
    for died in ("False", "True", "True"):
        peer = start(script, path)
        assert peer.line().split()[:2] == ["held", died]
        peer.kill()
    assert ends(path)
    assert not ends(path)


def namespaces() -> list[str]:
    """A command prefix: in namespaces of its own for pids and mounts, as pid 1."""
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("cannot make pid namespaces here")
    return command


def test_r20_the_pid_is_reused(needs_root: None, run: Callable[..., str], path: Path) -> None:
    """The dead owner's pid belongs to another process, which has the same file open and lives on."""
    said = run(
        """
        import subprocess
        def start(script):
            peer = subprocess.Popen(
                [sys.executable, "-P", "-c", "import os, sys; from mmapds import Region; " + script, sys.argv[1]],
                stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
            )
            assert peer.stdout.readline() == "ready\\n"
            return peer
        owner = start(
            "region = Region.open(sys.argv[1], 4096); lock = region.lock(0); lock.acquire();"
            "print('ready', flush=True); sys.stdin.readline()"
        )
        owner.kill()
        owner.wait()
        for attempt in range(20):
            with open("/proc/sys/kernel/ns_last_pid", "w") as file:
                file.write(str(owner.pid - 1))
            other = start(
                "region = Region.open(sys.argv[1]); mine = region.lock(8); mine.acquire();"
                "print('ready', flush=True); sys.stdin.readline()"
            )
            if other.pid == owner.pid:
                break
            other.kill()
            other.wait()
        with Region.open(sys.argv[1]) as region:
            say(other.pid == owner.pid, lock_ends(region.lock(0)), region.lock(8).acquire(0.3))
            other.kill()
            other.wait()
            say(lock_ends(region.lock(8)))
        for peer in (owner, other):
            peer.stdin.close()
            peer.stdout.close()
        """,
        path,
        under=namespaces(),
    )
    assert said.splitlines() == ["True True False", "True"]


# ---- containers -------------------------------------------------------------------------------------------------


def test_r21_two_processes_with_pid_1(needs_root: None, start: Callable, path: Path) -> None:
    first, second = (start(HOLD, path, under=namespaces()) for _ in range(2))
    lines = {peer: peer._lines for peer in (first, second)}
    while all(queue.empty() for queue in lines.values()):
        time.sleep(0.001)
    owner, other = (first, second) if not lines[first].empty() else (second, first)
    owner.expect("held 1")
    time.sleep(0.3)  # the other one has probed several times
    assert lines[other].empty()
    owner.tell()
    other.expect("held 1")
    other.kill()  # pid 1 of its namespace
    assert ends(path)


def test_r21_two_containers_with_boot_ids_of_their_own(
    needs_root: None, start: Callable, path: Path, tmp_path: Path
) -> None:
    files.create(str(path), files.new_header("example"), 8192, durability="process")
    script = """
        import subprocess, uuid
        from mmapds import files
        from mmapds._native import kernel
        mine = sys.argv[2]
        with open(mine, "w") as file:
            file.write(str(uuid.uuid4()) + "\\n")
        subprocess.run(["mount", "--bind", mine, "/proc/sys/kernel/random/boot_id"], check=True)
        file = files.OpenFile(sys.argv[1], "example", writable=True)
        recovered = []
        file.settle(lambda: recovered.append(1))
        alive = file.live_locks().try_lock(kernel.LOCK_SLOT + int(sys.argv[3]))
        say(len(recovered), alive, file.same_origin())
        hear()
        file.settle(lambda: recovered.append(1))
        say(len(recovered), file.same_origin())
        hear()
        """
    one = start(script, path, tmp_path / "one", 1, under=namespaces())
    one.expect("1 True True")
    two = start(script, path, tmp_path / "two", 2, under=namespaces())
    two.expect("0 True False")  # somebody lives: nothing is reset
    one.tell()
    one.expect("1 True")
    two.tell()
    two.expect("0 False")
    one.kill()
    two.kill()
    three = start(script, path, tmp_path / "three", 3, under=namespaces())
    three.expect("1 True True")


# ---- other descriptors ------------------------------------------------------------------------------------------


def test_r23_another_descriptor_closed(start: Callable, path: Path) -> None:
    peer = start(
        """
        region = Region.open(sys.argv[1], 4096)
        lock = region.lock(0)
        with lock:
            for mode in ("r+b", "rb"):
                open(sys.argv[1], mode).close()
            Region.open(sys.argv[1]).close()
            other = Region.open(sys.argv[1], auto_unlink=False)
            with other.lock(8):
                pass
            other.close()
            os.close(os.dup(region._file.fd))
            say("held")
            hear()
            region.close()
            say("held after close")
            hear()
        """,
        path,
    )
    with Region.open(path, 4096) as region:
        lock = region.lock(0)
        for line in ("held", "held after close"):
            peer.expect(line)
            assert lock.acquire(0.2) is False
            peer.tell()
        peer.finish()
        assert lock.acquire(timeout=100)
        assert not lock.owner_died
        lock.release()


def test_r23_lock_files_are_independent(path: Path) -> None:
    path.write_bytes(bytes(4096))
    with open(path, "r+b") as file:
        locks = LockFile(file.fileno(), str(path))
        assert locks.try_lock(kernel.LOCK_WRITER)
        for _ in range(3):
            other = LockFile(file.fileno(), str(path))
            assert not other.try_lock(kernel.LOCK_WRITER)
            other.close()
    with open(path, "r+b") as file:
        other = LockFile(file.fileno(), str(path))
        assert not other.try_lock(kernel.LOCK_WRITER)
        locks.close()
        assert other.try_lock(kernel.LOCK_WRITER)
        other.close()
