"""Counter and FloatCounter: one counter, bound to its cell. What it does, what it outlives, who else sees it."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import counterfiles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import Peer

from mmapds import AtomicInt64, Counter, Counters, FloatCounter, MappingLost
from mmapds._native.region import Mapping

LOW, HIGH = -(1 << 63), (1 << 63) - 1
words = st.one_of(st.integers(LOW, HIGH), st.sampled_from([LOW, -1, 0, 1, HIGH]))


def wrapped(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


@pytest.fixture
def path(tmp_path: Path, descriptors: None) -> Iterator[str]:
    path = str(tmp_path / "counters")
    yield path
    if os.path.exists(path):
        counterfiles.check(path)


@pytest.fixture
def c(path: str) -> Iterator[Counters]:
    with Counters(path, 8) as counters:
        yield counters


@pytest.fixture
def f(path: str) -> Iterator[Counters[float]]:
    with Counters(path, 8, dtype="f64") as counters:
        yield counters


# ---- integers ------------------------------------------------------------------------------------------------------


def test_the_methods_of_the_counters_without_the_key(c: Counters) -> None:
    hits = c.counter("hits")
    assert isinstance(hits, Counter)
    assert isinstance(hits, AtomicInt64)
    assert (hits.name, hits.index, repr(hits)) == ("hits", 8, "<Counter 'hits': 0>")
    assert (hits.fetch_add(), hits.fetch_add(5), hits.fetch_add(n=2), hits.load()) == (0, 1, 6, 8)
    assert (hits.fetch_sub(), hits.fetch_sub(2), hits.fetch_sub(n=1)) == (8, 7, 5)
    assert (hits.add(), hits.add(2), hits.add(n=2), hits.add(1, True), hits.add(n=1, checked=True)) == (5, 7, 9, 10, 11)
    assert (hits.fetch_and(10), hits.fetch_or(5), hits.fetch_xor(1), hits.load()) == (11, 10, 15, 14)
    assert (hits.exchange(3), hits.compare_exchange(3, 4), hits.compare_exchange(3, 5)) == (14, (True, 3), (False, 4))
    hits.store(20)
    assert (hits.reset(), hits.reset(), hits.reserve(10), hits.reserve(1)) == (20, 0, range(10), range(10, 11))
    assert (c["hits"], c[8], hits.load()) == (11, 11, 11)
    by_index = c.counter(8)
    assert (by_index.name, by_index.index, by_index.fetch_add(), repr(by_index)) == (None, 8, 11, "<Counter 8: 12>")
    assert repr(c.counter(0)) == "<Counter 0: 0>"


@given(old=words, n=words)
def test_arithmetic_and_checks(tmp_path_factory: pytest.TempPathFactory, **w: int) -> None:
    old, n = w["old"], w["n"]
    with Counters(tmp_path_factory.getbasetemp() / "bound", 1) as c:
        bound = c.counter("x")
        for operation, returned, value in (
            (bound.fetch_add, old, wrapped(old + n)),
            (bound.fetch_sub, old, wrapped(old - n)),
            (bound.add, wrapped(old + n), wrapped(old + n)),
            (bound.exchange, old, n),
        ):
            bound.store(old)
            assert operation(n) == returned
            assert bound.load() == value
        bound.store(old)
        if LOW <= old + n <= HIGH:
            assert bound.add(n, checked=True) == old + n == bound.load()
        else:
            with pytest.raises(OverflowError, match="left as it is"):
                bound.add(n, checked=True)
            assert bound.load() == old


def test_what_is_refused_changes_nothing(c: Counters) -> None:
    bound = c.counter("x")
    bound.store(7)
    calls: list[Callable[[Any], Any]] = [
        bound.fetch_add, bound.fetch_sub, bound.fetch_and, bound.fetch_or, bound.fetch_xor, bound.exchange, bound.add,
        bound.store, bound.reserve, lambda v: bound.compare_exchange(7, v), lambda v: bound.compare_exchange(v, 7),
    ]  # fmt: skip
    for call in calls:
        for value in (HIGH + 1, LOW - 1, 1 << 200):
            with pytest.raises(OverflowError):
                call(value)
        for value in (1.0, "1", None, float("nan")):
            with pytest.raises(TypeError):
                call(value)
    for n in (0, -1, LOW):
        with pytest.raises(ValueError, match="at least 1"):
            bound.reserve(n)
    bound.store(HIGH - 1)
    with pytest.raises(OverflowError, match="left as it is"):
        bound.reserve(2)
    assert bound.reserve(1) == range(HIGH - 1, HIGH)
    assert bound.load() == HIGH


def test_integers_of_other_types(c: Counters) -> None:
    numpy = pytest.importorskip("numpy")
    bound = c.counter("x")
    assert (bound.fetch_add(numpy.int64(5)), bound.add(numpy.uint8(2)), bound.fetch_add(True)) == (0, 7, 7)
    assert bound.reserve(numpy.int32(2)) == range(8, 10)


def test_it_wakes_and_waits_as_atomics_do(c: Counters, path: str) -> None:
    bound = c.counter("x")
    assert bound.wait(0, 0) is False
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(bound.wait(0, 60)))
    thread.start()
    with Counters(path) as other:
        other.counter("x").fetch_add()
    bound.wake()
    thread.join()
    assert done == [True]
    with Counters(path, mode="private") as p, pytest.raises(ValueError, match="private"):
        p.counter("x").wait(1, 0)


# ---- floats --------------------------------------------------------------------------------------------------------


def test_the_same_with_floats(f: Counters[float]) -> None:
    load = f.counter("load")
    assert isinstance(load, FloatCounter)
    assert (load.name, load.index, repr(load)) == ("load", 8, "<FloatCounter 'load': 0.0>")
    assert (load.fetch_add(), load.fetch_add(0.5), load.fetch_add(n=2), load.load()) == (0.0, 1.0, 1.5, 3.5)
    assert (load.fetch_sub(), load.fetch_sub(0.5), load.fetch_sub(n=1), load.load()) == (3.5, 2.5, 2.0, 1.0)
    assert (load.add(), load.add(0.5), load.add(n=-1.5, checked=True)) == (2.0, 2.5, 1.0)
    assert (load.exchange(-2.5), load.compare_exchange(-2.5, 4)) == (1.0, (True, -2.5))
    assert load.compare_exchange(-2.5, 5) == (False, 4.0)
    load.store(20)
    assert (load.reset(), load.reset(), type(load.reset())) == (20.0, 0.0, float)
    load.store(1.7e308)
    with pytest.raises(OverflowError, match="left as it is"):
        load.add(1.7e308, checked=True)
    assert f["load"] == load.load() == 1.7e308
    for value in ("1", None, [], 1j):
        for call in (load.fetch_add, load.fetch_sub, load.add, load.store, load.exchange):
            with pytest.raises(TypeError, match="takes a number"):
                call(value)  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        load.fetch_add(10**400)
    for what in ("fetch_or", "reserve", "wait"):
        assert not hasattr(load, what)
    assert repr(f.counter(3)) == "<FloatCounter 3: 0.0>"


def test_no_addition_of_floats_is_lost(f: Counters[float], path: str, start: Callable[..., Peer]) -> None:
    script = """
        with mmapds.Counters(sys.argv[1]) as f:
            bound = f.counter("sum")
            for _ in range(20_000):
                bound.fetch_add(0.5)
                f.add("other", 0.25)
    """
    peers = [start(script, path) for _ in range(2)]
    bound = f.counter("sum")
    for _ in range(20_000):
        bound.fetch_sub(-0.5)
    for peer in peers:
        peer.finish()
    assert f.snapshot() == {"sum": 30_000.0, "other": 10_000.0}


# ---- what it outlives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i64", "f64"])
def test_growth_close_and_the_end_of_its_handle(path: str, dtype: Any) -> None:
    c = Counters(path, 2, dtype=dtype)
    bound = [c.counter("first"), c.counter(0)]
    for i in range(3000):
        c.fetch_add(f"n{i}")
    for i, one in enumerate(bound):
        assert one.fetch_add(5 + i) == 0
    assert (c["first"], c[0]) == (5, 6)
    c.close()
    assert [one.add(1) for one in bound] == [6, 7]
    number = "6" if dtype == "i64" else "6.0"
    assert repr(bound[0]) == f"<{type(bound[0]).__name__} 'first': {number}>"
    del c
    gc.collect()
    assert [one.reset() for one in bound] == [6, 7]
    with Counters(path) as again:
        again["first"] = 9
        assert bound[0].load() == 9


def test_removal(c: Counters) -> None:
    bound = c.counter("x")
    bound.fetch_add(5)
    del c["x"]
    assert (bound.load(), bound.fetch_add(2), "x" in c) == (0, 0, False)
    c["y"] = 1
    assert bound.load() == 2
    assert c.fetch_add("x") == 2
    assert (bound.load(), c.counter("x").index) == (3, bound.index)


def test_a_fork(c: Counters) -> None:
    bound, other = c.counter("x"), c.counter(3)
    pid = os.fork()
    if pid == 0:
        bound.fetch_add(5)
        c.fetch_add(3, 7)
        c.fetch_add("made by the child")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (bound.load(), other.load(), c["made by the child"]) == (5, 7, 1)


def test_in_a_process_that_is_killed(c: Counters, path: str, start: Callable[..., Peer]) -> None:
    peer = start(
        """
        bound = mmapds.Counters(sys.argv[1]).counter("x")
        while True:
            say(bound.add())
        """,
        path,
    )
    while (last := int(peer.line())) < 100:
        pass
    peer.kill()
    while line := peer.line():
        last = int(line)
    assert c["x"] in (last, last + 1), "what was said was done"


@pytest.mark.parametrize("size", [0, 4096, 8192, 12288])
def test_a_file_that_is_cut_under_it(path: str, size: int) -> None:
    with Counters(path, 5000) as c:
        bound, private = c.counter(4999), Counters(path, mode="private")
        own = private.counter(4999)
        os.truncate(path, size)
        for call in (bound.fetch_add, bound.load, bound.add, bound.reset, lambda: bound.reserve(1)):
            with pytest.raises(MappingLost, match=path):
                call()
        with pytest.raises(MappingLost, match=path):
            c.fetch_add(0)
        private.close()
        assert own.fetch_add() == 0
    os.unlink(path)


# ---- threads -------------------------------------------------------------------------------------------------------


def test_threads_that_count_while_another_makes_the_file_grow(c: Counters) -> None:
    bound = [c.counter(f"k{i}") for i in range(4)]
    stop = threading.Event()
    counts = [0] * 4

    def count(number: int) -> None:
        while not stop.is_set():
            bound[number].fetch_add()
            counts[number] += 1

    threads = [threading.Thread(target=count, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for i in range(2000):
        c.fetch_add(f"n{i}", i)
    stop.set()
    for thread in threads:
        thread.join()
    assert [c[f"k{i}"] for i in range(4)] == counts
    assert [c[f"n{i}"] for i in range(2000)] == list(range(2000))


def test_they_are_made_by_counters_only(c: Counters) -> None:
    with pytest.raises(TypeError):
        Counter()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        FloatCounter()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="not an acceptable base"):
        type("Mine", (Counter,), {})
    mapping = Mapping(-1, 64, 3, 0x22)
    for offset in (-8, 60, 64, 1 << 62, 4):
        with pytest.raises(ValueError, match="offset"):
            FloatCounter(mapping, offset)
    bound = c.counter("x")
    for attribute in ("name", "index"):
        with pytest.raises(AttributeError):
            setattr(bound, attribute, 3)
