from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from katsura.placement.agents import AgentGraph, AgentRuns, Call, Edge, summarise
from katsura.placement.patterns import enumerate_patterns
from katsura.placement.planner import plan, plan_for_agents
from katsura.placement.problem import Effort, HelperService, ModelService, Objective, Problem
from katsura.testing.clusters import cards, model_service, node_class, problem_of


def test_a_plan_is_the_cheapest_of_all_counts(effort: Effort) -> None:
    problem = problem_of(
        [model_service("chat", cards()[0], 9)], [node_class("A100-80", 1), node_class("L4", 3, per_node=4)]
    )
    columns = enumerate_patterns(problem).columns(problem.classes)
    have = {c.name: (c.accelerators, c.hourly_usd, len(c.nodes)) for c in problem.classes}
    best = float("inf")
    for counts in product(range(5), repeat=len(columns)):
        served = sum(n * c.requests_s for n, c in zip(counts, columns, strict=True))
        if served < 9:
            continue
        cost = 1e-4 * sum(counts)
        for name, (per_node, usd, nodes) in have.items():
            used = sum(
                n * c.members[0].accelerators
                for n, c in zip(counts, columns, strict=True)
                if c.members[0].node_class == name
            )
            opened = -(-used // per_node)
            cost += opened * usd if opened <= nodes else float("inf")
        best = min(best, cost)
    made = plan(problem, effort)
    assert made.value == pytest.approx(best, abs=1e-6)
    assert made.gap == pytest.approx(0, abs=1e-9)


def test_the_same_problem_gives_the_same_plan(small: Problem, effort: Effort) -> None:
    assert plan(small, effort) == plan(small, effort)


def test_a_service_stands_in_as_many_domains_as_it_asks(small: Problem, effort: Effort) -> None:
    made = plan(small, effort)
    assert made.feasible
    assert {i.column.domain for i in made.instances if i.column.service == "chat"} == {"a", "b"}


def test_bounds_lie_below_the_plan(small: Problem, effort: Effort) -> None:
    made = plan(small, effort)
    assert made.pattern_free_bound <= made.bound + 1e-6 <= made.value + 2e-6
    assert made.hourly_usd == pytest.approx(made.value, abs=0.01)


def test_alternatives_say_why_not(small: Problem, effort: Effort) -> None:
    made = plan(small, effort)
    assert made.alternatives
    assert all(a.why_not for a in made.alternatives)
    assert all(a.hourly_usd is None or a.hourly_usd >= made.hourly_usd - 0.01 for a in made.alternatives)


def test_what_does_not_fit_is_served_in_part_with_the_cheapest_way_out(effort: Effort) -> None:
    problem = problem_of(
        [model_service("chat", cards()[0], 60)], [node_class("A100-80", 1), node_class("L4", 2, per_node=4)]
    )
    made = plan(problem, effort)
    assert not made.feasible
    assert 0 < made.services[0].unmet < 1
    assert any("nodes of" in line for line in made.binding)
    assert made.relaxations[0].hourly_usd == min(r.hourly_usd for r in made.relaxations)
    assert any("more node" in r.what for r in made.relaxations)


def test_a_budget_is_kept_and_named(small: Problem, effort: Effort) -> None:
    free = plan(small, effort)
    bound = plan(replace(small, budget_usd=free.hourly_usd - 1), effort)
    assert bound.hourly_usd <= free.hourly_usd - 1
    assert not bound.feasible
    assert any(line.startswith("the budget of $") for line in bound.binding)
    ways = {r.what: r.hourly_usd for r in bound.relaxations}
    assert "" not in ways
    assert "no limit on the budget" in ways
    assert any(what.startswith("no budget, quotas, spot or domain limits") for what in ways)


@pytest.mark.parametrize("demand", [4.0, 1e3])
def test_dollars_and_joules_are_per_token_that_is_served(effort: Effort, demand: float) -> None:
    service, nodes = model_service("chat", cards()[0], demand), node_class("A100-80", 1)
    made = plan(problem_of([service], [nodes]), effort, explain=False)
    (chat,), used = made.services, sum(p.accelerators for i in made.instances for p in i.places)
    tokens_s = min(demand, chat.capacity) * service.load.output
    assert chat.usd_per_million_output == pytest.approx(nodes.hourly_usd * used / 8 / 3600 / tokens_s * 1e6)
    assert nodes.device is not None
    assert chat.joules_per_token == pytest.approx(used * nodes.device.watts / tokens_s)
    assert (chat.unmet > 0) is (demand > 100)


def test_a_quota_bounds_what_is_used(small: Problem, effort: Effort) -> None:
    made = plan(replace(small, quotas={"A100-80": 8.0}), effort)
    used = sum(p.accelerators for i in made.instances for p in i.places if p.node_class.startswith("A100"))
    assert used <= 8


def test_what_a_quota_or_the_domains_forbid_is_named_with_the_way_out(effort: Effort) -> None:
    nodes = node_class("A100-80", 2)
    busy = problem_of([model_service("chat", cards()[0], 60)], [nodes])
    short = plan(replace(busy, quotas={"A100-80": 1.0}), effort)
    assert not short.feasible
    assert "the quota of 1 A100-80" in short.binding
    assert "no quotas" in [r.what for r in short.relaxations]
    apart = plan(problem_of([model_service("chat", cards()[0], 4, domains_min=2)], [nodes]), effort)
    assert not apart.feasible
    assert "chat: found room in 1 of the 2 domains it needs" in apart.binding
    assert "one domain instead of several" in [r.what for r in apart.relaxations]
    spot = replace(nodes, spot=True)
    for share, said in ((0.2, "chat: no more than 20%"), (0.0, "chat: none")):
        safe = plan(problem_of([model_service("chat", cards()[0], 4, spot_share=share)], [spot]), effort)
        assert not safe.feasible
        assert f"{said} of it may stand on spot nodes" in safe.binding
        assert "spot nodes for everything" in [r.what for r in safe.relaxations]


def test_spot_nodes_hold_no_more_than_their_share(effort: Effort) -> None:
    classes = [node_class("A100-80", 2), node_class("A100-80", 4, spot=True)]
    for share, expected in ((0.0, 0.0), (1.0, 1.0)):
        made = plan(problem_of([model_service("chat", cards()[0], 30, spot_share=share)], classes), effort)
        spot = sum(i.column.requests_s for i in made.instances if i.column.spot)
        assert spot / sum(i.column.requests_s for i in made.instances) == pytest.approx(expected)


@pytest.mark.parametrize("objective", [Objective.ENERGY, Objective.LATENCY, Objective.THROUGHPUT])
def test_each_objective_is_best_at_what_it_asks(small: Problem, objective: Objective) -> None:
    effort = Effort(gap=0.02, seconds=None, nodes=200)
    by_cost, made = plan(small, effort), plan(replace(small, objective=objective), effort)
    assert made.feasible
    assert made.gap <= 0.2
    match objective:
        case Objective.ENERGY:
            assert made.watts <= by_cost.watts * 1.02
        case Objective.LATENCY:
            assert made.hourly_usd >= by_cost.hourly_usd * 0.98
        case _:
            assert made.value >= 1
            assert made.value <= made.bound * (1 + 1e-6)


def test_fixed_replicas_are_what_stands(effort: Effort) -> None:
    service = replace(model_service("chat", cards()[0], 1), replicas={"unified": 3})
    made = plan(problem_of([service], [node_class("A100-80", 1)]), effort)
    assert made.services[0].instances == 3


def test_a_service_without_demand_gets_one_instance(effort: Effort) -> None:
    made = plan(problem_of([model_service("idle", cards()[0], 0)], [node_class("L4", 1, per_node=4)]), effort)
    assert made.services[0].instances == 1
    assert made.feasible


def test_one_more_node_of_what_is_short_saves(effort: Effort) -> None:
    classes = [node_class("H100", 1), node_class("A100-80", 6, usd=40.0)]
    made = plan(problem_of([model_service("chat", cards()[0], 150, itl_ms=40)], classes), effort)
    assert made.feasible
    assert [m.node_class for m in made.marginals] == ["H100x8/a"]
    assert made.marginals[0].change_usd < 0


def test_nothing_at_all_fits_is_still_an_answer(effort: Effort) -> None:
    service = model_service("big", cards()[2], 1)
    made = plan(problem_of([service], [node_class("T4", 2, per_node=1)]), effort)
    assert isinstance(service, ModelService)
    assert not made.feasible
    assert made.instances == ()
    assert made.refused[0].reason == "memory"


def test_nobody_routes_what_no_model_serves(effort: Effort) -> None:
    model = model_service("chat", cards()[0], 200, itl_ms=100)
    nodes = replace(node_class("L4", 6, per_node=4), cores=8.0)
    alone = plan(problem_of([model], [nodes]), effort, explain=False).services[0]
    assert 0 < alone.capacity < 0.5 * model.requests_s
    # For all of the demand it would take 20 cores, which the model's processes need.
    router = HelperService("chat-router", "router", 200.0, 10.0, 1.0, 1e9, follows={"chat": 1.0})
    made = plan(problem_of([model, router], [nodes]), effort, explain=False)
    assert not made.feasible
    assert made.services[0].capacity > 0.9 * alone.capacity
    assert made.services[1].instances == 2


def test_models_of_a_late_agent_are_held_to_shorter_times(effort: Effort) -> None:
    service = model_service("chat", cards()[0], 6, itl_ms=None)
    graph = AgentGraph((Call("ask", "chat", 0.0, 200), Call("tool", "", 1.0)), (Edge("ask", "tool"),))
    problem = problem_of([service], [node_class("H100", 2), node_class("L4", 4, per_node=4)])
    free = plan(problem, effort, explain=False)
    slow = summarise(AgentRuns("a", graph, 6.0), {"chat": free.services[0].point})
    asked = replace(problem, agents=(AgentRuns("a", graph, 6.0, 0.5 * slow.path_s),))
    solved, made = plan_for_agents(asked, effort)
    assert not plan(asked, effort, explain=False).kept
    assert made.kept
    assert made.hourly_usd >= free.hourly_usd
    assert solved.services[0].slo.itl_s is not None
    hopeless = replace(problem, agents=(AgentRuns("a", graph, 6.0, 0.9),))
    unchanged, made = plan_for_agents(hopeless, effort)
    assert unchanged is hopeless
    assert not made.kept
