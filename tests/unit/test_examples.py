"""The examples about regions run by themselves, and leave nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        env={**os.environ, "TMPDIR": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(folder) == []
    return done.stdout


def test_shared_private(tmp_path: Path) -> None:
    lines = run("shared_private.py", tmp_path).splitlines()
    assert lines == [
        'mode="shared"',
        r"  shell 1 writes  b'abcdefg\n'",
        r"  shell 1 reads   b'abcdefg\n'",
        r"  shell 2 reads   b'abcdefg\n'",
        r"  the file holds  b'abcdefg\n'",
        'mode="private"',
        r"  shell 1 writes  b'1234567\n'",
        r"  shell 1 reads   b'1234567\n'",
        rf"  shell 2 reads   {bytes(8)}",
        rf"  the file holds  {bytes(8)}",
        "left behind: []",
    ]


@pytest.mark.parametrize("attempt", range(3))
def test_own_container(tmp_path: Path, attempt: int) -> None:
    lines = run("own_container.py", tmp_path).splitlines()
    assert lines[0].endswith("the lock is held: True")
    assert lines[1] == "samples put: 6004, taken: 6004, repairs: 1"
    assert lines[2] == "sum of what was taken: 9013503.0, of what was put: 9013503.0"
