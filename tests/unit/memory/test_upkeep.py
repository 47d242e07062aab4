"""Going over all trees, and turns that go on whatever happens in one."""

from __future__ import annotations

import asyncio

import pytest

from katsura.domain.errors import UnavailableError
from katsura.domain.ids import TenantId, TreeId
from katsura.memory.upkeep import every_retention, every_tree, repeat
from katsura.state.tenants import TwinTenantStore
from katsura.state.trees import TreeRef
from katsura.state.trees_twin import TwinTreeStore
from katsura.testing.clocks import HandClock
from katsura.testing.tree_suite import LIMITS, NEW, NO_REQUEST


async def test_every_tree_of_every_tenant_is_passed_once_whoever_comes_first() -> None:
    trees, tenants = TwinTreeStore(LIMITS), TwinTenantStore(HandClock())
    for tenant in ("a", "b"):
        await tenants.ensure_tenant(TenantId(tenant))
        for i in range(120):
            await trees.create(TreeRef(TenantId(tenant), TreeId(f"t{i}")), NEW, NO_REQUEST)
    for first in range(3):
        found = [ref async for ref, _, _ in every_retention(trees, tenants, first)]
        assert len(found) == len(set(found)) == 240
        assert found[0].tenant == "ab"[first % 2]
    assert {ref async for ref, _ in every_tree(trees, tenants)} == set(found)


async def test_a_turn_that_broke_off_is_followed_by_the_next() -> None:
    turns, done = 0, asyncio.Event()

    async def turn() -> None:
        nonlocal turns
        turns += 1
        if turns == 1:
            raise UnavailableError("the store is away")
        done.set()

    task = asyncio.create_task(repeat(turn, 0.0))
    await done.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert turns >= 2
