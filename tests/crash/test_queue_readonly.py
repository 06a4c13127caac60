"""Queues that may be read and not written, and file systems of the wrong kind (rows 13 and 32)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import queuefiles
from peers import Peer

from mmapds import Queue, UnsupportedFilesystem

Mount = Callable[..., Path]
WRITES = [
    "q.put(b'1')", "q.put_nowait(b'1')", "q.put_many([b'1'])", "q.get_nowait()", "q.get_many(2, timeout=0)",
    "q.claim(0)", "q.claim_many(2, timeout=0)",
    "q.purge()", "q.shutdown()", "q.task_done()", "next(iter(q.claims(timeout=0)))",
]  # fmt: skip


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="mmapds-public-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def publish(path: str, boot: bool) -> list[bytes]:
    """A queue with some of everything; what is in it."""
    with Queue(path, codec="raw", segment_size=8192) as q:
        q.put_many([b"%d" % n + bytes(100) for n in range(100)])
        for _ in range(20):
            q.get()
        claims = q.claim_many(20)
        claims[0].ack()
        claims[1].nack(0)
        claims[2].nack(0, to_back=True)
        q.put(b"late", delay=1000)
    if boot:
        queuefiles.other_boot(path)
    for folder, _, names in os.walk(path):
        os.chmod(folder, 0o755)
        for name in names:
            os.chmod(os.path.join(folder, name), 0o644)
    with Queue(path, mode="private") as q:
        return list(q)


def check_readonly(peer: Peer, path: str, expected: list[bytes]) -> None:
    before = queuefiles.content(path)
    stats = {name: os.stat(Path(path, name)).st_mtime_ns for name in os.listdir(path)}
    peer("q = mmapds.Queue(path, mode='readonly')", path=path)
    assert peer("list(q)") == expected
    assert peer("list(reversed(q))") == expected[::-1]
    assert peer("q.peek(), q.peek_last(), q.qsize(), len(q)") == (
        expected[0],
        expected[-1],
        len(expected),
        len(expected),
    )
    assert peer("q.stats()['items'], q.empty(), q.full(), len(q.dead)") == (len(expected), False, False, 0)
    for code in WRITES:
        assert peer.fails(code)[0] == "PermissionError", code
    peer("q.flush(); q.flush(wait=False)")
    assert peer("p = mmapds.Queue(path, mode='private'); p.put(b'new'); p.qsize()") == len(expected) + 1
    due = [item for item in expected if item != b"late"]
    assert peer("[p.get_nowait() for _ in range(n)]", n=len(due)) == due
    assert peer("c = p.claim(0); c.ack(); c.item") == b"new"
    peer("p.close(); q.close()")
    assert queuefiles.content(path) == before
    assert {name: os.stat(Path(path, name)).st_mtime_ns for name in os.listdir(path)} == stats


@pytest.mark.parametrize("boot", [False, True])
def test_r13_a_read_only_file_system(public: Path, boot: bool) -> None:
    path = str(public / "queue")
    expected = publish(path, boot)
    try:
        peer = Peer(wrapper=("unshare", "--mount"))
    except Exception as error:  # noqa: BLE001
        pytest.skip(f"no mount namespace here: {error}")
    with peer:
        if peer(f"os.system('mount --bind {public} {public} && mount -o remount,bind,ro {public}')"):
            pytest.skip("nothing can be mounted here")
        check_readonly(peer, path, expected)
        assert peer.fails("mmapds.Queue(path)")[0] in ("OSError", "PermissionError")
        assert peer.fails("mmapds.Queue(path + '-new')")[0] in ("OSError", "PermissionError")


@pytest.mark.parametrize("boot", [False, True])
def test_r13_no_write_permission(public: Path, boot: bool) -> None:
    if os.geteuid():
        pytest.skip("needs root, to become somebody else")
    path = str(public / "queue")
    expected = publish(path, boot)
    with Peer() as peer:
        peer("os.setgid(65534); os.setuid(65534)")
        check_readonly(peer, path, expected)
        assert peer.fails("mmapds.Queue(path)")[0] == "PermissionError"
        with Queue(path) as q:  # somebody who may, meanwhile
            peer("q = mmapds.Queue(path, mode='readonly')")
            assert peer("list(q)") == expected
            assert q.get() == expected[0]
            q.put(b"more")
            assert peer("list(q)") == [*expected[1:], b"more"]
            assert peer("q.qsize()") == len(expected)


def test_r13_a_reader_beside_one_who_is_in_the_middle_of_something(public: Path) -> None:
    """The owner of the lock died in a transition: the reader takes it back for itself, and writes nothing."""
    path = str(public / "queue")
    expected = publish(path, False)
    meta = queuefiles.meta(path)
    found = queuefiles.Snapshot(path)
    at = queuefiles.WORDS["head_sequence"]
    queuefiles.poke_word(meta, queuefiles.UNDO, at)
    queuefiles.poke_word(meta, queuefiles.UNDO + 8, found.words["head_sequence"])
    queuefiles.poke_word(meta, queuefiles.WORDS["logged"], 1)
    queuefiles.poke_word(meta, at, found.words["head_sequence"] + 5)
    queuefiles.poke_word(meta, queuefiles.WORDS["take_lock"], 0x123456789ABC0 << 3)
    before = queuefiles.content(path)
    with Queue(path, mode="readonly") as q, Queue(path, mode="private") as p:
        assert list(q) == list(p) == expected
        assert q.stats()["items"] == len(expected)
    assert queuefiles.content(path) == before
    with Queue(path) as q:
        assert q.get() == expected[0]
        assert list(q) == expected[1:]


# ---- row 32 --------------------------------------------------------------------------------------------------------


def test_r32_power_on_tmpfs(mount: Mount) -> None:
    where = mount("tmpfs", "size=4m")
    with pytest.raises(UnsupportedFilesystem):
        Queue(where / "queue", durability="power")
    assert not (where / "queue" / "meta").exists()
    with Queue(where / "queue", segment_size=8192) as q:
        q.put(1)
        assert q.get() == 1


def test_r32_overlayfs(mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMAPDS_ANY_FILESYSTEM", raising=False)
    from mmapds import files

    monkeypatch.delenv(files.ANY_FILESYSTEM, raising=False)
    base = mount("tmpfs", "size=8m")
    for name in ("lower", "upper", "work"):
        (base / name).mkdir()
    where = mount("overlay", f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work")
    with pytest.raises(UnsupportedFilesystem):
        Queue(where / "queue")
    monkeypatch.setenv(files.ANY_FILESYSTEM, "1")
    with Queue(where / "queue", segment_size=8192) as q:
        q.put(1)
        assert q.get() == 1
