"""DRA: devices that drivers publish as ResourceSlices are found, planned on and asked for, on a real API server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from katsura.placement.calibration import built_in, coefficients_as_json
from katsura.placement.cost import ErrorClass
from katsura.placement.document import current_of
from katsura.testing.operators import World
from katsura_operator.core.knowledge import known
from katsura_operator.core.settings import Settings

SLICES = "/apis/resource.k8s.io/v1/resourceslices"
PROFILES = "/apis/katsura.dev/v1alpha1/acceleratorprofiles"
MERGE = "application/merge-patch+json"
MODEL = {"source": "file:///models/llama", "card": "meta-llama/Llama-3.1-8B-Instruct"}


@pytest.fixture
def nodes(world: World) -> Iterator[tuple[str, str]]:
    """A node with two devices that only its ResourceSlice tells of, and one without; names are of this test."""
    gpu, plain = f"gpu-{world.namespace[-5:]}", f"plain-{world.namespace[-5:]}"
    made = [add_node(world, gpu), add_node(world, plain), publish(world, gpu)]
    yield gpu, plain
    for path in made:
        world.plane.ask("DELETE", path)  # the test may have taken it away itself


def add_node(world: World, name: str) -> str:
    labels = {"kubernetes.io/hostname": name}
    world.plane.call("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})
    world.plane.call("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": None}}, kind=MERGE)
    amounts = {"cpu": "32", "memory": "128Gi"}
    status = {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}
    world.plane.call("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, kind=MERGE)
    return f"/api/v1/nodes/{name}"


def publish(world: World, node: str) -> str:
    """What a DRA driver writes for two H100."""
    attributes = {"productName": {"string": "NVIDIA H100 80GB HBM3"}, "type": {"string": "gpu"}}
    devices = [
        {"name": f"gpu-{i}", "attributes": attributes, "capacity": {"memory": {"value": "80Gi"}}} for i in range(2)
    ]
    pool = {"name": node, "generation": 1, "resourceSliceCount": 1}
    spec = {"driver": "gpu.nvidia.com", "nodeName": node, "pool": pool, "devices": devices}
    head = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": f"{node}-slice"}}
    world.plane.call("POST", SLICES, {**head, "spec": spec})
    return f"{SLICES}/{node}-slice"


async def test_devices_of_a_resource_slice_are_found_and_planned_on(world: World, nodes: tuple[str, str]) -> None:
    gpu, _ = nodes
    world.settings = Settings(world.namespace, "services:1", "engine:1", nodes_observed=True)
    world.plane.apply(
        f"{PROFILES}/h100",
        {"apiVersion": "katsura.dev/v1alpha1", "kind": "AcceleratorProfile", "metadata": {"name": "h100"}, "spec": {}},
    )
    claims = [{"name": "gpu", "templateName": "one-gpu"}]
    spec: dict[str, Any] = {"model": MODEL, "topology": "Unified", "pod": {"resourceClaims": claims}}
    world.apply("ModelDeployment", "chat", {**spec, "placement": {"devices": ["H100"]}})
    try:
        await world.settle(kubelet=False)
        status = world.plane.call("GET", f"{PROFILES}/h100")["status"]
        assert (status["nodes"], status["total"]) == (1, 2)
        assert {c["type"]: c["reason"] for c in status["conditions"]}["Discovered"] == "NodesFound"
        planned = world.condition("ModelDeployment", "chat", "Planned")
        assert (planned["status"], planned["reason"]) == ("True", "PlanInForce"), planned["message"]
        plan = world.get("PlacementPlan", world.get("ModelDeployment", "chat")["status"]["plan"]["name"])
        assert {p.node for i in current_of(plan).instances for p in i.places if p.role == "unified"} == {gpu}
        (workload,) = [w for w in world.all("Deployment") if w["metadata"]["name"].startswith("chat-unified")]
        pod = workload["spec"]["template"]["spec"]
        assert pod["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]
        assert "nvidia.com/gpu" not in pod["containers"][0]["resources"]["limits"], "the claim brings the device"
        wanted = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert gpu in str(wanted), "its nodes are named where no label tells them apart"
        world.plane.call("DELETE", f"{SLICES}/{gpu}-slice")
        await world.settle(kubelet=False)
        assert world.plane.call("GET", f"{PROFILES}/h100")["status"].get("nodes", 0) == 0
        assert world.condition("ModelDeployment", "chat", "Planned")["status"] == "False"
    finally:
        world.plane.call("DELETE", f"{PROFILES}/h100")


async def test_what_was_measured_is_kept_by_the_profile_and_outlives_its_file(world: World) -> None:
    name = f"x-{world.namespace[-5:]}"
    measured = replace(built_in().kinds["gpu"], error_class=ErrorClass.MEASURED, rows=12, date="2026-11-20")
    said = coefficients_as_json(measured)
    plain, told = world.settings, json.dumps({"devices": {name: said}})
    head = {"apiVersion": "katsura.dev/v1alpha1", "kind": "AcceleratorProfile", "metadata": {"name": name}}
    world.plane.apply(f"{PROFILES}/{name}", {**head, "spec": {}})
    try:
        world.settings = replace(plain, calibration=told)
        await world.settle()
        kept = world.plane.call("GET", f"{PROFILES}/{name}")["status"]["calibration"]
        assert (kept["errorClass"], kept["coefficients"]["layers"]) == ("measured", said["layers"])
        assert kept["coefficients"]["contextRange"] == said["context_range"]
        world.settings = plain
        assert (await world.reconciler().run()).writes == 0, "an operator without the file has nothing to say"
        seen = await world.reconciler().observe()
        assert coefficients_as_json(known(seen, plain).devices[name]) == said
        assert "measured" in world.plane.kubectl("get", "kap", name)
        assert "seconds of each layer" in world.plane.kubectl("explain", "kap.status.calibration.coefficients.layers")
    finally:
        world.plane.call("DELETE", f"{PROFILES}/{name}")
