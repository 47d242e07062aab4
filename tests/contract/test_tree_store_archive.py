"""Writing trees down and making them again: one suite for the in-memory twin and a real Valkey, also from one to the
other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from katsura.domain.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, Reason
from katsura.domain.ids import TreeId
from katsura.domain.trees import Attachment, Effect, EventKind, Slot
from katsura.state.archive import Archived, ArchivedHead, ArchivedNode, line_of, part_of
from katsura.state.connect import Store
from katsura.state.trees import TreeRef, TreeStore
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.state.trees_twin import TwinTreeStore
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


async def full(store: TreeStore, ref: TreeRef) -> None:
    """A tree with something of everything."""
    blob = step("a", client_step_id="c1", opaque=b"\x00\n", attachments=(Attachment("t", 0, "m", b"d"),))
    await store.grow(ref, "", None, [blob, step("buy", effect=Effect.IRREVERSIBLE), step("b")], True, NO_REQUEST)
    await compress(store, ref, last=2)
    state = await store.slots(ref, "")
    await store.set_slots(ref, state, [(Slot("k", "v"), 3)], NO_REQUEST)
    await revise(store, ref, 1)
    await grow(store, ref, "secret", "c")
    await store.put_attachments(ref, 1, [Attachment("t", 5, "", b"\xff"), Attachment("u", 0, "x", b"")], False)
    await store.redact(ref, [7], NO_REQUEST)


async def dump(store: TreeStore, ref: TreeRef) -> list[Archived]:
    return [part async for part in store.dump(ref)]


async def as_parts(parts: Sequence[Archived]) -> AsyncIterator[Archived]:
    for part in parts:
        found = part_of(line_of(part))
        assert found == part
        assert not isinstance(found, int)
        yield found


async def same_life(one: TreeStore, ref: TreeRef, other: TreeStore, copy: TreeRef) -> None:
    for branch in ("main", "b2"):
        before, after = await one.path(ref, branch, 0, 99, BIG), await other.path(copy, branch, 0, 99, BIG)
        assert [n.content_hash for n in before.nodes] == [n.content_hash for n in after.nodes]
        assert [(n.body, n.attachments, n.redacted, n.path_tokens) for n in before.nodes] == [
            (n.body, n.attachments, n.redacted, n.path_tokens) for n in after.nodes
        ]
        assert before.branch == after.branch
        views = [await s.snapshot(r, branch, BIG, 3, "", False) for s, r in ((one, ref), (other, copy))]
        shown = [
            [(s.node.content_hash, s.node.judgement) for s in (*v.steps, *v.summaries, *v.hints, *v.slots)]
            for v in views
        ]
        assert shown[0] == shown[1]
    tree, _ = await other.read(copy)
    grown = await grow(other, copy, "on")
    assert grown.node_ids == (tree.node_count + 1,)
    assert grown.position.revision == tree.revision + 1
    found = await other.find_steps(copy, ["c1"], "")
    assert [(f.branch, f.node_id) for f in found] == [("main", 1)]
    retreat = await other.retreat(copy, "", None, 0)
    assert [e.excerpt for e in retreat.effects] == ["buy"], "as the hint tells that is left behind"
    walked = await other.fork(copy, "main", 1, "walk", NO_REQUEST)
    assert walked[0].head == 1
    assert (await grow(other, copy, "c", branch="walk")).merged == (False,)
    cover = await other.cover(copy, "", None, 0)
    assert cover.base == 0


async def test_a_tree_comes_back_as_it_was_and_lives_on(store: TreeStore, ref: TreeRef) -> None:
    await full(store, ref)
    parts = await dump(store, ref)
    copy = TreeRef(ref.tenant, TreeId("copy"))
    made = await store.restore(copy, as_parts(parts))
    assert (made.tree_id, made.node_count, made.goal) == ("copy", 8, "find the cheapest hotel")
    assert [t.tree_id for t in (await store.trees(ref.tenant, 10, ""))[0]] in (["copy", "tree"], ["tree", "copy"])
    events = store.watch(copy, "", 0, 5.0)
    first = await anext(events)
    assert (first.kind, first.position.revision) == (EventKind.TREE_CREATED, made.revision)
    await events.aclose()  # type: ignore[attr-defined]
    assert (await dump(store, copy))[1:] == parts[1:]
    await same_life(store, ref, store, copy)
    await refused(AlreadyExistsError, Reason.TREE_EXISTS, store.restore(copy, as_parts(parts)))
    assert await contents(store, ref, "main") == ["a", "buy", "b"]


async def test_a_tree_moves_from_one_kind_of_store_to_the_other(server: EmbeddedStore) -> None:
    twin, ref = TwinTreeStore(LIMITS), new_ref()
    connection = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
    real = RedisTreeStore(connection, LIMITS)
    await twin.create(ref, NEW, NO_REQUEST)
    await full(twin, ref)
    parts = await dump(twin, ref)
    await real.restore(ref, as_parts(parts))
    back = TreeRef(ref.tenant, TreeId("back"))
    moved = await dump(real, ref)
    await twin.restore(back, as_parts(moved))
    assert moved[1:] == (await dump(twin, back))[1:]
    assert [p.content_hash for p in moved if isinstance(p, ArchivedNode)] == [
        p.content_hash for p in parts if isinstance(p, ArchivedNode)
    ]
    await same_life(twin, ref, real, ref)
    await connection.close()


async def test_an_import_that_fails_leaves_nothing(store: TreeStore, ref: TreeRef) -> None:
    await full(store, ref)
    parts = await dump(store, ref)
    copy = TreeRef(ref.tenant, TreeId("copy"))

    async def broken() -> AsyncIterator[Archived]:
        for part in parts[:4]:
            yield part
        with pytest.raises(NotFoundError):
            await store.read(copy)
        raise InvalidArgumentError("the rest is missing")

    with pytest.raises(InvalidArgumentError):
        await store.restore(copy, broken())
    with pytest.raises(NotFoundError):
        await store.read(copy)

    async def headless() -> AsyncIterator[Archived]:
        for part in parts:
            if not isinstance(part, ArchivedHead):
                yield part

    with pytest.raises(InvalidArgumentError):
        await store.restore(copy, headless())
    assert (await store.restore(copy, as_parts(parts))).node_count == 8
