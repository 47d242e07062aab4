"""Before a count falls, as many pods have finished: however it comes to fall, and whoever crashes meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from katsura.testing.crashes import SCENARIOS, Scenario, finish
from katsura.testing.operators import CrashingKube, World
from katsura_operator.core.objects import DRAINING, ROLE, annotations_of, is_true, labels_of, name_of
from katsura_operator.core.rollout import NEEDS_DRAIN, WORKLOAD_LABEL

FALLING = [s for s in SCENARIOS if "count falls" in s.name or "zero" in s.name or "revision" in s.name]


class History:
    """What watches brought, read as whoever uses the pods would."""

    def __init__(self, events: list[tuple[str, Any]]) -> None:
        self.falls, self.marks = 0, 0
        self.broken: list[str] = []
        self._counts: dict[str, int] = {}
        self._pods: dict[str, Any] = {}
        for what, obj in events:
            if labels_of(obj).get(ROLE) not in NEEDS_DRAIN:
                continue
            if obj["kind"] == "Pod":
                self._pod(what, obj)
            elif obj["kind"] == "Deployment":
                self._workload(what, obj)

    def _pod(self, what: str, pod: Any) -> None:
        before = self._pods.pop(name_of(pod), None)
        if what == "DELETED":
            return
        self._pods[name_of(pod)] = pod
        if before is not None and DRAINING in annotations_of(pod) and DRAINING not in annotations_of(before):
            self.marks += 1
            stay = [p for p in self._of(labels_of(pod)[WORKLOAD_LABEL]) if DRAINING not in annotations_of(p)]
            younger = [p for p in stay if p["metadata"]["creationTimestamp"] > pod["metadata"]["creationTimestamp"]]
            if younger:
                self.broken.append(f"{name_of(pod)} was marked before {name_of(younger[0])}, which is younger")

    def _workload(self, what: str, workload: Any) -> None:
        name = name_of(workload)
        count, before = 0 if what == "DELETED" else workload["spec"]["replicas"], self._counts.get(name, 0)
        self._counts[name] = count
        if count < before:
            self.falls += 1
            if len(self._of(name)) > count:
                self.broken.append(f"{name} fell from {before} to {count} while {len(self._of(name))} pods worked")

    def _of(self, workload: str) -> list[Any]:
        """Its pods that still work."""
        return [p for p in self._pods.values() if labels_of(p)[WORKLOAD_LABEL] == workload and is_true(p, "Ready")]


async def watched(scenario: Scenario, last: int = 0) -> tuple[History, int]:
    world: World = await scenario.world()
    door = CrashingKube(world.kube, last or 10**9)
    await finish(world, door)
    return History(world.plane.events), door.writes


@pytest.mark.parametrize("scenario", FALLING, ids=lambda scenario: scenario.name)
async def test_no_count_falls_below_the_pods_that_work_and_the_highest_rank_goes_first(scenario: Scenario) -> None:
    history, writes = await watched(scenario)
    assert history.broken == []
    assert history.falls
    assert history.marks
    for last in range(1, writes + 1, 6):
        crashed, _ = await watched(scenario, last)
        assert crashed.broken == [], f"after a crash at write {last}"
        assert crashed.falls
