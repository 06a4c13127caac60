"""Unrelated processes for tests: fresh interpreters that do what they are told, one piece of code at a time.

    with Peer() as peer:
        peer("s = Synchronizer(prefix)", prefix=prefix)     runs it there
        assert peer("s.version") == 3                       the value of the last expression comes back
        peer.send("s.wait()"); ...; peer.receive()          without waiting in between

What is not a Python literal comes back as its repr. An exception there is raised here as `PeerError`, which names it.
Run as a program, this module is the peer. Watchdogs end what hangs; nothing here measures time.
"""

from __future__ import annotations

import ast
import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Self

WATCHDOG = 120.0  # seconds
SUPPORT = Path(__file__).parent


class PeerError(Exception):
    """The code raised. `name`: the class of the exception; `message`: its text."""

    def __init__(self, name: str, message: str, trace: str) -> None:
        super().__init__(f"{name}: {message}\n{trace}")
        self.name = name
        self.message = message


class PeerDiedError(Exception):
    """The process ended before it answered."""


class Peer:
    """One process. `wrapper` is a command to run it under; `env` is added to the environment."""

    def __init__(
        self,
        setup: str = "",
        *,
        wrapper: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        close_fds: bool = True,
        **names: Any,
    ) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed with the peer
        self._buffer = b""
        self._asked: list[str] = []
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-W", "error", "-X", "faulthandler", str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONPATH": python_path(), **(env or {})},
            close_fds=close_fds,
        )
        if setup or names:
            try:
                self(setup, **names)
            except BaseException:
                self.__exit__(None, None, None)
                raise

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, code: str, **names: Any) -> None:
        """Hands the code over and does not wait for its end; `names` become globals first."""
        self._asked.append(code)
        assert self.process.stdin is not None
        self.process.stdin.write(repr((code, names)).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self, watchdog: float = WATCHDOG) -> Any:
        """The value of the oldest piece of code that was sent."""
        assert self.process.stdout is not None
        code = self._asked.pop(0)
        descriptor = self.process.stdout.fileno()
        while b"\n" not in self._buffer:
            if not select.select([descriptor], [], [], watchdog)[0]:
                self.process.send_signal(signal.SIGABRT)  # faulthandler says where it hangs
                self.process.wait()
                raise TimeoutError(f"still busy after {watchdog} s with: {code}\n{self.stderr()}")
            data = os.read(descriptor, 1 << 20)
            if not data:
                status = self.process.wait()
                raise PeerDiedError(f"exit status {status} while busy with: {code}\n{self.stderr()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        fine, value = ast.literal_eval(line.decode())
        if not fine:
            raise PeerError(*value)
        return value

    def __call__(self, code: str, **names: Any) -> Any:
        self.send(code, **names)
        return self.receive()

    def fails(self, code: str, **names: Any) -> tuple[str, str]:
        """Runs code that must raise; (name of the exception, message)."""
        try:
            value = self(code, **names)
        except PeerError as error:
            return error.name, error.message
        raise AssertionError(f"no exception from: {code}; it gave {value!r}")

    def stderr(self) -> str:
        """The last of what it said."""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")[-4000:]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and waits until the kernel has cleaned up. Idempotent."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout, self._stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def run(code: str, *argv: str, wrapper: tuple[str, ...] = (), env: dict[str, str] | None = None) -> Any:
    """Runs `code` in a process of its own to its end; its output as a literal (None if there is none)."""
    done = subprocess.run(
        [*wrapper, sys.executable, "-W", "error", "-X", "faulthandler", "-c", code, *argv],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": python_path(), **(env or {})},
        timeout=WATCHDOG,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{code}\n--- output\n{done.stdout}\n{done.stderr}"
    return ast.literal_eval(done.stdout.strip()) if done.stdout.strip() else None


def open_files(pid: int) -> list[str]:
    """What a process has open. Not what it closed while we looked, as the loader of a program does."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(link))
    return found


def python_path() -> str:
    """PYTHONPATH with this folder in front, so that `run` can import what lies beside this module."""
    rest = os.environ.get("PYTHONPATH", "")
    return f"{SUPPORT}{os.pathsep}{rest}" if rest else str(SUPPORT)


# ---- the peer itself -----------------------------------------------------------------------------------------------


def _execute(code: str, scope: dict[str, Any]) -> Any:
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<peer>", "exec"), scope)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "<peer>", "eval"), scope)


def _main() -> None:
    import mmapds

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the code prints is not an answer
    scope: dict[str, Any] = {"mmapds": mmapds, "Synchronizer": mmapds.Synchronizer, "os": os, "signal": signal}
    for line in sys.stdin:
        try:
            code, names = ast.literal_eval(line)
            scope.update(names)
            answer = (True, _execute(code, scope))
            try:
                ast.literal_eval(repr(answer[1]))
            except (ValueError, SyntaxError):
                answer = (True, repr(answer[1]))
        except BaseException as error:  # noqa: BLE001  the test is told
            answer = (False, (type(error).__name__, str(error), traceback.format_exc()))
            del error
        answers.write(repr(answer) + "\n")


if __name__ == "__main__":
    _main()
