"""files.Opened: a descriptor that knows whose it is; and `end`, with which a new file ends."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from mmapds import Closed, ForkedHandle, IncompatibleFormat, MappingLost, files


@pytest.fixture
def path(tmp_path: Path, descriptors: None) -> str:
    (tmp_path / "file").write_bytes(b"content")
    return str(tmp_path / "file")


@pytest.mark.parametrize("writable", [False, True])
def test_a_file_its_descriptor_and_what_tells_it_from_another(path: str, writable: bool) -> None:
    opened = files.Opened(path, writable=writable)
    status = os.stat(path)
    assert (opened.path, opened.writable, opened.identity) == (path, writable, (status.st_dev, status.st_ino))
    assert opened.descriptor() == opened.fd
    assert os.pread(opened.fd, 100, 0) == b"content"
    assert opened.size == 7
    os.truncate(path, 3)
    assert opened.size == 3, "the size is that of now"
    if writable:
        os.pwrite(opened.descriptor(), b"C", 0)
        assert Path(path).read_bytes() == b"Con"
    else:
        with pytest.raises(OSError, match="descriptor"):
            os.pwrite(opened.fd, b"C", 0)
    assert os.get_inheritable(opened.fd) is False
    opened.check_path()
    opened.close()


def test_close_is_idempotent_and_said(path: str) -> None:
    opened = files.Opened(path, writable=False)
    fd = opened.fd
    opened.close()
    opened.close()
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(fd)
    with pytest.raises(Closed, match="closed") as caught:
        opened.descriptor()
    assert path in str(caught.value)


def test_the_last_reference_closes(path: str) -> None:
    opened = files.Opened(path, writable=False)
    fd = opened.fd
    del opened
    gc.collect()
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(fd)


def test_a_number_that_another_file_has_by_now(path: str, tmp_path: Path) -> None:
    """As after a fork in a daemon that closes all descriptors."""
    opened = files.Opened(path, writable=True)
    other = os.open(tmp_path, os.O_RDONLY)
    kept = os.dup(opened.fd)
    os.dup2(other, opened.fd)
    with pytest.raises(ForkedHandle, match="another file has its number") as caught:
        opened.descriptor()
    assert path in str(caught.value)
    os.dup2(kept, opened.fd)
    assert opened.descriptor() == opened.fd
    os.close(other)
    os.close(kept)
    opened.close()


@pytest.mark.parametrize("what", ["removed", "replaced"])
def test_a_path_that_names_another_file_by_now(path: str, what: str) -> None:
    opened = files.Opened(path, writable=False)
    os.rename(path, path + "-old")
    if what == "replaced":
        Path(path).write_bytes(b"content")
    with pytest.raises(MappingLost, match=path):
        opened.check_path()
    assert opened.descriptor() == opened.fd, "the descriptor is right"
    os.rename(path + "-old", path)
    opened.check_path()
    opened.close()


def test_what_is_no_regular_file(path: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(path)
    for name in ("fifo", "link", "."):
        with pytest.raises((OSError, IncompatibleFormat)):
            files.Opened(str(tmp_path / name), writable=False)
    with pytest.raises(FileNotFoundError):
        files.Opened(str(tmp_path / "missing"), writable=True)


@pytest.mark.parametrize("end", [b"", b"sentinel", b"x" * 4096])
def test_a_new_file_ends_with_what_is_given(tmp_path: Path, descriptors: None, end: bytes) -> None:
    path = str(tmp_path / "new")
    files.create(path, files.new_header("example", durability="process"), 12288, durability="process", end=end)
    content = Path(path).read_bytes()
    assert len(content) == 12288
    assert content[4096:] == bytes(8192 - len(end)) + end
    with pytest.raises(FileExistsError):
        files.create(path, files.new_header("example", durability="process"), 4096, durability="process")
    assert Path(path).read_bytes() == content
