from __future__ import annotations

from katsura.gateway.core.chat_request import Message
from katsura.gateway.core.prompt import Part, Prompt, build


def encode(text: str) -> list[int]:
    return [ord(char) for char in text]


def part(node_id: int = 0, *ids: int) -> Part:
    return Part(Message("user", "x"), node_id, ids)


def test_ids_that_a_node_carries_are_taken_and_the_rest_is_made() -> None:
    prompt = build([part(7, 900, 901), part(8), part(0)], ["P", "a", "b", "c", "G"], encode)
    assert prompt == Prompt((80, 900, 901, 98, 99, 71), "G", {8: (98,)})


def test_without_nodes_nothing_is_attached() -> None:
    assert build([part(), part()], ["", "a", "b", "G"], encode) == Prompt((97, 98, 71), "G", {})


def test_a_template_that_cannot_be_cut_is_tokenised_anew_and_attaches_nothing() -> None:
    prompt = build([part(7, 900), part(8)], ["", "", "ab", "G"], encode)
    assert prompt == Prompt((97, 98, 71), "G", {})
