"""Processes of the build with failpoints, held and let go as a test says: for the schedules."""

from __future__ import annotations

from pathlib import Path

from failpoints import FailPeer

SETUP = """
import victims, warnings
warnings.simplefilter("ignore", ResourceWarning)
mmapds._snapcommit._PATIENCE = 0.2  # seconds until somebody is told that a map is being made
from victims import number, pattern
"""

CLEAN = """
failpoints.disarm()
for name, one in list(vars().items()):
    if type(one).__module__.startswith("mmapds") and not isinstance(one, type) and not hasattr(one, "owner_died"):
        getattr(one, "release", getattr(one, "close", list))()
        del vars()[name]
one = None
import gc; gc.collect()
"""


class Stage:
    """Peers that have nothing to do with each other, started when they are needed, and used again while they live."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._peers: dict[str, FailPeer] = {}

    def __getitem__(self, name: str) -> FailPeer:
        if name not in self._peers or self._peers[name].process.poll() is not None:
            self.drop(name)
            self._peers[name] = FailPeer(SETUP, folder=self.folder)
        return self._peers[name]

    def drop(self, name: str) -> None:
        if name in self._peers:
            self._peers.pop(name).__exit__(None, None, None)

    def clean(self) -> None:
        """Who is idle closes what it has; who is held, or dead, goes."""
        for name, peer in list(self._peers.items()):
            if peer.process.poll() is not None or peer._asked:
                self.drop(name)
            else:
                peer(CLEAN)

    def close(self) -> None:
        for name in list(self._peers):
            self.drop(name)
