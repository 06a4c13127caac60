"""A SnapshotMap that is interrupted at any line, or has no memory at any allocation (row 28)."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import snapdisk
from peers import Peer
from snapmaps import commit

from mmapds import SnapshotMap, WriterBusy

pytestmark = pytest.mark.usefixtures("small_deltas")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "map")


INJECT = """
import gc, threading, warnings, interruptions, snapdisk
warnings.simplefilter("ignore", ResourceWarning)  # an interrupted constructor, or its caller, forgets a handle
snapdisk.tiny(32768, 64)

def afterwards(m):
    '''The handle is usable by each thread, or closed.'''
    if m is None or m.closed:
        return
    found = []
    def work():
        try:
            with m.transaction() as t:
                t["after"] = t.get("after", 0) + 1
                dict(t)
            m.compact()
            found.append(dict(m))
        except BaseException as error:
            found.append(repr(error))
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert found and isinstance(found[0], dict), f"another thread cannot go on: {found or 'it waits'}"
    with m.transaction() as t:
        t["after"] = t["after"] + 1
    m.close()

def attempt(count, prepare, job):
    '''Where it was interrupted, or None.'''
    scope = globals() | {"m": None}
    exec(prepare, scope)
    where = interruptions.at_line(count, lambda: exec(job, scope))
    m = scope.pop("m")
    held = mmapds.SnapshotMap(path, mode="readonly")
    inner = dict(held)
    held.close()
    del held
    scope.clear()
    gc.collect()
    return where, m, inner

def interrupt_at(count, prepare, job):
    where, m, inner = attempt(count, prepare, job)
    try:
        afterwards(m)
    except BaseException as error:
        return where, repr(error), inner
    return where, "", inner
"""

OPENED = "m = mmapds.SnapshotMap(path)"
LINES = {
    "open": ("", OPENED),
    "commit": (OPENED, "with m.transaction() as t: t['k1'] = 'new'"),
    "roll back": (
        OPENED,
        """
try:
    with m.transaction() as t:
        t['k1'] = 'old'
        1 / 0
except ZeroDivisionError: pass
""",
    ),
    "fold": (
        OPENED,
        """
for n in range(4):
    with m.transaction() as t: t['k1'] = 'new' if n == 3 else 'x' * 12000
""",
    ),
    "large": (OPENED, "with m.transaction() as t: t.update(k1='new', k2='x' * 40000)"),
    "compact": (OPENED, "m.compact()"),
    "build": ("", "mmapds.SnapshotMap.build(path, base | {'k1': 'new'})"),
    "look": (
        OPENED,
        "list(m.items()); m.get_many(['k1']); list(m.prefix('k')); m.snapshot()['k1']; m.verify(); m.stats()",
    ),
    "private": (
        "",
        """
p = mmapds.SnapshotMap(path, mode='private')
p['k1'] = 'x'
list(p)
p.publish(path + '-published')
p.close()
""",
    ),
}
BASE = {f"k{n}": n for n in range(20)} | {"k2": "x"}


@pytest.fixture
def injected(path: str) -> Iterator[Peer]:
    with Peer(INJECT, path=path, base=BASE) as peer:
        yield peer


def check_interrupted(path: str, other: SnapshotMap, what: str, inner: dict[str, object], message: str) -> None:
    """What was seen in between is the old or the new version; others go on."""
    inner.pop("after", None)
    new = BASE | {"k1": "new"} | ({"k2": "x" * 40000} if what == "large" else {})
    allowed = [BASE, new] + ([BASE | {"k1": "x" * 12000}] if what == "fold" else [])
    assert inner in allowed, f"{message}: {[(k, v) for k, v in inner.items() if BASE.get(k) != v]}"
    commit(other, {"other": 1})
    commit(other, None, "other")
    snapdisk.check(path, message)


def disturbed(path: str, injected: Peer, how: str, what: str, count: int, problems: list[str]) -> str | None:
    """One try in the other process, beside a handle that has the map open; its outcome. What is wrong is noted."""
    prepare, job = LINES[what]
    shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(path + "-published", ignore_errors=True)
    SnapshotMap.build(path, BASE)
    with SnapshotMap(path) as other:
        commit(other, {"k1": 1})
        outcome, error, inner = injected(f"{how}(count, prepare, job)", count=count, prepare=prepare, job=job)
        message = f"{what}, {how} {count}: {outcome}"
        if error:
            problems.append(f"{message}: {error}")
            return outcome  # type: ignore[no-any-return]
        try:
            check_interrupted(path, other, what, inner, message)
        except (WriterBusy, AssertionError) as problem:
            problems.append(f"{message}: {problem!r}")
    return outcome  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("what", "every"),
    [
        *((what, {"commit": 11, "open": 11}.get(what, 29)) for what in ("open", "commit", "large", "compact", "build")),
        *(pytest.param(what, 1, marks=pytest.mark.slow) for what in LINES),
    ],
)
def test_r28_keyboard_interrupt_before_each_line(path: str, injected: Peer, what: str, every: int) -> None:
    problems: list[str] = []
    for count in range(0, 3000, every):
        if disturbed(path, injected, "interrupt_at", what, count, problems) is None:
            break
    assert not problems, f"{len(problems)} failures:\n" + "\n".join(problems)


MEMORY = """
def starve(count, prepare, job):
    '''Allocation number `count` of the job fails; afterwards everything works.'''
    scope = globals() | {"m": None}
    exec(prepare, scope)
    code = compile(job, "job", "exec")
    outcome = interruptions.without_memory(count, lambda: exec(code, scope))
    m = scope.pop("m")
    held = mmapds.SnapshotMap(path, mode="readonly")
    inner = dict(held)
    held.close()
    try:
        afterwards(m)
    except BaseException as error:
        return outcome, repr(error), inner
    return outcome, "", inner
"""


@pytest.mark.parametrize(
    ("what", "every"),
    [
        ("commit", 8),
        ("look", 11),
        ("large", 17),
        *(pytest.param(what, 1, marks=pytest.mark.slow) for what in LINES if what != "open"),
    ],
)
def test_r28_memory_error_at_each_allocation(path: str, injected: Peer, what: str, every: int) -> None:
    injected(MEMORY)
    if injected("interruptions.testcapi is None"):
        pytest.skip("this Python was built without _testcapi")
    problems: list[str] = []
    failed = 0
    for count in range(0, 400, every):
        outcome = disturbed(path, injected, "starve", what, count, problems)
        failed += outcome == "failed"
        if outcome == "finished" and count > 40 and count > 3 * every * failed:
            break
    assert not problems, f"{len(problems)} failures:\n" + "\n".join(problems)
    assert failed > 2


def test_r28_ctrl_c_ends_a_wait_and_a_build(path: str) -> None:
    with SnapshotMap(path) as m, Peer("m = mmapds.SnapshotMap(path)", path=path) as peer:
        commit(m, {"a": 1})
        for code in ("m.wait()", "mmapds.SnapshotMap.build(path, ((f'{n}', n) for n in range(1 << 60)))"):
            peer.send(f"open(path + '-started', 'w').close(); {code}")
            while not os.path.exists(path + "-started"):
                time.sleep(0.001)
            time.sleep(0.02)
            peer.signal(signal.SIGINT)
            with pytest.raises(Exception, match="KeyboardInterrupt"):
                peer.receive()
            os.unlink(path + "-started")
        commit(m, {"b": 2})
        assert peer("m['b']") == 2
    snapdisk.check(path)
