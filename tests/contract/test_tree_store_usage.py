"""What trees take and whom it is charged to: one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import Attachment, Cost, Request, Step
from katsura.domain.usage import Charge, Quotas, Usage
from katsura.state.connect import Store
from katsura.state.tree_records import SALT_BYTES, record_of
from katsura.state.trees import TreeRef, TreeStore
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.state.trees_twin import TwinTreeStore
from katsura.state.twin_usage import TwinUsageStore
from katsura.state.usage import UsageStore
from katsura.state.usage_redis import RedisUsageStore
from katsura.testing.store import EmbeddedStore
from katsura.testing.tree_suite import LIMITS, NEW, NO_REQUEST, compress, grow, new_ref, step


@dataclass
class Both:
    trees: TreeStore
    sums: UsageStore
    added: list[Usage]


@pytest.fixture(params=["twin", "valkey"])
async def both(request: pytest.FixtureRequest, server: EmbeddedStore) -> AsyncIterator[Both]:
    added: list[Usage] = []
    if request.param == "twin":
        twin = TwinTreeStore(LIMITS)
        yield Both(twin, TwinUsageStore(twin), added)
        return
    store = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
    yield Both(RedisTreeStore(store, LIMITS, lambda _, usage: added.append(usage)), RedisUsageStore(store), added)
    await store.close()


def size(*steps: Step) -> int:
    return sum(len(record_of(one, bytes(SALT_BYTES))) for one in steps)


async def test_a_tree_counts_nodes_and_bytes_as_they_are_written(store: TreeStore, ref: TreeRef) -> None:
    assert (await store.counted(ref)).usage == Usage(1, 0, 0)
    await grow(store, ref, "a", "b")
    assert (await store.counted(ref)).usage == Usage(1, 2, size(Step("a"), Step("b")))
    await grow(store, ref, "c", merge=False)
    blob = step("d", opaque=b"x" * 1000)
    await store.grow(ref, "", None, [blob], False, NO_REQUEST)
    counted = (await store.counted(ref)).usage
    assert (counted.nodes, counted.bytes - size(*map(Step, "abcd")) >= 1000) == (4, True)
    await compress(store, ref)
    assert (await store.counted(ref)).usage.nodes == 5


async def test_what_is_repeated_or_walked_onto_is_counted_once(store: TreeStore, ref: TreeRef) -> None:
    request = Request("r", "d" * 32)
    mine = [step("a", agent_id="ada", client_step_id="1")]
    await store.grow(ref, "", None, mine, False, request)
    before = await store.counted(ref)
    await store.grow(ref, "", None, mine, False, request)
    await store.grow(ref, "", None, mine, False, NO_REQUEST)
    assert await store.counted(ref) == before
    await store.fork(ref, "", -1, "again", NO_REQUEST)
    await store.grow(ref, "again", None, [step("a", agent_id="ada", client_step_id="1")], True, NO_REQUEST)
    assert await store.counted(ref) == before


async def test_steps_are_charged_to_their_agents(store: TreeStore, ref: TreeRef) -> None:
    cost = Cost(prompt_tokens=100, cached_tokens=80, completion_tokens=7, micros=12)
    one, two = Step("a", agent_id="ada", cost=cost), Step("b", agent_id="ada", cost=cost)
    other = Step("c", agent_id="bob\nby")
    await store.grow(
        ref, "", None, [step("x"), *(replace(step(""), step=s) for s in (one, two, other))], False, NO_REQUEST
    )
    agents = (await store.counted(ref)).agents
    assert agents == {
        "ada": Charge(2, size(one, two), 200, 160, 14, 24),
        "bob\nby": Charge(1, size(other)),
    }


async def test_attachments_count_and_erased_content_counts_no_more(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a secret that is long enough to tell from its tombstone")
    bare = (await store.counted(ref)).usage.bytes
    await store.put_attachments(ref, 1, [Attachment("t", 0, "text/plain", b"x" * 500)], replace=False)
    assert (await store.counted(ref)).usage.bytes >= bare + 500
    await store.put_attachments(ref, 1, [Attachment("t", 0, "text/plain", b"x" * 100)], replace=True)
    assert bare + 100 <= (await store.counted(ref)).usage.bytes < bare + 500
    await store.redact(ref, [1], NO_REQUEST)
    assert (await store.counted(ref)).usage.bytes < bare


async def test_an_archive_carries_usage(store: TreeStore, ref: TreeRef) -> None:
    await store.grow(ref, "", None, [step("a", agent_id="ada", opaque=b"x" * 99)], False, NO_REQUEST)
    await store.put_attachments(ref, 1, [Attachment("t", 0, "text/plain", b"x" * 500)], replace=False)
    copy = TreeRef(ref.tenant, TreeId("copy"))
    await store.restore(copy, store.dump(ref))
    assert await store.counted(copy) == await store.counted(ref)


async def test_what_commits_add_is_told_once_and_what_is_dropped_is_taken_off(both: Both) -> None:
    if isinstance(both.trees, TwinTreeStore):
        return  # counts anew each time
    ref, request = new_ref(), Request("r", "d" * 32)
    await both.trees.create(ref, NEW, NO_REQUEST)
    steps = [step("a"), step("b")]
    await both.trees.grow(ref, "", None, steps, False, request)
    await both.trees.grow(ref, "", None, steps, False, request)
    await both.trees.put_attachments(ref, 1, [Attachment("t", 0, "text/plain", b"x" * 500)], replace=False)
    assert sum(both.added, start=Usage()) == (await both.trees.counted(ref)).usage
    copy = TreeRef(ref.tenant, TreeId("copy"))
    await both.trees.restore(copy, both.trees.dump(ref))
    await both.trees.drop(ref)
    assert sum(both.added, start=Usage()) == (await both.trees.counted(copy)).usage


async def test_sums_grow_by_what_is_settled_and_a_recount_puts_them_right(both: Both) -> None:
    ref = new_ref()
    await both.trees.create(ref, NEW, NO_REQUEST)
    await grow(both.trees, ref, "a")
    tenant = ref.tenant
    assert (await both.sums.settle(tenant, Usage(5, 6, 7), 2, 100)).usage == Usage(5, 6, 7)
    settled = await both.sums.settle(tenant, Usage(1, 0, 0), 3, 100)
    assert (settled.usage, settled.requests, settled.quotas) == (Usage(6, 6, 7), 5, None)
    assert (await both.sums.settle(tenant, Usage(), 1, 101)).requests == 1
    counted = await both.sums.recount(tenant)
    assert counted == await both.trees.counted(ref)
    assert (await both.sums.settle(tenant, Usage(), 0, 101)).usage == counted.usage


async def test_a_tenant_has_quotas_of_its_own_until_they_are_taken_away(both: Both) -> None:
    tenant = TenantId("with-quotas")
    quotas = Quotas(trees=1, nodes=2, bytes=3, requests_per_minute=4)
    await both.sums.set_quotas(tenant, quotas)
    assert (await both.sums.settle(tenant, Usage(), 0, 1)).quotas == quotas
    await both.sums.set_quotas(tenant, None)
    assert (await both.sums.settle(tenant, Usage(), 0, 1)).quotas is None
