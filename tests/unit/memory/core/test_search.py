"""What search looks at and shows."""

from __future__ import annotations

from katsura.domain.ids import BranchName, NodeId
from katsura.domain.trees import ROOT, Hint, Step, Summary, SummaryBody, ToolCall
from katsura.memory.core.search import excerpt_around, lower, says, words_of


def test_words_are_different_and_in_lower_case() -> None:
    assert words_of("  Hotel KYOTO hotel\n") == ("hotel", "kyoto")
    assert words_of(" \t") == ()
    assert len(words_of(" ".join(map(str, range(99))))) == 16


def test_only_ascii_letters_lose_their_case() -> None:
    assert lower("AZ Ä [É]") == "az Ä [É]"


def test_every_text_of_a_node_counts_and_nothing_else() -> None:
    step = Step("Look", tool_call=ToolCall("id7", "search", '{"q":"Kyoto"}'), attributes={"key": "Value"})
    assert says(step, ("look", "search", "kyoto", "value"))
    assert not says(step, ("user",))
    assert not says(step, ("key",))
    summary = Summary(0, ROOT, ROOT, 1, b"", SummaryBody("T", ("f1",), ("d1",), ("o1",), ("a1",)), "agent", 1, 1, 1)
    assert says(summary, ("t", "f1", "d1", "o1", "a1"))
    assert not says(summary, ("agent",))
    hint = Hint(BranchName("main"), NodeId(1), ROOT, "too dear", "booked", ROOT)
    assert says(hint, ("dear", "booked"))


def test_an_excerpt_is_one_line_around_the_first_word() -> None:
    text = "x" * 100 + " the\n NEEDLE " + "y" * 200
    shown = excerpt_around(Step(text), ("needle",))
    assert "the NEEDLE y" in shown
    assert shown.startswith("… ")
    assert shown.endswith(" …")
    assert excerpt_around(Step("short"), ("short",)) == "short"
