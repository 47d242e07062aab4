"""A reply of server-sent events: flushed one by one, kept alive while silent, cancelled when nobody listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from katsura.domain.errors import CancelledError, KatsuraError
from katsura.gateway.core.sse import KEEPALIVE
from katsura.telemetry import log

_LOG = log.get(__name__)
T = TypeVar("T")


class EventStream(Response):
    """An ASGI response over encoded events.

    The headers wait for the first event, `keepalive_s` at most: a request that fails before its first token still gets
    an HTTP status, and one that queues for long still gets headers. An error after that is an event.

    Args:
        events: encoded events; told to stop (`aclose`) when the client goes away.
        keepalive_s: a comment is sent after about this much silence.
        failed: the event that tells of an error, in the protocol of `events`.
        headers: further headers.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        keepalive_s: float,
        failed: Callable[[KatsuraError], bytes],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self._keepalive_s = keepalive_s
        self._failed = failed
        self._fields = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            **(headers or {}),
        }
        self._sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        await until_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        comments = asyncio.ensure_future(self._keep_alive(send))
        try:
            async with aclosing(self._events) as events:
                async for chunk in events:
                    await self._send(send, chunk)
        except KatsuraError as error:
            if not self._sent:
                raise
            _LOG.warning("a stream broke off", reason=error.reason.value, error=error.message)
            await self._send(send, self._failed(error))
        finally:
            await _ended(comments)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, chunk: bytes) -> None:
        self._sent += 1
        if self._sent == 1:
            raw = [(name.encode(), value.encode("latin-1")) for name, value in self._fields.items()]
            await send({"type": "http.response.start", "status": 200, "headers": raw})
        await send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def _keep_alive(self, send: Send) -> None:
        while True:
            before = self._sent
            await asyncio.sleep(self._keepalive_s)
            if self._sent == before:
                await self._send(send, KEEPALIVE)


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client disconnects first.

    Raises:
        CancelledError: the client disconnected.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise CancelledError("the client went away")
    finally:
        await _ended(gone)
        await _ended(working)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(task: asyncio.Future[Any]) -> None:
    """Cancel a task that still runs and wait until its clean-up is done."""
    if task.done():
        return
    task.cancel()
    await asyncio.wait((task,))
