"""What the memory service does while its store is away, damaged or another one. Deaths: test_memory_deaths.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from katsura.domain.errors import DataLossError, Reason, UnavailableError
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.tenant import Tenant
from katsura.domain.trees import Request, Step, TreePolicy
from katsura.rpc.channel import open_channel
from katsura.rpc.context import CallContext
from katsura.sdk.connection import Connection
from katsura.sdk.memory import MemoryClient, step
from katsura.state import keys
from katsura.state.connect import Store, translated
from katsura.state.trees import Limits, NewStep, NewTree, TreeRef
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.testing.process import ServedProcess, memory_process
from katsura.testing.store import EmbeddedStore

TOKEN = "internal-secret"
CALL = CallContext(Tenant(TenantId("acme"), bytes(32)), internal=True)


@pytest.fixture(params=["everysec", "always"])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(request.param) as server:
        yield server


@pytest.fixture
async def process(server: EmbeddedStore, tmp_path: Path) -> AsyncIterator[ServedProcess]:
    async with memory_process(server, TOKEN, tmp_path / "log") as process:
        yield process


@pytest.fixture
async def memory(process: ServedProcess) -> AsyncIterator[MemoryClient]:
    channel = open_channel(process.address)
    yield MemoryClient(Connection(channel, internal_token=TOKEN, call=CALL))
    await channel.close()


@pytest.mark.parametrize("server", ["everysec"], indirect=True)
async def test_killing_a_relaxed_store_may_lose_the_newest_steps_but_breaks_no_tree(
    server: EmbeddedStore, memory: MemoryClient
) -> None:
    await memory.create_tree(tree_id="t", request_id="c")
    store = await Store.open(server.url)
    for appendfsync in ("always", "everysec"):  # what was written before is synced: the tree itself is not at stake
        await store.client.config_set("appendfsync", appendfsync)
        await store.client.set("synced", "")
    await store.close()
    for i in range(40):
        if i % 13 == 12:
            await asyncio.to_thread(server.restart)
        await memory.grow("t", [step("user", f"{i:02}")], request_id=f"{i}")
    found = [node.step.content for node in await memory.get_whole_path("t")]
    assert found == sorted(set(found))
    assert found[-1] == "39"


@pytest.mark.parametrize("server", ["always"], indirect=True)  # with everysec a kill may take the last write along
async def test_a_store_that_is_away_is_a_clean_error_and_then_forgotten(
    server: EmbeddedStore, process: ServedProcess, memory: MemoryClient
) -> None:
    await memory.create_tree(tree_id="t")
    await memory.grow("t", [step("user", "before")])
    server.kill()
    short = memory.acting_for(CALL, timeout_s=5.0)
    for attempt in (short.grow("t", [step("user", "lost")]), short.get_tree("t"), anext(short.watch("t"))):
        with pytest.raises(UnavailableError) as caught:
            await attempt
        assert caught.value.reason is Reason.STORE_UNAVAILABLE
        assert caught.value.retry_after_s
    await asyncio.to_thread(server.start)
    await memory.grow("t", [step("user", "after")])
    assert [n.step.content for n in await memory.get_whole_path("t")] == ["before", "after"]


@pytest.mark.parametrize("server", ["always"], indirect=True)
async def test_a_watch_goes_on_without_a_gap_after_both_were_killed(
    server: EmbeddedStore, process: ServedProcess, memory: MemoryClient
) -> None:
    await memory.create_tree(tree_id="t")
    seen: list[int] = []
    token = ""
    for life in range(3):
        await memory.grow("t", [step("user", f"{life}")])
        events = memory.watch("t", resume_token=token)
        while len(seen) < life + 2:
            event = await anext(events)
            seen.append(event.position.revision)
            token = event.resume_token
        await events.aclose()
        await asyncio.to_thread(server.restart)
        await process.kill()
        await process.start()
    assert seen == [1, 2, 3, 4]


async def test_an_emptied_store_is_another_life(server: EmbeddedStore, memory: MemoryClient) -> None:
    first = await memory.create_tree(tree_id="t")
    await memory.grow("t", [step("user", "old")], expected_head=0)
    store = await Store.open(server.url)
    with translated(store.url):
        await store.client.flushall()
        await store.client.function_flush()
    second = await memory.create_tree(tree_id="t")
    assert second.tree.store_incarnation != first.tree.store_incarnation
    grown = await memory.grow("t", [step("user", "new")], expected_head=0)
    assert list(grown.node_ids) == [1]
    await store.close()


async def test_a_damaged_node_is_named_and_its_siblings_are_served(server: EmbeddedStore) -> None:
    store = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
    trees = RedisTreeStore(store, Limits())
    ref = TreeRef(TenantId("acme"), TreeId("t"))
    nobody = Request("", "")
    await trees.create(ref, NewTree("", (), TreePolicy(), {}), nobody)
    await trees.grow(ref, "", None, [NewStep(Step(f"text {i}"), 5) for i in range(3)], True, nobody)
    nodes = keys.tree(ref.tenant, ref.tree, "nodes")
    with translated(store.url):
        stored = await store.client.hget(nodes, "2")  # type: ignore[misc]
        assert isinstance(stored, bytes)
        await store.client.hset(nodes, "2", stored.replace(b"text 1", b"text 7"))  # type: ignore[misc]
    with pytest.raises(DataLossError) as caught:
        await trees.path(ref, "", 0, 10, 1 << 20)
    assert caught.value.metadata == {"node": "2"}
    sibling = await trees.path(ref, "", 3, 1, 1 << 20)
    assert [n.node_id for n in sibling.nodes] == [3]
    await store.close()
