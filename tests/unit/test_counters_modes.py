"""Counters: mode="readonly", which never writes, and mode="private", a point in time whose changes stay here."""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import counterfiles
import pytest
from peers import Peer

from mmapds import Counters


@pytest.fixture
def path(tmp_path: Path, descriptors: None) -> str:
    return str(tmp_path / "counters")


@pytest.fixture
def stored(path: str) -> Iterator[str]:
    """A file with a few counters, and nobody there."""
    with Counters(path, 8) as c:
        c.update(a=1, b=2, gone=3)
        c[0] = 4
        del c["gone"]
    yield path
    counterfiles.check(path)


def content(path: str) -> tuple[bytes, int, int]:
    """The file's bytes, and when it was last written."""
    status = os.stat(path)
    return Path(path).read_bytes(), status.st_mtime_ns, status.st_size


# ---- readonly ------------------------------------------------------------------------------------------------------


WRITES: dict[str, Callable[[Counters, Any], Any]] = {
    "fetch_add": lambda c, k: c.fetch_add(k),
    "fetch_sub": lambda c, k: c.fetch_sub(k),
    "fetch_and": lambda c, k: c.fetch_and(k, 1),
    "fetch_or": lambda c, k: c.fetch_or(k, 1),
    "fetch_xor": lambda c, k: c.fetch_xor(k, 1),
    "exchange": lambda c, k: c.exchange(k, 1),
    "add": lambda c, k: c.add(k),
    "checked": lambda c, k: c.add(k, checked=True),
    "compare_exchange": lambda c, k: c.compare_exchange(k, 5, 6),
    "reset": lambda c, k: c.reset(k),
    "reserve": lambda c, k: c.reserve(k, 1),
    "item": lambda c, k: c.__setitem__(k, 1),
    "update": lambda c, k: c.update({k: 1}),
}
REMOVALS: dict[str, Callable[[Counters], Any]] = {
    "remove": lambda c: c.remove("a"),
    "del": lambda c: c.__delitem__("a"),
    "pop": lambda c: c.pop("a"),
    "pop of an unknown name": lambda c: c.pop("unknown", 1),
    "popitem": lambda c: c.popitem(),
    "clear": lambda c: c.clear(),
}


@pytest.mark.parametrize("key", ["a", "unknown", 0, 8])
def test_readonly_refuses_whatever_would_write(stored: str, key: Any) -> None:
    before = content(stored)
    with Counters(stored, mode="readonly") as r:
        for what, call in WRITES.items():
            with pytest.raises(PermissionError, match="mode='readonly' never writes"):
                print(what, call(r, key))
        for what, remove in REMOVALS.items():
            with pytest.raises(PermissionError, match="mode='readonly' never writes"):
                print(what, remove(r))
        with pytest.raises(PermissionError, match="never writes"):
            r.setdefault("unknown", 1)
        assert r.snapshot() == {"a": 1, "b": 2}
    assert content(stored) == before


def test_readonly_reads_everything(stored: str) -> None:
    before = content(stored)
    with Counters(stored, mode="readonly") as r:
        assert (r["a"], r[0], r[8], r.get("b"), r.get("unknown")) == (1, 4, 1, 2, None)
        assert ("a" in r, "gone" in r, 10 in r, 11 in r) == (True, False, True, False)
        assert (list(r), len(r), r.snapshot(), dict(r)) == (["a", "b"], 2, {"a": 1, "b": 2}, {"a": 1, "b": 2})
        assert r.setdefault("a", 5) == 1
        assert r.setdefault(0, 5) == 4
        assert r.view().tolist() == [4, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0]
        with pytest.raises(KeyError):
            r["unknown"]
        with pytest.raises(IndexError):
            r[11]
        with pytest.raises(KeyError):
            r.counter("unknown")
        bound = r.counter("a")
        assert (bound.load(), bound.name, bound.index) == (1, "a", 8)
        for call in (bound.fetch_add, bound.add, bound.reset, lambda: bound.reserve(1), lambda: bound.store(1)):
            with pytest.raises(PermissionError, match="never writes"):
                call()
        r.flush()
    assert content(stored) == before


def test_readonly_sees_what_others_do_at_once(stored: str) -> None:
    with Counters(stored) as c, Counters(stored, mode="readonly") as r:
        bound = r.counter("a")
        c.fetch_add("a", 10)
        assert (r["a"], bound.load()) == (11, 11)
        for i in range(500):
            c[f"n{i}"] = i
            assert r[f"n{i}"] == i
        del c["a"]
        assert "a" not in r
        assert len(r) == 501
        assert r.snapshot() == c.snapshot()
        assert bound.load() == 0


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="mmapds-public-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.parametrize("layout", ["mmapds", "emmap"])
@pytest.mark.parametrize("alive", [False, True], ids=["nobody there", "a writer there"])
def test_r13_without_write_permission_reading_works_and_nothing_is_written(
    public: Path, start: Callable[..., Peer], layout: Any, alive: bool
) -> None:
    path = str(public / "counters")
    writer = Counters(path, 8, layout=layout)
    writer[3] = 7
    if not alive:
        writer.close()
    os.chmod(path, 0o444)
    before = content(path)
    peer = start(
        """
        path, layout = sys.argv[1:]
        if os.geteuid() == 0:
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
        try:
            open(path, "r+b")
        except PermissionError:
            pass
        r = mmapds.Counters(path, mode="readonly", layout=layout)
        p = mmapds.Counters(path, mode="private", layout=layout)
        say(r[3], p.add(3))
        try:
            mmapds.Counters(path, layout=layout)
        except PermissionError as error:
            say(error.filename == path)
        hear()
        say(r[3], p[3], sum(r.snapshot().values()))
        r.close()
        p.close()
        """,
        path,
        layout,
    )
    peer.expect("7 8")
    peer.expect("True")
    assert content(path) == before
    if alive:
        writer.add(3, 10)
        writer.close()
    assert peer.ask().split()[:2] == (["17", "8"] if alive else ["7", "8"])
    peer.finish()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o444


# ---- private -------------------------------------------------------------------------------------------------------


def test_private_changes_stay_here_and_the_file_stays_as_it_is(stored: str) -> None:
    before = content(stored)
    with Counters(stored, mode="private") as p:
        for key in ("a", 0, "new"):
            for what, call in WRITES.items():
                if what != "compare_exchange" or key != "new":
                    call(p, key)
        p.update({f"n{i}": i for i in range(1000)})
        p.fetch_add("gone", 9)
        assert p.pop("b") == 2
        assert p["gone"] == 9
        assert p["n999"] == 999
        p.flush()
        p.flush(wait=False)
        assert content(stored) == before
    assert content(stored) == before
    with Counters(stored, mode="readonly") as r:
        assert r.snapshot() == {"a": 1, "b": 2}


def test_private_is_a_point_in_time_of_names_and_of_values(stored: str) -> None:
    with Counters(stored) as c, Counters(stored, mode="private") as p:
        c.update(a=100, new=5)
        c.fetch_add(0, 100)
        del c["b"]
        for i in range(500):
            c.fetch_add(f"n{i}")
        assert p.snapshot() == {"a": 1, "b": 2}
        assert (p[0], "new" in p, len(p), list(p)) == (4, False, 2, ["a", "b"])
        assert p.fetch_add("new") == 0
        p["b"] = 50
        assert "b" not in c
        assert c["new"] == 5


def test_private_keeps_nothing_of_the_file(stored: str) -> None:
    with Counters(stored, mode="private") as p:
        bound = p.counter("a")
        with os.scandir("/proc/self/fd") as entries:
            held = [os.readlink(entry.path) for entry in entries]
        assert stored not in held
        assert stored not in Path("/proc/self/maps").read_text()
        os.unlink(stored)
        bound.fetch_add()
        assert p.snapshot() == {"a": 2, "b": 2}
        assert p.reserve("ids", 5) == range(5)
    Counters(stored).close()


def test_two_private_copies_know_nothing_of_each_other(stored: str) -> None:
    with Counters(stored, mode="private") as p, Counters(stored, mode="private") as q:
        p["a"] = 10
        q.remove("a")
        q["mine"] = 1
        assert (p.snapshot(), q.snapshot()) == ({"a": 10, "b": 2}, {"b": 2, "mine": 1})


def test_private_copies_of_counters_that_others_change_hold_values_that_were_there(path: str) -> None:
    with Counters(path, 1) as c, Counters(path) as other:
        c["total"] = 0
        stop = threading.Event()

        def work() -> None:
            i = 0
            while not stop.is_set():
                i += 1
                other[f"n{i % 400}"] = i
                other.pop(f"n{(i - 100) % 400}", None)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            for _ in range(60):
                with Counters(path, mode="private") as p:
                    found = p.snapshot()
                    assert found == p.snapshot() == dict(p.items())
                    assert found.pop("total") == 0
                    assert all(value % 400 == int(name[1:]) for name, value in found.items()), found
                    assert 0 not in found.values(), "that is what a removal leaves"
                    assert p.fetch_add("new") == 0
        finally:
            stop.set()
            thread.join()


def test_private_and_readonly_of_a_file_of_another_boot_write_nothing(stored: str) -> None:
    counterfiles.other_boot(stored)
    before = content(stored)
    for mode in ("readonly", "private"):
        with Counters(stored, mode=mode) as c:  # type: ignore[arg-type]
            assert c.snapshot() == {"a": 1, "b": 2}
            assert (c[0], "gone" in c) == (4, False)
            if mode == "private":
                assert c.fetch_add("gone") == 0
                assert c.fetch_add("b") == 2
    assert content(stored) == before
    with Counters(stored) as c, Counters(stored, mode="readonly") as r:
        assert c.snapshot() == r.snapshot() == {"a": 1, "b": 2}
