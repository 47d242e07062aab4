from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.domain.errors import FailedPreconditionError, KatsuraError
from katsura.manifests.cluster import read_cluster
from katsura.manifests.problem import Options, build_problem, check_devices
from katsura.placement import calibration, catalogue
from katsura.placement.card import published
from katsura.placement.problem import SPLIT, UNIFIED, HelperService, ModelService, Problem

HEAD = "apiVersion: katsura.dev/v1alpha1\n"
MODEL = (
    HEAD
    + """\
kind: ModelDeployment
metadata: {name: chat}
spec:
  model: {source: file:///m, card: Qwen/Qwen3-8B}
  dtype: bf16
  roles: {router: {replicas: 2}}
  traffic: {requestsPerSecond: 5, promptTokens: 800, outputTokens: 100, cachedShare: 0.25}
  slo: {itlMs: 50}
  placement: {topologies: [Unified, Split], spotShare: 0.5, devices: [L4]}
---
"""
)
STORE = HEAD + "kind: MemoryStore\nmetadata: {name: trees}\nspec: {replicas: 2}\n---\n"
PROFILE = (
    HEAD
    + """\
kind: AcceleratorProfile
metadata: {name: l4}
spec:
  cost: {perHour: 0.5, spotPerHour: 0.2}
  quota: 12
  inventory:
    - {nodes: 3, perNode: 4, cores: 40, memory: 100Gi, domain: z1}
    - {nodes: 2, perNode: 4, cores: 40, memory: 100Gi, domain: z2, spot: true}
---
"""
)
NODE = """\
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {nvidia.com/gpu.product: %s}}
status: {allocatable: {cpu: "16", memory: 64Gi, nvidia.com/gpu: "8"}}
---
"""


def build(*texts: str, options: Options | None = None) -> Problem:
    cluster = read_cluster([(f"{i}.yaml", text) for i, text in enumerate(texts)])
    configs = {d.metadata.name: published()["Qwen/Qwen3-8B"] for d in cluster.bundle.deployments}
    return build_problem(cluster, configs, catalogue.built_in(), calibration.built_in(), options)


def test_a_deployment_becomes_a_service_with_its_demand_and_limits() -> None:
    service = build(MODEL, PROFILE).services[0]
    assert isinstance(service, ModelService)
    assert (service.requests_s, service.load.new_prompt, service.slo.itl_s) == (5, 600, 0.05)
    assert set(service.topologies) == {UNIFIED, SPLIT}
    assert service.devices == ("L4",)
    assert service.precision.weight_bytes == 2
    assert service.kv_bytes == 512 * 2**20


def test_routers_and_memory_are_services_on_cores() -> None:
    helpers = {s.name: s for s in build(MODEL, STORE, PROFILE).services if isinstance(s, HelperService)}
    assert helpers["chat-router"].instances_min == 2
    assert (helpers["trees-memory"].instances_min, helpers["trees-memory"].domains_min) == (2, 1)
    apart = build(MODEL.replace("spotShare: 0.5", "minDomains: 3"), STORE, PROFILE)
    spread = {s.name: s.domains_min for s in apart.services if isinstance(s, HelperService)}
    assert spread == {"chat-router": 2, "trees-memory": 2}  # of 2 replicas each
    assert not any(isinstance(s, HelperService) for s in build(MODEL, PROFILE, options=Options(helpers=False)).services)


def test_an_inventory_becomes_classes_with_the_profiles_prices_and_quota() -> None:
    problem = build(MODEL, PROFILE)
    assert [(c.name, len(c.nodes), c.hourly_usd) for c in problem.classes] == [
        ("L4x4/z1", 3, 2.0),
        ("L4x4/z2/spot", 2, pytest.approx(0.8)),
    ]
    assert problem.quotas == {"L4": 12}


def test_observed_nodes_are_identified_by_their_labels() -> None:
    (found,) = build(MODEL, NODE % "NVIDIA-H100-80GB-HBM3").classes
    assert found.device is not None
    assert (found.device.name, found.accelerators, found.cores) == ("H100", 8, 16)


def test_an_unknown_accelerator_is_told_and_only_its_cores_are_used() -> None:
    problem = build(MODEL, NODE % "NVIDIA-FUTURE")
    assert problem.classes[0].device is None
    assert "n1" in problem.unknown[0]


def test_a_profile_with_a_selector_has_the_first_word() -> None:
    profile = (
        HEAD + "kind: AcceleratorProfile\nmetadata: {name: mine}\nspec:\n  nodeSelector: {nvidia.com/gpu.product: X9}\n"
    )
    own = (
        profile
        + "  resource: nvidia.com/gpu\n  cost: {perHour: 1}\n  capabilities: {bf16Teraflops: 100, memoryGib: 32,"
    )
    problem = build(MODEL, own + " memoryGbPerSecond: 900}\n---\n", NODE % "X9")
    assert problem.classes[0].device is not None
    assert problem.classes[0].device.name == "mine"
    assert problem.classes[0].hourly_usd == 8
    with pytest.raises(FailedPreconditionError, match="bf16Teraflops, memoryGbPerSecond"):
        build(MODEL, profile, NODE % "X9")


def test_a_device_without_a_price_is_told_instead_of_being_free() -> None:
    problem = build(MODEL, NODE % "NVIDIA-H20")
    assert "no price of H20" in problem.unknown[0]
    assert problem.classes[0].device is None


def test_nothing_to_place_or_nowhere_says_what_to_add() -> None:
    with pytest.raises(FailedPreconditionError, match="ModelDeployment"):
        build(PROFILE)
    with pytest.raises(FailedPreconditionError, match="no Node and no AcceleratorProfile"):
        build(MODEL)


def test_equal_files_give_equal_problems() -> None:
    first, second = build(MODEL, STORE, PROFILE), build(MODEL, STORE, PROFILE)
    assert replace(first) == second


def test_nodes_of_one_kind_that_differ_otherwise_are_classes_of_their_own_with_names_of_their_own() -> None:
    entry = "    - {nodes: 3, perNode: 4, cores: 40, memory: 100Gi, domain: z1}\n"
    problem = build(MODEL, PROFILE.replace(entry, entry + entry.replace("cores: 40", "cores: 20")))
    names = [c.name for c in problem.classes]
    assert len(set(names)) == len(names) == 3
    nodes = [n for c in problem.classes for n in c.nodes]
    assert len(set(nodes)) == len(nodes) == 8


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("devices: [L4]", "devices: [L5]", r"0.yaml:10: spec.placement.devices: no device 'L5'; known here: .*L4"),
        ("name: l4", "name: l5", r"1.yaml:\d+: spec.capabilities: 'l5' is not in the catalogue"),
    ],
)
def test_devices_that_nobody_knows_are_refused_with_their_line(old: str, new: str, said: str) -> None:
    files = [(f"{i}.yaml", text.replace(old, new)) for i, text in enumerate((MODEL, PROFILE))]
    cluster, config = read_cluster(files), published()["Qwen/Qwen3-8B"]

    def stated() -> Problem:
        check_devices(cluster, catalogue.built_in())
        return build_problem(cluster, {"chat": config}, catalogue.built_in(), calibration.built_in())

    with pytest.raises(KatsuraError, match=said):
        stated()


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(KatsuraError, match="memoryGbPerSecond: must be above 0"):
        build(MODEL, PROFILE.replace("  quota: 12", "  capabilities: {memoryGbPerSecond: 0}"))
