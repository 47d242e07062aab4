"""Shards are killed and drained while they draw; the client must not be able to tell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from katsura.rpc.channel import open_channel
from katsura.sdk import AttentionClient, Connection
from katsura.testing.house import MODEL, House

LETTERS = {str(index): 100 for index in range(64, 90)}
TOKENS = 900
ASKED = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Go on."}],
    "max_tokens": TOKENS,
    "logit_bias": LETTERS,
    "temperature": 1.2,
    "seed": 5,
}


@pytest.fixture
async def two_engines(tiny_chat: Path, socket_folder: Path) -> AsyncIterator[House]:
    async with House(socket_folder, tiny_chat, engine_count=2) as running:
        yield running


async def drawing(house: House) -> str:
    """Name of the engine that draws right now."""
    for name in ("engine-0", "engine-1"):
        if name in house.processes:
            async with open_channel(house.processes[name].address) as channel:
                if (await AttentionClient(Connection(channel, house.token)).get_shard()).running_count:
                    return name
    raise AssertionError("no engine draws; the answer ended too early for this test")


async def whole_text(house: House) -> str:
    async with httpx.AsyncClient(base_url=house.url, timeout=60) as client:
        reply = await client.post("/v1/chat/completions", json=ASKED)
    return str(reply.json()["choices"][0]["message"]["content"])


async def disturbed_text(house: House, disturb: Callable[[str], Awaitable[None]]) -> tuple[str, list[str]]:
    """What a stream says whose engine is disturbed after some chunks; and the reasons it gave for its end."""
    text, reasons, chunks = "", [], 0
    async with (
        httpx.AsyncClient(base_url=house.url, timeout=120) as client,
        client.stream("POST", "/v1/chat/completions", json={**ASKED, "stream": True}) as reply,
    ):
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            choice = json.loads(line.removeprefix("data: "))["choices"][0]
            text += choice["delta"].get("content", "")
            reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
            chunks += 1
            if chunks == 10:
                await disturb(await drawing(house))
    return text, reasons


async def test_a_killed_engine_is_replaced_within_the_same_stream(two_engines: House) -> None:
    house = two_engines
    undisturbed = await whole_text(house)
    killed: list[str] = []

    async def kill(name: str) -> None:
        killed.append(name)
        await house.processes[name].kill()

    text, reasons = await disturbed_text(house, kill)
    assert len(killed) == 1
    assert (text, reasons) == (undisturbed, ["length"])
    assert len(text) == TOKENS


async def test_a_drained_engine_hands_its_streams_over(two_engines: House) -> None:
    house = two_engines
    undisturbed = await whole_text(house)

    async def drain(name: str) -> None:
        async with open_channel(house.processes[name].address) as channel:
            await AttentionClient(Connection(channel, house.token)).drain(timeout_ms=0)

    assert await disturbed_text(house, drain) == (undisturbed, ["length"])


async def test_the_only_engine_comes_back_and_the_stream_goes_on(tiny_chat: Path, socket_folder: Path) -> None:
    async with House(socket_folder, tiny_chat) as house:
        undisturbed = await whole_text(house)
        revived: list[asyncio.Task[object]] = []

        async def restart(name: str) -> None:
            await house.processes[name].kill()
            revived.append(asyncio.create_task(house.start(name)))

        assert await disturbed_text(house, restart) == (undisturbed, ["length"])
        await asyncio.gather(*revived)
