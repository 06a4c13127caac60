"""What these tests share."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import failpoints
import pytest
from peers import SUPPORT
from stages import Stage


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("watched"))
    yield stage
    stage.close()


@pytest.fixture
def path(stage: Stage, request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a structure may be made; what the peers have of it is closed in the end."""
    folder = Path(tempfile.mkdtemp(dir=stage.folder))
    yield str(folder / "it")
    stage.clean()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def nomem(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What is preloaded so that an allocation of the native modules can be made to fail; see nomem.c."""
    compiler = failpoints.compiler()
    if compiler is None:
        pytest.skip("no C compiler, to build what is preloaded")
    target = str(tmp_path_factory.mktemp("nomem") / "nomem.so")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", target, str(SUPPORT / "nomem.c")], check=True)
    return target


@pytest.fixture
def small_deltas(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few commits fill a delta of this process."""
    monkeypatch.setattr("mmapds._snapfiles.DELTA_SIZE", 32768)
    monkeypatch.setattr("mmapds._snapfiles.DELTA_BUCKETS", 64)
