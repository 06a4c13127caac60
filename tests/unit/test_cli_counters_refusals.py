"""``mmapds counters``: what it may touch, what it refuses, and beside others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import counterfiles as raw
import pytest
from shell import WATCHDOG, Run, in_process

from mmapds import Counters, Synchronizer


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Run:
    return in_process(capsys, "counters")


@pytest.fixture
def path(tmp_path: Path) -> str:
    name = str(tmp_path / "request counts")
    with Counters(name, 8) as c:
        c.update({"hits": 3, "errors": 4})
        c[3] = 33
    return name


# ---- what it may touch ---------------------------------------------------------------------------------------------

LOOKS = (["list"], ["get", "hits"], ["export"], ["watch", "--count", "1", "--interval", "0.01"])
CHANGES = (["add", "hits"], ["add", "new", "--create"], ["reset", "hits"])


@pytest.mark.parametrize("words", [*LOOKS, *CHANGES])
def test_nothing_makes_a_file(words, tmp_path, here):
    missing = tmp_path / "missing"
    assert here(missing, *words) == (2, "", f"mmapds: {missing}: No such file or directory\n")
    assert here(tmp_path, *words).status == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", LOOKS)
def test_looking_changes_nothing(words, path, here):
    raw.other_boot(path)  # whoever opens it for writing recovers it
    before = Path(path).read_bytes(), os.stat(path).st_mtime_ns
    assert here(path, *words).status == 0
    assert (Path(path).read_bytes(), os.stat(path).st_mtime_ns) == before


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter, and nobody may write to."""
    with tempfile.TemporaryDirectory(prefix="mmapds-public-") as name:
        yield Path(name)
        os.chmod(name, 0o755)


AS_NOBODY = """
import os, sys
import mmapds.cli._prometheus, mmapds.inspection
from mmapds import cli
cli.build_parser()  # what it needs is read before this process may not read it any more
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
for words in eval(sys.argv[2]):
    print(cli.main(["counters", sys.argv[1], *words]), flush=True)
"""


def test_r13_without_write_permission(public):
    path = public / "counts"
    with Counters(path) as c:
        c["hits"] = 3
    before = path.read_bytes()
    path.chmod(0o444)
    public.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(path), repr([*LOOKS, *CHANGES])],
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=True,
    )
    statuses = [line for line in done.stdout.splitlines() if line in ("0", "1", "2")]
    assert statuses == ["0"] * len(LOOKS) + ["2"] * len(CHANGES), done
    assert done.stderr.splitlines() == [f"mmapds: {path}: Permission denied"] * len(CHANGES)
    assert path.read_bytes() == before


# ---- other files, other words --------------------------------------------------------------------------------------


def test_other_files_are_refused_in_one_line(tmp_path, here):
    text = tmp_path / "text"
    text.write_text("hello " * 1000)
    with Synchronizer(tmp_path / "set") as s:
        s.write(1)
    os.mkfifo(tmp_path / "fifo")
    for name, what in (("text", "not a file of mmapds"), ("set_sync", "of kind 'sync'"), ("fifo", "is a FIFO")):
        for words in ([], ["add", "x"], ["export"]):
            status, out, err = here(tmp_path / name, *words)
            assert (status, out, err.count("\n")) == (1, "", 1)
            assert what in err


def test_damage_is_said_in_one_line(path, here):
    raw.poke_word(path, raw.NAMES, 3)
    for words in ([], ["get", "hits"], ["add", "hits"]):
        status, out, err = here(path, *words)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "mmapds verify" in err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["f", "bogus"],
        ["f", "get"],
        ["f", "add"],
        ["f", "reset"],
        ["f", "reset", "a", "b"],
        ["f", "add", "a", "1", "2"],
        ["f", "watch", "--interval", "0"],
        ["f", "watch", "--interval", "nan"],
        ["f", "watch", "--count", "0"],
        ["f", "export", "--format", "xml"],
        ["f", "export", "--type", "histogram"],
        ["f", "export", "--prefix", "9a"],
        ["f", "export", "--prefix", "a-b"],
        ["f", "get", "--create", "x"],
    ],
)
def test_a_malformed_command_line(words, here):
    status, out, err = here(*words)
    assert (status, out) == (2, "")
    assert "usage: mmapds" in err


@pytest.mark.parametrize("words", [[], ["f", "list"], ["f", "get"], ["f", "add"], ["f", "reset"], ["f", "watch"]])
def test_help(words, here):
    status, out, _ = here(*words, "--help")
    assert status == 0
    assert out.startswith("usage: mmapds counters")


def test_beside_who_makes_and_removes_names(tmp_path, here):
    """Whatever happens between two of its steps, each row is one that was, and no cell is there twice."""
    path = str(tmp_path / "busy")
    script = (
        "import sys, mmapds\n"
        "with mmapds.Counters(sys.argv[1]) as c:\n"
        "    print(flush=True)\n"
        "    while True:\n"
        "        for i in range(40):\n"
        "            c.add(f'n{i}')\n"
        "        for i in range(40):\n"
        "            c.remove(f'n{i}')\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            for _ in range(100):
                status, out, err = here(path, "--json")
                assert (status, err) == (0, "")
                rows = json.loads(out)["counters"]
                assert len({row["index"] for row in rows}) == len(rows)
                assert all(row["name"] in (f"n{row['index'] - 64}", None) and row["value"] in (0, 1) for row in rows)
        finally:
            process.kill()
