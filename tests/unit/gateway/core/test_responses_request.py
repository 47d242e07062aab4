from __future__ import annotations

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.gateway.core.chat_request import Message
from katsura.gateway.core.responses_request import ResponsesRequest, read_responses_request


def body(**fields: object) -> dict[str, object]:
    return {"model": "m", "input": "hi", **fields}


def test_a_string_is_the_users_message() -> None:
    assert read_responses_request(body()) == ResponsesRequest(model="m", messages=(Message("user", "hi"),))


def test_items_of_every_supported_form_are_read() -> None:
    items = [
        {"role": "developer", "content": "be brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}],
        },
    ]
    found = read_responses_request(body(input=items)).messages
    assert found == (Message("system", "be brief"), Message("user", "q"), Message("assistant", "a"))


def test_neutral_values_pass() -> None:
    quiet = body(
        tools=[], tool_choice="auto", background=False, truncation="disabled", text={"format": {"type": "text"}},
        reasoning={}, include=[], stream_options={"include_obfuscation": False}, metadata={},
    )  # fmt: skip
    assert read_responses_request(quiet) == read_responses_request(body())


def test_log_probabilities_are_asked_for_by_include() -> None:
    assert read_responses_request(body(include=["message.output_text.logprobs"])).sampling.top_logprobs == 0
    assert read_responses_request(body(top_logprobs=3)).sampling.top_logprobs == 3
    assert read_responses_request(body()).sampling.top_logprobs == -1


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"model": "m"}, "input"),
        ({"input": "x"}, "model"),
        (body(input=[]), "input"),
        (body(input=7), "input"),
        (body(input=[{"type": "function_call_output"}]), "input[0].type"),
        (body(input=[{"role": "user", "content": [{"type": "input_image"}]}]), "input[0].content[0].type"),
        (body(input=[{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]), "input[0].content[0].type"),
        (body(input=[{"role": "tool", "content": "x"}]), "input[0].role"),
        (body(max_output_tokens=-4), "max_output_tokens"),
        (body(store="no"), "store"),
        (body(tools=[{"type": "web_search"}]), "tools"),
        (body(text={"format": {"type": "json_schema"}}), "text.format"),
        (body(background=True), "background"),
        (body(conversation="conv_1"), "conversation"),
        (body(truncation="auto"), "truncation"),
        (body(reasoning={"effort": "high"}), "reasoning"),
        (body(include=["file_search_call.results"]), "include[0]"),
        (body(n=2), "n"),
        (body(messages=[]), "messages"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(value: object, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as failure:
        read_responses_request(value)
    assert failure.value.field == field
