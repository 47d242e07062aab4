"""A memory process keeps to what its store is to promise: a server that gives less is refused, at start and later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.domain.errors import FailedPreconditionError, Reason
from katsura.domain.ids import TenantId
from katsura.domain.tenant import Tenant
from katsura.rpc.channel import open_channel
from katsura.rpc.context import CallContext
from katsura.sdk.connection import Connection
from katsura.sdk.memory import MemoryClient
from katsura.state.connect import Store
from katsura.testing.process import ServedProcess, memory_process
from katsura.testing.store import EmbeddedStore

TOKEN = "internal-secret"
LIMIT_S = 60.0


@pytest.fixture
def server() -> Iterator[EmbeddedStore]:
    with EmbeddedStore("always") as server:
        yield server


def memory_of(server: EmbeddedStore, folder: Path, durability: str) -> ServedProcess:
    more = {
        "KATSURA_STORE_DURABILITY": durability,
        "KATSURA_STORE_SETTINGS_EVERY_S": "0.1",
        "KATSURA_MEMORY_MESSAGE_FILE": str(folder / "message"),
    }
    return memory_process(server, TOKEN, folder / "log", more)


async def test_a_server_that_gives_less_is_refused_with_what_to_change(tmp_path: Path) -> None:
    with EmbeddedStore("everysec") as server:
        with pytest.raises(RuntimeError, match="did not start"):
            await memory_of(server, tmp_path, "strict").start()
        message = (tmp_path / "message").read_text()
        assert message.startswith(f"{Reason.DURABILITY_UNAVAILABLE}: the store is to be strict")
        assert "appendfsync is everysec, set always" in message
        async with memory_of(server, tmp_path, "relaxed"):
            pass


async def test_a_process_ends_when_its_server_begins_to_promise_less(server: EmbeddedStore, tmp_path: Path) -> None:
    memory = memory_of(server, tmp_path, "strict")
    store = await Store.open(server.url)
    async with memory:
        await store.client.config_set("appendfsync", "everysec")
        await asyncio.wait_for(memory.ended(), LIMIT_S)
    with pytest.raises(RuntimeError, match="did not start"):
        await memory_of(server, tmp_path, "strict").start()
    await store.client.config_set("appendfsync", "always")
    async with memory_of(server, tmp_path, "strict"):
        pass
    await store.close()


async def test_a_tree_that_asks_for_more_than_its_store_is_to_promise_is_refused(
    server: EmbeddedStore, tmp_path: Path
) -> None:
    """Also where the server would give it today: what is declared is what may be relied on."""
    async with memory_of(server, tmp_path, "relaxed") as process, open_channel(process.address) as channel:
        call = CallContext(Tenant(TenantId("acme"), bytes(32)), internal=True)
        memory = MemoryClient(Connection(channel, internal_token=TOKEN).acting_for(call))
        made = await memory.create_tree(tree_id="plain", goal="g")
        assert made.tree.policy.durability == tree_pb.DURABILITY_RELAXED
        with pytest.raises(FailedPreconditionError) as caught:
            await memory.create_tree(
                tree_id="more", goal="g", policy=tree_pb.TreePolicy(durability=tree_pb.DURABILITY_STRICT)
            )
        assert caught.value.reason is Reason.DURABILITY_UNAVAILABLE
