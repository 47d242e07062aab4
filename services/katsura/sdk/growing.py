"""Growing a branch without waiting for answers: what was sent and not answered is sent again after a failure."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from itertools import count
from typing import Any

import grpc

from katsura.api.memory.v1 import memory_service_pb2 as pb
from katsura.rpc import status
from katsura.sdk.connection import REPEATED, Connection, backoff_s


class _Unanswered:
    """Requests that came and were not answered, at most `most`, in order."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: deque[pb.GrowRequest] = deque()
        self._answered = 0
        self._ended = False
        self._changed = asyncio.Condition()

    async def collect(self, requests: AsyncIterable[pb.GrowRequest]) -> None:
        """Take what comes, while there is room."""
        try:
            async for request in requests:
                async with self._changed:
                    await self._changed.wait_for(lambda: len(self._kept) < self._most)
                    self._kept.append(request)
                    self._changed.notify_all()
        finally:
            async with self._changed:
                self._ended = True
                self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._kept)

    async def some(self) -> bool:
        """Wait for one; False where none will come."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._kept or self._ended)
            return bool(self._kept)

    async def messages(self) -> AsyncIterator[pb.GrowStreamRequest]:
        """What is unanswered now, then what comes, until nothing more will."""
        for at in count(self._answered):
            async with self._changed:
                while not self._ended and at == self._answered + len(self._kept):
                    await self._changed.wait()
                if at == self._answered + len(self._kept):
                    return
                request = self._kept[at - self._answered]
            yield pb.GrowStreamRequest(grow=request)

    async def answer(self) -> None:
        """The oldest was answered."""
        async with self._changed:
            self._kept.popleft()
            self._answered += 1
            self._changed.notify_all()

    def go_on_from(self, head: int | None) -> None:
        """Tell the oldest what it expects, as its stream did not live to tell it."""
        if head is not None and self._kept and not self._kept[0].unconditional:
            self._kept[0].expected_head = head


async def grow_stream(
    connection: Connection, method: Callable[..., Any], requests: AsyncIterable[pb.GrowRequest], in_flight: int
) -> AsyncGenerator[pb.GrowResponse, None]:
    """Answers to `requests`, in order; each carries a request_id, so that one whose answer was lost is written once.

    Raises:
        KatsuraError: what the peer ended the stream with, or what it failed by for the connection's `timeout_s`, in
            which something waited for an answer.
    """
    unanswered = _Unanswered(in_flight)
    collecting = asyncio.create_task(unanswered.collect(requests))
    failures, failing_since, head = 0, 0.0, None
    try:
        while unanswered or await unanswered.some():
            unanswered.go_on_from(head)
            running = method(unanswered.messages(), metadata=connection.metadata())
            try:
                async for answer in running:
                    failures, head = 0, answer.grow.branch.head
                    await unanswered.answer()
                    yield answer.grow
                continue
            except grpc.aio.AioRpcError as error:
                failure, now = status.from_rpc_error(error), time.monotonic()
                failing_since = failing_since if failures else now
                if failure.reason not in REPEATED or now - failing_since > connection.timeout_s:
                    raise failure from None
            finally:
                running.cancel()
            if unanswered:
                await asyncio.sleep(backoff_s(failures, failure))
                failures += 1
        await collecting  # raises what the caller's own iterator raised
    finally:
        collecting.cancel()
        await asyncio.wait((collecting,))
