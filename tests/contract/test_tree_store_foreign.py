"""What goes stale across trees, looked after as upkeep does: one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from katsura.domain.errors import NotFoundError
from katsura.domain.ids import NodeId, TreeId
from katsura.domain.retention import Retention
from katsura.domain.trees import (
    EventKind,
    Reference,
    Relation,
    StaleMark,
    StaleReason,
    StaleStep,
    SummaryStatus,
)
from katsura.memory import foreign
from katsura.memory.foreign import Lookout
from katsura.state.archive import Archived, ArchivedReferences
from katsura.state.connect import Store
from katsura.state.foreign import Look
from katsura.state.objects import FolderObjects
from katsura.state.references import REFERENCES_MAX
from katsura.state.trees import TreeRef, TreeStore
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.state.trees_twin import TwinTreeStore
from katsura.testing.store import EmbeddedStore
from katsura.testing.tree_suite import BIG, LIMITS, NEW, NO_REQUEST, compress, grow, new_ref, revise, step

Marks = dict[int, list[tuple[int, str, str]]]


@pytest.fixture(params=["twin", "valkey"])
async def store(request: pytest.FixtureRequest, server: EmbeddedStore, tmp_path: Path) -> AsyncIterator[TreeStore]:
    if request.param == "twin":
        yield TwinTreeStore(LIMITS)
        return
    connection = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
    yield RedisTreeStore(connection, LIMITS, objects=FolderObjects(tmp_path))
    await connection.close()


@pytest.fixture
async def ref(store: TreeStore) -> TreeRef:
    """A tree, and one beside it in whose first three steps it finds something."""
    ref = new_ref()
    await store.create(ref, NEW, NO_REQUEST)
    await store.create(other(ref), NEW, NO_REQUEST)
    await grow(store, other(ref), "a", "b", "c")
    return ref


def other(ref: TreeRef, name: str = "other 7") -> TreeRef:
    return replace(ref, tree=TreeId(name))


async def rest(store: TreeStore, ref: TreeRef, node: int, tree: str = "other 7") -> int:
    """Append a step that refers to a node of another tree (of its own: ""); its id."""
    new = step(f"on {node}", references=(Reference(NodeId(node), tree_id=tree),))
    return (await store.grow(ref, "", None, [new], False, NO_REQUEST)).node_ids[0]


async def marks(store: TreeStore, ref: TreeRef) -> Marks:
    """By node: cause, reason and tree of each mark."""
    tree, _ = await store.read(ref)
    nodes = await store.nodes(ref, range(1, tree.node_count + 1), BIG)
    assert not any(mark.seen_from for node in nodes for mark in node.stale)
    return {n.node_id: [(m.cause, m.reason.name, m.tree_id) for m in n.stale] for n in nodes if n.stale}


async def after_look(store: TreeStore, ref: TreeRef) -> Marks:
    await Lookout(store).turn(ref, 64)
    return await marks(store, ref)


async def test_what_befalls_a_node_of_another_tree_takes_along_all_that_leads_to_it(
    store: TreeStore, ref: TreeRef
) -> None:
    on = await rest(store, ref, 2)
    far = await rest(store, ref, on, "")
    await rest(store, ref, 3)
    before = (await store.read(ref))[0].revision
    assert await after_look(store, ref) == {}
    await store.invalidate(other(ref), [2], False, NO_REQUEST)
    assert await marks(store, ref) == {}, "nobody has looked"
    mark = (2, "INVALIDATED", "other 7")
    assert await after_look(store, ref) == {on: [mark], far: [mark]}
    event = await anext(store.watch(ref, "", before, 5.0))
    assert (event.kind, event.branch, event.node_ids) == (EventKind.STALE, "", (on,))
    assert (event.position.revision, (await store.read(ref))[0].stale_count) == (before + 1, 2)
    found = (await store.snapshot(ref, "", BIG, 4, "", False)).stale
    told = StaleMark(NodeId(0), NodeId(2), StaleReason.INVALIDATED, "other 7")
    assert found == (StaleStep(NodeId(far), told, 2), StaleStep(NodeId(on), told, 1))
    await after_look(store, ref)
    assert (await store.read(ref))[0].revision == before + 1, "nothing new, no commit"


async def test_what_was_said_to_hold_after_all_is_marked_again_by_what_is_new_only(
    store: TreeStore, ref: TreeRef
) -> None:
    on = await rest(store, ref, 2)
    await store.invalidate(other(ref), [2], False, NO_REQUEST)
    assert await after_look(store, ref)
    await store.invalidate(ref, [on], True, NO_REQUEST)
    assert await after_look(store, ref) == {}
    await store.redact(other(ref), [2], NO_REQUEST)
    assert await after_look(store, ref) == {on: [(2, "REDACTED", "other 7")]}
    await store.invalidate(ref, [on], True, NO_REQUEST)
    await store.invalidate(other(ref), [2], True, NO_REQUEST)
    assert await after_look(store, ref) == {}, "it holds, and so does the other"
    await store.invalidate(other(ref), [2], False, NO_REQUEST)
    assert await after_look(store, ref) == {on: [(2, "INVALIDATED", "other 7")]}, "once more"


async def test_every_reason_is_seen_from_another_tree(store: TreeStore, ref: TreeRef) -> None:
    there = other(ref)
    written = (await compress(store, there, last=1)).node
    assert written.judgement is not None
    await grow(store, there, "d", "e")
    on = {node: await rest(store, ref, node) for node in (1, 2, written.node_id, 5, 6)}
    assert await after_look(store, ref) == {}
    new = step("b anew", relation=Relation.REPLACE, related_node_ids=(2,))
    await store.grow(there, "", None, [new], False, NO_REQUEST)
    await store.redact(there, [5], NO_REQUEST)
    await revise(store, there, 5)
    await store.judge(there, "", written, replace(written.judgement, status=SummaryStatus.FAILED), NO_REQUEST)
    assert {node: [m[:2] for m in found] for node, found in (await after_look(store, ref)).items()} == {
        on[5]: [(5, "REDACTED")],
        on[2]: [(2, "REPLACED")],
        on[written.node_id]: [(written.node_id, "FAILED")],
        on[6]: [(6, "ABANDONED")],
    }, "wherever it is seen from: a reference names no branch"


async def test_what_is_not_there_any_more_is_told_where_it_was_seen(store: TreeStore, ref: TreeRef) -> None:
    on = await rest(store, ref, 2)
    await store.drop(other(ref))
    assert await after_look(store, ref) == {on: [(2, "GONE", "other 7")]}
    away = other(ref, "away")

    async def forged() -> AsyncIterator[Archived]:
        async for part in store.dump(ref):
            yield part
        yield ArchivedReferences(looks=(Look(NodeId(on), TreeId("other 7"), NodeId(2), ()),))

    await store.restore(away, forged())
    await store.invalidate(away, [on], True, NO_REQUEST)
    assert await after_look(store, away) == {}, "an import says nothing of what never was where it is"
    await store.create(other(ref), NEW, NO_REQUEST)
    await grow(store, other(ref), "x", "y")
    assert await after_look(store, away) == {}
    await store.drop(other(ref))
    assert await after_look(store, away) == {on: [(2, "GONE", "other 7")]}


async def test_content_that_was_collected_is_content_that_is_gone(store: TreeStore, ref: TreeRef) -> None:
    there = other(ref)
    on = await rest(store, ref, 3)
    await revise(store, there, 1)
    await grow(store, there, "goes on")
    assert await after_look(store, ref) == {on: [(3, "ABANDONED", "other 7")]}
    await store.collect(there, Retention(0, 1), 100)
    assert await after_look(store, ref) == {on: [(3, "REDACTED", "other 7"), (3, "ABANDONED", "other 7")]}


async def test_doubt_comes_from_tree_to_tree_and_back(store: TreeStore, ref: TreeRef) -> None:
    there = other(ref)
    await grow(store, ref, "mine")
    passed_on = await rest(store, there, 1, "tree")
    on = await rest(store, ref, passed_on)
    await store.invalidate(ref, [1], False, NO_REQUEST)
    assert await after_look(store, there) == {passed_on: [(1, "INVALIDATED", "tree")]}
    mark = (1, "INVALIDATED", "")
    assert await after_look(store, ref) == {1: [mark], on: [mark]}, "by a cause of its own"
    before = (await store.read(ref))[0].revision
    for each in (there, ref, there):
        await after_look(store, each)
    assert (await store.read(ref))[0].revision == before, "it comes to an end"


async def test_a_cold_tree_stays_cold_and_keeps_what_it_saw(store: TreeStore, ref: TreeRef) -> None:
    there = other(ref)
    on, also = await rest(store, ref, 1), await rest(store, ref, 2)
    await store.invalidate(there, [1], False, NO_REQUEST)
    await after_look(store, ref)
    await store.invalidate(ref, [on], True, NO_REQUEST)
    assert await store.freeze(there)
    assert await after_look(store, ref) == {}
    assert [tree.cold for tree in (await store.trees(ref.tenant, 9, ""))[0] if tree.tree_id == there.tree] == [True]
    assert await store.freeze(ref)
    await store.read(ref)
    assert await after_look(store, ref) == {}, "it has not forgotten what was revalidated"
    await store.drop(there)
    gone = [(on, [(1, "GONE", "other 7")]), (also, [(2, "GONE", "other 7")])]
    assert await after_look(store, ref) == dict(gone), "nor what it has seen"


async def test_a_step_may_rest_on_nodes_of_several_trees(store: TreeStore, ref: TreeRef) -> None:
    await store.create(other(ref, "third"), NEW, NO_REQUEST)
    await grow(store, other(ref, "third"), "a")
    on = [Reference(NodeId(1), tree_id=tree) for tree in ("third", "other 7")]
    await store.grow(ref, "", None, [step("on both", references=on)], False, NO_REQUEST)
    for tree in ("third", "other 7"):
        await store.invalidate(other(ref, tree), [1], False, NO_REQUEST)
    assert await after_look(store, ref) == {1: [(1, "INVALIDATED", "other 7"), (1, "INVALIDATED", "third")]}


async def test_whoever_looked_too_early_says_nothing(store: TreeStore, ref: TreeRef) -> None:
    on = await rest(store, ref, 2)
    (late,), cursor = await store.looks(ref, "")
    assert (late, cursor) == (Look(NodeId(on), TreeId("other 7"), NodeId(2), ()), "")
    await store.invalidate(other(ref), [2], False, NO_REQUEST)
    assert await after_look(store, ref)
    await store.invalidate(ref, [on], True, NO_REQUEST)
    mark = StaleMark(NodeId(0), NodeId(2), StaleReason.INVALIDATED, "other 7")
    before = (await store.read(ref))[0].revision
    assert await store.look(ref, [(late, (mark,))]) == ()
    assert (await marks(store, ref), (await store.read(ref))[0].revision) == ({}, before)


async def test_many_references_are_looked_at_turn_by_turn(
    store: TreeStore, ref: TreeRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "_NODES_PER_CALL", 2)
    await store.create(other(ref, "third"), NEW, NO_REQUEST)
    await grow(store, other(ref, "third"), "a")
    on = [await rest(store, ref, 1 + i % 3) for i in range(7)] + [await rest(store, ref, 1, "third")]
    await store.invalidate(other(ref), [1, 2, 3], False, NO_REQUEST)
    await store.invalidate(other(ref, "third"), [1], False, NO_REQUEST)
    lookout = Lookout(store)
    calls = [await lookout.turn(ref, 1) for _ in range(20)]
    assert sorted(await marks(store, ref)) == on
    assert min(calls) >= 1
    for _ in range(20):
        new = [Reference(NodeId(9 + i), tree_id="other 7") for i in range(REFERENCES_MAX)]
        on += (await store.grow(ref, "", None, [step("on none", references=new)], False, NO_REQUEST)).node_ids
    for _ in range(8):
        await lookout.turn(ref, 1)
    assert sorted(await marks(store, ref)) == on
    looks, cursor = await store.looks(ref, "")
    while cursor:
        page, cursor = await store.looks(ref, cursor)
        looks += page
    assert len({look.place for look in looks}) == 8 + 20 * REFERENCES_MAX
    assert all(look.seen for look in looks), "however many pages there are"
    lost = other(ref, "lost")
    assert await lookout.turn(lost, 4) == 0, "dropped meanwhile"
    with pytest.raises(NotFoundError):
        await store.standing(lost, [1])
