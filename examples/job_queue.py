"""Jobs in a queue, and workers that are killed at random: every job is done, and its effect is there exactly once.

    python examples/job_queue.py

A job is a transfer from one account to another. For each, a worker does two things, and then acknowledges the job::

    writes a line into a journal       cannot be taken back or looked up, as a letter that is sent
    moves the money                    in a database, in one transaction with the id of the job: idempotent

A job that was claimed by a worker that died comes back, with the same `claim.id`. If the worker died after its work and
before its acknowledgement, the work is done once more: there is a second line in the journal. That cannot be helped,
only kept rare; but the database finds the id, and moves no money.

At the end the program looks for every job in both, computes the balances anew, and asks for each second line whether
the first one was the last of a worker that was killed. It ends with status 0 only if all of this is so.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sqlite3
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from multiprocessing.context import ForkProcess

from mmapds import Claim, Queue

WORKERS, JOBS, ACCOUNTS = 4, 6000, 20
PAUSE = 0.01  # seconds from one kill to the next, on average
START = 1000  # what each account has at first

Transfer = tuple[int, int, int]  # from, to, how much

fork = multiprocessing.get_context("fork")


def open_bank(folder: str) -> sqlite3.Connection:
    bank = sqlite3.connect(os.path.join(folder, "bank"), timeout=60, isolation_level=None)
    bank.execute("PRAGMA synchronous=OFF")  # processes die here, not the machine
    return bank


def create_bank(folder: str) -> None:
    with closing(open_bank(folder)) as bank:
        bank.execute("PRAGMA journal_mode=WAL")
        bank.execute("CREATE TABLE accounts (number INTEGER PRIMARY KEY, balance INTEGER)")
        bank.execute("CREATE TABLE done (id TEXT PRIMARY KEY)")
        bank.executemany("INSERT INTO accounts VALUES (?, ?)", [(i, START) for i in range(ACCOUNTS)])


def move(bank: sqlite3.Connection, claim: Claim) -> None:
    """Moves the money, unless that has been done."""
    source, target, amount = claim.item
    bank.execute("BEGIN IMMEDIATE")
    try:
        bank.execute("INSERT INTO done VALUES (?)", (claim.id,))
    except sqlite3.IntegrityError:
        bank.execute("ROLLBACK")  # a worker did it, and died before it could say so
        return
    bank.execute("UPDATE accounts SET balance = balance - ? WHERE number = ?", (amount, source))
    bank.execute("UPDATE accounts SET balance = balance + ? WHERE number = ?", (amount, target))
    bank.execute("COMMIT")


def work(folder: str, worker: int) -> None:
    """One worker: one job after the other, until it is killed."""
    parent = os.getppid()
    with (
        Queue(os.path.join(folder, "jobs")) as jobs,
        closing(open_bank(folder)) as bank,
        open(os.path.join(folder, "journal"), "ab", buffering=0) as journal,
    ):
        while os.getppid() == parent:
            for claim in jobs.claims(timeout=1.0):  # acknowledged when the next one is asked for
                journal.write(b"%d %s\n" % (worker, claim.id.encode()))  # in one piece: whole, or not there
                move(bank, claim)


def any_transfer() -> Transfer:
    source, target = random.sample(range(ACCOUNTS), 2)
    return source, target, random.randrange(1, 100)


def main() -> None:
    transfers = [any_transfer() for _ in range(JOBS)]
    with tempfile.TemporaryDirectory() as folder, Queue(os.path.join(folder, "jobs")) as jobs:
        create_bank(folder)
        jobs.put_many(transfers)
        started: list[ForkProcess] = []

        def start() -> int:
            number = len(started)
            started.append(fork.Process(target=work, args=(folder, number), daemon=True))
            started[number].start()
            return number

        working = [start() for _ in range(WORKERS)]
        killed: set[int] = set()
        while not jobs.join(timeout=random.expovariate(1 / PAUSE)):  # until every job is done
            i = random.randrange(WORKERS)
            killed.add(working[i])
            started[working[i]].kill()
            started[working[i]].join()
            working[i] = start()
        for process in started:
            process.kill()
            process.join()
        compare(folder, transfers, killed)


def compare(folder: str, transfers: Sequence[Transfer], killed: set[int]) -> None:
    """Looks for every job in the journal and in the bank; ends the program with status 1 if something is wrong."""
    writers: defaultdict[str, list[int]] = defaultdict(list)  # of each job, in the order of their lines
    last: dict[int, str] = {}  # job of each worker
    with open(os.path.join(folder, "journal"), encoding="ascii") as journal:
        for line in journal:
            worker, job = line.split()
            writers[job].append(int(worker))
            last[int(worker)] = job
    with closing(open_bank(folder)) as bank:
        done = {job for (job,) in bank.execute("SELECT id FROM done")}
        balances = dict(bank.execute("SELECT number, balance FROM accounts"))
    expected = dict.fromkeys(range(ACCOUNTS), START)
    for source, target, amount in transfers:
        expected[source] -= amount
        expected[target] += amount

    again = [(job, worker) for job, workers in writers.items() for worker in workers[:-1]]
    unexplained = [(job, worker) for job, worker in again if worker not in killed or last[worker] != job]
    moved = sum(balances[number] != expected[number] for number in expected)
    print(f"jobs: {len(transfers)}, workers killed: {len(killed)}")
    print(f"in the journal: {len(writers)}, twice: {len(again)}, of these not for a kill: {len(unexplained)}")
    print(f"in the bank: {len(done)}, wrong balances: {moved}")
    right = writers.keys() == done and len(done) == len(transfers) and not unexplained and not moved
    print("every job was done, and the money moved once" if right else "THE BOOKS ARE WRONG")
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
