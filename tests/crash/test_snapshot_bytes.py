"""Snapshot maps whose files are cut, replaced, damaged or hostile (rows 9, 14, 15, 16, 17 and 19)."""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import snapdisk
import syncfiles
from peers import Peer, PeerError

from mmapds import CorruptionError, IncompatibleFormat, MappingLost, MmapdsError, SnapshotMap

Damages = list[tuple[str, Callable[[], object]]]
HOSTILE = [
    0, 1, 7, 8, 4095, 4096, 4104, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63,
    (1 << 64) - 8, (1 << 64) - 1,
]  # fmt: skip
VALUES = {f"k{n:04}": (b"%d." % n).ljust(200, b"-") for n in range(1000)} | {"large": b"x" * 100_000}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two layers, the newer one with something that is gone, and a delta of several batches."""
    monkeypatch.setattr("mmapds._snapfiles.DELTA_SIZE", 65536)
    monkeypatch.setattr("mmapds._snapfiles.DELTA_BUCKETS", 64)
    path = str(tmp_path / "map")
    keys = list(VALUES)
    SnapshotMap.build(
        path, {key: VALUES[key] for key in keys[:700]} | {"gone": b"gone", "large": b"x"}, codec="raw", metadata=1
    )
    with SnapshotMap(path) as m:
        with m.transaction() as t:
            t.update({key: VALUES[key] for key in keys[700:]})
            del t["gone"]
        for n in range(0, 50, 10):
            with m.transaction() as t:
                t.update({key: VALUES[key] for key in keys[n : n + 10]})
    found = snapdisk.check(path)
    assert len(found.manifest.layers) in (1, 2), found.manifest
    assert found.manifest.delta, found.manifest
    return path


# Everything that a reader may do with a map whose files are not what they should be; each of it may fail, and none may
# give what is not there. Run in a process of its own, which must neither die nor hang.
USE = """
import random
signal.alarm(100)

def use(path, values, mode, verify):
    '''What went wrong, and how many values were wrong.'''
    errors, wrong = [], []
    def attempt(job):
        try:
            job()
        except (mmapds.MmapdsError, OSError) as error:
            errors.append(type(error).__name__)
    def expect(key, value):
        if values.get(key) != value:
            wrong.append(key)
    def walk(pairs):
        found = list(pairs)
        for key, value in found:
            expect(key, value)
        if len(found) != len(values):
            wrong.append(f"{len(found)} of {len(values)}")
    def writing():
        with m.transaction() as t:
            t["new"] = b"new"
            t.pop("new")
            t["k0003"] = values["k0003"]
    try:
        m = mmapds.SnapshotMap(path, mode=mode, verify=verify)
    except (mmapds.MmapdsError, OSError) as error:
        return [type(error).__name__], []
    try:
        for key in (*list(values)[::7], "large", "gone", "absent", ""):
            attempt(lambda: expect(key, m.get(key)))
        attempt(lambda: [expect(key, value) for key, value in m.get_many(list(values)).items()])
        attempt(lambda: walk(m.items()))
        attempt(lambda: walk(reversed(m.items())))
        attempt(lambda: [expect(key, value) for key, value in m.range("k05", "k07")])
        attempt(lambda: [expect(key, value) for key, value in m.prefix("k02", reverse=True)])
        attempt(lambda: m.prefetch(start="k05", stop="k07"))
        attempt(lambda: m.prefetch(list(values)[:50]))
        attempt(lambda: expect("k0001", bytes(m.get_view("k0001"))))
        attempt(lambda: (m.metadata, m.stats(), len(m), m.refresh()))
        attempt(m.verify)
        if mode == "shared":
            attempt(writing)
            attempt(m.compact)
            attempt(lambda: walk(m.items()))
    finally:
        m.close()
    return sorted(set(errors)), wrong
"""


@pytest.fixture
def user() -> Iterator[Peer]:
    with Peer(USE, values=VALUES) as peer:
        yield peer


def check_damaged(path: str, user: Peer, damages: Damages, *, never_wrong: bool) -> None:
    """After each of them: an error, or the right values (when everything is verified, for certain), and no death."""
    content = snapdisk.content(path)
    failures = []
    for name, damage in damages:
        for mode, verify in (("readonly", True), ("readonly", False), ("shared", True)):
            snapdisk.restore(path, content, in_place=True)
            damage()
            message = f"{name}, {mode}, verify={verify}"
            try:
                errors, wrong = user("use(path, values, mode, verify)", path=path, mode=mode, verify=verify)
            except PeerError as error:
                failures.append(f"{message}: {error.name}: {error.message}")
                continue
            except Exception as error:
                raise AssertionError(f"{message}: {error}; {user.stderr()}") from error
            if verify and never_wrong and wrong:
                failures.append(f"{message}: wrong without a word: {wrong[:5]}; errors {errors}")
    assert not failures, f"{len(failures)} failures:\n" + "\n".join(failures[:40])
    snapdisk.restore(path, content, in_place=True)


def files(path: str) -> list[str]:
    return [*snapdisk.layers(path), snapdisk.delta(path)]


# ---- row 15 --------------------------------------------------------------------------------------------------------


def test_r15_any_bit_of_a_header(path: str) -> None:
    choose = random.Random(15)
    for file in [*files(path), os.path.join(path, "manifest_sync")]:
        for bit in choose.sample(range(snapdisk.ORIGIN * 8), 60):
            syncfiles.flip(file, bit)
            for mode in ("readonly", "shared", "private"):
                with pytest.raises((CorruptionError, IncompatibleFormat)):
                    SnapshotMap(path, mode=mode)  # type: ignore[arg-type]
            syncfiles.flip(file, bit)
    with SnapshotMap(path) as m:
        assert dict(m) == VALUES


@pytest.mark.parametrize("count", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_r15_flipped_bits_anywhere(path: str, user: Peer, count: int) -> None:
    choose = random.Random(15)
    damages: Damages = []
    end = snapdisk.read_manifest(path).delta_end
    every = [
        *files(path),
        *(os.path.join(path, f"manifest_data_{n}") for n in (0, 1)),
        os.path.join(path, "manifest_sync"),
    ]
    for n in range(count):
        file = every[n % len(every)]
        stop = end if file.endswith("delta") else min(os.path.getsize(file), 8192 if "manifest" in file else 1 << 40)
        bit = choose.randrange(8 * 4096, 8 * stop)
        damages.append((f"bit {bit} of {os.path.basename(file)}", partial(syncfiles.flip, file, bit)))
    check_damaged(path, user, damages, never_wrong=True)


def test_r15_a_merge_does_not_make_damage_look_whole(path: str) -> None:
    """What is merged is checked before, by whoever does it."""
    for file in files(path):
        content = snapdisk.content(path)
        data = Path(file).read_bytes()
        at = data.rindex(
            VALUES["k0005"]
            if file.endswith("delta")
            else VALUES["k0900"]
            if VALUES["k0900"] in data
            else VALUES["k0600"]
        )
        syncfiles.poke(file, at + 50, b"?")
        with SnapshotMap(path) as m, pytest.raises(CorruptionError):
            m.compact()
        with pytest.raises(CorruptionError), SnapshotMap(path, mode="readonly", verify=True) as m:
            m.verify()
        snapdisk.restore(path, content, in_place=True)


# ---- row 16 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_r16_hostile_headers(path: str, user: Peer, every: int) -> None:
    damages: Damages = []
    for file in (snapdisk.layers(path)[0], snapdisk.delta(path)):
        size = os.path.getsize(file)
        damages += [
            (
                f"option {option} of {os.path.basename(file)} is {value}",
                partial(snapdisk.poke_option, file, option, value),
            )
            for option in range(1, 14 if file.endswith("layer") else 4)
            for value in (*HOSTILE, size, size - 8)
        ]
    check_damaged(path, user, damages[::every], never_wrong=False)


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_r16_hostile_guides_tables_and_records(path: str, user: Peer, every: int) -> None:
    """With sums that are right: nothing but the bounds protects who reads."""
    choose = random.Random(16)
    damages: Damages = []
    for file in snapdisk.layers(path):
        data = Path(file).read_bytes()
        o = dict(zip(snapdisk.LAYER_OPTIONS, struct.unpack_from("<14Q", data, snapdisk.OPTIONS), strict=True))
        records = []
        at = 4096
        while at < o["end"]:
            records.append(at)
            at = snapdisk.parse(data, at, o["end"])[1]
        places = [
            *(("guide", o["guide"] + 16 * choose.randrange(o["guides"]) + 8 * (n % 2)) for n in range(6)),
            *(("table", o["table"] + 8 * choose.randrange(8 * o["buckets"])) for n in range(6)),
            *(("record", choose.choice(records) + choose.choice((0, 8))) for n in range(6)),
            ("first record", 4096), ("last record", records[-1]),
        ]  # fmt: skip
        tag = struct.unpack_from("<Q", data, o["table"] + 64)[0] & 0xFFFF
        for what, at in places:
            for value in (
                *choose.sample(HOSTILE, 4),
                (o["end"] - 8) // 8 << 16 | tag,
                0xFFFFFFFFFFFF << 16 | tag,
                o["end"] - 8,
            ):

                def damage(file: str = file, at: int = at, value: int = value) -> None:
                    syncfiles.poke_word(file, at, value)
                    snapdisk.reseal(file)

                damages.append((f"{what} at {at} of {os.path.basename(file)} is {value:#x}", damage))
    check_damaged(path, user, damages[::every], never_wrong=False)


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_r16_hostile_deltas(path: str, user: Peer, every: int) -> None:
    """Heads, nodes, batches: out of range, to themselves, in circles, changed lengths."""
    file, end = snapdisk.delta(path), snapdisk.read_manifest(path).delta_end
    data = Path(file).read_bytes()
    found = list(snapdisk.batches(data, end, file))
    nodes = [node for _, _, _, records in found for node, _, _, _ in records]
    start = found[0][2] - struct.unpack_from("<Q", data, 8192 + 4 * 64 + 16)[0]
    links = [0, 1, 8192 // 8, nodes[0] // 8, nodes[-1] // 8, end // 8, 65536 // 8 - 1, 1 << 31, (1 << 32) - 1]
    damages: Damages = [
        (f"u32 at {at} is {value}", partial(syncfiles.poke, file, at, struct.pack("<I", value)))
        for at in (8192, 8192 + 4 * 7, *nodes[::17], *(node + 4 for node in nodes[::17]))
        for value in (*links, at // 8)
    ]
    records = start + 64 + 16 * len(found[0][3])
    damages += [
        (f"word at {at} is {value:#x}", partial(syncfiles.poke_word, file, at, value))
        for at in (4096, *range(start, start + 48, 8), records, records + 8)
        for value in HOSTILE
    ]
    check_damaged(path, user, damages[::every], never_wrong=True)


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_r16_hostile_manifests(path: str, user: Peer, every: int) -> None:
    """With checksums that are right."""
    import xxhash

    prefix = snapdisk.prefix(path)
    version = syncfiles.sequence(prefix)
    record, file = syncfiles.record(prefix, version & 1), syncfiles.data(prefix, version & 1)

    def damage(at: int, value: int) -> None:
        syncfiles.poke_word(file, 4096 + at, value)
        content = syncfiles.peek(file, 4096, record.size)
        syncfiles.write_record(prefix, version & 1, version, record.size, xxhash.xxh3_64_intdigest(content))

    damages: Damages = [
        (f"word {at} is {value:#x}", partial(damage, at, value)) for at in range(0, record.size, 8) for value in HOSTILE
    ]
    check_damaged(path, user, damages[::every], never_wrong=False)


# ---- rows 14 and 17 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "content"), [(0, b"?"), (8, b"\x0a\x0b\x0c\x0d"), (12, b"\x63"), (16, b"counters"), (24, b"\xff")]
)
def test_r14_another_format_stays_as_it_is(path: str, offset: int, content: bytes) -> None:
    for file in [*files(path), os.path.join(path, "manifest_sync")]:
        whole = snapdisk.content(path)
        syncfiles.poke(file, offset, content)
        syncfiles.seal(file)
        before = snapdisk.content(path)
        for mode in ("shared", "readonly", "private"):
            with pytest.raises((IncompatibleFormat, CorruptionError)) as caught:
                SnapshotMap(path, mode=mode)  # type: ignore[arg-type]
            assert os.path.basename(file) in str(caught.value)
        assert snapdisk.content(path) == before
        snapdisk.restore(path, whole, in_place=True)


@pytest.mark.parametrize(
    "kind",
    [
        *("short", "fifo", "missing", "of another map"),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("empty", "long", "directory", "symlink")),
    ],
)
def test_r17_the_wrong_kind_of_file(path: str, kind: str) -> None:
    other = path + "-other"
    shutil.copytree(path, other)
    SnapshotMap.build(other, {"other": b"other"})
    for file in files(path):
        content = Path(file).read_bytes()
        os.unlink(file)
        if kind == "empty":
            Path(file).touch()
        elif kind == "short":
            Path(file).write_bytes(content[: len(content) // 2])
        elif kind == "long":
            Path(file).write_bytes(content + bytes(8))
        elif kind == "directory":
            os.mkdir(file)
        elif kind == "fifo":
            os.mkfifo(file)
        elif kind == "symlink":
            Path(path + "-elsewhere").write_bytes(content)
            os.symlink(path + "-elsewhere", file)
        elif kind == "of another map":
            shutil.copy(snapdisk.layers(other)[0], file)
        with Peer("signal.alarm(60)", path=path) as peer:
            for mode in ("readonly", "shared"):
                error, message = peer.fails(f"mmapds.SnapshotMap(path, mode={mode!r})")
                assert error in ("CorruptionError", "IncompatibleFormat", "OSError", "IsADirectoryError"), (
                    error,
                    message,
                )
                assert os.path.basename(file) in message, message
        os.rmdir(file) if kind == "directory" else os.path.lexists(file) and os.unlink(file)
        Path(file).write_bytes(content)
    with SnapshotMap(path, mode="readonly") as m:
        assert dict(m) == VALUES  # copies, verified


@pytest.mark.parametrize("kind", ["file", "fifo", "symlink", "other files"])
def test_r17_the_wrong_kind_of_thing_at_the_path(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "map"
    if kind == "file":
        path.write_bytes(b"something")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "other files":
        path.mkdir()
        (path / "letter.txt").write_text("hello")
    else:
        os.symlink(tmp_path / "nowhere", path)
    before = os.lstat(path)[:4]
    with Peer("signal.alarm(30)", path=str(path)) as peer:
        for code in ("mmapds.SnapshotMap(path)", "mmapds.SnapshotMap.build(path, {'a': 1})"):
            error, _ = peer.fails(code)
            assert error in (
                "IncompatibleFormat",
                "NotADirectoryError",
                "FileExistsError",
                "FileNotFoundError",
                "OSError",
            )
    assert os.lstat(path)[:4] == before
    assert kind != "other files" or os.listdir(path) == ["letter.txt"]


# ---- row 9 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 8200, *(pytest.param(n, marks=pytest.mark.slow) for n in (4096, 8192, 12_345))])
@pytest.mark.parametrize("what", ["layer", "delta", "manifest"])
def test_r09_cut_under_those_who_read(path: str, what: str, size: int) -> None:
    """Zeros in views, an error or the right value everywhere else; others who come later are told."""
    file = {
        "layer": snapdisk.layers(path)[-1],
        "delta": snapdisk.delta(path),
        "manifest": os.path.join(path, "manifest_sync"),
    }[what]
    setup = """
signal.alarm(100)
m = mmapds.SnapshotMap(path, mode=mode, verify=verify)
walk = iter(m.items())
first = [next(walk) for _ in range(3)]
view, held = m.get_view("k0300"), m.snapshot()
walk and None
"""
    for mode, verify in (("readonly", False), ("readonly", True), ("shared", False)):
        content = snapdisk.content(path)
        with Peer(USE, values=VALUES) as peer:
            peer(setup, path=path, mode=mode, verify=verify)
            os.truncate(file, size)
            message = f"{mode}, verify={verify}"
            assert peer("bytes(view) in (values['k0300'], bytes(200)) or sum(view) > 0"), message
            code = """
errors, wrong = set(), []
def attempt(job):
    try:
        return job()
    except (mmapds.MappingLost, mmapds.CorruptionError) as error:
        errors.add(type(error).__name__)
for handle in (m, held):
    for key in values:
        found = attempt(lambda: handle[key])
        if found not in (None, values[key]): wrong.append(key)
    for walked in (handle.items, lambda: reversed(handle.items()), lambda: handle.prefix("k")):
        found = attempt(lambda: list(walked())) or []
        wrong += [key for key, value in found if values[key] != value]
found = attempt(lambda: list(walk)) or []
wrong += [key for key, value in found if values[key] != value]
attempt(held.verify)
if mode == "shared":
    def write():
        with m.transaction() as t: t["k0000"] = values["k0000"]
    attempt(write)
    attempt(m.compact)
attempt(m.refresh)
sorted(errors), wrong[:5]
"""
            errors, wrong = peer(code)
            assert not wrong, f"{message}: {wrong}; {errors}"
            # Behind the manifest's second page are slots, which maps do not use.
            assert errors or (what == "manifest" and size >= 8192), f"{message}: nobody noticed"
            if what != "manifest":
                with pytest.raises((MmapdsError, OSError)):
                    SnapshotMap(path, mode="readonly")
            peer("m.close()")
        snapdisk.restore(path, content, in_place=True)
    with SnapshotMap(path) as m:
        assert dict(m) == VALUES


# ---- row 19 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["removed", "replaced"])
@pytest.mark.parametrize("mode", ["readonly", "shared"])
def test_r19_the_path_is_another_map_by_now(path: str, how: str, mode: Any) -> None:
    """It is noticed at the next refresh or transaction; nothing of the other map is touched."""
    with SnapshotMap(path, mode=mode) as m:
        if mode == "shared":
            with m.transaction() as t:
                t["k0000"] = VALUES["k0000"]
        shutil.rmtree(path)
        if how == "replaced":
            SnapshotMap.build(path, {"other": b"other"}, codec="raw")
            before = snapdisk.content(path)
        assert m["k0001"] == VALUES["k0001"], "what is mapped goes on"
        if mode == "shared":
            for job in (lambda: m.transaction().__enter__(), m.compact):
                with pytest.raises(MappingLost, match="removed or replaced"):
                    job()
        with pytest.raises(MappingLost, match="removed or replaced"):
            m.refresh()
        if how == "replaced":
            assert snapdisk.content(path) == before
    if how == "replaced":
        with SnapshotMap(path) as m:
            assert dict(m) == {"other": b"other"}
