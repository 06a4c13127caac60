"""What a run ran on, and whether anybody else was using it.

A figure without its machine, kernel and file system says nothing. Nothing here names the machine or its user.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mmapds.errors import UnsupportedFilesystem

__all__ = ["Watch", "describe", "directories", "file_system", "versions"]


def describe() -> dict[str, Any]:
    """The machine: processor, cores, memory, whether it is a virtual one."""
    info = _read("/proc/cpuinfo")
    model = next((_value(line) for line in info.splitlines() if line.startswith(("model name", "Model"))), "unknown")
    return {
        "cpu": model,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "virtual": " hypervisor" in info,
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Python, these packages, and the Redis server; those that are not installed are left out."""
    python = f"{platform.python_version()} ({sys.implementation.name})"
    found = {"python": python, "libc": " ".join(platform.libc_ver())}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    server = shutil.which("redis-server")
    if server:
        said = subprocess.run([server, "--version"], capture_output=True, text=True, check=False).stdout
        found["redis-server"] = next((word[2:] for word in said.split() if word.startswith("v=")), "unknown")
    return found


def file_system(path: str | os.PathLike[str]) -> str:
    """The type of the file system that a path lies on, as the kernel names it: "ext4"."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in _read("/proc/self/mountinfo").splitlines():
        fields = line.split()
        if len(fields) > 6 and fields[2] == wanted and "-" in fields:
            return fields[fields.index("-") + 1]
    return "unknown"


@contextlib.contextmanager
def directories() -> Iterator[tuple[str | None, str | None]]:
    """A new directory in memory (tmpfs) and one on a disk; None where there is no place for one. Removed at the end."""
    with contextlib.ExitStack() as stack:

        def first(places: Sequence[str], suits: Any) -> str | None:
            for place in places:
                if os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK) and suits(place):
                    return stack.enter_context(tempfile.TemporaryDirectory(prefix="mmapds-bench-", dir=place))
            return None

        temporary = tempfile.gettempdir()
        memory = first(("/dev/shm", "/run/shm", temporary), lambda place: file_system(place) == "tmpfs")
        disk = first((temporary, "/var/tmp", os.getcwd(), os.path.expanduser("~")), _durable)
        yield memory, disk


def _durable(place: str) -> bool:
    """Whether durability "power" can be had there: the package itself knows."""
    from mmapds import Synchronizer

    with tempfile.TemporaryDirectory(prefix="mmapds-bench-", dir=place) as directory:
        try:
            with Synchronizer(f"{directory}/probe", durability="power"):
                return True
        except UnsupportedFilesystem:
            return False


class Watch:
    """How much of the processors others used while we measured: what a quiet run can be told by."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._before = self._now()

    def seen(self) -> dict[str, Any]:
        """Since the start: seconds, the load average now, and percentages of all processors."""
        ticks = os.sysconf("SC_CLK_TCK")
        elapsed = time.monotonic() - self._start
        busy, stolen, ours = (now - then for now, then in zip(self._now(), self._before, strict=True))
        whole = elapsed * (os.cpu_count() or 1)
        return {
            "seconds": round(elapsed, 1),
            "load_average": round(os.getloadavg()[0], 2),
            "others_percent": round(max(0.0, busy / ticks - ours) / whole * 100, 1),
            "stolen_percent": round(stolen / ticks / whole * 100, 1),
        }

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Ticks in which any processor was busy, ticks that the hypervisor took, our seconds."""
        fields = [float(field) for field in (_read("/proc/stat") or "cpu").split("\n", 1)[0].split()[1:]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = (*fields, *([0.0] * 8))[:8]
        ours = sum(
            usage.ru_utime + usage.ru_stime
            for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        )
        return user + nice + system + irq + softirq, steal, ours


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _value(line: str) -> str:
    return line.partition(":")[2].strip()
