"""The mutants are found, have names of their own, and those that are argued still exist, with a reason."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import run
from mutants import find, transform

NATIVE = Path(__file__).parents[2] / "mmapds" / "_native"


def test_every_mutant_has_a_name_and_a_number_of_its_own() -> None:
    mutants = [mutant for _, _, found in find(NATIVE) for mutant in found]
    assert [mutant.number for mutant in mutants] == list(range(1, len(mutants) + 1))
    assert len({mutant.name for mutant in mutants}) == len(mutants) > 600
    assert {mutant.kind for mutant in mutants} == {"order", "store", "fence", "lock", "sync", "check"}


def test_what_is_argued_is_a_mutant_and_has_a_reason() -> None:
    names = {mutant.name for _, _, found in find(NATIVE) for mutant in found}
    argued = run.argued()
    assert argued.keys() <= names, f"gone, or written otherwise by now: {sorted(argued.keys() - names)}"
    assert [name for name, reason in argued.items() if len(reason) < 40] == []


def test_what_becomes_of_a_header_and_of_a_module() -> None:
    header = """static inline int f(uint64_t *p)
{
    if (*p == 0)
        return 1;
    store_seq_cst_u64(p, 1);
    return msync(p, 8, MS_SYNC);
}"""
    text, mutants = transform("x.h", header, 1)
    assert [mutant.kind for mutant in mutants] == ["check", "store", "order", "sync"]
    assert text.split("\n")[2:] == [
        "    if (!MUTANT(1) && (*p == 0))",
        "        return 1;",
        "    MUTANT(2) ? (void)0 : MUTANT(3) ? (void)(store_relaxed_u64(p, 1)) : (void)(store_seq_cst_u64(p, 1));",
        "    return (MUTANT(4) ? 0 : msync(p, 8, MS_SYNC));",
        "}",
    ]
    module = """cdef int f(self):
    self.mapping.check()
    if self.size < 0:
        raise ValueError
"""
    text, mutants = transform("x.pyx", module, 5)
    assert [(mutant.number, mutant.function, mutant.kind) for mutant in mutants] == [
        (5, "f", "check"),
        (6, "f", "check"),
    ]
    assert "    if not MUTANT(5): self.mapping.check()\n    if not MUTANT(6) and (self.size < 0):\n" in text
