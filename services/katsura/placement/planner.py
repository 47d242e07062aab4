"""From a problem to a plan: enumerate, search, pack, and say what limits it.

`plan` always answers. Where a demand cannot be met the plan serves what it can, names the binding limits and the
cheapest change that would meet it; where time runs out the best plan so far is given with its gap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from katsura.placement.pack import Held, Packed, nodes_needed, pack
from katsura.placement.patterns import Column, Patterns, enumerate_patterns, margin_of
from katsura.placement.plan import Plan
from katsura.placement.problem import Effort, ModelService, Problem, Service
from katsura.placement.program import Extra
from katsura.placement.reach import within_reach
from katsura.placement.search import Solved, search
from katsura.placement.tally import tally
from katsura.placement.variations import Variations

T = TypeVar("T")
_REPACKS: Final = 3
"""How often a class is made smaller because its cores or memory could not be filled as the program counted."""
_TIGHTENED_MAX: Final = 4
"""How often times are tightened for a late agent."""
_TIGHTENED_MORE: Final = 0.95
"""Times to the first token shrink less than times between tokens."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A plan, and what is needed to explain it: what explaining costs is spent only on a plan that is taken."""

    plan: Plan
    problem: Problem
    patterns: Patterns
    solved: Solved
    effort: Effort

    def explained(self, other: Plan | None = None) -> Plan:
        """The plan with alternatives, and with marginal nodes or relaxations; `other`: another one of the problem."""
        made = other or self.plan
        asked = Variations(self.problem, self.patterns, self.solved, made, self.effort)
        if not made.feasible:
            return replace(made, relaxations=asked.relaxations(), alternatives=asked.alternatives())
        return replace(made, alternatives=asked.alternatives(), marginals=asked.marginals())


def solve(
    problem: Problem,
    effort: Effort,
    *,
    extra: Extra | None = None,
    held: Held | None = None,
    patterns: Patterns | None = None,
) -> Solution:
    """Solve `problem`.

    Args:
        extra: the current plan and what moving costs (`replan` makes it). held: where processes stand now.
        patterns: of this problem, where the caller has asked for them already.
    """
    patterns = patterns or enumerate_patterns(problem)
    extra = extra or Extra()
    asked = within_reach(problem, patterns.columns(problem.classes))
    for attempt in range(_REPACKS + 1):
        solved = search(asked, patterns, effort, extra)
        counted = [(c, n) for c, n in solved.counted if n]
        packed = _packed(counted, problem, held or {})
        if not packed.left:
            break
        shrunk = {c.name: max(0.0, len(c.nodes) - 1.0 - attempt) for c in problem.classes if c.name in packed.left}
        extra = replace(extra, limit_nodes={**(extra.limit_nodes or {}), **shrunk})
    return Solution(tally(problem, patterns, solved, packed), problem, patterns, solved, effort)


def plan(problem: Problem, effort: Effort, *, explain: bool = True, patterns: Patterns | None = None) -> Plan:
    """The plan of `problem`.

    Args:
        explain: also ask for alternatives, marginal nodes and relaxations (many small questions more).
        patterns: as in `solve`.
    """
    made = solve(problem, effort, patterns=patterns)
    return made.explained() if explain else made.plan


def plan_for_agents(problem: Problem, effort: Effort) -> tuple[Problem, Plan]:
    """Solve `problem` so that agents keep their limits (`hold_agents`)."""
    solved, made = hold_agents(problem, lambda asked: solve(asked, effort), lambda made: made.plan)
    return solved, made.explained()


def hold_agents(problem: Problem, solve: Callable[[Problem], T], plan_of: Callable[[T], Plan]) -> tuple[Problem, T]:
    """Solve `problem`; where an agent's longest path is too slow, again with tighter times for the models it asks.

    Returns the problem that is answered, with the answer: `problem` itself where that keeps every limit or none of the
    tighter ones does.
    """
    made = first = solve(problem)
    tighter = problem
    for _ in range(_TIGHTENED_MAX):
        if plan_of(made).kept or not plan_of(made).feasible:
            break
        tighter = _tighter(tighter, plan_of(made))
        made = solve(tighter)
    return (tighter, made) if plan_of(made).kept else (problem, first)


def _tighter(problem: Problem, made: Plan) -> Problem:
    """Times between tokens shortened for the models of late agents, by as much as these are late after their tools."""
    points = {s.name: s.point for s in made.services if s.point is not None}
    # Limits of agents are held against median times, objectives against times with a margin.
    margin = min(margin_of(problem, c.device or c.core) for c in problem.classes)
    factor: dict[str, float] = {}
    for a in made.agents:
        if a.kept or a.limit_s is None:
            continue
        tools = sum(max(1.0, c.visits) * c.seconds for c in a.calls if not c.service and c.name in a.path)
        needed = max(0.1, (a.limit_s - tools) / max(1e-9, a.path_s - tools)) * _TIGHTENED_MORE
        for name in {c.service for c in a.calls if c.name in a.path and c.service}:
            factor[name] = min(needed, factor.get(name, 1.0))

    def shortened(s: Service) -> Service:
        if s.name not in factor or not isinstance(s, ModelService):
            return s
        itl_s = points[s.name].itl_s * factor[s.name] * margin
        return replace(s, slo=replace(s.slo, itl_s=min(itl_s, s.slo.itl_s or itl_s)))

    return replace(problem, services=tuple(shortened(s) for s in problem.services))


def _packed(counted: Sequence[tuple[Column, int]], problem: Problem, held: Held) -> Packed:
    """What stays in place may cut the room into pieces: on classes where that opens nodes, everything may move."""
    packed = pack(counted, problem.classes, held)
    needed, used = nodes_needed(counted, problem.classes), packed.nodes_used()
    crowded = packed.left | {name for name, nodes in used.items() if nodes > needed.get(name, 0)}
    if not crowded or not held:
        return packed
    moved = pack(counted, problem.classes, {k: v for k, v in held.items() if k[2] not in crowded})
    price = {c.name: c.hourly_usd for c in problem.classes}

    def cost(made: Packed) -> tuple[int, float]:
        return len(made.left), sum(price[name] * nodes for name, nodes in made.nodes_used().items())

    return moved if cost(moved) < cost(packed) else packed
