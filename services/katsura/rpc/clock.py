"""The machine's clocks, for composition roots; everything else is handed a `domain.clock.Clock`."""

from __future__ import annotations

import time


class SystemClock:
    """`domain.clock.Clock` of this machine."""

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()
