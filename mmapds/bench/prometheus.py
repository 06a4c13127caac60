"""prometheus_client in multiprocess mode, timed in a process of its own.

That mode is chosen by an environment variable when the package is imported, for the whole process. The process times
slices as it is told, so that they lie between our own slices, in the same rounds and on the same processor.

Run as a program this is that process: ``python -m mmapds.bench.prometheus``, with a count a line on standard input, to
which it answers with seconds.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from contextlib import ExitStack, suppress

from mmapds.bench.measure import Case, statement

__all__ = ["cases"]

_PACKAGE = "prometheus_client"


def cases(stack: ExitStack, directory: str) -> list[Case] | str:
    """The case, or why there is none. The process ends, and leaves its files to the directory, with the stack."""
    if importlib.util.find_spec(_PACKAGE) is None:
        return f"{_PACKAGE} is not installed"
    files = f"{directory}/prometheus"
    os.mkdir(files)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "mmapds.bench.prometheus"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": files},
        bufsize=0,
    )
    stack.enter_context(process)  # closes its input, which is the end of its orders, and waits for it
    assert process.stdin
    assert process.stdout
    orders, answers = process.stdin, process.stdout

    def clock(count: int) -> float:
        with suppress(BrokenPipeError):
            orders.write(b"%d\n" % count)
        line = answers.readline()
        if not line:
            raise RuntimeError(f"the process of {_PACKAGE} ended early, with status {process.wait()}; see above")
        return float(line)

    each = _case().each  # the same loop as there
    return [Case("prometheus", clock, each)]


def _case(counter: object = None) -> Case:
    return statement("prometheus", "counter.inc()", {"counter": counter})


def _serve() -> None:
    package = importlib.import_module(_PACKAGE)  # has types or not, as it is installed or not
    case = _case(package.Counter("hits", "What is counted."))
    for line in sys.stdin:
        sys.stdout.write(f"{case.clock(int(line))!r}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
