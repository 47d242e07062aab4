"""Diff and Merge over the in-memory store: sub-agents on branches of their own."""

from __future__ import annotations

import pytest

from katsura.domain.errors import ConflictError, FailedPreconditionError, InvalidArgumentError, Reason
from katsura.domain.ids import NodeId, TenantId, TreeId
from katsura.domain.trees import Effect, Node, Provenance, Reference, ReferenceKind, Slot, Step, StepKind, TreePolicy
from katsura.memory.core.merge import ConflictPolicy
from katsura.memory.core.slots import SlotWrite
from katsura.memory.merging import Brought
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.state.trees import Limits, TreeRef
from katsura.state.trees_twin import TwinTreeStore

REF = TreeRef(TenantId("acme"), TreeId("tree"))
FAIL, OURS, THEIRS = ConflictPolicy.FAIL, ConflictPolicy.OURS, ConflictPolicy.THEIRS


@pytest.fixture
async def memory() -> Memory:
    """Tree: `main` says "plan", a sub-agent works on `sub`."""
    memory = Memory(TwinTreeStore(Limits()), lambda: "fresh", heartbeat_s=5.0)
    await memory.create_tree(REF.tenant, "", "tree", "goal", (), TreePolicy(), {})
    await grow(memory, "", Step("plan"))
    await memory.set_slots(REF, "", "", (SlotWrite("city", "Kyoto"), SlotWrite("kept", "x")))
    await memory.fork(REF, "", "main", 0, "sub")
    return memory


async def grow(memory: Memory, branch: str, *steps: Step) -> None:
    await memory.grow(Write("", REF, branch, None, True), steps, False)


async def put(memory: Memory, branch: str, key: str, value: str) -> None:
    await memory.set_slots(REF, "", branch, (SlotWrite(key, value),))


async def merge(
    memory: Memory,
    *pick: int,
    text: str = "",
    policy: ConflictPolicy = FAIL,
    head: int | None = None,
    request_id: str = "",
) -> Brought:
    write = Write(request_id, REF, "main", head, head is None)
    return await memory.merge(write, "sub", pick, text, policy)


def step_of(node: Node) -> Step:
    assert isinstance(node.body, Step)
    return node.body


async def test_a_sub_agents_work_comes_back_as_a_note_that_says_whose_it_is(memory: Memory) -> None:
    await grow(memory, "sub", Step("look", agent_id="scout"), Step("Found H-7 for 90 USD", agent_id="scout"))
    brought = await merge(memory, head=1, request_id="m")
    (node,) = brought.steps
    note = step_of(node)
    assert note.content.startswith("[branch sub, steps 4 to 5]\n")
    assert "Found H-7 for 90 USD" in note.content
    assert (note.kind, note.provenance, note.agent_id) == (StepKind.NOTE, Provenance.TOOL, "scout")
    assert (note.attributes, note.related_node_ids) == ({"merged_from": "sub"}, (5,))
    assert (brought.branch.head, brought.common) == (node.node_id, 1)
    assert await merge(memory, head=1, request_id="m") == brought
    in_words = await merge(memory, text="H-7 it is.")
    assert step_of(in_words.steps[0]).content == "[branch sub, steps 4 to 5]\nH-7 it is."


async def test_what_a_sub_agent_left_open_is_owed_by_the_branch(memory: Memory) -> None:
    await grow(memory, "sub", Step("booked", attributes={"obligation": "pay H-7"}))
    brought = await merge(memory)
    assert [step_of(n).attributes.get("obligation") for n in brought.steps] == [None, "pay H-7"]
    written = await memory.compress(Write("", REF, "main", None, True), 0, None, "", (), False)
    assert written.node.body.body.open_obligations == ("pay H-7",)  # type: ignore[union-attr]


async def test_picked_steps_are_copied_without_their_effects(memory: Memory) -> None:
    buy = Step("buy", effect=Effect.REVERSIBLE, undo_ref="refund", client_step_id="c", attributes={"a": "b"})
    await grow(memory, "sub", Step("look"), buy)
    brought = await merge(memory, 5)
    copy = step_of(brought.steps[0])
    assert (copy.content, copy.effect, copy.undo_ref, copy.client_step_id) == ("buy", Effect.NONE, "", "")
    assert (copy.attributes, copy.related_node_ids) == ({"a": "b", "merged_from": "sub"}, (5,))
    assert len(brought.steps) == 1
    with pytest.raises(InvalidArgumentError):
        await merge(memory, 1)
    with pytest.raises(FailedPreconditionError):
        await merge(memory, int(brought.steps[0].node_id))


async def test_slots_that_only_the_source_changed_come_along(memory: Memory) -> None:
    await grow(memory, "sub", Step("work"))
    await put(memory, "sub", "city", "Osaka")
    await put(memory, "sub", "new", "n")
    await put(memory, "", "kept", "ours")
    brought = await merge(memory)
    assert [(n.body.key, n.body.value) for n in brought.slots if isinstance(n.body, Slot)] == [
        ("city", "Osaka"),
        ("new", "n"),
    ]
    assert brought.conflicts == ()
    assert await held(memory) == {"city": "Osaka", "kept": "ours", "new": "n"}
    assert [n.body.note for n in await memory.slot_history(REF, "", "city", 1) if isinstance(n.body, Slot)] == [
        "merged from branch sub"
    ]


async def held(memory: Memory) -> dict[str, str]:
    return {n.body.key: n.body.value for n in await memory.get_slots(REF, "") if isinstance(n.body, Slot)}


@pytest.mark.parametrize(("policy", "city"), [(OURS, "Nara"), (THEIRS, "Osaka")])
async def test_a_slot_that_both_changed_is_a_conflict(memory: Memory, policy: ConflictPolicy, city: str) -> None:
    await grow(memory, "sub", Step("work"))
    await put(memory, "sub", "city", "Osaka")
    await put(memory, "", "city", "Nara")
    with pytest.raises(ConflictError) as caught:
        await merge(memory)
    assert (caught.value.reason, caught.value.metadata) == (Reason.MERGE_CONFLICT, {"keys": "city"})
    assert len((await memory.get_path(REF, "", 0, 0)).nodes) == 1, "nothing was merged"
    brought = await merge(memory, policy=policy)
    assert brought.conflicts == ("city",)
    assert (await held(memory))["city"] == city


async def test_of_two_writers_the_merge_that_saw_an_older_head_loses(memory: Memory) -> None:
    await grow(memory, "sub", Step("work"))
    await grow(memory, "", Step("meanwhile"))
    with pytest.raises(ConflictError) as caught:
        await merge(memory, head=1)
    assert (caught.value.reason, caught.value.metadata["head"]) == (Reason.HEAD_MOVED, "5")


async def test_nothing_to_merge_is_said(memory: Memory) -> None:
    with pytest.raises(FailedPreconditionError):
        await merge(memory)
    for field, attempt in (
        ("source", memory.merge(Write("", REF, "", None, True), "", (), "", FAIL)),
        ("pick", merge(memory, 4, 4)),
        ("text", merge(memory, 4, text="x")),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            await attempt
        assert caught.value.field == field


async def test_a_diff_tells_both_sides_and_the_slots(memory: Memory) -> None:
    await grow(memory, "sub", *(Step(f"s{i}") for i in range(5)))
    await grow(memory, "", Step("ours"))
    await put(memory, "sub", "city", "Osaka")
    await put(memory, "sub", "new", "n")
    found = await memory.diff(REF, "", "sub", 2)
    assert (found.common, found.ours_count, found.theirs_count) == (1, 1, 5)
    assert [step_of(n).content for n in found.theirs] == ["s3", "s4"]
    assert [step_of(n).content for n in found.ours] == ["ours"]
    assert [(d.key, d.ours is None, d.theirs is None) for d in found.slots] == [
        ("city", False, False),
        ("new", True, False),
    ]
    same = await memory.diff(REF, "sub", "sub", 0)
    assert (same.ours, same.theirs, same.slots, same.common) == ((), (), (), 8)


async def test_a_merged_step_says_what_it_was_made_of(memory: Memory) -> None:
    await grow(memory, "sub", Step("look"), Step("found"))
    (note,) = (await merge(memory)).steps
    made_of = [Reference(NodeId(n), ReferenceKind.DERIVED_FROM, "", True) for n in (4, 5)]
    assert list(note.references) == made_of
    (copy,) = (await merge(memory, 5)).steps
    assert list(copy.references) == made_of[1:]
    await memory.redact(REF, "", (4,))
    told = await memory.get_nodes(REF, [note.node_id, copy.node_id])
    assert [bool(node.stale) for node in told] == [True, False], "what quotes a redacted step is in doubt"


async def test_a_picked_step_brings_what_it_depends_on_or_is_a_conflict(memory: Memory) -> None:
    await grow(memory, "sub", Step("look", references=(Reference(NodeId(1)),)))
    await grow(memory, "sub", Step("found", references=(Reference(NodeId(4)),)))
    await grow(memory, "sub", Step("told", references=(Reference(NodeId(5)),)))
    with pytest.raises(ConflictError) as error:
        await merge(memory, 5, 6)
    assert (error.value.reason, error.value.metadata) == (Reason.MERGE_CONFLICT, {"nodes": "5 6"})
    assert [step_of(n).content for n in (await merge(memory, 4, 5)).steps] == ["look", "found"]
    assert (await merge(memory, 5, 6, policy=OURS)).steps == (), "neither stands alone, so both are left out"
    taken = (await merge(memory, 6, policy=THEIRS)).steps
    assert [r.node_id for r in taken[0].references] == [5, 6]


async def test_a_stale_step_is_not_picked_unawares(memory: Memory) -> None:
    await grow(memory, "sub", Step("look"))
    await memory.invalidate(REF, "", (4,), False)
    with pytest.raises(ConflictError):
        await merge(memory, 4)
    (taken,) = (await merge(memory, 4, policy=THEIRS)).steps
    assert [m.cause for m in (await memory.get_nodes(REF, [taken.node_id]))[0].stale] == [4]
