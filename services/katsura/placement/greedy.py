"""The plan that a careful person would make first: each service on what serves it cheapest, while there is room.

It starts the solver, so that a plan exists at any time, and it is a baseline in `bench/placement.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from katsura.placement.patterns import Column
from katsura.placement.problem import ANYWHERE, NodeClass, Problem, Service
from katsura.placement.program import Built, exact_instances, instances_min, node_cost

Rank = Callable[[Column], float]


def share_cost(problem: Problem, classes: dict[str, NodeClass], column: Column) -> float:
    """What a column's part of its nodes costs per request: by accelerators, or by cores on CPU nodes."""
    total = 0.0
    for m in column.members:
        c = classes[m.node_class]
        part = m.accelerators / c.accelerators if c.accelerators else m.cores / c.cores
        total += m.count * part * node_cost(problem, c)
    return total / column.requests_s


def greedy(
    problem: Problem, columns: Sequence[Column], rank: Rank | None = None, running: Mapping[str, int] | None = None
) -> list[int]:
    """Counts by column: services in order of demand, each by ascending `rank` (default: `share_cost`).

    Instances that are `running` (by column key) come first, as far as they fit and are needed.
    """
    classes = {c.name: c for c in problem.classes}
    chosen = rank or (lambda column: share_cost(problem, classes, column))
    free = {
        c.name: [c.accelerators * len(c.nodes), c.cores * len(c.nodes), c.ram_bytes * len(c.nodes)]
        for c in problem.classes
    }
    counts = [0] * len(columns)
    quota = dict(problem.quotas)
    fills = {s.name: _Fill(s) for s in problem.services}
    order = sorted(problem.services, key=lambda s: (exact_instances(s) is None, -s.requests_s, s.name))
    for held in (True, False) if running else (False,):
        for service in order:
            mine = [i for i, c in enumerate(columns) if c.service == service.name]
            if service.spot_share < 1 and not held:
                mine = [i for i in mine if not columns[i].spot]
            fill = fills[service.name]
            for i in sorted(mine, key=lambda i: (chosen(columns[i]), i)):
                limit = (running or {}).get(columns[i].key, 0) if held else 1 << 30
                while counts[i] < limit and fill.wants(columns[i]) and _take(columns[i], free, classes, quota):
                    counts[i] += 1
                    fill.add(columns[i])
    return counts


class _Fill:
    """What a service still lacks."""

    def __init__(self, service: Service) -> None:
        self.exact, self.wide = exact_instances(service), service.domains_min
        self.missing, self.least = service.requests_s, self.exact or instances_min(service)
        self.domains: set[str] = set()

    def wants(self, column: Column) -> bool:
        """Whether one more is needed, and not in a new domain."""
        spread_left = self.wide - len(self.domains)
        repeats = column.domain in self.domains and column.domain != ANYWHERE
        if repeats and spread_left > 0 and self.least <= spread_left:
            return False
        return self.least > 0 or (self.exact is None and self.missing > 1e-9)

    def add(self, column: Column) -> None:
        """One more stands."""
        self.least -= 1
        self.missing -= column.requests_s
        self.domains.add(column.domain)


def _take(column: Column, free: dict[str, list[float]], classes: dict[str, NodeClass], quota: dict[str, float]) -> bool:
    use: dict[str, list[float]] = {}
    named: dict[str, float] = {}
    for m in column.members:
        row = use.setdefault(m.node_class, [0.0, 0.0, 0.0])
        for k, amount in enumerate((m.accelerators, m.cores, m.ram_bytes)):
            row[k] += m.count * amount
        c = classes[m.node_class]
        device, units = (c.device, m.accelerators) if c.device is not None else (c.core, m.cores)
        named[device.name] = named.get(device.name, 0.0) + m.count * units
    if any(amount > free[name][k] for name, row in use.items() for k, amount in enumerate(row)):
        return False
    if any(units > quota.get(name, units) for name, units in named.items()):
        return False
    for name, row in use.items():
        free[name] = [have - amount for have, amount in zip(free[name], row, strict=True)]
    for name in named:
        if name in quota:
            quota[name] -= named[name]
    return True


def as_start(problem: Problem, columns: Sequence[Column], counts: Sequence[int], built: Built) -> tuple[float, ...]:
    """`counts` as a solution of the program: nodes, unmet demand and domains follow from them."""
    classes = {c.name: c for c in problem.classes}
    values = [0.0] * len(built.program.names)
    use = {name: [0.0, 0.0, 0.0] for name in classes}
    served = {s.name: 0.0 for s in problem.services}
    held: dict[str, int] = {s.name: 0 for s in problem.services}
    domains: set[str] = set()
    for i, (column, count) in enumerate(zip(columns, counts, strict=True)):
        values[built.z[i]] = count
        if not count:
            continue
        served[column.service] += count * column.requests_s
        held[column.service] += count
        domains.add(f"b:{column.service}@{column.domain}")
        for m in column.members:
            for k, amount in enumerate((m.accelerators, m.cores, m.ram_bytes)):
                use[m.node_class][k] += count * m.count * amount
    for name, c in classes.items():
        have = (c.accelerators, c.cores, c.ram_bytes)
        values[built.y[name]] = max(-(-u // h) if h and u > 1e-9 else 0 for u, h in zip(use[name], have, strict=True))
    index = {name: i for i, name in enumerate(built.program.names)}
    rows = set(built.program.row_names)
    for service in problem.services:
        part = 1 - served[service.name] / service.requests_s if service.requests_s else 0.0
        least = exact_instances(service) or instances_min(service)
        spread = sum(name in index for name in domains if name.startswith(f"b:{service.name}@"))
        short = (1 - spread / service.domains_min) if f"domains:{service.name}" in rows else 0.0
        values[built.w[service.name]] = min(1.0, max(0.0, part, 1 - held[service.name] / least, short))
    for name in domains:
        if name in index:
            values[index[name]] = 1.0
    held_of = dict(zip(built.program.row_names, built.program.row_high, strict=True))
    for i, name in enumerate(built.program.names):
        if name.startswith("m:"):
            values[i] = max(0.0, values[index["z:" + name[2:]]] - held_of["moved:" + name[2:]])
        if name == "theta":
            values[i] = 1.0
    return tuple(values)
