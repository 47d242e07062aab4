"""References between steps, and what goes stale: one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

import pytest

from katsura.domain.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError, Reason
from katsura.domain.trees import (
    EventKind,
    Reference,
    ReferenceKind,
    Relation,
    Snapshot,
    StaleMark,
    StaleReason,
    StaleStep,
    SummaryStatus,
    request_of,
)
from katsura.state.references import REFERENCES_MAX, STALE_MAX
from katsura.state.trees import TreeRef, TreeStore
from katsura.testing.tree_suite import BIG, NO_REQUEST, compress, grow, refused, revise, step

DEPENDS, REUSES = ReferenceKind.DEPENDS_ON, ReferenceKind.REUSES


def to(*nodes: int, kind: ReferenceKind = DEPENDS) -> tuple[Reference, ...]:
    return tuple(Reference(n, kind) for n in nodes)  # type: ignore[arg-type]


async def add(store: TreeStore, ref: TreeRef, content: str, *nodes: int, branch: str = "", **fields: object) -> int:
    """Append one step that refers to nodes; its id."""
    new = step(content, references=to(*nodes), **fields)
    return (await store.grow(ref, branch, None, [new], False, NO_REQUEST)).node_ids[0]


async def marks(store: TreeStore, ref: TreeRef) -> dict[int, list[tuple[int, int, str]]]:
    """By node: seen from, cause and reason of each mark."""
    tree, _ = await store.read(ref)
    nodes = await store.nodes(ref, range(1, tree.node_count + 1), BIG)
    found = {n.node_id: [(m.seen_from, m.cause, m.reason.name) for m in n.stale] for n in nodes if n.stale}
    assert tree.stale_count == len(found)
    return found  # type: ignore[return-value]


async def snapshot(store: TreeStore, ref: TreeRef, branch: str = "") -> Snapshot:
    return await store.snapshot(ref, branch, BIG, 4, "", False)


async def test_a_step_says_what_it_refers_to_and_more_may_be_added(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    summary = (await compress(store, ref)).node.node_id
    node = await add(store, ref, "c", 1)
    other = Reference(7, REUSES, "elsewhere")  # type: ignore[arg-type]
    asked = request_of("r", "refer", 1)
    found, revision = await store.refer(ref, node, (*to(2, summary, kind=REUSES), *to(1)), asked)
    declared = Reference(1, DEPENDS, "", True)  # type: ignore[arg-type]
    assert found.references == (declared, *to(2, summary, kind=REUSES))
    assert await store.refer(ref, node, to(2), asked) == (found, revision), "a repeated request adds nothing"
    await refused(AlreadyExistsError, Reason.REQUEST_ID_REUSED, store.refer(ref, node, (), request_of("r", "x")))
    assert (await store.path(ref, "", 0, 1, BIG)).nodes[0].references == found.references
    last = (await store.grow(ref, "", None, [step("d", references=(other,))], False, NO_REQUEST)).node_ids[0]
    assert (await store.nodes(ref, [last], BIG))[0].references == (Reference(other.node_id, REUSES, "elsewhere", True),)
    left, _ = await store.unrefer(ref, node, (1, 2, 5), NO_REQUEST)
    assert left.references == (declared, *to(summary, kind=REUSES)), "what a step declared is part of it"
    events = store.watch(ref, "", revision - 1, 5.0)
    event = await anext(events)
    assert (event.kind, event.branch, event.node_ids) == (EventKind.REFERRED, "main", (node,))


async def test_references_lead_back_only_so_they_never_close_a_circle(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b", "c")
    hint = (await revise(store, ref, 2)).hint.node_id
    for from_node, to_node in ((1, 1), (1, 2), (2, 3), (hint, 1)):
        await refused(
            FailedPreconditionError, Reason.BAD_REFERENCE, store.refer(ref, from_node, to(to_node), NO_REQUEST)
        )
    await refused(FailedPreconditionError, Reason.BAD_REFERENCE, add(store, ref, "d", hint))
    error = await refused(NotFoundError, Reason.NODE_NOT_FOUND, add(store, ref, "d", 99))
    assert error.metadata == {"node": "99", "index": "0"}
    assert (await store.read(ref))[0].node_count == 4, "nothing is written where one reference is wrong"


async def test_a_step_carries_so_many_references(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, *(f"s{i}" for i in range(REFERENCES_MAX + 2)))
    last = REFERENCES_MAX + 2
    await store.refer(ref, last, to(*range(1, REFERENCES_MAX + 1)), NO_REQUEST)
    with pytest.raises(Exception, match="more than 64"):
        await store.refer(ref, last, to(REFERENCES_MAX + 1), NO_REQUEST)


async def test_who_refers_to_a_node_is_listed_page_by_page(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    made = [await add(store, ref, f"on a {i}", 1) for i in range(5)]
    await add(store, ref, "on b", 2)
    seen: list[int] = []
    after = 0
    while True:
        nodes, after = await store.dependents(ref, 1, after, 2, BIG)
        seen += [n.node_id for n in nodes]
        if not after:
            break
    assert seen == made
    few, after = await store.dependents(ref, 1, 0, 5, 1)
    assert ([n.node_id for n in few], after) == (made[:1], made[0]), "at least one, however large"
    await refused(NotFoundError, Reason.NODE_NOT_FOUND, store.dependents(ref, 99, 0, 1, BIG))


async def test_what_was_said_to_hold_no_longer_takes_along_all_that_leads_to_it(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    on_a = await add(store, ref, "on a", 1)
    far = await add(store, ref, "on that", on_a)
    await add(store, ref, "on b", 2)
    asked = request_of("i", "invalidate")
    revision = await store.invalidate(ref, [1], False, asked)
    assert await store.invalidate(ref, [1], False, asked) == revision
    mark = (0, 1, "INVALIDATED")
    assert await marks(store, ref) == {1: [mark], on_a: [mark], far: [mark]}
    later = await add(store, ref, "knowingly", far)
    assert (await marks(store, ref))[later] == [mark], "what is made on something stale is stale"
    await store.refer(ref, later, to(2), NO_REQUEST)
    await store.invalidate(ref, [on_a], True, NO_REQUEST)
    assert await marks(store, ref) == {1: [mark], far: [mark], later: [mark]}, "each is looked at by itself"
    event = await anext(store.watch(ref, "", revision - 1, 5.0))
    assert (event.kind, event.branch, event.node_ids) == (EventKind.INVALIDATED, "", (1,))
    await refused(NotFoundError, Reason.NODE_NOT_FOUND, store.invalidate(ref, [99], False, NO_REQUEST))


async def test_a_step_that_takes_anothers_place_is_seen_on_its_own_paths_only(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "book Kyoto")
    hotel = await add(store, ref, "a hotel there", 1)
    await store.fork(ref, "", 0, "side", NO_REQUEST)
    new = await add(store, ref, "book Nara", 1, relation=Relation.REPLACE, related_node_ids=(1,))
    mark = (new, 1, "REPLACED")
    assert await marks(store, ref) == {1: [mark], hotel: [mark]}, "what takes its place is not stale by it"
    stale = StaleMark(new, 1, StaleReason.REPLACED)  # type: ignore[arg-type]
    main = await snapshot(store, ref)
    assert main.stale == (StaleStep(hotel, stale, 3), StaleStep(1, stale, 3))  # type: ignore[arg-type]
    assert (await snapshot(store, ref, "side")).stale == ()
    on_main, on_side = [(await store.path(ref, b, 0, 9, BIG)).nodes for b in ("main", "side")]
    assert [bool(n.stale) for n in on_main] == [True, True, False]
    assert [bool(n.stale) for n in on_side] == [False, False], "I3: what one branch replaced holds on the other"


async def test_redacting_a_step_leaves_what_rests_on_it_stale(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "secret", "b")
    node = await add(store, ref, "quotes it", 1)
    await store.redact(ref, [1], NO_REQUEST)
    mark = (0, 1, "REDACTED")
    assert await marks(store, ref) == {1: [mark], node: [mark]}
    (found,) = await store.nodes(ref, [node], BIG)
    assert (found.redacted, len(found.references)) == (False, 1)


async def test_a_summary_that_failed_leaves_what_rests_on_it_stale(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    written = await compress(store, ref)
    node = await add(store, ref, "as the summary says", written.node.node_id)
    judgement = written.node.judgement
    assert judgement is not None
    failed = type(judgement)(SummaryStatus.FAILED)
    await store.judge(ref, "", written.node, failed, NO_REQUEST)
    mark = (0, written.node.node_id, "FAILED")
    assert await marks(store, ref) == {node: [mark]}
    again = await add(store, ref, "again", written.node.node_id)
    assert await marks(store, ref) == {node: [mark], again: [mark]}


async def test_a_revise_leaves_what_other_branches_took_from_it_stale(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "plan")
    await store.fork(ref, "", 0, "sub", NO_REQUEST)
    await store.fork(ref, "", 0, "other", NO_REQUEST)
    found = await add(store, ref, "found H-7", 1)
    kept = await add(store, ref, "a side remark", found)
    taken = await add(store, ref, "sub found H-7", kept, branch="sub")
    await store.fork(ref, "", kept, "holder", NO_REQUEST)
    await revise(store, ref, 1)
    assert await marks(store, ref) == {}, "another branch still goes on from it"
    retreat = await store.retreat(ref, "holder", None, found)
    hint = (await store.nodes(ref, [(await store.read(ref))[1][-1].hint], BIG))[0].body
    await store.revise(ref, retreat, hint, 5, "", False, NO_REQUEST)  # type: ignore[arg-type]
    mark = (0, kept, "ABANDONED")
    assert await marks(store, ref) == {kept: [mark], taken: [mark]}
    assert [s.node_id for s in (await snapshot(store, ref, "sub")).stale] == [taken]
    assert (await snapshot(store, ref, "other")).stale == ()


async def test_marks_spread_however_many_there_are(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "root")
    steps = [step(f"s{i}", references=to(1)) for i in range(250)]
    for at in (0, 125):
        await store.grow(ref, "", None, steps[at : at + 125], False, NO_REQUEST)
    far = [step(f"f{i}", references=to(2 + i)) for i in range(250)]
    for at in (0, 125):
        await store.grow(ref, "", None, far[at : at + 125], False, NO_REQUEST)
    chain = 501
    for i in range(30):
        chain = await add(store, ref, f"link {i}", chain)
    await store.invalidate(ref, [1], False, NO_REQUEST)
    assert len(await marks(store, ref)) == 531
    found = (await snapshot(store, ref)).stale
    assert [s.node_id for s in found] == list(range(531, 531 - STALE_MAX, -1)), "newest first, so many"
