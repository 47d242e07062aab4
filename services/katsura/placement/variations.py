"""What else could have been done: other ways and why not, one more node of each kind, and ways out of an unmet demand.

Each is the same program with one thing changed. Where the linear relaxation already proves an alternative dearer, it is
not solved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from katsura.placement.highs import relax, solve
from katsura.placement.patterns import Column, Patterns, enumerate_patterns
from katsura.placement.plan import Alternative, Marginal, Plan, Relaxation
from katsura.placement.problem import Effort, ModelService, NodeClass, Objective, Problem
from katsura.placement.program import Extra, build
from katsura.placement.search import Solved

_ALTERNATIVES_MAX: Final = 6
_LOOSER: Final = (1.25, 1.5, 2.0, 3.0, 5.0)
_MORE_NODES_MAX: Final = 64
_MARGINALS_MAX: Final = 8
_SOLVED_COLUMNS: Final = 200
"""Columns above which one more node is asked of the relaxation only."""


_Way = tuple[str, Callable[[Column], bool]]


@dataclass(frozen=True, slots=True)
class _Outcome:
    hourly_usd: float
    unmet: tuple[str, ...]
    bought: Mapping[str, int]


def _quick(effort: Effort) -> Effort:
    seconds = None if effort.seconds is None else min(2.0, effort.seconds / 3)
    return replace(effort, gap=max(effort.gap, 0.01), nodes=min(effort.nodes or 500, 500), seconds=seconds)


def _ask(problem: Problem, columns: Sequence[Column], effort: Effort, extra: Extra | None = None) -> _Outcome | None:
    built = build(problem, columns, extra)
    answer = solve(built.program, _quick(effort))
    if answer.values is None:
        return None
    values = answer.values
    return _Outcome(
        sum(values[built.y[c.name]] * c.hourly_usd for c in problem.classes),
        tuple(name for name, i in built.w.items() if values[i] > 1e-6),
        MappingProxyType({name: round(values[i]) for name, i in built.more.items() if values[i] > 0.5}),
    )


class Variations:
    """Questions about a plan. `problem` has the classes that `solved` was searched on (merged ones, maybe)."""

    def __init__(self, problem: Problem, patterns: Patterns, solved: Solved, made: Plan, effort: Effort) -> None:
        self._problem, self._patterns, self._made, self._effort = problem, patterns, made, effort
        self._columns, self._reduced = solved.columns, solved.reduced
        self._used = {p.node for i in made.instances for p in i.places}

    def alternatives(self) -> tuple[Alternative, ...]:
        """The closest other ways, cheapest first, each with why it was not taken."""
        found = []
        problem, kind_of = self._problem, {c.name: (c.device or c.core).name for c in self._problem.classes}
        used = {kind_of[c.name] for c in problem.classes if self._used & set(c.nodes)}
        for what, allowed in _other_ways(kind_of, used, self._columns, self._made):
            kept = [c for c in self._columns if allowed(c)]
            missing = {s.name for s in problem.services} - {c.service for c in kept}
            if missing:
                found.append(Alternative(what, None, f"no pattern of {_list(sorted(missing))} is left"))
                continue
            found.append(self._alternative(what, kept))
        ranked = sorted(found, key=lambda a: (a.hourly_usd is None, a.hourly_usd or 0.0, a.what))
        return tuple(ranked[:_ALTERNATIVES_MAX])

    def _alternative(self, what: str, kept: Sequence[Column]) -> Alternative:
        built = build(self._problem, kept)
        relaxed, _ = relax(built.program)
        assert relaxed.values is not None
        short = [name for name, i in built.w.items() if relaxed.values[i] > 1e-6]
        made = self._made
        if short:
            return Alternative(what, None, f"cannot serve all of {_list(short)}")
        if self._problem.objective is Objective.COST and relaxed.bound > made.value * 1.002 and made.feasible:
            more = relaxed.bound / made.value - 1
            return Alternative(what, relaxed.bound, f"at least {more:.0%} more, proven by its bound")
        outcome = _ask(self._problem, kept, self._effort)
        if outcome is None or outcome.unmet:
            return Alternative(what, None, "no whole plan found in the time of a variation")
        return Alternative(what, outcome.hourly_usd, _why_not(self._problem, made, outcome.hourly_usd))

    def marginals(self) -> tuple[Marginal, ...]:
        """What one more node of each class that is used up would change, largest saving first."""
        problem, made = self._problem, self._made
        if problem.objective is not Objective.COST:
            return ()
        found = []
        for c in problem.classes:
            if not self._used.issuperset(c.nodes) or self._reduced.get(f"y:{c.name}", 0.0) > -1e-6:
                continue
            if len(self._columns) > _SOLVED_COLUMNS:
                found.append(Marginal(c.name, self._reduced[f"y:{c.name}"], at_most=True))
                continue
            wider = replace(problem, classes=tuple(_grown(k) if k is c else k for k in problem.classes))
            outcome = _ask(wider, self._columns, self._effort)
            if outcome is not None and not outcome.unmet:
                found.append(Marginal(c.name, min(0.0, outcome.hourly_usd - made.hourly_usd)))
        return tuple(sorted(found, key=lambda m: (m.change_usd, m.node_class))[:_MARGINALS_MAX])

    def relaxations(self) -> tuple[Relaxation, ...]:
        """Changes of the question under which everything is met, cheapest first."""
        found: list[Relaxation] = []
        for what, changed, extra in _looser_questions(self._problem):
            outcome = _ask(changed, self._columns, self._effort, extra)
            if outcome is not None and not outcome.unmet:
                bought = " and ".join(f"{n} more node{'s' * (n > 1)} of {name}" for name, n in outcome.bought.items())
                found.append(Relaxation(what or bought, outcome.hourly_usd))
        slower = _slower(self._problem, self._effort)
        if slower is not None:
            found.append(slower)
        return tuple(sorted(found, key=lambda r: (r.hourly_usd, r.what)))


def _other_ways(
    kind_of: Mapping[str, str], kinds: Iterable[str], columns: Sequence[Column], made: Plan
) -> Iterator[_Way]:
    used = sorted(kinds)
    topology = {(i.column.service, i.column.topology) for i in made.instances if i.column.topology != "Helper"}
    for kind in used if len(set(kind_of.values())) > 1 else ():
        yield f"without {kind}", _avoids(kind_of, kind)
    for kind in sorted(set(kind_of.values())) if len(used) > 1 else ():
        yield f"models on {kind} only", _stays_on(kind_of, kind)
    for service, taken in sorted(topology):
        if any(c.service == service and c.topology != taken for c in columns):
            yield f"{service} not {taken}", _is_not(service, taken)


def _avoids(kind_of: Mapping[str, str], kind: str) -> Callable[[Column], bool]:
    return lambda column: all(kind_of[m.node_class] != kind for m in column.members)


def _stays_on(kind_of: Mapping[str, str], kind: str) -> Callable[[Column], bool]:
    return lambda column: column.topology == "Helper" or all(kind_of[m.node_class] == kind for m in column.members)


def _is_not(service: str, topology: str) -> Callable[[Column], bool]:
    return lambda column: column.service != service or column.topology != topology


def _why_not(problem: Problem, made: Plan, hourly: float) -> str:
    if problem.objective is not Objective.COST:
        return f"worse in {problem.objective.value}, which this plan optimises"
    more = hourly - made.hourly_usd
    if more > 0.005:
        return f"${more:.2f}/h more (+{more / max(made.hourly_usd, 1e-9):.0%})"
    return "costs the same" if more > -0.005 else f"${-more:.2f}/h less, within the gap of {made.gap:.1%}"


def _grown(c: NodeClass) -> NodeClass:
    return replace(c, nodes=(*c.nodes, f"{c.name}-one-more"))


def _looser_questions(problem: Problem) -> Iterator[tuple[str, Problem, Extra | None]]:
    if problem.budget_usd is not None:
        yield "no limit on the budget", replace(problem, budget_usd=None), None
    if problem.quotas:
        yield "no quotas", replace(problem, quotas={}), None
    if any(s.spot_share < 1 for s in problem.services) and any(c.spot for c in problem.classes):
        yield "spot nodes for everything", _each(problem, spot_share=1.0), None
    if any(s.domains_min > 1 for s in problem.services):
        yield "one domain instead of several", _each(problem, domains_min=1), None
    for c in problem.classes:
        yield "", problem, Extra(more_nodes={c.name: _MORE_NODES_MAX})
    free = replace(_each(problem, spot_share=1.0, domains_min=1), budget_usd=None, quotas={})
    if free != problem:
        more = Extra(more_nodes=dict.fromkeys((c.name for c in problem.classes), _MORE_NODES_MAX))
        yield "no budget, quotas, spot or domain limits, and more nodes", free, more


def _each(problem: Problem, **changes: object) -> Problem:
    return replace(problem, services=tuple(replace(s, **changes) for s in problem.services))  # type: ignore[arg-type]


def _slower(problem: Problem, effort: Effort) -> Relaxation | None:
    """The smallest common factor on all times allowed that is enough."""
    if not any(isinstance(s, ModelService) and (s.slo.itl_s or s.slo.ttft_s) for s in problem.services):
        return None
    for factor in _LOOSER:
        services = tuple(_allow(s, factor) if isinstance(s, ModelService) else s for s in problem.services)
        changed = replace(problem, services=services)
        outcome = _ask(changed, enumerate_patterns(changed).columns(problem.classes), effort)
        if outcome is not None and not outcome.unmet:
            return Relaxation(f"{factor:g}x the times allowed", outcome.hourly_usd)
    return None


def _allow(service: ModelService, factor: float) -> ModelService:
    slo = service.slo
    times = {k: None if v is None else v * factor for k, v in (("itl_s", slo.itl_s), ("ttft_s", slo.ttft_s))}
    return replace(service, slo=replace(slo, **times))


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
