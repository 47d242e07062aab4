"""What blocks take, as it is written and as it is counted anew: the in-memory twin and a real Valkey."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from katsura.domain.blocks import BlockOwner, BlockScope, Content
from katsura.domain.ids import TenantId
from katsura.domain.trees import Request
from katsura.domain.usage import Usage
from katsura.state import keys
from katsura.state.blocks import BlockStore
from katsura.state.blocks_redis import BLOCK_FUNCTIONS, RedisBlockStore
from katsura.state.blocks_twin import TwinBlockStore
from katsura.state.connect import Store
from katsura.state.trees_twin import TwinTreeStore
from katsura.state.twin_usage import TwinUsageStore
from katsura.state.usage import UsageStore
from katsura.state.usage_redis import RedisUsageStore
from katsura.testing.store import EmbeddedStore
from katsura.testing.tree_suite import LIMITS, NO_REQUEST

counter = itertools.count()


@dataclass
class Both:
    blocks: BlockStore
    sums: UsageStore
    added: list[Usage]
    tenant: TenantId

    def total(self) -> Usage:
        return sum(self.added, start=Usage())

    async def put(self, name: str, size: int, owner: str = "ada", request: Request = NO_REQUEST) -> None:
        ada = BlockOwner(self.tenant, BlockScope.USER, owner)
        await self.blocks.put(ada, name, Content(b"x" * size), None, 0, request)

    async def delete(self, name: str, forget: bool) -> bool:
        ada = BlockOwner(self.tenant, BlockScope.USER, "ada")
        return await self.blocks.delete(ada, name, None, forget, NO_REQUEST)


@pytest.fixture(params=["twin", "valkey"])
async def both(request: pytest.FixtureRequest, server: EmbeddedStore) -> AsyncIterator[Both]:
    added: list[Usage] = []
    tenant = TenantId(f"blocks{next(counter)}")
    if request.param == "twin":
        twin = TwinBlockStore(4, lambda _, usage: added.append(usage))
        yield Both(twin, TwinUsageStore(TwinTreeStore(LIMITS), twin), added, tenant)
        return
    store = await Store.open(server.url, libraries=[BLOCK_FUNCTIONS])
    blocks = RedisBlockStore(store, 4, lambda _, usage: added.append(usage))
    yield Both(blocks, RedisUsageStore(store), added, tenant)
    await store.close()


async def test_what_is_told_as_added_is_what_a_count_anew_finds(both: Both) -> None:
    await both.put("a", 1000)
    await both.put("a", 2000)
    await both.put("b", 500, owner="bob")
    assert both.total().blocks == 2
    assert 3500 <= both.total().bytes <= 3500 + 3 * 100, "every version that is kept counts"
    for i in range(40):
        await both.put("a", 10 + i)
    assert (await both.sums.recount(both.tenant)).usage == both.total(), "versions that went are taken off"
    assert both.total().bytes < 40 * 200
    assert await both.delete("a", forget=False)
    assert both.total().blocks == 1
    assert (await both.sums.recount(both.tenant)).usage == both.total()
    await both.delete("a", forget=True)
    assert (await both.sums.recount(both.tenant)).usage == both.total()
    assert both.total().bytes < 700
    assert (await both.sums.settle(both.tenant, Usage(), 0, 1)).usage == both.total()


async def test_an_answer_that_is_repeated_adds_nothing(both: Both) -> None:
    request = Request("r", "d")
    for _ in range(2):
        await both.put("a", 100, request=request)
    assert both.total().blocks == 1
    assert (await both.sums.recount(both.tenant)).usage == both.total()


async def test_blocks_of_a_version_that_did_not_count_are_counted_at_the_next_write(server: EmbeddedStore) -> None:
    added: list[Usage] = []
    store = await Store.open(server.url, libraries=[BLOCK_FUNCTIONS])
    both = Both(
        RedisBlockStore(store, 4, lambda _, usage: added.append(usage)),
        RedisUsageStore(store),
        added,
        TenantId(f"blocks{next(counter)}"),
    )
    await both.put("a", 1000)
    before = both.total()
    await store.client.delete(keys.blocks(both.tenant, "user", "ada", "bytes"))
    added.clear()
    await both.put("b", 1000)
    assert both.total().blocks == 2
    assert both.total().bytes > before.bytes
    assert (await both.sums.recount(both.tenant)).usage == both.total()
    await store.close()
