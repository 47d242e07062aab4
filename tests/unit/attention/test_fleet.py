"""What the fleet sees of a shard, over the hint store's twin; the test plays the compute half."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from katsura.attention import messages
from katsura.attention.config import ShardConfig
from katsura.attention.core.plan import Load
from katsura.attention.fleet import Fleet
from katsura.attention.messages import Pool, Report
from katsura.attention.shard import Shard
from katsura.domain.errors import ConflictError, Reason, UnavailableError
from katsura.domain.ids import Epoch, Incarnation, InstanceId
from katsura.domain.kv_events import KvBatch, KvSnapshot, KvStored, pack_events
from katsura.domain.leases import ShardLease
from katsura.domain.shape import FfnLayout, ModelShape
from katsura.domain.tables import Assignment, ExpertTable, ExpertTables
from katsura.state.hints import Feed, FeedKind
from katsura.state.hints_twin import TwinHintStore
from katsura.testing.compute import environment
from katsura.wire.pipe import AsyncPipe

SHAPE = ModelShape("llama", 3, 48, 6, 2, 8, 64, 0, 0, 199, 512)
LAYOUT = FfnLayout(8, 4)
NAME = InstanceId("s1")


class Still:
    """A clock that stands: nothing runs out."""

    def wall_ms(self) -> int:
        return 1000

    def monotonic_s(self) -> float:
        return 1.0


class Flaky(TwinHintStore):
    """A store that can be away."""

    away = False

    async def publish_kv(self, shard_id: InstanceId, batch: KvBatch) -> bool:
        if self.away:
            raise UnavailableError("the store is away", reason=Reason.STORE_UNAVAILABLE)
        return await super().publish_kv(shard_id, batch)


@dataclass
class House:
    store: Flaky
    shard: Shard
    fleet: Fleet
    compute: AsyncPipe
    tasks: dict[str, asyncio.Task[None]]

    async def command(self, kind: type[Any]) -> Any:
        async with asyncio.timeout(60):
            while not isinstance(command := messages.read_command(await self.compute.receive()), kind):
                continue
        return command

    async def report(self, **more: Any) -> None:
        await self.compute.send(messages.write_report(Report(**more)))

    async def until(self, done: Callable[[], Awaitable[Any]]) -> Any:
        async with asyncio.timeout(60):
            found = await done()
            while not found:
                await asyncio.sleep(0)  # let the shard work
                found = await done()
        return found

    async def lease(self, holds: Callable[[ShardLease], bool]) -> ShardLease:
        async def found() -> ShardLease | None:
            return next((lease for lease in await self.store.list_shards() if holds(lease)), None)

        lease: ShardLease = await self.until(found)
        return lease


@pytest.fixture
async def house() -> AsyncIterator[House]:
    ours, theirs = socket.socketpair()
    config = ShardConfig.from_env(environment(Path("m"), INSTANCE_ID=NAME, MODEL_ALIASES="tiny"), "attention")
    pipe, compute = await AsyncPipe.open(ours), await AsyncPipe.open(theirs)
    shard = Shard(config, messages.Hello(bytes(32), SHAPE, LAYOUT, 512, 64), "digest", pipe)
    store = Flaky(Still())
    fleet = Fleet(shard, store, "unix:/s", follows_tables=True)
    work = {
        "listen": shard.listen(),
        "heartbeat": fleet.heartbeat(),
        "publish": fleet.publish(),
        "tables": fleet.follow_tables(),
    }
    tasks = {name: asyncio.create_task(one) for name, one in work.items()}
    yield House(store, shard, fleet, compute, tasks)
    await compute.close()
    await pipe.close()
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    await store.close()


async def test_the_lease_says_what_the_shard_is_and_asks_for_the_first_snapshot(house: House) -> None:
    await house.command(messages.Snapshot)
    await house.report(snapshot=(0, ()), load=Load(64, 60, 2, 3, 4, 50, 9), pool=Pool(6, "", {}, 0))
    house.fleet.set_ready(False, "group 2 has no member")
    lease = await house.lease(lambda lease: lease.load.running == 3)
    assert (lease.address, lease.aliases, lease.epoch) == ("unix:/s", ("tiny",), 6)
    assert (lease.ready, lease.not_ready_reason) == (False, "group 2 has no member")
    assert lease.revision.tokenizer_digest == "digest"
    house.fleet.set_ready(True, "")
    assert (await house.lease(lambda lease: lease.ready)).not_ready_reason == ""
    await house.fleet.leave()
    assert await house.store.list_shards() == ()


async def test_kv_events_arrive_in_order_even_if_the_store_was_away(house: House) -> None:
    house.store.away = True
    events = [(KvStored(b"", (bytes([n]) * 16,)),) for n in range(3)]
    for sequence, event in enumerate(events, 1):
        await house.report(batch=(sequence, pack_events(event)))
    await house.report(snapshot=(0, ()))
    house.store.away = False
    feed = Feed(FeedKind.KV, NAME)

    async def batches() -> list[KvBatch]:
        found = [entry.note for entry in await house.store.read_feeds({feed: ""}, 0.0)]
        kept = [note for note in found if isinstance(note, KvBatch)]
        return kept if len(kept) == 3 else []

    told = await house.until(batches)
    life = house.shard.incarnation
    assert told == [KvBatch(life, sequence, event) for sequence, event in enumerate(events, 1)]


async def test_a_snapshot_replaces_the_last_one(house: House) -> None:
    pages = (b"a" * 16, b"b" * 16)
    await house.report(snapshot=(7, pages))

    async def found() -> KvSnapshot | None:
        return await house.store.read_kv_snapshot(NAME)

    assert await house.until(found) == KvSnapshot(house.shard.incarnation, 7, pages)


async def test_a_committed_table_reaches_the_compute_half(house: House) -> None:
    revision = house.shard.revision
    table = ExpertTable(
        revision.deployment,
        revision.revision_id,
        Epoch(3),
        3,
        LAYOUT,
        (Assignment(InstanceId("m"), Incarnation(9), 0, ("shm:/m",), "f", ()),),
    )
    coordination = await house.store.hold_coordinator(InstanceId("r"), Incarnation(1))
    tables = ExpertTables(revision.deployment, revision.revision_id, committed=table)
    await house.store.write_expert_tables(coordination.fence, tables, "")
    assert await house.command(messages.Tables) == messages.Tables(table)


async def test_a_later_life_of_the_shard_ends_this_one(house: House) -> None:
    lease = await house.lease(lambda lease: True)
    later = replace(lease, incarnation=Incarnation(lease.incarnation ^ 1), start_ms=lease.start_ms + 1)
    await house.store.put_shard(later)
    house.fleet.set_ready(True, "")
    with pytest.raises(ConflictError):
        await asyncio.wait_for(house.tasks["heartbeat"], 60)
