"""The gateway over real processes: what clients may send, and how every mistake is answered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from katsura.testing.house import MODEL, House

pytestmark = pytest.mark.asyncio(loop_scope="session")

LETTERS = {str(index): 100 for index in range(64, 90)}
"""Token ids of the tiny tokenizer that are letters: a bias towards them makes its noise readable."""


@pytest_asyncio.fixture(loop_scope="session")
async def client(house: House) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=house.url, timeout=60) as made:
        yield made


def ask(content: str = "Say something.", **fields: object) -> dict[str, object]:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0}
    return {**asked, "logit_bias": LETTERS, **fields}


def error_of(reply: httpx.Response) -> dict[str, object]:
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


def events(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


async def test_a_stream_says_what_the_whole_answer_says(client: httpx.AsyncClient) -> None:
    whole = (await client.post("/v1/chat/completions", json=ask())).json()
    stream = await client.post("/v1/chat/completions", json=ask(stream=True, stream_options={"include_usage": True}))
    assert stream.headers["content-type"].startswith("text/event-stream")
    *chunks, last, done = events(stream.text)
    assert done == "[DONE]"
    deltas = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert deltas[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    text = "".join(delta["delta"].get("content", "") for delta in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    assert len(text) == 8
    assert [delta["finish_reason"] for delta in deltas if delta["finish_reason"]] == ["length"]
    assert json.loads(last)["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 8


async def test_an_equal_prompt_is_found_in_the_cache(client: httpx.AsyncClient) -> None:
    first = (await client.post("/v1/chat/completions", json=ask("The same thing twice, please."))).json()["usage"]
    again = (await client.post("/v1/chat/completions", json=ask("The same thing twice, please."))).json()["usage"]
    assert again["prompt_tokens"] == first["prompt_tokens"]
    cached = again["prompt_tokens_details"]["cached_tokens"]
    assert cached == (again["prompt_tokens"] - 1) // 16 * 16


async def test_a_seed_repeats_and_choices_differ(client: httpx.AsyncClient) -> None:
    body = ask(temperature=1.5, n=3, seed=11, max_tokens=12)
    one = (await client.post("/v1/chat/completions", json=body)).json()
    two = (await client.post("/v1/chat/completions", json=body)).json()
    texts = [choice["message"]["content"] for choice in one["choices"]]
    assert [choice["message"]["content"] for choice in two["choices"]] == texts
    assert len(set(texts)) == 3
    assert [choice["index"] for choice in one["choices"]] == [0, 1, 2]


async def test_a_stop_string_is_cut_and_ends_the_answer(client: httpx.AsyncClient) -> None:
    whole = (await client.post("/v1/chat/completions", json=ask())).json()["choices"][0]["message"]["content"]
    stop = whole[3:5]
    cut = (await client.post("/v1/chat/completions", json=ask(stop=stop))).json()["choices"][0]
    assert cut["message"]["content"] == whole[: whole.index(stop)]
    assert cut["finish_reason"] == "stop"


async def test_log_probabilities_come_with_alternatives(client: httpx.AsyncClient) -> None:
    reply = (await client.post("/v1/chat/completions", json=ask(logprobs=True, top_logprobs=3))).json()
    entries = reply["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == reply["choices"][0]["message"]["content"]
    assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 3 for entry in entries)
    assert (await client.post("/v1/chat/completions", json=ask())).json()["choices"][0]["logprobs"] is None


async def test_models_are_listed_and_found_by_alias(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == [MODEL]
    assert (await client.get("/v1/models/tiny-alias")).json()["id"] == MODEL
    unknown = await client.get("/v1/models/nothing")
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "model_not_found")
    aliased = await client.post("/v1/chat/completions", json=ask(model="tiny-alias"))
    assert aliased.json()["model"] == MODEL


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"model": "nothing"}, 404, "model", "model_not_found"),
        ({"max_tokens": -1}, 400, "max_tokens", "invalid_value"),
        ({"max_tokens": 5000}, 400, "max_tokens", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, 400, "messages", "context_length_exceeded"),
        ({"messages": "hello"}, 400, "messages", "invalid_value"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_parameter"),
        ({"metadata": {"session_id": "nobody-knows"}}, 404, "metadata.session_id", "session_not_found"),
        ({"metadata": {"session_id": "not a name"}}, 400, "metadata.session_id", "invalid_value"),
        ({"metadata": {"session_branch": "b"}}, 400, "metadata.session_branch", "invalid_value"),
        ({"logit_bias": {"9999999": 1}}, 400, "logit_bias", "invalid_value"),
    ],
)
async def test_a_wrong_field_is_named(
    client: httpx.AsyncClient, change: dict[str, object], status: int, param: str, code: str
) -> None:
    reply = await client.post("/v1/chat/completions", json=ask(**change))
    error = error_of(reply)
    assert (reply.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[]", 400),
        (b'"text"', 400),
        (b'{"model": NaN}', 400),
        (b'{"model": ' + b"9" * 5_000 + b"}", 400),
        (b"[" * 100_000, 400),
        (b'{"model": "' + b"x" * 2_000_000 + b'"}', 413),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/sessions"])
async def test_what_is_not_a_json_object_is_answered_in_the_envelope(
    client: httpx.AsyncClient, path: str, body: bytes, status: int
) -> None:
    reply = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == status
    assert error_of(reply)["type"] == "invalid_request_error"


async def test_a_body_without_a_length_is_limited_too(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65_536

    reply = await client.post("/v1/chat/completions", content=endless())
    assert (reply.status_code, error_of(reply)["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405), ("PUT", "/v1/models", 405), ("POST", "/", 404)],
)
async def test_routes_and_methods_that_are_not_there_are_answered_in_the_envelope(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    reply = await client.request(method, path)
    assert reply.status_code == status
    error_of(reply)


@pytest.mark.parametrize("timeout", ["0", "-1", "soon", "nan"])
async def test_a_deadline_must_be_a_number_of_seconds(client: httpx.AsyncClient, timeout: str) -> None:
    reply = await client.post("/v1/chat/completions", json=ask(), headers={"x-request-timeout-s": timeout})
    assert (reply.status_code, error_of(reply)["param"]) == (400, "x-request-timeout-s")


async def test_a_deadline_that_passes_is_a_typed_error_and_the_next_request_works(client: httpx.AsyncClient) -> None:
    late = await client.post("/v1/chat/completions", json=ask(max_tokens=900), headers={"x-request-timeout-s": "0.02"})
    assert (late.status_code, error_of(late)["code"]) == (504, "deadline")
    assert "allow more time" in str(error_of(late)["message"])
    assert (await client.post("/v1/chat/completions", json=ask())).status_code == 200


async def test_every_reply_carries_the_request_id(client: httpx.AsyncClient) -> None:
    named = await client.get("/v1/models", headers={"x-request-id": "mine-1"})
    assert named.headers["x-request-id"] == "mine-1"
    assert (await client.get("/nowhere")).headers["x-request-id"].startswith("req-")
    forged = await client.get("/v1/models", headers={"x-request-id": "a b"})
    assert forged.headers["x-request-id"].startswith("req-")


async def test_pages_from_elsewhere_get_nothing_without_a_key(client: httpx.AsyncClient) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
        reply = await client.get("/v1/models", headers=headers)
        assert (reply.status_code, error_of(reply)["code"]) == (401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer"
    wrong = await client.get("/v1/models", headers={"authorization": "Bearer ksk_nobody"})
    assert wrong.status_code == 401
    assert (await client.get("/v1/models", headers={"authorization": "Bearer anything"})).status_code == 200


async def test_metrics_have_the_names_that_dashboards_know(client: httpx.AsyncClient) -> None:
    await client.post("/v1/chat/completions", json=ask())
    text = (await client.get("/metrics")).text
    for name in (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_bucket",
        "vllm:e2e_request_latency_seconds_bucket",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
    ):
        assert f"{name}{{" in text
    assert f'vllm:request_success_total{{finished_reason="length",model_name="{MODEL}"}}' in text
    assert f'vllm:num_requests_running{{model_name="{MODEL}"}} 0.0' in text


async def test_a_ready_house_says_so(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json()["status"] == "ok"
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "reasons": []})


async def test_a_client_that_goes_away_stops_the_drawing(client: httpx.AsyncClient) -> None:
    asked = ask(max_tokens=900, stream=True)
    async with client.stream("POST", "/v1/chat/completions", json=asked) as reply:
        async for _ in reply.aiter_lines():
            break
    running = f'vllm:num_requests_running{{model_name="{MODEL}"}} 0.0'
    for _ in range(200):
        if running in (await client.get("/metrics")).text:
            break
    else:
        pytest.fail("the request was still running")
