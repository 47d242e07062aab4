"""The cost of a frame from timings of the member itself (experts.md 5: T = b * units + c * token-units)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from katsura.domain.cost import FrameCost


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed call: units activated, (token, unit) pairs, seconds."""

    units: int
    token_units: int
    seconds: float


def fit(samples: Sequence[Sample]) -> FrameCost:
    """Least squares of the relative error, so that short calls count as much as long ones; neither cost is negative."""
    rows = [(s.units / s.seconds, s.token_units / s.seconds) for s in samples]
    uu, ut, tt = (sum(a * b for a, b in pairs) for pairs in (
        [(u, u) for u, _ in rows], [(u, t) for u, t in rows], [(t, t) for _, t in rows])
    )  # fmt: skip
    u1, t1 = sum(u for u, _ in rows), sum(t for _, t in rows)
    det = uu * tt - ut * ut
    unit_s, token_s = ((u1 * tt - t1 * ut) / det, (t1 * uu - u1 * ut) / det) if det > 0 else (u1 / uu, 0.0)
    if unit_s < 0:
        return FrameCost(0.0, t1 / tt)
    if token_s < 0:
        return FrameCost(u1 / uu, 0.0)
    return FrameCost(unit_s, token_s)
