"""Items of the OpenAI Agents SDK survive the tree, and the tree can be read without them."""

from __future__ import annotations

from typing import Any

import pytest

from katsura.adapters.items import item_of, step_of
from katsura.api.memory.v1 import memory_pb2 as pb

ITEMS: list[dict[str, Any]] = [
    {"role": "user", "content": "Hello"},
    {"role": "developer", "content": "Be brief."},
    {"type": "message", "role": "assistant", "id": "m1", "content": [{"type": "output_text", "text": "Hi"}]},
    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Kyoto"}'},
    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}", "id": "f1", "status": "completed"},
    {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    {"type": "reasoning", "id": "r1", "summary": [{"type": "summary_text", "text": "It may rain."}]},
    {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}, {"type": "input_text", "text": "?"}]},
]


@pytest.mark.parametrize("item", ITEMS)
def test_an_item_comes_back_as_it_went_in(item: dict[str, Any]) -> None:
    assert item_of(step_of(item)) == item


def test_steps_say_who_spoke_and_what_and_keep_bytes_only_where_words_do_not_do() -> None:
    steps = [step_of(item) for item in ITEMS]
    assert [step.role for step in steps] == [
        "user", "system", "assistant", "assistant", "assistant", "tool", "assistant", "user",
    ]  # fmt: skip
    assert [step.content for step in steps] == ["Hello", "Be brief.", "Hi", "", "", "rain", "It may rain.", "?"]
    assert [bool(step.opaque) for step in steps] == [False, True, True, False, True, True, True, True]
    assert (steps[3].tool_call.name, steps[3].kind) == ("weather", pb.STEP_KIND_TOOL_CALL)


def test_a_step_that_somebody_else_wrote_is_a_message() -> None:
    assert item_of(pb.Step(role="assistant", content="x")) == {"role": "assistant", "content": "x"}
    assert item_of(pb.Step(role="tool", content="x")) == {"role": "user", "content": "[tool] x"}
