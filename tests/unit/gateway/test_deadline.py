from __future__ import annotations

import pytest

from katsura.domain.errors import DeadlineExceededError
from katsura.gateway.deadline import Deadline


class Clock:
    now = 100.0

    def wall_ms(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return self.now


def test_it_counts_down_and_then_says_so() -> None:
    clock = Clock()
    deadline = Deadline(clock, 5.0)
    clock.now = 103.0
    assert deadline.left_s() == 2.0
    clock.now = 105.0
    with pytest.raises(DeadlineExceededError, match="x-request-timeout-s"):
        deadline.left_s()
