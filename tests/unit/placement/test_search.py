from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from katsura.placement.document import running
from katsura.placement.patterns import Patterns, enumerate_patterns
from katsura.placement.plan import Plan
from katsura.placement.planner import plan
from katsura.placement.problem import SPLIT, Effort, Problem
from katsura.placement.program import Extra
from katsura.placement.replan import replan
from katsura.placement.search import MERGE_COLUMNS, search
from katsura.testing.clusters import cards, model_service, node_class, problem_of, synthetic_problem

LARGE = Effort(gap=0.04, seconds=None, nodes=20)


@pytest.fixture(scope="module")
def large() -> tuple[Problem, Patterns, Plan]:
    """Enough racks and patterns that classes are merged and few columns are tried first."""
    problem = synthetic_problem(150, 8, seed=1)
    patterns = enumerate_patterns(problem)
    assert len(patterns.columns(problem.classes)) > MERGE_COLUMNS
    return problem, patterns, plan(problem, LARGE, explain=False, patterns=patterns)


def check(problem: Problem, made: Plan) -> None:
    used = Counter[str]()
    for place in (p for i in made.instances for p in i.places):
        used[place.node] += place.accelerators
    have = {n: c.accelerators for c in problem.classes for n in c.nodes}
    assert all(n <= have[node] for node, n in used.items())
    assert made.feasible


def test_a_large_problem_is_served_within_its_nodes_and_its_gap_is_proven(
    large: tuple[Problem, Patterns, Plan],
) -> None:
    problem, _, made = large
    check(problem, made)
    assert made.bound <= made.value
    assert made.gap <= 0.08


def test_the_same_search_gives_the_same_counts(large: tuple[Problem, Patterns, Plan]) -> None:
    problem, patterns, _ = large
    first, second = (search(problem, patterns, LARGE, Extra()) for _ in range(2))
    assert first.counted == second.counted
    assert first.bound == second.bound


def test_a_search_without_time_still_gives_a_plan_that_states_its_gap(large: tuple[Problem, Patterns, Plan]) -> None:
    problem, patterns, _ = large
    made = plan(problem, Effort(gap=0.0, seconds=1e-6), explain=False, patterns=patterns)
    check(problem, made)
    assert 0 < made.bound <= made.value
    assert made.gap == pytest.approx(1 - made.bound / made.value)


def test_a_small_change_of_demand_moves_little_of_a_large_plan(large: tuple[Problem, Patterns, Plan]) -> None:
    problem, patterns, before = large
    grown = replace(problem.services[0], requests_s=1.1 * problem.services[0].requests_s)
    changed = replace(problem, services=(grown, *problem.services[1:]))
    change = replan(changed, LARGE, running(before), explain=False, memo=patterns.memo)
    check(changed, change.plan)
    assert change.plan.gap <= 0.08
    started = {s.service for s in change.steps if s.action == "start"}
    assert len([s for s in change.steps if s.action == "start"]) <= 0.3 * len(before.instances)
    assert grown.name in started or change.kept


def test_kinds_that_share_no_domain_are_never_paired() -> None:
    service = [model_service(f"s{i}", cards()[3], 3.0, topologies=(SPLIT,), itl_ms=200) for i in range(8)]
    kinds = ("H100", "A100-80", "L40S", "H200")
    classes = [node_class(kind, 4, domain=f"{kind.lower()}-{i}") for kind in kinds for i in range(4)]
    problem = problem_of(service, classes)
    patterns = enumerate_patterns(problem)
    assert len(patterns.columns(problem.classes)) > MERGE_COLUMNS
    made = plan(problem, LARGE, explain=False, patterns=patterns)
    check(problem, made)
    assert all(len({m.node_class for m in i.column.members}) == 1 for i in made.instances)


def test_what_cannot_be_served_whole_is_served_for_as_little_as_it_can() -> None:
    service = replace(model_service("chat", cards()[0], 5, itl_ms=100, domains_min=2), spot_share=1.0)
    nodes = [node_class("H100", 1, usd=24.0), node_class("L4", 2, usd=6.0), node_class("A100-80", 1, usd=16.0)]
    found = plan(problem_of([service], nodes), Effort(gap=0.05, seconds=None, nodes=20), explain=False)
    assert not found.feasible
    assert found.services[0].unmet == 0.5
    assert set(found.nodes_used) == {"L4x8/a"}
    assert found.gap <= 0.05
