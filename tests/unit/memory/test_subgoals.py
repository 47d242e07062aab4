"""Subgoals by name, over the in-memory store: how they nest, what is owed, what their summaries cover and say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.domain.errors import ConflictError, FailedPreconditionError, InvalidArgumentError, KatsuraError, Reason
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import Resolution, Step, Summary, SummaryBody, SummaryStatus, TreePolicy, Verdict
from katsura.domain.work import WorkItem
from katsura.memory.core.assemble import SegmentKind
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.memory.subgoals import Closing, Ended
from katsura.state.trees import Limits, TreeRef, Written
from katsura.state.trees_twin import TwinTreeStore

REF = TreeRef(TenantId("acme"), TreeId("tree"))
ANY = Write("", REF, "", None, True)
PASS, FAIL, UNKNOWN = Verdict.PASS, Verdict.FAIL, Verdict.UNKNOWN


@pytest.fixture
async def memory() -> Memory:
    """Tree: step 1 is said before any subgoal."""
    memory = Memory(TwinTreeStore(Limits()), lambda: "fresh", heartbeat_s=5.0)
    await memory.create_tree(REF.tenant, "", "tree", "goal", (), TreePolicy(), {})
    await memory.grow(ANY, [Step("hello", role="user")], False)
    return memory


async def begin(memory: Memory, title: str, *criteria: str, write: Write = ANY) -> int:
    return (await memory.begin_subgoal(write, title, criteria, None)).node.node_id


async def end(memory: Memory, subgoal: int = 0, write: Write = ANY, **results: Verdict) -> Ended:
    return await memory.end_subgoal(write, subgoal, results, Closing())


async def refused(reason: Reason, call: object) -> KatsuraError:
    with pytest.raises(KatsuraError) as caught:
        await call  # type: ignore[misc]
    assert caught.value.reason is reason
    return caught.value


def summary(ended: Ended) -> Summary:
    assert isinstance(ended.closed, Written)
    assert isinstance(ended.closed.node.body, Summary)
    return ended.closed.node.body


async def test_the_summary_of_a_subgoal_covers_exactly_its_steps(memory: Memory) -> None:
    found = await begin(memory, "find a room")
    await memory.grow(ANY, [Step("H-7 is free", role="tool")], False)
    ended = await end(memory)
    assert (ended.subgoal, ended.node.node_id) == (found, 4) == (2, 4)
    assert (summary(ended).first_covered, summary(ended).last_covered) == (2, 4)
    shown = await memory.assemble_context(REF, "", 2000, 0, "", False)
    assert [s.kind for s in shown.assembly.segments].count(SegmentKind.SUMMARY) == 2, "what came before has its own"
    assert ended.branch.boundary == 4
    assert (await memory.get_tree(REF))[0].revision == ended.revision


async def test_the_outcome_is_told_by_criteria_wherever_they_were_stated(memory: Memory) -> None:
    await begin(memory, "build", "tests pass", "lint passes")
    await memory.grow(ANY, [Step("lint ok", role="tool", attributes={"criterion.lint passes": "pass"})], False)
    await memory.compress(ANY, 0, None, "", (), False)
    ended = await memory.end_subgoal(ANY, 0, {"tests pass": FAIL}, Closing())
    assert isinstance(ended.node.body, Step)
    assert ended.node.body.attributes["criterion.lint passes"] == "pass", "although a summary stands for that step"
    assert (ended.outcome, ended.node.body.resolution) == (FAIL, Resolution.REFUSED)
    assert isinstance(ended.closed, Written)
    assert ended.closed.node.judgement is not None
    assert ended.closed.node.judgement.outcome is FAIL
    assert ended.closed.node.judgement.status is SummaryStatus.VALID


@pytest.mark.parametrize(
    ("results", "outcome"), [({}, UNKNOWN), ({"a": PASS}, UNKNOWN), ({"a": PASS, "b": PASS}, PASS)]
)
async def test_a_subgoal_succeeds_when_all_its_criteria_hold(
    memory: Memory, results: dict[str, Verdict], outcome: Verdict
) -> None:
    await begin(memory, "two things", "a", "b")
    ended = await memory.end_subgoal(ANY, 0, results, Closing())
    assert ended.outcome is outcome
    assert isinstance(ended.closed, Written)
    assert ended.closed.node.judgement is not None
    assert ended.closed.node.judgement.outcome is outcome


async def test_the_newest_statement_of_a_criterion_counts_and_those_before_the_subgoal_do_not(memory: Memory) -> None:
    said = [Step(text, attributes={"criterion.a": text}) for text in ("fail", "pass")]
    await memory.grow(ANY, said[1:], False)
    await begin(memory, "it", "a")
    assert (await end(memory)).outcome is UNKNOWN
    await begin(memory, "again", "a")
    await memory.grow(ANY, said, False)
    assert (await end(memory)).outcome is PASS


async def test_subgoals_nest_and_the_innermost_ends_first(memory: Memory) -> None:
    outer = await begin(memory, "outer", "a")
    inner = await memory.begin_subgoal(ANY, "inner", (), outer)
    assert (inner.parent, inner.node.parent_id) == (outer, outer)
    error = await refused(Reason.SUBGOAL_OPEN, end(memory, outer))
    assert error.metadata == {"subgoal": str(inner.node.node_id)}
    await refused(Reason.SUBGOAL_OPEN, memory.begin_subgoal(ANY, "aside", (), outer))
    await refused(Reason.SUBGOAL_OPEN, memory.begin_subgoal(ANY, "aside", (), 0))
    await refused(Reason.NOT_WAITING, memory.begin_subgoal(ANY, "aside", (), 1))
    child = await end(memory)
    assert child.subgoal == inner.node.node_id
    assert (summary(child).first_covered, summary(child).last_covered) == (3, 4)
    assert summary(child).body.open_obligations == ("subgoal: outer",)
    parent = await end(memory, outer, a=PASS)
    assert (parent.outcome, summary(parent).body.open_obligations) == (PASS, ())
    await refused(Reason.NOT_WAITING, end(memory, outer))
    await refused(Reason.NOT_WAITING, end(memory, 1))
    await refused(Reason.NOT_WAITING, end(memory))


async def test_an_agents_own_summary_owes_what_is_open_around_it(memory: Memory) -> None:
    await begin(memory, "outer")
    await begin(memory, "inner")
    ended = await memory.end_subgoal(ANY, 0, {}, Closing(SummaryBody("nothing to be done")))
    assert isinstance(ended.closed, Written)
    assert ended.closed.node.judgement is not None
    assert ended.closed.node.judgement.status is SummaryStatus.VALID, ended.closed.node.judgement.note
    assert summary(ended).made_by == "agent"
    assert summary(ended).body.open_obligations == ("subgoal: outer",)


async def test_an_open_subgoal_is_told_although_its_step_was_cut_off_until_it_ends(memory: Memory) -> None:
    found = await begin(memory, "find a room", "booked")
    shown = await memory.assemble_context(REF, "", 2000, 0, "", False)
    assert shown.assembly.segments[-1].content == "Subgoal: find a room\nIt succeeds when: booked"
    await memory.grow(ANY, [Step("x" * 90) for _ in range(20)], False)
    told = f"[open: step {found} began subgoal: find a room]"
    shown = await memory.assemble_context(REF, "", 300, 0, "", False)
    assert told in [s.content for s in shown.assembly.segments]
    await end(memory)
    shown = await memory.assemble_context(REF, "", 300, 0, "", False)
    assert told not in [s.content for s in shown.assembly.segments]


async def test_each_path_ends_its_subgoals_on_its_own_and_a_revise_is_rid_of_them(memory: Memory) -> None:
    begun = await memory.begin_subgoal(ANY, "it", (), None)
    await memory.fork(REF, "", "", 0, "side")
    await end(memory)
    side = replace(ANY, branch="side")
    await end(memory, begun.node.node_id, side)
    await begin(memory, "more", write=side)
    await memory.revise(side, begun.node.parent_id, "no", "back", False)
    await refused(Reason.NOT_WAITING, end(memory, 0, replace(ANY, branch="back")))


async def test_a_repeated_request_answers_the_same(memory: Memory) -> None:
    first = Write("b", REF, "", 1, False)
    begun = await memory.begin_subgoal(first, "it", ("a",), 0)
    assert await memory.begin_subgoal(first, "it", ("a",), 0) == begun
    last = Write("e", REF, "", None, True)
    ended = await end(memory, 0, last, a=PASS)
    assert await end(memory, 0, last, a=PASS) == ended
    await refused(Reason.REQUEST_ID_REUSED, end(memory, 0, last, a=FAIL))
    await refused(Reason.REQUEST_ID_REUSED, memory.begin_subgoal(first, "that", ("a",), 0))
    await refused(Reason.HEAD_MOVED, memory.begin_subgoal(replace(first, request_id="c"), "it", (), None))


async def test_a_call_that_was_cut_off_is_finished_by_repeating_it(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(memory, "it")
    write = Write("e", REF, "", None, True)

    async def cut(*_: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(memory, "compress", cut)
        with pytest.raises(ConnectionError):
            await end(memory, 0, write)
    await memory.grow(ANY, [Step("somebody went on")], False)
    ended = await end(memory, 0, write)
    assert (summary(ended).first_covered, summary(ended).last_covered) == (2, 3)


async def test_where_another_summary_covers_the_end_there_is_none_of_its_own(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(memory, "it")
    before = memory.compress

    async def faster(*_: object) -> object:
        await before(ANY, 0, None, "", (), False)
        return await before(ANY, 0, None, "", (), False)

    monkeypatch.setattr(memory, "compress", faster)
    assert (await end(memory)).closed is None


async def test_a_worker_outside_may_write_the_summary(memory: Memory) -> None:
    await begin(memory, "it")
    ended = await memory.end_subgoal(ANY, 0, {}, Closing(compressor="external"))
    assert isinstance(ended.closed, WorkItem)


async def test_two_who_end_it_at_once_end_it_once(memory: Memory) -> None:
    head = await begin(memory, "it")
    await end(memory, head, Write("", REF, "", head, False))
    with pytest.raises(ConflictError):
        await end(memory, head, Write("", REF, "", head, False))
    with pytest.raises(FailedPreconditionError):
        await end(memory, head)


async def test_what_is_wrong_is_refused_before_anything_is_written(memory: Memory) -> None:
    subgoal = await begin(memory, "it", "a")
    before = (await memory.get_tree(REF))[0].revision
    body = SummaryBody("said")
    for field, call in [
        ("title", memory.begin_subgoal(ANY, " ", (), None)),
        ("title", memory.begin_subgoal(ANY, "x" * 2000, (), None)),
        ("criteria", memory.begin_subgoal(ANY, "x", [str(i) for i in range(17)], None)),
        ("criteria[1]", memory.begin_subgoal(ANY, "x", ("a", ""), None)),
        ("criteria[1]", memory.begin_subgoal(ANY, "x", ("a", "a"), None)),
        ("parent_subgoal", memory.begin_subgoal(ANY, "x", (), -1)),
        ("subgoal_id", memory.end_subgoal(ANY, -1, {}, Closing())),
        ("results['b']", memory.end_subgoal(ANY, 0, {"b": PASS}, Closing())),
        ("results['a']", memory.end_subgoal(ANY, 0, {"a": UNKNOWN}, Closing())),
        ("summary_body.text", memory.end_subgoal(ANY, 0, {}, Closing(SummaryBody("")))),
        ("compressor", memory.end_subgoal(ANY, 0, {}, Closing(body, "extractive"))),
        ("compressor", memory.end_subgoal(ANY, 0, {}, Closing(compressor="no"))),
        ("validators[0]", memory.end_subgoal(ANY, 0, {}, Closing(validators=("no",)))),
        ("proceed", memory.end_subgoal(ANY, 0, {}, Closing(validators=("external",)))),
        ("node_id", memory.resume_step(ANY, subgoal, Resolution.DONE, None)),
    ]:
        with pytest.raises(InvalidArgumentError) as caught:
            await call
        assert caught.value.field == field
    begins = (await memory.get_nodes(REF, [subgoal]))[0].body
    assert isinstance(begins, Step)
    with pytest.raises(InvalidArgumentError, match="BeginSubgoal"):
        await memory.grow(ANY, [begins], False)
    assert (await memory.get_tree(REF))[0].revision == before
