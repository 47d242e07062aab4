from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from katsura.domain.errors import CancelledError, KatsuraError, UnavailableError
from katsura.gateway.core.sse import KEEPALIVE
from katsura.gateway.streaming import EventStream, until_gone

LONG_S = 3600.0


def failed(error: KatsuraError) -> bytes:
    return f"failed: {error.message}".encode()


class Client:
    """The other end: collects what is sent, leaves when told to."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.got_body = asyncio.Event()
        self.gone = asyncio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body":
            self.got_body.set()

    @property
    def chunks(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]


async def test_each_event_is_a_chunk_of_its_own() -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        yield b"one"
        yield b"two"

    client = Client()
    await EventStream(events(), LONG_S, failed, {"x-session-id": "s"})({}, client.receive, client.send)
    start = client.sent[0]
    assert (start["type"], start["status"]) == ("http.response.start", 200)
    assert (b"x-session-id", b"s") in start["headers"]
    assert (b"content-type", b"text/event-stream; charset=utf-8") in start["headers"]
    assert client.chunks == [b"one", b"two", b""]
    assert client.sent[-1]["more_body"] is False


async def test_an_event_is_sent_before_the_next_one_is_made() -> None:
    client, go_on = Client(), asyncio.Event()

    async def events() -> AsyncGenerator[bytes, None]:
        yield b"one"
        await go_on.wait()
        yield b"two"

    running = asyncio.create_task(EventStream(events(), LONG_S, failed)({}, client.receive, client.send))
    await client.got_body.wait()
    assert client.chunks == [b"one"]
    go_on.set()
    await running
    assert client.chunks == [b"one", b"two", b""]


async def test_an_error_before_the_first_event_leaves_the_status_to_the_caller() -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        raise UnavailableError("no shard")
        yield b""

    client = Client()
    with pytest.raises(UnavailableError):
        await EventStream(events(), LONG_S, failed)({}, client.receive, client.send)
    assert client.sent == []


async def test_an_error_after_the_first_event_is_an_event_and_ends_the_stream() -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        yield b"one"
        raise UnavailableError("no shard")

    client = Client()
    await EventStream(events(), LONG_S, failed)({}, client.receive, client.send)
    assert client.chunks == [b"one", b"failed: no shard", b""]


async def test_an_error_after_mere_comments_is_an_event_too() -> None:
    client = Client()

    async def events() -> AsyncGenerator[bytes, None]:
        await client.got_body.wait()
        raise UnavailableError("no shard")
        yield b""

    await EventStream(events(), 0.001, failed)({}, client.receive, client.send)
    assert client.chunks[0] == KEEPALIVE
    assert client.chunks[-2:] == [b"failed: no shard", b""]


async def test_silence_is_filled_with_comments_until_the_event_comes() -> None:
    client, go_on = Client(), asyncio.Event()

    async def events() -> AsyncGenerator[bytes, None]:
        await go_on.wait()
        yield b"late"

    running = asyncio.create_task(EventStream(events(), 0.001, failed)({}, client.receive, client.send))
    await client.got_body.wait()
    assert client.chunks[0] == KEEPALIVE
    go_on.set()
    await running
    assert client.chunks[-2:] == [b"late", b""]
    assert set(client.chunks[:-2]) == {KEEPALIVE}


async def test_a_client_that_leaves_ends_the_making_of_events() -> None:
    client, cleaned = Client(), asyncio.Event()

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield b"one"
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    running = asyncio.create_task(EventStream(events(), LONG_S, failed)({}, client.receive, client.send))
    await client.got_body.wait()
    client.gone.set()
    with pytest.raises(CancelledError):
        await running
    assert cleaned.is_set()


async def test_work_is_cancelled_when_its_client_leaves() -> None:
    client, cancelled = Client(), asyncio.Event()

    async def work() -> None:
        client.gone.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(CancelledError):
        await until_gone(client.receive, work())
    assert cancelled.is_set()


async def test_work_that_ends_first_has_its_result_and_its_errors() -> None:
    async def answer() -> int:
        return 7

    async def fail() -> None:
        raise UnavailableError("x")

    assert await until_gone(Client().receive, answer()) == 7
    with pytest.raises(UnavailableError):
        await until_gone(Client().receive, fail())
