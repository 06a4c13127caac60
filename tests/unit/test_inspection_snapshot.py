"""`describe` and `verify` for snapshot maps: sound ones, copies, other boots, what deaths leave, beside a writer."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import snapdamage as raw
import syncfiles as sync
from findings import errors, only
from peers import Peer
from snapmaps import commit, fold, tiny

from mmapds import CorruptionError, Counters, Queue, SnapshotMap, Synchronizer
from mmapds.cli import main
from mmapds.errors import IncompatibleFormat
from mmapds.inspection import _snapshot, _snapshot_check, _snapshot_delta, _snapshot_layer, describe, verify


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "cities")


@pytest.fixture
def made(path: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a map with something of everything, that nobody has open."""
    raw.fill(path, monkeypatch)
    return path


def unchanged(path: str) -> dict[str, tuple[bytes, int]]:
    return {entry.path: (Path(entry.path).read_bytes(), entry.stat().st_mtime_ns) for entry in os.scandir(path)}


def every_form(path: str) -> list[str | bytes | Path]:
    """All that means this map."""
    files = [os.path.join(path, name) for name in sorted(os.listdir(path))]
    return [path, path + "/", os.fsencode(path), Path(path), raw.manifest(path), *files]


# ---- sound ---------------------------------------------------------------------------------------------------------


def test_sound_from_birth_through_commits_folds_and_compaction(path, monkeypatch):
    with SnapshotMap(path) as m:
        tiny(m, monkeypatch)
        assert verify(path) == []
        m.check()
        for number in range(60):
            changes = {f"k{number * step % 97:03}-ü": "v" * (number % 23) for step in (1, 3, 7)}
            commit(m, changes, *list(m)[: number % 3], ttl=1e-4 if number % 5 == 0 else None)
            if number % 13 == 12:
                fold(m)
            assert verify(path) == [], m.stats()
        m.compact()
        assert verify(path) == []
        m.check()
        with m.transaction() as txn:
            txn.clear()
        assert verify(path) == []
        m.compact()
        assert verify(path) == []
        assert raw.named(path) == ([], None)


def test_sound_when_closed_and_nothing_is_changed(made):
    before = unchanged(made)
    assert len(raw.named(made)[0]) == 3
    for form in every_form(made):
        assert verify(form) == [], form
        describe(form)
    assert unchanged(made) == before


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("keys", ["str", "bytes"])
def test_sound_with_options(durability, keys, path, monkeypatch):
    def key(text: str) -> str | bytes:
        return text if keys == "str" else text.encode() + b"\xff"

    long = key("k" * 65000)
    SnapshotMap.build(
        path,
        {key(""): b"", long: b"v" * 300_000, key("a"): b"1", key("ab"): b"12345678"},
        codec="raw",
        durability=durability,
        metadata={1: [b"bytes", "text"]},
    )
    assert verify(path) == []
    with SnapshotMap(path) as m:
        tiny(m, monkeypatch, 1 << 18)
        commit(m, {key(""): b"1", key("b"): b"x"}, key("a"), ttl=1e6)
        assert verify(path) == []
        commit(m, {key("large"): b"v" * 200_000}, long)
        assert verify(path) == []


def test_sound_without_an_entry_but_with_metadata(path):
    SnapshotMap.build(path, {}, metadata={"nothing": True})
    assert verify(path) == []
    with SnapshotMap(path) as m:
        commit(m, {"a": 1})
        assert verify(path) == []


def test_in_the_current_directory(made, monkeypatch):
    monkeypatch.chdir(made)
    names = [name for name in os.listdir(".") if name.endswith(("layer", "delta"))]
    for form in (".", "manifest", "manifest_sync", *names):
        assert verify(form) == [], form
    assert describe("manifest_sync")["entries"] == describe(".")["entries"]


def test_what_has_a_name_of_a_map_s_file_and_is_another_thing(tmp_path):
    with Synchronizer(tmp_path / "manifest", codec="raw") as s:
        s.write(b"something else")
        assert verify(tmp_path / "manifest") == []
        assert verify(tmp_path / "manifest_data_1") == []
        assert "map" not in str(describe(tmp_path / "manifest_sync")["what"])
        with pytest.raises(IncompatibleFormat, match="publishes something else"):
            verify(tmp_path)
        s.write(b"x" * 5000)
        with pytest.raises(IncompatibleFormat, match="publishes something else"):
            verify(tmp_path)
    (tmp_path / "other").mkdir()
    with Counters(tmp_path / "other" / "0000000000000001.layer") as c:
        c.add("hits")
    assert verify(tmp_path / "other" / "0000000000000001.layer") == []
    assert describe(tmp_path / "other" / "0000000000000001.layer")["kind"] == "counters"
    with Synchronizer(tmp_path / "set") as s:
        s.write(1)
    with SnapshotMap(tmp_path / "set"):
        assert describe(tmp_path / "set")["what"] == "snapshot map: what its manifest names"
        assert verify(tmp_path / "set") == []
    with Queue(tmp_path / "jobs"):
        assert describe(tmp_path / "jobs")["kind"] == "queue"


# ---- described -----------------------------------------------------------------------------------------------------


def test_describe(made, capsys):
    found = describe(made)
    json.dumps(found)
    assert describe(os.path.join(made, "manifest_sync")) == found == describe(raw.manifest(made))
    with SnapshotMap(made) as m:
        stats = m.stats()
        assert (found["version"], found["entries"], found["keys"]) == (m.version, len(m), "str")
    assert (found["codec"], found["durability"], found["not_named"]) == ("msgpack", "process", [])
    layers = found["layers"]
    assert [(one["records"], one["size"]) for one in layers] == [(s["records"], s["bytes"]) for s in stats["layers"]]
    delta = describe(os.path.join(made, found["delta"]["name"]))
    json.dumps(delta)
    batches = raw.Shared(made).batches
    assert delta["batches"] == {
        "count": len(batches),
        "records": sum(batch.count for batch in batches),
        "read_up_to": delta["written"],
        "version": found["version"],
        "entries": found["entries"],
    }
    assert delta["map"] == {"path": made, "is_parent": True, "named": True}
    bottom = describe(os.path.join(made, layers[-1]["name"]))
    json.dumps(bottom)
    assert bottom["metadata"] == "{'of': 1}"
    assert (bottom["options"]["records"], bottom["options"]["keys"]) == (1200, "str")
    for index in (0, 1):
        assert describe(os.path.join(made, f"manifest_data_{index}"))["what"] == "manifest of a snapshot map"
    for name in os.listdir(made):
        assert main(["inspect", os.path.join(made, name)]) == 0
        assert main(["verify", os.path.join(made, name)]) == 0
    assert "snapshot map" in capsys.readouterr().out


def test_files_that_lie_apart_from_their_map(made, tmp_path):
    for name in sorted(os.listdir(made)):
        if name.startswith("manifest"):
            continue
        for target in (tmp_path / name, tmp_path / "other name"):
            shutil.copyfile(os.path.join(made, name), target)
            found = verify(target)
            assert {(f.severity, f.where) for f in found} == {("note", target.name)}, found
            assert describe(target)["map"] is None
            if name.endswith("layer"):
                sync.flip(str(target), 8 * raw.option(str(target), raw.END) - 1)
                assert "error" in [f.severity for f in verify(target)]


# ---- being made, left behind ---------------------------------------------------------------------------------------


def test_a_map_that_has_no_version_yet(path):
    os.mkdir(path)
    with Synchronizer(raw.manifest(path)):
        only(path, "note", "manifest_sync", "has no version yet")
        assert describe(path)["version"] == 0
        assert verify(raw.manifest(path)) == []  # it may be anything


def test_what_writers_left_and_what_is_no_file_of_a_map(made):
    layer = raw.named(made)[0][0]
    left = os.path.join(made, "0000000000000fff.layer")
    shutil.copyfile(layer, left)
    for name in ("notes.txt", ".0000000000000fff.layer.0a1b2c3d.tmp", ".run.0a1b2c3d.tmp", ".other"):
        Path(made, name).write_text("x")
    found = {f.where: (f.severity, f.what) for f in verify(made)}
    assert set(found) == {
        "0000000000000fff.layer", "notes.txt", ".0000000000000fff.layer.0a1b2c3d.tmp", ".run.0a1b2c3d.tmp"
    }  # fmt: skip
    assert {severity for severity, _ in found.values()} == {"note"}
    assert "is not named by the manifest" in found["0000000000000fff.layer"][1]
    assert describe(made)["not_named"] == ["0000000000000fff.layer"]
    with SnapshotMap(made) as m:
        with m.transaction() as txn:
            assert not os.path.lexists(left), "he has removed it"
            shutil.copyfile(layer, left)  # as if he was making it
            assert [f.where for f in verify(made)] == []
            txn["common/new"] = 1
        assert sorted(f.where for f in verify(made)) == [os.path.basename(left), "notes.txt"]


def test_r33_a_writer_that_died_before_its_manifest(made):
    before = {name: sync.peek(os.path.join(made, name), 0, 1 << 20) for name in os.listdir(made) if "manifest" in name}
    with SnapshotMap(made) as m:
        entries = len(m)
        commit(m, {"common/new": 1}, "common/00000" if "common/00000" in m else "common/b")
    for name, data in before.items():
        sync.poke(os.path.join(made, name), 0, data)
    delta = raw.named(made)[1]
    assert delta is not None
    only(made, "note", os.path.basename(delta), "bytes of batches that were not published")
    with SnapshotMap(made) as m:
        assert len(m) == entries
        with m.transaction():
            assert verify(made) == []  # it could be his
        commit(m, {"common/new": 1})
        assert verify(made) == []


# ---- other boots, copies -------------------------------------------------------------------------------------------

FOREIGN = "was last used on another boot, or is a copy"


def test_r24_a_copy(made, tmp_path):
    target = str(tmp_path / "copy")
    shutil.copytree(made, target)
    only(target, "note", "manifest_sync", FOREIGN)
    with SnapshotMap(target) as m:
        found = verify(target)
        assert [(f.severity, f.where) for f in found] == [("note", os.path.basename(raw.named(target)[1] or ""))]
        assert "its links are not used" in found[0].what
        commit(m, {"common/new": 1})
        assert verify(target) == []
    assert verify(made) == []


def test_r24_the_version_before_is_what_counts(made):
    """Of another boot, whose newest manifest was torn."""
    shared = raw.Shared(made)
    prefix = raw.manifest(made)
    version = sync.sequence(prefix)
    sync.other_boot(sync.sync(prefix))
    sync.other_boot(shared.delta)
    only(made, "note", "manifest_sync", FOREIGN)
    sync.poke(sync.data(prefix, version & 1), raw.PAGE, b"\xff" * 8)
    found = verify(made)
    assert [f.severity for f in found] == ["warning", "note"], found
    assert f"goes back to {version - 1}" in found[0].what
    assert describe(made)["version"] == version - 1
    with SnapshotMap(made, mode="readonly") as m:
        assert (m.version, len(m)) == (version - 1, describe(made)["entries"])


@pytest.mark.parametrize("part", ["check", "node", "records"])
@pytest.mark.parametrize("durability", ["process", "power"])
def test_r24_a_delta_that_the_power_cut_has_torn(part, durability, path, monkeypatch):
    raw.fill(path, monkeypatch, durability=durability)
    shared = raw.Shared(path)
    batch = shared.batches[-1]
    sync.other_boot(sync.sync(raw.manifest(path)))
    sync.other_boot(shared.delta)
    at = {"check": batch.at, "node": batch.at + raw.BATCH, "records": batch.first}[part]
    sync.poke(shared.delta, at, bytes(16))
    found = [f for f in verify(path) if f.where == os.path.basename(shared.delta)]
    if part == "node":
        assert [f.severity for f in found] == ["note"], found
        assert "1 nodes are not what was written" in found[0].what
        return
    with pytest.raises(CorruptionError) if durability == "power" else SnapshotMap(path, mode="readonly") as m:
        if durability == "power":
            SnapshotMap(path, mode="readonly")
        else:
            entries = len(m)
    if durability == "power":
        raw.says(found, "error", shared.delta, f"at byte {batch.at}")
    else:
        assert [f.severity for f in found] == ["warning"], found
        assert f"{shared.end - batch.at} bytes of commits are lost" in found[0].what
        assert f"of {entries} entries" in found[0].what
        assert errors(path) == []


# ---- what happens meanwhile ----------------------------------------------------------------------------------------


def test_r34_files_that_are_removed_before_they_are_opened(made, monkeypatch):
    """The manifest is read once more; and what was opened is not lost."""
    reads = 0

    def after(folder: str) -> _snapshot.Reading:
        nonlocal reads
        reading = _snapshot.read_manifest(folder)
        reads += 1
        if reads in (2, 4):
            with SnapshotMap(folder) as m:
                commit(m, {"common/new": reads})
                m.compact()
        return reading

    monkeypatch.setattr(_snapshot_check, "read_manifest", after)
    assert verify(made) == []
    assert reads > 4
    monkeypatch.undo()
    assert verify(made) == []


@pytest.mark.parametrize("which", ["layer", "delta"])
def test_r9_a_file_that_is_cut_while_it_is_looked_at(which, made, monkeypatch):
    layers, delta = raw.named(made)
    file = layers[0] if which == "layer" else delta
    assert file is not None
    module, name = (_snapshot_layer, "check_blocks") if which == "layer" else (_snapshot_delta, "check_chains")
    look = getattr(module._Check, name)

    def cut(self: object) -> None:
        os.truncate(file, 8192)
        look(self)

    monkeypatch.setattr(module._Check, name, cut)
    raw.says(verify(made), "error", file, "changed while it was read")
    monkeypatch.undo()
    raw.says(verify(made), "error", file, "has 8192 bytes")


# ---- beside others -------------------------------------------------------------------------------------------------

BUSY = """
    import itertools, random
    import mmapds._snapfiles
    mmapds._snapfiles.DELTA_BUCKETS = 8
    rng = random.Random(int(sys.argv[2]))
    with mmapds.SnapshotMap(sys.argv[1]) as m:
        m._files.delta_size = 1 << 14
        say("on")
        for number in itertools.count():
            with m.transaction() as txn:
                for _ in range(rng.randrange(1, 12)):
                    key = f"k{rng.randrange(300)}"
                    if rng.random() < 0.3:
                        txn.pop(key, None)
                    else:
                        txn.set(key, "v" * rng.randrange(100), ttl=rng.choice((None, None, 0.001)))
            if number % 50 == 49:
                m.compact()
"""


def test_r1_beside_a_writer_and_after_its_death(path, start: Callable[..., Peer]):
    """What it does is never taken for damage; and what its death leaves is not either."""
    for turn in range(2):
        peer = start(BUSY, path, turn)
        peer.expect("on")
        until = time.monotonic() + 0.5
        looks = 0
        while time.monotonic() < until or not looks:
            assert [f for f in verify(path) if f.severity != "note"] == []
            describe(path)
            looks += 1
        peer.kill()
        assert [f for f in verify(path) if f.severity != "note"] == []
        with SnapshotMap(path) as m:
            commit(m, {"k0": turn})
            assert verify(path) == []
