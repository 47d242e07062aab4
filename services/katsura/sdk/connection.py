"""One peer and whom we speak for: metadata, deadlines, retries and errors of every call."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from katsura.domain.errors import DeadlineExceededError, KatsuraError, Reason, UnavailableError
from katsura.rpc import context as calls
from katsura.rpc import status
from katsura.rpc.channel import open_channel
from katsura.rpc.renewal import TlsFiles
from katsura.telemetry import names, trace

Q = TypeVar("Q")
R = TypeVar("R")

DEFAULT_TIMEOUT_S = 30.0
ATTEMPTS_MAX = 4
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 1.0
REPEATED = frozenset({Reason.PEER_UNAVAILABLE, Reason.STORE_UNAVAILABLE, Reason.DRAINING})
"""Failures after which the same call is sent again."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A channel and the identity that calls over it carry.

    Attributes:
        channel: from `rpc.channel.open_channel`; shared by copies of this object.
        internal_token: secret of the installation, for our own processes.
        api_key: a tenant's key, for everybody else.
        call: for whom our own process acts right now; see `acting_for`.
        timeout_s: deadline of a unary call, all its attempts together.
    """

    channel: grpc.aio.Channel
    internal_token: str = field(default="", repr=False)
    api_key: str = field(default="", repr=False)
    call: calls.CallContext | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S

    def acting_for(self, call: calls.CallContext, timeout_s: float | None = None) -> Connection:
        """This connection on behalf of `call`: same channel, its tenant and ids; `timeout_s` bounds each call."""
        return replace(self, call=call, timeout_s=self.timeout_s if timeout_s is None else timeout_s)

    def metadata(self) -> calls.Metadata:
        """Identity, ids and trace context of a call that starts now."""
        return calls.outgoing(self.call, self.internal_token, self.api_key)

    async def unary(
        self,
        method: Callable[..., Any],
        name: str,
        request: Q,
        timeout_s: float | None = None,
        attempts: int = ATTEMPTS_MAX,
    ) -> Any:
        """Call `method` until it answers, fails for good, was tried `attempts` times, or the deadline is near.

        Only for calls that may be repeated: reads, and writes that carry their request_id. One whose request_id is
        empty is sent once. Repeated is what failed on the way (`REPEATED`); an answer that something is missing is the
        caller's to decide about.

        Raises:
            KatsuraError: what the peer answered; UNAVAILABLE and DEADLINE_EXCEEDED are raised here too.
        """
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        if getattr(request, "request_id", None) == "":
            attempts = 1  # nothing would tell the repetition from another write
        with trace.span(names.SPAN_RPC_CLIENT, {names.RPC_METHOD: name}):
            for attempt in range(attempts):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise DeadlineExceededError(f"{name}: the deadline passed before it could be sent")
                try:
                    return await self._send(method, request, left)
                except grpc.RpcError as error:
                    failure = status.from_rpc_error(cast(grpc.Call, error))
                    pause = backoff_s(attempt, failure)
                    out_of_time = time.monotonic() + pause >= deadline
                    if failure.reason not in REPEATED or attempt + 1 == attempts or out_of_time:
                        raise failure from None
                await self._pause(pause)
        raise AssertionError("unreachable")

    async def _send(self, method: Callable[..., Any], request: Any, timeout_s: float) -> Any:
        return await method(request, timeout=timeout_s, metadata=self.metadata())

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def stream(
        self, method: Callable[..., Any], request: Q, timeout_s: float | None = None
    ) -> AsyncGenerator[Any, None]:
        """Call a server-streaming `method` once; leaving the iterator cancels it.

        Raises:
            KatsuraError: what the peer ended the stream with.
        """
        running = method(request, timeout=timeout_s, metadata=self.metadata())
        try:
            async for response in running:
                yield response
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from None
        finally:
            running.cancel()

    async def require_serving(self, timeout_s: float) -> None:
        """Ask the peer's health service.

        Raises:
            UnavailableError: it does not answer, or says that it does not serve.
        """
        check = health_pb2_grpc.HealthStub(self.channel).Check
        try:
            answer = await check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise UnavailableError(f"does not answer: {error.details()}") from None
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise UnavailableError("answers, but is not ready")

    async def close(self) -> None:
        """Close the channel, for all copies of this object."""
        await self.channel.close()


@asynccontextmanager
async def connect(
    address: str, *, api_key: str = "", internal_token: str = "", tls: TlsFiles | None = None
) -> AsyncIterator[Connection]:
    """A connection to `address` (`unix:/path` or `host:port`) that is closed at the end of the block."""
    connection = Connection(open_channel(address, tls), internal_token, api_key)
    try:
        yield connection
    finally:
        await connection.close()


def backoff_s(attempt: int, failure: KatsuraError) -> float:
    """Seconds before the next attempt: what the peer asked for, else exponential with full jitter."""
    if failure.retry_after_s is not None:
        return failure.retry_after_s
    return random.uniform(0, min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**attempt))  # noqa: S311  spreads load, no secret


def new_request_id() -> str:
    """A fresh identity for a write."""
    return uuid.uuid4().hex
