"""AtomicInt64: arithmetic, threads, processes, waiting, and what outlives its region."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmapds import AtomicInt64, Region
from mmapds._native.region import Mapping

LOW, HIGH = -(1 << 63), (1 << 63) - 1
words = st.integers(LOW, HIGH)


def wrapped(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


@pytest.fixture
def region(tmp_path: Path, descriptors: None) -> Iterator[Region]:
    with Region.open(tmp_path / "file", 4096) as region:
        yield region


@given(old=words, operand=words, other=words)
def test_operations(old: int, operand: int, other: int) -> None:
    with Region.anonymous(64) as region:
        word = region.atomic(16)
        for operation, expected in (
            (word.fetch_add, wrapped(old + operand)),
            (word.fetch_sub, wrapped(old - operand)),
            (word.fetch_and, old & operand),
            (word.fetch_or, old | operand),
            (word.fetch_xor, old ^ operand),
            (word.exchange, operand),
        ):
            word.store(old)
            assert operation(operand) == old
            assert word.load() == expected
            assert region[16:24] == expected.to_bytes(8, "little", signed=True)
        word.store(old)
        assert word.compare_exchange(other, operand) == (old == other, old)
        assert word.load() == (operand if old == other else old)
        word.store(old)
        assert word.compare_exchange(old, operand) == (True, old)
        assert word.load() == operand
        assert region[:16] + region[24:] == bytes(56)


def test_defaults(region: Region) -> None:
    word = region.atomic(0)
    assert (word.fetch_add(), word.fetch_add(5), word.fetch_sub(), word.load()) == (0, 1, 6, 5)
    assert word.compare_exchange(5, 9) == (True, 5)
    word.store(3)
    assert repr(word) == "<AtomicInt64 3>"


def test_what_does_not_fit(region: Region) -> None:
    word = region.atomic(0)
    for value in (HIGH + 1, LOW - 1):
        for operation in (word.store, word.fetch_add, word.exchange):
            with pytest.raises(OverflowError):
                operation(value)
    with pytest.raises(TypeError):
        word.store(1.5)  # type: ignore[arg-type]
    assert word.load() == 0


@pytest.mark.parametrize("offset", [-8, -1, 4089, 4096, 1 << 62, -(1 << 62)])
def test_offsets_outside(region: Region, offset: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        region.atomic(offset)
    with pytest.raises(ValueError, match="outside"):
        region.lock(offset)


@pytest.mark.parametrize("offset", [1, 4, 12, 4087])
def test_misaligned_offsets(region: Region, offset: int) -> None:
    with pytest.raises(ValueError, match="misaligned"):
        region.atomic(offset)
    with pytest.raises(ValueError, match="misaligned"):
        region.lock(offset)


def test_a_region_without_room(tmp_path: Path) -> None:
    with Region.open(tmp_path / "short", 7) as region, pytest.raises(ValueError, match="outside"):
        region.atomic(0)


def test_modes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes((5).to_bytes(8, "little"))
    with Region.open(path, mode="readonly") as readonly, Region.open(path, mode="private") as private:
        word = readonly.atomic(0)
        assert word.load() == 5
        for change in (word.store, word.fetch_add, word.fetch_and, word.exchange):
            with pytest.raises(ValueError, match="read-only"):
                change(1)
        with pytest.raises(ValueError, match="read-only"):
            word.compare_exchange(5, 6)
        assert word.wait(5, 0) is False
        assert word.wake() == 0
        own = private.atomic(0)
        assert own.fetch_add(2) == 5
        assert (own.load(), word.load()) == (7, 5)
        with pytest.raises(ValueError, match="private"):
            own.wait(7, 0)


def test_threads_lose_nothing(region: Region) -> None:
    def count() -> None:
        word = region.atomic(8)
        for _ in range(20000):
            word.fetch_add(1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert region.atomic(8).load() == 80000


def test_processes_lose_nothing(region: Region, start: Callable) -> None:
    script = """
        with Region.open(sys.argv[1]) as region:
            add, flip = region.atomic(8), region.atomic(16)
            hear()
            for _ in range(50000):
                add.fetch_add(3)
                flip.fetch_xor(1 << int(sys.argv[2]))
                old = add.load()
                while not (found := add.compare_exchange(old, old - 1))[0]:
                    old = found[1]
        """
    peers = [start(script, region.path, i) for i in range(3)]
    for peer in peers:
        peer.tell()
    for peer in peers:
        peer.finish()
    assert region.atomic(8).load() == 3 * 50000 * 2
    assert region.atomic(16).load() == 0


# ---- waiting ----------------------------------------------------------------------------------------------------


def test_wait_returns_at_once_if_there_is_nothing_to_wait_for(region: Region) -> None:
    word = region.atomic(0)
    assert word.wait(1) is True
    assert word.wait(0, 0) is False
    assert word.wait(0, -5) is False
    assert word.wait(0, 0.01) is False
    assert word.wait(0, 1) is False


@pytest.mark.parametrize("timeout", [None, float("inf"), 1e300, 9e9, 10**12, 1e-300 + 100])
def test_wait_however_long(region: Region, timeout: float | None) -> None:
    word = region.atomic(0)
    thread = threading.Thread(target=lambda: (time.sleep(0.05), word.store(1), word.wake()))
    thread.start()
    assert word.wait(0, timeout) is True
    thread.join()


def test_wait_for_nan_seconds(region: Region) -> None:
    with pytest.raises(ValueError, match="nan"):
        region.atomic(0).wait(0, float("nan"))
    with pytest.raises(TypeError):
        region.atomic(0).wait(0, "soon")  # type: ignore[arg-type]


def test_wait_notices_the_upper_half_and_a_missing_wake(region: Region) -> None:
    word = region.atomic(0)
    thread = threading.Thread(target=lambda: (time.sleep(0.05), word.store(1 << 32)))
    thread.start()
    assert word.wait(0) is True
    thread.join()


def test_wake_in_another_process(region: Region, start: Callable) -> None:
    peer = start(
        """
        region = Region.open(sys.argv[1], mode=sys.argv[2])
        word = region.atomic(0)
        say("waiting")
        say(word.wait(0), word.load())
        region.close()
        """,
        region.path,
        "readonly",
    )
    peer.expect("waiting")
    word = region.atomic(0)
    while word.wake() == 0:
        time.sleep(0.001)
    word.store(7)
    word.wake(100)
    assert peer.finish() == "True 7"
    with pytest.raises(ValueError, match="-1"):
        word.wake(-1)


def test_a_signal_handler_runs_while_it_waits(region: Region, run: Callable[..., str]) -> None:
    said = run(
        """
        region = Region.open(sys.argv[1])
        word = region.atomic(0)
        ticks = []
        signal.signal(signal.SIGALRM, lambda *_: ticks.append(1) or (len(ticks) == 20 and word.store(1)))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        say(word.wait(0), len(ticks) >= 20)
        def interrupt(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        try:
            word.wait(1)
        except KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, 0)
            say("interrupted")
        region.close()
        """,
        region.path,
    )
    assert said.splitlines() == ["True True", "interrupted"]


# ---- what outlives what -----------------------------------------------------------------------------------------


def test_outlives_close_and_resize(tmp_path: Path) -> None:
    path = tmp_path / "file"
    region = Region.open(path, 4096)
    first, last = region.atomic(0), region.atomic(4088)
    region.resize(1 << 24)
    first.fetch_add(1)
    last.fetch_add(2)
    assert (region[0], region[4088]) == (1, 2)
    region.resize(8)
    region.close()
    first.fetch_add(1)
    assert path.read_bytes() == b"\2" + bytes(7)
    assert last.load() in (0, 2)  # its page was partly cut


def test_works_in_a_fork(region: Region, run: Callable[..., str]) -> None:
    said = run(
        """
        region = Region.open(sys.argv[1])
        word = region.atomic(0)
        if (child := os.fork()) == 0:
            for _ in range(1000):
                word.fetch_add(1)
            word.wait(2000)
            os._exit(0)
        for _ in range(1000):
            word.fetch_add(1)
        while word.load() < 2000:
            time.sleep(0.001)
        word.fetch_add(1)
        word.wake()
        os.waitpid(child, 0)
        say(word.load())
        region.close()
        """,
        region.path,
    )
    assert int(said) in (2001, 3001)


def test_cannot_be_made_wrongly() -> None:
    with pytest.raises(TypeError):
        AtomicInt64(None, 0, True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one byte"):
        Mapping(-1, 0, 3, 0x22)
    with pytest.raises(ValueError, match="not as many addresses"):
        Mapping(-1, (1 << 63) - 1, 3, 0x22)
    with pytest.raises(OSError, match="Bad file"):
        Mapping(os.sysconf("SC_OPEN_MAX"), 10, 3, 1)
