"""From what runs to what should run: whether it pays, and in which order nobody is left without capacity.

Starting an instance costs the seconds in which its nodes load weights and recompute KV. A new plan is taken only where
it saves more than that within the horizon, with a margin, and more than the hysteresis (of other objectives than cost:
the hysteresis alone); a plan that no longer serves
the demand is always replaced. Starts come before the stops they replace wherever there is room.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from katsura.placement.cost import Layout, prefill_floor_s, weights_bytes
from katsura.placement.document import Current, Running
from katsura.placement.pack import Packed
from katsura.placement.patterns import Column, Memo, Patterns, enumerate_patterns
from katsura.placement.plan import Instance, Place, Plan
from katsura.placement.planner import Solution, solve
from katsura.placement.problem import Effort, ModelService, NodeClass, Objective, Problem
from katsura.placement.program import Extra
from katsura.placement.search import Solved
from katsura.placement.tally import tally


@dataclass(frozen=True, slots=True)
class Policy:
    """When a change pays.

    Attributes:
        horizon_s: time in which a saving must earn its moves back. safety: how many times over.
        hysteresis: least part of the current objective (of costs: dollars per hour) that must be saved.
        load_bytes_s: weights are loaded at this rate. warm_s: from loaded to ready.
        gentle: how many times dearer moves are while the demand is not served, so that as few as possible are made.
    """

    horizon_s: float = 3600.0
    safety: float = 1.5
    hysteresis: float = 0.03
    load_bytes_s: float = 1e9
    warm_s: float = 30.0
    gentle: float = 10.0


@dataclass(frozen=True, slots=True)
class Step:
    """One action. `breaks` marks a stop that had to come before its replacement: there was no room for both."""

    action: str
    service: str
    key: str
    places: tuple[Place, ...]
    breaks: bool = False


@dataclass(frozen=True, slots=True)
class Replan:
    """`plan` is what to run; `steps` lead there (none where the current plan is kept). Dollars per hour and dollars."""

    plan: Plan
    steps: tuple[Step, ...]
    kept: bool
    why: str
    saving_usd: float
    move_usd: float
    solution: Solution = field(repr=False, compare=False)

    def explained(self) -> Replan:
        """The same, with alternatives and marginal nodes of the plan that is to run."""
        return replace(self, plan=self.solution.explained(self.plan))


def replan(
    problem: Problem,
    effort: Effort,
    current: Current,
    policy: Policy | None = None,
    *,
    explain: bool = True,
    memo: Memo | None = None,
) -> Replan:
    """Solve with what runs in mind, then decide whether to change anything.

    Args:
        explain: as in `planner.plan`; `Replan.explained` does it later.
        memo: of the problems before.
    """
    policy = policy or Policy()
    patterns = enumerate_patterns(problem, memo)
    columns = patterns.columns(problem.classes)
    prices = move_prices(problem, columns, policy)
    kept = _kept(problem, columns, current)
    solution = _solved(problem, effort, current, policy, prices, patterns, forced=kept is None)
    change = _decided(problem, policy, kept, solution, steps(problem, columns, current, solution.plan), prices)
    return change.explained() if explain else change


def change_document(change: Replan) -> dict[str, Any]:
    """What leads to `change.plan`, as `status.change` of its document; dollars per hour and, of moves, dollars."""
    return {
        "kept": change.kept,
        "why": change.why,
        "savingUsdPerHour": float(f"{change.saving_usd:.6g}"),
        "movesUsd": float(f"{change.move_usd:.6g}"),
        "steps": [
            {
                "action": s.action,
                "service": s.service,
                "pattern": s.key,
                "nodes": sorted({p.node for p in s.places}),
                "breaks": s.breaks,
            }
            for s in change.steps
        ],
    }


def _decided(
    problem: Problem,
    policy: Policy,
    kept: Plan | None,
    solution: Solution,
    order: tuple[Step, ...],
    prices: Mapping[str, float],
) -> Replan:
    """Whether to take the steps to the new plan, or to keep what runs where it still serves (`kept`)."""
    made = solution.plan
    moved = sum(prices[s.key] for s in order if s.action == "start")
    if kept is None:
        return Replan(made, order, False, "what runs cannot serve the demand", 0.0, moved, solution)
    saving = kept.hourly_usd - made.hourly_usd
    if problem.objective is Objective.COST:
        pays = saving * policy.horizon_s / 3600 > policy.safety * moved
        enough = pays and saving > policy.hysteresis * kept.hourly_usd
        gains, found = f"save ${saving:.2f}/h and cost ${moved:.2f}", saving >= 0.005
    else:
        better = made.value - kept.value if problem.objective is Objective.THROUGHPUT else kept.value - made.value
        gain = better / kept.value if kept.value > 0 else 0.0
        enough, found = gain > policy.hysteresis, gain >= 0.0005
        gains = f"better the {kept.objective} by {gain:.1%} and cost ${moved:.2f}"
    if enough:
        return Replan(made, order, False, f"they {gains} of moves", saving, moved, solution)
    cheaper = "cheaper" if problem.objective is Objective.COST else "better"
    why = f"a change would {gains}: not enough" if found else f"no {cheaper} plan was found"
    gap = max(0.0, 1 - made.bound / kept.value) if kept.value > 0 else 0.0
    if problem.objective is Objective.THROUGHPUT:
        gap = max(0.0, 1 - kept.value / made.bound) if made.bound > 0 else 0.0
    stays = replace(kept, refused=made.refused, bound=made.bound, gap=gap)
    return Replan(stays, (), True, why, saving, moved, solution)


def _solved(
    problem: Problem,
    effort: Effort,
    current: Current,
    policy: Policy,
    prices: Mapping[str, float],
    patterns: Patterns,
    forced: bool,
) -> Solution:
    """What to run instead. A change that must be made changes as little as it can: savings come when all is served."""
    factor = policy.safety * (policy.gentle if forced else 1.0) * 3600 / policy.horizon_s
    per_hour = {key: usd * factor for key, usd in prices.items()}
    extra = Extra(current.counts, per_hour if problem.objective is Objective.COST else {})
    return solve(problem, effort, extra=extra, held=current.held, patterns=patterns)


def move_prices(problem: Problem, columns: Sequence[Column], policy: Policy) -> dict[str, float]:
    """Dollars that starting one instance of each column costs: its nodes work for nobody while it loads."""
    classes = {c.name: c for c in problem.classes}
    services = {s.name: s for s in problem.services}
    prices: dict[str, float] = {}
    known: dict[tuple[str, str], tuple[float, float]] = {}
    for column in columns:
        service = services[column.service]
        seconds = policy.warm_s
        if isinstance(service, ModelService) and column.point is not None:
            lead = classes[column.members[0].node_class]
            device = lead.device or lead.core
            if (service.name, device.name) not in known:
                whole = weights_bytes(service.card, service.precision, Layout())
                recompute = prefill_floor_s(service.card, device, service.precision, Layout(), service.load)
                known[service.name, device.name] = whole, recompute
            whole, recompute = known[service.name, device.name]
            processes = sum(m.count for m in column.members)
            seconds += whole / processes / policy.load_bytes_s + column.point.batch * recompute
        prices[column.key] = _hourly(column, classes) * seconds / 3600
    return prices


def _hourly(column: Column, classes: Mapping[str, NodeClass]) -> float:
    total = 0.0
    for m in column.members:
        c = classes[m.node_class]
        total += m.count * c.hourly_usd * (m.accelerators / c.accelerators if c.accelerators else m.cores / c.cores)
    return total


def _kept(problem: Problem, columns: Sequence[Column], current: Current) -> Plan | None:
    """The current placement as a plan of the new problem, or None where it does not serve it any more."""
    by_key, state = {c.key: c for c in columns}, _State(problem, {})
    for instance in current.instances:
        gone = any(p.node not in state.room for p in instance.places)
        if instance.key not in by_key or gone or not state.fits(instance.places):
            return None
        state.change(instance, 1)
    standing = tuple(Instance(by_key[i.key], i.places) for i in current.instances)
    counted = tuple((by_key[key], n) for key, n in current.counts.items())
    solved = Solved(counted, 0.0, "kept", problem.classes, tuple(columns), {})
    kept = tally(problem, Patterns(problem, {}, ()), solved, Packed(standing, frozenset()))
    return kept if kept.feasible else None


@dataclass(slots=True)
class _State:
    """Room on nodes and capacity of services while steps are taken."""

    problem: Problem
    rates: Mapping[str, float]
    room: dict[str, list[float]] = field(default_factory=dict)
    capacity: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __post_init__(self) -> None:
        for c in self.problem.classes:
            self.room.update({n: [c.accelerators, c.cores, c.ram_bytes] for n in c.nodes})

    def fits(self, places: Sequence[Place]) -> bool:
        need: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        for p in places:
            for k, amount in enumerate((p.accelerators, p.cores, p.ram_bytes)):
                need[p.node][k] += amount
        return all(
            amount <= self.room[node][k] * (1 + 1e-9) + 1e-6
            for node, row in need.items()
            for k, amount in enumerate(row)
        )

    def change(self, instance: Running, sign: int) -> None:
        for p in instance.places:
            row = self.room.get(p.node)
            if row is not None:
                for k, amount in enumerate((p.accelerators, p.cores, p.ram_bytes)):
                    row[k] -= sign * amount
        self.capacity[instance.service] += sign * self.rates.get(instance.key, 0.0)

    def spare(self, instance: Running) -> float:
        """Capacity beyond the demand that is left once `instance` is gone."""
        demand = next((s.requests_s for s in self.problem.services if s.name == instance.service), 0.0)
        return self.capacity[instance.service] - self.rates.get(instance.key, 0.0) - demand


def steps(problem: Problem, columns: Sequence[Column], current: Current, target: Plan) -> tuple[Step, ...]:
    """Starts and stops from `current` to `target`, each start before the stops it makes possible where room allows."""
    wanted, old = _changed(current, target)
    state = _State(problem, {c.key: c.requests_s for c in columns})
    for instance in current.instances:
        state.change(instance, 1)
    made: list[Step] = []
    while wanted or old:
        started = next((w for w in wanted if state.fits(w.places)), None)
        if started is not None:
            wanted.remove(started)
            state.change(started, 1)
            made.append(Step("start", started.service, started.key, started.places))
            continue
        stopped = max(old, key=lambda o: (state.spare(o), o.key), default=None)
        if stopped is None:
            raise AssertionError("a start has no room although everything old is stopped")
        breaks = bool(wanted) and state.spare(stopped) < -1e-9
        old.remove(stopped)
        state.change(stopped, -1)
        made.append(Step("stop", stopped.service, stopped.key, stopped.places, breaks))
    return tuple(made)


def _changed(current: Current, target: Plan) -> tuple[list[Running], list[Running]]:
    """What is to be started and what stopped: equal instances on equal nodes stay."""
    standing: dict[object, list[Running]] = defaultdict(list)
    for instance in reversed(current.instances):
        standing[where(instance)].append(instance)
    wanted = []
    for made in target.instances:
        instance = Running(made.column.key, made.column.service, made.places)
        if standing[where(instance)]:
            standing[where(instance)].pop()
        else:
            wanted.append(instance)
    left = {id(instance) for mine in standing.values() for instance in mine}
    return wanted, [instance for instance in current.instances if id(instance) in left]


def where(instance: Running) -> object:
    """What tells equal instances on equal nodes from others."""
    return instance.key, tuple(sorted((p.role, p.node) for p in instance.places))
