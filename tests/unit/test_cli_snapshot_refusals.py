"""``mmapds snapshot``: what it may touch, what it refuses, its many ends, and beside others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from shell import COMMAND, WATCHDOG, Run, in_process, shell

from mmapds import Counters, SnapshotMap, Synchronizer

LOOKS = (["info"], ["get", "a"], ["range"], ["range", "--prefix", "a", "--reverse"], ["dump"], ["verify"])
CHANGES = (["compact"],)
ENTRIES = {"a": 1, "b": "two", "c": [3]}


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Run:
    return in_process(capsys, "snapshot")


def make(path: Path | str) -> None:
    """A map with a layer, and a delta."""
    SnapshotMap.build(path, ENTRIES)
    with SnapshotMap(path) as m, m.transaction() as txn:
        txn.set("d", 4, ttl=1000)


@pytest.fixture
def path(tmp_path: Path) -> str:
    make(tmp_path / "map")
    return str(tmp_path / "map")


def everything(path: object) -> dict[str, tuple[bytes, int]]:
    found = (Path(folder) / name for folder, _, names in os.walk(str(path)) for name in names)
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in found}


# ---- what it may touch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [*LOOKS, *CHANGES, ["diff", "OTHER"]])
def test_only_build_makes_a_map(words, tmp_path, here):
    make(tmp_path / "there")
    words = [str(tmp_path / "there") if word == "OTHER" else word for word in words]
    before = everything(tmp_path)
    missing = tmp_path / "missing"
    assert here(missing, *words) == (2, "", f"mmapds: {missing}: No such file or directory\n")
    assert here(tmp_path, *words) == (2, "", f"mmapds: {tmp_path}: a directory, and not that of a snapshot map\n")
    (tmp_path / "file").write_text("text")
    assert here(tmp_path / "file", *words) == (2, "", f"mmapds: {tmp_path / 'file'}: Not a directory\n")
    if words[0] == "diff":
        for other in (missing, tmp_path, tmp_path / "file"):
            assert here(words[1], "diff", other).status == 2
    os.unlink(tmp_path / "file")
    assert everything(tmp_path) == before
    assert not missing.exists()


@pytest.mark.parametrize("words", [*LOOKS, ["diff", "."]])
def test_looking_changes_nothing(words, path, here, monkeypatch):
    monkeypatch.chdir(path)
    before = everything(path)
    assert here(path, *words).status == 0
    assert everything(path) == before


def test_looking_stands_in_nobodys_way(path, here):
    with SnapshotMap(path) as m, m.transaction() as txn:
        txn["new"] = 1
        for words in (*LOOKS, ["diff", path]):
            assert here(path, *words).status == 0
        said = here(path, "compact")
        assert (said.status, said.out, said.err.count("\n")) == (1, "", 1)
        assert f"pid {os.getpid()}" in said.err
    assert here(path, "get", "new").out == "1\n"


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter, and nobody may write to."""
    with tempfile.TemporaryDirectory(prefix="mmapds-public-") as name:
        yield Path(name)
        for folder, _, _ in os.walk(name):
            os.chmod(folder, 0o755)


AS_NOBODY = """
import io, os, sys
import mmapds._snapcommit, mmapds.cli.snapshot
from mmapds import SnapshotMap, cli
cli.build_parser()  # what it needs is read before this process may not read it any more
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
for words in eval(sys.argv[2]):
    print("status", cli.main(["snapshot", sys.argv[1], *words]), flush=True)
"""


def test_r13_without_write_permission(public):
    path = public / "map"
    make(path)
    (public / "lines").write_text('["a", 1]\n')
    before = everything(public)
    for folder, _, names in os.walk(public):
        os.chmod(folder, 0o555)
        for name in names:
            os.chmod(os.path.join(folder, name), 0o444)
    looks = [*LOOKS, ["diff", str(path)]]
    changes = [*CHANGES, ["build", str(public / "lines")], ["build", str(path)]]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AS_NOBODY, str(path), repr([*looks, *changes])],
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=True,
    )
    statuses = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("status")]
    assert statuses == ["0"] * len(looks) + ["2"] * len(changes), done
    assert len(done.stderr.splitlines()) == len(changes), done
    assert everything(public) == before


# ---- other files, other words --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["of kind", "not a file of mmapds", "is a FIFO"])
def test_other_files_are_refused_in_one_line(what, tmp_path, here):
    folder = tmp_path / "folder"
    folder.mkdir()
    if what == "of kind":
        Counters(folder / "manifest_sync").close()
    elif what == "is a FIFO":
        os.mkfifo(folder / "manifest_sync")
    else:
        (folder / "manifest_sync").write_text("hello " * 1000)
    lines = tmp_path / "lines"
    lines.write_text('["a", 1]\n')
    before = sorted(os.listdir(folder))
    for words in (*LOOKS, *CHANGES, ["diff", folder], ["build", lines]):
        status, out, err = here(folder, *words)
        assert (status, out, err.count("\n")) == (1, "", 1), words
        assert what in err
    assert sorted(os.listdir(folder)) == before


def test_nothing_is_built_where_something_else_is(tmp_path, here):
    (tmp_path / "lines").write_text('["a", 1]\n')
    with Synchronizer(tmp_path / "set") as s:
        s.write(1)
    before = everything(tmp_path)
    for path, status in ((tmp_path, 1), (tmp_path / "lines", 1), (tmp_path / "no" / "map", 2)):
        said = here(path, "build", tmp_path / "lines")
        assert (said.status, said.out, said.err.count("\n")) == (status, "", 1), path
    assert everything(tmp_path) == before


def test_r15_damage_is_said_in_one_line(path, here):
    (layer,) = Path(path).glob("*.layer")
    data = layer.read_bytes()
    layer.write_bytes(data[:-8])
    for words in (*LOOKS, *CHANGES, ["diff", path]):
        status, out, err = here(path, *words)
        if words == ["verify"]:
            assert (status, err) == (1, "")
            assert out.endswith("corrupt\n")
        else:
            assert (status, out, err.count("\n")) == (1, "", 1), words
    layer.unlink()
    status, out, err = here(path, "dump")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert layer.name in err


def test_values_that_their_codec_cannot_decode(tmp_path, here):
    """As another program may have left them."""
    from mmapds.codecs import Raw

    class Bytes:
        name = "mine"
        encode = staticmethod(Raw().encode)
        decode = staticmethod(bytes)

    SnapshotMap.build(tmp_path / "m", {"a": b"\xc1"}, codec=Bytes())
    said = here(tmp_path / "m", "dump")
    assert (said.status, said.out, said.err.count("\n")) == (1, "", 1)
    assert "object:mine" in said.err or "'mine'" in said.err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["f", "bogus"],
        ["f", "get"],
        ["f", "range", "--limit", "0"],
        ["f", "range", "a", "b", "c"],
        ["f", "dump", "extra"],
        ["f", "diff"],
        ["f", "build", "a", "b"],
        ["f", "build", "--format", "xml"],
        ["f", "build", "--durability", "none"],
        ["f", "build", "--memory-limit", "1"],
    ],
)
def test_a_malformed_command_line(words, here):
    status, out, err = here(*words)
    assert (status, out) == (2, "")
    assert "usage: mmapds" in err


def test_a_prefix_or_a_range(path, here):
    assert here(path, "range", "a", "--prefix", "b") == (
        2,
        "",
        "mmapds: give START and STOP, or --prefix, and not both\n",
    )


@pytest.mark.parametrize("action", ["", "info", "build", "get", "range", "dump", "verify", "diff", "compact"])
def test_help(action, here):
    status, out, _ = here("f", *action.split(), "--help")
    assert status == 0
    assert out.startswith("usage: mmapds snapshot")


# ---- how it ends ---------------------------------------------------------------------------------------------------

Begin = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """begin(word, ...) -> ``mmapds snapshot ...`` as a process."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*words: object) -> subprocess.Popen[bytes]:
        command = [*COMMAND, "snapshot", *map(str, words)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, **pipes))  # type: ignore[call-overload]
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            with suppress(BrokenPipeError):
                stream.close()


def test_a_pipe_that_breaks_is_quiet(tmp_path, begin):
    path = tmp_path / "m"
    SnapshotMap.build(path, {f"{i:05}": "x" * 100 for i in range(5000)})
    SnapshotMap.build(tmp_path / "n", {})
    for words in (["dump"], ["range"], ["diff", tmp_path / "n"]):
        process = begin(path, *words)
        assert b"00000" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(WATCHDOG) == 141


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("there", [True, False])
def test_r1_a_build_that_is_ended_has_built_nothing(end, there, tmp_path, begin, here):
    path = tmp_path / "m"
    if there:
        make(path)
    process = begin(path, "build", "--memory-limit", "1M")
    line = b'["%06d", "' + b"x" * 1000 + b'"]\n'
    for i in range(3000):  # more than its memory
        process.stdin.write(line % i)
    process.stdin.flush()
    process.send_signal(end)
    process.wait(WATCHDOG)
    assert process.returncode == (-end if end == signal.SIGKILL else 130)
    assert process.stderr.read() == b""
    if there:
        assert here(path, "get", "b", "d") == (0, '"two"\n4\n', "")
        assert here(path, "get", "000001").status == 1
    else:
        assert here(path).status == 2
    (tmp_path / "lines").write_text('["a", 1]\n')
    assert here(path, "build", tmp_path / "lines") == (0, "1\n", "")
    assert here(path, "dump").out == '{"key": "a", "value": 1}\n'
    assert len(list(path.glob("*.layer"))) == 1


def test_readers_see_a_build_as_one_step(path, tmp_path, begin):
    (tmp_path / "lines").write_text("".join(f'["{i}", {i}]\n' for i in range(1000)))
    with SnapshotMap(path, mode="readonly") as m, m.snapshot() as before:
        version = m.version
        process = begin(path, "build", tmp_path / "lines")
        while m.version == version:
            assert len(m) in (4, 1000)
            assert process.poll() in (None, 0), process.stderr.read()
        assert len(m) == 1000
        assert m["999"] == 999
        assert (dict(before), len(before)) == (ENTRIES | {"d": 4}, 4)
        assert process.wait(WATCHDOG) == 0


def test_an_environment_without_rich_and_redis(tmp_path):
    """Neither is needed until it is asked for."""
    code = (
        "import sys; sys.modules['rich'] = sys.modules['redis'] = None\n"
        "from mmapds import cli; sys.exit(cli.main(['snapshot', sys.argv[1], 'build', sys.argv[2]]))"
    )
    (tmp_path / "lines").write_text('["a", 1]\n')
    words = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "m"), str(tmp_path / "lines")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=WATCHDOG, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert shell("snapshot", tmp_path / "m", "get", "a") == (0, "1\n", "")
