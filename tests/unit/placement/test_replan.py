from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.placement.document import running
from katsura.placement.planner import plan
from katsura.placement.problem import Effort, Objective, Problem
from katsura.placement.replan import Policy, replan
from katsura.placement.whatif import changed
from katsura.testing.clusters import cards, model_service, node_class, problem_of


def test_nothing_moves_where_nothing_changed(small: Problem, effort: Effort) -> None:
    change = replan(small, effort, running(plan(small, effort)))
    assert change.kept
    assert change.steps == ()


def test_a_saving_that_does_not_pay_its_moves_is_left_alone(effort: Effort) -> None:
    problem = problem_of(
        [model_service("chat", cards()[0], 20)], [node_class("A100-80", 2, usd=16.0), node_class("H100", 2, usd=15.9)]
    )
    before = plan(replace(problem, classes=problem.classes[:1]), effort)
    change = replan(problem, effort, running(before))
    assert change.kept
    assert change.plan.counts == before.counts


@pytest.mark.parametrize("objective", list(Objective))
def test_nothing_moves_for_less_than_the_hysteresis_whatever_is_asked_for(
    small: Problem, effort: Effort, objective: Objective
) -> None:
    asked = replace(small, objective=objective)
    before = running(plan(asked, effort))
    again = replan(asked, effort, before)
    assert (again.kept, again.steps) == (True, ())
    assert again.why.startswith("no ")
    one_less = replace(before, instances=before.instances[:-1])  # something must change: what is left does not serve
    assert not replan(asked, effort, one_less).kept
    other = running(
        plan(replace(small, objective=Objective.LATENCY if objective is Objective.COST else Objective.COST), effort)
    )
    never = replan(asked, effort, other, Policy(hysteresis=1e9))
    assert never.kept
    assert never.plan.gap >= 0
    always = replan(asked, effort, other, Policy(hysteresis=0.0, safety=0.0))
    assert always.kept or always.steps
    if not always.kept:
        assert "they " in always.why
        assert ": not enough" in never.why


def test_a_large_saving_is_taken(effort: Effort) -> None:
    problem = problem_of(
        [model_service("chat", cards()[0], 20)], [node_class("A100-80", 2), node_class("H100", 2, usd=2.0)]
    )
    before = plan(replace(problem, classes=problem.classes[:1]), effort)
    change = replan(problem, effort, running(before), Policy(horizon_s=36000))
    assert not change.kept
    assert change.saving_usd > 10
    assert set(change.plan.nodes_used) == {"H100x8/a"}


def test_a_plan_that_no_longer_serves_is_replaced_and_starts_come_first(small: Problem, effort: Effort) -> None:
    before = plan(small, effort)
    change = replan(changed(small, "demand:chat=x2"), effort, running(before))
    assert not change.kept
    assert change.plan.feasible
    actions = [s.action for s in change.steps]
    assert actions[0] == "start"
    assert not any(s.breaks for s in change.steps)


def test_without_a_spare_node_the_stop_that_must_come_first_is_marked(effort: Effort) -> None:
    problem = problem_of([model_service("big", cards()[2], 1)], [node_class("A100-80", 1)])
    before = plan(problem, effort)
    faster = problem_of([replace(model_service("big", cards()[2], 1, itl_ms=25.0))], [node_class("A100-80", 1)])
    change = replan(faster, effort, running(before))
    if not change.kept:
        assert [s.action for s in change.steps] in (["stop", "start"], ["start", "stop"])


def test_a_lost_node_is_not_kept(small: Problem, effort: Effort) -> None:
    before = plan(small, effort)
    lost = before.instances[0].places[0].node
    classes = tuple(replace(c, nodes=tuple(n for n in c.nodes if n != lost)) for c in small.classes)
    change = replan(replace(small, classes=classes), effort, running(before))
    assert not change.kept
    assert all(p.node != lost for i in change.plan.instances for p in i.places)
