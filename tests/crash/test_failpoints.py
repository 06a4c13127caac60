"""A sample of all points of all operations: killed there, or the call fails (rows 1, 2, 3, 7, 8, 10, 12, 28 and 33).

The rest is done by ``python tests/crash/failpoints_all.py``; the oracles are in failjobs.py. The sample is the same
each time; FAILPOINTS_SEED chooses another.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from pathlib import Path

import failjobs
import failpoints
import pytest
from failjobs import Case, Runner

import mmapds
from mmapds import DurabilityFailed, SnapshotMap

WHY = failpoints.missing()
needs_build = pytest.mark.skipif(WHY is not None, reason=str(WHY))
SEED = int(os.environ.get("FAILPOINTS_SEED", "1"))


def case(name: str) -> Case:
    return next(case for case in failjobs.cases() if str(case) == name)


@needs_build
@pytest.mark.parametrize("structure", ["Synchronizer", "Counters", "Queue", "SnapshotMap"])
def test_r01_r02_r03_r12_r28_killed_and_failed_at_some_points(tmp_path: Path, structure: str) -> None:
    choose = random.Random(f"{SEED} {structure}")
    cases = [case for case in failjobs.cases() if case.structure == structure]
    with Runner(tmp_path) as runner:
        for one in choose.sample(cases, 11):
            failjobs.run(runner, one, print, choose, kills=4, fails=4)
    figures = runner.figures
    print(f"{sum(figures.kills.values())} kills, {sum(figures.errors.values())} errnos")
    assert not figures.failures, f"{len(figures.failures)} failures, seed {SEED}: " + "\n\n".join(figures.failures[:3])
    assert sum(figures.kills.values()) >= 11


@needs_build
@pytest.mark.parametrize("what", ["commit", "create"])
def test_r12_a_map_whose_sync_failed_is_healed_by_whoever_opens_it(tmp_path: Path, what: str) -> None:
    """The process that failed is gone, and nobody else had the map open: a new handle was refused for ever."""
    one = case(f"SnapshotMap: {what} (power)")
    with Runner(tmp_path) as runner:
        points = runner.record(one)
        one.end()
        for number, name in points.calls:
            if name.startswith("call msync"):
                one.begin(runner.folder)
                one.end()  # nobody has it open
                found = runner.victim(one, "fail", number, error=errno.EIO, kinds=failpoints.CALL | failpoints.READ)
                assert (found.status, found.error) == (0, "DurabilityFailed"), found
                check_healed(one.path, what)


def check_healed(path: str, what: str) -> None:
    with pytest.raises((DurabilityFailed, FileNotFoundError)):
        SnapshotMap(path, mode="readonly")
    with SnapshotMap(path, codec="raw") as m:
        if what == "commit":
            with pytest.raises(DurabilityFailed):
                dict(m)
        with m.transaction() as t:
            t["healed"] = b"healed"
        assert m["healed"] == b"healed"
        m.check()
    with SnapshotMap(path, mode="readonly") as m:
        assert m["healed"] == b"healed"


def test_a_release_has_no_failpoints() -> None:
    """No symbol, no string: without the macro the header is empty."""
    folder = Path(mmapds.__file__).parent / "_native"
    modules = list(folder.glob("*.so"))
    assert modules
    for path in modules:
        assert b"failpoint" not in path.read_bytes(), path


@needs_build
def test_the_compiler_sees_the_same_text_without_them(tmp_path: Path) -> None:
    """What a release is compiled from, and the same when the header is not included: word for word."""
    texts = []
    for include in (True, False):
        folder = tmp_path / str(include)
        shutil.copytree(failpoints.NATIVE, folder, ignore=shutil.ignore_patterns("*.so", "*.c", "*.py*"))
        if not include:
            atomics = (folder / "atomics.h").read_text()
            assert atomics.count('#include "failpoints.h"') == 1
            (folder / "atomics.h").write_text(atomics.replace('#include "failpoints.h"', ""))
            (folder / "failpoints.h").unlink()
        (folder / "all.c").write_text("".join(f'#include "{name}.h"\n' for name in ("leftright", "mmapsync", "queue")))
        command = [failpoints.compiler() or "cc", "-E", "-P", str(folder / "all.c")]
        texts.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert "leftright_publish" in texts[0]
    assert texts[0] == texts[1]


@needs_build
def test_the_build_for_tests_has_them() -> None:
    for name in ("leftright", "writer", "queueput", "queuetake", "counters", "snapbuild"):
        (found,) = failpoints.modules().glob(f"{name}.*.so")
        assert b"mmapds_failpoint" in found.read_bytes(), name


# ---- these tests can fail ------------------------------------------------------------------------------------------


def failures(tmp_path: Path, name: str, build: str) -> list[str]:
    """What is found when all of a case is done with this build."""
    with Runner(tmp_path, build) as runner:
        failjobs.run(runner, case(name), lambda text: None)
    return runner.figures.failures


@needs_build
def test_a_version_that_is_published_before_its_record_is_found(tmp_path: Path) -> None:
    record = "mmapds_record *record = &sync->records[sequence & 1];"
    build = failpoints.broken(
        "_native/leftright.h", record, record + " store_seq_cst_u64(&sync->sequence, sequence);", "writer"
    )
    found = failures(tmp_path, "Synchronizer: write small (process)", build)
    assert any("killed at point" in one and "leftright_publish" in one for one in found), found


@needs_build
def test_a_file_that_has_its_name_before_its_header_is_found(tmp_path: Path) -> None:
    build = failpoints.broken(
        "files.py",
        "        os.pwrite(fd, page, 0)\n        if end:",
        "        publish()\n        os.pwrite(fd, page, 0)\n        return\n        if end:",
    )
    found = failures(tmp_path, "Synchronizer: create (process)", build)
    assert any("killed at point" in one and "call pwrite" in one for one in found), found


@needs_build
def test_a_descriptor_that_is_left_by_an_error_is_found(tmp_path: Path) -> None:
    build = failpoints.broken(
        "files.py", "    finally:\n        os.close(fd)\n        if temporary", "    finally:\n        if temporary"
    )
    found = failures(tmp_path, "Synchronizer: create (process)", build)
    assert any("it leaves" in one and "ENOSPC" in one for one in found), found


@needs_build
def test_a_failed_sync_that_nobody_is_told_of_is_found(tmp_path: Path) -> None:
    build = failpoints.broken("_snapcommit.py", "            self._manifest.fail()\n", "")
    found = failures(tmp_path, "SnapshotMap: delete (power)", build)
    assert any("nobody will know" in one and "N.delta" in one for one in found), found


@needs_build
def test_an_error_that_is_swallowed_is_found(tmp_path: Path) -> None:
    """A msync of a queue's segment whose error is dropped counts as success."""
    build = failpoints.broken(
        "_native/queueput.h",
        "    store_seq_cst_u64(&view->control->header.failed, 1);\n    return -failed;",
        "    return -failed;",
        "queueput",
    )
    found = failures(tmp_path, "Queue: put into the next segment (power)", build)
    assert any("nobody will know" in one for one in found), found
