"""Comparing and merging branches: one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

import random

import pytest

from katsura.domain.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
)
from katsura.domain.trees import EventKind, Request, Slot, Step, request_of
from katsura.state import merging_redis, twin_merging
from katsura.state.merging import Merged, Merging
from katsura.state.trees import TreeRef, TreeStore
from katsura.testing.tree_suite import BIG, NO_REQUEST, contents, grow, refused, revise


async def plan(store: TreeStore, ref: TreeRef, source: str, *said: str, **values: str) -> Merging:
    parting = await store.parting(ref, "", source)
    ours, theirs = await store.slots(ref, ""), await store.slots(ref, source)
    slots = [(Slot(k, v), 5) for k, v in values.items()]
    return Merging(parting, ours.head, ours.head_hash, theirs.head, [(Step(s), 10) for s in said], slots, tuple(values))


async def test_branches_part_where_their_paths_do(store: TreeStore, ref: TreeRef) -> None:
    made = random.Random(7)
    await grow(store, ref, *(f"r{i}" for i in range(40)), merge=False)
    names = ["main"]
    for number in range(12):
        source = made.choice(names)
        path = (await store.path(ref, source, 0, 500, BIG)).nodes
        name = f"n{number}"
        await store.fork(ref, source, made.choice(path).node_id, name, NO_REQUEST)
        await grow(store, ref, *(f"{name}.{i}" for i in range(made.randrange(9))), "end", branch=name, merge=False)
        names.append(name)
    paths = {name: [n.node_id for n in (await store.path(ref, name, 0, 500, BIG)).nodes] for name in names}
    for one in names:
        for other in names:
            shared = [a for a, b in zip(paths[one], paths[other], strict=False) if a == b]
            parting = await store.parting(ref, one, other)
            assert (parting.common, parting.depth) == (shared[-1], len(shared)), (one, other)
    with pytest.raises(NotFoundError):
        await store.parting(ref, "main", "nope")


async def test_branches_that_share_nothing_part_at_the_root(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.fork(ref, "", -1, "other", NO_REQUEST)
    await grow(store, ref, "b", branch="other")
    parting = await store.parting(ref, "", "other")
    assert (parting.common, parting.depth, parting.slots) == (0, 0, 0)
    assert (parting.branch.name, parting.other.name) == ("main", "other")


async def test_steps_and_slots_are_merged_in_one_commit(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.fork(ref, "", 0, "side", NO_REQUEST)
    await grow(store, ref, "work", branch="side")
    request = request_of("m", "merge", 1)
    merging = await plan(store, ref, "side", "told", "more", k="v", j="w")
    merged = await store.merge(ref, merging, request)
    assert merged == Merged((3, 4), (5, 6), ("k", "j"), merged.branch, 1, 5)  # type: ignore[arg-type]
    assert (merged.branch.head, merged.branch.depth, merged.branch.raw_tokens) == (4, 3, 30)
    assert await store.merge_replayed(ref, request) == await store.merge(ref, merging, request) == merged
    reused = store.merge_replayed(ref, request_of("m", "merge", 2))
    await refused(AlreadyExistsError, Reason.REQUEST_ID_REUSED, reused)
    assert await store.merge_replayed(ref, Request("never", "x" * 32)) is None
    assert await contents(store, ref) == ["a", "told", "more"]
    assert await contents(store, ref, "side") == ["a", "work"]
    assert [(n.node_id, n.depth) for n in (await store.slots(ref, "")).last] == [(5, 3), (6, 3)]
    assert (await store.slots(ref, "side")).last == ()
    events = store.watch(ref, "", 4, 5.0)
    event = await anext(events)
    assert (event.kind, event.branch, event.node_ids) == (EventKind.MERGED, "main", (3, 4, 5, 6))
    await events.aclose()  # type: ignore[attr-defined]
    await grow(store, ref, "after")
    assert (await contents(store, ref))[-2:] == ["more", "after"]


async def test_a_merge_of_slots_alone_moves_no_head(store: TreeStore, ref: TreeRef) -> None:
    await store.fork(ref, "", 0, "side", NO_REQUEST)
    merged = await store.merge(ref, await plan(store, ref, "side", k="v"), NO_REQUEST)
    assert (merged.steps, merged.slots, merged.branch.head) == ((), (1,), 0)


async def test_a_merge_planned_on_an_older_state_of_either_branch_is_refused(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.fork(ref, "", 0, "side", NO_REQUEST)
    for branch in ("main", "side"):
        stale = await plan(store, ref, "side", "told")
        await grow(store, ref, f"late on {branch}", branch=branch)
        error = await refused(ConflictError, Reason.HEAD_MOVED, store.merge(ref, stale, NO_REQUEST))
        assert error.metadata["branch"] == branch
        stale = await plan(store, ref, "side", "told")
        state = await store.slots(ref, branch)
        await store.set_slots(ref, state, [(Slot("k", branch), 1)], NO_REQUEST)
        await refused(ConflictError, Reason.HEAD_MOVED, store.merge(ref, stale, NO_REQUEST))


async def test_nothing_is_merged_into_an_abandoned_branch_and_nothing_by_halves(
    store: TreeStore, ref: TreeRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    await grow(store, ref, "a")
    await store.fork(ref, "", 0, "side", NO_REQUEST)
    merging = await plan(store, ref, "side", "told", a="1", b="2")
    monkeypatch.setattr(merging_redis, "KEYS_MAX", 1)
    monkeypatch.setattr(twin_merging, "KEYS_MAX", 1)
    await refused(ResourceExhaustedError, Reason.QUEUE_FULL, store.merge(ref, merging, NO_REQUEST))
    assert await contents(store, ref) == ["a"]
    await revise(store, ref, 0)
    left = store.merge(ref, merging, NO_REQUEST)
    await refused(FailedPreconditionError, Reason.BRANCH_NOT_WRITABLE, left)
