"""Stores of memory trees: the in-memory twin, and a real Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from katsura.state.connect import Store
from katsura.state.trees import TreeRef, TreeStore
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.state.trees_twin import TwinTreeStore
from katsura.testing.store import EmbeddedStore
from katsura.testing.tree_suite import LIMITS, NEW, NO_REQUEST, new_ref


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedStore]:
    with EmbeddedStore() as server:
        yield server


@pytest.fixture(params=["twin", "valkey"])
async def store(request: pytest.FixtureRequest, server: EmbeddedStore) -> AsyncIterator[TreeStore]:
    if request.param == "twin":
        yield TwinTreeStore(LIMITS)
        return
    connection = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
    yield RedisTreeStore(connection, LIMITS)
    await connection.close()


@pytest.fixture
async def ref(store: TreeStore) -> TreeRef:
    ref = new_ref()
    await store.create(ref, NEW, NO_REQUEST)
    return ref
