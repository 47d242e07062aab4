"""Roll-ups: one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from katsura.domain.errors import FailedPreconditionError, Reason
from katsura.domain.ids import TreeId
from katsura.domain.retention import Retention
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
from katsura.memory.core.rollup import due
from katsura.state import keys
from katsura.state.archive import Archived, ArchivedEnd, line_of, part_of
from katsura.state.contents import Scope
from katsura.state.trees import TreeRef, TreeStore, Written
from katsura.state.trees_redis import RedisTreeStore
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
    branch: str = "",
) -> Written:
    level = max(n.body.level for n in cover if isinstance(n.body, Summary)) + 1
    ids = tuple(n.node_id for n in cover)
    digest = cover_digest(n.content_hash for n in cover)
    summary = Summary(level, ids[0], ids[-1], len(ids), digest, SummaryBody("all of it"), "roll-up", 1, 9, 3, ids)
    return await store.roll_up(ref, branch, cover, summary, judgement, request)


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


async def statuses(store: TreeStore, ref: TreeRef, nodes: Sequence[Node]) -> list[str]:
    found = await store.nodes(ref, [node.node_id for node in nodes], BIG)
    return [node.judgement.status.name for node in found if node.judgement]


async def three_covers(store: TreeStore, ref: TreeRef) -> tuple[Node, list[Node]]:
    """A summary, and the roll-ups over it: that of its own branch, that of one that turned off in the middle of it,
    and that of one that turned off in the middle of both, over which there is a fourth."""
    made = await subgoals(store, ref, 3)
    rolled = [(await roll(store, ref, made)).node]
    for i in (1, 2):
        await revise(store, ref, _last(made[i]) if i == 1 else _last(made[0]))
        own = await subgoals(store, ref, 2)
        assert await chain(store, ref) == [n.node_id for n in (own[1], own[0], *reversed(made[: 3 - i]))]
        rolled.append((await roll(store, ref, [*made[: 3 - i], own[0]])).node)
        assert await chain(store, ref) == [own[1].node_id, rolled[-1].node_id]
    rolled.append((await roll(store, ref, [rolled[-1], own[1]])).node)
    return made[0], rolled


async def test_a_branch_that_turned_off_in_a_roll_up_rolls_up_what_it_has_of_its_cover(
    store: TreeStore, ref: TreeRef
) -> None:
    _, rolled = await three_covers(store, ref)
    shown = [await chain(store, ref, branch.name) for branch in (await store.read(ref))[1]]
    assert [chain[-1] for chain in shown] == [rolled[0].node_id, rolled[1].node_id, rolled[3].node_id]
    assert [len(chain) for chain in shown] == [1, 2, 1]
    snapshot = await store.snapshot(ref, "", BIG, 3, "", False)
    assert [unit.node.node_id for unit in snapshot.summaries] == shown[-1]
    assert snapshot.steps == ()


async def test_a_summary_that_fails_takes_the_roll_ups_of_every_branch_along(store: TreeStore, ref: TreeRef) -> None:
    summary, rolled = await three_covers(store, ref)
    assert await statuses(store, ref, rolled) == ["VALID"] * 4
    judged = await store.judge(ref, "", summary, FAILED, NO_REQUEST)
    assert await statuses(store, ref, rolled) == ["FAILED"] * 4
    events = [e async for e in _until(store, ref, judged.position.revision)]
    assert events[-1].node_ids == (summary.node_id, *(node.node_id for node in rolled))


async def test_redaction_takes_the_roll_ups_of_every_branch_along(store: TreeStore, ref: TreeRef) -> None:
    summary, rolled = await three_covers(store, ref)
    ids, _ = await store.redact(ref, [summary.node_id], NO_REQUEST)
    assert ids == (summary.node_id, *(node.node_id for node in rolled))
    assert await statuses(store, ref, rolled) == ["FAILED"] * 4


async def test_what_nobody_reaches_of_a_turn_takes_no_roll_up_of_others_along(store: TreeStore, ref: TreeRef) -> None:
    _, rolled = await three_covers(store, ref)
    while not (await store.collect(ref, Retention(abandoned=1, revisions=1), 100)).done:
        pass
    assert await statuses(store, ref, rolled) == ["FAILED", "VALID", "VALID", "VALID"]


async def test_a_copy_of_a_tree_knows_the_roll_ups_of_every_branch(store: TreeStore, ref: TreeRef) -> None:
    summary, rolled = await three_covers(store, ref)
    copy = TreeRef(ref.tenant, TreeId("copy"))

    async def parts() -> AsyncIterator[Archived]:
        async for written in store.dump(ref):
            part = part_of(line_of(written))
            assert not isinstance(part, ArchivedEnd)
            yield part

    await store.restore(copy, parts())
    assert await chain(store, copy) == await chain(store, ref)
    (again,) = await store.nodes(copy, [summary.node_id], BIG)
    await store.judge(copy, "", again, FAILED, NO_REQUEST)
    assert await statuses(store, copy, rolled) == ["FAILED"] * 4
    assert await statuses(store, ref, rolled) == ["VALID"] * 4


async def test_forks_share_a_roll_up_and_go_on_from_it_each_by_itself(store: TreeStore, ref: TreeRef) -> None:
    await three_covers(store, ref)
    await store.fork(ref, "", 0, "side", NO_REQUEST)
    before = await chain(store, ref)
    await grow(store, ref, "more", branch="side")
    own = (await compress(store, ref, branch="side")).node
    (top,) = await store.nodes(ref, before, BIG)
    side = (await roll(store, ref, [top, own], branch="side")).node
    assert await chain(store, ref) == before
    assert await chain(store, ref, "side") == [side.node_id]


async def as_written_before(store: TreeStore, ref: TreeRef, named: Sequence[Node], over: Node) -> None:
    """As a version that knew only `rollups` left it: what it rolled up is named there, and nowhere else."""
    assert isinstance(store, RedisTreeStore)
    client = store._store.client
    await client.delete(keys.tree(ref.tenant, ref.tree, "covers"))
    for node in named:
        await client.hset(keys.tree(ref.tenant, ref.tree, "rollups"), str(node.node_id), str(over.node_id))


@pytest.mark.parametrize("store", ["valkey"], indirect=True)
async def test_roll_ups_of_a_version_that_kept_one_for_each_summary_are_found_too(
    store: TreeStore, ref: TreeRef
) -> None:
    made = await subgoals(store, ref, 3)
    old = (await roll(store, ref, made)).node
    await as_written_before(store, ref, made, old)
    await revise(store, ref, _last(made[1]))
    new = (await roll(store, ref, made[:2])).node
    assert [(await chain(store, ref, b.name))[-1] for b in (await store.read(ref))[1]] == [old.node_id, new.node_id]
    await store.judge(ref, "", made[1], FAILED, NO_REQUEST)
    assert await statuses(store, ref, [old, new]) == ["FAILED", "FAILED"]


async def pursue(store: TreeStore, ref: TreeRef, count: int, fanout: int) -> None:
    """Subgoals, rolled up as Compress does it."""
    for _ in range(count):
        await grow(store, ref, "does it", merge=False)
        cover = await store.cover(ref, "", None, 0)
        covered = (await store.path(ref, "", cover.last, cover.count, BIG)).nodes
        body = SummaryBody("done")
        digest = cover_digest([n.content_hash for n in covered])
        made = Summary(0, covered[0].node_id, cover.last, cover.count, digest, body, "test", 1, cover.tokens, 4)
        await store.summarise(ref, cover, None, made, VALID, NO_REQUEST)
        while parts := due(await store.summaries(ref, "", 500), fanout):
            await roll(store, ref, parts)


@pytest.mark.parametrize(("first", "turn", "times"), [(40, 1, 12), (40, 2, 12), (40, 5, 12), (40, 7, 12), (900, 50, 3)])
async def test_turning_back_again_and_again_leaves_a_context_bounded_in_subgoals(
    store: TreeStore, ref: TreeRef, first: int, turn: int, times: int
) -> None:
    fanout = 3
    await pursue(store, ref, first, fanout)
    for _ in range(times):
        branch = (await store.read(ref))[0].default_branch
        head = next(b.head for b in (await store.read(ref))[1] if b.name == branch)
        page = await store.path(ref, "", head, turn + 1, BIG)
        await revise(store, ref, page.nodes[0].node_id)
        await pursue(store, ref, turn + 4, fanout)
        found = await store.summaries(ref, "", 500)
        shown = [node.body.level for node, _ in found if isinstance(node.body, Summary)]
        assert shown == sorted(shown), "what is older was rolled up further"
        assert max(Counter(shown).values()) < 2 * fanout, "as many of a level as where nobody turned back"
        assert fanout ** max(shown) <= page.branch.depth
        assert not any(tried for _, tried in found)


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
    assert [(n.node_id, covered) for n, covered in found] == [(made[1].node_id, True), (made[0].node_id, False)]
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
    second = (await roll(store, ref, await store.nodes(ref, made[:2], BIG))).node.node_id
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, judge(store, ref, first, VALID))
    await judge(store, ref, second, FAILED)
    await judge(store, ref, first, VALID)
    assert await chain(store, ref) == [made[3], made[2], first]
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, judge(store, ref, second, VALID))
    await judge(store, ref, made[1], FAILED)
    assert await statuses(store, ref, await store.nodes(ref, [first], BIG)) == ["FAILED"], "what stands is found"


async def test_a_roll_up_that_turns_valid_stands_over_one_that_ends_in_its_middle(
    store: TreeStore, ref: TreeRef
) -> None:
    made = [node.node_id for node in await subgoals(store, ref, 4)]
    first = (await roll(store, ref, await store.nodes(ref, made[:2], BIG), FAILED)).node.node_id
    second = (await roll(store, ref, await store.nodes(ref, made[:3], BIG))).node.node_id
    await judge(store, ref, first, VALID)
    assert await chain(store, ref) == [made[3], second]
    await judge(store, ref, second, FAILED)
    assert await chain(store, ref) == [made[3], made[2], first]
    await judge(store, ref, second, VALID)
    assert await chain(store, ref) == [made[3], second]
    await judge(store, ref, second, FAILED)
    assert await chain(store, ref) == [made[3], made[2], first], "it ends where it did"
    await judge(store, ref, second, VALID)
    judged = await judge(store, ref, made[0], FAILED)
    assert await statuses(store, ref, await store.nodes(ref, [first, second], BIG)) == ["FAILED", "FAILED"]
    assert [e async for e in _until(store, ref, judged.position.revision)][-1].node_ids == (made[0], first, second)
