"""Counters: names. How they are made, seen by others, removed, and made again; growth; what is no name and no index."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import counterfiles
import pytest
from peers import Peer

from mmapds import Counters

HIGH = (1 << 63) - 1


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "counters")
    yield path
    counterfiles.check(path)


@pytest.fixture
def c(path: str) -> Iterator[Counters]:
    with Counters(path, 4) as counters:
        yield counters


@pytest.fixture
def other(c: Counters, path: str) -> Iterator[Counters]:
    """A second handle of the same file: to the kernel's locks, another process."""
    with Counters(path) as counters:
        yield counters


# ---- made on first use ---------------------------------------------------------------------------------------------


CREATING: dict[str, tuple[Callable[[Counters, str], Any], Any, int]] = {  # the call, what it returns, the value then
    "fetch_add": (lambda c, k: c.fetch_add(k, 3), 0, 3),
    "fetch_sub": (lambda c, k: c.fetch_sub(k, 3), 0, -3),
    "fetch_and": (lambda c, k: c.fetch_and(k, 3), 0, 0),
    "fetch_or": (lambda c, k: c.fetch_or(k, 3), 0, 3),
    "fetch_xor": (lambda c, k: c.fetch_xor(k, 3), 0, 3),
    "exchange": (lambda c, k: c.exchange(k, 3), 0, 3),
    "add": (lambda c, k: c.add(k, 3), 3, 3),
    "checked": (lambda c, k: c.add(k, 3, checked=True), 3, 3),
    "counter": (lambda c, k: c.counter(k).load(), 0, 0),
    "reserve": (lambda c, k: c.reserve(k, 3), range(3), 3),
    "item": (lambda c, k: c.__setitem__(k, 3), None, 3),
    "setdefault": (lambda c, k: c.setdefault(k, 3), 3, 3),
    "setdefault without a default": (lambda c, k: c.setdefault(k), 0, 0),
    "update": (lambda c, k: c.update({k: 3}), None, 3),
}


@pytest.mark.parametrize("how", CREATING)
def test_what_makes_a_name(c: Counters, other: Counters, how: str) -> None:
    call, returned, value = CREATING[how]
    assert call(c, "name") == returned
    assert (c["name"], other["name"], other.snapshot()) == (value, value, {"name": value})
    c.remove("name")
    assert call(other, "name") == returned, "a removed name begins anew"
    assert (c["name"], list(c), len(other)) == (value, ["name"], 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c["unknown"],
        lambda c: c.reset("unknown"),
        lambda c: c.compare_exchange("unknown", 0, 1),
        lambda c: c.remove("unknown"),
        lambda c: c.__delitem__("unknown"),
        lambda c: c.pop("unknown"),
        lambda c: c.popitem(),
    ],
    ids=["item", "reset", "compare_exchange", "remove", "del", "pop", "popitem"],
)
def test_what_makes_no_name(c: Counters, call: Callable[[Counters], Any]) -> None:
    for _ in range(2):
        with pytest.raises(KeyError) as caught:
            call(c)
        assert caught.value.args[0] in ("unknown", "there are no names")
        assert "unknown" not in c
        assert (list(c), len(c)) == ([], 0)
        c["unknown"] = 5
        c.remove("unknown")


# ---- removed, and made again ---------------------------------------------------------------------------------------


def test_a_removed_name_is_gone_for_everybody_and_begins_with_0_when_it_returns(c: Counters, other: Counters) -> None:
    c["a"], c["b"] = 1, 2
    assert other["a"] == 1
    c.remove("a")
    for handle in (c, other):
        assert "a" not in handle
        assert (list(handle), handle.get("a"), handle.snapshot()) == (["b"], None, {"b": 2})
        with pytest.raises(KeyError, match="a"):
            handle["a"]
    assert other.fetch_add("a") == 0
    assert c["a"] == 1
    assert list(c) == list(other) == ["a", "b"], "the name has its old place"


def test_the_cell_of_a_removed_name_is_never_given_to_another(c: Counters) -> None:
    index = {}
    for i in range(500):
        name = f"n{i}"
        index[name] = c.counter(name).index
        c.fetch_add(name, i)
        if i % 3:
            del c[name]
    assert len(set(index.values())) == 500
    assert {name: c.counter(name).index for name in index} == index
    assert c.snapshot() == {f"n{i}": (0 if i % 3 else i) for i in range(500)}


def test_the_index_of_a_removed_name_still_reaches_its_cell(c: Counters) -> None:
    c["a"] = 7
    del c["a"]
    assert c[4] == 0
    c[4] = 9
    assert "a" not in c
    assert c.fetch_add("a") == 9, "what was added to the cell since its removal stays"


@pytest.mark.parametrize("made", ["fetch_add", "setdefault", "item", "exchange"])
def test_what_a_bound_counter_adds_after_the_removal_is_there_when_the_name_returns(c: Counters, made: str) -> None:
    bound = c.counter("a")
    bound.fetch_add(5)
    assert c.pop("a") == 5
    assert bound.load() == 0
    bound.fetch_add(2)
    assert "a" not in c
    expected = {"fetch_add": (2, 5), "setdefault": (2, 2), "item": (None, 3), "exchange": (2, 3)}[made]
    assert (CREATING[made][0](c, "a"), c["a"]) == expected
    bound.fetch_add()
    assert c["a"] == bound.load()


# ---- growth --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("capacity", [0, 1, 64, 5000])
def test_the_file_grows_in_place_for_as_many_names_as_there_are(path: str, capacity: int, padded: bool) -> None:
    with Counters(path, capacity, padded=padded) as c, Counters(path) as other:
        inode, size = os.stat(path).st_ino, os.path.getsize(path)
        bound = []
        for i in range(3000):
            assert c.fetch_add(f"n{i}", i) == 0
            if i % 100 == 0:
                bound.append((c.counter(f"n{i}"), other.counter(f"n{i}"), i))
                assert other[f"n{i}"] == i
        expected = {f"n{i}": i for i in range(3000)}
        assert c.snapshot() == other.snapshot() == expected
        assert list(c) == list(expected)
        assert c.capacity == other.capacity == capacity
        assert os.stat(path).st_ino == inode
        assert os.path.getsize(path) > size
        assert os.stat(path).st_blocks * 512 >= os.path.getsize(path), "there are no holes"
        for mine, others, i in bound:
            assert (mine.fetch_add(), others.load(), mine.index) == (i, i + 1, capacity + i)
    with Counters(path) as c:
        assert len(c) == 3000
        assert c["n200"] == 201


def test_a_private_copy_grows_in_memory(path: str, c: Counters) -> None:
    c["mine"] = 1
    size = os.path.getsize(path)
    with Counters(path, mode="private") as p:
        bound = p.counter("mine")
        for i in range(2000):
            p.fetch_add(f"n{i}", i)
        bound.fetch_add()
        assert p.snapshot() == {"mine": 2, **{f"n{i}": i for i in range(2000)}}
    assert (c.snapshot(), os.path.getsize(path)) == ({"mine": 1}, size)


# ---- what is a name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a", " ", "\n", "\0", "a\0b", "/", "täglich ☃", "𐍈", "\ufeff", "0", "64", "x" * 255, "ä" * 127 + "x", "☃" * 85],
)
def test_names_of_any_text_up_to_255_bytes(c: Counters, other: Counters, name: str) -> None:
    assert len(name.encode()) <= 255
    assert c.fetch_add(name, 5) == 0
    assert name in other
    assert other[name] == 5
    assert list(other) == [name]
    c.close()
    assert other.pop(name) == 5


def test_names_that_differ_by_little_are_different(c: Counters) -> None:
    names = ["a", "A", "a ", "a\0", "a\0\0", "x" * 254, "x" * 255, "é", "e\u0301", "ﬁ", "fi", "", "1", "01"]
    names.remove("")
    for i, name in enumerate(names):
        c[name] = i
    assert c.snapshot() == {name: i for i, name in enumerate(names)}


WRONG_NAMES = {
    "": "has 0 bytes",
    "x" * 256: "has 256 bytes",
    "☃" * 86: "has 258 bytes",
    "y" * 100_000: "has 100000 bytes",
    "a\ud800b": "surrogate",
    "\udcff": "surrogate",
}


@pytest.mark.parametrize("name", WRONG_NAMES, ids=range(len(WRONG_NAMES)))
def test_names_that_are_none(c: Counters, name: str) -> None:
    message = WRONG_NAMES[name]
    for call in (c.fetch_add, c.add, c.counter, c.setdefault, lambda n: c.exchange(n, 1), lambda n: c.reserve(n, 1)):
        with pytest.raises(ValueError, match=message) as caught:
            call(name)
        assert len(str(caught.value)) < 300
    with pytest.raises(ValueError, match=message):
        c[name] = 1
    for call in (c.reset, c.remove, c.pop, c.__getitem__, lambda n: c.compare_exchange(n, 0, 1)):
        with pytest.raises(KeyError):
            call(name)
    assert name not in c
    assert len(c) == 0


class Text(str):
    """A subclass with ideas of its own, which names do not have."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 5

    def __str__(self) -> str:
        return "something else"


def test_subclasses_of_str_are_the_text_that_they_hold(c: Counters) -> None:
    assert c.fetch_add(Text("name"), 2) == 0
    assert c.fetch_add("name") == 2
    assert c.counter(Text("name")).name == "name"
    assert type(c.counter(Text("name")).name) is str
    assert Text("name") in c
    assert c[Text("name")] == 3
    assert c.setdefault(Text("name"), 9) == 3
    assert [type(name) for name in c] == [str]
    assert c.reset(Text("name")) == 3
    assert c.pop(Text("name")) == 0
    c[Text("name")] = 4
    c.remove(Text("name"))
    assert "name" not in c


# ---- what is an index ----------------------------------------------------------------------------------------------


class Index:
    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def by_key(c: Counters) -> list[Callable[[Any], Any]]:
    return [
        c.fetch_add, c.fetch_sub, c.add, c.reset, c.counter, c.__getitem__, c.setdefault, lambda k: c.fetch_or(k, 0),
        lambda k: c.exchange(k, 0), lambda k: c.reserve(k, 1), lambda k: c.compare_exchange(k, 0, 1),
        lambda k: c.__setitem__(k, 0),
    ]  # fmt: skip


def test_indices_that_are_none(c: Counters) -> None:
    c["only"] = 1
    for index in (-1, 5, 6, 1 << 31, 1 << 63, 1 << 64, -(1 << 63), 1 << 200, Index(5)):
        for call in by_key(c):
            with pytest.raises(IndexError, match="indices go from 0 to 4, of which those from 4 on have names"):
                call(index)
        assert index not in c
    assert c.snapshot() == {"only": 1}
    assert [c[i] for i in range(5)] == [0, 0, 0, 0, 1]


def test_keys_that_are_neither(c: Counters) -> None:
    for key in (None, True, False, 1.0, b"name", ("a",), [], object()):
        for call in by_key(c):
            with pytest.raises(TypeError, match="a key is a name"):
                call(key)
        assert key not in c
        for call in (c.remove, c.__delitem__, c.pop):
            with pytest.raises(TypeError, match="names are"):
                call(key)  # type: ignore[arg-type]
    for call in (c.remove, c.__delitem__, c.pop):
        with pytest.raises(TypeError, match="names are"):
            call(2)  # type: ignore[arg-type]
    assert len(c) == 0


def test_indices_of_other_integer_types(c: Counters) -> None:
    numpy = pytest.importorskip("numpy")
    for index in (Index(2), numpy.int64(2), numpy.uint8(2), type("Number", (int,), {})(2)):
        assert c.fetch_add(index) >= 0
        assert index in c
        assert c.counter(index).index == 2
        assert c[index] == c[2]
    assert c[2] == 4


# ---- many at once --------------------------------------------------------------------------------------------------


def test_threads_of_one_handle_that_make_the_same_names(c: Counters) -> None:
    names = [f"n{i}" for i in range(300)]
    barrier = threading.Barrier(8)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            barrier.wait()
            for i, name in enumerate(names):
                c.fetch_add(name)
                if i % 50 == number:
                    c.counter(name).fetch_add()
                    list(c)
        except BaseException as error:  # noqa: BLE001  handed over
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert len(c) == 300
    assert c.snapshot() == {name: 8 + (i % 50 < 8) for i, name in enumerate(sorted(names, key=lambda n: int(n[1:])))}
    assert [c[4 + i] for i in range(300)] == list(c.values())


def test_unrelated_processes_that_make_the_same_names(path: str, c: Counters, start: Callable[..., Peer]) -> None:
    script = """
        with mmapds.Counters(sys.argv[1]) as c:
            say("ready"); hear()
            for i in range(200):
                c.fetch_add(f"n{i}", 1)
            say(*[c.counter(f"n{i}").index for i in range(200)])
    """
    peers = [start(script, path) for _ in range(3)]
    for peer in peers:
        peer.expect("ready")
    for peer in peers:
        peer.tell()
    assert len({peer.line() for peer in peers}) == 1, "a name has the same index for everybody"
    for peer in peers:
        peer.finish()
    assert c.snapshot() == {f"n{i}": 3 for i in range(200)}
