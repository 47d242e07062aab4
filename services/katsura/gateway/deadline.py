"""The moment at which a request ends, whatever it is doing."""

from __future__ import annotations

from katsura.domain.clock import Clock
from katsura.domain.errors import DeadlineExceededError


class Deadline:
    """Counts down from `timeout_s` seconds."""

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self._clock = clock
        self._end_s = clock.monotonic_s() + timeout_s
        self.timeout_s = timeout_s

    def left_s(self) -> float:
        """Seconds that are left.

        Raises:
            DeadlineExceededError: none are.
        """
        left = self._end_s - self._clock.monotonic_s()
        if left <= 0:
            raise DeadlineExceededError(
                f"the request took longer than its {self.timeout_s:g} s; ask for more by the x-request-timeout-s header"
            )
        return left
