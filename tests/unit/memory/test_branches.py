"""Listing and marking branches, over the in-memory store. What each state means: tests/contract."""

from __future__ import annotations

import pytest

from katsura.domain.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, Reason
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import BranchState, Effect, Step, TreePolicy
from katsura.memory.core.merge import ConflictPolicy
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.memory.subgoals import Closing
from katsura.state.branches import BranchChange
from katsura.state.trees import TreeRef
from katsura.state.trees_twin import TwinTreeStore
from katsura.testing.tree_suite import LIMITS

REF = TreeRef(TenantId("acme"), TreeId("t"))
FROZEN = BranchChange(BranchState.FROZEN)
CLOSING = Closing()


@pytest.fixture
async def memory() -> Memory:
    memory = Memory(TwinTreeStore(LIMITS), lambda: "unused", 1.0)
    await memory.create_tree(REF.tenant, "", REF.tree, "", (), TreePolicy(), {})
    await memory.grow(write(), [Step("a")], True)
    return memory


def write(branch: str = "", request_id: str = "") -> Write:
    return Write(request_id, REF, branch, None, True)


async def fails(field: str, attempt: object) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await attempt  # type: ignore[misc]
    assert caught.value.field == field


async def test_branches_are_listed_newest_first_page_by_page_by_state_with_their_tokens(memory: Memory) -> None:
    for name in "xyz":
        await memory.fork(REF, "", "main", 0, name)
    await memory.revise(write("y"), 0, "no", "w", False)
    await memory.update_branch(write("x"), BranchChange(BranchState.FROZEN, "best", "until Monday"))
    first = await memory.list_branches(REF, (), 3, "")
    assert [b.name for b in first.branches] == ["w", "z", "y"]
    second = await memory.list_branches(REF, (), 3, first.next_page)
    assert ([b.name for b in second.branches], second.next_page) == (["x", "main"], "")
    assert [(b.label, b.note) for b in second.branches] == [("best", "until Monday"), ("", "")]
    alone = (await memory.get_path(REF, "main", 0, 0)).nodes[0].tokens
    assert (first.path_tokens, second.path_tokens) == ((0, alone, alone), (alone, alone))
    for state, names in ((BranchState.ABANDONED, ["y"]), (BranchState.FROZEN, ["x"]), (BranchState.MERGED, [])):
        assert [b.name for b in (await memory.list_branches(REF, (state,), 3, "")).branches] == names
    for token in ("x", "9" * 5000):
        await fails("page_token", memory.list_branches(REF, (), 3, token))


async def test_a_change_that_says_nothing_or_too_much_is_refused(memory: Memory) -> None:
    await fails("state", memory.update_branch(write(), BranchChange()))
    await fails("label", memory.update_branch(write(), BranchChange(label="x" * 129)))
    await fails("note", memory.update_branch(write(), BranchChange(note="x" * 1025)))


async def test_the_same_request_answers_the_same_and_another_body_is_refused(memory: Memory) -> None:
    first = await memory.update_branch(write("", "r"), FROZEN)
    assert await memory.update_branch(write("", "r"), FROZEN) == first
    with pytest.raises(AlreadyExistsError):
        await memory.update_branch(write("", "r"), BranchChange(BranchState.MERGED))


async def test_asking_what_would_be_leaves_the_request_id_unused(memory: Memory) -> None:
    told = await memory.update_branch(write("", "r"), FROZEN, dry_run=True)
    assert told.branch.state is BranchState.FROZEN
    changed = await memory.update_branch(write("", "r"), BranchChange(BranchState.MERGED))
    assert changed.revision == told.revision + 1


async def test_subgoals_waits_and_merges_onto_a_frozen_branch_are_refused_and_its_context_is_not(
    memory: Memory,
) -> None:
    await memory.fork(REF, "", "main", 0, "side")
    await memory.grow(write("side"), [Step("b")], True)
    await memory.begin_subgoal(write(), "open", (), None)
    before = await memory.assemble_context(REF, "", 1000, 0, "", False)
    await memory.update_branch(write(), FROZEN)
    for refused in (
        memory.begin_subgoal(write(), "another", (), None),
        memory.end_subgoal(write(), 0, {}, CLOSING),
        memory.merge(write(), "side", (), "", ConflictPolicy.FAIL),
        memory.compress(write(), 0, None, "", (), False),
    ):
        with pytest.raises(FailedPreconditionError) as caught:
            await refused
        assert caught.value.reason is Reason.BRANCH_NOT_WRITABLE
    after = await memory.assemble_context(REF, "", 1000, 0, "", False)
    assert after.assembly == before.assembly


async def test_a_merge_closes_its_source_where_it_is_asked_to(memory: Memory) -> None:
    await memory.fork(REF, "", "main", 0, "side")
    await memory.grow(write("side"), [Step("b")], True)
    await memory.merge(write(), "side", (), "", ConflictPolicy.FAIL)
    assert [b.state.name for b in (await memory.get_tree(REF))[1]] == ["ACTIVE", "ACTIVE"]
    await memory.grow(write("side"), [Step("c")], True)
    await fails("close_source", memory.merge(write(), "side", (3,), "", ConflictPolicy.FAIL, close=True))
    await fails("close_source", memory.merge(write(), "", (), "", ConflictPolicy.FAIL, "child", close=True))
    await memory.merge(write(), "side", (), "", ConflictPolicy.FAIL, close=True)
    assert [b.state.name for b in (await memory.get_tree(REF))[1]] == ["ACTIVE", "MERGED"]


async def test_what_an_abandoned_branch_left_standing_is_told_beforehand_and_afterwards(memory: Memory) -> None:
    await memory.grow(write(), [Step("booked", effect=Effect.IRREVERSIBLE)], True)
    await memory.fork(REF, "", "main", 0, "side")
    await memory.grow(write("side"), [Step("paid", effect=Effect.REVERSIBLE, undo_ref="refund"), Step("x")], True)
    await memory.revise(write("side"), 2, "too dear", "again", False)
    await memory.grow(write("again"), [Step("held", effect=Effect.REVERSIBLE, undo_ref="release")], True)
    change = BranchChange(BranchState.ABANDONED)
    for dry_run in (True, False):
        marked = await memory.update_branch(write("again"), change, dry_run)
        assert [effect.excerpt for effect in marked.effects] == ["held", "paid"], (
            "what stands before the fork is not its own"
        )
    assert [e.excerpt for e in (await memory.update_branch(write(), change)).effects] == ["booked"]
    kept = await memory.update_branch(write(), BranchChange(BranchState.FROZEN))
    assert kept.effects == ()
