"""Builds the Rust program once, and starts the processes that talk to each other.

Only a machine without cargo skips these tests; a program that does not build is a failure.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CRATE = HERE / "rust"
PEER = HERE / "peer.py"
EXAMPLES = HERE.parents[1] / "examples"
WATCHDOG = 600.0  # seconds; a process still running then is killed, and its test fails

Start = Callable[..., "subprocess.Popen[str]"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "interop: exchanges data with the Rust crate mmap-sync")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.interop)


@pytest.fixture(scope="session")
def program() -> Path:
    """The Rust program `interop`, built."""
    cargo = shutil.which("cargo")
    if cargo is None:
        pytest.skip("no cargo here: the Rust crate mmap-sync cannot be built (install Rust)")
    target = Path(os.environ.get("CARGO_TARGET_DIR", CRATE / "target"))
    built = subprocess.run(
        [cargo, "build", "--release", "--manifest-path", str(CRATE / "Cargo.toml")],
        env={**os.environ, "CARGO_TARGET_DIR": str(target)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if built.returncode:
        pytest.fail(f"cargo build failed:\n{built.stdout}", pytrace=False)
    return target / "release" / "interop"


@pytest.fixture
def prefix() -> Iterator[str]:
    """A prefix in a directory of its own, in memory where possible: the crate syncs each write."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="mmapds-interop-", dir=shm) as directory:
        yield f"{directory}/value"


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process with pipes; whatever still runs when the test ends is killed."""
    started: list[tuple[subprocess.Popen[str], threading.Timer]] = []

    def start(*argv: str | Path, umask: int = -1, stdin: Any = subprocess.PIPE) -> Any:
        process = subprocess.Popen(
            [str(arg) for arg in argv],
            stdin=stdin,
            stdout=subprocess.PIPE,
            text=True,
            umask=umask,
        )
        watchdog = threading.Timer(WATCHDOG, process.kill)
        watchdog.daemon = True
        watchdog.start()
        started.append((process, watchdog))
        return process

    yield start
    for process, watchdog in started:
        watchdog.cancel()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def start_rust(start: Start, program: Path) -> Start:
    return lambda *args, **options: start(program, *args, **options)


@pytest.fixture
def start_python(start: Start, program: Path) -> Start:  # program: no cargo, no test
    return lambda *args, **options: start(sys.executable, "-W", "error", PEER, *args, **options)


def _output(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate()
    assert process.returncode == 0, f"exit status {process.returncode}, output {output!r}"
    return output.removesuffix("\n")


@pytest.fixture
def rust(start_rust: Start) -> Callable[..., str]:
    """Run one subcommand of the Rust program to its end; its output without the last newline."""
    return lambda *args, **options: _output(start_rust(*args, **options))


@pytest.fixture
def example(start: Start) -> Callable[..., str]:
    """Run one of examples/ to its end; its output without the last newline."""
    return lambda name, *args, **options: _output(
        start(sys.executable, "-W", "error", EXAMPLES / name, *args, **options)
    )


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module examples/common.py."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("common")
