"""One request is one trace through every process, and no prompt, answer or key leaves a log or a span."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from katsura.domain.ids import DEFAULT_TENANT
from katsura.testing.collector import Collector
from katsura.testing.house import MODEL, House

TRACE = "0af7651916cd43dd8448eb211c80319c"
SECRET = "a-very-secret-prompt"
ROLES = ("gateway", "memory", "router", "engine")


def logs_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def lines_of(folder: Path, message: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for path in logs_of(folder) for line in path.read_text().splitlines()]
    return [line for line in lines if line["message"] == message]


async def test_a_request_is_one_trace_and_tells_no_secret(
    tiny_chat: Path, socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        logs = {"KATSURA_LOG_LEVEL": "debug", "KATSURA_LOG_FORMAT": "json"}
        async with (
            House(socket_folder, tiny_chat, settings=dict.fromkeys(ROLES, logs)) as house,
            httpx.AsyncClient(base_url=house.url, timeout=60) as client,
        ):
            await client.post("/v1/sessions", json={"id": "s"})
            reply = await client.post(
                "/v1/chat/completions",
                json={"model": MODEL, "messages": [{"role": "user", "content": SECRET}], "max_tokens": 4},
                headers={
                    "x-request-id": "mine-1",
                    "x-session-id": "s",
                    "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
                    "authorization": "Bearer not-a-key-but-secret",
                },
            )
            assert reply.status_code == 200
            services = {f"katsura-{role}" for role in ROLES}
            collector.wait_for(services, 30)
            # A process that ends in peace exports what it still holds: here the spans that the request ended last.
            assert await house.processes["gateway"].terminate() == 0
            spans = collector.wait_for(services, 30)
    (answered,) = lines_of(socket_folder, "POST /v1/chat/completions")
    assert (answered["status"], answered["trace_id"]) == (200, TRACE)
    assert (answered["katsura.tenant"], answered["katsura.session"]) == (DEFAULT_TENANT, "s")
    assert answered["katsura.request"] == "mine-1"
    written = "".join(path.read_text() for path in logs_of(socket_folder))
    assert {span.trace_id for span in spans} == {TRACE}
    assert {"gateway.request", "gateway.assemble", "rpc.serve"} <= {span.name for span in spans}
    assert len(logs_of(socket_folder)) == len(ROLES)
    for secret in (SECRET, "not-a-key-but-secret", house.token):
        assert secret not in written
        assert secret not in repr(spans)


async def test_a_session_is_known_to_the_router_however_it_was_named(tiny_chat: Path, socket_folder: Path) -> None:
    logs = {"KATSURA_LOG_LEVEL": "debug", "KATSURA_LOG_FORMAT": "json"}
    async with (
        House(socket_folder, tiny_chat, settings=dict.fromkeys(ROLES, logs)) as house,
        httpx.AsyncClient(base_url=house.url, timeout=60) as client,
    ):
        for name in ("by-header", "by-body"):
            await client.post("/v1/sessions", json={"id": name})
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        await client.post("/v1/chat/completions", json=asked, headers={"x-session-id": "by-header"})
        await client.post("/v1/chat/completions", json=asked | {"metadata": {"session_id": "by-body"}})
        kept = (await client.post("/v1/responses", json={"model": MODEL, "input": "x", "max_output_tokens": 2})).json()
        tree_id = str(kept["id"]).removeprefix("resp_").rpartition("-")[0]
        await client.post("/v1/responses", json={"model": MODEL, "input": "y", "previous_response_id": kept["id"]})
        await client.post("/v1/chat/completions", json=asked)
    chosen = [line.get("katsura.session") for line in lines_of(socket_folder, "chose a shard")]
    assert chosen == ["by-header", "by-body", tree_id, tree_id, None]
