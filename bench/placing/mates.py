"""Who served whom, from the outside: requests in one batch get their tokens in the same instants."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

INSTANT_S = 0.004
"""Tokens of one step arrive this close together."""
TOGETHER = 0.5
"""Part of the tokens of two requests, while both draw, from which on one batch is believed: by chance it is a tenth."""


def mates(times: Sequence[Sequence[float]]) -> list[int]:
    """The number of the batch of each request, from the seconds (ascending) at which its tokens came."""
    batch = list(range(len(times)))
    for i, own in enumerate(times):
        for j in range(i):
            if batch[i] != batch[j] and _alike(own, times[j]) > TOGETHER:
                old = batch[i]
                batch = [batch[j] if b == old else b for b in batch]
    return batch


def _alike(one: Sequence[float], other: Sequence[float]) -> float:
    first, last = max(one[0], other[0]), min(one[-1], other[-1])
    both = [t for t in one if first <= t <= last]
    return sum(_near(t, other) for t in both) / len(both) if both else 0.0


def _near(at: float, times: Sequence[float]) -> bool:
    i = bisect_left(times, at)
    return any(abs(t - at) < INSTANT_S for t in times[max(0, i - 1) : i + 1])
