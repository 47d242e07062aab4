from __future__ import annotations

from dataclasses import replace

from katsura.placement.cost import ErrorClass
from katsura.placement.planner import plan
from katsura.placement.problem import UNIFIED, Effort, Timed
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
