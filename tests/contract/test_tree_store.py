"""One suite for every store of memory trees: the in-memory twin and a real Valkey."""

from __future__ import annotations

import asyncio

from katsura.domain.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    NotFoundError,
    OutOfRangeError,
    Reason,
)
from katsura.domain.ids import NodeId, TenantId, TreeId
from katsura.domain.trees import (
    Attachment,
    BranchState,
    Cost,
    Effect,
    Hint,
    Judgement,
    Request,
    Step,
    StepKind,
    Summary,
    SummaryBody,
    SummaryStatus,
    ToolCall,
    request_of,
)
from katsura.state.trees import Grown, NewStep, TreeRef, TreeStore, page_after
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


async def test_a_new_tree_is_read_back_as_it_was_made(store: TreeStore, ref: TreeRef) -> None:
    tree, branches = await store.read(ref)
    assert (tree.goal, tree.pins, tree.policy, tree.labels) == (NEW.goal, NEW.pins, NEW.policy, NEW.labels)
    assert (tree.revision, tree.node_count, tree.default_branch) == (1, 0, "main")
    assert [b.name for b in branches] == ["main"]
    assert (branches[0].head, branches[0].state) == (0, BranchState.ACTIVE)


async def test_creating_a_tree_twice_needs_the_same_request(store: TreeStore) -> None:
    ref = new_ref()
    request = request_of("r", "create", NEW)
    first = await store.create(ref, NEW, request)
    await grow(store, ref, "a")
    assert await store.create(ref, NEW, request) == first
    await refused(AlreadyExistsError, Reason.REQUEST_ID_REUSED, store.create(ref, NEW, Request("r", "x" * 32)))
    await refused(AlreadyExistsError, Reason.TREE_EXISTS, store.create(ref, NEW, NO_REQUEST))
    await refused(AlreadyExistsError, Reason.TREE_EXISTS, store.create(ref, NEW, Request("q", request.digest)))


async def test_another_tenants_tree_answers_exactly_as_an_unknown_one(store: TreeStore, ref: TreeRef) -> None:
    other = TreeRef(TenantId("somebody-else"), ref.tree)
    unknown = TreeRef(ref.tenant, TreeId("unknown"))
    theirs = await refused(NotFoundError, Reason.TREE_NOT_FOUND, store.read(other))
    nobodys = await refused(NotFoundError, Reason.TREE_NOT_FOUND, store.read(unknown))
    assert theirs.message == nobodys.message.replace("unknown", ref.tree)


async def test_names_cannot_forge_another_tenants_tree(store: TreeStore, ref: TreeRef) -> None:
    await refused(NotFoundError, Reason.TREE_NOT_FOUND, store.read(TreeRef(TenantId(f"{ref.tenant}/tree"), TreeId(""))))


async def test_steps_come_back_in_order_with_every_field(store: TreeStore, ref: TreeRef) -> None:
    full = Step(
        content="line\nÜ \U0001f332",
        role="tool",
        kind=StepKind.TOOL_CALL,
        client_step_id="c1",
        tool_call=ToolCall("id", "search", '{"q":1}'),
        related_node_ids=(NodeId(1),),
        effect=Effect.REVERSIBLE,
        undo_ref="undo",
        cost=Cost(1, 2, 3, 4),
        attributes={"k": "v"},
        opaque=b"\x00\n\xff",
        attachments=(Attachment("t", 3, "image/png", b"\x89\n"), Attachment("", 0, "", b"")),
        agent_id="agent",
    )
    await grow(store, ref, "first")
    grown = await store.grow(ref, "", None, [NewStep(full, 7)], True, NO_REQUEST)
    page = await store.path(ref, "", 0, 10, BIG)
    assert [n.body for n in page.nodes] == [Step("first"), full]
    (node,) = await store.nodes(ref, grown.node_ids, BIG)
    assert node == page.nodes[1]
    assert (node.depth, node.parent_id, node.tokens, node.path_tokens) == (2, 1, 7, 17)
    assert (node.birth_branch, node.revision) == ("main", 3)


async def test_content_hashes_chain(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    await grow(store, ref, "b", merge=False)
    page = await store.path(ref, "", 0, 10, BIG)
    assert len({n.content_hash for n in page.nodes}) == 3
    assert all(len(n.content_hash) == 32 for n in page.nodes)


async def test_a_write_with_a_stale_head_is_refused_with_the_head(store: TreeStore, ref: TreeRef) -> None:
    await store.grow(ref, "", 0, [step("a")], True, NO_REQUEST)
    error = await refused(ConflictError, Reason.HEAD_MOVED, store.grow(ref, "", 0, [step("b")], True, NO_REQUEST))
    assert error.metadata["head"] == "1"
    assert await contents(store, ref) == ["a"]


async def test_of_two_writers_on_one_branch_one_wins(store: TreeStore, ref: TreeRef) -> None:
    attempts = [store.grow(ref, "", 0, [step(f"w{i}")], True, NO_REQUEST) for i in range(20)]
    results = await asyncio.gather(*attempts, return_exceptions=True)
    assert sum(isinstance(r, Grown) for r in results) == 1
    assert all(isinstance(r, ConflictError) for r in results if not isinstance(r, Grown))
    assert len(await contents(store, ref)) == 1


async def test_unconditional_writers_all_get_in(store: TreeStore, ref: TreeRef) -> None:
    await asyncio.gather(*(grow(store, ref, f"w{i}") for i in range(20)))
    assert sorted(await contents(store, ref)) == sorted(f"w{i}" for i in range(20))
    tree, _ = await store.read(ref)
    assert (tree.revision, tree.node_count) == (21, 20)


async def test_writers_on_two_branches_never_disturb_each_other(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "root")
    await store.fork(ref, "", 0, "side", NO_REQUEST)
    for head_main, head_side in [(1, 1), (2, 3), (4, 5)]:
        await store.grow(ref, "main", head_main, [step(f"m{head_main}")], True, NO_REQUEST)
        await store.grow(ref, "side", head_side, [step(f"s{head_side}")], True, NO_REQUEST)
    assert await contents(store, ref, "main") == ["root", "m1", "m2", "m4"]
    assert await contents(store, ref, "side") == ["root", "s1", "s3", "s5"]


async def test_a_repeated_request_answers_the_same_once(store: TreeStore, ref: TreeRef) -> None:
    request = request_of("r1", "grow", "a")
    first = await store.grow(ref, "", 0, [step("a")], True, request)
    await grow(store, ref, "b")
    assert await store.grow(ref, "", 0, [step("a")], True, request) == first
    assert await contents(store, ref) == ["a", "b"]
    other = store.grow(ref, "", 0, [step("z")], True, request_of("r1", "grow", "z"))
    await refused(AlreadyExistsError, Reason.REQUEST_ID_REUSED, other)


async def test_a_chain_goes_on_from_a_repeated_answer(store: TreeStore, ref: TreeRef) -> None:
    request = request_of("r1", "grow", "a")
    for _ in range(2):
        grown = await store.grow(ref, "", None, [step("a")], True, request)
    await store.grow(ref, "", grown.branch.head, [step("b")], True, NO_REQUEST)
    assert await contents(store, ref) == ["a", "b"]


async def test_only_the_newest_requests_are_remembered(store: TreeStore, ref: TreeRef) -> None:
    for i in range(LIMITS.replays + 1):
        await store.grow(ref, "", i, [step(f"s{i}")], True, request_of(f"r{i}", "grow", i))
    await store.grow(ref, "", 1, [step("s1")], True, request_of("r1", "grow", 1))
    forgotten = store.grow(ref, "", 0, [step("s0")], True, request_of("r0", "grow", 0))
    await refused(ConflictError, Reason.HEAD_MOVED, forgotten)


async def test_a_client_step_id_makes_one_step_per_branch(store: TreeStore, ref: TreeRef) -> None:
    once = step("a", client_step_id="c1")
    first = await store.grow(ref, "", 0, [once], True, NO_REQUEST)
    again = await store.grow(ref, "", 0, [once], True, NO_REQUEST)
    assert (again.node_ids, again.merged, again.position) == (first.node_ids, (True,), first.position)
    mixed = await store.grow(ref, "", 1, [once, step("b", client_step_id="c2")], True, NO_REQUEST)
    assert (mixed.node_ids, mixed.merged) == ((1, 2), (True, False))
    await store.fork(ref, "", 0, "side", NO_REQUEST)
    side = await store.grow(ref, "side", None, [once], True, NO_REQUEST)
    assert side.merged == (False,)
    error = await refused(
        AlreadyExistsError,
        Reason.REQUEST_ID_REUSED,
        store.grow(ref, "", None, [step("b3"), step("other", client_step_id="c1")], True, NO_REQUEST),
    )
    assert error.field == "steps[1].client_step_id"


async def test_identical_children_are_walked_onto(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b", "c")
    await store.fork(ref, "", 1, "side", NO_REQUEST)
    walked = await grow(store, ref, "b", "c", "d", branch="side")
    assert (walked.node_ids, walked.merged) == ((2, 3, 4), (True, True, False))
    assert await contents(store, ref, "side") == ["a", "b", "c", "d"]
    only_walk = await store.fork(ref, "", 1, "third", NO_REQUEST)
    moved = await grow(store, ref, "b", branch="third")
    assert (moved.merged, moved.branch.head, moved.position.revision) == ((True,), 2, only_walk[1].revision + 1)


async def test_steps_that_differ_or_had_an_effect_are_never_merged(store: TreeStore, ref: TreeRef) -> None:
    await store.grow(ref, "", None, [step("buy", effect=Effect.IRREVERSIBLE)], True, NO_REQUEST)
    await grow(store, ref, "x")
    for name, new, merge in [
        ("b2", step("buy", effect=Effect.IRREVERSIBLE), True),
        ("b3", step("buy", role="assistant"), True),
    ]:
        await store.fork(ref, "main", -1, name, NO_REQUEST)
        grown = await store.grow(ref, name, None, [new], merge, NO_REQUEST)
        assert grown.merged == (False,)
    await store.fork(ref, "main", 1, "b4", NO_REQUEST)
    assert (await grow(store, ref, "x", branch="b4", merge=False)).merged == (False,)


async def test_unknown_names_are_not_found(store: TreeStore, ref: TreeRef) -> None:
    await refused(NotFoundError, Reason.BRANCH_NOT_FOUND, grow(store, ref, "a", branch="nope"))
    await refused(NotFoundError, Reason.NODE_NOT_FOUND, store.nodes(ref, [7], BIG))
    await refused(NotFoundError, Reason.NODE_NOT_FOUND, store.path(ref, "", 7, 10, BIG))
    await refused(NotFoundError, Reason.NODE_NOT_FOUND, store.fork(ref, "", 7, "", NO_REQUEST))
    related = store.grow(ref, "", None, [step("a", related_node_ids=(NodeId(9),))], True, NO_REQUEST)
    await refused(NotFoundError, Reason.NODE_NOT_FOUND, related)


async def test_a_path_is_paged_from_the_head(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, *(f"s{i}" for i in range(1, 8)))
    seen, end = [], 0
    while True:
        page = await store.path(ref, "", end, 3, BIG)
        seen.append([n.node_id for n in page.nodes])
        end = page.next_end
        if not end:
            break
    assert seen == [[5, 6, 7], [2, 3, 4], [1]]
    above = await store.path(ref, "", 6, 100, BIG, above=4)
    assert [n.node_id for n in above.nodes] == [5, 6]


async def test_a_page_ends_early_where_its_bytes_would_be_too_many(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, *("x" * 1000 + str(i) for i in range(5)))
    page = await store.path(ref, "", 0, 100, 2500)
    assert [n.node_id for n in page.nodes] == [4, 5]
    assert page.next_end == 3
    one = await store.path(ref, "", 0, 100, 10)
    assert [n.node_id for n in one.nodes] == [5]
    error = await refused(OutOfRangeError, Reason.BODY_TOO_LARGE, store.nodes(ref, [1, 2, 3], 2500))
    assert error.metadata["fits"] == "2"


async def test_every_step_of_a_long_forked_path_can_be_reached(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, *(f"s{i}" for i in range(100)))
    await store.fork(ref, "", 37, "side", NO_REQUEST)
    await grow(store, ref, *(f"t{i}" for i in range(60)), branch="side")
    expected = [*range(1, 38), *range(101, 161)]
    for depth, node_id in enumerate(expected, start=1):
        page = await store.path(ref, "side", node_id, 1, BIG)
        assert [(n.node_id, n.depth) for n in page.nodes] == [(node_id, depth)]
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, store.path(ref, "side", 38, 1, BIG))
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, store.path(ref, "main", 101, 1, BIG))


async def test_a_summary_takes_its_segment_out_of_the_raw_steps(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b", "c")
    written = await compress(store, ref, last=2)
    assert (written.branch.summary_head, written.branch.boundary, written.branch.raw_tokens) == (4, 2, 10)
    assert isinstance(written.node.body, Summary)
    assert (written.node.body.first_covered, written.node.depth, written.node.parent_id) == (1, 2, 0)
    snapshot = await store.snapshot(ref, "", BIG, 3, "", False)
    assert [s.node.node_id for s in snapshot.steps] == [3]
    assert [s.node.node_id for s in snapshot.summaries] == [4]
    assert await contents(store, ref) == ["a", "b", "c"]
    cover = await store.cover(ref, "", None, 0)
    assert (cover.base, cover.last, cover.count) == (2, 3, 1)
    assert cover.previous == written.node


async def test_a_summary_that_is_not_valid_hides_nothing(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    await compress(store, ref, last=1)
    pending = await compress(store, ref, SummaryStatus.PENDING)
    await grow(store, ref, "c")
    snapshot = await store.snapshot(ref, "", BIG, 3, "", False)
    assert [s.node.node_id for s in snapshot.steps] == [2, 5]
    assert [s.node.node_id for s in snapshot.summaries] == [3, 4]
    assert pending.branch.boundary == 2


async def test_a_failed_summary_is_kept_but_never_becomes_the_branchs(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    failed = await compress(store, ref, SummaryStatus.FAILED)
    assert (failed.branch.summary_head, failed.branch.boundary) == (0, 0)
    cover = await store.cover(ref, "", None, 0)
    assert (cover.versions, cover.previous) == (1, None)
    again = await compress(store, ref)
    assert isinstance(again.node.body, Summary)
    assert (again.node.body.version, again.branch.summary_head) == (2, again.node.node_id)


async def test_a_late_failure_brings_the_raw_segment_back(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    valid = await compress(store, ref)
    await store.judge(ref, "", valid.node, Judgement(status=SummaryStatus.FAILED, note="wrong"), NO_REQUEST)
    snapshot = await store.snapshot(ref, "", BIG, 3, "", False)
    assert [s.node.node_id for s in snapshot.steps] == [1, 2]
    assert snapshot.summaries[0].node.judgement is not None
    assert snapshot.summaries[0].node.judgement.note == "wrong"
    await grow(store, ref, "c")
    cover = await store.cover(ref, "", None, 0)
    assert (cover.base, cover.count, cover.previous) == (0, 3, None)


async def test_a_summary_that_turns_valid_becomes_the_branchs(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    failed = await compress(store, ref, SummaryStatus.FAILED)
    judged = await store.judge(ref, "", failed.node, Judgement(status=SummaryStatus.VALID), NO_REQUEST)
    assert (judged.branch.summary_head, judged.branch.boundary) == (failed.node.node_id, 2)


async def test_a_judgement_made_of_an_older_one_is_refused(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    valid = await compress(store, ref)
    await store.judge(ref, "", valid.node, Judgement(status=SummaryStatus.FAILED), NO_REQUEST)
    late = store.judge(ref, "", valid.node, Judgement(status=SummaryStatus.VALID), NO_REQUEST)
    await refused(ConflictError, Reason.HEAD_MOVED, late)


async def test_a_summary_planned_on_an_older_branch_is_refused(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    cover = await store.cover(ref, "", None, 0)
    await compress(store, ref, last=1)
    summary = Summary(0, NodeId(1), NodeId(2), 2, b"d" * 32, SummaryBody("x"), "t", 1, 1, 1)
    stale = store.summarise(ref, cover, None, summary, Judgement(), NO_REQUEST)
    await refused(ConflictError, Reason.HEAD_MOVED, stale)


async def test_nothing_left_to_cover_is_a_bad_boundary(store: TreeStore, ref: TreeRef) -> None:
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, store.cover(ref, "", None, 0))
    await grow(store, ref, "a", "b")
    await compress(store, ref)
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, store.cover(ref, "", None, 0))
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, store.cover(ref, "", None, 1))


async def test_revise_leaves_the_old_branch_and_goes_back(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await compress(store, ref)
    await store.grow(
        ref, "", None, [step("buy", effect=Effect.REVERSIBLE, undo_ref="refund"), step("look")], True, NO_REQUEST
    )
    await compress(store, ref)
    revised = await revise(store, ref, 1)
    assert (revised.branch.head, revised.branch.boundary, revised.branch.hint) == (1, 1, revised.hint.node_id)
    assert revised.branch.summary_head == 2
    assert revised.abandoned.state is BranchState.ABANDONED
    assert [(e.node_id, e.effect, e.undo_ref, e.excerpt) for e in revised.effects] == [
        (3, Effect.REVERSIBLE, "refund", "buy")
    ]
    tree, branches = await store.read(ref)
    assert tree.default_branch == revised.branch.name
    assert [b.state for b in branches] == [BranchState.ABANDONED, BranchState.ACTIVE]
    await refused(FailedPreconditionError, Reason.BRANCH_NOT_WRITABLE, grow(store, ref, "z", branch="main"))
    assert await contents(store, ref, "main") == ["a", "buy", "look"]
    await grow(store, ref, "c")
    assert await contents(store, ref) == ["a", "c"]


async def test_hints_stay_with_the_path_they_were_left_on(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    first = await revise(store, ref, 1)
    await grow(store, ref, "c")
    second = await revise(store, ref, 1)
    assert isinstance(second.hint.body, Hint)
    assert second.hint.body.previous_hint == first.hint.node_id
    snapshot = await store.snapshot(ref, "", BIG, 5, "", False)
    assert [s.node.node_id for s in snapshot.hints] == [first.hint.node_id, second.hint.node_id]
    capped = await store.snapshot(ref, "", BIG, 1, "", False)
    assert [s.node.node_id for s in capped.hints] == [second.hint.node_id]
    assert capped.hints_rest.node_id == first.hint.node_id
    root, _ = await store.fork(ref, "", -1, "", NO_REQUEST)
    assert root.hint == 0


async def test_revise_to_nowhere_is_refused(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, store.retreat(ref, "", None, 2))
    await refused(NotFoundError, Reason.NODE_NOT_FOUND, store.retreat(ref, "", None, 9))
    await refused(ConflictError, Reason.HEAD_MOVED, store.retreat(ref, "", 1, 0))
    nothing = await revise(store, ref, 0)
    assert (nothing.branch.head, nothing.branch.depth) == (0, 0)


async def test_revise_is_answered_the_same_again(store: TreeStore, ref: TreeRef) -> None:
    await store.grow(ref, "", None, [step("a"), step("buy", effect=Effect.IRREVERSIBLE)], True, NO_REQUEST)
    request = request_of("r1", "revise", 1)
    assert await store.replayed(ref, request) is None
    first = await revise(store, ref, 1, request)
    await grow(store, ref, "c")
    assert await store.replayed(ref, request) == first
    await refused(AlreadyExistsError, Reason.REQUEST_ID_REUSED, store.replayed(ref, request_of("r1", "revise", 2)))


async def test_a_fork_shares_the_past_and_nothing_else(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b", "c")
    await compress(store, ref, last=2)
    request = request_of("f", "fork")
    branch, position = await store.fork(ref, "", 1, "side", request)
    assert (branch.head, branch.depth, branch.summary_head, branch.raw_tokens) == (1, 1, 0, 10)
    assert (branch.parent_branch, branch.fork_node) == ("main", 1)
    assert await store.fork(ref, "", 1, "side", request) == (branch, position)
    later, _ = await store.fork(ref, "", 3, "", NO_REQUEST)
    assert (later.name, later.boundary, later.raw_tokens) == ("b3", 2, 10)
    empty, _ = await store.fork(ref, "", -1, "", NO_REQUEST)
    assert (empty.name, empty.head) == ("b4", 0)
    await grow(store, ref, "s", branch="side")
    assert await contents(store, ref) == ["a", "b", "c"]
    await refused(AlreadyExistsError, Reason.BRANCH_EXISTS, store.fork(ref, "", 0, "side", NO_REQUEST))


async def test_the_first_attached_ids_stay(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    assert await store.attach(ref, "tok", {0: [9, 9], 1: [1, 2, 3]}) == ()
    assert await store.attach(ref, "tok", {1: [7], 2: [4]}) == (1,)
    await store.attach(ref, "other", {1: [5]})
    snapshot = await store.snapshot(ref, "", BIG, 3, "tok", True)
    assert [(s.count, s.token_ids) for s in snapshot.steps] == [(3, (1, 2, 3)), (1, (4,))]
    assert (snapshot.root_count, snapshot.root_ids) == (2, (9, 9))
    counts = await store.snapshot(ref, "", BIG, 3, "tok", False)
    assert [(s.count, s.token_ids) for s in counts.steps] == [(3, ()), (1, ())]
    unknown = await store.snapshot(ref, "", BIG, 3, "third", True)
    assert [s.count for s in unknown.steps] == [None, None]
    (node,) = await store.nodes(ref, [1], BIG)
    assert node.tokenized_for == ("other", "tok")
    await refused(NotFoundError, Reason.NODE_NOT_FOUND, store.attach(ref, "tok", {99: [1]}))


async def test_a_snapshot_stops_where_its_tokens_are_spent(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, *(f"s{i}" for i in range(10)))
    snapshot = await store.snapshot(ref, "", 25, 3, "", False)
    assert [s.node.node_id for s in snapshot.steps] == [8, 9, 10]
    assert (snapshot.steps_rest.node_id, snapshot.steps_rest.tokens) == (7, 70)


async def test_a_cut_is_remembered_without_a_commit(store: TreeStore, ref: TreeRef) -> None:
    before, (branch,) = await store.read(ref)
    await store.note_cut(ref, branch.name, 3)
    after, (branch,) = await store.read(ref)
    assert (after.revision, branch.cut) == (before.revision, 3)


async def test_trees_are_listed_newest_first_page_by_page(store: TreeStore) -> None:
    tenant = new_ref().tenant
    for name in "abcde":
        await store.create(TreeRef(tenant, TreeId(name)), NEW, NO_REQUEST)
    await store.drop(TreeRef(tenant, TreeId("c")))
    first, token = await store.trees(tenant, 2, "")
    second, rest = await store.trees(tenant, 2, token)
    third, end = await store.trees(tenant, 2, rest)
    assert len(first) == 2
    listed = [t.tree_id for t in (*first, *second, *third)]
    assert sorted(listed) == ["a", "b", "d", "e"]
    assert [t.create_ms for t in (*first, *second)] == sorted((t.create_ms for t in (*first, *second)), reverse=True)
    assert (third, end) == ((), "")
    assert (await store.trees(tenant, 9, page_after(first[0])))[0] == (first[1], *second)
    assert (await store.trees(TenantId("nobody"), 10, ""))[0] == ()


async def test_a_dropped_tree_is_gone_and_its_name_free(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    await store.attach(ref, "tok", {1: [1]})
    await store.drop(ref)
    await refused(NotFoundError, Reason.TREE_NOT_FOUND, store.read(ref))
    await refused(NotFoundError, Reason.TREE_NOT_FOUND, store.drop(ref))
    await store.create(ref, NEW, NO_REQUEST)
    grown = await store.grow(ref, "", 0, [step("a")], True, NO_REQUEST)
    assert (grown.node_ids, grown.merged) == ((1,), (False,))
    snapshot = await store.snapshot(ref, "", BIG, 3, "tok", True)
    assert snapshot.steps[0].count is None
