"""One of each kind of structure, as the tests want it whose files are cut while somebody uses them.

How it is made and opened, which of its files can be cut, and what can be asked of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

import queuefiles
import snapdisk
import syncfiles

from mmapds import Counters, Queue, SnapshotMap, Synchronizer

VALUE = bytes(range(1, 256)) * 20


class Cut:
    """What is made, opened and asked; and which of its files is cut."""

    def make(self, path: str) -> None:
        raise NotImplementedError

    def open(self, path: str, mode: Any) -> Any:
        raise NotImplementedError

    def files(self, path: str) -> dict[str, str]:
        raise NotImplementedError

    def settle(self, path: str) -> None:
        self.open(path, "shared")

    jobs: ClassVar[dict[str, Callable[[Any], object]]]


class CutSynchronizer(Cut):
    def make(self, path: str) -> None:
        with Synchronizer(path, codec="raw") as s:
            s.write_bytes(VALUE)
            s.write_bytes(VALUE[::-1])

    def open(self, path: str, mode: Any) -> Any:
        s = Synchronizer(path, mode=mode, verify=False)
        s.read().release()
        return s

    def files(self, path: str) -> dict[str, str]:
        return {"sync": syncfiles.sync(path), "data": syncfiles.data(path, 0)}

    jobs: ClassVar = {
        "read": lambda s: bytes(s.read().data),
        "load": lambda s: bytes(s.load()),
        "wait": lambda s: s.wait(1, timeout=0.01),
        "version": lambda s: s.version,
    }


class CutCrate(CutSynchronizer):
    def make(self, path: str) -> None:
        with Synchronizer(path, codec="raw", protocol="mmap-sync") as s:
            s.write_bytes(VALUE)
            s.write_bytes(VALUE[::-1])

    def open(self, path: str, mode: Any) -> Any:
        s = Synchronizer(path, mode=mode, verify=False, codec="raw", protocol="mmap-sync")
        s.read().release()
        return s

    def files(self, path: str) -> dict[str, str]:
        return {"sync": f"{path}_state", "data": f"{path}_data_0"}


class CutCounters(Cut):
    def make(self, path: str) -> None:
        with Counters(path, 8) as c:
            for n in range(20):
                c[f"name {n}"] = n + 1
            for n in range(8):
                c[n] = n + 1

    def open(self, path: str, mode: Any) -> Any:
        c = Counters(path, mode=mode)
        assert c["name 7"] == 8
        assert c[3] == 4
        return c, c.counter("name 8"), c.counter(2), c.view()

    def files(self, path: str) -> dict[str, str]:
        return {"file": path}

    jobs: ClassVar = {
        "by name": lambda c: c[0]["name 7"],
        "by index": lambda c: c[0][3],
        "get": lambda c: c[0].get("name 7"),
        "in": lambda c: "name 9" in c[0],
        "len": lambda c: len(c[0]),
        "list": lambda c: list(c[0]),
        "items": lambda c: dict(c[0].items()),
        "snapshot": lambda c: c[0].snapshot(),
        "add by name": lambda c: c[0].add("name 7"),
        "add by index": lambda c: c[0].add(3, 2),
        "fetch_add": lambda c: c[0].fetch_add("name 7"),
        "exchange": lambda c: c[0].exchange("name 7", 5),
        "compare_exchange": lambda c: c[0].compare_exchange("name 7", 8, 9),
        "reset": lambda c: c[0].reset("name 7"),
        "reserve": lambda c: c[0].reserve("name 7", 10),
        "setdefault": lambda c: c[0].setdefault("name 7", 10),
        "remove": lambda c: c[0].remove("name 7"),
        "pop": lambda c: c[0].pop("name 7"),
        "counter": lambda c: c[0].counter("name 9").load(),
        "bound load": lambda c: c[1].load(),
        "bound add": lambda c: c[1].add(),
        "bound fetch_add": lambda c: c[1].fetch_add(),
        "bound exchange": lambda c: c[1].exchange(3),
        "bound compare_exchange": lambda c: c[1].compare_exchange(9, 3),
        "bound reset": lambda c: c[1].reset(),
        "bound reserve": lambda c: list(c[1].reserve(3)),
        "bound by index": lambda c: c[2].load(),
        "capacity": lambda c: c[0].capacity,
    }


class CutQueue(Cut):
    def make(self, path: str) -> None:
        with Queue(path, codec="raw", segment_size=1 << 16) as q:
            q.put_many([VALUE, VALUE[::-1], *(bytes([n]) * 100 for n in range(1, 9))])

    def open(self, path: str, mode: Any) -> Any:
        q = Queue(path, mode=mode)
        return (q,) if mode == "readonly" else (q, q.claim(), q.claim())

    def files(self, path: str) -> dict[str, str]:
        number = queuefiles.segments(path)[0]
        return {"meta": queuefiles.meta(path), "segment": os.path.join(path, f"{number:016x}.segment")}

    jobs: ClassVar = {
        "get": lambda q: q[0].get_nowait(),
        "get_many": lambda q: q[0].get_many(3),
        "claim": lambda q: q[0].claim().item,
        "claim_many": lambda q: [c.item for c in q[0].claim_many(3)],
        "item": lambda q: q[1].item,
        "attempts": lambda q: q[1].attempts,
        "active": lambda q: q[1].active,
        "qsize": lambda q: q[0].qsize(),
        "empty": lambda q: q[0].empty(),
        "full": lambda q: q[0].full(),
        "unfinished": lambda q: q[0].unfinished_tasks,
        "join": lambda q: q[0].join(timeout=0.01),
        "ack, get": lambda q: (q[1].ack(), q[0].get_nowait()),
        "nack, get": lambda q: (q[1].nack(), q[0].get_nowait()),
        "touch, item": lambda q: (q[1].touch(10), q[1].item),
        "put, qsize": lambda q: (q[0].put(b"x"), q[0].qsize()),
        "put_many, qsize": lambda q: (q[0].put_many([b"x", b"y"]), q[0].qsize()),
        "purge": lambda q: q[0].purge(),
        "stats": lambda q: q[0].stats()["items"],
        "task_done": lambda q: (q[0].get_nowait(), q[0].task_done(), q[0].unfinished_tasks),
    }


class CutMap(Cut):
    def make(self, path: str) -> None:
        SnapshotMap.build(path, {f"k{n:03}": VALUE[n:] for n in range(100)})
        with SnapshotMap(path) as m, m.transaction() as t:
            for n in range(50, 60):
                t[f"k{n:03}"] = VALUE[::-1]
            t["new"] = VALUE
            del t["k001"]

    def open(self, path: str, mode: Any) -> Any:
        m = SnapshotMap(path, mode=mode)
        assert m["k099"] == VALUE[99:]
        return m

    def files(self, path: str) -> dict[str, str]:
        return {
            "layer": snapdisk.layers(path)[-1],
            "delta": snapdisk.delta(path),
            "manifest": os.path.join(path, "manifest_sync"),
        }

    jobs: ClassVar = {
        "[old]": lambda m: m["k007"],
        "[new]": lambda m: m["k055"],
        "get old": lambda m: m.get("k007"),
        "get new": lambda m: m.get("k055"),
        "get nothing": lambda m: m.get("nothing"),
        "old in": lambda m: "k007" in m,
        "new in": lambda m: "new" in m,
        "get_view old": lambda m: bytes(m.get_view("k007")),
        "get_view new": lambda m: bytes(m.get_view("new")),
        "get_many": lambda m: m.get_many(["k007", "k055", "new", "nothing"]),
        "get_many of much": lambda m: m.get_many([f"k{n:03}" for n in range(100)]),
        "items": lambda m: list(m.items()),
        "keys": list,
        "len": len,
        "of a snapshot": lambda m: m.snapshot()["k007"],
        "refresh, [old]": lambda m: (m.refresh(), m["k007"]),
        "stats": lambda m: m.stats()["version"],
    }


KINDS = {
    "Synchronizer": CutSynchronizer(),
    "mmap-sync": CutCrate(),
    "Counters": CutCounters(),
    "Queue": CutQueue(),
    "SnapshotMap": CutMap(),
}
