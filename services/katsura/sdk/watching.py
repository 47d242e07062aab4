"""Watching trees: one, or many. A watch over many keeps the token of each and goes on when the stream breaks."""

from __future__ import annotations

import asyncio
import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final

from katsura.api.memory.v1 import memory_service_pb2 as pb
from katsura.api.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from katsura.domain.errors import InvalidArgumentError, KatsuraError
from katsura.sdk.connection import REPEATED, Connection, backoff_s

PATIENCE_S: Final = 60.0
_EVENTS_PER_MESSAGE: Final = 256
_OVER: Final = (pb.EVENT_KIND_TREE_DELETED, pb.EVENT_KIND_TREE_LEFT)


class WatchedTrees:
    """Commits of many trees, heartbeats among them, each once and in the order of its tree. Made by
    `MemoryClient.watch_trees`; iterate it once, and close it (`contextlib.aclosing`) where the loop ends early.

    Raises, from the loop:
        KatsuraError: what no repetition mends, or mended in `patience_s`. Of OUT_OF_RANGE / WATCH_COMPACTED, the
            metadata's "tree_id" says which tree: `forget` it, and go on with `resume_token`.
    """

    def __init__(
        self,
        stream: Callable[[pb.WatchRequest], AsyncGenerator[pb.WatchResponse, None]],
        request: pb.WatchRequest,
        resume_token: str,
        patience_s: float,
    ) -> None:
        self._stream = stream
        self._request = request
        self._tokens = _tokens_of(resume_token)
        self._patience_s = patience_s
        self._events = self._told()

    @property
    def resume_token(self) -> str:
        """Where the watch stands, all that the loop was given included; "" before it stands."""
        return urlsafe_b64encode(json.dumps(self._tokens).encode()).decode() if "" in self._tokens else ""

    def forget(self, tree_id: str) -> None:
        """Go on with a tree at the first revision that is kept, whatever was told of it."""
        self._tokens.pop(tree_id, None)

    def __aiter__(self) -> AsyncIterator[pb.WatchResponse]:
        return self._events

    async def aclose(self) -> None:
        """End the watch."""
        await self._events.aclose()

    async def _told(self) -> AsyncGenerator[pb.WatchResponse, None]:
        attempt, failing_since = 0, 0.0
        while True:
            request = pb.WatchRequest()
            request.CopyFrom(self._request)
            if "" in self._tokens:
                request.resume_tokens.update(self._tokens)
            try:
                async with aclosing(self._stream(request)) as messages:
                    async for message in messages:
                        attempt = 0
                        for event in _events_of(message):
                            self._note(event)
                            yield event
                return
            except KatsuraError as failure:
                now = time.monotonic()
                failing_since = failing_since if attempt else now
                pause = backoff_s(attempt, failure)
                if failure.reason not in REPEATED or now + pause > failing_since + self._patience_s:
                    raise
                attempt += 1
            await asyncio.sleep(pause)

    def _note(self, event: pb.WatchResponse) -> None:
        if event.kind in _OVER:
            self._tokens.pop(event.tree_id, None)
        elif event.resume_token:
            self._tokens[event.tree_id] = event.resume_token


class WatchCalls:
    """The part of the memory client that streams commits."""

    _connection: Connection
    _stub: MemoryServiceStub

    async def watch(
        self,
        tree_id: str,
        *,
        resume_token: str = "",
        after_revision: int = 0,
        kinds: Sequence[pb.EventKind.ValueType] = (),
        include_content: bool = False,
    ) -> AsyncGenerator[pb.WatchResponse, None]:
        """Every commit after a point, once and in order; go on after a failure with the last `resume_token`.

        Args:
            kinds: only these, and what ends the tree. include_content: with the nodes that they made or changed.
        """
        request = pb.WatchRequest(
            tree_id=tree_id,
            resume_token=resume_token,
            after_revision=after_revision,
            events_per_message=_EVENTS_PER_MESSAGE,
            kinds=kinds,
            include_content=include_content,
        )
        async with aclosing(self._connection.stream(self._stub.Watch, request)) as messages:
            async for message in messages:
                for event in _events_of(message):
                    yield event

    def watch_trees(
        self,
        tree_ids: Sequence[str] = (),
        *,
        labels: Mapping[str, str] | None = None,
        resume_token: str = "",
        from_now: bool = False,
        kinds: Sequence[pb.EventKind.ValueType] = (),
        include_content: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> WatchedTrees:
        """Every commit of the trees named and of all that have `labels`; goes on by itself after a failure.

        Args:
            resume_token: `WatchedTrees.resume_token` of a watch to go on with; without one, `from_now` leaves out what
                is kept of the trees that are there.
            kinds, include_content: as in `watch`.
            patience_s: failures in a row that take longer are raised.
        """
        request = pb.WatchRequest(
            tree_ids=tree_ids,
            labels=labels or {},
            after_revision=-1 if from_now else 0,
            events_per_message=_EVENTS_PER_MESSAGE,
            kinds=kinds,
            include_content=include_content,
        )
        return WatchedTrees(partial(self._connection.stream, self._stub.Watch), request, resume_token, patience_s)


def _events_of(message: pb.WatchResponse) -> list[pb.WatchResponse]:
    more = list(message.more)
    message.ClearField("more")
    return [message, *more]


def _tokens_of(resume_token: str) -> dict[str, str]:
    if not resume_token:
        return {}
    try:
        found = json.loads(urlsafe_b64decode(resume_token.encode()))
    except ValueError as error:
        raise InvalidArgumentError("resume_token is not one of ours", field="resume_token") from error
    if not isinstance(found, dict) or not all(isinstance(token, str) for token in found.values()):
        raise InvalidArgumentError("resume_token is not one of ours", field="resume_token")
    return found
