"""Remembered messages are serialised as LangGraph serialises them, byte for byte, whatever was done to them since."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from katsura.adapters.messages import Remembered

SERDE = JsonPlusSerializer(pickle_fallback=False)


class Counting(JsonPlusSerializer):
    """LangGraph's serializer that counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__(pickle_fallback=False)
        self.asked: list[Any] = []

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        self.asked.append(obj)
        return super().dumps_typed(obj)


def made(number: int) -> BaseMessage:
    kinds: list[BaseMessage] = [
        AIMessage(
            [{"type": "text", "text": f"{number}"}],
            id=f"m{number}",
            tool_calls=[{"name": "look", "args": {"at": [number]}, "id": f"c{number}"}],
            usage_metadata={"input_tokens": number, "output_tokens": 1, "total_tokens": number + 1},
        ),
        HumanMessage(f"{number}", name="ann"),
        SystemMessage(f"{number}", additional_kwargs={"deep": {"er": [number, None, 0.5]}}),
        ToolMessage(f"{number}", tool_call_id=f"c{number}", artifact={"n": number}),
    ]
    return kinds[number % len(kinds)]


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 300])
def test_a_list_of_any_length_is_serialised_as_langgraph_does(count: int) -> None:
    remembered, messages = Remembered(SERDE), [made(n) for n in range(count)]
    for _ in range(2):
        assert remembered.dumps_typed(messages) == SERDE.dumps_typed(messages)


def test_more_messages_than_sixteen_bits_count_are_counted() -> None:
    messages = [HumanMessage("x", id="x")] * 65_536
    assert Remembered(SERDE).dumps_typed(messages) == SERDE.dumps_typed(messages)


def test_only_new_messages_are_serialised() -> None:
    serde = Counting()
    remembered, messages = Remembered(serde), [made(n) for n in range(8)]
    remembered.dumps_typed(messages)
    serde.asked.clear()
    new = made(9)
    remembered.dumps_typed([*messages, new])
    assert serde.asked == [new]


def change(message: Any, how: int) -> None:
    match how:
        case 0:
            message.content = "other"
        case 1:
            message.additional_kwargs["new"] = {"a": [1]}
        case 2:
            message.additional_kwargs.setdefault("list", []).append(None)
        case 3:
            message.response_metadata["model"] = "m"
        case 4:
            message.id = "another"
        case 5:
            message.surprise = {"beside": "the fields"}
        case 6:
            message.additional_kwargs["odd"] = {"set", "of"}
        case 7:
            message.additional_kwargs["odd"] = (1, [2])
        case 8 if isinstance(message.content, list):
            message.content[0]["text"] += "!"


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 8)), max_size=12))
def test_a_change_in_place_is_seen_however_deep(changes: list[tuple[int, int]]) -> None:
    remembered, messages = Remembered(SERDE), [made(n) for n in range(12)]
    remembered.dumps_typed(messages)
    for at, how in changes:
        change(messages[at], how)
        assert remembered.dumps_typed(messages) == SERDE.dumps_typed(messages)


def test_other_values_and_other_messages_pass_through() -> None:
    class Own(HumanMessage):
        """Whose serialisation is its own business."""

    remembered = Remembered(SERDE)
    for value in (None, b"x", "text", {"a": [1]}, [1, "a"], [made(0), "a"], (made(0),), [Own(content="x", id="o")]):
        assert remembered.dumps_typed(value) == SERDE.dumps_typed(value)


def test_a_message_that_is_gone_is_not_taken_for_a_new_one_at_its_place_in_memory() -> None:
    remembered = Remembered(SERDE)
    for n in range(2_000):
        messages = [HumanMessage(f"{n}")]
        assert remembered.dumps_typed(messages) == SERDE.dumps_typed(messages)
        del messages


def test_what_no_list_shows_any_more_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("katsura.adapters.messages._KEPT", 4)
    serde = Counting()
    remembered, kept = Remembered(serde), [made(0), made(1)]
    remembered.dumps_typed([*kept, *(made(n) for n in range(20))])
    remembered.dumps_typed(kept)
    assert len(remembered._known) == 2
    serde.asked.clear()
    remembered.dumps_typed(kept)
    assert serde.asked == []
