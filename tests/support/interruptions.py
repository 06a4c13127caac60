"""KeyboardInterrupt and MemoryError at a chosen place of a job, in the package's own Python code.

Used inside a peer: ``import interruptions``. `count` numbers the places from 0; a job that has fewer gets through.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from functools import cache
from types import CodeType, FrameType
from typing import Any

import victims

try:
    import _testcapi as testcapi
except ImportError:  # some builds of Python have none
    testcapi = None

Job = Callable[[], object]


@cache
def _places(code: CodeType) -> frozenset[int]:
    """Where the interpreter looks for signals: after calls, at the start of functions and when it jumps back."""
    before, places = "", set()
    for instruction in dis.get_instructions(code):
        looks = before.startswith(("CALL", "PRECALL")) or before in ("RESUME", "JUMP_BACKWARD")
        if looks and not instruction.opname.startswith("CALL"):
            places.add(instruction.offset)
        before = instruction.opname
    return frozenset(places)


def _where(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno} in {frame.f_code.co_name}"


def _run(job: Job) -> None:
    try:
        job()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)


def at_line(count: int, job: Job) -> str | None:
    """Interrupts the job before a line; where that was, or None."""
    where = None

    def interrupt() -> None:
        nonlocal where
        where = _where(sys._getframe(2))
        raise KeyboardInterrupt

    victims.at_line(count, interrupt)
    _run(job)
    return where


def at_place(count: int, job: Job) -> str | None:
    """Interrupts the job where the interpreter itself would; where that was, or None."""
    left, where = count, None

    def opcode(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left, where
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in _places(frame.f_code):
            if left == 0:
                sys.settrace(None)
                left = -1
                where = _where(frame)
                raise KeyboardInterrupt
            left -= 1
        return opcode

    def call(frame: FrameType, event: str, argument: object) -> Any:
        if left >= 0 and frame.f_code.co_filename.startswith(victims.FOLDER):
            frame.f_trace_opcodes = True
            return opcode
        return None

    sys.settrace(call)
    _run(job)
    return where


def without_memory(count: int, job: Job) -> str:
    """Lets one allocation of the job fail: "failed", or "finished" if the job did not mind."""
    assert testcapi is not None
    sys.unraisablehook = lambda info: None  # finalisers run out of memory too
    testcapi.set_nomemory(count, count + 1)
    try:
        job()
    except Exception:  # noqa: BLE001  MemoryError, and what the standard library makes of it ("can't allocate lock")
        return "failed"
    finally:
        testcapi.remove_mem_hooks()
    return "finished"
