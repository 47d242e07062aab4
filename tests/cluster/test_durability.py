"""What a MemoryStore promises: its pods hold their server to it, and the store says what is amiss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from katsura.testing.operators import World
from katsura.testing.process import ServedProcess
from katsura.testing.store import EmbeddedStore


def of_the_pod(world: World, server: EmbeddedStore, message: Path) -> dict[str, str]:
    """What the operator tells the pods of the store, as far as it does not speak of a pod's network and Secrets."""
    (container,) = world.get("Deployment", "default-memory")["spec"]["template"]["spec"]["containers"]
    said = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    ours = {name: value for name, value in said.items() if "TLS" not in name and "LISTEN" not in name}
    return ours | {
        "KATSURA_LISTEN": f"unix:{server.folder}/memory.sock",
        "KATSURA_STORE_URL": server.url,
        "KATSURA_INTERNAL_TOKEN": "internal-secret",
        "KATSURA_MEMORY_MESSAGE_FILE": str(message),
        "KATSURA_STORE_WAIT_S": "60",
    }


def refuse(world: World, pod: Any, message: str) -> None:
    """What a kubelet reports of a container that ended with a message."""
    name = pod["metadata"]["name"]
    world.set_ready(name, False)
    state = {
        "lastState": {"terminated": {"exitCode": 1, "message": message}},
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    }
    container = {"name": "memory", "image": "s", "imageID": "", "ready": False, "restartCount": 1, **state}
    path = f"/api/v1/namespaces/{world.namespace}/pods/{name}/status"
    body = {"status": {"containerStatuses": [container]}}
    world.plane.call("PATCH", path, body, kind="application/strategic-merge-patch+json")


async def test_a_strict_store_on_a_server_that_syncs_each_second_says_which_setting_to_change(
    world: World, tmp_path: Path
) -> None:
    world.apply("MemoryStore", "default", {"durability": "strict"})
    await world.settle()
    with EmbeddedStore("everysec") as server:
        environment = of_the_pod(world, server, tmp_path / "message")
        with pytest.raises(RuntimeError, match="did not start"):
            await ServedProcess("katsura.memory", environment, tmp_path / "log").start()
        (pod,) = world.pods("default-memory")
        refuse(world, pod, (tmp_path / "message").read_text())
        await world.reconciler().run()
        ready = world.condition("MemoryStore", "default")
        assert (ready["status"], ready["reason"]) == ("False", "DurabilityUnmet")
        assert "appendfsync is everysec, set always" in ready["message"]

        world.apply("MemoryStore", "default", {"durability": "relaxed"})
        await world.settle(kubelet=False)
        async with ServedProcess("katsura.memory", of_the_pod(world, server, tmp_path / "message"), tmp_path / "log"):
            world.set_ready(pod["metadata"]["name"], True)
            await world.settle()
    assert world.condition("MemoryStore", "default")["reason"] == "AllRolesReady"


async def test_a_replicated_server_is_told_of_and_what_serves_does_not_hide_that_the_promise_is_not_kept(
    world: World,
) -> None:
    redis = {"url": "redis://replicated:6379", "replicas": 2}
    world.apply("MemoryStore", "default", {"replicas": 2, "redis": redis})
    await world.settle()
    (container,) = world.get("Deployment", "default-memory")["spec"]["template"]["spec"]["containers"]
    said = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert (said["KATSURA_STORE_DURABILITY"], said["KATSURA_STORE_REPLICAS"]) == ("strict", "2")
    assert said["KATSURA_STORE_URL"] == "redis://replicated:6379"
    pod, _ = world.pods("default-memory")
    refuse(world, pod, "DURABILITY_UNAVAILABLE: maxmemory-policy is allkeys-lru, set noeviction")
    await world.reconciler().run()
    ready = world.condition("MemoryStore", "default")
    assert (ready["reason"], ready["message"]) == (
        "DurabilityUnmet",
        "maxmemory-policy is allkeys-lru, set noeviction",
    )
