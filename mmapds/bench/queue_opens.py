"""Opening a queue after a crash, and after another boot: what a process must do before it gets the first item.

Run as a program this is the process that crashes: ``python -m mmapds.bench.queue_opens PATH COUNT`` fills the queue,
claims some items, says so, and goes on putting and getting until it is killed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

from mmapds import Queue
from mmapds._header import ORIGIN
from mmapds.bench.measure import Cost
from mmapds.bench.queue_cases import ITEM
from mmapds.bench.run import Run

__all__ = ["opens"]

_BATCH = 1000
_CLAIMS = 100
_MS = 1e6
_BYTES = 256  # at least, for each item


def opens(run: Run, directory: str, count: int) -> None:
    """A queue with so many items, opened in the one way and in the other."""
    if shutil.disk_usage(directory).free < count * _BYTES:
        run.skip(f"there is no room for {count * _BYTES >> 20} MiB", "open", "scan")
        return
    path = f"{directory}/opens"
    crashed = sorted(_after_crash(path, count) for _ in range(run.effort.start_runs))
    booted = sorted(_after_boot(path) for _ in range(run.effort.start_runs))
    run.figures |= {
        "open": Cost(crashed[0], crashed[len(crashed) // 2]),
        "scan": Cost(booted[0], booted[len(booted) // 2]),
        "5_ms": Cost(5 * _MS, 5 * _MS),
        "1_ms": Cost(_MS, _MS),
    }
    Queue.erase(path)


def _after_crash(path: str, count: int) -> float:
    """Nanoseconds until the first item is claimed, when all who had the queue open were killed."""
    command = [sys.executable, "-P", "-m", "mmapds.bench.queue_opens", path, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as victim:
        assert victim.stdout
        said = victim.stdout.readline()
        time.sleep(0.01)
        victim.kill()
    if said != b"ready\n":
        raise RuntimeError(f"the process that was to be killed ended early, with status {victim.returncode}; see above")
    start = time.perf_counter()
    with Queue(path) as q:
        claim = q.claim(0)
        taken = time.perf_counter() - start
        claim.nack()
    return taken * 1e9


def _after_boot(path: str) -> float:
    """Nanoseconds for each MB of segments, when the last to have the queue open was another boot of the machine."""
    size = sum(entry.stat().st_size for entry in os.scandir(path) if entry.name.endswith(".segment"))
    fd = os.open(f"{path}/meta", os.O_WRONLY)
    os.pwrite(fd, os.urandom(16), ORIGIN.start)
    os.close(fd)
    start = time.perf_counter()
    with Queue(path):
        return (time.perf_counter() - start) * 1e9 / (size / 1e6)


def _crash(path: str, count: int) -> None:
    with Queue(path, codec="raw") as q:
        while (left := count - q.qsize()) > 0:
            q.put_many([ITEM] * min(left, _BATCH))
        claims = q.claim_many(_CLAIMS)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while claims:  # until it is killed
            q.put(ITEM)
            q.get()


if __name__ == "__main__":
    _crash(sys.argv[1], int(sys.argv[2]))
