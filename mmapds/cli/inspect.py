"""``mmapds inspect PATH``: what a file is, and what its header says.

The file is read, never mapped, changed or locked.
"""

from __future__ import annotations

import argparse
from typing import Any

from mmapds.cli.output import Output, facts

__all__ = ["register", "run"]


def register(commands: argparse._SubParsersAction[Any], common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the options that all commands share."""
    parser = commands.add_parser(
        "inspect",
        parents=[common],
        help="print what a file is and what its header says",
        description="Print what any file of mmapds is, its header and its stored options.",
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        help="the file, the prefix of a Synchronizer, or the directory of a queue or a snapshot map",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, out: Output) -> int:
    """Print `mmapds.inspection.describe` of the path; return 0."""
    from mmapds import inspection

    description = inspection.describe(args.path)
    out.emit(description, facts(description))
    return 0
