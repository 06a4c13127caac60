"""What test_schedules.py does, onto the names of Counters and the files of a SnapshotMap (rows 1, 33 and 34)."""

from __future__ import annotations

import counterfiles
import failpoints
import pytest
import snapdisk
import syncfiles
from failpoints import CALL, Died
from stages import Stage

from mmapds import Counters, SnapshotMap

WHY = failpoints.missing()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))


# ---- Counters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "popped"), [("fetch_add_seq_cst_u64 cell", 5), ("counters_current load_seq_cst_u64 changes", None)]
)
def test_r33_an_addition_while_its_name_is_removed(stage: Stage, path: str, where: str, popped: int | None) -> None:
    """What is added by name is in what the remover gets, or in the name that comes back; never in neither or both."""
    with Counters(path) as c:
        c["a"] = 5
    one, other = stage["a"], stage["b"]
    for peer in (one, other):
        peer("c = mmapds.Counters(path); c['a'] and None", path=path)
    for count in range(10):
        try:
            one.hold("c.add('a', 1000)", where, count)
        except Died:
            assert count >= 1
            one.receive()
            break
        taken = other("c.pop('a')")
        if popped is not None:
            assert taken == popped
        one.go()
        one.receive()
        with Counters(path) as c:
            assert taken + c.get("a", 0) == 1005, f"at {one.at()}: {taken} taken, {c.snapshot()}"
            c["a"] = 5
    counterfiles.check(path)


@pytest.mark.parametrize("end", ["goes on", "is killed"])
def test_r33_two_make_the_same_name_at_once(stage: Stage, path: str, end: str) -> None:
    Counters(path).close()
    one, other = stage["victim"], stage["b"]
    for peer in (one, other):
        peer("c = mmapds.Counters(path); c.snapshot() and None", path=path)
    one.hold("c.add('a', 1)", "counters_create store_release_u64 names")
    assert syncfiles.locked(path, 0)
    other.hold("c.add('a', 2)", "call lock wait_open")
    if end == "is killed":
        one.kill()
    else:
        one.go()
        one.receive()
    other.go()
    assert other.receive() == (2 if end == "is killed" else 3)
    found = counterfiles.check(path)
    assert list(found.values()) == ["a"]


@pytest.mark.parametrize(
    "where",
    [
        "store_seq_cst_u64 entry->state",
        "fetch_add_seq_cst_u64 changes",
        "exchange_seq_cst_u64",
        "store_seq_cst_u64 removing",
    ],
)
def test_r33_a_remover_killed_and_the_next_one_who_comes(stage: Stage, path: str, where: str) -> None:
    with Counters(path) as c:
        c["a"] = 5
    one, other = stage["victim"], stage["b"]
    for peer in (one, other):
        peer("c = mmapds.Counters(path); c['a'] and None", path=path)
    one.hold("c.pop('a')", f"counters_remove {where}", int(where.endswith("removing")))
    one.kill()
    other("c['b'] = 1")  # finishes what the dead one began
    assert other("c.get('a', 0)") == (5 if "state" in where else 0)
    assert other("c.add('a', 1)") == (6 if "state" in where else 1)
    assert counterfiles.check(path).removing == 0


# ---- SnapshotMap ---------------------------------------------------------------------------------------------------


def snapshot_map(path: str) -> None:
    SnapshotMap.build(path, {"k": b"0", "other": bytes(100)}, codec="raw")


CHANGE = "txn = m.transaction()\nwith txn as t: t['k'] = b'%d'; t['large'] = bytes(9000)\nm.compact()"


@pytest.mark.parametrize(
    "call", ["call open_path it/N.layer", "call open_read it/N.layer", "call pread it/N.layer", "call mmap it/N.layer"]
)
def test_r34_a_follower_between_manifest_and_layer_while_compaction_unlinks(stage: Stage, path: str, call: str) -> None:
    """As often as the files go from under it, it takes the newer manifest."""
    snapshot_map(path)
    follower, writer = stage["a"], stage["b"]
    writer("import snapdisk; snapdisk.tiny(); m = mmapds.SnapshotMap(path)", path=path)
    follower("m = mmapds.SnapshotMap(path, mode='readonly'); assert m['k'] == b'0'", path=path)
    writer(CHANGE % 1)
    kinds = CALL | failpoints.READ
    follower.hold("m['k'], m.version", call, 0, kinds)
    last = 1
    for last in (2, 3, 4):
        writer(CHANGE % last)
        try:
            follower.go(call, 0, kinds)
        except Died:
            break
    else:
        last = 5
        writer(CHANGE % last)
        follower.go()
    value, version = follower.receive()
    if call == "call open_path it/N.layer":
        assert (value, last) == (b"5", 5)
    # What it had open already it may go on with: that version was the newest when it began.
    assert int(value) >= 1
    assert follower("m['k'], m.version") == (b"%d" % last, writer("m.version"))
    assert version <= writer("m.version")
    snapdisk.check(path)


def test_r34_a_follower_maps_a_delta_that_becomes_a_layer(stage: Stage, path: str) -> None:
    snapshot_map(path)
    follower, writer = stage["a"], stage["b"]
    writer("import snapdisk; snapdisk.tiny(); m = mmapds.SnapshotMap(path)", path=path)
    follower("m = mmapds.SnapshotMap(path, mode='readonly'); m['k'] and None", path=path)
    writer("with m.transaction() as t: t['k'] = b'1'")
    follower.hold("m['k']", "call open_path it/N.delta")
    writer("with m.transaction() as t: t['k'] = b'2'\nm.compact()")
    follower.go()
    assert follower.receive() == b"2"
    snapdisk.check(path)


def test_r01_a_lookup_while_a_batch_is_appended_that_is_never_published(stage: Stage, path: str) -> None:
    """The writer dies between the batch and the manifest: nobody sees it, and it does not come back."""
    snapshot_map(path)
    follower, writer = stage["a"], stage["victim"]
    writer("m = mmapds.SnapshotMap(path)\nwith m.transaction() as t: t['k'] = b'1'", path=path)
    follower("m = mmapds.SnapshotMap(path, mode='readonly'); assert m['k'] == b'1'", path=path)
    writer.hold(
        "with m.transaction() as t: t['k'] = b'2'; t['new'] = b'2'", "leftright_publish store_seq_cst_u64 sequence"
    )
    assert follower("m['k'], 'new' in m, len(m)") == (b"1", False, 2)
    writer.kill()
    assert follower("m['k'], 'new' in m, len(m)") == (b"1", False, 2)
    with SnapshotMap(path) as m, m.transaction() as t:
        t["next"] = b"3"
    assert follower("m['k'], 'new' in m, m['next'], len(m)") == (b"1", False, b"3", 3)
    snapdisk.check(path)
