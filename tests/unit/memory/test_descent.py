"""Trees forked off trees, over the in-memory store: sub-agents with trees of their own."""

from __future__ import annotations

import asyncio

import pytest

from katsura.domain.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
)
from katsura.domain.ids import NodeId, TenantId, TreeId
from katsura.domain.trees import Branch, Reference, ReferenceKind, Step, Tree, TreePolicy
from katsura.memory.core.merge import ConflictPolicy
from katsura.memory.core.slots import SlotWrite
from katsura.memory.descent import Offshoot
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.state.trees import Limits, TreeRef
from katsura.state.trees_twin import TwinTreeStore

TENANT = TenantId("acme")
PLAN, SCOUT = TreeRef(TENANT, TreeId("plan")), TreeRef(TENANT, TreeId("scout"))


@pytest.fixture
async def memory() -> Memory:
    """Tree `plan`: "want Kyoto", then "look for rooms"; slot `city`."""
    memory = Memory(TwinTreeStore(Limits()), lambda: "fresh", heartbeat_s=5.0)
    await memory.create_tree(TENANT, "", "plan", "a trip", ("never pay twice",), TreePolicy(), {})
    await grow(memory, PLAN, "want Kyoto")
    await memory.set_slots(PLAN, "", "", (SlotWrite("city", "Kyoto"), SlotWrite("money", "450")))
    await grow(memory, PLAN, "look for rooms")
    return memory


async def grow(memory: Memory, ref: TreeRef, *contents: str, branch: str = "") -> None:
    await memory.grow(Write("", ref, branch, None, True), [Step(c) for c in contents], False)


async def offshoot(memory: Memory, at: int = 0, name: str = "scout", request: str = "") -> tuple[Tree, Branch]:
    return await memory.fork_tree(PLAN, request, name, Offshoot("", at, "find a room", "scout"))


async def shown(memory: Memory, ref: TreeRef, budget: int = 500) -> list[str]:
    found = await memory.assemble_context(ref, "", budget, 0, "", False)
    return [s.content for s in found.assembly.segments]


async def test_a_new_tree_goes_on_where_it_was_forked_off_and_nothing_is_copied(memory: Memory) -> None:
    tree, branch = await offshoot(memory)
    head = (await memory.get_path(PLAN, "", 0, 1)).nodes[0]
    assert tree.origin is not None
    assert (tree.origin.tree_id, tree.origin.node_id, tree.origin.depth) == ("plan", head.node_id, 2)
    assert tree.origin.content_hash == head.content_hash.hex()
    assert (tree.goal, tree.pins, tree.agent_id) == ("find a room", ("never pay twice",), "scout")
    assert (tree.node_count, branch.depth) == (0, 0)
    await grow(memory, SCOUT, "H-7: 900 USD", "H-8: 90 USD")
    goal = "Goal: find a room\nConstraints:\n- never pay twice"
    context = await memory.assemble_context(SCOUT, "", 500, 0, "tok", False)
    said = [s.content for s in context.assembly.segments]
    slots = ["[value of city] Kyoto", "[value of money] 450"]
    assert said == [goal, "want Kyoto", *slots, "look for rooms", "H-7: 900 USD", "H-8: 90 USD"]
    assert [s.tree_id for s in context.assembly.segments] == ["", "plan", "plan", "plan", "plan", "", ""]
    assert context.assembly.untokenized == (0, 1, 2), "ids of the other tree's nodes are attached there"


async def test_neither_tree_sees_what_the_other_does_afterwards(memory: Memory) -> None:
    await offshoot(memory)
    await grow(memory, SCOUT, "H-7")
    await grow(memory, PLAN, "later")
    assert "later" not in await shown(memory, SCOUT)
    assert "H-7" not in await shown(memory, PLAN)
    path = (await memory.get_path(PLAN, (await memory.get_tree(SCOUT))[0].origin.branch, 0, 0)).nodes  # type: ignore[union-attr]
    assert [n.node_id for n in path] == [1, 4]


async def test_old_steps_are_cut_across_the_seam_and_the_budget_holds(memory: Memory) -> None:
    await grow(memory, PLAN, *(f"plan {i} " + "x" * 60 for i in range(20)))
    await offshoot(memory)
    before: list[str] = []
    for i in range(30):
        await grow(memory, SCOUT, f"scout {i} " + "y" * 60)
        found = await memory.assemble_context(SCOUT, "", 500, 0, "", False)
        said = [s.content for s in found.assembly.segments]
        assert found.assembly.total_tokens <= 500
        assert found.cut_moved or said[: len(before)] == before, "I16: the prefix stays while the cut does"
        steps = [s for s in said if s.startswith(("plan ", "scout "))]
        numbers = [int(s.split()[1]) + (20 if s.startswith("scout") else 0) for s in steps]
        assert numbers == list(range(numbers[0], 21 + i)), "no gap"
        before = said
    assert found.branch.cut > 20


async def test_forks_of_forks_read_through_all_of_them(memory: Memory) -> None:
    await offshoot(memory)
    await grow(memory, SCOUT, "H-7")
    third = TreeRef(TENANT, TreeId("third"))
    tree, _ = await memory.fork_tree(SCOUT, "", "third", Offshoot("", 0, "", ""))
    await grow(memory, third, "call them")
    assert tree.origin is not None
    assert tree.origin.depth == 3
    said = await shown(memory, third)
    assert [s for s in said if "value of" not in s][1:] == ["want Kyoto", "look for rooms", "H-7", "call them"]


async def test_a_slot_that_the_new_tree_sets_hides_the_one_before(memory: Memory) -> None:
    await offshoot(memory)
    await memory.set_slots(SCOUT, "", "", (SlotWrite("city", "Nara"),))
    said = " ".join(await shown(memory, SCOUT))
    assert "Nara" in said
    assert "[value of city] Kyoto" not in said
    assert "450" in said


async def test_a_fork_that_was_asked_for_twice_is_made_once(memory: Memory) -> None:
    first = await offshoot(memory, request="r")
    assert await offshoot(memory, request="r") == first
    assert len((await memory.get_tree(PLAN))[1]) == 2
    with pytest.raises(AlreadyExistsError) as error:
        await offshoot(memory, request="other")
    assert error.value.reason is Reason.TREE_EXISTS
    assert len((await memory.get_tree(PLAN))[1]) == 2, "the place is still kept for the tree that has it"


async def test_a_fork_that_died_half_way_is_finished_by_its_repetition(memory: Memory) -> None:
    create = memory.trees.create

    async def die(*_: object) -> tuple[Tree, Branch]:
        raise asyncio.CancelledError

    memory.trees.create = die  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await offshoot(memory, at=1)
    memory.trees.create = create  # type: ignore[method-assign]
    tree, _ = await offshoot(memory, at=1)
    assert tree.origin is not None
    assert tree.origin.node_id == 1
    await memory.delete_tree(SCOUT)
    await memory.delete_tree(PLAN)


async def test_a_name_that_is_taken_keeps_no_place(memory: Memory) -> None:
    await memory.create_tree(TENANT, "", "scout", "mine", (), TreePolicy(), {})
    with pytest.raises(AlreadyExistsError):
        await offshoot(memory)
    assert [b.name for b in (await memory.get_tree(PLAN))[1]] == ["main"]
    for name in ("plan", "no/name"):
        with pytest.raises(InvalidArgumentError):
            await offshoot(memory, name=name)


async def test_a_tree_is_dropped_after_those_that_were_forked_off_it(memory: Memory) -> None:
    await offshoot(memory)
    with pytest.raises(FailedPreconditionError) as error:
        await memory.delete_tree(PLAN)
    assert (error.value.reason, error.value.metadata) == (Reason.TREE_HELD, {"held_by": "scout"})
    await memory.delete_tree(SCOUT)
    assert [b.name for b in (await memory.get_tree(PLAN))[1]] == ["main"]
    await memory.delete_tree(PLAN)
    with pytest.raises(NotFoundError):
        await memory.get_tree(PLAN)


async def test_a_place_kept_for_a_tree_that_is_gone_holds_nobody(memory: Memory) -> None:
    await offshoot(memory)
    await memory.trees.drop(SCOUT)  # as if it had expired
    await memory.delete_tree(PLAN)


async def test_the_work_of_a_tree_comes_back_with_whose_it_is(memory: Memory) -> None:
    await offshoot(memory)
    await grow(memory, SCOUT, "look", "Found H-8 for 90 USD")
    await memory.set_slots(SCOUT, "", "", (SlotWrite("hotel", "H-8"),))
    write = Write("m", PLAN, "", 4, False)
    brought = await memory.merge(write, "", (), "", ConflictPolicy.FAIL, "scout")
    (note,) = brought.steps
    assert isinstance(note.body, Step)
    assert note.body.content.startswith("[branch scout/main, steps 1 to 2]\n")
    assert "H-8 for 90 USD" in note.body.content
    assert (note.body.agent_id, note.body.attributes["merged_from"]) == ("scout", "scout/main")
    kind = ReferenceKind.DERIVED_FROM
    assert note.references == tuple(Reference(NodeId(n), kind, "scout", True) for n in (1, 2))
    assert (brought.common, [n.body.key for n in brought.slots]) == (4, ["hotel"])  # type: ignore[union-attr]
    assert await memory.merge(write, "", (), "", ConflictPolicy.FAIL, "scout") == brought
    stale_head = Write("", PLAN, "", 4, False)
    with pytest.raises(ConflictError) as error:
        await memory.merge(stale_head, "", (), "", ConflictPolicy.FAIL, "scout")
    assert error.value.metadata["head"] == str(note.node_id), "of two writers one wins, the other gets the head"
    picked = await memory.merge(Write("", PLAN, "", None, True), "main", (2,), "", ConflictPolicy.FAIL, "scout")
    assert picked.steps[0].references == (Reference(NodeId(2), kind, "scout", True),)


async def test_slots_that_both_trees_changed_are_a_conflict(memory: Memory) -> None:
    await offshoot(memory)
    await grow(memory, SCOUT, "look")
    await memory.set_slots(SCOUT, "", "", (SlotWrite("city", "Nara"),))
    await memory.set_slots(PLAN, "", "", (SlotWrite("city", "Osaka"),))
    write = Write("", PLAN, "", None, True)
    with pytest.raises(ConflictError) as error:
        await memory.merge(write, "", (), "", ConflictPolicy.FAIL, "scout")
    assert error.value.metadata == {"keys": "city"}
    brought = await memory.merge(write, "", (), "", ConflictPolicy.THEIRS, "scout")
    assert [n.body.value for n in brought.slots] == ["Nara"]  # type: ignore[union-attr]
    with pytest.raises(InvalidArgumentError):
        await memory.merge(Write("", SCOUT, "", None, True), "", (), "", ConflictPolicy.FAIL, "plan")


async def test_of_two_agents_on_one_branch_one_wins_and_the_other_gets_the_head(memory: Memory) -> None:
    writes = [memory.grow(Write("", PLAN, "", 4, False), [Step(f"by {who}")], False) for who in ("one", "two")]
    done = await asyncio.gather(*writes, return_exceptions=True)
    won = [d for d in done if not isinstance(d, BaseException)]
    lost = [d for d in done if isinstance(d, ConflictError)]
    assert (len(won), len(lost)) == (1, 1)
    assert lost[0].metadata["head"] == str(won[0].branch.head)
    again = Write("", PLAN, "", int(lost[0].metadata["head"]), False)
    assert (await memory.grow(again, [Step("after it")], False)).branch.depth == 4
    made, _ = await memory.fork(PLAN, "", "", 0, "sub", "helper")
    assert made.agent_id == "helper"
