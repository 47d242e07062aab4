"""Two real router processes over a real Valkey; shards and members are their records in the hints store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from katsura.api.router.v1 import router_service_pb2 as pb
from katsura.domain.errors import (
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    Reason,
    UnavailableError,
)
from katsura.domain.ids import TenantId
from katsura.domain.kv_events import KvBatch, KvRemoved, KvSnapshot, KvStored
from katsura.domain.leases import ShardLease
from katsura.domain.tenant import Tenant
from katsura.rpc.channel import open_channel
from katsura.rpc.context import CallContext
from katsura.sdk.connection import Connection
from katsura.sdk.router import RouterClient
from katsura.state.connect import Store
from katsura.state.hints_redis import LIBRARY, RedisHintStore
from katsura.testing.fleet import DEPLOYMENT, LONG_TTL_MS, REVISION, RecordedMember, member_record, shard_record
from katsura.testing.process import ServedProcess
from katsura.testing.store import EmbeddedStore

ADA = CallContext(Tenant(TenantId("ada"), b"a" * 32))
CHAIN = [bytes([n]) * 16 for n in range(1, 7)]


class House:
    """A store and routers; everything in it ends with the test."""

    def __init__(self, valkey: EmbeddedStore, store: RedisHintStore, folder: Path, stack: AsyncExitStack) -> None:
        self.valkey = valkey
        self.store = store
        self._folder = folder
        self._stack = stack

    async def router(self, name: str) -> tuple[ServedProcess, RouterClient]:
        environment = {
            "KATSURA_LISTEN": f"unix:{self._folder}/{name}",
            "KATSURA_INSTANCE_ID": name,
            "KATSURA_HINTS_URL": self.valkey.url,
            "KATSURA_INTERNAL_TOKEN": "token",
        }
        process = ServedProcess("katsura.router", environment, self._folder / f"{name}.log")
        await self._stack.enter_async_context(process)
        channel = await self._stack.enter_async_context(open_channel(process.address))
        return process, RouterClient([Connection(channel, "token", call=ADA)])

    async def put(self, *shards: ShardLease) -> None:
        for shard in shards:
            await self.store.put_shard(shard, ttl_ms=LONG_TTL_MS)
            if await self.store.read_kv_snapshot(shard.instance_id) is None:
                await self.store.put_kv_snapshot(shard.instance_id, KvSnapshot(shard.incarnation, 0, ()))

    async def hold(self, shard: ShardLease, sequence: int, *pages: bytes) -> None:
        batch = KvBatch(shard.incarnation, sequence, (KvStored(b"", pages),))
        await self.store.publish_kv(shard.instance_id, batch)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        valkey = stack.enter_context(EmbeddedStore())
        store = RedisHintStore(await Store.open(valkey.url, libraries=[LIBRARY]))
        stack.push_async_callback(store.close)
        yield House(valkey, store, tmp_path, stack)


async def until(look: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again; each look is a call to a process, so this waits without spinning."""
    async with asyncio.timeout(30):
        while not await look():
            pass


async def choose(client: RouterClient, **change: object) -> pb.ChooseShardResponse:
    asked: dict[str, object] = {
        "revision_id": REVISION.revision_id,
        "deployment": DEPLOYMENT,
        "program_id": "",
        "branch_key": "main",
        "page_hashes": CHAIN,
        "prompt_tokens": 100,
        "max_new_tokens": 20,
    }
    return await client.choose_shard(**(asked | change))  # type: ignore[arg-type]


async def asked_and_ended(client: RouterClient) -> pb.ChooseShardResponse:
    answer = await choose(client)
    await client.report_outcome(answer.decision_id, answer.shard.shard_id)
    return answer


def has_seen(client: RouterClient, **sequences: int) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return dict((await client.get_router()).kv_event_sequences) == sequences

    return look


async def test_two_routers_at_one_event_offset_answer_with_equal_scores(house: House) -> None:
    one, two = shard_record("s1"), shard_record("s2")
    busy = replace(two.load, running=3, waiting=1, waiting_tokens=77, step_ms=13.0, prefill_tokens_per_s=911.0)
    await house.put(one, replace(two, load=busy))
    await house.hold(one, 1, *CHAIN[:2])
    (_, first), (_, second) = await house.router("r1"), await house.router("r2")
    await house.hold(two, 1, *CHAIN)
    await house.store.publish_kv(two.instance_id, KvBatch(two.incarnation, 2, (KvRemoved((CHAIN[5],)),)))
    for client in (first, second):
        await until(has_seen(client, s1=1, s2=2))
    # What is in flight is part of the score, so a decision is ended before the next one is asked for; the other router
    # has then read both notes, or is asked again.
    seen = [await asked_and_ended(first)] * 2

    async def both_alike() -> bool:
        seen[1] = await asked_and_ended(second)
        return list(seen[0].scores) == list(seen[1].scores)

    await until(both_alike)
    assert seen[0].kv_event_sequences == seen[1].kv_event_sequences == {"s1": 1, "s2": 2}
    assert [(s.shard_id, s.matched_tokens) for s in seen[0].scores] == [("s1", 32), ("s2", 80)]
    assert (seen[0].reason, seen[0].shard) == (seen[1].reason, seen[1].shard)


async def test_models_are_chosen_by_name_and_alias_and_refusals_say_what_exists(house: House) -> None:
    _, client = await house.router("r1")
    with pytest.raises(NotFoundError) as unknown:
        await client.choose_model("demo")
    assert (unknown.value.reason, unknown.value.field) == (Reason.MODEL_NOT_FOUND, "model")
    await house.put(shard_record("s1"))

    async def chosen() -> bool:
        return [model.name for model in await client.list_models()] == ["demo"]

    await until(chosen)
    for asked in ("demo", "tiny", "auto"):
        answer = await client.choose_model(asked, context_tokens=2048)
        assert (answer.model.name, answer.model.revision.revision_id) == ("demo", "rev-1")
        assert answer.model.ready_shard_count == 1
        assert answer.scores[0].name == "demo"
    with pytest.raises(NotFoundError, match="demo"):
        await client.choose_model("gpt-9")
    with pytest.raises(OutOfRangeError, match="2048"):
        await client.choose_model("demo", context_tokens=2049)
    with pytest.raises(InvalidArgumentError) as nothing:
        await client.choose_model("")
    assert nothing.value.field == "model"


async def test_a_model_that_cannot_serve_says_why(house: House) -> None:
    await house.put(replace(shard_record("s1"), ready=False, not_ready_reason="waiting for expert coverage: 3 of 8"))
    _, client = await house.router("r1")
    client = client.acting_for(ADA, timeout_s=5)
    with pytest.raises(UnavailableError, match="waiting for expert coverage: 3 of 8"):
        await client.choose_model("demo")
    with pytest.raises(UnavailableError, match="waiting for expert coverage: 3 of 8") as no_shard:
        await choose(client)
    assert no_shard.value.reason is Reason.NO_SHARD
    assert [model.not_ready_reason for model in await client.list_models()] == [
        "s1 is not ready: waiting for expert coverage: 3 of 8"
    ]


async def test_a_shard_that_just_failed_is_not_chosen_again(house: House) -> None:
    one, two = shard_record("s1"), shard_record("s2")
    await house.put(one, two)
    await house.hold(one, 1, *CHAIN)
    _, client = await house.router("r1")
    assert (await choose(client)).shard.shard_id == "s1"
    other = await choose(client, excluded_shard_ids=["s1"])
    assert other.shard.shard_id == "s2"
    assert [s.excluded_reason for s in other.scores] == ["", "just failed this request"]


async def test_a_program_comes_home_until_its_shard_fails(house: House) -> None:
    await house.put(shard_record("s1"), shard_record("s2"))
    _, client = await house.router("r1")
    first = await choose(client, program_id="run-1", branch_key="x")
    home = first.shard.shard_id
    again = await choose(client, program_id="run-1", branch_key="y", page_hashes=[])
    assert again.shard.shard_id == home
    assert again.scores[0].affinity_s > 0
    await client.report_outcome(again.decision_id, home, program_id="run-1", failed=True)
    fresh = await choose(client, program_id="run-1", branch_key="x")
    assert [s.affinity_s for s in fresh.scores] == [0, 0]


async def test_page_hashes_that_do_not_fit_the_prompt_are_refused(house: House) -> None:
    await house.put(shard_record("s1"))
    _, client = await house.router("r1")
    for change, field in (
        ({"page_hashes": [b"short"]}, "page_hashes"),
        ({"prompt_tokens": 95}, "page_hashes"),
        ({"prompt_tokens": 0}, "prompt_tokens"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
    ):
        with pytest.raises(InvalidArgumentError) as refused:
            await choose(client, **change)
        assert refused.value.field == field
    with pytest.raises(NotFoundError):
        await choose(client, deployment="other")


async def test_only_our_own_processes_look_into_a_router_or_drain_it(house: House, tmp_path: Path) -> None:
    process, _ = await house.router("r1")
    async with open_channel(process.address) as channel:
        stranger = RouterClient([Connection(channel)])
        with pytest.raises(PermissionDeniedError):
            await stranger.get_router()
        with pytest.raises(PermissionDeniedError):
            await stranger.drain(0)


async def test_members_get_a_committed_table_with_a_stand_in_for_every_group(house: House) -> None:
    _, client = await house.router("r1")
    members = [RecordedMember(house.store, member_record(name, start_ms=n)) for n, name in enumerate(("m1", "m2"))]
    running = [asyncio.ensure_future(member.run()) for member in members]

    async def both_committed() -> bool:
        tables = (await client.get_router()).tables
        return [(t.phase, len(t.assignments)) for t in tables] == [("COMMITTED", 2)]

    try:
        await until(both_committed)
    finally:
        for task in running:
            task.cancel()
    (table,) = (await client.get_router()).tables
    primary = [list(a.primary_groups) for a in table.assignments]
    assert sorted(map(len, primary)) == [4, 4]
    assert sorted(group for groups in primary for group in groups) == list(range(8))
    assert [sorted([*a.primary_groups, *a.alternate_groups]) for a in table.assignments] == [list(range(8))] * 2


async def test_a_drained_router_refuses_decisions_and_hands_coordination_over(house: House) -> None:
    await house.put(shard_record("s1"))
    (_, first), (_, second) = await house.router("r1"), await house.router("r2")
    assert (await first.get_router()).coordinator
    assert (await first.drain(1000)).drain.draining

    async def took_over() -> bool:
        return (await second.get_router()).coordinator

    await until(took_over)
    assert not (await first.get_router()).coordinator
    with pytest.raises(UnavailableError) as refused:
        await choose(first.acting_for(ADA, timeout_s=5))
    assert refused.value.reason is Reason.DRAINING
    assert (await choose(second)).shard.shard_id == "s1"


async def test_sigterm_ends_a_router_cleanly_and_takes_its_lease_away(house: House) -> None:
    process, _ = await house.router("r1")

    async def registered() -> bool:
        return [lease.instance_id for lease in await house.store.list_routers()] == ["r1"]

    await until(registered)
    assert await process.terminate() == 0
    assert await house.store.list_routers() == ()
