"""``mmapds bench STRUCTURE``: time a structure, as ratios within one run.

``--json FILE`` keeps the run, ``--svg FILE`` draws it; the tables of the documentation are made
from such files.  The measuring is in `mmapds.bench`, one module per structure, each with
``run(quick, progress)``, which returns everything measured as plain data, ``tables(results)`` and
``svg(results)``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
from pathlib import Path
from typing import Any, TextIO

from mmapds.cli.output import Output, document

__all__ = ["register", "run"]


def register(
    commands: argparse._SubParsersAction[Any],
    common: argparse.ArgumentParser,  # noqa: ARG001 - here --json may name a file
) -> None:
    """Add the command to `commands`."""
    parser = commands.add_parser("bench", help="time a structure, as ratios within one run")
    structures = parser.add_subparsers(title="structures", metavar="STRUCTURE", required=True)
    sync = _structure(structures, "sync", "the Synchronizer and the mapping layer")
    sync.add_argument("--crate", metavar="PROGRAM", help="the Rust program of tests/interop/rust, built elsewhere")
    sync.set_defaults(options=lambda args: {"program": args.crate})
    _structure(structures, "counters", "the Counters")
    _structure(structures, "queue", "the Queue")
    snapshot = _structure(structures, "snapshot", "SnapshotMap")
    snapshot.add_argument("--keys", type=_keys, metavar="N", help="entries, at least 1000 (default: a million)")
    snapshot.add_argument("--memory", action="store_true", help="keep the files in memory (/dev/shm), not on a disk")
    snapshot.set_defaults(options=lambda args: {"keys": args.keys, "memory": args.memory})


def _keys(text: str) -> int:
    """How many entries; keys have ten digits."""
    count = int(text)
    if not 1000 <= count < 10**10:
        raise argparse.ArgumentTypeError(f"{text}: must be from 1000 to 9999999999")
    return count


def _structure(structures: argparse._SubParsersAction[Any], name: str, what: str) -> argparse.ArgumentParser:
    """Add the parser of one structure, with what all of them take."""
    parser: argparse.ArgumentParser = structures.add_parser(
        name, help=what, description=f"Time {what}, beside the peers installed here."
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const=True,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="write the run as JSON to FILE; without FILE, to standard output",
    )
    parser.add_argument("--svg", metavar="FILE", help="write a plot of the run to FILE")
    parser.add_argument("--quick", action="store_true", help="a rough run of a few seconds")
    parser.set_defaults(run=run, structure=name, options=lambda _: {})
    return parser


def run(args: argparse.Namespace, out: Output) -> int:
    """Run the benchmark, write what was asked for; return 0.

    The files are opened first: a long run must not end in a path that cannot be written.
    """
    bench = importlib.import_module(f"mmapds.bench.{args.structure}")
    with contextlib.ExitStack() as stack:
        json_file = _writable(stack, args.json if isinstance(args.json, str) else None)
        svg_file = _writable(stack, args.svg)
        results = bench.run(quick=args.quick, progress=out.progress, **args.options(args))
        if json_file is not None:
            json_file.write(document(results))
        if svg_file is not None:
            svg_file.write(bench.svg(results))
    out.emit(results, *bench.tables(results))
    return 0


def _writable(stack: contextlib.ExitStack, path: str | None) -> TextIO | None:
    if path is None:
        return None
    return stack.enter_context(Path(path).open("w", encoding="utf-8"))
