"""What is put into the native code, one at a time, to see whether a test notices.

Promises
    Every fence, check, sync, lock and store of the native code that this finds by its shape becomes a mutant: a store
    or a sync that is left out, a condition that is never true, a memory order that is weakened. All are built into
    one variant of the package at once, each behind a number; ``MMAPDS_MUTANT`` says which of them is on. So a
    thousand mutants cost one build.

    `find` numbers them; the numbers are those of one state of the sources, the names (file, function, text) stay.

Prior art: mutant schemata (Untch, Offutt and Harrold); mull and universalmutator for C. Rejected: those, because they
do not know Cython's sources, and change arithmetic, of which most does not matter, rather than what protects.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HEADERS = (
    "lockword.h", "leftright.h", "mmapsync.h", "counters.h", "queueindex.h", "queueput.h", "queue.h", "snapshot.h",
    "snapcursor.h", "process.h",
)  # fmt: skip
"""The transitions; all that is found in them is a mutant."""

MODULES = (
    "lockword.pyx", "leftright.pyx", "writer.pyx", "mmapsync.pyx", "counters.pyx", "counter.pyx", "cells.pyx",
    "extents.pyx", "queue.pyx", "queueput.pyx", "queuetake.pyx", "queuescan.pyx", "queueview.pyx", "claim.pyx",
    "snaplayer.pyx", "snapbuild.pyx", "snapcursor.pyx", "snapmap.pyx", "region.pyx", "atomic.pyx", "results.pyx",
)  # fmt: skip
"""What calls them; here stores, locks, syncs, looks for lost mappings, and refusals."""

_WEAKER = {"store_seq_cst_u64": "store_relaxed_u64"}
"""Not the loads, and not release: on x86-64 these are the same instructions when they are relaxed, so no run can tell
the mutant. ThreadSanitizer can (tests/model/tsan/), for what is in its harness."""
_ORDERED = re.compile(r"\b(" + "|".join(_WEAKER) + r")\(")
_SYNC = re.compile(r"(?<![.\w])(?:msync|fdatasync|counters_sync|queue_sync_left|synced)\((?:[^()]|\([^()]*\))*\)")
"""A sync whose outcome is looked at: its mutant reports success, and has done nothing."""
_STATEMENT = re.compile(
    r"^(\s*)((?:store|fetch|exchange)_\w+\(.*\)|fence_\w+\(\)|kernel_(?:futex_wake|lock|unlock)\w*\(.*\)"
    r"|__atomic_(?:store_n|thread_fence)\(.*\)|msync\(.*\)|kernel_\w*sync\w*\(.*\));(.*)$"
)
_IF = re.compile(r"^(\s*)((?:else )?if) \((.*)\)( \{)?(\s*/\*.*\*/)?$")
_LEAVES = re.compile(r"^\s*(return|break|continue|goto)\b")
_FUNCTION = re.compile(r"^(?:static|[a-z]).*?\b(\w+)\(")

_PYX_STATEMENT = re.compile(
    r"^(\s+)((?:store|fetch|exchange)_\w+\(.*\)|fence_\w+\(\)|kernel_(?:futex_wake|lock|unlock)\w*\(.*\)"
    r"|[\w.]+\.(?:check|check_lost|check_hash|ensure|verify|synced|_?sync_?\w*)\(.*\)|msync\(.*\))(\s*#.*)?$"
)
_PYX_IF = re.compile(r"^(\s+)(if|elif) (.*):(\s*#.*)?$")
_REFUSES = re.compile(r"^\s*(raise\b|raise_\w+\(|return False\b|return SNAP_DAMAGED|return -1\b|continue\b)")
_PYX_FUNCTION = re.compile(r"^\s*(?:cdef|cpdef|def)\b[^=]*?\b(\w+)\(")
_MARK = "MUTANT"


class Mutant(NamedTuple):
    number: int
    file: str
    function: str
    line: int
    kind: str  # "order", "store", "fence", "lock", "sync", "check"
    text: str

    @property
    def name(self) -> str:
        """What it is called in reports and in the list of what is argued; it survives changes elsewhere."""
        return f"{self.file}: {self.function}: {self.kind}: {self.text}"


def _kind(text: str) -> str:
    if "fence" in text:
        return "fence"
    if "sync" in text and not text.startswith(("store", "fetch", "exchange")):
        return "sync"
    if text.startswith(("kernel", "__atomic")):
        return "lock"
    return "store" if text.startswith(("store", "fetch", "exchange")) else "check"


def transform(name: str, text: str, first: int) -> tuple[str, list[Mutant]]:
    """The source with all its mutants in it, numbered from `first` on."""
    return _header(name, text, first) if name.endswith(".h") else _module(name, text, first)


def _balanced(text: str) -> bool:
    return text.count("(") == text.count(")")


def _header(name: str, text: str, first: int) -> tuple[str, list[Mutant]]:
    lines, out, found = text.split("\n"), list[str](), list[Mutant]()
    function, comment = "", False

    def new(at: int, kind: str, what: str) -> int:
        found.append(Mutant(first + len(found), name, function, at + 1, kind, " ".join(what.split())))
        return found[-1].number

    for at, line in enumerate(lines):
        if comment or line.lstrip().startswith("/*"):
            comment = "*/" not in line
            out.append(line)
            continue
        if (began := _FUNCTION.match(line)) and not line.rstrip().endswith(";"):
            function = began[1]
        code = line
        if line.startswith(" ") and function:
            if (made := _STATEMENT.match(line)) and _balanced(made[2]):
                number = new(at, _kind(made[2]), made[2])
                done = f"(void)({made[2]})"
                if order := _ORDERED.match(made[2]):
                    weaker = _WEAKER[order[1]] + made[2][order.end() - 1 :]
                    done = f"{_MARK}({new(at, 'order', made[2])}) ? (void)({weaker}) : {done}"
                code = f"{made[1]}{_MARK}({number}) ? (void)0 : {done};{made[3]}"  # no `if`: an else may follow
            elif (asked := _IF.match(line)) and _balanced(asked[3]) and _block_has(lines, at, _LEAVES):
                number = new(at, "check", f"if ({asked[3]})")
                code = f"{asked[1]}{asked[2]} (!{_MARK}({number}) && ({asked[3]})){asked[4] or ''}{asked[5] or ''}"
            for synced in () if _STATEMENT.match(line) else _SYNC.finditer(line):
                number = new(at, "sync", line.strip())
                code = code.replace(synced[0], f"({_MARK}({number}) ? 0 : {synced[0]})")
        out.append(code)
    return "\n".join(out), found


def _block_has(lines: list[str], at: int, what: re.Pattern[str]) -> bool:
    """Whether a line of the block under the condition, not one of a block within that, is such a one."""
    depth = len(lines[at]) - len(lines[at].lstrip())
    inner = 0
    for line in lines[at + 1 :]:
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent <= depth:
            return False
        inner = inner or indent
        if indent == inner and what.match(line):
            return True
    return False


def _module(name: str, text: str, first: int) -> tuple[str, list[Mutant]]:
    lines, out, found = text.split("\n"), list[str](), list[Mutant]()
    function, quoted, declared = "", False, False

    def new(at: int, kind: str, what: str) -> int:
        found.append(Mutant(first + len(found), name, function, at + 1, kind, " ".join(what.split())))
        return found[-1].number

    for at, line in enumerate(lines):
        quotes = line.count('"""')
        if quoted or quotes == 1:
            quoted = quoted != (quotes == 1)
            out.append(line)
            continue
        if not declared and re.match(r"(cdef|def|class|@|ctypedef)\b|@", line):
            out.append('cdef extern from "platform.h":\n    bint MUTANT "MUTANT" (int number) noexcept nogil\n')
            declared = True
        if began := _PYX_FUNCTION.match(line):
            function = began[1]
        code = line
        if function and (made := _PYX_STATEMENT.match(line)) and _balanced(made[2]):
            number = new(at, _kind(made[2]), made[2])
            code = f"{made[1]}if not {_MARK}({number}): {made[2]}"
        elif function and (asked := _PYX_IF.match(line)) and _balanced(asked[3]) and _block_has(lines, at, _REFUSES):
            number = new(at, "check", f"{asked[2]} {asked[3]}")
            code = f"{asked[1]}{asked[2]} not {_MARK}({number}) and ({asked[3]}):"
        elif function and not _PYX_FUNCTION.match(line):
            for synced in _SYNC.finditer(line):
                number = new(at, "sync", line.strip())
                code = code.replace(synced[0], f"(0 if {_MARK}({number}) else {synced[0]})")
        out.append(code)
    return "\n".join(out), found


def find(native: Path) -> Iterator[tuple[str, str, list[Mutant]]]:
    """(file, its text with the mutants, the mutants) of each file that has some."""
    first = 1
    for name in (*HEADERS, *MODULES):
        text, mutants = transform(name, (native / name).read_text("utf-8"), first)
        first += len(mutants)
        seen = Counter[str]()
        for at, mutant in enumerate(mutants):
            seen[mutant.name] += 1
            if (nth := seen[mutant.name]) > 1:
                mutants[at] = mutant._replace(text=f"{mutant.text} ({nth})")
        yield name, text, mutants


SWITCH = """
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
static int mutant_on;
static char *mutant_reached; /* a byte for each */
static __attribute__((constructor)) void mutant_begin(void)
{
    const char *number = getenv("MMAPDS_MUTANT"), *reached = getenv("MMAPDS_MUTANTS_REACHED");
    int fd = reached ? open(reached, O_RDWR | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *bytes = mmap(0, 1 << 14, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        mutant_reached = bytes == MAP_FAILED ? 0 : (char *)bytes;
        close(fd);
    }
    mutant_on = number ? atoi(number) : 0;
}
static inline int mutant_is(int number)
{
    if (__builtin_expect(mutant_reached != 0, 0))
        __atomic_store_n(&mutant_reached[number], 1, __ATOMIC_RELAXED);
    return mutant_on == number;
}
#define MUTANT(number) mutant_is(number)
"""
"""Goes into platform.h, which every other header includes first. With the name of a file of 16 KiB in
``MMAPDS_MUTANTS_REACHED``, each mutant's byte there is set when the run comes by its place."""
