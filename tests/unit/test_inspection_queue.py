"""`describe` and `verify` for queues: sound ones, copies, other boots, what deaths leave, and beside who is busy."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import queuefiles as raw
from findings import errors, only
from peers import Peer
from queueitems import fill

from mmapds import Claim, Counters, Empty, Queue, Synchronizer
from mmapds.errors import IncompatibleFormat
from mmapds.inspection import _queue_words, describe, verify

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


def notes(path: str, *texts: str) -> None:
    """Asserts that there are notes with these texts, and nothing else."""
    found = verify(path)
    assert [finding.severity for finding in found] == ["note"] * len(texts), found
    for finding, text in zip(found, texts, strict=True):
        assert text in finding.what, found


# ---- sound ---------------------------------------------------------------------------------------------------------


def test_sound_from_birth_to_the_last_item(path):
    with Queue(path, segment_size=8192) as q:
        assert verify(path) == []
        claims = fill(q)
        assert verify(path) == []
        q.check()
        for claim in claims:
            claim.ack()
            assert errors(path) == []
        while True:
            try:
                q.get_nowait()
            except Empty:
                break
            assert verify(path) == []
        q.purge()
        assert verify(path) == []
    assert verify(path) == []


def test_sound_when_closed_and_nothing_is_changed(made):
    path, q, _ = made
    q.close()
    before = unchanged(path)
    one = os.path.join(path, min(os.listdir(path)))
    assert one.endswith(".segment")
    for form in (path, path + "/", os.fsencode(path), Path(path), raw.meta(path), one):
        assert verify(form) == []
        describe(form)
    assert unchanged(path) == before


@pytest.mark.parametrize("options", [{"codec": "raw"}, {"compress": "zlib:6:10"}, {"durability": "power"}])
def test_sound_with_options(options, path):
    with Queue(path, segment_size=8192, **options) as q:
        for number in range(200):
            q.put(b"text " * (number % 40), delay=number % 2)
        assert verify(path) == []
        q.get_many(50)
        held = q.claim_many(20)
        assert verify(path) == []
        del held
    assert verify(path) == []


def test_in_the_current_directory(made, monkeypatch):
    path = made[0]
    monkeypatch.chdir(path)
    assert verify(".") == []
    assert verify("meta") == []
    assert describe("meta")["kind"] == "queue"


def test_what_has_a_name_of_a_queue_s_file_and_is_another_thing(tmp_path):
    with Counters(tmp_path / "meta") as c:
        c.add("hits")
    assert verify(tmp_path / "meta") == []
    assert describe(tmp_path / "meta")["kind"] == "counters"
    with pytest.raises(IncompatibleFormat):
        verify(tmp_path)
    with Synchronizer(tmp_path / "set") as s:
        s.write(1)
    with Queue(tmp_path / "set"):
        assert describe(tmp_path / "set")["kind"] == "queue"
        assert verify(tmp_path / "set") == []
    (tmp_path / "empty").mkdir()
    for look in (verify, describe):
        with pytest.raises(IsADirectoryError):
            look(tmp_path / "empty")


# ---- described -----------------------------------------------------------------------------------------------------


def test_describe(made):
    path, q, claims = made
    found = describe(path)
    json.dumps(found)
    stats = q.stats()
    assert found["what"] == "queue: what is in it, and who holds what"
    assert (found["path"], found["kind"], found["codec"]) == (raw.meta(path), "queue", "msgpack")
    assert found["options"] == {
        "segment_size": 8192,
        "maxsize": 0,
        "max_bytes": None,
        "max_attempts": 3,
        "compress": None,
    }
    assert (found["in_use"], found["busy"], found["durability_failed"]) == (True, False, False)
    for name in ("items", "delayed", "returned", "claimed", "leased", "epoch", "returns", "buried"):
        assert found[name] == stats[name], name
    assert found["holders"] == [{"slot": 1, "pid": os.getpid(), "alive": True, "claimed": len(claims), "owing": 20}]
    assert found["dead"]["items"] == 2
    assert found["quarantine"] is None
    assert [s["number"] for s in found["segments"]] == raw.segments(path)
    assert describe(raw.meta(path)) == found
    q.close()
    assert describe(path)["in_use"] is False


def test_describe_a_segment(made):
    path, _, _ = made
    numbers = raw.segments(path)
    records = 0
    for number in numbers:
        found = describe(raw.segment(path, number))
        json.dumps(found)
        assert (found["kind"], found["options"]["number"]) == ("segment", number)
        assert (found["start"], found["stop"]) == (number * 8192, (number + found["options"]["units"]) * 8192)
        assert found["parent"] == describe(path)["identity"]
        records += sum(found["records"][state] for state in ("new", "claimed", "returned", "done"))
        assert found["records"]["unknown"] == 0
    assert records == describe(path)["tail_sequence"]
    assert describe(raw.segment(path, numbers[0]))["records"]["first"] == "1-0"


def test_claims(made):
    path, q, claims = made
    found = _queue_words.claims(path)
    assert [claim["id"] for claim in found] == [claim.id for claim in claims]
    assert {(claim["pid"], claim["alive"], claim["attempts"]) for claim in found} == {(os.getpid(), True, 1)}
    leases = [claim["lease"] for claim in found]
    assert all(990 < lease <= 1000 for lease in leases[:3])
    assert leases[3:] == [None] * (len(claims) - 3)
    assert [claim["put_at"] for claim in found] == [claim.put_at for claim in claims]
    q.close()
    assert _queue_words.claims(path) == []


# ---- what deaths leave ---------------------------------------------------------------------------------------------

CLAIMS = """
    q = mmapds.Queue(sys.argv[1])
    held = q.claim_many(3)
    say("holds")
    hear()
"""


def test_r20_a_dead_holder_is_a_note(path, start: Callable[..., Peer]):
    with Queue(path) as q:
        q.put_many(range(10))
        peer = start(CLAIMS, path)
        peer.expect("holds")
        assert verify(path) == []
        assert [(claim["pid"], claim["alive"]) for claim in _queue_words.claims(path)] == [(peer.pid, True)] * 3
        peer.kill()
        only(path, "note", "meta", f"(pid {peer.pid}) died with 3 claims")
        assert {claim["alive"] for claim in _queue_words.claims(path)} == {False}
        assert q.get() == 0
        assert verify(path) == []


def changed_words(before: bytes, after: bytes) -> list[tuple[int, int]]:
    """What a transition changed, as its undo log has it: (offset, value before)."""
    places = [*range(4232, 4864, 8), *range(raw.SLOTS, len(before), 8)]
    return [
        (at, *struct.unpack_from("<Q", before, at))
        for at in places
        if before[at : at + 8] != after[at : at + 8] and at not in (raw.WORDS["changes"], raw.WORDS["logged"])
    ]


@pytest.mark.parametrize("what", ["get", "claim", "ack", "nack", "delay"])
def test_r3_a_transition_that_was_not_finished_is_taken_back(what, made):
    """The next taker takes it back; until then there is nothing wrong with the queue."""
    path, q, claims = made
    items = len(q)
    content = raw.content(path)
    before = content.pop("meta")
    {
        "get": q.get,
        "claim": lambda: claims.append(q.claim()),
        "ack": claims[5].ack,
        "nack": claims[6].nack,
        "delay": lambda: claims[7].nack(50),
    }[what]()
    log = changed_words(before, Path(raw.meta(path)).read_bytes())
    assert log
    assert raw.content(path).keys() - {"meta"} == content.keys()
    for name, data in content.items():
        raw.poke(os.path.join(path, name), 0, data)  # states of records are changed behind the transition
    file = raw.meta(path)
    for number, (offset, value) in enumerate(log):
        raw.poke(file, raw.UNDO + 16 * number, struct.pack("<2Q", offset, value))
    raw.poke_word(file, raw.WORDS["logged"], len(log))
    raw.poke_word(file, raw.WORDS["take_lock"], 77 << 32 | 5)  # nobody has this token
    notes(path, "a process died while it took something", f"{len(log)} words are to be taken back")
    assert describe(path)["items"] == items
    assert Path(file).read_bytes()[raw.WORDS["logged"]] == len(log), "looking has changed it"
    q.get()
    assert verify(path) == []


def test_r2_a_put_that_was_not_finished(path):
    with Queue(path) as q:
        q.put_many(range(5))
        found = raw.Snapshot(path).words
        file = raw.meta(path)
        raw.poke_word(file, raw.WORDS["saved_tail"], found["tail"])
        raw.poke_word(file, raw.WORDS["saved_sequence"], 5)
        raw.poke_word(file, raw.WORDS["tail_sequence"], 6)
        raw.poke_word(file, raw.WORDS["put_lock"], 77 << 32 | 5)
        notes(path, "a process died while it put something")
        q.put(5)
        assert verify(path) == []
        assert q.get_many(10) == [0, 1, 2, 3, 4, 5]


def test_segments_that_nobody_needs(path):
    with Queue(path, segment_size=8192) as q:
        for _ in range(100):
            q.put("x" * 200)
        first = raw.segments(path)[0]
        kept = Path(raw.segment(path, first)).read_bytes()
        for _ in range(60):
            q.get()
        assert first not in raw.segments(path)
        Path(raw.segment(path, first)).write_bytes(kept)
        only(path, "note", os.path.basename(raw.segment(path, first)), "is finished, and was not removed")
        os.unlink(raw.segment(path, first))
        number = raw.segments(path)[-1] + 1
        q._make_segment(number, 1)  # somebody is about to use it
        assert verify(path) == []
        q._make_segment(number + 3, 1)
        only(path, "note", os.path.basename(raw.segment(path, number + 3)), "lies ahead of the tail")
    assert [finding.severity for finding in verify(path)] == ["note", "note"]  # nobody is alive


def test_what_is_no_file_of_a_queue(path):
    with Queue(path) as q:
        q.put(1)
    for name in ("notes.txt", ".meta.0a1b2c3d.tmp", ".0000000000000002.segment.0a1b2c3d.tmp", ".other"):
        Path(path, name).write_text("x")
    found = {finding.where: (finding.severity, finding.what) for finding in verify(path)}
    assert set(found) == {"notes.txt", ".meta.0a1b2c3d.tmp", ".0000000000000002.segment.0a1b2c3d.tmp"}
    assert {severity for severity, _ in found.values()} == {"note"}


# ---- beside others -------------------------------------------------------------------------------------------------

BUSY = """
    import random
    rng = random.Random(int(sys.argv[2]))
    with mmapds.Queue(sys.argv[1]) as q:
        held = []
        say("on")
        while True:
            q.put(b"x" * rng.randrange(300), delay=rng.choice((0, 0, 0, 0.002)))
            try:
                q.get_nowait() if rng.random() < 0.7 else held.append(q.claim(0, lease=rng.choice((None, 0.05))))
            except mmapds.Empty:
                pass
            if len(held) > 10:
                claim = held.pop(rng.randrange(len(held)))
                try:
                    rng.choice((claim.ack, claim.nack, lambda: claim.nack(to_back=True), lambda: claim.nack(0.003)))()
                except mmapds.StaleClaim:
                    pass
"""


def test_r3_beside_those_who_put_and_take_and_after_their_deaths(path, start: Callable[..., Peer]):
    """What they do is never taken for damage; and what their deaths leave is not either."""
    with Queue(path, segment_size=65536) as q:
        q.put_many(range(100))
        for turn in range(2):
            peers = [start(BUSY, path, 10 * turn + number) for number in range(2)]
            for peer in peers:
                peer.expect("on")
            until = time.monotonic() + 1
            looks = 0
            while time.monotonic() < until or not looks:
                assert [f for f in verify(path) if f.severity != "note"] == [], raw.state(path)
                describe(path)
                _queue_words.claims(path)
                looks += 1
            for peer in peers:
                peer.kill()
            assert [f for f in verify(path) if f.severity != "note"] == [], raw.state(path)
            q.put(1)
            q.get()
            assert verify(path) == [], raw.state(path)
