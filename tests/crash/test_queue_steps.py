"""A queue whose process dies at every store of what it does (rows 2, 3 and 33).

The files are put back as they were after each store, in the same inodes, with nobody alive who holds a lock: as a kill
leaves them. Whoever comes next must find every item that was there, in its order, and what was under way either done or
not; must be able to go on, put, take and wait; and must come to the same after another boot. `test_queue_kill.py` does
the same with real deaths and with others that look on.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import queuefiles
from peers import Peer
from queueitems import drain

from mmapds import Queue

Items = list[bytes]
SEGMENT = 8192


class Job(NamedTuple):
    """`setup` runs in a process that ends, `prepare` and `code` in the victim; `q` is a handle. `may`: what may be
    there, given what was there before; `must`: what is there when it has returned."""

    setup: str
    prepare: str
    code: str
    may: Callable[[Items], list[Items]]
    must: Callable[[Items], Items]


def same(code: str, prepare: str = "", setup: str = "") -> Job:
    """A job after which every item is there, in its place: claims of the dead come back."""
    return Job(setup, prepare, code, lambda items: [items], lambda items: items)


def adds(code: str, *new: bytes, prepare: str = "", setup: str = "") -> Job:
    return Job(
        setup, prepare, code,
        lambda items: [items + list(new[:n]) for n in range(len(new) + 1)], lambda items: items + list(new),
    )  # fmt: skip


def takes(code: str, n: int = 1, prepare: str = "", setup: str = "") -> Job:
    """Takes n items, from the first on."""
    return Job(setup, prepare, code, lambda items: [items[k:] for k in range(n + 1)], lambda items: items[n:])


def ends(code: str, item: bytes, prepare: str = "", setup: str = "", *, to_back: bool = False) -> Job:
    def without(items: Items) -> Items:
        return [found for found in items if found != item] + [item] * to_back

    return Job(setup, prepare, code, lambda items: [items, without(items)], without)


# What every queue begins with: some items that have been put as they are; the handle has been used.
TEN = "[q.put(b'%d' % n) for n in range(10)]"
WARM = "q.put(b'warm'); q.get()"
# Two full segments of items of 1000 bytes (3 in each), and one more.
FULL = "[q.put(b'%d' % n + bytes(1000)) for n in range(7)]"
THREE = "[q.put(b'%d' % n + bytes(1000)) for n in range(3)]"
CLAIMS = TEN + "; claims = q.claim_many(5); "


PURGED = [b"0", b"4", b"5", b"6", b"7", b"8", b"9", b"w", b"1"]  # in this order; 2 and 3 are claimed


def big(n: int) -> bytes:
    return b"%d" % n + bytes(1000)


JOBS = {
    # row 2
    "put": adds("q.put(b'new')", b"new", prepare=WARM, setup=TEN),
    "put, with a delay": adds("q.put(b'new', delay=1000)", b"new", prepare=WARM, setup=TEN),
    "put into an empty queue": adds("q.put(b'new')", b"new", prepare=WARM),
    "put of nothing": adds("q.put(b'')", b"", prepare=WARM, setup=TEN),
    "put_many": adds("q.put_many([b'new', b'newer', b'newest'])", b"new", b"newer", b"newest", prepare=WARM, setup=TEN),
    "put what ends a segment": adds("q.put(big)", b"9" * 776, prepare=f"big = b'9' * 776; {THREE}"),
    # row 3, and what it rests on
    "get": takes("q.get()", prepare=WARM, setup=TEN),
    "get_many": takes("q.get_many(3)", 3, prepare=WARM, setup=TEN),
    "get what was returned": takes("q.get()", prepare=CLAIMS + "claims[0].nack(0)"),
    "get what is returned in the middle": takes("q.get()", prepare=CLAIMS + "claims[3].nack(0); claims[0].nack(0)"),
    "get what was delayed": takes("q.get()", prepare=WARM + "; q.put(b'0', delay=1e-6); q.put(b'1')"),
    "get the last of a segment": takes("q.get()", prepare=FULL + "; q.get(); q.get()"),
    "get past what is delayed": ends("q.get()", b"1", prepare=WARM + "; q.put(b'0', delay=1000); q.put(b'1')"),
    "claim": same("claim = q.claim()", WARM, TEN),
    "claim with a lease": same("claim = q.claim(lease=1000)", CLAIMS),
    "claim what was returned": same("claim = q.claim()", CLAIMS + "claims[0].nack(0); claims[2].nack(0)"),
    "claim the last of a segment": same("claim = q.claim()", FULL + "; claims = q.claim_many(2)"),
    "claim in the next segment": same("claim = q.claim()", FULL + "; q.get(); q.get(); q.get(); q.put(b'w')"),
    "claim_many": same("claims = q.claim_many(3)", WARM, TEN),
    "claim past what is delayed": same("c = q.claim()", WARM + "; q.put(b'0', delay=1000); q.put(b'1')"),
    "ack": ends("claims[2].ack()", b"2", CLAIMS),
    "ack of the first": ends("claims[0].ack()", b"0", CLAIMS),
    "ack of the last": ends("claims[4].ack()", b"4", CLAIMS),
    "ack of a lease": ends("c.ack()", b"5", CLAIMS + "claims += [q.claim(lease=n) for n in (900, 800)]; c = claims[5]"),
    "ack that ends a segment": ends("c[1].ack()", big(1), FULL + "; c = q.claim_many(4); c[0].ack(); c[2].ack()"),
    "get that ends a block": takes("q.get()", 1, prepare=FULL + "; q.get(); q.get()"),
    "nack": same("claims[2].nack(0)", CLAIMS),
    "nack with a delay": same("claims[2].nack(1000)", CLAIMS),
    "nack to the back": ends("claims[2].nack(0, to_back=True)", b"2", CLAIMS, to_back=True),
    "nack to the back with a delay": ends("claims[2].nack(1000, to_back=True)", b"2", CLAIMS, to_back=True),
    "touch": same("claims[2].touch(1000)", CLAIMS + "claims[1].touch(500)"),
    "touch again": same("claims[2].touch(1000)", CLAIMS + "[claim.touch(100) for claim in claims]"),
    "touch without an end": same("claims[2].touch()", CLAIMS + "[claim.touch(100) for claim in claims]"),
    "an exception in a block": same("exec('try:\\n  with claims[1]: 1 / 0\\nexcept ZeroDivisionError: pass')", CLAIMS),
    "a lease ends": same("c = q.claim()", CLAIMS + "[claim.touch(1e-6) for claim in claims[:3]]"),
    "task_done": takes("q.task_done()", 0, prepare=WARM + "; q.get()", setup=TEN),
    "purge": Job(
        TEN, "claims = q.claim_many(4); claims[0].nack(0); claims[1].nack(99); q.put(b'w', delay=99)", "q.purge()",
        lambda items: [[item for item in items if item not in PURGED[:n]] for n in range(len(PURGED) + 1)],
        lambda items: [b"2", b"3"],
    ),
    "close with claims": same("q.close()", CLAIMS + "claims[1].touch(100); claims[4].nack(5)"),
    "shutdown": same("q.shutdown()", WARM, TEN),
}  # fmt: skip

# Long ones: they open files, or look after the dead.
COLD = {
    "the first put of a handle": adds("q.put(b'new')", b"new", setup=TEN),
    "the first get of a handle": takes("q.get()", setup=TEN),
    "the first claim of a handle": same("q.claim()", setup=TEN),
    "put into the next segment": adds("q.put(big)", b"9" * 1000, prepare="big = b'9' * 1000; " + THREE),
    "put of more than a segment": adds("q.put(big)", b"9" * 5000, prepare="big = b'9' * 5000; " + WARM, setup=TEN),
    "get of more than a segment": takes("q.get()", prepare=WARM + "; q.put(b'9' * 5000)"),
    "ack of more than a segment": ends("c.ack()", b"9" * 5000, WARM + "; q.put(b'9' * 5000); c = q.claim()"),
    "get in the next segment": takes("q.get()", setup=FULL + "; [q.get() for _ in range(3)]", prepare=""),
    "a claim for which meta grows": same("q.claim()", "[q.put(b'%d' % n) for n in range(90)]; c = q.claim_many(84)"),
}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "queue")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Peer]:
    with Peer("import queuesteps, stepping; signal.alarm(100)") as peer:
        if not peer("stepping.available()"):
            pytest.skip("processes may not be traced here")
        peer(
            """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})     # from one process to the other takes less time

def states(path, out, prepare, job):
    before, code = compile(prepare, "prepare", "exec"), compile(job, "job", "exec")
    def run_before():
        scope = {"q": mmapds.Queue(path), "os": os}
        exec(before, scope)
        return scope
    return queuesteps.save(queuesteps.states(run_before, lambda scope: exec(code, scope), path), out)
"""
        )
        yield peer


def states_of(zygote: Peer, path: str, job: Job, durability: str = "process") -> list[dict[str, bytes]]:
    with Queue(path, codec="raw", segment_size=SEGMENT, durability=durability) as q:  # type: ignore[arg-type]
        exec(job.setup, {"q": q})
    out = path + ".states"
    zygote("states(path, out, prepare, job)", path=path, out=out, prepare=job.prepare, job=job.code)
    found: list[dict[str, bytes]] = pickle.loads(Path(out).read_bytes())
    return found


def look(path: str) -> Items:
    """What a reader sees, who changes nothing."""
    before = queuefiles.content(path)
    with Queue(path, mode="readonly") as q:
        found = list(q)
        assert list(reversed(q)) == found[::-1]
        assert q.stats()["items"] == len(found)
    assert queuefiles.content(path) == before, "a reader has written"
    return found


def due(path: str) -> Items:
    """What a `get` may take now, when nobody holds anything."""
    found = queuefiles.Snapshot(path)
    late = {e.position for e in found.live() if queuefiles.KINDS[e.kind] == "delayed"}
    held = [(e.place, e.stamp, found.held_record(e)) for e in found.live() if e.position not in late]
    every = [*held, *((2 * r.position + 1, 0, r) for r in found.plain() if not r.flags & queuefiles.DELAYED)]
    return [record.payload for _, _, record in sorted(every, key=lambda item: item[:2])]


def go_on(path: str, files: dict[str, bytes], allowed: list[Items], boot: bool, message: str) -> Items:
    """Somebody has died; what is there, if it is one of these. Everything goes on."""
    if boot:
        path += "-copy"
    queuefiles.restore(path, files, in_place=not boot)
    look(path)
    with Queue(path) as q:
        size = q.qsize()
        q.put(b"another")
        claim = q.claim(0)  # also looks after the dead
        claim.nack(0)
        found = queuefiles.check(path, message)
        items = found.everything()
        assert items[-1] == b"another", f"{items}; {message}"
        assert items[:-1] in allowed, f"{items[:-1]} is none of {allowed}; {message}; {found.describe()}"
        assert found.claimed() == [], f"{found.claimed()} are still claimed; {message}"
        assert q.qsize() == len(items) >= size, f"{size}, then {q.qsize()}, and there are {items}; {message}"
        assert list(q) == found.waiting() == items, message
        expected = due(path)
        assert drain(q) == expected, message
        rest = queuefiles.check(path, message)
        assert q.qsize() == len(items) - len(expected) == len(rest.everything()), message
        owing = sum(slot[1] for slot in rest.slots() if slot[0])  # the dead one's too, until somebody looks
        assert q.unfinished_tasks == q.qsize() + owing, message
        for _ in expected:
            q.task_done()
        assert q.unfinished_tasks == q.qsize() + owing - len(expected), message
    return items[:-1]


def check_every_state(zygote: Peer, path: str, job: Job, durability: str = "process") -> None:
    found = states_of(zygote, path, job, durability)
    assert len(found) > 1, "no store at all"
    queuefiles.restore(path, found[0], in_place=True)
    before = queuefiles.Snapshot(path).everything()
    allowed, final = job.may(before), job.must(before)
    assert final in allowed
    seen = []
    for number, files in enumerate(found):
        message = f"killed after store {number} of {len(found) - 1}"
        for boot in (False, True):
            expected = [final] if number == len(found) - 1 else [before] if number == 0 and not boot else allowed
            items = go_on(path, files, expected, boot, f"{message}{', on the next boot' * boot}")
            if not boot:
                seen.append(items)
    changes = [n for n in range(1, len(seen)) if seen[n] != seen[n - 1]]
    order = [allowed.index(items) for items in seen]
    assert order == sorted(order), f"it goes back and forth: {order}, at {changes}"


# Like others that are not.
SLOW = {
    "put_many", "get_many", "touch again", "ack of a lease", "nack with a delay", "claim past what is delayed",
    "get past what is delayed", "put, with a delay", "put of nothing", "get what is returned in the middle",
    "claim with a lease", "claim the last of a segment",
    "ack of the first", "ack of the last", "nack to the back with a delay", "touch", "touch without an end", "shutdown",
    "claim_many", "get that ends a block", "task_done", "put into an empty queue", "claim in the next segment",
    "an exception in a block",
}  # fmt: skip


@pytest.mark.parametrize("what", [pytest.param(what, marks=[pytest.mark.slow] * (what in SLOW)) for what in JOBS])
def test_r02_r03_killed_at_every_store(zygote: Peer, path: str, what: str) -> None:
    check_every_state(zygote, path, JOBS[what])


@pytest.mark.slow
@pytest.mark.parametrize("what", COLD)
def test_r02_r03_killed_at_every_store_of_a_long_way(zygote: Peer, path: str, what: str) -> None:
    check_every_state(zygote, path, COLD[what])
