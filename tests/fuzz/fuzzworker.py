"""The process that is expected to survive: mutates, runs a target, mends, and says how it went, a line for each slice.

Mutations are blind (bits, bytes, runs of them) and know the format: words set to values at and beyond every limit,
ranges copied and exchanged, files cut and extended, another boot; in half of the executions the checksums are made
right again afterwards. Feedback is light: what leads to an outcome that was not there before (the class and text of an
error without its numbers, or what was seen) is kept, and mutated further. Coverage of the native code is not measured
here, so nothing need be built; a build that has sanitizers runs the same, and `guided.py` lets libFuzzer choose.

It finds wrong values, exceptions that nobody documented, memory without bound, and loops in which signal handlers run.
Its parent finds crashes and other hangs: what was fed then still lies in the files, and `progress` names the target.

Prior art: AFL (limits as values, ranges that are spliced, what is new is kept). Rejected: a file for each input, which
costs more than the execution.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import json
import mmap
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import fuzzplaces
import fuzztargets
from fuzzplaces import PAGE, Part, Place
from fuzztargets import Random, Target

from mmapds import MmapdsError

LIMITS = [
    0, 0, 1, 1, 2, 3, 7, 8, 9, 15, 16, 63, 64, 65, 255, 256, 4088, 4095, PAGE, PAGE + 1, 2 * PAGE, 3 * PAGE, 8184,
    65535, 65536, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, (1 << 39) - 1, 1 << 39,
    (1 << 40) - 1, 1 << 40, 1 << 47, 1 << 48, 1 << 56, 1 << 61, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 63) + 1,
    (1 << 64) - PAGE, (1 << 64) - 8, (1 << 64) - 2, (1 << 64) - 1,
]  # fmt: skip
DOCUMENTED = {
    errno.ENOENT, errno.EACCES, errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EAGAIN, errno.EIO, errno.ESTALE,
    errno.EISDIR, errno.EOPNOTSUPP,
}  # fmt: skip
MEMORY = 1 << 30  # bytes that it may ever have in memory beyond what it begins with
ADDRESSES = 400 << 30  # queues and counters reserve some, without taking memory for it
LARGEST = 256 << 20  # of a file, so that nobody makes one of the size that a damaged word says
_NUMBERS = re.compile(r"0x[0-9a-f]+|[0-9]+(?:,[0-9]+)*|\\x[0-9a-f]{2}")
_MASK = (1 << 64) - 1


class HangError(BaseException):
    """An execution does not end."""


def mutate(place: Place, target: Target, rnd: Random, base: Any, honesty: float = 0.5, resizes: bool = True) -> bool:
    """Edits the files; whether all checksums are as they were."""
    honest = rnd() < honesty
    resizes = resizes and target.resizes
    size = -1
    edit = place.edit
    part: Part | None = None
    if base is not None:
        changes, honest, resized = base
        for at, offset, data in changes:
            edit(place.parts[at], offset, data)
            part = place.parts[at]
        if resized is not None and resizes:
            place.resize(place.parts[resized[0]], resized[1])
            return bool(honest)
        honest = honest and rnd() < 0.7
    if part is None or rnd() < 0.3:
        part = target.choices[int(rnd() * len(target.choices))]
    count = 1
    while rnd() < 0.3 and count < 6:
        count += 1
    for _ in range(count):
        what = rnd()
        span = part.hot[int(rnd() * len(part.hot))] if rnd() < 0.9 else (0, part.size)
        start, stop = span
        at = start + int(rnd() * (stop - start))
        found = part.map
        if what < 0.2:
            edit(part, at, bytes((found[at] ^ 1 << int(rnd() * 8),)))
        elif what < 0.28:
            edit(part, at, bytes((int(rnd() * 256),)))
        elif what < 0.62:
            width = 8
            if part.fields and rnd() < 0.6:
                at, width = part.fields[int(rnd() * len(part.fields))]
            else:
                at &= ~7
            if at + width > part.size:
                continue
            how = rnd()
            if how < 0.55:
                value = LIMITS[int(rnd() * len(LIMITS))]
            elif how < 0.7:
                value = part.limits[int(rnd() * len(part.limits))]
            else:
                value = int.from_bytes(found[at : at + width], "little")
                value += (1, -1, 8, -8, PAGE, -PAGE, 1 << 32, value, -2 * value - 1)[int(rnd() * 9)]
            edit(part, at, (value & ((1 << 8 * width) - 1)).to_bytes(width, "little"))
        elif what < 0.74:
            length = (8, 8, 4, 16, 64, 96, 1 + int(rnd() * 200))[int(rnd() * 7)]
            other = part.hot[int(rnd() * len(part.hot))]
            source = other[0] + int(rnd() * (other[1] - other[0]))
            if rnd() < 0.8:
                at, source = at & ~7, source & ~7
            length = min(length, part.size - at, part.size - source)
            moved = found[source : source + length]
            if rnd() < 0.4:
                edit(part, source, found[at : at + length])
            edit(part, at, moved)
        elif what < 0.84:
            length = min(1 + int(rnd() * rnd() * 120), part.size - at)
            kind = rnd()
            if kind < 0.4:
                edit(part, at, bytes(length))
            elif kind < 0.5:
                edit(part, at, b"\xff" * length)
            else:
                edit(part, at, int(rnd() * (1 << 53)).to_bytes(8, "little") * (length // 8 + 1)) if at + length + 8 < (
                    part.size
                ) else edit(part, at, b"\x80" * length)
        elif what < 0.9:
            if part.original[:8] == fuzzplaces.MAGIC:  # another boot, or a copy
                edit(part, 2048 + 8 * int(rnd() * 4), int(rnd() * (1 << 53)).to_bytes(8, "little"))
        elif resizes:
            how = rnd()
            if how < 0.5:
                size = (0, 1, 8, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, part.size // 2, 3 * PAGE)[int(rnd() * 9)]
            elif how < 0.9:
                size = part.size + (-1, -8, -PAGE, 1, 8, PAGE, 1 << 20)[int(rnd() * 7)]
            else:
                size = (1 << 18, 1 << 22)[int(rnd() * 2)]
            size = max(size, 0)
            if size == 0 and part.size == 16 and rnd() < 0.999:
                size = 15  # a state file of 0 bytes is being made: everybody waits for that, for 0.1 s
        else:
            edit(part, at, bytes((found[at] ^ 1 << int(rnd() * 8),)))
    if not place.undo:
        edit(part, 0, bytes((part.map[0] ^ (0 if size >= 0 else 1),)))
    if not honest:
        place.repair([(changed, offset, offset + len(old)) for changed, offset, old in place.undo])
    if size >= 0:
        place.resize(part, size)
    return bool(honest)


def limits(place: Place, target: Target) -> Iterator[tuple[Part, int, int, int, bool]]:
    """Every field with every value at and beyond a limit, without and with its checksums repaired."""
    for part in dict.fromkeys(target.choices):
        fields = sorted(set(part.fields))
        for offset, width in fields:
            if offset + width > part.size:
                continue
            old = int.from_bytes(part.original[offset : offset + width], "little")
            mask = (1 << 8 * width) - 1
            values = {value & mask for value in (*LIMITS, *part.limits, old + 1, old - 1, old + 8, old - 8, 2 * old)}
            for value in sorted(values - {old}):
                yield part, offset, width, value, False
                if place.has_checksums:
                    yield part, offset, width, value, True


def bits(place: Place, target: Target) -> Iterator[tuple[Part, int, int, int, bool]]:
    """Every bit of every header page (of files without one: of the first 16 bytes)."""
    for part in dict.fromkeys(target.choices):
        last = PAGE if part.original[:8] == fuzzplaces.MAGIC else 16
        for bit in range(8 * min(last, part.size)):
            yield part, bit // 8, 1, part.original[bit // 8] ^ 1 << bit % 8, False


def recipe(place: Place, honest: bool) -> Any:
    """What was done to the place, to be done again; None if it is too much."""
    if len(place.undo) > 60:
        return None
    numbers = {part.name: n for n, part in enumerate(place.parts)}
    resized, there = None, 1 << 62
    if place.resized:
        part = place.resized[-1]
        try:
            there = os.stat(part.path).st_size
        except OSError:
            return None
        resized = numbers[part.name], there
    changes = [
        (numbers[part.name], offset, part.map[offset : offset + len(old)])
        for part, offset, old in place.undo
        if part not in place.resized or offset + len(old) <= there  # behind its end a mapping has no pages
    ]
    return changes, honest, resized


class Worker:
    """One run of it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.folder = options["folder"]
        self.sanitized = options["sanitized"]
        with open(options["progress"], "r+b") as file:
            self.progress = memoryview(mmap.mmap(file.fileno(), 64)).cast("Q")
        self.faults = 0
        self.memory_limit = options.get("memory", MEMORY)
        self.targets: list[Target | None] = [None] * len(fuzztargets.PAIRS)
        self.signatures: list[dict[str, int]] = [{} for _ in self.targets]
        self.corpus: list[list[Any]] = [[] for _ in self.targets]
        self.random = random.Random(options["seed"])
        self.kept: Counter[str] = Counter()
        self.seen = -1
        if not self.sanitized:
            signal.signal(signal.SIGPROF, self.tick)
            signal.setitimer(signal.ITIMER_PROF, options["slow"], options["slow"])
        self.memory = resident()

    def tick(self, *_: object) -> None:
        """After each `slow` seconds of processor time: is it the same execution still? Where no signal handler runs, in
        a loop of native code, the parent finds it.
        """
        now = int(self.progress[3])
        if now == self.seen and now % 2:
            self.seen = -1
            raise HangError
        self.seen = now

    def target(self, number: int) -> Target:
        found = self.targets[number]
        if found is None:
            make, kind = fuzztargets.PAIRS[number]
            place = fuzzplaces.KINDS[kind](os.path.join(self.folder, str(number)))
            found = self.targets[number] = make(place)
            if not found.writes:
                place.mend()
        return found

    def slice(self, number: int, count: int) -> dict[str, Any]:
        """So many executions of one target."""
        target = self.target(number)
        place, rnd, progress = target.place, self.random.random, self.progress
        signatures, corpus = self.signatures[number], self.corpus[number]
        clock = time.perf_counter
        outcomes: Counter[str] = Counter()
        fields: dict[str, Counter[str]] = {}
        sweep = {"limits": limits, "bits": bits}.get(self.options.get("sweep", ""))
        planned: Iterator[tuple[Part, int, int, int, bool]] | None = None
        if sweep is not None:
            start = self.options["seed"] % self.options["stride"]
            planned = islice(sweep(place, target), start, None, self.options["stride"])
            count = 1 << 62
        slowest = 0.0
        begin = time.process_time()
        progress[0] = number
        n = -1
        while n + 1 < count:
            n += 1
            progress[1] = n
            before = clock()
            base = corpus[int(rnd() * len(corpus))] if corpus and rnd() < 0.35 else None
            honest = True
            if planned is not None:
                step = next(planned, None)
                if step is None:
                    break
                part, offset, width, value, repaired = step
                honest = not repaired
                place.edit(part, offset, value.to_bytes(width, "little"))
                if repaired:
                    place.repair([(part, offset, offset + width)])
            if planned is None:
                honest = mutate(place, target, rnd, base)
            outcome, signature = self.attempt(number, target, honest)
            outcomes[outcome] += 1
            if planned is not None:
                fields.setdefault(f"{part.name}@{offset}", Counter())[outcome] += 1
            if signature in signatures:
                signatures[signature] += 1
            elif len(signatures) < 5000:
                signatures[signature] = 1
                if len(corpus) < 400 and (kept := recipe(place, honest)) is not None:
                    corpus.append(kept)
            target.restore(outcome)
            spent = clock() - before
            if spent > slowest:
                slowest = spent
        grown = resident() - self.memory
        if grown > self.memory_limit:
            self.fault(number, True, f"memory: {grown >> 20} MiB more than at the beginning", "", files=False)
        return {
            "target": number, "count": n + (planned is None), "fields": fields, "outcomes": dict(outcomes),
            "distinct": len(signatures), "corpus": len(corpus), "seconds": time.process_time() - begin,
            "slowest": slowest, "memory": grown,
        }  # fmt: skip

    def attempt(self, number: int, target: Target, honest: bool) -> tuple[str, str]:
        """Runs it once: the outcome in a word, and with what was said, but without numbers."""
        self.progress[3] += 1  # odd: in the middle of one
        try:
            return "right", "right " + target.run(self.random.random, honest)
        except (MmapdsError, OSError, *target.extra) as error:
            outcome = type(error).__name__
            if isinstance(error, OSError) and not isinstance(error, MmapdsError):
                outcome = errno.errorcode.get(error.errno or 0, outcome)
                if error.errno not in DOCUMENTED:
                    self.fault(number, honest, f"undocumented: {error!r}", traceback.format_exc())
            text = str(error).replace(target.place.folder, "")[:200]
            return outcome, outcome + _NUMBERS.sub("#", text)[:60]
        except fuzztargets.WrongError as error:
            if target.writes and self.options["sweep"] == "beside":
                return "changed", "changed"  # what we have just written, by somebody else
            self.fault(number, honest, f"wrong: {error}", traceback.format_exc())
            return "WRONG", "WRONG"
        except Exception as error:  # noqa: BLE001  what is not allowed is what we look for
            self.fault(number, honest, f"unexpected: {error!r}", traceback.format_exc())
            return (f"UNEXPECTED {type(error).__name__}",) * 2
        except HangError:
            self.fault(
                number, honest, f"hang: more than {self.options['slow']} s of processor time", traceback.format_exc()
            )
            return "HANG", "HANG"
        finally:
            self.progress[3] += 1

    def beside(self, number: int, count: int) -> dict[str, Any]:
        """The same while another process changes the files all the time, mostly without checksums that are right."""
        target = self.target(number)
        place, rnd = target.place, self.random.random
        resizes = target.resizes and not isinstance(
            target, fuzztargets.SyncInPlace
        )  # which looks by a mapping of its own
        outcomes: Counter[str] = Counter()
        signatures = self.signatures[number]
        begin = time.process_time()
        self.progress[0] = number
        scribbles = slowest = 0
        length = self.options["episode"]
        for _ in range(-(-count // length)):
            honest = rnd() < 0.5
            before = int(self.progress[2])
            child = self.scribbler(target, honest, resizes, self.random.getrandbits(32))
            try:
                n = 0
                while n < length or self.progress[2] - before < length:  # until the two have met
                    self.progress[1] = n
                    n += 1
                    if n % 200 == 0 and os.waitpid(child, os.WNOHANG)[0]:
                        if target.writes:  # what is tested cuts files too, under the mapping of who changes them
                            break
                        raise RuntimeError("the process that changes the files has ended")
                    place.undo[:] = [(target.choices[int(rnd() * len(target.choices))], 0, b"")]
                    outcome, signature = self.attempt(number, target, honest and target.copies and not target.writes)
                    outcomes[outcome] += 1
                    signatures[signature] = signatures.get(signature, 0) + 1
                    if outcome in ("MappingLost", "Closed"):
                        with contextlib.suppress(MmapdsError, OSError):
                            target.again()
            finally:
                with contextlib.suppress(ChildProcessError, ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                scribbles += int(self.progress[2]) - before
                place.reset()
                target.again()
        return {
            "target": number, "count": sum(outcomes.values()), "fields": {}, "outcomes": dict(outcomes),
            "distinct": len(signatures), "corpus": scribbles, "seconds": time.process_time() - begin,
            "slowest": slowest, "memory": resident() - self.memory,
        }  # fmt: skip

    def scribbler(self, target: Target, honest: bool, resizes: bool, seed: int) -> int:
        """A process that changes the files and takes it back, until it is killed."""
        pid = os.fork()
        if pid:
            return pid
        try:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            place, rnd = target.place, random.Random(seed).random
            place.undo.clear()
            while True:
                mutate(place, target, rnd, None, 1.0 if honest else 0.3, resizes)
                self.progress[2] += 1
                if rnd() < 0.5:
                    os.sched_yield()
                place.mend()
        except BaseException:  # noqa: BLE001  nothing of it may run twice
            traceback.print_exc()
        finally:
            os._exit(1)

    def fault(self, number: int, honest: bool, what: str, trace: str, files: bool = True) -> None:
        """Keeps what was fed, and tells."""
        self.faults += 1
        name = fuzztargets.NAMES[number]
        self.kept[name + what[:12]] += 1
        files = files and self.kept[name + what[:12]] <= 10
        where = os.path.join(self.options["keep"], f"{os.getpid()}-{self.faults:03}")
        if files:
            self.targets[number].place.keep(where)  # type: ignore[union-attr]
        told = {
            "target": name,
            "what": what,
            "honest": honest,
            "trace": trace,
            "seed": self.options["seed"],
            "files": where if files else "",
        }
        if files:
            Path(where, "fault.json").write_text(json.dumps(told, indent=1))
        say({"fault": told})

    def run(self) -> None:
        """Rounds of slices, so that every moment of the run has seen all targets."""
        with fuzzplaces.identities(self.options["seed"]):
            for number in self.options["counts"]:
                self.target(int(number))
        gc.collect()
        gc.freeze()
        left = {int(number): count for number, count in self.options["counts"].items()}
        rounds = self.options["rounds"]
        for at in range(rounds, 0, -1):
            for number, count in left.items():
                part = -(-count // at)
                if part:
                    say(self.beside(number, part) if self.options["sweep"] == "beside" else self.slice(number, part))
                    left[number] = count - part
        for target in self.targets:
            if target is not None:
                target.close()


def say(what: dict[str, Any]) -> None:
    """A line for the parent."""
    os.write(1, json.dumps(what).encode() + b"\n")


def resident() -> int:
    """The most bytes that this process ever had in memory (not `ru_maxrss`, which begins with the parent's)."""
    found = re.search(rb"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_bytes())
    return int(found[1]) << 10 if found else 0


def replay(folder: str, where: str) -> str:
    """What happens with files that were kept: the outcome, or the exception."""
    import json as _json

    told = _json.loads(Path(folder, "fault.json").read_text())
    number = fuzztargets.NAMES.index(told["target"])
    make, kind = fuzztargets.PAIRS[number]
    place = fuzzplaces.KINDS[kind](os.path.join(where, "place"))
    target = make(place)
    place.load(folder)
    return target.run(random.Random(0).random, bool(told["honest"]))


def main() -> None:
    options = json.loads(sys.argv[1])
    worker = Worker(options)
    if not options["sanitized"]:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, resource.RLIM_INFINITY))
    try:
        worker.run()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)  # at its end Python takes its handlers away, and the signal would kill
        shutil.rmtree(worker.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
