"""Inspection of the files of ``protocol="mmap-sync"``, which are those of the Rust crate: a state of 16 bytes and two
data files without headers. There is little to check: the version word says which file and how many bytes of it. Its 24
bits of checksum are xxh3's if this package wrote them, and otherwise a function's that is not known here."""

from __future__ import annotations

import os
import struct

from mmapds import files
from mmapds.errors import IncompatibleFormat
from mmapds.inspection._base import (
    Finding,
    Report,
    check_temporaries,
    described_file,
    described_neighbour,
    hash_range,
    opened,
    until_still,
    without_path,
)

STATE_SIZE = 16
_STATE = struct.Struct("<Q2I")
_SIZE_BITS, _CHECKSUM_BITS = 39, 24


class State:
    """The state file, decoded."""

    def __init__(self, data: bytes) -> None:
        self.version, *readers = _STATE.unpack(data)
        self.readers: list[int] = readers
        self.index = self.version & 1
        self.size = self.version >> 1 & (1 << _SIZE_BITS) - 1
        self.checksum = self.version >> 1 + _SIZE_BITS


def _data_path(prefix: str, index: int) -> str:
    return f"{prefix}_data_{index}"


# ---- in words ------------------------------------------------------------------------------------------------------


def describe_state(path: str) -> dict[str, object]:
    """The state file in words."""
    with opened(path) as fd:
        data = os.pread(fd, STATE_SIZE, 0)
        found = {
            "what": "state file of a Synchronizer, as the Rust crate mmap-sync has it",
            **described_file(fd, path),
            "kind": "mmap-sync",
            "writer": {"locked": files.flock_holder(fd) is not None, "holder": files.flock_holder(fd)},
        }
    prefix = path.removesuffix("_state")
    found["data"] = [described_neighbour(_data_path(prefix, index)) for index in (0, 1)]
    if len(data) < STATE_SIZE:
        return found | {"state": "empty: it is being created"}
    state = State(data)
    return found | {
        "version": f"{state.version:016x}",
        "active": state.index if state.version else None,
        "value_size": state.size,
        "checksum": f"{state.checksum:06x}",
        "readers": state.readers,
    }


def describe_data(path: str, prefix: str, index: int) -> dict[str, object]:
    """A data file in words; it has no header, and its state file says all."""
    with opened(path) as fd:
        found = {"what": "data file of a Synchronizer, as the Rust crate mmap-sync has it", **described_file(fd, path)}
    with opened(prefix + "_state") as fd:
        data = os.pread(fd, STATE_SIZE, 0)
    found |= {
        "kind": "mmap-sync data",
        "index": index,
        "state": prefix + "_state",
    }
    if len(data) == STATE_SIZE:
        state = State(data)
        active = bool(state.version) and state.index == index
        found |= {"active": active, "value_size": state.size if active else None}
    return found


# ---- verification --------------------------------------------------------------------------------------------------


def verify(prefix: str) -> list[Finding]:
    """Everything that is wrong with the three files of a prefix."""
    return until_still(lambda: _look(prefix))


def _look(prefix: str) -> tuple[Report, bool]:
    report = Report()
    name = os.path.basename(prefix)
    where = f"{name}_state"
    check_temporaries(report, prefix)
    with opened(prefix + "_state") as fd:
        size = os.fstat(fd).st_size
        data = os.pread(fd, STATE_SIZE, 0)
        if size == 0:
            report.note(where, "is empty: it is being created, or its creator died")
            return report, False
        if size != STATE_SIZE or len(data) != STATE_SIZE:
            raise IncompatibleFormat(
                f"{prefix}_state has {size} bytes; the state file of mmap-sync has {STATE_SIZE}: give another path"
            )
        state = State(data)
        for index, count in enumerate(state.readers):
            if count >= 1 << 31:
                report.warning(where, f"{count} readers of data_{index}: the count went below zero")
        for index in (0, 1):
            _check_data(report, prefix, index, state)
        return report, os.pread(fd, 8, 0) != data[:8]


def _check_data(report: Report, prefix: str, index: int, state: State) -> None:
    path = _data_path(prefix, index)
    where = os.path.basename(path)
    active = bool(state.version) and state.index == index
    try:
        with opened(path) as fd:
            if not active:
                return
            room = os.fstat(fd).st_size
            if state.size > room:
                report.error(where, f"has {room} bytes, and the state says {state.size}: it was cut", passing=True)
                return
            found = hash_range(fd, 0, state.size)
            if found is None:
                report.error(where, f"ends before the {state.size} bytes do that the state says", passing=True)
            elif found & (1 << _CHECKSUM_BITS) - 1 != state.checksum:
                report.note(
                    where,
                    f"its checksum 0x{state.checksum:06x} is not that of xxh3: another function made it (the crate has "
                    "WyHash), so it could not be checked",
                    passing=True,
                )
    except FileNotFoundError:
        if active:
            report.error(where, "is missing, and the state says that it holds the value", passing=True)
    except (IncompatibleFormat, IsADirectoryError) as error:
        report.error(where, without_path(error, path))
