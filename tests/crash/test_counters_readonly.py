"""Counters that may be read and not written, and file systems of the wrong kind (rows 13, 32)."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import counterfiles
import pytest
from peers import Peer

from mmapds import Counters, UnsupportedFilesystem

Mount = Callable[..., Path]


# ---- row 13: may be read, may not be written -----------------------------------------------------------------------


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="mmapds-public-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def publish(path: str, other_boot: bool) -> tuple[Counters | None, dict[str, float]]:
    if other_boot:
        return None, dict(counterfiles.crashed(path))
    c = Counters(path, 8)
    c.update({"a": 1, "c": 3, "f": 6, "h": 8})
    c[3] = 33
    return c, c.snapshot()


READ = "c = mmapds.Counters(path, mode='readonly'); bound = c.counter('a'); view = c.view(); c.snapshot()"
WRITES = [
    "c.fetch_add('a')", "c.add(3)", "c.__setitem__('a', 1)", "c.fetch_add('new')", "c.pop('a')", "c.remove('a')",
    "c.reset('a')", "c.reserve('a', 1)", "c.exchange('a', 1)", "c.compare_exchange('a', 1, 2)", "bound.add()",
    "bound.store(1)", "bound.reserve(1)", "c.setdefault('new', 1)", "c.update(a=1)", "c.clear()", "c.popitem()",
]  # fmt: skip


def check_readonly(peer: Peer, path: str, expected: dict[str, float]) -> None:
    before = Path(path).read_bytes()
    assert peer(READ, path=path) == expected
    assert peer("c[3], bound.load(), view[3], 'c' in c, 'e' in c") == (33, 1, 33, True, False)
    for code in WRITES:
        assert peer.fails(code)[0] == "PermissionError", code
    peer("c.flush(); c.flush(wait=False)")
    assert peer("p = mmapds.Counters(path, mode='private'); p.update(a=5, new=1); p.pop('c')") == 3
    assert peer("p.snapshot()") == {k: v for k, v in expected.items() if k != "c"} | {"a": 5, "new": 1}
    assert Path(path).read_bytes() == before


def check_follows(peer: Peer, path: str, writer: Counters | None) -> None:
    """What is written from now on is seen too."""
    with writer or Counters(path) as c:
        for n in range(200):
            c[f"late {n}"] = n
        c.pop("c")
        c.add("a", 10)
        assert peer("c.snapshot(), bound.load()") == (c.snapshot(), 11)


@pytest.mark.parametrize("other_boot", [False, True])
def test_r13_a_read_only_file_system(public: Path, other_boot: bool) -> None:
    path = str(public / "counters")
    writer, expected = publish(path, other_boot)
    try:
        peer = Peer(wrapper=("unshare", "--mount"))
    except Exception as error:  # noqa: BLE001
        pytest.skip(f"no mount namespace here: {error}")
    with peer:
        if peer(f"os.system('mount --bind {public} {public} && mount -o remount,bind,ro {public}')"):
            pytest.skip("may not mount here")
        assert peer.fails("open(path, 'r+')", path=path)[0] == "OSError", "it is not read-only"
        assert peer.fails("mmapds.Counters(path)")[0] == "OSError"
        check_readonly(peer, path, expected)
        check_follows(peer, path, writer)


@pytest.mark.parametrize("other_boot", [False, True])
def test_r13_no_write_permission(public: Path, other_boot: bool) -> None:
    path = str(public / "counters")
    writer, expected = publish(path, other_boot)
    os.chmod(path, 0o444)
    with Peer() as peer:
        if os.geteuid() == 0:
            peer("os.setgroups([]); os.setgid(65534); os.setuid(65534)")
        name, message = peer.fails("mmapds.Counters(path)", path=path)
        assert (name, "readonly" in message or "Permission" in message) == ("PermissionError", True), message
        check_readonly(peer, path, expected)
        if os.geteuid() == 0:
            check_follows(peer, path, writer)
        elif writer:
            writer.close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o444


def test_r13_a_file_of_emmap_without_write_permission(public: Path) -> None:
    path = str(public / "counters")
    with Counters(path, 5, layout="emmap") as c:
        c[3] = 33
    os.chmod(path, 0o444)
    before = Path(path).read_bytes()
    with Peer(path=path) as peer:
        if os.geteuid() == 0:
            peer("os.setgroups([]); os.setgid(65534); os.setuid(65534)")
        assert peer.fails("mmapds.Counters(path, layout='emmap')")[0] == "PermissionError"
        peer("c = mmapds.Counters(path, mode='readonly', layout='emmap'); bound = c.counter(3)")
        assert peer("c.snapshot(), bound.load()") == ({0: 0, 1: 0, 2: 0, 3: 33, 4: 0}, 33)
        for code in ("c.add(3)", "c.__setitem__(3, 1)", "c.reset(3)", "bound.add()"):
            assert peer.fails(code)[0] == "PermissionError", code
    assert Path(path).read_bytes() == before


# ---- row 32: the wrong kind ----------------------------------------------------------------------------------------


def test_r32_power_on_tmpfs_is_refused(mount: Mount, tmp_path: Path) -> None:
    folder = mount("tmpfs", "size=4m")
    with pytest.raises(UnsupportedFilesystem, match="tmpfs"):
        Counters(folder / "counters", durability="power")
    assert os.listdir(folder) == []
    Counters(folder / "here", durability="process").close()
    Counters(tmp_path / "counters", durability="power").close()
    counterfiles.copy(str(tmp_path / "counters"), str(folder / "counters"))
    for mode in ("shared", "readonly", "private"):
        with pytest.raises(UnsupportedFilesystem, match="tmpfs"):
            Counters(folder / "counters", mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["mmapds", "emmap"])
def test_r32_overlayfs_is_refused_unless_overridden(
    mount: Mount, tmp_path: Path, monkeypatch: Any, layout: Any
) -> None:
    monkeypatch.delenv("MMAPDS_ANY_FILESYSTEM", raising=False)
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    with Counters(tmp_path / "lower" / "old", layout=layout) as c:
        c.add(3, 5)
    options = ",".join(f"{name}dir={tmp_path}/{name}" for name in ("lower", "upper", "work"))
    folder = mount("overlay", options, "overlay")
    before = os.listdir(folder)
    for name, mode in (("old", "shared"), ("new", "shared"), ("old", "readonly"), ("old", "private")):
        with pytest.raises(UnsupportedFilesystem, match=r"overlayfs.*MMAPDS_ANY_FILESYSTEM"):
            Counters(folder / name, mode=mode, layout=layout)  # type: ignore[arg-type]
    assert os.listdir(folder) == before
    monkeypatch.setenv("MMAPDS_ANY_FILESYSTEM", "1")
    with Counters(folder / "new", layout=layout) as c:
        assert c.add(3) == 1
