"""Counters whose file is cut, removed or replaced under those who have it mapped (rows 9, 19)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import counterfiles
import pytest
from peers import Peer, PeerError

from mmapds import CorruptionError, Counters, MappingLost


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Cells on several pages, and three extents."""
    path = str(tmp_path / "counters")
    with Counters(path, 600) as c:
        c.update((f"name {n}", n) for n in range(1000))
        c[3] = 33
        c[599] = 99
    assert len(counterfiles.Snapshot(path).extents) == 3
    return path


OPEN = """
c = mmapds.Counters(path)
bound, indexed = c.counter("name 900"), c.counter(599)
view = c.view()
c.snapshot() and None
"""


@pytest.fixture
def peer(path: str) -> Iterator[Peer]:
    with Peer(OPEN, path=path) as peer:
        yield peer


# Everything that touches a cell or a name.
CALLS = [
    "c.fetch_add('name 900')", "c.fetch_sub('name 900')", "c.fetch_or('name 900', 1)", "c.exchange('name 900', 5)",
    "c.add('name 900')", "c.add('name 900', 1, True)", "c.reset('name 900')", "c.compare_exchange('name 900', 0, 5)",
    "c.reserve('name 900', 5)", "c['name 900']", "c.__setitem__('name 900', 5)", "c.fetch_add(599)", "c[599]",
    "c.add(599)", "c.counter('name 900').add()", "bound.fetch_add()", "bound.add()", "bound.load()", "bound.store(5)",
    "bound.reserve(5)", "bound.reset()", "bound.exchange(5)", "indexed.add()", "c.add('new')", "c.counter('new 2')",
    "c.setdefault('new 3', 5)", "c.pop('name 1')", "c.remove('name 2')", "c.snapshot()", "len(c)", "list(c)",
    "c.flush()", "dict(c)", "c.popitem()", "c.update(a=1)", "c.clear()",
]  # fmt: skip


def outcome(peer: Peer, code: str) -> tuple[str, str]:
    """The name and message of the exception; both empty if there is none."""
    try:
        peer(f"{code} and None")
    except PeerError as error:
        return error.name, error.message
    return "", ""


def sizes(path: str) -> list[int]:
    """Where to cut: at each kind of page's beginning, and in the middle of it."""
    found = counterfiles.Snapshot(path)
    places = [0, 4096, counterfiles.CONTROL]
    for extent in found.extents:
        places += [extent.start, extent.names_start, extent.end - 4096]
    return sorted({place + more for place in places for more in (0, 8, 2500) if place + more < len(found.content)})


def test_r09_the_operation_in_hand_or_the_next_says_so(path: str) -> None:
    content = Path(path).read_bytes()
    with Peer() as peer:
        for code in CALLS:
            counterfiles.restore(path, content)
            peer(OPEN, path=path)
            os.truncate(path, 4096)
            assert peer("sum(view[550:])") == 0, "the view is memory, and reads zeros"
            assert outcome(peer, code)[0] == "MappingLost", code
            for other in CALLS:
                assert outcome(peer, other)[0] == "MappingLost", f"{other}, after {code}"
            peer("view.release(); c.close()")
            assert os.path.getsize(path) == 4096, "somebody made it longer"


def test_r09_cut_anywhere(path: str) -> None:
    """At the borders of pages, and in mid-page; another handle, of another file, goes on."""
    content = Path(path).read_bytes()
    with Peer() as peer, Counters(path + "-healthy") as healthy:
        for size in sizes(path):
            counterfiles.restore(path, content)
            peer("c = mmapds.Counters(path); bound = c.counter('name 900'); c.snapshot() and None", path=path)
            with Counters(path, mode="readonly") as looking:
                os.truncate(path, size)
                found = [outcome(peer, code)[0] for code in ("c.add('name 900')", "bound.add()", "c.fetch_add('new')")]
                assert found[1:] == ["MappingLost"] * 2, f"cut to {size}: {found}"
                with pytest.raises(MappingLost):
                    looking.snapshot()
                with pytest.raises(MappingLost):
                    looking.get("name 900")
            peer("c.close()")
            assert os.path.getsize(path) == size
            with pytest.raises((CorruptionError, ValueError)):
                Counters(path)
            assert healthy.add("a") > 0


@pytest.mark.parametrize("size", [0, 5000, 20_000])
def test_r09_cut_and_made_long_again(peer: Peer, path: str, size: int) -> None:
    """All is there again, as zeros."""
    whole = os.path.getsize(path)
    os.truncate(path, size)
    os.truncate(path, whole)
    for code in ("c.add('name 900')", "bound.add()", "bound.load()", "c['name 900']", "c.snapshot()", "c.add('new')"):
        assert outcome(peer, code)[0] == "MappingLost", code
    with pytest.raises((CorruptionError, ValueError)):
        Counters(path)


def test_r09_who_does_not_know_the_last_extent_yet(path: str) -> None:
    """It is cut away before this handle has looked at it."""
    first = str(Path(path).with_name("first"))
    with Counters(first, 4) as c:
        c.update(a=1, b=2)
        with Peer("c = mmapds.Counters(path); c.update((f'name {n}', n) for n in range(200))", path=first) as grower:
            extents = counterfiles.Snapshot(first).extents
            assert len(extents) > 1
            os.truncate(first, extents[0].end + 4096)
            assert outcome(grower, "c.add('name 0')")[0] == "MappingLost"
        assert c.add("a") == 2, "what this one has mapped is whole"
        for _ in range(2):
            with pytest.raises((MappingLost, CorruptionError)):
                c.add("name 150")
        with pytest.raises((MappingLost, CorruptionError)):
            c.snapshot()
        assert os.path.getsize(first) == extents[0].end + 4096


def test_r09_cut_while_threads_count(path: str) -> None:
    with (
        Peer(
            """
import threading
c = mmapds.Counters(path)
found = []
def work(n):
    bound = c.counter(f"name {n}")
    try:
        while True:
            bound.add()
            c.add(f"name {n + 10}")
            c.add(f"new {n} {bound.load() % 1000}")
    except mmapds.MappingLost:
        found.append(n)
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for thread in threads: thread.start()
""",
            path=path,
        ) as peer,
        Counters(path, mode="readonly") as looking,
    ):
        while looking["name 0"] < 1000:
            pass
        os.truncate(path, 6000)
        peer("for thread in threads: thread.join()")
        assert peer("sorted(found)") == [0, 1, 2, 3]
        peer("c.close()")


def test_r09_a_file_of_emmap(tmp_path: Path) -> None:
    path = str(tmp_path / "counters")
    with Counters(path, 2000, layout="emmap") as c, Counters(path, mode="readonly", layout="emmap") as looking:
        bound = c.counter(1999)
        bound.add(5)
        os.truncate(path, 4096)
        for call in (bound.add, lambda: c.add(1999), lambda: c[1999], looking.snapshot, c.snapshot, bound.load):
            with pytest.raises(MappingLost):
                call()
        assert os.path.getsize(path) == 4096
    Path(path).write_bytes(b"EMMAP01\n" + (2000).to_bytes(8, "little") + bytes(16_000))
    with Counters(path, layout="emmap") as c:
        assert c.add(1999) == 1


# ---- row 19: the path ----------------------------------------------------------------------------------------------


def replace(path: str, how: str) -> None:
    content = Path(path).read_bytes()
    if how == "replaced":
        Path(path + ".new").write_bytes(content)
        os.replace(path + ".new", path)
    elif how == "removed":
        os.unlink(path)
    elif how == "a directory":
        os.unlink(path)
        os.mkdir(path)
    else:
        os.rename(path, path + ".old")


@pytest.mark.parametrize("how", ["replaced", "removed", "moved", "a directory"])
@pytest.mark.parametrize("layout", ["mmapds", "emmap"])
def test_r19_the_path_is_another_file_or_none(path: str, how: str, layout: Any) -> None:
    if layout == "emmap":
        path += "-emmap"
    with Counters(path, layout=layout) as c, Counters(path, mode="readonly", layout=layout) as looking:
        bound = c.counter(3)
        copy = Counters(path, mode="private", layout=layout)
        replace(path, how)
        before = Path(path).read_bytes() if how == "replaced" else b""
        calls: list[Any] = [c.snapshot, looking.snapshot, c.flush, c.items]
        if layout == "mmapds":
            calls += [
                lambda: c.fetch_add("new"),
                lambda: c.counter("new"),
                lambda: c.pop("name 5"),
                lambda: c.update(n=1),
            ]
        for call in calls:
            for _ in range(2):
                with pytest.raises(MappingLost, match="removed or replaced"):
                    call()
        assert bound.add() == c[3] == looking[3] > 0, "the cells are mapped, and stay"
        assert copy.add(3) > 0
        copy.snapshot()
        copy.close()
        if how == "replaced":
            assert Path(path).read_bytes() == before
            with Counters(path, layout=layout) as new:
                new.add(3, 1000)
                new.snapshot()
            assert c[3] < 1000


def test_r19_replaced_by_a_file_of_other_counters(path: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    with Counters(other, 600) as c:
        for n in range(4000):
            c[f"other {n}"] = n
    with Counters(path) as c, Counters(path) as second:
        before = Path(other).read_bytes()
        os.replace(other, path)
        for n in range(5):
            with pytest.raises(MappingLost):
                c[f"new {n}"] = n
            with pytest.raises(MappingLost):
                second.pop("name 1")
        assert (c["name 7"], second.add("name 7")) == (7, 8)
        assert Path(path).read_bytes() == before
