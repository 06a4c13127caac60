"""Each method, as the first that comes by after its file was truncated (row 9): `MappingLost`, or what it always says.

The other tests of row 9 use one handle for many things; there the first that notices speaks for all. Here each method
meets the cut file alone, with a handle that was in use before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import snapdisk
from cutkinds import KINDS

from mmapds import CorruptionError, MappingLost, SnapshotMap


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("mode", ["shared", "readonly", "another boot's, readonly", "private"])
@pytest.mark.parametrize("kind", KINDS)
def test_r09_each_method_is_the_first_to_meet_a_cut_file(tmp_path: Path, kind: str, mode: str) -> None:
    cut = KINDS[kind]
    template = tmp_path / "template"
    template.mkdir()
    cut.make(str(template / "it"))
    wrong, raised = [], 0
    for number, (name, job) in enumerate(cut.jobs.items()):
        expected: object = None
        for what, size in (("", 0), *((what, size) for what in cut.files(str(template / "it")) for size in (0, 4196))):
            folder = tmp_path / f"{number}-{what}-{size}"
            shutil.copytree(template, folder)
            path = str(folder / "it")
            if mode == "readonly":  # a copy counts for another boot's, until somebody may recover it
                cut.settle(path)
            handle = cut.open(path, mode.rpartition(" ")[2])
            if what:
                file = cut.files(path)[what]
                os.truncate(file, min(size, os.path.getsize(file)))
            try:
                found = job(handle)
            except (MappingLost, CorruptionError):
                raised += 1
                found = expected
            except (OSError, TypeError, IndexError) as error:  # what is not for this mode
                found = type(error)
            if not what:
                expected = found
            elif found != expected:
                wrong.append(f"{name}, {what} cut to {size}: {str(found)[:80]!r} for {str(expected)[:80]!r}")
            del handle
    assert not wrong, "\n".join(wrong)
    assert (
        raised or mode == "private" or kind == "Queue"
    )  # of another boot's queue, and of what is private, there is a copy


WALKS: dict[str, Callable[[Any], object]] = {
    "first": lambda m: m.first(),
    "values": lambda m: next(iter(m.values())),
    "items": lambda m: next(iter(m.items())),
    "range": lambda m: next(m.range("a")),
}


@pytest.mark.parametrize("walk", WALKS)
def test_r09_the_first_value_of_a_walk_is_no_zeros(tmp_path: Path, walk: str) -> None:
    """Raw values, which no codec would refuse."""
    job, big = WALKS[walk], bytes(range(1, 251)) * 80
    path = str(tmp_path / "map")
    SnapshotMap.build(path, {"big": big, "next": b"1"}, codec="raw")
    with SnapshotMap(path, mode="readonly") as m:
        job(m)
        os.truncate(snapdisk.layers(path)[0], 8192)
        with pytest.raises(MappingLost):
            job(m)


def test_r09_the_first_key_of_a_walk_is_no_zeros(tmp_path: Path) -> None:
    path = str(tmp_path / "map")
    SnapshotMap.build(path, {"k" * 20000: 1, "l": 2})
    with SnapshotMap(path, mode="readonly") as m:
        assert next(iter(m)) == "k" * 20000
        os.truncate(snapdisk.layers(path)[0], 8192)
        with pytest.raises(MappingLost):
            next(iter(m))


@pytest.mark.parametrize("what", ["private", "transaction"])
def test_r09_len_over_a_layer_that_was_cut(tmp_path: Path, what: str) -> None:
    """A table of zeros is none without the key."""
    path = str(tmp_path / "map")
    SnapshotMap.build(path, {f"{n}": n for n in range(100)})
    with pytest.raises(MappingLost), ExitStack() as stack:  # noqa: PT012  either of them, and what ends the block
        m = stack.enter_context(SnapshotMap(path, mode="private" if what == "private" else "shared"))
        t: Any = m if what == "private" else stack.enter_context(m.transaction())
        os.truncate(snapdisk.layers(path)[0], 0)
        t["5"] = 6
        len(t)
