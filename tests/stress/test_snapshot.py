"""A snapshot map at full speed: one writer, many followers, deaths at random moments, and less memory than data.

The invariant that a follower checks on each version that it sees: `n` says which commit it is, `k<i>` which commit has
last changed key i (the i-th of `KEYS` in turn), and the sum of all accounts is always the same.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import snapdisk
from peers import Peer

from mmapds import SnapshotMap

KEYS, ACCOUNTS = 50, 20

WRITER = f"""
import random, snapdisk
if small: snapdisk.tiny(65536, 64)

def commit(m, choose, n):
    with m.transaction() as t:
        a, b = choose.sample(range({ACCOUNTS}), 2)
        amount = choose.randrange(1000)
        t[f"account{{a:02}}"] = t[f"account{{a:02}}"] - amount
        t[f"account{{b:02}}"] = t[f"account{{b:02}}"] + amount
        t["n"] = n
        t[f"k{{n % {KEYS}}}"] = n
        key = f"t{{n % 97}}"
        if key in t: del t[key]
        else: t[key] = "x" * choose.randrange(60)
        if n % 1009 == 0: t["large"] = bytes(choose.randrange(50_000))

def write(path, commits):
    choose = random.Random(1)
    with mmapds.SnapshotMap(path) as m:
        n = m["n"]
        for n in range(n + 1, n + 1 + commits):
            commit(m, choose, n)
            if n % 20_011 == 0: m.compact()
    return n
"""

FOLLOWER = f"""
def look(now):
    n = now["n"]
    numbers = now.get_many([f"k{{k}}" for k in range({KEYS})])
    expected = {{f"k{{k % {KEYS}}}": k for k in range(max(1, n - {KEYS} + 1), n + 1)}}
    assert numbers == expected, (n, numbers)
    accounts = dict(now.prefix("account"))
    assert len(accounts) == {ACCOUNTS}, (n, accounts)
    assert sum(accounts.values()) == 0, (n, accounts)
    keys = list(now)
    assert keys == sorted(set(keys)) and len(keys) == len(now), (n, len(now), keys)
    assert len([key for key in keys if key[0] == "t"]) == sum((n // 97 + (0 < r <= n % 97)) % 2 for r in range(97)), n
    return n

def follow(path, last, verify):
    '''Looks at each version that it sees, until commit `last`; how many.'''
    seen = 0
    with mmapds.SnapshotMap(path, mode=mode, verify=verify) as m:
        before = newest = -1
        while newest < last:
            now = m.snapshot()
            assert now.version >= before, (now.version, before)
            if now.version == before:
                m.wait(before, 1)
                continue
            newest, before = look(now), now.version
            seen += 1
            for _ in range(3):      # each lookup sees the newest: never one that is older
                n = m["n"]
                assert n >= newest, (n, newest)
    return seen
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "map")
    SnapshotMap.build(path, {"n": 0} | {f"account{n:02}": 0 for n in range(ACCOUNTS)})
    return path


@pytest.mark.parametrize(
    ("commits", "small"),
    [(5000, True), *(pytest.param(100_000, small, marks=pytest.mark.stress) for small in (True, False))],
)
def test_a_writer_at_full_speed_against_4_followers(path: str, commits: int, small: bool) -> None:
    followers = [Peer(FOLLOWER, mode="readonly" if n % 2 else "shared") for n in range(4)]
    try:
        with Peer(WRITER, small=small) as writer:
            for n, follower in enumerate(followers):
                follower.send("follow(path, last, verify)", path=path, last=commits, verify=n >= 2)
            writer.send("write(path, commits)", path=path, commits=commits)
            seen = [follower.receive(1500) for follower in followers]
            assert writer.receive(1500) == commits
    finally:
        for follower in followers:
            follower.__exit__(None, None, None)
    assert min(seen) > 5, seen
    found = snapdisk.check(path)
    assert found.manifest.version == commits + 1 + commits // 20_011
    with SnapshotMap(path) as m:
        m.check()
        m.compact()
        assert m["n"] == commits


KILLED = """
import mmap, time, victims
acknowledged = mmap.mmap(-1, 16)  # shared with the victims, and survives them

def write_for_ever(path, seed):
    m = mmapds.SnapshotMap(path)
    n, choose = m["n"], random.Random(seed)
    while True:
        acknowledged[:8] = n.to_bytes(8, "little")
        n += 1
        if n % 150 == 0:
            m.compact()
        commit(m, choose, n)

def kill_one(path, seed, seconds):
    pid = victims.spawn(lambda: write_for_ever(path, seed))
    return victims.end(pid, after=seconds), int.from_bytes(acknowledged[:8], "little")
"""


@pytest.mark.parametrize("kills", [15, pytest.param(1500, marks=pytest.mark.stress)])
def test_writers_killed_at_random_lose_nothing_that_was_acknowledged(path: str, kills: int) -> None:
    choose = random.Random(5)
    with (
        Peer(WRITER + KILLED, small=True) as zygote,
        Peer(FOLLOWER, mode="readonly") as follower,
        SnapshotMap(path, mode="readonly") as m,
    ):
        follower("m = mmapds.SnapshotMap(path, mode='readonly', verify=True)", path=path)
        for kill in range(kills):
            code = "kill_one(path, seed, seconds)"
            status, acknowledged = zygote(code, path=path, seed=kill, seconds=choose.random() * 0.12)
            assert status == -signal.SIGKILL, zygote.stderr()
            n = m["n"]
            assert n in (acknowledged, acknowledged + 1) or acknowledged == 0, f"kill {kill}: {n}, {acknowledged}"
            assert follower("look(m.snapshot())") == n, f"kill {kill}: {snapdisk.state(path)}"
            if kill % 20 == 0:
                snapdisk.check(path, f"kill {kill}", leftovers=True)
        assert m["n"] > kills, "they were killed before they had written anything"
    with SnapshotMap(path) as writer:
        writer.compact()
    snapdisk.check(path, "at the end")


# ---- less memory than data -----------------------------------------------------------------------------------------

SCAN = """
import sys
import mmapds
path, count = sys.argv[1], int(sys.argv[2])
for verify in (False, True):
    with mmapds.SnapshotMap(path, mode="readonly", codec="raw", verify=verify) as m:
        n = 0
        for n, (key, value) in enumerate(m.items(), 1):
            assert len(value) == 1000 and value.startswith(key), key
        assert n == count == len(m), n
        for n, (key, value) in enumerate(reversed(m.items()), 1):
            assert value.startswith(key), key
        assert n == count, n
        got = m.get_many([b"%012d" % k for k in range(0, count, count // 5000)])
        assert len(got) >= 5000 and all(value.startswith(key) for key, value in got.items())
print("done")
"""


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A group of its own, whose memory may be limited."""
    if os.geteuid():
        pytest.skip("needs root, to make a control group")
    name = f"mmapds-test-{os.getpid()}"
    where = Path("/sys/fs/cgroup/memory", name)
    limit = "memory.limit_in_bytes"
    if not where.parent.is_dir():
        where, limit = Path("/sys/fs/cgroup", name), "memory.max"
        controllers = Path("/sys/fs/cgroup/cgroup.controllers")
        if not controllers.exists() or "memory" not in controllers.read_text():
            pytest.skip("no control groups for memory here")
    try:
        where.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if not (where / limit).exists():
            try:
                (where.parent / "cgroup.subtree_control").write_text("+memory")
            except OSError as error:
                pytest.skip(f"memory cannot be limited here: {error}")
        if not (where / limit).exists():
            pytest.skip(f"there is no {limit} in this control group")
        yield where / limit
    finally:
        where.rmdir()


@pytest.mark.slow
def test_a_scan_of_four_times_the_memory_there_is(cgroup: Path, tmp_path: Path) -> None:
    limit = 64 << 20
    count = 4 * limit // 1024
    path = str(tmp_path / "map")
    items = ((b"%012d" % n, (b"%012d" % n).ljust(1000, b"-")) for n in range(count))
    SnapshotMap.build(path, items, codec="raw", memory_limit=16 << 20)
    size = sum(os.path.getsize(os.path.join(path, name)) for name in os.listdir(path))
    assert size >= 4 * limit
    cgroup.write_text(str(limit))
    group = cgroup.parent / "cgroup.procs"
    command = [sys.executable, "-c", SCAN, path, str(count)]
    done = subprocess.run(
        ["sh", "-c", f'echo $$ > {group} && exec "$@"', "sh", *command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stdout
