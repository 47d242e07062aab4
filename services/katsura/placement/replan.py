"""From what runs to what should run: whether it pays, and in which order nobody is left without capacity.

Starting an instance costs the seconds in which its nodes load weights and recompute KV. A new plan is taken only where
it saves more than that within the horizon, with a margin, and more than the hysteresis (of other objectives than cost:
the hysteresis alone); a plan that no longer serves the demand is always replaced. Starts come before the stops they
replace wherever there is room.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from katsura.placement.cost import Layout, prefill_floor_s, weights_bytes
from katsura.placement.document import Current, Running
from katsura.placement.patterns import Column, Memo, Patterns, enumerate_patterns
from katsura.placement.plan import Place, Plan
from katsura.placement.planner import Solution, solve
from katsura.placement.problem import Effort, ModelService, NodeClass, Objective, Problem
from katsura.placement.program import Extra
from katsura.placement.standing import Floor, named_now, standing_plan
from katsura.placement.tally import gap_of, tightest


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
    stands, apart = named_now(current, problem.classes, patterns.columns(problem.classes))
    patterns = patterns.beside(apart)
    columns = patterns.columns(problem.classes)
    prices = move_prices(problem, columns, policy)
    kept = standing_plan(problem, columns, stands)
    forced = isinstance(kept, str) or not kept.feasible
    solution = _solved(problem, effort, stands, policy, prices, patterns, forced)
    change = _decided(problem, policy, kept, solution, steps(problem, columns, stands, solution.plan), prices)
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
    kept: Plan | str,
    solution: Solution,
    order: tuple[Step, ...],
    prices: Mapping[str, float],
) -> Replan:
    """Whether to take the steps to the new plan, or to keep what runs (`kept`, or why it cannot stay)."""
    made = solution.plan
    moved = sum(prices[s.key] for s in order if s.action == "start")
    if isinstance(kept, str):
        return Replan(made, order, False, kept, 0.0, moved, solution)
    saving = kept.hourly_usd - made.hourly_usd
    if not kept.feasible and (made.feasible or _serves_more(made, kept, policy)):
        return Replan(made, order, False, "what runs cannot serve the demand", saving, moved, solution)
    if problem.objective is Objective.COST:
        pays = saving * policy.horizon_s / 3600 > policy.safety * moved
        enough = pays and saving > policy.hysteresis * kept.hourly_usd
        gains, found = f"save ${saving:.2f}/h and cost ${moved:.2f}", saving >= 0.005
    else:
        better = made.value - kept.value if problem.objective is Objective.THROUGHPUT else kept.value - made.value
        gain = better / kept.value if kept.value > 0 else 0.0
        enough, found = gain > policy.hysteresis, gain >= 0.0005
        gains = f"better the {kept.objective} by {gain:.1%} and cost ${moved:.2f}"
    if enough and _serves(made, kept):
        return Replan(made, order, False, f"they {gains} of moves", saving, moved, solution)
    cheaper = "cheaper" if problem.objective is Objective.COST else "better"
    why = f"a change would {gains}: not enough" if found and _serves(made, kept) else f"no {cheaper} plan was found"
    bound = made.bound if kept.feasible else tightest(problem, kept.value, made.bound)
    stays = replace(kept, refused=made.refused, bound=bound, gap=gap_of(problem, kept.value, bound))
    return Replan(stays, (), True, why, saving, moved, solution)


def _serves(made: Plan, kept: Plan) -> bool:
    """Whether `made` serves as much of everything as `kept` does."""
    return all(m.unmet <= k.unmet + 1e-6 for m, k in zip(made.services, kept.services, strict=True))


def _serves_more(made: Plan, kept: Plan, policy: Policy) -> bool:
    """Whether more of the demand is served in all, and clearly more of one service: else what falls short would be
    moved about for nothing, when it can least be spared."""
    shares = [(1 - m.unmet, 1 - k.unmet) for m, k in zip(made.services, kept.services, strict=True)]
    clearly = any(new > old * (1 + policy.hysteresis) + 1e-9 for new, old in shares)
    return clearly and sum(new - old for new, old in shares) > 1e-9


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


def steps(problem: Problem, columns: Sequence[Column], current: Current, target: Plan) -> tuple[Step, ...]:
    """Starts and stops from `current` to `target`, each start before the stops it makes possible where room allows."""
    stays, wanted, old = _changed(current, target)
    state = Floor(problem, {c.key: c.requests_s for c in columns})
    for instance in (*stays, *old):
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


def _changed(current: Current, target: Plan) -> tuple[list[Running], list[Running], list[Running]]:
    """What stays, at the sizes of the target, what is to be started and what stopped: equal instances on equal nodes
    stay."""
    standing: dict[object, list[Running]] = defaultdict(list)
    for instance in reversed(current.instances):
        standing[where(instance)].append(instance)
    stays, wanted = [], []
    for made in target.instances:
        instance = Running(made.column.key, made.column.service, made.places)
        if standing[where(instance)]:
            standing[where(instance)].pop()
            stays.append(instance)
        else:
            wanted.append(instance)
    left = {id(instance) for mine in standing.values() for instance in mine}
    return stays, wanted, [instance for instance in current.instances if id(instance) in left]


def where(instance: Running) -> object:
    """What tells equal instances on equal nodes from others."""
    return instance.key, tuple(sorted((p.role, p.node) for p in instance.places))
