"""The official `openai` client, unmodified and strict: a reply that is not of its schema fails the test."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types.responses import ResponseCompletedEvent, ResponseIncompleteEvent, ResponseTextDeltaEvent

from katsura.testing.house import MODEL, House

pytestmark = pytest.mark.asyncio(loop_scope="session")

LETTERS = {str(index): 100 for index in range(64, 90)}
EXAMPLE = Path(__file__).parents[2] / "examples" / "openai_client.py"


@pytest.fixture
def client(house: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{house.url}/v1", api_key="local", max_retries=0, timeout=60, _strict_response_validation=True
    ) as made:
        yield made


@pytest.fixture
def aclient(house: House) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{house.url}/v1", api_key="local", max_retries=0, timeout=60, _strict_response_validation=True
    )


async def test_models_are_listed_and_read(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "katsura"


async def test_a_chat_is_answered_whole_and_streamed(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6, "temperature": 0}
    whole = client.chat.completions.create(**asked, logit_bias=LETTERS, logprobs=True, top_logprobs=2)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 6
    assert whole.choices[0].logprobs is not None
    text, usage = "", None
    for chunk in client.chat.completions.create(
        **asked, logit_bias=LETTERS, stream=True, stream_options={"include_usage": True}
    ):
        text += chunk.choices[0].delta.content or "" if chunk.choices else ""
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert usage is not None
    assert usage.prompt_tokens == whole.usage.prompt_tokens


async def test_the_async_client_streams_too(aclient: openai.AsyncOpenAI) -> None:
    async with aclient:
        stream = await aclient.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=4, stream=True
        )
        reasons = [chunk.choices[0].finish_reason async for chunk in stream]
    assert [reason for reason in reasons if reason] in (["length"], ["stop"])


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"model": "nothing"}, openai.NotFoundError, "model"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
        ({"extra_headers": {"authorization": "Bearer ksk_wrong"}}, openai.AuthenticationError, None),
    ],
)
async def test_errors_are_the_clients_own_classes(
    client: openai.OpenAI, change: dict[str, object], error: type[openai.APIStatusError], param: str | None
) -> None:
    asked: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], **change}
    with pytest.raises(error) as failure:
        client.chat.completions.create(**asked)
    assert failure.value.param == param
    assert failure.value.code


async def test_a_response_is_kept_read_continued_and_deleted(client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="hello", max_output_tokens=6, metadata={"who": "ada"})
    assert first.status in ("completed", "incomplete")
    read = client.responses.retrieve(first.id)
    assert (read.output_text, read.metadata, read.usage) == (first.output_text, {"who": "ada"}, first.usage)
    second = client.responses.create(model=MODEL, input="go on", previous_response_id=first.id, max_output_tokens=6)
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    client.responses.delete(first.id)
    for gone in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            gone(first.id)
    assert client.responses.retrieve(second.id).output_text == second.output_text


async def test_the_events_of_a_response_come_in_order(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(
            model=MODEL,
            input="hello",
            max_output_tokens=5,
            temperature=0,
            stream=True,
            extra_body={"logit_bias": LETTERS},
        )
    )
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert isinstance(last, ResponseCompletedEvent | ResponseIncompleteEvent)
    text = "".join(event.delta for event in events if isinstance(event, ResponseTextDeltaEvent))
    assert last.response.output_text == text
    assert client.responses.retrieve(last.response.id).output_text == text


async def test_the_async_client_continues_a_response(aclient: openai.AsyncOpenAI) -> None:
    async with aclient:
        first = await aclient.responses.create(model=MODEL, input="hello", max_output_tokens=4)
        second = await aclient.responses.create(
            model=MODEL, input="more", previous_response_id=first.id, max_output_tokens=4
        )
    assert second.previous_response_id == first.id


async def test_the_example_runs(house: House) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLE), "--url", house.url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    assert f"models: {MODEL}" in out.decode()
    assert "response resp_" in out.decode()
