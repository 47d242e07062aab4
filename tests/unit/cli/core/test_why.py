"""Why something is in a context or is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.cli.core.why import Asked, Assembled, Left, Part, sentence, why

MADE = Assembled(
    "b2",
    100,
    80,
    (
        Part("pin", 0, 5, "system", "Goal: x"),
        Part("summary", 9, 20, "user", "[summary 9 of steps 3 to 6] ...", (3, 6)),
        Part("hint", 12, 9, "user", "branch main was abandoned"),
        Part("step", 13, 7, "user", "hello"),
    ),
    (
        Left("step", 6, "covered-by-summary", 60),
        Left("summary", 4, "over-budget", 30),
        Left("hint", 11, "hint-limit", 9),
        Left("summary", 14, "summary-not-valid", 9),
    ),
    {9: (3, 6), 4: (1, 2), 14: (7, 8)},
)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(13, "step", "b2", True), "step #13 is in the context of b2, with 7 tokens"),
        (Asked(13, "step", "b2", True, redacted=True), "erased: only its place is left"),
        (Asked(5, "step", "b2", True), "summary #9 stands for steps 3 to 6"),
        (Asked(2, "step", "main", True), "summary #4 stands for it, and does not fit the budget (100 tokens)"),
        (Asked(7, "step", "b2", True), "not checked, or a check failed"),
        (Asked(10, "step", "main"), "b2 does not go through it, it was made on main; hint #12 tells why"),
        (Asked(10, "step", "b3"), "b2 does not go through it, it was made on b3"),
        (Asked(11, "hint", "main"), "only the newest hints are shown"),
        (Asked(14, "summary", "b2", note="no such id"), "not checked, or a check failed: what it covers is shown"),
        (Asked(14, "summary", "b2", note="no such id"), "(no such id)"),
        (Asked(21, "summary", "b2", note="no such id"), "its check failed (no such id)"),
        (Asked(20, "summary", "b3"), "b2 does not go by it, it was made on b3"),
        (Asked(22, "slot", "b2"), "a later write took its place"),
    ],
)
def test_the_reason_is_one_sentence(asked: Asked, said: str) -> None:
    included, text = why(asked, MADE)
    assert said in text
    assert included == text.startswith(f"{asked.kind} #{asked.node_id} is in the context")


def test_a_step_that_nothing_covers_is_cut_by_the_budget() -> None:
    bare = replace(MADE, parts=MADE.parts[-1:], left=(Left("step", 5, "over-budget", 40),), ranges={})
    assert "older than what fits 100 tokens" in why(Asked(2, "step", "b2", True), bare)[1]


def test_a_summary_within_another_was_replaced_by_it() -> None:
    made = replace(MADE, ranges={**MADE.ranges, 7: (3, 4)})
    assert "summary #9 took its place: it stands for steps 3 to 6" in why(Asked(7, "summary", "b2"), made)[1]


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (Left("step", 6, "covered-by-summary", 1), "summary #9 stands for them"),
        (Left("step", 99, "covered-by-summary", 1), "a summary stands for them"),
        (Left("step", 6, "over-budget", 1), "older than what fits the budget"),
        (Left("hint", 6, "over-budget", 1), "does not fit the budget"),
        (Left("step", 6, "of-tomorrow", 1), "of-tomorrow"),
    ],
)
def test_what_was_left_out_has_its_reason_in_words(left: Left, said: str) -> None:
    assert sentence(left, MADE) == said
