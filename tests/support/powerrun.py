"""The power-loss simulator as a whole, for one structure: record (powerlives.py), rebuild and recover (powerchecks.py).

`Run.record` has the real code live its lives in a process with the shim, and again from states that a power cut left;
`explore` recovers distinct states in a worker process, batch by batch: a worker that dies, or is still busy when the
watchdog ends, fails the batch, and the state it was at is left in its folder. `teeth` has each call site lie in turn.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from types import TracebackType
from typing import Any, Self

import powerlog
from peers import Peer, PeerError

STRUCTURES = ("Synchronizer", "Counters", "Queue", "SnapshotMap")
BATCH = 250  # states; each has the whole watchdog of a peer, which is far more than it takes

LIES = 6_000  # states at which a lie is looked for, at most


class Run:
    """A structure's files in a temporary folder, which goes with it."""

    def __init__(self, structure: str, seed: int = 6, *, keep: bool = True) -> None:
        self.structure = structure
        self.seed = seed
        self.base = tempfile.mkdtemp(prefix="mmapds-powerloss-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.worker: Peer | None = None
        self._keep = keep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.worker is not None:
            self.worker.__exit__(None, None, None)
        if kind is None or not self._keep:  # else the files that were refuted are there to be looked at
            shutil.rmtree(self.base)

    def record(self, names: list[str] | None = None, wanders: int = 0, recoveries: int = 0) -> None:
        """`names`: of lives, or None for all; `wanders`: lives by chance; `recoveries`: lives from what is left."""
        with Peer("import pickle, powerlives", env={"LD_PRELOAD": powerlog.shim()}) as recorder:
            try:
                self._record(recorder, names, wanders, recoveries)
            except PeerError as error:
                raise AssertionError(f"{error}\n{recorder.stderr()}") from error

    def _record(self, recorder: Peer, names: list[str] | None, wanders: int, recoveries: int) -> None:
        path = os.path.join(self.base, "recordings")
        recorder(
            """
found = powerlives.record(structure, base, names, wanders)
with open(path, "wb") as file: pickle.dump(found, file)
""",
            structure=self.structure, base=self.base, names=names, path=path,
            wanders=[self.seed * 1000 + n for n in range(wanders)],
        )  # fmt: skip
        self._explorer(path)
        if recoveries:
            assert self.worker is not None
            starts = os.path.join(self.base, "starts")
            self.worker(
                "with open(starts, 'wb') as file: pickle.dump(e.samples(count), file)",
                starts=starts,
                count=recoveries,
            )
            recorder(
                """
with open(starts, "rb") as file: found += powerlives.record_recoveries(structure, base, pickle.load(file))
with open(path, "wb") as file: pickle.dump(found, file)
""",
                starts=starts,
            )
            self._explorer(path)

    def _explorer(self, path: str) -> None:
        if self.worker is None:
            self.worker = Peer("import pickle, powerchecks", structure=self.structure, base=self.base)
        self.worker("e = powerchecks.Explorer(structure, path, base, seed)", path=path, seed=self.seed)

    def explore(self, states: int, **options: Any) -> dict[str, Any]:
        """Recovers that many distinct states, or (0) all that the lives come to; figures."""
        assert self.worker is not None
        self.worker("e.begin(**options)", options=options)
        left = states
        while self.worker("e.batch(count)", count=min(BATCH, left) if states else BATCH):
            left -= BATCH
            if states and left <= 0:
                break
        return self.figures()

    def estimate(self, seeded: int) -> int:
        assert self.worker is not None
        found: int = self.worker("e.estimate(seeded)", seeded=seeded)
        return found

    def figures(self) -> dict[str, Any]:
        assert self.worker is not None
        found: dict[str, Any] = self.worker("e.figures()")
        return found

    def sites(self) -> dict[str, int]:
        assert self.worker is not None
        found: dict[str, int] = self.worker("e.sites()")
        return found

    def lie(self, site: str, budget: int = LIES) -> tuple[str, int]:
        """How a disk on which that call site does nothing is refuted, or "", and how many states that took."""
        assert self.worker is not None
        self.worker("e.begin_lie(site)", site=site)
        looked = 0
        while looked < budget:
            found, states, done = self.worker("e.lie(count)", count=BATCH)
            looked += states
            if done:
                return found, looked
        return "", looked
