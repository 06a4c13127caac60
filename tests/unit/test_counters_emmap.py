"""Counters(layout="emmap"): the files of emmap's open_counters/2, written here byte by byte from their description.

``EMMAP01\\n``, u64 count, `count` int64 cells; little-endian, nothing else. By index, of a fixed size.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import Peer

from mmapds import Closed, CorruptionError, Counters, IncompatibleFormat, MappingLost, SchemaMismatch

LOW, HIGH = -(1 << 63), (1 << 63) - 1


def written(count: int, cells: list[int]) -> bytes:
    """A file as emmap writes it."""
    return b"EMMAP01\n" + struct.pack("<Q", count) + b"".join(cell.to_bytes(8, "little", signed=True) for cell in cells)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "emmap.counters")


@pytest.fixture
def theirs(path: str) -> str:
    """A file of emmap's with four counters."""
    Path(path).write_bytes(written(4, [5, -1, HIGH, LOW]))
    return path


@pytest.fixture
def e(theirs: str) -> Iterator[Counters]:
    with Counters(theirs, 4, layout="emmap") as counters:
        yield counters


# ---- their files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
@pytest.mark.parametrize("count", [None, 4])
def test_a_file_that_emmap_has_written(theirs: str, mode: Any, count: int | None) -> None:
    before = Path(theirs).read_bytes()
    with Counters(theirs, count, mode=mode, layout="emmap") as e:
        assert (e.capacity, e.layout, e.dtype, e.padded, e.durability) == (4, "emmap", "i64", False, "process")
        assert [e[i] for i in range(4)] == [5, -1, HIGH, LOW]
        assert e.snapshot() == {0: 5, 1: -1, 2: HIGH, 3: LOW}
        assert (len(e), list(e)) == (4, [0, 1, 2, 3])
        assert e.view().tolist() == [5, -1, HIGH, LOW]
        assert (0 in e, 3 in e, 4 in e, -1 in e, "a" in e) == (True, True, False, False, False)
    assert Path(theirs).read_bytes() == before


def test_what_is_done_is_in_the_file_at_once(e: Counters, theirs: str) -> None:
    assert e.fetch_add(0) == 5
    assert e.fetch_sub(1, 3) == -1
    assert e.fetch_add(2) == HIGH
    assert e.add(3, -1) == HIGH
    assert Path(theirs).read_bytes() == written(4, [6, -4, LOW, HIGH])
    assert e.exchange(0, 12) == 6
    assert (e.fetch_and(0, 10), e.fetch_or(0, 1), e.fetch_xor(0, 3)) == (12, 8, 9)
    assert e.compare_exchange(0, 10, 11) == (True, 10)
    with pytest.raises(OverflowError, match="left as it is"):
        e.add(3, 1, checked=True)
    assert e.reset(1) == -4
    assert e.reserve(1, 100) == range(100)
    e[2] = 9
    bound = e.counter(3)
    assert (bound.name, bound.index, bound.exchange(4), bound.add(3)) == (None, 3, HIGH, 7)
    assert Path(theirs).read_bytes() == written(4, [11, 100, 9, 7])
    e.flush()
    e.flush(wait=False)
    e.close()
    bound.fetch_add()
    assert Path(theirs).read_bytes() == written(4, [11, 100, 9, 8])
    with pytest.raises(Closed):
        e.fetch_add(0)


def test_a_new_file_is_one_that_emmap_opens(path: str) -> None:
    old = os.umask(0)
    try:
        with Counters(path, 3, layout="emmap") as e:
            assert e.snapshot() == {0: 0, 1: 0, 2: 0}
    finally:
        os.umask(old)
    assert Path(path).read_bytes() == written(3, [0, 0, 0])
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
    os.unlink(path)
    with Counters(path, layout="emmap") as e:
        assert e.capacity == 64
    assert Path(path).read_bytes() == written(64, [0] * 64)


@pytest.mark.parametrize("count", [1, 3, 5, 100_000])
def test_a_file_of_another_count_is_an_error_that_shows_both(theirs: str, count: int) -> None:
    before = Path(theirs).read_bytes()
    for mode in ("shared", "readonly", "private"):
        with pytest.raises(SchemaMismatch, match=f"holds 4 counters, asked for were {count}"):
            Counters(theirs, count, mode=mode, layout="emmap")  # type: ignore[arg-type]
    assert Path(theirs).read_bytes() == before


WRONG: dict[str, tuple[bytes, type[Exception], str]] = {
    "empty": (b"", IncompatibleFormat, "does not start with"),
    "half a magic": (b"EMMA", IncompatibleFormat, "does not start with"),
    "no count": (b"EMMAP01\n\1\0\0", IncompatibleFormat, "does not start with"),
    "another magic": (b"EMMAP02\n" + written(4, [0] * 4)[8:], IncompatibleFormat, "EMMAP02"),
    "another end of line": (b"EMMAP01\r" + written(4, [0] * 4)[8:], IncompatibleFormat, "does not start with"),
    "text": (b"some text that is long enough\n" * 10, IncompatibleFormat, "does not start with"),
    "zeros": (bytes(4096), IncompatibleFormat, "does not start with"),
    "no counters": (written(0, []), CorruptionError, "0 counters"),
    "one cell too few": (written(4, [1, 2, 3]), CorruptionError, "40 bytes"),
    "one byte too few": (written(4, [1, 2, 3, 4])[:-1], CorruptionError, "47 bytes"),
    "only a head": (written(1, []), CorruptionError, "16 bytes"),
    "2^61 counters": (written(1 << 61, [0]), CorruptionError, "24 bytes"),
    "2^64 - 1 counters": (written((1 << 64) - 1, [0] * 8), CorruptionError, "80 bytes"),
    "big-endian": (b"EMMAP01\n" + struct.pack(">Q", 4) + bytes(32), CorruptionError, "48 bytes"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
def test_files_that_are_refused_and_left_as_they_are(path: str, mode: Any, what: str) -> None:
    content, error, message = WRONG[what]
    Path(path).write_bytes(content)
    for count in (None, 4):
        with pytest.raises(error, match=message) as caught:
            Counters(path, count, mode=mode, layout="emmap")
        assert path in str(caught.value)
    assert Path(path).read_bytes() == content


def test_bytes_behind_the_cells_are_left_alone(path: str) -> None:
    Path(path).write_bytes(written(2, [1, 2]) + b"more")
    with Counters(path, layout="emmap") as e:
        e.fetch_add(1)
        assert e.snapshot() == {0: 1, 1: 3}
    assert Path(path).read_bytes() == written(2, [1, 3]) + b"more"


def test_neither_layout_opens_the_other(theirs: str, tmp_path: Path) -> None:
    Counters(tmp_path / "ours").close()
    for path, layout in ((theirs, "mmapds"), (tmp_path / "ours", "emmap")):
        before = Path(path).read_bytes()
        for mode in ("shared", "readonly", "private"):
            with pytest.raises(IncompatibleFormat, match=str(path)):
                Counters(path, mode=mode, layout=layout)  # type: ignore[arg-type]
        assert Path(path).read_bytes() == before


# ---- what they do not have -----------------------------------------------------------------------------------------


def test_there_are_no_names(e: Counters, theirs: str) -> None:
    before = Path(theirs).read_bytes()
    creating = [
        e.fetch_add, e.add, e.counter, e.setdefault, lambda n: e.exchange(n, 1), lambda n: e.reserve(n, 1),
        lambda n: e.__setitem__(n, 1),
    ]  # fmt: skip
    for call in creating:
        with pytest.raises(ValueError, match="no names: use indices from 0 to 3"):
            call("name")
    for call in (e.__getitem__, e.reset, e.remove, e.pop, lambda n: e.compare_exchange(n, 0, 1)):
        with pytest.raises((KeyError, ValueError), match="name"):
            call("name")
    assert e.pop("name", None) is None
    assert e.get("name") is None
    for index in (4, -1, 1 << 70):
        for call in (e.fetch_add, e.__getitem__, e.reset, e.counter):
            with pytest.raises(IndexError, match="indices go from 0 to 3"):
                call(index)
    for call in (e.remove, e.pop, e.__delitem__):
        with pytest.raises(TypeError, match="names are"):
            call(1)  # type: ignore[arg-type]
    assert Path(theirs).read_bytes() == before


@pytest.mark.parametrize("what", ["popitem", "clear"])
def test_indices_are_not_removed(e: Counters, theirs: str, what: str) -> None:
    before = Path(theirs).read_bytes()
    with pytest.raises((TypeError, ValueError, KeyError), match=r"no names|names are") as caught:
        getattr(e, what)()
    assert "descriptor" not in str(caught.value), "that is no message for users"
    assert Path(theirs).read_bytes() == before


@pytest.mark.parametrize(
    ("options", "what"),
    [({"dtype": "f64"}, "dtype='f64'"), ({"padded": True}, "padded=True"), ({"durability": "power"}, "power")],
)
def test_options_that_they_do_not_have(path: str, options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=rf"layout='emmap' has no .*{what}"):
        Counters(path, 4, layout="emmap", **options)
    with pytest.raises(ValueError, match="capacity 0"):
        Counters(path, 0, layout="emmap")
    assert not os.path.exists(path)
    Counters(path, 4, layout="emmap", dtype="i64", padded=False, durability="process").close()


# ---- modes and company ---------------------------------------------------------------------------------------------


def test_readonly_and_private_write_nothing(e: Counters, theirs: str) -> None:
    with Counters(theirs, mode="readonly", layout="emmap") as r, Counters(theirs, mode="private", layout="emmap") as p:
        for call in (r.fetch_add, r.add, r.reset, r.counter(0).fetch_add, lambda i: r.__setitem__(i, 1)):
            with pytest.raises(PermissionError, match="never writes"):
                call(0)
        e.fetch_add(0)
        assert (r[0], p[0]) == (6, 5)
        p.fetch_add(0, 100)
        p.counter(1).fetch_add(100)
        assert p.snapshot() == {0: 105, 1: 99, 2: HIGH, 3: LOW}
        assert p.view().tolist() == list(p.snapshot().values())
        assert e.snapshot() == r.snapshot() == {0: 6, 1: -1, 2: HIGH, 3: LOW}
        p.flush()
        r.flush()
    assert Path(theirs).read_bytes() == written(4, [6, -1, HIGH, LOW])


def test_a_file_is_shared_with_who_maps_it_otherwise_at_the_same_time(e: Counters, theirs: str) -> None:
    with open(theirs, "r+b") as file, mmap.mmap(file.fileno(), 0) as other:
        other[16:24] = (77).to_bytes(8, "little")
        assert e[0] == 77
        e.fetch_add(0)
        assert other[16:24] == (78).to_bytes(8, "little")
        assert other[:16] == written(4, [])


def test_unrelated_processes_and_threads_count_exactly(path: str, start: Callable[..., Peer]) -> None:
    script = """
        with mmapds.Counters(sys.argv[1], 8, layout="emmap") as e:
            bound = e.counter(7)
            for _ in range(20_000):
                e.fetch_add(3)
                bound.fetch_add()
    """
    peers = [start(script, path) for _ in range(3)]
    with Counters(path, 8, layout="emmap") as e:
        threads = [threading.Thread(target=lambda: [e.fetch_add(3) for _ in range(5000)]) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for peer in peers:
            peer.finish()
        assert e.snapshot() == {i: {3: 70_000, 7: 60_000}.get(i, 0) for i in range(8)}


def test_a_file_that_was_replaced_or_cut(theirs: str, tmp_path: Path) -> None:
    with Counters(theirs, layout="emmap") as e:
        os.rename(theirs, tmp_path / "old")
        Path(theirs).write_bytes(written(4, [0] * 4))
        for call in (e.snapshot, e.flush):
            with pytest.raises(MappingLost, match=theirs):
                call()
        assert e.fetch_add(0) == 5
    Path(theirs).write_bytes(written(5000, [1] * 5000))
    with Counters(theirs, layout="emmap") as e, Counters(theirs, layout="emmap", mode="private") as p:
        os.truncate(theirs, 16)
        with pytest.raises(MappingLost, match=theirs):
            e.fetch_add(4999)
        with pytest.raises(MappingLost, match=theirs):
            e.fetch_add(0)
        assert p[4999] == 1


def test_a_path_object_and_repr(tmp_path: Path) -> None:
    with Counters(tmp_path / "with space", 2, layout="emmap", populate=True) as e:
        assert repr(e) == f"<Counters {tmp_path}/with space shared 2 counters>"
        assert repr(e.counter(1)) == "<Counter 1: 0>"
