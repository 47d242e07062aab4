"""One suite over the in-memory twin and a real Valkey: what a hint store promises."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from katsura.domain.errors import ConflictError, Reason
from katsura.domain.ids import DeploymentName, Epoch, Incarnation, InstanceId, ProgramId, TenantId
from katsura.domain.kv_events import KvBatch, KvCleared, KvEvent, KvRemoved, KvSnapshot, KvStored
from katsura.domain.leases import GroupRange, MemberLease, Revision, RouterLease, ShardLease, ShardLoad
from katsura.domain.shape import DType, FfnLayout, Numerics
from katsura.domain.tables import Assignment, EndpointTable, ExpertTable, ExpertTables, ShardEndpoint
from katsura.domain.tenant import Tenant
from katsura.state.connect import Store
from katsura.state.hints import (
    Affinity,
    Decided,
    Feed,
    FeedKind,
    Fence,
    Finished,
    HintStore,
    LeaseNotice,
    Role,
    SnapshotNotice,
    TableNotice,
)
from katsura.state.hints_redis import LIBRARY, RedisHintStore
from katsura.state.hints_twin import TwinHintStore
from katsura.testing.store import EmbeddedStore

KEPT = 8
DEPLOYMENT = DeploymentName("smol")
SHARD, MEMBER, ROUTER = InstanceId("shard-1"), InstanceId("member-1"), InstanceId("router-1")
LIFE, NEXT_LIFE = Incarnation(2**63 - 5), Incarnation(7)
ADA, BOB = Tenant(TenantId("ada"), b"a" * 32), Tenant(TenantId("bob"), b"b" * 32)
FLEET, DECISIONS, KV = Feed(FeedKind.FLEET), Feed(FeedKind.DECISIONS), Feed(FeedKind.KV, SHARD)


class TurnedClock:
    """A clock turned by hand."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def wall_ms(self) -> int:
        return self.now_ms

    def monotonic_s(self) -> float:
        return self.now_ms / 1000


@dataclass
class Bench:
    """A store, a way to let its clock pass a moment, and one to make it come back without its data."""

    store: HintStore
    pass_ms: Callable[[int], Awaitable[None]]
    lose: Callable[[], Awaitable[None]]


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedStore]:
    with EmbeddedStore() as server:
        yield server


@pytest.fixture(params=["twin", "valkey"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    if request.param == "twin":
        clock = TurnedClock()

        async def turn(ms: int) -> None:
            clock.now_ms += ms

        twin = TwinHintStore(clock, KEPT)

        async def forget() -> None:
            twin.lose_everything()

        yield Bench(twin, turn, forget)
        return
    server: EmbeddedStore = request.getfixturevalue("valkey")
    opened = await Store.open(server.url, libraries=[LIBRARY])
    await opened.client.flushdb()

    async def wait(ms: int) -> None:
        # The server itself lets time pass: a blocking read of a stream that nobody writes.
        await opened.client.xread({f"nobody-{secrets.token_hex(4)}": "0"}, block=ms + 2)

    async def flush() -> None:
        await opened.client.flushall()

    yield Bench(RedisHintStore(opened, KEPT), wait, flush)
    await opened.close()


REVISION = Revision(DEPLOYMENT, "00ff", bytes(range(32)), Numerics.INVARIANT, DType.F32, 16, 2048, "ab12")
LOAD = ShardLoad(running=2, waiting=1, waiting_tokens=40, free_pages=9, page_count=10, step_ms=1.5)


def shard(name: InstanceId = SHARD, life: Incarnation = LIFE, start_ms: int = 5) -> ShardLease:
    return ShardLease(name, life, start_ms, REVISION, ("tiny",), "models/smol", "unix:/run/s", True, load=LOAD)


def member() -> MemberLease:
    return MemberLease(
        MEMBER,
        LIFE,
        5,
        DEPLOYMENT,
        "00ff",
        Numerics.FAST,
        30,
        FfnLayout(8, 4),
        1024,
        "unix:/run/m",
        ("shm:/run/m.sock", "tcp:127.0.0.1:7"),
        10**9,
        "f00d",
        loaded=(GroupRange(0, 30, (0, 3)),),
        unit_cost_s=2e-5,
        prepared_epoch=Epoch(3),
    )


def tables(epoch: int) -> ExpertTables:
    assignment = Assignment(MEMBER, LIFE, 0, ("shm:/x",), "f00d", (GroupRange(0, 30, (0, 1, 2, 3)),))
    table = ExpertTable(DEPLOYMENT, "00ff", Epoch(epoch), 30, FfnLayout(8, 4), (assignment,))
    return ExpertTables(DEPLOYMENT, "00ff", committed=None, prepared=table)


def stored(*pages: int, parent: bytes = b"") -> KvStored:
    return KvStored(parent, tuple(bytes([p]) * 16 for p in pages))


def batch(sequence: int, *events: KvEvent, life: Incarnation = LIFE) -> KvBatch:
    return KvBatch(life, sequence, events or (stored(sequence),))


async def coordinate(store: HintStore, holder: InstanceId = ROUTER, life: Incarnation = LIFE) -> Fence:
    held = await store.hold_coordinator(holder, life)
    assert held.mine
    return held.fence


async def test_leases_come_back_as_they_were_put_with_the_stores_clock(bench: Bench) -> None:
    await bench.store.put_shard(shard(InstanceId("shard-2")))
    await bench.store.put_shard(shard())
    await bench.store.put_member(member())
    router = RouterLease(ROUTER, LIFE, 5, "unix:/run/r", draining=True)
    await bench.store.put_router(router)
    first, second = await bench.store.list_shards()
    assert (replace(first, put_ms=0), replace(second, put_ms=0)) == (shard(), shard(InstanceId("shard-2")))
    assert first.put_ms > 0
    assert [replace(m, put_ms=0) for m in await bench.store.list_members()] == [member()]
    assert [replace(r, put_ms=0) for r in await bench.store.list_routers()] == [router]


async def test_a_lease_that_nobody_refreshes_is_gone(bench: Bench) -> None:
    await bench.store.put_shard(shard(), ttl_ms=10)
    await bench.store.put_shard(shard(InstanceId("shard-2")), ttl_ms=100_000)
    await bench.pass_ms(10)
    assert [lease.instance_id for lease in await bench.store.list_shards()] == ["shard-2"]


async def test_a_later_life_takes_the_lease_and_the_earlier_one_is_refused(bench: Bench) -> None:
    await bench.store.put_shard(shard(start_ms=5))
    await bench.store.put_shard(shard(life=NEXT_LIFE, start_ms=6))
    for late in (
        bench.store.put_shard(shard(start_ms=5)),
        bench.store.publish_kv(SHARD, batch(1)),
        bench.store.put_kv_snapshot(SHARD, KvSnapshot(LIFE, 1, ())),
    ):
        with pytest.raises(ConflictError) as refused:
            await late
        assert refused.value.reason is Reason.LEASE_LOST
    assert [lease.incarnation for lease in await bench.store.list_shards()] == [NEXT_LIFE]


async def test_an_expired_life_leaves_its_place_to_anybody(bench: Bench) -> None:
    await bench.store.put_shard(shard(start_ms=6), ttl_ms=10)
    await bench.pass_ms(10)
    await bench.store.put_shard(shard(life=NEXT_LIFE, start_ms=5))
    assert [lease.incarnation for lease in await bench.store.list_shards()] == [NEXT_LIFE]


async def test_only_the_life_that_holds_a_lease_gives_it_back(bench: Bench) -> None:
    await bench.store.put_member(member())
    await bench.store.drop_lease(Role.MEMBER, MEMBER, NEXT_LIFE)
    assert len(await bench.store.list_members()) == 1
    await bench.store.drop_lease(Role.MEMBER, MEMBER, LIFE)
    await bench.store.drop_lease(Role.MEMBER, MEMBER, LIFE)
    assert await bench.store.list_members() == ()


async def test_kv_events_are_read_in_order_and_from_a_cursor(bench: Bench) -> None:
    first = batch(1, stored(1, 2), KvRemoved((b"\x01" * 16,)))
    second = batch(2, KvCleared(), stored(3, parent=b"\x02" * 16))
    await bench.store.publish_kv(SHARD, first)
    await bench.store.publish_kv(SHARD, second)
    entries = await bench.store.read_feeds({KV: ""}, 0)
    assert [entry.note for entry in entries] == [first, second]
    assert [entry.note for entry in await bench.store.read_feeds({KV: entries[0].cursor}, 0)] == [second]
    assert await bench.store.read_feeds({KV: entries[1].cursor}, 0) == []
    assert [entry.note for entry in await bench.store.read_feeds({KV: ""}, 0, limit=1)] == [first]


async def test_a_shard_is_asked_for_a_snapshot_until_a_reader_could_rebuild_its_mirror(bench: Bench) -> None:
    assert await bench.store.put_shard(shard())
    await bench.store.put_kv_snapshot(SHARD, KvSnapshot(LIFE, 0, ()))
    assert not await bench.store.put_shard(shard())
    asked = [await bench.store.publish_kv(SHARD, batch(n)) for n in range(1, KEPT // 2 + 2)]
    assert asked == [False] * (KEPT // 2) + [True]
    await bench.store.put_kv_snapshot(SHARD, KvSnapshot(LIFE, 5, (b"\x05" * 16,)))
    assert not await bench.store.publish_kv(SHARD, batch(6))
    assert await bench.store.read_kv_snapshot(SHARD) == KvSnapshot(LIFE, 5, (b"\x05" * 16,))
    assert await bench.store.put_shard(shard(life=NEXT_LIFE, start_ms=6))


async def test_a_hole_in_the_numbers_asks_for_a_snapshot_until_it_comes(bench: Bench) -> None:
    await bench.store.put_kv_snapshot(SHARD, KvSnapshot(LIFE, 1, ()))
    assert not await bench.store.publish_kv(SHARD, batch(2))
    assert await bench.store.publish_kv(SHARD, batch(4))
    assert await bench.store.publish_kv(SHARD, batch(5))
    assert await bench.store.put_shard(shard())
    await bench.store.put_kv_snapshot(SHARD, KvSnapshot(LIFE, 5, ()))
    assert not await bench.store.put_shard(shard())


async def test_a_snapshot_is_announced_among_the_events(bench: Bench) -> None:
    await bench.store.publish_kv(SHARD, batch(1))
    await bench.store.put_kv_snapshot(SHARD, KvSnapshot(LIFE, 1, ()))
    notes = [entry.note for entry in await bench.store.read_feeds({KV: ""}, 0)]
    assert notes == [batch(1), SnapshotNotice(LIFE, 1)]


async def test_the_log_of_a_shard_is_bounded(bench: Bench) -> None:
    for n in range(1, KEPT + 4):
        await bench.store.publish_kv(SHARD, batch(n))
    notes = [entry.note for entry in await bench.store.read_feeds({KV: ""}, 0)]
    assert notes == [batch(n) for n in range(4, KEPT + 4)]


async def test_an_unknown_shard_has_no_snapshot(bench: Bench) -> None:
    assert await bench.store.read_kv_snapshot(InstanceId("nobody")) is None


async def test_a_waiting_reader_wakes_at_the_first_note_of_any_feed(bench: Bench) -> None:
    reading = asyncio.ensure_future(bench.store.read_feeds({KV: "", FLEET: "", DECISIONS: ""}, 60))
    await asyncio.sleep(0)
    await bench.store.put_router(RouterLease(ROUTER, LIFE, 5, "unix:/run/r"))
    (entry,) = await reading
    assert (entry.feed, entry.note) == (FLEET, LeaseNotice(Role.ROUTER, ROUTER))


async def test_a_reader_that_finds_nothing_goes_home_at_its_time(bench: Bench) -> None:
    assert await bench.store.read_feeds({KV: ""}, 0.01) == []


async def test_decisions_are_stamped_by_the_store_and_end_by_their_name(bench: Bench) -> None:
    await bench.store.note_decision(Decided("d1", SHARD, LIFE, 100))
    await bench.store.note_decision(Finished("d1"))
    decided, finished = [entry.note for entry in await bench.store.read_feeds({DECISIONS: ""}, 0)]
    assert isinstance(decided, Decided)
    assert decided.at_ms > 0
    assert replace(decided, at_ms=0) == Decided("d1", SHARD, LIFE, 100)
    assert finished == Finished("d1")


async def test_a_programs_shard_is_remembered_for_its_time_and_for_its_tenant_only(bench: Bench) -> None:
    program, there = ProgramId("run:1/{x} *"), Affinity(DEPLOYMENT, SHARD, LIFE)
    await bench.store.put_affinity(ADA, program, there)
    assert await bench.store.get_affinity(ADA, program) == there
    assert await bench.store.get_affinity(BOB, program) is None
    await bench.store.put_affinity(ADA, program, there, ttl_ms=5)
    await bench.pass_ms(5)
    assert await bench.store.get_affinity(ADA, program) is None


async def test_affinity_is_forgotten_only_if_it_still_names_the_shard(bench: Bench) -> None:
    program, there = ProgramId("run"), Affinity(DEPLOYMENT, SHARD, LIFE)
    await bench.store.put_affinity(ADA, program, there)
    await bench.store.drop_affinity(ADA, program, InstanceId("shard-2"))
    assert await bench.store.get_affinity(ADA, program) == there
    await bench.store.drop_affinity(ADA, program, SHARD)
    assert await bench.store.get_affinity(ADA, program) is None


async def test_one_coordinator_at_a_time_and_each_lease_has_a_larger_token(bench: Bench) -> None:
    first = await coordinate(bench.store)
    other = await bench.store.hold_coordinator(InstanceId("router-2"), LIFE)
    assert (other.mine, other.fence) == (False, first)
    assert (await bench.store.hold_coordinator(ROUTER, LIFE)).fence == first
    assert not (await bench.store.hold_coordinator(ROUTER, NEXT_LIFE)).mine
    await bench.store.release_coordinator(replace(first, token=first.token + 1))
    assert (await bench.store.hold_coordinator(ROUTER, LIFE)).fence == first
    await bench.store.release_coordinator(first)
    assert (await coordinate(bench.store, InstanceId("router-2"))).token == first.token + 1


async def test_a_silent_coordinator_is_replaced_and_its_writes_are_refused(bench: Bench) -> None:
    old = (await bench.store.hold_coordinator(ROUTER, LIFE, ttl_ms=10)).fence
    await bench.pass_ms(10)
    with pytest.raises(ConflictError):
        await bench.store.write_expert_tables(old, tables(1), "")
    new = await coordinate(bench.store, InstanceId("router-2"))
    version = await bench.store.write_expert_tables(new, tables(2), "")
    for stale in (
        bench.store.write_expert_tables(old, tables(3), version),
        bench.store.drop_expert_tables(old, DEPLOYMENT, "00ff"),
    ):
        with pytest.raises(ConflictError) as refused:
            await stale
        assert refused.value.reason is Reason.LEASE_LOST
    assert (await bench.store.read_expert_tables(DEPLOYMENT, "00ff")).value == tables(2)


async def test_a_table_is_replaced_only_where_its_version_was_read(bench: Bench) -> None:
    fence = await coordinate(bench.store)
    first = await bench.store.write_expert_tables(fence, tables(1), "")
    with pytest.raises(ConflictError) as refused:
        await bench.store.write_expert_tables(fence, tables(9), "")
    assert refused.value.reason is Reason.STALE_EPOCH
    second = await bench.store.write_expert_tables(fence, tables(2), first)
    held = await bench.store.read_expert_tables(DEPLOYMENT, "00ff")
    assert (held.value, held.version) == (tables(2), second)
    assert await bench.store.list_expert_tables() == (held,)


async def test_tables_that_were_never_written_are_empty(bench: Bench) -> None:
    held = await bench.store.read_expert_tables(DEPLOYMENT, "none")
    assert (held.value, held.version) == (ExpertTables(DEPLOYMENT, "none"), "")
    assert await bench.store.list_expert_tables() == ()


async def test_dropped_tables_are_gone_and_can_be_written_anew(bench: Bench) -> None:
    fence = await coordinate(bench.store)
    first = await bench.store.write_expert_tables(fence, tables(1), "")
    await bench.store.drop_expert_tables(fence, DEPLOYMENT, "00ff")
    assert await bench.store.list_expert_tables() == ()
    empty = await bench.store.wait_expert_tables(DEPLOYMENT, "00ff", first, 60)
    assert empty.value == ExpertTables(DEPLOYMENT, "00ff")
    await bench.store.write_expert_tables(fence, tables(2), empty.version)
    assert [held.value for held in await bench.store.list_expert_tables()] == [tables(2)]


async def test_a_waiting_reader_gets_the_table_that_is_written(bench: Bench) -> None:
    fence = await coordinate(bench.store)
    first = await bench.store.write_expert_tables(fence, tables(1), "")
    waiting = asyncio.ensure_future(bench.store.wait_expert_tables(DEPLOYMENT, "00ff", first, 60))
    await asyncio.sleep(0)
    second = await bench.store.write_expert_tables(fence, tables(2), first)
    found = await waiting
    assert (found.value, found.version) == (tables(2), second)
    assert await bench.store.wait_expert_tables(DEPLOYMENT, "00ff", first, 60) == found
    assert await bench.store.wait_expert_tables(DEPLOYMENT, "00ff", second, 0.01) == found


async def test_tables_that_the_store_lost_count_as_unchanged_until_they_are_written_again(bench: Bench) -> None:
    fence = await coordinate(bench.store)
    first = await bench.store.write_expert_tables(fence, tables(1), "")
    await bench.lose()
    assert (await bench.store.wait_expert_tables(DEPLOYMENT, "00ff", first, 0.01)).version == first
    fence = await coordinate(bench.store)
    waiting = asyncio.ensure_future(bench.store.wait_expert_tables(DEPLOYMENT, "00ff", first, 60))
    await bench.pass_ms(1)
    second = await bench.store.write_expert_tables(fence, tables(1), "")
    found = await waiting
    assert (found.value, found.version) == (tables(1), second)


async def test_feeds_and_leases_of_a_store_that_lost_everything_begin_anew(bench: Bench) -> None:
    await bench.store.put_shard(shard())
    await bench.store.put_kv_snapshot(SHARD, KvSnapshot(LIFE, 0, ()))
    await bench.store.publish_kv(SHARD, batch(1))
    cursor = (await bench.store.read_feeds({KV: ""}, 0))[-1].cursor
    await bench.pass_ms(1)
    await bench.lose()
    assert await bench.store.list_shards() == ()
    assert await bench.store.put_shard(shard())
    await bench.store.publish_kv(SHARD, batch(2))
    assert [entry.note for entry in await bench.store.read_feeds({KV: cursor}, 0)] == [batch(2)]


async def test_a_table_that_was_written_is_announced_to_the_fleet(bench: Bench) -> None:
    fence = await coordinate(bench.store)
    await bench.store.write_expert_tables(fence, tables(1), "")
    assert [e.note for e in await bench.store.read_feeds({FLEET: ""}, 0)] == [TableNotice(DEPLOYMENT)]


async def test_endpoint_tables_are_fenced_and_versioned_too(bench: Bench) -> None:
    shards = (ShardEndpoint(SHARD, LIFE, "unix:/run/s"),)
    table = EndpointTable(DEPLOYMENT, Epoch(1), REVISION, ("tiny",), "models/smol", 5, shards)
    fence = await coordinate(bench.store)
    with pytest.raises(ConflictError):
        await bench.store.write_endpoints(replace(fence, token=fence.token + 1), table, "")
    version = await bench.store.write_endpoints(fence, table, "")
    with pytest.raises(ConflictError):
        await bench.store.write_endpoints(fence, table, "")
    second = replace(table, epoch=Epoch(2))
    await bench.store.write_endpoints(fence, second, version)
    assert [held.value for held in await bench.store.list_endpoints()] == [second]
