"""Which trees are moved out, over the in-memory store and a clock that is turned by hand."""

from __future__ import annotations

from dataclasses import replace

from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import TreePolicy
from katsura.memory.cold import Sweeper
from katsura.state.tenants import TwinTenantStore
from katsura.state.trees import Limits, NewTree, TreeRef
from katsura.state.trees_twin import TwinTreeStore
from katsura.testing.clocks import HandClock
from katsura.testing.tree_suite import NO_REQUEST, grow

ACME, OTHER = TenantId("acme"), TenantId("other")
NEW = NewTree("", (), TreePolicy(), {})


class Shelf:
    def __init__(self) -> None:
        self.trees, self.clock = TwinTreeStore(Limits()), HandClock()
        self.tenants = TwinTenantStore(self.clock)
        self.sweeper = Sweeper(self.trees, self.tenants, self.clock, after_s=10)

    async def add(self, tenant: TenantId, name: str, new: NewTree = NEW) -> TreeRef:
        ref = TreeRef(tenant, TreeId(name))
        await self.tenants.ensure_tenant(tenant)
        await self.trees.create(ref, new, NO_REQUEST)
        return ref

    async def cold(self, tenant: TenantId) -> list[str]:
        return [tree.tree_id for tree in (await self.trees.trees(tenant, 999, ""))[0] if tree.cold]


async def test_trees_of_all_tenants_that_rested_long_enough_are_moved_once() -> None:
    shelf = Shelf()
    await shelf.add(ACME, "old")
    await shelf.add(OTHER, "theirs")
    await shelf.add(ACME, "brief", replace(NEW, policy=TreePolicy(ttl_s=60)))
    assert await shelf.sweeper.sweep() == 0
    shelf.clock.ms = 20_000
    assert await shelf.sweeper.sweep() == 2
    assert (await shelf.cold(ACME), await shelf.cold(OTHER)) == (["old"], ["theirs"])
    assert await shelf.sweeper.sweep() == 0


async def test_a_tree_that_was_brought_back_rests_anew() -> None:
    shelf = Shelf()
    ref = await shelf.add(ACME, "t")
    shelf.clock.ms = 20_000
    await shelf.sweeper.sweep()
    await grow(shelf.trees, ref, "again")
    updated = (await shelf.trees.read(ref))[0].update_ms
    shelf.clock.ms = updated + 9_999
    assert await shelf.sweeper.sweep() == 0
    shelf.clock.ms = updated + 10_000
    assert await shelf.sweeper.sweep() == 1


async def test_one_sweep_moves_a_bounded_number_and_the_next_one_the_rest() -> None:
    shelf = Shelf()
    for i in range(300):
        await shelf.add(ACME, f"t{i}")
    shelf.clock.ms = 60_000
    assert (await shelf.sweeper.sweep(), await shelf.sweeper.sweep()) == (256, 44)
