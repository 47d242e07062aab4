"""Time as an argument: pure code never reads a clock, adapters hand one in."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Where time comes from. Tests hand in one that they turn by hand."""

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch: for records that people read."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some fixed point: for deadlines and durations."""
        ...
