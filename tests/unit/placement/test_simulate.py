from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.curve import curve_of
from katsura.placement.document import running
from katsura.placement.plan import Plan
from katsura.placement.planner import plan
from katsura.placement.problem import UNIFIED, Effort, ModelService, Problem
from katsura.placement.replan import replan
from katsura.placement.simulate import Arrival, Change, simulate
from katsura.testing.clusters import agent_trace, cards, model_service, node_class, problem_of


def made(topology: str = UNIFIED, requests_s: float = 10) -> tuple[Plan, Problem, ModelService]:
    service = model_service("chat", cards()[3], requests_s, topologies=(topology,), itl_ms=80)
    problem = problem_of([service], [node_class("H100", 6, per_node=2)])
    return plan(problem, Effort(seconds=None), explain=False), problem, service


def test_one_request_alone_takes_its_prompt_and_its_tokens() -> None:
    chosen, problem, service = made()
    curve = curve_of(problem, chosen.instances[0].column, service)
    got = simulate(chosen, problem, [Arrival(0.0, "chat", 1, 1000, 100)]).services["chat"]
    assert got.ttft_s[50] == pytest.approx(curve.fixed_s + 1000 * curve.prompt_s, rel=0.01)
    assert got.itl_mean_s == pytest.approx(curve.step_s(1), rel=0.01)


def test_prompts_that_come_together_wait_for_each_other_and_slow_the_others() -> None:
    chosen, problem, _ = made()
    one = replace(chosen, instances=chosen.instances[:1])
    alone = simulate(one, problem, [Arrival(0.0, "chat", 1, 4000, 50)]).services["chat"]
    together = simulate(one, problem, [Arrival(0.0, "chat", i, 4000, 50) for i in range(4)]).services["chat"]
    assert together.ttft_s[99] > 3 * alone.ttft_s[99]
    assert together.itl_mean_s > 1.2 * alone.itl_mean_s


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
    assert got.requests > 150


def test_the_same_trace_gives_the_same_run_and_a_trace_out_of_order_is_refused() -> None:
    chosen, problem, service = made()
    first, second = (simulate(chosen, problem, agent_trace(service, 5, 60, seed=3)) for _ in range(2))
    assert first == second
    assert simulate(chosen, problem, []).services == {}
    with pytest.raises(InvalidArgumentError, match="back in time"):
        simulate(chosen, problem, [Arrival(2.0, "chat", 1, 9, 9), Arrival(1.0, "chat", 2, 9, 9)])


def test_a_trace_of_any_length_holds_only_what_is_in_flight() -> None:
    chosen, problem, service = made()
    alive = itertools.count()
    told: list[int] = []

    def trace() -> Iterator[Arrival]:
        for a in agent_trace(service, 400, 30, seed=4, turns=2.0):
            next(alive)
            yield a

    got = simulate(chosen, problem, trace(), progress=lambda at, number: told.append(number))
    assert got.services["chat"].requests == next(alive)
    assert told == sorted(told)
    assert told


def test_a_replan_on_the_way_costs_moves_and_answers_everything() -> None:
    chosen, problem, service = made()
    more = problem_of([replace(service, requests_s=3 * service.requests_s)], problem.classes)
    change = replan(more, Effort(seconds=None), running(chosen), explain=False)
    assert change.steps
    trace = list(agent_trace(service, 20, 100, seed=5))
    plain = simulate(chosen, problem, trace)
    got = simulate(chosen, problem, trace, [Change(20.0, change, load_s=15.0)])
    assert got.moves == sum(s.action == "start" for s in change.steps) > 0
    assert got.services["chat"].requests == len(trace)
    assert got.usd > plain.usd
    assert got.services["chat"].itl_mean_s < plain.services["chat"].itl_mean_s


def test_what_a_stopped_instance_held_is_computed_anew_elsewhere() -> None:
    chosen, problem, service = made(requests_s=30)
    less = problem_of([replace(service, requests_s=1.0)], problem.classes)
    change = replan(less, Effort(seconds=None), running(chosen), explain=False)
    assert any(s.action == "stop" for s in change.steps)
    trace = list(agent_trace(service, 2, 100, seed=6))
    got = simulate(chosen, problem, trace, [Change(30.0, change, load_s=5.0)])
    assert got.rehomed > 0
    assert got.services["chat"].requests == len(trace)
    assert got.usd < simulate(chosen, problem, trace).usd


def two_on_one_node() -> tuple[Plan, Problem]:
    """Two replicas of one core each on a node of two."""
    service = replace(model_service("chat", cards()[0], 0, itl_ms=None), replicas={"unified": 2})
    node = replace(node_class("cpu", 1, per_node=2), ram_bytes=2.0**37)
    problem = problem_of([service], [node])
    chosen = plan(problem, Effort(seconds=None), explain=False)
    assert [p.cores for i in chosen.instances for p in i.places] == [1.0, 1.0]
    return chosen, problem


def test_replicas_that_share_too_few_cores_slow_each_other_while_both_are_busy() -> None:
    chosen, problem = two_on_one_node()
    node = problem.classes[0].nodes[0]
    both = [Arrival(0.0, "chat", i, 200, 50) for i in range(2)]
    free = simulate(chosen, problem, both).services["chat"]
    enough = simulate(chosen, problem, both, cores={node: 2.0}).services["chat"]
    half = simulate(chosen, problem, both, cores={node: 1.0}).services["chat"]
    assert enough == free
    assert half.itl_mean_s == pytest.approx(2 * free.itl_mean_s, rel=0.02)
    assert half.ttft_s[50] > 1.8 * free.ttft_s[50]


def test_a_replica_has_its_pace_back_when_the_other_is_through() -> None:
    chosen, problem = two_on_one_node()
    node = problem.classes[0].nodes[0]
    alone = simulate(chosen, problem, [Arrival(0.0, "chat", 1, 200, 400)], cores={node: 1.0}).services["chat"]
    free = simulate(chosen, problem, [Arrival(0.0, "chat", 1, 200, 400)]).services["chat"]
    assert alone == free
    pair = [Arrival(0.0, "chat", 1, 200, 400), Arrival(0.0, "chat", 2, 200, 20)]
    shared = simulate(chosen, problem, pair, cores={node: 1.0})
    apart = simulate(chosen, problem, pair)
    longer = shared.seconds - apart.seconds
    short = simulate(chosen, problem, [Arrival(0.0, "chat", 2, 200, 20)]).seconds
    assert longer == pytest.approx(short, rel=0.05)  # as long as the short one works, twice over, both run at half pace
