"""One suite over both response stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from katsura.domain.ids import BranchName, NodeId, TenantId, TreeId
from katsura.state.connect import Store
from katsura.state.responses import RedisResponseStore, ResponseStore, StoredResponse, TwinResponseStore
from katsura.testing.store import EmbeddedStore

ACME, BLUE, TREE = TenantId("acme"), TenantId("blue"), TreeId("t1")
ONE = StoredResponse(BranchName("main"), NodeId(2), '{"model":"m"}')
TWO = StoredResponse(BranchName("b2"), NodeId(4), "{}")


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedStore]:
    with EmbeddedStore() as running:
        yield running


@pytest.fixture(params=["twin", "valkey"])
async def responses(request: pytest.FixtureRequest) -> AsyncIterator[ResponseStore]:
    if request.param == "twin":
        yield TwinResponseStore()
        return
    store = await Store.open(request.getfixturevalue("server").url)
    await store.client.flushall()
    yield RedisResponseStore(store)
    await store.close()


async def test_a_response_is_found_by_tenant_tree_and_token(responses: ResponseStore) -> None:
    await responses.put(ACME, TREE, "a", ONE)
    assert await responses.get(ACME, TREE, "a") == ONE
    assert await responses.get(BLUE, TREE, "a") is None
    assert await responses.get(ACME, TreeId("t2"), "a") is None
    assert await responses.get(ACME, TREE, "b") is None


async def test_deleting_says_how_many_are_left(responses: ResponseStore) -> None:
    await responses.put(ACME, TREE, "a", ONE)
    await responses.put(ACME, TREE, "b", TWO)
    assert await responses.delete(ACME, TREE, "a") == 1
    assert await responses.delete(ACME, TREE, "a") is None
    assert await responses.get(ACME, TREE, "a") is None
    assert await responses.delete(ACME, TREE, "b") == 0


async def test_dropping_a_tree_forgets_all_its_responses(responses: ResponseStore) -> None:
    await responses.put(ACME, TREE, "a", ONE)
    await responses.put(BLUE, TREE, "a", TWO)
    await responses.drop_tree(ACME, TREE)
    assert await responses.get(ACME, TREE, "a") is None
    assert await responses.get(BLUE, TREE, "a") == TWO
