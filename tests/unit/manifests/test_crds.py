from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from katsura.manifests.crds import Definition, crd, definitions
from katsura.manifests.kinds import KINDS

ALL = definitions()
BY_KIND = {entry.kind: entry for entry in ALL}


def version(entry: Definition) -> Mapping[str, Any]:
    found: Mapping[str, Any] = crd(entry)["spec"]["versions"][0]
    return found


def schema(entry: Definition) -> Mapping[str, Any]:
    found: Mapping[str, Any] = version(entry)["schema"]["openAPIV3Schema"]
    return found


def nodes(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, node
    for key, value in node.get("properties", {}).items():
        yield from nodes(value, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), Mapping):
            yield from nodes(node[key], f"{path}[]")


def test_every_kind_that_people_write_and_both_that_the_operator_writes_have_a_definition() -> None:
    assert set(BY_KIND) == {*KINDS, "RolePool", "PlacementPlan"}
    assert {kind: KINDS[kind].SHORT_NAME for kind in KINDS} == {kind: BY_KIND[kind].short for kind in KINDS}


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: entry.kind)
def test_lists_maps_and_texts_of_specs_are_bounded(entry: Definition) -> None:
    for path, node in nodes(schema(entry)["properties"]["spec"]):
        if node.get("type") == "array":
            assert node["maxItems"], path
            assert node["x-kubernetes-list-type"] in ("set", "map", "atomic"), path
        if node.get("type") == "string" and "enum" not in node:
            assert node.get("maxLength") or entry.kind == "PlacementPlan", path
        if "additionalProperties" in node:
            assert node["maxProperties"], path


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: entry.kind)
def test_kubectl_explain_says_of_every_field_what_it_is(entry: Definition) -> None:
    silent = [path for path, node in nodes(schema(entry)) if not node.get("description") and not path.endswith("[]")]
    assert silent == [".metadata"]  # the API server brings its own words


def test_conditions_are_lists_by_type_and_roles_lists_by_name() -> None:
    status = schema(BY_KIND["ModelDeployment"])["properties"]["status"]["properties"]
    assert status["conditions"]["x-kubernetes-list-map-keys"] == ["type"]
    assert status["roles"]["x-kubernetes-list-map-keys"] == ["name"]


def test_defaults_stand_in_the_schema() -> None:
    spec = schema(BY_KIND["ModelDeployment"])["properties"]["spec"]["properties"]
    assert spec["topology"]["default"] == "Split"
    assert spec["kv"]["default"] == {}
    assert spec["kv"]["properties"]["bytes"]["default"] == "512Mi"
    assert "default" not in spec["traffic"]


def test_only_a_pool_scales() -> None:
    assert [entry.kind for entry in ALL if "scale" in version(entry)["subresources"]] == ["RolePool"]
    assert all("status" in version(entry)["subresources"] for entry in ALL)


def test_ready_and_its_reason_come_first_where_there_is_a_ready_condition() -> None:
    for kind in ("ModelDeployment", "MemoryStore", "Agent", "RolePool"):
        assert [c["name"] for c in version(BY_KIND[kind])["additionalPrinterColumns"]][:2] == ["Ready", "Reason"]
