from __future__ import annotations

from collections.abc import Sequence

from katsura.gateway.core.answer_ids import answer_ids

OPEN, END, NEWLINE, HI, HEY = 1, 2, 3, 10, 11
TEXT = {OPEN: "<a>", END: "<e>", NEWLINE: "\n", HI: "hi", HEY: "hey"}
RENDERED = "<a>hi<e>\n"


def decode(ids: Sequence[int]) -> str:
    return "".join(TEXT[index] for index in ids)


def encode(text: str) -> list[int]:
    return {"<a>": [OPEN], "<e>\n": [END, NEWLINE], "": []}[text]


def ids(drawn: Sequence[int], rendered: str = RENDERED, content: str = "hi") -> list[int] | None:
    return answer_ids(rendered, "<a>", content, drawn, decode, encode, frozenset({END}))


def test_the_drawn_stop_token_begins_the_closing() -> None:
    assert ids([HI, END]) == [OPEN, HI, END, NEWLINE]


def test_an_answer_that_ran_out_is_closed_by_the_template() -> None:
    assert ids([HI]) == [OPEN, HI, END, NEWLINE]


def test_text_that_a_stop_string_cut_has_no_drawn_ids() -> None:
    assert ids([HEY], content="he", rendered="<a>he<e>\n") is None


def test_a_template_that_changes_the_content_has_no_drawn_ids() -> None:
    assert ids([HI, END], rendered="<a> hi <e>\n") is None


def test_another_stop_token_than_the_templates_has_no_drawn_ids() -> None:
    assert answer_ids("<a>hi", "<a>", "hi", [HI, END], decode, encode, frozenset({END})) is None


def test_nothing_drawn_has_no_ids() -> None:
    assert ids([], content="", rendered="<a><e>\n") is None
