"""A cache server that opens its data instead of loading it, and speaks the protocol of Redis.

    python examples/cache_server.py demo --build 1000000       makes a snapshot to try it with
    python examples/cache_server.py demo --port 6380           serves it: redis-cli -p 6380 get k000000007

The data is a snapshot map of bytes, codec "raw". It is mapped, so the server answers as soon as it runs, however large
the map is, and `--workers N` processes on the same port (SO_REUSEPORT) share the pages. Each has the map open in mode
``private``: what SET and DEL change goes to an overlay in the worker that the client is connected to, and is gone when
that ends; the files never change. SIGHUP, or `--refresh`, puts the newest version of the map under the overlays.

Here are the processes. ``cache_protocol.py`` reads commands (RESP2 and RESP3, pipelines, inline), ``cache_commands.py``
answers them (those of one read by one write), ``cache_data.py`` is the map, and how SCAN walks it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import hashlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from cache_commands import Connection
from cache_data import Cache, open_map

import mmapds

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD


async def serve(options: argparse.Namespace, listener: socket.socket, parent: int | None) -> None:
    """One worker, until it is told to stop or its parent, who has the other end of a pipe, is gone."""
    cache = Cache(options.path, listener.getsockname()[1])
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, cache.refresh)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if parent is not None:
        loop.add_reader(parent, stop.set)
    if options.prefetch:
        threading.Thread(target=cache.base.prefetch, daemon=True).start()
    server = await loop.create_server(lambda: Connection(cache), sock=listener, backlog=511)
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), options.refresh or None)
            break
        cache.refresh()
    server.close()
    for end in ("close", "abort"):  # what is not read at once is lost
        for transport in list(cache.transports):
            getattr(transport, end)()
        await asyncio.sleep(0)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # an impatient second Ctrl-C
    cache.map.close()


def supervise(options: argparse.Namespace, listeners: list[socket.socket]) -> int:
    """Starts the workers, and anew those that are killed, until SIGINT or SIGTERM; the status to end with."""
    ours, theirs = os.pipe()
    workers: dict[int, socket.socket] = {}

    def start(listener: socket.socket) -> None:
        pid = os.fork()
        if pid:
            workers[pid] = listener
            return
        status = 1
        try:
            os.close(theirs)
            for other in listeners:
                if other is not listener:
                    other.close()
            asyncio.run(serve(options, listener, ours))
            status = 0
        except (mmapds.MmapdsError, OSError) as error:
            print(f"{options.path}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)

    gc.freeze()  # what there is now stays in pages that all workers share
    for listener in listeners:
        start(listener)
    status = 0
    while not status:
        number = signal.sigwait(SIGNALS)
        if number == signal.SIGHUP:
            for pid in workers:
                os.kill(pid, signal.SIGHUP)
        elif number == signal.SIGCHLD:
            for pid, how in ended():
                listener = workers.pop(pid)
                if os.WIFSIGNALED(how):  # those who wait at its socket are served by the next one
                    print(f"worker {pid} was killed by signal {os.WTERMSIG(how)}", file=sys.stderr, flush=True)
                    start(listener)
                else:
                    status = 1
        else:
            break
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    for pid in workers:
        os.waitpid(pid, 0)
    os.close(ours)
    os.close(theirs)
    return status


def ended() -> Iterator[tuple[int, int]]:
    """Processes that are gone, and how they ended."""
    with contextlib.suppress(ChildProcessError):
        while (gone := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            yield gone


def build(path: str, count: int) -> None:
    """A map of `count` keys of 10 bytes, with values of 100."""
    keys = (b"k%09d" % i for i in range(count))
    pairs = ((key, hashlib.shake_128(key).hexdigest(50).encode()) for key in keys)
    print(mmapds.SnapshotMap.build(path, pairs, codec="raw"), "keys in", path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Serves a snapshot map (keys: bytes, codec: raw) as Redis would.")
    parser.add_argument("path", help="the directory of the map")
    parser.add_argument("--build", type=int, metavar="N", help="make a map of N keys there, and end")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    parser.add_argument("--port", type=int, default=6380, help="0: any free one (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that serve (default: 1)")
    parser.add_argument(
        "--refresh", type=float, default=0.0, metavar="S", help="look for a newer version every S seconds"
    )
    parser.add_argument("--prefetch", action="store_true", help="bring the map into memory while serving")
    options = parser.parse_args()
    if options.build is not None:
        build(options.path, options.build)
        return 0
    if options.workers < 1 or options.refresh < 0:
        parser.error("--workers is at least 1, --refresh at least 0")
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until somebody listens
    listeners: list[socket.socket] = []
    try:
        with open_map(options.path) as seen:
            about = f"{len(seen)} keys of version {seen.version}"
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        for _ in range(options.workers):
            port = listeners[0].getsockname()[1] if listeners else options.port
            listeners.append(
                socket.create_server((options.host, port), family=family, backlog=511, reuse_port=options.workers > 1)
            )
        host, port, *_ = listeners[0].getsockname()
        print(f"ready on {host}:{port}, {options.workers} worker(s), {about}", flush=True)
        if options.workers > 1:
            return supervise(options, listeners)
        asyncio.run(serve(options, listeners[0], None))
    except (mmapds.MmapdsError, OSError) as error:
        print(f"{options.path}: {error}", file=sys.stderr)
        return 1
    finally:
        for listener in listeners:
            listener.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
