"""Messages that are remembered are serialised as LangGraph does it, byte for byte, whatever was done to them since."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from katsura.adapters.messages import encoded
from katsura.adapters.ropes import Body, Value

SERDE = JsonPlusSerializer(pickle_fallback=False)


class Counting(JsonPlusSerializer):
    """LangGraph's serializer that counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__(pickle_fallback=False)
        self.asked: list[Any] = []

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        self.asked.append(obj)
        return super().dumps_typed(obj)


class Remembered:
    """Version after version of one value."""

    def __init__(self, serde: JsonPlusSerializer) -> None:
        self.serde = serde
        self.body: Body | None = None
        self.last: Value | None = None

    def dumps_typed(self, value: Any) -> tuple[str, bytes]:
        """The type and the bytes of the next version; what it says it shares with the version before, it shares."""
        before = self.body[:] if self.body is not None else b""
        self.last = encoded(self.serde, value, self.body)
        self.body = self.last.body
        whole = self.body[:]
        assert len(whole) == len(self.body)
        assert whole[: self.last.same] == before[: self.last.same]
        assert self.body[self.last.same :] == whole[self.last.same :]
        return self.last.kind, self.last.head + whole


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


def test_what_a_list_shows_no_more_is_forgotten_and_what_moved_is_not_serialised_again() -> None:
    serde = Counting()
    remembered, messages = Remembered(serde), [made(n) for n in range(20)]
    assert remembered.dumps_typed(messages) == SERDE.dumps_typed(messages)
    serde.asked.clear()
    assert remembered.dumps_typed(messages[4:]) == SERDE.dumps_typed(messages[4:])
    assert serde.asked == []
    assert remembered.body is not None
    assert len(remembered.body) == len(SERDE.dumps_typed(messages[4:])[1]) - 3
    remembered.dumps_typed(messages)
    assert serde.asked == messages[:4]


def test_a_list_that_grows_says_how_much_of_it_stays_and_one_that_was_read_as_bytes_as_well() -> None:
    messages = [made(n) for n in range(20)]
    remembered = Remembered(SERDE)
    whole = SERDE.dumps_typed(messages)[1][3:]
    remembered.body = whole  # as it came from the service
    for more in range(3):
        before = remembered.body[:]
        remembered.dumps_typed([*messages, *(made(n) for n in range(more))])
        assert remembered.last is not None
        assert remembered.last.same == len(before)


@given(st.lists(st.lists(st.integers(0, 11), max_size=12), min_size=1, max_size=6))
def test_any_selection_of_messages_after_any_other_is_serialised_as_langgraph_does(takes: list[list[int]]) -> None:
    remembered, messages = Remembered(SERDE), [made(n) for n in range(12)]
    for take in takes:
        chosen = [messages[at] for at in take]
        assert remembered.dumps_typed(chosen) == SERDE.dumps_typed(chosen)
