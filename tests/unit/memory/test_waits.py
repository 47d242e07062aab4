"""Steps that wait, over the in-memory store: what a context and a summary say of them, and how waiting ends."""

from __future__ import annotations

import pytest

from katsura.domain.errors import ConflictError, FailedPreconditionError, InvalidArgumentError, Reason
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import Resolution, Step, Summary, SummaryBody, TreePolicy, Wait, WaitKind
from katsura.memory.core.assemble import SegmentKind
from katsura.memory.core.merge import ConflictPolicy
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.state.trees import Limits, TreeRef
from katsura.state.trees_twin import TwinTreeStore

REF = TreeRef(TenantId("acme"), TreeId("tree"))
ANY = Write("", REF, "", None, True)
DONE, REFUSED = Resolution.DONE, Resolution.REFUSED


@pytest.fixture
async def memory() -> Memory:
    """Tree: step 1, "deploy", waits for an approval."""
    memory = Memory(TwinTreeStore(Limits()), lambda: "fresh", heartbeat_s=5.0)
    await memory.create_tree(REF.tenant, "", "tree", "goal", (), TreePolicy(), {})
    await memory.grow(ANY, [Step("deploy", wait=Wait(WaitKind.APPROVAL, "to production"))], False)
    return memory


async def shown(memory: Memory, room: int = 500) -> list[tuple[SegmentKind, str]]:
    found = await memory.assemble_context(REF, "", room, 0, "", False)
    assert found.assembly.total_tokens <= room
    return [(s.kind, s.content) for s in found.assembly.segments]


async def test_a_context_says_what_waits_in_the_step_itself(memory: Memory) -> None:
    before = await shown(memory)
    assert before[-1] == (SegmentKind.STEP, "deploy\n[waits for approval: to production]")
    await memory.resume_step(ANY, 1, DONE, Step("go ahead", role="user"))
    assert await shown(memory) == [*before, (SegmentKind.STEP, "go ahead")], "I16: the prefix stays"


async def test_what_waits_is_told_although_its_step_was_cut_off_and_until_it_is_resolved(memory: Memory) -> None:
    await memory.grow(ANY, [Step("x" * 90) for _ in range(20)], False)
    told = (SegmentKind.WAITING, "[open: step 1 waits for approval: to production]")
    assert (await shown(memory, 300))[1] == told
    with pytest.raises(Exception, match="open obligations"):
        await shown(memory, 50)
    await memory.resume_step(ANY, 1, REFUSED, None)
    assert told not in await shown(memory, 300)
    assert (await shown(memory, 300))[-1] == (SegmentKind.STEP, "refused")


async def test_a_summary_owes_what_waits_until_it_is_resolved(memory: Memory) -> None:
    lied = await memory.compress(ANY, 0, SummaryBody("all is well"), "", (), False)
    assert "neither carried nor closed" in lied.node.judgement.note  # type: ignore[union-attr]
    first = await memory.compress(ANY, 0, None, "", (), False)
    assert isinstance(first.node.body, Summary)
    assert first.node.body.body.open_obligations == ("approval: to production",)
    await memory.resume_step(ANY, 1, DONE, None)
    second = await memory.compress(ANY, 0, None, "", (), False)
    assert isinstance(second.node.body, Summary)
    assert second.node.body.body.open_obligations == ()


async def test_what_waits_is_listed_by_branch(memory: Memory) -> None:
    await memory.fork(REF, "", "", 0, "side")
    await memory.resume_step(ANY, 1, DONE, None)
    await memory.grow(ANY, [Step("call it", wait=Wait(WaitKind.UNSPECIFIED, "the meter"))], False)
    listed = await memory.waiting(REF, "")
    assert [(branch, node.node_id) for branch, node in listed] == [("main", 3), ("side", 1)]
    assert listed[0][1].body.wait == Wait(WaitKind.TOOL, "the meter")  # type: ignore[union-attr]
    assert await memory.waiting(REF, "side") == listed[1:]


async def test_waiting_ends_once_and_a_repeated_request_answers_the_same(memory: Memory) -> None:
    write = Write("r", REF, "", 1, False)
    first = await memory.resume_step(write, 1, DONE, None)
    assert await memory.resume_step(write, 1, DONE, None) == first
    assert (first[0].body.content, first[0].body.attributes["closes"]) == ("approved", "approval: to production")  # type: ignore[union-attr]
    with pytest.raises(FailedPreconditionError) as late:
        await memory.resume_step(ANY, 1, DONE, None)
    assert late.value.reason is Reason.NOT_WAITING
    with pytest.raises((ConflictError, FailedPreconditionError)):
        await memory.resume_step(Write("s", REF, "", 1, False), 1, REFUSED, None)
    with pytest.raises(FailedPreconditionError):
        await memory.resume_step(ANY, 2, DONE, None)
    with pytest.raises(InvalidArgumentError):
        await memory.resume_step(ANY, 1, Resolution.UNSPECIFIED, None)


async def test_a_wait_says_for_what(memory: Memory) -> None:
    for what in ("", "   ", "x" * 2000):
        with pytest.raises(InvalidArgumentError) as error:
            await memory.grow(ANY, [Step("deploy", wait=Wait(WaitKind.TOOL, what))], False)
        assert error.value.field == "steps[0].wait.what"


async def test_a_copy_waits_for_nothing_and_a_note_says_what_is_still_owed(memory: Memory) -> None:
    await memory.fork(REF, "", "", 0, "sub")
    sub = Write("", REF, "sub", None, True)
    await memory.grow(sub, [Step("ask", wait=Wait(WaitKind.TOOL, "the desk"))], False)
    picked = await memory.merge(ANY, "sub", (2,), "", ConflictPolicy.FAIL)
    assert picked.steps[0].body.wait is None  # type: ignore[union-attr]
    told = await memory.merge(ANY, "sub", (), "", ConflictPolicy.FAIL)
    assert [n.body.content for n in told.steps][1:] == ["Still owed: tool: the desk"]  # type: ignore[union-attr]
    assert [node.node_id for _, node in await memory.waiting(REF, "main")] == [1]
