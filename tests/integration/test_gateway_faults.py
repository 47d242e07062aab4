"""What is behind the gateway dies and comes back: requests fail cleanly meanwhile, and nothing acknowledged is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from katsura.testing.house import MODEL, House

LETTERS = {str(index): 100 for index in range(64, 90)}


@pytest.fixture
async def own_house(tiny_chat: Path, socket_folder: Path) -> AsyncIterator[House]:
    patience = {"gateway": {"KATSURA_SHARD_WAIT_S": "0.2"}}
    async with House(socket_folder, tiny_chat, router_count=2, settings=patience) as running:
        yield running


async def ask(client: httpx.AsyncClient, text: str, session: str = "s") -> httpx.Response:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 4, "logit_bias": LETTERS}
    headers = {"x-session-id": session, "x-session-branch": "main", "x-request-timeout-s": "10"}
    return await client.post("/v1/chat/completions", json=asked, headers=headers)


async def until_ready(client: httpx.AsyncClient) -> None:
    for _ in range(2000):
        if (await client.get("/readyz")).status_code == 200:
            return
    pytest.fail((await client.get("/readyz")).text)


async def turns(client: httpx.AsyncClient) -> list[str]:
    nodes = (await client.get("/v1/sessions/s/tree")).json()["nodes"]
    return [node["content"] for node in nodes if node["role"] == "user"]


async def test_everything_behind_the_gateway_may_die_and_come_back(own_house: House) -> None:
    house = own_house
    async with httpx.AsyncClient(base_url=house.url, timeout=60) as client:
        assert (await client.post("/v1/sessions", json={"id": "s"})).status_code == 201
        assert (await ask(client, "one")).status_code == 200

        house.store.kill()
        down = await ask(client, "lost")
        assert (down.status_code, down.json()["error"]["type"]) == (503, "server_error")
        assert "/" not in down.json()["error"]["message"]
        not_ready = await client.get("/readyz")
        assert not_ready.status_code == 503
        assert "store" in [reason["component"] for reason in not_ready.json()["reasons"]]
        house.store.start()
        await until_ready(client)
        assert (await ask(client, "two")).status_code == 200
        assert await turns(client) == ["one", "two"]

        await house.processes["memory"].kill()
        gone = await ask(client, "lost")
        assert (gone.status_code, gone.json()["error"]["code"]) == (503, "peer_unavailable")
        await house.start("memory")
        await until_ready(client)
        assert (await ask(client, "three")).status_code == 200

        await house.processes["router-0"].kill()
        assert (await ask(client, "four")).status_code == 200, "the other router answers"

        await house.processes["engine-0"].kill()
        without = await ask(client, "five")
        assert without.status_code == 503
        # Until its lease runs out, the router still names the dead engine.
        assert without.json()["error"]["code"] in ("no_shard", "peer_unavailable")
        await house.start("engine-0")
        await until_ready(client)
        # A gateway of such little patience may still be reconnecting; like any client, ask again after a 503.
        for _ in range(200):
            if (six := await ask(client, "six")).status_code != 503:
                break
        assert six.status_code == 200
        said = await turns(client)
        assert said[:4] == ["one", "two", "three", "four"]
        assert said[-1] == "six"

    await house.processes["gateway"].kill()
    await house.start("gateway")
    async with httpx.AsyncClient(base_url=house.url, timeout=60) as client:
        assert await turns(client) == said
    assert await house.processes["gateway"].terminate() == 0
