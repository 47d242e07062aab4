"""Two memory processes that forget by themselves, and a leased branch, over gRPC on a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1.memory_service_pb2 import EVENT_KIND_COLLECTED
from katsura.domain.errors import ConflictError, Reason
from katsura.domain.ids import TenantId
from katsura.domain.tenant import Tenant
from katsura.rpc.channel import open_channel
from katsura.rpc.clock import SystemClock
from katsura.rpc.context import CallContext
from katsura.sdk.connection import Connection
from katsura.sdk.memory import MemoryClient, step
from katsura.state.connect import Store
from katsura.state.tenants import RedisTenantStore
from katsura.testing.process import ServedProcess
from katsura.testing.store import EmbeddedStore

TOKEN = "internal-secret"
ACME = TenantId("acme")


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[list[MemoryClient]]:
    """Clients of two processes on one store."""
    with EmbeddedStore() as server:
        store = await Store.open(server.url, libraries=[])
        await RedisTenantStore(store, SystemClock()).ensure_tenant(ACME)
        await store.close()
        environments = [
            {
                "KATSURA_LISTEN": f"unix:{server.folder}/{name}.sock",
                "KATSURA_STORE_URL": server.url,
                "KATSURA_INTERNAL_TOKEN": TOKEN,
                "KATSURA_MEMORY_COLLECT_EVERY_S": "0.05",
            }
            for name in ("one", "two")
        ]
        async with (
            ServedProcess("katsura.memory", environments[0], tmp_path / "one") as one,
            ServedProcess("katsura.memory", environments[1], tmp_path / "two") as two,
        ):
            channels = [open_channel(process.address) for process in (one, two)]
            call = CallContext(Tenant(ACME, bytes(32)), internal=True)
            yield [MemoryClient(Connection(channel, internal_token=TOKEN).acting_for(call)) for channel in channels]
            for channel in channels:
                await channel.close()


async def test_what_retention_does_not_keep_goes_by_itself_and_once(both: list[MemoryClient]) -> None:
    memory, other = both
    await memory.create_tree(tree_id="t", goal="g")
    await memory.grow("t", [step("user", f"try {i}") for i in range(40)])
    revised = await memory.revise("t", restore_after=10)
    for i in range(25):
        await memory.grow("t", [step("user", f"on {i}")])
    async with asyncio.timeout(60):
        tree = await memory.update_tree("t", retention=tree_pb.Retention(keep_abandoned=0, keep_revisions=20))
        assert tree.policy.retention.keep_revisions == 20
        collected: list[int] = []
        async for event in other.watch("t", after_revision=tree.revision):
            if event.kind == EVENT_KIND_COLLECTED:
                collected += event.node_ids
            if len(collected) >= 30:
                break
    assert sorted(collected) == list(range(11, 41)), "each node goes once, whoever of the two collects"
    assert [b.name for b in (await other.get_tree("t")).branches] == [revised.branch.name]


async def test_a_leased_branch_is_leased_for_every_process(both: list[MemoryClient]) -> None:
    memory, other = both
    await memory.create_tree(tree_id="t", goal="g")
    lease = await memory.acquire_lease("t", "one", ttl_s=3600)
    assert lease.branch.lease_holder == "one"
    await memory.grow("t", [step("user", "mine")], lease_token=lease.lease_token)
    with pytest.raises(ConflictError) as caught:
        await other.grow("t", [step("user", "not yours")])
    assert caught.value.reason == Reason.LEASE_HELD
    assert (caught.value.metadata["holder"], caught.value.metadata["head"]) == ("one", "1")
    await memory.release_lease("t", lease.lease_token)
    taken = await other.acquire_lease("t", "two")
    with pytest.raises(ConflictError) as caught:
        await memory.revise("t", restore_after=0, lease_token=lease.lease_token)
    assert (caught.value.reason, caught.value.metadata["holder"]) == (Reason.LEASE_LOST, "two")
    await other.renew_lease("t", taken.lease_token, ttl_s=120)
