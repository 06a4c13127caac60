"""Files that somebody made on purpose, or changes while they are read (row 16)."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import syncfiles
from peers import Peer
from victims import pattern

from mmapds import CorruptionError, IncompatibleFormat, MmapdsError, Synchronizer

SIZE = 6000
MODES = ["shared", "readonly", "private"]


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """Versions 6 and 7 of a Synchronizer that nobody has open."""
    prefix = str(tmp_path / "value")
    with Synchronizer(prefix, codec="raw") as s:
        for n in range(1, 8):
            s.write_bytes(pattern(n, SIZE))
    return prefix


@pytest.mark.parametrize(
    "size", [2**64 - 1, 2**64 - 4096, 2**64 - 4095, 2**63, 2**63 - 1, 2**39, 2**39 - 1, 8193, 12_288]
)
@pytest.mark.parametrize("verify", [True, False])
def test_r16_lengths_that_reach_beyond_the_file(prefix: str, size: int, verify: bool) -> None:
    """The record's own check is right: somebody made it on purpose."""
    syncfiles.write_record(prefix, 1, 7, size, 0x1234)
    before = syncfiles.snapshot(prefix)
    for mode in MODES:
        with pytest.raises(CorruptionError), Synchronizer(prefix, mode=mode, verify=verify) as s:  # type: ignore[arg-type]
            s.read()
    with Synchronizer(prefix, verify=verify) as s:
        for _ in range(2):
            with pytest.raises(CorruptionError):
                s.read()
        assert syncfiles.pins(prefix) == {}
    assert {name: before[name] for name in ("_data_0", "_data_1")} == {
        name: content for name, content in syncfiles.snapshot(prefix).items() if name != "_sync"
    }


@pytest.mark.parametrize(
    ("offset", "content"), [(72, b"\x02"), (76, b"\xff\xff\xff\xff"), (76, struct.pack("<I", 1681))]
)
def test_r16_header_fields_out_of_range_under_a_right_checksum(prefix: str, offset: int, content: bytes) -> None:
    syncfiles.poke(syncfiles.sync(prefix), offset, content)
    syncfiles.seal(syncfiles.sync(prefix))
    for mode in MODES:
        with pytest.raises((CorruptionError, IncompatibleFormat)):
            Synchronizer(prefix, mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [b"\xff\xfe", b"pickle", b"object:Evil", b"struct:<Z", b"numpy:O", b"\n" * 9, b""])
def test_r16_a_schema_text_that_names_nonsense(prefix: str, text: bytes) -> None:
    syncfiles.poke(syncfiles.sync(prefix), 352, text.ljust(1680, b"\0"))
    syncfiles.poke(syncfiles.sync(prefix), 76, struct.pack("<I", len(text)))
    syncfiles.seal(syncfiles.sync(prefix))
    for mode in MODES:
        with pytest.raises(MmapdsError):
            Synchronizer(prefix, mode=mode)  # type: ignore[arg-type]


# A process that opens and uses files full of random words, and says what happened. A crash of it is what we look for.
FUZZ = """
import collections, random, syncfiles, victims, warnings
def fuzz(seed, count):
    choose = random.Random(seed)
    original = syncfiles.snapshot(prefix)
    words = [0, 1, 2, 5, 6, 7, 8, 9, 4095, 4096, 8192, 2**31, 2**32, 2**39 - 1, 2**39, 2**63 - 1, 2**63, 2**64 - 1]
    outcomes = collections.Counter()
    for _ in range(count):
        syncfiles.restore(prefix, original)
        for _ in range(choose.randrange(1, 5)):
            path = prefix + choose.choice(["_sync", "_sync", "_sync", "_data_0", "_data_1"])
            top = choose.choice([2048, 4096, 4416, 8192 + 1024, 4096 + 6000])
            offset = choose.randrange(choose.choice([0, top // 2]), top)
            size = os.path.getsize(path)
            if choose.random() < 0.1:
                os.truncate(path, choose.choice([0, 4095, 4096, 8192, size // 2, size + 1, size + 100_000]))
            elif choose.random() < 0.5:
                syncfiles.poke_word(path, offset & ~7, choose.choice([*words, choose.getrandbits(64)]))
            else:
                syncfiles.poke(path, offset, choose.randbytes(choose.randrange(1, 40)))
            if choose.random() < 0.8 and os.path.getsize(path) >= 4096:
                syncfiles.seal(path)
        if choose.random() < 0.5 and os.path.getsize(prefix + "_sync") >= 8192:
            syncfiles.write_record(prefix, choose.randrange(2), *choose.choices(words, k=3))
        try:
            mode = choose.choice(["shared", "shared", "readonly", "private"])
            with Synchronizer(prefix, mode=mode, verify=choose.random() < 0.5) as s:
                look = lambda: bytes(s.read().data)
                write = lambda: s.write_bytes(b"new" * choose.randrange(5000), 0.0)
                for call in (look, s.load, write, s.load, write, look, lambda: s.wait(timeout=0), s.check):
                    try:
                        call()
                        outcomes["fine"] += 1
                    except (mmapds.MmapdsError, OverflowError, PermissionError) as error:
                        outcomes[type(error).__name__] += 1
        except (mmapds.MmapdsError, ValueError) as error:
            outcomes["open: " + type(error).__name__] += 1
    syncfiles.restore(prefix, original)
    return dict(outcomes)
"""


def test_r16_files_full_of_random_words_crash_nobody(prefix: str) -> None:
    with Peer(FUZZ, prefix=prefix) as peer:
        outcomes = peer("fuzz(seed, 1500)", seed=16)
    assert outcomes["fine"] > 500, outcomes
    assert outcomes["CorruptionError"] > 50, outcomes
    assert outcomes["open: CorruptionError"] > 20, outcomes


@pytest.mark.parametrize("mode", ["shared", "readonly"])
def test_r16_words_that_change_while_they_are_read(prefix: str, mode: str) -> None:
    """Somebody scribbles sizes, sequences and checks into the mapped file. Values verify, or it is said."""
    scribble = """
import mmap, random, struct, syncfiles
sync = open(syncfiles.sync(prefix), "r+b")
words = mmap.mmap(sync.fileno(), 8192)
identity = words[32:48]
good = words[4096:4288]
records = []
for size in (6000, 1 << 30, 8192, 2**63, 2**64 - 4096, 0):
    check = syncfiles.record_check(identity, 7, size, 99)
    records.append(struct.pack("<4Q", 7, size, 99, check))
def scribble(count):
    choose = random.Random(count)
    for _ in range(count):
        words[4224:4256] = choose.choice(records)
        words[4096:4104] = struct.pack("<Q", choose.choice([7, 7, 7, 6, 5, 0, 2**64 - 1]))
        words[4256:4264] = struct.pack("<Q", choose.getrandbits(64))
        if choose.random() < 0.5:
            words[4096:4288] = good
    words[4096:4288] = good
"""
    read = """
import victims
s = Synchronizer(prefix, mode=mode)
seen = dict(right=0, refused=0)
for _ in range(1_000_000):
    if min(seen.values()) >= 500:
        break
    try:
        with s.read() as r:
            assert victims.number(r.data) == r.version, (r.version, bytes(r.data)[:8])
            assert r.version in (6, 7), r.version
        seen["right"] += 1
    except (mmapds.CorruptionError, mmapds.NotInitialised):
        seen["refused"] += 1
seen["right"], seen["refused"]
"""
    with Peer(scribble, prefix=prefix) as peer, Peer() as reader:
        peer.send("while True: scribble(1000)")
        right, refused = reader(read, prefix=prefix, mode=mode)
        assert right >= 500, "the two did not meet"
        assert refused >= 500, "the two did not meet"
