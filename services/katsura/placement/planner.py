"""From a problem to a plan: enumerate, bound, start greedily, improve, pack, and say what limits it.

`plan` always answers. Where a demand cannot be met the plan serves what it can, names the binding limits and the
cheapest change that would meet it; where time runs out the best plan so far is given with its gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from katsura.placement.greedy import as_start, greedy
from katsura.placement.highs import relax, solve
from katsura.placement.pack import Held, pack
from katsura.placement.patterns import Column, enumerate_patterns
from katsura.placement.plan import Plan
from katsura.placement.problem import Effort, Objective, Problem
from katsura.placement.program import THROUGHPUT_MAX, Extra, build
from katsura.placement.tally import tally
from katsura.placement.variations import alternatives, marginals, relaxations

_REPACKS: Final = 3
"""How often a class is made smaller because its cores or memory could not be filled as the program counted."""


@dataclass(frozen=True, slots=True)
class Solved:
    """Counts by column; no plan of these columns has an objective below `bound` (above it, for throughput).

    Attributes:
        reduced: reduced cost of each variable in the linear relaxation.
        moves: what `Extra.move_cost` adds to the objective.
    """

    counts: tuple[int, ...]
    bound: float
    ended: str
    reduced: Mapping[str, float]
    moves: float


def plan(
    problem: Problem,
    effort: Effort,
    *,
    extra: Extra | None = None,
    held: Held | None = None,
    explain: bool = True,
) -> Plan:
    """Solve `problem`.

    Args:
        extra: the current plan and what moving costs (`replan` makes it). held: where processes stand now.
        explain: also ask for alternatives, marginal nodes and relaxations (several more, shorter solves).
    """
    patterns = enumerate_patterns(problem)
    extra = extra or Extra()
    for attempt in range(_REPACKS + 1):
        solved = solve_counts(problem, patterns.columns, effort, extra)
        chosen = [(c, n) for c, n in zip(patterns.columns, solved.counts, strict=True) if n]
        packed = pack(chosen, problem.classes, held)
        if not packed.left:
            break
        shrunk = {c.name: len(c.nodes) - 1.0 - attempt for c in problem.classes if c.name in packed.left}
        extra = replace(extra, limit_nodes={**(extra.limit_nodes or {}), **shrunk})
    made = tally(problem, patterns, packed, solved.bound, solved.ended, solved.reduced, solved.moves)
    if not explain:
        return made
    if not made.feasible:
        made = replace(made, relaxations=relaxations(problem, effort))
    return replace(
        made,
        alternatives=alternatives(problem, patterns.columns, made, effort),
        marginals=marginals(problem, patterns.columns, made, effort, solved.reduced),
    )


def solve_counts(problem: Problem, columns: Sequence[Column], effort: Effort, extra: Extra | None = None) -> Solved:
    """How many instances of each column, without packing."""
    built = build(problem, columns, extra)
    relaxed, reduced = relax(built.program)
    start = as_start(problem, columns, greedy(problem, columns), built)
    answer = solve(built.program, effort, start)
    values = answer.values or start
    unmet = sum(values[i] for i in built.w.values()) * built.penalty
    bound = max(relaxed.bound, answer.bound)
    moves = sum(values[i] * built.program.cost[i] for i, n in enumerate(built.program.names) if n.startswith("m:"))
    return Solved(
        counts=tuple(round(values[i]) for i in built.z),
        bound=-bound * THROUGHPUT_MAX / built.penalty if problem.objective is Objective.THROUGHPUT else bound - unmet,
        ended=answer.ended,
        reduced=reduced,
        moves=moves,
    )
