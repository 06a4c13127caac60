"""The lock word: exclusion, owners that die, waiting, and what a lock object refuses."""

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmapds import Region
from mmapds._native.lockword import Owner


@pytest.fixture
def region(tmp_path: Path, descriptors: None) -> Iterator[Region]:
    with Region.open(tmp_path / "file", 4096) as region:
        yield region


def test_context_manager(region: Region) -> None:
    lock = region.lock(8)
    assert not lock.locked()
    with lock as entered:
        assert entered is lock
        assert lock.locked()
        assert region.lock(8).locked()
        assert not lock.owner_died
        assert region[:8] + region[16:24] == bytes(16)
    assert not lock.locked()
    assert region[:24] == bytes(24)


def test_acquire_and_release(region: Region) -> None:
    lock, other = region.lock(0), region.lock(0)
    assert lock.acquire() is True
    assert other.acquire(timeout=0) is False
    assert other.acquire(timeout=0.01) is False
    assert other.acquire(-1) is False
    lock.release()
    assert other.acquire(timeout=0) is True
    other.release()
    for timeout in (float("inf"), 1e300, None):
        assert lock.acquire(timeout) is True
        lock.release()
    with pytest.raises(RuntimeError, match="does not hold"):
        lock.release()


def test_bad_timeouts_leave_no_lock(region: Region) -> None:
    lock, other = region.lock(0), region.lock(0)
    with lock:
        with pytest.raises(ValueError, match="nan"):
            other.acquire(float("nan"))
        with pytest.raises(TypeError):
            other.acquire("1")  # type: ignore[arg-type]
    assert not other.locked()


def test_not_reentrant(region: Region) -> None:
    lock = region.lock(0)
    with lock:
        with pytest.raises(RuntimeError, match="not reentrant"):
            lock.acquire()
        assert region.lock(0).acquire(timeout=0.01) is False
        assert lock.locked()
    assert not lock.locked()


def test_another_thread_cannot_release(region: Region) -> None:
    lock = region.lock(0)
    failures = []

    def release() -> None:
        try:
            lock.release()
        except RuntimeError as error:
            failures.append(str(error))

    with lock:
        thread = threading.Thread(target=release)
        thread.start()
        thread.join()
        assert lock.locked()
    assert failures == ["the lock is held by another thread"]


@pytest.mark.parametrize("objects", ["one", "each"])
def test_threads_exclude_each_other(region: Region, objects: str) -> None:
    one = region.lock(0)
    inside: list[int] = []

    def work(n: int) -> None:
        lock = one if objects == "one" else region.lock(0)
        for i in range(300):
            with lock:
                inside.append(n)
                if i % 50 == 0:
                    time.sleep(0)
                assert inside == [n]
                inside.pop()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not one.locked()


def test_processes_exclude_each_other(region: Region, start: Callable) -> None:
    script = """
        region = Region.open(sys.argv[1])
        lock = region.lock(0)
        hear()
        for _ in range(5000):
            with lock:
                region[16:24] = (int.from_bytes(region[16:24], "little") + 1).to_bytes(8, "little")
        region.close()
        """
    peers = [start(script, region.path) for _ in range(4)]
    for peer in peers:
        peer.tell()
    for peer in peers:
        peer.finish()
    assert int.from_bytes(region[16:24], "little") == 20000
    assert region[0:8] == bytes(8)


def test_an_exception_in_the_block(region: Region) -> None:
    lock = region.lock(0)
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert not lock.locked()
    with lock:
        assert not lock.owner_died


def test_given_back_out_of_order(region: Region) -> None:
    lock = region.lock(0)
    lock.acquire()
    lock.release(in_order=False)
    with contextlib.suppress(KeyError), lock:
        assert lock.owner_died
        raise KeyError  # the repair failed
    with lock:
        assert lock.owner_died
    with lock:
        assert not lock.owner_died


def test_an_owner_that_died(region: Region, start: Callable) -> None:
    peer = start(
        """
        region = Region.open(sys.argv[1])
        lock = region.lock(0)
        lock.acquire()
        say("held")
        time.sleep(1000)
        """,
        region.path,
    )
    peer.expect("held")
    lock = region.lock(0)
    assert lock.acquire(timeout=0.2) is False  # it lives
    peer.kill()
    assert lock.locked()
    assert lock.acquire(timeout=100) is True
    assert lock.owner_died
    lock.release()
    with lock:
        assert not lock.owner_died


def test_a_waiter_is_there_when_the_owner_dies(region: Region, start: Callable) -> None:
    script = """
        region = Region.open(sys.argv[1])
        lock = region.lock(0)
        say("waiting")
        with lock:
            say("held", lock.owner_died)
            hear()
        region.close()
        """
    with region.lock(0):
        peers = [start(script, region.path) for _ in range(3)]
        for peer in peers:
            peer.expect("waiting")
        time.sleep(0.1)
    died = []
    while peers:
        # One of them has it; nobody says which, so ask all.
        for peer in peers:
            if not peer._lines.empty():
                died.append(peer.line().split()[-1])
                peer.kill()
                peers.remove(peer)
                break
        else:
            time.sleep(0.005)
    assert died == ["False", "True", "True"]
    lock = region.lock(0)
    assert lock.acquire(timeout=100)
    assert lock.owner_died
    lock.release()


def test_collected_while_held(region: Region) -> None:
    lock = region.lock(0)
    lock.acquire()
    del lock
    gc.collect()
    with region.lock(0) as lock:
        assert lock.owner_died


def test_collected_in_a_cycle_while_held(region: Region) -> None:
    class Node:
        pass

    for _ in range(50):
        node = Node()
        node.itself, node.lock = node, region.lock(0)  # type: ignore[attr-defined]
        node.lock.acquire()  # type: ignore[attr-defined]
        del node
        gc.collect()
        with region.lock(0) as lock:
            assert lock.owner_died


def test_everything_collected_in_a_cycle(tmp_path: Path) -> None:
    region = Region.open(tmp_path / "file", 100)
    with region.lock(16):
        pass  # so that the owner is older than the lock, and cleared first
    lock = region.lock(0)
    lock.acquire()
    cycle = [region, lock, lock.acquire, region.atomic(8)]
    cycle.append(cycle)  # type: ignore[arg-type]
    del region, lock, cycle
    with pytest.warns(ResourceWarning):
        gc.collect()
    with Region.open(tmp_path / "file") as region, region.lock(0) as lock:
        assert lock.owner_died


def test_outlives_close_and_resize(tmp_path: Path) -> None:
    region = Region.open(tmp_path / "file", 4096)
    lock = region.lock(8)
    with lock:
        region.resize(1 << 24)
        assert region.lock(8).acquire(0) is False
        region.close()
        with Region.open(tmp_path / "file") as again:
            assert again.lock(8).acquire(0) is False
    with lock, Region.open(tmp_path / "file") as again:
        assert again.lock(8).acquire(0) is False


def test_anonymous(descriptors: None) -> None:
    with Region.anonymous(64) as region, region.lock(0) as lock:
        assert lock.locked()


def test_signals_while_waiting(region: Region, run: Callable[..., str]) -> None:
    with region.lock(0):
        said = run(
            """
            region = Region.open(sys.argv[1])
            def interrupt(*_):
                raise KeyboardInterrupt
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            try:
                region.lock(0).acquire()
            except KeyboardInterrupt:
                say("interrupted")
            region.close()
            """,
            region.path,
        )
    assert said == "interrupted"
    assert not region.lock(0).locked()


def test_owners_have_tokens_of_their_own(region: Region, tmp_path: Path) -> None:
    owners = {region._file.owners()()}
    for _ in range(20):
        with Region.open(tmp_path / "file") as other:
            owner = other._file.owners()()
            assert owner is other._file.owners()()
            owners.add(owner)
    tokens = [owner.token for owner in owners]
    assert len(set(tokens)) == 21
    assert all(0 < token < 1 << 64 and not token & 0xC0000000 for token in tokens)
    with pytest.raises(TypeError):
        Owner(None)  # type: ignore[arg-type]
