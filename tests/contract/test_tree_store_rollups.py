"""Roll-ups: one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from katsura.domain.errors import FailedPreconditionError, Reason
from katsura.domain.trees import (
    EventKind,
    Judgement,
    Node,
    Request,
    Summary,
    SummaryBody,
    SummaryStatus,
    cover_digest,
    request_of,
)
from katsura.state.contents import Scope
from katsura.state.trees import TreeRef, TreeStore, Written
from katsura.testing.tree_suite import BIG, NO_REQUEST, compress, grow, refused, revise

VALID = Judgement(status=SummaryStatus.VALID)
FAILED = Judgement(status=SummaryStatus.FAILED)


async def subgoals(store: TreeStore, ref: TreeRef, count: int) -> list[Node]:
    made = []
    for i in range(count):
        await grow(store, ref, f"s{i}", merge=False)
        made.append((await compress(store, ref)).node)
    return made


async def roll(
    store: TreeStore,
    ref: TreeRef,
    cover: Sequence[Node],
    judgement: Judgement = VALID,
    request: Request = NO_REQUEST,
) -> Written:
    level = max(n.body.level for n in cover if isinstance(n.body, Summary)) + 1
    ids = tuple(n.node_id for n in cover)
    digest = cover_digest(n.content_hash for n in cover)
    summary = Summary(level, ids[0], ids[-1], len(ids), digest, SummaryBody("all of it"), "roll-up", 1, 9, 3, ids)
    return await store.roll_up(ref, "", cover, summary, judgement, request)


async def chain(store: TreeStore, ref: TreeRef, branch: str = "") -> list[int]:
    return [int(n.node_id) for n, _ in await store.summaries(ref, branch, 100)]


async def test_a_roll_up_stands_for_its_summaries(store: TreeStore, ref: TreeRef) -> None:
    made = await subgoals(store, ref, 4)
    request = request_of("r", "roll_up", 1)
    rolled = await roll(store, ref, made[:2], request=request)
    assert await store.replayed(ref, request) == rolled
    assert (rolled.node.depth, rolled.node.parent_id) == (2, 0)
    assert isinstance(rolled.node.body, Summary)
    assert rolled.node.body.parts == (made[0].node_id, made[1].node_id)
    assert await chain(store, ref) == [made[3].node_id, made[2].node_id, rolled.node.node_id]
    await grow(store, ref, "open")
    snapshot = await store.snapshot(ref, "", BIG, 3, "", False)
    assert [s.node.node_id for s in snapshot.summaries] == list(reversed(await chain(store, ref)))
    assert [s.node.depth for s in snapshot.steps] == [5]
    assert (await store.read(ref))[1][0].summary_head == made[3].node_id
    events = [e async for e in _until(store, ref, rolled.position.revision)]
    assert (events[-1].kind, events[-1].node_ids) == (EventKind.COMPRESSED, (rolled.node.node_id,))


async def _until(store: TreeStore, ref: TreeRef, revision: int):  # type: ignore[no-untyped-def]
    async for event in store.watch(ref, "", 0, 5.0):
        yield event
        if event.position.revision == revision:
            return


async def test_roll_ups_are_rolled_up_in_turn(store: TreeStore, ref: TreeRef) -> None:
    made = await subgoals(store, ref, 5)
    first = (await roll(store, ref, made[:2])).node
    second = (await roll(store, ref, made[2:4])).node
    assert await chain(store, ref) == [made[4].node_id, second.node_id, first.node_id]
    top = (await roll(store, ref, [first, second])).node
    assert await chain(store, ref) == [made[4].node_id, top.node_id]
    assert isinstance(top.body, Summary)
    assert (top.body.level, top.depth) == (2, 4)
    snapshot = await store.snapshot(ref, "", BIG, 3, "", False)
    assert (snapshot.steps, snapshot.steps_rest.node_id) == ((), 0)


async def test_only_valid_summaries_that_follow_each_other_are_rolled_up(store: TreeStore, ref: TreeRef) -> None:
    made = await subgoals(store, ref, 4)
    gap = roll(store, ref, [made[0], made[2]])
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, gap)
    backwards = roll(store, ref, [made[1], made[0]])
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, backwards)
    await roll(store, ref, made[:2])
    again = roll(store, ref, made[:2])
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, again)
    await store.judge(ref, "", made[3], FAILED, NO_REQUEST)
    failed = roll(store, ref, made[2:])
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, failed)


async def test_a_branch_that_goes_back_into_a_roll_up_has_its_summaries_one_by_one(
    store: TreeStore, ref: TreeRef
) -> None:
    made = await subgoals(store, ref, 3)
    rolled = (await roll(store, ref, made)).node
    await store.fork(ref, "", 0, "whole", NO_REQUEST)
    revised = await revise(store, ref, made[2].parent_id and _last(made[1]))
    assert await chain(store, ref, revised.branch.name) == [made[1].node_id, made[0].node_id]
    assert await chain(store, ref, "whole") == [rolled.node_id]


async def test_a_summary_under_a_valid_roll_up_is_not_rolled_up_again_from_another_branch(
    store: TreeStore, ref: TreeRef
) -> None:
    made = await subgoals(store, ref, 2)
    rolled = (await roll(store, ref, made)).node
    await revise(store, ref, _last(made[0]))
    beside = (await subgoals(store, ref, 1))[0]
    assert await chain(store, ref) == [beside.node_id, made[0].node_id]
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, roll(store, ref, [made[0], beside]))
    await store.judge(ref, "", made[0], FAILED, NO_REQUEST)
    (found,) = await store.nodes(ref, [rolled.node_id], BIG)
    assert found.judgement is not None
    assert found.judgement.status is SummaryStatus.FAILED


def _last(node: Node) -> int:
    assert isinstance(node.body, Summary)
    return node.body.last_covered


async def test_a_summary_that_fails_takes_the_roll_ups_over_it_along(store: TreeStore, ref: TreeRef) -> None:
    made = await subgoals(store, ref, 5)
    first, second = (await roll(store, ref, made[:2])).node, (await roll(store, ref, made[2:4])).node
    top = (await roll(store, ref, [first, second])).node
    judged = await store.judge(ref, "", made[0], FAILED, NO_REQUEST)
    nodes = await store.nodes(ref, [first.node_id, second.node_id, top.node_id], BIG)
    assert [n.judgement.status.name for n in nodes if n.judgement] == ["FAILED", "VALID", "FAILED"]
    assert [n.judgement.version for n in nodes if n.judgement] == [2, 1, 2]
    assert str(made[0].node_id) in (nodes[0].judgement.note if nodes[0].judgement else "")
    assert await chain(store, ref) == [made[4].node_id, second.node_id, made[1].node_id, made[0].node_id]
    events = [e async for e in _until(store, ref, judged.position.revision)]
    assert events[-1].node_ids == (made[0].node_id, first.node_id, top.node_id)
    snapshot = await store.snapshot(ref, "", BIG, 3, "", False)
    assert [s.node.depth for s in snapshot.steps] == [1]


async def test_a_failed_roll_up_hides_nothing_and_another_may_take_its_place(store: TreeStore, ref: TreeRef) -> None:
    made = await subgoals(store, ref, 2)
    await roll(store, ref, made, FAILED)
    found = await store.summaries(ref, "", 100)
    assert [(n.node_id, covered) for n, covered in found] == [(made[1].node_id, True), (made[0].node_id, True)]
    better = (await roll(store, ref, made)).node
    assert await chain(store, ref) == [better.node_id]


async def test_a_pending_roll_up_stands_once_it_is_found_valid(store: TreeStore, ref: TreeRef) -> None:
    made = await subgoals(store, ref, 2)
    rolled = (await roll(store, ref, made, Judgement())).node
    assert await chain(store, ref) == [made[1].node_id, made[0].node_id]
    judged = await store.judge(ref, "", rolled, VALID, NO_REQUEST)
    assert judged.branch.summary_head == made[1].node_id
    assert await chain(store, ref) == [rolled.node_id]


async def test_a_roll_up_is_found_live_and_redacted_with_its_steps(store: TreeStore, ref: TreeRef) -> None:
    made = await subgoals(store, ref, 3)
    first = (await roll(store, ref, made[:2])).node
    top = (await roll(store, ref, [first, made[2]])).node
    hits = await store.search(ref, Scope.TREE, "", [b"all of it"], 0, 9, BIG, False)
    assert [(n.node_id, live) for n, live in zip(hits.nodes, hits.live, strict=True)] == [
        (top.node_id, True),
        (first.node_id, True),
    ]
    ids, _ = await store.redact(ref, [1], NO_REQUEST)
    assert ids == (1, made[0].node_id, first.node_id, top.node_id)
    (gone,) = await store.nodes(ref, [top.node_id], BIG)
    assert isinstance(gone.body, Summary)
    assert isinstance(top.body, Summary)
    assert gone.body == replace(top.body, body=SummaryBody("[redacted]"))
    assert (await store.redact(ref, [made[2].node_id], NO_REQUEST))[0] == (made[2].node_id, top.node_id)


async def judge(store: TreeStore, ref: TreeRef, node_id: int, judgement: Judgement) -> Written:
    (node,) = await store.nodes(ref, [node_id], BIG)
    return await store.judge(ref, "", node, judgement, NO_REQUEST)


async def test_a_roll_up_cannot_turn_valid_over_a_summary_that_failed(store: TreeStore, ref: TreeRef) -> None:
    made = [node.node_id for node in await subgoals(store, ref, 4)]
    over = (await roll(store, ref, await store.nodes(ref, made[:2], BIG))).node.node_id
    await judge(store, ref, made[0], FAILED)
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, judge(store, ref, over, VALID))
    assert over not in await chain(store, ref)
    await judge(store, ref, made[0], VALID)
    await judge(store, ref, over, VALID)
    assert await chain(store, ref) == [made[3], made[2], over]


async def test_of_two_roll_ups_over_one_summary_only_one_turns_valid(store: TreeStore, ref: TreeRef) -> None:
    made = [node.node_id for node in await subgoals(store, ref, 4)]
    first = (await roll(store, ref, await store.nodes(ref, made[:2], BIG), FAILED)).node.node_id
    second = (await roll(store, ref, await store.nodes(ref, made[:3], BIG))).node.node_id
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, judge(store, ref, first, VALID))
    await judge(store, ref, second, FAILED)
    await judge(store, ref, first, VALID)
    assert await chain(store, ref) == [made[3], made[2], first]
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, judge(store, ref, second, VALID))
    await judge(store, ref, made[1], FAILED)
    (node,) = await store.nodes(ref, [first], BIG)
    assert node.judgement is not None
    assert node.judgement.status is SummaryStatus.FAILED, "the failure finds the one that stands"
