"""Branches that keep a place for another tree: one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

from dataclasses import replace

from katsura.domain.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError, Reason
from katsura.domain.ids import TreeId
from katsura.domain.trees import BranchState, EventKind, Origin, Reference, Request, TreePolicy, request_of
from katsura.state import keys
from katsura.state.contents import TreeChange
from katsura.state.trees import TreeRef, TreeStore
from katsura.state.trees_redis import RedisTreeStore
from katsura.testing.tree_suite import NEW, NO_REQUEST, grow, new_ref, refused, revise, step

ORIGIN = Origin("source", "tree:x", 2, "ab" * 32, 2, 20)  # type: ignore[arg-type]


async def test_a_tree_says_where_it_was_forked_off_and_for_whom(store: TreeStore) -> None:
    ref = new_ref()
    made, _ = await store.create(ref, replace(NEW, origin=ORIGIN, agent_id="scout"), NO_REQUEST)
    assert (made.origin, made.agent_id) == (ORIGIN, "scout")
    assert (await store.read(ref))[0] == made
    changed = await store.update(ref, TreeChange(goal="g"), NO_REQUEST)
    assert (changed.origin, changed.agent_id) == (ORIGIN, "scout")


async def test_a_branch_that_keeps_a_place_is_read_and_forked_but_never_written(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b", "c")
    asked = request_of("f", "fork", "child")
    kept, position = await store.fork(ref, "", 2, "tree:child", asked, "scout", "child")
    assert (kept.head, kept.state, kept.held_by, kept.agent_id) == (2, BranchState.ABANDONED, "child", "scout")
    assert await store.fork(ref, "", 2, "tree:child", asked, "scout", "child") == (kept, position)
    again = store.fork(ref, "", 2, "tree:child", NO_REQUEST, "scout", "child")
    await refused(AlreadyExistsError, Reason.BRANCH_EXISTS, again)
    await refused(FailedPreconditionError, Reason.BRANCH_NOT_WRITABLE, grow(store, ref, "d", branch="tree:child"))
    other, _ = await store.fork(ref, "tree:child", 0, "other", NO_REQUEST)
    assert (other.head, other.held_by, other.agent_id, other.state) == (2, "", "", BranchState.ACTIVE)


async def test_a_tree_is_not_dropped_before_every_place_in_it_is_released(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.fork(ref, "", 0, "tree:one", NO_REQUEST, "", "one")
    await store.fork(ref, "", 0, "tree:two", NO_REQUEST, "", "two")
    error = await refused(FailedPreconditionError, Reason.TREE_HELD, store.drop(ref))
    assert error.metadata["held_by"] in ("one", "two")
    position = await store.release(ref, "tree:one", request_of("r", "release"))
    assert await store.release(ref, "tree:one", request_of("r", "release")) == position
    event = await anext(store.watch(ref, "", position.revision - 1, 5.0))
    assert (event.kind, event.branch) == (EventKind.RELEASED, "tree:one")
    await refused(FailedPreconditionError, Reason.TREE_HELD, store.drop(ref))
    await refused(NotFoundError, Reason.BRANCH_NOT_FOUND, store.release(ref, "tree:one", NO_REQUEST))
    await refused(NotFoundError, Reason.BRANCH_NOT_FOUND, store.release(ref, "main", NO_REQUEST))
    await store.release(ref, "tree:two", NO_REQUEST)
    assert [b.name for b in (await store.read(ref))[1]] == ["main"]
    made, _ = await store.fork(ref, "", 0, "", NO_REQUEST)
    assert (made.name, made.order) == ("b4", 4), "names and numbers are not used again"
    await store.drop(ref)


async def test_what_keeps_a_place_is_not_left_behind_by_a_revise(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "plan", "found")
    await store.fork(ref, "", 1, "sub", NO_REQUEST)
    await store.fork(ref, "", 0, "tree:child", NO_REQUEST, "", "child")
    new = step("as found", references=(Reference(2),))  # type: ignore[arg-type]
    await store.grow(ref, "sub", None, [new], False, NO_REQUEST)
    await revise(store, ref, 1)
    assert (await store.read(ref))[0].stale_count == 0
    await store.release(ref, "tree:child", NO_REQUEST)


async def test_a_tree_does_not_expire_while_it_keeps_a_place(store: TreeStore) -> None:
    if not isinstance(store, RedisTreeStore):
        return  # the twin keeps everything
    ref = TreeRef(new_ref().tenant, TreeId("brief"))
    await store.create(ref, replace(NEW, policy=TreePolicy(raw_token_limit=50, ttl_s=600)), NO_REQUEST)
    await grow(store, ref, "a")
    client = store._store.client
    nodes = keys.tree(ref.tenant, ref.tree, "nodes")
    assert 0 < await client.pttl(nodes) <= 600_000
    await store.fork(ref, "", 0, "tree:child", Request("", ""), "", "child")
    await grow(store, ref, "b")
    assert await client.pttl(nodes) == -1
    await store.release(ref, "tree:child", NO_REQUEST)
    assert 0 < await client.pttl(nodes) <= 600_000
