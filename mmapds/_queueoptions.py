"""What a queue may be asked for, checked before anything is made."""

from __future__ import annotations

from collections.abc import Callable

from mmapds import files
from mmapds._native import kernel

RetryDelay = float | Callable[[int], float]

LARGEST = 1 << 40  # bytes of a segment


def check_options(
    asked: dict[str, int | None], durability: str | None, retry_delay: RetryDelay, lease: float | None
) -> None:
    """TypeError or ValueError for what no queue can be."""
    for option, value in asked.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{option} is an int, not {type(value).__name__} {value!r}")
        if value < 0 or value >> 62:
            raise ValueError(f"{option} {value} is not from 0 to 2**62")
    size = asked["segment_size"]
    if size is not None and (size < 2 * kernel.PAGE or size % kernel.PAGE or size > LARGEST):
        raise ValueError(f"segment_size {size} is not a multiple of {kernel.PAGE} from {2 * kernel.PAGE} to {LARGEST}")
    if durability is not None and durability not in files.DURABILITIES:
        raise ValueError(f"durability {durability!r} is not 'process' or 'power'")
    delay: object = retry_delay
    if not callable(delay) and not (isinstance(delay, (int, float)) and delay >= 0):
        raise ValueError(f"retry_delay is seconds, 0 or more, or a function of attempts, not {retry_delay!r}")
    if lease is not None and not isinstance(lease, (int, float)):
        raise TypeError(f"lease is a number of seconds or None, not {type(lease).__name__} {lease!r}")
    if lease is not None and not lease >= 0:
        raise ValueError(f"lease {lease!r} is not 0 or more seconds")
