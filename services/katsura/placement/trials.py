"""Which configuration to try next when a planner may run some of its proposals before it commits.

Predictions rank well and place a step against a hard limit badly: a model that is off by a sixth picks a configuration
that breaks its limit, or wastes half the device to be safe. One run tells more than any model of an engine never seen.
`next_trial` asks for the run with the most to gain, `settle` takes the best of what was run. Called by
`bench/placement.py`; whoever can run a configuration may call it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from katsura.placement.cost import Coefficients, Terms
from katsura.placement.fit import Belief, Point, believe

_WORTH_TRYING: Final = 0.01
"""Expected gain, as a part of the best that was run, below which another run is not worth it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One configuration of a service: its step, and the sequences at once per device (or per dollar)."""

    terms: Terms
    sequences: float

    def rate(self, step_s: float) -> float:
        """Tokens per second and device at this step time."""
        return self.sequences / step_s


def beliefs(candidates: Sequence[Candidate], tried: Mapping[int, float], prior: Coefficients) -> list[Belief]:
    """What every candidate's step is thought to last, given the seconds of those that ran (by index)."""
    seen = [Point(candidates[i].terms, seconds, candidates[i].sequences, 1.0) for i, seconds in tried.items()]
    return believe(seen, prior, [c.terms for c in candidates])


def next_trial(
    candidates: Sequence[Candidate], tried: Mapping[int, float], prior: Coefficients, limit_s: float
) -> int | None:
    """The candidate with the largest expected gain over what ran and kept `limit_s`; None: nothing is worth a run."""
    proven = max((candidates[i].rate(s) for i, s in tried.items() if s <= limit_s), default=0.0)
    best, gain = None, _WORTH_TRYING * proven
    for i, (candidate, belief) in enumerate(zip(candidates, beliefs(candidates, tried, prior), strict=True)):
        keeps = 0.5 * (1 + math.erf(math.log(limit_s / belief.seconds) / belief.spread / math.sqrt(2)))
        expected = keeps * (candidate.rate(min(belief.seconds, limit_s)) - proven)
        if i not in tried and expected > gain:
            best, gain = i, expected
    return best


def settle(candidates: Sequence[Candidate], tried: Mapping[int, float], limit_s: float) -> int:
    """Of what ran, the fastest that keeps `limit_s`; where none does, the one that misses it least."""
    kept = [i for i, s in tried.items() if s <= limit_s]
    if kept:
        return max(kept, key=lambda i: candidates[i].rate(tried[i]))
    return min(tried, key=lambda i: tried[i])
