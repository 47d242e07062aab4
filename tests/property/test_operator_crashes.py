"""Whatever cuts a reconcile off, and wherever, the operator ends in the state of one that was never disturbed."""

from __future__ import annotations

import random

import pytest

from katsura.testing.crashes import SCENARIOS, Scenario, drain_all, finish, try_all
from katsura.testing.operators import digest_of
from katsura_operator.watch import Watch

EACH = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


@EACH
async def test_a_sample_of_points_ends_in_the_same_state(scenario: Scenario) -> None:
    tally = await try_all(scenario, stride=83, crash_stride=9)
    assert tally.lost == []
    assert sum(tally.tried.values()) >= 6


@pytest.mark.soak
@pytest.mark.timeout(3600)
@EACH
async def test_every_point_ends_in_the_same_state(scenario: Scenario) -> None:
    assert (await try_all(scenario)).lost == []


@pytest.mark.parametrize("seed", range(2))
@EACH
async def test_watch_events_may_be_lost_doubled_and_late(scenario: Scenario, seed: int) -> None:
    """Passes are made for what the watches bring, and by the resync; where events are lost, the resync ends it."""
    rng = random.Random(seed)
    calm, world = await scenario.world(), await scenario.world()
    await finish(calm)
    asked: list[bool] = []
    watch = Watch((), lambda: asked.append(True), "me", nodes=True)
    told, still = 0, 0
    for turn in range(400):
        fresh = [event for event in world.plane.events[told:] if rng.random() < 0.6]
        told = len(world.plane.events)
        brought = [event for event in fresh for _ in range(rng.choice((1, 1, 2)))]
        rng.shuffle(brought)
        for what, obj in brought:
            watch.note(what, obj)
        if asked or turn % 7 == 0:
            asked.clear()
            still = still + 1 if (await world.reconciler().run()).writes == 0 else 0
        moved = world.run_pods()
        if not drain_all(world) and not moved and still > 2:
            break
    else:
        pytest.fail("it never comes to rest")
    assert digest_of(world) == digest_of(calm)
