"""What else could have been done: other ways and why not, one more node of each kind, and ways out of an unmet demand.

Each is the same program with one thing changed. The linear relaxation is asked first, and of them all: it starts each
time from its last basis, proves most ways dearer or impossible, and its reduced costs are what one more node is worth.
Whole plans are made of the best few that are left, and in large programs what a way does not touch stays as it is.
What moving costs is no part of these prices; `_why_not` tells where it decides.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from katsura.placement.highs import Answer, Relaxed, relax, solve
from katsura.placement.patterns import Column, Patterns, enumerate_patterns
from katsura.placement.plan import Alternative, Marginal, Plan, Relaxation
from katsura.placement.problem import Effort, ModelService, NodeClass, Objective, Problem
from katsura.placement.program import Built, Extra, build
from katsura.placement.reach import MORE_NODES_MAX, within_reach
from katsura.placement.rounding import round_demands
from katsura.placement.search import Solved, promising
from katsura.placement.tally import objective_value

_ALTERNATIVES_MAX: Final = 6
_LOOSER: Final = (1.25, 1.5, 2.0, 3.0, 5.0)
_MARGINALS_MAX: Final = 8
_WHOLE_COLUMNS: Final = 200
"""Columns up to which every question is solved whole."""
_WAYS_OUT_SOLVED: Final = 3
"""Ways out of which whole plans are made in larger programs; the others are told by their bound."""
_NODES: Final = 500
_NODES_LARGE: Final = 20
"""Nodes of the search tree of one variation, in programs up to `_WHOLE_COLUMNS` and above."""
_SECONDS: Final = 1.0
"""Most seconds of the solver's integer programs that explaining one plan may take, where time limits a search."""
_NAMES_SHOWN: Final = 4
_AND_NODES: Final = ", and more nodes"
_PROOF: Final = 1.002
"""How much dearer a bound must be to prove anything."""


@dataclass(frozen=True, slots=True)
class _Way:
    """Another way: what it allows, and what the relaxation says of it. `settled` where that is all there is to say."""

    what: str
    allowed: Callable[[Column], bool]
    relaxed: Answer
    reduced: Mapping[str, float]
    settled: Alternative | None = None

    @property
    def rank(self) -> tuple[bool, float, str]:
        """Cheapest first, the impossible last."""
        a = self.settled
        return (a is not None and a.hourly_usd is None, self.relaxed.bound, self.what)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A whole plan of a changed question: dollars per hour, objective, counts by column key, nodes bought by class."""

    hourly_usd: float
    value: float
    counts: Mapping[str, int]
    bought: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Looser:
    """A changed question, and what the relaxation says of it."""

    what: str
    problem: Problem
    columns: Sequence[Column]
    extra: Extra | None
    built: Built
    relaxed: Answer
    reduced: Mapping[str, float]

    @property
    def short(self) -> bool:
        """Whether even this does not serve everything."""
        return bool(_short(self.relaxed, self.built))


class Variations:
    """Questions about `made`, a plan of `problem`; `solved` is the search behind it (over merged classes, maybe)."""

    def __init__(self, problem: Problem, patterns: Patterns, solved: Solved, made: Plan, effort: Effort) -> None:
        self._asked, self._columns = replace(problem, classes=solved.classes), solved.columns
        self._problem = within_reach(self._asked, self._columns)
        self._patterns, self._extra, self._made, self._effort = patterns, solved.extra, made, effort
        self._left = None if effort.seconds is None else min(_SECONDS, effort.seconds / 3)
        self._small = len(self._columns) <= _WHOLE_COLUMNS
        of = {node: c.name for c in solved.classes for node in c.nodes}
        merged = {c.name: of[c.nodes[0]] for c in problem.classes if c.nodes}
        self._stands = Counter(i.column.key_on(merged.__getitem__) for i in made.instances)
        self._used = {p.node for i in made.instances for p in i.places}
        domains: dict[str, set[str]] = defaultdict(set)
        for c in problem.classes:
            domains[c.domain] |= {merged[c.name]} if c.nodes else set()
        self._near = tuple(domains.values())
        self._worth = objective_value(problem, made.instances, made.nodes_used)
        self._built = build(self._problem, self._columns)
        if problem.objective is not Objective.THROUGHPUT:
            round_demands(self._problem, self._columns, self._built)
        self._relaxed = Relaxed(self._built.program)
        _, self._reduced = self._relaxed.ask()

    @property
    def _spent(self) -> bool:
        return self._left is not None and self._left <= 0

    def alternatives(self) -> tuple[Alternative, ...]:
        """The closest other ways, cheapest first, each with why it was not taken."""
        kind_of = {c.name: (c.device or c.core).name for c in self._problem.classes}
        used = {kind_of[c.name] for c in self._problem.classes if self._used & set(c.nodes)}
        ways = [self._way(*way) for way in _other_ways(kind_of, used, self._columns, self._made)]
        nearest = sorted(ways, key=lambda w: w.rank)[:_ALTERNATIVES_MAX]
        found = [w.settled or self._settled(w) for w in nearest]
        return tuple(sorted(found, key=lambda a: (a.hourly_usd is None, a.hourly_usd or 0.0, a.what)))

    def _way(self, what: str, allowed: Callable[[Column], bool]) -> _Way:
        closed = {z: 0.0 for z, c in zip(self._built.z, self._columns, strict=True) if not allowed(c)}
        relaxed, reduced = self._relaxed.ask(closed)
        way = _Way(what, allowed, relaxed, reduced)
        missing = {s.name for s in self._problem.services} - {c.service for c in self._columns if allowed(c)}
        short = _short(relaxed, self._built)
        if missing:
            return replace(way, settled=Alternative(what, None, f"no pattern of {_list(sorted(missing))} is left"))
        if short:
            return replace(way, settled=Alternative(what, None, f"cannot serve all of {_list(short)}"))
        if self._problem.objective is Objective.COST and self._made.feasible and relaxed.bound > self._worth * _PROOF:
            more = _percent(relaxed.bound / self._worth - 1)
            said = f"{more} more by its bound alone"
            return replace(way, settled=Alternative(what, relaxed.bound, said, at_least=True))
        return way

    def _settled(self, way: _Way) -> Alternative:
        """A whole plan of it; in a large program only of the services that it touches."""
        bound = way.relaxed.bound if self._problem.objective is Objective.COST else None
        if self._spent:
            why = "not looked at: the time for explaining is spent"
            return Alternative(way.what, bound, why, at_least=bound is not None)
        stands = {i: n for i, c in enumerate(self._columns) if (n := self._stands[c.key])}
        touched = {self._columns[i].service for i in stands if not way.allowed(self._columns[i])}
        fixed = {} if self._small else {i: n for i, n in stands.items() if self._columns[i].service not in touched}
        free = [i for i, c in enumerate(self._columns) if way.allowed(c) and (self._small or c.service in touched)]
        values = [way.relaxed.values[z] for z in self._built.z] if way.relaxed.values else []
        if not self._small:
            near = [values[i] for i in free]
            free = [free[i] for i in promising([self._columns[i] for i in free], frozenset(), near, way.reduced)]
        chosen = sorted({*free, *fixed})
        counts = {k: fixed[i] for k, i in enumerate(chosen) if i in fixed}
        outcome = self._whole(self._problem, [self._columns[i] for i in chosen], counts)
        rest = ", with the rest as it is" if fixed else ""
        if outcome is None:
            why = f"no whole plan found in the time of a variation{rest}"
            return Alternative(way.what, bound, why, at_least=bound is not None)
        return Alternative(way.what, outcome.hourly_usd, self._why_not(outcome, rest))

    def _whole(
        self,
        problem: Problem,
        columns: Sequence[Column],
        fixed: Mapping[int, int] | None = None,
        extra: Extra | None = None,
    ) -> _Outcome | None:
        """A plan that serves everything with these columns; of those that are `fixed` (by index) so many."""
        built = build(problem, columns, extra)
        program = built.program
        for i, n in (fixed or {}).items():
            program.low[built.z[i]] = program.high[built.z[i]] = float(n)
        for w in built.w.values():
            program.high[w] = 0.0
        nodes = _NODES if self._small else _NODES_LARGE
        effort = replace(self._effort, gap=max(self._effort.gap, 0.01), nodes=min(self._effort.nodes or nodes, nodes))
        answer = solve(program, replace(effort, seconds=self._left))
        if self._left is not None:
            self._left -= answer.seconds
        if answer.values is None:
            return None
        values = answer.values
        return _Outcome(
            sum(values[built.y[c.name]] * c.hourly_usd for c in problem.classes),
            answer.objective,
            {c.key: n for c, z in zip(columns, built.z, strict=True) if (n := round(values[z]))},
            {name: round(values[i]) for name, i in built.more.items() if values[i] > 0.5},
        )

    def _why_not(self, found: _Outcome, rest: str) -> str:
        made, objective = self._made, self._problem.objective
        if objective is not Objective.COST:
            value = -found.value if objective is Objective.THROUGHPUT else found.value
            worse = (value / self._worth - 1) * (-1 if objective is Objective.THROUGHPUT else 1) if self._worth else 0.0
            much = f"{_percent(worse)} worse" if worse > 1e-3 else "no better"
            return f"{much} in {objective.value}, which this plan optimises{rest}"
        more = found.hourly_usd - made.hourly_usd
        if more > 0.005:
            return f"${more:.2f}/h more (+{_percent(more / max(made.hourly_usd, 1e-9))}){rest}"
        if more > -0.005:
            return f"costs the same{rest}"
        held, price = self._extra.running or {}, self._extra.move_cost or {}
        moves = sum(price.get(key, 0.0) * max(0, n - held.get(key, 0)) for key, n in found.counts.items())
        if moves - (made.value - self._worth) > -more:
            return f"${-more:.2f}/h less{rest}, which does not pay its moves"
        if held == self._stands:
            return f"${-more:.2f}/h less{rest}, too little to change what runs for"
        return f"${-more:.2f}/h less{rest}, within the gap of {made.gap:.1%}"

    def marginals(self) -> tuple[Marginal, ...]:
        """What one more node of each class that is used up would change, largest saving first.

        By the reduced costs of the relaxation: its bound falls by no more. In small programs those are solved.
        """
        if self._problem.objective is not Objective.COST:
            return ()
        classes = self._problem.classes
        worth = {c.name: self._reduced[f"y:{c.name}"] for c in classes if self._used.issuperset(c.nodes)}
        most = sorted((c for c in classes if worth.get(c.name, 0.0) < -1e-6), key=lambda c: (worth[c.name], c.name))
        found = []
        for c in most[:_MARGINALS_MAX]:
            if not self._small or self._spent:
                found.append(Marginal(c.name, worth[c.name], at_most=True))
                continue
            wider = replace(self._problem, classes=tuple(_grown(k) if k is c else k for k in classes))
            outcome = self._whole(wider, self._columns)
            if outcome is not None:
                found.append(Marginal(c.name, min(0.0, outcome.hourly_usd - self._made.hourly_usd)))
        return tuple(sorted(found, key=lambda m: (m.change_usd, m.node_class)))

    def relaxations(self) -> tuple[Relaxation, ...]:
        """Changes of the question under which everything is met, cheapest first."""
        every = [
            *self._more_nodes(),
            *(self._looser(what, asked, extra) for what, asked, extra in _looser_questions(self._problem)),
        ]
        ways = sorted((w for w in every if not w.short), key=lambda w: (w.relaxed.bound, w.what))
        whole = len(ways) if self._small or self._problem.objective is not Objective.COST else _WAYS_OUT_SOLVED
        found = [self._way_out(w) for w in ways[:whole]]
        found += [_by_bound(w) for w in ways[whole:]]
        found += islice(filter(None, map(self._way_out, self._slower())), 1)
        cheapest = {r.what: r for r in sorted(filter(None, found), key=lambda r: -r.hourly_usd)}
        return tuple(sorted(cheapest.values(), key=lambda r: (r.hourly_usd, r.what)))

    def _more_nodes(self) -> Iterator[_Looser]:
        """More nodes of one class, each."""
        names = [c.name for c in self._problem.classes]
        built = build(self._problem, self._columns, Extra(more_nodes=dict.fromkeys(names, MORE_NODES_MAX)))
        program = Relaxed(built.program)
        for name in names:
            relaxed, reduced = program.ask({i: 0.0 for other, i in built.more.items() if other != name})
            extra = Extra(more_nodes={name: MORE_NODES_MAX})
            what = f"more nodes of {name}"
            yield _Looser(what, self._problem, self._columns, extra, built, relaxed, reduced)

    def _looser(self, what: str, problem: Problem, extra: Extra | None, columns: Sequence[Column] = ()) -> _Looser:
        columns = columns or self._columns
        built = build(problem, columns, extra)
        return _Looser(what, problem, columns, extra, built, *relax(built.program))

    def _slower(self) -> Iterator[_Looser]:
        """Common factors on all times allowed that may be enough, the smallest first."""
        problem = self._problem
        if not any(isinstance(s, ModelService) and (s.slo.itl_s or s.slo.ttft_s) for s in problem.services):
            return
        # What the loosest times do not mend, others do not either.
        if not self._allowed(_LOOSER[-1]).short:
            yield from (way for factor in _LOOSER if not (way := self._allowed(factor)).short)

    def _allowed(self, factor: float) -> _Looser:
        """The question with all times allowed `factor` times as long."""
        problem = self._asked
        services = tuple(_allow(s, factor) if isinstance(s, ModelService) else s for s in problem.services)
        changed = replace(problem, services=services)
        columns = enumerate_patterns(changed, self._patterns.memo).columns(problem.classes)
        # Merged classes are of every domain; a pair of them must be in one.
        real = [c for c in columns if any(near.issuperset(m.node_class for m in c.members) for near in self._near)]
        return self._looser(f"{factor:g}x the times allowed", within_reach(changed, real), None, real)

    def _way_out(self, way: _Looser) -> Relaxation | None:
        if self._spent:
            return _by_bound(way)
        columns, values = way.columns, way.relaxed.values or ()
        if not self._small:
            near = promising(columns, frozenset(), [values[z] for z in way.built.z], way.reduced)
            columns = [columns[i] for i in near]
        outcome = self._whole(way.problem, columns, extra=way.extra)
        if outcome is None:
            return None if self._small else _by_bound(way)
        bought = [f"{n} more node{'s' * (n > 1)} of {name}" for name, n in outcome.bought.items()]
        lifted = [way.what.removesuffix(_AND_NODES)] if way.problem is not self._problem else []
        return Relaxation(" and ".join((*lifted, *bought)), outcome.hourly_usd)


def _by_bound(way: _Looser) -> Relaxation | None:
    """What is known of a way of which no whole plan was made: a bound, where the objective is dollars."""
    if way.problem.objective is not Objective.COST:
        return None
    return Relaxation(way.what, way.relaxed.bound, at_least=True)


def _short(relaxed: Answer, built: Built) -> list[str]:
    return [name for name, i in built.w.items() if relaxed.values is None or relaxed.values[i] > 1e-6]


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"


def _list(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _other_ways(
    kind_of: Mapping[str, str], kinds: Iterable[str], columns: Sequence[Column], made: Plan
) -> Iterator[tuple[str, Callable[[Column], bool]]]:
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
    free = replace(_each(problem, spot_share=1.0, domains_min=1), budget_usd=None, quotas={})
    if free != problem:
        more = Extra(more_nodes=dict.fromkeys((c.name for c in problem.classes), MORE_NODES_MAX))
        yield f"no budget, quotas, spot or domain limits{_AND_NODES}", free, more


def _each(problem: Problem, **changes: object) -> Problem:
    return replace(problem, services=tuple(replace(s, **changes) for s in problem.services))  # type: ignore[arg-type]


def _allow(service: ModelService, factor: float) -> ModelService:
    slo = service.slo
    times = {k: None if v is None else v * factor for k, v in (("itl_s", slo.itl_s), ("ttft_s", slo.ttft_s))}
    return replace(service, slo=replace(slo, **times))
