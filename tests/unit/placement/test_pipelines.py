from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from katsura.placement import calibration, catalogue
from katsura.placement.cost import BF16, Layout, Load
from katsura.placement.curve import curve_of
from katsura.placement.document import document
from katsura.placement.explain import explain
from katsura.placement.operate import Slo
from katsura.placement.pipelines import Parts, StageKind, cover, pipelines
from katsura.placement.planner import plan
from katsura.placement.problem import PIPELINE, UNIFIED, Effort, Problem
from katsura.placement.simulate import Arrival, simulate
from katsura.testing.clusters import cards, model_service, node_class, problem_of

LARGE = cards()[2]


def parts(**most: int) -> Parts:
    known = calibration.built_in()
    kinds = []
    for name, many in most.items():
        device = catalogue.built_in().named(name)
        kinds.append(StageKind(device, Layout(), known.of(device), many, device.hourly_usd or 1.0))
    return Parts(LARGE, BF16, Load(1500, 300), tuple(kinds), 3e9, 35e-6)


def test_the_cheapest_stages_that_hold_all_layers_are_found() -> None:
    held, most, price = (5, 3, 2), (2, 3, 4), (3.0, 1.5, 1.2)
    for layers in range(1, 28):
        costs = [
            (sum(n * p for n, p in zip(counts, price, strict=True)), sum(counts))
            for counts in product(*(range(n + 1) for n in most))
            if sum(n * h for n, h in zip(counts, held, strict=True)) >= layers
        ]
        found = cover(layers, held, most, price)
        assert (found is None) == (not costs)
        if found is not None:
            assert all(n <= limit for n, limit in zip(found, most, strict=True))
            assert (pytest.approx(sum(n * p for n, p in zip(found, price, strict=True))), sum(found)) == min(costs)


def test_every_layer_is_held_once_and_every_stage_fits_its_memory() -> None:
    asked = parts(L4=8, T4=12)
    found, why = pipelines(asked, Slo(), 1.0)
    assert why is None
    assert found
    for made in found:
        assert sum(map(sum, made.layers)) == LARGE.layers
        assert sum(made.point.stages) == LARGE.layers
        for kind, memory in zip(asked.kinds, made.memory_bytes, strict=True):
            assert memory <= kind.device.usable_bytes
        for kind, mine in zip(asked.kinds, made.layers, strict=True):
            assert len(mine) <= kind.most
            assert max(mine, default=0) - min(mine, default=0) <= 1  # what is too much is taken from the slowest


def test_the_faster_kind_takes_more_layers() -> None:
    found, _ = pipelines(parts(**{"A100-80": 1, "L4": 4}), Slo(), 1.0)
    both = [made.layers for made in found if all(made.layers)]
    assert both
    assert all(min(fast) > max(slow) for fast, slow in both)


def test_times_that_no_pipeline_keeps_are_refused_and_kept_ones_are_kept() -> None:
    asked = parts(L4=8, T4=12)
    free = min(made.point.itl_s for made in pipelines(asked, Slo(), 1.0)[0])
    found, why = pipelines(asked, Slo(itl_s=1.5 * free), 1.2)
    assert why is None
    assert all(made.point.itl_s * 1.2 <= 1.5 * free for made in found)
    found, why = pipelines(asked, Slo(itl_s=free / 20), 1.0)
    assert not found
    assert why is not None
    found, why = pipelines(parts(T4=3), Slo(), 1.0)
    assert not found
    assert why is not None
    assert why.reason == "memory"


def test_a_loop_is_never_shorter_than_its_slowest_stage_times_the_stages() -> None:
    asked = parts(L4=8, T4=12)
    stages = [(asked.kinds[0], 8)] * 8 + [(asked.kinds[1], 2)] * 8
    loop = asked.loop_s(stages, 4)
    assert loop >= 16 * 8 * asked.layer_s(asked.kinds[0], 4)
    assert replace(asked, link_bytes_s=1e5).loop_s(stages, 4) > 10 * loop


def small_nodes(topologies: tuple[str, ...] = (UNIFIED,), last_resort: tuple[str, ...] = (PIPELINE,)) -> Problem:
    service = model_service("big", LARGE, 0.02, itl_ms=None, topologies=topologies)
    classes = [node_class("L4", 8, per_node=1), node_class("T4", 12, per_node=1)]
    return problem_of([replace(service, last_resort=last_resort)], classes)


def test_a_model_that_fits_no_node_is_cut_by_layers_and_the_plan_says_that_nobody_runs_it(effort: Effort) -> None:
    assert not plan(small_nodes(last_resort=()), effort, explain=False).feasible
    problem = small_nodes()
    made = plan(problem, effort, explain=False)
    assert made.feasible
    assert {i.column.topology for i in made.instances} == {PIPELINE}
    assert "no engine of ours runs one" in explain(made, problem)
    (assignment,) = document(made, problem)["status"]["assignments"]
    assert assignment["plannedOnly"]
    assert sum(assignment["stageLayers"]) == LARGE.layers


def test_what_fits_a_node_is_not_cut_unless_asked(effort: Effort) -> None:
    service = replace(model_service("chat", cards()[0], 1, itl_ms=None), last_resort=(PIPELINE,))
    problem = problem_of([service], [node_class("A100-80", 2)])
    made = plan(problem, effort, explain=False)
    assert {i.column.topology for i in made.instances} == {UNIFIED}
    asked = replace(problem, services=(replace(service, topologies=(UNIFIED, PIPELINE)),))
    assert plan(asked, effort, explain=False).columns > made.columns


def test_a_pipeline_can_be_simulated(effort: Effort) -> None:
    problem = small_nodes()
    made = plan(problem, effort, explain=False)
    column, service = made.instances[0].column, problem.services[0]
    assert column.point is not None
    curve = curve_of(problem, column, service)  # type: ignore[arg-type]
    assert curve.steps[-1] == pytest.approx(column.point.itl_s)
    assert list(curve.steps) == sorted(curve.steps)
    got = simulate(made, problem, [Arrival(float(i), "big", i, 1500, 40) for i in range(5)])
    assert got.services["big"].requests == 5
    assert got.services["big"].itl_s[50] >= curve.steps[0] * 0.98
