"""Files that come from another boot or another container, and copies of files (rows 6, 8, 13, 21, 24)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import syncfiles
from peers import Peer
from victims import number, pattern

from mmapds import CorruptionError, DurabilityFailed, Synchronizer

SIZE = 6000


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "value")


@pytest.fixture
def old(prefix: str) -> str:
    """Versions 1 to 7, last used on another boot, with everything volatile left as a crash leaves it."""
    with Synchronizer(prefix, codec="raw") as s:
        for n in range(1, 8):
            s.write_bytes(pattern(n, SIZE))
    path = syncfiles.sync(prefix)
    syncfiles.poke(path, syncfiles.IN_USE, b"\xff" * 128)
    syncfiles.poke(path, syncfiles.SLOTS, (b"\x02" + bytes(7) + b"\x01" + bytes(119)) * syncfiles.SLOT_COUNT)
    syncfiles.poke(path, syncfiles.WAITERS, b"\x01\0\0\0")
    syncfiles.other_boot(path)
    return prefix


def damage_newest(prefix: str) -> None:
    syncfiles.flip(syncfiles.data(prefix, 1), 8 * (4096 + SIZE - 1))


def damage_both(prefix: str) -> None:
    damage_newest(prefix)
    syncfiles.flip(syncfiles.data(prefix, 0), 8 * 4096)


def test_r24_another_boot_resets_pins_slots_and_waiters_and_keeps_the_value(old: str) -> None:
    with Synchronizer(old) as s:
        assert syncfiles.slots_in_use(old) == []
        assert syncfiles.pins(old) == {}
        assert syncfiles.word(syncfiles.sync(old), syncfiles.WAITERS) == 0
        assert (s.version, number(s.load())) == (7, 7)
        assert not s.write_bytes(pattern(8, SIZE)).reset
        assert not s.write_bytes(pattern(9, SIZE)).reset
        s.check()
    origin = syncfiles.peek(syncfiles.sync(old), syncfiles.ORIGIN, 32)
    assert origin[:16] == boot_id()
    status = os.stat(syncfiles.sync(old))
    assert origin[16:] == status.st_dev.to_bytes(8, "little") + status.st_ino.to_bytes(8, "little")


def boot_id() -> bytes:
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))


def test_r24_a_flush_that_failed_on_another_boot_is_forgotten(old: str) -> None:
    syncfiles.poke_word(syncfiles.sync(old), syncfiles.FAILED, 1)
    with Synchronizer(old) as s:
        assert number(s.load()) == 7
    syncfiles.poke_word(syncfiles.sync(old), syncfiles.FAILED, 1)  # on this boot it counts
    with Synchronizer(old) as s, pytest.raises(DurabilityFailed):
        s.load()


@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
def test_r06_the_newest_version_that_verifies_is_chosen(old: str, mode: Any) -> None:
    damage_newest(old)
    with Synchronizer(old, mode=mode, verify=False) as s:
        assert (s.version, number(s.load())) == (6, 6)
        assert syncfiles.sequence(old) == (6 if mode == "shared" else 7), "only mode shared repairs the file"
    with Synchronizer(old) as s:
        s.write_bytes(pattern(7, SIZE))
        assert (s.version, number(s.load())) == (7, 7)
        s.write_bytes(pattern(8, SIZE))
        s.check()


@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
def test_r06_nothing_that_verifies_is_a_clear_error_and_changes_nothing(old: str, mode: Any) -> None:
    damage_both(old)
    before = syncfiles.snapshot(old)
    for _ in range(2):
        with pytest.raises(CorruptionError, match="another boot"):
            Synchronizer(old, mode=mode)
        assert syncfiles.snapshot(old) == before
        assert not syncfiles.locked(syncfiles.sync(old), 0, 0)


TORN_COMMITS = {
    "the sequence of an unfinished publish": (syncfiles.COMMIT, 8),
    "a sequence of zeros": (syncfiles.COMMIT, 0),
    "a sequence of nonsense": (syncfiles.COMMIT, 0x1234567890ABCDEF),
    "record 1 half written: its sequence": (syncfiles.RECORDS[1], 9),
    "record 1 half written: its size": (syncfiles.RECORDS[1] + 8, 8000),
    "record 1 half written: its hash": (syncfiles.RECORDS[1] + 16, 5),
    "record 1 half written: its check": (syncfiles.RECORDS[1] + 24, 5),
}


@pytest.mark.parametrize("what", TORN_COMMITS)
def test_r06_a_torn_commit_block_leaves_a_version_that_verifies(old: str, what: str) -> None:
    offset, value = TORN_COMMITS[what]
    syncfiles.poke_word(syncfiles.sync(old), offset, value)
    expected = 6 if "record 1" in what else 7
    for mode in ("readonly", "private", "shared"):
        with Synchronizer(old, mode=mode) as s:  # type: ignore[arg-type]
            assert (s.version, number(s.load())) == (expected, expected), mode


@pytest.mark.parametrize("missing", ["_data_0", "_data_1"])
def test_r06_a_data_file_that_never_reached_the_disk(old: str, missing: str) -> None:
    os.unlink(old + missing)
    expected = 7 if missing == "_data_0" else 6
    for mode in ("readonly", "private", "shared"):
        with Synchronizer(old, mode=mode) as s:  # type: ignore[arg-type]
            assert number(s.load()) == expected, mode
    with Synchronizer(old) as s:
        for n in range(expected + 1, expected + 4):
            s.write_bytes(pattern(n, SIZE))
            assert number(s.load()) == n
        s.check()


@pytest.mark.parametrize("size", [0, 100, 4096, 4096 + 100, 4096 + SIZE - 1])
def test_r06_a_data_file_that_is_too_short_after_the_crash(old: str, size: int) -> None:
    os.truncate(syncfiles.data(old, 1), size)
    for mode in ("readonly", "private", "shared"):
        with Synchronizer(old, mode=mode) as s:  # type: ignore[arg-type]
            assert number(s.load()) == 6, mode
    with Synchronizer(old) as s:
        for n in (7, 8, 9):
            s.write_bytes(pattern(n, SIZE))
            assert number(s.load()) == n


def test_r06_nothing_was_ever_published(prefix: str) -> None:
    Synchronizer(prefix, codec="raw").close()
    syncfiles.other_boot(syncfiles.sync(prefix))
    for mode in ("readonly", "private", "shared"):
        with Synchronizer(prefix, mode=mode) as s:  # type: ignore[arg-type]
            assert s.version == 0
            assert s.load(default="nothing") == "nothing"


def test_r24_a_copy_is_verified_before_it_is_trusted(old: str, tmp_path: Path) -> None:
    with Synchronizer(old) as original:
        assert number(original.load()) == 7
        with original.read() as held:
            copy = str(tmp_path / "copy")
            syncfiles.copy(old, copy)  # while the original is in use, with a pin and a slot in it
            assert syncfiles.pins(copy) != {}
            with Synchronizer(copy) as s:
                assert syncfiles.pins(copy) == {}
                assert syncfiles.slots_in_use(copy) == []
                assert number(s.load()) == 7
                s.write_bytes(pattern(8, SIZE))
                s.write_bytes(pattern(9, SIZE))
                s.check()
            assert number(held.data) == 7
            assert original.version == 7
        broken = str(tmp_path / "broken")
        syncfiles.copy(old, broken)
        damage_newest(broken)
        with Synchronizer(broken, verify=False) as s:
            assert number(s.load()) == 6


def test_r24_a_copy_made_while_a_writer_writes_is_whole_or_refused(prefix: str, tmp_path: Path) -> None:
    with (
        Synchronizer(prefix, codec="raw") as s,
        Peer("s = Synchronizer(prefix); import victims", prefix=prefix) as peer,
    ):
        s.write_bytes(pattern(1, 200_000))
        s.close()
        peer.send("while s.version < 20_000: s.write_bytes(victims.pattern(s.version + 1, 200_000), grace=0.0)")
        whole = refused = 0
        for n in range(60):
            copy = str(tmp_path / f"copy{n}")
            syncfiles.copy(prefix, copy)
            try:
                with Synchronizer(copy) as copied:
                    assert number(copied.load()) == copied.version
                    whole += 1
            except CorruptionError:
                refused += 1
            for suffix in syncfiles.snapshot(copy):
                os.unlink(copy + suffix)
        assert whole + refused == 60
        peer.kill()


def test_r24_files_of_two_copies_mixed_are_refused_or_whole(prefix: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    for name, last in ((prefix, 4), (other, 9)):
        with Synchronizer(name, codec="raw") as s:
            for n in range(1, last):
                s.write_bytes(pattern(n * 100 + last, SIZE))
    os.replace(syncfiles.data(other, 1), syncfiles.data(prefix, 1))
    syncfiles.other_boot(syncfiles.sync(prefix))
    with Synchronizer(prefix) as s:
        assert number(s.load()) == 204, "version 3 lay in the file that was replaced; version 2 is whole"


# ---- who is alive --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alive", ["reader", "writer", "view of a closed handle"])
def test_r21_another_boot_id_resets_nothing_while_somebody_is_alive(prefix: str, alive: str) -> None:
    """Two containers on one volume may have boot ids of their own."""
    with Synchronizer(prefix, codec="raw") as s:
        s.write_bytes(pattern(1, SIZE))
    setups = {
        "reader": "s = Synchronizer(prefix); r = s.read(); view = r.data",
        "writer": "s = Synchronizer(prefix); r = s.read(); view = r.data; s.write_bytes(victims.pattern(2, 6000)).size",
        "view of a closed handle": "s = Synchronizer(prefix); r = s.read(); view = r.data; r.release(); s.close()",
    }
    with Peer("import victims; " + setups[alive], prefix=prefix) as peer:
        for _ in range(3):
            syncfiles.other_boot(syncfiles.sync(prefix))
            with Synchronizer(prefix) as s, Synchronizer(prefix, mode="readonly") as looking:
                assert len(syncfiles.pins(prefix)) == 1, "the pin of the living was taken"
                assert number(s.load()) == number(looking.load()) == s.version
                if alive != "writer":
                    for _ in range(4):
                        s.write_bytes(pattern(s.version + 1, SIZE), grace=0.0)
        assert peer("victims.number(view)") == 1, "the view of somebody alive was overwritten"
        peer.kill()
    with Synchronizer(prefix) as s:
        assert syncfiles.pins(prefix) == {}, "now nobody is alive"
        assert number(s.load()) == s.version


def in_container(boot: str) -> tuple[str, ...]:
    """A command prefix: in pid and mount namespaces of its own, as pid 1, with its own idea of the boot id."""
    script = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    return ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, boot)


def test_r21_two_containers_with_pid_1_and_boot_ids_of_their_own(prefix: str, tmp_path: Path) -> None:
    commands = []
    for n in (1, 2):
        boot = tmp_path / f"boot{n}"
        boot.write_text(f"{n:08x}-0000-4000-8000-000000000000\n")
        commands.append(in_container(str(boot)))
    try:
        with Peer(wrapper=commands[0]) as probe:
            assert probe("os.getpid()") == 1
            assert probe("open('/proc/sys/kernel/random/boot_id').read()").startswith("00000001-")
    except Exception as error:  # noqa: BLE001  whatever this machine says
        pytest.skip(f"no containers here: {str(error).splitlines()[-1]}")
    setup = "import victims; s = Synchronizer(prefix, codec='raw')"
    with Peer(setup, wrapper=commands[0], prefix=prefix) as one:
        one("s.write_bytes(victims.pattern(1, 6000)).size")
        one("r = s.read()")
        with Peer(setup, wrapper=commands[1], prefix=prefix) as two:
            assert two.fails("s.write_bytes(b'x')")[0] == "WriterBusy"
            two("q = s.read()")
            assert two("victims.number(q.data)") == 1
            assert len(syncfiles.slots_in_use(prefix)) == 2
            assert one("[s.write_bytes(victims.pattern(n, 6000), 0.0).reset for n in (2, 3, 4, 5)]") == [
                False, True, False, True,
            ]  # fmt: skip
            assert one("victims.number(r.data)") == 1
            assert two("victims.number(q.data)") == 1
            one.kill()
            while syncfiles.locked(
                syncfiles.sync(prefix), syncfiles.LOCK_WRITER
            ):  # its child is pid 1, and dies with it
                time.sleep(0.01)
            assert two("s.write_bytes(victims.pattern(6, 6000), 0.0).size") == 6000
            assert two("victims.number(q.data), victims.number(s.load())") == (1, 6)
    with Synchronizer(prefix) as s:
        assert number(s.load()) == 6
        s.check()


# ---- readers that may not write ------------------------------------------------------------------------------------


def test_r13_a_readonly_reader_recovers_for_itself_until_somebody_does_it_for_all(old: str) -> None:
    damage_newest(old)
    before = syncfiles.snapshot(old)
    with Synchronizer(old, mode="readonly") as reader:
        assert (reader.version, number(reader.load())) == (6, 6)
        assert syncfiles.snapshot(old) == before
        with Synchronizer(old) as writer:
            assert (reader.version, number(reader.load())) == (6, 6)
            writer.write_bytes(pattern(7, SIZE))
            assert (reader.version, number(reader.load())) == (7, 7)
            assert reader.wait(newer_than=6) == 7
        assert (reader.version, number(reader.load())) == (7, 7)


def test_r13_a_readonly_reader_beside_a_recovery_that_has_only_begun(old: str) -> None:
    """Somebody has the locks of a recovery and has not decided anything: the file must not be trusted."""
    damage_newest(old)
    with Peer() as recoverer:
        recoverer(
            "import syncfiles; fd = os.open(syncfiles.sync(prefix), os.O_RDWR); "
            "syncfiles.lock(fd, 0); syncfiles.lock(fd, 1, 0)",
            prefix=old,
        )
        with Peer("s = Synchronizer(prefix, mode='readonly', verify=False); import victims", prefix=old) as reader:
            assert reader("s.version, victims.number(s.load())") == (6, 6)
            recoverer.kill()
            assert reader("s.version, victims.number(s.load())") == (6, 6)
