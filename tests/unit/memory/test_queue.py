"""Tasks for workers outside, over the in-memory store. The suite of stores: tests/contract/test_tree_store_queue.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.domain.errors import ConflictError, FailedPreconditionError, InvalidArgumentError, Reason
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import Step, Summary, SummaryBody, SummaryStatus, TreePolicy, Verdict
from katsura.domain.work import EXTERNAL, Fence, WorkItem, WorkKind
from katsura.memory.core.assemble import SegmentKind
from katsura.memory.operations import Write
from katsura.memory.queue import SECOND_TRIES_MAX, Claimed
from katsura.memory.service import Memory
from katsura.memory.summaries import Outside
from katsura.state.trees import Limits, TreeRef, Written
from katsura.state.trees_twin import TwinTreeStore

REF = TreeRef(TenantId("acme"), TreeId("tree"))
WRITE = Write("", REF, "", None, True)
TRUE, LIE = SummaryBody("Found room H-7 for 900 USD."), SummaryBody("Found room H-999 for 1 USD.")
YES = Outside("llm", Verdict.PASS, Verdict.PASS, "", 0)
NO = Outside("llm", Verdict.FAIL, Verdict.UNSPECIFIED, "it leaves out the price", 0)


async def memory_of(validators: tuple[str, ...] = ("fidelity", EXTERNAL)) -> Memory:
    memory = Memory(TwinTreeStore(Limits()), lambda: "fresh", heartbeat_s=5.0)
    policy = TreePolicy(compressor=EXTERNAL, validators=validators)
    await memory.create_tree(REF.tenant, "", "tree", "a room", ("at most 950 USD",), policy, {})
    await say(memory, "Find a room.", "Found room H-7 for 900 USD.")
    return memory


async def say(memory: Memory, *texts: str) -> None:
    await memory.grow(WRITE, [Step(text) for text in texts], True)


async def compress(memory: Memory) -> WorkItem:
    asked = await memory.compress(WRITE, 0, None, "", (), False)
    assert isinstance(asked, WorkItem)
    return asked


async def claim(memory: Memory) -> Claimed:
    (work,) = await memory.claim_work(REF.tenant, None, WorkKind.UNSPECIFIED, "w1", 0, 0)
    return work


async def complete(memory: Memory, item: WorkItem, result: SummaryBody | Outside) -> Written:
    return await memory.complete_work(REF, "", Fence(item.work_id, item.token, item.worker), result)


def status(written: Written) -> SummaryStatus:
    assert written.node.judgement is not None
    return written.node.judgement.status


async def shown(memory: Memory) -> list[SegmentKind]:
    assembled = await memory.assemble_context(REF, "", 10_000, 0, "", False)
    return [segment.kind for segment in assembled.assembly.segments]


async def test_two_workers_write_and_judge_a_summary_before_it_is_shown() -> None:
    memory = await memory_of()
    assert (await compress(memory)).work_id == "compress:main"
    work = await claim(memory)
    assert (work.tree.goal, work.tree.pins, work.last, work.count) == ("a room", ("at most 950 USD",), 2, 2)
    written = await complete(memory, work.item, TRUE)
    assert status(written) is SummaryStatus.PENDING
    assert await shown(memory) == [SegmentKind.PIN, SegmentKind.STEP, SegmentKind.STEP]
    verdict = await claim(memory)
    assert verdict.item.kind is WorkKind.VALIDATE
    assert verdict.summary is not None
    assert isinstance(verdict.summary.body, Summary)
    assert (verdict.summary.body.body, verdict.summary.body.made_by) == (TRUE, "w1")
    assert status(await complete(memory, verdict.item, YES)) is SummaryStatus.VALID
    assert await shown(memory) == [SegmentKind.PIN, SegmentKind.SUMMARY]
    assert await memory.list_work(REF) == ()


async def test_a_summary_that_lies_is_never_shown_and_its_worker_may_try_again() -> None:
    memory = await memory_of(validators=("fidelity",))
    await compress(memory)
    item = (await claim(memory)).item
    lie = await complete(memory, item, LIE)
    assert status(lie) is SummaryStatus.FAILED
    assert lie.node.judgement is not None
    assert "h-999" in lie.node.judgement.note
    assert SegmentKind.SUMMARY not in await shown(memory)
    assert status(await complete(memory, item, TRUE)) is SummaryStatus.VALID
    assert SegmentKind.SUMMARY in await shown(memory)


async def test_a_verdict_against_a_summary_asks_for_another_one_and_not_for_ever() -> None:
    memory = await memory_of()
    await compress(memory)
    for attempt in range(SECOND_TRIES_MAX):
        work = await claim(memory)
        assert (work.item.kind, work.item.reason) == (WorkKind.COMPRESS, NO.note if attempt else "")
        await complete(memory, work.item, TRUE)
        assert status(await complete(memory, (await claim(memory)).item, NO)) is SummaryStatus.FAILED
        assert SegmentKind.SUMMARY not in await shown(memory)
    assert await memory.list_work(REF) == ()


async def test_a_result_for_a_segment_that_somebody_else_summarised_is_refused() -> None:
    memory = await memory_of(validators=("fidelity",))
    await compress(memory)
    item = (await claim(memory)).item
    await memory.compress(WRITE, 0, TRUE, "", (), False)
    with pytest.raises(FailedPreconditionError):  # nothing is raw
        await complete(memory, item, TRUE)
    await say(memory, "And a train.")
    with pytest.raises((ConflictError, FailedPreconditionError)):
        await complete(memory, item, TRUE)


async def test_a_result_for_a_segment_that_was_cut_since_is_refused() -> None:
    memory = await memory_of(validators=("fidelity",))
    await compress(memory)
    item = (await claim(memory)).item
    await memory.compress(WRITE, 1, None, "extractive", (), False)
    with pytest.raises(ConflictError, match="by somebody else") as caught:
        await complete(memory, item, SummaryBody("Found room H-7."))
    assert caught.value.reason is Reason.LEASE_LOST


async def test_a_claim_that_is_not_the_newest_writes_nothing() -> None:
    memory = await memory_of()
    await compress(memory)
    item = (await claim(memory)).item
    with pytest.raises(ConflictError) as caught:
        await complete(memory, replace(item, token=item.token - 1), TRUE)
    assert caught.value.reason is Reason.LEASE_LOST


async def test_obligations_that_are_owed_are_carried_whatever_a_worker_says() -> None:
    memory = await memory_of(validators=("fidelity",))
    await memory.grow(WRITE, [Step("Deposit due.", attributes={"obligation": "pay the deposit"})], True)
    owing = replace(TRUE, open_obligations=("pay the deposit",))
    await memory.compress(WRITE, 0, owing, "", (), False)
    await say(memory, "The room has a view.")
    await compress(memory)
    work = await claim(memory)
    assert work.owed == ("pay the deposit",)
    forgetful = await complete(memory, work.item, SummaryBody("The room has a view."))
    assert status(forgetful) is SummaryStatus.VALID
    assert isinstance(forgetful.node.body, Summary)
    assert forgetful.node.body.body.open_obligations == ("pay the deposit",)


async def test_a_kind_and_a_result_that_do_not_fit_the_task_are_refused() -> None:
    memory = await memory_of()
    with pytest.raises(InvalidArgumentError):
        await memory.schedule_work(REF, WorkKind.UNSPECIFIED, "", 0, "")
    with pytest.raises(InvalidArgumentError):
        await memory.schedule_work(REF, WorkKind.COMPRESS, "", 3, "")
    with pytest.raises(InvalidArgumentError):
        await memory.compress(WRITE, 1, None, EXTERNAL, (), False)
    await compress(memory)
    item = (await claim(memory)).item
    with pytest.raises(InvalidArgumentError):
        await complete(memory, item, YES)
    await complete(memory, item, TRUE)
    with pytest.raises(InvalidArgumentError):
        await complete(memory, (await claim(memory)).item, TRUE)


async def test_leases_are_renewed_and_given_back_with_a_reason() -> None:
    memory = await memory_of()
    await compress(memory)
    item = (await claim(memory)).item
    fence = Fence(item.work_id, item.token, item.worker)
    assert (await memory.renew_work(REF, fence, 600)).lease_end_ms > item.lease_end_ms
    back = await memory.give_back_work(REF, fence, "429", 0)
    assert (back.reason, back.worker) == ("429", "")
    assert (await claim(memory)).item.reason == "429"
