"""`describe` and `verify` for counters: sound files, copies, other boots, what deaths leave, and beside who is busy."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import counterfiles as raw
import pytest
from findings import errors, only
from hypothesis import given
from hypothesis import strategies as st
from peers import Peer

from mmapds import Counters, Synchronizer
from mmapds.errors import CorruptionError
from mmapds.inspection import Finding, _counters, describe, verify


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Four names, one of them removed, and an index."""
    name = str(tmp_path / "counts")
    with Counters(name, 8) as c:
        for number, word in enumerate(("hits", "errors", "gone", "größe")):
            c[word] = number
        c[3] = 33
        c.remove("gone")
    return name


def unchanged(path: str) -> tuple[bytes, int]:
    return Path(path).read_bytes(), os.stat(path).st_mtime_ns


def foreign(path: str) -> list[Finding]:
    """What is found but the note that the file waits for recovery."""
    found = verify(path)
    note = [f for f in found if (f.severity, "was last used on another boot" in f.what) == ("note", True)]
    assert len(note) == 1, found
    return [f for f in found if f not in note]


# ---- sound ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i64", "f64"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("capacity", [0, 1, 64, 10_000])
@pytest.mark.parametrize("names", [0, 1, 15, 500])
def test_sound_open_and_closed(dtype, padded, capacity, names, tmp_path):
    path = str(tmp_path / "counts")
    with Counters(path, capacity, dtype=dtype, padded=padded) as c:
        assert verify(path) == []
        for number in range(names):
            c[f"name {number}"] = number
        for number in range(0, names, 7):
            del c[f"name {number}"]
        for number in range(0, names, 14):
            c[f"name {number}"] = 1
        assert verify(path) == []
        c.check()
    before = unchanged(path)
    for form in (path, os.fsencode(path), Path(path)):
        assert verify(form) == []
    describe(path)
    assert unchanged(path) == before


def test_sound_whatever_is_in_the_cells(path):
    snapshot = raw.Snapshot(path)
    for extent in snapshot.extents:
        raw.poke(path, extent.start, os.urandom(extent.cells_size))
    assert verify(path) == []


def test_sound_whatever_lies_behind_the_last_name(path):
    """A process that died while it made a name leaves an entry there, whole or not."""
    snapshot = raw.Snapshot(path)
    for content in (raw.entry(4, b"begun", snapshot.identity), os.urandom(raw.ENTRY)):
        raw.poke(path, snapshot.entry_offset(4), content)
        assert verify(path) == []


def test_sound_in_the_current_directory_and_with_a_structure_s_name(path, monkeypatch):
    folder = os.path.dirname(path)
    monkeypatch.chdir(folder)
    assert verify("counts") == []
    for name in ("counts_sync", "counts_data_0", "counts_state"):
        os.rename(path, name)
        path = name
        assert verify(name) == []
        assert describe(name)["kind"] == "counters"


def test_a_synchronizer_of_the_same_prefix_is_another_thing(path):
    with Synchronizer(path) as s:
        s.write("x")
    assert verify(path) == []
    assert describe(path)["kind"] == "counters"
    assert verify(path + "_sync") == []
    assert describe(path + "_sync")["kind"] == "sync"


@given(names=st.lists(st.text(min_size=1, max_size=60).filter(lambda t: t.isprintable() and len(t.encode()) <= 255)))
def test_the_arithmetic_of_the_checks_is_that_of_the_native_code(names, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("names") / "counts")
    with Counters(path) as c:
        for name in names:
            c.add(name)
        assert verify(path) == []
    assert describe(path)["names"]["live"] == len(set(names))
    identity = raw.identity(path)
    words = _counters.identity_words(identity)
    for number in (0, 1, 77, 0xFFFFFFFF):
        assert _counters.count_word(number, words) == raw.count(number, identity)
        assert _counters.extent_check(number, 4096, 8192, words) == raw.extent_check(number, 4096, 8192, identity)


# ---- described -----------------------------------------------------------------------------------------------------


def test_describe(path):
    found = describe(path)
    status = os.stat(path)
    expected = {
        "what": "counters, by name or by index",
        "path": path,
        "size": status.st_size,
        "permissions": "0600",
        "kind": "counters",
        "format": "1.0",
        "parent": None,
        "durability": "process",
        "schema": None,
        "options": {"dtype": "i64", "padded": False, "capacity": 8},
        "durability_failed": False,
        "in_use": False,
        "names": {"published": 4, "live": 3, "removed": 1, "given_up": 0, "room": 75},
        "changes": 1,
        "removing": None,
        "returning": None,
        "extents": [{"start": 8192, "cells_size": 4096, "names_size": 20480, "room": 75}],
    }
    assert expected.items() <= found.items()
    json.dumps(found)
    with Counters(path):
        assert describe(path)["in_use"] is True
    with Counters(path, mode="readonly"):
        assert describe(path)["in_use"] is False  # it has no locks


def test_describe_options(tmp_path):
    path = str(tmp_path / "c")
    Counters(path, 0, dtype="f64", padded=True, durability="process").close()
    assert describe(path)["options"] == {"dtype": "f64", "padded": True, "capacity": 0}


def test_describe_a_removal_under_way_and_what_was_given_up(path):
    identity = raw.identity(path)
    raw.poke_word(path, raw.REMOVING, raw.count(2, identity))
    raw.poke(path, raw.Snapshot(path).entry_offset(0), raw.entry(0, b"", identity, b"damaged "))
    found = describe(path)
    assert found["removing"] == 1
    assert found["names"] == {"published": 4, "live": 2, "removed": 1, "given_up": 1, "room": 75}


def test_describe_what_is_damaged(path):
    raw.poke_word(path, raw.NAMES, 3)
    assert describe(path)["names"]["published"] is None
    raw.poke_word(path, raw.EXTENTS, 1)
    assert describe(path)["extents"] == []
    os.truncate(path, 5000)
    assert describe(path)["cut"] == "5000 bytes, and the control page ends at 8192"
    raw.flip(path, 8 * 100)
    with pytest.raises(CorruptionError, match="header is damaged"):
        describe(path)


# ---- another boot, copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["copy", "boot"])
def test_r24_a_file_that_waits_for_recovery_is_sound(how, path):
    if how == "copy":
        shutil.copy(path, path + "2")
        path += "2"
    else:
        raw.other_boot(path)
    before = unchanged(path)
    assert foreign(path) == []
    assert unchanged(path) == before
    with Counters(path):
        assert verify(path) == []


def test_r24_not_while_somebody_is_alive_in_it(path):
    """A container with a boot id of its own: the words are valid, and judged as such."""
    with Counters(path):
        raw.other_boot(path)
        assert verify(path) == []
        raw.poke_word(path, raw.NAMES, 3)
        assert [f.severity for f in verify(path)] == ["error"]


def test_r24_while_it_is_being_recovered_nothing_is_said_of_what_is_in_between(path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    raw.other_boot(path)
    raw.poke_word(path, raw.NAMES, 3)
    with open(path, "r+b") as file:
        raw.lock(file.fileno(), raw.LOCK_NAMES)
        only(path, "note", "counts", "recovered or replaced all the while")


def test_r24_what_a_recovery_is_to_mend_is_no_error(tmp_path):
    path = str(tmp_path / "crashed")
    expected = raw.crashed(path)
    found = foreign(path)
    assert {f.severity for f in found} == {"note", "warning"}, found
    texts = " ".join(f.what for f in found)
    assert "1 names (number 3) are not what was written" in texts
    assert "gives up name 6" in texts
    assert "2 names (number 6, 7) are whole, and not counted" in texts
    with Counters(path) as c:
        assert c.snapshot() == expected
        only(path, "note", "crashed", "2 names (number 3, 6) were lost with the power, and given up by a recovery")


def test_r24_counts_and_extents_that_a_recovery_mends(path):
    with Counters(path) as c:
        c.update({f"more {number}": number for number in range(200)})
    content = Path(path).read_bytes()
    snapshot = raw.Snapshot(path)
    last = snapshot.extents[-1]
    seal = last.end - 8
    for offset, value, severity, text in (
        (raw.NAMES, 5, "warning", "the count of names is damaged; the next to open it counts those that are whole"),
        (raw.REMOVING, 5, "warning", "the word for a removal is damaged; the next to open it clears it"),
        (raw.REMOVING, raw.count(2, snapshot.identity), None, ""),
        (raw.REMOVING + 8, 5, "warning", "the word for a return is damaged; the next to open it clears it"),
        (raw.REMOVING + 8, raw.count(3, snapshot.identity), None, ""),  # is finished
        (raw.FAILED, 1, None, ""),
        (seal, 0, "warning", "has no sentinel at its end: was the file cut?; the next to open it puts it there"),
        (raw.EXTENTS + 64, 5, "warning", "its check is wrong"),
    ):
        raw.poke_word(path, offset, value)
        raw.other_boot(path)
        found = [f for f in foreign(path) if f.severity != "note"]
        assert [f.severity for f in found][:1] == ([severity] if severity else []), (text, found)
        assert not severity or any(text in f.what for f in found), found
        with Counters(path) as c:
            assert c["hits"] == 0
        assert errors(path) == [], text
        Path(path).write_bytes(content)
    os.truncate(path, last.start + 10)
    raw.other_boot(path)
    assert any("drops it, and the names in it" in f.what for f in foreign(path))
    assert errors(path) == []


# ---- deaths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "offset"), [("removal", raw.REMOVING), ("return", raw.REMOVING + 8)])
def test_a_removal_or_return_that_was_not_finished(what, offset, path):
    raw.poke_word(path, offset, raw.count(2, raw.identity(path)))
    only(path, "note", "counts", f"the {what} of name 1 was not finished by a process that died")
    with open(path, "r+b") as file:
        raw.lock(file.fileno(), raw.LOCK_NAMES)  # somebody is at it this moment
        assert verify(path) == []


def test_growth_that_was_not_finished(path):
    size = os.stat(path).st_size
    os.truncate(path, size + 8192)
    only(path, "note", "counts", "has 8192 bytes behind its last extent")
    raw.poke(path, raw.EXTENTS + raw.EXTENT_SIZE, struct.pack("<2Q", 4096, 4096))  # but for its check
    only(path, "note", "counts", "has 8192 bytes behind its last extent")
    with open(path, "r+b") as file:
        raw.lock(file.fileno(), raw.LOCK_NAMES)
        assert verify(path) == []
    with Counters(path) as c:
        c.update({f"more {number}": number for number in range(100)})
    assert verify(path) == []


def test_a_failed_flush(path):
    raw.poke_word(path, raw.FAILED, 1)
    only(path, "warning", "counts", "a flush to the disk failed")
    assert describe(path)["durability_failed"] is True


def test_files_that_were_left_in_creation(path, tmp_path):
    (tmp_path / ".counts.0123abcd.tmp").touch()
    (tmp_path / ".counts_sync.0123abcd.tmp").touch()
    (tmp_path / ".other.0123abcd.tmp").touch()
    only(path, "note", ".counts.0123abcd.tmp", "can be removed")


# ---- beside others -------------------------------------------------------------------------------------------------

BUSY = """
import random
while True:
    name = f"name {random.randrange(400)}"
    if random.random() < 0.3:
        c.pop(name, None)
    else:
        c.add(name)
"""


def test_beside_those_who_make_and_remove_names(tmp_path):
    path = str(tmp_path / "busy")
    with (
        Counters(path) as c,
        Peer("c = mmapds.Counters(path)", path=path) as one,
        Peer("c = mmapds.Counters(path)", path=path) as two,
    ):
        one.send(BUSY)
        two.send(BUSY)
        for _ in range(60):
            assert verify(path) == []
            assert describe(path)["names"]["published"] is not None
        assert len(c) > 0
        one.kill()
        two.kill()
    assert errors(path) == []


def test_beside_growth(tmp_path):
    path = str(tmp_path / "growing")
    with Counters(path), Peer("c = mmapds.Counters(path)", path=path) as peer:
        peer.send("for i in range(30_000):\n    c[f'name {i}'] = i")
        for _ in range(40):
            assert verify(path) == []
        peer.receive()
    assert verify(path) == []


def test_a_file_that_is_replaced_all_the_while(tmp_path):
    """Every look is at one file or another, and both are sound."""
    path = str(tmp_path / "replaced")
    Counters(path).close()
    code = "while True:\n    mmapds.Counters(path + '.new').close(); os.replace(path + '.new', path)"
    with Peer(path=path) as peer:
        peer.send(code)
        for _ in range(100):
            assert errors(path) == []


def test_damage_is_found_beside_a_busy_writer(path):
    with Counters(path) as c, Peer("c = mmapds.Counters(path)", path=path) as peer:
        peer.send("while True:\n    c.pop('x', None); c.add('x')")
        raw.flip(path, 8 * (raw.Snapshot(path).entry_offset(1) + 18))
        for _ in range(10):
            assert [f.what for f in errors(path)] == [
                "1 names (number 1) are not what was written: their checks are wrong"
            ]
        with pytest.raises(CorruptionError, match="number 1"):
            c.check()
