"""A pytest plugin: which mutants each test comes by, and how long it takes, a JSON object a test.

    MMAPDS_REACHED=FILE pytest -p reached ...

The native code sets a byte for each mutant's place that it comes by (mutants.SWITCH), in a file that is mapped by the
test's process and by all that it starts. What was running before, and goes on, counts for the test that runs now.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import pytest

ROOM = 1 << 14
FILE = os.environ.get("MMAPDS_REACHED", "")
# Here, because a conftest imports mmapds before anything is configured, and what is loaded looks for the file.
FD, os.environ["MMAPDS_MUTANTS_REACHED"] = tempfile.mkstemp(prefix="mmapds-reached-")
os.truncate(FD, ROOM)


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.has_plugin("dsession"):
        return  # it only hands the tests to its workers
    config.pluginmanager.register(Recorder(), "reached-recorder")


class Recorder:
    def __init__(self) -> None:
        self._bytes = mmap.mmap(FD, ROOM)
        self._outcomes: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._bytes[:] = bytes(ROOM)
        self._outcomes.clear()
        start = time.monotonic()
        result = yield
        taken = round(time.monotonic() - start, 3)
        reached = [number for number, byte in enumerate(self._bytes[:]) if byte]
        passed = self._outcomes.count("passed") == len(self._outcomes) == 3  # setup, call, teardown
        found = {"test": item.nodeid, "seconds": taken, "passed": passed, "reached": reached}
        with Path(FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._outcomes.append(report.outcome)
