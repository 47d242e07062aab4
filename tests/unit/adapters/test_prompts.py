"""Questions to a model, and reading its answers."""

from __future__ import annotations

import pytest

from katsura.adapters.prompts import (
    check_messages,
    mend_messages,
    summarise_messages,
    summary_from,
    verdict_from,
)
from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1 import work_service_pb2 as pb

STEPS = [
    tree_pb.Node(node_id=4, step=tree_pb.Step(role="user", content="Find a room.")),
    tree_pb.Node(node_id=5, step=tree_pb.Step(role="tool", content="H-7 " + "x" * 5000 + " 900 USD")),
]


def work(**fields: object) -> pb.ClaimedWork:
    return pb.ClaimedWork(goal="Kyoto", pins=["at most 950 USD"], **fields)  # type: ignore[arg-type]


def test_a_question_tells_goal_pins_and_steps_and_shortens_long_ones_in_the_middle() -> None:
    asked = summarise_messages(work(open_obligations=["pay"]), STEPS, 1000)
    text = asked[1]["content"]
    for part in ("Goal: Kyoto", "Constraint: at most 950 USD", "owed from before: pay", "[4] user: Find a room."):
        assert part in text
    assert "[5] tool: H-7 xxx" in text
    assert text.endswith("900 USD")
    assert len(text) < 1200


def test_a_question_tells_why_the_last_summary_was_refused() -> None:
    asked = summarise_messages(work(item=pb.WorkItem(reason="it invents a room")), STEPS, 1000)
    assert "refused: it invents a room" in asked[1]["content"]
    again = mend_messages(asked, "SUMMARY: x", ["id 'h-9' does not occur"])
    assert again[:2] == asked
    assert [m["role"] for m in again[2:]] == ["assistant", "user"]
    assert "- id 'h-9' does not occur" in again[3]["content"]


def test_a_labelled_answer_becomes_a_summary_with_lists() -> None:
    body = summary_from("**Summary:** Found H-7\nfor 900 USD.\n- FACT: H-7 has a view\nFACTS: x\nDECISION: take it\n\n")
    assert body.text == "Found H-7\nfor 900 USD."
    assert list(body.facts) == ["H-7 has a view", "x"]
    assert list(body.decisions) == ["take it"]


def test_an_answer_without_labels_is_the_text_and_an_empty_one_is_refused() -> None:
    assert summary_from(" Found H-7. ").text == "Found H-7."
    for empty in ("", "  \n", "FACT: only this"):
        with pytest.raises(ValueError, match="no summary"):
            summary_from(empty)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [("VERDICT: PASS\nNOTE: fine", tree_pb.VERDICT_PASS), ("**Verdict**: fail", tree_pb.VERDICT_FAIL)],
)
def test_a_verdict_is_read(answer: str, verdict: tree_pb.Verdict.ValueType) -> None:
    assert verdict_from(answer, "w").fidelity == verdict


@pytest.mark.parametrize("answer", ["", "PASS", "VERDICT: PASSABLE", "VERDICT: PASS or FAIL\nVERDICT: FAIL", "I agree"])
def test_what_is_no_verdict_is_never_taken_for_one(answer: str) -> None:
    with pytest.raises(ValueError, match="no verdict"):
        verdict_from(answer, "w")


def test_a_check_shows_the_summary_beside_the_steps() -> None:
    summary = tree_pb.Summary(summary_body=tree_pb.SummaryBody(text="Found H-7.", facts=["900 USD"]))
    asked = check_messages(work(summary=tree_pb.Node(summary=summary)), STEPS, 1000)
    assert asked[1]["content"].endswith("Summary:\nFound H-7.\nFacts: 900 USD")
