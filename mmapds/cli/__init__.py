"""The command line: ``mmapds COMMAND ...``.

Promise
    Exit status 0: done, and the answer is yes.  1: it failed, or the answer is no (a file is
    corrupt).  2: the command line cannot be acted on, or the path it names cannot be opened.
    An error is one line on standard error and never a traceback, unless it is a bug.  Results go
    to standard output, progress to standard error; ``--json`` makes every result one JSON
    document (``watch``, the items of a queue and the entries of a map: one on each line).  Ended by
    Ctrl-C: 130.  Ended because nobody reads the output any more (``mmapds inspect f | head``):
    silence and 141, as the shell counts a SIGPIPE, so that a broken pipe is never mistaken for a
    corrupt file.

How it is put together
    Each command is a module here with ``register(commands, common)``, which adds its parser and
    sets ``run``, a function of the parsed arguments and an `Output` that returns the exit status.
    A command says what it found twice over, as data and as tables, and `Output` picks one.

Rejected
    click and typer: a required package for what argparse does.  Colour without a request: plain
    text unless rich is installed and standard output is a terminal that NO_COLOR allows it on.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from mmapds.cli import bench, counters, demo, inspect, queue, snapshot, verify
from mmapds.cli.output import Output, printable
from mmapds.errors import MmapdsError

__all__ = ["COMMANDS", "Register", "build_parser", "main"]

DONE, FAILED, USAGE = 0, 1, 2
INTERRUPTED, PIPE_CLOSED = 130, 141  # 128 + SIGINT, 128 + SIGPIPE

Register = Callable[["argparse._SubParsersAction[Any]", argparse.ArgumentParser], None]

COMMANDS: tuple[Register, ...] = (
    demo.register,
    inspect.register,
    verify.register,
    counters.register,
    queue.register,
    snapshot.register,
    bench.register,
)
"""Every command, in the order in which ``--help`` lists them."""

_NOT_OPENED = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


def build_parser(commands: Sequence[Register] = COMMANDS) -> argparse.ArgumentParser:
    """Return the parser with each of `commands` registered as a sub-command."""
    json_help = "print one JSON document instead of tables"
    parser = argparse.ArgumentParser(
        prog="mmapds",
        description="Data structures in memory-mapped files: try them, look at them, check them, time them.",
        epilog="Exit status: 0 done and sound, 1 failed or corrupt, 2 usage.",
    )
    parser.add_argument("--version", action="version", version=f"mmapds {_version()}")
    parser.add_argument("--json", action="store_true", help=json_help)
    # SUPPRESS: a command without --json must not undo a --json that stood before the command.
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=json_help)
    group = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for register in commands:
        register(group, common)
    return parser


def main(argv: Sequence[str] | None = None, commands: Sequence[Register] = COMMANDS) -> int:
    """Run one command and return its exit status.

    A malformed command line, ``--help`` and ``--version`` end in `SystemExit`, as argparse does.
    """
    args = build_parser(commands).parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # any name can be shown in any locale
    try:
        status: int = args.run(args, Output(json=args.json is True))
        sys.stdout.flush()  # here, where a closed pipe can still be caught
    except MmapdsError as error:
        return _complain(error, FAILED)
    except BrokenPipeError:
        # Python flushes once more at exit: give it something that takes the bytes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except _NOT_OPENED as error:
        return _complain(error, USAGE)
    except OSError as error:
        return _complain(error, FAILED)
    return status


def _complain(error: Exception, status: int) -> int:
    """Say `error` in one line on standard error."""
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, MmapdsError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    text = " ".join(text.split()) or type(error).__name__
    sys.stderr.write(f"mmapds: {printable(text)}\n")
    return status


def _version() -> str:
    """Return the installed version, or what to say where the package only lies in a directory."""
    try:
        return metadata.version("mmapds")
    except metadata.PackageNotFoundError:
        return "(not installed)"
