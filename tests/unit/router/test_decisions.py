"""Decisions over a view and the twin, also where the store does not answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from katsura.domain.errors import NotFoundError, Reason, UnavailableError
from katsura.domain.ids import DeploymentName, Epoch, Incarnation, InstanceId, ProgramId, TenantId
from katsura.domain.tables import EndpointTable
from katsura.domain.tenant import Tenant
from katsura.router.decisions import Decider, ShardAsk
from katsura.router.view import View
from katsura.state.hints import Affinity, Decided
from katsura.state.hints_twin import TwinHintStore
from katsura.testing.fleet import DEPLOYMENT, REVISION, shard_record

ADA, BOB = Tenant(TenantId("ada"), b"a" * 32), Tenant(TenantId("bob"), b"b" * 32)
RUN = ProgramId("run")
ASK = ShardAsk(DEPLOYMENT, REVISION.revision_id, RUN, "main", (), 100, 10, frozenset())


class StoppedClock:
    def wall_ms(self) -> int:
        return 1_000_000

    def monotonic_s(self) -> float:
        return 1000.0


class DeafStore(TwinHintStore):
    """Takes programs' hints and never answers."""

    async def get_affinity(self, tenant: Tenant, program: ProgramId) -> Affinity | None:
        return await asyncio.get_running_loop().create_future()

    async def put_affinity(self, *args: object, **more: object) -> None:
        await asyncio.get_running_loop().create_future()


def decider(store: TwinHintStore) -> Decider:
    view = View(store, StoppedClock())
    view.shards = {lease.instance_id: lease for lease in (shard_record("s1"), shard_record("s2"))}
    view.caught_up.set()
    return Decider(store, view)


async def test_a_program_is_kept_where_it_ran_for_its_own_tenant_only() -> None:
    store = TwinHintStore(StoppedClock())
    await store.put_affinity(ADA, RUN, Affinity(DEPLOYMENT, InstanceId("s2"), Incarnation(1)))
    mine = await decider(store).choose_shard(ADA, ASK)
    assert (mine.shard.instance_id, mine.pick.chosen.affinity_s > 0) == ("s2", True)
    other = await decider(store).choose_shard(BOB, ASK)
    assert other.pick.chosen.affinity_s == 0


async def test_a_program_of_another_deployment_is_not_at_home_here() -> None:
    store = TwinHintStore(StoppedClock())
    await store.put_affinity(ADA, RUN, Affinity(DeploymentName("other"), InstanceId("s2"), Incarnation(1)))
    assert (await decider(store).choose_shard(ADA, ASK)).pick.chosen.affinity_s == 0


async def test_a_decision_is_noted_for_all_routers_before_it_is_answered() -> None:
    store = TwinHintStore(StoppedClock())
    found = await decider(store).choose_shard(ADA, ASK)
    assert await store.get_affinity(ADA, RUN) == Affinity(DEPLOYMENT, found.shard.instance_id, Incarnation(1))
    view = View(store, StoppedClock())
    (note,) = [entry.note for entry in await store.read_feeds(view._cursors, 0)]
    assert note == Decided(found.decision_id, found.shard.instance_id, Incarnation(1), 100, 1_000_000)


async def test_a_store_that_does_not_answer_delays_a_decision_but_does_not_stop_it() -> None:
    found = await decider(DeafStore(StoppedClock())).choose_shard(ADA, ASK)
    assert found.shard.instance_id in ("s1", "s2")


async def test_requests_that_come_at_once_see_each_other() -> None:
    store = TwinHintStore(StoppedClock())
    for name in ("s1", "s2"):
        await store.put_shard(shard_record(name))
    deciding = decider(store)
    following = asyncio.create_task(deciding._view.run())
    asks = [replace(ASK, program=ProgramId(f"run{i}"), branch_key=f"run{i}") for i in range(6)]
    try:
        found = await asyncio.gather(*(deciding.choose_shard(ADA, ask) for ask in asks))
    finally:
        following.cancel()
    assert sorted(each.shard.instance_id for each in found) == ["s1"] * 3 + ["s2"] * 3


async def test_a_silent_store_delays_one_decision_and_not_each(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = 0

    class Counted(asyncio.Event):
        async def wait(self) -> bool:  # type: ignore[override]
            nonlocal waits
            waits += 1
            return await super().wait()

    deciding = decider(TwinHintStore(StoppedClock()))
    monkeypatch.setattr("katsura.router.decisions.asyncio.Event", Counted)
    await asyncio.gather(*(deciding.choose_shard(ADA, ASK) for _ in range(10)))
    assert waits == 1
    (event,) = deciding._view.awaited.values()
    event.set()  # it speaks again, and is waited for again
    await deciding.choose_shard(ADA, ASK)
    await deciding.choose_shard(ADA, ASK)
    assert waits == 2


async def test_a_view_that_is_not_followed_delays_the_next_decision_but_does_not_stop_it() -> None:
    deciding = decider(TwinHintStore(StoppedClock()))
    for _ in range(3):
        await deciding.choose_shard(ADA, ASK)
    assert len(deciding._view.awaited) == 1


async def test_a_revision_without_shards_and_an_unknown_deployment_are_told_apart() -> None:
    with pytest.raises(UnavailableError, match="no shard of this revision is registered"):
        await decider(TwinHintStore(StoppedClock())).choose_shard(ADA, replace(ASK, revision_id="old"))
    rolled = decider(TwinHintStore(StoppedClock()))
    rolled._view.endpoints[DEPLOYMENT] = EndpointTable(DEPLOYMENT, Epoch(1), REVISION, (), "models/smol", 5, ())
    with pytest.raises(UnavailableError, match=f"serves revision {REVISION.revision_id} now; ask anew") as evicted:
        await rolled.choose_shard(ADA, replace(ASK, revision_id="old"))
    assert evicted.value.reason is Reason.EVICTED_ROLLOUT
    with pytest.raises(NotFoundError, match="there are: demo") as refused:
        await decider(TwinHintStore(StoppedClock())).choose_shard(ADA, replace(ASK, deployment=DeploymentName("x")))
    assert refused.value.reason is Reason.MODEL_NOT_FOUND


async def test_a_router_that_could_not_read_the_store_yet_says_so_and_not_that_there_is_no_model() -> None:
    store = TwinHintStore(StoppedClock())
    blind = Decider(store, View(store, StoppedClock()))
    for ask in (lambda: blind.choose_model("demo", 0), blind.models):
        with pytest.raises(UnavailableError) as refused:
            ask()
        assert refused.value.reason is Reason.STORE_UNAVAILABLE
    with pytest.raises(UnavailableError):
        await blind.choose_shard(ADA, ASK)


async def test_a_draining_router_decides_nothing() -> None:
    one = decider(TwinHintStore(StoppedClock()))
    one.draining = True
    with pytest.raises(UnavailableError) as refused:
        await one.choose_shard(ADA, ASK)
    assert refused.value.reason is Reason.DRAINING
    with pytest.raises(UnavailableError):
        one.choose_model("demo", 0)
