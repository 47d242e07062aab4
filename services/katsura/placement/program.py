"""The integer program: how many instances of each column, on how many nodes of each class (placement.md section 4).

Variables: z instances per column, y nodes per class, w the part of a demand that is not met (its price is so high that
it stays 0 wherever it can), b whether a domain holds a service, m instances moved against the current plan. `planner`
solves it and reads the counts; `variations` asks what the cheapest way out of an unmet demand is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from katsura.placement.highs import INFINITY, Program
from katsura.placement.patterns import Column
from katsura.placement.problem import ANYWHERE, HelperService, ModelService, NodeClass, Objective, Problem, Service

UNMET_FACTOR: Final = 20.0
"""Price of an unmet demand, in multiples of the price of all nodes, and of serving it the dearest way."""
INSTANCE_COST: Final = 1e-4
"""What a process costs beside its node, so that no plan starts one for nothing."""


@dataclass(frozen=True, slots=True)
class Extra:
    """What a variation of the problem adds.

    Attributes:
        running: instances of the current plan by column key; moving one costs `move_cost` (in the objective's unit).
        more_nodes: nodes that could be bought, by class, at the price of that class.
        limit_nodes: fewer nodes per class than there are (cuts after a failed packing, closed classes).
    """

    running: Mapping[str, int] | None = None
    move_cost: Mapping[str, float] | None = None
    more_nodes: Mapping[str, int] | None = None
    limit_nodes: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """A program and where its variables are: `z` by column, `y` by class, `w` by service, which costs `penalty`."""

    program: Program
    z: tuple[int, ...]
    y: Mapping[str, int]
    w: Mapping[str, int]
    more: Mapping[str, int]
    penalty: float


def build(problem: Problem, columns: Sequence[Column], extra: Extra | None = None) -> Built:
    """The program of `problem` over `columns`."""
    return _Builder(problem, columns, extra or Extra()).build()


def node_cost(problem: Problem, c: NodeClass) -> float:
    """What one used node adds to the objective."""
    match problem.objective:
        case Objective.COST:
            # A free node still costs a little, so that a plan never spreads without need.
            return max(c.hourly_usd, 1e-3)
        case Objective.ENERGY:
            return c.idle_watts
        case Objective.LATENCY:
            return 1e-4 * max(c.hourly_usd, 1e-3)
        case Objective.THROUGHPUT:
            return 0.0


def column_cost(problem: Problem, column: Column, service: Service, classes: Mapping[str, NodeClass]) -> float:
    """What one instance adds to the objective beyond its nodes."""
    match problem.objective:
        case Objective.ENERGY:
            return sum(m.count * _member_watts(classes[m.node_class], m.accelerators, m.cores) for m in column.members)
        case Objective.LATENCY if column.point is not None and isinstance(service, ModelService):
            share = column.requests_s / max(service.requests_s, column.requests_s)
            return share * (column.point.ttft_s + service.load.output * column.point.itl_s)
        case Objective.THROUGHPUT:
            return 0.0
        case _:
            # Of two plans on the same nodes the one with fewer processes is better.
            return INSTANCE_COST * sum(m.count for m in column.members)


def _member_watts(c: NodeClass, accelerators: int, cores: float) -> float:
    if c.device is not None and accelerators:
        return accelerators * (c.device.watts - c.device.idle_watts)
    return cores * (c.core.watts - c.core.idle_watts)


class _Builder:
    def __init__(self, problem: Problem, columns: Sequence[Column], extra: Extra) -> None:
        self.problem, self.columns, self.extra = problem, columns, extra
        self.classes = {c.name: c for c in problem.classes}
        self.services = {s.name: s for s in problem.services}
        self.p = Program()
        self.of_service: dict[str, list[int]] = defaultdict(list)
        for i, column in enumerate(columns):
            self.of_service[column.service].append(i)

    def build(self) -> Built:
        p, problem = self.p, self.problem
        z = tuple(
            p.variable(
                f"z:{c.key}", column_cost(problem, c, self.services[c.service], self.classes), 0, self._most(c), True
            )
            for c in self.columns
        )
        limits, more_nodes = self.extra.limit_nodes or {}, self.extra.more_nodes or {}
        y, more = {}, {}
        for c in problem.classes:
            most = limits.get(c.name, len(c.nodes))
            y[c.name] = p.variable(f"y:{c.name}", node_cost(problem, c), 0, most + more_nodes.get(c.name, 0), True)
            if c.name in more_nodes:
                price = max(node_cost(problem, c), 1e-3)
                more[c.name] = p.variable(f"more:{c.name}", price, 0, more_nodes[c.name], True)
                p.row(f"owned:{c.name}", {y[c.name]: 1, more[c.name]: -1}, high=most)
        penalty = self._penalty()
        w = {s.name: p.variable(f"w:{s.name}", penalty, 0, 1) for s in problem.services}
        theta = None
        if problem.objective is Objective.THROUGHPUT:
            theta = p.variable("theta", -1, 1, self._growth())
        self._demand(z, w, theta)
        self._capacity(z, y)
        self._availability(z, w)
        self._limits(z, y)
        self._moves(z)
        return Built(p, z, y, w, more, penalty)

    def _penalty(self) -> float:
        """More than any plan that serves everything could cost, and by the part more than serving that part could."""
        if self.problem.objective is Objective.THROUGHPUT:
            return 2 * self._growth()
        nodes = sum(node_cost(self.problem, c) * max(1, len(c.nodes)) for c in self.problem.classes)
        worst = dearest = 0.0
        for name, mine in self.of_service.items():
            service = self.services[name]
            worst += max((self._whole_cost(i, service) for i in mine), default=0.0)
            opened = (self._whole_cost(i, service, opening=True) for i in mine)
            dearest = max(dearest, max(opened, default=0.0))
        return UNMET_FACTOR * max(nodes + worst, dearest) + 1

    def _whole_cost(self, i: int, service: Service, opening: bool = False) -> float:
        """What serving all of a demand by one column costs, without nodes or with nodes opened for each instance."""
        column = self.columns[i]
        each = column_cost(self.problem, column, service, self.classes)
        for m in column.members if opening else ():
            c = self.classes[m.node_class]
            part = m.accelerators / c.accelerators if c.accelerators else m.cores / c.cores
            each += node_cost(self.problem, c) * _ceiling(m.count * part)
        return each * max(1.0, service.requests_s / column.requests_s)

    def _growth(self) -> float:
        """No demand can grow more than by what all nodes give on its best column."""
        have = sum(len(c.nodes) * (c.accelerators or c.cores) for c in self.problem.classes)
        most = []
        for name, mine in self.of_service.items():
            service = self.services[name]
            if isinstance(service, ModelService) and service.requests_s > 0:
                best = max(self.columns[i].requests_s / _units(self.columns[i]) for i in mine)
                most.append(have * best / service.requests_s)
        return max(1.0, min(most, default=1.0))

    def _most(self, column: Column) -> float:
        """No plan needs more instances than serve the whole demand alone, or than the nodes hold."""
        service = self.services[column.service]
        if self.problem.objective is Objective.THROUGHPUT:
            return 4096
        return _ceiling(service.requests_s / column.requests_s) + instances_min(service) + 1

    def _demand(self, z: Sequence[int], w: Mapping[str, int], theta: int | None) -> None:
        for service in self.problem.services:
            mine = self.of_service[service.name]
            if service.requests_s > 0:
                # Scaled by the demand, so that every coefficient is near 1.
                terms = {z[i]: self.columns[i].requests_s / service.requests_s for i in mine}
                terms.update(unmet(service, w))
                if theta is None:
                    self.p.row(f"demand:{service.name}", terms, low=1)
                else:
                    self.p.row(f"demand:{service.name}", {**terms, theta: -1}, low=0)
            exact = exact_instances(service)
            least = exact or instances_min(service)
            counts = {z[i]: 1.0 for i in mine}
            self.p.row(f"instances:{service.name}", {**counts, w[service.name]: least}, low=least)
            if exact:
                self.p.row(f"exactly:{service.name}", counts, high=exact)

    def _capacity(self, z: Sequence[int], y: Mapping[str, int]) -> None:
        use: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        for i, column in enumerate(self.columns):
            for m in column.members:
                for what, amount in (("accelerators", m.accelerators), ("cores", m.cores), ("ram", m.ram_bytes)):
                    row = use[m.node_class, what]
                    row[z[i]] = row.get(z[i], 0.0) + m.count * amount
        for (name, what), terms in use.items():
            c = self.classes[name]
            have = {"accelerators": float(c.accelerators), "cores": c.cores, "ram": c.ram_bytes}[what]
            if have <= 0:
                continue
            scaled = {i: v / have for i, v in terms.items()}
            self.p.row(f"{what}:{name}", {**scaled, y[name]: -1}, high=0)

    def _availability(self, z: Sequence[int], w: Mapping[str, int]) -> None:
        for service in self.problem.services:
            if service.domains_min < 2:
                continue
            by_domain: dict[str, dict[int, float]] = defaultdict(dict)
            for i in self.of_service[service.name]:
                by_domain[self.columns[i].domain][z[i]] = 1.0
            if set(by_domain) == {ANYWHERE}:
                continue  # merged classes have no domains; `merge.distribute` sees to them
            holds = {}
            for domain, counts in sorted(by_domain.items()):
                holds[domain] = self.p.variable(f"b:{service.name}@{domain}", 0, 0, 1, True)
                negative = {i: -v for i, v in counts.items()}
                self.p.row(f"domain:{service.name}@{domain}", {**negative, holds[domain]: 1}, high=0)
            wanted = service.domains_min
            spread = {**dict.fromkeys(holds.values(), 1.0), w[service.name]: wanted}
            self.p.row(f"domains:{service.name}", spread, low=wanted)

    def _limits(self, z: Sequence[int], y: Mapping[str, int]) -> None:
        problem = self.problem
        for service in problem.services:
            mine = self.of_service[service.name]
            if service.spot_share >= 1 or not any(self.columns[i].spot for i in mine):
                continue
            terms = {
                z[i]: self.columns[i].requests_s * ((1 if self.columns[i].spot else 0) - service.spot_share)
                for i in mine
            }
            self.p.row(f"spot:{service.name}", terms, high=0)
        if problem.budget_usd is not None:
            prices = {y[c.name]: c.hourly_usd for c in problem.classes}
            self.p.row("budget", prices, high=problem.budget_usd)
        for device, most in problem.quotas.items():
            terms = defaultdict(float)
            for i, column in enumerate(self.columns):
                for m in column.members:
                    c = self.classes[m.node_class]
                    if c.device is not None and c.device.name == device:
                        terms[z[i]] += m.count * m.accelerators
                    elif c.device is None and c.core.name == device:
                        terms[z[i]] += m.count * m.cores
            self.p.row(f"quota:{device}", dict(terms), high=most)

    def _moves(self, z: Sequence[int]) -> None:
        running = self.extra.running
        if running is None:
            return
        prices = self.extra.move_cost or {}
        for i, column in enumerate(self.columns):
            held, price = running.get(column.key, 0), prices.get(column.key, 0.0)
            # Starting an instance is what costs (weights are loaded, KV is lost); stopping one is free.
            if not held:
                self.p.cost[z[i]] += price
            elif price:
                started = self.p.variable(f"m:{column.key}", price, 0, INFINITY)
                self.p.row(f"moved:{column.key}", {z[i]: 1, started: -1}, high=held)


def unmet(service: Service, w: Mapping[str, int]) -> dict[int, float]:
    """What of a demand is not to be met, as terms: its own part, and of a helper what its models do not serve."""
    follows = service.follows if isinstance(service, HelperService) else {}
    return {w[service.name]: 1.0, **{w[name]: part for name, part in follows.items() if name in w}}


def _units(column: Column) -> float:
    """Accelerators, or cores, of an instance."""
    return sum(m.count * (m.accelerators or m.cores) for m in column.members)


def instances_min(service: Service) -> int:
    """Fewest instances: one per domain that must hold one, and what a helper asks for."""
    asked = 1 if isinstance(service, ModelService) else service.instances_min
    return max(asked, service.domains_min)


def exact_instances(service: Service) -> int | None:
    """The fixed number of instances, where roles name their replicas."""
    if not isinstance(service, ModelService) or not service.replicas:
        return None
    return service.replicas.get("unified", 1)


def _ceiling(value: float) -> int:
    return int(-(-value // 1))
