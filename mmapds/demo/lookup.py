"""The fourth part of the demo: the table as a map, in which processes look names up while another one changes it.

An editor commits one revision after the other. It is stopped in the middle of a commit, when its changes lie in the
file already and no version counts them (on a busy machine that may not succeed in time: then in the middle of a
transaction); left so for a moment, in which the lookups go on and a second editor finds the place taken; and killed.
The second editor then has the place. At the end the whole map is compared with what it must be after the last revision,
and the number of that one with those that the editors said they had committed: nothing less, and no half commit.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

from mmapds import SnapshotMap, inspection
from mmapds.demo.cast import Cast, Worker
from mmapds.demo.names import BLOCK, REVISION, Names

_PATIENCE = 1.0  # seconds, at most, to stop an editor in the middle of a commit


def play(path: str, seconds: float, count: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Plays this part in about so many seconds and returns what came of it."""
    names = Names()
    with Cast(path, Worker) as cast:
        for number in (1, 2):
            cast.add("editor", number)
        for number in range(1, count + 1):
            cast.add("finder", number)
        entries = SnapshotMap.build(path, names.items())
        cast.until(lambda: all(worker.said("ready") for worker in cast.workers), "the finders and editors")
        progress(f"{count} processes look up names in a map of {entries:,} entries for {seconds:g} seconds")
        found = _play(cast, seconds, progress)
    with SnapshotMap(path, mode="readonly") as m:
        wrong = [text for text in (f"{len(m)} entries, not {entries}",) if len(m) != entries]
        wrong += _faults(m, names)
        found |= _compared(m[REVISION][0], found.pop("said"))
    found["faults"] += wrong[:10]
    found["wrong"] += len(wrong)
    findings = inspection.verify(path)
    sound = all(finding.severity != "error" for finding in findings)
    return {"processes": count, "killed": 1, "entries": entries, **found, "sound": sound, "findings": findings}


def _play(cast: Cast[Worker], seconds: float, progress: Callable[[str], None]) -> dict[str, Any]:
    editor, heir, *finders = cast.workers
    begin = time.monotonic()
    for worker in (editor, *finders):
        worker.tell("go")
    cast.until_time(begin + seconds / 2)
    cast.until(lambda: _first_seen(finders, 1), "a version of the first editor")

    with contextlib.closing(_HalfCommitted(cast.prefix)) as watch:
        caught = cast.stop_when(editor, watch, _PATIENCE)
    if not caught:
        editor.tell("hold")
        cast.until(lambda: editor.said("holding"), "an editor in a transaction")
    heir.tell("go")
    cast.until(lambda: heir.said("waiting"), "the second editor")
    progress(f"{heir.name} waits for the place of: {heir.said('waiting')[0]['holder']}")
    cast.until_time(time.monotonic() + min(0.1 * seconds, 0.3))  # the lookups go on meanwhile
    kill_time = time.monotonic_ns()
    editor.kill()
    progress(f"{editor.name} (pid {editor.pid}) killed in the middle of a {'commit' if caught else 'transaction'}")
    cast.until(lambda: _first_seen(finders, 2), "a version of the second editor")
    takeover = (_first_seen(finders, 2) - kill_time) / 1e9
    progress(f"{heir.name} took over: its first version was seen after {takeover * 1000:.1f} ms")
    cast.until_time(begin + seconds)
    cast.until(lambda: len(heir.said("committed")) > 2, "versions of the second editor")

    for worker in (*finders, heir):
        worker.tell("stop")
    elapsed = time.monotonic() - begin
    cast.until(lambda: all(worker.done for worker in (*finders, heir)), "the end")
    cast.until(lambda: editor.silent, "all that the first editor said")
    reports = [finder.said("done")[0] for finder in finders]
    return {
        "seconds": elapsed,
        "open_seconds": statistics.median(report["opened"] for report in reports),
        "lookups": sum(report["lookups"] for report in reports),
        "walked": sum(report["walked"] for report in reports),
        "versions_seen": len({number for report in reports for number in report["versions"]}),
        "torn": sum(report["torn"] for report in reports),
        "wrong": sum(report["wrong"] for report in reports),
        "faults": sorted({fault for report in reports for fault in report["faults"]}),
        "takeover_seconds": takeover,
        "killed_in_the_middle_of_a_commit": caught,
        "said": [event["revision"] for worker in (editor, heir) for event in worker.said("committed")],
    }


def _first_seen(finders: list[Worker], editor: int) -> int:
    """When the first of the finders saw a version of an editor; 0: none has."""
    times = [event["at"] for finder in finders for event in finder.said("editor") if event["editor"] == editor]
    return min(times, default=0)


def _compared(last: int, said: Iterable[int]) -> dict[str, int]:
    """What the map's last revision is beside those that were said: how many are lost, and how many nobody committed.

    One that two editors made is lost once: the second did not find what the first had committed.
    """
    said = list(said)
    different = set(said)
    return {
        "commits": last,
        "lost": len(said) - len(different) + sum(number > last for number in different),
        "half": len(set(range(1, last + 1)) - different),
    }


def _faults(m: SnapshotMap, names: Names) -> list[str]:
    """What is wrong in the whole map."""
    with m.snapshot() as view:
        faults = [fault for start in range(0, len(names.rows), BLOCK) for fault in names.compare(view, start)]
    return list(filter(None, faults))


class _HalfCommitted:
    """Whether a commit is under way this moment: its batch lies in the delta, and no version counts it."""

    def __init__(self, path: str) -> None:
        self.map = SnapshotMap(path, mode="readonly")
        self.close = self.map.close

    def __call__(self) -> bool:
        state = self.map._state
        return state.delta is not None and state.delta.written > state.end and self.map._state is state
