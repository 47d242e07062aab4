"""Counts of columns with a proven bound: through merged classes where racks repeat, in full elsewhere.

`planner` packs what comes out; `variations` asks the same of changed problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from katsura.placement.greedy import as_start, greedy
from katsura.placement.highs import Answer, relax, solve
from katsura.placement.merge import distribute, merge, merge_extra
from katsura.placement.patterns import Column, Patterns
from katsura.placement.problem import Effort, NodeClass, Objective, Problem
from katsura.placement.program import Built, Extra, build

MERGE_COLUMNS: Final = 400
"""Columns above which equal nodes of different domains are counted together first."""


_FULL_COLUMNS: Final = 4000
"""Columns above which the full program gains too little for its time."""


@dataclass(frozen=True, slots=True)
class Solved:
    """Columns with their counts; no plan of these columns has an objective below `bound` (above, for throughput).

    Attributes:
        classes, columns: that the search worked on (merged ones, maybe). reduced: reduced costs in its relaxation.
        moves: what `Extra.move_cost` adds to the objective of `counted`.
    """

    counted: tuple[tuple[Column, int], ...]
    bound: float
    ended: str
    classes: tuple[NodeClass, ...]
    columns: tuple[Column, ...]
    reduced: Mapping[str, float]
    moves: float
    seconds: float = 0.0
    """Time of the search."""


def search(problem: Problem, patterns: Patterns, effort: Effort, extra: Extra) -> Solved:
    """The best counts within `effort`."""
    columns = patterns.columns(problem.classes)
    merged = merge(problem.classes)
    if len(columns) < MERGE_COLUMNS or len(merged.classes) == len(problem.classes) or extra.limit_nodes:
        return _priced(solve_columns(problem, columns, effort, extra), extra)
    few = patterns.columns(merged.classes)
    first = solve_columns(
        replace(problem, classes=merged.classes), few, _part(effort, 0.7, 0.0), merge_extra(extra, columns, merged)
    )
    counts = distribute(problem, columns, {c.key: n for c, n in first.counted}, merged, extra)
    near = effort.gap if len(columns) < _FULL_COLUMNS else 2 * effort.gap
    if counts is not None and _close(problem, columns, counts, first.bound, extra, near):
        return _priced(replace(first, counted=tuple(zip(columns, counts, strict=True))), extra)
    # No domain had room for something, or spreading opened many nodes: the full program knows better.
    full = solve_columns(problem, columns, _part(effort, 1.0, first.seconds), extra, counts)
    better = min if problem.objective is Objective.THROUGHPUT else max
    return _priced(replace(full, bound=better(full.bound, first.bound)), extra)


def _close(
    problem: Problem, columns: Sequence[Column], counts: Sequence[int], bound: float, extra: Extra, gap: float
) -> bool:
    built = build(problem, columns, extra)
    values = as_start(problem, columns, counts, built)
    value = sum(v * c for v, c in zip(values, built.program.cost, strict=True))
    return problem.objective is Objective.THROUGHPUT or value - bound <= gap * value


def solve_columns(
    problem: Problem,
    columns: Sequence[Column],
    effort: Effort,
    extra: Extra | None = None,
    counts: Sequence[int] | None = None,
) -> Solved:
    """The integer program over exactly these columns, started from `counts` or from a greedy plan."""
    built = build(problem, columns, extra)
    relaxed, reduced = relax(built.program)
    start = as_start(
        problem, columns, counts or greedy(problem, columns, running=extra.running if extra else None), built
    )
    answer = _solve_whole(built, relaxed, effort, start)
    values = answer.values or start
    unmet = sum(values[i] for i in built.w.values()) * built.penalty
    bound = max(relaxed.bound, answer.bound)
    return Solved(
        counted=tuple((c, round(values[i])) for c, i in zip(columns, built.z, strict=True)),
        bound=unmet - bound if problem.objective is Objective.THROUGHPUT else bound - unmet,
        ended=answer.ended,
        classes=problem.classes,
        columns=tuple(columns),
        reduced=reduced,
        moves=0.0,
        seconds=answer.seconds,
    )


def _solve_whole(built: Built, relaxed: Answer, effort: Effort, start: tuple[float, ...]) -> Answer:
    """Serve everything where that can be: a small unmet part must never hide within the gap."""
    if relaxed.values is not None and all(relaxed.values[i] < 1e-9 for i in built.w.values()):
        highest = [built.program.high[i] for i in built.w.values()]
        for i in built.w.values():
            built.program.high[i] = 0.0
        answer = solve(built.program, effort, start)
        if answer.values is not None:
            return answer
        for i, high in zip(built.w.values(), highest, strict=True):
            built.program.high[i] = high
    return solve(built.program, effort, start)


def _part(effort: Effort, share: float, spent: float) -> Effort:
    return effort if effort.seconds is None else replace(effort, seconds=max(1.0, effort.seconds * share - spent))


def _priced(solved: Solved, extra: Extra) -> Solved:
    held, price = extra.running or {}, extra.move_cost or {}
    moves = sum(price.get(c.key, 0.0) * max(0, n - held.get(c.key, 0)) for c, n in solved.counted)
    return replace(solved, moves=moves)
