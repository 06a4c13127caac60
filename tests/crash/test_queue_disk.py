"""Queues on disks that are full or failing (rows 10, 11 and 12)."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import queuefiles
from peers import Peer
from powerloss import Call, WatchedPeer
from queueitems import drain

from mmapds import DurabilityFailed, Queue

SEGMENT = 65536
FAULTS = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


def fill(path: Path) -> None:
    """Writes until the disk is full."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while True:
                    file.write(os.urandom(size))


def item(n: int) -> bytes:
    return b"%06d" % n + bytes(1000)


def put_until_full(q: Queue, start: int = 0) -> int:
    for n in range(start, 100_000):
        try:
            q.put(item(n))
        except OSError as error:
            assert error.errno in FAULTS, error  # noqa: PT017
            return n
    raise AssertionError("this disk is not small")


def test_r10_no_room_to_create(small_disk: Path) -> None:
    filler = small_disk / "filler"
    fill(filler)
    for _ in range(2):
        with pytest.raises(OSError, match="No space") as caught:
            Queue(small_disk / "queue", codec="raw", segment_size=SEGMENT)
        assert caught.value.errno == errno.ENOSPC
    filler.unlink()
    with Queue(small_disk / "queue", codec="raw", segment_size=SEGMENT) as q:
        q.put(b"1")
        assert q.get() == b"1"


def test_r10_no_room_for_another_segment(small_disk: Path) -> None:
    """What was put is there; taking gives room; then putting works again, in every process."""
    path = str(small_disk / "queue")
    with Queue(path, codec="raw", segment_size=SEGMENT) as q, Peer("q = mmapds.Queue(path)", path=path) as other:
        count = put_until_full(q)
        assert count > 1000, count
        numbers = queuefiles.segments(path)
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                q.put(item(count))
            with pytest.raises(OSError, match="No space"):
                q.put_many([item(count), item(count)])
            assert other.fails("q.put(bytes(1006))")[0] == "OSError"
        assert queuefiles.segments(path) == numbers, "what failed has left a segment"
        assert not [name for name in os.listdir(path) if name.startswith(".")], os.listdir(path)
        assert q.qsize() == count
        assert queuefiles.check(path).waiting() == [item(n) for n in range(count)]
        assert [q.get() for _ in range(200)] == [item(n) for n in range(200)]
        more = put_until_full(q, count)
        assert more > count, "room that was given back is not used"
        assert drain(q) == [item(n) for n in range(200, more)]
        other("q.put(b'last')")
        assert q.get() == b"last"
        queuefiles.check(path)


def test_r10_no_room_for_a_larger_index(small_disk: Path) -> None:
    """Claims beyond what the index holds fail, and nothing else does."""
    path = str(small_disk / "queue")
    with Queue(path, codec="raw", segment_size=SEGMENT) as q:
        for n in range(300):
            q.put(item(n))
        fill(small_disk / "filler")
        claims = []
        for _ in range(300):
            try:
                claims.append(q.claim(0))
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017
                break
        else:
            pytest.skip("the index did not grow")
        held = len(claims)
        assert held >= 84
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                q.claim(0)
        assert q.qsize() == 300 - held
        assert q.get() == item(held), "who only gets needs no entry"
        claims[0].ack()
        with q.claim(0) as claim:
            assert claim.item == item(held + 1)
        for claim in claims[1:]:
            claim.nack(0)
        (small_disk / "filler").unlink()
        assert drain(q) == [item(n) for n in range(1, 300) if n not in (held, held + 1)]
        queuefiles.check(path)


def test_r11_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    path = str(tmp_path / "queue")
    with Queue(path, codec="raw", segment_size=SEGMENT) as q:
        q.put(item(0))
        with Peer("import resource; q = mmapds.Queue(path)", path=path) as peer:
            peer("resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))")
            name, message = peer.fails("while True: q.put(bytes(1006))")
            assert name == "OSError", message
            assert "large" in message
            peer("claims = []")
            before = q.qsize()
            assert before > 10
            peer("resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))")
            peer("q.put(b'more')")
        found = drain(q)
        assert (len(found), found[-1]) == (before + 1, b"more")
        assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
        queuefiles.check(path)


# ---- row 12 --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a disk: durability 'power' is refused on tmpfs."""
    with tempfile.TemporaryDirectory(prefix="mmapds-power-", dir="/var/tmp") as name:
        yield Path(name)


FAILING = {
    "put": "q.put(b'new')",
    "put_many": "q.put_many([b'new', b'newer'])",
    "put into the next segment": "q.put(bytes(3000))",
    "put of more than a segment": "q.put(bytes(10_000))",
    "get": "q.get()",
    "get_many": "q.get_many(2)",
    "ack": "c.ack()",
    "flush": "q.flush()",
}
TRIES = ["q.put(b'x')", "q.put_many([b'x', b'y'])", "q.get_nowait()", "q.get_many(2, timeout=0)", "q.claim(0).ack()"]


@pytest.mark.parametrize("failure", [errno.EIO, pytest.param(errno.ENOSPC, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", FAILING)
def test_r12_whichever_sync_fails_all_handles_say_so_until_a_flush_has_succeeded(
    folder: Path, what: str, failure: int
) -> None:
    first = 0
    while fail_from(str(folder / f"queue{first}"), FAILING[what], failure, first):
        first += 1
        assert first < 100
    assert first >= 1, "this operation makes no sync"


def fail_from(path: str, job: str, failure: int, first: int) -> bool:
    """One operation whose syncs fail from number `first` on; whether it has so many."""
    count = 0

    def fail(call: Call) -> int:
        nonlocal count
        if call.name not in ("msync", "fsync", "fdatasync"):
            return 0
        count += 1
        return failure if count > first else 0

    with Queue(path, codec="raw", segment_size=8192, durability="power") as q:
        q.put_many([b"%d" % n for n in range(5)])
        q.put(bytes(2000))
    setup = "q = mmapds.Queue(path); c = q.claim(); q.put(b'w')"
    with WatchedPeer(setup, path=path) as peer, Peer("q = mmapds.Queue(path); q.put(b'o')", path=path) as other:
        outcome = attempt(peer, job, fail)
        if not outcome:
            assert count <= first, f"sync {first} failed, and nobody noticed"
            return False
        if outcome == "OSError":  # it failed before anything was changed
            assert queuefiles.word(queuefiles.meta(path), queuefiles.FAILED) == 0
            assert attempt(peer, "q.qsize()", lambda call: 0) == ""
            return True
        assert outcome == "DurabilityFailed", outcome
        for code in TRIES:
            assert attempt(peer, code, fail) == "DurabilityFailed", f"{code} after sync {first} of {job} failed"
            assert other.fails(code)[0] == "DurabilityFailed", f"{code} in another process"
        assert attempt(peer, TRIES[0], lambda call: 0) == "DurabilityFailed", "a retry proves nothing"
        with Queue(path) as q, pytest.raises(DurabilityFailed):
            q.get_nowait()
        assert attempt(peer, "q.flush()", fail) == "DurabilityFailed", "the disk is still ill"
        assert other.fails(TRIES[0])[0] == "DurabilityFailed"
        assert attempt(peer, "q.flush()", lambda call: 0) == ""
        other("q.put(b'after')")
        with Queue(path) as q:
            found = drain(q)
            assert found[-1] == b"after"
            assert b"3" in found
        return True


def attempt(peer: WatchedPeer, code: str, fail: Callable[[Call], int]) -> str:
    """The name of the exception, or "" if there is none."""
    return str(
        peer.watch(
            f"""
outcome = ""
try:
    {code}
except Exception as error:
    outcome = type(error).__name__
outcome
""",
            fail,
        )
    )
