"""A Synchronizer against a plain reference: a list of values, and who holds what.

Several handles in the three modes are opened, written, read, held, loaded, released and closed in any order. After each
step the files say exactly what the reference expects: the version, the number of pins on each index, the slots in use.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from typing import Any

import pytest
import syncfiles
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from mmapds import NotInitialised, Synchronizer, WriterBusy

VALUES = st.builds(lambda seed, times: seed * times, st.binary(max_size=24), st.sampled_from([1, 1, 1, 400, 3000]))


@dataclass(eq=False)
class Handle:
    """A handle, and what it must see."""

    real: Synchronizer
    mode: str
    own: list[bytes | None] = field(default_factory=list)  # private: its versions; None: before it was opened
    returned: int = 0  # the version it read last
    loaded: tuple[int, Any] = (0, None)
    closed: bool = False
    registered: bool = False


@dataclass(eq=False)
class Held:
    """A result or a view that somebody keeps."""

    handle: Handle
    thing: Any
    version: int
    value: bytes

    @property
    def pins(self) -> bool:
        return self.handle.mode == "shared"


class SynchronizerModel(RuleBasedStateMachine):
    handles = Bundle("handles")
    held = Bundle("held")

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="mmapds-model-")
        self.prefix = os.path.join(self.folder.name, "value")
        self.values: list[bytes] = []
        self.writer: Handle | None = None
        self.open: list[Handle] = []
        self.keeping: list[Held] = []
        Synchronizer(self.prefix, codec="raw").close()

    def teardown(self) -> None:
        for held in self.keeping:
            held.thing.release()
        for handle in self.open:
            handle.real.close()
        self.open.clear()
        with Synchronizer(self.prefix, mode="readonly") as last:
            last.check()
            assert last.version == len(self.values)
            assert last.load(default=None) == (self.values[-1] if self.values else None)
        assert syncfiles.slots_in_use(self.prefix) == []
        self.folder.cleanup()

    def seen(self, handle: Handle) -> list[Any]:
        return handle.own if handle.mode == "private" else self.values

    # ---- handles ----

    @precondition(lambda self: len(self.open) < 8)
    @rule(target=handles, mode=st.sampled_from(["shared", "shared", "shared", "readonly", "private"]))
    def open_handle(self, mode: Any) -> Handle:
        handle = Handle(Synchronizer(self.prefix, mode=mode), mode)
        if mode == "private" and self.values:
            handle.own = [None] * (len(self.values) - 1) + self.values[-1:]
        self.open.append(handle)
        return handle

    @rule(handle=consumes(handles))
    def close_handle(self, handle: Handle) -> None:
        handle.real.close()
        handle.closed = True
        self.open.remove(handle)
        if self.writer is handle:
            self.writer = None
        with pytest.raises(ValueError, match="closed"):
            handle.real.read()

    # ---- writing ----

    @rule(handle=handles, value=VALUES, as_array=st.booleans())
    def write(self, handle: Handle, value: bytes, as_array: bool) -> None:
        given = bytearray(value) if as_array else value
        if handle.mode == "readonly":
            with pytest.raises(PermissionError):
                handle.real.write_bytes(given)
        elif handle.mode == "private":
            assert tuple(handle.real.write_bytes(given, 0.0)) == (len(value), False)
            handle.own.append(value)
        elif self.writer not in (None, handle):
            with pytest.raises(WriterBusy):
                handle.real.write_bytes(given, 0.0)
        else:
            version = len(self.values) + 1
            in_the_way = any(held.pins and held.version & 1 == version & 1 for held in self.keeping)
            assert tuple(handle.real.write_bytes(given, 0.0)) == (len(value), in_the_way)
            self.writer = handle
            self.values.append(value)

    # ---- reading ----

    @rule(target=held, handle=handles, as_view=st.booleans())
    def read(self, handle: Handle, as_view: bool) -> Any:
        values = self.seen(handle)
        handle.registered = handle.registered or handle.mode == "shared"
        if not values:
            with pytest.raises(NotInitialised):
                handle.real.read()
            return multiple()
        r = handle.real.read()
        assert r.version == len(values)
        assert r.switched == (handle.returned != len(values))
        assert r.copied == (handle.mode != "shared")
        assert len(r) == len(values[-1])
        handle.returned = len(values)
        thing = r.data if as_view else r
        if as_view:
            r.release()
        found = Held(handle, thing, len(values), values[-1])
        self.keeping.append(found)
        return found

    @rule(held=consumes(held))
    def release(self, held: Held) -> None:
        held.thing.release()
        self.keeping.remove(held)

    @rule(held=consumes(held))
    def forget(self, held: Held) -> None:
        self.keeping.remove(held)
        held.thing = None

    @rule(handle=handles)
    def load(self, handle: Handle) -> None:
        values = self.seen(handle)
        if not values:
            handle.registered = handle.registered or handle.mode == "shared"
            assert handle.real.load(default="nothing") == "nothing"
            return
        value = handle.real.load()
        assert value == values[-1]
        version, before = handle.loaded
        if version == len(values):
            assert value is before
        else:
            handle.registered = handle.registered or handle.mode == "shared"
            handle.returned = len(values)
        handle.loaded = (len(values), value)

    @rule(handle=handles, behind=st.integers(0, 3))
    def wait(self, handle: Handle, behind: int) -> None:
        version = len(self.seen(handle))
        expected = version if behind and version > max(0, version - behind) else None
        assert handle.real.wait(newer_than=max(0, version - behind), timeout=0) == expected

    # ---- what is true at any time ----

    @invariant()
    def what_is_held_stays(self) -> None:
        for held in getattr(self, "keeping", ()):
            assert bytes(held.thing if isinstance(held.thing, memoryview) else held.thing.data) == held.value, (
                f"version {held.version} changed under its holder; {syncfiles.state(self.prefix)}"
            )

    @invariant()
    def the_file_says_what_the_reference_says(self) -> None:
        if not hasattr(self, "prefix"):
            return
        message = syncfiles.state(self.prefix)
        assert syncfiles.sequence(self.prefix) == len(self.values), message
        pins = syncfiles.pins(self.prefix).values()
        for index in (0, 1):
            expected = sum(held.pins and held.version & 1 == index for held in self.keeping)
            assert sum(counts[index] for counts in pins) == expected, message
        holding = {id(held.handle) for held in self.keeping if held.pins}
        alive = {id(handle) for handle in self.open if handle.registered}
        assert len(syncfiles.slots_in_use(self.prefix)) == len(holding | alive), message
        for handle in self.open:
            assert handle.real.version == len(self.seen(handle))
        assert syncfiles.locked(syncfiles.sync(self.prefix), syncfiles.LOCK_WRITER) == (self.writer is not None), (
            message
        )
        assert not syncfiles.locked(syncfiles.sync(self.prefix), syncfiles.LOCK_OPEN), message


SynchronizerModel.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_a_synchronizer_behaves_like_its_reference = SynchronizerModel.TestCase
