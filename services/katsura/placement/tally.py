"""What a packed solution costs, promises and is limited by: counts and sums, no decisions.

`planner` calls `tally` once per plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from katsura.placement.agents import summarise
from katsura.placement.cost import ErrorClass
from katsura.placement.greedy import share_cost
from katsura.placement.pack import Packed
from katsura.placement.patterns import Column, Patterns, units_by_kind
from katsura.placement.plan import Instance, Plan, ServiceSummary, TableUse
from katsura.placement.problem import HelperService, ModelService, NodeClass, Objective, Problem, Service
from katsura.placement.program import column_cost, exact_instances, instances_min, node_cost
from katsura.placement.search import Solved
from katsura.placement.tables import campaign_of

LIMITS = {
    "itl": "its time between tokens bounds the batch",
    "ttft": "its time to the first token bounds the batch",
    "kv": "KV memory bounds the batch",
    "table": "the table of measured points bounds the batch",
    "trial": "what was run and kept its times bounds the batch",
    "prefill": "its prefill replicas bound the rate",
}
"""What stops a batch (`Point.limit`), in words; `batch`, the largest that is planned for, limits nothing."""


def tally(problem: Problem, patterns: Patterns, solved: Solved, packed: Packed) -> Plan:
    """The plan that `packed` is, without alternatives."""
    used = packed.nodes_used()
    classes = {c.name: c for c in problem.classes}
    value = objective_value(problem, packed.instances, used) + solved.moves
    hourly = sum(classes[name].hourly_usd * n for name, n in used.items())
    services = tuple(_summary(s, packed.instances, classes) for s in problem.services)
    bound = tightest(problem, value, solved.bound) if solved.unmet else solved.bound
    points = {s.name: s.point for s in services if s.point is not None}
    return Plan(
        instances=packed.instances,
        services=services,
        nodes_used=dict(sorted(used.items())),
        hourly_usd=hourly,
        watts=objective_value(replace(problem, objective=Objective.ENERGY), packed.instances, used),
        objective=problem.objective.value,
        value=value,
        bound=bound,
        gap=gap_of(problem, value, bound),
        pattern_free_bound=pattern_free_bound(replace(problem, classes=solved.classes), solved.columns),
        binding=(*_scarce(solved, packed, any(s.unmet for s in services)), *_limits(problem, packed.instances, hourly)),
        relaxations=(),
        alternatives=(),
        marginals=(),
        refused=patterns.refused,
        unknown=problem.unknown,
        ended=solved.ended,
        columns=len(solved.columns),
        agents=tuple(summarise(runs, points) for runs in problem.agents),
        tables=tuple(_tables(problem)),
    )


def _tables(problem: Problem) -> Iterator[TableUse]:
    for service in problem.services:
        if isinstance(service, ModelService) and service.timed:
            for kind, units in units_by_kind(service, problem).items():
                campaign = campaign_of(service, kind, units, problem.calibration.of(units[0].device))
                if campaign.spots:
                    found, engine = campaign.judged(), next(t.engine for t in service.timed if t.device == kind)
                    yield TableUse(service.name, kind, engine, len(campaign.spots), found.rows, found.median)


def objective_value(problem: Problem, instances: Sequence[Instance], used: Mapping[str, int]) -> float:
    """The objective of a placement: dollars per hour, watts, seconds, or the factor on demand."""
    if problem.objective is Objective.THROUGHPUT:
        return min((_capacity(s.name, instances) / s.requests_s for s in problem.services if s.requests_s), default=0.0)
    classes = {c.name: c for c in problem.classes}
    services = {s.name: s for s in problem.services}
    nodes = sum(node_cost(problem, classes[name]) * n for name, n in used.items())
    return nodes + sum(column_cost(problem, i.column, services[i.column.service], classes) for i in instances)


def pattern_free_bound(problem: Problem, columns: Sequence[Column]) -> float:
    """The objective if every model ran on its cheapest pattern, nodes free to cut and without end.

    Only of the objectives that add up over nodes (cost, energy); 0 for others.
    """
    if problem.objective not in (Objective.COST, Objective.ENERGY):
        return 0.0
    classes = {c.name: c for c in problem.classes}
    total = 0.0
    for service in problem.services:
        if isinstance(service, ModelService):
            prices = [share_cost(problem, classes, c) for c in columns if c.service == service.name]
            total += service.requests_s * min(prices, default=0.0)
    return total


def tightest(problem: Problem, value: float, bound: float) -> float:
    """`bound` on plans of which one with `value` does not serve everything: it rests on the price of what is unmet, and
    rounding, or a plan that serves more, may take it below 0 or past the plan itself."""
    return max(value, bound) if problem.objective is Objective.THROUGHPUT else min(max(0.0, bound), value)


def gap_of(problem: Problem, value: float, bound: float) -> float:
    """How far from `bound` a plan with `value` may be, as a part of the larger one; 0 where it is not."""
    if problem.objective is Objective.THROUGHPUT:
        return max(0.0, (bound - value) / bound) if bound > 0 else 0.0
    return max(0.0, (value - bound) / value) if value > 0 else 0.0


def _capacity(service: str, instances: Sequence[Instance]) -> float:
    return sum(i.column.requests_s for i in instances if i.column.service == service)


def _summary(service: Service, instances: Sequence[Instance], classes: Mapping[str, NodeClass]) -> ServiceSummary:
    mine = [i for i in instances if i.column.service == service.name]
    capacity = _capacity(service.name, mine)
    cost = watts = 0.0
    for place in (p for i in mine for p in i.places):
        c = classes[place.node_class]
        cost += c.hourly_usd * (place.accelerators / c.accelerators if c.accelerators else place.cores / c.cores)
        watts += place.accelerators * c.device.watts if c.device is not None else place.cores * c.core.watts
    points = [i.column.point for i in mine if i.column.point is not None]
    slowest = max(points, key=lambda p: p.itl_s) if points else None
    served = min(service.requests_s, capacity) or capacity
    tokens_s = 0.0 if isinstance(service, HelperService) else served * service.load.output
    return ServiceSummary(
        name=service.name,
        instances=len(mine),
        capacity=capacity,
        demand=service.requests_s,
        unmet=_unmet(service, mine, capacity),
        point=slowest,
        hourly_usd=cost,
        usd_per_million_output=cost / 3600 / tokens_s * 1e6 if tokens_s and mine else None,
        joules_per_token=watts / tokens_s if tokens_s and mine else None,
        error_class=max((p.error_class for p in points), key=list(ErrorClass).index, default=ErrorClass.PRIOR).value,
    )


def _unmet(service: Service, mine: Sequence[Instance], capacity: float) -> float:
    """The largest part of what was asked that is missing: capacity, instances or domains."""
    served = capacity / service.requests_s if service.requests_s else 1.0
    instances = len(mine) / (exact_instances(service) or instances_min(service))
    domains = len({i.column.domain for i in mine}) / service.domains_min
    missing = 1 - min(served, instances, domains)
    return missing if missing > 1e-6 else 0.0


def _scarce(solved: Solved, packed: Packed, short: bool) -> list[str]:
    used = {p.node for i in packed.instances for p in i.places}
    full = [c for c in solved.classes if used.issuperset(c.nodes)]
    return [
        f"all {len(c.nodes)} nodes of {c.name} are in use"
        for c in full
        if short or solved.reduced.get(f"y:{c.name}", 0.0) < -1e-6
    ]


def _limits(problem: Problem, instances: Sequence[Instance], hourly: float) -> list[str]:
    found: list[str] = []
    used = {p.node for i in instances for p in i.places}
    next_usd = min((c.hourly_usd for c in problem.classes if not used.issuperset(c.nodes)), default=0.0)
    if problem.budget_usd is not None and hourly + next_usd > problem.budget_usd:
        found.append(f"the budget of ${problem.budget_usd:.2f}/h")
    spot_free = any(c.spot and not used.issuperset(c.nodes) for c in problem.classes)
    taken = units_used(problem, instances)
    for device, most in problem.quotas.items():
        if taken[device] + 1 > most:
            found.append(f"the quota of {most:g} {device}")
    for service in problem.services:
        held = len({i.column.domain for i in instances if i.column.service == service.name})
        if not held:
            found.append(f"{service.name}: nothing of it has a place")
        elif held < service.domains_min:
            found.append(f"{service.name}: found room in {held} of the {service.domains_min} domains it needs")
        exact = exact_instances(service)
        capacity = _capacity(service.name, instances)
        if exact and capacity < service.requests_s * (1 - 1e-6):
            found.append(f"{service.name}: no more than {exact} of it are asked for")
        if spot_free and service.spot_share < 1 and capacity < service.requests_s * (1 - 1e-6):
            part = f"no more than {service.spot_share:.0%}" if service.spot_share else "none"
            found.append(f"{service.name}: {part} of it may stand on spot nodes")
        limits = {i.column.point.limit for i in instances if i.column.service == service.name and i.column.point}
        found += [f"{service.name}: {LIMITS[limit]}" for limit in sorted(limits) if limit in LIMITS]
    return found


def units_used(problem: Problem, instances: Sequence[Instance]) -> Counter[str]:
    """Accelerators in use by the name of their device, and cores of nodes without any by that of theirs."""
    classes = {c.name: c for c in problem.classes}
    used: Counter[str] = Counter()
    for place in (p for i in instances for p in i.places):
        c = classes[place.node_class]
        device, units = (c.core, place.cores) if c.device is None else (c.device, place.accelerators)
        used[device.name] += units  # type: ignore[assignment]  # cores may be parts of one
    return used
