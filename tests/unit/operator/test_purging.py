"""A store that is deleted, pass by pass, on the API server's twin: nothing is deleted that was not asked for."""

from __future__ import annotations

from typing import Any

import pytest

from katsura.testing.operators import World
from katsura_operator.core.purging import FINALIZER
from katsura_operator.core.settings import Settings

DELETE = {"deletionPolicy": "Delete"}


def finalizers(world: World, name: str = "default") -> list[str]:
    found: list[str] = world.get("MemoryStore", name)["metadata"].get("finalizers", [])
    return found


def stores(world: World) -> list[str]:
    return [obj["metadata"]["name"] for obj in world.all("MemoryStore")]


def container(job: Any) -> Any:
    return job["spec"]["template"]["spec"]["containers"][0]


def environment(job: Any) -> dict[str, Any]:
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container(job)["env"]}


async def job_of(world: World) -> Any:
    """Delete the store `default`, let its pods end, and look at its Job before it runs."""
    world.delete("MemoryStore", "default")
    await world.reconciler().run()
    assert not world.all("Job"), "memory pods end first"
    assert world.condition("MemoryStore", "default")["reason"] == "Purging"
    await world.reconciler().run()
    (job,) = world.all("Job")
    return job


async def test_only_a_store_that_deletes_is_held_and_from_before_its_first_pod() -> None:
    world = World.in_memory()
    world.apply("MemoryStore", "kept", {})
    world.apply("MemoryStore", "default", DELETE)
    await world.reconciler().run()
    assert (finalizers(world), finalizers(world, "kept")) == ([FINALIZER], [])
    names = [obj["metadata"]["name"] for what, obj in world.plane.events if what in ("ADDED", "MODIFIED")]
    held = next(
        i for i, (_, obj) in enumerate(world.plane.events) if FINALIZER in (obj["metadata"].get("finalizers") or ())
    )
    assert held < names.index("default-memory")
    world.delete("MemoryStore", "kept")
    await world.settle()
    assert stores(world) == ["default"]
    assert not world.all("Job")


async def test_a_deleted_store_ends_its_pods_then_its_trees_then_itself() -> None:
    world = World.in_memory()
    world.apply("MemoryStore", "default", DELETE)
    await world.settle()
    job = await job_of(world)
    assert container(job)["command"] == ["python", "-m", "katsura.memory.purge"]
    assert "ownerReferences" not in job["metadata"], "foreground deletion would end it before its work"
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure"
    assert stores(world) == ["default"]
    await world.settle()
    assert stores(world) == []
    assert not world.all("Job")
    assert not world.all("Pod")
    reasons = [e["reason"] for e in world.all("Event")]
    assert reasons.count("Purged") == 1


async def test_other_finalizers_are_somebody_elses() -> None:
    world = World.in_memory()
    world.apply("MemoryStore", "default", DELETE)
    path = f"/apis/katsura.dev/v1alpha1/namespaces/{world.namespace}/memorystores/default"
    merge = "application/merge-patch+json"
    world.plane.call("PATCH", path, {"metadata": {"finalizers": ["example.org/mine"]}}, kind=merge)
    await world.settle()
    assert finalizers(world) == ["example.org/mine", FINALIZER]
    world.delete("MemoryStore", "default")
    await world.settle()
    assert finalizers(world) == ["example.org/mine"]
    assert not world.all("Job")


async def test_retain_said_at_any_time_lets_a_store_go_as_it_is() -> None:
    world = World.in_memory()
    world.apply("MemoryStore", "default", DELETE)
    await world.settle()
    world.apply("MemoryStore", "default", {"deletionPolicy": "Retain"})
    await world.settle()
    assert finalizers(world) == []
    world.apply("MemoryStore", "default", DELETE)
    await world.settle()
    world.job_trouble = "the store does not answer"
    world.delete("MemoryStore", "default")
    await world.settle()
    assert stores(world) == ["default"]
    world.apply("MemoryStore", "default", {"deletionPolicy": "Retain"})
    await world.settle()
    assert stores(world) == []
    assert not world.all("Job")


async def test_a_store_that_cannot_be_purged_says_why_and_how_to_let_it_go_and_goes_on_when_it_can() -> None:
    world = World.in_memory()
    world.apply("MemoryStore", "default", DELETE)
    await world.settle()
    world.job_trouble = "the store at redis://h:6379 does not answer"
    world.delete("MemoryStore", "default")
    await world.settle()
    ready = world.condition("MemoryStore", "default")
    assert (ready["status"], ready["reason"]) == ("False", "PurgeBlocked")
    assert "redis://h:6379 does not answer" in ready["message"]
    retain = (
        f"""kubectl patch kms default -n {world.namespace} --type merge -p '{{"spec":{{"deletionPolicy":"Retain"}}}}'"""
    )
    assert retain in ready["message"]
    await world.settle()
    assert [e["reason"] for e in world.all("Event")].count("PurgeBlocked") == 1
    world.job_trouble = ""
    await world.settle()
    assert stores(world) == []


async def test_the_job_has_the_stores_own_server_and_archive() -> None:
    world = World.in_memory(Settings("space", "services:1", "engine:1", fs_group=65532))
    own = {"redis": {"url": "redis://h:6379/3"}, "archive": {"pvc": "cold"}}
    world.apply("MemoryStore", "default", {**DELETE, **own})
    await world.settle()
    job = await job_of(world)
    pod = job["spec"]["template"]["spec"]
    assert environment(job)["KATSURA_STORE_URL"] == "redis://h:6379/3"
    assert {"name": "archive", "persistentVolumeClaim": {"claimName": "cold"}} in pod["volumes"]
    mounts = {m["name"]: m["mountPath"] for m in container(job)["volumeMounts"]}
    assert mounts["archive"] == environment(job)["KATSURA_MEMORY_COLD_FOLDER"]
    assert pod["securityContext"]["fsGroup"] == 65532
    assert "KATSURA_PURGE_SPARED" not in environment(job)
    assert "KATSURA_PURGE_SPARED_URL" not in environment(job)


@pytest.mark.parametrize(
    ("own", "other", "spared", "spares_the_secrets"),
    [
        ({}, {"redis": {"url": "redis://u:secret@h/3"}}, "h:6379/3", False),
        ({"redis": {"url": "redis://g"}}, {}, None, True),
        ({}, {}, None, True),
    ],
)
async def test_the_job_is_told_where_others_keep_their_trees_and_no_password(
    own: dict[str, Any], other: dict[str, Any], spared: str | None, spares_the_secrets: bool
) -> None:
    world = World.in_memory()
    world.apply("MemoryStore", "other", other)
    world.apply("MemoryStore", "default", {**DELETE, **own})
    await world.settle()
    job = await job_of(world)
    assert environment(job).get("KATSURA_PURGE_SPARED") == spared
    assert ("KATSURA_PURGE_SPARED_URL" in environment(job)) is spares_the_secrets
    assert "secret@" not in str(job)


async def test_a_job_is_made_anew_when_the_other_store_is_gone() -> None:
    world = World.in_memory()
    world.apply("MemoryStore", "other", {})
    world.apply("MemoryStore", "default", DELETE)
    await world.settle()
    world.job_trouble = "another MemoryStore keeps its trees there too"
    world.delete("MemoryStore", "default")
    await world.settle()
    (before,) = world.all("Job")
    world.delete("MemoryStore", "other")
    world.job_trouble = ""
    await world.reconciler().run()
    (after,) = world.all("Job")
    assert after["metadata"]["name"] != before["metadata"]["name"]
    await world.settle()
    assert stores(world) == []


async def test_a_store_that_is_refused_is_not_held() -> None:
    world = World.in_memory()
    world.apply("MemoryStore", "default", {**DELETE, "durability": "eternal"})
    await world.settle()
    assert world.condition("MemoryStore", "default", "Accepted")["status"] == "False"
    assert finalizers(world) == []
