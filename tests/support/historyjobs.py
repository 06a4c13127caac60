"""What processes do whose history is recorded: the jobs of `fleet.Fleet`, each one loop without end.

A job works in bursts. Between two it holds nothing, and rests: there it pauses when it is told to. Everything that it
calls is noted in its log before and after, and what a reader sees is looked at whole, again after it was held for a
while. What must not happen raises; the process then ends, and the fleet tells.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from queue import Empty, Full
from typing import Any

import histories as h
import queuehistory as qh
import snapdisk
import victims

import mmapds

TOKEN_SHIFT = 24  # a token: the process << 24 | the number of its write


class Worker:
    """A process: its folder, its log, its own random numbers, and the gate at which it pauses."""

    def __init__(self, folder: str, number: int, pace: float) -> None:
        self.folder, self.number, self.pace = folder, number, pace
        self.log = h.Log(f"{folder}/logs/{number}")
        self.choose = random.Random(number)
        with open(f"{folder}/gate", "r+b") as file:
            self.control = memoryview(mmap.mmap(file.fileno(), 8)).cast("q")
        self.gate = os.open(f"{folder}/gate", os.O_RDWR)

    def path(self, name: str) -> str:
        """Of a structure."""
        return f"{self.folder}/{name}"

    def rest(self, seconds: float) -> None:
        """Between two bursts, for up to twice as long; nothing is held."""
        state = self.log.state
        if state[2] and not self.control[0]:
            state[1] = 2
            return  # it is to die soon, and in the middle of something
        state[1] = 0
        if turn := self.control[0]:
            state[0] = turn
            fcntl.flock(self.gate, fcntl.LOCK_SH)
            fcntl.flock(self.gate, fcntl.LOCK_UN)
        time.sleep(2 * self.choose.random() * seconds * self.pace)
        state[1] = 1


def token_of(worker: Worker, n: int) -> int:
    """Who has written a value, and which of his it is."""
    return worker.number << TOKEN_SHIFT | n


def value_of(token: int, largest: int) -> bytes:
    """The value with this token: the token all over, as long as the token says."""
    return victims.pattern(token, 8 * (1 + (token * 0x9E3779B1 >> 9) % (largest // 8)))


def read_token(data: Any, largest: int) -> tuple[int, int]:
    """(token, 0), or (-1, 1) if the value is not whole."""
    token = victims.number(data)
    if token < 0 or len(data) != 8 * (1 + (token * 0x9E3779B1 >> 9) % (largest // 8)):
        return h.TORN, 1
    return token, 0


# ---- Synchronizer ---------------------------------------------------------------------------------------------------


def write(worker: Worker, name: str, protocol: str = "mmapds", largest: int = 1 << 16, grace: float = 0.02) -> None:
    """Publishes; if another process is the writer, tries again later."""
    s = mmapds.Synchronizer(worker.path(name), protocol=protocol, codec="raw")  # type: ignore[arg-type]
    n, log = 0, worker.log
    while True:
        for _ in range(worker.choose.randrange(1, 8)):
            n += 1
            value = value_of(token_of(worker, n), largest)
            log.begin(h.WRITE, token_of(worker, n))
            try:
                s.write_bytes(value, grace)
            except mmapds.WriterBusy:
                log.end(h.REFUSED)
                break
            now = h.clock()
            log.end(s.version if protocol == "mmapds" else 0, now=now)
        worker.rest(0.03)


def read(
    worker: Worker,
    name: str,
    mode: str = "shared",
    protocol: str = "mmapds",
    largest: int = 1 << 16,
    hold: float = 0.0,
    grace: float = 0.0,
) -> None:
    """Reads; `grace`: what takes longer than this may be torn, by the rules of mmap-sync, and is not noted."""
    s = mmapds.Synchronizer(worker.path(name), mode=mode, protocol=protocol, codec="raw")  # type: ignore[arg-type]
    log, choose = worker.log, worker.choose
    counts = protocol == "mmapds"
    while True:
        for _ in range(choose.randrange(5, 25)):
            what = choose.random()
            if what < 0.1 and counts and mode == "shared":
                newest = s.version
                log.begin(h.WAIT, 0, newest)
                found = s.wait(newest, 0.01)
                log.end(found or 0)
            elif what < 0.2 and counts:
                log.begin(h.READ)
                data = s.load()
                now = h.clock()
                token, torn = read_token(data, largest)
                log.argument(token)
                log.end(0, torn, now)
            else:
                log.begin(h.READ)
                r = s.read()
                now = h.clock()
                token, torn = read_token(r.data, largest)
                if hold and choose.random() < 0.05:
                    time.sleep(choose.random() * hold)
                again = read_token(r.data, largest)[0]
                if grace and h.clock() - log.words[log.at] > grace * 1e9:
                    torn, token = 0, 0
                elif again != token:
                    torn = 1
                version = r.version if counts else 0
                r.release()
                log.argument(token)
                log.end(version, torn, now)
        worker.rest(0.025)


# ---- Counters -------------------------------------------------------------------------------------------------------

ADDED, MIXED, RESERVED, REMOVED = range(4), range(4, 8), range(8, 10), range(10, 12)  # their numbers in the history


def counter_key(number: int) -> str | int:
    """The first two go by index."""
    return number if number < 2 else f"counter {number}"


def count(worker: Worker, name: str, reserve: bool = False) -> None:
    """Counts, by name, by index and bound."""
    c = mmapds.Counters(worker.path(name))
    log, choose = worker.log, worker.choose
    keys = {k: counter_key(k) for k in (*ADDED, *MIXED, *RESERVED)}
    bound = {k: c.counter(key) for k, key in keys.items()}
    found = 0
    while True:
        for _ in range(choose.randrange(10, 40)):
            if reserve:
                k, n = choose.choice(RESERVED), choose.randrange(1, 100)
                log.begin(h.RESERVE, k, n)
                log.end(c.reserve(keys[k], n).start)
                continue
            what = choose.random()
            if what < 0.1:  # names that come and go
                k, n = choose.choice(REMOVED), choose.randrange(1, 5)
                log.begin(h.ADD if what < 0.06 else h.GET, k, n)
                log.end(c.fetch_add(counter_key(k), n) if what < 0.06 else c.get(counter_key(k), h.ABSENT))
                continue
            what = choose.random()
            n = choose.randrange(1, 1 << 20)
            if what < 0.5:
                k = choose.choice(ADDED)
                log.begin(h.ADD, k, n)
                if what < 0.2:
                    log.end(bound[k].fetch_add(n))
                elif what < 0.35:
                    log.end(c.fetch_add(keys[k], n))
                else:
                    log.end(c.add(keys[k], n) - n)
                continue
            k = choose.choice(MIXED if what < 0.9 else ADDED)
            if what < 0.6 or what >= 0.9:
                log.begin(h.GET, k)
                found = c[keys[k]]
                log.end(found)
            elif what < 0.65:
                n = choose.randrange(5)
                log.begin(h.EXCHANGE, k, n)
                log.end(bound[k].exchange(n) if what < 0.625 else c.exchange(keys[k], n))
            elif what < 0.75:
                n = choose.randrange(-4, 5)
                log.begin(h.ADD, k, n)
                log.end(bound[k].fetch_add(n))
            else:
                log.begin(h.EXCHANGE_IF, k, found, n & 7)
                done, found = bound[k].compare_exchange(found, n & 7)
                log.end(done, found)
        worker.rest(0.025)


def pop(worker: Worker, name: str) -> None:
    """Removes names that others count by."""
    c = mmapds.Counters(worker.path(name))
    log, choose = worker.log, worker.choose
    while True:
        for _ in range(choose.randrange(1, 6)):
            k = choose.choice(REMOVED)
            log.begin(h.POP, k)
            log.end(c.pop(str(counter_key(k)), h.ABSENT))
        worker.rest(0.02)


# ---- Queue ----------------------------------------------------------------------------------------------------------


def put(worker: Worker, name: str, rest: float = 0.02, burst: int = 12) -> None:
    """Puts, one and many."""
    q = mmapds.Queue(worker.path(name))
    n, log, choose = 1, worker.log, worker.choose
    while True:
        for _ in range(choose.randrange(1, burst)):
            count = choose.choice((1, 1, 1, 1, 1, 12))
            items = [
                struct.pack("<QQ", worker.number, n + k) + bytes(choose.choice((0, 1, 40, 300))) for k in range(count)
            ]
            if choose.random() < 0.001:
                items[0] += bytes(10_000)
            log.begin(qh.PUT, worker.number, n, count)
            try:
                if count == 1:
                    q.put(items[0], timeout=0.05)
                else:
                    q.put_many(items, timeout=0.05)
                done = count
            except Full as error:
                done = error.args[0] if count > 1 else 0
            log.end(done)
            n += done
            log.state[3] = n - 1
            if done < count:
                break
        worker.rest(rest)


def get(worker: Worker, name: str, rest: float = 0.02, burst: int = 10) -> None:
    """Gets, one and many."""
    q = mmapds.Queue(worker.path(name))
    log, choose = worker.log, worker.choose
    while True:
        for _ in range(choose.randrange(1, burst)):
            n = choose.choice((1, 1, 1, 10))
            log.begin(qh.TAKE, n, room=n)
            try:
                found = [q.get(timeout=0.02)] if n == 1 else q.get_many(n, timeout=0.02)
            except Empty:
                found = []
            now = h.clock()
            log.end(now=now, content=[struct.unpack_from("<QQ", item) for item in found])
            if not found:
                break
        worker.rest(rest)


def claim(worker: Worker, name: str, rest: float = 0.02, burst: int = 10, lease: float | None = None) -> None:
    """Claims, one and many; acknowledges most, gives back some."""
    q = mmapds.Queue(worker.path(name), lease=lease)
    log, choose = worker.log, worker.choose
    while True:
        for _ in range(choose.randrange(1, burst)):
            n = choose.choice((1, 1, 1, 10))
            log.begin(qh.CLAIM, n, lease is not None, room=n)
            try:
                claims = [q.claim(0.02)] if n == 1 else q.claim_many(n, 0.02)
            except Empty:
                claims = []
            now = h.clock()
            names = [struct.unpack_from("<QQ", claim.item) for claim in claims]
            rows = [
                (*item, claim.attempts, *map(int, claim.id.split("-")))
                for item, claim in zip(names, claims, strict=True)
            ]
            log.end(now=now, content=rows)
            if not claims:
                break
            if choose.random() < 0.1:
                time.sleep(choose.random() * 0.03)
            for (who, k), claim in zip(names, claims, strict=True):
                what = choose.random()
                delay = 0.0 if what < 0.03 else 0.01
                log.begin(qh.NACK if what < 0.05 else qh.ACK, who, k, claim.attempts)
                try:
                    if what < 0.05:
                        claim.nack(delay)
                    else:
                        claim.ack()
                    log.end(1, what < 0.05 and delay > 0)
                except mmapds.StaleClaim:
                    log.end(0)
            del claims, claim
        worker.rest(rest)


# ---- SnapshotMap ----------------------------------------------------------------------------------------------------

# `n` counts commits, `k<i>` is which of them has last changed key i, the accounts have the sum 0, `t<i>` come and go.
KEYS, ACCOUNTS, TURNS = 50, 20, 97
FIRST = 1 << 20  # the first `n`


def first_map() -> dict[str, Any]:
    """What a map is at first."""
    return {"n": FIRST, **{f"account{k:02}": 0 for k in range(ACCOUNTS)}, **{f"k{k}": FIRST for k in range(KEYS)}}


def change(transaction: Any, choose: random.Random) -> int:
    """One commit more; its number."""
    n: int = transaction["n"] + 1
    one, other = choose.sample(range(ACCOUNTS), 2)
    amount = choose.randrange(1000)
    transaction[f"account{one:02}"] -= amount
    transaction[f"account{other:02}"] += amount
    transaction["n"] = n
    transaction[f"k{n % KEYS}"] = n
    if n % TURNS % 2:
        transaction[f"t{n % TURNS}"] = n
    else:
        transaction.pop(f"t{n % TURNS + 1}", None)
    if n % 1009 == 0:
        transaction["large"] = bytes(choose.randrange(50_000))
    return n


def look(now: Any) -> tuple[int, int]:
    """Looks at all of a version: (n, 0), or (n, 1) and what is wrong on stderr."""
    n = now["n"]
    numbers = now.get_many([f"k{k}" for k in range(KEYS)])
    expected = {f"k{k % KEYS}": max(k, FIRST) for k in range(n - KEYS + 1, n + 1)}
    accounts = dict(now.prefix("account"))
    keys = list(now)
    turns = dict(now.prefix("t"))
    last = {f"t{k}": n - (n - k) % TURNS for k in range(1, TURNS, 2) if n % TURNS != k - 1}
    wrong = [
        numbers != expected,
        len(accounts) != ACCOUNTS or sum(accounts.values()) != 0,
        keys != sorted(set(keys)) or len(keys) != len(now),
        turns != {key: value for key, value in last.items() if value > FIRST},
    ]
    if any(wrong):
        print(f"version {now.version} is mixed: {wrong}, n={n}, {numbers}, {accounts}, {turns}", file=sys.stderr)
    return n, int(any(wrong))


def commit(worker: Worker, name: str, tiny: bool = True) -> None:
    """Commits, if nobody else does."""
    if tiny:
        snapdisk.tiny(1 << 16, 64)
    m = mmapds.SnapshotMap(worker.path(name))
    log, choose = worker.log, worker.choose
    while True:
        for _ in range(choose.randrange(1, 8)):
            log.begin(h.WRITE)
            try:
                with m.transaction() as transaction:
                    n = change(transaction, choose)
                    log.argument(n)
            except mmapds.WriterBusy:
                log.end(h.REFUSED)
                break
            log.end(n)
        worker.rest(0.03)


def compact(worker: Worker, name: str) -> None:
    """Merges all layers, now and then."""
    m = mmapds.SnapshotMap(worker.path(name))
    while True:
        worker.log.begin(h.GET)
        try:
            m.compact()
            worker.log.end(1)
        except mmapds.WriterBusy:
            worker.log.end(0)
        worker.rest(0.7)


def follow(worker: Worker, name: str, mode: str = "shared", verify: bool = False) -> None:
    """Looks at versions, holds some and looks again."""
    m = mmapds.SnapshotMap(worker.path(name), mode=mode, verify=verify)  # type: ignore[arg-type]
    log, choose = worker.log, worker.choose
    held: list[tuple[Any, int]] = []
    while True:
        for _ in range(choose.randrange(1, 6)):
            log.begin(h.READ)
            now = m.snapshot()
            then = h.clock()
            n, torn = look(now)
            log.argument(n, now.version)
            log.end(n, torn, then)
            if choose.random() < 0.1:
                held.append((now, n))
            for _ in range(3):
                log.begin(h.READ)
                n = m["n"]
                log.argument(n)
                log.end(n)
            if mode == "shared" and choose.random() < 0.2:
                newest = m.version
                log.begin(h.WAIT, 0, newest)
                log.end(m.wait(newest, 0.01) or 0)
        if len(held) > 5:
            for now, n in held:
                if look(now) != (n, 0):
                    raise AssertionError(f"a snapshot of {n} changed while it was held: {look(now)}")
            held.clear()
        worker.rest(0.03)


def apart(worker: Worker, name: str) -> None:
    """Private copies: changed, refreshed, sometimes published; nothing of it is seen by others."""
    choose, log = worker.choose, worker.log
    target = worker.path(f"private/{worker.number}")
    m: Any = mmapds.SnapshotMap(worker.path(name), mode="private")
    while True:
        log.begin(h.READ)
        m.refresh()
        now = h.clock()
        n, torn = look(m)
        log.argument(n)
        log.end(n, torn, now)
        for _ in range(20):
            change(m, choose)
        assert m["n"] == n + 20, (m["n"], n)
        assert look(m) == (n + 20, 0), f"a private copy of {n} with 20 changes is mixed"
        assert look(m.snapshot()) == (n, 0), f"the base of a private copy of {n} changed"
        if choose.random() < 0.1:
            m.publish(target)
            with mmapds.SnapshotMap(target, mode="readonly", verify=True) as other:
                assert look(other) == (n + 20, 0)
            shutil.rmtree(target)
        m.discard()
        worker.rest(0.1)


# ---- starting -------------------------------------------------------------------------------------------------------

JOBS: dict[str, Callable[..., None]] = {
    job.__name__: job for job in (write, read, count, pop, put, get, claim, commit, compact, follow, apart)
}


def start(folder: str, number: int, job: str, pace: float, nice: int, options: dict[str, Any]) -> int:
    """In the process that forks: a new one that does this job; its pid."""
    parent = os.getpid()

    def run() -> None:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it does not outlive the fleet
        if os.getppid() != parent:
            os._exit(0)
        os.nice(nice)
        try:
            JOBS[job](Worker(folder, number, pace), **options)
        except BaseException:
            print(f"process {number} ({job}, {options}):", file=sys.stderr)
            traceback.print_exc()
            raise

    return victims.spawn(run)
