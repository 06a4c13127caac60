"""A producer streams changes into a map; readers follow it, check each version they see, and are killed at random.

    python examples/feature_map.py

A stream of clicks, each of a user on an item, is turned into features for whoever needs them. Three ordered maps and
the position in the stream lie in one `SnapshotMap`, apart by the beginnings of their keys::

    user/017            {"clicks": 512, "last": "031"}   clicks of a user, and the item of the last one
    item/031            907                              clicks on an item
    top/0000907/031     None                             the items, ordered by their clicks: the best is the last
    position            20000                            clicks in here: what comes next is number 20000 of the stream

The producer takes some clicks and changes all four in one transaction. So each version is whole: the clicks of all
users, those on all items, and the position are one number, and `top` says the same as `item`. A producer that was
killed is followed by another, which goes on at the position in the map: no click is lost, none counted twice.

Readers need nothing but the path, and no permission to write. Each waits for a version newer than the one it knows,
takes a snapshot (two lookups in a map that follows may belong to two versions), checks it, and writes what it saw into
a journal. What one has seen is there for who comes later: versions never fall.

At the end the program reads the journal, and compares the map with the whole stream. It ends with status 0 only if
every version was whole and no click is missing.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice, pairwise
from multiprocessing.context import ForkProcess
from typing import Any

from mmapds import Snapshot, SnapshotMap

CLICKS, USERS, ITEMS, READERS = 20_000, 40, 60, 3
PAUSE = 0.03  # seconds from one kill to the next, on average

fork = multiprocessing.get_context("fork")


def stream(start: int, stop: int) -> Iterator[tuple[str, str]]:
    """Clicks number `start` to `stop` - 1: user and item. Whoever reads it again gets the same ones."""
    for number in range(start, min(stop, CLICKS)):
        chance = random.Random(number)
        yield f"{chance.randrange(USERS):03}", f"{int(ITEMS * chance.random() ** 2):03}"  # some items are liked more


def rank(item: str, clicks: int) -> str:
    return f"top/{clicks:07}/{item}"


def click(txn: Any, user: str, item: str) -> None:
    """What a click changes: in a transaction, which sees its own changes."""
    clicks = txn.get(f"user/{user}", {"clicks": 0})["clicks"]
    txn[f"user/{user}"] = {"clicks": clicks + 1, "last": item}
    clicks = txn.get(f"item/{item}", 0)
    txn.pop(rank(item, clicks), None)
    txn[f"item/{item}"] = clicks + 1
    txn[rank(item, clicks + 1)] = None


def produce(path: str) -> None:
    """The producer: from the position in the map to the end of the stream, unless it is killed."""
    parent = os.getppid()
    with SnapshotMap(path) as m:
        position = m.get("position", 0)
        while position < CLICKS and os.getppid() == parent:
            start, position = position, min(position + random.randrange(1, 20), CLICKS)
            with m.transaction() as txn:
                for user, item in stream(start, position):
                    click(txn, user, item)
                txn["position"] = position


def fault(view: Snapshot) -> str:
    """What is wrong with a version; "" if it is whole."""
    position = view.get("position", 0)
    users = dict(view.prefix("user/"))
    items = dict(view.prefix("item/"))
    by_users, on_items = sum(user["clicks"] for user in users.values()), sum(items.values())
    if not by_users == on_items == position:
        return f"{by_users} clicks of users, {on_items} on items, at position {position}"
    if [key for key, _ in view.prefix("top/")] != sorted(rank(key[5:], clicks) for key, clicks in items.items()):
        return "top is not the order of the items"
    last = {f"item/{user['last']}" for user in users.values()}
    if view.get_many(last) != {key: items[key] for key in last}:
        return "lookups find something else than a walk"
    return ""


def follow(path: str, journal: str, place: int) -> None:
    """A reader: checks one version after the other up to the last one, unless it is killed."""
    parent = os.getppid()
    version = position = 0
    with SnapshotMap(path, mode="readonly") as m, open(journal, "ab", buffering=0) as lines:
        while position < CLICKS and os.getppid() == parent:
            if m.wait(newer_than=version, timeout=1.0) is None:
                continue
            with m.snapshot() as view:
                version, position = view.version, view.get("position", 0)
                lines.write(f"{place} {version} {position} {fault(view)}\n".encode())  # in one piece, or not there


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, journal = os.path.join(folder, "features"), os.path.join(folder, "journal")
        SnapshotMap(path).close()  # an empty map, for readers that are faster than the producer
        started: list[ForkProcess] = []

        def start(program: Any, *arguments: Any) -> ForkProcess:
            started.append(fork.Process(target=program, args=arguments, daemon=True))
            started[-1].start()
            return started[-1]

        def kill(process: ForkProcess) -> int:
            process.kill()
            process.join()
            return process.exitcode == -9  # else it had come to its end

        readers = [start(follow, path, journal, place) for place in range(READERS)]
        producer = start(produce, path)
        killed = dead_producers = 0
        with SnapshotMap(path, mode="readonly") as m:
            while producer.is_alive():
                producer.join(timeout=random.expovariate(1 / PAUSE))
                place = random.randrange(READERS)
                killed += kill(readers[place])
                readers[place] = start(follow, path, journal, place)
                if not dead_producers and m.get("position", 0) > CLICKS // 3:
                    dead_producers += kill(producer)
                    producer = start(produce, path)
            for reader in readers:
                if producer.exitcode:  # there will be no more to see
                    reader.kill()
                reader.join()
            failed = [process.exitcode for process in started if process.exitcode not in (0, -9)]
            print(f"producers: {1 + dead_producers}, killed: {dead_producers}; readers: ", end="")
            print(f"{len(started) - 1 - dead_producers}, killed: {killed}; failed: {len(failed)}")
            compare(m, journal, not failed)


def compare(m: SnapshotMap, journal: str, right: bool) -> None:
    """Looks at what the readers saw and what the map holds; ends the program with status 1 if something is wrong."""
    seen: dict[str, list[tuple[int, int]]] = {}  # by the reader's place: versions and positions, in order
    faults = []
    with open(journal, encoding="utf-8") as lines:
        for line in lines:
            place, version, position, found = line.rstrip("\n").split(" ", 3)
            seen.setdefault(place, []).append((int(version), int(position)))
            if found:
                faults.append(f"version {version}: {found}")
    fallen = sum(after < before for pairs in seen.values() for before, after in pairwise(pairs))
    versions = {version for pairs in seen.values() for version, _ in pairs}
    looks = sum(map(len, seen.values()))
    print(f"versions: {m.version}, seen: {len(versions)}, looks: {looks}, wrong: {len(faults)}, fallen: {fallen}")
    for found in faults[:5]:
        print(f"  {found}")

    clicks = list(stream(0, CLICKS))
    missing = differences({key[5:]: user["clicks"] for key, user in m.prefix("user/")}, Counter(u for u, _ in clicks))
    missing += differences({key[5:]: count for key, count in m.prefix("item/")}, Counter(i for _, i in clicks))
    position = m.get("position", 0)
    print(f"clicks: {position}, features that differ from the stream: {missing}, blocks that are sound: {m.verify()}")
    best = [key.split("/") for key, _ in islice(m.prefix("top/", reverse=True), 3)]
    print("liked most:", ", ".join(f"{item} ({int(count)} clicks)" for _, count, item in best))
    right = right and not faults and not fallen and not missing and position == CLICKS
    print("every version was whole, and no click was lost" if right else "THE MAP IS WRONG")
    sys.exit(0 if right else 1)


def differences(found: Mapping[str, int], expected: Mapping[str, int]) -> int:
    return sum(found.get(key) != expected.get(key) for key in found.keys() | expected.keys())


if __name__ == "__main__":
    main()
