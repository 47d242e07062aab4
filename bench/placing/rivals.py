"""Other planners on our problems: fastest first, and Melange's program; greedy is `katsura.placement.greedy`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from katsura.placement.greedy import greedy, share_cost
from katsura.placement.highs import Program, solve
from katsura.placement.patterns import Column
from katsura.placement.problem import Effort, NodeClass, Problem

MELANGE_SLICES = 8
"""Its own default."""


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
    """Melange's program (arXiv 2404.14527, 5.3), service by service: the work in slices, each slice on one type.

    min sum_g cost_g y_g with x_sg in {0, 1}, sum_g x_sg = 1, sum_s load_sg x_sg <= y_g, y_g integer. A type is a kind
    of device with its cheapest whole instance; supply is unlimited and nodes have no shape. What it wants is then laid
    over the inventory, round and round the domains; what does not fit is left to `greedy`.
    """
    classes: dict[str, NodeClass] = {c.name: c for c in problem.classes}
    wanted: dict[str, int] = {}
    for s in problem.services:
        types: dict[str, list[Column]] = defaultdict(list)
        for c in columns:
            if c.service == s.name and len(c.members) == 1:
                types[kind_of(classes[c.members[0].node_class])].append(c)
        if not types or not s.requests_s:
            continue
        best = {name: min(cs, key=lambda c: share_cost(problem, classes, c)) for name, cs in types.items()}
        for name, many in _sliced(problem, classes, s.requests_s, best).items():
            alike = [c for c in types[name] if _shape(c) == _shape(best[name])]
            for n in range(many):
                key = alike[n % len(alike)].key
                wanted[key] = wanted.get(key, 0) + 1
    return greedy(problem, columns, running=wanted)


def _sliced(
    problem: Problem, classes: dict[str, NodeClass], demand: float, best: Mapping[str, Column]
) -> dict[str, int]:
    p = Program()
    y = {g: p.variable("", share_cost(problem, classes, c) * c.requests_s, 0, 4096, True) for g, c in best.items()}
    x = [{g: p.variable("", 0, 0, 1, True) for g in best} for _ in range(MELANGE_SLICES)]
    for part in x:
        p.row("", dict.fromkeys(part.values(), 1.0), low=1, high=1)
    for g, c in best.items():
        load = demand / MELANGE_SLICES / c.requests_s
        p.row("", {y[g]: -1.0, **{part[g]: load for part in x}}, high=0)
    values = solve(p, Effort(gap=0.001, seconds=5)).values
    return {g: round(values[i]) for g, i in y.items()} if values else {}


def kind_of(c: NodeClass) -> str:
    return (c.device or c.core).name


def _shape(c: Column) -> tuple[int, float, float]:
    return c.members[0].accelerators, c.members[0].cores, c.requests_s


def fastest_first(problem: Problem, columns: Sequence[Column]) -> list[int]:
    strength = {c.name: c.device.memory_gb_s if c.device else 0.0 for c in problem.classes}
    return greedy(problem, columns, lambda c: -strength[c.members[0].node_class])
