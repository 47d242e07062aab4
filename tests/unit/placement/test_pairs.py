from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.placement.cost import BF16, Layout, Load
from katsura.placement.curve import curve_of
from katsura.placement.explain import explain
from katsura.placement.operate import Point, Refusal, Slo
from katsura.placement.pairs import Half, moved_bytes, pair_point, prompt_s
from katsura.placement.planner import plan
from katsura.placement.problem import PAIR, UNIFIED, Effort, Problem
from katsura.placement.simulate import simulate
from katsura.testing.clusters import agent_trace, cards, model_service, node_class, problem_of

LOAD = Load(3000, 300)
SMALL = cards()[0]


def half(replicas: int = 1, device: str = "H100") -> Half:
    problem = problem_of([], [node_class(device, 1)])
    found = problem.classes[0].device
    assert found is not None
    return Half(found, Layout(1), replicas, problem.calibration.of(found))


def point(prefill: int = 1, decode: int = 1, link: float = 50e9, itl_s: float = 0.05) -> Point:
    found = pair_point(SMALL, BF16, half(prefill), half(decode), link, LOAD, Slo(itl_s, None), 1.0)
    assert isinstance(found, Point)
    return found


def test_the_kv_of_a_prompt_is_what_crosses() -> None:
    assert moved_bytes(SMALL, BF16, LOAD) == 3000 * 32 * 2 * 8 * 128 * 2
    made = point()
    assert made.link_bytes_s == pytest.approx(made.requests_s * moved_bytes(SMALL, BF16, LOAD))


def test_one_side_bounds_the_rate_and_more_of_it_helps() -> None:
    few, more = point(1, 4), point(2, 4)
    assert few.limit == "prefill"
    assert more.requests_s == pytest.approx(2 * few.requests_s)
    assert few.requests_s == pytest.approx(0.85 / prompt_s(SMALL, BF16, half(), LOAD))


def test_a_thin_link_bounds_the_rate_and_delays_the_first_token() -> None:
    thin = point(link=1e9)
    assert thin.requests_s == pytest.approx(0.85 * 1e9 / moved_bytes(SMALL, BF16, LOAD))
    assert thin.ttft_s > point().ttft_s + 0.3


def test_a_model_that_fits_neither_side_is_refused_with_why() -> None:
    found = pair_point(cards()[2], BF16, half(device="L4"), half(), 1e9, LOAD, Slo(), 1.0)
    assert isinstance(found, Refusal)
    assert found.reason == "memory"


def pairs_only(requests_s: float = 20.0) -> Problem:
    service = model_service("chat", SMALL, requests_s, itl_ms=25, prompt=4000, topologies=(PAIR,))
    return problem_of([service], [node_class("H100", 3), node_class("A100-80", 3)])


def test_a_plan_of_pairs_names_both_roles_and_what_crosses() -> None:
    problem = pairs_only()
    made = plan(problem, Effort(gap=0.02, seconds=None, nodes=200), explain=False)
    assert made.feasible
    roles = {p.role for i in made.instances for p in i.places}
    assert roles == {"prefill", "decode"}
    assert "between them" in explain(made, problem)


def test_pairs_beside_replicas_never_cost_more() -> None:
    alone, both = ((UNIFIED,), (UNIFIED, PAIR))
    costs = []
    for topologies in (alone, both):
        problem = pairs_only()
        service = replace(problem.services[0], topologies=topologies)
        made = plan(replace(problem, services=(service,)), Effort(gap=0.0, seconds=None, nodes=500), explain=False)
        assert made.feasible
        costs.append(made.value)
    assert costs[1] <= costs[0] + 1e-6


def test_prompts_of_a_pair_slow_nobody_who_draws() -> None:
    problem = pairs_only()
    service = problem.services[0]
    made = plan(problem, Effort(gap=0.02, seconds=None, nodes=200), explain=False)
    curve = curve_of(problem, made.instances[0].column, service)  # type: ignore[arg-type]
    assert curve.aside
    got = simulate(made, problem, agent_trace(service, 15, 60, seed=1, turns=1.0)).services["chat"]  # type: ignore[arg-type]
    assert got.slo_kept > 0.99
    assert got.itl_s[99] <= 0.025
