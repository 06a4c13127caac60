"""The tests that the standard library has for its own queues, run with mmapds.Queue."""

from __future__ import annotations

import os
import shutil
import tempfile
import unittest
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import queuefiles

import mmapds

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from test.test_queue import BaseQueueTestMixin
except (ImportError, unittest.SkipTest) as error:
    pytest.skip(f"this Python has no tests of its standard library: {error}", allow_module_level=True)


class Queue(mmapds.Queue):  # the mixin looks at the name
    """In a directory of its own, and opened by `maxsize` alone."""

    made: list[Queue] = []  # noqa: RUF012

    def __init__(self, maxsize: int = 0) -> None:
        path = tempfile.mkdtemp(prefix="mmapds-")
        super().__init__(path, maxsize, segment_size=8192)
        self.made.append(self)


class TestStandardLibrary(BaseQueueTestMixin, unittest.TestCase):
    queue = SimpleNamespace(Queue=Queue, Empty=mmapds.Empty, Full=mmapds.Full, ShutDown=mmapds.ShutDown)
    type2test: Any = Queue

    def tearDown(self) -> None:
        while Queue.made:
            q = Queue.made.pop()
            q.close()
            queuefiles.check(q.path)
            shutil.rmtree(q.path)
        super().tearDown()


def test_the_mixin_is_there() -> None:
    names = [name for name in dir(TestStandardLibrary) if name.startswith("test_")]
    assert {"test_basic", "test_queue_join", "test_queue_task_done", "test_nowait", "test_shrinking_queue"} <= set(
        names
    )
    assert os.path.basename(BaseQueueTestMixin.__module__) == "test.test_queue"
