from __future__ import annotations

import pytest

from katsura.placement.plan import Plan
from katsura.placement.planner import plan
from katsura.placement.problem import SPLIT, UNIFIED, Effort, ModelService, Problem
from katsura.placement.simulate import Arrival, curve_of, simulate
from katsura.testing.clusters import agent_trace, cards, model_service, node_class, problem_of


def made(topology: str = UNIFIED, requests_s: float = 10) -> tuple[Plan, Problem, ModelService]:
    service = model_service("chat", cards()[3], requests_s, topologies=(topology,), itl_ms=80)
    problem = problem_of([service], [node_class("H100", 3)])
    return plan(problem, Effort(seconds=None), explain=False), problem, service


@pytest.mark.parametrize("topology", [UNIFIED, SPLIT])
def test_the_curve_ends_at_the_planned_point(topology: str) -> None:
    chosen, problem, service = made(topology)
    column = chosen.instances[0].column
    assert column.point is not None
    curve = curve_of(problem, column, service)
    assert curve.step_s(column.point.batch) == pytest.approx(column.point.itl_s, rel=1e-6)
    assert curve.step_s(1) < curve.step_s(column.point.batch // 2) < curve.step_s(column.point.batch)


def test_one_request_alone_takes_its_prompt_and_its_tokens() -> None:
    chosen, problem, service = made()
    curve = curve_of(problem, chosen.instances[0].column, service)
    got = simulate(chosen, problem, [Arrival(0.0, "chat", 1, 1000, 100)]).services["chat"]
    first = curve.fixed_s + 1000 * curve.prompt_s + curve.step_s(1)
    assert got.ttft_s[50] == pytest.approx(first)
    assert got.itl_s[50] == pytest.approx(curve.step_s(1), rel=0.05)


def test_a_planned_load_keeps_its_times_and_twice_of_it_does_not() -> None:
    chosen, problem, service = made()
    capacity = sum(i.column.requests_s for i in chosen.instances)
    results = [
        simulate(chosen, problem, agent_trace(service, rate, 120, seed=1, turns=1.0)).services["chat"]
        for rate in (0.7 * capacity, 2.5 * capacity)
    ]
    assert results[0].slo_kept > 0.95
    assert results[0].ttft_s[90] < results[1].ttft_s[90]


def test_a_session_returns_to_its_prefix() -> None:
    chosen, problem, service = made()
    got = simulate(chosen, problem, agent_trace(service, 3, 120, seed=2)).services["chat"]
    assert got.prefix_kept > 0.6
    assert got.requests > 200


def test_the_same_trace_gives_the_same_run() -> None:
    chosen, problem, service = made()
    trace = agent_trace(service, 5, 60, seed=3)
    assert simulate(chosen, problem, trace) == simulate(chosen, problem, list(reversed(trace)))
    assert simulate(chosen, problem, []).services == {}
