"""Damaged and hostile files, by the thousand (rows 14 to 17): a small run of what `run.py` does by the million.

No parser or opener may crash, hang, take memory without bound, raise what is not documented, or hand out a value that
nobody wrote where a checksum says so. That the machinery would notice is shown by copies of the package, and of the
machinery's own targets, in which one line is broken.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fuzzing
import fuzzplaces
import fuzztargets

from mmapds import CorruptionError, IncompatibleFormat, files

HERE = Path(__file__).parent
SEED = 6


def told(result: fuzzing.Result) -> str:
    """For the message of a test that fails."""
    faults = [f"{f['target']}: {f['what']}\n{f['files']}\n{f['trace'][-2000:]}" for f in result.faults[:5]]
    return "\n\n".join([f"seed {result.seed}: {len(result.faults)} faults", *faults])


def check(result: fuzzing.Result) -> None:
    assert not result.faults, told(result)
    assert not sum(row.crashes + row.hangs + row.wrong + row.undocumented for row in result.rows.values()), (
        result.table()
    )


def test_r16_damaged_files_of_all_formats(tmp_path: Path) -> None:
    """Random damage, half of it under right checksums."""
    result = fuzzing.campaign(20_000, seed=SEED, keep=str(tmp_path))
    check(result)
    assert result.executions >= 20_000
    for name, row in result.rows.items():
        if row.executions > 200:
            assert row.outcomes["right"], f"{name}: nothing was ever right; {row.outcomes}"
            assert row.distinct >= 2, f"{name}: {row.outcomes}"
    errors = sum(row.outcomes["CorruptionError"] for row in result.rows.values())
    assert errors > 2000, result.table()


@pytest.mark.fuzz
def test_r16_half_a_million_damaged_files(tmp_path: Path) -> None:
    check(fuzzing.campaign(500_000, seed=SEED + 1, keep=str(tmp_path)))


@pytest.mark.parametrize("stride", [1500, pytest.param(1, marks=pytest.mark.fuzz)])
def test_r16_every_field_at_and_beyond_every_limit(tmp_path: Path, stride: int) -> None:
    """Each word of each format; without, and with, right checksums."""
    result = fuzzing.campaign(0, seed=stride // 2, keep=str(tmp_path), sweep="limits", stride=stride)
    check(result)
    if stride == 1:
        assert all(row.fields for row in result.rows.values()), result.table()


@pytest.mark.parametrize("stride", [3001, pytest.param(1, marks=pytest.mark.fuzz)])
def test_r15_every_bit_of_every_header_through_every_opener(tmp_path: Path, stride: int) -> None:
    check(fuzzing.campaign(0, seed=stride // 3, keep=str(tmp_path), sweep="bits", stride=stride))


@pytest.mark.parametrize(("count", "episode"), [(1500, 50), pytest.param(300_000, 300, marks=pytest.mark.fuzz)])
def test_r16_files_that_another_process_changes_all_the_time(tmp_path: Path, count: int, episode: int) -> None:
    """What is copied before it is checked is right; nothing crashes, hangs or reads behind the end."""
    result = fuzzing.campaign(count, seed=SEED, keep=str(tmp_path), sweep="beside", episode=episode)
    check(result)
    busy = [name for name, row in result.rows.items() if row.executions and row.corpus < episode]
    assert not busy, f"these have not met who changes their files: {busy}"


def test_r15_every_bit_of_every_kind_of_header(tmp_path: Path) -> None:
    """Of the half that never changes: refused. Of the rest: read as it is."""
    place = fuzzplaces.HeaderPlace(str(tmp_path / "place"))
    for part in place.parts:
        page = bytearray(part.original)
        for bit in range(8 * 4096):
            page[bit // 8] ^= 1 << bit % 8
            if bit < 8 * 2048:
                with pytest.raises((CorruptionError, IncompatibleFormat)):
                    files.parse_header(bytes(page), part.name, part.name)
            elif bit % 61 == 0 or bit < 8 * 2192:
                assert files.parse_header(bytes(page), part.name, part.name).identity == page[32:48]
            page[bit // 8] ^= 1 << bit % 8
        assert page == part.original


# ---- the machinery ---------------------------------------------------------------------------------------------------

# Imports the modules of the package with one line of one of them replaced, then is the worker.
BROKEN = """
import importlib.machinery, sys
file, old, new = sys.argv[1:4]
del sys.argv[1:4]
whole = importlib.machinery.SourceFileLoader.get_code
def get_code(self, name):
    if not self.path.endswith(file):
        return whole(self, name)
    text = self.get_data(self.path).decode()
    assert text.count(old) == 1, f"{file} has no such line: {old}"
    return compile(text.replace(old, new), self.path, "exec")
importlib.machinery.SourceFileLoader.get_code = get_code
sys.path.insert(0, WHERE)
import fuzzworker
fuzzworker.main()
"""


def broken(tmp_path: Path, only: str, count: int, change: tuple[str, str, str], **options: Any) -> fuzzing.Result:
    """A run of a target with one line of the package (or of the targets) replaced."""
    code = BROKEN.replace("WHERE", repr(str(HERE)))
    command = [sys.executable, "-W", "error", "-c", code, *change]
    counts = {fuzztargets.NAMES.index(only): count}
    return fuzzing.campaign(count, seed=SEED, keep=str(tmp_path), counts=counts, command=command, **options)


def test_a_header_whose_checksum_is_not_looked_at_is_noticed(tmp_path: Path) -> None:
    change = ("mmapds/_header.py", "if check != computed:", "if False:")
    found = broken(tmp_path, "headers: parse_header", 600, change)
    assert found.rows["headers: parse_header"].wrong, found.table()


def test_a_value_whose_checksum_is_not_looked_at_is_noticed(tmp_path: Path) -> None:
    opening = "        with Synchronizer(self.place.prefix, mode=mode, verify="
    change = ("fuzztargets.py", f"checks = random() < 0.8\n{opening}checks)", f"checks = True\n{opening}False)")
    name = "Synchronizer: open and read"
    found = broken(tmp_path, name, 1500, change)
    assert found.rows[name].wrong, found.table()
    fault = json.loads(Path(found.faults[0]["files"], "fault.json").read_text())
    assert fault["seed"] == SEED
    again = subprocess.run(
        [sys.executable, str(HERE / "run.py"), "--replay", found.faults[0]["files"]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CorruptionError" in again.stdout + again.stderr, (
        "what was kept is fed again; with its checksum it is refused"
    )


def test_an_exception_that_nobody_documented_is_noticed(tmp_path: Path) -> None:
    change = ("mmapds/_manifest.py", "if len(data) >= _HEAD.size:", "if True:")
    name = "SnapshotMap: decode the manifest"
    found = broken(tmp_path, name, 600, change)
    assert found.rows[name].undocumented, found.table()
    assert "struct.error" in found.faults[0]["trace"]


def test_a_crash_is_noticed_and_what_was_fed_is_kept(tmp_path: Path) -> None:
    change = ("mmapds/_manifest.py", "            and keys <= 2\n", "            and (keys <= 2 or os.abort())\n")
    name = "SnapshotMap: decode the manifest"
    found = broken(tmp_path, name, 3000, change, most_deaths=0)
    assert found.rows[name].crashes == 1, found.table()
    kept = Path(found.faults[0]["files"])
    version = [
        path
        for path in kept.rglob("manifest_data_*")
        if int.from_bytes(path.read_bytes()[4096 + 24 : 4096 + 32], "little") > 2
    ]
    assert version, "the file says so that it died of"


@pytest.mark.parametrize("where", ["worker", "parent"])
def test_a_loop_without_end_is_noticed(tmp_path: Path, where: str) -> None:
    """By the process itself, if its signal handlers run; else by its parent."""
    loop = (
        "while True:\n                pass" if where == "worker" else "import ctypes; ctypes.PyDLL(None).sleep(100000)"
    )
    change = (
        "mmapds/_manifest.py",
        "            layers = tuple(",
        f"            if keys == 0:\n              {loop}\n            layers = tuple(",
    )
    name = "SnapshotMap: decode the manifest"
    patience = 3.0 if where == "parent" else 100.0
    found = broken(tmp_path, name, 1000, change, most_deaths=0, patience=patience, slow=0.4)
    assert found.rows[name].hangs, found.table()
    assert "_manifest.py" in found.faults[0]["trace"] or where == "parent"


def test_memory_without_bound_is_noticed(tmp_path: Path) -> None:
    change = (
        "mmapds/_manifest.py",
        "            layers = tuple(",
        "            b'x' * min(end, 1 << 27)\n            layers = tuple(",
    )
    name = "SnapshotMap: decode the manifest"
    found = broken(tmp_path, name, 1000, change, memory=1 << 26)
    assert any(fault["what"].startswith("memory") for fault in found.faults), found.table()


def test_sanitizers_build() -> None:
    """That there is a compiler with them; the run itself is a command."""
    import sanitize

    try:
        library = sanitize.runtime()
    except sanitize.UnavailableError as error:
        pytest.skip(str(error))
    assert os.path.exists(library)
