"""Calls that block the thread that makes them: without a hop to an event loop and back, which on one machine costs
about as much as the rest of what a client does for a call.

`Connection` says what a call is: its deadline, retries, identity and errors are the same here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import grpc

from katsura.rpc.channel import open_blocking_channel
from katsura.sdk.connection import Connection

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BlockingConnection(Connection):
    """Unary calls on a blocking channel; what awaits them never waits. Run it with `at_once`."""

    async def _send(self, method: Callable[..., Any], request: Any, timeout_s: float) -> Any:
        return method(request, timeout=timeout_s, metadata=self.metadata())

    async def _pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  to block is what it is for

    async def close(self) -> None:
        """Close the channel, for all copies of this object."""
        cast(grpc.Channel, self.channel).close()


def blocking(address: str, connection: Connection) -> BlockingConnection:
    """A connection to an `address` on this machine with the identity of `connection`.

    Raises:
        InvalidArgumentError: `address` leaves this machine.
    """
    channel = cast(grpc.aio.Channel, open_blocking_channel(address))
    return BlockingConnection(
        channel, connection.internal_token, connection.api_key, connection.call, connection.timeout_s
    )


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing but blocking calls, made in this thread."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    work.close()
    raise RuntimeError("it waits for an event loop: run it on one")
