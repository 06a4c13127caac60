"""`verify` of queues that wait for recovery: what it says is what recovery does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import queuefiles as raw
from findings import errors
from queueitems import fill

from mmapds import Claim, Queue
from mmapds.inspection import Finding, _queue_words, verify

Made = tuple[str, Queue, list[Claim]]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "jobs")


@pytest.fixture
def made(path: str) -> Iterator[Made]:
    """(path, handle, claims): a queue in use with something of everything."""
    with Queue(path, segment_size=8192, max_attempts=3) as q:
        yield path, q, fill(q)


def unchanged(path: str) -> dict[str, tuple[bytes, int]]:
    found = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in found}


def foreign(path: str) -> tuple[Finding, list[Finding]]:
    """The note that the queue waits for recovery, and what else is found."""
    found = verify(path)
    said = [f for f in found if "was last used on another boot" in f.what and "/" not in f.where]
    assert [f.severity for f in said] == ["note"], found
    return said[0], [f for f in found if f not in said]


def test_r24_what_it_says_is_what_recovery_does(made):
    path, q, claims = made
    items = len(q) + len(claims)
    q.close()
    raw.other_boot(path)
    raw.other_boot(os.path.join(path, "dead"))
    before = unchanged(path)
    said, rest = foreign(path)
    assert f"{items} items" in said.what
    assert "epoch 2" in said.what
    assert [(f.severity, f.where) for f in rest] == [("note", "dead/meta")]
    assert _queue_words.claims(path) == []
    assert unchanged(path) == before
    with Queue(path) as again:
        assert len(again) == items
        assert len(again.dead) == 2
        assert verify(path) == []
        assert again.stats()["epoch"] == 2


def test_r24_a_copy(made, tmp_path):
    path, q, claims = made
    items = len(q) + len(claims)
    raw.copy(path, tmp_path / "copy")
    said, _ = foreign(str(tmp_path / "copy"))
    assert f"{items} items" in said.what
    assert verify(path) == []


def test_r24_a_torn_tail_and_a_hole(path):
    with Queue(path, codec="raw", segment_size=8192) as q:
        for number in range(150):
            q.put(b"%03d" % number * 50)
    found = raw.Snapshot(path)
    records = list(found.plain())
    raw.other_boot(path)

    def spoil(record: raw.Record) -> None:
        number = record.position // 8192
        raw.poke(raw.segment(path, number), record.position - number * 8192 + 80, b"\xff\xff\xff\xff")

    spoil(records[-1])
    said, rest = foreign(path)
    assert "149 items" in said.what
    assert [f.severity for f in rest] == ["note"]
    assert "bytes at its end were torn" in rest[0].what
    spoil(records[20])
    spoil(records[21])
    said, rest = foreign(path)
    assert "147 items" in said.what
    assert [f.severity for f in rest] == ["warning", "note"]
    where = f"{records[20].position} to "
    assert where in rest[0].what
    with Queue(path) as q:
        stats = q.stats()
        assert (stats["items"], stats["set_aside"], stats["cut"] > 0) == (147, 2, True)
        found_after = verify(path)
        assert [f.severity for f in found_after] == ["warning", "note", "note"], found_after
        assert "2 items were damaged" in found_after[0].what
        assert {f.where for f in found_after} == {"meta", "quarantine"}


def test_r24_a_file_that_is_no_segment(path):
    with Queue(path, codec="raw", segment_size=8192) as q:
        for _ in range(150):
            q.put(b"x" * 150)
    numbers = raw.segments(path)
    raw.other_boot(path)
    Path(raw.segment(path, numbers[1])).write_bytes(b"nonsense")
    _, rest = foreign(path)
    assert ("warning", os.path.basename(raw.segment(path, numbers[1]))) in [(f.severity, f.where) for f in rest]
    assert errors(path) == []
    os.truncate(raw.meta(path), 5000)
    said, rest = foreign(path)
    assert [f.what for f in rest if "it was cut, and recovery" in f.what]
    with Queue(path) as q:
        assert errors(path) == []
        assert f"with {len(q)} items" in said.what
