from __future__ import annotations

import pytest

from katsura.placement.highs import relax
from katsura.placement.patterns import enumerate_patterns
from katsura.placement.planner import plan
from katsura.placement.problem import Effort, Problem
from katsura.placement.program import build
from katsura.placement.rounding import round_demands
from katsura.testing.clusters import cards, model_service, node_class, problem_of


def bounds(problem: Problem) -> tuple[float, float]:
    columns = enumerate_patterns(problem).columns(problem.classes)
    built = build(problem, columns)
    plain, _ = relax(built.program)
    round_demands(problem, columns, built)
    rounded, _ = relax(built.program)
    return plain.bound, rounded.bound


@pytest.mark.parametrize("demand", [1.0, 7.3, 11.0, 26.5])
def test_rounded_rows_raise_the_bound_and_never_above_the_best_plan(effort: Effort, demand: float) -> None:
    services = [model_service("chat", cards()[0], demand), model_service("big", cards()[2], demand / 9)]
    problem = problem_of(services, [node_class("H100", 9), node_class("L4", 9, per_node=4)])
    plain, rounded = bounds(problem)
    best = plan(problem, effort, explain=False)
    assert best.feasible
    assert plain - 1e-6 <= rounded <= best.value + 1e-6


def test_a_demand_that_needs_a_second_instance_pays_for_it(effort: Effort) -> None:
    service = model_service("chat", cards()[0], 1.0)
    problem = problem_of([service], [node_class("L40S", 40, per_node=1)])
    one = enumerate_patterns(problem).columns(problem.classes)[0].requests_s
    problem = problem_of([model_service("chat", cards()[0], 1.2 * one)], problem.classes)
    plain, rounded = bounds(problem)
    best = plan(problem, effort, explain=False).value
    assert plain < 0.7 * best
    assert rounded == pytest.approx(best, rel=1e-3)
