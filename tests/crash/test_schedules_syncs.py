"""What must be on the disk before what, and who is told (rows 6, 12, 20 and 33): the calls themselves are seen.

The power cuts of test_powerloss.py try what a disk may hold. Here a process is held at the sync that must come next, or
syncs are counted: one that another makes up for, in most lives, is missed in the rest.
"""

from __future__ import annotations

from pathlib import Path

import failpoints
import pytest
import queuefiles
from failpoints import FailPeer
from peers import Peer, PeerError
from stages import Stage

from mmapds import Counters, Queue, ShutDown

WHY = failpoints.missing()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))


def counters(path: str) -> None:
    with Counters(path, 4, durability="power") as c:
        c["x"], c["y"] = 5, 6


def syncs(peer: FailPeer, code: str, what: str) -> int:
    """How many calls of this kind it makes."""
    peer(f"failpoints.arm('record', 0, 7)\n{code}\nfailpoints.disarm()")
    return sum(point.startswith(f"call {what}") for point in peer.seen())


# ---- Counters ------------------------------------------------------------------------------------------------------


def test_r06_a_removal_that_a_dead_process_has_begun_is_synced_before_its_cell_is_emptied(
    stage: Stage, path: str
) -> None:
    """Else the power may take the removal back, and leave an empty cell."""
    counters(path)
    victim, other = stage["victim"], stage["b"]
    for peer in (victim, other):
        peer("c = mmapds.Counters(path)", path=path)
    victim.hold("c.remove('x')", "call fdatasync")
    victim.kill()
    other.hold("c.add('new')", "call fdatasync")
    with Counters(path) as c:
        assert c.view()[4] == 5, "the cell of x is empty already"
    assert other.refused()[0] == "DurabilityFailed"
    with Counters(path) as c:
        assert c.view()[4] == 5, "the cell of x was emptied although the sync has failed"


def test_r06_a_name_is_synced_before_it_counts(stage: Stage, path: str) -> None:
    counters(path)
    peer = stage["a"]
    peer("c = mmapds.Counters(path)", path=path)
    peer.hold("c.add('new')", "call fdatasync")
    with Counters(path) as c:
        assert "new" not in c
    peer.go()
    assert peer.receive() == 1


def test_r12_a_removal_that_cannot_be_synced_is_taken_back_for_all(stage: Stage, path: str) -> None:
    counters(path)
    remover, other = stage["a"], stage["b"]
    for peer in (remover, other):
        peer("c = mmapds.Counters(path)", path=path)
    remover.hold("c.remove('x')", "call fdatasync")
    assert other("'x' in c") is False, "it has seen that it is gone"
    assert remover.refused()[0] == "DurabilityFailed"
    other("c.flush()")
    for peer in (other, remover):
        assert peer("'x' in c, dict(c.items())") == (True, {"x": 5, "y": 6})


def test_r33_a_name_that_came_back_by_one_who_died_is_seen_by_all(stage: Stage, path: str) -> None:
    with Counters(path, 4) as c:
        c["x"] = 5
    looker, victim, other = stage["a"], stage["victim"], stage["b"]
    for peer in (looker, victim, other):
        peer("c = mmapds.Counters(path)", path=path)
    looker("c.remove('x')")
    assert looker("'x' in c") is False
    victim.hold("c['x'] = 7", "counters_make_live fetch_add_seq_cst_u64")
    victim.kill()
    other("c.add('new')")
    assert looker("dict(c.items())") == {"x": 7, "new": 1}
    assert looker("'x' in c, c.add('x')") == (True, 8)


def test_a_flush_of_an_emmap_file_syncs_it(stage: Stage, path: str) -> None:
    peer = stage["a"]
    peer("c = mmapds.Counters(path, 4, layout='emmap'); c.add(0)", path=path)
    assert syncs(peer, "c.flush()", "msync") == 1


# ---- the queue -----------------------------------------------------------------------------------------------------


def test_r06_each_segment_that_a_put_of_many_leaves_is_synced(stage: Stage, path: str) -> None:
    with Queue(path, codec="raw", segment_size=1 << 16, durability="power"):
        pass
    peer = stage["a"]
    peer("q = mmapds.Queue(path)", path=path)
    assert syncs(peer, "q.put_many([bytes(100_000)] * 3)", "msync") >= 3, "each is alone in its segment"
    assert syncs(peer, "q.put_many([bytes(50_000)] * 3)", "msync") >= 3, "each fills most of one"


def test_r06_a_dead_letter_is_synced_before_its_item_is_gone(stage: Stage, path: str) -> None:
    with Queue(path, codec="raw", durability="power") as q:
        q.put(b"item")
    peer = stage["a"]
    peer("q = mmapds.Queue(path); q.put(b'other'); q.claim().bury('why'); c = q.claim()", path=path)
    assert "dead" in peer.hold("c.bury('why')", "call msync")
    with Queue(path) as q:
        assert q.stats()["claimed"] == 1
    peer.go()
    peer.receive()


def test_r06_a_letter_that_is_put_back_is_synced_before_it_is_gone_from_the_dead(stage: Stage, path: str) -> None:
    with Queue(path, codec="raw", durability="power") as q:
        q.put(b"item")
    peer = stage["a"]
    peer("q = mmapds.Queue(path); q.claim().bury('why')", path=path)
    assert "dead" not in peer.hold("q.dead.requeue()", "call msync")
    assert peer.go("call msync").endswith("dead/N.segment")
    peer.go()
    assert peer.receive() == 1


def test_r20_the_byte_of_a_dead_holder_is_left_unlocked(stage: Stage, path: str) -> None:
    with Queue(path, codec="raw") as q:
        q.put_many([b"first", b"item"])
    victim, other = stage["victim"], stage["b"]
    other("q = mmapds.Queue(path); q.claim().ack()", path=path)
    victim("q = mmapds.Queue(path); c = q.claim()", path=path)
    before = locks(other)
    victim.kill()
    assert other("q.claim().item") == b"item"
    assert locks(other) == before, "it keeps the byte of the one whose claim it took back"


def locks(peer: FailPeer) -> int:
    """How many locks of bytes it holds."""
    held = 0
    for fd in Path(f"/proc/{peer.pid}/fdinfo").iterdir():
        held += fd.read_text().count("lock:")
    return held


def test_after_an_immediate_shutdown_nothing_is_got_that_comes_back(tmp_path: Path) -> None:
    with Queue(tmp_path / "it", codec="raw") as q, Queue(tmp_path / "it") as other:
        q.put(b"item")
        claim = q.claim()
        assert claim is not None
        other.shutdown(immediate=True)
        claim.nack()
        with pytest.raises(ShutDown):
            q.get_nowait()
        assert queuefiles.Snapshot(str(tmp_path / "it")).words["claimed"] == 0


# ---- regions -------------------------------------------------------------------------------------------------------


def test_a_flush_of_a_region_syncs_it(stage: Stage, path: str) -> None:
    peer = stage["a"]
    peer("r = mmapds.Region.open(path, 3 * 4096); r[0] = 1", path=path)
    assert syncs(peer, "r.flush()", "msync") == 1
    assert syncs(peer, "r.flush(4096, 10)", "msync") == 1


def test_r09_what_was_added_in_place_is_looked_after_too(tmp_path: Path) -> None:
    """A process that reads what was cut of it lives, and is told."""
    with Peer(
        """
with mmapds.Region.anonymous(100 * 4096) as room:
    address = room._mapping.address  # where there will be room to grow in place
r = mmapds.Region.open(path, 4096, address=address)
r.resize(50 * 4096)
import os
os.truncate(path, 4096)
""",
        path=str(tmp_path / "it"),
    ) as peer:
        assert peer("r._mapping.address == address, sum(memoryview(r)[40 * 4096:41 * 4096])") == (True, 0)
        with pytest.raises(PeerError, match="MappingLost"):
            peer("r[45 * 4096]")
