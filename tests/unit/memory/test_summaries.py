"""Roll-ups over the in-memory store. The stores' own suite: tests/contract; Compress and Maintain: test_service.py."""

from __future__ import annotations

import pytest

from katsura.domain.errors import FailedPreconditionError, InvalidArgumentError
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import Node, Step, Summary, SummaryBody, SummaryStatus, TreePolicy, Verdict
from katsura.memory.core.assemble import SegmentKind
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.memory.summaries import Outside
from katsura.state.trees import Limits, TreeRef
from katsura.state.trees_twin import TwinTreeStore
from katsura.testing.tree_cut import CutStore

REF = TreeRef(TenantId("acme"), TreeId("tree"))


async def memory_of(fanout: int) -> Memory:
    memory = Memory(TwinTreeStore(Limits()), lambda: "fresh", heartbeat_s=5.0)
    await memory.create_tree(REF.tenant, "", "tree", "goal", (), TreePolicy(rollup_fanout=fanout), {})
    return memory


async def subgoals(memory: Memory, count: int) -> None:
    write = Write("", REF, "", None, True)
    for i in range(count):
        await memory.grow(write, [Step(f"Found room H-{100 + i} for {200 + i} USD.")], True)
        await memory.compress(write, 0, None, "", (), False)


async def levels(memory: Memory) -> list[int]:
    found = await memory.trees.summaries(REF, "", 500)
    return [n.body.level for n, _ in found if isinstance(n.body, Summary)]


async def test_a_context_is_bounded_in_subgoals() -> None:
    memory = await memory_of(2)
    sizes = []
    for _ in range(4):
        await subgoals(memory, 8)
        shown = await memory.assemble_context(REF, "", 100_000, 0, "", False)
        sizes.append(sum(s.kind is SegmentKind.SUMMARY for s in shown.assembly.segments))
    assert sizes == [5, 7, 8, 9]
    assert (await memory.trees.snapshot(REF, "", 100_000, 3, "", False)).steps == ()


async def test_a_context_is_bounded_in_subgoals_that_are_validated_late() -> None:
    memory = await memory_of(2)
    write = Write("", REF, "", None, True)
    for i in range(8):
        await memory.grow(write, [Step(f"Found room H-{100 + i}.")], True)
        await memory.compress(write, 0, None, "", (), True)
        await memory.close()
    assert await levels(memory) == [0, 0, 1, 1, 1]


async def test_a_compress_that_is_repeated_finishes_what_it_died_before() -> None:
    memory = await memory_of(2)
    await subgoals(memory, 3)
    await memory.grow(Write("", REF, "", None, True), [Step("Found room H-9.")], True)
    cut, write = CutStore(memory.trees), Write("again", REF, "", None, True)
    dying = Memory(cut.store, lambda: "fresh", heartbeat_s=5.0)
    await cut.during(2, lambda: dying.compress(write, 0, None, "", (), False))
    assert await levels(memory) == [0, 0, 0, 0]
    await memory.compress(write, 0, None, "", (), False)
    assert await levels(memory) == [0, 0, 1]


async def test_a_roll_up_tells_which_summaries_it_covers_and_keeps_their_facts() -> None:
    memory = await memory_of(2)
    await subgoals(memory, 4)
    shown = await memory.assemble_context(REF, "", 100_000, 0, "", False)
    rolled = shown.assembly.segments[1].content
    assert rolled.startswith("[summary 9 of summaries 2 to 4]")
    assert "H-100 for 200 USD" in rolled
    assert "H-101 for 201 USD" in rolled
    assert any(d.kind is SegmentKind.SUMMARY and d.node_id == 4 for d in shown.assembly.dropped)


async def test_a_tree_may_never_roll_up() -> None:
    memory = await memory_of(1)
    await subgoals(memory, 40)
    assert await levels(memory) == [0] * 40


async def test_an_agent_rolls_up_in_its_own_words_and_a_lie_is_not_trusted() -> None:
    memory = await memory_of(1)
    await subgoals(memory, 3)
    lie = await memory.roll_up(REF, "", "", SummaryBody("Found H-999."), (2, 4))
    assert _status(lie.node) is SummaryStatus.FAILED
    assert await levels(memory) == [0, 0, 0]
    written = await memory.roll_up(REF, "r", "", SummaryBody("Found H-100 and H-101."), (2, 4))
    assert await memory.roll_up(REF, "r", "", SummaryBody("Found H-100 and H-101."), (2, 4)) == written
    assert _status(written.node) is SummaryStatus.VALID
    assert await levels(memory) == [0, 1]
    verdict = Outside("critic", Verdict.FAIL, Verdict.UNSPECIFIED, "wrong", 0)
    await memory.maintain(REF, "", "", written.node.node_id, (), verdict)
    assert await levels(memory) == [0, 0, 0]
    again = await memory.maintain(REF, "", "", written.node.node_id, ("fidelity",), None)
    assert _status(again.node) is SummaryStatus.FAILED


async def test_what_cannot_be_rolled_up_is_refused() -> None:
    memory = await memory_of(2)
    await subgoals(memory, 2)
    with pytest.raises(FailedPreconditionError):
        await memory.roll_up(REF, "", "", None, ())
    for ids in ((2,), (1, 2)):
        with pytest.raises(InvalidArgumentError):
            await memory.roll_up(REF, "", "", None, ids)


def _status(node: Node) -> SummaryStatus:
    assert node.judgement is not None
    return node.judgement.status
