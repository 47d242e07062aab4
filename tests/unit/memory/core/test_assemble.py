"""What a context shows, in which order, and what it never drops."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from katsura.domain.errors import OutOfRangeError, Reason
from katsura.domain.ids import NodeId
from katsura.domain.trees import REDACTED, Rest, Shown, Step, StepKind, SummaryBody, SummaryStatus, ToolCall
from katsura.memory.core.assemble import (
    OVER_BUDGET,
    SUMMARY_SHARE,
    Assembly,
    Dropped,
    KeptSegments,
    SegmentKind,
    assemble,
    step_segment,
)
from katsura.memory.translate import segment_message
from katsura.testing.trees import hint_node, snapshot_of, step_nodes, summary_node

STEP_TOKENS = 14
TEXT = "x" * 30
"""A step of 14 estimated tokens."""


def ids(assembly: Assembly) -> list[int]:
    return [segment.node_id for segment in assembly.segments]


def test_the_order_is_pins_then_path_with_each_hint_where_its_branch_turned() -> None:
    path = step_nodes(TEXT, TEXT, TEXT)
    summary = summary_node(4, path[:1], SummaryBody("did it"))
    assembly = assemble(
        snapshot_of(path[1:], [summary], [hint_node(5, "too dear", restored_after=2)], goal="find", pins=["be kind"]),
        400,
        tokenizer=False,
    )
    assert [s.kind for s in assembly.segments] == [
        SegmentKind.PIN,
        SegmentKind.SUMMARY,
        SegmentKind.STEP,
        SegmentKind.HINT,
        SegmentKind.STEP,
    ]
    assert assembly.segments[0].content == "Goal: find\nConstraints:\n- be kind"
    assert assembly.segments[1].content == "[summary 4 of steps 1 to 1]\ndid it"
    assert assembly.segments[3].content.startswith("[untrusted history: branch main was abandoned")
    assert assembly.total_tokens == sum(s.token_count for s in assembly.segments)
    assert assembly.cut == 1


def test_a_valid_summary_stands_between_the_raw_steps_of_its_neighbours() -> None:
    path = step_nodes(*[TEXT] * 4)
    failed = summary_node(5, path[:1], SummaryBody("one"), SummaryStatus.FAILED)
    valid = summary_node(6, path[1:3], SummaryBody("two and three"))
    assembly = assemble(snapshot_of((path[0], path[3]), [failed, valid]), 400, tokenizer=False)
    assert ids(assembly) == [1, 6, 4]
    assert Dropped(SegmentKind.SUMMARY, NodeId(5), "summary-not-valid", 10) in assembly.dropped
    assert Dropped(SegmentKind.STEP, NodeId(3), "covered-by-summary", 2 * STEP_TOKENS) in assembly.dropped


def test_the_budget_is_never_exceeded_and_the_newest_step_always_shown() -> None:
    path = step_nodes(*[TEXT] * 40)
    for room in range(STEP_TOKENS, 700, 7):
        assembly = assemble(snapshot_of(path), room, tokenizer=False)
        assert assembly.total_tokens <= room
        assert ids(assembly)[-1] == 40


def test_the_cut_moves_once_per_half_room_and_the_prefix_stays_between() -> None:
    room, cuts = 20 * STEP_TOKENS, []
    path = step_nodes(*[TEXT] * 100)
    before: list[int] = []
    for length in range(1, 101):
        assembly = assemble(snapshot_of(path[:length]), room, tokenizer=False)
        shown = ids(assembly)
        cuts.append(assembly.cut)
        assert len(cuts) < 2 or cuts[-1] != cuts[-2] or shown[: len(before)] == before
        before = shown
    moves = [new - old for old, new in pairwise(cuts) if new != old]
    assert set(moves) == {10}
    assert len(moves) == 8


def test_the_cut_does_not_depend_on_what_the_snapshot_left_out() -> None:
    path = step_nodes(*[TEXT] * 100)
    room = 20 * STEP_TOKENS
    whole = assemble(snapshot_of(path), room, tokenizer=False)
    rest = Rest(path[78].node_id, path[78].path_tokens)
    part = assemble(replace(snapshot_of(path[79:]), steps_rest=rest), room, tokenizer=False)
    assert part == whole
    assert part.dropped == (Dropped(SegmentKind.STEP, NodeId(80), "over-budget", 80 * STEP_TOKENS),)


def test_attached_ids_count_instead_of_estimates() -> None:
    path = step_nodes(TEXT, TEXT)
    snapshot = snapshot_of(path, goal="g")
    steps = (replace(snapshot.steps[0], count=5, token_ids=(1, 2, 3, 4, 5)), snapshot.steps[1])
    assembly = assemble(replace(snapshot, steps=steps), 100, tokenizer=True)
    assert [(s.token_count, s.estimated) for s in assembly.segments[1:]] == [(5, False), (STEP_TOKENS, True)]
    assert assembly.segments[1].token_ids == (1, 2, 3, 4, 5)
    assert assembly.untokenized == (0, 2)
    assert assemble(snapshot, 100, tokenizer=False).untokenized == ()


def test_pins_obligations_and_the_newest_step_are_never_dropped() -> None:
    path = step_nodes(TEXT, TEXT)
    summary = summary_node(3, path[:1], SummaryBody("long " * 100, open_obligations=("pay",)))
    snapshot = snapshot_of(path[1:], [summary], goal="g")
    assembly = assemble(snapshot, 60, tokenizer=True)
    shortened = assembly.segments[1]
    assert shortened.content == "[summary 3 of steps 1 to 1, shortened]\nOpen obligations:\n- pay"
    assert 3 not in assembly.untokenized
    assert any(d.node_id == 3 and d.reason == "over-budget" for d in assembly.dropped)
    with pytest.raises(OutOfRangeError) as caught:
        assemble(snapshot, 40, tokenizer=False)
    assert caught.value.reason is Reason.BUDGET_TOO_SMALL
    assert caught.value.metadata["needed_tokens"] == str(assembly.total_tokens)


def test_pins_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(OutOfRangeError, match="pins"):
        assemble(snapshot_of(goal="g" * 300), 50, tokenizer=False)


def test_old_summaries_make_way_before_new_ones() -> None:
    path = step_nodes(*[TEXT] * 5)
    summaries = [summary_node(10 + i, path[i : i + 1], SummaryBody("s" * 90)) for i in range(4)]
    assembly = assemble(snapshot_of(path[4:], summaries), 200, tokenizer=False)
    assert ids(assembly) == [12, 13, 5]
    assert {d.node_id for d in assembly.dropped if d.reason == "over-budget"} == {10, 11}


def test_new_summaries_lengthen_the_prefix_until_the_cut_moves_once_by_half_their_share() -> None:
    path = step_nodes(*[TEXT] * 41)
    room, before, cuts = 400, (0,), list[int]()
    for count in range(1, 40):
        chain = [
            replace(summary_node(100 + i, path[i : i + 1], SummaryBody("s" * 90)), tokens=40, path_tokens=40 * (i + 1))
            for i in range(count)
        ]
        assembly = assemble(snapshot_of(path[40:], chain), room, tokenizer=False)
        shown = tuple(s.node_id for s in assembly.segments if s.kind is SegmentKind.SUMMARY)
        assert shown[-1] == 99 + count, "the newest is shown"
        assert sum(s.token_count for s in assembly.segments if s.kind is SegmentKind.SUMMARY) <= room // SUMMARY_SHARE
        if shown[0] == before[0]:
            assert shown[: len(before)] == before
        else:
            cuts.append(count)
        before = shown
    assert len(cuts) > 3
    assert all(later - earlier > 1 for earlier, later in pairwise(cuts[1:])), "not at each summary"


def test_the_newest_step_takes_the_room_of_a_summary_only_where_both_do_not_fit() -> None:
    path = step_nodes(TEXT, TEXT)
    snapshot = snapshot_of(path[1:], [summary_node(10, path[:1], SummaryBody("s" * 60))])
    both = assemble(snapshot, 300, tokenizer=False)
    assert assemble(snapshot, both.total_tokens, tokenizer=False) == both
    step = assemble(snapshot, both.total_tokens - 1, tokenizer=False)
    assert ids(step) == [n for n in ids(both) if n != 10]
    assert [(d.node_id, d.reason) for d in step.dropped if d.kind is SegmentKind.SUMMARY] == [(10, OVER_BUDGET)]


def test_hints_are_capped_by_count_and_by_share() -> None:
    path = step_nodes(TEXT)
    hints = [hint_node(10 + i, "because", restored_after=1) for i in range(4)]
    few = assemble(snapshot_of(path, hints=hints, hint_limit=2), 4000, tokenizer=False)
    assert ids(few) == [1, 12, 13]
    assert {(d.node_id, d.reason) for d in few.dropped} == {(10, "hint-limit"), (11, "hint-limit")}
    none = assemble(snapshot_of(path, hints=hints[:1]), 80, tokenizer=False)
    assert ids(none) == [1]
    assert none.dropped == (Dropped(SegmentKind.HINT, NodeId(10), "over-budget", few.segments[-1].token_count),)


def test_an_empty_branch_shows_its_pins() -> None:
    assert assemble(snapshot_of(), 10, tokenizer=False).segments == ()
    assert ids(assemble(snapshot_of(goal="g"), 10, tokenizer=False)) == [0]


def test_the_text_hash_covers_role_and_content() -> None:
    user, tool = (
        assemble(snapshot_of(step_nodes(Step("a", role=role))), 50, tokenizer=False).segments[0].text_hash
        for role in ("user", "tool")
    )
    assert user != tool
    assert len(user) == 16


def test_a_long_newest_step_does_not_change_which_summaries_are_shown() -> None:
    path = step_nodes(*[TEXT] * 5, TEXT * 12)
    summaries = [summary_node(10 + i, path[i : i + 1], SummaryBody("s" * 60)) for i in range(4)]
    short = assemble(snapshot_of(path[4:5], summaries), 300, tokenizer=False)
    long = assemble(snapshot_of(path[4:], summaries), 300, tokenizer=False)
    assert ids(long)[: len(short.segments)] == ids(short)


def test_a_step_that_was_shown_before_is_shown_as_it_is_now() -> None:
    (node,) = step_nodes(TEXT)
    redacted = replace(node, body=Step(REDACTED), redacted=True)
    as_it_was, as_it_is = snapshot_of([node]), snapshot_of([redacted])
    for snapshot, said in ((as_it_was, TEXT), (as_it_is, REDACTED), (as_it_was, TEXT), (as_it_is, REDACTED)):
        (shown,) = assemble(snapshot, 400, tokenizer=False).segments
        assert (shown.content, segment_message(shown).content) == (said, said)


def test_short_steps_are_kept_by_identity_and_long_ones_and_calls_are_made_anew() -> None:
    kept = KeptSegments()
    short, long, call = (
        Shown(node, None)
        for node in step_nodes(
            Step("short"), Step("x" * 3000), Step("calls", kind=StepKind.TOOL_CALL, tool_call=ToolCall("1", "f", "{}"))
        )
    )
    assert kept.of(short) is kept.of(short)
    assert kept.of(short) == step_segment(short)
    assert kept.of(replace(short)) is not kept.of(short), "an equal one is another one"
    for shown in (long, call):
        assert kept.of(shown) is not kept.of(shown)
    assert KeptSegments().of(short) is not kept.of(short)
