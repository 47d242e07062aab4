"""Other planners on our problems: greedy, fastest first, and a type-per-model program in the manner of Melange."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from katsura.placement.greedy import greedy, share_cost
from katsura.placement.highs import Program, solve
from katsura.placement.patterns import Column
from katsura.placement.problem import Effort, NodeClass, Problem


def cost_of(problem: Problem, columns: Sequence[Column], counts: Sequence[int]) -> tuple[float, float]:
    """Dollars per hour of the opened nodes, and the smallest part of any demand that is served."""
    use: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    served: dict[str, float] = defaultdict(float)
    for column, n in zip(columns, counts, strict=True):
        served[column.service] += n * column.requests_s
        for m in column.members:
            for k, amount in enumerate((m.accelerators, m.cores, m.ram_bytes)):
                use[m.node_class][k] += n * m.count * amount
    usd = 0.0
    for c in problem.classes:
        have = (c.accelerators, c.cores, c.ram_bytes)
        usd += c.hourly_usd * max(math.ceil(u / h - 1e-9) if h else 0 for u, h in zip(use[c.name], have, strict=True))
    return usd, min((served[s.name] / s.requests_s for s in problem.services if s.requests_s), default=1.0)


def melange(problem: Problem, columns: Sequence[Column]) -> list[int]:
    """Types per model by accelerator price, as many as are wanted: no node shapes, no inventory (then cut to it)."""
    classes: dict[str, NodeClass] = {c.name: c for c in problem.classes}
    p = Program()
    z = [p.variable("", share_cost(problem, classes, c) * c.requests_s, 0, 4096, True) for c in columns]
    for s in problem.services:
        p.row("", {z[i]: c.requests_s / s.requests_s for i, c in enumerate(columns) if c.service == s.name}, low=1)
    wanted = solve(p, Effort(gap=0.001, seconds=10)).values or (0.0,) * len(columns)
    rank = {id(c): -w for c, w in zip(columns, wanted, strict=True)}
    return greedy(problem, columns, lambda c: rank[id(c)] * 1e6 + share_cost(problem, classes, c))


def fastest_first(problem: Problem, columns: Sequence[Column]) -> list[int]:
    strength = {c.name: c.device.memory_gb_s if c.device else 0.0 for c in problem.classes}
    return greedy(problem, columns, lambda c: -strength[c.members[0].node_class])
