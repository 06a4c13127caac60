"""Counters that come from another boot or another container, and copies of them (rows 6, 8, 13, 21, 24)."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import counterfiles
import pytest
from peers import Peer

from mmapds import CorruptionError, Counters, DurabilityFailed, IncompatibleFormat

MODES = ["shared", "readonly", "private"]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "counters")


@pytest.mark.parametrize("mode", MODES)
def test_r24_what_verifies_stays_and_what_does_not_is_given_up(path: str, mode: Any) -> None:
    expected = counterfiles.crashed(path)
    before = Path(path).read_bytes()
    with Counters(path, mode=mode) as c:
        assert c.snapshot() == expected
        assert (c[3], c.capacity, list(c), len(c)) == (33, 8, list("acfh"), 4)
        assert [name in c for name in "bdeg"] == [False] * 4
        assert [c.counter(name).index for name in "acfh"] == [8, 10, 13, 15]
        if mode != "readonly":
            assert c.fetch_add("a", 10) == 1
            assert (c.fetch_add("e", 5), c.counter("e").index) == (0, 12), "a removed name has its own cell"
            assert (c.fetch_add("d", 6), c.counter("d").index) == (0, 16), "the torn one is given to nobody"
            assert (c.fetch_add("new"), c.counter("new").index) == (0, 17)
            assert (c.fetch_add("b", 7), c.counter("b").index) == (2, 9), "the disk had its cell as it was"
    if mode != "shared":
        assert Path(path).read_bytes() == before
        return
    found = counterfiles.check(path)
    assert [found.entry(number).state for number in (1, 3, 6)] == ["live", "damaged", "damaged"]
    assert counterfiles.word(path, counterfiles.FAILED) == 0
    with Counters(path) as c:
        assert c.snapshot() == {"a": 11, "b": 9, "c": 3, "e": 5, "f": 6, "h": 8, "d": 6, "new": 1}


def test_r24_the_origin_is_this_boot_and_this_file_afterwards(path: str) -> None:
    counterfiles.crashed(path)
    Counters(path).close()
    origin = counterfiles.peek(path, counterfiles.ORIGIN, 32)
    assert origin[:16] == bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))
    status = os.stat(path)
    assert origin[16:] == status.st_dev.to_bytes(8, "little") + status.st_ino.to_bytes(8, "little")
    before = Path(path).read_bytes()
    Counters(path).close()
    assert Path(path).read_bytes() == before, "recovered twice"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (counterfiles.NAMES, 0),
        (counterfiles.NAMES, 3),
        (counterfiles.NAMES, 0x1234567890ABCDEF),
        (counterfiles.NAMES, (1 << 64) - 1),
        (counterfiles.CHANGES, 0),
        (counterfiles.CHANGES, (1 << 64) - 1),
        (counterfiles.REMOVING, 77),
        (counterfiles.REMOVING, (1 << 64) - 1),
    ],
)
def test_r24_control_words_torn_by_the_crash_cost_nothing(path: str, offset: int, value: int, mode: Any) -> None:
    with Counters(path) as c:
        c.update(a=1, b=2, c=3)
    counterfiles.poke_word(path, offset, value)
    counterfiles.other_boot(path)
    with Counters(path, mode=mode) as c:
        assert c.snapshot() == {"a": 1, "b": 2, "c": 3}
        if mode != "readonly":
            c["d"] = 4
            assert c.pop("a") == 1
            assert c.snapshot() == {"b": 2, "c": 3, "d": 4}
    if mode == "shared":
        counterfiles.check(path)


def test_r24_an_extent_that_did_not_reach_the_disk_whole(path: str) -> None:
    """Its record, its size, its sentinel and its names, in every combination that lacks something."""
    with Counters(path, 4) as c:
        for n in range(100):
            c[f"n{n}"] = n
    whole = counterfiles.check(path)
    assert len(whole.extents) == 2
    first, second = whole.extents
    for lacks in ("size", "part of the size", "sentinel", "names", "record", "half the record"):
        content = bytearray(whole.content)
        record = counterfiles.EXTENTS + counterfiles.EXTENT_SIZE
        if lacks in ("size", "part of the size"):
            del content[first.end + (5000 if lacks != "size" else 0) :]
        elif lacks == "sentinel":
            content[second.end - 8 : second.end] = bytes(8)
        elif lacks == "names":
            content[second.names_start : second.end - 8] = bytes(second.names_size - 8)
        elif lacks == "record":
            content[record : record + 32] = bytes(32)
        else:
            content[record + 8 : record + 16] = bytes(8)
        kept = 100 if lacks == "sentinel" else first.entries
        for mode in ("readonly", "private", "shared"):
            counterfiles.restore(path, bytes(content))
            with Counters(path, mode=mode) as c:  # type: ignore[arg-type]
                assert c.snapshot() == {f"n{n}": n for n in range(kept)}, f"{lacks}, mode {mode}"
                if mode != "readonly":
                    for n in range(kept, 300):
                        assert c.fetch_add(f"n{n}", n) == 0, f"{lacks}, mode {mode}: {n}"
                    assert c.snapshot() == {f"n{n}": n for n in range(300)}, f"{lacks}, mode {mode}"
        counterfiles.check(path, lacks)


@pytest.mark.parametrize("lacks", ["the control page", "the first extent", "the header page"])
def test_r24_a_file_without_what_it_begins_with_is_refused(path: str, lacks: str) -> None:
    """It had all that before it got its name, in both durabilities, but for a disk that lost it."""
    with Counters(path) as c:
        c["a"] = 1
    if lacks == "the header page":
        counterfiles.poke(path, 0, bytes(4096))
    elif lacks == "the control page":
        counterfiles.poke(path, 4096, bytes(4096))
    else:
        os.truncate(path, counterfiles.CONTROL + 100)
    counterfiles.other_boot(path)
    before = Path(path).read_bytes()
    for mode in MODES:
        with pytest.raises((CorruptionError, IncompatibleFormat)), Counters(path, mode=mode) as c:  # type: ignore[arg-type]
            assert c.snapshot() == {"a": 1}, "another answer than none"
    assert Path(path).read_bytes() == before


def test_r24_a_copy_is_verified_before_it_is_trusted(path: str, tmp_path: Path) -> None:
    """Also one that was made while the original was in use, and in the middle of a removal."""
    copy = str(tmp_path / "copy")
    with Counters(path) as original:
        original.update(a=1, b=2)
        found = counterfiles.Snapshot(path)
        content = bytearray(found.content)
        content[found.entry(1).offset : found.entry(1).offset + 8] = b"removed "
        content[counterfiles.REMOVING : counterfiles.REMOVING + 8] = counterfiles.count(2, found.identity).to_bytes(
            8, "little"
        )
        counterfiles.restore(copy, bytes(content))
        with Counters(copy) as c:
            assert c.snapshot() == {"a": 1}
            c.add("a")
            c.check()
        assert original.snapshot() == {"a": 1, "b": 2}
        counterfiles.restore(copy, bytes(content))
        counterfiles.flip(copy, 8 * (found.entry(0).offset + 20))
        for mode in ("readonly", "private", "shared"):
            with Counters(copy, mode=mode) as c:  # type: ignore[arg-type]
                assert c.snapshot() == {}


def test_r24_copies_made_while_names_come_and_go(path: str, tmp_path: Path) -> None:
    """Each is what it was at about one moment: names that verify, values that somebody had counted to."""
    with Counters(path) as c:
        c["always"] = 5
    with Peer("import itertools; c = mmapds.Counters(path)", path=path) as peer:
        peer.send(
            """
for n in itertools.count():
    c.add("counted")
    c[f"name {n % 500}"] = n % 500
    if n % 3 == 0:
        c.pop(f"name {n * 7 % 500}", None)
"""
        )
        last = 0
        for n in range(60):
            copy = str(tmp_path / f"copy{n}")
            counterfiles.copy(path, copy)
            with Counters(copy) as c:
                values = c.snapshot()
                assert values.pop("always") == 5
                counted = values.pop("counted", 0)
                assert last <= counted
                last = int(counted)
                wrong = {k: v for k, v in values.items() if k != f"name {v}" and v != 0}
                assert not wrong, f"copy {n}: {wrong}"
            counterfiles.check(copy)
            os.unlink(copy)
        peer.kill()
    assert last > 0


# ---- who is alive --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alive", ["a handle", "a handle that has only counted"])
def test_r21_another_boot_id_changes_nothing_while_somebody_is_alive(path: str, alive: str) -> None:
    """Two containers on one volume may have boot ids of their own."""
    with Peer("c = mmapds.Counters(path); c['a'] = 1", path=path) as peer:
        if alive != "a handle":
            peer("[c.add(0) for _ in range(10)] and None")
        counterfiles.poke_word(path, counterfiles.FAILED, 0)
        for n in range(3):
            counterfiles.other_boot(path)
            before = counterfiles.Snapshot(path)
            with Counters(path) as c, Counters(path, mode="readonly") as looking:
                c.add("a")
                assert c["a"] == looking["a"] == 2 + n
                assert counterfiles.Snapshot(path).changes == before.changes, "recovered under somebody alive"
            assert peer("c['a']") == 2 + n
        peer.kill()
    with Counters(path) as c:
        assert counterfiles.Snapshot(path).changes == before.changes + 1, "now nobody is alive"
        assert c["a"] == 4


def in_container(boot: str) -> tuple[str, ...]:
    """A command prefix: in pid and mount namespaces of its own, as pid 1, with its own idea of the boot id."""
    script = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    return ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, boot)


def test_r21_two_containers_with_pid_1_and_boot_ids_of_their_own(path: str, tmp_path: Path) -> None:
    commands = []
    for n in (1, 2):
        boot = tmp_path / f"boot{n}"
        boot.write_text(f"{n:08x}-0000-4000-8000-000000000000\n")
        commands.append(in_container(str(boot)))
    try:
        with Peer(wrapper=commands[0]) as probe:
            assert probe("os.getpid()") == 1
    except Exception as error:  # noqa: BLE001  whatever this machine says
        pytest.skip(f"no containers here: {str(error).splitlines()[-1]}")
    setup = "c = mmapds.Counters(path)"
    work = """
for n in range(300):
    c.add("both")
    c.add(f"{who}{n}")
    c.add(f"name{n}")
    if n % 10 == 9:
        taken += c.pop("popped", 0)
    c.add("popped")
"""
    with (
        Peer(setup, wrapper=commands[0], path=path, who="one", taken=0) as one,
        Peer(setup, wrapper=commands[1], path=path, who="two", taken=0) as two,
    ):
        for peer in (one, two):
            peer.send(work)
        for peer in (one, two):
            peer.receive()
        for peer in (one, two):
            assert peer("c['both'], len(c)") == (600, 902 if peer("'popped' in c") else 901)
        assert one("taken") + two("taken") + one("c.pop('popped', 0)") == 600
        one.kill()
        two("[c.add('both') for _ in range(5)] and None")
    with Counters(path) as c:
        assert c["both"] == 605
        assert all(c[f"name{n}"] == 2 and c[f"one{n}"] == c[f"two{n}"] == 1 for n in range(300))
        c.check()
    counterfiles.check(path)


def test_r24_a_sync_that_failed_on_another_boot_is_forgotten(path: str) -> None:
    with Counters(path, durability="power") as c:
        c["a"] = 1
    counterfiles.poke_word(path, counterfiles.FAILED, 1)
    with Counters(path) as c, pytest.raises(DurabilityFailed):  # on this boot it counts
        c.reserve("a", 1)
    counterfiles.other_boot(path)
    with Counters(path) as c:
        assert c.reserve("a", 2) == range(1, 3)


# ---- readers that may not write ------------------------------------------------------------------------------------


def test_r13_a_readonly_reader_recovers_for_itself_until_somebody_does_it_for_all(path: str) -> None:
    expected = counterfiles.crashed(path)
    os.chmod(path, stat.S_IRUSR)
    before = Path(path).read_bytes()
    with Counters(path, mode="readonly") as reader:
        bound = reader.counter("a")
        assert reader.snapshot() == expected
        assert Path(path).read_bytes() == before
        os.chmod(path, 0o600)
        with Counters(path) as writer:
            assert reader.snapshot() == expected
            writer.add("a", 100)
            writer["late"] = 1
            writer.pop("c")
            assert reader.snapshot() == writer.snapshot() == {"a": 101, "f": 6, "h": 8, "late": 1}
            assert (reader["a"], bound.load()) == (101, 101)
            with pytest.raises(PermissionError):
                reader.add("a")
        assert reader.snapshot() == {"a": 101, "f": 6, "h": 8, "late": 1}


def test_r13_a_readonly_reader_beside_a_recovery_that_has_only_begun(path: str) -> None:
    """Somebody has the locks of a recovery and has not decided anything: the file must not be trusted."""
    expected = counterfiles.crashed(path)
    with Peer() as recoverer:
        recoverer(
            "import counterfiles; fd = os.open(path, os.O_RDWR); counterfiles.lock(fd, 0); counterfiles.lock(fd, 1, 0)",
            path=path,
        )
        with Counters(path, mode="readonly") as reader:
            assert reader.snapshot() == expected
            recoverer.kill()
            assert reader.snapshot() == expected
