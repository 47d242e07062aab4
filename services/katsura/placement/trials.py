"""Which configuration to try next when a planner may run some of its proposals before it commits.

Predictions rank well and place a step against a hard limit badly: a model that is off by a sixth picks a configuration
that breaks its limit, or wastes half the device to be safe. One run tells more than any model of an engine never seen.
`propose` asks for the run with the most to gain, `settle` takes the best of what was run. `configurations` and
`bench/placement.py` call both.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from katsura.placement.cost import Coefficients, Terms
from katsura.placement.fit import Belief, Point, believe

RUNS: Final = 4
"""Most runs for one choice."""
_WORTH_TRYING: Final = 0.01
"""Expected gain, as a part of the best that was run, below which another run is not worth it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One configuration of a service: its step, the sequences at once per device (or per dollar), and what is thought
    of its device before anything ran on it."""

    terms: Terms
    sequences: float
    prior: Coefficients

    def rate(self, step_s: float) -> float:
        """Tokens per second and device at this step time."""
        return self.sequences / step_s


def beliefs(candidates: Sequence[Candidate], tried: Mapping[int, float]) -> list[Belief]:
    """What every candidate's step is thought to last, given the seconds of those that ran (by index).

    A run tells about the candidates of its own prior only: devices are learned one by one.
    """
    alike: dict[Coefficients, list[int]] = defaultdict(list)
    for i, candidate in enumerate(candidates):
        alike[candidate.prior].append(i)
    found: dict[int, Belief] = {}
    for prior, mine in alike.items():
        own = set(mine)
        seen = [Point(candidates[i].terms, s, candidates[i].sequences, 1.0) for i, s in tried.items() if i in own]
        thought = believe(seen, prior, [candidates[i].terms for i in mine])
        found |= dict(zip(mine, thought, strict=True))
    return [found[i] for i in range(len(candidates))]


def propose(
    candidates: Sequence[Candidate], tried: Mapping[int, float], limit_s: float, runs: int = RUNS
) -> int | None:
    """The candidate to run next; None: `runs` are spent, or nothing is worth another."""
    return next_trial(candidates, tried, limit_s) if len(tried) < runs else None


def next_trial(candidates: Sequence[Candidate], tried: Mapping[int, float], limit_s: float) -> int | None:
    """The candidate with the largest expected gain over what ran and kept `limit_s`; None: nothing is worth a run."""
    proven = max((candidates[i].rate(s) for i, s in tried.items() if s <= limit_s), default=0.0)
    best, gain = None, _WORTH_TRYING * proven
    for i, (candidate, belief) in enumerate(zip(candidates, beliefs(candidates, tried), strict=True)):
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
