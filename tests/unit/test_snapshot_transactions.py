"""SnapshotMap: transactions, which are published whole or not at all, one at a time."""

from __future__ import annotations

import os
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import snapmaps
from calls import Call
from peers import Peer

from mmapds import Closed, ForkedHandle, SnapshotMap, Transaction, WriterBusy


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "map")
    yield path
    snapmaps.check(path)


@pytest.fixture
def m(path: str) -> Iterator[SnapshotMap]:
    with SnapshotMap(path) as m:
        snapmaps.commit(m, {"a": 1, "b": 2, "c": 3})
        yield m


# ---- all or nothing ------------------------------------------------------------------------------------------------


def test_a_block_is_published_at_its_end_as_one_version(m: SnapshotMap) -> None:
    with SnapshotMap(m.path, mode="readonly") as reader:
        with m.transaction() as txn:
            txn["d"] = 4
            txn["a"] = "changed"
            del txn["b"]
            assert dict(txn) == {"a": "changed", "c": 3, "d": 4}
            for handle in (m, reader):
                assert dict(handle) == {"a": 1, "b": 2, "c": 3}, "nothing is seen before the end"
                assert (handle.version, len(handle)) == (2, 3)
        for handle in (m, reader):
            assert handle.version == 3
            assert snapmaps.contents(handle) == {"a": "changed", "c": 3, "d": 4}
            assert len(handle) == 3


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_drops_everything_and_passes(m: SnapshotMap, error: type[BaseException]) -> None:
    before = snapmaps.files(m.path)
    raised = error("mine")
    with pytest.raises(error) as caught, m.transaction() as txn:  # noqa: PT012
        txn["d"] = 4
        del txn["a"]
        raise raised
    assert caught.value is raised
    assert (m.version, dict(m)) == (2, {"a": 1, "b": 2, "c": 3})
    assert snapmaps.files(m.path) == before
    assert snapmaps.commit(m, {"d": 5}) == 3, "and the next one goes on"


def test_an_exception_that_is_caught_inside_the_block_drops_nothing(m: SnapshotMap) -> None:
    with m.transaction() as txn:
        txn["d"] = 4
        with pytest.raises(KeyError):
            del txn["none"]
        with pytest.raises(TypeError):
            txn["e"] = object()
        with pytest.raises(TypeError):
            txn[b"bytes"] = 1
    assert dict(m) == {"a": 1, "b": 2, "c": 3, "d": 4}


NOTHING: list[Callable[[Transaction], object]] = [
    lambda txn: None,
    lambda txn: txn.get("a"),
    lambda txn: txn.pop("none", None),
    lambda txn: txn.setdefault("a", 7),
    lambda txn: txn.update({}),
    lambda txn: (txn.set("new", 1), txn.pop("new")),
    lambda txn: (txn.update(new=1, more=2), txn.pop("more"), txn.__delitem__("new")),
]


@pytest.mark.parametrize("nothing", NOTHING, ids=range(len(NOTHING)))
def test_nothing_is_published_when_nothing_changed(m: SnapshotMap, nothing: Callable[[Transaction], object]) -> None:
    data = {name: os.stat(f"{m.path}/{name}").st_mtime_ns for name in snapmaps.MANIFEST}
    with m.transaction() as txn:
        nothing(txn)
    assert m.version == 2
    assert {name: os.stat(f"{m.path}/{name}").st_mtime_ns for name in snapmaps.MANIFEST} == data
    assert snapmaps.contents(m) == {"a": 1, "b": 2, "c": 3}


def test_one_transaction_spans_prefixes(m: SnapshotMap) -> None:
    with m.transaction() as txn:
        txn["by id/7"] = "seven"
        txn["by name/seven"] = 7
    assert (list(m.prefix("by id/")), list(m.prefix("by name/"))) == ([("by id/7", "seven")], [("by name/seven", 7)])


# ---- a MutableMapping ----------------------------------------------------------------------------------------------


class Keyed:
    """What dict.update takes, and is no Mapping."""

    def keys(self) -> list[str]:
        return ["x", "b"]

    def __getitem__(self, key: str) -> str:
        return key * 2


@pytest.mark.parametrize("mode", ["shared", "private"])
def test_it_does_what_a_dict_does(path: str, mode: Any) -> None:
    start = {"a": 1, "b": 2, "c": 3}
    SnapshotMap.build(path, {"a": 0, "b": 2, "z": 1})
    with SnapshotMap(path) as m:
        snapmaps.commit(m, {"a": 1, "c": 3}, "z")
    steps: list[Callable[[Any], Any]] = [
        lambda d: d.pop("a"), lambda d: d.pop("a", "none"), lambda d: d.setdefault("b", 9),
        lambda d: d.setdefault("d", 9), lambda d: d.setdefault("e"), lambda d: d.update({"c": 7, "a": 8}, b=0, f=1),
        lambda d: d.update([("g", 1), ("g", 2)]), lambda d: d.update(g=3), lambda d: d.update(Keyed()),
        lambda d: d.update(OrderedDict(h=1)), lambda d: d.update(self=1, other=2), lambda d: d.pop("self"),
        lambda d: "c" in d, lambda d: d.get("c"), lambda d: d.get("none", 5), lambda d: d.__delitem__("c"),
        lambda d: "c" in d, lambda d: d.get("c"), lambda d: d.__setitem__("c", 1), lambda d: d == dict(d),
        lambda d: d.pop("c"), lambda d: sorted(d.items()), lambda d: sorted(d.keys() & {"a", "zz"}),
        lambda d: d.clear(), dict, lambda d: d.update(zip("xyz", range(3), strict=True)), lambda d: d.pop("y"),
    ]  # fmt: skip
    refused: list[tuple[type[Exception], Callable[[Any], Any]]] = [
        (KeyError, lambda d: d.pop("none")), (KeyError, lambda d: d["none"]),
        (KeyError, lambda d: d.__delitem__("none")), (TypeError, lambda d: d.update(5)),
        (ValueError, lambda d: d.update(["abc"])), (TypeError, lambda d: d.update([1])),
    ]  # fmt: skip
    with SnapshotMap(path, mode=mode) as m:
        model: dict[str, Any] = dict(start)
        target: Any = m if mode == "private" else m.transaction().__enter__()
        try:
            for i, step in enumerate(steps):
                assert step(target) == step(model), i
                assert dict(target) == model, i
                assert list(target) == sorted(model), i
                assert len(target) == len(model), i
                assert list(target.range("b", "f")) == sorted((k, v) for k, v in model.items() if "b" <= k < "f")
                for error, call in refused:
                    for each in (target, model):
                        with pytest.raises(error):
                            call(each)
            while model:
                key, value = target.popitem()
                assert (key, value) == (min(model), model.pop(key))
            with pytest.raises(KeyError):
                target.popitem()
            assert (len(target), list(target)) == (0, [])
            target["last"] = 1
        finally:
            if mode == "shared":
                target.__exit__(None, None, None)
        assert dict(m) == {"last": 1}
        assert len(m) == 1


def test_lookups_see_changes_before_the_base(m: SnapshotMap) -> None:
    with m.transaction() as txn:
        txn.update(a="new", d=4)
        del txn["b"]
        assert txn.get_many(["a", "b", "c", "d", "e"]) == {"a": "new", "c": 3, "d": 4}
        assert (txn.first(), txn.last()) == (("a", "new"), ("d", 4))
        assert list(txn.range("a", "d", reverse=True)) == [("c", 3), ("a", "new")]
        assert list(txn.prefix("d")) == [("d", 4)]
        assert (txn.version, txn.key_type, txn.path, txn.codec.name) == (2, str, m.path, "msgpack")


def test_values_are_encoded_when_they_are_set(m: SnapshotMap) -> None:
    with m.transaction() as txn:
        value = [1]
        txn["list"] = value
        value.append(2)
        assert txn["list"] == [1]
        txn["list"].append(3)
    assert m["list"] == [1]


def test_the_first_key_decides_the_kind(path: str) -> None:
    with SnapshotMap(path) as m:
        with m.transaction() as txn:
            assert txn.key_type is None
            txn[b"a"] = 1
            assert txn.key_type is bytes
            with pytest.raises(TypeError, match="keys of this map are bytes, got str"):
                txn["b"] = 2
        assert (m.key_type, list(m)) == (bytes, [b"a"])
        snapmaps.commit(m, {}, b"a")
        m.compact()
        assert (m.key_type, len(m)) == (bytes, 0), "and it stays"


# ---- beginning and end ---------------------------------------------------------------------------------------------

USES: list[Callable[[Transaction], object]] = [
    lambda txn: txn["a"], lambda txn: txn.get("a"), lambda txn: "a" in txn, lambda txn: txn.get_many(["a"]),
    list, len, lambda txn: txn.first(), lambda txn: txn.version, lambda txn: txn.__setitem__("a", 1),
    lambda txn: txn.__delitem__("a"), lambda txn: txn.set("a", 1), lambda txn: txn.update(a=1),
    lambda txn: txn.pop("a"), lambda txn: txn.clear(), lambda txn: txn.popitem(), lambda txn: txn.setdefault("a", 1),
]  # fmt: skip


def test_outside_of_its_block_it_is_of_no_use(m: SnapshotMap) -> None:
    before, after, failed = m.transaction(), m.transaction(), m.transaction()
    with after:
        after["d"] = 4
        walk = iter(after.items())
        assert next(walk) == ("a", 1)
    with pytest.raises(ZeroDivisionError), failed:  # noqa: PT012
        failed["e"] = 5
        raise ZeroDivisionError
    for txn in (before, after, failed):
        for i, use in enumerate(USES):
            with pytest.raises(Closed) as caught:
                raise AssertionError(f"{i} gave {use(txn)!r}")
            assert m.path in str(caught.value)
    with pytest.raises(Closed):
        list(walk)
    for txn in (after, failed):
        with pytest.raises(RuntimeError, match="a transaction is one block"), txn:
            pass
    with before:
        before["f"] = 6
    assert m.version == 4
    assert dict(m) == {"a": 1, "b": 2, "c": 3, "d": 4, "f": 6}


def test_a_transaction_that_is_never_entered_holds_nothing(m: SnapshotMap) -> None:
    m.transaction()
    with SnapshotMap(m.path) as other:
        assert snapmaps.commit(other, {"d": 4}) == 3


def test_transactions_are_not_nested(m: SnapshotMap) -> None:
    with m.transaction() as txn:
        txn["d"] = 4
        for call in (lambda: m.transaction().__enter__(), txn.__enter__, m.compact):
            with pytest.raises(RuntimeError, match=r"in a transaction of this map already|is one block"):
                call()
        assert txn["d"] == 4
        with pytest.raises(WriterBusy):
            SnapshotMap.build(m.path, {"x": 1})
    assert (m.version, m["d"]) == (3, 4)


def test_closing_the_map_in_a_transaction_drops_it(m: SnapshotMap) -> None:
    with pytest.raises(Closed), m.transaction() as txn:  # noqa: PT012
        txn["d"] = 4
        m.close()
    with SnapshotMap(m.path) as again:
        assert dict(again) == {"a": 1, "b": 2, "c": 3}
        assert snapmaps.commit(again, {"d": 5}) == 3, "nobody has the place"


# ---- one at a time -------------------------------------------------------------------------------------------------


def test_another_handle_is_told_who_has_the_place(m: SnapshotMap) -> None:
    with SnapshotMap(m.path) as other, Peer("m = mmapds.SnapshotMap(path)", path=m.path) as peer:
        with m.transaction() as txn:
            txn["d"] = 4
            for call in (lambda: other.transaction().__enter__(), other.compact):
                with pytest.raises(WriterBusy, match=f"pid {os.getpid()}") as caught:
                    call()
                assert f"pid {os.getpid()}" in str(caught.value.holder)
            name, message = peer.fails("m.transaction().__enter__()")
            assert (name, f"pid {os.getpid()}" in message) == ("WriterBusy", True), message
            assert peer("dict(m)") == {"a": 1, "b": 2, "c": 3}
        assert other["d"] == 4
        assert snapmaps.commit(other, {"d": 5}) == 4, "the place is given back at the end of each block"
        peer("with m.transaction() as txn: txn['e'] = 6")
        with m.transaction() as txn:
            assert (txn["d"], txn["e"]) == (5, 6), "it builds on what others have committed"
            txn["f"] = 7
        assert dict(other) == {"a": 1, "b": 2, "c": 3, "d": 5, "e": 6, "f": 7}


def test_a_death_gives_the_place_back(m: SnapshotMap) -> None:
    with Peer("m = mmapds.SnapshotMap(path); txn = m.transaction().__enter__()", path=m.path) as peer:
        peer("txn['dead'] = 1")
        with pytest.raises(WriterBusy, match=f"pid {peer.pid}"):
            snapmaps.commit(m, {"d": 4})
        peer.kill()
    assert snapmaps.commit(m, {"d": 4}) == 3
    assert dict(m) == {"a": 1, "b": 2, "c": 3, "d": 4}


def test_threads_of_one_handle_wait_for_each_other(m: SnapshotMap) -> None:
    with m.transaction() as txn:
        txn["d"] = 4
        call = Call(lambda: snapmaps.commit(m, {"e": 5}))
        assert call.waits
        assert "e" not in m
    assert call.result() == 4
    assert dict(m) == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}


def test_threads_count_together(m: SnapshotMap) -> None:
    def count(name: str) -> None:
        for _ in range(50):
            with m.transaction() as txn:
                txn["all"] = txn.get("all", 0) + 1
                txn[name] = txn.get(name, 0) + 1

    calls = [Call(lambda i=i: count(f"thread {i}")) for i in range(4)]
    seen = []
    while any(call.waits for call in calls):
        found = m.get_many(["all", *(f"thread {i}" for i in range(4))])
        seen.append(found.pop("all", 0) == sum(found.values()))
    for call in calls:
        call.result()
    assert all(seen), "each version is whole"
    assert (m["all"], m.version) == (200, 202)


def test_a_reader_in_another_thread_reads_on(m: SnapshotMap) -> None:
    stop = threading.Event()

    def read() -> int:
        rounds = 0
        while not stop.is_set():
            found = m.get_many(["a", "b"])
            assert found["a"] == found["b"] or (found["a"], found["b"]) == (1, 2)
            assert len(list(m)) == len(m.snapshot()) == 3
            rounds += 1
        return rounds

    call = Call(read)
    for i in range(200):
        snapmaps.commit(m, {"a": i, "b": i})
    stop.set()
    assert call.result() > 0


# ---- large ones ----------------------------------------------------------------------------------------------------


def test_a_large_transaction_becomes_a_layer(m: SnapshotMap) -> None:
    with m.transaction() as txn:
        txn.update((f"{i:06}", "x" * 100) for i in range(20_000))
        assert len(txn) == 20_003
    assert m.stats()["delta"] is None
    assert snapmaps.layers(m) == [20_003]
    assert (len(m), m["019999"], m["a"]) == (20_003, "x" * 100, 1)
    with m.transaction() as txn:
        txn.clear()
    assert (len(m), list(m)) == (0, [])
    m.compact()
    assert (len(m), m.version, m.stats()["layers"], m.stats()["delta"]) == (0, 5, [], None)


def test_values_larger_than_the_delta(path: str) -> None:
    large = os.urandom(9 << 20)
    with SnapshotMap(path, codec="raw") as m:
        snapmaps.commit(m, {"a": b"small"})
        snapmaps.commit(m, {"large": large, "b": b""})
        assert m["large"] == large
        assert m.get_view("large") == large
        snapmaps.commit(m, {"c": b""}, "large")
        assert (len(m), "large" in m) == (3, False)
        m.compact()
        assert m.stats()["bytes"] < 100_000


def test_each_size_of_a_commit_around_what_fits(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with SnapshotMap(path, codec="raw") as m:
        snapmaps.tiny(m, monkeypatch, 1 << 15)  # 24,520 bytes are for batches, and more than 16,384 make a layer
        model = {}
        for size in [*range(16_240, 16_360, 8), *range(8_100, 8_200, 8), *range(4_000, 4_200, 40)]:
            model[f"{size}"] = b"x" * size
            snapmaps.commit(m, {f"{size}": b"x" * size})
            assert m.get_many(list(model)) == model, size
            assert len(m) == len(model)


# ---- in the child of a fork ----------------------------------------------------------------------------------------


def forked(call: Callable[[], object]) -> str:
    """Runs it in a child; "" or what went wrong there."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            call()
            os.write(writing, b"fine")
        except BaseException:  # noqa: BLE001  the parent is told
            os.write(writing, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(pid, 0)
    return "" if told == "fine" else told or "it died"


CHANGES: list[Callable[[Transaction], object]] = [use for use in USES[8:] if use is not USES[15]]


def test_in_a_child_a_transaction_is_the_parents(m: SnapshotMap) -> None:
    def child() -> None:
        for i, change in enumerate(CHANGES):
            with pytest.raises(ForkedHandle) as caught:
                raise AssertionError(f"{i} gave {change(txn)!r}")
            assert "parent" in str(caught.value)
        with pytest.raises(ForkedHandle):
            txn.__exit__(None, None, None)
        error = ValueError()
        assert txn.__exit__(ValueError, error, None) is None, "an exception passes"
        with pytest.raises(WriterBusy, match=f"pid {os.getppid()}"):
            m.transaction().__enter__()
        assert dict(m) == {"a": 1, "b": 2, "c": 3}

    with m.transaction() as txn:
        txn["d"] = 4
        told = forked(child)
        assert not told, told
        txn["e"] = 5
    assert dict(m) == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    assert m.version == 3


def test_a_child_that_was_forked_in_a_transaction_begins_its_own(m: SnapshotMap) -> None:
    reading, writing = os.pipe()
    done_reading, done_writing = os.pipe()
    with m.transaction() as txn:
        txn["d"] = 4
        pid = os.fork()
        if pid == 0:
            try:
                os.close(writing)
                os.read(reading, 1)  # until the parent's is over
                with m.transaction() as own:
                    assert own["d"] == 4
                    own["e"] = 5
                os.write(done_writing, b"fine")
            except BaseException:  # noqa: BLE001  the parent is told
                os.write(done_writing, traceback.format_exc().encode()[-60_000:])
            finally:
                os._exit(0)
    os.write(writing, b"x")
    for fd in (writing, reading, done_writing):
        os.close(fd)
    with os.fdopen(done_reading, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(pid, 0)
    assert told == "fine", told
    assert dict(m) == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}


def test_a_child_commits_with_the_handle_of_its_parent(m: SnapshotMap) -> None:
    for i in range(3):
        told = forked(lambda i=i: snapmaps.commit(m, {"child": i}))
        assert not told, told
        assert m["child"] == i
        snapmaps.commit(m, {"parent": i})
    assert (m.version, m["child"], m["parent"]) == (8, 2, 2)


# ---- interruptions, and handles that are closed meanwhile ------------------------------------------------------------


class InterruptedHereError(Exception):
    pass


def test_an_interruption_while_the_place_is_taken_loses_no_commit_of_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this handle published last was taken for the newest version after it."""
    with SnapshotMap(path) as a, SnapshotMap(path) as b:
        for number in range(2):
            with a.transaction() as txn:
                txn[f"a{number}"] = number
            with b.transaction() as txn:
                txn[f"b{number}"] = number
            with monkeypatch.context() as patch:
                acquire = a._manifest.acquire

                def interrupted(acquire: Any = acquire) -> bool:
                    acquire()
                    raise InterruptedHereError

                patch.setattr(type(a._manifest), "acquire", lambda self: interrupted())
                with pytest.raises(InterruptedHereError):
                    a.transaction().__enter__()
            with a.transaction() as txn:
                txn["c"] = number
            assert dict(b) == {f"{who}{n}": n for who in "ab" for n in range(number + 1)} | {"c": number}, b.stats()


def test_closed_in_the_middle_of_a_transaction(path: Path) -> None:
    """Its changes are dropped, and nobody else writes before it has ended."""
    with SnapshotMap(path) as other:
        m = SnapshotMap(path)
        txn = m.transaction().__enter__()
        txn["a"] = 1
        m.close()
        assert m.closed
        with pytest.raises(WriterBusy):
            other.transaction().__enter__()
        with pytest.raises(Closed, match="closed in the middle"):
            txn.__exit__(None, None, None)
        with other.transaction() as txn:
            txn["b"] = 2
        assert dict(other) == {"b": 2}
        with pytest.raises(Closed):
            m.get("b")


def test_keys_of_other_classes_are_stored_as_what_they_are(path: Path) -> None:
    class Caseless(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return isinstance(other, str) and self.lower() == other.lower()

        def __hash__(self) -> int:
            return hash(self.lower())

    with SnapshotMap(path) as m:
        with m.transaction() as txn:
            txn[Caseless("A")] = 1
            txn["a"] = 2
            assert (len(txn), list(txn)) == (2, ["A", "a"])
        assert (len(m), dict(m)) == (2, {"A": 1, "a": 2})
