"""Counts of columns with a proven bound: few promising columns first, all of them where that is not good enough.

Where racks repeat, their classes are merged, counted, and laid back over the domains. `planner` packs what comes out;
`variations` asks the same of changed problems.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Final

from katsura.placement.greedy import as_start, greedy
from katsura.placement.highs import TIME_LIMIT, Answer, relax, solve
from katsura.placement.merge import distribute, merge, merge_extra, merged_key
from katsura.placement.patterns import Column, Patterns
from katsura.placement.problem import Effort, NodeClass, Objective, Problem
from katsura.placement.program import Built, Extra, build
from katsura.placement.rounding import round_demands

MERGE_COLUMNS: Final = 400
"""Columns above which equal nodes of different domains are counted together first."""
_MERGED_GAP: Final = 0.75
"""Part of the gap that merged classes may keep: laying counts over domains costs something too."""
_INNER_GAP: Final = 0.5
"""Part of the gap that a search may keep whose own bound counts for nothing."""
_PROMISING: Final = 6
"""Columns of each service, by reduced cost, that the first search of a large program tries."""

_SERVED_MIN: Final = 1e-5
"""Least part of a demand whose serving a search tells from none."""
_AS_MUCH: Final = 1e-7
"""Part of a demand that one plan may serve less than another that serves as much."""
_NO_EXTRA: Final = Extra()


@dataclass(frozen=True, slots=True)
class Solved:
    """Columns with their counts; no plan of these columns has an objective below `bound` (above, for throughput).

    Attributes:
        classes, columns: that the search worked on (merged ones, maybe). reduced: reduced costs in its relaxation.
        extra: what the search was told besides, in terms of `classes` and `columns`.
        moves: what `Extra.move_cost` adds to the objective of `counted`.
        unmet: sum over services of the part of their demand that is not served. seconds: of the search.
    """

    counted: tuple[tuple[Column, int], ...]
    bound: float
    ended: str
    classes: tuple[NodeClass, ...]
    columns: tuple[Column, ...]
    reduced: Mapping[str, float]
    extra: Extra = _NO_EXTRA
    moves: float = 0.0
    unmet: float = 0.0
    seconds: float = 0.0


def search(problem: Problem, patterns: Patterns, effort: Effort, extra: Extra) -> Solved:
    """The best counts within `effort`."""
    columns = patterns.columns(problem.classes)
    merged = merge(problem.classes)
    if len(columns) < MERGE_COLUMNS or len(merged.classes) == len(problem.classes):
        return _priced(solve_columns(problem, columns, effort, extra), extra)
    whole = replace(problem, classes=merged.classes)
    # A pair of kinds that no one domain has both of is no pattern, whatever merged classes say.
    real = {merged_key(c, merged) for c in columns}
    few = [c for c in patterns.columns(merged.classes) if c.key in real]
    coarse = merge_extra(extra, columns, merged)
    closer = replace(_part(effort, 0.5, 0.0), gap=effort.gap * _MERGED_GAP)
    first = solve_columns(whole, few, closer, coarse)
    counts = distribute(problem, columns, {c.key: n for c, n in first.counted}, merged, extra)
    if counts is not None and _close(problem, columns, counts, first.bound, extra, effort.gap):
        return _priced(replace(first, counted=tuple(zip(columns, counts, strict=True))), extra)
    # No domain had room for something, or spreading opened many nodes: choose domains again, for these shapes only.
    wanted, held = {c.key for c, n in first.counted if n}, extra.running or {}
    near = [i for i, c in enumerate(columns) if held.get(c.key) or merged_key(c, merged) in wanted]
    start = None if counts is None else [counts[i] for i in near]
    some, left = [columns[i] for i in near], _part(effort, 1.0, first.seconds)
    second = solve_columns(problem, some, _part(left, 0.5, 0.0), extra, start, first.bound)
    left, bound = _part(left, 1.0, second.seconds), first.bound
    if second.unmet > first.unmet + 1e-6:
        second = solve_columns(problem, columns, left, extra, counts, bound)
        bound = (min if problem.objective is Objective.THROUGHPUT else max)(bound, second.bound)
    elif not _close(problem, some, [n for _, n in second.counted], bound, extra, effort.gap):
        bound = _raised(whole, few, left, coarse, first)
    found = replace(first, counted=second.counted, bound=bound, ended=second.ended, unmet=second.unmet)
    return _priced(found, extra)


def _raised(problem: Problem, columns: Sequence[Column], effort: Effort, extra: Extra, first: Solved) -> float:
    """A higher bound than that of `first`, where the time that is left gives one: all columns, from its counts."""
    if first.unmet or first.ended == TIME_LIMIT:  # the same search again would find no more
        return first.bound
    built = build(problem, columns, extra)
    start = as_start(problem, columns, [n for _, n in first.counted], built)
    for i in built.w.values():
        built.program.high[i] = 0.0
    answer = solve(built.program, replace(effort, gap=effort.gap * _INNER_GAP), start)
    return max(first.bound, answer.bound)


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
    bound: float | None = None,
) -> Solved:
    """The integer program over exactly these columns.

    Args:
        counts: what to start from; default: a greedy plan. bound: known from a relaxation of this problem.
    """
    built = build(problem, columns, extra)
    relaxed, reduced = relax(built.program)
    if counts is None:
        counts = greedy(problem, columns, running=extra.running if extra else None)
    start = as_start(problem, columns, counts, built)
    throughput, spent, known = problem.objective is Objective.THROUGHPUT, relaxed.seconds, relaxed.bound
    if not throughput:
        tight = build(problem, columns, extra)
        round_demands(problem, columns, tight)
        rounded, duals = relax(tight.program)
        if rounded.values is not None:
            relaxed, reduced, known = rounded, duals, max(known, rounded.bound)
        known = max(known, bound if bound is not None else known)
        spent += rounded.seconds
    answer: Answer | None = None
    if len(columns) >= MERGE_COLUMNS and not throughput and _serves_all(relaxed, built):
        answer = _core(problem, columns, effort, extra, built, start, relaxed, reduced, known)
        spent += answer.seconds if answer else 0.0
    if answer is None or answer.objective - known > effort.gap * abs(answer.objective):
        better = answer.values if answer and answer.values else start
        inner = effort if bound is None else replace(effort, gap=effort.gap * _INNER_GAP)
        enough = known / (1 - effort.gap) if known > 0 else None
        answer = _solve_whole(built, relaxed, _part(inner, 1.0, spent), better, enough)
        spent += answer.seconds
        known = max(known, answer.bound)
        start = better
    values = answer.values or start
    unmet = sum(values[i] for i in built.w.values())
    known -= unmet * built.penalty
    return Solved(
        counted=tuple((c, round(values[i])) for c, i in zip(columns, built.z, strict=True)),
        bound=-known if throughput else known,
        ended=answer.ended,
        classes=problem.classes,
        columns=tuple(columns),
        reduced=reduced,
        extra=extra or _NO_EXTRA,
        unmet=unmet,
        seconds=spent,
    )


def _core(
    problem: Problem,
    columns: Sequence[Column],
    effort: Effort,
    extra: Extra | None,
    built: Built,
    start: Sequence[float],
    relaxed: Answer,
    reduced: Mapping[str, float],
    known: float,
) -> Answer | None:
    """A solution of `built` that uses promising columns only: those of the relaxation, what runs or starts, and few
    more by reduced cost. Its objective is that of `built`; its bound is not one."""
    assert relaxed.values is not None
    held = (extra.running if extra else None) or {}
    taken = {i for i, (c, z) in enumerate(zip(columns, built.z, strict=True)) if held.get(c.key) or start[z] > 0.5}
    kept = promising(columns, taken, [relaxed.values[z] for z in built.z], reduced)
    small = build(problem, [columns[i] for i in kept], extra)
    for i in small.w.values():
        small.program.high[i] = 0.0
    begin = [start[built.z[i]] for i in kept]
    first = as_start(problem, [columns[i] for i in kept], [round(v) for v in begin], small)
    closer = replace(_part(effort, 0.3, 0.0), gap=effort.gap * _INNER_GAP)
    answer = solve(small.program, closer, first, known / (1 - effort.gap))
    if answer.values is None:
        return None
    counts = [0] * len(columns)
    for i, z in zip(kept, small.z, strict=True):
        counts[i] = round(answer.values[z])
    values = as_start(problem, columns, counts, built)
    near = answer.objective - known <= effort.gap * abs(answer.objective)
    return replace(answer, values=values, bound=known, ended="gap reached" if near else answer.ended)


def promising(
    columns: Sequence[Column], taken: Set[int], relaxed: Sequence[float], reduced: Mapping[str, float]
) -> list[int]:
    """Columns worth counting, by index: those `taken`, those of the relaxation, and few more by reduced cost."""
    ranked: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for i, column in enumerate(columns):
        certain = i in taken or relaxed[i] > 1e-9
        ranked[column.service].append((-1.0 if certain else max(0.0, reduced[f"z:{column.key}"]), i))
    kept: list[int] = []
    for mine in ranked.values():
        few = sorted(mine)
        least = sum(cost < 0 for cost, _ in few)
        kept += [i for _, i in few[: least + _PROMISING]]
    return sorted(kept)


def _serves_all(relaxed: Answer, built: Built) -> bool:
    return relaxed.values is not None and all(relaxed.values[i] < 1e-9 for i in built.w.values())


def _solve_whole(built: Built, relaxed: Answer, effort: Effort, start: Sequence[float], enough: float | None) -> Answer:
    """Serve everything where that can be: a small unmet part must never hide within the gap."""
    if _serves_all(relaxed, built):
        highest = [built.program.high[i] for i in built.w.values()]
        for i in built.w.values():
            built.program.high[i] = 0.0
        answer = solve(built.program, effort, start, enough)
        if answer.values is not None:
            return answer
        for i, high in zip(built.w.values(), highest, strict=True):
            built.program.high[i] = high
    answer = solve(built.program, _closer(effort, relaxed, built), start)
    return answer if answer.values is None else _cheapest(built, answer, _part(effort, 1.0, answer.seconds))


def _cheapest(built: Built, found: Answer, effort: Effort) -> Answer:
    """The best of what serves as much as `found`: beside the price of what is unmet, costs hide within the gap."""
    assert found.values is not None
    program = built.program
    for i in built.w.values():
        program.high[i], program.cost[i] = min(1.0, found.values[i] + _AS_MUCH), 0.0
    answer = solve(program, effort, found.values)
    if answer.values is None:
        return found
    price = built.penalty * sum(answer.values[i] for i in built.w.values())
    seconds = found.seconds + answer.seconds
    return replace(answer, objective=answer.objective + price, bound=answer.bound + price, seconds=seconds)


def _closer(effort: Effort, relaxed: Answer, built: Built) -> Effort:
    """Where only a part can be served, a gap of that part: beside the price of the rest it would look like nothing."""
    unmet = [v for i in built.w.values() if (v := relaxed.values[i]) > 1e-9] if relaxed.values else []
    served = 1 - sum(unmet) / len(unmet) if unmet else 1.0
    return replace(effort, gap=effort.gap * max(_SERVED_MIN, served))


def _part(effort: Effort, share: float, spent: float) -> Effort:
    return effort if effort.seconds is None else replace(effort, seconds=max(1.0, effort.seconds * share - spent))


def _priced(solved: Solved, extra: Extra) -> Solved:
    held, price = extra.running or {}, extra.move_cost or {}
    moves = sum(price.get(c.key, 0.0) * max(0, n - held.get(c.key, 0)) for c, n in solved.counted)
    return replace(solved, moves=moves)
