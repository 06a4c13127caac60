"""What must be found after a power cut: the real code opens each state of a disk, in another boot, and it is looked at.

`Explorer` goes through recordings (powerlog.py), builds the states that a disk may be in at each record, recovers each
distinct one and checks it against what was expected there. A state is distinct by the bytes of all its files, their
names, and what is expected. Runs in a worker process, many states in one; nothing but the opening is repeated.

`Explorer.lie` asks the same of a disk that one call site does not sync: there must be a state that is refuted.
"""

from __future__ import annotations

import math
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import powerqueue
import powerstage
import xxhash
from powerlog import (
    CHANGES,
    EXHAUSTIVE,
    FEW,
    MARK,
    STORE,
    SYNC,
    SYNC_FOLDER,
    Files,
    Recording,
    combinations,
    read,
    site_name,
)
from queueitems import drain
from victims import number, pattern

from mmapds import (
    CorruptionError,
    Counters,
    IncompatibleFormat,
    MappingLost,
    NotInitialised,
    Queue,
    SnapshotMap,
    Synchronizer,
)

Expected = dict[str, Any]
REFUSED = (CorruptionError, IncompatibleFormat, MappingLost)


def demand(condition: Any, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def check_synchronizer(folder: str, expected: Expected, write: bool) -> Any:
    prefix = folder + "/value"
    try:
        if write and not os.path.exists(prefix + "_sync"):
            raise FileNotFoundError(prefix)  # it would be made anew
        with Synchronizer(prefix, mode="shared" if write else "readonly") as s:
            try:
                with s.read() as result:
                    found: Any = number(result.data)
                    assert found == result.version, f"{found} was read as version {result.version}"
            except NotInitialised:
                found = 0
            if write:
                for _ in range(2):
                    s.write_bytes(pattern(s.version + 1, 1400), 0.0)
                with s.read() as result:
                    assert number(result.data) == s.version == found + 2
    except FileNotFoundError as error:
        demand(expected.get("absent"), f"the files are gone: {error}")
        if write:  # what is left does not hinder the next who makes it
            with Synchronizer(prefix, codec="raw", durability="power") as s:
                s.write_bytes(pattern(1, 80))
        return "absent"
    except REFUSED as error:
        demand(expected.get("refused"), f"refused: {error}")
        return "refused"
    assert found in expected["versions"], f"version {found}"
    return found


def check_counters(folder: str, expected: Expected, write: bool) -> Any:
    path = folder + "/counters"
    try:
        if write and not os.path.exists(path):
            raise FileNotFoundError(path)  # it would be made anew
        with Counters(path, mode="shared" if write else "readonly") as c:
            values = c.snapshot()
            if write:
                for name in [*list(values)[:2], "after"]:
                    assert c.reserve(name, 5).start == values.get(name, 0)
                assert c.snapshot() == {
                    **values,
                    **{name: values.get(name, 0) + 5 for name in [*list(values)[:2], "after"]},
                }
    except FileNotFoundError as error:
        demand(expected.get("absent"), f"the file is gone: {error}")
        if write:
            with Counters(path, durability="power") as c:
                c.reserve("after", 1)
        return "absent"
    must, may, between = expected["must"], expected["may"], expected["between"]
    missing = must.keys() - values.keys()
    assert not missing, f"{missing} had been returned"
    unknown = values.keys() - must.keys() - may.keys()
    assert not unknown, f"{unknown} was never made, or has been removed"
    for name, value in values.items():
        assert value in (must.get(name) or may[name]), f"{name} is {value}"
    if between is not None:
        assert values in between, f"{values} is a mixture"
    return len(values), sum(values.values())


def check_queue(folder: str, expected: Expected, write: bool) -> Any:
    path = folder + "/queue"
    if not os.path.exists(path + "/meta"):
        assert expected.get("absent"), "the queue is gone"
        if write:
            with Queue(path, codec="raw", segment_size=8192, durability="power") as q:
                q.put(b"next")
        return "absent"
    letters: set[int] = set()
    if write:
        with Queue(path) as q:
            letters = {int(letter.item[:4]) for letter in q.dead}
            items = drain(q)
            q.put(b"next")
            claim = q.claim(0)
            assert claim.item == b"next"
            assert claim.id not in expected.get("ids", ()), f"{claim.id} was the identity of another item"
            claim.ack()
    else:
        with Queue(path, mode="readonly") as q:
            letters = {int(letter.item[:4]) for letter in q.dead}
            items = list(q)
    order = expected["order"]
    found = []
    for data in items:
        n = int(data[:4])
        assert data == powerqueue.item(n, len(data) - 4), f"item {n} is not whole"
        found.append(n)
    places = [order.index(n) for n in found]
    assert places == sorted(set(places)), f"{found}: not in order, or something twice"
    lost = set(expected["kept"]) - set(found)
    assert not lost, f"{sorted(lost)} had been put"
    again = set(expected["gone"]) & set(found)
    assert not again, f"{sorted(again)} was done"
    lost = set(expected["dead"]) - set(found) - letters
    assert not lost, f"{sorted(lost)} is neither in the queue nor among the dead letters"
    lost = set(expected.get("buried", ())) - letters
    assert not lost, f"{sorted(lost)} was buried, and is no dead letter"
    again = set(expected.get("buried", ())) & set(found)
    assert not again, f"{sorted(again)} was buried, and is in the queue"
    return tuple(found)


def check_map(folder: str, expected: Expected, write: bool) -> Any:
    path = folder + "/map"
    try:
        if write and not os.path.exists(path + "/manifest_sync"):
            raise FileNotFoundError(path)  # it would be made anew
        with SnapshotMap(path, mode="shared" if write else "readonly", codec="raw") as m:
            data = dict(m)
            assert all(value == value[:1] * len(value) for value in data.values()), "a value is not whole"
            values = {key: (value[0], len(value)) for key, value in data.items()}
            assert len(m) == len(values), f"{len(m)} entries, and here are {len(values)}"
            if write:
                with m.transaction() as t:
                    t["after"] = b"after"
                assert dict(m) == {**data, "after": b"after"}
    except FileNotFoundError as error:
        demand(expected.get("absent"), f"the map is gone: {error}")
        if write:
            with SnapshotMap(path, codec="raw", durability="power") as m, m.transaction() as t:
                t["after"] = b"after"
        return "absent"
    except REFUSED as error:
        demand(expected.get("refused"), f"refused: {error}")
        return "refused"
    assert values in expected["maps"], f"{values}"
    return tuple(sorted(values.items()))


CHECKS: dict[str, Callable[[str, Expected, bool], Any]] = {
    "Synchronizer": check_synchronizer,
    "Counters": check_counters,
    "Queue": check_queue,
    "SnapshotMap": check_map,
}


class PowerLossError(AssertionError):
    """A state of a disk that must not be."""


class Explorer:
    """The states of the recordings of one structure."""

    def __init__(self, structure: str, recordings: str, base: str, seed: int = 6) -> None:
        powerstage.settle_down(powerstage.THIRD_BOOT)
        self.structure = structure
        with open(recordings, "rb") as file:
            self.recordings: list[Recording] = pickle.load(file)
        self.folder = os.path.join(base, "found")
        os.makedirs(self.folder, exist_ok=True)
        self.seed = seed
        self.distinct: set[bytes] = set()
        self.built = self.moments = self.exhausted = self.most_units = 0
        self.outcomes: dict[Any, int] = {}
        self.writes = self.torn = 0
        self._open: list[Iterator[None]] = []
        self._lying: Iterator[str] = iter(())

    # ---- one state ------------------------------------------------------------------------------------------------

    def digest(self, files: Files, expected: Expected) -> bytes:
        hash_ = xxhash.xxh3_128(repr(expected).encode())
        for path in sorted(files):
            content = files[path]
            hash_.update(f"\0{path}\0{-1 if content is None else len(content)}\0".encode())
            hash_.update(content or b"")
        return hash_.digest()

    def recover(self, files: Files, expected: Expected, write: bool, torn: bool) -> Any:
        """What it comes to; AssertionError if that must not be. Refused may be only what is `torn`: of
        which words within a sector are of different ages. Half a first record cannot be told from damage then."""
        for entry in list(os.scandir(self.folder)):
            if entry.is_dir():
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        powerstage.write(self.folder, files)
        outcome = CHECKS[self.structure](self.folder, expected, write)
        assert outcome != "refused" or torn, "refused, and no sector is torn"
        return outcome

    def check(self, files: Files, expected: Expected, where: Callable[[], str], torn: bool) -> bool:
        """Whether it was a new one."""
        self.built += 1
        digest = self.digest(files, expected)
        if digest in self.distinct:
            return False
        self.distinct.add(digest)
        write = digest[0] % 4 != 0  # the others are looked at by one who may not write, and recovers in memory
        self.writes += write
        try:
            outcome = self.recover(files, expected, write, torn)
        except Exception as error:
            raise PowerLossError(
                f"{type(error).__name__}: {error}; {'written to' if write else 'read only'}; expected {expected}; "
                f"{where()}; seed {self.seed}; the files, as they are now: {self.folder}"
            ) from error
        self.torn += torn
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        return True

    # ---- all of them ----------------------------------------------------------------------------------------------

    def _explore(
        self, recording: Recording, turn: int, exhaustive: int, seeded: int, share: float, most: int
    ) -> Iterator[None]:
        choose = random.Random(f"{self.seed} {turn} {recording.name}")
        skipped = False
        for n, record, disk, expected in recording.moments():
            if share < 1 and choose.random() >= share * (20 if record.kind == MARK else 1):
                skipped = True
                continue
            units = disk.units()
            if turn and math.prod(len(choices) for _, choices in units) <= FEW:
                continue  # another sample of these would be the same
            last = None if skipped or record.kind not in CHANGES else disk.last
            skipped = False
            self.moments += 1
            self.most_units = max(self.most_units, len(units))
            self.exhausted += len(units) <= exhaustive and not most

            def where(n: int = n, units: Any = units) -> str:
                return f"{recording.name}, after record {n}, {len(units)} dirty units"

            found: Any = combinations(units, last, choose, exhaustive=exhaustive, seeded=seeded)
            if most:
                found = list(found)
                found = choose.sample(found, min(len(found), most))
            for picked in found:
                torn = picked.pop("torn", False)
                if self.check(disk.state(picked), expected, where, torn):
                    yield

    def estimate(self, seeded: int) -> int:
        """How many states `begin` would build, about."""
        found = 0
        for recording in self.recordings:
            for _, _, disk, _ in recording.moments():
                units = disk.units()
                contents = math.prod(len(choices) for _, choices in units)
                found += contents if contents <= FEW else 2 ** min(len(units), EXHAUSTIVE) // 2 + 2 * seeded
        return found

    def begin(
        self, exhaustive: int = EXHAUSTIVE, seeded: int = 40, share: float = 1.0, most: int = 0, turn: int = 0
    ) -> None:
        """`share` of the moments are looked at, `most` states at each (0: all that `combinations` gives)."""
        self._open = [self._explore(each, turn, exhaustive, seeded, share, most) for each in self.recordings]

    def batch(self, count: int) -> bool:
        """Recovers so many distinct states more, of all recordings in turn; whether there are more."""
        while self._open:
            life = self._open.pop(0)
            for _ in range(20):
                if next(life, self) is self:
                    break
                count -= 1
            else:
                self._open.append(life)
            if count <= 0:
                return bool(self._open)
        return False

    def samples(self, count: int) -> list[tuple[str, Files, Expected]]:
        """States by chance, to begin other lives with."""
        choose = random.Random(f"{self.seed} samples")
        found = []
        fit = [recording for recording in self.recordings if not recording.name.endswith((": process", ": flush"))]
        for recording in choose.choices(fit, k=count):
            moments = sum(1 for _ in recording.moments())
            wanted = choose.randrange(moments)
            for at, (n, _, disk, expected) in enumerate(recording.moments()):
                if at == wanted:
                    picked = choose.choice([*combinations(disk.units(), None, choose, exhaustive=8, seeded=8)])
                    picked.pop("torn", None)
                    found.append((f"{recording.name}, after record {n}", disk.state(picked), expected))
                    break
        return found

    def figures(self) -> dict[str, Any]:
        return {
            "recordings": len(self.recordings),
            "moments": self.moments,
            "exhausted": self.exhausted,
            "most_units": self.most_units,
            "built": self.built,
            "distinct": len(self.distinct),
            "written": self.writes,
            "outcomes": len(self.outcomes),
            "absent": self.outcomes.get("absent", 0),
            "refused": self.outcomes.get("refused", 0),
            "torn": self.torn,
        }

    # ---- teeth ----------------------------------------------------------------------------------------------------

    def sites(self) -> dict[str, int]:
        """The call sites that sync, and how often they did."""
        found: dict[str, int] = {}
        for recording in self.recordings:
            for record in read(recording.log):
                if record.kind in (SYNC, SYNC_FOLDER):
                    site = site_name(record.data.decode())
                    found[site] = found.get(site, 0) + 1
        return found

    def _lie(self, site: str, at_most: int) -> Iterator[str]:
        choose = random.Random(f"{self.seed} {site}")
        seen: set[bytes] = set()
        for recording in self.recordings:
            truth = recording.moments()
            for n, record, disk, expected in recording.moments({site}):
                _, _, honest, _ = next(truth)
                if not disk.syncs.get(site) or (record.kind == STORE and choose.random() > 0.2):
                    continue
                for picked in self._older(disk, honest, choose, at_most):
                    files = disk.state(picked)
                    digest = self.digest(files, expected)
                    if digest in seen:
                        continue
                    seen.add(digest)
                    try:
                        self.recover(files, expected, digest[0] % 4 != 0, False)
                    except Exception as error:  # noqa: BLE001  whatever it is, it is found
                        yield f"{recording.name}, after record {n}: {type(error).__name__}: {error}"[:300]
                        return
                    yield ""

    def begin_lie(self, site: str, at_most: int = 40) -> None:
        """`site` does nothing from now on."""
        self._lying = self._lie(site, at_most)

    def lie(self, count: int) -> tuple[str, int, bool]:
        """Looks at so many states more: how one of them is refuted, or ""; how many it were; whether that were all."""
        for done in range(count):
            found = next(self._lying, None)
            if found is None:
                return "", done, True
            if found:
                return found, done + 1, True
        return "", count, False

    @staticmethod
    def _older(disk: Any, honest: Any, choose: random.Random, at_most: int) -> Iterator[dict[Any, Any]]:
        """Combinations in which something is older than an honest disk may have it."""
        sound = {key: choices[0] for key, choices in honest.units()}
        units = disk.units()
        extra = [key for key, choices in units if key not in sound or sound[key] != choices[0]]
        if not extra:
            return
        old = {key: choices[0] for key, choices in units}
        new = {key: choices[-1] for key, choices in units}
        yield new | {key: old[key] for key in extra}
        yield old
        for key in extra if len(extra) <= at_most // 2 else choose.sample(extra, at_most // 2):
            yield new | {key: old[key]}
            yield old | {other: new[other] for other in extra if other != key}
        for _ in range(at_most // 4):
            picked = {key: choose.choice(choices) for key, choices in units}
            yield picked | {key: old[key] for key in choose.sample(extra, choose.randrange(1, len(extra) + 1))}
