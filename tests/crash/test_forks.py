"""Regions, locks and lock files in the child of a fork: what is the parent's stays the parent's."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapds import Region


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


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
