from __future__ import annotations

import pytest

from katsura.placement.curve import curve_of
from katsura.placement.planner import plan
from katsura.placement.problem import SPLIT, UNIFIED, Effort
from katsura.testing.clusters import cards, model_service, node_class, problem_of


@pytest.mark.parametrize("topology", [UNIFIED, SPLIT])
def test_at_the_planned_batch_decode_and_its_share_of_prompts_are_the_planned_step(topology: str) -> None:
    service = model_service("chat", cards()[3], 10, topologies=(topology,), itl_ms=80)
    problem = problem_of([service], [node_class("H100", 3)])
    column = plan(problem, Effort(seconds=None), explain=False).instances[0].column
    assert column.point is not None
    curve = curve_of(problem, column, service)
    batch = column.point.batch
    share = batch / service.load.output * curve.prompt_s * service.load.new_prompt
    assert curve.step_s(batch) + share == pytest.approx(column.point.itl_s, rel=1e-6)
    lead = column.members[0].count if topology == SPLIT else 1
    assert curve.chunk == 2048 * lead  # every shard takes a chunk of its own in a step
    assert 0 == curve.step_s(0) < curve.step_s(1) < curve.step_s(batch // 2) < curve.step_s(batch)


def test_a_split_computes_the_prompts_that_its_plan_counts_on() -> None:
    service = model_service("tools", cards()[3], 60, topologies=(SPLIT,), itl_ms=100)
    problem = problem_of([service], [node_class("H200", 4)])
    for instance in plan(problem, Effort(seconds=None), explain=False).instances:
        point = instance.column.point
        assert point is not None
        new_s = instance.column.requests_s * service.load.new_prompt
        assert curve_of(problem, instance.column, service).chunk / point.itl_s > new_s
