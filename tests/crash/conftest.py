"""What the schedules share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
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
