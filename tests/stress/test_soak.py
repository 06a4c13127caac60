"""The soak, short: that it runs, finds nothing wrong, and would find what is. The hour is a command: ``soak.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

SOAK = Path(__file__).with_name("soak.py")


def soak(folder: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """(status, report, figures)"""
    command = [sys.executable, "-W", "error", str(SOAK), "--dir", str(folder), "--json", str(folder / "figures")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=600, check=False)
    assert (folder / "figures").exists(), f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.returncode, done.stdout + done.stderr, json.loads((folder / "figures").read_text())


def check(found: tuple[int, str, dict[str, Any]]) -> None:
    status, report, figures = found
    assert status == 0, report
    assert figures["violations"] == []
    assert all(figures["operations"].values()), figures
    assert figures["checks"]["checkpoints"] >= 1
    assert sum(figures["kills"].values()) >= 1


def test_a_soak_of_seconds(tmp_path: Path) -> None:
    check(soak(tmp_path, "--minutes", "0.06", "--window", "2"))
    assert os.listdir(tmp_path) == ["figures"], "something is left behind"


@pytest.mark.soak
def test_a_soak_of_a_quarter_of_a_minute(tmp_path: Path) -> None:
    check(soak(tmp_path, "--minutes", "0.25", "--window", "5"))


def test_a_soak_finds_what_is_wrong(tmp_path: Path) -> None:
    """Somebody adds to a counter and writes nothing down; there are more files than there may be; a flipped bit."""
    spoil = """
import sys
sys.path[:0] = [{support!r}, {stress!r}]
import mmapds, scenes, soak
checkpoint = soak.Soak.checkpoint
def spoiled(self):
    {what}
    checkpoint(self)
soak.Soak.checkpoint = spoiled
sys.exit(soak.main(sys.argv[1:]))
"""
    spoils = {
        "additions that nobody made|already": (
            "path = next(s.path for s in self.scenes if s.name == 'counters')\n"
            "    with mmapds.Counters(path) as c: c.add(0, 5)"
        ),
        "files of counters: 3, more than 1": (
            "path = next(s.folder for s in self.scenes if s.name == 'counters')\n"
            "    for n in 'ab': open(path + '/' + n, 'w').close()"
        ),
        "CorruptionError: .*queue/it/meta": (
            "path = next(s.path for s in self.scenes if s.name == 'queue')\n"
            "    with open(path + '/meta', 'r+b') as f: f.seek(100); f.write(b'x')"
        ),
    }
    for message, what in spoils.items():
        code = spoil.format(support=str(SOAK.parent.parent / "support"), stress=str(SOAK.parent), what=what)
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            arguments = ["--minutes", "0.02", "--window", "1", "--dir", folder]
            done = subprocess.run(
                [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=600, check=False
            )
        assert done.returncode == 1, done.stdout + done.stderr
        import re

        assert re.search(message, done.stdout), f"{message}\n{done.stdout}\n{done.stderr}"
