"""What only the Valkey side of the hint store can get wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from katsura.domain.errors import UnavailableError
from katsura.domain.ids import Incarnation, InstanceId, ProgramId, TenantId
from katsura.domain.kv_events import KvBatch
from katsura.domain.tables import ExpertTables
from katsura.domain.tenant import Tenant
from katsura.state import hints_redis, keys
from katsura.state.connect import Store
from katsura.state.hints import Feed, FeedKind, Role
from katsura.state.hints_redis import LIBRARY, RedisHintStore
from katsura.testing.fleet import DEPLOYMENT, REVISION, shard_record
from katsura.testing.store import EmbeddedStore

ROUTER, LIFE = InstanceId("router-1"), Incarnation(3)
TABLES = ExpertTables(DEPLOYMENT, REVISION.revision_id)


@pytest.fixture
def valkey() -> Iterator[EmbeddedStore]:
    with EmbeddedStore() as server:
        yield server


@pytest.fixture
async def opened(valkey: EmbeddedStore) -> AsyncIterator[Store]:
    store = await Store.open(valkey.url, libraries=[LIBRARY])
    yield store
    await store.close()


async def test_a_table_written_after_a_drop_does_not_expire(opened: Store) -> None:
    store = RedisHintStore(opened)
    fence = (await store.hold_coordinator(ROUTER, LIFE)).fence
    key = keys.expert_tables(DEPLOYMENT, REVISION.revision_id)
    await store.write_expert_tables(fence, TABLES, "")
    await store.drop_expert_tables(fence, DEPLOYMENT, REVISION.revision_id)
    assert await opened.client.pttl(key) > 0
    held = await store.read_expert_tables(DEPLOYMENT, REVISION.revision_id)
    await store.write_expert_tables(fence, TABLES, held.version)
    assert await opened.client.pttl(key) == -1


async def test_a_wait_longer_than_one_blocking_read_goes_on(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints_redis, "_BLOCK_MAX_S", 0.002)
    store = RedisHintStore(opened)
    fence = (await store.hold_coordinator(ROUTER, LIFE)).fence
    waiting = asyncio.ensure_future(store.wait_expert_tables(DEPLOYMENT, REVISION.revision_id, "", 60))
    for _ in range(3):  # three blocking reads of somebody else end meanwhile
        assert await store.read_feeds({Feed(FeedKind.KV, "nobody"): ""}, 0.004) == []
    assert not waiting.done()
    version = await store.write_expert_tables(fence, TABLES, "")
    assert (await waiting).version == version


async def test_functions_that_the_server_forgot_are_loaded_again(opened: Store) -> None:
    store = RedisHintStore(opened)
    await opened.client.execute_command("FUNCTION FLUSH")
    await store.put_shard(shard_record("s"))
    assert [lease.instance_id for lease in await store.list_shards()] == ["s"]


async def test_one_broken_lease_does_not_hide_the_others(opened: Store) -> None:
    store = RedisHintStore(opened)
    for name in ("a", "b"):
        await store.put_shard(shard_record(name))
    await opened.client.hset(keys.lease_records(Role.SHARD).decode(), "a", "1\n{")
    assert [lease.instance_id for lease in await store.list_shards()] == ["b"]


async def test_a_broken_table_or_affinity_is_as_if_it_were_not_there(opened: Store) -> None:
    store, tenant = RedisHintStore(opened), Tenant(TenantId("ada"), b"a" * 32)
    fence = (await store.hold_coordinator(ROUTER, LIFE)).fence
    await store.write_expert_tables(fence, TABLES, "")
    await opened.client.xadd(keys.expert_tables(DEPLOYMENT, REVISION.revision_id), {"t": "{"}, maxlen=1)
    assert await store.list_expert_tables() == ()
    await opened.client.set(keys.program_affinity(tenant.salt, "run"), "[]")
    assert await store.get_affinity(tenant, ProgramId("run")) is None


async def test_an_entry_that_cannot_be_read_is_none_and_the_cursor_passes_it(opened: Store) -> None:
    store, feed = RedisHintStore(opened), Feed(FeedKind.KV, "s")
    await opened.client.xadd(keys.kv_events("s"), {"from": "the future"})
    await store.publish_kv(InstanceId("s"), KvBatch(LIFE, 1, ()))
    first, second = await store.read_feeds({feed: ""}, 0)
    assert first.note is None
    assert second.note == KvBatch(LIFE, 1, ())
    assert await store.read_feeds({feed: second.cursor}, 0) == []


async def test_keys_of_one_function_share_a_slot_and_programs_name_nobody() -> None:
    together = [
        *(key(role) for role in Role for key in (keys.lease_records, keys.lease_lives, keys.lease_expiry)),
        keys.kv_events("{x}"),
        keys.kv_snapshot("{x}"),
        keys.expert_tables("{x}", "y"),
        keys.endpoints("{x}"),
        keys.FLEET,
        keys.COORDINATOR,
        keys.COORDINATOR_TOKENS,
        keys.EXPERT_TABLE_NAMES,
        keys.ENDPOINT_NAMES,
    ]
    assert {key[key.index(b"{") : key.index(b"}") + 1] for key in together} == {b"{hints}"}
    mine, others = keys.program_affinity(b"a" * 32, "run"), keys.program_affinity(b"b" * 32, "run")
    assert mine != others
    assert b"run" not in mine


async def test_without_a_server_every_call_says_that_the_store_is_away(valkey: EmbeddedStore, opened: Store) -> None:
    store = RedisHintStore(opened)
    valkey.kill()
    for call in (
        store.list_members(),
        store.put_shard(shard_record("s")),
        store.read_feeds({Feed(FeedKind.FLEET): ""}, 1.0),
        store.hold_coordinator(ROUTER, LIFE),
        store.wait_expert_tables(DEPLOYMENT, "r", "", 1.0),
        store.list_endpoints(),
    ):
        with pytest.raises(UnavailableError):
            await call
