from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.placement import search
from katsura.placement.merge import merge
from katsura.placement.patterns import enumerate_patterns
from katsura.placement.planner import plan
from katsura.placement.problem import Effort, Problem
from katsura.placement.program import Extra
from katsura.testing.clusters import cards, model_service, node_class, problem_of


def racks(count: int, domains_min: int) -> Problem:
    classes = [node_class(device, 2, domain=f"r{i}") for i in range(count) for device in ("A100-80", "H100")]
    services = [model_service("a", cards()[0], 150, domains_min=domains_min), model_service("b", cards()[2], 8)]
    return problem_of(services, classes)


def test_equal_nodes_of_all_racks_become_one_class() -> None:
    merged = merge(racks(4, 1).classes)
    assert sorted((c.name, len(c.nodes)) for c in merged.classes) == [("A100-80x8", 8), ("H100x8", 8)]
    assert merged.of["H100x8/r2"] == "H100x8"


@pytest.mark.parametrize("domains_min", [1, 3])
def test_a_plan_through_merged_classes_is_as_good_as_the_full_one(
    monkeypatch: pytest.MonkeyPatch, domains_min: int
) -> None:
    problem, effort = racks(4, domains_min), Effort(gap=0.01, seconds=None, nodes=2000)
    full = plan(problem, effort, explain=False)
    monkeypatch.setattr(search, "MERGE_COLUMNS", 1)
    merged = plan(problem, effort, explain=False)
    assert merged.feasible
    assert merged.bound <= full.value + 1e-6
    assert merged.value <= full.value * 1.02
    assert len({i.column.domain for i in merged.instances if i.column.service == "a"}) >= domains_min
    if domains_min == 1:
        assert merged.columns < full.columns


def test_what_no_rack_has_room_for_falls_back_to_the_full_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MERGE_COLUMNS", 1)
    problem = problem_of(
        [replace(model_service("wide", cards()[0], 1, domains_min=3), requests_s=0.1)],
        [node_class("L4", 1, per_node=1, domain=f"r{i}") for i in range(2)],
    )
    solved = search.search(problem, enumerate_patterns(problem), Effort(seconds=None), Extra())
    assert all(c.domain != "*" for c, n in solved.counted if n)
