"""A server of several processes that counts its requests, and whose processes are killed at random: the total is exact.

    python examples/request_counter.py

The counters are made before the fork and used in the children, as in any pre-fork server. A child counts a request, its
status and its bytes, and answers when that is done: so whatever the clients were answered is counted. Who is killed has
at most one request in hand, which it may have counted, whole or in part, and has not answered. The clients keep books
of both, and at the end each counter is compared with them::

    what was answered  <=  what is counted  <=  what was answered + what was asked in vain

The number that goes with an answer is what `fetch_add` returned, so no two answers may have the same, though the child
that gave out the one before may be dead. The program ends with status 0 only if all of this is so.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import sys
import tempfile
from collections import Counter as Tally
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

from mmapds import Counter, Counters

WORKERS, CLIENTS, REQUESTS = 4, 2, 4000  # processes that serve, processes that ask, requests of each of these
PAUSE = 0.005  # seconds from one kill to the next, on average
PAGES = {b"/": b"Welcome.\n", b"/long": b"A longer page.\n" * 100}
ASKED = [*PAGES, b"/nothing"]
HEAD = b"HTTP/1.0 %d \r\nX-Number: %d\r\nContent-Length: %d\r\n\r\n"

fork = multiprocessing.get_context("fork")


def page(path: bytes) -> tuple[int, bytes]:
    return (200, PAGES[path]) if path in PAGES else (404, b"There is no such page.\n")


def steps(status: int, body: bytes) -> dict[str, int]:
    """What one request adds to which counter."""
    return {"requests": 1, f"status {status}": 1, "bytes": len(body)}


def serve(listener: socket.socket, counters: Mapping[str, Counter]) -> None:
    """One process of the server: one request after the other, until it is killed."""
    server = os.getppid()
    while os.getppid() == server:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection:
            words = connection.recv(4096).split()
            if len(words) > 1:
                status, body = page(words[1])
                number, *_ = [counters[name].fetch_add(n) for name, n in steps(status, body).items()]
                connection.sendall(HEAD % (status, number, len(body)) + body)  # only now: all of it is counted


@dataclass
class Books:
    """What clients were answered, what they asked in vain, and the numbers that went with the answers."""

    answered: Tally[str] = field(default_factory=Tally)
    in_vain: Tally[str] = field(default_factory=Tally)
    numbers: list[int] = field(default_factory=list)

    def add(self, other: Books) -> None:
        self.answered += other.answered
        self.in_vain += other.in_vain
        self.numbers += other.numbers


def ask(address: tuple[str, int], report: Connection) -> None:
    """One client: asks, and keeps books."""
    books = Books()
    for i in range(REQUESTS):
        path = ASKED[i % len(ASKED)]
        status, body = page(path)
        answer = b""
        with socket.create_connection(address, timeout=60) as connection:
            try:
                connection.sendall(b"GET %b HTTP/1.0\r\n\r\n" % path)
                while data := connection.recv(4096):
                    answer += data
            except ConnectionError:
                pass  # killed with the request unread
        if answer:
            number = int(answer.split()[3])
            assert answer == HEAD % (status, number, len(body)) + body
            books.numbers.append(number)
            books.answered.update(steps(status, body))
        else:
            books.in_vain.update(steps(status, body))
    report.send(books)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0), backlog=128) as listener,
        Counters(path := os.path.join(folder, "requests")) as counters,
    ):
        listener.settimeout(1.0)
        bound = {name: counters.counter(name) for name in ("requests", "status 200", "status 404", "bytes")}

        def worker() -> ForkProcess:
            process = fork.Process(target=serve, args=(listener, bound), daemon=True)
            process.start()
            return process

        workers = [worker() for _ in range(WORKERS)]
        reports: list[Connection] = []
        for _ in range(CLIENTS):
            report, theirs = fork.Pipe(duplex=False)
            fork.Process(target=ask, args=(listener.getsockname(), theirs), daemon=True).start()
            theirs.close()
            reports.append(report)

        kills, books = 0, Books()
        while reports:
            ready = wait(reports, timeout=random.expovariate(1 / PAUSE))
            for report in [report for report in reports if report in ready]:
                books.add(report.recv())
                reports.remove(report)
            if not ready:
                victim = random.randrange(WORKERS)
                workers[victim].kill()
                workers[victim].join()
                workers[victim] = worker()
                kills += 1
        for process in workers:
            process.kill()
            process.join()

        with Counters(path, mode="readonly") as seen:  # as any other process sees them
            compare(seen.snapshot(), books, kills)


def compare(counted: Mapping[str, float], books: Books, kills: int) -> None:
    """Prints the counters beside the books; ends the program with status 1 if they contradict each other."""
    answered, in_vain, numbers = books.answered, books.in_vain, books.numbers
    print(f"{'':12}{'counted':>10}{'answered':>10}{'in vain':>10}")
    for name, value in counted.items():
        print(f"{name:12}{value:10}{answered[name]:10}{in_vain[name]:10}")
    print(f"processes killed: {kills}, numbers given out twice: {len(numbers) - len(set(numbers))}")
    right = (
        all(answered[name] <= value <= answered[name] + in_vain[name] for name, value in counted.items())
        and answered["requests"] + in_vain["requests"] == CLIENTS * REQUESTS
        and in_vain["requests"] <= kills
        and len(set(numbers)) == len(numbers) == answered["requests"]
        and max(numbers) < counted["requests"]
    )
    print("nothing was lost, and nothing counted twice" if right else "THE COUNTERS ARE WRONG")
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
