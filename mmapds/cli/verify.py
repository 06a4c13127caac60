"""``mmapds verify PATH``: check every record, index entry and cursor of a structure, and change nothing.

Exit status 0: sound.  1: corrupt, or not a file of mmapds at all (a ruined header looks the same).
2: there is no such file, or it cannot be opened.  For scripts the status is the answer.
"""

from __future__ import annotations

import argparse
from typing import Any

from mmapds.cli.output import Output, Table

__all__ = ["register", "run"]

HARMLESS = frozenset({"note", "warning"})
"""Findings of these severities are shown; any other makes the file corrupt."""


def register(commands: argparse._SubParsersAction[Any], common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the options that all commands share."""
    parser = commands.add_parser(
        "verify",
        parents=[common],
        help="check every byte that can be checked",
        description="Check every record, index entry and cursor of the structure that a file belongs to, and change "
        "nothing.",
        epilog="Exit status: 0 sound, 1 corrupt, 2 the path cannot be opened.",
    )
    parser.add_argument("path", metavar="PATH", help="any file of the structure, a prefix, or a directory")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, out: Output) -> int:
    """Print what `mmapds.inspection.verify` finds; return 0 if all is sound and 1 if not."""
    from mmapds import inspection

    rows = [(str(f.severity), str(f.where), str(f.what)) for f in inspection.verify(args.path)]
    sound = all(severity in HARMLESS for severity, _, _ in rows)
    columns = ("severity", "where", "what")
    data = {
        "path": args.path,
        "sound": sound,
        "findings": [dict(zip(columns, row, strict=True)) for row in rows],
    }
    verdict = f"{args.path}: {'sound' if sound else 'corrupt'}"
    out.emit(data, *([Table(columns, rows)] if rows else []), verdict)
    return 0 if sound else 1
