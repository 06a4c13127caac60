"""One scene for each structure: makes it, says who works on it, reads its state, and checks its history up to there.

A window of history begins and ends at a checkpoint, when nobody is in the middle of anything (see ``fleet.py``):
`capture` is called then, by a process that is not one of the fleet; `check` later, beside the fleet at work.
"""

from __future__ import annotations

import contextlib
import os
import struct
from queue import Empty
from typing import Any

import histories as h
import historyjobs as jobs
import queuehistory as qh
from fleet import Role

import mmapds
from mmapds import inspection


class Scene:
    """What all have in common."""

    name = ""
    roles: list[Role]
    files_limit = 10  # how many files it may have at a checkpoint
    bytes_limit = 1 << 20

    def __init__(self, folder: str) -> None:
        self.folder = f"{folder}/{self.name}"
        os.mkdir(self.folder)
        self.path = f"{self.folder}/it"
        self.inside = f"{self.name}/it"
        self.ops = self.unknown = 0
        self.make()
        self.state: Any = self.capture()

    def make(self) -> None:
        """The structure."""
        raise NotImplementedError

    def capture(self) -> Any:
        """Its state now, for `check`."""
        raise NotImplementedError

    def check(self, ops: list[h.Op], state: Any, killed: dict[int, int]) -> None:
        """The history since the last call, at whose end the structure was in this state; HistoryError."""
        counts = self._check(ops, self.state, state, killed)
        self.state = state
        self.ops += counts.ops
        self.unknown += counts.unknown

    def _check(self, ops: list[h.Op], before: Any, after: Any, killed: dict[int, int]) -> h.Counts:
        raise NotImplementedError

    def verify(self) -> list[str]:
        """What the inspection finds wrong. What a death leaves is normal, and a note or a warning."""
        return [
            f"{self.name}: {finding.severity}: {finding.where}: {finding.what}"
            for finding in inspection.verify(self.path)
            if finding.severity == "error"
        ]

    def disk(self) -> tuple[int, int]:
        """(files, bytes) that it takes."""
        count = size = 0
        for where, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    size += os.stat(os.path.join(where, name)).st_blocks * 512
                    count += 1
        return count, size


class SyncScene(Scene):
    """A Synchronizer: two that want to write, readers in place and by copy, readers that hold on."""

    name = "synchronizer"
    files_limit = 6
    bytes_limit = 1 << 21

    def make(self) -> None:
        self.roles = [
            Role("sync writer", self.name, "write", {"name": self.inside}),
            Role("sync writer", self.name, "write", {"name": self.inside}),
            Role("sync reader", self.name, "read", {"name": self.inside}),
            Role("sync reader that holds", self.name, "read", {"name": self.inside, "hold": 0.1}),
            Role("sync reader, readonly", self.name, "read", {"name": self.inside, "mode": "readonly"}),
            Role("sync reader, immortal", self.name, "read", {"name": self.inside}, kill=False),
        ]
        with mmapds.Synchronizer(self.path, codec="raw") as s:
            s.write_bytes(jobs.value_of(1, 1 << 16))

    def capture(self) -> tuple[int, int]:
        with mmapds.Synchronizer(self.path, mode="readonly") as s, s.read() as r:
            token, torn = jobs.read_token(r.data, 1 << 16)
            assert not torn, "the last value is not whole"
            return r.version, token

    def _check(self, ops: list[h.Op], before: Any, after: Any, killed: dict[int, int]) -> h.Counts:
        return h.check_versions(ops, before, after)

    def slots(self) -> int:
        """Reader slots in use."""
        described: Any = inspection.describe(self.path)
        return int(described["slots"]["in_use"])


class CrateScene(Scene):
    """The same with mmap-sync's files: one writer. Readers are not stopped: its protocol allows none to be late."""

    name = "mmap-sync"
    files_limit = 6
    bytes_limit = 1 << 21
    grace = 1.5

    def make(self) -> None:
        options = {"name": self.inside, "protocol": "mmap-sync", "grace": self.grace}
        self.roles = [
            Role("mmap-sync writer", self.name, "write", options),
            Role("mmap-sync reader", self.name, "read", options, stop=False),
            Role("mmap-sync reader, immortal", self.name, "read", options, kill=False, stop=False),
        ]
        with mmapds.Synchronizer(self.path, codec="raw", protocol="mmap-sync") as s:
            s.write_bytes(jobs.value_of(1, 1 << 16))

    def capture(self) -> int:
        with mmapds.Synchronizer(self.path, mode="readonly", protocol="mmap-sync", codec="raw") as s, s.read() as r:
            token, torn = jobs.read_token(r.data, 1 << 16)
            assert not torn, "the last value is not whole"
            return token

    def _check(self, ops: list[h.Op], before: Any, after: Any, killed: dict[int, int]) -> h.Counts:
        counts = h.check_versions(*h.ranked(ops, before, after))
        counts.ops, counts.unknown = len(ops), sum(not op.known for op in ops)
        return counts


class CountersScene(Scene):
    """Counters by name, by index and bound; some only added to, some exchanged, some reserved from."""

    name = "counters"
    files_limit = 1
    durability = "process"

    def make(self) -> None:
        options = {"name": self.inside}
        self.roles = [
            Role("counter", self.name, "count", options),
            Role("counter", self.name, "count", options),
            Role("counter", self.name, "count", options),
            Role("counter, immortal", self.name, "count", options, kill=False),
            Role("reserver", self.name, "count", {**options, "reserve": True}),
            Role("reserver", self.name, "count", {**options, "reserve": True}),
            # Not killed: then handles may disagree about the name, until somebody changes one.
            Role("popper", self.name, "pop", options, kill=False),
        ]
        mmapds.Counters(self.path, 4, durability=self.durability).close()  # type: ignore[call-overload]

    def capture(self) -> dict[int, int]:
        with mmapds.Counters(self.path, mode="readonly") as c:
            found = {k: c.get(jobs.counter_key(k), 0) for k in (*jobs.ADDED, *jobs.MIXED, *jobs.RESERVED)}
            return found | {k: c.get(jobs.counter_key(k), h.ABSENT) for k in jobs.REMOVED}

    def _check(self, ops: list[h.Op], before: Any, after: Any, killed: dict[int, int]) -> h.Counts:
        return h.check_counters(ops, before, after)


class QueueScene(Scene):
    """A queue with a limit, in small segments."""

    name = "queue"
    durability = "process"
    maxsize = 500
    segment = 1 << 16
    files_limit = 40
    bytes_limit = 8 << 20
    final = False

    def make(self) -> None:
        options = {"name": self.inside}
        self.roles = [
            Role("producer", self.name, "put", options),
            Role("producer", self.name, "put", options),
            Role("producer, immortal", self.name, "put", options, kill=False),
            Role("getter", self.name, "get", options),
            Role("claimer", self.name, "claim", options),
            Role("claimer", self.name, "claim", options),
            Role("claimer with leases", self.name, "claim", {**options, "lease": 0.3}),
            Role("claimer, immortal", self.name, "claim", options, kill=False),
        ]
        self._create()

    def _create(self) -> None:
        mmapds.Queue(
            self.path, self.maxsize, codec="raw", segment_size=self.segment, durability=self.durability
        ).close()  # type: ignore[arg-type]
        self.checker = qh.QueueChecker()

    def capture(self) -> tuple[list[tuple[int, int]], int]:
        with mmapds.Queue(self.path, mode="readonly") as q:
            return [struct.unpack_from("<QQ", item) for item in q], q.stats()["claimed"]

    def _check(self, ops: list[h.Op], before: Any, after: Any, killed: dict[int, int]) -> h.Counts:
        self.checker.window(ops, *after, killed, self.final)
        counts = h.Counts()
        counts.ops, counts.unknown = len(ops), sum(not op.known for op in ops)
        return counts

    def drain(self) -> None:
        """When all processes are dead: gets what is left, as one more process would, and checks the rest."""
        number = 1 << 20
        ops = []
        with mmapds.Queue(self.path) as q:
            while True:
                begin = h.clock()
                try:
                    found = q.get_many(100, timeout=0.5)
                except Empty:
                    break
                rows = tuple((*struct.unpack_from("<QQ", item), 0, 0, 0) for item in found)
                ops.append(h.Op(begin, h.clock(), True, qh.TAKE, len(found), process=number, content=rows))
                for _ in found:
                    q.task_done()
            assert q.join(60), f"join() waits for what nobody has: {q.stats()}, {q.holders()}"
        self.final = True
        self.check(ops, self.capture(), {})


class PowerQueueScene(QueueScene):
    """A queue whose operations wait for the disk."""

    name = "queue, power"
    durability = "power"

    def make(self) -> None:
        options = {"name": self.inside, "rest": 0.3, "burst": 3}
        self.roles = [
            Role("producer, power", self.name, "put", options),
            Role("producer, power", self.name, "put", options),
            Role("getter, power", self.name, "get", options),
            Role("claimer, power", self.name, "claim", options),
            Role("claimer, power, immortal", self.name, "claim", options, kill=False),
        ]
        self._create()


class MapScene(Scene):
    """A SnapshotMap: two that want to commit, one that compacts, followers, private copies."""

    name = "snapshot map"
    files_limit = 30
    bytes_limit = 64 << 20

    def make(self) -> None:
        options = {"name": self.inside}
        self.roles = [
            Role("committer", self.name, "commit", options),
            Role("committer", self.name, "commit", options),
            Role("compactor", self.name, "compact", options),
            Role("follower", self.name, "follow", options),
            Role("follower, readonly", self.name, "follow", {**options, "mode": "readonly"}),
            Role("follower, immortal", self.name, "follow", {**options, "verify": True}, kill=False),
            Role("private copy", self.name, "apart", options),
        ]
        mmapds.SnapshotMap.build(self.path, jobs.first_map())

    def capture(self) -> tuple[int, int]:
        with mmapds.SnapshotMap(self.path, mode="readonly", verify=True) as m:
            now = m.snapshot()
            n, torn = jobs.look(now)
            assert not torn, "the last version is mixed"
            return now.version, n

    def _check(self, ops: list[h.Op], before: Any, after: Any, killed: dict[int, int]) -> h.Counts:
        return h.check_map(ops, before, after)


SCENES = (SyncScene, CrateScene, CountersScene, QueueScene, PowerQueueScene, MapScene)
