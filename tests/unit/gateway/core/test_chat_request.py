from __future__ import annotations

import pytest

from katsura.domain.errors import InvalidArgumentError, Reason
from katsura.gateway.core.chat_request import ChatRequest, Message, read_chat_request
from katsura.gateway.core.sampling_request import Sampling

USER = {"role": "user", "content": "hi"}


def body(**fields: object) -> dict[str, object]:
    return {"model": "m", "messages": [USER], **fields}


def refused(value: object) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as failure:
        read_chat_request(value)
    return failure.value


def test_the_smallest_request_has_openais_defaults() -> None:
    assert read_chat_request(body()) == ChatRequest(model="m", messages=(Message("user", "hi"),))
    assert Sampling().temperature == 1.0


def test_every_honoured_field_is_read() -> None:
    request = read_chat_request(
        body(
            temperature=0,
            top_p=0.5,
            top_k=7,
            seed=-3,
            presence_penalty=1,
            frequency_penalty=-1,
            logit_bias={"5": -100},
            logprobs=True,
            top_logprobs=2,
            max_completion_tokens=9,
            stop=["a", "b"],
            n=3,
            stream=True,
            stream_options={"include_usage": True},
            metadata={"session_id": "s1"},
        )
    )
    assert request == ChatRequest(
        model="m",
        messages=(Message("user", "hi"),),
        sampling=Sampling(0.0, 0.5, 7, -3, 1.0, -1.0, {5: -100.0}, 2),
        max_new_tokens=9,
        stop=("a", "b"),
        choice_count=3,
        stream=True,
        include_usage=True,
        metadata={"session_id": "s1"},
    )


def test_null_means_absent_and_empty_means_nothing_asked() -> None:
    quiet = body(
        temperature=None,
        stop=None,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        n=None,
        functions=[],
    )
    assert read_chat_request(quiet) == read_chat_request(body())


def test_harmless_fields_change_nothing() -> None:
    noisy = body(user="u", store=True, service_tier="auto", safety_identifier="x", prompt_cache_key="k")
    assert read_chat_request(noisy) == read_chat_request(body())


def test_text_parts_join_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = read_chat_request(body(messages=[{"role": "developer", "content": parts}, USER]))
    assert request.messages[0] == Message("system", "a\nb")


def test_an_answer_of_the_official_client_can_be_sent_back() -> None:
    dumped = {"role": "assistant", "content": "yes", "refusal": None, "annotations": None, "tool_calls": None}
    assert read_chat_request(body(messages=[USER, dumped])).messages[1] == Message("assistant", "yes")


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ([], None),
        ("text", None),
        ({"messages": [USER]}, "model"),
        ({"model": 3, "messages": [USER]}, "model"),
        ({"model": "m"}, "messages"),
        (body(messages=[]), "messages"),
        (body(messages={}), "messages"),
        (body(messages=["x"]), "messages[0]"),
        (body(messages=[USER, {"role": "boss", "content": "x"}]), "messages[1].role"),
        (body(messages=[USER, {"role": "user"}]), "messages[1].content"),
        (body(messages=[USER, {"role": "user", "content": 4}]), "messages[1].content"),
        (body(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content[0].type"),
        (body(messages=[{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
        (body(messages=[{"role": "user", "content": "x", "colour": 1}]), "messages[0].colour"),
        (body(messages=[{"role": "user", "content": "\ud800"}]), "messages[0].content"),
        (body(max_tokens=-1), "max_tokens"),
        (body(max_tokens=0), "max_tokens"),
        (body(max_tokens="5"), "max_tokens"),
        (body(max_tokens=True), "max_tokens"),
        (body(max_tokens=4, max_completion_tokens=5), "max_tokens"),
        (body(temperature=2.1), "temperature"),
        (body(temperature=float("inf")), "temperature"),
        (body(top_p=0), "top_p"),
        (body(seed=2**63), "seed"),
        (body(seed=1.5), "seed"),
        (body(n=0), "n"),
        (body(stop=""), "stop"),
        (body(stop=["ok", 4]), "stop[1]"),
        (body(stop=["x"] * 17), "stop"),
        (body(top_logprobs=2), "top_logprobs"),
        (body(logprobs=True, top_logprobs=21), "top_logprobs"),
        (body(logit_bias={"x": 1}), "logit_bias.x"),
        (body(logit_bias={"9" * 5000: 1}), f"logit_bias.{'9' * 5000}"),
        (body(logit_bias={"4": 101}), "logit_bias.4"),
        (body(logit_bias=[1]), "logit_bias"),
        (body(stream="yes"), "stream"),
        (body(stream_options={"include_usage": True}), "stream_options"),
        (body(stream=True, stream_options={"include_usages": True}), "stream_options.include_usages"),
        (body(metadata={"a": 1}), "metadata.a"),
        (body(metadata=[]), "metadata"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_path(value: object, field: str | None) -> None:
    assert refused(value).field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("modalities", ["audio"]),
        ("audio", {}),
        ("prediction", {"type": "content"}),
        ("reasoning_effort", "high"),
        ("web_search_options", {}),
        ("min_p", 0.1),
        ("repetition_penalty", 1.1),
        ("unheard_of", 0),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(field: str, value: object) -> None:
    error = refused(body(**{field: value}))
    assert (error.field, error.reason) == (field, Reason.UNSUPPORTED_FIELD)


def test_tool_messages_are_refused() -> None:
    assert refused(body(messages=[USER, {"role": "tool", "content": "x"}])).field == "messages[1].role"
    call = {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}
    assert refused(body(messages=[USER, call])).field == "messages[1].tool_calls"


ANYTHING: list[object] = [
    None, True, False, 0, -1, 1, 2**63, 10**40, 1.5, -1e308, float("inf"), float("nan"), "", "x", "\x00", "\ud800",
    "²", "9" * 5000, [], [None], [[]], [0], {}, {"": 1}, {"²": 1}, {"9" * 5000: 1}, {"type": "text"}, ["a", "b"],
]  # fmt: skip
FIELDS = [
    "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens",
    "max_tokens", "messages", "metadata", "modalities", "model", "n", "prediction", "presence_penalty",
    "reasoning_effort", "response_format", "seed", "stop", "stream", "stream_options", "temperature", "tool_choice",
    "tools", "top_k", "top_logprobs", "top_p", "verbosity", "web_search_options", "whatever",
]  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_whatever_stands_in_a_field_is_read_or_refused_by_its_name(field: str) -> None:
    refusals: list[InvalidArgumentError] = []
    for value in ANYTHING:
        try:
            read_chat_request(body(**{field: value}))
        except InvalidArgumentError as error:
            refusals.append(error)
    assert refusals
    for error in refusals:
        assert (error.field or "").startswith(field)
        assert error.message.startswith(error.field or "?")
