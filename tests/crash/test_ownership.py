"""Liveness is a kernel lock: dead owners, reused pids, containers, forks, other descriptors."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapds import ForkedHandle, Region, files
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


# ---- forks ------------------------------------------------------------------------------------------------------


def test_r22_a_lock_stays_the_parent_s(run: Callable[..., str], path: Path) -> None:
    said = run(
        """
        region = Region.open(sys.argv[1], 4096)
        lock = region.lock(0)
        def child(*work):
            pid = os.fork()
            if pid == 0:
                import warnings
                warnings.simplefilter("ignore")
                for step in work:
                    step()
                sys.stdout.flush()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        def forked(call):
            try:
                call()
                say("no error")
            except mmapds.ForkedHandle as error:
                say("ForkedHandle")
        def collect():
            global lock, region
            del lock, region
            gc.collect()
        def drop():
            global held
            del held
            gc.collect()
        held = region.lock(24)
        held.acquire()
        child(drop)
        say(region.lock(24).acquire(0.2))
        del held
        say(lock_ends(region.lock(24)))
        def leave():
            lock.__exit__(None, None, None)
        with lock:
            child(lambda: forked(lock.release))
            say(lock.locked(), Region.open(sys.argv[1], mode="readonly").close() or lock.locked())
            child(lambda: say(lock.acquire(0.2), region.lock(0).acquire(0.2)))
            child(leave, lambda: say("left", lock.locked()))
            child(collect)
            child(lambda: region.close())
            child(lambda: sys.exit)
            with Region.open(sys.argv[1]) as other:
                say(other.lock(0).acquire(0.2))
        say(lock.locked())
        def use():
            with lock:
                say("used", lock.owner_died)
        child(use, use)
        with lock:
            say(lock.owner_died)
        region.close()
        """,
        path,
    )
    assert said.splitlines() == [
        "False",
        "True",
        "ForkedHandle",
        "True True",
        "False False",
        "left True",
        "False",
        "False",
        "used False",
        "used False",
        "False",
    ]


def test_r22_free_at_the_parent_s_death_while_the_child_lives(start: Callable, path: Path) -> None:
    peer = start(
        """
        region = Region.open(sys.argv[1], 4096)
        lock = region.lock(0)
        lock.acquire()
        if (child := os.fork()) == 0:
            say("child", os.getpid())
            time.sleep(1000)
        time.sleep(1000)
        """,
        path,
    )
    child = int(peer.line().split()[1])
    try:
        with Region.open(path) as region:
            lock = region.lock(0)
            assert lock.acquire(0.2) is False
            peer.kill()
            assert lock.acquire(timeout=100) is True
            assert lock.owner_died
            lock.release()
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, 9)


def test_r22_a_forked_child_has_locks_of_its_own(run: Callable[..., str], path: Path) -> None:
    said = run(
        """
        region = Region.open(sys.argv[1], 4096)
        lock = region.lock(0)
        with lock:
            pass
        if (child := os.fork()) == 0:
            lock.acquire()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        say(lock_ends(lock), lock_ends(lock))
        region.close()
        """,
        path,
    )
    assert said == "True False"


def test_r22_lock_files_in_a_child(run: Callable[..., str], path: Path) -> None:
    said = run(
        """
        from mmapds._native.kernel import LockFile
        with open(sys.argv[1], "w+b") as file:
            locks = LockFile(file.fileno(), sys.argv[1])
            assert locks.try_lock(5)
            if (child := os.fork()) == 0:
                assert not locks.usable
                try:
                    os.fstat(locks.fd)
                    say("still open")
                except OSError:
                    pass
                taken = os.open("/dev/null", os.O_RDONLY)     # perhaps under the same number
                locks.unlock(5)
                locks.close()
                del locks
                os.fstat(taken)
                mine = LockFile(file.fileno(), sys.argv[1])
                assert not mine.try_lock(5)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            other = LockFile(file.fileno(), sys.argv[1])
            assert not other.try_lock(5)
            locks.close()
            assert other.try_lock(5)
            other.close()
        say("done")
        """,
        path,
    )
    assert said == "done"


def test_r22_threads_that_open_while_others_fork(run: Callable[..., str], path: Path) -> None:
    """No child may keep a lock descriptor alive that it does not know of."""
    said = run(
        """
        from mmapds._native.kernel import LockFile
        children = []
        def fork():
            for _ in range(20):
                if (child := os.fork()) == 0:
                    time.sleep(0.3)
                    os._exit(0)
                children.append(child)
                time.sleep(0.002)
        with open(sys.argv[1], "w+b") as file:
            thread = threading.Thread(target=fork)
            thread.start()
            while thread.is_alive():
                locks = LockFile(file.fileno(), sys.argv[1])
                assert locks.try_lock(5), len(children)
                locks.close()
            thread.join()
        for child in children:
            os.waitpid(child, 0)
        say("done")
        """,
        path,
    )
    assert said == "done"


def test_r22_resize_in_a_child_of_a_thread_that_resizes(run: Callable[..., str], path: Path) -> None:
    said = run(
        """
        region = Region.open(sys.argv[1], 4096)
        stop = threading.Event()
        def resize():
            while not stop.is_set():
                region.resize(1 << 20)
                region.resize(4096)
        thread = threading.Thread(target=resize, daemon=True)
        thread.start()
        for _ in range(30):
            if (child := os.fork()) == 0:
                region.resize(1 << 21)
                region.close()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        thread.join()
        region.close()
        say("done")
        """,
        path,
    )
    assert said == "done"


def test_r22_forked_handle_is_what_it_says() -> None:
    assert issubclass(ForkedHandle, RuntimeError)


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
