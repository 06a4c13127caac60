"""Counters: check(), files that are damaged while they are open, handles that are closed while they are used, power."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import counterfiles
import pytest

from mmapds import Closed, CorruptionError, Counters, MappingLost, UnsupportedFilesystem


@pytest.fixture
def path(tmp_path: Path, descriptors: None) -> str:
    return str(tmp_path / "counters")


@pytest.fixture
def c(path: str) -> Iterator[Counters]:
    with Counters(path, 8) as counters:
        counters.update(a=1, b=2, c=3)
        counters.remove("b")
        yield counters


# ---- check ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
def test_check_of_a_sound_file_says_and_changes_nothing(c: Counters, path: str, mode: Any) -> None:
    content = Path(path).read_bytes()
    with Counters(path, mode=mode) as handle:
        assert handle.check() is None
        for i in range(300):
            if mode == "shared":
                handle.fetch_add(f"n{i}")
        assert handle.check() is None
    if mode != "shared":
        assert Path(path).read_bytes() == content


def test_check_of_a_file_of_emmap(path: str) -> None:
    with Counters(path, 5, layout="emmap") as e:
        e[3] = 7
        assert e.check() is None
        os.truncate(path, 20)
        with pytest.raises(CorruptionError, match="20 bytes"):
            e.check()


DAMAGE: dict[str, Callable[[counterfiles.Snapshot], int]] = {  # which byte is changed
    "a name": lambda s: s.entry(0).offset + 17,
    "the length of a name": lambda s: s.entry(0).offset + 16,
    "the check of a name": lambda s: s.entry(2).offset + 8,
    "the state of a name": lambda s: s.entry(1).offset,
    "the count of names": lambda s: counterfiles.NAMES,
    "the check of the count": lambda s: counterfiles.NAMES + 5,
    "an extent's size": lambda s: counterfiles.EXTENTS + 1,
    "an extent's check": lambda s: counterfiles.EXTENTS + 24,
    "the header": lambda s: 20,
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_by_check_and_by_who_opens_the_file(path: str, what: str) -> None:
    with Counters(path, 8) as c:
        c.update(a=1, b=2, c=3)
    at = DAMAGE[what](counterfiles.Snapshot(path))
    with Counters(path) as c:
        byte = counterfiles.peek(path, at, 1)[0]
        counterfiles.poke(path, at, bytes([byte ^ 4]))
        with pytest.raises(ValueError, match="counters") as caught:
            c.check()
        message = str(caught.value)
        for mode in ("shared", "readonly", "private"):
            with pytest.raises(ValueError, match=path):
                Counters(path, mode=mode)  # type: ignore[arg-type]
        counterfiles.poke(path, at, bytes([byte]))
        assert c.check() is None, f"{what}: it said {message}"
        assert c.snapshot() == {"a": 1, "b": 2, "c": 3}


# ---- lost ----------------------------------------------------------------------------------------------------------


def test_a_file_that_was_cut_spoils_this_handle_and_no_other(c: Counters, path: str, tmp_path: Path) -> None:
    with Counters(tmp_path / "other") as other, Counters(path, mode="private") as p:
        os.truncate(path, 8192)
        for call in (lambda: c["a"], lambda: c.fetch_add("c"), lambda: c.fetch_add("new"), c.snapshot, c.flush, c.view):
            with pytest.raises(MappingLost, match=path):
                call()
        assert repr(c) == f"<Counters {path} shared MappingLost>"
        assert not c.closed
        assert other.fetch_add("x") == 0
        assert p.fetch_add("a") == 1
        c.close()
        with pytest.raises(Closed):
            c.fetch_add("a")


# ---- the end of a handle -------------------------------------------------------------------------------------------


def use(c: Counters, number: int, errors: list[Exception]) -> None:
    """Until something is raised."""
    i = 0
    try:
        while True:
            c.fetch_add("x")
            c.fetch_add(3)
            if number == 0:
                c.fetch_add(f"n{i % 100}")
                c.pop(f"n{(i - 3) % 100}", None)
            elif number == 1:
                c.snapshot()
            elif number == 2:
                c.view()
            i += 1
    except Exception as error:  # noqa: BLE001  looked at by the test
        errors.append(error)


def test_threads_that_use_a_handle_while_it_is_closed_are_told(path: str) -> None:
    for turn in range(10):
        errors: list[Exception] = []
        with Counters(path) as c:
            bound, before = c.counter("bound"), c.get("x", 0)
            threads = [threading.Thread(target=use, args=(c, i, errors)) for i in range(4)]
            for thread in threads:
                thread.start()
            while c.get("x", 0) < before + 50 and not errors:
                bound.fetch_add()
        for thread in threads:
            thread.join()
        assert [type(error) for error in errors] == [Closed] * 4, (turn, errors)
    counterfiles.check(path)
    with Counters(path, mode="readonly") as r:
        assert 0 <= r["x"] - r[3] <= 40, "close() stopped each thread once in each turn, between two additions or not"


def test_a_handle_can_be_referred_to_weakly_and_is_collected_in_a_cycle(path: str) -> None:
    c = Counters(path)
    gone: list[str] = []
    weakref.finalize(c, gone.append, "gone")
    cycle: dict[str, Any] = {"c": c}
    cycle["self"] = cycle
    c.close()
    del c, cycle
    gc.collect()
    assert gone == ["gone"]


# ---- durability="power" --------------------------------------------------------------------------------------------


def test_power_does_the_same_and_is_stored(path: str) -> None:
    try:
        c = Counters(path, durability="power")
    except UnsupportedFilesystem as error:
        pytest.skip(str(error))
    with c, Counters(path) as other:
        assert c.durability == other.durability == "power"
        ids = c.counter("ids")
        assert (c.reserve("ids", 10), ids.reserve(5), other.reserve("ids", 1)) == (
            range(10),
            range(10, 15),
            range(15, 16),
        )
        assert c.reserve(3, 2) == range(2)
        assert other.fetch_add("new", 3) == 0
        assert c.pop("new") == 3
        assert c.setdefault("new", 4) == 4
        c.remove("ids")
        assert ids.reserve(2) == range(2)
        for i in range(100):
            c.fetch_add(f"n{i}")
        assert len(other) == 101
        c.flush()
    with Counters(path, mode="private") as p:
        assert p.durability == "power"
        assert p.reserve("mine", 3) == range(3)
    counterfiles.check(path)


def test_r32_power_on_a_file_system_that_keeps_nothing(mount: Callable[..., Path], monkeypatch: Any) -> None:
    monkeypatch.delenv("MMAPDS_ANY_FILESYSTEM", raising=False)
    folder = mount("tmpfs", "size=1m")
    with pytest.raises(UnsupportedFilesystem, match="tmpfs"):
        Counters(folder / "counters", durability="power")
    assert os.listdir(folder) == []
    Counters(folder / "counters").close()
