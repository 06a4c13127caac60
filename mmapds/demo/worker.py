"""One process of the demo: ``python -m mmapds.demo.worker ROLE PREFIX NUMBER``.

It obeys words on its standard input and answers with events, one JSON object a line, on its standard output. When its
input ends, it ends: a director that was killed leaves nobody behind.

Reader: ``go`` starts the counting, ``hold`` makes it hold a version for good, ``stop`` ends it with what it has seen.
Writer: publishes an edition every fifth of a second. If another writer has the place, it tries again every millisecond.
Counter: from ``go`` to ``stop`` it counts letters. It says no events but single bytes, each as soon as it is true.
Worker: from ``go`` to ``stop`` it works off jobs; ``hold`` makes it hold the next one for good.
Editor: from ``go`` to ``stop`` it commits revisions of the map; ``hold`` makes it stay in the next transaction. If
another has the place, it tries again as a writer does.
Finder: from ``go`` to ``stop`` it looks up names in the map, and examines the versions that it meets.
"""

from __future__ import annotations

import gc
import json
import os
import random
import select
import signal
import sys
import time
import unicodedata
from itertools import cycle, islice
from queue import Empty
from string import ascii_uppercase

from mmapds import CorruptionError, Counters, MappingLost, Queue, Snapshot, SnapshotMap, Synchronizer, WriterBusy
from mmapds.demo.names import BLOCK as LOOKED
from mmapds.demo.names import REVISION, Names, by_name
from mmapds.demo.table import FIRST, LAST, STAMP, Row, character_table, edition, fault

_PACE = 0.2  # seconds between two versions
_RETRY = 0.001
_BATCH = 2000  # reads between two looks for a word

READY, TAKEN, DONE = b"<", b"#", b">"  # what a counter says, beside the letters: "#" is a block of names
BLOCK = 100  # names, or characters


def say(event: str, **details: object) -> None:
    """Tells the director."""
    sys.stdout.write(json.dumps({"event": event, **details}) + "\n")
    sys.stdout.flush()


class Words:
    """What the director says."""

    def __init__(self) -> None:
        self._buffer = b""

    def next(self, timeout: float = 0.0) -> str | None:
        """The next word, or None if there is none yet; SystemExit when the director has gone."""
        if b"\n" not in self._buffer:
            if not select.select([0], [], [], timeout)[0]:
                return None
            data = os.read(0, 4096)
            if not data:
                raise SystemExit(0)
            self._buffer += data
        word, _, self._buffer = self._buffer.partition(b"\n")
        return word.decode()


class Reader:
    """Reads as fast as it can, checks each read, and each version that it has not seen before from end to end."""

    def __init__(self, prefix: str) -> None:
        self.table = character_table()
        self.length = len(edition(self.table, 0, 0))
        self.sync = Synchronizer(prefix)
        self.words = Words()
        self.writer = 0
        self.start()

    def start(self) -> None:
        """Begins to count."""
        self.reads = self.torn = 0
        self.versions: list[tuple[int, int]] = []
        self.faults: list[str] = []

    def run(self) -> None:
        """Waits for the first version, then reads until it is told to stop."""
        while self.sync.wait(newer_than=0, timeout=0.1) is None:
            self.words.next()
        self.read(1)
        say("ready", rows=len(self.table), length=self.length)
        while (word := self.words.next()) != "stop":
            if word == "go":
                self.start()
            elif word == "hold":
                self.hold()
            self.read(_BATCH)
        self.report("done")

    def read(self, count: int) -> None:
        """So many reads; fewer if there is a new version, because to examine one takes as long as 100,000 reads."""
        read, unpack, length = self.sync.read, STAMP.unpack_from, self.length
        for _ in range(count):
            self.reads += 1
            try:
                with read() as result:
                    size = len(result)
                    if size != length or unpack(result, FIRST) != unpack(result, size - LAST):
                        self.found("the ends of a version do not belong together")
                    elif result.switched:
                        self.examine(result.data, unpack(result, FIRST))
                        return
            except CorruptionError as error:
                self.found(str(error))

    def examine(self, data: memoryview, stamp: tuple[int, int]) -> None:
        """Checks a version from end to end, and says if it is the first of a writer."""
        if stamp[0] != self.writer:
            self.writer = stamp[0]
            say("writer", writer=self.writer, at=time.monotonic_ns())
        self.versions.append(stamp)
        if found := fault(self.sync.codec.decode(data), data, self.table):
            self.found(found)

    def found(self, what: str) -> None:
        """Counts a torn read, and keeps what was wrong with the first ten."""
        self.torn += 1
        self.faults.append(what)
        del self.faults[10:]

    def hold(self) -> None:
        """Holds a version until the end, which will be a SIGKILL."""
        with self.sync.read():
            self.report("holding")
            while True:
                self.words.next(60.0)

    def report(self, event: str) -> None:
        """Says all that was counted."""
        say(event, reads=self.reads, torn=self.torn, faults=self.faults, versions=self.versions)


def write(prefix: str, writer: int) -> None:
    """Publishes one edition after the other, from the moment that it gets the writer's place."""
    table: list[Row] = character_table()
    words = Words()
    number, waiting = 1, False
    data = edition(table, writer, number)
    with Synchronizer(prefix) as sync:
        say("ready")
        due = time.monotonic()
        while words.next(max(due - time.monotonic(), 0.0)) != "stop":
            try:
                result = sync.write_bytes(data)
            except WriterBusy as error:
                if not waiting:
                    say("waiting", holder=error.holder)
                waiting, due = True, time.monotonic() + _RETRY
                continue
            say("published", version=sync.version, reset=result.reset)
            due = time.monotonic() + _PACE
            number += 1
            data = edition(table, writer, number)
        say("done", editions=number - 1)


def count(path: str) -> None:
    """Counts the letters of the names in the table, and says each when it is counted.

    It takes the names in blocks, each of which goes to one process only.
    """
    names = [name for _, name, *_ in character_table() if name]
    words = Words()
    with Counters(path) as c:
        letters = {letter: (c.counter(letter).fetch_add, letter.encode()) for letter in ascii_uppercase}
        os.write(1, READY)
        while words.next(60.0) != "go":
            pass
        while words.next() != "stop":
            block = c.reserve("names", BLOCK)
            os.write(1, TAKEN)
            for number in block:
                for letter in names[number % len(names)]:
                    if letter in letters:
                        add, said = letters[letter]
                        add()
                        os.write(1, said)
    os.write(1, DONE)


def blocks() -> list[str]:
    """The characters of the table, in blocks: each is a job."""
    characters = [chr(code) for code, *_ in character_table()]
    return ["".join(characters[i : i + BLOCK]) for i in range(0, len(characters), BLOCK)]


def changing(block: str) -> int:
    """The work: how many characters are other ones when they are normalised."""
    return sum(unicodedata.normalize("NFKC", character) != character for character in block)


def results_of(path: str) -> str:
    """Where the results of the jobs at a path are put."""
    return f"{path}-results"


def work(path: str) -> None:
    """Works off jobs: the result is put before the job is acknowledged, so none is lost, whenever it dies."""
    table = blocks()
    words = Words()
    with Queue(path) as jobs, Queue(results_of(path)) as results:
        say("ready")
        while words.next(60.0) != "go":
            pass
        done = 0
        while (word := words.next()) != "stop":
            try:
                claim = jobs.claim(60.0 if word == "hold" else 0.05)
            except Empty:
                continue
            with claim:  # acknowledged at its end
                if word == "hold":
                    say("holding", id=claim.id)
                    while True:  # until the end, which will be a SIGKILL
                        words.next(60.0)
                if claim.attempts > 1:
                    say("again", id=claim.id, at=time.monotonic_ns())
                number = claim.item
                results.put((number, changing(table[number % len(table)])))
            done += 1
        say("done", jobs=done)


class Finder:
    """Looks up names as fast as it can, and after each batch examines a version: what its commit has changed, and as
    much elsewhere.
    """

    def __init__(self, path: str, number: int) -> None:
        self.names = Names()
        self.chance = random.Random(number)
        keys = [(by_name(name), code) for code, name, *_ in self.names.rows]
        self.chance.shuffle(keys)
        self.keys = cycle(keys)
        self.path = path
        self.words = Words()
        self.lookups = self.walked = self.torn = self.wrong = self.last = self.editor = 0
        self.versions: list[int] = []
        self.faults: list[str] = []

    def run(self) -> None:
        """From the word to begin to the word to stop."""
        say("ready")
        while self.words.next(60.0) != "go":
            pass
        begin = time.perf_counter()
        with SnapshotMap(self.path, mode="readonly") as m:
            self.look_up(m, 1)
            opened = time.perf_counter() - begin
            while self.words.next() != "stop":
                self.look_up(m, _BATCH)
                with m.snapshot() as view:
                    self.examine(view)
        say(
            "done",
            opened=opened,
            lookups=self.lookups,
            walked=self.walked,
            torn=self.torn,
            wrong=self.wrong,
            faults=self.faults,
            versions=self.versions,
        )

    def look_up(self, m: SnapshotMap, count: int) -> None:
        """So many lookups, each in the version that is the newest by then."""
        self.lookups += count
        for key, code in islice(self.keys, count):
            if m[key][0] != code:
                self.found("", f"{key} leads to another character")

    def examine(self, view: Snapshot) -> None:
        """Compares what the last commit has changed, and as many characters somewhere; says if the editor is new."""
        last, editor = view[REVISION]
        if last < self.last:
            self.found("", f"revision {last} after revision {self.last}")
        if last != self.last:
            self.versions.append(last)
        self.last = last
        if editor != self.editor:
            self.editor = editor
            say("editor", editor=editor, at=time.monotonic_ns())
        for start in (self.names.start_of(last), self.chance.randrange(len(self.names.rows))):
            self.found(*self.names.compare(view, start))
            self.walked += min(LOOKED, len(self.names.rows) - start)

    def found(self, torn: str, wrong: str) -> None:
        """Counts what is not as it should be, and keeps the first ten."""
        self.torn += bool(torn)
        self.wrong += bool(wrong)
        self.faults += filter(None, (torn, wrong))
        del self.faults[10:]


def edit(path: str, editor: int) -> None:
    """Commits one revision after the other, each in the writer's place, which it gives back in between."""
    names = Names()
    words = Words()
    say("ready")
    while words.next(60.0) != "go":
        pass
    waiting = False
    with SnapshotMap(path) as m:
        while (word := words.next(_RETRY)) != "stop":
            try:
                with m.transaction() as txn:
                    revision = txn[REVISION][0] + 1
                    txn.update(names.revised(revision))
                    txn[REVISION] = [revision, editor]
                    if word == "hold":
                        say("holding")
                        while True:  # until the end, which will be a SIGKILL
                            words.next(60.0)
            except WriterBusy as error:
                if not waiting:
                    say("waiting", holder=error.holder)
                waiting = True
                continue
            say("committed", revision=revision)
        say("done")


def main() -> None:
    """Runs the worker that the command line asks for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the director decides
    role, prefix, number = sys.argv[1:]
    gc.disable()  # decoding makes 145,000 lists at once, none of them in a cycle: the collector would look for nothing
    try:
        if role == "writer":
            write(prefix, int(number))
        elif role == "counter":
            count(prefix)
        elif role == "worker":
            work(prefix)
        elif role == "editor":
            edit(prefix, int(number))
        elif role == "finder":
            Finder(prefix, int(number)).run()
        else:
            reader = Reader(prefix)
            with reader.sync:
                reader.run()
    except BrokenPipeError:
        pass  # the director has gone
    except (CorruptionError, FileNotFoundError, MappingLost):
        if os.path.isdir(os.path.dirname(prefix)):  # else the director was interrupted, and has cleaned up
            raise


if __name__ == "__main__":
    main()
