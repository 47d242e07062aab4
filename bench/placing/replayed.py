"""What plans are worth in use: one made-up trace of agent sessions, simulated under each. Simulated, not measured."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from katsura.placement.pack import pack
from katsura.placement.patterns import Column, Patterns
from katsura.placement.plan import Plan
from katsura.placement.problem import ModelService, Problem
from katsura.placement.search import Solved
from katsura.placement.simulate import simulate
from katsura.placement.tally import tally
from katsura.testing.clusters import agent_trace


@dataclass(frozen=True)
class Replayed:
    """Dollars per million output tokens, the part of the requests that kept their times, and how many there were."""

    usd_per_million: float
    kept: float
    requests: int


def plan_of(problem: Problem, columns: Sequence[Column], counts: Sequence[int]) -> Plan:
    """`counts` on nodes; what finds no room is left out."""
    counted = tuple((c, n) for c, n in zip(columns, counts, strict=True) if n)
    solved = Solved(counted, 0.0, "given", problem.classes, tuple(columns), {})
    return tally(problem, Patterns(problem, {}, ()), solved, pack(counted, problem.classes))


def replayed(made: Plan, problem: Problem, seconds: float, seed: int) -> Replayed:
    """Requests at the rate of the problem's demand for so many seconds of their time."""
    models = [s for s in problem.services if isinstance(s, ModelService)]
    traces = [agent_trace(s, s.requests_s, seconds, seed + i) for i, s in enumerate(models)]
    got = simulate(made, problem, heapq.merge(*traces, key=lambda a: a.at_s))
    requests = sum(o.requests for o in got.services.values())
    kept = sum(o.slo_kept * o.requests for o in got.services.values())
    tokens = sum(o.tokens_s * got.seconds for o in got.services.values())
    return Replayed(got.usd / tokens * 1e6, kept / requests, requests)
