"""Queues whose files are not what was written: damaged, hostile, or something else altogether (rows 14 to 17, 31)."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
import queuefiles
from peers import Peer

from mmapds import CorruptionError, IncompatibleFormat, MmapdsError, Queue

SEGMENT = 8192
ITEMS = [b"%d" % n + bytes([n]) * (n % 40) for n in range(150)]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """150 items in three segments: 20 are taken, some of the next are claimed and returned, the rest is as it was put."""
    path = str(tmp_path / "queue")
    with Queue(path, codec="raw", segment_size=SEGMENT) as q:
        q.put_many(ITEMS)
        assert q.get_many(20) == ITEMS[:20]
        claims = q.claim_many(20)
        for claim in claims[::2]:
            claim.nack(0)
        claims[1].nack(0.001, to_back=True)
        queuefiles.check(path)
    return path


WHOLE = [ITEMS[n] for n in range(20, 150) if n != 21] + [ITEMS[21]]


def drain(q: Queue) -> tuple[list[bytes], int]:
    """What comes, and how many errors; it must come to an end."""
    found, errors = [], 0
    for _ in range(1000):
        try:
            found.append(q.get_nowait())
        except Empty:
            return found, errors
        except MmapdsError:
            errors += 1
    raise AssertionError(f"it never becomes empty: {errors} errors, {len(found)} items")


def in_order(found: list[bytes]) -> bool:
    """Only what was put, in its order, nothing twice."""
    places = [WHOLE.index(item) for item in found]
    return places == sorted(set(places))


# ---- row 15: flipped bits ------------------------------------------------------------------------------------------


def test_r15_any_bit_of_a_header_that_never_changes(path: str) -> None:
    choose = random.Random(15)
    name = queuefiles.meta(path)
    for bit in choose.sample(range(queuefiles.ORIGIN * 8), 400):
        queuefiles.flip(name, bit)
        for mode in ("shared", "readonly", "private"):
            with pytest.raises((CorruptionError, IncompatibleFormat)):
                Queue(path, mode=mode)  # type: ignore[arg-type]
        queuefiles.flip(name, bit)
    with Queue(path) as q:
        assert drain(q) == (WHOLE, 0)


def test_r15_any_bit_of_a_segments_header(path: str) -> None:
    content = queuefiles.content(path)
    choose = random.Random(15)
    for boot in (False, True):
        for bit in choose.sample(range(queuefiles.ORIGIN * 8), 40):
            queuefiles.restore(path, content, in_place=True)
            queuefiles.flip(queuefiles.segment(path, 2), bit)
            if boot:
                queuefiles.other_boot(path)
            with Queue(path) as q:
                found, errors = drain(q)
                assert in_order(found), (bit, boot, found)
                assert errors or boot, (bit, boot, len(found))
                assert len(found) < len(WHOLE)
                assert found[-2:] == WHOLE[-2:] or found[-1] == WHOLE[-2], "what is behind it must not be blocked"
                assert boot is False or q.stats()["set_aside"] > 0
                q.put(b"more")
                assert q.get() == b"more"


@pytest.mark.parametrize("boot", [False, True])
def test_r15_flipped_bits_in_segments(path: str, boot: bool) -> None:
    """The right value, or an error, and what is behind it."""
    content = queuefiles.content(path)
    choose = random.Random(15)
    last = max(queuefiles.segments(path))
    end = queuefiles.Snapshot(path).words["tail"] - last * SEGMENT
    spoilt = 0
    for _ in range(150):
        queuefiles.restore(path, content, in_place=True)
        number = choose.choice(queuefiles.segments(path))
        byte = choose.randrange(4096, end if number == last else SEGMENT)
        queuefiles.flip(queuefiles.segment(path, number), 8 * byte + choose.randrange(8))
        if boot:
            queuefiles.other_boot(path)
        message = f"byte {byte} of segment {number}"
        with Queue(path, mode="readonly") as q:
            assert set(q) <= set(WHOLE) | (set(ITEMS) if boot else set()), message
        with Queue(path) as q:
            found, errors = drain(q)
            stats = q.stats()
            done = set(ITEMS[:20])
            if boot:  # that an item was done may be what the flipped bit has said
                found = [item for item in found if item not in done]
            assert set(found) <= set(WHOLE), message
            assert len(set(found)) == len(found), f"{message}: something came twice"
            assert boot or in_order(found), message
            assert len(found) >= len(WHOLE) - 1, f"{message}: {len(WHOLE) - len(found)} items are gone; {stats}"
            assert len(found) == len(WHOLE) or stats["set_aside"] + stats["cut"] > 0, f"{message}; {stats}"
            assert errors <= 1, message
            spoilt += len(found) < len(WHOLE)
            q.put(b"more")
            assert q.get() == b"more"
    assert spoilt > 20, spoilt


def test_r15_flipped_bits_in_meta(path: str) -> None:
    """Control words and the index have no checksums: an error, or what was put, and it never hangs or dies."""
    content = queuefiles.content(path)
    choose = random.Random(15)
    used = queuefiles.ENTRIES + queuefiles.ENTRY * queuefiles.Snapshot(path).words["used"]
    bits = [
        *(8 * at + bit for at in queuefiles.WORDS.values() for bit in (0, 1, 5, 13, 33, 62, 63)),
        *(8 * choose.randrange(queuefiles.SLOTS, queuefiles.SLOTS + 128) + choose.randrange(8) for _ in range(40)),
        *(8 * choose.randrange(queuefiles.ENTRIES, used) + choose.randrange(8) for _ in range(150)),
    ]
    check_damaged_meta(path, content, [lambda p, bit=bit: queuefiles.flip(p, bit) for bit in bits], bits)


DRAIN = """
from queue import Empty, Full
def use(path):
    '''What came; everything that can be asked for is asked for.'''
    signal.alarm(60)
    found, errors = [], []
    try:
        with mmapds.Queue(path, mode="readonly") as q:
            list(q), q.qsize(), q.stats()
    except mmapds.MmapdsError as error:
        errors.append(str(error))
    try:
        q = mmapds.Queue(path)
    except mmapds.MmapdsError as error:
        signal.alarm(0)
        return found, errors + [str(error)]
    with q:
        for what in ("q.put(b'new', timeout=0.01)", "q.claim(0).ack()", "q.claim(0).nack()", "q.stats()", "list(q)", "q.check()"):
            try:
                exec(what)
            except (mmapds.MmapdsError, Empty, Full, OverflowError) as error:
                errors.append(f"{what}: {error}")
        for _ in range(400):
            try:
                found.append(q.get_nowait())
            except Empty:
                break
            except mmapds.MmapdsError as error:
                errors.append(str(error))
                if len(errors) > 200:
                    break
    signal.alarm(0)
    return found, errors
"""


def check_damaged_meta(
    path: str, content: dict[str, bytes], damages: list[Callable[[str], None]], names: list[Any]
) -> None:
    with Peer(DRAIN, path=path) as peer:
        for damage, name in zip(damages, names, strict=True):
            for boot in (False, True):
                queuefiles.restore(path, content, in_place=True)
                damage(queuefiles.meta(path))
                if boot:
                    queuefiles.other_boot(path)
                try:
                    found, errors = peer("use(path)")
                except Exception as error:
                    raise AssertionError(f"{name}, {boot}: {error}; {peer.stderr()}") from error
                wrong = set(found) - set(ITEMS) - {b"new"}
                assert not wrong, f"{name}: {wrong}"
                twice = len(found) - len(set(found))
                assert not twice or errors, f"{name}: {twice} items came twice, and nobody said anything"
                if boot:  # nothing of it is believed
                    assert len(found) >= len(WHOLE) - 1, f"{name}, on the next boot: {len(found)} items; {errors}"


# ---- row 16: hostile words -----------------------------------------------------------------------------------------

HOSTILE = [
    1,
    2,
    7,
    4095,
    4096,
    8191,
    1 << 20,
    (1 << 31) - 1,
    1 << 32,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 8,
    (1 << 64) - 1,
]


@pytest.mark.parametrize("name", [name for name in queuefiles.WORDS if "lock" not in name])
def test_r16_hostile_control_words(path: str, name: str) -> None:
    content = queuefiles.content(path)
    at = queuefiles.WORDS[name]
    values = HOSTILE if name in ("head", "tail", "used", "capacity", "free", "logged") else HOSTILE[::4] + HOSTILE[-1:]
    check_damaged_meta(
        path, content, [lambda p, value=value: queuefiles.poke_word(p, at, value) for value in values], values
    )


def test_r16_hostile_entries_and_slots(path: str) -> None:
    """References out of range, to themselves, in circles; positions and sizes that are none."""
    content = queuefiles.content(path)
    live = queuefiles.Snapshot(path).live()
    choose = random.Random(16)
    damages, names = [], []
    for field in range(7):  # 64-bit words
        for value in choose.sample(HOSTILE, 4):
            entry = choose.choice(live).number
            at = queuefiles.ENTRIES + (entry - 1) * queuefiles.ENTRY + 8 * field
            damages.append(lambda p, at=at, value=value: queuefiles.poke_word(p, at, value))
            names.append((entry, field, value))
    for half in range(10):  # 32-bit references
        for value in (0, 1, choose.choice(live).number, 83, 85, 1 << 31, (1 << 32) - 1):
            entry = choose.choice(live).number
            at = queuefiles.ENTRIES + (entry - 1) * queuefiles.ENTRY + 56 + 4 * half
            damages.append(lambda p, at=at, value=value: queuefiles.poke(p, at, struct.pack("<I", value)))
            names.append((entry, f"half {half}", value))
    for field in range(4):
        for value in choose.sample(HOSTILE, 4):
            at = queuefiles.SLOTS + 8 * field
            damages.append(lambda p, at=at, value=value: queuefiles.poke_word(p, at, value))
            names.append(("slot", field, value))
    check_damaged_meta(path, content, damages, names)


def test_r16_a_hostile_undo_log(path: str) -> None:
    """Of an owner that died; it must not write outside of what it may."""
    content = queuefiles.content(path)
    damages, names = [], []
    for offset in (0, 8, 32, 2048, 4096, 4099, 4232, 8192, 12288, 81912, 81920, 1 << 20, 1 << 40, (1 << 64) - 8):
        for logged in (1, 256, 257, (1 << 64) - 1):

            def damage(p: str, offset: int = offset, logged: int = logged) -> None:
                queuefiles.poke(p, queuefiles.UNDO, struct.pack("<2Q", offset, 1 << 63) * min(logged, 256))
                queuefiles.poke_word(p, queuefiles.WORDS["logged"], logged)
                queuefiles.poke_word(p, queuefiles.WORDS["take_lock"], 0x123456789ABC0 << 3)

            damages.append(damage)
            names.append((offset, logged))
    check_damaged_meta(path, content, damages, names)


def write_record(path: str, number: int, at: int, words: tuple[int, ...], payload: bytes = b"") -> None:
    """A record with a right check, as a hostile writer would make it; `words`: hash, order, extent, born."""
    key = queuefiles.Snapshot(path).key
    check = queuefiles.item_check(words, number * SEGMENT + at, key)
    state = queuefiles.item_state(1, 0, (0, 0, 0), number * SEGMENT + at, key)
    queuefiles.poke(
        queuefiles.segment(path, number), at, struct.pack("<9Q", check, *words[:4], state, 0, 0, 0) + payload
    )


@pytest.mark.parametrize("size", [4024, 4096, 8192, 1 << 31, (1 << 40) - 1, (1 << 40) - 8])
@pytest.mark.parametrize("boot", [False, True])
def test_r16_hostile_lengths(tmp_path: Path, size: int, boot: bool) -> None:
    path = str(tmp_path / "queue")
    with Queue(path, codec="raw", segment_size=SEGMENT) as q:
        q.put(b"1")
        q.put(b"2")
    write_record(path, 1, 4096, (0, 0 << 8, size | 1 << 40, 5))
    if boot:
        queuefiles.other_boot(path)
    with Queue(path) as q:
        found, errors = drain(q)
        assert found == ([b"2"] if size > 4024 else []), (found, errors)
        assert errors == (0 if boot else 1)


@pytest.mark.parametrize("sequence", [0, 1, 3, (1 << 56) - 1])
def test_r16_hostile_sequences(tmp_path: Path, sequence: int) -> None:
    path = str(tmp_path / "queue")
    with Queue(path, codec="raw", segment_size=SEGMENT) as q:
        for n in range(5):
            q.put(b"%d" % n)
    record = queuefiles.Snapshot(path).record(SEGMENT + 4096 + 2 * 80)
    assert record is not None
    hash_ = struct.unpack("<Q", queuefiles.peek(queuefiles.segment(path, 1), 4096 + 160 + 8))[0]
    write_record(path, 1, 4096 + 160, (hash_, sequence << 8, 1 | 1 << 40, 5), b"2")
    content = queuefiles.content(path)
    for boot in (False, True):
        queuefiles.restore(path, content, in_place=True)
        if boot:
            queuefiles.other_boot(path)
        with Queue(path) as q:
            found, _errors = drain(q)
            assert found[:2] == [b"0", b"1"]
            assert set(found) <= {b"0", b"1", b"2", b"3", b"4"}
            assert len(set(found)) == len(found)
            assert boot or found[-1] == b"4"


def test_r15_one_corrupt_item_blocks_nobody(path: str) -> None:
    """Claims, batches and returned items too."""
    content = queuefiles.content(path)
    found = queuefiles.Snapshot(path)
    plain = list(found.plain())
    held = [found.held_record(e) for e in found.live() if queuefiles.KINDS[e.kind] == "waiting"]
    for record in (plain[0], plain[5], plain[-1], held[0], held[-1]):
        for where in (0, 30, 72):  # the check, the extent, the payload
            for take in ("get", "claim", "get_many", "claim_many"):
                queuefiles.restore(path, content, in_place=True)
                number = record.position // SEGMENT
                queuefiles.flip(queuefiles.segment(path, number), 8 * (record.position - number * SEGMENT + where))
                with Queue(path) as q:
                    items, errors = [], 0
                    for _ in range(300):
                        try:
                            if take == "get_many":
                                items += q.get_many(7, timeout=0)
                            elif take == "get":
                                items.append(q.get_nowait())
                            else:
                                for claim in [q.claim(0)] if take == "claim" else q.claim_many(7, timeout=0):
                                    items.append(claim.item)
                                    claim.ack()
                        except Empty:
                            break
                        except CorruptionError:
                            errors += 1
                    message = f"{take}, byte {where} of {record}: {errors} errors"
                    assert items == [item for item in WHOLE if item != record.payload], message
                    assert errors == 1 or take.endswith("many"), message
                    assert q.stats()["set_aside"] == 1, message
                    assert len(os.listdir(Path(path, "quarantine"))) == 1, message
                    assert q.join(0) or take.startswith("get"), message
                queuefiles.check(path)


# ---- rows 14 and 17: something else --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "content"),
    [(0, b"?"), (8, b"\x0a\x0b\x0c\x0d"), (12, b"\x63"), (16, b"counters"), (24, b"\xff")],
)
@pytest.mark.parametrize("file", ["meta", "segment"])
def test_r14_another_format_stays_as_it_is(path: str, offset: int, content: bytes, file: str) -> None:
    name = queuefiles.meta(path) if file == "meta" else queuefiles.segment(path, 1)
    queuefiles.poke(name, offset, content)
    queuefiles.seal(name)
    before = queuefiles.content(path)
    if file == "meta":
        for mode in ("shared", "readonly", "private"):
            with pytest.raises(MmapdsError) as caught:
                Queue(path, mode=mode)  # type: ignore[arg-type]
            assert "meta" in str(caught.value)
            assert isinstance(caught.value, IncompatibleFormat), caught.value
        assert queuefiles.content(path) == before
        return
    with Queue(path, mode="readonly") as q, contextlib.suppress(IncompatibleFormat):
        assert set(q) <= set(WHOLE)
    assert queuefiles.content(path)[os.path.basename(name)] == before[os.path.basename(name)]


def test_r14_a_segment_of_another_queue(path: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    with Queue(other, codec="raw", segment_size=SEGMENT) as q:
        q.put_many(ITEMS)
    for number in (2, 3):
        Path(queuefiles.segment(path, number)).write_bytes(Path(queuefiles.segment(other, number)).read_bytes())
    with Queue(path) as q:
        found, errors = drain(q)
        assert errors
        assert set(found) < set(WHOLE), "items of another queue were handed out"
        foreign = Path(queuefiles.segment(other, 2)).read_bytes()
    kept = [Path(p, f) for p, _, names in os.walk(path) for f in names]
    assert foreign in [file.read_bytes() for file in kept], "it was removed"


@pytest.mark.parametrize("kind", ["empty", "short", "long", "directory", "fifo", "symlink", "device"])
@pytest.mark.parametrize("file", ["meta", "segment"])
def test_r17_the_wrong_kind_of_file(path: str, kind: str, file: str) -> None:
    name = queuefiles.meta(path) if file == "meta" else queuefiles.segment(path, 2)
    content = Path(name).read_bytes()
    os.unlink(name)
    if kind == "empty":
        Path(name).touch()
    elif kind == "short":
        Path(name).write_bytes(content[:5000])
    elif kind == "long":
        Path(name).write_bytes(content + bytes(5000 if file == "segment" else 0))
        if file == "meta":
            queuefiles.poke_word(name, queuefiles.WORDS["capacity"], 10_000)
    elif kind == "directory":
        os.mkdir(name)
    elif kind == "fifo":
        os.mkfifo(name)
    elif kind == "symlink":
        Path(path + "-elsewhere").write_bytes(content)
        os.symlink(path + "-elsewhere", name)
    else:
        if os.geteuid():
            pytest.skip("needs root, to make a device")
        try:
            os.mknod(name, 0o600 | 0o020000, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("devices may not be made here")
    with Peer(DRAIN, path=path) as peer:
        if file == "meta" and kind in ("short", "long"):  # another inode: a copy, and what a copy says is not believed
            found, errors = peer("use(path)")
            assert len(found) >= len(WHOLE) - 1 or errors, (len(found), errors)
            assert set(found) <= set(WHOLE) | {b"new"}
        elif file == "meta":
            for mode in ("shared", "readonly"):
                error, message = peer.fails(f"signal.alarm(30); mmapds.Queue(path, mode={mode!r}).stats()")
                assert error in ("IncompatibleFormat", "CorruptionError", "OSError", "IsADirectoryError"), message
                assert "meta" in message
            assert kind == "directory" or os.path.lexists(name)
        else:
            found, errors = peer("use(path)")
            assert set(found) <= set(WHOLE) | {b"new"}
            assert errors
            assert b"new" in found or any("new" in error for error in errors), (found[-3:], errors)


@pytest.mark.parametrize("kind", ["file", "fifo", "symlink", "other files"])
def test_r17_the_wrong_kind_of_thing_at_the_path(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "queue"
    if kind == "file":
        path.write_bytes(b"something")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "other files":
        path.mkdir()
        (path / "letter.txt").write_text("hello")
    else:
        os.symlink(tmp_path / "nowhere", path)
    before = os.lstat(path)
    with Peer("signal.alarm(30)", path=str(path)) as peer:
        error, _ = peer.fails("mmapds.Queue(path)")
        assert error in ("IncompatibleFormat", "NotADirectoryError", "FileExistsError", "FileNotFoundError", "OSError")
    assert os.lstat(path) == before
    assert kind != "other files" or os.listdir(path) == ["letter.txt"]


# ---- row 31: pickles -----------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/never-touched-by-mmapds",)


def test_r31_pickles_are_not_loaded_unless_asked_for(tmp_path: Path) -> None:
    path = str(tmp_path / "queue")
    with Queue(path, codec="raw") as q:
        q.put(pickle.dumps(Evil()))
    data = pickle.dumps(Evil())
    path = str(tmp_path / "default")
    with Queue(path, segment_size=SEGMENT) as q:
        q._put_payload(data, 0)
        q._put_payload(data, 0)
        q.put("fine")
        before = set(os.listdir("/tmp"))
        with pytest.raises(CorruptionError):
            q.get_nowait()
        with pytest.raises(CorruptionError):
            q.claim(0)
        assert q.get_nowait() == "fine"
        assert "never-touched-by-mmapds" not in set(os.listdir("/tmp")) - before
        with pytest.raises((MmapdsError, ValueError)):
            Queue(path, codec="pickle")
