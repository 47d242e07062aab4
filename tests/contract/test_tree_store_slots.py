"""Slots of a branch: one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

import pytest

from katsura.domain.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    Reason,
    ResourceExhaustedError,
)
from katsura.domain.ids import NodeId
from katsura.domain.trees import REDACTED, EventKind, Node, Relation, Request, Slot, request_of
from katsura.state import keys, slots_redis, twin_slots
from katsura.state.trees import TreeRef, TreeStore
from katsura.state.trees_redis import RedisTreeStore
from katsura.testing.tree_suite import BIG, NO_REQUEST, grow, refused, revise


async def put(
    store: TreeStore, ref: TreeRef, branch: str = "", request: Request = NO_REQUEST, **values: str
) -> tuple[Node, ...]:
    state = await store.slots(ref, branch)
    return (await store.set_slots(ref, state, [(Slot(k, v), 7) for k, v in values.items()], request))[0]


async def held(store: TreeStore, ref: TreeRef, branch: str = "") -> dict[str, str]:
    state = await store.slots(ref, branch)
    return {n.body.key: n.body.value for n in state.last if isinstance(n.body, Slot) and not n.body.unset}


async def test_slots_are_nodes_at_the_head_of_their_branch(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    first, second = await put(store, ref, k="1", j="2")
    assert (first.node_id, first.parent_id, first.depth, first.tokens) == (3, 0, 2, 7)
    assert (second.node_id, second.parent_id, second.body) == (4, 3, Slot("j", "2"))
    assert first.content_hash != second.content_hash
    (third,) = await put(store, ref, k="3")
    assert (await store.slots(ref, "")).last == (second, third)
    snapshot = await store.snapshot(ref, "", BIG, 3, "", False)
    assert [s.node.node_id for s in snapshot.slots] == [4, 5]
    assert (await store.read(ref))[1][0].head == 2
    events = store.watch(ref, "", 2, 5.0)
    event = await anext(events)
    assert (event.kind, event.branch, event.node_ids) == (EventKind.SLOTS_SET, "main", (3, 4))
    await events.aclose()  # type: ignore[attr-defined]


async def test_a_fork_starts_with_the_slots_at_its_step_and_goes_its_own_way(store: TreeStore, ref: TreeRef) -> None:
    await put(store, ref, zero="z")
    await grow(store, ref, "a")
    await put(store, ref, k="at a")
    await grow(store, ref, "b")
    await put(store, ref, k="at b", later="x")
    await store.fork(ref, "main", 2, "side", NO_REQUEST)
    await store.fork(ref, "main", -1, "root", NO_REQUEST)
    assert await held(store, ref, "side") == {"zero": "z", "k": "at a"}
    assert await held(store, ref, "root") == {"zero": "z"}
    await grow(store, ref, "c", "d", branch="side")
    assert await held(store, ref, "side") == {"zero": "z", "k": "at a"}, "however deep it has grown since"
    await put(store, ref, "side", k="side")
    assert await held(store, ref) == {"zero": "z", "k": "at b", "later": "x"}
    await store.fork(ref, "side", 0, "third", NO_REQUEST)
    assert await held(store, ref, "third") == {"zero": "z", "k": "side"}
    revised = await revise(store, ref, 2)
    assert await held(store, ref, revised.branch.name) == {"zero": "z", "k": "at a"}
    left = store.set_slots(ref, await store.slots(ref, "main"), [(Slot("k", ""), 1)], NO_REQUEST)
    await refused(FailedPreconditionError, Reason.BRANCH_NOT_WRITABLE, left)


async def test_slots_planned_on_an_older_state_are_refused(store: TreeStore, ref: TreeRef) -> None:
    state = await store.slots(ref, "")
    await put(store, ref, k="1")
    await refused(ConflictError, Reason.HEAD_MOVED, store.set_slots(ref, state, [(Slot("j", ""), 1)], NO_REQUEST))
    state = await store.slots(ref, "")
    await grow(store, ref, "a")
    await refused(ConflictError, Reason.HEAD_MOVED, store.set_slots(ref, state, [(Slot("j", ""), 1)], NO_REQUEST))
    assert await held(store, ref) == {"k": "1"}


async def test_writing_slots_is_answered_the_same_again(store: TreeStore, ref: TreeRef) -> None:
    request = request_of("s", "set_slots", "k")
    assert await store.slots_replayed(ref, request) is None
    made = await put(store, ref, request=request, k="1")
    await put(store, ref, k="2")
    assert await store.slots_replayed(ref, request) == (made, 2)
    reused = store.slots_replayed(ref, request_of("s", "set_slots", "other"))
    await refused(AlreadyExistsError, Reason.REQUEST_ID_REUSED, reused)


async def test_the_history_of_a_key_tells_every_write_on_the_path(store: TreeStore, ref: TreeRef) -> None:
    (first,) = await put(store, ref, k="1")
    state = await store.slots(ref, "")
    second = Slot("k", "2", Relation.REFINE, "more exact", NodeId(first.node_id))
    await store.set_slots(ref, state, [(second, 1)], NO_REQUEST)
    gone = Slot("k", "", Relation.ROLLBACK, "", NodeId(2))
    await store.set_slots(ref, await store.slots(ref, ""), [(gone, 1)], NO_REQUEST)
    assert [n.body for n in await store.slot_history(ref, "", "k", 9)] == [gone, second, Slot("k", "1")]
    assert [n.node_id for n in await store.slot_history(ref, "", "k", 2)] == [3, 2]
    assert await store.slot_history(ref, "", "never", 9) == ()
    assert await held(store, ref) == {}


async def test_a_path_has_a_limit_of_keys(store: TreeStore, ref: TreeRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twin_slots, "KEYS_MAX", 2)
    monkeypatch.setattr(slots_redis, "KEYS_MAX", 2)
    await put(store, ref, a="1", b="2")
    await put(store, ref, a="3")
    await refused(ResourceExhaustedError, Reason.QUEUE_FULL, put(store, ref, c="4"))


async def test_a_redacted_slot_keeps_its_key_only(store: TreeStore, ref: TreeRef) -> None:
    await put(store, ref, pin="4711")
    assert (await store.redact(ref, [1], NO_REQUEST))[0] == (1,)
    (node,) = await store.nodes(ref, [1], BIG)
    assert (node.redacted, node.body) == (True, Slot("pin", REDACTED))


async def test_what_one_branch_sets_after_a_fork_at_its_head_the_other_never_sees(
    store: TreeStore, ref: TreeRef
) -> None:
    await grow(store, ref, "a")
    await store.fork(ref, "", 0, "side", NO_REQUEST)
    await store.fork(ref, "side", 0, "below", NO_REQUEST)
    await put(store, ref, k="main's")
    assert await held(store, ref, "side") == {}
    assert await held(store, ref, "below") == {}
    await grow(store, ref, "b")
    await put(store, ref, deeper="main's")
    await grow(store, ref, "c", "d", branch="side")
    assert await held(store, ref, "side") == {}
    await put(store, ref, "side", k="side's")
    assert (await held(store, ref, "below"), (await held(store, ref))["k"]) == ({}, "main's")


async def test_a_fork_of_an_older_version_has_what_its_parent_had(store: TreeStore, ref: TreeRef) -> None:
    if not isinstance(store, RedisTreeStore):
        return  # the twin has no versions
    await grow(store, ref, "a")
    await put(store, ref, k="before")
    await later(store, ref, (await store.read(ref))[0].update_ms)
    branch, _ = await store.fork(ref, "", 0, "side", NO_REQUEST)
    await later(store, ref, branch.create_ms)
    await put(store, ref, k="after")
    await grow(store, ref, "b", branch="side")
    await store._store.client.hdel(keys.tree(ref.tenant, ref.tree, "slot_heads"), "side")  # type: ignore[misc]
    assert await held(store, ref, "side") == {"k": "before"}


async def later(store: TreeStore, ref: TreeRef, than_ms: int) -> None:
    """Wait by forking until the server's clock has passed a millisecond."""
    while (await store.fork(ref, "", 0, "", NO_REQUEST))[0].create_ms <= than_ms:
        continue
