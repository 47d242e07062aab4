from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from katsura.placement import variations
from katsura.placement.document import running
from katsura.placement.highs import Relaxed, relax
from katsura.placement.patterns import Column, enumerate_patterns
from katsura.placement.planner import Solution, plan, solve
from katsura.placement.problem import Effort, Problem
from katsura.placement.program import build
from katsura.placement.replan import replan
from katsura.placement.rounding import round_demands
from katsura.testing.clusters import cards, model_service, node_class, problem_of, synthetic_problem

LARGE = Effort(gap=0.01, nodes=40, seconds=None)


@pytest.fixture(scope="module")
def wide() -> Problem:
    """60 nodes in six racks: its search merges racks, and its variations are too large to be solved whole."""
    return synthetic_problem(60, 8, 1, racks=6)


@pytest.fixture(scope="module")
def solution(wide: Problem) -> Solution:
    return solve(wide, LARGE)


def linear_bound(problem: Problem, columns: Sequence[Column]) -> float:
    built = build(problem, columns)
    round_demands(problem, columns, built)
    return relax(built.program)[0].bound


def test_a_relaxation_asked_again_answers_as_if_it_were_new(small: Problem) -> None:
    columns = enumerate_patterns(small).columns(small.classes)
    built = build(small, columns)
    asked = Relaxed(built.program)
    first, _ = asked.ask()
    closed = {z: 0.0 for z, c in zip(built.z, columns, strict=True) if "A100-80x8/a" in c.key}
    second, _ = asked.ask(closed)
    third, _ = asked.ask()
    alone = build(small, columns)
    for z in closed:
        alone.program.high[z] = 0.0
    assert second.bound == pytest.approx(relax(alone.program)[0].bound)
    assert second.bound > first.bound + 1e-6
    assert third.bound == pytest.approx(first.bound)


def test_what_a_bound_says_of_another_way_holds_for_a_plan_of_it(wide: Problem, solution: Solution) -> None:
    found = {a.what: a for a in solution.explained().alternatives}
    without = tuple(c for c in wide.classes if (c.device or c.core).name != "H100")
    best = plan(replace(wide, classes=without), LARGE, explain=False)
    assert found["without H100"].at_least
    assert solution.plan.hourly_usd < (found["without H100"].hourly_usd or 0.0) <= best.value + 1e-6


def test_in_a_large_program_every_other_way_is_bounded_or_a_plan_that_changes_what_it_must(solution: Solution) -> None:
    assert len(solution.solved.columns) > variations._WHOLE_COLUMNS
    made = solution.explained()
    assert {a.at_least for a in made.alternatives} == {True, False}
    for a in made.alternatives:
        if a.at_least:
            assert (a.hourly_usd or 0.0) > made.hourly_usd
            assert "bound alone" in a.why_not
        elif a.hourly_usd is not None:
            assert "with the rest as it is" in a.why_not
            # A plan of these patterns, so that no bound is above it.
            assert a.hourly_usd >= made.bound * (1 - 1e-3)
    assert solution.explained() == made


def test_where_the_time_for_explaining_is_spent_each_way_is_told_with_its_bound(
    solution: Solution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variations, "_SECONDS", 0.0)
    made = replace(solution, effort=replace(LARGE, seconds=1.0)).explained()
    free = solution.explained()
    assert {a.what for a in made.alternatives} == {a.what for a in free.alternatives}
    late = [a for a in made.alternatives if "not looked at" in a.why_not]
    assert late
    assert all(a.at_least and a.hourly_usd for a in late)


def test_what_one_more_node_of_a_large_cluster_saves_is_no_more_than_its_reduced_cost(wide: Problem) -> None:
    fewer = replace(wide, classes=tuple(replace(c, nodes=c.nodes[: len(c.nodes) // 4 + 1]) for c in wide.classes))
    solution = solve(fewer, LARGE)
    made = solution.explained()
    assert made.feasible
    assert made.marginals
    columns, classes = solution.solved.columns, solution.solved.classes
    for m in made.marginals[:2]:
        assert m.at_most
        wider = tuple(replace(c, nodes=(*c.nodes, "one-more")) if c.name == m.node_class else c for c in classes)
        lower = linear_bound(replace(fewer, classes=wider), columns)
        assert m.change_usd <= lower - linear_bound(replace(fewer, classes=classes), columns) + 1e-6


def test_a_plan_that_is_kept_is_explained_itself_and_not_the_one_that_was_refused(effort: Effort) -> None:
    problem = problem_of(
        [model_service("chat", cards()[0], 20)], [node_class("A100-80", 2, usd=16.0), node_class("H100", 2, usd=15.9)]
    )
    before = plan(replace(problem, classes=problem.classes[:1]), effort)
    change = replan(problem, effort, running(before))
    assert change.kept
    said = {a.what: a for a in change.plan.alternatives}
    other = said["without A100-80"]
    assert other.hourly_usd == pytest.approx(15.9)
    assert other.why_not == "$0.10/h less, too little to change what runs for"


def test_ways_out_of_a_large_unmet_demand_are_whole_plans_or_told_by_their_bound(wide: Problem) -> None:
    few = replace(wide, classes=tuple(replace(c, nodes=c.nodes[:1]) for c in wide.classes))
    made = plan(few, LARGE)
    assert not made.feasible
    assert made.relaxations
    assert len({r.what for r in made.relaxations}) == len(made.relaxations)
    assert any(not r.at_least for r in made.relaxations)


@pytest.mark.parametrize("factor", [1, 10, 100, 1000])
def test_whatever_is_asked_for_all_that_there_is_serves(effort: Effort, factor: int) -> None:
    nodes = [node_class("A100-80", 1), node_class("L4", 2, per_node=4)]
    most = plan(problem_of([model_service("chat", cards()[0], 60)], nodes), effort, explain=False)
    asked = problem_of([model_service("chat", cards()[0], 60 * factor)], nodes)
    made = plan(asked, Effort(gap=0.005, seconds=None))
    assert not made.feasible
    assert made.services[0].capacity == pytest.approx(most.services[0].capacity, rel=0.01)
    assert sum(made.nodes_used.values()) == 3
