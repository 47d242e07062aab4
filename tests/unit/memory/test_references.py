"""References over the in-memory store: what they are checked for, and how a context tells what no longer holds."""

from __future__ import annotations

import pytest

from katsura.domain.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, Reason
from katsura.domain.ids import NodeId, TenantId, TreeId
from katsura.domain.trees import Reference, ReferenceKind, Relation, Step, TreePolicy
from katsura.memory import translate
from katsura.memory.collecting import Collector
from katsura.memory.core.assemble import STALE_LIMIT, SegmentKind
from katsura.memory.core.slots import SlotWrite
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.state.tenants import TwinTenantStore
from katsura.state.trees import Limits, TreeRef
from katsura.state.trees_twin import TwinTreeStore
from katsura.testing.clocks import HandClock

REF = TreeRef(TenantId("acme"), TreeId("tree"))


@pytest.fixture
async def memory() -> Memory:
    """Tree: step 2 rests on step 1."""
    memory = Memory(TwinTreeStore(Limits()), lambda: "fresh", heartbeat_s=5.0)
    await memory.create_tree(REF.tenant, "", "tree", "goal", (), TreePolicy(), {})
    await grow(memory, Step("book Kyoto"))
    await grow(memory, Step("a hotel there", references=(Reference(NodeId(1)),)))
    return memory


async def grow(memory: Memory, *steps: Step) -> None:
    await memory.grow(Write("", REF, "", None, True), steps, False)


async def notices(memory: Memory, room: int = 500) -> list[tuple[int, str]]:
    """Where a notice stands in the context, and what it says."""
    assembled = await memory.assemble_context(REF, "", room, 0, "", False)
    segments = assembled.assembly.segments
    return [(i, s.content) for i, s in enumerate(segments) if s.kind is SegmentKind.STALE]


async def test_a_context_tells_what_no_longer_holds_where_it_came_to_be_so(memory: Memory) -> None:
    assert await notices(memory) == []
    before = (await memory.assemble_context(REF, "", 500, 0, "", False)).assembly.segments
    await grow(memory, Step("book Nara", relation=Relation.REPLACE, related_node_ids=(NodeId(1),)))
    told = [(4, "[stale: step 1, which step 3 replaced]"), (5, "[stale: step 2 rests on 1, which step 3 replaced]")]
    assert await notices(memory) == told
    await grow(memory, Step("what about breakfast?"))
    assembled = await memory.assemble_context(REF, "", 500, 0, "nobody", False)
    assert assembled.assembly.segments[: len(before)] == before, "I16: the prefix stays"
    assert await notices(memory) == told
    assert assembled.assembly.untokenized == (0, 1, 2, 3, 4), "a notice has no ids: its node's are the step's"
    assert [(s.node_id, s.depth) for s in assembled.stale] == [(2, 3), (1, 3)]


async def test_what_is_stale_is_told_although_a_summary_covers_it(memory: Memory) -> None:
    await memory.compress(Write("", REF, "", None, True), 0, None, "", (), False)
    await memory.invalidate(REF, "", (1,), False)
    segments = (await memory.assemble_context(REF, "", 500, 0, "", False)).assembly.segments
    assert [s.kind for s in segments][-2:] == [SegmentKind.STALE, SegmentKind.STALE]
    assert segments[-1].content == "[stale: step 2 rests on 1, which was said to hold no longer]"
    await memory.invalidate(REF, "", (1, 2), True)
    assert await notices(memory) == []


async def test_a_redacted_step_says_so_itself(memory: Memory) -> None:
    await memory.redact(REF, "", (1,))
    assert [text for _, text in await notices(memory)] == ["[stale: step 2 rests on 1, whose content was destroyed]"]


async def test_notices_take_a_share_of_the_room_and_the_newest_stay(memory: Memory) -> None:
    rests = [Step(f"more {i}", references=(Reference(NodeId(1)),)) for i in range(20)]
    await grow(memory, *rests)
    await memory.invalidate(REF, "", (1,), False)
    assembled = await memory.assemble_context(REF, "", 800, 0, "", False)
    shown = [s for s in assembled.assembly.segments if s.kind is SegmentKind.STALE]
    left_out = [d for d in assembled.assembly.dropped if d.kind is SegmentKind.STALE]
    assert len(shown) + len(left_out) == 22
    assert 0 < sum(s.token_count for s in shown) <= 100
    assert {d.reason for d in left_out} == {STALE_LIMIT}
    assert max(d.node_id for d in left_out) < min(int(s.content.split()[2].rstrip(",")) for s in shown)
    assert {s.node_id for s in shown} == {0}, "a notice shows no node"


@pytest.mark.parametrize(
    ("references", "field"),
    [
        ((Reference(NodeId(0)),), "references[0].node_id"),
        ((Reference(NodeId(1)), Reference(NodeId(1))), "references[1]"),
        ((Reference(NodeId(1), tree_id="no/such name"),), "references[0].tree_id"),
        (tuple(Reference(NodeId(n)) for n in range(1, 66)), "references"),
        ((), "references"),
        ((Reference(NodeId(1), tree_id="other"),), "references[0].tree_id"),
    ],
)
async def test_a_wrong_reference_is_refused_by_its_place(
    memory: Memory, references: tuple[Reference, ...], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        await memory.add_references(REF, "", 2, references)
    assert error.value.field == field


async def test_ids_are_checked_before_anything_is_looked_up(memory: Memory) -> None:
    for ids in ((), (1, 1), (0,), tuple(range(1, 300))):
        with pytest.raises(InvalidArgumentError):
            await memory.invalidate(REF, "", ids, False)
        with pytest.raises(InvalidArgumentError):
            await memory.remove_references(REF, "", 2, ids)


async def test_dependents_and_kinds_come_back_as_they_were_said(memory: Memory) -> None:
    node, _ = await memory.add_references(REF, "", 2, (Reference(NodeId(1), ReferenceKind.UNSPECIFIED),))
    assert node.references == (Reference(NodeId(1), ReferenceKind.DEPENDS_ON, "", True),)
    nodes, after = await memory.dependents(REF, 1, 0, 0)
    assert ([n.node_id for n in nodes], after) == ([2], 0)
    assert (await memory.remove_references(REF, "", 2, (1,)))[0].references == node.references


async def test_garbage_is_collected_by_what_was_asked_for_or_by_the_defaults(memory: Memory) -> None:
    await memory.revise(Write("", REF, "", None, True), 0, "wrong", "", True)
    assert (await memory.collect_garbage(REF, None, None, 0)).branches == (), "the newest abandoned ones stay"
    found = await memory.collect_garbage(REF, 0, 1, 0)
    assert (found.branches, found.nodes, found.done) == (("main",), (1, 2), True)
    for wrong in ((-1, 1), (0, 0)):
        with pytest.raises(InvalidArgumentError):
            await memory.collect_garbage(REF, *wrong, 0)


async def test_a_step_refers_to_nodes_of_other_trees_that_are_there_only(memory: Memory) -> None:
    other = TreeRef(REF.tenant, TreeId("other"))
    await memory.create_tree(REF.tenant, "", "other", "", (), TreePolicy(), {})
    await memory.create_tree(TenantId("stranger"), "", "theirs", "", (), TreePolicy(), {})
    for ref in (other, TreeRef(TenantId("stranger"), TreeId("theirs"))):
        await memory.grow(Write("", ref, "", None, True), [Step("found")], False)
    await memory.set_slots(other, "", "", (SlotWrite("k", "v", Relation.NEW),))
    before = (await memory.get_tree(REF))[0].revision
    for tree, node, kind, reason in (
        ("theirs", 1, NotFoundError, Reason.TREE_NOT_FOUND),
        ("other", 3, NotFoundError, Reason.NODE_NOT_FOUND),
        ("other", 2, FailedPreconditionError, Reason.BAD_REFERENCE),
    ):
        with pytest.raises(kind) as told:
            await grow(memory, Step("rests", references=(Reference(NodeId(node), tree_id=tree),)))
        assert told.value.reason is reason
    assert (await memory.get_tree(REF))[0].revision == before
    rests = Step("rests", references=(Reference(NodeId(1), tree_id="other"),))
    write = Write("once", REF, "", None, True)
    grown = await memory.grow(write, [rests], False)
    (node,) = await memory.get_nodes(REF, grown.node_ids)
    assert node.references == (Reference(NodeId(1), ReferenceKind.DEPENDS_ON, "other", True),)
    await memory.delete_tree(other)
    assert await memory.grow(write, [rests], False) == grown, "I10: the same request answers the same"
    with pytest.raises(NotFoundError):
        await memory.grow(Write("again", REF, "", None, True), [rests], False)


async def test_a_context_names_the_tree_in_which_something_befell_what_it_rests_on() -> None:
    trees, tenants = TwinTreeStore(Limits()), TwinTenantStore(HandClock())
    memory, other = Memory(trees, lambda: "fresh", heartbeat_s=5.0), TreeRef(REF.tenant, TreeId("other"))
    await tenants.ensure_tenant(REF.tenant)
    for tree in ("tree", "other"):
        await memory.create_tree(REF.tenant, "", tree, "", (), TreePolicy(), {})
    new = Step("book Nara", relation=Relation.REPLACE, related_node_ids=(NodeId(1),))
    await memory.grow(Write("", other, "", None, True), [Step("book Kyoto"), Step("two nights")], False)
    on = [Reference(NodeId(i), tree_id="other") for i in (1, 2)]
    await grow(memory, Step("a hotel there", references=(on[0],)), Step("for two nights", references=(on[1],)))
    await memory.grow(Write("", other, "", None, True), [new], False)
    await Collector(trees, tenants, "one").turn()
    (node,) = await memory.get_nodes(REF, [NodeId(1)])
    (message,) = translate.node_message(node).stale
    assert (message.cause_node, message.tree_id, message.seen_from) == (1, "other", 0)
    await memory.delete_tree(other)
    await Collector(trees, tenants, "one").turn()
    assert [text for _, text in await notices(memory, 2000)] == [
        "[stale: step 1 rests on 1 of tree other, which another step replaced]",
        "[stale: step 1 rests on 1 of tree other, which is not there any more]",
        "[stale: step 2 rests on 2 of tree other, which is not there any more]",
    ]
    await memory.invalidate(REF, "", (1, 2), True)
    await Collector(trees, tenants, "one").turn()
    assert await notices(memory) == []
