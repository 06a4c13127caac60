"""Counters on disks that are full or failing (rows 10, 11, 12)."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import counterfiles
import pytest
from peers import Peer

from mmapds import Counters, DurabilityFailed

Mount = Callable[..., Path]


def fill(path: Path) -> int:
    """Writes until the disk is full; how many bytes that took."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while True:
                    file.write(os.urandom(size))
        return file.tell()


def names_until_full(c: Counters, start: int = 0) -> int:
    """Makes names until the disk has no room for more; how many there are then."""
    for n in range(start, 1_000_000):
        try:
            c[f"name {n}"] = n
        except OSError as error:
            assert error.errno == errno.ENOSPC, error  # noqa: PT017
            return n
    raise AssertionError("this disk is not small")


# ---- row 10: full --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["mmapds", "emmap"])
@pytest.mark.parametrize("leave", [0, 8192, 24_576])
def test_r10_no_room_to_create(small_disk: Path, leave: int, layout: Any) -> None:
    filler = small_disk / "filler"
    os.truncate(filler, fill(filler) - leave) if leave else fill(filler)
    before = os.listdir(small_disk)
    with pytest.raises(OSError, match="No space") as caught:
        Counters(small_disk / "counters", 10_000, layout=layout)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(small_disk) == before
    filler.unlink()
    with Counters(small_disk / "counters", 10_000, layout=layout) as c:
        assert c.add(9_999) == 1


def test_r10_no_room_for_more_names(small_disk: Path) -> None:
    path = small_disk / "counters"
    filler = small_disk / "filler"
    with Counters(path, 4) as c, Counters(path) as other, Counters(path, mode="readonly") as looking:
        c["first"] = 7
        bound = c.counter("first")
        fill(filler)
        count = names_until_full(c)
        assert count >= 50, "there was room for these"
        before = counterfiles.check(path)
        for handle in (c, other, c):
            for _ in range(2):
                for call in (
                    handle.fetch_add,
                    handle.counter,
                    handle.setdefault,
                    lambda name, handle=handle: handle.reserve(name, 5),
                ):
                    with pytest.raises(OSError, match="No space") as caught:
                        call("one more")
                    assert caught.value.errno == errno.ENOSPC
        after = counterfiles.check(path)
        assert len(after.content) == len(before.content), "growth that failed left the file longer"
        assert after.content == before.content, "or changed"
        # What is there goes on: counting, removing, and names that come back.
        expected: dict[str, float] = {"first": 7} | {f"name {n}": n for n in range(count)}
        assert c.snapshot() == other.snapshot() == looking.snapshot() == expected
        assert (c.add("first"), bound.add(), other.add(3), c.reserve("first", 3)) == (8, 9, 1, range(9, 12))
        assert other.pop("name 5") == 5
        assert c.fetch_add("name 5") == 0
        filler.unlink()
        for n in range(500):
            other[f"later {n}"] = n
        expected |= {"first": 12, "name 5": 1} | {f"later {n}": n for n in range(500)}
        assert c.snapshot() == other.snapshot() == looking.snapshot() == expected
        assert bound.load() == 12
        c.check()
    counterfiles.check(path)


def test_r10_as_many_names_as_there_is_room_for(small_disk: Path) -> None:
    """Growth by half would not fit; growth by a little does, until nothing does."""
    path = small_disk / "counters"
    with Counters(path, 4) as c:
        count = names_until_full(c)
        assert count * counterfiles.ENTRY > (2 << 20), f"{count} names on a disk of {2 << 20} bytes and more"
        assert c.snapshot() == {f"name {n}": n for n in range(count)}
        free = os.statvfs(small_disk)
        left = free.f_bfree * free.f_frsize
        # The last steps are a sixteenth of what is there: the table of extents is short.
        assert left < max(64 << 10, count // 16 * counterfiles.ENTRY * 2), f"{left} bytes are still free"
    with Counters(path) as c:
        assert len(c) == count
    counterfiles.check(path)


def test_r10_a_disk_that_gives_room_in_crumbs(small_disk: Path) -> None:
    """Each little growth takes a record in the file's table; there must be some left when the disk has room again."""
    path = small_disk / "counters"
    filler = small_disk / "filler"
    with Counters(path, 4) as c:
        size = fill(filler)
        count = 0
        for n in range(60):
            count = names_until_full(c, count)
            os.truncate(filler, size - 16_384 * (n + 1))
        filler.unlink()
        for n in range(count, count + 6000):
            c[f"name {n}"] = n
        assert len(c) == count + 6000
    counterfiles.check(path)


def test_r10_a_private_copy_needs_no_disk(small_disk: Path) -> None:
    path = small_disk / "counters"
    with Counters(path, 4) as c:
        c["a"] = 1
        fill(small_disk / "filler")
        with Counters(path, mode="private") as copy:
            for n in range(1000):
                copy[f"name {n}"] = n
            assert (len(copy), copy.add("a"), c["a"]) == (1001, 2, 1)


# ---- row 11: not allowed to be so large ----------------------------------------------------------------------------

LIMITED = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def limited(size, call):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
def many(count):
    for n in range(count):
        c[f"name {n}"] = n
"""


def test_r11_rlimit_fsize(tmp_path: Path) -> None:
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("this machine limits the size of files already")
    path = str(tmp_path / "counters")
    with Peer(LIMITED, path=path) as peer:
        for layout in ("mmapds", "emmap"):
            for size in (0, 4096, 20_000):
                code = "limited(size, lambda: mmapds.Counters(path, 5000, layout=layout))"
                name, message = peer.fails(code, size=size, layout=layout)
                assert (name, "File too large" in message) == ("OSError", True), message
                assert os.listdir(tmp_path) == []
        peer("c = mmapds.Counters(path, 4); c['a'] = 1; bound = c.counter('a')")
        size = os.path.getsize(path)
        for limit in (4096, size, size + 5000, size + 30_000):
            name, message = peer.fails("limited(limit, lambda: many(500))", limit=limit)
            assert (name, "File too large" in message) == ("OSError", True), message
            found = counterfiles.check(path)
            assert len(found.content) <= max(limit, size)
            assert limit < size + 30_000 or len(found.content) > size, "a smaller extent would have fitted"
            assert peer("limited(0, lambda: (c.add('a'), bound.add(), c.reserve('a', 1)))")
            assert peer("c.snapshot()") == found.values() | {"a": peer("c['a']")}
        peer("many(500)")
        assert peer("c.snapshot()") == {"a": 13} | {f"name {n}": n for n in range(500)}
    counterfiles.check(path)


# ---- row 12: a disk that fails (each sync by itself: test_counters_durability.py) ----------------------------------


@pytest.fixture
def failing_disk(mount: Mount) -> tuple[Path, Callable[[], None], Callable[[], None]]:
    """ext4 in a file on a small tmpfs: when that is full, the disk fails to write. (the disk, break it, mend it)"""
    behind = mount("tmpfs", "size=16m")
    image = behind / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    if shutil.which("mkfs.ext4") is None or os.system(f"mkfs.ext4 -q -O ^has_journal -m 0 {image}"):
        pytest.skip("cannot make an ext4 file system")
    disk = mount("ext4", "loop,errors=continue", str(image))
    filler = behind / "filler"
    return disk, lambda: fill(filler) and None, filler.unlink


def test_r12_a_disk_that_did_not_take_it(failing_disk: Any) -> None:
    """On blocks that the disk has never written. What was handed out before stays handed out."""
    disk, break_it, mend_it = failing_disk
    path = str(disk / "counters")
    setup = "c = mmapds.Counters(path); bound = c.counter('ids')"
    # Cells on many pages, so that there are some that the image has no room for.
    with (
        Counters(path, 400_000, durability="power") as c,
        Peer(setup, path=path) as other,
        Counters(path, mode="readonly") as looking,
    ):
        bound = c.counter("ids")
        issued = [bound.reserve(10), c.reserve("ids", 10)]
        break_it()
        failed = 0
        for page in range(0, 400_000, 512):  # the first may land on blocks that the image has already
            try:
                c.reserve(page, 1)
            except DurabilityFailed as error:
                failed += 1
                assert path in str(error), error  # noqa: PT017
                if failed > 2:
                    break
        assert failed > 2, "the disk cannot have taken that"
        assert counterfiles.word(path, counterfiles.FAILED), "nobody else was told"
        for call in (
            lambda: c.reserve("ids", 1),
            lambda: bound.reserve(1),
            lambda: c.fetch_add("new"),
            lambda: c.counter("new"),
            lambda: c.__setitem__("new", 1),
            lambda: c.pop("ids"),
        ):
            with pytest.raises(DurabilityFailed, match=r"flush\(\)"):
                call()
        for code in ("c.reserve('ids', 1)", "bound.reserve(1)", "c.fetch_add('new')", "c.remove('ids')"):
            assert other.fails(code)[0] == "DurabilityFailed"
        with Counters(path) as late, pytest.raises(DurabilityFailed):
            late.reserve("ids", 1)
        for _ in range(2):
            with pytest.raises(DurabilityFailed):
                c.flush()
        assert (c.add("ids"), other("bound.add()"), looking["ids"]) == (21, 22, 22), "counting needs no disk"
        mend_it()
        assert other.fails("bound.reserve(1)")[0] == "DurabilityFailed", "mended, and nothing was written anew"
        flush_until_it_succeeds(c)
        assert counterfiles.word(path, counterfiles.FAILED) == 0
        issued.append(c.reserve("ids", 10))
        # The kernel tells each open file once of the failure: then everything is written anew once more.
        other("""
for _ in range(3):
    try:
        block = bound.reserve(10)
        break
    except mmapds.DurabilityFailed:
        c.flush()
""")
        issued.append(range(*other("block.start, block.stop")))
        assert [one.start for one in issued[:3]] == [0, 10, 22]
        assert issued[3].start >= issued[2].stop
        last = c["ids"]
        assert last == issued[3].stop
        c["new"] = 5
        values = [c[n] for n in range(0, 400_000, 512)]
        other("c.close()")
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    with Counters(path) as c:
        assert (c["ids"], c["new"]) == (last, 5)
        assert [c[n] for n in range(0, 400_000, 512)] == values, "what has returned is on the disk"
        c.check()


def flush_until_it_succeeds(c: Counters) -> None:
    """The kernel may report an old failure once more; it is enough that the handle tries again when asked."""
    for _ in range(3):
        with contextlib.suppress(DurabilityFailed):
            c.flush()
            return
    c.flush()
