from collections.abc import Callable
from typing import final

from typing_extensions import disjoint_base

from mmapds._native.region import Mapping
from mmapds._native.results import Pins
from mmapds._native.writer import Writer

@final
class Counts(Pins): ...

@disjoint_base
class Crate(Writer):
    def _open_crate(
        self,
        control: Mapping,
        *,
        verify: bool,
        unregistered: bool,
        checksum: Callable[[memoryview], int] | None,
    ) -> None: ...
    def _start_crate(self) -> None: ...
