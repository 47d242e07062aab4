from __future__ import annotations

import json
from dataclasses import replace

import pytest

from katsura.placement.document import document
from katsura.placement.patterns import enumerate_patterns
from katsura.placement.planner import plan
from katsura.placement.problem import Effort, HelperService, ModelService, Objective, Problem
from katsura.placement.reach import within_reach
from katsura.testing.clusters import cards, model_service, node_class, problem_of

NODES = [node_class("L4", 6, per_node=4)]


def asking(requests_s: float) -> Problem:
    return problem_of([model_service("chat", cards()[0], requests_s, itl_ms=100)], NODES)


def rate(problem: Problem) -> float:
    (service,) = (s for s in problem.services if isinstance(s, ModelService))
    columns = enumerate_patterns(problem).columns(problem.classes)
    return next(s.requests_s for s in within_reach(problem, columns).services if s.name == service.name)


def test_demands_that_nodes_could_come_near_stay_as_they_are_and_absurd_ones_do_not_grow() -> None:
    most = plan(asking(1e3), Effort(gap=0.0, seconds=None), explain=False).services[0].capacity
    assert rate(asking(20 * most)) == 20 * most
    assert rate(asking(1e9)) == rate(asking(1e12)) > 20 * most


@pytest.mark.parametrize("objective", [Objective.COST, Objective.ENERGY])
def test_of_an_absurd_demand_as_much_is_served_as_there_is_room_for(objective: Objective, effort: Effort) -> None:
    asked = replace(asking(1e3), objective=objective)
    most = plan(asked, effort, explain=False).services[0].capacity
    absurd = replace(asking(1e12), objective=objective)
    made = plan(absurd, effort)
    assert made.services[0].capacity == pytest.approx(most, rel=1e-3)
    assert made.services[0].demand == 1e12
    assert 0 <= made.bound <= made.value
    json.dumps(document(made, absurd), allow_nan=False)


def test_helpers_are_asked_for_what_models_can_serve_of_it(effort: Effort) -> None:
    asked = asking(1e9)
    router = HelperService("chat-router", "router", 1e9, 10.0, 1.0, 1e9, follows={"chat": 1.0})
    both = replace(asked, services=(*asked.services, router))
    less = within_reach(both, enumerate_patterns(both).columns(both.classes)).services
    assert less[1].requests_s == pytest.approx(less[0].requests_s)
    made = plan(both, effort, explain=False)
    assert made.services[1].capacity >= made.services[0].capacity
