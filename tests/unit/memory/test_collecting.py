"""What the service forgets by itself, over the in-memory store."""

from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.domain.ids import NodeId, TenantId, TreeId
from katsura.domain.retention import Retention
from katsura.domain.trees import Reference, StaleMark, StaleReason
from katsura.memory import collecting
from katsura.memory.collecting import Collector
from katsura.state.tenants import TwinTenantStore
from katsura.state.trees import TreeRef
from katsura.state.trees_twin import TwinTreeStore
from katsura.testing.clocks import HandClock
from katsura.testing.tree_suite import BIG, LIMITS, NEW, NO_REQUEST, grow, revise, step

KEEP = Retention(0, 1)


class Shelf:
    def __init__(self) -> None:
        self.trees = TwinTreeStore(LIMITS)
        self.tenants = TwinTenantStore(HandClock())

    async def add(self, tenant: str, keep: Retention | None, steps: int = 2) -> TreeRef:
        """A tree with a branch that was left behind after its first step."""
        ref = TreeRef(TenantId(tenant), TreeId(f"keeps {keep}"))
        await self.tenants.ensure_tenant(ref.tenant)
        await self.trees.create(ref, replace(NEW, policy=replace(NEW.policy, retention=keep)), NO_REQUEST)
        await grow(self.trees, ref, *(f"s{i}" for i in range(steps)))
        await revise(self.trees, ref, 1)
        await grow(self.trees, ref, "on")
        return ref

    async def gone(self, ref: TreeRef) -> int:
        tree, _ = await self.trees.read(ref)
        nodes = await self.trees.nodes(ref, range(1, tree.node_count + 1), BIG)
        return sum(node.redacted for node in nodes)


async def test_each_tree_forgets_what_its_own_retention_does_not_keep() -> None:
    shelf = Shelf()
    refs = [
        await shelf.add(*each) for each in (("acme", KEEP), ("acme", None), ("other", KEEP), ("other", Retention()))
    ]
    await Collector(shelf.trees, shelf.tenants, "one").turn()
    assert [await shelf.gone(ref) for ref in refs] == [1, 0, 1, 0]
    before = (await shelf.trees.read(refs[0]))[0].revision
    await Collector(shelf.trees, shelf.tenants, "two").turn()
    assert (await shelf.trees.read(refs[0]))[0].revision == before, "nothing is due"
    await Collector(shelf.trees, shelf.tenants, "two", default=KEEP).turn()
    assert [await shelf.gone(ref) for ref in refs] == [1, 1, 1, 0]


async def test_a_turn_is_bounded_and_the_next_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_LOOKS", 8)
    monkeypatch.setattr(collecting, "_CALLS_PER_TREE", 2)
    shelf = Shelf()
    ref = await shelf.add("acme", KEEP, steps=40)
    collector = Collector(shelf.trees, shelf.tenants, "one")
    seen = []
    for _ in range(4):
        await collector.turn()
        seen.append(await shelf.gone(ref))
    assert seen == sorted(seen)
    assert 0 < seen[0] < seen[-1] == 39


async def test_two_processes_do_not_collect_the_same_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_LOOKS", 8)
    monkeypatch.setattr(collecting, "_CALLS_PER_TREE", 1)
    shelf = Shelf()
    ref = await shelf.add("acme", KEEP, steps=40)
    await Collector(shelf.trees, shelf.tenants, "one").turn()
    first = await shelf.gone(ref)
    await Collector(shelf.trees, shelf.tenants, "two").turn()
    assert await shelf.gone(ref) == first, "the other's claim has not ended"


async def test_a_turn_looks_after_other_trees_whatever_is_kept() -> None:
    shelf = Shelf()
    there = await shelf.add("acme", None)
    ref = TreeRef(there.tenant, TreeId("here"))
    await shelf.trees.create(ref, NEW, NO_REQUEST)
    rests = step("rests", references=(Reference(NodeId(1), tree_id=there.tree),))
    await shelf.trees.grow(ref, "", None, [rests], False, NO_REQUEST)
    await shelf.trees.invalidate(there, [1], False, NO_REQUEST)
    await Collector(shelf.trees, shelf.tenants, "one").turn()
    (node,) = await shelf.trees.nodes(ref, [1], BIG)
    assert node.stale == (StaleMark(NodeId(0), NodeId(1), StaleReason.INVALIDATED, there.tree),)
