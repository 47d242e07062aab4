from __future__ import annotations

from dataclasses import replace

from katsura.placement.cost import ErrorClass
from katsura.placement.planner import plan
from katsura.placement.problem import UNIFIED, Effort, HelperService, Timed
from katsura.placement.tally import units_used
from katsura.testing.clusters import cards, model_service, node_class, problem_of


def test_a_service_is_trusted_as_its_least_trusted_instance() -> None:
    service = model_service("chat", cards()[0], 8.0, itl_ms=30, topologies=(UNIFIED,))
    service = replace(service, load=replace(service.load, prompt=1000, output=200, cached_share=0.0))
    ran = (Timed("H100", 1, 1000, 200, 32, 0.0299),)
    asked = problem_of([replace(service, timed=ran)], [node_class(d, 1, per_node=1) for d in ("H100", "L40S")])
    made = plan(asked, Effort(nodes=50, seconds=None))
    points = {i.column.members[0].node_class: i.column.point for i in made.instances}
    assert {p.error_class for p in points.values() if p} == {ErrorClass.MEASURED, ErrorClass.CALIBRATED}
    (told,) = made.services
    assert told.point is not None
    assert told.point.error_class is ErrorClass.MEASURED  # the slowest
    assert told.error_class == "calibrated"


def test_what_falls_short_says_what_limits_it() -> None:
    asked = replace(model_service("chat", cards()[0], 1e3, itl_ms=30), replicas={"unified": 1})
    nodes = [node_class("L40S", 1, per_node=1), node_class("T4", 1, per_node=1)]
    made = plan(problem_of([asked], nodes), Effort(nodes=50, seconds=None))
    assert not made.feasible
    assert {"all 1 nodes of L40Sx1/a are in use", "chat: no more than 1 of it are asked for"} <= set(made.binding)


def test_cores_of_nodes_with_accelerators_take_nothing_of_their_quota() -> None:
    helper = HelperService("chat-router", "router", 1.0, 10.0, 4.0, 1e9)
    problem = problem_of([model_service("chat", cards()[0], 1, itl_ms=100), helper], [node_class("L4", 1, per_node=4)])
    made = plan(replace(problem, quotas={"L4": 4.0}), Effort(nodes=50, seconds=None))
    assert units_used(problem, made.instances) == {"L4": 2}
    assert not [said for said in made.binding if "quota" in said]
