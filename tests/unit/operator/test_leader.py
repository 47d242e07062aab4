"""Who may write, with an API server in memory and clocks of our own."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from katsura.testing.apiserver import ApiServer, TwinKube
from katsura.testing.operators import World
from katsura_operator.core.election import LEASE_S, MARGIN_S, RENEW_S
from katsura_operator.core.objects import LEASE
from katsura_operator.leader import LEASE_NAME, Leader, LostLeadershipError

PATH = LEASE.path("n", LEASE_NAME)


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s
        self.slept: list[float] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        self.meanwhile()


def leader(server: ApiServer, identity: str, clock: Clock) -> Leader:
    return Leader(TwinKube(server), "n", identity, clock, clock.sleep)


async def test_the_first_candidate_leads_and_says_that_it_knows() -> None:
    server, clock = ApiServer(), Clock()
    made = leader(server, "a", clock)
    assert (made.leads, made.known) == (False, False)
    await made.win()
    assert (made.leads, made.known) == (True, True)
    assert server.call("GET", PATH)["spec"]["holderIdentity"] == "a"
    assert clock.slept == []


async def test_a_candidate_waits_until_the_holder_was_silent_for_its_whole_duration() -> None:
    server, clock = ApiServer(), Clock(5.0)
    await leader(server, "a", clock).win()
    second = leader(server, "b", clock)
    await second.win()
    assert clock.now_s - 5.0 >= LEASE_S
    assert server.call("GET", PATH)["spec"]["leaseTransitions"] == 1


async def test_what_was_given_back_is_taken_without_waiting() -> None:
    server, clock = ApiServer(), Clock()
    first = leader(server, "a", clock)
    await first.win()
    await first.give_back()
    assert not first.leads
    await leader(server, "b", clock).win()
    assert clock.slept == []


async def test_giving_back_what_another_one_holds_changes_nothing() -> None:
    server, clock = ApiServer(), Clock()
    first = leader(server, "a", clock)
    await first.win()
    stolen = server.call("GET", PATH)
    server.call("PUT", PATH, {**stolen, "spec": {**stolen["spec"], "holderIdentity": "b"}})
    await first.give_back()
    assert server.call("GET", PATH)["spec"]["holderIdentity"] == "b"


async def test_holding_ends_when_somebody_else_has_the_lease() -> None:
    server, clock = ApiServer(), Clock()
    first = leader(server, "a", clock)
    await first.win()

    def steal() -> None:
        stolen = server.call("GET", PATH)
        server.call("PUT", PATH, {**stolen, "spec": {**stolen["spec"], "holderIdentity": "b"}})

    clock.meanwhile = steal
    with pytest.raises(LostLeadershipError):
        await first.hold()
    with pytest.raises(LostLeadershipError):
        first.fence()


async def test_holding_outlives_a_short_silence_of_the_api_server_and_not_a_long_one() -> None:
    server, clock = ApiServer(), Clock()
    first = leader(server, "a", clock)
    await first.win()
    server.fault = lambda method, path, query: 503 if clock.now_s < 2 * RENEW_S or clock.now_s > 20 else 0
    with pytest.raises(LostLeadershipError):
        await first.hold()
    assert 20.0 < clock.now_s <= 20.0 + LEASE_S


async def test_holding_does_not_wait_beyond_the_lease_for_an_api_server_that_says_nothing() -> None:
    server, clock = ApiServer(), Clock()
    door = Silent(server)
    first = Leader(door, "n", "a", clock, clock.sleep)
    await first.win()
    door.silent = True

    def nearly_over() -> None:
        clock.now_s = LEASE_S - MARGIN_S - 0.01

    clock.meanwhile = nearly_over
    with pytest.raises(LostLeadershipError):
        await first.hold()


class Silent(TwinKube):
    """A door to a server that may take a request and never answer."""

    silent = False

    async def _ask(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if self.silent:
            await asyncio.Event().wait()
        return await super()._ask(*args, **kwargs)


async def test_it_is_given_back_although_a_renewal_was_still_under_way() -> None:
    server, clock = ApiServer(), Clock()
    first = leader(server, "a", clock)
    await first.win()
    puts = itertools.count()
    server.fault = lambda method, path, query: 409 if method == "PUT" and next(puts) == 0 else 0
    await first.give_back()
    assert server.call("GET", PATH)["spec"]["holderIdentity"] == ""


@pytest.mark.parametrize("seed", range(8))
async def test_two_leaders_never_write(seed: int) -> None:
    """Two whole operators on one server: clocks apart, sleeps through the lease, lost renewals. Every write that the
    server takes is of the only one that may write."""
    rng = random.Random(seed)
    server = ApiServer()
    world = World(server, "space", TwinKube(server))
    names = ("a", "b")
    now_s, offset = [0.0], {name: rng.uniform(1, 1e6) for name in names}
    deaf = dict.fromkeys(names, 0.0)
    leaders = {n: Leader(TwinKube(server), "n", n, lambda n=n: now_s[0] + offset[n]) for n in names}  # type: ignore[misc]
    wrote: set[str] = set()
    for turn in range(40):
        now_s[0] += rng.uniform(0.1, RENEW_S)
        name = rng.choice(names)
        lost = rng.random() < 0.2
        server.fault = lambda method, path, query, lost=lost: 503 if lost and "leases" in path else 0
        if now_s[0] >= deaf[name]:
            await leaders[name].step()
            if rng.random() < 0.1:
                deaf[name] = now_s[0] + rng.uniform(0, 2 * LEASE_S)
        server.fault = lambda method, path, query: 0
        assert sum(one.leads for one in leaders.values()) <= 1, f"turn {turn}"
        world.apply("MemoryStore", "default", {"replicas": 1 + turn % 3})
        for each in names:  # both try, whatever they believe
            before, may = server.writes, leaders[each].leads
            try:
                await world.reconciler(TwinKube(server, leaders[each].fence)).run()
            except LostLeadershipError:
                assert not may
            assert may or server.writes == before, f"{each} wrote in turn {turn} without the lease"
            wrote |= {each} if server.writes > before else set()
    assert wrote
