"""States of branches that a caller changes: one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from katsura.domain.errors import ConflictError, FailedPreconditionError, Reason
from katsura.domain.ids import NodeId, TreeId
from katsura.domain.retention import Retention
from katsura.domain.trees import Branch, BranchState, Effect, EventKind, Reference, Request, Slot
from katsura.state import keys
from katsura.state.archive import ArchivedHead, line_of, part_of
from katsura.state.branches import BranchChange
from katsura.state.connect import Store
from katsura.state.contents import Scope, TreeChange
from katsura.state.merging import Merging
from katsura.state.trees import TreeRef, TreeStore
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.testing.store import EmbeddedStore
from katsura.testing.tree_suite import (
    BIG,
    LIMITS,
    NEW,
    NO_REQUEST,
    compress,
    contents,
    grow,
    new_ref,
    refused,
    revise,
    step,
)

HOUR_MS = 3_600_000
CLOSED = (BranchState.FROZEN, BranchState.MERGED, BranchState.ABANDONED)


async def become(
    store: TreeStore, ref: TreeRef, state: BranchState, branch: str = "", request: Request = NO_REQUEST
) -> Branch:
    return (await store.update_branch(ref, branch, None, BranchChange(state), request)).branch


@pytest.mark.parametrize("state", CLOSED)
async def test_a_branch_that_is_not_active_takes_no_write_to_its_path(
    store: TreeStore, ref: TreeRef, state: BranchState
) -> None:
    await grow(store, ref, "a", "b")
    await store.fork(ref, "", 0, "side", NO_REQUEST)
    await grow(store, ref, "c", branch="side")
    slots, cover = await store.slots(ref, ""), await store.cover(ref, "", None, 0)
    assert (await become(store, ref, state)).state is state
    for attempt in (
        grow(store, ref, "d"),
        store.set_slots(ref, slots, [(Slot("k", "v"), 1)], NO_REQUEST),
        store.cover(ref, "", None, 0),
        compress(store, ref),
        revise(store, ref, 1),
        store.lease(ref, "", "one", HOUR_MS),
        store.update(ref, TreeChange(default_branch="main"), NO_REQUEST),
    ):
        error = await refused(FailedPreconditionError, Reason.BRANCH_NOT_WRITABLE, attempt)
        assert error.metadata == {"branch": "main", "state": state.name}
        assert "'main'" in error.message
        assert "make it ACTIVE again (UpdateBranch)" in error.message
    assert await contents(store, ref) == ["a", "b"]
    await grow(store, ref, "e", branch="side")
    assert await contents(store, ref, "side") == ["a", "b", "c", "e"], "other branches go on, those forked off it too"
    forked, _ = await store.fork(ref, "main", 0, "again", NO_REQUEST)
    assert forked.state is BranchState.ACTIVE
    assert (await become(store, ref, BranchState.ACTIVE)).left_ms == 0
    await grow(store, ref, "d")
    assert cover.last == 2


async def test_verdicts_and_roll_ups_of_a_frozen_branch_go_on_and_move_nothing(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    made = await compress(store, ref)
    before = await become(store, ref, BranchState.FROZEN)
    assert made.node.judgement is not None
    doubted = replace(made.node.judgement, note="looked at again")
    judged = await store.judge(ref, "", made.node, doubted, NO_REQUEST)
    assert judged.branch == before


async def test_a_state_may_be_said_again_by_the_same_request_and_is_an_event(store: TreeStore, ref: TreeRef) -> None:
    head = (await grow(store, ref, "a")).node_ids[0]
    change, request = BranchChange(BranchState.FROZEN, "nightly", "do not touch"), Request("r", "d")
    marked = await store.update_branch(ref, "", head, change, request)
    frozen, revision = marked.branch, marked.revision
    assert (frozen.state, frozen.label, frozen.note) == (BranchState.FROZEN, "nightly", "do not touch")
    assert await store.update_branch(ref, "", head, change, request) == marked
    event = await anext(aiter(store.watch(ref, "", revision - 1, 60.0)))
    assert (event.kind, event.branch, event.node_ids) == (EventKind.BRANCH_UPDATED, "main", ())
    assert event.position.revision == revision
    kept = (await store.update_branch(ref, "", None, BranchChange(note="soon"), NO_REQUEST)).branch
    assert (kept.state, kept.label, kept.note) == (BranchState.FROZEN, "nightly", "soon")
    assert (await store.read(ref))[1] == (kept,)


async def test_what_would_be_is_told_and_not_written(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    before = await store.read(ref)
    change = BranchChange(BranchState.ABANDONED, note="gone")
    told = await store.update_branch(ref, "", None, change, NO_REQUEST, dry_run=True)
    assert (told.branch.state, told.branch.note, told.revision) == (BranchState.ABANDONED, "gone", before[0].revision)
    assert await store.read(ref) == before
    await grow(store, ref, "b")


async def test_a_branch_that_moved_or_that_somebody_holds_is_not_changed(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    change = BranchChange(BranchState.FROZEN)
    await refused(ConflictError, Reason.HEAD_MOVED, store.update_branch(ref, "", 1, change, NO_REQUEST))
    token = (await store.lease(ref, "", "one", HOUR_MS)).lease_token
    await refused(ConflictError, Reason.LEASE_HELD, store.update_branch(ref, "", None, change, NO_REQUEST))
    frozen = await become(store, ref, BranchState.FROZEN, request=Request("", "", token))
    assert (frozen.lease_holder, frozen.lease_end_ms) == ("", 0), "who writes no more holds no more"
    await become(store, ref, BranchState.ACTIVE)
    late = store.grow(ref, "", None, [step("late")], False, Request("", "", token))
    await refused(ConflictError, Reason.LEASE_LOST, late)


async def test_what_a_caller_abandons_is_doubted_as_what_a_revise_leaves(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.fork(ref, "", 0, "side", NO_REQUEST)
    found = (await grow(store, ref, "found", branch="side")).node_ids[0]
    rests = step("rests on it", references=(Reference(NodeId(found)),))
    (resting,) = (await store.grow(ref, "", None, [rests], False, NO_REQUEST)).node_ids
    await become(store, ref, BranchState.FROZEN, "side")
    assert (await store.nodes(ref, [resting], BIG))[0].stale == (), "it is there, and stays as it is"
    left = await become(store, ref, BranchState.ABANDONED, "side")
    assert left.left
    assert left.left_ms > 0
    (node,) = await store.nodes(ref, [resting], BIG)
    assert [(mark.cause, mark.reason.name) for mark in node.stale] == [(found, "ABANDONED")]


async def test_frozen_and_merged_branches_are_not_forgotten_and_stay_found(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    for name, state in zip(("cold", "done", "lost"), CLOSED, strict=True):
        await store.fork(ref, "main", 0, name, NO_REQUEST)
        await grow(store, ref, f"word {name}", branch=name)
        await become(store, ref, state, name)
    hits = await store.search(ref, Scope.TREE, "", [b"word"], 0, 10, BIG, False)
    assert [n.node_id for n in hits.nodes] == [3, 2]
    collectable = await store.collectable(ref, Retention(0, 0), 100, 0)
    assert collectable.branches == ("lost",)


async def test_a_merge_that_closes_its_source_does_both_or_neither(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.fork(ref, "", 0, "side", NO_REQUEST)
    token = (await store.lease(ref, "side", "one", HOUR_MS)).lease_token
    parting = await store.parting(ref, "", "side")
    ours, theirs = await store.slots(ref, ""), await store.slots(ref, "side")
    told = [(step("told").step, 3)]
    merging = Merging(parting, ours.head, ours.head_hash, theirs.head, told, [], (), closes=True)
    error = await refused(ConflictError, Reason.LEASE_HELD, store.merge(ref, merging, NO_REQUEST))
    assert error.metadata["branch"] == "side"
    assert await contents(store, ref) == ["a"]
    await store.release_lease(ref, "side", token)
    await store.merge(ref, merging, NO_REQUEST)
    assert await contents(store, ref) == ["a", "told"]
    assert [b.state.name for b in (await store.read(ref))[1]] == ["ACTIVE", "MERGED"]
    await refused(FailedPreconditionError, Reason.BRANCH_NOT_WRITABLE, grow(store, ref, "late", branch="side"))


async def test_a_branch_that_keeps_a_place_stays_what_it_is(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.fork(ref, "", 0, "place", NO_REQUEST, held_by="child")
    asked = become(store, ref, BranchState.ACTIVE, "place")
    error = await refused(FailedPreconditionError, Reason.BRANCH_NOT_WRITABLE, asked)
    assert "keeps the place of tree 'child'" in error.message


async def test_an_archive_keeps_states_labels_and_notes(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.fork(ref, "", 0, "side", NO_REQUEST)
    await store.update_branch(ref, "", None, BranchChange(BranchState.FROZEN, "l", "n"), NO_REQUEST)
    await become(store, ref, BranchState.MERGED, "side")
    head = await anext(aiter(store.dump(ref)))
    written = part_of(line_of(head))
    assert isinstance(head, ArchivedHead)
    assert isinstance(written, ArchivedHead)
    assert written.branches == head.branches == (await store.read(ref))[1]
    by_heart = json.loads(line_of(head))["branches"][0]
    assert {"label", "note", "left_ms"}.isdisjoint(by_heart), "older versions know the fields of these"
    copy = TreeRef(new_ref().tenant, TreeId("copy"))
    await store.restore(copy, store.dump(ref))
    assert (await store.read(copy))[1] == (await store.read(ref))[1]


async def test_what_a_branch_did_outside_since_its_fork_is_told_newest_first_with_what_its_hints_tell(
    store: TreeStore, ref: TreeRef
) -> None:
    outside = [step(name, effect=Effect.REVERSIBLE, undo_ref=f"undo {name}") for name in ("a", "b", "c")]
    await store.grow(ref, "", None, outside[:2], False, NO_REQUEST)
    await revise(store, ref, 1)
    await store.grow(ref, "", None, outside[2:], False, NO_REQUEST)
    again = (await store.read(ref))[1][-1].name
    await store.fork(ref, again, 0, "fork", NO_REQUEST)

    async def undone(branch: str, request: Request = NO_REQUEST) -> list[str]:
        change = BranchChange(BranchState.ABANDONED)
        return [e.undo_ref for e in (await store.update_branch(ref, branch, None, change, request)).effects]

    assert await undone("main") == ["undo b", "undo a"]
    assert await undone("fork") == [], "it did nothing, and the hint stays where it was made"
    request = Request("r", "d")
    assert await undone(again, request) == ["undo c", "undo b"], "its hint goes with it"
    await become(store, ref, BranchState.ACTIVE, again)
    await store.grow(ref, again, None, outside[:1], False, NO_REQUEST)
    assert await undone(again, request) == ["undo c", "undo b"], "the answer that it was given"
    await store.redact(ref, [4], NO_REQUEST)
    assert await undone(again, request) == ["undo b"], "but for what was redacted since"
    frozen = await store.update_branch(ref, again, None, BranchChange(BranchState.FROZEN), NO_REQUEST)
    assert frozen.effects == ()


async def test_the_tokens_of_a_path_are_told_for_each_head(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    assert await store.path_tokens(ref, [NodeId(0), NodeId(2), NodeId(1)]) == (0, 20, 10)
    assert await store.path_tokens(ref, []) == ()


async def test_a_state_that_only_a_newer_version_knows_takes_no_writes_and_is_read(server: EmbeddedStore) -> None:
    connection = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
    store, ref = RedisTreeStore(connection, LIMITS), new_ref()
    await store.create(ref, NEW, NO_REQUEST)
    await grow(store, ref, "a")
    key = keys.tree(ref.tenant, ref.tree, "branches")
    kept = json.loads(await connection.client.hget(key, "main") or b"")
    await connection.client.hset(key, "main", json.dumps({**kept, "state": 99}))
    assert (await store.read(ref))[1][0].state is BranchState.UNSPECIFIED
    error = await refused(FailedPreconditionError, Reason.BRANCH_NOT_WRITABLE, grow(store, ref, "b"))
    assert "this version does not know" in error.message
    await connection.close()
