"""Predictions of what runs, and plans that count what it showed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.placement.cost import ErrorClass
from katsura.placement.curve import curve_of
from katsura.placement.pace import basis_of, predicted_step_s
from katsura.placement.patterns import Column, enumerate_patterns
from katsura.placement.plan import Place
from katsura.placement.problem import SPLIT, UNIFIED, ModelService, Pace, Problem
from katsura.testing.clusters import cards, model_service, node_class, problem_of

CLASS = node_class("H100", 4)


def asked(topology: str) -> tuple[Problem, ModelService]:
    service = model_service("chat", cards()[0], 2.0, itl_ms=20.0, topologies=(topology,))
    return problem_of([service], [CLASS]), service


def columns(problem: Problem) -> tuple[Column, ...]:
    return enumerate_patterns(problem).columns(problem.classes)


def places(column: Column) -> list[Place]:
    return [
        Place(m.role, m.node_class, "node", m.accelerators, m.cores, m.ram_bytes)
        for m in column.members
        for _ in range(m.count)
    ]


@pytest.mark.parametrize("topology", [UNIFIED, SPLIT])
def test_a_step_of_what_runs_is_predicted_as_the_planner_predicts_it(topology: str) -> None:
    problem, service = asked(topology)
    for column in columns(problem):
        assert column.point is not None
        leads = sum(m.count for m in column.members if m.role != "experts")
        micro, batch = column.point.micro_batches, column.point.batch
        found = predicted_step_s(problem, service, places(column), micro, batch / leads, service.load.context)
        assert found == pytest.approx(curve_of(problem, column, service).step_s(batch), rel=1e-3)


def test_what_no_engine_of_ours_runs_and_classes_that_are_gone_have_no_prediction() -> None:
    problem, service = asked(UNIFIED)
    (place,) = places(columns(problem)[0])
    for other in (replace(place, role="prefill"), replace(place, node_class="gone"), replace(place, accelerators=3)):
        assert predicted_step_s(problem, service, [other], 1, 4.0, 500.0) is None


def test_a_service_that_runs_slower_than_its_device_gets_smaller_batches_and_others_do_not() -> None:
    problem, service = asked(UNIFIED)
    slow = Pace("H100", 1, 2.0, 1.3, basis_of(problem, service, ("H100",)), 6, "2026-11-22")
    both = replace(problem, services=(service, replace(service, name="slow", paces=(slow,))))
    found = {(c.service, c.members[0].accelerators): c.point for c in columns(both) if c.point}
    assert found["slow", 1].batch < found[service.name, 1].batch
    classes = [found[name, n].error_class for name, n in (("slow", 1), ("slow", 2), (service.name, 1))]
    assert classes == [ErrorClass.MEASURED, ErrorClass.CALIBRATED, ErrorClass.CALIBRATED]


def test_the_basis_changes_with_what_a_prediction_rests_on_and_with_nothing_else() -> None:
    problem, service = asked(UNIFIED)
    known = problem.calibration.devices["H100"]
    basis = basis_of(problem, service, ("H100",))
    assert basis == basis_of(problem, replace(service, requests_s=9.0, name="x"), ("H100",))
    other = replace(problem, calibration=problem.calibration.merged({"H100": replace(known, kv=9.0)}))
    assert basis != basis_of(other, service, ("H100",))
    assert basis != basis_of(problem, replace(service, precision=replace(service.precision, kv_bytes=1)), ("H100",))
