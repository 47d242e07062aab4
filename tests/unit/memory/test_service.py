"""The operations over the in-memory store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from katsura.domain.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    KatsuraError,
    NotFoundError,
    OutOfRangeError,
    Reason,
)
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import (
    Branch,
    Durability,
    Effect,
    EventKind,
    Hint,
    Judgement,
    Node,
    Request,
    Step,
    Summary,
    SummaryBody,
    SummaryStatus,
    TreePolicy,
    Verdict,
)
from katsura.memory import service
from katsura.memory.core import limits
from katsura.memory.core.assemble import SegmentKind
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.memory.summaries import Outside
from katsura.state.contents import TreeChange
from katsura.state.trees import Cover, Event, Limits, TreeRef, Written
from katsura.state.trees_twin import TwinTreeStore

TENANT = TenantId("acme")
REF = TreeRef(TENANT, TreeId("tree"))
INVOICE = Step("Invoice INV-7 is 1,200.50 USD, due 2026-11-21.")


@pytest.fixture
async def memory() -> Memory:
    memory = Memory(TwinTreeStore(Limits()), lambda: "fresh", heartbeat_s=5.0)
    await memory.create_tree(TENANT, "", "tree", "goal", (), TreePolicy(raw_token_limit=40), {})
    return memory


def write(head: int | None = None, request_id: str = "", branch: str = "") -> Write:
    return Write(request_id, REF, branch, head, head is None)


async def compress(memory: Memory, body: SummaryBody | None = None, **more: object) -> Written:
    fields: dict[str, object] = {
        "last_covered": 0,
        "compressor": "",
        "validators": (),
        "proceed": False,
        "write": write(),
        **more,
    }
    return await memory.compress(body=body, **fields)  # type: ignore[arg-type]


def judgement_of(node: Node) -> Judgement:
    assert node.judgement is not None
    return node.judgement


async def fails(kind: type[KatsuraError], field: str | None, attempt: object) -> KatsuraError:
    with pytest.raises(kind) as caught:
        await attempt  # type: ignore[misc]
    assert caught.value.field == field
    return caught.value


async def test_a_tree_without_a_name_is_named_after_its_request(memory: Memory) -> None:
    made = [await memory.create_tree(TENANT, "r1", "", "g", (), TreePolicy(), {}) for _ in range(2)]
    assert made[0] == made[1]
    other, _ = await memory.create_tree(TENANT, "r2", "", "g", (), TreePolicy(), {})
    assert other.tree_id != made[0][0].tree_id
    unnamed, _ = await memory.create_tree(TENANT, "", "", "g", (), TreePolicy(), {})
    assert unnamed.tree_id == "fresh"
    await fails(AlreadyExistsError, "request_id", memory.create_tree(TENANT, "r1", "", "other", (), TreePolicy(), {}))


async def test_a_tree_gets_the_defaults_it_left_out(memory: Memory) -> None:
    tree, _ = await memory.create_tree(TENANT, "", "", "", (), TreePolicy(), {})
    assert tree.policy.validators == ("fidelity", "outcome")
    assert (tree.policy.compressor, tree.policy.durability) == ("extractive", Durability.STRICT)


async def test_bad_names_of_trees_are_refused(memory: Memory) -> None:
    for name in ("with space", "-x", "x" * 200, "a/b"):
        await fails(InvalidArgumentError, "tree_id", memory.create_tree(TENANT, "", name, "", (), TreePolicy(), {}))


async def test_a_write_says_which_head_it_has_seen(memory: Memory) -> None:
    missing = Write("", REF, "", None, False)
    error = await fails(InvalidArgumentError, "expected_head", memory.grow(missing, [INVOICE], True))
    assert error.reason is Reason.HEAD_REQUIRED
    await fails(InvalidArgumentError, "unconditional", memory.grow(Write("", REF, "", 0, True), [INVOICE], True))
    await fails(InvalidArgumentError, "expected_head", memory.grow(Write("", REF, "", -1, False), [INVOICE], True))


async def test_grow_says_when_a_compression_is_due(memory: Memory) -> None:
    first = await memory.grow(write(0), [INVOICE], True)
    second = await memory.grow(write(1), [INVOICE, INVOICE], True)
    assert (first.compress_due, second.compress_due) == (False, True)


async def test_compress_writes_and_checks_a_summary_in_one_call(memory: Memory) -> None:
    await memory.grow(write(), [INVOICE, Step("paid", role="assistant")], True)
    written = await compress(memory)
    summary = written.node.body
    assert isinstance(summary, Summary)
    assert (summary.made_by, summary.covered_count) == ("extractive", 2)
    judgement = judgement_of(written.node)
    assert (judgement.status, judgement.fidelity, judgement.outcome) == (
        SummaryStatus.VALID,
        Verdict.PASS,
        Verdict.UNKNOWN,
    )
    assert [c.validator for c in judgement.checks] == ["fidelity", "outcome"]
    assert written.branch.summary_head == written.node.node_id
    assembled = await memory.assemble_context(REF, "", 500, 100, "", False)
    assert [s.kind for s in assembled.assembly.segments] == [SegmentKind.PIN, SegmentKind.SUMMARY]


@pytest.mark.parametrize("planted", ["Paid INV-8.", "Paid 1,200.51 USD.", "Paid on 2026-11-22."])
async def test_a_planted_mistake_fails_fidelity_and_is_not_shown(memory: Memory, planted: str) -> None:
    await memory.grow(write(), [INVOICE], True)
    written = await compress(memory, SummaryBody(planted))
    judgement = judgement_of(written.node)
    assert (judgement.status, judgement.fidelity) == (SummaryStatus.FAILED, Verdict.FAIL)
    assert written.branch.summary_head == 0
    assembled = await memory.assemble_context(REF, "", 500, 0, "", False)
    assert [s.content for s in assembled.assembly.segments if s.kind is SegmentKind.STEP] == [INVOICE.content]
    good = await compress(memory, SummaryBody("Paid INV-7."))
    assert isinstance(good.node.body, Summary)
    assert (good.node.body.version, good.node.body.made_by) == (2, "agent")


async def test_obligations_are_carried_over_summaries(memory: Memory) -> None:
    await memory.grow(write(), [Step("a", attributes={"obligation": "send R-1"})], True)
    await compress(memory)
    await memory.grow(write(), [Step("b")], True)
    forgot = await compress(memory, SummaryBody("did b"))
    assert judgement_of(forgot.node).status is SummaryStatus.FAILED
    carried = await compress(memory)
    assert isinstance(carried.node.body, Summary)
    assert carried.node.body.body.open_obligations == ("send R-1",)


async def test_a_repeated_compress_answers_the_same_even_after_more_steps(memory: Memory) -> None:
    await memory.grow(write(), [INVOICE], True)
    first = await compress(memory, write=write(request_id="r1"))
    await memory.grow(write(), [INVOICE], True)
    assert await compress(memory, write=write(request_id="r1")) == first
    reused = compress(memory, SummaryBody("x"), write=write(request_id="r1"))
    await fails(AlreadyExistsError, "request_id", reused)


async def test_bad_compressions_are_refused_by_field(memory: Memory) -> None:
    await memory.grow(write(), [INVOICE], True)
    await fails(InvalidArgumentError, "summary_body.text", compress(memory, SummaryBody("")))
    await fails(InvalidArgumentError, "compressor", compress(memory, compressor="magic"))
    await fails(InvalidArgumentError, "compressor", compress(memory, SummaryBody("x"), compressor="extractive"))
    await fails(InvalidArgumentError, "validators[0]", compress(memory, validators=("magic",)))
    await fails(InvalidArgumentError, "on_pending", compress(memory, validators=("external",)))
    await fails(InvalidArgumentError, "last_covered", compress(memory, last_covered=-1))
    error = await fails(NotFoundError, None, compress(memory, last_covered=77))
    assert error.reason is Reason.NODE_NOT_FOUND
    await compress(memory)
    empty = await fails(FailedPreconditionError, None, compress(memory))
    assert empty.reason is Reason.BAD_BOUNDARY


async def test_proceeding_answers_pending_and_validates_afterwards(memory: Memory) -> None:
    await memory.grow(write(), [INVOICE], True)
    written = await compress(memory, SummaryBody("Paid INV-8."), proceed=True)
    assert judgement_of(written.node).status is SummaryStatus.PENDING
    await memory.close()
    (node,) = await memory.get_nodes(REF, [written.node.node_id])
    assert judgement_of(node).status is SummaryStatus.FAILED
    kinds = [event.kind async for event in _until(memory, EventKind.MAINTAINED)]
    assert kinds[-2:] == [EventKind.COMPRESSED, EventKind.MAINTAINED]


async def _until(memory: Memory, kind: EventKind) -> AsyncIterator[Event]:
    async for event in memory.watch(REF, "", 0):
        yield event
        if event.kind is kind:
            return


async def test_a_validator_outside_has_the_last_word(memory: Memory) -> None:
    await memory.grow(write(), [INVOICE], True)
    written = await compress(memory, validators=("fidelity", "external"), proceed=True)
    await memory.close()
    node_id = written.node.node_id
    (node,) = await memory.get_nodes(REF, [node_id])
    assert judgement_of(node).status is SummaryStatus.PENDING
    verdict = Outside("judge", Verdict.PASS, Verdict.FAIL, "too dear", 0)
    valid = await memory.maintain(REF, "m1", "", 0, (), verdict)
    assert (judgement_of(valid.node).status, judgement_of(valid.node).outcome) == (SummaryStatus.VALID, Verdict.FAIL)
    assert await memory.maintain(REF, "m1", "", 0, (), verdict) == valid
    again = await memory.maintain(REF, "", "", node_id, (), None)
    assert judgement_of(again.node).status is SummaryStatus.VALID
    failed = await memory.maintain(REF, "", "", 0, (), Outside("judge", Verdict.FAIL, Verdict.UNSPECIFIED, "no", 0))
    assert judgement_of(failed.node).note == "no"


async def test_bad_verdicts_are_refused_by_field(memory: Memory) -> None:
    await fails(NotFoundError, "summary_id", memory.maintain(REF, "", "", 0, (), None))
    await memory.grow(write(), [INVOICE], True)
    await fails(InvalidArgumentError, "summary_id", memory.maintain(REF, "", "", 1, (), None))
    for outside, field in [
        (Outside("fidelity", Verdict.PASS, Verdict.PASS, "", 0), "verdict.validator"),
        (Outside("", Verdict.PASS, Verdict.PASS, "", 0), "verdict.validator"),
        (Outside("x", Verdict.UNSPECIFIED, Verdict.UNSPECIFIED, "", 0), "verdict.fidelity"),
    ]:
        await fails(InvalidArgumentError, field, memory.maintain(REF, "", "", 0, (), outside))


async def test_revise_goes_back_and_tells_what_cannot_be_undone(memory: Memory) -> None:
    steps = [INVOICE, Step("order", effect=Effect.REVERSIBLE, undo_ref="cancel O-1"), Step("look")]
    await memory.grow(write(), steps, True)
    revised = await memory.revise(write(3, "r1"), 1, "wrong shop", "second", True)
    assert [(e.node_id, e.undo_ref) for e in revised.effects] == [(2, "cancel O-1")]
    assert revised.branch.name == "second"
    assembled = await memory.assemble_context(REF, "", 600, 0, "", False)
    hint = assembled.assembly.segments[-1]
    assert hint.kind is SegmentKind.HINT
    assert hint.content.splitlines()[1:] == [
        "Reason: wrong shop",
        "It began with: order",
        "Done outside all the same: order (step 2, undo: cancel O-1)",
    ]
    assert await memory.revise(write(3, "r1"), 1, "wrong shop", "second", True) == revised
    tree, branches = await memory.get_tree(REF)
    assert (tree.default_branch, len(branches)) == ("second", 2)


async def test_what_was_done_outside_is_told_however_far_back_the_next_revise_goes(memory: Memory) -> None:
    """Branching un-places no order: the hint that told of it stays behind, so the next one tells of it again."""
    paid = [Step(f"pay {n}", effect=Effect.IRREVERSIBLE) for n in range(17)]
    cheap = Step("order", effect=Effect.REVERSIBLE, undo_ref="cancel")
    await memory.grow(write(), [INVOICE, Step("think"), *paid, cheap], True)
    await memory.revise(write(), 2, "", "", True)
    await memory.grow(write(), [Step("again")], True)
    revised = await memory.revise(write(), 1, "", "", True)
    assert isinstance(revised.hint.body, Hint)
    told = [effect.excerpt for effect in revised.hint.body.standing]
    assert told == [f"pay {n}" for n in range(16, 0, -1)], "the newest 16, irreversible ones first"
    assembled = await memory.assemble_context(REF, "", 4000, 0, "", False)
    assert "pay 16 (step 19, cannot be undone)" in assembled.assembly.segments[-1].content


async def test_bad_revisions_and_forks_are_refused(memory: Memory) -> None:
    await memory.grow(write(), [INVOICE], True)
    await fails(InvalidArgumentError, "restore_after", memory.revise(write(), -1, "", "", True))
    await fails(InvalidArgumentError, "new_branch", memory.revise(write(), 0, "", "bad name", True))
    await fails(InvalidArgumentError, "reason", memory.revise(write(), 0, "x" * 5000, "", True))
    await fails(InvalidArgumentError, "at_node", memory.fork(REF, "", "", -2, ""))
    await fails(InvalidArgumentError, "new_branch", memory.fork(REF, "", "", 0, "a b"))
    await fails(AlreadyExistsError, "new_branch", memory.fork(REF, "", "", 0, "main"))
    await fails(NotFoundError, "branch", memory.fork(REF, "", "nope", 0, ""))


class RacedStore(TwinTreeStore):
    """A store in which another writer is always faster, `races` times."""

    races = 0

    async def cover(self, ref: TreeRef, branch: str, expected_head: int | None, last: int) -> Cover:
        cover = await super().cover(ref, branch, expected_head, last)
        if self.races:
            self.races -= 1
            node_ids = (cover.branch.head,)
            nodes = await self.nodes(ref, node_ids, 1 << 20)
            summary = Summary(0, nodes[0].node_id, cover.last, 1, bytes(32), SummaryBody("x"), "other", 1, 1, 1)
            failed = Judgement(status=SummaryStatus.FAILED)
            await super().summarise(ref, cover, None, summary, failed, Request("", ""))
        return cover


async def test_an_unconditional_write_tries_again_when_it_lost_a_race() -> None:
    store = RacedStore(Limits())
    memory = Memory(store, lambda: "fresh", 5.0)
    await memory.create_tree(TENANT, "", "tree", "", (), TreePolicy(), {})
    await memory.grow(write(), [INVOICE], True)
    store.races = 2
    written = await compress(memory)
    assert isinstance(written.node.body, Summary)
    assert written.node.body.version == 3
    store.races = 1
    await memory.grow(write(), [INVOICE], True)
    lost = compress(memory, write=Write("", REF, "", (await _head(memory)).head, False))
    with pytest.raises(ConflictError):
        await lost


async def _head(memory: Memory) -> Branch:
    return (await memory.get_path(REF, "", 0, 1)).branch


async def test_assembly_needs_a_budget_and_a_tokenizer_for_ids(memory: Memory) -> None:
    await fails(InvalidArgumentError, "budget_tokens", memory.assemble_context(REF, "", 0, 0, "", False))
    await fails(InvalidArgumentError, "reserve_tokens", memory.assemble_context(REF, "", 10, 11, "", False))
    await fails(InvalidArgumentError, "tokenizer_digest", memory.assemble_context(REF, "", 10, 0, "", True))
    await fails(OutOfRangeError, "budget_tokens", memory.assemble_context(REF, "", 2, 0, "", False))


async def test_attached_ids_are_used_by_the_next_assembly(memory: Memory) -> None:
    await memory.grow(write(), [INVOICE], True)
    before = await memory.assemble_context(REF, "", 500, 0, "tok", True)
    assert before.assembly.untokenized == (0, 1)
    await memory.attach_tokens(REF, "tok", [(0, [1, 2]), (1, [3, 4, 5])])
    after = await memory.assemble_context(REF, "", 500, 0, "tok", True)
    assert (after.assembly.total_tokens, after.assembly.untokenized) == (5, ())
    assert [s.token_ids for s in after.assembly.segments] == [(1, 2), (3, 4, 5)]


async def test_bad_attachments_are_refused_by_field(memory: Memory) -> None:
    await fails(InvalidArgumentError, "tokenizer_digest", memory.attach_tokens(REF, "", [(0, [1])]))
    await fails(InvalidArgumentError, "nodes[0].token_ids", memory.attach_tokens(REF, "t", [(0, [])]))
    await fails(InvalidArgumentError, "nodes[0].token_ids", memory.attach_tokens(REF, "t", [(0, [-1])]))
    await fails(InvalidArgumentError, "nodes[1].node_id", memory.attach_tokens(REF, "t", [(0, [1]), (0, [2])]))
    await fails(NotFoundError, None, memory.attach_tokens(REF, "t", [(5, [1])]))


async def test_the_cut_is_noted_once_it_moves(memory: Memory) -> None:
    moved = []
    for i in range(30):
        await memory.grow(write(), [Step("x" * 30, client_step_id=str(i))], True)
        assembled = await memory.assemble_context(REF, "", 200, 0, "", False)
        moved.append(assembled.cut_moved)
        assert assembled.branch.cut == assembled.assembly.cut
        again = await memory.assemble_context(REF, "", 200, 0, "", False)
        assert not again.cut_moved
        assert again.assembly == assembled.assembly
    assert sum(moved) == 3


async def test_trees_are_listed_by_their_labels_page_by_page(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(9):
        labels = {"team": "red" if i % 3 == 0 else "blue", "stage": str(i)}
        await memory.create_tree(TENANT, "", f"n{i}", "", (), TreePolicy(), labels)

    async def listed(size: int, labels: dict[str, str]) -> list[list[str]]:
        pages, token = [], ""
        while True:
            page, token = await memory.list_trees(TENANT, size, token, labels)
            pages.append([tree.tree_id for tree in page])
            if not token:
                return pages

    assert await listed(0, {"team": "red"}) == [["n6", "n3", "n0"]]
    assert await listed(2, {"team": "red"}) == [["n6", "n3"], ["n0"]]
    assert await listed(0, {"team": "red", "stage": "3"}) == [["n3"]]
    assert await listed(0, {"team": "green"}) == await listed(0, {"color": "red"}) == [[]]
    await memory.update_tree(TreeRef(TENANT, TreeId("n4")), "", TreeChange(set_labels={"team": "red"}))
    await memory.freeze(TreeRef(TENANT, TreeId("n3")))
    monkeypatch.setattr(service, "_LISTED", 3)
    assert await listed(2, {"team": "red"}) == [["n6", "n4"], ["n3", "n0"]]
    monkeypatch.setattr(limits, "TREES_LOOKED_AT", 3)
    assert await listed(2, {"team": "red"}) == [["n6"], ["n4", "n3"], ["n0"], []]


async def test_bad_reads_are_refused_by_field(memory: Memory) -> None:
    await fails(InvalidArgumentError, "node_ids[1]", memory.get_nodes(REF, [1, 0]))
    await fails(InvalidArgumentError, "node_ids", memory.get_nodes(REF, [1] * 1001))
    await fails(InvalidArgumentError, "end_node", memory.get_path(REF, "", -1, 0))
    await fails(InvalidArgumentError, "page_token", memory.list_trees(TENANT, 0, "x", {}))
    await fails(InvalidArgumentError, "labels", memory.list_trees(TENANT, 0, "", {str(i): "" for i in range(65)}))
    with pytest.raises(InvalidArgumentError):
        memory.watch(REF, "", -2)


async def test_many_writers_lose_and_double_nothing(memory: Memory) -> None:
    async def writer(name: int) -> None:
        for i in range(10):
            step = Step(f"{name}", client_step_id=f"{name}-{i}")
            await memory.grow(write(request_id=f"{name}-{i}"), [step], False)
            await memory.grow(write(request_id=f"{name}-{i}"), [step], False)

    await asyncio.gather(*(writer(n) for n in range(5)))
    path = await memory.get_path(REF, "", 0, 500)
    ids = [n.body.client_step_id for n in path.nodes if isinstance(n.body, Step)]
    assert sorted(ids) == sorted(f"{n}-{i}" for n in range(5) for i in range(10))


async def test_a_summary_is_expanded_in_its_place_where_its_cover_fits(memory: Memory) -> None:
    await memory.grow(write(), [Step("one"), Step("two")], False)
    await memory.compress(write(), 0, None, "", (), False)
    await memory.grow(write(), [Step("three")], False)

    async def shown(room: int, *expand: int) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
        made = (await memory.assemble_context(REF, "", room, 0, "", False, expand)).assembly
        assert made.total_tokens == sum(s.token_count for s in made.segments) <= room
        assert made == (await memory.assemble_context(REF, "", room, 0, "", False, expand)).assembly
        return [(s.node_id, s.content[:5]) for s in made.segments], [(d.node_id, d.reason) for d in made.dropped]

    plain, dropped = await shown(500)
    assert ([node for node, _ in plain], dropped) == ([0, 3, 4], [(2, "covered-by-summary")])
    assert await shown(500, 3) == ([plain[0], (1, "one"), (2, "two"), plain[2]], [])
    assert await shown(500, 3, 9) == (
        [plain[0], (1, "one"), (2, "two"), plain[2]],
        [(9, "not-shown")],
    )
    await memory.grow(write(), [Step("x" * 300, client_step_id=str(i)) for i in range(4)], False)
    await memory.compress(write(), 0, None, "mask-observations", (), False)
    (big,) = [s.node_id for s in (await memory.assemble_context(REF, "", 300, 0, "", False)).assembly.segments][-1:]
    tight, dropped = await shown(300, big)
    assert big in [node for node, _ in tight]
    assert (8, "over-budget") in dropped
    for wrong in ([0], [3, 3], list(range(1, 66))):
        await fails(InvalidArgumentError, "expand", memory.assemble_context(REF, "", 500, 0, "", False, wrong))


async def test_a_roll_up_is_expanded_into_its_summaries_and_these_into_their_steps(memory: Memory) -> None:
    for text in ("one", "two"):
        await memory.grow(write(), [Step(text)], False)
        await memory.compress(write(), 0, None, "", (), False)
    rolled = (await memory.roll_up(REF, "", "", None, (2, 4))).node.node_id

    async def shown(*expand: int) -> list[int]:
        made = (await memory.assemble_context(REF, "", 800, 0, "", False, expand)).assembly
        return [s.node_id for s in made.segments if s.node_id]

    assert await shown() == [rolled]
    assert await shown(rolled) == [2, 4]
    assert await shown(rolled, 4) == [2, 3]
    assert await shown(4, rolled) == [2, 4], "in the order given"
