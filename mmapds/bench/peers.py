"""What several structures are compared with: a Redis server, and a flush of the disk.

A peer is left out, and says why, where it is not installed: ``pip install mmapds[bench]``, and a ``redis-server``.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, TypeAlias

from mmapds import Region
from mmapds.bench.measure import Case, only

__all__ = ["Maker", "found", "one_msync", "redis"]

Maker: TypeAlias = Callable[[ExitStack, str], list[Case] | str]
"""Makes the cases of a peer, with files in a directory; or says why it cannot."""

_PATIENCE = 10.0  # seconds for a server to start
_PAGE = 4096  # where the bytes lie that are flushed, as behind the header of a structure


def found(stack: ExitStack, directory: str, makers: Mapping[str, Maker]) -> tuple[list[Case], dict[str, str]]:
    """The cases of those that are here, and why the others are not, by name."""
    cases: list[Case] = []
    reasons: dict[str, str] = {}
    for name, make in makers.items():
        made = make(stack, directory)
        if isinstance(made, str):
            reasons[name] = made
        else:
            cases += made
    return cases, reasons


def redis(stack: ExitStack, directory: str, *options: str) -> Any:
    """A client of a server of our own, on a free port of the loopback interface; or, a str, why there is none.

    `options`: what else the server is told. It answers when it has loaded what it found.
    """
    try:
        from redis import ConnectionError as NotYet
        from redis import Redis
    except ImportError as error:
        return f"redis, the client, cannot be imported: {error}"
    program = shutil.which("redis-server")
    if program is None:
        return "there is no redis-server"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(
        [*command, "--dir", directory, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stack.callback(server.wait)
    stack.callback(server.terminate)
    client = Redis(host="127.0.0.1", port=port)
    stack.callback(client.close)
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            client.ping()
            return client
        except NotYet:
            if server.poll() is not None:
                return f"redis-server ended with status {server.returncode}"
            if time.monotonic() > until:
                return f"redis-server did not answer within {_PATIENCE:g} seconds"
            time.sleep(0.05)


def one_msync(stack: ExitStack, path: str, name: str, data: bytes) -> Case:
    """Changes as many bytes of a file, and times the flush alone that writes them to the disk."""
    region = stack.enter_context(Region.open(path, _PAGE + len(data)))

    def flush() -> float:
        region.pwrite(data, _PAGE)
        start = time.perf_counter()
        region.flush(_PAGE, len(data))
        return time.perf_counter() - start

    return only(name, flush)
