"""``mmapds demo``: publish a real table to other processes, count, work and look up in others, kill five, and compare.

Exit status 0: nothing torn, nothing lost, all went on, files sound.  1: not so, or a process died by itself.
"""

from __future__ import annotations

import argparse
import math
import os
from typing import Any

from mmapds.cli.output import Output, Table

__all__ = ["register", "run"]


def register(commands: argparse._SubParsersAction[Any], common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the options that all commands share."""
    parser = commands.add_parser(
        "demo",
        parents=[common],
        help="publish a table to several processes, count, work and look up in several, kill five, and compare",
        description="A writer publishes the Unicode character table in successive versions while other processes read "
        "it. A reader and then the writer are killed with SIGKILL, and another writer takes over. Then processes count "
        "the letters of the names in the table together, and one of them is killed. Then as many work off jobs from a "
        "queue, and one of them is killed with a job in its hands. Then as many look up names in a map while an editor "
        "changes it; the editor is killed in the middle of a commit, and another takes over.",
        epilog="Exit status: 0 nothing torn, nothing lost and all went on, 1 not so.",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=10.0,
        metavar="N",
        help="how long to read, count, work and look up (default %(default)g)",
    )
    parser.add_argument(
        "--readers",
        type=_readers,
        default=3,
        metavar="N",
        help="processes that read, as many that count, that work, and that look up, at least 2 (default %(default)d)",
    )
    parser.add_argument(
        "--directory", metavar="DIR", help="where to put the files, in a directory that is removed (default /dev/shm)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, out: Output) -> int:
    """Run the demo and print what came of it; return 0 if it is as it should be."""
    from mmapds.demo.cast import DemoError
    from mmapds.demo.run import run as play

    try:
        results = play(args.seconds, args.readers, args.directory, out.progress)
    except DemoError as error:
        out.progress(f"mmapds: {error}")
        return 1
    counted, worked, looked = results["counters"], results["queue"], results["snapshot"]
    all_parts = (results, counted, worked, looked)
    fine = (
        results["torn_reads"] == 0
        and results["versions_seen_after_takeover"] > 0
        and counted["lost"] == 0
        and counted["untold"] <= counted["killed"]
        and worked["lost"] == worked["wrong"] == 0
        and worked["twice"] <= worked["killed"]
        and worked["again"] == worked["held"]
        and looked["torn"] == looked["wrong"] == looked["lost"] == looked["half"] == 0
        and all(part["sound"] for part in all_parts)
    )
    parts: list[Table | str] = [_published(results), _counted(counted), _worked(worked), _looked(looked)]
    parts += [*results["faults"], *looked["faults"]]
    findings = [finding for part in all_parts for finding in part["findings"]]
    parts += [f"{f.severity}: {f.where}: {f.what}" for f in findings if f.severity == "error"]
    out.emit({"fine": fine, **results}, *parts)
    return 0 if fine else 1


def _published(results: dict[str, Any]) -> Table:
    middle = "in the middle of a write" if results["writer_killed_in_the_middle_of_a_write"] else "between two writes"
    return Table(
        ("", "result", ""),
        [
            (
                "reads per second",
                f"{results['reads_per_second']:,.0f}",
                f"{results['readers']} processes, {os.cpu_count()} CPUs; each read checked",
            ),
            (
                "versions seen",
                f"{results['versions_seen']:,}",
                f"of {results['versions_published']:,}; each row compared",
            ),
            ("torn reads", f"{results['torn_reads']:,}", "must be 0"),
            ("time to take over", f"{results['takeover_seconds'] * 1000:.1f} ms", f"writer killed {middle}"),
            ("rows", f"{results['rows']:,}", f"Unicode {results['unicode']}"),
            ("bytes per version", f"{results['bytes_per_version']:,}", "msgpack"),
            ("files afterwards", _soundness(results), "as mmapds verify says"),
        ],
        "Synchronizer",
    )


def _counted(counted: dict[str, Any]) -> Table:
    letters = sum(counted["letters"].values())
    often = sorted(counted["letters"], key=counted["letters"].__getitem__, reverse=True)[:3]
    return Table(
        ("", "result", ""),
        [
            (
                "letters per second",
                f"{letters / counted['seconds']:,.0f}",
                f"{counted['processes']} processes; each says each letter on a pipe when it is counted",
            ),
            ("letters counted", f"{letters:,}", f"most often {', '.join(often)}; names: {counted['names']:,}"),
            ("letters they said", f"{counted['said']:,}", "one process killed while it counted"),
            ("said, not counted", f"{counted['lost']:,}", "must be 0"),
            ("counted, not said", f"{counted['untold']:,}", "at most 1, of the one that was killed"),
            ("file afterwards", _soundness(counted), "as mmapds verify says"),
        ],
        "Counters",
    )


def _worked(worked: dict[str, Any]) -> Table:
    return Table(
        ("", "result", ""),
        [
            (
                "jobs per second",
                f"{worked['done'] / worked['seconds']:,.0f}",
                f"{worked['processes']} processes; each puts the result into another queue, then acknowledges the job",
            ),
            ("jobs done", f"{worked['done']:,}", f"of {worked['jobs']:,}; each result compared"),
            ("jobs not done", f"{worked['lost']:,}", "must be 0"),
            ("wrong results", f"{worked['wrong']:,}", "must be 0"),
            ("jobs done twice", f"{worked['twice']:,}", "at most 1, of the one that was killed"),
            (
                "time to pass it on",
                f"{worked['again_seconds'] * 1000:.1f} ms",
                "until another had the job of the one that was killed",
            ),
            ("files afterwards", _soundness(worked), "as mmapds verify says"),
        ],
        "Queue",
    )


def _looked(looked: dict[str, Any]) -> Table:
    middle = "commit" if looked["killed_in_the_middle_of_a_commit"] else "transaction"
    return Table(
        ("", "result", ""),
        [
            (
                "lookups per second",
                f"{looked['lookups'] / looked['seconds']:,.0f}",
                f"{looked['processes']} processes; each value decoded and compared",
            ),
            ("time to open", f"{looked['open_seconds'] * 1000:.1f} ms", f"{looked['entries']:,} entries; first lookup"),
            ("commits", f"{looked['commits']:,}", "each notes its number at 100 characters, under two keys each"),
            (
                "versions seen",
                f"{looked['versions_seen']:,}",
                f"all of the last commit compared; {looked['walked']:,} characters walked",
            ),
            ("torn versions", f"{looked['torn']:,}", "must be 0"),
            ("wrong values", f"{looked['wrong']:,}", "must be 0; at the end the whole map compared"),
            ("commits lost", f"{looked['lost']:,}", "must be 0, of those that an editor said it had made"),
            ("half commits seen", f"{looked['half']:,}", f"must be 0; one editor killed in the middle of a {middle}"),
            ("time to take over", f"{looked['takeover_seconds'] * 1000:.1f} ms", "until a commit of the next was seen"),
            ("files afterwards", _soundness(looked), "as mmapds verify says"),
        ],
        "SnapshotMap",
    )


def _soundness(results: dict[str, Any]) -> str:
    return "sound" if results["sound"] else "corrupt"


def _seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text}: must be more than 0")
    return value


def _readers(text: str) -> int:
    value = int(text)
    if not 2 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text}: must be from 2, because one of them is killed, to 1000")
    return value
