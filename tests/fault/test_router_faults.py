"""Routers and their store under kill -9, freeze and loss: decisions go on, and coordination has one writer."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from katsura.api.router.v1 import router_service_pb2 as pb
from katsura.domain.errors import UnavailableError
from katsura.domain.ids import TenantId
from katsura.domain.kv_events import KvBatch, KvSnapshot, KvStored
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
    """A store, routers and two shards of which s2 holds the prompt; everything ends with the test."""

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
        return process, RouterClient([Connection(channel, "token", call=ADA, timeout_s=5.0)])

    async def put_shards(self) -> None:
        for name in ("s1", "s2"):
            await self.store.put_shard(shard_record(name), ttl_ms=LONG_TTL_MS)
            await self.snapshot(shard_record(name), 0)

    async def snapshot(self, shard: ShardLease, sequence: int, *pages: bytes) -> None:
        await self.store.put_kv_snapshot(shard.instance_id, KvSnapshot(shard.incarnation, sequence, pages))

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


async def choose(client: RouterClient, program: str = "", branch: str = "main") -> pb.ChooseShardResponse:
    return await client.choose_shard(
        revision_id=REVISION.revision_id,
        deployment=DEPLOYMENT,
        program_id=program,
        branch_key=branch,
        page_hashes=CHAIN,
        prompt_tokens=100,
        max_new_tokens=20,
    )


def matched(client: RouterClient, shard: str, tokens: int) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        answer = await choose(client)
        await client.report_outcome(answer.decision_id, answer.shard.shard_id)
        return {s.shard_id: s.matched_tokens for s in answer.scores}[shard] == tokens

    return look


async def test_a_killed_router_comes_back_and_chooses_the_same_shard_without_new_events(house: House) -> None:
    await house.put_shards()
    process, client = await house.router("r1")
    await house.hold(shard_record("s2"), 1, *CHAIN)
    await until(matched(client, "s2", 96))
    before = await choose(client, program="run-7")
    home = await choose(client, program="run-8", branch="elsewhere")
    await client.report_outcome(home.decision_id, home.shard.shard_id)
    await process.kill()
    _, reborn = await house.router("r1")
    after = await choose(reborn, program="run-7")
    assert after.shard == before.shard
    assert after.matched_tokens == before.matched_tokens == 96
    assert dict(after.kv_event_sequences) == {"s1": 0, "s2": 1}
    assert next(s for s in after.scores if s.shard_id == before.shard.shard_id).affinity_s > 0
    again = await choose(reborn, program="run-8", branch="elsewhere")
    assert again.shard == home.shard


async def test_a_killed_coordinator_is_replaced_and_the_committed_table_stays_meanwhile(house: House) -> None:
    (process, first), (_, second) = await house.router("r1"), await house.router("r2")
    members = [RecordedMember(house.store, member_record(name, start_ms=n)) for n, name in enumerate(("m1", "m2"))]
    running = [asyncio.ensure_future(member.run()) for member in members]

    async def committed_over(count: int) -> bool:
        held = await house.store.read_expert_tables(DEPLOYMENT, REVISION.revision_id)
        return held.value.committed is not None and len(held.value.committed.assignments) == count

    try:
        await until(lambda: committed_over(2))
        assert (await first.get_router()).coordinator
        token = (await first.get_router()).fencing_token
        epoch = [t.epoch for t in (await second.get_router()).tables if t.phase == "COMMITTED"]
        await process.kill()
        assert [t.epoch for t in (await second.get_router()).tables if t.phase == "COMMITTED"] == epoch

        async def took_over() -> bool:
            return (await second.get_router()).coordinator

        await until(took_over)
        assert (await second.get_router()).fencing_token > token
        running.pop().cancel()
        await until(lambda: committed_over(1))
    finally:
        for task in running:
            task.cancel()
    held = await house.store.read_expert_tables(DEPLOYMENT, REVISION.revision_id)
    assert held.value.committed is not None
    assert held.value.committed.epoch > epoch[0]


async def test_a_frozen_coordinator_that_wakes_up_finds_another_one_and_writes_nothing(house: House) -> None:
    (frozen, first), (_, second) = await house.router("r1"), await house.router("r2")
    assert (await first.get_router()).coordinator
    frozen.send(signal.SIGSTOP)

    async def took_over() -> bool:
        return (await second.get_router()).coordinator

    await until(took_over)
    await house.store.put_shard(shard_record("s1"), ttl_ms=LONG_TTL_MS)

    async def written() -> bool:
        return [held.value.epoch for held in await house.store.list_endpoints()] == [1]

    await until(written)
    (before,) = await house.store.list_endpoints()
    frozen.send(signal.SIGCONT)

    async def stepped_back() -> bool:
        seen = await first.get_router()
        return not seen.coordinator and seen.coordinator_id == "r2"

    await until(stepped_back)
    assert (await second.get_router()).coordinator
    assert await house.store.list_endpoints() == (before,)


async def test_decisions_go_on_while_the_store_is_down_and_events_count_again_after_its_restart(house: House) -> None:
    await house.put_shards()
    _, client = await house.router("r1")
    await house.hold(shard_record("s2"), 1, *CHAIN[:3])
    await until(matched(client, "s2", 48))
    house.valkey.kill()
    assert (await choose(client)).matched_tokens == 48
    assert (await client.choose_model("tiny")).model.name == "demo"
    house.valkey.start()

    async def published() -> bool:
        try:
            await house.hold(shard_record("s2"), 2, *CHAIN[3:])
        except UnavailableError:
            return False
        return True

    await until(published)
    await until(matched(client, "s2", 96))
    assert dict((await client.get_router()).kv_event_sequences) == {"s1": 0, "s2": 2}


async def test_a_store_that_comes_back_empty_is_filled_again_from_leases_and_snapshots(house: House) -> None:
    await house.put_shards()
    _, client = await house.router("r1")
    shard = shard_record("s2")
    await house.hold(shard, 1, *CHAIN[:3])
    await until(matched(client, "s2", 48))
    async with AsyncExitStack() as stack:
        opened = await Store.open(house.valkey.url)
        stack.push_async_callback(opened.close)
        await opened.client.flushall()
    # What a shard does at its heartbeats: it is asked for a snapshot and puts it; events go on from its own number.
    assert await house.store.put_shard(shard, ttl_ms=LONG_TTL_MS)
    await house.store.put_shard(shard_record("s1"), ttl_ms=LONG_TTL_MS)
    await house.snapshot(shard, 4, *CHAIN[:2])
    await house.hold(shard, 5, CHAIN[2], CHAIN[3])
    await until(matched(client, "s2", 64))
    assert (await client.get_router()).kv_event_sequences["s2"] == 5
    assert (await client.get_router()).coordinator


async def test_tables_that_the_store_lost_are_written_again_in_their_epoch(house: House) -> None:
    await house.router("r1")
    running = asyncio.ensure_future(RecordedMember(house.store, member_record("m1")).run())
    committed: list[object] = []

    async def come() -> bool:
        held = await house.store.read_expert_tables(DEPLOYMENT, REVISION.revision_id)
        committed[:] = [held.value.committed] if held.value.committed else []
        return bool(committed)

    try:
        await until(come)
        (before,) = committed
        async with AsyncExitStack() as stack:
            opened = await Store.open(house.valkey.url)
            stack.push_async_callback(opened.close)
            await opened.client.flushall()
        await until(come)
    finally:
        running.cancel()
    assert committed == [before]


async def test_a_missing_batch_makes_a_shard_cold_until_its_snapshot(house: House) -> None:
    await house.put_shards()
    _, client = await house.router("r1")
    shard = shard_record("s2")
    await house.hold(shard, 1, *CHAIN[:3])
    await until(matched(client, "s2", 48))
    await house.hold(shard, 3, CHAIN[3])
    await until(matched(client, "s2", 0))
    await house.snapshot(shard, 3, *CHAIN[:4])
    await until(matched(client, "s2", 64))


async def test_a_new_life_of_a_shard_starts_cold(house: House) -> None:
    await house.put_shards()
    _, client = await house.router("r1")
    await house.hold(shard_record("s2"), 1, *CHAIN)
    await until(matched(client, "s2", 96))
    reborn = replace(shard_record("s2", incarnation=2), start_ms=2000)
    await house.store.put_shard(reborn, ttl_ms=LONG_TTL_MS)
    await until(matched(client, "s2", 0))
    await house.hold(reborn, 1, *CHAIN[:2])
    await until(matched(client, "s2", 32))


async def test_a_shard_whose_lease_ran_out_is_no_candidate(house: House) -> None:
    await house.put_shards()
    _, client = await house.router("r1")
    await house.store.put_shard(shard_record("s2"), ttl_ms=1)

    async def gone() -> bool:
        answer = await choose(client)
        return [s.shard_id for s in answer.scores] == ["s1"]

    await until(gone)
