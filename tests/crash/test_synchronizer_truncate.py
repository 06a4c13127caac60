"""Files cut, removed or replaced under those who have them mapped (rows 9, 19)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import syncfiles
from peers import Peer, PeerError
from victims import number, pattern

from mmapds import CorruptionError, IncompatibleFormat, MappingLost, Synchronizer

SIZE = 40_000


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "value")


@pytest.fixture
def writer(prefix: str) -> Iterator[Synchronizer]:
    with Synchronizer(prefix, codec="raw") as handle:
        for n in range(1, 8):
            handle.write_bytes(pattern(n, SIZE))
        yield handle


def lost(peer: Peer, code: str) -> None:
    """The operation, or the next one, says that part of the mapping is gone."""
    for _ in range(2):
        name, message = outcome(peer, f"{code} and None")
        assert name in ("", "MappingLost"), f"{name}: {message}"
        if name:
            return
    raise AssertionError(f"twice no MappingLost from: {code}")


def outcome(peer: Peer, code: str) -> tuple[str, str]:
    """The name and message of the exception; both empty if there is none."""
    try:
        peer(code)
    except PeerError as error:
        return error.name, error.message
    return "", ""


READER = "import victims; s = Synchronizer(prefix); r = s.read(); view = r.data"


def test_r09_views_read_zeros_and_the_next_operation_says_so(writer: Synchronizer, prefix: str) -> None:
    with Peer(READER, prefix=prefix) as reader:
        os.truncate(syncfiles.data(prefix, 1), 0)
        assert reader("bytes(view) == bytes(len(view))") is True
        for use in ("r.data", "r.value", "bytes(r)", "memoryview(r)"):
            assert reader.fails(use)[0] == "MappingLost"
        for _ in range(2):
            for use in ("s.read()", "s.load()", "s.version", "s.wait(timeout=0)", "s.write_bytes(b'x')"):
                assert reader.fails(use)[0] == "MappingLost", use
        assert reader("bytes(view) == bytes(len(view))") is True, "the view stays usable"
        reader("view.release(); r.release(); s.close()")
        assert reader("s = Synchronizer(prefix); 1") == 1, "the process lives and may open again"


def test_r09_cut_in_the_middle_of_a_value(writer: Synchronizer, prefix: str) -> None:
    with Peer(READER, prefix=prefix) as reader:
        os.truncate(syncfiles.data(prefix, 1), 4096 + 5000)
        assert reader("bytes(view[:4096]) == victims.pattern(7, 4096)") is True
        assert reader("bytes(view[8192:]) == bytes(len(view) - 8192)") is True
        assert reader.fails("r.data")[0] == "MappingLost"


def test_r09_the_poisoned_handle_lets_go_and_others_go_on(writer: Synchronizer, prefix: str) -> None:
    """A reader and a writer are poisoned; both are still there; what they held is free for others at once."""
    writer.close()
    with (
        Peer(READER, prefix=prefix) as reader,
        Peer(
            "import victims; s = Synchronizer(prefix); s.write_bytes(victims.pattern(8, 40_000)).size", prefix=prefix
        ) as w,
    ):
        w("s.write_bytes(victims.pattern(9, 40_000), 0.0).size")
        reader("q = s.read(); victims.number(q.data)")
        os.truncate(syncfiles.data(prefix, 1), 0)
        os.truncate(syncfiles.data(prefix, 0), 0)
        reader("sum(view)")
        lost(reader, "sum(s.read().data)")
        lost(w, "s.write_bytes(victims.pattern(s.version + 1, 40_000), 0.0).size")
        assert w.fails("s.write_bytes(b'x')")[0] == "MappingLost"
        assert not syncfiles.locked(syncfiles.sync(prefix), syncfiles.LOCK_WRITER), (
            "the poisoned writer holds its place"
        )
        for index in (0, 1):
            os.unlink(syncfiles.data(prefix, index))
        with Synchronizer(prefix) as successor:
            successor.write_bytes(pattern(successor.version + 1, SIZE))
            successor.write_bytes(pattern(successor.version + 1, SIZE))
            assert number(successor.load()) == successor.version
            reader("view.release(); r.release(); q.release(); s.close()")
            w("s.close()")
            assert syncfiles.slots_in_use(prefix) == [successor.slot], syncfiles.state(prefix)
            successor.check()


def test_r09_a_poisoned_reader_keeps_what_is_whole_and_touches_nobody_elses_pins(
    writer: Synchronizer, prefix: str
) -> None:
    """It holds a version in the file that was not cut. Whatever it does then must not undo the pins of others."""
    with Peer(READER, prefix=prefix) as poisoned, Peer() as other:
        writer.write_bytes(pattern(8, SIZE))
        assert poisoned("victims.number(s.load())") == 8
        os.truncate(syncfiles.data(prefix, 0), 0)  # the newest version's file
        lost(poisoned, "sum(s.read().data)")
        assert poisoned("victims.number(view)") == 7, "the other file is whole"
        writer.close()
        os.unlink(syncfiles.data(prefix, 0))
        with Synchronizer(prefix) as successor:
            for n in (9, 10, 11):
                successor.write_bytes(pattern(n, SIZE), grace=0.0)
                assert poisoned("victims.number(view)") == 7, "what it holds was overwritten"
            slot = other("import victims; s = Synchronizer(prefix); r = s.read(); s.slot", prefix=prefix)
            for use in (
                "lost = [type(e) for f in (s.read, s.load) for e in [error(f)]]",
                "view.release()",
                "r.release()",
                "del view, r",
                "s.close()",
                "del s; import gc; gc.collect()",
            ):
                poisoned("def error(f):\n    try: f()\n    except Exception as e: return e")
                poisoned(use)
                assert syncfiles.pins(prefix)[slot] == (0, 1), f"after {use}: {syncfiles.state(prefix)}"
                assert slot in syncfiles.slots_in_use(prefix), f"after {use}: {syncfiles.state(prefix)}"
                for _ in range(2):
                    successor.write_bytes(pattern(successor.version + 1, SIZE), grace=0.0)
                assert other("victims.number(r.data)") == 11, f"after {use}"
            assert syncfiles.pins(prefix) == {slot: (0, 1)}, syncfiles.state(prefix)


@pytest.mark.parametrize("size", [0, 4096, 4200, 8192, 100_000])
def test_r09_the_sync_file_is_cut_under_everybody(writer: Synchronizer, prefix: str, size: int) -> None:
    """The words in it read as zeros: nobody may take them for an empty Synchronizer or for free pins."""
    with Peer(READER, prefix=prefix) as holder, Peer(READER, prefix=prefix) as reader:
        for peer in (holder, reader):
            peer("view.release(); r.release()")
        writer.write_bytes(pattern(8, SIZE))
        holder("r = s.read(); view = r.data")
        writer.write_bytes(pattern(9, SIZE))
        os.truncate(syncfiles.sync(prefix), size)
        for _ in range(3):
            try:
                writer.write_bytes(b"\xff" * SIZE, grace=0.0)
            except MappingLost:
                break
            except (CorruptionError, IncompatibleFormat) as error:
                pytest.fail(f"{type(error).__name__} is not what happened: {error}")
        assert holder("victims.number(view)") == 8, "what a live reader holds was overwritten"
        if size < 8192 + 1024 * 128:
            for _ in range(3):
                name, message = outcome(reader, "s.load(default=b'nothing') and None")
                assert name in ("", "MappingLost"), f"{name}: {message}"
                assert reader("s._is_closed") is False
        lost_or_whole(reader)


def lost_or_whole(peer: Peer) -> None:
    for code in ("s.load(default=None)", "s.read()", "s.load()"):
        name, message = outcome(
            peer, f"x = {code}; assert x is not None; n = victims.number(x); assert n in (8, 9, 2**64 - 1), n"
        )
        assert name in ("", "MappingLost"), f"{code}: {name}: {message}"


def test_r09_a_file_cut_before_it_is_mapped_is_corrupt_and_nothing_is_poisoned(
    writer: Synchronizer, prefix: str
) -> None:
    with Synchronizer(prefix) as reader:
        os.truncate(syncfiles.data(prefix, 1), 4096 + 100)
        for _ in range(2):
            with pytest.raises(CorruptionError, match="shorter"):
                reader.read()
        writer.write_bytes(pattern(8, SIZE))
        assert number(reader.load()) == 8, "the next version is whole"
        assert syncfiles.pins(prefix) == {}


def test_r09_a_copying_reader_survives_too(writer: Synchronizer, prefix: str) -> None:
    with Peer(
        "import victims; s = Synchronizer(prefix, mode='readonly'); victims.number(s.load())", prefix=prefix
    ) as p:
        writer.write_bytes(pattern(8, SIZE))
        p("victims.number(s.load())")
        writer.write_bytes(pattern(9, SIZE))  # into the file that it has mapped
        os.truncate(syncfiles.data(prefix, 1), 0)
        lost(p, "s.load()")
        assert p.fails("s.read()")[0] == "MappingLost"


def test_r09_the_value_is_cut_away_while_it_is_written(prefix: str) -> None:
    """The copy goes into a file that somebody keeps cutting: an error, or a version that is whole."""
    with (
        Synchronizer(prefix, codec="raw") as s,
        Peer("import time; stop = False", path=syncfiles.data(prefix, 1), other=syncfiles.data(prefix, 0)) as cutter,
    ):
        s.write_bytes(pattern(1, 8 << 20))
        s.write_bytes(pattern(2, 8 << 20))
        cutter.send(
            "[(os.truncate(p, 4096), os.truncate(p, 9 << 20)) for _ in range(3000) for p in (path, other)] and None"
        )
        failed = False
        for n in range(3, 200):
            try:
                s.write_bytes(pattern(n, 8 << 20))
            except MappingLost:
                failed = True
                break
        cutter.receive()
        assert failed
        with pytest.raises(MappingLost):
            s.load()


# ---- the path ------------------------------------------------------------------------------------------------------


def replace(prefix: str, suffixes: tuple[str, ...] = syncfiles.SUFFIXES) -> None:
    """Other files of the same names, as a restore from a backup makes them."""
    for suffix in suffixes:
        content = Path(prefix + suffix).read_bytes()
        os.unlink(prefix + suffix)
        Path(prefix + suffix).write_bytes(content)


def test_r19_a_writer_whose_path_was_replaced_says_so_when_it_starts(writer: Synchronizer, prefix: str) -> None:
    with Synchronizer(prefix) as other:
        writer.close()
        replace(prefix)
        before = syncfiles.snapshot(prefix)
        with pytest.raises(MappingLost, match="replaced"):
            other.write_bytes(b"x")
        assert syncfiles.snapshot(prefix) == before


def test_r19_a_reader_whose_path_was_removed_says_so_when_it_must_look(writer: Synchronizer, prefix: str) -> None:
    with Synchronizer(prefix) as reader, Synchronizer(prefix, mode="readonly") as copying:
        for suffix in syncfiles.SUFFIXES:
            os.unlink(prefix + suffix)
        for handle in (reader, copying):
            with pytest.raises(MappingLost, match="removed or replaced"):
                handle.read()
            with pytest.raises(MappingLost, match="removed or replaced"):
                handle.wait(timeout=5.0)


def test_r19_a_data_file_of_another_synchronizer_is_refused(writer: Synchronizer, prefix: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    with Synchronizer(other, codec="raw") as s:
        for n in range(1, 9):
            s.write_bytes(pattern(n, SIZE))
    os.replace(syncfiles.data(other, 1), syncfiles.data(prefix, 1))
    with Synchronizer(prefix, verify=False) as reader:
        with pytest.raises(IncompatibleFormat, match="belongs to another"):
            reader.read()
        writer.write_bytes(pattern(8, SIZE))
        assert number(reader.load()) == 8


def test_r19_what_was_mapped_before_the_path_was_replaced_stays_readable(writer: Synchronizer, prefix: str) -> None:
    with Synchronizer(prefix) as reader, reader.read() as held:
        replace(prefix)
        assert number(held.data) == 7
        assert number(reader.load()) == 7
        with Synchronizer(prefix) as new:
            new.write_bytes(b"elsewhere" * 100)
            assert number(held.data) == 7
            with pytest.raises(MappingLost, match="replaced"):
                reader.wait(timeout=600)
