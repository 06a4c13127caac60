"""Nobody who announces a sleep on a queue is overlooked by the next who puts something.

``tsan/announce.c`` includes the header as it is and lets a waker, who is late by one item, come between any two steps
of ``queue_announce``. The model that found that this matters is ``promela/queue.pml``, run ``seen_late``: stored before
the count was loaded, the mark could be taken away for the item before, and the sleeper slept its 50 ms beside the next.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "tsan" / "announce.c"
HEADERS = Path(__file__).parents[2] / "mmapds" / "_native"


def outcome(folder: Path, *headers: Path) -> subprocess.CompletedProcess[str]:
    """What the program says, with the first of these directories' headers."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")
    binary = folder / "announce"
    flags = ["-std=gnu11", "-O1", *(f"-I{path}" for path in headers)]
    subprocess.run([compiler, *flags, "-o", binary, SOURCE], check=True, capture_output=True)
    return subprocess.run([binary], capture_output=True, text=True, check=False, timeout=60)


def test_a_late_waker_is_noticed(tmp_path: Path) -> None:
    found = outcome(tmp_path, HEADERS)
    assert found.returncode == 0, found.stdout


def test_it_was_not_when_the_mark_came_first(tmp_path: Path) -> None:
    """The order that the code had."""
    text = (HEADERS / "queue.h").read_text()
    load = "    uint32_t seen = load_seq_cst_u32(&view->control->events[event].count);\n"
    store = "    store_seq_cst_u32(&view->control->events[event].sleepers, 1);\n"
    assert load + store in text
    (tmp_path / "queue.h").write_text(text.replace(load + store, store + load))
    found = outcome(tmp_path, tmp_path, HEADERS)
    assert found.returncode == 1, found
    assert "point 1: we would sleep" in found.stdout
