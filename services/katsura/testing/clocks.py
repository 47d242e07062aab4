"""A clock that a test turns by hand."""

from __future__ import annotations


class HandClock:
    """Both clocks of `katsura.domain.clock.Clock` show `ms`."""

    ms = 0

    def wall_ms(self) -> int:
        """Milliseconds since the epoch."""
        return self.ms

    def monotonic_s(self) -> float:
        """Seconds since the start."""
        return self.ms / 1000
